"""Codes of an authenticator app (RFC 6238: SHA-1, 6 digits, 30 s) and recovery codes: made, kept, and taken once.

The secret stands sealed in PostgreSQL and bound to its user, recovery codes as HMACs: a dump of the database gives
neither. Which step it is says the held clock of the database; of every code the step is kept, and nothing at or before
it is taken again, whichever way a clock steps. Who may do what stands in `factors`.
"""

import hmac
import io
import secrets
from typing import Literal, NamedTuple

import pyotp
import segno
import structlog

from config.database import Connection
from config.sealing import Sealer, Unsealable, derive
from config.settings import Sessions as SessionSettings

log = structlog.get_logger(__name__)

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

    async def confirm(self, connection: Connection, subject: str, code: str, now: float) -> bool:
        """The first code turns it on. False for another code, and where nothing waits for one."""
        if not await self._take(connection, subject, code, now, waiting=True):
            return False
        await connection.execute(_CONFIRM, subject)
        return True

    async def recovery(self, connection: Connection, subject: str) -> list[str]:
        """New recovery codes, which are seen this once, in place of those before."""
        made = [_recovery_code() for _ in range(RECOVERY_CODES)]
        await forget_recovery(connection, subject)
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


async def forget_recovery(connection: Connection, subject: str) -> None:
    """No recovery code is good any more."""
    await connection.execute(_FORGET, subject)


async def remove(connection: Connection, subject: str) -> bool:
    """False where it was not on. The recovery codes stay: another factor may be on."""
    return await connection.fetchval(_REMOVE, subject) is not None


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
_REMOVE = "DELETE FROM totp WHERE subject = $1 AND confirmed_at IS NOT NULL RETURNING true"
_FORGET = "DELETE FROM recovery_codes WHERE subject = $1"
_KEEP = "INSERT INTO recovery_codes (subject, hash) SELECT $1, unnest($2::bytea[])"
_USE = "DELETE FROM recovery_codes WHERE subject = $1 AND hash = ANY($2::bytea[]) RETURNING true"
