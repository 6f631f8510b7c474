"""Who is in a channel, on all nodes: a hash of clients in Redis, with a time for each after which it is gone.

A node that dies takes nobody out; its clients go when their time is over. Times are by the server's clock. How often
a client's time is prolonged is the node's business.

A channel's presence is three keys that change together: client -> user and info, client -> time, user -> clients.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from config.redis import Argument, Pipe, Run, Script, Unavailable
from gateway.broker import PUNCTUAL, milliseconds
from gateway.keys import Keys
from gateway.protocol.commands import ClientInfo

T = TypeVar("T")

TTL = 60.0
CHUNK = 500
"""Clients in one run of a script, and runs in one batch."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, bytes, bytes]).decode
_LENGTH = struct.Struct(">H")

# KEYS of all: clients, times, users. A client's value is: u16 length of the user, the user, the rest.
_COMMON = (
    PUNCTUAL
    + """
local clients, times, users = KEYS[1], KEYS[2], KEYS[3]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function drop(client)
  local value = redis.call('HGET', clients, client)
  redis.call('ZREM', times, client)
  if not value then return end
  redis.call('HDEL', clients, client)
  local user = struct.unpack('>Hc0', value)
  if redis.call('HINCRBY', users, user, -1) <= 0 then redis.call('HDEL', users, user) end
end
local function expire()
  for _, client in ipairs(redis.call('ZRANGEBYSCORE', times, '-inf', now)) do drop(client) end
end
local function keep(ttl)
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ttl) end
end
"""
)

# ARGV: deadline, ttl in ms, client, value.
_ADD = Script(
    _COMMON
    + """
if late(ARGV[1]) then return LATE end
drop(ARGV[3])
redis.call('HSET', clients, ARGV[3], ARGV[4])
redis.call('ZADD', times, now + ARGV[2], ARGV[3])
redis.call('HINCRBY', users, struct.unpack('>Hc0', ARGV[4]), 1)
keep(ARGV[2])
return 1
"""
)

# ARGV: deadline, ttl in ms, clients. Replies those that are not there.
_PROLONG = Script(
    _COMMON
    + """
if late(ARGV[1]) then return LATE end
local missing = {}
for i = 3, #ARGV do
  if redis.call('HEXISTS', clients, ARGV[i]) == 1 then
    redis.call('ZADD', times, now + ARGV[2], ARGV[i])
  else
    missing[#missing + 1] = ARGV[i]
  end
end
expire()
keep(ARGV[2])
return missing
"""
)

# ARGV: clients.
_REMOVE = Script(_COMMON + "for _, client in ipairs(ARGV) do drop(client) end return 1")
_GET = Script(_COMMON + "expire() return redis.call('HGETALL', clients)")
_COUNT = Script(_COMMON + "expire() return {redis.call('HLEN', clients), redis.call('HLEN', users)}")


class Stats(NamedTuple):
    num_clients: int
    num_users: int


class Presence:
    """Presence below one prefix. Everything raises Unavailable when Redis is away."""

    def __init__(self, pipe: Pipe, *, prefix: str, ttl: float = TTL) -> None:
        """`ttl`: seconds after which a client that was not prolonged is gone."""
        self._pipe = pipe
        self._keys = Keys(prefix)
        self._ttl = milliseconds(ttl)

    async def add(self, channel: str, client: str, info: ClientInfo) -> None:
        """From now on it is there. Calls of one loop turn travel together."""
        await self._pipe.run(*self._add(channel, client, info))

    async def remove(self, channel: str, client: str) -> None:
        """From now on it is gone."""
        await self._pipe.run(_REMOVE, self._names(channel), [client])

    async def remove_all(self, channels: Mapping[str, Sequence[str]]) -> None:
        """Take many clients out of many channels (a drain, a revocation)."""
        runs = [Run(_REMOVE, self._names(c), part) for c, clients in channels.items() for part in _chunks(clients)]
        await self._batch(runs)

    async def prolong(self, channels: Mapping[str, Mapping[str, ClientInfo]]) -> None:
        """Give the clients of many channels a new time; those that are not there (any more) are added again."""
        again: list[Run] = []
        parts = [(c, part) for c, clients in channels.items() for part in _chunks(list(clients))]
        for some in _chunks(parts):
            runs = [
                Run(_PROLONG, self._names(channel), [self._pipe.deadline(), self._ttl, *clients])
                for channel, clients in some
            ]
            for (channel, _), missing in zip(some, await self._batch(runs), strict=True):
                infos = channels[channel]
                names = [client.decode() for client in missing]
                again += [self._add(channel, name, infos[name]) for name in names if name in infos]
        await self._batch(again)

    async def get(self, channel: str) -> dict[str, ClientInfo]:
        """Who is there, by client id."""
        found = await self._pipe.run(_GET, self._names(channel), [])
        pairs = zip(found[::2], found[1::2], strict=True)
        return {client.decode(): info for client, value in pairs if (info := _read(value))}

    async def stats(self, channel: str) -> Stats:
        """How many are there."""
        return Stats(*await self._pipe.run(_COUNT, self._names(channel), []))

    def _add(self, channel: str, client: str, info: ClientInfo) -> Run:
        args: list[Argument] = [self._pipe.deadline(), self._ttl, client, _value(info)]
        return Run(_ADD, self._names(channel), args)

    def _names(self, channel: str) -> list[str]:
        names = self._keys.channel(channel)
        return [names.presence, names.presence_expiry, names.presence_users]

    async def _batch(self, runs: Sequence[Run]) -> list[list[bytes]]:
        """In parts, so that neither the loop nor the server is held up; the first error of the server is raised."""
        replies: list[Any] = []
        for part in _chunks(runs):
            replies += await self._pipe.batch(part)
        for reply in replies:
            if isinstance(reply, Unavailable):
                raise reply
        return replies


def _value(info: ClientInfo) -> bytes:
    user = info.user.encode()
    return _LENGTH.pack(len(user)) + user + _encode((info.client, info.conn_info, info.chan_info))


def _read(value: bytes) -> ClientInfo | None:
    """None for what no version of ours wrote."""
    try:
        size = _LENGTH.unpack_from(value)[0] + _LENGTH.size
        return ClientInfo(value[_LENGTH.size : size].decode(), *_decode(value[size:]))
    except (struct.error, UnicodeDecodeError, msgspec.MsgspecError):
        return None


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), CHUNK):
        yield items[start : start + CHUNK]
