"""What tests of Redis need: a server of one's own to hurt, a wire to cut, and things to wait for without sleeping."""

import asyncio
import os
import shutil
import signal
import ssl
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from config.redis import Bus, Pipe
from config.servers import Guardian, Place, Valkey

PATIENCE = 10.0


class Signal:
    """A callback that a test can wait for; `times` counts."""

    def __init__(self) -> None:
        self.times = 0
        self._event = asyncio.Event()

    def __call__(self, *_: object) -> None:
        self.times += 1
        self._event.set()

    async def wait(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._event.wait()
        self._event.clear()


class Heard(list[Any]):
    """A handler that collects, and a list that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted: list[tuple[int, asyncio.Future[None]]] = []

    def __call__(self, *message: Any) -> None:
        self.append(message[0] if len(message) == 1 else message)
        for count, future in self._wanted:
            if len(self) >= count and not future.done():
                future.set_result(None)

    async def until(self, count: int) -> list[Any]:
        if len(self) < count:
            future = asyncio.get_running_loop().create_future()
            self._wanted.append((count, future))
            async with asyncio.timeout(PATIENCE):
                await future
        return list(self)


class Server(Valkey):
    """A Valkey of one test's own, to be stopped, killed and started again on the same port."""

    extra = ""  # more lines for its configuration

    def _launch(self, arguments: Sequence[str | Path]) -> None:
        configuration = self.folder / "valkey.conf"
        configuration.write_text(configuration.read_text() + self.extra)
        super()._launch(arguments)

    def kill(self) -> None:
        """As a crash: no snapshot is written."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self._port = self.port

    def again(self) -> None:
        """Start it where it was."""
        self._process = None
        self.start()

    def freeze(self) -> None:
        """It takes connections and says nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


class Wire:
    """A TCP proxy that can hold bytes back, cut connections, and speak TLS towards the client."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None) -> None:
        self.target = port
        self._context = context
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._context)
        self.port = self._server.sockets[0].getsockname()[1]

    def hold(self) -> None:
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    def cut(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        self.flow()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        self._writers |= {writer, back}
        for source, target in ((reader, back), (there, writer)):
            task = asyncio.ensure_future(self._pump(source, target))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._flowing.wait()
                target.write(data)
        except OSError:
            pass
        finally:
            target.transport.abort()
            self._writers.discard(target)


@pytest.fixture
def open_server(guardian: Guardian) -> Iterator[Callable[[], Server]]:
    servers: list[Server] = []
    folders: list[Path] = []

    def begin() -> Server:
        folders.append(Path(tempfile.mkdtemp(prefix="wardgate-test-")))
        folders[-1].chmod(0o711)
        servers.append(Server(Place.at(folders[-1]), guardian=guardian))
        servers[-1].start()
        return servers[-1]

    yield begin
    for server in servers:
        if server.running():
            server.thaw()
        server.stop()
        server.place.remove()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server(open_server: Callable[[], Server]) -> Server:
    return open_server()


@pytest.fixture
async def wire() -> AsyncIterator[Callable[..., Awaitable[Wire]]]:
    wires: list[Wire] = []

    async def open_wire(port: int, context: ssl.SSLContext | None = None) -> Wire:
        wires.append(Wire(port, context))
        await wires[-1].start()
        return wires[-1]

    yield open_wire
    for each in wires:
        await each.close()


@pytest.fixture
async def open_pipe() -> AsyncIterator[Callable[..., Awaitable[Pipe]]]:
    pipes: list[Pipe] = []

    async def connect(url: str, **options: Any) -> Pipe:
        pipes.append(Pipe(url, **options))
        await pipes[-1].start(PATIENCE)
        return pipes[-1]

    yield connect
    for pipe in pipes:
        await pipe.close()


@pytest.fixture
async def open_bus() -> AsyncIterator[Callable[..., Awaitable[Bus]]]:
    buses: list[Bus] = []

    async def connect(url: str, **options: Any) -> Bus:
        buses.append(Bus(url, **options))
        await buses[-1].start(PATIENCE)
        return buses[-1]

    yield connect
    for bus in buses:
        await bus.close()


@pytest.fixture
async def pipe(redis_url: str, open_pipe: Callable[..., Awaitable[Pipe]]) -> Pipe:
    return await open_pipe(redis_url)


@pytest.fixture
async def bus(redis_url: str, open_bus: Callable[..., Awaitable[Bus]]) -> Bus:
    return await open_bus(redis_url)
