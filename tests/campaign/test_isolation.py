"""A gateway that is cut off from both servers: what passes in it, and when it closes (docs/guarantee.md)."""

import asyncio
import time

import pytest

from tests.campaign.checker import Checker
from tests.campaign.faults import Faults
from tests.campaign.history import Frame
from tests.campaign.people import People
from tests.campaign.schedule import make
from tests.campaign.world import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

AGAIN = 4.0
"""Seconds in which a gateway reaches PostgreSQL again once it can: a patience of 0.4 L, a pause of 1 s, and room."""


async def test_a_gateway_cut_off_from_both_servers_is_mute_within_the_lease_and_closes_once_it_can_hear() -> None:
    """It cannot know whose session ended, and may not close what is valid (I5): it holds all, and lets nothing pass."""
    schedule = make(1, seconds=5, nodes=2, faults=("F12",), lease=1.0).only([])
    async with running(schedule) as world:
        people = People(world, 3)
        faults = Faults(world, people)
        await people.register()
        ended, spared, _ = people.sessions()
        clients = {session: await people.connect(session, 0, "json") for session in (ended, spared)}
        gone, lives = clients[ended], clients[spared]
        assert gone is not None
        assert lives is not None
        world.keep(people.publish(1))
        world.keep(people.chatter())
        args = {"name": "F11", "for": 5.0, "node": 0, "servers": "both", "how": "hold"}
        fault = world.keep(faults.run(args))
        await asyncio.sleep(0.1)
        await people.revoke(1, {"sid": ended.sid}, [ended])
        bound = time.monotonic() + schedule.lease + schedule.drift
        await asyncio.wait([fault])
        open_at_the_end = not gone.ended.is_set()
        async with asyncio.timeout(AGAIN):
            await gone.ended.wait()
        assert open_at_the_end, "it was told in spite of the fault"
        assert lives.live
        heard = [e.at for e in world.history.events if isinstance(e, Frame) and e.conn == gone.number]
        assert max(heard) < bound
        assert Checker(world.history).violations() == []
        (took,) = Checker(world.history).times()
        assert took.able < AGAIN < took.close
