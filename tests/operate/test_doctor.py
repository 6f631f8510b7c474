"""`run.py doctor`: what it measures of a gateway that is well, and what it says of one that is not."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import asyncpg
import pytest
from cyclopts import App
from structlog.testing import capture_logs

from config import commands as shared
from config.servers import free_port
from config.settings import Settings, with_values
from gateway import doctor
from gateway.hub import Hub
from sessions import reconciliation
from tests.live.conftest import Start, Worker

Run = Callable[..., Awaitable[tuple[int, str, str]]]


@pytest.fixture
def found(live_settings: Settings) -> list[Settings]:
    """The settings that the command finds."""
    return [live_settings]


@pytest.fixture
def run(found: list[Settings], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs `doctor` as `run.py` would: exit code, stdout, stderr."""
    monkeypatch.setattr(shared, "settings_for", lambda common: found[-1])
    monkeypatch.setattr(shared, "PATIENCE", 0.5)
    monkeypatch.setattr(doctor, "LOOK_FOR", 0.5)
    app = App(name="run.py")
    app.command(doctor.doctor, name="doctor")

    async def command(*arguments: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(shared.main, app, ["doctor", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    with capture_logs():
        yield command


async def examined(run: Run, worker: Worker, *more: str) -> tuple[int, dict[str, Any], dict[str, dict[str, str]]]:
    """Exit code, the answer, and its checks by name."""
    code, out, err = await run("--url", worker.url, "--trials", "3", "--sockets", "2", "--json", *more)
    assert out, err
    body = json.loads(out)
    return code, body, {check["check"]: check for check in body["checks"]}


async def made(pool: asyncpg.Pool) -> list[int]:
    """What a doctor that died would leave: users, sessions, live keys."""
    tables = ("subjects", "sessions", "api_keys")
    return [await pool.fetchval(f"SELECT count(*) FROM {table}") for table in tables]


async def test_a_gateway_that_is_well_is_measured_and_left_as_it_was(
    run: Run, worker: Worker, pool: asyncpg.Pool
) -> None:
    before = await made(pool)
    code, body, checks = await examined(run, worker)
    assert (code, body["ok"], len(body["trials"])) == (0, True, 3), body
    assert 0 < body["worst_close_seconds"] < body["bound_seconds"] == 5.25
    assert body["verdict"].startswith("It holds")
    names = {"time to close", "time to confirm", "login commit", "lease", "redis probe", "postgresql", "clock", "ready"}
    assert set(checks) == names
    assert await made(pool) == before
    assert await pool.fetchval("SELECT count(*) FROM revocation_log WHERE kind = 5") == 1  # its key ended everywhere


async def test_people_get_a_table_and_a_verdict(run: Run, worker: Worker) -> None:
    code, out, _ = await run("--url", worker.url, "--trials", "1", "--sockets", "1")
    assert code == 0
    assert out.splitlines()[0].split() == ["CHECK", "STATE", "FOUND", "ADVICE"]
    assert "worst time to close" in out.splitlines()[-1]


async def test_a_socket_that_outlives_its_session_fails(
    run: Run, start: Start, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pool.execute("UPDATE revocation_head SET lease_seconds = 1, drift_seconds = 0.1")
    monkeypatch.setattr(doctor, "PATIENCE", 1.0)
    monkeypatch.setattr(reconciliation, "PACE", 100.0)  # it would find the socket and close it
    worker = await start()
    before = await made(pool)
    monkeypatch.setattr(Hub, "apply", lambda _hub, _row: 0)
    code, body, checks = await examined(run, worker)
    assert (code, body["ok"], body["trials"]) == (1, False, [])
    assert checks["trials"]["found"].startswith("TimeoutError")
    assert "NOT" in body["verdict"]
    assert await made(pool) == before


async def test_a_revocation_that_no_socket_hears_of_within_the_bound_fails() -> None:
    promise = doctor.Promise(5.0, 0.25)
    slow, slower = doctor.Trial(2.0, 2.1, "acks", 0.01), doctor.Trial(5.3, 5.3, "lease", 0.01)
    assert [c.state for c in doctor._of_trials([slow], "", promise)] == ["warn", "ok", "ok"]
    assert [c.state for c in doctor._of_trials([slow, slower], "", promise)] == ["fail", "warn", "ok"]


async def test_redis_that_is_away_is_said(run: Run, worker: Worker, found: list[Settings]) -> None:
    found.append(with_values(found[0], {"redis.url": f"redis://127.0.0.1:{free_port()}/0"}))
    code, body, checks = await examined(run, worker)
    assert (code, checks["redis probe"]["state"]) == (1, "fail")
    assert checks["time to close"]["state"] == "ok"  # that Redis is not the worker's
    assert "redis probe" in body["verdict"]


async def test_a_database_that_may_lose_commits_is_a_warning(run: Run, worker: Worker, pool: asyncpg.Pool) -> None:
    name = await pool.fetchval("SELECT current_database()")
    await pool.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    code, body, checks = await examined(run, worker)
    assert (code, checks["postgresql"]["state"]) == (0, "warn")
    assert "synchronous_commit off" in checks["postgresql"]["found"]
    assert body["verdict"].startswith("It holds, but look at")


async def test_a_dead_process_that_would_have_to_acknowledge_is_said(
    run: Run, worker: Worker, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With policy "serve" no time speaks for it, and nobody takes it for dead."""
    monkeypatch.setattr(doctor, "PATIENCE", 0.5)
    await pool.execute(
        "INSERT INTO processes (node, policy, version, renewed_at) VALUES ('gone', 'serve', 1, now() - interval '1 h')"
    )
    code, _, checks = await examined(run, worker)
    assert (code, checks["lease"]["state"], checks["trials"]["state"]) == (1, "warn", "fail")
    assert "1 do not renew" in checks["lease"]["found"]
    assert "was not confirmed" in checks["trials"]["found"]


async def test_exit_codes(run: Run, worker: Worker) -> None:
    assert (await run("--url", f"http://127.0.0.1:{free_port()}", "--json"))[0] == 69
    for wrong in (("--trials", "0"), ("--sockets", "65"), ("--url", "ftp://x"), ("--admin-url", "x")):
        assert (await run(*wrong))[0] == 2
