"""One process of the product, put together: connections, rooms, routes, and how it starts, drains and ends.

This is the only module that knows all parts of a worker. What a part does is its own; here is the order in which they
need each other, and the HTTP shell around them (security headers, CORS, metrics, the pages).
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp_cors
import msgspec
import structlog
from aiohttp import web

from auth.accounts import Accounts
from config import scopes
from config.clock import SystemClock
from config.database import connect, open_pool
from config.http import (
    CURRENT,
    IDENTIFY,
    ORIGINS,
    ROUTES,
    SERVER,
    TRUSTED,
    Call,
    Nothing,
    Problem,
    Route,
    mount,
    problems,
    reply,
    rfc3339,
    trusted_networks,
)
from config.mail import kept
from config.openapi import describe
from config.redis import Bus, Pipe
from config.settings import Settings
from gateway import metrics
from gateway.api import Api
from gateway.broker import Broker
from gateway.caps import Caps
from gateway.control import Control
from gateway.history import History
from gateway.node import Node, NodeError
from gateway.presence import Presence
from gateway.registry import Registry
from sessions import cookies
from sessions.reconciliation import Reconciliation
from sessions.revocations import Revocations
from sessions.service import Sessions

VERSION = "0.1.0"
PAGE = Path(__file__).parent / "page"
SCRIPTS = (
    *("main.js", "dom.js", "dialogs.js", "service.js", "wire.js", "links.js", "mine.js", "factors.js", "strength.js"),
    *("admin.js", "acting.js", "audit.js", "people.js", "revoke.js", "keys.js", "jobs.js", "webhooks.js"),
)
LETTERS = 50  # of the folder that /dev/mail shows

log = structlog.get_logger(__name__)

_SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_HSTS = "max-age=31536000; includeSubDomains"


@dataclass(frozen=True, slots=True)
class Status:
    """What the supervisor is told. `why` is "" when ready."""

    ready: bool
    why: str
    connections: int


class Health(msgspec.Struct, frozen=True):
    """The process answers."""


class Ready(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether this worker should get new work, and why not."""

    ready: bool
    node: str
    why: str = ""
    policy: str = "freeze"


class Lag:
    """How late the loop runs its timers: a worker that is busy for long should get no new connections."""

    PERIOD = 0.25
    LIMIT = 1.0

    def __init__(self) -> None:
        self.worst = 0.0

    async def watch(self) -> None:
        while True:
            due = time.monotonic() + self.PERIOD
            await asyncio.sleep(self.PERIOD)
            self.worst = max(time.monotonic() - due, self.worst * 0.5)

    def figures(self) -> Mapping[str, float]:
        return {"loop_lag_seconds": self.worst}


class App:
    """The parts of one worker. `start`, then serve `web`; `drain`, then `close`."""

    def __init__(self, settings: Settings, *, node: str, dev: bool) -> None:
        self.settings, self.name, self.dev = settings, node, dev
        self.lag = Lag()
        self._draining = False
        self._description = b""
        self._stack = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Connect to the servers, join the cluster, build the routes. Raises what is away, and leaves nothing open."""
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        settings, clock, prefix = self.settings, SystemClock(), self.settings.redis.prefix
        redis_url = settings.redis.url.get_secret_value()
        pool = await open_pool(settings.database)
        stack.push_async_callback(pool.close)
        self.pipe = await _started(stack, Pipe(redis_url))
        self.bus = await _started(stack, Bus(redis_url))
        self.revocations = await _started(
            stack,
            Revocations(
                pool,
                lambda: connect(settings.database),
                self.bus,
                self.pipe,
                clock=clock,
                node=self.name,
                policy=settings.sessions.policy,
                prefix=prefix,
                secrets=[
                    secret.get_secret_value()
                    for secret in (settings.sessions.secret_key, *settings.sessions.previous_secret_keys)
                ],
            ),
        )
        self.sessions = await _started(stack, Sessions(pool, self.revocations, settings.sessions, clock=clock))
        self.registry = Registry(self.pipe, prefix=prefix, node=self.name)
        self.accounts = await _started(
            stack,
            Accounts(
                settings,
                pool,
                self.revocations,
                self.sessions,
                self.pipe,
                clock=clock,
                registry=self.registry,
                anonymous=lambda query: self.node.anonymous.page(query),
                secure=not self.dev,
            ),
        )
        caps = await _started(
            stack,
            Caps(
                self.pipe,
                prefix=prefix,
                node=self.name,
                secret=settings.sessions.secret_key.get_secret_value().encode(),
                users=settings.client.user_connection_limit,
                addresses=settings.client.connections_per_address,
            ),
        )
        control = Control(self.pipe, self.bus, prefix=prefix, node=self.name)
        self.node = Node(
            settings,
            name=self.name,
            revocations=self.revocations,
            sessions=self.sessions,
            identity=self.accounts.identity,
            broker=Broker(self.pipe, self.bus, prefix=prefix, node=self.name),
            history=History(self.pipe, prefix=prefix, maximum=settings.client.history_max_publication_limit),
            presence=Presence(self.pipe, prefix=prefix),
            registry=self.registry,
            control=control,
            caps=caps,
            clock=clock,
            cookie=self.accounts.cookies.cookie_name,
            version=VERSION,
        )
        await _started(stack, self.node)
        await _started(stack, self.registry)  # from here on others see the node and ask it: it can answer
        await _started(stack, control)
        self.reconciliation = await _started(stack, Reconciliation(pool, self.revocations, self.node.hub))
        self.revocations.on_closed.append(metrics.close_seconds.observe)
        self.sampler = metrics.Sampler(
            [
                self.node,
                self.revocations,
                self.sessions,
                self.accounts,
                self.bus,
                caps,
                self.lag,
                self,
                self.reconciliation,
            ]
        )
        self.web = self._web()
        stack.push_async_callback(_ended, asyncio.create_task(self.lag.watch(), name="loop lag"))
        stack.push_async_callback(_ended, asyncio.create_task(self._sample(), name="metrics"))

    async def drain(self, seconds: float = 5.0) -> None:
        """No new work; every connection is asked to go elsewhere."""
        self._draining = True
        await self.node.drain(seconds)

    async def close(self) -> None:
        """End every part in the reverse order of its start."""
        await self._stack.aclose()

    def status(self) -> Status:
        """What `/ready` says, without asking anyone."""
        why = self._why()
        return Status(not why, why, self.node.connections)

    def watch(self, changed: Callable[[], object]) -> None:
        """Have `changed` called whenever `status` has changed by itself: this node froze or thawed."""
        self.revocations.on_freeze.append(changed)
        self.revocations.on_thaw.append(changed)

    def _why(self) -> str:
        if self._draining:
            return "draining"
        if not self.revocations.fresh():
            return self.revocations.why or "the lease is not fresh"
        if not self.revocations.probe_ok:
            return "deaf: this node does not hear its own hints"
        if not self.pipe.connected or not self.bus.connected:
            return "Redis is away"
        if self.lag.worst > Lag.LIMIT:
            return f"the event loop was late by {self.lag.worst:.1f} s"
        return ""

    def figures(self) -> Mapping[str, float]:
        return {"nodes": 1.0, "ready": float(not self._why())}

    async def _sample(self) -> None:
        try:
            while True:
                await asyncio.sleep(1.0)
                self.sampler.sample()
        finally:
            self.sampler.sample()

    def _web(self) -> web.Application:
        app = web.Application(middlewares=[_measured, problems], client_max_size=0)
        origins = frozenset(self.settings.client.allowed_origins)
        app[IDENTIFY] = self.accounts.identity.identify
        app[CURRENT] = self.revocations.fresh
        app[ORIGINS] = origins
        app[TRUSTED] = trusted_networks(self.settings.http_server.trusted_proxies)
        cookies.setup(app, self.accounts.cookies)
        app.router.add_get("/connection/websocket", self.node.websocket)
        self.accounts.mount(app)
        Api(
            self.node,
            insecure=self.settings.http_api.insecure,
            transport_errors=self.settings.http_api.error_mode == "transport",
        ).mount(app)
        mount(app, self._operations())
        if self.dev:
            mount(app, self._demo())
        _allow_cross_origin(app, origins)
        self._pages(app)
        cross_origin = app.on_response_prepare.pop()

        async def prepare(request: web.Request, response: web.StreamResponse) -> None:
            self._secure(response)
            if "Origin" in request.headers:  # there is nothing to say to others
                await cross_origin(request, response)

        app.on_response_prepare.append(prepare)
        return app

    def _operations(self) -> list[Route]:
        return [
            Route("GET", "/health", self._health, "The process answers", result=Health, tag="operations"),
            Route("GET", "/ready", self._ready, "This worker takes work", result=Ready, tag="operations"),
            Route("GET", "/metrics", self._metrics, "For Prometheus, over all workers", result=str, tag="operations"),
            Route("GET", "/openapi.json", self._openapi, "This description", result=dict[str, Any], tag="operations"),
            Route(
                "GET",
                "/admin/nodes",
                self._nodes,
                "The nodes of the cluster",
                query=Nothing,
                result=Nodes,
                access="admin",
                scope="nodes",
            ),
        ]

    def _demo(self) -> list[Route]:
        """What the demo page asks for beside the product's routes. Only in dev."""
        return [
            Route("GET", "/dev/doors", self._doors, "What is open here", result=Doors, tag="dev"),
            Route(
                "GET",
                "/dev/mail",
                self._mail,
                "The newest letters that were written into mail.folder, for an admin's session",
                result=KeptLetters,
                access="session",
                tag="dev",
            ),
        ]

    async def _doors(self, _call: Call[None, Nothing]) -> "Doors":
        auth, mail = self.settings.auth, self.settings.mail
        return Doors(
            registration=auth.local_accounts and auth.registration,
            guests=auth.local_accounts and auth.guests,
            mail=auth.local_accounts and mail.on,
            letters=bool(mail.folder),
            password_min_length=auth.password_min_length,
            trust_device_for=auth.trust_device_for,
        )

    async def _mail(self, call: Call[None, Nothing]) -> "KeptLetters":
        """Who reads the letters logs in as anybody: they are for whom the admin's password in dev.json is."""
        if not call.who.may(scopes.ALL):
            raise Problem("forbidden", "needs the session of an admin who may all")
        folder = self.settings.mail.folder
        found = await asyncio.to_thread(kept, Path(folder), LETTERS) if folder else []
        return KeptLetters([KeptLetter(**(letter._asdict() | {"at": rfc3339(letter.at)})) for letter in found])

    async def _health(self, _call: Call[None, Nothing]) -> Health:
        return Health()

    async def _ready(self, _call: Call[None, Nothing]) -> web.StreamResponse:
        status = self.status()
        body = Ready(status.ready, self.name, status.why, self.settings.sessions.policy)
        return reply(body, 200 if status.ready else 503)

    async def _metrics(self, _call: Call[None, Nothing]) -> web.StreamResponse:
        self.sampler.sample()
        text = await asyncio.to_thread(metrics.exposition)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _openapi(self, call: Call[None, Nothing]) -> web.StreamResponse:
        if not self._description:
            routes: list[Route] = call.request.app[ROUTES]
            document = describe(routes, title="Wardgate", version=VERSION, cookie=self.accounts.cookies.cookie_name)
            self._description = msgspec.json.encode(document)
        return web.Response(body=self._description, content_type="application/json")

    async def _nodes(self, _call: Call[None, Nothing]) -> "Nodes":
        try:
            return Nodes([NodeItem(**item) for item in await self.node.info()])
        except NodeError:
            raise Problem("unavailable", "the list of nodes is in Redis, which is away") from None

    def _pages(self, app: web.Application) -> None:
        """`/docs` everywhere; the demo at `/` only in dev. Both need nothing from another host."""
        names = {"/docs": "docs.html", **{f"/page/{n}": n for n in ("docs.js", "page.css", "icon.svg")}}
        if self.dev:
            names |= {"/": "index.html", **{f"/page/{n}": n for n in SCRIPTS}}
        for path, name in names.items():
            app.router.add_get(path, _page(PAGE / name))

    def _secure(self, response: web.StreamResponse) -> None:
        if response.status == 101:
            return
        headers = response.headers
        for name, value in _SECURITY_HEADERS.items():
            headers.setdefault(name, value)
        headers["Server"] = SERVER  # aiohttp's says which versions run here
        if not self.dev:
            headers.setdefault("Strict-Transport-Security", _HSTS)


class NodeItem(msgspec.Struct, frozen=True):
    """One process of the cluster."""

    uid: str
    name: str
    version: str
    num_clients: int
    num_users: int
    num_channels: int
    num_subs: int
    uptime: int


class Nodes(msgspec.Struct, frozen=True):
    items: list[NodeItem]
    next: str = ""


class Doors(msgspec.Struct, frozen=True):
    """Ways in. `mail`: forgotten passwords and changes of address are answered by letter; `letters`: into a folder.
    `trust_device_for`: seconds for which a browser may be trusted after a second factor; 0: none is."""

    registration: bool
    guests: bool
    mail: bool
    letters: bool
    password_min_length: int
    trust_device_for: float


class KeptLetter(msgspec.Struct, frozen=True):
    """A letter of the folder. `link` is "" when it has none."""

    id: str
    to: str
    subject: str
    at: str
    text: str
    link: str


class KeptLetters(msgspec.Struct, frozen=True):
    """Newest first."""

    items: list[KeptLetter]
    next: str = ""


async def _started(stack: contextlib.AsyncExitStack, part: Any) -> Any:
    """Start a part and see to its end, in that order also when `start` fails."""
    await part.start()
    stack.push_async_callback(part.close)
    return part


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


@web.middleware
async def _measured(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> Any:
    started = time.perf_counter()
    response = await handler(request)
    resource = request.match_info.route.resource
    metrics.answered(resource.canonical if resource else "", request.method, response.status)
    if response.status != 101:  # the connection's whole life is no time to answer
        metrics.request_seconds.add(time.perf_counter() - started)
    return response


def _allow_cross_origin(app: web.Application, origins: frozenset[str]) -> None:
    """CORS on the routes that a browser application calls, with credentials for exactly our origins.

    `*`, which only dev takes, is answered as well, but never with credentials.
    """
    allowed = {
        origin: aiohttp_cors.ResourceOptions(  # type: ignore[no-untyped-call]
            allow_credentials=origin != "*",
            expose_headers=("Retry-After", "RateLimit", "RateLimit-Policy"),
            allow_headers="*",
            max_age=300,
        )
        for origin in origins
    }
    cors = aiohttp_cors.setup(app, defaults=allowed)
    for route in list(app.router.routes()):
        path = route.resource.canonical if route.resource else ""
        if path.startswith(("/auth/", "/admin/", "/.well-known/")):
            cors.add(route)


def _page(path: Path) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    kinds = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    body, kind = path.read_bytes(), kinds[path.suffix]

    async def serve(_request: web.Request) -> web.StreamResponse:
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _PAGE_POLICY}
        return web.Response(body=body, content_type=kind, charset="utf-8", headers=headers)

    return serve


async def build(settings: Settings, *, node: str, dev: bool) -> App:
    """A worker's application, not yet started. `node` is 32 hex digits, new for every process."""
    return App(settings, node=node, dev=dev)
