"""F18: many sockets that come back by themselves when they are closed, and what they saw of the gateways' doors.

The sockets are in processes of their own (`members`): one holds no more than about 2,000 of them beside the rest of the
campaign.
"""

import asyncio
import contextlib
import itertools
import random
import resource
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter

import msgspec

from tests.campaign import history
from tests.campaign.history import Dialled
from tests.campaign.members import Begin, Report, Told
from tests.campaign.people import People

GUESTS = 3
"""So many of the users are not the crowd's: they log in while it comes back."""
EACH = 2_500
"""Sockets of one process."""
ROOM = 1_000
"""Files that a process has open beside the crowd's sockets."""
BACK = 0.95
SHARES = (0.5, BACK, 1.0)
WINDOW = 5
LINE = 1 << 26
_numbers = itertools.count()
"""Of the processes of all crowds of a run: their connections are told apart by it."""


def room_for(size: int) -> None:
    """Raise the limit of open files for us and our children. ValueError where a crowd of this size does not fit: all
    of it may come to one gateway."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = size + ROOM
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ValueError(f"a crowd of {size} wants {wanted} open files in one process; here are {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Crowd:
    """Sockets that come back by themselves, with growing, random pauses, as an SDK does."""

    def __init__(self, people: People, size: int, rng: random.Random) -> None:
        self.size = size
        self._people, self._world, self._rng = people, people.world, rng
        self._processes: list[Process] = []
        self._reports: list[Report] = []  # the last of each process
        self._storms = 0
        self._came: Counter[tuple[int, int]] = Counter()  # by node and second
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def away(self) -> int:
        """Who was closed when the storm began and has not been back since. (Sessions go on ending all the time.)"""
        return sum(report.away for report in self._reports)

    def most(self) -> dict[int, int]:
        """The most connections that a node let in within WINDOW seconds, by node."""
        found: dict[int, int] = {}
        for node, second in self._came:
            count = sum(self._came.get((node, second + n), 0) for n in range(WINDOW))
            found[node] = max(found.get(node, 0), count)
        return found

    @property
    def live(self) -> int:
        """How many are there."""
        return sum(report.live for report in self._reports)

    async def gather(self, seconds: float) -> bool:
        """Begin; whether all are there in so many seconds."""
        ports = [node.port for node in self._world.nodes]
        spread = 1.2 * self.size / (self._world.schedule.rate * len(ports))
        count = -(-self.size // EACH)
        for number in range(count):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tests.campaign.members"), stdin=PIPE, stdout=PIPE, limit=LINE
            )
            self._processes.append(process)
            self._reports.append(Report([], 0, 0, 0))
            size = self.size // count + (number < self.size % count)
            self._send(process, Begin(next(_numbers), size, ports, self._rng.randrange(1 << 30), spread))
            self._tasks.append(asyncio.create_task(self._hear(number, process)))
        self._tasks.append(asyncio.create_task(self._name_sessions()))
        return await self._world.until(self._there, seconds)

    async def storm(self, node: int | None) -> int:
        """All, or those on this node, are about to be closed. How many that are."""
        self._storms += 1
        self._tell(Told(storm=-1 if node is None else node))
        await self._world.until(self._stormy, 5.0, every=0.02)
        return self.away

    async def go(self) -> None:
        """Hang up."""
        named = self._tasks[-1] if self._tasks else None
        if named is not None:
            named.cancel()
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=10.0)
            for task in late:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        for process in self._processes:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def returned(self, seconds: float) -> dict[float, float]:
        """Wait for all to be back; for each share of them after how many seconds it was, if that was in time."""
        began, size, found = time.monotonic(), max(1, self.away), dict[float, float]()
        while (now := time.monotonic() - began) < seconds and len(found) < len(SHARES):
            for share in SHARES:
                if share not in found and self.away <= (1 - share) * size:
                    found[share] = now
            await asyncio.sleep(0.05)
        return found

    async def _there(self) -> bool:
        return self.live >= 0.99 * self.size

    async def _stormy(self) -> bool:
        return all(report.storms == self._storms for report in self._reports)

    # -- the processes

    async def _hear(self, number: int, process: Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            self._reports[number] = report = msgspec.json.decode(line, type=Report)
            for name, fields in report.events:
                event = getattr(history, name)(**fields)
                self._world.log(event)
                if isinstance(event, Dialled):
                    self._came[event.node, int(event.at)] += 1

    async def _name_sessions(self) -> None:
        """Which may be used, whenever that changes."""
        named: list[tuple[str, str, str]] = []
        while True:
            people = self._people
            now = [(s.sid, people.people[s.user].id, s.access) for s in people.sessions() if s.user >= GUESTS]
            if now != named:
                named = now
                self._tell(Told(sessions=now))
            await asyncio.sleep(0.1)

    def _tell(self, order: Told) -> None:
        for process in self._processes:
            self._send(process, order)

    def _send(self, process: Process, order: Begin | Told) -> None:
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(order) + b"\n")
