"""WHO HEARS WHAT, NOW, on this node: channel, session and user to peers; one encoding for all; dying is removal.

Synchronous. A publication is encoded once per encoding and waits with its channel for the flush. A peer that dies is
taken out of every list, so nothing asks per recipient whether it lives. What a client may do is not decided here, and
Redis and PostgreSQL are not known here. Letters in comments are the duties of docs/revocation.md.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from random import random
from typing import Any

import msgspec
import structlog

from config.http import rfc3339
from gateway import metrics
from gateway.client import DUE_CLOSE, NO_SUBS, Due, Flag, Phase, Subscription
from gateway.deadlines import Deadlines, Wheel
from gateway.flush import Flush
from gateway.gate import SLICE, WAIT, Chores, Gate, Lease, spread
from gateway.lanes import UNKNOWN, Channel, Generation
from gateway.peers import MAX_WRITE, Encoding, Peer
from gateway.protocol.codec import Codec
from gateway.protocol.codes import (
    CONNECTION_INSUFFICIENT_STATE,
    INAPPROPRIATE_PROTOCOL,
    INSUFFICIENT_STATE,
    NO_PONG,
    NOT_CURRENT,
    SLOW,
    STATE_INVALIDATED,
    Close,
    NotJson,
    Unsubscribe,
    cut,
)
from gateway.protocol.commands import ClientInfo, Publication
from sessions.model import Ended, Kind, Row

log = structlog.get_logger(__name__)

AT_ONCE = 96
"""So many peers are closed in one synchronous step; more are taken out in one and told in slices."""
ABORT_AFTER = 0.25
"""Seconds that a closing peer has to take its close frame (8a)."""
GRACE = 25.0
"""Seconds after a thaw for deadlines that fell into the freeze (10c)."""
BACKLOG = 64 * 1024 * 1024
"""Bytes that all channels together may hold back while frozen."""
TICK = 0.25
JITTER = 5.0
"""Seconds over which a node that gives up being current spreads its closes (10d)."""


class Gone(Exception):
    """The peer died while something was done for it: nothing more may leave."""


class Hub:
    """One per process. The callbacks are set by the node before the first peer comes; none of them may raise."""

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        lease: Lease,
        queue_max_size: int,
        ping_interval: float,
        pong_timeout: float,
        hold: float,
        max_hold: float,
    ) -> None:
        self.clock = clock
        self.queue_max_size = queue_max_size
        self.gate = Gate(clock, lease)
        self.deadlines: Deadlines[Peer] = Deadlines()
        self._ping = (ping_interval, pong_timeout)
        self._hold, self._max_hold = hold, max_hold
        self.current = self._generation()
        self.total = 0  # open connections
        self.emptied = asyncio.Event()
        self.flush = Flush(self.gate, lambda: self.current, self._before_flush, self._after_flush)
        self.chores = Chores()
        self._backlog = 0
        self._slow: list[Peer] = []
        self._closing: deque[tuple[float, Peer]] = deque()
        self._abort_timer: asyncio.TimerHandle | None = None
        self._tick_timer: asyncio.TimerHandle | None = None
        self._gave_up = False
        self._counts = dict.fromkeys(_COUNTS, 0)
        self.receive: Callable[[Peer, bytes], None] = lambda peer, payload: None
        self.on_due: Callable[[Peer, Due], None] = lambda peer, due: None
        self.on_left: Callable[[Peer, Subscription], None] = lambda peer, sub: None
        self.on_gone: Callable[[Peer, Sequence[Subscription]], None] = lambda peer, subs: None
        self.on_empty: Callable[[str], None] = lambda channel: None
        self.on_lost: Callable[[Peer], None] = lambda peer: None
        self.others_fresh: Callable[[], bool] = lambda: False

    def _generation(self) -> Generation:
        return Generation(Wheel(*self._ping, self.clock(), random))

    def start(self) -> None:
        """Begin to tick."""
        self._loop = asyncio.get_running_loop()
        self._tick_timer = self._loop.call_later(self._period, self._tick)

    def stop(self) -> None:
        """No more ticks; whoever is still closing is aborted."""
        for timer in (self._tick_timer, self._abort_timer):
            if timer is not None:
                timer.cancel()
        self._tick_timer = self._abort_timer = None
        while self._closing:
            self._closing.popleft()[1].abort()

    @property
    def _period(self) -> float:
        return min(TICK, self.current.wheel.step)

    # -- the gate

    async def pass_gate(self, peer: Peer) -> None:
        """7b: right before an effect leaves. Waits through a freeze; raises Gone for a peer that died."""
        while peer.home is self.current:
            if self.gate.open():
                return
            await self.gate.thawed()
        raise Gone

    def read(self, peer: Peer) -> bool:
        """7a: before the frame parser, once a read. False: the bytes are not for now, or never."""
        if not self.gate.frozen and (now := self.clock()) >= self.deadlines.next:
            self._expire(now)
        return peer.home is self.current and self.gate.open()

    def park(self, peer: Peer) -> None:
        """`peer` has raw bytes that are to be read after the thaw (10a)."""
        if peer.home is self.current:
            self.current.parked.append(peer)

    def freeze(self) -> None:
        """For whoever learns first that the lease is over."""
        now = self.clock()
        if now >= self.gate.lease.fresh_until:
            self.gate.freeze(now)
            self._gave_up = False

    def thaw(self) -> None:
        """The lease is fresh again: deadlines get their grace, what was parked is read, what was held is written."""
        now = self.clock()
        if not self.gate.thaw(now):
            return
        home = self.current
        home.wheel.forgive()
        for peer in self.deadlines.pop(now):  # 10c
            peer.grace = now + GRACE
            self.deadlines.set(peer, peer.grace)
        self._backlog = 0
        for channel in [channel for channel in home.channels.values() if channel.overflowed]:
            channel.overflowed = False
            self.lose(channel, Flag.MEMBER)  # 10b
        parked, home.parked = home.parked, []
        self.chores.do(_listening(parked))
        self.flush.soon()

    # -- coming and going

    @property
    def connections(self) -> int:
        """Live ones."""
        return self.current.wheel.size

    def members(self) -> list[Peer]:
        """All live peers."""
        return self.current.wheel.members()

    def lives(self, peer: Peer) -> bool:
        """Whether a peer that went live still does."""
        return peer.home is self.current

    def enter(self, peer: Peer) -> None:
        """A connection that has not said yet who it is."""
        peer.home = self.current
        self.current.strangers.add(peer)
        self.total += 1
        self.emptied.clear()
        self.deadlines.set(peer, peer.next_deadline())

    def go_live(self, peer: Peer) -> None:
        """9b, the last step of the synchronous block: from here on every revocation finds it."""
        home = self.current
        home.strangers.discard(peer)
        peer.phase = Phase.LIVE
        home.index(peer)
        home.wheel.add(peer)
        self._counts["connections_accepted"] += 1
        self.deadlines.set(peer, peer.next_deadline())

    def move(self, peer: Peer, become: Callable[[], None]) -> None:
        """9c: let `become` change who the peer is held to, and index it anew, in one step."""
        home = self.current
        home.unindex(peer)
        become()
        home.index(peer)
        self.deadlines.set(peer, peer.next_deadline())

    def lost(self, peer: Peer) -> None:
        """The transport has ended, by whosever doing. Once for every peer that entered."""
        self.total -= 1
        if not self.total:
            self.emptied.set()
        if peer.address:
            self.on_lost(peer)
        self._remove(peer)

    def leave(self, peer: Peer) -> None:
        """Its client has said goodbye."""
        self._remove(peer)

    def close(self, peer: Peer, close: Close, message: bytes = b"", *, last: bytes = b"") -> bool:
        """8a: out of every list, its task cancelled, its backlog dropped; then the close. False if it was gone.

        An ordinary close (not 45xx) lets out first what had been said before it, if the gate is open.
        """
        if peer.home is None:
            return False
        last = last or peer.encoding.last(Close(close.code, cut(close.reason)), message)
        if close.code < 4500 and peer.outbox and not peer.paused and peer.home is self.current and self.gate.open():
            said = b"".join(peer.outbox)
            if len(said) + len(last) <= MAX_WRITE:
                last = said + last
        self._remove(peer)
        self._finish(peer, close, last)
        return True

    def end(self, peer: Peer, ended: Ended) -> None:
        """Close one peer because its session is over."""
        live = peer.phase is Phase.LIVE
        if self.close(peer, *farewell(ended)) and live:
            self._counts["connections_revoked"] += 1

    def _remove(self, peer: Peer) -> None:
        home = peer.home
        if home is None:
            return
        live = self._silence(peer)
        self.deadlines.clear(peer)
        home.strangers.discard(peer)
        home.wheel.remove(peer)
        if not live:
            return
        home.unindex(peer)
        subs, peer.subs = peer.subs, NO_SUBS
        if home is self.current:
            for sub in subs.values():
                self._take_out(sub, peer)
        self.on_gone(peer, list(subs.values()))

    def _silence(self, peer: Peer) -> bool:
        """The part of dying that nothing may come between. Whether the peer had been live."""
        live = peer.phase is Phase.LIVE
        peer.silence()
        task, peer.task = peer.task, None
        if task is not None and task is not asyncio.current_task(self._loop):
            task.cancel()
        self._counts["connections_closed" if live else "connections_refused"] += 1
        return live

    def _finish(self, peer: Peer, close: Close, last: bytes) -> None:
        metrics.disconnects.add(close.code)
        peer.finish(last)
        self._closing.append((self._loop.time() + ABORT_AFTER, peer))
        if self._abort_timer is None:
            self._abort_timer = self._loop.call_later(ABORT_AFTER, self._abort_late)

    def _abort_late(self) -> None:
        """In slices, as all long work: thousands may have been closed in one go."""
        now = self._loop.time() + 0.001
        for _ in range(min(SLICE, len(self._closing))):
            if self._closing[0][0] > now:
                break
            self._closing.popleft()[1].abort()
        self._abort_timer = (
            self._loop.call_later(max(0.0, self._closing[0][0] - now), self._abort_late) if self._closing else None
        )

    # -- closing many

    def apply(self, row: Row) -> int:
        """Close what a row of the revocation log ends, and count (sessions.revocations.Closer)."""
        home = self.current
        match row.kind:
            case Kind.SESSION:
                victims = home.sids.get(row.sid)
            case Kind.USER:
                victims = [peer for peer in home.users.get(row.subject) if peer.born < row.bound]
            case Kind.RIGHTS if row.sid:  # a session whose secret or assurance changed: its sockets stay
                return 0
            case Kind.RIGHTS:
                stale = [peer for peer in home.users.get(row.subject) if peer.position.seq < row.seq]
                return self.close_all(stale, STATE_INVALIDATED)
            case Kind.EVERYONE:
                return self._end_everyone(row)
            case _:
                return 0
        self._counts["connections_revoked"] += len(victims)
        return self.close_all(victims, *farewell(row.ended), seconds=row.spread_seconds)

    def rebase(self, limit: int) -> None:
        """After a failover that lost the tail of the log: whoever was born in it was born at `limit`."""
        for peer in self.members():
            peer.born = min(peer.born, limit)
        self.current.youngest = min(self.current.youngest, limit)

    def part(self) -> None:
        """Everyone goes and may come back: what they were held to is not known here any more."""
        self.close_all([*self.members(), *self.current.strangers], NOT_CURRENT)

    def close_all(self, peers: Sequence[Peer], close: Close, message: bytes = b"", *, seconds: float = 0.0) -> int:
        """Close `peers`: the gate shuts at once, the frames go out in slices, over `seconds`. How many that were."""
        last = _Last(close, message)
        if len(peers) <= AT_ONCE and not seconds:
            for peer in peers:
                self.close(peer, close, last=last.of(peer.encoding))
            return len(peers)
        for peer in peers:
            self._remove(peer)
        self.chores.do(self._finishing(peers, last, seconds))
        return len(peers)

    def _finishing(self, peers: Sequence[Peer], last: "_Last", seconds: float) -> Iterator[object]:
        """The close frames of peers that are out of every list already."""
        turn = spread(len(peers), seconds)
        for n, peer in enumerate(peers):
            while not turn(n):
                yield WAIT
            self._finish(peer, last.close, last.of(peer.encoding))
            yield None

    def disperse(self, close: Close, seconds: float) -> None:
        """Send everyone away over `seconds`; whose turn has not come is served as before."""
        peers = [*self.members(), *self.current.strangers]
        self.chores.do(self._dispersing(peers, close, seconds))

    def _dispersing(self, peers: list[Peer], close: Close, seconds: float) -> Iterator[object]:
        turn = spread(len(peers), seconds)
        for n, peer in enumerate(peers):
            while not turn(n):
                yield WAIT
            self.close(peer, close)
            yield None

    def _end_everyone(self, row: Row) -> int:
        """8c: leave the generation behind; whom the row spares moves over in the same step."""
        old, new = self.current, self._generation()
        spared = dict.fromkeys(old.sids.get(row.except_sid)) if row.except_sid else {}
        if old.youngest >= row.bound:
            spared |= dict.fromkeys(peer for peer in old.wheel.members() if peer.born >= row.bound)
        for peer in spared:
            old.carry(peer, new)
        for peer in old.strangers:
            peer.home = new
            if peer.talking:
                new.talkers.append(peer)
        new.strangers, old.strangers = old.strangers, set()
        new.parked = [peer for peer in old.parked if peer.home is new]
        self.current = new
        victims = old.wheel.members()
        self._counts["connections_revoked"] += len(victims)
        self.chores.do(self._burying(old, victims, _Last(*farewell(row.ended)), row.spread_seconds))
        self.flush.soon()
        return len(victims)

    def _burying(self, old: Generation, victims: list[Peer], last: "_Last", seconds: float) -> Iterator[object]:
        """Close frames first, housekeeping after: nothing looks at the old generation any more."""
        turn = spread(len(victims), seconds)
        told: list[Peer] = []
        for n, peer in enumerate(victims):
            while not turn(n):
                yield WAIT
            if peer.home is old:
                self._silence(peer)
                self._finish(peer, last.close, last.of(peer.encoding))
                told.append(peer)
                yield None
        for peer in told:
            subs, peer.subs = peer.subs, NO_SUBS
            peer.bucket = -1
            self.deadlines.clear(peer)
            self.on_gone(peer, list(subs.values()))
            yield None
        for name in old.channels:
            if name not in self.current.channels:
                self.on_empty(name)
            yield None

    # -- subscriptions

    def open(self, name: str) -> Channel:
        """The channel, for a subscribe that begins: what is published from now on is kept for it. Pair with `shut`."""
        channels = self.current.channels
        channel = channels.get(name)
        if channel is None:
            channel = channels[name] = Channel(name)
        channel.joining += 1
        return channel

    def shut(self, channel: Channel) -> None:
        """The subscribe has ended, well or not."""
        channel.joining -= 1
        if not channel.joining:
            channel.buffer.clear()
            self._tidy(channel)

    def known(self, channel: Channel) -> bool:
        """Whether a channel from `open` is still the one that publications come to."""
        return self.current.channels.get(channel.name) is channel

    def subscribe(self, channel: Channel, sub: Subscription, peer: Peer) -> None:
        """Go live in a channel from `open`: what comes from now on, above `sub.start`, is for it.

        Its subscribe reply must have been sent before, in the same synchronous step.
        """
        if isinstance(peer.subs, dict):
            peer.subs[sub.channel] = sub
        else:
            peer.subs = {sub.channel: sub}
        channel.add(sub, peer)
        self.deadlines.set(peer, peer.next_deadline())

    def unsubscribe(self, peer: Peer, sub: Subscription, push: Unsubscribe | None = None) -> None:
        """Out of the channel, and told so with `push`. Nothing for a subscription that is over."""
        if peer.subs.get(sub.channel) is not sub:
            return
        self._take_out(sub, peer)
        del peer.subs[sub.channel]  # type: ignore[attr-defined]  # it holds something, so it is a dict
        if push is not None:
            self.send(peer, peer.encoding.codec.unsubscribe(sub.channel, push.code, push.reason))
        self.on_left(peer, sub)

    def _take_out(self, sub: Subscription, peer: Peer) -> None:
        channel = self.current.channels.get(sub.channel)
        if channel is not None and channel.remove(sub, peer):
            self._tidy(channel)

    def _tidy(self, channel: Channel) -> None:
        if not channel.count and not channel.joining and self.known(channel):
            del self.current.channels[channel.name]
            channel.drop()
            self.on_empty(channel.name)

    def lose(self, channel: Channel, flag: int = Flag.POSITIONED) -> None:
        """The place in the stream is lost: members with `flag` hear nothing more, and are told to recover."""
        victims = channel.take(flag)
        channel.offset = UNKNOWN
        if victims:
            self._counts["positions_lost"] += 1
            self.chores.do(self._telling(victims))
        self._tidy(channel)

    def _telling(self, victims: list[Subscription]) -> Iterator[object]:
        for sub in victims:
            peer = sub.peer
            if isinstance(peer, Peer) and peer.home is self.current and peer.subs.get(sub.channel) is sub:
                if sub.flags & Flag.SERVER:
                    self.close(peer, CONNECTION_INSUFFICIENT_STATE)
                else:
                    self.unsubscribe(peer, sub, INSUFFICIENT_STATE)
            yield None

    # -- what is heard

    def publication(self, name: str, publication: Publication) -> None:
        """A publication from the bus, for whoever is subscribed."""
        channel = self.current.channels.get(name)
        if channel is None:
            return
        self._counts["publications"] += 1
        if publication.offset and not self._advance(channel, publication):
            return
        self._hand(channel, lambda codec: codec.pub(name, publication), publication.offset)

    def _advance(self, channel: Channel, publication: Publication) -> bool:
        """Follow the stream: False for what was heard already. A gap costs positioned members their place."""
        if channel.joining:
            channel.buffer.append(publication)
        if channel.offset != UNKNOWN:
            same = publication.epoch == channel.epoch
            if same and publication.offset <= channel.offset:
                return False
            if channel.positioned and not (same and publication.offset == channel.offset + 1):
                self.lose(channel)
        channel.offset, channel.epoch = publication.offset, publication.epoch
        return True

    def joined(self, name: str, info: ClientInfo) -> None:
        """Somebody came, on any node."""
        self._hand_presence(name, lambda codec: codec.join(name, info))

    def left(self, name: str, info: ClientInfo) -> None:
        """Somebody went, on any node."""
        self._hand_presence(name, lambda codec: codec.leave(name, info))

    def _hand(self, channel: Channel, encode: Callable[[Codec], bytes], offset: int = 0) -> None:
        """Put one message on its way to all members: encoded once per encoding, written by the flush."""
        if channel.overflowed:
            return
        for lane in channel.lanes:
            if not lane.peers:
                continue
            try:
                message = encode(lane.encoding.codec)
            except NotJson:
                self.close_all(list(lane.peers), INAPPROPRIATE_PROTOCOL)
                continue
            lane.pending.append(message)
            lane.size += len(message)
            if self.gate.frozen:
                self._backlog += len(message)
            if lane.size > self.queue_max_size or self._backlog > BACKLOG:
                self._overflow(channel)
                return
        for sub in list(channel.waiting):
            if not offset or offset > sub.start:
                self._tell(sub, encode)
        self.current.touch(channel)
        self.flush.soon()

    def _hand_presence(self, name: str, encode: Callable[[Codec], bytes]) -> None:
        channel = self.current.channels.get(name)
        if channel is None or channel.quiet == channel.count:
            return
        if not channel.quiet:
            self._hand(channel, encode)
            return
        subs = [peer.subs[name] for lane in channel.lanes for peer in lane.peers]
        for sub in subs + channel.waiting:
            if sub.flags & Flag.PUSH:
                self._tell(sub, encode)

    def _tell(self, sub: Subscription, encode: Callable[[Codec], bytes]) -> None:
        peer = sub.peer
        if isinstance(peer, Peer):
            try:
                self.send(peer, encode(peer.encoding.codec))
            except NotJson:
                self.close(peer, INAPPROPRIATE_PROTOCOL)

    def _overflow(self, channel: Channel) -> None:
        """More is on its way than may be: told at the thaw (10b), or at once."""
        self._backlog = max(0, self._backlog - channel.drop())
        if self.gate.frozen:
            channel.overflowed = True
        else:
            self.lose(channel, Flag.MEMBER)

    def send(self, peer: Peer, message: bytes) -> None:
        """One message for one peer, with the next flush. Nothing for a peer that is gone."""
        if peer.home is self.current:
            peer.hold(peer.encoding.frame((message,)))
            self.writable(peer)

    def settle(self, peer: Peer, name: str) -> None:
        """Bring forward what a channel has on its way to `peer`, so that what is sent next comes after it."""
        sub, channel = peer.subs.get(name), self.current.channels.get(name)
        if sub is not None and channel is not None:
            for frame in channel.settle(sub, peer):
                peer.hold(frame)
            self.writable(peer)

    def writable(self, peer: Peer) -> None:
        """What waits in the outbox of `peer` goes out with the next flush, unless its transport holds bytes."""
        if peer.outbox and not peer.paused and peer.home is self.current and self.current.talk(peer):
            self.flush.soon()

    def too_slow(self, peer: Peer) -> None:
        """Close with 3008, but not in the middle of a flush."""
        if not self._slow:
            self._loop.call_soon(self._close_slow)
        self._slow.append(peer)

    def _close_slow(self) -> None:
        slow, self._slow = self._slow, []
        for peer in slow:
            if self.close(peer, SLOW):
                self._counts["connections_slow"] += 1

    # -- time

    def _before_flush(self) -> None:
        now = self.clock()
        if now >= self.deadlines.next:
            self._expire(now)

    def _after_flush(self) -> None:
        if self._slow:
            self._close_slow()

    def _expire(self, now: float) -> None:
        for peer in self.deadlines.pop(now):
            if peer.home is not self.current:
                continue
            for due in peer.due(now):
                if due.kind == DUE_CLOSE and due.close is not None:
                    self.close(peer, due.close)
                else:
                    self.on_due(peer, due)
            if peer.home is self.current:
                self.deadlines.set(peer, peer.next_deadline())

    def _tick(self) -> None:
        self._tick_timer = self._loop.call_later(self._period, self._tick)
        try:
            self.tick()
        except Exception:
            log.exception("hub_tick_failed")

    def tick(self) -> None:
        """What must happen also when no bytes pass: freeze and thaw, pings, deadlines."""
        if self.gate.frozen:
            self.thaw()
        current = self.gate.open()
        now = self.clock()
        ping, overdue = self.current.wheel.turn(now)
        for peer in ping:
            (peer.hold if peer.paused else peer.wire)(peer.encoding.ping)
        if not current:
            self._hold_on(now)
            return
        for peer in overdue:
            if peer.pings and not peer.deaf and self.close(peer, NO_PONG):
                self._counts["pongs_missed"] += 1
        if now >= self.deadlines.next:
            self._expire(now)

    def _hold_on(self, now: float) -> None:
        """10d: a node that stays frozen sends its peers away, once another is known to be fresh."""
        frozen = now - self.gate.since
        if frozen < self._hold:
            self._gave_up = False
        elif not self._gave_up and (frozen >= self._max_hold or self.others_fresh()):
            self._gave_up = True
            log.error("gave_up_waiting", seconds=round(frozen, 1), connections=self.connections)
            self.disperse(NOT_CURRENT, JITTER)

    # -- figures

    def figures(self) -> Mapping[str, float]:
        home = self.current
        return {
            **self._counts,
            "deliveries": self.flush.deliveries,
            "bytes_written": self.flush.bytes_written,
            "connections": self.connections,
            "channels": len(home.channels),
            "subscriptions": sum(channel.count for channel in home.channels.values()),
            "live_sessions": len(home.sids),
        }


_COUNTS = (
    "connections_accepted",
    "connections_refused",
    "connections_closed",
    "connections_revoked",
    "connections_slow",
    "publications",
    "pongs_missed",
    "positions_lost",
)


def farewell(ended: Ended) -> tuple[Close, bytes]:
    """How a connection is told that its session is over: the close, and the data of the `message` push before it."""
    data: dict[str, Any] = {"type": ended.type, "reason": ended.reason, "message": ended.message}
    if ended.at:
        data["at"] = rfc3339(ended.at)
    return Close(ended.code, ended.close_reason), msgspec.json.encode(data)


class _Last:
    """The last bytes for many peers, made once per encoding."""

    def __init__(self, close: Close, message: bytes) -> None:
        self.close = Close(close.code, cut(close.reason))
        self._message = message
        self._made: dict[int, bytes] = {}

    def of(self, encoding: Encoding) -> bytes:
        made = self._made.get(id(encoding))
        if made is None:
            made = self._made[id(encoding)] = encoding.last(self.close, self._message)
        return made


def _listening(peers: list[Peer]) -> Iterator[object]:
    for peer in peers:
        peer.listen()
        yield None
