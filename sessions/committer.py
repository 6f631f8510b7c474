"""Group commit (1e): whoever wants one entry written waits here, and one transaction takes all that wait, up to 500.

The head's lock then costs one fsync a batch. One bad entry does not fail its batch: what is wrong with it is found
before anything is written, and where the server finds it, the entries are tried again one by one. What follows the
commit (apply, hint, receipts) is the caller's `then`.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from uuid import uuid4

import asyncpg
import msgspec

from config.database import Connection, Pool
from config.http import Caller, Problem
from sessions import audit, idempotency
from sessions.acting import Actors
from sessions.errors import SessionEnded, Unavailable
from sessions.idempotency import Key
from sessions.log import Entry, Group, Written, write
from sessions.model import Kind
from sessions.transactions import OutcomeUnknown, transaction

MOST = 500
"""Entries in one transaction."""

WAITING = 20_000
"""Entries that may wait; beyond them a caller is told to come again."""

_THERE = """
SELECT 1 AS kind, sid AS id FROM sessions WHERE sid = ANY($1::text[])
UNION ALL SELECT 2, id FROM subjects WHERE id = ANY($2::text[])
"""


class Deed(msgspec.Struct, frozen=True):
    """Who did it, for the audit. No row is written without an `action`."""

    actor: str = ""
    action: audit.Action | Literal[""] = ""
    target: str = ""
    sid: str = ""
    address: str = ""
    detail: dict[str, Any] = {}
    personal: dict[str, Any] = {}


@dataclass(slots=True, eq=False)
class Order:
    """One entry that somebody waits for. `known`: its session or user must be in the database, else 404. `by`: by whose
    rights.

    The future's result is the receipt's id and whether it is an earlier call's (same Idempotency-Key).
    """

    entry: Entry
    deed: Deed
    key: Key | None = None
    known: bool = True
    by: Caller | None = None
    receipt: str = field(default_factory=lambda: uuid4().hex)
    done: "asyncio.Future[tuple[str, bool]]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def refuse(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def answer(self, receipt: str, *, earlier: bool) -> None:
        if not self.done.done():
            self.done.set_result((receipt, earlier))


class _Overtaken(Exception):
    """Who acts had lost that before the batch had the head: nothing of it is done. By receipt."""

    def __init__(self, refusals: dict[str, Problem]) -> None:
        self.refusals = refusals


class Committer:
    """One a process. `then(written)` runs right after each COMMIT, before anybody who waits is told. `now`: the
    database's clock as it is held here."""

    def __init__(self, pool: Pool, then: Callable[[Written], None], now: Callable[[], float]) -> None:
        self._pool = pool
        self._then = then
        self._now = now
        self._waiting: deque[Order] = deque()
        self._wake = asyncio.Event()

    async def submit(self, order: Order) -> tuple[str, bool]:
        """Wait until it is committed. Raises Problem: not_found, idempotency_conflict, unavailable, outcome_unknown;
        SessionEnded where the session that acts is over (7e)."""
        if len(self._waiting) >= WAITING:
            raise Problem("busy", retry_after=1)
        self._waiting.append(order)
        self._wake.set()
        return await order.done

    async def run(self) -> None:
        """Commit for ever."""
        while True:
            while not self._waiting:
                self._wake.clear()
                await self._wake.wait()
            await self._commit(self._batch())

    def close(self) -> None:
        """Whoever waits still is refused."""
        while self._waiting:
            self._waiting.popleft().refuse(Unavailable("this process ends"))

    def _batch(self) -> list[Order]:
        """What waits, in order; a key that stands in it already waits for the next one."""
        batch: list[Order] = []
        names: set[tuple[str, str]] = set()
        later: list[Order] = []
        while self._waiting and len(batch) < MOST:
            order = self._waiting.popleft()
            if order.done.done():
                continue  # its caller has gone before anything was begun
            if order.key is not None and order.key.name in names:
                later.append(order)
                continue
            if order.key is not None:
                names.add(order.key.name)
            batch.append(order)
        self._waiting.extendleft(reversed(later))
        return batch

    async def _commit(self, batch: Sequence[Order]) -> None:
        try:
            await self._transact(batch)
        except asyncio.CancelledError:
            self._refuse(batch, OutcomeUnknown())
            raise
        except _Overtaken as overtaken:
            for order in batch:
                if order.receipt in overtaken.refusals:
                    order.refuse(overtaken.refusals[order.receipt])
            if rest := [order for order in batch if order.receipt not in overtaken.refusals]:
                await self._commit(rest)
        except asyncpg.PostgresError as error:  # of a statement: nothing was committed
            if len(batch) == 1:
                self._refuse(batch, _told(error))
                return
            for order in batch:
                await self._commit([order])
        except Exception as error:  # perhaps after COMMIT: never a second time
            self._refuse(batch, error)

    @staticmethod
    def _refuse(batch: Sequence[Order], error: Exception) -> None:
        for order in batch:
            order.refuse(error)

    async def _transact(self, batch: Sequence[Order]) -> None:
        written = Written()
        earlier: dict[str, str] = {}
        going: list[Order] = []

        def then() -> None:
            self._then(written)
            for order in going:
                order.answer(order.receipt, earlier=False)
            for order in batch:
                if earlier.get(order.receipt):
                    order.answer(earlier[order.receipt], earlier=True)

        async with transaction(self._pool, then) as connection:
            sids = {o.deed.sid for o in batch if o.deed.sid}
            actors = await Actors.read(connection, sids, self._now(), [o.by for o in batch])
            there = await _there(connection, batch)
            found = [o for o in batch if actors.ended(o.deed.sid) is None and _is_there(o, there)]
            earlier.update(await idempotency.claim(connection, {o.receipt: o.key for o in found if o.key}))
            going.extend(order for order in found if order.receipt not in earlier)
            await record(connection, [(order.deed, order.receipt) for order in going])
            if going:
                groups = [Group(o.receipt, [o.entry.draft(o.receipt)], o.deed.actor) for o in going]
                written = await write(connection, groups)
                await actors.look_again(connection)
                if overtaken := _overtaken(actors, going, written):
                    raise _Overtaken(overtaken)
        for order in batch:
            if (ended := actors.ended(order.deed.sid)) is not None:
                order.refuse(SessionEnded(ended))
            elif not _is_there(order, there):
                order.refuse(Problem("not_found"))
            elif earlier.get(order.receipt) == "":
                order.refuse(idempotency.conflict())


def _overtaken(actors: Actors, orders: Sequence[Order], written: Written) -> dict[str, Problem]:
    """Who lost what they act by to a row before their own, by receipt."""
    places = {row.receipt: row.seq for row in reversed(written.rows)}
    found = {o.receipt: actors.refusal(o.deed.sid, o.by, places[o.receipt]) for o in orders}
    return {receipt: refusal for receipt, refusal in found.items() if refusal is not None}


async def record(connection: Connection, deeds: Sequence[tuple[Deed, str]]) -> None:
    """The audit rows of revocations, each a deed and its receipt, in their transaction."""
    await audit.append_all(
        connection,
        [
            (d.action, d.actor, d.target, d.sid, d.address, {**d.detail, "receipt": receipt}, d.personal)
            for d, receipt in deeds
            if d.action
        ],
    )


async def _there(connection: Connection, batch: Sequence[Order]) -> set[tuple[int, str]]:
    """Which of the sessions and users that must be known are, as (kind, id)."""
    asked = [order.entry for order in batch if order.known]
    sids = [entry.sid for entry in asked if entry.kind is Kind.SESSION]
    users = [entry.subject for entry in asked if entry.kind is Kind.USER]
    if not sids and not users:
        return set()
    return {(record["kind"], record["id"]) for record in await connection.fetch(_THERE, sids, users)}


def _is_there(order: Order, there: set[tuple[int, str]]) -> bool:
    entry = order.entry
    if not order.known or entry.kind not in (Kind.SESSION, Kind.USER):
        return True
    return (entry.kind, entry.sid if entry.kind is Kind.SESSION else entry.subject) in there


def _told(error: Exception) -> Exception:
    """What the server refused in one entry is the caller's mistake, or ours; never that the database is away."""
    if isinstance(error, asyncpg.DataError | asyncpg.IntegrityConstraintViolationError):
        return Problem("invalid", str(error).splitlines()[0])
    return error
