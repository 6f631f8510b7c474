"""WebSocket frames (RFC 6455), server side: a pure function of bytes to messages or a close code, and builders.

No sockets, no extensions, no negotiation here. The reader takes what a client may send: masked frames, fragments,
control frames between them. Section numbers in comments are RFC 6455's.
"""

from enum import IntEnum
from typing import NamedTuple


class Opcode(IntEnum):
    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class Frame(NamedTuple):
    """A whole message (TEXT, BINARY: fragments joined) or a control frame.

    A TEXT payload is valid UTF-8. A CLOSE has its code in `code` (1005 for none) and its reason in `payload`.
    """

    opcode: int
    payload: bytes
    code: int = 0


class FrameError(Exception):
    """The client broke RFC 6455: answer with a close frame of `code` (1002, 1007, 1009), then drop the connection.

    `frames` are those that were complete before.
    """

    def __init__(self, code: int, reason: str, frames: "list[Frame] | None" = None) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.frames = frames or []


class FrameReader:
    """One connection's reader. `limit` is the greatest message in bytes, over all its fragments."""

    __slots__ = ("_buffer", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = b""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completed. FrameError once, when the client broke the protocol; feed no more then."""
        raise NotImplementedError


def text(payload: bytes) -> bytes:
    raise NotImplementedError


def binary(payload: bytes) -> bytes:
    raise NotImplementedError


def close(code: int, reason: str = "") -> bytes:
    """A close frame; the reason is cut at 123 bytes."""
    raise NotImplementedError


def ping(payload: bytes = b"") -> bytes:
    raise NotImplementedError


def pong(payload: bytes = b"") -> bytes:
    raise NotImplementedError
