"""What every command of `run.py` shares: its options, how it finds settings and servers, what it prints, how it exits.

Failure            exit 1, with its text
├── Usage          exit 2: an argument that cannot be meant
├── Restored       exit 65: the database may be an older one, and nobody has decided (`run.py restore`)
├── Away           exit 69: PostgreSQL or Redis is not there
└── InUse          exit 75: another `run.py dev` has the folder
SettingsError      exit 2 (config.loading)
MigrationError     exit 1 (config.migrate)
"""

import asyncio
import contextlib
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import asyncpg
import cyclopts
import msgspec
import structlog
from cyclopts import Parameter

from config import dev, paging
from config.database import Pool, dial, open_pool
from config.errors import Away, Failure, InUse, Restored, Usage
from config.loading import Mistake, SettingsError, load
from config.migrate import MigrationError
from config.paging import Cursor
from config.sentinel import plain
from config.servers import ServerError
from config.settings import Database, Redis, Settings, unsafe

DONE, FAILED, USAGE, RESTORED, NOT_THERE, IN_USE = 0, 1, 2, 65, 69, 75
_CODES = ((Usage, USAGE), (Restored, RESTORED), (Away, NOT_THERE), (InUse, IN_USE))
PATIENCE = 30.0
_PAUSE = 0.5
_SAY_EVERY = 5.0
MIN_POSTGRES, MIN_REDIS = 150000, (7, 2)

T = TypeVar("T")


Config = Annotated[Path | None, Parameter(help="The settings file (TOML); else that of $WARDGATE_CONFIG.")]
Json = Annotated[bool, Parameter(negative=(), help="Print JSON on stdout.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Common:
    """The options that every command has."""

    config: Config = None
    data: Annotated[Path, Parameter(help="The folder of `run.py dev`, used where no database is set.")] = dev.FOLDER
    json: Json = False


COMMON = Common()


def settings_for(common: Common, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that a command works with: those of the `run.py dev` that runs in `common.data` where none name a
    database, else as `serve` would take them. SettingsError has what is wrong."""
    config = str(common.config) if common.config else None
    settings = load(config, environ, dev=True)
    if not settings.database.url.get_secret_value() and (running := dev.running(common.data)) is not None:
        return dev.filled(settings, running)
    try:
        return load(config, environ)
    except SettingsError:
        if not settings.database.url.get_secret_value():
            say(
                f"No `run.py dev` runs in {common.data}: start `make dev`, or name its folder with --data.\n"
                "For a database of your own these are the settings of `serve`:"
            )
        raise


def bounded(limit: int) -> None:
    """Usage for a `--limit` out of its bounds."""
    if not 1 <= limit <= 1000:
        raise Usage("--limit is a number from 1 to 1000")


def page_of(limit: int, after: str, id: re.Pattern[str] = paging.TEXT) -> Cursor | None:
    """The place that `--after` names, whose id is of the form `id`; `--limit` in its bounds."""
    bounded(limit)
    try:
        return paging.read(after, id)
    except ValueError:
        raise Usage("--after is the `next` of the page before") from None


@contextlib.asynccontextmanager
async def database(common: Common) -> AsyncIterator[tuple[Settings, Pool]]:
    """The settings and an open pool for one command. Away after 30 s without a database."""
    settings = settings_for(common)
    await postgres_there(settings.database)
    pool = await open_pool(settings.database)
    try:
        yield settings, pool
    finally:
        await pool.close()


async def postgres_there(settings: Database, patience: float = PATIENCE) -> None:
    """Return when PostgreSQL takes a connection; Away when it did not for `patience` s. At once: SettingsError when it
    refuses the credentials, Failure when it is too old."""

    async def attempt() -> int:
        connection = await dial(settings.url.get_secret_value(), timeout=5, command_timeout=5)
        try:
            return int(await connection.fetchval("show server_version_num"))
        finally:
            await connection.close(timeout=1)

    server = _Server("PostgreSQL", "database.url", settings.url.get_secret_value())
    away = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
    refused = asyncpg.InvalidAuthorizationSpecificationError
    version = await _patiently(server, attempt, patience, refused, away)
    if version < MIN_POSTGRES:
        raise Failure(f"PostgreSQL {version // 10000} is too old: 15 or later is needed")


async def redis_there(settings: Redis, patience: float = PATIENCE) -> None:
    """The same for Redis or Valkey."""
    import redis.asyncio as redis  # only `serve` asks, and it takes long to load

    async def attempt() -> str:
        url = await plain(settings.url.get_secret_value())
        client = redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5)
        try:
            return str((await client.info("server"))["redis_version"])
        finally:
            await client.aclose()

    server = _Server("Redis", "redis.url", settings.url.get_secret_value())
    away = (OSError, TimeoutError, redis.RedisError)
    version = await _patiently(server, attempt, patience, redis.AuthenticationError, away)
    if tuple(int(part) for part in version.split(".")[:2]) < MIN_REDIS:
        raise Failure(f"Redis {version} is too old: 7.2 or later is needed, or Valkey")


class _Server(NamedTuple):
    """What is waited for, and the option that says where it is."""

    name: str
    option: str
    url: str


async def _patiently(
    server: _Server,
    attempt: Callable[[], Awaitable[T]],
    patience: float,
    refused: type[Exception],
    away: tuple[type[Exception], ...],
) -> T:
    """Wait for a server that is away. One that is there and refuses the credentials will not take them later, and a URL
    that is none will not become one."""
    where, start = f"{server.name} at {place_of(server.url)}", time.monotonic()
    said = start - _SAY_EVERY
    while True:
        try:
            return await attempt()
        except refused as error:
            why = f"{where} refuses the user or password: {error}"
            raise SettingsError([Mistake(server.option, "", why)]) from None
        except (ValueError, OverflowError):  # its text may be a piece of the password
            why = f"is no URL of {server.name}"
            hint = "in a user or password the characters / ? # @ : % are written as %2F %3F %23 %40 %3A %25"
            raise SettingsError([Mistake(server.option, "", why, hint)]) from None
        except away as error:
            why = f"{type(error).__name__}: {error}".rstrip(": ")
        now = time.monotonic()
        if now - start >= patience:
            raise Away(f"{where} is not there after {patience:.0f} s: {why}")
        if now - said >= _SAY_EVERY:
            said = now
            say(f"waiting for {where}: {why}")
        await asyncio.sleep(min(_PAUSE, patience))


def place_of(url: str) -> str:
    """Hosts, ports and database of a URL, without the credentials, also where these are not written as they should."""
    after = url.rpartition("@")[2].rpartition("://")[2]
    return re.split("[?#]", after)[0] or "?"


def say(text: str) -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def agree(question: str) -> None:
    """Usage unless a person agrees."""
    if not sys.stdin.isatty():
        raise Usage("nobody can be asked here: say --yes")
    say(f"{question} Type yes:")
    if sys.stdin.readline().strip() != "yes":
        raise Usage("nothing was done")


def show(value: Any, *, as_json: bool, columns: Sequence[str] = ()) -> None:
    """Print a result on stdout: JSON on one line, or for people: a table for a list of objects, lines for one object.

    Objects are mappings, dataclasses or msgspec Structs. `columns` chooses and orders a table's.
    """
    plain = msgspec.to_builtins(value, enc_hook=str)
    if as_json:
        print(json.dumps(plain), flush=True)
    elif isinstance(plain, list):
        print("\n".join(_table([p for p in plain if isinstance(p, dict)], columns)), flush=True)
    elif isinstance(plain, dict):
        width = max((len(key) for key in plain), default=0)
        print("\n".join(f"{key:<{width}}  {_cell(item)}" for key, item in plain.items()), flush=True)
    else:
        print(plain, flush=True)


def _table(rows: list[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    if not rows:
        return ["(none)"]
    names = list(columns or rows[0])
    cells = [[name.upper() for name in names], *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value) or "-"
    return json.dumps(value) if isinstance(value, dict) else str(value)


def main(app: cyclopts.App, arguments: Sequence[str]) -> int:
    """Run one command; the exit code. Whatever a command returns that is no number counts as done."""
    # Standard output is the command's own: `--json` is read by programs. dev and serve say more of where logs go.
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    try:
        result = app(list(arguments), exit_on_error=False, print_error=True, result_action="return_value")
    except cyclopts.CycloptsError:
        return USAGE  # printed already
    except SettingsError as error:
        say("\n".join(f"settings: {mistake}" for mistake in error.mistakes))
        return USAGE
    except (Failure, MigrationError, ServerError) as error:
        say(f"error: {error}")
        return next((code for kind, code in _CODES if isinstance(error, kind)), FAILED)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        say(f"error: {type(error).__name__}: {error}")
        return FAILED
    return result if isinstance(result, int) and not isinstance(result, bool) else DONE


def need(settings: Settings, *paths: str) -> None:
    """SettingsError unless the given options are safe: for commands that need only a few of them."""
    wrong = [Mistake(key, "", why) for key, why in unsafe(settings) if key in paths]
    if wrong:
        raise SettingsError(wrong)
