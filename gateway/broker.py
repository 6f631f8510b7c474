"""Publications, joins and leaves between nodes: one script appends and publishes, the bus brings them back.

Lives here: publishing, and what comes in. Not here: reading streams (history), who is there (presence), who listens
(the hub). Names are in `keys`, bytes in `busframe`.

A script sees for itself whether somebody still waits for it (`LATE`), and whether the stream may have been rolled back
by a restart or a failover: the server's identity stands in the stream's meta, and another one rotates the epoch. The
offsets go on, and what is left of the stream stays readable; but nobody can recover across it.
"""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from config.clock import walltime
from config.redis import Bus, Pipe, Script
from gateway import busframe
from gateway.busframe import Kind, Malformed
from gateway.keys import Keys
from gateway.protocol.commands import ClientInfo, Publication
from gateway.protocol.commands import StreamPosition as StreamPosition

log = structlog.get_logger(__name__)

RESULT_TTL = 300.0
"""Seconds that the result of a publication with an idempotency key is remembered."""

ECHO_TIMEOUT = 1.0

PUNCTUAL = """
local function late(deadline)
  local time = redis.call('TIME')
  return time[1] * 1000 + time[2] / 1000 > tonumber(deadline)
end
local LATE = redis.error_reply('LATE the caller has given up')
"""

POSITION = """
-- The top of a stream: offset, epoch. The epoch is new where there was none (then an orphaned stream goes), and where
-- another server wrote last: a promotion or a restart may have lost what we have not seen.
local function position(stream, meta, server, new_epoch, meta_ttl)
  local found = redis.call('HMGET', meta, 'o', 'e', 's')
  local offset, epoch = tonumber(found[1] or 0), found[2]
  if not epoch then
    offset, epoch = 0, new_epoch
    redis.call('DEL', stream)
    redis.call('HSET', meta, 'o', 0, 'e', epoch, 's', server)
  elseif found[3] ~= server and server ~= '' then
    epoch = new_epoch
    redis.call('HSET', meta, 'e', epoch, 's', server)
  end
  if meta_ttl ~= '0' then redis.call('PEXPIRE', meta, meta_ttl) end
  return offset, epoch
end
"""

# KEYS: bus [, result]. ARGV: deadline, frame [, result's ms]. Replies 1, or 0 when it was published before.
_PUBLISH = Script(
    PUNCTUAL
    + """
if late(ARGV[1]) then return LATE end
if KEYS[2] then
  if redis.call('EXISTS', KEYS[2]) == 1 then return 0 end
  redis.call('SET', KEYS[2], '', 'PX', ARGV[3])
end
redis.call('PUBLISH', KEYS[1], ARGV[2])
return 1
"""
)

# KEYS: bus, stream, meta [, result]. ARGV: deadline, server, new epoch, meta's ms, version, body, size, stream's ms
# [, result's ms]. Replies offset, epoch, and 1, or 0 when it was published before.
_APPEND = Script(
    PUNCTUAL
    + POSITION
    + """
if late(ARGV[1]) then return LATE end
if KEYS[4] then
  local before = redis.call('GET', KEYS[4])
  if before == '' then return {0, '', 0} end
  if before then
    local space = string.find(before, ' ', 1, true)
    return {tonumber(string.sub(before, 1, space - 1)), string.sub(before, space + 1), 0}
  end
end
local _, epoch = position(KEYS[2], KEYS[3], ARGV[2], ARGV[3], ARGV[4])
local offset = redis.call('HINCRBY', KEYS[3], 'o', 1)
redis.call('XADD', KEYS[2], 'MAXLEN', '=', ARGV[7], offset, ARGV[5], ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[8])
redis.call('PUBLISH', KEYS[1], ARGV[5] .. struct.pack('>I8B', offset, #epoch) .. epoch .. ARGV[6])
if KEYS[4] then redis.call('SET', KEYS[4], string.format('%.0f', offset) .. ' ' .. epoch, 'PX', ARGV[9]) end
return {offset, epoch, 1}
"""
)


class Epochs:
    """New epochs, each offered once: a script takes one only where it must begin a stream anew."""

    def __init__(self) -> None:
        self._begin = secrets.token_urlsafe(6)
        self._count = itertools.count(1)

    def next(self) -> str:
        return f"{self._begin}{next(self._count):x}"


def milliseconds(seconds: float) -> int:
    """For Redis, which takes no fractions and no zero."""
    return max(1, round(seconds * 1000))


def meta_milliseconds(meta_ttl: float, history_ttl: float = 0.0) -> int:
    """A stream's meta never goes before the stream; 0 means that it stays."""
    return milliseconds(max(meta_ttl, history_ttl)) if meta_ttl > 0 else 0


class Broker:
    """One per process. Callbacks are synchronous, and set by the node before anything is subscribed."""

    def __init__(self, pipe: Pipe, bus: Bus, *, prefix: str, node: str) -> None:
        """`node`: 32 hex digits."""
        self.on_publication: Callable[[str, Publication], None] = lambda channel, publication: None
        self.on_join: Callable[[str, ClientInfo], None] = lambda channel, info: None
        self.on_leave: Callable[[str, ClientInfo], None] = lambda channel, info: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_restored: Callable[[], None] = lambda: None
        self.malformed = 0
        self._pipe = pipe
        self._bus = bus
        self._keys = Keys(prefix)
        self._node = bytes.fromhex(node)
        self._nonces = itertools.count(1)
        self._epochs = Epochs()
        self._echoes: dict[int, asyncio.Future[None]] = {}
        bus.on_lost.append(self._lost)
        bus.on_restored.append(self._restored)

    # -- out

    async def publish(
        self,
        channel: str,
        data: bytes,
        *,
        history_size: int = 0,
        history_ttl: float = 0.0,
        meta_ttl: float = 0.0,
        info: ClientInfo | None = None,
        tags: Mapping[str, str] | None = None,
        idempotency_key: str = "",
        skip_history: bool = False,
        echo: bool = False,
    ) -> StreamPosition | None:
        """Append and publish in one atomic step; the position, or None without history.

        Ttls in seconds; a `meta_ttl` of 0 keeps offset and epoch for ever. The same `idempotency_key` within 5 minutes
        publishes nothing and returns the same. `echo`: return only after this node's own bus has delivered it (at most
        1 s, and not where the bus is away or the channel has no subscriber here). Raises Unavailable; if `uncertain`,
        it may have been published, and a key finds out.
        """
        nonce = next(self._nonces)
        content = self._body(Kind.PUBLICATION, channel, data, nonce, info, tags)
        heard = self._expect(channel, nonce) if echo else None
        try:
            if history_size > 0 and history_ttl > 0 and not skip_history:
                position, fresh = await self._append(
                    channel, content, idempotency_key, history_size, history_ttl, meta_ttl
                )
            else:
                position, fresh = None, await self._send(channel, content, idempotency_key)
            if heard is not None and fresh and not heard.done():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ECHO_TIMEOUT):
                        await heard
            return position
        finally:
            self._echoes.pop(nonce, None)

    async def join(self, channel: str, info: ClientInfo) -> None:
        """Tell all nodes that a client has come. Raises Unavailable."""
        await self._send(channel, self._body(Kind.JOIN, channel, b"", 0, info, None))

    async def leave(self, channel: str, info: ClientInfo) -> None:
        """Tell all nodes that a client has gone. Raises Unavailable."""
        await self._send(channel, self._body(Kind.LEAVE, channel, b"", 0, info, None))

    def _body(
        self,
        kind: Kind,
        channel: str,
        data: bytes,
        nonce: int,
        info: ClientInfo | None,
        tags: Mapping[str, str] | None,
    ) -> bytes:
        time = int(walltime() * 1000)
        return busframe.body(kind, channel, data, time=time, node=self._node, nonce=nonce, info=info, tags=tags)

    async def _send(self, channel: str, content: bytes, idempotency_key: str = "") -> bool:
        keys = [self._keys.channel(channel).bus]
        args: list[bytes | int] = [self._pipe.deadline(), busframe.without_offset(content)]
        if idempotency_key:
            keys.append(self._keys.result(channel, idempotency_key))
            args.append(milliseconds(RESULT_TTL))
        return bool(await self._pipe.run(_PUBLISH, keys, args))

    async def _append(
        self,
        channel: str,
        content: bytes,
        idempotency_key: str,
        history_size: int,
        history_ttl: float,
        meta_ttl: float,
    ) -> tuple[StreamPosition | None, bool]:
        names = self._keys.channel(channel)
        keys = [names.bus, names.stream, names.meta]
        args: list[bytes | str | int] = [
            self._pipe.deadline(),
            self._pipe.server,
            self._epochs.next(),
            meta_milliseconds(meta_ttl, history_ttl),
            busframe.VERSION,
            content,
            history_size,
            milliseconds(history_ttl),
        ]
        if idempotency_key:
            keys.append(self._keys.result(channel, idempotency_key))
            args.append(milliseconds(RESULT_TTL))
        offset, epoch, fresh = await self._pipe.run(_APPEND, keys, args)
        return (StreamPosition(offset, epoch.decode()) if offset else None), bool(fresh)

    # -- in

    async def subscribe(self, channel: str) -> None:
        """The node's first local subscriber: returns when publications of `channel` come in.

        Raises Unavailable; then, and when cancelled, the channel is not subscribed.
        """
        await self._bus.subscribe(self._keys.channel(channel).bus, self._receive)

    def unsubscribe(self, channel: str) -> None:
        """The node's last local subscriber has gone."""
        self._bus.unsubscribe(self._keys.channel(channel).bus)

    def figures(self) -> Mapping[str, float]:
        """For the metrics."""
        return {"bus_malformed": self.malformed}

    def _receive(self, frame: bytes) -> None:
        try:
            message = busframe.read(frame)
        except Malformed as error:
            self._refuse(error)
            return
        try:
            if message.kind == Kind.PUBLICATION:
                self.on_publication(message.channel, message.publication)
            elif message.publication.info is not None:
                notify = self.on_join if message.kind == Kind.JOIN else self.on_leave
                notify(message.channel, message.publication.info)
        finally:
            if message.node == self._node and message.nonce in self._echoes:
                self._heard(self._echoes[message.nonce])

    def _refuse(self, error: Malformed) -> None:
        """Counted; said once and then at each power of two, for they may come in thousands."""
        self.malformed += 1
        if self.malformed & (self.malformed - 1) == 0:
            log.warning("a frame on the bus was refused", why=str(error), total=self.malformed)

    # -- echoes

    def _expect(self, channel: str, nonce: int) -> "asyncio.Future[None] | None":
        if not self._bus.hears(self._keys.channel(channel).bus):
            return None
        self._echoes[nonce] = heard = asyncio.get_running_loop().create_future()
        return heard

    @staticmethod
    def _heard(future: "asyncio.Future[Any]") -> None:
        if not future.done():
            future.set_result(None)

    def _lost(self) -> None:
        for future in self._echoes.values():
            self._heard(future)
        self.on_lost()

    def _restored(self) -> None:
        self.on_restored()
