"""The hub with a clock and a lease that the test moves. Letters in names are those of docs/revocation.md."""

import asyncio
import json
from collections.abc import Iterator
from itertools import pairwise

import pytest

from gateway.client import Flag
from gateway.flush import CHECK
from gateway.gate import SLICE
from gateway.hub import GRACE, Gone, Hub
from gateway.protocol.codes import FORCE_DISCONNECT, SHUTDOWN
from gateway.protocol.commands import ClientInfo, Publication, PublishResult
from sessions.model import REVOKED, Ended, Kind, Row
from tests.live.conftest import eventually
from tests.live.fakes import FakePeer, World, turns
from tests.live.wire import messages

PUSH, POSITIONED, SERVER = Flag.PUSH, Flag.POSITIONED, Flag.SERVER


@pytest.fixture
async def world() -> Iterator[World]:  # type: ignore[misc]
    world = World()
    yield world
    world.stop()


def row(kind: Kind, *, seq: int = 10, **more: object) -> Row:
    return Row(seq, f"{seq:032x}", f"{seq - 1:032x}", kind, seq, reason="stolen", message="call us", at=1.8e9, **more)  # type: ignore[arg-type]


def pub(n: int, offset: int = 0, epoch: str = "e") -> Publication:
    return Publication(b'{"n":%d}' % n, offset, epoch)


def numbers(peer: FakePeer) -> list[int]:
    return [data["n"] for data in peer.pubs()]


def says(peer: FakePeer, number: int) -> None:
    """A reply to `peer`."""
    assert isinstance(peer.hub, Hub)
    peer.hub.send(peer, peer.encoding.codec.reply(number, PublishResult()))


# -- fan-out


async def test_a_publication_reaches_each_member_once_in_its_own_encoding(world: World) -> None:
    a, b = world.member("c"), world.member("c", binary=True)
    other = world.member("d")
    world.hub.publication("c", pub(1))
    assert a.wrote == []
    await turns()
    assert (numbers(a), numbers(b), numbers(other)) == ([1], [1], [])


async def test_members_of_a_plain_channel_are_in_step_at_once(world: World) -> None:
    world.member("c")
    place = world.hub.current.channels["c"]
    assert len(place.lanes[0].peers) == 1
    assert place.waiting == []


async def test_publications_of_one_turn_share_one_frame_and_one_write(world: World) -> None:
    a = world.member("c")
    for n in range(5):
        world.hub.publication("c", pub(n))
    await turns()
    assert len(a.wrote) == 1
    assert numbers(a) == [0, 1, 2, 3, 4]


async def test_a_big_channel_is_written_in_slices_and_the_loop_has_its_turns(world: World) -> None:
    peers = [world.member("c") for _ in range(SLICE * 2 + 10)]
    world.hub.publication("c", pub(1))
    done = []
    for _ in range(4):
        await turns()
        done.append(sum(bool(peer.wrote) for peer in peers))
    assert done[:3] == [SLICE, SLICE * 2, len(peers)]


async def test_a_reply_does_not_overtake_the_publication_before_it(world: World) -> None:
    peers = [world.member("c") for _ in range(SLICE + 5)]
    last = peers[-1]
    world.hub.publication("c", pub(1))
    await turns()
    assert last.wrote == []
    world.hub.publication("c", pub(2))
    world.hub.settle(last, "c")
    says(last, 7)
    world.hub.publication("c", pub(3))
    await turns(6)
    assert [m.get("id") or m["push"]["pub"]["data"]["n"] for m in last.said] == [1, 2, 7, 3]
    assert all(numbers(peer) == [1, 2, 3] for peer in peers)


async def test_what_was_published_before_a_subscriber_came_is_not_for_it(world: World) -> None:
    a = world.member("c")
    world.hub.publication("c", pub(1))
    b = world.member("c")
    world.hub.publication("c", pub(2))
    await turns(2)
    world.hub.publication("c", pub(3))
    await turns(2)
    assert numbers(a) == [1, 2, 3]
    assert numbers(b) == [2, 3]


async def test_joins_and_leaves_are_for_those_who_asked(world: World) -> None:
    a, b = world.member("c", PUSH), world.member("c", 0)
    world.hub.joined("c", ClientInfo("u", "x"))
    world.hub.left("c", ClientInfo("u", "x"))
    await turns()
    assert [list(m["push"])[1] for m in a.said] == ["join", "leave"]
    assert b.said == []


async def test_the_last_member_closes_the_channel(world: World) -> None:
    a, b = world.member("c"), world.member("c")
    world.hub.unsubscribe(a, a.subs["c"])
    assert world.empty == []
    world.hub.close(b, FORCE_DISCONNECT)
    assert world.empty == ["c"]
    assert world.left == [(a.id, "c")]
    assert world.gone == [b.id]


# -- positions


async def test_a_gap_tells_positioned_members_to_recover_and_others_hear_on(world: World) -> None:
    a, b = world.member("c", POSITIONED), world.member("c", 0)
    server = world.member("c", POSITIONED, SERVER)
    world.hub.publication("c", pub(1, 1))
    await turns()
    world.hub.publication("c", pub(3, 3))
    await turns(3)
    assert numbers(a) == [1]
    assert a.said[-1]["push"]["unsubscribe"]["code"] == 2500
    assert a.subs == {}
    assert numbers(b) == [1, 3]
    assert messages(server.last) == [{"close": [3010, "insufficient state"]}]


async def test_another_epoch_costs_the_place_and_a_repetition_is_not_heard(world: World) -> None:
    a = world.member("c", POSITIONED)
    world.hub.publication("c", pub(1, 1))
    world.hub.publication("c", pub(1, 1))
    world.hub.publication("c", pub(2, 2))
    await turns()
    assert numbers(a) == [1, 2]
    world.hub.publication("c", pub(1, 1, "f"))
    await turns(2)
    assert a.said[-1]["push"]["unsubscribe"]["code"] == 2500


async def test_who_has_read_ahead_of_the_bus_waits_until_it_comes_up(world: World) -> None:
    a = world.member("c", POSITIONED)
    world.hub.publication("c", pub(1, 1))
    await turns()
    b = world.peer()
    world.subscribe(b, "c", POSITIONED, start=3)
    for n in (2, 3, 4, 5):
        world.hub.publication("c", pub(n, n))
        await turns(2)
    assert numbers(a) == [1, 2, 3, 4, 5]
    assert numbers(b) == [4, 5]
    place = world.hub.current.channels["c"]
    assert place.waiting == []


# -- 7: the gate


async def test_7a_nothing_is_read_when_the_lease_is_over(world: World) -> None:
    a = world.peer()
    assert world.hub.read(a)
    world.freeze()
    assert not world.hub.read(a)
    assert world.hub.gate.frozen


async def test_7a_a_deadline_bites_where_bytes_pass_also_with_a_starved_timer(world: World) -> None:
    a = world.peer()
    a.expires_at = world.clock.now() + 5
    world.hub.deadlines.set(a, a.next_deadline())
    world.clock.advance(5)
    assert not world.hub.read(a)
    assert messages(a.last) == [{"close": [3005, "connection expired"]}]


async def test_7b_an_effect_waits_for_the_thaw_and_never_leaves_for_a_dead_peer(world: World) -> None:
    a, b = world.peer(), world.peer()
    world.freeze()
    passing = [asyncio.create_task(world.hub.pass_gate(peer)) for peer in (a, b)]
    await turns(3)
    assert not any(task.done() for task in passing)
    world.hub.close(b, FORCE_DISCONNECT)
    world.renew()
    world.hub.tick()
    await asyncio.wait(passing, timeout=5)
    assert passing[0].exception() is None
    assert isinstance(passing[1].exception(), Gone)


async def test_7b_a_reply_is_written_by_the_flush_behind_the_gate(world: World) -> None:
    a = world.peer()
    says(a, 1)
    world.freeze()
    await turns(3)
    assert a.wrote == []
    world.renew()
    world.hub.thaw()
    await turns(2)
    assert [m["id"] for m in a.said] == [1]


async def test_7c_the_clock_is_read_again_every_32_writes(world: World) -> None:
    peers = [world.member("c") for _ in range(SLICE)]
    world.hub.publication("c", pub(1))
    # The 10th write takes so long that the lease is over.
    tenth = peers[9]
    tenth.wire = tenth.write = lambda data: (tenth.wrote.append(data), world.freeze())  # type: ignore[assignment,func-returns-value]
    await turns(2)
    assert sum(bool(peer.wrote) for peer in peers) == CHECK
    world.renew()
    world.hub.thaw()
    await turns(3)
    assert all(numbers(peer) == [1] for peer in peers)


async def test_7c_i4_no_socket_is_written_twice_between_two_looks_at_the_clock(world: World) -> None:
    a = world.peer()
    for name in ("c", "d", "e"):
        world.subscribe(a, name, PUSH)
        world.hub.publication(name, pub(1))
    says(a, 1)
    a.wire = a.write = lambda data: (a.wrote.append(data), world.freeze())  # type: ignore[assignment,func-returns-value]
    await turns(3)
    assert len(a.wrote) == 1


async def test_7c_the_dead_are_in_no_list(world: World) -> None:
    a, b = world.member("c"), world.member("c")
    world.hub.publication("c", pub(1))
    world.hub.apply(row(Kind.SESSION, sid=a.sid))
    await turns(2)
    assert a.wrote == []
    assert numbers(b) == [1]


async def test_7d_nothing_is_written_while_the_transport_holds_bytes(world: World) -> None:
    a, b = world.member("c", room=1), world.member("c")
    for n in range(4):
        world.hub.publication("c", pub(n))
        await turns(2)
    assert numbers(a) == [0]
    assert a.paused
    a.unclog()
    await turns(2)
    assert numbers(a) == numbers(b) == [0, 1, 2, 3]
    world.hub.publication("c", pub(4))
    await turns(2)
    assert numbers(a)[-1] == 4


async def test_7d_the_backlog_of_a_revoked_session_never_leaves(world: World) -> None:
    a = world.member("c", room=1)
    for n in range(4):
        world.hub.publication("c", pub(n))
        await turns(2)
    world.hub.apply(row(Kind.SESSION, sid=a.sid))
    a.unclog()
    await turns(3)
    assert numbers(a) == [0]
    assert a.ended == "aborted"
    assert a.outbox is None


async def test_a_slow_reader_is_closed_at_the_bound_and_others_go_on() -> None:
    world = World(queue_max_size=10_000)
    slow, good = world.member("c", room=1), world.member("c")
    for n in range(120):
        world.hub.publication("c", Publication(json.dumps({"n": n, "x": "x" * 1000}).encode()))
        await turns(2)
        assert slow.held <= 10_000 + 1100
    assert numbers(good) == list(range(120))
    assert slow.ended == "aborted"
    assert slow.home is None
    assert world.hub.figures()["connections_slow"] == 1
    world.stop()


async def test_a_message_beyond_64_kib_goes_out_in_portions(world: World) -> None:
    a = world.member("c")
    data = json.dumps({"n": 1, "x": "x" * 200_000}).encode()
    world.hub.publication("c", Publication(data))
    await turns(8)
    assert max(map(len, a.wrote)) == 65536
    assert messages(b"".join(a.wrote))[0]["push"]["pub"]["data"] == json.loads(data)


# -- 8: closing


async def test_a_connect_refused_for_a_session_that_is_over_counted_as_a_live_connection_revoked(world: World) -> None:
    over = Ended(REVOKED, "logout")
    refused = FakePeer(world.hub, "refused")
    world.hub.enter(refused)
    world.hub.end(refused, over)
    assert world.hub.figures()["connections_refused"] == 1
    assert world.hub.figures()["connections_revoked"] == 0
    world.hub.end(world.peer(), over)
    assert world.hub.figures()["connections_revoked"] == 1


async def test_8a_the_client_is_told_why_and_then_closed(world: World) -> None:
    a, b = world.member("c", sid="s"), world.member("c", sid="s", binary=True)
    other = world.member("c")
    says(a, 1)
    assert world.hub.apply(row(Kind.SESSION, sid="s")) == 2
    for peer in (a, b):
        push, close = messages(peer.last)
        assert push["push"]["message"]["data"] == {
            "type": "session.revoked",
            "reason": "stolen",
            "message": "call us",
            "at": "2027-01-15T08:00:00.000Z",
        }
        assert close == {"close": [4501, "session revoked: stolen"]}
        assert peer.wrote == []
        assert peer.home is None
    assert other.home is world.hub.current
    assert world.hub.connections == 1
    assert sorted(world.gone) == sorted([a.id, b.id])


async def test_8a_its_task_is_cancelled(world: World) -> None:
    a = world.peer(sid="s")
    a.task = task = asyncio.create_task(asyncio.sleep(60))
    await turns()
    world.hub.apply(row(Kind.SESSION, sid="s"))
    await asyncio.wait([task], timeout=5)
    assert task.cancelled()


async def test_8a_whoever_does_not_go_is_aborted_after_250_ms(world: World) -> None:
    a = world.peer(sid="s")
    world.hub.apply(row(Kind.SESSION, sid="s"))
    assert a.ended == "closing"
    loop = asyncio.get_running_loop()
    began = loop.time()
    await eventually(lambda: a.ended == "aborted")
    assert 0.2 <= loop.time() - began <= 0.5


async def test_8a_a_crowd_that_does_not_go_is_aborted_in_slices_and_the_loop_has_its_turns(world: World) -> None:
    peers = [world.peer() for _ in range(1000)]
    world.hub.apply(row(Kind.EVERYONE, seq=10))
    aborted = [0]
    async with asyncio.timeout(5):
        while aborted[-1] < 1000:
            await turns(1)
            aborted.append(sum(peer.ended == "aborted" for peer in peers))
    assert max(after - before for before, after in pairwise(aborted)) <= 2 * SLICE


async def test_8a_an_ordinary_close_lets_out_what_was_said_before(world: World) -> None:
    a = world.peer()
    says(a, 1)
    world.hub.close(a, FORCE_DISCONNECT)
    assert messages(a.last) == [{"id": 1, "publish": {}}, {"close": [3503, "force disconnect"]}]


async def test_8a_an_ordinary_close_lets_nothing_out_when_the_lease_is_over(world: World) -> None:
    a = world.peer()
    says(a, 1)
    world.freeze()
    world.hub.close(a, FORCE_DISCONNECT)
    assert messages(a.last) == [{"close": [3503, "force disconnect"]}]


async def test_a_users_sessions_end_by_position_not_by_clock(world: World) -> None:
    old, new = world.peer("u", born=9), world.peer("u", born=10)
    assert world.hub.apply(row(Kind.USER, seq=10, subject="u")) == 1
    assert old.ended == "closing"
    assert new.ended == ""


async def test_changed_rights_close_with_3014_whoever_read_them_before(world: World) -> None:
    a = world.peer("u")
    assert world.hub.apply(row(Kind.RIGHTS, seq=3, subject="u")) == 0
    assert world.hub.apply(row(Kind.RIGHTS, seq=10, subject="u")) == 1
    assert messages(a.last) == [{"close": [3014, "state invalidated"]}]


async def test_rows_that_mean_nothing_to_connections_close_none(world: World) -> None:
    world.peer()
    assert world.hub.apply(row(Kind.ERA)) == world.hub.apply(row(Kind.API_KEY, api_key="k")) == 0
    assert world.hub.connections == 1


async def test_8c_everyone_ends_at_once_and_the_spared_live_on(world: World) -> None:
    admin = world.member("c", sid="admin")
    late = world.member("c", born=10)
    peers = [world.member("c") for _ in range(300)]
    stranger = FakePeer(world.hub, "stranger")
    world.hub.enter(stranger)
    world.hub.publication("c", pub(1))
    says(admin, 5)
    assert world.hub.apply(row(Kind.EVERYONE, seq=10, except_sid="admin")) == 300
    # The gate is shut in the same step: nobody of the old generation is read or written any more.
    assert not any(world.hub.read(peer) for peer in peers)
    assert world.hub.read(admin)
    assert world.hub.read(stranger)
    assert world.hub.connections == 2
    world.hub.publication("c", pub(2))
    await turns(12)
    assert all(peer.wrote == [] and messages(peer.last)[-1]["close"][0] == 4501 for peer in peers)
    assert numbers(admin) == numbers(late) == [1, 2]
    assert 5 in [m.get("id") for m in admin.said]
    assert len(world.gone) == 300
    assert world.empty == []
    assert world.hub.close(stranger, SHUTDOWN)


async def test_8c_the_close_frames_are_spread_while_the_gate_shuts_at_once(world: World) -> None:
    peers = [world.member("c") for _ in range(20)]
    assert world.hub.apply(row(Kind.EVERYONE, seq=10, spread_seconds=0.3)) == 20
    assert not any(world.hub.read(peer) for peer in peers)
    assert sum(bool(peer.ended) for peer in peers) < 3
    loop = asyncio.get_running_loop()
    began = loop.time()
    await eventually(lambda: all(peer.ended for peer in peers))
    assert 0.2 <= loop.time() - began <= 0.8
    await eventually(lambda: world.empty == ["c"])


async def test_8c_a_dead_generation_is_not_closed_twice(world: World) -> None:
    peers = [world.member("c"), world.member("c")]
    world.hub.apply(row(Kind.EVERYONE, seq=10, spread_seconds=0.05))
    (waiting,) = [peer for peer in peers if not peer.ended]
    world.hub.lost(waiting)
    await eventually(lambda: len(world.gone) == 2)
    assert waiting.ended == ""
    assert sorted(world.gone) == [peer.id for peer in peers]


async def test_after_a_lost_tail_whoever_was_born_in_it_is_older(world: World) -> None:
    a = world.peer("u", born=20)
    world.hub.rebase(8)
    assert world.hub.apply(row(Kind.USER, seq=10, subject="u")) == 1
    assert a.ended == "closing"


# -- 10: freeze and thaw


async def test_10a_freezing_holds_everything_but_pings(world: World) -> None:
    a = world.member("c")
    world.freeze()
    world.hub.publication("c", pub(1))
    says(a, 1)
    await turns(2)
    assert a.wrote == []
    for _ in range(60):
        world.clock.advance(0.5)
        world.hub.tick()
    assert [m for m in a.said if m] == []
    assert a.said != []
    world.renew()
    world.hub.tick()
    await turns(3)
    assert [m.get("id") or m["push"]["pub"]["data"]["n"] for m in a.said if m] == [1, 1]


async def test_10a_parked_peers_are_heard_at_the_thaw(world: World) -> None:
    a = world.peer()
    world.freeze()
    assert not world.hub.read(a)
    world.hub.park(a)
    world.renew()
    world.hub.tick()
    await turns(2)
    assert a.listened == 1


async def test_10a_a_pong_that_could_not_be_read_costs_nobody_the_connection(world: World) -> None:
    a = world.peer()
    while not a.pings:
        world.clock.advance(0.25)
        world.hub.tick()
    world.freeze()
    for _ in range(60):
        world.clock.advance(0.25)
        world.hub.tick()
    world.renew()
    for _ in range(20):
        world.clock.advance(0.25)
        world.hub.tick()
    assert a.ended == ""
    for _ in range(200):
        world.clock.advance(0.25)
        world.hub.tick()
    assert messages(a.last) == [{"close": [3012, "no pong"]}]


async def test_10a_nobody_is_overdue_right_after_the_thaw(world: World) -> None:
    """The pong was sent in time and lies in the kernel, where we did not look for it."""
    a = world.peer()
    while not a.pings:
        world.clock.advance(0.25)
        world.hub.tick()
    world.freeze()
    for _ in range(31):
        world.clock.advance(0.25)
        world.hub.tick()
    world.renew()
    for _ in range(8):
        world.clock.advance(0.25)
        world.hub.tick()
    assert a.ended == ""


async def test_10b_a_channel_that_overflows_meanwhile_is_told_to_recover() -> None:
    world = World(queue_max_size=5_000)
    a, b = world.member("c"), world.member("d")
    world.freeze()
    world.hub.tick()
    for n in range(20):
        world.hub.publication("c", Publication(json.dumps({"n": n, "x": "x" * 1000}).encode()))
    world.hub.publication("d", pub(1))
    world.renew()
    world.hub.tick()
    await turns(4)
    assert numbers(a) == []
    assert [m["push"]["unsubscribe"]["code"] for m in a.said] == [2500]
    assert numbers(b) == [1]
    world.stop()


async def test_10c_a_deadline_that_fell_into_the_freeze_moves_behind_the_thaw(world: World) -> None:
    a = world.peer()
    a.expires_at = world.clock.now() + 5
    world.hub.deadlines.set(a, a.next_deadline())
    world.freeze()
    world.clock.advance(10)
    world.hub.tick()
    world.renew()
    world.hub.tick()
    world.clock.advance(GRACE - 1)
    world.hub.tick()
    assert a.ended == ""
    world.clock.advance(2)
    world.hub.tick()
    assert messages(a.last)[-1]["close"][0] == 3005


async def test_10d_a_node_that_stays_frozen_holds_while_it_knows_of_no_other(world: World) -> None:
    a = world.peer()
    world.freeze()
    for _ in range(100):
        world.clock.advance(1)
        world.hub.tick()
    assert a.ended == ""
    world.hub.others_fresh = lambda: True
    world.hub.tick()
    await turns(3)
    assert messages(a.last) == [{"close": [4001, "not current"]}]


async def test_10d_nobody_is_closed_by_a_fault_shorter_than_f_and_nobody_held_beyond_the_longest() -> None:
    world = World(max_hold=60.0)
    a = world.peer()
    world.hub.others_fresh = lambda: True
    world.freeze()
    for _ in range(14):
        world.clock.advance(1)
        world.hub.tick()
    world.renew()
    world.hub.tick()
    await turns(2)
    assert a.ended == ""
    world.hub.others_fresh = lambda: False
    world.freeze()
    world.hub.tick()
    world.clock.advance(59)
    world.hub.tick()
    assert a.ended == ""
    world.clock.advance(2)
    world.hub.tick()
    await turns(3)
    assert messages(a.last) == [{"close": [4001, "not current"]}]
    world.stop()


# -- pings


async def test_a_ping_is_one_shared_frame_and_a_missing_pong_ends_it(world: World) -> None:
    a, b = world.peer(), world.peer(binary=True)
    seen = 0.0
    while not a.wrote:
        world.clock.advance(0.25)
        seen += 0.25
        world.hub.tick()
        b.pings = 0
    assert 12 <= seen <= 26
    assert a.wrote[0] is a.encoding.ping
    assert a.said == [{}]
    for _ in range(40):
        world.clock.advance(0.25)
        world.hub.tick()
        b.pings = 0
    assert messages(a.last) == [{"close": [3012, "no pong"]}]
    while not b.wrote:
        world.clock.advance(0.25)
        world.hub.tick()
        b.pings = 0
    assert (b.said[0], b.ended) == ({}, "")


async def test_dispersing_serves_whose_turn_has_not_come(world: World) -> None:
    peers = [world.member("c") for _ in range(20)]
    world.hub.disperse(SHUTDOWN, 0.2)
    world.hub.publication("c", pub(1))
    await turns(3)
    assert sum(numbers(peer) == [1] for peer in peers) >= 15
    await eventually(lambda: all(peer.ended for peer in peers))
    assert all(messages(peer.last)[-1] == {"close": [3001, "shutdown"]} for peer in peers)
