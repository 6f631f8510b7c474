"""How answers tell what is left of an address's limits, and who is not limited by address."""

import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import asyncpg
import pytest

from auth.throttle import LOCAL, SHARED
from config.redis import Pipe
from config.settings import Settings, with_values
from sessions.revocations import Revocations
from sessions.service import Sessions
from tests.auth.conftest import PASSWORD, Answer, House, build

POLICY = f'"address";q={SHARED.address_burst};w={SHARED.address_burst * SHARED.address_interval:.0f}'
OFFICE = "10.1.2.3"

Start = Callable[[Pipe], AbstractAsyncContextManager[House]]


@pytest.fixture
def start(settings: Settings, pool: asyncpg.Pool, revocations: Revocations, sessions: Sessions) -> Start:
    changed = with_values(
        settings, {"auth.rate_limit_allow": ["10.0.0.0/8", "2001:db8::/32"], "auth.register_per_address_per_hour": 20}
    )
    return lambda pipe: build(changed, pool, revocations, sessions, pipe)


@pytest.fixture
async def house(start: Start, pipe: Pipe) -> AsyncIterator[House]:
    async with start(pipe) as house:
        yield house


async def wrong(house: House, email: str = "nobody@example.org", *, address: str = "192.0.2.1") -> Answer:
    return await house.login(email, "no such password", address=address)


def fields(answer: Answer) -> tuple[str | None, str | None]:
    return answer.headers.get("RateLimit-Policy"), answer.headers.get("RateLimit")


def left(answer: Answer, policy: str = "address") -> tuple[int, int]:
    """What is left of a limit, and in how many seconds all of it is back."""
    found = re.fullmatch(rf'"{policy}";r=(\d+);t=(\d+)', answer.headers["RateLimit"])
    assert found, answer.headers["RateLimit"]
    return int(found[1]), int(found[2])


async def test_each_answer_tells_what_its_address_has_left(house: House) -> None:
    assert fields(await wrong(house)) == (POLICY, '"address";r=99;t=3')
    again = left(await wrong(house, "b@example.org"))
    assert (again[0], again[1] in (4, 5, 6)) == (98, True)
    assert fields(await wrong(house, address="192.0.2.2")) == (POLICY, '"address";r=99;t=3')
    made = await house.register()
    assert fields(made) == ('"register";q=20;w=3600', '"register";r=19;t=180')
    assert fields(await house.call("GET", "/auth/me", token=made.json["access_token"])) == (None, None)
    body = {"email": "alice@example.org", "password": PASSWORD}
    for _ in range(19):
        last = await house.call("POST", "/auth/register", body)
    assert (last.code, left(last, "register")[0]) == ("email_taken", 0)
    assert left(last, "register")[1] == pytest.approx(3590, abs=10)
    over = await house.call("POST", "/auth/register", body)
    assert (over.status, left(over, "register")[0]) == (429, 0)
    assert int(over.headers["Retry-After"]) == pytest.approx(175, abs=6)


async def test_the_fields_told_which_accounts_there_are(house: House) -> None:
    """What an account has left is told to nobody: only that it is over, as for one that is not there."""
    await house.register()
    told = []
    for n, email in enumerate(("alice@example.org", "nobody@example.org")):
        answers = [await wrong(house, email, address=f"198.51.100.{n}") for _ in range(SHARED.free + 2)]
        assert left(answers[0]) == (99, 3)
        assert left(answers[-1])[0] >= 95, "refused by the account's limit, which the address has not to do with"
        told.append([(a.status, a.headers["RateLimit-Policy"], "Retry-After" in a.headers) for a in answers])
    assert told[0] == told[1]
    assert told[0][-1] == (429, POLICY, True)


async def test_a_known_device_is_counted_by_itself_and_told_nothing(house: House) -> None:
    made = await house.register(mode="cookie")
    device = f"wardgate-device={made.cookies['wardgate-device'].value}"
    answer = await house.login("alice@example.org", "wrong", mode="cookie", headers={"Cookie": device})
    assert (answer.status, *fields(answer)) == (401, None, None)


async def test_addresses_that_the_operator_allows_are_not_limited_and_their_guesses_are(house: House) -> None:
    for n in range(SHARED.address_burst + 1):
        answer = await wrong(house, f"{n}@example.org", address=OFFICE if n % 2 else "2001:db8::1")
        assert (answer.status, *fields(answer)) == (401, None, None)
    for n in range(21):
        body = {"email": f"{n}@example.net", "password": PASSWORD, "mode": "token"}
        assert (await house.call("POST", "/auth/register", body, address=OFFICE)).status == 201
    guesses = [(await wrong(house, "target@example.org", address=OFFICE)).status for _ in range(SHARED.free + 1)]
    assert guesses == [401] * SHARED.free + [429]
    assert (await wrong(house, "target@example.org", address="11.0.0.1")).status == 401


async def test_limits_survive_a_restart(start: Start, pipe: Pipe) -> None:
    async with start(pipe) as house:
        for _ in range(SHARED.free):
            assert (await wrong(house)).status == 401
    async with start(pipe) as house:
        assert (await wrong(house)).status == 429
        assert left(await wrong(house, "b@example.org"))[0] < 99


async def test_with_redis_away_the_limits_are_stricter_and_told_as_such(start: Start, redis_url: str) -> None:
    async with start(Pipe(redis_url)) as house:
        policy, left = fields(await wrong(house))
        assert policy == f'"address";q={LOCAL.address_burst};w={LOCAL.address_burst * LOCAL.address_interval:.0f}'
        assert left == f'"address";r={LOCAL.address_burst - 1};t={LOCAL.address_interval:.0f}'
        statuses = [(await wrong(house)).status for _ in range(LOCAL.free)]
        assert statuses == [401] * (LOCAL.free - 1) + [429]
        for n in range(LOCAL.address_burst):
            assert (await wrong(house, f"{n}@example.org", address=OFFICE)).status == 401
