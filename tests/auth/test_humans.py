"""A challenge that people solve, judged by a real verifier over HTTP: when it is asked for; it fails closed."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from auth import humans
from auth.throttle import LOCAL, PROOFS_PER_HOUR
from config.loading import SettingsError, load
from config.redis import Pipe
from config.settings import Settings, with_values
from sessions.revocations import Revocations
from sessions.service import Sessions
from tests.auth.conftest import PASSWORD, Answer, House, build
from tests.auth.test_mailbox import Person, link

AFTER = 6
SECRET, SITE_KEY = "0x-a-secret-of-the-verifier", "0x-site-key"


class Verifier:
    """Speaks siteverify: takes the proof "solved", once; says otherwise what `answers` has for it."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.answers: dict[str, Callable[[], Awaitable[web.StreamResponse]]] = {}
        app = web.Application()
        app.router.add_post("/siteverify", self._verify)
        self.server = TestServer(app)

    async def _verify(self, request: web.Request) -> web.StreamResponse:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.asked.append(form)
        if form["response"] in self.answers:
            return await self.answers[form["response"]]()
        first = [one["response"] for one in self.asked].count(form["response"]) == 1
        good = form["secret"] == SECRET and form["response"].startswith("solved") and first
        return web.json_response({"success": good, "hostname": "example.org", "error-codes": []})


@pytest.fixture
async def verifier() -> AsyncIterator[Verifier]:
    verifier = Verifier()
    await verifier.server.start_server()
    yield verifier
    await verifier.server.close()


Start = Callable[..., AbstractAsyncContextManager[House]]


@pytest.fixture
def start(
    settings: Settings, pool: asyncpg.Pool, revocations: Revocations, sessions: Sessions, pipe: Pipe, verifier: Verifier
) -> Start:
    def begin(using: Pipe = pipe, **more: Any) -> build:
        values = {
            "verify_url": str(verifier.server.make_url("/siteverify")),
            "secret": SECRET,
            "site_key": SITE_KEY,
            "provider": "turnstile",
            "after": AFTER,
            "allow_networks": ["127.0.0.0/8"],
            **more,
        }
        changed = with_values(settings, {f"auth.challenge.{name}": value for name, value in values.items()})
        return build(changed, pool, revocations, sessions, using)

    return begin


@pytest.fixture
async def house(start: Start) -> AsyncIterator[House]:
    async with start() as house:
        yield house


async def attack(house: House, email: str, times: int = AFTER) -> list[Answer]:
    """Wrong passwords for one account, each from somewhere else."""
    return [await house.login(email, "no such password", address=f"203.0.113.{n}") for n in range(times)]


async def try_with(house: House, proof: str, password: str = PASSWORD, email: str = "alice@example.org") -> Answer:
    body = {"email": email, "password": password, "mode": "token", "proof": proof}
    return await house.call("POST", "/auth/login", body, address="198.51.100.9")


async def test_sec_10_a_crowd_that_guesses_must_solve_challenges_and_locks_nobody_out(
    house: House, verifier: Verifier
) -> None:
    await house.register()
    assert [answer.code for answer in await attack(house, "alice@example.org")] == ["invalid_credentials"] * AFTER
    for proof in ("", "guessed"):
        asked = await try_with(house, proof)
        assert (asked.status, asked.code) == (403, "challenge_required")
        assert (asked.json["provider"], asked.json["site_key"]) == ("turnstile", SITE_KEY)
    assert verifier.asked == [{"secret": SECRET, "response": "guessed", "remoteip": "198.51.100.9"}]
    assert (await try_with(house, "solved", "wrong password")).code == "invalid_credentials"
    assert (await try_with(house, "solved")).code == "challenge_required", "a proof is good once: the verifier says so"
    assert (await try_with(house, "solved again")).status == 200
    # The owner is known where they had registered, and from now on here: nobody asks them.
    assert (await house.login()).status == 200
    assert (await try_with(house, "")).status == 200
    asked = await house.login(address="203.0.113.99")
    assert asked.code == "challenge_required", "what a crowd has used up is not given back by that"
    assert len(verifier.asked) == 4
    counted = house.accounts.figures()
    assert {name: counted[f"challenges_{name}"] for name in ("required", "solved", "refused", "unverified")} == {
        "required": 4,
        "solved": 2,
        "refused": 2,
        "unverified": 0,
    }


async def test_sec_07_a_challenge_is_asked_for_accounts_that_are_not_there_as_well(house: House) -> None:
    await house.register()
    told = []
    for email in ("alice@example.org", "nobody@example.org"):
        answers = [*await attack(house, email, AFTER + 2)]
        answers += [await try_with(house, f"solved {email}", "wrong password", email)]
        told.append([(a.status, a.json, a.headers.get("RateLimit-Policy")) for a in answers])
    assert told[0] == told[1]
    assert [status for status, *_ in told[0]] == [401] * AFTER + [403, 403, 401]


async def test_a_solved_challenge_lifts_no_other_limit(house: House) -> None:
    await attack(house, "nobody@example.org")
    codes = [(await try_with(house, f"solved {n}", "wrong", "nobody@example.org")).code for n in range(6)]
    assert codes == ["invalid_credentials"] * 5 + ["too_many_attempts"], "five from one address, and then a wait"


async def test_sec_10_a_solved_challenge_does_not_make_a_stranger_known(house: House) -> None:
    made = await house.register()
    await house.pool.execute("update users set failures = 100 where id = $1", made.json["user"]["id"])
    await attack(house, "alice@example.org")
    assert (await try_with(house, "solved")).code == "invalid_credentials", "the password is disabled but for its owner"


async def away() -> web.StreamResponse:
    return web.Response(status=500)


async def html() -> web.StreamResponse:
    return web.Response(text="<html>", content_type="text/html")


async def truthy() -> web.StreamResponse:
    return web.json_response({"success": "true"})


async def endless() -> web.StreamResponse:
    return web.Response(body=b'{"success": true, "x": "' + b"x" * 100_000 + b'"}')


async def elsewhere() -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": "/siteverify?"})


async def slow() -> web.StreamResponse:
    await asyncio.Event().wait()
    return web.json_response({"success": True})


async def test_a_verifier_that_does_not_say_yes_lets_nobody_through(
    house: House, verifier: Verifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.register()
    await attack(house, "alice@example.org")
    monkeypatch.setattr(humans, "TIMEOUT", 0.5)
    for answer in (away, html, truthy, endless, elsewhere, slow):
        verifier.answers = {"solved": answer}
        refused = await try_with(house, "solved")
        assert (refused.status, refused.code) == (503, "unavailable"), answer.__name__
        assert SECRET not in refused.text
    await verifier.server.close()
    refused = await try_with(house, "solved")
    assert (refused.status, refused.code, "Retry-After" in refused.headers) == (503, "unavailable", True)
    assert house.accounts.figures()["challenges_unverified"] > 0
    monkeypatch.setattr(humans, "AT_ONCE", 0)
    assert (await try_with(house, "solved")).code == "busy"
    assert (await try_with(house, "s" * 5000)).code in ("challenge_required", "invalid")


async def test_a_verifier_inside_is_asked_only_where_the_operator_says_so(start: Start, verifier: Verifier) -> None:
    async with start(allow_networks=[]) as house:
        await attack(house, "alice@example.org")
        assert (await try_with(house, "solved")).code == "unavailable"
    assert verifier.asked == []


async def test_answers_to_challenges_are_limited_by_address(house: House, verifier: Verifier) -> None:
    await attack(house, "alice@example.org")
    codes = [(await try_with(house, f"guessed {n}")).code for n in range(PROOFS_PER_HOUR + 1)]
    assert codes == ["challenge_required"] * PROOFS_PER_HOUR + ["too_many_attempts"]
    assert len(verifier.asked) == PROOFS_PER_HOUR


async def test_with_redis_away_a_challenge_is_asked_for_sooner(start: Start, redis_url: str) -> None:
    async with start(Pipe(redis_url)) as house:
        answers = await attack(house, "alice@example.org", AFTER)
        assert [a.code for a in answers] == ["invalid_credentials"] * (AFTER // 2) + ["challenge_required"] * 3
        codes = [(await try_with(house, f"solved {n}", "wrong password")).code for n in range(LOCAL.free + 1)]
        assert codes == ["invalid_credentials"] * LOCAL.free + ["too_many_attempts"]


async def test_whoever_registers_may_be_asked_too(start: Start, verifier: Verifier) -> None:
    body = {"email": "alice@example.org", "password": PASSWORD, "mode": "token"}
    async with start(on_register=True) as house:
        asked = await house.call("POST", "/auth/register", body)
        assert (asked.code, asked.json["site_key"]) == ("challenge_required", SITE_KEY)
        weak = await house.call("POST", "/auth/register", {**body, "password": "short", "proof": "solved"})
        assert (weak.code, verifier.asked) == ("invalid", []), "a proof is good once, and not spent on that"
        assert (await house.call("POST", "/auth/register", {**body, "proof": "guessed"})).code == "challenge_required"
        assert (await house.call("POST", "/auth/register", {**body, "proof": "solved"})).status == 201


def test_half_a_challenge_is_a_mistake() -> None:
    for environ, told in (
        ({"VERIFY_URL": "https://v.example/siteverify"}, "are set together"),
        ({"ON_REGISTER": "true"}, "on_register needs"),
        ({"VERIFY_URL": "v.example"}, "a URL like"),
    ):
        with pytest.raises(SettingsError, match=told):
            load(None, {f"WARDGATE_AUTH_CHALLENGE_{name}": value for name, value in environ.items()}, dev=True)
    clear = {"VERIFY_URL": "http://v.example/siteverify", "SECRET": SECRET, "SITE_KEY": SITE_KEY}
    with pytest.raises(SettingsError, match="over plain http the secret"):
        load(None, {f"WARDGATE_AUTH_CHALLENGE_{name}": value for name, value in clear.items()})


async def test_whoever_opens_the_link_of_a_registration_may_be_asked_too(
    settings: Settings,
    pool: asyncpg.Pool,
    revocations: Revocations,
    sessions: Sessions,
    pipe: Pipe,
    verifier: Verifier,
    tmp_path: Path,
) -> None:
    """Or a crowd that guesses at an address keeps its owner from having the account."""
    challenge = {"verify_url": str(verifier.server.make_url("/siteverify")), "secret": SECRET, "site_key": SITE_KEY}
    values: dict[str, Any] = {f"auth.challenge.{name}": value for name, value in challenge.items()}
    values |= {"auth.challenge.after": AFTER, "auth.challenge.allow_networks": ["127.0.0.0/8"]}
    values |= {"auth.verify_email": True, "mail.folder": str(tmp_path), "mail.sender": "no-reply@example.org"}
    values |= {"mail.verify_email_link": "https://app.example.org/#verify={token}"}
    async with build(with_values(settings, values), pool, revocations, sessions, pipe) as house:
        person = Person(house, tmp_path)
        await person.register("alice@example.org")
        token = link(await person.letter(1))
        await attack(house, "alice@example.org")
        elsewhere = {"address": "198.51.100.9"}
        assert (await person.open(token, **elsewhere)).code == "challenge_required"
        body = {"token": token, "password": PASSWORD, "proof": "solved"}
        assert (await person.post("/auth/verify-email", body, **elsewhere)).status == 204
