"""Taking part in a channel: broker joined, presence told, history read, then live in one synchronous step.

What a subscription gets was decided before (`Wish`). A `Ticket` holds a place in the channel while that is prepared;
once it is ready, reply and going live follow each other without an await, or it is given back and nothing is left.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple

import structlog

from config.redis import Unavailable
from config.tasks import Tasks
from gateway.broker import Broker
from gateway.channels import Channel, Grant
from gateway.client import Flag, Subscription
from gateway.deadlines import NEVER
from gateway.history import History, Stream
from gateway.hub import Gone, Hub
from gateway.lanes import UNKNOWN
from gateway.lanes import Channel as Place
from gateway.peers import Peer
from gateway.presence import Presence
from gateway.protocol.codes import ErrorCode, Refused
from gateway.protocol.commands import ClientInfo, StreamPosition, SubscribeResult
from gateway.recovery import Read, Step, fitting, step

log = structlog.get_logger(__name__)

ATTEMPTS = 3
"""Times that a stream is read for one subscribe: it may begin anew, or run ahead, in between."""

REJECT_UNRECOVERED = 2
"""The bit of a subscribe's `flag` that turns a position that cannot be recovered into error 112."""


class Wish(NamedTuple):
    """One subscription as it was granted.

    `since` is where the client was, if it wants what it missed. `expires_at` is local time, `ttl` seconds for the reply
    (0: does not expire). `flags` are further flags of the subscription.
    """

    channel: Channel
    grant: Grant
    since: tuple[int, str] | None = None
    recovering: bool = False
    strict: bool = False
    info: bytes = b""
    data: bytes = b""
    expires_at: float = NEVER
    ttl: int = 0
    flags: int = 0


class Ticket:
    """A place that is held in a channel while a subscription is prepared."""

    def __init__(self, peer: Peer, wish: Wish, place: Place) -> None:
        self.peer = peer
        self.wish = wish
        self.place = place
        self.present = False
        self.stream: Stream | None = None
        self.step: Step | None = None
        self.used = False

    @property
    def sub(self) -> Subscription:
        wish, grant = self.wish, self.wish.grant
        flags = (
            wish.flags
            | (Flag.POSITIONED if grant.positioned else 0)
            | (Flag.RECOVERABLE if grant.recoverable else 0)
            | (Flag.PRESENCE if grant.presence else 0)
            | (Flag.EMIT if grant.join_leave else 0)
            | (Flag.PUSH if grant.push_join_leave else 0)
        )
        return Subscription(self.peer, self.place.name, flags, wish.info, wish.expires_at)

    def result(self) -> SubscribeResult:
        """What the client is told of it (protocol.md 24, 33, 34)."""
        wish, at = self.wish, self.step
        result = SubscribeResult(expires=wish.ttl > 0, ttl=wish.ttl, data=wish.data, was_recovering=wish.recovering)
        if at is not None:
            result.positioned = True
            result.recoverable = wish.grant.recoverable
            result.epoch = at.epoch
            result.recovered = at.recovered
            result.publications = at.publications
            result.offset = wish.since[0] if at.recovered and wish.since is not None else at.offset
        return result


class Joining:
    """The channels that this node hears, and how peers come into them and go."""

    def __init__(
        self,
        hub: Hub,
        broker: Broker,
        history: History,
        presence: Presence,
        tasks: Tasks,
        *,
        recovery_limit: int,
    ) -> None:
        self._hub = hub
        self._broker = broker
        self._history = history
        self._presence = presence
        self._tasks = tasks
        self._limit = recovery_limit
        self._heard: dict[str, asyncio.Future[None] | None] = {}  # by name; None once the broker brings it
        self._farewells: set[asyncio.Task[None]] = set()
        self._departures: list[tuple[str, Sequence[Subscription], ClientInfo]] = []

    # -- in

    @contextlib.asynccontextmanager
    async def tickets(self, peer: Peer, wishes: Sequence[Wish]) -> AsyncIterator[list[Ticket]]:
        """Ready tickets for all of `wishes`: `enter` them in the block, without an await before or between.

        What was not entered is given back. Raises Refused (112, 100), Gone, Unavailable.
        """
        held = [Ticket(peer, wish, self._hub.open(wish.channel.name)) for wish in wishes]
        try:
            await _all([self._prepare(ticket) for ticket in held])
            for _ in range(ATTEMPTS):
                stale = [ticket for ticket in held if not self._ready(ticket)]
                if not stale:
                    break
                await _all([self._again(ticket) for ticket in stale])
            else:
                raise Refused(ErrorCode.INTERNAL)
            self._fit(held)
            yield held
        finally:
            for ticket in held:
                self._hub.shut(ticket.place)
            self._take_back([ticket for ticket in held if ticket.present and not ticket.used])

    def at_hand(self, peer: Peer, wish: Wish) -> Ticket | None:
        """A ready ticket for a channel that is heard here already, where it takes no more than that: `enter` it before
        anything is awaited. None: ask `tickets`."""
        granted, name = wish.grant, wish.channel.name
        if granted.positioned or granted.presence or granted.join_leave or self._heard.get(name, self) is not None:
            return None
        place = self._hub.current.channels.get(name)
        return None if place is None else Ticket(peer, wish, place)

    def enter(self, ticket: Ticket) -> None:
        """Live from now on. What the ticket's `result` says must have been sent just before."""
        sub = ticket.sub
        if ticket.step is not None:
            sub.start = ticket.step.offset
        ticket.used = True
        self._hub.subscribe(ticket.place, sub, ticket.peer)

    async def announce(self, ticket: Ticket) -> None:
        """Tell the others that it came, after its reply (protocol.md 32)."""
        if ticket.wish.grant.join_leave and ticket.used:
            await self._hub.pass_gate(ticket.peer)
            with contextlib.suppress(Unavailable):
                await self._broker.join(ticket.place.name, self._about(ticket))

    def _about(self, ticket: Ticket) -> ClientInfo:
        peer = ticket.peer
        return ClientInfo(peer.user, peer.id, peer.info, ticket.wish.info)

    async def _prepare(self, ticket: Ticket) -> None:
        await self._listen(ticket.place.name)
        if ticket.wish.grant.presence:
            await self._hub.pass_gate(ticket.peer)
            ticket.present = True  # also when the answer is lost: taking back what is not there does no harm
            await self._presence.add(ticket.place.name, ticket.peer.id, self._about(ticket))
        await self._read(ticket)

    async def _again(self, ticket: Ticket) -> None:
        hub = self._hub
        if ticket.peer.home is not hub.current:
            raise Gone
        if not hub.known(ticket.place):
            hub.shut(ticket.place)
            ticket.place = hub.open(ticket.wish.channel.name)
            await self._listen(ticket.place.name)
        await self._read(ticket)

    async def _read(self, ticket: Ticket) -> None:
        wish, channel = ticket.wish, ticket.wish.channel
        if not wish.grant.positioned:
            return
        if wish.since is None:
            ticket.stream = await self._history.read(channel.name, limit=0, meta_ttl=channel.history_meta_ttl)
        else:
            since = StreamPosition(*wish.since)
            ticket.stream = await self._history.missed(
                channel.name, since, limit=self._limit, meta_ttl=channel.history_meta_ttl
            )

    def _ready(self, ticket: Ticket) -> bool:
        """Whether the ticket can go live now: its channel is the one that is heard, and its place in it is known."""
        place, stream, wish = ticket.place, ticket.stream, ticket.wish
        if not self._hub.known(place):
            return False
        if stream is None:
            return True
        ticket.step = at = step(Read(stream.publications, stream.offset, stream.epoch), place.buffer, wish.since)
        if at is None:
            return False
        if place.offset == UNKNOWN:
            place.offset, place.epoch = at.offset, at.epoch
        elif place.epoch != at.epoch:
            self._hub.lose(place)  # what was read is newer than what the bus has brought
            place.offset, place.epoch = at.offset, at.epoch
        return True

    def _fit(self, tickets: Sequence[Ticket]) -> None:
        """What was missed goes into one reply, which takes no more than half of what the peer's queue may hold."""
        room = self._hub.queue_max_size // 2
        for ticket in tickets:
            if ticket.step is None:
                continue
            ticket.step, room = fitting(ticket.step, room)
            if ticket.wish.strict and ticket.wish.since is not None and not ticket.step.recovered:
                raise Refused(ErrorCode.UNRECOVERABLE_POSITION)

    # -- hearing

    async def _listen(self, name: str) -> None:
        """The broker brings `name`. Many may wait for the same; one that is cancelled cancels no other."""
        if name in self._heard:
            heard = self._heard[name]
            if heard is None:
                return
        else:
            heard = self._heard[name] = asyncio.ensure_future(self._broker.subscribe(name))
            heard.add_done_callback(lambda done: self._told(name, done))
        await asyncio.shield(heard)

    def _told(self, name: str, heard: "asyncio.Future[None]") -> None:
        """Nobody may be left who wanted to hear it."""
        if heard.cancelled() or heard.exception() is not None:
            del self._heard[name]
            return
        self._heard[name] = None
        self.unheard(name)

    def unheard(self, name: str) -> None:
        """The last member here has gone (Hub.on_empty)."""
        if name not in self._hub.current.channels and self._heard.get(name, 0) is None:
            del self._heard[name]
            self._broker.unsubscribe(name)

    async def close(self, timeout: float = 2.0) -> None:
        """Say what is still to be said of those who went, and hear nothing any more."""
        if self._farewells:
            await asyncio.wait(self._farewells, timeout=timeout)
        for heard in self._heard.values():
            if heard is not None:
                heard.cancel()

    # -- out

    def left(self, peer: Peer, sub: Subscription) -> None:
        """A subscription has ended (Hub.on_left)."""
        self._depart(peer, (sub,))

    def gone(self, peer: Peer, subs: Sequence[Subscription]) -> None:
        """A peer has ended (Hub.on_gone)."""
        self._depart(peer, subs)

    def _depart(self, peer: Peer, subs: Sequence[Subscription]) -> None:
        if any(sub.flags & (Flag.PRESENCE | Flag.EMIT) for sub in subs):
            if not self._departures:
                self._later("departures", self._see_off())
            self._departures.append((peer.id, subs, ClientInfo(peer.user, peer.id, peer.info)))

    async def _see_off(self) -> None:
        """Presence and leaves of all who went in this turn of the loop. Redis away: their time runs out by itself."""
        departures, self._departures = self._departures, []
        absent: dict[str, list[str]] = {}
        leaves: list[tuple[str, ClientInfo]] = []
        for client, subs, about in departures:
            for sub in subs:
                if sub.flags & Flag.PRESENCE:
                    absent.setdefault(sub.channel, []).append(client)
                if sub.flags & Flag.EMIT:
                    info = ClientInfo(about.user, about.client, about.conn_info, sub.info)
                    leaves.append((sub.channel, info))
        try:
            if absent:
                await self._presence.remove_all(absent)
            for start in range(0, len(leaves), 256):
                part = leaves[start : start + 256]
                await asyncio.gather(*(self._broker.leave(channel, info) for channel, info in part))
        except Unavailable as error:
            log.info("departures_not_told", why=str(error), clients=len(departures))

    def _take_back(self, tickets: Sequence[Ticket]) -> None:
        """Presence of subscriptions that came to nothing; not where the client is subscribed all the same."""
        absent: dict[str, list[str]] = {}
        for ticket in tickets:
            if ticket.place.name not in ticket.peer.subs:
                absent.setdefault(ticket.place.name, []).append(ticket.peer.id)
        if absent:
            self._later("presence taken back", self._forget_presence(absent))

    def _later(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        task = self._tasks.once(name, work)
        self._farewells.add(task)
        task.add_done_callback(self._farewells.discard)

    async def _forget_presence(self, absent: Mapping[str, Sequence[str]]) -> None:
        with contextlib.suppress(Unavailable):
            await self._presence.remove_all(absent)

    # -- staying

    async def keep_present(self, interval: float) -> None:
        """Prolong everybody's presence, once an interval, a part of them at a time. Runs until it is cancelled."""
        while True:
            members = self._hub.members()
            slices = max(1, min(int(interval), len(members)))
            for n in range(slices):
                await asyncio.sleep(interval / slices)
                try:
                    await self._prolong(members[n::slices])
                except Unavailable as error:
                    log.info("presence_not_prolonged", why=str(error))

    async def _prolong(self, peers: Sequence[Peer]) -> None:
        present: dict[str, dict[str, ClientInfo]] = {}
        for peer in peers:
            if peer.home is not self._hub.current:
                continue
            for sub in peer.subs.values():
                if sub.flags & Flag.PRESENCE:
                    present.setdefault(sub.channel, {})[peer.id] = peer.about(sub)
        if present:
            await self._presence.prolong(present)

    async def keep_positions(self, delay: float, changed: asyncio.Event, meta_ttl: Callable[[str], float]) -> None:
        """Hold every positioned channel to its stream: each `delay` seconds, and at once when `changed` is set."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await changed.wait()
            changed.clear()
            try:
                await self.check_positions(meta_ttl)
            except Unavailable as error:
                log.info("positions_not_checked", why=str(error))

    async def check_positions(self, meta_ttl: Callable[[str], float], patience: float = 1.0) -> None:
        """A channel has lost its place when its stream stays ahead of the bus for `patience` seconds, or is another."""
        places = [place for place in self._hub.current.channels.values() if place.positioned]
        tops = await self._history.tops({place.name: meta_ttl(place.name) for place in places})
        behind = [(place, top) for place in places if (top := tops.get(place.name)) is not None and _behind(place, top)]
        if not behind:
            return
        await asyncio.sleep(patience)
        for place, top in behind:
            if self._hub.known(place) and _behind(place, top):
                log.warning("position_lost", channel=place.name, heard=place.offset, top=top.offset)
                self._hub.lose(place)


def _behind(place: Place, top: StreamPosition) -> bool:
    if place.offset == UNKNOWN:
        return False
    return place.offset < top.offset if place.epoch == top.epoch else True


async def _all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await all, in parallel where there are several; the first error ends the rest and is raised."""
    if len(work) == 1:
        await work[0]
        return
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
