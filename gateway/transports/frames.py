"""WebSocket frames (RFC 6455), server side: a pure function of bytes to messages or a close code, and builders.

No sockets, no extensions, no negotiation here, and no decision on what to answer. The reader takes what a client may
send: masked frames, fragments, control frames between them. Section numbers are RFC 6455's.
"""

from enum import IntEnum
from typing import NamedTuple

MAX_FRAGMENTS = 1024
"""Frames that one message may come in: a bound of its own, because empty ones cost the sender next to nothing."""


class Opcode(IntEnum):
    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA


class Frame(NamedTuple):
    """A whole message (TEXT, BINARY: fragments joined) or a control frame.

    The payload of TEXT is valid UTF-8. CLOSE has its code in `code`, 1005 for none, and its reason in `payload`.
    """

    opcode: Opcode
    payload: bytes
    code: int = 0


PROTOCOL_ERROR, NO_STATUS, INVALID_DATA, TOO_BIG = 1002, 1005, 1007, 1009
_CONTROL = frozenset((Opcode.CLOSE, Opcode.PING, Opcode.PONG))
_OPCODES = {opcode.value: opcode for opcode in Opcode}


class FrameError(Exception):
    """The client broke RFC 6455: answer with a close frame of `code` (1002, 1007 or 1009) and drop the connection.

    `frames` were complete before and may be handled first.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.frames: list[Frame] = []


class FrameReader:
    """One connection's reader.

    `limit` is the greatest message in bytes, over all its fragments. It keeps no more than one frame's bytes that have
    come, and the fragments of one message; what a header promises is not allocated. What follows a CLOSE, or an error,
    is ignored (1.4: a peer discards what comes after a close frame).
    """

    __slots__ = ("_fragments", "_have", "_kept", "_need", "_opcode", "_over", "_size", "limit", "max_fragments")

    def __init__(self, limit: int, max_fragments: int = MAX_FRAGMENTS) -> None:
        self.limit = limit
        self.max_fragments = max_fragments
        self._kept: list[bytes] | None = None  # the pieces of a frame that is not complete
        self._have = 0  # bytes in them
        self._need = 0  # bytes without which nothing can be done
        self._fragments: list[bytes] | None = None  # of the message that is not complete
        self._opcode = Opcode.TEXT
        self._size = 0  # bytes in them
        self._over = False

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that `data` completed, in order. FrameError once, at the first byte that shows the fault."""
        if self._kept is not None:
            self._kept.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._kept)
            self._kept = None
        frames: list[Frame] = []
        at, size = 0, len(data)
        try:
            while at < size and not self._over:
                length, end = self._span(data, at)
                if end > size:
                    self._kept = [data[at:]]
                    self._have, self._need = size - at, end - at
                    break
                frame = self._take(data[at], _unmask(data, end - length, end))
                if frame is not None:
                    frames.append(frame)
                at = end
        except FrameError as error:
            self._over = True
            error.frames = frames
            raise
        return frames

    def _span(self, data: bytes, at: int) -> tuple[int, int]:
        """The payload's length and where the frame ends; while that is unknown, 0 and what must be there to go on."""
        if len(data) - at < 2:
            return 0, at + 2
        first, second = data[at], data[at + 1]
        self._check(first, second)
        length, start = second & 0x7F, at + 6
        if length == 126:  # 5.2: the next 2 bytes are the length, as an unsigned number, most significant byte first
            start = at + 8
            if len(data) < at + 4:
                return 0, at + 4
            length = int.from_bytes(data[at + 2 : at + 4])
        elif length == 127:  # 5.2: the next 8 bytes
            start = at + 14
            if len(data) < at + 10:
                return 0, at + 10
            length = int.from_bytes(data[at + 2 : at + 10])
        if first & 0x08 == 0 and length > self.limit - self._size:  # 7.4.1: 1009, too big to process
            raise FrameError(TOO_BIG, "message too big")
        return length, start + length

    def _check(self, first: int, second: int) -> None:
        """All that the first two bytes can show."""
        if first & 0x70:  # 5.2: reserved bits are 0 unless an extension gave them a meaning; we agree to none
            raise FrameError(PROTOCOL_ERROR, "reserved bits")
        opcode = first & 0x0F
        if opcode not in _OPCODES:  # 5.2: an unknown opcode fails the connection
            raise FrameError(PROTOCOL_ERROR, "unknown opcode")
        if not second & 0x80:  # 5.1: a server closes the connection upon a frame that is not masked
            raise FrameError(PROTOCOL_ERROR, "not masked")
        if opcode in _CONTROL:
            if not first & 0x80:  # 5.5: control frames are not fragmented
                raise FrameError(PROTOCOL_ERROR, "fragmented control frame")
            if second & 0x7F > 125:  # 5.5: control frames carry 125 bytes or less
                raise FrameError(PROTOCOL_ERROR, "control frame too long")
        elif opcode == Opcode.CONTINUATION:
            if self._fragments is None:  # 5.4: a continuation belongs to a message that has begun
                raise FrameError(PROTOCOL_ERROR, "nothing to continue")
            if len(self._fragments) >= self.max_fragments:
                raise FrameError(TOO_BIG, "too many fragments")
        elif self._fragments is not None:  # 5.4: fragments of two messages are not interleaved
            raise FrameError(PROTOCOL_ERROR, "expected a continuation")

    def _take(self, first: int, payload: bytes) -> Frame | None:
        opcode = _OPCODES[first & 0x0F]
        if opcode is Opcode.CLOSE:
            self._over = True
            return _close_frame(payload)
        if opcode in _CONTROL:
            return Frame(opcode, payload)
        if self._fragments is None:
            if first & 0x80:
                return _message(opcode, payload)
            self._opcode, self._fragments = opcode, []
        self._fragments.append(payload)
        self._size += len(payload)
        if not first & 0x80:
            return None
        payload = b"".join(self._fragments)
        self._fragments, self._size = None, 0
        return _message(self._opcode, payload)


def _unmask(data: bytes, start: int, end: int) -> bytes:
    """5.3: byte i of the payload is XORed with byte i mod 4 of the key, which stands before it. As one big number."""
    size = end - start
    key = data[start - 4 : start]
    mask = int.from_bytes(key * (size // 4) + key[: size % 4], "little")
    return (int.from_bytes(data[start:end], "little") ^ mask).to_bytes(size, "little")


def _message(opcode: Opcode, payload: bytes) -> Frame:
    if opcode is Opcode.TEXT:
        _check_utf8(payload)
    return Frame(opcode, payload)


def _close_frame(payload: bytes) -> Frame:
    if not payload:  # 7.1.5: a close frame without a code counts as 1005
        return Frame(Opcode.CLOSE, b"", NO_STATUS)
    if len(payload) == 1:  # 5.5.1: if there is a body, its first two bytes are the code
        raise FrameError(PROTOCOL_ERROR, "half a close code")
    code, reason = int.from_bytes(payload[:2]), payload[2:]
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        # 7.4: the others are not assigned, or (1004, 1005, 1006, 1015) must not stand in a frame
        raise FrameError(PROTOCOL_ERROR, "invalid close code")
    _check_utf8(reason)
    return Frame(Opcode.CLOSE, reason, code)


def _check_utf8(payload: bytes) -> None:
    """8.1: text that is not UTF-8 fails the connection; 7.4.1: with 1007."""
    if payload.isascii():
        return
    try:
        payload.decode()
    except UnicodeDecodeError:
        raise FrameError(INVALID_DATA, "not UTF-8") from None


def text(payload: bytes) -> bytes:
    return _frame(0x80 | Opcode.TEXT, payload)


def binary(payload: bytes) -> bytes:
    return _frame(0x80 | Opcode.BINARY, payload)


def close(code: int, reason: str = "") -> bytes:
    """A close frame; the reason is cut at 123 bytes of UTF-8. 1005 makes one without a body, to answer such a one."""
    if code == NO_STATUS:
        return _frame(0x80 | Opcode.CLOSE, b"")
    return _frame(0x80 | Opcode.CLOSE, code.to_bytes(2) + reason.encode()[:123].decode(errors="ignore").encode())


def ping(payload: bytes = b"") -> bytes:
    return _frame(0x80 | Opcode.PING, payload)


def pong(payload: bytes = b"") -> bytes:
    """The answer to a ping: 5.5.3, it carries the ping's payload."""
    return _frame(0x80 | Opcode.PONG, payload)


def _frame(first: int, payload: bytes) -> bytes:
    """One final frame, not masked (5.1: a server masks nothing), its length in as few bytes as will do (5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + size.to_bytes(2) + payload
    return bytes((first, 127)) + size.to_bytes(8) + payload
