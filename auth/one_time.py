"""One-time tokens: what a link in a letter carries. Good once, for a while, for one purpose.

The token is 256 random bits; PostgreSQL has its hash. Redeeming deletes the row, so of twenty at once one succeeds, and
nothing that is local to a process decides.
"""

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from config.database import Connection, Pool

Purpose = Literal["verify_email", "reset_password", "change_email", "approve_email"]


class Redeemed(NamedTuple):
    """Whom a token was for ("": nobody yet), and what was laid down with it."""

    subject: str
    detail: dict[str, Any]


async def mint(
    connection: Connection, purpose: Purpose, subject: str | None, detail: Mapping[str, Any], *, ttl: float
) -> str:
    """A new token for `ttl` seconds; those minted before stay good."""
    token = secrets.token_urlsafe(32)
    await connection.execute(_MINT, _hash(token), purpose, subject, dict(detail), ttl)
    return token


async def redeem(connection: Connection, purpose: Purpose, token: str) -> Redeemed | None:
    """Use it up, in the caller's transaction. None when it never was, is over, was used, or is for something else."""
    return _read(await connection.fetchrow(_REDEEM, _hash(token), purpose))


async def peek(pool: Pool, purpose: Purpose, token: str) -> Redeemed | None:
    """What `redeem` would find, without using it up."""
    return _read(await pool.fetchrow(_PEEK, _hash(token), purpose))


def _read(record: Any) -> Redeemed | None:
    return None if record is None else Redeemed(record["subject"] or "", record["detail"])


async def void(connection: Connection, subject: str) -> None:
    """Nobody can use what was minted for this subject so far."""
    await connection.execute(_VOID, subject)


async def tidy(pool: Pool) -> int:
    """Delete what is over; how many."""
    gone = 0
    while True:
        batch = len(await pool.fetch(_TIDY, TIDIED_AT_ONCE))
        gone += batch
        if batch < TIDIED_AT_ONCE:
            return gone


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="replace")).digest()


TIDIED_AT_ONCE = 1000

_MINT = """
INSERT INTO one_time_tokens (hash, purpose, subject, detail, expires_at)
VALUES ($1, $2, $3, $4, clock_timestamp() + make_interval(secs => $5))
"""
_REDEEM = """
DELETE FROM one_time_tokens WHERE hash = $1 AND purpose = $2 AND expires_at > clock_timestamp()
RETURNING subject, detail
"""
_PEEK = (
    "SELECT subject, detail FROM one_time_tokens WHERE hash = $1 AND purpose = $2 AND expires_at > clock_timestamp()"
)
_VOID = "DELETE FROM one_time_tokens WHERE subject = $1"
_TIDY = """
DELETE FROM one_time_tokens WHERE hash IN (
    SELECT hash FROM one_time_tokens WHERE expires_at < clock_timestamp() LIMIT $1 FOR UPDATE SKIP LOCKED
) RETURNING hash
"""
