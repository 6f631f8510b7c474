"""What the gate costs: the hub's fan-out with it and without it, by turns, in one process over loopback TCP.

    python -m bench.gate [--members 2000] [--rounds 15] [--json]

The product has no switch for the gate. Here the hub gets another one that is always open, and then its own again. A
round is one measurement of each, in the order on, off, off, on, so that what the machine does meanwhile meets both; the
cost is the median over the rounds of the difference, in parts of a delivery without the gate. The lease is fresh for
ever; a look at the clock is the real one.
"""

import argparse
import gc
import json
import os
import resource
import statistics
from collections.abc import Awaitable, Callable

import uvloop

from bench import machine
from bench.fanout_micro import CHANNEL, DATA, Stage, measure, pairs
from config.clock import boottime
from gateway.client import Subscription
from gateway.gate import Gate
from gateway.protocol.commands import Publication

TURNS = 20


class NoGate(Gate):
    """Always open, without a look at anything."""

    __slots__ = ()

    def open(self) -> bool:
        return True


def one_channel(stage: Stage) -> Callable[[], Awaitable[None]]:
    """A publication to everybody."""

    async def turn() -> None:
        expected = stage.hub.flush.deliveries + len(stage.peers)
        stage.hub.publication(CHANNEL, Publication(data=DATA))
        await stage.flushed(expected)

    return turn


def many_channels(stage: Stage) -> Callable[[], Awaitable[None]]:
    """A hundred publications, each to one subscriber and in a turn of the loop of its own: the gate's worst case."""
    names = [f"{CHANNEL}{n}" for n in range(100)]
    for name, peer in zip(names, stage.peers, strict=False):
        place = stage.hub.open(name)
        stage.hub.subscribe(place, Subscription(peer, name, 0), peer)
        stage.hub.shut(place)

    async def turn() -> None:
        for name in names:
            expected = stage.hub.flush.deliveries + 1
            stage.hub.publication(name, Publication(data=DATA))
            await stage.flushed(expected)

    return turn


async def main(members: int, rounds: int) -> dict[str, dict[str, float]]:
    sockets = pairs(members)
    os.sched_setaffinity(0, machine.cores()[0])
    stage = Stage()
    stage.hub.clock = boottime
    own = stage.hub.gate = stage.hub.flush._gate = Gate(boottime, stage.hub.gate.lease)
    none = NoGate(boottime, own.lease)
    await stage.fill(sockets)
    works = {
        f"1 channel, {members:,} subscribers": (one_channel(stage), members),
        "100 channels, 1 subscriber each, a turn each": (many_channels(stage), 100),
    }
    gc.collect()
    gc.freeze()

    async def once(work: Callable[[], Awaitable[None]], units: int, gate: Gate) -> float:
        stage.hub.gate = stage.hub.flush._gate = gate
        return await measure(stage, TURNS, work) / units

    found = {}
    for name, (work, units) in works.items():
        await once(work, units, own)
        with_, without, shares = [], [], []
        for _ in range(rounds):
            on, off = await once(work, units, own), await once(work, units, none)
            off = (off + await once(work, units, none)) / 2
            on = (on + await once(work, units, own)) / 2
            with_.append(on)
            without.append(off)
            shares.append((on - off) / off * 100)
        found[name] = {
            "on": statistics.median(with_),
            "off": statistics.median(without),
            "cost": statistics.median(shares),
        }
    stage.hub.stop()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.gate")
    parser.add_argument("--members", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    seen = uvloop.run(main(chosen.members, chosen.rounds))
    if chosen.json:
        print(json.dumps(seen))
    for name, figures in {} if chosen.json else seen.items():
        print(
            f"{name}: {figures['on']:.3f} us a delivery with it, {figures['off']:.3f} without: {figures['cost']:+.2f} %"
        )
