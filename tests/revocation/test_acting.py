"""7e for orders over HTTP: who acts must be live in the transaction that writes the order, alone or in a batch."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from config.database import connect
from sessions.committer import Deed
from sessions.errors import SessionEnded
from sessions.model import Kind
from sessions.ranges import Range
from sessions.revocations import Entry
from tests.revocation.cluster import Cluster, Process, ending


async def waiting(cluster: Cluster, count: int) -> None:
    """Until so many statements wait for a lock."""
    sql = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    async with asyncio.timeout(10):
        while len(await cluster.sql(sql)) < count:  # noqa: ASYNC110 - another process's lock
            await asyncio.sleep(0.01)


@asynccontextmanager
async def the_head_is_held(cluster: Cluster) -> AsyncIterator[None]:
    """Whoever writes to the log waits in line until the block is over."""
    connection = await connect(cluster.settings.database)
    try:
        async with connection.transaction():
            await connection.execute("SELECT FROM revocation_head FOR UPDATE")
            yield
    finally:
        await connection.close()


def by(sid: str) -> Deed:
    return Deed("user:admin", "session.revoked", "test", sid)


async def ordered(process: Process, entry: Entry | Range, sid: str) -> str:
    """What became of it: "done", or why the session that acts may not."""
    try:
        if isinstance(entry, Range):
            await process.revocations.order_range(entry, by(sid))
        else:
            await process.revocations.order(entry, by(sid))
    except SessionEnded as ended:
        return ended.ended.reason
    return "done"


async def over(cluster: Cluster) -> set[str]:
    return {r["sid"] for r in await cluster.sql("SELECT sid FROM sessions WHERE ended_at IS NOT NULL")}


async def test_7e_an_admin_whose_session_is_over_orders_nothing(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("admin", "u1")
    await cluster.session("victim", "u2")
    await cluster.sql("UPDATE subjects SET roles = '{player}' WHERE id = 'u2'")
    await process.revocations.revoke(ending("admin"))
    players = Range(entry=ending(""), role="player")
    assert await ordered(process, ending("victim"), "admin") == "test"
    assert await ordered(process, players, "admin") == "test"
    assert await ordered(process, ending("victim"), "unknown") == "absolute"
    assert await over(cluster) == {"admin"}
    assert await cluster.sql("SELECT FROM audit WHERE detail::text LIKE '%receipt%' AND target = 'test'") == []
    assert len(await cluster.sql("SELECT FROM receipts")) == 1


@pytest.mark.parametrize(
    "wanted", [ending("victim"), Range(entry=ending(""), role="player")], ids=["one session", "a role"]
)
@pytest.mark.parametrize(
    "end",
    [ending("admin"), Entry(kind=Kind.USER, subject="u1", reason="test"), Entry(kind=Kind.EVERYONE, reason="test")],
    ids=["session", "user", "everyone"],
)
async def test_7e_an_admin_whose_session_ended_while_the_order_was_under_way_revoked_all_the_same(
    cluster: Cluster, wanted: Entry | Range, end: Entry
) -> None:
    first, second = await cluster.start(), await cluster.start()
    for sid, user in (("admin", "u1"), ("other", "u3"), ("victim", "u2"), ("neighbour", "u4")):
        await cluster.session(sid, user)
    await cluster.sql("UPDATE subjects SET roles = '{player}' WHERE id = 'u2'")
    async with the_head_is_held(cluster):
        ending_admin = asyncio.create_task(second.revocations.revoke(end))
        await waiting(cluster, 1)
        doing = asyncio.create_task(ordered(first, wanted, "admin"))
        await waiting(cluster, 2)
    await ending_admin
    assert await doing == "test"
    assert not {"victim"} & await over(cluster)
    assert len(await cluster.sql("SELECT FROM receipts")) == 1


async def test_7e_of_a_batch_only_the_orders_of_the_ended_are_refused(cluster: Cluster) -> None:
    first, second = await cluster.start(), await cluster.start()
    for n in range(6):
        await cluster.session(f"s{n}", f"u{n}")
    async with the_head_is_held(cluster):
        ending_admin = asyncio.create_task(second.revocations.revoke(ending("s0")))
        await waiting(cluster, 1)
        doing = asyncio.gather(
            ordered(first, ending("s2"), "s0"), ordered(first, ending("s3"), "s1"), ordered(first, ending("s4"), "")
        )
        await waiting(cluster, 2)
    await ending_admin
    assert list(await doing) == ["test", "done", "done"]
    assert await over(cluster) == {"s0", "s3", "s4"}


async def test_7e_of_two_admins_who_end_each_other_at_once_one_does(cluster: Cluster) -> None:
    """In one batch, and from two processes, where neither waits for the other for ever."""
    first, second = await cluster.start(), await cluster.start()
    for n, (one, other) in enumerate([(first, first), (first, second)] * 4):
        await cluster.session(f"a{n}", "u1")
        await cluster.session(f"b{n}", "u2")
        answers = await asyncio.gather(ordered(one, ending(f"b{n}"), f"a{n}"), ordered(other, ending(f"a{n}"), f"b{n}"))
        assert sorted(answers) == ["done", "test"]
        assert len({f"a{n}", f"b{n}"} & await over(cluster)) == 1


async def test_7e_an_admin_may_end_their_own_session_with_the_rest(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("admin", "u1")
    await cluster.session("victim", "u2")
    await cluster.sql("UPDATE subjects SET roles = '{player}'")
    assert await ordered(process, Range(entry=ending(""), role="player"), "admin") == "done"
    assert await over(cluster) == {"admin", "victim"}
    await cluster.session("again", "u1")
    assert await ordered(process, Entry(kind=Kind.EVERYONE), "again") == "done"
    assert await ordered(process, ending("victim"), "again") != "done"
