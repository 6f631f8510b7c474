"""Receipts that cannot be confirmed do not pile up, and can be when that changes."""

import asyncio
from dataclasses import replace
from uuid import uuid4

import msgspec
import pytest
from structlog.testing import capture_logs

from config.database import open_pool
from sessions import receipts
from sessions.errors import Unavailable
from sessions.hints import Acks, Count
from sessions.model import ERA
from sessions.revocations import Receipt
from tests.revocation.cluster import Cluster, Process, ending, until


async def test_receipts_that_a_silent_process_held_open_were_kept_for_ever(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipts, "STUCK", 0.3)
    first, serving = await cluster.start(), await cluster.start(policy="serve")
    await cluster.session("s1")
    serving.cut_lease()
    serving.revocations._hints._on_rows = lambda node, rows: None
    receipt = await first.revocations.revoke(ending("s1"))
    await until(lambda: not len(first.revocations._receipts))
    assert not first.revocations._receipts._by_row
    serving.connecting = True
    await first.settled()
    confirmed = await first.revocations.confirmed(receipt.id, 5)
    assert (confirmed.state, confirmed.by, confirmed.sessions) == ("confirmed", "acks", 1)


async def test_a_receipt_that_somebody_waits_for_is_kept(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "STUCK", 0.0)
    first, serving = await cluster.start(), await cluster.start(policy="serve")
    await cluster.session("s1")
    serving.cut_lease()
    serving.revocations._hints._on_rows = lambda node, rows: None
    waiting = asyncio.create_task(first.revocations.revoke(ending("s1"), wait=True))
    held = first.revocations._receipts
    await until(lambda: any(open.waiting for open in held._open.values()))
    for _ in range(2):
        seen = held._census
        await until(lambda seen=seen: held._census is not seen)  # type: ignore[misc]
    assert len(held) == 1
    serving.connecting = True
    assert (await waiting).state == "confirmed"


async def test_6b_the_first_wait_after_a_start_took_five_seconds_though_the_cluster_was_old(cluster: Cluster) -> None:
    """That a server start is older than L + d is a fact for all: one process has seen it, the next one reads it."""
    await cluster.prepare(5.0, 0.25)
    old = await cluster.start()
    await until(lambda: old.revocations._renewal.lease.settled_by_others)
    young = await cluster.start(ready=False)
    await young.heard()
    await cluster.session("s1")
    receipt = await young.revocations.revoke(ending("s1"), wait=True, timeout=4.0)
    assert (receipt.state, receipt.by) == ("confirmed", "acks")
    assert not young.revocations._renewal.lease.settled(young.clock.now())


async def test_6b_what_was_settled_under_another_start_settles_nothing(cluster: Cluster) -> None:
    await cluster.prepare(5.0, 0.25)
    await cluster.sql("UPDATE revocation_head SET settled_start = pg_postmaster_start_time() - interval '1 hour'")
    young = await cluster.start(ready=False)
    await young.heard()
    await cluster.session("s1")
    young.revocations._renewal.lease.since = young.clock.now()
    receipt = await young.revocations.revoke(ending("s1"), wait=True, timeout=1.0)
    assert receipt.state == "committed"


async def test_6b_nobody_settles_a_start_before_its_time(cluster: Cluster) -> None:
    await cluster.prepare(5.0, 0.25)
    process = await cluster.start(ready=False)
    await process.revocations._look_at_others()
    assert [tuple(row) for row in await cluster.sql("SELECT settled_start FROM revocation_head")] == [(None,)]
    process.grow_old()
    process.revocations._renewal.lease.start -= 1.0  # it renewed against another start than the pool sees
    await process.revocations._look_at_others()
    assert [tuple(row) for row in await cluster.sql("SELECT settled_start FROM revocation_head")] == [(None,)]


async def test_a_confirmed_receipt_showed_no_closed_connections_when_another_process_was_asked(
    cluster: Cluster,
) -> None:
    """What was acknowledged is written before anybody hears `confirmed`: the renewals that also carry it come later."""
    await cluster.prepare(5.0, 0.25)
    first, second, third = [await cluster.start() for _ in range(3)]
    first.grow_old()
    for n in range(5):
        await cluster.session(f"s{n}")
        for process in (first, second, third):
            process.hub.connect(f"s{n}", count=n + 1)
        receipt = await first.revocations.revoke(ending(f"s{n}"), wait=True)
        found = await third.revocations.receipt(receipt.id)
        assert found is not None
        assert (found.state, found.by, found.connections_closed) == ("confirmed", "acks", 3 * (n + 1))
        assert [part.connections_closed for part in found.nodes] == [n + 1] * 3
        assert found.elapsed_ms == receipt.elapsed_ms


async def test_a_count_that_a_node_wrote_itself_is_not_made_smaller(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await cluster.start(), await cluster.start()
    await cluster.session("s1")
    for process in (first, second):
        process.hub.connect("s1", count=2)
    held = first.revocations._receipts
    write = held._write

    async def after_a_renewal() -> None:
        for id in held._unwritten:
            await cluster.sql("INSERT INTO receipt_nodes VALUES ($1, $2, now(), 7)", id, second.node)
        await write()

    monkeypatch.setattr(held, "_write", after_a_renewal)
    monkeypatch.setattr(second.revocations._applier, "unreported", list)
    monkeypatch.setattr(first.revocations._applier, "unreported", list)
    receipt = await first.revocations.revoke(ending("s1"), wait=True)
    rows = await cluster.sql("SELECT node, connections_closed AS closed FROM receipt_nodes")
    assert receipt.state == "confirmed"
    assert {row["node"]: row["closed"] for row in rows} == {first.node: 2, second.node: 7}


async def held_open(cluster: Cluster) -> tuple[Process, Receipt]:
    """A process, and a receipt of its own that stays open: another one serves, and says nothing."""
    first, serving = await cluster.start(), await cluster.start(policy="serve")
    await cluster.session("s1")
    serving.cut_lease()
    serving.revocations._hints._on_rows = lambda node, rows: None
    return first, await first.revocations.revoke(ending("s1"))


async def test_4c_who_acknowledged_a_row_before_it_was_put_back_has_not_acknowledged_its_new_place(
    cluster: Cluster,
) -> None:
    first, _ = await held_open(cluster)
    held, [row] = first.revocations._receipts, first.hub.rows
    acks = Acks("another", ((row.seq, row.id),), ())
    held.heard(acks)
    acked = held._by_row[row.id].acked
    assert acked == {first.node: {row.id}, "another": {row.id}}
    held.moved(row)
    assert acked["another"] == {row.id}
    held.moved(msgspec.structs.replace(row, seq=row.seq + ERA))
    held.heard(acks)
    assert acked == {first.node: set(), "another": set()}


async def test_a_count_that_comes_late_makes_nothing_smaller_and_one_for_an_unknown_receipt_is_nothing(
    cluster: Cluster,
) -> None:
    first, receipt = await held_open(cluster)
    held = first.revocations._receipts
    for id, closed in ((receipt.id, 3), (receipt.id, 1), ("f" * 32, 5)):
        held.heard(Acks("another", (), (Count(id, closed, 0.0),)))
    await cluster.sql("INSERT INTO receipt_nodes VALUES ($1, 'another', now(), 2)", receipt.id)
    found = await held.read(receipt.id)
    assert found is not None
    assert {part.node: part.connections_closed for part in found.nodes} == {first.node: 0, "another": 3}
    assert held.here("f" * 32) is None


async def test_what_was_confirmed_waits_for_postgresql_and_is_bounded_meanwhile(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, receipt = await held_open(cluster)
    held, gone = first.revocations._receipts, await open_pool(cluster.settings.database)
    gone.terminate()
    monkeypatch.setattr(held, "_pool", gone)
    [open] = held._open.values()
    for _ in range(10_003):
        one = replace(open, id=uuid4().hex, by="acks")
        held._unwritten[one.id] = one
    with capture_logs() as logged:
        await held._write()
        await held._look()
    assert {entry["event"] for entry in logged} == {"receipts_not_written", "census_failed"}
    assert len(held._unwritten) == 10_000
    assert receipt.id in held._open
    held._unwritten.clear()


async def test_a_receipt_is_shown_by_who_made_it_while_postgresql_is_away_and_by_nobody_else(cluster: Cluster) -> None:
    first, receipt = await held_open(cluster)
    with pytest.raises(Unavailable) as refused:
        await first.revocations.confirmed(uuid4().hex, 0)
    assert refused.value.details.detail == "the receipt is gone"
    first.pool.terminate()
    found = await first.revocations.receipt(receipt.id)
    assert found is not None
    assert (found.id, found.state) == (receipt.id, "committed")
    with pytest.raises(Unavailable):
        await first.revocations.receipt(uuid4().hex)
