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
