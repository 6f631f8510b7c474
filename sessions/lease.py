"""May this process go on? The lease as a state machine: replies in, `fresh_until` out. Pure: time is an argument.

                 reply with registration and pair
    t0 ─ sent ──────────────────────────────────────► pending (head, t0 + L) ── applied passes head ──► fresh_until
                 without registration ──► register       (dropped by every reply that lacks either)
                 without the pair     ──► rewind
                 from a database that nobody vouches for ──► wait
                 from an older timeline of it ──► doubt

All times are the process's boottime. Not here: the statement and its connection (`renewal`), the rows (`memory`), what
freezing means (the gateway).
"""

from collections import deque
from enum import Enum
from typing import NamedTuple

import msgspec

from sessions.memory import Memory, Place
from sessions.model import Row

PROTOCOL_VERSION = 1
"""The one that this code speaks; another one in the head row grants nothing (6c)."""

READER_VERSION = 1
"""What this code can read: a row with a greater `min_version` is not applied (1d)."""

PACE, HURRIED = 1.0, 0.2
"""Seconds between renewals, and while the probe of Redis fails."""

DOUBTED = "lost"
"""What a head row is vouched for as when a process remembers what its database does not have (4d)."""

STEP = 2.0
"""A jump of the database's clock against ours that is an alarm (11)."""

_SLOW = 1.0  # a reply that took longer says too little about the other clock


class Head(NamedTuple):
    """The head row as a statement saw it, with the values that are the same for all processes (6c)."""

    place: Place
    era_id: str
    lease: float = 5.0  # L
    drift: float = 0.25  # d
    version: int = 1  # of the protocol
    chain: str = ""
    settled: bool = False  # some process has renewed against this server start for L + d (6b)
    origin: str = ""  # which database this is
    vouched: str = ""  # the one that the head row names: somebody remembers the log up to there (4d)
    decided: Place | None = None  # the era that the operator's last decision about a restored database began


class Unreadable(NamedTuple):
    """A row that asks for a newer reader."""

    seq: int
    min_version: int


class Reply(msgspec.Struct, frozen=True):
    """What the one statement of 4a answered. `now` is the database's clock; `start` identifies the server's start."""

    registered: bool
    pair: bool
    start: float
    now: float
    head: Head
    rows: tuple[Row | Unreadable, ...] = ()


class Next(Enum):
    """What a reply asks for."""

    APPLY = "apply"  # its rows, then `settle`
    REGISTER = "register"  # 5b
    REWIND = "rewind"  # 4c
    REFUSE = "refuse"  # 6c: the cluster speaks another version
    DOUBT = "doubt"  # 4d: this is an older timeline: an old primary, or a data folder that was put back
    WAIT = "wait"  # 4d: this may be an older state of the database, and this process cannot tell


class Lease:
    """The right to go on, until `fresh_until`. Moves only forwards (4b)."""

    def __init__(self) -> None:
        self.fresh_until = 0.0
        self.renewed_at = 0.0  # t0 of the last renewal that was granted at once or is pending
        self.start = 0.0  # the server start that was renewed against last
        self.since = 0.0  # when its first reply came (6b)
        self.head: Head | None = None
        self.origin = ""  # the database that was renewed against last while nobody doubted it
        self.went_back = 0.0  # the server start under which this process found its way back (4c)
        self._pending: deque[tuple[Place, float]] = deque(maxlen=16)

    def receive(self, reply: Reply, *, sent: float, arrived: float) -> Next:
        """4b. A reply without registration or pair grants nothing and drops what was pending."""
        if not reply.registered:
            self._pending.clear()
            return Next.REGISTER
        if later(self.origin, reply.head.origin):
            self._pending.clear()
            return Next.DOUBT
        if not reply.pair:
            self._pending.clear()
            return Next.REWIND
        if self.went_back and sent < self.fresh_until:  # a restart in the middle, which lost nothing of ours
            self.went_back = reply.start
        if reply.head.version != PROTOCOL_VERSION:
            self._pending.clear()
            return Next.REFUSE
        if reply.head.vouched not in ("", reply.head.origin) and not self.vouches(reply):
            self._pending.clear()
            return Next.WAIT
        if reply.head.vouched in ("", reply.head.origin):
            self.origin = reply.head.origin
        if reply.start != self.start:
            self.start, self.since = reply.start, arrived
        self.head, self.renewed_at = reply.head, sent
        self._pending.append((reply.head.place, sent + reply.head.lease))
        return Next.APPLY

    def settle(self, memory: Memory) -> None:
        """Grant what is due: `applied` has passed through the head that the reply named."""
        waiting = [(place, until) for place, until in self._pending if not memory.contains(place)]
        for place, until in self._pending:
            if memory.contains(place):
                self.fresh_until = max(self.fresh_until, until)
        self._pending.clear()
        self._pending.extend(waiting)

    def vouches(self, reply: Reply) -> bool:
        """4d: whether this process has lived through the change of the database, and so remembers what it had.

        Two standbys of one primary that are promoted one after the other have the same name; the second names whom the
        primary was vouched for as. A name goes back by nothing else, unless somebody doubts it.
        """
        changed = self.origin != reply.head.origin or reply.head.vouched != DOUBTED
        return (self.origin != "" and changed) or self.went_back == reply.start

    def settled(self, now: float) -> bool:
        """6b: renewed against one and the same server start for L + d: no process lives on a lease of another one."""
        return self.head is not None and now - self.since >= self.head.lease + self.head.drift

    @property
    def settled_by_others(self) -> bool:
        """6b: as the last reply had it from who has renewed for that long. A start that was settled stays so."""
        return self.head is not None and self.head.settled

    def pause(self, *, probe_ok: bool, behind: bool) -> float:
        """Seconds from one sending to the next: at once while rows are missing, and never more than a fifth of L."""
        if behind:
            return 0.0
        length = self.head.lease if self.head is not None else 5.0
        return min(PACE if probe_ok else HURRIED, length / 5)


def later(origin: str, before: str) -> bool:
    """Whether `origin` is a later timeline of the same database."""
    system, _, rest = origin.partition("/")
    other, _, before = before.partition("/")
    timeline, _, table = rest.partition("/")
    earlier, _, same = before.partition("/")
    if not table or (system, table) != (other, same):
        return False
    return int(timeline, 16) > int(earlier, 16)


class Offset:
    """11: the database's clock as local clock + offset, sampled at each lease. A step is held and reported."""

    def __init__(self) -> None:
        self.value: float | None = None
        self.found = 0.0  # by the last sample that was good enough
        self.steps = 0
        self.stepped = False

    def sample(self, database: float, *, sent: float, arrived: float) -> None:
        """A step of more than 2 s against what is held leaves it as it is."""
        if arrived - sent > _SLOW and self.value is not None:
            return
        self.found = found = database - (sent + arrived) / 2
        stepped = self.value is not None and abs(found - self.value) > STEP
        if stepped and not self.stepped:
            self.steps += 1
        if not stepped:
            self.value = found
        self.stepped = stepped
