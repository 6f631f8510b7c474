"""Pictures of the times to close in docs/campaign.json, as SVG: how many were closed by when, and the spread by fault.

Pure: counts in, text out. The axis of seconds is logarithmic; what is quicker than its begin stands at its begin.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping

Counts = Mapping[str, int]
"""How many took so many seconds, as totals keeps them."""

WIDTH, LEFT, RIGHT, ROW = 760, 60, 110, 20
FIRST, LAST = 0.001, 100.0
COLORS = {"without faults": "#2b6cb0", "with faults": "#c05621"}


def x(seconds: float) -> float:
    """Where so many seconds stand."""
    share = math.log(min(max(seconds, FIRST), LAST) / FIRST) / math.log(LAST / FIRST)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def percentile(counts: Counts, share: float) -> float:
    """The smallest time that at least this share is not above."""
    left = share * sum(counts.values())
    for text in sorted(counts, key=float):
        left -= counts[text]
        if left <= 0:
            return float(text)
    return 0.0


def shown(seconds: float) -> str:
    """For people."""
    if seconds < 0.001:
        return "< 1 ms"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def closed_by(times: Mapping[str, Counts]) -> str:
    """The share of revocations whose last connection was closed within so many seconds, with faults and without."""
    height, top, bottom = 300, 16, 250
    with_faults: Counter[str] = Counter()
    for name, counts in times.items():
        with_faults.update(counts if name != "none" else {})
    lines = {"without faults": Counter(times.get("none", {})), "with faults": with_faults}
    parts = list(_axis(top, bottom))
    for share in (0.0, 0.5, 0.9, 1.0):
        y = bottom - share * (bottom - top)
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{share:.0%}</text>')
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e8f0"/>')
    for n, (name, counts) in enumerate(lines.items()):
        if total := sum(counts.values()):
            parts.append(_steps(counts, total, top, bottom, COLORS[name]))
            note = f"{name} ({total})"
            parts.append(f'<text x="{WIDTH - RIGHT + 6}" y="{top + 14 + 16 * n}" fill="{COLORS[name]}">{note}</text>')
    return _svg(height, parts)


def _steps(counts: Counts, total: int, top: float, bottom: float, color: str) -> str:
    done, points = 0, []
    for text in sorted(counts, key=float):
        before = bottom - done / total * (bottom - top)
        done += counts[text]
        after = bottom - done / total * (bottom - top)
        points += [f"{x(float(text)):.1f},{before:.1f}", f"{x(float(text)):.1f},{after:.1f}"]
    points.append(f"{WIDTH - RIGHT},{top}")
    return f'<polyline points="{" ".join(points)}" fill="none" stroke="{color}" stroke-width="1.6"/>'


def by_fault(times: Mapping[str, Counts]) -> str:
    """Median, p99 and worst of each fault."""
    names = [name for name in sorted(times, key=_order) if times[name]]
    bottom = 10 + ROW * len(names)
    parts = list(_axis(6, bottom))
    for n, name in enumerate(names):
        y = 10 + ROW * n + ROW / 2
        p50, p99, worst = (percentile(times[name], share) for share in (0.5, 0.99, 1.0))
        color = COLORS["without faults" if name == "none" else "with faults"]
        parts += [
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{name}</text>',
            f'<line x1="{x(p50):.1f}" x2="{x(worst):.1f}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="2"/>',
            f'<circle cx="{x(p50):.1f}" cy="{y}" r="4" fill="{color}"/>',
            f'<line x1="{x(p99):.1f}" x2="{x(p99):.1f}" y1="{y - 5}" y2="{y + 5}" stroke="{color}" stroke-width="2"/>',
            f'<text x="{WIDTH - RIGHT + 6}" y="{y + 4:.1f}">{shown(worst)} of {sum(times[name].values())}</text>',
        ]
    return _svg(bottom + 50, parts)


def _order(name: str) -> int:
    return int(name[1:]) if name[1:].isdigit() else 0


def _axis(top: float, bottom: float) -> Iterator[str]:
    seconds = FIRST
    while seconds <= LAST * 1.01:
        at = x(seconds)
        label = f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1000:g} ms"
        yield f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}" stroke="#cbd5e0" stroke-dasharray="2 3"/>'
        yield f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{label}</text>'
        seconds *= 10
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{bottom + 34}" text-anchor="middle">COMMIT to the last close frame read</text>'


def _svg(height: float, parts: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
