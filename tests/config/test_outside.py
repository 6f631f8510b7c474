"""Requests to addresses that people gave us: what they may not reach, and what an answer may not cost."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import BaseTestServer, TestServer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from config import outside
from config.outside import Forbidden, allowed, check, open_client, post

HERE = [ipaddress.ip_network("127.0.0.0/8")]


INSIDE = """
127.0.0.1 10.0.0.1 172.16.3.4 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 255.255.255.255 192.0.2.1
198.18.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1 ff02::1 2001:db8::1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
2002:7f00:1:: 64:ff9b:1::1 64:ff9b::a00:1 ::127.0.0.1 ::ffff:0:10.0.0.1 fec0::1
192.0.0.192 192.88.99.1 3fff::1 5f00::1
"""


@pytest.mark.parametrize("address", INSIDE.split())
def test_addresses_inside_are_not_for_us(address: str) -> None:
    assert not allowed(address, [])


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are(address: str) -> None:
    assert allowed(address, [])


def test_the_operator_may_allow_a_network() -> None:
    assert allowed("10.1.2.3", [ipaddress.ip_network("10.0.0.0/8")])
    assert not allowed("10.1.2.3", HERE)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.org/", "ftp://example.org/", "file:///etc/passwd", "https://", "https:///x", "//example.org"),
        *("https://user:secret@example.org/", "https://@example.org/", "https://10.0.0.1/", "https://[::1]/"),
        *("https://169.254.169.254/latest/meta-data", "https://[::ffff:127.0.0.1]/", "https://example.org:x/", ""),
        *(
            "https://[::1",
            "https://exa\nmple.org/",
            "https://example.org/\r\nX: y",
            "https://a..example/",
            "https://./",
        ),
    ],
)
def test_urls_that_nothing_makes_right(url: str) -> None:
    with pytest.raises(Forbidden):
        check(url, [])


def test_plain_http_goes_only_to_addresses_that_are_allowed() -> None:
    check("http://127.0.0.1:8080/x", HERE)
    check("https://example.org/x?y", [])
    for url in ("http://example.org/", "http://10.0.0.1/", "http://1.1.1.1/"):
        with pytest.raises(Forbidden):
            check(url, HERE)


class Receiver:
    """A server here that answers as it is told."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.answer: Any = None
        self.gone = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.heard.append(await request.read())
        if self.answer is not None:
            answer: web.StreamResponse = await self.answer(request)
            return answer
        return web.Response(status=204)

    async def never(self, _request: web.Request) -> web.StreamResponse:
        """An answer that does not come until `gone`."""
        await self.gone.wait()
        return web.Response()


@pytest.fixture
async def receiver() -> AsyncIterator[tuple[Receiver, BaseTestServer]]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    async with TestServer(app) as server:
        yield receiver, server


async def test_a_name_that_leads_inside_is_not_asked(
    receiver: tuple[Receiver, BaseTestServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One public address among several is not enough, and a decimal or short form of an address is a name."""
    real = socket.getaddrinfo

    def resolved(host: Any, port: Any, *more: Any, **kwargs: Any) -> Any:
        if host == "two.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("1.1.1.1", "127.0.0.1")]
        return real(host, port, *more, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    port = receiver[1].port
    async with open_client([]) as client:
        for host in ("localhost", "two.example", "2130706433", "127.1", "0x7f.0.0.1"):
            with pytest.raises((Forbidden, aiohttp.InvalidURL)):
                await post(client, f"https://{host}:{port}/", b"{}", {}, [])
    assert receiver[0].heard == []


@pytest.mark.parametrize("host", ["\N{FULLWIDTH DIGIT ONE}27.0.0.1", "127\N{IDEOGRAPHIC FULL STOP}0.0.1"])
async def test_an_address_in_other_digits_was_judged_as_a_name_and_asked_as_an_address(host: str) -> None:
    heard: list[bool] = []

    async def hear(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(True)
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, open_client([]) as client:
        with pytest.raises(Forbidden):
            await post(client, f"https://{host}:{port}/", b"{}", {}, [])
    assert not heard


async def test_a_redirect_is_an_answer_and_not_an_order(receiver: tuple[Receiver, BaseTestServer]) -> None:
    async def elsewhere(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=302, headers={"Location": "http://169.254.169.254/"})

    receiver[0].answer = elsewhere
    async with open_client(HERE) as client:
        assert await post(client, f"http://127.0.0.1:{receiver[1].port}/", b"{}", {}, HERE) == 302
    assert len(receiver[0].heard) == 1


async def test_an_answer_without_end_costs_little(
    receiver: tuple[Receiver, BaseTestServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        with_more = b"x" * 65536
        while True:
            await response.write(with_more)
            sent += len(with_more)

    receiver[0].answer = endless
    async with open_client(HERE) as client, asyncio.timeout(5):
        assert await post(client, f"http://127.0.0.1:{receiver[1].port}/", b"{}", {}, HERE) == 200
    assert sent < 20_000_000


async def test_an_answer_that_never_comes_is_given_up(
    receiver: tuple[Receiver, BaseTestServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver[0].answer = receiver[0].never
    monkeypatch.setattr(outside, "TIMEOUT", 0.1)
    async with open_client(HERE) as client:
        with pytest.raises(TimeoutError):
            await post(client, f"http://127.0.0.1:{receiver[1].port}/", b"{}", {}, HERE)
    receiver[0].gone.set()


async def failure_of(url: str) -> str:
    async with open_client(HERE) as client:
        with pytest.raises((aiohttp.ClientError, TimeoutError)) as caught:
            await post(client, url, b"{}", {}, HERE)
    return outside.why(caught.value)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"", "it hung up before it had answered"),
        (b"220 mail.example ESMTP\r\n\r\n", "its answer is not HTTP as it should be (ClientResponseError)"),
    ],
)
async def test_who_gave_the_address_is_told_what_a_request_failed_of(said: bytes, told: str) -> None:
    async def hear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(said)
        writer.close()

    server = await asyncio.start_server(hear, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        assert await failure_of(f"http://127.0.0.1:{port}/") == told
        if said:
            assert (await failure_of(f"https://127.0.0.1:{port}/")).startswith("no TLS with it: ")
    assert await failure_of(f"http://127.0.0.1:{port}/") == "cannot be reached: Connection refused"


async def test_a_name_that_leads_nowhere_is_said_to_and_a_server_that_is_silent(
    receiver: tuple[Receiver, BaseTestServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    receiver[0].answer = receiver[0].never
    monkeypatch.setattr(outside, "TIMEOUT", 0.1)
    assert await failure_of(f"http://127.0.0.1:{receiver[1].port}/") == "no answer within 0.1 s"
    receiver[0].gone.set()
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert await failure_of("https://example.org/") == "its name cannot be resolved"


async def test_a_certificate_that_nobody_vouches_for_is_named(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "here")]), datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    form = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    both = builder.sign(key, SHA256()).public_bytes(Encoding.PEM) + key.private_bytes(*form)
    (tmp_path / "both.pem").write_bytes(both)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "both.pem")
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        told = await failure_of(f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert told.startswith("its certificate is not good: ")
