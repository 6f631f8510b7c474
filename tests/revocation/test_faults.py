"""What the protocol does when Redis, PostgreSQL or a caller goes away in the middle: real servers, really killed."""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from config.database import connect
from config.http import Problem
from config.servers import Postgres, Valkey
from sessions.committer import Deed
from sessions.errors import Unavailable
from sessions.idempotency import key_of
from sessions.model import ERA, Kind, Position
from sessions.revocations import Again, Entry, Receipt
from sessions.transactions import OutcomeUnknown, finish, transaction
from tests.revocation.cluster import REAL, SHORT, Cluster, Process, ending, ending_user, until

DEED = Deed("user:admin", "session.revoked", "test")


async def real_values(cluster: Cluster, count: int = 2) -> list[Process]:
    """Processes with the real L and d that have run for longer than those."""
    await cluster.prepare(*REAL)
    return [await cluster.start() for _ in range(count)]


async def off_loop(work: Any, *args: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, work, *args)


# -- Redis


async def test_redis_killed_between_commit_and_publish_confirms_through_the_lease(
    own_redis: Cluster, own_valkey: Valkey
) -> None:
    first, second = await real_values(own_redis)
    await own_redis.session("s1")
    await own_redis.session("s2")
    for sid in ("s1", "s2"):
        second.hub.connect(sid)
    os.kill(own_valkey.pid, signal.SIGKILL)
    began = time.monotonic()
    receipt = await first.revocations.revoke(ending("s1"), wait=True)
    assert (receipt.state, receipt.by, receipt.connections_closed) == ("confirmed", "acks", 1)
    assert time.monotonic() - began <= 1.5
    await until(lambda: not first.revocations.probe_ok and not second.revocations.probe_ok, within=3)
    began = time.monotonic()
    receipt = await first.revocations.revoke(ending("s2"), wait=True)
    assert (receipt.by, receipt.connections_closed) == ("acks", 1)
    assert time.monotonic() - began <= 1.5
    assert [p.revocations.figures()["freezes"] for p in (first, second)] == [0, 0]
    await off_loop(own_valkey.stop)
    await off_loop(own_valkey.start)
    await until(lambda: first.revocations.probe_ok and second.revocations.probe_ok, within=10)


async def test_redis_that_takes_connections_and_says_nothing_makes_it_slower_and_never_wrong(
    own_redis: Cluster, own_valkey: Valkey
) -> None:
    first, second = await real_values(own_redis)
    for n in range(20):
        await own_redis.session(f"s{n}")
        second.hub.connect(f"s{n}")
    os.kill(own_valkey.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        receipts = await asyncio.gather(*(first.revocations.revoke(ending(f"s{n}"), wait=True) for n in range(20)))
        assert {r.by for r in receipts} == {"acks"}
        assert time.monotonic() - began <= 2.0
        await until(lambda: not first.revocations.probe_ok, within=4)
        published = len(first.pipe.events)
        await asyncio.sleep(1.0)  # no pile of retries: a probe now and then, and no hint a second time
        assert len(first.pipe.events) - published <= 4
    finally:
        os.kill(own_valkey.pid, signal.SIGCONT)
    await until(lambda: first.revocations.probe_ok and second.revocations.probe_ok, within=10)
    assert len(second.hub.rows) == 20  # late hints did nothing again
    assert second.revocations.figures()["freezes"] == 0


async def test_a_subscriber_left_on_another_server_is_found_by_the_probe(
    own_redis: Cluster, own_valkey: Valkey, valkey_server: Valkey
) -> None:
    [process] = await real_values(own_redis, 1)
    assert process.revocations._renewal._pause(news=0, behind=False) == 1.0
    await process.pipe.close()
    process.pipe.__init__(valkey_server.url, process.events)  # type: ignore[misc]
    await process.pipe.start()
    began = time.monotonic()
    await until(lambda: not process.revocations.probe_ok)
    assert time.monotonic() - began <= 4.0  # 3 s, and what a busy machine takes to run the timers
    assert process.revocations._renewal._pause(news=0, behind=False) == 0.2
    assert process.revocations.fresh()


async def test_killed_pubsub_connections_come_back_and_nothing_is_lost(cluster: Cluster) -> None:
    first, second = await cluster.start(), await cluster.start()
    for n in range(5):
        await cluster.session(f"s{n}")
        second.hub.connect(f"s{n}")
        await first.pipe.call("CLIENT", "KILL", "TYPE", "pubsub")
        receipt = await first.revocations.revoke(ending(f"s{n}"), wait=True)
        assert (receipt.state, receipt.connections_closed) == ("confirmed", 1)
    await until(lambda: first.revocations.probe_ok and second.revocations.probe_ok)


async def test_redis_may_be_away_when_a_process_starts(own_redis: Cluster, own_valkey: Valkey) -> None:
    await off_loop(own_valkey.stop)
    process = await own_redis.start(redis=False)
    starting = asyncio.gather(process.bus.start(), process.pipe.start())
    await until(process.revocations.fresh)
    assert not process.revocations.probe_ok
    await process.settled()
    await own_redis.session("s1")
    receipt = await process.revocations.revoke(ending("s1"), wait=True)
    assert receipt.state == "confirmed"
    await off_loop(own_valkey.start)
    await starting
    await until(lambda: process.revocations.probe_ok, within=10)


# -- PostgreSQL


async def test_postgresql_killed_freezes_within_the_lease_refuses_and_comes_back_by_itself(
    own_database: Cluster, own_postgres: Postgres
) -> None:
    first, second = await own_database.start(), await own_database.start()
    await own_database.session("s1")
    second.hub.connect("s1")
    os.kill(own_postgres.pid, signal.SIGKILL)
    killed = first.clock.now()
    with pytest.raises(Problem) as refused:
        await first.revocations.revoke(ending("s1"), wait=True)
    assert refused.value.code == "unavailable"
    await until(lambda: not first.revocations.fresh() and not second.revocations.fresh())
    assert max(p.revocations.fresh_until for p in (first, second)) <= killed + SHORT[0]
    failures = first.revocations.figures()["lease_failures"]
    await asyncio.sleep(1.0)
    assert first.revocations.figures()["lease_failures"] - failures < 10  # nothing spins
    await off_loop(own_postgres.stop)
    await off_loop(own_postgres.start)
    await until(lambda: first.revocations.fresh() and second.revocations.fresh(), within=10)
    assert "s1" in second.hub.connections
    receipt = await revoke_at_last(first, ending("s1"))
    assert (receipt.state, receipt.connections_closed) == ("confirmed", 1)
    assert receipt.position.startswith(f"{2 * ERA + 1:x}-")  # 1c: the server was started anew


async def revoke_at_last(process: Process, entry: Entry) -> Receipt:
    """The pool finds its dead connections one by one."""
    for _ in range(10):
        try:
            return await process.revocations.revoke(entry, wait=True)
        except Problem as problem:
            if problem.code != "unavailable":
                raise
    raise AssertionError("it stayed unavailable")


async def test_postgresql_stopped_gives_an_error_and_never_a_confirmation(
    own_database: Cluster, own_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("config.database.COMMAND_TIMEOUT", 1.0)
    process = await own_database.start()
    await own_database.session("s1")
    os.kill(own_postgres.pid, signal.SIGSTOP)
    backends = _children(own_postgres.pid)
    for pid in backends:
        os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(Problem) as refused:
            await process.revocations.revoke(ending("s1"), wait=True)
        assert refused.value.code in ("unavailable", "outcome_unknown")
        await until(lambda: not process.revocations.fresh())
    finally:
        for pid in [own_postgres.pid, *backends]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    await until(process.revocations.fresh, within=10)
    assert (await revoke_at_last(process, ending("s1"))).state == "confirmed"


def _children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


async def test_a_long_transaction_on_the_head_row_gives_a_clear_error_and_the_lease_goes_on(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("config.database").database._SERVER, "lock_timeout", "300")
    process = await cluster.start()
    await cluster.session("s1")
    connection = await connect(cluster.settings.database)
    held = connection.transaction()
    await held.start()
    await connection.execute("SELECT FROM revocation_head FOR UPDATE")
    with pytest.raises(Problem) as refused:
        await process.revocations.revoke(ending("s1"))
    assert refused.value.code == "unavailable"
    assert process.revocations.fresh()
    await held.rollback()
    await connection.close()
    assert (await process.revocations.revoke(ending("s1"), wait=True)).state == "confirmed"


async def test_an_exhausted_pool_gives_a_clear_error_and_the_lease_goes_on(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("s1")
    held = [await process.pool.acquire() for _ in range(3)]
    with pytest.raises(Problem) as refused:
        await process.revocations.revoke(ending("s1"))
    assert refused.value.code == "unavailable"
    assert process.revocations.fresh()
    for connection in held:
        await process.pool.release(connection)
    assert (await process.revocations.revoke(ending("s1"), wait=True)).state == "confirmed"


async def test_6d_an_unknown_outcome_is_said_so_and_the_key_finds_out(
    own_database: Cluster, own_postgres: Postgres
) -> None:
    """A standby that is waited for and never answers: the COMMIT is there, and then its wait is cancelled."""
    process = await own_database.start()
    await own_database.session("s1")
    await wait_for_standby(own_database, "nobody")
    key = key_of("user:admin", "k1", {"target": "s1"})
    entry = ending("s1")
    revoking = asyncio.create_task(process.revocations.order(entry, DEED, key))
    await cancel_commit(own_database)
    with pytest.raises(OutcomeUnknown):
        await revoking
    asking = asyncio.create_task(process.revocations.order(entry, DEED, key))
    await cancel_commit(own_database)
    with pytest.raises(OutcomeUnknown):  # whoever asks waits for the standby too
        await asking
    await wait_for_standby(own_database, "")
    await until(process.revocations.fresh, within=10)
    receipt, earlier = await process.revocations.order(entry, DEED, key)
    assert earlier
    assert (await process.revocations.confirmed(receipt, 5)).state == "confirmed"
    assert len([r for r in await own_database.rows() if r["sid"] == "s1"]) == 1
    await until(lambda: [r.sid for r in process.hub.rows] == ["s1"])


async def wait_for_standby(cluster: Cluster, name: str) -> None:
    connection = await connect(cluster.settings.database)
    await connection.execute("SET synchronous_commit = local")
    await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
    await connection.execute("SELECT pg_reload_conf()")
    for _ in range(500):
        if await connection.fetchval("SHOW synchronous_standby_names") == name:
            break
    await connection.close()


async def cancel_commit(cluster: Cluster) -> None:
    """Cancel the wait of every COMMIT that waits for a standby, until one of a transaction was among them."""
    connection = await connect(cluster.settings.database)
    for _ in range(2000):
        found = await connection.fetch(
            "SELECT query, pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        )
        if any(r["query"].startswith("COMMIT") for r in found):
            break
        await asyncio.sleep(0.002)
    else:
        raise AssertionError("no COMMIT waits for a standby")
    await connection.close()


# -- commits that are lost


async def test_4c_lost_commits_are_put_back_with_their_id_and_their_bound(cluster: Cluster) -> None:
    """The tail of the log is gone and the server is another, as after the promotion of an asynchronous standby."""
    first, second = await cluster.start(), await cluster.start()
    for n in range(4):
        await cluster.session(f"s{n}", f"u{n}")
    await first.revocations.revoke(ending("s0"), wait=True)
    await first.revocations.revoke(ending("s1", message="gone"), wait=True)
    await second.revocations.revoke(ending_user("u2"), wait=True)
    lost = [r for r in await cluster.rows() if r["seq"] > ERA + 1]
    for process in (first, second):
        process.hub.connect("s3", "u3", ERA)
    await lose_after(cluster, ERA + 1)
    await cluster.session("new", "u2", born=2 * ERA)
    await until(lambda: first.revocations.position.seq > 2 * ERA and second.revocations.position.seq > 2 * ERA)
    rows = await cluster.rows()
    assert [r["seq"] for r in rows] == [ERA, ERA + 1, 2 * ERA, 2 * ERA + 1, 2 * ERA + 2]
    assert [(r["id"], r["bound"], r["message"]) for r in rows[3:]] == [
        (r["id"], r["bound"], r["message"]) for r in lost
    ]
    ended = {r["sid"]: r["ended_code"] for r in await cluster.sql("SELECT sid, ended_code FROM sessions")}
    assert ended == {"s0": 4501, "s1": 4501, "s2": 4501, "s3": None, "new": None}
    for process in (first, second):
        await until(process.revocations.fresh)
        position = process.revocations.position
        assert process.revocations.judge("s1", "u1", ERA, position) is not None
        assert process.revocations.judge("new", "u2", 2 * ERA, position) is None
        assert "s3" in process.hub.connections
        assert len(process.hub.rows) == 4  # s0, s1, u2, and the era
    receipts = await cluster.sql("SELECT count(*) AS n FROM receipts")
    assert receipts[0]["n"] == 3


async def lose_after(cluster: Cluster, seq: int) -> None:
    """Everything that was committed after `seq` is gone."""
    connection = await connect(cluster.settings.database)
    async with connection.transaction():
        await connection.execute("SELECT FROM revocation_head FOR UPDATE")
        await connection.execute("DELETE FROM receipts WHERE seq > $1", seq)
        await connection.execute("UPDATE sessions SET ended_at = NULL, ended_code = NULL WHERE sid <> 's0'")
        await connection.execute("UPDATE subjects SET revoked_below = 0, revoked_code = NULL")
        await connection.execute("DELETE FROM revocation_log WHERE seq > $1", seq)
        await connection.execute(
            "UPDATE revocation_head SET (seq, id) = (SELECT seq, id FROM revocation_log ORDER BY seq DESC LIMIT 1),"
            " era_id = (SELECT id FROM revocation_log WHERE kind = 6 ORDER BY seq DESC LIMIT 1),"
            " server_start = server_start - interval '1 hour'"
        )
    await connection.close()


async def test_4c_an_older_state_of_the_server_is_noticed_and_revoked_stays_revoked(
    own_database: Cluster, own_postgres: Postgres
) -> None:
    """The whole server goes back to an earlier state, and loses an era with it."""
    first, second = await own_database.start(), await own_database.start()
    for n in range(3):
        await own_database.session(f"s{n}", f"u{n}")
    await first.revocations.revoke(ending("s0"), wait=True)
    backup = own_postgres.folder / "backup"
    await off_loop(own_postgres.stop)
    await off_loop(_copy, own_postgres.folder / "data", backup)
    await off_loop(own_postgres.start)
    await until(lambda: first.revocations.fresh() and second.revocations.fresh(), within=10)
    receipt = await revoke_at_last(first, ending_user("u1"))
    assert receipt.state == "confirmed"
    assert receipt.position.startswith(f"{2 * ERA + 1:x}-")
    second.hub.connect("s2", "u2", ERA)
    await off_loop(own_postgres.stop)
    await off_loop(shutil.rmtree, own_postgres.folder / "data")
    await off_loop(_copy, backup, own_postgres.folder / "data")
    await off_loop(own_postgres.start)
    await until(lambda: first.hub.rebased == [ERA + 1] and second.hub.rebased == [ERA + 1], within=10)
    for process in (first, second):
        await until(lambda process=process: process.revocations.position.seq == 2 * ERA + 1, within=10)  # type: ignore[misc]
        await until(process.revocations.fresh, within=10)
    rows = await own_database.rows()
    assert [(r["seq"], r["subject"]) for r in rows[-2:]] == [(2 * ERA, ""), (2 * ERA + 1, "u1")]
    assert rows[-1]["bound"] == 2 * ERA  # an era was lost: it ends where the next one begins
    [u1] = await own_database.sql("SELECT revoked_below FROM subjects WHERE id = 'u1'")
    assert u1["revoked_below"] == 2 * ERA
    stale = Position(2 * ERA + 1, receipt.position.partition("-")[2])
    assert second.revocations.judge("s2", "u2", ERA, stale) is Again.BELOW_FLOOR  # that era is on no chain any more
    assert "s2" in second.hub.connections
    late = await own_database.start(ready=False)
    assert late.revocations.position.seq == 2 * ERA + 1


def _copy(source: Path, target: Path) -> None:
    """A copy with owners and modes."""
    shutil.copytree(source, target, symlinks=True)
    for path in [source, *source.rglob("*")]:
        found = path.lstat()
        os.chown(target / path.relative_to(source), found.st_uid, found.st_gid, follow_symlinks=False)


async def test_4c_a_hinted_row_whose_commit_was_lost_is_put_back_too(cluster: Cluster) -> None:
    first, second = await cluster.start(), await cluster.start()
    await cluster.session("s0")
    await cluster.session("s1")
    await first.revocations.revoke(ending("s0"), wait=True)
    second.cut_lease()
    await first.revocations.revoke(ending("s1"))
    await until(lambda: len(second.hub.rows) == 2)
    await first.close()  # nobody remembers but the one that only heard of it
    cluster.processes.remove(first)
    await lose_after(cluster, ERA + 1)
    second.connecting = True
    await until(lambda: second.revocations.position.seq == 2 * ERA + 1)
    assert [r["sid"] for r in await cluster.rows()] == ["", "s0", "", "s1"]
    await until(second.revocations.fresh)


async def test_4c_a_process_that_had_just_started_froze_for_good_when_its_first_head_was_lost(cluster: Cluster) -> None:
    first = await cluster.start()
    for n in range(3):
        await cluster.session(f"s{n}")
    await first.revocations.revoke(ending("s0"), wait=True)
    second = await cluster.start()
    assert second.revocations.position.seq == ERA + 1
    await first.revocations.revoke(ending("s1"), wait=True)
    await lose_after(cluster, ERA)
    await until(lambda: first.revocations.position.seq == second.revocations.position.seq == 2 * ERA + 2)
    await until(second.revocations.fresh)
    assert {r["sid"] for r in await cluster.rows()} == {"", "s0", "s1"}


async def test_4c_a_process_finds_what_is_common_though_its_whole_era_was_lost(cluster: Cluster) -> None:
    first = await cluster.start()
    for n in range(3):
        await cluster.session(f"s{n}")
    await cluster.sql("UPDATE revocation_head SET server_start = server_start - interval '1 hour'")
    await first.revocations.revoke(ending("s0"), wait=True)
    second = await cluster.start()
    assert second.revocations.position.seq == 2 * ERA + 1
    await lose_after(cluster, ERA)
    await until(lambda: first.hub.rebased == second.hub.rebased == [ERA])
    await until(lambda: first.revocations.position == second.revocations.position)
    await until(lambda: first.revocations.fresh() and second.revocations.fresh())
    assert {r["sid"] for r in await cluster.rows()} == {"", "s0"}


async def test_after_a_failover_a_receipt_counted_nothing_of_what_had_been_closed(
    own_database: Cluster, own_postgres: Postgres
) -> None:
    process = await own_database.start()
    await own_database.session("s0")
    process.hub.connect("s0", count=3)
    receipt = await process.revocations.revoke(ending("s0"), wait=True)
    await until_counted(own_database, 3)
    await until(lambda: not process.revocations._applier._due)
    await own_database.sql("DELETE FROM receipt_nodes")  # the standby had not heard of it
    await off_loop(own_postgres.stop)
    await off_loop(own_postgres.start)
    await until(process.revocations.fresh, within=10)
    await until_counted(own_database, 3)
    found = await process.revocations.receipt(receipt.id)
    assert found is not None
    assert found.connections_closed == 3


async def until_counted(cluster: Cluster, count: int) -> None:
    async with asyncio.timeout(5):
        while [r["n"] for r in await cluster.sql("SELECT connections_closed AS n FROM receipt_nodes")] != [count]:  # noqa: ASYNC110 - in the database
            await asyncio.sleep(0.02)


async def test_after_a_failover_the_pool_stayed_on_the_server_that_takes_no_writes_any_more(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("s0")
    async with process.pool.acquire() as one, process.pool.acquire() as two:  # all there are, from before
        for connection in (one, two):
            await connection.execute("SET SESSION default_transaction_read_only = on")
    await cluster.sql("SELECT 1")
    lease = process.revocations._renewal.lease
    process.revocations._server = lease.start - 60.0  # its lease was renewed by another one until now
    await until(lambda: process.revocations._server == lease.start)
    assert (await process.revocations.revoke(ending("s0"), wait=True)).state == "confirmed"


async def test_4d_without_a_common_row_a_process_stays_frozen_and_says_why(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.sql("UPDATE revocation_log SET id = gen_random_uuid()")
    await cluster.sql("UPDATE revocation_head SET id = (SELECT id FROM revocation_log), era_id = id")
    await until(lambda: not process.revocations.fresh())
    assert process.revocations.why.startswith("lost: ")
    renewals = process.revocations.figures()["lease_renewals"]
    await asyncio.sleep(0.5)
    assert process.revocations.figures()["lease_renewals"] - renewals <= 8


# -- callers that go away


async def test_cancelled_at_every_await_nothing_is_leaked_and_what_committed_is_applied(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("s0")

    async def revoke() -> None:
        async with process.revocations.writing() as writing:
            await writing.require_live("s0")
            await writing.head()
            writing.append(Entry(kind=Kind.RIGHTS, subject="u1"))

    outcomes = []
    for turns in range(60):
        task = asyncio.create_task(revoke())
        for _ in range(turns):
            await asyncio.sleep(0.0003)
        task.cancel()
        [outcome] = await asyncio.gather(task, return_exceptions=True)
        outcomes.append(type(outcome).__name__)
        assert process.pool.get_size() - process.pool.get_idle_size() <= 1  # the receipts' own
    assert {"CancelledError", "NoneType"} == set(outcomes)
    committed = len(await cluster.rows()) - 1
    assert committed >= outcomes.count("NoneType")
    assert len(process.hub.rows) == committed
    assert (
        await cluster.sql(
            "SELECT count(*) AS n FROM pg_locks l JOIN pg_class c ON c.oid = l.relation"
            " WHERE c.relname = 'revocation_head' AND mode = 'RowShareLock' AND granted AND pid <> pg_backend_pid()"
        )
    )[0]["n"] <= 1


async def test_a_cancelled_caller_of_the_committer_takes_nobody_with_him(cluster: Cluster) -> None:
    process = await cluster.start()
    for n in range(10):
        await cluster.session(f"s{n}")
    tasks = [asyncio.create_task(process.revocations.order(ending(f"s{n}"), DEED)) for n in range(10)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert {r["sid"] for r in await cluster.rows()} >= {f"s{n}" for n in range(1, 10, 2)}
    assert (await process.revocations.revoke(ending("s0"), wait=True)).state == "confirmed"


async def test_4c_a_row_that_was_put_back_into_its_old_place_does_not_hide_that_an_era_was_lost(
    cluster: Cluster,
) -> None:
    """Found by a server that went back twice: same seq, same id, another era, and rows before it that nobody saw."""
    first, second = await cluster.start(), await cluster.start()
    for n in range(3):
        await cluster.session(f"s{n}", f"u{n}")
    await cluster.sql("UPDATE revocation_head SET server_start = server_start - interval '1 hour'")
    await first.revocations.revoke(ending("s0"), wait=True)
    for process in (first, second):  # eras come by the lease alone
        await until(lambda process=process: process.revocations.position.seq == 2 * ERA + 1)  # type: ignore[misc]
    before = second.revocations.position
    for process in (first, second):
        process.cut_lease()
    await lose_after(cluster, ERA)
    first.connecting = True
    await until(lambda: first.revocations.position.era != before.era and first.revocations.position.seq == 2 * ERA + 1)
    assert second.revocations.position == before
    second.connecting = True
    await until(lambda: second.revocations.position == first.revocations.position)
    await until(second.revocations.fresh)


# -- the end of one transaction


async def insert_while_commit_does(what: str, pool: asyncpg.Pool) -> bool:
    """Insert a subject in a transaction whose COMMIT does `what`; whether its consequences were drawn."""
    await pool.execute(
        f"CREATE FUNCTION at_commit() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what}; RETURN NULL; END $$;"
        "CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON subjects DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION at_commit()"
    )
    done: list[bool] = []
    async with transaction(pool, lambda: done.append(True)) as connection:
        await connection.execute("INSERT INTO subjects (id) VALUES ('u1')")
    return bool(done)


@pytest.mark.parametrize(
    "what", ["RAISE EXCEPTION 'broken' USING ERRCODE = 'XX000'", "PERFORM pg_terminate_backend(pg_backend_pid())"]
)
async def test_6d_a_commit_that_broke_was_said_not_to_have_happened(pool: asyncpg.Pool, what: str) -> None:
    with pytest.raises(OutcomeUnknown):
        await insert_while_commit_does(what, pool)
    assert await pool.fetchval("SELECT 1") == 1


async def test_6d_a_commit_that_the_server_refused_is_not_unknown_and_a_notice_is_nothing(pool: asyncpg.Pool) -> None:
    with pytest.raises(Unavailable):
        await insert_while_commit_does("RAISE EXCEPTION 'again' USING ERRCODE = '40001'", pool)
    await pool.execute("DROP FUNCTION at_commit CASCADE")
    assert await insert_while_commit_does("RAISE NOTICE 'all is well'", pool)
    assert await pool.fetchval("SELECT count(*) FROM subjects") == 1


async def test_work_that_fails_behind_a_cancelled_caller_is_told_in_the_log() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()
        raise ValueError("too late")

    with capture_logs() as logged:
        caller = asyncio.create_task(finish(work()))
        await begun.wait()
        caller.cancel()
        await asyncio.sleep(0)
        assert not caller.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await caller
    assert [(entry["event"], entry["error"]) for entry in logged] == [
        ("failed_while_cancelled", "ValueError('too late')")
    ]


async def test_work_that_was_cancelled_itself_is_not_waited_for() -> None:
    work: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    caller = asyncio.create_task(finish(work))
    await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
