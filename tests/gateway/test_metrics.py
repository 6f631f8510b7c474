"""Metrics: the documented names are the real ones, and a sample moves each by what happened."""

import re
from collections.abc import Mapping
from pathlib import Path

import prometheus_client
import pytest

from gateway import metrics
from gateway.metrics import COUNTERS, GAUGES, Sampler, exposition

DOCUMENTED = Path(__file__).parents[2] / "docs" / "metrics.md"


class Part:
    def __init__(self, **figures: float) -> None:
        self.now = dict(figures)

    def figures(self) -> Mapping[str, float]:
        return self.now


def value(name: str) -> float:
    return prometheus_client.REGISTRY.get_sample_value(name) or 0.0


def test_the_documented_names_are_the_real_ones() -> None:
    documented = set(re.findall(r"`(wardgate_\w+)", DOCUMENTED.read_text()))
    real = {f"wardgate_{name}_total" for name in COUNTERS} | {f"wardgate_{name}" for name in GAUGES}
    labelled = {
        "wardgate_disconnects_total",
        "wardgate_http_requests_total",
        "wardgate_http_request_seconds",
        "wardgate_close_seconds",
    }
    assert documented == real | labelled


def test_totals_of_all_parts_are_added_and_move_once() -> None:
    before = value("wardgate_commands_total")
    one, two = Part(commands=3, connections=5), Part(commands=4)
    sampler = Sampler([one, two])
    sampler.sample()
    sampler.sample()
    assert value("wardgate_commands_total") - before == 7
    assert value("wardgate_connections") == 5
    one.now["commands"], one.now["connections"] = 10, 2
    sampler.sample()
    assert value("wardgate_commands_total") - before == 14
    assert value("wardgate_connections") == 2


def test_a_mistyped_name_does_not_pass() -> None:
    with pytest.raises(KeyError, match="comands"):
        Sampler([Part(comands=1)]).sample()


def test_the_exposition_is_text_with_our_names() -> None:
    metrics.disconnects.add(4501)
    Sampler([]).sample()
    text = exposition().decode()
    assert 'wardgate_disconnects_total{code="4501"}' in text
    assert "# HELP wardgate_lease_age_seconds" in text


def test_a_client_cannot_make_series_by_inventing_methods() -> None:
    for n in range(50):
        metrics.answered("/made-up", f"METHOD{n}", 405)
    Sampler([]).sample()
    Sampler([]).sample()
    counted = prometheus_client.REGISTRY.get_sample_value(
        "wardgate_http_requests_total", {"route": "/made-up", "method": "other", "status": "405"}
    )
    assert counted == 50


def test_how_long_answers_took_is_told_by_bucket() -> None:
    def bucket(bound: str) -> float:
        return prometheus_client.REGISTRY.get_sample_value("wardgate_http_request_seconds_bucket", {"le": bound}) or 0.0

    name = "wardgate_http_request_seconds"
    before = [bucket("0.001"), bucket("0.3"), bucket("+Inf"), value(f"{name}_sum")]
    for seconds in (0.001, 0.2, 0.2, 60.0):
        metrics.request_seconds.add(seconds)
    Sampler([]).sample()
    Sampler([]).sample()
    after = [bucket("0.001"), bucket("0.3"), bucket("+Inf"), value(f"{name}_sum")]
    assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx([1, 3, 4, 60.401])
