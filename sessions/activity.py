"""Who was active when: noted at once, written in batches, and at most once a tenth of a session's idle time.

So `last_seen_at` may lie a tenth of the idle time behind, never ahead.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from config.tasks import Tasks

GATHER = 1.0
"""How long notes gather before they are written (s), or a twentieth of the idle time where that is shorter."""
REMEMBERED = 100_000

Write = Callable[[Mapping[str, float]], Awaitable[None]]


class Activity:
    """`write` gets database times by sid. A write that failed is not repeated: later activity is written instead."""

    def __init__(self, write: Write, *, remembered: int = REMEMBERED) -> None:
        self._write = write
        self._remembered = remembered
        self._again: dict[str, float] = {}  # local time from which on activity of a sid is written again
        self._pending: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks = Tasks()

    @property
    def failures(self) -> int:
        """Writes that failed."""
        return self._tasks.failures

    def note(self, sid: str, idle: float, now: float, database_now: Callable[[], float]) -> None:
        """Called for every command of every connection: one look-up, mostly."""
        if now < self._again.get(sid, -1.0) <= now + idle / 10:  # further off: its idle time has become shorter
            return
        if len(self._again) >= self._remembered:
            self._forget(now)
        self._again[sid] = now + idle / 10
        self._pending[sid] = database_now()
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(min(GATHER, idle / 20), self._due)

    def recorded(self, sid: str, idle: float, at: float) -> None:
        """PostgreSQL has activity of `sid` as of `at` (local time): nothing newer is worth a write for a while."""
        if sid not in self._again and len(self._again) < self._remembered:
            self._again[sid] = at + idle / 10

    def _due(self) -> None:
        self._timer = None
        self._tasks.once("sessions: last seen", self.flush())

    async def flush(self) -> None:
        """Write what is pending, now."""
        pending, self._pending = self._pending, {}
        if not pending:
            return
        try:
            await self._write(pending)
        except BaseException:
            for sid in pending:
                self._again.pop(sid, None)
            raise

    def _forget(self, now: float) -> None:
        self._again = {sid: due for sid, due in self._again.items() if due > now}
        if len(self._again) >= self._remembered:  # more live sessions than that: some are written more often
            for sid in list(self._again)[: self._remembered // 2]:
                del self._again[sid]

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self._tasks.close()
        await self.flush()
