"""Every sample of README.md, run as it stands there against a running gateway; only the address is another."""

import asyncio
import contextlib
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.world.conftest import PASSWORD, ROOT, World
from tests.world.test_javascript_sdk import SDK, installed

__all__ = ["installed"]  # a fixture

README = (ROOT / "README.md").read_text()
SITE = "127.0.0.1:8000"


def samples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def python_sample(number: int, world: World, **names: Any) -> dict[str, Any]:
    """What a sample defines. `names` are there before it."""
    text = samples("python")[number]
    assert SITE in text
    exec(compile(text.replace(SITE, world.url.removeprefix("http://")), f"README.md, Python {number}", "exec"), names)  # noqa: S102
    return names


class Said:
    """What a sample printed, line by line."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._more = asyncio.Event()

    def hear(self, *parts: object) -> None:
        self.lines.append(" ".join(str(part) for part in parts))
        self._more.set()

    async def until(self, wanted: str) -> None:
        try:
            async with asyncio.timeout(15):
                while not any(wanted in line for line in self.lines):
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            pytest.fail(f"no {wanted!r} in {self.lines}")


async def end(world: World, sid: str) -> str:
    """The sample for backends: publishes, and ends the session. What it printed."""
    said: list[str] = []
    backend = python_sample(1, world, print=lambda *parts: said.append(" ".join(str(part) for part in parts)))
    await asyncio.to_thread(backend["example"], world.info["api_key"], sid)
    assert (await world.api("history", {"channel": "news:today", "limit": 1, "reverse": True}))["result"][
        "publications"
    ][0]["data"] == {"title": "It works"}
    return "\n".join(said)


def test_no_sample_is_left_out() -> None:
    assert {language: len(samples(language)) for language in ("js", "python")} == {"js": 2, "python": 2}
    assert README.count("```") == 2 * 4


async def test_python_talks_and_a_backend_ends_it(one_worker: World) -> None:
    person, said = await one_worker.register(), Said()
    main = asyncio.create_task(python_sample(0, one_worker, print=said.hear)["main"](person.access))
    try:
        await said.until("{'text': 'hello'}")
        assert await end(one_worker, person.sid) == "confirmed 1"
        assert not main.done()
    finally:
        main.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await main


Page = Callable[[str], Any]


@pytest.fixture
async def page(one_worker: World, installed: None) -> AsyncIterator[Page]:
    """Run a sample as a page does that somebody with a session has opened. Its lines, and the session's id."""
    node = shutil.which("node")
    assert node is not None
    processes: list[asyncio.subprocess.Process] = []
    readers: list[asyncio.Task[None]] = []

    async def run(text: str) -> tuple[Said, str]:
        person = await one_worker.register()
        body = {"email": person.email, "password": PASSWORD}
        async with one_worker.http.post(
            f"{one_worker.url}/auth/login", json=body, headers={"Origin": one_worker.url}
        ) as answer:
            assert answer.status == 200
            sid = (await answer.json())["session"]["sid"]
            cookie = "; ".join(f"{name}={morsel.value}" for name, morsel in answer.cookies.items())
        assert SITE in text
        process = await asyncio.create_subprocess_exec(
            node,
            *("--import", "./browser.mjs", "--input-type=module"),
            cwd=SDK,
            env={**os.environ, "SITE": one_worker.url, "COOKIE": cookie},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        processes.append(process)
        assert process.stdin is not None
        process.stdin.write(text.replace(SITE, one_worker.url.removeprefix("http://")).encode())
        process.stdin.close()
        said = Said()
        readers.append(asyncio.create_task(_read(process, said)))
        return said, sid

    yield run
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()
    await asyncio.gather(*readers)


async def _read(process: asyncio.subprocess.Process, said: Said) -> None:
    assert process.stdout is not None
    while line := await process.stdout.readline():
        said.hear(line.decode().rstrip())


@pytest.mark.node
async def test_javascript_talks_and_hears_why_it_ended(one_worker: World, page: Page) -> None:
    said, sid = await page(samples("js")[0])
    await said.until("{ text: 'hello' }")
    assert await end(one_worker, sid) == "confirmed 1"
    await said.until("session.revoked stolen laptop")
    await said.until("4501 session revoked: stolen laptop")


@pytest.mark.node
async def test_a_plain_websocket_hears_the_channel(one_worker: World, page: Page) -> None:
    said, sid = await page(samples("js")[1])
    await said.until("connect: {")
    await said.until("subscribe: {")
    await one_worker.api("publish", {"channel": "chat:lobby", "data": "to all"})
    await said.until("data: 'to all'")
    assert await end(one_worker, sid) == "confirmed 1"
    await said.until("push: { message:")
    await said.until("4501 session revoked: stolen laptop")


def test_every_file_that_the_readme_names_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert "://" in target or (ROOT / target).exists(), f"README.md links {target}"
