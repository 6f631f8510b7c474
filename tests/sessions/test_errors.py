"""Which errors of the driver say that PostgreSQL is away, and which are nobody's but ours."""

import time

import asyncpg
import pytest

from sessions.errors import Unavailable, translated


async def test_a_process_that_was_paused_in_a_transaction_says_unavailable(pool: asyncpg.Pool) -> None:
    """The server ends a transaction that says nothing for 10 s; a process that was stopped finds that out later."""
    connection = await pool.acquire()
    try:
        await connection.execute("SET idle_in_transaction_session_timeout = '50ms'")
        await connection.execute("BEGIN")
        time.sleep(0.3)  # noqa: ASYNC251 - the whole process stands still, as after SIGSTOP
        with pytest.raises(Unavailable), translated():
            await connection.fetchval("SELECT 1")
    finally:
        await pool.release(connection)


async def test_a_mistake_of_ours_is_not_called_an_outage(pool: asyncpg.Pool) -> None:
    with pytest.raises(asyncpg.UndefinedTableError), translated():
        await pool.fetchval("SELECT 1 FROM nothing")
