"""What a person does with their second factors: an authenticator app and passkeys turned on and off, recovery codes,
and showing a factor again (step-up). And what an admin does for who has lost them.

Logging in with them stands in `service`. Every path that takes a code, a passkey or a password counts it first
(`throttle`), by a budget that nothing but a right one gives back. Lock order: subject, session, then the factor's row.

The first factor comes with recovery codes; with the last one they go, and every session has one factor again.
"""

from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from auth import freshness, letters, passkeys, totp, users
from auth.freshness import Freshness, State
from auth.passkeys import Passkey, Passkeys
from auth.passwords import Passwords, bounded
from auth.service import NO_ACCOUNT, NO_GOOD_CODE, Client, Ledger, hold, require_guarded
from auth.throttle import Attempt, Throttle
from auth.totp import Begun, Codes
from auth.users import Account
from auth.webauthn_json import Assertion, Attestation, CreationOptions, RequestOptions
from config import scopes as granting
from config.database import Pool
from config.http import Problem, invalid
from config.settings import Auth, Mail
from sessions import audit, store
from sessions.errors import translated
from sessions.log import Entry
from sessions.model import REVOKED, Kind
from sessions.revocations import Receipt, Revocations, Writing
from sessions.service import Opened, Sessions


class Asker(NamedTuple):
    """Who acts, by which session, and whether its cookie spoke."""

    id: str
    sid: str
    cookie: bool
    client: Client


class Factors:
    """One a process."""

    def __init__(
        self,
        pool: Pool,
        revocations: Revocations,
        sessions: Sessions,
        passwords: Passwords,
        throttle: Throttle,
        codes: Codes,
        passkeys: Passkeys,
        freshness: Freshness,
        settings: Auth,
        mail: Mail,
    ) -> None:
        self._pool, self._revocations, self._sessions, self._mail = pool, revocations, sessions, mail
        self._settings = settings
        self._passwords, self._throttle, self._freshness = passwords, throttle, freshness
        self._codes, self._passkeys = codes, passkeys

    async def state(self, asker: Asker) -> State:
        with translated():
            state = await freshness.state(self._pool, asker.id, asker.sid)
        if state is None:
            raise Problem("unauthenticated", "there is no such session")
        return state

    # -- an authenticator app

    async def begin(self, asker: Asker) -> Begun:
        """A secret, which `confirm` turns on. Problems: step_up_required, forbidden, session_ended."""
        account = await self._account(asker)
        await self._freshness.require(asker.id, asker.sid, always=True)
        with translated():
            async with self._revocations.writing(actor=f"user:{asker.id}") as writing:
                await self._hold(writing, asker)
                begun = await self._codes.begin(writing.connection, asker.id, account.user.email)
        if begun is None:
            raise Problem("forbidden", "an authenticator app is on: turn it off first")
        return begun

    async def confirm(self, asker: Asker, code: str) -> tuple[list[str], Opened]:
        """The first code turns the app on: the recovery codes, if it is the first factor, and the session, which has
        seen it.

        Problems: step_up_required, invalid_credentials, too_many_attempts, forbidden, session_ended.
        """
        account = await self._account(asker)
        await self._freshness.require(asker.id, asker.sid, always=True)
        async with self._attempt(account, asker) as attempt:
            with translated():
                async with self._revocations.writing(actor=f"user:{asker.id}") as writing:
                    await self._hold(writing, asker)
                    connection, now = writing.connection, self._revocations.database_now()
                    made = await self._first_codes(writing, asker)
                    if not await self._codes.confirm(connection, asker.id, code, now):
                        raise Problem("invalid_credentials", "not the code of now")
                    secret = await self._sessions.step_up(writing, asker.sid, aal=2, cookie=asker.cookie)
                    await self._audit(writing, "user.factor_added", asker, {"factor": "totp"})
                    await self._tell(writing, "second_factor_on", account, asker)
            await attempt.succeeded()
        return made, await self._opened(asker, secret)

    async def remove(self, asker: Asker, code: str) -> None:
        """The app goes, by a code of it or a recovery code: so it is as fresh as can be.

        Problems: invalid_credentials, too_many_attempts, forbidden, session_ended.
        """
        account = await self._account(asker)
        async with self._attempt(account, asker) as attempt:
            with translated():
                async with self._revocations.writing(actor=f"user:{asker.id}") as writing:
                    await self._hold(writing, asker)
                    await self._spend(writing, asker, code)
                    if not await totp.remove(writing.connection, asker.id):
                        raise Problem("invalid_credentials", "there is no authenticator app")
                    await self._removed(writing, asker)
                    await self._audit(writing, "user.factor_removed", asker, {"factor": "totp"})
                    await self._tell(writing, "second_factor_off", account, asker)
            await attempt.succeeded()

    # -- passkeys

    async def passkeys(self, id: str) -> list[Passkey]:
        with translated():
            return await passkeys.page(self._pool, id)

    async def new_passkey(self, asker: Asker) -> CreationOptions:
        """What a browser is asked for. Problems: step_up_required, forbidden."""
        account = await self._account(asker)
        await self._freshness.require(asker.id, asker.sid, always=True)
        return await self._passkeys.to_make(account.user, passkeys.new_of(asker.sid))

    async def add_passkey(self, asker: Asker, answer: Attestation, name: str) -> tuple[Passkey, list[str], Opened]:
        """Its answer: the passkey, the recovery codes, if it is the first factor, and the session, which has seen it.

        Problems: step_up_required, unauthenticated (its options are over), invalid_credentials, invalid,
        too_many_attempts, forbidden, session_ended.
        """
        account, named = await self._account(asker), checked_name(name)
        await self._freshness.require(asker.id, asker.sid, always=True)
        async with self._attempt(account, asker) as attempt:
            made = self._passkeys.made(answer, passkeys.new_of(asker.sid))
            with translated():
                async with self._revocations.writing(actor=f"user:{asker.id}") as writing:
                    await self._hold(writing, asker)
                    codes = await self._first_codes(writing, asker)
                    passkey = await self._passkeys.keep(writing.connection, asker.id, made, named)
                    secret = await self._sessions.step_up(writing, asker.sid, aal=2, cookie=asker.cookie)
                    await self._audit(writing, "user.factor_added", asker, _passkey(passkey.id))
                    await self._tell(writing, "passkey_added", account, asker)
            await attempt.succeeded()
        return passkey, codes, await self._opened(asker, secret)

    async def rename_passkey(self, asker: Asker, id: str, name: str) -> Passkey:
        """Problems: not_found, invalid, session_ended."""
        named = checked_name(name)
        with translated():
            async with self._revocations.acting(f"user:{asker.id}", asker.sid) as writing:
                passkey = await passkeys.rename(writing.connection, asker.id, id, named)
                if passkey is None:
                    raise Problem("not_found")
                await self._audit(writing, "user.factor_renamed", asker, _passkey(passkey.id))
        return passkey

    async def remove_passkey(self, asker: Asker, id: str) -> None:
        """Problems: step_up_required, not_found, forbidden, session_ended."""
        account = await self._account(asker)
        await self._freshness.require(asker.id, asker.sid, always=True)
        with translated():
            async with self._revocations.writing(actor=f"user:{asker.id}") as writing:
                await self._hold(writing, asker)
                if not await passkeys.remove(writing.connection, asker.id, id):
                    raise Problem("not_found")
                await self._removed(writing, asker)
                await self._audit(writing, "user.factor_removed", asker, _passkey(id))
                await self._tell(writing, "passkey_removed", account, asker)

    # -- a factor again

    async def passkey_to_step_up(self, asker: Asker) -> RequestOptions:
        """What a browser is asked for. Problem forbidden for who has no passkey."""
        await self._account(asker)
        return await self._passkeys.to_use(passkeys.step_up_of(asker.sid), asker.id)

    async def step_up(self, asker: Asker, password: str, code: str, passkey: Assertion | None) -> Opened:
        """A factor again: of whoever has a second one a code or a passkey, of others the password. The session's cookie
        has another secret from then on; its sid and its sockets stay.

        Problems: invalid_credentials, second_factor_required, unauthenticated (the options of the passkey are over),
        too_many_attempts, busy, forbidden, session_ended.
        """
        account = await self._account(asker)
        if account.second_factor and password:
            raise Problem("second_factor_required", "this account wants a second factor", factors=account.factors)
        normal = bounded("password", password) if password else ""
        async with self._attempt(account, asker) as attempt, self._passkeys.watched(asker.client.address):
            used = None
            if passkey is not None:
                used = await self._passkeys.used(
                    passkey, self._passkeys.begun(passkey, passkeys.step_up_of(asker.sid)), asker.id
                )
            if password and not (await self._passwords.check(account.password_hash, normal)).right:
                raise Problem("invalid_credentials")
            with translated():
                async with self._revocations.writing(actor=f"user:{asker.id}") as writing:
                    await self._hold(writing, asker, account if password else None)
                    by = "password"
                    if used is not None:
                        await self._passkeys.take(writing.connection, used)
                        by = "passkey"
                    elif code:
                        by = await self._spend(writing, asker, code)
                    aal = 1 if by == "password" else 2
                    secret = await self._sessions.step_up(writing, asker.sid, aal=aal, cookie=asker.cookie)
                    await self._audit(writing, "session.stepped_up", asker, {"by": by})
            await attempt.succeeded()
        return await self._opened(asker, secret)

    # -- lost

    async def recovery_codes(self, asker: Asker) -> list[str]:
        """New ones, in place of those before. Problems: step_up_required, forbidden, session_ended."""
        account = await self._account(asker)
        await self._freshness.require(asker.id, asker.sid, always=True)
        with translated():
            async with self._revocations.writing(actor=f"user:{asker.id}") as writing:
                await self._hold(writing, asker)
                had = await freshness.state(writing.connection, asker.id, asker.sid)
                if had is None or not had.on:
                    raise Problem("forbidden", "there is no second factor that they could stand for")
                codes = await self._codes.recovery(writing.connection, asker.id)
                await self._audit(writing, "user.recovery_codes_made", asker, {})
                await self._tell(writing, "recovery_codes", account, asker)
        return codes

    async def lost(
        self, id: str, reason: str, *, actor: str, scopes: Collection[str], sid: str, address: str
    ) -> Receipt | None:
        """What an admin does for who has lost their factors: all of them go, and every session of theirs ends.

        A session that acts (`sid`) must have shown its factors lately; `scopes` are the actor's. Problems:
        step_up_required, not_found, forbidden (one's own, or of who may what the actor may not), session_ended.
        """
        beyond = granting.beyond(self._settings.roles, scopes)
        if actor == f"user:{id}":
            raise Problem("forbidden", "remove your own with a factor")
        if sid:
            await self._freshness.require(actor.removeprefix("user:"), sid, always=True)
        with translated():
            async with self._revocations.writing(actor=actor) as writing:
                await hold(writing, id, actor, sid, beyond)
                at = self._revocations.database_now()
                await remove_all(writing, self._mail, id, reason, actor=actor, sid=sid, address=address, at=at)
        return writing.receipt

    # -- parts

    async def _account(self, asker: Asker) -> Account:
        with translated():
            account = await users.by_id(self._pool, asker.id)
            reading = await self._sessions.by_sid(asker.sid)
        if account is None:
            raise Problem("forbidden", NO_ACCOUNT)
        if reading is not None and reading.session.kind == "cookie" and not asker.cookie:
            # its secret would not rotate: what was stolen before would have what was shown now
            raise Problem("forbidden", "this session has a cookie: ask with that")
        return account

    def _attempt(self, account: Account, asker: Asker) -> AbstractAsyncContextManager[Attempt]:
        """A budget of the session's own, which no right password elsewhere gives back."""
        device = f"factors of {asker.sid}"
        return self._throttle.attempt(asker.client.address, account.email_key, device=device)

    async def _hold(self, writing: Writing, asker: Asker, verified: Account | None = None) -> None:
        """Lock the user and the live session (7e); with `verified` its password must be the same still."""
        subject = await store.subject(writing.connection, asker.id, lock=True)
        await writing.require_live(asker.sid)
        if verified is not None and (subject is None or subject.credential_version != verified.credential_version):
            raise Problem("invalid_credentials")

    async def _spend(self, writing: Writing, asker: Asker, code: str) -> totp.Factor:
        by = await self._codes.spend(writing.connection, asker.id, code, self._revocations.database_now())
        if by is None:
            raise Problem("invalid_credentials", NO_GOOD_CODE)
        return by

    async def _first_codes(self, writing: Writing, asker: Asker) -> list[str]:
        """Recovery codes with the first factor; whoever has one has codes already."""
        had = await freshness.state(writing.connection, asker.id, asker.sid)
        return [] if had is None or had.on else await self._codes.recovery(writing.connection, asker.id)

    async def _removed(self, writing: Writing, asker: Asker) -> None:
        """Was it the last? Then every session has one factor again."""
        left = await freshness.state(writing.connection, asker.id, asker.sid)
        if left is not None and left.on:
            return
        account = await users.by_id(writing.connection, asker.id)
        if account is not None:
            require_guarded(self._settings, account, account.user.roles, second_factor=False)
        await totp.forget_recovery(writing.connection, asker.id)
        await store.step_down(writing.connection, asker.id, now=self._sessions.now())
        writing.append(Entry(kind=Kind.RIGHTS, subject=asker.id, reason="factor_removed"))

    async def _opened(self, asker: Asker, secret: str) -> Opened:
        reading = await self._sessions.by_sid(asker.sid)
        if reading is None:
            raise Problem("unauthenticated", "there is no such session")
        return Opened(await self._sessions.admit(reading), secret)

    async def _audit(self, writing: Writing, action: audit.Action, asker: Asker, detail: Mapping[str, str]) -> None:
        await audit.append(
            writing.connection,
            action,
            actor=f"user:{asker.id}",
            target=f"user:{asker.id}",
            sid=asker.sid,
            address=asker.client.address,
            detail=detail,
        )

    async def _tell(self, writing: Writing, letter: letters.Name, account: Account, asker: Asker) -> None:
        at = self._revocations.database_now()
        await letters.tell(writing.connection, self._mail, letter, account.user, asker.client.language, at)


def checked_name(name: str) -> str:
    """What a passkey may be called."""
    if not name.strip() or len(name) > passkeys.MAX_NAME or not name.isprintable():
        raise invalid("name", f"1 to {passkeys.MAX_NAME} printable characters")
    return name.strip()


def _passkey(id: str) -> Mapping[str, str]:
    return {"factor": "passkey", "passkey": id}


async def remove_all(
    writing: Ledger,
    mail: Mail,
    id: str,
    reason: str,
    *,
    actor: str,
    at: float,
    sid: str = "",
    address: str = "",
) -> None:
    """What `Factors.lost` does, in the caller's transaction, which holds the subject. Problem not_found."""
    connection = writing.connection
    account = await users.by_id(connection, id)
    if account is None or not account.second_factor:
        raise Problem("not_found", "there is no such user with a second factor")
    await totp.remove(connection, id)
    await passkeys.remove_all(connection, id)
    await totp.forget_recovery(connection, id)
    writing.append(Entry(kind=Kind.USER, subject=id, code=REVOKED, reason=reason))
    await audit.append(
        connection,
        "user.factors_removed",
        actor=actor,
        target=f"user:{id}",
        sid=sid,
        address=address,
        detail={"factors": list(account.factors)},
        personal={"reason": reason},
    )
    await letters.tell(connection, mail, "factors_removed", account.user, "", at)
