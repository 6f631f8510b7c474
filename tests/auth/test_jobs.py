"""Jobs as admins see them, over HTTP and by the command."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from structlog.testing import capture_logs

from config import commands as shared
from config.jobs import GiveUp, Job, Kind, enqueue
from config.settings import Settings
from sessions.jobs import app
from tests.auth.conftest import House
from tests.revocation.cluster import until


async def put(pool: asyncpg.Pool, kind: str, *payloads: Any, delay: float = 0.0) -> None:
    async with pool.acquire() as connection:
        await enqueue(connection, kind, payloads, delay=delay)


async def listed(house: House, admin: str, query: str = "") -> list[dict[str, Any]]:
    answer = await house.call("GET", f"/admin/jobs{query}", token=admin)
    assert answer.status == 200
    items: list[dict[str, Any]] = answer.json["items"]
    return items


async def test_an_admin_sees_what_was_given_up_and_has_it_tried_again(house: House, pool: asyncpg.Pool) -> None:
    admin = await house.admin()
    seen: list[int] = []

    async def run(job: Job) -> None:
        seen.append(job.attempt)
        if len(seen) == 1:
            raise GiveUp("the address is wrong")

    house.accounts.jobs.add("test.mail", Kind(run))
    await put(pool, "test.mail", {"to": "a"})
    house.accounts.jobs.wake()
    await until(lambda: house.accounts.jobs.figures()["jobs_failed"])
    async with asyncio.timeout(5):
        while not (dead := await listed(house, admin, "?state=dead")):
            pass
    [job] = dead
    assert (job["kind"], job["state"], job["due_at"], job["attempts"]) == ("test.mail", "dead", None, 1)
    assert (job["error"], job["payload"]) == ("the address is wrong", {"to": "a"})
    assert (await house.call("POST", f"/admin/jobs/{job['id']}/retry", {}, token=admin)).status == 204
    await until(lambda: seen == [1, 1])
    async with asyncio.timeout(5):
        while await listed(house, admin, "?kind=test.mail"):
            pass
    audit = (await house.call("GET", "/admin/audit?action=job", token=admin)).json["items"]
    assert [(row["action"], row["target"]) for row in audit] == [("job.retried", f"job:{job['id']}")]
    assert audit[0]["detail"] == {"kind": "test.mail", "attempts": 0, "error": "the address is wrong"}


async def test_jobs_are_paged_filtered_and_dropped(house: House, pool: asyncpg.Pool) -> None:
    admin = await house.admin()
    for n in range(5):
        await put(pool, "test.later", n, delay=600)
    page = (await house.call("GET", "/admin/jobs?kind=test.later&limit=2", token=admin)).json
    found = list(page["items"])
    while page["next"]:
        page = (await house.call("GET", f"/admin/jobs?kind=test.later&limit=2&after={page['next']}", token=admin)).json
        found += page["items"]
    assert [job["payload"] for job in found] == [4, 3, 2, 1, 0]
    assert await listed(house, admin, "?kind=test.later&state=dead") == []
    gone = f"/admin/jobs/{found[0]['id']}"
    assert (await house.call("DELETE", gone, token=admin)).status == 204
    assert (await house.call("DELETE", gone, token=admin)).code == "not_found"
    assert len(await listed(house, admin, "?kind=test.later&state=waiting")) == 4


@pytest.mark.parametrize("what", ["job", "webhook"])
async def test_7e_an_admin_whose_session_had_ended_meanwhile_dropped_jobs_and_made_webhooks(
    house: House, pool: asyncpg.Pool, what: str
) -> None:
    admin = await house.admin()
    sid = (await house.call("GET", "/auth/me", token=admin)).json["session"]["sid"]
    await put(pool, "test.later", 1, delay=600)
    [job] = await listed(house, admin, "?kind=test.later")
    async with pool.acquire() as connection:
        async with connection.transaction():
            await connection.execute(
                "UPDATE sessions SET ended_at = clock_timestamp(), ended_code = 4501 WHERE sid = $1", sid
            )
            if what == "job":
                asked = asyncio.create_task(house.call("DELETE", f"/admin/jobs/{job['id']}", token=admin))
            else:
                body = {"url": "https://example.org/", "events": ["*"]}
                asked = asyncio.create_task(house.call("POST", "/admin/webhooks", body, token=admin))
            while not asked.done() and not await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                pass
        answer = await asked
        assert (answer.status, answer.code) == (401, "session_ended")
        assert await connection.fetchval("SELECT count(*) FROM jobs WHERE kind = 'test.later'") == 1
        assert await connection.fetchval("SELECT count(*) FROM webhooks") == 0


@pytest.mark.parametrize(
    "query", ["?after=x", "?after=1.x", "?after=-1." + "0" * 32, "?state=x", "?limit=0", "?kind=%00"]
)
async def test_bad_filters_are_named(house: House, query: str) -> None:
    answer = await house.call("GET", f"/admin/jobs{query}", token=await house.admin())
    assert (answer.status, answer.code) == (422, "invalid")
    assert answer.json["errors"][0]["field"] == query[1:].split("=")[0]


async def test_letters_that_wait_or_were_given_up_are_listed(house: House, pool: asyncpg.Pool) -> None:
    admin = await house.admin()
    await house.accounts.jobs.close()  # nobody sends them
    order: dict[str, Any] = {
        "letter": "new_device",
        "to": "a@example.org",
        "language": "de",
        "values": {},
        "token": None,
    }
    await put(pool, "mail", order, "no order", delay=60.0)
    await put(pool, "other", {})
    await pool.execute(
        "update jobs set dead_at = now(), error = 'refused' where kind = 'mail' and payload <> '\"no order\"'"
    )
    found = (await house.call("GET", "/admin/mail", token=admin)).json["items"]
    assert {(letter["letter"], letter["state"]) for letter in found} == {("new_device", "dead"), ("", "waiting")}
    [dead] = (await house.call("GET", "/admin/mail?state=dead", token=admin)).json["items"]
    assert (dead["to"], dead["language"], dead["error"], dead["due_at"]) == ("a@example.org", "de", "refused", None)
    file = await house.call("GET", "/admin/mail?state=dead", token=admin, headers={"Accept": "application/x-ndjson"})
    assert json.loads(file.text) == dead
    assert (await house.call("GET", "/admin/mail?after=x", token=admin)).status == 422


async def test_the_settings_in_force_are_shown_without_secrets(house: House, settings: Settings) -> None:
    answer = await house.call("GET", "/admin/settings", token=await house.admin())
    shown = {item["setting"]: item["value"] for item in answer.json["items"]}
    assert (shown["auth.bcrypt_cost"], shown["auth.pepper"]) == (settings.auth.bcrypt_cost, "***")
    secrets = (settings.auth.pepper, settings.sessions.secret_key, settings.http_api.key, settings.database.url)
    for secret in secrets:
        assert secret.get_secret_value() not in answer.text


async def test_jobs_are_for_admins(house: House) -> None:
    person, admin = (await house.register()).json["access_token"], await house.admin()
    for method, path in (
        ("GET", "/admin/jobs"),
        ("POST", f"/admin/jobs/{uuid4()}/retry"),
        ("DELETE", f"/admin/jobs/{uuid4()}"),
    ):
        body: dict[str, str] | None = {} if method == "POST" else None
        assert (await house.call(method, path, body)).status == 401
        assert (await house.call(method, path, body, token=person)).code == "forbidden"
        if method != "GET":
            assert (await house.call(method, path, body, token=admin)).code == "not_found"


async def test_the_command_lists_retries_and_drops(
    settings: Settings, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shared, "settings_for", lambda common: settings)
    told: list[str] = []

    async def run(*arguments: str) -> tuple[int, Any]:
        with capture_logs():
            code = await asyncio.to_thread(shared.main, app, arguments)
        out, err = capsys.readouterr()
        told.append(err)
        return code, json.loads(out) if out.startswith(("{", "[")) else out

    await put(pool, "test.later", 1, 2, delay=600)
    await pool.execute("UPDATE jobs SET dead_at = now(), error = 'no' WHERE payload = '2'")
    body: Any
    code, body = await run("list", "--dead", "--json")
    [dead] = body["items"]
    assert (code, dead["payload"], dead["state"], dead["error"]) == (0, 2, "dead", "no")
    assert await run("retry", dead["id"], "--json") == (0, {"id": dead["id"], "state": "retried"})
    assert (await run("list", "--dead", "--json"))[1]["items"] == []
    assert (await run("drop", dead["id"]))[0] == 0
    assert (await run("drop", dead["id"]))[0] == 1
    assert (await run("drop", "x"))[0] == 2
    recurring = await pool.fetchval(
        "INSERT INTO jobs (kind, key, payload) VALUES ('test.again', 'k', '1') RETURNING id"
    )
    assert await run("drop", str(recurring)) == (1, "")
    assert "comes again by itself" in told[-1]
    code, text = await run("list")
    assert code == 0
    assert "test.later" in text
