"""What a subscriber missed: whole and in order, or not at all."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.protocol.commands import Publication
from gateway.recovery import Read, step


def pubs(*offsets: int, epoch: str = "e") -> list[Publication]:
    return [Publication(b"%d" % offset, offset, epoch) for offset in offsets]


def test_nothing_asked_nothing_given_but_the_top() -> None:
    at = step(Read([], 7, "e"), [], None)
    assert at == ([], False, 7, "e")


def test_all_that_was_missed_comes_and_the_client_is_at_the_top() -> None:
    at = step(Read(pubs(3, 4), 4, "e"), [], (2, "e"))
    assert at is not None
    assert at.recovered
    assert [p.offset for p in at.publications] == [3, 4]
    assert at.offset == 4


def test_nothing_missed_is_recovered_without_publications() -> None:
    assert step(Read([], 4, "e"), [], (4, "e")) == ([], True, 4, "e")


def test_an_empty_epoch_fits_any_stream_from_its_beginning() -> None:
    at = step(Read(pubs(1, 2), 2, "e"), [], (0, ""))
    assert at is not None
    assert at.recovered


def test_another_epoch_an_evicted_part_and_a_position_ahead_are_not_recovered() -> None:
    for read, since in (
        (Read(pubs(3), 3, "new"), (2, "e")),
        (Read(pubs(4, 5), 5, "e"), (2, "e")),
        (Read([], 5, "e"), (2, "e")),
        (Read([], 5, "e"), (9, "e")),
        (Read(pubs(3, 5), 5, "e"), (2, "e")),
    ):
        at = step(read, [], since)
        assert at is not None
        assert (at.publications, at.recovered) == ([], False)
        assert at.offset == read.offset


def test_what_the_bus_brought_meanwhile_is_joined_once() -> None:
    at = step(Read(pubs(3, 4), 4, "e"), pubs(3, 4, 5, 6), (2, "e"))
    assert at is not None
    assert [p.offset for p in at.publications] == [3, 4, 5, 6]
    assert at.offset == 6


def test_a_gap_in_what_the_bus_brought_or_another_epoch_there_means_reading_again() -> None:
    assert step(Read(pubs(3), 3, "e"), pubs(5), (2, "e")) is None
    assert step(Read(pubs(3), 3, "e"), pubs(1, epoch="f"), (2, "e")) is None


def test_what_the_bus_brought_of_an_older_epoch_does_not_count() -> None:
    at = step(Read([], 1, "f"), [*pubs(8, epoch="e"), *pubs(1, epoch="f")], None)
    assert at == ([], False, 1, "f")


@given(
    since=st.integers(0, 20),
    first=st.integers(1, 20),
    top=st.integers(0, 20),
    kept=st.integers(0, 25),
    kept_from=st.integers(1, 25),
)
def test_what_is_recovered_has_no_gap_and_no_repetition(
    since: int, first: int, top: int, kept: int, kept_from: int
) -> None:
    held = [n for n in range(first, top + 1) if n > since]
    at = step(Read(pubs(*held), top, "e"), pubs(*range(kept_from, kept + 1)), (since, "e"))
    if at is None:
        assert kept > top
        assert kept_from > top + 1
        return
    if at.recovered:
        assert [p.offset for p in at.publications] == list(range(since + 1, at.offset + 1))
    else:
        assert at.publications == []
    assert at.offset == max(top, kept if kept >= kept_from else 0)
