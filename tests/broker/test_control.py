"""Messages between nodes on a real Valkey."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from config.clock import boottime
from config.redis import Bus, Pipe, Unavailable
from gateway import control as control_module
from gateway.control import Control, Handler
from tests.broker.conftest import PATIENCE, Heard, Server, Signal

PREFIX = "test"
OpenPipe = Callable[..., Awaitable[Pipe]]
OpenBus = Callable[..., Awaitable[Bus]]
OpenNode = Callable[..., Awaitable[Control]]


def noting(heard: Heard, answer: bytes = b"", *before: bytes) -> Handler:
    """A handler that writes down what it was given."""

    def handle(payload: bytes) -> bytes:
        heard(*before, payload)
        return answer

    return handle


@pytest.fixture
async def open_node(redis_url: str, pipe: Pipe, open_bus: OpenBus) -> AsyncIterator[OpenNode]:
    """Nodes with a bus of their own, which answer "who" by their name."""
    nodes: list[Control] = []

    async def begin(name: str, bus: Bus | None = None, through: Pipe | None = None) -> Control:
        node = Control(through or pipe, bus or await open_bus(redis_url), prefix=PREFIX, node=name)
        node.on["who"] = lambda payload: name.encode() + payload
        await node.start()
        nodes.append(node)
        return node

    yield begin
    for node in nodes:
        await node.close()


async def test_all_are_asked_and_all_answer(open_node: OpenNode) -> None:
    nodes = [await open_node(name) for name in "abc"]
    for node in nodes:
        answers, complete = await node.ask("who", b"!")
        assert answers == {"a": b"a!", "b": b"b!", "c": b"c!"}
        assert complete


async def test_many_questions_at_a_time(open_node: OpenNode) -> None:
    nodes = [await open_node(name) for name in "abc"]
    asked = [nodes[number % 3].ask("who", b"%d" % number) for number in range(100)]
    for number, (answers, complete) in enumerate(await asyncio.gather(*asked)):
        assert answers == {name: name.encode() + b"%d" % number for name in "abc"}
        assert complete


async def test_alone_is_enough(open_node: OpenNode) -> None:
    node = await open_node("a")
    assert await node.ask("who") == ({"a": b"a"}, True)


async def test_handlers_may_take_their_time(open_node: OpenNode) -> None:
    a, b = await open_node("a"), await open_node("b")
    may = asyncio.Event()

    async def slow(payload: bytes) -> bytes:
        await may.wait()
        return b"slow"

    a.on["slow"] = lambda payload: b"quick"
    b.on["slow"] = slow
    asked = asyncio.create_task(a.ask("slow"))
    assert (await a.ask("who")).complete
    assert not asked.done()
    may.set()
    assert await asked == ({"a": b"quick", "b": b"slow"}, True)


async def test_who_does_not_answer_is_waited_for_no_longer_than_asked(open_node: OpenNode) -> None:
    a, b = await open_node("a"), await open_node("b")

    async def never(payload: bytes) -> bytes:
        await asyncio.Event().wait()
        return b""

    a.on["never"] = lambda payload: b"quick"
    b.on["never"] = never
    began = boottime()
    assert await a.ask("never", timeout=0.1) == ({"a": b"quick"}, False)
    assert boottime() - began < 1
    await b.close()
    assert not b._tasks


async def test_a_node_that_is_gone_is_not_waited_for(open_node: OpenNode) -> None:
    a, b = await open_node("a"), await open_node("b")
    await b.close()
    await b._bus.close()
    began = boottime()
    assert await a.ask("who") == ({"a": b"a"}, True)
    assert boottime() - began < 1


async def test_a_failure_elsewhere_is_not_complete_and_one_here_is_raised(open_node: OpenNode) -> None:
    a, b = await open_node("a"), await open_node("b")

    def fail(payload: bytes) -> bytes:
        raise RuntimeError("a handler")

    async def fail_later(payload: bytes) -> bytes:
        raise RuntimeError("a handler")

    for handler in (fail, fail_later):
        a.on["x"], b.on["x"] = (lambda payload: b"fine"), handler
        assert await a.ask("x") == ({"a": b"fine"}, False)
        with pytest.raises(RuntimeError):
            await b.ask("x")
    a.on["only here"] = lambda payload: b""
    assert await a.ask("only here") == ({"a": b""}, False)
    with pytest.raises(LookupError):
        await a.ask("nowhere")
    assert not a._questions


async def test_tell_does_it_here_first_and_then_there(open_node: OpenNode) -> None:
    a, b = await open_node("a"), await open_node("b")
    order = Heard()
    a.on["x"] = noting(order, b"", b"a")
    b.on["x"] = noting(order, b"", b"b")
    await a.tell("x", b"1")
    assert order[0] == (b"a", b"1")
    assert await order.until(2) == [(b"a", b"1"), (b"b", b"1")]
    await b.ask("who")
    assert len(order) == 2


async def test_malformed_messages_are_counted_and_answers_to_nobody_ignored(open_node: OpenNode, pipe: Pipe) -> None:
    a, b = await open_node("a"), await open_node("b")
    good = control_module.VERSION + control_module._encode((control_module.ANSWER, 99, "b", "who", b""))
    for bad in (b"", b"\x01", b"\x02" + good[1:], good[:-3], good + b"x", b"\xff" * 9):
        pipe.call("PUBLISH", f"{PREFIX}:control", bad)
    pipe.call("PUBLISH", f"{PREFIX}:control:a", good)
    unknown = control_module.VERSION + control_module._encode((17, 99, "b", "who", b""))
    pipe.call("PUBLISH", f"{PREFIX}:control", unknown)
    assert (await a.ask("who")).complete
    assert a.figures() == b.figures() == {"bus_malformed": 6}


async def test_what_runs_is_bounded(open_node: OpenNode, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = await open_node("a"), await open_node("b")
    monkeypatch.setattr(control_module, "RUNNING", 2)
    may = asyncio.Event()

    async def wait(payload: bytes) -> bytes:
        await may.wait()
        return b"done"

    a.on["x"], b.on["x"] = (lambda payload: b"quick"), wait
    for _ in range(2):
        await a.tell("x", b"")
    began = boottime()
    assert await a.ask("x", timeout=PATIENCE) == ({"a": b"quick"}, False)  # shed there, and said so
    assert boottime() - began < PATIENCE / 2
    asked = [asyncio.create_task(a.ask("x")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="too many"):
        await a.ask("x")
    may.set()
    await asyncio.gather(*asked)


async def test_a_question_may_be_cancelled_at_every_step(open_node: OpenNode) -> None:
    a, _ = await open_node("a"), await open_node("b")
    for steps in range(12):
        task = asyncio.create_task(a.ask("who"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not a._questions
    assert (await a.ask("who")).complete


async def test_with_the_bus_away_others_are_asked_and_their_answers_missing(
    server: Server, open_node: OpenNode, open_pipe: OpenPipe, open_bus: OpenBus
) -> None:
    pipe, bus = await open_pipe(server.url), await open_bus(server.url)
    a = await open_node("a", bus, pipe)
    b = await open_node("b", await open_bus(server.url), pipe)
    done = Heard()
    a.on["x"] = lambda payload: b"a"
    b.on["x"] = noting(done, b"b")
    back = Signal()
    bus.on_restored.append(back)
    bus.reset("test")
    began = boottime()
    assert await a.ask("x", b"1", timeout=PATIENCE) == ({"a": b"a"}, False)
    assert boottime() - began < PATIENCE / 2
    assert await done.until(1) == [b"1"]
    await back.wait()
    assert (await a.ask("x", b"2")).complete


async def test_with_redis_away_it_is_done_here_and_said(
    server: Server, open_node: OpenNode, open_pipe: OpenPipe, open_bus: OpenBus
) -> None:
    pipe = await open_pipe(server.url)
    a = await open_node("a", await open_bus(server.url), pipe)
    done, gone = Heard(), Signal()
    pipe.on_lost.append(gone)
    a.on["x"] = noting(done)
    server.kill()
    await gone.wait()
    with pytest.raises(Unavailable):
        await a.tell("x", b"1")
    with pytest.raises(Unavailable):
        await a.ask("x", b"2")
    assert done == [b"1", b"2"]


async def test_nothing_is_done_late(
    server: Server, open_node: OpenNode, open_pipe: OpenPipe, open_bus: OpenBus
) -> None:
    pipe = await open_pipe(server.url, timeout=0.3)
    a = await open_node("a", await open_bus(server.url, timeout=30), pipe)
    b = await open_node("b", await open_bus(server.url, timeout=30), pipe)
    done, back = Heard(), Signal()
    a.on["x"] = lambda payload: b""
    b.on["x"] = noting(done)
    pipe.on_restored.append(back)
    server.freeze()
    with pytest.raises(Unavailable):
        await a.tell("x", b"late")
    server.thaw()
    async with asyncio.timeout(PATIENCE):
        await back.wait()
    await a.tell("x", b"now")
    assert await done.until(1) == [b"now"]
