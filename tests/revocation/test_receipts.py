"""Receipts that cannot be confirmed do not pile up, and can be when that changes."""

import asyncio

import pytest

from sessions import receipts
from tests.revocation.cluster import Cluster, ending, until


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
