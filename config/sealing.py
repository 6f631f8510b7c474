"""Secrets at rest: sealed with a key that derives from `sessions.secret_key`, which no database holds.

    sealed = 1 | key id (4 bytes) | nonce (12) | AES-256-GCM(ciphertext and tag)

What is sealed is bound to what it is `about` (a session id, a key id), so that rows cannot be swapped. A previous
secret still opens; `current` says whether it is time to seal again.
"""

import os
from collections.abc import Iterable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from config.settings import Sessions

_VERSION = b"\x01"
_NONCE = 12


class Unsealable(ValueError):
    """Not sealed by us, for this, with a secret that we know."""


def derive(secret: bytes, purpose: str) -> bytes:
    """32 bytes for one purpose: HKDF-SHA256 (RFC 5869), so that no two purposes share a key."""
    return HKDF(SHA256(), 32, salt=None, info=b"wardgate " + purpose.encode()).derive(secret)


class Sealer:
    """Seals with the first secret, opens with any. `purpose` separates the rooms."""

    def __init__(self, secret: bytes, previous: Iterable[bytes] = (), *, purpose: str) -> None:
        if not secret:
            raise ValueError("sessions.secret_key is empty")
        self._keys = {_id(key): AESGCM(key) for key in (derive(s, purpose) for s in (*previous, secret))}
        self._today = _id(derive(secret, purpose))

    @classmethod
    def of(cls, settings: Sessions, purpose: str) -> "Sealer":
        """With the secrets of the settings."""
        today, *previous = settings.secrets
        return cls(today, previous, purpose=purpose)

    def seal(self, plain: bytes, about: str) -> bytes:
        nonce = os.urandom(_NONCE)
        return _VERSION + self._today + nonce + self._keys[self._today].encrypt(nonce, plain, about.encode())

    def open(self, sealed: bytes, about: str) -> bytes:
        """Raises Unsealable."""
        version, key_id, nonce, rest = sealed[:1], sealed[1:5], sealed[5 : 5 + _NONCE], sealed[5 + _NONCE :]
        if version != _VERSION or key_id not in self._keys:
            raise Unsealable("sealed with a secret that is not known here")
        try:
            return self._keys[key_id].decrypt(nonce, rest, about.encode())
        except (InvalidTag, ValueError):
            raise Unsealable("damaged, or about something else") from None

    def current(self, sealed: bytes) -> bool:
        """Whether today's secret sealed it."""
        return sealed[1:5] == self._today


def _id(key: bytes) -> bytes:
    return derive(key, "key id")[:4]
