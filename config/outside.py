"""Requests to addresses that people gave us: they must not reach what only we can reach.

A name is resolved once, every address of it must be public, and the connection goes to the address that was judged.
No redirects, no proxies of the environment, no cookies; an answer is bounded in time and in size. The operator says
which addresses inside are allowed all the same.

    Forbidden    the URL, or where its name leads, is not for us to ask
"""

import ipaddress
import os
import socket
from collections.abc import Iterable, Sequence
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

TIMEOUT: Final = 10.0
MAX_ANSWER: Final = 4096

_TRANSLATED = [
    ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96", "::ffff:0:0:0/96")
]
"""RFC 6052, RFC 8215, RFC 4291 2.5.5.1, RFC 2765: an address of IPv4 in another dress, perhaps one inside."""

_RESERVED = [ipaddress.ip_network(network) for network in ("192.0.0.0/24", "192.88.99.0/24", "3fff::/20", "5f00::/16")]
"""Special-purpose addresses that Python takes for public ones, in some of its versions: among them where a cloud tells
a machine its own secrets."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Forbidden(Exception):
    """Nobody asks there, now or later, as things are."""


def allowed(address: str, inside: Iterable[Network]) -> bool:
    """Whether a request may go to this address: a public one, or one in a network that is allowed."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip  # what a translator would make of it
    site_local = isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local  # fec0::/10, RFC 3879
    public = (
        ip.is_global
        and not site_local
        and not ip.is_multicast
        and not any(ip in network for network in (*_TRANSLATED, *_RESERVED))
    )
    return public or any(ip in network for network in inside)


def check(url: str, inside: Sequence[Network]) -> None:
    """Refuse a URL that nothing can make right. What its name leads to is judged when it is asked."""
    if not url.isprintable():  # the parser leaves some out, and what is asked then is not what was judged
        raise Forbidden("the URL has no control characters")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:
        raise Forbidden("this is no URL") from None
    if parts.scheme not in ("https", "http") or (parts.scheme == "http" and not _is_inside(host or "", inside)):
        raise Forbidden("the URL begins with https://, or leads by its address into a network that is allowed")
    if not host or parts.username is not None or parts.password is not None:
        raise Forbidden("the URL has a host and no credentials")
    if not host.isascii():  # the client would make digits of what looks like them, after the address was judged
        raise Forbidden("the host is written in ASCII (xn--...)")
    if _is_address(host) and not allowed(host, inside):
        raise Forbidden("the address is not a public one")


def host_of(url: str) -> str:
    """Where a URL leads, without what may be secret in it."""
    return urlsplit(url).hostname or ""


def _is_inside(host: str, inside: Iterable[Network]) -> bool:
    return _is_address(host) and any(ipaddress.ip_address(host.partition("%")[0]) in network for network in inside)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class _Judging(AbstractResolver):
    """Resolves, and gives only what may be asked."""

    def __init__(self, inside: Sequence[Network]) -> None:
        self._inside = inside
        self._resolver = aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not all(allowed(one["host"], self._inside) for one in found):
            raise Forbidden("the name leads to an address that is not a public one")
        return found

    async def close(self) -> None:
        await self._resolver.close()


def open_client(inside: Sequence[Network]) -> aiohttp.ClientSession:
    """For such requests. The caller closes it."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(resolver=_Judging(inside), limit=64, limit_per_host=4, use_dns_cache=False),
        timeout=aiohttp.ClientTimeout(total=TIMEOUT),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
    )


async def post(
    client: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str], inside: Sequence[Network]
) -> int:
    """POST once; the status of the answer, of which no more than a little is read. Forbidden, aiohttp.ClientError or
    TimeoutError."""
    check(url, inside)
    async with client.post(url, data=body, headers=headers, allow_redirects=False) as response:
        await response.content.read(MAX_ANSWER)
        return response.status


async def ask(
    client: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str], inside: Sequence[Network]
) -> tuple[int, bytes]:
    """The same, and the answer with it: ClientError too where that is longer than MAX_ANSWER."""
    return await _answer(client, "POST", url, body, headers, inside, MAX_ANSWER)


async def get(
    client: aiohttp.ClientSession, url: str, headers: dict[str, str], inside: Sequence[Network], *, most: int
) -> tuple[int, bytes]:
    """GET once; the status, and the answer: ClientError where that is longer than `most` bytes. Else as `post`."""
    return await _answer(client, "GET", url, None, headers, inside, most)


async def _answer(
    client: aiohttp.ClientSession,
    method: str,
    url: str,
    body: bytes | None,
    headers: dict[str, str],
    inside: Sequence[Network],
    most: int,
) -> tuple[int, bytes]:
    check(url, inside)
    plain, answer = {**headers, "Accept-Encoding": "identity"}, bytearray()
    async with client.request(method, url, data=body, headers=plain, allow_redirects=False) as response:
        async for chunk in response.content.iter_chunked(MAX_ANSWER):
            answer += chunk
            if len(answer) > most:
                raise aiohttp.ClientPayloadError(f"more than {most} bytes")
        return response.status, bytes(answer)


def why(error: Exception) -> str:
    """What a request failed of (an aiohttp.ClientError or TimeoutError), in words for whoever gave us the address."""
    match error:
        case TimeoutError():
            return f"no answer within {TIMEOUT:g} s"
        case aiohttp.ClientConnectorDNSError():
            return "its name cannot be resolved"
        case aiohttp.ClientConnectorCertificateError():
            return f"its certificate is not good: {error.certificate_error}"
        case aiohttp.ClientSSLError():
            return f"no TLS with it: {error.os_error}"
        case aiohttp.ClientConnectorError():
            return f"cannot be reached: {os.strerror(error.errno) if error.errno else error.os_error}"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            return "it hung up before it had answered"
        case _:
            return f"its answer is not HTTP as it should be ({type(error).__name__})"
