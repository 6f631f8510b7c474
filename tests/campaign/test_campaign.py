"""A short campaign: real processes under faults, clean; and the same without a rule of the protocol, found.

The long one is `make campaign` (docs/guarantee.md).
"""

import pytest

from tests.campaign.run import run
from tests.campaign.schedule import Step, make

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

FAULTS = ("F1", "F6", "F8", "F9", "F10", "F12", "F19")


async def test_under_faults_no_socket_outlives_its_session() -> None:
    outcome = await run(make(2, seconds=14, nodes=2, faults=FAULTS, lease=1.0))
    assert outcome.violations == []
    assert outcome.times, "nothing was revoked that had a connection"


@pytest.mark.parametrize("mutation", ["gate", "lease"])
async def test_a_protocol_without_this_rule_is_found_out(mutation: str) -> None:
    schedule = make(5, seconds=4, nodes=2, faults=("F12",), lease=1.0)
    arrivals = [step for step in schedule.steps if step.at < 2.5]
    stop = Step(2.5, "fault", {"name": "F12", "for": 2.0, "how": "stop"})
    outcome = await run(schedule.only([*arrivals, stop]), mutation, calm=False)
    assert {violation.rule for violation in outcome.violations} >= {"I3"}
