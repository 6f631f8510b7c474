"""Jobs on a real PostgreSQL: done at least once, by one process at a time, whatever happens to it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import asyncpg
import pytest

from config import jobs as jobs_module
from config.jobs import GiveUp, Job, Jobs, Kind, Later, drop, enqueue
from tests.revocation.cluster import until

OPEN = Callable[..., Jobs]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "POLL", 0.05)
    monkeypatch.setattr(jobs_module, "COUNT_EVERY", 0.05)


@pytest.fixture
async def start(pool: asyncpg.Pool) -> AsyncIterator[OPEN]:
    """Start a process that does jobs of the kind "work"."""
    opened: list[Jobs] = []

    def start(run: Callable[[Job], Any], node: str = "node", **options: Any) -> Jobs:
        jobs = Jobs(pool, node=node)
        jobs.add("work", Kind(run, **options))
        jobs.start()
        opened.append(jobs)
        return jobs

    yield start
    for jobs in opened:
        await jobs.close()


async def put(pool: asyncpg.Pool, *payloads: Any, delay: float = 0.0) -> None:
    async with pool.acquire() as connection:
        await enqueue(connection, "work", payloads, delay=delay)


async def rows(pool: asyncpg.Pool) -> list[asyncpg.Record]:
    return await pool.fetch("SELECT *, run_at - clock_timestamp() AS wait FROM jobs ORDER BY created_at, id")


async def nothing(_job: Job) -> None:
    pass


async def test_a_job_is_done_and_gone(pool: asyncpg.Pool, start: OPEN) -> None:
    seen: list[Job] = []

    async def run(job: Job) -> None:
        seen.append(job)

    jobs = start(run)
    await put(pool, {"to": "a"}, [1, None, "ü"])
    jobs.wake()
    await until(lambda: jobs.figures()["jobs_done"] == 2)
    assert sorted(str(job.payload) for job in seen) == ["[1, None, 'ü']", "{'to': 'a'}"]
    assert {(job.kind, job.attempt) for job in seen} == {("work", 1)}
    await jobs.close()
    assert await rows(pool) == []


async def test_what_is_rolled_back_was_never_there(pool: asyncpg.Pool, start: OPEN) -> None:
    seen: list[Job] = []

    async def run(job: Job) -> None:
        seen.append(job)

    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await enqueue(connection, "work", ["gone"])
        await transaction.rollback()
    await put(pool, "there")
    jobs = start(run)
    await until(lambda: jobs.figures()["jobs_done"])
    assert [job.payload for job in seen] == ["there"]


async def test_a_failure_is_tried_again_later_and_then_an_admin_can_see_it(pool: asyncpg.Pool, start: OPEN) -> None:
    ids: list[tuple[str, int]] = []

    async def run(job: Job) -> None:
        ids.append((job.id, job.attempt))
        raise RuntimeError("no\x00 \ud800")

    jobs = start(run, attempts=3, pause=0.01, longest=0.02)
    await put(pool, 1)
    await until(lambda: jobs.figures()["jobs_dead"])
    assert [attempt for _, attempt in ids] == [1, 2, 3]
    assert len({id for id, _ in ids}) == 1
    [row] = await rows(pool)
    assert (row["error"], row["attempts"], row["dead_at"] is None) == ("RuntimeError: no ?", 3, False)
    assert jobs.figures()["jobs_failed"] == 3


def test_the_pause_doubles_up_to_the_longest() -> None:
    kind = Kind(nothing, pause=5, longest=3600)
    pauses = [kind.put_off(attempt) for attempt in (1, 2, 3, 11, 100_000)]
    for pause, middle in zip(pauses, (5, 10, 20, 3600, 3600), strict=True):
        assert middle * 0.75 <= pause <= middle * 1.25


async def test_giving_up_and_asking_for_later(pool: asyncpg.Pool, start: OPEN) -> None:
    async def run(job: Job) -> None:
        raise GiveUp("never") if job.payload == "hopeless" else Later(60, "not yet")

    jobs = start(run)
    await put(pool, "hopeless", "early")
    await until(lambda: jobs.figures()["jobs_dead"] == 1)
    await jobs.close()
    dead, later = sorted(await rows(pool), key=lambda row: row["dead_at"] is None)
    assert (dead["error"], dead["attempts"]) == ("never", 1)
    assert (later["error"], later["attempts"], later["claimed_by"]) == ("not yet", 0, None)
    assert later["wait"].total_seconds() > 50


async def test_one_that_hangs_is_a_failure(pool: asyncpg.Pool, start: OPEN) -> None:
    async def run(_job: Job) -> None:
        await asyncio.Event().wait()

    jobs = start(run, timeout=0.05)
    await put(pool, 1)
    await until(lambda: jobs.figures()["jobs_failed"])
    await jobs.close()
    [row] = await rows(pool)
    assert (row["error"], row["dead_at"]) == ("TimeoutError", None)


async def test_what_a_job_waited_for_was_cancelled_and_the_job_hung_for_ever(pool: asyncpg.Pool, start: OPEN) -> None:
    async def run(_job: Job) -> None:
        gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        gone.cancel()
        await gone

    jobs = start(run)
    await put(pool, 1)
    await until(lambda: jobs.figures()["jobs_failed"])
    await jobs.close()
    [row] = await rows(pool)
    assert (row["error"], row["attempts"]) == ("CancelledError", 1)


async def test_a_process_that_dies_at_work_loses_nothing_and_changes_nothing_later(
    pool: asyncpg.Pool, start: OPEN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job comes due at the end of the claim, with its id; when the first one finishes after all, it is too late."""
    monkeypatch.setattr(jobs_module, "CLAIM", 0.2)
    held, ids = asyncio.Event(), []

    async def slow(job: Job) -> None:
        ids.append(job.id)
        await held.wait()

    async def fails(job: Job) -> None:
        ids.append(job.id)
        raise RuntimeError("the second one failed")

    async def hidden(_room: int) -> list[Job]:
        return []

    first = start(slow, "first", timeout=0.1)
    first._kinds["work"] = Kind(slow, timeout=60)
    await put(pool, 1)
    await until(lambda: ids)
    monkeypatch.setattr(first, "_claim", hidden)
    second = start(fails, "second", timeout=0.1, pause=600)
    await until(lambda: second.figures()["jobs_failed"])
    await second.close()
    held.set()
    await until(lambda: first.figures()["jobs_done"])
    await first.close()
    [row] = await rows(pool)
    assert (row["attempts"], row["error"]) == (2, "RuntimeError: the second one failed")
    assert len(ids) == 2
    assert len(set(ids)) == 1


async def test_a_thousand_jobs_and_three_processes_each_job_once(pool: asyncpg.Pool, start: OPEN) -> None:
    seen: list[int] = []

    async def run(job: Job) -> None:
        seen.append(job.payload)
        await asyncio.sleep(0)

    await put(pool, *range(1000))
    for node in ("a", "b", "c"):
        start(run, node)
    await until(lambda: len(seen) >= 1000)
    assert sorted(seen) == list(range(1000))


async def test_a_periodic_job_runs_once_a_period_in_all_processes_together(pool: asyncpg.Pool, start: OPEN) -> None:
    working, runs = 0, 0

    async def run(_job: Job) -> None:
        nonlocal working, runs
        working += 1
        assert working == 1
        await asyncio.sleep(0.02)
        working -= 1
        runs += 1
        if runs == 2:
            raise RuntimeError("once")

    for node in ("a", "b", "c"):
        start(run, node, every=0.1)
    begun = asyncio.get_running_loop().time()
    await until(lambda: runs == 5)
    assert asyncio.get_running_loop().time() - begun >= 4 * 0.1
    [row] = await rows(pool)
    async with pool.acquire() as connection:
        assert await drop(connection, row["id"]) is None


async def test_the_attempts_of_a_periodic_job_that_works_grew_for_ever(pool: asyncpg.Pool, start: OPEN) -> None:
    attempts: list[int] = []

    async def run(job: Job) -> None:
        attempts.append(job.attempt)
        if len(attempts) == 2:
            raise RuntimeError("once")
        if len(attempts) == 4:
            await asyncio.Event().wait()

    start(run, every=1e-6)
    await until(lambda: len(attempts) == 4)
    assert attempts == [1, 1, 2, 1]


async def test_a_straggler_of_a_periodic_job_changes_nothing_though_attempts_began_again(
    pool: asyncpg.Pool, start: OPEN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both claims are a first attempt."""
    monkeypatch.setattr(jobs_module, "CLAIM", 0.2)
    held, attempts = asyncio.Event(), []

    async def slow(job: Job) -> None:
        attempts.append(job.attempt)
        await held.wait()
        raise RuntimeError("the straggler failed")

    async def twice(job: Job) -> None:
        attempts.append(job.attempt)
        if len(attempts) == 3:
            monkeypatch.setattr(jobs_module, "CLAIM", 100.0)
        if len(attempts) == 4:
            await asyncio.Event().wait()

    async def hidden(_room: int) -> list[Job]:
        return []

    first = start(slow, "first", timeout=0.1, every=600.0)
    first._kinds["work"] = Kind(slow, timeout=60, every=600.0)
    await until(lambda: attempts)
    monkeypatch.setattr(first, "_claim", hidden)
    second = start(twice, "second", timeout=0.1, every=1e-6)
    second._kinds["work"] = Kind(twice, timeout=60, every=1e-6)
    await until(lambda: len(attempts) == 4)
    assert attempts == [1, 2, 1, 1]
    held.set()
    await until(lambda: first.figures()["jobs_failed"])
    await first.close()
    [row] = await rows(pool)
    assert (row["attempts"], row["error"], row["claimed_by"]) == (1, "", "second")


async def test_a_process_that_ends_gives_its_jobs_back_at_once(pool: asyncpg.Pool, start: OPEN) -> None:
    begun = asyncio.Event()

    async def run(_job: Job) -> None:
        begun.set()
        await asyncio.Event().wait()

    jobs = start(run)
    await put(pool, 1)
    await begun.wait()
    await jobs.close()
    [row] = await rows(pool)
    assert (row["attempts"], row["claimed_by"]) == (0, None)
    assert row["wait"].total_seconds() <= 0


async def test_kinds_that_this_version_does_not_know_are_left_alone(pool: asyncpg.Pool, start: OPEN) -> None:
    async with pool.acquire() as connection:
        await enqueue(connection, "of the next version", [1])
    await put(pool, 1)
    jobs = start(nothing)
    await until(lambda: jobs.figures()["jobs_done"])
    await jobs.close()
    [row] = await rows(pool)
    assert (row["kind"], row["attempts"]) == ("of the next version", 0)


async def test_what_ended_while_postgresql_was_away_is_written_when_it_is_back(
    pool: asyncpg.Pool, start: OPEN, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, write = Jobs(pool, node="node"), Jobs._write
    away = True

    async def failing(self: Jobs) -> None:
        if away and self._outcomes:
            raise ConnectionResetError("cut by the test")
        await write(self)

    monkeypatch.setattr(Jobs, "_write", failing)
    jobs.add("work", Kind(nothing))
    jobs.start()
    await put(pool, 1)
    await until(lambda: jobs.figures()["jobs_done"])
    assert len(await rows(pool)) == 1
    away = False
    await jobs.close()
    assert await rows(pool) == []


def test_a_kind_that_would_outlive_its_claim_is_refused(pool: asyncpg.Pool) -> None:
    with pytest.raises(ValueError, match="60 s"):
        Jobs(pool, node="node").add("long", Kind(nothing, timeout=61))
