"""The running total of clean runs: docs/campaign.json, and what is made from it (`python -m tests.campaign --page`):
the table in docs/guarantee.md, and pictures of the times to close beside it.

Times to close are kept as counts of rounded seconds, by fault, so that the file stays small and percentiles can be read
from it. A run that found a violation is kept by its seed and rule alone.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.campaign.checker import Took
from tests.campaign.plot import by_fault, closed_by, percentile, shown
from tests.campaign.run import Outcome

DATA, PAGE = Path("docs/campaign.json"), Path("docs/guarantee.md")
PICTURES = {"time-to-close.svg": closed_by, "time-to-close-by-fault.svg": by_fault}
MEASURES: dict[str, Callable[[Took], float]] = {
    "times": lambda took: took.close,
    "able": lambda took: took.able,
    "frames": lambda took: took.frame,
}
BEGIN, END = "<!-- made from campaign.json -->\n", "<!-- end -->\n"


def add(total: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    """The total with one run more."""
    seed = outcome.schedule.seed
    if outcome.violations:
        found = {**total.get("violating", {}), str(seed): sorted({v.rule for v in outcome.violations})}
        return {**total, "violating": found}
    if outcome.starved:
        found = {**total.get("starved", {}), str(seed): sorted({v.rule for v in outcome.starved})}
        return {**total, "starved": found}
    measures = {name: _counted(total.get(name, {}), outcome, which) for name, which in MEASURES.items()}
    faults = Counter(total.get("faults", {})) + outcome.faults
    return {
        "runs": total.get("runs", 0) + 1,
        "seeds": [*total.get("seeds", []), seed],
        "steps": total.get("steps", 0) + outcome.steps,
        "events": total.get("events", 0) + len(outcome.history.events),
        "faults": dict(sorted(faults.items(), key=_order)),
        **measures,
        "violating": total.get("violating", {}),
        "starved": total.get("starved", {}),
    }


def _counted(before: Mapping[str, Any], outcome: Outcome, which: Callable[[Took], float]) -> dict[str, Any]:
    """By fault, how many revocations took so many (rounded) seconds."""
    counts = {name: Counter(found) for name, found in before.items()}
    for took in outcome.times:
        for name in took.during or ("none",):
            counts.setdefault(name, Counter())[f"{which(took):.2g}"] += 1
    return {name: dict(sorted(counts[name].items(), key=lambda t: float(t[0]))) for name in sorted(counts)}


def _order(pair: tuple[str, Any]) -> int:
    return int(pair[0][1:]) if pair[0][1:].isdigit() else 0


def table(total: Mapping[str, Any]) -> str:
    """Markdown."""
    return "".join(_lines(total))


def _lines(total: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{total['runs']} clean runs of 60 s ({total['steps']:,} steps, {total['events']:,} events, "
        f"{sum(total['faults'].values()):,} faults). Seeds: {', '.join(_ranges(total['seeds']))}.\n"
    )
    for seed, rules in total.get("violating", {}).items():
        yield f"Seed {seed} reported {', '.join(rules)}.\n"
    for seed, rules in total.get("starved", {}).items():
        yield f"Seed {seed} is not counted: {', '.join(rules)} while the machine had no time.\n"
    yield (
        "\n| fault | times | revocations | p50 | p99 | max | max, by gateways that could | last frame |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    for name, counts in sorted(total["times"].items(), key=_order):
        times = total["faults"].get(name, "")
        spread = [shown(percentile(counts, share)) for share in (0.5, 0.99, 1.0)]
        worst = [
            shown(percentile(total[which][name], 1.0)) if name in total.get(which, {}) else ""
            for which in ("able", "frames")
        ]
        yield f"| {name} | {times} | {sum(counts.values())} | {' | '.join([*spread, *worst])} |\n"


def _ranges(seeds: Sequence[int]) -> Iterator[str]:
    """1, 2, 3, 7 as "1 to 3" and "7"."""
    seeds = sorted(seeds)
    starts = [n for n in range(len(seeds)) if n == 0 or seeds[n] != seeds[n - 1] + 1]
    for start, end in zip(starts, [*starts[1:], len(seeds)], strict=True):
        yield str(seeds[start]) if end - start == 1 else f"{seeds[start]} to {seeds[end - 1]}"


def record(outcome: Outcome, data: Path = DATA, page: Path = PAGE) -> None:
    """Into the file, and onto the page."""
    total = add(json.loads(data.read_text()) if data.exists() else {}, outcome)
    data.write_text(json.dumps(total, indent=1) + "\n")
    if "runs" in total:
        show(total, page)


def show(total: Mapping[str, Any], page: Path = PAGE) -> None:
    """Make the table and the pictures again."""
    before, _, rest = page.read_text().partition(BEGIN)
    page.write_text(before + BEGIN + "\n" + table(total) + "\n" + END + rest.partition(END)[2])
    for name, draw in PICTURES.items():
        (page.parent / name).write_text(draw(total["times"]))
