"""What the supervisor itself answers on the internal port: health, the readiness of all workers, their metrics merged.

`/api` and `/admin` are there too, but those connections go to a worker before they come here.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import prometheus_client
from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from config.http import Problem, connections, problems
from gateway.handover import INSIDE, WorkerState

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Inside:
    """A small HTTP server without a port: it is given its connections. Make one by `open_inside`."""

    def __init__(self, states: Callable[[], Sequence[WorkerState]], metrics: Path) -> None:
        self._states, self._metrics = states, metrics
        app = web.Application(middlewares=[_one_request, problems])
        app.router.add_get("/health", self._health)
        app.router.add_get("/ready", self._ready)
        app.router.add_get("/metrics", self._merged)
        for prefix in INSIDE:
            app.router.add_route("*", f"{prefix}{{rest:(/.*)?}}", self._no_worker)
        self.runner = web.AppRunner(app, handle_signals=False, shutdown_timeout=1.0)

    async def take(self, connection: socket.socket) -> None:
        """Serve one connection."""
        if self.runner.server is None:
            connection.close()
            return
        with contextlib.suppress(OSError):  # gone before we came to it
            await asyncio.get_running_loop().connect_accepted_socket(connections(self.runner), connection)

    async def close(self) -> None:
        """End every connection."""
        await self.runner.cleanup()

    async def _health(self, _request: web.Request) -> web.Response:
        return web.json_response({})

    async def _ready(self, _request: web.Request) -> web.Response:
        states = self._states()
        body = msgspec.json.encode({"workers": states})
        status = 200 if any(state.ready for state in states) else 503
        return web.Response(body=body, status=status, content_type="application/json")

    async def _merged(self, _request: web.Request) -> web.Response:
        text = await asyncio.to_thread(_exposition, self._metrics)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _no_worker(self, _request: web.Request) -> web.Response:
        raise Problem("unavailable", "no worker is ready", retry_after=1)


async def open_inside(states: Callable[[], Sequence[WorkerState]], metrics: Path) -> Inside:
    """Ready to take connections. `metrics` is the folder in which the workers count."""
    inside = Inside(states, metrics)
    await inside.runner.setup()
    return inside


@web.middleware
async def _one_request(request: web.Request, handler: Handler) -> web.StreamResponse:
    """The next request may be a worker's: it comes on a connection of its own."""
    response = await handler(request)
    response.force_close()
    return response


def _exposition(folder: Path) -> bytes:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(folder))  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry)
