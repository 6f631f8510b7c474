"""Members of a crowd, in a process of their own: `python -m tests.campaign.members`. Started and told by `crowd`.

A line of JSON in is an order (`Begin`, then any `Told`), a line out is a `Report`: what was seen since the last one, as
events of the history (their clock is the machine's), and how many are there. It ends with its stdin.
"""

import asyncio
import itertools
import os
import random
import sys
import time
from typing import Any

import msgspec
import uvloop

from tests.campaign.client import CODECS, Client
from tests.campaign.history import Event

NUMBERS = 1 << 20
"""So many connections may a process make; the first process's numbers begin there."""
NAMES = tuple(CODECS)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 20.0
"""Seconds before another try: random up to the first, twice as much after each that failed, up to the last: what the
SDKs of the protocol do unless they are told otherwise."""
REPORT = 0.1
NICE = 5
"""Clients are other machines elsewhere: here they get the time that the servers leave."""


class Begin(msgspec.Struct):
    """The first order: process `number` has `size` members, who dial gateways at `ports` over so many seconds."""

    number: int
    size: int
    ports: list[int]
    seed: int
    seconds: float


class Told(msgspec.Struct):
    """`sessions`: (sid, user, access token) of each that may be used from now on. `storm`: those on this node, or all
    (-1), are about to be closed."""

    sessions: list[tuple[str, str, str]] | None = None
    storm: int | None = None


class Report(msgspec.Struct):
    """`events`: (name of the class, its fields). `away`: who was closed in the storms and has not been back since."""

    events: list[tuple[str, dict[str, Any]]]
    live: int
    away: int
    storms: int


class Members:
    """All members of this process."""

    def __init__(self, begin: Begin) -> None:
        self._begin = begin
        self._rng = random.Random(begin.seed)
        self._sessions: list[tuple[str, str, str]] = []
        self._live: dict[int, Client] = {}
        self._away: set[int] = set()
        self._storms = 0
        self._events: list[Event] = []
        Client.numbers = itertools.count(NUMBERS * (1 + begin.number))

    def told(self, order: Told) -> None:
        """Do as told."""
        if order.sessions is not None:
            self._sessions = order.sessions
        if order.storm is not None:
            self._storms += 1
            self._away = {n for n, member in self._live.items() if order.storm in (-1, member.node)}

    def report(self) -> Report:
        """What there is to tell since the last one."""
        events, self._events = self._events, []
        found = [(type(event).__name__, msgspec.to_builtins(event)) for event in events]
        return Report(found, len(self._live), len(self._away), self._storms)

    def _log(self, event: Event) -> None:
        self._events.append(event)

    async def one(self, number: int) -> None:
        """A member: dials, stays, and comes back by itself with growing, random pauses, as an SDK does."""
        ports, pause = self._begin.ports, FIRST_PAUSE
        await asyncio.sleep(self._rng.uniform(0.0, self._begin.seconds))
        while True:
            if self._sessions:
                sid, user, access = self._rng.choice(self._sessions)
                node = self._rng.randrange(len(ports))
                member = Client(self._log, NAMES[number % 2], sid, user, node)
                if await member.dial(ports[node], access, timeout=10.0):
                    self._live[number] = member
                    self._away.discard(number)
                    pause = FIRST_PAUSE
                    await member.ended.wait()
                    del self._live[number]
            await asyncio.sleep(self._rng.uniform(0.0, pause))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def hang_up(self) -> None:
        """All of them, and wait until their ends are written down."""
        there = tuple(self._live.values())
        for member in there:
            member.hang_up()
        await asyncio.gather(*(member.ended.wait() for member in there))


async def serve() -> None:
    """Until stdin ends."""
    loop, orders = asyncio.get_running_loop(), asyncio.StreamReader(limit=1 << 24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    begin = msgspec.json.decode(await orders.readline(), type=Begin)
    members = Members(begin)
    tasks = [asyncio.create_task(members.one(number)) for number in range(begin.size)]
    tasks.append(asyncio.create_task(_tell(members)))
    while line := await orders.readline():
        members.told(msgspec.json.decode(line, type=Told))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await members.hang_up()
    _write(members.report())


async def _tell(members: Members) -> None:
    while True:
        due = time.monotonic() + REPORT
        _write(members.report())
        await asyncio.sleep(max(0.0, due - time.monotonic()))


def _write(report: Report) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    os.nice(NICE)
    uvloop.run(serve())
