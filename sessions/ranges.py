"""Revocations of many: a role, or a user's sessions from before a moment. They become user and session rows inside the
revoking transactions, 2,000 a transaction, under one receipt that keeps how far they are.

Each transaction locks the receipt, goes on where the last one stopped, and so two processes that work at the same one
(a call and its repetition under the same Idempotency-Key) share the work instead of doing it twice.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from config.database import Connection, Pool
from config.http import Caller, Problem, invalid
from sessions import idempotency
from sessions.acting import Actors
from sessions.committer import Deed, record
from sessions.idempotency import Key
from sessions.log import Entry, Group, Written, write
from sessions.model import Kind
from sessions.transactions import transaction

MOST = 2_000
"""Rows in one transaction."""

_OF_ROLE = """
SELECT id FROM subjects WHERE $1 = ANY(roles) AND id > $2 ORDER BY id LIMIT $3
"""
# An external session begins here when its token is first seen; its `auth_time` is when the token was issued.
_BEFORE = """
SELECT sid AS id FROM sessions
WHERE subject = $1 AND least(created_at, auth_time) < $4 AND sid > $2 AND ended_at IS NULL ORDER BY sid LIMIT $3
"""
_OTHERS = "SELECT sid FROM sessions WHERE subject = $1 AND sid <> $2 AND ended_at IS NULL ORDER BY sid"
_PROGRESS = "SELECT progress, complete FROM receipts WHERE id = $1 FOR UPDATE"


class Range(msgspec.Struct, frozen=True, kw_only=True):
    """What is to end: `role`, or the sessions of `user` that were created before `issued_before`.

    `spared` is the caller's session, and `spared_user` whose it is: the user's other sessions end one by one.
    """

    entry: Entry  # code, reason, message and spread of every row
    role: str = ""
    user: str = ""
    issued_before: datetime | None = None
    spared: str = ""
    spared_user: str = ""


class Work:
    """One range on its way, `by` whose rights. `then(written)` runs right after each COMMIT."""

    def __init__(
        self,
        pool: Pool,
        wanted: Range,
        receipt: str,
        deed: Deed,
        by: Caller | None,
        then: Callable[[Written], None],
        now: Callable[[], float],
    ) -> None:
        self.receipt = receipt
        self.earlier = False
        self._pool = pool
        self._wanted = wanted
        self._deed = deed
        self._by = by
        self._then = then
        self._now = now

    async def run(self, key: Key | None) -> None:
        """All of it; the first transaction wants the session that acts live (7e), and what it ordered is carried out.

        Raises Problem: not_found, invalid, idempotency_conflict, unavailable, outcome_unknown, SessionEnded.
        """
        complete = await self._first(key)
        while not complete:
            complete = await self._more()

    async def _first(self, key: Key | None) -> bool:
        written = Written()
        async with transaction(self._pool, lambda: self._then(written)) as connection:
            actors = await Actors.read(connection, {self._deed.sid} - {""}, self._now(), [self._by])
            self._require(actors, None)
            await self._check(connection)
            before = await idempotency.claim(connection, {self.receipt: key}) if key is not None else {}
            if self.receipt in before:
                if not before[self.receipt]:
                    raise idempotency.conflict()
                self.receipt, self.earlier = before[self.receipt], True
                return False  # perhaps it stopped half way
            await record(connection, [(self._deed, self.receipt)])
            written, complete = await self._write(connection, "")
            await actors.look_again(connection)
            self._require(actors, written.rows[0].seq if written.rows else None)
        return complete

    def _require(self, actors: Actors, before: int | None) -> None:
        if (refusal := actors.refusal(self._deed.sid, self._by, before)) is not None:
            raise refusal

    async def _more(self) -> bool:
        written = Written()
        async with transaction(self._pool, lambda: self._then(written)) as connection:
            found: Any = await connection.fetchrow(_PROGRESS, self.receipt)
            if found is None or found["complete"]:
                return True
            written, complete = await self._write(connection, found["progress"])
        return complete

    async def _check(self, connection: Connection) -> None:
        """2d: by the database's clock; what is still to come cannot have been issued."""
        if self._wanted.issued_before is None:
            return
        if await connection.fetchval("SELECT $1::timestamptz > clock_timestamp()", self._wanted.issued_before):
            raise invalid("target.issued_before", "a time that has passed")
        if not await connection.fetchval("SELECT EXISTS (SELECT FROM subjects WHERE id = $1)", self._wanted.user):
            raise Problem("not_found", "no such user")

    async def _write(self, connection: Connection, after: str) -> tuple[Written, bool]:
        ids = await self._ids(connection, after)
        complete = len(ids) < MOST
        entries = [entry for id in ids for entry in await self._entries(connection, id)]
        drafts = [entry.draft(self.receipt) for entry in entries]
        group = Group(self.receipt, drafts, self._deed.actor, complete, ids[-1] if ids else after)
        return await write(connection, [group]), complete

    async def _ids(self, connection: Connection, after: str) -> list[str]:
        wanted = self._wanted
        if wanted.role:
            records = await connection.fetch(_OF_ROLE, wanted.role, after, MOST)
        else:
            records = await connection.fetch(_BEFORE, wanted.user, after, MOST, wanted.issued_before)
        return [r["id"] for r in records]

    async def _entries(self, connection: Connection, id: str) -> list[Entry]:
        wanted = self._wanted
        if not wanted.role:
            return [] if id == wanted.spared else [_of_session(wanted.entry, id)]
        if id != wanted.spared_user or not wanted.spared:
            return [msgspec.structs.replace(wanted.entry, kind=Kind.USER, subject=id)]
        records = await connection.fetch(_OTHERS, id, wanted.spared)
        return [_of_session(wanted.entry, r["sid"]) for r in records]


def _of_session(entry: Entry, sid: str) -> Entry:
    return msgspec.structs.replace(entry, kind=Kind.SESSION, sid=sid)
