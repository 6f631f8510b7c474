"""A history as a person reads it: lines of text, and a picture with one row a node, fault and violation."""

from collections.abc import Iterable, Iterator
from html import escape

from tests.campaign.checker import Checker, Violation
from tests.campaign.history import (
    Answered,
    Closed,
    Dialled,
    Event,
    Failover,
    FaultBegan,
    FaultEnded,
    Frame,
    History,
    HungUp,
    LoggedIn,
    Quiet,
    Revoked,
    Revoking,
)

AROUND = 3.0
"""Seconds around a violation in which frames are listed too."""


def text(history: History, violations: Iterable[Violation]) -> str:
    """Deeds and faults of the whole run; frames near the first violation, of its connections."""
    violations = list(violations)
    began = min((event.at for event in history.events), default=0.0)
    lines = [(event.at, line) for event in history.events if (line := _line(event, violations)) is not None]
    lines += [(violation.at, f"!!! {violation.rule}: {violation.what}") for violation in violations[:50]]
    head = f"L = {history.lease:g} s, d = {history.drift:g} s, F = {history.hold:g} s; {len(violations)} violations\n"
    return head + "".join(f"{at - began:9.4f}  {line}\n" for at, line in sorted(lines, key=lambda pair: pair[0]))


def _line(event: Event, violations: list[Violation]) -> str | None:
    match event:
        case FaultBegan():
            return f"=== fault {event.name} #{event.id} {event.note}"
        case FaultEnded():
            return f"=== fault #{event.id} ends"
        case Failover():
            return f"=== failover; what the last {event.at - event.since:.2f} s did may be lost"
        case LoggedIn():
            return f"login of {event.user}: {event.sid}"
        case Revoking():
            return f"--> #{event.id} {event.what} {event.reason} ends {', '.join(sorted(event.sids)) or '-'}"
        case Revoked():
            return f"<-- #{event.id} {event.state} {event.by}"
        case Dialled():
            return f"connection {event.conn} of {event.sid} to node {event.node}"
        case Closed():
            return f"connection {event.conn} closed: {event.code} {event.reason}"
        case HungUp():
            return f"connection {event.conn} hung up by its client"
        case Answered() if 200 <= event.status < 300:
            return f"node {event.node} answers {event.status} to {event.sid}"
        case Frame() if violations and abs(event.at - violations[0].at) < AROUND:
            if f"connection {event.conn}" in violations[0].what:
                return (
                    f"connection {event.conn} hears {event.kind}, caused {(event.at - event.cause) * 1000:.1f} ms ago"
                )
            return None
        case Quiet():
            return "=== quiet"
        case _:
            return None


WIDTH, ROW, LEFT = 1000, 18, 130


def svg(history: History, violations: Iterable[Violation]) -> str:
    """Faults as bars, revocations, closes and violations as ticks."""
    began = min((event.at for event in history.events), default=0.0)
    ended = max((event.at for event in history.events), default=1.0)
    scale = (WIDTH - LEFT - 10) / max(0.001, ended - began)

    def x(at: float) -> float:
        return LEFT + (at - began) * scale

    checker = Checker(history)
    names = sorted({span.began.name for span in checker.faults})
    rows = [*names, "revoked", "closed", "violation"]
    parts = list(_labels(rows))
    for span in checker.faults:
        y = rows.index(span.began.name) * ROW + 4
        wide = max(1.5, (span.end - span.began.at) * scale)
        title = escape(f"{span.began.name} {span.began.note}")
        parts.append(
            f'<rect x="{x(span.began.at):.1f}" y="{y}" width="{wide:.1f}" height="{ROW - 6}" fill="#d9822b">'
            f"<title>{title}</title></rect>"
        )
    parts += _ticks((x(r.asked.at) for r in checker.revocations.values()), rows.index("revoked"), "#2b6cb0")
    closes = (x(c.end.at) for c in checker.connections.values() if isinstance(c.end, Closed))
    parts += _ticks(closes, rows.index("closed"), "#718096")
    parts += _ticks((x(v.at) for v in violations), rows.index("violation"), "#c53030")
    height = len(rows) * ROW + 24
    parts.append(f'<text x="{LEFT}" y="{height - 6}">0 s</text>')
    parts.append(f'<text x="{WIDTH - 10}" y="{height - 6}" text-anchor="end">{ended - began:.1f} s</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="11">{"".join(parts)}</svg>\n'
    )


def _labels(rows: list[str]) -> Iterator[str]:
    for number, name in enumerate(rows):
        yield f'<text x="4" y="{number * ROW + 14}">{escape(name)}</text>'
        y = number * ROW + 17
        yield f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y}" y2="{y}" stroke="#e2e8f0"/>'


def _ticks(places: Iterable[float], row: int, color: str) -> Iterator[str]:
    for place in places:
        top = row * ROW + 3
        yield f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{top}" y2="{top + ROW - 5}" stroke="{color}"/>'
