"""Places for connections on a real Valkey: exact over nodes, free again when a node dies, never open without Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from config.redis import Pipe
from gateway.caps import Cap, Caps
from gateway.keys import Keys
from tests.broker.conftest import PATIENCE, Server, Signal

PREFIX = "test"
SECRET = b"a secret of more than 32 bytes, for keys"
OpenPipe = Callable[..., Awaitable[Pipe]]
OpenCaps = Callable[..., Awaitable[Caps]]


@pytest.fixture
async def open_caps(pipe: Pipe) -> AsyncIterator[OpenCaps]:
    opened: list[Caps] = []

    async def begin(node: str, limit: int = 3, through: Pipe | None = None, ttl: float = 30, **options: float) -> Caps:
        opened.append(
            Caps(
                through or pipe,
                prefix=PREFIX,
                node=node,
                secret=SECRET,
                users=limit,
                addresses=limit,
                ttl=ttl,
                **options,
            )
        )
        await opened[-1].start()
        return opened[-1]

    yield begin
    for caps in opened:
        await caps.close()


def users(caps: Caps) -> Cap:
    assert caps.users is not None
    return caps.users


async def taken(cap: Cap, name: str, count: int) -> int:
    """How many of `count` who come at once get a place."""
    async with asyncio.timeout(PATIENCE):
        return sum(await asyncio.gather(*(cap.take(name) for _ in range(count))))


async def until_registered(*all_caps: Caps) -> None:
    async with asyncio.timeout(PATIENCE):
        while not all(caps._registered for caps in all_caps):  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_59_a_cap_is_exact_for_a_burst_over_many_nodes(
    open_caps: OpenCaps, open_pipe: OpenPipe, redis_url: str
) -> None:
    nodes = [await open_caps(f"n{n}", limit=40, through=await open_pipe(redis_url)) for n in range(4)]
    counts = await asyncio.gather(*(taken(users(caps), "u", 30) for caps in nodes))
    assert sum(counts) == 40
    assert await taken(users(nodes[0]), "u", 5) == 0
    assert await taken(users(nodes[0]), "another", 50) == 40
    assert nodes[0].addresses is not None
    assert await taken(nodes[0].addresses, "u", 50) == 40  # a user and an address of the same name are two


async def test_a_place_that_was_given_back_is_anothers(open_caps: OpenCaps) -> None:
    a, b = await open_caps("a"), await open_caps("b")
    assert await taken(users(a), "u", 3) == 3
    assert await taken(users(b), "u", 1) == 0
    users(a).release("u")
    assert await taken(users(a), "x", 1) == 1  # told in the run before this one's answer
    assert await taken(users(b), "u", 2) == 1


async def test_many_come_and_go_and_the_cap_holds_throughout(open_caps: OpenCaps) -> None:
    nodes = [await open_caps(f"n{n}", limit=5) for n in range(3)]
    inside = worst = entered = 0

    async def visitor(cap: Cap) -> None:
        nonlocal inside, worst, entered
        for _ in range(20):
            if await cap.take("u"):
                inside, entered = inside + 1, entered + 1
                worst = max(worst, inside)
                await asyncio.sleep(0)
                inside -= 1
                cap.release("u")

    async with asyncio.timeout(30):
        await asyncio.gather(*(visitor(users(nodes[n % 3])) for n in range(24)))
    assert worst <= 5
    assert entered > 20
    assert await taken(users(nodes[0]), "x", 1) + await taken(users(nodes[1]), "x", 1) == 2
    assert await taken(users(nodes[2]), "u", 9) == 5


async def test_who_is_cancelled_holds_no_place(open_caps: OpenCaps) -> None:
    a = await open_caps("a", limit=2)
    async with asyncio.timeout(PATIENCE):
        tasks = [asyncio.create_task(users(a).take("u")) for _ in range(2)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait(tasks)
        late = asyncio.create_task(users(a).take("u"))  # cancelled when its place is there, before it learns of it
        while sum(a.held.values()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0)
        late.cancel()
        await asyncio.wait([late])
    assert late.cancelled()
    assert await taken(users(a), "u", 2) == 1


async def test_the_places_of_a_node_that_died_are_free_after_its_time(
    open_caps: OpenCaps, open_pipe: OpenPipe, redis_url: str
) -> None:
    through = await open_pipe(redis_url)
    dead = await open_caps("dead", through=through, ttl=0.4, interval=0.05)
    alive = await open_caps("alive")
    assert await taken(users(dead), "u", 3) == 3
    assert await taken(users(alive), "u", 1) == 0
    await dead._tasks.close()  # as a process that was killed: nothing is said
    async with asyncio.timeout(PATIENCE):
        while not await users(alive).take("u"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_node_that_goes_frees_its_places_at_once(open_caps: OpenCaps, pipe: Pipe) -> None:
    a, b = await open_caps("a"), await open_caps("b")
    assert await taken(users(a), "u", 3) == 3
    await a.close()
    assert await taken(users(b), "u", 4) == 3


async def test_a_node_whose_time_was_over_is_counted_again(open_caps: OpenCaps, pipe: Pipe) -> None:
    a, b = await open_caps("a"), await open_caps("b")
    assert await taken(users(a), "u", 2) == 2
    await pipe.call("ZREM", Keys(PREFIX).caps, a._name)  # as if it had been stopped for longer than its lease
    assert await taken(users(a), "u", 1) == 1
    assert await taken(users(b), "x", 1) == 1
    assert await taken(users(b), "u", 1) == 0


async def test_places_that_redis_lost_are_not_given_out_twice(open_caps: OpenCaps, pipe: Pipe) -> None:
    a, b = await open_caps("a", limit=4), await open_caps("b", limit=4)
    assert await taken(users(a), "x", 1) + await taken(users(b), "x", 1) == 2
    assert await taken(users(a), "x", 1) == 1  # so that each has heard of the other
    assert await taken(users(b), "u", 4) == 4
    await pipe.call("FLUSHALL")
    assert await taken(users(a), "u", 4) == 2  # its share: the other has not come back yet
    assert await taken(users(b), "x", 1) == 1
    assert await taken(users(a), "u", 4) == 0


async def test_without_redis_a_node_gives_out_its_share(
    open_caps: OpenCaps, open_pipe: OpenPipe, server: Server
) -> None:
    lost = [Signal(), Signal()]
    pipes = [await open_pipe(server.url) for _ in lost]
    for each, signal in zip(pipes, lost, strict=True):
        each.on_lost.append(signal)
    a, b = [await open_caps(name, limit=4, through=each, interval=0.1) for name, each in zip("ab", pipes, strict=True)]
    assert await taken(users(b), "u", 1) + await taken(users(a), "u", 1) + await taken(users(b), "x", 1) == 3
    server.kill()
    for signal in lost:
        await signal.wait()
    assert await taken(users(a), "u", 9) == 1
    assert await taken(users(b), "u", 9) == 1
    assert await taken(users(a), "new", 9) == 2
    users(a).release("new")
    server.again()
    await until_registered(a, b)
    async with asyncio.timeout(PATIENCE):
        while a._doubt or b._doubt:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await taken(users(a), "u", 9) + await taken(users(b), "u", 9) == 0
    assert await taken(users(b), "new", 9) == 3


async def test_a_redis_that_does_not_answer_refuses_nobody_for_good(
    open_caps: OpenCaps, open_pipe: OpenPipe, server: Server
) -> None:
    through = await open_pipe(server.url, timeout=0.2)
    a = await open_caps("a", limit=2, through=through, interval=0.1)
    assert await taken(users(a), "u", 1) == 1
    server.freeze()
    assert await taken(users(a), "u", 5) == 1
    users(a).release("u")
    server.thaw()
    await until_registered(a)
    assert await taken(users(a), "u", 5) == 1


async def test_nothing_in_redis_names_a_user_or_an_address(open_caps: OpenCaps, pipe: Pipe) -> None:
    a = await open_caps("a")
    assert a.addresses is not None
    assert await users(a).take("u_someone")
    assert await a.addresses.take("192.0.2.77")
    keys = await pipe.call("KEYS", "*")
    hashes = [await pipe.call("HGETALL", key) for key in keys if b":of:" in key]
    found = b" ".join(word for entries in hashes for word in entries)
    assert found
    assert b"someone" not in found
    assert b"192" not in found


async def test_without_a_limit_nothing_runs_and_nothing_is_asked(open_caps: OpenCaps, pipe: Pipe) -> None:
    caps = await open_caps("a", limit=0)
    assert caps.users is caps.addresses is None
    assert not caps._tasks._running
    assert await pipe.call("KEYS", "*") == []
