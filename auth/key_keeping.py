"""API keys and service accounts as they are kept: made, changed, rotated, revoked, disabled. Each deed is a row of the
audit, in the caller's transaction; what takes something away is a row of the revocation log too, so that every process
reads the key again, or refuses it for good.

Nobody gives a key more than they may: `within` are the scopes of whoever acts, `until` is when they end where that is a
key. `by` is who acts, as `audit.append` has
it. Which key a request carries is judged in `api_keys`; HTTP names these deeds in `key_routes`, commands in `commands`.
"""

import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from auth.api_keys import hash_of
from auth.service import Ledger
from config import paging
from config import scopes as granting
from config.database import Connection, Pool
from config.http import LAST_DAY, Problem, invalid
from config.paging import Cursor
from sessions import audit
from sessions.log import Entry
from sessions.model import Kind

PREFIX = "wgk_"  # so that a scanner for leaked secrets can name what it found
MAX_NAME = 100
MAX_SCOPES = 32
LONGEST_OVERLAP = 30 * 86400.0
SERVICE_NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"


class NewKey(NamedTuple):
    """A key that is to be made. `expires_at` in seconds since 1970."""

    name: str
    scopes: Sequence[str]
    expires_at: float | None = None
    service_account: str | None = None
    owner: str | None = None


class KeyInfo(NamedTuple):
    """A key as people see it: never the key. Times are unix seconds; until `previous_until` the secret before it is
    good as well."""

    id: str
    name: str
    scopes: Sequence[str]
    service_account: str | None
    owner: str | None
    created_at: float
    created_by: str
    expires_at: float | None
    last_used_at: float | None
    previous_until: float | None
    revoked_at: float | None


class ServiceAccount(NamedTuple):
    """`keys`: how many of it are not revoked."""

    name: str
    created_at: float
    created_by: str
    disabled_at: float | None
    keys: int


# -- keys


async def end_of(connection: Connection, id: str) -> float | None:
    """Until when a key that acts is good; None: for ever. Problem unauthenticated for one that is revoked by now."""
    record = await connection.fetchrow(_END, id)
    if record is None:
        raise Problem("unauthenticated", "this API key is not valid")
    end: float | None = record["expires_at"]
    return end


async def create(
    connection: Connection, new: NewKey, *, within: Collection[str], until: float | None = None, by: Mapping[str, Any]
) -> tuple[str, KeyInfo]:
    """A new key: the secret, to be shown this once, and what is stored of it. Problems: invalid, forbidden."""
    _check(new.name, new.scopes, within)
    _require_end(new.expires_at, until)
    if new.service_account is not None and not await connection.fetchval(_HOLD_SERVICE, new.service_account):
        raise invalid("service_account", "there is none of this name that is enabled")
    secret, id = PREFIX + secrets.token_urlsafe(32), secrets.token_hex(16)
    values = (id, hash_of(secret), new.name, list(new.scopes), by["actor"], *new[2:])
    made = _info(await connection.fetchrow(_CREATE, *values))
    detail = {"name": made.name, "scopes": list(made.scopes), "service_account": made.service_account}
    await audit.append(connection, "api_key.created", target=f"key:{id}", detail=detail, **by)
    return secret, made


async def change(
    writing: Ledger,
    id: str,
    wanted: Mapping[str, Any],
    *,
    within: Collection[str],
    until: float | None = None,
    by: Mapping[str, Any],
) -> KeyInfo:
    """Another `name`, `scopes` or `expires_at` (None: never), of these what is `wanted`. Problems: not_found, invalid,
    forbidden."""
    before = await _hold(writing, id)
    after: KeyInfo = before._replace(**wanted)
    _check(after.name, after.scopes, within)
    if "expires_at" in wanted or "scopes" in wanted:
        _require_end(after.expires_at, until)
    changed = _info(await writing.connection.fetchrow(_CHANGE, id, after.name, list(after.scopes), after.expires_at))
    if changed != before:
        _read_again(writing, id)
        detail = {"before": _changeable(before), "after": _changeable(changed)}
        await audit.append(writing.connection, "api_key.changed", target=f"key:{id}", detail=detail, **by)
    return changed


async def rotate(
    writing: Ledger,
    id: str,
    overlap: float,
    *,
    within: Collection[str],
    until: float | None = None,
    by: Mapping[str, Any],
) -> tuple[str, KeyInfo]:
    """Another secret of the same key; the one before it is good for `overlap` more seconds, and one before that no
    longer. Problems: not_found, forbidden."""
    before = await _hold(writing, id)
    _check(before.name, before.scopes, within)
    _require_end(before.expires_at, until)
    secret = PREFIX + secrets.token_urlsafe(32)
    rotated = _info(await writing.connection.fetchrow(_ROTATE, id, hash_of(secret), overlap))
    _read_again(writing, id)
    detail = {"name": rotated.name, "overlap_seconds": overlap}
    await audit.append(writing.connection, "api_key.rotated", target=f"key:{id}", detail=detail, **by)
    return secret, rotated


async def revoke(writing: Ledger, id: str, *, by: Mapping[str, Any]) -> bool:
    """End a key everywhere; False when there is no such live key."""
    name = await writing.connection.fetchval(_REVOKE, id)
    if name is None:
        return False
    writing.append(Entry(kind=Kind.API_KEY, api_key=id))
    await audit.append(writing.connection, "api_key.revoked", target=f"key:{id}", detail={"name": name}, **by)
    return True


async def forget(writing: Ledger, owner: str) -> None:
    """Delete all keys that a user made, who is deleted."""
    for record in await writing.connection.fetch("delete from api_keys where owner = $1 returning id", owner):
        writing.append(Entry(kind=Kind.API_KEY, api_key=record["id"]))


class Filter(NamedTuple):
    """Which keys are listed; None means any."""

    service_account: str | None = None
    owner: str | None = None
    revoked: bool | None = None


async def page(
    connection: Connection | Pool, by: Filter, *, limit: int, after: Cursor | None = None
) -> tuple[list[KeyInfo], Cursor | None]:
    """Oldest first, with the cursor of the next page when there is more."""
    records = await connection.fetch(_PAGE, limit + 1, *(after or Cursor(0, "")), *by)
    shown, more = paging.cut(records, limit)
    return [_info(record) for record in shown], more


def _check(name: str, wanted: Sequence[str], within: Collection[str]) -> None:
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
        raise invalid("name", f"1 to {MAX_NAME} printable characters")
    if not 1 <= len(wanted) <= MAX_SCOPES:
        raise invalid("scopes", f"1 to {MAX_SCOPES} scopes")
    if mistakes := granting.mistakes(wanted):
        raise invalid("scopes", "; ".join(mistakes))
    _require_within(wanted, within)


def _require_end(expires_at: float | None, until: float | None) -> None:
    if expires_at is not None and expires_at >= LAST_DAY:
        raise invalid("expires_at", "before the last day of the year 9999; null is for ever")
    if until is not None and (expires_at is None or expires_at > until):
        raise Problem("forbidden", "this key would be good for longer than yours")


def _require_within(wanted: Sequence[str], within: Collection[str]) -> None:
    if lacking := granting.lacking(within, wanted):
        raise Problem("forbidden", f"this key would have the scope {lacking[0]}, which you lack")


async def hold(connection: Connection, id: str) -> KeyInfo | None:
    """A live key, locked until the end of the transaction; None where there is none."""
    record = await connection.fetchrow(_HOLD, id)
    return None if record is None else _info(record)


async def ids_of_name(connection: Connection, name: str) -> list[str]:
    """The live keys of this name."""
    return [
        r["id"] for r in await connection.fetch("select id from api_keys where name = $1 and revoked_at is null", name)
    ]


async def _hold(writing: Ledger, id: str) -> KeyInfo:
    found = await hold(writing.connection, id)
    if found is None:
        raise Problem("not_found")
    return found


def _read_again(writing: Ledger, id: str) -> None:
    writing.append(Entry(kind=Kind.RIGHTS, sid=f"key:{id}"))


def _changeable(key: KeyInfo) -> Mapping[str, Any]:
    return {"name": key.name, "scopes": list(key.scopes), "expires_at": key.expires_at}


def _info(record: Any) -> KeyInfo:
    assert record is not None  # noqa: S101 - its row was made or is held
    return KeyInfo(*(record[name] for name in KeyInfo._fields))


_KEY = """
id, name, scopes, service_account, owner, extract(epoch from created_at)::float8 as created_at, created_by,
extract(epoch from expires_at)::float8 as expires_at, extract(epoch from last_used_at)::float8 as last_used_at,
extract(epoch from previous_until)::float8 as previous_until, extract(epoch from revoked_at)::float8 as revoked_at
"""
# No value is put into these texts.
_CREATE = f"""
insert into api_keys (id, hash, name, scopes, created_by, expires_at, service_account, owner)
values ($1, $2, $3, $4, $5, to_timestamp($6::float8), $7, $8) returning {_KEY}
"""  # noqa: S608
_END = "select extract(epoch from expires_at)::float8 as expires_at from api_keys where id = $1 and revoked_at is null"
_HOLD = f"select {_KEY} from api_keys where id = $1 and revoked_at is null for update"  # noqa: S608
_CHANGE = f"""
update api_keys set name = $2, scopes = $3, expires_at = to_timestamp($4::float8) where id = $1 returning {_KEY}
"""  # noqa: S608
_ROTATE = f"""
update api_keys set hash = $2, previous_hash = hash,
    previous_until = clock_timestamp() + $3::float8 * interval '1 second'
where id = $1 returning {_KEY}
"""  # noqa: S608
_REVOKE = "update api_keys set revoked_at = clock_timestamp() where id = $1 and revoked_at is null returning name"
_PAGE = f"""
select {_KEY}, (extract(epoch from created_at) * 1000000)::bigint as at_us from api_keys
where (created_at, id) > (timestamptz 'epoch' + $2::bigint * interval '1 us', $3::text)
    and ($4::text is null or service_account = $4) and ($5::text is null or owner = $5)
    and ($6::bool is null or (revoked_at is not null) = $6)
order by api_keys.created_at, id limit $1::bigint
"""  # noqa: S608


# -- service accounts


async def create_service(connection: Connection, name: str, *, by: Mapping[str, Any]) -> ServiceAccount:
    """Problem `invalid` for a name that is taken."""
    if not re.fullmatch(SERVICE_NAME, name):
        raise invalid("name", "up to 64 of a-z, 0-9, ., _ and -, and the first a letter or digit")
    record = await connection.fetchrow(_CREATE_SERVICE, name, by["actor"])
    if record is None:
        raise invalid("name", "there is a service account of this name")
    await audit.append(connection, "service_account.created", target=f"service:{name}", **by)
    return ServiceAccount(**record)


async def disable_service(
    writing: Ledger, name: str, disabled: bool, *, reason: str, within: Collection[str], by: Mapping[str, Any]
) -> ServiceAccount:
    """Refuse all its keys from now on, or take them again, which is giving them all that they may. What is so already
    changes nothing. Problems: not_found, forbidden."""
    connection = writing.connection
    changed = await connection.fetchval(_DISABLE_SERVICE, name, disabled)
    record = await connection.fetchrow(_SERVICE, name)
    if record is None:
        raise Problem("not_found")
    if changed:
        for key in await connection.fetch(_KEYS_OF_SERVICE, name):
            if not disabled:
                _require_within(key["scopes"], within)
            _read_again(writing, key["id"])
        action: audit.Action = "service_account.disabled" if disabled else "service_account.enabled"
        await audit.append(connection, action, target=f"service:{name}", detail={"reason": reason}, **by)
    return ServiceAccount(**record)


async def services(connection: Connection | Pool, *, limit: int, after: str = "") -> tuple[list[ServiceAccount], str]:
    """By name, after this one; and the name that the next page comes after, "" on the last."""
    records = await connection.fetch(_SERVICES, after, limit + 1)
    items = [ServiceAccount(**record) for record in records[:limit]]
    return items, items[-1].name if len(records) > limit else ""


_HOLD_SERVICE = "select true from service_accounts where name = $1 and disabled_at is null for share"
_SERVICE_COLUMNS = """
a.name, extract(epoch from a.created_at)::float8 as created_at, a.created_by,
extract(epoch from a.disabled_at)::float8 as disabled_at,
(select count(*) from api_keys k where k.service_account = a.name and k.revoked_at is null) as keys
"""
_CREATE_SERVICE = f"""
insert into service_accounts as a (name, created_by) values ($1, $2) on conflict do nothing
returning {_SERVICE_COLUMNS}
"""  # noqa: S608
_SERVICE = f"select {_SERVICE_COLUMNS} from service_accounts a where a.name = $1"  # noqa: S608
_SERVICES = f"select {_SERVICE_COLUMNS} from service_accounts a where a.name > $1 order by a.name limit $2"  # noqa: S608
_DISABLE_SERVICE = """
update service_accounts set disabled_at = case when $2 then clock_timestamp() end
where name = $1 and (disabled_at is not null) <> $2 returning true
"""
_KEYS_OF_SERVICE = """
select id, scopes from api_keys where service_account = $1 and revoked_at is null order by id for update
"""
