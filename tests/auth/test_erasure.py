"""Whoever is deleted is nobody any more: nothing of theirs is left, nothing of theirs works, and the audit holds."""

import asyncio
from typing import Any

import pyotp
import pytest

from auth import key_keeping, letters
from auth.letters import Order, Token
from config.settings import Settings, with_values
from sessions import audit, chain
from sessions.model import DISABLED, Kind
from tests.auth.conftest import PASSWORD, Answer, House, secret_of

EMAIL, NAME, ADDRESS, AGENT = "ada.lovelace@example.org", "Ada Lovelace", "198.51.100.77", "Analytical/1.0 Engine"
WORDS = "Ada wrote about Ada Lovelace"
GIVEN_UP = """
insert into jobs (kind, payload, dead_at)
select 'webhook', webhook_payload(gen_random_uuid(), a.action, a), now() from audit a where a.personal <> '{}'
"""
WAITING = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return with_values(settings, {"client.token.hmac_secret_key": "a-backend-secret-0123456789abcdef0123456789"})


async def ada(house: House, **more: Any) -> Any:
    """Somebody who has done this and that."""
    by: dict[str, Any] = {"address": ADDRESS, "headers": {"User-Agent": AGENT}}
    body = {"email": EMAIL, "password": PASSWORD, "display_name": NAME, "mode": "token"}
    made = (await house.call("POST", "/auth/register", body, **by)).json
    token = made["access_token"]
    picture = {"avatar_url": "https://example.org/ada.png"}
    assert (await house.call("PATCH", "/auth/me", picture, token=token, **by)).status == 200
    assert (await house.login(EMAIL, **by)).status == 200
    return made | {"by": by}


async def deleted(house: House, admin: str, id: str, reason: str = "asked by letter") -> Answer:
    return await house.call("DELETE", f"/admin/users/{id}", {"reason": reason}, token=admin)


async def forgotten(house: House) -> None:
    """Until the job has done its part."""
    async with asyncio.timeout(20):
        while await house.pool.fetchval("select count(*) from jobs where kind = 'person.forget'"):
            pass


async def everything(house: House) -> dict[str, str]:
    """Each table of the database, as text."""
    tables = await house.pool.fetch("select tablename from pg_tables where schemaname = 'public'")
    names = [row["tablename"] for row in tables]
    return {n: "\n".join(r[0] for r in await house.pool.fetch(f'select t::text from "{n}" t')) for n in names}


async def test_nothing_of_a_deleted_person_is_left_and_the_audit_holds(house: House, settings: Settings) -> None:
    made, admin = await ada(house), await house.admin()
    id, token, by = made["user"]["id"], made["access_token"], made["by"]
    for until_ in ("2099-01-01T00:00:00Z", None):
        body = {"banned_until": until_, "reason": WORDS}
        assert (await house.call("PATCH", f"/admin/users/{id}", body, token=admin)).status == 200
    token = (await house.login(EMAIL, **by)).json["access_token"]
    begun = (await house.call("POST", "/auth/totp", {}, token=token, **by)).json
    code = {"code": pyotp.TOTP(begun["secret"]).now()}
    assert (await house.call("POST", "/auth/totp/confirm", code, token=token, **by)).status == 200
    sid = (await house.call("GET", "/auth/me", token=token)).json["session"]["sid"]
    order = {"target": {"sid": sid}, "reason": WORDS}
    assert (await house.call("POST", "/admin/revocations", order, token=admin)).status == 201
    async with house.pool.acquire() as connection, connection.transaction():
        await letters.post(connection, Order("new_device", EMAIL, "en", {"name": NAME}))
        await letters.post(
            connection, Order("change_email", "b@example.org", "en", {"name": NAME}, Token("change_email", id, 9.0))
        )
    await house.pool.execute(GIVEN_UP)
    sealer = chain.sealer(settings.sessions)
    async with house.pool.acquire() as connection:
        await chain.seal(connection, sealer)
        assert (await chain.verify(connection, sealer)).broken == ""
    there = await everything(house)
    assert all(any(text in table for table in there.values()) for text in (EMAIL, NAME, ADDRESS, AGENT, WORDS))
    assert (await deleted(house, admin, id)).status == 200
    await forgotten(house)
    for table, text in (await everything(house)).items():
        for personal in (EMAIL, NAME, ADDRESS, AGENT, WORDS, "ada.png"):
            assert personal not in text, (table, personal)
    async with house.pool.acquire() as connection:
        verdict = await chain.verify(connection, sealer)
        assert (verdict.broken, verdict.blanked > 5) == ("", True)
        await chain.seal(connection, sealer)
        assert (await chain.verify(connection, sealer)).broken == ""
    rows = (await house.call("GET", f"/admin/audit?target=user:{id}", token=admin)).json["items"]
    assert rows[0]["action"] == "user.deleted"
    assert rows[0]["detail"] == {"reason": "asked by letter"}
    assert [row["detail"].keys() for row in rows if row["action"] == "user.banned"] == [{"before", "after"}]
    assert all(row["address"] == "192.0.2.1" for row in rows if row["actor"] != f"user:{id}")


async def test_sec_27_nothing_of_a_deleted_person_works_and_the_address_is_free(house: House) -> None:
    made, admin = await ada(house), await house.admin()
    id, cookie = made["user"]["id"], secret_of(await house.login(EMAIL, mode="cookie"))
    answer = await deleted(house, admin, id)
    assert answer.json["revocation"]["sessions"] == 3
    row = await house.pool.fetchrow("select kind, subject, code, reason from revocation_log order by seq desc limit 1")
    assert row is not None
    assert tuple(row) == (Kind.USER, id, DISABLED, "account_deleted")
    for credential in ({"token": made["access_token"]}, {"cookie": cookie}):
        gone = await house.call("GET", "/auth/me", **credential)
        assert (gone.status, gone.code, gone.json["reason"]) == (401, "session_ended", "account_deleted")
    refreshed = await house.call("POST", "/auth/refresh", {"refresh_token": made["refresh_token"]})
    assert refreshed.code == "session_ended"
    assert (await house.login(EMAIL)).code == "invalid_credentials"
    for method, path in (("DELETE", ""), ("PATCH", ""), ("POST", "/export")):
        answer = await house.call(method, f"/admin/users/{id}{path}", {"reason": "again"}, token=admin)
        assert (answer.status, answer.code) == (404, "not_found"), method
    other = await house.register(EMAIL)
    assert other.json["user"]["id"] != id
    assert (await house.call("GET", "/auth/me", token=made["access_token"])).code == "session_ended"
    assert (await house.call("GET", "/auth/me", token=other.json["access_token"])).status == 200


async def test_words_about_a_session_that_was_forgotten_before_its_person_stayed(house: House) -> None:
    made, admin = await ada(house), await house.admin()
    id, sid = made["user"]["id"], made["session"]["sid"]
    order = {"target": {"sid": sid}, "reason": WORDS}
    assert (await house.call("POST", "/admin/revocations", order, token=admin)).status == 201
    await house.pool.execute("delete from sessions where sid = $1", sid)  # as `sessions.keep_ended` later
    async with house.pool.acquire() as connection:
        await audit.append(connection, "user.factor_refused", actor="system", target=f"user:{id}", address=ADDRESS)
    assert (await deleted(house, admin, id)).status == 200
    await forgotten(house)
    there = await everything(house)
    assert not [table for table, text in there.items() if WORDS in text or ADDRESS in text]


async def test_a_key_that_was_made_while_its_maker_was_deleted_stayed(house: House) -> None:
    made, admin = await ada(house), await house.admin()
    id, sid = made["user"]["id"], made["session"]["sid"]
    async with house.revocations.acting(f"user:{id}", sid) as writing:
        new = key_keeping.NewKey("Ada's", ["audit"], owner=id)
        await key_keeping.create(writing.connection, new, within={"*"}, by={"actor": f"user:{id}"})
        deleting = asyncio.create_task(deleted(house, admin, id))
        async with asyncio.timeout(10):
            while not await house.pool.fetchval(WAITING):
                pass
    assert (await deleting).status == 200
    assert await house.pool.fetchval("select count(*) from api_keys") == 0


async def test_a_person_deletes_their_account_by_their_password(house: House) -> None:
    made = await ada(house)
    token = made["access_token"]
    for password, code in (("", "invalid_credentials"), ("wrong wrong wrong", "invalid_credentials")):
        answer = await house.call("DELETE", "/auth/me", {"password": password}, token=token)
        assert (answer.status, answer.code) == (401, code)
    answer = await house.call("DELETE", "/auth/me", {"password": PASSWORD}, token=token)
    assert (answer.status, answer.json["revocation"]["sessions"]) == (200, 2)
    assert (await house.call("GET", "/auth/me", token=token)).code == "session_ended"
    assert await house.pool.fetchval("select count(*) from users") == 0
    actor = await house.pool.fetchrow("select actor, address from audit where action = 'user.deleted'")
    assert actor is not None
    assert tuple(actor) == (f"user:{made['user']['id']}", "")


async def test_with_a_second_factor_a_deletion_wants_a_fresh_one(house: House) -> None:
    token = (await house.register()).json["access_token"]
    secret = (await house.call("POST", "/auth/totp", {}, token=token)).json["secret"]
    on = await house.call("POST", "/auth/totp/confirm", {"code": pyotp.TOTP(secret).now()}, token=token)
    assert on.status == 200
    await house.pool.execute("update sessions set auth_time = auth_time - interval '1 hour'")
    body = {"password": PASSWORD}
    for method, path, sent in (("DELETE", "/auth/me", body), ("GET", "/auth/me/export", None)):
        answer = await house.call(method, path, sent, token=on.json["access_token"])
        assert (answer.status, answer.code) == (401, "step_up_required")
    await house.pool.execute("update sessions set auth_time = clock_timestamp()")
    assert (await house.call("DELETE", "/auth/me", body, token=on.json["access_token"])).status == 200


async def test_an_admin_with_a_second_factor_deletes_nobody_without_a_fresh_one(house: House) -> None:
    admin, user = await house.admin(), (await house.register()).json["user"]["id"]
    secret = (await house.call("POST", "/auth/totp", {}, token=admin)).json["secret"]
    on = await house.call("POST", "/auth/totp/confirm", {"code": pyotp.TOTP(secret).now()}, token=admin)
    token = on.json["access_token"]
    await house.pool.execute("update sessions set auth_time = auth_time - interval '1 hour'")
    assert (await deleted(house, token, user)).code == "step_up_required"
    await house.pool.execute("update sessions set auth_time = clock_timestamp()")
    assert (await deleted(house, token, user)).status == 200


async def test_who_may_delete_whom(house: House, settings: Settings) -> None:
    admin, user = await house.admin(), (await house.register()).json
    me = (await house.call("GET", "/auth/me", token=admin)).json["user"]["id"]
    assert (await deleted(house, admin, me)).code == "forbidden"
    assert (await deleted(house, user["access_token"], me)).code == "forbidden"
    assert (await deleted(house, admin, user["user"]["id"], reason="")).code == "invalid"
    assert (await house.call("DELETE", f"/admin/users/{user['user']['id']}", {}, token=admin)).code == "invalid"
    assert (await deleted(house, admin, "u_nobody")).code == "not_found"
    assert await house.pool.fetchval("select count(*) from users") == 2


async def test_a_person_who_came_with_a_cookie_loses_it_with_the_account(house: House) -> None:
    cookie = secret_of(await house.register(mode="cookie"))
    answer = await house.call("DELETE", "/auth/me", {"password": PASSWORD}, cookie=cookie)
    assert (answer.status, answer.cookies["wardgate"].value) == (200, "")


async def test_a_password_that_was_changed_while_it_was_checked_deletes_nobody(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (await house.register()).json["access_token"]
    original = house.accounts.passwords.check

    async def changed_meanwhile(stored: str | None, password: str) -> Any:
        await house.pool.execute("update subjects set credential_version = credential_version + 1")
        return await original(stored, password)

    monkeypatch.setattr(house.accounts.passwords, "check", changed_meanwhile)
    answer = await house.call("DELETE", "/auth/me", {"password": PASSWORD}, token=token)
    assert answer.status != 200
    assert await house.pool.fetchval("select count(*) from users") == 1
