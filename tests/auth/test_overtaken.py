"""7e for rights: what an admin or a backend may is asked again when the deed commits, however long it waited."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.settings import Settings, with_values
from sessions.log import Entry
from sessions.model import Kind
from tests.auth.conftest import Answer, House
from tests.auth.test_scopes import person

ROLES = {"lead": ["users", "keys", "revocations"], "admin": ["*"]}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_values(settings, {"auth.roles": ROLES})


@asynccontextmanager
async def held(house: House, row: str, *values: Any) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """That row is locked for the block, which is given what waits until so many statements wait for a lock."""
    async with house.pool.acquire() as connection, connection.transaction():
        await connection.execute(f"{row} for update", *values)

        async def waiting(count: int = 1) -> None:
            async with asyncio.timeout(10):
                while await connection.fetchval("select count(*) from pg_locks where not granted") < count:
                    pass

        yield waiting


async def made_key(house: House, by: str, *scopes: str) -> tuple[str, dict[str, Any]]:
    """Its id, and what a call by it says."""
    body = {"name": "a backend", "scopes": list(scopes)}
    answer = await house.call("POST", "/admin/keys", body, token=by)
    assert answer.status == 201, answer.text
    return answer.json["key"]["id"], {"headers": {"X-API-Key": answer.json["secret"]}}


def refused(answer: Answer) -> bool:
    return (answer.status, answer.code) == (403, "forbidden") and "ask again" in answer.json["detail"]


@pytest.mark.parametrize("lost", ["revoked", "fewer scopes", "its owner's role", "its owner"])
async def test_7e_a_key_that_was_taken_away_while_its_deed_waited_did_it_all_the_same(house: House, lost: str) -> None:
    root, lead = await house.admin(), await person(house, "lead")
    id, key = await made_key(house, lead["token"], "users")
    victim = (await house.register()).json["user"]["id"]
    async with held(house, "select from subjects where id = $1", victim) as waiting:
        body = {"reason": "x", "disabled": True}
        deed = asyncio.create_task(house.call("PATCH", f"/admin/users/{victim}", body, **key))
        await waiting(1)
        method, path, change = {
            "revoked": ("DELETE", f"/admin/keys/{id}", None),
            "fewer scopes": ("PATCH", f"/admin/keys/{id}", {"scopes": ["users:read"]}),
            "its owner's role": ("PATCH", f"/admin/users/{lead['id']}", {"reason": "x", "roles": []}),
            "its owner": ("PATCH", f"/admin/users/{lead['id']}", {"reason": "x", "disabled": True}),
        }[lost]
        assert (await house.call(method, path, change, token=root)).status in (200, 204)
    assert refused(await deed)
    assert await house.pool.fetchval("select state from subjects where id = $1", victim) == "active"


async def test_7e_an_admin_who_was_demoted_while_a_deed_waited_did_it_all_the_same(house: House) -> None:
    root, lead = await house.admin(), await person(house, "lead")
    id, key = await made_key(house, root, "keys:read")
    async with held(house, "select from api_keys where id = $1", id) as waiting:
        deed = asyncio.create_task(house.call("PATCH", f"/admin/keys/{id}", {"name": "mine"}, token=lead["token"]))
        await waiting(1)
        body = {"reason": "x", "roles": []}
        assert (await house.call("PATCH", f"/admin/users/{lead['id']}", body, token=root)).status == 200
    assert refused(await deed)
    assert await house.pool.fetchval("select name from api_keys where id = $1", id) == "a backend"
    assert (await house.call("GET", "/admin/keys", **key)).status == 200


async def test_7e_a_deed_under_way_outlived_the_end_of_everyones_sessions(house: House) -> None:
    root = await house.admin()
    id, _ = await made_key(house, root, "keys:read")
    async with held(house, "select from api_keys where id = $1", id) as waiting:
        deed = asyncio.create_task(house.call("POST", f"/admin/keys/{id}/rotation", {}, token=root))
        await waiting(1)
        async with house.revocations.writing() as writing:
            writing.append(Entry(kind=Kind.EVERYONE, reason="breach"))
    answer = await deed
    assert (answer.status, answer.code, answer.json["reason"]) == (401, "session_ended", "breach")
    assert await house.pool.fetchval("select previous_hash from api_keys where id = $1", id) is None


async def test_7e_what_writes_no_row_of_the_log_outlived_the_end_of_everyones_sessions(house: House) -> None:
    made = (await house.register()).json
    id = made["user"]["id"]
    async with held(house, "select from users where id = $1", id) as waiting:
        body = {"display_name": "Mallory"}
        deed = asyncio.create_task(house.call("PATCH", "/auth/me", body, token=made["access_token"]))
        await waiting(1)
        async with house.revocations.writing() as writing:
            writing.append(Entry(kind=Kind.EVERYONE, reason="breach"))
    answer = await deed
    assert (answer.status, answer.code) == (401, "session_ended")
    assert await house.pool.fetchval("select display_name from users where id = $1", id) == ""


@pytest.mark.parametrize("many", [False, True], ids=["one", "a role"])
async def test_7e_a_key_that_was_revoked_while_its_order_waited_ended_sessions_all_the_same(
    house: House, many: bool
) -> None:
    root, lead = await house.admin(), await person(house, "lead")
    id, key = await made_key(house, root, "revocations")
    order: dict[str, Any] = {"target": {"role": "lead"} if many else {"user": lead["id"]}, "reason": "x"}
    if many:
        dry = await house.call("POST", "/admin/revocations", order | {"dry_run": True}, **key)
        order["confirm"] = dry.json["confirm"]
    async with held(house, "select from revocation_head") as waiting:
        revoking = asyncio.create_task(house.call("DELETE", f"/admin/keys/{id}", token=root))
        await waiting(1)
        ordering = asyncio.create_task(house.call("POST", "/admin/revocations", order, **key))
        await waiting(2)
    assert (await revoking).status == 204
    assert refused(await ordering)
    assert (await house.call("GET", "/auth/me", token=lead["token"])).status == 200


async def test_7e_whoever_changes_what_they_may_themselves_is_not_in_their_own_way(house: House) -> None:
    root = await house.admin()
    me = (await house.call("GET", "/auth/me", token=root)).json["user"]["id"]
    id, key = await made_key(house, root, "keys")
    assert (await house.call("PATCH", f"/admin/keys/{id}", {"scopes": ["keys:write"]}, **key)).status == 200
    assert (await house.call("DELETE", f"/admin/keys/{id}", **key)).status == 204
    body = {"reason": "x", "roles": ["admin", "lead"]}
    assert (await house.call("PATCH", f"/admin/users/{me}", body, token=root)).status == 200
    assert (await house.call("PATCH", f"/admin/users/{me}", {"reason": "x", "roles": []}, token=root)).status == 200
    assert (await house.call("GET", "/admin/users", token=root)).status == 403
