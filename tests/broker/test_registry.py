"""The registry on a real Valkey: what each node counts, and what is left of it after a loss."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from config.redis import Pipe, Unavailable
from gateway.keys import Keys
from gateway.registry import Registry, Totals
from tests.broker.conftest import PATIENCE, Server, Signal

PREFIX = "test"
KEYS = Keys(PREFIX)
OpenPipe = Callable[..., Awaitable[Pipe]]
OpenRegistry = Callable[..., Awaitable[Registry]]


@pytest.fixture
async def open_registry(pipe: Pipe) -> AsyncIterator[OpenRegistry]:
    """Nodes that tell when the test says so."""
    opened: list[Registry] = []

    async def begin(node: str, interval: float = 3600, ttl: float = 30, through: Pipe | None = None) -> Registry:
        opened.append(Registry(through or pipe, prefix=PREFIX, node=node, interval=interval, ttl=ttl))
        await opened[-1].start()
        return opened[-1]

    yield begin
    for registry in opened:
        await registry.close()


async def test_connections_are_summed_over_nodes(open_registry: OpenRegistry) -> None:
    a, b = await open_registry("a"), await open_registry("b")
    a.opened("s1", "u1")
    a.opened("s1", "u1")
    a.opened("s2", "")
    b.opened("s1", "u1")
    b.opened("s3", "u2")
    for each in (a, b):
        await each.flush()
    for each in (a, b):
        assert await each.connections(["s1", "s2", "s3", "s4"]) == {"s1": 3, "s2": 1, "s3": 1, "s4": 0}
        assert await each.user_connections(["u1", "u2", "u3"]) == {"u1": 3, "u2": 1, "u3": 0}
        assert await each.totals() == Totals(nodes=2, connections=5, sessions=4, users=3, anonymous=1)
    assert await a.connections([]) == {}
    a.closed("s1", "u1")
    a.closed("s2", "")
    b.closed("s3", "u2")
    for each in (a, b):
        await each.flush()
    assert await b.connections(["s1", "s2", "s3"]) == {"s1": 2, "s2": 0, "s3": 0}
    assert await a.user_connections(["u1", "u2"]) == {"u1": 2, "u2": 0}


async def test_this_nodes_own_counts_are_never_old(open_registry: OpenRegistry) -> None:
    a = await open_registry("a")
    a.opened("s1", "u1")
    assert await a.connections(["s1"]) == {"s1": 1}
    assert await a.user_connections(["u1"]) == {"u1": 1}


async def test_only_what_has_changed_is_told(open_registry: OpenRegistry, pipe: Pipe) -> None:
    a = await open_registry("a")
    for number in range(2500):
        a.opened(f"s{number}", f"u{number % 100}")
    await a.flush()
    names = [KEYS.node("a", kind) for kind in ("sessions", "users")]
    assert [await pipe.call("HLEN", name) for name in names] == [2500, 100]
    a.opened("s1", "u1")
    a.closed("s2", "u2")
    a.opened("passing", "by")
    a.closed("passing", "by")
    commands = [run.args[5:] for run in a._commands(False)]
    assert {tuple(commands[0][n : n + 2]) for n in range(0, len(commands[0]), 2)} == {
        *(("s1", 2), ("s2", 0), ("passing", 0)),
        *(("u1", 26), ("u2", 24), ("by", 0)),
    }
    assert len(commands) == 1


async def test_it_tells_by_itself(open_registry: OpenRegistry) -> None:
    a, b = await open_registry("a", interval=0.01), await open_registry("b")
    a.opened("s1", "u1")
    async with asyncio.timeout(PATIENCE):
        while await b.connections(["s1"]) != {"s1": 1}:
            pass


@pytest.mark.parametrize("loss", ["all", "sessions", "users", "info"])
async def test_what_redis_lost_is_told_again(open_registry: OpenRegistry, pipe: Pipe, loss: str) -> None:
    a, b = await open_registry("a"), await open_registry("b")
    for number in range(1500):
        a.opened(f"s{number}", f"u{number}")
    await a.flush()
    await (pipe.call("FLUSHALL") if loss == "all" else pipe.call("DEL", KEYS.node("a", loss)))
    a.opened("s1", "u1")
    await a.flush()
    assert await b.connections(["s0", "s1", "s1499"]) == {"s0": 1, "s1": 2, "s1499": 1}
    assert await b.user_connections(["u0", "u1", "u1499"]) == {"u0": 1, "u1": 2, "u1499": 1}
    assert {info["uid"] for info in await a.nodes()} >= {"a"}


async def test_what_is_too_much_in_redis_is_corrected(open_registry: OpenRegistry, pipe: Pipe) -> None:
    a, b = await open_registry("a"), await open_registry("b")
    await pipe.call("HSET", KEYS.node("a", "sessions"), "ghost", 7)
    assert await b.connections(["ghost"]) == {"ghost": 7}
    await a.flush()
    assert await b.connections(["ghost"]) == {"ghost": 0}


async def test_a_restart_of_redis_is_repaired(server: Server, open_pipe: OpenPipe, open_registry: OpenRegistry) -> None:
    pipe = await open_pipe(server.url)
    a, b = await open_registry("a", through=pipe), await open_registry("b", through=pipe)
    gone, back = Signal(), Signal()
    pipe.on_lost.append(gone)
    pipe.on_restored.append(back)
    a.opened("s1", "u1")
    await a.flush()
    server.kill()
    await gone.wait()
    a.opened("s2", "u2")
    await a.flush()  # in vain, and nothing is raised
    with pytest.raises(Unavailable):
        await b.connections(["s1"])
    server.again()
    await back.wait()
    await a.flush()
    assert await b.connections(["s1", "s2"]) == {"s1": 1, "s2": 1}


async def test_what_could_not_be_told_is_told_later(open_registry: OpenRegistry, pipe: Pipe) -> None:
    a, b = await open_registry("a"), await open_registry("b")
    back = Signal()
    pipe.on_restored.append(back)
    a.opened("s1", "u1")
    await a.flush()
    a.opened("s1", "u1")
    pipe.reset("test")
    await a.flush()
    await back.wait()
    await a.flush()
    assert await b.connections(["s1"]) == {"s1": 2}


async def test_a_node_that_died_is_not_counted_any_more(open_registry: OpenRegistry, pipe: Pipe) -> None:
    a = await open_registry("a")
    dead = Registry(pipe, prefix=PREFIX, node="dead", ttl=0.05)
    dead.opened("s1", "u1")
    await dead.flush()
    assert await a.connections(["s1"]) == {"s1": 1}
    assert len(await a.nodes()) == 2
    async with asyncio.timeout(PATIENCE):
        while await pipe.call("EXISTS", KEYS.node("dead", "info")):
            pass
    assert await a.connections(["s1"]) == {"s1": 0}
    assert [info["uid"] for info in await a.nodes()] == ["a"]
    await pipe.call("ZADD", KEYS.nodes, pipe.deadline(0) - 3_600_000, "dead")
    await a.flush()
    assert await pipe.call("ZRANGE", KEYS.nodes, 0, -1) == [b"a"]


async def test_a_node_that_closes_is_gone_at_once(open_registry: OpenRegistry, pipe: Pipe) -> None:
    a, b = await open_registry("a"), await open_registry("b")
    b.opened("s1", "u1")
    await b.flush()
    await b.close()
    assert await a.connections(["s1"]) == {"s1": 0}
    assert [info["uid"] for info in await a.nodes()] == ["a"]
    assert not await pipe.call("EXISTS", *(KEYS.node("b", kind) for kind in ("info", "sessions", "users")))


async def test_nodes_tell_of_themselves(open_registry: OpenRegistry, pipe: Pipe) -> None:
    a, b = await open_registry("a"), await open_registry("b")
    a.describe = lambda: {"name": "first", "uid": "not yours", "num_clients": 3}
    a.opened("s1", "u1")
    await a.flush()
    first, second = await b.nodes()
    assert first == {
        "uid": "a",
        "name": "first",
        "num_clients": 3,
        "num_connections": 1,
        "num_sessions": 1,
        "num_users": 1,
        "num_anonymous": 0,
    }
    assert second["uid"] == "b"
    await pipe.call("FLUSHALL")
    assert [info["uid"] for info in await a.nodes()] == ["a"]


@pytest.mark.parametrize("bad", [b"", b"\xff", b"\x80", b"\x81\xa3uid\x01"])
async def test_what_no_version_of_ours_wrote_is_passed_over(
    open_registry: OpenRegistry, pipe: Pipe, bad: bytes
) -> None:
    a = await open_registry("a")
    await pipe.call("ZADD", KEYS.nodes, pipe.deadline(0), "odd")
    await pipe.call("SET", KEYS.node("odd", "info"), bad)
    assert [info["uid"] for info in await a.nodes()] == ["a"]


async def test_a_description_that_fails_is_no_end_of_telling(open_registry: OpenRegistry) -> None:
    a, b = await open_registry("a"), await open_registry("b")

    def fail() -> dict[str, object]:
        raise RuntimeError("a node")

    a.opened("s1", "u1")
    a.describe = fail
    await a.flush()
    a.describe = dict
    await a.flush()
    assert await b.connections(["s1"]) == {"s1": 1}


async def test_counts_may_be_asked_for_and_cancelled_at_every_step(open_registry: OpenRegistry) -> None:
    a = await open_registry("a")
    a.opened("s1", "u1")
    for steps in range(15):
        tasks = [asyncio.create_task(a.connections(["s1"])), asyncio.create_task(a.flush())]
        for _ in range(steps):
            await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        a.opened(f"n{steps}", "")
    await a.flush()
    b = await open_registry("b")
    assert set((await b.connections(["s1", *(f"n{n}" for n in range(15))])).values()) == {1}
