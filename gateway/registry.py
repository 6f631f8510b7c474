"""Which sessions and users are connected, on all nodes: what each node counts, told to Redis once a second.

A hint for lists and dry runs, at most a second old, and never what decides about a session. Each node writes only its
own counts, under keys that vanish when it stops telling; what Redis loses is written again.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import structlog

from config.redis import Argument, Pipe, Run, Script, Unavailable
from gateway.broker import PUNCTUAL, milliseconds
from gateway.keys import Keys

log = structlog.get_logger(__name__)

INTERVAL = 1.0
TTL = 5.0
"""Seconds after which a node that says nothing is not counted any more."""

FORGET = 60.0
"""Seconds after which its name goes, too."""

CHUNK = 1_000
_SUMS = ("num_connections", "num_sessions", "num_users", "num_anonymous")

# KEYS: info, sessions, users. ARGV: deadline, ttl in ms, info, begin anew, how many are sessions, then name, count, ...
# Replies whether this node was known, and how many sessions and users stand there now.
_WRITE = Script(
    PUNCTUAL
    + """
if late(ARGV[1]) then return LATE end
local known = redis.call('EXISTS', KEYS[1])
if ARGV[4] == '1' then redis.call('DEL', KEYS[2], KEYS[3]) end
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[2])
local sessions = tonumber(ARGV[5])
for i = 6, #ARGV, 2 do
  local key = KEYS[2]
  if (i - 6) / 2 >= sessions then key = KEYS[3] end
  if ARGV[i + 1] == '0' then
    redis.call('HDEL', key, ARGV[i])
  else
    redis.call('HSET', key, ARGV[i], ARGV[i + 1])
  end
end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
redis.call('PEXPIRE', KEYS[3], ARGV[2])
return {known, redis.call('HLEN', KEYS[2]), redis.call('HLEN', KEYS[3])}
"""
)


class Totals(NamedTuple):
    """Of the cluster. A session or user on two nodes counts twice. `anonymous`: sessions of nobody."""

    nodes: int
    connections: int
    sessions: int
    users: int
    anonymous: int


class Counts:
    """How many live connections a name has; what has changed since it was last told."""

    __slots__ = ("_changed", "live")

    def __init__(self) -> None:
        self.live: dict[str, int] = {}
        self._changed: set[str] = set()

    def add(self, name: str, by: int) -> None:
        count = self.live.get(name, 0) + by
        if count > 0:
            self.live[name] = count
        else:
            self.live.pop(name, None)
        self._changed.add(name)

    def take(self, whole: bool) -> list[tuple[str, int]]:
        """What is to be told now: all, or what has changed (0: gone)."""
        changed, self._changed = self._changed, set()
        if whole:
            return list(self.live.items())
        return [(name, self.live.get(name, 0)) for name in changed]


class Registry:
    """This node's part in the registry, and the door to the others'."""

    def __init__(self, pipe: Pipe, *, prefix: str, node: str, interval: float = INTERVAL, ttl: float = TTL) -> None:
        self.describe: Callable[[], Mapping[str, Any]] = dict
        """What `nodes` shows of this node (name, version, num_clients, ...); set by the node."""
        self._pipe = pipe
        self._keys = Keys(prefix)
        self._node = node
        self._interval = interval
        self._ttl = ttl
        self._sessions = Counts()
        self._users = Counts()
        self._whole = True  # the next telling is of everything
        self._told = [0, 0]  # sessions and users, at the last telling
        self._connections = self._anonymous = 0  # of these, sessions of nobody
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Tell Redis of this node, once a second from now on. Redis may be away."""
        await self.flush()
        self._task = asyncio.create_task(self._keep(), name="registry")

    async def close(self) -> None:
        """This node is gone; at once, if Redis is there."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait([task])
        try:
            await self._pipe.batch([("ZREM", self._keys.nodes, self._node), ("DEL", *self._names(self._node))])
        except Unavailable as error:
            log.info("this node stays listed until its time is over", why=str(error))

    # -- this node

    def opened(self, sid: str, user: str) -> None:
        """A connection of this session went live. `user` is empty for an anonymous one."""
        self._count(sid, user, 1)

    def closed(self, sid: str, user: str) -> None:
        """A connection that was told by `opened` has ended."""
        self._count(sid, user, -1)

    def _count(self, sid: str, user: str, by: int) -> None:
        self._connections += by
        if user:
            self._sessions.add(sid, by)
            self._users.add(user, by)
        else:
            before = sid in self._sessions.live
            self._sessions.add(sid, by)
            self._anonymous += (sid in self._sessions.live) - before

    # -- all nodes; everything raises Unavailable when Redis is away

    async def connections(self, sids: Iterable[str]) -> dict[str, int]:
        """Live connections of sessions, on all nodes."""
        return await self._sum("sessions", self._sessions, list(sids))

    async def user_connections(self, users: Iterable[str]) -> dict[str, int]:
        """Live connections of users, on all nodes."""
        return await self._sum("users", self._users, list(users))

    async def nodes(self) -> list[dict[str, Any]]:
        """What the live nodes tell of themselves: `uid`, `num_sessions`, and what their `describe` adds."""
        names = await self._listed()
        told = await self._pipe.batch([("GET", self._keys.node(name, "info")) for name in names])
        found = [info for text in told if isinstance(text, bytes) and (info := _info(text))]
        if not any(info["uid"] == self._node for info in found):  # it has not told yet: a first second, a FLUSHALL
            found.append(self._info())
        return sorted(found, key=lambda info: str(info["uid"]))

    async def totals(self) -> Totals:
        """The sums over all live nodes."""
        nodes = await self.nodes()
        return Totals(len(nodes), *(sum(info[name] for info in nodes) for name in _SUMS))

    async def _sum(self, kind: str, own: Counts, names: Sequence[str]) -> dict[str, int]:
        counts = {name: own.live.get(name, 0) for name in names}
        if not counts:
            return counts
        others = [self._keys.node(node, kind) for node in await self._listed() if node != self._node]
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            for found in await self._pipe.batch([("HMGET", key, *chunk) for key in others]):
                if isinstance(found, Unavailable):
                    raise found
                for name, count in zip(chunk, found, strict=True):
                    counts[name] += int(count or 0)
        return counts

    async def _listed(self) -> list[str]:
        return [name.decode() for name in await self._pipe.call("ZRANGE", self._keys.nodes, 0, -1)]

    # -- telling

    def _names(self, node: str) -> list[str]:
        return [self._keys.node(node, kind) for kind in ("info", "sessions", "users")]

    def _info(self) -> dict[str, Any]:
        return {
            "num_connections": self._connections,
            "num_sessions": len(self._sessions.live),
            "num_users": len(self._users.live),
            "num_anonymous": self._anonymous,
            **self.describe(),
            "uid": self._node,
        }

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            await self.flush()

    async def flush(self) -> None:
        """Tell what has changed, in one batch. Whatever goes wrong makes the next one whole; nothing is raised."""
        whole, self._whole = self._whole, True
        try:
            known, *stand = await self._tell(whole)
        except Unavailable as error:
            log.info("the registry was not told", why=str(error))
        except Exception:
            log.exception("telling the registry failed")
        else:
            # What stands there is what was told, or Redis has lost something: FLUSHALL, a restart, an eviction.
            self._whole = not (known or whole) or stand != self._told
            if self._whole and not whole:
                await self.flush()

    async def _tell(self, whole: bool) -> list[int]:
        now = self._pipe.deadline(0)
        listed = (
            ("ZADD", self._keys.nodes, now, self._node),
            ("ZREMRANGEBYSCORE", self._keys.nodes, "-inf", now - milliseconds(FORGET)),
        )
        self._told = [len(self._sessions.live), len(self._users.live)]
        replies = await self._pipe.batch([*listed, *self._commands(whole)])
        for reply in replies:
            if isinstance(reply, Unavailable):
                raise reply
        return [replies[2][0], *replies[-1][1:]]

    def _commands(self, whole: bool) -> list[Run]:
        sessions, users = self._sessions.take(whole), self._users.take(whole)
        keys = self._names(self._node)
        head: list[Argument] = [self._pipe.deadline(), milliseconds(self._ttl), _encode(self._info())]
        runs: list[Run] = []
        for start in range(0, max(len(sessions) + len(users), 1), CHUNK):
            some = sessions[start : start + CHUNK]
            rest = users[max(0, start - len(sessions)) : max(0, start + CHUNK - len(sessions))]
            entries = [word for pair in (*some, *rest) for word in pair]
            runs.append(Run(_WRITE, keys, [*head, int(whole and start == 0), len(some), *entries]))
        return runs


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, Any]).decode


def _info(text: bytes) -> dict[str, Any] | None:
    """None for what no version of ours wrote."""
    try:
        info = _decode(text)
        return info if isinstance(info["uid"], str) and all(isinstance(info[name], int) for name in _SUMS) else None
    except (msgspec.MsgspecError, KeyError):
        return None
