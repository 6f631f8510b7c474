"""What ends a session ends its sockets, whatever ended it; and whoever comes back later is told the same."""

import asyncio
from typing import Any

from tests.world.conftest import PASSWORD, World, running


async def test_sec_20_reuse_of_a_refresh_token_closes_the_sockets(world: World) -> None:
    person = await world.register()
    sockets = [await world.socket(person.access) for _ in range(3)]
    token = person.refresh
    for _ in range(2):
        status, renewed = await world.call("POST", "/auth/refresh", {"refresh_token": token})
        assert status == 200
        token = renewed["refresh_token"]
    status, refused = await world.call("POST", "/auth/refresh", {"refresh_token": person.refresh})
    assert (status, refused["code"], refused["reason"]) == (401, "session_ended", "token_reuse")
    for socket in sockets:
        assert (await socket.closed(), socket.reason) == (4501, "session revoked: token_reuse")
    status, refused = await world.call("POST", "/auth/refresh", {"refresh_token": token})
    assert (status, refused["code"]) == (401, "session_ended")


async def test_sec_27_disabling_a_user_closes_every_socket_and_every_door(world: World) -> None:
    admin, person = await world.admin(), await world.register()
    other = await world.login(person.email)
    sockets = [await world.socket(each.access) for each in (person, other)]
    change = {"disabled": True, "reason": "abuse"}
    assert (await world.call("PATCH", f"/admin/users/{person.id}", change, token=admin.access))[0] == 200
    for socket in sockets:
        assert (await socket.closed(), socket.reason) == (4502, "account disabled")
    for each in (person, other):
        assert (await world.call("GET", "/auth/me", token=each.access))[1]["code"] == "session_ended"
        assert (await world.call("POST", "/auth/refresh", {"refresh_token": each.refresh}))[0] == 401
    body = {"email": person.email, "password": "a long walk along the harbour 3", "mode": "token"}
    assert (await world.call("POST", "/auth/login", body))[1]["code"] == "invalid_credentials"


async def test_sec_27_a_ban_closes_every_socket_and_the_door(world: World) -> None:
    admin, person = await world.admin(), await world.register()
    sockets = [await world.socket(person.access) for _ in range(3)]
    change = {"banned_until": "2099-01-01T00:00:00Z", "reason": "spam"}
    assert (await world.call("PATCH", f"/admin/users/{person.id}", change, token=admin.access))[0] == 200
    for socket in sockets:
        assert (await socket.closed(), socket.reason) == (4502, "account disabled")
        told = await socket.until(lambda event: "message" in event.get("push", {}))
        assert told["push"]["message"]["data"] | {"at": 0} == {
            "type": "account.disabled",
            "reason": "spam",
            "message": "banned until 2099-01-01T00:00:00.000Z",
            "at": 0,
        }
    late = await world.socket(connect=False)
    await late.ws.send_json({"id": 1, "connect": {"token": person.access}})
    assert (await late.closed(), late.reason) == (4502, "account disabled")


async def test_sec_27_a_deletion_closes_every_socket_and_the_receipt_says_so(world: World) -> None:
    admin, person = await world.admin(), await world.register()
    sockets = [await world.socket(person.access) for _ in range(3)]
    body = {"reason": "asked by letter"}
    status, answer = await world.call("DELETE", f"/admin/users/{person.id}", body, token=admin.access)
    assert (status, answer["revocation"]["sessions"]) == (200, 1)
    for socket in sockets:
        assert (await socket.closed(), socket.reason) == (4502, "account disabled")
    late = await world.socket(connect=False)
    await late.ws.send_json({"id": 1, "connect": {"token": person.access}})
    assert (await late.closed(), late.reason) == (4502, "account disabled")
    again = await world.register(person.email)
    assert again.id != person.id
    socket = await world.socket(again.access)
    status, _ = await world.call("DELETE", "/auth/me", {"password": PASSWORD}, token=again.access)
    assert (status, await socket.closed(), socket.reason) == (200, 4502, "account disabled")


async def test_a_connect_with_an_expired_token_after_the_end_gets_the_code_of_the_end() -> None:
    async with running(1, WARDGATE_AUTH_ACCESS_TOKEN_TTL="1s") as world:
        person, other = await world.register(), await world.register()
        assert (await world.call("POST", "/auth/logout", {}, token=person.access))[0] == 204
        async with asyncio.timeout(10):
            while "connect" in (reply := await answer(world, other.access)):
                pass
        assert reply["error"]["code"] == 109
        late = await world.socket(connect=False)
        await late.ws.send_json({"id": 1, "connect": {"token": person.access}})
        assert (await late.closed(), late.reason) == (4501, "session revoked: logout")


async def answer(world: World, token: str) -> dict[str, Any]:
    """What a connect with `token` is answered."""
    client = await world.socket(connect=False)
    reply = await client.command(connect={"token": token})
    await client.ws.close()
    return reply
