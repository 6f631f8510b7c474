"""Whom the hub writes to, whatever the transport: the outgoing side of one connection, and what a transport owes it.

Not here: what a client may do (client), who hears what (hub), sockets (transports).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from gateway.client import Client, Handshake
from gateway.protocol.codec import Codec
from gateway.protocol.codes import Close

MAX_WRITE = 64 * 1024
"""Bytes of one write, and of one frame joined from several messages (I4)."""


class Encoding(Protocol):
    """One way in which messages reach peers: a codec, and a transport's framing. Shared by all peers of that way."""

    codec: Codec
    ping: bytes

    def frame(self, messages: Sequence[bytes]) -> bytes:
        """At least one message as bytes for the wire."""

    def last(self, close: Close, message: bytes = b"") -> bytes:
        """The end: a `message` push with that data, where there is one, and the close itself."""


class Overseer(Protocol):
    """What a peer and its transport ask of the hub."""

    queue_max_size: int

    def read(self, peer: "Peer") -> bool:
        """7a: may what was just read from `peer` be parsed? False: park it, or drop it if the peer is gone."""

    def park(self, peer: "Peer") -> None:
        """`peer` has raw bytes that wait for the thaw: its `listen` is called then."""

    def writable(self, peer: "Peer") -> None:
        """The transport of `peer` is empty again."""

    def too_slow(self, peer: "Peer") -> None:
        """The backlog of `peer` is over its bound."""

    def close(self, peer: "Peer", close: Close) -> bool:
        """End `peer` for what its client did."""

    def leave(self, peer: "Peer") -> None:
        """The client of `peer` has said goodbye."""

    def lost(self, peer: "Peer") -> None:
        """The transport of `peer` has ended. Once."""

    @property
    def receive(self) -> Callable[["Peer", bytes], None]:
        """What takes a message that `peer` sent."""


def discard(_frame: bytes) -> None:
    """The `write` of a peer that is gone."""


class Peer(Client):
    """The outgoing side of one connection; a transport derives from it.

    `wire` is the transport's own write. `write` is what everybody calls: `wire` while nothing waits on either side,
    `hold` while the transport (`paused`, 7d) or the outbox holds bytes, so that what is said later is heard later;
    `discard` after the end. `home` is the generation that the peer lives in; only the hub's current one counts.
    """

    __slots__ = ("encoding", "held", "home", "hub", "outbox", "paused", "talking", "task", "wire", "write")

    def __init__(
        self,
        id: str,
        *,
        address: str,
        handshake: Handshake | None,
        stale_at: float,
        hub: Overseer,
        encoding: Encoding,
        wire: Callable[[bytes], None] = discard,
    ) -> None:
        super().__init__(id, address=address, handshake=handshake, stale_at=stale_at)
        self.hub = hub
        self.encoding = encoding
        self.home: Any = None
        self.wire = self.write = wire
        self.outbox: list[bytes] | None = None
        self.held = 0
        self.paused = False
        self.talking = False  # stands in the list of those whose outbox the next flush empties
        self.task: asyncio.Task[None] | None = None

    def hold(self, frame: bytes) -> None:
        """Keep `frame` on our side of the gate; over the bound the peer is too slow."""
        if self.outbox is None:
            self.outbox = []
            self.write = self.hold
        self.outbox.append(frame)
        self.held += len(frame)
        if self.held > self.hub.queue_max_size:
            self.hub.too_slow(self)

    def portion(self) -> bytes:
        """What of the outbox goes out in one write; the rest stays. Call it for a peer with an outbox, not paused."""
        outbox = self.outbox or []
        count = size = 0
        for frame in outbox:
            if size + len(frame) > MAX_WRITE:
                break
            size += len(frame)
            count += 1
        if not count:
            out, outbox[0] = outbox[0][:MAX_WRITE], outbox[0][MAX_WRITE:]
            self.held -= MAX_WRITE
            return out
        out = outbox[0] if count == 1 else b"".join(outbox[:count])
        if count == len(outbox):
            self.outbox, self.held = None, 0
            self.write = self.wire
        else:
            del outbox[:count]
            self.held -= size
        return out

    def pause(self) -> None:
        """The transport holds bytes: this peer leaves the fast path."""
        self.paused = True
        if self.home is not None:
            self.write = self.hold

    def unpause(self) -> None:
        """The transport is empty."""
        self.paused = False
        if self.home is None:
            return
        if self.outbox is None:
            self.write = self.wire
        else:
            self.hub.writable(self)

    def silence(self) -> None:
        """Dead: nothing is written any more, and nothing of ours holds on to the transport."""
        self.home = None
        self.write = self.wire = discard
        self.outbox = self.queue = None
        self.held = 0

    # -- what a transport adds

    @property
    def deaf(self) -> bool:
        """Whether we do not read from it for reasons of our own."""
        raise NotImplementedError

    def listen(self) -> None:
        """Go on reading if nothing is against it; what was parked meanwhile is read first."""
        raise NotImplementedError

    def hush(self) -> None:
        """Read no more for now: too many commands wait. `listen` goes on."""
        raise NotImplementedError

    def finish(self, last: bytes) -> None:
        """Write `last` if the transport is empty and wait for the client to go, else abort at once."""
        raise NotImplementedError

    def abort(self) -> None:
        """End the transport now. Nothing for one that has ended."""
        raise NotImplementedError
