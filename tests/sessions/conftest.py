"""What tests of sessions share: the service over a real part in the protocol, and logins through it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, Literal

import asyncpg
import pytest

from config.clock import SystemClock
from config.settings import Settings
from sessions import store
from sessions.revocations import Entry, Revocations
from sessions.service import Opened, Sessions


async def row_of(executor: store.Executor, text: str, *values: Any) -> Any:
    """One row that is there."""
    record = await executor.fetchrow(text, *values)
    assert record is not None
    return record


async def waits_for_lock(connection: store.Executor) -> None:
    """Until another connection of this database waits for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(5):
        while not await connection.fetchval(waiting):
            await connection.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0)


@pytest.fixture
async def sessions(pool: asyncpg.Pool, revocations: Revocations, settings: Settings) -> AsyncIterator[Sessions]:
    """The service with a cap of 5 sessions a user."""
    policy = settings.sessions.model_copy(update={"max_per_user": 5})
    sessions = Sessions(pool, revocations, policy, clock=SystemClock())
    await sessions.start()
    yield sessions
    await sessions.close()


class Logins:
    """Opens sessions as a login does, in a transaction of the log."""

    def __init__(self, pool: asyncpg.Pool, revocations: Revocations, sessions: Sessions) -> None:
        self._pool = pool
        self._revocations = revocations
        self._sessions = sessions

    async def user(self, id: str = "alice", roles: tuple[str, ...] = ()) -> str:
        """A subject that is there."""
        if await store.subject(self._pool, id) is None:
            await store.create_subject(self._pool, id, roles)
        return id

    async def __call__(
        self, user: str = "alice", kind: Literal["cookie", "token"] = "cookie", version: int = 1, **more: Any
    ) -> Opened:
        """`more`: device, address, replaces."""
        await self.user(user)
        async with self._revocations.writing(actor="test") as writing:
            return await self._sessions.open(writing, user, credential_version=version, kind=kind, **more)

    async def end(self, **entry: Any) -> None:
        """Whatever ends, through the log."""
        async with self._revocations.writing(actor="test") as writing:
            writing.append(Entry(**entry))


@pytest.fixture
def login(pool: asyncpg.Pool, revocations: Revocations, sessions: Sessions) -> Logins:
    return Logins(pool, revocations, sessions)
