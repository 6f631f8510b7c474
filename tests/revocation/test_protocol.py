"""Each lettered duty of the protocol below the gateway, over real servers (docs/revocation.md has the table)."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest

from config.clock import SystemClock
from config.database import connect
from config.http import Problem
from sessions import log, registration
from sessions.committer import MOST, Committer, Deed, Order
from sessions.errors import SessionEnded, Unavailable
from sessions.hints import Hint
from sessions.log import Written
from sessions.memory import Again, Place
from sessions.model import DISABLED, ERA, Kind, Position, Row
from sessions.ranges import Range
from sessions.revocations import Entry, Revocations
from tests.revocation.cluster import REAL, SHORT, Cluster, Process, ending, ending_user, until

DEED = Deed("user:admin", "session.revoked", "test")


async def head_of(cluster: Cluster) -> asyncpg.Record:
    [record] = await cluster.sql("SELECT * FROM revocation_head")
    return record


async def pretend_restart(cluster: Cluster) -> None:
    """The last writer of the head wrote under another start of the server."""
    await cluster.sql("UPDATE revocation_head SET server_start = server_start - interval '1 hour'")


# -- 1: the log


async def test_1a_commit_order_is_seq_order(cluster: Cluster) -> None:
    """Whatever is visible is a chain without a hole, at every moment, while many write."""
    first, second = await cluster.start(ready=False), await cluster.start(ready=False)
    seen: list[int] = []
    stop = False

    async def read() -> None:
        connection = await connect(cluster.settings.database)
        while not stop:
            rows = await connection.fetch("SELECT seq, id, previous FROM revocation_log ORDER BY seq")
            assert [r["previous"] for r in rows[1:]] == [r["id"] for r in rows[:-1]]
            assert [r["seq"] for r in rows] == list(range(ERA, ERA + len(rows)))
            assert len(rows) >= (seen[-1] if seen else 0)
            seen.append(len(rows))
        await connection.close()

    async def write(process: Process, n: int) -> None:
        async with process.revocations.writing() as writing:
            writing.append(ending(f"s{n}"))
            if n % 5 == 0:
                writing.append(ending_user(f"u{n}"))

    reader = asyncio.create_task(read())
    await asyncio.gather(*(write((first, second)[n % 2], n) for n in range(40)))
    stop = True
    await reader
    assert len(await cluster.rows()) == 1 + 40 + 8
    assert len(seen) > 2


async def test_1a_the_head_is_locked_last_so_marking_many_sessions_holds_up_nobody(cluster: Cluster) -> None:
    process = await cluster.start(ready=False)
    await cluster.session("s1")
    connection = await connect(cluster.settings.database)
    held = connection.transaction()
    await held.start()
    await connection.execute("SELECT FROM sessions WHERE sid = 's1' FOR UPDATE")
    waiting = asyncio.create_task(process.revocations.revoke(ending("s1")))
    await waiting_for_a_lock(cluster)
    async with process.revocations.writing() as writing:  # meanwhile another one commits
        writing.append(ending("s2"))
    assert not waiting.done()
    await held.rollback()
    await connection.close()
    await waiting
    assert [r["sid"] for r in await cluster.rows()] == ["", "s2", "s1"]


async def waiting_for_a_lock(cluster: Cluster) -> None:
    """Until some statement waits for a lock."""
    for _ in range(400):
        found = await cluster.sql(
            "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        if found:
            return
    raise AssertionError("nothing waits")


async def test_1b_each_kind_reaches_every_process_with_what_it_carries(cluster: Cluster) -> None:
    first, second = await cluster.start(), await cluster.start()
    entries = [
        ending("s1", message="Sorry", spread_seconds=2.0),
        Entry(kind=Kind.USER, subject="u1", code=DISABLED, reason="abuse"),
        Entry(kind=Kind.EVERYONE, except_sid="me", reason="incident"),
        Entry(kind=Kind.RIGHTS, subject="u2"),
        Entry(kind=Kind.API_KEY, api_key="k1"),
    ]
    async with first.revocations.writing() as writing:
        for entry in entries:
            writing.append(entry)
    await until(lambda: len(second.hub.rows) == 5)
    for process in (first, second):
        assert [
            msgspec.structs.asdict(r) | msgspec.structs.asdict(e)
            for r, e in zip(process.hub.rows, entries, strict=True)
        ] == [msgspec.structs.asdict(r) for r in process.hub.rows]
        position = Position(ERA, process.revocations.position.era)
        ended = process.revocations.judge("s9", "u1", ERA, position)
        assert ended is not None
        assert ended is not Again.RIGHTS
        assert process.revocations.judge("me", "u2", ERA, position) is Again.RIGHTS
        assert process.revocations.judge_key("k1", position) is not None
    [subject] = await cluster.sql("SELECT * FROM subjects WHERE id = 'u1'")
    assert (subject["revoked_below"], subject["revoked_code"]) == (ERA + 2, DISABLED)


async def test_1b_a_role_becomes_user_rows_under_one_receipt_and_spares_the_caller(cluster: Cluster) -> None:
    process = await cluster.start()
    for n in range(5):
        await cluster.session(f"s{n}", f"u{n}")
    await cluster.session("mine", "u0")
    await cluster.sql("UPDATE subjects SET roles = '{staff}' WHERE id < 'u4'")
    wanted = Range(entry=ending(""), role="staff", spared="mine", spared_user="u0")
    id, _ = await process.revocations.order_range(wanted, DEED)
    receipt = await process.revocations.confirmed(id, 3)
    assert (receipt.state, receipt.sessions) == ("confirmed", 4)
    rows = [(r["kind"], r["sid"] or r["subject"]) for r in await cluster.rows() if r["receipt"]]
    assert rows == [(1, "s0"), (2, "u1"), (2, "u2"), (2, "u3")]


async def test_1b_many_users_take_several_transactions_and_one_receipt(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessions.ranges.MOST", 3)
    process = await cluster.start()
    for n in range(7):
        await cluster.session(f"s{n}", f"u{n}")
    await cluster.sql("UPDATE subjects SET roles = '{staff}'")
    id, _ = await process.revocations.order_range(Range(entry=ending(""), role="staff"), DEED)
    receipt = await process.revocations.confirmed(id, 3)
    assert (receipt.state, receipt.sessions) == ("confirmed", 7)
    [stored] = await cluster.sql("SELECT rows, complete FROM receipts")
    assert (stored["rows"], stored["complete"]) == (7, True)
    writers = await cluster.sql("SELECT count(DISTINCT xmin::text) AS n FROM revocation_log WHERE receipt IS NOT NULL")
    assert writers[0]["n"] == 3
    assert len(await cluster.sql("SELECT FROM audit WHERE detail ->> 'receipt' = $1", id)) == 1


async def test_1c_a_seq_is_never_used_twice(cluster: Cluster) -> None:
    """The first write under another server start begins an era; so does a login, which only reads the head."""
    process = await cluster.start()
    before = await head_of(cluster)
    await pretend_restart(cluster)
    async with process.revocations.writing() as writing:
        born = await writing.head()
    assert born.seq == 2 * ERA
    rows = await cluster.rows()
    assert [(r["seq"], r["kind"]) for r in rows] == [(ERA, 6), (2 * ERA, 6)]
    assert rows[1]["previous"] == before["id"]
    assert born.era == rows[1]["id"].hex
    await pretend_restart(cluster)
    async with process.revocations.writing() as writing:
        writing.append(ending("s1"))
    assert [r["seq"] for r in await cluster.rows()] == [ERA, 2 * ERA, 3 * ERA, 3 * ERA + 1]
    assert process.revocations.position.seq == 3 * ERA + 1
    other = Position(2 * ERA + 7, "ff" * 16)
    assert process.revocations.judge("s", "u", 2 * ERA, other) is Again.BELOW_FLOOR


async def test_1c_two_first_writers_after_a_restart_begin_one_era(cluster: Cluster) -> None:
    processes = [await cluster.start(ready=False) for _ in range(3)]
    await pretend_restart(cluster)

    async def log_in(process: Process) -> Position:
        async with process.revocations.writing() as writing:
            return await writing.head()

    born = await asyncio.gather(*(log_in(p) for p in processes))
    assert {p.seq for p in born} == {2 * ERA}
    assert len(await cluster.rows()) == 2


async def test_1d_a_row_that_asks_for_a_newer_reader_freezes_and_says_why(cluster: Cluster) -> None:
    process = await cluster.start()
    head = await head_of(cluster)
    await cluster.sql(
        "WITH r AS (INSERT INTO revocation_log (seq, id, previous, kind, bound, min_version)"
        " VALUES ($1, gen_random_uuid(), $2, 77, $1, 2) RETURNING id)"
        " UPDATE revocation_head SET seq = $1, id = r.id FROM r",
        head["seq"] + 1,
        head["id"],
    )
    await until(lambda: "cannot apply row" in process.revocations.why)
    assert not process.revocations.fresh()
    assert "version 2" in process.revocations.why
    assert process.revocations.position.seq == head["seq"]
    await cluster.sql("UPDATE revocation_log SET min_version = 1, kind = 1 WHERE min_version = 2")  # as if upgraded
    await until(process.revocations.fresh)


async def test_1e_all_that_wait_go_into_one_transaction(cluster: Cluster) -> None:
    process = await cluster.start()
    for n in range(30):
        await cluster.session(f"s{n}", f"u{n % 7}")
    orders = [process.revocations.order(ending(f"s{n}"), DEED) for n in range(30)]
    receipts = await asyncio.gather(*orders)
    assert len({id for id, _ in receipts}) == 30
    [found] = await cluster.sql(
        "SELECT count(DISTINCT xmin::text) AS transactions, count(*) AS rows FROM revocation_log WHERE kind = 1"
    )
    assert found["rows"] == 30
    assert found["transactions"] <= 2


async def test_1e_at_most_500_in_one_transaction_in_the_order_they_came(cluster: Cluster) -> None:
    process = await cluster.start(ready=False)
    committer = process.revocations._committer
    for n in range(MOST + 7):
        committer._waiting.append(Order(ending(f"s{n}"), Deed(), known=False))
    assert len(committer._batch()) == MOST
    assert [order.entry.sid for order in committer._batch()] == [f"s{n}" for n in range(MOST, MOST + 7)]


async def test_1e_one_bad_entry_does_not_fail_its_batch(cluster: Cluster) -> None:
    process = await cluster.start()
    for n in range(3):
        await cluster.session(f"s{n}")
    entries = [ending("s0"), ending("nobody"), ending("s1"), ending("s2", message="\x00"), ending_user("no one")]
    results = await asyncio.gather(
        *(process.revocations.order(entry, DEED) for entry in entries), return_exceptions=True
    )
    problems = [r.code if isinstance(r, Problem) else "" for r in results]
    assert problems == ["", "not_found", "", "invalid", "not_found"]
    assert [r["sid"] for r in await cluster.rows()][1:] == ["s0", "s1"]
    assert len(await cluster.sql("SELECT FROM audit")) == 2


async def test_1e_what_failed_after_the_commit_was_committed_again_one_by_one(cluster: Cluster) -> None:
    process = await cluster.start()
    for n in range(3):
        await cluster.session(f"s{n}")

    def broken(written: log.Written) -> None:
        raise RuntimeError("a mistake in what follows a commit")

    process.revocations._committer._then = broken
    orders = [process.revocations.order(ending(f"s{n}"), DEED) for n in range(3)]
    results = await asyncio.gather(*orders, return_exceptions=True)
    assert [type(result) for result in results] == [RuntimeError] * 3
    assert len(await cluster.sql("SELECT FROM revocation_log WHERE kind = 1")) == 3


async def test_1e_users_are_locked_in_order_so_batches_of_two_processes_never_deadlock(cluster: Cluster) -> None:
    first, second = await cluster.start(ready=False), await cluster.start(ready=False)
    users = [f"u{n}" for n in range(12)]
    for user in users:
        await cluster.session(f"s-{user}", user)
    orders = [
        process.revocations.order(ending_user(user), Deed())
        for process, names in ((first, users), (second, users[::-1]))
        for user in names
        for _ in range(3)
    ]
    await asyncio.gather(*orders)
    assert len(await cluster.rows()) == 1 + 2 * 3 * len(users)


# -- 2: positions


async def test_2a_a_login_behind_a_revocation_is_born_after_it(cluster: Cluster) -> None:
    process = await cluster.start(ready=False)
    await cluster.session("old")
    connection = await connect(cluster.settings.database)
    revoking = connection.transaction()
    await revoking.start()
    written = await log.write(connection, [log.Group("a" * 32, [ending_user("u1").draft("a" * 32)])])

    async def log_in() -> Position:
        async with process.revocations.writing() as writing:
            await writing.connection.execute("SELECT FROM subjects WHERE id = 'u1' FOR UPDATE")
            return await writing.head()

    login = asyncio.create_task(log_in())
    await waiting_for_a_lock(cluster)
    await revoking.commit()
    await connection.close()
    assert (await login).seq == written.rows[0].seq


async def test_2a_a_revocation_behind_a_login_kills_what_it_opened(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("old")
    async with process.revocations.writing() as writing:
        await writing.connection.execute("SELECT FROM subjects WHERE id = 'u1' FOR UPDATE")
        born = await writing.head()
        revoking = asyncio.create_task(process.revocations.revoke(ending_user("u1")))
        await waiting_for_a_lock(cluster)
        await writing.connection.execute(
            "INSERT INTO sessions (sid, subject, kind, born, expires_at, idle_seconds)"
            " VALUES ('new', 'u1', 'cookie', $1, now() + interval '1 day', 60)",
            born.seq,
        )
    receipt = await revoking
    assert receipt.sessions == 2
    assert process.revocations.judge("new", "u1", born.seq, born) is not None
    assert [r["ended_code"] for r in await cluster.sql("SELECT ended_code FROM sessions")] == [4501, 4501]


async def test_2a_everyone_kills_by_position_without_marking_anybody(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("old")
    await cluster.session("me")
    receipt = await process.revocations.revoke(Entry(kind=Kind.EVERYONE, except_sid="me", reason="incident"))
    assert receipt.sessions == 1
    await cluster.session("new")
    judged = await cluster.sql(
        "SELECT sid, ended_at, e.code, e.reason FROM sessions s"
        " LEFT JOIN LATERAL revoked_with_everyone(s.born, s.sid) e ON true ORDER BY sid"
    )
    assert [tuple(r) for r in judged] == [
        ("me", None, None, None),
        ("new", None, None, None),
        ("old", None, 4501, "incident"),
    ]
    assert (await process.revocations.revoke(Entry(kind=Kind.EVERYONE))).sessions == 2  # who is over is not counted


async def test_2c_below_the_floor_postgresql_is_asked(cluster: Cluster) -> None:
    process = await cluster.start()
    await process.revocations.revoke(ending_user("u1", code=4501)) if await cluster.session("s1") else None
    late = await cluster.start()
    below = Position(ERA, late.revocations.position.era)
    assert late.revocations.judge("s1", "u1", ERA, below) is Again.BELOW_FLOOR

    async def read(connection: Any) -> Position:
        record = await connection.fetchrow("SELECT seq, era_id FROM revocation_head")
        return Position(record["seq"], record["era_id"].hex)

    position = await late.revocations.read_current(read)
    assert late.revocations.judge("s2", "u1", position.seq, position) is None


async def test_2d_issued_before_is_resolved_inside_the_transaction(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("old")
    await cluster.sql("UPDATE sessions SET created_at = now() - interval '2 hours'")
    await cluster.session("new")
    before = datetime.now(UTC) - timedelta(hours=1)
    wanted = Range(entry=ending(""), user="u1", issued_before=before)
    id, _ = await process.revocations.order_range(wanted, DEED)
    receipt = await process.revocations.confirmed(id, 3)
    assert (receipt.state, receipt.sessions) == ("confirmed", 1)
    assert [r["sid"] for r in await cluster.rows()][1:] == ["old"]


async def test_2d_a_time_in_the_future_is_refused(cluster: Cluster) -> None:
    process = await cluster.start(ready=False)
    await cluster.session("s1")
    wanted = Range(entry=ending(""), user="u1", issued_before=datetime.now(UTC) + timedelta(seconds=30))
    with pytest.raises(Problem) as refused:
        await process.revocations.order_range(wanted, DEED)
    assert refused.value.code == "invalid"
    assert len(await cluster.rows()) == 1
    assert await cluster.sql("SELECT FROM audit") == []


async def test_2d_nothing_from_before_is_an_answer_too(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("s1")
    wanted = Range(entry=ending(""), user="u1", issued_before=datetime.now(UTC) - timedelta(days=1))
    id, _ = await process.revocations.order_range(wanted, DEED)
    receipt = await process.revocations.confirmed(id, 3)
    assert (receipt.state, receipt.sessions, receipt.connections_closed) == ("confirmed", 0, 0)


# -- 3: hints


async def test_3_a_hint_closes_at_once_and_the_lease_brings_what_was_not_heard(cluster: Cluster) -> None:
    await cluster.prepare(*REAL)
    first, second = await cluster.start(), await cluster.start()
    for n in range(2):
        await cluster.session(f"s{n}")
        second.hub.connect(f"s{n}")
    second.cut_lease()  # only hints come
    first.pipe.dumb = True
    await first.revocations.revoke(ending("s0"))  # and this one does not
    first.pipe.dumb = False
    await first.revocations.revoke(ending("s1"))
    await until(lambda: "s1" not in second.hub.connections)
    assert "s0" in second.hub.connections
    assert second.revocations.position.seq == ERA  # not beyond a gap
    second.connecting = True
    await until(lambda: "s0" not in second.hub.connections)
    await until(lambda: second.revocations.position.seq == ERA + 2)


async def test_3_forged_cut_and_repeated_hints_do_nothing(cluster: Cluster) -> None:
    first, second = await cluster.start(), await cluster.start()
    await cluster.session("s1")
    second.hub.connect("s1")
    envelope = second.revocations._hints.envelope
    assert envelope is not None
    row = Row(ERA + 1, "a" * 32, first.revocations.position.era, Kind.SESSION, ERA + 1, sid="s1")
    good = envelope.seal(Hint("somebody", (msgspec.Raw(msgspec.msgpack.encode(row)),)))
    channel = f"{cluster.settings.redis.prefix}:revocations"
    bad = [b"", b"\x01", good[:-1], good[:20] + b"x" + good[21:], b"\x02" + good[1:], bytes(17) + good[17:]]
    for payload in bad:
        await first.pipe.call("PUBLISH", channel, payload)
    await until(lambda: second.revocations.figures()["hints_rejected"] == len(bad))
    assert "s1" in second.hub.connections
    await first.revocations.revoke(ending("s1"))
    await until(lambda: second.hub.rows)
    sealed = envelope.seal(Hint(first.node, tuple(msgspec.Raw(msgspec.msgpack.encode(r)) for r in second.hub.rows)))
    heard = second.revocations.figures()["hints_received"]
    for _ in range(3):
        await first.pipe.call("PUBLISH", channel, sealed)
    await until(lambda: second.revocations.figures()["hints_received"] == heard + 3)
    assert len(second.hub.rows) == 1
    assert second.revocations.fresh()


# -- 4: the lease


async def test_4a_one_statement_acknowledges_asks_and_brings_the_rows(cluster: Cluster) -> None:
    await cluster.prepare(2.0, 0.1)
    process = await cluster.start()
    await cluster.session("s1")
    await process.revocations.revoke(ending("s1"))
    count = len(process.queries)
    await until(lambda: len(process.queries) >= count + 4)
    assert len({*process.queries[count:]}) == 1
    [found] = await cluster.sql("SELECT * FROM processes")
    last = (await cluster.rows())[-1]
    assert (found["applied_seq"], found["applied_id"]) == (last["seq"], last["id"])
    beat = found["beat"]
    await until(lambda: len(process.queries) >= count + 6)
    assert (await cluster.sql("SELECT beat FROM processes"))[0]["beat"] > beat


async def test_4a_more_than_a_page_of_rows_comes_at_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await cluster.start(redis=False)
    late = await cluster.start(redis=False)
    await until(lambda: first.revocations.fresh() and late.revocations.fresh())
    connection = await connect(cluster.settings.database)
    drafts = [ending(f"s{n}").draft("") for n in range(2500)]
    async with connection.transaction():
        await log.write(connection, [log.Group("", drafts)])
    await connection.close()
    await until(lambda: late.revocations.position.seq == ERA + 2500)
    assert len(late.hub.rows) == 2500
    assert late.revocations.fresh()


async def test_4b_the_lease_counts_from_before_the_statement_was_sent(cluster: Cluster) -> None:
    """A reply that is late by almost the lease grants almost nothing."""
    process = await cluster.start()
    connection = await connect(cluster.settings.database)
    held = connection.transaction()
    await held.start()
    await connection.execute("SELECT FROM processes FOR UPDATE")
    await waiting_for_a_lock(cluster)
    asked = process.clock.now()
    before = process.revocations.fresh_until
    await held.rollback()
    await connection.close()
    await until(lambda: process.revocations.fresh_until > before)
    assert process.revocations.fresh_until <= asked + SHORT[0] or process.revocations._renewal.failures


async def test_4b_without_renewals_it_freezes_within_the_lease_and_thaws_when_they_come_back(cluster: Cluster) -> None:
    process = await cluster.start()
    edges: list[str] = []
    process.revocations.on_freeze.append(lambda: edges.append("freeze"))
    process.revocations.on_thaw.append(lambda: edges.append("thaw"))
    process.cut_lease()
    cut = process.clock.now()
    await until(lambda: edges == ["freeze"])
    assert process.revocations.fresh_until <= cut + SHORT[0]
    assert not process.revocations.fresh()
    assert process.revocations.why.startswith("lease: ")
    attempts = process.revocations.figures()["lease_failures"]
    await asyncio.sleep(0)
    process.connecting = True
    await until(lambda: edges == ["freeze", "thaw"])
    assert process.revocations.fresh()
    assert process.revocations.why == ""
    assert process.revocations.figures()["freezes"] == 1
    assert process.revocations.figures()["lease_failures"] - attempts < 20


# -- 5: registration


async def test_5a_registered_in_a_transaction_of_its_own_before_the_first_head_is_read(cluster: Cluster) -> None:
    process = await cluster.start(ready=False)
    await until(lambda: any("revocation_head" in query for query in process.queries))
    texts = process.queries
    first = next(i for i, query in enumerate(texts) if "INSERT INTO processes" in query)
    head = next(i for i, query in enumerate(texts) if "revocation_head" in query)
    assert first < head
    assert "revocation_head" not in texts[first]
    [found] = await cluster.sql("SELECT * FROM processes")
    assert (found["node"], found["policy"], found["version"]) == (process.node, "freeze", 1)


async def test_5b_a_process_whose_row_is_gone_registers_again_and_keeps_what_it_had(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("s1")
    await process.revocations.revoke(ending("s1"))
    memory = process.revocations._applier.memory
    process.hub.connect("other")
    await cluster.sql("DELETE FROM processes")
    renewals = process.revocations.figures()["lease_renewals"]
    await until(lambda: process.revocations.figures()["lease_renewals"] >= renewals + 3)
    assert len(await cluster.sql("SELECT FROM processes WHERE applied_seq IS NOT NULL")) == 1
    assert process.revocations.fresh()
    assert process.revocations._applier.memory is memory
    assert "other" in process.hub.connections


async def test_5b_until_then_nothing_is_granted(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    process = await cluster.start()

    async def refuse(*_: Any) -> None:
        raise ConnectionError("not now")

    monkeypatch.setattr(registration, "register", refuse)
    await cluster.sql("DELETE FROM processes")
    await until(lambda: not process.revocations.fresh())
    monkeypatch.undo()
    await until(process.revocations.fresh)


async def test_5c_a_dead_process_is_removed_by_another_and_its_own_end_removes_it_at_once(cluster: Cluster) -> None:
    first, second, third = (
        await cluster.start(ready=False),
        await cluster.start(ready=False),
        await cluster.start(ready=False),
    )
    await third.close()
    cluster.processes.remove(third)
    assert len(await cluster.sql("SELECT FROM processes")) == 2
    second.cut_lease()
    began = time.monotonic()
    await gone(cluster, second.node, within=8)
    assert time.monotonic() - began > sum(SHORT) + registration.MARGIN - 0.4
    assert len(await cluster.sql("SELECT FROM processes WHERE node = $1", first.node)) == 1
    second.connecting = True
    await until(second.revocations.fresh)  # 5b


async def gone(cluster: Cluster, node: str, within: float) -> None:
    end = time.monotonic() + within
    while await cluster.sql("SELECT FROM processes WHERE node = $1", node):
        assert time.monotonic() < end, "it was not removed"


async def test_5c_the_removal_compares_beat_and_server_start(cluster: Cluster) -> None:
    await cluster.sql("INSERT INTO processes (node, policy, version, beat) VALUES ('n', 'freeze', 1, 7)")
    connection = await connect(cluster.settings.database)
    _, start = await registration.look(connection)
    assert not await registration.remove_dead(connection, registration.Dead("n", 6, start))
    assert not await registration.remove_dead(connection, registration.Dead("n", 7, start - 1))
    assert await registration.remove_dead(connection, registration.Dead("n", 7, start))
    await connection.close()


# -- 6: confirming


async def test_6a_confirmed_by_acknowledgements_over_redis_with_every_nodes_count(cluster: Cluster) -> None:
    processes = [await cluster.start() for _ in range(3)]
    await cluster.session("s1")
    for n, process in enumerate(processes):
        process.hub.connect("s1", count=n)
    receipt = await processes[0].revocations.revoke(ending("s1"), wait=True)
    assert (receipt.state, receipt.by, receipt.connections_closed, receipt.sessions) == ("confirmed", "acks", 3, 1)
    assert {n.node: n.connections_closed for n in receipt.nodes} == {p.node: n for n, p in enumerate(processes)}


async def test_6a_confirmed_by_acknowledgements_of_the_lease_while_redis_is_away(cluster: Cluster) -> None:
    first, second = await cluster.start(redis=False), await cluster.start(redis=False)
    await first.settled()
    await cluster.session("s1")
    second.hub.connect("s1", count=2)
    began = time.monotonic()
    receipt = await first.revocations.revoke(ending("s1"), wait=True)
    assert (receipt.state, receipt.connections_closed) == ("confirmed", 2)
    assert time.monotonic() - began < 1.5
    assert not first.revocations.probe_ok


async def test_6a_confirmed_by_time_when_a_process_is_silent_and_its_count_comes_later(cluster: Cluster) -> None:
    first, second = await cluster.start(), await cluster.start()
    await cluster.session("s1")
    second.hub.connect("s1", count=2)
    second.cut_lease()
    second.revocations._hints._on_rows = lambda node, rows: None  # deaf
    receipt = await first.revocations.revoke(ending("s1"), wait=True)
    assert (receipt.state, receipt.by, receipt.connections_closed) == ("confirmed", "lease", 0)
    assert receipt.elapsed_ms >= 1000 * sum(SHORT)
    assert not second.revocations.fresh()
    second.connecting = True
    await until(lambda: second.hub.rows)
    for _ in range(100):
        found = await first.revocations.receipt(receipt.id)
        if found is not None and found.connections_closed == 2:
            break
        await asyncio.sleep(0.02)
    assert found is not None
    assert (found.state, found.by, found.connections_closed, len(found.nodes)) == ("confirmed", "lease", 2, 2)


async def test_6a_with_the_real_lease_and_drift(settings: Any) -> None:
    """The one test that runs with L = 5 s and d = 0.25 s."""
    cluster = Cluster(settings)
    try:
        first, second = await cluster.start(ready=False), await cluster.start(ready=False)
        await first.heard()
        await first.settled()
        await cluster.session("s1")
        await cluster.session("s2")
        second.hub.connect("s1")
        receipt = await first.revocations.revoke(ending("s1"), wait=True)
        assert (receipt.by, receipt.connections_closed) == ("acks", 1)
        assert receipt.elapsed_ms < 1500
        second.cut_lease()
        second.revocations._hints._on_rows = lambda node, rows: None
        receipt = await first.revocations.revoke(ending("s2"), wait=True)
        assert receipt.by == "lease"
        assert 5250 <= receipt.elapsed_ms < 6500
        assert not second.revocations.fresh()
    finally:
        await cluster.close()


async def test_6b_a_process_that_has_just_started_takes_no_acknowledgement_for_proof(cluster: Cluster) -> None:
    process = await cluster.start(ready=False)
    await process.heard()
    await cluster.session("s1")
    lease = process.revocations._renewal.lease
    lease.since = process.clock.now() + 60.0
    await cluster.sql("UPDATE revocation_head SET settled_start = NULL")  # nor has any other
    receipt = await process.revocations.revoke(ending("s1"), wait=True)
    assert (receipt.state, receipt.by) == ("confirmed", "lease")
    assert receipt.elapsed_ms > 500 * sum(SHORT)


async def test_6c_a_process_that_serves_is_confirmed_by_its_own_acknowledgement_alone(cluster: Cluster) -> None:
    first, serving = await cluster.start(), await cluster.start(policy="serve")
    await cluster.session("s1")
    serving.cut_lease()
    deaf = serving.revocations._hints._on_rows
    serving.revocations._hints._on_rows = lambda node, rows: None
    receipt = await first.revocations.revoke(ending("s1"), wait=True, timeout=2.0)
    assert (receipt.state, receipt.by) == ("committed", None)
    assert serving.revocations.fresh()  # 10e
    assert serving.revocations.why.startswith("lease: ")
    serving.revocations._hints._on_rows = deaf
    serving.connecting = True
    confirmed = await first.revocations.confirmed(receipt.id, 5)
    assert (confirmed.state, confirmed.by) == ("confirmed", "acks")
    assert len(confirmed.nodes) == 2


async def test_6c_lease_and_drift_are_those_of_the_head_row(cluster: Cluster) -> None:
    await cluster.prepare(2.0, 0.3)
    process = await cluster.start()
    head = process.revocations._renewal.lease.head
    assert head is not None
    assert (head.lease, head.drift) == (2.0, 0.3)
    left = process.revocations.fresh_until - process.clock.now()
    assert SHORT[0] / 2 < left <= 2.0


async def test_6d_any_process_can_finish_a_confirmation(cluster: Cluster) -> None:
    first, second = await cluster.start(), await cluster.start()
    await cluster.session("s1")
    id, _ = await first.revocations.order(ending("s1"), DEED)
    first.revocations._receipts._open.clear()  # it died before it could confirm
    await first.close()
    cluster.processes.remove(first)
    await cluster.sql("UPDATE receipts SET confirmed_by = NULL")
    found = await second.revocations.confirmed(id, 5)
    assert found.state == "confirmed"
    for _ in range(100):
        if (await cluster.sql("SELECT confirmed_by FROM receipts"))[0]["confirmed_by"]:
            break
        await asyncio.sleep(0.02)
    assert (await cluster.sql("SELECT confirmed_by FROM receipts"))[0]["confirmed_by"] == found.by


async def test_7e_a_mutation_holds_its_session_so_that_a_revocation_waits_for_it(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("s1")
    async with process.revocations.writing() as writing:
        await writing.require_live("s1")
        revoking = asyncio.create_task(process.revocations.revoke(ending("s1")))
        await waiting_for_a_lock(cluster)
        assert not revoking.done()
    await revoking
    with pytest.raises(SessionEnded) as ended:
        async with process.revocations.writing() as writing:
            await writing.require_live("s1")
    assert (ended.value.ended.code, ended.value.ended.reason) == (4501, "test")


async def test_7e_every_way_in_which_a_session_is_over_is_refused(cluster: Cluster) -> None:
    process = await cluster.start(ready=False)
    for n in range(6):
        await cluster.session(f"s{n}", f"u{n}")
    await cluster.session("me", "u9")
    await cluster.sql("UPDATE subjects SET state = 'disabled' WHERE id = 'u1'")
    await cluster.sql("UPDATE subjects SET revoked_below = $1, revoked_code = 4501 WHERE id = 'u2'", ERA + 1)
    await cluster.sql("UPDATE sessions SET expires_at = now() - interval '1 s' WHERE sid = 's3'")
    await cluster.sql("UPDATE sessions SET last_seen_at = now() - interval '2 hours' WHERE sid = 's4'")

    async def refusal(sid: str) -> tuple[int, str] | None:
        try:
            async with process.revocations.writing() as writing:
                await writing.require_live(sid)
        except SessionEnded as ended:
            return ended.ended.code, ended.ended.reason
        return None

    assert await refusal("s0") is None
    assert [await refusal(f"s{n}") for n in (1, 2, 3, 4)] == [
        (4502, ""),
        (4501, ""),
        (4504, "absolute"),
        (4504, "idle"),
    ]
    assert (await refusal("unknown") or (0, ""))[0] == 4504
    async with process.revocations.writing() as writing:
        writing.append(Entry(kind=Kind.EVERYONE, except_sid="me", reason="all"))
    assert await refusal("s0") == (4501, "all")
    assert await refusal("me") is None


async def test_8b_local_first_then_the_cluster_and_the_acknowledgement_after(cluster: Cluster) -> None:
    first, second = await cluster.start(), await cluster.start()
    await cluster.session("s1")
    for process in (first, second):
        process.events.clear()
    await first.revocations.revoke(ending("s1"), wait=True)
    everyone = f"{cluster.settings.redis.prefix}:revocations"
    own = [event for event in first.events if event[0] == "applied" or event[1] == everyone]
    assert [event[0] for event in own] == ["applied", "published"]
    other = [e for e in second.events if e[0] == "applied" or e[1] == f"{everyone}:{first.node}"]
    assert [event[0] for event in other] == ["applied", "published"]


async def test_8b_what_could_not_be_closed_is_not_acknowledged_and_tried_again(cluster: Cluster) -> None:
    first, second = await cluster.start(), await cluster.start()
    await cluster.session("s1")
    second.hub.connect("s1")
    second.hub.broken = True
    receipt = await first.revocations.revoke(ending("s1"), wait=True, timeout=0.3)
    assert receipt.state == "committed"
    await until(lambda: "could not be carried out" in second.revocations.why)
    assert not second.revocations.fresh()
    second.hub.broken = False
    await until(lambda: "s1" not in second.hub.connections)
    await until(second.revocations.fresh)


async def test_9b_a_read_for_a_connect_follows_a_renewal_on_the_leases_connection(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("s1")
    process.pipe.dumb = True

    async def read(connection: Any) -> tuple[Any, Place]:
        memory = process.revocations._applier.memory
        assert memory is not None
        return connection, memory.applied

    connection = await connect(cluster.settings.database)
    async with connection.transaction():
        written = await log.write(connection, [log.Group("", [ending("s1").draft("")])])
    await connection.close()
    used, applied = await process.revocations.read_current(read)
    assert used is process.lease_connection
    assert applied.seq == written.rows[-1].seq


async def test_9b_without_a_lease_there_is_no_such_read(cluster: Cluster) -> None:
    process = await cluster.start()
    process.cut_lease()
    with pytest.raises(Problem) as refused:
        await process.revocations.read_current(lambda connection: connection.fetchval("SELECT 1"))
    assert refused.value.code == "frozen"


async def test_9b_a_read_that_fails_fails_for_its_caller_alone(cluster: Cluster) -> None:
    await cluster.prepare(*REAL)
    process = await cluster.start()
    read, used = process.revocations.read_current, process.lease_connection
    with pytest.raises(asyncpg.DivisionByZeroError):
        await read(lambda connection: connection.fetchval("SELECT 1 / 0"))
    assert await read(lambda connection: connection.fetchval("SELECT 1")) == 1
    assert process.lease_connection is used
    with pytest.raises(Problem) as refused:
        await read(lambda connection: connection.execute("SELECT pg_terminate_backend(pg_backend_pid())"))
    assert refused.value.code == "unavailable"
    assert await read(lambda connection: connection.fetchval("SELECT 1")) == 1
    assert process.lease_connection is not used


@pytest.mark.parametrize("fails", [False, True])
async def test_9b_readers_that_were_cancelled_hold_up_nobody(cluster: Cluster, fails: bool) -> None:
    await cluster.prepare(*REAL)
    process = await cluster.start()
    began, go = asyncio.Event(), asyncio.Event()

    async def slow(connection: Any) -> None:
        began.set()
        await go.wait()
        if fails:
            raise ValueError

    async def quick(connection: Any) -> int:
        return 1

    reading, waiting, last = (asyncio.create_task(process.revocations.read_current(q)) for q in (slow, quick, quick))
    await began.wait()
    for task in (reading, waiting):
        task.cancel()
    go.set()
    assert await last == 1
    outcomes = await asyncio.gather(reading, waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError] * 2
    assert process.revocations.fresh()


async def test_9b_reads_that_take_long_leave_the_lease_its_time_and_go_on_after_the_next_renewal(
    cluster: Cluster,
) -> None:
    process = await cluster.start()
    length = process.revocations._renewal.patience / 2

    async def slow(connection: Any) -> int:
        await connection.execute("SELECT pg_sleep($1)", length)
        return process.revocations._renewal.renewals

    first, second = await asyncio.gather(*(process.revocations.read_current(slow) for _ in range(2)))
    assert second > first


async def test_before_the_log_was_read_nothing_is_judged_and_nothing_applied(
    cluster: Cluster, pool: asyncpg.Pool
) -> None:
    settings = cluster.settings
    process = Process(settings, settings.database, pool, "freeze", SystemClock())
    revocations = process.revocations
    row = Row(ERA + 1, "a" * 32, "b" * 32, Kind.SESSION, ERA + 1, sid="s1")
    with pytest.raises(Unavailable):
        _ = revocations.position
    with pytest.raises(Unavailable):
        revocations.judge("s1", "u1", ERA, Position(ERA, "b" * 32))
    revocations._committed(Written([row]))
    revocations._settle(row)
    revocations._applier.prune()
    assert process.hub.rows == []
    assert not revocations.fresh()
    await process.close()


async def test_6c_a_cluster_of_another_protocol_version_freezes_and_says_why(cluster: Cluster) -> None:
    process = await cluster.start()
    before = (await head_of(cluster))["protocol_version"]
    await cluster.sql("UPDATE revocation_head SET protocol_version = 99")
    await until(lambda: process.revocations.why == "the cluster speaks protocol version 99")
    assert not process.revocations.fresh()
    await cluster.sql("UPDATE revocation_head SET protocol_version = $1", before)
    await until(process.revocations.fresh)


async def test_4b_a_log_without_a_head_grants_nothing(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.sql("CREATE TABLE kept AS SELECT * FROM revocation_head")
    await cluster.sql("DELETE FROM revocation_head")
    await until(lambda: not process.revocations.fresh())
    assert process.revocations.why == "lease: renewal failed (ConnectionError)"
    await cluster.sql("INSERT INTO revocation_head SELECT * FROM kept")
    await until(process.revocations.fresh)


async def test_1e_more_orders_than_can_wait_are_refused_and_so_is_whoever_waits_at_the_end(
    cluster: Cluster, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sessions.committer.WAITING", 1)
    committer = Committer(pool, lambda written: None, SystemClock().wall)
    waiting = asyncio.create_task(committer.submit(Order(ending("s1"), DEED)))
    await asyncio.sleep(0)
    with pytest.raises(Problem) as busy:
        await committer.submit(Order(ending("s2"), DEED))
    assert busy.value.code == "busy"
    committer.close()
    with pytest.raises(Unavailable):
        await waiting
    assert len(await cluster.rows()) == 1


async def test_10e_policy_serve_never_freezes_and_says_what_it_would_do(cluster: Cluster) -> None:
    process = await cluster.start(policy="serve")
    assert process.revocations.figures()["policy_serve"] == 1.0
    process.cut_lease()
    await until(lambda: process.revocations.why != "")
    assert process.revocations.fresh()
    assert process.revocations.fresh(process.clock.now() + 1e9)


async def test_11_the_databases_clock_is_local_clock_plus_a_sampled_offset(cluster: Cluster) -> None:
    process = await cluster.start(ready=False)
    [row] = await cluster.sql("SELECT extract(epoch FROM clock_timestamp())::float8 AS now")
    assert abs(process.revocations.database_now() - row["now"]) < 1.0


# -- 13: Redis is speed


async def test_13_flushall_neither_logs_anyone_out_nor_brings_anyone_back(cluster: Cluster) -> None:
    first, second = await cluster.start(), await cluster.start()
    await cluster.session("s1")
    await cluster.session("s2")
    second.hub.connect("s2")
    await first.revocations.revoke(ending("s1"), wait=True)
    await first.pipe.call("FLUSHALL")
    await first.pipe.call("SCRIPT", "FLUSH")
    position = Position(ERA, second.revocations.position.era)
    assert second.revocations.judge("s1", "u1", ERA, position) is not None
    assert second.revocations.judge("s2", "u1", ERA, position) is None
    receipt = await first.revocations.revoke(ending("s2"), wait=True)
    assert (receipt.by, receipt.connections_closed) == ("acks", 1)


async def test_the_whole_thing_ends_without_a_trace(cluster: Cluster) -> None:
    process = await cluster.start()
    await process.close()
    cluster.processes.remove(process)
    assert await cluster.sql("SELECT FROM processes") == []
    assert not process.revocations.fresh()
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not any(name.startswith("revocations:") for name in names)


def test_every_background_task_is_named(revocations: Revocations) -> None:
    names = sorted(revocations._tasks._running.values())
    assert names == [f"revocations: {n}" for n in ("committer", "hints", "lease", "prune", "receipts", "sweep")]
