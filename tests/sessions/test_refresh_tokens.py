"""Refresh tokens as text, and what presenting one means."""

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions import ids, refresh
from sessions.errors import RefreshRefused
from sessions.refresh import SLACK, WINDOW, Generation, Verdict

KEY = bytes(range(32))
SID = ids.new_sid(1_800_000_000.0)
TOKEN = refresh.write(KEY, SID, 3)
NOW = 1_800_000_000.0
ALICE, MALLORY = b"alice's client", b"mallory's client"


def test_a_token_says_its_session_and_generation_and_proves_them() -> None:
    presented = refresh.read(TOKEN)
    assert (presented.sid, presented.counter) == (SID, 3)
    assert presented.genuine(KEY)
    assert not presented.genuine(bytes(32))


def test_a_generation_has_one_token() -> None:
    assert refresh.write(KEY, SID, 3) == TOKEN != refresh.write(KEY, SID, 4)


@given(st.integers(0, len(TOKEN) - 1), st.characters(codec="utf-8"))
def test_a_changed_token_is_refused_or_not_genuine(place: int, character: str) -> None:
    changed = TOKEN[:place] + character + TOKEN[place + 1 :]
    if changed == TOKEN:
        return
    with contextlib.suppress(RefreshRefused):
        assert not refresh.read(changed).genuine(KEY)


@given(st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(RefreshRefused):
        refresh.read(text)


@pytest.mark.parametrize("end", ["A", "=", "\n", " "])
def test_a_longer_token_is_refused(end: str) -> None:
    with pytest.raises(RefreshRefused):
        refresh.read(TOKEN + end)


def test_another_version_is_refused() -> None:
    raw = ids.decode(TOKEN.removeprefix("wgr_"))
    assert raw is not None
    with pytest.raises(RefreshRefused):
        refresh.read("wgr_" + ids.encode(b"\x02" + raw[1:]))


def test_a_counter_that_no_row_can_hold_is_refused() -> None:
    with pytest.raises(RefreshRefused):
        refresh.read(refresh.write(KEY, SID, (1 << 63) - 1))


def judge(
    presented: int,
    *,
    counter: int = 5,
    rotated: float | None = NOW,
    client: bytes = ALICE,
    by: bytes = ALICE,
    after: float = 0.0,
) -> Verdict:
    return refresh.judge(presented, Generation(counter, rotated, client), by, NOW + after)


def test_the_current_generation_renews_whoever_presents_it() -> None:
    assert judge(5) is Verdict.RENEW
    assert judge(5, by=MALLORY, after=1e9) is Verdict.RENEW


def test_one_behind_gets_its_successor_again_inside_the_window() -> None:
    assert judge(4) is Verdict.REPEAT
    assert judge(4, after=WINDOW) is Verdict.REPEAT


def test_one_behind_is_theft_after_the_window() -> None:
    assert judge(4, after=WINDOW + 0.001) is Verdict.THEFT


def test_one_behind_is_theft_from_another_client() -> None:
    assert judge(4, by=MALLORY) is Verdict.THEFT


def test_a_clock_that_stands_before_the_rotation_does_not_widen_the_window() -> None:
    assert judge(4, after=-SLACK) is Verdict.REPEAT  # two processes' readings of one clock
    assert judge(4, after=-SLACK - 0.001) is Verdict.THEFT


def test_two_behind_is_theft_within_the_same_second() -> None:
    assert judge(3) is Verdict.THEFT


def test_before_any_rotation_nothing_is_one_behind() -> None:
    assert judge(0, counter=1, rotated=None, client=b"", by=b"") is Verdict.THEFT


def test_ahead_of_the_row_is_adopted() -> None:
    assert judge(9, by=MALLORY, after=1e9) is Verdict.RENEW


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("agent", "192.0.2.1"), ("agent", "192.0.2.1"), True),
        (("agent", "192.0.2.1"), ("agent", "192.0.2.2"), False),
        (("agent", "192.0.2.1"), ("another", "192.0.2.1"), False),
        (("agent", "2001:db8::1"), ("agent", "2001:db8::2"), True),
        (("agent", "2001:db8::1"), ("agent", "2001:db8:0:1::1"), False),
        (("\udcff\x00", "192.0.2.1"), ("\udcff\x00", "192.0.2.1"), True),
    ],
)
def test_a_client_is_its_program_and_address(one: Any, other: Any, same: bool) -> None:
    assert (refresh.client_binding(*one) == refresh.client_binding(*other)) is same
