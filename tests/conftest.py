"""What every test can have: real servers, a fresh database and key space, settings, a clock that it moves.

Servers start once a test process (each xdist worker has its own) and only when a test asks for them. A database is a
copy of a template with all migrations applied: 20 ms a test.
"""

import asyncio
import os
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio as redis
import structlog

from config import migrate
from config.clock import FakeClock, SystemClock
from config.database import connect, open_pool
from config.redis import Bus, Pipe
from config.servers import Guardian, Place, Postgres, Valkey
from config.settings import Settings
from sessions.revocations import Revocations

TEMPLATE = "migrated"


@pytest.fixture(autouse=True)
def logging_as_at_first() -> Iterator[None]:
    """A test that sets up logging, perhaps to be silent, does so for itself alone."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def server_place() -> Iterator[Place]:
    """A folder for this process's servers; uid 65534 can pass through it."""
    folder = Path(tempfile.mkdtemp(prefix="wardgate-test-"))
    folder.chmod(0o711)
    place = Place.at(folder)
    yield place
    place.remove()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder for servers of one test's own: uid 65534 can pass through it, unlike through pytest's own folders."""
    folder = Path(tempfile.mkdtemp(prefix="wardgate-test-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def guardian() -> Iterator[Guardian]:
    """Ends the servers even when the test process is killed."""
    guardian = Guardian()
    yield guardian
    guardian.close()


@pytest.fixture(scope="session")
def postgres_server(server_place: Place, guardian: Guardian) -> Iterator[Postgres]:
    """A real PostgreSQL."""
    server = Postgres(server_place, durable=False, guardian=guardian)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey_server(server_place: Place, guardian: Guardian) -> Iterator[Valkey]:
    """A real Valkey."""
    server = Valkey(server_place, guardian=guardian)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
async def database_template(postgres_server: Postgres) -> str:
    """A database with every migration applied; nobody may stay connected to it."""
    connection = await asyncpg.connect(postgres_server.url)
    await connection.execute(f"drop database if exists {TEMPLATE}")  # where tests run on two kinds of loop
    await connection.execute(f"create database {TEMPLATE}")
    await connection.close()
    await migrate.apply(_named(postgres_server, TEMPLATE))
    return TEMPLATE


@pytest.fixture
async def empty_database_url(postgres_server: Postgres) -> AsyncIterator[str]:
    """A fresh database without any migration."""
    async with _database(postgres_server, "template0") as url:
        yield url


@pytest.fixture
async def database_url(postgres_server: Postgres, database_template: str) -> AsyncIterator[str]:
    """A fresh database with all migrations."""
    async with _database(postgres_server, database_template) as url:
        yield url


class _database:
    """A database that lives as long as the block, and is dropped with whoever is still connected."""

    def __init__(self, server: Postgres, template: str) -> None:
        self._server, self._template = server, template
        self._name = f"test_{uuid.uuid4().hex[:12]}"

    async def __aenter__(self) -> str:
        await self._run(f"create database {self._name} template {self._template} strategy file_copy")
        return _named(self._server, self._name)

    async def __aexit__(self, *_: object) -> None:
        await self._run(f"drop database {self._name} with (force)")

    async def _run(self, sql: str) -> None:
        connection = await asyncpg.connect(self._server.url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()


def _named(server: Postgres, database: str) -> str:
    return server.url.removesuffix("/wardgate") + f"/{database}"


@pytest.fixture
async def pool(settings: Settings) -> AsyncIterator[asyncpg.Pool]:
    """A pool on the test's database; a connection that was not given back fails the test."""
    pool = await open_pool(settings.database)
    yield pool
    for _ in range(500):  # what was cancelled gives its connection back by itself, a little later
        leaked = pool.get_size() - pool.get_idle_size()
        if not leaked:
            break
        await asyncio.sleep(0.01)
    pool.terminate()
    assert leaked == 0, f"{leaked} connections were not given back to the pool"


@pytest.fixture
async def old_primary(postgres_server: Postgres, database_template: str) -> AsyncIterator[asyncpg.Pool]:
    """A pool on a server that answers reads and has nothing of what the test did: its log ends where the test began."""
    async with _database(postgres_server, database_template) as url, asyncpg.create_pool(url, min_size=0) as pool:
        yield pool


@pytest.fixture
async def redis_url(valkey_server: Valkey) -> str:
    """The Valkey of this process, emptied."""
    client = redis.Redis.from_url(valkey_server.url)
    await client.flushall()
    await client.aclose()
    return valkey_server.url


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    """Settings as a small production would have them, with cheap password hashes and fixed secrets."""
    return Settings.model_validate(
        {
            "database": {"url": database_url},
            "redis": {"url": redis_url},
            "http_api": {"key": "test-api-key-0123456789abcdef0123456789"},
            "client": {"allowed_origins": ["http://localhost:8000"]},
            "sessions": {"secret_key": "test-secret-key-0123456789abcdef0123456789"},
            "auth": {
                "bcrypt_cost": 4,
                "pepper": "test-pepper-0123456789abcdef0123456789",
                "register_per_address_per_hour": 0,
                "verify_email": False,
            },
        }
    )


@asynccontextmanager
async def revoking(pool: asyncpg.Pool, settings: Settings) -> AsyncIterator[Revocations]:
    """One process's part in the revocation protocol, on the test's database and Redis, fresh and heard."""
    url = settings.redis.url.get_secret_value()
    bus, pipe = Bus(url), Pipe(url)
    await bus.start()
    await pipe.start()
    started = Revocations(
        pool,
        lambda: connect(settings.database),
        bus,
        pipe,
        clock=SystemClock(),
        node=uuid.uuid4().hex,
        policy=settings.sessions.policy,
        prefix=settings.redis.prefix,
        secrets=[settings.sessions.secret_key.get_secret_value()],
    )
    await started.start()
    yield started
    await started.close()
    await bus.close()
    await pipe.close()


@pytest.fixture
async def revocations(pool: asyncpg.Pool, settings: Settings) -> AsyncIterator[Revocations]:
    async with revoking(pool, settings) as started:
        yield started


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands still until the test moves it."""
    return FakeClock()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where Chromium or Node is absent their tests skip with a reason; under CI=true they fail instead."""
    if os.environ.get("CI") == "true":
        return
    absent = {
        "browser": None if shutil.which("chromium") else "no chromium on this machine",
        "node": None if shutil.which("node") else "no node on this machine",
    }
    for item in items:
        for name, reason in absent.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))
