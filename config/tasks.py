"""Background tasks: held, named, and started again when they fail. The death of one is never silent.

What a task does is its room's affair; it runs until it is cancelled, and an exception is a failure that is logged and
counted. So is a cancellation that nobody asked this task for: what it waited for was cancelled by another. Nothing here
decides what a failure means.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

log = structlog.get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0


def is_cancelled() -> bool:
    """Whether somebody cancelled the task that runs: a CancelledError may also come from what it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class Tasks:
    """The background tasks of one part. `failures` counts the exceptions that ended one of them."""

    def __init__(self) -> None:
        self.failures = 0
        self._running: dict[asyncio.Task[None], str] = {}

    def keep(self, name: str, run: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run `run` for ever: after an exception again, after a pause that grows to 5 s. Returning ends it."""
        return self._hold(name, self._again(name, run))

    def once(self, name: str, work: Awaitable[None]) -> asyncio.Task[None]:
        """Run `work` one time; an exception is logged and counted."""
        return self._hold(name, self._guard(name, work))

    async def close(self) -> None:
        """Cancel all and wait until they have ended."""
        while self._running:
            tasks = list(self._running)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _hold(self, name: str, work: Awaitable[None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)  # type: ignore[arg-type]
        self._running[task] = name
        task.add_done_callback(self._running.pop)
        return task

    async def _again(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        pause = FIRST_PAUSE
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                return await run()
            except (Exception, asyncio.CancelledError):
                self._failed(name)
            pause = FIRST_PAUSE if loop.time() - started > LONGEST_PAUSE else min(pause * 2, LONGEST_PAUSE)
            await asyncio.sleep(pause)

    async def _guard(self, name: str, work: Awaitable[None]) -> None:
        try:
            await work
        except (Exception, asyncio.CancelledError):
            self._failed(name)

    def _failed(self, name: str) -> None:
        """Within an `except`. The task's own cancellation is no failure: it goes on its way."""
        if is_cancelled():
            raise
        self.failures += 1
        log.exception("background_task_failed", task=name)
