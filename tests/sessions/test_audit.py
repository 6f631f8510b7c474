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
        await audit.append(connection, "a.b", actor="cli")
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
        await audit.append(connection, "a.b", actor="cli")
        await transaction.rollback()
    assert await audit.page(pool, audit.Filter(), limit=5) == []


async def test_detail_comes_back_as_it_was(pool: asyncpg.Pool) -> None:
    detail = {"text": """'; DROP TABLE audit; -- "\\""", "n": 1, "list": [None, True, {"x": "\N{SNOWMAN}"}]}
    async with pool.acquire() as connection:
        await audit.append(connection, "a.b", actor="cli", detail=detail)
    [entry] = await audit.page(pool, audit.Filter(), limit=5)
    assert entry.detail == detail
    assert entry.at == pytest.approx(datetime.now(UTC).timestamp(), abs=60)
