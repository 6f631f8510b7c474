"""Who did what to whom: rows added in the transaction of the deed, read by admins.

Partitioned by month; `make_months` keeps the coming ones ahead. Rows are never changed.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from config.database import Connection, Pool

Executor = Connection | Pool


async def append(
    connection: Connection,
    action: str,
    *,
    actor: str,
    target: str = "",
    sid: str = "",
    address: str = "",
    detail: Mapping[str, Any] | None = None,
) -> None:
    """One row, in the caller's transaction. `actor` is Caller.name, "system" or "cli"; `detail` holds no secret."""
    await connection.execute(_APPEND, action, actor, target, sid, address, dict(detail or {}))


_APPEND = "INSERT INTO audit (action, actor, target, sid, address, detail) VALUES ($1, $2, $3, $4, $5, $6)"


async def make_months(connection: Executor) -> None:
    """This month's partition and the next two's; nothing where they are there."""
    await connection.execute(_MAKE_MONTHS)


_MAKE_MONTHS = "SELECT audit_make_month(clock_timestamp() + n * interval '1 month') FROM generate_series(0, 2) AS n"


class Entry(NamedTuple):
    """A row as it was written. `at` is unix seconds, `place` where a page can go on after it."""

    id: int
    at: float
    actor: str
    action: str
    target: str
    sid: str
    address: str
    detail: Mapping[str, Any]
    place: "Place"


class Place(NamedTuple):
    """A row's place in the order of pages: its time in microseconds, and its id."""

    at_us: int
    id: int


class Filter(NamedTuple):
    """What is listed; "" means any. `action` also takes the part before the dot ("session")."""

    actor: str = ""
    action: str = ""
    target: str = ""
    sid: str = ""


async def page(connection: Executor, by: Filter, *, limit: int, after: Place | None = None) -> list[Entry]:
    """Rows that fit, newest first; ask for one more than is shown to know whether there are more."""
    records = await connection.fetch(_PAGE, limit, *by, *(after or (None, None)))
    return [
        Entry(
            r["id"],
            r["at_us"] / 1e6,
            r["actor"],
            r["action"],
            r["target"],
            r["sid"],
            r["address"],
            r["detail"],
            Place(r["at_us"], r["id"]),
        )
        for r in records
    ]


_PAGE = """
SELECT id, (extract(epoch FROM at) * 1000000)::bigint AS at_us, actor, action, target, sid, address, detail FROM audit
WHERE ($2::text = '' OR actor = $2)
  AND ($3::text = '' OR action = $3 OR split_part(action, '.', 1) = $3)
  AND ($4::text = '' OR target = $4)
  AND ($5::text = '' OR sid = $5)
  AND ($6::bigint IS NULL OR (at, id) < (timestamptz 'epoch' + $6 * interval '1 us', $7::bigint))
ORDER BY at DESC, id DESC LIMIT $1
"""
