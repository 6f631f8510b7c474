"""One run: a world, its people, its faults, by a schedule; then quiet; then the checker's word."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.campaign.checker import Checker, Took, Violation
from tests.campaign.faults import Faults
from tests.campaign.history import History, Quiet, Starved
from tests.campaign.people import CHANNELS, People
from tests.campaign.schedule import USERS, Schedule, Step
from tests.campaign.world import World, running

LATE = 0.5
"""Seconds that the campaign may wait for a CPU without a word."""
TURN, WAITED = 0.05, 0.1
"""Seconds between two looks at that, and what counts."""
PATIENCE = 30.0
"""Seconds for everything to be well again after the last fault."""
FOR_A_CROWD = 100
"""So many sockets of a crowd are worth a second of patience."""


@dataclass
class Outcome:
    """What came of a run."""

    schedule: Schedule
    history: History
    violations: list[Violation]
    times: list[Took]
    seconds: float
    steps: int
    skipped: dict[str, str] = field(default_factory=dict)
    answers: Counter[tuple[str, int, str]] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    starved: list[Violation] = field(default_factory=list)
    """What a want of time on this machine explains: it judges nothing, and the run is not clean."""

    @property
    def worst(self) -> float:
        """The worst time to close (s)."""
        return max((took.close for took in self.times), default=0.0)

    @property
    def faults(self) -> Counter[str]:
        """How often each fault was in force."""
        from tests.campaign.history import FaultBegan

        return Counter(event.name for event in self.history.events if isinstance(event, FaultBegan))

    def summary(self) -> dict[str, Any]:
        """The JSON object of the last line."""
        return {
            "seed": self.schedule.seed,
            "lease": self.schedule.lease,
            "seconds": round(self.seconds, 1),
            "schedule": len(self.schedule.steps),
            "events": len(self.history.events),
            "faults": dict(sorted(self.faults.items())),
            "skipped": self.skipped,
            "notes": self.notes,
            "revocations": len(self.times),
            "violations": [{"rule": v.rule, "at": round(v.at, 3), "what": v.what} for v in self.violations],
            "worst_time_to_close": round(self.worst, 3),
        }


async def run(
    schedule: Schedule, mutation: str = "-", *, calm: bool = True, tell: Callable[[str], None] = lambda text: None
) -> Outcome:
    """Carry out a schedule and judge it. `tell` hears of the progress. Without `calm` nothing is judged that can be
    judged only after everything has settled."""
    async with running(schedule, mutation) as world:
        people = People(world, USERS)
        faults = Faults(world, people)
        await people.register()
        began = time.monotonic()
        world.keep(people.chatter())
        world.keep(people.come_back())
        for node in range(schedule.nodes):
            world.keep(people.publish(node))
            world.keep(_watch(world, node))
        late = world.keep(_starvation(world, faults.notes))
        done = await _carry_out(world, people, faults, tell)
        if calm:
            await _calm_down(world, people)
        seconds = time.monotonic() - began
        late.cancel()
        await asyncio.wait([late])
        if world.errors:
            raise world.errors[0]
        checker = Checker(world.history)
        found = checker.violations()
        starved = [violation for violation in found if checker.starved(violation)]
        return Outcome(
            schedule,
            world.history,
            [violation for violation in found if violation not in starved],
            checker.times(),
            seconds,
            done,
            dict(faults.skipped),
            world.answers,
            faults.notes,
            starved,
        )


async def _watch(world: World, node: int) -> None:
    while True:
        await world.look(node)
        await asyncio.sleep(0.4)


async def _starvation(world: World, notes: list[str]) -> None:
    """How long we waited to run, less what we ran ourselves: this machine's want of time."""
    worst = total = 0.0
    try:
        while True:
            due, used = time.monotonic() + TURN, time.thread_time()
            await asyncio.sleep(TURN)
            waited = time.monotonic() - due - (time.thread_time() - used)
            if waited >= WAITED:
                worst, total = max(worst, waited), total + waited
                world.log(Starved(time.monotonic(), waited))
    finally:
        if worst > LATE:
            notes.append(f"the campaign waited {total:.1f} s for a CPU, {worst:.1f} s at most at a time")


async def _carry_out(world: World, people: People, faults: Faults, tell: Callable[[str], None]) -> int:
    began, tasks, done, told = time.monotonic(), set(), 0, 0.0
    for step in world.schedule.steps:
        while (wait := began + step.at - time.monotonic()) > 0:
            await asyncio.sleep(min(wait, 1.0))
            if time.monotonic() - told >= 5.0:
                told = time.monotonic()
                left = world.schedule.seconds - (told - began)
                tell(f"{max(0.0, left):3.0f} s left, {len(world.history.events)} events, step {done}: {step.action}")
        task = asyncio.create_task(_do(step, people, faults), name=str(step))
        tasks.add(task)
        done += 1
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=PATIENCE + world.schedule.crowd / FOR_A_CROWD)
        for task in late:
            task.cancel()
            faults.notes.append(f"broken off: {task.get_name().strip()}")
        await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks - late:
            if (error := task.exception()) is not None:
                raise error
    return done


async def _do(step: Step, people: People, faults: Faults) -> None:
    if step.action == "fault":
        await faults.run(step.args)
    else:
        await getattr(people, f"do_{step.action}")(**step.args)


async def _calm_down(world: World, people: People) -> None:
    """All faults are over: wait until every node is ready, then for what may take L + d and a look at positions."""
    for node in range(len(world.nodes)):
        await world.until(lambda node=node: world.look(node), PATIENCE)  # type: ignore[misc]
    await asyncio.sleep(world.schedule.lease + world.schedule.drift + 1.0)
    for channel in CHANNELS:
        tries = itertools.count(1)
        await world.until(
            lambda channel=channel, tries=tries: people.publish_one(0, channel, f"last-{channel}-{next(tries)}"),  # type: ignore[misc]
            10,
        )
    await asyncio.sleep(4.5)  # the look at positions comes every 2 s and has a patience of 1 s
    world.log(Quiet(time.monotonic()))
    await people.collect()
    for node in range(len(world.nodes)):
        await world.look(node)
