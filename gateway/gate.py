"""The gate: may this process read and write now? And the turns of the event loop in which long work is done in slices.

The gate is one comparison of a clock that counts suspend with the end of the lease, and one flag. What freezing and
thawing mean for peers is the hub's.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

import structlog

log = structlog.get_logger(__name__)

SLICE = 96
"""Writes, or steps of a chore, in one turn of the loop."""


class Lease(Protocol):
    """What of the revocation protocol the gate looks at: the moment up to which this process is current."""

    fresh_until: float


class Gate:
    """I3: a process that cannot prove that it is current neither reads nor writes application frames."""

    __slots__ = ("_thawed", "clock", "frozen", "lease", "since")

    def __init__(self, clock: Callable[[], float], lease: Lease) -> None:
        self.clock = clock
        self.lease = lease
        self.frozen = False
        self.since = 0.0  # of the last freeze
        self._thawed = asyncio.Event()

    def open(self) -> bool:
        """Read the clock: False when nothing may pass. Whoever sees the lease over first freezes the process."""
        if self.frozen:
            return False
        now = self.clock()
        if now < self.lease.fresh_until:
            return True
        self.freeze(now)
        return False

    def freeze(self, now: float) -> None:
        """10a: one flag. Nothing loops over peers."""
        if not self.frozen:
            self.frozen = True
            self.since = now
            self._thawed.clear()

    def thaw(self, now: float) -> bool:
        """Whether the lease is fresh again after a freeze."""
        if not self.frozen or now >= self.lease.fresh_until:
            return False
        self.frozen = False
        self._thawed.set()
        return True

    async def thawed(self) -> None:
        """Wait for the end of the freeze."""
        await self._thawed.wait()


class Chores:
    """Long work in slices: an iterator a chore, some steps of each in every turn of the loop."""

    __slots__ = ("_chores", "_running")

    def __init__(self) -> None:
        self._chores: deque[Iterator[object]] = deque()
        self._running = False

    def do(self, chore: Iterator[object]) -> None:
        """Begin now. A step that yields None counts; one that yields WAIT lets the others go on and comes again."""
        self._chores.append(chore)
        if not self._running:
            self._running = True
            self._turn()

    def _turn(self) -> None:
        waiting = True
        for _ in range(len(self._chores)):
            chore = self._chores.popleft()
            try:
                for _ in range(SLICE):
                    if next(chore) is WAIT:
                        break
                    waiting = False
            except StopIteration:
                continue
            except Exception:
                log.exception("chore_failed")
                continue
            self._chores.append(chore)
        loop = asyncio.get_running_loop()
        if not self._chores:
            self._running = False
        elif waiting:
            loop.call_later(0.01, self._turn)
        else:
            loop.call_soon(self._turn)


WAIT = object()


def spread(items: int, seconds: float) -> Callable[[int], bool]:
    """Whether the n-th of `items` has its turn yet, when they are spread evenly over `seconds` from now."""
    if not seconds:
        return lambda n: True
    clock = asyncio.get_running_loop().time
    began = clock()
    return lambda n: clock() - began >= seconds * n / items
