"""The HTTP edge: what bad input gets, who is let in, and that the description says the same."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Literal

import aiohttp_cors
import msgspec
import pytest
from aiohttp import ClientPayloadError, web
from aiohttp.test_utils import TestClient, TestServer, make_mocked_request

from config import http
from config.http import (
    CURRENT,
    IDENTIFY,
    MAX_BODY,
    ORIGINS,
    PROBLEMS,
    ROUTES,
    TRUSTED,
    Call,
    Caller,
    Nothing,
    Paging,
    Problem,
    Route,
    address_prefix,
    client_address,
    connections,
    decode_body,
    mount,
    problems,
    trusted_networks,
)
from config.openapi import describe, problem_codes
from config.redis import Unavailable


class Body(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    count: int = 0
    more: Any = None


class Echo(msgspec.Struct):
    name: str
    count: int


class Other(msgspec.Struct):
    why: str


CALLERS = {
    "user": Caller("bearer", "u_1", "s1"),
    "admin": Caller("bearer", "u_2", "s2", scopes=frozenset({"*"})),
    "cookie": Caller("cookie", "u_1", "s1"),
    "key": Caller("api_key", "k1", scopes=frozenset({"revocations"})),
    "all": Caller("api_key", "k2", scopes=frozenset({"*"})),
}


async def nothing() -> None:
    """What happens before a page, unless a test has something happen."""


class Switch:
    current = True
    calls = 0
    ended = False
    before: Callable[[], Awaitable[None]] = nothing


async def echo(call: Call[Body, Nothing]) -> Echo:
    Switch.calls += 1
    return Echo(call.body.name, call.body.count)


async def lose(call: Call[None, Nothing]) -> None:
    Switch.current = False
    Switch.calls += 1


async def whoami(call: Call[None, Nothing]) -> dict[str, str]:
    return {"name": call.who.name, "address": call.address}


async def page(call: Call[None, Paging]) -> dict[str, int]:
    return {"limit": call.query.limit}


class Things(msgspec.Struct):
    items: list[Other]
    next: str


async def things(call: Call[None, Paging]) -> Things:
    """Three pages; `Switch.before` is called before each."""
    Switch.calls += 1
    await Switch.before()
    number = int(call.query.after or "1")
    return Things([Other(f"{number}-{i}") for i in range(call.query.limit)], str(number + 1) if number < 3 else "")


async def either(_call: Call[None, Nothing]) -> Echo | Other:
    return Other("x")


async def gone(_call: Call[None, Nothing]) -> None:
    return None


async def boom(_call: Call[None, Nothing]) -> None:
    raise RuntimeError("secret detail")


async def away(_call: Call[None, Nothing]) -> None:
    raise ConnectionRefusedError("10.1.2.3")


async def full(_call: Call[None, Nothing]) -> None:
    raise Problem("busy")


TABLE = [
    Route("POST", "/echo", echo, "Echo", body=Body, result=Echo, status=201, errors=("email_taken",)),
    Route("GET", "/whoami", whoami, "Who", result=dict[str, str], access="session"),
    Route("POST", "/change", whoami, "Change", body=Nothing, result=dict[str, str], access="session"),
    Route("GET", "/ops/things", whoami, "Ops", result=dict[str, str], access="admin", scope="revocations"),
    Route("GET", "/ops/other", whoami, "Ops", result=dict[str, str], access="admin", scope="other"),
    Route("DELETE", "/lose", lose, "Lose", access="session"),
    Route("GET", "/lose", lose, "Lose", access="session"),
    Route("GET", "/page/{id}", page, "Page", query=Paging, result=dict[str, int]),
    Route(
        "GET",
        "/admin/things",
        things,
        "Things",
        query=Paging,
        result=Things,
        export=Other,
        access="admin",
        scope="other",
    ),
    Route("DELETE", "/gone", gone, "Gone"),
    Route("GET", "/either", either, "Either", result=Echo | Other, also=(201,)),
    Route("GET", "/boom", boom, "Boom"),
    Route("GET", "/away", away, "Away"),
    Route("GET", "/full", full, "Full", errors=("busy",)),
]


async def identify(request: web.Request) -> Caller | None:
    name = request.headers.get("X-Who")
    if name == "bad" or Switch.ended:
        raise Problem("session_ended", reason="logout")
    return CALLERS[name] if name else None


@pytest.fixture
async def client() -> AsyncIterator[TestClient[web.Request, web.Application]]:
    app = web.Application(middlewares=[problems])
    app[IDENTIFY] = identify
    app[CURRENT] = lambda: Switch.current
    app[ORIGINS] = frozenset({"https://app.example"})
    app[TRUSTED] = trusted_networks(["127.0.0.0/8"])
    mount(app, TABLE)
    Switch.current, Switch.calls, Switch.ended, Switch.before = True, 0, False, nothing
    async with TestClient(TestServer(app)) as client:
        yield client


Client = TestClient[web.Request, web.Application]


async def send(client: Client, raw: bytes, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
    response = await client.post("/echo", data=raw, headers={"Content-Type": kind})
    return response.status, await response.json(content_type=None)


async def test_a_good_body_is_answered(client: Client) -> None:
    response = await client.post("/echo", json={"name": "a", "count": 2})
    assert response.status == 201
    assert await response.json() == {"name": "a", "count": 2}
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"{", 400, "malformed"),
        (b'{"name":"a"} x', 400, "malformed"),
        (b'{"name":"a","name":"b"}', 400, "malformed"),
        (b'{"name":"a","more":{"x":1,"x":2}}', 400, "malformed"),
        (b'{"name":"\xff"}', 400, "malformed"),
        (b'{"name":"a\\u0000"}', 400, "malformed"),
        (b'{"name":"\\ud800"}', 400, "malformed"),
        (b'{"\\ud800":1}', 400, "malformed"),
        (b'{"name":"a","more":["\\u0000"]}', 400, "malformed"),
        (b'{"name":"a","more":NaN}', 400, "malformed"),
        (b'{"name":"a","more":' + b"[" * 40 + b"]" * 40 + b"}", 400, "malformed"),
        (b'{"name":"a","more":' + b"[" * 30000 + b"]" * 30000 + b"}", 400, "malformed"),
        (b"[]", 422, "invalid"),
        (b"", 422, "invalid"),
        (b'{"name":"a","nmae":1}', 422, "invalid"),
        (b'{"name":1}', 422, "invalid"),
        (b'{"name":"a","count":"2"}', 422, "invalid"),
        (b'{"name":"a","count":1e400}', 422, "invalid"),
        (b'{"name":"' + b"a" * MAX_BODY + b'"}', 413, "too_large"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_body_is_refused_by_name(client: Client, raw: bytes, status: int, code: str) -> None:
    got, problem = await send(client, raw)
    assert (got, problem["code"], Switch.calls) == (status, code, 0)
    assert problem["title"] == PROBLEMS[code][1]


async def test_the_refused_field_is_named(client: Client) -> None:
    for raw, name in [(b'{"name":1}', "name"), (b'{"name":"a","nmae":1}', "nmae"), (b"{}", "name")]:
        _, problem = await send(client, raw)
        assert problem["errors"][0]["field"] == name


async def test_text_plain_json_is_refused(client: Client) -> None:
    assert (await send(client, b'{"name":"a"}', "text/plain"))[1]["code"] == "unsupported_media_type"


async def test_a_chunked_body_cannot_pass_the_bound(client: Client) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 8192

    response = await client.post("/echo", data=chunks(), headers={"Content-Type": "application/json"})
    assert response.status == 413


async def test_a_body_that_never_came_held_its_connection_for_ever(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config.http.BODY_WAIT", 0.05)
    begun = asyncio.Event()

    async def dribble() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.wait_for(begun.wait(), 10)

    response = await client.post("/echo", data=dribble(), headers={"Content-Type": "application/json"})
    begun.set()
    assert (response.status, (await response.json())["code"]) == (400, "malformed")


async def test_a_compressed_body_is_not_unpacked(client: Client) -> None:
    response = await client.post(
        "/echo", data=b"x", headers={"Content-Type": "application/json", "Content-Encoding": "gzip"}
    )
    assert response.status in (400, 415)


@pytest.mark.parametrize(
    ("who", "path", "status", "code"),
    [
        ("", "/whoami", 401, "unauthenticated"),
        ("bad", "/whoami", 401, "session_ended"),
        ("key", "/whoami", 403, "forbidden"),
        ("user", "/whoami", 200, ""),
        ("user", "/ops/things", 403, "forbidden"),
        ("admin", "/ops/things", 200, ""),
        ("key", "/ops/things", 200, ""),
        ("key", "/ops/other", 403, "forbidden"),
        ("all", "/ops/other", 200, ""),
    ],
)
async def test_who_may_call(client: Client, who: str, path: str, status: int, code: str) -> None:
    response = await client.get(path, headers={"X-Who": who} if who else {})
    assert response.status == status
    if code:
        assert (await response.json(content_type=None))["code"] == code


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Origin": "https://app.example"}, 200),
        ({"Origin": "https://app.example.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, 403),
    ],
)
async def test_a_cross_site_post_with_a_cookie_is_refused(client: Client, headers: dict[str, str], status: int) -> None:
    response = await client.post("/change", headers={"X-Who": "cookie", **headers})
    assert response.status == status
    if status == 403:
        detail = (await response.json())["detail"]
        for way_out in ("client.allowed_origins", "Sec-Fetch-Site: same-origin", '"mode": "token"'):
            assert way_out in detail


async def test_a_frozen_node_refuses_what_needs_a_session(client: Client) -> None:
    Switch.current = False
    response = await client.get("/whoami", headers={"X-Who": "user"})
    assert response.status == 503
    assert (await response.json(content_type=None))["code"] == "frozen"
    assert int(response.headers["Retry-After"]) >= 1
    assert (await client.delete("/gone")).status == 204


async def test_a_deed_that_was_done_before_the_node_froze_is_not_called_undone(client: Client) -> None:
    response = await client.delete("/lose", headers={"X-Who": "user"})
    assert Switch.calls == 1
    assert (response.status, (await response.json(content_type=None))["code"]) == (503, "outcome_unknown")
    Switch.current = True
    response = await client.get("/lose", headers={"X-Who": "user"})
    assert (await response.json(content_type=None))["code"] == "frozen"


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [("/boom", 500, "internal"), ("/away", 503, "unavailable"), ("/nowhere", 404, "not_found"), ("/full", 503, "busy")],
)
async def test_failures_are_problems_and_tell_no_secret(client: Client, path: str, status: int, code: str) -> None:
    response = await client.get(path)
    text = await response.text()
    assert (response.status, json.loads(text)["code"]) == (status, code)
    assert "secret" not in text
    assert "10.1.2.3" not in text


async def test_a_wrong_method_names_the_right_one(client: Client) -> None:
    response = await client.get("/echo")
    assert (response.status, response.headers["Allow"]) == (405, "POST")


async def test_head_is_get_without_the_body(client: Client) -> None:
    got, head = await client.get("/page/1?limit=5"), await client.head("/page/1?limit=5")
    assert (head.status, head.headers["Content-Type"]) == (got.status, got.headers["Content-Type"])
    assert head.headers["Content-Length"] == str(len(await got.read()))
    assert await head.read() == b""
    assert (await client.head("/nowhere")).status == 404


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("limit=5", 200),
        ("limit=0", 422),
        ("limit=x", 422),
        ("nope=1", 422),
        ("limit=1&limit=2", 422),
        ("after=%00", 422),
        ("after=a%0ab", 422),
    ],
)
async def test_the_query_is_validated(client: Client, query: str, status: int) -> None:
    assert (await client.get("/page/1?" + query)).status == status


async def test_a_forwarded_address_counts_only_from_a_trusted_hop(client: Client) -> None:
    headers = {"X-Who": "user", "X-Forwarded-For": "6.6.6.6, ::ffff:203.0.113.9, 127.0.0.5"}
    assert (await (await client.get("/whoami", headers=headers)).json())["address"] == "203.0.113.9"
    app = web.Application()
    app[TRUSTED] = ()
    request = make_mocked_request("GET", "/", headers={"X-Forwarded-For": "6.6.6.6"}, app=app)
    assert client_address(request) == "127.0.0.1"


def test_limits_count_by_address_or_by_a_64_network() -> None:
    assert address_prefix("203.0.113.9") == "203.0.113.9"
    assert address_prefix("2001:db8:1:2:3::9") == "2001:db8:1:2::/64"


async def test_the_description_holds_every_route_and_code(client: Client) -> None:
    assert client.app is not None
    routes: list[Route] = client.app[ROUTES]
    document = describe(routes, title="t", version="1", cookie="c")
    assert document["openapi"].startswith("3.1")
    for route in TABLE:
        operation = document["paths"][route.path][route.method.lower()]
        said = json.dumps(operation["responses"])
        for code in problem_codes(route):
            assert f"`{code}`" in said
    assert document["paths"]["/echo"]["post"]["requestBody"]["required"] is True
    for status in ("200", "201"):
        shape = document["paths"]["/either"]["get"]["responses"][status]["content"]["application/json"]["schema"]
        assert [part["$ref"].rsplit("/", 1)[1] for part in shape["anyOf"]] == ["Echo", "Other"]
    names = [p["name"] for p in document["paths"]["/page/{id}"]["get"]["parameters"]]
    assert names == ["id", "limit", "after"]


# -- what aiohttp refuses before a handler of ours is asked


@pytest.fixture
async def edge() -> AsyncIterator[int]:
    """The port of a small application, served as the workers serve theirs."""

    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application(middlewares=[problems])
    app.router.add_get("/hello", hello)
    app.router.add_post("/hello", hello)
    allowed = aiohttp_cors.ResourceOptions(allow_credentials=True)  # type: ignore[no-untyped-call]
    cors = aiohttp_cors.setup(app, defaults={"https://ours.example": allowed})
    for route in list(app.router.routes()):
        cors.add(route)
    runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=1.0)
    await runner.setup()
    server = await asyncio.get_running_loop().create_server(connections(runner), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await runner.cleanup()


PREFLIGHT = (
    "OPTIONS /hello HTTP/1.1\r\nHost: x\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: GET\r\n\r\n"
)


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ("nonsense\r\n\r\n", 400, "malformed"),
        ("GET /hello HTTP/1.1\r\nHost: x\r\nBad Header: secret-cookie\r\n\r\n", 400, "malformed"),
        ("GET /" + "x" * 9000 + " HTTP/1.1\r\nHost: x\r\n\r\n", 400, "malformed"),
        ("GET /hello HTTP/1.1\r\nHost: x\r\n" + "A: b\r\n" * 200 + "\r\n", 400, "malformed"),
        ("POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400, "malformed"),
        ("POST /hello HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n", 417, "expectation_failed"),
        ("GET /nowhere HTTP/1.1\r\nHost: x\r\nExpect: miracles\r\n\r\n", 417, "expectation_failed"),
        ("GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404, "not_found"),
        ("DELETE /hello HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method_not_allowed"),
        (PREFLIGHT, 403, "cross_site"),
        (PREFLIGHT.replace("GET", "DELETE"), 403, "cross_site"),
        (PREFLIGHT.replace("Origin: https://evil.example\r\n", ""), 403, "cross_site"),
    ],
)
async def test_what_never_reaches_a_handler_is_a_problem_too(edge: int, request_: str, status: int, code: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge)
    writer.write(request_.encode())
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.split("content-length: ")[1].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
    writer.close()
    assert int(head.split()[1]) == status
    assert "content-type: application/problem+json" in head
    assert (body["status"], body["code"]) == (status, code)
    assert "secret-cookie" not in json.dumps(body)
    assert "access-control-allow" not in head


async def test_a_good_request_is_answered_beside_all_that(edge: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge)
    async with asyncio.timeout(5):
        for _ in range(2):  # the connection is kept
            writer.write(b"POST /hello HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
            assert b" 100 " in await reader.readuntil(b"\r\n\r\n")
            writer.write(b"x")
            assert b" 200 " in await reader.readuntil(b"\r\n\r\nhello")
    writer.close()


# -- what a refusal tells back


@pytest.mark.parametrize(
    "sent",
    [
        b'{"name": "x", "rowing to the island": 1}',
        b'{"name": "x", "rowing to the island - at `$.name`": 1}',
        b'{"rowing to the island": 1, "rowing to the island": 2}',
        b'{"name": ["rowing to the island"]}',
        b'{"name": "x", "kind": "rowing to the island"}',
        b'{"name": "x", "count": "rowing to the island"}',
        b'"rowing to the island"',
        b'{"name": "x", rowing to the island',
    ],
)
def test_a_refusal_names_what_is_wrong_and_does_not_tell_it_back(sent: bytes) -> None:
    class Kinds(Body, forbid_unknown_fields=True):
        kind: Literal["a", "b"] = "a"

    with pytest.raises(Problem) as refused:
        decode_body(sent, Kinds)
    assert b"rowing" not in msgspec.json.encode(refused.value.details)


def test_a_field_is_still_refused_by_its_name() -> None:
    for sent, field in ((b'{"name": "x", "nmae": 1}', "nmae"), (b"{}", "name"), (b'{"name": 1}', "name")):
        with pytest.raises(Problem) as refused:
            decode_body(sent, Body)
        assert refused.value.details.errors[0].field == field


def test_a_value_that_is_none_of_a_few_was_refused_without_saying_which() -> None:
    class Kinds(Body):
        kind: Literal["a", "b"] = "a"

    with pytest.raises(Problem) as refused:
        decode_body(b'{"name": "x", "kind": "c"}', Kinds)
    [error] = refused.value.details.errors
    assert (error.field, error.message) == ("kind", 'one of "a", "b"')


def test_broken_json_is_refused_with_its_place() -> None:
    with pytest.raises(Problem) as refused:
        decode_body(b'{"name": "x",\n "count" 1}', Body)
    assert "line 2 column 10" in refused.value.details.detail


# -- lists as files

CSV = {"X-Who": "all", "Accept": "text/csv"}


async def test_a_list_is_had_whole_as_a_file(client: Client) -> None:
    response = await client.get("/admin/things?limit=1", headers=CSV)
    lines = (await response.text()).split("\r\n")
    assert (response.status, response.content_type) == (200, "text/csv")
    assert response.headers["Content-Disposition"] == 'attachment; filename="things.csv"'
    assert response.headers["Cache-Control"] == "no-store"
    assert (lines[0], lines[1], lines[-2], len(lines)) == ("why", "1-0", "3-199", 602)
    response = await client.get("/admin/things?after=3", headers={**CSV, "Accept": "application/x-ndjson"})
    rows = [json.loads(line) for line in (await response.text()).splitlines()]
    assert (response.content_type, rows[0], len(rows)) == ("application/x-ndjson", {"why": "3-0"}, 200)


async def test_without_asking_a_list_comes_in_pages(client: Client) -> None:
    response = await client.get("/admin/things?limit=2", headers={"X-Who": "all"})
    assert await response.json() == {"items": [{"why": "1-0"}, {"why": "1-1"}], "next": "2"}


async def test_a_file_is_refused_as_a_page_is(client: Client) -> None:
    for who, query, status in (("", "", 401), ("key", "", 403), ("bad", "", 401), ("all", "?limit=0", 422)):
        response = await client.get(f"/admin/things{query}", headers={**CSV, "X-Who": who})
        assert (response.status, response.content_type) == (status, "application/problem+json")
    Switch.current = False
    assert (await client.get("/admin/things", headers=CSV)).status == 503


async def _ends() -> None:
    Switch.ended = Switch.calls == 2


async def _freezes() -> None:
    Switch.current = Switch.calls < 2


async def _loses_the_database() -> None:
    if Switch.calls == 2:
        raise Unavailable("away")


@pytest.mark.parametrize("happens", [_ends, _freezes, _loses_the_database])
async def test_a_file_whose_reader_may_no_more_is_broken_off_and_never_looks_whole(
    client: Client, happens: Callable[[], Awaitable[None]]
) -> None:
    Switch.before = happens
    response = await client.get("/admin/things", headers=CSV)
    assert response.status == 200
    with pytest.raises(ClientPayloadError):
        await response.read()
    assert Switch.calls == 2


async def test_who_does_not_read_a_file_is_dropped_and_costs_a_page(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "EXPORT_WAIT", 0.05)
    monkeypatch.setattr(http, "EXPORT_PAGE", 200_000)
    assert client.port is not None
    narrow = socket.socket()
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    narrow.setblocking(False)
    await asyncio.get_running_loop().sock_connect(narrow, ("127.0.0.1", client.port))
    reader, writer = await asyncio.open_connection(sock=narrow, limit=1024)
    writer.write(b"GET /admin/things HTTP/1.1\r\nHost: x\r\nX-Who: all\r\nAccept: text/csv\r\n\r\n")
    await reader.readuntil(b"\r\n")
    dropped = asyncio.Event()
    monkeypatch.setattr(http.log, "warning", lambda *_, **__: dropped.set())
    async with asyncio.timeout(10):
        await dropped.wait()
    assert Switch.calls < 3
    writer.close()


def test_the_description_has_the_files() -> None:
    paths = describe(TABLE, title="t", version="1", cookie="c")["paths"]
    content = paths["/admin/things"]["get"]["responses"]["200"]["content"]
    assert content.keys() == {"application/json", "text/csv", "application/x-ndjson"}
    assert paths["/page/{id}"]["get"]["responses"]["200"]["content"].keys() == {"application/json"}
