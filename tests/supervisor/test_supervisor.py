"""The supervisor with real processes and sockets, and a tiny application in the workers."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from config.errors import Failure
from config.servers import Guardian
from config.settings import Settings, with_values
from gateway import supervisor as module
from gateway.handover import Passed, pass_connections
from gateway.supervisor import Seen, Supervisor, choose, listen, pause_before

STAND_IN = (sys.executable, "-m", "tests.supervisor.stand_in")
SETTINGS = with_values(Settings(), {"http_server.shutdown_timeout": 1.0})


class Running:
    """A supervisor that accepts, and a client for it."""

    def __init__(self, supervisor: Supervisor, port: int, internal: int, http: aiohttp.ClientSession) -> None:
        self.supervisor, self.port, self.internal, self.http = supervisor, port, internal, http
        self.dead: list[str] = []
        self.changes = 0

    async def get(self, path: str, *, internal: bool = False, method: str = "GET") -> tuple[int, Any]:
        """A request on a connection of its own."""
        url = f"http://127.0.0.1:{self.internal if internal else self.port}{path}"
        async with self.http.request(method, url) as response:
            is_json = response.content_type.endswith("json")
            return response.status, (await response.json(content_type=None)) if is_json else await response.text()

    async def who(self) -> str:
        status, body = await self.get("/who")
        assert status == 200
        return str(body["node"])

    async def until(self, check: Callable[[], bool], seconds: float = 15.0) -> None:
        async with asyncio.timeout(seconds):
            while not check():  # noqa: ASYNC110 - a process tells nobody that it changed
                await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def running(
    tmp_path: Path, workers: int, *, settings: Settings = SETTINGS, internal: bool = False, wait: bool = True
) -> AsyncIterator[Running]:
    sockets = listen("127.0.0.1", 0)
    internals = listen("127.0.0.1", 0) if internal else []
    port = sockets[0].getsockname()[1]
    inside = internals[0].getsockname()[1] if internal else 0
    guardian = Guardian()
    own: list[Running] = []

    async def on_dead(node: str) -> None:
        own[0].dead.append(node)

    def on_change() -> None:
        own[0].changes += 1

    supervisor = Supervisor(
        workers=workers,
        sockets=sockets,
        internal=internals,
        metrics=tmp_path,
        guardian=guardian,
        on_dead=on_dead,
        on_change=on_change,
        command=STAND_IN,
    )
    connector = aiohttp.TCPConnector(force_close=True)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=20)) as http:
        own.append(Running(supervisor, port, inside, http))
        supervisor.launch()
        if internal:
            settings = with_values(settings, {"http_server.internal_port": inside})
        await supervisor.start(settings, dev=True)
        try:
            if wait:
                async with asyncio.timeout(20):
                    await supervisor.ready()
            yield own[0]
        finally:
            pids = supervisor.pids
            await supervisor.stop()
            guardian.close()
            assert not [pid for pid in pids if _lives(pid)]


def test_the_ready_worker_with_the_fewest_connections_is_first() -> None:
    assert choose([Seen(True, 0, 5), Seen(True, 0, 3), None, Seen(True, 0, 4)], 4) == [1, 1, 3, 0]


def test_not_ready_comes_after_ready_and_silent_last_of_all() -> None:
    silent = module.STALE + 0.01
    workers = [Seen(True, 9.0, 0), Seen(True, silent, 0), Seen(False, 0, 0), Seen(True, 0, 99)]
    order: list[Seen | None] = [*workers]
    chosen = []
    while best := choose(order):
        chosen += best
        order[best[0]] = None
    assert chosen == [3, 2, 1, 0]


def test_where_nobody_lives_nobody_is_chosen() -> None:
    assert choose([None, None], 3) == []


def test_starts_come_ever_later_up_to_a_bound() -> None:
    assert [pause_before(n) for n in (0, 1, 2, 3)] == [0, 0.1, 0.2, 0.4]
    assert pause_before(50) == 10.0


async def test_connections_are_spread_over_the_workers(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as r, contextlib.AsyncExitStack() as stack:
        nodes = []
        for _ in range(6):  # each stays open
            session = await stack.enter_async_context(aiohttp.ClientSession())
            async with session.get(f"http://127.0.0.1:{r.port}/who") as response:
                body = await response.json()
            assert body["remote"] == "127.0.0.1"
            nodes.append(body["node"])
        assert set(nodes) == {state.node for state in r.supervisor.states}


async def test_the_one_with_fewer_connections_gets_the_next(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as r:
        full = await r.who()
        await behave(r, full, connections=1000)
        assert {await r.who() for _ in range(5)} == {other(r, full)}


async def test_nothing_goes_to_a_worker_that_is_not_ready_while_another_is(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as r:
        node = await r.who()
        await behave(r, node, ready=0, why="frozen")
        await r.until(lambda: sum(s.ready for s in r.supervisor.states) == 1)
        assert {await r.who() for _ in range(5)} == {other(r, node)}
        await behave(r, other(r, node), ready=0, why="frozen")
        await r.until(lambda: not any(s.ready for s in r.supervisor.states))
        assert await r.who()  # it lives: it answers


async def test_nothing_goes_to_a_worker_that_was_stopped(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as r:
        _, body = await r.get("/who")
        os.kill(body["pid"], signal.SIGSTOP)
        try:
            await r.until(lambda: [s.why for s in r.supervisor.states if not s.ready] == ["stopped"], 1.0)
            assert {await r.who() for _ in range(5)} == {other(r, body["node"])}
        finally:
            os.kill(body["pid"], signal.SIGCONT)
        await r.until(lambda: sum(s.ready for s in r.supervisor.states) == 2)
        assert r.dead == []


async def test_a_worker_that_is_silent_for_too_long_is_killed_and_started_again(tmp_path: Path) -> None:
    settings = with_values(SETTINGS, {"sessions.hold": 0.0})
    async with running(tmp_path, 1, settings=settings) as r:
        r.supervisor._silence_limit = 0.5
        _, body = await r.get("/who")
        os.kill(body["pid"], signal.SIGSTOP)
        await r.until(lambda: r.dead == [body["node"]])
        assert await r.who() != body["node"]


async def test_a_dead_worker_is_reported_and_started_again(tmp_path: Path) -> None:
    async with running(tmp_path, 2) as r:
        _, body = await r.get("/who")
        before, left = set(r.supervisor.pids), other(r, body["node"])
        os.kill(body["pid"], signal.SIGKILL)
        assert {await r.who() for _ in range(3)} == {left}
        await r.until(lambda: len(r.supervisor.pids) == 2 and set(r.supervisor.pids) != before)
        assert r.dead == [body["node"]]
        assert r.changes == 1
        await r.until(lambda: sum(s.ready for s in r.supervisor.states) == 2)


async def test_connections_wait_while_no_worker_lives(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as r:
        _, body = await r.get("/who")
        os.kill(body["pid"], signal.SIGKILL)
        await r.until(lambda: r.dead == [body["node"]])
        assert await r.who() != body["node"]


async def test_a_worker_that_never_starts_is_given_up_at_the_first_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAND_IN", "dies")
    async with running(tmp_path, 1, wait=False) as r:
        async with asyncio.timeout(30):
            with pytest.raises(Failure, match="ends as soon as it is started"):
                await r.supervisor.ready()


async def test_workers_drain_and_close_in_order(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with running(tmp_path, 2) as r:
        nodes = {state.node for state in r.supervisor.states}
    lines = [line.split()[:2] for line in capfd.readouterr().err.splitlines() if line.startswith(("drained", "closed"))]
    for node in nodes:
        assert [word for word, who in lines if who == node] == ["drained", "closed"]


async def test_a_worker_that_does_not_end_is_killed_in_time(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as r:
        node = await r.who()
        await behave(r, node, hold=1)
        async with asyncio.timeout(5):
            await r.supervisor.stop()
        assert r.dead == [node]


async def test_a_worker_ends_when_the_supervisor_is_gone(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as r:
        (child,) = r.supervisor._slots
        assert child is not None
        child.control.shutdown(socket.SHUT_RDWR)
        await r.until(lambda: child.process.poll() is not None)
        assert child.process.returncode == 0


async def test_the_internal_port_answers_for_all(tmp_path: Path) -> None:
    async with running(tmp_path, 2, internal=True) as r:
        status, body = await r.get("/ready", internal=True)
        assert (status, [w["ready"] for w in body["workers"]]) == (200, [True, True])
        for state in r.supervisor.states:
            await behave(r, state.node, ready=0, why="lease")
        await r.until(lambda: not any(s.ready for s in r.supervisor.states))
        status, body = await r.get("/ready", internal=True)
        assert (status, [w["why"] for w in body["workers"]]) == (503, ["lease", "lease"])
        assert (await r.get("/health", internal=True)) == (200, {})
        assert (await r.get("/metrics", internal=True))[0] == 200


async def test_api_admin_and_metrics_move_to_the_internal_port(tmp_path: Path) -> None:
    async with running(tmp_path, 1, internal=True) as r:
        assert (await r.get("/api/x", internal=True, method="POST"))[0] == 200
        assert (await r.get("/admin/x", internal=True))[0] == 200
        status, problem = await r.get("/api/x", method="POST")
        assert (status, problem["code"]) == (404, "not_found")
        for path in ("/admin/x", "/metrics"):
            assert (await r.get(path))[0] == 404
        assert (await r.get("/auth/x"))[0] == 200


async def test_the_internal_port_answers_while_no_worker_lives(tmp_path: Path) -> None:
    async with running(tmp_path, 1, internal=True) as r:
        os.kill(r.supervisor.pids[0], signal.SIGKILL)
        await r.until(lambda: bool(r.dead))
        assert (await r.get("/ready", internal=True))[0] == 503
        assert (await r.get("/api/x", internal=True, method="POST"))[0] == 503


async def test_running_out_of_descriptors_pauses_and_recovers(tmp_path: Path) -> None:
    async with running(tmp_path, 1) as r:
        listener = r.supervisor._listeners[0]
        real: Any = listener._accept  # type: ignore[attr-defined]
        failures = [OSError(24, "too many"), OSError(24, "too many")]

        class Short:
            """The listener, out of descriptors twice."""

            family = listener.family

            def _accept(self) -> Any:
                if failures:
                    raise failures.pop()
                return real()

            def fileno(self) -> int:
                return listener.fileno()

            def close(self) -> None:
                listener.close()

        short: Any = Short()
        r.supervisor._refuse(listener)
        r.supervisor._listeners[0] = short
        r.supervisor._accept(short)
        assert await r.who()
        assert failures == []


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def other(r: Running, node: str) -> str:
    (found,) = [state.node for state in r.supervisor.states if state.node != node]
    return found


async def behave(r: Running, node: str, **how: object) -> None:
    """Tell one worker how to stand; requests go wherever, so ask until it was that one."""
    child = next(c for c in r.supervisor._slots if c is not None and c.node == node)
    query = "&".join(f"{name}={value}" for name, value in how.items())
    with socket.socket() as client, socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        door.listen()
        client.connect(door.getsockname())
        passed, _ = door.accept()
        with passed:
            pass_connections(child.control, [Passed(passed.fileno(), passed.family)])
            child.sent += 1
        client.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(
            client, f"GET /behave?{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        assert b"200 OK" in await loop.sock_recv(client, 65536)
    wanted = int(str(how.get("connections", 0)))
    ready = how.get("ready", 1) == 1
    await r.until(
        lambda: child.report is not None and child.report.connections == wanted and child.report.ready == ready
    )
