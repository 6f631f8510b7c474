"""Clients that do not read: bounded, closed with 3008, and nobody else notices. On both event loops."""

import asyncio
import resource
from typing import Any

from tests.live.conftest import Raw, Start, Worker, eventually


def stop_reading(raw: Raw) -> None:
    """The client's program hangs: its kernel buffer fills."""
    raw._task.cancel()
    raw.ws._reader._protocol.pause_reading()


def peer_of(worker: Worker, raw: Raw) -> Any:
    (found,) = [peer for peer in worker.hub.members() if peer.id == raw.connected["client"]]
    return found


async def test_60_a_slow_reader_is_closed_with_3008_and_others_hear_everything(start: Start) -> None:
    worker = await start(client={"queue_max_size": 300_000})
    slow, good = await worker.connect("1"), await worker.connect("2")
    for raw in (slow, good):
        await raw.ask(subscribe={"channel": "stream:x"})
    peer = peer_of(worker, slow)
    stop_reading(slow)
    count = 0
    most = 0
    while peer.home is not None:
        assert count < 2000
        await worker.api("publish", {"channel": "stream:x", "data": {"n": count, "x": "x" * 20_000}})
        count += 1
        most = max(most, peer.held)
    assert most <= 300_000 + 21_000
    await good.until(lambda: len(good.pubs("stream:x")) == count)
    assert [data["n"] for data in good.pubs("stream:x")] == list(range(count))
    assert worker.hub.figures()["connections_slow"] == 1
    assert peer.outbox is None
    await eventually(lambda: worker.hub.total == 1)
    await slow.ws.close()
    await good.close()


async def test_a_reader_that_was_slow_for_a_while_misses_nothing(start: Start) -> None:
    worker = await start(client={"queue_max_size": 4_000_000})
    a = await worker.connect("1")
    await a.ask(subscribe={"channel": "stream:x"})
    peer = peer_of(worker, a)
    protocol = a.ws._reader._protocol
    protocol.pause_reading()
    count = 0
    while not peer.paused or count < 40:
        await worker.api("publish", {"channel": "stream:x", "data": {"n": count, "x": "x" * 20_000}})
        count += 1
        assert count < 2000
    for _ in range(20):
        await worker.api("publish", {"channel": "stream:x", "data": {"n": count, "x": "x" * 20_000}})
        count += 1
    assert peer.held
    protocol.resume_reading()
    await a.until(lambda: len(a.pubs("stream:x")) == count)
    assert [data["n"] for data in a.pubs("stream:x")] == list(range(count))
    assert peer.held == 0
    await a.close()


async def test_55_many_slow_readers_share_what_is_held_for_them(start: Start) -> None:
    """The bound is of bytes each, but the bytes of one publication are one object for all."""
    worker = await start(client={"queue_max_size": 8_000_000})
    slow = [await worker.connect(str(n)) for n in range(30)]
    for raw in slow:
        await raw.ask(subscribe={"channel": "stream:x"})
        stop_reading(raw)
    peers = [peer_of(worker, raw) for raw in slow]
    while not all(peer.paused for peer in peers):
        await worker.api("publish", {"channel": "stream:x", "data": {"x": "x" * 50_000}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(50):
        await worker.api("publish", {"channel": "stream:x", "data": {"x": "x" * 50_000}})
    await eventually(lambda: all(peer.held > 2_000_000 for peer in peers))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * 1024 < 30 * 2_000_000 / 2
    for raw in slow:
        await raw.ws.close()


async def test_53_a_flood_of_pings_to_one_who_does_not_read_is_bounded(start: Start) -> None:
    worker = await start(client={"queue_max_size": 100_000})
    a = await worker.connect("1")
    peer = peer_of(worker, a)
    stop_reading(a)

    async def flood() -> None:
        while True:
            await a.ws.ping(b"x" * 125)

    flooding = asyncio.create_task(flood())
    await eventually(lambda: peer.home is None, 30)
    flooding.cancel()
    await asyncio.wait([flooding])
    assert worker.hub.figures()["connections_slow"] == 1
    await a.ws.close()
