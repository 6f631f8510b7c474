"""What Prometheus sees: every name, its kind and its help text, in two tables.

The parts count in plain integers, because a counter object costs more than a delivery. Once a second `Sampler` reads
their `figures()` and moves the Prometheus objects by the difference. `docs/metrics.md` lists the same names; a test
compares the two. In multi-process mode (`PROMETHEUS_MULTIPROC_DIR`) any process can answer for all.
"""

import os
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Protocol

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

COUNTERS: Mapping[str, str] = {
    "connections_accepted": "Connections that were authenticated and went live",
    "connections_refused": "Connections that ended before they were live",
    "connections_closed": "Live connections that ended, for whatever reason",
    "connections_revoked": "Live connections closed because their session ended",
    "connections_slow": "Connections closed with 3008: the client did not read",
    "commands": "Commands read from clients",
    "commands_failed": "Commands answered with an error",
    "publications": "Publications that this node delivered to its hub",
    "deliveries": "Frames handed to the kernel for a publication, join or leave",
    "bytes_written": "Bytes handed to the kernel for clients",
    "pongs_missed": "Connections closed with 3012",
    "positions_lost": "Channels whose subscribers were told to recover",
    "rows_applied": "Rows of the revocation log applied",
    "hints_received": "Hints of the revocation log that came over Redis",
    "hints_rejected": "Hints that were malformed or forged",
    "lease_renewals": "Lease renewals that succeeded",
    "lease_failures": "Lease renewals that failed",
    "freezes": "Times that this node froze",
    "clock_steps": "Steps of the database's clock against ours of more than 2 s",
    "invariant_violations": "Live connections found whose session the log had ended before. Each is closed",
    "sessions_reconciled": "Sessions of live connections that were compared with the database",
    "commits_lost": "Times that rows of the log which this node had applied were gone (a failover); they are put back",
    "processes_removed": "Dead processes whose registration this node removed",
    "bus_reconnects": "Times that the pub/sub connection was made again",
    "bus_malformed": "Frames on the bus that could not be read",
    "jobs_done": "Jobs that were done",
    "jobs_failed": "Attempts at a job that failed",
    "challenges_required": "Attempts that were answered with a challenge to solve, the first or another one",
    "challenges_solved": "Answers to challenges that the verifier took",
    "challenges_refused": "Answers to challenges that the verifier did not take",
    "challenges_unverified": "Answers to challenges of which the verifier said nothing clear; nobody was let through",
    "background_failures": "Background tasks that ended by an error and were started again",
}

Mode = Literal["livesum", "livemax", "livemin"]

GAUGES: Mapping[str, tuple[str, Mode]] = {
    "connections": ("Live connections", "livesum"),
    "channels": ("Channels with a subscriber, counted per node", "livesum"),
    "subscriptions": ("Subscriptions of live connections", "livesum"),
    "live_sessions": ("Sessions with a live connection, counted per node", "livesum"),
    "lease_age_seconds": ("Time since the start of the last renewal that succeeded, of the worst node", "livemax"),
    "applied_lag": ("Rows known but not applied, of the worst node", "livemax"),
    "frozen": ("Nodes that are frozen", "livesum"),
    "policy_serve": ("Nodes that run with sessions.policy = serve", "livesum"),
    "nodes": ("Nodes that run", "livesum"),
    "ready": ("Nodes that are ready", "livesum"),
    "redis_up": ("Nodes whose hints are heard", "livesum"),
    "loop_lag_seconds": ("How late the event loop ran its last timer, of the worst node", "livemax"),
    "hash_queue": ("Password hashes that wait or run", "livesum"),
    "log_lost": ("Nodes that remember rows of the log which the database does not have", "livesum"),
    "jobs_waiting": ("Jobs that wait or are being done, in the whole cluster, up to 100,000", "livemax"),
    "jobs_dead": ("Jobs that were given up and wait for an admin, in the whole cluster", "livemax"),
    "audit_unsealed_seconds": ("Age of the oldest row of the audit that is not sealed yet", "livemax"),
    "receipts_open": ("Receipts that this node is confirming", "livesum"),
}

_PREFIX = "wardgate_"
_counters = {name: Counter(_PREFIX + name, text) for name, text in COUNTERS.items()}
_gauges = {name: Gauge(_PREFIX + name, text, multiprocess_mode=mode) for name, (text, mode) in GAUGES.items()}
close_seconds = Histogram(
    _PREFIX + "close_seconds",
    "Time from the commit of a revocation to its taking effect on this node: its connections are out of every list",
    buckets=(0.005, 0.02, 0.05, 0.15, 0.5, 1.5, 5.25, 15),
)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Tally:
    """Counts by labels, in a dict that `sample` reads. Nobody outside may choose the labels: each is kept for good."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._counter = Counter(_PREFIX + name, text, labels)
        self._counts: dict[tuple[str | int, ...], int] = {}

    def add(self, *labels: str | int) -> None:
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def move(self) -> None:
        """Tell Prometheus what was counted since the last time."""
        counts, self._counts = self._counts, {}
        for labels, count in counts.items():
            self._counter.labels(*labels).inc(count)


class Spread(Histogram):
    """A histogram that is told of many at once, by `sample`."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        super().__init__(_PREFIX + name, text, buckets=bounds)
        self._bounds = (*bounds, float("inf"))
        self._counts, self._total = [0] * len(self._bounds), 0.0

    def add(self, amount: float) -> None:
        self._counts[bisect_left(self._bounds, amount)] += 1
        self._total += amount

    def move(self) -> None:
        """Tell Prometheus what was counted since the last time."""
        counts, self._counts = self._counts, [0] * len(self._bounds)
        total, self._total = self._total, 0.0
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


request_seconds = Spread(
    "http_request_seconds", "Time to answer an HTTP request", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
)
requests = Tally("http_requests", "HTTP requests answered", ["route", "method", "status"])
disconnects = Tally("disconnects", "Closes by us, by code", ["code"])


def answered(route: str, method: str, status: int) -> None:
    """Count a request. A client names the method."""
    requests.add(route, method if method in _METHODS else "other", status)


class Figures(Protocol):
    """A part that counts."""

    def figures(self) -> Mapping[str, float]:
        """Totals since start under names of COUNTERS, and current values under names of GAUGES."""


class Sampler:
    """Moves the Prometheus objects to where the parts' figures are."""

    def __init__(self, parts: Iterable[Figures]) -> None:
        self.parts = tuple(parts)
        self._seen: dict[str, float] = {}

    def sample(self) -> None:
        requests.move()
        request_seconds.move()
        disconnects.move()
        totals: dict[str, float] = {}
        for part in self.parts:
            for name, value in part.figures().items():
                totals[name] = totals.get(name, 0) + value
        for name, value in totals.items():
            if name in _gauges:
                _gauges[name].set(value)
            elif value > self._seen.get(name, 0):
                _counters[name].inc(value - self._seen.get(name, 0))
                self._seen[name] = value


def exposition() -> bytes:
    """The text format, over all processes where there are several."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return prometheus_client.generate_latest(registry)
    return prometheus_client.generate_latest()
