"""Schema migrations: ordered SQL files, each applied once, under a lock, and never changed afterwards.

A file is `migrations/NNNN_name.sql` and runs in one transaction together with its row in the table `migrations`. A file
whose first line is `-- not transactional` runs one statement per call instead (`CREATE INDEX CONCURRENTLY`): each
statement must bear being run again, as the row is written after the last. Migrations expand first and contract a
version later, so a process of the version before goes on working; that is why a database that is *ahead* is no error.

    MigrationError   a file was changed after it was applied, is out of order, or its SQL failed
"""

import asyncio
import hashlib
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import asyncpg

from config.database import dial
from config.settings import Database

FOLDER = Path(__file__).parent / "migrations"
NOT_TRANSACTIONAL = "-- not transactional"

# Waiting for a lock on a table blocks everyone behind us: give up soon and come again.
_LOCK_TIMEOUT = "3s"
_LOCK_TRIES = 10
_ADVISORY_KEY = 0x77617264  # "ward"
_ADVISORY_TIMEOUT = "120s"

_TABLE = """
create table if not exists migrations (
    number integer primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default now(),
    took_ms integer not null
)
"""


class MigrationError(Exception):
    """Nothing more can be applied until a person looks. The text names the file."""


@dataclass(frozen=True)
class Migration:
    """One file."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text, line ends normalised."""
        return hashlib.sha256(self.sql.replace("\r\n", "\n").encode()).hexdigest()

    @property
    def file(self) -> str:
        """The file's name."""
        return f"{self.number:04}_{self.name}.sql"

    @property
    def transactional(self) -> bool:
        """Whether it runs as one transaction."""
        return not self.sql.startswith(NOT_TRANSACTIONAL)


@dataclass(frozen=True)
class Applied:
    """A migration that was applied now (or would be, in a dry run: `took_ms` is 0)."""

    number: int
    name: str
    took_ms: int


@dataclass(frozen=True)
class State:
    """One line of `status`. `ahead`: applied by a newer version of this software."""

    number: int
    name: str
    state: Literal["applied", "pending", "ahead", "changed"]
    applied_at: str | None


def read(folder: Path = FOLDER) -> list[Migration]:
    """All files in order. MigrationError for a name out of the pattern, or a number that stands twice."""
    found: dict[int, Migration] = {}
    for path in sorted(folder.glob("*.sql")):
        match = re.fullmatch(r"(\d{4})_([a-z0-9_]+)\.sql", path.name)
        if match is None:
            raise MigrationError(f"{path.name}: a migration is named NNNN_name.sql")
        migration = Migration(int(match[1]), match[2], path.read_text(encoding="utf-8"))
        if migration.number in found:
            raise MigrationError(f"{path.name}: the number is {found[migration.number].file}'s already")
        found[migration.number] = migration
    return list(found.values())


def plan(files: Sequence[Migration], applied: Iterable[tuple[int, str]]) -> list[Migration]:
    """What is to be applied, given (number, checksum) of what was. MigrationError for a history that does not fit."""
    done = dict(applied)
    for file in files:
        if file.number in done and done[file.number] != file.checksum:
            raise MigrationError(f"{file.file} was changed after it was applied: add a new migration instead")
    pending = [file for file in files if file.number not in done]
    if pending and done and pending[0].number < max(done):
        raise MigrationError(f"{pending[0].file} comes before migrations that are applied already: renumber it")
    return pending


async def apply(
    database: Database | str, *, dry_run: bool = False, folder: Path = FOLDER, lock_tries: int = _LOCK_TRIES
) -> list[Applied]:
    """Apply what is pending and say what it was; `dry_run` only says.

    Several callers at once are safe: one works, the others wait (up to 120 s) and find nothing to do. OSError or
    asyncpg's errors when the database is away; MigrationError when a file fails, and that file then left nothing.
    """
    files = read(folder)
    connection = await _connect(database)
    try:
        if dry_run:
            return [Applied(m.number, m.name, 0) for m in plan(files, await _history(connection))]
        await connection.execute(f"set lock_timeout = '{_ADVISORY_TIMEOUT}'")
        await connection.execute(f"select pg_advisory_lock({_ADVISORY_KEY})")
        await connection.execute(f"set lock_timeout = '{_LOCK_TIMEOUT}'")
        await connection.execute(_TABLE)
        return [
            await _apply_patiently(connection, file, lock_tries) for file in plan(files, await _history(connection))
        ]
    finally:
        await connection.close(timeout=5)


async def status(database: Database | str, *, folder: Path = FOLDER) -> list[State]:
    """Every migration that this version or the database knows, in order. Changes nothing."""
    files = {m.number: m for m in read(folder)}
    connection = await _connect(database)
    try:
        rows: dict[int, asyncpg.Record] = {}
        if await _table_exists(connection):
            for row in await connection.fetch("select number, name, checksum, applied_at from migrations"):
                rows[row["number"]] = row
    finally:
        await connection.close(timeout=5)
    pending = [State(m.number, m.name, "pending", None) for m in files.values() if m.number not in rows]
    return sorted([*pending, *(_state(row, files.get(number)) for number, row in rows.items())], key=lambda s: s.number)


def _state(row: asyncpg.Record, file: Migration | None) -> State:
    state: Literal["applied", "ahead", "changed"] = "applied"
    if file is None:
        state = "ahead"
    elif file.checksum != row["checksum"]:
        state = "changed"
    moment: str = row["applied_at"].isoformat(timespec="milliseconds")
    return State(row["number"], row["name"], state, moment.replace("+00:00", "Z"))


async def check(database: Database | str, *, folder: Path = FOLDER) -> None:
    """MigrationError unless everything that this version needs is applied: what `serve` asks before it starts."""
    states = await status(database, folder=folder)
    for wrong in ("changed", "pending"):
        files = [f"{s.number:04}_{s.name}.sql" for s in states if s.state == wrong]
        if files:
            hint = "run `run.py migrate` first" if wrong == "pending" else "this is another version's schema"
            raise MigrationError(f"{wrong} migrations: {', '.join(files)}: {hint}")


def statements(sql: str) -> list[str]:
    """The single statements of a script: split at semicolons outside quotes, dollar quotes and comments."""
    found, begin = [], 0
    for match in _TOKEN.finditer(sql):
        if match[0] == ";":
            found.append(sql[begin : match.start()])
            begin = match.end()
    found.append(sql[begin:])
    return [text.strip() for text in found if _COMMENT.sub("", text).strip()]


_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_TOKEN = re.compile(
    r"""--[^\n]* | /\*.*?\*/ | '(?:[^']|'')*' | "(?:[^"]|"")*" | (\$[A-Za-z_0-9]*\$).*?\1 | ;""",
    re.DOTALL | re.VERBOSE,
)


async def _connect(database: Database | str) -> asyncpg.Connection:
    url = database if isinstance(database, str) else database.url.get_secret_value()
    # No statement_timeout: an index takes as long as it takes.
    return await dial(
        url,
        timeout=5,
        server_settings={"application_name": "wardgate-migrate", "lock_timeout": _LOCK_TIMEOUT, "timezone": "UTC"},
    )


async def _table_exists(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("select to_regclass('migrations') is not null"))


async def _history(connection: asyncpg.Connection) -> list[tuple[int, str]]:
    if not await _table_exists(connection):
        return []
    return [(row["number"], row["checksum"]) for row in await connection.fetch("select * from migrations")]


async def _apply_patiently(connection: asyncpg.Connection, file: Migration, tries: int) -> Applied:
    for attempt in range(1, tries + 1):
        try:
            return await _apply(connection, file)
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            if attempt == tries:
                raise MigrationError(f"{file.file}: a table stays locked by others: {error}") from error
            await asyncio.sleep(0.1 * attempt)
        except asyncpg.PostgresError as error:
            raise MigrationError(f"{file.file}: {type(error).__name__}: {error}") from error
    raise AssertionError("unreachable")


async def _apply(connection: asyncpg.Connection, file: Migration) -> Applied:
    start = time.monotonic()
    if file.transactional:
        async with connection.transaction():
            await connection.execute(file.sql)
            return await _record(connection, file, start)
    for statement in statements(file.sql):
        await connection.execute(statement)
    return await _record(connection, file, start)


async def _record(connection: asyncpg.Connection, file: Migration, start: float) -> Applied:
    took = round((time.monotonic() - start) * 1000)
    await connection.execute(
        "insert into migrations (number, name, checksum, took_ms) values ($1, $2, $3, $4)",
        *(file.number, file.name, file.checksum, took),
    )
    return Applied(file.number, file.name, took)
