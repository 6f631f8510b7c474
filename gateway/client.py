"""One connection as its client sees it: what it may do next, and what that takes. Pure.

State and decisions live here; nothing here reads a clock, awaits or writes. `decide` turns a command into an effect
that the driver performs, or raises what the client is told instead: Refused (an error reply) or Disconnect (the end).
Moments are seconds of the local clock that counts suspend. Whether the connection's session lives is the hub's.
"""

from collections import deque
from collections.abc import Mapping
from enum import IntEnum
from random import SystemRandom
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from config.settings import Client as Settings
from gateway.channels import (
    Channel,
    Channels,
    LowAssurance,
    assured,
    may_history,
    may_presence,
    may_publish,
    may_subscribe,
)
from gateway.deadlines import NEVER, Entry
from gateway.protocol.codes import (
    CONNECTION_EXPIRED,
    INVALID_TOKEN,
    STALE,
    SUB_EXPIRED,
    TOO_MANY_REQUESTS,
    Close,
    Disconnect,
    ErrorCode,
    ProtocolError,
    Refused,
)
from gateway.protocol.commands import (
    ClientInfo,
    Command,
    ConnectRequest,
    HistoryRequest,
    PresenceRequest,
    PresenceStatsRequest,
    PublishRequest,
    RefreshRequest,
    RpcRequest,
    SendRequest,
    StreamPosition,
    SubRefreshRequest,
    SubscribeRequest,
    UnsubscribeRequest,
)
from sessions.model import Position, Standing

MAX_TTL = 365 * 86400
"""Seconds; a longer life is cut (protocol.md 13)."""

WARN_AHEAD = 60.0
"""Seconds before the end of a session at which its clients are told."""

ASK_AGAIN = 5.0
"""Seconds after which a question to PostgreSQL that was not answered is asked again."""

PENDING = 64
"""Commands that may wait for the one under way before reading pauses; it goes on at half of that."""


class Phase(IntEnum):
    NEW = 0  # nothing said yet
    CONNECTING = 1  # its connect command is under way
    LIVE = 2
    REFUSED = 3  # its connect was answered with an error: nothing more is answered, the stale deadline ends it


class Flag:
    """What a subscription is and gets: bits of plain integers, since they are looked at often."""

    POSITIONED = 1
    RECOVERABLE = 2
    PRESENCE = 4  # is listed
    EMIT = 8  # its joining and leaving is told to others
    PUSH = 16  # hears of others' joining and leaving
    SERVER = 32  # the server made it
    TOKEN = 64  # the connection token made it
    MEMBER = 128  # every subscription


class Subscription:
    """One connection in one channel. `index` and `start` belong to the hub."""

    __slots__ = ("channel", "expires_at", "flags", "index", "info", "peer", "start")

    def __init__(self, peer: "Client", channel: str, flags: int, info: bytes = b"", expires_at: float = NEVER) -> None:
        self.peer = peer
        self.channel = channel
        self.flags = flags | Flag.MEMBER
        self.info = info
        self.expires_at = expires_at
        self.index = -1
        self.start = 0


random = SystemRandom()


def new_client_id() -> str:
    """A connection's public id: a random UUID (RFC 9562, version 4)."""
    number = random.getrandbits(128) & ~(0xF << 76) & ~(0x3 << 62) | 4 << 76 | 2 << 62
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


NO_SUBS: Mapping[str, Any] = MappingProxyType({})


class Due(NamedTuple):
    """What time has brought. `kind` is one of the DUE_ constants; `sub` with DUE_SUBSCRIPTION."""

    kind: str
    close: Close | None = None
    sub: Subscription | None = None


DUE_CLOSE = "close"
DUE_ABSOLUTE = "absolute"  # the session's absolute end
DUE_WARN = "warn"  # the absolute end is near
DUE_IDLE = "idle"  # ask whether the session was idle
DUE_SESSION = "session"  # the token is over: ask when its session ends
DUE_SUBSCRIPTION = "subscription"


class Effect(msgspec.Struct, gc=False):
    """What the driver does for a command, and answers under `id`."""

    id: int


class Connect(Effect):
    request: ConnectRequest


class Subscribe(Effect):
    """`allowed` without a token; with one the token decides."""

    request: SubscribeRequest
    channel: Channel


class Unsubscribe(Effect):
    sub: Subscription | None


class Publish(Effect):
    """`echo`: the client is subscribed itself, so its publication comes before its reply."""

    channel: Channel
    data: bytes
    info: ClientInfo
    echo: bool


class ReadPresence(Effect):
    channel: str


class CountPresence(Effect):
    channel: str


class ReadHistory(Effect):
    channel: Channel
    limit: int
    since: StreamPosition | None
    reverse: bool


class Refresh(Effect):
    token: str


class SubRefresh(Effect):
    sub: Subscription
    token: str


class Call(Effect):
    method: str
    data: bytes


class Message(Effect):
    data: bytes


class Handshake(NamedTuple):
    """What is kept of the handshake until the connect command: the cookie's secret if it counts, and for the record.

    An anonymous connection keeps the record, which stands nowhere else; `at` is then when it connected (database time).
    """

    secret: str | None
    address: str
    device: str
    at: float = 0.0


class Client:
    """One connection's state. The slots from `bucket` to `pings` belong to the wheel and the deadlines."""

    __slots__ = (
        "aal",
        "address",
        "born",
        "bucket",
        "deadline",
        "ends_at",
        "expires_at",
        "grace",
        "handshake",
        "id",
        "idle",
        "idle_at",
        "info",
        "issuer",
        "kind",
        "meta",
        "own_sid",
        "phase",
        "pings",
        "place",
        "position",
        "queue",
        "rate_count",
        "rate_since",
        "seen_at",
        "sid",
        "stale_at",
        "subs",
        "token_at",
        "user",
        "warned",
    )

    def __init__(self, id: str, *, address: str, handshake: Handshake | None, stale_at: float) -> None:
        """`address` is the one that this connection has a place of; "" where none is counted."""
        self.id = id
        self.address = address
        self.handshake = handshake
        self.stale_at = stale_at
        self.phase = Phase.NEW
        self.user = self.sid = self.kind = self.issuer = ""
        self.born = 0
        self.aal = 1
        self.position = Position(0, "")
        self.own_sid = True
        self.info = self.meta = b""
        self.subs: Mapping[str, Subscription] = NO_SUBS
        self.queue: deque[Command] | None = None
        self.rate_since = 0.0
        self.rate_count = 0
        self.token_at = self.expires_at = self.ends_at = self.idle_at = NEVER
        self.idle = self.grace = self.seen_at = 0.0
        self.warned = False
        self.deadline: Entry | None = None
        self.bucket = self.place = -1
        self.pings = 0

    # -- commands, in order

    def receive(self, commands: list[Command], now: float, rate: int) -> list[Command]:
        """Take what one frame brought; commands over `rate` a second come back, to be refused with 111.

        Disconnect: a pong that no ping asked for (3501), more than twice the rate (3013).
        """
        refused: list[Command] = []
        if now - self.rate_since >= 1.0:
            self.rate_since, self.rate_count = now, 0
        for command in commands:
            self.rate_count += 1
            if self.rate_count > 2 * rate:
                raise Disconnect(TOO_MANY_REQUESTS)
            if command.request is None:
                self._pong()
            elif self.rate_count > rate and command.id:
                refused.append(command)
            else:
                if self.queue is None:
                    self.queue = deque()
                self.queue.append(command)
        return refused

    def _pong(self) -> None:
        if self.pings <= 0:
            raise ProtocolError("a pong that no ping asked for")
        self.pings -= 1

    def next(self) -> Command | None:
        """The next command to perform; None when nothing waits."""
        queue = self.queue
        if not queue:
            self.queue = None
            return None
        return queue.popleft()

    @property
    def crowded(self) -> bool:
        """So many commands wait that reading should pause."""
        return self.queue is not None and len(self.queue) > PENDING

    @property
    def roomy(self) -> bool:
        """Few enough wait that reading may go on."""
        return self.queue is None or len(self.queue) <= PENDING // 2

    # -- what a command takes

    def decide(self, command: Command, settings: Settings, channels: Channels) -> Effect | None:
        """What `command` takes; None for one that gets no answer. Raises Refused, Disconnect."""
        request = command.request
        if self.phase is Phase.REFUSED:
            return None
        if isinstance(request, ConnectRequest):
            if self.phase is not Phase.NEW:
                raise ProtocolError("a second connect")
            self.phase = Phase.CONNECTING
            return Connect(command.id, request)
        if self.phase is not Phase.LIVE:
            raise ProtocolError("a command before connect")
        decider = _DECIDERS.get(type(request))
        if decider is None:
            raise ProtocolError("an unknown command")
        effect: Effect = decider(self, command.id, request, settings, channels)
        return effect

    def _subscribe(self, id: int, request: SubscribeRequest, settings: Settings, channels: Channels) -> Effect:
        channel = channels.client(request.channel)
        if channel.name in self.subs:
            raise Refused(ErrorCode.ALREADY_SUBSCRIBED)
        if settings.channel_limit and len(self.subs) >= settings.channel_limit:
            raise Refused(ErrorCode.LIMIT_EXCEEDED)
        if request.type:
            raise Refused(ErrorCode.NOT_AVAILABLE)
        if request.tf is not None:
            raise Refused(ErrorCode.BAD_REQUEST)
        if not request.token:
            _allow(may_subscribe(channel, self.user))
        self._assure(channel)
        return Subscribe(id, request, channel)

    def _unsubscribe(self, id: int, request: UnsubscribeRequest, _settings: Settings, _channels: Channels) -> Effect:
        return Unsubscribe(id, self.subs.get(request.channel))

    def _publish(self, id: int, request: PublishRequest, _settings: Settings, channels: Channels) -> Effect:
        channel = channels.client(request.channel)
        if request.type:
            raise Refused(ErrorCode.NOT_AVAILABLE)
        if not request.data:
            raise Refused(ErrorCode.BAD_REQUEST)
        sub = self.subs.get(channel.name)
        _allow(may_publish(channel, self.user, sub is not None))
        self._assure(channel)
        return Publish(id, channel, request.data, self.about(sub), sub is not None)

    def _presence(self, id: int, request: PresenceRequest, _settings: Settings, channels: Channels) -> Effect:
        channel = channels.client(request.channel)
        _allow(may_presence(channel, self.user, channel.name in self.subs))
        self._assure(channel)
        return ReadPresence(id, channel.name)

    def _presence_stats(
        self, id: int, request: PresenceStatsRequest, _settings: Settings, channels: Channels
    ) -> Effect:
        channel = channels.client(request.channel)
        _allow(may_presence(channel, self.user, channel.name in self.subs))
        self._assure(channel)
        return CountPresence(id, channel.name)

    def _history(self, id: int, request: HistoryRequest, settings: Settings, channels: Channels) -> Effect:
        channel = channels.client(request.channel)
        _allow(may_history(channel, self.user, channel.name in self.subs))
        self._assure(channel)
        if request.reverse and request.since is not None and request.since.offset == 0:
            raise Refused(ErrorCode.BAD_REQUEST)  # there is nothing before the beginning
        most = settings.history_max_publication_limit
        limit = request.limit
        if most and (limit < 0 or limit > most):
            limit = most
        return ReadHistory(id, channel, limit, request.since, request.reverse)

    def _refresh(self, id: int, request: RefreshRequest, _settings: Settings, _channels: Channels) -> Effect:
        if not request.token:
            raise ProtocolError("refresh without a token")
        return Refresh(id, request.token)

    def _sub_refresh(self, id: int, request: SubRefreshRequest, _settings: Settings, _channels: Channels) -> Effect:
        sub = self.subs.get(request.channel)
        if sub is None:
            raise Refused(ErrorCode.PERMISSION_DENIED)
        if not request.token:
            raise Refused(ErrorCode.BAD_REQUEST)
        return SubRefresh(id, sub, request.token)

    def _rpc(self, id: int, request: RpcRequest, _settings: Settings, _channels: Channels) -> Effect:
        return Call(id, request.method, request.data)

    def _send(self, id: int, request: SendRequest, _settings: Settings, _channels: Channels) -> Effect:
        return Message(id, request.data)

    def _assure(self, channel: Channel) -> None:
        if not assured(channel, self.aal):
            raise LowAssurance(channel)

    def about(self, sub: Subscription | None = None) -> ClientInfo:
        """Who this is, to others in a channel."""
        return ClientInfo(self.user, self.id, self.info, sub.info if sub is not None else b"")

    # -- identity

    def become(self, standing: Standing, now: float, database_now: float, settings: Settings) -> None:
        """Be held to `standing` from now on: on connect, and on a refresh that was accepted."""
        if standing.sid != self.sid:
            self.ends_at, self.warned = NEVER, False
        self.user, self.sid, self.born = standing.user, standing.sid, standing.born
        self.kind, self.issuer, self.position = standing.kind, standing.issuer, standing.position
        self.own_sid, self.aal = standing.own_sid, standing.aal
        self.info, self.meta = standing.info or self.info, standing.meta or self.meta
        self.token_at, self.expires_at = NEVER, NEVER
        if standing.token_expires_at is not None:
            self.token_at = now + min(standing.token_expires_at - database_now, MAX_TTL)
            self.expires_at = self.token_at + settings.expired_close_delay
        if standing.expires_at:
            self.ends_at = now + (standing.expires_at - database_now)
        self.idle = standing.idle
        self.seen(now)

    def follows(self, standing: Standing) -> bool:
        """Whether a refresh may hold this connection to `standing` (9c).

        The same user of the same issuer, nobody being one too; the same session, unless a token of others without a
        `sid` of its own brings the session of the new token.
        """
        if standing.user != self.user or standing.issuer != self.issuer:
            return False
        moves = standing.kind == self.kind and self.kind in ("external", "anonymous")
        return standing.sid == self.sid or (moves and not standing.own_sid)

    def seen(self, now: float) -> None:
        """Activity: the idle end moves away. `idle_at` is when to ask next whether it has come."""
        self.seen_at = now
        if self.idle:
            self.idle_at = now + self.idle - WARN_AHEAD

    # -- time

    def next_deadline(self) -> float:
        """When to ask `due` next."""
        if self.phase is not Phase.LIVE:
            return max(self.stale_at, self.grace)
        at = min(
            self.expires_at,
            self.ends_at if self.warned else self.ends_at - WARN_AHEAD,
            self.idle_at,
            self.token_at if self._end_unknown else NEVER,
        )
        for sub in self.subs.values():
            if sub.expires_at < at:
                at = sub.expires_at
        return max(at, self.grace)

    @property
    def _end_unknown(self) -> bool:
        """A token does not say when its session ends; one without a row has no other end."""
        return self.ends_at == NEVER and self.kind != "anonymous"

    def due(self, now: float) -> list[Due]:
        """What time has brought by `now`, the end first. A question that found no answer is asked again."""
        if now < self.grace:
            return []
        if self.phase is not Phase.LIVE:
            return [Due(DUE_CLOSE, STALE)] if now >= self.stale_at else []
        if now >= self.ends_at:
            return [Due(DUE_ABSOLUTE)]
        if now >= self.expires_at:
            return [Due(DUE_CLOSE, CONNECTION_EXPIRED)]
        out = []
        if now >= self.ends_at - WARN_AHEAD and not self.warned:
            self.warned = True
            out.append(Due(DUE_WARN))
        if now >= self.idle_at:
            self.idle_at = now + ASK_AGAIN
            out.append(Due(DUE_IDLE))
        if now >= self.token_at and self._end_unknown:
            self.token_at = now + ASK_AGAIN
            out.append(Due(DUE_SESSION))
        for sub in list(self.subs.values()):
            if now >= sub.expires_at:
                if sub.flags & Flag.SERVER:
                    return [Due(DUE_CLOSE, SUB_EXPIRED)]
                out.append(Due(DUE_SUBSCRIPTION, sub=sub))
        return out


_DECIDERS: Mapping[type, Any] = {
    SubscribeRequest: Client._subscribe,
    UnsubscribeRequest: Client._unsubscribe,
    PublishRequest: Client._publish,
    PresenceRequest: Client._presence,
    PresenceStatsRequest: Client._presence_stats,
    HistoryRequest: Client._history,
    RefreshRequest: Client._refresh,
    SubRefreshRequest: Client._sub_refresh,
    RpcRequest: Client._rpc,
    SendRequest: Client._send,
}


def _allow(refusal: ErrorCode | None) -> None:
    if refusal is not None:
        raise Refused(refusal)


def check_subscription_token(client: Client, channel: str, token_channel: str, user: str, token_client: str) -> None:
    """A good token that is for something else, or for somebody else, ends the connection (protocol.md 26)."""
    if channel != token_channel or user != client.user or (token_client and token_client != client.id):
        raise Disconnect(INVALID_TOKEN)
