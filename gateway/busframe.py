"""What travels on the bus, as bytes: a versioned header and the data as it came. Pure.

A frame is written in two parts, because only the script that appends knows the offset and the epoch:

    head  u8 version | u64 offset | u8 length, epoch
    body  u8 kind | i64 unix ms | u64 nonce | 16 bytes node | u16 u32 u32 lengths | channel | info | tags | data

All numbers are big-endian; info (user, client, conn_info, chan_info) and tags are msgpack. The stream keeps the body
under its version. A reader knows the version of the writer and the one before; what it does not know it refuses.

    Malformed(ValueError)       not a frame
    └── Newer                   a frame of a version that is not known here
"""

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import NamedTuple

import msgspec

from gateway.protocol.commands import ClientInfo, Publication

VERSION = b"\x01"
HEAD = struct.Struct(">QB")
BODY = struct.Struct(">BqQ16sHII")

_encode = msgspec.msgpack.Encoder().encode
_decode_info = msgspec.msgpack.Decoder(tuple[str, str, bytes, bytes]).decode
_decode_tags = msgspec.msgpack.Decoder(dict[str, str]).decode


class Malformed(ValueError):
    """These bytes are no frame."""


class Newer(Malformed):
    """Whoever wrote this is ahead of us."""


class Kind(IntEnum):
    PUBLICATION = 0
    JOIN = 1
    LEAVE = 2


class Message(NamedTuple):
    """A frame, read. `node` and `nonce` say whose it is. A join or leave has the client in `publication.info`."""

    kind: int
    channel: str
    node: bytes
    nonce: int
    publication: Publication


def body(
    kind: Kind,
    channel: str,
    data: bytes,
    *,
    time: int,
    node: bytes,
    nonce: int,
    info: ClientInfo | None = None,
    tags: Mapping[str, str] | None = None,
) -> bytes:
    """The part that the publisher writes. `time` in unix milliseconds, `node` 16 bytes."""
    name = channel.encode()
    about = _encode((info.user, info.client, info.conn_info, info.chan_info)) if info is not None else b""
    labels = _encode(dict(tags)) if tags else b""
    fixed = BODY.pack(kind, time, nonce, node, len(name), len(about), len(labels))
    return b"".join((fixed, name, about, labels, data))


def without_offset(body: bytes) -> bytes:
    """A whole frame, for what stands in no stream."""
    return b"".join((VERSION, HEAD.pack(0, 0), body))


def read(frame: bytes) -> Message:
    """Read a frame from the bus. Raises Malformed."""
    try:
        offset, length = HEAD.unpack_from(frame, 1)
        start = 1 + HEAD.size + length
        epoch = frame[1 + HEAD.size : start].decode()
    except (struct.error, UnicodeDecodeError) as error:
        raise Malformed(str(error)) from None
    return read_body(frame[:1], frame, start, offset, epoch)


def read_body(version: bytes, source: bytes, start: int, offset: int, epoch: str) -> Message:
    """Read a body that begins at `start` of `source`. Raises Malformed."""
    if version != VERSION:
        raise Newer(f"version {version!r}")
    try:
        kind, time, nonce, node, channel_size, info_size, tags_size = BODY.unpack_from(source, start)
        name = start + BODY.size
        about = name + channel_size
        labels = about + info_size
        data = labels + tags_size
        if data > len(source) or kind > Kind.LEAVE:
            raise Malformed("lengths beyond the end, or an unknown kind")
        info = ClientInfo(*_decode_info(source[about:labels])) if info_size else None
        if kind and info is None:
            raise Malformed("a join or leave of nobody")
        tags = _decode_tags(source[labels:data]) if tags_size else {}
        publication = Publication(source[data:], offset, epoch, info, tags, time)
        return Message(kind, source[name:about].decode(), node, nonce, publication)
    except (struct.error, UnicodeDecodeError, msgspec.MsgspecError) as error:
        raise Malformed(str(error)) from None
