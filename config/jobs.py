"""Work that is done later: enqueued in the transaction of the change that wants it, and done at least once.

A job is a row. Whoever claims it moves `run_at` to the end of the claim, so a process that dies at work loses nothing:
the row comes due again, for any process. Whoever finishes deletes the row, or puts it off when it failed; both only
while `run_at` is still the end of their own claim, so a straggler changes nothing. A receiver outside tells repeats by
the job's id. What kinds there are and what they do is their rooms' affair.

    Later    the handler wants to be asked again, for a reason that is no failure of ours
    Failed   an attempt was in vain, in words
    GiveUp   trying again is of no use: the job is dead at once, for an admin to see
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import asyncpg
import structlog

from config import paging
from config.database import Connection, Pool
from config.paging import Cursor
from config.tasks import Tasks, is_cancelled

log = structlog.get_logger(__name__)

AT_ONCE: Final = 64
"""Jobs that one process works on at a time, and claims in one statement."""

POLL: Final = 2.0
"""Seconds until a process looks for work that nobody told it of."""

CLAIM: Final = 120.0
"""Seconds for which a job is its claimer's. A kind's `timeout` is less, by enough to write down how it went."""

COUNT_EVERY: Final = 15.0
"""Seconds between two counts of what waits, which stop at COUNTED."""
COUNTED: Final = 100_000

STATEMENT: Final = 3.0
"""Seconds that a statement of ours has to end when the process does."""

_ERROR: Final = 300
_AWAY = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
_uniform = random.SystemRandom().uniform


class Later(Exception):
    """Ask again in `seconds`; the text says why."""

    def __init__(self, seconds: float, why: str) -> None:
        super().__init__(why)
        self.seconds = seconds


class Failed(Exception):
    """This attempt failed; the text says to an admin how."""


class GiveUp(Exception):
    """It will never work; the text says why."""


@dataclass(frozen=True, slots=True)
class Job:
    """One that is being done. `attempt` counts from 1. `until`: the end of its claim, and of no other claim of it."""

    id: str
    kind: str
    payload: Any
    attempt: int
    until: datetime


@dataclass(frozen=True, slots=True)
class Kind:
    """How jobs of a kind are done. After a failure the pause doubles from `pause` to `longest` (s, with jitter); after
    `attempts` failures the job is dead. With `every` there is always one of them, due again so many seconds after
    it ended, however it ended."""

    run: Callable[[Job], Awaitable[None]]
    attempts: int = 12
    pause: float = 5.0
    longest: float = 3600.0
    timeout: float = 30.0
    every: float = 0.0

    def put_off(self, attempt: int) -> float:
        """Seconds until the next attempt after the `attempt`th has failed."""
        if self.every:
            return self.every
        return min(self.pause * 2.0 ** min(attempt - 1, 32), self.longest) * _uniform(0.75, 1.25)


async def enqueue(connection: Connection, kind: str, payloads: Sequence[Any], *, delay: float = 0.0) -> None:
    """Jobs of one kind, in the caller's transaction: rolled back, they never were. No payload holds a secret."""
    await connection.execute(_ENQUEUE, kind, list(payloads), delay)


_ENQUEUE = """
INSERT INTO jobs (kind, payload, run_at)
SELECT $1, p, clock_timestamp() + make_interval(secs => $3) FROM jsonb_array_elements($2::jsonb) AS p
"""

_PERIODIC = """
INSERT INTO jobs (kind, key, payload) SELECT k, k, 'null' FROM unnest($1::text[]) AS k ON CONFLICT DO NOTHING
"""

_CLAIM = """
UPDATE jobs SET attempts = attempts + 1, claimed_by = $2, run_at = clock_timestamp() + make_interval(secs => $4)
WHERE id IN (
    SELECT id FROM jobs WHERE run_at <= clock_timestamp() AND dead_at IS NULL AND kind = ANY($1::text[])
    ORDER BY run_at LIMIT $3 FOR UPDATE SKIP LOCKED
)
RETURNING id, kind, payload, attempts, run_at
"""

_DONE = """
DELETE FROM jobs j USING unnest($1::uuid[], $2::timestamptz[]) AS d (id, until)
WHERE j.id = d.id AND j.run_at = d.until AND j.dead_at IS NULL
"""

# `less`: attempts that were none: the process ends, the handler wants to have it again, a periodic job succeeded.
_PUT_OFF = """
UPDATE jobs j SET run_at = clock_timestamp() + make_interval(secs => f.pause), error = f.error, claimed_by = NULL,
    attempts = j.attempts - f.less, dead_at = CASE WHEN f.dead THEN clock_timestamp() END
FROM unnest($1::uuid[], $2::timestamptz[], $3::float8[], $4::text[], $5::int[], $6::bool[])
    AS f (id, until, pause, error, less, dead)
WHERE j.id = f.id AND j.run_at = f.until AND j.dead_at IS NULL
"""

_COUNT = """
SELECT (SELECT count(*) FROM (SELECT FROM jobs WHERE dead_at IS NULL AND key IS NULL LIMIT $1) AS w) AS jobs_waiting,
    (SELECT count(*) FROM (SELECT FROM jobs WHERE dead_at IS NOT NULL LIMIT $1) AS d) AS jobs_dead
"""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How an attempt went. None as `pause`: done."""

    job: Job
    pause: float | None = None
    error: str = ""
    less: int = 0
    dead: bool = False


class Jobs:
    """The jobs that this process does. Add the kinds, then start."""

    def __init__(self, pool: Pool, *, node: str) -> None:
        self._pool = pool
        self._node = node
        self._kinds: dict[str, Kind] = {}
        self._working: set[asyncio.Task[None]] = set()
        self._outcomes: list[_Outcome] = []
        self._wake = asyncio.Event()
        self._tasks = Tasks()
        self._running: asyncio.Task[None] | None = None
        self._stopping = False
        self._count_at = 0.0
        self._figures = dict.fromkeys(("jobs_done", "jobs_failed", "jobs_waiting", "jobs_dead"), 0)

    def add(self, name: str, kind: Kind) -> None:
        """Do jobs of this kind. Those of other kinds are left to processes that know them."""
        if kind.timeout > CLAIM / 2:
            raise ValueError(f"{name}: a job has {CLAIM / 2:.0f} s")
        self._kinds[name] = kind

    def start(self) -> None:
        self._running = self._tasks.keep("jobs", self._run)

    async def close(self) -> None:
        """What is being done is cancelled and comes due at once, for another process."""
        self._stopping = True
        self._wake.set()
        if self._running is not None:  # a statement of its own ends rather than being cut off
            await asyncio.wait([self._running], timeout=STATEMENT)
        await self._tasks.close()
        for task in self._working:
            task.cancel()
        if self._working:
            await asyncio.wait(self._working)
        try:
            await self._write()
        except _AWAY:
            log.warning("jobs_not_put_back", count=len(self._outcomes))

    def wake(self) -> None:
        """There is work: a transaction that enqueued some has been committed."""
        self._wake.set()

    def figures(self) -> Mapping[str, float]:
        """For the metrics: names of gateway/metrics.py."""
        return self._figures | {"background_failures": self._tasks.failures}

    # -- doing

    async def _run(self) -> None:
        begun = False
        while not self._stopping:
            self._wake.clear()
            try:
                if not begun:
                    await self._pool.execute(_PERIODIC, [name for name, kind in self._kinds.items() if kind.every])
                    begun = True
                more = await self._turn()
                await self._count()
            except _AWAY as error:
                log.warning("jobs_wait", error=f"{type(error).__name__}: {error}")
                more = False
            if not more and not self._stopping:
                await self._rest()

    async def _turn(self) -> bool:
        """Write what ended and begin what is due; whether there may be more."""
        await self._write()
        room = AT_ONCE - len(self._working)
        claimed = await self._claim(room) if room else []
        for job in claimed:
            task = asyncio.create_task(self._attempt(job), name=f"job {job.kind}")
            self._working.add(task)
            task.add_done_callback(self._ended)
        return 0 < room == len(claimed)

    async def _rest(self) -> None:
        """Until something ended, somebody calls, or it is time to look by oneself."""
        try:
            async with asyncio.timeout(POLL * _uniform(0.75, 1.25)):
                await self._wake.wait()
        except TimeoutError:
            pass

    async def _claim(self, room: int) -> list[Job]:
        records = await self._pool.fetch(_CLAIM, list(self._kinds), self._node, room, CLAIM)
        return [Job(str(r["id"]), r["kind"], r["payload"], r["attempts"], r["run_at"]) for r in records]

    async def _attempt(self, job: Job) -> None:
        kind = self._kinds[job.kind]
        try:
            async with asyncio.timeout(kind.timeout):
                await kind.run(job)
            outcome = _Outcome(job, kind.every or None, less=job.attempt)
        except asyncio.CancelledError as error:
            if is_cancelled():
                self._outcomes.append(_Outcome(job, 0.0, "its process ended", less=1))
                raise
            outcome = self._failure(job, kind, error)  # what it waited for was cancelled, not it
        except Later as later:
            outcome = _Outcome(job, later.seconds, str(later), less=1)
        except Exception as error:
            outcome = self._failure(job, kind, error)
        self._outcomes.append(outcome)
        if outcome.pause is None or not outcome.error:
            self._figures["jobs_done"] += 1

    def _failure(self, job: Job, kind: Kind, error: BaseException) -> _Outcome:
        self._figures["jobs_failed"] += 1
        text = f"{error}" if isinstance(error, Failed | GiveUp) else f"{type(error).__name__}: {error}".rstrip(": ")
        text = text.replace("\x00", "")[:_ERROR]
        text = text.encode(errors="replace").decode()  # as PostgreSQL can hold it
        dead = not kind.every and (isinstance(error, GiveUp) or job.attempt >= kind.attempts)
        log.warning("job_failed", job=job.id, kind=job.kind, attempt=job.attempt, dead=dead, error=text)
        return _Outcome(job, kind.put_off(job.attempt), text, dead=dead)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._working.discard(task)
        self._wake.set()

    async def _write(self) -> None:
        """How what ended has gone. What cannot be written waits here; at the end of its claim it is done again."""
        outcomes = list(self._outcomes)
        done = [o.job for o in outcomes if o.pause is None]
        off = [o for o in outcomes if o.pause is not None]
        if done:
            await self._pool.execute(_DONE, [UUID(job.id) for job in done], [job.until for job in done])
        if off:
            await self._pool.execute(
                _PUT_OFF,
                [UUID(o.job.id) for o in off],
                [o.job.until for o in off],
                [o.pause for o in off],
                [o.error for o in off],
                [o.less for o in off],
                [o.dead for o in off],
            )
        del self._outcomes[: len(outcomes)]

    async def _count(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._count_at:
            return
        self._count_at = now + COUNT_EVERY
        record = await self._pool.fetchrow(_COUNT, COUNTED)
        self._figures |= {} if record is None else dict(record)


# -- for those who look at them


@dataclass(frozen=True, slots=True)
class Found:
    """A job as it stands in the table. Times in seconds since 1970."""

    id: str
    kind: str
    payload: Any
    created_at: float
    run_at: float
    attempts: int
    error: str
    dead_at: float | None
    periodic: bool


_COLUMNS = """
id, kind, payload, extract(epoch FROM created_at)::float8 AS created_at, extract(epoch FROM run_at)::float8 AS run_at,
attempts, error, extract(epoch FROM dead_at)::float8 AS dead_at, key IS NOT NULL AS periodic
"""

_PAGE = f"""
SELECT {_COLUMNS}, (extract(epoch FROM created_at) * 1000000)::bigint AS at_us FROM jobs
WHERE ($1 = '' OR kind = $1) AND ($2::bool IS NULL OR $2 = (dead_at IS NOT NULL))
    AND ($3::bigint IS NULL OR (created_at, id) < (to_timestamp(0) + make_interval(secs => $3 / 1000000.0), $4::uuid))
ORDER BY created_at DESC, id DESC LIMIT $5
"""  # noqa: S608 - no value is put into the text

_AGAIN = f"""
UPDATE jobs SET run_at = clock_timestamp(), attempts = 0, dead_at = NULL, claimed_by = NULL WHERE id = $1
RETURNING {_COLUMNS}
"""  # noqa: S608 - no value is put into the text

_DROP = f"DELETE FROM jobs WHERE id = $1 AND key IS NULL RETURNING {_COLUMNS}"  # noqa: S608 - no value is put into the text


async def page(
    connection: Connection | Pool, kind: str, dead: bool | None, *, limit: int, after: Cursor | None = None
) -> tuple[list[Found], Cursor | None]:
    """Newest first, of a kind ("": any), dead or waiting (None: both); and where the next page begins."""
    at, id = after or (None, None)
    records = await connection.fetch(_PAGE, kind, dead, at, id, limit + 1)
    shown, more = paging.cut(records, limit)
    return [_found(record) for record in shown], more


async def again(connection: Connection, id: str) -> Found | None:
    """Due at once, with all attempts ahead; as it was told back. None when there is no such job."""
    record = await connection.fetchrow(_AGAIN, id)
    return None if record is None else _found(record)


async def drop(connection: Connection, id: str) -> Found | None:
    """Delete it; None when there is no such job. Periodic ones stay: there is always one of each."""
    record = await connection.fetchrow(_DROP, id)
    return None if record is None else _found(record)


def _found(record: Any) -> Found:
    return Found(str(record["id"]), *(record[name] for name in Found.__dataclass_fields__ if name != "id"))
