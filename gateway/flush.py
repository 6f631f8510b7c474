"""One flush a loop turn: what waits for peers goes out, in slices, each behind a look at the clock.

The per-recipient work of a publication is here, and it is a list walk and one `write` of shared bytes. What is written
was encoded before; who is written to is in the lanes.
"""

import asyncio
from collections.abc import Callable

from gateway.gate import SLICE, Gate
from gateway.lanes import Generation, Lane
from gateway.peers import MAX_WRITE, Peer

CHECK = 32
"""Writes between two looks at the clock (7c)."""


class Flush:
    """Between two looks at the clock no socket is written to twice, so a pause in between lets out one write (I4)."""

    __slots__ = ("_after", "_before", "_gate", "_home", "_planned", "bytes_written", "deliveries")

    def __init__(
        self, gate: Gate, home: Callable[[], Generation], before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        """`before` is called in every flush that may write (what is due expires), `after` when it is done."""
        self._gate = gate
        self._home = home
        self._before = before
        self._after = after
        self._planned = False
        self.deliveries = 0
        self.bytes_written = 0

    def soon(self) -> None:
        """Flush at the end of this turn; while frozen at the thaw."""
        if not self._planned and not self._gate.frozen:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        self._planned = False
        if not self._gate.open():
            return
        self._before()
        home = self._home()
        if home.talkers:
            self._talkers(home)
        if home.dirty and not self._gate.frozen:
            self._channels(home)
        self._after()
        if home.talkers or home.dirty:
            self.soon()

    def _talkers(self, home: Generation) -> None:
        """Outboxes: replies, and the backlog of peers whose transport is empty again."""
        batch, home.talkers = home.talkers[:SLICE], home.talkers[SLICE:]
        for n, peer in enumerate(batch):
            if not n % CHECK and not self._gate.open():
                home.talkers = batch[n:] + home.talkers
                return
            peer.talking = False
            if peer.outbox and not peer.paused:
                wire = peer.wire
                portion = peer.portion()
                wire(portion)
                self.bytes_written += len(portion)
                if peer.outbox and not peer.paused:
                    home.talk(peer)

    def _channels(self, home: Generation) -> None:
        """Channels by turns; one that is not done goes on in the next flush, behind the others."""
        dirty, left = home.dirty, SLICE
        for _ in range(len(dirty)):
            channel = dirty[0]
            for lane in channel.lanes:
                left = self._lane(lane, left)
                if left < 0:
                    return
            if channel.busy:
                dirty.rotate(-1)
            else:
                dirty.popleft()
                channel.dirty = False
                if channel.waiting:
                    channel.get_in_step()
            if left == 0:
                return

    def _lane(self, lane: Lane, left: int) -> int:
        """Hand out the lane's frame to as many members as `left` allows. What is left; -1 when the gate is shut."""
        if left <= 0 or not lane.busy:
            return left
        frame = lane.frame or lane.begin()
        peers = lane.peers
        while left > 0 and lane.cursor < len(peers):
            if not self._gate.open():
                return -1
            part = peers[lane.cursor : lane.cursor + min(CHECK, left)]
            if len(frame) <= MAX_WRITE:
                for peer in part:
                    peer.write(frame)
            else:
                self._big(part, frame)
            lane.cursor += len(part)
            left -= len(part)
            self.deliveries += len(part)
            self.bytes_written += len(frame) * len(part)
        if lane.cursor >= len(peers):
            lane.frame, lane.cursor = None, 0
        return left

    def _big(self, peers: list[Peer], frame: bytes) -> None:
        """One message that is more than a write may be goes out in portions, a flush each."""
        home = self._home()
        for peer in peers:
            peer.hold(frame)
            if not peer.paused:
                home.talk(peer)
