"""The published JavaScript SDK as a client, in both codecs: what an application built on it sees."""

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.world.conftest import World

pytestmark = pytest.mark.node
SDK = Path(__file__).parent / "sdk"


class Sdk:
    """One Node process that runs the SDK."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.events: list[dict[str, Any]] = []

    async def do(self, action: str, **detail: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"action": action, **detail}).encode() + b"\n")
        await self._process.stdin.drain()

    async def until(self, event: str, **wanted: Any) -> dict[str, Any]:
        """The next event of that name with those fields; what comes before it is kept in `events`."""
        assert self._process.stdout is not None
        async with asyncio.timeout(15):
            while line := await self._process.stdout.readline():
                heard = json.loads(line)
                self.events.append(heard)
                if heard["event"] == event and all(heard.get(k) == v for k, v in wanted.items()):
                    return dict(heard)
        raise AssertionError(f"no {event} {wanted} in {self.events}")


@pytest.fixture(scope="session")
def installed() -> None:
    if not (SDK / "node_modules" / "centrifuge").exists():
        npm = shutil.which("npm")
        assert npm is not None
        subprocess.run([npm, "ci"], cwd=SDK, check=True, capture_output=True, timeout=300)


Start = Callable[[World], Any]


@pytest.fixture(params=["json", "protobuf"])
async def start(installed: None, request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    node = shutil.which("node")
    assert node is not None
    processes: list[asyncio.subprocess.Process] = []

    async def new(world: World) -> Sdk:
        process = await asyncio.create_subprocess_exec(
            node,
            "check.mjs",
            *(world.info["websocket"], request.param),
            cwd=SDK,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        processes.append(process)
        return Sdk(process)

    yield new
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_it_talks_and_stops_when_the_session_is_revoked(world: World, start: Start) -> None:
    admin, person = await world.admin(), await world.register()
    sdk = await start(world)
    await sdk.do("connect", token=person.access)
    await sdk.until("connected")
    await sdk.do("subscribe", channel=f"chat:{person.sid}")
    assert (await sdk.until("subscribed"))["recoverable"] is True
    await sdk.until("join", user=person.id)

    await world.api("publish", {"channel": f"chat:{person.sid}", "data": {"n": 1}})
    await sdk.until("publication", data={"n": 1}, offset=1)
    await sdk.do("publish", data={"n": 2})
    assert (await sdk.until("publication", offset=2))["user"] == person.id
    await sdk.until("published")
    await sdk.do("presence")
    assert await sdk.until("presence", numClients=1, numUsers=1, users=[person.id])
    await sdk.do("history", limit=10)
    assert (await sdk.until("history"))["data"] == [{"n": 1}, {"n": 2}]

    status, receipt = await world.call(
        "POST",
        "/admin/revocations",
        {"target": {"sid": person.sid}, "reason": "stolen laptop", "wait": True},
        token=admin.access,
    )
    assert (status, receipt["state"], receipt["connections_closed"]) == (201, "confirmed", 1)
    assert (await sdk.until("message"))["data"]["type"] == "session.revoked"
    assert (await sdk.until("disconnected", code=4501))["reason"] == "session revoked: stolen laptop"


async def test_it_comes_back_and_recovers_what_it_missed(world: World, start: Start) -> None:
    person = await world.register()
    channel = f"chat:r{person.sid}"
    sdk = await start(world)
    await sdk.do("connect", token=person.access)
    await sdk.until("connected")
    await sdk.do("subscribe", channel=channel)
    await sdk.until("subscribed")
    await world.api("publish", {"channel": channel, "data": 1})
    await sdk.until("publication", offset=1)
    await world.api("disconnect", {"user": person.id, "disconnect": {"code": 4000, "reason": "come back"}})
    await sdk.until("connecting", code=4000)
    for n in (2, 3):
        await world.api("publish", {"channel": channel, "data": n})
    await sdk.until("publication", offset=3)
    heard = [e["data"] for e in sdk.events if e["event"] == "publication"]
    assert heard == [1, 2, 3]


async def test_it_fetches_a_new_token_when_its_rights_change(world: World, start: Start) -> None:
    admin, person = await world.admin(), await world.register()
    sdk = await start(world)
    await sdk.do("connect", token=person.access)
    await sdk.until("connected")
    status, _ = await world.call(
        "PATCH", f"/admin/users/{person.id}", {"roles": ["moderator"], "reason": "promoted"}, token=admin.access
    )
    assert status == 200
    await sdk.until("connecting", code=3014)
    await sdk.until("getToken")


async def test_a_disabled_account_stays_out(world: World, start: Start) -> None:
    admin, person = await world.admin(), await world.register()
    sdk = await start(world)
    await sdk.do("connect", token=person.access)
    await sdk.until("connected")
    status, body = await world.call(
        "PATCH", f"/admin/users/{person.id}", {"disabled": True, "reason": "spam"}, token=admin.access
    )
    assert status == 200, body
    await sdk.until("disconnected", code=4502, reason="account disabled")
    status, body = await world.call(
        "POST", "/auth/login", {"email": person.email, "password": "a long walk along the harbour 3"}
    )
    assert (status, body["code"]) in {(401, "invalid_credentials"), (403, "cross_site")}
