"""An admin's sockets for a user: others see who acts, and the end of either session closes them."""

from typing import Any

from tests.world.conftest import World


async def acting(world: World, admin: str, id: str) -> Any:
    status, body = await world.call(
        "POST", f"/admin/users/{id}/impersonation", {"reason": "helps with a bug"}, token=admin
    )
    assert status == 201, body
    return body


async def test_the_end_of_an_impersonation_closes_its_sockets_and_no_others(world: World) -> None:
    admin, person = await world.admin(), await world.register()
    own = await world.socket(person.access)
    first = await acting(world, admin.access, person.id)
    sockets = [await world.socket(first["access_token"]) for _ in range(3)]
    channel = f"chat:{person.sid}"
    for socket in (own, *sockets):
        assert "subscribe" in await socket.command(subscribe={"channel": channel})
    seen = (await own.command(presence={"channel": channel}))["presence"]["presence"].values()
    infos = [info.get("conn_info") for info in seen]
    assert sorted(map(str, infos)) == sorted(map(str, [None] + [{"act": {"sub": admin.id}}] * 3))
    assert (await world.call("POST", "/auth/logout", {}, token=first["access_token"]))[0] == 204
    for socket in sockets:
        assert (await socket.closed(), socket.reason) == (4501, "session revoked: logout")
    second = await acting(world, admin.access, person.id)
    sockets = [await world.socket(second["access_token"]) for _ in range(3)]
    assert (await world.call("POST", "/auth/logout", {}, token=admin.access))[0] == 204
    for socket in sockets:
        assert (await socket.closed(), socket.reason) == (4501, "session revoked: impersonation_ended")
    assert own.code is None
    assert "presence" in await own.command(presence={"channel": channel})
    late = await world.socket(connect=False)
    await late.ws.send_json({"id": 1, "connect": {"token": second["access_token"]}})
    assert (await late.closed(), late.reason) == (4501, "session revoked: impersonation_ended")
