"""The checker on histories that were written by hand: good ones pass, each kind of bad one is named."""

from typing import Any

import pytest

from tests.campaign.checker import Checker, check
from tests.campaign.history import (
    Answered,
    Closed,
    Delivered,
    Dialled,
    Event,
    Failover,
    FaultBegan,
    FaultEnded,
    Finding,
    Frame,
    History,
    HungUp,
    LoggedIn,
    Mark,
    Published,
    Quiet,
    Readiness,
    Receipt,
    Revoked,
    Revoking,
    Starved,
    Subscribed,
    Unsubscribed,
)

ONE = frozenset({"s"})


def rules(*events: Event, **more: Any) -> list[str]:
    history = History(lease=1.0, drift=0.05, **more)
    history.events.extend(sorted([*BEGINNING, *events], key=lambda event: event.at))
    return [violation.rule for violation in check(history)]


BEGINNING = (
    LoggedIn(1.0, "s", "u", sent=0.9),
    Dialled(1.1, 1, "s", "u", node=0),
    Frame(1.2, 1, "connect", cause=1.1, begin=0, live=True),
)


def revoked(at: float = 5.0, *, state: str = "confirmed", by: str = "acks", **more: Any) -> tuple[Event, Event]:
    fields = {"what": "sid", "sids": ONE, "reason": "r1", **more}
    return Revoking(at - 0.1, 1, **fields), Revoked(at, 1, state, by, receipt="x")


CLOSED = Closed(5.0, 1, 4501, "session revoked: r1")


def test_a_session_that_ends_as_promised_is_no_violation() -> None:
    assert rules(*revoked(), CLOSED, Quiet(9.0), Receipt(9.1, 1, "confirmed", 1)) == []


def test_a_frame_that_was_caused_before_and_came_after_proves_nothing() -> None:
    assert rules(*revoked(), Frame(5.2, 1, "pub", cause=4.9, begin=90), CLOSED) == []


def test_a_frame_that_was_caused_after_confirmed_breaks_i1() -> None:
    assert rules(*revoked(), Frame(5.2, 1, "pub", cause=5.001, begin=90), Closed(5.3, 1, 4501)) == ["I1"]


def test_a_reply_after_commit_and_lease_breaks_i2() -> None:
    late = Frame(6.2, 1, "reply", cause=6.06)
    assert rules(*revoked(state="committed", by=""), late, Closed(6.3, 1, 4501)) == ["I2"]


def test_a_reply_within_the_lease_of_what_is_only_committed_is_allowed() -> None:
    assert rules(*revoked(state="committed", by=""), Frame(6.0, 1, "reply", cause=5.9), CLOSED) == []


def test_a_frame_written_after_everyone_acknowledged_breaks_i1_by_its_place_in_the_stream() -> None:
    mark = Mark(5.001, 1, upto=100)
    assert rules(*revoked(), mark, Frame(5.2, 1, "pub", cause=4.0, begin=100)) == ["I1"]
    assert rules(*revoked(), mark, Frame(5.2, 1, "pub", cause=4.0, begin=99)) == []
    assert rules(*revoked(), mark, Frame(5.02, 1, "pub", cause=4.0, begin=100)) == []  # in a kernel's hands


def test_where_only_time_confirmed_a_pause_lets_out_one_write_and_never_two() -> None:
    mark, first = Mark(5.001, 1, upto=100), Frame(5.2, 1, "pub", cause=4.0, begin=100)
    assert rules(*revoked(by="lease"), mark, first) == []
    assert rules(*revoked(by="lease"), mark, first, Frame(5.2, 1, "pub", cause=4.0, begin=130)) == ["I4"]


def test_a_request_that_is_accepted_after_confirmed_breaks_i1() -> None:
    assert rules(*revoked(), CLOSED, Answered(5.3, "s", 0, 200, sent=5.2)) == ["I1"]
    assert rules(*revoked(), CLOSED, Answered(5.3, "s", 0, 401, sent=5.2)) == []
    assert rules(*revoked(), CLOSED, Answered(5.3, "s", 0, 200, sent=4.8)) == []


def test_a_new_connection_of_a_revoked_session_breaks_i1() -> None:
    again = Dialled(6.0, 2, "s", "u", node=1), Frame(6.1, 2, "connect", cause=6.0, live=True), HungUp(6.2, 2)
    assert rules(*revoked(), CLOSED, *again) == ["I1"]


def test_what_was_refused_ends_nothing() -> None:
    assert rules(*revoked(state="refused", by=""), Frame(7.0, 1, "reply", cause=6.9)) == []


BLIND = FaultBegan(3.0, 1, "F12", blinds=frozenset({0})), FaultEnded(6.0, 1)


def test_a_blind_node_that_writes_after_its_lease_breaks_i3() -> None:
    assert rules(*BLIND, Frame(4.2, 1, "pub", cause=4.1)) == ["I3"]
    assert rules(*BLIND, Frame(4.2, 1, "pub", cause=3.9)) == []  # it may have been written within the lease
    assert rules(*BLIND, Frame(6.1, 1, "pub", cause=4.1)) == []  # it may have thawed by then


def test_a_blind_node_that_says_it_is_ready_breaks_i3() -> None:
    assert rules(*BLIND, Readiness(4.2, 0, True, sent=4.1)) == ["I3"]
    assert rules(*BLIND, Readiness(4.2, 0, False, sent=4.1), Readiness(4.2, 1, True, sent=4.1)) == []


@pytest.mark.parametrize(("code", "reason"), [(4001, "not current"), (1006, ""), (3012, "no pong"), (3010, "")])
def test_a_valid_session_closed_by_a_short_fault_breaks_i5(code: int, reason: str) -> None:
    assert rules(*BLIND, Closed(5.0, 1, code, reason)) == ["I5"]


def test_a_fault_longer_than_f_may_close() -> None:
    assert rules(FaultBegan(3.0, 1, "F12"), FaultEnded(20.0, 1), Closed(19.0, 1, 4001)) == []


def test_the_sockets_of_a_killed_process_are_not_closed_by_us() -> None:
    kill = FaultBegan(3.0, 1, "F10", kills=frozenset({0})), FaultEnded(3.1, 1)
    assert rules(*kill, Closed(3.0, 1, 1006)) == []
    assert rules(FaultBegan(3.0, 1, "F10", kills=frozenset({1})), FaultEnded(3.1, 1), Closed(3.0, 1, 1006)) == ["I5"]


def test_a_session_is_not_logged_out_that_nobody_ended() -> None:
    assert rules(CLOSED) == ["I5"]
    assert rules(*revoked(sids=frozenset({"other"})), CLOSED) == ["I5"]
    assert rules(*revoked(sids=frozenset(), users=frozenset({"u"})), CLOSED) == []
    assert rules(*revoked(sids=frozenset(), everyone=True, spared="s"), CLOSED) == ["I5"]


def test_a_login_after_the_answer_survives_a_revocation_of_its_user() -> None:
    after = LoggedIn(6.0, "t", "u", sent=5.5), Dialled(6.1, 2, "t", "u", 0), Frame(6.2, 2, "c", 6.1, live=True)
    assert rules(*revoked(users=frozenset({"u"})), CLOSED, *after, Closed(6.3, 2, 4501)) == ["I5"]


def test_only_a_user_with_more_sessions_than_the_cap_has_them_replaced() -> None:
    login = Revoking(2.0, 7, "login", frozenset(), users=frozenset({"u"}), cap=True)
    assert rules(login, Closed(2.1, 1, 4503), cap=1) == []
    assert rules(login, Closed(2.1, 1, 4503), cap=2) == ["I5"]


def test_changed_rights_close_with_3014_and_nobody_else() -> None:
    rights = Revoking(2.0, 7, "rights", frozenset(), users=frozenset({"u"}), rights=True)
    assert rules(rights, Closed(2.1, 1, 3014)) == []
    assert rules(Closed(2.1, 1, 3014)) == ["I5"]


SUBSCRIBED = Subscribed(2.0, 1, "chat:a", 10, "e")


def delivered(*offsets: int) -> list[Event]:
    return [Delivered(3.0 + n / 100, 1, "chat:a", offset, f"p{offset}") for n, offset in enumerate(offsets)]


def accepted(offset: int, name: str = "") -> Event:
    return Published(2.5, name or f"p{offset}", "chat:a", offset, "e")


def test_publications_in_order_pass() -> None:
    assert rules(SUBSCRIBED, accepted(11), accepted(12), *delivered(11, 12), Quiet(9.0)) == []


@pytest.mark.parametrize("offsets", [(11, 13), (11, 11), (12, 11), (10,)])
def test_a_gap_a_repetition_and_disorder_are_named(offsets: tuple[int, ...]) -> None:
    assert "delivery" in rules(SUBSCRIBED, *delivered(*offsets))


def test_an_accepted_publication_that_never_came_is_named_unless_it_was_reported_lost() -> None:
    events = SUBSCRIBED, accepted(11), accepted(12), *delivered(11)
    assert rules(*events, Quiet(9.0)) == ["delivery"]
    assert rules(*events, Unsubscribed(4.0, 1, "chat:a", 2500), Quiet(9.0)) == []
    assert rules(*events, HungUp(4.0, 1), Quiet(9.0)) == []
    assert rules(*events) == []  # a run that was cut off says nothing of the end


def test_another_publication_in_the_place_of_an_accepted_one_is_named() -> None:
    assert rules(SUBSCRIBED, accepted(11, "other"), *delivered(11)) == ["delivery"]


def test_a_revocation_without_a_receipt_or_with_one_that_stays_open_is_named() -> None:
    assert rules(*revoked(), CLOSED, Quiet(9.0)) == ["receipts"]
    assert rules(*revoked(), CLOSED, Quiet(9.0), Receipt(9.1, 1, "committed", 1)) == ["receipts"]


@pytest.mark.parametrize("count", [0, 2])
def test_a_receipt_that_counts_other_than_clients_saw_is_named(count: int) -> None:
    assert rules(*revoked(), CLOSED, Quiet(9.0), Receipt(9.1, 1, "confirmed", count)) == ["counters"]


def test_a_connection_of_a_revoked_session_that_is_open_in_the_end_is_named() -> None:
    assert rules(*revoked(reason=""), Quiet(9.0), Receipt(9.1, 1, "confirmed", 0)) == ["liveness"]


def test_a_connect_of_a_revoked_session_that_is_not_answered_yet_is_no_open_connection() -> None:
    events = *revoked(reason=""), CLOSED, Quiet(9.0), Receipt(9.1, 1, "confirmed", 1), Dialled(9.2, 2, "s", "u", node=1)
    assert rules(*events) == []


def test_a_node_that_is_not_ready_in_the_end_is_named() -> None:
    assert rules(Quiet(9.0), Readiness(9.1, 0, False, sent=9.0)) == ["liveness"]
    assert rules(Quiet(9.0), Readiness(9.1, 0, False, sent=9.0), Readiness(9.2, 0, True, sent=9.1)) == []


LOST = Failover(5.5, since=4.5, settled=9.0)
OPEN_LATER = Frame(6.5, 1, "rpc", cause=6.4, begin=90)


def test_a_revocation_that_a_failover_may_have_lost_holds_again_once_it_was_put_back() -> None:
    assert rules(*revoked(by="lease"), LOST, OPEN_LATER) == []
    late = Frame(10.2, 1, "rpc", cause=10.1, begin=90)
    assert set(rules(*revoked(by="lease"), LOST, late)) == {"I1", "I2"}
    assert set(rules(*revoked(by="lease"), Failover(5.5, since=5.5, settled=9.0), OPEN_LATER)) == {"I1", "I2"}


def test_what_everybody_had_acknowledged_holds_through_a_failover() -> None:
    assert rules(*revoked(by="acks"), LOST, OPEN_LATER) == ["I1"]


def test_a_lost_revocation_whose_only_witness_may_have_died_is_nobodys_fault() -> None:
    killed = FaultBegan(4.8, 7, "F10", kills=frozenset({1})), FaultEnded(5.0, 7)
    assert rules(*revoked(by="lease"), LOST, *killed, Frame(10.2, 1, "rpc", cause=10.1, begin=90)) == []


def test_a_login_that_a_failover_may_have_lost_is_none() -> None:
    end = Closed(6.0, 1, 4502, "session expired: absolute")
    assert rules(Failover(2.0, since=0.8, settled=6.0), end) == []
    assert rules(Failover(2.0, since=1.5, settled=6.0), end) == ["I5"]


def test_a_node_that_does_not_hear_itself_may_be_ready_for_three_seconds() -> None:
    deaf = FaultBegan(2.0, 7, "F5", deafens=frozenset({0})), FaultEnded(8.0, 7)
    assert rules(*deaf, Readiness(4.9, 0, True, sent=4.8), Readiness(5.2, 0, False, sent=5.1)) == []
    assert rules(*deaf, Readiness(5.2, 0, True, sent=5.1)) == ["deaf"]
    assert rules(*deaf, Readiness(5.2, 1, True, sent=5.1)) == []


def test_a_valid_session_that_is_answered_401_is_named() -> None:
    refused = Answered(3.0, "s", 0, 401, sent=2.9)
    assert rules(refused) == ["refusal"]
    assert rules(Answered(3.0, "s", 0, 503, sent=2.9)) == []
    assert rules(*revoked(2.8), Closed(2.8, 1, 4501), refused) == []
    assert rules(Failover(2.0, since=0.8, settled=6.0), refused) == []


def test_a_publication_that_stands_in_its_channel_twice_is_named() -> None:
    again = Delivered(3.5, 1, "chat:a", 13, "p11")
    assert rules(SUBSCRIBED, *delivered(11, 12), again) == ["delivery"]
    assert rules(SUBSCRIBED, *delivered(11, 12), Delivered(3.5, 2, "chat:a", 11, "p11")) == []


def test_what_the_look_of_a_fault_finds_is_a_violation() -> None:
    assert rules(Finding(3.0, "F22", "a transaction is open")) == ["F22"]


@pytest.mark.parametrize(("halted", "able"), [(0, 0.5), (1, 5.75)])
def test_times_count_from_commit_and_for_a_gateway_that_was_cut_off_from_when_it_could_hear(
    halted: int, able: float
) -> None:
    events = [
        *BEGINNING,
        FaultBegan(4.0, 1, "F11", halts=frozenset({halted})),
        Revoking(4.5, 2, "sid", ONE, reason="r1"),
        Revoked(5.0, 2, "confirmed", "lease", receipt="x", elapsed=0.25),
        Frame(5.5, 1, "pub", 4.9),
        FaultEnded(10.0, 1),
        Closed(10.5, 1, 4501, "session revoked: r1"),
    ]
    (took,) = Checker(History(1.0, 0.05, events=events)).times()
    assert (took.close, took.able, took.frame) == pytest.approx((5.75, able, 0.75))
    assert took.during == {"F11"}


def starved(*events: Event) -> list[tuple[str, bool]]:
    history = History(lease=1.0, drift=0.05)
    history.events.extend(sorted([*BEGINNING, *events], key=lambda event: event.at))
    checker = Checker(history)
    return [(violation.rule, checker.starved(violation)) for violation in checker.violations()]


@pytest.mark.parametrize(
    ("waited", "at", "excused"), [(1.0, 19.0, True), (0.9, 19.0, False), (1.0, 4.0, False), (1.0, 22.0, False)]
)
def test_a_connection_that_ended_for_want_of_time_is_excused_by_time_that_was_wanting(
    waited: float, at: float, excused: bool
) -> None:
    assert starved(Closed(20.0, 1, 4001, "not current"), Starved(at, waited)) == [("I5", excused)]


def test_no_want_of_time_excuses_what_passed_after_an_end_or_that_a_valid_session_is_called_over() -> None:
    frame = Frame(5.4, 1, "pub", cause=5.3)
    assert starved(*revoked(), frame, Starved(5.2, 9.0)) == [("I1", False)]
    assert starved(Closed(5.0, 1, 4504, "session expired: absolute"), Starved(4.9, 9.0)) == [("I5", False)]
    blind = FaultBegan(3.0, 1, "F12", blinds=frozenset({0})), FaultEnded(9.0, 1)
    assert starved(*blind, Frame(6.0, 1, "pub", cause=5.9), Starved(5.8, 9.0)) == [("I3", False)]
