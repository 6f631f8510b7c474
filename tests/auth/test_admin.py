"""What admins do to users: list them, disable and enable them, give them roles; each with its row in log and audit."""

import asyncio
import csv
import io
import json
from typing import Any

import aiohttp
import asyncpg
import pytest

from config import http
from config.clock import SystemClock
from config.redis import Pipe
from config.settings import Settings, with_values
from sessions.model import DISABLED, Kind
from sessions.revocations import Revocations
from sessions.service import Sessions
from tests.auth.conftest import House, build, secret_of, unix


async def log_rows(house: House) -> list[tuple[int, str, int]]:
    rows = await house.pool.fetch("select kind, subject, code from revocation_log where kind <> 6 order by seq")
    return [tuple(row) for row in rows]


async def test_disabling_writes_a_row_and_a_receipt(house: House) -> None:
    admin, user = await house.admin(), (await house.register()).json["user"]
    answer = await house.call("PATCH", f"/admin/users/{user['id']}", {"disabled": True, "reason": "abuse"}, token=admin)
    assert answer.status == 200
    assert set(answer.json) == {"user", "revocation"}
    assert answer.json["user"]["disabled"] is True
    receipt = answer.json["revocation"]
    assert (receipt["state"], receipt["sessions"]) == ("committed", 1)
    found = await house.call("GET", f"/admin/revocations/{receipt['id']}", token=admin)
    assert found.json["id"] == receipt["id"]
    assert await log_rows(house) == [(Kind.USER, user["id"], DISABLED)]
    again = await house.call("PATCH", f"/admin/users/{user['id']}", {"disabled": True, "reason": "abuse"}, token=admin)
    assert (again.status, again.json["revocation"]) == (200, None)
    back = await house.call("PATCH", f"/admin/users/{user['id']}", {"disabled": False, "reason": "ok"}, token=admin)
    assert (back.json["user"]["disabled"], back.json["revocation"]) == (False, None)
    assert (await house.login()).status == 200
    rows = await house.pool.fetch("select actor, target, detail from audit where action = 'user.changed' order by id")
    assert [row["target"] for row in rows] == [f"user:{user['id']}"] * 3
    hashed = rows[0]["detail"].pop("personal")
    assert len(hashed) == 64
    told = (await house.call("GET", "/admin/audit?action=user.changed", token=admin)).json["items"][-1]["detail"]
    assert told == rows[0]["detail"] | {"reason": "abuse"}
    assert rows[0]["detail"] == {
        "before": {"disabled": False, "roles": []},
        "after": {"disabled": True, "roles": []},
    }
    assert rows[0]["actor"].startswith("user:u_")


async def test_admins_who_disabled_each_other_at_once_got_503(house: House) -> None:
    """One of them wins, each time: the other's session is over by then."""
    for n in range(20):
        made = [await house.register(f"{name}{n}@example.org") for name in ("a", "b")]
        ids = [answer.json["user"]["id"] for answer in made]
        await house.pool.execute("update subjects set roles = '{admin}' where id = any($1)", ids)
        tokens = [(await house.login(f"{name}{n}@example.org")).json["access_token"] for name in ("a", "b")]
        change = {"disabled": True, "reason": "abuse"}
        answers = await asyncio.gather(
            *(house.call("PATCH", f"/admin/users/{ids[1 - i]}", change, token=tokens[i]) for i in range(2))
        )
        assert sorted((answer.status, answer.code) for answer in answers) == [(200, ""), (401, "session_ended")]
        active = "select count(*) from subjects where state = 'active' and id = any($1)"
        assert await house.pool.fetchval(active, ids) == 1


async def test_roles_write_a_rights_row(house: House) -> None:
    admin, user = await house.admin(), (await house.register()).json["user"]
    path = f"/admin/users/{user['id']}"
    answer = await house.call("PATCH", path, {"roles": ["moderator", "editor", "editor"], "reason": "x"}, token=admin)
    assert answer.json["user"]["roles"] == ["editor", "moderator"]
    assert answer.json["revocation"]["state"] == "committed"
    assert await log_rows(house) == [(Kind.RIGHTS, user["id"], 4501)]
    same = await house.call("PATCH", path, {"roles": ["editor", "moderator"], "reason": "x"}, token=admin)
    assert same.json["revocation"] is None
    both = await house.call("PATCH", path, {"roles": [], "disabled": True, "reason": "x"}, token=admin)
    assert (both.json["user"]["roles"], both.json["user"]["disabled"]) == ([], True)
    assert [row[0] for row in await log_rows(house)] == [Kind.RIGHTS, Kind.USER]


async def test_a_role_with_a_shorter_life_ends_running_sessions_sooner_and_none_later(
    settings: Settings, pool: asyncpg.Pool, revocations: Revocations, pipe: Pipe
) -> None:
    lives = {"admin": {"absolute": 3600.0, "idle": 900.0}, "editor": {"absolute": 7200.0}}
    settings = with_values(settings, {"sessions.roles": lives})
    sessions = Sessions(pool, revocations, settings.sessions, clock=SystemClock())
    async with build(settings, pool, revocations, sessions, pipe) as house:
        admin, made = await house.admin(), await house.register(mode="cookie")
        user, cookie = made.json["user"]["id"], secret_of(made)
        token = (await house.login(address="198.51.100.1")).json["access_token"]
        old = unix(made.json["session"]["expires_at"])
        for roles, absolute, idle in (
            (["editor"], 7200, 14 * 86400),
            (["admin"], 3600, 900),
            ([], 3600, 900),
            (["editor"], 3600, 900),
        ):
            answer = await house.call("PATCH", f"/admin/users/{user}", {"roles": roles, "reason": "x"}, token=admin)
            assert answer.status == 200
            for by in ({"cookie": cookie}, {"token": token}):
                session = (await house.call("GET", "/auth/me", **by)).json["session"]
                began = unix(session["created_at"])
                assert unix(session["expires_at"]) - began == pytest.approx(absolute, abs=0.01)
                idle_end = unix(session["idle_expires_at"])
                assert idle_end == pytest.approx(min(began + idle, began + absolute), abs=5)
        assert old - unix(made.json["session"]["created_at"]) == pytest.approx(90 * 86400, abs=0.01)
        fresh = (await house.login(address="198.51.100.1")).json["access_token"]
        connected = house.accounts.identity.try_connect(fresh)
        assert connected is not None
        assert connected.standing.idle == settings.sessions.idle
        assert (await house.accounts.identity.connect(token)).standing.idle == 900  # type: ignore[union-attr]
    await sessions.close()


async def test_bad_changes_change_nothing(house: House) -> None:
    admin, user = await house.admin(), (await house.register()).json
    path = f"/admin/users/{user['user']['id']}"
    bodies: list[tuple[dict[str, Any], int]] = [
        ({}, 422),
        ({"disabled": True}, 422),
        ({"reason": ""}, 422),
        ({"reason": "x" * 65}, 422),
        ({"reason": "x", "disabled": "yes"}, 422),
        ({"reason": "x", "roles": "admin"}, 422),
        ({"reason": "x", "roles": ["Admin"]}, 422),
        ({"reason": "x", "roles": ["a" * 33]}, 422),
        ({"reason": "x", "roles": [f"r{n}" for n in range(17)]}, 422),
        ({"reason": "x", "email": "other@example.org"}, 422),
        ({"reason": "x", "banned_until": "2020-01-01T00:00:00Z"}, 422),
        ({"reason": "x", "banned_until": "2099-01-01T00:00:00"}, 422),
        ({"reason": "x", "banned_until": "9999-12-31T23:59:59-12:00"}, 422),
        ({"reason": "x", "banned_until": "for ever"}, 422),
    ]
    for body, status in bodies:
        answer = await house.call("PATCH", path, body, token=admin)
        assert (answer.status, answer.code) == (status, "invalid"), body
    change = {"reason": "x", "disabled": True}
    assert (await house.call("PATCH", "/admin/users/u_nobody", change, token=admin)).code == "not_found"
    assert (await house.call("PATCH", path, change)).code == "unauthenticated"
    assert (await house.call("PATCH", path, change, token=user["access_token"])).code == "forbidden"
    assert (await house.call("GET", "/admin/users", token=user["access_token"])).code == "forbidden"
    assert await log_rows(house) == []


async def test_nothing_is_no_change(house: House) -> None:
    admin, user = await house.admin(), (await house.register()).json["user"]
    answer = await house.call("PATCH", f"/admin/users/{user['id']}", {"reason": "look"}, token=admin)
    assert (answer.status, answer.json["revocation"]) == (200, None)


async def test_7e_an_admin_whose_session_ends_meanwhile_changes_nothing(house: House) -> None:
    admin, user = await house.admin(), (await house.register()).json["user"]
    sid = (await house.call("GET", "/auth/me", token=admin)).json["session"]["sid"]
    path = f"/admin/users/{user['id']}"
    async with house.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("select from subjects where id = $1 for update", user["id"])
        asked = asyncio.create_task(house.call("PATCH", path, {"reason": "x", "disabled": True}, token=admin))
        while not await connection.fetchval("select count(*) from pg_locks where not granted"):
            pass
        await connection.execute(
            "update sessions set ended_at = clock_timestamp(), ended_code = 4501 where sid = $1", sid
        )
        await transaction.commit()
    answer = await asked
    assert (answer.status, answer.code) == (401, "session_ended")
    assert await house.pool.fetchval("select state from subjects where id = $1", user["id"]) == "active"


async def test_7e_an_admin_who_logged_out_while_a_revocation_was_under_way_revoked_all_the_same(house: House) -> None:
    admin, user = await house.admin(), await house.register()
    async with house.pool.acquire() as connection, connection.transaction():
        await connection.execute("select from revocation_head for update")
        waiting = "select count(*) from pg_locks where not granted"
        leaving = asyncio.create_task(house.call("POST", "/auth/logout", {}, token=admin))
        while not await connection.fetchval(waiting):
            pass
        order = {"target": {"user": user.json["user"]["id"]}, "reason": "x"}
        asked = asyncio.create_task(house.call("POST", "/admin/revocations", order, token=admin))
        while await connection.fetchval(waiting) < 2:
            pass
    assert (await leaving).status == 204
    answer = await asked
    assert (answer.status, answer.code, answer.json["reason"]) == (401, "session_ended", "logout")
    assert (await house.call("GET", "/auth/me", token=user.json["access_token"])).status == 200


async def test_users_are_listed_page_by_page(house: House) -> None:
    admin = await house.admin()
    for n in range(7):
        await house.register(f"user{n}@example.org")
    await house.pool.execute(
        "update subjects set state = 'disabled', roles = '{editor}'"
        " where id = (select id from users where email like 'user3%')"
    )
    seen, after, pages = [], "", 0
    while True:
        answer = await house.call("GET", f"/admin/users?limit=3&after={after}", token=admin)
        assert set(answer.json) == {"items", "next"}
        seen += [item["email"] for item in answer.json["items"]]
        after, pages = answer.json["next"], pages + 1
        if not after:
            break
    assert seen == ["root@example.org", *(f"user{n}@example.org" for n in range(7))]
    assert pages == 3

    async def found(query: str) -> list[str]:
        answer = await house.call("GET", f"/admin/users?{query}", token=admin)
        return [item["email"] for item in answer.json["items"]]

    assert await found("email=USER") == [f"user{n}@example.org" for n in range(7)]
    assert await found("email=user5") == ["user5@example.org"]
    assert await found("role=editor") == await found("disabled=true") == ["user3@example.org"]
    assert await found("role=admin&disabled=false") == ["root@example.org"]
    assert await found("email=nobody") == []
    item = (await house.call("GET", "/admin/users?limit=1", token=admin)).json["items"][0]
    assert set(item) == {
        "id",
        "email",
        "display_name",
        "roles",
        "created_at",
        "disabled",
        "failures",
        "last_login_at",
        "banned_until",
        "avatar_url",
    }
    for query in ("limit=0", "limit=201", "limit=x", "after=x", "after=1", "disabled=maybe", "unknown=1"):
        assert (await house.call("GET", f"/admin/users?{query}", token=admin)).status == 422, query


async def test_users_sessions_and_the_audit_are_had_as_files(house: House) -> None:
    admin = await house.admin()
    await house.register("alice@example.org", display_name='=HYPERLINK("http://evil.example")')
    for path, rows in (("users", 2), ("sessions", 3), ("audit", 5)):
        answer = await house.call("GET", f"/admin/{path}", token=admin, headers={"Accept": "text/csv"})
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{path}.csv"'
        table = list(csv.DictReader(io.StringIO(answer.text, newline="")))
        answer = await house.call("GET", f"/admin/{path}", token=admin, headers={"Accept": "application/x-ndjson"})
        lines = [json.loads(line) for line in answer.text.splitlines()]
        page = (await house.call("GET", f"/admin/{path}?limit=200", token=admin)).json
        assert len(table) == len(lines) == len(page["items"])
        assert len(table) >= rows, path
        assert table[0].keys() == lines[0].keys() == page["items"][0].keys()
        if path == "users":
            assert lines == page["items"]
            assert table[1]["display_name"].startswith("'=HYPERLINK")


async def test_a_file_stops_where_the_session_of_who_reads_it_ends(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each page is asked for with the credential that came, as if it were a request of its own."""
    monkeypatch.setattr(http, "EXPORT_PAGE", 1)
    admin = await house.admin()
    await house.register("alice@example.org")
    page, pages = house.accounts.people.page, 0

    async def slow_page(*args: Any, **options: Any) -> Any:
        nonlocal pages
        pages += 1
        await house.call("POST", "/auth/logout", {}, token=admin)
        return await page(*args, **options)

    monkeypatch.setattr(house.accounts.people, "page", slow_page)
    with pytest.raises(aiohttp.ClientPayloadError):
        await house.call("GET", "/admin/users", token=admin, headers={"Accept": "text/csv"})
    assert pages == 1
