"""Receipts: when a revocation is confirmed (6a-6c), and what each node closed for it.

`Open` and `verdict` are pure. `Receipts` holds the ones that this process is confirming, reads the census of processes
after COMMIT, hears acknowledgements, writes what was confirmed, and tells whoever waits. A receipt of another process
that is not confirmed yet is adopted when somebody asks for it: any process can finish a confirmation (6d).
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import asyncpg
import msgspec
import structlog

from config.clock import Clock
from config.database import Pool
from config.http import rfc3339
from sessions.errors import translated
from sessions.hints import Acks
from sessions.lease import Lease
from sessions.log import Committed
from sessions.memory import Place
from sessions.model import ERA, Position, Row

log = structlog.get_logger(__name__)

By = Literal["", "acks", "lease"]


class NodeReceipt(msgspec.Struct, frozen=True):
    """One node's part: when it had applied the last row, and how many connections it closed for all of them."""

    node: str
    applied_at: str
    connections_closed: int


class Receipt(msgspec.Struct, frozen=True):
    """What a revocation did, as interface.md shows it. `by` is null until it is confirmed; `elapsed_ms` counts from
    COMMIT to that, or to now. `sessions` is -1 where they were too many to count in time."""

    id: str
    position: str
    state: Literal["committed", "confirmed"]
    by: Literal["acks", "lease"] | None
    sessions: int
    connections_closed: int
    nodes: tuple[NodeReceipt, ...]
    committed_at: str
    elapsed_ms: float


@dataclass(slots=True)
class Member:
    """One registered process in a census. `applied` is what it acknowledged by its lease, if the log has that place."""

    node: str
    policy: str
    applied: int


@dataclass(slots=True)
class Census:
    """Who is registered, read in one statement that was sent at `sent` (own boottime). `there`: ids of the rows asked
    for that the log has at that place. `settled`: some process has renewed against this start for L + d."""

    sent: float
    start: float
    lease: float
    drift: float
    members: tuple[Member, ...]
    there: frozenset[str]
    settled: bool = False


@dataclass(slots=True)
class Closed:
    """A node's count as far as it is known here."""

    closed: int
    applied_at: float


@dataclass(slots=True)
class Open:
    """A receipt on its way to confirmed. `committed` is the local time m at which COMMIT had returned (6a)."""

    id: str
    position: Position
    sessions: int
    committed_at: float
    committed: float
    rows: dict[str, int] = field(default_factory=dict)  # id -> seq
    complete: bool = True
    acked: dict[str, set[str]] = field(default_factory=dict)  # node -> ids that it acknowledged over Redis
    closed: dict[str, Closed] = field(default_factory=dict)
    by: By = ""
    elapsed_ms: float = 0.0
    members: tuple[str, ...] = ()  # who was registered when it was confirmed
    waiting: list[asyncio.Future[None]] = field(default_factory=list)
    told: bool = False  # whether it is confirmed and whoever waited knows

    @property
    def last(self) -> Place:
        """Its last row: whoever has applied that has applied all."""
        id = max(self.rows, key=self.rows.__getitem__)
        return Place(self.rows[id], id)

    def has_acked(self, member: Member, census: Census) -> bool:
        """Over Redis each row, or by the lease its last one: the pair (seq, id), never a seq alone."""
        if len(self.acked.get(member.node, ())) == len(self.rows):
            return True
        last = self.last
        return last.id in census.there and member.applied >= last.seq

    @property
    def counted(self) -> bool:
        """Whether the counts of all who acknowledged are known here."""
        return all(node in self.closed for node in self.members)


def verdict(open: Open, census: Census | None, lease: Lease, now: float) -> By:
    """6a-6c: by acknowledgements of all who were registered after COMMIT, or by time at m + L + d, or not yet.

    Acknowledgements count only under a server start that was renewed against for L + d when the census was taken, by
    this process or by any (6b): before that, a process whose registration a failover lost may still live on its old
    lease. A process with policy "serve" never freezes, so no time speaks for it.
    """
    if census is None or census.sent < open.committed or not open.complete:
        return ""
    silent = [member for member in census.members if not open.has_acked(member, census)]
    if not silent and census.start == lease.start and (census.settled or lease.settled(census.sent)):
        return "acks"
    over = now >= open.committed + census.lease + census.drift
    if over and not any(member.policy == "serve" for member in silent):
        return "lease"
    return ""


_CENSUS = f"""
SELECT p.node, p.policy, CASE WHEN l.seq IS NULL OR e.seq IS NULL THEN -1 ELSE p.applied_seq END AS applied,
    extract(epoch FROM pg_postmaster_start_time())::float8 AS start, h.lease_seconds, h.drift_seconds,
    h.settled_start IS NOT DISTINCT FROM pg_postmaster_start_time() AS settled,
    ARRAY(
        SELECT t.id FROM unnest($1::bigint[], $2::uuid[]) AS a (seq, id) JOIN revocation_log t USING (seq, id)
    ) AS there
FROM revocation_head h
LEFT JOIN processes p ON true
LEFT JOIN revocation_log l ON l.seq = p.applied_seq AND l.id = p.applied_id
LEFT JOIN revocation_log e ON e.seq = p.applied_seq - p.applied_seq % {ERA} AND e.id = p.applied_era
"""  # noqa: S608 - no value is put into the text

# One statement, so that no row of a node is held while this process is paused: its own renewal writes it too, in the
# same order (by receipt), and must not wait.
_CONFIRM = """
WITH counted AS (
    INSERT INTO receipt_nodes AS n (receipt, node, applied_at, connections_closed)
    SELECT receipt, node, to_timestamp(at), closed
    FROM unnest($4::uuid[], $5::text[], $6::float8[], $7::int[]) AS c (receipt, node, at, closed)
    ORDER BY receipt, node
    ON CONFLICT (receipt, node)
    DO UPDATE SET applied_at = excluded.applied_at, connections_closed = excluded.connections_closed
    WHERE n.connections_closed < excluded.connections_closed
)
UPDATE receipts r SET confirmed_by = c.by, elapsed_ms = c.elapsed
FROM unnest($1::uuid[], $2::text[], $3::float8[]) AS c (id, by, elapsed)
WHERE r.id = c.id AND r.confirmed_by IS NULL
"""

_READ = """
SELECT id, seq, era_id, sessions, rows, complete, extract(epoch FROM committed_at)::float8 AS committed_at,
    confirmed_by, elapsed_ms
FROM receipts WHERE id = $1
"""
_READ_ROWS = "SELECT seq, id FROM revocation_log WHERE receipt = $1 ORDER BY seq"
_READ_NODES = """
SELECT node, extract(epoch FROM applied_at)::float8 AS applied_at, connections_closed
FROM receipt_nodes WHERE receipt = $1
"""

LOOK_AGAIN = 0.2
"""Seconds between two censuses while something is not confirmed."""

KEEP = 60.0
"""Seconds that a confirmed receipt goes on being filled here, for whoever asks."""

STUCK = 120.0
"""Seconds after which one that is not confirmed, and that nobody waits for, is left to whoever asks for it next: a
process with policy "serve" that says nothing would hold every receipt open for ever."""


class Receipts:
    """The receipts that this process is confirming, and those it lately did."""

    def __init__(self, pool: Pool, lease: Callable[[], Lease], *, clock: Clock, node: str) -> None:
        self._pool = pool
        self._lease = lease
        self._clock = clock
        self._node = node
        self._open: dict[str, Open] = {}
        self._done: dict[str, tuple[Open, float]] = {}
        self._by_row: dict[str, Open] = {}
        self._unwritten: dict[str, Open] = {}
        self._census: Census | None = None
        self._wake = asyncio.Event()
        self._look_now = False

    def __len__(self) -> int:
        return len(self._open)

    # -- what happens to a receipt; synchronous

    def open(self, committed: Committed, at: float) -> None:
        """Its transaction has committed; COMMIT had returned at local time `at`."""
        known = self._open.get(committed.receipt)
        if known is None:
            known = Open(committed.receipt, committed.position, committed.sessions, committed.at, at)
            self._open[known.id] = known
        known.position, known.sessions, known.committed = committed.position, committed.sessions, at
        known.complete = committed.complete
        self._add_rows(known, ((row.id, row.seq) for row in committed.rows))
        self._look_now = True
        self._wake.set()

    def moved(self, row: Row) -> None:
        """A failover lost the row and someone put it back: it has another seq (4c); acks of the old one are void."""
        open = self._by_row.get(row.id)
        if open is not None and open.rows.get(row.id) != row.seq:
            open.rows[row.id] = row.seq
            for acked in open.acked.values():
                acked.discard(row.id)

    def applied_here(self, places: Iterable[Place], receipt: str, closed: int, at: float) -> None:
        """This node's own part."""
        self._acked(self._node, places)
        self._count(self._node, receipt, closed, at)

    def heard(self, acks: Acks) -> None:
        """Another node's, over Redis."""
        self._acked(acks.node, (Place(*place) for place in acks.places))
        for count in acks.counts:
            self._count(acks.node, count.receipt, count.closed, count.applied_at)

    def _acked(self, node: str, places: Iterable[Place]) -> None:
        for place in places:
            open = self._by_row.get(place.id)
            if open is not None and open.rows.get(place.id) == place.seq:
                open.acked.setdefault(node, set()).add(place.id)
                if len(open.acked[node]) == len(open.rows):
                    self._wake.set()

    def _count(self, node: str, receipt: str, closed: int, at: float) -> None:
        open = self._held(receipt)
        if open is None:
            return
        known = open.closed.get(node)
        if known is None or known.closed <= closed:
            open.closed[node] = Closed(closed, at)

    def _add_rows(self, open: Open, rows: Iterable[tuple[str, int]]) -> None:
        for id, seq in rows:
            open.rows[id] = seq
            self._by_row[id] = open

    # -- confirming

    async def run(self) -> None:
        """Confirm what is open, for ever."""
        while True:
            await self._wait()
            if self._open and self._due_for_a_look():
                await self._look()
            confirmed = self._judge()
            await self._write()  # first: whoever is told may ask another process next
            for open in confirmed:
                self._tell(open)
            self._forget()

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(LOOK_AGAIN if self._open or self._unwritten else None):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _due_for_a_look(self) -> bool:
        census = self._census
        return self._look_now or census is None or self._clock.now() - census.sent >= LOOK_AGAIN

    async def _look(self) -> None:
        """The census, in a snapshot that is newer than every COMMIT so far (6a)."""
        self._look_now = False
        places = [open.last for open in self._open.values() if open.rows]
        sent = self._clock.now()
        try:
            with translated():
                async with asyncio.timeout(2.0), self._pool.acquire() as connection:
                    sent = self._clock.now()
                    records = await connection.fetch(_CENSUS, [p.seq for p in places], [p.id for p in places])
        except Exception as error:
            log.warning("census_failed", error=f"{type(error).__name__}: {error}")
            self._census = None
            return
        if records:
            self._census = _census(records, sent)

    def _judge(self) -> list[Open]:
        """Those that are confirmed now."""
        now, confirmed = self._clock.now(), []
        for open in list(self._open.values()):
            by = verdict(open, self._census, self._lease(), now)
            if not by and now - open.committed > STUCK and not open.waiting:
                self._close(open)
            if by:
                open.by, open.elapsed_ms = by, (now - open.committed) * 1000
                open.members = tuple(member.node for member in self._census.members) if self._census else ()
                self._close(open)
                self._done[open.id] = (open, now)
                self._unwritten[open.id] = open
                confirmed.append(open)
        return confirmed

    def _close(self, open: Open) -> None:
        del self._open[open.id]
        for id in open.rows:
            self._by_row.pop(id, None)

    @staticmethod
    def _tell(open: Open) -> None:
        open.told = True
        for future in open.waiting:
            if not future.done():
                future.set_result(None)
        open.waiting.clear()

    async def _write(self) -> None:
        """What is confirmed stays so for whoever asks elsewhere, with what the nodes said that they closed. While
        PostgreSQL is away it waits here, bounded."""
        due = list(self._unwritten.values())[:1000]
        if not due:
            return
        counts = [(o.id, node, part.applied_at, part.closed) for o in due for node, part in o.closed.items()]
        try:
            with translated():
                async with asyncio.timeout(2.0), self._pool.acquire() as connection:
                    await connection.execute(
                        _CONFIRM,
                        [o.id for o in due],
                        [o.by for o in due],
                        [o.elapsed_ms for o in due],
                        *([count[n] for count in counts] for n in range(4)),
                    )
        except Exception as error:
            log.warning("receipts_not_written", count=len(self._unwritten), error=f"{type(error).__name__}: {error}")
            for open in list(self._unwritten.values())[10_000:]:
                del self._unwritten[open.id]
            return
        for open in due:
            self._unwritten.pop(open.id, None)

    def _forget(self) -> None:
        now = self._clock.now()
        while self._done:
            id = next(iter(self._done))
            if self._done[id][1] >= now - KEEP:
                break
            del self._done[id]

    # -- asking

    async def confirmed(self, id: str, timeout: float) -> None:
        """Return when it is confirmed, or after `timeout` seconds."""
        open = self._held(id)
        if open is None or open.told:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        open.waiting.append(future)
        try:
            async with asyncio.timeout(timeout):
                await future
        except TimeoutError:
            pass
        finally:
            if future in open.waiting:
                open.waiting.remove(future)

    def here(self, id: str) -> Receipt | None:
        """The receipt as this process knows it; None when it is not one of its own."""
        found = self._held(id)
        return shown(found, self._clock.now()) if found is not None else None

    def counted(self, id: str) -> bool:
        """Whether what is known here is all there is to know: reading it again would add nothing."""
        found = self._held(id)
        return found is not None and bool(found.by) and found.counted

    def _held(self, id: str) -> Open | None:
        return self._open.get(id) or (self._done[id][0] if id in self._done else None)

    async def read(self, id: str) -> Receipt | None:
        """The receipt by id, whoever made it: what PostgreSQL has, and what is known here beyond that."""
        with translated():
            async with self._pool.acquire() as connection:
                record = await connection.fetchrow(_READ, id)
                if record is None:
                    return self.here(id)
                nodes = await connection.fetch(_READ_NODES, id)
                rows = [] if record["confirmed_by"] else await connection.fetch(_READ_ROWS, id)
        found = self._known(record, rows)
        for node in nodes:
            known = found.closed.get(node["node"])
            if known is None or known.closed <= node["connections_closed"]:
                found.closed[node["node"]] = Closed(node["connections_closed"], node["applied_at"])
        return shown(found, self._clock.now())

    def _known(self, record: Any, rows: Sequence[Any]) -> Open:
        id = record["id"].hex
        held = self._held(id)
        if held is not None:
            return held
        open = Open(
            id,
            Position(record["seq"], record["era_id"].hex),
            record["sessions"],
            record["committed_at"],
            self._clock.now(),
            complete=record["complete"],
            by=record["confirmed_by"] or "",
            elapsed_ms=record["elapsed_ms"] or 0.0,
        )
        if not open.by and len(rows) == record["rows"] and open.complete:
            self._open[id] = open  # adopted: m is now, which is late and therefore safe
            self._add_rows(open, ((row["id"].hex, row["seq"]) for row in rows))
            self._look_now = True
            self._wake.set()
        return open

    def close(self) -> None:
        """Whoever waits hears nothing more."""
        for open in self._open.values():
            self._tell(open)


def shown(open: Open, now: float) -> Receipt:
    """As the API shows it, at local time `now`."""
    nodes = tuple(
        NodeReceipt(node, rfc3339(closed.applied_at), closed.closed) for node, closed in sorted(open.closed.items())
    )
    return Receipt(
        open.id,
        str(open.position),
        "confirmed" if open.by else "committed",
        open.by or None,
        open.sessions,
        sum(node.connections_closed for node in nodes),
        nodes,
        rfc3339(open.committed_at),
        round(open.elapsed_ms if open.by else (now - open.committed) * 1000, 3),
    )


def _census(records: Sequence[asyncpg.Record], sent: float) -> Census:
    first = records[0]
    members = tuple(Member(r["node"], r["policy"], r["applied"]) for r in records if r["node"] is not None)
    there = frozenset(id.hex for id in first["there"])
    return Census(
        sent, first["start"], first["lease_seconds"], first["drift_seconds"], members, there, first["settled"]
    )
