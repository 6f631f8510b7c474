"""The cache's bounds. That nothing in it is believed unjudged is shown in test_reading."""

import pytest

from sessions.cache import Cache
from sessions.model import Position, Reading, Session, Subject

SESSION = Session("sid", Subject("alice", True, 1), "cookie", "", 1, 0.0, 0.0, 9.0, 9.0)


@pytest.fixture
def cache() -> Cache[str, Reading]:
    return Cache(size=2, age=10.0)


def reading(n: int) -> Reading:
    return Reading(SESSION, Position(n, "0" * 32), 0.0)


def test_a_reading_is_kept_for_its_age_from_before_it_was_asked(cache: Cache[str, Reading]) -> None:
    cache.put("a", reading(1), asked=100.0)
    assert cache.get("a", 110.0) == reading(1)
    assert cache.get("a", 110.1) is None
    assert len(cache) == 0


def test_what_was_used_longest_ago_goes_first(cache: Cache[str, Reading]) -> None:
    cache.put("a", reading(1), 0.0)
    cache.put("b", reading(2), 0.0)
    cache.get("a", 1.0)
    cache.put("c", reading(3), 0.0)
    assert [cache.get(key, 1.0) for key in "abc"] == [reading(1), None, reading(3)]


def test_a_newer_reading_replaces_the_one_before(cache: Cache[str, Reading]) -> None:
    cache.put("a", reading(1), 0.0)
    cache.put("a", reading(2), 0.0)
    assert cache.get("a", 0.0) == reading(2)
    cache.drop("a")
    cache.drop("a")
    assert cache.get("a", 0.0) is None
