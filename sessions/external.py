"""Sessions of tokens that others issue: what names one, and which user an issuer may speak for. Pure."""

import msgspec

from sessions import ids
from sessions.errors import ExternalRefused
from sessions.model import Reading
from sessions.store import Sight

LOCAL = "u_"
"""How our own users' ids begin: nobody else's may, where no issuer's name stands before them."""
LONGEST = 512
FORGOTTEN_AFTER = 86400.0
"""So long after its token expired (s) a session that nobody ended is deleted: the token cannot come again."""
_LATEST = 1e11


class External(msgspec.Struct, frozen=True):
    """What an external issuer's verified token says of its session.

    `issuer` is "" for `client.token`, else the issuer's name; `subject` is the user id as it will be known
    (`<name>:<sub>` for a named issuer). `sid`, `jti`, `iat` and `expires_at` (exp) as the token has them;
    `token_hash` is its SHA-256.
    """

    issuer: str
    subject: str
    token_hash: bytes
    sid: str = ""
    jti: str = ""
    iat: float | None = None
    expires_at: float | None = None
    device: str = ""
    address: str = ""


def sight(token: External) -> Sight:
    """The row that this token's session is, or would be. ExternalRefused when it can be none."""
    prefix = f"{token.issuer}:" if token.issuer else ""
    if not token.subject.startswith(prefix) or token.subject == prefix:
        raise ExternalRefused("the user id is empty, or not one of this issuer's")
    if not prefix and token.subject.startswith(LOCAL):
        raise ExternalRefused(f"a user id of this issuer must not begin with {LOCAL}")
    if not all(_storable(claim) for claim in (token.issuer, token.subject, token.sid, token.jti)):
        raise ExternalRefused("a claim is too long, or no text")
    iat = _moment(token.iat)
    sid = ids.external_sid(token.issuer, token.subject, token.sid, token.jti, iat, token.token_hash)
    expires = None if token.sid else _moment(token.expires_at)  # another token may come with this sid
    forget_at = None if expires is None else expires + FORGOTTEN_AFTER
    return Sight(sid, token.subject, token.issuer, iat, text(token.device), text(token.address), forget_at)


def of_sight(sight: Sight, reading: Reading | None) -> Reading:
    """The reading, if that session is this user's: a sid or jti that another user came with first is refused."""
    if reading is None or reading.session.subject.id != sight.subject:
        raise ExternalRefused("this token names a session of another user")
    return reading


def text(value: str, longest: int = LONGEST) -> str:
    """A header's text as it can be stored: no NUL, no lone surrogates, cut."""
    return value[:longest].encode(errors="replace").replace(b"\x00", b"").decode()


def _moment(claim: float | None) -> float | None:
    """A NumericDate that PostgreSQL can take; a token may claim anything."""
    if claim is None or claim != claim:  # NaN
        return None
    return float(min(max(0.0, claim), _LATEST))


def _storable(claim: str) -> bool:
    try:
        raw = claim.encode()
    except UnicodeEncodeError:
        return False
    return len(raw) <= LONGEST and b"\x00" not in raw
