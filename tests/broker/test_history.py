"""Streams on a real Valkey: reading in both directions, recovering in one step, forgetting."""

import asyncio
from typing import Any

import pytest

from config.redis import Bus, Pipe, Unavailable
from gateway.broker import Broker
from gateway.history import History, WrongEpoch
from gateway.keys import Keys
from gateway.protocol.commands import Publication, StreamPosition

PREFIX = "test"
KEYS = Keys(PREFIX)


@pytest.fixture
def broker(pipe: Pipe, bus: Bus) -> Broker:
    return Broker(pipe, bus, prefix=PREFIX, node="1" * 32)


@pytest.fixture
def history(pipe: Pipe) -> History:
    return History(pipe, prefix=PREFIX, maximum=300)


async def fill(broker: Broker, count: int, size: int = 100) -> str:
    positions = await asyncio.gather(
        *(broker.publish("c", b"%d" % n, history_size=size, history_ttl=60, meta_ttl=600) for n in range(1, count + 1))
    )
    assert positions[-1]
    return positions[-1].epoch


def offsets(publications: list[Publication]) -> list[int]:
    return [publication.offset for publication in publications]


async def test_a_stream_that_is_not_there_begins(history: History, pipe: Pipe) -> None:
    first = await history.read("c", limit=-1, meta_ttl=60)
    assert (first.publications, first.offset) == ([], 0)
    assert first.epoch
    assert (await history.read("c")).epoch == first.epoch
    assert 0 < await pipe.call("PTTL", KEYS.channel("c").meta) <= 60_000
    assert (await history.read("d")).epoch != first.epoch


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ({}, []),
        ({"limit": 0}, []),
        ({"limit": 2}, [1, 2]),
        ({"limit": -1}, list(range(1, 11))),
        ({"limit": 2, "reverse": True}, [10, 9]),
        ({"limit": -1, "reverse": True}, list(range(10, 0, -1))),
        ({"limit": 3, "since": 4}, [5, 6, 7]),
        ({"limit": -1, "since": 9}, [10]),
        ({"limit": -1, "since": 10}, []),
        ({"limit": -1, "since": 99}, []),
        ({"limit": -1, "since": 0}, list(range(1, 11))),
        ({"limit": 3, "since": 4, "reverse": True}, [3, 2, 1]),
        ({"limit": 2, "since": 4, "reverse": True}, [3, 2]),
        ({"limit": 5, "since": 1, "reverse": True}, []),
        ({"limit": 5, "since": 0, "reverse": True}, []),
    ],
)
async def test_reading(broker: Broker, history: History, asked: dict[str, Any], got: list[int]) -> None:
    epoch = await fill(broker, 10)
    for since_epoch in (epoch, ""):
        options = dict(asked)
        if "since" in options:
            options["since"] = StreamPosition(options["since"], since_epoch)
        found = await history.read("c", **options)
        assert offsets(found.publications) == got
        assert [p.data for p in found.publications] == [b"%d" % n for n in got]
        assert (found.offset, found.epoch) == (10, epoch)


async def test_another_epoch_is_an_error_that_says_where_the_stream_is(broker: Broker, history: History) -> None:
    epoch = await fill(broker, 3)
    with pytest.raises(WrongEpoch) as caught:
        await history.read("c", limit=5, since=StreamPosition(1, "another"))
    assert caught.value.position == StreamPosition(3, epoch)


async def test_a_read_has_its_maximum(broker: Broker, history: History, pipe: Pipe) -> None:
    await fill(broker, 20)
    small = History(pipe, prefix=PREFIX, maximum=5)
    for limit in (-1, 5, 6, 1000):
        assert offsets((await small.read("c", limit=limit)).publications) == [1, 2, 3, 4, 5]


async def test_what_was_missed_is_all_or_nothing(broker: Broker, history: History) -> None:
    epoch = await fill(broker, 10)
    all_of_it = await history.missed("c", StreamPosition(7, epoch), limit=3)
    assert offsets(all_of_it.publications) == [8, 9, 10]
    too_many = await history.missed("c", StreamPosition(6, epoch), limit=3)
    assert (too_many.publications, too_many.offset, too_many.epoch) == ([], 10, epoch)
    nothing = await history.missed("c", StreamPosition(10, epoch), limit=3)
    assert (nothing.publications, nothing.offset) == ([], 10)
    wrong = await history.missed("c", StreamPosition(9, "another"), limit=3)
    assert (wrong.publications, wrong.epoch) == ([], epoch)
    whole = await history.missed("c", StreamPosition(0, ""), limit=300)
    assert offsets(whole.publications) == list(range(1, 11))


async def test_what_was_evicted_shows_as_a_gap(broker: Broker, history: History) -> None:
    epoch = await fill(broker, 10, size=4)
    found = await history.missed("c", StreamPosition(2, epoch), limit=300)
    assert offsets(found.publications) == [7, 8, 9, 10]


async def test_remove_keeps_offset_and_epoch(broker: Broker, history: History) -> None:
    epoch = await fill(broker, 3)
    await history.remove("c")
    found = await history.read("c", limit=-1)
    assert (found.publications, found.offset, found.epoch) == ([], 3, epoch)
    await history.remove("never")
    after = await broker.publish("c", b"4", history_size=5, history_ttl=60)
    assert after == StreamPosition(4, epoch)


async def test_tops_of_many_channels(broker: Broker, history: History) -> None:
    epoch = await fill(broker, 3)
    channels = {f"n{number}": 60.0 for number in range(1200)} | {"c": 60.0}
    tops = await history.tops(channels)
    assert tops.keys() == channels.keys()
    assert tops["c"] == StreamPosition(3, epoch)
    assert all(tops[name].offset == 0 for name in channels if name != "c")
    assert await history.tops({}) == {}


async def test_one_top_that_fails_is_left_out(broker: Broker, history: History, pipe: Pipe) -> None:
    await fill(broker, 1)
    await pipe.call("SET", KEYS.channel("broken").meta, "x")
    assert (await history.tops({"c": 0.0, "broken": 0.0})).keys() == {"c"}
    with pytest.raises(Unavailable, match="WRONGTYPE"):
        await history.read("broken")


async def test_what_a_newer_version_wrote_is_missing_and_nothing_worse(
    broker: Broker, history: History, pipe: Pipe
) -> None:
    epoch = await fill(broker, 1)
    names = KEYS.channel("c")
    await pipe.call("HINCRBY", names.meta, "o", 2)
    await pipe.call("XADD", names.stream, "2", b"\x63", b"from the future")
    await pipe.call("XADD", names.stream, "3", b"\x01", b"broken")
    await fill(broker, 1)
    found = await history.missed("c", StreamPosition(0, epoch), limit=10)
    assert offsets(found.publications) == [1, 4]
    assert found.offset == 4
    assert history.malformed == 2


async def test_script_flush_is_not_noticed(broker: Broker, history: History, pipe: Pipe) -> None:
    await fill(broker, 3)
    await pipe.call("SCRIPT", "FLUSH")
    assert (await history.tops({"c": 0.0}))["c"].offset == 3
