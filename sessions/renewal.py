"""The lease's own connection: one statement a second that acknowledges, asks and brings the rows (4a), and its loop.

One task owns the connection: it registers, renews, goes back after a failover, and runs the short reads of 9b between
two renewals. What a reply means is decided in `lease` and `memory`; here it is carried out. A failure ends the
connection, and it is made again with a growing pause: nothing spins.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg
import structlog

from config.clock import Clock
from config.database import Connection
from config.http import Problem
from sessions import registration
from sessions.applier import Applier
from sessions.lease import Head, Lease, Next, Offset, Reply, later
from sessions.log import COLUMNS, row_of
from sessions.memory import ERAS, Memory, Place, last_present
from sessions.model import ERA, Kind, Row

log = structlog.get_logger(__name__)
T = TypeVar("T")

PAGE = 1_000
"""Rows in one reply; when there are more, the next renewal follows at once."""

_RENEW = f"""
WITH beat AS (
    UPDATE processes
    SET applied_seq = $2, applied_id = $3, applied_era = $4, beat = $5, renewed_at = clock_timestamp()
    WHERE node = $1 RETURNING node
), counted AS (
    INSERT INTO receipt_nodes (receipt, node, applied_at, connections_closed)
    SELECT receipt, $1, to_timestamp(at), closed
    FROM unnest($6::uuid[], $7::float8[], $8::int[]) AS c (receipt, at, closed)
    ORDER BY receipt
    ON CONFLICT (receipt, node)
    DO UPDATE SET applied_at = excluded.applied_at, connections_closed = excluded.connections_closed
)
SELECT EXISTS (SELECT FROM beat) AS registered,
    $2::bigint IS NULL OR (
        EXISTS (SELECT FROM revocation_log WHERE seq = $2 AND id = $3::uuid)
        AND EXISTS (SELECT FROM revocation_log WHERE seq = $2 - $2 % {ERA} AND id = $4::uuid)
    ) AS pair,
    extract(epoch FROM pg_postmaster_start_time())::float8 AS start,
    extract(epoch FROM clock_timestamp())::float8 AS now,
    h.seq AS head_seq, h.id AS head_id, h.era_id, h.lease_seconds, h.drift_seconds, h.protocol_version, h.chain,
    h.settled_start IS NOT DISTINCT FROM pg_postmaster_start_time() AS settled,
    database_origin() AS origin, h.origin AS vouched,
    (SELECT seq FROM revocation_log WHERE id = h.decided) AS decided_seq, h.decided,
    {COLUMNS}
FROM revocation_head h
LEFT JOIN LATERAL (SELECT * FROM revocation_log WHERE seq > $2 ORDER BY seq LIMIT {PAGE}) l ON true
ORDER BY l.seq
"""  # noqa: S608 - no value is put into the text

_WHICH = f"""
SELECT l.seq, l.id FROM unnest($1::bigint[], $2::uuid[], $3::uuid[]) AS p (seq, id, era)
JOIN revocation_log l USING (seq, id) JOIN revocation_log e ON e.seq = p.seq - p.seq % {ERA} AND e.id = p.era
"""  # noqa: S608 - no value is put into the text

_ERAS = f"""
SELECT l.seq, l.id, extract(epoch FROM pg_postmaster_start_time())::float8 AS start
FROM revocation_log l WHERE l.kind = {Kind.ERA:d} AND l.seq <= $1 ORDER BY l.seq DESC LIMIT {ERAS}
"""  # noqa: S608 - no value is put into the text

# An era is written under one server start, and a server that lost rows begins another: what it has of an era that it
# shares with us is the beginning of what we had.
_FORK = f"""
SELECT l.seq, l.id FROM unnest($1::bigint[], $2::uuid[]) AS k (seq, id) JOIN revocation_log e USING (seq, id)
CROSS JOIN LATERAL (
    SELECT seq, id FROM revocation_log WHERE seq BETWEEN e.seq AND e.seq + {ERA - 1} ORDER BY seq DESC LIMIT 1
) l
ORDER BY e.seq DESC LIMIT 1
"""  # noqa: S608 - no value is put into the text

LOST = "lost: the database has no row of the log that this process remembers"
UNVOUCHED = "lost: the database may have been put back to an older state, and no process remembers the log (restore)"

_SOON = 0.05  # after a renewal that brought news, so that it is acknowledged
_SHORTEST = 0.02
_LONGEST_PAUSE = 1.0


class Renewal:
    """Renews the lease for ever. `on_reply(lost)` runs after every reply that was carried out: `lost` are rows to put
    back (4c). `on_failure` runs when a renewal failed."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        applier: Applier,
        *,
        clock: Clock,
        node: str,
        policy: str,
        probe_ok: Callable[[], bool],
        on_reply: Callable[[Sequence[Row]], None],
        on_failure: Callable[[], None],
    ) -> None:
        self.lease = Lease()
        self.offset = Offset()
        self.why = "starting"
        self.renewals = 0
        self.failures = 0
        self.chain = ""
        self.lost = False  # 4d: this process remembers what the database does not have
        self._doubted = False
        self._forgotten: list[Row] = []  # what was remembered before this process began anew
        self._open = connect
        self._applier = applier
        self._clock = clock
        self._node = node
        self._policy = policy
        self._probe_ok = probe_ok
        self._on_reply = on_reply
        self._on_failure = on_failure
        self._connection: asyncpg.Connection | None = None
        self._registered = False
        self._beat = 0
        self._wake = asyncio.Event()
        self._reads: list[tuple[Callable[[Connection], Awaitable[Any]], asyncio.Future[Any]]] = []

    @property
    def patience(self) -> float:
        """Seconds that one exchange with PostgreSQL may take."""
        length = self.lease.head.lease if self.lease.head is not None else 5.0
        return max(0.1, min(2.0, 0.4 * length))

    def hurry(self) -> None:
        """Renew now: something beyond `applied` is known to be there."""
        self._wake.set()

    async def read(self, query: Callable[[Connection], Awaitable[T]]) -> T:
        """9b: `query` on the lease's connection, right after a renewal that was granted. Problem `frozen` otherwise."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._reads.append((query, future))
        self.hurry()
        try:
            async with asyncio.timeout(2 * self.patience):
                return await future
        except TimeoutError:
            raise Problem("frozen", self.why, retry_after=1) from None

    async def first(self) -> None:
        """The first renewal; raises what the driver raises."""
        await self._renew()

    async def run(self) -> None:
        """Renew for ever."""
        pause = self._pause(news=0, behind=False)
        failed = 0
        while True:
            await self._rest(pause)
            try:
                pause = await self._renew()
                failed = 0
            except Exception as error:
                self._failed(error)
                failed += 1
                await asyncio.sleep(random.uniform(0.5, 1.0) * min(0.05 * 2**failed, _LONGEST_PAUSE))  # noqa: S311
                pause = 0.0

    async def close(self) -> None:
        """Take the registration back, if PostgreSQL is there, and end the connection."""
        connection, self._connection = self._connection, None
        for _, future in self._reads:
            future.cancel()
        if connection is None:
            return
        try:
            async with asyncio.timeout(self.patience):
                await registration.remove(connection, self._node)
                await connection.close()
        except Exception:
            connection.terminate()

    # -- one renewal

    async def _renew(self) -> float:
        """One renewal and what follows from it; the pause until the next."""
        connection = await self._connected()
        if not self._registered:
            await self._patiently(registration.register(connection, self._node, self._policy))
            self._registered = True
        counts = self._applier.unreported()
        self._beat += 1
        sent = self._clock.now()  # t0: before sending, on the clock that counts suspend (4b)
        records = await self._patiently(connection.fetch(_RENEW, *self._arguments(counts)))
        arrived = self._clock.now()
        self._applier.reported(counts)
        reply = _reply(records)
        steps = self.offset.steps
        self.offset.sample(reply.now, sent=sent, arrived=arrived)
        if self.offset.steps > steps:
            log.error("clock_step", seconds=round(self.offset.found - (self.offset.value or 0.0), 3))
        self.chain = reply.head.chain
        self.renewals += 1
        pause = await self._carry_out(connection, reply, sent, arrived)
        if self.lease.fresh_until > self._clock.now() and not self.why:
            await self._read_all(connection)
        return pause

    async def _connected(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            self._connection = await self._patiently(self._open())
        return self._connection

    async def _patiently(self, work: Awaitable[T]) -> T:
        async with asyncio.timeout(self.patience):
            return await work

    def _arguments(self, counts: Sequence[tuple[str, Any, int]]) -> tuple[Any, ...]:
        memory = self._applier.memory
        seq, id = memory.applied if memory is not None else (None, None)
        era = memory.position.era if memory is not None else None
        return (
            self._node,
            seq,
            id,
            era,
            self._beat,
            [receipt for receipt, _, _ in counts],
            [tally.applied_at for _, tally, _ in counts],
            [tally.closed for _, tally, _ in counts],
        )

    async def _carry_out(self, connection: Connection, reply: Reply, sent: float, arrived: float) -> float:
        match self.lease.receive(reply, sent=sent, arrived=arrived):
            case Next.REGISTER:
                self.why, self._registered = "lease: the registration is gone", False
                self._on_reply(())
                return _SOON
            case Next.REWIND:
                if await self._go_back(connection):
                    self.lease.went_back = reply.start
                    self.lost, self.why = False, ""
                    self._on_reply(())
                    return _SOON
                await self._doubt(connection, reply.head)
                return self._pause(news=0, behind=False)
            case Next.DOUBT:
                await self._doubt(connection, reply.head)
                self._hang_up()  # perhaps the next one leads to the primary
                return self._pause(news=0, behind=False)
            case Next.WAIT:
                self.why = UNVOUCHED
                self._on_reply(())
                return self._pause(news=0, behind=False)
            case Next.REFUSE:
                self.why = f"the cluster speaks protocol version {reply.head.version}"
                self._on_reply(())
                return self._pause(news=0, behind=False)
            case Next.APPLY:
                await self._begin(connection, reply)
                pause = self._apply(reply, sent)
                await self._vouch(connection, reply.head)
                return pause

    async def _begin(self, connection: Connection, reply: Reply) -> None:
        """Memory starts at the first head, and knows the eras before it."""
        if self._applier.memory is not None:
            return
        found = await self._patiently(connection.fetch(_ERAS, reply.head.place.seq))
        if any(record["start"] != reply.start for record in found):
            raise ConnectionError("the server was changed in between")
        eras = [Place(record["seq"], record["id"].hex) for record in found]
        self._applier.memory = Memory(reply.head.place, reply.head.era_id, eras)

    def _apply(self, reply: Reply, sent: float) -> float:
        applier = self._applier
        assert applier.memory is not None  # noqa: S101 - it has begun
        news = applier.take_all(reply.rows)
        self.lease.settle(applier.memory)
        applier.prune()
        there = applier.memory.contains(reply.head.place)
        self.lost = self._doubted = False
        self.why = "" if there else applier.blocked or "lease: behind the log"
        lost: list[Row] = []
        if there:
            lost, self._forgotten = self._forgotten + applier.memory.lost(sent), []
        self._on_reply(lost)
        return self._pause(news=news, behind=len(reply.rows) == PAGE and not applier.blocked)

    async def _go_back(self, connection: Connection) -> bool:
        """4c: to the newest place that the server still has. False: there is none."""
        memory = self._applier.memory
        assert memory is not None  # noqa: S101 - a pair was sent
        places = memory.places()
        for n in range(0, len(places), PAGE):
            page = places[n : n + PAGE]
            eras = [memory.era_at(p.seq) for p in page]
            found = await self._patiently(connection.fetch(_WHICH, [p.seq for p in page], [p.id for p in page], eras))
            place = last_present(page, [Place(r["seq"], r["id"].hex) for r in found])
            if place is not None:
                self._applier.rewind(place)
                return True
        return False

    async def _doubt(self, connection: Connection, head: Head) -> None:
        """4d: without a common row this process stays frozen until somebody vouches for what the database has. Then it
        goes on from before its floor, or begins anew, as one that was just started. The head row stops to vouch for
        it, so that no other starts. An operator who has decided meanwhile, while this process was away, vouches."""
        memory = self._applier.memory
        decided = head.decided is not None and memory is not None and memory.predates(head.decided)
        if head.vouched == head.origin and (self._doubted or decided or later(head.origin, self.lease.origin)):
            forked = await self._fork(connection)
            if not forked:
                self._forgotten += self._applier.begin_anew()
            self.lost = self._doubted = False
            self.lease.origin, self.why = "", "" if forked else "lease: begins anew"
            self._on_reply(())
            return
        if not self.lost:
            assert memory is not None  # noqa: S101 - a pair was sent
            log.critical("log_lost", floor=memory.floor.seq)
        self.lost, self.why = True, LOST
        self._on_reply(())
        if head.vouched == head.origin:
            await self._patiently(registration.doubt(connection, head.origin))
        self._doubted = True

    async def _fork(self, connection: Connection) -> bool:
        """4c: to the last row before the floor that the server has, if both know of a common era."""
        memory = self._applier.memory
        assert memory is not None  # noqa: S101 - a pair was sent
        known = memory.eras()
        found = await self._patiently(connection.fetch(_FORK, [e.seq for e in known], [e.id for e in known]))
        if not found or found[0]["seq"] >= memory.floor.seq:
            return False
        self._applier.rewind(Place(found[0]["seq"], found[0]["id"].hex))
        return True

    async def _vouch(self, connection: Connection, head: Head) -> None:
        """4d: whoever remembers, and has put back what was lost, says that this database may be served from."""
        memory = self._applier.memory
        if head.vouched != head.origin and not self.why and memory is not None and not memory.loose():
            await self._patiently(registration.vouch(connection, head.vouched, head.origin))
            if head.vouched:
                log.warning("database_changed", before=head.vouched, now=head.origin)

    async def _read_all(self, connection: Connection) -> None:
        """The reads that wait, as far as a fifth of the lease goes."""
        until = self._clock.now() + self.patience / 2
        while self._reads and self._clock.now() < until:
            query, future = self._reads.pop(0)
            if future.done():
                continue
            try:
                result = await self._patiently(query(connection))
            except asyncio.CancelledError:
                future.cancel()
                raise
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
                if isinstance(error, OSError | asyncpg.InterfaceError) or connection.is_closed():
                    raise
            else:
                if not future.done():
                    future.set_result(result)
        if self._reads:
            self.hurry()

    # -- pace

    def _pause(self, *, news: int, behind: bool) -> float:
        pause = self.lease.pause(probe_ok=self._probe_ok(), behind=behind)
        return min(pause, _SOON) if news else pause

    async def _rest(self, pause: float) -> None:
        await asyncio.sleep(min(pause, _SHORTEST))
        if pause > _SHORTEST:
            try:
                async with asyncio.timeout(pause - _SHORTEST):
                    await self._wake.wait()
            except TimeoutError:
                pass
        self._wake.clear()

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if not self.why.startswith("lease: renewal failed"):
            log.warning("lease_renewal_failed", error=f"{type(error).__name__}: {error}")
        self.why = f"lease: renewal failed ({type(error).__name__})"
        self._hang_up()
        self._on_failure()

    def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


def _reply(records: Sequence[Any]) -> Reply:
    if not records:
        raise ConnectionError("the log has no head")
    first = records[0]
    head = Head(
        Place(first["head_seq"], first["head_id"].hex),
        first["era_id"].hex,
        first["lease_seconds"],
        first["drift_seconds"],
        first["protocol_version"],
        first["chain"].hex,
        first["settled"],
        first["origin"],
        first["vouched"] or "",
        Place(first["decided_seq"], first["decided"].hex) if first["decided_seq"] is not None else None,
    )
    rows = tuple(row_of(record) for record in records if record["seq"] is not None)
    return Reply(first["registered"], first["pair"], first["start"], first["now"], head, rows)
