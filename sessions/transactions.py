"""One transaction whose end is known, or known to be unknown (6d), and which a cancelled caller cannot tear apart.

A statement that fails before COMMIT was sent has done nothing: `Unavailable`. From then on three answers are possible:
committed, refused by the server, or nobody knows; so is a COMMIT whose wait for a standby was cancelled, which the
server reports as a warning beside its success. What follows a commit runs in the same step, cancelled or not.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import asyncpg
import structlog

from config.database import Connection, Pool
from config.http import Problem
from sessions.errors import Unavailable, translated

log = structlog.get_logger(__name__)
T = TypeVar("T")

ACQUIRE = 2.0
"""Seconds to wait for a connection of the pool."""

_REFUSED = ("23", "40", "25", "53", "57014")
"""SQLSTATEs (or classes) with which the server says that it did not commit."""


class OutcomeUnknown(Problem):
    """COMMIT was sent, and nobody knows what became of it."""

    def __init__(self) -> None:
        super().__init__("outcome_unknown", retry_after=1)


@asynccontextmanager
async def transaction(pool: Pool, then: Callable[[], None] = lambda: None) -> AsyncIterator[Connection]:
    """A connection in a transaction that commits at the end of the block. `then` runs right after COMMIT returned.

    Raises Unavailable, OutcomeUnknown, and what the block raises (rolled back).
    """
    with translated():
        connection = await pool.acquire(timeout=ACQUIRE)
    try:
        with translated():
            begun = connection.transaction(isolation="read_committed")  # a read after a lock must see what held it
            await begun.start()
            try:
                yield connection
            except BaseException:
                await finish(_roll_back(connection, begun))
                raise
        await finish(_commit(connection, begun, then))
    finally:
        await finish(pool.release(connection))


async def finish(work: Coroutine[Any, Any, T] | Awaitable[T]) -> T:
    """Await `work` to its end even when the caller is cancelled; the cancellation is delivered after it."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if task.done() and task.cancelled():
                raise
            cancelled = error
        except Exception:
            break
    if cancelled is not None:
        if not task.cancelled() and task.exception() is not None:
            log.warning("failed_while_cancelled", error=repr(task.exception()))
        raise cancelled
    return task.result()


async def _roll_back(connection: Connection, begun: Any) -> None:
    try:
        await begun.rollback()
    except Exception:
        _drop(connection)  # whatever it held goes with it


async def _commit(connection: Connection, begun: Any, then: Callable[[], None]) -> None:
    warnings: list[Any] = []

    def note(_: object, message: Any) -> None:
        if getattr(message, "severity_en", None) == "WARNING":
            warnings.append(message)

    connection.add_log_listener(note)
    try:
        await begun.commit()
    except asyncpg.PostgresError as error:
        if str(error.sqlstate).startswith(_REFUSED):
            raise Unavailable("the database refused to commit") from error
        _unknown(connection, error)
    except Exception as error:
        _unknown(connection, error)
    finally:
        with suppress(asyncpg.InterfaceError):  # as in _drop
            connection.remove_log_listener(note)
    if warnings:
        _unknown(connection, warnings[0])
    then()


def _unknown(connection: Connection, cause: Any) -> None:
    _drop(connection)
    log.error("outcome_unknown", cause=str(cause))
    raise OutcomeUnknown from (cause if isinstance(cause, BaseException) else None)


def _drop(connection: Connection) -> None:
    with suppress(asyncpg.InterfaceError):  # one that broke has left the pool already, and says nothing else
        connection.terminate()
