"""Each alarm of docs/runbooks.md: raised once by a real fault, under its name, and counted. `invariant_violation` is
raised in test_reconciliation.py."""

import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from config.clock import SystemClock
from config.servers import Valkey
from sessions.model import ERA
from tests.revocation.cluster import REAL, Cluster, Process, ending, until
from tests.revocation.test_faults import lose_after

ROOT = Path(__file__).parents[2]
Logs = list[Any]


def raised(logs: Logs, event: str) -> list[Any]:
    return [entry for entry in logs if entry["event"] == event]


def counted(process: Process, name: str) -> float:
    return process.revocations.figures()[name]


async def test_frozen(cluster: Cluster) -> None:
    process = await cluster.start()
    with capture_logs() as logs:
        process.cut_lease()
        await until(lambda: not process.revocations.fresh())
        await until(lambda: raised(logs, "frozen"))
        assert (counted(process, "freezes"), counted(process, "frozen")) == (1, 1)
        process.connecting = True
        await until(process.revocations.fresh)
        await process.close()
        cluster.processes.clear()
    [alarm] = raised(logs, "frozen")  # the end of the process is none
    assert alarm["log_level"] == "error"
    assert alarm["why"].startswith("lease: ")
    assert raised(logs, "thawed")


async def test_deaf(own_redis: Cluster, own_valkey: Valkey) -> None:
    await own_redis.prepare(*REAL)
    process = await own_redis.start()
    with capture_logs() as logs:
        os.kill(own_valkey.pid, signal.SIGSTOP)
        try:
            await until(lambda: not process.revocations.probe_ok)
            assert counted(process, "redis_up") == 0
        finally:
            os.kill(own_valkey.pid, signal.SIGCONT)
        await until(lambda: process.revocations.probe_ok, within=10)
    [alarm] = raised(logs, "hints_deaf")
    assert alarm["log_level"] == "warning"
    assert raised(logs, "hints_heard")
    assert counted(process, "freezes") == 0


class Stepping(SystemClock):
    """The database's clock seems to step when ours does the other way."""

    by = 0.0

    def now(self) -> float:
        return SystemClock.now() + self.by


async def test_clock_step(cluster: Cluster) -> None:
    await cluster.prepare(*REAL)
    clock = Stepping()
    process = await cluster.start(clock=clock)
    before = process.revocations.database_now()
    with capture_logs() as logs:
        clock.by = 2.5
        renewals = counted(process, "lease_renewals")
        await until(lambda: counted(process, "lease_renewals") >= renewals + 3)
    [alarm] = raised(logs, "clock_step")
    assert (alarm["log_level"], alarm["seconds"]) == ("error", pytest.approx(-2.5, abs=0.3))
    assert counted(process, "clock_steps") == 1
    assert process.revocations.database_now() - before > 2.5  # the old offset is held


async def test_lost_commits(cluster: Cluster) -> None:
    process = await cluster.start()
    await cluster.session("s1")
    await process.revocations.revoke(ending("s1"), wait=True)
    with capture_logs() as logs:
        await lose_after(cluster, ERA)
        await until(lambda: raised(logs, "rows_put_back"))
        await until(lambda: process.revocations.position.seq > 2 * ERA)
    [alarm] = raised(logs, "commits_lost")
    assert (alarm["log_level"], alarm["applied"], alarm["back_to"]) == ("critical", ERA + 1, ERA)
    assert counted(process, "commits_lost") == 1


async def test_log_lost(cluster: Cluster) -> None:
    process = await cluster.start()
    with capture_logs() as logs:
        await cluster.sql("UPDATE revocation_log SET id = gen_random_uuid()")
        await cluster.sql("UPDATE revocation_head SET id = (SELECT id FROM revocation_log), era_id = id")
        await until(lambda: not process.revocations.fresh())
    [alarm] = raised(logs, "log_lost")
    assert (alarm["log_level"], alarm["floor"]) == ("critical", ERA)
    assert counted(process, "log_lost") == 1


async def test_dead_process(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sessions.registration.MARGIN", 0.1)
    process = await cluster.start()
    with capture_logs() as logs:
        await cluster.sql("INSERT INTO processes (node, policy, version) VALUES ('gone', 'freeze', 1)")
        await until(lambda: raised(logs, "process_removed"))
    [alarm] = raised(logs, "process_removed")
    assert (alarm["log_level"], alarm["dead"]) == ("error", "gone")
    assert counted(process, "processes_removed") == 1


async def test_the_time_to_close_is_told(cluster: Cluster) -> None:
    first, second = await cluster.start(), await cluster.start()
    told: list[float] = []
    second.revocations.on_closed.append(told.append)
    await cluster.session("s1")
    await first.revocations.revoke(ending("s1"), wait=True)
    [seconds] = told
    assert 0 <= seconds < 1


def test_every_alarm_has_a_runbook_a_test_and_a_rule() -> None:
    """Of the table: event, metric, alert; and a section of that name."""
    text = (ROOT / "docs" / "runbooks.md").read_text()
    rows = re.findall(r"^\| \[(.+?)\]\(#(.+?)\) \| `(\w+)` \| `(\w+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert len(rows) == 7
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for title, anchor, event, metric, alert in rows:
        assert f"\n## {title}\n" in text
        assert anchor == title.lower().replace(" ", "-")
        assert f'"{event}"' in tests
        rule = rules.partition(f"alert: {alert}\n")[2].partition("- alert:")[0]
        assert metric in rule
        assert f"runbooks.md#{anchor}" in rule
