"""The network of one gateway: what passes and what is lost, seen from a process that lives in it."""

import asyncio
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from tests.campaign.faults import Faults
from tests.campaign.network import Tunnel
from tests.campaign.proxy import Proxy

ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=float(sys.argv[3])) as s:
    sys.stdout.write(s.recv(9).decode())
"""


@pytest.fixture
async def tunnel() -> AsyncIterator[Tunnel]:
    try:
        tunnel = await Tunnel.open(60, random.Random(1))
    except OSError as error:
        pytest.skip(str(error))
    yield tunnel
    await tunnel.close()


async def ask(tunnel: Tunnel, port: int, patience: float) -> str:
    process = await asyncio.create_subprocess_exec(
        *(*tunnel.inside, sys.executable, "-c", ASK, tunnel.host, str(port), str(patience)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    said, _ = await process.communicate()
    return said.decode()


async def test_packets_of_the_named_servers_are_lost_in_the_named_direction_and_no_others(tunnel: Tunnel) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome")
        writer.close()

    servers = [await asyncio.start_server(greet, tunnel.host, 0) for _ in range(2)]
    one, other = (server.sockets[0].getsockname()[1] for server in servers)
    for how in ("up", "down", "hold"):
        tunnel.trouble({one}, how)
        lost, passed = await asyncio.gather(ask(tunnel, one, 0.5), ask(tunnel, other, 5.0))
        assert (lost, passed) == ("", "welcome")
        assert tunnel.lost
    tunnel.heal()
    assert await ask(tunnel, one, 5.0) == "welcome"
    for server in servers:
        server.close()


def test_a_fault_healed_what_another_one_still_held() -> None:
    faults = Faults.__new__(Faults)
    faults._troubled = Counter()
    proxy = Proxy(lambda: 0, random.Random(1))
    with faults._troubling([proxy]):
        proxy.hold()
        with faults._troubling([proxy]):
            pass
        assert not proxy.up
    assert proxy.up
