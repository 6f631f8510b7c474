"""What stands between a right password and the second factor: a sealed token, and no session.

    challenge = base64url(sealed {id, user, version of the password, address prefix, end})

Whoever holds one has shown the password from that address a few minutes ago, and can do nothing with it but show a
code. Nothing is stored. Pure, but for the random numbers.
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


class ChallengeOver(Problem):
    """Too old, from elsewhere, tried too often, or none of ours."""

    def __init__(self) -> None:
        super().__init__("unauthenticated", "this challenge is over: log in again")


class Challenges:
    """Makes and reads. `now` is the database's clock as this process holds it."""

    def __init__(self, settings: SessionSettings, *, now: Callable[[], float]) -> None:
        self._sealer = Sealer.of(settings, "challenges")
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
