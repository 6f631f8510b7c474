"""The checker: reads a history and names what in it breaks the promise. Pure; it knows nothing but the history.

    I1  no application frame, and no accepted HTTP request, of a revoked session after its `confirmed`
    I2  none after commit + L + d; the commit had happened when the API's answer came
    I3  a node that cannot hear from the database for L: no frame, and `/ready` false
    deaf  a node that does not hear what it publishes: `/ready` false after 3 s
    I4  where only time confirmed, a pause between gate and kernel may let out one write a socket, never two
    I5  no connection of a valid session ends because of a fault shorter than F
    refusal    no HTTP request of a valid session is answered 401 or 403
    F15, ...   what the look of that fault itself found (`history.Finding`)
    delivery   what was accepted in a positioned channel arrives once, in one place and in order, or is reported lost
    receipts   every revocation that happened has one, and it is confirmed in the end
    counters   a receipt's count is what clients saw close
    liveness   in the end no connection of a revoked session is open, and every node is ready

A frame breaks I1 or I2 if its `cause` was sent after the bound: it cannot have been authorised before, so no slack and
no allowance of I4. It breaks them too if it begins beyond a `Mark` that was taken after the bound and came later than
SLACK after that mark; there I4 allows one, unless every process had acknowledged (then they had closed before).

A failover may lose the last commits. A revocation among them that only time had confirmed holds again from L + d after
a process that remembers has put it back; if a process died meanwhile, perhaps nobody does. A login among them is none.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

from tests.campaign.history import (
    Answered,
    Closed,
    Delivered,
    Dialled,
    Event,
    Failover,
    FaultBegan,
    FaultEnded,
    Finding,
    Frame,
    History,
    HungUp,
    LoggedIn,
    Mark,
    Published,
    Quiet,
    Readiness,
    Receipt,
    Revoked,
    Revoking,
    Starved,
    Subscribed,
    Unsubscribed,
)

SLACK = 0.05
"""Seconds for a segment that was written before a mark and was still with a kernel thread at the mark. On an idle
machine this is microseconds; 50 ms is far above what a full two-core machine showed, and far below L."""

DEAF = 3.0
SEEN_LATE = 0.3
"""Seconds after which the campaign has seen that a connection is gone, and says that the fault is over."""

CLIENT_FAULTS = frozenset({3008, 3012})  # too slow, no pong: the client's own doing, if it was rude
RIGHTS = 3014
REPLACED = 4503
NOT_CURRENT = 4001
WANT_OF_TIME = frozenset({3008, 3012, NOT_CURRENT})
"""Too slow to read or to answer a ping, or frozen for longer than F: each may be for want of time."""


class Violation(NamedTuple):
    """`rule`: one of the names above. `at`: when it showed. `what`: a sentence with the ids. `slow`: a machine without
    time can bring it about, without anything wrong in who judges and what passes."""

    rule: str
    at: float
    what: str
    slow: bool = False


class Took(NamedTuple):
    """What one revocation took, in seconds from its COMMIT, and the faults that were under way.

    `close`: to the last close. `able`: the same, but a gateway that was cut off or stopped is counted from when it no
    longer was: before that it cannot know whom to close, and lets nothing pass. `frame`: to the last application frame
    of a session that it ended, 0 if there was none.
    """

    close: float
    able: float
    frame: float
    during: frozenset[str]


@dataclass
class Connection:
    """One connection as the log has it."""

    dialled: Dialled
    frames: list[Frame] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    live_at: float | None = None
    end: Closed | HungUp | None = None


@dataclass
class Revocation:
    """One thing that ends sessions, asked and answered."""

    asked: Revoking
    answer: Revoked | None = None
    receipt: Receipt | None = None

    @property
    def happened(self) -> bool:
        return self.answer is not None and self.answer.state in ("confirmed", "committed")

    @property
    def may_have_happened(self) -> bool:
        return self.answer is None or self.answer.state != "refused"


@dataclass
class Span:
    """A fault from when it was in force to just before it was taken away."""

    began: FaultBegan
    end: float


E = TypeVar("E", bound=Event)


class Checker:
    """`violations()` once; `times()` for what was measured on the way."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.end = max((event.at for event in history.events), default=0.0)
        self.logins = {e.sid: e for e in self._all(LoggedIn)}
        self.connections = {e.conn: Connection(e) for e in self._all(Dialled)}
        self.revocations = {e.id: Revocation(e) for e in self._all(Revoking)}
        self.faults = self._faults()
        self.failovers = list(self._all(Failover))
        self._starved = list(self._all(Starved))
        self.quiet = next((e.at for e in self._all(Quiet)), None)
        for event in history.events:
            self._sort(event)
        self.by_sid: dict[str, list[Connection]] = defaultdict(list)
        for connection in self.connections.values():
            self.by_sid[connection.dialled.sid].append(connection)

    def _all(self, kind: type[E]) -> Iterator[E]:
        return (event for event in self.history.events if isinstance(event, kind))

    def _faults(self) -> list[Span]:
        ends = {e.id: e.at for e in self._all(FaultEnded)}
        return [Span(began, ends.get(began.id, self.end)) for began in self._all(FaultBegan)]

    def _sort(self, event: Event) -> None:
        match event:
            case Frame():
                found = self.connections[event.conn]
                found.frames.append(event)
                if event.live:
                    found.live_at = event.at
            case Mark():
                self.connections[event.conn].marks.append(event)
            case Closed() | HungUp():
                found = self.connections[event.conn]
                found.end = found.end or event
            case Revoked():
                self.revocations[event.id].answer = event
            case Receipt():
                self.revocations[event.id].receipt = event
            case _:
                pass

    def violations(self) -> list[Violation]:
        """In the order in which they showed."""
        found = [
            *self._frames_after_the_end(),
            *self._requests_after_the_end(),
            *self._blind_nodes(),
            *self._deaf_nodes(),
            *self._valid_sessions(),
            *self._false_refusals(),
            *self._findings(),
            *self._deliveries(),
            *self._repetitions(),
            *self._receipts(),
            *self._in_the_end(),
        ]
        return sorted(set(found), key=lambda v: v.at)

    def starved(self, violation: Violation) -> bool:
        """Whether it says nothing of the product: it can come of a want of time, and for L or longer in the F before
        it the machine had none. What passed after an end is never excused."""
        if not violation.slow:
            return False
        since = violation.at - self.history.hold
        waited = sum(e.seconds for e in self._starved if since <= e.at <= violation.at + 1.0)
        return waited >= self.history.lease

    # -- I1, I2, I4

    def _bounds(self, revocation: Revocation) -> Iterator[tuple[str, float, bool]]:
        """(rule, from when on nothing may pass, whether everyone had acknowledged)."""
        answer = revocation.answer
        if answer is None or not revocation.happened or revocation.asked.rights:
            return
        again = self._again(revocation)
        if again is None:
            return
        if answer.state == "confirmed":
            yield "I1", answer.at if answer.by == "acks" else max(answer.at, again), answer.by == "acks"
        yield "I2", max(answer.at + self.history.lease + self.history.drift, again), False

    # -- failovers

    def _lost(self, since: float, until: float) -> Failover | None:
        """The failover that may have lost what was committed between these times."""
        return next((f for f in self.failovers if f.since < f.at and f.since <= until and since <= f.at), None)

    def _again(self, revocation: Revocation) -> float | None:
        """From when on a revocation holds again that a failover may have lost; None: perhaps nobody remembers."""
        assert revocation.answer is not None
        lost = self._lost(revocation.asked.at, revocation.answer.at)
        if lost is None:
            return 0.0
        if any(s.began.kills and s.began.at <= lost.settled and lost.since <= s.end for s in self.faults):
            return None
        return lost.settled + self.history.lease + self.history.drift

    def _login_lost(self, sid: str, at: float) -> bool:
        login = self.logins.get(sid)
        lost = self._lost(login.sent, login.at) if login is not None else None
        return lost is not None and at >= lost.since

    def _frames_after_the_end(self) -> Iterator[Violation]:
        for revocation in self.revocations.values():
            for rule, bound, acknowledged in self._bounds(revocation):
                for sid in revocation.asked.sids:
                    for connection in self.by_sid[sid]:
                        yield from self._late(connection, revocation.asked, rule, bound, acknowledged)

    def _late(
        self, connection: Connection, asked: Revoking, rule: str, bound: float, acknowledged: bool
    ) -> Iterator[Violation]:
        mark = next((m for m in connection.marks if m.at >= bound), None)
        allowed = 0 if acknowledged else 1
        for frame in connection.frames:
            about = f"{frame.kind} of {connection.dialled.sid} on connection {frame.conn}"
            if frame.cause > bound:
                after = (frame.cause - bound) * 1000
                yield Violation(rule, frame.at, f"{about}: its cause came {after:.0f} ms after the end by #{asked.id}")
            elif mark is not None and frame.begin >= mark.upto and frame.at > mark.at + SLACK:
                allowed -= 1
                if allowed < 0:
                    name = rule if acknowledged else "I4"
                    yield Violation(name, frame.at, f"{about}: written after the end by #{asked.id} ({rule})")

    def _requests_after_the_end(self) -> Iterator[Violation]:
        ends: dict[str, tuple[str, float, int]] = {}
        for revocation in self.revocations.values():
            for rule, bound, _ in self._bounds(revocation):
                for sid in revocation.asked.sids:
                    if sid not in ends or bound < ends[sid][1]:
                        ends[sid] = (rule, bound, revocation.asked.id)
        for answered in self._all(Answered):
            if answered.sid in ends and 200 <= answered.status < 300:
                rule, bound, id = ends[answered.sid]
                if answered.sent > bound:
                    what = f"node {answered.node} accepted a request of {answered.sid} after the end by #{id}"
                    yield Violation(rule, answered.at, what)

    # -- I3

    def _blind_nodes(self) -> Iterator[Violation]:
        blind = [
            (node, span.began.at + self.history.lease, span.end, span.began.name)
            for span in self.faults
            for node in span.began.blinds
        ]
        for node, since, until, name in blind:
            if until <= since:
                continue
            for connection in self.connections.values():
                if connection.dialled.node != node:
                    continue
                for frame in connection.frames:
                    if frame.cause > since and frame.at < until:
                        what = f"node {node}, blind by {name}, wrote {frame.kind} on connection {frame.conn}"
                        yield Violation("I3", frame.at, what)
            for seen in self._all(Readiness):
                if seen.node == node and seen.ready and seen.sent > since and seen.at < until:
                    yield Violation("I3", seen.at, f"node {node}, blind by {name}, says that it is ready")

    def _deaf_nodes(self) -> Iterator[Violation]:
        """Who does not hear itself finds that within DEAF, and is not ready until it does, if nothing else is wrong."""
        for span in (span for span in self.faults if span.began.deafens):
            others = [s for s in self.faults if s.began.name != span.began.name and s.end > span.began.at]
            end = span.end - SEEN_LATE
            for seen in self._all(Readiness):
                deaf = seen.node in span.began.deafens and seen.sent > span.began.at + DEAF and seen.at < end
                if deaf and seen.ready and not any(s.began.at < seen.at for s in others):
                    what = f"node {seen.node}, deaf by {span.began.name}, is ready"
                    yield Violation("deaf", seen.at, what, slow=True)

    # -- I5

    def _valid_sessions(self) -> Iterator[Violation]:
        for connection in self.connections.values():
            end = connection.end
            if isinstance(end, Closed) and (why := self._wrong(connection, end)):
                who = f"connection {end.conn} of {connection.dialled.sid} on node {connection.dialled.node}"
                yield Violation("I5", end.at, f"{who}: {why}", slow=end.code in WANT_OF_TIME)

    def _wrong(self, connection: Connection, end: Closed) -> str:
        """What is wrong with this end, "" if nothing is."""
        dialled = connection.dialled
        if self._login_lost(dialled.sid, end.at):
            return ""
        if end.code // 100 == 45:
            return "" if self._may_be_over(dialled, end) else f"closed with {end.code} {end.reason}, and nobody asked"
        if connection.live_at is None:
            return ""  # it was not let in: a fault may do that
        if self._killed(dialled.node, connection.live_at, end.at) or self._may_be_over(dialled, end):
            return ""
        if dialled.rude and (end.code in CLIENT_FAULTS or end.code == 1006):
            return ""
        if end.code == RIGHTS and self._rights_changed(dialled, end.at):
            return ""
        if self._long_fault(dialled.at, end.at):
            return ""
        return f"closed with {end.code} {end.reason}, and its session was valid"

    def _may_be_over(self, dialled: Dialled, end: Closed) -> bool:
        return any(self._may_end(revocation, dialled, end) for revocation in self.revocations.values())

    def _may_end(self, revocation: Revocation, dialled: Dialled, end: Closed) -> bool:
        asked, answer = revocation.asked, revocation.answer
        if asked.at > end.at or asked.rights or not revocation.may_have_happened or dialled.sid == asked.spared:
            return False
        if asked.cap:
            return dialled.user in asked.users and end.code in (REPLACED, 1006) and self._crowded(dialled.user, asked)
        if dialled.sid in asked.sids:
            return True
        login = self.logins.get(dialled.sid)
        during = login is None or answer is None or answer.state == "unknown" or login.sent < answer.at
        return during and (asked.everyone or dialled.user in asked.users)

    def _crowded(self, user: str, asked: Revoking) -> bool:
        """Whether the user may have had as many sessions as the cap allows when another was opened."""
        known = sum(login.user == user and login.sent <= asked.at for login in self.logins.values())
        unknown = sum(
            r.asked.cap and user in r.asked.users and (r.answer is None or r.answer.state == "unknown")
            for r in self.revocations.values()
            if r.asked.at <= asked.at and r.asked is not asked
        )
        return known + unknown >= self.history.cap

    def _rights_changed(self, dialled: Dialled, at: float) -> bool:
        return any(
            r.asked.rights and r.asked.at <= at and dialled.user in r.asked.users for r in self.revocations.values()
        )

    def _killed(self, node: int, since: float, at: float) -> bool:
        return any(node in span.began.kills and since <= span.end and span.began.at <= at + 1 for span in self.faults)

    def _long_fault(self, since: float, at: float) -> bool:
        hold = self.history.hold
        return any(s.end - s.began.at >= hold and s.began.at + hold <= at and since <= s.end for s in self.faults)

    def _false_refusals(self) -> Iterator[Violation]:
        for answered in self._all(Answered):
            login = self.logins.get(answered.sid)
            if answered.status not in (401, 403) or login is None or self._login_lost(answered.sid, answered.at):
                continue
            asker = Dialled(answered.sent, 0, answered.sid, login.user, answered.node)
            if not self._may_be_over(asker, Closed(answered.at, 0, REPLACED)):
                what = f"node {answered.node} answered {answered.status} to {answered.sid}, whose session was valid"
                yield Violation("refusal", answered.at, what)

    def _findings(self) -> Iterator[Violation]:
        return (Violation(found.rule, found.at, found.what, slow=True) for found in self._all(Finding))

    # -- delivery

    def _deliveries(self) -> Iterator[Violation]:
        streams: dict[tuple[int, str], Stream] = {}
        accepted = list(self._all(Published))
        names = {(p.channel, p.epoch, p.offset): p.id for p in accepted}
        for event in self.history.events:
            match event:
                case Subscribed():
                    streams[event.conn, event.channel] = Stream(event.epoch, event.offset, event.offset)
                case Unsubscribed():
                    streams.pop((event.conn, event.channel), None)
                case Closed() | HungUp():
                    for key in [key for key in streams if key[0] == event.conn]:
                        del streams[key]
                case Delivered():
                    stream = streams.get((event.conn, event.channel))
                    if stream is not None:
                        yield from stream.take(event, names)
                case _:
                    pass
        if self.quiet is None:
            return
        for (conn, channel), stream in streams.items():
            if self.connections[conn].dialled.rude:
                continue
            for p in accepted:
                if p.channel == channel and p.epoch == stream.epoch and p.offset > stream.last and p.at < self.quiet:
                    what = f"publication {p.id} ({channel} {p.offset}) never came to connection {conn}"
                    yield Violation("delivery", p.at, what)

    def _repetitions(self) -> Iterator[Violation]:
        """What was published once stands in its channel once, whatever was repeated on the way (F23)."""
        places: dict[tuple[str, str], int] = {}
        for event in self._all(Delivered):
            first = places.setdefault((event.channel, event.id), event.offset)
            if event.id and event.offset != first:
                what = f"publication {event.id} stands in {event.channel} at {first} and at {event.offset}"
                yield Violation("delivery", event.at, what)

    # -- receipts, counters

    def _receipts(self) -> Iterator[Violation]:
        if self.quiet is None:
            return
        for revocation in self.revocations.values():
            answer, receipt = revocation.answer, revocation.receipt
            if answer is None or not answer.receipt or not revocation.happened or self._again(revocation) is None:
                continue
            if not revocation.asked.sids and self._again(revocation):
                continue  # it may have had no row that could be put back
            if receipt is None or not receipt.state:
                yield Violation("receipts", answer.at, f"#{answer.id} happened and has no receipt")
                continue
            if receipt.state != "confirmed":
                yield Violation("receipts", receipt.at, f"the receipt of #{answer.id} is {receipt.state} in the end")
            if why := self._miscounted(revocation, receipt):
                yield Violation("counters", receipt.at, f"#{answer.id}: {why}")

    def _miscounted(self, revocation: Revocation, receipt: Receipt) -> str:
        asked, answer = revocation.asked, revocation.answer
        if not asked.reason or answer is None:
            return ""
        seen = [c for c in self.connections.values() if self._closed_by(c, asked)]
        least = sum(c.live_at is not None for c in seen if not self._any_kill(c, asked.at))
        most = len(seen) + sum(self._without_a_word(c, asked) for c in self.connections.values())
        if receipt.closed < least:
            return f"its receipt says {receipt.closed} connections, clients saw {least} end"
        if receipt.closed > most:
            return f"its receipt says {receipt.closed} connections, there were at most {most}"
        return ""

    def _closed_by(self, connection: Connection, asked: Revoking) -> bool:
        end = connection.end
        return isinstance(end, Closed) and end.code == 4501 and end.reason == f"session revoked: {asked.reason}"

    def _without_a_word(self, connection: Connection, asked: Revoking) -> bool:
        """It may have been closed by this, and its client was not told, or had gone itself."""
        end, dialled = connection.end, connection.dialled
        matched = dialled.sid in asked.sids or dialled.user in asked.users or asked.everyone
        return matched and (end is None or (end.at >= asked.at - 1.0 and not self._closed_by(connection, asked)))

    def _any_kill(self, connection: Connection, since: float) -> bool:
        node = connection.dialled.node
        return any(node in s.began.kills and s.end >= since - 1 for s in self.faults)

    # -- the end

    def _in_the_end(self) -> Iterator[Violation]:
        if self.quiet is None:
            return
        over = {
            sid
            for r in self.revocations.values()
            if r.happened and not r.asked.rights and self._again(r) is not None
            for sid in r.asked.sids
        }
        for sid in over:
            for connection in self.by_sid[sid]:
                if connection.end is None and connection.live_at is not None:
                    what = f"connection {connection.dialled.conn} of {sid} is open in the end"
                    yield Violation("liveness", self.quiet, what)
        last = {seen.node: seen for seen in self._all(Readiness) if seen.at >= self.quiet}
        for seen in last.values():
            if not seen.ready:
                yield Violation("liveness", seen.at, f"node {seen.node} is not ready in the end: {seen.why}", slow=True)

    def times(self) -> list[Took]:
        """Of each revocation that closed something. COMMIT by the receipt: when its answer came, less its `elapsed`."""
        return [
            self._took(ended, answer.at - answer.elapsed)
            for r in self.revocations.values()
            if (answer := r.answer) is not None and r.happened and answer.receipt and (ended := self._ended(r.asked))
        ]

    def _ended(self, asked: Revoking) -> list[tuple[Connection, float]]:
        """The connections that it closed, of clients that read, and when."""
        return [
            (c, c.end.at)
            for c in self.connections.values()
            if c.end is not None
            and not c.dialled.rude
            and c.live_at is not None
            and c.live_at < asked.at
            and self._closed_by(c, asked)
        ]

    def _took(self, ended: list[tuple[Connection, float]], committed: float) -> Took:
        last = max(at for _, at in ended)
        able = max(at - max(committed, self._away(c.dialled.node, committed, at)) for c, at in ended)
        frame = max((f.at for c, _ in ended for f in c.frames), default=0.0)
        return Took(
            max(0.0, last - committed), max(0.0, able), max(0.0, frame - committed), self._during(committed, last)
        )

    def _away(self, node: int, since: float, until: float) -> float:
        """Until when a node was cut off or stopped within this time."""
        return max(
            (
                s.end
                for s in self.faults
                if node in s.began.blinds | s.began.halts and s.began.at <= until and since <= s.end <= until
            ),
            default=0.0,
        )

    def _during(self, since: float, until: float) -> frozenset[str]:
        return frozenset(s.began.name for s in self.faults if s.began.at - 1 <= until and since <= s.end + 1)


@dataclass
class Stream:
    """One positioned subscription: up to where its client has heard."""

    epoch: str
    start: int
    last: int

    def take(self, event: Delivered, names: dict[tuple[str, str, int], str]) -> Iterable[Violation]:
        expected, self.last = self.last + 1, max(self.last, event.offset)
        where = f"{event.channel} on connection {event.conn}"
        if event.offset != expected:
            yield Violation("delivery", event.at, f"{where}: {event.offset} came where {expected} was due")
        name = names.get((event.channel, self.epoch, event.offset))
        if name is not None and name != event.id:
            yield Violation("delivery", event.at, f"{where}: {event.offset} is {event.id}, accepted was {name}")


def check(history: History) -> list[Violation]:
    """What breaks the promise in `history`."""
    return Checker(history).violations()
