"""What stands between a right password and the second factor: a sealed token, and no session. And what a passkey signs.

    challenge = base64url(sealed {id, user, version of the password, address prefix, end})
    ceremony  = sealed {id, end}, about what it is for and whom it was made for

Whoever holds a challenge has shown the password from that address a few minutes ago, and can do nothing with it but
show a second factor. A ceremony is what browsers call a challenge: random bytes that come back signed. Nothing is
stored; that a ceremony was answered is (`passkeys`), so that its answer is good once. Pure, but for the random numbers.
"""

import secrets
from collections.abc import Callable

import msgspec

from config.http import Problem, address_prefix
from config.sealing import Sealer, Unsealable
from config.settings import Sessions as SessionSettings
from sessions.ids import decode, encode

GOOD_FOR = 300.0
TRIES = 5
"""Codes that may be tried on one challenge."""

_MAX = 1024
_ABOUT = "login"


class Challenge(msgspec.Struct, frozen=True, array_like=True):
    """`version` is the credential version of the password that was right; `until` is database time."""

    id: str
    user: str
    version: int
    prefix: str
    until: float


class Ceremony(msgspec.Struct, frozen=True, array_like=True):
    """`id` is random; `until` is database time."""

    id: bytes
    until: float


class ChallengeOver(Problem):
    """Too old, from elsewhere, tried too often, answered before, or none of ours."""

    def __init__(self) -> None:
        super().__init__("unauthenticated", "this challenge is over: begin again")


class Challenges:
    """Makes and reads. `now` is the database's clock as this process holds it."""

    def __init__(self, settings: SessionSettings, *, now: Callable[[], float]) -> None:
        self._sealer = Sealer.of(settings, "challenges")
        self._ceremonies = Sealer.of(settings, "passkey ceremonies")
        self._now = now

    def make(self, user: str, version: int, address: str) -> str:
        until = self._now() + GOOD_FOR
        challenge = Challenge(secrets.token_hex(8), user, version, address_prefix(address), until)
        return encode(self._sealer.seal(msgspec.json.encode(challenge), _ABOUT))

    def read(self, text: str, address: str) -> Challenge:
        """ChallengeOver for whatever is not good from `address` now."""
        sealed = decode(text) if len(text) <= _MAX else None
        if sealed is None:
            raise ChallengeOver
        try:
            challenge = msgspec.json.decode(self._sealer.open(sealed, _ABOUT), type=Challenge)
        except Unsealable:
            raise ChallengeOver from None
        if challenge.until <= self._now() or challenge.prefix != address_prefix(address):
            raise ChallengeOver
        return challenge

    def begin(self, about: str) -> bytes:
        """A ceremony for one purpose and one browser, session or challenge, which `about` names."""
        ceremony = Ceremony(secrets.token_bytes(16), self._now() + GOOD_FOR)
        return self._ceremonies.seal(msgspec.json.encode(ceremony), about)

    def begun(self, sealed: bytes, about: str) -> Ceremony:
        """The ceremony that `begin` sealed for the same. ChallengeOver for whatever is not good now."""
        try:
            ceremony = msgspec.json.decode(self._ceremonies.open(sealed, about), type=Ceremony)
        except Unsealable:
            raise ChallengeOver from None
        if ceremony.until <= self._now():
            raise ChallengeOver
        return ceremony
