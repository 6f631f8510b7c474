"""Is this mailbox theirs? Registering by letter, a forgotten password, another address.

Nobody can tell from an answer, or from the time that it took, whether an address has an account: the answer is always
the same, and what is looked up is looked up later, by a job of the kind "mailbox" that sends one letter or another.
What a letter's link brings back is a one-time token; what it does is one transaction.
"""

from typing import Any, Literal
from uuid import uuid4

import msgspec
import structlog

from auth import letters, one_time, passkeys, profiles, users
from auth import passwords as policy
from auth.freshness import Freshness
from auth.letters import Order, Token
from auth.passwords import Passwords, Stored
from auth.service import NO_ACCOUNT, Client, confirm, end_logins, guest_of, min_length, registrable, take_over
from auth.throttle import Throttle
from auth.users import Account
from config.database import Connection, Pool
from config.http import Problem, invalid
from config.jobs import GiveUp, Job, Jobs, Kind, enqueue
from config.settings import Auth, Mail
from sessions import audit, model, store
from sessions.errors import translated
from sessions.revocations import Entry, Revocations, Writing
from sessions.transactions import transaction

JOB = "mailbox"
CHANGE_JOB = "mailbox.change"
VERIFY_FOR, RESET_FOR, CHANGE_FOR = 24 * 3600.0, 2 * 3600.0, 24 * 3600.0
"""How long a link is good, in seconds."""

LETTERS_PER_HOUR = 5
"""Letters to one mailbox that nobody who is logged in asked for. What is above it is dropped."""

ASKED_PER_HOUR = 20
"""Such letters that one address may ask for; above it `too_many_attempts`."""

TIDIED_EVERY = 3600.0

log = structlog.get_logger(__name__)

Wish = Literal["register", "resend", "reset"]


class Asked(msgspec.Struct, frozen=True):
    """What a job of the kind "mailbox" holds: somebody wants a letter to an address."""

    wish: Wish
    email: str
    language: str
    registration: str = ""


class Change(msgspec.Struct, frozen=True):
    """What a job of the kind "mailbox.change" holds: a user wants another address, which stands in `email_changes`."""

    subject: str
    change: str
    language: str


class Mailboxes:
    """One a process. Its jobs are added to `jobs`."""

    def __init__(
        self,
        pool: Pool,
        revocations: Revocations,
        passwords: Passwords,
        throttle: Throttle,
        freshness: Freshness,
        jobs: Jobs,
        settings: Auth,
        mail: Mail,
    ) -> None:
        self._pool, self._revocations, self._passwords, self._throttle = pool, revocations, passwords, throttle
        self._freshness, self._jobs, self._settings, self._mail = freshness, jobs, settings, mail
        jobs.add(JOB, Kind(self._answer))
        jobs.add(CHANGE_JOB, Kind(self._ask_both))
        jobs.add("mailbox.tidy", Kind(self._tidy, every=TIDIED_EVERY))

    # -- asked by anybody; the answer tells nothing

    async def register(self, email: str, password: str, display_name: str, client: Client) -> None:
        """An account for whoever opens the link in the letter. Problems: forbidden, invalid, too_many_attempts,
        busy."""
        self._require_mail()
        normal = registrable(self._settings, email, password, display_name)
        await self._throttle.make("register", client.address, self._settings.register_per_address_per_hour)
        stored = await self._passwords.make("password", normal)
        with translated():
            guest = await guest_of(self._pool, client)
        id, by = uuid4().hex, guest and guest.user
        async with transaction(self._pool) as connection:
            await connection.execute(_REGISTER, id, email, users.email_key(email), display_name, stored.form, by)
            await self._enqueue(connection, Asked("register", email, self._language(client), id))
        self._jobs.wake()

    async def ask(self, wish: Literal["resend", "reset"], email: str, client: Client) -> None:
        """The letter of the latest registration again, or one for a new password. Problems: forbidden, invalid,
        too_many_attempts."""
        self._require_mail()
        if not users.is_email(email):
            raise invalid("email", "an e-mail address")
        await self._throttle.make("letters", client.address, ASKED_PER_HOUR)
        async with transaction(self._pool) as connection:
            await self._enqueue(connection, Asked(wish, email, self._language(client)))
        self._jobs.wake()

    def _language(self, client: Client) -> str:
        return letters.language_of(client.language, self._mail.language)

    def _require_mail(self) -> None:
        if not self._settings.local_accounts:
            raise Problem("forbidden", "accounts are kept elsewhere")
        if not self._mail.on:
            raise Problem("forbidden", "no mail is sent here")

    @staticmethod
    async def _enqueue(connection: Connection, asked: Asked) -> None:
        await enqueue(connection, JOB, [msgspec.to_builtins(asked)])

    # -- answered later, by a letter

    async def _answer(self, job: Job) -> None:
        try:
            asked = msgspec.convert(job.payload, Asked)
        except msgspec.ValidationError as error:
            raise GiveUp(f"nobody asks so: {error}") from None
        key = users.email_key(asked.email)
        if job.attempt == 1 and not await self._throttle.permits("letters to", key, LETTERS_PER_HOUR):
            log.info("letter_dropped", wish=asked.wish)
            return
        async with transaction(self._pool) as connection:
            account = await users.by_email(connection, key)
            order = await self._order(connection, asked, key, account)
            if order is not None:
                await letters.post(connection, order)
        self._jobs.wake()

    async def _order(self, connection: Connection, asked: Asked, key: str, account: Account | None) -> Order | None:
        if account is not None:
            if not account.user.admitted or asked.wish == "resend":
                return None
            if asked.wish == "register":
                return _order("address_taken", account, asked.language)
            return _order(
                "reset_password",
                account,
                asked.language,
                Token("reset_password", account.user.id, RESET_FOR, _as(account)),
            )
        if asked.wish == "reset":
            return None
        record = await connection.fetchrow(_WAITING, key, asked.registration or None, VERIFY_FOR)
        if record is None:
            return None
        token = Token("verify_email", None, VERIFY_FOR, {"registration": record["id"].hex})
        return Order("verify_email", record["email"], asked.language, {"name": record["display_name"]}, token)

    # -- what links bring back

    async def verify(self, token: str, password: str, client: Client) -> None:
        """The registration becomes an account, which logs in as any other. It wants the password that was registered
        with: an address is opened by whose mailbox it is, and never with a password that a stranger chose for them.

        A guest who registered and opens the link becomes that account, and their session is over. Neither alone will
        do: an address of others gives them no guest's id.

        Problems: invalid, invalid_credentials, challenge_required, too_many_attempts, busy, email_taken, session_ended.
        """
        normal = policy.bounded("password", password)
        with translated():
            known = await one_time.peek(self._pool, "verify_email", token)
            registration = known and await self._pool.fetchrow(_REGISTRATION, known.detail["registration"])
        if registration is None:
            raise _no_longer("token")
        async with self._throttle.attempt(client.address, registration["email_key"], proof=client.proof) as attempt:
            if not (await self._passwords.check(registration["password_hash"], normal)).right:
                raise Problem("invalid_credentials")
            await attempt.succeeded()
        with translated():
            guest = await guest_of(self._pool, client)
            async with self._revocations.writing(actor="system") as writing:
                connection = writing.connection
                redeemed = await _redeemed(connection, token, "verify_email")
                record = await connection.fetchrow(_TAKE, redeemed.detail["registration"])
                if record is None:
                    raise _no_longer("token")
                if guest is not None and guest.user != record["guest"]:
                    guest = None
                id = users.new_id() if guest is None else guest.user
                if guest is None:
                    await store.create_subject(connection, id)
                else:
                    await take_over(writing, guest)
                    writing.append(Entry(kind=model.Kind.SESSION, sid=guest.sid, code=model.REPLACED))
                kept = Stored(record["password_hash"], self._passwords.at_least(normal))
                made = await users.insert(connection, id, record["email"], record["display_name"], kept)
                if made is None:
                    raise Problem("email_taken")
                await users.verified(connection, id)
                await audit.append(
                    connection,
                    "user.created",
                    actor=f"user:{id}",
                    target=f"user:{id}",
                    address=client.address,
                    detail={} if guest is None else {"replaced": [guest.sid]},
                )
        await self._throttle.know(client.address, registration["email_key"], anew=True)

    async def reset(self, token: str, new: str, client: Client) -> None:
        """A new password; every session of the user ends. Problems: invalid (also a link that is no longer good),
        busy."""
        normal = policy.acceptable("new_password", new, self._passwords.min_length)
        with translated():
            known = await one_time.peek(self._pool, "reset_password", token)
        if known is None:
            raise _no_longer("token")  # before a hash is spent on it
        stored = await self._passwords.make("new_password", normal)
        with translated():
            async with self._revocations.writing(actor=f"user:{known.subject}") as writing:
                connection = writing.connection
                subject = await store.subject(connection, known.subject, lock=True)
                redeemed = await _redeemed(connection, token, "reset_password")
                account = await users.by_id(connection, redeemed.subject)
                if subject is None or account is None or not account.user.admitted or redeemed.detail != _as(account):
                    raise _no_longer("token")
                context = (account.user.email, account.user.display_name)
                policy.acceptable("new_password", new, min_length(self._settings, account), context)
                id = account.user.id
                ended = await end_logins(writing, id, self._revocations.database_now())
                await store.bump_credential_version(connection, id)
                await users.set_password(connection, id, stored)
                await users.verified(connection, id)
                await one_time.void(connection, id)
                await audit.append(
                    connection,
                    "user.password_reset",
                    actor=f"user:{id}",
                    target=f"user:{id}",
                    address=client.address,
                    detail={"sessions_ended": ended},
                )
                at = self._revocations.database_now()
                await letters.tell(connection, self._mail, "password_changed", account.user, client.language, at)
        await self._throttle.know(client.address, account.email_key)
        self._jobs.wake()

    # -- another address

    async def change(self, id: str, sid: str, email: str, password: str, client: Client) -> None:
        """Letters to the old and the new address; the change is done when both are answered. An address that has an
        account gets a letter that says so, and nothing else happens: which of the two it is a job finds out.

        Problems: invalid_credentials, step_up_required, invalid, forbidden, too_many_attempts, busy, session_ended.
        """
        self._require_mail()
        if not users.is_email(email):
            raise invalid("email", "an e-mail address")
        normal = policy.bounded("current_password", password)
        with translated():
            account = await users.by_id(self._pool, id)
        if account is None:
            raise Problem("forbidden", NO_ACCOUNT)
        await self._freshness.require(id, sid)
        await self._throttle.some("letters of", id, LETTERS_PER_HOUR)
        await confirm(self._throttle, self._passwords, account, normal, sid, client)
        with translated():
            async with self._revocations.writing(actor=f"user:{id}") as writing:
                connection, change = writing.connection, uuid4().hex
                await store.subject(connection, id, lock=True)
                await connection.execute(_CHANGE, id, change, email, account.credential_version)
                asked = Change(id, change, self._language(client))
                await enqueue(connection, CHANGE_JOB, [msgspec.to_builtins(asked)])
                await writing.require_live(sid)
                await audit.append(
                    writing.connection,
                    "user.email_change_asked",
                    actor=f"user:{id}",
                    target=f"user:{id}",
                    sid=sid,
                    address=client.address,
                )
        self._jobs.wake()

    async def _ask_both(self, job: Job) -> None:
        try:
            asked = msgspec.convert(job.payload, Change)
        except msgspec.ValidationError as error:
            raise GiveUp(f"nobody asks so: {error}") from None
        id, language, detail = asked.subject, asked.language, {"change": asked.change}
        async with transaction(self._pool) as connection:
            email = await connection.fetchval(_ASKED, id, asked.change)
            account = await users.by_id(connection, id)
            if email is None or account is None:  # another one was asked for since, or the user is gone
                return
            other = await users.by_email(connection, users.email_key(email))
            if other is not None and other.user.id != id:
                await letters.post(connection, _order("address_taken", other, language))
                return
            values = {"name": account.user.display_name, "email": email}
            await letters.post(
                connection,
                Order("change_email", email, language, values, Token("change_email", id, CHANGE_FOR, detail)),
                Order(
                    "approve_email",
                    account.user.email,
                    language,
                    values,
                    Token("approve_email", id, CHANGE_FOR, detail),
                ),
            )
        self._jobs.wake()

    async def confirm_change(self, token: str, client: Client) -> bool:
        """One of the two links was opened; whether the address has changed with it. Problems: invalid, email_taken."""
        with translated():
            known = await one_time.peek(self._pool, "change_email", token)
            purpose: one_time.Purpose = "change_email" if known is not None else "approve_email"
            known = known or await one_time.peek(self._pool, purpose, token)
            if known is None:
                raise _no_longer("token")
            async with self._revocations.writing(actor=f"user:{known.subject}") as writing:
                connection = writing.connection
                await store.subject(connection, known.subject, lock=True)
                redeemed = await _redeemed(connection, token, purpose)
                account = await users.by_id(connection, redeemed.subject)
                change = await connection.fetchrow(
                    _CONFIRM, redeemed.subject, redeemed.detail["change"], purpose == "change_email"
                )
                if account is None or change is None or change["credential_version"] != account.credential_version:
                    raise _no_longer("token")
                if not (change["new_confirmed"] and change["old_confirmed"]):
                    return False
                await self._move(writing, account, change["email"], client)
        await self._throttle.know(client.address, users.email_key(change["email"]), anew=True)
        self._jobs.wake()
        return True

    async def _move(self, writing: Writing, account: Account, email: str, client: Client) -> None:
        connection = writing.connection
        id, old = account.user.id, account.user.email
        if not await users.set_email(connection, id, email):
            raise Problem("email_taken")
        writing.append(profiles.changed(id))
        await connection.execute(_FORGET_CHANGE, id)
        await one_time.void(connection, id)
        await letters.post(
            connection,
            Order("email_changed", old, self._language(client), {"name": account.user.display_name, "email": email}),
        )
        await audit.append(
            connection, "user.email_changed", actor=f"user:{id}", target=f"user:{id}", address=client.address
        )

    async def _tidy(self, _job: Job) -> None:
        await one_time.tidy(self._pool)
        await passkeys.tidy(self._pool)
        await self._pool.execute(_TIDY_REGISTRATIONS, VERIFY_FOR)
        await self._pool.execute(_TIDY_CHANGES, CHANGE_FOR)


def _as(account: Account) -> dict[str, Any]:
    """What a token for a new password is bound to: another password or another address makes it void."""
    return {"version": account.credential_version, "email": account.email_key}


def _order(letter: letters.Name, account: Account, language: str, token: Token | None = None) -> Order:
    return Order(letter, account.user.email, language, {"name": account.user.display_name}, token)


async def _redeemed(connection: Connection, token: str, purpose: one_time.Purpose) -> one_time.Redeemed:
    redeemed = await one_time.redeem(connection, purpose, token)
    if redeemed is None:
        raise _no_longer("token")
    return redeemed


def _no_longer(field: str) -> Problem:
    return invalid(field, "the link is used, too old, or was never sent: ask for another one")


_REGISTER = """
INSERT INTO registrations (id, email, email_key, display_name, password_hash, guest) VALUES ($1, $2, $3, $4, $5, $6)
"""
_WAITING = """
SELECT id, email, display_name FROM registrations
WHERE email_key = $1 AND ($2::uuid IS NULL OR id = $2) AND created_at > clock_timestamp() - make_interval(secs => $3)
ORDER BY created_at DESC LIMIT 1
"""
# Locked in order: of two links for one address that are opened at once, one waits for the other.
_TAKE = """
WITH waiting AS (
    SELECT id FROM registrations WHERE email_key = (SELECT email_key FROM registrations WHERE id = $1)
    ORDER BY id FOR UPDATE
), taken AS (DELETE FROM registrations r USING waiting w WHERE r.id = w.id RETURNING r.*)
SELECT * FROM taken WHERE id = $1
"""
_REGISTRATION = "SELECT email_key, password_hash FROM registrations WHERE id = $1"
_TIDY_REGISTRATIONS = "DELETE FROM registrations WHERE created_at < clock_timestamp() - make_interval(secs => $1)"
_CHANGE = """
INSERT INTO email_changes (subject, id, email, credential_version) VALUES ($1, $2, $3, $4)
ON CONFLICT (subject) DO UPDATE SET id = excluded.id, email = excluded.email, new_confirmed = false,
    old_confirmed = false, credential_version = excluded.credential_version, created_at = clock_timestamp()
"""
_ASKED = "SELECT email FROM email_changes WHERE subject = $1 AND id = $2"
_CONFIRM = """
UPDATE email_changes SET new_confirmed = new_confirmed OR $3, old_confirmed = old_confirmed OR NOT $3
WHERE subject = $1 AND id = $2 RETURNING *
"""
_FORGET_CHANGE = "DELETE FROM email_changes WHERE subject = $1"
_TIDY_CHANGES = "DELETE FROM email_changes WHERE created_at < clock_timestamp() - make_interval(secs => $1)"
