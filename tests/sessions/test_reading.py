"""Reading sessions: one statement for many, its position, and a cache that memory judges on every hit."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg
import pytest

from config.clock import FakeClock, SystemClock
from config.database import open_pool
from config.http import Problem
from config.settings import Settings
from sessions import store
from sessions.errors import SessionEnded, Unavailable
from sessions.model import DISABLED, EXPIRED, REVOKED, Ended, Kind, Reading
from sessions.revocations import Again, Entry, Revocations
from sessions.service import CACHED_FOR, Sessions
from tests.sessions.conftest import Logins, row_of


class Statements:
    """Counts the statements of a kind, and what each was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.asked: list[Sequence[Any]] = []
        real = getattr(store, name)

        async def counted(connection: Any, keys: Sequence[Any], **more: Any) -> Any:
            self.asked.append(list(keys))
            return await real(connection, keys, **more)

        monkeypatch.setattr(store, name, counted)


@pytest.fixture
def statements(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Statements]:
    return lambda name: Statements(monkeypatch, name)


async def read(sessions: Sessions, secret: str) -> Reading:
    reading = await sessions.by_secret(secret)
    assert reading is not None
    return reading


def ended(sessions: Sessions, reading: Reading) -> Ended:
    verdict = sessions.judge(reading)
    assert isinstance(verdict, Ended)
    return verdict


async def test_a_cookie_finds_its_session(login: Logins, sessions: Sessions) -> None:
    opened = await login("alice")
    reading = await read(sessions, opened.secret)
    assert reading.session.sid == opened.reading.session.sid
    assert sessions.judge(reading) is None
    assert await sessions.admit(reading) is reading


async def test_a_secret_or_a_sid_that_is_nobodys_finds_nothing(login: Logins, sessions: Sessions) -> None:
    await login()
    for text in ("", "x", "A" * 43, "a" * 64, "a" * 65, "'; DROP TABLE sessions; --", "\x00", "\udcff", "é" * 43):
        assert await sessions.by_secret(text) is None, text
        assert await sessions.by_sid(text) is None, text


async def test_9a_the_position_is_the_head_of_the_statement(
    login: Logins, sessions: Sessions, pool: asyncpg.Pool
) -> None:
    opened = await login()
    for _ in range(3):
        await login.end(kind=Kind.SESSION, sid="somebody-else")
        head = await row_of(pool, "SELECT seq, era_id FROM revocation_head")
        reading = await sessions.by_sid(opened.reading.session.sid)
        assert reading is not None
        assert reading.position == (head["seq"], head["era_id"].hex)
        assert abs(reading.now - await store.database_now(pool)) < 5


async def test_9a_an_uncommitted_end_is_after_the_position_and_a_committed_one_is_in_the_reading(
    login: Logins, sessions: Sessions, revocations: Revocations
) -> None:
    opened = await login()
    sid = opened.reading.session.sid
    async with revocations.writing(actor="test") as writing:
        writing.append(Entry(kind=Kind.SESSION, sid=sid, reason="x"))
        before = await sessions.by_sid(sid)
    after = await sessions.by_sid(sid)
    assert before is not None
    assert after is not None
    assert before.session.ended is None
    assert ended(sessions, before).reason == ended(sessions, after).reason == "x"
    assert before.position.seq < after.position.seq


async def test_reads_of_one_loop_turn_are_one_statement(
    login: Logins, sessions: Sessions, statements: Callable[[str], Statements]
) -> None:
    opened = [await login(f"user{n}") for n in range(20)]
    by_hash = statements("by_secret_hashes")
    readings = await asyncio.gather(*(sessions.by_secret(o.secret) for o in opened), sessions.by_secret("A" * 43))
    assert [r.session.subject.id for r in readings if r] == [f"user{n}" for n in range(20)]
    assert readings[-1] is None
    assert [len(asked) for asked in by_hash.asked] == [21]
    by_sid = statements("by_sids")
    await asyncio.gather(*(sessions.by_sid(o.reading.session.sid) for o in opened))
    assert [len(asked) for asked in by_sid.asked] == [20]


# -- why a session is over, as PostgreSQL says it by position


@pytest.mark.parametrize(
    "row",
    [
        {"kind": Kind.USER, "subject": "alice"},
        {"kind": Kind.EVERYONE},
        {"kind": Kind.EVERYONE, "except_sid": "somebody-else"},
    ],
)
async def test_2a_what_was_born_before_a_row_is_over_and_what_comes_after_lives(
    login: Logins, sessions: Sessions, row: dict[str, Any]
) -> None:
    old = await login()
    await login.end(**row, reason="r", message="m")
    new = await login()
    over = await sessions.by_sid(old.reading.session.sid)
    lives = await sessions.by_sid(new.reading.session.sid)
    assert over is not None
    assert lives is not None
    assert over.session.ended is not None
    assert (over.session.ended.code, over.session.ended.reason, over.session.ended.message) == (REVOKED, "r", "m")
    assert over.session.ended.at == pytest.approx(over.now, abs=5)
    assert lives.session.ended is None
    assert sessions.judge(lives) is None


async def test_2a_marks_are_only_a_cache(login: Logins, sessions: Sessions, pool: asyncpg.Pool) -> None:
    old = await login()
    await login.end(kind=Kind.USER, subject="alice", reason="r")
    await pool.execute("UPDATE sessions SET ended_at = NULL, ended_code = NULL, ended_reason = '', ended_message = ''")
    reading = await sessions.by_sid(old.reading.session.sid)
    assert reading is not None
    assert reading.session.ended is not None
    assert reading.session.ended.reason == "r"


async def test_who_is_spared_by_everyone_lives(login: Logins, sessions: Sessions) -> None:
    spared = await login()
    await login.end(kind=Kind.EVERYONE, except_sid=spared.reading.session.sid)
    reading = await sessions.by_sid(spared.reading.session.sid)
    assert reading is not None
    assert sessions.judge(reading) is None


async def test_the_first_row_says_why(login: Logins, sessions: Sessions) -> None:
    opened = await login()
    await login.end(kind=Kind.SESSION, sid=opened.reading.session.sid, reason="first")
    await login.end(kind=Kind.USER, subject="alice", reason="second")
    await login.end(kind=Kind.EVERYONE, reason="third")
    reading = await sessions.by_sid(opened.reading.session.sid)
    assert reading is not None
    assert ended(sessions, reading).reason == "first"


async def test_a_disabled_user_is_over_with_4502(login: Logins, sessions: Sessions, pool: asyncpg.Pool) -> None:
    opened = await login()
    await store.change_subject(pool, "alice", active=False)
    reading = await sessions.by_sid(opened.reading.session.sid)
    assert reading is not None
    assert ended(sessions, reading).code == DISABLED


# -- natural ends


async def shift(pool: asyncpg.Pool, column: str, seconds: float) -> None:
    await pool.execute(f"UPDATE sessions SET {column} = {column} + $1 * interval '1 s'", seconds)


async def test_25_a_session_that_was_idle_is_over(
    login: Logins, sessions: Sessions, pool: asyncpg.Pool, settings: Settings
) -> None:
    opened = await login()
    await shift(pool, "last_seen_at", 5 - settings.sessions.idle)
    assert sessions.judge(await read(sessions, opened.secret)) is None
    await shift(pool, "last_seen_at", -6)
    reading = await sessions.by_sid(opened.reading.session.sid)
    assert reading is not None
    verdict = ended(sessions, reading)
    assert (verdict.code, verdict.close_reason) == (EXPIRED, "session expired: idle")
    with pytest.raises(SessionEnded) as refused:
        await sessions.admit(reading)
    assert (refused.value.code, refused.value.details.reason) == ("session_ended", "idle")


async def test_25_a_session_past_its_absolute_end_is_over_however_active(
    login: Logins, sessions: Sessions, pool: asyncpg.Pool, settings: Settings
) -> None:
    opened = await login()
    await shift(pool, "expires_at", -settings.sessions.absolute)
    reading = await sessions.by_sid(opened.reading.session.sid)
    assert reading is not None
    assert ended(sessions, reading).close_reason == "session expired: absolute"
    assert await sessions.of_subject("alice") == []


async def test_a_cached_idle_end_is_read_again_because_others_may_have_seen_the_session(
    login: Logins, sessions: Sessions, pool: asyncpg.Pool, settings: Settings
) -> None:
    opened = await login()
    await shift(pool, "last_seen_at", -settings.sessions.idle - 1)
    assert ended(sessions, await read(sessions, opened.secret)).code == EXPIRED
    await store.touch(pool, {opened.reading.session.sid: await store.database_now(pool)})
    assert sessions.judge(await read(sessions, opened.secret)) is None


# -- the cache


async def test_a_cookie_is_read_once_while_it_is_cached(
    login: Logins, sessions: Sessions, statements: Callable[[str], Statements]
) -> None:
    opened = await login()
    reads = statements("by_secret_hashes")
    first = await read(sessions, opened.secret)
    assert await read(sessions, opened.secret) is first
    assert len(reads.asked) == 1


async def test_2c_the_cache_never_outlives_a_revocation(login: Logins, sessions: Sessions) -> None:
    opened = await login()
    cached = await read(sessions, opened.secret)
    assert sessions.judge(cached) is None
    await login.end(kind=Kind.SESSION, sid=opened.reading.session.sid, reason="gone")
    again = await read(sessions, opened.secret)
    assert ended(sessions, again).reason == "gone"
    with pytest.raises(SessionEnded):
        await sessions.admit(cached)


@pytest.mark.parametrize("row", [{"kind": Kind.USER, "subject": "alice"}, {"kind": Kind.EVERYONE}])
async def test_2c_the_cache_is_judged_by_user_and_everyone_too(
    login: Logins, sessions: Sessions, row: dict[str, Any]
) -> None:
    opened = await login()
    await read(sessions, opened.secret)
    await login.end(**row)
    assert ended(sessions, await read(sessions, opened.secret)).code == REVOKED


async def test_changed_rights_are_read_again(login: Logins, sessions: Sessions, pool: asyncpg.Pool) -> None:
    opened = await login()
    cached = await read(sessions, opened.secret)
    await store.change_subject(pool, "alice", roles=["admin"])
    await login.end(kind=Kind.RIGHTS, subject="alice")
    assert sessions.judge(cached) is Again.RIGHTS
    fresh = await read(sessions, opened.secret)
    assert fresh.session.subject.roles == ("admin",)
    admitted = await sessions.admit(cached)
    assert admitted.session.subject.roles == ("admin",)


async def test_9b_below_the_floor_is_read_again(
    login: Logins, sessions: Sessions, statements: Callable[[str], Statements]
) -> None:
    opened = await login()
    cached = await read(sessions, opened.secret)
    old = cached._replace(position=cached.position._replace(era="0" * 32))
    assert sessions.judge(old) is Again.BELOW_FLOOR
    reads = statements("by_sids")
    admitted = await sessions.admit(old)
    assert admitted.position == cached.position
    assert len(reads.asked) == 1


async def test_9b_what_ended_below_the_floor_is_refused(login: Logins, sessions: Sessions) -> None:
    opened = await login()
    cached = await read(sessions, opened.secret)
    old = cached._replace(position=cached.position._replace(seq=1))
    await login.end(kind=Kind.SESSION, sid=opened.reading.session.sid, reason="gone")
    with pytest.raises(SessionEnded):
        await sessions.admit(old)


async def test_a_cached_reading_has_an_age(
    login: Logins, pool: asyncpg.Pool, revocations: Revocations, settings: Settings, statements: Any
) -> None:
    clock = FakeClock()
    sessions = Sessions(pool, revocations, settings.sessions, clock=clock)
    opened = await login()
    reads = statements("by_secret_hashes")
    await read(sessions, opened.secret)
    clock.advance(CACHED_FOR)
    await read(sessions, opened.secret)
    assert len(reads.asked) == 1
    clock.advance(0.1)
    await read(sessions, opened.secret)
    assert len(reads.asked) == 2
    await sessions.close()


async def test_29_a_restart_revives_nothing(
    login: Logins, pool: asyncpg.Pool, revocations: Revocations, settings: Settings
) -> None:
    opened = await login()
    await login.end(kind=Kind.SESSION, sid=opened.reading.session.sid)
    started = Sessions(pool, revocations, settings.sessions, clock=SystemClock())
    reading = await started.by_secret(opened.secret)
    assert reading is not None
    with pytest.raises(SessionEnded):
        await started.admit(reading)
    await started.close()


async def test_a_standing_is_what_was_read(login: Logins, sessions: Sessions) -> None:
    opened = await login()
    reading = await read(sessions, opened.secret)
    standing = sessions.standing(reading, token_expires_at=5.0, roles=("x",))
    assert (standing.sid, standing.user, standing.born) == (opened.reading.session.sid, "alice", reading.session.born)
    assert (standing.position, standing.kind, standing.roles) == (reading.position, "cookie", ("x",))
    assert (standing.expires_at, standing.idle) == (reading.session.expires_at, reading.session.idle)
    assert standing.token_expires_at == 5.0


# -- activity


async def test_activity_moves_the_idle_end_and_many_sessions_are_one_statement(
    login: Logins, sessions: Sessions, pool: asyncpg.Pool, statements: Any
) -> None:
    opened = [await login(f"user{n}") for n in range(10)]
    await shift(pool, "last_seen_at", -1000)
    touches = statements("touch")
    for o in opened:
        sessions.seen(o.reading.session.sid, o.reading.session.idle)
        sessions.seen(o.reading.session.sid, o.reading.session.idle)
    await sessions.flush()
    assert [len(asked) for asked in touches.asked] == [10]
    for o in opened:
        reading = await sessions.by_sid(o.reading.session.sid)
        assert reading is not None
        assert reading.session.last_seen_at == pytest.approx(reading.now, abs=5)
        assert reading.session.expires_at == pytest.approx(o.reading.session.expires_at, abs=1e-3)


async def test_activity_never_moves_backwards_and_revives_nothing(login: Logins, pool: asyncpg.Pool) -> None:
    live, over = (await login()).reading.session.sid, (await login()).reading.session.sid
    await login.end(kind=Kind.SESSION, sid=over)
    rows = "SELECT sid, last_seen_at FROM sessions ORDER BY sid"
    before = await pool.fetch(rows)
    await store.touch(pool, {live: 1.0, over: await store.database_now(pool) + 5, "nobody": 1.0})
    assert await pool.fetch(rows) == before


async def test_activity_waits_for_nobody(login: Logins, pool: asyncpg.Pool) -> None:
    """A refresh or a login holds the row: its session is left for the next time."""
    held, free = (await login()).reading.session.sid, (await login()).reading.session.sid
    await shift(pool, "last_seen_at", -1000)
    now = await store.database_now(pool)
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM sessions WHERE sid = $1 FOR UPDATE", held)
        async with asyncio.timeout(2):
            await store.touch(pool, {held: now, free: now})
    records = await pool.fetch("SELECT sid, extract(epoch FROM last_seen_at)::float8 AS at FROM sessions")
    seen = {record["sid"]: record["at"] for record in records}
    assert seen[free] == pytest.approx(now, abs=1e-3)
    assert seen[held] < now - 900


# -- PostgreSQL is away


async def test_without_postgresql_every_read_says_unavailable(
    settings: Settings, revocations: Revocations, login: Logins
) -> None:
    opened = await login()
    pool = await open_pool(settings.database)
    sessions = Sessions(pool, revocations, settings.sessions, clock=SystemClock())
    pool.terminate()
    with pytest.raises(Unavailable) as refused:
        await sessions.by_secret(opened.secret)
    assert refused.value.details.status == 503
    with pytest.raises(Unavailable):
        await sessions.by_sid(opened.reading.session.sid)
    sessions.seen(opened.reading.session.sid, 100.0)
    await sessions.close()


async def test_the_reads_use_indexes(login: Logins, pool: asyncpg.Pool) -> None:
    """No statement on the way of a request walks over all sessions."""
    for n in range(3):
        await login(f"user{n}")
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL enable_seqscan = off")
        for name, argument in (("_BY_SECRET_HASHES", [b"x" * 32]), ("_BY_SIDS", ["x"]), ("_LOCK_RENEWABLE", "x")):
            plan = await connection.fetch(f"EXPLAIN {getattr(store, name)}", argument)
            lines = [line for (line,) in plan]
            assert not [line for line in lines if "Seq Scan on sessions" in line or "Seq Scan on revocation_l" in line]


async def test_9b_a_session_that_is_gone_is_nobodys_and_one_that_changes_at_every_look_is_asked_for_again(
    login: Logins, sessions: Sessions, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = await login()
    cached = await read(sessions, opened.secret)
    old = cached._replace(position=cached.position._replace(era="0" * 32))

    async def no_newer(sid: str) -> Reading:
        return old

    with monkeypatch.context() as patch:
        patch.setattr(sessions, "read_again", no_newer)
        with pytest.raises(Problem) as refused:
            await sessions.admit(old)
    assert refused.value.code == "frozen"
    await pool.execute("DELETE FROM sessions")  # as a failover that lost the login
    with pytest.raises(Problem) as refused:
        await sessions.admit(old)
    assert refused.value.code == "unauthenticated"
