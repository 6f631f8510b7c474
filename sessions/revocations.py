"""This process's part in the protocol of `docs/revocation.md`, and the only door to it for the rest of the house.

It joins the rooms beside it: `log` (SQL of the log), `acting` (who may write), `memory` (who is over since a position,
pure), `lease` (may this process go on, pure), `applier` (a row takes effect), `renewal` (the lease's connection),
`freshness`, `hints` (Redis), `registration`, `committer`, `ranges`, `receipts`. Nothing is decided here; what is
decided there is done here, in the order of the protocol: apply locally, then tell the cluster, acknowledge after (8b).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Literal, TypeVar
from uuid import UUID, uuid4

import asyncpg
import structlog

from config.clock import Clock
from config.database import Connection, Pool
from config.http import RIGHTS, Caller
from config.redis import Bus
from config.tasks import Tasks
from sessions import audit, idempotency, registration
from sessions import log as revocation_log
from sessions.acting import Actors
from sessions.applier import Applier, Closer
from sessions.committer import Committer, Deed, Order
from sessions.errors import Unavailable, translated
from sessions.freshness import Freshness
from sessions.hints import Acks, Count, Envelope, Hints
from sessions.hints import Caller as Pipe
from sessions.idempotency import Key
from sessions.log import Entry, Group, Written
from sessions.memory import Again, Memory, Place, Verdict
from sessions.model import Position, Row, Standing
from sessions.ranges import Range, Work
from sessions.receipts import NodeReceipt, Receipt, Receipts
from sessions.registration import Watch
from sessions.renewal import Renewal
from sessions.transactions import transaction

__all__ = [
    "Again",
    "Closer",
    "Deed",
    "Entry",
    "NodeReceipt",
    "Range",
    "Receipt",
    "Revocations",
    "Verdict",
    "Writing",
]

T = TypeVar("T")
log = structlog.get_logger(__name__)

SWEEP = 1.0
"""Seconds between two looks at the other processes' beats."""

PRUNE = 60.0
"""Seconds between two batches of pruning."""


class Writing:
    """One transaction of PostgreSQL that may write to the log. Lock order: subjects, sessions (by id), the head last.

    `receipt`: after the block, of what was appended; None when nothing was.
    """

    def __init__(self, connection: Connection, actor: str, now: Callable[[], float], by: Caller | None = None) -> None:
        """`by`: whose rights it acts by, to which it is held."""
        self.connection = connection
        self.receipt: Receipt | None = None
        self._now = now
        self._id = uuid4().hex
        self._actor = actor
        self._actors = Actors([by])
        self._entries: list[Entry] = []
        self._eras: list[Row] = []

    async def head(self) -> Position:
        """The head as a write must know it (1c, 2a): lock the subject first. Under another server start than the last
        writer's an era row is appended first, and the head row stays locked until the end."""
        position, era = await revocation_log.head(self.connection)
        if era is not None:
            self._eras.append(era)
        return position

    def append(self, entry: Entry) -> None:
        """Collect an entry. At the end of the block, before COMMIT: the marks on sessions and subjects are set, the
        rows are written, the head row last (1a). A USER entry for an unknown subject inserts the subject."""
        self._entries.append(entry)

    async def require_live(self, sid: str) -> None:
        """7e: hold the session's row, so that no revocation of it commits before this transaction; SessionEnded unless
        it is live, here and, where everyone's end overtakes it, at the block's end."""
        await self._actors.hold(self.connection, sid, self._now())

    async def finish(self) -> Written:
        """Write what was collected; whoever acts may still. For `Revocations.writing` alone."""
        written = Written()
        if self._entries:
            drafts = [entry.draft(self._id) for entry in self._entries]
            written = await revocation_log.write(self.connection, [Group(self._id, drafts, self._actor)])
        elif self._actors:
            await revocation_log.hold_head(self.connection)
        await self._actors.look_again(self.connection)
        self._actors.require(written.rows[0].seq if written.rows else None)
        written.rows[:0] = self._eras
        return written


class Revocations:
    """One a process.

    `connect` opens a connection of its own to the primary for the lease. `policy` "serve" never freezes (10e).
    `secrets`: the master secret, then previous ones, from which the key of hints is derived.
    """

    def __init__(
        self,
        pool: Pool,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        bus: Bus,
        pipe: Pipe,
        *,
        clock: Clock,
        node: str,
        policy: Literal["freeze", "serve"] = "freeze",
        prefix: str = "wardgate",
        secrets: Sequence[str],
    ) -> None:
        self.node = node
        self.policy = policy
        self.fresh_until = 0.0
        """boottime; the gate compares its one clock read a flush with this; inf under "serve"."""
        self._pool = pool
        self._clock = clock
        self._prefix = prefix
        self._secrets = secrets
        self._freshness = Freshness(clock, policy, lambda: self.why)
        self.on_freeze = self._freshness.on_freeze
        self.on_thaw = self._freshness.on_thaw
        self._applier = Applier(clock, self.database_now)
        self.on_closed = self._applier.on_closed
        self._hints = Hints(
            bus,
            pipe,
            node=node,
            prefix=prefix,
            on_rows=self._heard_rows,
            on_acks=self._heard_acks,
            on_change=self._probe_changed,
        )
        self._renewal = Renewal(
            connect,
            self._applier,
            clock=clock,
            node=node,
            policy=policy,
            probe_ok=lambda: self._hints.heard,
            on_reply=self._renewed,
            on_failure=self._not_renewed,
        )
        self._committer = Committer(pool, self._committed, self.database_now)
        self._receipts = Receipts(pool, lambda: self._renewal.lease, clock=clock, node=node)
        self._watch = Watch()
        self._removed = 0
        self._tasks = Tasks()
        self._server = 0.0  # the start of the one that was renewed against last
        self._putting_back: asyncio.Task[None] | None = None
        self._put_back_after = 0.0
        self._owed: dict[str, Row] = {}  # rows to put back, by id, until they are written

    async def start(self) -> None:
        """Register (5a), read the first head, and renew from now on. Raises sessions.errors.Unavailable when
        PostgreSQL is not there; Redis may be away."""
        with translated():
            await self._renewal.first()
        self._tasks.keep("revocations: lease", self._renewal.run)
        self._tasks.keep("revocations: hints", self._hints.run)
        self._tasks.keep("revocations: committer", self._committer.run)
        self._tasks.keep("revocations: receipts", self._receipts.run)
        self._tasks.keep("revocations: sweep", self._sweep)
        self._tasks.keep("revocations: prune", self._prune)

    async def close(self) -> None:
        """Freeze, stop, and remove the registration."""
        self._freshness.stop()
        self.fresh_until = self._freshness.until
        self._hints.close()
        await self._tasks.close()
        self._committer.close()
        self._receipts.close()
        await self._renewal.close()

    # -- judging: pure reads of memory, safe in a synchronous block

    def fresh(self, now: float | None = None) -> bool:
        """Whether this process may go on (I3): its lease is fresh, or its policy is "serve"."""
        return (self._clock.now() if now is None else now) < self.fresh_until

    @property
    def why(self) -> str:
        """Why this process is not fresh, "" when it is. Under "serve" also why it would be frozen."""
        if self._clock.now() < self._freshness.lease_until:
            return ""
        return self._renewal.why or "lease: over"

    @property
    def probe_ok(self) -> bool:
        """Own hints are heard through the real publish path."""
        return self._hints.heard

    def database_now(self) -> float:
        """The database's clock (unix seconds) as local clock + held offset (11)."""
        offset = self._renewal.offset.value
        return self._clock.now() + offset if offset is not None else self._clock.wall()

    @property
    def position(self) -> Position:
        """Up to where this process has applied the log."""
        return self._memory.position

    @property
    def _memory(self) -> Memory:
        if self._applier.memory is None:
            raise Unavailable("the log has not been read yet")
        return self._applier.memory

    def judge(self, sid: str, user: str, born: int, position: Position) -> Verdict:
        """9b: what memory says *now* of a session that was read at `position`. No I/O."""
        return self._memory.judge(sid, user, born, position)

    def judge_standing(self, standing: Standing) -> Verdict:
        """`judge` for what a connection or token carries."""
        return self._memory.judge(standing.sid, standing.user, standing.born, standing.position)

    def judge_key(self, api_key: str, position: Position) -> Verdict:
        """The same for an API key that was read at `position`."""
        return self._memory.judge_key(api_key, position)

    async def read_current(self, query: Callable[[Connection], Awaitable[T]]) -> T:
        """9b: run a short read on the lease's connection, right after a renewal that was granted; so what it returns is
        at or above the floor. Problem `frozen` when the lease cannot be renewed now. `query` must not keep it."""
        with translated():
            return await self._renewal.read(query)

    # -- writing

    @asynccontextmanager
    async def writing(self, *, actor: str = "") -> AsyncIterator[Writing]:
        """One transaction. After COMMIT the rows are applied here, then hinted to the others (8b).

        Raises Unavailable (nothing was done), Problem `outcome_unknown` (6d), whatever the block raises (rolled back),
        and SessionEnded or Problem `forbidden` where who acts may not any more (7e). Cancelling the caller while COMMIT
        is out does not lose the rows: they are applied all the same.
        """
        written = Written()
        async with transaction(self._pool, lambda: self._committed(written)) as connection:
            writing = Writing(connection, actor, self.database_now, RIGHTS.get())
            yield writing
            written = await writing.finish()
        for committed in written.receipts:
            writing.receipt = self._receipts.here(committed.receipt)

    @asynccontextmanager
    async def acting(self, actor: str, sid: str | None) -> AsyncIterator[Writing]:
        """The same for what asks over HTTP: it holds the session that acts, where it is no API key (7e)."""
        async with self.writing(actor=actor) as writing:
            if sid:
                await writing.require_live(sid)
            yield writing

    async def revoke(
        self,
        entry: Entry,
        *,
        actor: str = "",
        action: audit.Action | Literal[""] = "",
        target: str = "",
        wait: bool = False,
        timeout: float = 10.0,
    ) -> Receipt:
        """One entry through the committer (1e): up to 500 callers share a transaction. With `wait` until it is
        confirmed or `timeout` (s) is over. An unknown session or user is a Problem `not_found`."""
        id, _ = await self.order(entry, Deed(actor, action, target))
        return await self.confirmed(id, timeout if wait else 0.0)

    async def order(self, entry: Entry, deed: Deed, key: Key | None = None, *, known: bool = True) -> tuple[str, bool]:
        """The receipt's id, and whether it is an earlier call's (same key). `known`: 404 for what is not in the
        database."""
        return await self._committer.submit(Order(entry, deed, key, known, RIGHTS.get()))

    async def order_range(self, wanted: Range, deed: Deed, key: Key | None = None) -> tuple[str, bool]:
        """The same for many rows under one receipt."""
        work = Work(self._pool, wanted, uuid4().hex, deed, RIGHTS.get(), self._committed, self.database_now)
        await work.run(key)
        return work.receipt, work.earlier

    async def earlier(self, key: Key) -> str | None:
        """The receipt of an earlier call with this key (6d: the asking waits for the standby too)."""
        async with transaction(self._pool) as connection:
            return await idempotency.ask(connection, key)

    async def confirmed(self, receipt_id: str, timeout: float) -> Receipt:
        """The receipt once it is confirmed, or as it is after `timeout` seconds."""
        if timeout > 0:
            if self._receipts.here(receipt_id) is None:
                await self._receipts.read(receipt_id)
            await self._receipts.confirmed(receipt_id, timeout)
        here = self._receipts.here(receipt_id)
        if here is not None and (self._receipts.counted(receipt_id) or here.state == "committed"):
            return here
        found = await self.receipt(receipt_id)
        if found is None:
            raise Unavailable("the receipt is gone")
        return found

    async def receipt(self, receipt_id: str) -> Receipt | None:
        """A receipt of any process, by id."""
        try:
            id = UUID(receipt_id).hex
        except ValueError:
            return None
        try:
            return await self._receipts.read(id)
        except Unavailable:
            here = self._receipts.here(id)
            if here is None:
                raise
            return here

    # -- what follows from a row; synchronous

    def _committed(self, written: Written) -> None:
        """COMMIT has returned: this moment is m (6a). Local first, then the cluster (8b)."""
        now = self._clock.now()
        for committed in written.receipts:
            self._receipts.open(committed, now)
        for row in written.rows:
            if self._applier.take(row):
                self._receipts.moved(row)
                self._acknowledge_here(row)
        if not written.rows:
            return
        self._hints.send_rows(written.rows)
        self._settle(written.rows[-1])

    def _acknowledge_here(self, row: Row) -> None:
        tally = self._applier.tally(row.receipt)
        if tally is not None:
            place = Place(row.seq, row.id)
            self._receipts.applied_here([place], row.receipt, tally.closed, tally.applied_at)

    def _heard_rows(self, node: str, rows: Sequence[Row]) -> None:
        """3: apply on sight, even beyond a gap; acknowledge after."""
        done = [row for row in rows if self._applier.take(row)]
        counts = {}
        for row in done:
            self._receipts.moved(row)
            tally = self._applier.tally(row.receipt)
            if tally is not None:
                counts[row.receipt] = Count(row.receipt, tally.closed, tally.applied_at)
        if done:
            self._hints.acknowledge(node, [Place(row.seq, row.id) for row in done], list(counts.values()))
            self._settle(done[-1])

    def _heard_acks(self, acks: Acks) -> None:
        self._receipts.heard(acks)

    def _settle(self, row: Row) -> None:
        memory = self._applier.memory
        if memory is None:
            return
        if not memory.contains(Place(row.seq, row.id)):
            self._renewal.hurry()
        self._renewal.lease.settle(memory)
        self._grant()

    def _grant(self) -> None:
        """The attribute first: whoever is told of the thaw looks at it."""
        self._freshness.renew(self._renewal.lease.fresh_until)
        self.fresh_until = self._freshness.until
        self._freshness.check()

    def _renewed(self, lost: Sequence[Row]) -> None:
        if self._hints.envelope is None and self._renewal.chain:
            self._hints.envelope = Envelope(self._secrets, prefix=self._prefix, chain=self._renewal.chain)
        self._grant()
        if self._renewal.lease.start != self._server:
            self._served_by(self._renewal.lease.start)
        self._owed.update((row.id, row) for row in lost)
        if self._owed and not self._renewal.why:
            self._put_back()

    def _served_by(self, start: float) -> None:
        """Another server has taken over, or the same one was started again: it may have lost what it was told, and
        connections of the pool may still lead to the one before, which answers reads and takes no writes."""
        if self._server:
            log.warning("server_changed")
            self._applier.report_again()
            self._tasks.once("revocations: pool", self._pool.expire_connections())
        self._server = start

    def _not_renewed(self) -> None:
        self._watch.reset()
        self._freshness.check()

    def _probe_changed(self) -> None:
        if not self._hints.heard:
            self._renewal.hurry()

    # -- 4c: rows that a failover lost

    def _put_back(self) -> None:
        running = self._putting_back is not None and not self._putting_back.done()
        if running or self._clock.now() < self._put_back_after:
            return
        self._put_back_after = self._clock.now() + 1.0
        self._putting_back = self._tasks.once("revocations: put back", self._write_lost())

    async def _write_lost(self) -> None:
        log.critical("rows_put_back", count=len(self._owed))
        while self._owed:
            page = list(islice(self._owed.values(), 500))
            await self._write_lost_page(page)
            for row in page:
                self._owed.pop(row.id, None)

    async def _write_lost_page(self, lost: list[Row]) -> None:
        written = Written()
        async with transaction(self._pool, lambda: self._committed(written)) as connection:
            written = await revocation_log.put_back(connection, lost)

    # -- the others

    async def _sweep(self) -> None:
        """5c: remove who is dead. 6b: settle the server start, once it is old enough."""
        while True:
            await asyncio.sleep(SWEEP)
            try:
                await self._look_at_others()
            except Unavailable:
                self._watch.reset()

    async def _look_at_others(self) -> None:
        head = self._renewal.lease.head
        if head is None or not self._clock.now() < self._freshness.lease_until:
            self._watch.reset()
            return
        limit = head.lease + head.drift + registration.MARGIN
        with translated():
            async with self._pool.acquire(timeout=2.0) as connection:
                sent = self._clock.now()
                beats, start = await registration.look(connection)
                if start != self._renewal.lease.start:
                    self._watch.reset()
                    return
                dead = self._watch.look(beats, start=start, sent=sent, arrived=self._clock.now(), limit=limit)
                if self._renewal.lease.settled(sent) and not self._renewal.lease.settled_by_others:
                    await registration.settle(connection, start)
                for process in dead:
                    if process.node != self.node and await registration.remove_dead(connection, process):
                        self._removed += 1
                        log.error("process_removed", dead=process.node)

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(PRUNE)
            try:
                with translated():
                    async with self._pool.acquire(timeout=2.0) as connection:
                        await revocation_log.prune(connection)
            except Unavailable:
                continue

    # -- joining

    def add_listener(self, closer: Closer) -> None:
        """Rows are given to `closer` from now on."""
        self._applier.closers.append(closer)

    def figures(self) -> Mapping[str, float]:
        """For the metrics: names of gateway/metrics.py."""
        lease = self._renewal.lease
        memory = self._applier.memory
        return {
            "rows_applied": self._applier.applied,
            "hints_received": self._hints.received,
            "hints_rejected": self._hints.rejected,
            "lease_renewals": self._renewal.renewals,
            "lease_failures": self._renewal.failures,
            "freezes": self._freshness.freezes,
            "clock_steps": self._renewal.offset.steps,
            "background_failures": self._tasks.failures,
            "lease_age_seconds": self._clock.now() - lease.renewed_at if lease.renewed_at else 0.0,
            "applied_lag": memory.behind(lease.head.place) if lease.head is not None and memory is not None else 0,
            "frozen": float(self._freshness.frozen),
            "policy_serve": float(self.policy == "serve"),
            "redis_up": float(self._hints.heard),
            "receipts_open": len(self._receipts),
            "commits_lost": self._applier.rewinds,
            "processes_removed": self._removed,
            "log_lost": float(self._renewal.lost),
        }
