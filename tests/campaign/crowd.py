"""F18: many sockets that come back by themselves when they are closed, and what they saw of the gateways' doors."""

import asyncio
import random
import time
from collections import Counter

from tests.campaign.client import CODECS, Client
from tests.campaign.people import People

GUESTS = 3
"""So many of the users are not the crowd's: they log in while it comes back."""
NAMES = tuple(CODECS)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 2.0
"""Seconds before another try: random up to the first, twice as much after each that failed, up to the last."""


class Crowd:
    """Sockets that come back by themselves, with growing, random pauses, as an SDK does."""

    def __init__(self, people: People, size: int, rng: random.Random) -> None:
        self.size = size
        self._people, self._world, self._rng = people, people.world, rng
        self._live: dict[int, Client] = {}
        self._sent_away: set[int] = set()  # and has not come back since the storm began
        self._came: Counter[tuple[int, int]] = Counter()  # by node and second
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def away(self) -> int:
        """Who was closed when the storm began and has not been back since. (Sessions go on ending all the time.)"""
        return len(self._sent_away)

    def most(self) -> dict[int, int]:
        """The most connections that a node let in within a second, by node."""
        found: dict[int, int] = {}
        for (node, _), count in self._came.items():
            found[node] = max(found.get(node, 0), count)
        return found

    async def gather(self, seconds: float) -> bool:
        """Begin; whether all are there in so many seconds."""
        self._tasks = [asyncio.create_task(self._one(number)) for number in range(self.size)]
        return await self._world.until(self._there, seconds)

    def storm(self, node: int | None) -> None:
        """All, or those on this node, are about to be closed."""
        self._sent_away = {n for n, client in self._live.items() if node is None or client.node == node}

    def go(self) -> None:
        """Hang up."""
        for task in self._tasks:
            task.cancel()
        for client in tuple(self._live.values()):
            client.hang_up()

    async def back(self) -> bool:
        """Whether all are there again."""
        return not self._sent_away

    async def _there(self) -> bool:
        return len(self._live) >= 0.95 * self.size

    async def _one(self, number: int) -> None:
        nodes = self._world.nodes
        pause = FIRST_PAUSE
        while True:
            sessions = [session for session in self._people.sessions() if session.user >= GUESTS]
            if sessions:
                session = self._rng.choice(sessions)
                user, node = self._people.people[session.user].id, self._rng.randrange(len(nodes))
                client = Client(self._world.log, NAMES[number % 2], session.sid, user, node)
                if await client.dial(nodes[node].port, session.access):
                    self._came[node, int(time.monotonic())] += 1
                    self._live[number] = client
                    self._sent_away.discard(number)
                    pause = FIRST_PAUSE
                    await client.ended.wait()
                    del self._live[number]
            await asyncio.sleep(self._rng.uniform(0.0, pause))
            pause = min(2 * pause, LONGEST_PAUSE)
