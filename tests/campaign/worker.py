"""A worker as the product has it, but for what the campaign needs: `python -m tests.campaign.worker MUTATION FD`.

- one frame a write, so that "one authorised write" (I4) can be counted by whoever receives it;
- SIGUSR1 blocks the event loop for $CAMPAIGN_BLOCK seconds (F9);
- MUTATION ("-": none) takes a rule of the protocol out.
"""

import os
import select
import signal
import sys
from types import FrameType

from gateway import worker
from gateway.peers import Peer

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


def main(arguments: list[str]) -> None:
    """The process."""
    mutation, descriptor = arguments
    Peer.portion = one_frame  # type: ignore[method-assign]
    signal.signal(signal.SIGUSR1, block)
    if mutation != "-":
        from tests.campaign.mutations import MUTATIONS

        MUTATIONS[mutation]()
    worker.main([descriptor])


if __name__ == "__main__":
    main(sys.argv[1:])
