"""Which sessions go after their time, and which stay."""

import asyncpg
import pytest

from config.clock import FakeClock, SystemClock
from config.settings import Settings
from sessions import audit, store
from sessions.revocations import Revocations
from sessions.service import Sessions
from tests.sessions.conftest import Logins

DAY = 86400.0


async def left(pool: asyncpg.Pool) -> set[str]:
    return {record["sid"] for record in await pool.fetch("SELECT sid FROM sessions")}


async def ended(pool: asyncpg.Pool, sid: str, days: int, kind: str = "cookie") -> None:
    """As if it had been ended so many days ago."""
    await pool.execute(
        "UPDATE sessions SET ended_at = now() - $2 * interval '1 day', ended_code = 4501, kind = $3 WHERE sid = $1",
        sid,
        days,
        kind,
    )


async def ran_out(pool: asyncpg.Pool, sid: str, days: int) -> None:
    """As if its time had been over so many days ago."""
    await pool.execute("UPDATE sessions SET expires_at = now() - $2 * interval '1 day' WHERE sid = $1", sid, days)


async def opened(login: Logins, user: str) -> str:
    return (await login(user)).reading.session.sid


async def test_logins_that_were_over_stayed_for_ever(sessions: Sessions, pool: asyncpg.Pool, login: Logins) -> None:
    names = [await opened(login, f"user{n}") for n in range(6)]
    await ended(pool, names[1], 31)
    await ran_out(pool, names[2], 31)
    await ended(pool, names[3], 29)
    await ran_out(pool, names[4], 29)
    await ended(pool, names[5], 99, "external")
    assert await sessions.forget() == 2
    assert await left(pool) == {names[0], names[3], names[4], names[5]}
    assert await sessions.by_sid(names[1]) is None


async def test_who_wants_to_keep_them_keeps_them(
    pool: asyncpg.Pool, revocations: Revocations, settings: Settings, sessions: Sessions, login: Logins
) -> None:
    name = await opened(login, "alice")
    await ran_out(pool, name, 3000)
    policy = settings.sessions.model_copy(update={"keep_ended": 0.0})
    assert await Sessions(pool, revocations, policy, clock=FakeClock()).forget() == 0
    assert await left(pool) == {name}


async def test_a_clock_that_jumped_a_year_ahead_deleted_what_lives(
    pool: asyncpg.Pool, revocations: Revocations, settings: Settings, sessions: Sessions, login: Logins
) -> None:
    """The database's clock is ahead of this machine's: nothing is deleted before they agree."""
    name = await opened(login, "alice")
    await pool.execute("SELECT audit_make_month(now() - interval '3 years')")
    offset = revocations._renewal.offset
    assert offset.value is not None
    offset.value += 365 * DAY
    await sessions.tidy()
    assert await left(pool) == {name}
    months = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit'::regclass"
    assert await pool.fetchval(months) == 5
    offset.value -= 365 * DAY
    await sessions.tidy()
    assert await left(pool) == {name}
    assert await pool.fetchval(months) == 4


async def test_a_gateway_whose_role_may_make_no_tables_did_not_start(
    pool: asyncpg.Pool, revocations: Revocations, settings: Settings, sessions: Sessions
) -> None:
    await pool.execute(
        "CREATE OR REPLACE FUNCTION audit_make_month(month timestamptz) RETURNS boolean LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE insufficient_privilege; END $$"
    )
    await sessions.close()
    await sessions.start()


@pytest.mark.parametrize("statement", ["forget", "forget_over"])
async def test_deleting_walks_over_no_session_that_lives(
    pool: asyncpg.Pool, sessions: Sessions, login: Logins, statement: str
) -> None:
    await opened(login, "alice")
    await pool.execute(
        "INSERT INTO sessions (sid, subject, kind, born, expires_at, idle_seconds) SELECT 's' || n, 'alice',"
        " CASE WHEN n % 2 = 0 THEN 'external' ELSE 'cookie' END, 1, now() + n * interval '1 minute', 100"
        " FROM generate_series(1, 20000) AS n"
    )
    await pool.execute("ANALYZE sessions")
    async with pool.acquire() as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        async with connection.transaction():
            if statement == "forget":
                await store.forget(connection, now=sessions.now(), limit=1000)
            else:
                await store.forget_over(connection, before=sessions.now() + 60.0, limit=1000)
            read = "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'sessions'"
            assert await connection.fetchval(read) == 0


async def test_the_audit_is_kept_for_ever_where_the_settings_say_so_and_while_another_drops_months(
    pool: asyncpg.Pool, revocations: Revocations, settings: Settings, sessions: Sessions
) -> None:
    months = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit'::regclass"
    await pool.execute("SELECT audit_make_month('2001-01-01')")
    before = await pool.fetchval(months)
    policy = settings.sessions.model_copy(update={"keep_audit": 0.0})
    await Sessions(pool, revocations, policy, clock=SystemClock()).tidy()
    assert await pool.fetchval(months) == before
    async with pool.acquire() as other, other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock(hashtext('audit_make_month'))")
        async with pool.acquire() as connection:
            assert await audit.drop_months(connection, sessions.now(), limit=10) == 0
    assert await pool.fetchval(months) == before
