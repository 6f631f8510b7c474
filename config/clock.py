"""The two clocks. Deadlines and leases use the first, people and databases the second.

`boottime` never jumps and counts the time a machine was suspended: a laptop lid or a paused virtual machine must not
lengthen a lease. `walltime` may jump at any moment and decides nothing.
"""

import time
from typing import Protocol

_BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def boottime() -> float:
    """Seconds on the clock that counts suspend (CLOCK_BOOTTIME; CLOCK_MONOTONIC where a system has none)."""
    return time.clock_gettime(_BOOTTIME)


def walltime() -> float:
    """Seconds since 1970 by this machine's clock: for people to read, never to decide by."""
    return time.time()


class Clock(Protocol):
    """What code takes that must be testable without waiting."""

    def now(self) -> float:
        """`boottime()`."""

    def wall(self) -> float:
        """`walltime()`."""


class SystemClock:
    """The machine's clocks."""

    now = staticmethod(boottime)
    wall = staticmethod(walltime)


class FakeClock:
    """A clock that a test moves; `advance` moves both, `step` only the wall."""

    def __init__(self, now: float = 1_000.0, wall: float = 1_800_000_000.0) -> None:
        self._now = now
        self._wall = wall

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall

    def advance(self, seconds: float) -> None:
        self._now += seconds
        self._wall += seconds

    def step(self, seconds: float) -> None:
        self._wall += seconds
