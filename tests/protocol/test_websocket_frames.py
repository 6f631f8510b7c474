"""The frame reader: every input whole, byte by byte, in pieces and with a tail; and against another implementation.

The invariant: however a stream of bytes is cut, the frames are the same, and so is the code of the failure, which comes
with the first byte that shows it.
"""

import struct
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Close
from websockets.frames import Frame as TheirFrame
from websockets.frames import Opcode as TheirOpcode
from websockets.protocol import OPEN
from websockets.server import ServerProtocol

from gateway.transports import frames
from gateway.transports.frames import MAX_FRAGMENTS, Frame, FrameError, FrameReader, Opcode

LIMIT = 1000
KEY = bytes.fromhex("37fa213d")


def client(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, key: bytes | None = KEY) -> bytes:
    """A frame as a client may send it, or, on purpose, as it may not."""
    size = len(payload)
    masked = 0x80 if key is not None else 0
    head = bytes(((0x80 if fin else 0) | rsv << 4 | opcode,))
    if size < 126:
        head += bytes((masked | size,))
    elif size < 65536:
        head += bytes((masked | 126,)) + struct.pack("!H", size)
    else:
        head += bytes((masked | 127,)) + struct.pack("!Q", size)
    if key is None:
        return head + payload
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


Outcome = tuple[list[Frame], int | None]


def read(pieces: Iterable[bytes], limit: int = LIMIT) -> Outcome:
    """All frames, and the code of the failure, if there was one."""
    reader, found = FrameReader(limit), []
    for piece in pieces:
        try:
            found += reader.feed(piece)
        except FrameError as error:
            assert reader.feed(b"more") == []
            return found + error.frames, error.code
    return found, None


def check(stream: bytes, expected: Outcome, *, tail: bool = True) -> None:
    """Whole, byte by byte, in threes, and with a tail."""
    assert read([stream]) == expected
    assert read(stream[i : i + 1] for i in range(len(stream))) == expected
    assert read(stream[i : i + 3] for i in range(0, len(stream), 3)) == expected
    if tail:
        assert read([stream + client(Opcode.PING, b"tail")]) == (
            expected if expected[1] or closes(expected) else ([*expected[0], Frame(Opcode.PING, b"tail")], None)
        )


def closes(outcome: Outcome) -> bool:
    return any(frame.opcode is Opcode.CLOSE for frame in outcome[0])


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 125, 126, 127, 500, LIMIT])
@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_reads_messages_of_any_length(opcode: Opcode, size: int) -> None:
    payload = bytes(97 + i % 26 for i in range(size))
    check(client(opcode, payload), ([Frame(opcode, payload)], None))


def test_reads_the_examples_of_the_rfc() -> None:
    assert read([bytes.fromhex("818537fa213d7f9f4d5158")]) == ([Frame(Opcode.TEXT, b"Hello")], None)
    assert read([bytes.fromhex("898537fa213d7f9f4d5158")]) == ([Frame(Opcode.PING, b"Hello")], None)


def test_reads_a_message_with_the_longest_form_of_length() -> None:
    payload = b"x" * 70_000
    stream = client(Opcode.BINARY, payload)
    assert read([stream], 70_000) == ([Frame(Opcode.BINARY, payload)], None)
    assert read([stream[:5], stream[5:9], stream[9:40_000], stream[40_000:]], 70_000) == (
        [Frame(Opcode.BINARY, payload)],
        None,
    )


def test_joins_fragments_with_control_frames_between_them() -> None:
    stream = (
        client(Opcode.TEXT, "h\u00e9".encode()[:2], fin=False)
        + client(Opcode.PING, b"p")
        + client(Opcode.CONTINUATION, b"", fin=False)
        + client(Opcode.PONG)
        + client(Opcode.CONTINUATION, "h\u00e9".encode()[2:])
        + client(Opcode.BINARY, b"\xff")
    )
    frames = [Frame(Opcode.PING, b"p"), Frame(Opcode.PONG, b""), Frame(Opcode.TEXT, "h\u00e9".encode())]
    check(stream, ([*frames, Frame(Opcode.BINARY, b"\xff")], None))


def test_payloads_are_bytes_of_their_own() -> None:
    data = bytearray(client(Opcode.BINARY, b"abc"))
    (frame,) = FrameReader(LIMIT).feed(bytes(data))
    assert type(frame.payload) is bytes


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999])
def test_reads_a_close(code: int) -> None:
    stream = client(Opcode.CLOSE, struct.pack("!H", code) + "caf\u00e9".encode())
    check(stream, ([Frame(Opcode.CLOSE, "caf\u00e9".encode(), code)], None))


def test_a_close_without_a_code_is_1005() -> None:
    check(client(Opcode.CLOSE), ([Frame(Opcode.CLOSE, b"", 1005)], None))


def test_what_follows_a_close_is_ignored_even_when_it_is_garbage() -> None:
    check(client(Opcode.CLOSE) + b"\x00\x00\xff", ([Frame(Opcode.CLOSE, b"", 1005)], None), tail=False)


def test_a_close_may_come_between_fragments() -> None:
    check(client(Opcode.TEXT, b"a", fin=False) + client(Opcode.CLOSE), ([Frame(Opcode.CLOSE, b"", 1005)], None))


TEXT = client(Opcode.TEXT, b"ok")

FAULTS = {
    "reserved bit 1": (client(Opcode.TEXT, b"x", rsv=4), 1002),
    "reserved bit 2": (client(Opcode.TEXT, b"x", rsv=2), 1002),
    "reserved bit 3": (client(Opcode.PING, b"x", rsv=1), 1002),
    "opcode 3": (client(3), 1002),
    "opcode 7": (client(7), 1002),
    "opcode 11": (client(11), 1002),
    "opcode 15": (client(15, b"x"), 1002),
    "not masked": (client(Opcode.TEXT, b"x", key=None), 1002),
    "empty, not masked": (client(Opcode.TEXT, key=None), 1002),
    "fragmented ping": (client(Opcode.PING, fin=False), 1002),
    "fragmented close": (client(Opcode.CLOSE, fin=False), 1002),
    "long ping": (client(Opcode.PING, b"x" * 126), 1002),
    "long pong": (client(Opcode.PONG, b"x" * 126), 1002),
    "long close": (client(Opcode.CLOSE, b"\x03\xe8" + b"x" * 124), 1002),
    "nothing to continue": (client(Opcode.CONTINUATION, b"x"), 1002),
    "continued after the end": (
        client(Opcode.TEXT, b"", fin=False) + client(Opcode.CONTINUATION) + client(Opcode.CONTINUATION),
        1002,
    ),
    "interleaved": (client(Opcode.TEXT, b"a", fin=False) + client(Opcode.TEXT, b"b"), 1002),
    "interleaved binary": (client(Opcode.TEXT, b"a", fin=False) + client(Opcode.BINARY, b"b", fin=False), 1002),
    "half a code": (client(Opcode.CLOSE, b"\x03"), 1002),
    **{
        f"code {code}": (client(Opcode.CLOSE, struct.pack("!H", code)), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    "reason not UTF-8": (client(Opcode.CLOSE, b"\x03\xe8\xff"), 1007),
    "text not UTF-8": (client(Opcode.TEXT, b"\xff"), 1007),
    "half a character": (client(Opcode.TEXT, b"\xc3"), 1007),
    "a surrogate": (client(Opcode.TEXT, b"\xed\xa0\x80"), 1007),
    "fragmented text not UTF-8": (client(Opcode.TEXT, b"a", fin=False) + client(Opcode.CONTINUATION, b"\xc3"), 1007),
    "too big": (client(Opcode.BINARY, b"x" * (LIMIT + 1)), 1009),
    "too big in two": (
        client(Opcode.BINARY, b"x" * LIMIT, fin=False) + client(Opcode.CONTINUATION, b"x"),
        1009,
    ),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda name: name.replace(" ", "-"))
def test_a_fault_ends_the_connection_with_its_code(fault: str) -> None:
    stream, code = FAULTS[fault]
    before = [frame for frame in read([stream])[0] if frame.opcode is not Opcode.CLOSE]
    check(stream, (before, code))
    check(TEXT + stream, ([Frame(Opcode.TEXT, b"ok"), *before], code))


def test_a_length_is_refused_before_a_byte_of_the_payload_has_come() -> None:
    for head in ("82fe03e9", "82ff0000000000010000", "82ff7fffffffffffffff", "82ffffffffffffffffff"):
        with pytest.raises(FrameError) as caught:
            FrameReader(LIMIT).feed(bytes.fromhex(head))
        assert caught.value.code == 1009


def test_a_promise_of_much_takes_no_memory() -> None:
    reader = FrameReader(1 << 40)
    assert reader.feed(bytes.fromhex("82ff000000ffffffffff") + KEY + b"x") == []
    assert sum(map(len, reader._kept or [])) < 64


def test_the_limit_starts_again_with_each_message() -> None:
    stream = client(Opcode.BINARY, b"x" * LIMIT) * 3 + client(Opcode.BINARY, b"x" * LIMIT, fin=False)
    assert len(read([stream + client(Opcode.CONTINUATION)])[0]) == 4


def test_fragments_are_counted() -> None:
    start = client(Opcode.BINARY, fin=False)
    more = client(Opcode.CONTINUATION, fin=False)
    assert read([start + more * (MAX_FRAGMENTS - 2) + client(Opcode.CONTINUATION)]) == (
        [Frame(Opcode.BINARY, b"")],
        None,
    )
    assert read([start + more * MAX_FRAGMENTS]) == ([], 1009)


def test_a_message_in_single_bytes_is_kept_in_pieces_until_it_is_whole() -> None:
    payload = b"x" * 30_000
    stream = client(Opcode.BINARY, payload)
    assert read((stream[i : i + 1] for i in range(len(stream))), 65536) == ([Frame(Opcode.BINARY, payload)], None)


# Against another implementation

unhurried = settings(deadline=None)  # a busy machine is no failure

texts = st.text(max_size=200).map(str.encode)
keys = st.binary(min_size=4, max_size=4)
controls = st.one_of(
    st.builds(lambda p, k: client(Opcode.PING, p, key=k), st.binary(max_size=125), keys),
    st.builds(lambda p, k: client(Opcode.PONG, p, key=k), st.binary(max_size=125), keys),
)


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """One message in one or more frames, control frames between them."""
    opcode = draw(st.sampled_from([Opcode.TEXT, Opcode.BINARY]))
    payload = draw(texts if opcode is Opcode.TEXT else st.binary(max_size=600))
    cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=3)))
    parts = [payload[a:b] for a, b in zip([0, *cuts], [*cuts, len(payload)], strict=True)]
    out = b""
    for number, part in enumerate(parts):
        out += b"".join(draw(st.lists(controls, max_size=2))) if number else b""
        out += client(
            opcode if number == 0 else Opcode.CONTINUATION, part, fin=number == len(parts) - 1, key=draw(keys)
        )
    return out


closings = st.builds(
    lambda code, reason: client(Opcode.CLOSE, struct.pack("!H", code) + reason[:123].decode(errors="ignore").encode()),
    st.integers(0, 5001),
    texts,
)
faults = st.one_of(
    st.sampled_from([stream for name, (stream, _) in FAULTS.items() if "UTF-8" not in name and "half a c" not in name])
    .filter(lambda stream: stream[0] & 0x0F != Opcode.TEXT or stream[0] & 0x70 != 0)
    .map(bytes),
    closings,
    st.just(client(Opcode.CLOSE)),
)


def cut(stream: bytes, sizes: Sequence[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(stream[at : at + size])
        at += size
    return [*pieces, stream[at:]]


def theirs(pieces: Iterable[bytes]) -> Outcome:
    """What `websockets` makes of it. It leaves fragments alone and the UTF-8 of text to its caller."""
    protocol = ServerProtocol(state=OPEN, max_size=LIMIT)
    for piece in pieces:
        protocol.receive_data(piece)
    found: list[Frame] = []
    opcode, parts = Opcode.TEXT, list[bytes]()
    for event in protocol.events_received():
        assert isinstance(event, TheirFrame)
        payload = bytes(event.data)
        if event.opcode is TheirOpcode.CLOSE:
            close = Close.parse(payload)
            found.append(Frame(Opcode.CLOSE, close.reason.encode(), close.code))
        elif event.opcode in (TheirOpcode.PING, TheirOpcode.PONG):
            found.append(Frame(Opcode(event.opcode), payload))
        else:
            if event.opcode is not TheirOpcode.CONT:
                opcode, parts = Opcode(event.opcode), []
            parts.append(payload)
            if event.fin:
                found.append(Frame(opcode, b"".join(parts)))
    failed = protocol.parser_exc is not None
    return found, int(protocol.close_sent.code) if failed and protocol.close_sent else None


@unhurried
@given(
    parts=st.lists(st.one_of(messages(), controls), max_size=4),
    end=st.one_of(st.just(b""), faults),
    sizes=st.lists(st.integers(0, 200), max_size=6),
)
def test_websockets_reads_the_same(parts: list[bytes], end: bytes, sizes: list[int]) -> None:
    stream = b"".join(parts) + end
    ours = read(cut(stream, sizes))
    assert ours == theirs([stream])
    assert ours == read([stream])


@unhurried
@given(stream=st.binary(max_size=300), sizes=st.lists(st.integers(0, 50), max_size=6))
def test_any_bytes_are_read_the_same_however_they_are_cut(stream: bytes, sizes: list[int]) -> None:
    assert read(cut(stream, sizes)) == read([stream])


@unhurried
@given(
    parts=st.lists(st.one_of(messages(), controls, closings), min_size=1, max_size=4),
    place=st.integers(0, 10_000),
    value=st.integers(0, 255),
    sizes=st.lists(st.integers(0, 200), max_size=6),
)
def test_a_wrong_byte_is_read_the_same_however_it_is_cut(
    parts: list[bytes], place: int, value: int, sizes: list[int]
) -> None:
    stream = bytearray(b"".join(parts))
    stream[place % len(stream)] = value
    assert read(cut(bytes(stream), sizes)) == read([bytes(stream)])


# Builders


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536])
def test_builds_what_a_client_reads(size: int) -> None:
    payload = b"x" * size
    assert frames.text(payload) == TheirFrame(TheirOpcode.TEXT, payload).serialize(mask=False)
    assert frames.binary(payload) == TheirFrame(TheirOpcode.BINARY, payload).serialize(mask=False)


def test_builds_control_frames() -> None:
    assert frames.ping() == bytes.fromhex("8900")
    assert frames.pong(b"Hello") == bytes.fromhex("8a0548656c6c6f")
    assert frames.close(4501, "session revoked: logout") == bytes.fromhex("88191195") + b"session revoked: logout"
    assert frames.close(1005) == bytes.fromhex("8800")


def test_a_close_reason_is_cut_to_what_fits() -> None:
    frame = frames.close(3503, "a" * 122 + "\u00e9 and more")
    assert frame == bytes.fromhex("887c0daf") + b"a" * 122
    assert len(frames.close(3503, "a" * 500)) == 2 + 125
