"""Several hosts in one URL: the one that takes writes is found, whatever the others do."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import asyncpg
import pytest
from pydantic import SecretStr

from config.database import connect, dial, hosts, open_pool
from config.settings import Database


def beside(url: str, *ports: int) -> str:
    """The URL with these ports of 127.0.0.1 before its own host."""
    login, _, place = urlsplit(url).netloc.rpartition("@")
    others = "".join(f"127.0.0.1:{port}," for port in ports)
    return url.replace(f"{login}@{place}", f"{login}@{others}{place}")


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes TCP and says nothing, like a server that was stopped."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
async def rude() -> AsyncIterator[int]:
    """A port that ends every connection, like a balancer without a server behind it."""

    def end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(end, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


def test_a_url_for_each_host() -> None:
    assert hosts("postgresql://u:p@a:1/db") == ["postgresql://u:p@a:1/db"]
    assert hosts("postgresql://u:p%2C@a:1,[::1]:2/db?sslmode=require") == [
        "postgresql://u:p%2C@a:1/db?target_session_attrs=read-write&sslmode=require",
        "postgresql://u:p%2C@[::1]:2/db?target_session_attrs=read-write&sslmode=require",
    ]
    assert "target_session_attrs=any" in hosts("postgresql://a,b/db?target_session_attrs=any")[1]


async def test_a_host_that_says_nothing_does_not_hide_the_one_behind_it(database_url: str) -> None:
    with silent() as port:
        settings = Database(url=SecretStr(beside(database_url, port)))
        async with asyncio.timeout(2.0):
            connection = await connect(settings)
            await connection.close()
            async with await open_pool(settings) as pool:
                assert await pool.fetchval("SELECT 1") == 1


async def test_a_host_that_breaks_off_does_not_hide_the_one_behind_it(database_url: str, rude: int) -> None:
    connection = await dial(beside(database_url, rude), timeout=2)
    await connection.close()


async def test_a_host_that_takes_no_writes_is_passed_over(database_url: str) -> None:
    place = urlsplit(database_url)
    both = database_url.replace(place.netloc, f"{place.netloc},{place.netloc.rpartition('@')[2]}")
    with pytest.raises(ConnectionError, match="no host takes writes"):
        await dial(both, timeout=2, server_settings={"default_transaction_read_only": "on"})


async def test_when_no_host_answers_the_last_error_is_told(rude: int) -> None:
    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        await dial(f"postgresql://u@127.0.0.1:{rude},127.0.0.1:{rude}/x", timeout=1)
