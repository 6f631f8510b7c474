"""Who is this? One credential is chosen and judged, for HTTP requests and for live connections."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import jwt
import pytest

from auth import key_keeping
from auth import keys as signing
from auth.api_keys import ApiKeys
from auth.errors import SessionEnded, TokenExpired, TokenInvalid
from auth.external import ServerSub
from auth.identity import Connected, Identity
from auth.keys import key_sealer
from config.http import Caller, Problem
from config.settings import Settings, with_values
from sessions.errors import Unavailable
from sessions.model import DISABLED, EXPIRED, REVOKED, Kind, Position
from sessions.revocations import Again, Entry, Revocations
from tests.auth.conftest import House, build, secret_of

SECRET = "a shared secret of more than thirty-two bytes"


@pytest.fixture
async def house(settings: Settings, pool: Any, revocations: Any, sessions: Any, pipe: Any) -> AsyncIterator[House]:
    """With an external issuer."""
    values = {
        "client.token.hmac_secret_key": SECRET,
        "client.issuers": [{"name": "corp", "hmac_secret_key": "c" * 40}],
    }
    async with build(with_values(settings, values), pool, revocations, sessions, pipe) as house:
        yield house


@pytest.fixture
def identity(house: House) -> Identity:
    return house.accounts.identity


def external(**claims: Any) -> str:
    return jwt.encode({"sub": "42", "iat": int(time.time()), "exp": int(time.time()) + 600} | claims, SECRET, "HS256")


async def end(house: House, **entry: Any) -> None:
    async with house.revocations.writing() as writing:
        writing.append(Entry(**entry))


# -- HTTP: one credential, never a fallback


async def test_a_bad_token_is_never_saved_by_a_good_cookie_or_key(house: House, settings: Settings) -> None:
    cookie = secret_of(await house.register(mode="cookie"))
    key = {"X-API-Key": settings.http_api.key.get_secret_value()}
    assert (await house.call("GET", "/auth/me", cookie=cookie)).status == 200
    for value in ("Bearer", "Bearer ", "Bearer x", "bearer a.b.c", "Bearer x y", "apikey wrong", "Bearer \x80"):
        answer = await house.call("GET", "/auth/me", cookie=cookie, headers={"Authorization": value, **key})
        assert (answer.status, answer.code) == (401, "unauthenticated"), value
    answer = await house.call("GET", "/auth/me", cookie=cookie, headers={"X-API-Key": "wrong"})
    assert (answer.status, answer.code) == (401, "unauthenticated")


async def test_a_good_token_wins_over_the_cookie_of_someone_else(house: House) -> None:
    alice = (await house.register("alice@example.org")).json
    bob = secret_of(await house.register("bob@example.org", mode="cookie"))
    me = await house.call("GET", "/auth/me", token=alice["access_token"], cookie=bob)
    assert me.json["user"]["id"] == alice["user"]["id"]
    # a token needs no Origin, whatever cookie the browser adds
    answer = await house.call(
        "POST", "/auth/logout", {}, token=alice["access_token"], cookie=bob, origin="https://evil.example"
    )
    assert answer.status == 204
    assert (await house.call("GET", "/auth/me", cookie=bob)).status == 200


async def test_other_schemes_count_as_none_and_two_headers_as_bad(house: House) -> None:
    cookie = secret_of(await house.register(mode="cookie"))
    basic = await house.call("GET", "/auth/me", cookie=cookie, headers={"Authorization": "Basic eDp5"})
    assert basic.status == 200
    host, port = house.server.host, house.server.port
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(
        b"GET /auth/me HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer a\r\n"
        b"Authorization: Basic b\r\nCookie: wardgate=" + cookie.encode() + b"\r\n\r\n"
    )
    head = await asyncio.wait_for(reader.read(), 5)
    assert head.startswith(b"HTTP/1.1 401")
    writer.close()


async def test_sec_29_a_token_of_a_revoked_session_is_refused_at_once(house: House) -> None:
    made = (await house.register()).json
    token, sid = made["access_token"], made["session"]["sid"]
    assert (await house.call("GET", "/auth/me", token=token)).status == 200
    await end(house, kind=Kind.SESSION, sid=sid, reason="stolen laptop")
    answer = await house.call("GET", "/auth/me", token=token)
    assert (answer.status, answer.code, answer.json["reason"]) == (401, "session_ended", "stolen laptop")


async def test_a_token_from_the_future_connected_after_its_users_revocation(house: House, identity: Identity) -> None:
    await identity.connect(external(jti="first"))
    await end(house, kind=Kind.USER, subject="42", reason="fraud")
    with pytest.raises(TokenInvalid):
        await identity.connect(external(iat=int(time.time()) + 3600, exp=int(time.time()) + 7200))


async def test_an_expired_token_says_so(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    token = (await house.register()).json["access_token"]
    now = house.revocations.database_now()
    monkeypatch.setattr(house.accounts.tokens, "_now", lambda: now + 601)
    answer = await house.call("GET", "/auth/me", token=token)
    assert (answer.status, answer.code) == (401, "token_expired")


async def test_an_expired_token_of_a_session_that_ended_was_sent_for_another_token(
    house: House, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connect after the end gets the code of the end, also with the token that has expired meanwhile."""
    tokens = [(await house.register(f"{n}@example.org")).json for n in range(4)]
    revoked, disabled, logged_out, live = (made["access_token"] for made in tokens)
    await end(house, kind=Kind.SESSION, sid=tokens[0]["session"]["sid"], reason="stolen")
    await end(house, kind=Kind.USER, subject=tokens[1]["user"]["id"], code=DISABLED)
    await house.call("POST", "/auth/logout", {}, token=logged_out)
    now = house.revocations.database_now()
    monkeypatch.setattr(house.accounts.tokens, "_now", lambda: now + 601)
    for token, code in ((revoked, REVOKED), (disabled, DISABLED), (logged_out, REVOKED)):
        for forget in (False, True):  # from memory, and from PostgreSQL
            with monkeypatch.context() as patched:
                if forget:
                    patched.setattr(house.revocations, "judge", lambda *_: Again.BELOW_FLOOR)
                assert identity.try_connect(token) is None
                with pytest.raises(SessionEnded) as caught:
                    await identity.connect(token)
                assert caught.value.ended.code == code
    answer = await house.call("GET", "/auth/me", token=revoked)
    assert (answer.status, answer.code) == (401, "session_ended")
    with pytest.raises(TokenExpired):
        await identity.connect(live)


async def test_an_expired_token_of_an_idle_session_tells_its_end(
    house: House, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await house.register()).json
    await house.pool.execute("update sessions set last_seen_at = last_seen_at - interval '15 days'")
    now = house.revocations.database_now()
    monkeypatch.setattr(house.accounts.tokens, "_now", lambda: now + 601)
    with pytest.raises(SessionEnded) as caught:
        await identity.connect(made["access_token"])
    assert (caught.value.ended.code, caught.value.ended.reason) == (EXPIRED, "idle")


async def test_an_expired_token_does_nothing_else(
    house: House, identity: Identity, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no activity, tells no end of another's session, and where nothing can be known it has expired."""
    alice, bob = (await house.register()).json, (await house.register("bob@example.org")).json
    read = identity._sessions.by_sid
    before = await pool.fetch("select sid, last_seen_at from sessions order by sid")
    now = house.revocations.database_now()
    monkeypatch.setattr(house.accounts.tokens, "_now", lambda: now + 601)
    monkeypatch.setattr(identity._sessions, "seen", None)
    monkeypatch.setattr(identity._sessions, "standing", None)
    await end(house, kind=Kind.SESSION, sid=bob["session"]["sid"], reason="stolen")

    async def away(sid: str) -> None:
        raise Unavailable

    for by_sid in (read, away):
        monkeypatch.setattr(identity._sessions, "by_sid", by_sid)
        with pytest.raises(TokenExpired):
            await identity.connect(alice["access_token"])
        for method, path in (("GET", "/auth/me"), ("POST", "/auth/logout"), ("GET", "/auth/sessions")):
            answer = await house.call(method, path, token=alice["access_token"])
            assert (answer.status, answer.code) == (401, "token_expired")
        with pytest.raises(TokenInvalid):  # changed: no signature, no answer about a session
            await identity.connect(bob["access_token"][:-4] + "AAAA")
    await house.accounts.identity._sessions.flush()
    assert await pool.fetch("select sid, last_seen_at from sessions order by sid") == before


@pytest.mark.parametrize("step", [-86400.0, -300.0, 300.0, 86400.0])
async def test_sec_29_no_step_of_a_clock_and_no_restart_revives_a_session(
    house: House, settings: Settings, pool: Any, sessions: Any, pipe: Any, monkeypatch: pytest.MonkeyPatch, step: float
) -> None:
    """Which sessions are over is told by positions: the clock decides about tokens' own times alone."""
    made, cookie = (await house.register()).json, secret_of(await house.login(mode="cookie"))
    token = made["access_token"]
    await end(house, kind=Kind.USER, subject=made["user"]["id"], reason="stolen laptop")
    real = house.revocations.database_now
    monkeypatch.setattr(house.revocations, "database_now", lambda: real() + step)
    async with build(settings, pool, house.revocations, sessions, pipe) as started:  # its caches are empty
        for one in (house, started):
            for credential in ({"token": token}, {"cookie": cookie}):
                answer = await one.call("GET", "/auth/me", **credential)
                assert answer.status == 401  # session_ended, unless the clock says of the token that it is not good now
                assert answer.code == "session_ended" or "token" in credential
            answer = await one.call("POST", "/auth/refresh", {"refresh_token": made["refresh_token"]})
            assert (answer.status, answer.code) == (401, "session_ended")


async def test_sec_27_disabling_refuses_everything_that_the_user_has(house: House) -> None:
    token_mode, cookie = (await house.register()).json, secret_of(await house.login(mode="cookie"))
    admin = await house.admin()
    id = token_mode["user"]["id"]
    answer = await house.call("PATCH", f"/admin/users/{id}", {"disabled": True, "reason": "abuse"}, token=admin)
    assert answer.status == 200
    for credential in ({"token": token_mode["access_token"]}, {"cookie": cookie}):
        gone = await house.call("GET", "/auth/me", **credential)
        assert (gone.status, gone.code) == (401, "session_ended")
    answer = await house.call("POST", "/auth/refresh", {"refresh_token": token_mode["refresh_token"]})
    assert (answer.status, answer.code) == (401, "session_ended")
    assert (await house.login()).code == "invalid_credentials"


async def test_an_external_token_is_a_caller_over_http_too(house: House) -> None:
    answer = await house.call("GET", "/auth/sessions", token=external(sid="s"))
    assert answer.status == 200
    assert [item["current"] for item in answer.json["items"]] == [True]
    me = await house.call("GET", "/auth/me", token=external(sid="s"))
    assert (me.json["user"]["id"], me.json["user"]["email"]) == ("42", "")
    assert (await house.call("GET", "/auth/me", token=external(sub=""))).code == "unauthenticated"
    assert (
        await house.call(
            "POST", "/auth/password", {"current_password": "x", "new_password": "y" * 12}, token=external(sid="s")
        )
    ).code == "forbidden"


# -- API keys


async def created(house: House, *scopes: str, ttl: float | None = None) -> tuple[str, str]:
    async with house.pool.acquire() as connection, connection.transaction():
        expires_at = None if ttl is None else house.revocations.database_now() + ttl
        new = key_keeping.NewKey("backend", scopes, expires_at)
        key, info = await key_keeping.create(connection, new, within={"*"}, by={"actor": "test"})
    return key, info.id


async def test_api_keys_may_what_their_scopes_say(house: House, settings: Settings) -> None:
    key, _ = await created(house, "users")
    for headers in ({"X-API-Key": key}, {"Authorization": f"apikey {key}"}, {"Authorization": f"ApiKey {key}"}):
        assert (await house.call("GET", "/admin/users", headers=headers)).status == 200
        answer = await house.call("GET", "/admin/audit", headers=headers)
        assert (answer.status, answer.code) == (403, "forbidden")
        assert (await house.call("GET", "/auth/me", headers=headers)).code == "forbidden"
    static = {"X-API-Key": settings.http_api.key.get_secret_value()}
    assert (await house.call("GET", "/admin/users", headers=static)).status == 200
    assert (await house.call("GET", "/admin/audit", headers=static)).status == 200


async def test_api_keys_are_stored_as_hashes(house: House) -> None:
    key, _ = await created(house, "users")
    row = await house.pool.fetchrow("select * from api_keys")
    assert row is not None
    assert key not in str(tuple(row))
    assert key.startswith("wgk_")


async def test_sec_27_a_revoked_key_is_refused_at_once_and_an_expired_one(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, id = await created(house, "*")
    short, _ = await created(house, "*", ttl=60)
    for one in (key, short):
        assert (await house.call("GET", "/admin/users", headers={"X-API-Key": one})).status == 200
    async with house.revocations.writing() as writing:
        assert await key_keeping.revoke(writing, id, by={"actor": "test"})
    async with house.revocations.writing() as writing:
        assert not await key_keeping.revoke(writing, id, by={"actor": "test"})
    assert (await house.call("GET", "/admin/users", headers={"X-API-Key": key})).code == "unauthenticated"
    now = house.revocations.database_now()
    monkeypatch.setattr(house.revocations, "database_now", lambda: now + 61)
    assert (await house.call("GET", "/admin/users", headers={"X-API-Key": short})).code == "unauthenticated"


async def test_a_key_is_read_again_where_memory_does_not_reach(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    key, _ = await created(house, "*")
    verdicts: list[Any] = [Again.BELOW_FLOOR, None]
    monkeypatch.setattr(house.revocations, "judge_key", lambda *_: verdicts.pop(0) if verdicts else None)
    assert (await house.accounts.api_keys.identify(key)).scopes == {"*"}
    verdicts[:] = [Again.BELOW_FLOOR] * 9
    with pytest.raises(Problem, match="frozen"):
        await house.accounts.api_keys.identify(key)


async def test_a_flood_of_keys_that_are_nobodys_took_every_connection_to_the_database(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = await created(house, "*")
    asked: list[int] = []
    real = ApiKeys._rows

    async def counting(self: ApiKeys, connection: Any, digests: Any) -> Any:
        asked.append(len(digests))
        return await real(self, connection, digests)

    monkeypatch.setattr(ApiKeys, "_rows", counting)
    keys = house.accounts.api_keys
    answers = await asyncio.gather(
        *(keys.identify(f"wgk_{n}") for n in range(50)), keys.identify(key), return_exceptions=True
    )
    assert {a.code for a in answers if isinstance(a, Problem)} == {"unauthenticated"}
    assert sum(isinstance(a, Caller) for a in answers) == 1
    assert asked == [51]


async def test_the_use_of_a_key_is_noted(house: House) -> None:
    key, id = await created(house, "*")
    for _ in range(3):
        await house.accounts.api_keys.identify(key)
    [task] = house.accounts.api_keys._tasks._running
    await task
    async with house.pool.acquire() as connection:
        [info], _ = await key_keeping.page(connection, key_keeping.Filter(), limit=9)
    assert info.id == id
    assert info.last_used_at is not None


# -- live connections


async def test_our_token_connects_without_io(house: House, identity: Identity, monkeypatch: pytest.MonkeyPatch) -> None:
    made = (await house.register()).json
    monkeypatch.setattr(asyncpg.pool.Pool, "acquire", lambda *_: pytest.fail("asked the database"))
    connected = identity.try_connect(made["access_token"])
    assert connected is not None
    standing = connected.standing
    assert (standing.sid, standing.user, standing.kind) == (made["session"]["sid"], made["user"]["id"], "token")
    assert connected.expires
    now = house.revocations.database_now()
    assert 590 <= connected.ttl(now) <= 600
    assert connected.ttl(now + 10_000) == 1
    assert house.revocations.judge_standing(standing) is None
    assert (await identity.connect(made["access_token"])) == connected
    assert (await identity.connect(made["access_token"], "a cookie that is nobody's")) == connected


async def test_a_cookie_connects_and_does_not_expire(house: House, identity: Identity) -> None:
    answer = await house.register(mode="cookie")
    connected = await identity.connect(None, secret_of(answer))
    assert connected is not None
    assert (connected.standing.kind, connected.standing.sid) == ("cookie", answer.json["session"]["sid"])
    assert not connected.expires
    assert connected.ttl(0) == 0
    assert connected.standing.expires_at > 0
    assert await identity.connect(None, None) is None
    assert await identity.connect(None, "A" * 43) is None
    assert await identity.connect(None, "\x00") is None


async def test_a_cookie_that_was_read_lately_connects_without_io(
    house: House, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = await house.register(mode="cookie")
    secret = secret_of(answer)
    assert identity.try_connect(None, secret) is None
    connected = await identity.connect(None, secret)
    monkeypatch.setattr(asyncpg.pool.Pool, "acquire", lambda *_: pytest.fail("asked the database"))
    assert identity.try_connect(None, secret) == connected
    assert identity.try_connect(None, None) is None
    assert identity.try_connect(None, "\x00") is None
    monkeypatch.undo()
    await end(house, kind=Kind.SESSION, sid=answer.json["session"]["sid"])
    assert identity.try_connect(None, secret) is None
    with pytest.raises(SessionEnded):
        await identity.connect(None, secret)


async def test_a_connect_after_the_end_gets_the_code_of_the_close(house: House, identity: Identity) -> None:
    one, two = (await house.register()).json, await house.login(mode="cookie")
    await end(house, kind=Kind.SESSION, sid=one["session"]["sid"], reason="stolen laptop")
    with pytest.raises(SessionEnded) as caught:
        identity.try_connect(one["access_token"])
    assert (caught.value.ended.code, caught.value.ended.reason) == (REVOKED, "stolen laptop")
    await end(house, kind=Kind.USER, subject=one["user"]["id"], code=DISABLED)
    with pytest.raises(SessionEnded) as caught:
        await identity.connect(None, secret_of(two))
    assert caught.value.ended.code == DISABLED
    token = external(sid="s")
    connected = await identity.connect(token)
    assert connected is not None
    await end(house, kind=Kind.USER, subject="42", reason="no more")
    with pytest.raises(SessionEnded) as caught:
        await identity.connect(token)
    assert (caught.value.ended.code, caught.value.ended.reason) == (REVOKED, "no more")


async def test_2c_below_the_floor_postgresql_is_asked(
    house: House, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await house.register()).json
    token, sid = made["access_token"], made["session"]["sid"]
    original = house.revocations.judge

    def floor_here(sid: str, user: str, born: int, position: Position) -> Any:
        """As after a restart: positions of tokens lie below, what is read now does not."""
        return Again.BELOW_FLOOR if position == old else original(sid, user, born, position)

    connected = identity.try_connect(token)
    assert connected is not None
    old = connected.standing.position
    await end(house, kind=Kind.SESSION, sid="other")  # the head moves on
    monkeypatch.setattr(house.revocations, "judge", floor_here)
    assert identity.try_connect(token) is None
    connected = await identity.connect(token)
    assert connected is not None
    assert connected.standing.position != old
    assert connected.standing.token_expires_at is not None
    assert identity.try_connect(token) == connected  # and is remembered
    await end(house, kind=Kind.SESSION, sid=sid)
    with pytest.raises(SessionEnded):
        identity.try_connect(token)


async def test_2c_a_session_that_is_gone_from_the_database_is_over(
    house: House, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await house.register()).json
    await house.pool.execute("delete from sessions")
    monkeypatch.setattr(house.revocations, "judge", lambda *_: Again.BELOW_FLOOR)
    with pytest.raises(SessionEnded):
        await identity.connect(made["access_token"])


async def test_sessions_that_a_demoted_primary_never_heard_of_were_refused_and_closed(
    house: House, identity: Identity, old_primary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (await house.register()).json
    secret = secret_of(await house.login(mode="cookie"))
    await end(house, kind=Kind.SESSION, sid="other")  # the head moves on
    sessions = identity._sessions
    monkeypatch.setattr(sessions, "_pool", old_primary)
    connected = await identity.connect(None, secret)
    assert connected is not None
    assert await sessions.by_sid(made["session"]["sid"]) is not None
    assert (await house.call("POST", "/auth/refresh", {"refresh_token": made["refresh_token"]})).status == 200
    assert await sessions.by_secret("x" * len(secret)) is None
    sid = made["session"]["sid"]
    assert await sessions.by_sid(sid[:-1] + ("1" if sid[-1] == "0" else "0")) is None


async def test_a_token_that_is_newer_than_all_that_is_known_here_was_taken_for_one_of_an_ended_session(
    house: House, identity: Identity, old_primary: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = (await house.register()).json["access_token"]
    monkeypatch.setattr(identity._sessions, "_pool", old_primary)
    judge, asked = house.revocations.judge, []

    def era_unknown_at_first(*of: Any) -> Any:
        asked.append(of)
        return Again.BELOW_FLOOR if len(asked) < 3 else judge(*of)

    monkeypatch.setattr(house.revocations, "judge", era_unknown_at_first)
    assert await identity.connect(token) is not None


async def test_changed_rights_are_read_again(house: House, identity: Identity) -> None:
    made = (await house.register()).json
    admin = await house.admin()
    answer = await house.call(
        "PATCH", f"/admin/users/{made['user']['id']}", {"roles": ["admin"], "reason": "new"}, token=admin
    )
    assert answer.json["user"]["roles"] == ["admin"]
    token = made["access_token"]
    assert identity.try_connect(token) is None
    connected = await identity.connect(token)
    assert connected is not None
    assert connected.standing.roles == ("admin",)
    assert identity.try_connect(token) == connected
    assert (await house.call("GET", "/admin/users", token=token)).status == 200
    await house.call("PATCH", f"/admin/users/{made['user']['id']}", {"roles": [], "reason": "gone"}, token=admin)
    assert (await house.call("GET", "/admin/users", token=token)).code == "forbidden"


async def test_a_new_key_is_looked_for_once(house: House, identity: Identity, settings: Settings) -> None:
    ring = house.accounts.keys
    async with house.pool.acquire() as connection, connection.transaction():
        await signing.discard(connection, key_sealer(settings.sessions), "ES256")
    other = signing.Keys(house.pool, key_sealer(settings.sessions), "ES256", clock=house.accounts.keys._clock)
    await other.load()
    made = (await house.register()).json  # signed by a key that is retired by now
    fresh = _resigned(made["access_token"], other)
    assert identity.try_connect(fresh) is None
    with pytest.raises(TokenInvalid):
        await identity.connect(fresh)  # the table was read a moment ago
    ring._loaded_at = float("-inf")
    connected = await identity.connect(fresh)
    assert connected is not None
    assert connected.standing.sid == made["session"]["sid"]
    with pytest.raises(TokenInvalid):
        await identity.connect(made["access_token"])


def _resigned(token: str, ring: signing.Keys) -> str:
    claims = jwt.decode(token, options={"verify_signature": False})
    key = ring.active
    return jwt.encode(claims, key.private, key.algorithm, headers={"typ": "at+jwt", "kid": key.kid})


async def test_what_claims_to_be_ours_is_judged_as_ours_alone(house: House, identity: Identity) -> None:
    """The issuer of `client.token` cannot make an access token, whatever it writes into one."""
    made = (await house.register()).json
    claims = jwt.decode(made["access_token"], options={"verify_signature": False})
    for header in ({"typ": "at+jwt", "kid": house.accounts.keys.active.kid}, {"typ": "at+jwt"}, {"typ": "JWT"}):
        forged = jwt.encode(claims, SECRET, "HS256", headers=header)
        with pytest.raises(TokenInvalid):
            await identity.connect(forged)


# -- tokens of others


async def test_an_external_token_connects_with_all_that_it_says(house: House, identity: Identity) -> None:
    token = external(sid="s", info={"name": "Zoë"}, meta={"m": 1}, subs={"news": {"data": {"x": 1}}})
    assert identity.try_connect(token) is None
    connected = await identity.connect(token, address="192.0.2.1", device="curl")
    assert isinstance(connected, Connected)
    standing = connected.standing
    assert (standing.user, standing.kind, standing.issuer, standing.own_sid) == ("42", "external", "", True)
    assert json.loads(standing.info) == {"name": "Zoë"}
    assert standing.meta == b'{"m":1}'
    assert connected.subs == {"news": ServerSub(data=b'{"x":1}')}
    assert connected.expires
    assert (await identity.connect(token)) is not None
    row = await house.pool.fetchrow("select * from sessions")
    assert row is not None
    assert (row["sid"], row["kind"], row["device"], row["address"]) == (standing.sid, "external", "curl", "192.0.2.1")


async def test_tokens_of_one_sid_are_one_session_and_others_are_not(house: House, identity: Identity) -> None:
    async def sid(**claims: Any) -> tuple[str, bool]:
        connected = await identity.connect(external(**claims))
        assert connected is not None
        return connected.standing.sid, connected.standing.own_sid

    assert await sid(sid="s", jti="a") == await sid(sid="s", jti="b")
    assert (await sid(jti="a"))[0] != (await sid(jti="b"))[0]
    assert not (await sid(jti="a"))[1]
    with pytest.raises(TokenInvalid):
        await sid(sid="s", sub="43")  # somebody else's session


async def test_a_named_issuer_and_the_default_one_do_not_meet(house: House, identity: Identity) -> None:
    corp = jwt.encode({"sub": "42", "iss": "corp", "exp": time.time() + 60}, "c" * 40, "HS256")
    connected = await identity.connect(corp)
    assert connected is not None
    assert (connected.standing.user, connected.standing.issuer) == ("corp:42", "corp")
    for token in (external(sub="corp:42"), external(sub="u_" + "a" * 26), external(iss="corp")):
        with pytest.raises(TokenInvalid):
            await identity.connect(token)


async def test_an_anonymous_token_has_a_session_in_this_node_alone(house: House, identity: Identity) -> None:
    token = external(sub="", info={"a": 1})
    connected = identity.try_connect(token)
    assert connected is not None
    assert (connected.standing.kind, connected.standing.user) == ("anonymous", "")
    assert connected.standing.position == house.revocations.position
    assert connected == await identity.connect(token)
    assert await house.pool.fetchval("select count(*) from sessions") == 0


async def test_expired_and_garbage_tokens_on_connect(identity: Identity) -> None:
    for token, error in (
        (external(exp=1), TokenExpired),
        (external(nbf=time.time() + 60), TokenExpired),
        (external(channel="c"), TokenInvalid),
        (external()[:-2], TokenInvalid),
        ("", TokenInvalid),
        ("x" * 5000, TokenInvalid),
        ("é.b.c", TokenInvalid),
    ):
        with pytest.raises(error):
            await identity.connect(token)
        with pytest.raises(error):
            identity.try_connect(token)


async def test_a_disabled_external_user_stays_out(house: House, identity: Identity) -> None:
    await identity.connect(external(sid="s"))
    admin = await house.admin()
    answer = await house.call("PATCH", "/admin/users/42", {"disabled": True, "reason": "abuse"}, token=admin)
    assert (answer.status, answer.json["user"]["email"], answer.json["user"]["disabled"]) == (200, "", True)
    for sid in ("s", "another"):
        with pytest.raises(SessionEnded) as caught:
            await identity.connect(external(sid=sid))
        assert caught.value.ended.code == DISABLED


async def test_subscription_tokens(identity: Identity) -> None:
    grant = identity.subscription(external(channel="$c", client="x"))
    assert grant is not None
    assert (grant.channel, grant.user, grant.client) == ("$c", "42", "x")
    assert await identity.fetch_subscription(external(channel="$c", client="x")) == grant
    with pytest.raises(TokenExpired):
        identity.subscription(external(channel="$c", exp=1))
    for token in (external(), "garbage", "x" * 5000):
        with pytest.raises(TokenInvalid):
            identity.subscription(token)
        with pytest.raises(TokenInvalid):
            await identity.fetch_subscription(token)


async def test_seen_is_noted_for_every_kind_of_credential(house: House, revocations: Revocations) -> None:
    made = (await house.register()).json
    cookie = secret_of(await house.login(mode="cookie"))
    await house.pool.execute("update sessions set last_seen_at = last_seen_at - interval '12 days'")
    for credential in ({"token": made["access_token"]}, {"cookie": cookie}):
        assert (await house.call("GET", "/.well-known/jwks.json", **credential)).status == 200
        assert (await house.call("GET", "/auth/sessions", **credential)).status == 200
    await house.accounts.identity._sessions.flush()
    stale = "select count(*) from sessions where last_seen_at < clock_timestamp() - interval '1 day'"
    assert await house.pool.fetchval(stale) == 0
