"""9b alone: a connect that was judged good waits for something, and its session ends meanwhile.

The wait is made long by a Redis that answers nobody for a while: a connection needs a place under the cap of its user.
What the revocation does does not need Redis. Each attack is also made against a gateway without the block, so that it
is known to find that.
"""

import pytest
import redis.asyncio as redis

from gateway.driver import Driver
from gateway.peers import Peer
from sessions.model import Standing
from tests.live.conftest import Raw, Start, Worker, eventually, live_settings, start

__all__ = ["live_settings", "start"]

PAUSE = 0.9
"""Seconds without an answer; less than what a connection of ours takes for the end."""


async def attack(worker: Worker, redis_url: str) -> tuple[Raw, dict[str, object]]:
    """The socket after its session's end was applied and Redis answers again; and who it was."""
    person = await worker.person()
    socket = await worker.ws()
    await eventually(lambda: worker.hub.current.strangers)
    [peer] = worker.hub.current.strangers
    client = redis.Redis.from_url(redis_url)
    try:
        await client.execute_command("CLIENT", "PAUSE", int(PAUSE * 1000), "ALL")  # type: ignore[no-untyped-call]
        await socket.send(socket.command(connect={"token": person["access_token"]}))
        await eventually(lambda: waits(peer))
        await worker.revoke(sid=person["session"]["sid"], reason="stolen")
        assert peer in worker.hub.current.strangers  # it is still under way
        await client.ping()  # answered at the pause's end
    finally:
        await client.aclose()
    return socket, person


def waits(peer: Peer) -> bool:
    return peer.task is not None and not peer.task.done()


def judge_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """9b out: what was good when it was read goes live."""
    try_live = Driver._try_live

    def unjudged(self: Driver, peer: Peer, standing: Standing) -> object:
        revocations = self._parts.revocations
        with pytest.MonkeyPatch.context() as block:
            block.setattr(revocations, "judge_standing", lambda _standing: None)
            return try_live(self, peer, standing)

    monkeypatch.setattr(Driver, "_try_live", unjudged)


async def test_a_session_that_ends_while_its_connect_waits_for_a_place_never_goes_live(
    start: Start, redis_url: str
) -> None:
    worker = await start(client={"user_connection_limit": 5})
    socket, _ = await attack(worker, redis_url)
    assert (await socket.closed(), socket.reason) == (4501, "session revoked: stolen")
    assert socket.replies == {}


async def test_the_attack_finds_a_gateway_without_the_block(
    start: Start, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge_before(monkeypatch)
    worker = await start(client={"user_connection_limit": 5})
    socket, _ = await attack(worker, redis_url)
    assert "connect" in await socket.reply(1)
    assert socket.code is None
    await socket.close()
