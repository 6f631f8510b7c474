"""Makes a violating schedule shorter: halves, quarters, ... of its steps are taken out while the rule still breaks.

A run in the real world is no pure function of its schedule, so a shorter one counts only when it was run and showed the
violation; one that did not is no proof that the steps were needed.
"""

from collections.abc import Awaitable, Callable, Sequence

from tests.campaign.run import Outcome, run
from tests.campaign.schedule import Schedule, Step

KEEP = ("login", "connect")
"""The arrivals (before `until`) stay: a world without people shows nothing."""


def pieces(steps: Sequence[Step], count: int) -> list[list[Step]]:
    """`steps` less one of `count` consecutive pieces, for each of them."""
    size = max(1, -(-len(steps) // count))
    return [[*steps[:at], *steps[at + size :]] for at in range(0, len(steps), size)]


def cut_after(schedule: Schedule, at: float) -> Schedule:
    """What comes after the violation showed cannot have caused it."""
    return schedule.only([step for step in schedule.steps if step.at <= at])


async def shrink_with(
    schedule: Schedule, shows: Callable[[Schedule], Awaitable[bool]], runs: int
) -> tuple[Schedule, int]:
    """The shortest schedule found in so many trials, and how many were used. Delta debugging."""
    fixed = [step for step in schedule.steps if step.action in KEEP and step.at < 3.0]
    steps = [step for step in schedule.steps if step not in fixed]
    count, used = 2, 0
    while used < runs and steps:
        for fewer in pieces(steps, count):
            if used >= runs:
                break
            used += 1
            if await shows(schedule.only(sorted([*fixed, *fewer], key=lambda step: step.at))):
                steps, count = fewer, max(2, count - 1)
                break
        else:
            if count >= len(steps):
                break
            count = min(len(steps), count * 2)
    return schedule.only(sorted([*fixed, *steps], key=lambda step: step.at)), used


async def shrink(outcome: Outcome, mutation: str, *, runs: int, tell: Callable[[str], None]) -> Outcome:
    """The outcome of the shortest schedule that still showed a violation of the same rule."""
    best = outcome
    rule = outcome.violations[0].rule
    began = outcome.history.events[0].at if outcome.history.events else 0.0

    async def shows(schedule: Schedule) -> bool:
        nonlocal best
        tell(f"  shrinking: {len(schedule.steps)} steps")
        found = await run(schedule, mutation)
        if any(violation.rule == rule for violation in found.violations):
            best = found
            return True
        return False

    first = cut_after(outcome.schedule, outcome.violations[0].at - began)
    if len(first.steps) < len(outcome.schedule.steps) and not await shows(first):
        first = outcome.schedule
    await shrink_with(first, shows, runs - 1)
    return best
