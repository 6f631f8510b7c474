"""The upgrade: who may, in which form, and what is left of aiohttp afterwards. On both event loops."""

import asyncio
import base64
import gc
import os
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import aiohttp
import pytest

from gateway.transports.websocket import WebSocketPeer
from tests.live.conftest import ORIGIN, Start, Worker, eventually, token
from tests.live.wire import frames, masked

OPEN: list[asyncio.StreamWriter] = []
KEY = base64.b64encode(os.urandom(16)).decode()


class Answer(NamedTuple):
    status: int
    head: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@pytest.fixture(autouse=True)
async def hung_up() -> AsyncIterator[None]:
    """No connection of a test outlives it, failed or not."""
    yield
    while OPEN:
        await done(OPEN.pop())


async def by_hand(worker: Worker, *lines: str, body: bytes = b"", path: str = "/connection/websocket") -> Answer:
    """A request as bytes, and its answer."""
    host, port = worker.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    OPEN.append(writer)
    writer.write("\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode() + body)
    async with asyncio.timeout(5):
        head = await reader.readuntil(b"\r\n\r\n")
    return Answer(int(head.split()[1]), head, reader, writer)


def upgrade(*more: str, host: str = "here", key: str = KEY, version: str = "13") -> list[str]:
    return [
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: keep-alive, Upgrade",
        f"Sec-WebSocket-Version: {version}",
        f"Sec-WebSocket-Key: {key}",
        *more,
    ]


async def done(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await asyncio.wait([asyncio.ensure_future(writer.wait_closed())])


async def test_a_plain_upgrade_is_answered_as_rfc_6455_says(shared: Worker) -> None:
    answer = await by_hand(shared, *upgrade(key="dGhlIHNhbXBsZSBub25jZQ=="))
    assert answer.status == 101
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in answer.head
    assert b"Sec-WebSocket-Extensions" not in answer.head
    assert b"Sec-WebSocket-Protocol" not in answer.head


@pytest.mark.parametrize(
    ("offered", "query", "echoed", "binary"),
    [
        (None, "", None, False),
        ("", "", None, False),
        ("centrifuge-json", "", "centrifuge-json", False),
        ("centrifuge-protobuf", "", "centrifuge-protobuf", True),
        ("other, centrifuge-protobuf", "", "centrifuge-protobuf", True),
        ("other", "", None, False),
        (None, "?cf_protocol=protobuf", None, True),
        (None, "?format=protobuf", None, True),
        (None, "?cf_protocol=json", None, False),
    ],
)
async def test_4_5_subprotocol_or_query_choose_the_form(
    shared: Worker, offered: str | None, query: str, echoed: str | None, binary: bool
) -> None:
    lines = upgrade() if offered is None else upgrade(f"Sec-WebSocket-Protocol: {offered}")
    answer = await by_hand(shared, *lines, path="/connection/websocket" + query)
    assert answer.status == 101
    heads = answer.head.decode().split("\r\n")
    found = [line.split(": ")[1] for line in heads if line.startswith("Sec-WebSocket-Protocol")]
    assert found == ([echoed] if echoed else [])
    connect = b'{"id":1,"connect":{"token":"x.y.z"}}'
    if binary:
        connect = b"\x0b\x08\x01\x22\x07\x0a\x05x.y.z"
    answer.writer.write(masked(connect, 2 if binary else 1))
    async with asyncio.timeout(5):
        assert frames(await answer.reader.read(200)) == [(8, b"\x0d\xacinvalid token")]


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (["Host: here"], b""),
        (["Host: here", "Upgrade: websocket"], b""),
        (upgrade(key="short"), b""),
        (upgrade(key="!!!"), b""),
        (upgrade("Content-Length: 5"), b"hello"),
        (upgrade("Transfer-Encoding: chunked"), b"0\r\n\r\n"),
        (upgrade("Host: elsewhere"), b""),
    ],
)
async def test_52_what_is_no_clean_handshake_is_400_and_the_end_of_the_connection(
    shared: Worker, lines: list[str], body: bytes
) -> None:
    answer = await by_hand(shared, *lines, body=body)
    assert answer.status == 400
    async with asyncio.timeout(5):
        rest = await answer.reader.read()
    assert b"HTTP/1.1 1" not in answer.head + rest


async def test_another_version_is_told_which_one_we_speak(shared: Worker) -> None:
    answer = await by_hand(shared, *upgrade(version="8"))
    assert answer.status == 426
    assert b"Sec-WebSocket-Version: 13" in answer.head


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (ORIGIN, 101),
        (None, 101),
        ("http://here", 101),
        ("https://evil.example", 403),
        (ORIGIN + ".evil.example", 403),
        (ORIGIN + "/", 403),
        ("null", 403),
        ("", 403),
    ],
)
async def test_10_49_an_origin_is_on_the_list_or_our_own_host_or_refused(
    shared: Worker, origin: str | None, status: int
) -> None:
    lines = upgrade() if origin is None else upgrade(f"Origin: {origin}")
    answer = await by_hand(shared, *lines)
    assert answer.status == status


async def cookie_of(worker: Worker) -> str:
    await worker.person(mode="cookie")
    (cookie,) = [c for c in worker.http.cookie_jar if c.key == "wardgate"]
    return f"Cookie: wardgate={cookie.value}"


async def connect_by_hand(answer: Answer) -> bytes:
    answer.writer.write(masked(b'{"id":1,"connect":{}}'))
    async with asyncio.timeout(5):
        ((_, payload),) = frames(await answer.reader.read(1000))
    return payload


async def test_49_the_cookie_counts_with_an_origin_from_the_list_alone(shared: Worker) -> None:
    cookie = await cookie_of(shared)
    answer = await by_hand(shared, *upgrade(cookie, f"Origin: {ORIGIN}"))
    payload = await connect_by_hand(answer)
    assert b'"connect":{"client":"' in payload
    assert b"expires" not in payload
    for lines in (upgrade(cookie), upgrade(cookie, "Origin: http://here")):
        answer = await by_hand(shared, *lines)
        assert await connect_by_hand(answer) == b"\x0d\xadbad request"


async def test_a_cookie_that_stands_twice_counts_as_none(shared: Worker) -> None:
    cookie = await cookie_of(shared)
    lines = upgrade(f"{cookie}; other=1; {cookie.removeprefix('Cookie: ')}", f"Origin: {ORIGIN}")
    assert await connect_by_hand(await by_hand(shared, *lines)) == b"\x0d\xadbad request"
    lines = upgrade(f"Cookie: other=1; {cookie.removeprefix('Cookie: ')};last=2", f"Origin: {ORIGIN}")
    assert b'"connect":{"client":"' in await connect_by_hand(await by_hand(shared, *lines))


async def test_nothing_of_aiohttp_is_left_after_the_handshake(worker: Worker) -> None:
    before = {task for task in asyncio.all_tasks() if "RequestHandler" in repr(task)}
    clients = [await worker.connect(str(n)) for n in range(3)]
    await asyncio.sleep(0.05)
    after = {task for task in asyncio.all_tasks() if "RequestHandler" in repr(task)}
    assert after <= before
    assert worker.hub.connections == 3
    assert all(peer.task is None for peer in worker.hub.members())
    for client in clients:
        await client.close()
    async with asyncio.timeout(5):
        await worker.hub.emptied.wait()
    assert worker.hub.connections == 0


async def test_7a_a_frozen_node_refuses_the_handshake(worker: Worker) -> None:
    worker.hub.gate.lease.fresh_until = 0.0
    worker.hub.gate.freeze(worker.hub.clock())
    answer = await by_hand(worker, *upgrade())
    assert answer.status == 503
    assert b"Retry-After" in answer.head


async def test_a_draining_node_refuses_the_handshake_and_sends_everyone_away(worker: Worker) -> None:
    a = await worker.connect()
    await worker.node.drain(0.1)
    assert await a.closed() == 3001
    assert a.reason == "shutdown"
    answer = await by_hand(worker, *upgrade())
    assert answer.status == 503


async def test_19_59_connections_of_an_address_are_limited_over_all_nodes(start: Start) -> None:
    nodes = [await start(client={"connections_per_address": 2}) for _ in range(2)]
    a, b = await nodes[0].connect("1"), await nodes[1].connect("2")
    for node in nodes:
        c = await node.ws()
        assert await c.closed() == 3504
    await a.close()
    await eventually(lambda: nodes[0].hub.total == 0)
    d = await nodes[1].connect("3")
    await b.close()
    await d.close()


async def test_59_a_burst_from_one_address_over_two_nodes_is_cut_exactly(start: Start) -> None:
    nodes = [await start(client={"connections_per_address": 5}) for _ in range(2)]
    raws = await asyncio.gather(*(nodes[n % 2].ws() for n in range(20)))
    await eventually(lambda: sum(raw.code == 3504 for raw in raws) == 15)
    await eventually(lambda: sum(node.hub.total for node in nodes) == 5)
    for raw in raws:
        await raw.close()


async def test_59_behind_a_trusted_proxy_the_clients_address_is_counted(start: Start) -> None:
    worker = await start(client={"connections_per_address": 1}, http_server={"trusted_proxies": ["127.0.0.1"]})
    a = await worker.ws(headers={"X-Forwarded-For": "2001:db8:0:1::1"})
    b = await worker.ws(headers={"X-Forwarded-For": "2001:db8:0:1::2"})  # the same /64
    c = await worker.ws(headers={"X-Forwarded-For": "2001:db8:0:2::1"})
    assert await b.closed() == 3504
    assert a.code is c.code is None
    for raw in (a, b, c):
        await raw.close()


async def test_a_client_that_left_while_its_place_was_asked_for_holds_none(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start(client={"connections_per_address": 1})
    caps = worker.node._caps
    asked, go_on, take = asyncio.Event(), asyncio.Event(), caps._take

    async def slow(wanted: Any) -> Any:
        if wanted:
            asked.set()
            await go_on.wait()
        return await take(wanted)

    monkeypatch.setattr(caps, "_take", slow)
    leaving = asyncio.create_task(worker.ws())
    await asked.wait()
    leaving.cancel()
    await asyncio.wait([leaving])
    go_on.set()
    async with asyncio.timeout(5):
        while True:
            raw = await worker.ws()
            if await answers(raw):
                break
    await raw.close()
    await eventually(lambda: worker.hub.total == 0)
    assert caps.held == {}


async def answers(raw: Any) -> bool:
    """Whether it is let in."""
    try:
        return "connect" in await raw.ask(connect={"token": token()})
    except ConnectionError:
        return False


async def test_a_full_node_sends_clients_elsewhere_for_now(start: Start) -> None:
    """The reference answers 503 too: SDKs come again, which they would not after 3504."""
    worker = await start(client={"connection_limit": 1})
    a = await worker.connect()
    answer = await by_hand(worker, *upgrade())
    assert answer.status == 503
    assert b"Retry-After" in answer.head
    await a.close()
    await eventually(lambda: worker.hub.total == 0)
    b = await worker.connect()
    await b.close()


async def test_the_rate_of_new_connections_is_limited(start: Start) -> None:
    worker = await start(client={"connection_rate_limit": 2})
    statuses: list[Any] = []
    for _ in range(4):
        try:
            raw = await worker.ws()
            statuses.append(101)
            await raw.close()
        except aiohttp.WSServerHandshakeError as error:
            statuses.append(error.status)
    assert 503 in statuses
    assert statuses[:2] == [101, 101]


async def test_51_a_connection_that_says_nothing_is_closed_as_stale(start: Start) -> None:
    worker = await start(client={"stale_close_delay": "200ms"})
    raw = await worker.ws()
    assert await raw.closed() == 3502
    assert raw.reason == "stale"
    expired = await worker.ws()
    assert (await expired.ask(connect={"token": token(ttl=-5)}))["error"]["code"] == 109
    assert await expired.closed() == 3502


def peers() -> set[str]:
    """Whose peers are in memory, by client id."""
    return {found.id for found in gc.get_objects() if isinstance(found, WebSocketPeer)}


async def test_a_connection_that_ended_leaves_no_cycle_behind(worker: Worker) -> None:
    """Ten thousand that go must not wait for the garbage collector. A task may hold the one that it saw last until it
    sees another."""

    async def come_and_go() -> str:
        client = await worker.connect()
        await client.ask(subscribe={"channel": "chat:x"})
        await client.ask(publish={"channel": "chat:x", "data": 1})
        (own,) = {peer.id for peer in worker.hub.members()}
        assert own in peers()
        await client.close()
        async with asyncio.timeout(5):
            await worker.hub.emptied.wait()
        return own

    gc.collect()
    gc.disable()
    try:
        first = await come_and_go()
        await come_and_go()
        await eventually(lambda: first not in peers())  # without the collector's help
    finally:
        gc.enable()
