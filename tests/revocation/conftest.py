"""Clusters of processes, and servers that a test may kill."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from config import migrate
from config.servers import Guardian, Place, Postgres, Valkey, free_port
from config.settings import Settings
from tests.revocation.cluster import Cluster


@pytest.fixture
async def cluster(settings: Settings) -> AsyncIterator[Cluster]:
    """Processes with L = 1 s and d = 0.1 s, on the test's database and Redis."""
    cluster = Cluster(settings)
    await cluster.prepare()
    yield cluster
    await cluster.close()


@pytest.fixture
def own_place(guardian: Guardian) -> Iterator[Place]:
    """A folder for servers of this test alone."""
    folder = Path(tempfile.mkdtemp(prefix="wardgate-own-"))
    folder.chmod(0o711)
    place = Place.at(folder)
    yield place
    place.remove()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def own_valkey(own_place: Place, guardian: Guardian) -> Iterator[Valkey]:
    """A Valkey that may be killed; it comes back on the same port."""
    server = Valkey(own_place, port=free_port(), guardian=guardian)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_postgres(own_place: Place, guardian: Guardian) -> Iterator[Postgres]:
    """A PostgreSQL that may be killed; it comes back on the same port."""
    server = Postgres(own_place, port=free_port(), durable=False, guardian=guardian)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def own_redis(settings: Settings, own_valkey: Valkey) -> AsyncIterator[Cluster]:
    """A cluster whose Redis may be killed."""
    cluster = Cluster(_with(settings, redis=own_valkey.url))
    await cluster.prepare()
    yield cluster
    await cluster.close()


@pytest.fixture
async def own_database(settings: Settings, own_postgres: Postgres) -> AsyncIterator[Cluster]:
    """A cluster whose PostgreSQL may be killed, stopped, and put back to an earlier state."""
    await migrate.apply(own_postgres.url)
    cluster = Cluster(_with(settings, database=own_postgres.url))
    await cluster.prepare()
    yield cluster
    await cluster.close()


def _with(settings: Settings, *, database: str = "", redis: str = "") -> Settings:
    values = settings.model_dump()
    values["database"] = {"url": database or settings.database.url}
    values["redis"] = {"url": redis or settings.redis.url}
    return Settings.model_validate(values)
