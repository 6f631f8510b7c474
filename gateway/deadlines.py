"""When something falls due for a peer: one heap for all deadlines, and a wheel of buckets for the pings.

No timer per peer and none that decides: whoever drives these reads the clock (the one that counts suspend) and asks
what is due. What a due peer gets is not decided here.
"""

import heapq
import math
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

NEVER = math.inf


class Entry:
    """One place in the heap. `owner` is None once it was cleared: a dead peer is not kept alive by its deadline."""

    __slots__ = ("owner", "when")

    def __init__(self, when: float, owner: "Owner | None") -> None:
        self.when = when
        self.owner = owner

    def __lt__(self, other: "Entry") -> bool:
        return self.when < other.when


class Owner(Protocol):
    """Who has at most one deadline. The slot belongs to `Deadlines`."""

    deadline: Entry | None


O = TypeVar("O", bound=Owner)  # noqa: E741


class Deadlines(Generic[O]):
    """The earliest moment at which each owner wants to be looked at.

    An owner that is looked at too early (its deadline has moved meanwhile) sets the next one, so moving a deadline
    further away costs nothing: `set` only ever moves it nearer.
    """

    __slots__ = ("_cleared", "_heap", "next")

    def __init__(self) -> None:
        self._heap: list[Entry] = []
        self._cleared = 0
        self.next = NEVER

    def __len__(self) -> int:
        return len(self._heap) - self._cleared

    def set(self, owner: O, when: float) -> None:
        """Look at `owner` at `when` or earlier. NEVER sets nothing."""
        entry = owner.deadline
        if entry is not None:
            if entry.when <= when:
                return
            self._drop(entry)
        if when == NEVER:
            owner.deadline = None
            return
        owner.deadline = entry = Entry(when, owner)
        heapq.heappush(self._heap, entry)
        if when < self.next:
            self.next = when

    def clear(self, owner: O) -> None:
        """Forget `owner`."""
        if owner.deadline is not None:
            self._drop(owner.deadline)
            owner.deadline = None

    def pop(self, now: float) -> list[O]:
        """Owners that are due at `now`, earliest first. They have no deadline any more until they set one."""
        heap, due = self._heap, []
        while heap and heap[0].when <= now:
            entry = heapq.heappop(heap)
            if entry.owner is None:
                self._cleared -= 1
                continue
            entry.owner.deadline = None
            due.append(entry.owner)
        self.next = heap[0].when if heap else NEVER
        return due  # type: ignore[return-value]  # what is put in comes out

    def _drop(self, entry: Entry) -> None:
        entry.owner = None
        self._cleared += 1
        if self._cleared > 64 and self._cleared > len(self._heap) // 2:
            self._heap = [kept for kept in self._heap if kept.owner is not None]
            heapq.heapify(self._heap)
            self._cleared = 0


class Pinged(Protocol):
    """Who is pinged. `bucket` (-1: in none) and `place` belong to `Wheel`; `pings` counts pings without a pong."""

    bucket: int
    place: int
    pings: int


P = TypeVar("P", bound=Pinged)


class Wheel(Generic[P]):
    """Everyone who is pinged, in buckets; the wheel turns once an interval, one bucket a step.

    Its time stands still while the process does: after a stall nobody is found guilty of pongs that could not be read.
    """

    __slots__ = ("_at", "_buckets", "_forgiven", "_random", "_tick", "_timeout_ticks", "size", "step")

    def __init__(self, interval: float, timeout: float, now: float, random: Callable[[], float]) -> None:
        """`interval` and `timeout` in seconds; a timeout of 0 asks for no pongs, an interval of 0 pings nobody."""
        buckets = max(8, min(100, int(interval / 0.1)))
        self.step = interval / buckets if interval else NEVER
        self._buckets: list[list[P]] = [[] for _ in range(buckets)]
        self._timeout_ticks = min(math.ceil(timeout / self.step), buckets - 1) if timeout and interval else 0
        self._random = random
        self._tick = 0
        self._at = now
        self._forgiven = 0
        self.size = 0

    def members(self) -> list[P]:
        """Everyone, as a list of its own."""
        return [member for bucket in self._buckets for member in bucket]

    def add(self, member: P) -> None:
        """Ping `member` first after a random time between half an interval and a whole one, then every interval."""
        count = len(self._buckets)
        ahead = count // 2 + int(self._random() * (count - count // 2))
        member.bucket = (self._tick + 1 + min(ahead, count - 1)) % count
        bucket = self._buckets[member.bucket]
        member.place = len(bucket)
        bucket.append(member)
        self.size += 1

    def remove(self, member: P) -> None:
        """Swap with the last; nothing for one who is not in."""
        if member.bucket < 0:
            return
        bucket = self._buckets[member.bucket]
        last = bucket.pop()
        if last is not member:
            bucket[member.place] = last
            last.place = member.place
        member.bucket = -1
        self.size -= 1

    def forgive(self) -> None:
        """Nobody is overdue before a whole timeout has passed from now."""
        self._forgiven = self._tick + self._timeout_ticks + 1

    def turn(self, now: float) -> tuple[list[P], list[P]]:
        """(who is to be pinged, who is overdue) since the last call. The first are counted as pinged.

        Those overdue have had a ping for the whole timeout. More than two steps late counts as a stall.
        """
        ping: list[P] = []
        overdue: list[P] = []
        if now - self._at > 2 * self.step + 1.0:
            self._at = now - self.step
        while now - self._at >= self.step:
            self._at += self.step
            self._tick += 1
            bucket = self._buckets[self._tick % len(self._buckets)]
            for member in bucket:
                member.pings += 1
            ping += bucket
            if self._timeout_ticks and self._tick >= self._forgiven:
                late = self._buckets[(self._tick - self._timeout_ticks) % len(self._buckets)]
                overdue += [member for member in late if member.pings]
        return ping, overdue
