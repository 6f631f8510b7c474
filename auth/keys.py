"""The keys that sign access tokens: a small table, and each process's view of it.

    next  --rotate-->  active  --rotate-->  retiring  --retire-->  retired

`next` is published before it signs, so that every process and every reader of the JWKS knows it in time; `retiring`
verifies until what it signed has expired; `retired` is refused and its private half is gone. Private keys are sealed;
the public key is derived from the private one, so that no one who can merely write the table can plant a key.

    Failure                 (config.errors)
    ├── KeysUnreadable      the table's keys were sealed with a secret that this process does not have
    └── RotationRefused     it would refuse tokens that are good
"""

import asyncio
import contextlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
)

from config.clock import Clock
from config.database import Connection, Pool
from config.errors import Failure
from config.sealing import Sealer, Unsealable
from config.settings import Sessions

log = structlog.get_logger(__name__)

State = Literal["next", "active", "retiring", "retired"]
PrivateKey = EllipticCurvePrivateKey | Ed25519PrivateKey

RELOAD = 30.0  # s between looks at the table
KNOWN_AFTER = 2 * RELOAD  # s until every process has read a new key
GAP = 5.0  # s between two looks that unknown kids can cause
MARGIN = 60.0  # s beyond the last token's life until a retiring key may go
_LOCK = 0x77676B65  # advisory: one process at a time makes or moves keys


class KeysUnreadable(Failure):
    """Start again with the secret in sessions.previous_secret_keys, or begin anew: `run.py keys rotate --discard`."""

    def __init__(self) -> None:
        super().__init__(
            "the signing keys are sealed with another sessions.secret_key: name it in sessions.previous_secret_keys, "
            "or make new keys, which ends all access tokens: run.py keys rotate --discard"
        )


class KeyInfo(NamedTuple):
    """A row as people see it. Times are unix seconds."""

    kid: str
    algorithm: str
    state: State
    created_at: float
    activated_at: float | None
    retiring_at: float | None
    retired_at: float | None


class SigningKey:
    """One key that verifies, and signs when it is the active one."""

    def __init__(self, kid: str, algorithm: str, state: State, private: PrivateKey) -> None:
        self.kid, self.algorithm, self.state = kid, algorithm, state
        self.private = private
        self._public = private.public_key()
        self._jws: Any = jwt.get_algorithm_by_name(algorithm)

    def verify(self, signed: bytes, signature: bytes) -> bool:
        """By this key's one algorithm, whatever a header says."""
        return bool(self._jws.verify(signed, self._public, signature))

    def jwk(self) -> dict[str, Any]:
        """The public half (RFC 7517)."""
        return {**self._jws.to_jwk(self._public, as_dict=True), "kid": self.kid, "alg": self.algorithm, "use": "sig"}


def key_sealer(settings: Sessions) -> Sealer:
    """Seals signing keys."""
    return Sealer.of(settings, "signing keys")


class Keys:
    """This process's view of the table: read at start, every 30 s, and for an unknown kid at most every 5 s."""

    def __init__(self, pool: Pool, sealer: Sealer, algorithm: str, *, clock: Clock) -> None:
        self._pool, self._sealer, self._algorithm, self._clock = pool, sealer, algorithm, clock
        self._keys: dict[str, SigningKey] = {}
        self._loaded_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self.loads = 0

    async def start(self) -> None:
        """Make the first keys if there are none, read them, and keep reading. Raises KeysUnreadable."""
        async with self._pool.acquire() as connection, connection.transaction():
            await ensure(connection, self._sealer, self._algorithm)
        await self.load()
        self._task = asyncio.create_task(self._keep_reading(), name="auth: signing keys")

    async def close(self) -> None:
        for task in (self._task, self._looking):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    @property
    def active(self) -> SigningKey:
        """The key that signs."""
        return next(key for key in self._keys.values() if key.state == "active")

    def get(self, kid: str) -> SigningKey | None:
        """The key that verifies what names `kid`, as last read."""
        return self._keys.get(kid)

    async def rotate(self, connection: Connection, *, token_ttl: float, now: bool = False) -> str | None:
        """`advance`, in the caller's transaction. `load` after its end: the others look within 30 s."""
        return await advance(connection, self._sealer, self._algorithm, token_ttl, now=now)

    async def discard(self, connection: Connection) -> str:
        """`discard`, in the same way."""
        return await discard(connection, self._sealer, self._algorithm)

    async def look(self) -> None:
        """Read the table again because of a kid that is not known, unless that was done just now.

        Many may wait for one read; a flood of unknown kids causes one read every 5 s, and none for most of them.
        """
        if self._looking is None:
            if self._clock.now() - self._loaded_at < GAP:
                return
            self._looking = asyncio.create_task(self._look(), name="auth: unknown key")
        await asyncio.shield(self._looking)

    async def _look(self) -> None:
        try:
            await self._load_quietly()
        finally:
            self._looking = None

    async def load(self) -> None:
        """Read the table now. What cannot be opened is left out, loudly."""
        self._loaded_at = self._clock.now()
        self.loads += 1
        rows = await self._pool.fetch(
            "select kid, algorithm, state, sealed from signing_keys where state <> 'retired' order by created_at, kid"
        )
        opened = [_open(self._sealer, *row) for row in rows]
        keys = {key.kid: key for key in opened if key is not None}
        if not any(key.state == "active" for key in keys.values()):
            raise KeysUnreadable
        self._keys = keys

    def jwks(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """RFC 7517: every public key that verifies, or soon will."""
        return {"keys": [key.jwk() for key in self._keys.values()]}

    async def _keep_reading(self) -> None:
        while True:
            await asyncio.sleep(RELOAD)
            await self._load_quietly()

    async def _load_quietly(self) -> None:
        """A database that is away, or keys of another secret, leave the view as it was."""
        try:
            await self.load()
        except Exception as error:  # the next look comes
            log.warning("signing_keys_not_read", error=type(error).__name__)


def _open(sealer: Sealer, kid: str, algorithm: str, state: State, sealed: bytes) -> SigningKey | None:
    try:
        private = load_der_private_key(sealer.open(sealed, _about(kid, algorithm)), None)
    except Unsealable as error:
        log.error("signing_key_unreadable", kid=kid, why=str(error))
        return None
    if not isinstance(private, EllipticCurvePrivateKey | Ed25519PrivateKey):
        log.error("signing_key_unreadable", kid=kid, why="of another kind")
        return None
    return SigningKey(kid, algorithm, state, private)


def _about(kid: str, algorithm: str) -> str:
    return f"{kid} {algorithm}"


async def lock(connection: Connection) -> None:
    """One process at a time makes or moves keys; held until the transaction's end."""
    await connection.execute("select pg_advisory_xact_lock($1)", _LOCK)


async def ensure(connection: Connection, sealer: Sealer, algorithm: str) -> None:
    """An active key and a next one exist afterwards, sealed with today's secret. In the caller's transaction."""
    await lock(connection)
    rows = await connection.fetch("select kid, algorithm, state, sealed from signing_keys where state <> 'retired'")
    for kid, its_algorithm, _, sealed in rows:
        if not sealer.current(sealed):
            await _seal_again(connection, sealer, kid, its_algorithm, sealed)
    states = {row["state"] for row in rows}
    for state in ("active", "next"):
        if state not in states:
            await _make(connection, sealer, algorithm, state)


async def _seal_again(connection: Connection, sealer: Sealer, kid: str, algorithm: str, sealed: bytes) -> None:
    about = _about(kid, algorithm)
    try:
        plain = sealer.open(sealed, about)
    except Unsealable:
        raise KeysUnreadable from None
    await connection.execute("update signing_keys set sealed = $2 where kid = $1", kid, sealer.seal(plain, about))


async def _make(connection: Connection, sealer: Sealer, algorithm: str, state: State) -> str:
    kid = secrets.token_hex(8)
    private = generate_private_key(SECP256R1()) if algorithm == "ES256" else Ed25519PrivateKey.generate()
    der = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    await connection.execute(
        "insert into signing_keys (kid, algorithm, state, sealed, activated_at)"
        " values ($1, $2, $3, $4, case when $3 = 'active' then clock_timestamp() end)",
        kid,
        algorithm,
        state,
        sealer.seal(der, _about(kid, algorithm)),
    )
    return kid


class RotationRefused(Failure):
    """It would refuse tokens that are good. The text says when it would not."""


async def rotate(connection: Connection, sealer: Sealer, algorithm: str, *, now: bool = False) -> str | None:
    """The next key becomes the active one and another takes its place; the kid that signs from here on.

    None: the next key was of another algorithm than the settings ask for, and one of theirs was published instead;
    rotate again once it is known. RotationRefused while some process may not have read the next key, but with `now`.
    """
    await lock(connection)
    row = await connection.fetchrow(
        "select kid, algorithm, extract(epoch from clock_timestamp() - created_at)::float8 as age"
        " from signing_keys where state = 'next'"
    )
    if row is None or row["algorithm"] != algorithm:
        if row is not None:
            await _retire(connection, row["kid"])
        kid = await _make(connection, sealer, algorithm, "next")
        if not now:
            return None
    elif row["age"] < KNOWN_AFTER and not now:
        raise RotationRefused(
            f"the next key is not known everywhere; it is {KNOWN_AFTER - row['age']:.0f} s too new (wait, or say now)"
        )
    else:
        kid = row["kid"]
    await connection.execute(
        "update signing_keys set state = 'retiring', retiring_at = clock_timestamp() where state = 'active'"
    )
    await connection.execute(
        "update signing_keys set state = 'active', activated_at = clock_timestamp() where kid = $1", kid
    )
    await _make(connection, sealer, algorithm, "next")
    return kid


async def advance(
    connection: Connection, sealer: Sealer, algorithm: str, token_ttl: float, *, now: bool = False
) -> str | None:
    """`rotate`, with what goes before and after it: there are keys, and those whose time is over retire."""
    await ensure(connection, sealer, algorithm)
    kid = await rotate(connection, sealer, algorithm, now=now)
    await retire(connection, token_ttl)
    return kid


async def discard(connection: Connection, sealer: Sealer, algorithm: str) -> str:
    """Retire every key and begin anew: every access token is refused from the next look on. The kid that signs."""
    await lock(connection)
    for row in await connection.fetch("select kid from signing_keys where state <> 'retired'"):
        await _retire(connection, row["kid"])
    kid = await _make(connection, sealer, algorithm, "active")
    await _make(connection, sealer, algorithm, "next")
    return kid


async def retire(connection: Connection, token_ttl: float, kid: str | None = None, *, now: bool = False) -> list[str]:
    """Retire `kid`, or every retiring key whose last token has expired; the kids that went.

    RotationRefused for a key that signs or will, and, without `now`, for one whose tokens still live. Processes refuse
    the key from their next look on, at most 30 s later.
    """
    await lock(connection)
    rows = await connection.fetch(
        "select kid, state, extract(epoch from clock_timestamp() - retiring_at)::float8 as age from signing_keys"
        " where state <> 'retired' and ($1::text is null and state = 'retiring' or kid = $1) order by kid",
        kid,
    )
    if kid is not None and not rows:
        raise RotationRefused("there is no such key, or it is retired already")
    gone = []
    for row in rows:
        if row["state"] != "retiring":
            raise RotationRefused(f"this key is {row['state']}: rotate first")
        if row["age"] >= token_ttl + MARGIN or now:
            await _retire(connection, row["kid"])
            gone.append(str(row["kid"]))
        elif kid is not None:
            raise RotationRefused(f"its tokens live for another {token_ttl + MARGIN - row['age']:.0f} s")
    return gone


async def _retire(connection: Connection, kid: str) -> None:
    await connection.execute(
        "update signing_keys set state = 'retired', sealed = null, retired_at = clock_timestamp() where kid = $1", kid
    )


async def listed(connection: Connection) -> list[KeyInfo]:
    """Every key there ever was, oldest first."""
    rows = await connection.fetch(
        "select kid, algorithm, state, extract(epoch from created_at)::float8,"
        " extract(epoch from activated_at)::float8, extract(epoch from retiring_at)::float8,"
        " extract(epoch from retired_at)::float8"
        " from signing_keys order by created_at, kid"
    )
    return [KeyInfo(*row) for row in rows]
