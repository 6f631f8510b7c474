"""How often a password may be guessed: the same rules in Redis and, more strictly, without it."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis

from auth.throttle import LOCAL, SHARED, LocalCounters, Names, RedisCounters, Throttle, Turns
from config.clock import FakeClock, SystemClock
from config.http import Problem
from config.redis import Pipe

SECRET = b"a master secret of more than 32 bytes"
HOME, ELSEWHERE = "192.0.2.1", "198.51.100.7"


@pytest.fixture
async def pipe(redis_url: str) -> AsyncIterator[Pipe]:
    pipe = Pipe(redis_url)
    await pipe.start()
    yield pipe
    await pipe.close()


@pytest.fixture
async def raw(redis_url: str) -> AsyncIterator["redis.Redis"]:
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    yield client
    await client.aclose()


@pytest.fixture
def throttle(pipe: Pipe) -> Throttle:
    return Throttle(pipe, prefix="wardgate", secret=SECRET, clock=SystemClock())


async def guess(
    throttle: Throttle, address: str = HOME, account: str = "a@example.org", *, right: bool = False, device: str = ""
) -> int:
    """0 when the guess was let through, else for how long it is refused."""
    try:
        async with throttle.attempt(address, account, device=device) as attempt:
            if right:
                await attempt.succeeded()
    except Problem as problem:
        return problem.details.retry_after if problem.code == "too_many_attempts" else -1
    return 0


async def passed(raw: "redis.Redis", seconds: float) -> None:
    """As if so much time had gone by: what Redis remembers is moved into the past."""
    for name in await raw.keys("*"):
        left = await raw.pttl(name)
        if await raw.type(name) == "hash":
            until = float(await raw.hget(name, "until") or 0)
            await raw.hset(name, "until", f"{until - seconds * 1000:.0f}")
        elif ":known:" not in name:
            await raw.set(name, f"{float(await raw.get(name) or 0) - seconds * 1000:.0f}", px=max(1, left))


async def test_five_are_free_then_the_wait_doubles_up_to_fifteen_minutes(
    throttle: Throttle, raw: "redis.Redis"
) -> None:
    assert [await guess(throttle) for _ in range(5)] == [0] * 5
    waits = []
    for _ in range(14):
        wait = await guess(throttle)
        assert await guess(throttle) in (wait, wait - 1)  # being refused costs nothing more
        waits.append(wait)
        await passed(raw, wait)
        await raw.delete(*await raw.keys("*:account:*"))
        assert await guess(throttle) == 0
    assert waits[:9] == [pytest.approx(2**n, abs=1) for n in range(9)]
    assert waits[-3:] == [pytest.approx(900, abs=1)] * 3


async def test_sec_11_fifty_parallel_wrong_guesses_count_as_fifty(pipe: Pipe) -> None:
    """From several processes at once, so that nothing but the script keeps count: five pass, forty-five do not."""
    processes = [Throttle(pipe, prefix="wardgate", secret=SECRET, clock=SystemClock()) for _ in range(50)]
    answers = await asyncio.gather(*(guess(process) for process in processes))
    assert sum(answer == 0 for answer in answers) == SHARED.free


async def test_fifty_parallel_right_passwords_all_pass(throttle: Throttle) -> None:
    assert await asyncio.gather(*(guess(throttle, right=True) for _ in range(50))) == [0] * 50


async def test_a_success_begins_anew(throttle: Throttle) -> None:
    for _ in range(4):
        await guess(throttle)
    assert await guess(throttle, right=True) == 0
    assert [await guess(throttle) for _ in range(5)] == [0] * 5
    assert await guess(throttle) > 0


async def test_successes_do_not_eat_the_budget_of_an_address(throttle: Throttle, raw: "redis.Redis") -> None:
    for n in range(SHARED.address_burst * 2):
        assert await guess(throttle, account=f"{n}@example.org", right=True) == 0
    assert await raw.keys("*:address:*") == []


async def test_an_address_that_tries_many_accounts_is_slowed_down(throttle: Throttle) -> None:
    answers = [await guess(throttle, account=f"{n}@example.org") for n in range(SHARED.address_burst + 1)]
    assert answers[:-1] == [0] * SHARED.address_burst
    assert answers[-1] > 0
    assert await guess(throttle, ELSEWHERE, "0@example.org") == 0


async def test_a_whole_ipv6_network_is_one_address(throttle: Throttle) -> None:
    for n in range(5):
        await guess(throttle, f"2001:db8::{n}")
    assert await guess(throttle, "2001:db8::ffff") > 0
    assert await guess(throttle, "2001:db8:0:1::1") == 0


async def test_a_crowd_cannot_guess_together_and_does_not_lock_the_owner_out(throttle: Throttle) -> None:
    assert await guess(throttle, HOME, right=True) == 0  # known from here on
    crowd = [await guess(throttle, f"203.0.113.{n}") for n in range(SHARED.account_burst + 5)]
    assert crowd == [0] * SHARED.account_burst + [pytest.approx(180, abs=2)] * 5
    assert await guess(throttle, HOME, right=True) == 0
    assert await guess(throttle, ELSEWHERE) > 0


async def test_a_known_device_has_a_budget_of_its_own(throttle: Throttle, raw: "redis.Redis") -> None:
    """Neither strangers at its address nor a crowd elsewhere use it up; nor does it use up theirs."""
    for n in range(SHARED.account_burst + 5):
        await guess(throttle, f"203.0.113.{n}")
    for n in range(SHARED.address_burst + 5):
        await guess(throttle, HOME, f"{n}@example.org")
    await guess(throttle, HOME)
    before = {name: await raw.get(name) for name in await raw.keys("*:a*:*")}
    assert [await guess(throttle, HOME, device="d") for _ in range(SHARED.free)] == [0] * SHARED.free
    assert await guess(throttle, HOME, device="d") > 0
    assert await guess(throttle, HOME, device="e", right=True) == 0
    assert {name: await raw.get(name) for name in await raw.keys("*:a*:*")} == before


async def test_what_a_known_device_did_not_take_is_not_given_back(throttle: Throttle, raw: "redis.Redis") -> None:
    for n in range(3):
        await guess(throttle, f"203.0.113.{n}")
    before = {name: await raw.get(name) for name in await raw.keys("*:a*:*")}
    assert await guess(throttle, "203.0.113.0", right=True, device="d") == 0
    with pytest.raises(Problem, match="busy"):
        async with throttle.attempt("203.0.113.0", "a@example.org", device="d"):
            raise Problem("busy")
    assert {name: await raw.get(name) for name in await raw.keys("*:a*:*")} == before


async def test_busy_is_not_counted_but_a_cancelled_guess_is(throttle: Throttle) -> None:
    for _ in range(20):
        with pytest.raises(Problem, match="busy"):
            async with throttle.attempt(HOME, "a@example.org"):
                raise Problem("busy")
    for _ in range(5):
        entered = asyncio.Event()

        async def hang(entered: asyncio.Event = entered) -> None:
            async with throttle.attempt(HOME, "a@example.org"):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(hang())
        await asyncio.wait_for(entered.wait(), 5)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await guess(throttle) > 0


async def test_what_failed_after_a_right_password_gives_nothing_back_twice(
    throttle: Throttle, raw: "redis.Redis"
) -> None:
    for _ in range(3):
        await guess(throttle)

    async def fail_later() -> None:
        async with throttle.attempt(HOME, "b@example.org") as attempt:
            await attempt.succeeded()
            raise Problem("unavailable")

    with pytest.raises(Problem, match="unavailable"):
        await fail_later()
    [address] = await raw.keys("*:address:*")
    now, _ = await raw.time()
    left = float(await raw.get(address) or 0) / 1000 - now
    assert left == pytest.approx(3 * SHARED.address_interval, abs=1.5)


async def test_no_address_and_no_account_stands_in_redis(throttle: Throttle, raw: "redis.Redis") -> None:
    await guess(throttle, HOME, "someone@example.org")
    await guess(throttle, HOME, "other@example.org", right=True)
    await throttle.make("register", HOME, 5)
    await guess(throttle, HOME, "someone@example.org", device="a device")
    names = await raw.keys("*")
    assert len(names) == 6
    for name in names:
        assert re.fullmatch(
            r"wardgate:\{throttle\}:(address|pair|device|account|known|register):[0-9a-f]{32}", str(name)
        )
        assert await raw.pttl(name) > 0
    other = Throttle(throttle._shared._pipe, prefix="wardgate", secret=SECRET + b"x", clock=SystemClock())
    await guess(other, HOME, "someone@example.org")
    assert len(await raw.keys("*")) > len(names)  # another key, other names


async def test_registrations_by_address(throttle: Throttle) -> None:
    for _ in range(20):
        await throttle.make("register", HOME, 20)
    with pytest.raises(Problem) as caught:
        await throttle.make("register", HOME, 20)
    assert caught.value.code == "too_many_attempts"
    assert caught.value.details.retry_after == pytest.approx(180, abs=2)
    await throttle.make("register", ELSEWHERE, 20)
    for _ in range(100):
        await throttle.make("register", HOME, 0)


# -- without Redis


@pytest.fixture
async def alone(redis_url: str, clock: FakeClock) -> Throttle:
    """A process that has no Redis."""
    return Throttle(Pipe(redis_url), prefix="wardgate", secret=SECRET, clock=clock)


async def test_without_redis_the_limit_is_stricter_and_never_open(alone: Throttle, clock: FakeClock) -> None:
    assert [await guess(alone) for _ in range(LOCAL.free)] == [0] * LOCAL.free
    for n in range(6):
        assert await guess(alone) == 2**n + 1
        clock.advance(2**n)
        assert await guess(alone) == 0
    assert await guess(alone, ELSEWHERE, right=True) == 0


async def test_without_redis_a_known_device_still_has_its_own_smaller_budget(alone: Throttle) -> None:
    for n in range(LOCAL.account_burst + 5):
        await guess(alone, f"203.0.113.{n}")
    assert await guess(alone, HOME) > 0
    assert [await guess(alone, HOME, device="d") for _ in range(LOCAL.free)] == [0] * LOCAL.free
    assert await guess(alone, HOME, device="d") > 0
    assert await guess(alone, HOME, device="e", right=True) == 0
    assert await guess(alone, HOME) > 0


async def test_without_redis_registration_is_limited_too(alone: Throttle) -> None:
    for _ in range(5):
        await alone.make("register", HOME, 20)
    with pytest.raises(Problem):
        await alone.make("register", HOME, 20)


async def test_redis_is_left_alone_for_a_second_after_it_failed(
    throttle: Throttle, alone: Throttle, clock: FakeClock, pipe: Pipe
) -> None:
    await guess(alone)
    alone._shared = RedisCounters(pipe, SHARED)
    assert [await guess(alone) for _ in range(LOCAL.free - 1)] == [0] * (LOCAL.free - 1)
    assert await guess(alone) > 0
    clock.advance(1.0)
    assert [await guess(alone) for _ in range(SHARED.free)] == [0] * SHARED.free


async def test_f2_a_script_that_is_late_does_not_count(pipe: Pipe, raw: "redis.Redis") -> None:
    counters = RedisCounters(pipe, SHARED)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(pipe, "deadline", lambda: 1)
    with monkey.context(), pytest.raises(Exception, match="LATE"):
        await counters.take(Names("a", "b", "c", "d", "e"))
    monkey.undo()
    assert await raw.keys("*") == []


async def test_f3_a_script_that_was_forgotten_is_sent_again(pipe: Pipe, raw: "redis.Redis") -> None:
    counters = RedisCounters(pipe, SHARED)
    await counters.take(Names("a", "b", "c", "d", "e"))
    await raw.script_flush()
    await counters.take(Names("a", "b", "c", "d", "e"))
    assert await raw.hget("b", "count") == "2"


async def test_local_counters_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auth.throttle.LOCAL_ENTRIES", 10)
    counters = LocalCounters(LOCAL, now=lambda: 0.0)
    for n in range(30):
        await counters.take(Names(f"a{n}", f"p{n}", f"u{n}", f"k{n}", f"b{n}"))
    assert (len(counters._buckets), len(counters._pairs)) == (10, 10)


# -- turns


async def test_turns_are_taken_in_order_and_bounded() -> None:
    turns, order, go = Turns(limit=3), list[str](), asyncio.Event()

    async def wait(name: str, turn: str) -> None:
        async with turns.turn(turn):
            order.append(name)
            await go.wait()

    tasks = [asyncio.create_task(wait(name, turn)) for name, turn in (("a1", "a"), ("a2", "a"), ("b1", "b"))]
    await asyncio.sleep(0)
    assert order == ["a1", "b1"]
    with pytest.raises(Problem, match="busy"):
        await wait("a3", "a")
    tasks[1].cancel()
    await asyncio.sleep(0)
    go.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert turns._locks == {}
    assert turns._count == 0
