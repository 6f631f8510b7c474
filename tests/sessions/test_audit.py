"""The audit's table: rows of the deed's transaction, partitions by month."""

import asyncio
from datetime import UTC, datetime

import asyncpg
import pytest

from sessions import audit


async def months(pool: asyncpg.Pool) -> list[str]:
    names = "SELECT inhrelid::regclass::text AS name FROM pg_inherits WHERE inhparent = 'audit'::regclass ORDER BY 1"
    return [record["name"] for record in await pool.fetch(names) if record["name"] != "audit_other"]


def named(month: datetime, ahead: int = 0) -> str:
    number = month.year * 12 + month.month - 1 + ahead
    return f"audit_{number // 12}_{number % 12 + 1:02d}"


async def test_the_migration_makes_this_month_and_the_next_two(pool: asyncpg.Pool) -> None:
    now: datetime = await pool.fetchval("SELECT now()")
    assert await months(pool) == [named(now, n) for n in range(3)]


async def test_making_months_again_changes_nothing_even_at_once(pool: asyncpg.Pool) -> None:
    before = await months(pool)
    await pool.execute(f"DROP TABLE {before[1]}")
    await asyncio.gather(*(audit.make_months(pool) for _ in range(3)))
    assert await months(pool) == before


async def test_a_row_goes_to_its_month(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        await audit.append(connection, "job.retried", actor="cli")
    where = await pool.fetchval("SELECT tableoid::regclass::text FROM audit")
    assert where == named(datetime.now(UTC)) or where in await months(pool)
    assert where != "audit_other"


async def test_a_clock_that_jumped_loses_no_row_and_stops_no_month(pool: asyncpg.Pool) -> None:
    """A row of a year without partitions is kept, and a month that has such rows is left as it is."""
    await pool.execute("INSERT INTO audit (at, actor, action) VALUES ('2101-05-20', 'cli', 'late')")
    assert await pool.fetchval("SELECT tableoid::regclass::text FROM audit") == "audit_other"
    assert await pool.fetchval("SELECT audit_make_month('2101-05-01')") is False
    assert await pool.fetchval("SELECT audit_make_month('2101-06-01')") is True
    await audit.make_months(pool)


@pytest.mark.parametrize(
    ("moment", "name"),
    [
        ("2099-12-31 23:59:59+00", "audit_2099_12"),
        ("2100-01-01 00:00:00+00", "audit_2100_01"),
        ("2100-01-31 12:00+00", "audit_2100_01"),
        ("2100-03-01 00:30+02", "audit_2100_02"),
    ],
)
async def test_months_are_those_of_utc(pool: asyncpg.Pool, moment: str, name: str) -> None:
    async with pool.acquire() as connection:
        await connection.execute("SET timezone = 'Pacific/Auckland'")
        at = datetime.fromisoformat(moment if len(moment) > 20 else moment.replace("+", ":00+") + ":00")
        assert await connection.fetchval("SELECT audit_make_month($1)", at) is True
        await connection.execute("INSERT INTO audit (at, actor, action) VALUES ($1, 'cli', 'x')", at)
        assert await connection.fetchval("SELECT tableoid::regclass::text FROM audit") == name


async def test_a_rolled_back_deed_leaves_no_row(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await audit.append(connection, "job.retried", actor="cli")
        await transaction.rollback()
    assert await audit.page(pool, audit.Filter(), limit=5) == []


async def test_detail_comes_back_as_it_was(pool: asyncpg.Pool) -> None:
    detail = {"text": """'; DROP TABLE audit; -- "\\""", "n": 1, "list": [None, True, {"x": "\N{SNOWMAN}"}]}
    async with pool.acquire() as connection:
        await audit.append(connection, "job.retried", actor="cli", detail=detail)
    [entry] = await audit.page(pool, audit.Filter(), limit=5)
    assert entry.detail == detail
    assert entry.at == pytest.approx(datetime.now(UTC).timestamp(), abs=60)


async def test_months_that_are_old_enough_are_dropped_and_no_other(pool: asyncpg.Pool) -> None:
    for month in ("2024-11-15", "2024-12-15", "2025-01-15"):
        await pool.execute("SELECT audit_make_month($1::text::timestamptz)", month)
        await pool.execute("INSERT INTO audit (at, actor, action) VALUES ($1::text::timestamptz, 'cli', 'x')", month)
    await pool.execute(
        "INSERT INTO audit (at, actor, action) SELECT '2019-05-05', 'cli', 'x' FROM generate_series(1, 3)"
    )
    before = datetime(2025, 1, 31, 23, 59, tzinfo=UTC).timestamp()
    async with pool.acquire() as connection:
        await connection.execute("SET timezone = 'Pacific/Auckland'")
        assert await audit.drop_months(connection, before, limit=2) == 4  # two months, and two rows of no month
        assert await audit.drop_months(connection, before, limit=2) == 1
        assert await audit.drop_months(connection, before + 60, limit=2) == 1
        assert await audit.drop_months(connection, before + 60, limit=2) == 0
    assert len(await months(pool)) == 3


async def test_a_month_that_somebody_reads_is_left_and_holds_up_nobody(pool: asyncpg.Pool) -> None:
    await pool.execute("SELECT audit_make_month('2024-11-15')")
    async with pool.acquire() as reader, pool.acquire() as connection:
        async with reader.transaction():
            await reader.fetch("SELECT * FROM audit")
            with pytest.raises(asyncpg.LockNotAvailableError):
                await audit.drop_months(connection, datetime.now(UTC).timestamp(), limit=1)
        assert await audit.drop_months(connection, datetime.now(UTC).timestamp(), limit=1) == 1


async def test_no_filter_walked_over_every_row(pool: asyncpg.Pool) -> None:
    """Not even on the sixth time, when a plan for any values may be taken, nor for what hardly ever happens."""
    await pool.execute(
        "INSERT INTO audit (actor, action, target, sid)"
        " SELECT 'user:' || n, 'session.opened', 'session:' || n, 's' || n FROM generate_series(1, 20000) AS n"
    )
    await pool.execute("INSERT INTO audit (actor, action) VALUES ('cli', 'signing_key.rotated')")
    await pool.execute("ANALYZE audit")
    filters = [
        audit.Filter(actor="user:77"),
        audit.Filter(action="signing_key"),
        audit.Filter(action="signing_key.rotated"),
        audit.Filter(target="session:77"),
        audit.Filter(sid="s77"),
        audit.Filter(actor="nobody"),
    ]
    read = "SELECT sum(seq_tup_read + idx_tup_fetch) FROM pg_stat_xact_user_tables WHERE relname LIKE 'audit%'"
    async with pool.acquire() as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        async with connection.transaction():
            for by in filters:
                for _ in range(7):
                    assert len(await audit.page(connection, by, limit=5)) == (by.actor != "nobody")
            assert await connection.fetchval(read) < 1000
