"""A guest from outside: in without an account, then the same user with one; the socket comes back by itself."""

import uuid

from tests.world.conftest import PASSWORD, World


async def test_a_guest_registers_and_the_sockets_come_back_as_the_same_user(world: World) -> None:
    status, guest = await world.call("POST", "/auth/guest", {"mode": "token"})
    assert status == 201
    sockets = [await world.socket(guest["access_token"]) for _ in range(3)]
    body = {"email": f"g{uuid.uuid4().hex[:12]}@example.org", "password": PASSWORD, "mode": "token"}
    status, person = await world.call("POST", "/auth/register", body, token=guest["access_token"])
    assert status == 201
    assert person["user"]["id"] == guest["user"]["id"]
    assert [await socket.closed() for socket in sockets] == [3014] * 3
    back = await world.socket(person["access_token"])
    assert back.code is None
    old = await world.socket(guest["access_token"], connect=False)
    await old.ws.send_json({"id": 1, "connect": {"token": guest["access_token"]}})
    assert (await old.closed(), old.reason) == (4503, "session replaced")


async def test_a_guest_who_logs_in_is_over(world: World) -> None:
    _, guest = await world.call("POST", "/auth/guest", {"mode": "token"})
    person = await world.register()
    socket = await world.socket(guest["access_token"])
    body = {"email": person.email, "password": PASSWORD, "mode": "token"}
    status, _ = await world.call("POST", "/auth/login", body, token=guest["access_token"])
    assert status == 200
    assert (await socket.closed(), socket.reason) == (4503, "session replaced")
