"""Redis: the two ways to it, and what its being away looks like.

`Pipe` is one pipelined connection for commands: one write a loop turn, replies in order. `Bus` is the process's pub/sub
connection. Keys, scripts and the meaning of messages live elsewhere; one connection, from its making to its end, is in
`config.resp`. (redis-py asks the server's version before `serve` starts, and speaks in the tests:
docs/decisions/0005.)

    Unavailable             Redis was not there, not in time, or gone while it worked (`uncertain`: it may have run)
    └── Refused             Redis answered with an error

Nothing is ever sent twice, but a script that the server had forgotten. Everything is bounded: 2 s for an answer, a
count and a number of bytes for what may wait.
"""

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog

from config.clock import boottime
from config.resp import INFO, Address, Argument, Greeting, Link, Refused, Run, Script, Unavailable, greet, read_info
from config.sentinel import elected

__all__ = ["Address", "Argument", "Bus", "Pipe", "Refused", "Run", "Script", "Unavailable"]

log = structlog.get_logger(__name__)

TIMEOUT: Final = 2.0
PENDING: Final = 16_384
BEAT: Final = 1.0
"""Seconds between two signs of life that a connection is asked for."""

CHUNK: Final = 1_000
"""Names in one SUBSCRIBE."""

_uniform = random.SystemRandom().uniform


class _Kept:
    """A connection that is made again for ever. It shows signs of life once a second, or it is given up.

    `on_lost` runs at once, `on_restored` when calls work again; both synchronously, in order, and without arguments.
    """

    def __init__(self, url: str, *, name: str, timeout: float, limit: int) -> None:
        self.connected = False
        self.why = "not connected yet"  # the last reason of not being connected
        self.losses = 0
        self.on_lost: list[Callable[[], None]] = []
        self.on_restored: list[Callable[[], None]] = []
        self._address = Address.parse(url)
        self._name = name
        self._timeout = timeout
        self._limit = limit
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._there = self._address  # of the server that was connected to last
        self._election: asyncio.Task[None] | None = None
        self._up = asyncio.Event()

    async def start(self, timeout: float = 30.0) -> None:
        """Connect. Unavailable when that did not work within `timeout` seconds; it is closed then."""
        self._task = asyncio.create_task(self._keep(), name=self._name)
        try:
            async with asyncio.timeout(timeout):
                await self._up.wait()
        except TimeoutError:
            why = self.why
            await self.close()
            raise Unavailable(f"Redis at {self._address}: {why}") from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End it for good; calls that are in flight raise Unavailable. `on_lost` is not called."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        election, self._election = self._election, None
        if election is not None:
            election.cancel()
            await asyncio.wait([election])
        link, self._link = self._link, None
        self.connected, self.why = False, "closed"
        self._up.clear()
        self._stop_beating()
        if link is not None:
            link.fail(self.why)

    def reset(self, reason: str) -> None:
        """Give this connection up and make another (a probe found it deaf)."""
        if self._link is not None:
            self._link.fail(reason)

    # -- what differs

    async def _prepare(self, link: Link, greeting: Greeting) -> None:
        """The last step before `on_restored`."""

    def _beat(self, link: Link) -> None:
        """Ask for a sign of life; the link ends itself when there is no answer."""

    def _push(self, push: list[Any]) -> None:
        """A message that nobody asked for."""

    def _refused(self, link: Link, refused: Refused) -> None:
        """The server answered a call with an error."""

    def _forsaken(self) -> None:
        """The link is lost: forget what stood on it. Before `on_lost`."""

    # -- what is the same

    async def _keep(self) -> None:
        attempt = 0
        while True:
            try:
                link = await self._open()
                began = boottime()
                self._restored(link)
                await link.closed
                if boottime() - began > BEAT:
                    attempt = 0
            except (OSError, Unavailable) as error:
                self.why = str(error) or "no answer"
                if attempt == 1:
                    log.warning("redis away", connection=self._name, address=str(self._address), why=self.why)
            except Exception:
                self.why = "an error of ours"
                log.exception("redis connection failed", connection=self._name)
            await asyncio.sleep(_uniform(0.5, 1.0) * min(1.0, 0.02 * 2.0**attempt))
            attempt = min(attempt + 1, 10)

    async def _open(self) -> Link:
        address = await elected(self._address)
        link = Link(
            timeout=self._timeout,
            limit=self._limit,
            on_lost=self._lost,
            on_push=self._push,
            on_refused=self._refused,
        )
        try:
            async with asyncio.timeout(self._timeout):
                await self._connect(link, address)
                greeting = await greet(link, address, self._name)
            if not greeting.primary:
                raise Unavailable("the server is a replica")
            await self._prepare(link, greeting)
            if link.failure:
                raise Unavailable(link.failure)
        except BaseException:
            link.fail("not taken into use")
            raise
        self._there = address
        return link

    async def _connect(self, link: Link, address: Address) -> None:
        loop = asyncio.get_running_loop()
        if address.path:
            await loop.create_unix_connection(lambda: link, address.path)
        else:
            await loop.create_connection(lambda: link, address.host, address.port, ssl=address.tls)

    def _restored(self, link: Link) -> None:
        self._link = link
        self.connected, self.why = True, ""
        if self.losses:
            log.info("redis restored", connection=self._name)
        self._stop_beating()
        self._beat_later()
        self._tell(self.on_restored)
        self._up.set()

    def _lost(self, link: Link, reason: str) -> None:
        if link is not self._link:
            return
        self._link = None
        self.connected, self.why = False, reason
        self.losses += 1
        self._up.clear()
        self._stop_beating()
        log.warning("redis lost", connection=self._name, address=str(self._address), why=reason)
        self._forsaken()
        self._tell(self.on_lost)

    def _tell(self, callbacks: Sequence[Callable[[], None]]) -> None:
        for callback in tuple(callbacks):
            try:
                callback()
            except Exception:
                log.exception("a listener of a redis connection failed", connection=self._name)

    def _beat_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(BEAT, self._beat_now)

    def _beat_now(self) -> None:
        link = self._link
        if link is not None:
            self._beat_later()
            self._beat(link)
            if self._address.sentinels and self._election is None:
                self._election = asyncio.create_task(self._look_for_election(link))

    async def _look_for_election(self, link: Link) -> None:
        """A master that was cut off from the sentinels, and not from us, does not know that there is another."""
        try:
            address = await elected(self._address)
            if link is self._link and address != self._there:
                link.fail(f"another master was elected: {address}")
        except (OSError, Unavailable):
            pass  # as long as nobody tells otherwise the one that there is will do
        finally:
            self._election = None

    def _stop_beating(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Pipe(_Kept):
    """One pipelined connection for commands and scripts. A cancelled caller never shifts another's reply.

    `server` is the identity of the server behind it, at most a second old: scripts compare it with what they find in
    their keys, to see that a stream may have been rolled back. A script that answers `LATE` has not run: the server's
    clock was beyond the `deadline` that it was given.
    """

    def __init__(
        self, url: str, *, name: str = "wardgate-pipe", timeout: float = TIMEOUT, limit: int = PENDING
    ) -> None:
        super().__init__(url, name=name, timeout=timeout, limit=limit)
        self.server = ""
        self._ahead = 0.0  # the server's clock, less boottime
        self._beating = False

    def call(self, *command: Argument) -> "asyncio.Future[Any]":
        """The reply: bytes, never text. Raises Unavailable at once when not connected or too much waits."""
        return self._live().call(command)

    def run(self, script: Script, keys: Sequence[Argument], args: Sequence[Argument]) -> "asyncio.Future[Any]":
        """The reply of a script; its source is sent where the server has forgotten it."""
        return self._live().call(Run(script, keys, args))

    def batch(self, commands: Sequence[Sequence[Argument] | Run]) -> "asyncio.Future[list[Any]]":
        """The replies of many behind one future; an error reply stands in the list as a `Refused`."""
        return self._live().batch(commands)

    def deadline(self, within: float | None = None) -> int:
        """When a script sent now may run at the latest: `within` seconds (the timeout) from now, in ms by the
        server's clock. A server that was stopped finds our commands in its socket long after we gave them up."""
        return int((boottime() + self._ahead + (self._timeout if within is None else within)) * 1000)

    def _live(self) -> Link:
        if self._link is None:
            raise Unavailable(self.why)
        return self._link

    async def _prepare(self, link: Link, greeting: Greeting) -> None:
        before = boottime()
        self._set_clock(await link.call(("TIME",)), before, True)
        self.server = greeting.identity
        await link.batch([("SCRIPT", "LOAD", script.source) for script in Script.all])

    def _beat(self, link: Link) -> None:
        if self._beating:
            return
        try:
            asked = link.batch([("TIME",), INFO if self.server else ("PING",)])
        except Unavailable:  # so much waits that its answers are the sign of life
            return
        self._beating = True
        asked.add_done_callback(partial(self._beaten, link, boottime()))

    def _beaten(self, link: Link, before: float, asked: "asyncio.Future[list[Any]]") -> None:
        self._beating = False
        if asked.cancelled() or asked.exception() is not None or link is not self._link:
            return
        time, info = asked.result()
        self._set_clock(time, before, False)
        if self.server and isinstance(info, bytes):
            greeting = read_info(info)
            self.server = greeting.identity
            if not greeting.primary:
                link.fail("the server became a replica")

    def _set_clock(self, time: Any, before: float, first: bool) -> None:
        """A slow answer says little of when it was given: keep what we have."""
        after = boottime()
        if isinstance(time, list) and (first or after - before < self._timeout / 4):
            self._ahead = int(time[0]) + int(time[1]) / 1e6 - (before + after) / 2

    def _refused(self, link: Link, refused: Refused) -> None:
        if refused.code == "LATE":  # if it is not the caller who was slow, then the server's clock was set
            self._beat(link)
        elif refused.code == "READONLY":
            link.fail(str(refused))


Handler = Callable[[bytes], None]


class _Name:
    """A name that is subscribed, or on its way there."""

    __slots__ = ("callers", "confirmed", "handler", "held", "waiters")

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.confirmed = False
        self.held = False  # a `subscribe` has returned
        self.callers = 0  # of `subscribe` that have not
        self.waiters: list[asyncio.Future[None]] = []

    def settle(self, error: Unavailable | None) -> None:
        self.confirmed = error is None
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(Unavailable(str(error)))


class Bus(_Kept):
    """The process's pub/sub connection. Messages go to their handler synchronously, in the order of the server.

    After a loss all names are subscribed again before `on_restored`; what was published meanwhile is lost. A handler
    that raises is logged and counted. A name has one handler: a second `subscribe` puts another in its place.
    """

    def __init__(self, url: str, *, name: str = "wardgate-bus", timeout: float = TIMEOUT) -> None:
        super().__init__(url, name=name, timeout=timeout, limit=PENDING)
        self.messages = 0
        self.handler_errors = 0
        self._names: dict[bytes, _Name] = {}
        self._asked: set[bytes] = set()  # what this link was told to subscribe
        self._changed: dict[bytes, None] = {}  # to be compared with `_asked` at the end of the loop turn
        self._flushing = False
        self._complained = 0.0

    async def subscribe(self, name: str, handler: Handler) -> None:
        """Return when the server has confirmed. Raises Unavailable; then, and when cancelled, nothing is left of it."""
        if self._link is None:
            raise Unavailable(self.why)
        key = name.encode()
        entry = self._names.get(key)
        if entry is None:
            entry = self._names[key] = _Name(handler)
            self._change(key)
        entry.handler = handler
        entry.callers += 1
        try:
            if not entry.confirmed:
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                entry.waiters.append(waiter)
                await waiter
            entry.held = True
        finally:
            entry.callers -= 1
            if not entry.held and not entry.callers:
                self._drop(key, entry)

    def unsubscribe(self, name: str) -> None:
        """From now on the handler is not called. Also while the connection is away."""
        key = name.encode()
        entry = self._names.get(key)
        if entry is not None:
            self._drop(key, entry)
            entry.settle(Unavailable("unsubscribed"))

    def hears(self, name: str) -> bool:
        """Whether messages of `name` come in now."""
        entry = self._names.get(name.encode())
        return self.connected and entry is not None and entry.confirmed

    async def close(self) -> None:
        """End it for good, and forget every name."""
        await super().close()
        self._forsaken()
        self._names.clear()

    def figures(self) -> Mapping[str, float]:
        """For the metrics."""
        return {"bus_reconnects": self.losses}

    # -- names, towards the server

    def _drop(self, key: bytes, entry: _Name) -> None:
        if self._names.get(key) is entry:
            del self._names[key]
            self._change(key)

    def _change(self, key: bytes) -> None:
        self._changed[key] = None
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Bring the server from what it was told to what is wanted, in one write."""
        self._flushing = False
        changed, self._changed = self._changed, {}
        link = self._link
        if link is None:
            return
        gone = [key for key in changed if key not in self._names and key in self._asked]
        for chunk in _chunks(gone):
            link.tell(("UNSUBSCRIBE", *chunk))
            self._asked.difference_update(chunk)
        for chunk in _chunks([key for key in changed if key in self._names]):
            entries = {key: self._names[key] for key in chunk}
            try:
                self._ask(link, chunk).add_done_callback(partial(self._confirm, link, entries))
            except Unavailable as error:
                link.fail(str(error))
                return

    def _ask(self, link: Link, names: Sequence[bytes]) -> "asyncio.Future[Any]":
        """SUBSCRIBE, with a PING behind it: its answer confirms, or raises what the names were refused with."""
        new = [name for name in names if name not in self._asked]
        if new:
            link.tell(("SUBSCRIBE", *new))
            self._asked.update(new)
        return link.call(("PING",))

    def _confirm(self, link: Link, entries: Mapping[bytes, _Name], asked: "asyncio.Future[Any]") -> None:
        error = asked.exception()
        if link is not self._link:
            return
        if not isinstance(error, Unavailable):
            for entry in entries.values():
                entry.settle(None)
            return
        for key, entry in entries.items():  # who left and came back meanwhile rode on the same SUBSCRIBE
            self._asked.discard(key)
            entry.settle(error)
            self._names.get(key, entry).settle(error)

    async def _prepare(self, link: Link, greeting: Greeting) -> None:
        self._asked = set()
        for chunk in _chunks(list(self._names)):
            await self._ask(link, chunk)

    def _restored(self, link: Link) -> None:
        for key in self._asked - self._names.keys():  # they went while all were subscribed again
            self._change(key)
        super()._restored(link)

    def _forsaken(self) -> None:
        """Whoever waits for a confirmation is told; who has one is subscribed again."""
        waiting = [(key, entry) for key, entry in self._names.items() if not entry.confirmed]
        for key, entry in waiting:
            del self._names[key]
            entry.settle(Unavailable(self.why))

    # -- messages, from the server

    def _push(self, push: list[Any]) -> None:
        if push[0] != b"message":
            return
        entry = self._names.get(push[1])
        if entry is None:
            return
        self.messages += 1
        try:
            entry.handler(push[2])
        except Exception:
            self.handler_errors += 1
            self._complain(push[1])

    def _complain(self, name: bytes) -> None:
        """At most once a second: a message that a handler cannot bear may come in thousands."""
        now = boottime()
        if now - self._complained >= 1.0:
            self._complained = now
            log.exception("a handler of the bus failed", name=name.decode(errors="replace"), total=self.handler_errors)

    def _beat(self, link: Link) -> None:
        try:
            link.call(("PING",)).add_done_callback(_seen)
        except Unavailable as error:
            link.fail(str(error))


def _seen(asked: "asyncio.Future[Any]") -> None:
    asked.exception()  # the loss of a link is told by the link


def _chunks(names: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(names), CHUNK):
        yield names[start : start + CHUNK]
