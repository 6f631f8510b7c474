"""The audit's chain: rows are sealed in batches, so that one who writes to the database cannot change what was done.

A row is not sealed in its own transaction; a trigger notes it in `audit_unsealed`, and a job seals what stands there,
whenever it was committed. A batch holds for each of its rows

    member = at (us, 8) | id (8) | HMAC(key, address) (16) | SHA-256(all columns, with that HMAC for the address) (32)
    digest = SHA-256(digest of the batch before | number | sealed_at (us) | members)

and its `key`, random and its own, is sealed by sessions.secret_key for this number and digest (`config.sealing`: the
tag of AES-GCM is the proof). An address may be blanked: the chain needs only its HMAC. So may what is `personal`: of
that `detail` has a hash (`audit.commitment`). When months are pruned, a sealed
anchor says with which batch the chain begins, and before which time rows may be gone.

What no chain can show by itself is that its end was cut off. Each seal logs the new head; `verify` takes one that was
seen before.
"""

import asyncio
import hashlib
import hmac
import os
import struct
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec
import structlog

from config.database import Connection, Pool
from config.jobs import Job, Jobs, Kind
from config.sealing import Sealer, Unsealable
from config.settings import Sessions as Policy
from config.tasks import Tasks
from sessions import audit

JOB: Final = "audit.seal"
EVERY: Final = 60.0
"""Seconds between two runs of the job."""
AT_ONCE: Final = 2000
"""Rows of a batch, at most."""
RENEWED_AT_ONCE: Final = 1000
LOOKED_EVERY: Final = 15.0

_BATCHES_AT_ONCE = 20
_MEMBER = struct.Struct(">qq16s32s")
_NO_ROW = bytes(32)
_BEGINNING = bytes(32)
_AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)

log = structlog.get_logger(__name__)


class Member(NamedTuple):
    """A row as a batch holds it. `digest` is all zeros for one that was gone before it could be sealed."""

    at_us: int
    id: int
    address: bytes
    digest: bytes

    @property
    def name(self) -> str:
        return f"row {self.id} of {_time(self.at_us)}"


class Anchor(msgspec.Struct, frozen=True):
    """Where the chain begins: with batch `first`, after the digest `previous`. Rows from before `cut` (us) may be
    gone."""

    first: int = 1
    previous: bytes = _BEGINNING
    cut: int = 0


class Head(NamedTuple):
    """The last batch. As text: `number.digest`."""

    number: int
    digest: bytes

    def __str__(self) -> str:
        return f"{self.number}.{self.digest.hex()}"


class Verdict(msgspec.Struct, frozen=True):
    """What `verify` found. `broken` names the first place; "" when the chain is whole. `blanked`: rows whose address or
    personal words are no longer there."""

    broken: str
    batches: int
    rows: int
    blanked: int
    unsealed: int
    begins: int
    head: str


class _Broken(Exception):
    """The chain is, here."""


def sealer(policy: Policy) -> Sealer:
    """Seals batches with today's secret, and knows those of the ones before."""
    return Sealer.of(policy, "audit chain")


def read_head(text: str) -> Head:
    """ValueError for what is not the text of a Head."""
    number, _, digest = text.partition(".")
    head = Head(int(number), bytes.fromhex(digest))
    if not 1 <= head.number < 2**63 or len(head.digest) != 32:
        raise ValueError(text)
    return head


# -- the job


class Chain:
    """Seals what is there to seal. Its kind is added to `jobs`: one process in the cluster does it."""

    def __init__(self, pool: Pool, jobs: Jobs, sealer: Sealer) -> None:
        self._pool, self._sealer = pool, sealer
        self._renewed = False
        self._unsealed = 0.0
        self._tasks = Tasks()
        jobs.add(JOB, Kind(self._seal, every=EVERY))

    async def start(self) -> None:
        self._tasks.keep("audit: look for rows to seal", self._look)

    async def close(self) -> None:
        await self._tasks.close()

    def figures(self) -> Mapping[str, float]:
        """For the metrics: names of gateway/metrics.py."""
        return {"audit_unsealed_seconds": self._unsealed, "background_failures": self._tasks.failures}

    async def _look(self) -> None:
        while True:
            try:
                self._unsealed = await self._pool.fetchval(_AGE)
            except _AWAY as error:
                log.warning("audit_not_looked_at", error=type(error).__name__)
            await asyncio.sleep(LOOKED_EVERY)

    async def _seal(self, _job: Job) -> None:
        async with self._pool.acquire() as connection:
            if not self._renewed:
                await renew(connection, self._sealer)
                self._renewed = True
            while await seal(connection, self._sealer) == AT_ONCE:
                pass


_AGE = "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8 FROM audit_unsealed"


async def seal(connection: Connection, sealer: Sealer) -> int:
    """Seal what is committed and not sealed, at most AT_ONCE rows, as one batch; how many these were."""
    async with connection.transaction():
        await connection.execute(_ALONE)
        taken = await connection.fetch(_TAKE, AT_ONCE)
        if not taken:
            return 0
        places = sorted((record["at_us"], record["id"]) for record in taken)
        key = os.urandom(32)
        rows = await _rows(connection, places)
        members = [
            Member(*place, *(_digests(key, row) if row is not None else (bytes(16), _NO_ROW)))
            for place, row in zip(places, rows, strict=True)
        ]
        before = await _head(connection)
        packed = b"".join(_MEMBER.pack(*member) for member in members)
        now: int = await connection.fetchval(_NOW)
        head = Head(before.number + 1, _digest(before.digest, before.number + 1, now, packed))
        sealed = sealer.seal(key, _about(head))
        await connection.execute(_ADD, head.number, now, places[-1][0], packed, head.digest, sealed)
    log.info("audit_sealed", rows=len(members), head=str(head))
    return len(members)


async def renew(connection: Connection, sealer: Sealer) -> None:
    """Seal with today's secret what an earlier one sealed, so that it may be forgotten. What none of our secrets opens
    stays as it is, for `verify` to find."""
    async with connection.transaction():
        sealed = await connection.fetchval("SELECT sealed FROM audit_anchor FOR UPDATE")
        if sealed is not None and (again := _again(sealer, sealed, _ANCHOR)):
            await connection.execute(_SET_ANCHOR, again)
    number = 0
    while records := await connection.fetch(_SEALED, number, RENEWED_AT_ONCE):
        number = records[-1]["number"]
        sealed_again = [
            (r["number"], _again(sealer, r["sealed"], _about(Head(r["number"], r["digest"])))) for r in records
        ]
        changed = [(number, sealed) for number, sealed in sealed_again if sealed is not None]
        if changed:
            await connection.execute(_RENEW, [number for number, _ in changed], [sealed for _, sealed in changed])


def _again(sealer: Sealer, sealed: bytes, about: str) -> bytes | None:
    """Sealed with today's secret; None where it is that already, or must stay as it is."""
    if sealer.current(sealed):
        return None
    try:
        return sealer.seal(sealer.open(sealed, about), about)
    except Unsealable as error:
        log.error("audit_seal_unknown", about=about, error=str(error))
        return None


async def prune(connection: Connection, sealer: Sealer, before: float, *, limit: int) -> int:
    """Drop the months that ended before this moment (unix seconds) and what the chain has of them, as
    `audit.drop_months`; how many months, and rows outside of any, went."""
    moment = datetime.fromtimestamp(before, UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    cut = int(moment.timestamp()) * 1_000_000
    async with connection.transaction():
        gone = await audit.drop_months(connection, moment.timestamp(), limit=limit)
        sealed = await connection.fetchval("SELECT sealed FROM audit_anchor FOR UPDATE")
        anchor = _anchor(sealer, sealed)
        if gone and cut > anchor.cut:
            first = await connection.fetchval(_FIRST_KEPT, cut) or anchor.first
            previous = await connection.fetchval("SELECT digest FROM audit_batches WHERE number = $1", first - 1)
            anchor = Anchor(first, previous or anchor.previous, cut)
            await connection.execute(_SET_ANCHOR, sealer.seal(msgspec.msgpack.encode(anchor), _ANCHOR))
            await connection.execute("DELETE FROM audit_batches WHERE number < $1", first)
    return gone


# -- verifying


async def verify(connection: Connection, sealer: Sealer, seen: Head | None = None) -> Verdict:
    """Read all of it, at one moment. `seen`: a head that must be in the chain."""
    async with connection.transaction(isolation="repeatable_read"):
        await connection.execute("SET LOCAL statement_timeout = 0")
        await connection.execute(_SEALED_ROWS)
        walk = _Walk(connection, sealer, seen)
        try:
            await walk.through()
        except _Broken as broken:
            walk.broken = str(broken)
        unsealed = await connection.fetchval("SELECT count(*) FROM audit_unsealed")
        await connection.execute("DROP TABLE sealed_rows")
    head = "" if walk.head.number == 0 else str(walk.head)
    return Verdict(walk.broken, walk.batches, walk.rows, walk.blanked, unsealed, walk.anchor.first, head)


class _Walk:
    """Once along the chain. Raises _Broken at the first place where it is."""

    def __init__(self, connection: Connection, sealer: Sealer, seen: Head | None) -> None:
        self._connection, self._sealer, self._seen = connection, sealer, seen
        self.anchor = Anchor()
        self.head = Head(0, _BEGINNING)
        self.broken = ""
        self.batches = self.rows = self.blanked = 0

    async def through(self) -> None:
        sealed = await self._connection.fetchval("SELECT sealed FROM audit_anchor")
        try:
            self.anchor = _anchor(self._sealer, sealed)
        except Unsealable as error:
            raise _Broken(f"the anchor: {error}") from None
        self.head = Head(self.anchor.first - 1, self.anchor.previous)
        self._compare()
        async for record in self._all():
            await self._batch(record)
            self._compare()
        if self._seen is not None and self._seen.number > self.head.number:
            raise _Broken(f"batch {self.head.number + 1} is gone: the chain went on to {self._seen.number}")
        await self._others()

    def _compare(self) -> None:
        if self._seen is not None and self._seen.number == self.head.number and self._seen != self.head:
            raise _Broken(f"batch {self.head.number} is another than the one that was seen before")

    async def _all(self) -> AsyncIterator[Any]:
        while records := await self._connection.fetch(_BATCHES, self.head.number, _BATCHES_AT_ONCE):
            for record in records:
                yield record

    async def _batch(self, record: Any) -> None:
        number = self.head.number + 1
        if record["number"] != number:
            raise _Broken(f"batch {number} is gone")
        packed: bytes = record["members"]
        head = Head(number, _digest(self.head.digest, number, record["sealed_at"], packed))
        if head.digest != record["digest"] or len(packed) % _MEMBER.size:
            raise _Broken(f"batch {number} was changed, or the one before it")
        try:
            key = self._sealer.open(record["sealed"], _about(head))
        except Unsealable as error:
            raise _Broken(f"batch {number}: {error}") from None
        self.head = head
        self.batches += 1
        await self._members(key, packed)

    async def _members(self, key: bytes, packed: bytes) -> None:
        members = [Member(*values) for values in _MEMBER.iter_unpack(packed)]
        places = [(member.at_us, member.id) for member in members]
        await self._connection.copy_records_to_table("sealed_rows", records=places, columns=["at_us", "id"])
        for member, row in zip(members, await _rows(self._connection, places), strict=True):
            if row is not None:
                self._row(key, member, row)
            elif member.at_us >= self.anchor.cut:
                raise _Broken(f"batch {self.head.number}: {member.name} is gone")

    def _row(self, key: bytes, member: Member, row: Any) -> None:
        address, digest = _digests(key, row, None if row["address"] else member.address)
        if not hmac.compare_digest(digest, member.digest) or address != member.address:
            raise _Broken(f"batch {self.head.number}: {member.name} was changed")
        committed = msgspec.json.decode(row["detail"]).get("personal") if '"personal"' in row["detail"] else None
        if row["personal"] and audit.commitment(row["personal"]) != committed:
            raise _Broken(f"batch {self.head.number}: {member.name} was changed")
        unsaid = committed is not None and not row["personal"]
        self.rows += 1
        self.blanked += unsaid or (not row["address"] and member.address != _address(key, ""))

    async def _others(self) -> None:
        """Rows that came in by another way."""
        await self._connection.execute("ANALYZE sealed_rows")
        # Where the planner believes that the audit is small it would compare each row with each.
        await self._connection.execute("SET LOCAL enable_nestloop = off")
        record = await self._connection.fetchrow(_STRAY, self.anchor.cut, timeout=3600)
        if record is not None:
            place = Member(record["at_us"], record["id"], b"", b"")
            raise _Broken(f"{place.name} is in no batch")


# -- what a batch is made of


def _digest(previous: bytes, number: int, sealed_at: int, members: bytes) -> bytes:
    return hashlib.sha256(previous + struct.pack(">qq", number, sealed_at) + members).digest()


def _digests(key: bytes, row: Any, address: bytes | None = None) -> tuple[bytes, bytes]:
    """(of the address, of the row). `address` stands for one that is blanked."""
    address = _address(key, row["address"]) if address is None else address
    parts = struct.pack(">qq", row["at_us"], row["id"]) + address
    for name in ("actor", "action", "target", "sid", "detail"):
        text = row[name].encode()
        parts += struct.pack(">q", len(text)) + text
    return address, hashlib.sha256(parts).digest()


def _address(key: bytes, address: str) -> bytes:
    return hmac.digest(key, address.encode(), "sha256")[:16]


def _about(head: Head) -> str:
    return f"audit batch {head}"


_ANCHOR = "audit anchor"


def _anchor(sealer: Sealer, sealed: bytes | None) -> Anchor:
    """Raises Unsealable."""
    return Anchor() if sealed is None else msgspec.msgpack.decode(sealer.open(sealed, _ANCHOR), type=Anchor)


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us // 1_000_000, UTC).replace(microsecond=at_us % 1_000_000).isoformat()


async def _head(connection: Connection) -> Head:
    record = await connection.fetchrow("SELECT number, digest FROM audit_batches ORDER BY number DESC LIMIT 1")
    return Head(0, _BEGINNING) if record is None else Head(record["number"], record["digest"])


async def _rows(connection: Connection, places: Sequence[tuple[int, int]]) -> list[Any]:
    """The audit's row at each of these places; None where there is none."""
    times, ids = [at_us for at_us, _ in places], [id for _, id in places]
    records = await connection.fetch(_ROWS, times, ids, min(times, default=0), max(times, default=0))
    found = {(record["at_us"], record["id"]): record for record in records}
    return [found.get(place) for place in places]


# One seals at a time, whoever still believes that the job is theirs.
_ALONE = "SELECT pg_advisory_xact_lock(hashtext('audit_chain'))"
_US = "(extract(epoch FROM {}) * 1000000)::bigint"
_AT = "timestamptz 'epoch' + {} * interval '1 us'"
_NOW = f"SELECT {_US.format('clock_timestamp()')}"
_TAKE = f"""
DELETE FROM audit_unsealed WHERE ctid = ANY (ARRAY(SELECT ctid FROM audit_unsealed LIMIT $1))
RETURNING {_US.format("at")} AS at_us, id
"""  # noqa: S608 - no value is put into the text
_ROWS = f"""
SELECT {_US.format("a.at")} AS at_us, a.id, a.actor, a.action, a.target, a.sid, a.address, a.detail::text AS detail,
    a.personal
FROM unnest($1::bigint[], $2::bigint[]) AS m (at_us, id) JOIN audit a ON a.at = {_AT.format("m.at_us")} AND a.id = m.id
WHERE a.at >= {_AT.format("$3::bigint")} AND a.at <= {_AT.format("$4::bigint")}
"""  # noqa: S608 - no value is put into the text
_ADD = f"""
INSERT INTO audit_batches (number, sealed_at, last_at, members, digest, sealed)
VALUES ($1, {_AT.format("$2::bigint")}, {_AT.format("$3::bigint")}, $4, $5, $6)
"""  # noqa: S608 - no value is put into the text
_SEALED = "SELECT number, digest, sealed FROM audit_batches WHERE number > $1 ORDER BY number LIMIT $2"
_RENEW = """
UPDATE audit_batches b SET sealed = r.sealed FROM unnest($1::bigint[], $2::bytea[]) AS r (number, sealed)
WHERE b.number = r.number
"""
_SET_ANCHOR = """
INSERT INTO audit_anchor (sealed) VALUES ($1) ON CONFLICT (one) DO UPDATE SET sealed = excluded.sealed
"""
# The head stays, for the next batch to link to.
_FIRST_KEPT = f"""
SELECT coalesce(min(number) FILTER (WHERE last_at >= {_AT.format("$1::bigint")}), max(number)) FROM audit_batches
"""  # noqa: S608 - no value is put into the text
_BATCHES = f"""
SELECT number, {_US.format("sealed_at")} AS sealed_at, members, digest, sealed FROM audit_batches
WHERE number > $1 ORDER BY number LIMIT $2
"""  # noqa: S608 - no value is put into the text
_SEALED_ROWS = "CREATE TEMPORARY TABLE sealed_rows (at_us bigint NOT NULL, id bigint NOT NULL)"
_STRAY = f"""
SELECT {_US.format("a.at")} AS at_us, a.id FROM audit a
WHERE a.at >= {_AT.format("$1::bigint")}
    AND NOT EXISTS (SELECT FROM sealed_rows m WHERE m.at_us = {_US.format("a.at")} AND m.id = a.id)
    AND NOT EXISTS (SELECT FROM audit_unsealed u WHERE u.at = a.at AND u.id = a.id)
ORDER BY a.at, a.id LIMIT 1
"""  # noqa: S608 - no value is put into the text
