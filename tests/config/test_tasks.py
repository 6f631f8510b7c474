"""Background tasks: none of them dies in silence."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from config import tasks as module
from config.tasks import Tasks


@pytest.fixture
async def tasks(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Tasks]:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 0.0)
    tasks = Tasks()
    yield tasks
    await tasks.close()


class Work:
    """Fails with each of `failures`, then stays."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.runs = 0
        self.stays = asyncio.Event()

    async def __call__(self) -> None:
        self.runs += 1
        if self.failures:
            raise self.failures.pop(0)
        self.stays.set()
        await asyncio.Event().wait()


async def test_a_task_that_failed_runs_again_and_is_counted(tasks: Tasks) -> None:
    work = Work(ValueError("once"), OSError("twice"))
    tasks.keep("work", work)
    await asyncio.wait_for(work.stays.wait(), 5)
    assert (work.runs, tasks.failures) == (3, 2)


async def test_what_a_task_waited_for_was_cancelled_by_another_and_the_task_was_gone_for_ever(tasks: Tasks) -> None:
    work = Work(asyncio.CancelledError())
    task = tasks.keep("work", work)
    await asyncio.wait_for(work.stays.wait(), 5)
    assert (work.runs, tasks.failures, task.done()) == (2, 1, False)


async def test_a_single_piece_of_work_that_lost_what_it_waited_for_is_counted(tasks: Tasks) -> None:
    await tasks.once("work", Work(asyncio.CancelledError())())
    assert tasks.failures == 1


async def test_closing_ends_all_and_counts_no_failure(tasks: Tasks) -> None:
    work = Work()
    task, piece = tasks.keep("work", work), tasks.once("piece", asyncio.Event().wait())  # type: ignore[arg-type]
    await asyncio.wait_for(work.stays.wait(), 5)
    await tasks.close()
    assert task.cancelled()
    assert piece.cancelled()
    assert tasks.failures == 0


async def test_a_task_that_returns_has_ended(tasks: Tasks) -> None:
    async def nothing() -> None:
        return None

    await asyncio.wait_for(tasks.keep("nothing", nothing), 5)
    assert tasks.failures == 0
