"""A worker as the product has it, but for what the campaign needs: `python -m tests.campaign.worker MUTATION FD`.

- one frame a write, so that "one authorised write" (I4) can be counted by whoever receives it;
- SIGUSR1 blocks the event loop for $CAMPAIGN_BLOCK seconds (F9);
- SIGUSR2 has requests cancelled wherever they wait, for CANCELLING seconds (F22);
- $CAMPAIGN_VERSION n reads rows that ask for reader version n: with 2 it is the version after this one (F21);
- signing keys are read once a second, so that a rotation fits into a run (F25);
- MUTATION ("-": none) takes a rule of the protocol out.
"""

import asyncio
import os
import random
import select
import signal
import sys
from types import FrameType
from typing import Any

import auth.keys
from gateway import worker
from gateway.peers import Peer
from sessions import log, registration, renewal
from sessions.model import Kind
from tests.campaign.schedule import CANCELLING, NEW_KIND

_portion = Peer.portion


def one_frame(self: Peer) -> bytes:
    """The first frame alone; the others stay in the outbox."""
    outbox = self.outbox or []
    if len(outbox) <= 1:
        return _portion(self)
    rest, self.outbox = outbox[1:], outbox[:1]
    out = _portion(self)
    self.outbox = [*(self.outbox or []), *rest]
    self.held = sum(map(len, self.outbox))
    self.write = self.hold
    return out


def block(_number: int, _frame: FrameType | None) -> None:
    """A blocking call in the loop; not `time.sleep`, which fails under libfaketime when the clock is set back."""
    select.select([], [], [], float(os.environ.get("CAMPAIGN_BLOCK", "2")))


async def cancel() -> None:
    """Requests end somewhere in the middle, each at most once."""
    hit: set[asyncio.Task[Any]] = set()
    end = asyncio.get_running_loop().time() + CANCELLING
    while asyncio.get_running_loop().time() < end:
        for task in asyncio.all_tasks():
            name = getattr(task.get_coro(), "__qualname__", "")
            if name == "RequestHandler._handle_request" and task not in hit and random.random() < 0.2:
                hit.add(task)
                task.cancel()
        await asyncio.sleep(random.uniform(0.0, 0.004))


def cancels_when_told() -> None:
    """SIGUSR2, as soon as there is a loop."""
    serve, kept = worker.Worker._serve, set[asyncio.Task[None]]()

    async def and_cancel(self: worker.Worker, setup: Any) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR2, lambda: kept.add(loop.create_task(cancel())))
        await serve(self, setup)

    worker.Worker._serve = and_cancel  # type: ignore[method-assign]


def reads(version: int) -> None:
    """Rows that ask for this reader can be read; those of the new kind change nothing."""
    row_of = log.row_of

    def newer(record: Any) -> Any:
        if record["kind"] == NEW_KIND and record["min_version"] <= version:
            record = {**record, "kind": Kind.API_KEY, "min_version": 1}
        return row_of(record)

    log.row_of = newer
    for module, name, value in ((registration, "READER_VERSION", version), (renewal, "row_of", newer)):
        setattr(module, name, value)


def main(arguments: list[str]) -> None:
    """The process."""
    mutation, descriptor = arguments
    Peer.portion = one_frame  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, block)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # until it serves
    cancels_when_told()
    auth.keys.RELOAD = 1.0
    if (version := int(os.environ.get("CAMPAIGN_VERSION", "1"))) > 1:
        reads(version)
    if mutation != "-":
        from tests.campaign.mutations import MUTATIONS

        MUTATIONS[mutation]()
    worker.main([descriptor])


if __name__ == "__main__":
    main(sys.argv[1:])
