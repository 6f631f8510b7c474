"""Revocations and refreshes of live sessions, over sockets and on real servers. Letters: docs/revocation.md."""

import asyncio
import time
from typing import Any

import pytest

from gateway.driver import RpcCall
from gateway.transports.websocket import WebSocketPeer
from sessions.model import Kind
from sessions.revocations import Again, Entry
from tests.live.conftest import ORIGIN, Raw, Start, Worker, eventually, token
from tests.live.fakes import Lease


async def by_access_token(worker: Worker, access: str, **options: Any) -> Raw:
    raw = await worker.ws(**options)
    raw.connected = (await raw.ask(connect={"token": access})).get("connect", {})
    return raw


@pytest.mark.parametrize("protobuf", [False, True], ids=["json", "protobuf"])
async def test_8a_a_revoked_session_is_told_why_and_closed(worker: Worker, protobuf: bool) -> None:
    person = await worker.person()
    a = await by_access_token(worker, person["access_token"], protobuf=protobuf)
    b = await by_access_token(worker, person["access_token"])
    other = await worker.connect("43")
    await a.ask(subscribe={"channel": "chat:x"})
    await worker.revoke(sid=person["session"]["sid"], reason="stolen laptop", message="Ask the desk")
    assert [await raw.closed() for raw in (a, b)] == [4501, 4501]
    assert a.reason == "session revoked: stolen laptop"
    message = a.events[-1]["push"]["message"]["data"]
    assert (message["type"], message["reason"], message["message"]) == (
        "session.revoked",
        "stolen laptop",
        "Ask the desk",
    )
    assert message["at"].endswith("Z")
    assert other.code is None
    assert (await worker.api("presence", {"channel": "chat:x"}))["result"]["presence"] == {}
    await other.close()


async def test_9b_a_connect_after_the_end_gets_the_code_of_the_close(worker: Worker) -> None:
    person = await worker.person()
    await worker.revoke(sid=person["session"]["sid"], reason="gone")
    a = await worker.ws()
    await a.send({"id": 1, "connect": {"token": person["access_token"]}})
    assert (await a.closed(), a.reason) == (4501, "session revoked: gone")
    assert a.replies == {}
    assert a.events[-1]["push"]["message"]["data"]["type"] == "session.revoked"


async def test_9b_a_revocation_between_the_reading_and_the_block_is_seen(worker: Worker) -> None:
    """The reading is good, the row comes while it is on its way: the block sees it, and nothing goes live."""
    person = await worker.person()
    identity = worker.app.accounts.identity
    connect, sid = identity.connect, person["session"]["sid"]

    async def late(*args: Any, **more: Any) -> Any:
        connected = await connect(*args, **more)
        await worker.revoke(sid=sid, reason="in between")
        return connected

    identity.try_connect = lambda *_: None
    identity.connect = late
    a = await worker.ws()
    await a.send({"id": 1, "connect": {"token": person["access_token"]}})
    assert (await a.closed(), a.reason) == (4501, "session revoked: in between")
    assert worker.hub.connections == 0


async def test_9b_below_the_floor_it_is_read_again_and_refused_if_that_fails_again(worker: Worker) -> None:
    person = await worker.person()
    judge, asked = worker.app.revocations.judge_standing, []

    def below(standing: Any, times: int) -> Any:
        asked.append(standing.position)
        return Again.BELOW_FLOOR if len(asked) <= times else judge(standing)

    worker.app.revocations.judge_standing = lambda standing: below(standing, 2)  # from memory, and once it may wait
    a = await by_access_token(worker, person["access_token"])
    assert a.connected["client"]
    assert len(asked) == 3
    asked.clear()
    worker.app.revocations.judge_standing = lambda standing: below(standing, 3)
    b = await worker.ws()
    await b.send({"id": 1, "connect": {"token": person["access_token"]}})
    assert (await b.closed(), b.reason) == (4001, "not current")
    await a.close()


async def test_9b_a_peer_that_died_while_it_connected_never_goes_live(worker: Worker) -> None:
    person = await worker.person()
    identity, reached, go = worker.app.accounts.identity, asyncio.Event(), asyncio.Event()
    connect = identity.connect

    async def late(*args: Any, **more: Any) -> Any:
        connected = await connect(*args, **more)
        reached.set()
        await go.wait()
        return connected

    identity.try_connect = lambda *_: None
    identity.connect = late
    a = await worker.ws()
    await a.send({"id": 1, "connect": {"token": person["access_token"]}})
    async with asyncio.timeout(5):
        await reached.wait()
    await a.close()
    await eventually(lambda: worker.hub.total == 0)
    go.set()
    await asyncio.sleep(0.05)
    assert worker.hub.connections == 0
    assert list(worker.hub.current.sids) == []


async def test_9c_a_refresh_with_a_token_of_another_session_is_refused(worker: Worker) -> None:
    person = await worker.person()
    body = {"email": person["email"], "password": "correct horse battery staple 7", "mode": "token"}
    _, other = await worker.call("POST", "/auth/login", body, headers={"Origin": ORIGIN})
    a = await by_access_token(worker, person["access_token"])
    assert (await a.ask(refresh={"token": person["access_token"]}))["refresh"]["expires"] is True
    await a.send(a.command(refresh={"token": other["access_token"]}))
    assert (await a.closed(), a.reason) == (3500, "invalid token")


async def test_9c_an_external_token_without_a_sid_moves_the_connection(worker: Worker) -> None:
    a = await worker.ws()
    first, second = token(jti="one"), token(jti="two")
    await a.ask(connect={"token": first})
    (peer,) = worker.hub.members()
    before = peer.sid
    await a.ask(refresh={"token": second})
    assert peer.sid != before
    await worker.revoke(sid=before)
    assert worker.hub.connections == 1
    await worker.revoke(sid=peer.sid)
    assert await a.closed() == 4501


async def test_9c_an_external_token_with_a_sid_is_held_to_it(worker: Worker) -> None:
    a = await worker.ws()
    await a.ask(connect={"token": token(sid="desk-1")})
    assert "refresh" in await a.ask(refresh={"token": token(sid="desk-1")})
    await a.send(a.command(refresh={"token": token(sid="desk-2")}))
    assert await a.closed() == 3500


async def test_9c_a_refresh_that_was_overtaken_by_the_revocation_gives_no_new_life(worker: Worker) -> None:
    person = await worker.person()
    a = await by_access_token(worker, person["access_token"])
    identity = worker.app.accounts.identity
    connect, sid = identity.connect, person["session"]["sid"]

    async def late(*args: Any, **more: Any) -> Any:
        connected = await connect(*args, **more)
        await worker.revoke(sid=sid)
        return connected

    identity.try_connect = lambda *_: None
    identity.connect = late
    await a.send(a.command(refresh={"token": person["access_token"]}))
    assert await a.closed() == 4501
    assert list(a.replies) == [1]
    assert worker.hub.connections == 0


async def test_9c_a_connection_does_not_move_into_a_session_that_has_ended(worker: Worker) -> None:
    a = await worker.ws()
    await a.ask(connect={"token": token(jti="one")})
    identity = worker.app.accounts.identity
    connect = identity.connect

    async def late(*args: Any, **more: Any) -> Any:
        connected = await connect(*args, **more)
        await worker.revoke(sid=connected.standing.sid, reason="in between")
        return connected

    identity.try_connect = lambda *_: None
    identity.connect = late
    await a.send(a.command(refresh={"token": token(jti="two")}))
    assert (await a.closed(), a.reason) == (4501, "session revoked: in between")


async def test_8c_what_runs_for_a_dead_generation_reaches_nobody(worker: Worker) -> None:
    """Its close frames are spread, so its tasks still run: what they wait for comes, and does nothing."""
    raws = [await worker.connect(str(n)) for n in range(5)]
    history, go, waiting = worker.node._history, asyncio.Event(), []
    read = history.read

    async def late(*args: Any, **more: Any) -> Any:
        waiting.append(1)
        await go.wait()
        return await read(*args, **more)

    history.read = late  # type: ignore[method-assign]
    for raw in raws:
        await raw.send(raw.command(subscribe={"channel": "chat:x"}))
    await eventually(lambda: len(waiting) == 5)
    await worker.revoke(kind="everyone", reason="incident", spread_seconds=1.0)
    go.set()
    await asyncio.sleep(0.1)
    assert "chat:x" not in worker.hub.current.channels
    assert [list(raw.replies) for raw in raws] == [[1]] * 5
    assert [await raw.closed() for raw in raws] == [4501] * 5
    await eventually(lambda: worker.node._joining._heard == {})


async def test_the_same_external_token_meets_its_revocation_when_it_comes_again(worker: Worker) -> None:
    mine = token(jti="j1")
    a = await worker.ws()
    await a.ask(connect={"token": mine})
    (peer,) = worker.hub.members()
    await worker.revoke(sid=peer.sid, reason="enough")
    assert await a.closed() == 4501
    b = await worker.ws()
    await b.send({"id": 1, "connect": {"token": mine}})
    assert (await b.closed(), b.reason) == (4501, "session revoked: enough")


async def test_changed_rights_close_with_3014_and_a_new_connect_has_them(worker: Worker) -> None:
    person = await worker.person()
    a = await by_access_token(worker, person["access_token"])
    await worker.app.revocations.revoke(Entry(kind=Kind.RIGHTS, subject=person["user"]["id"]))
    assert (await a.closed(), a.reason) == (3014, "state invalidated")
    b = await by_access_token(worker, person["access_token"])
    assert b.connected["client"]
    await b.close()


async def test_sec_13_a_session_whose_secret_changed_keeps_its_sockets(worker: Worker) -> None:
    person = await worker.person()
    a = await by_access_token(worker, person["access_token"])
    await worker.app.revocations.revoke(Entry(kind=Kind.RIGHTS, sid=person["session"]["sid"]))
    b = await by_access_token(worker, person["access_token"])  # made before the change: the session is read again
    assert worker.hub.connections == 2
    assert "subscribe" in await a.ask(subscribe={"channel": "chat:x"})
    await a.close()
    await b.close()


async def test_8c_everyone_but_one(worker: Worker) -> None:
    people = [await worker.person() for _ in range(4)]
    socks = [await by_access_token(worker, person["access_token"]) for person in people]
    for sock in socks:
        await sock.ask(subscribe={"channel": "chat:x"})
    spared = people[0]["session"]["sid"]
    await worker.revoke(kind="everyone", except_sid=spared, reason="incident")
    assert [await sock.closed() for sock in socks[1:]] == [4501] * 3
    assert worker.hub.connections == 1
    assert "publish" in await socks[0].ask(publish={"channel": "chat:x", "data": {"still": "here"}})
    assert socks[0].pubs("chat:x") == [{"still": "here"}]
    await eventually(lambda: _of(worker, "chat:x") == 1)
    present = (await socks[0].ask(presence={"channel": "chat:x"}))["presence"]["presence"]
    assert list(present) == [socks[0].connected["client"]]
    await socks[0].close()


def _of(worker: Worker, channel: str) -> int:
    place = worker.hub.current.channels.get(channel)
    return place.count if place else 0


async def test_the_last_subscriber_of_a_dead_generation_leaves_the_bus(worker: Worker) -> None:
    person = await worker.person()
    a = await by_access_token(worker, person["access_token"])
    await a.ask(subscribe={"channel": "chat:gone"})
    await worker.revoke(kind="everyone", reason="incident")
    await a.closed()
    await eventually(lambda: worker.node._joining._heard == {})


async def test_58_a_call_in_flight_is_dropped_with_its_session(worker: Worker) -> None:
    begun, dropped = asyncio.Event(), asyncio.Event()

    async def slow(_call: RpcCall) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            dropped.set()
            raise
        return b"1"

    worker.node.on_rpc["slow"] = slow
    person = await worker.person()
    a = await by_access_token(worker, person["access_token"])
    waiting, queued = a.command(rpc={"method": "slow"}), a.command(unsubscribe={"channel": "x"})
    await a.send(waiting, queued)
    await asyncio.wait_for(begun.wait(), 5)
    await worker.revoke(sid=person["session"]["sid"])
    await asyncio.wait_for(dropped.wait(), 5)
    assert await a.closed() == 4501
    assert a.replies.keys().isdisjoint((waiting["id"], queued["id"]))


# -- 4504: lives that end by themselves


async def test_a_cookie_session_ends_by_itself_and_says_so_ahead(start: Start) -> None:
    worker = await start(sessions={"absolute": "2s"})
    await worker.person(mode="cookie")
    a = await worker.ws(headers={"Origin": ORIGIN})
    assert "expires" not in (await a.ask(connect={}))["connect"]
    ahead = await a.push(lambda p: p.get("message", {}).get("data", {}).get("type") == "session.expiring")
    assert ahead["message"]["data"]["reason"] == "absolute"
    assert ahead["message"]["data"]["in_s"] <= 2
    assert (await a.closed(), a.reason) == (4504, "session expired: absolute")
    assert a.events[-1]["push"]["message"]["data"]["type"] == "session.expired"


async def test_a_connection_that_the_server_api_prolonged_outlived_its_session(start: Start) -> None:
    worker = await start(sessions={"absolute": "3s"}, auth={"access_token_ttl": "2s"})
    prolonged = []
    for until in ({}, {"expire_at": int(time.time()) + 900}):
        person = await worker.person()
        prolonged.append(await by_access_token(worker, person["access_token"]))
        await worker.api("refresh", {"user": person["user"]["id"], **until})
        await prolonged[-1].push(lambda p: "refresh" in p)
    for a in prolonged:
        assert (await a.closed(), a.reason) == (4504, "session expired: absolute")


async def test_idleness_counts_commands_and_not_pongs(start: Start) -> None:
    worker = await start(sessions={"idle": "2s"}, client={"ping_interval": "500ms", "pong_timeout": "400ms"})
    await worker.person(mode="cookie")
    a = await worker.ws(headers={"Origin": ORIGIN})
    await a.ask(connect={})
    began = time.monotonic()
    for _ in range(3):
        await asyncio.sleep(0.7)
        await a.ask(unsubscribe={"channel": "x"})
    assert a.code is None
    assert (await a.closed(), a.reason) == (4504, "session expired: idle")
    assert 3.5 <= time.monotonic() - began <= 6.5
    assert {} in a.events


# -- F16


async def test_8a_7d_revoked_with_a_full_queue_it_is_aborted_and_the_memory_is_back(worker: Worker) -> None:
    person = await worker.person()
    a = await by_access_token(worker, person["access_token"])
    await a.ask(subscribe={"channel": "stream:full"})
    (peer,) = worker.hub.members()
    a._task.cancel()
    a.ws._reader._protocol.pause_reading()
    while not peer.paused:
        await worker.api("publish", {"channel": "stream:full", "data": {"x": "x" * 50_000}})
    await worker.api("publish", {"channel": "stream:full", "data": {"x": "x" * 50_000}})
    assert peer.held
    loop = asyncio.get_running_loop()
    began = loop.time()
    await worker.revoke(sid=person["session"]["sid"])
    await eventually(lambda: worker.hub.total == 0)
    assert loop.time() - began <= 0.4
    assert (peer.outbox, peer.held) == (None, 0)
    await a.ws.close()


# -- 10: freeze and thaw with sockets


async def test_10a_frozen_commands_wait_and_are_answered_after_the_thaw(worker: Worker) -> None:
    a = await worker.connect()
    await a.ask(subscribe={"channel": "chat:x"})
    lease, worker.hub.gate.lease = worker.hub.gate.lease, Lease(0.0)
    commands = [a.command(publish={"channel": "chat:x", "data": {"n": n}}) for n in range(3)]
    for command in commands:
        await a.send(command)
    await eventually(lambda: worker.hub.current.parked)
    await worker.api("publish", {"channel": "chat:x", "data": {"from": "elsewhere"}})
    await asyncio.sleep(0.1)
    assert a.pubs("chat:x") == []
    worker.hub.gate.lease = lease
    await a.reply(commands[-1]["id"])
    assert a.pubs("chat:x") == [{"from": "elsewhere"}, {"n": 0}, {"n": 1}, {"n": 2}]
    await a.close()


async def test_10a_reading_stops_at_a_bound_while_frozen_and_nothing_is_lost(worker: Worker) -> None:
    a = await worker.connect()
    worker.node.on_rpc["echo"] = _echo
    (peer,) = worker.hub.members()
    lease, worker.hub.gate.lease = worker.hub.gate.lease, Lease(0.0)
    commands = [a.command(rpc={"method": "echo", "data": {"n": n, "x": "x" * 10_000}}) for n in range(40)]
    sending = asyncio.gather(*(a.send(command) for command in commands))
    assert isinstance(peer, WebSocketPeer)
    transport = peer._transport
    assert transport is not None
    await eventually(lambda: not transport.is_reading())
    assert sum(len(data) for data in peer._parked or ()) < 600_000
    worker.hub.gate.lease = lease
    await sending
    for n, command in enumerate(commands):
        assert (await a.reply(command["id"]))["rpc"]["data"]["n"] == n
    await a.close()


async def _echo(call: Any) -> bytes:
    data: bytes = call.data
    return data


async def test_10a_who_is_revoked_while_frozen_is_closed_and_nothing_of_it_is_done(worker: Worker) -> None:
    person = await worker.person()
    a = await by_access_token(worker, person["access_token"])
    await a.ask(subscribe={"channel": "stream:x"})
    lease, worker.hub.gate.lease = worker.hub.gate.lease, Lease(0.0)
    await a.send(a.command(publish={"channel": "stream:x", "data": {"late": True}}))
    await eventually(lambda: worker.hub.current.parked)
    await worker.revoke(sid=person["session"]["sid"])
    assert await a.closed() == 4501
    worker.hub.gate.lease = lease
    await eventually(lambda: not worker.hub.gate.frozen)
    assert (await worker.api("history", {"channel": "stream:x", "limit": 10}))["result"]["publications"] == []
