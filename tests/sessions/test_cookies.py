"""The cookie: its attributes, that each login has its own, and what a request with one is."""

from collections.abc import AsyncIterator, Awaitable, Callable
from http.cookies import Morsel, SimpleCookie

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer

from config.http import problems
from sessions import cookies, ids
from sessions.cookies import CookieStorage
from sessions.model import Kind
from sessions.service import Sessions
from tests.sessions.conftest import Logins

Client = TestClient[web.Request, web.Application]
Serve = Callable[..., Awaitable[Client]]


@pytest.fixture
async def serve(sessions: Sessions, login: Logins) -> AsyncIterator[Serve]:
    """A site with a login, a logout and a page that says who is there."""
    clients: list[Client] = []

    async def log_in(request: web.Request) -> web.Response:
        device = ("a-device", 1000) if "known" in request.query else None
        remember = "forget" not in request.query
        await cookies.start(request, await login(request.query["user"], remember=remember), device)
        return web.Response(text=cookies.device(request))

    async def log_out(request: web.Request) -> web.Response:
        await cookies.forget(request)
        return web.Response()

    async def who(request: web.Request) -> web.Response:
        reading = await cookies.reading(request)
        assert await cookies.reading(request) is reading
        if reading is None:
            return web.Response(text="nobody")
        await sessions.admit(reading)
        return web.Response(text=reading.session.subject.id)

    async def make(*, secure: bool) -> Client:
        app = web.Application(middlewares=[problems])
        cookies.setup(app, CookieStorage(sessions, secure=secure))
        app.add_routes([web.post("/in", log_in), web.post("/out", log_out), web.get("/who", who)])
        client = TestClient(TestServer(app))
        await client.start_server()
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


def sent(answer: ClientResponse) -> Morsel[str]:
    """The one cookie that an answer sets."""
    [line] = answer.headers.getall("Set-Cookie")
    [morsel] = SimpleCookie(line).values()
    return morsel


async def test_60_outside_dev_the_cookie_is_a_host_cookie(serve: Serve) -> None:
    client = await serve(secure=True)
    morsel = sent(await client.post("/in?user=alice"))
    assert morsel.key == "__Host-wardgate"
    assert (morsel["secure"], morsel["httponly"], morsel["samesite"]) == (True, True, "Lax")
    assert (morsel["path"], morsel["domain"]) == ("/", "")
    assert 90 * 86400 - 10 <= int(morsel["max-age"]) <= 90 * 86400
    assert ids.secret_hash(morsel.value) is not None


async def test_the_cookie_of_a_login_that_is_not_remembered_goes_with_the_browser(serve: Serve) -> None:
    morsel = sent(await (await serve(secure=True)).post("/in?user=alice&forget"))
    assert (morsel["max-age"], morsel["expires"]) == ("", "")
    assert (morsel["secure"], morsel["httponly"], morsel["samesite"], morsel["path"]) == (True, True, "Lax", "/")


async def test_60_the_cookie_of_a_device_is_a_host_cookie_too(serve: Serve) -> None:
    client = await serve(secure=True)
    _, line = (await client.post("/in?user=alice&known")).headers.getall("Set-Cookie")
    [morsel] = SimpleCookie(line).values()
    assert (morsel.key, morsel.value, morsel["max-age"]) == ("__Host-wardgate-device", "a-device", "1000")
    assert (morsel["secure"], morsel["httponly"], morsel["samesite"]) == (True, True, "Lax")
    assert (morsel["path"], morsel["domain"]) == ("/", "")


async def test_the_cookie_of_a_device_outlives_a_logout(serve: Serve) -> None:
    client = await serve(secure=False)
    await client.post("/in?user=alice&known")
    await client.post("/out")
    assert await (await client.post("/in?user=alice")).text() == "a-device"


async def test_in_dev_it_works_over_plain_http(serve: Serve) -> None:
    client = await serve(secure=False)
    morsel = sent(await client.post("/in?user=alice"))
    assert morsel.key == "wardgate"
    assert (morsel["secure"], morsel["httponly"], morsel["samesite"], morsel["path"]) == ("", True, "Lax", "/")
    assert await (await client.get("/who")).text() == "alice"


async def test_13_each_login_has_a_secret_of_its_own(serve: Serve) -> None:
    client = await serve(secure=False)
    first = sent(await client.post("/in?user=alice"))
    second = sent(await client.post("/in?user=bob"))
    assert first.value != second.value
    assert await (await client.get("/who")).text() == "bob"


async def test_a_request_sets_no_cookie_of_its_own(serve: Serve) -> None:
    client = await serve(secure=False)
    assert "Set-Cookie" not in (await client.get("/who")).headers
    await client.post("/in?user=alice")
    assert "Set-Cookie" not in (await client.get("/who")).headers


@pytest.mark.parametrize("secure", [True, False])
async def test_logging_out_takes_the_cookie_away_with_the_same_attributes(serve: Serve, secure: bool) -> None:
    client = await serve(secure=secure)
    morsel = sent(await client.post("/out"))
    assert (morsel.value, morsel["max-age"], morsel["path"]) == ("", "0", "/")
    assert bool(morsel["secure"]) is secure
    assert morsel.key == ("__Host-wardgate" if secure else "wardgate")


async def test_a_cookie_that_is_nobodys_is_nobody(serve: Serve) -> None:
    client = await serve(secure=False)
    for value in ("", "x", "A" * 43, "'; DROP TABLE sessions; --", '"\\303\\251"', "A" * 4000):
        answer = await client.get("/who", headers={"Cookie": f"wardgate={value}"})
        assert (answer.status, await answer.text()) == (200, "nobody"), value


async def test_two_session_cookies_are_nobodys(serve: Serve, login: Logins) -> None:
    client, secret = await serve(secure=False), (await login("alice")).secret
    for both in (f"wardgate={secret}; a=1; wardgate={secret}", f"wardgate=x;wardgate={secret}"):
        answer = await client.get("/who", headers={"Cookie": both})
        assert await answer.text() == "nobody"
    answer = await client.get("/who", headers={"Cookie": f'a="x; y"; xwardgate=z; wardgate={secret} ; b'})
    assert await answer.text() == "alice"


async def test_the_cookie_of_a_session_that_is_over_says_why(serve: Serve, login: Logins) -> None:
    client = await serve(secure=False)
    await client.post("/in?user=alice")
    await login.end(kind=Kind.USER, subject="alice", reason="stolen laptop")
    answer = await client.get("/who")
    assert answer.status == 401
    assert (await answer.json())["reason"] == "stolen laptop"


async def test_the_dev_cookie_is_nothing_outside_dev(serve: Serve, login: Logins) -> None:
    client = await serve(secure=True)
    opened = await login("alice")
    for name, found in (("wardgate", "nobody"), ("__Host-wardgate", "alice")):
        answer = await client.get("/who", headers={"Cookie": f"{name}={opened.secret}"})
        assert await answer.text() == found
