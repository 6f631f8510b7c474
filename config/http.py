"""The HTTP edge that every room shares: typed routes, bounded JSON bodies, problem details, who may call, from where.

A room declares `Route`s; `mount` turns them into aiohttp handlers, `config.openapi` turns the same objects into the API
description. A handler gets a `Call` (body, query, caller, all validated) and returns a Struct, a list page or a
`web.StreamResponse`. Who a caller *is* is decided by the callable under `IDENTIFY`, given by the room that knows.

    ApiError
    └── Problem          one of PROBLEMS; becomes application/problem+json (RFC 9457)
"""

import asyncio
import functools
import ipaddress
import json
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, cast

import msgspec
import structlog
from aiohttp import web

from config import exports, scopes
from config.redis import Unavailable

MAX_BODY = 64 * 1024
MAX_DEPTH = 16
BODY_WAIT = 20.0
"""Seconds in which a body must have come: whoever sends it a byte at a time holds a connection, and no longer."""

EXPORT_PAGE = 200
EXPORT_WAIT = 30.0
"""Seconds in which whoever exports a list must have taken the page before."""

SERVER = "Wardgate"
"""What answers say of who gave them."""

KEEP_ALIVE = 75.0
"""Seconds that a connection may say nothing between two requests."""

log = structlog.get_logger(__name__)

PROBLEMS: Mapping[str, tuple[int, str]] = {
    "malformed": (400, "The request could not be read"),
    "unauthenticated": (401, "Log in first"),
    "invalid_credentials": (401, "E-mail, password or code is wrong"),
    "token_expired": (401, "The token has expired"),
    "session_ended": (401, "The session has ended"),
    "second_factor_required": (401, "A second factor is needed"),
    "step_up_required": (401, "Show a factor again first"),
    "forbidden": (403, "Not allowed"),
    "challenge_required": (403, "Solve a challenge first"),
    "impersonated": (403, "Only the user in person may do that"),
    "cross_site": (403, "A request with a cookie must come from this site"),
    "not_found": (404, "There is no such thing"),
    "method_not_allowed": (405, "Not with this method"),
    "email_taken": (409, "This e-mail address has an account"),
    "confirm_required": (409, "Dry-run first and send its confirm back"),
    "idempotency_conflict": (409, "This Idempotency-Key was used with another body"),
    "too_large": (413, "The body is too large"),
    "unsupported_media_type": (415, "Send application/json"),
    "expectation_failed": (417, "Expect can be 100-continue and nothing else"),
    "invalid": (422, "Some fields are not acceptable"),
    "upgrade_required": (426, "Another version of WebSocket is spoken here"),
    "too_many_attempts": (429, "Too many attempts"),
    "busy": (503, "Too much to do at the moment"),
    "frozen": (503, "This node cannot prove that it is current"),
    "unavailable": (503, "A server that this needs is away"),
    "outcome_unknown": (503, "It is not known whether this was done; ask again with the same Idempotency-Key"),
    "internal": (500, "Something went wrong here"),
}


class FieldError(msgspec.Struct, frozen=True):
    """One field that was refused: where, and what would be accepted."""

    field: str
    message: str


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """RFC 9457 with our stable `code`."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    errors: tuple[FieldError, ...] = ()
    reason: str = ""
    retry_after: int = 0
    challenge: str = ""
    factors: tuple[str, ...] = ()
    provider: str = ""
    site_key: str = ""


class _Limit(NamedTuple):
    """A limit on the caller's address, as the answer tells it."""

    policy: str
    quota: int
    window: float
    remaining: int
    reset: float


_limits: ContextVar[list[_Limit] | None] = ContextVar("limits", default=None)


def tell_limit(policy: str, quota: int, window: float, remaining: int, reset: float) -> None:
    """Have the answer to the request that is under way say how much is left of a limit on its address
    (draft-ietf-httpapi-ratelimit-headers): `quota` in `window` seconds, `remaining` now, all of it in `reset` seconds.
    Limits on anything else are not told: they would tell of what they limit."""
    if (told := _limits.get()) is not None:
        told.append(_Limit(policy, quota, window, remaining, reset))


def _rate_limit_fields(limits: Iterable[_Limit]) -> dict[str, str]:
    """RFC 9651 lists, one member a policy."""
    last = {limit.policy: limit for limit in limits}.values()
    return {
        "RateLimit-Policy": ", ".join(f'"{one.policy}";q={one.quota};w={math.ceil(one.window)}' for one in last),
        "RateLimit": ", ".join(f'"{one.policy}";r={one.remaining};t={math.ceil(one.reset)}' for one in last),
    }


class ApiError(Exception):
    """Anything an HTTP caller is told."""


class Problem(ApiError):
    """A refusal with a stable code. `retry_after` (s) is filled in for 429 and 503; `challenge` is what a login goes on
    with, by one of `factors`; `site_key` is of the challenge that `provider` shows; `status` is another one than the
    code's own."""

    def __init__(
        self,
        code: str,
        detail: str = "",
        *,
        errors: Iterable[FieldError] = (),
        reason: str = "",
        retry_after: int = 0,
        challenge: str = "",
        factors: Iterable[str] = (),
        provider: str = "",
        site_key: str = "",
        status: int = 0,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(code, detail)
        own, title = PROBLEMS[code]
        status = status or own
        if status in (429, 503):
            retry_after = max(1, retry_after)
        self.headers = dict(headers or {})
        self.details = ProblemDetails(
            f"urn:wardgate:problem:{code}",
            title,
            status,
            code,
            detail,
            tuple(errors),
            reason,
            retry_after,
            challenge,
            tuple(factors),
            provider,
            site_key,
        )

    @property
    def code(self) -> str:
        return self.details.code

    def response(self) -> web.Response:
        headers = {"Cache-Control": "no-store", **self.headers}
        if self.details.retry_after:
            headers["Retry-After"] = str(self.details.retry_after)
        if self.details.status == 401:
            headers.setdefault("WWW-Authenticate", "Bearer")
        return web.Response(
            body=msgspec.json.encode(self.details),
            status=self.details.status,
            headers=headers,
            content_type="application/problem+json",
        )


def invalid(name: str, message: str) -> Problem:
    """422 for one field."""
    return Problem("invalid", errors=[FieldError(name, message)])


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a person's session or an API key.

    `id` is the user id or the key's id; `sid` is None for a key. `via` says which credential spoke. `scopes` are the
    key's, or those of the session's roles. `lacks_factor`: a role wants a second factor, and this session has not seen
    one, or the key's owner has none. `service` is the service account that a key belongs to, `owner` the user who made
    it. `act`: who acts for this user in that session, "" for nobody else. `aal`: what the session has shown, 0 for a
    key. `seen`: up to where the revocation log was counted in when this was judged, a seq and the id of its era; None
    for who stands in no table.
    """

    via: Literal["bearer", "cookie", "api_key"]
    id: str
    sid: str | None = None
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    lacks_factor: bool = False
    service: str = ""
    owner: str = ""
    act: str = ""
    aal: int = 0
    seen: tuple[int, str] | None = None

    @property
    def name(self) -> str:
        """For audit rows and for what is bound to a caller."""
        if self.service:
            return f"service:{self.service}"
        return f"key:{self.id}" if self.via == "api_key" else f"user:{self.id}"

    def may(self, scope: str) -> bool:
        """Whether a scope is among what was granted."""
        return scopes.holds(self.scopes, scope)


RIGHTS: ContextVar[Caller | None] = ContextVar("rights", default=None)
"""By whose rights the admin route acts that is being answered; None for what needs none. Whatever it does is held to
them until it is committed (`sessions.acting`), so that no route can forget to."""

Identify = Callable[[web.Request], Awaitable[Caller | None]]
"""The caller of a request, None without a credential. Raises Problem for a bad one: never a fallback."""

IDENTIFY: web.AppKey[Identify] = web.AppKey("identify", Callable[[web.Request], Awaitable[Caller | None]])  # type: ignore[arg-type]
CURRENT: web.AppKey[Callable[[], bool]] = web.AppKey("current", Callable[[], bool])  # type: ignore[arg-type]
"""Whether this process can prove that it is current (its lease is fresh)."""
ORIGINS: web.AppKey[frozenset[str]] = web.AppKey("origins", frozenset)
TRUSTED: web.AppKey[tuple[Any, ...]] = web.AppKey("trusted_proxies", tuple)

Access = Literal["public", "session", "admin", "key"]

B = TypeVar("B")
Q = TypeVar("Q")


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A body or query without fields."""


class Paging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keyset paging: `after` is the `next` of the page before."""

    limit: Annotated[int, msgspec.Meta(ge=1, le=200)] = 50
    after: str = ""


class Call(msgspec.Struct, Generic[B, Q], frozen=True):
    """One validated request."""

    request: web.Request
    body: B
    query: Q
    caller: Caller | None

    @property
    def who(self) -> Caller:
        """The caller of a route that demands one."""
        assert self.caller is not None  # noqa: S101 - mount refused the request otherwise
        return self.caller

    @property
    def address(self) -> str:
        return client_address(self.request)

    @property
    def by(self) -> Mapping[str, Any]:
        """Who asks, as rows of the audit have it."""
        return {"actor": self.who.name, "sid": self.who.sid or "", "address": self.address}

    def path(self, name: str) -> str:
        return self.request.match_info[name]


Handler = Callable[[Call[Any, Any]], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Route:
    """One route, as served and as described.

    `access`: `session` takes any live session, `admin` a session or an API key with `scope` (one of `config.scopes`),
    `key` an API key.
    `result` None means 204; `also` are other statuses with the same result. `errors` are the codes beside those that
    follow from body and access; `headers` are request headers that mean something here. `export`: what a row is, where
    `result` is a page of `items` and `next` that can be had whole, in one of `config.exports.FORMS`. `impersonable`:
    of a `session` route, whether whoever acts for the user may ask; None: where it only reads.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    body: type | None = None
    query: type = Nothing
    result: Any = None
    status: int = 200
    access: Access = "public"
    scope: str = ""
    also: tuple[int, ...] = ()
    errors: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    tag: str = ""
    export: type[msgspec.Struct] | None = None
    guarded: bool = field(default=False)
    impersonable: bool | None = None

    @property
    def needs_current(self) -> bool:
        """A frozen node answers 503 to whatever needs a session and to /auth/*."""
        return self.access != "public" or self.guarded or self.path.startswith("/auth/")

    @property
    def in_person(self) -> bool:
        """Only for the user in person: what changes an account, unless it is said otherwise."""
        allowed = self.method == "GET" if self.impersonable is None else self.impersonable
        return self.access == "session" and not allowed


ROUTES: web.AppKey[list[Any]] = web.AppKey("routes", list)
"""Every `Route` that was mounted."""


Adapter = Callable[[Route], Callable[[web.Request], Awaitable[web.StreamResponse]]]


def mount(app: web.Application, routes: Sequence[Route], adapter: Adapter | None = None) -> None:
    """Serve `routes` and remember them for the description. Call before the application is frozen. Where there is a
    GET there is a HEAD, with the same status and headers.

    `adapter` turns a route into an aiohttp handler where a room answers in another form than this one's.
    """
    app.setdefault(ROUTES, []).extend(routes)
    for route in routes:
        handle = (adapter or problem_adapter)(route)
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            app.router.add_route(method, route.path, handle)


def problem_adapter(route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    needs_current, public, admin = route.needs_current, route.access == "public", route.access == "admin"

    async def handle(request: web.Request) -> web.StreamResponse:
        limits: list[_Limit] = []
        _limits.set(limits)
        try:
            response = await answer(request)
        except Problem as problem:
            if limits:
                problem.headers.update(_rate_limit_fields(limits))
            raise
        finally:
            if admin:
                RIGHTS.set(None)  # the connection's next request has the same context
        if limits:
            response.headers.update(_rate_limit_fields(limits))
        return response

    async def answer(request: web.Request) -> web.StreamResponse:
        current = request.app[CURRENT]
        if needs_current and not current():
            raise Problem("frozen", retry_after=1)
        caller = None if public else await _admit(route, request)
        if admin:
            RIGHTS.set(caller)
        query: Any = decode_query(request, route.query)
        body: Any = None if route.body is None else await read_body(request, route.body)
        call = Call(request, body, query, caller)
        if route.export is not None and request.method == "GET":
            form = exports.wanted(request.headers.get("Accept", ""))
            if form is not None:
                return await _export(route, route.export, call, form)
        result: Any = await route.handler(call)
        own = isinstance(result, web.StreamResponse)
        if own and result.prepared:
            return cast(web.StreamResponse, result)
        if needs_current and not current():
            # What a GET found is not told; what another method did may be done, and "frozen" would say that it is not.
            raise Problem("frozen" if route.method == "GET" else "outcome_unknown", retry_after=1)
        if own:
            return cast(web.StreamResponse, result)
        if result is None:
            return web.Response(status=204, headers={"Cache-Control": "no-store"})
        return reply(result, route.status)

    return handle


async def _export(
    route: Route, kind: type[msgspec.Struct], call: Call[Any, Any], form: exports.Form
) -> web.StreamResponse:
    """The list from `after` to its end, page by page."""

    async def parts() -> AsyncIterator[bytes]:
        after, before = call.query.after, exports.head(form, kind)
        while True:
            query = msgspec.structs.replace(call.query, after=after, limit=EXPORT_PAGE)
            page = await route.handler(msgspec.structs.replace(call, query=query))
            yield before + exports.rows(form, page.items)
            if not page.next:
                return
            after, before = page.next, b""

    name = route.path.rpartition("/")[2]
    return await streamed(call, f"{form}; charset=utf-8", f"{name}.{exports.FORMS[form]}", parts())


async def streamed(call: Call[Any, Any], form: str, name: str, parts: AsyncIterator[bytes]) -> web.StreamResponse:
    """A file of the type `form`: one part in memory, and the caller judged anew for each. What ends early (the session
    did, the node froze, a server is away) is broken off, so that nobody takes it for whole; before the first part it is
    a problem as any other."""
    plain_name = re.sub(r"[^A-Za-z0-9._-]", "_", name)  # others may have chosen it
    headers = {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{plain_name}"'}
    response = web.StreamResponse(headers={**headers, "Content-Type": form})
    try:
        while (part := await anext(parts, None)) is not None:
            if not call.request.app[CURRENT]():
                raise Problem("frozen", retry_after=1)
            if not response.prepared:
                await response.prepare(call.request)
            await _send(response, part)
            await _judge_again(call)
    except (Problem, Unavailable, OSError) as error:
        if not response.prepared:
            raise
        path = call.request.path
        log.warning("export_broken_off", path=path, who=call.who.name, error=str(error) or type(error).__name__)
        if call.request.transport is not None:
            call.request.transport.abort()
        return response
    await response.write_eof()
    return response


async def _judge_again(call: Call[Any, Any]) -> None:
    """Whoever asked may still."""
    caller = await call.request.app[IDENTIFY](call.request)
    if caller is None or not caller.scopes >= call.who.scopes or (caller.lacks_factor and not call.who.lacks_factor):
        raise Problem("forbidden", "no longer allowed")


async def _send(response: web.StreamResponse, data: bytes) -> None:
    """Returns when little of it waits: a slow reader holds up only itself, and not for ever."""
    async with asyncio.timeout(EXPORT_WAIT):
        await response.write(data)


LAST_DAY = 253402214400.0
"""9999-12-31: what is kept of moments to come lies before it, for a later one could not be written."""


@functools.lru_cache(maxsize=8192)
def rfc3339(unix: float) -> str:
    """UTC with milliseconds, rounded down: a moment is never told before it came."""
    whole = math.floor(unix * 1000 + 1e-4)  # 1e-4: what a float of this size may lack
    at = datetime.fromtimestamp(whole // 1000, UTC)
    return f"{at:%Y-%m-%dT%H:%M:%S}.{whole % 1000:03d}Z"


def moment(unix: float | None) -> str | None:
    """The same, of what may not have come."""
    return None if unix is None else rfc3339(unix)


def reply(result: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer that no cache keeps."""
    return web.Response(
        body=msgspec.json.encode(result), status=status, headers={**_JSON, **headers} if headers else _JSON
    )


_JSON: Mapping[str, str] = {"Content-Type": "application/json", "Cache-Control": "no-store"}


async def _admit(route: Route, request: web.Request) -> Caller:
    caller = await request.app[IDENTIFY](request)
    if caller is None:
        raise Problem("unauthenticated")
    reads = request.method in ("GET", "HEAD", "OPTIONS")
    if caller.via == "cookie" and (route.in_person or not reads):
        require_same_origin(request, or_typed=reads)
    if route.in_person and caller.act:
        raise Problem("impersonated")
    if route.access == "session" and caller.sid is None:
        raise Problem("forbidden", "this route takes a session, not an API key")
    if route.access == "admin" and not caller.may(route.scope):
        raise Problem("forbidden", f"needs the scope {route.scope}")
    if route.access == "admin" and caller.lacks_factor:
        raise Problem("second_factor_required", "your role needs one: turn it on, and log in with it", status=403)
    return caller


def require_same_origin(request: web.Request, *, or_typed: bool = False) -> None:
    """A request that a cookie authorises must come from one of our origins (Origin, else Sec-Fetch-Site); `or_typed`:
    or from the address bar."""
    origin = request.headers.get("Origin")
    if origin is not None:
        if origin not in request.app[ORIGINS]:
            raise Problem("cross_site", f"this Origin is not in client.allowed_origins; {_WAYS_OUT}")
    elif request.headers.get("Sec-Fetch-Site") not in (("same-origin", "none") if or_typed else ("same-origin",)):
        raise Problem("cross_site", _WAYS_OUT)


_WAYS_OUT = (
    "send one of client.allowed_origins as Origin, or Sec-Fetch-Site: same-origin; "
    'a program can log in with "mode": "token" and needs neither'
)


async def read_body(request: web.Request, kind: type[B]) -> B:
    """The body as `kind`: bounded in size and depth, no duplicate keys, no unknown fields. Empty counts as `{}`."""
    raw = await read_bytes(request)
    if raw.strip() and request.content_type != "application/json":
        raise Problem("unsupported_media_type")
    return decode_body(raw, kind)


async def read_bytes(request: web.Request, limit: int = MAX_BODY) -> bytes:
    """At most `limit` bytes of body, else 413; never more than that in memory. Problem `malformed` for one too slow."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem("unsupported_media_type", "send the body without Content-Encoding")
    if (request.content_length or 0) > limit:
        raise Problem("too_large", f"at most {limit} bytes")
    if request.content.is_eof():  # all of it came with the head, as most do: nothing to wait for
        whole = request.content.read_nowait()
        if len(whole) > limit:
            raise Problem("too_large", f"at most {limit} bytes")
        return whole
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_WAIT):
            async for chunk in request.content.iter_chunked(16 * 1024):
                size += len(chunk)
                if size > limit:
                    raise Problem("too_large", f"at most {limit} bytes")
                parts.append(chunk)
    except TimeoutError:
        raise Problem("malformed", f"the body did not come within {BODY_WAIT:g} seconds") from None
    return b"".join(parts)


def decode_body(raw: bytes, kind: type[B]) -> B:
    """Strict JSON: UTF-8, one value of an object per key, bounded depth, finite numbers."""
    if not raw.strip():
        raw = b"{}"
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except RecursionError:
        raise Problem("malformed", f"nested deeper than {MAX_DEPTH}") from None
    except UnicodeDecodeError:
        raise Problem("malformed", "not UTF-8") from None
    except ValueError as error:
        raise Problem("malformed", str(error)) from None
    _check_nodes(value)
    return _convert(value, kind)


def decode_query(request: web.Request, kind: type[Q]) -> Q:
    """The query string as `kind`; a name given twice or unknown is refused."""
    if not request.query_string:
        return cast(Q, _without_query(cast(Any, kind)))
    values: dict[str, str] = {}
    for name, value in request.query.items():
        if name in values:
            raise invalid(_told(name), "given twice")
        if not value.isprintable():  # NUL, which PostgreSQL does not take, and other control characters
            raise invalid(_told(name), "printable text")
        values[name] = value
    return _convert(values, kind, strict=False)


@functools.cache
def _without_query(kind: type[Any]) -> Any:
    """Queries do not change, so one is enough; a problem is not kept. As many as there are routes."""
    return _convert({}, kind, strict=False)


def plain(name: str, value: str) -> str:
    """A part of the query or path as text that PostgreSQL can compare with, else 422 for `name`."""
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise invalid(name, "not UTF-8") from None
    if b"\x00" in raw or len(raw) > 600:
        raise invalid(name, "at most 600 bytes without NUL")
    return value


def _convert(value: Any, kind: type[B], *, strict: bool = True) -> B:
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        raise Problem("invalid", errors=[_field_error(str(error), kind)]) from None


def _field_error(text: str, kind: type[Any]) -> FieldError:
    """msgspec's words, but for what was sent: it may be a password in the wrong place."""
    message, _, path = text.partition(" - at `")
    name = path.rstrip("`").lstrip("$.")
    if message.startswith(("Invalid enum value", "Invalid value")):
        possible = _possible(kind, name)
        message = f"one of {possible}" if possible else "None of the values that are possible here"
    elif message == "Invalid RFC3339 encoded datetime":
        message = "a time with its offset, like 2026-01-31T12:00:00Z"
    elif " field `" in message:  # "Object contains unknown field `x`", "Object missing required field `x`"
        what, _, field = message.partition(" field `")
        field = _told(field.rstrip("`"))
        name, message = name or field, f"{what} field `{field}`"
    return FieldError(_told(name), message)


def _possible(kind: type[Any], name: str) -> str:
    """The values that a field of `kind` itself can have, where they are listed; "" for others."""
    shape = msgspec.inspect.type_info(kind)
    for part in shape.fields if isinstance(shape, msgspec.inspect.StructType) else ():
        if part.encode_name == name and isinstance(part.type, msgspec.inspect.LiteralType):
            return ", ".join(json.dumps(value) for value in part.type.values)
    return ""


def _told(name: str) -> str:
    """The name of a field as it may be told back: what can hardly be one is left out."""
    return name if re.fullmatch(r"[A-Za-z0-9_.\[\]-]{0,64}", name) else "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {_told(twice)!r} stands twice")
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _check_nodes(value: Any) -> None:
    """Problem `malformed` for what nests too deep, and for text, names included, that no database takes."""
    todo = [(value, 1)]
    while todo:
        node, level = todo.pop()
        if level > MAX_DEPTH:
            raise Problem("malformed", f"nested deeper than {MAX_DEPTH}")
        if isinstance(node, dict):
            todo += [(part, level + 1) for pair in node.items() for part in pair]
        elif isinstance(node, list):
            todo += [(part, level + 1) for part in node]
        elif isinstance(node, str):
            _check_text(node)


def _check_text(text: str) -> None:
    if "\x00" in text:
        raise Problem("malformed", "a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Problem("malformed", "half a surrogate pair") from None


def trusted_networks(proxies: Iterable[str]) -> tuple[Any, ...]:
    """`http_server.trusted_proxies` as networks; ValueError names the bad one."""
    return tuple(ipaddress.ip_network(p, strict=False) for p in proxies)


def client_address(request: web.Request) -> str:
    """The nearest address that no trusted proxy vouches for: X-Forwarded-For is walked from the right.

    IPv4-mapped IPv6 is folded to IPv4. An unparsable hop ends the walk.
    """
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    address = _plain(peer[0] if peer else "127.0.0.1") or "127.0.0.1"
    trusted = request.app[TRUSTED]
    hops = [h.strip() for value in request.headers.getall("X-Forwarded-For", []) for h in value.split(",")]
    while hops and any(ipaddress.ip_address(address) in net for net in trusted):
        hop = _plain(hops.pop())
        if hop is None:
            break
        address = hop
    return address


def cookie(request: web.Request, name: str) -> str | None:
    """The value of a cookie that needs no unquoting; None where it is missing or stands twice."""
    found = None
    for header in request.headers.getall("Cookie", ()):
        for pair in header.split(";"):
            key, equals, value = pair.partition("=")
            if equals and key.strip() == name:
                if found is not None:
                    return None
                found = value.strip()
    return found


@functools.lru_cache(maxsize=8192)
def _plain(text: str) -> str | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


@functools.lru_cache(maxsize=8192)
def address_prefix(address: str) -> str:
    """What limits count by: an IPv4 address, or the /64 of an IPv6 one."""
    parsed = ipaddress.ip_address(address)
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


@web.middleware
async def problems(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    """Every failure outside /api as problem details; never a stack trace."""
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response()
    except web.HTTPException as error:
        if (refusal := _as_problem(error)) is None:
            raise
        return refusal
    except (Unavailable, OSError) as error:  # ConnectionError and TimeoutError are OSErrors
        log.warning("request_failed", path=request.path, error=type(error).__name__)
        return Problem("unavailable", retry_after=1).response()
    except Exception:
        log.exception("request_failed", path=request.path)
        return Problem("internal").response()


_REFUSALS = {
    400: "malformed",
    403: "cross_site",  # a preflight that CORS does not allow
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    417: "expectation_failed",
}
"""What aiohttp and aiohttp_cors refuse by themselves."""


def _as_problem(error: web.HTTPException) -> web.Response | None:
    code = _REFUSALS.get(error.status)
    if code is None:
        return None
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return Problem(code, headers=headers).response()


class Connection(web.RequestHandler):
    """A connection whose client is told in problems too what aiohttp refuses before a handler of ours is asked."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP. aiohttp logs it, and raises where half an answer is out."""
        super().handle_error(request, status, exc, message)
        response = Problem("malformed" if status == 400 else "internal").response()
        response.headers.update({"X-Content-Type-Options": "nosniff", "Server": SERVER})
        response.force_close()
        return response

    def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> Coroutine[Any, Any, tuple[web.StreamResponse, bool]]:
        """Every answer passes here; what is an exception of aiohttp's was raised outside the middlewares."""
        if isinstance(resp, web.HTTPException):
            resp = _as_problem(resp) or resp
        return super().finish_response(request, resp, start_time)


def connections(runner: web.AppRunner) -> Callable[[], Connection]:
    """What makes the protocol of each connection to a runner that was set up."""
    server = runner.server
    assert server is not None  # noqa: S101 - there after setup()
    return functools.partial(
        Connection,
        server,
        loop=asyncio.get_running_loop(),
        access_log=None,  # type: ignore[arg-type]  # means none
        keepalive_timeout=KEEP_ALIVE,
    )
