"""Keep-alive HTTP/1.1 to one server: for publishing thousands of times a second, and for what is set up by routes.

A few connections, each with one request at a time; requests are built from bytes. Not a general client: no redirects,
no chunked requests, answers with a length or chunked.

    HttpError       the server answered with a status that was not wanted
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, cast


class HttpError(Exception):
    """An answer that ends a measurement. The text has the request's path, the status and the body's beginning."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    cookies: list[str]  # "name=value" of each Set-Cookie
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.answer: asyncio.Future[Answer] | None = None
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, but no subclass

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        assert self.transport is not None
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.answer is None or self.answer.done():
            return
        found = parse(self.data)
        if found is not None:
            self.data = b""
            self.answer.set_result(found)

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error or ConnectionResetError("the server closed the connection"))


def parse(data: bytes) -> Answer | None:
    """A whole answer, or None while something is missing."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return None
    status, *lines = head.decode("latin-1").split("\r\n")
    pairs = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    headers = dict(pairs)
    if headers.get("transfer-encoding") == "chunked":
        whole = _unchunk(body)
        if whole is None:
            return None
        body = whole
    elif len(body) < int(headers.get("content-length", 0)):
        return None
    cookies = [value.partition(";")[0] for name, value in pairs if name == "set-cookie"]
    return Answer(int(status.split()[1]), headers, cookies, body)


def _unchunk(data: bytes) -> bytes | None:
    whole = b""
    while True:
        size, end, rest = data.partition(b"\r\n")
        if not end:
            return None
        length = int(size.split(b";")[0], 16)
        if len(rest) < length + 2:
            return None
        if not length:
            return whole
        whole += rest[:length]
        data = rest[length + 2 :]


class Http:
    """A pool of `size` connections to one server. A connection that was lost is made again."""

    def __init__(self, host: str, port: int, headers: Mapping[str, str], *, size: int = 8) -> None:
        self.host, self.port = host, port
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._free: asyncio.Queue[_Connection | None] = asyncio.Queue()
        for _ in range(size):
            self._free.put_nowait(None)

    def request(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
        """The bytes of a request, to be sent many times by `exchange`."""
        extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        kind = "Content-Type: application/json\r\n" if body else ""
        return (
            f"{method} {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{self._fixed}{extra}{kind}"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def exchange(self, request: bytes) -> Answer:
        """Send it on a free connection, wait for the answer."""
        connection = await self._free.get()
        try:
            if connection is None or connection.transport is None:
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(_Connection, self.host, self.port)
            return await asyncio.wait_for(connection.send(request), 30)
        finally:
            self._free.put_nowait(connection)

    async def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """JSON there and back. HttpError when the status is not 2xx."""
        data = b"" if body is None else json.dumps(body).encode()
        answer = await self.exchange(self.request(method, path, data, headers))
        if not 200 <= answer.status < 300:
            raise HttpError(f"{method} {path}: {answer.status} {answer.body[:300].decode(errors='replace')}")
        return answer

    def close(self) -> None:
        while not self._free.empty():
            connection = self._free.get_nowait()
            if connection is not None and connection.transport is not None:
                connection.transport.close()
