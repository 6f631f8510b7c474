"""The cookie by which a browser is known again to an account that logged in there (security.md, "Brute force").

    value = base64url(version | unix time, 4 bytes | nonce, 12 | HMAC-SHA256(key, account | those), 32)

It logs nobody in. Guesses from such a device have a budget of their own, so that a crowd of strangers holds no owner
back. Nothing is stored: the account is named as a login names it (`users.email_key`), so nothing need be read to judge
one. Pure, but for the random numbers.
"""

import hmac
import secrets
from collections.abc import Callable, Iterable

from config.sealing import derive
from sessions.ids import decode, encode

KNOWN_FOR = 180 * 86400
"""Seconds for which a device stays known after its last login."""

_VERSION = b"\x01"
_HEAD = 1 + 4 + 12
_MAC = 32


class DeviceCookies:
    """Makes with the first secret, takes any. `now` is the database's clock as this process holds it."""

    def __init__(self, secret: bytes, previous: Iterable[bytes] = (), *, now: Callable[[], float]) -> None:
        self._keys = [derive(one, "known devices") for one in (secret, *previous)]
        self._now = now

    def make(self, account: str) -> str:
        """A new value for a device that has just logged in to `account`."""
        head = _VERSION + int(self._now()).to_bytes(4, "big") + secrets.token_bytes(12)
        return encode(head + _mac(self._keys[0], account, head))

    def recognise(self, account: str, value: str) -> str:
        """The name of the device if it is known to `account`, else ""."""
        raw = decode(value) if len(value) < 128 else None
        if raw is None or len(raw) != _HEAD + _MAC or raw[:1] != _VERSION:
            return ""
        head, mac = raw[:_HEAD], raw[_HEAD:]
        genuine = [hmac.compare_digest(mac, _mac(key, account, head)) for key in self._keys]
        if not any(genuine) or self._now() - int.from_bytes(head[1:5], "big") > KNOWN_FOR:
            return ""
        return head[5:].hex()


def _mac(key: bytes, account: str, head: bytes) -> bytes:
    return hmac.digest(key, head + account.encode(), "sha256")
