"""Lists as files: what a spreadsheet, and what a program, reads of a row."""

import csv
import io
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import exports


class Row(msgspec.Struct):
    name: str
    count: int | None = 0
    more: dict[str, str] = {}
    roles: list[str] = []
    on: bool = False


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("", None),
        ("*/*", None),
        ("text/*", None),
        ("text/html,application/xhtml+xml,*/*;q=0.8", None),
        ("application/json", None),
        ("text/csv", "text/csv"),
        ("Text/CSV; charset=utf-8", "text/csv"),
        ("application/x-ndjson, */*;q=0.1", "application/x-ndjson"),
        ("application/json, text/csv", None),
        ("application/json;q=0.5, text/csv", "text/csv"),
        ("text/csv;q=0.5, application/x-ndjson", "application/x-ndjson"),
        ("text/csv;q=0", None),
        ("text/csv;q=often", None),
        ("text/csvx", None),
    ],
)
def test_a_file_is_what_is_asked_for_by_its_name(accept: str, form: str | None) -> None:
    assert exports.wanted(accept) == form


def test_a_row_in_both_forms() -> None:
    row = Row('a "b", c\nd', None, {"k": "v"}, ["x", "y"], True)
    table = exports.head("text/csv", Row) + exports.rows("text/csv", [row, Row("e")])
    assert table.startswith(b"name,count,more,roles,on\r\n")
    assert list(csv.reader(io.StringIO(table.decode(), newline="")))[1:] == [
        ['a "b", c\nd', "", '{"k":"v"}', '["x","y"]', "true"],
        ["e", "0", "{}", "[]", "false"],
    ]
    assert exports.head("application/x-ndjson", Row) == b""
    lines = exports.rows("application/x-ndjson", [row, Row("=e")]).splitlines()
    assert [json.loads(line)["name"] for line in lines] == ['a "b", c\nd', "=e"]
    assert exports.rows("text/csv", []) == b""


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", '=HYPERLINK("http://x")'])
def test_no_cell_is_a_formula(text: str) -> None:
    [[cell, *_]] = csv.reader(io.StringIO(exports.rows("text/csv", [Row(text)]).decode(), newline=""))
    assert cell == "'" + text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_whatever_a_text_is_it_stays_one_cell_of_one_row(text: str) -> None:
    read = list(csv.reader(io.StringIO(exports.rows("text/csv", [Row(text), Row("z")]).decode(), newline="")))
    assert [len(row) for row in read] == [5, 5]
    assert read[0][0].removeprefix("'") == text.removeprefix("'")
    assert json.loads(exports.rows("application/x-ndjson", [Row(text)]))["name"] == text
