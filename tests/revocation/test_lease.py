"""The lease's state machine, the offset of clocks, the watch over beats, and the verdict on a receipt. Pure."""

import msgspec
import pytest

from sessions.lease import Head, Lease, Next, Offset, Reply, later
from sessions.memory import Memory, Place
from sessions.model import ERA, Kind, Position, Row
from sessions.receipts import Census, Member, Open, verdict
from sessions.registration import Beat, Dead, Watch

E1 = "e1" * 16
HEAD = Place(ERA, E1)
A = Row(ERA + 1, "a" * 32, E1, Kind.SESSION, ERA + 1, sid="a")


def reply(
    place: Place = HEAD, *, registered: bool = True, pair: bool = True, start: float = 1.0, version: int = 1
) -> Reply:
    return Reply(registered, pair, start, 0.0, Head(place, E1, 5.0, 0.25, version))


def renewed(lease: Lease, memory: Memory, sent: float, **more: bool | float | Place) -> Next:
    found = lease.receive(reply(**more), sent=sent, arrived=sent + 0.01)  # type: ignore[arg-type]
    lease.settle(memory)
    return found


def test_4b_fresh_until_counts_from_before_the_sending() -> None:
    lease, memory = Lease(), Memory(HEAD, E1)
    lease.receive(reply(), sent=100.0, arrived=104.9)
    lease.settle(memory)
    assert lease.fresh_until == 105.0


def test_4b_nothing_is_granted_before_applied_has_passed_the_head_that_the_reply_named() -> None:
    lease, memory = Lease(), Memory(HEAD, E1)
    renewed(lease, memory, 100.0, place=Place(A.seq, A.id))
    assert lease.fresh_until == 0.0
    memory.advance(A, 100.0)
    lease.settle(memory)
    assert lease.fresh_until == 105.0


def test_4b_the_head_is_a_pair_and_not_a_number() -> None:
    lease, memory = Lease(), Memory(HEAD, E1)
    memory.advance(A, 0.0)
    renewed(lease, memory, 100.0, place=Place(A.seq, "b" * 32))
    assert lease.fresh_until == 0.0


def test_4b_never_backwards() -> None:
    lease, memory = Lease(), Memory(HEAD, E1)
    renewed(lease, memory, 100.0)
    renewed(lease, memory, 90.0)
    assert lease.fresh_until == 105.0


def test_4b_a_reply_without_pair_or_registration_grants_nothing_and_drops_what_was_pending() -> None:
    for lacking in ({"pair": False}, {"registered": False}):
        lease, memory = Lease(), Memory(HEAD, E1)
        renewed(lease, memory, 100.0, place=Place(A.seq, A.id))
        expected = Next.REWIND if "pair" in lacking else Next.REGISTER
        assert renewed(lease, memory, 101.0, **lacking) is expected
        memory.advance(A, 101.0)
        lease.settle(memory)
        assert lease.fresh_until == 0.0


def test_6c_another_version_in_the_head_row_grants_nothing() -> None:
    lease, memory = Lease(), Memory(HEAD, E1)
    assert renewed(lease, memory, 100.0, version=2) is Next.REFUSE
    assert lease.fresh_until == 0.0


def test_4_the_pace_is_a_second_and_faster_while_the_probe_fails_or_rows_are_missing() -> None:
    lease = Lease()
    assert lease.pause(probe_ok=True, behind=False) == 1.0
    assert lease.pause(probe_ok=False, behind=False) == 0.2
    assert lease.pause(probe_ok=True, behind=True) == 0.0
    lease.receive(Reply(True, True, 1.0, 0.0, Head(HEAD, E1, 0.5, 0.05)), sent=0.0, arrived=0.0)
    assert lease.pause(probe_ok=True, behind=False) == 0.1


def test_6b_another_server_start_begins_the_waiting_again() -> None:
    lease, memory = Lease(), Memory(HEAD, E1)
    renewed(lease, memory, 100.0)
    assert not lease.settled(105.0)
    assert lease.settled(105.27)
    renewed(lease, memory, 110.0, start=2.0)
    assert not lease.settled(115.0)
    assert lease.settled(115.27)


# -- 11


def test_11_the_offset_follows_slowly_and_holds_at_a_step() -> None:
    offset = Offset()
    offset.sample(1000.0, sent=10.0, arrived=10.2)
    assert offset.value is not None
    assert abs(offset.value - 989.9) < 1e-9
    offset.sample(1011.4, sent=20.0, arrived=20.0)
    assert offset.value == 991.4
    for _ in range(3):
        offset.sample(4611.0, sent=20.0, arrived=20.0)
    assert (offset.value, offset.steps, offset.stepped) == (991.4, 1, True)
    offset.sample(1021.4, sent=30.0, arrived=30.0)
    assert (offset.value, offset.steps, offset.stepped) == (991.4, 1, False)


def test_11_a_slow_reply_says_nothing_about_the_other_clock() -> None:
    offset = Offset()
    offset.sample(1000.0, sent=10.0, arrived=10.0)
    offset.sample(1012.0, sent=10.0, arrived=13.0)
    assert (offset.value, offset.steps) == (990.0, 0)


# -- 5c


def look(watch: Watch, beat: int, now: float, *, start: float = 1.0, policy: str = "freeze") -> list[Dead]:
    return watch.look([Beat("n", beat, policy)], start=start, sent=now, arrived=now, limit=6.25)


def test_5c_a_beat_that_stands_still_long_enough_is_dead() -> None:
    watch = Watch()
    assert look(watch, 7, 0.0) == []
    assert look(watch, 7, 6.2) == []
    assert look(watch, 7, 6.25) == [Dead("n", 7, 1.0)]


def test_5c_a_beat_another_server_start_or_a_failed_renewal_begins_the_waiting_again() -> None:
    for disturb in (
        lambda w: look(w, 8, 5.0),
        lambda w: look(w, 7, 5.0, start=2.0),
        lambda w: w.reset(),
        lambda w: w.look([], start=1.0, sent=5.0, arrived=5.0, limit=6.25),
    ):
        watch = Watch()
        look(watch, 7, 0.0)
        disturb(watch)
        assert look(watch, 8, 7.0) == []
        assert look(watch, 7, 7.0) == []


def test_5c_counted_from_the_answer_to_the_next_question() -> None:
    watch = Watch()
    watch.look([Beat("n", 7, "freeze")], start=1.0, sent=0.0, arrived=3.0, limit=6.25)
    assert watch.look([Beat("n", 7, "freeze")], start=1.0, sent=9.2, arrived=99.0, limit=6.25) == []
    assert watch.look([Beat("n", 7, "freeze")], start=1.0, sent=9.25, arrived=99.0, limit=6.25) != []


def test_6c_who_serves_is_never_taken_for_dead_by_its_beat() -> None:
    watch = Watch()
    look(watch, 7, 0.0, policy="serve")
    assert look(watch, 7, 600.0, policy="serve") == []


# -- 6a to 6c


def settled_lease(start: float = 1.0, since: float = 0.0) -> Lease:
    lease = Lease()
    lease.receive(reply(start=start), sent=since, arrived=since)
    return lease


def a_receipt(committed: float = 100.0) -> Open:
    return Open("r", Position(A.seq, E1), 1, 0.0, committed, rows={A.id: A.seq})


def census(*members: Member, sent: float = 100.1, start: float = 1.0, there: bool = True) -> Census:
    return Census(sent, start, 5.0, 0.25, members, frozenset({A.id} if there else ()))


def test_6a_confirmed_when_each_registered_process_has_acknowledged_over_redis_or_by_its_lease() -> None:
    receipt, lease = a_receipt(), settled_lease()
    taken = census(Member("m", "freeze", A.seq - 1), Member("n", "freeze", A.seq + 3))
    assert verdict(receipt, taken, lease, 100.2) == ""
    receipt.acked["m"] = {A.id}
    assert verdict(receipt, taken, lease, 100.2) == "acks"


def test_6a_a_census_from_before_the_commit_proves_nothing() -> None:
    receipt = a_receipt()
    assert verdict(receipt, census(sent=99.9), settled_lease(), 200.0) == ""
    assert verdict(receipt, None, settled_lease(), 200.0) == ""


def test_6a_or_when_the_lease_of_whoever_did_not_hear_it_is_over() -> None:
    receipt = a_receipt()
    taken = census(Member("m", "freeze", -1))
    assert verdict(receipt, taken, settled_lease(), 105.24) == ""
    assert verdict(receipt, taken, settled_lease(), 105.25) == "lease"


def test_6a_an_acknowledged_seq_of_another_row_is_none() -> None:
    receipt = a_receipt()
    assert verdict(receipt, census(Member("m", "freeze", A.seq + 3), there=False), settled_lease(), 100.2) == ""


def test_6a_not_before_the_last_transaction_of_a_receipt() -> None:
    receipt = a_receipt()
    receipt.complete = False
    assert verdict(receipt, census(), settled_lease(), 200.0) == ""


def test_6b_acknowledgements_count_only_under_a_server_start_that_was_renewed_against_for_the_lease() -> None:
    everyone = census(Member("m", "freeze", A.seq))
    assert verdict(a_receipt(), everyone, settled_lease(since=95.0), 100.2) == ""
    assert verdict(a_receipt(), everyone, settled_lease(start=2.0), 100.2) == ""
    assert verdict(a_receipt(), everyone, settled_lease(since=94.8), 100.2) == "acks"


def test_6c_time_does_not_speak_for_a_process_that_serves() -> None:
    serving = census(Member("m", "serve", -1))
    receipt = a_receipt()
    assert verdict(receipt, serving, settled_lease(), 1000.0) == ""
    receipt.acked["m"] = {A.id}
    assert verdict(receipt, serving, settled_lease(), 100.2) == "acks"


@pytest.mark.parametrize(
    ("origin", "before", "is_later"),
    [
        ("7/2/9", "7/1/9", True),
        ("7/10/9", "7/F/9", True),  # they are hexadecimal
        ("7/1/9", "7/1/9", False),
        ("7/1/9", "7/2/9", False),
        ("8/2/9", "7/1/9", False),
        ("7/2/8", "7/1/9", False),
        ("untold/9", "untold/9", False),
        ("untold/9", "7/1/9", False),
        ("7/1/9", "untold/9", False),
        ("7/1/9", "", False),
        ("", "7/1/9", False),
    ],
)
def test_4d_a_later_timeline_of_the_same_database(origin: str, before: str, is_later: bool) -> None:
    assert later(origin, before) is is_later


def named(origin: str, vouched: str, *, start: float) -> Reply:
    return Reply(True, True, start, 0.0, Head(HEAD, E1, origin=origin, vouched=vouched))


def test_4d_the_second_of_two_standbys_that_were_promoted_to_one_timeline_was_waited_at_for_ever() -> None:
    """Each makes timeline 2 of the primary's 1; that somebody vouched for the first was lost with it."""
    lease = Lease()
    for head in (named("7/1/9", "7/1/9", start=1.0), named("7/2/9", "7/1/9", start=2.0)):
        assert lease.receive(head, sent=0.0, arrived=0.0) is Next.APPLY
    assert lease.receive(named("7/2/9", "7/2/9", start=2.0), sent=1.0, arrived=1.0) is Next.APPLY
    assert lease.receive(named("7/2/9", "7/1/9", start=3.0), sent=2.0, arrived=2.0) is Next.APPLY


def test_4d_who_was_not_there_before_a_change_vouches_for_nothing_and_nobody_for_what_is_doubted() -> None:
    assert Lease().receive(named("7/2/9", "7/1/9", start=1.0), sent=0.0, arrived=0.0) is Next.WAIT
    lease = Lease()
    assert lease.receive(named("7/1/9", "7/1/9", start=1.0), sent=0.0, arrived=0.0) is Next.APPLY
    assert lease.receive(named("7/1/9", "lost", start=1.0), sent=1.0, arrived=1.0) is Next.WAIT


def went_back(lease: Lease) -> None:
    """It was fresh, the server was put back, and it found its way back to a row that is there."""
    memory = Memory(HEAD, E1)
    assert lease.receive(named("7/1/9", "7/1/9", start=1.0), sent=0.0, arrived=0.0) is Next.APPLY
    lease.settle(memory)
    lost = msgspec.structs.replace(named("7/1/9", "lost", start=2.0), pair=False)
    assert lease.receive(lost, sent=1.0, arrived=1.0) is Next.REWIND
    lease.went_back = 2.0


def test_4d_a_restart_in_the_middle_of_a_doubt_made_all_wait_for_the_operator() -> None:
    lease = Lease()
    went_back(lease)
    for start in (2.0, 3.0, 4.0):
        assert lease.receive(named("7/1/9", "lost", start=start), sent=start, arrived=start) is Next.APPLY


def test_4d_who_went_back_and_was_away_for_longer_than_its_lease_vouches_no_more() -> None:
    lease = Lease()
    went_back(lease)
    assert lease.receive(named("7/1/9", "lost", start=3.0), sent=5.1, arrived=5.1) is Next.WAIT
