"""Sessions over HTTP: shapes, whose they are, and how they end."""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from config import scopes
from config.http import CURRENT, IDENTIFY, ORIGINS, TRUSTED, Caller, mount, problems
from config.redis import Unavailable as RedisAway
from sessions import audit, cookies, store
from sessions.cookies import CookieStorage
from sessions.external import External
from sessions.model import Kind
from sessions.revocations import Revocations
from sessions.routes import SessionRoutes
from sessions.service import Opened, Sessions
from tests.sessions.conftest import Logins

ORIGIN = "https://wardgate.example"
METACHARACTERS = """'; DROP TABLE sessions; -- " \\ % _ $1 {}"""
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")

Client = TestClient[web.Request, web.Application]


class Registry:
    """Live connections by sid, as the gateway would know them."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.away = False

    async def __call__(self, sids: Sequence[str]) -> Mapping[str, int]:
        if self.away:
            raise RedisAway("away")
        return {sid: self.counts[sid] for sid in sids if sid in self.counts}


@pytest.fixture
def registry() -> Registry:
    return Registry()


class Site:
    """A server with the routes; `as_` gives the headers of a session."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def call(self, method: str, path: str | URL, by: Opened | str | None = None, **more: Any) -> tuple[int, Any]:
        """`by`: a login (its cookie) or the name of an API key."""
        headers = more.pop("headers", {"Origin": ORIGIN})
        if isinstance(by, str):
            headers = {**headers, "X-API-Key": by}
        elif by is not None:
            headers = {**headers, "Cookie": f"__Host-wardgate={by.secret}"}
        async with self.client.request(method, path, headers=headers, **more) as answer:
            self.answer = answer
            return answer.status, await answer.json(content_type=None) if await answer.read() else None


@pytest.fixture
async def site(sessions: Sessions, pool: asyncpg.Pool, registry: Registry) -> AsyncIterator[Site]:
    async def identify(request: web.Request) -> Caller | None:
        key = request.headers.get("X-API-Key")
        if key is not None:
            return Caller("api_key", key, scopes=frozenset({key}))
        reading = await cookies.reading(request)
        if reading is None:
            return None
        session = (await sessions.admit(reading)).session
        roles = frozenset(session.subject.roles)
        return Caller("cookie", session.subject.id, session.sid, roles, scopes.of_roles(scopes.DEFAULT_ROLES, roles))

    app = web.Application(middlewares=[problems])
    cookies.setup(app, CookieStorage(sessions, secure=True))
    app[IDENTIFY] = identify
    app[CURRENT] = lambda: True
    app[ORIGINS] = frozenset({ORIGIN})
    app[TRUSTED] = ()
    mount(app, SessionRoutes(sessions, pool, registry).routes())
    client = TestClient(TestServer(app))
    await client.start_server()
    yield Site(client)
    await client.close()


def sid(opened: Opened) -> str:
    return opened.reading.session.sid


async def is_live(sessions: Sessions, opened: Opened) -> bool:
    reading = await sessions.by_sid(sid(opened))
    assert reading is not None
    return sessions.judge(reading) is None


# -- my sessions


async def test_my_sessions_are_listed_newest_first(site: Site, login: Logins, registry: Registry) -> None:
    firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"
    old = await login("alice", device=firefox, address="192.0.2.1")
    new = await login("alice", kind="cookie")
    await login("bob")
    registry.counts = {sid(old): 3}
    status, body = await site.call("GET", "/auth/sessions", new)
    assert status == 200
    assert [item["sid"] for item in body["items"]] == [sid(new), sid(old)]
    assert [item["current"] for item in body["items"]] == [True, False]
    assert [item["connections"] for item in body["items"]] == [0, 3]
    assert (body["items"][1]["device"], body["items"][1]["address"]) == ("Firefox on Linux", "192.0.2.0/24")
    assert body["next"] == ""
    for item in body["items"]:
        assert set(item) == {
            *("sid", "device", "address", "connections", "current"),
            *("created_at", "last_seen_at", "expires_at", "idle_expires_at"),
        }
        for name in ("created_at", "last_seen_at", "expires_at", "idle_expires_at"):
            assert MOMENT.fullmatch(item[name]), name


async def test_my_sessions_come_in_pages(site: Site, login: Logins) -> None:
    opened = [await login("alice") for _ in range(5)]
    seen, after = [], ""
    while True:
        status, body = await site.call("GET", f"/auth/sessions?limit=2&after={after}", opened[0])
        assert status == 200
        seen += [item["sid"] for item in body["items"]]
        after = body["next"]
        if not after:
            break
    assert seen == [sid(o) for o in reversed(opened)]


async def test_without_the_registry_the_list_is_there_and_says_so(
    site: Site, login: Logins, registry: Registry
) -> None:
    registry.away = True
    status, body = await site.call("GET", "/auth/sessions", await login())
    assert status == 200
    assert [item["connections"] for item in body["items"]] == [None]


async def test_sessions_that_are_over_are_not_listed(site: Site, login: Logins, pool: asyncpg.Pool) -> None:
    over, idle, expired, lives = [await login() for _ in range(4)]
    await login.end(kind=Kind.SESSION, sid=sid(over))
    await pool.execute("UPDATE sessions SET last_seen_at = 'epoch' WHERE sid = $1", sid(idle))
    await pool.execute("UPDATE sessions SET expires_at = 'epoch' WHERE sid = $1", sid(expired))
    _, body = await site.call("GET", "/auth/sessions", lives)
    assert [item["sid"] for item in body["items"]] == [sid(lives)]


async def test_28_one_of_my_sessions_ends(site: Site, login: Logins, sessions: Sessions) -> None:
    mine, other = await login(), await login()
    assert await site.call("DELETE", f"/auth/sessions/{sid(other)}", mine) == (204, None)
    assert not await is_live(sessions, other)
    assert await is_live(sessions, mine)
    status, body = await site.call("GET", "/auth/sessions", other)
    assert (status, body["code"], body["reason"]) == (401, "session_ended", "ended_by_user")
    assert await site.call("DELETE", f"/auth/sessions/{sid(other)}", mine) == (204, None)


async def test_28_anothers_session_is_not_found_and_lives(site: Site, login: Logins, sessions: Sessions) -> None:
    mine, theirs = await login("alice"), await login("bob")
    status, body = await site.call("DELETE", f"/auth/sessions/{sid(theirs)}", mine)
    assert (status, body["code"]) == (404, "not_found")
    assert await is_live(sessions, theirs)


async def test_28_what_is_no_session_is_not_found(site: Site, login: Logins) -> None:
    mine = await login()
    for name in ("nobody", "a" * 65, "%00", "%27%3B%20DROP%20TABLE%20sessions", "%ff", "x%2Fy"):
        status, body = await site.call("DELETE", URL(f"/auth/sessions/{name}", encoded=True), mine)
        assert (status, body["code"]) == (404, "not_found"), name


async def test_ending_the_session_that_asks_takes_its_cookie_away(site: Site, login: Logins) -> None:
    mine = await login()
    status, _ = await site.call("DELETE", f"/auth/sessions/{sid(mine)}", mine)
    assert status == 204
    assert site.answer.headers["Set-Cookie"].startswith('__Host-wardgate=""; ')
    status, body = await site.call("GET", "/auth/sessions", mine)
    assert (status, body["reason"]) == (401, "ended_by_user")


async def test_28_the_others_end_and_this_one_lives(site: Site, login: Logins, sessions: Sessions) -> None:
    mine, other, third, bobs = await login(), await login(), await login(kind="token"), await login("bob")
    assert await site.call("DELETE", "/auth/sessions?scope=others", mine) == (204, None)
    assert "Set-Cookie" not in site.answer.headers
    assert [await is_live(sessions, o) for o in (mine, other, third, bobs)] == [True, False, False, True]
    assert await site.call("DELETE", "/auth/sessions?scope=others", mine) == (204, None)


async def test_28_with_very_many_sessions_some_of_the_others_went_on(
    site: Site, login: Logins, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessions.service.ENDED_AT_ONCE", 2)
    opened = [await login() for _ in range(5)]
    assert await site.call("DELETE", "/auth/sessions?scope=others", opened[2]) == (204, None)
    assert [await is_live(sessions, o) for o in opened] == [False, False, True, False, False]


async def test_28_with_very_many_sessions_one_was_said_to_have_ended_and_had_not(
    site: Site, login: Logins, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessions.service.ENDED_AT_ONCE", 2)
    opened = [await login() for _ in range(5)]
    last = max(opened, key=sid)
    mine = next(o for o in opened if o is not last)
    assert await site.call("DELETE", f"/auth/sessions/{sid(last)}", mine) == (204, None)
    assert not await is_live(sessions, last)


async def test_28_all_end(site: Site, login: Logins, sessions: Sessions) -> None:
    mine, other, bobs = await login(), await login(), await login("bob")
    assert await site.call("DELETE", "/auth/sessions?scope=all", mine) == (204, None)
    assert "Set-Cookie" in site.answer.headers
    assert [await is_live(sessions, o) for o in (mine, other, bobs)] == [False, False, True]
    status, body = await site.call("GET", "/auth/sessions", other)
    assert (status, body["reason"]) == (401, "ended_by_user")
    assert await is_live(sessions, await login())


async def test_logging_out_ends_this_session_with_its_reason(site: Site, login: Logins, sessions: Sessions) -> None:
    mine, other = await login(), await login()
    assert await site.call("POST", "/auth/logout", mine) == (204, None)
    assert "Set-Cookie" in site.answer.headers
    assert not await is_live(sessions, mine)
    assert await is_live(sessions, other)
    status, body = await site.call("GET", "/auth/sessions", mine)
    assert (status, body["reason"]) == (401, "logout")


async def test_7e_a_session_that_ended_meanwhile_ends_no_other(
    site: Site, login: Logins, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request was admitted; its session ended before the transaction began."""
    mine, other = await login(), await login()
    real = sessions.end_one

    async def later(*arguments: Any) -> bool:
        await login.end(kind=Kind.SESSION, sid=sid(mine), reason="meanwhile")
        return await real(*arguments)

    monkeypatch.setattr(sessions, "end_one", later)
    status, body = await site.call("DELETE", f"/auth/sessions/{sid(other)}", mine)
    assert (status, body["code"], body["reason"]) == (401, "session_ended", "meanwhile")
    assert await is_live(sessions, other)


async def test_two_sessions_that_end_each_other_at_once_do_not_block(
    site: Site, login: Logins, sessions: Sessions
) -> None:
    """One lock order: whoever comes second finds itself ended, or the other gone."""
    for _ in range(5):
        one, other = await login(), await login()
        answers = await asyncio.gather(
            site.call("DELETE", f"/auth/sessions/{sid(other)}", one),
            site.call("DELETE", f"/auth/sessions/{sid(one)}", other),
            site.call("DELETE", "/auth/sessions?scope=others", one),
        )
        assert {status for status, _ in answers} <= {204, 401}
        assert [await is_live(sessions, o) for o in (one, other)].count(True) == 1


async def test_f15_after_a_step_of_the_databases_clock_a_live_session_could_not_log_out(
    site: Site, login: Logins, revocations: Revocations, pool: asyncpg.Pool
) -> None:
    """The held clock says for every other purpose that the session lives, so it says so here."""
    mine = await login()
    held = revocations._renewal.offset
    assert held.value is not None
    held.value -= 7200.0  # the database's clock went two hours ahead, and is not believed
    await pool.execute("UPDATE sessions SET expires_at = now() - interval '1 hour', last_seen_at = now()")
    assert await site.call("POST", "/auth/logout", mine) == (204, None)


async def test_logging_out_twice_at_once_ends_once(site: Site, login: Logins, pool: asyncpg.Pool) -> None:
    mine = await login()
    answers = await asyncio.gather(*(site.call("POST", "/auth/logout", mine) for _ in range(5)))
    assert sorted(status for status, _ in answers) == [204, 401, 401, 401, 401]
    assert await pool.fetchval("SELECT count(*) FROM revocation_log WHERE kind = 1") == 1


async def test_ends_leave_audit_rows(site: Site, login: Logins, pool: asyncpg.Pool) -> None:
    mine, other = await login(), await login()
    await site.call("DELETE", f"/auth/sessions/{sid(other)}", mine)
    await site.call("DELETE", "/auth/sessions?scope=all", mine)
    rows = await pool.fetch("SELECT * FROM audit WHERE action <> 'session.opened' ORDER BY id")
    assert [(r["action"], r["actor"], r["target"], r["sid"]) for r in rows] == [
        ("session.ended", "user:alice", f"session:{sid(other)}", sid(mine)),
        ("session.all_ended", "user:alice", "user:alice", sid(mine)),
    ]
    assert {r["address"] for r in rows} == {"127.0.0.1"}


async def test_without_a_credential_everything_is_refused(site: Site) -> None:
    for method, path in (
        ("GET", "/auth/sessions"),
        ("DELETE", "/auth/sessions?scope=all"),
        ("DELETE", "/auth/sessions/x"),
        ("POST", "/auth/logout"),
        ("GET", "/admin/sessions"),
        ("GET", "/admin/audit"),
    ):
        status, body = await site.call(method, path)
        assert (status, body["code"]) == (401, "unauthenticated"), path


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/auth/sessions?scope=all"), ("DELETE", "/auth/sessions/x"), ("POST", "/auth/logout")],
)
async def test_60_an_end_from_another_site_is_refused(
    site: Site, login: Logins, sessions: Sessions, method: str, path: str
) -> None:
    mine = await login()
    for headers in ({}, *({"Origin": o} for o in ("null", "https://evil.example", f"{ORIGIN}.evil.example"))):
        status, body = await site.call(method, path, mine, headers=headers)
        assert (status, body["code"]) == (403, "cross_site"), headers
    assert await is_live(sessions, mine)


BAD_REQUESTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("DELETE", "/auth/sessions", {}),
    ("DELETE", "/auth/sessions?scope=", {}),
    ("DELETE", "/auth/sessions?scope=mine", {}),
    ("DELETE", "/auth/sessions?scope=all&scope=all", {}),
    ("DELETE", "/auth/sessions?scope=all&x=1", {}),
    ("GET", "/auth/sessions?x=1", {}),
    ("GET", "/auth/sessions?limit=0", {}),
    ("GET", "/auth/sessions?limit=201", {}),
    ("GET", "/auth/sessions?limit=1&limit=2", {}),
    ("GET", "/auth/sessions?after=x", {}),
    ("GET", "/auth/sessions?after=1.%00", {}),
    ("GET", "/auth/sessions?after=999999999999999999.x", {}),
    ("GET", "/auth/sessions?after=%D9%A1.x", {}),
    ("POST", "/auth/logout", {"json": {"x": 1}}),
)


async def test_bad_input_is_refused_by_name_and_ends_nothing(site: Site, login: Logins, sessions: Sessions) -> None:
    mine = await login()
    for method, path, more in BAD_REQUESTS:
        status, body = await site.call(method, path, mine, **more)
        assert (status, body["code"]) == (422, "invalid"), path
        assert body["errors"][0]["field"], path
    assert await is_live(sessions, mine)


async def test_duplicate_keys_in_the_body_are_refused(site: Site, login: Logins, sessions: Sessions) -> None:
    mine = await login()
    headers = {"Origin": ORIGIN, "Content-Type": "application/json"}
    status, body = await site.call("POST", "/auth/logout", mine, data=b'{"a":1,"a":1}', headers=headers)
    assert (status, body["code"]) == (400, "malformed")
    assert await is_live(sessions, mine)


# -- admins


@pytest.fixture
async def admin(login: Logins) -> Opened:
    await login.user("root", ("admin",))
    return await login("root")


@pytest.mark.parametrize("path", ["/admin/sessions", "/admin/audit"])
async def test_only_admins_and_keys_with_the_scope_see_everyones(
    site: Site, login: Logins, admin: Opened, path: str
) -> None:
    scope = path.removeprefix("/admin/")
    for by, expected in ((await login(), 403), ("publish", 403), (scope, 200), ("*", 200), (admin, 200)):
        status, _ = await site.call("GET", path, by)
        assert status == expected, by


async def test_admins_see_everyones_sessions(
    site: Site, login: Logins, sessions: Sessions, admin: Opened, registry: Registry
) -> None:
    mine = await login("alice", device="curl/8", address="192.0.2.1")
    met = await sessions.external(External("google", "google:42", b"h", sid="s", iat=4e9))
    registry.counts = {sid(mine): 2}
    status, body = await site.call("GET", "/admin/sessions", admin)
    assert status == 200
    assert [item["sid"] for item in body["items"]] == [met.session.sid, sid(mine), sid(admin)]
    item = body["items"][1]
    assert (item["user"], item["kind"], item["issuer"]) == ("alice", "cookie", "")
    assert (item["device"], item["address"], item["connections"], item["ended"]) == ("curl", "192.0.2.1", 2, None)

    async def listed(query: str) -> list[str]:
        status, body = await site.call("GET", f"/admin/sessions?{query}", admin)
        assert status == 200
        return [item["sid"] for item in body["items"]]

    assert await listed("user=alice") == [sid(mine)]
    assert await listed("issuer=google") == [met.session.sid]
    assert await listed(f"sid={sid(mine)}") == [sid(mine)]
    assert await listed(f"sid={sid(mine)}&user=bob") == []
    assert await listed("user=alice&issuer=google") == []


async def test_a_session_that_is_over_is_shown_when_asked_for_by_its_sid(
    site: Site, login: Logins, admin: Opened
) -> None:
    over = await login("alice")
    await login.end(kind=Kind.SESSION, sid=sid(over), reason="r", message="m")
    _, body = await site.call("GET", "/admin/sessions?user=alice", admin)
    assert body["items"] == []
    _, body = await site.call("GET", f"/admin/sessions?sid={sid(over)}", admin)
    [item] = body["items"]
    assert (item["ended"]["code"], item["ended"]["reason"], item["ended"]["message"]) == (4501, "r", "m")
    assert MOMENT.fullmatch(item["ended"]["at"])


async def test_everyones_sessions_come_in_pages(site: Site, login: Logins, admin: Opened) -> None:
    opened = [await login(f"user{n}") for n in range(6)]
    seen, after = [], ""
    while True:
        _, body = await site.call("GET", f"/admin/sessions?limit=3&after={after}", admin)
        assert len(body["items"]) <= 3
        seen += [item["sid"] for item in body["items"]]
        after = body["next"]
        if not after:
            break
    assert seen == [sid(o) for o in (*reversed(opened), admin)]


async def test_filters_are_only_text(site: Site, admin: Opened) -> None:
    for name in ("user", "sid", "issuer"):
        for value in (METACHARACTERS, "%", "_", "\\"):
            status, body = await site.call("GET", "/admin/sessions", admin, params={name: value})
            assert (status, body["items"]) == (200, []), (name, value)


async def test_bad_queries_are_refused(site: Site, admin: Opened) -> None:
    queries = ("x=1", "limit=0", "limit=x", "after=x", "after=1", "after=-1.x", "after=1.1.1", "sid=%00", "sid=%ff%00")
    for path in ("/admin/sessions", "/admin/audit"):
        for query in queries:
            status, body = await site.call("GET", URL(f"{path}?{query}", encoded=True), admin)
            assert (status, body["code"]) == (422, "invalid"), (path, query)


async def test_the_audit_is_filtered_and_paged(site: Site, admin: Opened, pool: asyncpg.Pool) -> None:
    await pool.execute("DELETE FROM audit")
    async with pool.acquire() as connection:
        for n in range(5):
            await audit.append(connection, "user.changed", actor="user:root", target=f"user:{n}", detail={"n": n})
        await audit.append(
            connection, "api_key.created", actor="cli", target=METACHARACTERS, sid="s", address="192.0.2.1"
        )

    async def page(**query: Any) -> Any:
        status, body = await site.call("GET", "/admin/audit", admin, params=query)
        assert status == 200, body
        return body

    body = await page()
    assert [item["action"] for item in body["items"]] == ["api_key.created"] + ["user.changed"] * 5
    newest = body["items"][0]
    assert (newest["actor"], newest["target"], newest["sid"]) == ("cli", METACHARACTERS, "s")
    assert (newest["address"], newest["detail"]) == ("192.0.2.1", {})
    assert MOMENT.fullmatch(newest["at"])
    assert [i["detail"]["n"] for i in (await page(actor="user:root"))["items"]] == [4, 3, 2, 1, 0]
    assert [i["target"] for i in (await page(action="api_key.created"))["items"]] == [METACHARACTERS]
    assert len((await page(action="user"))["items"]) == 5
    assert len((await page(target=METACHARACTERS))["items"]) == 1
    assert len((await page(sid="s"))["items"]) == 1
    assert (await page(target="user:_"))["items"] == []
    first = await page(limit="4")
    rest = await page(limit="4", after=first["next"])
    assert [i["id"] for i in first["items"] + rest["items"]] == [i["id"] for i in body["items"]]
    assert rest["next"] == ""


async def test_store_filters_prepare(pool: asyncpg.Pool) -> None:
    assert await store.page(pool, store.Filter(), now=1.0, limit=1) == ([], None)
