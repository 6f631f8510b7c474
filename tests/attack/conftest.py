"""Bad input and bad intent against the running product, over plain sockets: what no client library would send."""

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import jwt
import pytest

from tests.world.conftest import World, running

ISSUER_SECRET = "a secret of a backend that makes its own tokens"


@pytest.fixture(scope="session")
async def world() -> AsyncIterator[World]:
    """Two workers, and a backend whose tokens are taken."""
    async with running(2, WARDGATE_CLIENT_TOKEN_HMAC_SECRET_KEY=ISSUER_SECRET) as running_world:
        yield running_world


def token(**claims: Any) -> str:
    """A connection or subscription token of that backend."""
    return jwt.encode(claims, ISSUER_SECRET, "HS256")


@dataclass
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code; "" where there is none."""
        kind = self.headers.get("content-type", "")
        return str(self.json["code"]) if kind.startswith("application/problem+json") else ""


async def raw_http(world: World, data: bytes, *, to_the_end: bool = False) -> Answer:
    """Send bytes and read one answer; `to_the_end`: and wait until the server ends the connection."""
    address = urlsplit(world.url)
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(data)
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            size = int(headers.get("content-length", "0"))
            body = await (reader.read() if to_the_end else reader.readexactly(size))
            return Answer(int(first.split()[1]), headers, body)
        finally:
            writer.close()


async def send_request(world: World, method: str, path: str, body: bytes = b"", headers: Sequence[str] = ()) -> Answer:
    """One request with exactly these header lines, and a JSON body if there is one. Lone surrogates are raw bytes."""
    kind = ["Content-Type: application/json", f"Content-Length: {len(body)}"] if body else []
    head = "\r\n".join([f"{method} {path} HTTP/1.1", f"Host: {urlsplit(world.url).netloc}", *kind, *headers])
    return await raw_http(world, head.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body)


def handshake(*, key: str = "", version: str = "HTTP/1.1", method: str = "GET", more: Sequence[str] = ()) -> bytes:
    """The bytes of an upgrade."""
    lines = [
        f"{method} /connection/websocket {version}",
        "Host: 127.0.0.1",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key or base64.b64encode(os.urandom(16)).decode()}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape")


def unsigned(header: bytes, payload: bytes) -> str:
    """A token in the right form that nobody signed."""
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (header, payload, b"\0" * 64))
