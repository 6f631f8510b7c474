"""Frozen or not: the one number that the gate compares with its clock, and the two edges that others are told of.

The number is the truth (I3): the gate reads it where bytes pass. The timer here only makes the edges prompt; after a
stall it may run late, and then nothing has passed meanwhile.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Literal

import structlog

from config.clock import Clock

log = structlog.get_logger(__name__)


class Freshness:
    """`until` is what the gate compares (boottime): the lease's end, or inf under policy "serve" once there was one."""

    def __init__(self, clock: Clock, policy: Literal["freeze", "serve"], why: Callable[[], str] = str) -> None:
        self.until = 0.0
        self.lease_until = 0.0
        self.frozen = True
        self.freezes = 0
        self.on_freeze: list[Callable[[], None]] = []
        self.on_thaw: list[Callable[[], None]] = []
        self._clock = clock
        self._why = why
        self._serve = policy == "serve"
        self._timer: asyncio.TimerHandle | None = None

    def renew(self, until: float) -> None:
        """The lease as it stands; never backwards. `check` tells of it."""
        self.lease_until = max(self.lease_until, until)
        if self.lease_until > 0.0:
            self.until = math.inf if self._serve else self.lease_until

    def stop(self) -> None:
        """Freeze for good: this process ends. That is no alarm."""
        self._serve = False
        self.until = self.lease_until = 0.0
        self._disarm()
        if not self.frozen:
            self.frozen = True
            self._tell(self.on_freeze)

    def check(self) -> None:
        """Tell of an edge that was passed, and come again when the lease ends."""
        left = self.until - self._clock.now()
        if (left <= 0.0) != self.frozen:
            self.frozen = left <= 0.0
            self.freezes += self.frozen
            if self.frozen:
                log.error("frozen", why=self._why())
            else:
                log.info("thawed")
            self._tell(self.on_freeze if self.frozen else self.on_thaw)
        if left <= 0.0:
            self._disarm()
        elif self._timer is None and left < math.inf:
            self._timer = asyncio.get_running_loop().call_later(left, self._due)

    def _due(self) -> None:
        self._timer = None
        self.check()

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell(self, callbacks: list[Callable[[], None]]) -> None:
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("callback_failed", frozen=self.frozen)
