"""Real processes that are killed or stopped while sessions end: what clients and receipts show."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.world.conftest import Person, Socket, World, running

pytestmark = pytest.mark.slow


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """One of its own for every test: what is broken here must not meet others."""
    async with running(2) as world:
        yield world


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """SIGSTOP inside the block, SIGCONT after."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def revoke(world: World, admin: Person, target: dict[str, Any], **more: Any) -> tuple[int, Any]:
    body = {"target": target, "reason": "fault", "wait": True, "timeout": 20, **more}
    return await world.call("POST", "/admin/revocations", body, token=admin.access)


def publications(client: Socket) -> list[Any]:
    return [e["push"]["pub"]["data"] for e in client.events if "pub" in e.get("push", {})]


async def test_with_redis_killed_a_revocation_is_still_confirmed_and_nobody_else_is_closed(world: World) -> None:
    admin, victim, bystander = await world.admin(), await world.register(), await world.register()
    await revoke(world, admin, {"sid": (await world.register()).sid})  # acknowledgements count a lease after the start
    gone = [await world.socket(victim.access) for _ in range(4)]
    stays = [await world.socket(bystander.access) for _ in range(4)]
    os.kill(world.info["pids"]["valkey"], signal.SIGKILL)
    status, receipt = await revoke(world, admin, {"sid": victim.sid})
    assert (status, receipt["state"], receipt["by"]) == (201, "confirmed", "acks")
    assert [await s.closed() for s in gone] == [4501] * 4
    assert receipt["elapsed_ms"] < 3000
    assert all(s.code is None for s in stays)
    assert "error" in await stays[0].command(rpc={"method": "none"})


async def test_a_worker_stopped_beyond_its_lease_writes_nothing_of_a_revoked_session(world: World) -> None:
    admin, victim = await world.admin(), await world.register()
    sockets = [await world.socket(victim.access) for _ in range(6)]
    channel = f"chat:{victim.sid}"
    for client in sockets:
        await client.command(subscribe={"channel": channel})
    await world.api("publish", {"channel": channel, "data": "before"})
    for client in sockets:
        await client.until(lambda e: "pub" in e.get("push", {}))
    with stopped(world.info["pids"]["workers"][0]):
        status, receipt = await revoke(world, admin, {"sid": victim.sid})
        assert (status, receipt["state"], receipt["by"]) == (201, "confirmed", "lease")
        await world.api("publish", {"channel": channel, "data": "after"})
    assert [await s.closed(20) for s in sockets] == [4501] * 6
    assert [publications(s) for s in sockets] == [["before"]] * 6
    async with asyncio.timeout(10):  # the counts go on filling after a confirmation by the lease
        while receipt["connections_closed"] != 6:
            await asyncio.sleep(0.1)
            _, receipt = await world.call("GET", f"/admin/revocations/{receipt['id']}", token=admin.access)


async def test_a_worker_stopped_for_less_than_its_lease_closes_nobody(world: World) -> None:
    person = await world.register()
    sockets = [await world.socket(person.access) for _ in range(4)]
    with stopped(world.info["pids"]["workers"][0]):
        await asyncio.sleep(2.5)  # the fault itself: half a lease
    for client in sockets:
        assert "error" in await client.command(rpc={"method": "none"})


async def test_a_worker_killed_during_revocations_leaves_receipts_that_are_confirmed(world: World) -> None:
    admin = await world.admin()
    people = [await world.register() for _ in range(8)]
    sockets = [await world.socket(p.access) for p in people]
    revocations = [asyncio.create_task(revoke(world, admin, {"sid": p.sid})) for p in people]
    os.kill(world.info["pids"]["workers"][0], signal.SIGKILL)
    confirmed = 0
    for person, outcome in zip(people, await asyncio.gather(*revocations, return_exceptions=True), strict=True):
        if isinstance(outcome, BaseException) or outcome[0] >= 500:  # it was with the worker that died: ask again
            outcome = await revoke(world, admin, {"sid": person.sid})
        assert outcome[0] in (201, 404), outcome
        confirmed += outcome[0] == 404 or outcome[1]["state"] == "confirmed"
    assert confirmed == len(people)
    assert all([await s.closed() in (4501, 1006) for s in sockets])
    for person in people:
        assert (await world.call("GET", "/auth/me", token=person.access))[0] == 401


async def test_a_dead_worker_is_started_again(world: World) -> None:
    admin = await world.admin()
    before = await nodes(world, admin)
    os.kill(world.info["pids"]["workers"][0], signal.SIGKILL)
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(aiohttp.ClientError):  # what was with the dead worker is reset
                now = await nodes(world, admin)
                if len(now) == 2 and now != before:
                    break
            await asyncio.sleep(0.2)


async def test_without_the_database_a_revocation_fails_and_every_node_freezes(world: World) -> None:
    admin, person = await world.admin(), await world.register()
    client = await world.socket(person.access)
    channel = f"game:{person.sid}"
    await client.command(subscribe={"channel": channel})
    with stopped(world.info["pids"]["postgres"]), contextlib.ExitStack() as children:
        for pid in descendants(world.info["pids"]["postgres"]):
            children.enter_context(stopped(pid))
        status, body = await revoke(world, admin, {"sid": person.sid})
        assert (status, body["code"]) in {(503, "unavailable"), (503, "outcome_unknown"), (503, "frozen")}
        await ready(world, 503)
        assert (await world.call("GET", "/health"))[0] == 200
        await client.ws.send_str(json.dumps({"id": 99, "rpc": {"method": "none"}}))
        await asyncio.sleep(0.5)  # nothing may come: there is no event to wait for
        assert not [e for e in client.events if e.get("id") == 99]
    await ready(world, 200)
    assert client.code in (None, 4501)


async def nodes(world: World, admin: Person) -> set[str]:
    _, body = await world.call("GET", "/admin/nodes", token=admin.access)
    assert "items" in body, body
    return {item["uid"] for item in body["items"]}


async def ready(world: World, status: int) -> None:
    """Until `/ready` answers so."""
    async with asyncio.timeout(30):
        while (await world.call("GET", "/ready"))[0] != status:  # noqa: ASYNC110 - another process has no event of ours
            await asyncio.sleep(0.1)


def descendants(parent: int) -> list[int]:
    """Children of a process, so that all of PostgreSQL stops."""
    tasks = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in tasks]
