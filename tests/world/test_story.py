"""From login to forced logout, as clients see it: with one worker and with three."""

import asyncio
import uuid

import aiohttp
import pytest

from tests.world.conftest import PASSWORD, World


async def test_people_and_a_backend_hear_each_other(world: World) -> None:
    ada, ben = await world.register(), await world.register()
    one, two = await world.socket(ada.access), await world.socket(ben.access)
    channel = f"chat:{uuid.uuid4().hex[:8]}"
    for client in (one, two):
        assert "subscribe" in await client.command(subscribe={"channel": channel})
    await world.api("publish", {"channel": channel, "data": {"from": "backend"}})
    assert "publish" in await one.command(publish={"channel": channel, "data": {"from": "ada"}})
    for client in (one, two):
        await client.until(lambda e: e.get("push", {}).get("pub", {}).get("data") == {"from": "backend"})
        said = await client.until(lambda e: e.get("push", {}).get("pub", {}).get("data") == {"from": "ada"})
        assert said["push"]["pub"]["info"]["user"] == ada.id


async def test_a_publisher_sees_its_own_publication_before_the_reply(world: World) -> None:
    person = await world.register()
    client = await world.socket(person.access)
    channel = f"chat:{uuid.uuid4().hex[:8]}"
    await client.command(subscribe={"channel": channel})
    for n in range(20):
        await client.command(publish={"channel": channel, "data": n})
        assert [e["push"]["pub"]["data"] for e in client.events if "pub" in e.get("push", {})] == list(range(n + 1))


async def test_a_logout_closes_every_tab_with_the_reason(world: World) -> None:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        email = f"{uuid.uuid4().hex[:10]}@example.org"
        body = {"email": email, "password": PASSWORD}
        status, _ = await world.call("POST", "/auth/register", body, http=browser, Origin=world.url)
        assert status == 201
        tabs = [await world.socket(http=browser) for _ in range(4)]
        status, _ = await world.call("POST", "/auth/logout", {}, http=browser, Origin=world.url)
        assert status == 204
        assert [await tab.closed() for tab in tabs] == [4501] * 4
        for tab in tabs:
            assert tab.reason == "session revoked: logout"
            assert tab.events[-1]["push"]["message"]["data"]["type"] == "session.revoked"


async def test_a_receipt_counts_what_was_closed_on_every_node(world: World) -> None:
    admin, person = await world.admin(), await world.register()
    sockets = [await world.socket(person.access) for _ in range(6)]
    body = {"target": {"user": person.id}, "reason": "taken over", "wait": True}
    status, receipt = await world.call("POST", "/admin/revocations", body, token=admin.access)
    assert (status, receipt["state"], receipt["by"]) == (201, "confirmed", "acks")
    assert [await s.closed() for s in sockets] == [4501] * 6
    assert receipt["connections_closed"] == sum(node["connections_closed"] for node in receipt["nodes"]) == 6
    assert len(receipt["nodes"]) == len(world.info["pids"]["workers"])
    for _ in range(8):  # any worker may answer
        _, again = await world.call("GET", f"/admin/revocations/{receipt['id']}", token=admin.access)
        assert (again["state"], again["by"], again["connections_closed"]) == ("confirmed", receipt["by"], 6)
    late = await world.socket(connect=False)
    await late.ws.send_json({"id": 1, "connect": {"token": person.access}})
    assert (await late.closed(), late.reason) == (4501, "session revoked: taken over")


async def test_the_newest_login_replaces_the_oldest(world: World) -> None:
    person = await world.register()
    first = await world.socket(person.access)
    for _ in range(20):
        await world.login(person.email)
    assert (await first.closed(), first.reason) == (4503, "session replaced")


async def test_a_password_change_ends_the_other_sessions(world: World) -> None:
    person = await world.register()
    other = await world.login(person.email)
    mine, theirs = await world.socket(person.access), await world.socket(other.access)
    body = {"current_password": PASSWORD, "new_password": "another long walk 4"}
    assert (await world.call("POST", "/auth/password", body, token=person.access))[0] == 204
    assert (await theirs.closed(), theirs.reason) == (4501, "session revoked: password_changed")
    assert "rpc" not in await mine.command(rpc={"method": "none"})
    assert mine.code is None


async def test_an_idempotency_key_does_it_once(world: World) -> None:
    admin, person = await world.admin(), await world.register()
    body, key = {"target": {"sid": person.sid}, "reason": "once"}, uuid.uuid4().hex
    first = await world.call("POST", "/admin/revocations", body, token=admin.access, Idempotency_Key=key)
    second = await world.call("POST", "/admin/revocations", body, token=admin.access, Idempotency_Key=key)
    other = {**body, "reason": "another"}
    third = await world.call("POST", "/admin/revocations", other, token=admin.access, Idempotency_Key=key)
    assert (first[0], second[0], third[0]) == (201, 200, 409)
    assert first[1]["id"] == second[1]["id"]
    assert third[1]["code"] == "idempotency_conflict"


async def test_everyone_else_goes_and_the_admin_stays(world: World) -> None:
    admin = await world.admin()
    people = [await world.register() for _ in range(3)]
    sockets, own = [await world.socket(p.access) for p in people], await world.socket(admin.access)
    target = {"target": {"all": True}, "reason": "incident"}
    status, refused = await world.call("POST", "/admin/revocations", target, token=admin.access)
    assert (status, refused["code"]) == (409, "confirm_required")
    status, dry = await world.call("POST", "/admin/revocations", {**target, "dry_run": True}, token=admin.access)
    assert status == 200
    assert dry["sessions"] >= 3
    body = {**target, "confirm": dry["confirm"], "wait": True}
    status, receipt = await world.call("POST", "/admin/revocations", body, token=admin.access)
    assert (status, receipt["state"]) == (201, "confirmed")
    assert [await s.closed() for s in sockets] == [4501] * 3
    assert "rpc" not in await own.command(rpc={"method": "none"})
    assert own.code is None


@pytest.mark.parametrize("command", ["subscribe", "publish", "presence", "history"])
async def test_an_unknown_namespace_is_an_error_and_not_the_end(one_worker: World, command: str) -> None:
    person = await one_worker.register()
    client = await one_worker.socket(person.access)
    reply = await client.command(**{command: {"channel": "nowhere:x", **({"data": 1} if command == "publish" else {})}})
    assert reply["error"] == {"code": 102, "message": "unknown channel"}
    assert client.code is None


async def test_many_logins_at_once_leave_a_socket_prompt(one_worker: World) -> None:
    person = await one_worker.register()
    client = await one_worker.socket(person.access)
    logins = [asyncio.create_task(one_worker.login(person.email)) for _ in range(10)]
    slowest = 0.0
    loop = asyncio.get_running_loop()
    while not all(login.done() for login in logins):
        started = loop.time()
        await client.command(rpc={"method": "none"})
        slowest = max(slowest, loop.time() - started)
    await asyncio.gather(*logins)
    assert slowest < 1.0  # far above what it takes, far below ten hashes in a row
