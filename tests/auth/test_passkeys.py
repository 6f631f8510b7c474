"""Passkeys over HTTP: made, logged in with, as a second factor, shown again, removed; and who tries to get around."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cbor2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from auth import passkeys
from config.http import ROUTES
from config.settings import Settings, with_values
from sessions.ids import encode
from tests.auth.authenticator import BE, BS, UP, UV, Authenticator, Key, raw
from tests.auth.conftest import PASSWORD, Answer, House, build, secret_of
from tests.auth.test_factors import ALICE, API_KEY, Clock, forget_pairs, letters, turn_on
from tests.revocation.cluster import until

SITE = "http://localhost:8000"


@pytest.fixture
def db_clock(revocations: Any, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(revocations, monkeypatch)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    mail = {"mail.folder": str(tmp_path), "mail.change_email_link": "https://example.org/#{token}"}
    more: dict[str, Any] = {"auth.second_factor_roles": ["admin"], "auth.access_token_ttl": 86400.0}
    more["auth.roles"] = {"helper": ["users"]}
    return with_values(settings, {**more, **mail})


@pytest.fixture
async def house(
    db_clock: Clock, settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any
) -> AsyncIterator[House]:
    async with build(settings, pool, revocations, sessions, pipe) as house:
        yield house


def by_of(answer: Any, mode: str) -> dict[str, Any]:
    return {"cookie": secret_of(answer)} if mode == "cookie" else {"token": answer.json["access_token"]}


class Person:
    """Somebody with a passkey, and the session that it was made in."""

    def __init__(self, house: House, phone: Authenticator, made: Answer, added: Answer, mode: str) -> None:
        self.house, self.phone, self.mode = house, phone, mode
        self.id, self.sid = made.json["user"]["id"], made.json["session"]["sid"]
        self.recovery: list[str] = added.json["recovery_codes"]
        self.passkey: str = added.json["passkey"]["id"]
        self.added, self.by = added, by_of(added, mode)

    async def options(self, path: str = "/auth/passkeys/login/options", body: Any = None, **more: Any) -> Any:
        answer = await self.house.call("POST", path, {"mode": "token"} if body is None else body, **more)
        assert answer.status == 200, answer.text
        return answer.json

    async def send(self, credential: Any, mode: str = "token", **more: Any) -> Answer:
        return await self.house.call("POST", "/auth/passkeys/login", {"credential": credential, "mode": mode}, **more)

    async def login(self, phone: Authenticator | None = None, **more: Any) -> Answer:
        return await self.send((phone or self.phone).get(await self.options(**more)), **more)

    async def challenge(self) -> str:
        answer = await self.house.login(ALICE)
        assert answer.code == "second_factor_required", answer.text
        return str(answer.json["challenge"])

    async def finish(self, challenge: str, **more: Any) -> Answer:
        return await self.house.call("POST", "/auth/login/factor", {"challenge": challenge, "mode": "token", **more})

    async def step_up(self) -> Answer:
        options = await self.options("/auth/step-up/options", {}, **self.by)
        return await self.house.call("POST", "/auth/step-up", {"passkey": self.phone.get(options)}, **self.by)

    async def audit(self, action: str) -> list[dict[str, Any]]:
        rows = await self.house.pool.fetch("select detail from audit where action = $1 order by id", action)
        return [row["detail"] for row in rows]


async def add(house: House, phone: Authenticator, name: str, by: dict[str, Any]) -> Answer:
    options = await house.call("POST", "/auth/passkeys/options", {}, **by)
    if options.status != 200:
        return options
    body = {"name": name, "credential": phone.create(options.json)}
    return await house.call("POST", "/auth/passkeys", body, **by)


async def person(house: House, email: str = ALICE, mode: str = "token", phone: Authenticator | None = None) -> Person:
    made, phone = await house.register(email, mode=mode), phone or Authenticator()
    added = await add(house, phone, "my phone", by_of(made, mode))
    assert added.status == 201, added.text
    return Person(house, phone, made, added, mode)


def forger_of(key: Key, **more: Any) -> Authenticator:
    """Somebody who knows all of a passkey but its secret."""
    return Authenticator(keys=[Key(key.id, ec.generate_private_key(ec.SECP256R1()), key.user)], **more)


def claims_of(answer: Answer) -> dict[str, Any]:
    claims: dict[str, Any] = jwt.decode(answer.json["access_token"], options={"verify_signature": False})
    return claims


# -- made


async def test_a_passkey_is_made_named_listed_and_removed(house: House, db_clock: Clock, tmp_path: Path) -> None:
    me = await person(house, mode="cookie")
    assert len(set(me.recovery)) == 10
    second = await add(house, Authenticator(flags=UP | UV | BE | BS), "  key ring ", me.by)
    assert (second.status, second.json["recovery_codes"]) == (201, [])  # those of the first are still good
    assert second.json["session"]["sid"] == me.sid
    assert (await house.call("GET", "/auth/me", **me.by)).code == "unauthenticated"  # the cookie's secret changed
    by = by_of(second, "cookie")
    items = (await house.call("GET", "/auth/passkeys", **by)).json["items"]
    assert [(item["name"], item["last_used_at"]) for item in items] == [("my phone", None), ("key ring", None)]
    path = f"/auth/passkeys/{me.passkey}"
    renamed = await house.call("PATCH", path, {"name": "old phone"}, **by)
    assert (renamed.status, renamed.json["name"]) == (200, "old phone")
    for bad in ("", " ", "x" * 65, "a\nb"):
        assert (await house.call("PATCH", path, {"name": bad}, **by)).code == "invalid"
    state = (await house.call("GET", "/auth/factors", **by)).json
    assert (state["totp"], state["passkeys"], state["recovery_codes"], state["aal"]) == (False, 2, 10, 2)
    assert (await house.call("DELETE", path, **by)).status == 204
    assert (await house.call("DELETE", path, **by)).code == "not_found"
    assert (await me.login()).code == "invalid_credentials"  # it is no passkey any more
    await until(lambda: letters(tmp_path).count("Subject: A passkey was") == 3)
    assert [detail["factor"] for detail in await me.audit("user.factor_added")] == ["passkey", "passkey"]
    assert await me.audit("user.factor_removed") == [{"factor": "passkey", "passkey": me.passkey}]


async def test_sec_16_a_passkey_is_made_and_removed_by_a_fresh_session_only(house: House, db_clock: Clock) -> None:
    made, phone = await house.register(ALICE), Authenticator()
    by = by_of(made, "token")
    early = await house.call("POST", "/auth/passkeys/options", {}, **by)
    late = {"name": "late", "credential": phone.create(early.json)}
    db_clock.move(16 * 60)
    assert (await house.call("POST", "/auth/passkeys/options", {}, **by)).code == "step_up_required"
    assert (await house.call("POST", "/auth/passkeys", late, **by)).code == "step_up_required"
    again = await house.call("POST", "/auth/step-up", {"password": PASSWORD}, **by)
    added = await add(house, phone, "phone", by_of(again, "token"))
    me = Person(house, phone, made, added, "token")
    db_clock.move(16 * 60)
    for method, path in (("POST", "/auth/passkeys/options"), ("DELETE", f"/auth/passkeys/{me.passkey}")):
        body: Any = {} if method == "POST" else None
        assert (await house.call(method, path, body, **me.by)).code == "step_up_required"
    fresh = await me.step_up()
    assert fresh.status == 200, fresh.text
    removed = await house.call("DELETE", f"/auth/passkeys/{me.passkey}", **by_of(fresh, "token"))
    assert removed.status == 204
    assert (await house.login(ALICE)).status == 200  # the last one: the password is enough again
    state = (await house.call("GET", "/auth/factors", **by_of(fresh, "token"))).json
    assert (state["passkeys"], state["recovery_codes"], state["aal"]) == (0, 0, 1)


async def test_what_is_no_new_passkey_of_here_is_refused(house: House, db_clock: Clock) -> None:
    made = await house.register(ALICE)
    by = by_of(made, "token")

    async def sent(phone: Authenticator, change: Any = None, **more: Any) -> str:
        options = (await house.call("POST", "/auth/passkeys/options", {}, **by)).json
        credential = phone.create(options, **more)
        if change is not None:
            change(credential)
        await forget_pairs(house)
        return (await house.call("POST", "/auth/passkeys", {"name": "x", "credential": credential}, **by)).code

    def without_a_key(credential: Any) -> None:
        whole = cbor2.loads(raw(credential["response"]["attestationObject"]))
        whole["authData"] = whole["authData"][:37]
        credential["response"]["attestationObject"] = encode(cbor2.dumps(whole))

    def deep(credential: Any) -> None:
        credential["response"]["attestationObject"] = encode(b"\x81" * 12_000)

    refused = [
        await sent(Authenticator(origin="https://localhost.evil.example")),
        await sent(Authenticator(origin="http://localhost:8001")),
        await sent(Authenticator(rp_id="evil.example")),
        await sent(Authenticator(flags=UP)),
        await sent(Authenticator(flags=UV)),
        await sent(Authenticator(cross_origin=True)),
        await sent(Authenticator(), fmt="packed", statement={"alg": -7, "sig": b"no"}),
        await sent(Authenticator(), fmt="packed", statement={"alg": -7, "sig": b"no", "x5c": [b"no"]}),
        await sent(Authenticator(), fmt="tpm"),
        await sent(Authenticator(), without_a_key),
        await sent(Authenticator(), deep),
        await sent(Authenticator(), lambda credential: credential.update(rawId="AAAA")),
    ]
    assert refused == ["invalid_credentials"] * len(refused)
    assert await sent(Authenticator(), lambda credential: credential.update(id="x" * 1400)) == "invalid"
    assert await house.pool.fetchval("select count(*) from passkeys") == 0
    assert await sent(Authenticator(), fmt="packed", statement="self") == ""


async def test_options_are_for_one_session_and_one_answer(house: House, db_clock: Clock) -> None:
    alice, bob = await house.register(ALICE), await house.register("bob@example.org")
    phone, mine, theirs = Authenticator(), by_of(alice, "token"), by_of(bob, "token")
    options = (await house.call("POST", "/auth/passkeys/options", {}, **mine)).json
    body = {"name": "x", "credential": phone.create(options)}
    assert (await house.call("POST", "/auth/passkeys", body, **theirs)).code == "unauthenticated"
    added = await house.call("POST", "/auth/passkeys", body, **mine)
    assert added.status == 201
    again = by_of(added, "token")
    assert (await house.call("POST", "/auth/passkeys", body, **again)).code == "unauthenticated"
    # nor is a passkey kept twice, of whomever it is
    key = phone.keys[0]
    twice = (await house.call("POST", "/auth/passkeys/options", {}, **theirs)).json
    assert [one["id"] for one in twice["excludeCredentials"]] == []
    copy = Authenticator()
    made = copy.create(twice)
    assert made["id"] != key.name
    whole = cbor2.loads(raw(made["response"]["attestationObject"]))
    whole["authData"] = whole["authData"].replace(copy.keys[0].id, key.id)
    made["response"]["attestationObject"] = encode(cbor2.dumps(whole))
    made["id"] = made["rawId"] = key.name
    refused = await house.call("POST", "/auth/passkeys", {"name": "x", "credential": made}, **theirs)
    assert refused.code == "invalid"
    third = (await house.call("POST", "/auth/passkeys/options", {}, **again)).json
    assert [one["id"] for one in third["excludeCredentials"]] == [key.name]
    assert third["excludeCredentials"][0]["transports"] == ["internal", "hybrid"]
    assert raw(third["user"]["id"]).decode() == alice.json["user"]["id"]


async def test_there_is_an_end_to_the_passkeys_of_one_user(
    house: House, db_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = await person(house)
    options = (await house.call("POST", "/auth/passkeys/options", {}, **me.by)).json
    monkeypatch.setattr(passkeys, "MOST", 1)
    assert (await add(house, Authenticator(), "more", me.by)).code == "forbidden"
    body = {"name": "more", "credential": Authenticator().create(options)}
    assert (await house.call("POST", "/auth/passkeys", body, **me.by)).code == "forbidden"


async def test_28_a_passkey_of_someone_else_is_not_found(house: House, db_clock: Clock) -> None:
    me, other = await person(house), await person(house, "bob@example.org")
    for id in (me.passkey, "no-uuid", "00000000-0000-0000-0000-000000000000"):
        assert (await house.call("PATCH", f"/auth/passkeys/{id}", {"name": "x"}, **other.by)).code == "not_found"
        assert (await house.call("DELETE", f"/auth/passkeys/{id}", **other.by)).code == "not_found"
    assert (await house.call("GET", "/auth/passkeys", **me.by)).json["items"][0]["name"] == "my phone"


async def test_a_session_with_a_cookie_makes_no_passkey_by_a_token_of_it(house: House, db_clock: Clock) -> None:
    made = await house.register(ALICE, mode="cookie")
    token = (await house.call("POST", "/auth/token", {}, cookie=secret_of(made))).json["access_token"]
    assert (await house.call("POST", "/auth/passkeys/options", {}, token=token)).code == "forbidden"


# -- logging in with it alone


@pytest.mark.parametrize("counts", [False, True])
async def test_whoever_has_a_passkey_logs_in_without_a_name(house: House, db_clock: Clock, counts: bool) -> None:
    me = await person(house, phone=Authenticator(counts=counts))
    options = await me.options()
    assert (options["rpId"], options["allowCredentials"]) == ("localhost", [])
    for _ in range(2):
        done = await me.login()
        assert done.status == 200, done.text
        assert done.json["user"]["id"] == me.id
        assert claims_of(done)["aal"] == 2
    assert (await house.call("GET", "/auth/passkeys", **me.by)).json["items"][0]["last_used_at"] is not None
    assert (await house.call("GET", "/auth/passkeys", **by_of(done, "token"))).status == 200


async def test_a_login_by_passkey_is_bound_to_the_browser_that_asked(house: House, db_clock: Clock) -> None:
    me = await person(house)
    asked = await house.call("POST", "/auth/passkeys/login/options", {})
    assert asked.status == 200
    cookie = asked.cookies["wardgate-ceremony"]
    assert (cookie["httponly"], cookie["samesite"], cookie["max-age"]) == (True, "Lax", "300")
    browser = {"Cookie": f"wardgate-ceremony={cookie.value}"}
    again = await house.call("POST", "/auth/passkeys/login/options", {}, headers=browser)
    assert again.cookies["wardgate-ceremony"].value == cookie.value  # another tab of the same
    for other in ({}, {"Cookie": "wardgate-ceremony=" + "x" * 22}):
        assert (await me.send(me.phone.get(asked.json), "cookie", headers=other)).code == "unauthenticated"
    assert (await me.send(me.phone.get(asked.json))).code == "unauthenticated"  # nor for a token
    assert (await me.send(me.phone.get(await me.options()), "cookie", headers=browser)).code == "unauthenticated"
    elsewhere = await me.send(me.phone.get(asked.json), "cookie", headers=browser, origin="https://evil.example")
    assert elsewhere.code == "cross_site"
    foreign = await house.call("POST", "/auth/passkeys/login/options", {}, origin="https://evil.example")
    assert foreign.code == "cross_site"
    done = await me.send(me.phone.get(asked.json), "cookie", headers=browser)
    assert (done.status, set(done.json)) == (200, {"user", "session"})
    assert done.cookies["wardgate-device"].value
    mine = await house.call("GET", "/auth/factors", cookie=secret_of(done))
    assert mine.json["aal"] == 2
    moved = await me.options(address="192.0.2.1")
    assert (await me.send(me.phone.get(moved), address="203.0.113.9")).code == "unauthenticated"


async def test_of_twenty_that_answer_the_same_options_at_once_one_logs_in(house: House, db_clock: Clock) -> None:
    me = await person(house)
    before = await house.pool.fetchval("select count(*) from sessions")
    signed = me.phone.get(await me.options())
    codes = Counter(answer.code for answer in await asyncio.gather(*(me.send(signed) for _ in range(20))))
    assert codes[""] == 1
    assert set(codes) <= {"", "unauthenticated", "too_many_attempts"}
    assert await house.pool.fetchval("select count(*) from sessions") == before + 1
    await forget_pairs(house)
    db_clock.move(-3600)  # and no clock that steps back makes it good again
    assert (await me.send(signed)).code == "unauthenticated"
    db_clock.move(3600 + 301)
    assert (await me.send(me.phone.get(await me.options()))).status == 200
    old = await me.options()
    db_clock.move(301)
    assert (await me.send(me.phone.get(old))).code == "unauthenticated"


async def test_sec_07_unknown_foreign_and_disabled_passkeys_are_told_apart_by_nothing(
    house: House, db_clock: Clock
) -> None:
    me, other = await person(house), await person(house, "bob@example.org")
    key, stranger = me.phone.keys[0], Authenticator()
    stranger.create((await house.call("POST", "/auth/passkeys/options", {}, **me.by)).json)  # never kept
    answers = [await me.login(stranger)]
    answers.append(await me.login(forger_of(key)))
    another = Authenticator(keys=[Key(key.id, key.private, other.phone.keys[0].user)])
    answers.append(await me.login(another))
    for wrong in (
        Authenticator(origin="https://evil.example"),
        Authenticator(rp_id="evil.example"),
        Authenticator(flags=UP),
        Authenticator(cross_origin=True),
    ):
        wrong.keys = [key]
        await forget_pairs(house)
        answers.append(await me.login(wrong))
    nameless = me.phone.get(await me.options())
    del nameless["response"]["userHandle"]
    await forget_pairs(house)
    answers.append(await me.send(nameless))
    await house.pool.execute("update subjects set state = 'disabled' where id = $1", me.id)
    answers.append(await me.login())
    assert {(answer.status, answer.code, answer.text) for answer in answers} == {
        (401, "invalid_credentials", answers[0].text)
    }


async def test_a_damaged_answer_is_refused_and_nothing_worse(house: House, db_clock: Clock) -> None:
    me = await person(house)
    good = me.phone.get(await me.options())
    for field in ("clientDataJSON", "authenticatorData", "signature", "userHandle"):
        for value in ("", "AA", "é", "=", encode(b"{}"), encode(b"\xff" * 80), good["response"][field][:-4]):
            damaged = {**good, "response": {**good["response"], field: value}}
            answer = await me.send(damaged)
            assert answer.code in ("invalid_credentials", "unauthenticated", "invalid"), (field, value, answer.text)
            await forget_pairs(house)
    unread = encode(b'{"challenge": "no base64"}')
    assert (
        await me.send({**good, "response": {**good["response"], "clientDataJSON": unread}})
    ).code == "unauthenticated"
    for change in ({"id": "AAAA"}, {"rawId": "AAAA"}, {"type": "password"}, {"response": None}, {"id": "é"}):
        assert (await me.send({**good, **change})).code in ("invalid_credentials", "invalid")
        await forget_pairs(house)
    assert (await me.send(good)).status == 200


async def test_a_copied_passkey_is_refused_and_told_of(house: House, db_clock: Clock) -> None:
    """The copy of a key signs with a counter that has been there: one of the two is a thief's."""
    me = await person(house, phone=Authenticator(counts=True))
    key = me.phone.keys[0]
    copy = Authenticator(counts=True, keys=[Key(key.id, key.private, key.user, key.count)])
    for _ in range(2):
        assert (await me.login()).status == 200
    signed = copy.get(await me.options())
    refused = await me.send(signed)
    assert (refused.status, refused.code) == (401, "invalid_credentials")
    why = {"factor": "passkey", "passkey": me.passkey, "why": "its counter went back"}
    assert await me.audit("user.factor_refused") == [why]
    assert (await me.send(signed)).code == "unauthenticated"
    assert (await me.login(forger_of(key, counts=True))).code == "invalid_credentials"
    assert len(await me.audit("user.factor_refused")) == 1  # whoever has no key audits nothing
    assert (await me.login()).status == 200


async def test_sec_12_every_route_that_takes_a_passkey_is_limited(house: House, db_clock: Clock) -> None:
    me = await person(house)
    wrong = forger_of(me.phone.keys[0])
    taking = {
        (route.method, route.path)
        for route in house.server.app[ROUTES]
        if route.body is not None and {"passkey", "credential"} & set(route.body.__struct_fields__)
    }
    challenge = await me.challenge()
    ways: dict[tuple[str, str], tuple[str, Any, dict[str, Any], str]] = {
        ("POST", "/auth/passkeys/login"): ("/auth/passkeys/login/options", {"mode": "token"}, {}, "credential"),
        ("POST", "/auth/login/factor"): ("/auth/login/factor/options", {"challenge": challenge}, {}, "passkey"),
        ("POST", "/auth/step-up"): ("/auth/step-up/options", {}, me.by, "passkey"),
        ("POST", "/auth/passkeys"): ("/auth/passkeys/options", {}, me.by, "credential"),
    }
    assert taking == set(ways)
    for (method, path), (asking, ask, by, field) in ways.items():
        codes = []
        for _ in range(6):
            options = await me.options(asking, ask, **by)
            body = {**ask, "mode": "token"} if not by else {}
            if path == "/auth/passkeys":
                body = {"name": "x", field: Authenticator(rp_id="evil.example").create(options)}
            else:
                body[field] = wrong.get(options)
            codes.append((await house.call(method, path, body, **by)).code)
        assert codes == ["invalid_credentials"] * 5 + ["too_many_attempts"], path
        await forget_pairs(house)


async def test_a_passkey_that_is_removed_while_it_logs_in_opens_no_session(
    house: House, db_clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    me = await person(house)
    keys = house.accounts.people._passkeys
    used = keys.used

    async def removed(*args: Any) -> Any:
        found = await used(*args)
        await house.pool.execute("delete from passkeys")
        return found

    monkeypatch.setattr(keys, "used", removed)
    before = await house.pool.fetchval("select count(*) from sessions")
    assert (await me.login()).code == "invalid_credentials"
    assert await house.pool.fetchval("select count(*) from sessions") == before


async def test_guesses_at_the_password_hold_no_passkey_back(house: House, db_clock: Clock) -> None:
    me = await person(house)
    await house.pool.execute("update users set failures = 1000 where id = $1", me.id)
    for n in range(24):
        await house.login(ALICE, "wrong wrong wrong", address=f"203.0.113.{n}")
    assert (await me.login(address="198.51.100.7")).status == 200


async def test_a_new_device_is_told_of(house: House, db_clock: Clock, tmp_path: Path) -> None:
    me = await person(house)
    assert (await me.login()).status == 200
    assert (await me.login()).status == 200
    assert (await me.login(address="198.51.100.7")).status == 200
    await until(lambda: "new device" in letters(tmp_path).lower())


# -- after a password, and again


async def test_with_a_passkey_a_password_is_half_a_login(house: House, db_clock: Clock) -> None:
    me = await person(house)
    half = await house.login(ALICE)
    assert (half.code, half.json["factors"]) == ("second_factor_required", ["passkey"])
    challenge = half.json["challenge"]
    options = await me.options("/auth/login/factor/options", {"challenge": challenge})
    assert [one["id"] for one in options["allowCredentials"]] == [me.phone.keys[0].name]
    signed = me.phone.get(options)
    del signed["response"]["userHandle"]  # who it must be is known
    for more in ({}, {"passkey": signed, "code": "123456"}):
        assert (await me.finish(challenge, **more)).code == "invalid"
    assert (await me.finish(await me.challenge(), passkey=signed)).code == "unauthenticated"  # of another login
    assert (await me.send(signed)).code == "unauthenticated"  # and of no login by the passkey alone
    done = await me.finish(challenge, passkey=signed)
    assert done.status == 200, done.text
    assert claims_of(done)["aal"] == 2
    assert (await me.finish(challenge, passkey=signed)).code == "unauthenticated"
    assert (await me.finish(await me.challenge(), code=me.recovery[0])).status == 200
    assert (await me.finish(await me.challenge(), code="123456")).code == "invalid_credentials"


async def test_nobody_finishes_a_login_with_the_passkey_of_another(house: House, db_clock: Clock) -> None:
    me, other = await person(house), await person(house, "bob@example.org")
    challenge = await me.challenge()
    options = await me.options("/auth/login/factor/options", {"challenge": challenge})
    theirs = Authenticator(keys=other.phone.keys)
    refused = await me.finish(challenge, passkey=theirs.get(options, theirs.keys[0]))
    assert refused.code == "invalid_credentials"
    assert (await me.finish(challenge, passkey=me.phone.get(options))).status == 200
    wrong = await house.call("POST", "/auth/login/factor/options", {"challenge": "x"})
    assert wrong.code == "unauthenticated"


async def test_sec_13_a_passkey_steps_a_session_up(house: House, db_clock: Clock) -> None:
    me = await person(house, mode="cookie")
    db_clock.move(3600)
    assert (await house.call("POST", "/auth/step-up", {"password": PASSWORD}, **me.by)).code == "second_factor_required"
    options = await me.options("/auth/step-up/options", {}, **me.by)
    signed = me.phone.get(options)
    other = await me.login()
    stolen = await house.call("POST", "/auth/step-up", {"passkey": signed}, **by_of(other, "token"))
    assert stolen.code == "unauthenticated"
    answer = await house.call("POST", "/auth/step-up", {"passkey": signed}, **me.by)
    assert (answer.status, answer.json["session"]["sid"]) == (200, me.sid)
    assert secret_of(answer) != me.by["cookie"]
    assert await me.audit("session.stepped_up") == [{"by": "passkey"}]
    assert (await house.call("POST", "/auth/step-up", {"passkey": signed}, **by_of(answer, "cookie"))).status == 401
    bob = await house.register("bob@example.org")
    assert (await house.call("POST", "/auth/step-up/options", {}, **by_of(bob, "token"))).code == "forbidden"


async def test_a_revoked_session_cannot_step_up_with_a_passkey(house: House, db_clock: Clock) -> None:
    me = await person(house)
    options = await me.options("/auth/step-up/options", {}, **me.by)
    assert (await house.call("DELETE", f"/auth/sessions/{me.sid}", **me.by)).status == 204
    answer = await house.call("POST", "/auth/step-up", {"passkey": me.phone.get(options)}, **me.by)
    assert answer.code == "session_ended"


async def test_an_app_and_a_passkey_stand_beside_each_other(house: House, db_clock: Clock) -> None:
    me = await person(house)
    phone, on = await turn_on(house, db_clock, me.added, "token")
    assert on.json["recovery_codes"] == []
    half = await house.login(ALICE)
    assert half.json["factors"] == ["totp", "passkey"]
    assert (await me.finish(half.json["challenge"], code=phone.code())).status == 200
    assert (await house.call("DELETE", "/auth/totp", {"code": phone.code()}, **me.by)).status == 204
    state = (await house.call("GET", "/auth/factors", **me.by)).json
    assert (state["totp"], state["passkeys"], state["recovery_codes"], state["aal"]) == (False, 1, 10, 2)
    gone = await house.call("DELETE", "/auth/totp", {"code": me.recovery[0]}, **me.by)
    assert gone.code == "invalid_credentials"
    assert (await house.call("GET", "/auth/factors", **me.by)).json["recovery_codes"] == 10  # and it was not spent


async def test_a_role_that_needs_a_second_factor_takes_a_passkey(house: House, db_clock: Clock) -> None:
    token, phone = await house.admin(), Authenticator()

    async def admins(token: str) -> tuple[int, str]:
        answer = await house.call("GET", "/admin/users", token=token)
        return answer.status, answer.code

    assert await admins(token) == (403, "second_factor_required")
    added = await add(house, phone, "key", {"token": token})
    assert await admins(added.json["access_token"]) == (200, "")
    options = (await house.call("POST", "/auth/passkeys/login/options", {"mode": "token"})).json
    body = {"credential": phone.get(options), "mode": "token"}
    done = await house.call("POST", "/auth/passkeys/login", body)
    assert await admins(done.json["access_token"]) == (200, "")
    one = f"/auth/passkeys/{added.json['passkey']['id']}"
    assert (await house.call("DELETE", one, token=done.json["access_token"])).status == 204
    for each in (done, added):
        assert await admins(each.json["access_token"]) == (403, "second_factor_required")


# -- at rest


async def test_sec_18_whoever_can_write_the_table_cannot_plant_a_passkey(
    house: House, db_clock: Clock, settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any
) -> None:
    me, thief = await person(house), await person(house, "bob@example.org")
    key = thief.phone.keys[0]
    await pool.execute("update passkeys set subject = $1 where id = $2::uuid", me.id, thief.passkey)
    planted = Authenticator(keys=[Key(key.id, key.private, me.id.encode())])
    assert (await me.login(planted)).code == "invalid_credentials"
    # its key is sealed anew when the secret was rotated
    before = await pool.fetchval("select sealed_key from passkeys where id = $1::uuid", me.passkey)
    secret = settings.sessions.secret_key.get_secret_value()
    rotated = {"sessions.secret_key": "another one" * 4, "sessions.previous_secret_keys": [secret]}
    async with build(with_values(settings, rotated), pool, revocations, sessions, pipe) as later:
        me.house = later
        assert (await me.login()).status == 200
    assert await pool.fetchval("select sealed_key from passkeys where id = $1::uuid", me.passkey) != before


async def test_answered_challenges_are_forgotten_in_the_end(house: House, db_clock: Clock, pool: Any) -> None:
    me = await person(house)
    await me.login()
    await passkeys.tidy(pool)
    assert await pool.fetchval("select count(*) from answered_challenges") == 2
    await pool.execute("update answered_challenges set until = until - interval '2 days'")
    await passkeys.tidy(pool)
    assert await pool.fetchval("select count(*) from answered_challenges") == 0


async def test_where_no_site_can_have_passkeys_none_are_made(
    db_clock: Clock, settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any
) -> None:
    nowhere = with_values(settings, {"client.allowed_origins": ["http://192.0.2.1"]})
    async with build(nowhere, pool, revocations, sessions, pipe) as house:
        made = await house.register(ALICE)
        assert (await add(house, Authenticator(), "x", by_of(made, "token"))).code == "forbidden"
        options = await house.call("POST", "/auth/passkeys/login/options", {"mode": "token"})
        assert options.code == "forbidden"


# -- lost


async def test_sec_16_recovery_codes_are_made_anew_by_a_fresh_factor_and_those_before_are_over(
    house: House, db_clock: Clock, tmp_path: Path
) -> None:
    me = await person(house)
    fresh = await house.call("POST", "/auth/recovery-codes", {}, **me.by)
    assert (fresh.status, len(set(fresh.json["recovery_codes"]))) == (200, 10)
    assert (await me.finish(await me.challenge(), code=me.recovery[0])).code == "invalid_credentials"
    assert (await me.finish(await me.challenge(), code=fresh.json["recovery_codes"][0])).status == 200
    await until(lambda: "New recovery codes were made" in letters(tmp_path))
    assert await me.audit("user.recovery_codes_made") == [{}]
    db_clock.move(16 * 60)
    assert (await house.call("POST", "/auth/recovery-codes", {}, **me.by)).code == "step_up_required"
    bob = await house.register("bob@example.org")
    assert (await house.call("POST", "/auth/recovery-codes", {}, **by_of(bob, "token"))).code == "forbidden"


async def test_sec_16_an_admin_removes_lost_factors_and_every_session_of_the_user_ends(
    house: House, db_clock: Clock, tmp_path: Path
) -> None:
    me, other = await person(house), await person(house, "bob@example.org")
    phone, _ = await turn_on(house, db_clock, me.added, "token")
    token, path = await house.admin(), f"/admin/users/{me.id}/factors"
    assert (await house.call("DELETE", path, {"reason": "lost"}, token=token)).code == "second_factor_required"
    admin = await add(house, Authenticator(), "key", {"token": token})
    by, challenge = by_of(admin, "token"), await me.challenge()
    assert (await house.call("DELETE", path, {"reason": ""}, **by)).code == "invalid"
    assert (await house.call("DELETE", path, {"reason": "lost"}, **me.by)).code == "forbidden"
    own = f"/admin/users/{admin_id(admin)}/factors"
    assert (await house.call("DELETE", own, {"reason": "lost"}, **by)).code == "forbidden"
    done = await house.call("DELETE", path, {"reason": "phone lost"}, **by)
    assert (done.status, done.json["revocation"]["sessions"]) == (200, 1), done.text
    assert (await house.call("GET", "/auth/me", **me.by)).code == "session_ended"
    assert (await me.finish(challenge, code=phone.code())).code == "unauthenticated"
    assert (await me.login()).code == "invalid_credentials"
    assert (await house.login(ALICE)).status == 200
    (row,) = (await house.call("GET", "/admin/audit?action=user.factors_removed", **by)).json["items"]
    assert row["detail"] == {"reason": "phone lost", "factors": ["totp", "passkey"]}
    assert (row["actor"], row["target"]) == (f"user:{admin_id(admin)}", f"user:{me.id}")
    await until(lambda: "Your second factors were removed" in letters(tmp_path))
    assert (await house.call("DELETE", path, {"reason": "again"}, **by)).code == "not_found"
    db_clock.move(16 * 60)
    assert (await house.call("DELETE", path, {"reason": "stale"}, **by)).code == "step_up_required"
    await house.pool.execute("update subjects set roles = '{helper}' where id = $1", other.id)
    helper = (await other.login()).json["access_token"]
    assert (await house.call("DELETE", own, {"reason": "lost"}, token=helper)).code == "forbidden"  # it may less
    key: dict[str, Any] = {"headers": {"X-API-Key": API_KEY}}
    assert (await house.call("DELETE", own, {"reason": "by a program"}, **key)).status == 200
    again = await house.call("DELETE", own, {"reason": "lost"}, token=helper)
    assert again.code == "forbidden"  # that an admin has no factor is not for them to know


def admin_id(answer: Answer) -> str:
    return str(claims_of(answer)["sub"])
