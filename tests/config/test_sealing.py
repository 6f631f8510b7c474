"""What is sealed opens with the secret, for what it is about, and in no other way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.sealing import Sealer, Unsealable, derive

SECRET = b"a master secret of more than 32 bytes"
sealer = Sealer(SECRET, purpose="tests")


@given(st.binary(max_size=200), st.text(max_size=20))
def test_what_is_sealed_opens(plain: bytes, about: str) -> None:
    sealed = sealer.seal(plain, about)
    assert sealer.open(sealed, about) == plain
    assert sealer.current(sealed)
    assert sealed != sealer.seal(plain, about)
    if len(plain) > 8:
        assert plain not in sealed


def test_another_thing_purpose_or_secret_does_not_open() -> None:
    sealed = sealer.seal(b"key", "this")
    for other, about in (
        (sealer, "that"),
        (Sealer(SECRET, purpose="others"), "this"),
        (Sealer(SECRET + b"x", purpose="tests"), "this"),
    ):
        with pytest.raises(Unsealable):
            other.open(sealed, about)


@given(st.data())
def test_no_changed_byte_opens(data: st.DataObject) -> None:
    sealed = bytearray(sealer.seal(b"key", "this"))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(Unsealable):
        sealer.open(bytes(sealed), "this")


@given(st.binary(max_size=60))
def test_no_bytes_do_worse_than_not_opening(raw: bytes) -> None:
    with pytest.raises(Unsealable):
        sealer.open(raw, "this")


def test_a_previous_secret_opens_until_it_is_sealed_again() -> None:
    old = Sealer(b"the secret before", purpose="tests")
    both = Sealer(SECRET, [b"the secret before"], purpose="tests")
    sealed = old.seal(b"key", "this")
    assert both.open(sealed, "this") == b"key"
    assert not both.current(sealed)
    again = both.seal(b"key", "this")
    assert both.current(again)
    assert sealer.open(again, "this") == b"key"


def test_every_purpose_has_a_key_of_its_own() -> None:
    assert len({derive(SECRET, purpose) for purpose in ("a", "b", "")}) == 3
    with pytest.raises(ValueError, match="empty"):
        Sealer(b"", purpose="tests")
