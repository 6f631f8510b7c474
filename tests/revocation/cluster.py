"""Several processes of the protocol inside one test process: real PostgreSQL and Valkey, each with own connections.

`Process` is everything of a gateway process below the gateway; its `Recorder` stands where the hub would.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Any, Literal

import asyncpg

from config.clock import Clock, SystemClock
from config.database import connect, open_pool
from config.redis import Bus, Pipe
from config.settings import Database, Settings
from sessions.model import Kind, Row
from sessions.revocations import Entry, Revocations

SHORT = (1.0, 0.1)
"""L and d of tests that see a lease end."""

REAL = (5.0, 0.25)
"""L and d as they are, where nothing should end on a machine that is busy."""


async def until(condition: Callable[[], Any], within: float = 5.0) -> None:
    """Wait for a condition that other tasks make true."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, "it did not come to pass in time"
        await asyncio.sleep(0.005)


class Recorder:
    """A hub's part: connections by session, and which rows came, in order."""

    def __init__(self, events: list[Any]) -> None:
        self.rows: list[Row] = []
        self.connections: dict[str, tuple[str, int, int]] = {}  # sid -> user, born, how many
        self.rebased: list[int] = []
        self.broken = False
        self._events = events

    def connect(self, sid: str, user: str = "", born: int = 0, count: int = 1) -> None:
        self.connections[sid] = (user, born, count)

    def apply(self, row: Row) -> int:
        if self.broken:
            raise RuntimeError("cannot close")
        self.rows.append(row)
        self._events.append(("applied", row.id))
        gone = [sid for sid in self.connections if self._ends(row, sid)]
        return sum(self.connections.pop(sid)[2] for sid in gone)

    def _ends(self, row: Row, sid: str) -> bool:
        user, born, _ = self.connections[sid]
        match row.kind:
            case Kind.SESSION:
                return row.sid == sid
            case Kind.USER:
                return row.subject == user and born < row.bound
            case Kind.EVERYONE:
                return row.except_sid != sid and born < row.bound
            case _:
                return False

    def rebase(self, limit: int) -> None:
        self.rebased.append(limit)

    def part(self) -> None:
        self._events.append(("parted", len(self.connections)))
        self.connections.clear()


class Listening(Pipe):
    """A command connection that notes what is published, and can be deaf or dumb."""

    def __init__(self, url: str, events: list[Any]) -> None:
        super().__init__(url)
        self.events = events
        self.dumb = False

    def call(self, *args: Any) -> Any:
        if args[0] == "PUBLISH":
            self.events.append(("published", args[1]))
            if self.dumb:
                done = asyncio.get_running_loop().create_future()
                done.set_result(0)
                return done
        return super().call(*args)


class Process:
    """One process. `events`: what it did, in order."""

    def __init__(self, settings: Settings, database: Database, pool: asyncpg.Pool, policy: Any, clock: Clock) -> None:
        self.node = uuid.uuid4().hex
        self.events: list[Any] = []
        self.queries: list[str] = []  # on the lease's connection
        self.hub = Recorder(self.events)
        self.pool = pool
        url = settings.redis.url.get_secret_value()
        self.bus = Bus(url, timeout=1.0)
        self.pipe = Listening(url, self.events)
        self._database = database
        self.clock = clock
        self.revocations = Revocations(
            pool,
            self._connect,
            self.bus,
            self.pipe,
            clock=clock,
            node=self.node,
            policy=policy,
            prefix=settings.redis.prefix,
            secrets=[settings.sessions.secret_key.get_secret_value()],
        )
        self.revocations.add_listener(self.hub)
        self.lease_connection: asyncpg.Connection | None = None
        self.connecting = True  # False: the lease cannot reach PostgreSQL

    async def _connect(self) -> asyncpg.Connection:
        if not self.connecting:
            raise ConnectionError("cut by the test")
        self.lease_connection = await connect(self._database)
        self.lease_connection.add_query_logger(lambda record: self.queries.append(record.query))
        return self.lease_connection

    def cut_lease(self) -> None:
        """PostgreSQL cannot be reached any more, by the lease."""
        self.connecting = False
        if self.lease_connection is not None:
            self.lease_connection.terminate()

    async def heard(self) -> None:
        """Until its hints come through."""
        await until(lambda: self.revocations.probe_ok)

    async def settled(self) -> None:
        """Until acknowledgements count (6b)."""
        lease = self.revocations._renewal.lease
        await until(lambda: lease.settled(self.clock.now()), within=8)

    def grow_old(self) -> None:
        """As if it had run for longer than the lease: acknowledgements count (6b)."""
        self.revocations._renewal.lease.since -= 100.0

    async def close(self) -> None:
        await self.revocations.close()
        await self.bus.close()
        await self.pipe.close()
        self.pool.terminate()


class Cluster:
    """The processes of a test, on one database and one Redis."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.processes: list[Process] = []

    async def prepare(self, lease: float = SHORT[0], drift: float = SHORT[1]) -> None:
        """Set L and d, which must be before any process starts."""
        await self.sql("UPDATE revocation_head SET lease_seconds = $1, drift_seconds = $2", lease, drift)

    async def start(
        self,
        *,
        policy: Literal["freeze", "serve"] = "freeze",
        redis: bool = True,
        clock: Clock | None = None,
        ready: bool = True,
    ) -> Process:
        """One more process; `ready`: fresh, heard, and old enough for acknowledgements to count."""
        pool = await open_pool(self.settings.database)
        process = Process(self.settings, self.settings.database, pool, policy, clock or SystemClock())
        self.processes.append(process)
        if redis:
            await process.bus.start()
            await process.pipe.start()
        await process.revocations.start()
        if ready and redis:
            await process.heard()
            process.grow_old()
        return process

    async def sql(self, query: str, *args: Any) -> list[asyncpg.Record]:
        """One statement from outside."""
        connection = await connect(self.settings.database)
        try:
            return await connection.fetch(query, *args)
        finally:
            await connection.close()

    async def session(self, sid: str, user: str = "u1", *, kind: str = "cookie", born: int | None = None) -> int:
        """A session as a login makes it; its `born`."""
        await self.sql("INSERT INTO subjects (id) VALUES ($1) ON CONFLICT DO NOTHING", user)
        [row] = await self.sql(
            "INSERT INTO sessions (sid, subject, kind, born, expires_at, idle_seconds)"
            " SELECT $1, $2, $3, coalesce($4, seq), now() + interval '1 day', 3600 FROM revocation_head RETURNING born",
            sid,
            user,
            kind,
            born,
        )
        return int(row["born"])

    async def rows(self) -> list[asyncpg.Record]:
        """The log."""
        return await self.sql("SELECT * FROM revocation_log ORDER BY seq")

    async def close(self) -> None:
        for process in self.processes:
            await process.close()


def ending(sid: str, **more: Any) -> Entry:
    """A SESSION entry."""
    return Entry(kind=Kind.SESSION, sid=sid, reason="test", **more)


def ending_user(user: str, **more: Any) -> Entry:
    """A USER entry."""
    return Entry(kind=Kind.USER, subject=user, reason="test", **more)
