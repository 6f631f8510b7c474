"""Accounts over HTTP, as interface.md shapes them: from registering to changing a password."""

import asyncio
import base64
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import asyncpg
import jwt
import pytest

from auth import users
from auth.passwords import Stored
from auth.service import NO_ACCOUNT
from config.http import Problem
from config.redis import Pipe
from config.settings import Settings, with_values
from sessions import store
from sessions.model import Kind
from sessions.revocations import Entry, Revocations
from sessions.service import Sessions
from tests.auth.conftest import ORIGIN, PASSWORD, Answer, House, build, secret_of, unix

USER = {"id", "email", "display_name", "roles", "created_at"}
SESSION = {"sid", "created_at", "expires_at", "idle_expires_at"}


NO_ADDRESSES = (
    [
        "",
        "a",
        "@",
        "a@",
        "@b",
        "a@b@c",
        "a b@c.org",
        "a@b c.org",
        "a@-b.org",
        "a@b-.org",
        "a@b..org",
        ".a@b.org",
        "a.@b.org",
        "a..b@c.org",
        "a@b.org\n",
        "a\u200b@b.org",
        "<a@b.org>",
        '"a"@b.org',
        "a" * 65 + "@b.org",
        "a@" + "b" * 64 + ".org",
        "a@" + ".".join(["b" * 60] * 5),
        "\ufdfa" * 60 + "@b.org",
    ],
)


BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"password": "short"}, "password"),
    ({"password": "x" * 1025}, "password"),
    ({"password": "é" * 600}, "password"),
    ({"password": 1}, "password"),
    ({"password": None}, "password"),
    ({"display_name": "x" * 101}, "display_name"),
    ({"display_name": "a\tb"}, "display_name"),
    ({"display_name": "a\u202eb"}, "display_name"),
    ({"mode": "both"}, "mode"),
    ({"roles": ["admin"]}, "roles"),
    ({"id": "u_x"}, "id"),
    ({"email": ["a@b.org"]}, "email"),
]


BAD_BODIES = [
    (b"{", 400),
    (b"[]", 422),
    (b'{"email":"a@b.org","email":"c@d.org"}', 400),
    (b'{"email":"a\\u0000@b.org","password":"xxxxxxxxxxxxx"}', 400),
    (b'{"email":"a@b.org","password":"\\ud800xxxxxxxxxxxxx"}', 400),
    (b'{"password":"\xff"}', 400),
    (b"", 422),
    (b"x" * 70_000, 413),
    (b'{"a":' * 40 + b"1" + b"}" * 40, 400),
]


def claims(token: str) -> dict[str, Any]:
    return dict(json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==")))


# -- registering and logging in


async def test_registering_in_token_mode_gives_tokens_and_no_cookie(house: House) -> None:
    answer = await house.register(display_name="Alice Ähnlich")
    assert set(answer.json) == {"user", "session", "access_token", "token_type", "expires_in", "refresh_token"}
    assert "Set-Cookie" not in answer.headers
    assert answer.headers["Cache-Control"] == "no-store"
    user, session = answer.json["user"], answer.json["session"]
    assert set(user) == USER
    assert re.fullmatch(r"u_[a-z2-7]{26}", user["id"])
    assert (user["email"], user["display_name"], user["roles"]) == ("alice@example.org", "Alice Ähnlich", [])
    assert set(session) == SESSION
    assert (answer.json["token_type"], answer.json["expires_in"]) == ("Bearer", 600)
    said = claims(answer.json["access_token"])
    assert (said["sub"], said["sid"]) == (user["id"], session["sid"])
    assert unix(session["expires_at"]) - unix(session["created_at"]) == pytest.approx(90 * 86400, abs=1)
    assert unix(session["idle_expires_at"]) - unix(session["created_at"]) == pytest.approx(14 * 86400, abs=1)


async def test_registering_in_cookie_mode_sets_a_cookie_and_gives_no_token(house: House) -> None:
    answer = await house.register(mode="cookie")
    assert set(answer.json) == {"user", "session"}
    cookie = answer.cookies["wardgate"]
    assert cookie["httponly"] is True
    assert (cookie["samesite"], cookie["path"]) == ("Lax", "/")
    assert len(cookie.value) == 43
    assert answer.json["session"]["sid"] not in cookie.value
    me = await house.call("GET", "/auth/me", cookie=cookie.value)
    assert me.status == 200
    assert me.json == answer.json | {"scopes": [], "aal": 1, "session": me.json["session"]}


async def test_the_cookie_mode_is_the_default(house: House) -> None:
    body = {"email": "a@example.org", "password": PASSWORD}
    assert secret_of(await house.call("POST", "/auth/register", body))
    assert secret_of(await house.call("POST", "/auth/login", body))


async def test_a_taken_address_is_409_in_every_spelling(house: House) -> None:
    await house.register("straße@example.org")
    for email in ("straße@example.org", "STRASSE@EXAMPLE.ORG", "Straße@Example.Org", "ｓtraße@example.org"):
        body = {"email": email, "password": PASSWORD, "mode": "token"}
        answer = await house.call("POST", "/auth/register", body)
        assert (answer.status, answer.code) == (409, "email_taken"), email
        assert (await house.login(email)).status == 200


async def test_twenty_who_register_one_address_at_once_are_one_account(house: House) -> None:
    body = {"email": "alice@example.org", "password": PASSWORD, "mode": "token"}
    answers = await asyncio.gather(*(house.call("POST", "/auth/register", body) for _ in range(10)))
    assert sorted(answer.status for answer in answers) == [201] + [409] * 9
    assert await house.pool.fetchval("select count(*) from users") == 1
    assert await house.pool.fetchval("select count(*) from subjects") == 1
    assert await house.pool.fetchval("select count(*) from sessions") == 1


async def test_what_is_no_address_is_422(house: House) -> None:
    for email in NO_ADDRESSES:
        answer = await house.call("POST", "/auth/register", {"email": email, "password": PASSWORD, "mode": "token"})
        assert (answer.status, answer.code) == (422, "invalid"), email
        assert answer.json["errors"][0]["field"] == "email"


async def test_real_addresses_are_taken(house: House) -> None:
    for email in ("a@b", "first.last+tag@sub.example.org", "o'neil@example.org", "用户@例子.测试"):
        assert (await house.register(email)).json["user"]["email"] == email


async def test_bad_fields_are_422_by_name_and_nothing_is_written(house: House) -> None:
    for change, field in BAD_FIELDS:
        body = {"email": "a@example.org", "password": PASSWORD, "mode": "token"} | change
        answer = await house.call("POST", "/auth/register", body)
        assert (answer.status, answer.code) == (422, "invalid"), change
        assert answer.json["errors"][0]["field"] == field
    assert await house.pool.fetchval("select count(*) from subjects") == 0


async def test_sec_03_too_long_a_password_is_422_at_every_door(house: House) -> None:
    cookie = secret_of(await house.register(mode="cookie"))
    long = "x" * 1025
    for path, body, field in (
        ("/auth/register", {"email": "b@example.org", "password": long}, "password"),
        ("/auth/login", {"email": "alice@example.org", "password": long}, "password"),
        ("/auth/password", {"current_password": long, "new_password": PASSWORD}, "current_password"),
        ("/auth/password", {"current_password": PASSWORD, "new_password": long}, "new_password"),
    ):
        answer = await house.call("POST", path, body, cookie=cookie)
        assert (answer.status, answer.json["errors"][0]["field"]) == (422, field)
    assert (await house.login(password="wrong wrong wrong")).status == 401  # nothing was counted but this


async def test_sec_04_both_spellings_of_a_password_log_in(house: House) -> None:
    composed, decomposed = (unicodedata.normalize(form, "Größe über Ångström") for form in ("NFC", "NFD"))
    for n, (chosen, other) in enumerate(((composed, decomposed), (decomposed, composed))):
        body = {"email": f"{n}@example.org", "password": chosen, "mode": "token"}
        token = (await house.call("POST", "/auth/register", body)).json["access_token"]
        assert (await house.login(f"{n}@example.org", other)).status == 200
        assert (await change(house, other, "another correct horse", token=token)).status == 204


async def test_sec_05_a_password_that_everybody_tries_is_refused_at_every_door(house: House) -> None:
    token = (await house.register()).json["access_token"]
    for password in ("password1234", "Summer2026!!", "alice1234567", "bob@example.org", "wardgate2026"):
        name = "bob" if password.startswith("bob") else "alice"
        body = {"email": f"{name}@example.org", "password": password, "mode": "token"}
        answer = await house.call("POST", "/auth/register", body)
        assert (answer.status, answer.json["errors"][0]["field"]) == (422, "password"), password
        assert answer.json["errors"][0]["message"].startswith("not "), password
    for password in ("password1234", "alice1234567"):
        answer = await change(house, PASSWORD, password, token=token)
        assert (answer.status, answer.json["errors"][0]["field"]) == (422, "new_password"), password


async def test_bad_bodies_never_reach_anything(house: House) -> None:
    for data, status in BAD_BODIES:
        for path in ("/auth/register", "/auth/login", "/auth/refresh"):
            answer = await house.call("POST", path, data=data)
            assert answer.status == status, answer.text
            assert answer.headers["Content-Type"].startswith("application/problem+json")


async def test_a_login_is_a_session_of_its_own(house: House) -> None:
    first, second = await house.register(), await house.login()
    assert second.status == 200
    assert first.json["session"]["sid"] != second.json["session"]["sid"]
    for answer in (first, second):
        assert (await house.call("GET", "/auth/me", token=answer.json["access_token"])).status == 200


async def test_local_accounts_and_registration_can_be_switched_off(
    settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any
) -> None:
    body = {"email": "a@example.org", "password": PASSWORD, "mode": "token"}
    async with build(with_values(settings, {"auth.registration": False}), pool, revocations, sessions, pipe) as house:
        answer = await house.call("POST", "/auth/register", body)
        assert (answer.status, answer.code) == (403, "forbidden")
        assert (await house.login()).code == "invalid_credentials"
    async with build(with_values(settings, {"auth.local_accounts": False}), pool, revocations, sessions, pipe) as house:
        for path in ("/auth/register", "/auth/login"):
            answer = await house.call("POST", path, body)
            assert (answer.status, answer.code) == (403, "forbidden")


async def test_registrations_are_limited_by_address_where_the_settings_say_so(
    settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any
) -> None:
    limited = with_values(settings, {"auth.register_per_address_per_hour": 3})
    async with build(limited, pool, revocations, sessions, pipe) as house:
        for n in range(3):
            await house.register(f"{n}@example.org")
        body = {"email": "3@example.org", "password": PASSWORD, "mode": "token"}
        answer = await house.call("POST", "/auth/register", body)
        assert (answer.status, answer.code) == (429, "too_many_attempts")
        assert int(answer.headers["Retry-After"]) == pytest.approx(1200, abs=3)
        assert (await house.call("POST", "/auth/register", body, address="198.51.100.1")).status == 201


# -- cookies and origins


async def test_sec_60_a_login_that_sets_a_cookie_comes_from_our_pages(house: House) -> None:
    await house.register()
    body = {"email": "alice@example.org", "password": PASSWORD}
    for path, passes in (("/auth/register", "email_taken"), ("/auth/login", "")):
        for origin in ("", "null", "https://evil.example", ORIGIN + ".evil.example", ORIGIN + "0", ORIGIN.upper()):
            answer = await house.call("POST", path, body, origin=origin)
            assert (answer.status, answer.code) == (403, "cross_site"), origin
            assert "Set-Cookie" not in answer.headers
            assert (await house.call("POST", path, body | {"mode": "token"}, origin=origin)).code == passes
        for site, code in (("same-origin", passes), ("same-site", "cross_site"), ("none", "cross_site")):
            answer = await house.call("POST", path, body, origin="", headers={"Sec-Fetch-Site": site})
            assert answer.code == code
            assert ("Set-Cookie" in answer.headers) == (code == "")


async def test_sec_60_a_form_post_is_refused(house: House) -> None:
    await house.register()
    raw = json.dumps({"email": "alice@example.org", "password": PASSWORD}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        answer = await house.call("POST", "/auth/login", data=raw, headers={"Content-Type": kind})
        assert (answer.status, answer.code) == (415, "unsupported_media_type")


async def test_sec_13_a_login_ends_the_session_of_the_cookie_before(house: House) -> None:
    first = secret_of(await house.register(mode="cookie"))
    answer = await house.call("POST", "/auth/login", {"email": "alice@example.org", "password": PASSWORD}, cookie=first)
    second = secret_of(answer)
    assert second != first
    assert (await house.call("GET", "/auth/me", cookie=second)).status == 200
    dead = await house.call("GET", "/auth/me", cookie=first)
    assert (dead.status, dead.code) == (401, "session_ended")


async def test_fixation_a_cookie_of_someones_choice_is_never_taken_over(house: House) -> None:
    chosen = "A" * 43
    answer = await house.call("POST", "/auth/register", {"email": "a@example.org", "password": PASSWORD}, cookie=chosen)
    assert secret_of(answer) != chosen
    assert (await house.call("GET", "/auth/me", cookie=chosen)).code == "unauthenticated"


# -- tokens


async def test_a_page_with_a_cookie_gets_an_access_token(house: House) -> None:
    cookie = secret_of(await house.register(mode="cookie"))
    answer = await house.call("POST", "/auth/token", {}, cookie=cookie)
    assert (answer.status, set(answer.json)) == (200, {"access_token", "expires_in"})
    me = await house.call("GET", "/auth/me", token=answer.json["access_token"])
    assert me.status == 200
    assert me.json["session"]["sid"] == claims(answer.json["access_token"])["sid"]
    assert (await house.call("POST", "/auth/token", {}, cookie=cookie, origin="https://evil.example")).status == 403
    with_token = await house.call("POST", "/auth/token", {}, token=answer.json["access_token"])
    assert (with_token.status, with_token.code) == (403, "forbidden")


async def test_refreshing_gives_the_next_generation(house: House) -> None:
    first = (await house.register()).json
    answer = await house.call("POST", "/auth/refresh", {"refresh_token": first["refresh_token"]})
    assert (answer.status, set(answer.json)) == (200, {"access_token", "token_type", "expires_in", "refresh_token"})
    assert answer.json["refresh_token"] != first["refresh_token"]
    assert claims(answer.json["access_token"])["sid"] == first["session"]["sid"]
    for token in (first["access_token"], answer.json["access_token"]):
        assert (await house.call("GET", "/auth/me", token=token)).status == 200


async def test_sec_20_reuse_ends_the_session_and_its_tokens(house: House) -> None:
    first = (await house.register()).json["refresh_token"]
    second = (await house.call("POST", "/auth/refresh", {"refresh_token": first})).json
    third = (await house.call("POST", "/auth/refresh", {"refresh_token": second["refresh_token"]})).json
    answer = await house.call("POST", "/auth/refresh", {"refresh_token": first})
    assert (answer.status, answer.code, answer.json["reason"]) == (401, "session_ended", "token_reuse")
    answer = await house.call("GET", "/auth/me", token=third["access_token"])
    assert (answer.status, answer.code, answer.json["reason"]) == (401, "session_ended", "token_reuse")


async def test_what_is_no_refresh_token_says_no_more(house: House) -> None:
    for token in ("", "x", "wgr_" + "A" * 76, "a.b.c", "é", "wgr_\n"):
        answer = await house.call("POST", "/auth/refresh", {"refresh_token": token})
        assert (answer.status, answer.code) == (401, "unauthenticated")


async def test_sec_24_nothing_minted_while_revoking_verifies_after(house: House) -> None:
    made = (await house.register()).json
    sid, refresh = made["session"]["sid"], made["refresh_token"]
    asked, minted = [asyncio.create_task(house.call("POST", "/auth/refresh", {"refresh_token": refresh}))], list[str]()
    async with house.revocations.writing() as writing:
        writing.append(Entry(kind=Kind.SESSION, sid=sid, reason="stolen"))
        asked += [asyncio.create_task(house.call("POST", "/auth/refresh", {"refresh_token": refresh})) for _ in "abcd"]
        await asyncio.sleep(0)
    minted += [answer.json["access_token"] for answer in await asyncio.gather(*asked) if answer.status == 200]
    for token in [made["access_token"], *minted]:
        answer = await house.call("GET", "/auth/me", token=token)
        assert (answer.status, answer.code) == (401, "session_ended")


async def test_the_key_set_verifies_what_we_make(house: House) -> None:
    answer = await house.call("GET", "/.well-known/jwks.json", origin="")
    assert answer.status == 200
    assert "max-age" in answer.headers["Cache-Control"]
    header = json.loads(base64.urlsafe_b64decode((await house.register()).json["access_token"].split(".")[0] + "=="))
    assert header["kid"] in [key["kid"] for key in answer.json["keys"]]
    assert all("d" not in key for key in answer.json["keys"])


# -- changing a password


async def change(house: House, current: str, new: str, **more: Any) -> Answer:
    body = {"current_password": current, "new_password": new}
    return await house.call("POST", "/auth/password", body, **more)


async def test_sec_15_a_password_change_ends_every_other_session(house: House) -> None:
    other, cookie = (await house.register()).json, secret_of(await house.login(mode="cookie"))
    mine = (await house.login()).json
    answer = await change(house, PASSWORD, "another correct horse", token=mine["access_token"])
    assert (answer.status, answer.text) == (204, "")
    assert (await house.call("GET", "/auth/me", token=mine["access_token"])).status == 200
    for credential in ({"token": other["access_token"]}, {"cookie": cookie}):
        gone = await house.call("GET", "/auth/me", **credential)
        assert (gone.status, gone.code, gone.json["reason"]) == (401, "session_ended", "password_changed")
    assert (await house.call("POST", "/auth/refresh", {"refresh_token": other["refresh_token"]})).status == 401
    assert (await house.call("POST", "/auth/refresh", {"refresh_token": mine["refresh_token"]})).status == 200
    assert (await house.login()).code == "invalid_credentials"
    assert (await house.login(password="another correct horse")).status == 200


async def test_a_password_change_with_a_cookie_keeps_the_cookie(house: House) -> None:
    cookie = secret_of(await house.register(mode="cookie"))
    evil = await change(house, PASSWORD, "another correct horse", cookie=cookie, origin="https://evil.example")
    assert (evil.status, evil.code) == (403, "cross_site")
    assert (await change(house, PASSWORD, "another correct horse", cookie=cookie)).status == 204
    assert (await house.call("GET", "/auth/me", cookie=cookie)).status == 200


async def test_the_current_password_is_asked_and_guesses_are_counted(house: House) -> None:
    token = (await house.register()).json["access_token"]
    answers = [await change(house, "wrong wrong wrong", "another correct horse", token=token) for _ in range(6)]
    assert [answer.code for answer in answers] == ["invalid_credentials"] * 5 + ["too_many_attempts"]
    assert (await house.login()).status == 200  # whoever has the session does not hold the owner back at the door
    assert (await house.login(address="198.51.100.1")).status == 200


async def test_a_new_password_is_judged_like_a_first_one(house: House) -> None:
    token = (await house.register()).json["access_token"]
    for new in ("short", "x" * 1025):
        answer = await change(house, PASSWORD, new, token=token)
        assert (answer.status, answer.json["errors"][0]["field"]) == (422, "new_password")
    assert (await change(house, PASSWORD, "another correct horse")).code == "unauthenticated"


async def test_a_login_that_verified_the_old_password_opens_nothing_after_the_change(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (await house.register()).json["access_token"]
    verified, go = asyncio.Event(), asyncio.Event()
    original = house.accounts.passwords.check

    async def slow(stored: str | None, password: str) -> Any:
        verdict = await original(stored, password)
        verified.set()
        await asyncio.wait_for(go.wait(), 10)
        return verdict

    monkeypatch.setattr(house.accounts.passwords, "check", slow)
    login = asyncio.create_task(house.login(address="198.51.100.1"))
    await asyncio.wait_for(verified.wait(), 10)
    monkeypatch.setattr(house.accounts.passwords, "check", original)
    assert (await change(house, PASSWORD, "another correct horse", token=token)).status == 204
    go.set()
    answer = await login
    assert (answer.status, answer.code) == (401, "invalid_credentials")


async def test_a_session_that_ends_meanwhile_changes_no_password(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """7e: the mutation asks the session's row in its own transaction."""
    made = (await house.register()).json
    original = house.accounts.passwords.make

    async def revoked_meanwhile(field: str, password: str) -> Stored:
        async with house.revocations.writing() as writing:
            writing.append(Entry(kind=Kind.SESSION, sid=made["session"]["sid"], reason="stolen"))
        return await original(field, password)

    monkeypatch.setattr(house.accounts.passwords, "make", revoked_meanwhile)
    answer = await change(house, PASSWORD, "another correct horse", token=made["access_token"])
    assert (answer.status, answer.code) == (401, "session_ended")
    assert (await house.login()).status == 200


# -- me


async def test_me(house: House) -> None:
    made = (await house.register(display_name="Alice")).json
    me = await house.call("GET", "/auth/me", token=made["access_token"])
    assert me.json["user"] == made["user"]
    assert set(me.json["session"]) == SESSION
    nobody = await house.call("GET", "/auth/me")
    assert (nobody.status, nobody.code, nobody.headers["WWW-Authenticate"]) == (401, "unauthenticated", "Bearer")


async def test_a_session_or_a_user_that_the_database_lost(house: House) -> None:
    token = (await house.register()).json["access_token"]
    await house.pool.execute("delete from sessions")
    answer = await house.call("GET", "/auth/me", token=token)
    assert (answer.status, answer.code) == (401, "unauthenticated")


async def test_f12_without_postgresql_a_login_says_so_and_is_not_held_against_anyone(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.register()

    async def away(*_: Any) -> Any:
        raise ConnectionRefusedError

    with monkeypatch.context() as patched:
        patched.setattr("auth.users.by_email", away)
        for path in ("/auth/login", "/auth/register"):
            body = {"email": "alice@example.org", "password": PASSWORD, "mode": "token"}
            answer = await house.call("POST", path, body)
            assert (answer.status, answer.code) == (503, "unavailable")
            assert int(answer.headers["Retry-After"]) > 0
    assert (await house.login(password="wrong wrong wrong")).status == 401
    with monkeypatch.context() as patched:
        patched.setattr("auth.users.add_failures", away)
        await house.accounts.people.flush()
    await house.accounts.people.flush()
    assert await house.pool.fetchval("select failures from users") == 1


async def test_two_processes_that_counted_failures_of_the_same_accounts_waited_for_each_other(pool: Any) -> None:
    """Each locks in the order of ids, so who waits for the first holds nothing of the second."""
    first, second = "u_" + "a" * 26, "u_" + "b" * 26
    async with pool.acquire() as one, pool.acquire() as two, pool.acquire() as three:
        for id in (second, first):
            await store.create_subject(one, id)
            await users.insert(one, id, f"{id}@example.org", "", Stored(""))
        async with one.transaction():
            await one.execute("select from users where id = $1 for update", first)
            counting = asyncio.create_task(users.add_failures(two, {second: 1, first: 1}))
            waits = "select exists (select from pg_locks where pid = $1 and not granted)"
            async with asyncio.timeout(2):
                while not await three.fetchval(waits, two.get_server_pid()):
                    pass
            await one.execute("select from users where id = $1 for update nowait", second)
        await counting


async def test_f12_after_an_outage_whoever_had_kept_trying_was_locked_out(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.register()

    async def away(*_: Any) -> Any:
        raise ConnectionRefusedError

    with monkeypatch.context() as patched:
        patched.setattr("auth.users.by_email", away)
        assert {(await house.login()).status for _ in range(8)} == {503}
    assert (await house.login()).status == 200


async def test_a_full_pool_does_not_keep_an_old_form_from_logging_in(
    settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with build(settings, pool, revocations, sessions, pipe) as house:
        await house.register()
    async with build(with_values(settings, {"auth.bcrypt_cost": 5}), pool, revocations, sessions, pipe) as house:

        async def full(password: str) -> str:
            raise Problem("busy")

        monkeypatch.setattr(house.accounts.passwords, "hash", full)
        assert (await house.login()).status == 200


async def test_an_account_that_is_disabled_while_its_password_is_checked_stays_out(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.register()
    original = house.accounts.passwords.check

    async def disabled_meanwhile(stored: str | None, password: str) -> Any:
        await house.pool.execute("update subjects set state = 'disabled'")
        return await original(stored, password)

    monkeypatch.setattr(house.accounts.passwords, "check", disabled_meanwhile)
    answer = await house.login()
    assert (answer.status, answer.code) == (401, "invalid_credentials")


async def test_sec_07_an_address_that_is_nobodys_is_not_the_next_ones(house: House) -> None:
    assert await users.by_email(house.pool, "a@example.org") is None
    await house.register("bob@example.org")
    for nobody in ("a@example.org", "bob@example.or", "bob@example.org ", "z@example.org"):
        assert await users.by_email(house.pool, nobody) is None
        assert (await house.login(nobody)).code == "invalid_credentials"
    found = await users.by_email(house.pool, "bob@example.org")
    assert found is not None
    assert found.user.email == "bob@example.org"


async def test_a_person_changes_their_name_and_picture(house: House) -> None:
    token = (await house.register(display_name="Al")).json["access_token"]
    body = {"display_name": "Alice", "avatar_url": "https://example.org/a.png?size=64#x"}
    answer = await house.call("PATCH", "/auth/me", body, token=token)
    assert (answer.status, set(answer.json)) == (200, USER | {"avatar_url"})
    me = (await house.call("GET", "/auth/me", token=token)).json["user"]
    assert (me["display_name"], me["avatar_url"]) == ("Alice", body["avatar_url"])
    answer = await house.call("PATCH", "/auth/me", {"avatar_url": ""}, token=token)
    assert (answer.json["display_name"], set(answer.json)) == ("Alice", USER)
    words = await house.pool.fetchval("select personal from audit where action = 'user.profile_changed' order by id")
    assert words["before"] == {"display_name": "Al", "avatar_url": ""}
    assert words["after"] == {"display_name": "Alice", "avatar_url": body["avatar_url"]}


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/a.png",
        "javascript:alert(1)",
        "data:image/png;base64,AAAA",
        "//example.org/a.png",
        "https://",
        "https:///a.png",
        "https://user:pass@example.org/a.png",
        "https://example.org:port/a.png",
        "https://example.org/\u00e4.png",
        'https://example.org/"onerror=',
        "https://example.org/" + "a" * 500,
        "https://[::1/a.png",
    ],
)
async def test_a_picture_is_an_address_over_https_and_nothing_else(house: House, url: str) -> None:
    token = (await house.register()).json["access_token"]
    answer = await house.call("PATCH", "/auth/me", {"avatar_url": url}, token=token)
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, "avatar_url")


async def test_who_has_no_account_here_is_told_so(
    settings: Settings, pool: asyncpg.Pool, revocations: Revocations, sessions: Sessions, pipe: Pipe, tmp_path: Path
) -> None:
    secret = "a-backend-secret-0123456789abcdef0123456789"
    values = {"client.token.hmac_secret_key": secret, "mail.folder": str(tmp_path), "mail.sender": "a@example.org"}
    async with build(with_values(settings, values), pool, revocations, sessions, pipe) as house:
        now = int(revocations.database_now())
        token = jwt.encode({"sub": "42", "sid": "s1", "iat": now, "exp": now + 600}, secret, "HS256")
        email = {"new_email": "b@example.org", "current_password": PASSWORD}
        for method, path, body in (
            ("DELETE", "/auth/me", {"password": PASSWORD}),
            ("PATCH", "/auth/me", {"display_name": "Al"}),
            ("POST", "/auth/email", email),
        ):
            answer = await house.call(method, path, body, token=token)
            assert (answer.status, answer.code) == (403, "forbidden"), answer.text
            assert answer.json["detail"] == NO_ACCOUNT
        assert (await house.call("GET", "/auth/me", token=token)).status in (200, 404)


async def test_a_longer_address_than_there_is_logs_nobody_in(house: House) -> None:
    answer = await house.login("a" * 300 + "@example.org")
    assert (answer.status, answer.json["errors"][0]["field"]) == (422, "email")
