"""A row of the log takes effect in this process: connections are closed, memory knows it, the count is kept (8b).

Synchronous from end to end: between the closing and the remembering no connect can slip in, and nothing is
acknowledged that was not done. Where a row comes from (lease, hint, own commit) makes no difference. Not here:
acknowledging, granting.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import structlog

from config.clock import Clock
from sessions.lease import Unreadable
from sessions.memory import KEEP, Memory, Place
from sessions.model import Kind, Row

log = structlog.get_logger(__name__)


class Closer(Protocol):
    """Whoever holds live connections (the hub)."""

    def apply(self, row: Row) -> int:
        """Close what `row` ends, now and synchronously, and say how many connections that were.

        Called once a row, before this process acknowledges it. RIGHTS: the user's connections go with 3014. SESSION,
        USER, EVERYONE: compare `born < row.bound` of each connection's session (EVERYONE spares `except_sid`). ERA and
        API_KEY mean nothing to connections. `row.spread_seconds`: out of every list now, close frames spread.
        Must not raise: a row whose closer raised is not acknowledged and is tried again.
        """
        ...

    def rebase(self, limit: int) -> None:
        """A failover lost an era. Connections whose session has `born > limit` get `born = limit`: their positions are
        of the lost era, whose numbers may be used again. Synchronous and rare."""
        ...

    def part(self) -> None:
        """What this process remembers is worth nothing any more. Every connection goes, now and synchronously, and may
        come back."""
        ...


@dataclass(slots=True)
class Tally:
    """What this process closed for one receipt so far, and when it last did (database's clock; own clock)."""

    closed: int
    applied_at: float
    since: float
    changes: int = 0


class Applier:
    """This process's view of the log, and what follows from a new row. `memory` is None before the first head."""

    def __init__(self, clock: Clock, database_now: Callable[[], float]) -> None:
        self.memory: Memory | None = None
        self.closers: list[Closer] = []
        self.applied = 0  # rows, for the metrics
        self.rewinds = 0
        self.on_closed: list[Callable[[float], None]] = []  # seconds from the commit of a row to its taking effect
        self.blocked = ""  # why the next row cannot be applied, "" when it can
        self._clock = clock
        self._database_now = database_now
        self._tallies: dict[str, Tally] = {}  # oldest first
        self._due: dict[str, Tally] = {}  # those that PostgreSQL does not have as they are

    def take(self, row: Row, *, by_lease: bool = False) -> bool:
        """Draw the consequences of `row` unless that was done before. False: they could not be drawn."""
        memory = self.memory
        if memory is None:
            return False
        now = self._clock.now()
        if memory.news(row) and not self._close(row, now):
            return False
        memory.remember(row, now)
        memory.advance(row, now, by_lease=by_lease)
        return True

    def take_all(self, rows: Iterable[Row | Unreadable]) -> int:
        """Rows of the log in order, as the lease brings them: up to the first that cannot be applied (1d). How many of
        them were news."""
        assert self.memory is not None  # noqa: S101 - the caller read a head first
        self.blocked, news = "", 0
        for row in rows:
            if isinstance(row, Unreadable):
                self.blocked = f"cannot apply row {row.seq:x}: it asks for reader version {row.min_version}"
                log.error("row_unreadable", seq=row.seq, min_version=row.min_version)
                break
            new = self.memory.news(row)
            if not self.take(row, by_lease=True):
                break
            news += new
            if not self.memory.contains(Place(row.seq, row.id)) and row.seq > self.memory.applied.seq:
                self.blocked = f"row {row.seq:x} does not follow {self.memory.applied.seq:x}"
                break
        return news

    def rewind(self, to: Place) -> None:
        """4c, after the server was asked what it still has."""
        assert self.memory is not None  # noqa: S101 - there is something to go back from
        self.rewinds += 1
        log.critical("commits_lost", applied=self.memory.applied.seq, back_to=to.seq)
        if self.memory.rewind(to):
            for closer in self.closers:
                closer.rebase(to.seq)

    def begin_anew(self) -> list[Row]:
        """4d, once somebody vouches for a database that has nothing of what is remembered here: as after a start, and
        without connections. The rows that were remembered, to be put back."""
        assert self.memory is not None  # noqa: S101 - there is something to forget
        log.critical("begins_anew", applied=self.memory.applied.seq)
        lost = self.memory.rows()
        for closer in self.closers:
            closer.part()
        self.memory = None
        return lost

    def _close(self, row: Row, now: float) -> bool:
        closed = 0
        for closer in self.closers:
            try:
                closed += closer.apply(row)
            except Exception:
                self.blocked = f"row {row.seq:x} could not be carried out"
                log.exception("row_not_applied", seq=row.seq)
                return False
        self.applied += 1
        if row.at and row.kind is not Kind.ERA:
            for tell in self.on_closed:
                tell(max(0.0, self._database_now() - row.at))
        if row.receipt:
            tally = self._tallies.pop(row.receipt, None) or Tally(0, 0.0, now)
            tally.closed += closed
            tally.applied_at, tally.since = self._database_now(), now
            tally.changes += 1
            self._tallies[row.receipt] = self._due[row.receipt] = tally
        return True

    # -- counts

    def tally(self, receipt: str) -> Tally | None:
        """What was closed here for a receipt."""
        return self._tallies.get(receipt)

    def unreported(self, limit: int = 500) -> list[tuple[str, Tally, int]]:
        """Counts that PostgreSQL does not have yet, as (receipt, tally, its state to report)."""
        return [(id, tally, tally.changes) for id, tally in islice(self._due.items(), limit)]

    def reported(self, due: Sequence[tuple[str, Tally, int]]) -> None:
        """PostgreSQL has these. A count that grew meanwhile stays due."""
        for id, tally, changes in due:
            if tally.changes == changes:
                self._due.pop(id, None)

    def report_again(self) -> None:
        """The database is another one: it may not have what was reported."""
        self._due.update(self._tallies)

    def prune(self) -> None:
        """Forget rows and counts that are old enough."""
        if self.memory is None:
            return
        now = self._clock.now()
        self.memory.prune(now)
        while self._tallies:
            id = next(iter(self._tallies))
            if id in self._due or self._tallies[id].since >= now - KEEP:
                break
            del self._tallies[id]
