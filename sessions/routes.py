"""Sessions over HTTP: a person's own (list, end one, others, all, log out), and everyone's and the audit for admins.

What a session is and how it ends stands in `service`; here are the shapes of interface.md.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
from aiohttp import web

from config import paging
from config.database import Pool
from config.http import Call, Caller, Nothing, Paging, Problem, Route, plain, rfc3339
from config.paging import Cursor
from config.redis import Unavailable as RedisAway
from sessions import audit, cookies, store
from sessions.devices import device_name, place
from sessions.errors import translated
from sessions.model import Session
from sessions.service import Actor, Sessions

Connections = Callable[[Sequence[str]], Awaitable[Mapping[str, int]]]
"""How many live connections each of these sids has, at most 1 s old; a sid without any may be left out."""


class AnonymousQuery(msgspec.Struct, frozen=True):
    """Which sessions of anonymous connections: all, or of a sid or an issuer; from the place `after` on."""

    limit: int
    sid: str = ""
    issuer: str = ""
    after: Cursor | None = None


class Anonymous(msgspec.Struct, frozen=True):
    """The session of an anonymous connection, which lives in its node alone. `created_at` is database time."""

    sid: str
    issuer: str
    device: str
    address: str
    created_at: float
    idle_for: float
    connections: int

    def with_(self, other: "Anonymous") -> "Anonymous":
        """The same session as two connections have it, on whichever nodes."""
        return msgspec.structs.replace(
            min(self, other, key=lambda session: session.created_at),
            idle_for=min(self.idle_for, other.idle_for),
            connections=self.connections + other.connections,
        )


ListAnonymous = Callable[[AnonymousQuery], Awaitable[Sequence[Anonymous]]]
"""Those on all nodes that answer, newest first."""


async def nobody(_query: AnonymousQuery) -> Sequence[Anonymous]:
    """Where there are no connections there are no sessions of them."""
    return ()


class SessionView(msgspec.Struct, frozen=True):
    """A session as its login, `/auth/me` and refreshes show it."""

    sid: str
    created_at: str
    expires_at: str
    idle_expires_at: str


def view(session: Session) -> SessionView:
    """The `session` of interface.md."""
    return SessionView(
        session.sid, rfc3339(session.created_at), rfc3339(session.expires_at), rfc3339(session.idle_expires_at)
    )


class OwnSession(msgspec.Struct, frozen=True):
    """One of the caller's sessions. `address` is the network that it began in (IPv4: /24, IPv6: /48). `connections` is
    null while the registry is away. `impersonated_by`: who acts in it for the caller; their device
    and address are not told."""

    sid: str
    device: str
    address: str
    created_at: str
    last_seen_at: str
    expires_at: str
    idle_expires_at: str
    connections: int | None
    current: bool
    impersonated_by: str | msgspec.UnsetType = msgspec.UNSET


class OwnSessions(msgspec.Struct, frozen=True):
    items: list[OwnSession]
    next: str


class EndedView(msgspec.Struct, frozen=True):
    """Why a session is over: the close code and its texts."""

    code: int
    reason: str
    message: str
    at: str


class AnySession(msgspec.Struct, frozen=True):
    """A session as admins see it. `ended` is null while it is live. An anonymous one has no user and no set end."""

    sid: str
    user: str
    kind: str
    issuer: str
    device: str
    address: str
    created_at: str
    last_seen_at: str
    expires_at: str | None
    idle_expires_at: str | None
    connections: int | None
    ended: EndedView | None
    impersonated_by: str | None


class AnySessions(msgspec.Struct, frozen=True):
    items: list[AnySession]
    next: str


class AuditRow(msgspec.Struct, frozen=True):
    """Who did what to whom. `actor` is `user:<id>`, `key:<id>`, `system` or `cli`; `sid` the session that acted."""

    id: int
    at: str
    actor: str
    action: str
    target: str
    sid: str
    address: str
    detail: dict[str, Any]


class AuditRows(msgspec.Struct, frozen=True):
    items: list[AuditRow]
    next: str


class Scope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which of the caller's sessions end."""

    scope: Literal["others", "all"]


class SessionFilter(Paging, frozen=True, forbid_unknown_fields=True):
    """Live sessions; with `sid` that one, live or over. `issuer` is an external issuer's name."""

    user: str = ""
    sid: str = ""
    issuer: str = ""
    kind: Literal["", "cookie", "token", "external", "anonymous"] = ""


class AuditFilter(Paging, frozen=True, forbid_unknown_fields=True):
    """`action` is a whole action ("session.ended") or the part before the dot."""

    actor: str = ""
    action: str = ""
    target: str = ""
    sid: str = ""


class SessionRoutes:
    """The handlers, over what they need."""

    def __init__(
        self, sessions: Sessions, pool: Pool, connections: Connections, anonymous: ListAnonymous = nobody
    ) -> None:
        self._sessions = sessions
        self._pool = pool
        self._connections = connections
        self._anonymous = anonymous

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/auth/sessions",
                self.own,
                "My live sessions, newest first",
                query=Paging,
                result=OwnSessions,
                access="session",
                tag="sessions",
            ),
            Route(
                "DELETE",
                "/auth/sessions/{sid}",
                self.end_one,
                "End one of my sessions",
                access="session",
                errors=("not_found",),
                tag="sessions",
            ),
            Route(
                "DELETE",
                "/auth/sessions",
                self.end_many,
                "End my other sessions, or all of them",
                query=Scope,
                access="session",
                tag="sessions",
            ),
            Route(
                "POST",
                "/auth/logout",
                self.logout,
                "End this session and its connections",
                body=Nothing,
                impersonable=True,
                access="session",
                tag="sessions",
            ),
            Route(
                "GET",
                "/admin/sessions",
                self.everyones,
                "Live sessions, newest first",
                query=SessionFilter,
                result=AnySessions,
                export=AnySession,
                access="admin",
                scope="sessions:read",
                tag="admin",
            ),
            Route(
                "GET",
                "/admin/audit",
                self.audited,
                "Who did what to whom, newest first",
                query=AuditFilter,
                result=AuditRows,
                export=AuditRow,
                access="admin",
                scope="audit",
                tag="admin",
            ),
        ]

    # -- a person's own

    async def own(self, call: Call[None, Paging]) -> OwnSessions:
        by = store.Filter(subject=call.who.id)
        items, after = await self._sessions.page(by, limit=call.query.limit, after=paging.asked(call.query.after))
        counts = await self._counts(items)
        return OwnSessions([_own(session, counts, call.who.sid) for session in items], paging.write(after))

    async def end_one(self, call: Call[None, Nothing]) -> web.StreamResponse | None:
        sid = call.path("sid")
        if not await self._sessions.end_one(_actor(call), sid):
            raise Problem("not_found")
        if sid == call.who.sid:
            await _forget(call)
        return None

    async def end_many(self, call: Call[None, Scope]) -> None:
        if call.query.scope == "others":
            await self._sessions.end_others(_actor(call))
            return
        await self._sessions.end_all(_actor(call))
        await _forget(call)

    async def logout(self, call: Call[Nothing, Nothing]) -> None:
        await self._sessions.logout(_actor(call))
        await _forget(call)

    # -- everyone's

    async def everyones(self, call: Call[None, SessionFilter]) -> AnySessions:
        query, limit, after = call.query, call.query.limit, paging.asked(call.query.after)
        user, sid, issuer = (plain(name, getattr(query, name)) for name in ("user", "sid", "issuer"))
        found: list[tuple[Cursor, AnySession]] = []
        more: Cursor | None = None
        now = self._sessions.now()
        if query.kind != "anonymous":
            by = store.Filter(user, sid, issuer or None, query.kind)
            items, more = await self._sessions.page(by, limit=limit, after=after)
            counts = await self._counts(items)
            found += [(place_of(session), _any(session, counts, now)) for session in items]
        if query.kind in ("", "anonymous") and not user:
            listed = await self._anonymous(AnonymousQuery(limit + 1, sid, issuer, after))
            found = sorted(
                [*found, *((place_of(session), _nobodys(session, now)) for session in listed)],
                key=lambda entry: entry[0],
                reverse=True,
            )
        if len(found) > limit:
            more = found[limit - 1][0]
        return AnySessions([session for _, session in found[:limit]], paging.write(more))

    async def audited(self, call: Call[None, AuditFilter]) -> AuditRows:
        query, limit = call.query, call.query.limit
        by = audit.Filter(
            *(plain(name, getattr(query, name)) for name in ("actor", "action", "target", "sid")),
        )
        with translated():
            entries = await audit.page(self._pool, by, limit=limit + 1, after=paging.asked(query.after, paging.NUMBER))
        more = len(entries) > limit
        place = entries[limit - 1].place if more else None
        return AuditRows([_audited(entry) for entry in entries[:limit]], paging.write(place))

    async def _counts(self, sessions: Sequence[Session]) -> Mapping[str, int] | None:
        """Live connections by sid; None while the registry is away: a list of sessions is worth having without."""
        try:
            return await self._connections([session.sid for session in sessions])
        except RedisAway:
            return None


async def _forget(call: Call[Any, Any]) -> None:
    if call.who.via == "cookie":
        await cookies.forget(call.request)


def _actor(call: Call[Any, Any]) -> Actor:
    who: Caller = call.who
    assert who.sid is not None  # noqa: S101 - access="session"
    return Actor(who.id, who.sid, call.address)


def _own(session: Session, counts: Mapping[str, int] | None, current: str | None) -> OwnSession:
    return OwnSession(
        session.sid,
        "" if session.act else device_name(session.device),
        "" if session.act else place(session.address),
        rfc3339(session.created_at),
        rfc3339(session.last_seen_at),
        rfc3339(session.expires_at),
        rfc3339(session.idle_expires_at),
        None if counts is None else counts.get(session.sid, 0),
        session.sid == current,
        session.act or msgspec.UNSET,
    )


def _any(session: Session, counts: Mapping[str, int] | None, now: float) -> AnySession:
    ended = session.over(now)
    return AnySession(
        session.sid,
        session.subject.id,
        session.kind,
        session.issuer,
        device_name(session.device),
        session.address,
        rfc3339(session.created_at),
        rfc3339(session.last_seen_at),
        rfc3339(session.expires_at),
        rfc3339(session.idle_expires_at),
        None if counts is None else counts.get(session.sid, 0),
        None if ended is None else EndedView(ended.code, ended.reason, ended.message, rfc3339(ended.at)),
        session.act or None,
    )


def place_of(session: Session | Anonymous) -> Cursor:
    """Where it stands in the list of all."""
    return Cursor(round(session.created_at * 1e6), session.sid)


def _nobodys(session: Anonymous, now: float) -> AnySession:
    return AnySession(
        session.sid,
        "",
        "anonymous",
        session.issuer,
        device_name(session.device),
        session.address,
        rfc3339(session.created_at),
        rfc3339(max(session.created_at, now - session.idle_for)),
        None,
        None,
        session.connections,
        None,
        None,
    )


def _audited(entry: audit.Entry) -> AuditRow:
    return AuditRow(
        entry.id,
        rfc3339(entry.at),
        entry.actor,
        entry.action,
        entry.target,
        entry.sid,
        entry.address,
        dict(entry.detail),
    )


# -- what a query may hold
