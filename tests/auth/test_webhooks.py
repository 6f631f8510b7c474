"""Webhooks: what is heard of which deed, how it is signed, and what happens when nobody answers."""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any, get_args
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from structlog.testing import capture_logs

from auth import users
from config import commands as shared
from config import jobs as jobs_module
from config.http import rfc3339
from config.redis import Pipe
from config.settings import Settings, with_values
from sessions import audit, webhooks
from sessions.revocations import Revocations
from sessions.service import Sessions
from sessions.webhook_routes import app
from tests.auth.conftest import PASSWORD, House, build
from tests.revocation.cluster import until


class Receiver:
    """Somebody who listens; `status` is what the next delivery is answered."""

    def __init__(self) -> None:
        self.heard: list[tuple[dict[str, str], dict[str, Any], bytes]] = []
        self.status = 204

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.heard.append(({k.lower(): v for k, v in request.headers.items()}, json.loads(body), body))
        return web.Response(status=self.status)

    @property
    def types(self) -> list[str]:
        return [event["type"] for _, event, _ in self.heard]


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def url(receiver: Receiver) -> AsyncIterator[str]:
    there = web.Application()
    there.router.add_post("/hook", receiver.handle)
    async with TestServer(there) as server:
        yield f"http://127.0.0.1:{server.port}/hook"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_values(settings, {"webhooks.allow_networks": ["127.0.0.0/8"]})


@pytest.fixture
async def house(
    settings: Settings,
    pool: asyncpg.Pool,
    revocations: Revocations,
    sessions: Sessions,
    pipe: Pipe,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[House]:
    monkeypatch.setattr(jobs_module, "POLL", 0.02)
    async with build(settings, pool, revocations, sessions, pipe) as house:
        yield house


async def made(house: House, admin: str, url: str, *events: str) -> tuple[str, bytes]:
    """A webhook's id and secret."""
    body = {"url": url, "events": list(events)} if events else {"url": url}
    answer = await house.call("POST", "/admin/webhooks", body, token=admin)
    assert answer.status == 201, answer.text
    assert answer.json["secret"].startswith("whsec_")
    return answer.json["id"], base64.b64decode(answer.json["secret"].removeprefix("whsec_"))


async def test_every_deed_is_heard_once_and_signed(house: House, receiver: Receiver, url: str) -> None:
    admin = await house.admin()
    _, secret = await made(house, admin, url, "session.*", "user.*")
    person = (await house.register()).json
    await house.call("POST", "/auth/logout", {}, token=person["access_token"])
    id = person["user"]["id"]
    for disabled in (True, False):
        change = {"disabled": disabled, "reason": "a test"}
        assert (await house.call("PATCH", f"/admin/users/{id}", change, token=admin)).status == 200
    order = {"target": {"user": id}, "reason": "stolen laptop"}
    assert (await house.call("POST", "/admin/revocations", order, token=admin)).status == 201
    expected = [
        "session.created",
        "session.revoked",
        "session.revoked",
        "user.created",
        "user.disabled",
        "user.enabled",
    ]
    await until(lambda: len(receiver.heard) >= len(expected))
    assert sorted(receiver.types) == expected
    for headers, event, body in receiver.heard:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        mac = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{mac}"
        assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
        assert event.keys() == {"type", "timestamp", "data"}
        assert PASSWORD not in body.decode()
        assert "alice@example.org" not in body.decode()
    assert len({headers["webhook-id"] for headers, _, _ in receiver.heard}) == len(expected)
    [revoked] = [event for _, event, _ in receiver.heard if event["data"]["action"] == "user.revoked"]
    assert (revoked["data"]["target"], revoked["data"]["detail"]["reason"]) == (f"user:{id}", "stolen laptop")


async def test_failed_logins_are_told_as_numbers_and_to_who_wants_them(
    house: House, receiver: Receiver, url: str
) -> None:
    admin = await house.admin()
    await made(house, admin, url, "login.*")
    await made(house, admin, url, "session.revoked")
    ids = [(await house.register(email)).json["user"]["id"] for email in ("alice@example.org", "bob@example.org")]
    for email, times in (("alice@example.org", 3), ("bob@example.org", 1), ("nobody@example.org", 2)):
        for _ in range(times):
            assert (await house.login(email, "a wrong password")).status == 401
    await house.accounts.people.flush()
    await until(lambda: sum(event["data"]["failures"] for _, event, _ in receiver.heard) == 4)
    assert set(receiver.types) == {"login.failed"}
    told = dict.fromkeys(ids, 0)
    for _, event, body in receiver.heard:
        assert event["data"].keys() == {"user", "failures"}
        assert b"example.org" not in body
        told[event["data"]["user"]] += event["data"]["failures"]
    assert told == dict(zip(ids, (3, 1), strict=True))


async def test_failures_that_cannot_be_written_are_told_once_they_can(
    house: House, receiver: Receiver, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number and its event are one transaction: neither is there twice."""
    admin = await house.admin()
    await made(house, admin, url, "login.failed")
    await house.register()
    add = users.add_failures

    async def away(*_: Any) -> list[str]:
        raise ConnectionRefusedError

    monkeypatch.setattr(users, "add_failures", away)
    assert (await house.login(password="a wrong password")).status == 401
    await house.accounts.people.flush()
    assert await house.pool.fetchval("SELECT count(*) FROM jobs WHERE payload->>'type' = 'login.failed'") == 0
    monkeypatch.setattr(users, "add_failures", add)
    await house.accounts.people.flush()
    await until(lambda: receiver.types == ["login.failed"])


async def test_only_what_is_wanted_is_told_and_nothing_that_was_rolled_back(
    house: House, receiver: Receiver, url: str
) -> None:
    admin = await house.admin()
    await made(house, admin, url, "user.created")
    await house.register("ben@example.org")
    again = await house.call("POST", "/auth/register", {"email": "ben@example.org", "password": PASSWORD})
    assert again.code == "email_taken"
    await house.register("eve@example.org")
    await until(lambda: len(receiver.heard) >= 2)
    assert receiver.types == ["user.created", "user.created"]


async def test_a_receiver_that_is_away_is_told_later_with_the_same_id(
    house: House, receiver: Receiver, url: str, pool: asyncpg.Pool
) -> None:
    admin = await house.admin()
    await made(house, admin, url, "user.created")
    receiver.status = 500
    await house.register()
    await until(lambda: house.accounts.jobs.figures()["jobs_failed"])
    receiver.status = 200
    async with asyncio.timeout(5):
        while not await pool.fetchval("SELECT true FROM jobs WHERE error <> ''"):
            pass
    assert await pool.fetchval("SELECT error FROM jobs WHERE kind = 'webhook'") == "answered 500 Internal Server Error"
    await pool.execute("UPDATE jobs SET run_at = now() WHERE kind = 'webhook'")
    await until(lambda: len(receiver.heard) == 2)
    first, second = (headers["webhook-id"] for headers, _, _ in receiver.heard)
    assert first == second
    async with asyncio.timeout(5):
        while not (await house.call("GET", "/admin/webhooks", token=admin)).json["items"][0]["delivered_at"]:
            pass


async def test_who_answers_gone_is_told_nothing_more_until_an_admin_says_so(
    house: House, receiver: Receiver, url: str
) -> None:
    admin = await house.admin()
    id, _ = await made(house, admin, url, "user.created")
    receiver.status = 410
    await house.register("ben@example.org")
    await until(lambda: house.accounts.jobs.figures()["jobs_failed"])
    [shown] = (await house.call("GET", "/admin/webhooks", token=admin)).json["items"]
    assert (shown["disabled_why"], shown["disabled_at"] is None) == ("answered 410", False)
    tried = await house.call("POST", f"/admin/webhooks/{id}/test", {}, token=admin)
    assert (tried.code, tried.json["detail"]) == (
        "not_found",
        "there is no such webhook, or it is disabled: enable it first",
    )
    receiver.status = 200
    await house.register("eve@example.org")
    assert (await house.call("POST", f"/admin/webhooks/{id}/enable", {}, token=admin)).status == 204
    await house.register("dan@example.org")
    await until(lambda: len(receiver.heard) == 2)
    assert len(receiver.heard) == 2


async def test_redirects_are_not_followed(house: House, receiver: Receiver, url: str, pool: asyncpg.Pool) -> None:
    admin = await house.admin()
    id, _ = await made(house, admin, url)
    receiver.status = 302
    assert (await house.call("POST", f"/admin/webhooks/{id}/test", {}, token=admin)).status == 204
    await until(lambda: house.accounts.jobs.figures()["jobs_failed"])
    assert receiver.types[0] in ("test", "webhook.created", "webhook.tested")
    async with asyncio.timeout(5):
        while not (told := await pool.fetchval("SELECT error FROM jobs WHERE error <> ''")):
            pass
    assert told == "answered 302 Found: redirects are not followed"


async def test_a_delivery_that_failed_says_to_admins_what_happened(
    house: House, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = await house.admin()
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        away, _ = await made(house, admin, f"http://127.0.0.1:{nobody.getsockname()[1]}/")
        inside, _ = await made(house, admin, "https://example.org/")
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("10.0.0.1", 443))])
        async with asyncio.timeout(10):
            while len(told := {one[0]: one[1] for one in await pool.fetch(_TOLD)}) < 2:
                pass
    assert told[away] == "cannot be reached: Connection refused"
    assert told[inside] == "the name leads to an address that is not a public one"
    listed = (await house.call("GET", "/admin/jobs?kind=webhook", token=admin)).json["items"]
    assert {one["error"] for one in listed if one["error"]} == set(told.values())


_TOLD = "SELECT DISTINCT replace(payload->>'webhook', '-', ''), error FROM jobs WHERE kind = 'webhook' AND error <> ''"


async def test_a_webhook_that_is_deleted_hears_nothing_more(
    house: House, receiver: Receiver, url: str, pool: asyncpg.Pool
) -> None:
    admin = await house.admin()
    id, _ = await made(house, admin, url, "user.created")
    assert (await house.call("DELETE", f"/admin/webhooks/{id}", token=admin)).status == 204
    assert (await house.call("DELETE", f"/admin/webhooks/{id}", token=admin)).code == "not_found"
    await house.register()
    assert await pool.fetchval("SELECT count(*) FROM jobs WHERE kind = 'webhook'") == 0
    assert receiver.heard == []
    actions = await pool.fetch("SELECT action FROM audit WHERE target = $1 ORDER BY at", f"webhook:{id}")
    assert [row["action"] for row in actions] == ["webhook.created", "webhook.deleted"]


async def test_deliveries_to_a_deleted_webhook_stayed_for_ever_as_jobs_that_were_given_up(
    house: House, receiver: Receiver, url: str, pool: asyncpg.Pool
) -> None:
    admin = await house.admin()
    id, _ = await made(house, admin, url, "user.created")
    other, _ = await made(house, admin, url, "user.created")
    receiver.status = 410
    await house.register()
    async with asyncio.timeout(5):
        while await pool.fetchval("SELECT count(*) FROM jobs WHERE dead_at IS NOT NULL") < 2:
            pass
    assert (await house.call("DELETE", f"/admin/webhooks/{id}", token=admin)).status == 204
    left = await pool.fetch("SELECT payload->>'webhook' AS webhook FROM jobs WHERE kind = 'webhook'")
    assert [UUID(row["webhook"]).hex for row in left] == [other]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"url": "http://example.org/"}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": "https://user:secret@example.org/"}, "url"),
        ({"url": "https://example.org/", "events": []}, "events"),
        ({"url": "https://example.org/", "events": ["Session"]}, "events[0]"),
        ({"url": "https://example.org/", "events": ["user.created", "nope.nope"]}, "events"),
        ({"url": "https://example.org/", "events": ["nope.*"]}, "events"),
        ({"url": "https://example.org/", "events": ["session.opened"]}, "events"),
        ({"url": "https://example.org/", "events": ["session.revoked"] * 33}, "events"),
        ({"url": "https://example.org/" + "x" * 2000}, "url"),
    ],
)
async def test_what_is_no_webhook(house: House, body: dict[str, Any], field: str) -> None:
    answer = await house.call("POST", "/admin/webhooks", body, token=await house.admin())
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, field)


async def test_a_secret_is_shown_once_and_sealed(house: House, url: str, pool: asyncpg.Pool) -> None:
    admin = await house.admin()
    _, secret = await made(house, admin, url)
    assert "secret" not in (await house.call("GET", "/admin/webhooks", token=admin)).text
    stored = await pool.fetchval("SELECT sealed_secret FROM webhooks")
    assert secret not in stored
    person = (await house.register()).json["access_token"]
    assert (await house.call("GET", "/admin/webhooks", token=person)).code == "forbidden"


async def test_what_a_webhook_missed_is_sent_again_by_a_request(house: House, receiver: Receiver, url: str) -> None:
    admin = await house.admin()
    before = house.revocations.database_now()
    await house.register("ben@example.org")
    await house.register("eve@example.org")
    id, _ = await made(house, admin, url, "user.created")
    path, since = f"/admin/webhooks/{id}/replay", {"since": rfc3339(before)}
    answer = await house.call("POST", path, since, token=admin)
    assert (answer.status, answer.json) == (200, {"events": 2})
    await until(lambda: receiver.types == ["user.created"] * 2)
    none = await house.call("POST", path, {"since": rfc3339(before - 60), "until": rfc3339(before - 30)}, token=admin)
    assert none.json == {"events": 0}
    rows = (await house.call("GET", "/admin/audit?action=webhook.replayed", token=admin)).json["items"]
    assert [row["detail"] for row in rows] == [{"events": 0}, {"events": 2}]
    for body in (
        {},
        {"since": "yesterday"},
        {"since": rfc3339(before + 3600)},
        {**since, "until": rfc3339(before - 1)},
    ):
        assert (await house.call("POST", path, body, token=admin)).status == 422, body
    assert (await house.call("POST", f"/admin/webhooks/{uuid4().hex}/replay", since, token=admin)).code == "not_found"


async def test_the_command_makes_tries_replays_and_deletes(
    house: House,
    settings: Settings,
    receiver: Receiver,
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shared, "settings_for", lambda common: settings)

    async def run(*arguments: str) -> tuple[int, Any]:
        capsys.readouterr()
        with capture_logs():
            code = await asyncio.to_thread(shared.main, app, arguments)
        out = capsys.readouterr().out
        return code, json.loads(out) if out.startswith(("{", "[")) else out

    await house.register()
    code, one = await run("create", url, "--event", "user.created", "--json")
    assert code == 0
    assert (await run("test", one["id"]))[0] == 0
    await until(lambda: receiver.types == ["test"])
    assert await run("replay", one["id"], "--since", "1h", "--json") == (0, {"id": one["id"], "events": 1})
    await until(lambda: receiver.types == ["test", "user.created"])
    assert (await run("list", "--json"))[1]["items"][0]["url"] == url
    assert url in (await run("list"))[1]
    assert (await run("delete", one["id"]))[0] == 0
    assert (await run("delete", one["id"]))[0] == 1
    assert (await run("replay", uuid4().hex, "--since", "1h"))[0] == 1
    for wrong in (
        ("create", "http://10.0.0.1/"),
        ("create", url, "--event", "x"),
        ("create", url, "--event", "nope.nope"),
        ("test", "x"),
        ("replay", one["id"], "--since", "soon"),
    ):
        assert (await run(*wrong))[0] == 2


async def test_every_event_that_the_database_can_make_of_an_action_can_be_asked_for_and_no_other(
    pool: asyncpg.Pool,
) -> None:
    changes = [
        {"before": {"disabled": before}, "after": {"disabled": after}}
        for before in (False, True)
        for after in (False, True)
    ]
    text = "SELECT DISTINCT webhook_event(a, d) FROM unnest($1::text[]) AS a, jsonb_array_elements($2::jsonb) AS d"
    made = {record[0] for record in await pool.fetch(text, list(get_args(audit.Action)), changes)}
    assert made | {"login.failed"} == webhooks.EVENTS


def test_the_signature_of_the_specification() -> None:
    """The example of Standard Webhooks 1.0."""
    secret = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    headers = webhooks.signed("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body, secret)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_a_delivery_to_a_webhook_that_is_gone_or_became_forbidden_is_given_up(
    house: House, receiver: Receiver, url: str, pool: asyncpg.Pool
) -> None:
    admin = await house.admin()
    id, _ = await made(house, admin, url, "user.created")
    await pool.execute("UPDATE webhooks SET url = 'http://10.0.0.1/'")
    await house.register()
    dead = "SELECT error FROM jobs WHERE kind = 'webhook' AND dead_at IS NOT NULL"
    async with asyncio.timeout(5):
        while not (error := await pool.fetchval(dead)):
            pass
    assert error.startswith("the URL begins with https:")
    await pool.execute("DELETE FROM jobs")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("UPDATE webhooks SET url = $1", url)
        assert (await house.call("POST", f"/admin/webhooks/{uuid4().hex}/test", {}, token=admin)).code == "not_found"
        payload = {"webhook": id, "type": "test", "at": time.time(), "data": {}}
        await connection.execute("DELETE FROM webhooks")
        await connection.execute("INSERT INTO jobs (kind, payload) VALUES ('webhook', $1)", payload)
    house.accounts.jobs.wake()
    async with asyncio.timeout(5):
        while not (error := await pool.fetchval(dead)):
            pass
    assert "the webhook is gone" in error
    assert receiver.heard == []


async def test_there_are_at_most_so_many_webhooks(house: House, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    admin = await house.admin()
    monkeypatch.setattr(webhooks, "MOST", 1)
    await made(house, admin, url)
    answer = await house.call("POST", "/admin/webhooks", {"url": url}, token=admin)
    assert (answer.status, answer.json["errors"][0]["message"]) == (422, "there are 1 webhooks already")
