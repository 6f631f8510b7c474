"""The load client: thousands of WebSocket connections to one server, held by one epoll loop in one process.

It takes one JSON object a line on stdin and answers each with one line on stdout. What must be read while the loop is
busy stands in a file shared by mmap (`COUNTERS`). Lives here: the loop, the client's half of the handshake and
of the framing, and the two dialects (`Centrifuge` for any server of that protocol in JSON, `SocketIo`). Does not live
here: what to open and when, and what the numbers mean.

    {"do": "open", "host", "port", "path", "dialect", "headers": {}, "window", "first",
     "peers": [{"token", "cookie", "channels"}]}         peers are numbered from `first`
        -> {"opened", "failed", "why": {text: count}, "stopped": text, "seconds"}
    {"do": "closes"}     -> {"closes": [[number, code, reason, seconds on the monotonic clock]]} since the last time
    {"do": "shut"}       -> {"shut": connections}       every connection is closed, counters stay
    end of stdin ends the process

One delivery is one occurrence of the dialect's marker in a text frame: replies, pings and publications may share a
frame. The bench's payloads contain neither the marker nor a brace.
"""

import contextlib
import errno
import functools
import gc
import itertools
import json
import mmap
import os
import resource
import select
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

COUNTERS = struct.Struct("<QQQQd")  # deliveries, frames that brought them, connections: ready, ended; last delivery
SOURCES = [f"127.0.0.{n}" for n in range(2, 10)]  # one address has at most 28,231 ports to a server
KEY = "dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="  # RFC 6455 section 1.3: the answer to this very key
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
CONNECTING, UPGRADING, JOINING, READY, ENDED = range(5)
FULL = (errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOBUFS, errno.ENOMEM)
HANDSHAKE_SECONDS = 20.0


def frame(opcode: int, payload: bytes) -> bytes:
    """One client frame. The mask is there, as RFC 6455 wants, and is zero: masking is not what is measured."""
    if len(payload) < 126:
        return bytes((0x80 | opcode, 0x80 | len(payload))) + b"\0\0\0\0" + payload
    return bytes((0x80 | opcode, 0xFE)) + len(payload).to_bytes(2, "big") + b"\0\0\0\0" + payload


@functools.lru_cache(64)  # thousands of connections are told the same
def frames(data: bytes) -> tuple[Sequence[tuple[int, bytes]], bytes]:
    """Whole server frames in `data`, and the bytes of the one that has not ended."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while len(data) - at >= 2:
        size, head = data[at + 1] & 0x7F, 2
        if size >= 126:
            head = 4 if size == 126 else 10
            size = int.from_bytes(data[at + 2 : at + head], "big")
        if len(data) - at < head or len(data) - at < head + size:
            break
        found.append((data[at] & 0x0F, data[at + head : at + head + size]))
        at += head + size
    return found, data[at:]


class Refused(Exception):
    """The server said no to a handshake, a connect or a subscribe."""


class Dialect(Protocol):
    """One protocol over the frames. `opening` is sent after the 101; `hears` gets each line that is no publication."""

    marker: bytes

    def opening(self, peer: dict[str, Any]) -> bytes: ...

    def hears(self, connection: "Connection", line: bytes) -> bytes:
        """What to answer, as a frame or nothing. Sets `connection.awaited` to 0 when the last subscribe is through."""


class Centrifuge:
    """The Centrifuge protocol in JSON: connect and all subscribes in one frame, `{}` answers a ping."""

    marker = b'"pub":'
    pong = frame(TEXT, b"{}")

    def opening(self, peer: dict[str, Any]) -> bytes:
        token = peer.get("token")
        commands: list[dict[str, Any]] = [{"id": 1, "connect": {"token": token} if token else {}}]
        commands += [{"id": i, "subscribe": {"channel": c}} for i, c in enumerate(peer["channels"], 2)]
        return frame(TEXT, b"\n".join(json.dumps(c, separators=(",", ":")).encode() for c in commands))

    def hears(self, connection: "Connection", line: bytes) -> bytes:
        if line == b"{}":
            return self.pong
        if connection.awaited and line.startswith(b'{"id":'):
            if b'"error":' in line:
                raise Refused(line.decode(errors="replace")[:120])
            connection.awaited -= 1
        return b""


class SocketIo:
    """Socket.IO 5 over Engine.IO 4: open, connect to the default namespace, join a room and wait for its answer."""

    marker = b'42["pub"'

    def opening(self, peer: dict[str, Any]) -> bytes:
        return b""

    def hears(self, connection: "Connection", line: bytes) -> bytes:
        if line == b"2":
            return frame(TEXT, b"3")
        if line.startswith(b"0"):
            return frame(TEXT, b"40")
        if line.startswith(b"40"):
            connection.awaited = 1
            return frame(TEXT, f'421["join","{connection.channels[0]}"]'.encode())
        if line.startswith(b"431"):
            connection.awaited = 0
        return b""


DIALECTS: dict[str, Callable[[], Dialect]] = {"centrifuge": Centrifuge, "socketio": SocketIo}


class Connection:
    """One socket and how far it has come. `awaited` counts the replies that are still to come before it is ready."""

    __slots__ = ("awaited", "channels", "index", "phase", "rest", "since", "socket")

    def __init__(self, sock: socket.socket, index: int, channels: list[str]) -> None:
        self.socket = sock
        self.index = index
        self.channels = channels
        self.awaited = len(channels) + 1
        self.phase = CONNECTING
        self.rest = b""
        self.since = time.monotonic()


class Opening:
    """An `open` command at work: the peers that are still to come, and what became of those that were tried."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.address = (order["host"], order["port"])
        self.peers: list[dict[str, Any]] = order["peers"]
        self.left = iter(range(len(self.peers)))
        self.first: int = order["first"]
        self.dialect = DIALECTS[order["dialect"]]()
        self.window: int = order["window"]
        self.pending: set[Connection] = set()
        self.opened = 0
        self.why: Counter[str] = Counter()
        self.stopped = ""
        self.began = time.monotonic()
        lines = [f"GET {order['path']} HTTP/1.1", f"Host: {order['host']}:{order['port']}", "Connection: Upgrade"]
        lines += ["Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {KEY}"]
        lines += [f"{name}: {value}" for name, value in order["headers"].items()]
        self.head = "\r\n".join(lines) + "\r\n"

    def peer(self, connection: "Connection") -> dict[str, Any]:
        return self.peers[connection.index - self.first]

    def request(self, peer: dict[str, Any]) -> bytes:
        cookie = f"Cookie: {peer['cookie']}\r\n" if peer.get("cookie") else ""
        return (self.head + cookie + "\r\n").encode()

    @property
    def report(self) -> dict[str, Any]:
        return {
            "opened": self.opened,
            "failed": sum(self.why.values()),
            "why": dict(self.why.most_common(5)),
            "stopped": self.stopped,
            "seconds": time.monotonic() - self.began,
        }


class Load:
    """The loop."""

    def __init__(self, counters: memoryview | mmap.mmap, say: Callable[[dict[str, Any]], None]) -> None:
        self.counters = counters
        self.say = say
        self.epoll = select.epoll()
        self.connections: dict[int, Connection] = {}
        self.sources: Iterator[str] = itertools.cycle(SOURCES)
        self.opening: Opening | None = None
        self.dialect: Dialect = Centrifuge()
        self.buffer = bytearray(1 << 18)
        self.view = memoryview(self.buffer)
        self.delivered = self.frames = self.ready = self.ended = 0
        self.last = 0.0
        self.closes: list[tuple[int, int, str, float]] = []
        self.burials: deque[Connection] = deque()

    def run(self, orders: int) -> None:
        """Until `orders`, a descriptor, ends."""
        self.epoll.register(orders, select.EPOLLIN)
        rest = b""
        while True:
            events = self.epoll.poll(0.0 if self.burials else 0.2, 1024)
            for fd, _ in events:
                if fd == orders:
                    data = os.read(orders, 1 << 20)
                    if not data:
                        return
                    *lines, rest = (rest + data).split(b"\n")
                    for line in lines:
                        self.obey(json.loads(line))
                elif (connection := self.connections.get(fd)) is not None:  # else it was shut in this very turn
                    self.turn(connection)
            COUNTERS.pack_into(self.counters, 0, self.delivered, self.frames, self.ready, self.ended, self.last)
            if not events:
                self.rest()

    def rest(self) -> None:
        """What may wait until all sockets were read: farewells, and connections that hang in their handshake.

        A server that closes thousands of connections needs the processor more than the client that says goodbye.
        """
        for _ in range(min(len(self.burials), 64)):
            self.bury(self.burials.popleft())
        if self.opening is not None and len(self.opening.pending) > 0:
            self.expire(self.opening)

    def obey(self, order: dict[str, Any]) -> None:
        if order["do"] == "open":
            self.opening = Opening(order)
            self.dialect = self.opening.dialect
            self.more(self.opening)
        elif order["do"] == "closes":
            self.say({"closes": self.closes})
            self.closes = []
        elif order["do"] == "shut":
            count = len(self.connections)
            for connection in list(self.connections.values()):
                self.bury(connection)
            self.say({"shut": count})
        else:
            raise ValueError(order["do"])

    # Opening

    def more(self, opening: Opening) -> None:
        """Keep `window` handshakes in flight; report when none is left."""
        while not opening.stopped and len(opening.pending) < opening.window:
            index = next(opening.left, None)
            if index is None:
                break
            try:
                self.dial(opening, index)
            except OSError as error:
                if error.errno not in FULL:
                    raise
                opening.stopped = f"{os.strerror(error.errno)} after {len(self.connections)} connections"
        if not opening.pending and self.opening is opening:
            self.opening = None
            self.say(opening.report)

    def dial(self, opening: Opening, index: int) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, getattr(socket, "IP_BIND_ADDRESS_NO_PORT", 24), 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if opening.address[0] == "127.0.0.1":
                sock.bind((next(self.sources), 0))
            with contextlib.suppress(BlockingIOError):
                sock.connect(opening.address)
        except OSError:
            sock.close()
            raise
        connection = Connection(sock, opening.first + index, opening.peers[index]["channels"])
        opening.pending.add(connection)
        self.connections[sock.fileno()] = connection
        self.epoll.register(sock.fileno(), select.EPOLLOUT)

    def expire(self, opening: Opening) -> None:
        late = time.monotonic() - HANDSHAKE_SECONDS
        for connection in [c for c in opening.pending if c.since < late]:
            self.lose(connection, "no answer in time")

    def settle(self, connection: Connection, why: str = "") -> None:
        """`connection` is ready, or never will be."""
        opening = self.opening
        if opening is None or connection not in opening.pending:
            return
        opening.pending.discard(connection)
        if why:
            opening.why[why] += 1
        else:
            connection.phase = READY
            opening.opened += 1
            self.ready += 1
        self.more(opening)

    # One connection's turn

    def turn(self, connection: Connection) -> None:
        if connection.phase == CONNECTING:
            self.connected(connection)
            return
        if connection.phase == ENDED:  # and the server has closed it meanwhile
            self.bury(connection)
            return
        try:
            size = connection.socket.recv_into(self.buffer)
        except BlockingIOError:
            return
        except OSError as error:
            self.lose(connection, os.strerror(error.errno or 0))
            return
        if not size:
            self.lose(connection, "closed without a close frame")
            return
        buffer = self.buffer
        if connection.phase == READY and not connection.rest and buffer[0] == 0x81:
            length = buffer[1]
            whole = length + 2 if length < 126 else ((buffer[2] << 8) | buffer[3]) + 4 if length == 126 else 0
            if whole == size:
                deliveries = buffer.count(self.dialect.marker, 0, size)
                if deliveries and buffer.find(b"{}", 0, size) < 0:  # a ping may share the frame
                    self.delivered += deliveries
                    self.frames += 1
                    self.last = time.monotonic()
                    return
        self.read(connection, connection.rest + bytes(self.view[:size]))

    def connected(self, connection: Connection) -> None:
        error = connection.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self.lose(connection, os.strerror(error))
            return
        assert self.opening is not None
        connection.phase = UPGRADING
        connection.socket.send(self.opening.request(self.opening.peer(connection)))
        self.epoll.modify(connection.socket.fileno(), select.EPOLLIN)

    def read(self, connection: Connection, data: bytes) -> None:
        """The slow way: everything that is not exactly one frame of publications for a connection that is ready."""
        try:
            if connection.phase == UPGRADING:
                data = self.upgraded(connection, data)
            if connection.phase in (JOINING, READY):
                found, connection.rest = frames(data)
                for opcode, payload in found:
                    self.hear(connection, opcode, payload)
        except Refused as refusal:
            self.lose(connection, str(refusal))

    def upgraded(self, connection: Connection, data: bytes) -> bytes:
        head, end, rest = data.partition(b"\r\n\r\n")
        if not end:
            connection.rest = data
            return b""
        if not head.startswith(b"HTTP/1.1 101") or ACCEPT not in head:
            raise Refused((head.split(b"\r\n")[0] + b" " + rest[:120]).decode(errors="replace"))
        assert self.opening is not None
        connection.phase = JOINING
        connection.rest = b""
        self.send(connection, self.dialect.opening(self.opening.peer(connection)))
        return rest

    def hear(self, connection: Connection, opcode: int, payload: bytes) -> None:
        if opcode == TEXT:
            deliveries = payload.count(self.dialect.marker)
            if deliveries:
                self.delivered += deliveries
                self.frames += 1
                self.last = time.monotonic()
            for line in payload.split(b"\n"):
                if not deliveries or self.dialect.marker not in line:
                    self.send(connection, self.dialect.hears(connection, line))
            if connection.phase == JOINING and not connection.awaited:
                self.settle(connection)
        elif opcode == PING:
            self.send(connection, frame(PONG, payload))
        elif opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big")
            self.end(connection, code, payload[2:].decode(errors="replace"))

    def send(self, connection: Connection, data: bytes) -> None:
        if data and connection.phase != ENDED:
            with contextlib.suppress(OSError):
                connection.socket.send(data)

    # Ends

    def lose(self, connection: Connection, why: str) -> None:
        self.end(connection, 1006, why)

    def end(self, connection: Connection, code: int, reason: str) -> None:
        """The moment is noted now; the farewell and the system calls of closing wait until the sockets were read."""
        if connection.phase == ENDED:
            return
        if connection.phase == READY:
            self.ready -= 1
            self.ended += 1
            self.closes.append((connection.index, code, reason, time.monotonic()))
        connection.phase = ENDED
        self.burials.append(connection)
        self.settle(connection, f"{code} {reason}")

    def bury(self, connection: Connection) -> None:
        fd = connection.socket.fileno()
        if self.connections.pop(fd, None) is not None:
            if connection.phase == READY:
                self.ready -= 1
            connection.phase = ENDED
            with contextlib.suppress(OSError):
                connection.socket.send(frame(CLOSE, b"\x03\xe8"))
            connection.socket.close()


def main(path: str) -> None:
    """`path` is the file of the counters."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    gc.disable()  # no cycles are made, and a collection over 19,000 connections would be seen in the latencies

    def say(answer: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    with open(path, "r+b") as file, mmap.mmap(file.fileno(), COUNTERS.size) as counters:
        Load(counters, say).run(sys.stdin.fileno())


if __name__ == "__main__":
    main(sys.argv[1])
