"""Guests: a session without an account, that becomes one's own by registering, or ends by logging in."""

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from config.settings import Settings, with_values
from sessions.model import REPLACED, Kind
from sessions.service import Sessions
from tests.auth.conftest import PASSWORD, Answer, House, build, secret_of

ALICE = "alice@example.org"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_values(settings, {"auth.guests": True, "auth.guests_per_address_per_hour": 0})


@pytest.fixture
async def house(settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any) -> AsyncIterator[House]:
    async with build(settings, pool, revocations, sessions, pipe) as house:
        yield house


async def guest(house: House, mode: str = "token", **more: Any) -> Answer:
    answer = await house.call("POST", "/auth/guest", {"mode": mode}, **more)
    assert answer.status == 201, answer.text
    return answer


async def register(house: House, email: str = ALICE, *, mode: str = "token", **more: Any) -> Answer:
    body = {"email": email, "password": PASSWORD, "mode": mode}
    return await house.call("POST", "/auth/register", body, **more)


async def me(house: House, **credential: Any) -> Answer:
    return await house.call("GET", "/auth/me", **credential)


async def log_rows(house: House) -> list[tuple[int, str, str, int]]:
    text = "select kind, subject, sid, code from revocation_log where kind <> 6 order by seq"
    return [tuple(row) for row in await house.pool.fetch(text)]


async def test_a_guest_is_a_user_with_nothing_but_a_session(house: House) -> None:
    answer = await guest(house)
    user = answer.json["user"]
    assert re.fullmatch(r"u_[a-z2-7]{26}", user["id"])
    assert (user["email"], user["display_name"], user["roles"]) == ("", "", [])
    assert set(answer.json) == {"user", "session", "access_token", "token_type", "expires_in", "refresh_token"}
    found = await me(house, token=answer.json["access_token"])
    assert found.json["user"] == user
    named = await house.call("PATCH", "/auth/me", {"display_name": "Ada"}, token=answer.json["access_token"])
    assert (named.status, "a guest registers first" in named.json["detail"]) == (403, True)
    renewed = await house.call("POST", "/auth/refresh", {"refresh_token": answer.json["refresh_token"]})
    assert renewed.status == 200
    assert (await house.call("POST", "/auth/logout", {}, token=renewed.json["access_token"])).status == 204
    assert (await me(house, token=answer.json["access_token"])).code == "session_ended"


async def test_a_page_gets_a_cookie_and_no_device_is_known_by_it(house: House) -> None:
    answer = await guest(house, "cookie")
    assert set(answer.cookies) == {"wardgate"}
    assert (await me(house, cookie=secret_of(answer))).json["user"] == answer.json["user"]
    assert (await house.call("POST", "/auth/guest", {}, origin="https://evil.example")).code == "cross_site"
    assert (await house.call("POST", "/auth/guest", {"email": ALICE})).status == 422


async def test_guests_are_off_unless_they_are_wanted_and_limited_by_address(
    settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any
) -> None:
    for off in ({"auth.guests": False}, {"auth.local_accounts": False}):
        async with build(with_values(settings, off), pool, revocations, sessions, pipe) as house:
            answer = await house.call("POST", "/auth/guest", {"mode": "token"})
            assert (answer.status, answer.code) == (403, "forbidden")
    limited = with_values(settings, {"auth.guests_per_address_per_hour": 3})
    async with build(limited, pool, revocations, sessions, pipe) as house:
        for _ in range(3):
            await guest(house)
        answer = await house.call("POST", "/auth/guest", {"mode": "token"})
        assert (answer.status, answer.code) == (429, "too_many_attempts")
        assert int(answer.headers["Retry-After"]) == pytest.approx(1200, abs=3)
        await guest(house, address="198.51.100.1")
        assert (await register(house)).status == 201  # that is another limit


# -- registering


async def test_sec_13_a_guest_who_registers_stays_the_same_user_in_a_new_session(house: House) -> None:
    for mode in ("cookie", "token"):
        before = await guest(house, mode)
        old = {"cookie": secret_of(before)} if mode == "cookie" else {"token": before.json["access_token"]}
        after = await register(house, f"{mode}@example.org", mode=mode, **old)
        assert after.status == 201
        assert after.json["user"]["id"] == before.json["user"]["id"]
        assert after.json["user"]["email"] == f"{mode}@example.org"
        assert after.json["session"]["sid"] != before.json["session"]["sid"]
        new = {"cookie": secret_of(after)} if mode == "cookie" else {"token": after.json["access_token"]}
        assert (await me(house, **new)).json["user"] == after.json["user"]
        assert (await me(house, **old)).code == "session_ended"
        again = await house.login(f"{mode}@example.org")
        assert again.json["user"]["id"] == before.json["user"]["id"]
        assert len(await house.pool.fetch("select from audit where action = 'user.created'")) == (mode == "token") + 1


async def test_a_guests_sockets_come_back_with_3014_before_the_session_ends(house: House) -> None:
    before = await guest(house)
    user, sid = before.json["user"]["id"], before.json["session"]["sid"]
    assert (await register(house, token=before.json["access_token"])).status == 201
    rights, session = await log_rows(house)
    assert rights[:2] == (Kind.RIGHTS, user)
    assert session == (Kind.SESSION, "", sid, REPLACED)


async def test_the_audit_did_not_say_that_a_guests_session_ended_by_registering(house: House) -> None:
    for mode in ("token", "cookie"):
        before = await guest(house, mode)
        old = {"cookie": secret_of(before)} if mode == "cookie" else {"token": before.json["access_token"]}
        after = await register(house, f"{mode}@example.org", mode=mode, **old)
        text = "select detail from audit where action = 'session.opened' and target = $1"
        detail = await house.pool.fetchval(text, f"session:{after.json['session']['sid']}")
        assert detail["replaced"] == [before.json["session"]["sid"]]


async def test_a_guests_refresh_token_renews_nothing_after_registering(house: House) -> None:
    before = await guest(house)
    await register(house, token=before.json["access_token"])
    answer = await house.call("POST", "/auth/refresh", {"refresh_token": before.json["refresh_token"]})
    assert (answer.status, answer.code) == (401, "session_ended")


async def test_a_guest_who_registers_many_times_at_once_is_one_account(house: House) -> None:
    before = await guest(house)
    token = before.json["access_token"]
    answers = await asyncio.gather(*(register(house, f"{n}@example.org", token=token) for n in range(6)))
    assert sorted(answer.status for answer in answers) == [201] + [401] * 5
    assert {answer.code for answer in answers} == {"", "session_ended"}
    assert await house.pool.fetchval("select count(*) from users") == 1
    assert await house.pool.fetchval("select count(*) from subjects") == 1


async def test_a_taken_address_leaves_the_guest_as_it_was(house: House) -> None:
    await register(house)
    before = await guest(house)
    assert (await register(house, token=before.json["access_token"])).code == "email_taken"
    assert (await me(house, token=before.json["access_token"])).json["user"] == before.json["user"]
    assert await log_rows(house) == []


async def test_registering_with_what_is_no_guests_makes_a_new_user(house: House) -> None:
    """A person's session is not taken over, a session that is over proves nothing, and a bad token is refused."""
    alice = (await register(house)).json
    other = await register(house, "bob@example.org", token=alice["access_token"])
    assert other.json["user"]["id"] != alice["user"]["id"]
    assert (await me(house, token=alice["access_token"])).status == 200
    gone = await guest(house, "cookie")
    await house.call("POST", "/auth/logout", {}, cookie=secret_of(gone))
    fresh = await register(house, "carol@example.org", mode="cookie", cookie=secret_of(gone))
    assert fresh.status == 201
    assert fresh.json["user"]["id"] != gone.json["user"]["id"]
    left = await guest(house)
    await house.call("POST", "/auth/logout", {}, token=left.json["access_token"])
    for token, code in ((left.json["access_token"], "session_ended"), ("nonsense", "unauthenticated")):
        assert (await register(house, "dan@example.org", token=token)).code == code
    assert await house.pool.fetchval("select count(*) from users where email like 'dan%'") == 0


# -- logging in


async def test_a_guest_who_logs_in_is_that_user_and_the_guest_is_over(house: House) -> None:
    alice = (await register(house)).json
    for mode in ("cookie", "token"):
        before = await guest(house, mode)
        old = {"cookie": secret_of(before)} if mode == "cookie" else {"token": before.json["access_token"]}
        after = await house.call("POST", "/auth/login", {"email": ALICE, "password": PASSWORD, "mode": mode}, **old)
        assert after.json["user"] == alice["user"]
        assert (await me(house, **old)).code == "session_ended"
    assert [row[0] for row in await log_rows(house)] == [Kind.SESSION, Kind.SESSION]
    assert (await me(house, token=alice["access_token"])).status == 200


async def test_a_login_needs_no_other_token_and_ends_no_persons_session(house: House) -> None:
    alice = (await register(house)).json
    bob = (await register(house, "bob@example.org")).json
    for token in (bob["access_token"], "nonsense", ""):
        assert (await house.login(token=token)).status == 200
    for made in (alice, bob):
        assert (await me(house, token=made["access_token"])).status == 200


async def test_a_wrong_password_ends_no_guest(house: House) -> None:
    await register(house)
    before = await guest(house)
    await house.login(password="wrong wrong wrong", token=before.json["access_token"])
    assert (await me(house, token=before.json["access_token"])).status == 200


# -- admins, and what becomes of them


async def test_admins_end_and_disable_guests_as_anyone(house: House) -> None:
    admin = await house.admin()
    before = await guest(house)
    id = before.json["user"]["id"]
    answer = await house.call("PATCH", f"/admin/users/{id}", {"disabled": True, "reason": "abuse"}, token=admin)
    assert (answer.status, answer.json["user"]["email"]) == (200, "")
    assert (await me(house, token=before.json["access_token"])).code == "session_ended"
    assert (await register(house, "x@example.org", token=before.json["access_token"])).code == "session_ended"
    everyone = await house.call("GET", "/admin/users", token=admin)
    assert id not in [user["id"] for user in everyone.json["items"]]


async def test_guests_are_forgotten_after_their_sessions_and_nobody_else_is(house: House, sessions: Sessions) -> None:
    stays = [(await register(house)).json["user"]["id"], (await guest(house)).json["user"]["id"]]
    upgraded = await guest(house)
    stays.append((await register(house, "b@example.org", token=upgraded.json["access_token"])).json["user"]["id"])
    gone = await guest(house)
    await house.call("POST", "/auth/logout", {}, token=gone.json["access_token"])
    await house.pool.execute("update subjects set created_at = created_at - interval '40 days'")
    assert await sessions.forget() == 0  # it was over a moment ago
    assert await house.pool.fetchval("select count(*) from subjects") == 4
    await house.pool.execute("update sessions set ended_at = ended_at - interval '40 days' where ended_at is not null")
    await sessions.forget()
    left = {row["id"] for row in await house.pool.fetch("select id from subjects")}
    assert left == set(stays)
