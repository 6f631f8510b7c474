"""Bytes to commands, replies and pushes to bytes: the JSON and the Protobuf form of the wire.

How messages share one WebSocket message lives here too: JSON joins them by newlines, Protobuf puts a varint length
before each. WebSocket's own frames are in gateway.transports.frames; what a command may do is the client's. Stateless.
"""

from collections.abc import Sequence
from typing import Protocol

from gateway.protocol.as_json import MAX_DEPTH, JsonCodec, is_json
from gateway.protocol.as_protobuf import ProtobufCodec
from gateway.protocol.commands import (
    MAX_COMMANDS,
    PONG,
    ClientInfo,
    Command,
    ConnectResult,
    Publication,
    RefreshResult,
    Result,
    SubscribePush,
)

__all__ = ["JSON", "MAX_COMMANDS", "MAX_DEPTH", "PONG", "PROTOBUF", "Codec", "is_json"]


class Codec(Protocol):
    """One form of the wire.

    Every method but `decode` returns one message, unframed; `batch` makes of messages what goes into one WebSocket
    message. A bytes object may be shared by any number of connections.
    """

    name: str
    """"json" or "protobuf"."""
    binary: bool
    """Whether a batch goes into a binary WebSocket message."""
    PING: bytes
    """A ping, framed: it is what goes into a WebSocket message."""

    def decode(self, payload: bytes) -> list[Command]:
        """The commands of one frame, all or none: ProtocolError where any of them breaks the protocol.

        At most MAX_COMMANDS, nested at most MAX_DEPTH deep. Their size is the frame reader's. Checked is what needs no
        state: ids, exactly one method, a channel where one is needed. `data` is UTF-8 and JSON when it came as JSON.
        """

    def reply(self, id: int, result: Result) -> bytes:
        """The answer to command `id`. NotJson (3506) where data that is not JSON would go to a JSON client."""

    def error(self, id: int, code: int, message: str, temporary: bool = False) -> bytes:
        """The refusal of command `id`."""

    def pub(self, channel: str, publication: Publication) -> bytes:
        """A live publication, once for all subscribers. NotJson as in `reply`."""

    def join(self, channel: str, info: ClientInfo) -> bytes: ...

    def leave(self, channel: str, info: ClientInfo) -> bytes: ...

    def subscribe(self, channel: str, push: SubscribePush) -> bytes:
        """The server subscribed the client."""

    def unsubscribe(self, channel: str, code: int, reason: str) -> bytes: ...

    def message(self, data: bytes) -> bytes: ...

    def connect(self, result: ConnectResult) -> bytes: ...

    def disconnect(self, code: int, reason: str) -> bytes: ...

    def refresh(self, result: RefreshResult) -> bytes: ...

    def batch(self, messages: Sequence[bytes]) -> bytes:
        """One frame of at least one message."""


JSON: Codec = JsonCodec()
PROTOBUF: Codec = ProtobufCodec()
