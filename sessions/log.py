"""The revocation log in PostgreSQL: every statement that writes it, in the one order that makes commit order seq order.

Lock order: subjects by id, sessions by sid, then the head's only row, last (1a). A *draft* is a Row without a place
(seq 0); it gets one under the head's lock. The same function writes new rows and puts lost ones back (4c): a row that
comes with a bound keeps it. Nothing here is applied, hinted or confirmed, and no transaction begins or ends here.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import structlog

from config.database import Connection, Pool
from sessions.lease import READER_VERSION, Unreadable
from sessions.model import ERA, REVOKED, Kind, Position, Row

log = structlog.get_logger(__name__)

Executor = Connection | Pool

NO_ID = "0" * 32

LIVE = """
    s.ended_at IS NULL AND s.expires_at > clock_timestamp()
    AND s.last_seen_at + s.idle_seconds * interval '1 second' > clock_timestamp()
    AND NOT EXISTS (SELECT FROM revoked_with_everyone(s.born, s.sid))
"""
"""A session `s` that nothing has ended yet (its user's rows leave marks on it)."""

_HEAD = """
SELECT seq, id, era_id, server_start = pg_postmaster_start_time() AS same FROM revocation_head
"""

_LOCK_SUBJECTS = """
WITH missing AS (INSERT INTO subjects (id) SELECT unnest($1::text[]) ON CONFLICT (id) DO NOTHING)
SELECT id FROM subjects WHERE id = ANY($1) ORDER BY id FOR UPDATE
"""

# The first end wins: what is marked already stays as it is. `live` counts what a person would call a session.
_MARK_SESSIONS = f"""
WITH draft AS (
    SELECT * FROM unnest($1::int[], $2::text[], $3::text[], $4::bigint[], $5::smallint[], $6::text[], $7::text[])
        AS d (n, sid, subject, bound, code, reason, message)
), due AS (
    SELECT DISTINCT ON (s.sid) s.sid, d.n, d.code, d.reason, d.message, ({LIVE}) AS live
    FROM draft d JOIN sessions s
        ON s.ended_at IS NULL AND (s.sid = d.sid OR s.subject = d.subject AND (d.bound = 0 OR s.born < d.bound))
    ORDER BY s.sid, d.n
), locked AS (
    SELECT sid FROM sessions WHERE sid IN (SELECT sid FROM due) AND ended_at IS NULL ORDER BY sid FOR UPDATE
), marked AS (
    UPDATE sessions s
    SET ended_at = clock_timestamp(), ended_code = due.code, ended_reason = due.reason, ended_message = due.message
    FROM due JOIN locked USING (sid)
    WHERE s.sid = due.sid AND s.ended_at IS NULL
    RETURNING due.n, due.live
)
SELECT n, count(*) FILTER (WHERE live) AS live FROM marked GROUP BY n
"""  # noqa: S608 - no value is put into the text

_MARK_KEYS = "UPDATE api_keys SET revoked_at = clock_timestamp() WHERE id = ANY($1) AND revoked_at IS NULL"

_COUNT_EVERYONE = f"SELECT count(*) FROM sessions s WHERE {LIVE} AND s.sid <> $1"  # noqa: S608

_APPEND = """
WITH entry AS (
    SELECT * FROM unnest(
        $1::bigint[], $2::uuid[], $3::uuid[], $4::smallint[], $5::bigint[], $6::text[], $7::text[], $8::text[],
        $9::text[], $10::smallint[], $11::text[], $12::text[], $13::int[], $14::uuid[], $15::float8[]
    ) AS e (seq, id, previous, kind, bound, sid, subject, except_sid, api_key, code, reason, message, min_version,
            receipt, spread_seconds)
), marked AS (
    UPDATE subjects u
    SET revoked_below = e.bound, revoked_code = e.code, revoked_reason = e.reason, revoked_message = e.message,
        revoked_at = clock_timestamp()
    FROM (SELECT DISTINCT ON (subject) * FROM entry WHERE kind = 2 ORDER BY subject, bound DESC) e
    WHERE u.id = e.subject AND u.revoked_below < e.bound
), head AS (
    UPDATE revocation_head SET seq = $16, id = $17, era_id = $18, server_start = pg_postmaster_start_time()
)
INSERT INTO revocation_log (seq, id, previous, kind, bound, sid, subject, except_sid, api_key, code, reason, message,
    min_version, receipt, spread_seconds)
SELECT * FROM entry
RETURNING seq, extract(epoch FROM committed_at)::float8 AS at
"""

_RECEIPTS = """
INSERT INTO receipts AS r (id, actor, seq, era_id, rows, sessions, complete, progress)
SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::uuid[], $5::int[], $6::int[], $7::bool[], $8::text[])
ON CONFLICT (id) DO UPDATE SET seq = excluded.seq, era_id = excluded.era_id, rows = r.rows + excluded.rows,
    sessions = r.sessions + excluded.sessions, complete = excluded.complete, progress = excluded.progress
RETURNING id, rows, sessions, extract(epoch FROM committed_at)::float8 AS at
"""

COLUMNS = """
l.seq, l.id, l.previous, l.kind, l.bound, l.sid, l.subject, l.except_sid, l.api_key, l.code, l.reason, l.message,
l.min_version, l.receipt, l.spread_seconds, extract(epoch FROM l.committed_at)::float8 AS at
"""
"""Of the log `l`, as `row_of` reads them."""

_AFTER = f"SELECT {COLUMNS} FROM revocation_log l WHERE l.seq > $1 ORDER BY l.seq"  # noqa: S608
_NAMING = f"""
SELECT {COLUMNS} FROM revocation_log l WHERE l.seq > $1
    AND (l.kind = 3 OR l.sid = ANY($2::text[]) OR l.subject = ANY($3::text[]) OR l.api_key = ANY($4::text[]))
ORDER BY l.seq
"""  # noqa: S608

# now() and arrays of what was found, so that indexes are used: a batch costs what it deletes, however much there is.
_PRUNE = """
DELETE FROM revocation_log WHERE seq = ANY(ARRAY(
    SELECT l.seq FROM revocation_log l
    WHERE l.committed_at < now() - $1 * interval '1 second' AND l.kind NOT IN (3, 6)
    AND l.seq < (SELECT least(h.seq, (SELECT min(applied_seq) FROM processes)) FROM revocation_head h)
    AND l.seq < (
        SELECT seq FROM revocation_log WHERE committed_at < now() - $1 * interval '1 second'
        ORDER BY committed_at DESC, seq DESC LIMIT 1
    )
    ORDER BY l.seq LIMIT $2
))
"""
_OLD_RECEIPTS = """
SELECT id FROM receipts WHERE committed_at < now() - $1 * interval '1 second' ORDER BY committed_at LIMIT $2
"""
_PRUNE_NODES = "DELETE FROM receipt_nodes WHERE receipt = ANY($1::uuid[])"
_PRUNE_RECEIPTS = "DELETE FROM receipts WHERE id = ANY($1::uuid[])"
_PRUNE_KEYS = """
DELETE FROM idempotency WHERE created_at < now() - $1 * interval '1 second' AND ctid = ANY(ARRAY(
    SELECT ctid FROM idempotency WHERE created_at < now() - $1 * interval '1 second' ORDER BY created_at LIMIT $2
))
"""

KEEP_ROWS = 30 * 86400.0
KEEP_KEYS = 86400.0
BATCH = 5_000


_IMPERSONATIONS = """
SELECT s.sid, s.born, i.act, i.act_sid FROM impersonations i JOIN sessions s ON s.sid = i.sid
WHERE (i.act_sid = ANY($1::text[]) OR i.act = ANY($2::text[])) AND s.ended_at IS NULL
"""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a transaction wants the log to say; its place (seq, id, previous, bound) is given at commit.

    SESSION takes `sid`; USER takes `subject`; RIGHTS takes either: the user's sockets go for fresh ones, those of a
    session stay and only what was read of it is read again, and as `sid` "key:" and an API key's id, or "user:" and a
    user's, does the same for that key or that user's profile; EVERYONE may take `except_sid`; API_KEY takes `api_key`.
    """

    kind: Kind
    sid: str = ""
    subject: str = ""
    except_sid: str = ""
    api_key: str = ""
    code: int = REVOKED
    reason: str = ""
    message: str = ""
    spread_seconds: float = 0.0

    def draft(self, receipt: str) -> Row:
        """A row without a place."""
        return Row(
            0,
            uuid4().hex,
            "",
            self.kind,
            0,
            self.sid,
            self.subject,
            self.except_sid,
            self.api_key,
            self.code,
            self.reason,
            self.message,
            READER_VERSION,
            receipt,
            self.spread_seconds,
        )


@dataclass(slots=True)
class Group:
    """The rows of one receipt that one transaction writes. `progress` and `complete`: of a receipt over several."""

    receipt: str
    drafts: list[Row]
    actor: str = ""
    complete: bool = True
    progress: str = ""


@dataclass(slots=True)
class Committed:
    """One receipt as the transaction left it: totals over all its transactions so far."""

    receipt: str
    rows: list[Row]
    position: Position
    total: int
    sessions: int
    at: float
    complete: bool = True


@dataclass(slots=True)
class Written:
    """What a transaction wrote: all rows in order (an era row may be first), and its receipts."""

    rows: list[Row] = field(default_factory=list)
    receipts: list[Committed] = field(default_factory=list)


async def head(connection: Connection) -> tuple[Position, Row | None]:
    """The head for a write (1c): under another server start than its last writer's an era row is appended first, which
    is then returned too. Lock subjects and sessions before."""
    found: Any = await connection.fetchrow(_HEAD)
    if not found["same"]:
        found = await connection.fetchrow(_HEAD + " FOR UPDATE")
    if found["same"]:
        return Position(found["seq"], found["era_id"].hex), None
    era = _era_after(found)
    [era] = await _append(connection, [era], era.id)
    return Position(era.seq, era.id), era


async def write(connection: Connection, groups: Sequence[Group]) -> Written:
    """Set the marks and append the drafts, the head last. Rows whose id is in the log already are not written again."""
    drafts = [row for group in groups for row in group.drafts]
    drafts += await _impersonations(connection, drafts)  # first, so that all are locked in one order
    counts = await _mark(connection, drafts)
    if late := await _impersonations(connection, drafts):  # begun while the locks were waited for
        counts |= await _mark(connection, late)
        drafts += late
    found: Any = await connection.fetchrow(_HEAD + " FOR UPDATE")
    fresh = await _not_there(connection, drafts)
    rows, era_id = _placed(found, fresh)
    if rows:
        rows = await _append(connection, rows, era_id)
    at = rows[-1].seq if rows else found["seq"]
    return Written(rows, await _receipts(connection, groups, rows, Position(at, era_id), counts))


async def _mark(connection: Connection, drafts: Sequence[Row]) -> dict[str, int]:
    """Lock subjects, mark sessions; how many live sessions each draft ends, by its id."""
    users = sorted({row.subject for row in drafts if row.kind is Kind.USER})
    if users:
        await connection.fetch(_LOCK_SUBJECTS, users)
    counts: dict[str, int] = {}
    ending = [row for row in drafts if row.kind in (Kind.SESSION, Kind.USER)]
    if ending:
        records = await connection.fetch(
            _MARK_SESSIONS,
            range(len(ending)),
            [row.sid or None for row in ending],
            [row.subject or None if row.kind is Kind.USER else None for row in ending],
            [row.bound for row in ending],
            [row.code for row in ending],
            [row.reason for row in ending],
            [row.message for row in ending],
        )
        counts = {ending[record["n"]].id: record["live"] for record in records}
    if keys := [row.api_key for row in drafts if row.kind is Kind.API_KEY]:
        await connection.execute(_MARK_KEYS, keys)
    for row in drafts:
        if row.kind is Kind.EVERYONE:
            counts[row.id] = await _count_everyone(connection, row.except_sid)
    return counts


async def _impersonations(connection: Connection, drafts: Sequence[Row]) -> list[Row]:
    """Sessions that were begun by those which end, and have not ended, end with them, under the same receipt. Whoever
    begins one holds theirs, so that none is begun once they are marked."""
    ending = [row for row in drafts if row.kind in (Kind.SESSION, Kind.USER)]
    if not ending:
        return []
    sids, users = [row.sid for row in ending if row.sid], [row.subject for row in ending if row.kind is Kind.USER]
    more = []
    for record in await connection.fetch(_IMPERSONATIONS, sids, users):
        for row in ending:
            of_session = row.sid != "" and row.sid == record["act_sid"]
            of_user = row.kind is Kind.USER and row.subject == record["act"]
            if of_session or (of_user and (not row.bound or record["born"] < row.bound)):
                entry = Entry(kind=Kind.SESSION, sid=record["sid"], reason="impersonation_ended")
                more.append(entry.draft(row.receipt))
                break
    return more


async def _count_everyone(connection: Connection, spared: str) -> int:
    """How many sessions an everyone row ends. No count stands in the way of a revocation: -1 when it takes too long."""
    try:
        async with connection.transaction():
            await connection.execute("SET LOCAL statement_timeout = '3s'")
            count: int = await connection.fetchval(_COUNT_EVERYONE, spared)
            await connection.execute("SET LOCAL statement_timeout TO DEFAULT")
            return count
    except asyncpg.QueryCanceledError:
        log.warning("sessions_not_counted")
        return -1


async def _not_there(connection: Connection, drafts: Sequence[Row]) -> list[Row]:
    """Drafts whose id is not in the log. Only rows that come with a bound can be there."""
    old = [row.id for row in drafts if row.bound]
    if not old:
        return list(drafts)
    there = {
        r["id"].hex for r in await connection.fetch("SELECT id FROM revocation_log WHERE id = ANY($1::uuid[])", old)
    }
    return [row for row in drafts if row.id not in there]


def _era_after(found: Any) -> Row:
    seq = (found["seq"] // ERA + 1) * ERA
    return Row(seq, uuid4().hex, found["id"].hex, Kind.ERA, seq)


def _placed(found: Any, drafts: Iterable[Row]) -> tuple[list[Row], str]:
    """The drafts after the head, an era row before them where the server start changed; and the era they stand under.

    A row that was put back keeps its bound, but never one within the present era: it was committed before that began.
    """
    drafts = list(drafts)
    if not drafts:
        return [], found["era_id"].hex
    rows, seq, previous, era_id = [], found["seq"], found["id"].hex, found["era_id"].hex
    if not found["same"]:
        era = _era_after(found)
        rows.append(era)
        seq, previous, era_id = era.seq, era.id, era.id
    began = seq - seq % ERA
    for draft in drafts:
        seq += 1
        bound = min(draft.bound, began) if draft.bound else seq
        rows.append(msgspec.structs.replace(draft, seq=seq, previous=previous, bound=bound))
        previous = draft.id
    return rows, era_id


async def _append(connection: Connection, rows: Sequence[Row], era_id: str) -> list[Row]:
    columns = zip(*(_values(row) for row in rows), strict=True)
    records = await connection.fetch(_APPEND, *(list(c) for c in columns), rows[-1].seq, rows[-1].id, era_id)
    times = {record["seq"]: record["at"] for record in records}
    return [msgspec.structs.replace(row, at=times[row.seq]) for row in rows]


def _values(row: Row) -> tuple[Any, ...]:
    return (
        row.seq,
        row.id,
        row.previous,
        int(row.kind),
        row.bound,
        row.sid,
        row.subject,
        row.except_sid,
        row.api_key,
        row.code,
        row.reason,
        row.message,
        row.min_version,
        row.receipt or None,
        row.spread_seconds,
    )


async def _receipts(
    connection: Connection, groups: Sequence[Group], rows: Sequence[Row], head: Position, counts: dict[str, int]
) -> list[Committed]:
    """Write the receipts of what was appended, and say what they are now. A group that never had a draft has one too:
    that nothing was to be done is an answer."""
    own: dict[str, list[Row]] = {group.receipt: [] for group in groups if group.receipt and not group.drafts}
    for row in rows:
        if row.receipt:
            own.setdefault(row.receipt, []).append(row)
    groups = [group for group in groups if group.receipt in own]
    if not groups:
        return []
    last = {receipt: rows[-1].seq if rows else head.seq for receipt, rows in own.items()}
    records = await connection.fetch(
        _RECEIPTS,
        [g.receipt for g in groups],
        [g.actor for g in groups],
        [last[g.receipt] for g in groups],
        [head.era] * len(groups),
        [len(own[g.receipt]) for g in groups],
        [sum(counts.get(row.id, 0) for row in own[g.receipt]) for g in groups],
        [g.complete for g in groups],
        [g.progress for g in groups],
    )
    found = {record["id"].hex: record for record in records}
    return [_committed(g, own[g.receipt], Position(last[g.receipt], head.era), found[g.receipt]) for g in groups]


def _committed(group: Group, rows: list[Row], position: Position, found: Any) -> Committed:
    return Committed(
        group.receipt, rows, position, found["rows"], found["sessions"], found["at"], complete=group.complete
    )


async def put_back(connection: Connection, rows: Sequence[Row]) -> Written:
    """4c: rows that a failover lost, through the one function that writes: same id, same bound, new place."""
    groups: dict[str, Group] = {}
    for row in rows:
        groups.setdefault(row.receipt, Group(row.receipt, [], actor="system")).drafts.append(row)
    return await write(connection, list(groups.values()))


async def forget(connection: Executor, subject: str, sids: Sequence[str]) -> None:
    """Blank what was written about a person whose account was deleted: why a user or a session was ended, in words."""
    await connection.execute(_FORGET, subject, sids)


_FORGET = """
UPDATE revocation_log SET reason = '', message = ''
WHERE (subject = $1 OR sid = ANY($2)) AND (reason <> '' OR message <> '') AND reason <> 'account_deleted'
"""


async def rows_after(connection: Connection, seq: int) -> list[Row]:
    """What the log says after `seq`, in order; rows that this version cannot read are left out."""
    records = await connection.fetch(_AFTER, seq)
    return [row for record in records if isinstance(row := row_of(record), Row)]


async def rows_naming(
    connection: Connection, seq: int, sids: Collection[str], users: Collection[str], keys: Collection[str]
) -> list[Row]:
    """The same of those rows alone that name one of these, or everyone."""
    records = await connection.fetch(_NAMING, seq, list(sids), list(users), list(keys))
    return [row for record in records if isinstance(row := row_of(record), Row)]


async def present(connection: Connection, ids: Collection[str]) -> set[str]:
    """Which of these are ids of rows of the log."""
    if not ids:
        return set()
    return {r["id"].hex for r in await connection.fetch("SELECT id FROM revocation_log WHERE id = ANY($1)", list(ids))}


async def hold_head(connection: Connection) -> None:
    """Nothing is written to the log until the transaction's end. Take it last."""
    await connection.execute("SELECT FROM revocation_head FOR SHARE")


def row_of(record: Any) -> Row | Unreadable:
    """A row of the log from COLUMNS (1d: one that asks for a newer reader is only named)."""
    if record["min_version"] > READER_VERSION:
        return Unreadable(record["seq"], record["min_version"])
    return Row(
        record["seq"],
        record["id"].hex,
        record["previous"].hex,
        Kind(record["kind"]),
        record["bound"],
        record["sid"],
        record["subject"],
        record["except_sid"],
        record["api_key"],
        record["code"],
        record["reason"],
        record["message"],
        record["min_version"],
        record["receipt"].hex if record["receipt"] else "",
        record["spread_seconds"],
        record["at"],
    )


async def prune(connection: Connection, *, keep: float = KEEP_ROWS, keep_keys: float = KEEP_KEYS) -> int:
    """Delete a batch of what nobody asks for any more: rows that every process has applied, except those of everyone,
    the eras and the last one that is old enough; old receipts; idempotency keys after a day. Says how many went."""
    gone = _count(await connection.execute(_PRUNE, keep, BATCH))
    old = [record["id"] for record in await connection.fetch(_OLD_RECEIPTS, keep, BATCH)]
    gone += _count(await connection.execute(_PRUNE_NODES, old))
    gone += _count(await connection.execute(_PRUNE_RECEIPTS, old))
    return gone + _count(await connection.execute(_PRUNE_KEYS, keep_keys, BATCH))


def _count(status: str) -> int:
    """How many rows a statement changed."""
    return int(status.split()[-1])
