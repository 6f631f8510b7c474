"""The sessions of this process: opened, read (in batches, through a judged cache), renewed, seen, ended.

What a session *is* stands in `model`, the SQL in `store`, refresh tokens in `refresh`; the log and its memory belong to
`revocations`, through which every end goes. Every moment here is the process's held database clock
(`Revocations.database_now`), which a step of a clock does not move.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeVar

import asyncpg
import msgspec
import structlog

from config.clock import Clock
from config.database import Connection, Pool
from config.http import Problem, rfc3339
from config.paging import Cursor
from config.sealing import Sealer, Unsealable
from config.settings import Sessions as Policy
from config.tasks import Tasks
from sessions import audit, chain, external, ids, refresh, store
from sessions.activity import Activity
from sessions.batches import Batch
from sessions.cache import Cache
from sessions.errors import RefreshRefused, SessionEnded, Stale, Unavailable, translated
from sessions.external import External, text
from sessions.model import (
    DISABLED,
    EXPIRED,
    REPLACED,
    REVOKED,
    Ended,
    Kind,
    Position,
    Reading,
    Session,
    Standing,
    Subject,
)
from sessions.refresh import Generation, Presented
from sessions.revocations import Again, Entry, Revocations, Verdict, Writing

CACHED = 10_000
CACHED_FOR = 60.0
TIDIED_EVERY = 3600.0
CLOCKS_AGREE = 3600.0
"""Nothing is deleted for its age (s) while this machine's clock and the database's are further apart than that."""
FORGOTTEN_AT_ONCE = 1000
ENDED_AT_ONCE = 2000

K = TypeVar("K")
V = TypeVar("V")

log = structlog.get_logger(__name__)


class Opened(msgspec.Struct, frozen=True):
    """A login: its session with the position it was born at, and the one secret that its client gets.

    `secret`: the cookie's value ("cookie"); `refresh_token` ("token"). The other is "". `replaced`: sids that ended.
    """

    reading: Reading
    secret: str = ""
    refresh_token: str = ""
    replaced: tuple[str, ...] = ()


class Refreshed(msgspec.Struct, frozen=True):
    """A renewed session and its refresh token: the next generation, or the same successor again inside the window."""

    reading: Reading
    refresh_token: str


class Actor(msgspec.Struct, frozen=True):
    """A user who acts on their own sessions, through the session `sid`."""

    subject: str
    sid: str
    address: str = ""

    @property
    def name(self) -> str:
        return f"user:{self.subject}"


def new_session(
    subject: Subject,
    kind: str,
    born: Position,
    policy: Policy,
    *,
    now: float,
    wall: float,
    device: str,
    address: str,
    aal: int = 1,
    remember: bool = True,
) -> Session:
    """A session that begins at `now` (the database's clock) and `born` (the head that its transaction read)."""
    life = policy.life(subject.roles, remember=remember)
    return Session(
        ids.new_sid(wall),
        subject,
        kind,
        "",
        born.seq,
        created_at=now,
        last_seen_at=now,
        expires_at=now + life.absolute,
        idle=life.idle,
        device=text(device),
        address=text(address),
        aal=aal,
        auth_time=now,
        remembered=remember,
    )


class Sessions:
    """One a process. `start` before use, `close` at the end (writes what is still pending of `seen`)."""

    def __init__(self, pool: Pool, revocations: Revocations, policy: Policy, *, clock: Clock) -> None:
        self._pool = pool
        self._revocations = revocations
        self.policy = policy
        self._clock = clock
        self._sealer = Sealer.of(policy, "session keys")
        self._chain = chain.sealer(policy)
        self._secrets: Batch[bytes, Reading] = Batch(self._load_secrets)
        self._sids: Batch[str, Reading] = Batch(self._load_sids)
        self._sights: Batch[store.Sight, Reading] = Batch(self._load_sights)
        self._refresh_keys: Batch[str, bytes] = Batch(self._load_refresh_keys)
        self._by_secret: Cache[bytes, Reading] = Cache(size=CACHED, age=CACHED_FOR)
        self._by_sight: Cache[str, Reading] = Cache(size=CACHED, age=CACHED_FOR)
        self._activity = Activity(self._touch)
        self._tasks = Tasks()

    async def start(self) -> None:
        """Make the audit's coming months, and go on doing so."""
        await self._make_months()
        self._tasks.keep("sessions: tidy", self._tidy)

    async def close(self) -> None:
        """Write what is pending; whoever still waits for a reading is cancelled."""
        await self._tasks.close()
        try:
            await self._activity.close()
        except Unavailable:
            log.warning("last_seen_not_written")
        for batch in (self._secrets, self._sids, self._sights, self._refresh_keys):
            await batch.close()

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDIED_EVERY)
            await self._make_months()
            try:
                await self.tidy()
            except Unavailable:
                log.warning("sessions_not_tidied")

    async def tidy(self) -> None:
        """Delete what is old enough: logins that are over, external sessions that nobody ended and whose tokens are
        gone, months of the audit. Nothing at all while it is in doubt what time it is: one clock that jumped ahead
        must not cost anybody a session."""
        if abs(self.now() - self._clock.wall()) > CLOCKS_AGREE:
            log.warning("clocks_disagree", database=rfc3339(self.now()), here=rfc3339(self._clock.wall()))
            return
        await self.forget()
        if self.policy.keep_audit:
            await self._drop_months()

    async def forget(self) -> int:
        """Delete sessions that are over and old enough, in batches; how many. Not external ones that were ended: their
        tokens would come in again, were the clock wrong by which they had expired. Guests go after their last one."""
        with translated():
            gone = await _in_batches(lambda: store.forget(self._pool, now=self.now(), limit=FORGOTTEN_AT_ONCE))
            if self.policy.keep_ended:
                before = self.now() - self.policy.keep_ended
                gone += await _in_batches(lambda: store.forget_over(self._pool, before=before, limit=FORGOTTEN_AT_ONCE))
                await _in_batches(lambda: store.forget_guests(self._pool, before=before, limit=FORGOTTEN_AT_ONCE))
        return gone

    async def _drop_months(self) -> None:
        """A month that is in use, or that this role may not drop, is there the next time too."""
        try:
            async with self._pool.acquire() as connection:
                before = self.now() - self.policy.keep_audit
                await chain.prune(connection, self._chain, before, limit=FORGOTTEN_AT_ONCE)
        except (asyncpg.PostgresError, OSError, asyncpg.InterfaceError, Unsealable) as error:
            log.warning("audit_months_not_dropped", error=type(error).__name__)

    async def _make_months(self) -> None:
        """Two months are ahead already, and there is a partition for what has none: failing once is no harm, also
        where this role may not make tables."""
        try:
            await audit.make_months(self._pool)
        except (asyncpg.PostgresError, OSError, asyncpg.InterfaceError) as error:
            log.warning("audit_months_not_made", error=type(error).__name__)

    def figures(self) -> Mapping[str, float]:
        """For the metrics: names of gateway/metrics.py."""
        return {"background_failures": self._tasks.failures + self._activity.failures}

    # -- logins

    async def open(
        self,
        writing: Writing,
        subject: str,
        *,
        credential_version: int,
        kind: Literal["cookie", "token"],
        device: str = "",
        address: str = "",
        aal: int = 1,
        replaces: str = "",
        remember: bool = True,
    ) -> Opened:
        """A login, in the caller's transaction (2a): subject locked, version and state demanded, then the head read.

        The caps are exact: what goes beyond that of its kind or beyond `max_per_user` of the user's own logins ends
        with 4503, oldest first, and so does `replaces`, the session of the cookie that came with the login. Raises
        Stale when the subject is gone or its version is another by now, SessionEnded (4502) when it is disabled.
        """
        with translated():
            user = await self._verified(writing.connection, subject, credential_version)
            position = await writing.head()
            now = self.now()
            replaced = await self._make_room(writing, subject, kind, replaces, now)
            session = new_session(
                user,
                kind,
                position,
                self.policy,
                now=now,
                wall=self._clock.wall(),
                device=device,
                address=address,
                aal=aal,
                remember=remember,
            )
            secret = ids.new_secret() if kind == "cookie" else ""
            key = refresh.new_key() if kind == "token" else b""
            await store.insert_login(
                writing.connection,
                session,
                secret_hash=ids.secret_hash(secret),
                sealed_key=self._sealer.seal(key, session.sid) if key else None,
            )
            await self._audit_login(writing.connection, session, replaced)
        token = refresh.write(key, session.sid, refresh.FIRST) if key else ""
        return Opened(Reading(session, position, now), secret, token, tuple(replaced))

    async def impersonate(
        self, writing: Writing, subject: Subject, act_sid: str, *, ttl: float, device: str, address: str
    ) -> Opened:
        """A session of `subject` in which the holder of the session `act_sid` acts, with refresh tokens, for `ttl`
        seconds and no longer than that one lives; it takes the place of one that was begun by the same. It counts in no
        cap.

        In a transaction that has locked both subjects and holds that session (`require_live`).
        """
        connection = writing.connection
        by = (await store.by_sids(connection, [act_sid]))[act_sid].session
        for sid in await store.impersonations(connection, act_sid=act_sid):
            writing.append(Entry(kind=Kind.SESSION, sid=sid, code=REPLACED))
        position, now = await writing.head(), self.now()
        session = new_session(
            subject, "token", position, self.policy, now=now, wall=self._clock.wall(), device=device, address=address
        )
        session = msgspec.structs.replace(
            session,
            act=by.subject.id,
            aal=by.aal,
            idle=min(session.idle, ttl),
            expires_at=min(session.expires_at, now + ttl, by.expires_at, now + by.idle),
        )
        key = refresh.new_key()
        sealed = self._sealer.seal(key, session.sid)
        await store.insert_login(connection, session, secret_hash=None, sealed_key=sealed)
        await store.impersonated(connection, session, act_sid)
        await self._audit_login(connection, session, ())
        return Opened(Reading(session, position, now), refresh_token=refresh.write(key, session.sid, refresh.FIRST))

    async def step_up(self, writing: Writing, sid: str, *, aal: int, cookie: bool) -> str:
        """A factor was shown, in a transaction that holds the session (`require_live`). With `cookie` its secret is the
        one that is returned from then on, and the one before is nobody's; sid and sockets stay.

        The row of the log names the session, so that no process believes what it read before.
        """
        secret = ids.new_secret() if cookie else ""
        await store.step_up(writing.connection, sid, secret_hash=ids.secret_hash(secret), aal=aal, now=self.now())
        writing.append(Entry(kind=Kind.RIGHTS, sid=sid, reason="stepped_up"))
        return secret

    async def _verified(self, connection: Connection, subject: str, credential_version: int) -> Subject:
        user = await store.subject(connection, subject, lock=True)
        if user is None or user.credential_version != credential_version:
            raise Stale
        if not user.admitted(self.now()):
            raise SessionEnded(Ended(DISABLED))
        return user

    async def _make_room(self, writing: Writing, subject: str, kind: str, replaces: str, now: float) -> list[str]:
        """Append the ends of what the new session takes the place of; the sids."""
        old = (await store.by_sids(writing.connection, [replaces])).get(replaces) if ids.is_sid(replaces) else None
        replaced = [replaces] if old is not None and old.session.over(now) is None else []
        policy = self.policy
        most = {"cookie": policy.max_cookie_per_user, "token": policy.max_token_per_user}[kind]
        for cap, counted in ((most, kind), (policy.max_per_user, None)):
            if cap:
                replaced += await store.surplus(
                    writing.connection, subject, but=replaced, keep=cap - 1, now=now, kind=counted
                )
        for sid in replaced:
            writing.append(Entry(kind=Kind.SESSION, sid=sid, code=REPLACED))
        return replaced

    async def _audit_login(self, connection: Connection, session: Session, replaced: Sequence[str]) -> None:
        await audit.append(
            connection,
            "session.opened",
            actor=f"user:{session.subject.id}",
            target=f"session:{session.sid}",
            sid=session.sid,
            address=session.address,
            detail={"kind": session.kind, "replaced": replaced},
        )

    # -- reading

    def remembered(self, secret: str) -> Reading | None:
        """The session of a cookie where it was read lately and memory says that it lives now. None: ask `by_secret`."""
        kept = self._by_secret.get(ids.secret_key(secret), self._clock.now())
        return kept if kept is not None and self.judge(kept) is None else None

    async def by_secret(self, secret: str) -> Reading | None:
        """The session of a cookie, live or over; None for a secret that is nobody's. Cached, judged on every hit."""
        key, asked = ids.secret_key(secret), self._clock.now()
        kept = self._by_secret.get(key, asked)
        if kept is not None and self._usable(kept):
            return kept
        digest = ids.secret_hash(secret)
        reading = None if digest is None else await self._secrets(digest)
        if reading is None:
            self._by_secret.drop(key)
        else:
            self._by_secret.put(key, reading, asked)
        return reading

    async def by_sid(self, sid: str, *, connection: Connection | None = None) -> Reading | None:
        """The session as PostgreSQL has it now, live or over. With `connection` (the lease's, 9b) on that one."""
        if not ids.is_sid(sid):
            return None
        if connection is not None:
            return (await store.by_sids(connection, [sid])).get(sid)
        return await self._sids(sid)

    async def external(self, token: External, *, connection: Connection | None = None) -> Reading:
        """The session of an external token, made on first sight; live or over. ExternalRefused when it cannot have one.

        `connection`: read (and make) it on that one, alone.
        """
        sight = external.sight(token)
        if connection is not None:
            return external.of_sight(sight, await self._meet(connection, sight))
        kept = self._by_sight.get(sight.sid, self._clock.now())
        if kept is not None and self._usable(kept):
            return external.of_sight(sight, kept)
        asked = self._clock.now()
        reading = None
        for _ in range(3):  # what another transaction was making just then is there by the next
            reading = await self._sights(sight)
            if reading is not None:
                break
        reading = external.of_sight(sight, reading)
        self._by_sight.put(sight.sid, reading, asked)
        return reading

    async def read_again(self, sid: str) -> Reading | None:
        """9b: the session on the lease's connection, at or above the floor. Problem `frozen` without a lease."""
        return await self._revocations.read_current(lambda connection: self.by_sid(sid, connection=connection))

    def _usable(self, reading: Reading) -> bool:
        """Memory reaches back to it, its roles are current, and no natural end is due that others may have moved."""
        verdict = self.judge(reading)
        return verdict is None or (isinstance(verdict, Ended) and verdict.code != EXPIRED)

    async def _load_secrets(self, hashes: Sequence[bytes]) -> Mapping[bytes, Reading]:
        return await self._load(store.by_secret_hashes, hashes)

    async def _load_sids(self, sids: Sequence[str]) -> Mapping[str, Reading]:
        return await self._load(store.by_sids, sids)

    async def _load_refresh_keys(self, sids: Sequence[str]) -> Mapping[str, bytes]:
        return await self._load(store.refresh_keys, sids)

    async def _load(
        self, read: Callable[[store.Executor, Sequence[K]], Awaitable[Mapping[K, V]]], keys: Sequence[K]
    ) -> Mapping[K, V]:
        """What memory has to judge by its position may be old. What is *not there* has none: a demoted primary that
        still answers knows nothing of later logins, so where its log ends before ours the lease's connection tells."""
        applied = self._revocations.position
        with translated():
            async with self._pool.acquire() as connection:
                found = await read(connection, keys)
                missing = [key for key in keys if key not in found]
                behind = bool(missing) and await store.head_seq(connection) < applied.seq
        if behind:
            found = {**found, **await self._revocations.read_current(lambda connection: read(connection, missing))}
        return found

    async def _load_sights(self, sights: Sequence[store.Sight]) -> Mapping[store.Sight, Reading]:
        # One row a sid: two tokens of one session that come in one turn are one sight, the older one's.
        distinct = {sight.sid: sight for sight in sorted(sights, key=lambda s: s.iat or 0.0, reverse=True)}
        with translated():
            found = await self._meet_all(self._pool, list(distinct.values()))
        return {sight: found[sight.sid] for sight in sights if sight.sid in found}

    async def _meet(self, connection: Connection, sight: store.Sight) -> Reading | None:
        with translated():
            for _ in range(3):
                found = await self._meet_all(connection, [sight])
                if found:
                    return found[sight.sid]
        return None

    async def _meet_all(self, connection: store.Executor, sights: Sequence[store.Sight]) -> Mapping[str, Reading]:
        return await store.meet(
            connection,
            sights,
            now=self.now(),
            life=self.policy.life(()),
            roles=self.policy.roles,
        )

    # -- judging

    def now(self) -> float:
        """The database's clock as this process holds it (unix seconds)."""
        return self._revocations.database_now()

    def judge(self, reading: Reading) -> Verdict:
        """Whether this session is over now: by what was read, by the clock, and by memory since. None: live."""
        session = reading.session
        ended = session.over(self.now())
        if ended is not None:
            return ended
        return self._revocations.judge(session.sid, session.subject.id, session.born, reading.position)

    async def admit(self, reading: Reading) -> Reading:
        """The reading, or a newer one, as live *now*; SessionEnded otherwise. For HTTP; a connect has its own block."""
        for _ in range(3):
            verdict = self.judge(reading)
            if verdict is None:
                return reading
            if isinstance(verdict, Ended):
                raise SessionEnded(verdict)
            newer = await self.read_again(reading.session.sid)
            if newer is None:  # a failover lost its login
                raise Problem("unauthenticated", "there is no such session")
            reading = newer
        raise Problem("frozen", retry_after=1)

    def standing(self, reading: Reading, **more: Any) -> Standing:
        """What a connection of this session is held to; `more` are Standing's own fields."""
        session = reading.session
        seen_at = self._clock.now() - (reading.now - session.last_seen_at)
        self._activity.recorded(session.sid, session.idle, seen_at)
        return Standing(
            session.sid,
            session.subject.id,
            session.born,
            reading.position,
            **{
                "kind": session.kind,
                "roles": session.subject.roles,
                "issuer": session.issuer,
                "expires_at": session.expires_at,
                "idle": session.idle,
                "aal": session.aal,
                "act": session.act,
                "info": _marked(session.act),
                **more,
            },
        )

    # -- refresh

    async def refresh(self, token: str, client: bytes) -> Refreshed:
        """Renew by a refresh token. `client` is `refresh.client_binding` of whoever presents it.

        RefreshRefused for what is none of ours, before anything is locked: a flood of it costs shared reads.
        SessionEnded when the session is over, and for theft, which ends it. The position is the one of the statement
        that read session and head.
        """
        presented = refresh.read(token)
        self._unsealed(await self._refresh_keys(presented.sid), presented)
        with translated():
            async with self._revocations.writing(actor="system") as writing:
                outcome = await self._renew(writing, presented, client)
        if isinstance(outcome, Ended):  # raised only now: the block's end committed it
            raise SessionEnded(outcome)
        return outcome

    async def _renew(self, writing: Writing, presented: Presented, client: bytes) -> Refreshed | Ended:
        row = await store.lock_renewable(writing.connection, presented.sid)
        if row is None:
            raise RefreshRefused
        key = self._unsealed(row.sealed_key, presented)
        verdict = self.judge(row.reading)
        if isinstance(verdict, Ended):
            raise SessionEnded(verdict)
        if verdict is Again.BELOW_FLOOR:
            raise Problem("frozen", retry_after=1)
        now = self.now()
        match refresh.judge(presented.counter, row.generation, client, now):
            case refresh.Verdict.RENEW:
                return await self._next(writing.connection, row, key, Generation(presented.counter + 1, now, client))
            case refresh.Verdict.REPEAT:
                return Refreshed(row.reading, refresh.write(key, presented.sid, row.generation.counter))
        return await self._stolen(writing, row, presented)

    async def _next(
        self, connection: Connection, row: store.Renewable, key: bytes, generation: Generation
    ) -> Refreshed:
        sid, sealed = row.reading.session.sid, row.sealed_key or b""
        if not self._sealer.current(sealed):
            sealed = self._sealer.seal(key, sid)
        await store.renew(connection, sid, generation, sealed)
        seen = msgspec.structs.replace(row.reading.session, last_seen_at=generation.rotated_at or 0.0)
        return Refreshed(row.reading._replace(session=seen), refresh.write(key, sid, generation.counter))

    async def _stolen(self, writing: Writing, row: store.Renewable, presented: Presented) -> Ended:
        session = row.reading.session
        writing.append(Entry(kind=Kind.SESSION, sid=session.sid, code=REVOKED, reason="token_reuse"))
        await audit.append(
            writing.connection,
            "session.token_reuse",
            actor="system",
            target=f"session:{session.sid}",
            detail={"user": session.subject.id, "presented": presented.counter, "current": row.generation.counter},
        )
        log.warning("refresh_token_reuse", sid=session.sid, user=session.subject.id)
        return Ended(REVOKED, "token_reuse", at=self.now())

    def _unsealed(self, sealed: bytes | None, presented: Presented) -> bytes:
        """The session's key, if it made the presented token."""
        if sealed is None:
            raise RefreshRefused
        try:
            key = self._sealer.open(sealed, presented.sid)
        except Unsealable:
            log.warning("session_key_not_unsealed", sid=presented.sid)
            raise RefreshRefused from None
        if not presented.genuine(key):
            raise RefreshRefused
        return key

    # -- activity

    def seen(self, sid: str, idle: float) -> None:
        """Activity of a session; cheap, written at most once a tenth of `idle`, many in one statement."""
        self._activity.note(sid, idle, self._clock.now(), self._revocations.database_now)

    async def flush(self) -> None:
        """Write what `seen` gathered, now."""
        await self._activity.flush()

    async def _touch(self, seen: Mapping[str, float]) -> None:
        with translated():
            await store.touch(self._pool, seen)

    # -- listing and ending

    async def page(
        self, by: store.Filter, *, limit: int, after: Cursor | None = None
    ) -> tuple[list[Session], Cursor | None]:
        """Live sessions, newest first, and the cursor of the next page."""
        with translated():
            return await store.page(self._pool, by, now=self.now(), limit=limit, after=after)

    async def of_subject(self, subject: str) -> Sequence[Session]:
        """The user's live sessions, newest first, at most 200."""
        items, _ = await self.page(store.Filter(subject=subject), limit=200)
        return items

    async def count(self, subject: str = "") -> int:
        """How many sessions are live, of one subject or of all."""
        with translated():
            return await store.count_live(self._pool, now=self.now(), subject=subject)

    async def end_one(self, by: Actor, sid: str) -> bool:
        """End one of the actor's own sessions; False when there is none such. Ending what is over changes nothing.

        Who ends another than the one that acts may have lost a device: none is trusted any more.
        """
        async with self._ending(by, [by.sid, sid] if ids.is_sid(sid) else [by.sid]) as (writing, live):
            if sid in live:
                if sid != by.sid:
                    await store.end_trust(writing.connection, by.subject)
                await self._end(writing, by, [sid], "ended_by_user")
                return True
            return ids.is_sid(sid) and await store.owns(writing.connection, by.subject, sid)

    async def end_others(self, by: Actor) -> None:
        """End all of the actor's sessions but the one that acts, and all trust in devices; very many in several
        transactions."""
        more = True
        while more:
            async with self._ending(by, most=ENDED_AT_ONCE) as (writing, live):
                await store.end_trust(writing.connection, by.subject)
                await self._end(writing, by, [sid for sid in live if sid != by.sid], "ended_by_user")
            more = len(live) == ENDED_AT_ONCE

    async def end_all(self, by: Actor) -> None:
        """End all of the actor's sessions, this one too, and those that nobody has seen yet."""
        async with self._ending(by) as (writing, _):
            writing.append(Entry(kind=Kind.USER, subject=by.subject, code=REVOKED, reason="ended_by_user"))
            await audit.append(
                writing.connection,
                "session.all_ended",
                actor=by.name,
                target=by.name,
                sid=by.sid,
                address=by.address,
                detail={"reason": "ended_by_user"},
            )

    async def logout(self, by: Actor) -> None:
        """End the session that acts."""
        async with self._ending(by, [by.sid]) as (writing, _):
            await self._end(writing, by, [by.sid], "logout")

    @asynccontextmanager
    async def _ending(
        self, by: Actor, only: Sequence[str] | None = None, *, most: int | None = None
    ) -> AsyncIterator[tuple[Writing, Sequence[str]]]:
        """A transaction of the actor's (7e), with the sids of their live sessions (`only` these; at `most` so many),
        all of them locked: the subject first, then the sessions in order. Once it is left the ends are committed and
        applied here (8b)."""
        with translated():
            async with self._revocations.writing(actor=by.name) as writing:
                await store.subject(writing.connection, by.subject, lock=True)
                live = await store.lock_live(writing.connection, by.subject, now=self.now(), only=only, limit=most)
                await writing.require_live(by.sid)
                yield writing, live

    async def _end(self, writing: Writing, by: Actor, sids: Sequence[str], reason: str) -> None:
        for sid in sids:
            writing.append(Entry(kind=Kind.SESSION, sid=sid, code=REVOKED, reason=reason))
            await audit.append(
                writing.connection,
                "session.ended",
                actor=by.name,
                target=f"session:{sid}",
                sid=by.sid,
                address=by.address,
                detail={"reason": reason},
            )


def _marked(act: str) -> bytes:
    """What others see of a connection in which somebody else acts, in the words of a token (RFC 8693)."""
    return msgspec.json.encode({"act": {"sub": act}}) if act else b""


async def _in_batches(delete: Callable[[], Awaitable[int]]) -> int:
    """Until one is not full; how many went."""
    gone = 0
    while (count := await delete()) == FORGOTTEN_AT_ONCE:
        gone += count
    return gone + count
