"""Which processes there are: each registers itself before it reads its first head (5a), and is removed when it is dead.

`Watch` is pure: it sees beats and says who has not moved for long enough. That a process is dead is never decided by a
clock of the database: its beat stood still for L + d + 1 s on the watcher's own clock, under one server start, while
the watcher's own renewals succeeded; by then its lease is over, and it freezes until it has registered again (5b).
"""

import os
import socket
from collections.abc import Iterable
from typing import NamedTuple

from config.database import Connection
from sessions.lease import DOUBTED, READER_VERSION

_REGISTER = """
INSERT INTO processes (node, policy, version, host, pid) VALUES ($1, $2, $3, $4, $5)
ON CONFLICT (node) DO UPDATE
SET registered_at = clock_timestamp(), applied_seq = NULL, applied_id = NULL, applied_era = NULL
"""

_LOOK = """
SELECT node, beat, policy, extract(epoch FROM pg_postmaster_start_time())::float8 AS start FROM processes
"""

_REMOVE_DEAD = """
DELETE FROM processes WHERE node = $1 AND beat = $2 AND extract(epoch FROM pg_postmaster_start_time())::float8 = $3
"""

_SETTLE = """
UPDATE revocation_head SET settled_start = pg_postmaster_start_time()
WHERE settled_start IS DISTINCT FROM pg_postmaster_start_time()
AND extract(epoch FROM pg_postmaster_start_time())::float8 = $1
"""

_VOUCH = """
UPDATE revocation_head SET origin = $2 WHERE coalesce(origin, '') = $1 AND database_origin() = $2
"""

_DOUBT = "UPDATE revocation_head SET origin = $2 WHERE origin = $1"

MARGIN = 1.0
"""Beyond L + d, before a process whose beat stands still is taken for dead (s)."""


class Beat(NamedTuple):
    """One row of `processes` as it was read."""

    node: str
    beat: int
    policy: str


class Dead(NamedTuple):
    """Whom to remove, and the only state in which it may be removed."""

    node: str
    beat: int
    start: float


class _Still(NamedTuple):
    beat: int
    since: float


class Watch:
    """Sees the others' beats. `reset` when an own renewal failed: what was seen before then proves nothing."""

    def __init__(self) -> None:
        self._start = 0.0
        self._still: dict[str, _Still] = {}

    def reset(self) -> None:
        self._still.clear()

    def look(self, beats: Iterable[Beat], *, start: float, sent: float, arrived: float, limit: float) -> list[Dead]:
        """Who stood still for `limit` seconds. `sent`, `arrived`: when the beats were asked for and came.

        Who runs with policy "serve" goes on when its lease is over, so its row stays until itself or its supervisor
        removes it (6c).
        """
        if start != self._start:
            self._start = start
            self._still.clear()
        before, self._still = self._still, {}
        dead = []
        for node, beat, policy in beats:
            still = before.get(node)
            if still is None or still.beat != beat:
                still = _Still(beat, arrived)
            self._still[node] = still
            if policy != "serve" and sent - still.since >= limit:
                dead.append(Dead(node, beat, start))
        return dead


async def register(connection: Connection, node: str, policy: str) -> None:
    """5a, 5b: a transaction of its own, committed when this returns."""
    await connection.execute(_REGISTER, node, policy, READER_VERSION, socket.gethostname(), os.getpid())


async def remove(connection: Connection, node: str) -> None:
    """For the process itself at its end, and for its supervisor once the process is dead."""
    await connection.execute("DELETE FROM processes WHERE node = $1", node)


async def look(connection: Connection) -> tuple[list[Beat], float]:
    """All beats, and the start of the server that they were read from."""
    records = await connection.fetch(_LOOK)
    start = records[0]["start"] if records else 0.0
    return [Beat(r["node"], r["beat"], r["policy"]) for r in records], start


async def remove_dead(connection: Connection, dead: Dead) -> bool:
    """5c: only if its beat still stands, and the server is still the one where that was seen."""
    return (await connection.execute(_REMOVE_DEAD, dead.node, dead.beat, dead.start)).endswith(" 1")


async def settle(connection: Connection, start: float) -> None:
    """6b: write down for all that this server start has been renewed against for L + d."""
    await connection.execute(_SETTLE, start)


async def vouch(connection: Connection, before: str, origin: str) -> None:
    """4d: write down for all that the log of this database was remembered across the change from `before`."""
    await connection.execute(_VOUCH, before, origin)


async def doubt(connection: Connection, origin: str) -> None:
    """4d: the log of this database is older than what somebody remembers. Nobody vouches for it any more."""
    await connection.execute(_DOUBT, origin, DOUBTED)
