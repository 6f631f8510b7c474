"""Orders about a user's connections, carried out on every node: subscribe, unsubscribe, disconnect, refresh.

They travel as messages between nodes and may be lost, so nothing that ends a session goes this way.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import msgspec
import structlog

from config.redis import Unavailable
from config.settings import Client as Settings
from gateway.channels import Channel, Channels, grant
from gateway.client import MAX_TTL, Flag
from gateway.control import Control
from gateway.deadlines import NEVER
from gateway.hub import Gone, Hub
from gateway.joining import Joining, Wish
from gateway.peers import Peer
from gateway.protocol.codes import CONNECTION_EXPIRED, SERVER_UNSUBSCRIBE, Close, Disconnect, ErrorCode, Refused
from gateway.protocol.commands import RefreshResult, SubscribePush, SubscribeRequest

log = structlog.get_logger(__name__)

KIND = "order"


class Order(msgspec.Struct, frozen=True, tag=True):
    """Whose connections it is about: of `user`, and of `client` if named, but none of `spared` (client ids).

    `session` is a connection's own secret, never a `sid`.
    """

    user: str
    client: str = ""
    session: str = ""
    spared: tuple[str, ...] = ()


class Subscribing(Order, frozen=True, kw_only=True):
    channel: str
    expire_at: int = 0
    info: bytes = b""
    data: bytes = b""
    since: tuple[int, str] | None = None
    override: dict[str, bool] = {}


class Unsubscribing(Order, frozen=True, kw_only=True):
    channel: str


class Disconnecting(Order, frozen=True, kw_only=True):
    code: int
    reason: str


class Refreshing(Order, frozen=True, kw_only=True):
    expired: bool = False
    expire_at: int = 0
    info: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Subscribing | Unsubscribing | Disconnecting | Refreshing).decode


class Orders:
    """This node's part: gives orders, and hears its own and the others'."""

    def __init__(
        self,
        hub: Hub,
        joining: Joining,
        channels: Channels,
        control: Control,
        settings: Settings,
        database_now: Callable[[], float],
        assured: Callable[[Peer, Channel], Awaitable[bool]],
    ) -> None:
        """`assured`: whether a peer's session has shown what a channel demands."""
        self._hub = hub
        self._joining = joining
        self._channels = channels
        self._control = control
        self._settings = settings
        self._database_now = database_now
        self._assured = assured

    def listen(self) -> None:
        """Carry out what is ordered from now on."""
        self._control.on[KIND] = self._hear

    async def give(self, order: Order) -> None:
        """Here, then on all other nodes. Raises Unavailable if they could not be told."""
        await self._control.tell(KIND, _encode(order))

    def _hear(self, payload: bytes) -> bytes | Awaitable[bytes]:
        order = _decode(payload)
        match order:
            case Disconnecting():
                self._hub.close_all(list(self._of(order)), Close(order.code, order.reason))
            case Unsubscribing():
                self._unsubscribe(order)
            case Refreshing():
                self._refresh(order)
            case Subscribing():
                return self._subscribe(order)
        return b""

    def _of(self, order: Order) -> Iterable[Peer]:
        """This node's connections that it is about. On WebSocket none has a secret of its own."""
        if order.session:
            return []
        return [
            peer
            for peer in self._hub.current.users.get(order.user)
            if (not order.client or peer.id == order.client) and peer.id not in order.spared
        ]

    def _unsubscribe(self, order: Unsubscribing) -> None:
        for peer in self._of(order):
            for name in [order.channel] if order.channel else list(peer.subs):
                if (sub := peer.subs.get(name)) is not None:
                    self._hub.unsubscribe(peer, sub, SERVER_UNSUBSCRIBE)

    def _refresh(self, order: Refreshing) -> None:
        now, left = self._hub.clock(), order.expire_at - self._database_now()
        for peer in self._of(order):
            if order.expired or (order.expire_at and left <= 0):
                self._hub.close(peer, CONNECTION_EXPIRED)
                continue
            peer.info = order.info or peer.info
            # `token_at` stays: then the session is asked for its own end, which no order moves.
            peer.expires_at = NEVER
            if order.expire_at:
                peer.expires_at = now + min(left, MAX_TTL) + self._settings.expired_close_delay
            self._hub.deadlines.set(peer, peer.next_deadline())
            result = RefreshResult(expires=order.expire_at > 0, ttl=max(0, round(left)) if order.expire_at else 0)
            self._hub.send(peer, peer.encoding.codec.refresh(result))

    async def _subscribe(self, order: Subscribing) -> bytes:
        await asyncio.gather(*(self._subscribe_one(peer, order) for peer in self._of(order)))
        return b""

    async def _subscribe_one(self, peer: Peer, order: Subscribing) -> None:
        if order.channel in peer.subs:
            return
        try:
            if not await self._assured(peer, self._channels.server(order.channel)):
                raise Refused(ErrorCode.PERMISSION_DENIED)
            await self._hub.pass_gate(peer)
            async with self._joining.tickets(peer, [self._wish(peer, order)]) as (ticket,):
                if peer.home is not self._hub.current or order.channel in peer.subs:
                    return
                result, codec = ticket.result(), peer.encoding.codec
                push = SubscribePush(result.recoverable, result.epoch, result.offset, result.positioned, order.data)
                self._hub.send(peer, codec.subscribe(order.channel, push))
                for publication in result.publications:
                    self._hub.send(peer, codec.pub(order.channel, publication))
                self._joining.enter(ticket)
            await self._joining.announce(ticket)
        except (Refused, Gone, Unavailable) as error:
            log.info("server_subscribe_failed", channel=order.channel, client=peer.id, why=str(error))
        except Disconnect as end:
            self._hub.close(peer, end.close)

    def _wish(self, peer: Peer, order: Subscribing) -> Wish:
        channel = self._channels.server(order.channel)
        granted = grant(channel, peer.user, SubscribeRequest(channel=channel.name), order.override)
        expires_at = NEVER
        if order.expire_at:
            left = order.expire_at - self._database_now()
            expires_at = self._hub.clock() + left + self._settings.expired_sub_close_delay
        return Wish(
            channel,
            granted,
            since=order.since if granted.recoverable else None,
            recovering=order.since is not None,
            info=order.info,
            data=order.data,
            expires_at=expires_at,
            flags=Flag.SERVER,
        )
