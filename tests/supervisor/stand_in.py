"""A worker process with a tiny application in place of the product: `python -m tests.supervisor.stand_in FD`.

What it does is steered by the environment (STAND_IN=dies|...) and by requests (`/behave?...`).
"""

import asyncio
import os
import sys
import types
from collections.abc import Callable
from typing import Any

from aiohttp import web

from config.settings import Settings


class Status:
    def __init__(self, ready: bool, why: str, connections: int) -> None:
        self.ready, self.why, self.connections = ready, why, connections


class App:
    """As much of `gateway.app.App` as a worker needs."""

    def __init__(self, settings: Settings, node: str, dev: bool) -> None:
        self.settings, self.node, self.dev = settings, node, dev
        self.now = Status(True, "", 0)
        self.hold = False

    async def start(self) -> None:
        if os.environ.get("STAND_IN") == "dies":
            raise RuntimeError("cannot start")
        self.web = web.Application()
        self.web.router.add_post("/api/x", self._who)
        for path in ("/who", "/admin/x", "/auth/x", "/metrics"):
            self.web.router.add_get(path, self._who)
        self.web.router.add_get("/behave", self._behave)

    def status(self) -> Status:
        return self.now

    def watch(self, changed: Callable[[], object]) -> None:
        self.changed = changed

    async def drain(self, seconds: float) -> None:
        print("drained", self.node, seconds, file=sys.stderr, flush=True)
        if self.hold:
            await asyncio.sleep(3600)

    async def close(self) -> None:
        print("closed", self.node, file=sys.stderr, flush=True)

    async def _who(self, request: web.Request) -> web.Response:
        return web.json_response({"node": self.node, "pid": os.getpid(), "remote": request.remote, "dev": self.dev})

    async def _behave(self, request: web.Request) -> web.Response:
        q = request.query
        self.now = Status(q.get("ready", "1") == "1", q.get("why", ""), int(q.get("connections", "0")))
        self.hold = "hold" in q
        self.changed()
        return web.Response()


async def build(settings: Settings, *, node: str, dev: bool) -> App:
    return App(settings, node, dev)


def main() -> None:
    fake: Any = types.ModuleType("gateway.app")
    fake.App, fake.build = App, build
    sys.modules["gateway.app"] = fake
    import gateway

    gateway.app = fake
    from gateway import worker

    worker.main(sys.argv[1:])


if __name__ == "__main__":
    main()
