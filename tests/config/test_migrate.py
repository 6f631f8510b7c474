"""Migrations against a real PostgreSQL: order, checksums, the lock, files that are no transaction."""

import asyncio
from pathlib import Path

import asyncpg
import pytest

from config import migrate
from config.migrate import Migration, MigrationError


def write(folder: Path, **files: str) -> Path:
    for name, sql in files.items():
        (folder / f"{name.removeprefix('m')}.sql").write_text(sql)
    return folder


async def fetch(url: str, sql: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(sql)
    finally:
        await connection.close()


async def test_files_are_applied_in_order_and_once(empty_database_url: str, tmp_path: Path) -> None:
    write(tmp_path, m0002_b="alter table a add column n integer", m0001_a="create table a (x integer)")
    done = await migrate.apply(empty_database_url, folder=tmp_path)
    assert [(m.number, m.name) for m in done] == [(1, "a"), (2, "b")]
    assert await migrate.apply(empty_database_url, folder=tmp_path) == []


async def test_a_dry_run_says_what_would_be_done_and_does_nothing(empty_database_url: str, tmp_path: Path) -> None:
    write(tmp_path, m0001_a="create table a (x integer)")
    assert [m.name for m in await migrate.apply(empty_database_url, dry_run=True, folder=tmp_path)] == ["a"]
    assert await fetch(empty_database_url, "select 1 from pg_tables where tablename in ('a', 'migrations')") == []


async def test_a_changed_file_is_refused_by_name(empty_database_url: str, tmp_path: Path) -> None:
    write(tmp_path, m0001_a="create table a (x integer)")
    await migrate.apply(empty_database_url, folder=tmp_path)
    write(tmp_path, m0001_a="create table a (x bigint)")
    with pytest.raises(MigrationError, match=r"0001_a\.sql was changed"):
        await migrate.apply(empty_database_url, folder=tmp_path)
    with pytest.raises(MigrationError, match=r"changed migrations: 0001_a\.sql"):
        await migrate.check(empty_database_url, folder=tmp_path)


async def test_a_file_that_fails_leaves_nothing_and_keeps_what_came_before(
    empty_database_url: str, tmp_path: Path
) -> None:
    write(tmp_path, m0001_a="create table a (x integer)", m0002_b="create table b (x integer); select 1/0")
    with pytest.raises(MigrationError, match=r"0002_b\.sql: DivisionByZeroError"):
        await migrate.apply(empty_database_url, folder=tmp_path)
    tables = await fetch(empty_database_url, "select tablename from pg_tables where tablename in ('a', 'b')")
    assert [t["tablename"] for t in tables] == ["a"]
    with pytest.raises(MigrationError, match=r"pending migrations: 0002_b\.sql: run `run\.py migrate`"):
        await migrate.check(empty_database_url, folder=tmp_path)


async def test_two_at_once_apply_once(empty_database_url: str, tmp_path: Path) -> None:
    write(tmp_path, m0001_a="create table a (x integer); select pg_sleep(0.1)", m0002_b="create table b (x integer)")
    both = await asyncio.gather(*(migrate.apply(empty_database_url, folder=tmp_path) for _ in range(2)))
    assert sorted(len(done) for done in both) == [0, 2]


async def test_an_index_can_be_made_concurrently(empty_database_url: str, tmp_path: Path) -> None:
    write(
        tmp_path,
        m0001_a="create table a (x integer, y integer)",
        m0002_b="-- not transactional\ncreate index concurrently if not exists a_x on a (x);\n"
        "-- a comment; with a semicolon\ncreate index concurrently if not exists a_y on a (y);\n",
    )
    await migrate.apply(empty_database_url, folder=tmp_path)
    found = await fetch(empty_database_url, "select indexname from pg_indexes where tablename = 'a' order by 1")
    assert [row["indexname"] for row in found] == ["a_x", "a_y"]


async def test_a_locked_table_is_waited_for_briefly_and_then_named(empty_database_url: str, tmp_path: Path) -> None:
    write(tmp_path, m0001_a="create table a (x integer)")
    await migrate.apply(empty_database_url, folder=tmp_path)
    write(tmp_path, m0002_b="set local lock_timeout = '50ms'; alter table a add column y integer")
    other = await asyncpg.connect(empty_database_url)
    try:
        async with other.transaction():
            await other.execute("lock table a")
            with pytest.raises(MigrationError, match=r"0002_b\.sql: a table stays locked"):
                await migrate.apply(empty_database_url, folder=tmp_path, lock_tries=2)
    finally:
        await other.close()
    assert [m.name for m in await migrate.apply(empty_database_url, folder=tmp_path)] == ["b"]


async def test_a_migration_in_traffic_failed_for_good_by_one_deadlock_with_a_request(
    empty_database_url: str, tmp_path: Path
) -> None:
    write(tmp_path, m0001_a="create table a (x integer); create table b (x integer)")
    await migrate.apply(empty_database_url, folder=tmp_path)
    slow = "set local deadlock_timeout = '50ms'; lock table a; select pg_sleep(0.3)"
    write(tmp_path, m0002_c=f"{slow}; alter table b add column y text")
    other = await asyncpg.connect(empty_database_url, server_settings={"deadlock_timeout": "20s"})
    try:
        async with other.transaction():
            await other.execute("lock table b")
            applying = asyncio.create_task(migrate.apply(empty_database_url, folder=tmp_path))
            while not await other.fetchval("select count(*) from pg_locks where relation = 'a'::regclass"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await other.execute("lock table a")  # until the migration has given way
        assert [m.name for m in await applying] == ["c"]
    finally:
        await other.close()


async def test_status_knows_applied_pending_ahead_and_changed(empty_database_url: str, tmp_path: Path) -> None:
    assert await migrate.status(empty_database_url, folder=tmp_path) == []
    write(tmp_path, m0001_a="select 1", m0002_b="select 2", m0003_c="select 3")
    await migrate.apply(empty_database_url, folder=tmp_path)
    (tmp_path / "0003_c.sql").unlink()
    write(tmp_path, m0002_b="select 22", m0004_d="select 4")
    states = await migrate.status(empty_database_url, folder=tmp_path)
    assert [(s.number, s.state) for s in states] == [(1, "applied"), (2, "changed"), (3, "ahead"), (4, "pending")]


async def test_a_database_that_is_ahead_is_no_error(empty_database_url: str, tmp_path: Path) -> None:
    write(tmp_path, m0001_a="select 1", m0002_b="select 2")
    await migrate.apply(empty_database_url, folder=tmp_path)
    (tmp_path / "0002_b.sql").unlink()
    await migrate.check(empty_database_url, folder=tmp_path)
    assert await migrate.apply(empty_database_url, folder=tmp_path) == []


def test_a_late_file_with_an_early_number_is_refused() -> None:
    files = [Migration(1, "a", "x"), Migration(2, "b", "y")]
    with pytest.raises(MigrationError, match="renumber"):
        migrate.plan(files, [(2, files[1].checksum)])


@pytest.mark.parametrize(
    ("names", "message"), [(["1_a"], "NNNN_name"), (["0001_a", "0001_b"], r"0001_b\.sql: the number is 0001_a\.sql's")]
)
def test_names_are_held_to_the_pattern(tmp_path: Path, names: list[str], message: str) -> None:
    for name in names:
        (tmp_path / f"{name}.sql").touch()
    with pytest.raises(MigrationError, match=message):
        migrate.read(tmp_path)


@pytest.mark.parametrize(
    ("sql", "count"),
    [
        ("", 0),
        ("select 1", 1),
        ("select 1; select 2;", 2),
        ("select ';'; select \"a;b\" from t", 2),
        ("-- one; two\nselect 1; /* three; four */", 1),
        ("create function f() returns int language sql as $$ select 1; $$; select $a$;$$;$a$", 2),
    ],
)
def test_statements_are_split_outside_quotes_and_comments(sql: str, count: int) -> None:
    assert len(migrate.statements(sql)) == count


def test_the_checksum_does_not_mind_line_ends() -> None:
    assert Migration(1, "a", "a\r\nb").checksum == Migration(1, "a", "a\nb").checksum


async def test_our_own_migrations_stand(database_url: str) -> None:
    await migrate.check(database_url)
