"""The hub's fan-out alone, in one process over loopback TCP: what Python adds to the kernel's cost.

    python -m bench.fanout_micro [--members 2000] [--rounds 3] [--batch 1 5 20]

For working on the hub: run it before and after a change. The other ends of the sockets are in a child process that
reads and throws away. Printed is the CPU of this process's main thread per delivery, and as a ratio to `os.write` in a
bare loop. No Redis, no HTTP, no sessions: the lease is fresh for ever. The rows take turns; figures are medians.

    os.write            a loop over file descriptors: the floor as Python sees it
    transport.write     a loop over uvloop transports, one shared frame
    hub, ...            publications through `gateway.hub.Hub`, `batch` of them in one turn of the loop
"""

import argparse
import asyncio
import functools
import gc
import math
import os
import resource
import select
import socket
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import uvloop

from bench import machine
from gateway.client import Handshake, Subscription
from gateway.hub import Hub
from gateway.protocol.codec import JSON
from gateway.protocol.commands import Publication
from gateway.transports.websocket import TEXT, WebSocketPeer

CHANNEL = "bench"
DATA = b'"' + b"x" * 126 + b'"'


class Lease:
    fresh_until = math.inf


class Silent(asyncio.Protocol):
    """The near end of a connection on which nothing is said."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one, but no subclass


def pairs(count: int) -> list[socket.socket]:
    """Near ends; the far ends live in a child that reads until they are closed."""
    near: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        far = []
        for _ in range(count):
            far.append(socket.create_connection(listener.getsockname()))
            near.append(listener.accept()[0])
            near[-1].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            near[-1].setblocking(False)
    if os.fork() == 0:
        for end in near:
            end.close()
        drain(far)
    for end in far:
        end.close()
    return near


def drain(ends: list[socket.socket]) -> None:
    """The child's life."""
    os.sched_setaffinity(0, machine.cores()[1])
    epoll, buffer, left = select.epoll(), bytearray(1 << 18), len(ends)
    by_fd = {end.fileno(): end for end in ends}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)
    try:
        while left:
            for fd, _ in epoll.poll():
                if not by_fd[fd].recv_into(buffer):
                    epoll.unregister(fd)
                    left -= 1
    finally:
        os._exit(0)


class Stage:
    """Sockets, transports and a hub over them."""

    def __init__(self) -> None:
        self.hub = Hub(
            clock=time.monotonic,
            lease=Lease(),
            queue_max_size=1 << 20,
            ping_interval=0.0,
            pong_timeout=0.0,
            hold=15.0,
            max_hold=600.0,
        )
        self.sockets: list[socket.socket] = []
        self.transports: list[asyncio.Transport] = []
        self.peers: list[WebSocketPeer] = []

    async def fill(self, sockets: Sequence[socket.socket]) -> None:
        self.hub.start()
        channel = self.hub.open(CHANNEL)
        for number, near in enumerate(sockets):
            self.sockets.append(near)
            _, protocol = await asyncio.get_running_loop().connect_accepted_socket(Silent, near)
            self.transports.append(protocol.transport)
            peer = WebSocketPeer(
                protocol.transport,
                hub=self.hub,
                encoding=TEXT,
                limit=65536,
                address="127.0.0.1",
                handshake=Handshake(None, "127.0.0.1", ""),
                stale_at=math.inf,
            )
            protocol.transport.set_write_buffer_limits(high=0)
            protocol.transport.set_protocol(peer)
            peer.user = peer.sid = f"s{number}"
            self.peers.append(peer)
            self.hub.enter(peer)
            self.hub.go_live(peer)
            self.hub.subscribe(channel, Subscription(peer, CHANNEL, 0), peer)
        self.hub.shut(channel)

    def write_with(self, how: str) -> None:
        for peer, near, transport in zip(self.peers, self.sockets, self.transports, strict=True):
            peer.wire = peer.write = transport.write if how == "transport" else functools.partial(_write, near.fileno())

    async def flushed(self, deliveries: float) -> None:
        """Each turn of the loop is one flush."""
        for _ in range(len(self.peers)):
            await asyncio.sleep(0)
            if self.hub.flush.deliveries >= deliveries:
                await asyncio.sleep(0)
                return
        raise RuntimeError("the hub does not deliver")


def _write(fd: int, data: bytes) -> None:
    os.write(fd, data)


async def measure(stage: Stage, turns: int, work: Callable[[], Awaitable[None]]) -> float:
    """CPU microseconds per turn; between turns the far ends have time to read."""
    used = 0.0
    for _ in range(turns):
        began = time.thread_time()
        await work()
        used += time.thread_time() - began
        await asyncio.sleep(0.005)
    return used * 1e6 / turns


async def rounds(stage: Stage, count: int, batches: Sequence[int]) -> dict[str, list[float]]:
    """Microseconds per delivery by row."""
    frame = TEXT.frame([JSON.pub(CHANNEL, Publication(data=DATA))])
    fds = [near.fileno() for near in stage.sockets]
    members = len(fds)

    async def bare() -> None:
        for fd in fds:
            os.write(fd, frame)

    async def transports() -> None:
        for transport in stage.transports:
            transport.write(frame)
        await asyncio.sleep(0)

    def hub(batch: int) -> Callable[[], Awaitable[None]]:
        async def turn() -> None:
            expected = stage.hub.flush.deliveries + members
            for _ in range(batch):
                stage.hub.publication(CHANNEL, Publication(data=DATA))
            await stage.flushed(expected)

        return turn

    found: dict[str, list[float]] = {}
    for _ in range(count):
        found.setdefault("os.write", []).append(await measure(stage, 20, bare) / members)
        found.setdefault("transport.write", []).append(await measure(stage, 20, transports) / members)
        for how in ("transport", "os"):
            stage.write_with(how)
            for batch in batches:
                used = await measure(stage, 20, hub(batch)) / members / batch
                found.setdefault(f"hub, {how}.write, {batch} a turn", []).append(used)
    return found


async def main(options: argparse.Namespace, sockets: list[socket.socket]) -> None:
    stage = Stage()
    await stage.fill(sockets)
    gc.collect()
    gc.freeze()
    await rounds(stage, 1, options.batch)
    found = await rounds(stage, options.rounds, options.batch)
    base = statistics.median(found["os.write"])
    for name, values in found.items():
        value = statistics.median(values)
        print(f"{name:32} {value:7.2f} us/delivery {value / base:6.2f} x")
    stage.hub.stop()


def arguments() -> Any:
    parser = argparse.ArgumentParser(prog="python -m bench.fanout_micro")
    parser.add_argument("--members", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 5, 20])
    return parser.parse_args()


if __name__ == "__main__":
    chosen = arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ends = pairs(chosen.members)
    os.sched_setaffinity(0, machine.cores()[0])
    uvloop.run(main(chosen, ends))
