"""The table: medians, ratios, and what stands around it in the README stays as it is."""

from pathlib import Path

import pytest

from bench import measures, table
from bench.measures import Sample
from bench.servers import Usage
from bench.table import Figure, Row

README = Path(__file__).parents[2] / "bench" / "README.md"

ROWS = [
    Row("fan-out", "us", "<= 2", {"wardgate": Figure([3.0, 1.0, 2.0]), "floor": Figure([4.0])}, {"beside": "seen"}),
    Row("memory", "KB", figures={"wardgate": Figure([1234.4], "two were lost")}),
]


@pytest.mark.parametrize(("value", "text"), [(1234.4, "1,234"), (99.94, "99.9"), (0.126, "0.13"), (5.0, "5.00")])
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert table.number(value) == text


def test_a_figure_is_the_median_and_a_ratio_needs_both() -> None:
    assert ROWS[0].figures["wardgate"].value == 2.0
    assert ROWS[0].ratio() == "0.50"
    assert ROWS[1].ratio() == ""
    assert ROWS[0].as_json()["figures"]["wardgate"] == {"value": 2.0, "rounds": [3.0, 1.0, 2.0]}
    assert ROWS[1].as_json()["figures"]["wardgate"]["note"] == "two were lost"


def test_columns_are_aligned_and_notes_stand_below() -> None:
    lines = table.text(ROWS, ["wardgate", "floor"]).splitlines()
    assert lines[0].split() == ["measure", "unit", "reach", "wardgate", "floor", "wardgate", "/", "floor"]
    assert lines[2].split() == ["fan-out", "us", "<=", "2", "2.00", "4.00", "0.50"]
    assert lines[3].split() == ["memory", "KB", "1,234*", "-", "-"]
    assert lines[2].index("2.00") + 4 == lines[3].index("1,234*") + 6
    assert lines[-2:] == ["* memory, wardgate: two were lost", "fan-out, beside: seen"]


def test_the_table_is_written_between_its_marks_and_nowhere_else(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(README.read_text())
    table.write_markdown(path, ROWS, ["wardgate", "floor"], {"date": "today"})
    before, _, rest = README.read_text().partition(table.BEGIN)
    _, _, after = rest.partition(table.END)
    written = path.read_text()
    assert written.startswith(before + table.BEGIN)
    assert written.endswith(table.END + after)
    assert "- date: today\n" in written
    assert "| fan-out | us | <= 2 | 2.00 | 4.00 | 0.50 |" in written
    path.write_text("no place")
    with pytest.raises(ValueError, match="no place for a table"):
        table.write_markdown(path, ROWS, ["wardgate"], {})


def test_a_sample_is_micros_a_delivery_or_a_unit() -> None:
    sample = Sample(Usage(server=0.5, valkey=0.1, postgres=0.2), delivered=1000, frames=500, seconds=1.0)
    assert sample.micros() == pytest.approx(500.0)
    assert sample.micros(2000) == pytest.approx(250.0)
    assert measures.stores([sample, sample]) == "Valkey 100.00, PostgreSQL 200.00 us per delivery"


def test_delays_become_median_percentile_and_maximum() -> None:
    rows = [Row(name, "ms") for name in ("p50", "p99", "max")]
    measures.spread(rows, [float(n) for n in range(200, 0, -1)])
    assert [row.figures["wardgate"].value for row in rows] == [101.0, 199.0, 200.0]
