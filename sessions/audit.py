"""Who did what to whom: rows added in the transaction of the deed, read by admins.

Partitioned by month; `make_months` keeps the coming ones ahead, `drop_months` drops those whose time is over. Rows are
never changed; `chain` seals them. What goes when a person is erased (`forget`) is the address, and what somebody wrote
about them: that stands in a column of its own, `personal`, with a salt, and `detail` has a hash of both.
"""

import hashlib
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from config.database import Connection, Pool
from config.paging import Cursor

Executor = Connection | Pool

Action = Literal[
    "session.opened",
    "session.ended",
    "session.all_ended",
    "session.stepped_up",
    "session.token_reuse",
    "session.revoked",
    "user.revoked",
    "role.revoked",
    "everyone.revoked",
    "user.created",
    "guest.created",
    "user.changed",
    "user.banned",
    "user.unbanned",
    "user.profile_changed",
    "user.deleted",
    "user.exported",
    "user.impersonated",
    "user.password_changed",
    "user.password_reset",
    "user.password_disabled",
    "user.email_change_asked",
    "user.email_changed",
    "user.factor_added",
    "user.factor_removed",
    "user.factor_renamed",
    "user.factor_refused",
    "user.factors_removed",
    "user.recovery_codes_made",
    "api_key.created",
    "api_key.changed",
    "api_key.rotated",
    "api_key.revoked",
    "service_account.created",
    "service_account.disabled",
    "service_account.enabled",
    "signing_key.rotated",
    "signing_key.retired",
    "webhook.created",
    "webhook.deleted",
    "webhook.enabled",
    "webhook.tested",
    "webhook.replayed",
    "job.retried",
    "job.dropped",
    "database.restored",
    "database.vouched",
]
"""All that rows say was done; webhooks can wait for these and no others."""


async def append(
    connection: Connection,
    action: Action,
    *,
    actor: str,
    target: str = "",
    sid: str = "",
    address: str = "",
    detail: Mapping[str, Any] | None = None,
    personal: Mapping[str, Any] | None = None,
) -> None:
    """One row, in the caller's transaction. `actor` is Caller.name, "system" or "cli"; `detail` holds no secret and
    nothing by which a person could be known; `personal` may: what people wrote (text, no numbers), and what was
    written about them. It is told as a part of `detail`. Of a session in which somebody else acts the row says who:
    `act` of `detail`."""
    await connection.execute(_APPEND, action, actor, target, sid, address, *_apart(detail or {}, personal or {}))


Row = tuple[str, str, str, str, str, Mapping[str, Any], Mapping[str, Any]]
"""(action, actor, target, sid, address, detail, personal)"""


async def append_all(connection: Connection, rows: Iterable[Row]) -> None:
    """Many in one go."""
    await connection.executemany(_APPEND, [(*row, *_apart(detail, personal)) for *row, detail, personal in rows])


_APPEND = """
INSERT INTO audit (action, actor, target, sid, address, detail, personal)
SELECT $1, $2, $3, $4, $5, $6::jsonb || coalesce((
    SELECT jsonb_build_object('act', 'user:' || s.act) FROM sessions s WHERE s.sid = $4 AND s.act IS NOT NULL
), '{}'), $7::jsonb
"""


def _apart(detail: Mapping[str, Any], personal: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both as they are kept."""
    if not personal:
        return dict(detail), {}
    salted = {**personal, "salt": secrets.token_hex(16)}
    return {**detail, "personal": commitment(salted)}, salted


def _together(detail: Mapping[str, Any], personal: Mapping[str, Any]) -> dict[str, Any]:
    """As it is told, with what is left of it."""
    merged = {**detail, **personal}
    return {name: value for name, value in merged.items() if name not in ("personal", "salt")} if merged else {}


def commitment(salted: Mapping[str, Any]) -> str:
    """What `detail` keeps of a `personal`: nobody guesses it from that without the salt, which goes with it."""
    return hashlib.sha256(msgspec.json.encode(salted, order="deterministic")).hexdigest()


async def opened_by(connection: Executor, user: str) -> list[str]:
    """The sids of a user's logins that the audit knows, also of those whose rows are gone."""
    targets = [record["target"] for record in await connection.fetch(_OPENED_BY, f"user:{user}")]
    return [target.removeprefix("session:") for target in targets]


_OPENED_BY = "SELECT target FROM audit WHERE actor = $1 AND action = 'session.opened'"


async def forget(connection: Executor, user: str, sids: Sequence[str], acted: Sequence[str], *, limit: int) -> int:
    """Blank what names a person in up to `limit` rows: addresses that they came from, also where they acted for others
    (in the sessions `acted`), and what was written about them and their sessions; how many. Why somebody deleted them
    stays: that is the deleter's."""
    targets = [f"session:{sid}" for sid in sids]
    return int((await connection.execute(_FORGET, f"user:{user}", targets, limit, acted)).split()[-1])


async def acted(connection: Executor, user: str) -> list[str]:
    """The sids of sessions in which a user acted for others."""
    return [record["sid"] for record in await connection.fetch(_ACTED, f"user:{user}")]


_ACTED = "SELECT detail->>'session' AS sid FROM audit WHERE actor = $1 AND action = 'user.impersonated'"
_FORGET = """
UPDATE audit SET
    address = CASE WHEN actor = $1 OR sid = ANY($4) OR actor = 'system' AND target = $1 THEN '' ELSE address END,
    personal = CASE WHEN action <> 'user.deleted' AND (target = $1 OR target = ANY($2)) THEN '{}' ELSE personal END
WHERE (at, id) IN (
    (SELECT at, id FROM audit WHERE actor = $1 AND address <> '' LIMIT $3)
    UNION (SELECT at, id FROM audit WHERE target = $1 AND actor = 'system' AND address <> '' LIMIT $3)
    UNION (SELECT at, id FROM audit WHERE target = $1 AND personal <> '{}' AND action <> 'user.deleted' LIMIT $3)
    UNION (SELECT at, id FROM audit WHERE target = ANY($2) AND personal <> '{}' LIMIT $3)
    UNION (SELECT at, id FROM audit WHERE sid = ANY($4) AND sid <> '' AND address <> '' LIMIT $3)
)
"""


async def make_months(connection: Executor) -> None:
    """This month's partition and the next two's; nothing where they are there."""
    await connection.execute(_MAKE_MONTHS)


_MAKE_MONTHS = "SELECT audit_make_month(clock_timestamp() + n * interval '1 month') FROM generate_series(0, 2) AS n"


async def drop_months(connection: Connection, before: float, *, limit: int) -> int:
    """Drop the months that ended before this moment (unix seconds), and up to `limit` rows of before it that stand
    outside of any month; how many months and rows went. Nobody waits behind this for long: a month that is in use is
    left for the next time (LockNotAvailableError), and so it is while another process is at it."""
    async with connection.transaction():
        await connection.execute("SET LOCAL lock_timeout = '250ms'")
        if not await connection.fetchval("SELECT pg_try_advisory_xact_lock(hashtext('audit_make_month'))"):
            return 0
        old = [record["name"] for record in await connection.fetch(_OLD_MONTHS, before)]
        for name in old:
            await connection.execute(f"DROP TABLE {name}")  # of the form that _OLD_MONTHS asks for
        status = await connection.execute(_DELETE_OTHERS, before, limit)
        return len(old) + int(status.split()[-1])


_OLD_MONTHS = """
SELECT name FROM (
    SELECT c.relname AS name, CASE WHEN c.relname ~ '^audit_[0-9]{4}_[0-9]{2}$' THEN
        (make_date(substr(c.relname, 7, 4)::int, substr(c.relname, 12, 2)::int, 1) + interval '1 month')
        AT TIME ZONE 'UTC' END AS ended
    FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'audit'::regclass
) AS month WHERE ended <= to_timestamp($1) ORDER BY 1
"""
_DELETE_OTHERS = """
DELETE FROM audit_other WHERE (at, id) IN (
    SELECT at, id FROM audit_other WHERE at < to_timestamp($1) ORDER BY at, id LIMIT $2
)
"""


class Entry(NamedTuple):
    """A row as it was written, `detail` with what is left of `personal`. `at` is unix seconds, `place` where a page can
    go on after it."""

    id: int
    at: float
    actor: str
    action: str
    target: str
    sid: str
    address: str
    detail: Mapping[str, Any]
    place: Cursor


class Filter(NamedTuple):
    """What is listed; "" means any. `action` also takes the part before the dot ("session")."""

    actor: str = ""
    action: str = ""
    target: str = ""
    sid: str = ""


async def page(connection: Executor, by: Filter, *, limit: int, after: Cursor | None = None) -> list[Entry]:
    """Rows that fit, newest first; ask for one more than is shown to know whether there are more."""
    text, values = _page(by, after)
    records = await connection.fetch(text, limit, *values)
    return [
        Entry(
            r["id"],
            r["at_us"] / 1e6,
            r["actor"],
            r["action"],
            r["target"],
            r["sid"],
            r["address"],
            _together(r["detail"], r["personal"]),
            Cursor(r["at_us"], str(r["id"])),
        )
        for r in records
    ]


# Every action of "session" begins with "session."; "/" is what comes after the dot.
_CONDITIONS = {
    "actor": "actor = ${n}",
    "action": """
        (action COLLATE "C" = ${n} OR action COLLATE "C" >= ${n} || '.' AND action COLLATE "C" < ${n} || '/')""",
    "target": "target = ${n}",
    "sid": "sid = ${n} AND sid <> ''",
}


def _page(by: Filter, after: Cursor | None) -> tuple[str, list[Any]]:
    """A statement that names only what is asked for, so that its plan can be the one for that."""
    values: list[Any] = []
    where = ["true"]
    for name, value in by._asdict().items():
        if value:
            values.append(value)
            where.append(_CONDITIONS[name].replace("{n}", f"{len(values) + 1}::text"))
    if after is not None:
        n = len(values) + 2
        where.append(f"(at, id) < (timestamptz 'epoch' + ${n}::bigint * interval '1 us', ${n + 1}::bigint)")
        values += [after.at_us, int(after.id)]
    return f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY at DESC, id DESC LIMIT $1::bigint", values


_SELECT = """
SELECT id, (extract(epoch FROM at) * 1000000)::bigint AS at_us, actor, action, target, sid, address, detail,
    personal
FROM audit"""
