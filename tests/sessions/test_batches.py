"""One load for the callers of a loop turn."""

import asyncio
from collections.abc import Sequence

import pytest

from sessions.batches import Batch


class Loads:
    """Records what each load was asked for; holds them until `go` where a test wants that."""

    def __init__(self, *, held: bool = False) -> None:
        self.asked: list[list[str]] = []
        self.go = asyncio.Event()
        self.begun = asyncio.Event()
        if not held:
            self.go.set()

    async def __call__(self, keys: Sequence[str]) -> dict[str, str]:
        self.asked.append(list(keys))
        self.begun.set()
        await self.go.wait()
        return {key: key.upper() for key in keys if key != "missing"}


async def test_callers_of_one_turn_share_a_load() -> None:
    loads = Loads()
    batch = Batch[str, str](loads)
    assert list(await asyncio.gather(batch("a"), batch("b"), batch("a"), batch("missing"))) == ["A", "B", "A", None]
    assert loads.asked == [["a", "b", "missing"]]


async def test_who_asks_during_a_load_gets_one_that_began_later() -> None:
    loads = Loads(held=True)
    batch = Batch[str, str](loads)
    first = asyncio.ensure_future(batch("a"))
    await loads.begun.wait()
    second, third = asyncio.ensure_future(batch("a")), asyncio.ensure_future(batch("b"))
    await asyncio.sleep(0)
    assert loads.asked == [["a"]]
    loads.go.set()
    assert list(await asyncio.gather(first, second, third)) == ["A", "A", "B"]
    assert loads.asked == [["a"], ["a", "b"]]


async def test_a_load_has_a_bound() -> None:
    loads = Loads()
    batch = Batch[str, str](loads, most=2)
    await asyncio.gather(*(batch(key) for key in "abcde"))
    assert [len(keys) for keys in loads.asked] == [2, 2, 1]


async def test_a_failure_reaches_every_caller_and_the_next_load_works() -> None:
    failing = True

    async def load(keys: Sequence[str]) -> dict[str, str]:
        if failing:
            raise OSError("away")
        return dict.fromkeys(keys, "there")

    batch = Batch[str, str](load)
    results = await asyncio.gather(batch("a"), batch("b"), return_exceptions=True)
    assert all(isinstance(result, OSError) for result in results)
    failing = False
    assert await batch("a") == "there"


async def test_a_cancelled_caller_takes_nobody_with_it() -> None:
    loads = Loads(held=True)
    batch = Batch[str, str](loads)
    one, other = asyncio.ensure_future(batch("a")), asyncio.ensure_future(batch("a"))
    await loads.begun.wait()
    one.cancel()
    loads.go.set()
    assert await other == "A"
    with pytest.raises(asyncio.CancelledError):
        await one


async def test_closing_cancels_who_waits() -> None:
    loads = Loads(held=True)
    batch = Batch[str, str](loads)
    waiting = [asyncio.ensure_future(batch("a"))]
    await loads.begun.wait()
    waiting.append(asyncio.ensure_future(batch("b")))
    await asyncio.sleep(0)
    await batch.close()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
