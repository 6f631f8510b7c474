"""WHO IS THIS? One answer for HTTP requests and for live connections.

A credential is chosen once and never fallen back from: bearer, then API key, then cookie. Tokens are verified without
I/O where memory suffices; whether their session lives is asked of `sessions.revocations` on every use.

This module reads no tables and hashes no passwords: tokens, external issuers, API keys and sessions do.
"""

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

import msgspec
from aiohttp import web

from auth.api_keys import ApiKeys
from auth.errors import SessionEnded, TokenExpired, TokenInvalid, Unavailable
from auth.external import ConnectToken, ExternalTokens, ServerSub, SubscriptionGrant
from auth.jws import Parts
from auth.keys import Keys
from auth.tokens import AccessTokens, Claims, Lapsed, Remembered, UnknownKey, apart, digest
from config import scopes
from config.http import Caller, Problem, client_address, cookie
from sessions import ids
from sessions.errors import ExternalRefused
from sessions.model import EXPIRED, Ended, Position, Reading, Session, Standing
from sessions.revocations import Revocations
from sessions.service import Sessions

__all__ = [
    "READING",
    "Connected",
    "Identity",
    "ServerSub",
    "SessionEnded",
    "SubscriptionGrant",
    "TokenExpired",
    "TokenInvalid",
]

YEAR = 365 * 86400
READING: web.RequestKey[Reading] = web.RequestKey("auth_reading", Reading)
"""The session of the caller as it was read for this request, where it had to be."""

_NO_SUBS: Mapping[str, ServerSub] = {}


class Connected(NamedTuple):
    """Who a connection is.

    `standing.info` and `standing.meta` are JSON in one line (or what `b64info` held) or empty. `token_expires_at` of it
    is None for a cookie and for a token that does not expire. `subs` are the channels that the token subscribes to
    (`channels` and `subs` claims, `subs` wins).
    """

    standing: Standing
    subs: Mapping[str, ServerSub] = _NO_SUBS

    @property
    def expires(self) -> bool:
        """`expires` of the connect and refresh replies."""
        return self.standing.token_expires_at is not None

    def ttl(self, now: float) -> int:
        """Whole seconds left at database time `now`: 1 to 365 days' (protocol.md 13); 0 without an end."""
        end = self.standing.token_expires_at
        return 0 if end is None else max(1, min(YEAR, math.ceil(end - now)))


class Identity:
    """Judges credentials. `cookie_name` is the session cookie's. `idle` is `sessions.idle`: that of a session whose
    token does not say it; `roles` is `auth.roles`, `second_factor_roles` is `auth.second_factor_roles`.

    The caller of `connect` and `try_connect` runs revocation.md 9b itself, in the block that goes live: what comes back
    was good when it was judged, and an await may lie between.
    """

    def __init__(
        self,
        sessions: Sessions,
        revocations: Revocations,
        *,
        keys: Keys,
        tokens: AccessTokens,
        external: ExternalTokens,
        api_keys: ApiKeys,
        cookie_name: str,
        idle: float,
        roles: Mapping[str, Iterable[str]] = scopes.DEFAULT_ROLES,
        second_factor_roles: Iterable[str] = (),
    ) -> None:
        self._sessions, self._revocations, self._idle, self._cookie_name = sessions, revocations, idle, cookie_name
        self._keys, self._tokens, self._external, self._api_keys = keys, tokens, external, api_keys
        self._roles, self._second_factor_roles = roles, frozenset(second_factor_roles)
        # Sessions that had to be read because their token's position was too old, or its roles were.
        self._readings: Remembered[str, Reading] = Remembered()
        # What follows from a session as it was read, for as long as the same reading is used again.
        self._callers: Remembered[str, tuple[Session, Caller]] = Remembered()

    # -- HTTP

    async def identify(self, request: web.Request) -> Caller | None:
        """The caller of an HTTP request; None without a credential (`config.http.IDENTIFY`).

        Problem: unauthenticated, token_expired, session_ended (with reason). Being identified is activity.
        """
        headers = request.headers
        if "Authorization" in headers or "X-API-Key" in headers:
            scheme, value = _authorization(request)
            if scheme == "bearer":
                return await self._bearer(request, value)
            key = value if scheme == "apikey" else _one(request, "X-API-Key")
            if key is not None:
                return await self._api_keys.identify(key)
        secret = cookie(request, self._cookie_name)
        if secret is None:
            return None
        reading = self._sessions.remembered(secret)
        if reading is None:
            found = await self._sessions.by_secret(secret)
            if found is None:
                return None
            reading = await self._sessions.admit(found)
        request[READING] = reading
        return self._of_cookie(reading)

    async def _bearer(self, request: web.Request, token: str) -> Caller:
        device = request.headers.get("User-Agent", "")
        standing = (await self._token(token, client_address(request), device)).standing
        if not standing.user:
            raise TokenInvalid("an anonymous token over HTTP")
        self._sessions.seen(standing.sid, standing.idle or self._idle)
        return self._person(
            "bearer",
            standing.user,
            standing.sid,
            frozenset(standing.roles),
            standing.aal,
            standing.act,
            standing.position,
        )

    def _of_cookie(self, reading: Reading) -> Caller:
        session = reading.session
        self._sessions.seen(session.sid, session.idle)
        known = self._callers.get(session.sid)
        if known is not None and known[0] is session:
            return known[1]
        subject = session.subject
        roles = frozenset(subject.roles)
        caller = self._person("cookie", subject.id, session.sid, roles, session.aal, session.act, reading.position)
        self._callers.keep(session.sid, (session, caller))
        return caller

    def _person(
        self,
        via: Literal["bearer", "cookie"],
        user: str,
        sid: str,
        roles: frozenset[str],
        aal: int,
        act: str,
        position: Position,
    ) -> Caller:
        """In one synchronous block with the judgement of what was read or signed at `position`."""
        lacks_factor = aal < 2 and not roles.isdisjoint(self._second_factor_roles)
        granted = frozenset[str]() if act else scopes.of_roles(self._roles, roles)  # nobody borrows rights
        seen = max(position, self._revocations.position)
        return Caller(via, user, sid, roles, granted, lacks_factor, act=act, aal=aal, seen=seen)

    # -- live connections

    def try_connect(self, token: str | None, secret: str | None = None) -> Connected | None:
        """The answer for `token`, else for the cookie's `secret`, if memory has it all: no await, no I/O. None: ask
        `connect`.

        Raises TokenExpired, TokenInvalid, SessionEnded.
        """
        if token is None:
            reading = self._sessions.remembered(secret) if secret is not None else None
            return None if reading is None else Connected(self._sessions.standing(reading))
        try:
            known = self._verified(token)
        except Lapsed:
            return None
        if isinstance(known, Claims):
            return self._judged(known)
        if isinstance(known, ConnectToken) and not known.session.subject:
            return self._anonymous(known)
        return None

    async def connect(
        self, token: str | None, secret: str | None = None, *, address: str = "", device: str = ""
    ) -> Connected | None:
        """Who connects or refreshes with `token` (it wins, never a fallback), else with the cookie's `secret`.

        None when neither is given, or the cookie is nobody's: whether anonymous may connect is the gateway's to say.
        Raises TokenExpired (109), TokenInvalid (3500), SessionEnded (its own code), Problem `frozen`, `unavailable`.
        """
        if token is not None:
            return await self._token(token, address, device)
        reading = await self._sessions.by_secret(secret) if secret is not None else None
        if reading is None:
            return None
        return Connected(self._sessions.standing(await self._sessions.admit(reading)))

    async def _token(self, token: str, address: str, device: str) -> Connected:
        try:
            known = self._verified(token)
            if isinstance(known, Parts):
                known = await self._verify_after_look(token, known)
        except Lapsed as lapsed:
            await self._raise_end(lapsed.claims)
            raise
        if isinstance(known, Claims):
            return self._judged(known) or await self._read(known)
        if not known.session.subject:
            return self._anonymous(known)
        return await self._of_external(known, address, device)

    def _verified(self, token: str) -> Claims | ConnectToken | Parts:
        """What the token says, from memory or by its signature; its parts when its key is not known here (yet)."""
        key = digest(token)
        known = self._tokens.recall(key) or self._external.recall(key)
        if known is not None:
            return known
        parts = apart(token)
        try:
            return self._verify(key, parts)
        except UnknownKey:
            return parts

    def _verify(self, key: bytes, parts: Parts) -> Claims | ConnectToken:
        """What claims to be ours is judged as ours, and by nobody else after that."""
        return self._tokens.verify(key, parts) if self._tokens.ours(parts) else self._external.verify(key, parts)

    async def _verify_after_look(self, token: str, parts: Parts) -> Claims | ConnectToken:
        await (self._keys.look() if self._tokens.ours(parts) else self._external.look(parts))
        return self._verify(digest(token), parts)

    # -- our access tokens

    def _judged(self, claims: Claims) -> Connected | None:
        """What memory says of the session of a token, by the token's position or by what was read since; None: read."""
        verdict = self._revocations.judge(claims.sid, claims.sub, claims.born, claims.position)
        if verdict is None and not claims.act:  # where another acts the session is read: its end is near
            return Connected(_standing(claims, self._idle))
        if isinstance(verdict, Ended):
            raise SessionEnded(verdict)
        reading = self._readings.get(claims.sid)
        if reading is None:
            return None
        verdict = self._sessions.judge(reading)
        if isinstance(verdict, Ended) and verdict.code != EXPIRED:
            raise SessionEnded(verdict)
        # An idle end that was read may have been moved by another process since: then it is read again.
        return None if verdict is not None else self._of_reading(claims, reading)

    async def _read(self, claims: Claims) -> Connected:
        """2c: memory cannot judge the token's position, so PostgreSQL is asked."""
        reading = await self._sessions.by_sid(claims.sid) or await self._sessions.read_again(claims.sid)
        if reading is None:  # ended so long ago that its row is gone, or a failover lost its login
            raise SessionEnded(Ended(EXPIRED, "absolute"))
        reading = await self._sessions.admit(reading)
        if reading.session.subject.id != claims.sub:
            raise TokenInvalid("a session of someone else")
        self._readings.keep(claims.sid, reading)
        return self._of_reading(claims, reading)

    async def _raise_end(self, claims: Claims) -> None:
        """SessionEnded if the session of an expired token is known to be over: so whoever comes back after a revocation
        is told that, and not to fetch another token first. It is no activity, and what is not known is no end."""
        verdict = self._revocations.judge(claims.sid, claims.sub, claims.born, claims.position)
        if not isinstance(verdict, Ended):
            with contextlib.suppress(Unavailable):
                reading = await self._sessions.by_sid(claims.sid)
                verdict = reading and self._sessions.judge(reading)
        if isinstance(verdict, Ended):
            raise SessionEnded(verdict)

    def _of_reading(self, claims: Claims, reading: Reading) -> Connected:
        """The session as it was read; that a token speaks for it is the token's, whatever the session began as."""
        standing = self._sessions.standing(reading, token_expires_at=float(claims.exp))
        return Connected(msgspec.structs.replace(standing, kind="token"))

    # -- tokens of others

    async def _of_external(self, token: ConnectToken, address: str, device: str) -> Connected:
        named = msgspec.structs.replace(token.session, address=address, device=device)
        try:
            reading = await self._sessions.external(named)
        except ExternalRefused as refused:
            raise TokenInvalid(str(refused)) from None
        reading = await self._sessions.admit(reading)
        standing = self._sessions.standing(
            reading,
            token_expires_at=token.expires_at,
            own_sid=token.own_sid,
            info=token.info,
            channels=tuple(token.subs),
            meta=token.meta,
        )
        return Connected(standing, token.subs)

    def _anonymous(self, token: ConnectToken) -> Connected:
        """A token that names no user: its session lives in this node alone, under the sid that the token gives it."""
        position, named = self._revocations.position, token.session
        sid = ids.external_sid(named.issuer, "", named.sid, named.jti, named.iat, named.token_hash)
        standing = Standing(
            sid,
            "",
            position.seq,
            position,
            "anonymous",
            issuer=named.issuer,
            token_expires_at=token.expires_at,
            own_sid=token.own_sid,
            info=token.info,
            channels=tuple(token.subs),
            meta=token.meta,
        )
        return Connected(standing, token.subs)

    # -- subscription tokens

    def subscription(self, token: str) -> SubscriptionGrant | None:
        """What a subscription token grants; None when a key has to be fetched first: ask `fetch_subscription`.

        That channel, user and client are those of the asking connection is the caller's to compare.
        Raises TokenExpired (109), TokenInvalid (103 on subscribe).
        """
        digest(token)
        try:
            return self._external.subscription(apart(token))
        except UnknownKey:
            return None

    async def fetch_subscription(self, token: str) -> SubscriptionGrant:
        """As `subscription`, after at most one guarded fetch of the issuer's keys."""
        parts = apart(token)
        try:
            return self._external.subscription(parts)
        except UnknownKey:
            await self._external.look(parts)
            return self._external.subscription(parts)


def _standing(claims: Claims, idle: float) -> Standing:
    return Standing(
        claims.sid,
        claims.sub,
        claims.born,
        claims.position,
        "token",
        roles=claims.roles,
        idle=claims.idle or idle,
        token_expires_at=float(claims.exp),
        aal=claims.aal,
    )


def _authorization(request: web.Request) -> tuple[str, str]:
    """Scheme (lower case) and credentials of the Authorization header; schemes that are not ours count as none."""
    value = _one(request, "Authorization")
    scheme, _, rest = (value or "").strip().partition(" ")
    return (scheme.lower(), rest.strip()) if scheme.lower() in ("bearer", "apikey") else ("", "")


def _one(request: web.Request, name: str) -> str | None:
    """A header that may stand once at most."""
    values = request.headers.getall(name, [])
    if len(values) > 1:
        raise Problem("unauthenticated", f"{name} stands twice")
    return values[0] if values else None
