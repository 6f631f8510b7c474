"""`/admin/revocations` from outside: every target, dry runs, confirms, keys, receipts, and what bad input gets."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from config.http import CURRENT, IDENTIFY, ORIGINS, TRUSTED, Caller, mount, problems
from gateway.registry import Registry
from sessions.admin import Confirms, RevocationRoutes, Target
from sessions.model import ERA, Kind
from sessions.ranges import Work
from sessions.revocations import Entry
from tests.revocation.cluster import REAL, Cluster, Process, until

CALLERS = {
    "admin": Caller("bearer", "u0", "mine", scopes=frozenset({"*"})),
    "other": Caller("bearer", "u9", "s9", scopes=frozenset({"*"})),
    "user": Caller("bearer", "u1", "s1"),
    "key": Caller("api_key", "k1", scopes=frozenset({"revocations"})),
    "weak": Caller("api_key", "k2", scopes=frozenset({"publish"})),
}


class Api:
    """A client of one process's routes, beside a second process."""

    def __init__(self, client: TestClient[web.Request, web.Application], cluster: Cluster, registry: Registry) -> None:
        self.client = client
        self.cluster = cluster
        self.registry = registry
        self.first, self.second = cluster.processes

    async def post(self, target: Any, who: str = "admin", key: str = "", **more: Any) -> tuple[int, Any]:
        body = {"target": target, "reason": "test", **more}
        headers = {"X-Who": who, **({"Idempotency-Key": key} if key else {})}
        response = await self.client.post("/admin/revocations", json=body, headers=headers)
        return response.status, await response.json(content_type=None)

    async def get(self, id: str, who: str = "admin") -> tuple[int, Any]:
        response = await self.client.get(f"/admin/revocations/{id}", headers={"X-Who": who})
        return response.status, await response.json(content_type=None)

    async def confirm(self, target: Any, who: str = "admin", **more: Any) -> str:
        status, dry = await self.post(target, who, dry_run=True, **more)
        assert status == 200
        return str(dry["confirm"])

    async def audit(self) -> list[tuple[str, str, str]]:
        rows = await self.cluster.sql("SELECT actor, action, target FROM audit ORDER BY id")
        return [(r["actor"], r["action"], r["target"]) for r in rows]


def connect(process: Process, registry: Registry, sid: str, user: str, count: int = 1) -> None:
    process.hub.connect(sid, user, ERA, count)
    for _ in range(count):
        registry.opened(sid, user)


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    await cluster.prepare(*REAL)
    first, second = await cluster.start(), await cluster.start()
    for n in range(4):
        await cluster.session(f"s{n}", f"u{n}")
    await cluster.session("s1b", "u1")
    await cluster.session("mine", "u0")
    await cluster.sql("UPDATE subjects SET roles = '{staff}' WHERE id IN ('u0', 'u2')")
    registry = Registry(first.pipe, prefix="wardgate", node=first.node)
    for sid, user, count in (("s1", "u1", 2), ("s1b", "u1", 1), ("s2", "u2", 1), ("mine", "u0", 1)):
        connect(second, registry, sid, user, count)

    async def identify(request: web.Request) -> Caller | None:
        return CALLERS.get(request.headers.get("X-Who", ""))

    app = web.Application(middlewares=[problems])
    app[IDENTIFY] = identify
    app[CURRENT] = first.revocations.fresh
    app[ORIGINS] = frozenset()
    app[TRUSTED] = ()
    foreign = lambda user: user.startswith("shop:")  # noqa: E731
    routes = RevocationRoutes(first.revocations, first.pool, registry, secret="s" * 32, foreign=foreign)
    mount(app, routes.routes())
    async with TestClient(TestServer(app)) as client:
        yield Api(client, cluster, registry)


async def test_receipts_are_listed_newest_first_page_by_page_and_exported(api: Api) -> None:
    made = [(await api.post(target, wait=True))[1]["id"] for target in ({"sid": "s1"}, {"user": "u2"})]
    confirm = await api.confirm({"all": True})
    _, everyone = await api.post({"all": True}, confirm=confirm)
    made = [everyone["id"], *reversed(made)]
    seen, after = [], ""
    for left in (2, 1, 0):
        answer = await api.client.get(f"/admin/revocations?limit=1&after={after}", headers={"X-Who": "admin"})
        body = await answer.json()
        seen += body["items"]
        after = body["next"]
        assert bool(after) is bool(left)
    assert [item["id"] for item in seen] == made
    assert [item["target"] for item in seen] == ["all", "user:u2", "session:s1"]
    assert {item["actor"] for item in seen} == {"user:u0"}
    first = seen[-1]
    assert first["elapsed_ms"] == (await api.get(first["id"]))[1]["elapsed_ms"] == round(first["elapsed_ms"], 3)
    assert (first["state"], first["by"], first["connections_closed"], first["nodes"]) == ("confirmed", "acks", 2, 2)
    assert {item["reason"] for item in seen} == {"test"}
    exported = await api.client.get("/admin/revocations", headers={"X-Who": "admin", "Accept": "text/csv"})
    assert len((await exported.text()).splitlines()) == 4
    for wrong in ("x", "1.x", f"{made[0]}", "99999999999999999999.0"):
        answer = await api.client.get(f"/admin/revocations?after={wrong}", headers={"X-Who": "admin"})
        assert answer.status == 422


async def test_a_session_is_ended_everywhere_and_its_receipt_says_so(api: Api) -> None:
    status, receipt = await api.post({"sid": "s1"}, message="Sorry", wait=True)
    assert status == 201
    assert set(receipt) == {
        *("id", "position", "state", "by", "sessions", "connections_closed"),
        *("nodes", "committed_at", "elapsed_ms"),
    }
    assert (receipt["state"], receipt["by"], receipt["sessions"], receipt["connections_closed"]) == (
        *("confirmed", "acks"),
        *(1, 2),
    )
    assert {n["node"]: n["connections_closed"] for n in receipt["nodes"]} == {api.first.node: 0, api.second.node: 2}
    for time in (receipt["committed_at"], *(n["applied_at"] for n in receipt["nodes"])):
        assert datetime.fromisoformat(time).tzinfo is not None
        assert time.endswith("Z")
    assert api.second.hub.rows[0].message == "Sorry"
    assert await api.get(receipt["id"]) == (200, receipt)
    assert await api.audit() == [("user:u0", "session.revoked", "session:s1")]


async def test_a_receipt_is_the_same_on_every_node_and_after_all_have_forgotten(api: Api) -> None:
    _, receipt = await api.post({"sid": "s1"}, wait=True)
    for process in (api.first, api.second):
        process.revocations._receipts._done.clear()
    for _ in range(100):
        found = await api.second.revocations.receipt(receipt["id"])
        if found is not None and found.by and len(found.nodes) == 2:
            break
        await asyncio.sleep(0.02)
    assert found is not None
    assert (found.state, found.connections_closed, found.position) == ("confirmed", 2, receipt["position"])


async def test_without_wait_it_is_committed_and_fills(api: Api) -> None:
    status, receipt = await api.post({"sid": "s1"})
    assert (status, receipt["state"], receipt["by"]) == (201, "committed", None)
    for _ in range(100):
        _, receipt = await api.get(receipt["id"])
        if receipt["state"] == "confirmed":
            break
        await asyncio.sleep(0.02)
    assert (receipt["by"], receipt["connections_closed"]) == ("acks", 2)


async def test_the_wait_ends_after_its_timeout(api: Api) -> None:
    api.second.revocations._hints._on_rows = lambda node, rows: None
    api.second.cut_lease()
    status, receipt = await api.post({"sid": "s1"}, wait=True, timeout=0.1)
    assert (status, receipt["state"]) == (201, "committed")
    assert 100 <= receipt["elapsed_ms"] < 500


async def test_all_sessions_of_a_user(api: Api) -> None:
    status, receipt = await api.post({"user": "u1"}, wait=True)
    assert (status, receipt["sessions"], receipt["connections_closed"]) == (201, 2, 3)
    assert await api.audit() == [("user:u0", "user.revoked", "user:u1")]


async def test_what_was_issued_before_a_moment(api: Api) -> None:
    await api.cluster.sql("UPDATE sessions SET created_at = now() - interval '1 hour' WHERE sid = 's1'")
    before = (datetime.now(UTC) - timedelta(minutes=30)).isoformat()
    target = {"user": "u1", "issued_before": before}
    status, dry = await api.post(target, dry_run=True)
    assert (status, dry["sessions"], dry["connections"], dry["users"]) == (200, 1, 2, 1)
    status, receipt = await api.post(target, wait=True)
    assert (status, receipt["sessions"], receipt["connections_closed"]) == (201, 1, 2)
    later = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    for dry_run in (False, True):
        status, problem = await api.post({"user": "u1", "issued_before": later}, dry_run=dry_run)
        assert (status, problem["errors"][0]["field"]) == (422, "target.issued_before")


async def test_a_role_needs_a_confirm_and_spares_the_caller(api: Api) -> None:
    target = {"role": "staff"}
    assert (await api.post(target))[1]["code"] == "confirm_required"
    status, dry = await api.post(target, dry_run=True)
    assert (status, dry["sessions"], dry["connections"], dry["users"]) == (200, 2, 1, 2)
    status, receipt = await api.post(target, confirm=dry["confirm"], wait=True)
    assert (status, receipt["sessions"], receipt["connections_closed"]) == (201, 2, 1)
    assert "mine" in api.second.hub.connections
    status, receipt = await api.post(target, confirm=dry["confirm"], include_self=True, wait=True)
    assert (status, receipt["sessions"], receipt["connections_closed"]) == (201, 1, 1)


async def test_everyone_but_the_caller(api: Api) -> None:
    target = {"all": True}
    status, dry = await api.post(target, dry_run=True)
    assert (status, dry["sessions"], dry["connections"], dry["users"]) == (200, 5, 4, 4)
    status, receipt = await api.post(target, confirm=dry["confirm"], wait=True, spread_seconds=3)
    assert (status, receipt["sessions"], receipt["connections_closed"]) == (201, 5, 4)
    assert list(api.second.hub.connections) == ["mine"]
    assert api.second.hub.rows[0].spread_seconds == 3
    status, receipt = await api.post(target, confirm=dry["confirm"], include_self=True, wait=True)
    assert (receipt["sessions"], receipt["connections_closed"]) == (1, 1)
    assert [a for _, a, _ in await api.audit()] == ["everyone.revoked"] * 2


async def test_a_key_spares_nobody(api: Api) -> None:
    confirm = await api.confirm({"all": True}, "key")
    status, receipt = await api.post({"all": True}, "key", confirm=confirm, wait=True)
    assert (status, receipt["sessions"]) == (201, 6)
    assert (await api.audit())[0][0] == "key:k1"


async def test_a_confirm_is_bound_to_caller_and_target_and_five_minutes(api: Api) -> None:
    confirm = await api.confirm({"all": True})
    for target, who, text in (
        ({"role": "staff"}, "admin", confirm),
        ({"all": True}, "other", confirm),
        ({"all": True}, "key", confirm),
        ({"all": True}, "admin", confirm[:-1] + ("A" if confirm[-1] != "A" else "B")),
        ({"all": True}, "admin", "9" * 12 + "." + confirm.partition(".")[2]),
        ({"all": True}, "admin", ""),
        ({"all": True}, "admin", "x.y"),
    ):
        status, problem = await api.post(target, who, confirm=text)
        assert (status, problem["code"]) == (409, "confirm_required")
    now = 1000.0
    confirms = Confirms("s" * 32, lambda: now)
    made = confirms.make(CALLERS["admin"], Target(all=True))
    now += 299
    assert confirms.check(made, CALLERS["admin"], Target(all=True))
    now += 2
    assert not confirms.check(made, CALLERS["admin"], Target(all=True))


async def test_a_key_seen_before_gives_the_same_receipt_and_nothing_more(api: Api) -> None:
    status, first = await api.post({"sid": "s1"}, key="k", wait=True)
    again, second = await api.post({"sid": "s1"}, key="k", wait=True)
    assert (status, again, second["id"]) == (201, 200, first["id"])
    assert second["connections_closed"] == 2
    assert len(await api.audit()) == 1
    assert (await api.post({"sid": "s2"}, key="k"))[1]["code"] == "idempotency_conflict"
    await api.cluster.session("s9", "u9")
    status, third = await api.post({"sid": "s1"}, "other", key="k")  # keys are each caller's own
    assert (status, third["id"] != first["id"]) == (201, True)
    await api.cluster.sql("UPDATE idempotency SET created_at = now() - interval '25 hours'")
    status, fourth = await api.post({"sid": "s2"}, key="k")  # and live for a day
    assert (status, fourth["id"] != first["id"]) == (201, True)


async def test_many_at_once_with_one_key_are_one(api: Api) -> None:
    answers = await asyncio.gather(*(api.post({"sid": "s1"}, key="k") for _ in range(8)))
    assert sorted(status for status, _ in answers) == [200] * 7 + [201]
    assert len({receipt["id"] for _, receipt in answers}) == 1
    assert len([r for r in await api.cluster.rows() if r["sid"] == "s1"]) == 1


async def test_a_key_is_found_again_when_its_confirm_has_run_out(api: Api) -> None:
    confirm = await api.confirm({"role": "staff"})
    status, first = await api.post({"role": "staff"}, confirm=confirm, key="k")
    again, second = await api.post({"role": "staff"}, confirm="", key="k")
    assert (status, again, second["id"]) == (201, 200, first["id"])
    assert (await api.post({"role": "staff"}, confirm="", key="new"))[1]["code"] == "confirm_required"


async def test_a_range_that_stopped_half_way_is_finished_by_its_key(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sessions.ranges.MOST", 1)
    await api.cluster.sql("UPDATE subjects SET roles = '{staff}'")
    confirm = await api.confirm({"role": "staff"}, "key")
    more = Work._more

    async def die(self: Work) -> bool:
        raise ConnectionError("killed")

    monkeypatch.setattr(Work, "_more", die)
    status, _ = await api.post({"role": "staff"}, "key", confirm=confirm, key="k", wait=True)
    assert status == 503
    assert len([r for r in await api.cluster.rows() if r["receipt"]]) == 1
    monkeypatch.setattr(Work, "_more", more)
    status, receipt = await api.post({"role": "staff"}, "key", confirm=confirm, key="k", wait=True)
    assert (status, receipt["state"], receipt["sessions"]) == (200, "confirmed", 6)
    rows = [r["subject"] for r in await api.cluster.rows() if r["receipt"]]
    assert rows == ["u0", "u1", "u2", "u3"]


async def test_unknown_and_anonymous_targets(api: Api) -> None:
    for target in ({"sid": "nobody"}, {"user": "nobody"}):
        for dry_run in (False, True):
            status, problem = await api.post(target, dry_run=dry_run)
            assert (status, problem["code"]) == (404, "not_found")
    assert (await api.post({"user": "nobody", "issued_before": "2020-01-01T00:00:00Z"}))[0] == 404
    assert await api.audit() == []
    connect(api.second, api.registry, "anonymous", "")  # it stands in no table, but it is connected
    status, receipt = await api.post({"sid": "anonymous"}, wait=True)
    assert (status, receipt["sessions"], receipt["connections_closed"]) == (201, 0, 1)
    assert (await api.get("0" * 32))[0] == 404
    assert (await api.get("not-an-id"))[0] == 404


async def test_a_foreign_user_is_out_before_he_was_ever_seen(api: Api) -> None:
    status, dry = await api.post({"user": "shop:42"}, dry_run=True)
    assert (status, dry["sessions"], dry["users"]) == (200, 0, 0)
    status, receipt = await api.post({"user": "shop:42"}, wait=True)
    assert (status, receipt["sessions"]) == (201, 0)
    [subject] = await api.cluster.sql("SELECT revoked_below FROM subjects WHERE id = 'shop:42'")
    assert subject["revoked_below"] == ERA + 1
    assert api.second.revocations.judge("x", "shop:42", ERA, api.second.revocations.position) is not None


async def test_who_is_already_out_can_be_ended_again(api: Api) -> None:
    await api.post({"sid": "s1"}, wait=True)
    status, receipt = await api.post({"sid": "s1"}, wait=True)
    assert (status, receipt["sessions"], receipt["connections_closed"]) == (201, 0, 0)


async def test_only_admins_and_keys_with_the_scope(api: Api) -> None:
    assert (await api.post({"sid": "s1"}, "user"))[0] == 403
    assert (await api.post({"sid": "s1"}, "weak"))[0] == 403
    assert (await api.post({"sid": "s1"}, "nobody"))[0] == 401
    assert (await api.post({"sid": "s1"}, "key"))[0] == 201
    assert (await api.get("0" * 32, "user"))[0] == 403


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"target": {}}, "target"),
        ({"target": {"sid": "s1", "user": "u1"}}, "target"),
        ({"target": {"all": False}}, "target"),
        ({"target": {"role": "staff", "issued_before": "2020-01-01T00:00:00Z"}}, "target.issued_before"),
        ({"target": {"user": "u1", "issued_before": "2020-01-01T00:00:00"}}, "target.issued_before"),
        ({"target": {"user": "u1", "issued_before": "yesterday"}}, "target.issued_before"),
        ({"target": {"sid": "a b"}}, "target.sid"),
        ({"target": {"sid": ""}}, "target.sid"),
        ({"target": {"user": ""}}, "target.user"),
        ({"target": {"everybody": True}}, "target"),
        ({"target": "s1"}, "target"),
        ({}, "target"),
        ({"target": {"sid": "s1"}, "reason": ""}, "reason"),
        ({"target": {"sid": "s1"}, "reason": "x" * 65}, "reason"),
        ({"target": {"sid": "s1"}, "reason": "a\rb"}, "reason"),
        ({"target": {"sid": "s1"}, "reason": " "}, "reason"),
        ({"target": {"sid": "s1"}, "reason": 7}, "reason"),
        ({"target": {"sid": "s1"}, "message": "x" * 501}, "message"),
        ({"target": {"sid": "s1"}, "timeout": 60.1}, "timeout"),
        ({"target": {"sid": "s1"}, "timeout": -1}, "timeout"),
        ({"target": {"sid": "s1"}, "wait": "yes"}, "wait"),
        ({"target": {"sid": "s1"}, "spread_seconds": 601}, "spread_seconds"),
        ({"target": {"sid": "s1"}, "sprad_seconds": 1}, "sprad_seconds"),
    ],
)
async def test_bad_input_is_refused_by_name_and_writes_nothing(api: Api, body: dict[str, Any], field: str) -> None:
    response = await api.client.post("/admin/revocations", json={"reason": "test", **body}, headers={"X-Who": "admin"})
    problem = await response.json(content_type=None)
    assert (response.status, problem["code"]) == (422, "invalid")
    assert field in [e["field"] for e in problem["errors"]] or field in str(problem["errors"])
    assert len(await api.cluster.rows()) == 1


async def test_a_bad_key_is_refused(api: Api) -> None:
    for key in ("a b", "x" * 256, "k\u00e9"):
        response = await api.client.post(
            "/admin/revocations",
            json={"target": {"sid": "s1"}, "reason": "test"},
            headers={"X-Who": "admin", "Idempotency-Key": key},
        )
        assert response.status == 422


async def test_a_frozen_node_says_so(api: Api) -> None:
    api.first.cut_lease()
    await until(lambda: not api.first.revocations.fresh(), within=8)
    status, problem = await api.post({"sid": "s1"})
    assert (status, problem["code"]) == (503, "frozen")


async def test_a_dry_run_without_redis_counts_sessions_and_knows_no_connections(api: Api) -> None:
    await api.first.pipe.close()
    status, dry = await api.post({"user": "u1"}, dry_run=True)
    assert (status, dry["sessions"], dry["connections"], dry["users"]) == (200, 2, None, 1)
    status, receipt = await api.post({"user": "u1"}, wait=True)
    assert (status, receipt["state"], receipt["connections_closed"]) == (201, "confirmed", 3)


async def test_receipts_of_changed_rights_of_keys_and_of_nothing_name_their_target(api: Api) -> None:
    for entry in (
        Entry(kind=Kind.RIGHTS, subject="u1", reason="test"),
        Entry(kind=Kind.RIGHTS, sid="s1", reason="test"),
        Entry(kind=Kind.RIGHTS, sid="key:k2", reason="test"),
        Entry(kind=Kind.API_KEY, api_key="k1", reason="test"),
    ):
        async with api.first.revocations.writing(actor="test") as writing:
            writing.append(entry)
    await api.cluster.sql("UPDATE subjects SET roles = '{}'")
    confirm = await api.confirm({"role": "staff"})
    assert (await api.post({"role": "staff"}, confirm=confirm))[0] == 201  # ends nobody: no row of the log is its own
    answer = await api.client.get("/admin/revocations", headers={"X-Who": "admin"})
    targets = [item["target"] for item in (await answer.json())["items"]]
    assert targets == ["", "key:k1", "key:k2", "session:s1", "user:u1"]


async def test_a_key_of_another_revocation_gives_a_range_no_receipt(api: Api) -> None:
    assert (await api.post({"sid": "s3"}, key="k"))[0] == 201
    confirm = await api.confirm({"role": "staff"})
    status, problem = await api.post({"role": "staff"}, confirm=confirm, key="k")
    assert (status, problem["code"]) == (409, "idempotency_conflict")
