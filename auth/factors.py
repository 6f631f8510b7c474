"""What a person does with their second factor: turning it on and off, and showing a factor again (step-up).

Logging in with it stands in `service`. Every path that takes a code or a password counts it first (`throttle`), by a
budget that nothing but a right code gives back. Lock order: subject, session, then the factor's row.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from auth import letters, totp, users
from auth.passwords import Passwords, bounded
from auth.service import Client
from auth.throttle import Attempt, Throttle
from auth.totp import Begun, Codes, Freshness, State
from auth.users import Account
from config.database import Pool
from config.http import Problem
from config.settings import Mail
from sessions import audit, store
from sessions.errors import translated
from sessions.log import Entry
from sessions.model import Kind
from sessions.revocations import Revocations, Writing
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
        freshness: Freshness,
        mail: Mail,
    ) -> None:
        self._pool, self._revocations, self._sessions, self._mail = pool, revocations, sessions, mail
        self._passwords, self._throttle, self._codes, self._freshness = passwords, throttle, codes, freshness

    async def state(self, asker: Asker) -> State:
        with translated():
            state = await totp.state(self._pool, asker.id, asker.sid)
        if state is None:
            raise Problem("unauthenticated", "there is no such session")
        return state

    async def begin(self, asker: Asker) -> Begun:
        """A secret, which `confirm` turns on. Problems: step_up_required, forbidden, session_ended."""
        account = await self._account(asker)
        await self._freshness.require(asker.id, asker.sid, always=True)
        with translated():
            async with self._revocations.writing(actor=f"user:{asker.id}") as writing:
                await self._hold(writing, asker)
                begun = await self._codes.begin(writing.connection, asker.id, account.user.email)
        if begun is None:
            raise Problem("forbidden", "a second factor is on: turn it off first")
        return begun

    async def confirm(self, asker: Asker, code: str) -> tuple[list[str], Opened]:
        """The first code turns the factor on: the recovery codes, and the session, which has seen it.

        Problems: step_up_required, invalid_credentials, too_many_attempts, forbidden, session_ended.
        """
        account = await self._account(asker)
        await self._freshness.require(asker.id, asker.sid, always=True)
        async with self._attempt(account, asker) as attempt:
            with translated():
                async with self._revocations.writing(actor=f"user:{asker.id}") as writing:
                    await self._hold(writing, asker)
                    connection, now = writing.connection, self._revocations.database_now()
                    made = await self._codes.confirm(connection, asker.id, code, now)
                    if made is None:
                        raise Problem("invalid_credentials", "not the code of now")
                    secret = await self._sessions.step_up(writing, asker.sid, aal=2, cookie=asker.cookie)
                    await self._tell(writing, "user.factor_added", "second_factor_on", account, asker)
            await attempt.succeeded()
        return made, await self._opened(asker, secret)

    async def remove(self, asker: Asker, code: str) -> None:
        """The factor goes, by a code of its own: so it is as fresh as can be. Every session has one factor again.

        Problems: invalid_credentials, too_many_attempts, forbidden, session_ended.
        """
        account = await self._account(asker)
        async with self._attempt(account, asker) as attempt:
            with translated():
                async with self._revocations.writing(actor=f"user:{asker.id}") as writing:
                    await self._hold(writing, asker)
                    await self._spend(writing, asker, code)
                    await totp.remove(writing.connection, asker.id)
                    await store.step_down(writing.connection, asker.id, now=self._sessions.now())
                    writing.append(Entry(kind=Kind.RIGHTS, subject=asker.id, reason="factor_removed"))
                    await self._tell(writing, "user.factor_removed", "second_factor_off", account, asker)
            await attempt.succeeded()

    async def step_up(self, asker: Asker, password: str, code: str) -> Opened:
        """A factor again: of whoever has a second one a code, of others the password. The session's cookie has another
        secret from then on; its sid and its sockets stay.

        Problems: invalid_credentials, second_factor_required, too_many_attempts, busy, forbidden, session_ended.
        """
        account = await self._account(asker)
        if account.second_factor and not code:
            raise Problem("second_factor_required", "this account wants a code")
        normal = "" if code else bounded("password", password)
        async with self._attempt(account, asker) as attempt:
            if not code and not (await self._passwords.check(account.password_hash, normal)).right:
                raise Problem("invalid_credentials")
            with translated():
                async with self._revocations.writing(actor=f"user:{asker.id}") as writing:
                    await self._hold(writing, asker, None if code else account)
                    by = await self._spend(writing, asker, code) if code else "password"
                    secret = await self._sessions.step_up(writing, asker.sid, aal=2 if code else 1, cookie=asker.cookie)
                    await self._audit(writing, "session.stepped_up", asker, {"by": by})
            await attempt.succeeded()
        return await self._opened(asker, secret)

    # -- parts

    async def _account(self, asker: Asker) -> Account:
        with translated():
            account = await users.by_id(self._pool, asker.id)
            reading = await self._sessions.by_sid(asker.sid)
        if account is None:
            raise Problem("forbidden", "this account is kept elsewhere")
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
            raise Problem("invalid_credentials", "this code is not good")
        return by

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

    async def _tell(
        self, writing: Writing, action: audit.Action, letter: letters.Name, account: Account, asker: Asker
    ) -> None:
        await self._audit(writing, action, asker, {})
        at = self._revocations.database_now()
        await letters.tell(writing.connection, self._mail, letter, account.user, asker.client.language, at)
