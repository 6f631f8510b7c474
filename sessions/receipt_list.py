"""Receipts as admins page through them, newest first: what was ended, by whom, and whether that is confirmed.

What a receipt is, and when it is confirmed, stands in `receipts`; here it is only listed, as PostgreSQL has it.
"""

from typing import Any, Literal

import msgspec

from config import paging
from config.database import Pool
from config.http import rfc3339
from config.paging import Cursor
from sessions.model import Kind


class ListedReceipt(msgspec.Struct, frozen=True):
    """`target` and `reason` are those of its first row: "" where the log has forgotten that. `sessions` is -1 where
    they were too many to count in time; `complete` is false while a revocation of many goes on."""

    id: str
    actor: str
    target: str
    reason: str
    state: Literal["committed", "confirmed"]
    by: Literal["acks", "lease"] | None
    complete: bool
    sessions: int
    connections_closed: int
    nodes: int
    committed_at: str
    elapsed_ms: float | None


async def page(pool: Pool, *, limit: int, after: Cursor | None) -> tuple[list[ListedReceipt], Cursor | None]:
    """At most `limit`, and where the next page goes on."""
    at_us, id = after or (None, None)
    records = await pool.fetch(_PAGE, limit + 1, at_us, id)
    shown, more = paging.cut(records, limit)
    return [_listed(record) for record in shown], more


def _listed(record: Any) -> ListedReceipt:
    return ListedReceipt(
        record["id"].hex,
        record["actor"],
        _target(record),
        record["reason"] or "",
        "confirmed" if record["confirmed_by"] else "committed",
        record["confirmed_by"],
        record["complete"],
        record["sessions"],
        record["closed"],
        record["nodes"],
        rfc3339(record["at_us"] / 1e6),
        None if record["elapsed_ms"] is None else round(record["elapsed_ms"], 3),
    )


def _target(record: Any) -> str:
    """As the audit names it."""
    match record["kind"]:
        case Kind.SESSION:
            return f"session:{record['sid']}"
        case Kind.USER:
            return f"user:{record['subject']}"
        case Kind.RIGHTS:
            if ":" in record["sid"]:  # no session's: it names what it is of
                return str(record["sid"])
            return f"session:{record['sid']}" if record["sid"] else f"user:{record['subject']}"
        case Kind.API_KEY:
            return f"key:{record['api_key']}"
        case Kind.EVERYONE:
            return "all"
    return ""


_PAGE = """
SELECT r.id, r.actor, r.confirmed_by, r.complete, r.sessions, r.elapsed_ms,
    (extract(epoch FROM r.committed_at) * 1000000)::bigint AS at_us,
    l.kind, l.sid, l.subject, l.api_key, l.reason, n.closed, n.nodes
FROM (
    SELECT * FROM receipts
    WHERE $2::bigint IS NULL OR committed_at <= timestamptz 'epoch' + $2 * interval '1 us'
        AND (committed_at, id) < (timestamptz 'epoch' + $2 * interval '1 us', $3::uuid)
    ORDER BY committed_at DESC, id DESC LIMIT $1
) r
LEFT JOIN LATERAL (
    SELECT kind, sid, subject, api_key, reason FROM revocation_log WHERE receipt = r.id ORDER BY seq LIMIT 1
) l ON true
CROSS JOIN LATERAL (
    SELECT coalesce(sum(connections_closed), 0)::bigint AS closed, count(*) AS nodes
    FROM receipt_nodes WHERE receipt = r.id
) n
ORDER BY r.committed_at DESC, r.id DESC
"""
