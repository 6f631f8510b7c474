"""Many callers, one statement: what is asked for within a loop turn is loaded together.

While a load runs, further keys gather for the next one. A caller never gets an answer that was read before it asked.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

Load = Callable[[Sequence[K]], Awaitable[Mapping[K, V]]]


class Batch(Generic[K, V]):
    """`await batch(key)`: the value that one `load(keys)` gave for it, None when it gave none; its exception, if any.

    At most `most` keys a load and `parallel` loads at once.
    """

    def __init__(self, load: "Load[K, V]", *, most: int = 500, parallel: int = 1) -> None:
        self._load = load
        self._most = most
        self._parallel = parallel
        self._waiting: dict[K, list[asyncio.Future[V | None]]] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def __call__(self, key: K) -> V | None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[V | None] = loop.create_future()
        self._waiting.setdefault(key, []).append(future)
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._go)
        return await future

    def _go(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._running) < self._parallel:
            keys = list(self._waiting)[: self._most]
            waiters = {key: self._waiting.pop(key) for key in keys}
            task = asyncio.get_running_loop().create_task(self._run(waiters), name="sessions: batch")
            self._running.add(task)
            task.add_done_callback(self._done)

    async def _run(self, waiters: dict[K, list["asyncio.Future[V | None]"]]) -> None:
        try:
            found = await self._load(list(waiters))
        except asyncio.CancelledError:
            _each(waiters, lambda future, _: future.cancel())
            raise
        except Exception as failure:
            error = failure
            _each(waiters, lambda future, _: future.set_exception(error))
        else:
            _each(waiters, lambda future, key: future.set_result(found.get(key)))

    def _done(self, task: "asyncio.Task[None]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            self._go()

    async def close(self) -> None:
        """Cancel what runs and whoever waits."""
        _each(self._waiting, lambda future, _: future.cancel())
        self._waiting.clear()
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _each(
    waiters: Mapping[K, list["asyncio.Future[V | None]"]], tell: Callable[["asyncio.Future[V | None]", K], object]
) -> None:
    for key, futures in waiters.items():
        for future in futures:
            if not future.done():  # a caller that was cancelled meanwhile
                tell(future, key)
