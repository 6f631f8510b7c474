"""Sessions of anonymous connections: listed from all nodes beside the others, counted, and revoked by their sid."""

import asyncio
import secrets
from typing import Any

import pytest

from config.redis import Unavailable
from gateway.protocol.codes import SHUTDOWN
from tests.live.conftest import Raw, Start, Worker, token

OPEN = {"allow_anonymous_connect_without_token": True}


async def nobody(worker: Worker, name: str = "") -> Raw:
    raw = await worker.ws(headers={"User-Agent": name} if name else None)
    assert "connect" in await raw.ask(connect={})
    return raw


async def admin(worker: Worker, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    key = worker.app.settings.http_api.key.get_secret_value()
    return await worker.call(method, path, body, headers={"X-API-Key": key})


async def listed(worker: Worker, query: str = "") -> list[dict[str, Any]]:
    status, body = await admin(worker, "GET", f"/admin/sessions?{query}")
    assert status == 200, body
    found: list[dict[str, Any]] = body["items"]
    return found


async def test_anonymous_sessions_are_listed_from_all_nodes_and_end_by_their_sid(start: Start) -> None:
    one, two = await start(client=OPEN), await start(client=OPEN)
    a, b = await nobody(one, "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"), await nobody(two)
    for node in (one, two):
        found = await listed(node, "kind=anonymous")
        assert {item["sid"] for item in found} == {w.hub.members()[0].sid for w in (one, two)}
    (mine,) = [item for item in found if item["sid"] == one.hub.members()[0].sid]
    assert (mine["user"], mine["kind"], mine["issuer"], mine["address"]) == ("", "anonymous", "", "127.0.0.1")
    assert "Firefox" in mine["device"]
    assert mine["connections"] == 1
    assert mine["expires_at"] is mine["idle_expires_at"] is mine["ended"] is None
    assert mine["created_at"] <= mine["last_seen_at"]

    for worker in (one, two):
        await worker.app.registry.flush()  # counts may be a second old
    target = {"sid": mine["sid"]}
    _, dry = await admin(two, "POST", "/admin/revocations", {"target": target, "reason": "r", "dry_run": True})
    assert (dry["sessions"], dry["connections"], dry["users"]) == (1, 1, 0)
    status, _ = await admin(two, "POST", "/admin/revocations", {"target": target, "reason": "r"})
    assert status == 201
    assert await a.closed() == 4501
    assert [item["sid"] for item in await listed(two, "kind=anonymous")] == [two.hub.members()[0].sid]

    await one.app.registry.flush()
    _, dry = await admin(one, "POST", "/admin/revocations", {"target": {"all": True}, "reason": "r", "dry_run": True})
    assert (dry["sessions"], dry["connections"]) == (1, 1)
    body = {"target": {"all": True}, "reason": "r", "confirm": dry["confirm"]}
    status, receipt = await admin(one, "POST", "/admin/revocations", body)
    assert status == 201
    assert await b.closed() == 4501
    assert await listed(one, "kind=anonymous") == []
    async with asyncio.timeout(10):
        while receipt["connections_closed"] != 1:
            await asyncio.sleep(0.05)
            _, receipt = await admin(one, "GET", f"/admin/revocations/{receipt['id']}")


async def test_all_sessions_come_in_one_list_newest_first_page_by_page(start: Start) -> None:
    one, two = await start(client=OPEN), await start(client=OPEN)
    raws, order = [], []
    for n in range(9):
        worker = (one, two)[n % 2]
        if n % 3:
            raws.append(await nobody(worker))
        else:
            raws.append(await worker.connect(f"user{n}"))
        order.append(next(peer.sid for peer in worker.hub.members() if peer.sid not in order))
    items, after = [], ""
    while True:
        _, body = await admin(two, "GET", f"/admin/sessions?limit=2&after={after}")
        assert len(body["items"]) <= 2
        items += body["items"]
        after = body["next"]
        if not after:
            break
    assert sorted(item["sid"] for item in items) == sorted(order)
    times = [item["created_at"] for item in items]
    assert times == sorted(times, reverse=True)
    assert {item["sid"] for item in await listed(one, "kind=external")} == set(order[::3])
    assert await listed(one, "kind=cookie") == []
    assert [item["sid"] for item in await listed(one, f"sid={order[0]}")] == [order[0]]
    assert [item["sid"] for item in await listed(one, "user=user0")] == [order[0]]
    for raw in raws:
        await raw.close()


async def test_connections_of_one_anonymous_token_are_one_session(start: Start) -> None:
    one, two = await start(client=OPEN), await start(client=OPEN)
    ticket = token("", jti=secrets.token_hex(8))
    raws = [await worker.ws() for worker in (one, one, two)]
    for raw in raws:
        assert "connect" in await raw.ask(connect={"token": ticket})
    (item,) = await listed(two, "kind=anonymous")
    assert item["connections"] == 3
    assert item["sid"] == one.hub.members()[0].sid
    for raw in raws:
        await raw.close()


async def test_a_list_without_the_other_nodes_is_worth_having(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await start(client=OPEN)
    raw = await nobody(worker)

    async def away(*_args: Any, **_more: Any) -> Any:
        raise Unavailable("a test")

    monkeypatch.setattr(worker.node._control, "ask", away)
    assert len(await listed(worker, "kind=anonymous")) == 1
    await raw.close()


async def test_what_is_kept_of_an_anonymous_client_is_bounded_and_no_secret(start: Start) -> None:
    worker = await start(client=OPEN)
    raw = await nobody(worker, "x" * 5000)
    (peer,) = worker.hub.members()
    assert peer.handshake is not None
    assert peer.handshake.secret is None
    assert len(peer.handshake.device) <= 300
    worker.hub.close(peer, SHUTDOWN)
    await raw.closed()
    other = await worker.connect("42")
    assert worker.hub.members()[0].handshake is None
    await other.close()
