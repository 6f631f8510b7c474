"""Names: what they look like, that they can be told apart, and that a secret has one spelling."""

import hashlib
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sessions import ids

HASH = hashlib.sha256(b"a token").digest()


def test_a_sid_of_ours_is_a_uuid7_of_its_moment() -> None:
    sid = UUID(ids.new_sid(1_800_000_000.125))
    assert sid.version == 7
    assert sid.variant == "specified in RFC 4122"
    assert sid.int >> 80 == 1_800_000_000_125


def test_sids_of_one_moment_differ() -> None:
    assert len({ids.new_sid(1_800_000_000.0) for _ in range(1000)}) == 1000


def test_later_sids_sort_behind_earlier_ones() -> None:
    assert ids.new_sid(1_800_000_000.0) < ids.new_sid(1_800_000_000.001)


def test_a_derived_sid_is_a_uuid8_and_always_the_same() -> None:
    sid = ids.derived_sid("", "sid", "x")
    assert UUID(sid).version == 8
    assert UUID(sid).variant == "specified in RFC 4122"
    assert sid == ids.derived_sid("", "sid", "x")
    assert ids.is_sid(sid)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("", "sid", "x"), ("", "jti", "x")),
        (("a", "sid", "x"), ("", "sid", "x")),
        (("a", "sid", "bc"), ("a", "sid", "b", "c")),
        (("a", "sid", "b", "c"), ("a", "sid", "bc", "")),
        (("as", "id", "x"), ("a", "sid", "x")),
    ],
)
def test_no_two_lists_of_parts_share_a_sid(one: Any, other: Any) -> None:
    assert ids.derived_sid(*one) != ids.derived_sid(*other)


def test_the_first_claim_there_is_names_the_session() -> None:
    def sid(**claims: Any) -> str:
        given: dict[str, Any] = {"sid": "s", "jti": "j", "iat": 1.0, **claims}
        return ids.external_sid("", "42", given["sid"], given["jti"], given["iat"], HASH)

    assert sid() == sid(jti="other", iat=None)
    assert sid(sid="") == sid(sid="", iat=7.0) != sid()
    assert sid(sid="", jti="") == sid(sid="", jti="", iat=1) != sid(sid="", jti="", iat=2)
    assert sid(sid="", jti="", iat=None) == ids.derived_sid("", "token", HASH.hex())


def test_without_sid_and_jti_the_user_is_part_of_the_name() -> None:
    one, other = (ids.external_sid("", user, "", "", 1.0, HASH) for user in ("42", "43"))
    assert one != other


def test_a_secret_has_256_bits_and_its_hash_is_of_these() -> None:
    secret = ids.new_secret()
    raw = ids.decode(secret)
    assert raw is not None
    assert len(raw) == 32
    assert ids.secret_hash(secret) == hashlib.sha256(raw).digest()


@pytest.mark.parametrize("bad", ["", "x", "é" * 43, "A" * 42, "A" * 44, "A" * 42 + "=", "A" * 42 + "B", " " + "A" * 42])
def test_what_is_no_secret_has_no_hash(bad: str) -> None:
    assert ids.secret_hash(bad) is None


@given(st.binary(max_size=80))
def test_encoding_is_undone_by_decoding(raw: bytes) -> None:
    assert ids.decode(ids.encode(raw)) == raw


@given(st.text(max_size=60))
def test_what_decodes_is_the_one_spelling_of_its_bytes(text: str) -> None:
    raw = ids.decode(text)
    assert raw is None or ids.encode(raw) == text
