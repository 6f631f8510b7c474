"""The commands `dev` and `serve`: servers, migrations, workers, in the order in which they need each other, and back.

Every part registers its end before it begins, so that a signal at any moment ends what has begun, in reverse: workers,
Valkey, PostgreSQL. A second signal ends this process at once, and the guardian the rest.
"""

import asyncio
import contextlib
import importlib
import os
import resource
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import structlog
import uvloop
from cyclopts import Parameter

from config import dev as folders
from config import logging, migrate
from config.commands import DONE, Config, need, postgres_there, redis_there, say
from config.database import connect, open_pool
from config.dev import Admin, Folder, Info, Pids
from config.errors import Failure
from config.loading import Mistake, SettingsError, load
from config.servers import Guardian, Place, Postgres, Valkey
from config.settings import Settings, is_set, with_values
from gateway import files
from gateway.handover import ROLES
from gateway.supervisor import Supervisor, listen

WATCH_EVERY = 0.25

log = structlog.get_logger(__name__)

IMPATIENT = 0.5

T = TypeVar("T")


def dev(
    *,
    port: Annotated[int | None, Parameter(help="Where to listen. Default: the setting, or 8000.")] = None,
    data: Annotated[Path, Parameter(help="The folder for everything that is kept.")] = folders.FOLDER,
    workers: Annotated[int, Parameter(help="How many processes serve.")] = 1,
    json: Annotated[bool, Parameter(negative=(), help="One line of JSON on stdout when ready.")] = False,
    ephemeral: Annotated[bool, Parameter(negative=(), help="A temporary folder, removed at the end.")] = False,
    external: Annotated[
        bool, Parameter(negative=(), help="PostgreSQL and Redis of the settings instead of our own.")
    ] = False,
    config: Config = None,
) -> int:
    """Run everything for development: a real PostgreSQL and a real Valkey, the gateway, a demo page, an admin."""
    settings = load(str(config) if config else None, os.environ, dev=True)
    files.require(settings)
    if port is not None and not 0 <= port <= 65535:
        raise SettingsError([Mistake("--port", str(port), "must be a whole number from 0 to 65535")])
    if external:
        need(settings, "database.url", "redis.url")
    _at_least_one(workers)
    _many_descriptors()
    development = _Development(settings, Folder(data, ephemeral), port, workers, json, external)
    return uvloop.run(_until_told(development.run))


def serve(
    *,
    workers: Annotated[int | None, Parameter(help="How many processes serve. Default: one for each core.")] = None,
    roles: Annotated[str, Parameter(help="What this machine does, of: auth,api,gateway.")] = ",".join(ROLES),
    config: Config = None,
) -> int:
    """Run the gateway in production: PostgreSQL, Redis and everything else from the settings."""
    settings = load(str(config) if config else None, os.environ)
    files.require(settings)
    chosen = tuple(dict.fromkeys(role.strip() for role in roles.split(",")))
    unknown = [role for role in chosen if role not in ROLES]
    if unknown:
        raise SettingsError([Mistake("--roles", role, f"must be some of {', '.join(ROLES)}") for role in unknown])
    count = (os.cpu_count() or 1) if workers is None else workers
    _at_least_one(count)
    _many_descriptors()

    async def run(stop: asyncio.Event) -> int:
        return await _serve(settings, count, () if set(chosen) == set(ROLES) else chosen, stop)

    return uvloop.run(_until_told(run))


async def _serve(settings: Settings, workers: int, roles: tuple[str, ...], stop: asyncio.Event) -> int:
    logging.configure(settings.log, node="supervisor")
    http = settings.http_server
    async with contextlib.AsyncExitStack() as stack:
        sockets = _listen(http.address, http.port)
        port = int(sockets[0].getsockname()[1])
        supervisor = _supervisor(
            stack,
            workers,
            sockets,
            _listen(http.internal_address, http.internal_port) if http.internal_port else [],
            on_dead=lambda node: _remove_registration(settings, node),
        )

        async def start() -> None:
            await postgres_there(settings.database)
            await redis_there(settings.redis)
            await migrate.check(settings.database)
            await _not_restored(settings)
            await _keys_readable(settings)
            supervisor.launch()
            await supervisor.start(settings, dev=False, roles=roles)
            await supervisor.ready()
            log.info("ready", address=http.address, port=port, workers=workers)

        if await _unless(stop, start()):
            await stop.wait()
            log.info("stopping")
    return DONE


class _Development:
    """One `run.py dev`."""

    def __init__(
        self, settings: Settings, folder: Folder, port: int | None, workers: int, json: bool, external: bool
    ) -> None:
        self._settings, self._folder, self._workers = settings, folder, workers
        self._wanted_port = settings.http_server.port if port is None else port
        self._json, self._external = json, external
        self._postgres: Postgres | None = None
        self._valkey: Valkey | None = None
        self._place: Place | None = None
        self._supervisor: Supervisor
        self._announced = False

    async def run(self, stop: asyncio.Event) -> int:
        with self._folder.held():
            async with contextlib.AsyncExitStack() as stack:
                if await _unless(stop, self._start(stack)):
                    await self._watch(stop)
                self._announced = False
                self._folder.leaving()
                say("stopping ...")
        return DONE

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        http = self._settings.http_server
        sockets = _listen(http.address, self._wanted_port)
        port = int(sockets[0].getsockname()[1])
        self._settings = folders.fill(self._settings, self._folder.secrets, port=port, mail=self._folder.path / "mail")
        if sys.stderr.isatty() and not is_set(self._settings, "log.format"):
            self._settings = with_values(self._settings, {"log.format": "console"})
        logging.configure(self._settings.log, node="supervisor")
        guardian = Guardian()
        stack.callback(guardian.close)
        if not self._external:
            await self._prepare_servers(stack, guardian)
        self._supervisor = _supervisor(
            stack,
            self._workers,
            sockets,
            _listen(http.internal_address, http.internal_port) if http.internal_port else [],
            guardian=guardian,
            on_dead=lambda node: _remove_registration(self._settings, node),
            on_change=self._announce,
            metrics=self._empty_metrics(),
        )
        self._supervisor.launch()  # they load their code while the servers start
        await asyncio.gather(self._start_servers(), _signing())
        await migrate.apply(self._settings.database)
        await _keys_readable(self._settings)
        if self._external:
            await _not_restored(self._settings)
        else:
            await _remove_all_registrations(self._settings)
        await self._supervisor.start(self._settings, dev=True)
        await asyncio.gather(self._supervisor.ready(), self._make_admin())
        self._announced = True
        self._announce()
        self._print()

    def _empty_metrics(self) -> Path:
        """In the data folder, so that one who was killed leaves nothing elsewhere."""
        metrics = self._folder.path / "metrics"
        shutil.rmtree(metrics, ignore_errors=True)
        metrics.mkdir(mode=0o700)
        return metrics

    async def _prepare_servers(self, stack: contextlib.AsyncExitStack, guardian: Guardian) -> None:
        kept = self._folder.secrets
        place = self._place = await _whole(lambda: Place.at(self._folder.path))
        if place.moved and self._folder.ephemeral:
            stack.callback(place.remove)
        postgres = self._postgres = Postgres(place, password=kept.postgres_password, guardian=guardian)
        valkey = self._valkey = Valkey(place, password=kept.valkey_password, guardian=guardian)
        stack.push_async_callback(_whole, postgres.stop)
        stack.push_async_callback(_whole, valkey.stop)

    async def _start_servers(self) -> None:
        if self._postgres is None or self._valkey is None:
            await postgres_there(self._settings.database)
            await redis_there(self._settings.redis)
            return
        await _all(_whole(self._postgres.start), _whole(self._valkey.start))
        urls = {"database.url": self._postgres.url, "redis.url": self._valkey.url}
        self._settings = with_values(self._settings, urls)

    async def _make_admin(self) -> None:
        if not self._settings.auth.local_accounts:
            return
        # It takes long to load; in a thread, so that we go on hearing the workers, who load it too.
        ensure_admin = (await _whole(lambda: importlib.import_module("auth.commands"))).ensure_admin
        kept = self._folder.secrets
        pool = await open_pool(self._settings.database)
        try:
            await ensure_admin(pool, self._settings, kept.admin_email, kept.admin_password)
        finally:
            await pool.close()

    def _announce(self) -> None:
        """dev.json, again when a worker was replaced."""
        if self._announced:
            self._folder.announce(self._info())

    def _info(self) -> Info:
        kept, settings = self._folder.secrets, self._settings
        place = f"127.0.0.1:{settings.http_server.port}"
        return Info(
            url=f"http://{place}",
            websocket=f"ws://{place}/connection/websocket",
            admin=Admin(kept.admin_email, kept.admin_password),
            api_key=settings.http_api.key.get_secret_value(),
            database_url=settings.database.url.get_secret_value(),
            redis_url=settings.redis.url.get_secret_value(),
            pids=Pids(
                self._postgres.pid if self._postgres is not None else 0,
                self._valkey.pid if self._valkey is not None else 0,
                self._supervisor.pids,
            ),
        )

    def _print(self) -> None:
        info = self._info()
        if self._json:
            print(msgspec.json.encode(info).decode(), flush=True)
            return
        moved = self._place.folder if self._place is not None and self._place.moved else None
        print(folders.banner(info, folder=self._folder.path, moved=moved, colors=sys.stdout.isatty()), flush=True)

    async def _watch(self, stop: asyncio.Event) -> None:
        """A server that dies is not started again, so that faults can be tried; it is only said."""
        servers = [server for server in (self._postgres, self._valkey) if server is not None]
        while not stop.is_set():
            for server in [server for server in servers if not server.running()]:
                servers.remove(server)
                log.error("server_died", server=server.name, pid=server.pid, log_file=str(server.log))
                say(f"{server.name} (pid {server.pid}) has died. It stays so: start `run.py dev` again to have it back")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_EVERY):
                    await stop.wait()


def _supervisor(
    stack: contextlib.AsyncExitStack,
    workers: int,
    sockets: list[socket.socket],
    internal: list[socket.socket],
    *,
    on_dead: Callable[[str], Awaitable[None]],
    guardian: Guardian | None = None,
    on_change: Callable[[], None] | None = None,
    metrics: Path | None = None,
) -> Supervisor:
    """A supervisor that ends with `stack`. `metrics` is the folder in which its workers count, empty at first."""
    if metrics is None:
        metrics = Path(tempfile.mkdtemp(prefix="wardgate-metrics-"))
    stack.callback(shutil.rmtree, metrics, ignore_errors=True)
    if guardian is None:
        guardian = Guardian()
        stack.callback(guardian.close)
    supervisor = Supervisor(
        workers=workers,
        sockets=sockets,
        internal=internal,
        metrics=metrics,
        guardian=guardian,
        on_dead=on_dead,
        on_change=on_change,
    )
    stack.push_async_callback(supervisor.stop)
    return supervisor


async def _not_restored(settings: Settings) -> None:
    """4d: an older state of the database, of which no running process knows more, is not served from."""
    from sessions import restoring

    await restoring.check(settings.database)


async def _signing() -> Any:
    """It takes long to load."""
    return await _whole(lambda: importlib.import_module("auth.keys"))


async def _keys_readable(settings: Settings) -> None:
    """The signing keys are there and can be opened. Each worker would else find that out, and be started again."""
    signing = await _signing()
    sealer = signing.key_sealer(settings.sessions)
    connection = await connect(settings.database)
    try:
        async with connection.transaction():
            await signing.ensure(connection, sealer, settings.auth.access_token_algorithm)
    finally:
        await connection.close(timeout=2)


async def _remove_registration(settings: Settings, node: str) -> None:
    """A worker of ours is dead, and we know: nobody need wait for its acknowledgements."""
    from sessions import registration

    connection = await connect(settings.database)
    try:
        await registration.remove(connection, node)
    finally:
        await connection.close(timeout=2)


async def _remove_all_registrations(settings: Settings) -> None:
    """Our own PostgreSQL was just started: whoever is registered there was killed with it, or will register again."""
    connection = await connect(settings.database)
    try:
        await connection.execute("delete from processes")
    finally:
        await connection.close(timeout=2)


def _listen(address: str, port: int) -> list[socket.socket]:
    try:
        return listen(address, port)
    except OSError as error:
        where = f"{address or '*'}:{port}"
        raise Failure(
            f"cannot listen on {where}: {os.strerror(error.errno or 0)} "
            "(another port: `dev --port`, or the setting http_server.port)"
        ) from error


def _at_least_one(workers: int) -> None:
    if not 1 <= workers <= 256:
        raise SettingsError([Mistake("--workers", str(workers), "must be a whole number from 1 to 256")])


def _many_descriptors() -> None:
    """Every connection is a descriptor: take as many as we may have. Workers inherit it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _until_told(run: Callable[[asyncio.Event], Coroutine[Any, Any, int]]) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP sets the event; a second signal does not wait.

    One that comes within IMPATIENT seconds is the first once more: make passes on what its whole group got already.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    first = 0.0

    def told() -> None:
        nonlocal first
        if not stop.is_set():
            first = loop.time()
            stop.set()
        elif loop.time() - first > IMPATIENT:
            os._exit(130)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, told)
    return await run(stop)


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do the work; False when `stop` came before it was done: it is cancelled then, and has ended."""
    doing = asyncio.create_task(work)
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([doing, waiting], return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            doing.result()
            return True
        return False
    finally:
        for task in (doing, waiting):
            task.cancel()
        await asyncio.wait([doing, waiting])


async def _whole(work: Callable[[], T]) -> T:
    """Blocking work in a thread, always to its end: a server that is half started could not be stopped."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


async def _all(*works: Awaitable[None]) -> None:
    """All of them to their end, then the first error."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
