"""What an attacker tries at the door: finding out who has an account, guessing, breaking the SQL, filling the pool."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from auth.passwords import Hasher
from auth.service import Client
from auth.throttle import SHARED
from config.http import ROUTES
from config.settings import Settings, with_values
from tests.auth.conftest import PASSWORD, Answer, House, build, secret_of

METACHARACTERS = [
    "'",
    '"',
    "'; DROP TABLE users; --",
    "' OR '1'='1",
    "\\",
    "\\'",
    "$1",
    "%",
    "_",
    "%s",
    "{0}",
    "${7*7}",
    "/*",
    "--",
    ";",
    "\u2019",
    "a'||(select password_hash from users limit 1)||'",
    "\\x27",
    "E'\\x27'",
    "\r\nSet-Cookie: a=b",
    "../../etc/passwd",
    "\U0001f512" * 8,
]


class Counted:
    """How many hashes were asked for, and how many statements."""

    def __init__(self, house: House, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hashes, self.statements = 0, 0
        monkeypatch.setattr(Hasher, "check", self._counting(Hasher.check))
        monkeypatch.setattr(Hasher, "hash", self._counting(Hasher.hash))
        self._house = house

    def _counting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.hashes += 1
            return original(*arguments)

        return counted

    async def during(self, work: Any) -> tuple[Answer, int]:
        before = self.hashes
        answer = await work
        return answer, self.hashes - before


def told(answer: Answer) -> tuple[int, Any, dict[str, str]]:
    """Everything that a client can compare."""
    moving = {"Date"}
    return answer.status, answer.json, {k: v for k, v in answer.headers.items() if k not in moving}


async def test_sec_07_unknown_wrong_disabled_banned_and_damaged_are_told_apart_by_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wrong", "disabled", "banned", "damaged", "without", "guessed"):
        await house.register(f"{name}@example.org")
    await house.pool.execute("update users set failures = 100 where email like 'guessed%'")
    await house.pool.execute(
        "update subjects set state = 'disabled' where id = (select id from users where email like 'disabled%')"
    )
    await house.pool.execute(
        "update subjects set banned_until = clock_timestamp() + interval '1 hour'"
        " where id = (select id from users where email like 'banned%')"
    )
    await house.pool.execute("update users set password_hash = '$2b$oops' where email like 'damaged%'")
    await house.pool.execute("update users set password_hash = null where email like 'without%'")
    counted = Counted(house, monkeypatch)
    seen = []
    statements: list[str] = []
    monkeypatch.setattr(asyncpg.pool.Pool, "fetchrow", _logged(statements, asyncpg.pool.Pool.fetchrow))
    pairs = (
        ("unknown", "wrong wrong wrong"),
        ("wrong", "wrong wrong wrong"),
        ("disabled", "wrong wrong wrong"),
        ("disabled", PASSWORD),
        ("banned", "wrong wrong wrong"),
        ("banned", PASSWORD),
        ("damaged", PASSWORD),
        ("without", PASSWORD),
        ("guessed", PASSWORD),
        ("guessed", "wrong wrong wrong"),
        ("not an address", PASSWORD),
        ("", PASSWORD),
        ("wrong", ""),
    )
    for n, (name, password) in enumerate(pairs):  # each from elsewhere: what an address has left is told
        statements.clear()
        email = f"{name}@example.org" if name.isalpha() else name
        answer, hashes = await counted.during(house.login(email, password, address=f"203.0.113.{n}"))
        seen.append((told(answer), hashes, list(statements)))
    assert seen[0][0][0] == 401
    assert seen[0][0][1]["code"] == "invalid_credentials"
    assert seen[0][1] == 1
    assert len(seen[0][2]) == 1
    assert all(one == seen[0] for one in seen)


def _logged(statements: list[str], original: Any) -> Any:
    async def fetchrow(self: Any, query: str, *args: Any, **kwargs: Any) -> Any:
        statements.append(query)
        return await original(self, query, *args, **kwargs)

    return fetchrow


async def test_sec_07_an_old_form_does_not_tell_that_a_disabled_account_was_guessed(
    settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with build(settings, pool, revocations, sessions, pipe) as house:
        await house.register()
        await pool.execute("update subjects set state = 'disabled'")
    async with build(with_values(settings, {"auth.bcrypt_cost": 5}), pool, revocations, sessions, pipe) as house:
        counted = Counted(house, monkeypatch)
        answer, hashes = await counted.during(house.login())
        assert (answer.status, hashes) == (401, 1)


async def test_sec_08_a_hash_is_renewed_at_the_next_login(
    settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any
) -> None:
    old_pepper = settings.auth.pepper.get_secret_value()
    async with build(settings, pool, revocations, sessions, pipe) as house:
        await house.register()
        old = await pool.fetchval("select password_hash from users")
    changed = with_values(
        settings,
        {"auth.bcrypt_cost": 5, "auth.pepper": "p" * 40, "auth.previous_peppers": [old_pepper]},
    )
    async with build(changed, pool, revocations, sessions, pipe) as house:
        assert (await house.login(password="wrong wrong wrong")).status == 401
        assert await pool.fetchval("select password_hash from users") == old
        assert (await house.login()).status == 200
        new = await pool.fetchval("select password_hash from users")
        assert new[8:15] == "$2b$05$"
        assert new[:8] != old[:8]
        assert (await house.login()).status == 200
        assert await pool.fetchval("select password_hash from users") == new


async def test_sec_11_fifty_parallel_wrong_guesses_count_as_fifty(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.register()
    counted = Counted(house, monkeypatch)
    answers = await asyncio.gather(*(house.login(password=f"wrong wrong {n}") for n in range(50)))
    codes = [answer.code for answer in answers]
    assert codes.count("invalid_credentials") == SHARED.free == counted.hashes
    assert codes.count("too_many_attempts") == 50 - SHARED.free
    assert all(int(a.headers["Retry-After"]) > 0 for a in answers if a.status == 429)
    assert (await house.login()).code == "too_many_attempts"  # the right one comes too late as well
    await house.accounts.people.flush()
    assert await house.pool.fetchval("select failures from users") == SHARED.free


async def test_sec_12_the_count_is_the_same_for_who_has_no_account(house: House) -> None:
    answers = [await house.login("nobody@example.org", "wrong wrong wrong") for _ in range(6)]
    assert [answer.code for answer in answers] == ["invalid_credentials"] * 5 + ["too_many_attempts"]
    spelled = await house.login("NOBODY@example.org", "wrong wrong wrong")
    assert spelled.code == "too_many_attempts"


async def test_a_success_clears_the_failures(house: House) -> None:
    await house.register()
    for _ in range(3):
        await house.login(password="wrong wrong wrong")
    await house.accounts.people.flush()
    assert await house.pool.fetchval("select failures from users") == 3
    await house.login(password="wrong wrong wrong")
    assert (await house.login()).status == 200
    await house.accounts.people.flush()
    assert await house.pool.fetchval("select failures from users") == 0


async def test_a_strangers_wrong_passwords_held_the_owner_back_where_he_had_registered(house: House) -> None:
    await house.register()
    await guess_from_everywhere(house)
    assert (await house.login(address="203.0.113.99")).code == "too_many_attempts"
    assert (await house.login()).status == 200


async def test_sec_10_a_known_device_logs_in_during_an_attack_from_any_address(house: House) -> None:
    await house.register(mode="cookie")
    known = device_of(await house.login(mode="cookie"))
    await guess_from_everywhere(house)
    away = "198.51.100.200"
    assert (await house.login(mode="cookie", address=away)).code == "too_many_attempts"
    assert (await house.login(mode="cookie", address=away, headers=known)).status == 200
    for _ in range(5):  # its own budget ends as well
        wrong = await house.login(password="wrong wrong wrong", mode="cookie", address="198.51.100.201", headers=known)
        assert wrong.code == "invalid_credentials"
    assert (await house.login(mode="cookie", address="198.51.100.202", headers=known)).code == "too_many_attempts"


async def test_sec_10_strangers_behind_the_same_proxy_do_not_hold_a_known_device_back(house: House) -> None:
    known = device_of(await house.register(mode="cookie"))
    for n in range(110):
        await house.login(f"{n}@example.org" if n > 10 else "alice@example.org", "wrong wrong wrong")
    assert (await house.login(mode="cookie")).code == "too_many_attempts"
    assert (await house.login(mode="cookie", headers=known)).status == 200


async def test_sec_10_a_device_is_known_to_its_own_account_alone(house: House) -> None:
    mallory = device_of(await house.register("mallory@example.org", mode="cookie"))
    await house.register()
    await guess_from_everywhere(house)
    name, value = mallory["Cookie"].split("=")
    for cookie in (value, value[:-1] + ("A" if value[-1] != "A" else "B"), "A" * len(value), "", "x" * 5000, "é"):
        answer = await house.login(mode="cookie", address="198.51.100.200", headers={"Cookie": f"{name}={cookie}"})
        assert answer.code == "too_many_attempts", cookie


async def test_sec_10_a_hundred_failures_disable_the_password_but_where_its_owner_is_known(house: House) -> None:
    known = device_of(await house.register(mode="cookie"))
    await house.pool.execute("update users set failures = 99")
    assert (await house.login(address="203.0.113.1")).status == 200  # not a hundred yet, and that begins anew
    assert await house.pool.fetchval("select failures from users") == 0
    await house.pool.execute("update users set failures = 99")
    for n in range(2):
        await house.login(password="wrong wrong wrong", address=f"203.0.113.{n + 2}")
        await house.accounts.people.flush()
    assert await house.pool.fetchval("select failures from users") == 101
    done = await house.pool.fetchval("select count(*) from audit where action = 'user.password_disabled'")
    assert done == 1
    refused = await house.login(address="203.0.113.50")
    wrong = await house.login(password="wrong wrong wrong", address="203.0.113.51")
    assert (refused.status, refused.text) == (wrong.status, wrong.text)
    assert refused.code == "invalid_credentials"
    inside = await house.login(mode="cookie", address="203.0.113.52", headers=known)
    assert inside.status == 200
    assert (await house.login(address="203.0.113.53")).code == "invalid_credentials"  # a login is no reset
    new = "another fine password"
    body = {"current_password": PASSWORD, "new_password": new}
    assert (await house.call("POST", "/auth/password", body, cookie=secret_of(inside))).status == 204
    assert (await house.login(password=new, address="203.0.113.54")).status == 200


async def test_sec_12_a_session_is_a_known_device_for_a_change_of_password(house: House) -> None:
    made = await house.register(mode="cookie")
    await guess_from_everywhere(house)
    cookie = secret_of(made)
    body = {"current_password": PASSWORD, "new_password": "another fine password"}
    for n in range(5):
        wrong = body | {"current_password": "wrong wrong wrong"}
        answer = await house.call("POST", "/auth/password", wrong, cookie=cookie, address=f"198.51.100.{n}")
        assert answer.code == "invalid_credentials"
    answer = await house.call("POST", "/auth/password", body, cookie=cookie, address="198.51.100.9")
    assert answer.code == "too_many_attempts"
    other = secret_of(await house.login(mode="cookie"))
    assert (await house.call("POST", "/auth/password", body, cookie=other, address="198.51.100.9")).status == 204


async def test_sec_12_no_route_takes_a_password_unlimited(
    settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any, tmp_path: Path
) -> None:
    """Every route whose body has a password to be checked is here; each of them answers 429 in the end.
    /auth/verify-email, which wants a letter, is in test_mailbox."""
    wrong = "wrong wrong wrong"
    bodies: dict[str, dict[str, Any]] = {
        "/auth/login": {"email": "alice@example.org", "password": wrong, "mode": "token"},
        "/auth/password": {"current_password": wrong, "new_password": "another correct horse"},
        "/auth/email": {"current_password": wrong, "new_email": "b@example.org"},
        "/auth/step-up": {"password": wrong},
        "/auth/me": {"password": wrong},
    }
    mail = {"mail.folder": str(tmp_path), "mail.change_email_link": "https://example.org/#{token}"}
    async with build(with_values(settings, mail), pool, revocations, sessions, pipe) as house:
        await house.register(mode="cookie")
        taking = {
            route.path
            for route in house.server.app[ROUTES]
            if route.body is not None and {"password", "current_password"} & set(route.body.__struct_fields__)
        }
        # A new account's password is nobody's guess, nor is one that somebody only thinks of.
        assert taking - {"/auth/register", "/auth/verify-email", "/auth/password/strength"} == set(bodies)
        for path, body in bodies.items():
            cookie = secret_of(await house.login(mode="cookie"))  # a device of its own
            method = "DELETE" if path == "/auth/me" else "POST"
            codes = [(await house.call(method, path, body, cookie=cookie)).code for _ in range(6)]
            assert codes == ["invalid_credentials"] * 5 + ["too_many_attempts"], path
            await _forget_attempts(house)


async def guess_from_everywhere(house: House) -> None:
    """A stranger tries the account from several addresses until it is closed to those whom nobody knows."""
    codes = [(await house.login(password="wrong wrong wrong", address=f"198.51.100.{n // 4}")).code for n in range(24)]
    assert codes == ["invalid_credentials"] * 20 + ["too_many_attempts"] * 4


def device_of(answer: Answer) -> dict[str, str]:
    """The header of a browser that sends the device's cookie and no session's."""
    return {"Cookie": f"wardgate-device={answer.cookies['wardgate-device'].value}"}


async def test_dozens_register_and_log_in_from_one_address_within_seconds(house: House) -> None:
    for n in range(30):
        await house.register(f"{n}@example.org")
        assert (await house.login(f"{n}@example.org")).status == 200
    for _ in range(30):
        assert (await house.login("0@example.org")).status == 200


async def test_sec_26_fifty_parallel_right_logins_all_succeed(house: House) -> None:
    await house.register()
    answers = await asyncio.gather(*(house.login() for _ in range(50)))
    assert [answer.status for answer in answers] == [200] * 50
    live = await house.call("GET", "/auth/sessions?limit=200", token=answers[-1].json["access_token"])
    assert live.status in (200, 401)  # the last of the list need not be the last to be opened
    tokens = [answer.json["access_token"] for answer in answers]
    states = [(await house.call("GET", "/auth/me", token=token)).status for token in tokens]
    assert states.count(200) == 20


# -- SQL, headers, paths


async def test_metacharacters_in_every_text_field_are_only_text(house: House) -> None:
    admin = await house.admin()
    cookie = secret_of(await house.register("plain@example.org", mode="cookie"))
    users = await house.pool.fetchval("select count(*) from users")
    for text in METACHARACTERS:
        plain = text.encode("ascii", "replace").decode().replace("\r\n", "")
        answers = [
            await house.login(f"{text}@example.org", text + "x" * 12),
            await house.login(text, text),
            await house.call("POST", "/auth/refresh", {"refresh_token": text}),
            await house.call(
                "POST",
                "/auth/refresh",
                {"refresh_token": text},
                token=text.encode("ascii", "replace").decode().replace("\r\n", ""),
            ),
            await house.call("POST", "/auth/password", {"current_password": text, "new_password": text}, cookie=cookie),
            await house.call("GET", f"/admin/users?{_query(email=text)}", token=admin),
            await house.call("GET", f"/admin/users?{_query(role=text)}", token=admin),
            await house.call("GET", f"/admin/users?{_query(after=text)}", token=admin),
            await house.call("GET", f"/admin/users?{_query(limit=text)}", token=admin),
            await house.call("PATCH", f"/admin/users/{_quoted(text)}", {"reason": "x", "disabled": True}, token=admin),
            await house.call("PATCH", "/admin/users/u_x", {"reason": text[:64], "roles": [text[:32]]}, token=admin),
            await house.call("GET", "/auth/me", headers={"X-API-Key": plain}),
            await house.call("GET", "/auth/me", cookie=_quoted(text)),
        ]
        for n, answer in enumerate(answers):
            assert answer.status < 500, (text, n, answer.text)
            if answer.status == 200:
                assert answer.json["items"] == [] or text in ("%", "_"), (text, n, answer.text)
        await house.pool.execute("update users set failures = 0")
        await _forget_attempts(house)
    assert await house.pool.fetchval("select count(*) from users") == users


async def test_wildcards_in_a_filter_are_letters(house: House) -> None:
    admin = await house.admin()
    await house.register("a_b@example.org")
    await house.register("a%b@example.org")
    await house.register("axb@example.org")
    for prefix in ("a_", "a%"):
        found = await house.call("GET", f"/admin/users?{_query(email=prefix)}", token=admin)
        assert [item["email"] for item in found.json["items"]] == [f"{prefix}b@example.org"]


async def test_metacharacters_in_a_password_and_a_name_are_kept_as_they_are(house: House) -> None:
    for n, text in enumerate(METACHARACTERS):
        password, name = text + " and then some words", text if text.isprintable() else ""
        body = {"email": f"p{n}@example.org", "password": password, "display_name": name, "mode": "token"}
        answer = await house.call("POST", "/auth/register", body)
        assert answer.status == 201, answer.text
        assert answer.json["user"]["display_name"] == name
        assert (await house.login(f"p{n}@example.org", password)).status == 200


async def test_mass_assignment_is_refused_by_name(house: House) -> None:
    for extra in ("roles", "id", "admin", "created_at", "credential_version", "__proto__", "password_hash"):
        body = {"email": "a@example.org", "password": PASSWORD, "mode": "token", extra: ["admin"]}
        answer = await house.call("POST", "/auth/register", body)
        assert (answer.status, answer.json["errors"][0]["field"]) == (422, extra)


def _query(**values: str) -> str:
    return "&".join(f"{name}={_quoted(value)}" for name, value in values.items())


def _quoted(text: str) -> str:
    return "".join(f"%{byte:02X}" for byte in text.encode())


async def _forget_attempts(house: House) -> None:
    pipe = house.accounts.people._throttle._shared._pipe
    for name in await pipe.call("KEYS", "wardgate:{throttle}*"):
        await pipe.call("DEL", name)


# -- the hash pool


async def test_sec_09_a_full_pool_is_503_with_retry_after_and_health_stays_quick(
    settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any
) -> None:
    heavy = with_values(settings, {"auth.bcrypt_cost": 10, "auth.hash_threads": 1, "auth.hash_queue": 3})
    async with build(heavy, pool, revocations, sessions, pipe) as house:
        waits: list[float] = []
        done = asyncio.Event()

        async def look() -> None:
            while not done.is_set():
                start = time.perf_counter()
                assert (await house.call("GET", "/.well-known/jwks.json")).status == 200
                waits.append(time.perf_counter() - start)

        looking = asyncio.create_task(look())
        logins = (house.login(f"{n}@example.org", address=f"192.0.2.{n}") for n in range(40))
        answers = await asyncio.gather(*logins)
        done.set()
        await looking
        codes = [answer.code for answer in answers]
        assert set(codes) == {"busy", "invalid_credentials"}
        assert codes.count("invalid_credentials") >= 4
        busy = [answer for answer in answers if answer.code == "busy"]
        assert all(answer.status == 503 and int(answer.headers["Retry-After"]) > 0 for answer in busy)
        assert sorted(waits)[len(waits) // 2] < 0.05
        assert house.accounts.passwords.pool.taken == 0
        # being shed costs nobody an attempt
        again = [await house.login("39@example.org", address="192.0.2.39") for _ in range(4)]
        assert {answer.code for answer in again} == {"invalid_credentials"}


async def test_f22_a_login_that_is_cancelled_anywhere_leaks_nothing(house: House) -> None:
    await house.register()
    assert (await house.login(address="198.51.100.1")).status == 200  # its owner's home from now on
    people, hashing = house.accounts.people, house.accounts.passwords.pool
    for turns in range(0, 900, 15):
        task = asyncio.create_task(
            people.log_in("alice@example.org", PASSWORD, "token", Client(f"2001:db8:{turns:x}::1", "test"))
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await hashing.run(lambda: None)
    assert hashing.taken == 0
    assert people._throttle._turns._locks == {}
    assert (await house.login(address="198.51.100.1")).status == 200


async def test_f1_without_redis_logins_go_on_and_guesses_are_limited(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.register()
    await house.accounts.people._throttle._shared._pipe.close()
    assert (await house.login()).status == 200
    codes = [(await house.login(password="wrong wrong wrong")).code for _ in range(4)]
    assert codes == ["invalid_credentials"] * 3 + ["too_many_attempts"]


async def test_whoever_had_the_address_before_was_known_to_the_account_of_whoever_has_it_now(house: House) -> None:
    """After a deletion: neither by the device nor by the address."""
    home, crowd = "192.0.2.77", "198.51.100.{}"
    body = {"email": "alice@example.org", "password": PASSWORD}
    first = await house.call("POST", "/auth/register", body, address=home)
    device = {"Cookie": f"wardgate-device={first.cookies['wardgate-device'].value}"}
    gone = await house.call("DELETE", "/auth/me", {"password": PASSWORD}, cookie=secret_of(first), address=home)
    assert gone.status == 200, gone.text
    assert (await house.call("POST", "/auth/register", body, address="203.0.113.5")).status == 201
    for n in range(20):
        assert (await house.login(password="not the right one", address=crowd.format(n))).status == 401
    assert (await house.login(password="not the right one", address=crowd.format(99))).status == 429
    for headers in ({}, device):
        guess = await house.login(password="not the right one", mode="cookie", address=home, headers=headers)
        assert guess.status == 429, headers
    assert (await house.login(address="203.0.113.5")).status == 200
