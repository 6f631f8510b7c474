"""12: live connections are compared with PostgreSQL, a few at a time, for ever. What is found should not be possible.

Nothing is decided here that the protocol decides: a session that the log has ended is looked at again once this process
has applied the log up to where that was read, and only a connection that lives even then is a violation. It is counted,
raised as an alarm, and closed. Natural ends are no revocations, and are not looked for. Not seen: connections without a
row in `sessions` (anonymous ones).
"""

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import structlog

from config.database import Pool
from config.tasks import Tasks
from sessions.errors import Unavailable, translated
from sessions.model import Ended, Position
from sessions.revocations import Revocations

log = structlog.get_logger(__name__)

BUDGET = 2_000
"""Sessions that all processes together look at in a second."""

PACE = 1.0
"""Seconds between two looks."""

PASS = 10.0
"""Seconds that a look at everything takes at least: a few connections are not asked about all the time."""

PATIENCE = 10.0
"""Seconds that applying the log may take, L + d and a pause of the lease's connection, before the look is given up."""

# Of each session that somebody ended: why, and where the log stood in that statement.
_ENDED = """
SELECT s.sid, h.seq, h.era_id,
    coalesce(s.ended_code, CASE WHEN s.born < u.revoked_below THEN u.revoked_code END, e.code) AS code,
    coalesce(s.ended_reason, CASE WHEN s.born < u.revoked_below THEN u.revoked_reason END, e.reason, '') AS reason
FROM unnest($1::text[]) AS i (sid) JOIN sessions s USING (sid) JOIN subjects u ON u.id = s.subject
CROSS JOIN revocation_head h
LEFT JOIN LATERAL revoked_with_everyone(s.born, s.sid) e ON true
WHERE s.ended_at IS NOT NULL OR s.born < u.revoked_below OR e.code IS NOT NULL
"""
_SHARE = "SELECT greatest(count(*), 1) FROM processes"


class Connection(Protocol):
    """A live connection, as far as it matters here."""

    @property
    def sid(self) -> str: ...

    @property
    def user(self) -> str: ...


class Connections(Protocol):
    """Whoever holds live connections (the hub)."""

    def members(self) -> Sequence[Any]:
        """All of them."""

    def lives(self, connection: Any) -> bool:
        """Whether it still does."""

    def end(self, connection: Any, ended: Ended) -> None:
        """Close it because its session is over."""


class _Found(NamedTuple):
    ended: Ended
    position: Position


class Reconciliation:
    """One a process."""

    def __init__(self, pool: Pool, revocations: Revocations, connections: Connections) -> None:
        self.violations = 0
        self.looked_at = 0
        self._pool = pool
        self._revocations = revocations
        self._connections = connections
        self._tasks = Tasks()

    async def start(self) -> None:
        """Look from now on."""
        self._tasks.keep("reconciliation", self._run)

    async def close(self) -> None:
        await self._tasks.close()

    def figures(self) -> Mapping[str, float]:
        """For the metrics."""
        return {
            "invariant_violations": self.violations,
            "sessions_reconciled": self.looked_at,
            "background_failures": self._tasks.failures,
        }

    async def _run(self) -> None:
        while True:
            try:
                await self._pass(self._connections.members())
            except Unavailable:
                await asyncio.sleep(PACE)

    async def _pass(self, everyone: Sequence[Connection]) -> None:
        """All that live now, a share a second."""
        size = min(await self._share(), max(1, math.ceil(len(everyone) / PASS)))
        for n in range(0, max(1, len(everyone)), size):
            if self._revocations.fresh():
                await self._look(everyone[n : n + size])
            await asyncio.sleep(PACE)

    async def _share(self) -> int:
        with translated():
            async with self._pool.acquire(timeout=2.0) as connection:
                return max(1, BUDGET // int(await connection.fetchval(_SHARE)))

    async def _look(self, some: Sequence[Connection]) -> None:
        by_sid: dict[str, list[Connection]] = {}
        for connection in some:
            by_sid.setdefault(connection.sid, []).append(connection)
        if not by_sid:
            return
        self.looked_at += len(by_sid)
        for sid, found in (await self._ended(list(by_sid))).items():
            if self._living(sid, by_sid[sid]) and await self._applied(found.position):
                self._judge(sid, self._living(sid, by_sid[sid]), found)

    def _living(self, sid: str, some: Sequence[Connection]) -> list[Connection]:
        """Those that live, and are still held to that session."""
        return [connection for connection in some if connection.sid == sid and self._connections.lives(connection)]

    async def _ended(self, sids: Sequence[str]) -> dict[str, _Found]:
        with translated():
            async with self._pool.acquire(timeout=2.0) as connection:
                records = await connection.fetch(_ENDED, sids)
        return {r["sid"]: _Found(Ended(r["code"], r["reason"]), Position(r["seq"], r["era_id"].hex)) for r in records}

    async def _applied(self, position: Position) -> bool:
        """Wait until this process has applied the log that far. False: it is frozen meanwhile, or on another chain."""
        for _ in range(int(PATIENCE / 0.1)):
            if self._revocations.fresh() and self._revocations.position.seq >= position.seq:
                return True
            await asyncio.sleep(0.1)
        return False

    def _judge(self, sid: str, living: Sequence[Connection], found: _Found) -> None:
        """In the step in which the log was seen to be applied: these live in spite of a row that took effect here."""
        for connection in living:
            self.violations += 1
            log.critical(
                "invariant_violation",
                sid=sid,
                user=connection.user,
                code=found.ended.code,
                reason=found.ended.reason,
                position=str(found.position),
            )
            self._connections.end(connection, found.ended)
