"""The bus frame: what is written is read; anything else is refused and never more than that."""

import contextlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway import busframe
from gateway.busframe import HEAD, VERSION, Kind, Malformed, Newer
from gateway.protocol.commands import ClientInfo

NODE = bytes(range(16))
INFOS = st.builds(ClientInfo, st.text(max_size=9), st.text(max_size=9), st.binary(max_size=9), st.binary(max_size=9))


def frame(offset: int, epoch: str, body: bytes) -> bytes:
    """As the script writes it."""
    return VERSION + HEAD.pack(offset, len(epoch.encode())) + epoch.encode() + body


@given(
    st.integers(0, 2**53),
    st.text(max_size=20),
    st.text(max_size=80),
    st.binary(max_size=200),
    st.none() | INFOS,
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**64 - 1),
)
def test_what_is_written_is_read(
    offset: int,
    epoch: str,
    channel: str,
    data: bytes,
    info: ClientInfo | None,
    tags: dict[str, str],
    time: int,
    nonce: int,
) -> None:
    body = busframe.body(Kind.PUBLICATION, channel, data, time=time, node=NODE, nonce=nonce, info=info, tags=tags)
    message = busframe.read(frame(offset, epoch, body))
    assert (message.kind, message.channel, message.node, message.nonce) == (Kind.PUBLICATION, channel, NODE, nonce)
    publication = message.publication
    assert (publication.offset, publication.epoch, publication.data) == (offset, epoch, data)
    assert (publication.info, publication.tags, publication.time) == (info, tags, time)
    assert busframe.read_body(VERSION, body, 0, offset, epoch) == message


def whole() -> bytes:
    info = ClientInfo("u", "c", b"{}", b"")
    body = busframe.body(Kind.PUBLICATION, "chat:1", b'{"a":1}', time=1, node=NODE, nonce=2, info=info, tags={"k": "v"})
    return frame(7, "epoch", body)


def test_every_shorter_frame_is_refused_or_has_less_data() -> None:
    good = whole()
    for size in range(len(good)):
        try:
            message = busframe.read(good[:size])
        except Malformed:
            continue
        assert message.publication.data == b'{"a":1}'[: size - len(good)]


@given(st.binary(max_size=100))
def test_noise_is_refused_and_nothing_else_is_raised(noise: bytes) -> None:
    for candidate in (noise, VERSION + noise, VERSION + HEAD.pack(1, 0) + noise):
        with contextlib.suppress(Malformed):
            busframe.read(candidate)


@given(st.data())
def test_a_frame_with_wrong_bytes_is_read_or_refused(data: st.DataObject) -> None:
    broken = bytearray(whole())
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(Malformed):
        busframe.read(bytes(broken))


def test_a_newer_version_is_refused_as_such() -> None:
    with pytest.raises(Newer):
        busframe.read(b"\x02" + whole()[1:])


def test_a_join_of_nobody_and_an_unknown_kind_are_refused() -> None:
    nobody = busframe.body(Kind.JOIN, "c", b"", time=0, node=NODE, nonce=0)
    with pytest.raises(Malformed):
        busframe.read(busframe.without_offset(nobody))
    with pytest.raises(Malformed):
        busframe.read(busframe.without_offset(struct.pack(">B", 9) + nobody[1:]))
