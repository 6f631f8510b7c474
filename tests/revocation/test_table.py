"""docs/revocation.md names a place and a test for each duty; what it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LETTERS = (
    *("1a", "1b", "1c", "1d", "1e", "2a", "2b", "2c", "2d", "3", "4a", "4b", "4c", "4d", "5a", "5b", "5c"),
    *("6a", "6b", "6c", "6d", "7a", "7b", "7c", "7d", "7e", "8a", "8b", "8c", "9a", "9b", "9c"),
    *("10a", "10b", "10c", "10d", "10e", "11", "12", "13"),
)


def rows() -> dict[str, tuple[str, str]]:
    table = {}
    for line in (ROOT / "docs" / "revocation.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) == 6 and re.fullmatch(r"\d+[a-e]?", cells[1]):
            table[cells[1]] = (cells[3], cells[4])
    return table


def test_every_duty_has_a_row() -> None:
    assert tuple(rows()) == LETTERS


def test_every_place_that_is_named_is_there() -> None:
    for place, _ in rows().values():
        for path in re.findall(r"`((?:sessions|gateway)/[a-z_]+\.py)`", place):
            assert (ROOT / path).is_file(), path


def test_every_test_that_is_named_is_there() -> None:
    for letter, (_, tests) in rows().items():
        named = 0
        for part in tests.split(";"):
            path, *names = re.findall(r"tests/\w+/\w+\.py|test_\w+(?=`)", part)
            text = (ROOT / path).read_text()
            for name in names:
                assert f"def {name}(" in text, f"{letter}: {path}::{name}"
                named += 1
        assert named, letter
