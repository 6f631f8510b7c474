"""API keys: how a backend says who it is.

A key is 256 random bits, of which only SHA-256 is stored, so finding one is a look-up and needs no slow hash; a flood
of keys that are nobody's is one statement a loop turn. What was read is kept with its position in the revocation log;
expiry and revocation are asked on every use.

A key that a person made is theirs: it may no more than they may now, falls with them, and rests while their role wants
a second factor that they have not. One that is to outlive people belongs to a service account. How keys are made and
changed stands in `key_keeping`.
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from config import scopes
from config.clock import Clock
from config.database import Connection, Pool
from config.http import Caller, Problem
from config.tasks import Tasks
from sessions.batches import Batch
from sessions.errors import translated
from sessions.model import Ended, Position
from sessions.revocations import Again, Revocations

STATIC = Caller("api_key", "static", scopes=frozenset({scopes.ALL}))
TOUCH = 60.0  # s between two writes of last_used_at
KEPT = 1000
LONGEST = 256


class _Known(msgspec.Struct):
    """A key as it was read, and where the log stood then. The caller's `seen` moves on with each judgement."""

    caller: Caller
    expires_at: float | None
    position: Position


class ApiKeys:
    """The keys as this process knows them. `static` is `http_api.key`, "" for none; `roles` is `auth.roles`,
    `second_factor_roles` is `auth.second_factor_roles`."""

    def __init__(
        self,
        pool: Pool,
        revocations: Revocations,
        static: str,
        *,
        roles: Mapping[str, Iterable[str]] = scopes.DEFAULT_ROLES,
        second_factor_roles: Iterable[str] = (),
        clock: Clock,
    ) -> None:
        self._pool, self._revocations, self._roles, self._clock = pool, revocations, roles, clock
        self._second_factor_roles = frozenset(second_factor_roles)
        self._static = hash_of(static) if static else b""
        self._known: dict[bytes, _Known] = {}
        self._reads: Batch[bytes, _Known] = Batch(self._load)
        self._touched: dict[str, float] = {}
        self._tasks = Tasks()

    async def close(self) -> None:
        await self._reads.close()
        await self._tasks.close()

    @property
    def failures(self) -> int:
        """Background tasks that ended by an error."""
        return self._tasks.failures

    async def identify(self, key: str) -> Caller:
        """Whose key this is, if it is good now. Problem `unauthenticated` tells no more."""
        if not 0 < len(key) <= LONGEST:
            raise _refused()
        digest = hash_of(key)
        if self._static and hmac.compare_digest(digest, self._static):
            return STATIC
        known = self._known.get(digest)
        if known is None or self._verdict(known) is not None:
            known = await self._read(digest)
        if known.expires_at is not None and known.expires_at <= self._revocations.database_now():
            raise _refused()
        self._touch(known.caller.id)
        seen = max(known.position, self._revocations.position)
        if known.caller.seen != seen:
            known.caller = replace(known.caller, seen=seen)
        return known.caller

    def _verdict(self, known: _Known) -> Ended | Again | None:
        """What the log says since of the key, and of the user whose it is."""
        caller, position = known.caller, known.position
        verdict = self._revocations.judge_key(caller.id, position)
        if verdict is None and caller.owner:
            verdict = self._revocations.judge("", caller.owner, position.seq, position)
        return verdict

    async def _read(self, digest: bytes) -> _Known:
        """Read the key, on the lease's connection where memory does not reach back to what the pool says."""
        self._known.pop(digest, None)
        known = await self._reads(digest)
        verdict = None if known is None else self._verdict(known)
        if isinstance(verdict, Again):
            found = await self._revocations.read_current(lambda connection: self._rows(connection, [digest]))
            known = found.get(digest)
            verdict = None if known is None else self._verdict(known)
        if isinstance(verdict, Again):
            raise Problem("frozen", retry_after=1)
        if known is None or verdict is not None:
            raise _refused()
        if len(self._known) >= KEPT:
            del self._known[next(iter(self._known))]
        if not known.caller.lacks_factor:  # no row of the log says that there is one now
            self._known[digest] = known
        return known

    async def _load(self, digests: Sequence[bytes]) -> Mapping[bytes, _Known]:
        with translated():
            return await self._rows(self._pool, digests)

    async def _rows(self, connection: Connection | Pool, digests: Sequence[bytes]) -> Mapping[bytes, _Known]:
        return {row["hash"]: self._row(row) for row in await connection.fetch(_LOAD, digests)}

    def _row(self, row: Any) -> _Known:
        granted, owner, lacks_factor = frozenset(row["scopes"]), row["owner"] or "", False
        if owner:
            granted = scopes.meet(granted, scopes.of_roles(self._roles, row["owner_roles"]))
            lacks_factor = not (row["owner_has_factor"] or self._second_factor_roles.isdisjoint(row["owner_roles"]))
        service = row["service_account"] or ""
        caller = Caller("api_key", row["id"], scopes=granted, lacks_factor=lacks_factor, service=service, owner=owner)
        return _Known(caller, row["good_until"], Position(row["seq"], row["era_id"].hex))

    def _touch(self, id: str) -> None:
        now = self._clock.now()
        if now - self._touched.get(id, float("-inf")) >= TOUCH:
            self._touched[id] = now
            self._tasks.once("auth: API key used", self._write_use(id))

    async def _write_use(self, id: str) -> None:
        with translated():
            await self._pool.execute("update api_keys set last_used_at = clock_timestamp() where id = $1", id)


def hash_of(key: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(key.encode(errors="replace")).digest()


def _refused() -> Problem:
    return Problem("unauthenticated", "this API key is not valid", headers={"WWW-Authenticate": "apikey"})


_LOAD = """
select s.hash, extract(epoch from s.good_until)::float8 as good_until, k.id, k.scopes, k.service_account, k.owner,
    u.roles as owner_roles, h.seq, h.era_id,
    exists (select from totp t where t.subject = k.owner and t.confirmed_at is not null)
        or exists (select from passkeys p where p.subject = k.owner) as owner_has_factor
from api_keys k cross join revocation_head h
cross join lateral (values
    (k.hash, k.expires_at), (k.previous_hash, least(k.expires_at, k.previous_until))
) as s (hash, good_until)
left join service_accounts a on a.name = k.service_account
left join subjects u on u.id = k.owner
where (k.hash = any($1::bytea[]) or k.previous_hash = any($1::bytea[])) and s.hash = any($1::bytea[])
    and k.revoked_at is null and a.disabled_at is null
    and (k.owner is null or u.state = 'active' and u.banned_until <= clock_timestamp())
"""
