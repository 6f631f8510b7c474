"""A frame handed out in slices while members come and go: everyone gets everything once, in order, and nothing else."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.client import Flag, Subscription
from gateway.lanes import Channel, Index
from gateway.transports.websocket import TEXT
from tests.live.fakes import FakePeer


class Hubless:
    """What a fake peer asks of a hub."""

    queue_max_size = 1 << 30

    def clock(self) -> float:
        return 0.0


def peer(name: str) -> FakePeer:
    return FakePeer(Hubless(), name)  # type: ignore[arg-type]


class Slices(RuleBasedStateMachine):
    """One channel; what each member must hear is kept beside it."""

    @initialize()
    def begin(self) -> None:
        self.channel = Channel("c")
        self.lane = self.channel.lane(TEXT)
        self.count = self.sent = 0
        self.members: dict[str, tuple[FakePeer, Subscription]] = {}
        self.owed: dict[str, list[int]] = {}
        self.heard: dict[str, list[bytes]] = {}

    @rule(quiet=st.booleans())
    def comes(self, quiet: bool) -> None:
        self.count += 1
        member = peer(f"p{self.count}")
        sub = Subscription(member, "c", 0 if quiet else Flag.PUSH)
        member.subs = {"c": sub}
        self.channel.add(sub, member)
        self.members[member.id] = (member, sub)
        self.owed[member.id] = []

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        member, sub = self.members.pop(data.draw(st.sampled_from(sorted(self.members))) if self.members else "")
        assert self.channel.remove(sub, member)
        del self.owed[member.id]

    @precondition(lambda self: self.members)
    @rule(data=st.data())
    def is_brought_forward(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.members)))
        member, sub = self.members[name]
        for frame in self.channel.settle(sub, member):
            member.write(frame)

    @rule()
    def something_is_published(self) -> None:
        self.sent += 1
        message = b'{"n":%d}' % self.sent
        if self.lane.peers:
            self.lane.pending.append(message)
            self.lane.size += len(message)
        for sub in self.channel.waiting:
            assert isinstance(sub.peer, FakePeer)
            sub.peer.write(TEXT.frame((message,)))
        for owed in self.owed.values():
            owed.append(self.sent)

    @rule(count=st.integers(1, 4))
    def a_slice_is_written(self, count: int) -> None:
        lane = self.lane
        if not lane.busy:
            return
        frame = lane.frame or lane.begin()
        part = lane.peers[lane.cursor : lane.cursor + count]
        for member in part:
            member.write(frame)
        lane.cursor += len(part)
        if lane.cursor >= len(lane.peers):
            lane.frame, lane.cursor = None, 0
        if not self.channel.busy:
            self.channel.get_in_step()

    @rule()
    def the_quiet_are_kept_and_the_rest_taken_out(self) -> None:
        for sub in self.channel.take(Flag.PUSH):
            del self.members[sub.peer.id]
            del self.owed[sub.peer.id]

    @invariant()
    def indexes_are_right(self) -> None:
        for n, member in enumerate(self.lane.peers):
            assert member.subs["c"].index == n
        assert self.channel.count == len(self.members)
        assert self.channel.quiet == sum(not sub.flags & Flag.PUSH for _, sub in self.members.values())
        assert 0 <= self.lane.cursor <= len(self.lane.peers)

    @invariant()
    def nobody_hears_twice_or_out_of_order_and_what_is_missing_is_on_its_way(self) -> None:
        for name, (member, sub) in self.members.items():
            heard = [message["n"] for message in member.said]
            owed = self.owed[name]
            assert heard == owed[: len(heard)]
            coming = 0
            if sub.index >= 0:
                for frame in self.lane.due_to(sub):
                    coming += len(list(_numbers(frame)))
            assert heard == owed[: len(owed) - coming]


def _numbers(frame: bytes) -> list[int]:
    from tests.live.wire import messages

    return [message["n"] for message in messages(frame)]


TestSlices = Slices.TestCase
TestSlices.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_what_is_pending_becomes_frames_of_at_most_64_kib() -> None:
    channel = Channel("c")
    lane = channel.lane(TEXT)
    for n in range(300):
        message = b'{"n":%d,"x":"%s"}' % (n, b"x" * 1000)
        lane.pending.append(message)
        lane.size += len(message)
    seen: list[int] = []
    while lane.busy:
        frame = lane.begin()
        assert len(frame) <= 65536
        seen += _numbers(frame)
        lane.frame = None
    assert seen == list(range(300))
    assert lane.size == 0


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.booleans()), max_size=60))
def test_the_index_knows_exactly_who_was_added_and_not_removed(moves: list[tuple[str, int, bool]]) -> None:
    index, peers = Index(), [peer(str(n)) for n in range(6)]
    held: dict[str, set[int]] = {}
    for key, n, add in moves:
        if add:
            index.add(key, peers[n])
            held.setdefault(key, set()).add(n)
        else:
            index.remove(key, peers[n])
            held.get(key, set()).discard(n)
    for key in "ab":
        assert {int(found.id) for found in index.get(key)} == held.get(key, set())
        assert index.count(key) == len(held.get(key, set()))
    assert sorted(index) == sorted(key for key, names in held.items() if names)
