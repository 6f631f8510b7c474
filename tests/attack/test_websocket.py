"""A malicious, or merely unlucky, client on the WebSocket."""

import asyncio
import json
import time
import uuid

import aiohttp
import pytest

from tests.attack.conftest import token
from tests.world.conftest import PASSWORD, World


async def _heard(ws: aiohttp.ClientWebSocketResponse, count: int) -> list[dict[str, object]]:
    """The next `count` messages."""
    found: list[dict[str, object]] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            message = await ws.receive()
            assert message.type is aiohttp.WSMsgType.TEXT, message
            found += [json.loads(line) for line in message.data.split("\n")]
    return found


async def test_commands_over_the_rate_while_connecting_swallowed_all_others(world: World) -> None:
    person = await world.register()
    async with world.http.ws_connect(world.info["websocket"]) as ws:
        commands = [{"id": n, "unsubscribe": {"channel": "chat:x"}} for n in range(2, 602)]
        await ws.send_str(json.dumps({"id": 1, "connect": {"token": person.access}}))
        await ws.send_str("\n".join(map(json.dumps, commands)))
        replies = await _heard(ws, 601)
    by_id = {reply["id"]: reply for reply in replies}
    assert by_id.keys() == set(range(1, 602))
    assert "connect" in by_id[1]
    assert ["error" in by_id[n] for n in range(2, 602)] == [n > 500 for n in range(2, 602)]


async def test_an_anonymous_client_was_ended_for_good_when_its_token_was_renewed(world: World) -> None:
    first, second = (token(sub="", jti=jti, exp=int(time.time()) + 60) for jti in ("one", "two"))
    client = await world.socket(first)
    assert (await client.command(refresh={"token": second}))["refresh"]["expires"] is True
    assert client.code is None


async def test_one_participant_kept_everybody_out_of_a_room_with_a_history_too_big_to_send(world: World) -> None:
    crowder, victim = await world.register(), await world.register()
    channel = f"chat:{uuid.uuid4().hex}"
    loud = await world.socket(crowder.access)
    await loud.command(subscribe={"channel": channel})
    for _ in range(30):
        assert "publish" in await loud.command(publish={"channel": channel, "data": "x" * 40_000})
    client = await world.socket(victim.access, connect=False)
    connected = (await client.command(connect={"token": victim.access, "subs": {channel: {"recover": True}}}))[
        "connect"
    ]
    assert (connected["subs"][channel]["offset"], "recovered" in connected["subs"][channel]) == (30, False)
    client = await world.socket(victim.access)
    reply = await client.command(subscribe={"channel": channel, "recover": True})
    assert (reply["subscribe"]["offset"], "recovered" in reply["subscribe"]) == (30, False)
    page = (await client.command(history={"channel": channel, "limit": -1}))["history"]
    assert [p["offset"] for p in page["publications"]] == [*range(1, len(page["publications"]) + 1)]
    assert 0 < len(page["publications"]) < 30
    assert client.code is None


@pytest.mark.parametrize(("site", "code"), [("same-origin", None), ("same-site", None), ("cross-site", 3501)])
async def test_a_cookie_counted_on_a_page_that_the_browser_calls_cross_site(
    world: World, site: str, code: int | None
) -> None:
    body = {"email": f"{uuid.uuid4().hex}@example.org", "password": PASSWORD}
    async with world.http.post(f"{world.url}/auth/register", json=body, headers={"Origin": world.url}) as registered:
        cookie = registered.cookies["wardgate"].OutputString(attrs=[])
    headers = {"Origin": world.url, "Cookie": cookie, "Sec-Fetch-Site": site}
    async with world.http.ws_connect(world.info["websocket"], headers=headers) as ws:
        await ws.send_json({"id": 1, "connect": {}})
        answer = await asyncio.wait_for(ws.receive(), 5)
    assert answer.data == code if code else "connect" in json.loads(answer.data)
