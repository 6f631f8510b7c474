"""The load client: its half of the protocol, and that it counts what real servers do, no more and no less."""

from collections.abc import AsyncIterator

import pytest

from bench import machine
from bench.client import Counts, LoadClient, Peer
from bench.http import parse
from bench.load import CLOSE, TEXT, Centrifuge, Connection, Refused, frame, frames
from bench.measures import CHANNEL, DATA, Bed, as_fast_as_it_goes, closes, paced
from bench.servers import AiohttpBroadcast, Cores, Floor, Server


def from_server(opcode: int, payload: bytes) -> bytes:
    """A frame as servers send it: without a mask."""
    if len(payload) < 126:
        size = bytes([len(payload)])
    elif len(payload) < 1 << 16:
        size = b"\x7e" + len(payload).to_bytes(2, "big")
    else:
        size = b"\x7f" + len(payload).to_bytes(8, "big")
    return bytes([0x80 | opcode]) + size + payload


SHORT = [(TEXT, b"{}"), (TEXT, b"x" * 125), (TEXT, b"y" * 126), (CLOSE, b"\x11\x95bye")]
LONG = [(TEXT, b"z" * 65535), (TEXT, b"z" * 65536)]


def test_frames_are_read_whole_whatever_the_pieces() -> None:
    for messages, sizes in ((SHORT, (1, 2, 5)), (SHORT + LONG, (130, 4096, 100_000))):
        data = b"".join(from_server(*message) for message in messages)
        for size in sizes:
            found: list[tuple[int, bytes]] = []
            rest = b""
            for start in range(0, len(data), size):
                some, rest = frames(rest + data[start : start + size])
                found += some
            assert (found, rest) == (messages, b"")


@pytest.mark.parametrize("size", [0, 125, 126, 65535])
def test_a_client_frame_has_a_mask_and_its_length(size: int) -> None:
    data = frame(TEXT, b"x" * size)
    assert data[0] == 0x81
    assert data[1] & 0x80
    extended = 2 if size >= 126 else 0
    assert (int.from_bytes(data[2:4], "big") if extended else data[1] & 0x7F) == size
    assert data[2 + extended :] == bytes(4) + b"x" * size


def test_a_connection_is_ready_after_each_of_its_replies_and_answers_pings() -> None:
    dialect = Centrifuge()
    opening = dialect.opening({"token": "t", "channels": ["a", "b"]})
    assert opening.endswith(
        b'{"id":1,"connect":{"token":"t"}}\n{"id":2,"subscribe":{"channel":"a"}}\n{"id":3,"subscribe":{"channel":"b"}}'
    )
    connection = Connection.__new__(Connection)
    connection.awaited = 3
    for reply in (b'{"id":1,"connect":{}}', b'{"id":2,"subscribe":{}}', b'{"id":3,"subscribe":{}}'):
        assert dialect.hears(connection, reply) == b""
    assert connection.awaited == 0
    assert dialect.hears(connection, b"{}") == dialect.pong
    connection.awaited = 1
    with pytest.raises(Refused, match="limit"):
        dialect.hears(connection, b'{"id":4,"error":{"code":106,"message":"limit exceeded"}}')


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nSet-Cookie: a=b; Path=/\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nSet-Cookie: a=b; Path=/\r\n\r\n"
        b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\n\r\n",
    ],
)
def test_an_answer_is_one_only_when_it_is_whole(answer: bytes) -> None:
    for size in range(len(answer)):
        assert parse(answer[:size]) is None
    found = parse(answer)
    assert found is not None
    assert (found.status, found.body, found.cookies) == (200, b"hello", ["a=b"])


@pytest.fixture(params=[AiohttpBroadcast, Floor], ids=lambda kind: kind.name)
async def bed(request: pytest.FixtureRequest) -> AsyncIterator[Bed]:
    """A real server, and a load client at its door."""
    if request.param is Floor and not Floor.compiler():
        pytest.skip("no C compiler")
    cores = Cores(*machine.cores())
    server: Server = request.param(cores)
    try:
        await server.start()
        client = await LoadClient.start(cores.rest)
        try:
            yield Bed(server, client)
        finally:
            await client.stop()
    finally:
        await server.stop()


async def test_every_delivery_is_counted_and_the_processor_time_with_it(bed: Bed) -> None:
    opened = await bed.open(bed.server.peers(20, lambda n: CHANNEL), window=8)
    assert (opened.opened, opened.failed, opened.trouble) == (20, 0, "")
    steady = await paced(bed, [CHANNEL], 50, 0.2, 20)
    assert (steady.delivered, steady.frames, bed.note) == (200, 200, "")
    assert steady.micros() > 0
    fast = await as_fast_as_it_goes(bed, CHANNEL, 0.2, 20)
    assert fast.delivered >= 32 * 20
    assert fast.delivered % 20 == 0
    assert bed.client.counts().ready == 20


async def test_a_second_crowd_joins_the_first_and_all_are_shut(bed: Bed) -> None:
    await bed.open(bed.server.peers(3, lambda n: CHANNEL))
    await bed.open(bed.server.peers(2, lambda n: CHANNEL))
    await bed.server.publish(CHANNEL, DATA)
    assert await bed.client.until(5, 5.0)
    assert await bed.client.shut() == 5
    assert await bed.client.closes() == []  # the counters are of the turn before
    assert bed.client.counts()[:4] == Counts(5, 5, 0, 0, 0.0)[:4]


async def test_the_end_of_a_server_is_told_with_the_numbers_of_its_peers(bed: Bed) -> None:
    await bed.open(bed.server.peers(4, lambda n: CHANNEL))
    await bed.server.stop()
    found = await closes(bed, 4, 5.0)
    assert sorted(c.peer for c in found) == [0, 1, 2, 3]
    assert {c.code for c in found} <= {1001, 1006}
    assert await bed.client.closes() == []
    assert bed.client.counts().ready == 0


async def test_nobody_at_the_door_is_told_and_not_waited_for(bed: Bed) -> None:
    door = bed.server.door
    await bed.server.stop()
    opened = await bed.client.open(door, [Peer([CHANNEL])] * 3)
    assert (opened.opened, opened.failed) == (0, 3)
    assert "refused" in opened.trouble
