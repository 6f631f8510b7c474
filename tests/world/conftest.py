"""The product from outside: `run.py dev` in a folder of its own, and clients that know only the public interface."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

ROOT = Path(__file__).parents[2]
PASSWORD = "a long walk along the harbour 3"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Person:
    """Someone who is logged in, in token mode."""

    email: str
    id: str
    sid: str
    access: str
    refresh: str


@dataclass
class Socket:
    """The JSON protocol by hand: replies by id, everything else in `events`; `code` and `reason` once closed."""

    ws: aiohttp.ClientWebSocketResponse
    events: list[dict[str, Any]] = field(default_factory=list)
    code: int | None = None
    reason: str = ""
    _next: int = 0
    _waiting: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while self.code is None:
            message = await self.ws.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                for line in message.data.split("\n"):
                    await self._heard(json.loads(line))
            elif message.type is aiohttp.WSMsgType.CLOSE:
                self.code, self.reason = message.data, message.extra or ""
            elif message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.ERROR):
                self.code = self.ws.close_code or 1006
            self._changed.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError(f"closed {self.code}"))

    async def _heard(self, message: dict[str, Any]) -> None:
        if not message:
            await self.ws.send_str("{}")
        elif "id" in message and (waiting := self._waiting.pop(message["id"], None)) is not None:
            if not waiting.done():
                waiting.set_result(message)
        else:
            self.events.append(message)

    async def command(self, **body: Any) -> dict[str, Any]:
        self._next += 1
        waiting = self._waiting[self._next] = asyncio.get_running_loop().create_future()
        await self.ws.send_str(json.dumps({"id": self._next, **body}))
        return await asyncio.wait_for(waiting, 10)

    async def until(self, wanted: Any, timeout: float = 10) -> dict[str, Any]:
        async with asyncio.timeout(timeout):
            while True:
                for event in self.events:
                    if wanted(event):
                        return event
                self._changed.clear()
                await self._changed.wait()

    async def closed(self, timeout: float = 10) -> int:
        assert self._task is not None
        await asyncio.wait_for(asyncio.shield(self._task), timeout)
        assert self.code is not None
        return self.code


class World:
    """One running product."""

    def __init__(self, info: dict[str, Any], http: aiohttp.ClientSession) -> None:
        self.info, self.http = info, http
        self.url: str = info["url"].rstrip("/")
        self._sockets: list[Socket] = []

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str = "",
        http: aiohttp.ClientSession | None = None,
        **headers: str,
    ) -> tuple[int, Any]:
        all_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            all_headers["Authorization"] = f"Bearer {token}"
        async with (http or self.http).request(method, self.url + path, json=body, headers=all_headers) as response:
            text = await response.text()
            return response.status, json.loads(text) if text[:1] in ("{", "[") else text

    async def register(self, email: str = "", **more: Any) -> Person:
        email = email or f"p{uuid.uuid4().hex[:12]}@example.org"
        status, body = await self.call(
            "POST", "/auth/register", {"email": email, "password": PASSWORD, "mode": "token", **more}
        )
        assert status == 201, (status, body)
        return self._person(email, body)

    async def login(self, email: str, password: str = PASSWORD) -> Person:
        status, body = await self.call("POST", "/auth/login", {"email": email, "password": password, "mode": "token"})
        assert status == 200, (status, body)
        return self._person(email, body)

    def _person(self, email: str, body: dict[str, Any]) -> Person:
        sid = body["session"]["sid"]
        return Person(email, body["user"]["id"], sid, body["access_token"], body["refresh_token"])

    async def admin(self) -> Person:
        return await self.login(self.info["admin"]["email"], self.info["admin"]["password"])

    async def api(self, method: str, body: Any) -> Any:
        _, answer = await self.call("POST", f"/api/{method}", body, X_API_Key=self.info["api_key"])
        return answer

    async def socket(
        self, token: str = "", *, http: aiohttp.ClientSession | None = None, connect: bool = True, **more: Any
    ) -> Socket:
        ws = await (http or self.http).ws_connect(
            self.info["websocket"], autoclose=False, origin=self.url, max_msg_size=0
        )
        client = Socket(ws)
        client.start()
        self._sockets.append(client)
        if connect:
            reply = await client.command(connect={"token": token, **more} if token else more)
            assert "connect" in reply, reply
        return client

    async def hang_up(self) -> None:
        for client in self._sockets:
            await client.ws.close()
            await client.closed()
        self._sockets.clear()


@contextlib.asynccontextmanager
async def running(workers: int, *arguments: str, log: int | None = None, **environment: str) -> AsyncIterator[World]:
    """`run.py dev --ephemeral` with its own servers, ended when the block is left. `log`: a descriptor for its log."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "run.py"),
        *("dev", "--json", "--ephemeral", "--port", str(free_port()), "--workers", str(workers), *arguments),
        cwd=ROOT,
        env={**os.environ, "WARDGATE_AUTH_BCRYPT_COST": "5", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        assert line, "run.py dev ended before it was ready"
        # A connection for each call: one that is kept may lead to a worker that a test has stopped.
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), connector=connector) as http:
            world = World(json.loads(line), http)
            yield world
            await world.hang_up()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 20)


@pytest.fixture(scope="session")
async def one_worker() -> AsyncIterator[World]:
    async with running(1) as world:
        yield world


@pytest.fixture(scope="session")
async def three_workers() -> AsyncIterator[World]:
    async with running(3) as world:
        yield world


@pytest.fixture(params=["one_worker", "three_workers"])
def world(request: pytest.FixtureRequest) -> World:
    """The same product with one worker and with three."""
    found: World = request.getfixturevalue(request.param)
    return found
