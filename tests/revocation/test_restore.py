"""4d, F26: PostgreSQL is put back to an older state, or becomes another. Real servers, real copies of their data."""

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import pytest

from config.database import Connection, connect
from config.errors import Restored
from config.servers import Postgres
from sessions import log, restoring
from sessions.errors import Unavailable
from sessions.model import ERA, Row
from tests.revocation.cluster import Cluster, ending, until
from tests.revocation.test_faults import _copy, off_loop, revoke_at_last


class Backups:
    """Copies of the data folder of a server."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._data: Path = server.folder / "data"
        self._kept: Path = server.folder / "backup"

    async def take(self) -> None:
        """Of the stopped server, which runs again after."""
        await off_loop(self._server.stop)
        await off_loop(_copy, self._data, self._kept)
        await off_loop(self._server.start)

    async def put_back(self, *, recovered: bool) -> None:
        """`recovered`: by archive recovery, as restores are done, which begins a timeline; else as it was."""
        await off_loop(self._server.stop)
        await off_loop(shutil.rmtree, self._data)
        await off_loop(_copy, self._kept, self._data)
        if recovered:
            self._signal("recovery.signal")
            with (self._data / "postgresql.auto.conf").open("a") as settings:
                settings.write("restore_command = 'false'\n")
        await off_loop(self._server.start)
        await self.primary()

    async def promote(self) -> None:
        """The server goes down in order and comes back as a standby, which has everything; that is promoted."""
        await off_loop(self._server.stop)
        self._signal("standby.signal")
        await off_loop(self._server.start)
        await self._ask("SELECT pg_promote()")
        await self.primary()

    async def primary(self) -> None:
        async with asyncio.timeout(20):
            while await self._ask("SELECT pg_is_in_recovery()"):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(0.02)

    async def _ask(self, query: str) -> object:
        connection = await asyncpg.connect(self._server.url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    def _signal(self, name: str) -> None:
        file = self._data / name
        file.touch()
        self._server.place.own(file)


@pytest.fixture
def backups(own_postgres: Postgres) -> Backups:
    return Backups(own_postgres)


async def head(cluster: Cluster) -> tuple[str | None, str]:
    [row] = await cluster.sql("SELECT origin AS vouched, database_origin() AS origin FROM revocation_head")
    return row["vouched"], row["origin"]


async def vouched_for(cluster: Cluster) -> None:
    async with asyncio.timeout(10):
        while True:
            vouched, origin = await head(cluster)
            if vouched == origin:
                return
            await asyncio.sleep(0.02)


async def decided(cluster: Cluster) -> None:
    connection = await connect(cluster.settings.database)
    await restoring.revoke_all(connection, reason="restored")
    await connection.close()


async def test_4d_the_first_process_notes_where_the_log_is_kept(cluster: Cluster) -> None:
    await restoring.check(cluster.settings.database)  # nobody has looked yet
    assert (await head(cluster))[0] is None
    await cluster.start()
    await vouched_for(cluster)
    await restoring.check(cluster.settings.database)
    system, timeline, table = (await head(cluster))[1].split("/")
    [row] = await cluster.sql("SELECT system_identifier::text AS id FROM pg_control_system()")
    assert (system, timeline) == (row["id"], "1")
    assert int(table) > 0


async def test_4d_a_restore_with_nobody_alive_is_not_served_from_until_an_operator_decides(
    own_database: Cluster, backups: Backups
) -> None:
    """The rows of processes in the backup are of the dead: their beats stand still."""
    first = await own_database.start()
    for sid in ("s1", "s2"):
        await own_database.session(sid)
    await backups.take()  # with the process in it
    await until(first.revocations.fresh, within=10)
    await revoke_at_last(first, ending("s1"))
    await first.close()
    own_database.processes.clear()
    await backups.put_back(recovered=True)
    assert len(await own_database.sql("SELECT FROM processes")) == 1
    assert (await head(own_database))[1].split("/")[1] == "2"

    with pytest.raises(Restored, match="--revoke-all"):
        await restoring.check(own_database.settings.database)
    late = await own_database.start(ready=False)  # a worker that a supervisor started again
    await until(lambda: late.revocations.figures()["lease_renewals"] >= 3)
    assert not late.revocations.fresh()
    assert late.revocations.why.startswith("lost: ")

    await decided(own_database)
    await restoring.check(own_database.settings.database)
    await until(late.revocations.fresh)
    rows = await own_database.rows()
    assert [(r["seq"] % ERA, r["kind"]) for r in rows[-2:]] == [(0, 6), (1, 3)]  # an era of its own
    [audit] = await own_database.sql("SELECT actor, detail FROM audit WHERE action = 'database.restored'")
    assert (audit["actor"], audit["detail"]["revoked"]) == ("cli", "all")
    live = await own_database.sql(
        "SELECT FROM sessions s WHERE NOT EXISTS (SELECT FROM revoked_with_everyone(born, sid))"
    )
    assert live == []


async def test_4d_a_restore_that_a_process_lived_through_is_healed_by_it_and_not_refused(
    own_database: Cluster, backups: Backups
) -> None:
    first = await own_database.start()
    await own_database.session("s1")
    await backups.take()
    await until(first.revocations.fresh, within=10)
    await revoke_at_last(first, ending("s1"))
    await backups.put_back(recovered=True)
    await vouched_for(own_database)
    await restoring.check(own_database.settings.database)
    assert [r["sid"] for r in (await own_database.rows())][-1] == "s1"
    await until(first.revocations.fresh, within=10)


async def test_4d_a_planned_promotion_is_not_refused(own_database: Cluster, backups: Backups) -> None:
    first, second = await own_database.start(), await own_database.start()
    await own_database.session("s1")
    second.hub.connect("s1")
    before = await head(own_database)
    await backups.promote()
    await restoring.check(own_database.settings.database)  # waits for whoever lives to vouch
    vouched, origin = await head(own_database)
    assert vouched == origin != before[1]
    third = await own_database.start(ready=False)
    for process in (first, second, third):
        await until(process.revocations.fresh, within=10)
    assert "s1" in second.hub.connections
    receipt = await revoke_at_last(first, ending("s1"))
    assert (receipt.state, receipt.connections_closed) == ("confirmed", 1)


async def test_4d_a_promotion_with_nobody_alive_waits_for_the_operators_word(
    own_database: Cluster, backups: Backups
) -> None:
    first = await own_database.start()
    await own_database.session("s1")
    await first.close()
    own_database.processes.clear()
    await backups.promote()
    with pytest.raises(Restored, match="--nothing-lost"):
        await restoring.check(own_database.settings.database)
    connection = await connect(own_database.settings.database)
    found = await restoring.survey(connection)
    assert (found.doubtful, found.sessions, found.users, found.processes) == (True, 1, 1, 0)
    await restoring.nothing_lost(connection)
    assert not (await restoring.survey(connection)).doubtful
    await connection.close()
    await restoring.check(own_database.settings.database)
    again = await own_database.start(ready=False)
    await until(again.revocations.fresh)
    receipt = await again.revocations.revoke(ending("s1"))
    assert int(receipt.position.partition("-")[0], 16) % ERA == 1  # whatever stood there, this is another era


async def test_4d_a_folder_put_back_as_it_was_is_doubted_by_whoever_remembers_more(
    own_database: Cluster, backups: Backups
) -> None:
    """Nothing in the database tells; the process whose floor is beyond it does."""
    old = await own_database.start()
    await own_database.session("s1")
    await own_database.session("s2")
    await backups.take()
    await until(old.revocations.fresh, within=10)
    await revoke_at_last(old, ending("s1"))
    await old.close()
    young = await own_database.start()
    own_database.processes.remove(old)
    young.hub.connect("s2")
    await revoke_at_last(young, ending("s2"))
    young.hub.connect("other")
    await backups.put_back(recovered=False)
    await until(lambda: young.revocations.figures()["log_lost"] == 1, within=10)
    with pytest.raises(Restored, match="remembers revocations"):
        await restoring.check(own_database.settings.database, patience=3)
    await until(lambda: not young.revocations.fresh())
    assert "other" in young.hub.connections
    await decided(own_database)
    await until(young.revocations.fresh, within=10)  # it goes on from before its floor
    assert young.hub.connections == {}
    assert young.revocations.figures()["log_lost"] == 0
    async with asyncio.timeout(10):
        while [(r["kind"], r["sid"]) for r in (await own_database.rows())[-2:]] != [(3, ""), (1, "s2")]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # it puts back what it remembers
    await restoring.check(own_database.settings.database)


async def test_4d_without_the_right_to_ask_every_database_counts_as_the_same(cluster: Cluster) -> None:
    await cluster.sql("CREATE ROLE poor")
    try:
        connection = await connect(cluster.settings.database)
        await connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public")
        await connection.execute("GRANT SELECT ON revocation_head TO poor")
        await connection.execute("SET ROLE poor")
        assert str(await connection.fetchval("SELECT database_origin()")).startswith("untold/")
        await connection.close()
    finally:
        await cluster.sql("GRANT EXECUTE ON FUNCTION pg_control_system() TO public")
        await cluster.sql("REVOKE ALL ON revocation_head FROM poor")
        await cluster.sql("DROP ROLE poor")


async def test_4d_an_older_timeline_is_served_from_by_nobody_who_knows_a_later_one(
    own_database: Cluster, backups: Backups
) -> None:
    """As an old primary that wakes up and takes writes: its log is known to this process, and ends too early."""
    process = await own_database.start()
    await own_database.session("s1")
    await own_database.session("s2")
    process.hub.connect("s2")
    await backups.take()
    await backups.promote()
    await vouched_for(own_database)
    await revoke_at_last(process, ending("s1"))
    await backups.put_back(recovered=False)
    await until(lambda: process.revocations.figures()["log_lost"] == 1, within=10)
    await until(lambda: not process.revocations.fresh())
    assert (await head(own_database))[0] == "lost"
    with pytest.raises(Restored):
        await restoring.check(own_database.settings.database, patience=3)
    assert "s2" in process.hub.connections
    await decided(own_database)
    await until(process.revocations.fresh, within=10)
    assert process.hub.connections == {}


async def test_4d_what_was_remembered_was_lost_when_the_database_failed_as_the_process_began_anew(
    own_database: Cluster, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await own_database.start()
    await own_database.session("s1")
    await backups.take()
    await backups.promote()
    await vouched_for(own_database)
    await revoke_at_last(process, ending("s1"))
    await backups.put_back(recovered=False)
    await until(lambda: process.revocations.figures()["log_lost"] == 1, within=10)
    put_back, failed = log.put_back, asyncio.Event()

    async def away(connection: Connection, rows: Sequence[Row]) -> log.Written:
        monkeypatch.setattr(log, "put_back", put_back)
        failed.set()
        raise Unavailable

    monkeypatch.setattr(log, "put_back", away)
    await decided(own_database)
    async with asyncio.timeout(10):
        await failed.wait()
        while [(r["kind"], r["sid"]) for r in (await own_database.rows())[-2:]] != [(3, ""), (1, "s1")]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_4d_a_process_that_came_after_the_operators_decision_doubted_it_again(
    own_database: Cluster, backups: Backups
) -> None:
    """It could not reach the database while that was put back, and remembers what is lost."""
    old = await own_database.start()
    await own_database.session("s1")
    await own_database.session("s2")
    await backups.take()
    await until(old.revocations.fresh, within=10)
    await revoke_at_last(old, ending("s1"))
    await old.close()
    own_database.processes.remove(old)
    young = await own_database.start()
    await revoke_at_last(young, ending("s2"))
    young.cut_lease()
    await backups.put_back(recovered=False)
    await decided(own_database)
    serving = await own_database.start(ready=False)
    await until(serving.revocations.fresh, within=10)
    young.connecting = True
    await until(young.revocations.fresh, within=10)
    assert young.revocations.figures()["log_lost"] == 0
    assert (await head(own_database))[0] != "lost"
    async with asyncio.timeout(10):
        while [(r["kind"], r["sid"]) for r in (await own_database.rows())[-2:]] != [(3, ""), (1, "s2")]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # it puts back what it remembers
    await until(serving.revocations.fresh, within=10)
