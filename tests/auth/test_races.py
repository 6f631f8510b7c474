"""The same thing twice at once, or a thing and what ends it, in two processes: one of them wins, and never both."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import asyncpg
import pyotp
import pytest

from config.clock import SystemClock
from config.redis import Pipe
from config.settings import Settings, with_values
from sessions.service import Sessions
from tests.auth.authenticator import Authenticator
from tests.auth.conftest import PASSWORD, Answer, House, build
from tests.conftest import revoking

ROUNDS = 3
OTHER = "another long password"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_values(settings, {"auth.guests": True, "auth.register_per_address_per_hour": 0})


@pytest.fixture
async def elsewhere(settings: Settings, pool: asyncpg.Pool, house: House, pipe: Pipe) -> AsyncIterator[House]:
    """Another process."""
    async with revoking(pool, settings) as revocations:
        sessions = Sessions(pool, revocations, settings.sessions, clock=SystemClock())
        await sessions.start()
        async with build(settings, pool, revocations, sessions, pipe) as other:
            yield other
        await sessions.close()


async def at_once(*asked: Awaitable[Answer]) -> list[Answer]:
    answers = list(await asyncio.gather(*asked))
    assert all(answer.status < 500 for answer in answers), [answer.text for answer in answers]
    return answers


async def lives(houses: tuple[House, House], token: str) -> bool:
    """Whether it opens a door in either, once both have heard of everything."""
    deadline = time.monotonic() + 5
    while (found := [(await one.call("GET", "/auth/me", token=token)).status for one in houses]) != [found[0]] * 2:
        assert time.monotonic() < deadline, found
    return found[0] == 200


async def test_a_login_beside_a_ban_opens_no_door(house: House, elsewhere: House) -> None:
    admin, user = await house.admin(), (await house.register()).json["user"]["id"]
    for _ in range(ROUNDS):
        ban = {"banned_until": "2099-01-01T00:00:00Z", "reason": "x"}
        login, banned = await at_once(
            elsewhere.login(address="198.51.100.1"), house.call("PATCH", f"/admin/users/{user}", ban, token=admin)
        )
        assert banned.status == 200
        assert login.status in (200, 401)
        if login.status == 200:
            assert not await lives((house, elsewhere), login.json["access_token"])
            renewed = await elsewhere.call("POST", "/auth/refresh", {"refresh_token": login.json["refresh_token"]})
            assert renewed.status == 401
        lifted = {"banned_until": None, "reason": "x"}
        assert (await house.call("PATCH", f"/admin/users/{user}", lifted, token=admin)).status == 200


async def test_a_refresh_beside_a_revocation_opens_no_door(house: House, elsewhere: House) -> None:
    await house.register()
    for _ in range(ROUNDS):
        made = (await house.login()).json
        renewed, ended = await at_once(
            elsewhere.call("POST", "/auth/refresh", {"refresh_token": made["refresh_token"]}),
            house.call("DELETE", f"/auth/sessions/{made['session']['sid']}", token=made["access_token"]),
        )
        assert ended.status == 204
        tokens = [made["access_token"], *([renewed.json["access_token"]] if renewed.status == 200 else [])]
        assert not any([await lives((house, elsewhere), token) for token in tokens])


async def test_a_key_that_is_rotated_and_revoked_at_once_is_no_key(house: House, elsewhere: House) -> None:
    admin = await house.admin()
    for _ in range(ROUNDS):
        made = (await house.call("POST", "/admin/keys", {"name": "x", "scopes": ["audit"]}, token=admin)).json
        path = f"/admin/keys/{made['key']['id']}"
        rotated, revoked = await at_once(
            elsewhere.call("POST", f"{path}/rotation", {}, token=admin), house.call("DELETE", path, token=admin)
        )
        assert (revoked.status, rotated.status in (200, 404)) == (204, True)
        secrets = [made["secret"], *([rotated.json["secret"]] if rotated.status == 200 else [])]
        for secret in secrets:
            assert (await house.call("GET", "/admin/audit", headers={"X-API-Key": secret})).status == 401


async def test_a_guest_becomes_one_account(house: House, elsewhere: House) -> None:
    for n in range(ROUNDS):
        guest = (await house.call("POST", "/auth/guest", {"mode": "token"})).json
        body = {"password": PASSWORD, "mode": "token"}
        by = {"token": guest["access_token"]}
        answers = await at_once(
            house.call("POST", "/auth/register", {**body, "email": f"a{n}@example.org"}, **by),
            elsewhere.call("POST", "/auth/register", {**body, "email": f"b{n}@example.org"}, **by),
        )
        assert sorted(answer.status for answer in answers) in ([201, 401], [201, 409]), [a.text for a in answers]
        [won] = [answer.json for answer in answers if answer.status == 201]
        assert won["user"]["id"] == guest["user"]["id"]
        assert not await lives((house, elsewhere), guest["access_token"])
        assert await house.pool.fetchval("select count(*) from users where id = $1", won["user"]["id"]) == 1


async def test_an_address_in_two_spellings_becomes_one_account(house: House, elsewhere: House) -> None:
    for n, other in enumerate(("ALICE{}@Example.org", "\uff41lice{}@example.org", "al\u0131ce{}@example.org")):
        body = {"password": PASSWORD, "mode": "token"}
        answers = await at_once(
            house.call("POST", "/auth/register", {**body, "email": f"alice{n}@example.org"}),
            elsewhere.call("POST", "/auth/register", {**body, "email": other.format(n)}),
        )
        same = "\u0131" not in other  # a dotless i is another letter
        assert sorted(answer.status for answer in answers) == ([201, 409] if same else [201, 201])


async def test_a_password_is_changed_once(house: House, elsewhere: House) -> None:
    email = "alice@example.org"
    await house.register(email)
    current = PASSWORD
    for n in range(3):
        tokens = [(await house.login(email, current)).json["access_token"] for _ in range(2)]
        wanted = [f"{OTHER} {n} {name}" for name in ("one", "two")]
        answers = await at_once(
            *(
                one.call("POST", "/auth/password", {"current_password": current, "new_password": new}, token=token)
                for one, token, new in zip((house, elsewhere), tokens, wanted, strict=True)
            )
        )
        assert sorted(answer.status for answer in answers) == [204, 401]
        current = wanted[0] if answers[0].status == 204 else wanted[1]
        assert (await house.login(email, current)).status == 200


class App:
    """An authenticator app by the real clock; each code is one that was not asked for before."""

    def __init__(self, secret: str) -> None:
        self._totp, self._last = pyotp.TOTP(secret), 0

    def code(self) -> str:
        self._last = max(self._last + 1, int(time.time()) // 30)
        return self._totp.generate_otp(self._last)


async def test_a_factor_is_turned_on_once_and_its_codes_are_good_once(house: House, elsewhere: House) -> None:
    made = (await house.register()).json
    by = {"token": made["access_token"]}
    app = App((await house.call("POST", "/auth/totp", {}, **by)).json["secret"])
    code = {"code": app.code()}
    on = await at_once(*(one.call("POST", "/auth/totp/confirm", code, **by) for one in (house, elsewhere)))
    assert sorted(answer.status for answer in on) == [200, 401]
    [recovery] = [answer.json["recovery_codes"] for answer in on if answer.status == 200]
    assert len(recovery) == 10
    for spent in (app.code(), recovery[0]):
        challenges = [(await one.login()).json["challenge"] for one in (house, elsewhere)]
        answers = await at_once(
            *(
                one.call("POST", "/auth/login/factor", {"challenge": asked, "code": spent, "mode": "token"})
                for one, asked in zip((house, elsewhere), challenges, strict=True)
            )
        )
        assert sorted(answer.status for answer in answers) == [200, 401], [answer.text for answer in answers]
    token = next(answer.json["access_token"] for answer in answers if answer.status == 200)
    answers = await at_once(
        *(one.call("POST", "/auth/step-up", {"code": recovery[1]}, token=token) for one in (house, elsewhere))
    )
    assert sorted(answer.status for answer in answers) == [200, 401]


async def test_a_passkey_is_registered_once(house: House, elsewhere: House) -> None:
    tokens = [(await house.register(f"{name}@example.org")).json["access_token"] for name in ("alice", "bob")]
    phone = Authenticator()
    options = (await house.call("POST", "/auth/passkeys/options", {}, token=tokens[0])).json
    body = {"name": "phone", "credential": phone.create(options)}
    answers = await at_once(*(one.call("POST", "/auth/passkeys", body, token=tokens[0]) for one in (house, elsewhere)))
    assert sorted(answer.status for answer in answers)[0] == 201
    assert sorted(answer.status for answer in answers)[1] in (401, 409, 422)
    assert (await house.call("POST", "/auth/passkeys", body, token=tokens[1])).status == 401
    assert await house.pool.fetchval("select count(*) from passkeys") == 1


async def test_a_user_who_is_deleted_leaves_no_key_that_opens(house: House, elsewhere: House) -> None:
    root = await house.admin()
    for n in range(ROUNDS):
        made = (await house.register(f"admin{n}@example.org")).json
        id = made["user"]["id"]
        await house.pool.execute("update subjects set roles = '{admin}' where id = $1", id)
        token = (await house.login(f"admin{n}@example.org")).json["access_token"]
        first = (await house.call("POST", "/admin/keys", {"name": "x", "scopes": ["*"]}, token=token)).json["secret"]
        own: dict[str, Any] = {"headers": {"X-API-Key": first}}
        second, gone = await at_once(
            elsewhere.call("POST", "/admin/keys", {"name": "y", "scopes": ["*"]}, **own),
            house.call("DELETE", f"/admin/users/{id}", {"reason": "x"}, token=root),
        )
        assert gone.status == 200
        assert second.status in (201, 401, 403)
        for secret in (first, *([second.json["secret"]] if second.status == 201 else [])):
            assert (await house.call("GET", "/admin/audit", headers={"X-API-Key": secret})).status == 401
