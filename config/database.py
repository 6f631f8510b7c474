"""Connections to PostgreSQL: how they are made, and what each of them may take.

Every connection carries timeouts on the server's side, so that a statement of ours never outlives its caller by long.
Where the URL names several hosts, the one that takes writes is found, whatever the others do.
"""

import asyncio
import json
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode

import asyncpg

from config.settings import Database
from config.urls import several

COMMAND_TIMEOUT = 10.0
STAGGER = 0.1
"""Seconds that a host is given before the next one is asked too."""

_SERVER = {
    "application_name": "wardgate",
    "statement_timeout": "10000",
    "lock_timeout": "3000",
    "idle_in_transaction_session_timeout": "10000",
    "timezone": "UTC",
}

_ARRAYS = (
    "SELECT $1::bigint[], $2::bool[], $3::bytea[], $4::float8[], $5::int[], $6::smallint[], $7::text[], $8::uuid[],"
    " $9::jsonb[]"
)

Connection = asyncpg.Connection | asyncpg.pool.PoolConnectionProxy
Pool = asyncpg.Pool


class _Pooled(asyncpg.Connection):
    """Goes back into the pool without a statement that resets it, which would double the journeys of a short read: what
    a transaction of ours sets is LOCAL to it, and its locks are too. One that is still open is rolled back all the
    same."""

    def get_reset_query(self) -> str:
        return ""


async def _set_up(connection: Any) -> None:
    """What the driver asks of the server about types is asked now, and not by the first statement that has them."""
    await connection.set_type_codec("jsonb", encoder=json.dumps, decoder=json.loads, schema="pg_catalog")
    await connection.prepare(_ARRAYS)


def hosts(url: str) -> list[str]:
    """A URL for each host of `url`, in order. Of several only one that takes writes will do."""
    parts = several(url)
    if len(parts.hosts) == 1:
        return [url]
    path, _, options = parts.after.partition("?")
    query = urlencode({"target_session_attrs": "read-write", **dict(parse_qsl(options))})
    return [f"{parts.before}{host}{path}?{query}" for host in parts.hosts]


async def dial(url: str, **options: Any) -> asyncpg.Connection:
    """The first host that will do. The driver asks one after another within one timeout, and not beyond the first that
    breaks off: a server that takes TCP and says nothing would hide the one that was promoted in its place."""
    left = hosts(url)
    if len(left) == 1:
        return await asyncpg.connect(url, **options)
    calls: set[asyncio.Task[asyncpg.Connection]] = set()
    error: BaseException = ConnectionError("no host")
    try:
        while left or calls:
            if left:
                calls.add(asyncio.create_task(asyncpg.connect(left.pop(0), **options)))
            done, calls = await asyncio.wait(
                calls, timeout=STAGGER if left else None, return_when=asyncio.FIRST_COMPLETED
            )
            found = [call.result() for call in done if call.exception() is None]
            for other in found[1:]:
                other.terminate()
            if found:
                return found[0]
            error = next((call.exception() or error for call in done), error)
        if isinstance(error, asyncpg.TargetServerAttributeNotMatched):
            raise ConnectionError("no host takes writes") from error
        raise error
    finally:
        for call in calls:
            call.add_done_callback(_hang_up)
            call.cancel()


def _hang_up(call: "asyncio.Task[asyncpg.Connection]") -> None:
    """Of a connection that came when another was chosen."""
    if not call.cancelled() and call.exception() is None:
        call.result().terminate()


async def connect(settings: Database, *, timeout: float = COMMAND_TIMEOUT) -> asyncpg.Connection:
    """One connection outside the pool (the lease has one, a migration another)."""
    connection = await dial(
        settings.url.get_secret_value(), timeout=5, command_timeout=timeout, server_settings=_SERVER
    )
    await _set_up(connection)
    return connection


async def open_pool(settings: Database) -> asyncpg.Pool:
    """The process's pool of `database.pool_size` connections, all of them made now: to make one takes longer than a
    revocation may."""
    return await asyncpg.create_pool(
        settings.url.get_secret_value(),
        connect=cast(Any, dial),
        min_size=settings.pool_size,
        max_size=settings.pool_size,
        timeout=5,
        command_timeout=COMMAND_TIMEOUT,
        server_settings=_SERVER,
        init=_set_up,
        connection_class=_Pooled,
    )
