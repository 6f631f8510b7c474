"""Schedules: the same seed gives the same one, on every machine; what was asked for is in it."""

import json

import pytest

from tests.campaign.schedule import FAULTS, load, make


def test_the_same_seed_gives_the_same_schedule() -> None:
    assert make(7) == make(7)
    assert make(7).steps != make(8).steps


def test_a_schedule_is_written_and_read_back() -> None:
    schedule = make(11, seconds=20)
    assert load(json.loads(json.dumps(schedule.dump()))) == schedule


def test_one_in_ten_keeps_the_real_lease() -> None:
    assert [make(seed, seconds=5).lease for seed in range(1, 11)] == [1.0] * 9 + [5.0]


def test_only_the_faults_that_were_asked_for() -> None:
    assert set(make(3, faults=("F1", "F8")).faults()) == {"F1", "F8"}
    with pytest.raises(ValueError, match="F99"):
        make(3, faults=("F99",))


def test_all_faults_come_in_some_seeds() -> None:
    found = {name for seed in range(40) for name in make(seed).faults()}
    assert found == set(FAULTS)


def test_steps_are_in_order_and_in_time() -> None:
    steps = make(5, seconds=30).steps
    assert [s.at for s in steps] == sorted(s.at for s in steps)
    assert steps[-1].at < 32


def test_a_standby_is_there_where_a_fault_needs_it() -> None:
    assert {make(seed, seconds=20, faults=("F13",)).standby for seed in range(3)} == {"sync", "async"}
    assert make(1, seconds=20, faults=("F1",), standby="sync").standby == ""


def test_a_sentinel_and_a_crowd_are_there_where_a_fault_needs_them() -> None:
    assert {make(seed, seconds=20, faults=("F4",)).sentinel for seed in range(8)} == {True, False}
    assert not make(1, seconds=20, faults=("F1",)).sentinel
    assert make(1, seconds=20, faults=("F18",), crowd=7).crowd == 7
    assert make(1, seconds=20, faults=("F1",), crowd=7).crowd == 0
