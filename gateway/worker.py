"""The process side of a worker: takes its settings and its connections from the supervisor, serves, drains, ends.

Started as `python -m gateway.worker FD` with the control socket as descriptor FD; what the process does for its clients
is `gateway.app`'s. It ends when it is told to, on SIGTERM, and when the supervisor is gone.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import structlog
import uvloop
from aiohttp import web

from config import logging
from config.errors import Failure
from config.http import Problem, connections
from config.settings import from_tree
from gateway import app as application
from gateway.handover import HIDDEN, ROLES, Drain, Passed, Receiver, Report, Setup, encode

CHECK_EVERY = 0.25
REPORT_EVERY = 1.0
ORPHAN_DRAIN = 1.0
SHUTDOWN = 1.0  # for HTTP requests that still run after the drain

log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Worker:
    """One worker process."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._receiver = Receiver(control)
        self._setup: asyncio.Future[Setup] = asyncio.get_running_loop().create_future()
        self._end: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._app: application.App | None = None
        self._server: Callable[[], Any] | None = None
        self._taken = 0
        self._said: Report | None = None
        self._taking: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """From the first message to the end of the process."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._control.fileno(), self._readable)
        loop.add_signal_handler(signal.SIGTERM, self._finish, ORPHAN_DRAIN)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # Ctrl-C is the supervisor's business
        first: list[asyncio.Future[Any]] = [self._setup, self._end]
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        try:
            if self._setup.done():
                await self._serve(self._setup.result())
        except Failure as failure:  # its text is for people, and says what to do
            log.error("worker_failed", pid=os.getpid(), why=str(failure))
            raise SystemExit(1) from None
        except Exception:
            log.exception("worker_failed", pid=os.getpid())
            raise SystemExit(1) from None
        loop.remove_reader(self._control.fileno())

    async def _serve(self, setup: Setup) -> None:
        settings = from_tree(setup.settings)
        logging.configure(settings.log, node=setup.node[:8])
        app = await application.build(settings, node=setup.node, dev=setup.dev)
        await app.start()
        try:
            internal = settings.http_server.internal_port
            if setup.roles or internal:
                app.web.middlewares.insert(0, _only(setup.roles, internal))
            runner = web.AppRunner(app.web, handle_signals=False, shutdown_timeout=SHUTDOWN)
            await runner.setup()
            try:
                await self._take_connections(app, runner)
            finally:
                await runner.cleanup()
        finally:
            await app.close()

    async def _take_connections(self, app: application.App, runner: web.AppRunner) -> None:
        self._app, self._server = app, connections(runner)
        gc.collect()
        gc.freeze()  # what is there now stays: the collector need not walk it again
        # Peers make no cycles. At the default thresholds the collector takes a sixth of the work of connecting at
        # 12,000 connections and pauses for tens of ms to find nothing; seldom is often enough.
        gc.set_threshold(100_000, 50, 1000)
        log.info("worker_started", pid=os.getpid())
        reports = asyncio.create_task(self._report(), name="reports")
        seconds = await self._end
        log.info("worker_draining", seconds=seconds, connections=app.status().connections)
        await app.drain(seconds)
        reports.cancel()
        await asyncio.wait([reports])
        self._send(Report(False, "ended", 0, self._taken, ended=True))

    async def _report(self) -> None:
        """Say how we stand: at once when it changes, else every second, as the supervisor takes silence for death."""
        assert self._app is not None  # noqa: S101
        loop, due = asyncio.get_running_loop(), 0.0
        self._app.watch(self._say_changes)
        while True:
            if loop.time() >= due:
                self._said = None
            if self._say_changes():
                due = loop.time() + REPORT_EVERY
            await asyncio.sleep(CHECK_EVERY)

    def _say_changes(self) -> bool:
        assert self._app is not None  # noqa: S101
        status = self._app.status()
        report = Report(status.ready, status.why, status.connections, self._taken)
        if report == self._said:
            return False
        self._said = report
        self._send(report)
        return True

    def _send(self, report: Report) -> None:
        """A report that does not fit is left out: the next one says more."""
        with contextlib.suppress(OSError):
            self._control.send(encode(report))

    def _readable(self) -> None:
        for message in self._receiver.read():
            if isinstance(message, Passed):
                self._take(message)
            elif isinstance(message, Setup):
                self._setup.set_result(message)
            elif isinstance(message, Drain):
                self._finish(message.seconds)
        if self._receiver.ended:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._finish(ORPHAN_DRAIN)

    def _finish(self, seconds: float) -> None:
        if not self._end.done():
            self._end.set_result(seconds)

    def _take(self, passed: Passed) -> None:
        """A connection that was accepted for us."""
        self._taken += 1
        if passed.descriptor < 0:
            log.warning("connection_lost", why="out of descriptors")
            return
        # Naming family, type and protocol saves asking the kernel for each.
        connection = socket.socket(passed.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, passed.descriptor)
        if self._server is None:
            connection.close()
            return
        connection.setblocking(False)
        task = asyncio.get_running_loop().create_task(self._adopt(self._server, connection))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _adopt(self, server: Callable[[], Any], connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(server, connection)
        except OSError:  # gone before we came to it
            connection.close()


def _only(roles: tuple[str, ...], internal_port: int) -> Any:
    """A middleware that hides the routes of other roles, and those of the internal port from the public one."""
    hidden = tuple(path for role, paths in ROLES.items() if roles and role not in roles for path in paths)

    @web.middleware
    async def only(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _under(request.path, hidden) or (
            internal_port and _under(request.path, HIDDEN) and _port_of(request) != internal_port
        ):
            return Problem("not_found").response()
        return await handler(request)

    return only


def _under(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == prefix or path.startswith(prefix + "/") for prefix in prefixes)


def _port_of(request: web.Request) -> int:
    """The port that the client connected to."""
    address = request.transport.get_extra_info("sockname") if request.transport is not None else None
    return int(address[1]) if address else 0


def main(arguments: list[str]) -> None:
    """The process."""
    control = socket.socket(fileno=int(arguments[0]))
    control.setblocking(False)

    async def run() -> None:
        await Worker(control).run()

    uvloop.run(run())


if __name__ == "__main__":
    main(sys.argv[1:])
