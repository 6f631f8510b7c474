"""An admin acts for a user: marked wherever it shows, without rights, and over with the admin's own session."""

import asyncio
from typing import Any

import msgspec
import pytest
from jwt import decode

from auth.erasure import forget
from config.settings import Settings, with_values
from sessions import log, store
from sessions.log import Entry
from sessions.model import Kind
from tests.auth.conftest import PASSWORD, Answer, House


async def begun(house: House, admin: str, id: str, **more: Any) -> Answer:
    more = {"token": admin, "address": "198.51.100.9", **more}
    return await house.call("POST", f"/admin/users/{id}/impersonation", {"reason": "helps with a bug"}, **more)


async def cast(house: House) -> tuple[str, str, Any, Any]:
    """The admin's token and id, the user as they registered, and the session that the admin has of theirs."""
    admin, user = await house.admin(), (await house.register()).json
    root = (await house.call("GET", "/auth/me", token=admin)).json["user"]["id"]
    answer = await begun(house, admin, user["user"]["id"])
    assert answer.status == 201, answer.text
    return admin, root, user, answer.json


async def test_who_acts_is_marked_wherever_it_shows(house: House) -> None:
    admin, root, user, acting = await cast(house)
    id, sid, token = user["user"]["id"], acting["session"]["sid"], acting["access_token"]
    assert acting["user"]["id"] == id
    claims = decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["act"]) == (id, {"sub": root})
    assert "act" not in decode(user["access_token"], options={"verify_signature": False})
    me = (await house.call("GET", "/auth/me", token=token)).json
    assert (me["impersonated_by"], me["user"]["id"], me["scopes"]) == (root, id, [])
    assert "impersonated_by" not in (await house.call("GET", "/auth/me", token=user["access_token"])).json
    own = (await house.call("GET", "/auth/sessions", token=user["access_token"])).json["items"]
    marked = {item["sid"]: (item.get("impersonated_by"), item["address"], item["device"]) for item in own}
    assert marked[sid] == (root, "", "")
    assert marked[user["session"]["sid"]][0] is None
    listed = (await house.call("GET", f"/admin/sessions?user={id}", token=admin)).json["items"]
    assert {item["sid"]: item["impersonated_by"] for item in listed}[sid] == root
    renewed = await house.call(
        "POST", "/auth/refresh", {"refresh_token": acting["refresh_token"]}, address="198.51.100.9"
    )
    assert decode(renewed.json["access_token"], options={"verify_signature": False})["act"] == {"sub": root}
    change = {"display_name": "Alicia"}
    assert (await house.call("PATCH", "/auth/me", change, token=token)).status == 200
    assert (await house.call("POST", "/auth/logout", {}, token=token)).status == 204
    rows = await house.pool.fetch("select action, actor, detail from audit where sid = $1 order by id", sid)
    assert [row["action"] for row in rows] == ["session.opened", "user.profile_changed", "session.ended"]
    assert {(row["actor"], row["detail"]["act"]) for row in rows} == {(f"user:{id}", f"user:{root}")}
    [row] = await house.pool.fetch("select actor, target, detail from audit where action = 'user.impersonated'")
    assert (row["actor"], row["target"], row["detail"]["session"]) == (f"user:{root}", f"user:{id}", sid)
    export = (await house.call("GET", "/auth/me/export", token=user["access_token"])).text
    assert (root in export, "198.51.100.9" in export) == (True, False)


async def test_an_account_is_changed_by_its_owner_alone(house: House) -> None:
    _, _, user, acting = await cast(house)
    token = acting["access_token"]
    other = "another long password"
    for method, path, body in (
        ("POST", "/auth/password", {"current_password": PASSWORD, "new_password": other}),
        ("POST", "/auth/email", {"new_email": "b@example.org", "current_password": PASSWORD}),
        ("POST", "/auth/totp", {}),
        ("POST", "/auth/totp/confirm", {"code": "000000"}),
        ("DELETE", "/auth/totp", {"code": "000000"}),
        ("POST", "/auth/step-up", {"password": PASSWORD}),
        ("DELETE", "/auth/me", {"password": PASSWORD}),
        ("GET", "/auth/me/export", None),
        ("DELETE", "/auth/sessions?scope=others", None),
        ("DELETE", f"/auth/sessions/{user['session']['sid']}", None),
    ):
        answer = await house.call(method, path, body, token=token)
        assert (answer.status, answer.code) == (403, "impersonated"), path
    assert (await house.login()).status == 200
    assert (await house.call("GET", "/auth/me", token=user["access_token"])).status == 200


async def test_every_route_that_changes_an_account_is_the_owners(house: House) -> None:
    """What is added later is refused unless it says otherwise."""
    from config.http import ROUTES

    open_ = {
        (route.method, route.path)
        for route in house.server.app[ROUTES]
        if route.access == "session" and not route.in_person and route.method != "GET"
    }
    assert open_ == {("POST", "/auth/logout"), ("PATCH", "/auth/me")}
    reads = {route.path for route in house.server.app[ROUTES] if route.in_person and route.method == "GET"}
    assert reads == {"/auth/me/export"}


async def test_nobody_acts_for_who_has_rights_or_is_shut_out(house: House, settings: Settings) -> None:
    admin, root, user, acting = await cast(house)
    id = user["user"]["id"]
    assert (await begun(house, admin, root)).code == "forbidden"
    assert (await begun(house, acting["access_token"], root)).code == "forbidden"
    assert (await begun(house, user["access_token"], root)).code == "forbidden"
    assert (await begun(house, admin, "u_nobody")).code == "not_found"
    key = {"X-API-Key": settings.http_api.key.get_secret_value()}
    assert (await begun(house, "", id, headers=key)).code == "forbidden"
    other = (await house.register("bob@example.org")).json["user"]["id"]
    change = {"roles": ["admin"], "reason": "x"}
    assert (await house.call("PATCH", f"/admin/users/{other}", change, token=admin)).status == 200
    assert (await begun(house, admin, other)).code == "forbidden"
    change = {"banned_until": "2099-01-01T00:00:00Z", "reason": "x"}
    assert (await house.call("PATCH", f"/admin/users/{id}", change, token=admin)).status == 200
    assert (await begun(house, admin, id)).code == "forbidden"


async def over(house: House, token: str) -> str:
    answer = await house.call("GET", "/auth/me", token=token)
    assert (answer.status, answer.code) == (401, "session_ended")
    return str(answer.json["reason"])


async def test_it_ends_with_the_admins_session_and_the_users_own_goes_on(house: House) -> None:
    admin, _, user, acting = await cast(house)
    assert (await house.call("POST", "/auth/logout", {}, token=admin)).status == 204
    assert await over(house, acting["access_token"]) == "impersonation_ended"
    refreshed = await house.call("POST", "/auth/refresh", {"refresh_token": acting["refresh_token"]})
    assert refreshed.code == "session_ended"
    assert (await house.call("GET", "/auth/me", token=user["access_token"])).status == 200


@pytest.mark.parametrize("whose", ["admin", "user"])
async def test_it_ends_when_either_gets_or_loses_rights(house: House, whose: str) -> None:
    admin, root, user, acting = await cast(house)
    boss = (await house.register("boss@example.org")).json["user"]["id"]
    await house.pool.execute("update subjects set roles = '{admin}' where id = $1", boss)
    token = (await house.login("boss@example.org")).json["access_token"]
    id, roles = (root, []) if whose == "admin" else (user["user"]["id"], ["admin"])
    change = {"roles": roles, "reason": "x"}
    assert (await house.call("PATCH", f"/admin/users/{id}", change, token=token)).status == 200
    assert await over(house, acting["access_token"]) == "impersonation_ended"
    assert (await begun(house, admin, user["user"]["id"])).code == "forbidden"


async def test_disabling_the_admin_ends_it_under_the_same_receipt(house: House) -> None:
    _, root, _, acting = await cast(house)
    key = await house.register("boss@example.org")
    await house.pool.execute("update subjects set roles = '{admin}' where id = $1", key.json["user"]["id"])
    token = (await house.login("boss@example.org")).json["access_token"]
    change = {"disabled": True, "reason": "left"}
    answer = await house.call("PATCH", f"/admin/users/{root}", change, token=token)
    assert answer.json["revocation"]["sessions"] == 3  # two logins of the admin, and the one for the user
    assert await over(house, acting["access_token"]) == "impersonation_ended"


async def test_another_one_takes_its_place_and_neither_counts_in_the_cap(house: House, settings: Settings) -> None:
    admin, _, user, first = await cast(house)
    before = await house.pool.fetchval("select count(*) from sessions where ended_at is null")
    second = (await begun(house, admin, user["user"]["id"])).json
    assert await over(house, first["access_token"]) == "session_replaced"
    assert (await house.call("GET", "/auth/me", token=second["access_token"])).status == 200
    assert await house.pool.fetchval("select count(*) from sessions where ended_at is null") == before


async def test_its_end_is_absolute(house: House) -> None:
    _, _, _, acting = await cast(house)
    sid = acting["session"]["sid"]
    life = "select extract(epoch from expires_at - created_at)::float8 from sessions where sid = $1"
    assert await house.pool.fetchval(life, sid) == pytest.approx(1800, abs=1)
    assert acting["session"]["idle_expires_at"] == acting["session"]["expires_at"]


class TestShortLife:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return with_values(settings, {"sessions.absolute": "10m"})

    async def test_it_lives_no_longer_than_the_session_of_the_admin(self, house: House) -> None:
        admin, _, _, acting = await cast(house)
        mine = (await house.call("GET", "/auth/me", token=admin)).json["session"]
        assert acting["session"]["expires_at"] <= mine["expires_at"]


async def test_erasing_the_admin_takes_their_address_out_of_the_users_rows(house: House) -> None:
    _, root, _, acting = await cast(house)
    where = "select count(*) from audit where sid = $1 and address = '198.51.100.9'"
    assert await house.pool.fetchval(where, acting["session"]["sid"]) == 1
    await forget(house.pool, root)
    assert await house.pool.fetchval(where, acting["session"]["sid"]) == 0
    assert await house.pool.fetchval("select count(*) from sessions where address = '198.51.100.9'") == 0


async def test_disabling_two_at_once_ends_each_ones_and_a_user_who_is_disabled_again_ends_no_younger_one(
    house: House,
) -> None:
    _, root, _, acting = await cast(house)
    async with house.revocations.writing(actor="test") as writing:
        for user in ("u_nobody", root):
            writing.append(Entry(kind=Kind.USER, subject=user, reason="test"))
    assert await over(house, acting["access_token"]) == "impersonation_ended"
    admin = str((await house.login("root@example.org")).json["access_token"])
    younger = (await begun(house, admin, acting["user"]["id"])).json
    before = msgspec.structs.replace(Entry(kind=Kind.USER, subject=root, reason="test").draft(""), bound=1)
    async with house.pool.acquire() as connection, connection.transaction():
        await log.write(connection, [log.Group("", [before])])
    assert (await house.call("GET", "/auth/me", token=younger["access_token"])).status == 200


async def test_an_admin_whose_role_was_taken_a_moment_ago_begins_none(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin, user = await house.admin(), (await house.register()).json["user"]["id"]
    original = store.lock_subjects

    async def taken_meanwhile(connection: Any, ids: Any) -> None:
        await house.pool.execute("update subjects set roles = '{}'")
        await original(connection, ids)

    monkeypatch.setattr(store, "lock_subjects", taken_meanwhile)
    answer = await begun(house, admin, user)
    assert (answer.status, answer.json["detail"]) == (403, "needs the scope users:impersonate")


async def test_the_end_of_an_admin_took_the_locks_of_sessions_out_of_their_order(house: House) -> None:
    """Beside another that ended the same ones it was a deadlock."""
    _, root, _, acting = await cast(house)
    younger = (await house.login("root@example.org")).json["session"]["sid"]
    assert younger > acting["session"]["sid"]
    lock = "select from sessions where sid = $1 for update"
    async with house.pool.acquire() as connection, connection.transaction():
        await connection.execute(lock, acting["session"]["sid"])
        ending = asyncio.create_task(house.revocations.revoke(Entry(kind=Kind.USER, subject=root, reason="test")))
        while not await connection.fetchval("select count(*) from pg_locks where not granted"):
            pass
        await connection.execute(f"{lock} nowait", younger)
    await ending
    assert await over(house, acting["access_token"]) == "impersonation_ended"
