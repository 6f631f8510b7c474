"""Publishing on a real Valkey: atomic, ordered, once; and what is heard of it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from config.clock import boottime
from config.redis import Bus, Pipe, Unavailable
from gateway import broker as broker_module
from gateway import busframe
from gateway.broker import Broker
from gateway.busframe import Kind
from gateway.history import History
from gateway.keys import Keys
from gateway.protocol.commands import ClientInfo, Publication, StreamPosition
from tests.broker.conftest import PATIENCE, Heard, Server, Signal, Wire

PREFIX = "test"
KEYS = Keys(PREFIX)
KEPT: dict[str, Any] = {"history_size": 100, "history_ttl": 60.0, "meta_ttl": 600.0}
INFO = ClientInfo("42", "c1", b'{"name":"A"}', b"")

OpenPipe = Callable[..., Awaitable[Pipe]]
OpenBus = Callable[..., Awaitable[Bus]]
OpenWire = Callable[..., Awaitable[Wire]]


@pytest.fixture
def broker(pipe: Pipe, bus: Bus) -> Broker:
    return Broker(pipe, bus, prefix=PREFIX, node="0" * 31 + "1")


@pytest.fixture
def history(pipe: Pipe) -> History:
    return History(pipe, prefix=PREFIX)


def heard_by(broker: Broker) -> Heard:
    broker.on_publication = heard = Heard()
    return heard


async def test_without_history_a_publication_is_heard_and_stands_nowhere(broker: Broker, pipe: Pipe) -> None:
    heard = heard_by(broker)
    await broker.subscribe("c")
    assert await broker.publish("c", b'{"n": 1}', info=INFO, tags={"k": "v"}) is None
    ((channel, publication),) = await heard.until(1)
    assert (channel, publication.data, publication.offset, publication.epoch) == ("c", b'{"n": 1}', 0, "")
    assert (publication.info, publication.tags) == (INFO, {"k": "v"})
    assert publication.time > 1_700_000_000_000
    assert await pipe.call("DBSIZE") == 0


async def test_with_history_it_has_an_offset_and_the_streams_epoch(broker: Broker, history: History) -> None:
    heard = heard_by(broker)
    await broker.subscribe("c")
    first = await broker.publish("c", b"1", **KEPT)
    second = await broker.publish("c", b"2", **KEPT, info=INFO)
    assert first
    assert first.offset == 1
    assert second == StreamPosition(2, first.epoch)
    await heard.until(2)
    assert [(p.offset, p.epoch, p.data) for _, p in heard] == [(1, first.epoch, b"1"), (2, first.epoch, b"2")]
    stored = await history.read("c", limit=-1)
    assert stored.publications == [p for _, p in heard]


async def test_skip_history_publishes_only(broker: Broker, history: History) -> None:
    heard = heard_by(broker)
    await broker.subscribe("c")
    assert await broker.publish("c", b"1", **KEPT, skip_history=True) is None
    await heard.until(1)
    assert (await history.read("c")).offset == 0


async def test_any_data_and_any_name_come_through(broker: Broker) -> None:
    heard = heard_by(broker)
    for channel in ("{x}", "a:b#1,2", "%7Bx%7D", "ж", "x" * 255):
        heard.clear()
        await broker.subscribe(channel)
        data = bytes(range(256))
        await broker.publish(channel, data, **KEPT)
        assert [(name, p.data) for name, p in await heard.until(1)] == [(channel, data)]


async def test_many_publishers_offsets_are_unique_and_in_order_on_the_bus(
    redis_url: str, open_pipe: OpenPipe, open_bus: OpenBus
) -> None:
    brokers = [
        Broker(await open_pipe(redis_url), await open_bus(redis_url), prefix=PREFIX, node=f"{number:032x}")
        for number in range(3)
    ]
    ears = [heard_by(each) for each in brokers]
    for each in brokers:
        await each.subscribe("c")
    count = 200

    async def publish(number: int) -> list[StreamPosition | None]:
        return await asyncio.gather(
            *(brokers[number].publish("c", b"%d-%d" % (number, n), **KEPT, echo=n % 7 == 0) for n in range(count))
        )

    positions = [p for got in await asyncio.gather(*(publish(number) for number in range(3))) for p in got]
    assert sorted(p.offset for p in positions if p) == list(range(1, 3 * count + 1))
    assert len({p.epoch for p in positions if p}) == 1
    for ear in ears:
        await ear.until(3 * count)
        assert [p.offset for _, p in ear] == list(range(1, 3 * count + 1))
        for number in range(3):  # each publisher's own order is kept
            own = [p.data for _, p in ear if p.data.startswith(b"%d-" % number)]
            assert own == [b"%d-%d" % (number, n) for n in range(count)]


async def test_the_stream_is_cut_at_its_size_exactly(broker: Broker, history: History) -> None:
    for number in range(250):
        await broker.publish("c", b"%d" % number, history_size=10, history_ttl=60)
    stored = await history.read("c", limit=-1)
    assert stored.offset == 250
    assert [p.offset for p in stored.publications] == list(range(241, 251))


async def test_history_ttl_takes_the_publications_and_leaves_the_position(
    broker: Broker, history: History, pipe: Pipe
) -> None:
    before = await broker.publish("c", b"1", history_size=5, history_ttl=0.02, meta_ttl=60)
    names = KEYS.channel("c")
    async with asyncio.timeout(5):
        while await pipe.call("EXISTS", names.stream):
            pass
    stored = await history.read("c", limit=-1)
    assert before
    assert (stored.publications, stored.offset, stored.epoch) == ([], 1, before.epoch)
    assert await broker.publish("c", b"2", **KEPT) == StreamPosition(2, before.epoch)


async def test_ttls_are_set_as_asked(broker: Broker, pipe: Pipe) -> None:
    names = KEYS.channel("c")
    await broker.publish("c", b"1", history_size=5, history_ttl=30, meta_ttl=10)
    assert 29_000 < await pipe.call("PTTL", names.stream) <= 30_000
    assert 29_000 < await pipe.call("PTTL", names.meta) <= 30_000  # never shorter than the stream's
    await broker.publish("d", b"1", history_size=5, history_ttl=30, meta_ttl=0)
    assert await pipe.call("PTTL", KEYS.channel("d").meta) == -1


async def test_the_same_idempotency_key_gives_the_same_result_once(
    broker: Broker, history: History, pipe: Pipe
) -> None:
    heard = heard_by(broker)
    await broker.subscribe("c")
    first = await asyncio.gather(*(broker.publish("c", b"x", **KEPT, idempotency_key="k") for _ in range(5)))
    assert first == [StreamPosition(1, first[0].epoch if first[0] else "")] * 5
    again = await broker.publish("c", b"other", **KEPT, idempotency_key="k", echo=True)
    assert again == first[0]
    assert await broker.publish("c", b"y", **KEPT, idempotency_key="k2") == StreamPosition(
        2, again.epoch if again else ""
    )
    assert [p.data for _, p in await heard.until(2)] == [b"x", b"y"]
    assert (await history.read("c", limit=-1)).offset == 2
    assert 0 < await pipe.call("PTTL", KEYS.result("c", "k")) <= 300_000


async def test_an_idempotency_key_works_without_history_too(broker: Broker) -> None:
    heard = heard_by(broker)
    await broker.subscribe("c")
    for _ in range(3):
        assert await broker.publish("c", b"x", idempotency_key="k", echo=True) is None
    assert await broker.publish("c", b"z", **KEPT, idempotency_key="k") is None
    await broker.publish("c", b"y", echo=True)
    assert [p.data for _, p in heard] == [b"x", b"y"]


async def test_echo_returns_after_our_own_bus_has_delivered(broker: Broker) -> None:
    heard = heard_by(broker)
    await broker.subscribe("c")
    for number in range(50):
        await broker.publish("c", b"%d" % number, **(KEPT if number % 2 else {}), echo=True)
        assert len(heard) == number + 1


async def test_echo_does_not_wait_where_nobody_listens(broker: Broker, bus: Bus) -> None:
    began = boottime()
    await broker.publish("c", b"x", echo=True)
    await broker.subscribe("c")
    lost = Signal()
    bus.on_lost.append(lost)
    bus.reset("test")
    await broker.publish("c", b"x", echo=True)
    assert boottime() - began < broker_module.ECHO_TIMEOUT


async def test_echo_ends_when_the_bus_is_lost_or_its_time_is_over(
    server: Server, wire: OpenWire, open_pipe: OpenPipe, open_bus: OpenBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_module, "ECHO_TIMEOUT", 60.0)
    line = await wire(server.port)
    bus = await open_bus(f"redis://:wardgate@127.0.0.1:{line.port}")
    broker = Broker(await open_pipe(server.url), bus, prefix=PREFIX, node="1" * 32)
    await broker.subscribe("c")
    line.hold()
    waiting = asyncio.create_task(broker.publish("c", b"x", **KEPT, echo=True))
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    bus.reset("test")
    assert (await waiting or StreamPosition()).offset == 1
    line.flow()
    restored = Signal()
    bus.on_restored.append(restored)
    await restored.wait()
    monkeypatch.setattr(broker_module, "ECHO_TIMEOUT", 0.05)
    line.hold()
    assert await broker.publish("c", b"x", echo=True) is None


async def test_an_echo_comes_though_the_hub_failed(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "ECHO_TIMEOUT", 60.0)

    def fail(channel: str, publication: Publication) -> None:
        raise RuntimeError("a hub")

    broker.on_publication = fail
    await broker.subscribe("c")
    async with asyncio.timeout(PATIENCE):
        await broker.publish("c", b"x", echo=True)


async def test_a_publisher_cancelled_at_every_step_leaves_nothing_behind(broker: Broker) -> None:
    heard = heard_by(broker)
    await broker.subscribe("c")
    for steps in range(12):
        task = asyncio.create_task(broker.publish("c", b"x", **KEPT, echo=True))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not broker._echoes
    last = await broker.publish("c", b"last", **KEPT, echo=True)
    assert last
    assert [p.offset for _, p in heard] == list(range(1, last.offset + 1))


async def test_joins_and_leaves(broker: Broker) -> None:
    broker.on_join, broker.on_leave = joins, leaves = Heard(), Heard()
    await broker.subscribe("c")
    await broker.join("c", INFO)
    await broker.leave("c", INFO)
    assert await leaves.until(1) == [("c", INFO)]
    assert joins == [("c", INFO)]


async def test_after_unsubscribe_nothing_is_heard(broker: Broker) -> None:
    heard = heard_by(broker)
    await broker.subscribe("a")
    await broker.subscribe("b")
    broker.unsubscribe("a")
    await broker.publish("a", b"x")
    await broker.publish("b", b"y", echo=True)
    assert [channel for channel, _ in heard] == ["b"]


async def test_malformed_frames_are_counted_and_the_reader_lives(broker: Broker, pipe: Pipe) -> None:
    heard = heard_by(broker)
    await broker.subscribe("c")
    name = KEYS.channel("c").bus
    good = busframe.without_offset(busframe.body(Kind.PUBLICATION, "c", b"x", time=0, node=bytes(16), nonce=1))
    for bad in (b"", b"\x01", b"\xff" * 50, b"\x02" + good[1:], good[:30], b"__p1:1:e__{}"):
        pipe.call("PUBLISH", name, bad)
    pipe.call("PUBLISH", name, good)
    pipe.call("PUBLISH", name, good)  # twice is twice: whoever counts offsets sees it
    await heard.until(2)
    assert broker.figures() == {"bus_malformed": 6}


async def test_flushall_begins_a_new_epoch_by_itself(broker: Broker, history: History, pipe: Pipe) -> None:
    heard = heard_by(broker)
    await broker.subscribe("c")
    before = await broker.publish("c", b"1", **KEPT)
    await pipe.call("FLUSHALL")
    after = await broker.publish("c", b"2", **KEPT, echo=True)
    assert before
    assert after
    assert after.offset == 1
    assert after.epoch != before.epoch
    assert len(heard) == 2
    assert [p.data for p in (await history.read("c", limit=-1)).publications] == [b"2"]


async def test_a_stream_without_its_meta_is_orphaned_and_goes(broker: Broker, history: History, pipe: Pipe) -> None:
    for _ in range(3):
        await broker.publish("c", b"old", **KEPT)
    await pipe.call("DEL", KEYS.channel("c").meta)
    assert (await broker.publish("c", b"new", **KEPT) or StreamPosition()).offset == 1
    assert [p.data for p in (await history.read("c", limit=-1)).publications] == [b"new"]


async def test_script_flush_is_not_noticed(broker: Broker, pipe: Pipe) -> None:
    await broker.publish("c", b"1", **KEPT)
    await pipe.call("SCRIPT", "FLUSH")
    positions = await asyncio.gather(*(broker.publish("c", b"2", **KEPT) for _ in range(3)))
    assert [p.offset for p in positions if p] == [2, 3, 4]


async def test_a_restart_rotates_the_epoch_and_keeps_what_was_saved(
    server: Server, open_pipe: OpenPipe, open_bus: OpenBus
) -> None:
    pipe, bus = await open_pipe(server.url), await open_bus(server.url)
    broker, history, restored = Broker(pipe, bus, prefix=PREFIX, node="1" * 32), History(pipe, prefix=PREFIX), Signal()
    heard = heard_by(broker)
    await broker.subscribe("c")
    first = await broker.publish("c", b"1", **KEPT)
    await pipe.call("SAVE")
    lost = await broker.publish("c", b"lost", **KEPT, echo=True)
    server.kill()
    broker.on_restored = restored
    pipe.on_restored.append(pipe_back := Signal())
    server.again()
    await restored.wait()
    await pipe_back.wait()
    # The stream was rolled back: under the old epoch the next publication would take the lost one's offset unseen.
    assert first
    assert lost == StreamPosition(2, first.epoch)
    second = await broker.publish("c", b"2", **KEPT, echo=True)
    assert second
    assert second.offset == 2
    assert second.epoch != first.epoch
    assert (await broker.publish("c", b"3", **KEPT) or StreamPosition()).epoch == second.epoch
    assert [p.data for p in (await history.read("c", limit=-1)).publications] == [b"1", b"2", b"3"]
    assert [p.data for _, p in await heard.until(4)] == [b"1", b"lost", b"2", b"3"]


async def test_a_read_after_a_restart_rotates_too(server: Server, open_pipe: OpenPipe) -> None:
    pipe = await open_pipe(server.url)
    history, back = History(pipe, prefix=PREFIX), Signal()
    pipe.on_restored.append(back)
    before = await history.read("c", limit=0, meta_ttl=60)
    await pipe.call("SAVE")
    server.kill()
    server.again()
    await back.wait()
    after = await history.tops({"c": 60.0})
    assert after["c"].epoch != before.epoch
    assert (await history.read("c")).epoch == after["c"].epoch


async def test_a_stopped_server_publishes_nothing_late(server: Server, open_pipe: OpenPipe, open_bus: OpenBus) -> None:
    """A client publishes, Redis stands still, the client's session is revoked, Redis goes on: nobody may hear it."""
    pipe, bus = await open_pipe(server.url, timeout=0.3), await open_bus(server.url, timeout=30)
    broker, back = Broker(pipe, bus, prefix=PREFIX, node="1" * 32), Signal()
    heard = heard_by(broker)
    broker.on_join = broker.on_leave = heard
    await broker.subscribe("c")
    pipe.on_restored.append(back)
    server.freeze()
    began = boottime()
    outcomes = await asyncio.gather(
        broker.publish("c", b"late", **KEPT),
        broker.publish("c", b"late"),
        broker.join("c", INFO),
        broker.leave("c", INFO),
        return_exceptions=True,
    )
    assert all(isinstance(outcome, Unavailable) and outcome.uncertain for outcome in outcomes)
    assert boottime() - began < 1
    server.thaw()
    await back.wait()
    await broker.publish("c", b"after", echo=True)
    assert [p.data for _, p in heard] == [b"after"]


async def test_away_is_said_at_once(server: Server, open_pipe: OpenPipe, open_bus: OpenBus) -> None:
    pipe, bus = await open_pipe(server.url), await open_bus(server.url)
    broker = Broker(pipe, bus, prefix=PREFIX, node="1" * 32)
    broker.on_lost = lost = Signal()
    pipe.on_lost.append(gone := Signal())
    server.kill()
    await lost.wait()
    await gone.wait()
    for call in (broker.publish("c", b"x", **KEPT), broker.publish("c", b"x", echo=True), broker.join("c", INFO)):
        with pytest.raises(Unavailable) as caught:
            await call
        assert not caught.value.uncertain
    with pytest.raises(Unavailable):
        await broker.subscribe("c")
