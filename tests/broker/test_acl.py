"""The Redis user of docs/security.md: every part works with it, and it may do nothing else."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from auth.throttle import Throttle
from config.clock import SystemClock
from config.redis import Bus, Pipe, Refused
from gateway.broker import Broker
from gateway.caps import Caps
from gateway.control import Control
from gateway.history import History
from gateway.presence import Presence
from gateway.protocol.commands import ClientInfo
from gateway.registry import Registry
from tests.broker.conftest import Heard, Server

DOCUMENT = Path(__file__).parents[2] / "docs" / "security.md"
PREFIX = "wardgate"


@pytest.fixture
async def limited(server: Server, open_pipe: Callable[..., Awaitable[Pipe]]) -> str:
    """The URL of the user that the document describes."""
    found = re.search(r"```acl\nuser (\S+) (.*)\n```", DOCUMENT.read_text())
    assert found is not None
    name, rules = found.groups()
    admin = await open_pipe(server.url)
    await admin.call("ACL", "SETUSER", name, *rules.replace(">PASSWORD", ">secret").split())
    return re.sub(r"//(?:[^@/]*@)?", f"//{name}:secret@", server.url, count=1)


async def test_every_part_works_with_the_documented_user(
    server: Server,
    limited: str,
    open_pipe: Callable[..., Awaitable[Pipe]],
    open_bus: Callable[..., Awaitable[Bus]],
) -> None:
    admin, pipe, bus = await open_pipe(server.url), await open_pipe(limited), await open_bus(limited)
    assert pipe.server
    await admin.call("SCRIPT", "FLUSH")  # so that sources are sent again

    broker, history, heard = Broker(pipe, bus, prefix=PREFIX, node="1" * 32), History(pipe, prefix=PREFIX), Heard()
    broker.on_publication = heard
    await broker.subscribe("c")
    for _ in range(2):
        await broker.publish("c", b"1", history_size=5, history_ttl=60, meta_ttl=600, idempotency_key="k")
    await broker.publish("c", b"2")
    info = ClientInfo("u", "client", b"", b"")
    await broker.join("c", info)
    await broker.leave("c", info)
    await heard.until(2)
    for reverse in (False, True):
        await history.read("c", since=None, limit=5, reverse=reverse, meta_ttl=600)
    await history.tops({"c": 600})
    await history.remove("c")
    broker.unsubscribe("c")

    presence = Presence(pipe, prefix=PREFIX)
    await presence.add("c", "client", info)
    await presence.prolong({"c": {"client": info, "other": info}})
    assert len(await presence.get("c")) == 2
    assert await presence.stats("c") == (2, 1)
    await presence.remove("c", "client")
    await presence.remove_all({"c": ["other"]})

    registry, other = (Registry(pipe, prefix=PREFIX, node=node, interval=3600) for node in ("n1", "n2"))
    for each in (registry, other):
        await each.start()
        each.opened("sid", "u")
        await each.flush()
    assert await registry.connections(["sid"]) == {"sid": 2}
    await registry.user_connections(["u"])
    await registry.totals()
    await registry.nodes()
    for each in (registry, other):
        each.closed("sid", "u")
        await each.flush()
        await each.close()

    control = Control(pipe, bus, prefix=PREFIX, node="n1")
    control.on["who"] = lambda payload: b"me"
    await control.start()
    await control.ask("who", b"")
    await control.tell("who", b"")
    await control.close()

    for _ in range(2):
        caps = Caps(pipe, prefix=PREFIX, node="n1", secret=b"a secret of more than 32 bytes, for keys", users=2)
        await caps.start()
        assert caps.users is not None
        assert await caps.users.take("u")
        caps.users.release("u")
        assert await caps.users.take("v")
        await caps.close()

    throttle = Throttle(pipe, prefix=PREFIX, secret=b"a secret of more than 32 bytes, for keys", clock=SystemClock())
    await throttle.make("register", "192.0.2.1", 5)
    for right in (False, True):
        async with throttle.attempt("192.0.2.1", "a") as attempt:
            if right:
                await attempt.succeeded()
    async with asyncio.timeout(5):
        await pipe.call("PUBLISH", f"{PREFIX}:revocations", b"x")
    assert await admin.call("ACL", "LOG") == []


@pytest.mark.parametrize(
    "command",
    [
        ("FLUSHALL",),
        ("KEYS", "*"),
        ("CONFIG", "GET", "*"),
        ("GET", "another:key"),
        ("PUBLISH", "another:channel", "x"),
        ("EVAL", "return redis.call('KEYS', '*')", "0"),
        ("ACL", "LIST"),
        ("REPLICAOF", "127.0.0.1", "1"),
    ],
)
async def test_it_may_do_nothing_else(
    limited: str, open_pipe: Callable[..., Awaitable[Pipe]], command: tuple[str, ...]
) -> None:
    pipe = await open_pipe(limited)
    with pytest.raises(Refused, match=r"NOPERM|ACL"):
        await pipe.call(*command)


def test_every_test_that_the_document_names_is_there() -> None:
    tests = "\n".join(file.read_text() for file in (DOCUMENT.parents[1] / "tests").rglob("test_*.py"))
    named = set(re.findall(r"\btest_[a-zA-Z0-9_]+\b(?!\.py)", DOCUMENT.read_text()))
    assert len(named) > 80
    assert [name for name in sorted(named) if f"def {name}(" not in tests and not name.endswith("_")] == []
