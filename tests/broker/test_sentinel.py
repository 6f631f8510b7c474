"""The master by Sentinel: found at each connecting, and left when another was elected, though it still answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from config.redis import Bus, Pipe, Unavailable
from config.sentinel import plain
from config.servers import Place
from tests.broker.conftest import Server, Signal
from tests.broker.sentinel import Sentinel, url_by
from tests.broker.test_failover import follow


@pytest.fixture
async def trio(open_server: Callable[[], Server], open_folder: Path) -> "AsyncIterator[Trio]":
    """A master, its replica, and a sentinel that knows both."""
    first, second = open_server(), open_server()
    await follow(second, first)
    sentinel = Sentinel(Place.at(open_folder), first.port)
    await asyncio.to_thread(sentinel.start)
    try:
        async with asyncio.timeout(15):
            while await sentinel.replicas() != 1:  # noqa: ASYNC110 - in another process
                await asyncio.sleep(0.1)
        yield Trio(first, second, sentinel)
    finally:
        await asyncio.to_thread(sentinel.stop)


class Trio:
    """The three servers."""

    def __init__(self, first: Server, second: Server, sentinel: Sentinel) -> None:
        self.first, self.second, self.sentinel = first, second, sentinel


async def port_of(pipe: Pipe) -> int:
    found: dict[bytes, bytes] = await pipe.call("CONFIG", "GET", "port")
    return int(found[b"port"])


async def test_a_failover_is_followed_and_the_old_master_is_left(
    trio: Trio, open_pipe: Callable[..., Awaitable[Pipe]], open_bus: Callable[..., Awaitable[Bus]]
) -> None:
    url = url_by(1, trio.sentinel.port)  # one of them is not there
    pipe, bus = await open_pipe(url), await open_bus(url)
    assert await port_of(pipe) == trio.first.port
    heard, back = asyncio.Event(), Signal()
    await bus.subscribe("x", lambda message: heard.set())
    bus.on_restored.append(back)
    await trio.sentinel.fail_over()
    await back.wait()
    async with asyncio.timeout(10):
        while not pipe.connected or await port_of(pipe) != trio.second.port:  # noqa: ASYNC110 - in another process
            await asyncio.sleep(0.05)
        await pipe.call("PUBLISH", "x", "y")
        await heard.wait()


async def test_a_master_that_does_not_know_of_the_election_is_left(
    trio: Trio, open_bus: Callable[..., Awaitable[Bus]]
) -> None:
    """It is cut off from the sentinels and not from us: here it is stopped, and wakes up when all is over."""
    bus = await open_bus(url_by(trio.sentinel.port), timeout=30.0)  # so patient that only the election tells
    lost = Signal()
    bus.on_lost.append(lost)
    trio.first.freeze()
    try:
        async with asyncio.timeout(8):
            await lost.wait()
        assert "elected" in bus.why
    finally:
        trio.first.thaw()


async def test_without_a_sentinel_it_says_which_master_is_missed() -> None:
    pipe = Pipe(url_by(1))
    with pytest.raises(Unavailable, match="no sentinel tells where 'wardgate' is"):
        await pipe.start(timeout=0.5)


async def test_a_plain_url_for_clients_that_know_no_sentinels(trio: Trio) -> None:
    assert await plain("redis://h:1/2") == "redis://h:1/2"
    url = await plain(url_by(trio.sentinel.port))
    assert url == f"redis://:wardgate@127.0.0.1:{trio.first.port}/0?"
    with pytest.raises(ConnectionError, match="no sentinel"):
        await plain(url_by(1))
