"""The contestants: how each is started and stopped, which processes are its own, who connects to it, how one publishes.

Each stands on one core (`Cores.server`), its Redis and PostgreSQL on the others, with the load client. What a server's
processes use is its figure; what PostgreSQL and Valkey use is reported beside it.

    StartError      a server did not come up; the text has the end of its log
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import jwt

from bench.client import Door, Peer
from bench.http import Http
from bench.machine import born_on, cpu_seconds, family, pin
from config.servers import Guardian, Valkey, free_port

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 60.0
STOP_SECONDS = 20.0
SECRET = "bench-bench-bench-bench-bench-bench"
API_KEY = "bench-api-key"


class StartError(Exception):
    """A server did not come up."""


@dataclass(frozen=True)
class Cores:
    """Where processes may run: the server under test, and everything else."""

    server: set[int]
    rest: set[int]


@dataclass(frozen=True)
class Usage:
    """Processor seconds since the start of the processes."""

    server: float
    valkey: float
    postgres: float

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(self.server - other.server, self.valkey - other.valkey, self.postgres - other.postgres)


class Server(ABC):
    """One contestant. `start` returns when it takes connections; `stop` may be called at any time."""

    name: ClassVar[str]
    about: ClassVar[str]
    most: ClassVar[int] = 1 << 30  # connections that it is asked to hold
    share: ClassVar[float] = 1.0  # of the rate of publications: what it can do on one core
    pings: ClassVar[bool] = True
    ping_seconds: ClassVar[int] = 25  # of all servers that ping
    tokens: ClassVar[bool] = False  # whether a connection brings a token

    def __init__(self, cores: Cores) -> None:
        self.cores = cores
        self.folder = Path(tempfile.mkdtemp(prefix=f"bench-{self.name}-"))
        self.port = free_port()
        self.process: asyncio.subprocess.Process | None = None
        self.guardian: Guardian | None = None  # ends the process when the bench was killed

    @property
    def pong_seconds(self) -> int:
        """A timeout is shorter than the interval."""
        return min(8, self.ping_seconds - 1)

    @abstractmethod
    def command(self) -> list[str]: ...

    @property
    @abstractmethod
    def door(self) -> Door: ...

    @abstractmethod
    async def publish(self, channel: str, data: bytes) -> None:
        """`data` is JSON. Returns when the server has taken it."""

    def environment(self) -> Mapping[str, str]:
        return {}

    def is_ready(self, line: bytes) -> bool:
        """Whether this line of its standard output says that it is up."""
        return line.strip() == b"ready"

    async def start(self) -> None:
        with born_on(self.cores.server), self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command(),
                cwd=ROOT,
                env={**os.environ, **self.environment()},
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the bench, which stops its servers in order
                limit=1 << 22,
            )
        self.guardian = Guardian()
        self.guardian.watch(self.process.pid, signal.SIGTERM)
        try:
            await asyncio.wait_for(self._up(), START_SECONDS)
        except TimeoutError:
            raise self._failed("is not up in time") from None

    async def _up(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        while True:
            line = await self.process.stdout.readline()
            if not line:
                raise self._failed("has ended")
            if self.is_ready(line):
                return

    def _failed(self, what: str) -> StartError:
        return StartError(f"{self.name} {what}; the end of its log:\n{self.log.read_text(errors='replace')[-1500:]}")

    @property
    def log(self) -> Path:
        return self.folder / "log"

    async def stop(self) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.terminate()
            try:
                await asyncio.wait_for(self.process.wait(), STOP_SECONDS)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, signal.SIGKILL)
                await self.process.wait()
        if self.guardian is not None and self.process is not None:
            self.guardian.forget(self.process.pid)
            await asyncio.to_thread(self.guardian.close)
        shutil.rmtree(self.folder, ignore_errors=True)

    def pids(self) -> list[int]:
        """The server's processes: what is measured."""
        assert self.process is not None
        return [self.process.pid]

    def usage(self) -> Usage:
        return Usage(cpu_seconds(self.pids()), 0.0, 0.0)

    def peers(self, count: int, channel: Callable[[int], str]) -> list[Peer]:
        """Connections that this server has not seen before, the n-th on `channel(n)`."""
        return [Peer([channel(n)]) for n in range(count)]


class HttpServer(Server):
    """One that is published to by `POST /api/publish`."""

    http: Http
    api_headers: Mapping[str, str]

    def __init__(self, cores: Cores) -> None:
        super().__init__(cores)
        self.api_headers = {}

    @property
    def door(self) -> Door:
        return Door("127.0.0.1", self.port, "/connection/websocket")

    async def start(self) -> None:
        await super().start()
        self.http = Http("127.0.0.1", self.port, self.api_headers, size=PUBLISHERS)

    async def stop(self) -> None:
        if hasattr(self, "http"):
            self.http.close()
        await super().stop()

    async def publish(self, channel: str, data: bytes) -> None:
        body = b'{"channel":"' + channel.encode() + b'","data":' + data + b"}"
        answer = await self.http.exchange(self.http.request("POST", "/api/publish", body))
        if answer.status != 200 or b'"error"' in answer.body:
            raise RuntimeError(f"{self.name}: publish: {answer.status} {answer.body[:200].decode(errors='replace')}")


PUBLISHERS = 32


class Tokens:
    """Connection tokens of a shared secret: each another user, and so another session."""

    def __init__(self) -> None:
        self._made = 0

    def next(self) -> str:
        self._made += 1
        now = int(time.time())
        claims = {"sub": f"bench{self._made}", "jti": f"{os.getpid()}-{self._made}", "iat": now - 1, "exp": now + 7200}
        return jwt.encode(claims, SECRET, algorithm="HS256")


class Floor(Server):
    """bench/floor.c, compiled. It publishes what is written to its standard input."""

    name = "floor"
    about = "one send(2) per delivery on epoll, in C: no tokens, no Redis, no HTTP"
    pings = False

    @staticmethod
    def compiler() -> str:
        """Empty where no C compiler is there."""
        return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), "")

    def command(self) -> list[str]:
        binary = self.folder / "floor"
        subprocess.run([self.compiler(), "-O2", "-o", binary, ROOT / "bench" / "floor.c"], check=True)
        return [str(binary), str(self.port)]

    @property
    def door(self) -> Door:
        return Door("127.0.0.1", self.port, "/")

    async def publish(self, channel: str, data: bytes) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        line = b'{"push":{"channel":"' + channel.encode() + b'","pub":{"data":' + data + b"}}}\n"
        self.process.stdin.write(line)
        await self.process.stdin.drain()


class AiohttpBroadcast(HttpServer):
    name = "aiohttp"
    about = "`await ws.send_str` per connection on aiohttp and uvloop: no tokens, no Redis, no pings"
    most = 2000
    pings = False

    def command(self) -> list[str]:
        return [sys.executable, "-m", "bench.references.aiohttp_broadcast", str(self.port)]


class OnRedis(HttpServer):
    """One that needs a Redis: it gets a Valkey of its own."""

    valkey: Valkey | None = None

    async def start(self) -> None:
        self.folder.chmod(0o711)  # a Valkey that is started by root runs as another user
        self.valkey = Valkey(self.folder / "servers")
        await asyncio.to_thread(self.valkey.start)
        pin([self.valkey.pid], self.cores.rest)
        await super().start()

    async def stop(self) -> None:
        if self.valkey is not None:
            await asyncio.to_thread(self.valkey.stop)
        await super().stop()

    def usage(self) -> Usage:
        return Usage(cpu_seconds(self.pids()), cpu_seconds([self.redis.pid]), 0.0)

    @property
    def redis(self) -> Valkey:
        assert self.valkey is not None
        return self.valkey


class SocketIo(OnRedis):
    name = "socketio"
    about = "python-socketio with its Redis manager on aiohttp and uvloop: no tokens"
    most = 2000
    share = 0.2

    def command(self) -> list[str]:
        return [
            sys.executable,
            "-m",
            "bench.references.socketio_redis",
            str(self.port),
            self.redis.url,
            str(self.ping_seconds),
        ]

    @property
    def door(self) -> Door:
        return Door("127.0.0.1", self.port, "/socket.io/?EIO=4&transport=websocket", "socketio")


class Reference(OnRedis):
    """A server that reads Centrifugo v6's configuration; the user names the binary."""

    name = "reference"
    about = "the binary given by --reference, with its Redis engine"
    tokens = True
    binary = ""

    def __init__(self, cores: Cores) -> None:
        super().__init__(cores)
        self.issuer = Tokens()
        self.api_headers = {"X-API-Key": API_KEY}

    def command(self) -> list[str]:
        path = self.folder / "config.json"
        path.write_text(
            json.dumps(
                {
                    "http_server": {"address": "127.0.0.1", "port": str(self.port)},
                    "http_api": {"key": API_KEY},
                    "client": {
                        "token": {"hmac_secret_key": SECRET},
                        "allowed_origins": ["*"],
                        "ping_interval": f"{self.ping_seconds}s",
                        "pong_timeout": f"{self.pong_seconds}s",
                    },
                    "channel": {"without_namespace": {"allow_subscribe_for_client": True}},
                    "engine": {"type": "redis", "redis": {"address": self.redis.url}},
                    "log": {"level": "error"},
                }
            )
        )
        return [self.binary, "--config", str(path)]

    async def _up(self) -> None:
        """It says nothing on its standard output: try until it answers."""
        while True:
            assert self.process is not None
            if self.process.returncode is not None:
                raise self._failed("has ended")
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.05)

    def peers(self, count: int, channel: Callable[[int], str]) -> list[Peer]:
        return [Peer([channel(n)], token=self.issuer.next()) for n in range(count)]


@dataclass(frozen=True)
class Person:
    """A registered user with one session."""

    sid: str
    token: str
    cookie: str


class Wardgate(HttpServer):
    """`run.py dev` from this checkout. Its processes: the parent and its descendants, without PostgreSQL and Valkey."""

    name = "wardgate"
    about = "run.py dev, one worker; tokens of a shared secret, every session registered in PostgreSQL"
    tokens = True

    def __init__(self, cores: Cores, *, workers: int = 1) -> None:
        super().__init__(cores)
        self.workers = workers
        self.issuer = Tokens()
        self.info: dict[str, Any] = {}
        self._people = 0

    def command(self) -> list[str]:
        options = ["--json", "--ephemeral", "--port", str(self.port), "--workers", str(self.workers)]
        return [sys.executable, "run.py", "dev", *options]

    def environment(self) -> Mapping[str, str]:
        return {
            "WARDGATE_AUTH_BCRYPT_COST": "4",
            "WARDGATE_CLIENT_TOKEN_HMAC_SECRET_KEY": SECRET,
            "WARDGATE_CHANNEL_WITHOUT_NAMESPACE_ALLOW_SUBSCRIBE_FOR_CLIENT": "true",
            "WARDGATE_CLIENT_PING_INTERVAL": f"{self.ping_seconds}s",
            "WARDGATE_CLIENT_PONG_TIMEOUT": f"{self.pong_seconds}s",
            "WARDGATE_LOG_LEVEL": "warning",
        }

    def is_ready(self, line: bytes) -> bool:
        if not line.startswith(b"{") or b'"url"' not in line:
            return False
        self.info = json.loads(line)
        self.api_headers = {"X-API-Key": self.info["api_key"]}
        return True

    async def start(self) -> None:
        await super().start()
        for store in ("postgres", "valkey"):
            pin(self.store(store), self.cores.rest)

    def store(self, name: str) -> list[int]:
        return family(self.info["pids"][name])

    def pids(self) -> list[int]:
        assert self.process is not None
        stores = {pid for name in ("postgres", "valkey") for pid in self.store(name)}
        return [pid for pid in family(self.process.pid) if pid not in stores]

    def usage(self) -> Usage:
        return Usage(cpu_seconds(self.pids()), cpu_seconds(self.store("valkey")), cpu_seconds(self.store("postgres")))

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def door(self) -> Door:
        return Door("127.0.0.1", self.port, "/connection/websocket", headers={"Origin": self.origin})

    def peers(self, count: int, channel: Callable[[int], str]) -> list[Peer]:
        return [Peer([channel(n)], token=self.issuer.next()) for n in range(count)]

    async def people(self, count: int, mode: str) -> list[Person]:
        """Register `count` users, a few at a time: the pool of hashes is small."""
        gate = asyncio.Semaphore(4)

        async def one(number: int) -> Person:
            body = {"email": f"bench{number}@example.org", "password": "correct horse battery 7", "mode": mode}
            async with gate:
                answer = await self.http.call("POST", "/auth/register", body, {"Origin": self.origin})
            found = answer.json()
            return Person(found["session"]["sid"], found.get("access_token", ""), "; ".join(answer.cookies))

        numbers = range(self._people, self._people + count)
        self._people += count
        return list(await asyncio.gather(*(one(number) for number in numbers)))

    async def revoke(self, target: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        body = {"target": target, "reason": "bench", **more}
        found: dict[str, Any] = (await self.http.call("POST", "/admin/revocations", body)).json()
        return found
