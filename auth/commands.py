"""The commands `users`, `keys` and `token`, and the admin that `run.py dev` begins with.

They work on the database directly. What ends sessions or API keys goes through the revocation log, which running
gateways read at least once a second; new signing keys are read within 30 s.
"""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any
from uuid import uuid4

import jwt
import msgspec
from cyclopts import App, Parameter

from auth import erasure, factors, personal_data, service
from auth import key_keeping as keeping
from auth import keys as signing
from auth import passwords as policy
from auth import users as accounts
from auth.key_routes import service_view
from auth.key_routes import view as key_view
from auth.passwords import Passwords, Stored, hasher
from auth.tokens import AccessTokens
from auth.users import Account, User
from config import paging, scopes
from config.clock import SystemClock, walltime
from config.commands import COMMON, Common, agree, bounded, database, page_of, settings_for, show
from config.database import Connection, Pool
from config.errors import Failure, Usage
from config.http import Problem, moment, rfc3339
from config.settings import Settings, seconds
from sessions import audit, log, store
from sessions.log import Entry
from sessions.model import Reading
from sessions.service import new_session

users = App(
    name="users", help="Create, list, disable and enable accounts; set roles and passwords; remove lost factors."
)
keys = App(name="keys", help="List, rotate and retire signing keys; create, list and revoke API keys.")
keys_api = App(name="api", help="API keys of backends.")
keys.command(keys_api)
keys_services = App(
    name="service-accounts", help="What keys belong to that outlive people: disabled with all its keys."
)
keys.command(keys_services)
token = App(name="token", help="Make a token, to try things out.")

ACTOR = "cli"
LONGEST_BAN = 36500 * 86400.0
_BY: Mapping[str, Any] = {"actor": ACTOR}
_ALL = frozenset({scopes.ALL})

Who = Annotated[str, Parameter(help="A user id or an e-mail address.")]
Reason = Annotated[str, Parameter(help="1 to 64 characters, kept in the audit.")]
Stdin = Annotated[bool, Parameter(negative=(), help="Read the password from the first line of standard input.")]
_USER_COLUMNS = ("id", "email", "display_name", "roles", "disabled", "failures", "created_at", "last_login_at")
_ADMIN = ("admin",)


# -- users


@users.command(name="create")
async def create_user(
    email: str,
    *,
    role: Annotated[list[str], Parameter(help="A role; may stand several times.", negative=())] = [],  # noqa: B006
    display_name: str = "",
    password_stdin: Stdin = False,
    common: Common = COMMON,
) -> None:
    """Create an account. Without --password-stdin a password is made up and shown once."""
    if not accounts.is_email(email):
        raise Usage(f"{email!r} is no e-mail address")
    if not accounts.is_display_name(display_name):
        raise Usage(f"--display-name has at most {accounts.MAX_NAME} printable characters")
    async with database(common) as (settings, pool):
        with _told():
            roles = service.checked_roles(role)
        password, stored = await _new_password(settings, password_stdin, _length(settings, roles))
        async with pool.acquire() as connection, connection.transaction():
            user = await _create(connection, email, display_name, stored, roles)
    show({**_shown(user), **({} if password_stdin else {"password": password})}, as_json=common.json)


@users.command(name="list")
async def list_users(
    *,
    email: Annotated[str, Parameter(help="How the address begins.")] = "",
    role: Annotated[str, Parameter(help="Who has this role.")] = "",
    disabled: Annotated[bool | None, Parameter(help="Only disabled accounts, or only enabled ones.")] = None,
    limit: Annotated[int, Parameter(help="At most so many, oldest first.")] = 50,
    after: Annotated[str, Parameter(help="The `next` of the page before.")] = "",
    common: Common = COMMON,
) -> None:
    """Accounts, oldest first."""
    cursor = page_of(limit, after)
    by = accounts.Filter(accounts.email_key(email) or None, role or None, None if disabled is None else not disabled)
    async with database(common) as (_, pool):
        items, following = await accounts.page(pool, by, limit=limit, after=cursor)
    rows = [_shown(user) for user in items]
    if common.json:
        show({"items": rows, "next": paging.write(following)}, as_json=True)
    else:
        show(rows, as_json=False, columns=_USER_COLUMNS)


@users.command(name="disable")
async def disable(user: Who, *, reason: Reason = "disabled by an operator", common: Common = COMMON) -> None:
    """Disable an account: its sessions end and its connections close with 4502."""
    await _change(user, reason, common, disabled=True)


@users.command(name="enable")
async def enable(user: Who, *, reason: Reason = "enabled by an operator", common: Common = COMMON) -> None:
    """Enable an account again. Sessions that ended stay ended."""
    await _change(user, reason, common, disabled=False)


@users.command(name="ban")
async def ban(
    user: Who,
    *,
    during: Annotated[str, Parameter(name="--for", help='How long, like "12h", "30d"; "0s" lifts a ban.')],
    reason: Reason = "banned by an operator",
    common: Common = COMMON,
) -> None:
    """Ban an account for a while: as disabled, and enabled again by itself."""
    try:
        wanted = float(seconds(during))
    except ValueError as error:
        raise Usage(f"--for: {error}") from None
    if wanted > LONGEST_BAN:
        raise Usage("--for is at most 36500d: disable the account instead")
    await _change(user, reason, common, ban=wanted)


@users.command(name="erase")
async def erase_user(
    user: Who,
    *,
    reason: Reason = "erased by an operator",
    yes: Annotated[bool, Parameter(negative=(), help="Do not ask.")] = False,
    common: Common = COMMON,
) -> None:
    """Delete a user for good: sessions end (4502), and what is known of them goes, out of the audit too."""
    _check_reason(reason)
    if not yes:
        agree(f"{user} cannot be brought back.")
    async with database(common) as (settings, pool):
        async with pool.acquire() as connection, _ledger(connection) as ledger:
            id = await _id(connection, user)
            await store.lock_subjects(connection, [id])
            at = await store.database_now(connection)
            await erasure.erase(ledger, settings.mail, id, actor=ACTOR, at=at, reason=reason)
        await erasure.forget(pool, id)
    show({"id": id, "erased": True}, as_json=common.json)


@users.command(name="export")
async def export_user(user: Who, *, reason: Reason = "exported by an operator", common: Common = COMMON) -> None:
    """Print all that is kept of a user, as JSON."""
    _check_reason(reason)
    async with database(common) as (_, pool):
        async with pool.acquire() as connection, connection.transaction():
            id = await _id(connection, user)
            await audit.append(
                connection, "user.exported", actor=ACTOR, target=f"user:{id}", personal={"reason": reason}
            )
        async for part in personal_data.parts(pool, id):
            sys.stdout.write(part.decode())
        sys.stdout.flush()


@users.command(name="roles")
async def set_roles(
    user: Who,
    *role: Annotated[str, Parameter(help="The roles that the user has from now on; none takes all away.")],
    reason: Reason = "set by an operator",
    common: Common = COMMON,
) -> None:
    """Give a user exactly these roles; their connections come back with them (3014)."""
    with _told():
        roles = service.checked_roles(role)
    await _change(user, reason, common, roles=roles)


@users.command(name="password")
async def set_password(user: Who, *, password_stdin: Stdin = False, common: Common = COMMON) -> None:
    """Set a password; all sessions of the user end. Without --password-stdin one is made up and shown once."""
    async with database(common) as (settings, pool):
        async with pool.acquire() as connection:
            account = await _account(connection, user)
        length = service.min_length(settings.auth, account)
        password, stored = await _new_password(settings, password_stdin, length)
        async with pool.acquire() as connection, _ledger(connection) as ledger:
            ended = await _set_password(ledger, account.user.id, stored)
    show(
        {"id": account.user.id, "sessions_ended": ended, **({} if password_stdin else {"password": password})},
        as_json=common.json,
    )


@users.command(name="lost-factors")
async def lost_factors(user: Who, *, reason: Reason = "removed by an operator", common: Common = COMMON) -> None:
    """Remove every second factor of who has lost them: their sessions end, and the password alone logs in."""
    _check_reason(reason)
    async with database(common) as (settings, pool), pool.acquire() as connection, _ledger(connection) as ledger:
        id = (await _account(connection, user)).user.id
        await store.subject(connection, id, lock=True)
        at = await store.database_now(connection)
        await factors.remove_all(ledger, settings.mail, id, reason, actor=ACTOR, at=at)
    show({"id": id}, as_json=common.json)


async def ensure_admin(pool: Pool, settings: Settings, email: str, password: str) -> str:
    """An active account with the role `admin` and this password exists afterwards; its user id.

    An account that is there keeps what is so already. Idempotent; safe beside running gateways.
    """
    hashing, normal = hasher(settings.auth), policy.acceptable("password", password, _length(settings, _ADMIN))
    async with pool.acquire() as connection:
        account = await accounts.by_email(connection, accounts.email_key(email))
        if account is None:
            stored = Stored(await asyncio.to_thread(hashing.hash, normal), policy.at_least(settings.auth, normal))
            async with connection.transaction():
                return (await _create(connection, email, "Admin", stored, _ADMIN)).id
        verdict = await asyncio.to_thread(hashing.check, account.password_hash, normal)
        form = "" if verdict.right else await asyncio.to_thread(hashing.hash, normal)
        roles = tuple(sorted({*account.user.roles, *_ADMIN}))
        if form or not account.user.admitted or roles != account.user.roles:
            async with _ledger(connection) as ledger:
                await service.change_user(
                    ledger,
                    account.user.id,
                    disabled=False,
                    roles=roles,
                    banned_until=service.NO_BAN,
                    reason="admin of this folder",
                    lives=settings.sessions,
                    actor=ACTOR,
                )
                if form:
                    stored = Stored(form, policy.at_least(settings.auth, normal))
                    await _set_password(ledger, account.user.id, stored)
        return account.user.id


async def _create(connection: Connection, email: str, display_name: str, stored: Stored, roles: Sequence[str]) -> User:
    id = accounts.new_id()
    await store.create_subject(connection, id, roles)
    made = await accounts.insert(connection, id, email, display_name, stored)
    if made is None:
        raise Failure(f"{email} has an account")
    await audit.append(connection, "user.created", actor=ACTOR, target=f"user:{id}", detail={"roles": list(roles)})
    return User(id, email, display_name, tuple(roles), made, True)


async def _change(user: str, reason: str, common: Common, *, ban: float | None = None, **change: Any) -> None:
    """`ban`: for so many seconds."""
    _check_reason(reason)
    async with database(common) as (settings, pool), pool.acquire() as connection:
        async with _ledger(connection) as ledger:
            id = await _id(connection, user)
            if ban is not None:
                change["banned_until"] = await store.database_now(connection) + ban if ban else service.NO_BAN
            await service.change_user(
                ledger, id, reason=reason, lives=settings.sessions, rules=settings.auth, actor=ACTOR, **change
            )
        changed = await accounts.find(connection, id)
    assert changed is not None  # noqa: S101 - it was changed just now
    show(_shown(changed), as_json=common.json)


def _check_reason(reason: str) -> None:
    if not 1 <= len(reason) <= 64:
        raise Usage("--reason has 1 to 64 characters")


async def _set_password(ledger: service.Ledger, id: str, stored: Stored) -> int:
    connection = ledger.connection
    await store.subject(connection, id, lock=True)
    ended = await service.end_logins(ledger, id, await store.database_now(connection))
    await store.bump_credential_version(connection, id)
    await accounts.set_password(connection, id, stored)
    await audit.append(
        connection, "user.password_changed", actor=ACTOR, target=f"user:{id}", detail={"sessions_ended": ended}
    )
    return ended


def _length(settings: Settings, roles: Sequence[str]) -> int:
    """Of a new password of who has these roles and no second factor."""
    auth = settings.auth
    rights = scopes.of_roles(auth.roles, roles)
    return max(auth.password_min_length, auth.admin_password_min_length) if rights else auth.password_min_length


async def _new_password(settings: Settings, from_stdin: bool, length: int) -> tuple[str, Stored]:
    """A password and its stored form."""
    password = sys.stdin.readline().rstrip("\r\n") if from_stdin else secrets.token_urlsafe(18)
    passwords = Passwords(settings.auth)
    try:
        normal = policy.acceptable("password", password, length)
        return password, await passwords.make("password", normal)
    except Problem as problem:
        told = [error.message for error in problem.details.errors]
        raise Failure(f"the password: {told[0] if told else problem.details.detail}") from None
    finally:
        passwords.close()


async def _account(connection: Connection, user: str) -> Account:
    account = await accounts.by_id(connection, user) or await accounts.by_email(connection, accounts.email_key(user))
    if account is None:
        raise Failure(f"there is no account {user!r}")
    return account


async def _id(connection: Connection, user: str) -> str:
    """The id of an account, or of another issuer's user who has been here."""
    if "\x00" not in user and await store.subject(connection, user) is not None:
        return user
    return (await _account(connection, user)).user.id


def _shown(user: User) -> Mapping[str, Any]:
    return {
        "id": user.id,
        "email": user.email,
        "display_name": user.display_name,
        "roles": list(user.roles),
        "disabled": not user.active,
        "banned_until": moment(user.banned_until),
        "failures": user.failures,
        "created_at": rfc3339(user.created_at),
        "last_login_at": moment(user.last_login_at),
    }


# -- keys


@keys.command(name="list")
async def list_keys(*, common: Common = COMMON) -> None:
    """The keys that sign access tokens, oldest first."""
    async with database(common) as (_, pool), pool.acquire() as connection:
        found = await signing.listed(connection)
    rows = [
        {
            "kid": key.kid,
            "algorithm": key.algorithm,
            "state": key.state,
            "created_at": moment(key.created_at),
            "activated_at": moment(key.activated_at),
            "retiring_at": moment(key.retiring_at),
            "retired_at": moment(key.retired_at),
        }
        for key in found
    ]
    show({"items": rows, "next": ""} if common.json else rows, as_json=common.json)


@keys.command(name="rotate")
async def rotate(
    *,
    now: Annotated[bool, Parameter(negative=(), help="Even if a process may not know the next key yet.")] = False,
    discard: Annotated[
        bool, Parameter(negative=(), help="Retire every key and begin anew: ends all access tokens.")
    ] = False,
    common: Common = COMMON,
) -> None:
    """Sign with the next key from now on. What the one before signed stays good until it expires."""
    async with database(common) as (settings, pool), pool.acquire() as connection:
        sealer, algorithm = signing.key_sealer(settings.sessions), settings.auth.access_token_algorithm
        async with connection.transaction():
            if discard:
                kid: str | None = await signing.discard(connection, sealer, algorithm)
            else:
                kid = await signing.advance(connection, sealer, algorithm, settings.auth.access_token_ttl, now=now)
            detail = {"kid": kid, "discard": discard}
            await audit.append(connection, "signing_key.rotated", actor=ACTOR, detail=detail)
    if kid is None:
        raise Failure(f"a next key of the new algorithm was published; rotate again in {signing.KNOWN_AFTER:.0f} s")
    show({"kid": kid}, as_json=common.json)


@keys.command(name="retire")
async def retire(
    kid: Annotated[str, Parameter(help="This key; else every one whose last token has expired.")] = "",
    *,
    now: Annotated[bool, Parameter(negative=(), help="Even if tokens of it are still good.")] = False,
    common: Common = COMMON,
) -> None:
    """Refuse what retiring keys signed, and destroy their private halves."""
    async with database(common) as (settings, pool), pool.acquire() as connection, connection.transaction():
        gone = await signing.retire(connection, settings.auth.access_token_ttl, kid or None, now=now)
        if gone:
            await audit.append(connection, "signing_key.retired", actor=ACTOR, detail={"kids": gone})
    show({"retired": gone}, as_json=common.json)


Expires = Annotated[str, Parameter(help='For how long, like "90d"; else for ever.')]


@keys_api.command(name="create")
async def create_api_key(
    name: str,
    *,
    scope: Annotated[list[str], Parameter(help=f"What it may, of: {', '.join(sorted(scopes.KNOWN))}.", negative=())],
    expires: Expires = "",
    service_account: Annotated[str, Parameter(help="The service account that it belongs to.")] = "",
    common: Common = COMMON,
) -> None:
    """Create an API key. It is shown this once."""
    ttl = _span("--expires", expires) if expires else None
    _check_key(name, scope)
    async with database(common) as (_, pool), pool.acquire() as connection, connection.transaction():
        new = keeping.NewKey(name, scope, await _from_now(connection, ttl), service_account or None)
        with _told():
            secret, info = await keeping.create(connection, new, within=_ALL, by=_BY)
    show({"secret": secret, **_shown_key(info)}, as_json=common.json)


@keys_api.command(name="list")
async def list_api_keys(
    *,
    service_account: Annotated[str, Parameter(help="Only of this service account.")] = "",
    limit: Annotated[int, Parameter(help="At most so many, oldest first.")] = 1000,
    after: Annotated[str, Parameter(help="The `next` of the page before.")] = "",
    common: Common = COMMON,
) -> None:
    """API keys, oldest first; the one of the settings (http_api.key) is not among them."""
    cursor = page_of(limit, after, paging.UUID)
    async with database(common) as (_, pool):
        found, following = await keeping.page(pool, keeping.Filter(service_account or None), limit=limit, after=cursor)
    rows = [_shown_key(info) for info in found]
    show({"items": rows, "next": paging.write(following)} if common.json else rows, as_json=common.json)


@keys_api.command(name="change")
async def change_api_key(
    id: str,
    *,
    name: Annotated[str, Parameter(help="Another name.")] = "",
    scope: Annotated[list[str], Parameter(help="What it may from now on.", negative=())] = [],  # noqa: B006
    expires: Annotated[str, Parameter(help='For how long from now, like "90d", or "never".')] = "",
    common: Common = COMMON,
) -> None:
    """Change an API key; what is not named stays."""
    ttl = _span("--expires", expires) if expires not in ("", "never") else None
    async with database(common) as (_, pool), pool.acquire() as connection, _ledger(connection) as ledger:
        before = await _api_key(connection, id)
        wanted: dict[str, Any] = {"name": name or before.name, "scopes": scope or before.scopes}
        _check_key(wanted["name"], scope)
        if expires:
            wanted["expires_at"] = await _from_now(connection, ttl)
        changed = await keeping.change(ledger, id, wanted, within=_ALL, by=_BY)
    show(_shown_key(changed), as_json=common.json)


@keys_api.command(name="rotate")
async def rotate_api_key(
    id: str,
    *,
    overlap: Annotated[str, Parameter(help='For how long the secret before is good as well, like "1h".')] = "1h",
    common: Common = COMMON,
) -> None:
    """Give an API key another secret. It is shown this once."""
    span = _span("--overlap", overlap)
    if span > keeping.LONGEST_OVERLAP:
        raise Usage(f"--overlap is at most {keeping.LONGEST_OVERLAP / 86400:.0f}d")
    async with database(common) as (_, pool), pool.acquire() as connection, _ledger(connection) as ledger:
        await _api_key(connection, id)
        secret, info = await keeping.rotate(ledger, id, span, within=_ALL, by=_BY)
    show({"secret": secret, **_shown_key(info)}, as_json=common.json)


@keys_api.command(name="revoke")
async def revoke_api_key(id: str, *, common: Common = COMMON) -> None:
    """End an API key on every node."""
    async with database(common) as (_, pool), pool.acquire() as connection, _ledger(connection) as ledger:
        await _api_key(connection, id)
        await keeping.revoke(ledger, id, by=_BY)
    show({"id": id, "revoked": True}, as_json=common.json)


def _check_key(name: str, wanted: Sequence[str]) -> None:
    if not 1 <= len(name) <= keeping.MAX_NAME or not name.isprintable():
        raise Usage(f"a name has 1 to {keeping.MAX_NAME} printable characters")
    if mistakes := scopes.mistakes(wanted):
        raise Usage("; ".join(mistakes))


async def _api_key(connection: Connection, id: str) -> keeping.KeyInfo:
    """The live key with this id; a name is answered with the id of its key."""
    found = await keeping.hold(connection, id)
    if found is None:
        named = await keeping.ids_of_name(connection, id)
        hint = f" (the one with this name has the id {named[0]})" if len(named) == 1 else ""
        raise Failure(f"there is no live API key {id!r}{hint}")
    return found


async def _from_now(connection: Connection, ttl: float | None) -> float | None:
    return None if ttl is None else await store.database_now(connection) + ttl


def _span(option: str, text: str) -> float:
    try:
        return float(seconds(text))
    except ValueError as error:
        raise Usage(f"{option}: {error}") from None


def _shown_key(info: keeping.KeyInfo) -> Mapping[str, Any]:
    return msgspec.structs.asdict(key_view(info))


# -- service accounts


@keys_services.command(name="create")
async def create_service(name: str, *, common: Common = COMMON) -> None:
    """Create a service account; its keys come by `keys api create --service-account`."""
    async with database(common) as (_, pool), pool.acquire() as connection, connection.transaction():
        with _told():
            made = await keeping.create_service(connection, name, by=_BY)
    show(msgspec.structs.asdict(service_view(made)), as_json=common.json)


@keys_services.command(name="list")
async def list_services(
    *,
    limit: Annotated[int, Parameter(help="At most so many, by name.")] = 1000,
    after: Annotated[str, Parameter(help="The `next` of the page before.")] = "",
    common: Common = COMMON,
) -> None:
    """Service accounts, by name."""
    bounded(limit)
    async with database(common) as (_, pool):
        found, following = await keeping.services(pool, limit=limit, after=after)
    rows = [msgspec.structs.asdict(service_view(account)) for account in found]
    show({"items": rows, "next": following} if common.json else rows, as_json=common.json)


@keys_services.command(name="disable")
async def disable_service(name: str, *, reason: Reason = "disabled by an operator", common: Common = COMMON) -> None:
    """Refuse all keys of a service account, on every node."""
    await _switch_service(name, True, reason, common)


@keys_services.command(name="enable")
async def enable_service(name: str, *, reason: Reason = "enabled by an operator", common: Common = COMMON) -> None:
    """Take its keys again, but for those that were revoked or have expired."""
    await _switch_service(name, False, reason, common)


async def _switch_service(name: str, disabled: bool, reason: str, common: Common) -> None:
    if not 1 <= len(reason) <= 64:
        raise Usage("--reason has 1 to 64 characters")
    async with database(common) as (_, pool), pool.acquire() as connection, _ledger(connection) as ledger:
        changed = await keeping.disable_service(ledger, name, disabled, reason=reason, within=_ALL, by=_BY)
    show(msgspec.structs.asdict(service_view(changed)), as_json=common.json)


# -- tokens


Ttl = Annotated[str, Parameter(help='How long it is good, like "30s", "1h".')]


@token.command(name="access")
async def access_token(user: Who, *, common: Common = COMMON) -> None:
    """Open a session for a user and make an access token of it, as a login in token mode would."""
    async with database(common) as (settings, pool):
        sealer, algorithm = signing.key_sealer(settings.sessions), settings.auth.access_token_algorithm
        ring = signing.Keys(pool, sealer, algorithm, clock=SystemClock())
        async with pool.acquire() as connection, connection.transaction():
            await signing.ensure(connection, sealer, algorithm)
            reading = await open_session(connection, settings, await _id(connection, user))
        await ring.load()
        made, expires_in = AccessTokens(ring, settings.auth, now=lambda: reading.now).make(reading)
    show(
        {
            "access_token": made,
            "expires_in": expires_in,
            "sid": reading.session.sid,
            "user": reading.session.subject.id,
        },
        as_json=common.json,
    )


async def open_session(connection: Connection, settings: Settings, id: str) -> Reading:
    """A session without a refresh token; the cap is left to the user's next login."""
    subject = await store.subject(connection, id, lock=True)
    if subject is None or not subject.active:
        raise Failure(f"{id} is disabled")
    position, _ = await log.head(connection)
    now = await store.database_now(connection)
    session = new_session(
        subject, "token", position, settings.sessions, now=now, wall=walltime(), device=ACTOR, address=""
    )
    await store.insert_login(connection, session, secret_hash=None, sealed_key=None)
    target = f"session:{session.sid}"
    await audit.append(connection, "session.opened", actor=ACTOR, target=target, detail={"kind": "token"})
    return Reading(session, position, now)


@token.command(name="connection")
async def connection_token(
    user: Annotated[str, Parameter(help="The user's id (`sub`).")],
    *,
    ttl: Ttl = "1h",
    info: Annotated[str, Parameter(help="JSON that others see beside the user.")] = "",
    channel: Annotated[list[str], Parameter(help="Subscribe to it; may stand several times.", negative=())] = [],  # noqa: B006
    common: Common = COMMON,
) -> None:
    """Make a connection token as a backend would, with client.token.hmac_secret_key. No database is needed."""
    claims: dict[str, Any] = {"sub": user}
    if info:
        claims["info"] = _json("--info", info)
    if channel:
        claims["channels"] = channel
    _sign(claims, ttl, common)


@token.command(name="subscription")
async def subscription_token(
    user: Annotated[str, Parameter(help="The user's id (`sub`).")],
    channel: str,
    *,
    ttl: Ttl = "1h",
    info: Annotated[str, Parameter(help="JSON that others see beside the user.")] = "",
    common: Common = COMMON,
) -> None:
    """Make a subscription token as a backend would. No database is needed."""
    claims: dict[str, Any] = {"sub": user, "channel": channel}
    if info:
        claims["info"] = _json("--info", info)
    _sign(claims, ttl, common)


def _sign(claims: dict[str, Any], ttl: str, common: Common) -> None:
    settings = settings_for(common)
    own = settings.client.subscription_token
    name = "subscription_token" if "channel" in claims and own.enabled else "token"
    section = own if name == "subscription_token" else settings.client.token
    secret = section.hmac_secret_key.get_secret_value()
    if not secret:
        raise Failure(f"client.{name}.hmac_secret_key is not set (WARDGATE_CLIENT_{name.upper()}_HMAC_SECRET_KEY)")
    try:
        life = float(seconds(ttl))
    except ValueError as error:
        raise Usage(f"--ttl: {error}") from None
    now = int(walltime())
    claims |= {"iat": now, "exp": now + int(life)}
    if section.issuer:
        claims["iss"] = section.issuer
    if section.audience:
        claims["aud"] = section.audience
    made = jwt.encode(claims, secret, "HS256")
    show({"token": made, "expires_in": int(life)} if common.json else made, as_json=common.json)


def _json(option: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise Usage(f"{option}: {error}") from None


# -- a transaction of a command that writes to the log


@contextmanager
def _told() -> Iterator[None]:
    """What would be a problem over HTTP is a failure of the command."""
    try:
        yield
    except Problem as problem:
        details = problem.details
        told = "; ".join(f"{error.field}: {error.message}" for error in details.errors)
        raise Failure(told or details.detail or details.title) from None


class _Ledger:
    """Entries that are written to the log before the transaction ends."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.entries: list[Entry] = []

    def append(self, entry: Entry) -> None:
        self.entries.append(entry)

    async def require_live(self, sid: str) -> None:
        raise NotImplementedError(f"no session acts here: {sid}")


@asynccontextmanager
async def _ledger(connection: Connection) -> AsyncIterator[_Ledger]:
    """One transaction; the problems of what it calls become failures of the command."""
    with _told():
        async with connection.transaction():
            ledger = _Ledger(connection)
            yield ledger
            if ledger.entries:
                receipt = uuid4().hex
                drafts = [entry.draft(receipt) for entry in ledger.entries]
                await log.write(connection, [log.Group(receipt, drafts, actor=ACTOR)])
