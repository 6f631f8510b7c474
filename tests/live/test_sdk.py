"""The official Python SDK as it is, in both forms."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from centrifuge import Client, ClientEventHandler, SubscriptionEventHandler  # type: ignore[import-untyped]

from tests.live.conftest import Worker, token

pytestmark = pytest.mark.parametrize("protobuf", [False, True], ids=["json", "protobuf"])


class Events(ClientEventHandler):  # type: ignore[misc]
    def __init__(self) -> None:
        self.connected: asyncio.Queue[Any] = asyncio.Queue()
        self.connecting: asyncio.Queue[Any] = asyncio.Queue()
        self.disconnected: asyncio.Queue[Any] = asyncio.Queue()
        self.publications: asyncio.Queue[Any] = asyncio.Queue()

    async def on_connected(self, ctx: Any) -> None:
        self.connected.put_nowait(ctx)

    async def on_connecting(self, ctx: Any) -> None:
        self.connecting.put_nowait(ctx)

    async def on_disconnected(self, ctx: Any) -> None:
        self.disconnected.put_nowait(ctx)

    async def on_publication(self, ctx: Any) -> None:
        self.publications.put_nowait(ctx)


class SubEvents(SubscriptionEventHandler):  # type: ignore[misc]
    def __init__(self) -> None:
        self.subscribed: asyncio.Queue[Any] = asyncio.Queue()
        self.subscribing: asyncio.Queue[Any] = asyncio.Queue()
        self.unsubscribed: asyncio.Queue[Any] = asyncio.Queue()
        self.publications: asyncio.Queue[Any] = asyncio.Queue()
        self.joins: asyncio.Queue[Any] = asyncio.Queue()

    async def on_subscribed(self, ctx: Any) -> None:
        self.subscribed.put_nowait(ctx)

    async def on_subscribing(self, ctx: Any) -> None:
        self.subscribing.put_nowait(ctx)

    async def on_unsubscribed(self, ctx: Any) -> None:
        self.unsubscribed.put_nowait(ctx)

    async def on_publication(self, ctx: Any) -> None:
        self.publications.put_nowait(ctx)

    async def on_join(self, ctx: Any) -> None:
        self.joins.put_nowait(ctx)


async def of(queue: asyncio.Queue[Any]) -> Any:
    async with asyncio.timeout(10):
        return await queue.get()


class Sdk:
    def __init__(self, worker: Worker, protobuf: bool, user: str = "42", **claims: Any) -> None:
        self.events = Events()
        self.tokens = 0
        self.protobuf = protobuf

        async def get_token(*_: Any) -> str:
            self.tokens += 1
            return token(user, jti=f"{id(self)}-{self.tokens}", **claims)

        self.client = Client(
            worker.url.replace("http", "ws", 1) + "/connection/websocket",
            events=self.events,
            get_token=get_token,
            use_protobuf=protobuf,
            min_reconnect_delay=0.05,
        )

    def data(self, value: Any) -> Any:
        return json.dumps(value).encode() if self.protobuf else value

    def value(self, data: Any) -> Any:
        return json.loads(data) if self.protobuf else data


@pytest.fixture
async def sdk(worker: Worker, protobuf: bool) -> AsyncIterator[Sdk]:
    made = Sdk(worker, protobuf)
    await made.client.connect()
    await of(made.events.connected)
    yield made
    await made.client.disconnect()


async def test_subscribe_publish_presence_history(worker: Worker, sdk: Sdk) -> None:
    events = SubEvents()
    sub = sdk.client.new_subscription("chat:sdk", events=events)
    await sub.subscribe()
    assert (await of(events.subscribed)).recoverable is True
    await of(events.joins)
    await sub.publish(sdk.data({"n": 1}))
    assert sdk.value((await of(events.publications)).pub.data) == {"n": 1}
    (peer,) = worker.hub.members()
    assert list((await sub.presence()).clients) == [peer.id]
    assert (await sub.presence_stats()).num_clients == 1
    history = await sub.history(limit=10)
    assert [sdk.value(p.data) for p in history.publications] == [{"n": 1}]
    await sub.unsubscribe()
    await of(events.unsubscribed)


async def test_rpc(worker: Worker, sdk: Sdk) -> None:
    async def echo(call: Any) -> bytes:
        data: bytes = call.data
        return data

    worker.node.on_rpc["echo"] = echo
    assert sdk.value((await sdk.client.rpc("echo", sdk.data({"n": 1}))).data) == {"n": 1}


async def test_it_recovers_what_it_missed_while_it_was_away(worker: Worker, sdk: Sdk) -> None:
    events = SubEvents()
    sub = sdk.client.new_subscription("chat:sdk", events=events)
    await sub.subscribe()
    await of(events.subscribed)
    await worker.api("publish", {"channel": "chat:sdk", "data": 1})
    assert sdk.value((await of(events.publications)).pub.data) == 1
    gate, worker.node._transport._admit = worker.node._transport._admit, lambda: False
    await worker.api("disconnect", {"user": "42", "disconnect": {"code": 3000, "reason": "connection closed"}})
    await of(sdk.events.connecting)
    await of(sdk.events.connecting)
    await worker.api("publish", {"channel": "chat:sdk", "data": 2})
    worker.node._transport._admit = gate
    assert (await of(events.subscribed)).recovered is True
    assert sdk.value((await of(events.publications)).pub.data) == 2


async def test_it_subscribes_again_after_2500_and_misses_nothing(worker: Worker, sdk: Sdk) -> None:
    events = SubEvents()
    sub = sdk.client.new_subscription("chat:sdk", events=events)
    await sub.subscribe()
    await of(events.subscribed)
    hear, worker.node._broker.on_publication = worker.node._broker.on_publication, lambda *_: None
    await worker.api("publish", {"channel": "chat:sdk", "data": 1})
    await asyncio.sleep(0.05)
    worker.node._broker.on_publication = hear
    await worker.api("publish", {"channel": "chat:sdk", "data": 2})
    assert (await of(events.subscribed)).recovered is True
    assert [sdk.value((await of(events.publications)).pub.data) for _ in range(2)] == [1, 2]


async def test_it_stops_on_4501_and_on_2000_and_comes_back_on_3014(worker: Worker, sdk: Sdk) -> None:
    events = SubEvents()
    sub = sdk.client.new_subscription("chat:sdk", events=events)
    await sub.subscribe()
    await of(events.subscribed)
    await worker.api("unsubscribe", {"user": "42", "channel": "chat:sdk"})
    assert (await of(events.unsubscribed)).code == 2000
    await worker.revoke(kind="rights", subject="42")
    await of(sdk.events.connected)
    assert sdk.tokens >= 1
    (peer,) = worker.hub.members()
    await worker.revoke(sid=peer.sid, reason="sdk")
    gone = await of(sdk.events.disconnected)
    assert (gone.code, gone.reason) == (4501, "session revoked: sdk")


async def test_an_expiring_token_is_refreshed_in_band(worker: Worker, protobuf: bool) -> None:
    made = Sdk(worker, protobuf, ttl=2)
    await made.client.connect()
    await of(made.events.connected)
    (peer,) = worker.hub.members()
    async with asyncio.timeout(10):
        while made.tokens < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert worker.hub.members() == [peer]
    await made.client.disconnect()
