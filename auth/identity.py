"""WHO IS THIS? One answer for HTTP requests and for live connections.

A credential is chosen once and never fallen back from: bearer, then API key, then cookie. Tokens are verified without
I/O where memory suffices; what they may still do is asked of `sessions.revocations` on every use.

This module reads no tables and hashes nothing: tokens, external issuers, API keys and sessions do.
"""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec
from aiohttp import web

from config.http import Caller
from sessions.model import Standing


class ServerSub(msgspec.Struct, frozen=True, omit_defaults=True):
    """One channel that a token subscribes its connection to. None in an override means: as the namespace says."""

    info: bytes = b""
    data: bytes = b""
    presence: bool | None = None
    join_leave: bool | None = None
    push_join_leave: bool | None = None
    recovery: bool | None = None
    positioning: bool | None = None


class SubscriptionGrant(msgspec.Struct, frozen=True):
    """What a subscription token grants. `expires_at` is in unix seconds by the database's clock, None for never."""

    channel: str
    user: str
    client: str
    sub: ServerSub
    expires_at: float | None


class Connected(NamedTuple):
    """Who a connection is.

    `standing.info` and `standing.meta` are raw JSON (or the decoded `b64info`) or empty; `standing.token_expires_at` is
    None for a cookie and for a token that does not expire. `subs` are the channels that the token subscribes to
    (`channels` and `subs` claims, `subs` wins).
    """

    standing: Standing
    subs: Mapping[str, ServerSub]

    @property
    def expires(self) -> bool:
        """`expires` of the connect and refresh replies."""
        return self.standing.token_expires_at is not None

    def ttl(self, now: float) -> int:
        """Whole seconds left at database time `now`, at least 1, at most 365 days (protocol.md 13)."""
        raise NotImplementedError


class Identity:
    """Judges credentials.

    The caller of `connect` and `try_connect` runs revocation.md 9b itself, in the block that goes live: what comes back
    was good when it was judged, and an await may lie between.
    """

    async def identify(self, request: web.Request) -> Caller | None:
        """The caller of an HTTP request; None without a credential (`config.http.IDENTIFY`).

        Problem: unauthenticated, token_expired, session_ended (with reason).
        """
        raise NotImplementedError

    def try_connect(self, token: str) -> Connected | None:
        """The answer for `token` if memory has it all: no await, no I/O. None: ask `connect`.

        Raises TokenExpired, TokenInvalid, SessionEnded.
        """
        raise NotImplementedError

    async def connect(
        self, token: str | None, secret: str | None = None, *, address: str = "", device: str = ""
    ) -> Connected | None:
        """Who connects or refreshes with `token` (it wins, never a fallback), else with the cookie's `secret`.

        None when neither is given, or the cookie is unknown to us: whether anonymous may connect is the gateway's.
        Raises TokenExpired (109), TokenInvalid (3500), SessionEnded (its own code).
        """
        raise NotImplementedError

    def subscription(self, token: str) -> SubscriptionGrant | None:
        """What a subscription token grants; None when a key has to be fetched first: ask `fetch_subscription`.

        That channel, user and client are those of the asking connection is the caller's to compare.
        Raises TokenExpired (109), TokenInvalid (103 on subscribe).
        """
        raise NotImplementedError

    async def fetch_subscription(self, token: str) -> SubscriptionGrant:
        """As `subscription`, after at most one guarded fetch of the issuer's keys."""
        raise NotImplementedError
