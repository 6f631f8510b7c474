"""Places for connections, counted over all nodes: so many for a user, so many for an address, and not one more.

Here: taking a place before a connection counts, and giving it back. Not here: what a connection over its cap is told
(driver, transports), and the cap of one node's connections, which needs nobody else (node).

Each node writes what it holds into a hash of its own, and a lease beside all of them says which nodes count. One script
adds up the others' places and takes as many as are left, for all who came since the last run, so the cap is exact for
those who come at once, on whichever node. A node that dies loses its lease, and its places are free. One that was away
for longer, or whose Redis forgot, writes all that it holds under a new name before it takes more.

With Redis away each node gives out its share of a cap, by what it holds itself; so it does while nodes that it knew
have not come back to a Redis that lost everything. In Redis stand only keyed hashes of users and addresses.
"""

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from itertools import islice

import structlog

from config.clock import boottime
from config.redis import Argument, Pipe, Script, Unavailable
from config.sealing import derive
from config.tasks import Tasks
from gateway.broker import PUNCTUAL, milliseconds
from gateway.keys import Keys

log = structlog.get_logger(__name__)

INTERVAL = 1.0
"""Seconds between renewals of the lease, and between tries while Redis is away."""

TTL = 5.0
"""Seconds after which the places of a node that says nothing are free."""

CHUNK = 100
"""Names in one run of the script: it asks every node's hash for each."""

_LIVE = (
    PUNCTUAL
    + """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function live()
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
  return redis.call('ZRANGE', KEYS[1], 0, -1)
end
local function renew(ttl, node)
  redis.call('ZADD', KEYS[1], now + ttl, node)
  for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ttl) end
end
"""
)

# KEYS: lease, ours, ours before. ARGV: deadline, ttl in ms, our name, our name before, whether this is the last part,
# then name, places, ... Replies the live nodes, with the last part.
_REGISTER = Script(
    _LIVE
    + """
if late(ARGV[1]) then return LATE end
for i = 6, #ARGV, 2 do redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1]) end
redis.call('PEXPIRE', KEYS[2], ARGV[2])
if ARGV[5] == '0' then return {} end
redis.call('DEL', KEYS[3])
redis.call('ZREM', KEYS[1], ARGV[4])
renew(ARGV[2], ARGV[3])
return live()
"""
)

# KEYS: lease, ours. ARGV: deadline, ttl in ms, our name, how many names stand in ours, where the nodes' hashes are,
# then name, limit, places that we have, places that we want, ... Replies the live nodes, and the places that we have
# now; nothing when what stands there is not what we wrote.
_TAKE = Script(
    _LIVE
    + """
if late(ARGV[1]) then return LATE end
local nodes, known = live(), false
for _, node in ipairs(nodes) do known = known or node == ARGV[3] end
if not known or redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[4]) then return {} end
local places = {}
for i = 6, #ARGV, 4 do
  local room = tonumber(ARGV[i + 1])
  for _, node in ipairs(nodes) do
    if node ~= ARGV[3] then room = room - (redis.call('HGET', ARGV[5] .. node, ARGV[i]) or 0) end
  end
  local count = math.min(math.max(room, tonumber(ARGV[i + 2])), tonumber(ARGV[i + 3]))
  if count > 0 then
    redis.call('HSET', KEYS[2], ARGV[i], count)
  else
    redis.call('HDEL', KEYS[2], ARGV[i])
  end
  places[#places + 1] = count
end
renew(ARGV[2], ARGV[3])
return {nodes, places}
"""
)

_Waiting = list["asyncio.Future[bool]"]


class Cap:
    """Places of one kind, by the name of who has them: a user, an address."""

    def __init__(self, caps: "Caps", kind: str, limit: int, key: bytes) -> None:
        self._caps, self._kind, self._limit, self._key = caps, kind, limit, key

    async def take(self, name: str) -> bool:
        """Whether a place was left: then it is the caller's, who must `release` it. Who is cancelled has none."""
        caps, entry = self._caps, self._entry(name)
        if caps.held.get(entry, 0) >= self._limit:
            return False
        place = caps.ask(entry)
        try:
            return await place
        except asyncio.CancelledError:
            if not place.cancelled() and place.result():
                caps.release(entry)
            raise

    def release(self, name: str) -> None:
        """Give back a place that `take` gave."""
        self._caps.release(self._entry(name))

    def _entry(self, name: str) -> str:
        digest = hmac.digest(self._key, name.encode(), hashlib.sha256)
        return self._kind + base64.b64encode(digest[:15]).decode()


class Caps:
    """This node's part. `users` and `addresses` are None where there is no limit; then nothing here costs anything."""

    def __init__(
        self,
        pipe: Pipe,
        *,
        prefix: str,
        node: str,
        secret: bytes,
        users: int = 0,
        addresses: int = 0,
        interval: float = INTERVAL,
        ttl: float = TTL,
    ) -> None:
        """`secret`: what the names' hashes are keyed with, the same on all nodes."""
        key = derive(secret, "caps") if users or addresses else b""
        self.users = Cap(self, "u", users, key) if users else None
        self.addresses = Cap(self, "a", addresses, key) if addresses else None
        self.held: dict[str, int] = {}
        """Places that connections of this node have."""
        self._limits = {"u": users, "a": addresses}
        self._pipe, self._keys, self._node = pipe, Keys(prefix), node
        self._interval, self._ttl = interval, ttl
        self._waiting: dict[str, _Waiting] = {}
        self._changed: dict[str, None] = {}  # to be told, or asked for
        self._wanted = asyncio.Event()
        self._tasks = Tasks()
        # What Redis knows of us
        self._names = 0  # that this process had
        self._registered = False
        self._told: set[str] = set()  # what stands in our hash
        self._others: frozenset[str] = frozenset()
        self._doubt = 0.0  # until when nodes are waited for that Redis has forgotten
        self._retry = 0.0  # until when Redis is left alone after it failed

    async def start(self) -> None:
        """Be counted from now on. Redis may be away."""
        if self.users or self.addresses:
            self._wanted.set()
            self._tasks.keep("caps", self._keep)
            self._tasks.keep("lease of caps", self._beat)

    async def close(self) -> None:
        """This node's places are free; at once, if Redis is there."""
        await self._tasks.close()
        if self._registered:
            gone = [("ZREM", self._keys.caps, self._name), ("DEL", self._hash(self._name))]
            try:
                await self._pipe.batch(gone)
            except Unavailable as error:
                log.info("places stay taken until their time is over", why=str(error))

    # -- for a Cap

    def ask(self, entry: str) -> "asyncio.Future[bool]":
        """A place that may come."""
        place: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(entry, []).append(place)
        self._change(entry)
        return place

    def release(self, entry: str) -> None:
        """A place that is not needed any more."""
        self._hold(entry, -1)
        self._change(entry)

    def _hold(self, entry: str, by: int) -> None:
        count = self.held.get(entry, 0) + by
        if count > 0:
            self.held[entry] = count
        else:
            self.held.pop(entry, None)

    def _change(self, entry: str) -> None:
        self._changed[entry] = None
        self._wanted.set()

    # -- one run of the script at a time: what comes meanwhile goes with the next

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._interval)
            self._wanted.set()

    async def _keep(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            entries = list(islice(self._changed, CHUNK))
            for entry in entries:
                del self._changed[entry]
            if self._changed:
                self._wanted.set()
            await self._settle({entry: self._waiting.pop(entry, []) for entry in entries})

    async def _settle(self, asked: Mapping[str, _Waiting]) -> None:
        """Answer all who ask, whatever happens."""
        places: Mapping[str, int] | None = None
        try:
            places = await self._take(asked)
        except Unavailable as error:
            if not self._retry:
                log.warning("caps_of_this_node_only", why=str(error))
            self._forget()
        except Exception:
            log.exception("caps_failed")
            self._forget()
        finally:
            for entry, waiting in asked.items():
                self._answer(entry, waiting, self._share(entry) if places is None else places[entry])

    def _answer(self, entry: str, waiting: _Waiting, places: int) -> None:
        """First come, first served. What is not taken after all is told with the next run."""
        for place in waiting:
            if not place.done():
                has = self.held.get(entry, 0) < places
                if has:
                    self._hold(entry, 1)
                place.set_result(has)
        if self._registered and self.held.get(entry, 0) != places:
            self._change(entry)

    def _forget(self) -> None:
        """What Redis knows is not known: all is told anew, and not before it had a rest."""
        self._registered = False
        now = boottime()
        if now >= self._retry:
            self._retry = now + self._interval / 2
        self._changed = dict.fromkeys(self._waiting)

    def _share(self, entry: str) -> int:
        return max(1, self._limits[entry[0]] // (1 + len(self._others)))

    # -- Redis

    async def _take(self, asked: Mapping[str, _Waiting]) -> Mapping[str, int]:
        """The places that this node has now, of each name: what it had, and what was left of what is asked for."""
        if boottime() < self._retry:
            raise Unavailable("a moment ago it was away")
        for _ in range(2):
            if not self._registered:
                await self._register()
            found = await self._pipe.run(_TAKE, [self._keys.caps, self._hash(self._name)], self._wishes(asked))
            if found:
                self._retry = 0.0
                self._hear(found[0])
                places = dict(zip(asked, found[1], strict=True))
                self._told.difference_update(asked)
                self._told.update(entry for entry, count in places.items() if count)
                return places
            self._registered = False
        raise Unavailable("Redis forgets what is told")

    def _wishes(self, asked: Mapping[str, _Waiting]) -> list[Argument]:
        args: list[Argument] = [
            self._pipe.deadline(),
            milliseconds(self._ttl),
            self._name,
            len(self._told),
            self._hash(""),
        ]
        for entry, waiting in asked.items():
            has = self.held.get(entry, 0)
            wanted = has + sum(not place.done() for place in waiting)
            if self._doubt:
                wanted = max(has, min(wanted, self._share(entry)))
            args += [entry, self._limits[entry[0]], has, wanted]
        return args

    async def _register(self) -> None:
        """Write all that this node holds under a new name, which counts once all is there."""
        before = self._name
        self._names += 1
        held = list(self.held.items())
        keys = [self._keys.caps, self._hash(self._name), self._hash(before)]
        live: list[bytes] = []
        for start in range(0, max(len(held), 1), 10 * CHUNK):
            part = held[start : start + 10 * CHUNK]
            last = start + len(part) >= len(held)
            args: list[Argument] = [self._pipe.deadline(), milliseconds(self._ttl), self._name, before, int(last)]
            live = await self._pipe.run(_REGISTER, keys, [*args, *(word for pair in part for word in pair)])
        self._told = {entry for entry, _ in held}
        self._registered = True
        self._doubt = boottime() + self._ttl
        self._hear(live)

    def _hear(self, live: Sequence[bytes]) -> None:
        """Which nodes count. After a loss those that counted before are waited for, until their time is over."""
        others = frozenset(name.decode().rpartition(".")[0] for name in live) - {self._node}
        if not self._doubt or self._others <= others or boottime() > self._doubt:
            self._doubt = 0.0
            self._others = others

    @property
    def _name(self) -> str:
        return f"{self._node}.{self._names}"

    def _hash(self, name: str) -> str:
        return f"{self._keys.caps}:of:{name}"

    def figures(self) -> Mapping[str, float]:
        """For the metrics."""
        return {"background_failures": self._tasks.failures}
