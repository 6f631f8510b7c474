"""Who was active when, in few statements."""

from collections.abc import AsyncIterator, Mapping

import pytest

from sessions.activity import Activity

IDLE = 1000.0


class Writes:
    def __init__(self) -> None:
        self.written: list[dict[str, float]] = []
        self.failing = False

    async def __call__(self, seen: Mapping[str, float]) -> None:
        if self.failing:
            raise OSError("away")
        self.written.append(dict(seen))


@pytest.fixture
def writes() -> Writes:
    return Writes()


@pytest.fixture
async def activity(writes: Writes) -> AsyncIterator[Activity]:
    activity = Activity(writes, remembered=10)
    yield activity
    writes.failing = False
    await activity.close()


def note(activity: Activity, sid: str, at: float) -> None:
    activity.note(sid, IDLE, at, lambda: 1_800_000_000.0 + at)


async def test_many_sessions_are_one_write(activity: Activity, writes: Writes) -> None:
    for sid in ("a", "b", "c"):
        note(activity, sid, 5.0)
    await activity.flush()
    assert writes.written == [dict.fromkeys("abc", 1_800_000_005.0)]


async def test_a_session_is_written_at_most_once_a_tenth_of_its_idle_time(activity: Activity, writes: Writes) -> None:
    for at in (0.0, 1.0, 99.9):
        note(activity, "a", at)
        await activity.flush()
    assert len(writes.written) == 1
    note(activity, "a", 100.0)
    await activity.flush()
    assert writes.written[1:] == [{"a": 1_800_000_100.0}]


async def test_a_session_whose_idle_time_became_shorter_was_let_go_idle_while_it_was_used(
    activity: Activity, writes: Writes
) -> None:
    note(activity, "a", 0.0)
    await activity.flush()
    activity.note("a", 10.0, 5.0, lambda: 1_800_000_005.0)
    await activity.flush()
    assert writes.written[1:] == [{"a": 1_800_000_005.0}]
    activity.note("a", 10.0, 5.5, lambda: 1_800_000_005.5)
    await activity.flush()
    assert len(writes.written) == 2


async def test_a_session_that_was_just_made_is_not_written_again(activity: Activity, writes: Writes) -> None:
    activity.recorded("a", IDLE, 5.0)
    for at in (5.0, 104.9):
        note(activity, "a", at)
        await activity.flush()
    assert writes.written == []
    note(activity, "a", 105.0)
    await activity.flush()
    assert writes.written == [{"a": 1_800_000_105.0}]


async def test_after_a_failed_write_the_next_activity_is_written(activity: Activity, writes: Writes) -> None:
    writes.failing = True
    note(activity, "a", 0.0)
    with pytest.raises(OSError, match="away"):
        await activity.flush()
    writes.failing = False
    note(activity, "a", 1.0)
    await activity.flush()
    assert writes.written == [{"a": 1_800_000_001.0}]


async def test_what_is_remembered_has_a_bound(activity: Activity, writes: Writes) -> None:
    for n in range(100):
        note(activity, f"s{n}", 0.0)
    assert len(activity._again) <= 10
    for n in range(100):
        note(activity, f"t{n}", 500.0)
    assert len(activity._again) <= 10


async def test_closing_writes_what_is_pending(activity: Activity, writes: Writes) -> None:
    note(activity, "a", 0.0)
    await activity.close()
    assert writes.written == [{"a": 1_800_000_000.0}]
