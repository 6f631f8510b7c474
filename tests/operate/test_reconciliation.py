"""12: a connection that outlives its session is found, counted, raised as an alarm, and closed."""

import asyncio
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from gateway.hub import Hub
from gateway.lanes import Generation
from sessions import log, reconciliation
from sessions.model import Kind, Position, Row
from tests.live.conftest import Worker, eventually


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciliation, "PACE", 0.02)
    monkeypatch.setattr(reconciliation, "PASS", 1.0)


def leave_open(monkeypatch: pytest.MonkeyPatch, *kinds: Kind) -> None:
    """The hub acknowledges rows of these kinds and closes nothing: no switch of the product does that."""
    apply = Hub.apply

    def only_some(self: Hub, row: Row) -> int:
        return 0 if row.kind in kinds else apply(self, row)

    monkeypatch.setattr(Hub, "apply", only_some)


def counts(worker: Worker) -> dict[str, float]:
    return dict(worker.app.reconciliation.figures())


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        ({"kind": "session"}, 4501),
        ({"kind": "user", "code": 4502}, 4502),
        ({"kind": "everyone"}, 4501),
    ],
    ids=["session", "user", "everyone"],
)
async def test_a_planted_violation_is_counted_raised_and_closed(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], code: int
) -> None:
    person = await worker.person()
    session = person["session"]
    socket = await worker.ws()
    assert "connect" in await socket.ask(connect={"token": person["access_token"]})
    leave_open(monkeypatch, *Kind)
    named = {"session": {"sid": session["sid"]}, "user": {"subject": person["user"]["id"]}, "everyone": {}}
    with capture_logs() as logs:
        await worker.revoke(**entry, **named[entry["kind"]], reason="planted")
        assert await socket.closed() == code
    [alarm] = [event for event in logs if event["event"] == "invariant_violation"]
    assert (alarm["log_level"], alarm["sid"], alarm["code"]) == ("critical", session["sid"], code)
    assert alarm["user"] == person["user"]["id"]
    assert counts(worker)["invariant_violations"] == 1


async def test_one_that_stands_in_no_index_is_found_too(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer that is known by nothing is what a revocation cannot find."""
    a, b = await worker.connect("7"), await worker.connect("8")
    [peer] = [peer for peer in worker.hub.members() if peer.user == "7"]
    worker.hub.current.unindex(peer)
    monkeypatch.setattr(Generation, "unindex", lambda _home, _peer: None)
    await worker.revoke(kind="user", subject="7", reason="planted")
    assert await a.closed() == 4501
    assert counts(worker)["invariant_violations"] == 1
    assert b.code is None


async def test_what_ends_as_it_should_is_no_violation(worker: Worker) -> None:
    """Sessions end while they are looked at; the log is applied before anybody is judged."""
    sockets = [await worker.connect(str(n)) for n in range(20)]
    before = counts(worker)["sessions_reconciled"]
    for n in range(0, 20, 2):
        await worker.revoke(kind="user", subject=str(n))
    assert [await socket.closed() for socket in sockets[::2]] == [4501] * 10
    await eventually(lambda: counts(worker)["sessions_reconciled"] >= before + 40)
    assert counts(worker)["invariant_violations"] == 0
    assert [socket.code for socket in sockets[1::2]] == [None] * 10


async def test_a_row_that_is_not_applied_yet_is_waited_for(
    worker: Worker, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Committed by another process, not heard of here: the look sees it first, and is patient."""
    socket = await worker.connect("7")
    renewal = worker.app.revocations._renewal
    waits, held = asyncio.Event(), asyncio.Event()
    renew = renewal._renew

    async def later() -> Any:
        waits.set()
        await held.wait()
        return await renew()

    monkeypatch.setattr(renewal, "_renew", later)
    await waits.wait()
    async with pool.acquire() as connection:
        await end_elsewhere(connection, "7")
    asked = asyncio.Event()
    applied = worker.app.reconciliation._applied

    async def noticed(position: Position) -> Any:
        asked.set()
        return await applied(position)

    monkeypatch.setattr(worker.app.reconciliation, "_applied", noticed)
    await asked.wait()
    assert socket.code is None
    held.set()
    assert await socket.closed() == 4501
    assert counts(worker)["invariant_violations"] == 0


async def end_elsewhere(connection: Any, user: str) -> None:
    entry = log.Entry(kind=Kind.USER, subject=user, reason="elsewhere")
    async with connection.transaction():
        await log.write(connection, [log.Group("", [entry.draft("")])])


async def test_the_budget_is_of_the_cluster_and_a_pass_takes_its_time(
    worker: Worker, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "BUDGET", 6)
    await worker.app.reconciliation.close()
    await pool.execute(
        "INSERT INTO processes (node, policy, version) SELECT 'n' || n, 'serve', 1 FROM generate_series(1, 2) n"
    )
    assert await worker.app.reconciliation._share() == 2
    looks: list[int] = []

    async def look(some: list[Any]) -> None:
        looks.append(len(some))

    monkeypatch.setattr(worker.app.reconciliation, "_look", look)
    await worker.app.reconciliation._pass([object()] * 5)
    assert looks == [2, 2, 1]
    monkeypatch.setattr(reconciliation, "PASS", 10.0)
    looks.clear()
    await worker.app.reconciliation._pass([object()] * 5)
    assert looks == [1] * 5
