"""Our access tokens: made, and verified by one strict verifier (RFC 9068, RFC 8725).

A token says who (`sub`), which session (`sid`) and as of which place in the revocation log (`pos`); it never says that
the session lives: that is asked on every use, of `sessions.revocations`. Signatures are checked once a token and
remembered by SHA-256 of the whole token; expiry and the key's standing are checked on every hit.
"""

import hashlib
import secrets
from collections.abc import Callable
from typing import Any, Final, TypeVar

import jwt
import msgspec

from auth.errors import TokenExpired, TokenInvalid
from auth.jws import MAX_LENGTH, Malformed, Parts, read_object, split
from auth.keys import Keys, SigningKey
from config.settings import Auth
from sessions.model import Position, Reading

TYPE: Final = "at+jwt"
AHEAD = 5.0  # s that `iat` may lie ahead: two processes' samples of one clock
REMEMBERED = 4096
LAST_TIME = 1 << 40  # no `exp` of ours lies in the year 36812

K = TypeVar("K")
T = TypeVar("T")


class Claims(msgspec.Struct, frozen=True):
    """A verified token of ours. `iat` and `exp` are unix seconds by the database's clock; `idle` is the session's, in
    seconds, 0 where the token does not say it. `act`: the user who acts for `sub` (RFC 8693 4.1), "" for nobody."""

    sub: str
    sid: str
    roles: tuple[str, ...]
    position: Position
    born: int
    iat: int
    exp: int
    jti: str
    kid: str
    aal: int = 1
    auth_time: int = 0
    idle: float = 0.0
    act: str = ""


class _Actor(msgspec.Struct):
    sub: str


class _Payload(msgspec.Struct):
    """Every claim that we make, each of one type, and required but for those of later versions: without `aal` and
    `auth_time` it is one factor, shown who knows when."""

    iss: str
    aud: str
    sub: str
    sid: str
    iat: int
    exp: int
    jti: str
    roles: list[str]
    pos: str
    aal: int = 1
    auth_time: int = 0
    idle: float = 0.0
    act: _Actor | None = None


class UnknownKey(TokenInvalid):
    """A token in our form whose key this process has not read (yet)."""


class Lapsed(TokenExpired):
    """One of ours that was good until its `exp`. Its claims are good for asking whether its session has ended, and for
    nothing else."""

    def __init__(self, claims: Claims) -> None:
        super().__init__()
        self.claims = claims


class Remembered(dict[K, T]):
    """What was found out lately, the oldest dropped first."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        super().__init__()
        self._limit = limit

    def keep(self, key: K, value: T) -> None:
        self.pop(key, None)
        if len(self) >= self._limit:
            del self[next(iter(self))]
        self[key] = value


def digest(token: str) -> bytes:
    """SHA-256 of the whole token, if it is short and plain enough to be one. TokenInvalid."""
    if len(token) > MAX_LENGTH or not token.isascii():
        raise TokenInvalid("longer than 4 KB, or not ASCII")
    return hashlib.sha256(token.encode()).digest()


class AccessTokens:
    """Makes and verifies. `now` is the database's clock as this process holds it (`Revocations.database_now`)."""

    def __init__(self, keys: Keys, settings: Auth, *, now: Callable[[], float]) -> None:
        self._keys, self._now = keys, now
        self._issuer, self._audience, self._ttl = settings.issuer, settings.audience, settings.access_token_ttl
        self._remembered: Remembered[bytes, Claims] = Remembered()

    def make(self, reading: Reading) -> tuple[str, int]:
        """A token for a live session as it was read, and the whole seconds that it lives.

        It ends with the session at the latest: at its absolute end, and, as asking for it was activity, at the idle end
        that the session has without another sign of life; so nothing has to be read to hold the token to either.
        """
        session, key, now = reading.session, self._keys.active, self._now()
        iat = int(now)
        exp = max(iat, int(min(now + self._ttl, now + session.idle, session.expires_at)))
        position = f"{reading.position}:{session.born:x}"
        claims = Claims(
            session.subject.id,
            session.sid,
            session.subject.roles,
            reading.position,
            session.born,
            iat,
            exp,
            secrets.token_hex(16),
            key.kid,
            session.aal,
            int(session.auth_time),
            session.idle,
            session.act,
        )
        payload: dict[str, Any] = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": claims.sub,
            "sid": claims.sid,
            "iat": iat,
            "exp": exp,
            "jti": claims.jti,
            "roles": list(claims.roles),
            "pos": position,
            "aal": claims.aal,
            "auth_time": claims.auth_time,
            "idle": claims.idle,
        }
        if claims.act:
            payload["act"] = {"sub": claims.act}
        token = jwt.encode(payload, key.private, key.algorithm, headers={"typ": TYPE, "kid": key.kid})
        self._remembered.keep(digest(token), claims)  # what we signed needs no verifying here
        return token, exp - iat

    def ours(self, parts: Parts) -> bool:
        """Whether it claims to be one of ours. Then it is judged as such, and by no other verifier after that."""
        return parts.header.get("typ") == TYPE and _issuer_of(parts.payload) == self._issuer

    def recall(self, key: bytes) -> Claims | None:
        """The claims of a token that was verified before, by its `digest`, if it is good now. Lapsed, TokenInvalid."""
        claims = self._remembered.get(key)
        if claims is None:
            return None
        if self._keys.get(claims.kid) is None:
            raise TokenInvalid("its key is retired")
        return self._timely(claims)

    def verify(self, key: bytes, parts: Parts) -> Claims:
        """The claims of a token of ours that is good now; remembered under its `digest`. No I/O.

        Lapsed, TokenInvalid; UnknownKey when its key may have been made since the table was read (`Keys.look`).
        """
        claims = self._verify(parts)
        self._remembered.keep(key, claims)
        return self._timely(claims)

    def _timely(self, claims: Claims) -> Claims:
        if claims.exp <= self._now():
            raise Lapsed(claims)
        return claims

    def _verify(self, parts: Parts) -> Claims:
        key = self._key(parts)
        if not key.verify(parts.signed, parts.signature):
            raise TokenInvalid("signature")
        return self._claims(parts.payload, key.kid)

    def _key(self, parts: Parts) -> SigningKey:
        """The key of a header that is exactly what we write: typ, kid, and that key's one algorithm."""
        header = parts.header
        if header.keys() != {"typ", "alg", "kid"} or header["typ"] != TYPE or not isinstance(header["kid"], str):
            raise TokenInvalid("header")
        key = self._keys.get(header["kid"])
        if key is None:
            raise UnknownKey("unknown key")
        if header["alg"] != key.algorithm:
            raise TokenInvalid("algorithm")
        return key

    def _claims(self, raw: bytes, kid: str) -> Claims:
        try:
            read_object(raw)
            payload = msgspec.json.decode(raw, type=_Payload)
            position, _, born = payload.pos.rpartition(":")
            claims = Claims(
                payload.sub,
                payload.sid,
                tuple(payload.roles),
                Position.parse(position),
                int(born, 16),
                payload.iat,
                payload.exp,
                payload.jti,
                kid,
                payload.aal,
                payload.auth_time,
                payload.idle,
                "" if payload.act is None else payload.act.sub,
            )
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise TokenInvalid(f"claims: {type(error).__name__}") from None
        if payload.iss != self._issuer or payload.aud != self._audience:
            raise TokenInvalid("issuer or audience")
        if not (claims.sub and claims.sid and claims.jti):
            raise TokenInvalid("an empty claim")
        if not 0 < claims.iat <= claims.exp < LAST_TIME:
            raise TokenInvalid("times")
        if claims.iat > self._now() + AHEAD:
            raise TokenInvalid("made in the future")
        return claims


def apart(token: str) -> Parts:
    """`jws.split`, as TokenInvalid."""
    try:
        return split(token)
    except Malformed as error:
        raise TokenInvalid(str(error)) from None


class _Issuer(msgspec.Struct):
    iss: str = ""


def _issuer_of(payload: bytes) -> str:
    """What the payload says, unverified: good for choosing a verifier and for nothing else."""
    try:
        return msgspec.json.decode(payload, type=_Issuer).iss
    except (msgspec.DecodeError, RecursionError):
        return ""
