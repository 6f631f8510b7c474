"""The world of a run: PostgreSQL, Valkey, N gateways with ports of their own, a proxy between each and each server.

A gateway is the product's own supervisor with one worker, so a worker that is killed comes back. Everything here is
real and is ours to break; what people do in it is `people`'s, what breaks it is `faults`'.
"""

import asyncio
import contextlib
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import aiohttp
import asyncpg
import msgspec
import redis.asyncio as redis

from config import logging, migrate
from config.database import connect
from config.dev import Secrets, fill
from config.servers import Guardian, Place, ServerError, free_port
from config.settings import Database as DatabaseSettings
from config.settings import Settings, with_values
from gateway.supervisor import Supervisor, listen
from sessions import registration
from tests.broker.sentinel import MASTER, Sentinel, url_by
from tests.campaign.client import Client
from tests.campaign.history import Event, History, Readiness
from tests.campaign.network import Tunnel
from tests.campaign.proxy import Proxy
from tests.campaign.schedule import DATABASE, PING, Schedule
from tests.campaign.standby import FAKETIME, Cache, Database, attach, faked, promote

CAP = 4
READY = 40.0
SENTINELS = 3
DISK = "1g"

FASTER = {
    "auth.bcrypt_cost": 4,
    "sessions.max_per_user": CAP,
    "http_server.trusted_proxies": ["127.0.0.0/8"],
    "http_server.shutdown_timeout": 1.0,
    "client.channel_position_check_delay": 2.0,
    "client.presence_update_interval": 5.0,
    "client.ping_interval": PING,
    "client.pong_timeout": 3.0,
    "client.connections_per_address": 1,
    "log.level": "warning",
}


class Unreachable(Exception):
    """No answer: what became of the request is not known."""


class Answer(msgspec.Struct, frozen=True):
    """One HTTP answer, by our clock."""

    status: int
    body: Any
    sent: float
    at: float

    @property
    def code(self) -> str:
        """The problem's."""
        return str(self.body.get("code", "")) if isinstance(self.body, dict) else ""


def with_ports(url: str, *ports: int, host: str = "127.0.0.1") -> str:
    """The URL of a server as it is behind proxies."""
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    return urlunsplit(parts._replace(netloc=f"{login}@{','.join(f'{host}:{port}' for port in ports)}"))


class Node:
    """One gateway."""

    def __init__(
        self, index: int, port: int, postgres: list[Proxy], caches: list[Proxy], faketime: Path | None, version: Path
    ) -> None:
        self.index, self.port = index, port
        self.postgres, self.caches = postgres, caches  # of each kind one, or one for each of two servers
        self.tunnel: Tunnel | None = None  # to its servers
        self.version = version  # of its workers: which rows they can read is in this file
        self.led = -1  # which of two servers it is led to, whichever is the primary
        self.faketime = faketime
        self.supervisor: Supervisor

    @property
    def pid(self) -> int:
        """The worker's, 0 while there is none."""
        return next(iter(self.supervisor.pids), 0)

    @property
    def valkey(self) -> Proxy:
        """The only one."""
        return self.caches[0]

    def garble(self, share: float) -> None:
        """So many of the hints that come to it are spoilt."""
        for proxy in self.caches:
            proxy.garble = share

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class World:
    """Everything of one run. Use `running`."""

    def __init__(self, schedule: Schedule, mutation: str = "-") -> None:
        self.schedule, self.mutation = schedule, mutation
        self.rng = random.Random(schedule.seed)
        self.history = History(schedule.lease, schedule.drift, cap=CAP)
        self.nodes: list[Node] = []
        self.clients: set[Client] = set()
        self.errors: list[BaseException] = []  # of the campaign itself
        self.answers: Counter[tuple[str, int, str]] = Counter()  # by path, status and code; 0: none came
        self.http: aiohttp.ClientSession
        self.databases: list[Database] = []
        self.primary = 0
        self.link: Proxy  # between the primary and its standby
        self.small_disk = False  # PostgreSQL's is one that can be filled
        self.caches: list[Cache] = []
        self.master = 0
        self.stream: Proxy  # between the master and its replica, where no Sentinel sets them up
        self.sentinels: list[Sentinel] = []  # three, of which two have to agree
        self.api_key = ""
        self.settings: Settings
        self.ids = itertools.count(1)
        self.skipped: dict[str, str] = {}  # what could not be done here, and why
        self._secrets = Secrets.make()
        self._tasks: set[asyncio.Task[Any]] = set()

    def log(self, event: Event) -> None:
        """Into the history."""
        self.history.events.append(event)

    def keep(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run it beside everything else, until the end of the run."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.errors.append(error)

    async def idle(self) -> None:
        """End what was kept."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- starting

    async def start(self, stack: contextlib.AsyncExitStack, folder: Path) -> None:
        guardian = Guardian()
        stack.callback(guardian.close)
        place = await asyncio.to_thread(Place.at, folder)
        if place.moved:
            stack.callback(place.remove)
        self.folder = folder
        self.databases = [
            Database(place, name, port=free_port(), guardian=guardian)
            for name in (("one", "two") if self.schedule.standby else ("one",))
        ]
        if any(step.args.get("how") == "disk" for step in self.schedule.steps):
            for database in self.databases:
                await self._small_disk(stack, database.folder)
        if FAKETIME is not None and any(step.args.get("node") == DATABASE for step in self.schedule.steps):
            for database in self.databases:
                database.clock = folder / "clock-database"
                database.clock.write_text("+0")
        names = ("left", "right") if {"F4", "F5"} & set(self.schedule.faults()) else ("left",)
        self.caches = [Cache(place, name, port=free_port(), guardian=guardian) for name in names]
        self.link = Proxy(lambda: self.postgres.port, self.rng)
        self.stream = Proxy(lambda: self.valkey.port, self.rng)
        for proxy in (self.link, self.stream):
            await proxy.start()
            stack.push_async_callback(proxy.close)
        for database in self.databases:
            stack.push_async_callback(asyncio.to_thread, database.stop)
        for cache in self.caches:
            stack.push_async_callback(asyncio.to_thread, cache.stop)
        await asyncio.gather(
            *(asyncio.to_thread(start) for start in (self.postgres.start, *(c.start for c in self.caches)))
        )
        await self.replicate()
        if self.schedule.sentinel:
            await self._watched(stack, place, guardian)
        await migrate.apply(self.postgres.url)
        async with self.sql() as connection:
            await connection.execute(
                "UPDATE revocation_head SET lease_seconds = $1, drift_seconds = $2",
                self.schedule.lease,
                self.schedule.drift,
            )
        await self.follow()
        self.http = await stack.enter_async_context(
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(force_close=True, limit=0), cookie_jar=aiohttp.DummyCookieJar()
            )
        )
        for index in range(self.schedule.nodes):
            await self._start_node(stack, index, guardian)
        async with asyncio.timeout(READY):
            await asyncio.gather(*(node.supervisor.ready() for node in self.nodes))
        stack.push_async_callback(self._hang_up)
        stack.push_async_callback(self.idle)
        for sentinel in self.sentinels:
            self.keep(self._follow_elections(sentinel))

    async def _watched(self, stack: contextlib.AsyncExitStack, place: Place, guardian: Guardian) -> None:
        """Sentinels watch both Valkeys, know the replica, and each other."""
        for number in range(SENTINELS):
            sentinel = Sentinel(
                place, self.valkey.port, guardian=guardian, folder=f"sentinel-{number}", quorum=SENTINELS // 2 + 1
            )
            await asyncio.to_thread(sentinel.start)
            stack.push_async_callback(asyncio.to_thread, sentinel.stop)
            self.sentinels.append(sentinel)
        if not await self.until(self.whole, 20):
            raise ServerError("the sentinels do not find the replica, or each other")

    async def whole(self) -> bool:
        """Whether every Sentinel knows a replica that is well, and the others."""
        try:
            known = [(await s.replicas(), await s.others()) for s in self.sentinels]
        except (redis.RedisError, OSError):
            return False
        return all(found == (1, SENTINELS - 1) for found in known)

    async def _follow_elections(self, sentinel: Sentinel) -> None:
        """The master is whom a Sentinel names that has just learnt of it: the others come to say the same."""
        ports, named = [cache.port for cache in self.caches], self.valkey.port
        async with redis.Redis.from_url(sentinel.url, socket_timeout=1, socket_connect_timeout=1) as asked:
            while True:
                with contextlib.suppress(redis.RedisError, OSError, ValueError):
                    found: Any = await asked.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)  # type: ignore[no-untyped-call]
                    if int(found[1]) != named:
                        named = int(found[1])
                        self.master = ports.index(named)
                await asyncio.sleep(0.1)

    async def _small_disk(self, stack: contextlib.AsyncExitStack, folder: Path) -> None:
        """A disk of its own, where we may mount one."""
        owner = await asyncio.to_thread(folder.stat)
        options = f"size={DISK},mode=700,uid={owner.st_uid},gid={owner.st_gid}"
        if await _silently("mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)):
            self.small_disk = True
            stack.push_async_callback(_silently, "umount", "-l", str(folder))

    async def _start_node(self, stack: contextlib.AsyncExitStack, index: int, guardian: Guardian) -> None:
        if self.schedule.hosts and len(self.databases) > 1:
            postgres = [Proxy(lambda d=database: d.port, self.rng) for database in self.databases]  # type: ignore[misc]
        else:
            postgres = [Proxy(lambda: self._leads(index).port, self.rng)]
        caches = [Proxy(lambda: self.valkey.port, self.rng)]
        if self.sentinels:
            caches = [Proxy(lambda c=cache: c.port, self.rng) for cache in self.caches]  # type: ignore[misc]
        tunnel = await self._tunnel(stack, index) if self.schedule.packets else None
        host = tunnel.host if tunnel is not None else "127.0.0.1"
        for proxy in (*postgres, *caches):
            await proxy.start(host)
            stack.push_async_callback(proxy.close)
        url = await self._url_of_valkey(stack, caches, host)
        sockets = listen("127.0.0.1", 0)
        port = int(sockets[0].getsockname()[1])
        steps = {s.args["node"] for s in self.schedule.steps if s.action == "fault" and s.args["name"] == "F15"}
        clock = self.folder / f"clock-{index}" if FAKETIME is not None and index in steps else None
        if clock is not None:
            clock.write_text("+0")
        version = self.folder / f"version-{index}"
        version.write_text("1")
        node = Node(index, port, postgres, caches, clock, version)
        node.tunnel = tunnel
        metrics = Path(tempfile.mkdtemp(prefix="metrics-", dir=self.folder))
        own = fill(Settings(), self._secrets, port=port)
        settings = with_values(
            own,
            {
                **FASTER,
                "client.connection_rate_limit": self.schedule.rate,
                "client.user_connection_limit": 400 + self.schedule.crowd,  # reached by nobody; it is asked for all
                "database.url": with_ports(self.postgres.url, *(proxy.port for proxy in postgres), host=host),
                "redis.url": url,
            },
        )
        self.settings = settings
        self.api_key = settings.http_api.key.get_secret_value()
        node.supervisor = Supervisor(
            workers=1,
            sockets=sockets,
            metrics=metrics,
            guardian=guardian,
            on_dead=self._mourn if (self.schedule.seed + self.schedule.seed // 10) % 2 else None,
            command=self._command(node),
        )
        stack.push_async_callback(node.supervisor.stop)
        self.nodes.append(node)
        node.supervisor.launch()
        await node.supervisor.start(settings, dev=True)

    async def _tunnel(self, stack: contextlib.AsyncExitStack, index: int) -> Tunnel | None:
        """None where no network may be made."""
        try:
            tunnel = await Tunnel.open(index, self.rng)
        except OSError as error:
            self.skipped["F11 packets"] = str(error)
            return None
        stack.push_async_callback(tunnel.close)
        return tunnel

    async def _url_of_valkey(self, stack: contextlib.AsyncExitStack, caches: list[Proxy], host: str) -> str:
        """The setting of one gateway. A Sentinel's answers name its own proxies in the servers' places."""
        if not self.sentinels:
            return with_ports(self.valkey.url, caches[0].port, host=host)
        doors = []
        for sentinel in self.sentinels:
            asked = Proxy(lambda port=sentinel.port: port, self.rng)  # type: ignore[misc]
            asked.ports = {cache.port: proxy.port for cache, proxy in zip(self.caches, caches, strict=True)}
            await asked.start()
            stack.push_async_callback(asked.close)
            doors.append(asked.port)
        return url_by(*doors)

    def _command(self, node: Node) -> tuple[str, ...]:
        """A shell puts the worker's words into a file and becomes the worker."""
        words = [f"CAMPAIGN_BLOCK={2 * self.schedule.lease}", f'CAMPAIGN_VERSION="$(cat "{node.version}")"']
        if node.faketime is not None:
            words += faked(node.faketime)
        log = self.folder / f"node-{node.index}.log"
        words = [*(node.tunnel.inside if node.tunnel is not None else ()), "env", *words]
        script = f'exec {" ".join(words)} "$0" "$@" 2>>"{log}" 1>&2'
        return ("/bin/sh", "-c", script, sys.executable, "-m", "tests.campaign.worker", self.mutation)

    async def _mourn(self, node: str) -> None:
        """What `run.py` does: a dead worker's registration goes at once (in every other run; else its peers do it)."""
        connection = await connect(self.database, timeout=2.0)
        try:
            await registration.remove(connection, node)
        finally:
            await connection.close(timeout=1)

    async def _hang_up(self) -> None:
        for client in tuple(self.clients):
            client.hang_up()
        await asyncio.sleep(0)

    # -- talking

    async def call(
        self,
        node: int,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str = "",
        address: str = "",
        timeout: float = 6.0,
        **headers: str,
    ) -> Answer:
        """One request to one node. Without a token it carries the API key."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if token:
            named["Authorization"] = f"Bearer {token}"
        elif not path.startswith("/auth"):
            named["X-API-Key"] = self.api_key
        if address:
            named["X-Forwarded-For"] = address
        sent = time.monotonic()
        try:
            async with self.http.request(
                method,
                self.nodes[node].url + path,
                json=body,
                headers=named,
                timeout=aiohttp.ClientTimeout(total=timeout),
            ) as response:
                text = await response.read()
                at = time.monotonic()
                return Answer(
                    response.status, msgspec.json.decode(text) if text[:1] in (b"{", b"[") else None, sent, at
                )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error

    async def text(self, node: int, path: str) -> str:
        """What a node answers, as text."""
        try:
            async with self.http.get(self.nodes[node].url + path, timeout=aiohttp.ClientTimeout(total=3)) as response:
                return await response.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error

    @contextlib.asynccontextmanager
    async def sql(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection to PostgreSQL that no proxy stands before."""
        connection = await asyncpg.connect(self.postgres.url, timeout=5)
        try:
            yield connection
        finally:
            with contextlib.suppress(Exception):
                await connection.close(timeout=1)

    @contextlib.asynccontextmanager
    async def redis(self) -> AsyncIterator["redis.Redis"]:
        """The same for Valkey."""
        client = redis.Redis.from_url(self.valkey.url, socket_timeout=3, socket_connect_timeout=3)
        try:
            yield client
        finally:
            await client.aclose()

    async def look(self, node: int) -> bool:
        """Ask a node whether it is ready, and write the answer down."""
        try:
            answer = await self.call(node, "GET", "/ready", timeout=2.0)
        except Unreachable as error:
            self.log(Readiness(time.monotonic(), node, False, time.monotonic(), str(error)))
            return False
        why = str(answer.body.get("why", "")) if isinstance(answer.body, dict) else ""
        self.log(Readiness(answer.at, node, answer.status == 200, answer.sent, why))
        return answer.status == 200

    async def until(self, wanted: Callable[[], Any], seconds: float, *, every: float = 0.1) -> bool:
        """Wait until the coroutine function says yes, for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if await wanted():
                return True
            await asyncio.sleep(every)
        return False

    # -- servers

    @property
    def postgres(self) -> Database:
        """The primary."""
        return self.databases[self.primary]

    @property
    def database(self) -> DatabaseSettings:
        """The primary as a command is told of it."""
        return with_values(Settings(), {"database.url": self.postgres.url}).database

    @property
    def standby(self) -> Database:
        """The other one."""
        return self.databases[1 - self.primary]

    @property
    def valkey(self) -> Cache:
        """The master."""
        return self.caches[self.master]

    async def replicate(self) -> None:
        """The other Valkey, if there is one, becomes the master's replica."""
        for cache in self.caches:
            if cache is not self.valkey:
                await cache.follow(self.valkey.port if self.schedule.sentinel else self.stream.port)

    def _leads(self, node: int) -> Database:
        led = self.nodes[node].led if node < len(self.nodes) else -1
        return self.postgres if led < 0 else self.databases[led]

    async def follow(self) -> None:
        """The other server, if there is one, becomes the standby of the primary."""
        if len(self.databases) > 1:
            await asyncio.to_thread(self.standby.follow, self.link.port)
            await attach(self.postgres, synchronous=self.schedule.standby == "sync")

    async def promote(self) -> None:
        """The standby becomes the primary, and whoever is led is led there from now on."""
        await promote(self.standby)
        self.primary = 1 - self.primary

    async def start_again(self, server: Database | Cache) -> None:
        """A server that was killed, on its port, with its data."""
        for _ in range(40):
            try:
                await asyncio.to_thread(server.start)
            except ServerError:
                await asyncio.sleep(0.25)
            else:
                return
        raise ServerError(f"{server.name} does not start again")


async def _silently(*command: str) -> bool:
    """Run it; whether it worked."""
    try:
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL)
    except OSError:
        return False
    return await process.wait() == 0


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="wardgate-campaign-"))
    folder.chmod(0o711)  # the servers' user passes through
    return folder


@contextlib.asynccontextmanager
async def running(schedule: Schedule, mutation: str = "-") -> AsyncIterator[World]:
    """A world, ended in order when the block is left, however that is."""
    folder = _folder()
    logging.configure(with_values(Settings(), {"log.level": "none"}).log, node="campaign")
    try:
        async with contextlib.AsyncExitStack() as stack:
            world = World(schedule, mutation)
            await world.start(stack, folder)
            yield world
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, True)
