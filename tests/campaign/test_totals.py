"""The running total: what is added, what is read from it, and how it comes onto the page."""

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.campaign.checker import Took, Violation
from tests.campaign.history import FaultBegan, History
from tests.campaign.plot import by_fault, closed_by, percentile
from tests.campaign.run import Outcome
from tests.campaign.schedule import make
from tests.campaign.totals import BEGIN, END, add, record, table


def outcome(seed: int = 1, *violations: Violation) -> Outcome:
    history = History(1.0, 0.05)
    history.events.append(FaultBegan(1.0, 1, "F8"))
    times = [
        Took(0.0123, 0.0123, 0.0, frozenset({"F8"})),
        Took(1.5, 0.3, 0.9, frozenset({"F8"})),
        Took(0.002, 0.002, 0.0, frozenset[str]()),
    ]
    return Outcome(make(seed, seconds=5), history, list(violations), times, 5.0, 7)


def test_runs_are_added_up() -> None:
    total = add(add({}, outcome(1)), outcome(2))
    assert (total["runs"], total["seeds"], total["steps"], total["faults"]) == (2, [1, 2], 14, {"F8": 2})
    assert total["times"] == {"F8": {"0.012": 2, "1.5": 2}, "none": {"0.002": 2}}
    assert total["able"]["F8"] == {"0.012": 2, "0.3": 2}
    assert "| F8 | 2 | 4 | 12 ms | 1.5 s | 1.5 s | 300 ms | 900 ms |" in table(total)
    assert "Seeds: 1 to 2." in table(total)


def test_a_run_that_found_something_is_kept_by_its_seed_alone() -> None:
    total = add(add({}, outcome(1)), outcome(2, Violation("I1", 1.0, "a frame")))
    assert (total["runs"], total["violating"]) == (1, {"2": ["I1"]})
    assert "Seed 2 reported I1." in table(total)


def test_a_run_that_judges_nothing_for_want_of_time_is_named_and_not_counted() -> None:
    starved = replace(outcome(2), starved=[Violation("I5", 1.0, "no pong", slow=True)])
    total = add(add({}, outcome(1)), starved)
    assert (total["runs"], total["seeds"], total["starved"]) == (1, [1], {"2": ["I5"]})
    assert "Seed 2 is not counted: I5 while the machine had no time." in table(total)


@pytest.mark.parametrize(("share", "found"), [(0.5, 1.0), (0.99, 2.0), (1.0, 3.0)])
def test_percentiles_are_read_from_the_counts(share: float, found: float) -> None:
    assert percentile({"1": 70, "2": 29, "3": 1}, share) == found


def test_the_page_is_changed_between_its_marks_only(tmp_path: Path) -> None:
    data, page = tmp_path / "campaign.json", tmp_path / "guarantee.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n")
    record(outcome(3), data, page)
    record(outcome(4), data, page)
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}")
    assert text.endswith(f"{END}after\n")
    assert "old" not in text
    assert "2 clean runs" in text
    for picture in tmp_path.glob("*.svg"):
        assert ElementTree.fromstring(picture.read_text()).tag.endswith("svg")  # noqa: S314 - made a line above


def test_the_pictures_tell_faults_from_none() -> None:
    times = {"none": {"0": 3, "0.02": 1}, "F8": {"1.5": 2}}
    assert "without faults (4)" in closed_by(times)
    assert "with faults (2)" in closed_by(times)
    assert "1.5 s of 2" in by_fault(times)
