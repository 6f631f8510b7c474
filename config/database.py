"""Connections to PostgreSQL: how they are made, and what each of them may take.

Every connection carries timeouts on the server's side, so that a statement of ours never outlives its caller by long.
"""

import json
from typing import Any

import asyncpg

from config.settings import Database

COMMAND_TIMEOUT = 10.0
_SERVER = {
    "application_name": "wardgate",
    "statement_timeout": "10000",
    "lock_timeout": "3000",
    "idle_in_transaction_session_timeout": "10000",
    "timezone": "UTC",
}

Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy
Pool = asyncpg.Pool


async def _set_up(connection: Any) -> None:
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")


async def connect(settings: Database, *, timeout: float = COMMAND_TIMEOUT) -> asyncpg.Connection:
    """One connection outside the pool (the lease has one, a migration another)."""
    connection = await asyncpg.connect(
        settings.url.get_secret_value(), timeout=5, command_timeout=timeout, server_settings=_SERVER
    )
    await _set_up(connection)
    return connection


async def open_pool(settings: Database) -> asyncpg.Pool:
    """The process's pool of `database.pool_size` connections."""
    return await asyncpg.create_pool(
        settings.url.get_secret_value(),
        min_size=1,
        max_size=settings.pool_size,
        timeout=5,
        command_timeout=COMMAND_TIMEOUT,
        server_settings=_SERVER,
        init=_set_up,
    )
