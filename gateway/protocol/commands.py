"""What is said on the wire, as objects: commands and what they ask for, results of replies, what pushes carry.

Shapes live here, with the names of the Centrifuge protocol; bytes are the codec's, and what a command may do is the
client's. `data`, `conn_info` and `chan_info` are bytes as they came: JSON text from and for JSON clients, anything from
and for Protobuf clients; b"" is absent. Offsets and ids are unsigned; a `ttl` is in whole seconds.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from msgspec import Meta, Raw, Struct

from gateway.protocol.codes import ProtocolError

if TYPE_CHECKING:
    Json = bytes
else:
    Json = Raw  # what the JSON decoder must see to leave the bytes alone; `__post_init__` makes bytes of it

U32 = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Offset = Annotated[int, Meta(ge=0)]
I32 = Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)]
I64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]

MAX_COMMANDS = 1024
"""Commands in one frame: eight times the default `channel_limit`, since an SDK subscribes again to all in one frame."""

MAX_OFFSET = 2**63 - 1
"""Greater offsets than any stream reaches, which Redis could not take, break the protocol."""

DELTAS = frozenset({"fossil"})
"""Delta types that exist; asking for another one breaks the protocol."""


class Request(Struct, gc=False):
    """What a command asks for; the class says which command it is."""

    kind: ClassVar[str] = ""

    def broken(self) -> str:
        """Which rule of the protocol it breaks, "" for none. Only rules that need no state."""
        return ""


class ChannelRequest(Request):
    """A request about one channel, which must be named."""

    channel: str = ""

    def broken(self) -> str:
        return "" if self.channel else f"{self.kind} without a channel"


class StreamPosition(Struct, frozen=True, gc=False):
    """A place in a channel's stream."""

    offset: Offset = 0
    epoch: str = ""


class FilterNode(Struct, gc=False):
    """A node of a subscription filter over tags: a comparison (`op` is "") or `and`, `or`, `not` over `nodes`."""

    op: str = ""
    key: str = ""
    cmp: str = ""
    val: str = ""
    vals: list[str] = []
    nodes: list["FilterNode"] = []


class SubscribeRequest(ChannelRequest):
    """`type` other than 0 asks for a map or shared-poll subscription, which we do not have: 108."""

    kind = "subscribe"
    token: str = ""
    recover: bool = False
    epoch: str = ""
    offset: Offset = 0
    data: Json = b""
    positioned: bool = False
    recoverable: bool = False
    join_leave: bool = False
    delta: str = ""
    tf: FilterNode | None = None
    flag: I64 = 0
    type: I32 = 0

    def __post_init__(self) -> None:
        self.data = bytes(self.data)

    def broken(self) -> str:
        if self.delta and self.delta not in DELTAS:
            return "unknown delta"
        if self.offset > MAX_OFFSET:
            return "offset out of range"
        return super().broken()


class ConnectRequest(Request):
    """`subs`: server-side subscriptions to join or to recover, by channel."""

    kind = "connect"
    token: str = ""
    data: Json = b""
    subs: dict[str, SubscribeRequest] = {}
    name: str = ""
    version: str = ""
    headers: dict[str, str] = {}
    flag: I64 = 0

    def __post_init__(self) -> None:
        self.data = bytes(self.data)

    def broken(self) -> str:
        if "" in self.subs:
            return "subs without a channel"
        return "offset out of range" if any(sub.offset > MAX_OFFSET for sub in self.subs.values()) else ""


class UnsubscribeRequest(ChannelRequest):
    kind = "unsubscribe"


class PublishRequest(ChannelRequest):
    """`type` other than 0 asks for a map, which we do not have: 108. Without data: 107."""

    kind = "publish"
    data: Json = b""
    type: I32 = 0

    def __post_init__(self) -> None:
        self.data = bytes(self.data)


class PresenceRequest(ChannelRequest):
    kind = "presence"


class PresenceStatsRequest(ChannelRequest):
    kind = "presence_stats"


class HistoryRequest(ChannelRequest):
    """`limit` 0 asks for the position alone, -1 for as much as the server gives."""

    kind = "history"
    limit: I32 = 0
    since: StreamPosition | None = None
    reverse: bool = False

    def broken(self) -> str:
        if self.since is not None and self.since.offset > MAX_OFFSET:
            return "offset out of range"
        return super().broken()


class RpcRequest(Request):
    kind = "rpc"
    data: Json = b""
    method: str = ""

    def __post_init__(self) -> None:
        self.data = bytes(self.data)


class SendRequest(Request):
    """The one command without an id, and without an answer."""

    kind = "send"
    data: Json = b""

    def __post_init__(self) -> None:
        self.data = bytes(self.data)


class RefreshRequest(Request):
    kind = "refresh"
    token: str = ""

    def broken(self) -> str:
        return "" if self.token else "refresh without a token"


class SubRefreshRequest(ChannelRequest):
    kind = "sub_refresh"
    token: str = ""


class Command(Struct, gc=False):
    """One command. `request` None is a pong. `id` is 0 for a pong and may be 0 for `send`, else it is above 0."""

    id: int
    request: Request | None

    @property
    def kind(self) -> str:
        return "pong" if self.request is None else self.request.kind


PONG = Command(0, None)


def command(id: int, requests: Sequence[Request]) -> Command:
    """What both forms make of a command that could be read: ProtocolError unless it is one method with its id."""
    if len(requests) != 1:
        if requests or id:
            raise ProtocolError("several methods" if requests else "id without a method")
        return PONG
    request = requests[0]
    if id == 0 and type(request) is not SendRequest:
        raise ProtocolError("method without an id")
    broken = request.broken()
    if broken:
        raise ProtocolError(broken)
    return Command(id, request)


class ClientInfo(Struct, gc=False):
    """Who a connection is: in presence, join, leave, and as the author of a client's publication."""

    user: str = ""
    client: str = ""
    conn_info: bytes = b""
    chan_info: bytes = b""


class Publication(Struct, gc=False):
    """One publication.

    `offset` is 0 in a channel without history. `epoch` is the stream's; it is written only in a live push at offset 1.
    `time` is unix milliseconds and for the server alone; no codec writes it.
    """

    data: bytes = b""
    offset: int = 0
    epoch: str = ""
    info: ClientInfo | None = None
    tags: dict[str, str] = {}
    time: int = 0
    delta: bool = False


class Result(Struct, gc=False):
    """What a reply says; the class says which command it answers."""

    kind: ClassVar[str] = ""


class SubscribeResult(Result):
    """`offset` is the one of the request where publications were recovered, else the top of the stream."""

    kind = "subscribe"
    expires: bool = False
    ttl: int = 0
    recoverable: bool = False
    epoch: str = ""
    publications: list[Publication] = []
    recovered: bool = False
    offset: int = 0
    positioned: bool = False
    data: bytes = b""
    was_recovering: bool = False
    delta: bool = False


class ConnectResult(Result):
    """`ping` in seconds, 0 where WebSocket's own pings are used. `session` and `node` only on emulated transports."""

    kind = "connect"
    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: int = 0
    data: bytes = b""
    subs: dict[str, SubscribeResult] = {}
    ping: int = 0
    pong: bool = False
    session: str = ""
    node: str = ""


class UnsubscribeResult(Result):
    kind = "unsubscribe"


class PublishResult(Result):
    kind = "publish"


class PresenceResult(Result):
    """By client id. Always written, also when empty."""

    kind = "presence"
    presence: dict[str, ClientInfo] = {}


class PresenceStatsResult(Result):
    """Always written, also when 0."""

    kind = "presence_stats"
    num_clients: int = 0
    num_users: int = 0


class HistoryResult(Result):
    """Always written, also when empty."""

    kind = "history"
    publications: list[Publication] = []
    epoch: str = ""
    offset: int = 0


class RpcResult(Result):
    kind = "rpc"
    data: bytes = b""


class RefreshResult(Result):
    """The reply to `refresh`, and the `refresh` push."""

    kind = "refresh"
    client: str = ""
    version: str = ""
    expires: bool = False
    ttl: int = 0


class SubRefreshResult(Result):
    kind = "sub_refresh"
    expires: bool = False
    ttl: int = 0


class SubscribePush(Struct, gc=False):
    """The server subscribed the client; `offset` 0 is left out."""

    recoverable: bool = False
    epoch: str = ""
    offset: int = 0
    positioned: bool = False
    data: bytes = b""
