"""What tests of accounts share: keys, and one process's accounts served over HTTP."""

import re
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import aiohttp
import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

from auth import keys as signing
from auth.accounts import Accounts
from auth.keys import Keys, key_sealer
from config.clock import FakeClock, SystemClock
from config.http import CURRENT, IDENTIFY, ORIGINS, TRUSTED, problems, trusted_networks
from config.redis import Pipe
from config.settings import Settings
from sessions import cookies
from sessions.revocations import Revocations
from sessions.service import Sessions

ORIGIN = "http://localhost:8000"
PASSWORD = "correct horse battery staple"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
async def keys(pool: asyncpg.Pool, settings: Settings, clock: FakeClock) -> Keys:
    """Signing keys of a fresh database, not read again by themselves."""
    sealer = key_sealer(settings.sessions)
    async with pool.acquire() as connection, connection.transaction():
        await signing.ensure(connection, sealer, "ES256")
    keys = Keys(pool, sealer, "ES256", clock=clock)
    await keys.load()
    return keys


class NoConnections:
    """A registry of live connections without any."""

    async def connections(self, sids: Iterable[str]) -> Mapping[str, int]:
        return {}

    async def user_connections(self, users: Iterable[str]) -> Mapping[str, int]:
        return {}

    async def totals(self) -> Any:
        return SimpleNamespace(connections=0, sessions=0, users=0)


class Answer:
    """An HTTP answer, read."""

    def __init__(self, response: aiohttp.ClientResponse, text: str, json: Any) -> None:
        self.status, self.headers, self.cookies = response.status, response.headers, response.cookies
        self.text, self.json = text, json

    @property
    def code(self) -> str:
        """The problem's, "" for none."""
        return str(self.json.get("code", "")) if isinstance(self.json, dict) else ""


class House:
    """One process's accounts over HTTP, and a client that says exactly what it is told to say."""

    def __init__(self, accounts: Accounts, revocations: Revocations, pool: asyncpg.Pool, server: TestServer) -> None:
        self.accounts, self.revocations, self.pool, self.server = accounts, revocations, pool, server
        self.http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())

    async def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str = "",
        cookie: str = "",
        origin: str = ORIGIN,
        address: str = "192.0.2.1",
        data: bytes | None = None,
        headers: Mapping[str, str] = {},
    ) -> Answer:
        """`address` is whom the trusted proxy vouches for; `cookie` a session's secret."""
        sent = {"X-Forwarded-For": address, "User-Agent": "test", **headers}
        if origin:
            sent["Origin"] = origin
        if token:
            sent["Authorization"] = f"Bearer {token}"
        if cookie:
            sent["Cookie"] = f"wardgate={cookie}"
        if data is not None:
            sent.setdefault("Content-Type", "application/json")
        url = self.server.make_url("/").join(URL(path, encoded=True))
        async with self.http.request(method, url, json=body, data=data, headers=sent) as response:
            text = await response.text()
            is_json = response.content_type in ("application/json", "application/problem+json")
            json = await response.json(content_type=None) if is_json else None
            return Answer(response, text, json)

    async def register(self, email: str = "alice@example.org", *, mode: str = "token", **more: Any) -> Answer:
        body = {"email": email, "password": PASSWORD, "mode": mode, **more}
        answer = await self.call("POST", "/auth/register", body)
        assert answer.status == 201, answer.text
        return answer

    async def login(
        self, email: str = "alice@example.org", password: str = PASSWORD, *, mode: str = "token", **more: Any
    ) -> Answer:
        return await self.call("POST", "/auth/login", {"email": email, "password": password, "mode": mode}, **more)

    async def admin(self) -> str:
        """An admin's access token."""
        made = await self.register("root@example.org")
        await self.pool.execute("update subjects set roles = '{admin}' where id = $1", made.json["user"]["id"])
        return str((await self.login("root@example.org")).json["access_token"])


def unix(text: str) -> float:
    """A moment as answers write it."""
    assert TIME.fullmatch(text)
    return datetime.fromisoformat(text).timestamp()


def secret_of(answer: Answer) -> str:
    """The session secret that an answer set as a cookie."""
    return str(answer.cookies["wardgate"].value)


@pytest.fixture
async def pipe(redis_url: str) -> AsyncIterator[Pipe]:
    pipe = Pipe(redis_url)
    await pipe.start()
    yield pipe
    await pipe.close()


@pytest.fixture
async def sessions(pool: asyncpg.Pool, revocations: Revocations, settings: Settings) -> AsyncIterator[Sessions]:
    sessions = Sessions(pool, revocations, settings.sessions, clock=SystemClock())
    await sessions.start()
    yield sessions
    await sessions.close()


@pytest.fixture
async def house(
    settings: Settings, pool: asyncpg.Pool, revocations: Revocations, sessions: Sessions, pipe: Pipe
) -> AsyncIterator[House]:
    async with build(settings, pool, revocations, sessions, pipe) as house:
        yield house


class build:
    """A `House` as long as the block."""

    def __init__(
        self, settings: Settings, pool: asyncpg.Pool, revocations: Revocations, sessions: Sessions, pipe: Pipe
    ) -> None:
        self._settings, self._pool, self._revocations = settings, pool, revocations
        self._accounts = Accounts(
            settings,
            pool,
            revocations,
            sessions,
            pipe,
            clock=SystemClock(),
            registry=NoConnections(),
            secure=False,
        )

    async def __aenter__(self) -> House:
        accounts = self._accounts
        await accounts.start()
        app = web.Application(middlewares=[problems], client_max_size=0)
        app[IDENTIFY] = accounts.identity.identify
        app[CURRENT] = self._revocations.fresh
        app[ORIGINS] = frozenset({ORIGIN})
        app[TRUSTED] = trusted_networks(["127.0.0.0/8"])
        cookies.setup(app, accounts.cookies)
        accounts.mount(app)
        self._server = TestServer(app)
        await self._server.start_server()
        self._house = House(accounts, self._revocations, self._pool, self._server)
        return self._house

    async def __aexit__(self, *_: object) -> None:
        await self._house.http.close()
        await self._server.close()
        await self._accounts.close()
