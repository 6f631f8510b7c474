"""What every answer over HTTP tells a browser: never another site's, never stored, never framed, TLS outside dev."""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import aiohttp
import pytest

from config.http import ROUTES
from config.settings import Settings
from gateway.app import SCRIPTS
from tests.live.conftest import ORIGIN, Worker, serving, with_values

PAGES = ("/docs", "/page/docs.js", "/page/page.css", "/page/icon.svg")
DEMO = ("/", *(f"/page/{name}" for name in SCRIPTS))
FOREIGN = ("https://evil.example", "null", ORIGIN + ".evil.example", ORIGIN.replace("http:", "https:"))


@pytest.fixture(params=[False, True], ids=["production", "dev"])
async def served(request: pytest.FixtureRequest, live_settings: Settings) -> AsyncIterator[Worker]:
    async with serving(live_settings, dev=request.param) as worker:
        yield worker


def requests(worker: Worker) -> Iterator[tuple[str, str]]:
    """One of every route, of every page, and some that are none."""
    for route in worker.app.web[ROUTES]:
        yield route.method, route.path.replace("{", "").replace("}", "")
    yield from (("GET", path) for path in (*PAGES, *DEMO, "/nowhere", "/connection/websocket", "/api/nothing"))
    yield from (("DELETE", path) for path in ("/auth/login", "/health", "/"))


async def answer(
    worker: Worker, method: str, path: str, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientResponse:
    async with worker.http.request(method, worker.url + path, headers=headers) as response:
        await response.read()
        return response


async def test_62_every_answer_says_what_a_browser_may_do_with_it(served: Worker) -> None:
    key = {"X-API-Key": served.app.settings.http_api.key.get_secret_value()}
    seen: set[int] = set()
    for method, path in requests(served):
        for headers in (None, key, {"Cookie": "wardgate=x", "Origin": ORIGIN}):
            response = await answer(served, method, path, headers)
            at, found = f"{method} {path} {response.status}", response.headers
            seen.add(response.status)
            policy = directives(found["Content-Security-Policy"])
            assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == ["'none'"], at
            assert not any("unsafe" in word or "*" in word for words in policy.values() for word in words), at
            assert found["X-Content-Type-Options"] == "nosniff", at
            assert found["Referrer-Policy"] == "no-referrer", at
            assert found["Cross-Origin-Opener-Policy"] == "same-origin", at
            assert found.get("Strict-Transport-Security", "") == (
                "" if served.app.dev else "max-age=31536000; includeSubDomains"
            ), at
            assert found["Server"] == "Wardgate", at  # and not which versions run here
            stored = found["Cache-Control"]
            if path in (*PAGES, *DEMO) and response.status == 200:
                assert stored == "no-cache", at
            elif path == "/.well-known/jwks.json":
                assert stored.startswith("public"), at
            else:
                assert stored == "no-store", at
    assert {200, 400, 401, 404, 405} <= seen


async def test_what_only_dev_shows_is_nowhere_else(live_settings: Settings) -> None:
    async with serving(live_settings, dev=False) as worker:
        for path in (*DEMO, "/dev/mail", "/dev/doors"):
            assert (await answer(worker, "GET", path)).status == 404, path


async def test_62_only_our_origins_read_answers_and_no_other_is_reflected(served: Worker) -> None:
    for path in ("/auth/me", "/auth/login", "/admin/sessions", "/.well-known/jwks.json", "/health", "/api/info"):
        for origin in FOREIGN:
            for method, more in (("GET", {}), ("POST", {}), ("OPTIONS", {"Access-Control-Request-Method": "GET"})):
                response = await answer(served, method, path, {"Origin": origin, **more})
                told = [name for name in response.headers if name.startswith("Access-Control-Allow")]
                assert told == [], f"{method} {path} from {origin}"
    response = await answer(served, "GET", "/auth/me", {"Origin": ORIGIN})
    assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
    assert response.headers["Access-Control-Allow-Credentials"] == "true"
    preflight = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    response = await answer(served, "OPTIONS", "/auth/login", preflight)
    assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)
    for path in ("/api/info", "/health", "/metrics"):  # not for pages
        response = await answer(served, "GET", path, {"Origin": ORIGIN})
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_62_an_origin_that_is_not_named_never_gets_credentials(live_settings: Settings) -> None:
    """`*` in client.allowed_origins is for dev alone, where pages of any port are tried out."""
    settings = with_values(live_settings, client={"allowed_origins": ["*"]})
    async with serving(settings) as worker:
        response = await answer(worker, "GET", "/auth/me", {"Origin": "https://evil.example"})
        assert response.headers["Access-Control-Allow-Origin"] == "https://evil.example"
        assert "Access-Control-Allow-Credentials" not in response.headers


def directives(policy: str) -> dict[str, Any]:
    """A Content-Security-Policy by its directives."""
    return {words[0]: words[1:] for part in policy.split(";") if (words := part.split())}
