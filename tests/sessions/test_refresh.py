"""Renewing a session: one generation at a time, the same successor for a lost reply, and the end for a thief."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import asyncpg
import pytest

from config.clock import SystemClock
from config.http import Problem
from config.settings import Settings
from sessions import ids, refresh, store
from sessions.errors import RefreshRefused, SessionEnded
from sessions.model import DISABLED, EXPIRED, REVOKED, Kind
from sessions.revocations import Revocations
from sessions.service import Opened, Refreshed, Sessions
from tests.sessions.conftest import Logins, row_of

ALICE, MALLORY = b"alice's client", b"mallory's client"


@pytest.fixture
async def opened(login: Logins) -> Opened:
    return await login("alice", kind="token")


async def row(pool: asyncpg.Pool, opened: Opened) -> Any:
    return await row_of(pool, "SELECT * FROM sessions WHERE sid = $1", opened.reading.session.sid)


async def is_over(sessions: Sessions, opened: Opened) -> bool:
    reading = await sessions.by_sid(opened.reading.session.sid)
    assert reading is not None
    return sessions.judge(reading) is not None


async def stolen(sessions: Sessions, token: str, client: bytes = ALICE) -> None:
    with pytest.raises(SessionEnded) as refused:
        await sessions.refresh(token, client)
    assert (refused.value.ended.code, refused.value.ended.reason) == (REVOKED, "token_reuse")
    assert (refused.value.details.status, refused.value.code) == (401, "session_ended")


async def shift_rotation(pool: asyncpg.Pool, seconds: float) -> None:
    await pool.execute("UPDATE sessions SET refresh_rotated_at = refresh_rotated_at + $1 * interval '1 s'", seconds)


async def test_a_refresh_renews_the_session(sessions: Sessions, opened: Opened, pool: asyncpg.Pool) -> None:
    first = await sessions.refresh(opened.refresh_token, ALICE)
    second = await sessions.refresh(first.refresh_token, ALICE)
    assert len({opened.refresh_token, first.refresh_token, second.refresh_token}) == 3
    assert second.reading.session.sid == opened.reading.session.sid
    assert (await row(pool, opened))["refresh_counter"] == 3
    assert not await is_over(sessions, opened)


async def test_9a_the_position_is_one_of_a_statement_that_read_session_and_head(
    sessions: Sessions, opened: Opened, login: Logins, pool: asyncpg.Pool
) -> None:
    await login.end(kind=Kind.SESSION, sid="somebody-else")
    refreshed = await sessions.refresh(opened.refresh_token, ALICE)
    head = await row_of(pool, "SELECT seq, era_id FROM revocation_head")
    assert refreshed.reading.position == (head["seq"], head["era_id"].hex)
    assert refreshed.reading.session.born == opened.reading.session.born


async def test_17_nothing_in_the_database_is_a_refresh_token(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool
) -> None:
    refreshed = await sessions.refresh(opened.refresh_token, ALICE)
    stored = repr(dict(await row(pool, opened)))
    for token in (opened.refresh_token, refreshed.refresh_token):
        assert token not in stored


async def test_18_a_dump_of_the_database_forges_nothing(sessions: Sessions, opened: Opened, pool: asyncpg.Pool) -> None:
    sealed = (await row(pool, opened))["refresh_key"]
    for key in (sealed, sealed[-32:], sealed[17:49], bytes(32)):
        with pytest.raises(RefreshRefused):
            await sessions.refresh(refresh.write(key, opened.reading.session.sid, 1), ALICE)
    assert not await is_over(sessions, opened)


async def test_made_up_tokens_opened_transactions_and_waited_for_the_sessions_row(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of them costs one statement a loop turn, and no lock, whether there is such a session or not."""
    sid, statements = opened.reading.session.sid, list[int]()
    cookie = ids.new_sid(0.0)
    read = store.refresh_keys

    async def counted(executor: store.Executor, sids: Sequence[str]) -> Mapping[str, bytes]:
        statements.append(len(sids))
        return await read(executor, sids)

    monkeypatch.setattr(store, "refresh_keys", counted)
    monkeypatch.setattr(sessions._revocations, "writing", None)
    made_up = [refresh.write(refresh.new_key(), sid, n) for n in range(100)]
    made_up += [refresh.write(refresh.new_key(), ids.new_sid(float(n)), 1) for n in range(100)]
    made_up += [refresh.write(b"", cookie, 0)]
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT FROM sessions WHERE sid = $1 FOR UPDATE", sid)
        tries = (sessions.refresh(token, ALICE) for token in made_up)
        answers = await asyncio.wait_for(asyncio.gather(*tries, return_exceptions=True), 5)
    assert {type(answer) for answer in answers} == {RefreshRefused}
    assert len(statements) == 1


async def test_19_twenty_parallel_refreshes_give_one_generation(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool
) -> None:
    results = await asyncio.gather(*(sessions.refresh(opened.refresh_token, ALICE) for _ in range(20)))
    assert len({result.refresh_token for result in results}) == 1
    assert (await row(pool, opened))["refresh_counter"] == 2
    await sessions.refresh(results[0].refresh_token, ALICE)


async def test_19_twenty_parallel_refreshes_of_a_chain_never_fork(sessions: Sessions, opened: Opened) -> None:
    token = opened.refresh_token
    for _ in range(5):
        results = await asyncio.gather(*(sessions.refresh(token, ALICE) for _ in range(4)))
        [token] = {result.refresh_token for result in results}


async def test_a_lost_reply_gets_the_same_successor(sessions: Sessions, opened: Opened, pool: asyncpg.Pool) -> None:
    first = await sessions.refresh(opened.refresh_token, ALICE)
    for _ in range(3):
        again = await sessions.refresh(opened.refresh_token, ALICE)
        assert again.refresh_token == first.refresh_token
    assert (await row(pool, opened))["refresh_counter"] == 2


async def test_the_window_is_measured_from_the_rotation_not_from_the_last_repeat(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool
) -> None:
    await sessions.refresh(opened.refresh_token, ALICE)
    await shift_rotation(pool, -6)
    await sessions.refresh(opened.refresh_token, ALICE)
    await shift_rotation(pool, -6)
    await stolen(sessions, opened.refresh_token)


async def test_20_reuse_after_the_window_ends_the_session(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool
) -> None:
    first = await sessions.refresh(opened.refresh_token, ALICE)
    await shift_rotation(pool, -10.5)
    await stolen(sessions, opened.refresh_token)
    assert await is_over(sessions, opened)
    ended = await row_of(pool, "SELECT * FROM revocation_log ORDER BY seq DESC LIMIT 1")
    assert (ended["sid"], ended["code"], ended["reason"]) == (opened.reading.session.sid, 4501, "token_reuse")
    audited = await row_of(pool, "SELECT * FROM audit WHERE action = 'session.token_reuse'")
    assert audited["target"] == f"session:{opened.reading.session.sid}"
    with pytest.raises(SessionEnded) as refused:  # the thief's, or the victim's, newer token is dead as well
        await sessions.refresh(first.refresh_token, ALICE)
    assert refused.value.ended.reason == "token_reuse"


async def test_20_what_was_read_before_is_over_at_once(sessions: Sessions, opened: Opened) -> None:
    refreshed = await sessions.refresh(opened.refresh_token, ALICE)
    await sessions.refresh(refreshed.refresh_token, ALICE)
    await stolen(sessions, opened.refresh_token)
    with pytest.raises(SessionEnded):
        await sessions.admit(refreshed.reading)


async def test_21_reuse_inside_the_window_by_another_client_is_theft(sessions: Sessions, opened: Opened) -> None:
    await sessions.refresh(opened.refresh_token, ALICE)
    await stolen(sessions, opened.refresh_token, MALLORY)
    assert await is_over(sessions, opened)


async def test_22_two_rotations_within_one_second_refuse_the_older(sessions: Sessions, opened: Opened) -> None:
    first = await sessions.refresh(opened.refresh_token, ALICE)
    await sessions.refresh(first.refresh_token, ALICE)
    await stolen(sessions, opened.refresh_token)
    assert await is_over(sessions, opened)


async def test_23_a_restart_does_not_revive_a_rotated_token(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool, revocations: Revocations, settings: Settings
) -> None:
    first = await sessions.refresh(opened.refresh_token, ALICE)
    second = await sessions.refresh(first.refresh_token, ALICE)
    started = Sessions(pool, revocations, settings.sessions, clock=SystemClock())
    await started.refresh(second.refresh_token, ALICE)
    await stolen(started, opened.refresh_token)
    await started.close()


async def test_23_a_counter_ahead_of_the_row_is_adopted(sessions: Sessions, opened: Opened, pool: asyncpg.Pool) -> None:
    """A failover lost the last commits: the client has generation 4, the row says 1."""
    token = opened.refresh_token
    for _ in range(3):
        token = (await sessions.refresh(token, ALICE)).refresh_token
    await pool.execute("UPDATE sessions SET refresh_counter = 1, refresh_rotated_at = NULL, refresh_client = NULL")
    renewed = await sessions.refresh(token, MALLORY)
    assert (await row(pool, opened))["refresh_counter"] == 5
    assert (await sessions.refresh(token, MALLORY)).refresh_token == renewed.refresh_token
    await stolen(sessions, opened.refresh_token)


async def test_a_clock_step_neither_widens_nor_shuts_the_window(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool, revocations: Revocations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's clock may say anything: the window is judged by the clock that the process holds."""
    first = await sessions.refresh(opened.refresh_token, ALICE)
    step = 0.0
    real = store.lock_renewable

    async def stepped(connection: Any, sid: str) -> Any:
        found = await real(connection, sid)
        assert found is not None
        return found._replace(reading=found.reading._replace(now=found.reading.now + step))

    monkeypatch.setattr(store, "lock_renewable", stepped)
    for seconds in (3600.0, -3600.0):
        step = seconds
        assert (await sessions.refresh(opened.refresh_token, ALICE)).refresh_token == first.refresh_token
    await shift_rotation(pool, -11)
    step = -3600.0
    await stolen(sessions, opened.refresh_token)


async def test_24_a_refresh_after_a_revocation_is_refused_with_its_reason(
    sessions: Sessions, opened: Opened, login: Logins
) -> None:
    await login.end(kind=Kind.SESSION, sid=opened.reading.session.sid, reason="stolen laptop")
    with pytest.raises(SessionEnded) as refused:
        await sessions.refresh(opened.refresh_token, ALICE)
    assert refused.value.ended.reason == "stolen laptop"


@pytest.mark.parametrize("row", [{"kind": Kind.USER, "subject": "alice"}, {"kind": Kind.EVERYONE}])
async def test_24_what_a_refresh_racing_a_revocation_gives_is_over(
    sessions: Sessions, login: Logins, row: dict[str, Any]
) -> None:
    for _ in range(5):
        opened = await login("alice", kind="token")
        ending = asyncio.ensure_future(login.end(**row))
        results = await asyncio.gather(
            *(sessions.refresh(opened.refresh_token, ALICE) for _ in range(4)), return_exceptions=True
        )
        await ending
        for result in results:
            if isinstance(result, Refreshed):
                with pytest.raises(SessionEnded):
                    await sessions.admit(result.reading)
                with pytest.raises(SessionEnded):
                    await sessions.refresh(result.refresh_token, ALICE)
            else:
                assert isinstance(result, SessionEnded)


async def test_25_refreshing_moves_the_idle_end_and_not_the_absolute_one(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool
) -> None:
    await pool.execute("UPDATE sessions SET last_seen_at = last_seen_at - interval '1000 s'")
    before = await row(pool, opened)
    refreshed = await sessions.refresh(opened.refresh_token, ALICE)
    after = await row(pool, opened)
    assert after["expires_at"] == before["expires_at"]
    assert (after["last_seen_at"] - before["last_seen_at"]).total_seconds() > 990
    assert refreshed.reading.session.last_seen_at == pytest.approx(after["last_seen_at"].timestamp(), abs=1e-3)


@pytest.mark.parametrize(
    ("column", "seconds", "reason"), [("last_seen_at", -15 * 86400, "idle"), ("expires_at", -91 * 86400, "absolute")]
)
async def test_25_a_session_past_its_end_is_not_renewed(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool, column: str, seconds: float, reason: str
) -> None:
    await pool.execute(f"UPDATE sessions SET {column} = {column} + $1 * interval '1 s'", seconds)
    with pytest.raises(SessionEnded) as refused:
        await sessions.refresh(opened.refresh_token, ALICE)
    assert (refused.value.ended.code, refused.value.ended.reason) == (EXPIRED, reason)


async def test_27_a_disabled_user_is_not_renewed(sessions: Sessions, opened: Opened, pool: asyncpg.Pool) -> None:
    await store.change_subject(pool, "alice", active=False)
    with pytest.raises(SessionEnded) as refused:
        await sessions.refresh(opened.refresh_token, ALICE)
    assert refused.value.ended.code == DISABLED


async def test_what_is_no_token_of_the_session_ends_nothing(sessions: Sessions, opened: Opened, login: Logins) -> None:
    cookie = await login("alice", kind="cookie")
    other = await login("bob", kind="token")
    sid = opened.reading.session.sid
    forged = [
        "",
        "x",
        "'; DROP TABLE sessions; --",
        refresh.write(bytes(32), sid, 1),
        refresh.write(bytes(32), sid, 0),
        refresh.write(bytes(32), cookie.reading.session.sid, 1),
        refresh.write(bytes(32), ids.new_sid(1.8e9), 1),
        other.refresh_token.replace("wgr_", "wgx_"),
    ]
    for token in forged:
        with pytest.raises(RefreshRefused) as refused:
            await sessions.refresh(token, ALICE)
        assert (refused.value.details.status, refused.value.code) == (401, "unauthenticated")
    assert not await is_over(sessions, opened)
    await sessions.refresh(opened.refresh_token, ALICE)


async def test_a_previous_secret_key_still_opens_and_is_replaced(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool, revocations: Revocations, settings: Settings
) -> None:
    old = settings.sessions.secret_key
    rotated = settings.sessions.model_copy(update={"secret_key": type(old)("n" * 40), "previous_secret_keys": [old]})
    forgotten = rotated.model_copy(update={"previous_secret_keys": []})
    before = Sessions(pool, revocations, forgotten, clock=SystemClock())
    with pytest.raises(RefreshRefused):
        await before.refresh(opened.refresh_token, ALICE)
    during = Sessions(pool, revocations, rotated, clock=SystemClock())
    refreshed = await during.refresh(opened.refresh_token, ALICE)
    await before.refresh(refreshed.refresh_token, ALICE)
    for service in (before, during):
        await service.close()


async def test_below_the_floor_a_refresh_says_frozen_and_changes_nothing(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.lock_renewable

    async def foreign(connection: Any, sid: str) -> Any:
        found = await real(connection, sid)
        assert found is not None
        elsewhere = found.reading.position._replace(era="0" * 32)
        return found._replace(reading=found.reading._replace(position=elsewhere))

    monkeypatch.setattr(store, "lock_renewable", foreign)
    with pytest.raises(Problem) as refused:
        await sessions.refresh(opened.refresh_token, ALICE)
    assert refused.value.code == "frozen"
    assert (await row(pool, opened))["refresh_counter"] == 1


async def test_F22_a_refresh_that_is_cancelled_anywhere_leaves_a_token_that_renews(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool
) -> None:
    """Cancelled after ever more turns of the loop: before, in, and after the transaction."""
    token = opened.refresh_token
    for turns in (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048):
        attempt = asyncio.ensure_future(sessions.refresh(token, ALICE))
        for _ in range(turns):
            await asyncio.sleep(0)
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        token = (await sessions.refresh(token, ALICE)).refresh_token
    assert not await is_over(sessions, opened)


async def test_a_token_whose_session_the_database_lost_is_refused(
    sessions: Sessions, opened: Opened, pool: asyncpg.Pool
) -> None:
    await pool.execute("DELETE FROM sessions")
    with pytest.raises(RefreshRefused):
        await sessions.refresh(opened.refresh_token, ALICE)
