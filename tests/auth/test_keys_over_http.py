"""API keys, service accounts and signing keys as admins keep them over HTTP."""

import csv
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from auth.personal_data import PersonalData
from config.database import Pool
from config.http import rfc3339
from config.settings import Settings, with_values
from sessions import log
from sessions.log import Entry
from sessions.model import Kind
from tests.auth.conftest import Answer, House
from tests.auth.test_scopes import person

ROLES = {"keeper": ["keys", "users:read", "audit"], "reader": ["keys:read"]}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_values(settings, {"auth.roles": ROLES})


async def make(house: House, credential: Mapping[str, Any], *scopes: str, **more: Any) -> Answer:
    body = {"name": "a backend", "scopes": list(scopes), **more}
    return await house.call("POST", "/admin/keys", body, **credential)


async def opens(house: House, key: str, path: str = "/admin/users") -> int:
    return (await house.call("GET", path, headers={"X-API-Key": key})).status


def at(house: House, seconds: float) -> str:
    return rfc3339(house.revocations.database_now() + seconds)


@pytest.fixture
async def root(house: House) -> dict[str, Any]:
    return {"token": await house.admin()}


async def test_a_key_from_its_making_to_its_end(house: House, root: dict[str, Any]) -> None:
    expires_at = at(house, 3600)
    made = await make(house, root, "users:read", "audit", expires_at=expires_at)
    assert made.status == 201, made.text
    secret, key = made.json["secret"], made.json["key"]
    me = (await house.call("GET", "/auth/me", **root)).json["user"]["id"]
    assert (key["created_by"], key["owner"], key["expires_at"]) == (f"user:{me}", me, expires_at)
    assert (await opens(house, secret), await opens(house, secret, "/admin/sessions")) == (200, 403)
    path = f"/admin/keys/{key['id']}"
    changed = await house.call("PATCH", path, {"name": "other", "scopes": ["sessions"], "expires_at": None}, **root)
    assert (changed.json["name"], changed.json["scopes"], changed.json["expires_at"]) == ("other", ["sessions"], None)
    assert (await opens(house, secret), await opens(house, secret, "/admin/sessions")) == (403, 200)
    for task in house.accounts.api_keys._tasks._running.copy():
        await task
    [listed] = [k for k in (await house.call("GET", "/admin/keys", **root)).json["items"] if k["id"] == key["id"]]
    assert listed["last_used_at"] is not None
    assert secret not in str(listed)
    assert (await house.call("DELETE", path, **root)).status == 204
    assert await opens(house, secret, "/admin/sessions") == 401
    for method, body in (("DELETE", None), ("PATCH", {"name": "x"})):
        assert (await house.call(method, path, body, **root)).code == "not_found"
    rows = (await house.call("GET", f"/admin/audit?action=api_key&target=key:{key['id']}", **root)).json["items"]
    assert [row["action"] for row in rows] == ["api_key.revoked", "api_key.changed", "api_key.created"]
    assert (await house.call("GET", "/admin/keys?revoked=true", **root)).json["items"][0]["id"] == key["id"]
    assert (await house.call("GET", "/admin/keys?revoked=false", **root)).json["items"] == []


async def test_nobody_gives_a_key_more_than_they_have(house: House, root: dict[str, Any]) -> None:
    keeper = await person(house, "keeper")
    credential = {"token": keeper["token"]}
    for scopes in (["*"], ["users"], ["users:write"], ["users:read", "sessions"]):
        refused = await make(house, credential, *scopes)
        assert (refused.status, refused.code) == (403, "forbidden"), scopes
        assert "which you lack" in refused.json["detail"]
    own = await make(house, credential, "users:read", "keys")
    assert own.status == 201
    path = f"/admin/keys/{own.json['key']['id']}"
    assert (await house.call("PATCH", path, {"scopes": ["users"]}, **credential)).code == "forbidden"
    by_key = {"headers": {"X-API-Key": own.json["secret"]}}
    assert (await make(house, by_key, "audit")).code == "forbidden"
    other = (await make(house, root, "*")).json["key"]["id"]
    # A new secret of a key is what the key may; so is its change, which may make it live longer.
    assert (await house.call("POST", f"/admin/keys/{other}/rotation", {}, **credential)).code == "forbidden"
    assert (await house.call("PATCH", f"/admin/keys/{other}", {"name": "mine"}, **credential)).code == "forbidden"
    assert (await house.call("DELETE", f"/admin/keys/{other}", **credential)).status == 204
    reader = await person(house, "reader")
    assert (await house.call("GET", "/admin/keys", token=reader["token"])).status == 200
    assert (await make(house, {"token": reader["token"]}, "keys:read")).json["detail"] == "needs the scope keys:write"


async def test_what_a_key_cannot_be_is_told(house: House, root: dict[str, Any]) -> None:
    for body, field, words in (
        ({"scopes": ["user:read"]}, "scopes", "did you mean 'users:read'?"),
        ({"scopes": []}, "scopes", ""),
        ({"scopes": ["audit"] * 65}, "scopes", ""),
        ({"name": ""}, "name", ""),
        ({"name": "a\tb"}, "name", "printable"),
        ({"expires_at": at(house, -1)}, "expires_at", "yet to come"),
        ({"expires_at": "0001-01-01T00:00:00+14:00"}, "expires_at", "yet to come"),
        ({"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at", "9999"),  # it broke every list of keys
        ({"service_account": "nobody"}, "service_account", "none of this name"),
    ):
        refused = await make(house, root, **{"scopes": ["audit"], **body})
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, field), body
        assert words in refused.json["errors"][0]["message"]


async def test_a_rotated_key_works_beside_its_successor_until_the_overlap_is_over(
    house: House, root: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await make(house, root, "users:read")).json
    first, path = made["secret"], f"/admin/keys/{made['key']['id']}/rotation"
    assert await opens(house, first) == 200
    rotated = await house.call("POST", path, {"overlap_seconds": 600}, **root)
    assert rotated.status == 200, rotated.text
    second = rotated.json["secret"]
    until = datetime.fromisoformat(rotated.json["key"]["previous_until"]).astimezone(UTC).timestamp()
    assert 590 < until - house.revocations.database_now() <= 600
    assert (await opens(house, first), await opens(house, second)) == (200, 200)
    third = (await house.call("POST", path, {"overlap_seconds": 600}, **root)).json["secret"]
    assert [await opens(house, key) for key in (first, second, third)] == [401, 200, 200]
    now = house.revocations.database_now
    monkeypatch.setattr(house.revocations, "database_now", lambda: now() + 601)
    # Only what was read of a key is judged here; tokens of this process would be too old by then as well.
    assert [await opens(house, key) for key in (second, third)] == [401, 200]
    monkeypatch.undo()
    fourth = (await house.call("POST", path, {"overlap_seconds": 0}, **root)).json["secret"]
    assert [await opens(house, key) for key in (second, third, fourth)] == [401, 401, 200]


async def test_sec_27_a_key_may_no_more_than_who_made_it_and_falls_with_them(
    house: House, root: dict[str, Any]
) -> None:
    keeper = await person(house, "keeper")
    made = (await make(house, {"token": keeper["token"]}, "users:read", "keys")).json
    child = (await make(house, {"headers": {"X-API-Key": made["secret"]}}, "users:read")).json
    assert child["key"]["owner"] == keeper["id"]
    keys = made["secret"], child["secret"]
    assert [await opens(house, key) for key in keys] == [200, 200]
    path = f"/admin/users/{keeper['id']}"
    await house.call("PATCH", path, {"roles": ["reader"], "reason": "moved"}, **root)
    assert [await opens(house, key) for key in keys] == [403, 403]
    await house.call("PATCH", path, {"roles": ["keeper"], "reason": "back"}, **root)
    assert [await opens(house, key) for key in keys] == [200, 200]
    for ended in ({"disabled": True}, {"disabled": False, "banned_until": at(house, 3600)}):
        assert (await house.call("PATCH", path, {**ended, "reason": "gone"}, **root)).status == 200
        assert [await opens(house, key) for key in keys] == [401, 401]


async def test_keys_go_with_who_made_them_and_are_theirs_to_know(house: House, root: dict[str, Any]) -> None:
    keeper = await person(house, "keeper")
    made = (await make(house, {"token": keeper["token"]}, "users:read")).json
    export = await house.call("GET", "/auth/me/export", token=keeper["token"])
    [told] = msgspec.json.decode(export.text, type=PersonalData).api_keys
    assert (told.id, told.scopes) == (made["key"]["id"], ["users:read"])
    assert made["secret"] not in export.text
    assert await opens(house, made["secret"]) == 200
    gone = await house.call("DELETE", f"/admin/users/{keeper['id']}", {"reason": "asked"}, **root)
    assert gone.status == 200, gone.text
    assert await opens(house, made["secret"]) == 401
    assert await house.pool.fetchval("select count(*) from api_keys") == 0


async def test_a_service_account_is_disabled_with_all_its_keys(house: House, root: dict[str, Any]) -> None:
    assert (await house.call("POST", "/admin/service-accounts", {"name": "billing"}, **root)).status == 201
    taken = await house.call("POST", "/admin/service-accounts", {"name": "billing"}, **root)
    assert (taken.status, taken.json["errors"][0]["field"]) == (422, "name")
    one = (await make(house, root, "*", service_account="billing")).json
    headers = {"headers": {"X-API-Key": one["secret"]}}
    two = (await make(house, headers, "users:read")).json  # what it makes is its own
    assert (two["key"]["service_account"], two["key"]["owner"]) == ("billing", None)
    assert two["key"]["created_by"] == "service:billing"
    rows = (await house.call("GET", "/admin/audit?actor=service:billing", **root)).json["items"]
    assert [row["action"] for row in rows] == ["api_key.created"]
    keys = one["secret"], two["secret"]
    assert [await opens(house, key) for key in keys] == [200, 200]
    path = "/admin/service-accounts/billing"
    disabled = await house.call("PATCH", path, {"disabled": True, "reason": "a leak"}, **root)
    assert (disabled.json["keys"], disabled.json["disabled_at"] is None) == (2, False)
    assert [await opens(house, key) for key in keys] == [401, 401]
    assert (await make(house, root, "*", service_account="billing")).status == 422
    again = await house.call("PATCH", path, {"disabled": False, "reason": "mended"}, **root)
    assert again.json["disabled_at"] is None
    assert [await opens(house, key) for key in keys] == [200, 200]
    nobody = await house.call("PATCH", "/admin/service-accounts/x", {"disabled": True, "reason": "x"}, **root)
    assert nobody.code == "not_found"
    page = await house.call("GET", "/admin/service-accounts?limit=1", **root)
    assert ([account["name"] for account in page.json["items"]], page.json["next"]) == (["billing"], "")


async def test_whoever_kept_keys_could_enable_a_leaked_one_that_may_more_than_they(
    house: House, root: dict[str, Any]
) -> None:
    assert (await house.call("POST", "/admin/service-accounts", {"name": "billing"}, **root)).status == 201
    leaked = (await make(house, root, "*", service_account="billing")).json["secret"]
    path, enable = "/admin/service-accounts/billing", {"disabled": False, "reason": "mended"}
    keeper = {"token": (await person(house, "keeper"))["token"]}
    assert (await house.call("PATCH", path, {"disabled": True, "reason": "a leak"}, **keeper)).status == 200
    refused = await house.call("PATCH", path, enable, **keeper)
    assert (refused.status, refused.code, await opens(house, leaked)) == (403, "forbidden", 401)
    assert (await house.call("PATCH", path, enable, **root)).status == 200


async def test_a_key_outlived_who_made_it_by_making_another(house: House, root: dict[str, Any]) -> None:
    assert (await house.call("POST", "/admin/service-accounts", {"name": "billing"}, **root)).status == 201
    soon, later = at(house, 3600), at(house, 7200)
    made = (await make(house, root, "keys", expires_at=soon)).json
    own: dict[str, Any] = {"headers": {"X-API-Key": made["secret"]}}
    path = f"/admin/keys/{made['key']['id']}"
    for expires_at in (None, later):
        assert (await make(house, own, "keys:read", expires_at=expires_at)).code == "forbidden"
        assert (await house.call("PATCH", path, {"expires_at": expires_at}, **own)).code == "forbidden"
    assert (await make(house, own, "keys:read", expires_at=soon, service_account="billing")).code == "forbidden"
    assert (await make(house, own, "keys:read", expires_at=soon)).status == 201
    assert (await house.call("PATCH", path, {"name": "another"}, **own)).status == 200
    assert (await house.call("PATCH", path, {"expires_at": later}, **root)).status == 200


async def test_keys_are_listed_page_by_page_and_as_files(house: House, root: dict[str, Any]) -> None:
    ids = [(await make(house, root, "audit", name=f"key {n}")).json["key"]["id"] for n in range(3)]
    found, after = [], ""
    while True:
        page = (await house.call("GET", f"/admin/keys?limit=2&after={after}", **root)).json
        found += [key["id"] for key in page["items"]]
        after = page["next"]
        if not after:
            break
    assert found == ids
    assert (await house.call("GET", "/admin/keys?after=x", **root)).status == 422
    file = await house.call("GET", "/admin/keys", headers={"Accept": "text/csv"}, **root)
    assert [row["id"] for row in csv.DictReader(io.StringIO(file.text))] == ids


async def test_signing_keys_are_listed_and_rotated(house: House, root: dict[str, Any]) -> None:
    listed = (await house.call("GET", "/admin/signing-keys", **root)).json["items"]
    assert [key["state"] for key in listed] == ["active", "next"]
    soon = await house.call("POST", "/admin/signing-keys/rotation", {}, **root)
    assert (soon.status, soon.json["errors"][0]["field"]) == (422, "now")
    done = (await house.call("POST", "/admin/signing-keys/rotation", {"now": True}, **root)).json["items"]
    assert [key["state"] for key in done] == ["retiring", "active", "next"]
    assert house.accounts.keys.active.kid == done[1]["kid"] == listed[1]["kid"]
    rows = (await house.call("GET", "/admin/audit?action=signing_key", **root)).json["items"]
    assert [row["detail"]["kid"] for row in rows] == [done[1]["kid"]]


async def test_a_failover_that_lost_a_keys_revocation_left_it_good_once_its_row_was_forgotten(pool: Pool) -> None:
    async with pool.acquire() as connection, connection.transaction():
        id = "0" * 32
        await connection.execute(
            "insert into api_keys (id, hash, name, scopes) values ($1, $2, 'x', '{}')", id, b"h" * 32
        )
        row = Entry(kind=Kind.API_KEY, api_key=id).draft("")
        await log.put_back(connection, [row])
        assert await connection.fetchval("select revoked_at is not null from api_keys where id = $1", id)


async def test_a_key_outlived_its_end_by_another_that_it_rotated_or_gave_its_scopes_to(
    house: House, root: dict[str, Any]
) -> None:
    soon = (await make(house, root, "keys", "audit", expires_at=at(house, 3600))).json
    own: dict[str, Any] = {"headers": {"X-API-Key": soon["secret"]}}
    for later in (None, at(house, 7200)):
        other = f"/admin/keys/{(await make(house, root, 'keys:read', expires_at=later)).json['key']['id']}"
        assert (await house.call("POST", f"{other}/rotation", {}, **own)).code == "forbidden"
        assert (await house.call("PATCH", other, {"scopes": ["audit"]}, **own)).code == "forbidden"
        assert (await house.call("PATCH", other, {"name": "renamed"}, **own)).status == 200
        assert (await house.call("POST", f"{other}/rotation", {}, **root)).status == 200
    sooner = (await make(house, root, "keys:read", expires_at=at(house, 60))).json["key"]["id"]
    for id in (sooner, soon["key"]["id"]):
        assert (await house.call("POST", f"/admin/keys/{id}/rotation", {}, **own)).status == 200


async def test_signing_keys_are_retired_and_discarded_by_the_rules_of_the_command(
    house: House, root: dict[str, Any]
) -> None:
    async def states(path: str, **body: Any) -> list[str]:
        answer = await house.call("POST", f"/admin/signing-keys/{path}", body, **root)
        assert answer.status == 200, answer.text
        return [key["state"] for key in answer.json["items"]]

    assert await states("rotation", now=True) == ["retiring", "active", "next"]
    kids = [key["kid"] for key in (await house.call("GET", "/admin/signing-keys", **root)).json["items"]]
    assert await states("retirement") == ["retiring", "active", "next"]  # its tokens are good still
    for kid, words in ((kids[0], "tokens live"), (kids[1], "is active"), ("nobody", "no such key")):
        refused = await house.call("POST", "/admin/signing-keys/retirement", {"kid": kid}, **root)
        assert (refused.status, refused.json["errors"][0]["field"]) == (422, "kid")
        assert words in refused.json["errors"][0]["message"]
    root["token"] = (await house.login("root@example.org")).json["access_token"]
    assert await states("retirement", kid=kids[0], now=True) == ["retired", "active", "next"]
    assert await states("rotation", discard=True) == ["retired", "retired", "retired", "active", "next"]
    assert (await house.call("GET", "/admin/signing-keys", **root)).code == "unauthenticated"
    root["token"] = (await house.login("root@example.org")).json["access_token"]
    rows = (await house.call("GET", "/admin/audit?action=signing_key", **root)).json["items"]
    assert [(row["action"], row["detail"].get("discard")) for row in rows] == [
        ("signing_key.rotated", True),
        ("signing_key.retired", None),
        ("signing_key.rotated", False),
    ]
