"""Figures and rows, and how they are shown: as text, as JSON, and in bench/README.md."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


@dataclass
class Figure:
    """One measure of one server: the rounds, and what should be said about them."""

    rounds: list[float]
    note: str = ""

    @property
    def value(self) -> float:
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        return number(self.value) + ("*" if self.note else "")


def number(value: float) -> str:
    """Three significant digits at most, and no exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


@dataclass
class Row:
    """One line of the table. `reach` is what Wardgate wants to be within; `limit` the same as a number."""

    name: str
    unit: str
    reach: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)  # what else was seen, by name

    def ratio(self, one: str = "wardgate", other: str = "floor") -> str:
        """How much of `other` `one` takes; empty where one of them is missing."""
        if one not in self.figures or other not in self.figures or not self.figures[other].value:
            return ""
        return f"{self.figures[one].value / self.figures[other].value:.2f}"

    def as_json(self) -> dict[str, Any]:
        figures = {
            name: {"value": figure.value, "rounds": figure.rounds} | ({"note": figure.note} if figure.note else {})
            for name, figure in self.figures.items()
        }
        return {"name": self.name, "unit": self.unit, "reach": self.reach, "figures": figures, "extra": self.extra}


def cells(rows: Sequence[Row], servers: Sequence[str]) -> list[list[str]]:
    """The table, its head first. A column of ratios follows each server that Wardgate is compared with."""
    compared = [s for s in ("floor", "reference") if s in servers and "wardgate" in servers]
    head = ["measure", "unit", "reach", *servers, *(f"wardgate / {s}" for s in compared)]
    body = [
        [
            *(row.name, row.unit, row.reach),
            *(str(row.figures.get(s, "-")) for s in servers),
            *(row.ratio(other=s) or "-" for s in compared),
        ]
        for row in rows
    ]
    return [head, *body]


def text(rows: Sequence[Row], servers: Sequence[str]) -> str:
    """Aligned for a terminal."""
    table = cells(rows, servers)
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]

    def show(line: list[str]) -> str:
        left = [cell.ljust(width) for cell, width in zip(line[:3], widths[:3], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[3:], widths[3:], strict=True)]
        return "  ".join(left + right).rstrip()

    shown = [show(table[0]), "  ".join("-" * width for width in widths), *(show(line) for line in table[1:])]
    return "\n".join([*shown, "", *remarks(rows)]).rstrip()


def markdown(rows: Sequence[Row], servers: Sequence[str]) -> str:
    table = cells(rows, servers)
    rule = ["---"] * 3 + ["---:"] * (len(table[0]) - 3)
    lines = ["| " + " | ".join(line) + " |" for line in [table[0], rule, *table[1:]]]
    return "\n".join([*lines, "", *(f"- {remark}" for remark in remarks(rows))]).rstrip()


def remarks(rows: Iterable[Row]) -> list[str]:
    """What the cells have no room for: notes behind an asterisk, and what was seen beside the figures."""
    found = [f"* {row.name}, {name}: {f.note}" for row in rows for name, f in row.figures.items() if f.note]
    seen = [f"{row.name}, {name}: {what}" for row in rows for name, what in row.extra.items()]
    return found + seen


def write_markdown(path: Path, rows: Sequence[Row], servers: Sequence[str], about: Mapping[str, str]) -> None:
    """Replace what stands between the two marks in `path`."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} has no place for a table")
    facts = "\n".join(f"- {name}: {value}" for name, value in about.items())
    path.write_text(f"{before}{BEGIN}\n{facts}\n\n{markdown(rows, servers)}\n{END}{after}")
