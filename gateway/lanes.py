"""A channel's members on this node and what is on its way to them; peers by session and user. Data and its invariants.

Taking part and leaving are O(1), also while a frame is handed out in slices. No clock, no gate and no writing here.
"""

from collections import deque
from collections.abc import Iterator

from gateway.client import Flag, Subscription
from gateway.deadlines import Wheel
from gateway.peers import MAX_WRITE, Encoding, Peer
from gateway.protocol.commands import Publication

KEPT = 1024
"""Publications that are kept of a channel while subscribes are under way; one that misses some reads again."""

UNKNOWN = -1
"""The offset of a channel whose place in its stream is not known yet."""


class Lane:
    """The members of a channel that share an encoding, and what is on its way to them.

    `pending` are messages that no flush has begun with, `size` their bytes. `frame` is what a flush is handing out in
    slices: members before `cursor` have it, those from there on have not.
    """

    __slots__ = ("cursor", "encoding", "frame", "peers", "pending", "size")

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding
        self.peers: list[Peer] = []
        self.pending: list[bytes] = []
        self.size = 0
        self.frame: bytes | None = None
        self.cursor = 0

    @property
    def busy(self) -> bool:
        return self.frame is not None or bool(self.pending)

    def add(self, sub: Subscription, peer: Peer) -> None:
        """A new member of an idle lane."""
        sub.index = len(self.peers)
        self.peers.append(peer)

    def remove(self, sub: Subscription) -> None:
        """Swap with the last; while a frame is handed out, both sides of the cursor keep their members."""
        hole = sub.index
        if hole < self.cursor:
            self.cursor -= 1
            self._move(self.cursor, hole, sub.channel)
            hole = self.cursor
        self._move(len(self.peers) - 1, hole, sub.channel)
        self.peers.pop()
        sub.index = -1

    def _move(self, source: int, target: int, channel: str) -> None:
        if source != target:
            moved = self.peers[source]
            self.peers[target] = moved
            moved.subs[channel].index = target

    def thin(self, channel: str, flag: int) -> list[Subscription]:
        """Take out the members with `flag`; they hear nothing more, not even what is pending."""
        out: list[Subscription] = []
        keep: list[Peer] = []
        done = 0
        for n, peer in enumerate(self.peers):
            sub = peer.subs[channel]
            if sub.flags & flag:
                sub.index = -1
                out.append(sub)
                continue
            sub.index = len(keep)
            keep.append(peer)
            done += n < self.cursor
        self.peers, self.cursor = keep, done
        return out

    def begin(self) -> bytes:
        """Make one frame of what is pending, as much as goes into one write."""
        pending = self.pending
        count, size = 1, len(pending[0])
        while count < len(pending) and size + len(pending[count]) + 8 * count < MAX_WRITE - 16:
            size += len(pending[count])
            count += 1
        self.frame = self.encoding.frame(pending[:count])
        del pending[:count]
        self.size -= size
        self.cursor = 0
        return self.frame

    def due_to(self, sub: Subscription) -> list[bytes]:
        """What is on its way to a member and has not reached it, as frames."""
        frames = []
        if self.frame is not None and sub.index >= self.cursor:
            frames.append(self.frame)
        if self.pending:
            frames.append(self.encoding.frame(self.pending))
        return frames

    def drop(self) -> None:
        """Forget what is on its way."""
        self.pending, self.size, self.frame, self.cursor = [], 0, None, 0


class Channel:
    """One channel with members here. `offset` and `epoch` say up to where the bus has brought it."""

    __slots__ = (
        "buffer",
        "count",
        "dirty",
        "epoch",
        "joining",
        "lanes",
        "name",
        "offset",
        "overflowed",
        "positioned",
        "quiet",
        "waiting",
    )

    def __init__(self, name: str, offset: int = UNKNOWN, epoch: str = "") -> None:
        self.name = name
        self.offset = offset
        self.epoch = epoch
        self.lanes: list[Lane] = []
        self.waiting: list[Subscription] = []  # live, but not in step with a lane yet
        self.count = 0
        self.positioned = 0  # members that must not miss a publication
        self.quiet = 0  # members that do not hear of joins and leaves
        self.joining = 0  # subscribes under way
        self.buffer: deque[Publication] = deque(maxlen=KEPT)  # what has come since the first of them began
        self.dirty = False  # stands in the list of those that the next flush looks at
        self.overflowed = False  # more than may be held back came while frozen

    def lane(self, encoding: Encoding) -> Lane:
        """The lane of an encoding, made when it is the first."""
        for lane in self.lanes:
            if lane.encoding is encoding:
                return lane
        lane = Lane(encoding)
        self.lanes.append(lane)
        return lane

    @property
    def busy(self) -> bool:
        return any(lane.busy for lane in self.lanes)

    def add(self, sub: Subscription, peer: Peer) -> None:
        """A new member; what is on its way already is not for it, nor what is at or below its `start`."""
        self._tally(sub, 1)
        lane = self.lane(peer.encoding)
        if lane.busy or self._ahead(sub):
            self.waiting.append(sub)
        else:
            lane.add(sub, peer)

    def remove(self, sub: Subscription, peer: Peer) -> bool:
        """Out; False for one that was taken out before because the channel lost its place."""
        if sub.index >= 0:
            self.lane(peer.encoding).remove(sub)
        elif sub in self.waiting:
            self.waiting.remove(sub)
        else:
            return False
        self._tally(sub, -1)
        return True

    def settle(self, sub: Subscription, peer: Peer) -> list[bytes]:
        """What is on its way to a member, for whoever brings it forward; the member has it then."""
        lane = self.lane(peer.encoding)
        if sub.index < 0 or not lane.busy:
            return []
        frames = lane.due_to(sub)
        lane.remove(sub)
        self.waiting.append(sub)
        return frames

    def get_in_step(self) -> None:
        """All lanes are idle: members that waited for that, or for the bus to come up to them, join their lanes."""
        stay = []
        for sub in self.waiting:
            peer = sub.peer
            if self._ahead(sub) or not isinstance(peer, Peer):
                stay.append(sub)
            else:
                self.lane(peer.encoding).add(sub, peer)
        self.waiting = stay

    def take(self, flag: int) -> list[Subscription]:
        """Take out all members with `flag`: they are told why by whoever calls this."""
        out = [sub for lane in self.lanes for sub in lane.thin(self.name, flag)]
        out += [sub for sub in self.waiting if sub.flags & flag]
        self.waiting = [sub for sub in self.waiting if not sub.flags & flag]
        for sub in out:
            self._tally(sub, -1)
        return out

    def drop(self) -> int:
        """Forget what is on its way to anyone; how many bytes that were."""
        size = sum(lane.size for lane in self.lanes)
        for lane in self.lanes:
            lane.drop()
        return size

    def _ahead(self, sub: Subscription) -> bool:
        """Whether it has read more of the stream than the bus has brought."""
        return sub.start > max(self.offset, 0)

    def _tally(self, sub: Subscription, by: int) -> None:
        self.count += by
        if sub.flags & Flag.POSITIONED:
            self.positioned += by
        if not sub.flags & Flag.PUSH:
            self.quiet += by


class Index:
    """Peers by a key. A key with one peer, the usual case, costs no container."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held: dict[str, Peer | dict[Peer, None]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def add(self, key: str, peer: Peer) -> None:
        held = self._held.get(key)
        if held is None:
            self._held[key] = peer
        elif isinstance(held, dict):
            held[peer] = None
        else:
            self._held[key] = {held: None, peer: None}

    def remove(self, key: str, peer: Peer) -> None:
        held = self._held.get(key)
        if held is peer:
            del self._held[key]
        elif isinstance(held, dict):
            held.pop(peer, None)
            if not held:
                del self._held[key]

    def get(self, key: str) -> list[Peer]:
        """A list of its own."""
        held = self._held.get(key)
        if held is None:
            return []
        return list(held) if isinstance(held, dict) else [held]

    def count(self, key: str) -> int:
        held = self._held.get(key)
        if held is None:
            return 0
        return len(held) if isinstance(held, dict) else 1


class Generation:
    """Everyone who is here. Ending everyone is leaving it behind (8c)."""

    __slots__ = ("channels", "dirty", "parked", "sids", "strangers", "talkers", "users", "wheel", "youngest")

    def __init__(self, wheel: Wheel[Peer]) -> None:
        self.wheel = wheel
        self.channels: dict[str, Channel] = {}
        self.sids = Index()
        self.users = Index()
        self.strangers: set[Peer] = set()  # not authenticated yet
        self.talkers: list[Peer] = []  # an outbox waits for the flush
        self.dirty: deque[Channel] = deque()  # something is on its way
        self.parked: list[Peer] = []  # raw bytes wait for the thaw
        self.youngest = 0  # the greatest `born` that was ever here

    def index(self, peer: Peer) -> None:
        """`peer` can be found by its session and its user; anonymous ones have no user."""
        self.sids.add(peer.sid, peer)
        if peer.user:
            self.users.add(peer.user, peer)
        self.youngest = max(self.youngest, peer.born)

    def unindex(self, peer: Peer) -> None:
        self.sids.remove(peer.sid, peer)
        if peer.user:
            self.users.remove(peer.user, peer)

    def carry(self, peer: Peer, new: "Generation") -> None:
        """Move a peer that is spared, with its channels and what is on its way to it."""
        self.wheel.remove(peer)
        peer.home = new
        peer.talking = False
        new.index(peer)
        new.wheel.add(peer)
        for sub in peer.subs.values():
            before = self.channels.get(sub.channel)
            if before is None or not (sub.index >= 0 or sub in before.waiting):
                continue  # it lost its place and is about to be told
            if sub.index >= 0:
                for frame in before.lane(peer.encoding).due_to(sub):
                    peer.hold(frame)
            channel = new.channels.get(sub.channel)
            if channel is None:
                channel = new.channels[sub.channel] = Channel(sub.channel, before.offset, before.epoch)
            sub.index = -1
            channel.add(sub, peer)
        if peer.outbox and not peer.paused:
            new.talk(peer)

    def talk(self, peer: Peer) -> bool:
        """The flush is to empty the outbox of `peer`; False if it knows that already."""
        if peer.talking:
            return False
        peer.talking = True
        self.talkers.append(peer)
        return True

    def touch(self, channel: Channel) -> None:
        """The flush is to look at `channel`."""
        if not channel.dirty:
            channel.dirty = True
            self.dirty.append(channel)
