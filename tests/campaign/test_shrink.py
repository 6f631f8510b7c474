"""Shrinking and the timeline, without a world: a schedule shows the violation when certain steps are in it."""

from xml.etree import ElementTree

import pytest

from tests.campaign.checker import check
from tests.campaign.history import Closed, Dialled, Event, FaultBegan, FaultEnded, Frame, History, LoggedIn
from tests.campaign.schedule import Schedule, make
from tests.campaign.shrink import cut_after, shrink_with
from tests.campaign.timeline import svg, text


async def test_what_does_not_matter_is_taken_out() -> None:
    schedule = make(4, seconds=30)
    needed = [step for step in schedule.steps if step.action == "fault"][1:3]

    async def shows(tried: Schedule) -> bool:
        return all(step in tried.steps for step in needed)

    small, used = await shrink_with(schedule, shows, 200)
    assert [step for step in small.steps if step.at >= 3.0] == needed
    assert used <= 200


@pytest.mark.parametrize("runs", [0, 1, 5])
async def test_no_more_runs_than_allowed_are_spent(runs: int) -> None:
    async def never(_: Schedule) -> bool:
        return False

    schedule = make(4, seconds=30)
    small, used = await shrink_with(schedule, never, runs)
    assert used == runs
    assert small.steps == schedule.steps


def test_what_comes_after_a_violation_is_cut() -> None:
    assert cut_after(make(4), 20.0).steps[-1].at <= 20.0


def test_a_timeline_names_the_fault_and_the_violation() -> None:
    events: list[Event] = [
        LoggedIn(1.0, "s", "u", 0.9),
        Dialled(1.1, 1, "s", "u", 0),
        Frame(1.2, 1, "connect", 1.1, live=True),
        FaultBegan(2.0, 1, "F2", note="<stop>"),
        FaultEnded(3.0, 1),
        Closed(2.5, 1, 4001, "not current"),
    ]
    history = History(1.0, 0.05, events=events)
    violations = check(history)
    lines = text(history, violations)
    assert "fault F2 #1 <stop>" in lines
    assert "!!! I5" in lines
    assert ElementTree.fromstring(svg(history, violations)).tag.endswith("svg")  # noqa: S314 - made a line above
