"""Stolen passwords are asked for at a real server by five digits of a hash: what it learns, what its absence means."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from auth import breached_range
from auth.breached_range import BreachedRange
from config.http import Problem
from config.redis import Pipe
from config.settings import BreachedRange as RangeSettings
from config.settings import Settings, with_values
from sessions.revocations import Revocations
from sessions.service import Sessions
from tests.auth.conftest import PASSWORD, House, build
from tests.auth.test_breached import digest

STOLEN, MADE_UP = "aardvark zebra umbrella", "heron estuary lantern"
HERE = ["127.0.0.0/8"]


class Service:
    """Speaks the range API over what `STOLEN` and `MADE_UP` hash to; says otherwise what `answer` has."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
        app = web.Application()
        app.router.add_get("/range/{prefix}", self._range)
        self.server = TestServer(app)

    @property
    def url(self) -> str:
        return str(self.server.make_url("/range/"))

    async def _range(self, request: web.Request) -> web.StreamResponse:
        prefix = request.match_info["prefix"]
        self.asked.append((prefix, request.headers.get("Add-Padding", "")))
        if self.answer is not None:
            return await self.answer(request)
        listed = [f"{n:035X}:{n}" for n in range(1, 1000)]
        listed += [f"{digest(word)[5:]}:{n}" for word, n in ((STOLEN, 7), (MADE_UP, 0)) if digest(word)[:5] == prefix]
        return web.Response(text="\r\n".join(sorted(listed)))


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    await service.server.start_server()
    yield service
    await service.server.close()


def asking(service: Service, **more: object) -> BreachedRange:
    return BreachedRange(RangeSettings.model_validate({"url": service.url, "allow_networks": HERE, **more}))


async def test_the_service_is_told_five_digits_and_knows_which_lines_are_made_up(service: Service) -> None:
    known = asking(service)
    assert [await known.has(word) for word in (STOLEN, MADE_UP, PASSWORD)] == [True, False, False]
    assert service.asked == [(digest(word)[:5], "true") for word in (STOLEN, MADE_UP, PASSWORD)]
    assert await asking(service, url=service.url.rstrip("/")).has(STOLEN)
    assert not await BreachedRange(RangeSettings()).has(STOLEN)


async def failed(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text=f"{'0' * 35}:1")


async def portal(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="<!doctype html><title>Log in to this network</title>")


async def nothing(_request: web.Request) -> web.StreamResponse:
    return web.Response()


async def elsewhere(_request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "http://169.254.169.254/"})


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(f"{'0' * 35}:1\n".encode() * 1000)


async def silent(_request: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


@pytest.mark.parametrize("answer", [failed, portal, nothing, elsewhere, endless, silent])
async def test_an_answer_that_is_none_counts_as_none(
    service: Service,
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if answer is silent:
        monkeypatch.setattr(breached_range, "TIMEOUT", 0.1)
    service.answer = answer
    assert await asking(service).has(STOLEN) is False
    with pytest.raises(Problem) as refused:
        await asking(service, when_away="refuse").has(STOLEN)
    assert refused.value.details.code == "unavailable"
    assert len(service.asked) == 2


async def test_only_so_many_are_asked_for_at_once_and_only_where_it_may_be(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await asking(service, allow_networks=[]).has(STOLEN) is False
    assert service.asked == []
    monkeypatch.setattr(breached_range, "AT_ONCE", 0)
    assert await asking(service).has(STOLEN) is False
    assert service.asked == []


async def test_sec_05_a_password_that_a_service_knows_is_refused_where_one_is_set_and_nowhere_else_asked_for(
    settings: Settings, pool: asyncpg.Pool, revocations: Revocations, sessions: Sessions, pipe: Pipe, service: Service
) -> None:
    values = {"url": service.url, "allow_networks": HERE, "when_away": "refuse"}
    changed = with_values(settings, {f"auth.breached_range.{name}": value for name, value in values.items()})
    house: House
    async with build(changed, pool, revocations, sessions, pipe) as house:
        body = {"email": "ada@example.org", "password": STOLEN, "mode": "token"}
        refused = await house.call("POST", "/auth/register", body)
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "password")
        made = await house.call("POST", "/auth/register", body | {"password": PASSWORD})
        assert made.status == 201
        token, change = made.json["access_token"], {"current_password": PASSWORD, "new_password": STOLEN}
        refused = await house.call("POST", "/auth/password", change, token=token)
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "new_password")
        asked = len(service.asked)
        assert (await house.call("POST", "/auth/password/strength", {"password": STOLEN})).json["strength"] == "strong"
        await house.pool.execute("UPDATE users SET password_hash = $1", await house.accounts.passwords.hash(STOLEN))
        assert (await house.login("ada@example.org", STOLEN)).status == 200
        assert len(service.asked) == asked
        service.answer = failed
        away = await house.call("POST", "/auth/register", body | {"email": "ben@example.org", "password": PASSWORD})
        assert (away.status, away.code) == (503, "unavailable")
