"""Bus on a real Valkey: what is heard, in which order, and what is left after each kind of loss."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from config.clock import boottime
from config.redis import Bus, Pipe, Unavailable
from config.resp import Link
from tests.broker.conftest import PATIENCE, Heard, Server, Signal, Wire

OpenPipe = Callable[..., Awaitable[Pipe]]
OpenBus = Callable[..., Awaitable[Bus]]
OpenWire = Callable[..., Awaitable[Wire]]


def watch(bus: Bus) -> tuple[Signal, Signal]:
    gone, back = Signal(), Signal()
    bus.on_lost.append(gone)
    bus.on_restored.append(back)
    return gone, back


async def listeners(pipe: Pipe, name: str) -> int:
    _, count = await pipe.call("PUBSUB", "NUMSUB", name)
    return int(count)


async def test_messages_come_in_order_to_their_handler(bus: Bus, pipe: Pipe) -> None:
    a, b = Heard(), Heard()
    await asyncio.gather(bus.subscribe("a", a), bus.subscribe("b", b))
    for number in range(100):
        pipe.call("PUBLISH", "ab"[number % 2], str(number))
    assert await a.until(50) == [b"%d" % number for number in range(0, 100, 2)]
    assert await b.until(50) == [b"%d" % number for number in range(1, 100, 2)]


async def test_subscribe_returns_when_the_server_has_confirmed(bus: Bus, pipe: Pipe) -> None:
    heard = Heard()
    for number in range(50):
        await bus.subscribe(f"n{number}", heard)
        assert await pipe.call("PUBLISH", f"n{number}", str(number)) == 1
    assert await heard.until(50) == [b"%d" % number for number in range(50)]


async def test_unsubscribe_is_at_once_here_and_soon_there(bus: Bus, pipe: Pipe) -> None:
    gone, stays = Heard(), Heard()
    await bus.subscribe("a", gone)
    await bus.subscribe("b", stays)
    bus.unsubscribe("a")
    bus.unsubscribe("never")
    pipe.call("PUBLISH", "a", "x")
    pipe.call("PUBLISH", "b", "y")
    await stays.until(1)
    assert not gone
    assert not bus.hears("a")
    assert await listeners(pipe, "a") == 0


async def test_leaving_and_coming_back_in_one_turn(bus: Bus, pipe: Pipe) -> None:
    first, second = Heard(), Heard()
    await bus.subscribe("a", first)
    bus.unsubscribe("a")
    await bus.subscribe("a", second)
    assert await pipe.call("PUBLISH", "a", "x") == 1
    assert await second.until(1) == [b"x"]
    assert not first


async def test_a_second_handler_takes_the_place_of_the_first(bus: Bus, pipe: Pipe) -> None:
    first, second = Heard(), Heard()
    await bus.subscribe("a", first)
    await bus.subscribe("a", second)
    await pipe.call("PUBLISH", "a", "x")
    assert await second.until(1) == [b"x"]
    assert not first


async def test_a_handler_that_raises_is_counted_and_stops_nothing(bus: Bus, pipe: Pipe) -> None:
    def fail(message: bytes) -> None:
        raise RuntimeError(message)

    heard = Heard()
    await bus.subscribe("bad", fail)
    await bus.subscribe("good", heard)
    for _ in range(3):
        pipe.call("PUBLISH", "bad", "x")
    pipe.call("PUBLISH", "good", "y")
    assert await heard.until(1) == [b"y"]
    assert bus.handler_errors == 3
    assert bus.connected


async def test_a_subscriber_that_is_cancelled_leaves_nothing(redis_url: str, open_bus: OpenBus, pipe: Pipe) -> None:
    bus = await open_bus(redis_url)
    for steps in range(12):
        task = asyncio.create_task(bus.subscribe("a", Heard()))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        outcome = (await asyncio.gather(task, return_exceptions=True))[0]
        if outcome is None:
            assert bus.hears("a")
            bus.unsubscribe("a")
        await bus.subscribe("fence", Heard())
        bus.unsubscribe("fence")
        assert not bus.hears("a")
        assert await listeners(pipe, "a") == 0


async def test_one_of_two_subscribers_is_cancelled_and_the_other_hears(bus: Bus, pipe: Pipe) -> None:
    for steps in range(10):
        name, heard = f"a{steps}", Heard()
        tasks = [asyncio.create_task(bus.subscribe(name, heard)) for _ in range(2)]
        for _ in range(steps):
            await asyncio.sleep(0)
        tasks[0].cancel()
        async with asyncio.timeout(PATIENCE):
            await asyncio.wait(tasks)
        assert tasks[1].exception() is None
        assert await pipe.call("PUBLISH", name, "x") == 1
        assert await heard.until(1) == [b"x"]


async def test_client_kill_of_pubsub_is_told_and_healed(bus: Bus, pipe: Pipe) -> None:
    heard = Heard()
    names = [f"n{number}" for number in range(2500)]
    await asyncio.gather(*(bus.subscribe(name, heard) for name in names))
    gone, back = watch(bus)
    states: list[bool] = []
    bus.on_lost.append(lambda: states.append(bus.connected))
    bus.on_restored.append(lambda: states.append(bus.connected))
    for round_ in range(1, 3):
        await pipe.call("CLIENT", "KILL", "TYPE", "pubsub")
        await gone.wait()
        await back.wait()
        counts = await pipe.batch([("PUBLISH", name, str(round_)) for name in names])
        assert counts == [1] * len(names)
        await heard.until(len(names) * round_)
    assert states == [False, True] * 2
    assert bus.figures() == {"bus_reconnects": 2}


async def test_names_that_left_during_the_loss_are_not_subscribed_again(
    server: Server, wire: OpenWire, open_bus: OpenBus, open_pipe: OpenPipe
) -> None:
    line, pipe = await wire(server.port), await open_pipe(server.url)
    bus = await open_bus(f"redis://:wardgate@127.0.0.1:{line.port}")
    heard = Heard()
    await asyncio.gather(*(bus.subscribe(name, heard) for name in "abc"))
    gone, back = watch(bus)
    line.cut()
    await gone.wait()
    bus.unsubscribe("a")
    await back.wait()
    assert [await listeners(pipe, name) for name in "abc"] == [0, 1, 1]


async def test_names_that_leave_while_all_are_subscribed_again_are_not_kept(
    bus: Bus, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Heard()
    await asyncio.gather(*(bus.subscribe(name, heard) for name in "ab"))
    _, back = watch(bus)
    ask = bus._ask

    def ask_and_leave(link: Link, names: Sequence[bytes]) -> "asyncio.Future[object]":
        asked = ask(link, names)
        bus.unsubscribe("a")
        return asked

    with monkeypatch.context() as patch:
        patch.setattr(bus, "_ask", ask_and_leave)
        bus.reset("test")
        await back.wait()
    await bus.subscribe("fence", heard)
    assert [await listeners(pipe, name) for name in "ab"] == [0, 1]


async def test_subscribe_while_away_raises_and_leaves_nothing(server: Server, open_bus: OpenBus) -> None:
    bus = await open_bus(server.url)
    gone, back = watch(bus)
    heard = Heard()
    await bus.subscribe("stays", heard)
    server.kill()
    await gone.wait()
    with pytest.raises(Unavailable):
        await bus.subscribe("a", heard)
    server.again()
    await back.wait()
    assert bus.hears("stays")
    assert not bus.hears("a")
    await bus.subscribe("a", heard)


async def test_a_loss_before_the_confirmation_raises_and_leaves_nothing(
    server: Server, open_bus: OpenBus, open_pipe: OpenPipe
) -> None:
    bus = await open_bus(server.url, timeout=0.3)
    gone, back = watch(bus)
    server.freeze()
    began = boottime()
    with pytest.raises(Unavailable):
        await bus.subscribe("a", Heard())
    assert boottime() - began < 1
    assert gone.times == 1
    server.thaw()
    await back.wait()
    pipe = await open_pipe(server.url)
    assert await listeners(pipe, "a") == 0


async def test_a_bus_that_alone_goes_silent_is_found_by_its_beat(
    server: Server, wire: OpenWire, open_bus: OpenBus, open_pipe: OpenPipe
) -> None:
    line, pipe = await wire(server.port), await open_pipe(server.url)
    bus = await open_bus(f"redis://:wardgate@127.0.0.1:{line.port}", timeout=0.3)
    heard = Heard()
    await bus.subscribe("a", heard)
    gone, back = watch(bus)
    line.hold()
    began = boottime()
    await gone.wait()
    assert boottime() - began < 3
    assert not bus.hears("a")
    line.flow()
    await back.wait()
    await pipe.call("PUBLISH", "a", "x")
    assert await heard.until(1) == [b"x"]


async def test_a_probe_may_give_it_up(bus: Bus) -> None:
    gone, back = watch(bus)
    bus.reset("deaf")
    assert gone.times == 1
    assert bus.why == "deaf"
    await back.wait()
    assert bus.connected


async def test_output_buffer_overflow_is_a_loss_like_any_other(
    server: Server, wire: OpenWire, open_bus: OpenBus, open_pipe: OpenPipe
) -> None:
    line, pipe = await wire(server.port), await open_pipe(server.url)
    bus = await open_bus(f"redis://:wardgate@127.0.0.1:{line.port}")
    heard = Heard()
    await bus.subscribe("a", heard)
    gone, back = watch(bus)
    await pipe.call("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 0 0")
    line.hold()
    for _ in range(1000):
        if not await pipe.call("PUBLISH", "a", b"x" * 100_000):
            break
    line.flow()
    await gone.wait()
    await back.wait()
    heard.clear()
    assert await pipe.call("PUBLISH", "a", "small") == 1
    assert (await heard.until(1))[-1] == b"small"


async def test_a_name_that_is_not_permitted_is_refused_and_others_are_not(
    server: Server, open_bus: OpenBus, open_pipe: OpenPipe
) -> None:
    pipe = await open_pipe(server.url)
    await pipe.call("ACL", "SETUSER", "w", "on", ">p", "+@all", "~*", "resetchannels", "&mine:*")
    bus = await open_bus(server.url.replace(":wardgate@", "w:p@"))
    heard = Heard()
    await bus.subscribe("mine:a", heard)
    with pytest.raises(Unavailable, match="NOPERM"):
        await bus.subscribe("theirs", heard)
    assert bus.connected
    for steps in range(6):  # also one that leaves and comes back before the refusal is here
        first = asyncio.create_task(bus.subscribe("theirs", heard))
        for _ in range(steps):
            await asyncio.sleep(0)
        first.cancel()
        second = asyncio.create_task(bus.subscribe("theirs", heard))
        outcomes = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(outcomes[1], Unavailable)
        assert not bus.hears("theirs")
    await bus.subscribe("mine:b", heard)
    await pipe.call("PUBLISH", "mine:b", "x")
    assert await heard.until(1) == [b"x"]
    await pipe.call("ACL", "SETUSER", "w", "allchannels")
    await bus.subscribe("theirs", heard)
    assert await pipe.call("PUBLISH", "theirs", "y") == 1
    assert await heard.until(2) == [b"x", b"y"]


async def test_close_forgets_all_and_calls_nobody(redis_url: str, pipe: Pipe) -> None:
    bus = Bus(redis_url)
    await bus.start()
    gone, _ = watch(bus)
    await bus.subscribe("a", Heard())
    waiting = asyncio.create_task(bus.subscribe("b", Heard()))
    await asyncio.sleep(0)
    await bus.close()
    with pytest.raises(Unavailable):
        await waiting
    assert not gone.times
    assert not bus.hears("a")
    with pytest.raises(Unavailable, match="closed"):
        await bus.subscribe("a", Heard())
