"""Deleting people: their sessions end by the log, and what was known of them goes.

One transaction ends the sessions and deletes the account: the row in `users` and what refers to it, registrations and
letters that wait, what sessions knew of devices and addresses. The subject stays as an id that is nobody's: so what is
over stays over. A job then blanks the audit, in batches; the chain holds (`sessions.audit`). Of another issuer's user
the traces go in the same way; whether they come again is that issuer's to say.
"""

from collections.abc import Collection
from typing import Final

from auth import key_keeping, letters, one_time, users
from auth import passwords as policy
from auth.freshness import Freshness
from auth.passwords import Passwords
from auth.service import NO_ACCOUNT, Client, Ledger, confirm, hold
from auth.throttle import Throttle
from config.database import Connection, Pool
from config.http import Problem
from config.jobs import Job, Jobs, Kind, enqueue
from config.settings import Mail
from sessions import audit, log, model, store
from sessions.errors import Stale, translated
from sessions.log import Entry
from sessions.revocations import Receipt, Revocations

JOB: Final = "person.forget"
AT_ONCE: Final = 1000
"""Rows of the audit that are blanked in one statement."""


class Erasure:
    """One a process. Its job is added to `jobs`."""

    def __init__(
        self,
        pool: Pool,
        revocations: Revocations,
        passwords: Passwords,
        throttle: Throttle,
        freshness: Freshness,
        jobs: Jobs,
        mail: Mail,
    ) -> None:
        self._pool, self._revocations, self._passwords = pool, revocations, passwords
        self._throttle, self._freshness, self._jobs, self._mail = throttle, freshness, jobs, mail
        jobs.add(JOB, Kind(self._forget))

    async def delete_own(self, id: str, sid: str, password: str, client: Client) -> Receipt:
        """A person deletes their account, by their password; a guest, who has none, by asking.

        Problems: invalid_credentials, step_up_required, invalid, forbidden, too_many_attempts, busy, session_ended.
        """
        with translated():
            account = await users.by_id(self._pool, id)
            guest = account is None and await store.is_guest(self._pool, id)
        if account is not None:
            normal = policy.bounded("password", password)
            await self._freshness.require(id, sid)
            await confirm(self._throttle, self._passwords, account, normal, sid, client)
        elif not guest:
            raise Problem("forbidden", NO_ACCOUNT)
        with translated():
            async with self._revocations.writing(actor=f"user:{id}") as writing:
                subject = await store.subject(writing.connection, id, lock=True)
                await writing.require_live(sid)
                if account is not None and (
                    subject is None or subject.credential_version != account.credential_version
                ):
                    raise Stale
                at, accepted = self._revocations.database_now(), client.language
                await erase(writing, self._mail, id, actor=f"user:{id}", at=at, sid=sid, accepted=accepted)
        return self._done(writing.receipt)

    async def delete(
        self, id: str, *, reason: str, actor: str, sid: str, address: str, beyond: Collection[str]
    ) -> Receipt:
        """An admin deletes a user. Problems: not_found, step_up_required, forbidden (oneself, or one with a role of
        `beyond`)."""
        if sid and actor == f"user:{id}":
            raise Problem("forbidden", "delete yourself by DELETE /auth/me")
        if sid:
            await self._freshness.require(actor.removeprefix("user:"), sid)
        with translated():
            async with self._revocations.writing(actor=actor) as writing:
                await hold(writing, id, actor, sid, beyond)
                at = self._revocations.database_now()
                await erase(writing, self._mail, id, actor=actor, at=at, sid=sid, address=address, reason=reason)
        return self._done(writing.receipt)

    def _done(self, receipt: Receipt | None) -> Receipt:
        self._jobs.wake()
        assert receipt is not None  # noqa: S101 - an end was appended
        return receipt

    async def _forget(self, job: Job) -> None:
        await forget(self._pool, job.payload["user"])


async def erase(
    writing: Ledger,
    mail: Mail,
    id: str,
    *,
    actor: str,
    at: float,
    accepted: str = "",
    sid: str = "",
    address: str = "",
    reason: str = "",
) -> None:
    """End every session of a user whose subject the caller has locked, and delete what is known of them, but for the
    audit, which the job does. Problem not_found."""
    connection = writing.connection
    if await store.subject(connection, id) is None:
        raise Problem("not_found")
    writing.append(Entry(kind=model.Kind.USER, subject=id, code=model.DISABLED, reason="account_deleted"))
    account = await users.by_id(connection, id)
    await store.erase_subject(connection, id, known_elsewhere=not users.is_local(id))
    await key_keeping.forget(writing, id)  # now that no session of theirs makes another
    if account is not None:
        await _drop_letters(connection, id, account.user.email, account.email_key)
        await letters.tell(connection, mail, "account_deleted", account.user, accepted, at)
        await users.delete(connection, id)
    await one_time.void(connection, id)
    await connection.execute("UPDATE registrations SET guest = NULL WHERE guest = $1", id)
    personal = {"reason": reason} if reason else {}
    await audit.append(
        connection, "user.deleted", actor=actor, target=f"user:{id}", sid=sid, address=address, personal=personal
    )
    await enqueue(connection, JOB, [{"user": id}])


async def _drop_letters(connection: Connection, id: str, email: str, email_key: str) -> None:
    await connection.execute(_DROP_LETTERS, id, email)
    await connection.execute("DELETE FROM registrations WHERE email_key = $1", email_key)


# Also those to the address that they were about to have, and those that were given up.
_DROP_LETTERS = """
DELETE FROM jobs WHERE kind = 'mail' AND (lower(payload->>'to') = lower($2) OR payload->'token'->>'subject' = $1)
    OR kind = 'mailbox' AND lower(payload->>'email') = lower($2)
"""


async def forget(pool: Pool, id: str) -> None:
    """What the audit and the log say by which the person could be known."""
    sids = [*{*await store.sids_of(pool, id), *await audit.opened_by(pool, id)}]
    await log.forget(pool, id, sids)
    acted = await audit.acted(pool, id)
    await pool.execute("UPDATE sessions SET device = '', address = '' WHERE sid = ANY($1)", acted)
    await pool.execute(_BLANK_EVENTS, [f"user:{id}", *(f"session:{sid}" for sid in sids)])
    while await audit.forget(pool, id, sids, acted, limit=AT_ONCE):
        pass


# What webhooks were to be told and was not, or was given up: that it happened, and no more.
_BLANK_EVENTS = """
UPDATE jobs SET payload = jsonb_set(payload, '{data,detail}', '{}')
WHERE kind = 'webhook' AND payload->'data'->>'target' = ANY($1) AND payload->'data'->>'action' <> 'user.deleted'
"""
