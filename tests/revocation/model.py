"""The protocol as a state machine without I/O: every interleaving for two processes, breadth first, so that the history
that breaks a rule is a short one.

What decides is the product's own code: `Memory` (judging, the floor, the gap rule, going back), `Lease` (what a reply
grants) and `verdict` (what confirms) run here as they run there; their states are interned, so that each step of theirs
is computed once. What the model adds is the world: a server with its log, registrations and a standby that lags behind,
messages that come late, twice or never, clocks that tick, processes that pause wherever nothing says that they act.

Process 0 revokes; process 1 is any other, its lease statement is sent, executed and answered in three steps. A pause is
time that passes between any two steps. Times are ticks, relative to now and cut off where they mean nothing more, so
the space is finite; L is 2 ticks and d is 0. A `World` says what may happen in one walk: all of it together would be a
space that nobody walks through, and what is left out of a world does not touch what it is about.

In every state: a socket whose gate is open belongs to no session that a confirmed row kills (I1), nor that a row kills
which was committed L ago (I2). A row that a failover lost is promised again L after it was put back.

`RULES` names what can be taken out. The model cannot see what lies in bytes and buffers (7, 8), nor deadlines.
"""

from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import NamedTuple

from msgspec.structs import replace

from sessions.lease import READER_VERSION, Head, Lease, Next, Reply, Unreadable
from sessions.log import _placed
from sessions.memory import Memory, Place, last_present
from sessions.model import ERA, Kind, Position, Row
from sessions.receipts import Census, Member, Open, verdict

L = 2
PAGE = 1  # rows in one reply
USER = "u"
_NOWHERE = Place(0, "")

RULES = {
    "gate": "nothing passes unless the lease is fresh (7)",
    "lease": "a lease ends (4)",
    "t0": "the lease counts from before the sending (4b)",
    "head": "applied has passed the head before a lease is granted (4b)",
    "gap": "applied moves only to a row whose previous is applied (3)",
    "registration in the reply": "a reply without the registration grants nothing (4b)",
    "registration first": "registered before the first head is read (5a)",
    "removal": "only who stood still for L is removed (5c)",
    "census after commit": "who must acknowledge is read after COMMIT (6a)",
    "length": "one L for all (6c)",
    "acknowledge after": "a row is acknowledged after it was carried out (8b)",
    "settled": "acknowledgements count only after L under one server start (6b)",
    "settled in time": "a start is settled for all only by who has renewed against it for L (6b)",
    "settled start": "what was settled under another start settles nothing (6b)",
    "settled where renewed": "only the start that was renewed against is settled (6b)",
    "floor": "below the floor memory does not judge (2c, 9b)",
    "check": "memory is asked in the block that goes live (9b)",
    "check after a refresh": "the same block after the awaits of a refresh (9c)",
    "unreadable": "a row that asks for a newer reader is not passed (1d)",
    "position": "a reading carries the position of its own statement (2b)",
    "pair and era": "a place is a seq and an id, and eras begin anew (1c, 4b)",
    "era in the place": "a place is looked for under its own era (4a)",
}


class Log:
    """The rows of a log. There are few logs, so each is one object, and states are compared by identity."""

    def __init__(self, rows: tuple[Row, ...]) -> None:
        self.rows = rows
        self.head = Place(rows[-1].seq, rows[-1].id)
        self.position = Position(rows[-1].seq, next(r.id for r in reversed(rows) if r.kind is Kind.ERA))
        self.places = [Place(row.seq, row.id) for row in rows]
        self.ids = frozenset(row.id for row in rows)

    def live(self, sid: str, born: int) -> bool:
        return not any(_kills(row, sid, born) for row in self.rows)

    def era(self, seq: int) -> str:
        return next(row.id for row in reversed(self.rows) if row.kind is Kind.ERA and row.seq <= seq)


class Server(NamedTuple):
    """PostgreSQL, as far as it matters: the log, how old each row is, who is registered, which sessions there are."""

    start: int
    log: Log
    ages: tuple[int, ...]
    registered: tuple[bool, bool]
    applied: tuple[Place, Place]
    beat: int  # ticks since a renewal of process 1 was executed
    sessions: tuple[tuple[str, int], ...]
    wrote: int = 1  # the start under which the head was written last
    settled: int = 0  # the start against which somebody has renewed for L, as the head row says


def _draft(id: str) -> Row:
    """R ends the user's sessions, B the session b, S another one; N ends b too, and asks for a newer reader."""
    sid, version = ("b" if id in "BN" else "x"), READER_VERSION + (id == "N")
    kind = Kind.USER if id == "R" else Kind.SESSION
    return Row(0, id, "", kind, 0, sid="" if id == "R" else sid, subject=USER, min_version=version)


def _kills(row: Row, sid: str, born: int) -> bool:
    return (row.kind is Kind.USER and born < row.bound) or (row.kind is Kind.SESSION and row.sid == sid)


class Copy(NamedTuple):
    """What a standby has, or a demoted primary still answers from."""

    log: Log
    registered: tuple[bool, bool]
    sessions: tuple[tuple[str, int], ...]
    settled: int = 0


class Asked(NamedTuple):
    """Process 1's lease statement on its way: not executed yet, or answered."""

    age: int
    place: Place
    era: str
    reply: int  # its number; 0 while there is none


class Granted(NamedTuple):
    """A Lease between two steps."""

    left: int
    pending: tuple[tuple[Place, int], ...]
    start: int
    since: int


class Process(NamedTuple):
    """`phase`: 0 not there, 1 registered (or, with the rule out, the head read), 2 running."""

    phase: int
    memory: int
    lease: Granted
    sockets: frozenset[tuple[str, int]]
    asked: Asked | None = None
    first: Place | None = None
    promised: frozenset[str] = frozenset()  # acknowledged, and not carried out yet (rule out)
    refreshing: "Refreshing | None" = None


class Refreshing(NamedTuple):
    """A refresh between its awaits and its last block: whose connection it was, and what was read for it."""

    was: tuple[str, int]
    token: tuple[str, int, Position]


class Receipt(NamedTuple):
    """A revocation since its COMMIT returned to process 0, or since process 1 read of it in the database (6d)."""

    row: str
    seq: int
    age: int
    acked: frozenset[int]
    census: "Taken | None" = None
    confirmed: bool = False
    by: int = 0  # the process that confirms


class Taken(NamedTuple):
    """A census. `settled`: whether the revoker had renewed against this start for L when it was taken; `by_others`:
    whether the head row said that somebody had."""

    start: int
    settled: bool
    members: tuple[tuple[int, int], ...]  # node, acknowledged seq
    there: bool
    by_others: bool = False


class State(NamedTuple):
    """Everything."""

    server: Server
    standby: Copy | None  # what a failover would bring; None when there is none to come
    old: Copy | None  # the demoted primary, which still answers reads
    processes: tuple[Process, Process]
    receipts: tuple[Receipt, ...]
    hinted: frozenset[Place]
    tokens: frozenset[tuple[str, int, Position]]
    to_revoke: tuple[str, ...]
    to_log_in: tuple[str, ...]
    before_commit: tuple[tuple[int, int], ...] | None = None  # a census from before COMMIT (rule out)


class World(NamedTuple):
    """What may happen in one walk."""

    name: str
    revoke: tuple[str, ...] = ("R",)  # see `_draft`
    sessions: tuple[str, ...] = ("a",)
    log_in: tuple[str, ...] = ()
    failovers: int = 0
    starts: bool = False  # process 1 is not there yet
    tokens: int = 1
    prunes: bool = True
    removes: bool = False  # process 1 may be taken for dead
    revoker_pauses: bool = False  # process 0 has sockets and a lease that ends
    short: bool = False  # the lease statement is executed as soon as it is sent
    confirms: bool = True  # without, only I2 is looked at
    puts_back: bool = True
    era_at_stake: bool = False  # process 1 has written S and T into an era that no standby has; somebody heard of T
    unknown: bool = False  # the standby has not heard of process 1's registration
    refreshes: bool = False  # connections of process 1 go over to another session
    finishes: bool = False  # process 1 confirms instead of 0, by what it reads in the database


class Broken(NamedTuple):
    """An invariant that does not hold, and how it came to that."""

    what: str
    history: list[str]


class Model:
    """One world with the rules in `without` taken out."""

    def __init__(self, world: World, without: frozenset[str] = frozenset()) -> None:
        self.world = world
        self.without = without
        self.states = 0
        self._memories: list[Memory] = []
        self._numbers: dict[object, int] = {}
        self._steps: dict[object, object] = {}
        self._logs: dict[tuple[Row, ...], Log] = {}
        self._rows: dict[Place, Row] = {}
        self._replies: list[Reply | None] = [None]
        self._reply_numbers: dict[object, int] = {}

    # -- walking

    def walk(self, limit: int = 2_000_000) -> Broken | None:
        """Every state that can be reached; the shortest history to one that breaks the promise, or None."""
        first = self._first()
        came: dict[State, tuple[State, str] | None] = {first: None}
        todo = deque([first])
        while todo:
            state = todo.popleft()
            for name, after in self._next(state):
                if after in came:
                    continue
                came[after] = (state, name)
                if what := self._broken(after):
                    self.states = len(came)
                    return Broken(what, _history(came, after))
                todo.append(after)
            if len(came) > limit:
                raise AssertionError(f"more than {limit} states")
        self.states = len(came)
        return None

    def _first(self) -> State:
        era = Row(ERA, "E0", "", Kind.ERA, ERA)
        place = Place(ERA, "E0")
        memory = self._number(Memory(place, "E0"))
        lease = Granted(L, (), 1, L)
        one = Process(2, memory, lease, frozenset((sid, ERA) for sid in self.world.sessions if sid != "b"))
        zero = one if self.world.revoker_pauses else one._replace(sockets=frozenset())
        if self.world.starts:
            one = Process(0, memory, Granted(0, (), 0, 0), frozenset())
        there = (True, not self.world.starts)
        settled = 1 if self._settles else 0  # long ago, before process 1 came
        sessions = tuple((sid, ERA) for sid in self.world.sessions)
        server = Server(1, self._log((era,)), (L,), there, (place, place), 0, sessions, settled=settled)
        standby = _copy(server)._replace(registered=(True, not self.world.unknown))
        if self.world.era_at_stake:
            server = self._append(server._replace(wrote=0), [_draft("S"), _draft("T")])
            for row in server.log.rows[1:]:
                one = self._carry_out(one, row, by_lease=True)
        return State(
            server,
            standby if self.world.failovers else None,
            None,
            (zero, one),
            (),
            frozenset(),
            frozenset(),
            self.world.revoke,
            self.world.log_in,
        )

    def _broken(self, state: State) -> str:
        for n, process in enumerate(state.processes):
            if process.phase != 2 or not self._open(process):
                continue
            for sid, born in process.sockets:
                for row, age in zip(state.server.log.rows, state.server.ages, strict=True):
                    if not _kills(row, sid, born):
                        continue
                    if any(r.confirmed and r.row == row.id for r in state.receipts):
                        return f"I1: process {n} writes to {sid} after {row.id} was confirmed"
                    if age >= L:
                        return f"I2: process {n} writes to {sid} although {row.id} was committed L ago"
        return ""

    def _open(self, process: Process) -> bool:
        return process.lease.left > 0 or "gate" in self.without

    # -- the steps

    def _next(self, state: State) -> Iterator[tuple[str, State]]:
        yield "tick", self._tick(state)
        yield from self._at_the_server(state)
        yield from self._revoking(state)
        if not self.world.era_at_stake:
            yield from self._returning(state)
            yield from self._confirming(state)
            yield from self._renewing_0(state)
        yield from self._putting_back(state)
        if self._settles:
            yield from self._settling(state)
        for n in (0, 1):
            if state.processes[n].phase == 2:
                yield from self._of_process(state, n)
        yield from self._renewing_1(state)
        if self.world.starts:
            yield from self._starting(state)

    def _tick(self, state: State) -> State:
        def older(n: int) -> Process:
            process = state.processes[n]
            lease = process.lease
            left = max(0, lease.left - 1)
            if "lease" in self.without or (n == 0 and not self.world.revoker_pauses):
                left = lease.left
            pending = tuple((place, left - 1) for place, left in lease.pending if left > 1)
            asked = process.asked
            if asked is not None:
                asked = asked._replace(age=min(L, asked.age + 1))
            asks = n == 0 or self.world.finishes
            since = min(L, lease.since + 1) if self._settles or (self.world.confirms and asks) else lease.since
            return process._replace(lease=Granted(left, pending, lease.start, since), asked=asked)

        def receipt(r: Receipt) -> Receipt:
            return r._replace(age=min(L, r.age + 1))

        return state._replace(
            server=self._older(state.server),
            processes=(older(0), older(1)),
            receipts=tuple(r if r.confirmed else receipt(r) for r in state.receipts),
        )

    def _older(self, server: Server) -> Server:
        beat = min(L, server.beat + 1) if self.world.removes else 0
        return server._replace(ages=tuple(min(L, age + 1) for age in server.ages), beat=beat)

    def _at_the_server(self, state: State) -> Iterator[tuple[str, State]]:
        server = state.server
        for sid in state.to_log_in:
            ready = self._begun(server)
            yield (
                f"{sid} logs in",
                state._replace(
                    server=ready._replace(sessions=(*ready.sessions, (sid, ready.log.head.seq))),
                    to_log_in=tuple(s for s in state.to_log_in if s != sid),
                ),
            )
        for source, name in ((server, "reads"), (state.old, "reads from the old primary")):
            if source is None or len(state.tokens) >= self.world.tokens:
                continue
            for sid, born in source.sessions:
                if not source.log.live(sid, born):
                    continue
                positions = {source.log.position}
                if "position" in self.without:  # one's own applied, later
                    positions = {self._memories[p.memory].position for p in state.processes if p.phase == 2}
                for position in positions:
                    token = (sid, born, position)
                    if token not in state.tokens:
                        tokens = state.tokens | {token}
                        old = state.old if len(tokens) < self.world.tokens else None
                        yield f"{sid} {name} at {_short(position)}", state._replace(tokens=tokens, old=old)
        if state.standby is not None:
            if state.standby != _copy(server) and not self.world.era_at_stake:
                yield "replicate", state._replace(standby=_copy(server))
            yield "failover", self._fail_over(state, state.standby)
        if self.world.removes and server.registered[1] and (server.beat >= L or "removal" in self.without):
            yield "1 is taken for dead", state._replace(server=server._replace(registered=(True, False)))

    def _fail_over(self, state: State, standby: Copy) -> State:
        """What the standby has is the truth now, and it gets a standby of its own if there is another failover to come.
        Rows that it lacks are promised again when they were put back."""
        server = Server(
            state.server.start + 1,
            standby.log,
            state.server.ages[: len(standby.log.rows)],
            standby.registered,
            (_NOWHERE, _NOWHERE),
            0,
            standby.sessions,
            settled=standby.settled,
        )
        return state._replace(
            server=server,
            standby=_copy(server) if server.start <= self.world.failovers else None,
            old=_copy(state.server) if len(state.tokens) < self.world.tokens else None,
            receipts=tuple(r for r in state.receipts if r.row in standby.log.ids),
        )

    def _begun(self, server: Server) -> Server:
        """1c: before a write under another start, an era."""
        if server.wrote == server.start or "pair and era" in self.without:
            return server
        return self._append(server, [])

    def _append(self, server: Server, drafts: list[Row]) -> Server:
        """As the product places them, but for the id of an era, which is not random here."""
        same = server.wrote == server.start or "pair and era" in self.without
        head, era = server.log.head, server.log.position.era
        found = {"seq": head.seq, "id": _Id(head.id), "era_id": _Id(era), "same": same}
        placed, _ = _placed(found, drafts or [Row(0, "", "", Kind.ERA, 0)])
        rows: list[Row] = []
        for row in placed if drafts else placed[:-1]:
            if row.kind is Kind.ERA:
                row = replace(row, id=f"E{server.start}")
            rows.append(replace(row, previous=rows[-1].id) if rows else row)
        log = self._log(server.log.rows + tuple(rows))
        ages = tuple(L if row.kind is Kind.ERA or row.sid == "x" else 0 for row in rows)  # of others no invariant asks
        return server._replace(log=log, ages=server.ages + ages, wrote=server.start)

    def _log(self, rows: tuple[Row, ...]) -> Log:
        self._rows.update({Place(row.seq, row.id): row for row in rows})
        return self._logs.setdefault(rows, Log(rows))

    def _revoking(self, state: State) -> Iterator[tuple[str, State]]:
        server = state.server
        for id in state.to_revoke:
            if "census after commit" in self.without and state.before_commit is None:
                members = tuple((n, ERA) for n in (0, 1) if server.registered[n])
                yield "0 takes the census", state._replace(before_commit=members)
                continue
            rest = tuple(r for r in state.to_revoke if r != id)
            yield f"{id} commits", state._replace(server=self._append(server, [_draft(id)]), to_revoke=rest)

    def _returning(self, state: State) -> Iterator[tuple[str, State]]:
        """COMMIT returns: apply here, then hint."""
        server, zero = state.server, state.processes[0]
        known = {r.row for r in state.receipts if r.by == 0}
        for row in server.log.rows:
            if row.id in known or row.id not in self.world.revoke or self._knows(zero, row.id):
                continue
            returned = self._carry_out(zero, row)
            census = None
            if state.before_commit is not None:
                census = Taken(server.start, True, state.before_commit, True)
            receipts = state.receipts
            if row.id == self.world.revoke[-1] and self.world.confirms and not self.world.finishes:
                receipts = (Receipt(row.id, row.seq, 0, frozenset({0}), census),)
            yield (
                f"{row.id}: COMMIT returns to 0",
                state._replace(
                    processes=(returned, state.processes[1]),
                    receipts=receipts,
                    hinted=state.hinted | {Place(row.seq, row.id)},
                ),
            )

    def _confirming(self, state: State) -> Iterator[tuple[str, State]]:
        """By the census that was taken, and acknowledgements since; or by one that is taken now. Who reads in the
        database that a revocation is not confirmed may do it as well: m is then when it read that (6d)."""
        if self.world.finishes and not state.receipts:
            for row in state.server.log.rows:
                if row.id == self.world.revoke[-1]:
                    read = Receipt(row.id, row.seq, 0, frozenset(), by=1)
                    yield f"{row.id}: 1 reads that it is not confirmed", state._replace(receipts=(read,))
        for receipt in state.receipts:
            if receipt.confirmed:
                continue
            now = receipt._replace(census=self._census(state, receipt))
            if receipt.census is None:
                yield f"{receipt.row}: census by {receipt.by}", state._replace(receipts=(now,))
            for taken in (receipt, now):
                start = state.processes[receipt.by].lease.start
                if taken.census is not None and (by := self._verdict(taken, start)):
                    done = Receipt(receipt.row, receipt.seq, 0, frozenset(), confirmed=True, by=receipt.by)
                    yield f"{receipt.row}: confirmed by {receipt.by}, by {by}", state._replace(receipts=(done,))
                    break

    @property
    def _settles(self) -> bool:
        """Whether anything depends on it: a census is taken under a start that not everybody has seen."""
        return bool(self.world.failovers) and self.world.confirms

    def _settling(self, state: State) -> Iterator[tuple[str, State]]:
        """6b: whoever has renewed against a start for L writes that down for all; the statement names the start."""
        server = state.server
        for n, process in enumerate(state.processes):
            lease = process.lease
            old_enough = lease.since >= L or "settled in time" in self.without
            here = lease.start == server.start or "settled where renewed" in self.without
            if process.phase == 2 and old_enough and here and server.settled != server.start:
                yield f"{n} settles the start", state._replace(server=server._replace(settled=server.start))

    def _census(self, state: State, receipt: Receipt) -> Taken:
        server, lease = state.server, state.processes[receipt.by].lease
        there = Place(receipt.seq, receipt.row) in server.log.places
        members = tuple((n, self._acknowledged(server, n)) for n in (0, 1) if server.registered[n])
        by_others = server.settled == server.start or (bool(server.settled) and "settled start" in self.without)
        return Taken(server.start, lease.start == server.start and lease.since >= L, members, there, by_others)

    def _acknowledged(self, server: Server, n: int) -> int:
        place = server.applied[n]
        return place.seq if place in server.log.places or "pair and era" in self.without else -1

    def _verdict(self, receipt: Receipt, start: int) -> str:
        key = ("verdict", receipt, start)
        if key not in self._steps:
            assert receipt.census is not None
            taken, now = receipt.census, 100.0
            open = Open(receipt.row, Position(receipt.seq, ""), 0, 0.0, now - receipt.age, {receipt.row: receipt.seq})
            open.acked = {str(n): {receipt.row} for n in receipt.acked}
            found = tuple(Member(str(n), "freeze", applied) for n, applied in taken.members)
            there = frozenset({receipt.row} if taken.there else ())
            census = Census(now, float(taken.start), L, 0.0, found, there, taken.by_others)
            held = _lease(Granted(0, (), start, L if taken.settled else 0), now)
            if "settled" in self.without:
                held.start, held.since = census.start, 0.0
            self._steps[key] = verdict(open, census, held, now)
        return str(self._steps[key])

    def _putting_back(self, state: State) -> Iterator[tuple[str, State]]:
        """4c: whoever remembers a row that is not there writes it again."""
        if state.server.start == 1 or not self.world.puts_back:
            return
        if self.world.era_at_stake and "T" not in state.server.log.ids:
            yield "T is put back", state._replace(server=self._append(state.server, [_draft("T")]))
        for n, process in enumerate(state.processes):
            if process.phase != 2 or process.lease.start != state.server.start:
                continue
            for row in self._memories[process.memory].loose():
                if row.id not in state.server.log.ids:
                    yield f"{n} puts {row.id} back", state._replace(server=self._append(state.server, [row]))
                    break

    # -- a process

    def _of_process(self, state: State, n: int) -> Iterator[tuple[str, State]]:
        process = state.processes[n]
        memory = self._memories[process.memory]
        if n == 1:
            for place in state.hinted:
                if not self._knows(process, place.id):
                    yield from self._hear(state, self._rows[place])
        if self.world.prunes and len(memory):
            pruned = self._step(process.memory, "prune", lambda m: m.prune(1e9))
            yield f"{n} prunes", _with(state, n, process._replace(memory=pruned))
        if self._open(process) and (n == 1 or self.world.revoker_pauses):
            for sid, born, position in state.tokens:
                if (sid, born) not in process.sockets and self._admits(process.memory, sid, born, position):
                    sockets = process.sockets | {(sid, born)}
                    yield f"{sid} connects to {n}", _with(state, n, process._replace(sockets=sockets))

        if n == 1 and self.world.refreshes:
            yield from self._refreshing(state)

    def _refreshing(self, state: State) -> Iterator[tuple[str, State]]:
        """9c: a connection goes over to the session of another token; it may have been closed while that was read."""
        one = state.processes[1]
        if one.refreshing is None:
            for was in one.sockets:
                for token in state.tokens:
                    begun = one._replace(refreshing=Refreshing(was, token))
                    yield f"{was[0]} begins to become {token[0]}", _with(state, 1, begun)
        elif self._open(one):
            was, (sid, born, position) = one.refreshing
            sockets = one.sockets - {was}
            admitted = "check after a refresh" in self.without or self._admits(one.memory, sid, born, position)
            if was in one.sockets and admitted:
                sockets |= {(sid, born)}
            what = f"{was[0]} becomes {sid}" if admitted else f"{was[0]} is refused"
            yield what, _with(state, 1, one._replace(sockets=sockets, refreshing=None))

    def _admits(self, memory: int, sid: str, born: int, position: Position) -> bool:
        key = ("judge", memory, sid, born, position)
        if key not in self._steps:
            found = self._memories[memory]
            if "floor" in self.without or ("pair and era" in self.without and position.seq >= found.floor.seq):
                position = found.position
            covered = found.covers(position)
            self._steps[key] = covered if "check" in self.without else found.judge(sid, USER, born, position) is None
        return bool(self._steps[key])

    def _hear(self, state: State, row: Row) -> Iterator[tuple[str, State]]:
        if row.min_version > READER_VERSION:
            return  # dropped where it is decoded (1d)
        one = state.processes[1]
        acked = tuple(
            r._replace(acked=r.acked | {1}) if (r.row, r.seq) == (row.id, row.seq) else r for r in state.receipts
        )
        if "acknowledge after" in self.without and row.id not in one.promised:
            promised = one._replace(promised=one.promised | {row.id})
            yield f"1 acknowledges the hint of {row.id}", _with(state, 1, promised)._replace(receipts=acked)
            return
        yield f"1 hears the hint of {row.id}", _with(state, 1, self._carry_out(one, row))._replace(receipts=acked)

    def _knows(self, process: Process, id: str) -> bool:
        return id in self._memories[process.memory]._known

    def _carry_out(self, process: Process, row: Row, *, by_lease: bool = False) -> Process:
        """Close, remember, advance; what is pending may be due now."""
        memory = self._step(process.memory, ("take", row, by_lease), lambda m: self._take(m, row, by_lease))
        sockets = frozenset(s for s in process.sockets if not _kills(row, *s))
        process = process._replace(memory=memory, sockets=sockets)
        return process._replace(lease=self._settled(process))

    def _take(self, memory: Memory, row: Row, by_lease: bool) -> None:
        memory.remember(row, 0.0)
        if "gap" in self.without and not memory.contains(Place(row.seq, row.id)) and row.seq > memory.applied.seq:
            memory._link(row, 0.0)
        memory.advance(row, 0.0, by_lease=by_lease)

    def _settled(self, process: Process) -> Granted:
        key = ("settle", process.memory, process.lease)
        if key not in self._steps:
            held = _lease(process.lease, 100.0)
            held.settle(self._memories[process.memory])
            self._steps[key] = _granted(held, 100.0, process.lease.left)
        found = self._steps[key]
        assert isinstance(found, Granted)
        return found

    # -- the lease

    def _renewing_0(self, state: State) -> Iterator[tuple[str, State]]:
        zero = state.processes[0]
        late = self.world.failovers and (self.world.confirms or self.world.puts_back)
        if not late and not self.world.revoker_pauses:
            return
        place, era = self._place(zero)
        server, reply = self._execute(state.server, 0, place, era)
        process, state = self._receive(state._replace(server=server), zero, reply, 0, 0)
        yield "0 renews", _with(state, 0, process)

    def _renewing_1(self, state: State) -> Iterator[tuple[str, State]]:
        one = state.processes[1]
        if one.phase != 2:
            return
        if one.asked is None:
            place, era = self._place(one)
            if self.world.short:
                server, reply = self._execute(state.server, 1, place, era)
                asked = one._replace(asked=Asked(0, _NOWHERE, "", self._reply(reply)))
                yield "1 asks", _with(state._replace(server=server), 1, asked)
            else:
                yield "1 asks", _with(state, 1, one._replace(asked=Asked(0, place, era, 0)))
        elif not one.asked.reply:
            server, reply = self._execute(state.server, 1, one.asked.place, one.asked.era)
            asked = one._replace(asked=Asked(one.asked.age, _NOWHERE, "", self._reply(reply)))
            yield "1's statement is executed", _with(state._replace(server=server), 1, asked)
        else:
            age = 0 if "t0" in self.without else one.asked.age
            answer = self._replies[one.asked.reply]
            assert answer is not None
            process, after = self._receive(state, one._replace(asked=None), answer, age, 1)
            yield "1 gets the reply", _with(after, 1, process)

    def _place(self, process: Process) -> tuple[Place, str]:
        memory = self._memories[process.memory]
        return memory.applied, memory.position.era

    def _execute(self, server: Server, n: int, place: Place, era: str) -> tuple[Server, Reply]:
        """4a."""
        log = server.log
        pair = place in log.places
        if "era in the place" not in self.without:
            pair = pair and Place(place.seq - place.seq % ERA, era) in log.places
        registered = server.registered[n] or "registration in the reply" in self.without
        reply = Reply(
            registered,
            pair or "pair and era" in self.without,
            float(server.start),
            0.0,
            Head(log.head, log.position.era, self._length(n), 0.0),
            tuple(self._brought(row, n) for row in log.rows if row.seq > place.seq)[:PAGE],
        )
        applied = (place, server.applied[1]) if n == 0 else (server.applied[0], place)
        return server._replace(applied=applied, beat=0 if n == 1 else server.beat), reply

    def _brought(self, row: Row, n: int) -> Row | Unreadable:
        """Process 0 reads one version more than 1, which with the rule out takes what it cannot read for nothing."""
        if n == 0 or row.min_version <= READER_VERSION:
            return row
        return replace(row, sid="") if "unreadable" in self.without else Unreadable(row.seq, row.min_version)

    def _reply(self, reply: Reply) -> int:
        key = (reply.registered, reply.pair, reply.start, reply.head, reply.rows)
        number = self._reply_numbers.setdefault(key, len(self._replies))
        if number == len(self._replies):
            self._replies.append(reply)
        return number

    def _length(self, n: int) -> float:
        return L + 2 if n == 1 and "length" in self.without else L

    def _receive(self, state: State, process: Process, reply: Reply, age: int, n: int) -> tuple[Process, State]:
        """4b, with the product's own Lease and Memory."""
        now = 100.0
        held = _lease(process.lease, now)
        then = held.receive(reply, sent=now - age, arrived=now)
        process = process._replace(lease=_granted(held, now, process.lease.left))
        if then is Next.REGISTER:  # 5b
            there = (True, state.server.registered[1]) if n == 0 else (state.server.registered[0], True)
            return process, state._replace(server=state.server._replace(registered=there))
        if then is Next.REWIND:  # 4c
            back = last_present(self._memories[process.memory].places(), state.server.log.places)
            back = back or self._fork(process, state.server.log)
            if back is not None:
                memory = self._step(process.memory, ("rewind", back), lambda m: m.rewind(back))
                process = process._replace(memory=memory)
            return process, state
        for row in _readable(reply):
            process = self._carry_out(process, row, by_lease=True)
        if "head" in self.without or ("pair and era" in self.without and self._reaches(process, reply)):
            process = process._replace(lease=process.lease._replace(left=max(process.lease.left, L - age)))
        return process._replace(lease=self._settled(process)), state

    def _fork(self, process: Process, log: Log) -> Place | None:
        """The last row of the newest era that both have."""
        common = next((era for era in self._memories[process.memory].eras() if era in log.places), None)
        if common is None:
            return None
        return next(p for p in reversed(log.places) if p.seq // ERA == common.seq // ERA)

    def _reaches(self, process: Process, reply: Reply) -> bool:
        """With the rule out: a number, not a pair."""
        return self._memories[process.memory].applied.seq >= reply.head.place.seq

    # -- a process that starts

    def _starting(self, state: State) -> Iterator[tuple[str, State]]:
        one, server = state.processes[1], state.server
        head = server.log.head
        register = server._replace(registered=(server.registered[0], True), beat=0)
        backwards = "registration first" in self.without
        if one.phase == 0 and not backwards:
            yield "1 registers", _with(state._replace(server=register), 1, one._replace(phase=1))
        elif one.phase == 0:
            yield "1 reads its first head", _with(state, 1, one._replace(phase=1, first=head))
        elif one.phase == 1 and not server.registered[1] and not backwards:
            yield "1 is not registered any more", _with(state, 1, one._replace(phase=0))
        elif one.phase == 1:
            first = one.first or head
            eras = [Place(row.seq, row.id) for row in server.log.rows if row.kind is Kind.ERA and row.seq <= first.seq]
            memory = self._number(Memory(first, server.log.era(first.seq), eras))
            lease = Granted(L, (), server.start, 0)
            running = one._replace(phase=2, memory=memory, lease=lease, first=None)
            what = "1 registers" if backwards else "1 reads its first head"
            told = register._replace(applied=(server.applied[0], first))
            yield what, _with(state._replace(server=told), 1, running)

    # -- interning

    def _number(self, memory: Memory) -> int:
        key = (
            memory.floor,
            memory.applied,
            tuple(row for row, _ in memory._chain),
            tuple(memory.loose()),
            tuple(sorted(memory._fitting.items())),
            tuple(sorted(memory._eras.items())),
        )
        number = self._numbers.setdefault(key, len(self._memories))
        if number == len(self._memories):
            self._memories.append(memory)
        return number

    def _step(self, number: int, what: object, do: Callable[[Memory], object]) -> int:
        key = ("memory", number, what)
        if key not in self._steps:
            memory = deepcopy(self._memories[number])
            do(memory)
            self._steps[key] = self._number(memory)
        found = self._steps[key]
        assert isinstance(found, int)
        return found


class _Id(str):
    """An id where the driver would give a UUID."""

    __slots__ = ()

    @property
    def hex(self) -> str:
        return str(self)


def _copy(server: Server) -> Copy:
    return Copy(server.log, server.registered, server.sessions, server.settled)


def _readable(reply: Reply) -> Iterator[Row]:
    """1d: up to the first that cannot be read."""
    for row in reply.rows:
        if isinstance(row, Unreadable):
            return
        yield row


def _lease(granted: Granted, now: float) -> Lease:
    lease = Lease()
    lease.fresh_until = now + granted.left
    lease.start, lease.since = float(granted.start), now - granted.since
    lease.head = Head(Place(0, ""), "", L, 0.0)
    lease._pending.extend((place, now + left) for place, left in granted.pending)
    return lease


def _granted(lease: Lease, now: float, at_least: int) -> Granted:
    pending = tuple((place, int(until - now)) for place, until in lease._pending if until > now)
    left = max(at_least, int(lease.fresh_until - now))
    return Granted(left, pending[-1:], int(lease.start), min(L, int(now - lease.since)))


def _with(state: State, n: int, process: Process) -> State:
    zero, one = state.processes
    return state._replace(processes=(process, one) if n == 0 else (zero, process))


def _short(position: Position) -> str:
    return f"{position.seq // ERA}.{position.seq % ERA}"


def _history(came: dict[State, tuple[State, str] | None], state: State) -> list[str]:
    steps = []
    while (before := came[state]) is not None:
        state, name = before
        steps.append(name)
    return steps[::-1]


WORLDS = (
    World("hints and leases", revoke=("S", "R"), tokens=0, prunes=False),
    World("connects"),
    World("the revoker pauses", revoker_pauses=True, short=True),
    World("a process starts and is taken for dead", starts=True, removes=True),
    World(
        "rows are lost",
        failovers=1,
        revoke=("S", "R"),
        tokens=0,
        prunes=False,
        short=True,
        confirms=False,
        puts_back=False,
    ),
    World("a registration is lost", failovers=1, unknown=True, tokens=0, prunes=False, short=True, puts_back=False),
    World("tokens outlive a failover", failovers=1, short=True, confirms=False),
    World("a login is lost", failovers=1, log_in=("b",), tokens=0, prunes=False, short=True, confirms=False),
    World(
        "the first head is lost",
        failovers=1,
        starts=True,
        tokens=0,
        prunes=False,
        short=True,
        confirms=False,
    ),
    World("an era is lost", era_at_stake=True, failovers=1, tokens=0, prunes=False, short=True, confirms=False),
    World("an era is lost after another", failovers=2, tokens=0, prunes=False, short=True, confirms=False),
    World("another process finishes", failovers=1, finishes=True, tokens=0, prunes=False, short=True, puts_back=False),
    World("a refresh moves into another session", revoke=("B",), sessions=("a", "b"), refreshes=True),
    World("a row is of a newer version", revoke=("S", "N"), sessions=("a", "b"), prunes=False),
)

LARGE = (
    World("tokens outlive two failovers", failovers=2, tokens=1, prunes=False, short=True, confirms=False),
    World("a login is lost twice", failovers=2, log_in=("b",), tokens=0, prunes=False, short=True, confirms=False),
)
"""Walked by hand: `python -m tests.revocation.model`."""

if __name__ == "__main__":
    for world in (*WORLDS, *LARGE):
        model = Model(world)
        print(f"{world.name}: {model.walk() or 'holds'}, {model.states:,} states", flush=True)
