"""docs/security.md names for each item the place that enforces it and the tests; what it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What the core and the gateway hold. OAuth has items of its own.
CORE = {*range(1, 37), *range(49, 65)}


def rows() -> dict[int, tuple[str, str]]:
    """(place, tests) of each item."""
    table = {}
    for line in (ROOT / "docs" / "security.md").read_text().splitlines():
        found = re.match(r"\| (\d+) [^|]+\| ([^|]+) \| ([^|]+) \|$", line)
        if found:
            table[int(found[1])] = (found[2], found[3])
    return table


def named_tests() -> set[str]:
    return {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^\s*(?:async )?def (test_\w+)\(", path.read_text(), re.MULTILINE)
    }


def test_every_item_of_the_core_has_a_row() -> None:
    assert set(rows()) >= CORE


def test_every_test_that_is_named_is_there_and_every_item_has_one() -> None:
    there = named_tests()
    for item, (_, tests) in rows().items():
        paths = re.findall(r"tests/[\w/]+\.py", tests)
        assert all((ROOT / path).is_file() for path in paths), item
        names = re.findall(r"(?<!/)\btest_\w+", tests)
        assert set(names) <= there, (item, set(names) - there)
        assert names or paths or "no test yet" in tests, item


def test_every_place_that_is_named_is_there() -> None:
    for item, (place, _) in rows().items():
        for path in re.findall(r"(?:config|sessions|auth|gateway)/[\w/]+\.py", place):
            assert (ROOT / path).is_file(), (item, path)


def test_every_test_that_carries_an_items_number_stands_in_its_row() -> None:
    table = rows()
    for name in named_tests():
        found = re.match(r"test_sec_(\d+)_", name)
        if found and int(found[1]) in CORE:
            assert name in table[int(found[1])][1], name
