"""A rolling deploy: processes of two versions on one database and one Redis, and a way back.

`PREVIOUS=DIR` names a checkout of the version that is deployed. Without it the version after is this code with
one migration more; what is proved then is that the schema may be ahead, and that two mix.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from tests.world.conftest import ROOT, World, free_port

SECRET = "a secret that both versions were given, 0123456789"
KEY = "an API key that both versions were given, 0123456789"
CHAT = {
    "name": "chat",
    "allow_subscribe_for_client": True,
    "allow_history_for_subscriber": True,
    "force_recovery": True,
    "history_size": 10,
    "history_ttl": "60s",
}


def environment(database_url: str, redis_url: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WARDGATE_") and not k.endswith("_URL")}
    return {
        **kept,
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "WARDGATE_SESSIONS_SECRET_KEY": SECRET,
        "WARDGATE_AUTH_PEPPER": SECRET,
        "WARDGATE_AUTH_BCRYPT_COST": "10",
        "WARDGATE_AUTH_VERIFY_EMAIL": "false",
        "WARDGATE_AUTH_REGISTER_PER_ADDRESS_PER_HOUR": "1000",
        "WARDGATE_HTTP_API_KEY": KEY,
        "WARDGATE_CHANNEL_NAMESPACES": json.dumps([CHAT]),
    }


@pytest.fixture
def versions(tmp_path: Path) -> tuple[Path, Path]:
    """Where the `run.py` of the version before is, and of the one after."""
    if given := os.environ.get("PREVIOUS"):
        return Path(given), ROOT
    tree = tmp_path / "after"
    for room in ("config", "sessions", "auth", "gateway"):
        shutil.copytree(ROOT / room, tree / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "run.py", tree)
    shutil.copy(ROOT / "pyproject.toml", tree)
    (tree / "config/migrations/9999_after.sql").write_text("CREATE TABLE of_the_version_after (id int PRIMARY KEY);\n")
    return ROOT, tree


def known(tree: Path, environ: dict[str, str]) -> dict[str, str]:
    """Without what that version would refuse as a setting that there is not."""
    settings = (tree / "config/settings.py").read_text()
    return {k: v for k, v in environ.items() if k != "WARDGATE_AUTH_VERIFY_EMAIL" or "verify_email" in settings}


async def command(tree: Path, environ: dict[str, str], *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(tree / "run.py"),
        *arguments,
        cwd=tree,
        env=known(tree, environ),
        stdout=asyncio.subprocess.DEVNULL,
    )
    assert await asyncio.wait_for(process.wait(), 30) == 0


@contextlib.asynccontextmanager
async def serving(tree: Path, environ: dict[str, str]) -> AsyncIterator[tuple[World, asyncio.subprocess.Process]]:
    """`run.py serve` of that version, ready."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {
        **environ,
        "WARDGATE_HTTP_SERVER_PORT": str(port),
        "WARDGATE_CLIENT_ALLOWED_ORIGINS": json.dumps([url]),
        "WARDGATE_HTTP_SERVER_ADDRESS": "127.0.0.1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(tree / "run.py"),
        "serve",
        "--workers",
        "1",
        cwd=tree,
        env=known(tree, environ),
        start_new_session=True,
    )
    try:
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), connector=connector) as http:
            info = {"url": url, "websocket": f"ws://127.0.0.1:{port}/connection/websocket", "api_key": KEY}
            world = World(info, http)
            async with asyncio.timeout(60):
                while True:
                    assert process.returncode is None
                    with contextlib.suppress(aiohttp.ClientError):
                        if (await world.call("GET", "/ready"))[0] == 200:
                            break
                    await asyncio.sleep(0.05)
            yield world, process
            await world.hang_up()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 30)


async def test_a_version_and_the_one_before_serve_side_by_side_and_back(
    versions: tuple[Path, Path], empty_database_url: str, redis_url: str
) -> None:
    version_before, version_after = versions
    environ = environment(empty_database_url, redis_url)
    await command(version_before, environ, "migrate")
    connection = await asyncpg.connect(empty_database_url)
    await connection.execute("UPDATE revocation_head SET lease_seconds = 1.5, drift_seconds = 0.1")
    await connection.close()
    async with serving(version_before, environ) as (old, process):
        ada = await old.register()
        before = await old.socket(ada.access)
        joined = await before.command(subscribe={"channel": "chat:x"})
        await command(version_after, environ, "migrate")
        ben = await old.register()  # the old one goes on under the new schema
        async with serving(version_after, environ) as (new, _):
            after = await new.socket(ben.access)
            await after.command(subscribe={"channel": "chat:x"})
            for world, text in ((old, "by the old"), (new, "by the new")):
                await world.api("publish", {"channel": "chat:x", "data": text})
                for socket in (before, after):
                    await socket.until(lambda e, text=text: e.get("push", {}).get("pub", {}).get("data") == text)
            # sessions are renewed and asked for on either side
            for one, other in ((old, new), (new, old)):
                status, body = await one.call("POST", "/auth/refresh", {"refresh_token": ada.refresh})
                assert status == 200, body
                ada.access, ada.refresh = body["access_token"], body["refresh_token"]
                assert (await other.call("GET", "/auth/me", token=ada.access))[0] == 200
            # either revokes on both, by acknowledgements of both
            for one, there in ((old, new), (new, old)):
                victim = await one.register()
                socket = await there.socket(victim.access)
                order = {"target": {"user": victim.id}, "reason": "deployed", "wait": True}
                status, receipt = await one.call("POST", "/admin/revocations", order, X_API_Key=KEY)
                assert (status, receipt["state"], receipt["by"], len(receipt["nodes"])) == (201, "confirmed", "acks", 2)
                assert (await socket.closed(), socket.reason) == (4501, "session revoked: deployed")
                assert receipt["connections_closed"] == 1
            process.terminate()
            assert await before.closed() == 3001
            await new.api("publish", {"channel": "chat:x", "data": "meanwhile"})
            moved = await new.socket(ada.access)
            place = {"offset": 2, "epoch": joined["subscribe"]["epoch"], "recover": True}
            answer = await moved.command(subscribe={"channel": "chat:x", **place})
            assert [p["data"] for p in answer["subscribe"]["publications"]] == ["meanwhile"]
            assert await asyncio.wait_for(process.wait(), 20) == 0
            async with serving(version_before, environ) as (again, _):  # a way back
                assert (await again.call("GET", "/auth/me", token=ada.access))[0] == 200
