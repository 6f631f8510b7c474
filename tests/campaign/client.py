"""A realtime client that writes down when what came: the wire by hand, on a plain socket, in both codecs.

It knows its place in the stream of bytes of every frame, and can say how much of the stream the kernels hold, so that
the checker can tell what was written after a moment from what was only read after it (`history.Mark`).
"""

import asyncio
import base64
import fcntl
import itertools
import json
import os
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, cast

from gateway.protocol import wire_pb2 as wire
from tests.campaign.history import (
    Closed,
    Delivered,
    Dialled,
    Event,
    Frame,
    HungUp,
    Mark,
    Subscribed,
    Unsubscribed,
)

TEXT, BINARY, CLOSE = 1, 2, 8


class Said(NamedTuple):
    """One message of the server, whatever its codec. `kind` "" is a ping."""

    id: int
    kind: str
    channel: str = ""
    data: bytes = b""
    offset: int = 0
    epoch: str = ""
    code: int = 0
    recovered: bool = False
    publications: tuple[tuple[int, bytes], ...] = ()


def write_frame(opcode: int, payload: bytes) -> bytes:
    """RFC 6455 5.2, from a client; a mask of zeros is a mask."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 65536:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    return head + b"\0\0\0\0" + payload


def read_frame(data: bytes, at: int) -> tuple[int, bytes, int] | None:
    """(opcode, payload, where the next one begins); None while it is not whole."""
    if len(data) < at + 2:
        return None
    opcode, size, begin = data[at] & 0x0F, data[at + 1] & 0x7F, at + 2
    if size == 126:
        if len(data) < at + 4:
            return None
        (size,), begin = struct.unpack_from("!H", data, begin), at + 4
    elif size == 127:
        if len(data) < at + 10:
            return None
        (size,), begin = struct.unpack_from("!Q", data, begin), at + 10
    if len(data) < begin + size:
        return None
    return opcode, data[begin : begin + size], begin + size


class Json:
    """JSON."""

    opcode = TEXT
    protocol = "centrifuge-json"
    PONG = b"{}"

    def command(self, id: int, kind: str, body: dict[str, Any]) -> bytes:
        return json.dumps({"id": id, kind: body}).encode()

    def read(self, payload: bytes) -> Iterator[Said]:
        for line in payload.split(b"\n"):
            yield self._said(json.loads(line))

    def _said(self, m: dict[str, Any]) -> Said:
        if not m:
            return Said(0, "")
        if "error" in m:
            return Said(m["id"], "error", code=m["error"]["code"])
        if "push" in m:
            push = m["push"]
            kind = next((name for name in push if name != "channel"), "empty")
            body = push.get(kind) or {}
            data = json.dumps(body["data"]).encode() if kind == "pub" else b""
            return Said(
                0, kind, push.get("channel", ""), data, int(body.get("offset", 0)), code=int(body.get("code", 0))
            )
        kind = next((name for name in m if name != "id"), "empty")
        body = m.get(kind) or {}
        return Said(
            m["id"],
            kind,
            offset=int(body.get("offset", 0)),
            epoch=body.get("epoch", ""),
            recovered=bool(body.get("recovered")),
            publications=tuple(
                (int(p["offset"]), json.dumps(p["data"]).encode()) for p in body.get("publications") or ()
            ),
        )


class Protobuf:
    """Protobuf."""

    opcode = BINARY
    protocol = "centrifuge-protobuf"
    PONG = b"\0"

    def command(self, id: int, kind: str, body: dict[str, Any]) -> bytes:
        command = wire.Command(id=id)
        part = getattr(command, kind)
        part.SetInParent()
        for name, value in body.items():
            setattr(part, name, json.dumps(value).encode() if name == "data" else value)
        message = command.SerializeToString()
        return _varint(len(message)) + message

    def read(self, payload: bytes) -> Iterator[Said]:
        at = 0
        while at < len(payload):
            size, at = _read_varint(payload, at)
            yield self._said(wire.Reply.FromString(payload[at : at + size])) if size else Said(0, "")
            at += size

    def _said(self, m: Any) -> Said:
        fields = [field.name for field, _ in m.ListFields() if field.name != "id"]
        if "error" in fields:
            return Said(m.id, "error", code=m.error.code)
        if "push" in fields:
            kind = next((field.name for field, _ in m.push.ListFields() if field.name != "channel"), "empty")
            body: Any = getattr(m.push, kind, None)
            data = body.data if kind == "pub" else b""
            return Said(0, kind, m.push.channel, data, getattr(body, "offset", 0), code=getattr(body, "code", 0))
        kind = fields[0] if fields else "empty"
        body = getattr(m, kind, None)
        return Said(
            m.id,
            kind,
            offset=getattr(body, "offset", 0),
            epoch=getattr(body, "epoch", ""),
            recovered=getattr(body, "recovered", False),
            publications=tuple((p.offset, p.data) for p in getattr(body, "publications", ())),
        )


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


CODECS: dict[str, Json | Protobuf] = {"json": Json(), "protobuf": Protobuf()}


class Client(asyncio.Protocol):
    """One connection. `log` gets its events; `ended` is set when it is over. Each has an address of its own."""

    numbers: ClassVar[Iterator[int]] = itertools.count(1)
    """Of connections: every process of a run has a range of its own."""

    def __init__(
        self, log: Callable[[Event], None], codec: str, sid: str, user: str, node: int, *, address: str = ""
    ) -> None:
        self.number = next(Client.numbers)
        self.sid, self.user, self.node = sid, user, node
        self.codec = CODECS[codec]
        self.address = (
            address or f"10.{128 + self.number // 65536 % 112}.{self.number // 256 % 256}.{self.number % 256}"
        )
        self.live = False
        self.mute = False
        self.ended = asyncio.Event()
        self.places: dict[str, tuple[int, str]] = {}  # positioned subscriptions: where they are
        self.lost: set[str] = set()  # channels that the server took away
        self._log = log
        self._transport: asyncio.Transport | None = None
        self._upgraded = False
        self._buffer = b""
        self._read = 0  # bytes that came before the buffer
        self._received = 0
        self._hanging_up = self._told = False
        self._sent: dict[int, tuple[float, str, str]] = {}
        self._waiting: dict[int, asyncio.Future[Said]] = {}
        self._ids = itertools.count(1)
        self._head: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    # -- doing

    async def dial(self, port: int, token: str, *, rude: bool = False, timeout: float = 5.0) -> bool:
        """Connect and say who we are; whether we are live."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                sock = socket.socket()
                sock.setblocking(False)
                if rude:  # so that the kernels take little, and the rest stays with the gateway
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1400)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
                await loop.sock_connect(sock, ("127.0.0.1", port))
                transport, _ = await loop.create_connection(lambda: self, sock=sock)
                transport.write(self._handshake(port))
                if await self._head != 101:
                    self.hang_up()
                    return False
                self._log(Dialled(time.monotonic(), self.number, self.sid, self.user, self.node, rude))
                self._told = True
                said = await self.ask("connect", {"token": token}, timeout=timeout)
        except (OSError, TimeoutError, ConnectionError):
            self.hang_up()
            return False
        if said.kind != "connect":
            self.hang_up()
        return self.live

    def _handshake(self, port: int) -> bytes:
        key = base64.b64encode(os.urandom(16)).decode()
        return (
            f"GET /connection/websocket HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {self.codec.protocol}\r\nX-Forwarded-For: {self.address}\r\n\r\n"
        ).encode()

    def send(self, kind: str, body: dict[str, Any]) -> int:
        """Send a command; its id."""
        id = next(self._ids)
        if self._transport is None or self.ended.is_set():
            raise ConnectionError("over")
        frame = write_frame(self.codec.opcode, self.codec.command(id, kind, body))
        self._sent[id] = (time.monotonic(), kind, body.get("channel", ""))
        self._transport.write(frame)
        return id

    async def ask(self, kind: str, body: dict[str, Any], timeout: float = 5.0) -> Said:
        """A command and its reply; ConnectionError when the connection ends first."""
        id = self.send(kind, body)
        waiting = self._waiting[id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                said: Said = await waiting
                return said
        finally:
            self._waiting.pop(id, None)

    async def subscribe(self, channel: str) -> bool:
        """Take part, from where we were if we know that."""
        body: dict[str, Any] = {"channel": channel}
        if channel in self.places:
            offset, epoch = self.places[channel]
            body |= {"recover": True, "offset": offset, "epoch": epoch}
        said = await self.ask("subscribe", body)
        if said.kind != "subscribe" and said.code != 105:  # already subscribed
            self.lost.add(channel)
        return said.kind == "subscribe"

    def stop_reading(self) -> None:
        """Be rude: let everything pile up."""
        if self._transport is not None:
            self._transport.pause_reading()

    def go_on_reading(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def hang_up(self) -> None:
        """End it ourselves."""
        self._hanging_up = True
        if self._transport is not None:
            self._transport.abort()

    # -- the kernel's view

    @property
    def ports(self) -> tuple[int, int] | None:
        """(server's, ours), None when the socket is gone."""
        if self._transport is None or self.ended.is_set():
            return None
        try:
            sock = self._transport.get_extra_info("socket")
            return sock.getpeername()[1], sock.getsockname()[1]
        except OSError:
            return None

    def mark(self, server_queue: int) -> None:
        """Write down how far the stream can be by now; `server_queue` was read before."""
        if self._transport is None or self.ended.is_set() or not self._told:
            return
        now = time.monotonic()
        waiting = bytearray(4)
        try:
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.FIONREAD, waiting)
        except OSError:
            return
        upto = self._received + int.from_bytes(waiting, "little") + server_queue
        self._log(Mark(now, self.number, upto))

    # -- asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._received += len(data)
        self._buffer += data
        if not self._upgraded and not self._read_head():
            return
        at = 0
        while (found := read_frame(self._buffer, at)) is not None:
            opcode, payload, end = found
            self._heard(now, opcode, payload, self._read + at)
            at = end
        self._read += at
        self._buffer = self._buffer[at:]

    def _read_head(self) -> bool:
        head, complete, rest = self._buffer.partition(b"\r\n\r\n")
        if not complete:
            return False
        status = int(head.split(b" ", 2)[1])
        self._read += len(head) + 4
        self._buffer = rest
        self._upgraded = status == 101
        if not self._head.done():
            self._head.set_result(status)
        return self._upgraded

    def connection_lost(self, error: Exception | None) -> None:
        if not self._head.done():
            self._head.set_result(0)
        self._end(1006, "")

    def _end(self, code: int, reason: str) -> None:
        if self.ended.is_set():
            return
        now = time.monotonic()
        self.live = False
        self.ended.set()
        if self._told:
            self._log(HungUp(now, self.number) if self._hanging_up else Closed(now, self.number, code, reason))
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ConnectionError(f"closed {code}"))
        if self._transport is not None:
            self._transport.close()

    # -- hearing

    def _heard(self, now: float, opcode: int, payload: bytes, begin: int) -> None:
        if opcode == CLOSE:
            code = int.from_bytes(payload[:2], "big") if payload else 1005
            self._end(code, payload[2:].decode(errors="replace"))
        elif opcode in (TEXT, BINARY) and not self.ended.is_set():
            for said in self.codec.read(payload):
                self._understood(now, said, begin)

    def _understood(self, now: float, said: Said, begin: int) -> None:
        if not said.kind:
            if not self.mute and self._transport is not None:
                self._transport.write(write_frame(self.codec.opcode, self.codec.PONG))
            return
        if said.kind in ("message", "disconnect"):  # the farewell is no application frame
            return
        cause, kind, channel = self._sent.pop(said.id, (0.0, "", "")) if said.id else (0.0, "", "")
        if said.kind == "pub":
            cause = float(json.loads(said.data).get("t", 0.0))
        first = said.kind == "connect"
        self.live = self.live or first
        if kind != "connect" or first:  # a connect that is refused by an error never became a connection of the session
            self._log(Frame(now, self.number, kind or said.kind, cause, begin, first))
        self._follow(now, said, channel)
        waiting = self._waiting.pop(said.id, None) if said.id else None
        if waiting is not None and not waiting.done():
            waiting.set_result(said)

    def _follow(self, now: float, said: Said, channel: str) -> None:
        """Keep the places of positioned subscriptions."""
        if said.kind == "subscribe" and said.epoch:
            begin = self.places.get(channel, (0, ""))[0] if said.recovered else said.offset
            self._log(Subscribed(now, self.number, channel, begin, said.epoch))
            self.places[channel] = (begin, said.epoch)
            for offset, data in said.publications if said.recovered else ():
                self._delivered(now, channel, offset, data)
        elif said.kind == "pub" and said.offset:
            self._delivered(now, said.channel, said.offset, said.data)
        elif said.kind == "unsubscribe":
            self._log(Unsubscribed(now, self.number, said.channel, said.code))
            self.lost.add(said.channel)

    def _delivered(self, now: float, channel: str, offset: int, data: bytes) -> None:
        self._log(Delivered(now, self.number, channel, offset, str(json.loads(data).get("id", ""))))
        if channel in self.places:
            self.places[channel] = (offset, self.places[channel][1])


def mark_all(clients: Iterable[Client]) -> None:
    """Mark each: the servers' send queues first (they only move into what is read after), then our own."""
    ports = {client: ports for client in clients if (ports := client.ports) is not None}
    if not ports:
        return
    queues = _server_queues()
    for client, pair in ports.items():
        client.mark(queues.get(pair, 0))


def _server_queues() -> dict[tuple[int, int], int]:
    """Bytes unacknowledged by (local port, remote port), of all sockets of this machine."""
    queues = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, sizes, *_ = line.split()
        pair = int(local.rpartition(":")[2], 16), int(remote.rpartition(":")[2], 16)
        queues[pair] = int(sizes.partition(":")[0], 16)
    return queues
