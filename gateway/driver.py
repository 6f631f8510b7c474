"""Performs what clients decided: one connection's commands in order, each behind the gate, and what time brings.

The client says what a command takes (`decide`), this does it and answers. A peer has a task only while one of its
commands waits for something. Letters in comments are the duties of docs/revocation.md.
"""

import asyncio
import functools
import math
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import Any, NamedTuple

import msgspec
import structlog

from auth.errors import AnonymousNotAllowed, TokenExpired, TokenInvalid
from auth.identity import Connected, Identity
from config.http import Problem, rfc3339
from config.redis import Unavailable
from config.settings import Client as Settings
from config.tasks import Tasks
from gateway.broker import Broker
from gateway.caps import Cap
from gateway.channels import Channel, Channels, LowAssurance, assured, grant
from gateway.client import (
    DUE_ABSOLUTE,
    DUE_SUBSCRIPTION,
    DUE_WARN,
    MAX_TTL,
    WARN_AHEAD,
    Call,
    Connect,
    CountPresence,
    Due,
    Effect,
    Flag,
    Handshake,
    Message,
    Phase,
    Publish,
    ReadHistory,
    ReadPresence,
    Refresh,
    SubRefresh,
    Subscribe,
    Unsubscribe,
    check_subscription_token,
)
from gateway.deadlines import NEVER
from gateway.history import History, WrongEpoch
from gateway.hub import Gone, Hub
from gateway.joining import REJECT_UNRECOVERED, Joining, Ticket, Wish
from gateway.peers import Peer
from gateway.presence import Presence
from gateway.protocol.codes import (
    BAD_REQUEST,
    CHANNEL_LIMIT,
    CONNECTION_EXPIRED,
    CONNECTION_INSUFFICIENT_STATE,
    CONNECTION_LIMIT,
    CONNECTION_PERMISSION_DENIED,
    INVALID_TOKEN,
    NOT_AVAILABLE,
    NOT_CURRENT,
    SERVER_ERROR,
    SUBSCRIPTION_EXPIRED,
    Disconnect,
    ErrorCode,
    Refused,
)
from gateway.protocol.commands import (
    Command,
    ConnectRequest,
    ConnectResult,
    HistoryResult,
    PresenceResult,
    PresenceStatsResult,
    PublishResult,
    RefreshResult,
    Result,
    RpcResult,
    SubRefreshResult,
    SubscribeRequest,
    UnsubscribeResult,
)
from gateway.recovery import beginning
from gateway.registry import Registry
from sessions.errors import SessionEnded
from sessions.ids import new_sid
from sessions.model import EXPIRED, Ended, Standing
from sessions.revocations import Again, Revocations, Verdict
from sessions.service import Sessions

log = structlog.get_logger(__name__)

LONGEST_DEVICE = 300
"""Characters that are kept of what an anonymous client calls itself."""


class RpcCall(NamedTuple):
    """One call of a handler registered in code. `client`, `user` and `sid` are empty over the server API."""

    method: str
    data: bytes
    user: str = ""
    client: str = ""
    sid: str = ""


RpcHandler = Callable[[RpcCall], Awaitable[bytes]]
MessageHandler = Callable[[RpcCall], Awaitable[None]]


class Parts(NamedTuple):
    """What a driver drives with."""

    hub: Hub
    channels: Channels
    joining: Joining
    broker: Broker
    history: History
    presence: Presence
    registry: Registry
    identity: Identity
    sessions: Sessions
    revocations: Revocations
    tasks: Tasks
    places: Cap | None  # of a user, where they are counted


class Driver:
    """One per process. `receive` and `due` are the hub's callbacks."""

    def __init__(
        self,
        parts: Parts,
        settings: Settings,
        *,
        version: str,
        rpc: Mapping[str, RpcHandler],
        single: Callable[[Peer], Awaitable[None]],
    ) -> None:
        """`rpc`: handlers by method, read at every call. `single` ends a user's other connections."""
        self._parts = parts
        self._hub = parts.hub
        self._settings = settings
        self._version = version
        self._rpc = rpc
        self._single = single
        self.on_message: MessageHandler | None = None
        self.commands = self.failed = 0

    def figures(self) -> Mapping[str, float]:
        return {"commands": self.commands, "commands_failed": self.failed}

    # -- what a peer says

    def receive(self, peer: Peer, payload: bytes) -> None:
        """One message of a peer that the gate let in (Hub.receive)."""
        hub = self._hub
        now = hub.clock()
        try:
            commands = peer.encoding.codec.decode(payload)
            refused = peer.receive(commands, now, self._settings.command_rate_limit)
        except Disconnect as end:
            hub.close(peer, end.close)
            return
        if peer.phase is not Phase.REFUSED:
            for command in refused:
                self._error(peer, command.id, Refused(ErrorCode.TOO_MANY_REQUESTS))
        if not peer.queue:
            return
        self.commands += len(commands)
        if peer.phase is Phase.LIVE and peer.idle:
            peer.seen(now)
            self._parts.sessions.seen(peer.sid, peer.idle)
        if peer.task is None:
            self._go_on(peer)
        if peer.crowded:
            peer.hush()

    def _go_on(self, peer: Peer) -> None:
        """Perform commands until one must wait for something: that one gets a task, and the rest wait for it."""
        while peer.home is not None and (command := peer.next()) is not None:
            work = self._begin(peer, command)
            if work is not None:
                peer.task = asyncio.create_task(self._finish(peer, command.id, work))
                peer.task.add_done_callback(functools.partial(_let_go, work))
                break
        if peer.deaf and peer.roomy and peer.home is not None:
            peer.listen()

    def _begin(self, peer: Peer, command: Command) -> Coroutine[Any, Any, None] | None:
        """Decide one command and do what needs no waiting; what is left of it is returned."""
        try:
            effect = peer.decide(command, self._settings, self._parts.channels)
            if effect is None:
                return None
            return _PERFORM[type(effect)](self, peer, effect)
        except LowAssurance as refusal:
            return self._once_assured(peer, command, refusal)
        except Exception as error:
            self._fail(peer, command.id, error)
            return None

    async def _once_assured(self, peer: Peer, command: Command, refusal: LowAssurance) -> None:
        """Perform `command` after all if the session has shown a factor since."""
        if not await self.assured(peer, refusal.channel):
            raise refusal
        effect = peer.decide(command, self._settings, self._parts.channels)
        work = _PERFORM[type(effect)](self, peer, effect) if effect is not None else None
        if work is not None:
            await work

    async def assured(self, peer: Peer, channel: Channel) -> bool:
        """Whether the peer's session has shown the factors that `channel` demands. It may have done so since the peer
        connected (step-up keeps sockets): where the log has a word on it the session is read again. Raises Gone."""
        if assured(channel, peer.aal):
            return True
        if not isinstance(self._parts.revocations.judge(peer.sid, peer.user, peer.born, peer.position), Again):
            return False
        reading = await self._parts.sessions.by_sid(peer.sid)
        self._live(peer)
        if reading is None or reading.session.over(self._database_now()) is not None:
            return False
        peer.aal = max(peer.aal, reading.session.aal)
        return assured(channel, peer.aal)

    async def _finish(self, peer: Peer, id: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._fail(peer, id, error)
        if peer.home is not None:
            peer.task = None
            self._go_on(peer)

    def _fail(self, peer: Peer, id: int, error: Exception) -> None:
        """The one table of what a failure means to the client."""
        match error:
            case Gone():
                pass
            case Refused():
                self._refuse(peer, id, error)
            case Disconnect():
                self._hub.close(peer, error.close)
            case SessionEnded():
                self._hub.end(peer, error.ended)
            case TokenExpired():
                self._refuse(peer, id, Refused(ErrorCode.TOKEN_EXPIRED))
            case AnonymousNotAllowed():
                self._hub.close(peer, CONNECTION_PERMISSION_DENIED)
            case TokenInvalid():
                self._hub.close(peer, INVALID_TOKEN)
            case Unavailable() | Problem():
                log.info("command_failed", client=peer.id, why=str(error))
                self._refuse(peer, id, Refused(ErrorCode.INTERNAL))
            case _:
                log.error("command_failed", client=peer.id, exc_info=error)
                self._refuse(peer, id, Refused(ErrorCode.INTERNAL))

    def _refuse(self, peer: Peer, id: int, refusal: Refused) -> None:
        """The command that was performed failed; if that was the connect, nothing more is answered."""
        if peer.phase is Phase.CONNECTING:
            peer.phase = Phase.REFUSED
            peer.queue = None
        self._error(peer, id, refusal)

    def _error(self, peer: Peer, id: int, refusal: Refused) -> None:
        self.failed += 1
        if id:
            codec = peer.encoding.codec
            self._hub.send(peer, codec.error(id, refusal.code, refusal.message, refusal.temporary))

    def _reply(self, peer: Peer, id: int, result: Result) -> None:
        self._hub.send(peer, peer.encoding.codec.reply(id, result))

    # -- connect

    def _connect(self, peer: Peer, effect: Connect) -> Coroutine[Any, Any, None] | None:
        """Live at once where memory knows who it is and there is nothing to wait for; else what is left to do."""
        request = effect.request
        handshake = peer.handshake
        secret = handshake.secret if handshake is not None else None
        connected = self._lenient(self._parts.identity.try_connect(request.token or None, secret))
        if (
            connected is not None
            and self._parts.places is None
            and not self._server_side(connected, request)
            and self._hub.gate.open()
            and self._try_live(peer, connected.standing) is None
        ):
            self._reply(peer, effect.id, self._welcome(peer, connected))
            return None
        return self._connecting(peer, effect.id, request, handshake, connected)

    async def _connecting(
        self, peer: Peer, id: int, request: ConnectRequest, handshake: Handshake | None, known: Connected | None
    ) -> None:
        connected = known or await self._identify(request, handshake)
        wishes = self._server_side(connected, request)
        if self._parts.places is None or not connected.standing.user:
            await self._go_live(peer, connected.standing)
        else:
            await self._go_live_in_place(peer, connected.standing, self._parts.places)
        personal = self._settings.subscribe_to_user_personal_channel
        if personal.enabled and personal.single_connection and peer.user:
            await self._single(peer)
        result = self._welcome(peer, connected)
        if not wishes:
            self._reply(peer, id, result)
            return
        try:
            await self._start_with(peer, id, result, wishes)
        except (Refused, Unavailable) as error:
            log.info("connect_failed", client=peer.id, why=str(error))
            raise Disconnect(SERVER_ERROR) from error

    def _welcome(self, peer: Peer, connected: Connected) -> ConnectResult:
        return ConnectResult(
            client=peer.id,
            version=self._version,
            expires=connected.expires,
            ttl=connected.ttl(self._database_now()),
            ping=math.ceil(self._settings.ping_interval),
            pong=self._settings.ping_interval > 0 and self._settings.pong_timeout > 0,
        )

    async def _start_with(self, peer: Peer, id: int, result: ConnectResult, wishes: list[Wish]) -> None:
        """The connect reply with its subscriptions, live in the same step."""
        async with self._parts.joining.tickets(peer, wishes) as tickets:
            self._live(peer)
            tickets = [ticket for ticket in tickets if ticket.place.name not in peer.subs]
            result.subs = {ticket.place.name: ticket.result() for ticket in tickets}
            self._reply(peer, id, result)
            for ticket in tickets:
                self._parts.joining.enter(ticket)
        for ticket in tickets:
            await self._parts.joining.announce(ticket)

    async def _identify(self, request: ConnectRequest, handshake: Handshake | None) -> Connected:
        if handshake is not None:
            connected = self._lenient(
                await self._parts.identity.connect(
                    request.token or None, handshake.secret, address=handshake.address, device=handshake.device
                )
            )
            if connected is not None:
                return connected
        if not (self._settings.allow_anonymous_connect_without_token or self._settings.insecure):
            raise Disconnect(BAD_REQUEST, "no credential")
        position = self._parts.revocations.position
        sid = new_sid(self._database_now())
        return Connected(Standing(sid, "", position.seq, position, "anonymous"))

    def _lenient(self, connected: Connected | None) -> Connected | None:
        """With `client.insecure` no token's end is a connection's."""
        if connected is None or not self._settings.insecure:
            return connected
        return connected._replace(standing=msgspec.structs.replace(connected.standing, token_expires_at=None))

    async def _go_live_in_place(self, peer: Peer, standing: Standing, places: Cap) -> None:
        """As `_go_live`, in one of the places that the user has over all nodes."""
        if not await places.take(standing.user):
            raise Disconnect(CONNECTION_LIMIT)
        try:
            await self._go_live(peer, standing)
        except BaseException:  # a cancellation too
            places.release(standing.user)
            raise

    async def _go_live(self, peer: Peer, standing: Standing) -> None:
        """9b: judge and go live in one synchronous block; where memory cannot judge, read again and come back."""
        await self._hub.pass_gate(peer)
        if self._try_live(peer, standing) is not None:
            standing = await self._read_again(standing)
            await self._hub.pass_gate(peer)
            if self._try_live(peer, standing) is not None:
                raise Disconnect(NOT_CURRENT)

    def _try_live(self, peer: Peer, standing: Standing) -> Verdict:
        """The block: nothing in it awaits. The verdict if memory cannot judge, None once the peer is live."""
        self._live(peer)
        verdict = self._parts.revocations.judge_standing(standing)
        if isinstance(verdict, Ended):
            raise SessionEnded(verdict)
        if verdict is None:
            peer.become(standing, self._hub.clock(), self._database_now(), self._settings)
            peer.handshake = None if peer.kind != "anonymous" else _record(peer.handshake, self._database_now())
            self._hub.go_live(peer)
            self._parts.registry.opened(peer.sid, peer.user)
            if peer.idle:
                self._parts.sessions.seen(peer.sid, peer.idle)
        return verdict

    async def _read_again(self, standing: Standing) -> Standing:
        """9b: what the lease's connection says now of the session; SessionEnded if that is over."""
        sessions = self._parts.sessions
        if standing.kind == "anonymous":
            return msgspec.structs.replace(standing, position=self._parts.revocations.position)
        reading = await sessions.read_again(standing.sid)
        if reading is None or reading.session.subject.id != standing.user:
            raise Disconnect(INVALID_TOKEN)
        verdict = sessions.judge(reading)
        if isinstance(verdict, Ended):
            raise SessionEnded(verdict)
        return sessions.standing(
            reading,
            kind=standing.kind,
            issuer=standing.issuer,
            token_expires_at=standing.token_expires_at,
            own_sid=standing.own_sid,
            info=standing.info,
            channels=standing.channels,
            meta=standing.meta,
        )

    def _live(self, peer: Peer) -> None:
        """Raises Gone for a peer that died while something was awaited for it."""
        if peer.home is not self._hub.current:
            raise Gone

    def _server_side(self, connected: Connected, request: ConnectRequest) -> list[Wish]:
        """The subscriptions that a connection starts with (protocol.md 14, 15): token's, personal, asked for. What its
        session has not shown the factors for is left out."""
        channels, user, aal = self._parts.channels, connected.standing.user, connected.standing.aal
        wishes: dict[str, Wish] = {}
        for name, claim in connected.subs.items():
            channel = channels.server(name)
            if not assured(channel, aal):
                continue
            granted = grant(channel, user, SubscribeRequest(channel=name), _overrides(claim))
            wishes[name] = Wish(channel, granted, info=claim.info, data=claim.data, flags=Flag.SERVER | Flag.TOKEN)
        if self._settings.subscribe_to_user_personal_channel.enabled and user:
            channel = channels.server(channels.personal(user))
            if assured(channel, aal):
                granted = grant(channel, user, SubscribeRequest(channel=channel.name))
                wishes[channel.name] = Wish(channel, granted, flags=Flag.SERVER)
        for name in request.subs:
            if name not in wishes and (found := channels.joinable(name, user, aal)) is not None:
                granted = grant(found, user, SubscribeRequest(channel=name))
                wishes[name] = Wish(found, granted, flags=Flag.SERVER)
        if self._settings.channel_limit and len(wishes) > self._settings.channel_limit:
            raise Disconnect(CHANNEL_LIMIT)
        return [_recovering(wish, request.subs.get(name)) for name, wish in wishes.items()]

    # -- subscribe, unsubscribe

    def _subscribe(self, peer: Peer, effect: Subscribe) -> Coroutine[Any, Any, None] | None:
        """In the channel at once where this node hears it and nothing else has to be asked or told."""
        request, channel = effect.request, effect.channel
        if not request.token and self._hub.gate.open():
            wish = _recovering(Wish(channel, grant(channel, peer.user, request)), request)
            ticket = self._parts.joining.at_hand(peer, wish)
            if ticket is not None:
                self._enter(peer, effect.id, ticket)
                return None
        return self._subscribing(peer, effect)

    def _enter(self, peer: Peer, id: int, ticket: Ticket) -> None:
        """Reply, and live: nothing may come between."""
        self._live(peer)
        if ticket.place.name in peer.subs:  # by an order of a backend, meanwhile
            raise Refused(ErrorCode.ALREADY_SUBSCRIBED)
        self._reply(peer, id, ticket.result())
        self._parts.joining.enter(ticket)

    async def _subscribing(self, peer: Peer, effect: Subscribe) -> None:
        request, channel = effect.request, effect.channel
        overrides: dict[str, bool] = {}
        wish = Wish(channel, grant(channel, peer.user, request))
        if request.token:
            given, expires_at = await self._granted(peer, channel.name, request.token)
            overrides = _overrides(given)
            ttl, local = self._sub_life(expires_at)
            wish = wish._replace(info=given.info, data=given.data, ttl=ttl, expires_at=local)
        wish = _recovering(wish._replace(grant=grant(channel, peer.user, request, overrides)), request)
        await self._hub.pass_gate(peer)
        async with self._parts.joining.tickets(peer, [wish]) as (ticket,):
            self._enter(peer, effect.id, ticket)
        await self._parts.joining.announce(ticket)

    async def _granted(self, peer: Peer, channel: str, token: str) -> tuple[Any, float | None]:
        """What a subscription token gives, and when it ends (database time). Bad: 103, or 3500 for another's."""
        identity = self._parts.identity
        try:
            found = identity.subscription(token) or await identity.fetch_subscription(token)
        except TokenExpired:
            raise
        except TokenInvalid:
            raise Refused(ErrorCode.PERMISSION_DENIED) from None
        check_subscription_token(peer, channel, found.channel, found.user, found.client)
        return found.sub, found.expires_at

    def _sub_life(self, expires_at: float | None) -> tuple[int, float]:
        """(ttl for the reply, local moment at which the subscription ends)."""
        if expires_at is None:
            return 0, NEVER
        left = min(expires_at - self._database_now(), MAX_TTL)
        if left <= 0:
            raise Refused(ErrorCode.EXPIRED)
        return math.ceil(left), self._hub.clock() + left + self._settings.expired_sub_close_delay

    def _unsubscribe(self, peer: Peer, effect: Unsubscribe) -> None:
        if effect.sub is not None:
            self._hub.unsubscribe(peer, effect.sub)
        self._reply(peer, effect.id, UnsubscribeResult())

    # -- publish and read

    async def _publish(self, peer: Peer, effect: Publish) -> None:
        channel = effect.channel
        await self._hub.pass_gate(peer)
        await self._parts.broker.publish(
            channel.name,
            effect.data,
            history_size=channel.history_size,
            history_ttl=channel.history_ttl,
            meta_ttl=channel.history_meta_ttl,
            info=effect.info,
            echo=effect.echo,
        )
        if effect.echo:
            self._hub.settle(peer, channel.name)
        self._reply(peer, effect.id, PublishResult())

    async def _presence(self, peer: Peer, effect: ReadPresence) -> None:
        await self._hub.pass_gate(peer)
        present = await self._parts.presence.get(effect.channel)
        self._reply(peer, effect.id, PresenceResult(present))

    async def _presence_stats(self, peer: Peer, effect: CountPresence) -> None:
        await self._hub.pass_gate(peer)
        stats = await self._parts.presence.stats(effect.channel)
        self._reply(peer, effect.id, PresenceStatsResult(stats.num_clients, stats.num_users))

    async def _history(self, peer: Peer, effect: ReadHistory) -> None:
        channel = effect.channel
        await self._hub.pass_gate(peer)
        try:
            stream = await self._parts.history.read(
                channel.name,
                since=effect.since,
                limit=effect.limit,
                reverse=effect.reverse,
                meta_ttl=channel.history_meta_ttl,
            )
        except WrongEpoch:
            raise Refused(ErrorCode.UNRECOVERABLE_POSITION) from None
        page = beginning(stream.publications, self._hub.queue_max_size // 2)
        self._reply(peer, effect.id, HistoryResult(page, stream.epoch, stream.offset))

    # -- refresh

    async def _refresh(self, peer: Peer, effect: Refresh) -> None:
        identity = self._parts.identity
        try:
            connected = identity.try_connect(effect.token) or await identity.connect(effect.token)
        except TokenExpired:
            raise Disconnect(CONNECTION_EXPIRED) from None
        if connected is None:
            raise Disconnect(INVALID_TOKEN)
        await self._hold_to(peer, connected.standing)
        if not _subscribed_as(peer, [name for name in connected.subs if not self._out_of_reach(name, peer.aal)]):
            raise Disconnect(CONNECTION_INSUFFICIENT_STATE)
        ttl = connected.ttl(self._database_now())
        self._reply(peer, effect.id, RefreshResult(expires=connected.expires, ttl=ttl))

    def _out_of_reach(self, name: str, aal: int) -> bool:
        """Whether a token's channel was left out for its demands when the connection began."""
        try:
            return not assured(self._parts.channels.server(name), aal)
        except Refused:
            return False

    async def _hold_to(self, peer: Peer, standing: Standing) -> None:
        """9c: the block of 9b after every await of a refresh."""
        await self._hub.pass_gate(peer)
        if self._try_move(peer, standing) is not None:
            standing = await self._read_again(standing)
            await self._hub.pass_gate(peer)
            if self._try_move(peer, standing) is not None:
                raise Disconnect(NOT_CURRENT)

    def _try_move(self, peer: Peer, standing: Standing) -> Verdict:
        self._live(peer)
        if not peer.follows(standing):
            raise Disconnect(INVALID_TOKEN)
        verdict = self._parts.revocations.judge_standing(standing)
        if isinstance(verdict, Ended):
            raise SessionEnded(verdict)
        if verdict is None:
            registry, now = self._parts.registry, self._hub.clock()
            registry.closed(peer.sid, peer.user)
            self._hub.move(peer, lambda: peer.become(standing, now, self._database_now(), self._settings))
            registry.opened(peer.sid, peer.user)
        return verdict

    async def _sub_refresh(self, peer: Peer, effect: SubRefresh) -> None:
        sub = effect.sub
        try:
            given, expires_at = await self._granted(peer, sub.channel, effect.token)
        except Refused as refusal:
            if refusal.code != ErrorCode.PERMISSION_DENIED:
                raise
            raise Disconnect(INVALID_TOKEN) from None
        except TokenExpired:
            raise Refused(ErrorCode.EXPIRED) from None
        await self._hub.pass_gate(peer)
        ttl, local = self._sub_life(expires_at)
        if peer.subs.get(sub.channel) is sub:
            sub.info, sub.expires_at = given.info, local
            self._hub.deadlines.set(peer, peer.next_deadline())
        self._reply(peer, effect.id, SubRefreshResult(ttl > 0, ttl))

    # -- rpc and send

    def _call(self, peer: Peer, effect: Call) -> Coroutine[Any, Any, None]:
        if not self._rpc:
            raise Refused(ErrorCode.NOT_AVAILABLE)
        handler = self._rpc.get(effect.method)
        if handler is None:
            raise Refused(ErrorCode.METHOD_NOT_FOUND)
        return self._calling(peer, effect, handler)

    async def _calling(self, peer: Peer, effect: Call, handler: RpcHandler) -> None:
        await self._hub.pass_gate(peer)
        data = await handler(RpcCall(effect.method, effect.data, peer.user, peer.id, peer.sid))
        self._reply(peer, effect.id, RpcResult(data))

    def _message(self, peer: Peer, effect: Message) -> Coroutine[Any, Any, None]:
        if self.on_message is None:
            raise Disconnect(NOT_AVAILABLE)
        return self._messaging(peer, effect, self.on_message)

    async def _messaging(self, peer: Peer, effect: Message, handler: MessageHandler) -> None:
        await self._hub.pass_gate(peer)
        await handler(RpcCall("", effect.data, peer.user, peer.id, peer.sid))

    # -- what time brings

    def due(self, peer: Peer, due: Due) -> None:
        """Hub.on_due: all but plain closes."""
        if due.kind == DUE_ABSOLUTE:
            self._hub.end(peer, Ended(EXPIRED, "absolute", at=self._database_now()))
        elif due.kind == DUE_WARN:
            self._warn(peer, "absolute", peer.ends_at)
        elif due.kind == DUE_SUBSCRIPTION and due.sub is not None:
            self._hub.unsubscribe(peer, due.sub, SUBSCRIPTION_EXPIRED)
        else:
            self._parts.tasks.once("session asked for", self._ask(peer))

    async def _ask(self, peer: Peer) -> None:
        """Ask PostgreSQL when the session ends. No answer: the client asks again in a while."""
        sid = peer.sid
        try:
            reading = await self._parts.sessions.by_sid(sid)
        except Problem as problem:
            log.info("session_not_asked", sid=sid, why=problem.code)
            return
        if peer.home is not self._hub.current or peer.sid != sid:
            return
        if reading is None:  # over for so long that its row is gone, or a failover lost its login
            self._hub.end(peer, Ended(EXPIRED, "absolute", at=self._database_now()))
            return
        now, database_now = self._hub.clock(), self._database_now()
        session = reading.session
        ended = session.over(database_now)
        if ended is not None and (ended.code, ended.reason) != (EXPIRED, "idle"):
            self._hub.end(peer, ended)
            return
        peer.ends_at = now + session.expires_at - database_now
        if peer.idle:
            # What this connection did last may not be written yet.
            end = max(now + session.last_seen_at + session.idle - database_now, peer.seen_at + peer.idle)
            if end <= now:
                self._hub.end(peer, Ended(EXPIRED, "idle", at=database_now))
                return
            peer.idle_at = end - WARN_AHEAD
            if peer.idle_at <= now:
                peer.idle_at = end
                self._warn(peer, "idle", end)
        self._hub.deadlines.set(peer, peer.next_deadline())

    def _warn(self, peer: Peer, reason: str, at: float) -> None:
        """`session.expiring` (interface.md)."""
        left = at - self._hub.clock()
        data = {
            "type": "session.expiring",
            "reason": reason,
            "at": rfc3339(self._database_now() + left),
            "in_s": max(0, round(left)),
        }
        self._hub.send(peer, peer.encoding.codec.message(msgspec.json.encode(data)))

    def _database_now(self) -> float:
        return self._parts.revocations.database_now()


def _record(handshake: Handshake | None, now: float) -> Handshake | None:
    """What is kept of the handshake of an anonymous connection: it stands in no table."""
    if handshake is None:
        return None
    return Handshake(None, handshake.address, handshake.device[:LONGEST_DEVICE], now)


def _let_go(work: Coroutine[Any, Any, None], _task: "asyncio.Task[None]") -> None:
    """For work whose task was cancelled before its first step; what has run is closed already."""
    work.close()


_PERFORM: Mapping[type[Effect], Callable[[Driver, Peer, Any], Coroutine[Any, Any, None] | None]] = {
    Connect: Driver._connect,
    Subscribe: Driver._subscribe,
    Unsubscribe: Driver._unsubscribe,
    Publish: Driver._publish,
    ReadPresence: Driver._presence,
    CountPresence: Driver._presence_stats,
    ReadHistory: Driver._history,
    Refresh: Driver._refresh,
    SubRefresh: Driver._sub_refresh,
    Call: Driver._call,
    Message: Driver._message,
}
OVERRIDES = ("presence", "join_leave", "force_push_join_leave", "force_recovery", "force_positioning")


def _overrides(claim: Any) -> dict[str, bool]:
    """What a token says of a subscription's options; what it does not say is the namespace's."""
    return {name: value for name in OVERRIDES if (value := getattr(claim, name)) is not None}


def _recovering(wish: Wish, request: SubscribeRequest | None) -> Wish:
    """The wish with what the client asks of the past."""
    if request is None or not request.recover:
        return wish
    since = (request.offset, request.epoch) if wish.grant.recoverable else None
    return wish._replace(since=since, recovering=True, strict=bool(request.flag & REJECT_UNRECOVERED))


def _subscribed_as(peer: Peer, channels: Collection[str]) -> bool:
    """Whether a new token names the channels that the connection has by its token; others make it connect again."""
    by_token = {sub.channel for sub in peer.subs.values() if sub.flags & Flag.TOKEN}
    return all(channel in peer.subs for channel in channels) and by_token <= set(channels)
