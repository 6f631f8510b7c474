"""The SQL of sessions and subjects: every statement has a name and says what it reads and what it locks.

Nothing here decides. One lock order everywhere: subjects, then sessions (by id), then the head of the log. `now` is the
caller's reading of the database's clock: the process holds it against steps, `clock_timestamp()` does not.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from config import paging
from config.database import Connection, Pool
from config.paging import Cursor
from config.settings import Life
from sessions.model import Ended, Position, Reading, Session, Subject
from sessions.refresh import FIRST, Generation

Executor = Connection | Pool


# -- subjects


async def subject(connection: Executor, id: str, *, lock: bool = False) -> Subject | None:
    """The subject, unless it was erased; with `lock` its row is held until the transaction's end (FOR NO KEY UPDATE:
    inserts that only refer to it go on)."""
    record = await connection.fetchrow(_SUBJECT + ("FOR NO KEY UPDATE" if lock else ""), id)
    return None if record is None else _subject(record)


_SUBJECT = """
SELECT id, state = 'active' AS active, credential_version, roles,
    extract(epoch FROM banned_until)::float8 AS banned_until
FROM subjects WHERE id = $1 AND erased_at IS NULL
"""


async def lock_subjects(connection: Connection, ids: Sequence[str]) -> None:
    """Hold several subjects' rows until the transaction's end, locked in the order of their ids."""
    await connection.execute(_LOCK_SUBJECTS, ids)


_LOCK_SUBJECTS = "SELECT FROM subjects WHERE id = ANY($1::text[]) ORDER BY id FOR NO KEY UPDATE"


async def create_subject(connection: Executor, id: str, roles: Iterable[str] = (), *, guest: bool = False) -> None:
    """A new active subject with credential version 1."""
    await connection.execute("INSERT INTO subjects (id, roles, guest) VALUES ($1, $2, $3)", id, list(roles), guest)


async def erase_subject(connection: Connection, id: str, *, known_elsewhere: bool) -> None:
    """Nobody comes in as this locked subject again, unless another issuer names it. Its id stays, so that what is over
    stays over and no other has it; what its sessions knew of devices and addresses goes, and why they ended."""
    await connection.execute(_ERASE_SUBJECT, id, known_elsewhere)
    await connection.execute(_BLANK_SESSIONS, id)


_ERASE_SUBJECT = """
UPDATE subjects SET roles = '{}', guest = false, revoked_reason = '', revoked_message = '',
    state = CASE WHEN $2 THEN state ELSE 'disabled' END, erased_at = CASE WHEN $2 THEN NULL ELSE clock_timestamp() END
WHERE id = $1
"""
_BLANK_SESSIONS = """
WITH all_of AS (SELECT sid FROM sessions WHERE subject = $1 ORDER BY sid FOR NO KEY UPDATE)
UPDATE sessions SET device = '', address = '', refresh_client = NULL, ended_reason = '', ended_message = ''
WHERE sid IN (SELECT sid FROM all_of)
"""


async def sids_of(connection: Executor, subject: str) -> list[str]:
    """Of every session that is kept, live or over."""
    return [record["sid"] for record in await connection.fetch("SELECT sid FROM sessions WHERE subject = $1", subject)]


async def is_guest(connection: Executor, id: str) -> bool:
    """Whether there is such a subject and it is a guest."""
    return await connection.fetchval("SELECT true FROM subjects WHERE id = $1 AND guest", id) is not None


async def no_guest_any_more(connection: Connection, id: str) -> None:
    """The guest has registered."""
    await connection.execute("UPDATE subjects SET guest = false WHERE id = $1", id)


async def change_subject(
    connection: Executor,
    id: str,
    *,
    active: bool | None = None,
    roles: Iterable[str] | None = None,
    banned_until: float | None = None,
) -> Subject | None:
    """Set what is given; the row is locked from then on. Ending sessions and telling others is the caller's (log)."""
    state = None if active is None else "active" if active else "disabled"
    record = await connection.fetchrow(_CHANGE_SUBJECT, id, state, None if roles is None else list(roles), banned_until)
    return None if record is None else _subject(record)


_CHANGE_SUBJECT = """
UPDATE subjects SET state = coalesce($2, state), roles = coalesce($3::text[], roles),
    banned_until = coalesce(to_timestamp($4::float8), banned_until)
WHERE id = $1
RETURNING id, state = 'active' AS active, credential_version, roles,
    extract(epoch FROM banned_until)::float8 AS banned_until
"""


async def bump_credential_version(connection: Executor, id: str) -> int:
    """A password changed: a login that verified the old one will not open a session. Returns the new version."""
    version: int = await connection.fetchval(_BUMP, id)
    return version


_BUMP = "UPDATE subjects SET credential_version = credential_version + 1 WHERE id = $1 RETURNING credential_version"


async def end_trust(connection: Connection, subject: str) -> None:
    """No device is trusted any more on which a locked subject showed a second factor."""
    await connection.execute("UPDATE subjects SET trust_ended = trust_ended + 1 WHERE id = $1", subject)


async def head_seq(connection: Executor) -> int:
    """Where the log of this server ends."""
    seq: int = await connection.fetchval("SELECT seq FROM revocation_head")
    return seq


async def database_now(connection: Executor) -> float:
    """The database's clock, for who has no lease that holds it."""
    now: float = await connection.fetchval("SELECT extract(epoch FROM clock_timestamp())::float8")
    return now


# -- reading: session, subject, head and the database's time in one statement (9a)


def _epoch(column: str) -> str:
    return f"extract(epoch FROM {column})::float8"


def _first(mark: str, subject: str, everyone: str) -> str:
    """What the row that ended it left: as a mark on the session, on its subject, or only in the log."""
    return f"""
    CASE WHEN s.ended_code IS NOT NULL THEN {mark} WHEN s.born < u.revoked_below THEN {subject} ELSE {everyone} END"""


# Why PostgreSQL says that a session is over, by position (2a). The mark comes first: it names the row that came first.
_ENDED = ",".join(
    (
        _first("s.ended_code", "coalesce(u.revoked_code, 4501)", "e.code") + "::int AS ended_code",
        _first("s.ended_reason", "u.revoked_reason", "e.reason") + " AS ended_reason",
        _first("s.ended_message", "u.revoked_message", "e.message") + " AS ended_message",
        _first(_epoch("s.ended_at"), _epoch("u.revoked_at"), _epoch("e.at")) + " AS ended_at",
    )
)

_EVERYONE = "LEFT JOIN LATERAL revoked_with_everyone(s.born, s.sid) e ON true"

_SESSION = f"""
    s.sid, s.secret_hash, s.subject, s.kind, s.issuer, s.born, s.idle_seconds, s.device, s.address, s.aal, s.remembered,
    s.act, {_epoch("s.auth_time")} AS auth_time,
    {_epoch("s.created_at")} AS created_at, {_epoch("s.last_seen_at")} AS last_seen_at,
    {_epoch("s.expires_at")} AS expires_at, (extract(epoch FROM s.created_at) * 1000000)::bigint AS at_us,
    u.state = 'active' AS active, u.credential_version, u.roles, {_epoch("u.banned_until")} AS banned_until, {_ENDED},
    h.seq AS head, h.era_id AS era, {_epoch("clock_timestamp()")} AS now"""


def _read(sessions: str = "sessions", subjects: str = "subjects", more: str = "") -> str:
    return f"""
SELECT {_SESSION}{more}
FROM {sessions} s JOIN {subjects} u ON u.id = s.subject CROSS JOIN revocation_head h {_EVERYONE}
"""  # noqa: S608 - constants of this module


# `ended_at` and not `ended_code`: the indexes of what has not ended ask for that one. NOT EXISTS and not `e.code IS
# NULL`: of that the planner thinks that it leaves next to nothing, and then it reads every session for one page.
_LIVE = """
    s.ended_at IS NULL AND s.born >= u.revoked_below AND NOT EXISTS (SELECT FROM revoked_with_everyone(s.born, s.sid))
    AND u.state = 'active' AND u.banned_until <= to_timestamp($1)
    AND s.expires_at > to_timestamp($1) AND s.last_seen_at + s.idle_seconds * interval '1 second' > to_timestamp($1)"""


async def by_secret_hashes(connection: Executor, hashes: Sequence[bytes]) -> Mapping[bytes, Reading]:
    """The sessions of cookies."""
    records = await connection.fetch(_BY_SECRET_HASHES, hashes)
    return {record["secret_hash"]: _reading(record) for record in records}


_BY_SECRET_HASHES = _read() + "WHERE s.secret_hash = ANY($1::bytea[])"


async def by_sids(connection: Executor, sids: Sequence[str]) -> Mapping[str, Reading]:
    """Sessions of any kind."""
    return {record["sid"]: _reading(record) for record in await connection.fetch(_BY_SIDS, sids)}


_BY_SIDS = _read() + "WHERE s.sid = ANY($1::text[])"


class Filter(NamedTuple):
    """What is listed: "" means any. With a `sid` the session is shown even when it is over."""

    subject: str = ""
    sid: str = ""
    issuer: str | None = None
    kind: str = ""


async def page(
    connection: Executor, by: Filter, *, now: float, limit: int, after: Cursor | None = None
) -> tuple[list[Session], Cursor | None]:
    """Sessions that are live at `now`, newest first; with the cursor of the next page when there is more."""
    text, values = _page(by, after)
    records = await connection.fetch(text, now, limit + 1, *values)
    shown, more = paging.cut(records, limit, id="sid")
    return [_reading(record).session for record in shown], more


def _page(by: Filter, after: Cursor | None) -> tuple[str, list[Any]]:
    values: list[Any] = []
    where = ["$1::float8 IS NOT NULL" if by.sid else _LIVE]
    wanted = {
        "s.subject = {}": by.subject or None,
        "s.sid = {}": by.sid or None,
        "s.issuer = {} AND s.issuer <> ''": by.issuer,
        "s.kind = {}": by.kind or None,
    }
    for condition, value in wanted.items():
        if value is not None:
            values.append(value)
            where.append(condition.format(f"${len(values) + 2}::text"))
    if after is not None:
        n = len(values) + 3
        where.append(f"(s.created_at, s.sid) < (timestamptz 'epoch' + ${n}::bigint * interval '1 us', ${n + 1}::text)")
        values += [*after]
    order = "ORDER BY s.created_at DESC, s.sid DESC LIMIT $2::bigint"
    return f"{_read()} WHERE {' AND '.join(where)} {order}", values


async def count_live(connection: Executor, *, now: float, subject: str = "") -> int:
    """How many sessions are live, of one subject or of all."""
    count: int = await connection.fetchval(_COUNT_LIVE, now, subject)
    return count


_COUNT_LIVE = f"""
SELECT count(*) FROM sessions s JOIN subjects u ON u.id = s.subject
WHERE {_LIVE} AND ($2::text = '' OR s.subject = $2)
"""  # noqa: S608 - constants of this module


# -- logins


async def surplus(
    connection: Connection, subject: str, *, but: Sequence[str], keep: int, now: float, kind: str | None = None
) -> list[str]:
    """The live logins of a locked subject, of one kind or all, beyond the newest `keep`, oldest last; `but` are not
    counted. External sessions are no logins here: their issuer counts them; nor are those in which another acts."""
    return [record["sid"] for record in await connection.fetch(_SURPLUS, now, subject, keep, but, kind)]


_SURPLUS = f"""
SELECT s.sid FROM sessions s JOIN subjects u ON u.id = s.subject
WHERE {_LIVE} AND s.subject = $2 AND s.kind <> 'external' AND s.act IS NULL AND s.sid <> ALL($4::text[])
    AND ($5::text IS NULL OR s.kind = $5)
ORDER BY s.born DESC, s.created_at DESC, s.sid DESC OFFSET $3::bigint
"""  # noqa: S608 - constants of this module


async def insert_login(
    connection: Connection, session: Session, *, secret_hash: bytes | None, sealed_key: bytes | None
) -> None:
    """A new session of our own; with a key for refresh tokens these start at generation 1."""
    await connection.execute(
        _INSERT_LOGIN,
        session.sid,
        session.subject.id,
        session.kind,
        session.born,
        secret_hash,
        sealed_key,
        FIRST if sealed_key else 0,
        session.device,
        session.address,
        session.created_at,
        session.expires_at,
        session.idle,
        session.aal,
        session.remembered,
        session.act or None,
    )


_INSERT_LOGIN = """
INSERT INTO sessions (sid, subject, kind, born, secret_hash, refresh_key, refresh_counter, device, address,
                      created_at, last_seen_at, auth_time, expires_at, idle_seconds, aal, remembered, act)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, to_timestamp($10), to_timestamp($10), to_timestamp($10),
        to_timestamp($11), $12, $13, $14, $15)
"""


async def impersonated(connection: Connection, session: Session, act_sid: str) -> None:
    """The session, which was just inserted, ends with that one."""
    await connection.execute(_IMPERSONATED, session.sid, session.subject.id, session.act, act_sid)


_IMPERSONATED = "INSERT INTO impersonations (sid, subject, act, act_sid) VALUES ($1, $2, $3, $4)"


async def impersonations(connection: Executor, *, user: str = "", act_sid: str = "") -> list[str]:
    """The sids of sessions in which another acts, that nothing has ended: of or by a user, or by one session."""
    return [record["sid"] for record in await connection.fetch(_IMPERSONATIONS, user, act_sid)]


_IMPERSONATIONS = """
SELECT s.sid FROM impersonations i JOIN sessions s ON s.sid = i.sid
WHERE (i.act_sid = $2 OR i.act = $1 OR i.subject = $1) AND s.ended_at IS NULL ORDER BY s.sid
"""


async def step_up(connection: Connection, sid: str, *, secret_hash: bytes | None, aal: int, now: float) -> None:
    """A factor was shown in a session that the caller holds; with `secret_hash` its cookie has another secret."""
    await connection.execute(_STEP_UP, sid, secret_hash, aal, now)


_STEP_UP = """
UPDATE sessions SET secret_hash = coalesce($2, secret_hash), aal = greatest(aal, $3), auth_time = to_timestamp($4)
WHERE sid = $1
"""


async def step_down(connection: Connection, subject: str, *, now: float) -> None:
    """The live sessions of a locked subject have one factor again."""
    await connection.execute(
        "UPDATE sessions SET aal = 1 WHERE sid = ANY($1)", await lock_live(connection, subject, now=now)
    )


async def shorten(connection: Connection, subject: str, life: Life) -> None:
    """No session of a locked subject lives longer than `life` from its begin on, and none longer than before."""
    await connection.execute(_SHORTEN, subject, life.absolute, life.idle)


_SHORTEN = """
WITH longer AS (
    SELECT sid FROM sessions WHERE subject = $1 AND ended_at IS NULL
        AND (expires_at > created_at + $2::float8 * interval '1 second' OR idle_seconds > $3::float8)
    ORDER BY sid FOR NO KEY UPDATE
)
UPDATE sessions SET expires_at = least(expires_at, created_at + $2 * interval '1 second'),
                    idle_seconds = least(idle_seconds, $3)
WHERE sid IN (SELECT sid FROM longer)
"""


async def owns(connection: Connection, subject: str, sid: str) -> bool:
    """Whether this session, live or over, is the subject's."""
    return await connection.fetchval(_OWNS, subject, sid) is not None


_OWNS = "SELECT true FROM sessions WHERE subject = $1 AND sid = $2"


async def lock_live(
    connection: Connection,
    subject: str,
    *,
    now: float,
    only: Sequence[str] | None = None,
    limit: int | None = None,
) -> list[str]:
    """The sids of a subject's live sessions of every kind, their rows locked in this order; `only` those of these."""
    return [record["sid"] for record in await connection.fetch(_LOCK_LIVE, now, subject, limit, only)]


_LOCK_LIVE = f"""
SELECT s.sid FROM sessions s JOIN subjects u ON u.id = s.subject
WHERE {_LIVE} AND s.subject = $2 AND ($4::text[] IS NULL OR s.sid = ANY($4))
ORDER BY s.sid LIMIT $3::bigint FOR NO KEY UPDATE OF s
"""  # noqa: S608 - constants of this module


# -- refresh


async def refresh_keys(connection: Executor, sids: Sequence[str]) -> Mapping[str, bytes]:
    """The sealed keys of those sessions that have one. Locks nothing."""
    return {record["sid"]: record["refresh_key"] for record in await connection.fetch(_REFRESH_KEYS, sids)}


_REFRESH_KEYS = "SELECT sid, refresh_key FROM sessions WHERE sid = ANY($1::text[]) AND refresh_key IS NOT NULL"


class Renewable(NamedTuple):
    """A locked session with what its refresh tokens are judged by."""

    reading: Reading
    sealed_key: bytes | None
    generation: Generation


async def lock_renewable(connection: Connection, sid: str) -> Renewable | None:
    """Locks the session's row: of 20 parallel refreshes each sees what the one before it made. The head is the one of
    this statement's start, so a position that comes from it is never too new."""
    record = await connection.fetchrow(_LOCK_RENEWABLE, sid)
    if record is None:
        return None
    generation = Generation(record["refresh_counter"], record["rotated_at"], record["refresh_client"] or b"")
    return Renewable(_reading(record), record["refresh_key"], generation)


_LOCK_RENEWABLE = (
    _read(
        more=f""", s.refresh_key, s.refresh_counter, s.refresh_client,
    {_epoch("s.refresh_rotated_at")} AS rotated_at"""
    )
    + "WHERE s.sid = $1 FOR NO KEY UPDATE OF s"
)


async def renew(connection: Connection, sid: str, generation: Generation, sealed_key: bytes) -> None:
    """A new generation; renewing is activity."""
    await connection.execute(_RENEW, sid, generation.counter, generation.rotated_at, generation.client, sealed_key)


_RENEW = """
UPDATE sessions SET refresh_counter = $2, refresh_rotated_at = to_timestamp($3), refresh_client = $4, refresh_key = $5,
                    last_seen_at = greatest(last_seen_at, to_timestamp($3))
WHERE sid = $1
"""


# -- activity


async def touch(connection: Executor, seen: Mapping[str, float]) -> None:
    """last_seen_at of many sessions, never backwards. A row that somebody holds is left for the next time: nobody waits
    for this, and it waits for nobody."""
    await connection.execute(_TOUCH, list(seen), list(seen.values()))


_TOUCH = """
WITH free AS (
    SELECT s.sid FROM sessions s WHERE s.sid = ANY($1::text[]) AND s.ended_at IS NULL
    ORDER BY s.sid FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE sessions s SET last_seen_at = to_timestamp(i.at)
FROM unnest($1::text[], $2::float8[]) AS i (sid, at), free
WHERE s.sid = i.sid AND free.sid = i.sid AND s.last_seen_at < to_timestamp(i.at)
"""


# -- external sessions


class Sight(NamedTuple):
    """An external session that came by: it is made when it is new."""

    sid: str
    subject: str
    issuer: str
    iat: float | None
    device: str
    address: str
    forget_at: float | None = None


async def meet(
    connection: Executor, sights: Sequence[Sight], *, now: float, life: Life, roles: Mapping[str, Life]
) -> Mapping[str, Reading]:
    """Read the sessions that are there and make those that are not (and their subjects), in one statement. A new one
    lives for `life`, or as long as the shortest of `roles` that are its subject's.

    `born` is the seq of the last row committed at or before `iat` by the database's clock; 0 without such a row, or
    without `iat`. What another transaction was making at that moment is left out of the answer: ask again.
    """
    sights = sorted(sights, key=lambda sight: sight.sid)  # one order of locks
    columns = [list(column) for column in zip(*sights, strict=True)]
    lives = [list(roles), *([getattr(one, name) or None for one in roles.values()] for name in ("absolute", "idle"))]
    records = await connection.fetch(_MEET, *columns, now, life.absolute, life.idle, *lives)
    return {record["sid"]: _reading(record) for record in records}


_COLUMNS = """sid, subject, issuer, kind, born, secret_hash, device, address, created_at, last_seen_at, expires_at,
    idle_seconds, ended_at, ended_code, ended_reason, ended_message, aal, auth_time, remembered, act"""

_MEET = f"""
WITH input AS MATERIALIZED (
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::float8[], $5::text[], $6::text[], $7::float8[])
        AS i (sid, subject, issuer, iat, device, address, forget_at)
), missing AS MATERIALIZED (
    -- arrays, here and below, keep the planner on the keys: a join with so small a side walks the whole table
    SELECT i.* FROM input i WHERE i.sid <> ALL (ARRAY(SELECT sid FROM sessions WHERE sid = ANY($1::text[])))
), known AS MATERIALIZED (
    SELECT u.* FROM subjects u WHERE u.id = ANY($2::text[])
), met AS (
    INSERT INTO subjects (id)
    SELECT DISTINCT m.subject FROM missing m WHERE NOT EXISTS (SELECT FROM known u WHERE u.id = m.subject) ORDER BY 1
    ON CONFLICT (id) DO NOTHING
    RETURNING *
), u AS (
    SELECT * FROM known UNION ALL SELECT * FROM met
), made AS (
    INSERT INTO sessions (sid, subject, issuer, kind, born, device, address, created_at, last_seen_at, auth_time,
                          expires_at, idle_seconds, forget_at)
    SELECT m.sid, m.subject, m.issuer, 'external',
           CASE WHEN m.iat IS NULL THEN 0 ELSE coalesce(
               (SELECT l.seq FROM revocation_log l WHERE l.committed_at <= to_timestamp(m.iat)
                ORDER BY l.committed_at DESC, l.seq DESC LIMIT 1), 0) END,
           m.device, m.address, to_timestamp($8), to_timestamp($8), to_timestamp(coalesce(m.iat, 0)),
           to_timestamp($8::float8 + least($9::float8, of_role.absolute)), least($10::float8, of_role.idle),
           to_timestamp(m.forget_at)
    FROM missing m JOIN u ON u.id = m.subject CROSS JOIN LATERAL (
        SELECT min(r.absolute) AS absolute, min(r.idle) AS idle
        FROM unnest($11::text[], $12::float8[], $13::float8[]) AS r (role, absolute, idle) WHERE r.role = ANY(u.roles)
    ) of_role ORDER BY m.sid
    ON CONFLICT (sid) DO NOTHING
    RETURNING {_COLUMNS}
), s AS (
    SELECT {_COLUMNS} FROM sessions WHERE sid = ANY($1::text[]) UNION ALL SELECT {_COLUMNS} FROM made
)
{_read("s", "(SELECT * FROM u UNION SELECT * FROM subjects WHERE id = ANY(ARRAY(SELECT subject FROM s)))")}
"""  # noqa: S608 - constants of this module


async def forget(connection: Executor, *, now: float, limit: int) -> int:
    """Delete external sessions that no token can name again; how many. Those that were ended stay for good: a clock
    that jumps must not make anybody forget that."""
    return int((await connection.execute(_FORGET, now, limit)).split()[-1])


_FORGET = """
DELETE FROM sessions WHERE sid = ANY(ARRAY(
    SELECT sid FROM sessions WHERE forget_at < to_timestamp($1) AND ended_at IS NULL
    ORDER BY forget_at LIMIT $2 FOR UPDATE SKIP LOCKED
))
"""


async def forget_over(connection: Executor, *, before: float, limit: int) -> int:
    """Delete logins that were over before this moment, by an end or by their time; how many. That revives nothing:
    their secrets are nobody's then, and a token without its session is refused."""
    return int((await connection.execute(_FORGET_OVER, before, limit)).split()[-1])


_FORGET_OVER = """
DELETE FROM sessions WHERE sid = ANY(ARRAY(
    SELECT sid FROM sessions WHERE kind <> 'external' AND coalesce(ended_at, expires_at) < to_timestamp($1)
    ORDER BY coalesce(ended_at, expires_at) LIMIT $2 FOR UPDATE SKIP LOCKED
))
"""


async def forget_guests(connection: Executor, *, before: float, limit: int) -> int:
    """Delete guests that were made before this moment and have no session any more, live or over; how many."""
    return int((await connection.execute(_FORGET_GUESTS, before, limit)).split()[-1])


_FORGET_GUESTS = """
DELETE FROM subjects WHERE id = ANY(ARRAY(
    SELECT id FROM subjects u WHERE guest AND created_at < to_timestamp($1)
    AND NOT EXISTS (SELECT FROM sessions s WHERE s.subject = u.id)
    ORDER BY created_at LIMIT $2 FOR UPDATE SKIP LOCKED
))
"""


# -- records


def _subject(record: Any) -> Subject:
    return Subject(
        record["id"],
        record["active"],
        record["credential_version"],
        tuple(record["roles"]),
        record["banned_until"],
    )


def _reading(record: Any) -> Reading:
    code = record["ended_code"]
    ended = None
    if code is not None:
        ended = Ended(code, record["ended_reason"] or "", record["ended_message"] or "", record["ended_at"] or 0.0)
    subject = Subject(
        record["subject"],
        record["active"],
        record["credential_version"],
        tuple(record["roles"]),
        record["banned_until"],
    )
    session = Session(
        record["sid"],
        subject,
        record["kind"],
        record["issuer"],
        record["born"],
        record["created_at"],
        record["last_seen_at"],
        record["expires_at"],
        record["idle_seconds"],
        record["device"],
        record["address"],
        ended,
        record["aal"],
        record["auth_time"] or 0.0,
        record["remembered"],
        record["act"] or "",
    )
    return Reading(session, Position(record["head"], record["era"].hex), record["now"])
