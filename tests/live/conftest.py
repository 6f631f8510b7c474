"""A whole worker on real servers, served over TCP in this process, and a raw client of the wire in both forms."""

import asyncio
import json
import secrets
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from io import BytesIO
from typing import Any

import aiohttp
import asyncpg
import jwt
import pytest
import uvloop
from aiohttp import web
from google.protobuf.json_format import ParseDict
from google.protobuf.proto import serialize_length_prefixed

from config.servers import Postgres, Valkey
from config.settings import Settings
from gateway.app import App, build
from gateway.protocol import wire_pb2
from sessions.committer import Deed
from sessions.model import Kind
from sessions.revocations import Entry
from tests.live.wire import from_json, from_protobuf

LOOPS = {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> Mapping[str, Callable[[], Any]]:
    """What touches sockets runs on both loops, the rest on one."""
    both = item.path.name in ("test_handshake.py", "test_wire.py", "test_slow.py")
    return LOOPS if both else {"uvloop": LOOPS["uvloop"]}


SECRET = "an external issuer's secret of 32 bytes"
ORIGIN = "http://localhost:8000"
PASSWORD = "correct horse battery staple 7"
NAMESPACES = [
    {
        "name": "chat",
        "allow_subscribe_for_client": True,
        "allow_publish_for_subscriber": True,
        "allow_presence_for_subscriber": True,
        "allow_history_for_subscriber": True,
        "presence": True,
        "join_leave": True,
        "force_push_join_leave": True,
        "force_positioning": True,
        "force_recovery": True,
        "history_size": 100,
        "history_ttl": "300s",
    },
    {
        "name": "game",
        "allow_subscribe_for_client": True,
        "allow_publish_for_subscriber": True,
        "allow_presence_for_subscriber": True,
        "presence": True,
    },
    {
        "name": "stream",
        "allow_subscribe_for_client": True,
        "allow_publish_for_client": True,
        "allow_history_for_client": True,
        "force_recovery": True,
        "history_size": 10,
        "history_ttl": "300s",
    },
    {
        "name": "asked",
        "allow_subscribe_for_client": True,
        "allow_history_for_subscriber": True,
        "allow_presence_for_subscriber": True,
        "presence": True,
        "join_leave": True,
        "history_size": 10,
        "history_ttl": "300s",
    },
    {"name": "mine", "allow_user_limited_channels": True},
    {"name": "closed"},
]


def with_values(settings: Settings, **sections: Mapping[str, Any]) -> Settings:
    """`settings` with some values of some sections replaced."""
    values = settings.model_dump(mode="python")
    for section, changed in sections.items():
        values[section] |= changed
    return Settings.model_validate(values)


@pytest.fixture
def live_settings(settings: Settings) -> Settings:
    """The issuer `client.token`, some namespaces."""
    return lively(settings)


def lively(settings: Settings) -> Settings:
    return with_values(
        settings,
        client={"token": {"hmac_secret_key": SECRET}, "allowed_origins": [ORIGIN]},
        channel={"without_namespace": {"allow_subscribe_for_client": True}, "namespaces": NAMESPACES},
        auth={"hash_queue": 64},
    )


def token(user: str = "42", *, ttl: float | None = 3600, key: str = SECRET, **claims: Any) -> str:
    """A connection or subscription token of the issuer `client.token`."""
    now = time.time()
    body = {"sub": user, "iat": int(now), **({"exp": int(now + ttl)} if ttl is not None else {}), **claims}
    return jwt.encode(body, key, algorithm="HS256")


async def eventually(test: Callable[[], object], timeout: float = 5.0) -> None:
    """Wait until `test` holds, for what gives no event."""
    async with asyncio.timeout(timeout):
        while not test():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Raw:
    """One WebSocket: sends frames, hears replies by id and everything else in order."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse, *, protobuf: bool = False, pong: bool = True) -> None:
        self.ws, self.protobuf, self._pong = ws, protobuf, pong
        self.replies: dict[int, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.heard: list[dict[str, Any]] = []
        self.frames: list[str | bytes] = []
        self.code: int | None = None
        self.reason = ""
        self.ids = 0
        self.connected: dict[str, Any] = {}
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            message = await self.ws.receive()
            if message.type is aiohttp.WSMsgType.CLOSE:
                self.code, self.reason = message.data, message.extra or ""
                await self.ws.close()
                break
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                await self._hear(message.data)
            else:
                self.code = self.ws.close_code or 1006
                break
        async with self._changed:
            self._changed.notify_all()

    async def _hear(self, data: str | bytes) -> None:
        self.frames.append(data)
        for message in from_json(data) if isinstance(data, str) else from_protobuf(data):
            if not message:
                if self._pong:
                    await self.pong()
                self.events.append({})
            elif message.get("id"):
                self.replies[message["id"]] = message
            else:
                self.events.append(message)
            self.heard.append(message)
        async with self._changed:
            self._changed.notify_all()

    async def pong(self) -> None:
        if self.protobuf:
            await self.ws.send_bytes(b"\x00")
        else:
            await self.ws.send_str("{}")

    async def send(self, *commands: Mapping[str, Any]) -> None:
        """All in one frame."""
        if self.protobuf:
            out = BytesIO()
            for command in commands:
                serialize_length_prefixed(ParseDict(dict(command), wire_pb2.Command()), out)
            await self.ws.send_bytes(out.getvalue())
        else:
            await self.ws.send_str("\n".join(json.dumps(command) for command in commands))

    def command(self, **method: Any) -> dict[str, Any]:
        self.ids += 1
        return {"id": self.ids, **method}

    async def ask(self, **method: Any) -> dict[str, Any]:
        """One command and its reply."""
        command = self.command(**method)
        await self.send(command)
        return await self.reply(command["id"])

    async def reply(self, id: int, timeout: float = 10) -> dict[str, Any]:
        await self.until(lambda: id in self.replies, timeout)
        return {name: value for name, value in self.replies[id].items() if name != "id"}

    async def push(self, test: Callable[[dict[str, Any]], bool], timeout: float = 10) -> dict[str, Any]:
        """The first push for which `test` holds."""
        await self.until(lambda: any(test(e.get("push", {})) for e in self.events), timeout)
        return next(e["push"] for e in self.events if test(e.get("push", {})))

    async def until(self, test: Callable[[], bool], timeout: float = 10) -> None:
        """ConnectionError if the connection ends before `test` holds."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: test() or self._task.done())
        if not test():
            raise ConnectionError(f"closed {self.code} {self.reason}")

    async def closed(self, timeout: float = 10) -> int | None:
        """The code of the close frame that came."""
        async with asyncio.timeout(timeout):
            await asyncio.shield(self._task)
        return self.code

    def pubs(self, channel: str) -> list[Any]:
        """Data of the publications that were pushed, in order."""
        pushes = [e["push"] for e in self.events if "push" in e]
        return [p["pub"].get("data") for p in pushes if p.get("channel") == channel and "pub" in p]

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self.ws.close()


class Worker:
    """One process's parts, served on a port of its own."""

    def __init__(self, app: App, url: str, session: aiohttp.ClientSession) -> None:
        self.app, self.url, self.http = app, url, session
        self.node, self.hub = app.node, app.node.hub

    async def ws(
        self,
        *,
        protobuf: bool = False,
        pong: bool = True,
        query: str = "",
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Raw:
        """A connection on which nothing has been said."""
        protocols = ("centrifuge-protobuf",) if protobuf else ()
        ws = await self.http.ws_connect(
            self.url + "/connection/websocket" + query,
            headers=headers,
            protocols=protocols,
            autoclose=False,
            max_msg_size=0,
            **options,
        )
        return Raw(ws, protobuf=protobuf, pong=pong)

    async def connect(self, user: str = "42", *, subs: Mapping[str, Any] | None = None, **options: Any) -> Raw:
        """A connection of an external token."""
        claims = options.pop("claims", {})
        raw = await self.ws(**options)
        connect: dict[str, Any] = {"token": token(user, jti=secrets.token_hex(8), **claims)}
        if subs is not None:
            connect["subs"] = dict(subs)
        raw.connected = (await raw.ask(connect=connect))["connect"]
        return raw

    async def call(
        self, method: str, path: str, body: Any = None, *, bearer: str = "", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        headers = {**(headers or {}), **({"Authorization": f"Bearer {bearer}"} if bearer else {})}
        async with self.http.request(method, self.url + path, json=body, headers=headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None

    async def api(self, name: str, body: Any) -> Any:
        key = self.app.settings.http_api.key.get_secret_value()
        status, answer = await self.call("POST", f"/api/{name}", body, headers={"X-API-Key": key})
        assert status == 200, (status, answer)
        return answer

    async def person(self, mode: str = "token") -> dict[str, Any]:
        """A registered user, logged in."""
        body = {"email": f"p{uuid.uuid4().hex[:10]}@example.org", "password": PASSWORD, "mode": mode}
        status, answer = await self.call("POST", "/auth/register", body, headers={"Origin": ORIGIN})
        assert status == 201, (status, answer)
        return {**answer, "email": body["email"]}

    async def revoke(self, **entry: Any) -> None:
        """A row of the log, applied here when this returns."""
        kind = Kind[entry.pop("kind", "session").upper()]
        await self.app.revocations.order(Entry(kind=kind, **entry), Deed("tests", "session.revoked", ""), known=False)


Start = Callable[..., Awaitable[Worker]]


@asynccontextmanager
async def serving(settings: Settings, *, dev: bool = True) -> AsyncIterator[Worker]:
    app = await build(settings, node=secrets.token_hex(16), dev=dev)
    await app.start()
    runner = web.AppRunner(app.web, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
        try:
            yield Worker(app, f"http://127.0.0.1:{port}", session)
        finally:
            await session.close()
            await app.node.close()
            await runner.cleanup()
            await app.close()


@pytest.fixture
async def start(live_settings: Settings) -> AsyncIterator[Start]:
    """Start workers: `await start(client={"ping_interval": "1s"})`."""
    async with AsyncExitStack() as stack:

        async def one(**sections: Mapping[str, Any]) -> Worker:
            return await stack.enter_async_context(serving(with_values(live_settings, **sections)))

        yield one


@pytest.fixture
async def worker(start: Start) -> Worker:
    """One worker with the settings of `live_settings`."""
    return await start()


@pytest.fixture
async def shared(house: Worker) -> Worker:
    """One worker for all tests that need no settings or state of their own.

    Its loop stands still between tests, so it may have to thaw first.
    """
    await eventually(lambda: house.app.revocations.fresh() and not house.hub.gate.frozen, 20)
    return house


@pytest.fixture(scope="session")
async def house(postgres_server: Postgres, database_template: str, valkey_server: Valkey) -> AsyncIterator[Worker]:
    name = f"shared_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres_server.url)
    await admin.execute(f"create database {name} template {database_template} strategy file_copy")
    settings = Settings.model_validate(
        {
            "database": {"url": postgres_server.url.removesuffix("/wardgate") + f"/{name}"},
            "redis": {"url": valkey_server.url, "prefix": name},
            "http_api": {"key": "test-api-key-0123456789abcdef0123456789"},
            "sessions": {"secret_key": "test-secret-key-0123456789abcdef0123456789"},
            "auth": {"bcrypt_cost": 4, "pepper": "test-pepper-0123456789abcdef0123456789"},
        }
    )
    settings = with_values(settings, auth={"register_per_address_per_hour": 0, "verify_email": False})
    async with serving(lively(settings)) as worker:
        yield worker
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()
