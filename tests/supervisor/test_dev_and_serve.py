"""`run.py dev` and `run.py serve` as processes: what they print, how they end, and that nothing is left of them."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest
import redis.asyncio as redis

from config import migrate
from config.servers import free_port

ROOT = Path(__file__).resolve().parents[2]
SECRET = "a-secret-that-is-long-enough-0123456789"


def clean_environment(**more: str) -> dict[str, str]:
    """Ours, without anything that could be a setting."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WARDGATE_") and not k.endswith("_URL")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


class Command:
    """A running `run.py`, in a session of its own as a terminal would have it."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process, self.log = process, log
        self.info: dict[str, Any] = {}

    @property
    def pids(self) -> list[int]:
        """Every process that dev.json names."""
        pids = self.info["pids"]
        return [pid for pid in (pids["postgres"], pids["valkey"], *pids["workers"]) if pid]

    async def ended(self, seconds: float = 10.0) -> int:
        return await asyncio.wait_for(self.process.wait(), seconds)

    async def nothing_left(self, seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while any(alive(pid) for pid in self.pids):  # noqa: ASYNC110 - they are nobody's children
                await asyncio.sleep(0.02)

    async def serves_at(self) -> str:
        """The URL of a `serve` that became ready."""
        await self.logged('"event": "ready"', 60)
        text = await asyncio.to_thread(self.log.read_text)
        (line,) = [json.loads(line) for line in text.splitlines() if '"event": "ready"' in line]
        return f"http://127.0.0.1:{line['port']}"

    async def logged(self, text: str, seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while text not in await asyncio.to_thread(self.log.read_text):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def run(
    tmp_path: Path, *arguments: str, ready: bool = True, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Command]:
    """`run.py ARGUMENTS`; with `ready`, after its line of JSON. Killed at the end, if it is still there."""
    log = tmp_path / f"log-{free_port()}"
    with log.open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.supervisor.run_stand_in", *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
            env=clean_environment(**(environ or {})),
            start_new_session=True,
        )
    command = Command(process, log)
    try:
        if ready:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), 60)
            assert line, log.read_text()
            command.info = json.loads(line)
        yield command
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 15)
        except TimeoutError:
            process.kill()
        if command.info:
            await command.nothing_left()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


async def status_of(url: str) -> int:
    async with aiohttp.ClientSession() as http, http.get(url) as response:
        return response.status


@pytest.fixture
def data(open_folder: Path) -> Path:
    """A data folder that is not there yet."""
    return open_folder / "data"


def dev(data: Path, *more: str, port: int = 0) -> tuple[str, ...]:
    return ("dev", "--json", "--data", str(data), "--port", str(port), *more)


async def test_dev_prints_one_line_and_keeps_the_same_in_a_private_file(tmp_path: Path, data: Path) -> None:
    async with run(tmp_path, *dev(data, "--workers", "2")) as command:
        info = command.info
        file = data / "dev.json"
        assert json.loads(file.read_text()) == info
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE((data / "secrets.json").stat().st_mode) == 0o600
        assert set(info) == {"url", "websocket", "admin", "api_key", "database_url", "redis_url", "pids"}
        assert len(info["pids"]["workers"]) == 2
        assert info["websocket"] == info["url"].replace("http", "ws", 1) + "/connection/websocket"
        assert await status_of(info["url"] + "/who") == 200
        connection = await asyncpg.connect(info["database_url"])
        admins = await connection.fetch("select email from users")
        await connection.close()
        assert [row["email"] for row in admins] == [info["admin"]["email"]]
        client = redis.Redis.from_url(info["redis_url"])
        assert await client.ping()
        await client.aclose()
        os.killpg(command.process.pid, signal.SIGINT)
        assert await command.ended() == 0
        await command.nothing_left(0.5)
        assert command.process.stdout is not None
        assert await command.process.stdout.read() == b""
        assert not file.exists()


async def test_a_second_start_has_the_same_keys_and_the_same_data(tmp_path: Path, data: Path) -> None:
    infos = []
    for _ in range(2):
        async with run(tmp_path, *dev(data)) as command:
            infos.append(command.info)
            os.killpg(command.process.pid, signal.SIGTERM)
            os.killpg(command.process.pid, signal.SIGTERM)  # make passes it on a second time
            assert await command.ended() == 0
    first, second = infos
    assert (first["admin"], first["api_key"]) == (second["admin"], second["api_key"])


async def test_a_second_on_the_same_folder_is_refused_and_the_first_goes_on(tmp_path: Path, data: Path) -> None:
    async with run(tmp_path, *dev(data)) as first:
        async with run(tmp_path, *dev(data), ready=False) as second:
            assert await second.ended() == 75
            assert "in use" in second.log.read_text()
        assert await status_of(first.info["url"] + "/who") == 200


async def test_a_start_waits_for_one_that_is_stopping(tmp_path: Path, data: Path) -> None:
    async with run(tmp_path, *dev(data)) as first:
        first.process.terminate()
        async with run(tmp_path, *dev(data)) as second:
            assert first.process.returncode == 0
            assert await status_of(second.info["url"] + "/who") == 200


async def test_nothing_outlives_a_kill_and_the_folder_starts_again(tmp_path: Path, data: Path) -> None:
    async with run(tmp_path, *dev(data)) as command:
        command.process.kill()
        await command.ended()
        async with run(tmp_path, *dev(data)) as again:  # at once, while the old servers are still stopping
            assert await status_of(again.info["url"] + "/who") == 200
            await command.nothing_left(1)


async def test_a_stopped_worker_does_not_outlive_a_kill_either(tmp_path: Path, data: Path) -> None:
    async with run(tmp_path, *dev(data)) as command:
        os.kill(command.info["pids"]["workers"][0], signal.SIGSTOP)
        command.process.kill()
        await command.nothing_left()


async def test_an_ephemeral_folder_is_removed(tmp_path: Path) -> None:
    async with run(
        tmp_path, "dev", "--json", "--ephemeral", "--port", "0", environ={"TMPDIR": str(tmp_path)}
    ) as command:
        (folder,) = list(tmp_path.glob("wardgate-dev-*"))  # noqa: ASYNC240
        assert (folder / "dev.json").exists()
        command.process.terminate()
        assert await command.ended() == 0
        assert not folder.exists()


async def test_a_server_that_dies_stays_dead_and_is_said(tmp_path: Path, data: Path) -> None:
    async with run(tmp_path, *dev(data)) as command:
        os.kill(command.info["pids"]["valkey"], signal.SIGKILL)
        await command.logged("valkey (pid")
        assert await status_of(command.info["url"] + "/who") == 200
        assert command.process.returncode is None
        os.kill(command.info["pids"]["postgres"], signal.SIGKILL)
        await command.logged("postgres (pid")
        assert command.process.returncode is None


async def test_a_worker_that_dies_is_replaced_in_the_file_too(tmp_path: Path, data: Path) -> None:
    async with run(tmp_path, *dev(data)) as command:
        (old,) = command.info["pids"]["workers"]
        os.kill(old, signal.SIGKILL)
        now = [old]
        async with asyncio.timeout(10):
            while now in ([old], []):
                await asyncio.sleep(0.02)
                now = json.loads((data / "dev.json").read_text())["pids"]["workers"]
        assert await status_of(command.info["url"] + "/who") == 200
        command.info["pids"]["workers"] = now


async def test_a_signal_while_starting_ends_what_has_begun(tmp_path: Path, data: Path) -> None:
    async with run(tmp_path, *dev(data), ready=False) as command:
        async with asyncio.timeout(20):
            while not (data / "postgres" / "data").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        command.process.terminate()
        assert await command.ended() == 0
        assert not (data / "dev.json").exists()
    async with run(tmp_path, *dev(data)) as command:
        assert await status_of(command.info["url"] + "/who") == 200


async def test_dev_on_servers_of_the_settings(
    tmp_path: Path, data: Path, empty_database_url: str, redis_url: str
) -> None:
    environ = {"DATABASE_URL": empty_database_url, "REDIS_URL": redis_url}
    async with run(tmp_path, *dev(data, "--external"), environ=environ) as command:
        assert command.info["database_url"] == empty_database_url
        assert command.info["redis_url"] == redis_url
        assert (command.info["pids"]["postgres"], command.info["pids"]["valkey"]) == (0, 0)
        await migrate.check(empty_database_url)
    assert not (data / "postgres").exists()


async def test_external_servers_must_be_named(tmp_path: Path, data: Path) -> None:
    async with run(tmp_path, *dev(data, "--external"), ready=False) as command:
        assert await command.ended() == 2
        assert "database.url" in command.log.read_text()


async def test_a_port_that_is_taken_is_said(tmp_path: Path, data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with run(tmp_path, *dev(data, port=port), ready=False) as command:
            assert await command.ended() == 1
            assert f"cannot listen on 127.0.0.1:{port}" in command.log.read_text()


async def test_help_lost_its_asterisks(tmp_path: Path) -> None:
    async with run(tmp_path, "webhooks", "create", "--help", ready=False) as command:
        assert command.process.stdout is not None
        told = await command.process.stdout.read()
        assert b'"session.*", "*".' in told
        assert await command.ended() == 0


@pytest.mark.parametrize("port", ["99999", "-5"])
async def test_a_port_that_is_none_was_a_traceback_and_left_a_folder(tmp_path: Path, port: str) -> None:
    folder = tmp_path / "new"
    async with run(tmp_path, "dev", "--data", str(folder), "--port", port, ready=False) as command:
        assert await command.ended(30) == 2
        told = await asyncio.to_thread(command.log.read_text)
        assert told == f"settings: --port = {port}: must be a whole number from 0 to 65535\n"
        assert not folder.exists()


async def test_dev_reads_the_same_settings_and_refuses_the_same_mistakes(tmp_path: Path, data: Path) -> None:
    environ = {"WARDGATE_CLIENT_PING_INTERVAL": "often", "WARDGATE_HTTP_API_KEYY": "x"}
    async with run(tmp_path, *dev(data), ready=False, environ=environ) as command:
        assert await command.ended() == 2
        text = command.log.read_text()
    assert 'settings: client.ping_interval = "often": must be a duration' in text
    assert "did you mean WARDGATE_HTTP_API_KEY?" in text


async def test_a_short_key_passes_in_development(tmp_path: Path, data: Path) -> None:
    async with run(tmp_path, *dev(data), environ={"WARDGATE_HTTP_API_KEY": "short"}) as command:
        assert command.info["api_key"] == "short"


async def test_two_run_side_by_side(tmp_path: Path, data: Path) -> None:
    async with run(tmp_path, *dev(data)) as one, run(tmp_path, *dev(data.with_name("other"))) as two:
        assert one.info["url"] != two.info["url"]
        assert await status_of(one.info["url"] + "/who") == await status_of(two.info["url"] + "/who") == 200


async def test_commands_find_the_gateway_that_runs_in_the_folder(tmp_path: Path, data: Path) -> None:
    arguments = ("migrate", "--status", "--json", "--data", str(data))
    async with run(tmp_path, *dev(data)), run(tmp_path, *arguments, ready=False) as command:
        assert await command.ended() == 0
        assert command.process.stdout is not None
        states = json.loads(await command.process.stdout.read())
    assert states
    assert {state["state"] for state in states} == {"applied"}


def serving(database_url: str, redis_url: str, **more: str) -> dict[str, str]:
    return {
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "WARDGATE_SESSIONS_SECRET_KEY": SECRET,
        "WARDGATE_AUTH_PEPPER": SECRET,
        "WARDGATE_AUTH_VERIFY_EMAIL": "false",
        "WARDGATE_HTTP_SERVER_PORT": "0",
        **more,
    }


async def test_serve_runs_and_drains(tmp_path: Path, database_url: str, redis_url: str) -> None:
    internal = free_port()
    environ = serving(database_url, redis_url, WARDGATE_HTTP_SERVER_INTERNAL_PORT=str(internal))
    async with run(tmp_path, "serve", "--workers", "2", ready=False, environ=environ) as command:
        url = await command.serves_at()
        assert await status_of(f"{url}/who") == 200
        assert await status_of(f"http://127.0.0.1:{internal}/ready") == 200
        assert await status_of(f"{url}/auth/x") == 200
        command.process.terminate()
        assert await command.ended() == 0
    assert SECRET not in command.log.read_text()


async def test_serve_with_some_roles_hides_the_rest(tmp_path: Path, database_url: str, redis_url: str) -> None:
    environ = serving(database_url, redis_url)
    arguments = ("serve", "--workers", "1", "--roles", "api,gateway")
    async with run(tmp_path, *arguments, ready=False, environ=environ) as command:
        url = await command.serves_at()
        assert await status_of(f"{url}/auth/x") == 404
        assert await status_of(f"{url}/admin/x") == 200


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "text"),
    [
        (("serve",), {}, 2, "settings: database.url: is needed"),
        (("serve", "--workers", "0"), None, 2, "--workers = 0: must be a whole number from 1 to 256"),
        (("serve", "--roles", "auth,cook"), None, 2, "--roles = cook: must be some of auth, api, gateway"),
        (("dev", "--workers", "0"), {}, 2, "--workers"),
        (("sreve",), {}, 2, "did you mean serve?"),
        (("dev", "--prot", "1"), {}, 2, "--prot"),
        ((), {}, 0, ""),
        (("--help",), {}, 0, ""),
    ],
)
async def test_exit_codes_and_words(
    tmp_path: Path, arguments: tuple[str, ...], environ: dict[str, str] | None, code: int, text: str
) -> None:
    given = serving("postgresql://nowhere", "redis://nowhere") if environ is None else environ
    async with run(tmp_path, *arguments, ready=False, environ=given) as command:
        assert await command.ended(20) == code
        assert text in command.log.read_text()


async def test_a_mistake_in_an_operators_letter_was_found_when_it_was_to_be_sent(tmp_path: Path) -> None:
    (tmp_path / "letters" / "de").mkdir(parents=True)
    (tmp_path / "letters" / "de" / "new_device.txt").write_text("Neu\n\n{{ nothing_such }}")
    environ = serving("postgresql://nowhere", "redis://nowhere")
    for folder, told in (("letters", "de/new_device"), ("elsewhere", "there is no folder")):
        given = {**environ, "WARDGATE_MAIL_TEMPLATES": str(tmp_path / folder)}
        async with run(tmp_path, "serve", ready=False, environ=given) as command:
            assert await command.ended(20) == 2
            assert "settings: mail.templates: " in command.log.read_text()
            assert told in command.log.read_text()


async def test_dev_with_another_secret_key_started_its_workers_three_times(tmp_path: Path, data: Path) -> None:
    arguments = ("dev", "--port", "0", "--data", str(data), "--json")
    async with run(tmp_path, *arguments):
        pass
    async with run(tmp_path, *arguments, ready=False, environ={"WARDGATE_SESSIONS_SECRET_KEY": SECRET}) as command:
        assert await command.ended(30) == 1
        text = command.log.read_text()
    assert text.count("the signing keys are sealed with another sessions.secret_key") == 1
    assert "error: the signing keys" in text
    assert "worker_failed" not in text


async def test_migrate_says_at_once_that_the_password_is_wrong(tmp_path: Path, database_url: str) -> None:
    nobody = "postgresql://nobody:hunter2@" + database_url.rpartition("@")[2]
    async with run(tmp_path, "migrate", ready=False, environ={"DATABASE_URL": nobody}) as command:
        assert await command.ended(20) == 2
        text = command.log.read_text()
    assert "settings: database.url: PostgreSQL at" in text
    assert "hunter2" not in text


async def test_serve_gives_up_on_a_database_that_is_not_there(tmp_path: Path, redis_url: str) -> None:
    url = f"postgresql://user:hunter2@127.0.0.1:{free_port()}/x"
    environ = serving(url, redis_url, STAND_IN_PATIENCE="0.3")
    async with run(tmp_path, "serve", ready=False, environ=environ) as command:
        assert await command.ended(20) == 69
        text = command.log.read_text()
    assert "waiting for PostgreSQL at 127.0.0.1:" in text
    assert "is not there after 0 s" in text
    assert "hunter2" not in text


async def test_serve_gives_up_on_a_redis_that_is_not_there(tmp_path: Path, database_url: str) -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    environ = serving(database_url, url, STAND_IN_PATIENCE="0.3")
    async with run(tmp_path, "serve", ready=False, environ=environ) as command:
        assert await command.ended(20) == 69
        text = command.log.read_text()
    assert "waiting for Redis at 127.0.0.1:" in text
    assert "hunter2" not in text


async def test_serve_wants_the_migrations_applied(tmp_path: Path, empty_database_url: str, redis_url: str) -> None:
    environ = serving(empty_database_url, redis_url)
    async with run(tmp_path, "serve", ready=False, environ=environ) as command:
        assert await command.ended(20) == 1
        assert "run `run.py migrate` first" in command.log.read_text()
    async with run(tmp_path, "migrate", ready=False, environ=environ) as command:
        assert await command.ended(20) == 0
    await migrate.check(empty_database_url)


async def test_serve_refuses_a_database_that_was_put_back(tmp_path: Path, database_url: str, redis_url: str) -> None:
    await ask(database_url, "UPDATE revocation_head SET origin = 'another', lease_seconds = 0.2, drift_seconds = 0")
    environ = serving(database_url, redis_url)
    async with run(tmp_path, "serve", ready=False, environ=environ) as command:
        assert await command.ended(20) == 65
        assert "restore --revoke-all" in command.log.read_text()
    async with run(tmp_path, "restore", "--revoke-all", ready=False, environ=environ) as command:
        assert await command.ended(20) == 2  # nobody to ask
    async with run(tmp_path, "restore", "--nothing-lost", "--yes", ready=False, environ=environ) as command:
        assert await command.ended(20) == 0
    async with run(tmp_path, "serve", "--workers", "1", ready=False, environ=environ) as command:
        await command.serves_at()


async def ask(url: str, query: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(query)
    await connection.close()
