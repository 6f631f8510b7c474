"""Memory: judged by position and bound, the gap rule, the floor, eras, going back. Pure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.clock import FakeClock
from sessions.applier import Applier
from sessions.memory import ERAS, Again, Memory, Place, kills, last_present
from sessions.model import ERA, Kind, Position, Row

E1 = "e1" * 16
HEAD = Place(ERA, E1)


def row(seq: int, previous: str | None = None, kind: Kind = Kind.SESSION, **more: object) -> Row:
    values = {"bound": seq, **more}
    return Row(seq=seq, id=name(seq), previous=name(seq - 1) if previous is None else previous, kind=kind, **values)  # type: ignore[arg-type]


def name(seq: int) -> str:
    return E1 if seq == ERA else f"{seq:032x}"


def memory(*rows: Row) -> Memory:
    made = Memory(HEAD, E1)
    for r in rows:
        made.remember(r, 0.0)
        made.advance(r, 0.0, by_lease=True)
    return made


def at(seq: int, era: str = E1) -> Position:
    return Position(seq, era)


def test_2c_a_position_at_the_floor_is_judged_and_below_it_is_not() -> None:
    m = memory(row(ERA + 1, sid="a"), row(ERA + 2, sid="b"))
    assert m.judge("c", "u", ERA, at(ERA)) is None
    m.prune(901.0)
    assert m.floor.seq == ERA + 2
    assert m.judge("c", "u", ERA, at(ERA + 1)) is Again.BELOW_FLOOR
    assert m.judge("c", "u", ERA, at(ERA + 2)) is None


def test_2c_a_process_remembers_fifteen_minutes_and_no_more_than_its_bound() -> None:
    m = memory(*(row(ERA + n, sid=f"s{n}") for n in range(1, 11)))
    assert m.prune(899.0) == 0
    assert m.prune(10.0, most=4) == 6
    assert m.judge("s7", "", 0, at(ERA + 6)) is not None
    assert m.judge("s6", "", 0, at(ERA + 5)) is Again.BELOW_FLOOR
    assert m.prune(900.0) == 4
    assert len(m) == 0


def test_2c_a_cold_start_knows_nothing_and_says_so() -> None:
    m = Memory(Place(ERA + 50, name(ERA + 50)), E1)
    assert m.judge("s", "u", 0, at(ERA + 49)) is Again.BELOW_FLOOR
    assert m.judge("s", "u", 0, at(ERA + 50)) is None


def test_1b_each_kind_ends_what_it_names() -> None:
    m = memory(
        row(ERA + 1, sid="a"),
        row(ERA + 2, kind=Kind.USER, subject="u2"),
        row(ERA + 3, kind=Kind.RIGHTS, subject="u3"),
        row(ERA + 4, kind=Kind.API_KEY, api_key="k"),
    )
    now = at(ERA)
    assert m.judge("a", "u9", ERA + 9, now) is not None
    assert m.judge("b", "u2", ERA + 1, now) is not None
    assert m.judge("b", "u2", ERA + 2, now) is None  # born at the row's own place: after it
    assert m.judge("b", "u3", ERA, now) is Again.RIGHTS
    assert m.judge("b", "u3", ERA, at(ERA + 3)) is None  # read after the change
    assert m.judge_key("k", now) is not None
    assert m.judge_key("other", now) is None
    assert m.judge_key("k", at(5)) is Again.BELOW_FLOOR


def test_1b_everyone_spares_who_is_named_and_who_came_later() -> None:
    m = memory(row(ERA + 1, kind=Kind.EVERYONE, except_sid="me"))
    assert m.judge("me", "admin", ERA, at(ERA)) is None
    assert m.judge("you", "u", ERA, at(ERA)) is not None
    assert m.judge("new", "u", ERA + 1, at(ERA + 1)) is None


def test_3_a_hint_beyond_a_gap_is_judged_by_and_does_not_move_applied() -> None:
    m = memory()
    far = row(ERA + 3, sid="c")
    m.remember(far, 0.0)
    assert not m.advance(far, 0.0)
    assert m.applied == HEAD
    assert m.judge("c", "u", ERA, at(ERA)) is not None
    for r in (row(ERA + 1, sid="a"), row(ERA + 2, sid="b")):
        m.remember(r, 0.0)
        m.advance(r, 0.0)
    assert m.applied.seq == ERA + 3  # what was beyond the gap follows by itself


def test_3_a_row_after_one_that_was_put_back_led_from_its_old_place_past_what_lies_between() -> None:
    m = memory(row(ERA + 1, sid="a"))
    after = Row(2 * ERA + 3, "c" * 32, name(ERA + 1), Kind.SESSION, 2 * ERA + 3, sid="c")
    m.remember(after, 0.0)
    assert not m.advance(after, 0.0)
    assert m.position == at(ERA + 1)
    assert m.judge("c", "u", ERA, at(ERA + 1)) is not None


def test_3_the_hint_of_an_era_after_one_that_was_put_back_led_past_what_lies_between() -> None:
    m = memory(row(ERA + 1, sid="a"))
    era = Row(3 * ERA, "e3" * 16, name(ERA + 1), Kind.ERA, 3 * ERA)
    m.remember(era, 0.0)
    assert not m.advance(era, 0.0)
    assert m.applied.seq == ERA + 1
    assert m.advance(era, 0.0, by_lease=True)  # its statement has compared the place


def test_3_the_same_row_again_changes_nothing() -> None:
    r = row(ERA + 1, sid="a")
    m = memory(r)
    assert not m.news(r)
    m.remember(r, 5.0)
    assert not m.advance(r, 5.0)
    assert (m.applied.seq, len(m), m.loose()) == (ERA + 1, 1, [])


def test_3_an_old_hint_that_was_forgotten_is_no_news() -> None:
    r = row(ERA + 1, kind=Kind.RIGHTS, subject="u")
    m = memory(r)
    m.prune(1000.0)
    assert not m.news(r)
    m.remember(r, 1000.0)
    assert m.loose() == []


@given(st.permutations(range(1, 9)), st.data())
def test_3_whatever_the_order_of_hints_the_end_is_the_same(order: list[int], data: st.DataObject) -> None:
    rows = {n: row(ERA + n, sid=f"s{n}") for n in range(1, 9)}
    m = memory()
    for n in order + data.draw(st.lists(st.sampled_from(range(1, 9)))):
        m.remember(rows[n], 0.0)
        m.advance(rows[n], 0.0)
        applied = m.applied.seq - ERA
        assert all(m.contains(Place(ERA + k, name(ERA + k))) for k in range(1, applied + 1))
    assert m.applied.seq == ERA + 8


def test_1c_a_position_of_another_chain_counts_as_below_the_floor() -> None:
    lost, found = "a" * 32, "b" * 32
    m = memory(row(ERA + 1, sid="a"))
    era = Row(2 * ERA, found, name(ERA + 1), Kind.ERA, 2 * ERA)
    m.remember(era, 0.0)
    assert m.advance(era, 0.0, by_lease=True)
    assert m.judge("s", "u", 2 * ERA, at(2 * ERA, lost)) is Again.BELOW_FLOOR
    assert m.judge("s", "u", 2 * ERA, at(2 * ERA, found)) is None
    assert m.judge("s", "u", ERA, at(ERA + 1)) is None  # the era before is on the chain too
    assert m.judge("s", "u", ERA, at(3 * ERA, found)) is Again.BELOW_FLOOR  # an era that is still to come
    assert m.position == at(2 * ERA, found)


def test_4c_after_going_back_lost_rows_go_on_judging_and_do_not_lead_back() -> None:
    m = memory(row(ERA + 1, sid="a"), row(ERA + 2, sid="b"), row(ERA + 3, kind=Kind.USER, subject="u"))
    assert m.rewind(Place(ERA + 1, name(ERA + 1))) is False
    assert m.applied.seq == ERA + 1
    assert [r.seq for r in m.loose()] == [ERA + 2, ERA + 3]
    assert m.judge("b", "x", 0, at(ERA + 1)) is not None
    assert m.judge("c", "u", ERA, at(ERA + 1)) is not None
    assert m.advance(row(ERA + 2, sid="b"), 1.0)  # the server itself named it: it is there after all
    assert m.applied.seq == ERA + 2


def test_4c_a_late_hint_of_a_lost_row_does_not_lead_back() -> None:
    b = row(ERA + 2, sid="b")
    m = memory(row(ERA + 1, sid="a"), b)
    m.rewind(Place(ERA + 1, name(ERA + 1)))
    m.remember(b, 2.0)
    other = row(ERA + 9, previous="f" * 32, sid="z")
    m.remember(other, 2.0)
    assert not m.advance(other, 2.0)
    assert m.applied.seq == ERA + 1


def test_4c_a_row_that_was_put_back_has_a_new_place_and_its_first_bound() -> None:
    lost = row(ERA + 2, kind=Kind.USER, subject="u")
    m = memory(row(ERA + 1, sid="a"), lost)
    m.rewind(Place(ERA + 1, name(ERA + 1)))
    era = Row(2 * ERA, "e2" * 16, name(ERA + 1), Kind.ERA, 2 * ERA)
    back = Row(2 * ERA + 1, lost.id, era.id, Kind.USER, lost.bound, subject="u")
    for r in (era, back):
        assert m.news(r) is (r is era)
        m.remember(r, 3.0)
        m.advance(r, 3.0, by_lease=True)
    assert m.applied == Place(2 * ERA + 1, lost.id)
    assert m.loose() == []
    assert m.judge("s", "u", ERA + 1, at(ERA + 1)) is not None
    assert m.judge("s", "u", 2 * ERA, at(2 * ERA, era.id)) is None  # logged in after the failover
    assert len(m._by[Kind.USER].get("u", ())) == 1


def test_4c_when_an_era_is_lost_bounds_within_it_end_where_the_next_one_may_begin() -> None:
    era = Row(2 * ERA, "e2" * 16, name(ERA + 1), Kind.ERA, 2 * ERA)
    lost = Row(2 * ERA + 1, "d" * 32, era.id, Kind.USER, 2 * ERA + 1, subject="u")
    m = memory(row(ERA + 1, sid="a"), era, lost)
    assert m.applied.seq == 2 * ERA + 1
    assert m.rewind(Place(ERA + 1, name(ERA + 1))) is True
    [loose] = m.loose()
    assert loose.bound == 2 * ERA
    again = Row(2 * ERA, "e3" * 16, name(ERA + 1), Kind.ERA, 2 * ERA)
    m.remember(again, 0.0)
    m.advance(again, 0.0, by_lease=True)
    assert m.judge("s", "u", 2 * ERA, at(2 * ERA, again.id)) is None
    assert m.judge("s", "u", ERA + 1, at(2 * ERA, again.id)) is not None


def test_4c_what_was_known_before_the_statement_and_is_not_there_is_lost() -> None:
    m = memory(row(ERA + 1, sid="a"))
    m.remember(row(ERA + 4, sid="d"), 10.0)
    assert m.lost(before=10.0) == []
    assert [r.sid for r in m.lost(before=10.1)] == ["d"]


def test_4c_the_newest_place_that_a_server_still_has() -> None:
    m = memory(row(ERA + 1, sid="a"), row(ERA + 2, sid="b"))
    assert [p.seq for p in m.places()] == [ERA + 2, ERA + 1, ERA]
    assert last_present(m.places(), [HEAD, Place(ERA + 2, "other")]) == HEAD
    assert last_present(m.places(), []) is None


@pytest.mark.parametrize("kind", [Kind.ERA, Kind.RIGHTS, Kind.API_KEY])
def test_other_kinds_end_no_session(kind: Kind) -> None:
    assert not kills(row(ERA + 1, kind=kind, subject="u", api_key="s"), "s", "u", 0)


def test_applied_lag_jumped_by_an_era_where_one_row_was_missing() -> None:
    m = memory(row(ERA + 1, sid="a"))
    assert m.behind(Place(ERA + 1, name(ERA + 1))) == 0
    assert m.behind(Place(ERA + 4, name(ERA + 4))) == 3
    assert m.behind(Place(2 * ERA, "e2" * 16)) == 1
    assert m.behind(Place(2 * ERA + 2, "x")) == 3


def test_4c_an_era_that_was_only_heard_of_was_put_back_as_a_row_and_everybody_froze() -> None:
    """Its commit was lost before the lease brought it. Put back it stood in the middle of the next era."""
    m = memory()
    m.remember(row(2 * ERA, previous=E1, kind=Kind.ERA), 1.0)
    m.remember(row(2 * ERA + 1, sid="a"), 1.0)
    assert [r.sid for r in m.lost(2.0)] == ["a"]
    assert [r.sid for r in m.rows()] == ["a"]


def test_1b_a_session_that_changed_is_read_again_and_nobody_else_is() -> None:
    m = memory(row(ERA + 1, kind=Kind.RIGHTS, sid="a"))
    assert m.judge("a", "u", ERA, at(ERA)) is Again.RIGHTS
    assert m.judge("a", "u", ERA, at(ERA + 1)) is None
    assert m.judge("b", "u", ERA, at(ERA)) is None


def test_1c_the_ids_of_eras_far_below_the_floor_are_forgotten() -> None:
    m = memory()
    eras = [Row((n + 2) * ERA, f"{n:032x}", E1 if n == 0 else f"{n - 1:032x}", Kind.ERA, 0) for n in range(20)]
    for r in eras:
        m.remember(r, 0.0)
        m.advance(r, 0.0, by_lease=True)
    m.prune(901.0)
    assert m.floor == Place(eras[-1].seq, eras[-1].id)
    assert len(m._eras) == ERAS + 1


def applier(m: Memory | None = None) -> tuple[Applier, FakeClock]:
    clock = FakeClock()
    made = Applier(clock, clock.wall)
    made.memory = memory() if m is None else m
    return made, clock


def test_a_count_that_grew_while_it_was_reported_stays_due_and_is_forgotten_only_when_it_is_old() -> None:
    a, clock = applier()
    a.take(row(ERA + 1, sid="a", receipt="r"))
    due = a.unreported()
    a.take(row(ERA + 2, sid="b", receipt="r"))
    a.reported(due)
    clock.advance(3600.0)
    a.prune()
    assert [id for id, _, _ in a.unreported()] == ["r"]
    a.reported(a.unreported())
    a.prune()
    assert (a.unreported(), a.tally("r")) == ([], None)


def test_4a_a_row_of_the_lease_that_does_not_follow_is_told_and_not_passed() -> None:
    a, _ = applier()
    assert a.take_all([row(ERA + 2, sid="b"), row(ERA + 3, sid="c")]) == 1
    assert a.blocked == f"row {ERA + 2:x} does not follow {ERA:x}"
    assert a.memory is not None
    assert a.memory.applied == HEAD
