"""Every number of the wire: errors of replies, unsubscribe codes, close codes; and the exceptions that carry them.

Numbers, texts and exceptions live here; when one is used does not. Those below 4000 are the Centrifuge protocol's, the
4xxx are ours. The range of a number tells an SDK what to do (`reconnects`, `resubscribes`).

    Exception
    ├── Disconnect          the connection is over: it is closed with .code and .reason
    │   ├── ProtocolError   3501: the client sent what the protocol does not allow; .detail is for the log
    │   └── NotJson         3506: data that a JSON client cannot be given
    └── Refused             the command is answered with an error, the connection goes on
        ├── UnknownChannel  102, in gateway.channels
        └── BadChannel      107, in gateway.channels
"""

from enum import IntEnum
from typing import NamedTuple

MAX_REASON = 123
"""Bytes of UTF-8 that a close frame has for its reason (RFC 6455 5.5: 125, less two for the code)."""


class ErrorCode(IntEnum):
    """Errors of replies. An SDK tries again on a `temporary` one, gets a new token on 109, gives up on the others."""

    message: str
    temporary: bool

    def __new__(cls, code: int, message: str, temporary: bool = False) -> "ErrorCode":
        member = int.__new__(cls, code)
        member._value_ = code
        member.message = message
        member.temporary = temporary
        return member

    INTERNAL = 100, "internal server error", True
    UNAUTHORIZED = 101, "unauthorized"
    UNKNOWN_CHANNEL = 102, "unknown channel"
    PERMISSION_DENIED = 103, "permission denied"
    METHOD_NOT_FOUND = 104, "method not found"
    ALREADY_SUBSCRIBED = 105, "already subscribed"
    LIMIT_EXCEEDED = 106, "limit exceeded"
    BAD_REQUEST = 107, "bad request"
    NOT_AVAILABLE = 108, "not available"
    TOKEN_EXPIRED = 109, "token expired"
    EXPIRED = 110, "expired"
    TOO_MANY_REQUESTS = 111, "too many requests", True
    UNRECOVERABLE_POSITION = 112, "unrecoverable position"
    CONCURRENT_PAGINATION = 113, "concurrent pagination", True


class Unsubscribe(NamedTuple):
    """Why a server ended one subscription."""

    code: int
    reason: str


SERVER_UNSUBSCRIBE = Unsubscribe(2000, "server unsubscribe")
INSUFFICIENT_STATE = Unsubscribe(2500, "insufficient state")
SUBSCRIPTION_EXPIRED = Unsubscribe(2501, "subscription expired")
SUBSCRIPTION_INVALIDATED = Unsubscribe(2502, "state invalidated")


class Close(NamedTuple):
    """Why a server ended a connection: the code and the reason of the close frame, or of a `disconnect` push."""

    code: int
    reason: str


# The SDK connects again.
CONNECTION_CLOSED = Close(3000, "connection closed")  # never sent: the client went away by itself
SHUTDOWN = Close(3001, "shutdown")
SERVER_ERROR = Close(3004, "internal server error")
CONNECTION_EXPIRED = Close(3005, "connection expired")
SUB_EXPIRED = Close(3006, "subscription expired")
SLOW = Close(3008, "slow")
WRITE_ERROR = Close(3009, "write error")
CONNECTION_INSUFFICIENT_STATE = Close(3010, "insufficient state")
FORCE_RECONNECT = Close(3011, "force reconnect")
NO_PONG = Close(3012, "no pong")
TOO_MANY_REQUESTS = Close(3013, "too many requests")
STATE_INVALIDATED = Close(3014, "state invalidated")
NOT_CURRENT = Close(4001, "not current")

# The SDK stops.
INVALID_TOKEN = Close(3500, "invalid token")
BAD_REQUEST = Close(3501, "bad request")
STALE = Close(3502, "stale")
FORCE_DISCONNECT = Close(3503, "force disconnect")
CONNECTION_LIMIT = Close(3504, "connection limit")
CHANNEL_LIMIT = Close(3505, "channel limit")
INAPPROPRIATE_PROTOCOL = Close(3506, "inappropriate protocol")
CONNECTION_PERMISSION_DENIED = Close(3507, "permission denied")
NOT_AVAILABLE = Close(3508, "not available")
TOO_MANY_ERRORS = Close(3509, "too many errors")
SESSION_REVOKED = Close(4501, "session revoked")
ACCOUNT_DISABLED = Close(4502, "account disabled")
SESSION_REPLACED = Close(4503, "session replaced")
SESSION_EXPIRED = Close(4504, "session expired")

CLOSES: dict[int, Close] = {value.code: value for value in list(globals().values()) if isinstance(value, Close)}
"""By number."""


def reconnects(code: int) -> bool:
    """Whether an SDK connects again after a close with `code`: on everything but 3500-3999 and 4500-4999."""
    return not (3500 <= code <= 3999 or 4500 <= code <= 4999)


def resubscribes(code: int) -> bool:
    """Whether an SDK subscribes again after an unsubscribe push with `code`: from 2500 on."""
    return code >= 2500


def cut(reason: str, size: int = MAX_REASON) -> str:
    """`reason` in at most `size` bytes of UTF-8, never in the middle of a character."""
    return reason.encode()[:size].decode(errors="ignore")


class Disconnect(Exception):
    """The connection is over."""

    def __init__(self, close: Close, detail: str = "") -> None:
        super().__init__(close, detail)
        self.close = close
        self.detail = detail

    @property
    def code(self) -> int:
        return self.close.code

    @property
    def reason(self) -> str:
        return self.close.reason

    def __str__(self) -> str:
        return f"{self.code} {self.reason}" + (f" ({self.detail})" if self.detail else "")


class ProtocolError(Disconnect):
    """The client sent what the protocol does not allow. `detail` says what, without the client's data."""

    def __init__(self, detail: str) -> None:
        super().__init__(BAD_REQUEST, detail)


class NotJson(Disconnect):
    """Data that is not JSON was about to go to a JSON client."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(INAPPROPRIATE_PROTOCOL, detail)


class Refused(Exception):
    """The command is answered with an error. Codes from 400 on are the application's own."""

    def __init__(self, code: int, message: str = "", temporary: bool = False) -> None:
        if isinstance(code, ErrorCode):
            message, temporary = message or code.message, temporary or code.temporary
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.temporary = temporary
