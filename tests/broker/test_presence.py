"""Presence on a real Valkey."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from config.redis import Pipe, Refused, Unavailable
from gateway.keys import Keys
from gateway.presence import Presence
from gateway.protocol.commands import ClientInfo
from tests.broker.conftest import Server, Signal

PREFIX = "test"
KEYS = Keys(PREFIX)
OpenPipe = Callable[..., Awaitable[Pipe]]


def person(client: str, user: str = "u") -> ClientInfo:
    return ClientInfo(user, client, b'{"name": "A"}', b"\x00\xff")


@pytest.fixture
def presence(pipe: Pipe) -> Presence:
    return Presence(pipe, prefix=PREFIX)


async def pass_time(pipe: Pipe, channel: str, client: str) -> None:
    """Let a client's time be over."""
    await pipe.call("ZADD", KEYS.channel(channel).presence_expiry, 1, client)


async def test_who_comes_is_there_and_who_goes_is_not(presence: Presence) -> None:
    assert await presence.get("c") == {}
    assert await presence.stats("c") == (0, 0)
    people = {f"c{n}": person(f"c{n}", f"u{n % 2}") for n in range(5)}
    await asyncio.gather(*(presence.add("c", client, info) for client, info in people.items()))
    assert await presence.get("c") == people
    assert await presence.stats("c") == (5, 2)
    await presence.remove("c", "c0")
    del people["c0"]
    assert await presence.get("c") == people
    await presence.remove("c", "c0")
    await presence.remove_all({"c": ["c2", "c4"], "other": ["x"]})
    assert (await presence.get("c")).keys() == {"c1", "c3"}
    assert await presence.stats("c") == (2, 1)


async def test_the_last_one_leaves_nothing_behind(presence: Presence, pipe: Pipe) -> None:
    await presence.add("c", "c1", person("c1"))
    await presence.remove("c", "c1")
    assert await pipe.call("DBSIZE") == 0


async def test_coming_twice_is_being_there_once_and_the_last_info_counts(presence: Presence) -> None:
    await presence.add("c", "c1", person("c1", "old"))
    await presence.add("c", "c1", person("c1", "new"))
    assert await presence.get("c") == {"c1": person("c1", "new")}
    assert await presence.stats("c") == (1, 1)


async def test_any_user_and_any_channel(presence: Presence) -> None:
    for user in ("", "ж" * 50, "{u}", "a\x00b"):
        await presence.add("{c}", f"of {user}", person(f"of {user}", user))
    assert {info.user for info in (await presence.get("{c}")).values()} == {"", "ж" * 50, "{u}", "a\x00b"}
    assert await presence.stats("{c}") == (4, 4)


async def test_whose_time_is_over_is_gone_from_everything(presence: Presence, pipe: Pipe) -> None:
    await presence.add("c", "dead", person("dead", "a"))
    await presence.add("c", "alive", person("alive", "b"))
    await pass_time(pipe, "c", "dead")
    assert await presence.stats("c") == (1, 1)
    assert (await presence.get("c")).keys() == {"alive"}
    await pass_time(pipe, "c", "alive")
    assert await presence.get("c") == {}


async def test_the_dead_are_taken_out_by_those_who_prolong(presence: Presence, pipe: Pipe) -> None:
    await presence.add("c", "dead", person("dead"))
    await pass_time(pipe, "c", "dead")
    await presence.prolong({"c": {"alive": person("alive")}})
    assert await pipe.call("HKEYS", KEYS.channel("c").presence) == [b"alive"]


async def test_a_channel_that_nobody_prolongs_vanishes_as_a_whole(pipe: Pipe) -> None:
    presence = Presence(pipe, prefix=PREFIX, ttl=0.03)
    await presence.add("c", "c1", person("c1"))
    async with asyncio.timeout(5):
        while await pipe.call("DBSIZE"):
            pass
    assert await presence.stats("c") == (0, 0)


async def test_prolonging_keeps_those_that_are_there_and_brings_back_the_others(presence: Presence, pipe: Pipe) -> None:
    people = {f"c{n}": person(f"c{n}", f"u{n}") for n in range(1200)}
    await presence.prolong({"c": people, "d": {"x": person("x")}})
    assert await presence.get("c") == people
    await pass_time(pipe, "c", "c7")
    await pipe.call("HDEL", KEYS.channel("c").presence, "c8")
    await presence.prolong({"c": people})
    assert await presence.get("c") == people
    assert (await presence.stats("c")).num_clients == 1200
    scores = await pipe.call("ZRANGE", KEYS.channel("c").presence_expiry, 0, 0, "WITHSCORES")
    assert scores[0][1] > pipe.deadline(50)


async def test_flushall_is_repaired_by_the_next_prolonging(presence: Presence, pipe: Pipe) -> None:
    people = {"c1": person("c1"), "c2": person("c2")}
    await presence.prolong({"c": people})
    await pipe.call("FLUSHALL")
    await pipe.call("SCRIPT", "FLUSH")
    await presence.prolong({"c": people})
    assert await presence.get("c") == people
    assert await presence.stats("c") == (2, 1)


async def test_counts_are_right_after_anything(presence: Presence, pipe: Pipe) -> None:
    """A model beside it: random comings, goings, prolongings and deaths."""
    chance, there = random.Random(7), dict[str, ClientInfo]()
    for _ in range(400):
        client = f"c{chance.randrange(12)}"
        match chance.randrange(4):
            case 0:
                there[client] = person(client, f"u{chance.randrange(4)}")
                await presence.add("c", client, there[client])
            case 1:
                there.pop(client, None)
                await presence.remove("c", client)
            case 2:
                await presence.prolong({"c": there})
            case 3 if client in there:
                del there[client]
                await pass_time(pipe, "c", client)
        if chance.randrange(3) == 0:
            assert await presence.stats("c") == (len(there), len({info.user for info in there.values()}))
    assert await presence.get("c") == there


async def test_what_no_version_of_ours_wrote_is_passed_over(presence: Presence, pipe: Pipe) -> None:
    await presence.add("c", "good", person("good"))
    await pipe.call("HSET", KEYS.channel("c").presence, "bad", b"\x00\x01u\xff", "short", b"x")
    assert (await presence.get("c")).keys() == {"good"}


async def test_an_error_of_the_server_is_raised(presence: Presence, pipe: Pipe) -> None:
    await pipe.call("SET", KEYS.channel("c").presence, "x")
    for call in (presence.get("c"), presence.add("c", "x", person("x")), presence.prolong({"c": {"x": person("x")}})):
        with pytest.raises(Refused, match="WRONGTYPE"):
            await call


async def test_who_was_given_up_does_not_come_late(server: Server, open_pipe: OpenPipe) -> None:
    pipe = await open_pipe(server.url, timeout=0.3)
    presence, back = Presence(pipe, prefix=PREFIX), Signal()
    pipe.on_restored.append(back)
    server.freeze()
    for outcome in await asyncio.gather(
        presence.add("c", "x", person("x")), presence.prolong({"c": {"y": person("y")}}), return_exceptions=True
    ):
        assert isinstance(outcome, Unavailable)
    server.thaw()
    await back.wait()
    assert await presence.get("c") == {}
