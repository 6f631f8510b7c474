"""Codes of an authenticator app (RFC 6238: SHA-1, 6 digits, 30 s) and recovery codes: made, kept, and taken once.

The secret stands sealed in PostgreSQL and bound to its user, recovery codes as HMACs: a dump of the database gives
neither. Which step it is says the held clock of the database; of every code the step is kept, and nothing at or before
it is taken again, whichever way a clock steps. Who may do what stands in `factors`.
"""

import hmac
import io
import secrets
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pyotp
import segno
import structlog

from config.database import Connection, Pool
from config.http import Problem
from config.sealing import Sealer, Unsealable, derive
from config.settings import Auth
from config.settings import Sessions as SessionSettings
from sessions.errors import translated

log = structlog.get_logger(__name__)

Executor = Connection | Pool
Factor = Literal["totp", "recovery_code"]

STEP = 30
SKEW = 1
"""Steps that a phone's clock may be off, either way."""

RECOVERY_CODES = 10
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"  # without what is read wrongly; 32 letters
_LENGTH = 12  # 60 bits


class Begun(NamedTuple):
    """A new secret, as it is typed in, and as an app scans it."""

    secret: str
    uri: str


class State(NamedTuple):
    """What a user has, and what the asking session has seen of it. `auth_time` is unix seconds."""

    on: bool
    recovery_codes: int
    aal: int
    auth_time: float


class Codes:
    """Makes and takes codes."""

    def __init__(self, settings: SessionSettings, *, product: str) -> None:
        self._sealer = Sealer.of(settings, "totp secrets")
        self._keys = [derive(secret, "recovery codes") for secret in settings.secrets]
        self._product = product

    async def begin(self, connection: Connection, subject: str, name: str) -> Begun | None:
        """A secret that waits for its first code, in place of one that did; None where one is on already."""
        secret = pyotp.random_base32()
        made = await connection.fetchval(_BEGIN, subject, self._sealer.seal(secret.encode(), subject))
        if made is None:
            return None
        return Begun(secret, pyotp.TOTP(secret).provisioning_uri(name=name, issuer_name=self._product))

    async def confirm(self, connection: Connection, subject: str, code: str, now: float) -> list[str] | None:
        """The first code turns it on; the recovery codes, which are seen this once. None for another code, and where
        nothing waits for one."""
        if not await self._take(connection, subject, code, now, waiting=True):
            return None
        made = [_recovery_code() for _ in range(RECOVERY_CODES)]
        await connection.execute(_CONFIRM, subject)
        await connection.execute(_KEEP, subject, [self._hashes(subject, code)[0] for code in made])
        return made

    async def spend(self, connection: Connection, subject: str, code: str, now: float) -> Factor | None:
        """Take a code, of either kind, in the caller's transaction: of twenty at once one is taken. None: it is not
        good, any more or at all."""
        if len(code) == 6 and code.isascii() and code.isdigit():
            return "totp" if await self._take(connection, subject, code, now, waiting=False) else None
        used = await connection.fetchval(_USE, subject, self._hashes(subject, code))
        return None if used is None else "recovery_code"

    async def _take(self, connection: Connection, subject: str, code: str, now: float, *, waiting: bool) -> bool:
        record = await connection.fetchrow(_LOCK, subject, waiting)
        if record is None:
            return False
        sealed = record["sealed_secret"]
        try:
            secret = self._sealer.open(sealed, subject)
        except Unsealable:
            log.warning("totp_secret_not_unsealed", user=subject)
            return False
        step = _step_of(secret.decode(), code, int(now) // STEP, record["last_step"])
        if step is None:
            return False
        if not self._sealer.current(sealed):
            sealed = self._sealer.seal(secret, subject)
        await connection.execute(_TOOK, subject, step, sealed)
        return True

    def _hashes(self, subject: str, code: str) -> list[bytes]:
        """By today's key first."""
        plain = "".join(code.lower().split()).replace("-", "")
        return [hmac.digest(key, f"{subject} {plain}".encode(), "sha256") for key in self._keys]


class Freshness:
    """Whether a session has shown its factors lately enough for what is sensitive."""

    def __init__(self, pool: Pool, settings: Auth, *, now: Callable[[], float]) -> None:
        self._pool, self._fresh_for, self._now = pool, settings.fresh_for, now

    async def require(self, id: str, sid: str, *, always: bool = False) -> State:
        """Problem `step_up_required` where the user has a second factor and the session has not seen it for a while;
        with `always` a user with a password alone must have shown that."""
        with translated():
            seen = await state(self._pool, id, sid)
        if seen is None:
            raise Problem("unauthenticated", "there is no such session")
        stale = self._now() - seen.auth_time > self._fresh_for or (seen.on and seen.aal < 2)
        if stale and (seen.on or always):
            raise Problem("step_up_required")
        return seen


def _step_of(secret: str, code: str, now: int, last: int) -> int | None:
    """The step that `code` is of, if it is near `now` and after `last`."""
    app, found = pyotp.TOTP(secret), None
    for step in range(now - SKEW, now + SKEW + 1):
        if hmac.compare_digest(app.generate_otp(step), code) and step > last:
            found = step
    return found


def _recovery_code() -> str:
    letters = "".join(secrets.choice(_ALPHABET) for _ in range(_LENGTH))
    return "-".join(letters[n : n + 4] for n in range(0, _LENGTH, 4))


def qr(uri: str) -> str:
    """An SVG of the code to scan, without styles or scripts of its own."""
    out = io.BytesIO()
    segno.make_qr(uri, error="m").save(out, kind="svg", scale=4, xmldecl=False, nl=False)
    return out.getvalue().decode()


async def remove(connection: Connection, subject: str) -> None:
    """One factor again; the recovery codes go with it."""
    await connection.execute("DELETE FROM totp WHERE subject = $1", subject)


async def state(connection: Executor, subject: str, sid: str) -> State | None:
    """Read now, past every cache. None where the session is not the user's."""
    record: Any = await connection.fetchrow(_STATE, subject, sid)
    return None if record is None else State(*record)


_BEGIN = """
INSERT INTO totp (subject, sealed_secret) VALUES ($1, $2)
ON CONFLICT (subject) DO UPDATE SET sealed_secret = excluded.sealed_secret, created_at = clock_timestamp()
WHERE totp.confirmed_at IS NULL RETURNING true
"""
_LOCK = """
SELECT sealed_secret, last_step FROM totp WHERE subject = $1 AND (confirmed_at IS NULL) = $2 FOR NO KEY UPDATE
"""
_TOOK = "UPDATE totp SET last_step = $2, sealed_secret = $3 WHERE subject = $1"
_CONFIRM = "UPDATE totp SET confirmed_at = clock_timestamp() WHERE subject = $1"
_KEEP = "INSERT INTO recovery_codes (subject, hash) SELECT $1, unnest($2::bytea[])"
_USE = "DELETE FROM recovery_codes WHERE subject = $1 AND hash = ANY($2::bytea[]) RETURNING true"
_STATE = """
SELECT t.confirmed_at IS NOT NULL, (SELECT count(*) FROM recovery_codes r WHERE r.subject = s.subject)::int,
    s.aal::int, coalesce(extract(epoch FROM s.auth_time)::float8, 0)
FROM sessions s LEFT JOIN totp t ON t.subject = s.subject WHERE s.subject = $1 AND s.sid = $2
"""
