"""Opening a session: what is demanded, where it is born, and the cap."""

import asyncio

import asyncpg
import pytest

from config.clock import SystemClock
from config.settings import Settings, with_values
from sessions import ids, store
from sessions.errors import SessionEnded, Stale
from sessions.model import DISABLED, REPLACED, Ended, Kind
from sessions.revocations import Revocations
from sessions.service import Sessions
from tests.sessions.conftest import Logins, row_of, waits_for_lock

METACHARACTERS = """'; DROP TABLE sessions; -- " \\ % _ $1 {} \r\n \N{SNOWMAN} \N{PILE OF POO}"""


async def live(pool: store.Executor, user: str = "alice") -> int:
    return await store.count_live(pool, now=await store.database_now(pool), subject=user)


async def test_a_cookie_login_gets_a_secret_that_is_not_stored(login: Logins, pool: asyncpg.Pool) -> None:
    opened = await login(kind="cookie")
    assert len(opened.secret) == 43
    assert opened.refresh_token == ""
    row = await row_of(pool, "SELECT * FROM sessions WHERE sid = $1", opened.reading.session.sid)
    assert row["secret_hash"] == ids.secret_hash(opened.secret)
    assert opened.secret.encode() not in repr(dict(row)).encode()
    assert row["refresh_key"] is None


async def test_a_token_login_gets_a_refresh_token_whose_key_is_sealed(login: Logins, pool: asyncpg.Pool) -> None:
    opened = await login(kind="token")
    assert opened.secret == ""
    row = await row_of(pool, "SELECT * FROM sessions WHERE sid = $1", opened.reading.session.sid)
    assert row["secret_hash"] is None
    assert len(row["refresh_key"]) == 1 + 4 + 12 + 32 + 16
    assert row["refresh_counter"] == 1


async def test_2a_a_session_is_born_at_the_head_of_its_transaction(
    login: Logins, revocations: Revocations, pool: asyncpg.Pool
) -> None:
    await login.end(kind=Kind.SESSION, sid="somebody-else")
    opened = await login()
    head = await row_of(pool, "SELECT seq, era_id FROM revocation_head")
    assert opened.reading.position == (head["seq"], head["era_id"].hex)
    assert opened.reading.session.born == head["seq"]


async def test_what_the_login_says_is_what_is_read_back(login: Logins, sessions: Sessions) -> None:
    opened = await login(device="curl/8", address="192.0.2.1")
    reading = await sessions.by_sid(opened.reading.session.sid)
    assert reading is not None
    for name in ("sid", "subject", "kind", "issuer", "born", "idle", "device", "address", "ended"):
        assert getattr(reading.session, name) == getattr(opened.reading.session, name), name
    for name in ("created_at", "last_seen_at", "expires_at"):
        assert getattr(reading.session, name) == pytest.approx(getattr(opened.reading.session, name), abs=1e-3), name


async def test_2a_a_credential_version_that_moved_on_opens_nothing(login: Logins, pool: asyncpg.Pool) -> None:
    await login.user()
    assert await store.bump_credential_version(pool, "alice") == 2
    with pytest.raises(Stale):
        await login(version=1)
    assert await live(pool) == 0
    await login(version=2)


async def test_a_user_who_is_gone_opens_nothing(login: Logins, sessions: Sessions, revocations: Revocations) -> None:
    with pytest.raises(Stale):
        async with revocations.writing(actor="test") as writing:
            await sessions.open(writing, "nobody", credential_version=1, kind="cookie")


async def test_a_disabled_user_opens_nothing(login: Logins, pool: asyncpg.Pool) -> None:
    await login.user()
    await store.change_subject(pool, "alice", active=False)
    with pytest.raises(SessionEnded) as refused:
        await login()
    assert refused.value.ended.code == DISABLED
    assert await live(pool) == 0


async def test_password_change_during_a_login_leaves_no_session_of_the_old_one(
    login: Logins, sessions: Sessions, revocations: Revocations, pool: asyncpg.Pool
) -> None:
    """The login verified version 1; the change holds the subject's row, so the login waits and then sees version 2."""
    await login.user()
    async with pool.acquire() as connection, connection.transaction():
        await store.subject(connection, "alice", lock=True)
        attempt = asyncio.ensure_future(login(version=1))
        await waits_for_lock(connection)
        await store.bump_credential_version(connection, "alice")
    with pytest.raises(Stale):
        await attempt
    assert await live(pool) == 0


async def test_26_fifty_parallel_logins_never_exceed_the_cap(
    login: Logins, sessions: Sessions, pool: asyncpg.Pool, database_url: str
) -> None:
    await login.user()
    done = asyncio.Event()
    most = 0

    async def watch() -> None:
        nonlocal most
        connection = await asyncpg.connect(database_url)
        try:
            while not done.is_set():
                most = max(most, await live(connection))
        finally:
            await connection.close()

    watching = asyncio.ensure_future(watch())
    opened = await asyncio.gather(*(login(kind=("cookie", "token")[n % 2]) for n in range(50)))
    done.set()
    await watching
    assert most <= 5
    assert await live(pool) == 5
    assert len({o.reading.session.sid for o in opened}) == 50
    codes = await pool.fetch("SELECT sid, code FROM revocation_log WHERE kind = 1")
    assert len(codes) == 45
    assert {record["code"] for record in codes} == {REPLACED}
    replaced = [sid for o in opened for sid in o.replaced]
    assert sorted(replaced) == sorted(record["sid"] for record in codes)
    for o in opened:
        session = o.reading.session
        reading = await sessions.by_sid(session.sid)
        assert reading is not None
        assert (sessions.judge(reading) is None) == (session.sid not in replaced)


async def test_the_newest_login_wins(login: Logins, sessions: Sessions) -> None:
    sids = [(await login()).reading.session.sid for _ in range(7)]
    assert [s.sid for s in await sessions.of_subject("alice")] == sids[:1:-1]
    first = await sessions.by_sid(sids[0])
    assert first is not None
    verdict = sessions.judge(first)
    assert isinstance(verdict, Ended)
    assert (verdict.code, verdict.close_reason) == (REPLACED, "session replaced")


async def test_sessions_that_are_over_do_not_count(login: Logins, pool: asyncpg.Pool) -> None:
    for _ in range(5):
        await login()
    await login.end(kind=Kind.USER, subject="alice", reason="x")
    for _ in range(5):
        assert (await login()).replaced == ()
    await pool.execute("UPDATE sessions SET expires_at = now() - interval '1 s' WHERE ended_at IS NULL")
    assert (await login()).replaced == ()
    assert await live(pool) == 1


async def test_a_kind_of_client_has_a_cap_of_its_own_beside_that_of_the_user(
    pool: asyncpg.Pool, revocations: Revocations, settings: Settings
) -> None:
    caps = {"sessions.max_per_user": 4, "sessions.max_cookie_per_user": 3, "sessions.max_token_per_user": 2}
    some = Sessions(pool, revocations, with_values(settings, caps).sessions, clock=SystemClock())
    login = Logins(pool, revocations, some)
    first, second, third = [(await login(kind="token")).reading.session.sid for _ in range(3)]
    assert [s.sid for s in await some.of_subject("alice")] == [third, second]
    cookies = [(await login()).reading.session.sid for _ in range(2)]
    opened = await login()  # the third of its kind, the fifth of all
    assert opened.replaced == (second,)
    opened = await login(kind="token", replaces=cookies[0])  # what it replaces makes the room
    assert opened.replaced == (cookies[0],)
    opened = await login(kind="token")
    assert opened.replaced == (third,)
    assert await live(pool) == 4
    codes = await pool.fetch("SELECT sid, code FROM revocation_log WHERE kind = 1")
    assert {record["code"] for record in codes} == {REPLACED}
    assert first in {record["sid"] for record in codes}
    await some.close()


async def test_the_life_of_a_session_is_the_shortest_of_its_users_roles(
    pool: asyncpg.Pool, revocations: Revocations, settings: Settings
) -> None:
    lives = {"admin": {"absolute": 3600.0, "idle": 900.0}, "editor": {"idle": 60.0}, "slow": {"absolute": 1e9}}
    policy = with_values(settings, {"sessions.roles": lives, "sessions.absolute_unremembered": 7200.0}).sessions
    some = Sessions(pool, revocations, policy, clock=SystemClock())
    login = Logins(pool, revocations, some)
    for roles, remember, absolute, idle in (
        ((), True, policy.absolute, policy.idle),
        (("slow",), True, policy.absolute, policy.idle),
        (("admin",), True, 3600.0, 900.0),
        (("admin", "editor"), True, 3600.0, 60.0),
        (("editor",), False, 7200.0, 60.0),
    ):
        user = await login.user(f"one of {roles}", roles)
        opened = (await login(user, remember=remember)).reading.session
        reading = await some.by_sid(opened.sid)
        assert reading is not None
        session = reading.session
        assert session.expires_at - session.created_at == pytest.approx(absolute, abs=1e-3)
        assert (session.idle, session.remembered) == (idle, remember)
    await some.close()


async def test_one_users_logins_do_not_count_for_another(login: Logins) -> None:
    for _ in range(5):
        await login("alice")
    assert (await login("bob")).replaced == ()


async def test_a_login_replaces_the_session_of_the_cookie_it_came_with(login: Logins, sessions: Sessions) -> None:
    old = await login("alice")
    new = await login("bob", replaces=old.reading.session.sid)
    assert new.replaced == (old.reading.session.sid,)
    reading = await sessions.by_secret(old.secret)
    assert reading is not None
    with pytest.raises(SessionEnded):
        await sessions.admit(reading)
    again = await login("bob", replaces=old.reading.session.sid)
    assert again.replaced == ()


async def test_the_session_that_is_replaced_makes_the_room(login: Logins, pool: asyncpg.Pool) -> None:
    sids = [(await login()).reading.session.sid for _ in range(5)]
    assert (await login(replaces=sids[3])).replaced == (sids[3],)
    assert await live(pool) == 5


@pytest.mark.parametrize("replaces", ["nobody", "", METACHARACTERS, "\x00"])
async def test_replacing_what_is_not_there_replaces_nothing(login: Logins, replaces: str) -> None:
    assert (await login(replaces=replaces)).replaced == ()


async def test_text_with_metacharacters_is_only_text(login: Logins, sessions: Sessions) -> None:
    user = f"ext:{METACHARACTERS}"
    opened = await login(user, device=METACHARACTERS, address=METACHARACTERS)
    reading = await sessions.by_secret(opened.secret)
    assert reading is not None
    assert reading.session.subject.id == user
    assert reading.session.device == METACHARACTERS
    [listed] = await sessions.of_subject(user)
    assert listed.sid == opened.reading.session.sid


@pytest.mark.parametrize(
    ("device", "kept"),
    [("a\x00b", "ab"), ("\udcff", "?"), ("x" * 5000, "x" * 512), ("\N{PILE OF POO}" * 600, "\N{PILE OF POO}" * 512)],
)
async def test_a_user_agent_that_is_no_text_does_not_stop_a_login(login: Logins, device: str, kept: str) -> None:
    assert (await login(device=device)).reading.session.device == kept


async def test_a_login_leaves_an_audit_row(login: Logins, pool: asyncpg.Pool) -> None:
    opened = await login(address="192.0.2.1")
    row = await row_of(pool, "SELECT * FROM audit")
    assert (row["action"], row["actor"], row["address"]) == ("session.opened", "user:alice", "192.0.2.1")
    assert row["target"] == f"session:{opened.reading.session.sid}"


async def test_a_login_that_fails_later_leaves_nothing(
    login: Logins, sessions: Sessions, revocations: Revocations, pool: asyncpg.Pool
) -> None:
    for _ in range(5):
        await login()

    async def log_in_and_fail() -> None:
        async with revocations.writing(actor="test") as writing:
            await sessions.open(writing, "alice", credential_version=1, kind="cookie")
            raise LookupError

    with pytest.raises(LookupError):
        await log_in_and_fail()
    assert await live(pool) == 5
    assert await pool.fetchval("SELECT count(*) FROM audit") == 5
    assert await pool.fetchval("SELECT count(*) FROM revocation_log WHERE kind = 1") == 0


async def test_disabling_ends_with_4502_and_enabling_does_not_revive(login: Logins, sessions: Sessions) -> None:
    opened = await login()
    await login.end(kind=Kind.USER, subject="alice", code=DISABLED)
    reading = await sessions.by_sid(opened.reading.session.sid)
    assert reading is not None
    assert reading.session.ended is not None
    assert reading.session.ended.code == DISABLED
    new = await login()
    assert sessions.judge(new.reading) is None


async def test_F22_a_login_that_is_cancelled_anywhere_is_whole_or_nothing(
    login: Logins, sessions: Sessions, pool: asyncpg.Pool
) -> None:
    await login.user()
    for turns in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048):
        attempt = asyncio.ensure_future(login())
        for _ in range(turns):
            await asyncio.sleep(0)
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
    await login()  # takes the subject's lock: whatever was still committing is done
    made = await pool.fetchval("SELECT count(*) FROM sessions")
    assert await pool.fetchval("SELECT count(*) FROM audit WHERE action = 'session.opened'") == made
    ended = await pool.fetchval("SELECT count(*) FROM revocation_log WHERE kind = 1")
    assert await live(pool) == min(made, 5)
    assert ended == max(made - 5, 0)
    assert len(await sessions.of_subject("alice")) == min(made, 5)
