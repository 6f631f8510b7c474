"""A ban: everything that a user has ends, nothing new begins, and it is over by itself, by the database's clock."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from config.settings import Settings, with_values
from sessions.model import DISABLED, Kind
from tests.auth.conftest import Answer, House, secret_of

SECRET = "a-backend-secret-0123456789abcdef0123456789"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_values(settings, {"client.token.hmac_secret_key": SECRET})


def ahead(**span: float) -> str:
    return (datetime.now(UTC) + timedelta(**span)).isoformat()


async def ban(house: House, admin: str, id: str, until: str | None, **more: Any) -> Answer:
    body = {"banned_until": until, "reason": "spam", **more}
    return await house.call("PATCH", f"/admin/users/{id}", body, token=admin)


async def over(house: House, id: str) -> None:
    """Wait until the ban that ends soon has ended, by the database's clock and as the process holds that."""
    until = await house.pool.fetchval(
        "update subjects set banned_until = clock_timestamp() + interval '50 ms' where id = $1"
        " returning extract(epoch from banned_until)::float8",
        id,
    )
    sql = "select extract(epoch from clock_timestamp())::float8"
    async with asyncio.timeout(10):
        while min(await house.pool.fetchval(sql), house.revocations.database_now()) <= until:
            pass


async def test_a_time_in_other_words_was_refused_without_saying_how_one_looks(house: House) -> None:
    id = (await house.register()).json["user"]["id"]
    refused = await ban(house, await house.admin(), id, "tomorrow")
    told = {"field": "banned_until", "message": "a time with its offset, like 2026-01-31T12:00:00Z"}
    assert (refused.status, refused.json["errors"]) == (422, [told])


async def test_an_admin_locked_themselves_out_by_disabling_their_own_account(house: House) -> None:
    admin = await house.admin()
    id = (await house.call("GET", "/auth/me", token=admin)).json["user"]["id"]
    for change in ({"disabled": True}, {"banned_until": ahead(hours=1)}):
        refused = await house.call("PATCH", f"/admin/users/{id}", {"reason": "spam", **change}, token=admin)
        assert (refused.status, refused.code) == (403, "forbidden")
    assert (await house.call("GET", "/auth/me", token=admin)).status == 200


async def test_sec_27_a_ban_refuses_everything_until_it_is_over(house: House) -> None:
    made, cookie, admin = (
        (await house.register()).json,
        secret_of(await house.login(mode="cookie")),
        await house.admin(),
    )
    id = made["user"]["id"]
    answer = await ban(house, admin, id, ahead(hours=1))
    assert (answer.status, answer.json["revocation"]["sessions"]) == (200, 2)
    assert (answer.json["user"]["disabled"], answer.json["user"]["banned_until"][-1]) == (False, "Z")
    for credential in ({"token": made["access_token"]}, {"cookie": cookie}):
        gone = await house.call("GET", "/auth/me", **credential)
        assert (gone.status, gone.code, gone.json["reason"]) == (401, "session_ended", "spam")
    refreshed = await house.call("POST", "/auth/refresh", {"refresh_token": made["refresh_token"]})
    assert refreshed.code == "session_ended"
    assert (await house.login()).code == "invalid_credentials"
    rows = await house.pool.fetch("select kind, subject, code, message from revocation_log where kind <> 6")
    assert [tuple(row)[:3] for row in rows] == [(Kind.USER, id, DISABLED)]
    assert rows[0]["message"] == f"banned until {answer.json['user']['banned_until']}"
    await over(house, id)
    assert (await house.login()).status == 200
    listed = await house.call("GET", "/admin/users?email=alice", token=admin)
    assert listed.json["items"][0]["banned_until"] is None
    assert (await house.call("GET", "/auth/me", token=made["access_token"])).code == "session_ended"


async def test_sec_27_a_banned_user_of_another_issuer_stays_out_with_new_tokens(house: House) -> None:
    def token(sid: str) -> str:
        now = int(time.time())
        return jwt.encode({"sub": "42", "sid": sid, "iat": now + 30, "exp": now + 600}, SECRET, "HS256")

    admin, first = await house.admin(), token("first")
    assert (await house.call("GET", "/auth/sessions", token=first)).status == 200
    assert (await ban(house, admin, "42", ahead(hours=1))).status == 200
    for sid in ("first", "second"):
        answer = await house.call("GET", "/auth/sessions", token=token(sid))
        assert (answer.status, answer.code) == (401, "session_ended")
    await over(house, "42")
    assert (await house.call("GET", "/auth/sessions", token=token("third"))).status == 200
    assert (await house.call("GET", "/auth/sessions", token=first)).status == 401


async def test_a_ban_is_moved_and_lifted_and_each_is_told(house: House) -> None:
    admin, id = await house.admin(), (await house.register()).json["user"]["id"]
    assert (await ban(house, admin, id, ahead(hours=1))).json["revocation"] is not None
    longer = await ban(house, admin, id, ahead(hours=2))
    assert longer.json["revocation"] is None
    lifted = await ban(house, admin, id, None)
    assert (lifted.json["user"]["banned_until"], lifted.json["revocation"]) == (None, None)
    assert (await ban(house, admin, id, None)).status == 200
    assert (await house.login()).status == 200
    both = await ban(house, admin, id, ahead(hours=1), disabled=True)
    assert (both.json["user"]["disabled"], both.json["revocation"]["sessions"]) == (True, 1)
    rows = await house.pool.fetch("select action, detail from audit where target = $1 order by id", f"user:{id}")
    told = [(row["action"], row["detail"]) for row in rows if row["action"] != "user.created"]
    assert [action for action, _ in told] == [
        "user.banned", "user.banned", "user.unbanned", "user.banned", "user.changed"
    ]  # fmt: skip
    assert told[1][1]["after"] == {"banned_until": longer.json["user"]["banned_until"]}
