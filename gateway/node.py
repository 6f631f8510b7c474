"""This process in the cluster: hub, driver, broker, presence, registry, control and revocations joined to one thing.

What the HTTP API asks for is here. How one connection talks is the driver's, who hears what is the hub's, and what
concerns a user's connections on all nodes is an order.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import structlog
from aiohttp import web

from auth.identity import Identity
from config.clock import Clock, SystemClock
from config.redis import Unavailable
from config.settings import Settings
from config.tasks import Tasks
from gateway.anonymous import AnonymousSessions
from gateway.broker import Broker, StreamPosition
from gateway.caps import Caps
from gateway.channels import Channel, Channels, UnknownChannel
from gateway.control import Control
from gateway.driver import Driver, Parts, RpcCall, RpcHandler
from gateway.history import History, Stream, WrongEpoch
from gateway.hub import Hub
from gateway.joining import Joining
from gateway.orders import Disconnecting, Order, Orders, Refreshing, Subscribing, Unsubscribing
from gateway.peers import Peer
from gateway.presence import Presence
from gateway.protocol.codes import (
    CONNECTION_LIMIT,
    SHUTDOWN,
    Disconnect,
    ErrorCode,
    Refused,
)
from gateway.protocol.commands import ClientInfo
from gateway.registry import Registry
from gateway.transports.websocket import WebSocketTransport
from sessions.revocations import Revocations
from sessions.service import Sessions

__all__ = ["Node", "NodeError", "RpcCall"]

log = structlog.get_logger(__name__)

LOOK_FOR_OTHERS = 2.0
"""Seconds between looks at the other nodes while this one is frozen (10d)."""


class NodeError(Exception):
    """A refusal of a method of the server API."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code)
        self.code = code


_encode = msgspec.msgpack.Encoder().encode


class Node:
    """One per process. `start` it after the parts that it is given; `drain`, then `close`."""

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        revocations: Revocations,
        sessions: Sessions,
        identity: Identity,
        broker: Broker,
        history: History,
        presence: Presence,
        registry: Registry,
        control: Control,
        caps: Caps,
        clock: Clock | None = None,
        cookie: str = "wardgate",
        version: str = "0.1.0",
    ) -> None:
        """`cookie`: the name of the session cookie."""
        client = settings.client
        self.name = name
        self.on_rpc: dict[str, RpcHandler] = {}
        """Handlers by method; a handler may raise `gateway.protocol.codes.Refused`."""
        self._settings = settings
        self._version = version
        self._began = time.monotonic()
        self._revocations = revocations
        self._broker, self._history, self._presence = broker, history, presence
        self._registry, self._control, self._caps = registry, control, caps
        self._tasks = Tasks()
        self._channels = Channels(settings.channel, client)
        self.hub = Hub(
            clock=(clock or SystemClock()).now,
            lease=revocations,
            queue_max_size=client.queue_max_size,
            ping_interval=client.ping_interval,
            pong_timeout=client.pong_timeout,
            hold=settings.sessions.hold,
            max_hold=settings.sessions.max_hold,
        )
        self._joining = Joining(
            self.hub, broker, history, presence, self._tasks, recovery_limit=client.recovery_max_publication_limit
        )
        parts = Parts(
            self.hub,
            self._channels,
            self._joining,
            broker,
            history,
            presence,
            registry,
            identity,
            sessions,
            revocations,
            self._tasks,
            caps.users,
        )
        self.driver = Driver(parts, client, version=version, rpc=self.on_rpc, single=self._end_others)
        self._orders = Orders(
            self.hub,
            self._joining,
            self._channels,
            control,
            client,
            revocations.database_now,
            self.driver.assured,
        )
        self.anonymous = AnonymousSessions(self.hub, control)
        self._transport = WebSocketTransport(
            self.hub,
            cookie=cookie,
            message_size_limit=settings.websocket.message_size_limit,
            stale_close_delay=client.stale_close_delay,
            places=caps.addresses,
            admit=self._admit,
        )
        self._admissions = _Rate(client.connection_rate_limit)
        self._draining = False
        self._bus_restored = asyncio.Event()
        self._others_fresh = False

    # -- life

    async def start(self) -> None:
        """Take connections from now on."""
        hub, broker, revocations = self.hub, self._broker, self._revocations
        hub.receive = self.driver.receive
        hub.on_due = self.driver.due
        hub.on_left = self._joining.left
        hub.on_gone = self._gone
        hub.on_empty = self._joining.unheard
        hub.on_lost = self._lost
        hub.others_fresh = lambda: self._others_fresh
        broker.on_publication = hub.publication
        broker.on_join = hub.joined
        broker.on_leave = hub.left
        broker.on_restored = self._bus_restored.set
        self._registry.describe = self._describe
        self._control.on["channels"] = self._answer_channels
        self._orders.listen()
        self.anonymous.listen()
        revocations.add_listener(hub)
        revocations.on_freeze.append(hub.freeze)
        revocations.on_thaw.append(hub.thaw)
        hub.start()
        client = self._settings.client
        self._tasks.keep("presence", lambda: self._joining.keep_present(client.presence_update_interval))
        self._tasks.keep(
            "positions",
            lambda: self._joining.keep_positions(
                client.channel_position_check_delay, self._bus_restored, self._meta_ttl
            ),
        )
        self._tasks.keep("others", self._look_for_others)

    async def drain(self, seconds: float = 5.0) -> None:
        """Send every connection away with 3001, spread over `seconds`; new ones are refused from now on."""
        self._draining = True
        self.hub.disperse(SHUTDOWN, seconds)
        if self.hub.total:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds + 1.0):
                    await self.hub.emptied.wait()

    async def close(self) -> None:
        """What is left after `drain` ends at once."""
        self._draining = True
        for peer in [*self.hub.members(), *self.hub.current.strangers]:
            self.hub.close(peer, SHUTDOWN)
        self.hub.stop()
        await self._joining.close()
        await self._tasks.close()

    @property
    def connections(self) -> int:
        """Live ones on this node."""
        return self.hub.connections

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """The handler of /connection/websocket."""
        return await self._transport.handle(request)

    def figures(self) -> Mapping[str, float]:
        """For the metrics."""
        return {
            **self.hub.figures(),
            **self.driver.figures(),
            **self._broker.figures(),
            "background_failures": self._tasks.failures,
        }

    def _admit(self) -> bool:
        limit = self._settings.client.connection_limit
        if self._draining or (limit and self.hub.total >= limit):
            return False
        return self._admissions.take(time.monotonic())

    def _lost(self, peer: Peer) -> None:
        if self._caps.addresses is not None:
            self._caps.addresses.release(peer.address)

    def _gone(self, peer: Peer, subs: Sequence[Any]) -> None:
        if self._caps.users is not None and peer.user:
            self._caps.users.release(peer.user)
        self._registry.closed(peer.sid, peer.user)
        self._joining.gone(peer, subs)

    def _describe(self) -> Mapping[str, Any]:
        figures = self.hub.figures()
        return {
            "name": self.name,
            "version": self._version,
            "num_clients": int(figures["connections"]),
            "num_users": len(self.hub.current.users),
            "num_channels": int(figures["channels"]),
            "num_subs": int(figures["subscriptions"]),
            "uptime": int(time.monotonic() - self._began),
            "fresh": not self.hub.gate.frozen,
        }

    async def _look_for_others(self) -> None:
        while True:
            await asyncio.sleep(LOOK_FOR_OTHERS)
            self._others_fresh = False
            if self.hub.gate.frozen:
                with contextlib.suppress(Unavailable):
                    nodes = await self._registry.nodes()
                    self._others_fresh = any(node["uid"] != self.name and node.get("fresh") for node in nodes)

    def _meta_ttl(self, name: str) -> float:
        return self._channels.server(name).history_meta_ttl

    # -- publishing

    async def publish(
        self,
        channel: str,
        data: bytes,
        *,
        skip_history: bool = False,
        tags: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> StreamPosition | None:
        """Its position in the stream, None without history. NodeError: 102, 107, 100."""
        found = self._server_channel(channel)
        try:
            return await self._broker.publish(
                channel,
                data,
                history_size=found.history_size,
                history_ttl=found.history_ttl,
                meta_ttl=found.history_meta_ttl,
                tags=tags,
                idempotency_key=idempotency_key,
                skip_history=skip_history,
            )
        except Unavailable as error:
            raise _away(error) from None

    async def broadcast(
        self,
        channels: Sequence[str],
        data: bytes,
        *,
        skip_history: bool = False,
        tags: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> list[StreamPosition | ErrorCode | None]:
        """The same into many channels; what became of each."""

        async def one(channel: str) -> StreamPosition | ErrorCode | None:
            try:
                return await self.publish(
                    channel, data, skip_history=skip_history, tags=tags, idempotency_key=idempotency_key
                )
            except NodeError as error:
                return error.code

        out: list[StreamPosition | ErrorCode | None] = []
        for start in range(0, len(channels), 256):
            out += await asyncio.gather(*(one(channel) for channel in channels[start : start + 256]))
        return out

    def _server_channel(self, name: str) -> Channel:
        try:
            return self._channels.server(name)
        except UnknownChannel:
            raise NodeError(ErrorCode.UNKNOWN_CHANNEL) from None
        except (Refused, Disconnect):
            raise NodeError(ErrorCode.BAD_REQUEST) from None

    # -- reading

    async def presence(self, channel: str) -> dict[str, ClientInfo]:
        """By client id. NodeError: 102, 107, 108, 100."""
        if not self._server_channel(channel).options.presence:
            raise NodeError(ErrorCode.NOT_AVAILABLE)
        try:
            return await self._presence.get(channel)
        except Unavailable as error:
            raise _away(error) from None

    async def presence_stats(self, channel: str) -> tuple[int, int]:
        """(clients, users)."""
        if not self._server_channel(channel).options.presence:
            raise NodeError(ErrorCode.NOT_AVAILABLE)
        try:
            return await self._presence.stats(channel)
        except Unavailable as error:
            raise _away(error) from None

    async def history(
        self, channel: str, *, limit: int = 0, since: tuple[int, str] | None = None, reverse: bool = False
    ) -> Stream:
        """NodeError: 102, 107, 108 without history, 112 for another epoch, 100."""
        found = self._server_channel(channel)
        if not found.history:
            raise NodeError(ErrorCode.NOT_AVAILABLE)
        if reverse and since is not None and since[0] == 0:
            raise NodeError(ErrorCode.BAD_REQUEST)  # there is nothing before the beginning
        try:
            return await self._history.read(
                channel,
                since=StreamPosition(*since) if since is not None else None,
                limit=limit,
                reverse=reverse,
                meta_ttl=found.history_meta_ttl,
            )
        except WrongEpoch:
            raise NodeError(ErrorCode.UNRECOVERABLE_POSITION) from None
        except Unavailable as error:
            raise _away(error) from None

    async def history_remove(self, channel: str) -> None:
        """Offset and epoch stay."""
        if not self._server_channel(channel).history:
            raise NodeError(ErrorCode.NOT_AVAILABLE)
        try:
            await self._history.remove(channel)
        except Unavailable as error:
            raise _away(error) from None

    async def channels(self, pattern: str = "") -> dict[str, int]:
        """Subscriptions in the cluster by channel; `pattern` is a glob."""
        try:
            answers = await self._control.ask("channels", pattern.encode())
        except Unavailable as error:
            raise _away(error) from None
        total: dict[str, int] = {}
        for answer in answers.answers.values():
            for name, count in msgspec.msgpack.decode(answer, type=dict[str, int]).items():
                total[name] = total.get(name, 0) + count
        return total

    def _answer_channels(self, payload: bytes) -> bytes:
        pattern = payload.decode()
        return _encode(
            {
                name: place.count
                for name, place in self.hub.current.channels.items()
                if place.count and (not pattern or fnmatchcase(name, pattern))
            }
        )

    async def info(self) -> list[dict[str, Any]]:
        """All nodes: uid, name, version, num_clients, num_users, num_channels, num_subs, uptime."""
        try:
            nodes = await self._registry.nodes()
        except Unavailable as error:
            raise _away(error) from None
        return [{name: node[name] for name in _SHOWN if name in node} for node in nodes]

    async def rpc(self, method: str, data: bytes) -> bytes:
        """NodeError: 104, or what the handler refuses with."""
        handler = self.on_rpc.get(method)
        if handler is None:
            raise NodeError(ErrorCode.METHOD_NOT_FOUND)
        return await handler(RpcCall(method, data))

    # -- a user's connections, on all nodes

    async def subscribe(
        self,
        user: str,
        channel: str,
        *,
        client: str = "",
        session: str = "",
        expire_at: int = 0,
        info: bytes = b"",
        data: bytes = b"",
        since: tuple[int, str] | None = None,
        override: Mapping[str, bool] | None = None,
    ) -> None:
        """Subscribe a user's connections. NodeError: 102, 107, 100; nobody there is no error."""
        self._server_channel(channel)
        order = Subscribing(
            user,
            client,
            session,
            channel=channel,
            expire_at=expire_at,
            info=info,
            data=data,
            since=since,
            override=dict(override or {}),
        )
        await self._give(order)

    async def unsubscribe(self, user: str, channel: str, *, client: str = "", session: str = "") -> None:
        """Unsubscribe a user's connections with 2000; an empty channel means all of theirs."""
        if channel:
            self._server_channel(channel)
        await self._give(Unsubscribing(user, client, session, channel=channel))

    async def disconnect(
        self,
        user: str,
        *,
        code: int = 3503,
        reason: str = "force disconnect",
        client: str = "",
        session: str = "",
        whitelist: Sequence[str] = (),
    ) -> None:
        """Close a user's connections, but those whose client id is in `whitelist`."""
        await self._give(Disconnecting(user, client, session, tuple(whitelist), code=code, reason=reason))

    async def refresh(
        self,
        user: str,
        *,
        client: str = "",
        session: str = "",
        expired: bool = False,
        expire_at: int = 0,
        info: bytes = b"",
    ) -> None:
        """Let a user's connections live until `expire_at` (unix seconds; 0: without end), or end now if `expired`."""
        await self._give(Refreshing(user, client, session, expired=expired, expire_at=expire_at, info=info))

    async def _give(self, order: Order) -> None:
        try:
            await self._orders.give(order)
        except Unavailable as error:
            raise _away(error) from None

    async def _end_others(self, peer: Peer) -> None:
        """One connection a user: the newest stays."""
        code, reason = CONNECTION_LIMIT
        with contextlib.suppress(NodeError):
            await self.disconnect(peer.user, code=code, reason=reason, whitelist=[peer.id])


_SHOWN = ("uid", "name", "version", "num_clients", "num_users", "num_channels", "num_subs", "uptime")


def _away(error: Unavailable) -> NodeError:
    log.info("redis_away", why=str(error))
    return NodeError(ErrorCode.INTERNAL)


class _Rate:
    """At most `limit` a second, 0 for no limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._since = 0.0
        self._count = 0

    def take(self, now: float) -> bool:
        if not self._limit:
            return True
        if now - self._since >= 1.0:
            self._since, self._count = now, 0
        self._count += 1
        return self._count <= self._limit
