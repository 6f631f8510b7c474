"""What the metrics of a whole worker say, and that whoever looks at them elsewhere asks for what is there."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from gateway.metrics import exposition
from tests.live.conftest import Worker

ROOT = Path(__file__).parents[2]
DASHBOARD, RULES = ROOT / "deploy/grafana/wardgate.json", ROOT / "deploy/prometheus/alerts.yml"


def asked(path: Path) -> set[str]:
    return set(re.findall(r"\bwardgate_[a-z_]+", path.read_text()))


async def test_a_frozen_node_was_counted_twice(worker: Worker) -> None:
    """Two parts told of the same thing; figures of one name are added up."""
    told = Counter(name for part in worker.app.sampler.parts for name in part.figures())
    assert {name for name, times in told.items() if times > 1} == {"background_failures"}


@pytest.mark.parametrize("path", [DASHBOARD, RULES], ids=lambda path: path.name)
async def test_what_is_asked_for_is_documented_and_there(worker: Worker, path: Path) -> None:
    documented = set(re.findall(r"`(wardgate_\w+)", (ROOT / "docs" / "metrics.md").read_text()))
    await worker.connect("7")
    await worker.revoke(kind="user", subject="7")
    worker.app.sampler.sample()
    real = set(re.findall(r"^(wardgate_\w+)", exposition().decode(), re.MULTILINE))
    for name in asked(path):
        assert name.removesuffix("_bucket") in documented
        assert name in real


def test_the_dashboard_shows_what_the_runbooks_speak_of() -> None:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text())
    shown = {panel["title"] for panel in board["panels"]}
    assert {"Lease age", "Applied lag", "Time to close", "Receipts open", "Connections", "Frozen nodes"} <= shown
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert all(target["expr"].count("(") == target["expr"].count(")") for target in panel["targets"])


def test_the_rules_are_whole() -> None:
    sections = (ROOT / "docs" / "runbooks.md").read_text().split("\n## ")[1:]
    told = {section.partition("\n")[0].lower().replace(" ", "-"): section for section in sections}
    rules = RULES.read_text().split("- alert: ")[1:]
    for rule in rules:
        assert re.match(r"Wardgate\w+\n +expr: \S.*\n", rule)
        assert "severity: page" in rule or "severity: warn" in rule
        assert (anchor := re.search(r"runbook: docs/runbooks\.md#(\S+)", rule)) is not None
        assert f"`{rule.partition(chr(10))[0]}`" in told[anchor[1]], "its section names it"
