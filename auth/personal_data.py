"""All that is kept of a person, as one JSON document in parts: for themselves, or for an admin who must give it.

It is read page by page, so that one page is in memory, and bounded: MOST sessions and MOST audit rows, newest first;
`truncated` says that there were more. Of what others did to the person their addresses and sessions are left out.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any, Final

import msgspec

from config.database import Pool
from config.http import Problem, moment, rfc3339
from config.paging import Cursor
from sessions import audit
from sessions.devices import device_name
from sessions.errors import translated

MOST: Final = 10_000
PAGE: Final = 200


class Profile(msgspec.Struct, frozen=True):
    """A guest and another issuer's user have no address, name and picture here."""

    id: str
    email: str
    display_name: str
    avatar_url: str
    roles: list[str]
    disabled: bool
    banned_until: str | None
    created_at: str
    email_verified_at: str | None
    password_changed_at: str | None
    last_login_at: str | None


class Factor(msgspec.Struct, frozen=True):
    """A second factor that is on. Of no factor the secret is told."""

    kind: str
    name: str
    added_at: str


class OwnKey(msgspec.Struct, frozen=True):
    """An API key that they made."""

    id: str
    name: str
    scopes: list[str]
    created_at: str
    last_used_at: str | None


class Device(msgspec.Struct, frozen=True):
    """What a browser or program said that it is, with how many kept sessions of it there are."""

    name: str
    sessions: int
    first_seen_at: str
    last_seen_at: str


class PastSession(msgspec.Struct, frozen=True):
    """A session, live or over. `ended_at` is null where nothing but its time ended it. Of one in which somebody else
    acted the device and the address are theirs, and not told."""

    sid: str
    kind: str
    issuer: str
    device: str
    address: str
    created_at: str
    last_seen_at: str
    expires_at: str
    ended_at: str | None
    ended_reason: str
    impersonated_by: str | None


class AuditedDeed(msgspec.Struct, frozen=True):
    """What the person did, or somebody did to them. `sid` and `address` are the person's, else empty."""

    at: str
    actor: str
    action: str
    target: str
    sid: str
    address: str
    detail: dict[str, Any]


class PersonalData(msgspec.Struct, frozen=True):
    """What is kept of a person. `truncated`: there are more sessions or more of the audit than were told."""

    exported_at: str
    profile: Profile
    factors: list[Factor]
    api_keys: list[OwnKey]
    devices: list[Device]
    sessions: list[PastSession]
    audit: list[AuditedDeed]
    truncated: bool


_Pages = AsyncIterator[tuple[Sequence[msgspec.Struct], bool]]


async def parts(pool: Pool, id: str) -> AsyncIterator[bytes]:
    """PersonalData, in pieces. Problem not_found, unavailable."""
    with translated():
        record = await pool.fetchrow(_PROFILE, id)
        if record is None:
            raise Problem("not_found")
        factors = [Factor(r["kind"], r["name"], rfc3339(r["at"])) for r in await pool.fetch(_FACTORS, id)]
        keys = await pool.fetch(_KEYS, id)
        devices = await pool.fetch(_DEVICES, id)
    head = {
        "exported_at": rfc3339(record["now"]),
        "profile": _profile(record),
        "factors": factors,
        "api_keys": [
            OwnKey(r["id"], r["name"], list(r["scopes"]), rfc3339(r["created_at"]), moment(r["last_used_at"]))
            for r in keys
        ],
        "devices": _devices(devices),
    }
    yield msgspec.json.encode(head)[:-1] + b',"sessions":['
    lists: tuple[_Pages, ...] = (_sessions(pool, id), _deeds(pool, id))
    truncated = False
    for n, pages in enumerate(lists):
        first = True
        async for rows, more in pages:
            truncated = truncated or more
            if rows:
                yield (b"" if first else b",") + _joined(rows)
                first = False
        yield b'],"audit":[' if n == 0 else b"]"
    yield b',"truncated":' + msgspec.json.encode(truncated) + b"}\n"


def _joined(rows: Iterable[msgspec.Struct]) -> bytes:
    return b",".join(map(msgspec.json.encode, rows))


async def _sessions(pool: Pool, id: str) -> _Pages:
    """Pages, newest first, each with whether there are more than MOST."""
    place, told = Cursor(2**62, ""), 0
    while True:
        with translated():
            records = await pool.fetch(_SESSIONS, id, *place, PAGE)
        told += len(records)
        yield [_session(r) for r in records], told >= MOST and len(records) == PAGE
        if len(records) < PAGE or told >= MOST:
            return
        place = Cursor(records[-1]["at_us"], records[-1]["sid"])


async def _deeds(pool: Pool, id: str) -> _Pages:
    """Pages of what they did, newest first, and then of what others did to them."""
    name, told = f"user:{id}", 0
    for by in (audit.Filter(actor=name), audit.Filter(target=name)):
        after: Cursor | None = None
        while told < MOST:
            with translated():
                entries = await audit.page(pool, by, limit=PAGE, after=after)
            rows = [_deed(entry, name) for entry in entries if by.actor or entry.actor != name]
            told += len(rows)
            yield rows, told >= MOST
            if len(entries) < PAGE:
                break
            after = entries[-1].place


def _deed(entry: audit.Entry, name: str) -> AuditedDeed:
    own = entry.actor == name and "act" not in entry.detail
    sid, address = (entry.sid, entry.address) if own else ("", "")
    detail = dict(entry.detail)
    return AuditedDeed(rfc3339(entry.at), entry.actor, entry.action, entry.target, sid, address, detail)


def _profile(record: Any) -> Profile:
    return Profile(
        record["id"],
        record["email"],
        record["display_name"],
        record["avatar_url"],
        list(record["roles"]),
        record["disabled"],
        moment(record["banned_until"]),
        rfc3339(record["created_at"]),
        moment(record["email_verified_at"]),
        moment(record["password_changed_at"]),
        moment(record["last_login_at"]),
    )


def _devices(records: Iterable[Any]) -> list[Device]:
    """By name: several user agents have the same."""
    found: dict[str, Device] = {}
    for r in records:
        name = device_name(r["device"])
        known = found.get(name)
        first, last = rfc3339(r["first_at"]), rfc3339(r["last_at"])
        if known is None:
            found[name] = Device(name, r["sessions"], first, last)
        else:
            first, last = min(first, known.first_seen_at), max(last, known.last_seen_at)
            found[name] = Device(name, known.sessions + r["sessions"], first, last)
    return list(found.values())


def _session(r: Any) -> PastSession:
    return PastSession(
        r["sid"],
        r["kind"],
        r["issuer"],
        device_name(r["device"]),
        r["address"],
        rfc3339(r["created_at"]),
        rfc3339(r["last_seen_at"]),
        rfc3339(r["expires_at"]),
        moment(r["ended_at"]),
        r["ended_reason"],
        r["act"],
    )


def _epoch(*columns: str) -> str:
    return ", ".join(f"extract(epoch FROM {c})::float8 AS {c.rpartition('.')[2]}" for c in columns)


_PROFILE = f"""
SELECT s.id, coalesce(u.email, '') AS email, coalesce(u.display_name, '') AS display_name,
    coalesce(u.avatar_url, '') AS avatar_url, s.roles, s.state <> 'active' AS disabled,
    CASE WHEN s.banned_until > clock_timestamp() THEN extract(epoch FROM s.banned_until)::float8 END AS banned_until,
    {_epoch("s.created_at", "u.email_verified_at", "u.password_changed_at", "u.last_login_at")},
    extract(epoch FROM clock_timestamp())::float8 AS now
FROM subjects s LEFT JOIN users u ON u.id = s.id WHERE s.id = $1 AND s.erased_at IS NULL
"""  # noqa: S608 - constants of this module
_FACTORS = """
SELECT 'totp' AS kind, 'Authenticator app' AS name, extract(epoch FROM confirmed_at)::float8 AS at
FROM totp WHERE subject = $1 AND confirmed_at IS NOT NULL
UNION ALL SELECT 'passkey', name, extract(epoch FROM created_at)::float8 FROM passkeys WHERE subject = $1
"""
_KEYS = f"""
SELECT id, name, scopes, {_epoch("created_at", "last_used_at")} FROM api_keys WHERE owner = $1
ORDER BY api_keys.created_at DESC LIMIT 1000
"""  # noqa: S608 - constants of this module
_DEVICES = """
SELECT device, count(*)::int AS sessions, extract(epoch FROM min(created_at))::float8 AS first_at,
    extract(epoch FROM max(last_seen_at))::float8 AS last_at
FROM sessions WHERE subject = $1 AND act IS NULL GROUP BY device ORDER BY max(last_seen_at) DESC LIMIT 1000
"""
_SESSIONS = f"""
SELECT sid, kind, issuer, act, CASE WHEN act IS NULL THEN device ELSE '' END AS device,
    CASE WHEN act IS NULL THEN address ELSE '' END AS address, ended_reason,
    (extract(epoch FROM created_at) * 1000000)::bigint AS at_us,
    {_epoch("created_at", "last_seen_at", "expires_at", "ended_at")}
FROM sessions
WHERE subject = $1 AND (created_at, sid) < (timestamptz 'epoch' + $2::bigint * interval '1 us', $3::text)
ORDER BY created_at DESC, sid DESC LIMIT $4
"""  # noqa: S608 - constants of this module
