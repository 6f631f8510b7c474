"""What backends order over HTTP, as the connections hear it; on two nodes where it matters."""

import asyncio
import time
from typing import Any

from tests.live.conftest import Start, Worker, eventually


async def test_60_disconnect_closes_a_users_connections_on_all_nodes(start: Start) -> None:
    one, two = await start(), await start()
    a, b, other = await one.connect("7"), await two.connect("7"), await two.connect("8")
    spared = await one.connect("7")
    await eventually(lambda: one.hub.connections == 2 and two.hub.connections == 2)
    body: dict[str, Any] = {"user": "7", "whitelist": [spared.connected["client"]]}
    assert await one.api("disconnect", body) == {"result": {}}
    assert [(await raw.closed(), raw.reason) for raw in (a, b)] == [(3503, "force disconnect")] * 2
    assert (other.code, spared.code) == (None, None)
    body = {"user": "8", "disconnect": {"code": 4000, "reason": "custom"}}
    await one.api("disconnect", body)
    assert (await other.closed(), other.reason) == (4000, "custom")
    await one.api("disconnect", {"user": "7", "client": "someone else"})
    assert spared.code is None
    assert await one.api("disconnect", {"user": "nobody"}) == {"result": {}}
    await spared.close()


async def test_28_unsubscribe_is_final(worker: Worker) -> None:
    a = await worker.connect("7")
    await a.ask(subscribe={"channel": "chat:x"})
    await worker.api("unsubscribe", {"user": "7", "channel": "chat:x"})
    push = await a.push(lambda p: "unsubscribe" in p)
    assert push == {"channel": "chat:x", "unsubscribe": {"code": 2000, "reason": "server unsubscribe"}}
    assert "subscribe" in await a.ask(subscribe={"channel": "chat:x"})
    await a.close()


async def test_66_subscribe_pushes_and_the_connection_hears(worker: Worker) -> None:
    a = await worker.connect("7")
    await worker.api("subscribe", {"user": "7", "channel": "chat:x", "data": {"hello": 1}})
    push = (await a.push(lambda p: "subscribe" in p))["subscribe"]
    assert push.pop("epoch")
    assert push == {"recoverable": True, "positioned": True, "data": {"hello": 1}}
    await worker.api("publish", {"channel": "chat:x", "data": 5})
    await a.until(lambda: a.pubs("chat:x") == [5])
    assert (await a.ask(subscribe={"channel": "chat:x"}))["error"]["code"] == 105
    assert await worker.api("subscribe", {"user": "nobody", "channel": "chat:x"}) == {"result": {}}
    assert (await worker.api("subscribe", {"user": "7", "channel": "nowhere:x"}))["error"]["code"] == 102
    await a.close()


async def test_66_refresh_prolongs_or_expires(worker: Worker) -> None:
    a, b = await worker.connect("7"), await worker.connect("8")
    await worker.api("refresh", {"user": "7", "expire_at": int(time.time()) + 100})
    push = (await a.push(lambda p: "refresh" in p))["refresh"]
    assert (push["expires"], push["ttl"] in (99, 100, 101)) == (True, True)
    await worker.api("refresh", {"user": "8", "expired": True})
    assert (await b.closed(), b.reason) == (3005, "connection expired")
    await a.close()


async def test_65_67_channels_presence_and_info_are_of_the_cluster(start: Start) -> None:
    one, two = await start(), await start()
    a, b = await one.connect("7"), await two.connect("8")
    for raw in (a, b):
        await raw.ask(subscribe={"channel": "chat:x"})
    await b.ask(subscribe={"channel": "game:y"})
    found = (await one.api("channels", {}))["result"]["channels"]
    assert found == {"chat:x": {"num_clients": 2}, "game:y": {"num_clients": 1}}
    found = (await two.api("channels", {"pattern": "game:*"}))["result"]["channels"]
    assert list(found) == ["game:y"]
    present = (await two.api("presence", {"channel": "chat:x"}))["result"]["presence"]
    assert {info["user"] for info in present.values()} == {"7", "8"}
    assert (await one.api("presence_stats", {"channel": "chat:x"}))["result"] == {"num_clients": 2, "num_users": 2}

    nodes: list[dict[str, Any]] = []
    async with asyncio.timeout(5):  # the registry is told once a second
        while sum(node.get("num_clients", 0) for node in nodes) < 2:
            nodes = (await one.api("info", {}))["result"]["nodes"]
    shown = {"uid", "name", "version", "num_clients", "num_users", "num_channels", "num_subs", "uptime"}
    assert all(set(node) == shown for node in nodes)
    await a.close()
    await b.close()


async def test_two_nodes_hear_each_other(start: Start) -> None:
    one, two = await start(), await start()
    a, b = await one.connect("7"), await two.connect("8", protobuf=True)
    for raw in (a, b):
        await raw.ask(subscribe={"channel": "chat:x"})
    await a.push(lambda p: p.get("join", {}).get("info", {}).get("user") == "8")
    for n in range(20):
        await a.ask(publish={"channel": "chat:x", "data": {"n": n}})
    await b.until(lambda: len(b.pubs("chat:x")) == 20)
    assert [data["n"] for data in b.pubs("chat:x")] == list(range(20))
    await b.close()
    await a.push(lambda p: p.get("leave", {}).get("info", {}).get("user") == "8")
    await a.close()


async def test_a_personal_channel_comes_with_the_connection(start: Start) -> None:
    personal = {"enabled": True, "personal_channel_namespace": "chat"}
    worker = await start(client={"subscribe_to_user_personal_channel": personal})
    a = await worker.connect("7")
    assert list(a.connected["subs"]) == ["chat:#7"]
    await worker.api("publish", {"channel": "chat:#7", "data": 1})
    await a.until(lambda: a.pubs("chat:#7") == [1])
    await a.close()


async def test_one_connection_a_user_where_that_is_wanted(start: Start) -> None:
    personal = {"enabled": True, "single_connection": True}
    settings = {"subscribe_to_user_personal_channel": personal}
    one, two = await start(client=settings), await start(client=settings)
    a = await one.connect("7")
    b = await two.connect("7")
    assert (await a.closed(), a.reason) == (3504, "connection limit")
    assert b.code is None
    await b.close()


async def test_presence_is_prolonged_and_gone_with_the_connection(start: Start) -> None:
    worker = await start(client={"presence_update_interval": "1s"})
    a = await worker.connect("7")
    await a.ask(subscribe={"channel": "chat:x"})
    told: list[int] = []
    prolong = worker.node._presence.prolong

    async def count(channels: Any) -> None:
        told.append(len(channels))
        await prolong(channels)

    worker.node._presence.prolong = count  # type: ignore[method-assign]
    await eventually(lambda: len(told) >= 2)
    await a.close()
    await eventually(lambda: worker.hub.total == 0)
    await asyncio.sleep(0.05)
    assert (await worker.api("presence", {"channel": "chat:x"}))["result"]["presence"] == {}


async def test_the_registry_counts_what_is_live(worker: Worker) -> None:
    a = await worker.connect("7", claims={"sid": "desk"})
    b = await worker.connect("7", claims={"sid": "desk"})
    (peer, _) = worker.hub.members()
    assert await worker.app.registry.connections([peer.sid]) == {peer.sid: 2}
    await a.close()
    await eventually(lambda: worker.hub.connections == 1)
    assert await worker.app.registry.connections([peer.sid]) == {peer.sid: 1}
    await b.close()


async def test_figures_are_those_of_the_metrics_tables(worker: Worker) -> None:
    from gateway.metrics import COUNTERS, GAUGES

    a = await worker.connect("7")
    await a.ask(subscribe={"channel": "chat:x"})
    await a.ask(publish={"channel": "chat:x", "data": 1})
    figures = worker.node.figures()
    assert set(figures) <= set(COUNTERS) | set(GAUGES)
    assert figures["connections"] == figures["channels"] == figures["subscriptions"] == 1
    assert figures["publications"] == 1
    assert figures["deliveries"] >= 1
    assert figures["commands"] == 3
    await a.close()


async def test_a_backend_and_a_client_that_subscribe_at_once_make_one_subscription(worker: Worker) -> None:
    a = await worker.connect("7")
    for n in range(10):
        channel = f"chat:{n}"
        reply, _ = await asyncio.gather(
            a.ask(subscribe={"channel": channel}), worker.api("subscribe", {"user": "7", "channel": channel})
        )
        await worker.api("publish", {"channel": channel, "data": n})
        await a.until(lambda channel=channel: a.pubs(channel) != [])  # type: ignore[misc]
        assert a.pubs(channel) == [n]
        pushed = any(e.get("push", {}).get("channel") == channel and "subscribe" in e["push"] for e in a.events)
        assert pushed is ("error" in reply)
        assert worker.hub.current.channels[channel].count == 1
    await a.close()
