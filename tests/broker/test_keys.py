"""Names in Redis."""

import re
import zlib

from hypothesis import given
from hypothesis import strategies as st

from gateway.keys import Keys, escape

KEYS = Keys("wardgate")


def test_the_names_of_a_channel() -> None:
    names = KEYS.channel("chat:1")
    tag = zlib.crc32(b"chat:1") % 256
    assert names.bus == f"wardgate:{{{tag}}}:bus:chat:1"
    assert names.stream == f"wardgate:{{{tag}}}:stream:chat:1"
    assert KEYS.node("ab", "info") == "wardgate:{n:ab}:info"


@given(st.text(max_size=30))
def test_every_name_of_a_channel_has_one_hash_tag_and_it_is_its_partition(channel: str) -> None:
    for name in (*KEYS.channel(channel), KEYS.result(channel, "key}{")):
        assert name.count("{") == name.count("}") == 1
        found = re.match(r"wardgate:\{(\d+)\}:", name)
        assert found
        assert int(found[1]) == zlib.crc32(channel.encode()) % 256


@given(st.text("{}%7BD5", max_size=8), st.text("{}%7BD5", max_size=8))
def test_two_channels_never_have_one_name(first: str, second: str) -> None:
    assert (escape(first) == escape(second)) == (first == second)


def test_results_of_two_channels_and_two_keys_do_not_meet() -> None:
    pairs = [("a", "b"), ("a", "c"), ("a:b", "c"), ("a", "b:c"), ("", ""), ("a", "x" * 100_000)]
    assert len({KEYS.result(channel, key) for channel, key in pairs}) == len(pairs)
    assert all(len(KEYS.result(channel, key)) < 80 for channel, key in pairs)
