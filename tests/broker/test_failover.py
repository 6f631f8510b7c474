"""A failover that loses writes: it is seen, epochs rotate, and nobody recovers across it."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio as redis

from config.redis import Bus, Pipe
from gateway.broker import Broker
from gateway.history import History
from gateway.protocol.commands import StreamPosition
from tests.broker.conftest import Heard, Server, Signal, Wire

KEPT: dict[str, Any] = {"history_size": 100, "history_ttl": 60.0, "meta_ttl": 600.0}


async def follow(server: Server, primary: Server) -> None:
    """Make `server` a replica, and return when it has everything."""
    async with redis.from_url(server.url) as commands, redis.from_url(primary.url) as there:
        await commands.config_set("masterauth", "wardgate")
        await there.config_set("repl-diskless-sync-delay", "0")
        await commands.replicaof("127.0.0.1", str(primary.port))
        await there.set("fence", server.port)
        while await commands.get("fence") != b"%d" % server.port:
            pass


async def promote(server: Server) -> None:
    async with redis.from_url(server.url) as commands:
        await commands.replicaof("NO", "ONE")


async def test_a_failover_that_loses_writes(
    open_server: Callable[[], Server],
    wire: Callable[..., Awaitable[Wire]],
    open_pipe: Callable[..., Awaitable[Pipe]],
    open_bus: Callable[..., Awaitable[Bus]],
) -> None:
    first, second = open_server(), open_server()
    await follow(second, first)
    line = await wire(first.port)  # the address that always means the primary
    url = f"redis://:wardgate@127.0.0.1:{line.port}"
    pipe, bus = await open_pipe(url), await open_bus(url)
    broker, history = Broker(pipe, bus, prefix="test", node="1" * 32), History(pipe, prefix="test")
    broker.on_publication = heard = Heard()
    pipe_back, bus_back = Signal(), Signal()
    pipe.on_restored.append(pipe_back)
    bus.on_restored.append(bus_back)
    await broker.subscribe("c")

    async def fail_over(to: Server) -> None:
        line.target = to.port
        line.cut()
        await pipe_back.wait()
        await bus_back.wait()

    async def publish(data: bytes) -> StreamPosition:
        position = await broker.publish("c", data, **KEPT, echo=True)
        assert position
        return position

    one = await publish(b"1")
    await follow(second, first)  # it has the first publication
    await promote(second)
    lost = await publish(b"lost")
    assert lost == StreamPosition(2, one.epoch)
    await fail_over(second)
    missed = await history.missed("c", lost, limit=300)
    assert missed.offset == 1
    assert missed.epoch != one.epoch
    two = await publish(b"2")
    assert two == StreamPosition(2, missed.epoch)
    assert (await publish(b"3")).epoch == two.epoch

    # And back: the old primary follows, and is promoted without having lost its process.
    await follow(first, second)
    await promote(first)
    also_lost = await publish(b"also lost")
    await fail_over(first)
    three = await publish(b"4")
    assert also_lost.epoch == two.epoch
    assert three.offset == also_lost.offset
    assert three.epoch not in (one.epoch, two.epoch)
    assert (await publish(b"5")).epoch == three.epoch
    stored = await history.read("c", limit=-1)
    assert [p.data for p in stored.publications] == [b"1", b"2", b"3", b"4", b"5"]
    assert [p.data for _, p in heard] == [b"1", b"lost", b"2", b"3", b"also lost", b"4", b"5"]


async def test_two_nodes_on_one_server_agree_on_the_epoch(
    redis_url: str, open_pipe: Callable[..., Awaitable[Pipe]], open_bus: Callable[..., Awaitable[Bus]]
) -> None:
    brokers = [
        Broker(await open_pipe(redis_url), await open_bus(redis_url), prefix="test", node=f"{n:032x}") for n in range(2)
    ]
    epochs = set()
    for number in range(6):
        position = await brokers[number % 2].publish("c", b"x", **KEPT)
        assert position
        epochs.add(position.epoch)
    assert len(epochs) == 1


async def test_the_first_replica_that_attaches_ends_in_one_epoch(
    open_server: Callable[[], Server],
    open_pipe: Callable[..., Awaitable[Pipe]],
    open_bus: Callable[..., Awaitable[Bus]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server begins a new history when its first replica comes; connections learn of it by their beat."""
    first, second = open_server(), open_server()
    pipes = [await open_pipe(first.url) for _ in range(2)]
    bus = await open_bus(first.url)
    brokers = [Broker(pipe, bus, prefix="test", node="1" * 32) for pipe in pipes]
    before = pipes[0].server
    await follow(second, first)
    seen = [Signal(), Signal()]
    for pipe, signal in zip(pipes, seen, strict=True):
        beaten = pipe._beaten

        def watch(*args: Any, beaten: Any = beaten, signal: Signal = signal) -> None:
            beaten(*args)
            signal()

        monkeypatch.setattr(pipe, "_beaten", watch)
        await signal.wait()
    assert pipes[0].server == pipes[1].server != before
    positions = [await brokers[number % 2].publish("c", b"x", **KEPT) for number in range(4)]
    assert len({position.epoch for position in positions if position}) == 1
