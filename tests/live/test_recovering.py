"""Recovery while others publish, positions that are lost, and a bus that breaks."""

import asyncio
import secrets
from typing import Any

import pytest

from config.redis import Unavailable
from tests.live.conftest import Raw, Start, Worker, eventually


def offsets(result: dict[str, Any]) -> list[int]:
    return [int(p["offset"]) for p in result.get("publications", [])]


def pushed(raw: Raw, channel: str) -> list[int]:
    """Offsets of publications that came after the last subscribe reply."""
    pushes = [e["push"] for e in raw.events if "push" in e]
    return [int(p["pub"]["offset"]) for p in pushes if p.get("channel") == channel and "pub" in p]


async def until_heard(raw: Raw, channel: str, count: int) -> None:
    await raw.until(lambda: len(pushed(raw, channel)) >= count)


@pytest.mark.parametrize("protobuf", [False, True], ids=["json", "protobuf"])
async def test_recovery_under_concurrent_publishing_has_no_gap_and_no_repetition(
    shared: Worker, protobuf: bool
) -> None:
    name = f"chat:{secrets.token_hex(6)}"
    publisher = await shared.connect("1")
    await publisher.ask(subscribe={"channel": name})
    stop = asyncio.Event()

    async def publish() -> int:
        count = 0
        while not stop.is_set() or count < 60:
            await shared.api("publish", {"channel": name, "data": {"n": count + 1}})
            count += 1
        return count

    publishing = asyncio.create_task(publish())
    a = await shared.connect("2", protobuf=protobuf)
    at, epoch, heard = 0, "", []
    for _ in range(25):
        a.events.clear()
        result = (await a.ask(subscribe={"channel": name, "recover": True, "offset": at, "epoch": epoch}))["subscribe"]
        assert result.get("recovered") is True, (at, result)
        heard += offsets(result)
        await asyncio.sleep(0)
        await a.ask(unsubscribe={"channel": name})
        heard += pushed(a, name)
        epoch, at = result["epoch"], heard[-1] if heard else 0
    stop.set()
    count = await publishing
    result = (await a.ask(subscribe={"channel": name, "recover": True, "offset": at, "epoch": epoch}))["subscribe"]
    heard += offsets(result)
    assert heard == list(range(1, count + 1))
    await publisher.close()
    await a.close()


@pytest.mark.parametrize("recover", [True, False])
async def test_what_the_bus_brings_between_reading_and_going_live_is_not_lost(worker: Worker, recover: bool) -> None:
    a, b = await worker.connect("1"), await worker.connect("2")
    epoch = (await a.ask(subscribe={"channel": "chat:x"}))["subscribe"]["epoch"]
    await worker.api("publish", {"channel": "chat:x", "data": 1})
    history = worker.node._history
    name = "missed" if recover else "read"
    read = getattr(history, name)

    async def late(*args: Any, **more: Any) -> Any:
        stream = await read(*args, **more)
        for n in (2, 3):
            await worker.api("publish", {"channel": "chat:x", "data": n})
        await a.until(lambda: a.pubs("chat:x") == [1, 2, 3])
        return stream

    setattr(history, name, late)
    ask = {"channel": "chat:x", **({"recover": True, "offset": 0, "epoch": epoch} if recover else {})}
    result = (await b.ask(subscribe=ask))["subscribe"]
    setattr(history, name, read)
    await worker.api("publish", {"channel": "chat:x", "data": 4})
    await until_heard(b, "chat:x", 1)
    assert offsets(result) + pushed(b, "chat:x") == ([1, 2, 3, 4] if recover else [4])
    if not recover:
        assert int(result["offset"]) == 3
    await a.close()
    await b.close()


async def test_many_who_subscribe_at_once_while_others_publish_all_hear_all(shared: Worker) -> None:
    name = f"chat:{secrets.token_hex(6)}"
    stop = asyncio.Event()

    async def publish() -> int:
        count = 0
        while not stop.is_set():
            await shared.api("publish", {"channel": name, "data": {"n": count + 1}})
            count += 1
        return count

    publishing = asyncio.create_task(publish())
    raws = await asyncio.gather(*(shared.connect(str(n), protobuf=n % 2 == 1) for n in range(12)))
    ask = {"channel": name, "recover": True, "offset": 0, "epoch": ""}
    results = await asyncio.gather(*(raw.ask(subscribe=ask) for raw in raws))
    await asyncio.sleep(0.2)
    stop.set()
    count = await publishing
    for raw, result in zip(raws, results, strict=True):
        missed = offsets(result["subscribe"])
        await until_heard(raw, name, count - len(missed))
        assert missed + pushed(raw, name) == list(range(1, count + 1))
        assert not any("unsubscribe" in e.get("push", {}) for e in raw.events)
    await eventually(lambda: shared.hub.current.channels[name].waiting == [])
    for raw in raws:
        await raw.close()


async def test_30_a_publication_that_the_bus_lost_is_seen_by_the_next_one(worker: Worker) -> None:
    name = "chat:x"
    a = await worker.connect("1")
    server = await worker.ws()
    from tests.live.conftest import token

    await server.ask(connect={"token": token("2", channels=["chat:x"])})
    await a.ask(subscribe={"channel": name})
    hear, worker.node._broker.on_publication = worker.node._broker.on_publication, lambda *_: None
    await worker.api("publish", {"channel": name, "data": 1})
    await asyncio.sleep(0.05)
    worker.node._broker.on_publication = hear
    await worker.api("publish", {"channel": name, "data": 2})
    push = await a.push(lambda p: "unsubscribe" in p)
    assert push["unsubscribe"] == {"code": 2500, "reason": "insufficient state"}
    assert (await server.closed(), server.reason) == (3010, "insufficient state")
    assert pushed(a, name) == []
    result = (await a.ask(subscribe={"channel": name, "recover": True, "offset": 0, "epoch": ""}))["subscribe"]
    assert offsets(result) == [1, 2]
    await a.close()


async def test_30_a_lost_publication_is_found_by_the_periodic_check(start: Start) -> None:
    worker = await start(client={"channel_position_check_delay": "300ms"})
    a = await worker.connect("1")
    await a.ask(subscribe={"channel": "chat:x"})
    worker.node._broker.on_publication = lambda *_: None
    await worker.api("publish", {"channel": "chat:x", "data": 1})
    push = await a.push(lambda p: "unsubscribe" in p)
    assert push["unsubscribe"]["code"] == 2500
    await a.close()


async def test_13_a_flushed_redis_rotates_the_epoch_and_clients_recover(start: Start, redis_url: str) -> None:
    import redis.asyncio as redis

    worker = await start(client={"channel_position_check_delay": "300ms"})
    a = await worker.connect("1")
    first = (await a.ask(subscribe={"channel": "chat:x"}))["subscribe"]
    await worker.api("publish", {"channel": "chat:x", "data": 1})
    client = redis.Redis.from_url(redis_url)
    await client.flushall()
    await client.aclose()
    push = await a.push(lambda p: "unsubscribe" in p)
    assert push["unsubscribe"]["code"] == 2500
    again = (await a.ask(subscribe={"channel": "chat:x", "recover": True, "offset": 1, "epoch": first["epoch"]}))[
        "subscribe"
    ]
    assert "recovered" not in again
    assert again["epoch"] != first["epoch"]
    assert a.code is None
    await a.close()


async def test_when_the_bus_breaks_what_it_missed_is_told_after_it_is_back(worker: Worker) -> None:
    a = await worker.connect("1")
    await a.ask(subscribe={"channel": "chat:x"})
    bus = worker.app.bus
    restored = asyncio.Event()
    bus.on_restored.append(restored.set)
    hear, worker.node._broker.on_publication = worker.node._broker.on_publication, lambda *_: None
    bus.reset("a test")
    await worker.api("publish", {"channel": "chat:x", "data": 1})
    async with asyncio.timeout(10):
        await restored.wait()
    worker.node._broker.on_publication = hear
    push = await a.push(lambda p: "unsubscribe" in p)
    assert push["unsubscribe"]["code"] == 2500
    await a.close()


async def test_a_subscribe_that_fails_leaves_nothing_behind(worker: Worker) -> None:
    a = await worker.connect("1")
    history = worker.node._history
    read = history.read

    async def away(*_args: Any, **_more: Any) -> Any:
        raise Unavailable("a test")

    history.read = away  # type: ignore[method-assign]
    error = (await a.ask(subscribe={"channel": "chat:x"}))["error"]
    assert error == {"code": 100, "message": "internal server error", "temporary": True}
    assert worker.hub.current.channels == {}
    await eventually(lambda: worker.node._joining._heard == {})
    history.read = read  # type: ignore[method-assign]
    assert (await worker.api("presence", {"channel": "chat:x"}))["result"]["presence"] == {}
    assert "subscribe" in await a.ask(subscribe={"channel": "chat:x"})
    await a.close()


async def test_f22_a_client_that_goes_at_any_await_of_its_subscribe_leaves_nothing_behind(worker: Worker) -> None:
    joining = worker.node._joining
    for stop in range(1, 5):
        a = await worker.connect(str(stop))
        (peer,) = worker.hub.members()
        steps = 0
        reached = asyncio.Event()
        originals = {name: getattr(joining, name) for name in ("_listen", "_read")}

        def counting(name: str, original: Any, stop: int = stop, reached: asyncio.Event = reached) -> Any:
            async def run(*args: Any) -> Any:
                nonlocal steps
                for when in ("before", "after"):
                    if when == "after":
                        await original(*args)
                    steps += 1
                    if steps == stop:
                        reached.set()
                        await asyncio.Event().wait()

            return run

        for name, original in originals.items():
            setattr(joining, name, counting(name, original))
        await a.send(a.command(subscribe={"channel": "chat:x"}))
        async with asyncio.timeout(5):
            await reached.wait()
        task = peer.task
        await a.close()
        await eventually(lambda: worker.hub.total == 0)
        for name in originals:
            delattr(joining, name)
        assert task is not None
        await asyncio.wait([task], timeout=5)
        await eventually(lambda: worker.hub.current.channels == {} and joining._heard == {})
        presence = (await worker.api("presence", {"channel": "chat:x"}))["result"]["presence"]
        assert presence == {}, stop
