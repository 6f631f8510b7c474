"""Refresh tokens: how one is written, and what presenting one means. Pure: no I/O, no clock.

A token is `version | sid | counter | HMAC(session key, those)`; there is no table of tokens. The row of the session has
its key (sealed with one that is not in the database) and the counter of the generation that may renew.
"""

import hashlib
import hmac
import os
import uuid
from enum import Enum
from typing import NamedTuple

from config.http import address_prefix
from sessions.errors import RefreshRefused
from sessions.ids import decode, encode

WINDOW = 10.0
"""For so many seconds the generation before gets the same successor again: a lost reply, two tabs."""
SLACK = 2.5
"""How far two processes' readings of one clock may lie apart: they take over steps of up to 2 s."""

FIRST = 1
"""The counter of a login's first token."""

_PREFIX = "wgr_"  # so that a scanner for leaked secrets can name what it found
_VERSION = b"\x01"
_MAC_LABEL = b"wardgate refresh token\x00"
_MAX = (1 << 63) - 1


class Presented(NamedTuple):
    """A token as it was read. Nothing in it is believed before `genuine` says so."""

    sid: str
    counter: int
    mac: bytes

    def genuine(self, key: bytes) -> bool:
        return hmac.compare_digest(self.mac, _mac(key, self.sid, self.counter))


def new_key() -> bytes:
    return os.urandom(32)


def write(key: bytes, sid: str, counter: int) -> str:
    """The token of one generation; always the same one."""
    return _PREFIX + encode(_head(sid, counter) + _mac(key, sid, counter))


def read(token: str) -> Presented:
    """RefreshRefused for whatever `write` cannot have made."""
    raw = decode(token.removeprefix(_PREFIX)) if token.startswith(_PREFIX) and len(token) < 128 else None
    if raw is None or len(raw) != 57 or raw[:1] != _VERSION:
        raise RefreshRefused
    counter = int.from_bytes(raw[17:25], "big")
    if counter >= _MAX:
        raise RefreshRefused
    return Presented(str(uuid.UUID(bytes=raw[1:17])), counter, raw[25:])


def _head(sid: str, counter: int) -> bytes:
    return _VERSION + uuid.UUID(sid).bytes + counter.to_bytes(8, "big")


def _mac(key: bytes, sid: str, counter: int) -> bytes:
    return hmac.digest(key, _MAC_LABEL + _head(sid, counter), "sha256")


class Verdict(Enum):
    """What a genuine token means to the row."""

    RENEW = "renew"  # a new generation: the one after the presented one
    REPEAT = "repeat"  # the successor that was made already, once more
    THEFT = "theft"  # somebody else has had it: the session ends


class Generation(NamedTuple):
    """What the row knows of its current generation: written once when it was made, so that it is judged by one time."""

    counter: int
    rotated_at: float | None
    client: bytes


def judge(presented: int, row: Generation, client: bytes, now: float) -> Verdict:
    """`now` and `rotated_at` are readings of the held database clock, which no step moves.

    A counter *ahead* of the row is no theft: only we can have made its MAC, so the database lost its last commits.
    """
    if presented >= row.counter:
        return Verdict.RENEW
    if presented == row.counter - 1 and row.rotated_at is not None and row.client == client:
        age = now - row.rotated_at
        if -SLACK <= age <= WINDOW:
            return Verdict.REPEAT
    return Verdict.THEFT


def client_binding(user_agent: str, address: str) -> bytes:
    """Who got a generation: the same program from the same address (IPv6: /64)."""
    return hashlib.sha256(f"{address_prefix(address)}\x00{user_agent}".encode(errors="replace")).digest()[:16]
