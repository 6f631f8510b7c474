"""What clients are told when something behind the gateway fails, and what they are refused in between."""

import asyncio
import gc
import secrets
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from config.redis import Unavailable
from gateway.protocol.codes import FORCE_DISCONNECT, Refused
from sessions.errors import Unavailable as DatabaseAway
from tests.live.conftest import Raw, Start, Worker, eventually, token
from tests.live.fakes import Lease

INTERNAL = {"code": 100, "message": "internal server error", "temporary": True}
Fail = Callable[[Any, str, Exception], None]


@pytest.fixture
def fail() -> Iterator[Fail]:
    """Let a method raise until the test ends."""
    changed: list[tuple[Any, str, Any]] = []

    def make(part: Any, name: str, error: Exception) -> None:
        async def failing(*_args: Any, **_more: Any) -> Any:
            raise error

        changed.append((part, name, getattr(part, name)))
        setattr(part, name, failing)

    yield make
    for part, name, original in reversed(changed):
        setattr(part, name, original)


async def member(worker: Worker, channel: str = "chat:x") -> Raw:
    raw = await worker.connect()
    await raw.ask(subscribe={"channel": channel})
    return raw


async def test_f1_with_redis_away_commands_fail_for_now_and_the_connection_stays(worker: Worker, fail: Fail) -> None:
    a = await member(worker)
    away = Unavailable("a test")
    node = worker.node
    for part, name in (
        (node._broker, "publish"),
        (node._presence, "get"),
        (node._presence, "stats"),
        (node._history, "read"),
    ):
        fail(part, name, away)
    for command in (
        {"publish": {"channel": "chat:x", "data": 1}},
        {"presence": {"channel": "chat:x"}},
        {"presence_stats": {"channel": "chat:x"}},
        {"history": {"channel": "chat:x"}},
    ):
        assert (await a.ask(**command))["error"] == INTERNAL
    for name, body in (
        ("publish", {"channel": "chat:x", "data": 1}),
        ("presence", {"channel": "chat:x"}),
        ("presence_stats", {"channel": "chat:x"}),
        ("history", {"channel": "chat:x"}),
    ):
        assert (await worker.api(name, body))["error"]["code"] == 100
    assert a.code is None
    await a.close()


async def test_orders_and_surveys_say_when_the_others_could_not_be_told(worker: Worker, fail: Fail) -> None:
    a = await worker.connect("7")
    away = Unavailable("a test")
    for name in ("tell", "ask"):
        fail(worker.node._control, name, away)
    fail(worker.node._registry, "nodes", away)
    fail(worker.node._history, "remove", away)
    for name, body in (
        ("channels", {}),
        ("info", {}),
        ("history_remove", {"channel": "chat:x"}),
        ("disconnect", {"user": "7"}),
        ("refresh", {"user": "7"}),
    ):
        assert (await worker.api(name, body))["error"]["code"] == 100
    await a.close()


async def test_a_connect_whose_subscriptions_fail_is_closed_to_come_again(worker: Worker, fail: Fail) -> None:
    fail(worker.node._presence, "add", Unavailable("a test"))
    a = await worker.ws()
    await a.send({"id": 1, "connect": {"token": token(), "subs": {"chat:x": {}}}})
    assert await a.closed() == 3004
    await eventually(lambda: worker.hub.connections == 0)
    assert worker.hub.current.channels == {}


async def test_f12_with_the_database_away_a_connect_fails_for_now(worker: Worker, fail: Fail) -> None:
    identity = worker.app.accounts.identity
    identity.try_connect = lambda *_: None
    fail(identity, "connect", DatabaseAway())
    a = await worker.ws()
    assert (await a.ask(connect={"token": token()}))["error"] == INTERNAL
    assert worker.hub.connections == 0
    await a.close()


async def test_the_limit_of_a_user_holds_on_this_node_while_redis_is_away(start: Start, fail: Fail) -> None:
    worker = await start(client={"user_connection_limit": 1})
    fail(worker.node._caps, "_take", Unavailable("a test"))
    a = await worker.connect("1")
    b = await worker.ws()
    await b.send({"id": 1, "connect": {"token": token("1")}})
    assert await b.closed() == 3504
    await a.close()


async def test_the_limit_of_a_user_holds_over_nodes_and_for_those_who_come_at_once(start: Start) -> None:
    one = await start(client={"user_connection_limit": 2})
    two = await start(client={"user_connection_limit": 2})
    raws = [await one.connect("1"), await one.connect("1")]
    late = await two.ws()
    await late.send({"id": 1, "connect": {"token": token("1")}})
    assert await late.closed() == 3504
    many = [await node.ws() for _ in range(6) for node in (one, two)]
    for n, raw in enumerate(many):
        await raw.send({"id": 1, "connect": {"token": token("2", jti=str(n))}})
    await eventually(lambda: all(raw.code or raw.replies for raw in many))
    assert sum(raw.code == 3504 for raw in many) == 10
    for raw in raws + many:
        await raw.close()
    again = await two.connect("1")  # their places are free
    await again.close()


async def test_a_connect_that_fails_after_it_took_a_place_gives_it_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await start(client={"user_connection_limit": 1})

    def broken(_standing: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(worker.app.revocations, "judge_standing", broken)
        a = await worker.ws()
        assert (await a.ask(connect={"token": token("1")}))["error"] == INTERNAL
    b = await worker.connect("1")
    for raw in (a, b):
        await raw.close()


async def test_59_a_half_open_connection_frees_its_places_when_its_ping_is_not_answered(start: Start) -> None:
    worker = await start(
        client={
            "user_connection_limit": 1,
            "connections_per_address": 1,
            "ping_interval": "1s",
            "pong_timeout": "300ms",
        }
    )
    silent = await worker.connect("1", pong=False)
    refused = await worker.ws()
    assert await refused.closed() == 3504
    await eventually(lambda: worker.hub.total == 0, 10)
    assert worker.node._caps.held == {}
    b = await worker.connect("1")
    for raw in (silent, b):
        await raw.close()


async def test_what_a_handler_raises_is_answered(worker: Worker) -> None:
    async def refuse(_call: Any) -> bytes:
        raise Refused(400, "not today")

    async def break_(_call: Any) -> bytes:
        raise ZeroDivisionError

    worker.node.on_rpc |= {"refuse": refuse, "break": break_}
    a = await worker.connect()
    assert (await a.ask(rpc={"method": "refuse"}))["error"] == {"code": 400, "message": "not today"}
    assert (await a.ask(rpc={"method": "break"}))["error"] == INTERNAL
    assert (await worker.api("rpc", {"method": "nothing"}))["error"]["code"] == 104
    assert worker.node.figures()["commands_failed"] == 2
    await a.close()


async def test_a_refreshed_token_with_other_channels_makes_the_client_come_again(shared: Worker) -> None:
    one, two = (f"stream:{secrets.token_hex(4)}" for _ in range(2))
    a = await shared.connect(claims={"channels": [one]})
    assert "refresh" in await a.ask(refresh={"token": token(channels=[one])})
    await a.send(a.command(refresh={"token": token(channels=[one, two])}))
    assert (await a.closed(), a.reason) == (3010, "insufficient state")
    b = await shared.connect(claims={"channels": [one]})
    await b.send(b.command(refresh={"token": token()}))
    assert await b.closed() == 3010


async def test_bad_subscription_tokens_on_refresh(shared: Worker) -> None:
    name = f"${secrets.token_hex(4)}"
    a = await shared.connect()
    await a.ask(subscribe={"channel": name, "token": token(channel=name, ttl=60)})
    expired = await a.ask(sub_refresh={"channel": name, "token": token(channel=name, ttl=-9)})
    assert expired["error"]["code"] == 110
    await a.send(a.command(sub_refresh={"channel": name, "token": "garbage"}))
    assert await a.closed() == 3500


async def test_a_subscription_token_overrides_the_namespace(shared: Worker) -> None:
    name = f"$chat:{secrets.token_hex(4)}"
    override = {"presence": {"value": False}, "force_recovery": {"value": False}, "force_positioning": {"value": False}}
    a = await shared.connect()
    got = await a.ask(subscribe={"channel": name, "token": token(channel=name, override=override, info={"x": 1})})
    assert "recoverable" not in got["subscribe"]
    assert "positioned" not in got["subscribe"]
    assert (await a.ask(presence={"channel": name}))["presence"]["presence"] == {}
    await a.close()


async def test_66_a_backends_subscribe_can_bring_what_was_missed(worker: Worker) -> None:
    for n in (1, 2, 3):
        await worker.api("publish", {"channel": "chat:x", "data": n})
    epoch = (await worker.api("history", {"channel": "chat:x"}))["result"]["epoch"]
    a = await worker.connect("7")
    since = {"offset": 1, "epoch": epoch}
    await worker.api(
        "subscribe", {"user": "7", "channel": "chat:x", "recover_since": since, "expire_at": 4_000_000_000}
    )
    await a.until(lambda: a.pubs("chat:x") == [2, 3])
    kinds = [list(m["push"])[1] for m in a.heard if "push" in m]
    assert kinds[:3] == ["subscribe", "pub", "pub"]
    await a.close()


async def test_10d_a_frozen_node_sends_its_peers_to_one_that_is_fresh(start: Start) -> None:
    one = await start(sessions={"hold": "1s"})
    two = await start()
    a, b = await one.connect("1"), await two.connect("2")
    lease, one.hub.gate.lease = one.hub.gate.lease, Lease(0.0)
    assert (await a.closed(20), a.reason) == (4001, "not current")
    one.hub.gate.lease = lease
    assert b.code is None
    await b.close()


async def test_10d_a_frozen_node_that_knows_of_no_other_holds_its_peers(start: Start) -> None:
    one = await start(sessions={"hold": "500ms"})
    a = await one.connect("1")
    lease, one.hub.gate.lease = one.hub.gate.lease, Lease(0.0)
    await asyncio.sleep(3.0)
    assert a.code is None
    one.hub.gate.lease = lease
    assert "subscribe" in await a.ask(subscribe={"channel": "chat:x"})
    await a.close()


async def test_8a_a_command_that_was_ended_before_it_began_left_a_warning_among_the_logs(worker: Worker) -> None:
    a = await member(worker)
    (peer,) = worker.hub.members()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        worker.hub.receive(peer, b'{"id":7,"publish":{"channel":"chat:x","data":1}}')
        worker.hub.close(peer, FORCE_DISCONNECT)
        assert await a.closed() == 3503
        gc.collect()
    assert [str(warning.message) for warning in heard if "never awaited" in str(warning.message)] == []
