"""The load client seen from the bench: a process that is given orders and whose counters are read while it works."""

import asyncio
import json
import mmap
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from bench.load import COUNTERS
from bench.machine import born_on

ROOT = Path(__file__).resolve().parents[1]
OPEN_SECONDS = 180.0


@dataclass(frozen=True)
class Peer:
    """One connection to open. An empty token and cookie: anonymous."""

    channels: list[str]
    token: str = ""
    cookie: str = ""


@dataclass(frozen=True)
class Door:
    """Where connections go."""

    host: str
    port: int
    path: str
    dialect: str = "centrifuge"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Opened:
    """What became of an `open`: `why` counts refusals by text, `stopped` says which limit of the machine was met."""

    opened: int
    failed: int
    why: dict[str, int]
    stopped: str
    seconds: float

    @property
    def trouble(self) -> str:
        """Empty when every connection was made."""
        parts = [f"{count} x {text}" for text, count in self.why.items()]
        return "; ".join(parts + ([f"stopped: {self.stopped}"] if self.stopped else []))


class Counts(NamedTuple):
    """`frames` brought the deliveries; `last` is the moment of the last one on the monotonic clock."""

    delivered: int
    frames: int
    ready: int
    ended: int
    last: float


class Closed(NamedTuple):
    """A connection that the server closed, and when its close frame was read (monotonic clock)."""

    peer: int
    code: int
    reason: str
    at: float


class LoadClient:
    """One process of `bench.load`, on `cores`."""

    def __init__(self, process: asyncio.subprocess.Process, counters: mmap.mmap, file: Any) -> None:
        self._process = process
        self._counters = counters
        self._file = file
        self._made = 0

    @classmethod
    async def start(cls, cores: set[int]) -> "LoadClient":
        file = tempfile.NamedTemporaryFile(prefix="bench-")  # noqa: SIM115 - lives as long as the process
        file.write(bytes(COUNTERS.size))
        file.flush()
        with born_on(cores):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "bench.load", file.name),
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 26,
            )
        return cls(process, mmap.mmap(file.fileno(), COUNTERS.size), file)

    @property
    def pid(self) -> int:
        return self._process.pid

    def counts(self) -> Counts:
        """As of the load client's last turn, at most 0.2 s ago when nothing comes in."""
        return Counts(*COUNTERS.unpack_from(self._counters))

    async def open(self, door: Door, peers: Sequence[Peer], *, window: int = 64) -> Opened:
        """Open, authenticate and subscribe them all, `window` at a time."""
        order = asdict(door) | {"window": window, "first": self._made, "peers": [asdict(p) for p in peers]}
        self._made += len(peers)
        return Opened(**await self._do({"do": "open"} | order, OPEN_SECONDS))

    async def closes(self) -> list[Closed]:
        """The connections that ended since the last call. Peers are numbered from 0 over all calls of `open`."""
        return [Closed(*entry) for entry in (await self._do({"do": "closes"}))["closes"]]

    async def shut(self) -> int:
        """Close every connection; returns how many there were."""
        return int((await self._do({"do": "shut"}))["shut"])

    async def until(self, delivered: int, timeout: float) -> bool:
        """Wait for so many deliveries in all; False when they do not come in time."""
        end = asyncio.get_running_loop().time() + timeout
        while self.counts().delivered < delivered:
            if asyncio.get_running_loop().time() > end:
                return False
            await asyncio.sleep(0.01)
        return True

    async def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 10)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._counters.close()
        self._file.close()

    async def _do(self, order: dict[str, Any], timeout: float = 30.0) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if self._process.returncode is not None:
            raise RuntimeError("the load client has ended")
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()
        line = await asyncio.wait_for(self._process.stdout.readline(), timeout)
        if not line:
            raise RuntimeError("the load client has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer
