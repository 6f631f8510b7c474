"""A network of its own for a gateway: a namespace, a tun device on either side, and between them a forwarder of ours.

What goes through are IP packets, so they can be lost for good, in either direction, and TCP has to notice by itself; a
proxy can only hold bytes. The gateway's servers are reached at `host`, where their proxies listen. Needs root, `ip` and
/dev/net/tun; `Tunnel.open` says OSError where that is not to be had.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import struct
import subprocess
from collections.abc import Collection

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
DELAYS = {"delay": 2.0, "slow": 0.2}
"""Seconds for one way: more, and less than anybody's patience."""
LARGEST = 2048
TURN = 64
"""Packets of one direction that are forwarded before another event of the loop has its turn."""


class Tunnel:
    """One gateway's. The knobs may be turned at any moment; they concern the servers at `ports`."""

    def __init__(self, number: int, rng: random.Random) -> None:
        own = os.getpid()
        self.name = f"wgc{own}n{number}"
        net = f"10.{192 + own % 32}.{own // 32 % 256}"
        self.host, self._inner = f"{net}.{4 * number + 1}", f"{net}.{4 * number + 2}"
        self._devices = f"wg{own}a{number}", f"wg{own}b{number}"
        self._rng = rng
        self._ends: list[int] = []
        self.lost = 0
        self.heal()

    @classmethod
    async def open(cls, number: int, rng: random.Random) -> "Tunnel":
        """Made, and forwarding."""
        tunnel = cls(number, rng)
        try:
            await asyncio.to_thread(tunnel._make)
        except (OSError, subprocess.CalledProcessError) as error:
            await tunnel.close()
            raise OSError(f"no network of its own for a gateway: {error}") from error
        outer, inner = tunnel._ends
        loop = asyncio.get_running_loop()
        loop.add_reader(outer, tunnel._forward, outer, inner, False)
        loop.add_reader(inner, tunnel._forward, inner, outer, True)
        return tunnel

    @property
    def inside(self) -> tuple[str, ...]:
        """What begins the command line of a process that lives in it."""
        return ("nsenter", f"--net=/run/netns/{self.name}")

    def heal(self) -> None:
        """Everything passes."""
        self.ports: frozenset[int] = frozenset()
        self.up = self.down = True
        self.loss = self.delay = 0.0

    def trouble(self, ports: Collection[int], how: str) -> None:
        """With the servers at these ports: "hold" (both ways), "up", "down", "loss", "delay" or "slow"."""
        self.ports = frozenset(ports)
        self.up, self.down = how not in ("hold", "up"), how not in ("hold", "down")
        self.loss = 0.5 if how == "loss" else 0.0
        self.delay = DELAYS.get(how, 0.0)

    async def close(self) -> None:
        """Nothing of it is left."""
        loop = asyncio.get_running_loop()
        for end in self._ends:
            loop.remove_reader(end)
            os.close(end)  # and the device with it
        self._ends = []
        await asyncio.to_thread(
            subprocess.run, ["ip", "netns", "del", self.name], stderr=subprocess.DEVNULL, check=False
        )

    def _make(self) -> None:
        outer, inner = self._devices
        _ip("netns", "add", self.name)
        self._ends = [_tun(outer), _tun(inner)]
        _ip("link", "set", inner, "netns", self.name)
        _ip("address", "add", f"{self.host}/30", "dev", outer)
        _ip("link", "set", outer, "up")
        _ip("-n", self.name, "address", "add", f"{self._inner}/30", "dev", inner)
        _ip("-n", self.name, "link", "set", inner, "up")
        _ip("-n", self.name, "link", "set", "lo", "up")

    def _forward(self, source: int, sink: int, up: bool) -> None:
        for _ in range(TURN):
            try:
                packet = os.read(source, LARGEST)
            except (BlockingIOError, OSError):
                return
            if not self.ports or self._port(packet, up) not in self.ports:
                _write(sink, packet)
            elif not (self.up if up else self.down) or (self.loss and self._rng.random() < self.loss):
                self.lost += 1
            elif self.delay:
                asyncio.get_running_loop().call_later(self.delay, self._late, sink, packet)
            else:
                _write(sink, packet)

    def _late(self, sink: int, packet: bytes) -> None:
        if sink in self._ends:
            _write(sink, packet)

    def _port(self, packet: bytes, up: bool) -> int:
        """The server's."""
        if packet[0] >> 4 != 4 or packet[9] != 6:
            return 0
        return int(struct.unpack_from("!HH", packet, (packet[0] & 15) * 4)[1 if up else 0])


def _tun(name: str) -> int:
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.ioctl(end, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(end)
        raise
    return end


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _write(sink: int, packet: bytes) -> None:
    """A full queue loses packets, as networks do."""
    with contextlib.suppress(OSError):
        os.write(sink, packet)
