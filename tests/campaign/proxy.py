"""A TCP proxy between one gateway and one server, to cut, hold, slow or garble what goes through.

Bytes can be held in one direction or both (a network that drops everything: the connection looks alive), delayed,
"lost" (each piece is late by a retransmission with some probability; TCP shows loss to nobody otherwise), and hints can
be garbled one by one, in place, so that the stream stays a stream. The reply to a script can be lost after it ran. New
connections are held like old ones. What a Sentinel says of its servers' ports can be said of their proxies'.
"""

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Callable

LEASE = b"WITH beat AS"
"""How the lease's statement begins, which its connection sends once, to prepare it."""
FIRST_RENEWAL = 0.15
"""Seconds in which the first one is over, and before the second."""
HINT = re.compile(rb":revocations\r\n\$\d+\r\n")
NAME = re.compile(rb"SETNAME\r\n\$\d+\r\n([a-z-]+)\r\n")
SCRIPT = b"EVALSHA"
PORT = re.compile(rb"\$4\r\nport\r\n\$\d+\r\n(\d+)\r\n")
RETRANSMISSIONS = (0.2, 0.4, 0.8)


class Proxy:
    """One listening port. The knobs may be turned at any moment."""

    def __init__(self, target: Callable[[], int], rng: random.Random) -> None:
        self._target = target
        self._rng = rng
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._names: dict[asyncio.StreamWriter, bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._free = asyncio.Event()
        self.port = 0
        self.refuse = False
        self.garbled = self.lost_replies = 0
        self.ports: dict[int, int] = {}  # the servers' to their proxies', in what a Sentinel answers
        self._lost: set[asyncio.StreamWriter] = set()  # whose next reply does not come
        self.heal()

    def heal(self) -> None:
        """Everything passes."""
        self.up = self.down = True  # to the server, to the gateway
        self.delay = self.loss = self.garble = self.lose = 0.0
        self.stall = False  # a lease's connection stands still after its first renewal
        self.refuse = False
        self._free.set()

    def hold(self, *, up: bool = True, down: bool = True) -> None:
        """Nothing passes in these directions until `heal`."""
        self.up, self.down = not up, not down
        self._free.clear()

    async def start(self, host: str = "127.0.0.1") -> None:
        """Listen on a port."""
        self._server = await asyncio.start_server(self._serve, host, 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self, *, but: bytes = b"") -> None:
        """End every connection, but those that have called themselves so."""
        for writer in tuple(self._writers):
            if not but or self._names.get(writer) != but:
                writer.transport.abort()

    def named(self, name: bytes) -> set[asyncio.StreamWriter]:
        """Connections that have called themselves so."""
        return {writer for writer, own in self._names.items() if own == name}

    async def close(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        there: asyncio.StreamWriter | None = None
        try:
            if self.refuse:
                return
            with contextlib.suppress(OSError, asyncio.CancelledError):
                answers, there = await asyncio.open_connection("127.0.0.1", self._target())
                self._writers.add(there)
                ways = [
                    asyncio.ensure_future(self._pump(reader, there, up=True, back=writer)),
                    asyncio.ensure_future(self._pump(answers, writer, up=False)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self._tasks.discard(task)
            for end in (writer, there):
                if end is not None:
                    self._writers.discard(end)
                    self._lost.discard(end)
                    self._names.pop(end, None)
                    end.transport.abort()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        *,
        up: bool,
        back: asyncio.StreamWriter | None = None,
    ) -> None:
        prepared = 0.0  # when the lease's statement was prepared on this connection
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if back is not None and back not in self._names and (found := NAME.search(data)):
                    self._names[back] = self._names[sink] = found[1]
                if up and not prepared and LEASE in data:
                    prepared = time.monotonic()
                while prepared and self.stall and time.monotonic() - prepared > FIRST_RENEWAL:  # noqa: ASYNC110 - a knob
                    await asyncio.sleep(0.02)
                if self.delay:
                    await asyncio.sleep(self.delay)
                if self.loss and self._rng.random() < self.loss:
                    await asyncio.sleep(self._rng.choice(RETRANSMISSIONS))
                while not (self.up if up else self.down):
                    await self._free.wait()
                if sink in self._lost:
                    self.lost_replies += 1
                    sink.transport.abort()
                    return
                if back is not None and self.lose and SCRIPT in data and self._rng.random() < self.lose:
                    self._lost.add(back)
                sink.write(data if up else self._answer(data))
                await sink.drain()

    def _answer(self, data: bytes) -> bytes:
        if self.ports:
            return PORT.sub(self._port, data)
        return self._spoil(data) if self.garble else data

    def _port(self, found: "re.Match[bytes]") -> bytes:
        port = str(self.ports.get(int(found[1]), int(found[1])))
        return f"$4\r\nport\r\n${len(port)}\r\n{port}\r\n".encode()

    def _spoil(self, data: bytes) -> bytes:
        spoilt = bytearray(data)
        for hint in HINT.finditer(data):
            if hint.end() < len(data) and self._rng.random() < self.garble:
                spoilt[hint.end()] ^= 0x40
                self.garbled += 1
        return bytes(spoilt)
