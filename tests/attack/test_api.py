"""The server API under bad input, and what a client's data can do to the backend that reads it."""

import asyncio
import base64
import json
import uuid
from typing import Any

import aiohttp
import pytest

from gateway.protocol import wire_pb2 as wire
from tests.attack.conftest import Answer, send_request
from tests.world.conftest import World


async def api(world: World, method: str, body: Any) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return await send_request(
        world, "POST", f"/api{method and '/' + method}", raw, [f"X-API-Key: {world.info['api_key']}"]
    )


class ProtobufClient:
    """One command after the other, each waiting for its reply."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._ws = ws
        self._id = 0

    async def call(self, command: "wire.Command") -> "wire.Reply":
        self._id += 1
        command.id = self._id
        message = command.SerializeToString()
        assert len(message) < 16384
        size = [len(message) & 0x7F | 0x80, len(message) >> 7] if len(message) > 127 else [len(message)]
        await self._ws.send_bytes(bytes(size) + message)
        async with asyncio.timeout(5):
            while True:
                for reply in _replies((await self._ws.receive()).data):
                    if reply.id == self._id:
                        return reply


def _replies(data: bytes) -> list["wire.Reply"]:
    found, at = [], 0
    while at < len(data):
        size = shift = 0
        while True:
            byte = data[at]
            size |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        found.append(wire.Reply.FromString(data[at : at + size]))
        at += size
    return found


@pytest.mark.parametrize(
    "data",
    [b"\xff", b'"a\nb"', b'1,"offset":1},{"data":"forged"', b'1}]},"error":{"code":1,"message":"forged"'],
    ids=str,
)
async def test_what_a_protobuf_client_published_forged_the_history_that_a_backend_read(
    world: World, data: bytes
) -> None:
    person, channel = await world.register(), f"chat:{uuid.uuid4().hex}"
    async with world.http.ws_connect(world.info["websocket"], protocols=["centrifuge-protobuf"]) as ws:
        client = ProtobufClient(ws)
        await client.call(wire.Command(connect=wire.ConnectRequest(token=person.access)))
        await client.call(wire.Command(subscribe=wire.SubscribeRequest(channel=channel)))
        published = await client.call(wire.Command(publish=wire.PublishRequest(channel=channel, data=data)))
        assert published.HasField("publish")
    answer = (await api(world, "history", {"channel": channel, "limit": 10})).json
    assert "error" not in answer
    (publication,) = answer["result"]["publications"]
    assert base64.b64decode(publication["b64data"]) == data
    assert publication["info"]["user"] == person.id


@pytest.mark.parametrize(
    ("method", "body"),
    [
        ("publish", {"channel": "news:x", "b64data": "é"}),
        ("subscribe", {"user": "x", "channel": "news:x", "expire_at": 2**64}),
        ("subscribe", {"user": "x", "channel": "news:x", "recover_since": {"offset": 2**70}}),
        ("refresh", {"user": "x", "expire_at": -(2**70)}),
        ("history", {"channel": "news:x", "since": {"offset": 2**64}}),
        ("history", {"channel": "news:x", "since": {"offset": -1}}),
        ("disconnect", {"user": "x", "disconnect": {"code": 2**70}}),
    ],
)
async def test_numbers_that_fit_nowhere_got_a_500_or_were_taken(
    world: World, method: str, body: dict[str, Any]
) -> None:
    answer = await api(world, method, body)
    assert answer.status == 400 or answer.json == {"error": {"code": 107, "message": "bad request"}}


async def test_a_null_for_an_absent_field_was_refused(world: World) -> None:
    body = {"channel": f"news:{uuid.uuid4().hex}", "data": None, "tags": None, "b64data": None, "idempotency_key": None}
    assert (await api(world, "publish", body)).json["result"]["offset"] == 1
    assert (await api(world, "publish", {**body, "channel": None})).json["error"]["code"] == 107


async def test_half_of_an_old_request_was_done_before_its_end_was_found_to_be_bad(world: World) -> None:
    channel = f"news:{uuid.uuid4().hex}"
    publish = json.dumps({"method": "publish", "params": {"channel": channel, "data": 1}}).encode()
    assert (await api(world, "", publish + b"\n{")).status == 400
    answer = await api(world, "history", {"channel": channel, "limit": 10})
    assert answer.json["result"]["publications"] == []


async def test_an_old_request_was_answered_on_more_lines_than_it_has(world: World) -> None:
    channel = f"news:{uuid.uuid4().hex}"
    await api(world, "publish", b'{"channel":"%s","data":{"a":\n1}}' % channel.encode())
    line = json.dumps({"method": "history", "params": {"channel": channel, "limit": 1}}).encode()
    first, second = (await api(world, "", line + b"\n" + line)).body.split(b"\n")
    assert json.loads(first) == json.loads(second)


async def test_what_the_server_api_refuses_with_was_not_described(world: World) -> None:
    _, document = await world.call("GET", "/openapi.json")
    described = document["paths"]["/api/publish"]["post"]["responses"]
    without_key = await send_request(world, "POST", "/api/publish", b"{}")
    not_json = await api(world, "publish", b"{")
    assert (without_key.status, not_json.status) == (401, 400)
    assert {"200", "400", "401", "413", "415", "503"} <= described.keys()


async def test_history_before_the_beginning_was_an_empty_page(world: World) -> None:
    """As the reference answers: 107, to a backend and to a client."""
    asked = {"channel": "chat:before", "limit": 5, "since": {"offset": 0, "epoch": ""}, "reverse": True}
    assert (await world.api("history", asked))["error"]["code"] == 107
    assert "result" in await world.api("history", {**asked, "reverse": False})
    client = await world.socket((await world.register()).access)
    await client.command(subscribe={"channel": "chat:before"})
    assert (await client.command(history=asked))["error"]["code"] == 107
    assert "history" in await client.command(history={**asked, "reverse": False})


async def test_what_a_backend_left_out_was_refused_or_called_unknown(world: World) -> None:
    """An empty `disconnect` is the usual one; an RPC without a method is a bad request and not an unknown one."""
    person = await world.register()
    client = await world.socket(person.access)
    assert await world.api("disconnect", {"user": person.id, "disconnect": {}}) == {"result": {}}
    assert (await client.closed(), client.reason) == (3503, "force disconnect")
    assert (await world.api("rpc", {}))["error"]["code"] == 107
    assert (await world.api("rpc", {"method": "nobody"}))["error"]["code"] == 104
