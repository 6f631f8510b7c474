"""What a process remembers of the revocation log: who is over, and from where on that is known. Pure, no I/O, no clock.

    floor ──────────── applied        the chain: every row in here is known, each one follows its `previous`
                              · ·     loose: rows that a hint brought beyond a gap, or that a failover took off it

Judging asks every remembered row, loose ones too, by what it kills (`born < bound`): a row that PostgreSQL had counted
in when the session was read would have killed it there, so asking again is harmless. The position says only whether
memory reaches back far enough. Not here: what to do about a verdict, who may go on (`lease`), how rows come in.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import NamedTuple

import msgspec

from sessions.model import ERA, Ended, Kind, Position, Row

KEEP = 15 * 60.0
"""How long a row is remembered, at least (seconds of the process's own clock), unless there are more than MOST."""
MOST = 200_000
ERAS = 16
"""How many eras before the floor's own are known by their ids: each is a failover or a restart of the database."""


class Again(Enum):
    """Memory cannot judge: read the session again (with `read_current`), then judge what was read."""

    BELOW_FLOOR = "below floor"  # memory does not reach back to the position, or the position is on another chain
    RIGHTS = "rights"  # the user or the session changed since the position: not over, but what was read is old


Verdict = Ended | Again | None
"""None: live."""


class Place(NamedTuple):
    """A row of the log: its seq and its id. Under one and the same era two servers that both have the pair have the
    same log up to it; without the era they need not: a row that was put back keeps its id, and when an era is lost as a
    whole, its numbers are used again."""

    seq: int
    id: str


def kills(row: Row, sid: str, user: str, born: int) -> bool:
    """Whether `row` ends the session `sid` of `user` that was born at `born`."""
    if row.kind is Kind.SESSION:
        return row.sid == sid
    if row.kind is Kind.USER:
        return row.subject == user and born < row.bound
    if row.kind is Kind.EVERYONE:
        return row.except_sid != sid and born < row.bound
    return False


def era_of(seq: int) -> int:
    """The number of the era that a seq stands under."""
    return seq // ERA


class _Index(dict[str, list[Row]]):
    """Rows by what they name."""

    def add(self, name: str, row: Row) -> None:
        self.setdefault(name, []).append(row)

    def remove(self, name: str, row: Row) -> None:
        rows = [r for r in self[name] if r.id != row.id]
        if rows:
            self[name] = rows
        else:
            del self[name]


class Memory:
    """The log over (floor, applied], and loose rows. Starts empty at the first head that was read (2c); `eras` are the
    era rows before it."""

    def __init__(self, head: Place, era_id: str, eras: Iterable[Place] = ()) -> None:
        self.floor = head
        self.applied = head
        self._eras = {era_of(place.seq): place.id for place in eras} | {era_of(head.seq): era_id}
        self._chain: deque[tuple[Row, float]] = deque()
        self._ids: dict[int, str] = {}  # of the chain, by seq
        self._known: dict[str, Row] = {}  # chain and loose, by id
        self._loose: dict[str, float] = {}  # since when, by id
        self._fitting: dict[str, str] = {}  # hinted rows by the id of the row before them
        self._by = {kind: _Index() for kind in Kind}

    def __len__(self) -> int:
        return len(self._chain)

    # -- judging

    @property
    def position(self) -> Position:
        """`applied` as others may be told."""
        return Position(self.applied.seq, self._eras[era_of(self.applied.seq)])

    def covers(self, position: Position) -> bool:
        """At or above the floor, and on this chain: all that came after it is remembered, or yet to come (1c, 2c)."""
        return position.seq >= self.floor.seq and self._eras.get(era_of(position.seq)) == position.era

    def judge(self, sid: str, user: str, born: int, position: Position) -> Verdict:
        """9b: the floor first, then every row that names the session, its user, or everyone."""
        if not self.covers(position):
            return Again.BELOW_FLOOR
        by = self._by
        for rows in (by[Kind.SESSION].get(sid, ()), by[Kind.USER].get(user, ()), by[Kind.EVERYONE].get("", ())):
            for row in rows:
                if kills(row, sid, user, born):
                    return row.ended
        changes = by[Kind.RIGHTS]
        for rows in (changes.get(user, ()), changes.get(sid, ())):
            for row in rows:
                if row.seq > position.seq:
                    return Again.RIGHTS
        return None

    def judge_key(self, api_key: str, position: Position) -> Verdict:
        """The same for an API key. A RIGHTS row that names it asks to read it again."""
        if not self.covers(position):
            return Again.BELOW_FLOOR
        rows = self._by[Kind.API_KEY].get(api_key, ())
        if rows:
            return rows[0].ended
        changed = self._by[Kind.RIGHTS].get(f"key:{api_key}", ())
        return Again.RIGHTS if any(row.seq > position.seq for row in changed) else None

    # -- learning

    def contains(self, place: Place) -> bool:
        """Whether the place is on this chain, floor to applied."""
        return place == self.floor or self._ids.get(place.seq) == place.id

    def behind(self, head: Place) -> int:
        """How many rows there are to apply up to `head`; of an era that is not known here, those in it at least."""
        if self.contains(head):
            return 0
        same = era_of(head.seq) == era_of(self.applied.seq)
        return max(0, head.seq - self.applied.seq) if same else head.seq % ERA + 1

    def news(self, row: Row) -> bool:
        """Whether the consequences of `row` are still to be drawn. A row at or below the floor is no news: it was
        forgotten, or never known here, and every position at or above the floor has counted it in."""
        return row.id not in self._known and row.seq > self.floor.seq

    def remember(self, row: Row, now: float) -> None:
        """Judge by `row` from now on, wherever it stands (3). It is loose until `advance` takes it."""
        known = self._known.get(row.id)
        if known is None:
            if row.seq <= self.floor.seq:
                return
            self._loose[row.id] = now
        elif known == row or row.id not in self._loose:
            return
        else:
            self._drop(known)  # someone put it back: the same row in another place
        self._known[row.id] = row
        self._fitting[row.previous] = row.id
        self._index(row, add=True)

    def advance(self, row: Row, now: float, *, by_lease: bool = False) -> bool:
        """The gap rule (3): take `row` onto the chain if the row before it is applied, then hinted rows that follow.

        Rows that a failover took off come back only by themselves, from the lease. So do eras: a row that was put back
        has had two places, an era is not next to the row before it, and its `previous` does not say which place it
        means; the lease's statement has compared it. Says whether `applied` moved.
        """
        before = self.applied
        if self._follows(row) or (by_lease and row.kind is Kind.ERA and self._after(row)):
            self._link(row, now)
        while self.applied.id in self._fitting:
            following = self._known[self._fitting[self.applied.id]]
            if not self._follows(following):
                break
            self._link(following, now)
        return self.applied != before

    def _after(self, row: Row) -> bool:
        return row.previous == self.applied.id and row.seq > self.applied.seq

    def _follows(self, row: Row) -> bool:
        return self._after(row) and row.seq == self.applied.seq + 1

    def _link(self, row: Row, now: float) -> None:
        self.remember(row, now)
        row = self._known[row.id]
        self._loose.pop(row.id, None)
        self._fitting.pop(row.previous, None)
        self._chain.append((row, now))
        self._ids[row.seq] = row.id
        self.applied = Place(row.seq, row.id)
        if row.kind is Kind.ERA:
            self._eras[era_of(row.seq)] = row.id

    def _drop(self, row: Row) -> None:
        self._index(row, add=False)
        if self._fitting.get(row.previous) == row.id:
            del self._fitting[row.previous]

    def _index(self, row: Row, *, add: bool) -> None:
        index, name = self._by[row.kind], _NAMES[row.kind](row)
        (index.add if add else index.remove)(name, row)

    # -- forgetting

    def prune(self, now: float, *, keep: float = KEEP, most: int = MOST) -> int:
        """Forget chain rows older than `keep` seconds, and the oldest beyond `most`: the floor moves up to the last one
        forgotten. That costs whoever read below it a second read, and never safety. Says how many went."""
        gone = 0
        while self._chain and (self._chain[0][1] <= now - keep or len(self._chain) > most):
            row, _ = self._chain.popleft()
            del self._ids[row.seq], self._known[row.id]
            self._index(row, add=False)
            self.floor = Place(row.seq, row.id)
            gone += 1
        for number in sorted(n for n in self._eras if n < era_of(self.floor.seq))[:-ERAS]:
            del self._eras[number]
        return gone

    # -- after a failover

    def loose(self) -> list[Row]:
        """Rows that are not on the chain, by place. An era that was only heard of is none: it ends nothing, and must
        not be put back."""
        rows = (self._known[id] for id in self._loose)
        return sorted((row for row in rows if row.kind is not Kind.ERA), key=lambda row: row.seq)

    def rows(self) -> list[Row]:
        """All that is remembered but the eras: those on the chain, then the loose."""
        return [row for row, _ in self._chain if row.kind is not Kind.ERA] + self.loose()

    def lost(self, before: float) -> list[Row]:
        """4c: the rows to put back, when a statement sent at `before` named a head that is applied: what was known by
        then and is not on the chain was committed, and is not there any more."""
        return [row for row in self.loose() if self._loose[row.id] < before]

    def places(self) -> list[Place]:
        """Floor to applied, newest first: for finding the last one that a server still has."""
        return [Place(row.seq, row.id) for row, _ in reversed(self._chain)] + [self.floor]

    def era_at(self, seq: int) -> str:
        """The id of the era row that `seq`, which is on this chain, stands under."""
        return self._eras[era_of(seq)]

    def eras(self) -> list[Place]:
        """The era rows of this chain as far as they are known, newest first."""
        return [Place(number * ERA, self._eras[number]) for number in sorted(self._eras, reverse=True)]

    def predates(self, decision: Place) -> bool:
        """4d: whether that era began after all that is remembered here: it is none of this chain's, and not so old that
        it was forgotten."""
        known = self.eras()
        return decision not in known and decision.seq > known[-1].seq

    def rewind(self, to: Place) -> bool:
        """4c: back to `to`, which is on this chain, or before its floor and on the same log. Rows after it become
        loose: they go on judging until they are put back. A bound of an era that is lost with them is cut down to that
        era's begin, where the next one may begin again. Says whether an era was lost."""
        number = era_of(to.seq)
        limit = (number + 1) * ERA
        era_lost = any(n > number for n in self._eras)
        self._fitting.clear()  # they would lead back onto the branch that was lost
        while self._chain and self._chain[-1][0].seq > to.seq:
            row, since = self._chain.pop()
            del self._ids[row.seq], self._known[row.id]
            self._index(row, add=False)
            if row.kind is not Kind.ERA:
                self._loosen(row, since, limit)
        for n in [n for n in self._eras if n > number]:
            del self._eras[n]
        self.applied = to
        if to.seq < self.floor.seq:
            self.floor = to
        return era_lost

    def _loosen(self, row: Row, since: float, limit: int) -> None:
        row = with_bound(row, min(row.bound, limit))
        self._loose[row.id] = since
        self._known[row.id] = row
        self._index(row, add=True)


def last_present(places: Iterable[Place], present: Iterable[Place]) -> Place | None:
    """The newest of `places` (newest first) that a server said it has."""
    there = set(present)
    return next((place for place in places if place in there), None)


def with_bound(row: Row, bound: int) -> Row:
    """The row with another bound."""
    if row.bound == bound:
        return row
    return msgspec.structs.replace(row, bound=bound)


_NAMES: Mapping[Kind, Callable[[Row], str]] = {
    Kind.SESSION: lambda row: row.sid,
    Kind.USER: lambda row: row.subject,
    Kind.EVERYONE: lambda row: "",
    Kind.RIGHTS: lambda row: row.sid or row.subject,
    Kind.API_KEY: lambda row: row.api_key,
    Kind.ERA: lambda row: "",
}
