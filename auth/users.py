"""The SQL of accounts, and what an e-mail address and a user id are. Nothing here decides who may do what.

A user is a row here and a subject in sessions; a subject without a row here is a guest or another issuer's user. Lock
order: subjects before users.
"""

import base64
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import msgspec

from auth.passwords import Stored
from config import paging
from config.database import Connection, Pool
from config.paging import Cursor
from sessions.model import Position

Executor = Connection | Pool

MAX_EMAIL = 254  # RFC 5321 4.5.3.1.3, less the angle brackets
MAX_KEY = 512  # one character of compatibility can fold to eighteen
MAX_NAME = 100
MAX_URL = 512
TOO_MANY_FAILURES = 100
"""After so many wrong passwords without a right one between them the password is good only where its owner has logged
in before, until it is set anew."""

_LOCAL = re.compile(r"[^\s@\"(),:;<>\[\\\]]{1,64}")
_ID = re.compile(r"u_[a-z2-7]{26}")
_NOT_IN_URLS = frozenset(' "<>\\^`{|}')
_LABEL = re.compile(r"(?!-)[\w-]{1,63}(?<!-)")


class User(msgspec.Struct, frozen=True):
    """A person as everyone may read them who may read them at all. `created_at` is unix seconds."""

    id: str
    email: str
    display_name: str
    roles: tuple[str, ...]
    created_at: float
    active: bool
    failures: int = 0
    last_login_at: float | None = None
    avatar_url: str = ""
    banned_until: float | None = None
    """While a ban lasts, by the database's clock when this was read."""

    @property
    def admitted(self) -> bool:
        """Whether they may come in: neither disabled nor banned."""
        return self.active and self.banned_until is None


class Account(NamedTuple):
    """What a login is checked against. `factors`: "totp", "passkey", where they are on; `state` is another text when
    the password or any of these is another, when all or the other sessions were ended, and when everyone's were.
    `password_at_least`: as `passwords.Stored` has it, 0 where it is not known."""

    user: User
    email_key: str
    password_hash: str | None
    credential_version: int
    factors: tuple[str, ...] = ()
    state: str = ""
    password_at_least: int = 0

    @property
    def second_factor(self) -> bool:
        return bool(self.factors)


def new_id() -> str:
    """`u_` and 26 characters of base32: 128 random bits."""
    return "u_" + base64.b32encode(os.urandom(16)).decode().rstrip("=").lower()


def is_local(id: str) -> bool:
    """Whether it is one of ours, an account or a guest, and no other issuer's."""
    return _ID.fullmatch(id) is not None


def email_key(email: str) -> str:
    """What makes an address one address: compatibility forms and cases are folded."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", email).casefold())


def is_email(text: str) -> bool:
    """Whether mail could go there: one @, no spaces or controls or quotes, a domain of labels. Not whether it would."""
    local, at, domain = text.rpartition("@")
    if not at or len(text.encode(errors="replace")) > MAX_EMAIL or not text.isprintable():
        return False
    if len(email_key(text).encode(errors="replace")) > MAX_KEY:
        return False
    if local.startswith(".") or local.endswith(".") or ".." in local or not _LOCAL.fullmatch(local):
        return False
    return all(_LABEL.fullmatch(label) and "_" not in label for label in domain.split("."))


def is_avatar_url(text: str) -> bool:
    """An address over https, at most 512 characters; may be empty. Nothing is fetched from it."""
    if not text:
        return True
    if len(text) > MAX_URL or not text.isascii() or not text.isprintable() or set(text) & _NOT_IN_URLS:
        return False
    try:
        parts = urlsplit(text)
        _ = parts.port  # ValueError unless it is a number
    except ValueError:
        return False
    return parts.scheme == "https" and bool(parts.hostname) and "@" not in parts.netloc


def is_display_name(text: str) -> bool:
    """Printable in one line, at most 100 characters; may be empty."""
    return len(text) <= MAX_NAME and text.isprintable()


_BANNED = """
    case when s.banned_until > clock_timestamp() then extract(epoch from s.banned_until)::float8 end as banned_until"""
_USER = f"""
    u.id, u.email, u.display_name, s.roles, extract(epoch from u.created_at)::float8 as created_at,
    s.state = 'active' as active, u.failures, extract(epoch from u.last_login_at)::float8 as last_login_at,
    u.avatar_url, {_BANNED}"""


def _user(record: Any) -> User:
    return User(
        record["id"],
        record["email"],
        record["display_name"],
        tuple(record["roles"]),
        record["created_at"],
        record["active"],
        record["failures"],
        record["last_login_at"],
        record["avatar_url"],
        record["banned_until"],
    )


def _account(record: Any) -> Account | None:
    if record is None:
        return None
    return Account(
        _user(record),
        record["email_key"],
        record["password_hash"],
        record["credential_version"],
        tuple(record["factors"]),
        record["state_of_factors"],
        record["password_at_least"],
    )


async def by_email(connection: Executor, key: str) -> Account | None:
    """The account of an `email_key`. For one that is nobody's the next account is read and dropped, so that the time
    tells nothing."""
    found = _account(await connection.fetchrow(_BY_EMAIL, key))
    return found if found is not None and found.email_key == key else None


async def by_id(connection: Executor, id: str) -> Account | None:
    """The account with this id."""
    return _account(await connection.fetchrow(_BY_ID, id))


_ACCOUNT = f"""
select {_USER}, u.email_key, u.password_hash, u.password_at_least, s.credential_version, array_remove(array[
        case when exists (select from totp t where t.subject = a.id and t.confirmed_at is not null) then 'totp' end,
        case when exists (select from passkeys p where p.subject = a.id) then 'passkey' end
    ], null) as factors, s.credential_version || ' ' || s.revoked_below || ' ' || s.trust_ended || ' ' || (
        select coalesce(max(bound), 0) from revocation_log where kind = 3
    ) || ' ' || (
        select coalesce(string_agg(f.name, ' ' order by f.name), '') from (
            select extract(epoch from confirmed_at)::text from totp where subject = a.id and confirmed_at is not null
            union all select id::text from passkeys where subject = a.id
        ) as f (name)
    ) as state_of_factors
"""  # noqa: S608 - constants of this module
_BY_ID = f"{_ACCOUNT} from (select $1::text as id) a join users u on u.id = a.id join subjects s on s.id = a.id"
_BY_EMAIL = f"""
{_ACCOUNT} from (
    select coalesce(
        (select id from users where email_key >= $1 order by email_key limit 1),
        (select id from users order by email_key limit 1)
    ) as id
) a join users u on u.id = a.id join subjects s on s.id = a.id
"""  # noqa: S608 - constants of this module


async def find(connection: Executor, id: str) -> User | None:
    """Anyone who has a subject: a guest and another issuer's user have no e-mail address and no name here."""
    found = (await find_all(connection, [id])).get(id)
    return None if found is None else found[0]


async def find_all(connection: Executor, ids: Sequence[str]) -> Mapping[str, tuple[User, Position]]:
    """The same of many, with where the log stood when they were read."""
    records = await connection.fetch(_FIND, ids)
    return {one["id"]: (_user(one), Position(one["seq"], one["era_id"].hex)) for one in records}


_FIND = f"""
select h.seq, h.era_id, s.id, coalesce(u.email, '') as email, coalesce(u.display_name, '') as display_name, s.roles,
    extract(epoch from coalesce(u.created_at, s.created_at))::float8 as created_at, s.state = 'active' as active,
    coalesce(u.failures, 0) as failures, extract(epoch from u.last_login_at)::float8 as last_login_at,
    coalesce(u.avatar_url, '') as avatar_url, {_BANNED}
from revocation_head h cross join subjects s left join users u on u.id = s.id
where s.id = any($1::text[]) and s.erased_at is null
"""  # noqa: S608 - constants of this module


async def insert(connection: Connection, id: str, email: str, display_name: str, password: Stored) -> float | None:
    """A new row for the subject `id`; when it was made, None when the address, or the subject, has an account."""
    made: float | None = await connection.fetchval(_INSERT, id, email, email_key(email), display_name, *password)
    return made


_INSERT = """
insert into users (id, email, email_key, display_name, password_hash, password_at_least)
values ($1, $2, $3, $4, $5, $6)
on conflict do nothing returning extract(epoch from created_at)::float8
"""


async def logged_in(connection: Connection, id: str, rehash: str | None, at_least: int | None = None) -> None:
    """A right password: its counter begins anew, unless it is full, `rehash` replaces an old form, and what is kept of
    its length is `at_least` from now on (None: it was not seen)."""
    await connection.execute(_LOGGED_IN, id, rehash, TOO_MANY_FAILURES, at_least)


_LOGGED_IN = """
update users set failures = case when failures < $3 then 0 else failures end, last_login_at = clock_timestamp(),
    password_hash = coalesce($2, password_hash), password_at_least = coalesce($4, password_at_least)
where id = $1
"""


async def rehash(connection: Executor, id: str, old: str | None, new: str) -> None:
    """The same password in another form, unless it was changed meanwhile."""
    await connection.execute("update users set password_hash = $3 where id = $1 and password_hash = $2", id, old, new)


async def set_password(connection: Connection, id: str, password: Stored) -> None:
    """A new password; raising the credential version is the caller's, in the same transaction."""
    await connection.execute(_SET_HASH, id, *password)


_SET_HASH = """
update users set password_hash = $2, password_at_least = $3, password_changed_at = clock_timestamp(), failures = 0
where id = $1
"""


async def set_profile(connection: Connection, id: str, display_name: str, avatar_url: str) -> None:
    """What others see of them."""
    await connection.execute(_SET_PROFILE, id, display_name, avatar_url)


_SET_PROFILE = "update users set display_name = $2, avatar_url = $3 where id = $1"


async def verified(connection: Connection, id: str) -> None:
    """The mailbox is theirs: a letter's link was opened."""
    await connection.execute("update users set email_verified_at = clock_timestamp() where id = $1", id)


async def set_email(connection: Connection, id: str, email: str) -> bool:
    """Another address, which is theirs; False when it has an account already."""
    try:
        async with connection.transaction():
            await connection.execute(_SET_EMAIL, id, email, email_key(email))
    except asyncpg.UniqueViolationError:
        return False
    return True


_SET_EMAIL = "update users set email = $2, email_key = $3, email_verified_at = clock_timestamp() where id = $1"


async def delete(connection: Connection, id: str) -> None:
    """All that is personal stands in this row, and what refers to it goes with it."""
    await connection.execute("delete from users where id = $1", id)


async def add_failures(connection: Connection, counts: Mapping[str, int]) -> list[str]:
    """So many wrong passwords more, for each of these ids; those for whom that made TOO_MANY_FAILURES of them."""
    records = await connection.fetch(_ADD_FAILURES, list(counts), list(counts.values()))
    return [r["id"] for r in records if r["failures"] - r["count"] < TOO_MANY_FAILURES <= r["failures"]]


# Locked in order: two processes that count failures of the same accounts would else wait for each other.
_ADD_FAILURES = """
with locked as (select id from users where id = any($1::text[]) order by id for update)
update users u set failures = u.failures + i.count, last_failure_at = clock_timestamp()
from unnest($1::text[], $2::int[]) as i (id, count) join locked using (id) where u.id = i.id
returning u.id, u.failures, i.count
"""


class Filter(NamedTuple):
    """Who is listed; None means any. `email` is a prefix of the `email_key`."""

    email: str | None = None
    role: str | None = None
    active: bool | None = None


async def page(
    connection: Executor, by: Filter, *, limit: int, after: Cursor | None = None
) -> tuple[list[User], Cursor | None]:
    """Accounts, oldest first, with the cursor of the next page when there is more."""
    text, values = _page(by)
    records = await connection.fetch(text, limit + 1, *(after or Cursor(0, "")), *values)
    shown, more = paging.cut(records, limit)
    return [_user(record) for record in shown], more


def _page(by: Filter) -> tuple[str, list[str]]:
    """A statement that names only what is asked for, so that its plan can be the one for that."""
    where, values = [], []
    if by.email is not None:
        values.append(by.email.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_") + "%")
        where.append(f"and u.email_key like ${len(values) + 3}::text")
    if by.role is not None:
        values.append(by.role)
        where.append(f"and s.roles @> array[${len(values) + 3}::text] and s.roles <> '{{}}'")
    if by.active is not None:
        where.append(f"and s.state = '{'active' if by.active else 'disabled'}'")
    return _PAGE.format(where=" ".join(where)), values


_PAGE = f"""
select {_USER}, (extract(epoch from u.created_at) * 1000000)::bigint as at_us
from users u join subjects s on s.id = u.id
where (u.created_at, u.id) > (timestamptz 'epoch' + $2::bigint * interval '1 us', $3::text) {{where}}
order by u.created_at, u.id limit $1::bigint
"""  # noqa: S608 - constants of this module
