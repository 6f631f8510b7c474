"""Who may what on admin routes: roles and API keys alike, by the table of `config.scopes`."""

import re
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from auth import key_keeping
from config.http import ROUTES, Route
from config.jobs import enqueue
from config.loading import SettingsError, load
from config.redis import Pipe
from config.scopes import SCOPES
from config.settings import Settings, with_values
from sessions.revocations import Revocations
from sessions.service import Sessions
from tests.auth.conftest import House, build

ROLES = {f"only{n}": [scope] for n, scope in enumerate(SCOPES)}
ROLES |= {f"not{n}": [other for other in SCOPES if other != scope] for n, scope in enumerate(SCOPES)}
ROLES |= {"support": ["users:read", "sessions"], "lead": ["users"], "exporter": ["users:export"]}
ROLES |= {"worker": ["jobs"], "hooks": ["webhooks"], "readers": ["audit", "users:read"], "admin": ["*"]}


@pytest.fixture
async def house(
    settings: Settings, pool: asyncpg.Pool, revocations: Revocations, sessions: Sessions, pipe: Pipe
) -> AsyncIterator[House]:
    changed = with_values(settings, {"auth.roles": ROLES})
    async with build(changed, pool, revocations, sessions, pipe) as house:
        yield house


async def person(house: House, *roles: str) -> dict[str, Any]:
    """Somebody with these roles: `id`, and the access token of a session."""
    email = f"{'-'.join(roles) or 'nobody'}@example.org"
    made = await house.register(email)
    id = made.json["user"]["id"]
    await house.pool.execute("update subjects set roles = $2 where id = $1", id, list(roles))
    return {"id": id, "token": (await house.login(email)).json["access_token"]}


async def key(house: House, *scopes: str) -> Mapping[str, str]:
    async with house.pool.acquire() as connection, connection.transaction():
        new = key_keeping.NewKey("a backend", scopes)
        made, _ = await key_keeping.create(connection, new, within={"*"}, by={"actor": "test"})
    return {"X-API-Key": made}


def admin_routes(house: House) -> list[Route]:
    mounted: list[Route] = house.server.app[ROUTES]
    return [route for route in mounted if route.access == "admin"]


async def test_each_admin_route_takes_its_own_scope_and_no_other(house: House) -> None:
    routes = admin_routes(house)
    assert {route.scope for route in routes} <= set(SCOPES)
    for n, scope in enumerate(SCOPES):
        asked = [route for route in routes if route.scope == scope]
        others = [one for one in SCOPES if one != scope]
        refused = [{"token": (await person(house, f"not{n}"))["token"]}, {"headers": await key(house, *others)}]
        let_in = [{"token": (await person(house, f"only{n}"))["token"]}, {"headers": await key(house, scope)}]
        for route in asked:
            path, body = re.sub(r"{\w+}", "x", route.path), {"unknown": "field"} if route.body else None
            for credential in refused:
                answer = await house.call(route.method, path, body, **credential)
                assert (answer.status, answer.code) == (403, "forbidden"), (route.method, path)
                assert answer.json["detail"] == f"needs the scope {scope}"
            for credential in let_in:
                answer = await house.call(route.method, path, body, **credential)
                assert answer.status in (200, 404, 422), (route.method, path, answer.text)


async def test_who_i_am_tells_what_i_may(house: House) -> None:
    for roles, scopes in (((), []), (("support",), ["sessions", "users:read"]), (("admin", "support"), ["*"])):
        me = await house.call("GET", "/auth/me", token=(await person(house, *roles))["token"])
        assert set(scopes) <= set(me.json["scopes"])
        assert bool(me.json["scopes"]) == bool(scopes)


async def test_a_scope_of_a_thing_is_all_that_is_done_to_it(house: House) -> None:
    lead = await person(house, "lead")
    assert (await house.call("GET", "/admin/users", token=lead["token"])).status == 200
    change = {"reason": "x", "roles": ["editor"]}
    user = await person(house)
    assert (await house.call("PATCH", f"/admin/users/{user['id']}", change, token=lead["token"])).status == 200


async def test_a_scope_for_users_could_make_an_admin(house: House) -> None:
    lead, user, root = await person(house, "lead"), await person(house), await person(house, "admin")
    for credential in ({"token": lead["token"]}, {"headers": await key(house, "users")}):
        for target, change in (
            (user["id"], {"roles": ["admin"]}),
            (lead["id"], {"roles": ["lead", "admin"]}),
            (root["id"], {"roles": []}),
            (root["id"], {"disabled": True}),
        ):
            answer = await house.call(
                "PATCH",
                f"/admin/users/{target}",
                {"reason": "x", **change},
                **credential,
            )
            assert (answer.status, answer.code) == (403, "forbidden")
            assert answer.json["detail"] == "the role admin may what you may not"
    promoted = await house.call(
        "PATCH", f"/admin/users/{user['id']}", {"reason": "x", "roles": ["admin"]}, token=root["token"]
    )
    assert promoted.status == 200


async def test_a_role_that_is_taken_away_takes_its_scopes_with_it(house: House) -> None:
    root, lead = await person(house, "admin"), await person(house, "lead")
    assert (await house.call("GET", "/admin/users", token=lead["token"])).status == 200
    await house.call("PATCH", f"/admin/users/{lead['id']}", {"reason": "x", "roles": []}, token=root["token"])
    assert (await house.call("GET", "/admin/users", token=lead["token"])).status == 403


def test_a_mistyped_scope_of_a_role_is_told_with_the_nearest() -> None:
    for text, told in (
        ('{"support": ["user:read"]}', "support: there is no scope 'user:read' (did you mean 'users:read'?)"),
        ('{"Support": []}', "'Support' is no name of a role"),
        ('{"support": "users"}', "support is no array of scopes"),
        ('["support"]', "must be a table of roles"),
    ):
        with pytest.raises(SettingsError) as caught:
            load(None, {"WARDGATE_AUTH_ROLES": text}, dev=True)
        assert told in str(caught.value)
    roles = load(None, {"WARDGATE_AUTH_ROLES": '{"support": ["users"]}'}, dev=True).auth.roles
    assert roles == {"admin": ("*",), "support": ("users",)}


def test_the_scopes_are_told_in_one_table() -> None:
    document = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    told = dict(re.findall(r"^\| `([a-z:*-]+)` \| (.+) \|$", document, re.MULTILINE))
    assert told == {**SCOPES, "*": "everything"}


async def test_whoever_kept_webhooks_heard_what_only_readers_of_the_audit_may_know(house: House) -> None:
    root, support = await house.admin(), await person(house, "hooks")
    url = "https://example.org/hook"
    for events, scope in ((["*"], "audit"), (["session.*"], "audit"), (["login.failed"], "users:read")):
        refused = await house.call("POST", "/admin/webhooks", {"url": url, "events": events}, token=support["token"])
        assert (refused.status, refused.code) == (403, "forbidden"), events
        assert scope in refused.json["detail"]
    made = await house.call("POST", "/admin/webhooks", {"url": url}, token=root)
    path, since = f"/admin/webhooks/{made.json['id']}", {"since": "2020-01-01T00:00:00Z"}
    for what, body in (("enable", {}), ("replay", since)):
        assert (await house.call("POST", f"{path}/{what}", body, token=support["token"])).code == "forbidden"
        assert (await house.call("POST", f"{path}/{what}", body, token=root)).status in (200, 204)
    assert (await house.call("POST", f"{path}/test", {}, token=support["token"])).status == 204
    assert (await house.call("DELETE", path, token=support["token"])).status == 204
    reader = await person(house, "hooks", "readers")
    assert (await house.call("POST", "/admin/webhooks", {"url": url}, token=reader["token"])).status == 201


async def test_whoever_may_less_had_all_that_is_kept_of_whoever_may_more(house: House) -> None:
    root, exporter = await house.admin(), await person(house, "exporter")
    admin = (await house.call("GET", "/auth/me", token=root)).json["user"]["id"]
    why, token = {"reason": "asked"}, exporter["token"]
    refused = await house.call("POST", f"/admin/users/{admin}/export", why, token=token)
    assert (refused.status, refused.json["detail"]) == (403, "the role admin may what you may not")
    assert await house.pool.fetchval("select count(*) from audit where action = 'user.exported'") == 0
    nobody = await person(house)
    for id in (nobody["id"], exporter["id"]):
        assert (await house.call("POST", f"/admin/users/{id}/export", why, token=token)).status == 200
    assert (await house.call("POST", f"/admin/users/{exporter['id']}/export", why, token=root)).status == 200


async def test_every_route_by_which_an_admin_acts_on_a_user_refuses_one_who_may_more(house: House) -> None:
    """What is added later is found here: a route that changes something under /admin/users/{id}."""
    root, some = await house.admin(), await person(house, "exporter", "lead")
    admin = (await house.call("GET", "/auth/me", token=root)).json["user"]["id"]
    routes = [r for r in admin_routes(house) if r.path.startswith("/admin/users/{id}") and r.method != "GET"]
    assert len(routes) >= 5
    for route in routes:
        path = route.path.replace("{id}", admin)
        answer = await house.call(route.method, path, {"reason": "x"}, token=some["token"])
        assert (answer.status, answer.code) == (403, "forbidden"), (route.method, path, answer.text)


async def test_whoever_kept_jobs_read_letters_and_what_webhooks_are_told(house: House) -> None:
    root, worker = await house.admin(), await person(house, "worker")
    async with house.pool.acquire() as connection:
        for kind in ("mail", "mailbox", "webhook", "other"):
            await enqueue(connection, kind, [{"to": "ada@example.org"}], delay=600)
    for token, told in ((root, {"mail", "mailbox", "webhook", "other"}), (worker["token"], {"other"})):
        for kind in ("mail", "mailbox", "webhook", "other"):
            [job] = (await house.call("GET", f"/admin/jobs?kind={kind}", token=token)).json["items"]
            assert job["payload"] == ({"to": "ada@example.org"} if kind in told else None), kind
