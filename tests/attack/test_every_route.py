"""What holds for every route that the description names, also for those that come later: who may ask, from where, and
what hostile text, foreign ids, unknown fields and oversized bodies get.
"""

import asyncio
import io
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from tests.attack.conftest import raw_http
from tests.world.conftest import PASSWORD, Person, World, running

HOSTILE = [
    "' OR '1'='1",
    "'; DROP TABLE users; --",
    "'; SELECT pg_sleep(9); --",
    '" || (SELECT password_hash FROM users LIMIT 1) || "',
    "\\'; --",
    "$1",
    "%s {0} ${7*7} {{7*7}}",
    "%_",
    "../../../etc/passwd",
    "x\r\nSet-Cookie: stolen=1",
    "\u2019\U0001f512\u202e",
]


@dataclass
class Operation:
    """A route as the description has it."""

    method: str
    path: str
    described: dict[str, Any]
    schemas: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.method} {self.path}"

    @property
    def ways_in(self) -> set[str]:
        """Of "bearer", "cookie" and "apiKey"; none for a public route."""
        return {name for one in self.described.get("security", []) for name in one}

    @property
    def body(self) -> dict[str, Any] | None:
        content = self.described.get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema")
        return None if schema is None else self._resolved(schema)

    def parameters(self, place: str) -> list[dict[str, Any]]:
        return [p for p in self.described.get("parameters", []) if p["in"] == place]

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        reference = schema.get("$ref")
        return self.schemas[reference.rpartition("/")[2]] if reference else schema

    def example(self, schema: dict[str, Any] | None = None, name: str = "") -> Any:
        """Something that the schema takes; well-known fields as a person would fill them in."""
        schema = self._resolved(self.body or {} if schema is None else schema)
        if name in KNOWN:
            return KNOWN[name]
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return self.example(schema[several][0], name)
        if "enum" in schema:
            return schema["enum"][0]
        if schema.get("format") == "date-time":
            return "2040-01-01T00:00:00Z"
        match schema.get("type"):
            case "object":
                return {n: self.example(s, n) for n, s in schema.get("properties", {}).items()}
            case "array":
                return [self.example(schema.get("items", {}), name)]
            case "boolean":
                return False
            case "integer" | "number":
                return schema.get("minimum", 1)
            case _:
                return "x" * schema.get("minLength", 1)

    def url(self, **values: str) -> str:
        """The path with these values, and "x" for what is not given."""
        path = self.path
        for parameter in self.parameters("path"):
            path = path.replace(f"{{{parameter['name']}}}", quote(values.get(parameter["name"], "x"), safe=""))
        return path


KNOWN: dict[str, Any] = {
    "email": "somebody@example.org",
    "new_email": "somebody.else@example.org",
    "password": PASSWORD,
    "current_password": PASSWORD,
    "new_password": PASSWORD + " again",
    "target": {"user": "u_nobody"},
    "url": "https://example.org/hook",
    "dry_run": True,
    "events": ["session.*"],
}


def texts(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON value the strings stand."""
    if isinstance(value, str):
        yield at
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from texts(inner, (*at, key))


def with_text(value: Any, at: tuple[Any, ...], text: str) -> Any:
    if not at:
        return text
    changed = dict(value) if isinstance(value, dict) else list(value)
    changed[at[0]] = with_text(value[at[0]], at[1:], text)
    return changed


class Surface:
    """The product, every route of it, and people who try them."""

    def __init__(self, world: World, document: dict[str, Any]) -> None:
        self.world = world
        schemas = document["components"]["schemas"]
        self.operations = [
            Operation(method.upper(), path, described, schemas)
            for path, operations in document["paths"].items()
            for method, described in operations.items()
        ]
        self.http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        self._addresses = (f"10.{n >> 16 & 255}.{n >> 8 & 255}.{n & 255}" for n in itertools.count(1))

    async def ask(self, one: Operation, url: str, body: Any = None, **headers: str) -> tuple[int, str, str]:
        """Status, the problem's code ("" where there is none) and the text; each time from another address."""
        given = {"X-Forwarded-For": next(self._addresses), **{n.replace("_", "-"): v for n, v in headers.items()}}
        data = None if body is None else io.BytesIO(json.dumps(body).encode())
        if data is not None:
            given.setdefault("Content-Type", "application/json")
        async with self.http.request(one.method, self.world.url + url, data=data, headers=given) as response:
            text = await response.text(errors="replace")
            kind = response.headers.get("Content-Type", "")
            assert "stolen" not in response.headers.get("Set-Cookie", ""), one.name
            return response.status, json.loads(text)["code"] if "problem+json" in kind else "", text

    async def person(self) -> Person:
        email = f"p{next(NUMBERS)}@example.org"
        body = {"email": email, "password": PASSWORD, "mode": "token"}
        status, body = await self.world.call("POST", "/auth/register", body)
        assert status == 201, body
        return Person(email, body["user"]["id"], body["session"]["sid"], body["access_token"], body["refresh_token"])

    async def credentials(self, one: Operation) -> dict[str, str]:
        """Headers with which this route may be asked."""
        if "apiKey" in one.ways_in:
            return {"X-API-Key": self.world.info["api_key"]}
        if "bearer" in one.ways_in:
            return {"Authorization": f"Bearer {(await self.person()).access}"}
        return {}

    def some(self, which: Callable[[Operation], Any]) -> list[Operation]:
        found = [one for one in self.operations if which(one)]
        assert len(found) > 5
        return found


NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
async def surface() -> AsyncIterator[Surface]:
    async with running(1, WARDGATE_HTTP_SERVER_TRUSTED_PROXIES='["127.0.0.1"]') as world:
        _, document = await world.call("GET", "/openapi.json")
        found = Surface(world, document)
        async with found.http:
            yield found


async def test_whoever_is_nobody_gets_401_wherever_a_session_or_a_key_is_asked_for(surface: Surface) -> None:
    for one in surface.some(lambda o: o.ways_in):
        for headers in ({}, {"Authorization": "Bearer x.y.z"}, {"X-API-Key": "x" * 43}, {"Cookie": "wardgate=x"}):
            status, _, text = await surface.ask(one, one.url(), one.example() if one.body else None, **headers)
            assert status == 401, (one.name, headers, text)


async def test_a_person_is_no_admin_on_any_route(surface: Surface) -> None:
    person = await surface.person()
    for one in surface.some(lambda o: o.path.startswith("/admin/")):
        body = one.example() if one.body else None
        status, code, _ = await surface.ask(one, one.url(), body, Authorization=f"Bearer {person.access}")
        assert (status, code) == (403, "forbidden"), one.name
    for one in surface.some(lambda o: o.path.startswith("/api/")):
        status, _, _ = await surface.ask(one, one.url(), one.example(), Authorization=f"Bearer {person.access}")
        assert status == 401, one.name


async def test_a_foreign_page_changes_nothing_with_the_cookie(surface: Surface) -> None:
    """CSRF: neither as JSON, nor as a form would send it, nor with another method's name in a header."""
    person, world = await surface.person(), surface.world
    login = {"email": person.email, "password": PASSWORD}
    async with surface.http.post(world.url + "/auth/login", json=login, headers={"Origin": world.url}) as response:
        assert response.status == 200
        cookie = next(f"{m.key}={m.value}" for m in response.cookies.values() if "device" not in m.key)
    for one in surface.some(lambda o: "cookie" in o.ways_in and o.method != "GET"):
        body = one.example() if one.body else None
        for foreign in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Origin": world.url + ".evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Origin": "https://evil.example", "Content-Type": "text/plain"},
            {"Origin": "https://evil.example", "X-HTTP-Method-Override": "GET"},
            {},
        ):
            status, code, _ = await surface.ask(one, one.url(), body, Cookie=cookie, **foreign)
            assert (status, code) == (403, "cross_site"), (one.name, foreign)
    async with surface.http.get(world.url + "/auth/me", headers={"Cookie": cookie}) as response:
        assert response.status == 200


async def test_hostile_text_is_only_text_in_every_field_of_every_route(surface: Surface) -> None:
    """No 500, nothing waits, nothing is told that the text asked for. A broken statement would be a 500."""
    tried = 0
    for one in surface.some(lambda o: True):
        example = one.example() if one.body else None
        fields = list(texts(example))
        names = [p["name"] for p in one.parameters("query")]
        headers = await surface.credentials(one)
        for text in HOSTILE:
            asked = [(one.url(), with_text(example, at, text)) for at in fields]
            asked += [(f"{one.url()}?{name}={quote(text, safe='')}", example) for name in names]
            asked += [(one.url(**{p["name"]: text}), example) for p in one.parameters("path")]
            for url, body in asked:
                began = time.monotonic()
                status, code, answer = await surface.ask(one, url, body, **headers)
                assert status < 500, (one.name, url, body, answer)
                assert time.monotonic() - began < 8, (one.name, url, body)
                assert "$2b$" not in answer, (one.name, url, body)
                assert "root:" not in answer, (one.name, url, body)
                if code == "session_ended":
                    headers = await surface.credentials(one)
                tried += 1
    assert tried > 1000
    assert (await surface.world.call("GET", "/admin/users", X_API_Key=surface.world.info["api_key"]))[0] == 200


async def test_hostile_headers_are_only_text_on_every_route(surface: Surface) -> None:
    names = ("User-Agent", "Accept-Language", "Accept", "Idempotency-Key", "Cookie", "Origin", "Referer")
    for one in surface.some(lambda o: True):
        headers = await surface.credentials(one)
        body = one.example() if one.body else None
        for text in (text for text in HOSTILE if text.isascii() and text.isprintable()):
            status, code, answer = await surface.ask(one, one.url(), body, **headers, **dict.fromkeys(names, text))
            assert status < 500, (one.name, text, answer)
            if code == "session_ended":
                headers = await surface.credentials(one)


async def test_a_field_that_is_not_known_is_refused_by_name_and_changes_nothing(surface: Surface) -> None:
    """Mass assignment. In the server API unknown fields are ignored, as backends expect."""
    extra = {"roles": ["admin"], "id": "u_x", "is_admin": True, "credential_version": 9, "state": "active"}
    for one in surface.some(lambda o: o.body is not None and not o.path.startswith("/api/")):
        headers = await surface.credentials(one)
        for name in extra.keys() - (one.body or {}).get("properties", {}).keys():
            status, code, text = await surface.ask(one, one.url(), {**one.example(), name: extra[name]}, **headers)
            assert (status, code) == (422, "invalid"), (one.name, name, text)
            assert name in text, (one.name, text)


async def test_bodies_that_are_too_large_too_deep_or_none_are_refused_everywhere(surface: Surface) -> None:
    for one in surface.some(lambda o: o.body is not None):
        headers = await surface.credentials(one)
        size = 5_000_000 if one.path.startswith("/api/") else 70_000
        status, _, _ = await surface.ask(one, one.url(), {"x": "y" * size}, **headers)
        assert status == 413, one.name
        odd: list[Any] = [json.loads("[" * 500 + "]" * 500), "text", 5, []]
        for body in odd:
            status, _, _ = await surface.ask(one, one.url(), body, **headers)
            assert 400 <= status < 500, (one.name, body)


async def test_a_body_that_never_comes_holds_nothing_for_ever(surface: Surface) -> None:
    """Slow requests: the head is there, the body stops; others are answered meanwhile."""
    one = next(o for o in surface.operations if o.name == "POST /auth/login")
    head = f"POST {one.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    slow = [asyncio.create_task(raw_http(surface.world, head.encode())) for _ in range(50)]
    await asyncio.sleep(0)
    status, _, _ = await surface.ask(one, one.path, {"email": "a@example.org", "password": PASSWORD, "mode": "token"})
    assert status == 401
    for task in slow:
        task.cancel()
    await asyncio.gather(*slow, return_exceptions=True)


async def test_anothers_id_is_not_found_on_any_route_of_a_person(surface: Surface) -> None:
    """IDOR: each id that one person can learn of, in each place of a route for which another is logged in."""
    mine, other = await surface.person(), await surface.person()
    ids = {other.sid, other.id}
    own = [o for o in surface.operations if o.path.startswith("/auth/") and o.parameters("path") and o.ways_in]
    assert own
    for one in own:
        for id in ids:
            values = {p["name"]: id for p in one.parameters("path")}
            body = one.example() if one.body else None
            status, code, _ = await surface.ask(one, one.url(**values), body, Authorization=f"Bearer {mine.access}")
            assert (status, code) in {(404, "not_found"), (401, "step_up_required"), (422, "invalid")}, one.name
    assert (await surface.world.call("GET", "/auth/me", token=other.access))[0] == 200
