"""One heap and one wheel for all peers."""

import random
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.deadlines import NEVER, Deadlines, Entry, Wheel


class Owner:
    def __init__(self, name: int = 0) -> None:
        self.name = name
        self.deadline: Entry | None = None
        self.bucket = self.place = -1
        self.pings = 0


def test_due_owners_come_earliest_first_and_once() -> None:
    deadlines: Deadlines[Owner] = Deadlines()
    owners = [Owner(n) for n in range(4)]
    for owner, when in zip(owners, (3.0, 1.0, 2.0, NEVER), strict=True):
        deadlines.set(owner, when)
    assert deadlines.next == 1.0
    assert [owner.name for owner in deadlines.pop(2.5)] == [1, 2]
    assert deadlines.pop(2.5) == []
    assert deadlines.next == 3.0
    assert len(deadlines) == 1


def test_a_deadline_only_moves_nearer_and_is_asked_again_when_it_was_early() -> None:
    deadlines: Deadlines[Owner] = Deadlines()
    owner = Owner()
    deadlines.set(owner, 5.0)
    deadlines.set(owner, 9.0)
    assert deadlines.next == 5.0
    deadlines.set(owner, 2.0)
    assert deadlines.pop(2.0) == [owner]
    assert deadlines.pop(100.0) == []


def test_a_cleared_owner_is_not_kept_alive_by_the_heap() -> None:
    deadlines: Deadlines[Owner] = Deadlines()
    owners = [Owner(n) for n in range(1000)]
    for owner in owners:
        deadlines.set(owner, 10.0 + owner.name)
    for owner in owners[1:]:
        deadlines.clear(owner)
    assert len(deadlines) == 1
    assert len(deadlines._heap) < 200
    assert deadlines.pop(10_000.0) == [owners[0]]


@given(st.lists(st.tuples(st.integers(0, 9), st.one_of(st.none(), st.floats(0, 100))), max_size=60), st.floats(0, 120))
def test_whoever_has_a_deadline_is_due_in_time_whatever_moved_before(
    moves: list[tuple[int, float | None]], now: float
) -> None:
    deadlines: Deadlines[Owner] = Deadlines()
    owners = [Owner(n) for n in range(10)]
    nearest: dict[int, float] = {}
    for n, when in moves:
        if when is None:
            deadlines.clear(owners[n])
            nearest.pop(n, None)
        else:
            deadlines.set(owners[n], when)
            nearest[n] = min(when, nearest.get(n, NEVER))
    assert deadlines.next <= min(nearest.values(), default=NEVER)
    assert {owner.name for owner in deadlines.pop(now)} == {n for n, when in nearest.items() if when <= now}


def turned(wheel: Wheel[Owner], start: float, seconds: float) -> list[tuple[float, Owner]]:
    """Everybody's pings over `seconds`, with their times."""
    out: list[tuple[float, Owner]] = []
    steps = round(seconds / wheel.step)
    for n in range(1, steps + 1):
        now = start + n * wheel.step + 1e-6
        ping, _ = wheel.turn(now)
        out += [(now - start, owner) for owner in ping]
    return out


def test_the_first_ping_comes_after_half_to_a_whole_interval_then_every_interval() -> None:
    rng = random.Random(7)
    wheel: Wheel[Owner] = Wheel(25.0, 8.0, 0.0, rng.random)
    owners = [Owner(n) for n in range(500)]
    for owner in owners:
        wheel.add(owner)
    times: dict[int, list[float]] = {}
    for at, owner in turned(wheel, 0.0, 100.0):
        owner.pings = 0
        times.setdefault(owner.name, []).append(at)
    firsts = [times[owner.name][0] for owner in owners]
    assert 12.0 <= min(firsts) < 14.0
    assert 23.0 < max(firsts) <= 25.6
    for seen in times.values():
        gaps = [b - a for a, b in pairwise(seen)]
        assert all(abs(gap - 25.0) < 0.01 for gap in gaps)


def test_a_peer_without_a_pong_is_overdue_after_the_timeout_and_one_with_is_not() -> None:
    wheel: Wheel[Owner] = Wheel(3.0, 1.0, 0.0, lambda: 0.0)
    good, bad = Owner(1), Owner(2)
    wheel.add(good)
    wheel.add(bad)
    pinged = overdue_at = None
    for n in range(1, 200):
        now = n * 0.05
        ping, overdue = wheel.turn(now)
        if ping and pinged is None:
            pinged = now
            good.pings = 0
        if overdue:
            overdue_at = now
            assert overdue == [bad]
            break
    assert pinged is not None
    assert overdue_at is not None
    assert 1.0 <= overdue_at - pinged <= 1.3


def test_a_stalled_process_finds_nobody_guilty() -> None:
    wheel: Wheel[Owner] = Wheel(3.0, 1.0, 0.0, lambda: 0.0)
    owner = Owner()
    wheel.add(owner)
    now = 0.0
    while not wheel.turn(now)[0]:
        now += 0.1
    ping, overdue = wheel.turn(now + 600.0)
    assert overdue == []
    assert len(ping) <= 1


def test_forgiving_puts_off_the_next_look_by_a_whole_timeout() -> None:
    wheel: Wheel[Owner] = Wheel(3.0, 1.0, 0.0, lambda: 0.0)
    owner = Owner()
    wheel.add(owner)
    now = 0.0
    while not wheel.turn(now)[0]:
        now += 0.1
    now += 0.8
    wheel.turn(now)
    wheel.forgive()
    later = now + 0.9
    while now < later:
        now += 0.1
        assert wheel.turn(now)[1] == []


@given(st.lists(st.tuples(st.integers(0, 19), st.booleans()), max_size=80), st.randoms(use_true_random=False))
def test_the_wheel_holds_exactly_who_was_added_and_not_removed(
    moves: list[tuple[int, bool]], rng: random.Random
) -> None:
    wheel: Wheel[Owner] = Wheel(25.0, 8.0, 0.0, rng.random)
    owners = [Owner(n) for n in range(20)]
    held: set[int] = set()
    for n, add in moves:
        if add and n not in held:
            wheel.add(owners[n])
            held.add(n)
        elif not add:
            wheel.remove(owners[n])
            held.discard(n)
    assert {owner.name for owner in wheel.members()} == held
    assert wheel.size == len(held)
    assert {owner.name for _, owner in turned(wheel, 0.0, 26.0)} == held


def test_without_an_interval_nobody_is_pinged() -> None:
    wheel: Wheel[Owner] = Wheel(0.0, 8.0, 0.0, lambda: 0.5)
    wheel.add(Owner())
    assert wheel.turn(1e6) == ([], [])
    assert wheel.size == 1
