"""Sessions of external tokens: made on first sight, one statement a loop turn, born by `iat`."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from config.clock import SystemClock
from config.settings import Life, Settings, with_values
from sessions import external, ids, service, store
from sessions.errors import ExternalRefused, SessionEnded
from sessions.external import FORGOTTEN_AFTER, External
from sessions.model import Ended, Kind
from sessions.revocations import Revocations
from sessions.service import Sessions
from tests.sessions.conftest import Logins, waits_for_lock

METACHARACTERS = """'; DROP TABLE sessions; -- " \\ % _ $1 {} \r\n \N{SNOWMAN}"""


def token(subject: str = "42", issuer: str = "", **claims: Any) -> External:
    return External(issuer, subject, hashlib.sha256(repr((subject, issuer, claims)).encode()).digest(), **claims)


@pytest.fixture
def meetings(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[store.Sight]]:
    """What each statement was asked for."""
    asked: list[Sequence[store.Sight]] = []
    real = store.meet

    async def meet(connection: Any, sights: Sequence[store.Sight], **more: Any) -> Any:
        asked.append(sights)
        return await real(connection, sights, **more)

    monkeypatch.setattr(store, "meet", meet)
    return asked


async def test_first_sight_makes_the_session_and_its_user(sessions: Sessions, pool: asyncpg.Pool) -> None:
    reading = await sessions.external(token("42", sid="s1", device="curl/8", address="192.0.2.1"))
    session = reading.session
    assert (session.kind, session.issuer, session.subject.id) == ("external", "", "42")
    assert (session.device, session.address) == ("curl/8", "192.0.2.1")
    assert session.sid == ids.derived_sid("", "sid", "s1")
    assert sessions.judge(reading) is None
    assert await store.subject(pool, "42") is not None
    [listed] = await sessions.of_subject("42")
    assert listed.sid == session.sid


async def test_the_same_token_meets_its_session_again(sessions: Sessions, pool: asyncpg.Pool) -> None:
    first = await sessions.external(token(jti="j1"))
    again = await sessions.external(token(jti="j1"))
    assert again.session == first.session
    assert await pool.fetchval("SELECT count(*) FROM sessions") == 1


async def test_all_of_a_loop_turn_are_one_statement(
    sessions: Sessions, pool: asyncpg.Pool, meetings: list[Sequence[store.Sight]]
) -> None:
    tokens = [token(str(n % 10), jti=f"j{n % 20}") for n in range(40)]
    readings = await asyncio.gather(*(sessions.external(t) for t in tokens))
    assert [len(asked) for asked in meetings] == [20]
    assert [reading.session.subject.id for reading in readings] == [str(n % 10) for n in range(40)]
    assert await pool.fetchval("SELECT count(*) FROM sessions") == 20
    assert await pool.fetchval("SELECT count(*) FROM subjects") == 10


async def test_a_session_that_was_met_is_cached_and_judged(
    sessions: Sessions, login: Logins, meetings: list[Sequence[store.Sight]]
) -> None:
    reading = await sessions.external(token(sid="s", iat=4e9))
    assert await sessions.external(token(sid="s", iat=4e9)) is reading
    assert len(meetings) == 1
    await login.end(kind=Kind.SESSION, sid=reading.session.sid, reason="gone")
    over = await sessions.external(token(sid="s", iat=4e9))
    verdict = sessions.judge(over)
    assert isinstance(verdict, Ended)
    assert verdict.reason == "gone"


# -- born


async def committed_at(pool: asyncpg.Pool, seq: int) -> float:
    at: float = await pool.fetchval(
        "SELECT extract(epoch FROM committed_at)::float8 FROM revocation_log WHERE seq = $1", seq
    )
    return at


async def test_born_is_the_last_seq_that_was_committed_when_the_token_was_issued(
    sessions: Sessions, login: Logins, pool: asyncpg.Pool
) -> None:
    first = await pool.fetchval("SELECT seq FROM revocation_head")
    for _ in range(2):
        await login.end(kind=Kind.SESSION, sid="somebody-else")
    times = [await committed_at(pool, first + n) for n in range(3)]
    for n, at in enumerate(times):
        assert (await sessions.external(token(jti=f"at{n}", iat=at + 2e-6))).session.born == first + n
        before = (await sessions.external(token(jti=f"before{n}", iat=at - 2e-6))).session.born
        assert before == (first + n - 1 if n else 0)
    assert (await sessions.external(token(jti="future", iat=times[-1] + 1e6))).session.born == first + 2


async def test_an_odd_iat_fails_nobody(sessions: Sessions) -> None:
    odd = (-1.0, 0.0, 1e300, float("inf"), float("-inf"), float("nan"), 10**400)
    *readings, other = await asyncio.gather(
        *(sessions.external(token("1", jti=f"odd{n}", iat=iat)) for n, iat in enumerate(odd)),
        sessions.external(token("2", jti="other", iat=4e9)),
    )
    born = other.session.born
    assert born > 0
    assert [reading.session.born for reading in readings] == [0, 0, born, born, 0, 0, born]


@pytest.mark.parametrize("row", [{"kind": Kind.USER, "subject": "42"}, {"kind": Kind.EVERYONE}])
async def test_a_token_from_before_a_revocation_is_over_and_one_from_after_lives(
    sessions: Sessions, login: Logins, pool: asyncpg.Pool, row: dict[str, Any]
) -> None:
    await login.end(**row, reason="r")
    revoked = await committed_at(pool, await pool.fetchval("SELECT seq FROM revocation_head"))
    old = await sessions.external(token(iat=revoked - 1))
    new = await sessions.external(token(iat=revoked + 1))
    with pytest.raises(SessionEnded) as refused:
        await sessions.admit(old)
    assert refused.value.ended.reason == "r"
    assert await sessions.admit(new) is new


async def test_a_token_from_a_little_ahead_is_over_by_what_came_after_its_first_sight(
    sessions: Sessions, login: Logins, pool: asyncpg.Pool
) -> None:
    """Not by its `iat` alone: it is born with the head as it was seen, whatever is committed before `iat` comes."""
    ahead = sessions.now() + 50
    reading = await sessions.external(token(iat=ahead))
    assert reading.session.born == reading.position.seq
    await login.end(kind=Kind.USER, subject="42", reason="r")
    assert await committed_at(pool, await pool.fetchval("SELECT seq FROM revocation_head")) < ahead
    sessions._by_sight.drop(reading.session.sid)
    again = await sessions.external(token(iat=ahead))
    assert again.session.born == reading.session.born
    for one in (reading, again):
        with pytest.raises(SessionEnded):
            await sessions.admit(one)


async def test_without_iat_a_revoked_user_stays_out(sessions: Sessions, login: Logins) -> None:
    before = await sessions.external(token(jti="before"))
    assert before.session.born == 0
    assert sessions.judge(before) is None
    await login.end(kind=Kind.USER, subject="42")
    for jti in ("before", "after"):
        with pytest.raises(SessionEnded):
            await sessions.admit(await sessions.external(token(jti=jti)))


async def test_a_user_who_was_revoked_before_anybody_saw_them_is_refused(sessions: Sessions, login: Logins) -> None:
    await login.end(kind=Kind.USER, subject="unseen")
    with pytest.raises(SessionEnded):
        await sessions.admit(await sessions.external(token("unseen", jti="j")))


async def test_an_ended_external_session_stays_ended_for_its_token(
    sessions: Sessions, login: Logins, pool: asyncpg.Pool, revocations: Revocations, settings: Settings
) -> None:
    reading = await sessions.external(token(iat=4e9))
    await login.end(kind=Kind.SESSION, sid=reading.session.sid)
    started = Sessions(pool, revocations, settings.sessions, clock=SystemClock())
    with pytest.raises(SessionEnded):
        await started.admit(await started.external(token(iat=4e9)))
    await started.close()


# -- whose it is


@pytest.mark.parametrize(
    ("issuer", "subject"),
    [("", "u_abc"), ("", ""), ("google", "42"), ("google", "google:"), ("google", "u_abc"), ("google", "other:42")],
)
def test_an_issuer_names_only_its_own_users(issuer: str, subject: str) -> None:
    with pytest.raises(ExternalRefused):
        external.sight(token(subject, issuer))


async def test_a_named_issuers_users_have_its_name_before_theirs(sessions: Sessions) -> None:
    reading = await sessions.external(token("google:u_42", "google", jti="j"))
    assert (reading.session.subject.id, reading.session.issuer) == ("google:u_42", "google")


async def test_two_issuers_tokens_with_one_sid_are_two_sessions(sessions: Sessions) -> None:
    one = await sessions.external(token("a:1", "a", sid="s"))
    other = await sessions.external(token("b:1", "b", sid="s"))
    assert one.session.sid != other.session.sid


@pytest.mark.parametrize("claim", ["sid", "jti"])
async def test_a_token_of_another_user_does_not_enter_the_session(sessions: Sessions, claim: str) -> None:
    await sessions.external(token("alice", **{claim: "x"}))
    for _ in range(2):
        with pytest.raises(ExternalRefused):
            await sessions.external(token("mallory", **{claim: "x"}))


async def test_two_users_with_one_sid_in_one_loop_turn_do_not_share_it(sessions: Sessions) -> None:
    results = await asyncio.gather(
        *(sessions.external(token(user, sid="x")) for user in ("alice", "mallory")), return_exceptions=True
    )
    assert sorted(type(result).__name__ for result in results) == ["ExternalRefused", "Reading"]


@pytest.mark.parametrize("claim", ["subject", "sid", "jti"])
@pytest.mark.parametrize("value", ["a\x00b", "\udcff", "x" * 513, "\N{SNOWMAN}" * 171])
def test_a_claim_that_cannot_be_kept_is_refused(claim: str, value: str) -> None:
    with pytest.raises(ExternalRefused):
        external.sight(token(**{claim: value}))


async def test_text_with_metacharacters_is_only_text(sessions: Sessions) -> None:
    claims = dict.fromkeys(("sid", "jti", "device", "address"), METACHARACTERS)
    reading = await sessions.external(token(METACHARACTERS, **claims))
    assert reading.session.subject.id == METACHARACTERS
    assert (reading.session.device, reading.session.address) == (METACHARACTERS, METACHARACTERS)
    [listed] = await sessions.of_subject(METACHARACTERS)
    assert listed.sid == reading.session.sid


# -- many processes


async def test_two_processes_that_meet_the_same_sessions_at_once_agree(
    sessions: Sessions, pool: asyncpg.Pool, revocations: Revocations, settings: Settings
) -> None:
    other = Sessions(pool, revocations, settings.sessions, clock=SystemClock())
    tokens = [token(f"user{n % 7}", jti=f"j{n}") for n in range(60)]
    mine, theirs = await asyncio.gather(
        asyncio.gather(*(sessions.external(t) for t in tokens)),
        asyncio.gather(*(other.external(t) for t in reversed(tokens))),
    )
    assert [r.session.sid for r in mine] == [r.session.sid for r in reversed(list(theirs))]
    assert [r.session.born for r in mine] == [r.session.born for r in reversed(list(theirs))]
    await other.close()


async def test_the_life_of_an_external_session_is_that_of_its_users_roles(
    pool: asyncpg.Pool, revocations: Revocations, settings: Settings
) -> None:
    await store.create_subject(pool, "42", ["admin", "editor"])
    lives = {"admin": {"absolute": 3600.0}, "editor": {"idle": 60.0}, "other": {"idle": 1.0}}
    policy = with_values(settings, {"sessions.roles": lives}).sessions
    some = Sessions(pool, revocations, policy, clock=SystemClock())
    mine, others = await asyncio.gather(some.external(token("42", jti="j")), some.external(token("43", jti="k")))
    for reading, absolute, idle in ((mine, 3600.0, 60.0), (others, policy.absolute, policy.idle)):
        session = reading.session
        assert session.expires_at - session.created_at == pytest.approx(absolute, abs=1e-3)
        assert session.idle == idle
    await some.close()


async def test_what_another_transaction_is_making_is_met_when_it_is_there(
    sessions: Sessions, pool: asyncpg.Pool, revocations: Revocations
) -> None:
    sight = store.Sight(ids.derived_sid("", "jti", "j"), "42", "", None, "", "")
    async with pool.acquire() as connection, connection.transaction():
        life = Life(absolute=100.0, idle=10.0)
        await store.meet(connection, [sight], now=revocations.database_now(), life=life, roles={})
        meeting = asyncio.ensure_future(sessions.external(token("42", jti="j")))
        await waits_for_lock(connection)
    assert (await meeting).session.sid == sight.sid


async def test_9b_an_external_session_can_be_read_on_a_given_connection(sessions: Sessions, pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        first = await sessions.external(token(jti="j"), connection=connection)
        again = await sessions.external(token(jti="j"), connection=connection)
        with pytest.raises(ExternalRefused):
            await sessions.external(token("mallory", jti="j"), connection=connection)
    assert first.session.sid == again.session.sid


async def test_external_sessions_do_not_take_the_places_of_logins(sessions: Sessions, login: Logins) -> None:
    for n in range(7):
        await sessions.external(token("alice", jti=f"j{n}"))
    assert (await login("alice")).replaced == ()
    assert len(await sessions.of_subject("alice")) == 8


# -- forgetting


async def test_a_session_is_forgotten_when_its_token_is_gone(
    sessions: Sessions, pool: asyncpg.Pool, login: Logins
) -> None:
    past, future = sessions.now() - FORGOTTEN_AFTER - 10, sessions.now() + 10
    gone = await sessions.external(token("1", jti="gone", expires_at=past))
    over = await sessions.external(token("1", jti="over", expires_at=past))
    kept = [
        await sessions.external(token("1", jti="lives", expires_at=future)),
        await sessions.external(token("1", jti="no exp")),
        await sessions.external(token("1", jti="odd exp", expires_at=float("nan"))),
        await sessions.external(token("1", sid="a sid of its own", expires_at=past)),
        (await login("1")).reading,
        over,
    ]
    await login.end(kind=Kind.SESSION, sid=over.session.sid)
    assert await sessions.forget() == 1
    left = {record["sid"] for record in await pool.fetch("SELECT sid FROM sessions")}
    assert left == {reading.session.sid for reading in kept}
    assert gone.session.sid not in left


async def test_forgetting_goes_on_until_nothing_is_left(
    sessions: Sessions, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "FORGOTTEN_AT_ONCE", 3)
    for number in (7, 3, 0):
        await asyncio.gather(*(sessions.external(token(jti=f"j{number}{n}", expires_at=1.0)) for n in range(number)))
        assert await sessions.forget() == number
    assert await pool.fetchval("SELECT count(*) FROM sessions") == 0


async def test_a_forgotten_session_comes_back_no_younger(sessions: Sessions, login: Logins, pool: asyncpg.Pool) -> None:
    """A clock that jumped forgot too early: what the log says of its user still holds."""
    await login.end(kind=Kind.USER, subject="42")
    revoked = await committed_at(pool, await pool.fetchval("SELECT seq FROM revocation_head"))
    early = token("42", jti="j", iat=revoked - 1, expires_at=1.0)
    for _ in range(2):
        with pytest.raises(SessionEnded):
            await sessions.admit(await sessions.external(early))
        await sessions.forget()


@pytest.mark.parametrize("given", [False, True])
async def test_a_session_that_another_transaction_is_making_is_asked_for_three_times_and_then_refused(
    sessions: Sessions, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch, given: bool
) -> None:
    asked = []

    async def not_there_yet(connection: Any, sights: Sequence[store.Sight], **more: Any) -> dict[str, Any]:
        asked.append(len(sights))
        return {}

    monkeypatch.setattr(store, "meet", not_there_yet)
    async with pool.acquire() as connection:
        with pytest.raises(ExternalRefused):
            await sessions.external(token(jti="j"), connection=connection if given else None)
    assert asked == [1, 1, 1]
