"""Redis Sentinel: which server is the master now. One question to every sentinel, on connections of a moment.

What a sentinel says may be old: it was cut off, or has just been started. The one that knows of the newest election is
believed. Whether the server it names takes writes is found out by who connects (`config.redis`).
"""

import asyncio
from dataclasses import replace
from typing import Any, NamedTuple

from config.resp import Address, Argument, Link, Unavailable
from config.urls import several

PATIENCE = 0.5
"""Seconds for an answer; whoever has not answered by then is not waited for."""


class _Answer(NamedTuple):
    epoch: int
    host: str
    port: int


async def elected(address: Address) -> Address:
    """The master's address; the address itself where it names no sentinels. Raises Unavailable."""
    if not address.sentinels:
        return address
    asked = [asyncio.create_task(_ask(place, address)) for place in address.sentinels]
    try:
        await asyncio.wait(asked, timeout=PATIENCE)
        done = [task for task in asked if task.done() and not task.cancelled()]
        answers = [task.result() for task in done if task.exception() is None]
        if not answers:
            why = next((str(task.exception()) for task in done), "no answer")
            raise Unavailable(f"no sentinel tells where {address.master!r} is: {why}")
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    newest = max(answers)
    return replace(address, host=newest.host, port=newest.port)


async def plain(url: str) -> str:
    """A URL of the master itself, for a client that knows nothing of sentinels. OSError when nobody tells."""
    parts = several(url)
    scheme, _, login = parts.before.partition("://")
    kind, plus, _ = scheme.partition("+")
    if not plus:
        return url
    try:
        address = await elected(Address.parse(url))
    except Unavailable as error:
        raise ConnectionError(str(error)) from None
    tls = "&".join(option for option in parts.after.partition("?")[2].split("&") if option.startswith("ssl_"))
    return f"{kind}://{login}{address.host}:{address.port}/{address.db}?{tls}"


async def _ask(place: tuple[str, int], address: Address) -> _Answer:
    link = Link(timeout=PATIENCE, limit=8)
    try:
        await asyncio.get_running_loop().create_connection(lambda: link, *place, ssl=address.tls)
        hello: list[Argument] = ["HELLO", 3]
        if address.sentinel_password:
            hello += ["AUTH", address.sentinel_username or "default", address.sentinel_password]
        await link.call(hello)
        found = await link.call(("SENTINEL", "MASTER", address.master))
        return _read(found)
    finally:
        link.fail("asked")


def _read(found: Any) -> _Answer:
    fields: dict[bytes, bytes] = found if isinstance(found, dict) else dict(zip(found[::2], found[1::2], strict=False))
    try:
        return _Answer(int(fields[b"config-epoch"]), fields[b"ip"].decode(), int(fields[b"port"]))
    except (KeyError, ValueError) as error:
        raise Unavailable(f"an answer that cannot be: {error!r}") from None
