"""Tokens of other issuers: connection and subscription tokens as the reference's backends make them.

Which issuer must have signed follows from `iss` and the settings; nothing else of a token is looked at before its
signature is verified, and then only that issuer's keys were asked. `client.token` has no prefix: its user 42 is 42
everywhere. A further issuer's users are `<name>:<sub>`, and no one but that issuer can name one.

Nothing here knows sessions: what comes back says which session a token *names* (`sessions.external.External`).
"""

import base64
import binascii
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from auth.errors import AnonymousNotAllowed, TokenExpired, TokenInvalid
from auth.jwks import Fetch, KeySet, KeySource, StaticKeys, fetch_guarded
from auth.jws import Malformed, Parts, read_object
from auth.tokens import Remembered, UnknownKey
from config.clock import Clock
from config.settings import Client, Issuer, Token
from sessions.external import External

LOCAL_USER = "u_"  # no external token can speak for an account of ours
MAX_USER = 512
_TYPES = frozenset({"", "jwt", "at+jwt", "application/at+jwt"})
_LAST = float(1 << 40)
AHEAD = 60.0
"""How far (s) `iat` may lie ahead of the database's clock. Where an issuer's clock is ahead, tokens made before a
revocation count as made after it; so no more than this."""

Number = int | float


class ServerSub(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a token says of one subscription. None in an override means: as the namespace says.

    `info` and `data` are JSON in one line, or whatever bytes `b64info` and `b64data` held.
    """

    info: bytes = b""
    data: bytes = b""
    presence: bool | None = None
    join_leave: bool | None = None
    force_push_join_leave: bool | None = None
    force_recovery: bool | None = None
    force_positioning: bool | None = None


class ConnectToken(msgspec.Struct, frozen=True):
    """A verified connection token.

    `good_until` (its `exp`) and `expires_at` (when a connection made with it expires: `expire_at`, else `exp`) are unix
    seconds, None for never. `session` names the session; its `subject` is "" for an anonymous token.
    """

    session: External
    own_sid: bool
    info: bytes
    meta: bytes
    subs: Mapping[str, ServerSub]
    good_until: float | None
    expires_at: float | None


class SubscriptionGrant(msgspec.Struct, frozen=True):
    """What a subscription token grants; that channel, user and client are the asking connection's is still to be asked.

    `client` is "" when the token is not bound to one. `expires_at` as in `ConnectToken`.
    """

    channel: str
    user: str
    client: str
    sub: ServerSub
    expires_at: float | None


class _Bool(msgspec.Struct):
    value: bool = False


class _Override(msgspec.Struct):
    presence: _Bool | None = None
    join_leave: _Bool | None = None
    force_push_join_leave: _Bool | None = None
    force_recovery: _Bool | None = None
    force_positioning: _Bool | None = None


class _SubClaims(msgspec.Struct):
    info: msgspec.Raw = msgspec.Raw()
    b64info: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    b64data: str | None = None
    override: _Override | None = None


class _Claims(_SubClaims):
    """What the reference reads; null counts as absent, every other type than these is refused."""

    sub: str | None = None
    iss: str | None = None
    aud: str | list[str] | None = None
    sid: str | None = None
    jti: str | None = None
    exp: Number | None = None
    nbf: Number | None = None
    iat: Number | None = None
    expire_at: int | None = None
    channel: str | None = None
    client: str | None = None
    channels: list[str] | None = None
    subs: dict[str, _SubClaims | None] | None = None
    meta: msgspec.Raw = msgspec.Raw()


class _Verifier:
    """One issuer: its keys, and what it must say."""

    def __init__(self, name: str, settings: Token, keys: KeySource) -> None:
        self.name, self.keys = name, keys
        self._issuer, self._audience = settings.issuer, settings.audience
        self._user_claim = settings.user_id_claim or "sub"

    def claims(self, parts: Parts) -> tuple[_Claims, str]:
        """The claims, and the user they name as the issuer knows it. UnknownKey when a look may help."""
        self._check_signature(parts)
        try:
            names = read_object(parts.payload)
            claims = msgspec.json.decode(parts.payload, type=_Claims)
        except (Malformed, msgspec.DecodeError, RecursionError) as error:
            raise TokenInvalid(f"claims: {error}") from None
        if self._issuer and claims.iss != self._issuer:
            raise TokenInvalid("issuer")
        audience = [claims.aud] if isinstance(claims.aud, str) else claims.aud or []
        if self._audience and self._audience not in audience:
            raise TokenInvalid("audience")
        if "events" in names:  # RFC 8417: a security event (a logout token is one), not a statement of who this is
            raise TokenInvalid("a security event token")
        return claims, self._user(names)

    def _check_signature(self, parts: Parts) -> None:
        header = parts.header
        algorithm, kid, kind = header.get("alg"), header.get("kid", ""), header.get("typ", "")
        if not (isinstance(algorithm, str) and isinstance(kid, str) and isinstance(kind, str)):
            raise TokenInvalid("header")
        if kind.lower() not in _TYPES:
            raise TokenInvalid("typ")
        key = self.keys.find(algorithm, kid)
        if key is None:
            raise UnknownKey("no key for it") if self.keys.worth_a_look() else TokenInvalid("no key for it")
        if not key.verify(algorithm, parts.signed, parts.signature):
            raise TokenInvalid("signature")

    def _user(self, names: Mapping[str, Any]) -> str:
        """The user by `user_id_claim`: text, or where it is not `sub` a whole number as well."""
        value = names.get(self._user_claim)
        if isinstance(value, int) and not isinstance(value, bool) and self._user_claim != "sub":
            value = str(value)
        if value is None:
            return ""
        if not isinstance(value, str) or "\x00" in value or len(value.encode()) > MAX_USER - len(self.name) - 1:
            raise TokenInvalid("user")
        return value


class ExternalTokens:
    """Verifies with `client.token`, `client.issuers` and `client.subscription_token`. `now` is the database's clock."""

    def __init__(
        self, settings: Client, *, now: Callable[[], float], clock: Clock, fetch: Fetch = fetch_guarded
    ) -> None:
        self._now, self._clock, self._fetch = now, clock, fetch
        self._no_anonymous, self._insecure = settings.disallow_anonymous_connection_tokens, settings.insecure
        self._remembered: Remembered[bytes, ConnectToken] = Remembered()
        self._default = self._verifier("", settings.token)
        self._named = {i.issuer or i.name: self._verifier(i.name, _named_issuer(i)) for i in settings.issuers}
        own = settings.subscription_token
        self._subscription = self._verifier("", own) if own.enabled else None
        self._foreign = tuple(f"{i.name}:" for i in settings.issuers)
        token = settings.token
        self._default_speaks = bool(
            token.hmac_secret_key.get_secret_value()
            or token.rsa_public_key
            or token.ecdsa_public_key
            or token.jwks_public_endpoint
        )

    def _verifier(self, name: str, settings: Token) -> _Verifier:
        keys: KeySource
        if settings.jwks_public_endpoint:
            keys = KeySet(settings.jwks_public_endpoint, self._fetch, clock=self._clock, changed=self._forget)
        else:
            keys = StaticKeys(settings)
        return _Verifier(name, settings, keys)

    def could_name(self, user: str) -> bool:
        """Whether some issuer's token could name `user`, who then need not have been here to be known."""
        return user.startswith(self._foreign) or (self._default_speaks and not user.startswith(LOCAL_USER))

    def _forget(self) -> None:
        """A key was withdrawn: what it signed has to be verified again."""
        self._remembered.clear()

    def recall(self, digest: bytes) -> ConnectToken | None:
        """A token that was verified before, if it is good now. TokenExpired."""
        token = self._remembered.get(digest)
        return None if token is None else self._timely(token)

    def verify(self, digest: bytes, parts: Parts) -> ConnectToken:
        """A connection token that is good now; remembered under its `digest`. No I/O.

        TokenExpired, TokenInvalid; UnknownKey when its key may be found by `look`.
        """
        issuer = self._issuer_of(parts)
        claims, user = issuer.claims(parts)
        if claims.channel:
            raise TokenInvalid("a subscription token does not connect")
        _check_times(claims, self._now())
        token = ConnectToken(
            session=External(
                issuer=issuer.name,
                subject=self._known_as(issuer, user),
                token_hash=digest,
                sid=claims.sid or "",
                jti=claims.jti or "",
                iat=claims.iat,
                expires_at=claims.exp,
            ),
            own_sid=bool(claims.sid),
            info=_bytes(claims.info, claims.b64info),
            meta=_bytes(claims.meta, None),
            subs=_subs(claims),
            good_until=claims.exp,
            expires_at=None if self._insecure else _expires_at(claims),
        )
        self._remembered.keep(digest, token)
        return self._timely(token)

    def subscription(self, parts: Parts) -> SubscriptionGrant:
        """A subscription token that is good now. No I/O; raises as `verify`."""
        issuer = self._subscription or self._issuer_of(parts)
        claims, user = issuer.claims(parts)
        if not claims.channel:
            raise TokenInvalid("a connection token does not subscribe")
        now, expires_at = self._now(), _expires_at(claims)
        _check_times(claims, now)
        if expires_at is not None and expires_at <= now:
            raise TokenExpired
        name = f"{issuer.name}:{user}" if issuer.name and user else user
        return SubscriptionGrant(claims.channel, name, claims.client or "", _sub(claims), expires_at)

    async def look(self, parts: Parts) -> None:
        """Fetch the keys of the issuers that `parts` may be of, at most once in a while. Never raises."""
        await self._issuer_of(parts).keys.look()
        if self._subscription is not None:
            await self._subscription.keys.look()

    def _issuer_of(self, parts: Parts) -> _Verifier:
        """By what `iss` claims to be: it only chooses whose keys must have signed."""
        try:
            iss = msgspec.json.decode(parts.payload, type=_Iss).iss
        except (msgspec.DecodeError, RecursionError):
            raise TokenInvalid("claims") from None
        return self._named.get(iss or "", self._default)

    def _known_as(self, issuer: _Verifier, user: str) -> str:
        if not user:
            if self._no_anonymous:
                raise AnonymousNotAllowed
            return ""
        if issuer.name:
            return f"{issuer.name}:{user}"
        if user.startswith((LOCAL_USER, *self._foreign)):
            raise TokenInvalid("a user of someone else")
        return user

    def _timely(self, token: ConnectToken) -> ConnectToken:
        now = self._now()
        for end in (token.good_until, token.expires_at):
            if end is not None and end <= now:
                raise TokenExpired
        return token


class _Iss(msgspec.Struct):
    iss: str | None = None


def _named_issuer(settings: Issuer) -> Issuer:
    """A named issuer must say who it is: `issuer`, or its name where that is not set."""
    return settings if settings.issuer else settings.model_copy(update={"issuer": settings.name})


def _check_times(claims: _Claims, now: float) -> None:
    for value in (claims.exp, claims.nbf, claims.iat):
        if value is not None and not (math.isfinite(value) and abs(value) < _LAST):
            raise TokenInvalid("times")
    if claims.exp is not None and claims.exp <= now:
        raise TokenExpired
    if claims.nbf is not None and claims.nbf > now:
        raise TokenExpired
    if claims.iat is not None and not 0 <= claims.iat <= now + AHEAD:
        raise TokenInvalid("iat")


def _expires_at(claims: _Claims) -> float | None:
    """`expire_at` wins over `exp`; zero or less means never."""
    if claims.expire_at is None:
        return claims.exp
    if abs(claims.expire_at) >= _LAST:
        raise TokenInvalid("times")
    return float(claims.expire_at) if claims.expire_at > 0 else None


def _subs(claims: _Claims) -> Mapping[str, ServerSub]:
    if claims.subs:
        return {channel: _sub(sub or _SubClaims()) for channel, sub in claims.subs.items()}
    return {channel: ServerSub() for channel in claims.channels or ()}


def _sub(claims: _SubClaims) -> ServerSub:
    override = claims.override or _Override()
    return ServerSub(
        info=_bytes(claims.info, claims.b64info),
        data=_bytes(claims.data, claims.b64data),
        presence=_value(override.presence),
        join_leave=_value(override.join_leave),
        force_push_join_leave=_value(override.force_push_join_leave),
        force_recovery=_value(override.force_recovery),
        force_positioning=_value(override.force_positioning),
    )


def _value(flag: _Bool | None) -> bool | None:
    return None if flag is None else flag.value


def _bytes(raw: msgspec.Raw, encoded: str | None) -> bytes:
    """Base64 wins, as in the reference. JSON goes in one line: it is spliced into frames that end at a line's end."""
    if encoded:
        try:
            return base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise TokenInvalid("base64") from None
    plain = bytes(raw)
    if plain in (b"", b"null"):
        return b""
    return msgspec.json.format(plain, indent=-1) if b"\n" in plain or b"\r" in plain else plain
