"""API keys: how a backend says who it is.

A key is 256 random bits, of which only SHA-256 is stored, so finding one is a look-up and needs no slow hash; a flood
of keys that are nobody's is one statement a loop turn. What was read is kept with its position in the revocation log;
expiry and revocation are asked on every use.
"""

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from auth.service import Ledger
from config.clock import Clock
from config.database import Connection, Pool
from config.http import Caller, Problem
from config.tasks import Tasks
from sessions import audit
from sessions.batches import Batch
from sessions.errors import translated
from sessions.log import Entry
from sessions.model import Ended, Kind, Position
from sessions.revocations import Again, Revocations

PREFIX = "wgk_"  # so that a scanner for leaked secrets can name what it found
STATIC = Caller("api_key", "static", scopes=frozenset({"*"}))
TOUCH = 60.0  # s between two writes of last_used_at
KEPT = 1000
LONGEST = 256


class KeyInfo(NamedTuple):
    """A key as people see it: never the key. Times are unix seconds."""

    id: str
    name: str
    scopes: Sequence[str]
    created_at: float
    created_by: str
    expires_at: float | None
    last_used_at: float | None
    revoked_at: float | None


class _Known(msgspec.Struct, frozen=True):
    """A key as it was read, and where the log stood then."""

    caller: Caller
    expires_at: float | None
    position: Position


class ApiKeys:
    """The keys as this process knows them. `static` is `http_api.key`, "" for none."""

    def __init__(self, pool: Pool, revocations: Revocations, static: str, *, clock: Clock) -> None:
        self._pool, self._revocations, self._clock = pool, revocations, clock
        self._static = _hash(static) if static else b""
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
        digest = _hash(key)
        if self._static and hmac.compare_digest(digest, self._static):
            return STATIC
        known = self._known.get(digest)
        if known is None or self._verdict(known) is not None:
            known = await self._read(digest)
        if known.expires_at is not None and known.expires_at <= self._revocations.database_now():
            raise _refused()
        self._touch(known.caller.id)
        return known.caller

    def _verdict(self, known: _Known) -> Ended | Again | None:
        return self._revocations.judge_key(known.caller.id, known.position)

    async def _read(self, digest: bytes) -> _Known:
        """Read the key, on the lease's connection where memory does not reach back to what the pool says."""
        self._known.pop(digest, None)
        known = await self._reads(digest)
        verdict = None if known is None else self._verdict(known)
        if isinstance(verdict, Again):
            found = await self._revocations.read_current(lambda connection: _load(connection, [digest]))
            known = found.get(digest)
            verdict = None if known is None else self._verdict(known)
        if isinstance(verdict, Again):
            raise Problem("frozen", retry_after=1)
        if known is None or verdict is not None:
            raise _refused()
        if len(self._known) >= KEPT:
            del self._known[next(iter(self._known))]
        self._known[digest] = known
        return known

    async def _load(self, digests: Sequence[bytes]) -> Mapping[bytes, _Known]:
        with translated():
            return await _load(self._pool, digests)

    def _touch(self, id: str) -> None:
        now = self._clock.now()
        if now - self._touched.get(id, float("-inf")) >= TOUCH:
            self._touched[id] = now
            self._tasks.once("auth: API key used", self._write_use(id))

    async def _write_use(self, id: str) -> None:
        with translated():
            await self._pool.execute("update api_keys set last_used_at = clock_timestamp() where id = $1", id)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


def _refused() -> Problem:
    return Problem("unauthenticated", "this API key is not valid", headers={"WWW-Authenticate": "apikey"})


async def _load(connection: Connection | Pool, digests: Sequence[bytes]) -> Mapping[bytes, _Known]:
    rows = await connection.fetch(_LOAD, digests)
    return {row["hash"]: _known(row) for row in rows}


def _known(row: Any) -> _Known:
    caller = Caller("api_key", row["id"], scopes=frozenset(row["scopes"]))
    return _Known(caller, row["expires_at"], Position(row["seq"], row["era_id"].hex))


_LOAD = """
select k.id, k.hash, k.scopes, extract(epoch from k.expires_at)::float8 as expires_at, h.seq, h.era_id
from api_keys k cross join revocation_head h where k.hash = any($1::bytea[]) and k.revoked_at is null
"""


async def create(
    connection: Connection, name: str, scopes: Sequence[str], *, ttl: float | None = None, actor: str
) -> tuple[str, KeyInfo]:
    """A new key: the key itself, to be shown this once, and what is stored of it. `ttl` in seconds."""
    key = PREFIX + secrets.token_urlsafe(32)
    id = secrets.token_hex(16)
    await connection.execute(
        "insert into api_keys (id, hash, name, scopes, created_by, expires_at)"
        " values ($1, $2, $3, $4, $5, clock_timestamp() + $6::float8 * interval '1 second')",
        id,
        _hash(key),
        name,
        list(scopes),
        actor,
        ttl,
    )
    await audit.append(
        connection, "api_key.created", actor=actor, target=f"key:{id}", detail={"name": name, "scopes": list(scopes)}
    )
    return key, next(info for info in await listed(connection) if info.id == id)


async def revoke(writing: Ledger, id: str, *, actor: str) -> bool:
    """End a key everywhere; False when there is no such live key. In the caller's transaction."""
    name = await writing.connection.fetchval(
        "update api_keys set revoked_at = clock_timestamp() where id = $1 and revoked_at is null returning name", id
    )
    if name is None:
        return False
    writing.append(Entry(kind=Kind.API_KEY, api_key=id))
    await audit.append(writing.connection, "api_key.revoked", actor=actor, target=f"key:{id}", detail={"name": name})
    return True


async def listed(connection: Connection | Pool) -> list[KeyInfo]:
    """Every key, oldest first."""
    rows = await connection.fetch(
        "select id, name, scopes, extract(epoch from created_at)::float8, created_by,"
        " extract(epoch from expires_at)::float8, extract(epoch from last_used_at)::float8,"
        " extract(epoch from revoked_at)::float8 from api_keys order by created_at, id"
    )
    return [KeyInfo(*row) for row in rows]
