"""The cookie by which a browser is known again to an account that logged in there (security.md, "Brute force").

    value = base64url(version | unix time, 4 bytes | nonce, 12 | HMAC-SHA256(key, account | those), 32 [| trust, 32])
    trust = HMAC-SHA256(another key, account's state | account | those)

It logs nobody in. Guesses from such a device have a budget of their own, so that a crowd of strangers holds no owner
back. With `trust` it stands for the second factor that was shown then, for as long as the settings say and password and
factors are the same: a password alone logs in. Nothing is stored. The account is named by its user's id, and not by the
address, which somebody else may have after a deletion. Pure, but for the random numbers.
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
        self._trust_keys = [derive(one, "trusted devices") for one in (secret, *previous)]
        self._now = now

    def make(self, account: str, trusted: str = "") -> str:
        """A new value for a device that has just logged in to `account`; `trusted`: the account's state, where a second
        factor was shown that is not to be asked for again."""
        head = _VERSION + int(self._now()).to_bytes(4, "big") + secrets.token_bytes(12)
        trust = _mac(self._trust_keys[0], _state(account, trusted), head) if trusted else b""
        return encode(head + _mac(self._keys[0], account, head) + trust)

    def recognise(self, account: str, value: str) -> str:
        """The name of the device if it is known to `account`, else ""."""
        raw = _raw(value)
        head, mac = raw[:_HEAD], raw[_HEAD : _HEAD + _MAC]
        if not _genuine(self._keys, account, head, mac) or self._age(head) > KNOWN_FOR:
            return ""
        return head[5:].hex()

    def trusts(self, account: str, value: str, state: str, seconds: float) -> bool:
        """Whether a second factor was shown on it within `seconds`, when the account was in this `state`."""
        raw = _raw(value)
        head, trust = raw[:_HEAD], raw[_HEAD + _MAC :]
        return _genuine(self._trust_keys, _state(account, state), head, trust) and self._age(head) <= seconds

    def _age(self, head: bytes) -> float:
        return self._now() - int.from_bytes(head[1:5], "big")


def _raw(value: str) -> bytes:
    """What the value says, b"" for what cannot be one."""
    raw = decode(value) if len(value) < 128 else None
    return raw if raw and raw[:1] == _VERSION and len(raw) in (_HEAD + _MAC, _HEAD + 2 * _MAC) else b""


def _genuine(keys: Iterable[bytes], what: str, head: bytes, mac: bytes) -> bool:
    genuine = [hmac.compare_digest(mac, _mac(key, what, head)) for key in keys]
    return any(genuine)


def _state(account: str, state: str) -> str:
    return f"{state}\n{account}"


def _mac(key: bytes, account: str, head: bytes) -> bytes:
    return hmac.digest(key, head + account.encode(), "sha256")
