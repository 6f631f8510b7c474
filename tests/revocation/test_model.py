"""The exhaustive model: with every rule no history breaks the promise, and without any one of them some does."""

import pytest

from tests.revocation.model import RULES, WORLDS, Model

FOUND_IN = {
    "gate": "hints and leases",
    "lease": "hints and leases",
    "t0": "hints and leases",
    "head": "hints and leases",
    "gap": "hints and leases",
    "length": "hints and leases",
    "acknowledge after": "hints and leases",
    "registration in the reply": "a process starts and is taken for dead",
    "registration first": "a process starts and is taken for dead",
    "removal": "a process starts and is taken for dead",
    "census after commit": "a process starts and is taken for dead",
    "settled": "a registration is lost",
    "settled in time": "a registration is lost",
    "settled start": "a registration is lost",
    "settled where renewed": "a registration is lost",
    "floor": "connects",
    "check": "connects",
    "check after a refresh": "a refresh moves into another session",
    "unreadable": "a row is of a newer version",
    "position": "tokens outlive a failover",
    "pair and era": "rows are lost",
    "era in the place": "an era is lost",
}
BY_NAME = {world.name: world for world in WORLDS}


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_with_every_rule_no_history_breaks_the_promise(world: object) -> None:
    model = Model(BY_NAME[world.name])  # type: ignore[attr-defined]
    broken = model.walk()
    assert broken is None, broken
    assert model.states > 5_000  # it did go somewhere


@pytest.mark.parametrize("rule", RULES)
def test_without_a_rule_a_history_breaks_it(rule: str) -> None:
    broken = Model(BY_NAME[FOUND_IN[rule]], frozenset({rule})).walk()
    assert broken is not None, f"without {rule!r} nothing breaks"
    assert broken.what.startswith(("I1", "I2"))
    assert 3 <= len(broken.history) <= 13


def test_a_history_is_the_shortest_one() -> None:
    broken = Model(BY_NAME["hints and leases"], frozenset({"gate"})).walk()
    assert broken is not None
    assert broken.history == ["R commits", "tick", "tick"]
