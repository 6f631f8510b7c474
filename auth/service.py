"""What happens to accounts: registering, logging in, changing a password, and what an admin changes.

Each deed is one straight line: the limit, the password (one hash, whoever it is), then one transaction in which
`sessions` does its part. How HTTP names these things stands in `routes`.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import msgspec
import structlog

from auth import letters, passkeys, profiles, users
from auth import passwords as policy
from auth.challenges import TRIES, Challenge, ChallengeOver, Challenges
from auth.devices import DeviceCookies
from auth.freshness import Freshness
from auth.passkeys import Passkeys, Used
from auth.passwords import Passwords, Stored
from auth.throttle import Throttle
from auth.totp import Codes
from auth.users import Account, User
from auth.webauthn_json import Assertion, RequestOptions
from config import scopes as granting
from config.database import Connection, Pool
from config.http import Problem, invalid, rfc3339
from config.paging import Cursor
from config.scopes import ROLE
from config.settings import Auth, Mail
from config.settings import Sessions as Policy
from config.tasks import Tasks
from sessions import audit, store, webhooks
from sessions.devices import device_name, place
from sessions.errors import SessionEnded, Stale, translated
from sessions.log import Entry
from sessions.model import DISABLED, REVOKED, Kind, Subject
from sessions.revocations import Receipt, Revocations, Writing
from sessions.service import Opened, Sessions

Mode = Literal["cookie", "token"]
Take = Callable[[Connection], Awaitable[None]]
"""A second factor is taken, in the transaction of the login; Problem invalid_credentials when it is not good."""

FIRST_VERSION = 1
"""The credential version of a new subject, and of a guest's."""

NO_ACCOUNT = "there is no account here: a guest registers first, another issuer's user has it there"
NO_GOOD_CODE = "this code is not good, or was used before: wait for the app's next one"
FLUSH_FAILURES = 1.0
NO_BAN = -math.inf
MAX_ROLES = 16

log = structlog.get_logger(__name__)


class Held(NamedTuple):
    """Whose session came along with a login, as a cookie or a bearer token."""

    user: str
    sid: str


class Client(NamedTuple):
    """Who asks: the address as far as it can be trusted, the user agent, and what came along: the sid of the session
    that another one replaces whoever's it is, the session that is taken over if it is a guest's, the value that a known
    device has, the languages that are asked for (Accept-Language), whether a login is to outlive the browser,
    whether this device is to be asked for no second factor again for a while, and the answer to a challenge that a
    program cannot solve."""

    address: str
    device: str
    replaces: str = ""
    known_by: str = ""
    held: Held | None = None
    language: str = ""
    remember: bool = True
    trust: bool = False
    proof: str = ""


class Ledger(Protocol):
    """A transaction that may write to the revocation log: `sessions.revocations.Writing`, or a command's own."""

    connection: Connection

    def append(self, entry: Entry) -> None: ...

    async def require_live(self, sid: str) -> None: ...


class LoggedIn(NamedTuple):
    """A user with a session that was just opened, and by what the device will be known."""

    user: User
    opened: Opened
    known_by: str = ""


class Users:
    """One a process."""

    def __init__(
        self,
        pool: Pool,
        revocations: Revocations,
        sessions: Sessions,
        passwords: Passwords,
        throttle: Throttle,
        devices: DeviceCookies,
        challenges: Challenges,
        codes: Codes,
        passkeys: Passkeys,
        freshness: Freshness,
        settings: Auth,
        mail: Mail,
    ) -> None:
        self._pool, self._revocations, self._sessions, self._mail = pool, revocations, sessions, mail
        self._passwords, self._throttle, self._devices, self._settings = passwords, throttle, devices, settings
        self._challenges, self._codes, self._freshness = challenges, codes, freshness
        self._passkeys = passkeys
        self._failures: dict[str, int] = {}
        self._tasks = Tasks()

    async def start(self) -> None:
        self._tasks.keep("auth: failures", self._keep_failures)

    async def close(self) -> None:
        await self._tasks.close()
        await self.flush()

    @property
    def failures(self) -> int:
        """Background tasks that ended by an error."""
        return self._tasks.failures

    # -- becoming someone

    async def register(self, email: str, password: str, display_name: str, mode: Mode, client: Client) -> LoggedIn:
        """A new account and its first session. Problems: forbidden, invalid, too_many_attempts, email_taken, busy."""
        self._require_local()
        normal = registrable(self._settings, email, password, display_name)
        await self._throttle.make("register", client.address, self._settings.register_per_address_per_hour)
        key = users.email_key(email)
        with translated():
            if await users.by_email(self._pool, key) is not None:
                raise Problem("email_taken")
            guest = await guest_of(self._pool, client)
        stored = await self._passwords.make("password", normal)
        id = users.new_id() if guest is None else guest.user
        with translated():
            async with self._revocations.writing(actor=f"user:{id}") as writing:
                if guest is None:
                    await store.create_subject(writing.connection, id)
                else:
                    await take_over(writing, guest)
                    client = client._replace(replaces=guest.sid)
                made = await users.insert(writing.connection, id, email, display_name, stored)
                if made is None:
                    raise Problem("email_taken")
                await _audit_new(writing, "user.created", id, client)
                user = await users.find(writing.connection, id)
                assert user is not None  # noqa: S101 - it was made just now
                opened = await self._open(writing, id, FIRST_VERSION, mode, client)
        await self._throttle.know(client.address, key, anew=True)
        return LoggedIn(user, opened, self._devices.make(id))

    async def let_in(self, mode: Mode, client: Client) -> LoggedIn:
        """A guest: a user of ours with nothing but a session. Problems: forbidden, too_many_attempts."""
        self._require_local()
        if not self._settings.guests:
            raise Problem("forbidden", "guests are not let in")
        await self._throttle.make("guest", client.address, self._settings.guests_per_address_per_hour)
        id = users.new_id()
        with translated():
            async with self._revocations.writing(actor=f"user:{id}") as writing:
                await store.create_subject(writing.connection, id, guest=True)
                await _audit_new(writing, "guest.created", id, client)
                user = await users.find(writing.connection, id)
                assert user is not None  # noqa: S101 - it was made just now
                opened = await self._open(writing, id, FIRST_VERSION, mode, client)
        return LoggedIn(user, opened)

    async def log_in(self, email: str, password: str, mode: Mode, client: Client) -> LoggedIn:
        """A new session for whoever knows the password.

        Unknown, wrong, damaged, disabled and banned are one answer and one hash: `invalid_credentials`; so is a
        password that was guessed at too often (`users.TOO_MANY_FAILURES`), but from where its owner has logged in
        before. Where there is a second factor a right password gives `second_factor_required` with a challenge, and no
        session. Other problems: invalid (no text that could be a password), too_many_attempts, busy.
        """
        self._require_local()
        normal = policy.bounded("password", password)
        if len(email) > users.MAX_EMAIL:
            raise invalid("email", f"at most {users.MAX_EMAIL} characters")
        key = users.email_key(email)
        device = await self._device(key, client)
        async with self._throttle.attempt(client.address, key, device=device, proof=client.proof) as attempt:
            with translated():
                account = await users.by_email(self._pool, key)
            verdict = await self._passwords.check(account and account.password_hash, normal)
            if account is None or not (verdict.right and _admits(account.user, known=attempt.known)):
                self._count_failure(account)
                raise Problem("invalid_credentials")
            rehash = await self._fresh(normal) if verdict.old else None
            trusted = self._trusts(account, client)
            if account.second_factor and not trusted:
                if rehash is not None:
                    with translated():
                        await users.rehash(self._pool, account.user.id, account.password_hash, rehash)
                challenge = self._challenges.make(account.user.id, account.credential_version, client.address)
                raise Problem("second_factor_required", challenge=challenge, factors=account.factors)
            await attempt.succeeded()
            return await self._enter(
                account,
                rehash,
                mode,
                client,
                known=attempt.known,
                known_by=client.known_by if trusted else "",
                at_least=self._passwords.at_least(normal),
            )

    async def _device(self, key: str, client: Client) -> str:
        """The name of the device if the account knows it, else "". Only for who has such a cookie the account is read
        before the attempt is counted: whoever has the address now need not be who had it then."""
        if not client.known_by:
            return ""
        with translated():
            account = await users.by_email(self._pool, key)
        return self._devices.recognise(account.user.id, client.known_by) if account is not None else ""

    async def finish_login(
        self, challenge: str, code: str, passkey: Assertion | None, mode: Mode, client: Client
    ) -> LoggedIn:
        """The second half of `log_in`: a code of the second factor, of either kind, or a passkey, to a challenge.

        Problems: unauthenticated (the challenge, or the passkey's options, are over: too old, from elsewhere, tried too
        often, answered before, or the password or the factor is another by now), invalid_credentials,
        too_many_attempts.
        """
        asked, account = await self._challenged(challenge, client)
        begun = passkey and self._passkeys.begun(passkey, passkeys.factor_for(asked.id))
        device = self._devices.recognise(account.user.id, client.known_by)
        async with (
            self._throttle.attempt(client.address, account.email_key, device=device, proof=client.proof) as attempt,
            self._passkeys.watched(client.address),
        ):
            if not await self._throttle.permits("challenge", asked.id, TRIES):
                raise ChallengeOver
            try:
                if not _admits(account.user, known=attempt.known):
                    raise Problem("invalid_credentials")
                if passkey and begun:
                    take = self._take(await self._passkeys.used(passkey, begun, account.user.id))
                else:
                    take = self._spend(account.user.id, code)
                done = await self._enter(account, None, mode, client, known=attempt.known, take=take)
            except Problem as problem:
                if problem.code == "invalid_credentials":
                    self._count_failure(account)
                raise
            await attempt.succeeded()
            if client.trust and self._settings.trust_device_for:
                return done._replace(known_by=self._devices.make(account.user.id, account.state))
            return done

    def _trusts(self, account: Account, client: Client) -> bool:
        """Whether the second factor was shown on this device and is not asked for again yet."""
        seconds = self._settings.trust_device_for
        return bool(seconds) and self._devices.trusts(account.user.id, client.known_by, account.state, seconds)

    async def passkey_to_finish(self, challenge: str, client: Client) -> RequestOptions:
        """What a browser is asked for, to answer `challenge` with a passkey. Problems: unauthenticated, forbidden."""
        asked, account = await self._challenged(challenge, client)
        return await self._passkeys.to_use(passkeys.factor_for(asked.id), account.user.id)

    async def _challenged(self, challenge: str, client: Client) -> tuple[Challenge, Account]:
        self._require_local()
        asked = self._challenges.read(challenge, client.address)
        with translated():
            account = await users.by_id(self._pool, asked.user)
        if account is None or account.credential_version != asked.version or not account.second_factor:
            raise ChallengeOver
        return asked, account

    async def passkey_to_log_in(self, about: str) -> RequestOptions:
        """What a browser is asked for: any passkey of ours. `about` names the browser (`passkeys.login_of`). Problem
        forbidden."""
        self._require_local()
        return await self._passkeys.to_use(about)

    async def log_in_by_passkey(self, passkey: Assertion, about: str, mode: Mode, client: Client) -> LoggedIn:
        """A new session for whoever has the passkey, and is verified by its device: two factors at once.

        Unknown, disabled, removed and not good are one answer: `invalid_credentials`. Other problems: unauthenticated
        (the options are over: too old, another browser's, answered before), too_many_attempts, forbidden.
        """
        self._require_local()
        begun = self._passkeys.begun(passkey, about)
        async with (
            self._throttle.attempt(client.address, f"passkey {passkey.id}", proof=client.proof) as attempt,
            self._passkeys.watched(client.address),
        ):
            used = await self._passkeys.used(passkey, begun)
            with translated():
                account = await users.by_id(self._pool, used.subject)
            if account is None or not account.user.admitted:
                raise passkeys.refused()
            known = attempt.known or bool(self._devices.recognise(account.user.id, client.known_by))
            done = await self._enter(account, None, mode, client, known=known, take=self._take(used))
            await attempt.succeeded()
        await self._throttle.know(client.address, account.email_key)
        return done

    async def _enter(
        self,
        account: Account,
        rehash: str | None,
        mode: Mode,
        client: Client,
        *,
        known: bool,
        known_by: str = "",
        take: Take | None = None,
        at_least: int | None = None,
    ) -> LoggedIn:
        """Every factor was shown but the second, which is taken with the login or not at all. `known_by`: what the
        device goes on being known by. `at_least`: what the password told of its length, where it was shown."""
        user, aal = account.user, 1
        try:
            with translated():
                guest = await guest_of(self._pool, client)
                if guest is not None:  # who was nobody is this user now
                    client = client._replace(replaces=guest.sid)
                async with self._revocations.writing(actor=f"user:{user.id}") as writing:
                    if take is not None:
                        await store.subject(writing.connection, user.id, lock=True)
                        await take(writing.connection)
                        aal = 2
                    opened = await self._open(writing, user.id, account.credential_version, mode, client, aal=aal)
                    await users.logged_in(writing.connection, user.id, rehash, at_least)
                    if not known and user.last_login_at is not None:
                        device = {"device": device_name(client.device), "address": place(client.address)}
                        await self._tell(writing.connection, "new_device", user, client, device)
        except SessionEnded:  # disabled since the account was read: no other answer than a moment earlier
            raise Problem("invalid_credentials") from None
        self._failures.pop(user.id, None)
        return LoggedIn(user, opened, known_by or self._devices.make(account.user.id))

    def _spend(self, id: str, code: str) -> Take:
        async def take(connection: Connection) -> None:
            if await self._codes.spend(connection, id, code, self._revocations.database_now()) is None:
                raise Problem("invalid_credentials", NO_GOOD_CODE)

        return take

    def _take(self, used: Used) -> Take:
        async def take(connection: Connection) -> None:
            await self._passkeys.take(connection, used)

        return take

    async def _open(
        self, writing: Writing, id: str, version: int, mode: Mode, client: Client, *, aal: int = 1
    ) -> Opened:
        return await self._sessions.open(
            writing,
            id,
            credential_version=version,
            kind=mode,
            device=client.device,
            address=client.address,
            aal=aal,
            replaces=client.replaces,
            remember=client.remember,
        )

    async def _fresh(self, password: str) -> str | None:
        """The password in today's form, unless the pool is full: then at another login."""
        try:
            return await self._passwords.hash(password)
        except Problem:
            return None

    def _require_local(self) -> None:
        if not self._settings.local_accounts:
            raise Problem("forbidden", "accounts are kept elsewhere")

    # -- a new password

    async def stolen(self, password: str) -> bool:
        """Whether a password in NFC stands on the list of stolen ones."""
        return await self._passwords.stolen(password)

    async def change_password(self, id: str, sid: str, current: str, new: str, client: Client) -> None:
        """Another password; every other session of the user ends with it, this one stays.

        Problems: invalid_credentials (the current one is wrong; counted like a login), step_up_required, invalid,
        session_ended.
        """
        old = policy.bounded("current_password", current)
        with translated():
            account = await users.by_id(self._pool, id)
        if account is None:
            raise Problem("forbidden", NO_ACCOUNT)
        await self._freshness.require(id, sid)
        context = (account.user.email, account.user.display_name)
        normal = policy.acceptable("new_password", new, min_length(self._settings, account), context)
        async with self._throttle.attempt(client.address, account.email_key, device=f"session {sid}") as attempt:
            verdict = await self._passwords.check(account.password_hash, old)
            if not verdict.right:
                self._count_failure(account)
                raise Problem("invalid_credentials")
            await attempt.succeeded()
        stored = await self._passwords.make("new_password", normal)
        with translated():
            async with self._revocations.writing(actor=f"user:{id}") as writing:
                await self._replace_password(writing, account, sid, stored, client)

    async def _replace_password(
        self, writing: Writing, account: Account, sid: str, stored: Stored, client: Client
    ) -> None:
        """Lock order: subject, sessions, users. The version is demanded as it was verified (2a)."""
        connection, id = writing.connection, account.user.id
        subject = await store.subject(connection, id, lock=True)
        if subject is None or subject.credential_version != account.credential_version:
            raise Stale
        ended = await end_logins(writing, id, self._revocations.database_now(), except_sid=sid)
        await writing.require_live(sid)
        await store.bump_credential_version(connection, id)
        await users.set_password(connection, id, stored)
        await audit.append(
            connection,
            "user.password_changed",
            actor=f"user:{id}",
            target=f"user:{id}",
            sid=sid,
            address=client.address,
            detail={"sessions_ended": ended},
        )
        await self._tell(connection, "password_changed", account.user, client)

    async def _tell(
        self, connection: Connection, letter: letters.Name, user: User, client: Client, more: Mapping[str, str] = {}
    ) -> None:
        at = self._revocations.database_now()
        await letters.tell(connection, self._mail, letter, user, client.language, at, more)

    # -- what others see of them

    async def change_profile(
        self, id: str, sid: str, display_name: str | None, avatar_url: str | None, client: Client
    ) -> User:
        """Another name or picture; what is None stays. Problems: invalid, forbidden, session_ended."""
        if display_name is not None:
            require_display_name(display_name)
        if avatar_url is not None and not users.is_avatar_url(avatar_url):
            raise invalid("avatar_url", f"an address that begins with https://, at most {users.MAX_URL} characters")
        with translated():
            async with self._revocations.writing(actor=f"user:{id}") as writing:
                connection = writing.connection
                await store.lock_subjects(connection, [id])
                await writing.require_live(sid)
                account = await users.by_id(connection, id)
                if account is None:
                    raise Problem("forbidden", NO_ACCOUNT)
                before = {"display_name": account.user.display_name, "avatar_url": account.user.avatar_url}
                given = {"display_name": display_name, "avatar_url": avatar_url}
                after = before | {name: value for name, value in given.items() if value is not None}
                await users.set_profile(connection, id, **after)
                writing.append(profiles.changed(id))
                await audit.append(
                    connection,
                    "user.profile_changed",
                    actor=f"user:{id}",
                    target=f"user:{id}",
                    sid=sid,
                    address=client.address,
                    personal={"before": before, "after": after},
                )
        return msgspec.structs.replace(account.user, **after)

    # -- what admins do

    async def page(self, by: users.Filter, *, limit: int, after: Cursor | None) -> tuple[list[User], Cursor | None]:
        with translated():
            return await users.page(self._pool, by, limit=limit, after=after)

    async def change(
        self,
        id: str,
        *,
        disabled: bool | None,
        roles: Iterable[str] | None,
        banned_until: float | None,
        reason: str,
        actor: str,
        scopes: Collection[str],
        sid: str = "",
        address: str = "",
    ) -> tuple[User, Receipt | None]:
        """Disable, enable, ban, or give other roles; the receipt of what that ended or changed. `scopes` are the
        actor's.

        Problems: not_found, forbidden (the user has a role, or would get one, that may what the actor may not).
        """
        wanted = None if roles is None else checked_roles(roles)
        beyond = granting.beyond(self._settings.roles, scopes)
        with translated():
            async with self._revocations.writing(actor=actor) as writing:
                await change_user(
                    writing,
                    id,
                    disabled=disabled,
                    roles=wanted,
                    banned_until=banned_until,
                    reason=reason,
                    lives=self._sessions.policy,
                    rules=self._settings,
                    actor=actor,
                    sid=sid,
                    address=address,
                    beyond=beyond,
                )
                user = await users.find(writing.connection, id)
        assert user is not None  # noqa: S101 - it was changed just now
        return user, writing.receipt

    # -- failures are written a little later: a login's answer must not tell by its time that there is an account

    def _count_failure(self, account: Account | None) -> None:
        if account is not None:
            self._failures[account.user.id] = self._failures.get(account.user.id, 0) + 1

    async def _keep_failures(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_FAILURES)
            await self.flush()

    async def flush(self) -> None:
        """Write the failures that were counted. What cannot be written is kept for the next time."""
        if not self._failures:
            return
        counts, self._failures = self._failures, {}
        try:
            with translated():
                async with self._pool.acquire() as connection, connection.transaction():
                    await _write_failures(connection, counts)
        except Problem:
            for id, count in counts.items():
                self._failures[id] = self._failures.get(id, 0) + count
            log.warning("failures_not_written")


async def guest_of(pool: Pool, client: Client) -> Held | None:
    """The session that came along, if it is a guest's."""
    held = client.held
    return held if held is not None and await store.is_guest(pool, held.user) else None


async def take_over(writing: Writing, guest: Held) -> None:
    """The guest gets an account and stays who they are: their sockets are sent for another session (3014). The caller
    ends the one that they have, after that. Problem session_ended for one who is gone, or registers twice at once."""
    await store.lock_subjects(writing.connection, [guest.user])
    await writing.require_live(guest.sid)
    await store.no_guest_any_more(writing.connection, guest.user)
    writing.append(Entry(kind=Kind.RIGHTS, subject=guest.user, reason="registered"))


async def hold(writing: Ledger, id: str, actor: str, sid: str, beyond: Collection[str] = ()) -> Subject:
    """Lock the user whom something is done to, and the session `sid` that does it, which must be live (7e); "" for who
    needs none. The `actor`, whose session it is, is locked before it with the other, in one order: two who change each
    other at once would else wait for each other.

    Whatever an admin does to a user comes by here. Problems: not_found, forbidden for a user with a role of `beyond`,
    the roles that may more than the actor (`config.scopes.beyond`).
    """
    await store.lock_subjects(writing.connection, [id, actor.removeprefix("user:")] if sid else [id])
    if sid:
        await writing.require_live(sid)
    subject = await store.subject(writing.connection, id)
    if subject is None:
        raise Problem("not_found")
    if actor != f"user:{id}":
        require_within(subject.roles, beyond)
    return subject


async def confirm(
    throttle: Throttle, passwords: Passwords, account: Account, password: str, sid: str, client: Client
) -> None:
    """The owner's password again, for what they do in the session `sid`. Problems: invalid_credentials,
    too_many_attempts, busy."""
    async with throttle.attempt(client.address, account.email_key, device=f"session {sid}") as attempt:
        if not (await passwords.check(account.password_hash, password)).right:
            raise Problem("invalid_credentials")
        await attempt.succeeded()


async def _audit_new(writing: Writing, action: audit.Action, id: str, client: Client) -> None:
    await audit.append(writing.connection, action, actor=f"user:{id}", target=f"user:{id}", address=client.address)


def _admits(user: User, *, known: bool) -> bool:
    """Whether the right password lets this user in, from a device or address that is `known` or not."""
    return user.admitted and (known or user.failures < users.TOO_MANY_FAILURES)


async def _write_failures(connection: Connection, counts: Mapping[str, int]) -> None:
    await webhooks.tell_failures(connection, counts)
    for id in await users.add_failures(connection, counts):
        detail = {"failures": users.TOO_MANY_FAILURES}
        await audit.append(connection, "user.password_disabled", actor="system", target=f"user:{id}", detail=detail)
        log.warning("password_disabled", user=id)


async def end_logins(writing: Ledger, id: str, now: float, *, except_sid: str = "") -> int:
    """End every live session of a locked subject but one, because the password changed; how many these are."""
    live = await store.lock_live(writing.connection, id, now=now)
    others = [sid for sid in live if sid != except_sid]
    for sid in others:
        writing.append(Entry(kind=Kind.SESSION, sid=sid, code=REVOKED, reason="password_changed"))
    return len(others)


def require_display_name(text: str) -> None:
    if not users.is_display_name(text):
        raise invalid("display_name", f"at most {users.MAX_NAME} printable characters")


def min_length(settings: Auth, account: Account) -> int:
    """Of a new password of this account: longer for who has rights over others and no second factor."""
    if account.second_factor or not granting.of_roles(settings.roles, account.user.roles):
        return settings.password_min_length
    return max(settings.password_min_length, settings.admin_password_min_length)


def require_guarded(settings: Auth, account: Account, roles: Iterable[str], *, second_factor: bool) -> None:
    """Problem forbidden where an account with these roles would have rights over others by a short password alone, or
    by one whose length nobody has seen yet."""
    if second_factor or not granting.of_roles(settings.roles, roles):
        return
    if account.password_at_least < settings.admin_password_min_length:
        wanted = f"a password of {settings.admin_password_min_length} characters that was set or used since"
        raise Problem("forbidden", f"rights over others need a second factor, or {wanted}")


def registrable(settings: Auth, email: str, password: str, display_name: str) -> str:
    """What every new account is held to; the password as it is hashed. Problems: forbidden, invalid."""
    if not settings.registration:
        raise Problem("forbidden", "registration is closed")
    if not users.is_email(email):
        raise invalid("email", "an e-mail address")
    require_display_name(display_name)
    return policy.acceptable("password", password, settings.password_min_length, (email, display_name))


def checked_roles(roles: Iterable[str]) -> tuple[str, ...]:
    """Each once, in order; 422 for what is no role's name."""
    distinct = tuple(sorted(set(roles)))
    if len(distinct) > MAX_ROLES or not all(ROLE.fullmatch(role) for role in distinct):
        raise invalid("roles", f"at most {MAX_ROLES} names of a-z, 0-9, _ and -, up to 32 characters each")
    return distinct


def require_within(roles: Iterable[str], beyond: Collection[str]) -> None:
    """Problem forbidden for who acts on a user with one of the roles `beyond` their own rights."""
    if above := sorted({*roles} & {*beyond}):
        raise Problem("forbidden", f"the role {above[0]} may what you may not")


async def change_user(
    writing: Ledger,
    id: str,
    *,
    disabled: bool | None = None,
    roles: tuple[str, ...] | None = None,
    banned_until: float | None = None,
    reason: str,
    lives: Policy,
    rules: Auth | None = None,
    actor: str,
    sid: str = "",
    address: str = "",
    beyond: Collection[str] = (),
) -> None:
    """What `Users.change` does, in the caller's transaction. What is so already changes nothing. `banned_until` is
    database time; a ban that is over, or NO_BAN, is none. `beyond`: the roles that may more than the actor.

    Rights over others are given to who has a second factor or a long password (`rules`: None does not ask).
    Roles with a shorter life make the user's sessions end sooner (`lives`), roles with a longer one none of them later.

    `actor`, `sid`: as `hold` takes them.
    """
    connection = writing.connection
    before = await hold(writing, id, actor, sid, beyond)
    require_within(roles or (), beyond)
    if roles is not None and rules is not None and not granting.of_roles(rules.roles, before.roles):
        account = await users.by_id(connection, id)
        if account is not None:
            require_guarded(rules, account, roles, second_factor=account.second_factor)
    after = await store.change_subject(
        connection, id, active=None if disabled is None else not disabled, roles=roles, banned_until=banned_until
    )
    assert after is not None  # noqa: S101 - it is locked
    now = await store.database_now(connection)
    if before.active and not after.active:
        writing.append(Entry(kind=Kind.USER, subject=id, code=DISABLED, reason=reason))
    elif before.admitted(now) and not after.admitted(now):
        message = f"banned until {rfc3339(after.banned_until)}"
        writing.append(Entry(kind=Kind.USER, subject=id, code=DISABLED, reason=reason, message=message))
    elif set(after.roles) != set(before.roles):
        for one in await store.impersonations(connection, user=id):  # either may have got, or lost, rights
            writing.append(Entry(kind=Kind.SESSION, sid=one, reason="impersonation_ended"))
        await store.shorten(connection, id, lives.life(after.roles))
        writing.append(Entry(kind=Kind.RIGHTS, subject=id, reason=reason))
    told = {"actor": actor, "target": f"user:{id}", "sid": sid, "address": address}
    if _ban(before, now) != _ban(after, now):
        action: audit.Action = "user.unbanned" if _ban(after, now) is None else "user.banned"
        bans = {"before": {"banned_until": _ban(before, now)}, "after": {"banned_until": _ban(after, now)}}
        await audit.append(connection, action, **told, detail=bans, personal={"reason": reason})
    if banned_until is None or disabled is not None or roles is not None:
        changes = {"before": _standing(before), "after": _standing(after)}
        await audit.append(connection, "user.changed", **told, detail=changes, personal={"reason": reason})


def _ban(subject: Subject, now: float) -> str | None:
    return rfc3339(subject.banned_until) if subject.banned_until > now else None


def _standing(subject: Subject) -> dict[str, Any]:
    return {"disabled": not subject.active, "roles": list(subject.roles)}
