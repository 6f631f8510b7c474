"""How sessions are named: sids of our own (uuid7), sids that follow from an external token (uuid8), cookie secrets.

A sid is public and proves nothing; a secret is 256 random bits of which only SHA-256 is kept.
"""

import base64
import hashlib
import os
import re
import secrets
from uuid import UUID

SECRET_BYTES = 32
_SID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


def new_sid(wall: float) -> str:
    """A uuid7 (RFC 9562, 5.7): 48 bits of milliseconds, so that newer rows stand together, and 74 random bits."""
    milliseconds = int(wall * 1000).to_bytes(6, "big")
    return _uuid(milliseconds + os.urandom(10), 7)


def derived_sid(issuer: str, by: str, *values: str) -> str:
    """A uuid8 (RFC 9562, 5.8) from what names an external session; `by` says which claims did.

    Each part is hashed with its length, so that no two lists of parts run together into one name.
    """
    digest = hashlib.sha256(b"wardgate external session")
    for part in (issuer, by, *values):
        raw = part.encode()
        digest.update(len(raw).to_bytes(4, "big") + raw)
    return _uuid(digest.digest()[:16], 8)


def external_sid(issuer: str, subject: str, sid: str, jti: str, iat: float | None, token_hash: bytes) -> str:
    """The session of an external token: by its sid, else its jti, else (sub, iat), else the token as a whole."""
    if sid:
        return derived_sid(issuer, "sid", sid)
    if jti:
        return derived_sid(issuer, "jti", jti)
    if iat is not None:
        return derived_sid(issuer, "sub", subject, repr(float(iat)))
    return derived_sid(issuer, "token", token_hash.hex())


def is_sid(text: str) -> bool:
    return _SID.fullmatch(text) is not None


def new_secret() -> str:
    """A cookie's value: 32 random bytes, base64url."""
    return secrets.token_urlsafe(SECRET_BYTES)


def secret_hash(secret: str) -> bytes | None:
    """What is stored of a cookie's value; None for a value that cannot be one."""
    raw = decode(secret)
    return hashlib.sha256(raw).digest() if raw is not None and len(raw) == SECRET_BYTES else None


def secret_key(secret: str) -> bytes:
    """What a process finds a cookie's value by that it has met; of what cannot be one too. The value itself is kept
    nowhere."""
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def encode(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode(text: str) -> bytes | None:
    """The bytes whose one encoding `text` is, else None."""
    try:
        raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except ValueError:  # UnicodeEncodeError and binascii.Error are ValueErrors
        return None
    return raw if encode(raw) == text else None


def _uuid(raw: bytes, version: int) -> str:
    value = int.from_bytes(raw, "big")
    value = value & ~(0xF << 76) | version << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(UUID(int=value))
