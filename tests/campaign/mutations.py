"""Rules of the protocol taken out, one at a time, to see that the campaign notices. Applied inside a worker before it
runs; the product has no switch for them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gateway.driver import Driver
from gateway.gate import Gate
from gateway.peers import Peer
from gateway.transports.websocket import WebSocketPeer
from sessions import log, renewal
from sessions.freshness import Freshness
from sessions.lease import Lease, Next, Reply
from sessions.memory import Memory, Place
from sessions.model import Position, Row, Standing


def gate() -> None:
    """The gate is always open."""

    def always(_gate: Gate) -> bool:
        return True

    def nothing(_gate: Gate, now: float) -> None:
        pass

    Gate.open, Gate.freeze = always, nothing  # type: ignore[method-assign,assignment]


def lease() -> None:
    """A lease once granted never ends."""

    def renew(self: Freshness, until: float) -> None:
        if until > 0.0:
            self.until = self.lease_until = math.inf

    Freshness.renew = renew  # type: ignore[method-assign]


def gap() -> None:
    """`applied` moves to whatever row comes, though the one before it is missing."""

    def advance(self: Memory, row: Row, now: float, *, by_lease: bool = False) -> bool:
        if row.seq <= self.applied.seq:
            return False
        self._link(row, now)
        return True

    Memory.advance = advance  # type: ignore[method-assign]


def floor_test() -> None:
    """Memory judges positions that it does not reach back to."""

    def covers(self: Memory, position: Position) -> bool:
        return True

    Memory.covers = covers  # type: ignore[method-assign]


def registration_first() -> None:
    """The head is read, and a lease taken on it, before the registration."""
    receive = Lease.receive

    def first_without(self: Lease, reply: Reply, *, sent: float, arrived: float) -> Next:
        if self.head is None:
            reply = msgspec.structs.replace(reply, registered=True)
        return receive(self, reply, sent=sent, arrived=arrived)

    async def later(self: renewal.Renewal) -> None:
        self._registered = True
        await self._renew()

    Lease.receive, renewal.Renewal.first = first_without, later  # type: ignore[method-assign]


def transport_buffer() -> None:
    """Frames wait in the transport's own buffer, behind the gate."""

    def nothing(self: Peer) -> None:
        pass

    Peer.pause = nothing  # type: ignore[method-assign]
    WebSocketPeer.pause_writing = nothing  # type: ignore[method-assign]


def own_lease_length() -> None:
    """This process holds its leases for three times L."""
    receive = Lease.receive

    def longer(self: Lease, reply: Reply, *, sent: float, arrived: float) -> Next:
        reply = msgspec.structs.replace(reply, head=reply.head._replace(lease=3 * reply.head.lease))
        return receive(self, reply, sent=sent, arrived=arrived)

    Lease.receive = longer  # type: ignore[method-assign]


def era() -> None:
    """Rows are known by their numbers alone, and another server start begins no era."""
    read, placed = renewal._reply, log._placed

    def blind(records: Any) -> Reply:
        return msgspec.structs.replace(read(records), pair=True)

    def without(found: Any, drafts: Any) -> tuple[list[Row], str]:
        return placed({**found, "same": True}, drafts)

    async def head(connection: Any) -> Any:
        found = await connection.fetchrow(log._HEAD)
        return Position(found["seq"], found["era_id"].hex), None

    def contains(self: Memory, place: Place) -> bool:
        return place.seq <= self.applied.seq

    def follows(self: Memory, row: Row) -> bool:
        return row.seq == self.applied.seq + 1

    renewal._reply, log._placed, log.head = blind, without, head
    Memory.contains, Memory._follows = contains, follows  # type: ignore[method-assign]


def early_acks() -> None:
    """Acknowledgements count at once after a failover."""

    def settled(self: Lease, now: float) -> bool:
        return True

    Lease.settled = settled  # type: ignore[method-assign]


def block() -> None:
    """9b: what was good when it was read goes live, whatever memory has heard since."""
    try_live = Driver._try_live

    def unjudged(self: Driver, peer: Peer, standing: Standing) -> Any:
        revocations = self._parts.revocations
        judge = revocations.judge_standing
        revocations.judge_standing = lambda standing: None  # type: ignore[method-assign]
        try:
            return try_live(self, peer, standing)
        finally:
            revocations.judge_standing = judge  # type: ignore[method-assign]

    Driver._try_live = unjudged  # type: ignore[method-assign]


MUTATIONS: Mapping[str, Callable[[], None]] = {
    "gate": gate,
    "lease": lease,
    "gap": gap,
    "floor-test": floor_test,
    "registration-first": registration_first,
    "transport-buffer": transport_buffer,
    "own-lease-length": own_lease_length,
    "era": era,
    "early-acks": early_acks,
    "block": block,
}
