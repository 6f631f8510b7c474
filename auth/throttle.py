"""How often a password may be guessed (security.md, "Brute force"). Counted *before* a hash is spent, in one script.

Three counters, all asked before any is moved:
- the address (IPv4, or the /64 of IPv6): a bucket that failures empty and successes do not;
- the account from this address: five free, then 2^n seconds, up to 15 minutes;
- the account from anywhere that has not logged in to it before: a bucket, so that a crowd cannot guess together. Where
  its owner logged in within 30 days this one is not asked: an attack from elsewhere does not lock anyone out.

A device that is proven to be the account's (`devices`; for a change of password, the session itself) is counted by
itself alone, like an account from one address: neither a crowd elsewhere nor strangers behind the same address hold its
owner back.

Where there is a challenge that people solve (`humans`), the third does not end in waiting: whoever solves one goes on,
from there and for that attempt, so that nobody can lock an owner out for long.

Only what an address has left is told, in the RateLimit fields of the answer: what an account has left would tell of it.
Addresses that the operator lets go free (`auth.rate_limit_allow`) are asked for their accounts alone.

A success gives back what the attempt took and clears the account's counter for the address or device. In Redis stand
only keyed hashes of addresses and accounts. With Redis away each process counts by itself, more strictly, and knows no
addresses again; devices it does.

Attempts for one account from one address run one after another in a process: parallel right passwords all pass, and
parallel wrong ones meet what the one before them left.
"""

import asyncio
import functools
import hmac
import ipaddress
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Literal, NamedTuple, Protocol

import structlog

from auth.humans import Humans
from config.clock import Clock
from config.http import Problem, address_prefix, tell_limit
from config.redis import Pipe, Script, Unavailable
from config.sealing import derive

log = structlog.get_logger(__name__)


class Limits(NamedTuple):
    """`*_burst` attempts at once, one more every `*_interval` seconds; `free` failures, then doubling up to `cap` s."""

    address_burst: int = 100
    address_interval: float = 3.0
    account_burst: int = 20
    account_interval: float = 180.0
    free: int = 5
    cap: float = 900.0
    forget: float = 3600.0  # s after the last attempt until the pair's counter is gone
    known: float = 30 * 86400.0


SHARED = Limits()
LOCAL = Limits(address_burst=20, address_interval=15.0, account_burst=10, account_interval=360.0, free=3)
LOCAL_ENTRIES = 10_000
WAITERS = 256
PROOFS_PER_HOUR = 60  # answers to challenges from one address: each is a question to somebody else
UNCHECKED = frozenset({"busy", "frozen", "unavailable", "second_factor_required"})
"""Problems with which an attempt ends undecided: before its password was checked, or with a right one that is only half
of what is asked. That gives back what the attempt took, and forgives no failure: else who knows the password could go
on guessing codes for ever. A check that found it wrong has another problem."""
RETRY_REDIS = 1.0  # s for which Redis is left alone after it failed


class Names(NamedTuple):
    """The keys of one attempt: address, (account, address), account, when that pair became known, and when the account
    began: what was known before that was known to somebody else.

    `device`: it comes from a device of the account's; then `pair` is (account, device), and no other is counted in.
    `free`: the address is not limited. `proven`: a challenge was solved, so the account's own limit is not asked.
    """

    address: str
    pair: str
    account: str
    known: str
    began: str
    device: bool = False
    free: bool = False
    proven: bool = False


class Left(NamedTuple):
    """What a bucket of `quota` that empties in `window` seconds has left, and in how many seconds all of it is back."""

    quota: int
    window: float
    remaining: int
    reset: float

    @classmethod
    def of(cls, burst: int, interval: float, spent: float) -> "Left":
        """`spent`: the seconds until it is empty."""
        return cls(burst, burst * interval, max(0, math.floor(burst - spent / interval + 1e-6)), spent)


class Taken(NamedTuple):
    """What an attempt took beside the pair's, for giving it back; or, when `wait` > 0, how many seconds it is refused.
    `left`: of the address; None where that is not limited. `account_alone`: nothing else refuses it than what the
    account has left. `known`: it comes from a device or an address that has logged in to the account before.

    What is taken from the account tells who is not known there: neither by the address nor as a device.
    """

    wait: float
    from_address: bool = False
    from_account: bool = False
    left: Left | None = None
    account_alone: bool = False
    known: bool = False


class Counters(Protocol):
    """Where the counters are. Each method is atomic."""

    async def take(self, names: Names) -> Taken:
        """Count one attempt in all counters, or in none and say how long to wait."""
        ...

    async def succeed(self, names: Names, taken: Taken) -> None:
        """It was the right password: give back, clear the pair, know it from now on."""
        ...

    async def withdraw(self, names: Names, taken: Taken) -> None:
        """No password was checked after all: give back."""
        ...

    async def know(self, names: Names, *, anew: bool) -> None:
        """Know the pair from now on; `anew`: and no other that was known before."""
        ...

    async def take_one(self, name: str, burst: int, interval: float) -> tuple[float, Left]:
        """One from a bucket of its own; the seconds to wait, 0 when it was there, and what is left."""
        ...


class Throttle:
    """The limits of this process, shared through Redis with all others."""

    def __init__(
        self,
        pipe: Pipe,
        *,
        prefix: str,
        secret: bytes,
        clock: Clock,
        allow: Iterable[str] = (),
        humans: Humans | None = None,
        per_hour: int = SHARED.account_burst,
    ) -> None:
        networks = [ipaddress.ip_network(network, strict=False) for network in allow]
        self._free = functools.lru_cache(8192)(lambda text: _inside(text, networks))
        stricter = max(1, per_hour // 2)
        self._shared = RedisCounters(pipe, SHARED._replace(account_burst=per_hour, account_interval=3600 / per_hour))
        self._local = LocalCounters(
            LOCAL._replace(account_burst=stricter, account_interval=3600 / stricter), now=clock.now
        )
        self._humans = humans
        self._prefix, self._clock = prefix, clock
        self._key = derive(secret, "throttle")
        self._leave_redis_until = float("-inf")
        self._turns = Turns(WAITERS)

    @asynccontextmanager
    async def attempt(
        self, address: str, account: str, *, device: str = "", proof: str | None = None
    ) -> AsyncIterator["Attempt"]:
        """One check of a password for `account` (any text that names it) from `address`, or from a proven `device`.
        `proof`: the answer to a challenge, "" for none yet; None where none can be given.

        Before the block is entered: Problem `too_many_attempts` with Retry-After; with `proof`, where a challenge is
        all that lacks, `challenge_required` (and busy, unavailable). In the block call `succeeded` when the password
        was right; leaving it without a word, or by cancellation, means wrong. A server that was away or a pool that was
        full before the check (UNCHECKED) is held against nobody.
        """
        names = self._names(address, account, device)
        async with AsyncExitStack() as stack:
            try:
                attempt = await stack.enter_async_context(self._admitted(names))
            except _AccountOver:
                if proof is None or self._humans is None or not self._humans.on:
                    raise
                await self.prove(proof, address)
                attempt = await stack.enter_async_context(self._admitted(names._replace(proven=True)))
            yield attempt

    @asynccontextmanager
    async def _admitted(self, names: Names) -> AsyncIterator["Attempt"]:
        async with self._turns.turn(names.pair):
            counters, taken = await self._take(names)
            attempt = Attempt(self, counters, names, taken)
            try:
                yield attempt
            except Problem as problem:
                if problem.code in UNCHECKED and not attempt.right:
                    await self._finish(counters.withdraw(names, taken))
                raise

    async def prove(self, proof: str, address: str) -> None:
        """Returns where a challenge was solved. Problems: challenge_required, too_many_attempts, busy, unavailable."""
        assert self._humans is not None  # noqa: S101 - who asks for it has looked
        if not proof:
            raise self._humans.required()
        await self.make("proofs", address, PROOFS_PER_HOUR)
        await self._humans.prove(proof, address)

    async def make(self, what: Literal["register", "guest", "letters", "proofs"], address: str, per_hour: int) -> None:
        """One of these more from `address`; 0 means without limit. Problem `too_many_attempts`."""
        if per_hour and not self._free(address):
            wait, left = await self._one(what, address_prefix(address), per_hour)
            tell_limit(what, *left)
            if wait:
                raise TooMany(wait)

    async def some(self, what: str, value: str, per_hour: int) -> None:
        """`what` once more for `value`, of which an hour has so many. Problem `too_many_attempts`."""
        wait, _ = await self._one(what, value, per_hour)
        if wait:
            raise TooMany(wait)

    async def permits(self, what: str, value: str, per_hour: int) -> bool:
        """The same, answered."""
        wait, _ = await self._one(what, value, per_hour)
        return not wait

    async def _one(self, what: str, value: str, per_hour: int) -> tuple[float, Left]:
        """Seconds to wait, 0 when it was counted; and what is left."""
        name = self._name(what, value)
        taken: tuple[float, Left] = await self._either(
            lambda: self._shared.take_one(name, per_hour, 3600 / per_hour),
            lambda: self._local.take_one(name, max(1, per_hour // 4), 4 * 3600 / per_hour),
        )
        return taken

    async def know(self, address: str, account: str, *, anew: bool = False) -> None:
        """`account` is known at `address`, as after a login. `anew`: it was made just now, and whoever had this name
        before was somebody else: it is known nowhere else."""
        await self._finish(self._shared.know(self._names(address, account, ""), anew=anew))

    async def _take(self, names: Names) -> tuple[Counters, Taken]:
        counters: Counters = self._shared

        async def shared() -> Taken:
            return await self._shared.take(names)

        async def local() -> Taken:
            nonlocal counters
            counters = self._local
            return await self._local.take(names)

        taken = await self._either(shared, local)
        if taken.left is not None:
            tell_limit("address", *taken.left)
        if taken.wait:
            raise (_AccountOver if taken.account_alone else TooMany)(taken.wait)
        return counters, taken

    async def _either(self, shared: Callable[[], Any], local: Callable[[], Any]) -> Any:
        """Redis, or what counts instead while Redis is away."""
        if self._clock.now() >= self._leave_redis_until:
            try:
                return await shared()
            except Unavailable as error:
                self._leave_redis_until = self._clock.now() + RETRY_REDIS
                log.warning("throttle_is_local", error=type(error).__name__)
        return await local()

    async def _finish(self, work: Any) -> None:
        """Giving back is worth a try, and no reason to fail a login."""
        try:
            await work
        except Unavailable as error:
            log.warning("throttle_not_given_back", error=type(error).__name__)

    def _names(self, address: str, account: str, device: str) -> Names:
        place = address_prefix(address)
        return Names(
            self._name("address", place),
            self._name("device", f"{device} {account}") if device else self._name("pair", f"{place} {account}"),
            self._name("account", account),
            self._name("known", f"{place} {account}"),
            self._name("began", account),
            bool(device),
            bool(device) or self._free(address),
        )

    def _name(self, kind: str, value: str) -> str:
        """One hash tag for all, so that one script reaches them on a cluster too; no raw value."""
        digest = hmac.digest(self._key, f"{kind} {value}".encode(), "sha256")
        return f"{self._prefix}:{{throttle}}:{kind}:{digest[:16].hex()}"


def _inside(text: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    address = ipaddress.ip_address(text)
    return any(address in network for network in networks)


class Attempt:
    """One admitted attempt."""

    def __init__(self, throttle: Throttle, counters: Counters, names: Names, taken: Taken) -> None:
        self.right = False
        self._throttle, self._counters, self._names, self._taken = throttle, counters, names, taken

    @property
    def known(self) -> bool:
        """Whether it comes from a device or an address that has logged in to the account before."""
        return self._taken.known

    async def succeeded(self) -> None:
        """The password was right."""
        self.right = True
        await self._throttle._finish(self._counters.succeed(self._names, self._taken))


class TooMany(Problem):
    """Refused for so many seconds."""

    def __init__(self, wait: float) -> None:
        super().__init__("too_many_attempts", "try again later", retry_after=int(wait) + 1)


class _AccountOver(TooMany):
    """By what the account has left, and by nothing else."""


class Turns:
    """One at a time per name, in order of arrival; at most `limit` that run or wait in all."""

    def __init__(self, limit: int) -> None:
        self._limit, self._count = limit, 0
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Problem `busy` when too many wait."""
        if self._count >= self._limit:
            raise Problem("busy", "too many people log in at once", retry_after=2)
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        self._count += 1
        try:
            async with lock:
                yield
        finally:
            self._count -= 1
            lock, users = self._locks.pop(name)
            if users > 1:
                self._locks[name] = (lock, users - 1)


_COMMON = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function bucket(key, burst, interval)
    local full = math.max(tonumber(redis.call('GET', key) or '0'), now) + interval
    return full, math.max(0, full - now - burst * interval)
end
local function fill(key, full)
    redis.call('SET', key, string.format('%.0f', full), 'PX', string.format('%.0f', math.max(1, full - now)))
end
local function give_back(key, interval)
    local full = tonumber(redis.call('GET', key) or '0') - interval
    if full > now then fill(key, full) else redis.call('DEL', key) end
end
"""

# A bucket is the time at which it will be empty of attempts again (GCRA); times are whole milliseconds. A server that
# was stopped may find this script long after its caller gave up and counted elsewhere: then it must not count.
_TAKE = Script(
    _COMMON
    + """
if now > tonumber(ARGV[8]) then return redis.error_reply('LATE') end
local address_burst, address_interval = tonumber(ARGV[1]), tonumber(ARGV[2])
local account_burst, account_interval = tonumber(ARGV[3]), tonumber(ARGV[4])
local free, cap, forget = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local pair = redis.call('HMGET', KEYS[2], 'count', 'until')
local count, blocked = tonumber(pair[1] or '0'), tonumber(pair[2] or '0')
local wait, alone, more, address, account = math.max(0, blocked - now), 0
if ARGV[10] == '0' then
    address, more = bucket(KEYS[1], address_burst, address_interval)
    wait = math.max(wait, more)
end
local since = tonumber(redis.call('GET', KEYS[4]) or '-1')
local known = (ARGV[9] == '1' or since >= tonumber(redis.call('GET', KEYS[5]) or '0')) and 1 or 0
if known == 0 and ARGV[11] == '0' then
    account, more = bucket(KEYS[3], account_burst, account_interval)
    if wait == 0 and more > 0 then alone = 1 end
    wait = math.max(wait, more)
end
if wait > 0 then return {wait, 0, 0, address and address - address_interval - now or -1, alone, known} end
if address then fill(KEYS[1], address) end
if account then fill(KEYS[3], account) end
count = count + 1
if count >= free then blocked = now + math.min(cap, 1000 * 2 ^ math.min(count - free, 30)) end
redis.call('HSET', KEYS[2], 'count', count, 'until', string.format('%.0f', blocked))
redis.call('PEXPIRE', KEYS[2], forget)
return {0, address and 1 or 0, account and 1 or 0, address and address - now or -1, 0, known}
"""
)

_SUCCEED = Script(
    _COMMON
    + """
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[4], string.format('%.0f', now), 'PX', ARGV[5])
if ARGV[3] == '1' then give_back(KEYS[1], tonumber(ARGV[1])) end
if ARGV[4] == '1' then give_back(KEYS[3], tonumber(ARGV[2])) end
return 0
"""
)

_KNOW = Script(
    _COMMON
    + """
redis.call('SET', KEYS[1], string.format('%.0f', now), 'PX', ARGV[1])
if ARGV[2] == '1' then redis.call('SET', KEYS[2], string.format('%.0f', now), 'PX', ARGV[1]) end
return 0
"""
)

_WITHDRAW = Script(
    _COMMON
    + """
local count = tonumber(redis.call('HGET', KEYS[2], 'count') or '0') - 1
if count > 0 then redis.call('HSET', KEYS[2], 'count', count) else redis.call('DEL', KEYS[2]) end
if count > 0 and count < tonumber(ARGV[5]) then redis.call('HSET', KEYS[2], 'until', 0) end
if ARGV[3] == '1' then give_back(KEYS[1], tonumber(ARGV[1])) end
if ARGV[4] == '1' then give_back(KEYS[3], tonumber(ARGV[2])) end
return 0
"""
)

_TAKE_ONE = Script(
    _COMMON
    + """
if now > tonumber(ARGV[3]) then return redis.error_reply('LATE') end
local full, wait = bucket(KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]))
if wait > 0 then return {wait, full - tonumber(ARGV[2]) - now} end
fill(KEYS[1], full)
return {0, full - now}
"""
)


class RedisCounters:
    """The counters in Redis. Its being away goes to the caller as config.redis.Unavailable; nothing is sent twice."""

    def __init__(self, pipe: Pipe, limits: Limits) -> None:
        self._pipe, self._limits = pipe, limits

    async def take(self, names: Names) -> Taken:
        limits = self._limits
        wait, from_address, from_account, spent, alone, known = await self._run(
            _TAKE,
            names[:5],
            limits.address_burst,
            _ms(limits.address_interval),
            limits.account_burst,
            _ms(limits.account_interval),
            limits.free,
            _ms(limits.cap),
            _ms(limits.forget),
            self._pipe.deadline(),
            int(names.device),
            int(names.free),
            int(names.proven),
        )
        left = None if names.free else Left.of(limits.address_burst, limits.address_interval, spent / 1000)
        return Taken(wait / 1000, bool(from_address), bool(from_account), left, bool(alone), bool(known))

    async def succeed(self, names: Names, taken: Taken) -> None:
        await self._run(_SUCCEED, names[:4], *self._back(taken), _ms(self._limits.known))

    async def withdraw(self, names: Names, taken: Taken) -> None:
        await self._run(_WITHDRAW, names[:4], *self._back(taken), self._limits.free)

    async def know(self, names: Names, *, anew: bool) -> None:
        await self._run(_KNOW, (names.known, names.began), _ms(self._limits.known), int(anew))

    async def take_one(self, name: str, burst: int, interval: float) -> tuple[float, Left]:
        wait, spent = await self._run(_TAKE_ONE, (name,), burst, _ms(interval), self._pipe.deadline())
        return wait / 1000, Left.of(burst, interval, spent / 1000)

    def _back(self, taken: Taken) -> tuple[int, int, int, int]:
        intervals = _ms(self._limits.address_interval), _ms(self._limits.account_interval)
        return *intervals, int(taken.from_address), int(taken.from_account)

    async def _run(self, script: Script, keys: Sequence[str], *arguments: int) -> Any:
        return await self._pipe.run(script, keys, [str(a) for a in arguments])


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


class LocalCounters:
    """The same counters in this process's memory, the longest untouched dropped first. No await happens inside."""

    def __init__(self, limits: Limits, *, now: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._now = limits, now
        self._buckets: dict[str, float] = {}
        self._pairs: dict[str, tuple[int, float]] = {}

    async def take(self, names: Names) -> Taken:
        limits, now = self._limits, self._now()
        count, blocked = self._pairs.get(names.pair, (0, 0.0))
        wait, buckets = blocked - now, dict[str, float]()
        if not names.free:
            buckets[names.address], more = self._bucket(names.address, limits.address_burst, limits.address_interval)
            wait = max(wait, more)
        alone, asked = wait <= 0, not names.device and not names.proven
        if asked:
            buckets[names.account], more = self._bucket(names.account, limits.account_burst, limits.account_interval)
            wait = max(wait, more)
        if wait > 0:
            return Taken(wait, left=self._left(names), account_alone=alone)
        for name, full in buckets.items():
            _keep(self._buckets, name, full)
        count += 1
        if count >= limits.free:
            blocked = now + min(limits.cap, 2.0 ** min(count - limits.free, 30))
        _keep(self._pairs, names.pair, (count, blocked))
        return Taken(0, not names.free, asked, self._left(names), known=names.device)

    async def succeed(self, names: Names, taken: Taken) -> None:
        self._pairs.pop(names.pair, None)
        self._give_back(names, taken)

    async def withdraw(self, names: Names, taken: Taken) -> None:
        count, blocked = self._pairs.get(names.pair, (1, 0.0))
        _keep(self._pairs, names.pair, (count - 1, blocked if count - 1 >= self._limits.free else 0.0))
        self._give_back(names, taken)

    async def know(self, names: Names, *, anew: bool) -> None:
        """No address is known here."""

    async def take_one(self, name: str, burst: int, interval: float) -> tuple[float, Left]:
        full, wait = self._bucket(name, burst, interval)
        if not wait:
            _keep(self._buckets, name, full)
        return wait, self._left_of(name, burst, interval)

    def _left(self, names: Names) -> Left | None:
        if names.free:
            return None
        return self._left_of(names.address, self._limits.address_burst, self._limits.address_interval)

    def _left_of(self, name: str, burst: int, interval: float) -> Left:
        return Left.of(burst, interval, max(0.0, self._buckets.get(name, 0.0) - self._now()))

    def _bucket(self, name: str, burst: int, interval: float) -> tuple[float, float]:
        now = self._now()
        full = max(self._buckets.get(name, now), now) + interval
        return full, max(0.0, full - now - burst * interval)

    def _give_back(self, names: Names, taken: Taken) -> None:
        for name, interval, took in (
            (names.address, self._limits.address_interval, taken.from_address),
            (names.account, self._limits.account_interval, taken.from_account),
        ):
            if took and name in self._buckets:
                self._buckets[name] -= interval


def _keep(entries: dict[str, Any], name: str, value: Any) -> None:
    entries.pop(name, None)
    if len(entries) >= LOCAL_ENTRIES:
        del entries[next(iter(entries))]
    entries[name] = value
