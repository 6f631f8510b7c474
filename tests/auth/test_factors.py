"""Second factors over HTTP: turned on, logged in with, shown again, lost, turned off; and who tries to get around."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jwt
import pyotp
import pytest

from auth.freshness import Freshness
from auth.totp import Codes
from config.clock import SystemClock
from config.http import ROUTES
from config.settings import Settings, with_values
from sessions.log import Entry
from sessions.model import Kind
from sessions.revocations import Revocations
from sessions.service import Sessions
from tests.auth.conftest import PASSWORD, Answer, House, build, secret_of, unix
from tests.revocation.cluster import until

ALICE = "alice@example.org"
HOME = "192.0.2.1"
API_KEY = "test-api-key-0123456789abcdef0123456789"


class Clock:
    """The held clock of the database, which a test moves."""

    def __init__(self, revocations: Revocations, monkeypatch: pytest.MonkeyPatch) -> None:
        self._real, self._ahead = revocations.database_now, 0.0
        monkeypatch.setattr(revocations, "database_now", self.now)

    def now(self) -> float:
        return self._real() + self._ahead

    def move(self, seconds: float) -> None:
        self._ahead += seconds


class Phone:
    """An authenticator app with one account. Each code is one that was not asked for before."""

    def __init__(self, secret: str, clock: Clock) -> None:
        self._app, self._clock, self._last = pyotp.TOTP(secret), clock, 0

    def code(self) -> str:
        step = int(self._clock.now()) // 30
        if step <= self._last:
            self._clock.move(30 * (self._last + 1 - step))
            step = int(self._clock.now()) // 30
        self._last = step
        return self._app.generate_otp(step)

    def wrong(self) -> str:
        """Six digits that are of no step nearby."""
        near = int(self._clock.now()) // 30
        right = {self._app.generate_otp(step) for step in range(near - 3, near + 4)}
        return next(code for code in ("123456", "654321", "111222", "999000") if code not in right)


@pytest.fixture
def db_clock(revocations: Revocations, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(revocations, monkeypatch)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    mail = {"mail.folder": str(tmp_path), "mail.change_email_link": "https://example.org/#{token}"}
    values = {"auth.second_factor_roles": ["admin"], "auth.trust_device_for": "30d"}
    return with_values(settings, {**values, **mail})


@pytest.fixture
async def house(
    db_clock: Clock, settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any
) -> AsyncIterator[House]:
    async with build(settings, pool, revocations, sessions, pipe) as house:
        yield house


class Alice:
    """A person with a second factor, the session that it was turned on in, and her recovery codes."""

    def __init__(self, house: House, phone: Phone, made: Answer, on: Answer, mode: str) -> None:
        self.house, self.phone, self.id = house, phone, made.json["user"]["id"]
        self.sid = made.json["session"]["sid"]
        self.recovery: list[str] = on.json["recovery_codes"]
        self.old = {"cookie": secret_of(made)} if mode == "cookie" else {"token": made.json["access_token"]}
        self.by = {"cookie": secret_of(on)} if mode == "cookie" else {"token": on.json["access_token"]}

    async def challenge(self, **more: Any) -> str:
        answer = await self.house.login(ALICE, **more)
        assert (answer.status, answer.code) == (401, "second_factor_required"), answer.text
        assert set(answer.json) == {"type", "title", "status", "code", "challenge", "factors"}
        assert not answer.cookies
        return str(answer.json["challenge"])

    async def finish(self, challenge: str, code: str, mode: str = "token", **more: Any) -> Answer:
        body = {"challenge": challenge, "code": code, "mode": mode}
        return await self.house.call("POST", "/auth/login/factor", body, **more)

    async def login(self, **more: Any) -> Answer:
        answer = await self.finish(await self.challenge(), self.phone.code(), **more)
        assert answer.status == 200, answer.text
        return answer

    async def step_up(self, body: Any, **more: Any) -> Answer:
        return await self.house.call("POST", "/auth/step-up", body, **(more or self.by))

    async def state(self, **more: Any) -> Any:
        answer = await self.house.call("GET", "/auth/factors", **(more or self.by))
        return answer.json

    async def sessions(self) -> int:
        return int(await self.house.pool.fetchval("select count(*) from sessions where subject = $1", self.id))


async def turn_on(house: House, clock: Clock, made: Answer, mode: str) -> tuple[Phone, Answer]:
    by = {"cookie": secret_of(made)} if mode == "cookie" else {"token": made.json["access_token"]}
    begun = await house.call("POST", "/auth/totp", {}, **by)
    assert begun.status == 200, begun.text
    phone = Phone(begun.json["secret"], clock)
    on = await house.call("POST", "/auth/totp/confirm", {"code": phone.code()}, **by)
    assert on.status == 200, on.text
    return phone, on


async def alice(house: House, clock: Clock, mode: str = "token") -> Alice:
    made = await house.register(ALICE, mode=mode)
    phone, on = await turn_on(house, clock, made, mode)
    return Alice(house, phone, made, on, mode)


@asynccontextmanager
async def elsewhere(settings: Settings, pool: Any, revocations: Any, pipe: Any) -> AsyncIterator[House]:
    """A house whose sessions have a cache of their own."""
    sessions = Sessions(pool, revocations, settings.sessions, clock=SystemClock())
    await sessions.start()
    async with build(settings, pool, revocations, sessions, pipe) as house:
        yield house
    await sessions.close()


def letters(folder: Path) -> str:
    return "".join(file.read_text() for file in folder.glob("*.eml"))


async def forget_pairs(house: House) -> None:
    """As if the waits between tries were over."""
    pipe = house.accounts.people._throttle._shared._pipe
    for kind in ("pair", "device", "account", "address"):
        for name in await pipe.call("KEYS", f"wardgate:{{throttle}}:{kind}:*"):
            await pipe.call("DEL", name)


# -- on


async def test_it_is_on_once_its_first_code_has_come_back(house: House, db_clock: Clock) -> None:
    made = await house.register(ALICE)
    token = made.json["access_token"]
    begun = await house.call("POST", "/auth/totp", {}, token=token)
    uri = begun.json["uri"]
    assert uri.startswith("otpauth://totp/Wardgate:alice%40example.org?")
    assert pyotp.parse_uri(uri).secret == begun.json["secret"]
    assert ElementTree.fromstring(begun.json["qr"]).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314 - ours
    assert "style" not in begun.json["qr"]
    assert (await house.login(ALICE)).status == 200  # begun is not on
    phone = Phone(begun.json["secret"], db_clock)
    wrong = await house.call("POST", "/auth/totp/confirm", {"code": phone.wrong()}, token=token)
    assert (wrong.status, wrong.code) == (401, "invalid_credentials")
    on = await house.call("POST", "/auth/totp/confirm", {"code": phone.code()}, token=token)
    assert len(set(on.json["recovery_codes"])) == 10
    assert on.json["session"]["sid"] == made.json["session"]["sid"]
    again = await house.call("POST", "/auth/totp/confirm", {"code": phone.code()}, token=token)
    assert again.code == "invalid_credentials"
    assert (await house.call("POST", "/auth/totp", {}, token=token)).code == "forbidden"
    state = (await house.call("GET", "/auth/factors", token=token)).json
    assert (state["totp"], state["recovery_codes"], state["aal"]) == (True, 10, 2)
    actions = await house.pool.fetch("select action from audit where action like 'user.factor%'")
    assert [row["action"] for row in actions] == ["user.factor_added"]


async def test_sec_16_a_second_factor_is_turned_on_by_a_fresh_login_only_and_its_owner_is_told(
    house: House, db_clock: Clock, tmp_path: Path
) -> None:
    made = await house.register(ALICE, mode="cookie")
    db_clock.move(16 * 60)
    assert (await house.call("POST", "/auth/totp", {}, cookie=secret_of(made))).code == "step_up_required"
    again = await house.call("POST", "/auth/step-up", {"password": PASSWORD}, cookie=secret_of(made))
    assert again.status == 200, again.text
    await turn_on(house, db_clock, again, "cookie")
    await until(lambda: letters(tmp_path) != "")
    assert "A second factor was turned on" in letters(tmp_path)


async def test_guests_have_no_second_factor(house: House, db_clock: Clock) -> None:
    token = (await house.register(ALICE)).json["access_token"]
    await house.pool.execute("delete from users")
    assert (await house.call("POST", "/auth/totp", {}, token=token)).code == "forbidden"
    assert (await house.call("POST", "/auth/step-up", {"password": PASSWORD}, token=token)).code == "forbidden"


# -- logging in


async def test_a_right_password_is_half_a_login_and_opens_no_session(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock)
    before = await me.sessions()
    challenge = await me.challenge()
    assert await me.sessions() == before
    assert await house.pool.fetchval("select failures from users") == 0
    done = await me.finish(challenge, me.phone.code())
    assert done.status == 200
    assert await me.sessions() == before + 1
    claims = jwt.decode(done.json["access_token"], options={"verify_signature": False})
    assert (claims["aal"], claims["sid"]) == (2, done.json["session"]["sid"])
    assert abs(claims["auth_time"] - db_clock.now()) < 30


async def test_a_login_with_two_factors_ends_as_any_other(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock, "cookie")
    done = await me.finish(await me.challenge(mode="cookie"), me.phone.code(), "cookie", cookie=me.by["cookie"])
    assert (done.status, set(done.json)) == (200, {"user", "session"})
    assert done.cookies["wardgate-device"].value
    assert (await house.call("GET", "/auth/me", cookie=me.by["cookie"])).code == "session_ended"  # it was replaced
    assert (await house.call("GET", "/auth/me", cookie=secret_of(done))).status == 200
    foreign = await me.finish(await me.challenge(), me.phone.code(), "cookie", origin="https://evil.example")
    assert foreign.code == "cross_site"


def trust_of(answer: Answer) -> dict[str, str]:
    return {"Cookie": f"wardgate-device={answer.cookies['wardgate-device'].value}"}


async def trusting(me: Alice, **more: Any) -> dict[str, str]:
    """Log in with both factors, from a browser that is to be trusted; its header."""
    body = {"challenge": await me.challenge(mode="cookie"), "code": me.phone.code(), "mode": "cookie"}
    done = await me.house.call("POST", "/auth/login/factor", {**body, "trust_device": True, **more})
    assert done.status == 200, done.text
    return trust_of(done)


async def test_a_trusted_device_is_asked_for_the_password_alone_for_as_long_as_the_settings_say(
    house: House, db_clock: Clock
) -> None:
    me = await alice(house, db_clock)
    trusted = await trusting(me)
    for days in (0, 20):
        db_clock.move(days * 86400)
        again = await house.login(ALICE, mode="cookie", headers=trusted)
        assert (again.status, trust_of(again)) == (200, trusted)  # seen again, and not trusted for longer
        assert (await me.state(cookie=secret_of(again)))["aal"] == 1
        begun = await house.call("POST", "/auth/recovery-codes", {}, cookie=secret_of(again))
        assert begun.code == "step_up_required"
    wrong = await house.login(ALICE, PASSWORD + "x", mode="cookie", headers=trusted)
    assert wrong.code == "invalid_credentials"
    assert (await house.login(ALICE, headers=trusted)).code == "second_factor_required"  # no cookie counts for tokens
    db_clock.move(11 * 86400)
    assert (await house.login(ALICE, mode="cookie", headers=trusted)).code == "second_factor_required"


async def test_whoever_did_not_ask_for_it_is_not_trusted_and_another_factor_or_password_ends_it(
    house: House, db_clock: Clock
) -> None:
    me = await alice(house, db_clock)
    not_asked = await trusting(me, trust_device=False)
    assert (await house.login(ALICE, mode="cookie", headers=not_asked)).code == "second_factor_required"
    await house.register("bob@example.org")
    trusted = await trusting(me)
    assert (await house.login(ALICE, mode="cookie", headers=trusted)).status == 200
    for change in (
        "update totp set confirmed_at = confirmed_at + interval '1 s'",
        "update subjects set credential_version = credential_version + 1",
    ):
        await house.pool.execute(change)
        assert (await house.login(ALICE, mode="cookie", headers=trusted)).code == "second_factor_required"
        trusted = await trusting(me)


@pytest.mark.parametrize("ended", ["all", "others", "one", "everyone's"])
async def test_a_lost_device_was_trusted_after_its_sessions_had_been_ended(
    house: House, db_clock: Clock, ended: str
) -> None:
    me = await alice(house, db_clock)
    lost = await trusting(me)
    assert (await house.login(ALICE, mode="cookie", headers=lost)).status == 200
    if ended == "everyone's":
        async with house.revocations.writing() as writing:
            writing.append(Entry(kind=Kind.EVERYONE, reason="breach"))
    else:
        listed = (await house.call("GET", "/auth/sessions", **me.by)).json["items"]
        sid = next(one["sid"] for one in listed if not one["current"])
        path = f"/{sid}" if ended == "one" else f"?scope={ended}"
        assert (await house.call("DELETE", f"/auth/sessions{path}", **me.by)).status == 204
    assert (await house.login(ALICE, mode="cookie", headers=lost)).code == "second_factor_required"


async def test_a_wrong_password_never_shows_that_there_is_a_second_factor(house: House, db_clock: Clock) -> None:
    await alice(house, db_clock)
    with_factor = await house.login(ALICE, "wrong wrong wrong", address="192.0.2.7")
    nobody = await house.login("nobody@example.org", "wrong wrong wrong", address="192.0.2.8")
    await house.pool.execute("update subjects set state = 'disabled'")
    disabled = await house.login(ALICE, address="192.0.2.9")
    assert len({(answer.status, answer.text) for answer in (with_factor, nobody, disabled)}) == 1


async def test_sec_08_a_hash_is_renewed_by_the_first_half_of_a_login(
    house: House, settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any, db_clock: Clock
) -> None:
    me = await alice(house, db_clock)
    async with build(with_values(settings, {"auth.bcrypt_cost": 5}), pool, revocations, sessions, pipe) as dearer:
        assert (await dearer.login(ALICE)).code == "second_factor_required"
    assert "$05$" in await pool.fetchval("select password_hash from users where id = $1", me.id)
    assert await me.challenge()


async def test_a_code_is_good_once(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock)
    code = me.phone.code()
    assert (await me.finish(await me.challenge(), code)).status == 200
    again = await me.finish(await me.challenge(), code)
    assert (again.status, again.code) == (401, "invalid_credentials")
    assert "was used before" in again.json["detail"]  # who turned the app on a moment ago has only this one
    assert (await me.step_up({"code": code})).code == "invalid_credentials"
    recovery = me.recovery[0]
    assert (await me.finish(await me.challenge(), recovery.upper())).status == 200
    assert (await me.finish(await me.challenge(), recovery)).code == "invalid_credentials"
    assert (await me.state())["recovery_codes"] == 9


@pytest.mark.parametrize("kind", ["totp", "recovery"])
async def test_of_twenty_uses_of_one_code_at_once_one_succeeds(house: House, db_clock: Clock, kind: str) -> None:
    me = await alice(house, db_clock)
    places = [f"198.51.100.{n}" for n in range(20)]
    challenges = [await me.challenge(address=place) for place in places]
    code = me.phone.code() if kind == "totp" else me.recovery[0]
    before = await me.sessions()
    tries = (me.finish(challenge, code, address=place) for challenge, place in zip(challenges, places, strict=True))
    codes = Counter(answer.code for answer in await asyncio.gather(*tries))
    assert codes == {"": 1, "invalid_credentials": 19}
    assert await me.sessions() == before + 1


async def test_a_clock_that_steps_back_makes_no_code_good_again(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock)
    first, second = me.phone.code(), me.phone.code()
    assert (await me.finish(await me.challenge(), first)).status == 200
    assert (await me.finish(await me.challenge(), second)).status == 200
    for back in (30, 30, 3600):
        db_clock.move(-back)
        for code in (first, second):
            assert (await me.finish(await me.challenge(address=HOME), code)).code == "invalid_credentials"
            await forget_pairs(house)


async def test_a_phone_may_be_one_step_off_and_no_more(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock)
    db_clock.move(600 - db_clock.now() % 30)  # at the begin of a step
    for off, code in ((-2, "invalid_credentials"), (2, "invalid_credentials"), (-1, ""), (1, "")):
        step = int(db_clock.now()) // 30 + off
        assert (await me.finish(await me.challenge(), me.phone._app.generate_otp(step))).code == code, off


# -- guessing


async def test_sec_12_a_challenge_is_good_for_five_tries(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock)
    challenge = await me.challenge()
    for _ in range(5):
        assert (await me.finish(challenge, me.phone.wrong())).code == "invalid_credentials"
        await forget_pairs(house)
    assert (await me.finish(challenge, me.phone.code())).code == "unauthenticated"
    await forget_pairs(house)
    assert (await me.finish(await me.challenge(), me.phone.code())).status == 200


async def test_sec_12_knowing_the_password_gives_no_guess_at_the_code_back(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock)
    codes = []
    for _ in range(6):
        answer = await house.login(ALICE, address="203.0.113.5")
        if answer.code == "second_factor_required":
            answer = await me.finish(answer.json["challenge"], me.phone.wrong(), address="203.0.113.5")
        codes.append(answer.code)
    assert codes == ["invalid_credentials"] * 5 + ["too_many_attempts"]
    await house.accounts.people.flush()
    assert await house.pool.fetchval("select failures from users") == 5


async def test_sec_12_every_route_that_takes_a_code_is_limited(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock)
    taking = {
        (route.method, route.path)
        for route in house.server.app[ROUTES]
        if route.body is not None and "code" in route.body.__struct_fields__
    }
    other = await house.register("bob@example.org")
    begun = await house.call("POST", "/auth/totp", {}, token=other.json["access_token"])
    assert begun.status == 200
    ways: dict[tuple[str, str], tuple[str, dict[str, str]]] = {
        ("POST", "/auth/login/factor"): ("", {"challenge": await me.challenge(), "mode": "token"}),
        ("POST", "/auth/step-up"): (me.by["token"], {}),
        ("DELETE", "/auth/totp"): (me.by["token"], {}),
        ("POST", "/auth/totp/confirm"): (other.json["access_token"], {}),
    }
    assert taking == set(ways)
    for (method, path), (token, more) in ways.items():
        body = {"code": me.phone.wrong(), **more}
        answers = [await house.call(method, path, body, token=token) for _ in range(6)]
        assert [answer.code for answer in answers] == ["invalid_credentials"] * 5 + ["too_many_attempts"], path
        assert int(answers[-1].headers["Retry-After"]) > 0
        await forget_pairs(house)


async def test_a_challenge_is_for_one_address_for_five_minutes_and_for_one_password(
    house: House, db_clock: Clock
) -> None:
    me = await alice(house, db_clock)
    challenge = await me.challenge()
    assert (await me.finish(challenge, me.phone.code(), address="203.0.113.9")).code == "unauthenticated"
    for other in (challenge[:-2] + "AA", challenge[4:], "", "x" * 2000, "é", me.recovery[0]):
        assert (await me.finish(other, me.phone.code())).code == "unauthenticated"
    body = {"current_password": PASSWORD, "new_password": "another fine password"}
    assert (await house.call("POST", "/auth/password", body, **me.by)).status == 204
    assert (await me.finish(challenge, me.phone.code())).code == "unauthenticated"
    challenge = await me.challenge(password="another fine password")  # MFA stays in force
    db_clock.move(301)
    assert (await me.finish(challenge, me.phone.code())).code == "unauthenticated"


async def test_sec_18_a_dump_of_the_database_forges_no_code(
    house: House, settings: Settings, db_clock: Clock, pool: Any
) -> None:
    me = await alice(house, db_clock)
    secret = me.phone._app.secret
    rows = await pool.fetch("select t::text as row from totp t union all select r::text from recovery_codes r")
    dump = " ".join(row["row"] for row in rows)
    plain = [code.replace("-", "") for code in me.recovery]
    for clear in (secret, *me.recovery, *plain):
        assert clear not in dump
        assert clear.encode().hex() not in dump
    # a row of somebody who can write, in another's place, opens nothing
    bob = await house.register("bob@example.org")
    await turn_on(house, db_clock, bob, "token")
    await pool.execute(
        "update totp t set sealed_secret = o.sealed_secret, last_step = 0 from totp o where o.subject <> t.subject"
    )
    assert (await me.step_up({"code": me.phone.code()})).code == "invalid_credentials"
    # nor does it under another secret
    other = with_values(settings, {"sessions.secret_key": "not the one" * 4})
    codes = Codes(other.sessions, product="x")
    async with pool.acquire() as connection, connection.transaction():
        assert await codes.spend(connection, me.id, me.recovery[0], db_clock.now()) is None
    rotated = with_values(other, {"sessions.previous_secret_keys": [settings.sessions.secret_key.get_secret_value()]})
    async with pool.acquire() as connection, connection.transaction():
        spent = await Codes(rotated.sessions, product="x").spend(connection, me.id, me.recovery[0], db_clock.now())
    assert spent == "recovery_code"


# -- step-up


async def test_sec_13_step_up_changes_the_secret_and_keeps_the_session(
    house: House, settings: Settings, pool: Any, revocations: Any, pipe: Any, db_clock: Clock
) -> None:
    me = await alice(house, db_clock, "cookie")
    assert (await house.call("GET", "/auth/me", **me.old)).code == "unauthenticated"  # turning it on did so too
    async with elsewhere(settings, pool, revocations, pipe) as other:
        assert (await other.call("GET", "/auth/me", **me.by)).status == 200  # it is cached there
        db_clock.move(60)
        answer = await me.step_up({"code": me.phone.code()})
        assert (answer.status, set(answer.json)) == (200, {"session"})
        assert answer.json["session"]["sid"] == me.sid
        new = secret_of(answer)
        for place in (house, other):
            assert (await place.call("GET", "/auth/me", **me.by)).code == "unauthenticated"
            mine = await place.call("GET", "/auth/me", cookie=new)
            assert (mine.status, mine.json["session"]["sid"]) == (200, me.sid)
    assert await me.sessions() == 1


async def test_a_login_that_is_not_remembered_stays_so_when_its_cookie_changes(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock, "cookie")
    body = {"challenge": await me.challenge(), "code": me.phone.code(), "mode": "cookie", "remember": False}
    answer = await house.call("POST", "/auth/login/factor", body)
    assert list(answer.cookies) == ["wardgate"]  # whose device it is, nobody says
    assert (answer.cookies["wardgate"]["max-age"], answer.json["session"]["sid"]) != ("0", me.sid)
    again = await me.step_up({"code": me.phone.code()}, cookie=secret_of(answer))
    for set_by in (answer, again):
        assert set_by.cookies["wardgate"]["max-age"] == ""
        session = set_by.json["session"]
        assert unix(session["expires_at"]) - unix(session["created_at"]) == pytest.approx(86400, abs=0.01)
    plain = await house.register("bob@example.org", mode="cookie")
    assert int(plain.cookies["wardgate"]["max-age"]) > 89 * 86400
    body = {"email": "bob@example.org", "password": PASSWORD, "remember": False}
    answer = await house.call("POST", "/auth/login", body)
    assert answer.cookies["wardgate"]["max-age"] == ""


async def test_a_password_is_a_factor_of_whoever_has_no_other(house: House, db_clock: Clock) -> None:
    made = await house.register("bob@example.org", mode="cookie")
    db_clock.move(3600)
    cookie = secret_of(made)
    for body in ({}, {"password": PASSWORD, "code": "123456"}):
        assert (await house.call("POST", "/auth/step-up", body, cookie=cookie)).code == "invalid"
    wrong = await house.call("POST", "/auth/step-up", {"password": "wrong wrong wrong"}, cookie=cookie)
    assert wrong.code == "invalid_credentials"
    assert not wrong.cookies
    right = await house.call("POST", "/auth/step-up", {"password": PASSWORD}, cookie=cookie)
    state = (await house.call("GET", "/auth/factors", cookie=secret_of(right))).json
    assert (state["totp"], state["aal"]) == (False, 1)
    assert (await house.call("POST", "/auth/step-up", {"code": "123456"}, cookie=secret_of(right))).status == 401
    me = await alice(house, db_clock)
    assert (await me.step_up({"password": PASSWORD})).code == "second_factor_required"


async def test_a_session_with_a_cookie_is_not_raised_by_a_token_of_it(house: House, db_clock: Clock) -> None:
    """Its secret would stay, and who stole it before would have what was shown after."""
    me = await alice(house, db_clock, "cookie")
    token = (await house.call("POST", "/auth/token", **me.by)).json["access_token"]
    assert (await me.step_up({"code": me.phone.code()}, token=token)).code == "forbidden"


async def test_a_revoked_session_cannot_step_up(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock)
    assert (await house.call("DELETE", f"/auth/sessions/{me.sid}", **me.by)).status == 204
    code = me.phone.code()
    assert (await me.step_up({"code": code})).code == "session_ended"
    assert (await me.finish(await me.challenge(), code)).status == 200  # and spends no code


async def test_sec_16_what_is_sensitive_wants_a_fresh_second_factor(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock, "cookie")
    password = {"current_password": PASSWORD, "new_password": "another fine password"}
    address = {"current_password": PASSWORD, "new_email": "new@example.org"}
    db_clock.move(14 * 60)
    assert (await house.call("POST", "/auth/email", address, **me.by)).status == 202
    db_clock.move(2 * 60)
    for path, body in (("/auth/email", address), ("/auth/password", password)):
        assert (await house.call("POST", path, body, **me.by)).code == "step_up_required"
    assert (await me.step_up({"code": me.phone.wrong()})).code == "invalid_credentials"
    assert (await house.call("POST", "/auth/password", password, **me.by)).code == "step_up_required"
    fresh = secret_of(await me.step_up({"code": me.phone.code()}))
    assert (await house.call("POST", "/auth/email", address, cookie=fresh)).status == 202
    assert (await house.call("POST", "/auth/password", password, cookie=fresh)).status == 204


async def test_a_session_from_before_the_second_factor_is_not_enough_for_what_is_sensitive(
    house: House, db_clock: Clock
) -> None:
    old = (await house.register(ALICE)).json["access_token"]
    made = await house.login(ALICE)
    phone, _ = await turn_on(house, db_clock, made, "token")
    body = {"current_password": PASSWORD, "new_password": "another fine password"}
    email = {"current_password": PASSWORD, "new_email": "new@example.org"}
    for path, sent in (("/auth/password", body), ("/auth/email", email)):
        answer = await house.call("POST", path, sent, token=old)
        assert (answer.status, answer.code) == (401, "step_up_required")
    stepped = await house.call("POST", "/auth/step-up", {"code": phone.code()}, token=old)
    claims = jwt.decode(stepped.json["access_token"], options={"verify_signature": False})
    assert claims["aal"] == 2
    assert (await house.call("POST", "/auth/password", body, token=stepped.json["access_token"])).status == 204


# -- off, and who must have it


async def test_off_is_by_a_code_and_a_challenge_that_is_out_is_over(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock)
    challenge = await me.challenge()
    assert (await house.call("DELETE", "/auth/totp", {}, **me.by)).code == "invalid"
    assert (await house.call("DELETE", "/auth/totp", {"code": me.phone.wrong()}, **me.by)).code == "invalid_credentials"
    assert (await house.call("DELETE", "/auth/totp", {"code": me.recovery[3]}, **me.by)).status == 204
    assert (await me.finish(challenge, me.phone.code())).code == "unauthenticated"
    assert (await me.finish(challenge, me.recovery[4])).code == "unauthenticated"
    assert (await house.login(ALICE)).status == 200
    state = await me.state()
    assert (state["totp"], state["recovery_codes"], state["aal"]) == (False, 0, 1)
    assert (await house.call("DELETE", "/auth/totp", {"code": me.recovery[5]}, **me.by)).code == "invalid_credentials"


async def test_recovery_codes_were_made_for_a_factor_that_had_gone_meanwhile(
    house: House, db_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    me, require = await alice(house, db_clock), Freshness.require

    async def gone_then(*arguments: Any, **more: Any) -> Any:
        state = await require(*arguments, **more)
        await house.pool.execute("delete from totp")
        await house.pool.execute("delete from recovery_codes")
        return state

    monkeypatch.setattr(Freshness, "require", gone_then)
    assert (await house.call("POST", "/auth/recovery-codes", {}, **me.by)).code == "forbidden"
    assert await house.pool.fetchval("select count(*) from recovery_codes") == 0


async def test_a_role_that_needs_a_second_factor_is_none_for_admin_routes_without_it(
    house: House, db_clock: Clock
) -> None:
    token = await house.admin()

    async def admins(token: str) -> tuple[int, str]:
        answer = await house.call("GET", "/admin/users", token=token)
        return answer.status, answer.code

    assert await admins(token) == (403, "second_factor_required")
    assert (await house.call("GET", "/auth/me", token=token)).status == 200
    assert (await house.call("GET", "/admin/users", headers={"X-API-Key": API_KEY})).status == 200
    made = await house.login("root@example.org")
    phone, on = await turn_on(house, db_clock, made, "token")
    assert await admins(on.json["access_token"]) == (200, "")
    assert await admins(token) == (403, "second_factor_required")  # another session, of one factor
    off = await house.call("DELETE", "/auth/totp", {"code": phone.code()}, token=on.json["access_token"])
    assert off.status == 204
    assert await admins(on.json["access_token"]) == (403, "second_factor_required")


async def test_the_key_of_an_admin_went_on_without_the_second_factor_that_the_role_wants(
    house: House, db_clock: Clock
) -> None:
    me = await alice(house, db_clock)
    await house.pool.execute("update subjects set roles = '{admin}' where id = $1", me.id)
    token = (await me.login()).json["access_token"]
    assert (await house.call("GET", "/auth/me", token=token)).json["aal"] == 2
    made = (await house.call("POST", "/admin/keys", {"name": "mine", "scopes": ["*"]}, token=token)).json
    key = {"X-API-Key": made["secret"]}
    assert (await house.call("GET", "/admin/users", headers=key)).status == 200
    await house.pool.execute("update users set password_at_least = 100 where id = $1", me.id)
    gone = await house.call("DELETE", "/auth/totp", {"code": me.phone.code()}, token=token)
    assert gone.status == 204, gone.text
    resting = await house.call("GET", "/admin/users", headers=key)
    assert (resting.status, resting.code) == (403, "second_factor_required")
    again = await house.login(ALICE)
    await turn_on(house, db_clock, again, "token")
    assert (await house.call("GET", "/admin/users", headers=key)).status == 200


async def test_whoever_found_an_admins_session_made_keys_that_outlive_it(house: House, db_clock: Clock) -> None:
    me = await alice(house, db_clock)
    await house.pool.execute("update subjects set roles = '{admin}' where id = $1", me.id)
    token = (await me.login()).json["access_token"]
    body = {"name": "mine", "scopes": ["audit"]}
    made = await house.call("POST", "/admin/keys", body, token=token)
    assert made.status == 201, made.text
    await house.pool.execute("update sessions set auth_time = auth_time - interval '1 hour'")
    for path, what in (("/admin/keys", body), (f"/admin/keys/{made.json['key']['id']}/rotation", {})):
        assert (await house.call("POST", path, what, token=token)).code == "step_up_required"
    stepped = await me.step_up({"code": me.phone.code()}, token=token)
    assert stepped.status == 200, stepped.text
    assert (await house.call("POST", "/admin/keys", body, token=token)).status == 201
