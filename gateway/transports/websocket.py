"""/connection/websocket: the handshake by aiohttp, then a plain protocol of ours on the same transport.

After the 101 no task, no stream and nothing of aiohttp is left of a connection, only the transport and a peer. Frames
are read by `frames`, messages by whoever `hub.receive` is. Who may connect at all is decided here; who a connection is,
later, by its connect command.
"""

import asyncio
import base64
import hashlib
from collections.abc import Callable, Sequence

from aiohttp import HttpVersion11, web

from config.http import ORIGINS, Problem, address_prefix, client_address, cookie
from gateway.caps import Cap
from gateway.client import Handshake, new_client_id
from gateway.hub import Hub
from gateway.peers import Overseer, Peer
from gateway.protocol.codec import JSON, PROTOBUF, Codec
from gateway.protocol.codes import CONNECTION_LIMIT, Close
from gateway.transports import frames
from gateway.transports.frames import FrameError, FrameReader, Opcode

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
"""RFC 6455 1.3."""

PARKED = 64 * 1024
"""Bytes that are kept unread of one connection; more stays in the kernel."""

Frame = Callable[[bytes], bytes]


class WebSocketEncoding:
    """One codec in WebSocket messages."""

    def __init__(self, codec: Codec, frame: Frame) -> None:
        self.codec = codec
        self.ping = frame(codec.PING)
        self._frame = frame

    def frame(self, messages: Sequence[bytes]) -> bytes:
        return self._frame(self.codec.batch(messages))

    def last(self, close: Close, message: bytes = b"") -> bytes:
        """protocol.md 54: on WebSocket a disconnect is the close frame alone."""
        end = frames.close(close.code, close.reason)
        return self.frame((self.codec.message(message),)) + end if message else end


TEXT = WebSocketEncoding(JSON, frames.text)
BINARY = WebSocketEncoding(PROTOBUF, frames.binary)


class WebSocketPeer(Peer, asyncio.Protocol):
    """One connection. `asyncio.Protocol` by its own right: aiohttp's handler has ended before this reads a byte."""

    __slots__ = ("_crowded", "_parked", "_reader", "_transport")

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        hub: Overseer,
        encoding: WebSocketEncoding,
        limit: int,
        address: str,
        handshake: Handshake,
        stale_at: float,
    ) -> None:
        super().__init__(
            new_client_id(),
            address=address,
            handshake=handshake,
            stale_at=stale_at,
            hub=hub,
            encoding=encoding,
            wire=transport.write,
        )
        self._transport: asyncio.Transport | None = transport
        self._reader = FrameReader(limit)
        self._parked: list[bytes] | None = None
        self._crowded = False

    # -- asyncio's side

    def data_received(self, data: bytes) -> None:
        if self.home is None:
            self._await_close(data)
        elif self._parked is not None or self._crowded or not self.hub.read(self):
            if self.home is not None:
                self._park(data)
        else:
            self._feed(data)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.pause()

    def resume_writing(self) -> None:
        self.unpause()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        self._parked = None
        self.hub.lost(self)

    # -- reading

    def _feed(self, data: bytes) -> None:
        try:
            read, error = self._reader.feed(data), None
        except FrameError as broken:
            read, error = broken.frames, broken
        for frame in read:
            if self.home is None:
                return
            if frame.opcode is Opcode.TEXT or frame.opcode is Opcode.BINARY:
                self.hub.receive(self, frame.payload)
            elif frame.opcode is Opcode.PING:
                self.write(frames.pong(frame.payload))
            elif frame.opcode is Opcode.CLOSE:
                self._closed_by_client(frame.code)
        if error is not None and self.home is not None:
            self.hub.close(self, Close(error.code, error.reason))

    def _closed_by_client(self, code: int) -> None:
        """RFC 6455 5.5.1: answer with the same code, then the server closes first."""
        transport = self._transport
        self.hub.leave(self)
        if transport is None:
            return
        if self.paused:
            transport.abort()
        else:
            transport.write(frames.close(code))
            transport.close()

    def _await_close(self, data: bytes) -> None:
        """We have sent a close frame: discard what comes before the client's."""
        transport = self._transport
        if transport is None:
            return
        try:
            if any(frame.opcode is Opcode.CLOSE for frame in self._reader.feed(data)):
                transport.close()
        except FrameError:
            transport.abort()

    def _park(self, data: bytes) -> None:
        """10a: keep raw bytes, a bounded number of them."""
        if self._parked is None:
            self._parked = []
            if not self._crowded:
                self.hub.park(self)
        self._parked.append(data)
        if sum(map(len, self._parked)) >= PARKED and self._transport is not None:
            self._transport.pause_reading()

    @property
    def deaf(self) -> bool:
        return self._crowded or self._parked is not None

    def hush(self) -> None:
        if not self._crowded and self._transport is not None:
            self._crowded = True
            self._transport.pause_reading()

    def listen(self) -> None:
        self._crowded = False
        parked, self._parked = self._parked, None
        for n, data in enumerate(parked or ()):
            if self.home is None:
                return
            self.data_received(data)
            if self._parked is not None or self._crowded:
                self._parked = [*(self._parked or ()), *(parked or ())[n + 1 :]] or None
                return
        if self._transport is not None and not self._transport.is_reading():
            self._transport.resume_reading()

    # -- the end

    def finish(self, last: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        self._parked = None
        if self.paused:
            transport.abort()
            return
        transport.write(last)
        if not transport.is_reading():
            transport.resume_reading()  # the client's close frame, or its end, is to be heard

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class Switched(web.StreamResponse):
    """What aiohttp is told of a 101 that was written already: there is nothing to prepare and nothing to end."""

    async def prepare(self, request: web.BaseRequest) -> None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None


class WebSocketTransport:
    """The route's handler."""

    def __init__(
        self,
        hub: Hub,
        *,
        cookie: str,
        message_size_limit: int,
        stale_close_delay: float,
        places: Cap | None,
        admit: Callable[[], bool],
    ) -> None:
        """`places`: of an address, where they are counted. `admit` says last whether this node takes one more: False
        refuses with 503 `busy`."""
        self._hub = hub
        self._cookie = cookie
        self._limit = message_size_limit
        self._stale = stale_close_delay
        self._places = places
        self._admit = admit

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """The handshake. Problem: malformed, cross_site, frozen, busy; 426 for another version of the protocol.

        What is no clean handshake ends the connection too: what follows on it may not be what it seems.
        """
        try:
            key = _handshake_key(request)
        except Problem as problem:
            refusal = problem.response()
            refusal.force_close()
            return refusal
        if key is None:
            return Problem("upgrade_required", headers={"Sec-WebSocket-Version": "13"}).response()
        secret = self._secret(request)
        if not self._hub.gate.open():
            raise Problem("frozen", retry_after=1)
        handshake = Handshake(secret, client_address(request), request.headers.get("User-Agent", ""))
        if self._places is None:
            self._switch(request, key, handshake)
        else:
            await self._switch_in_place(request, key, handshake, self._places)
        return Switched(status=101)

    async def _switch_in_place(self, request: web.Request, key: str, handshake: Handshake, places: Cap) -> None:
        """As `_switch`, in one of the places that the address has over all nodes; without one the peer is closed."""
        address = address_prefix(handshake.address)
        taken = await places.take(address)
        peer = None
        try:
            peer = self._switch(request, key, handshake, address if taken else "")
        finally:
            if peer is None and taken:
                places.release(address)
        if peer is not None and not taken:
            self._hub.close(peer, CONNECTION_LIMIT)

    def _switch(self, request: web.Request, key: str, handshake: Handshake, address: str = "") -> Peer | None:
        """The 101, and a peer after it, with the place of `address`. None if the client has gone."""
        if not self._admit():
            raise Problem("busy", retry_after=1)
        protocol, encoding = _negotiated(request)
        transport = request.transport
        if transport is None or transport.is_closing():
            return None
        transport.write(_switching(key, protocol))
        return self._take_over(request, transport, encoding, handshake, address)

    def _secret(self, request: web.Request) -> str | None:
        """The session cookie's value, if it counts: only with an Origin that is on the list, exactly.

        An Origin that is neither on the list nor our own host is refused; a client without one is no browser. Where the
        browser calls the page another site's, the cookie is not that page's to use.
        """
        origin = request.headers.get("Origin")
        if origin is None:
            return None
        if origin in request.app[ORIGINS]:
            if request.headers.get("Sec-Fetch-Site") == "cross-site":
                return None
            return cookie(request, self._cookie)
        if origin.partition("://")[2] != request.headers["Host"]:
            raise Problem("cross_site", "this Origin is not in client.allowed_origins")
        return None

    def _take_over(
        self,
        request: web.Request,
        transport: asyncio.Transport,
        encoding: WebSocketEncoding,
        handshake: Handshake,
        address: str,
    ) -> Peer:
        """Put our protocol on the transport, and let aiohttp's believe that its connection is gone.

        It forgets the transport first, so that it closes nothing; its handler ends right after this.
        """
        http, hub = request.protocol, self._hub
        transport.set_write_buffer_limits(high=0)
        peer = WebSocketPeer(
            transport,
            hub=hub,
            encoding=encoding,
            limit=self._limit,
            address=address,
            handshake=handshake,
            stale_at=hub.clock() + self._stale,
        )
        http.transport = None
        http.connection_lost(None)
        transport.set_protocol(peer)
        if not transport.is_reading():
            transport.resume_reading()
        if transport.get_write_buffer_size():
            peer.pause()
        hub.enter(peer)
        return peer


def _handshake_key(request: web.Request) -> str | None:
    """RFC 6455 4.2.1: the client's key; None for a version other than 13. Problem for what is no handshake.

    A body, or a second Host, on an upgrade is how requests are smuggled past proxies; one in HTTP/1.0 comes through a
    proxy that knows no upgrades.
    """
    headers = request.headers
    if request.method != "GET" or request.version < HttpVersion11:
        raise Problem("malformed", "an upgrade is a GET in HTTP/1.1")
    upgrade = headers.get("Upgrade", "").lower() == "websocket"
    connection = [token.strip().lower() for value in headers.getall("Connection", []) for token in value.split(",")]
    if not upgrade or "upgrade" not in connection:
        raise Problem("malformed", "this is for WebSocket clients")
    if headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers or request.can_read_body:
        raise Problem("malformed", "an upgrade has no body")
    if len(headers.getall("Host", [])) != 1:
        raise Problem("malformed", "one Host")
    if headers.get("Sec-WebSocket-Version") != "13":
        return None
    keys = headers.getall("Sec-WebSocket-Key", [])
    if len(keys) != 1 or not _is_nonce(keys[0]):
        raise Problem("malformed", "Sec-WebSocket-Key")
    return keys[0]


def _is_nonce(key: str) -> bool:
    """16 bytes in base64."""
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:  # binascii.Error, or not ASCII
        return False


def _switching(key: str, protocol: str) -> bytes:
    """RFC 6455 4.2.2."""
    accept = base64.b64encode(hashlib.sha1(key.encode() + GUID, usedforsecurity=False).digest()).decode()
    chosen = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
    return (
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Accept: {accept}\r\n{chosen}\r\n"
    ).encode()


def _negotiated(request: web.Request) -> tuple[str, WebSocketEncoding]:
    """The subprotocol to echo and the encoding (protocol.md 4, 5); what we do not know is ignored, not refused."""
    offered = [
        token.strip() for value in request.headers.getall("Sec-WebSocket-Protocol", []) for token in value.split(",")
    ]
    for protocol, encoding in (("centrifuge-protobuf", BINARY), ("centrifuge-json", TEXT)):
        if protocol in offered:
            return protocol, encoding
    query = request.query
    asked = "protobuf" in (query.get("cf_protocol"), query.get("format"))
    return "", BINARY if asked else TEXT
