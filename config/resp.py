"""One connection to a Redis server: commands out in order, replies in order back, pushes aside. RESP3, by hiredis.

Lives here: the address, the greeting, matching replies with calls, the bounds on what is pending. A `Link` lives once;
making a lost one again is the business of `config.redis`. Only that and `config.sentinel` import this, and
`config.settings` for the form of a URL.

    Unavailable             Redis was not there, not in time, or gone while it worked (`uncertain`: it may have run)
    └── Refused             Redis answered with an error: the command did not run
"""

import asyncio
import hashlib
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, cast
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis

from config.urls import several

Argument = bytes | str | int | float
BUFFERED = 16 * 1024 * 1024
"""Bytes that may wait for a server that does not read; with more, calls are refused."""

DOUBT = 0.05
"""Seconds that a call is given beyond its time, for a reply that lies in the socket already."""

_NOTHING = object()


class Unavailable(Exception):
    """The one error of Redis being away. `uncertain`: the command may have run all the same, so never send it again."""

    def __init__(self, text: str, *, uncertain: bool = False) -> None:
        super().__init__(text)
        self.uncertain = uncertain


class Refused(Unavailable):
    """Redis answered with an error. `code` is its first word: `NOSCRIPT`, `READONLY`, `WRONGTYPE`, ..."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.partition(" ")[0]


@dataclass(frozen=True)
class Address:
    """Where a server is and how one logs in. `str` shows no secret."""

    host: str = ""
    port: int = 0
    path: str = ""
    db: int = 0
    username: str = ""
    password: str = field(default="", repr=False)
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    sentinels: tuple[tuple[str, int], ...] = ()
    """Who knows where the server called `master` is; `host` and `port` are empty until one was asked."""
    master: str = ""
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)

    def __str__(self) -> str:
        if self.sentinels and not self.host:
            return f"{self.master} by {', '.join(f'{host}:{port}' for host, port in self.sentinels)}"
        return self.path or f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> "Address":
        """`redis://[user:password@]host[:port][/db]`, `rediss://` with TLS, `unix://[user:password@]/path?db=0`.

        `redis+sentinel://[user:password@]host[:port][,host[:port]...][/db]?sentinel_master_name=...`; more sentinels as
        `addr=host:port`; `sentinel_user` and `sentinel_password` are for them.

        `rediss` takes `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile` (paths). ValueError names what is wrong and
        never shows the password.
        """
        named = several(url)
        by_sentinel = named.before.startswith(("redis+sentinel://", "rediss+sentinel://"))
        parts = urlsplit(named.first if by_sentinel else url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        options = dict(pairs)
        username, password = unquote(parts.username or ""), unquote(parts.password or "")
        if parts.scheme == "unix":
            db = _database(options.pop("db", "0"))
            _exhausted(options)
            if not parts.path.strip("/"):
                raise ValueError("a unix:// URL needs a path")
            return cls(path=unquote(parts.path), db=db, username=username, password=password)
        if by_sentinel:
            places = [*named.hosts, *(value for name, value in pairs if name == "addr")]
            options.pop("addr", None)
            found = cls(
                db=_database(options.pop("db", parts.path.strip("/") or "0")),
                username=username,
                password=password,
                tls=_context(options) if parts.scheme == "rediss+sentinel" else None,
                sentinels=tuple(_place(place) for place in places if place),
                master=options.pop("sentinel_master_name", ""),
                sentinel_username=options.pop("sentinel_user", ""),
                sentinel_password=options.pop("sentinel_password", ""),
            )
            _exhausted(options)
            if not found.sentinels or not found.master:
                raise ValueError("a redis+sentinel:// URL needs a host and sentinel_master_name")
            return found
        if parts.scheme not in ("redis", "rediss"):
            raise ValueError(
                "a Redis URL begins with redis://, rediss://, redis+sentinel://, rediss+sentinel:// or unix://"
            )
        if not parts.hostname:
            raise ValueError("a Redis URL needs a host")
        db = _database(options.pop("db", parts.path.strip("/") or "0"))
        tls = _context(options) if parts.scheme == "rediss" else None
        _exhausted(options)
        return cls(parts.hostname, parts.port or 6379, "", db, username, password, tls)


def _place(text: str) -> tuple[str, int]:
    """Of a sentinel."""
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a sentinel without a host")
    return parts.hostname, parts.port or 26379


def _database(text: str) -> int:
    if not text.isdecimal() or len(text) > 4:
        raise ValueError(f"{text!r} is not the number of a Redis database")
    return int(text)


def _context(options: dict[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.pop("ssl_ca_certs", None))
    certificate, key = options.pop("ssl_certfile", None), options.pop("ssl_keyfile", None)
    if certificate:
        context.load_cert_chain(certificate, key)
    return context


def _exhausted(options: dict[str, str]) -> None:
    if options:
        raise ValueError(f"a Redis URL has no option {next(iter(options))!r}")


class Script:
    """A Lua script by its digest. Make them as constants of a module: each connection loads all there are."""

    all: ClassVar[list["Script"]] = []
    __slots__ = ("digest", "source")

    def __init__(self, source: str) -> None:
        self.source = source.strip().encode()
        self.digest = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()
        Script.all.append(self)


class Run(NamedTuple):
    """A run of a script, where a command is expected."""

    script: Script
    keys: Sequence[Argument]
    args: Sequence[Argument]


class _Many:
    """The replies of several commands behind one future; errors stand among them."""

    __slots__ = ("_left", "_replies", "future")

    def __init__(self, future: "asyncio.Future[list[Any]]", count: int) -> None:
        self.future = future
        self._left = count
        self._replies: list[Any] = [None] * count

    def settle(self, index: int, reply: Any) -> None:
        self._replies[index] = reply
        self._left -= 1
        if not self._left and not self.future.done():
            self.future.set_result(self._replies)


class _Call(NamedTuple):
    """One reply that is owed. `run` is what to evaluate if the server does not know the script."""

    future: "asyncio.Future[Any]"
    deadline: float
    many: _Many | None = None
    place: int = -1
    run: Run | None = None


class Greeting(NamedTuple):
    """What a server says of itself. `identity` changes with a restart and a promotion; "" where INFO is refused."""

    primary: bool
    identity: str


class Link(asyncio.Protocol):
    """One connection from its making to its end.

    Calls of one loop turn leave in one write. A call whose future is cancelled before that is not sent; after that its
    reply is thrown away, and nobody else's. When the oldest call is unanswered for `timeout` seconds the connection
    ends. `on_lost(link, reason)` is called once and at once, before the futures of calls raise.
    """

    def __init__(
        self,
        *,
        timeout: float,
        limit: int,
        on_lost: Callable[["Link", str], None] = lambda link, reason: None,
        on_push: Callable[[list[Any]], None] = lambda push: None,
        on_refused: Callable[["Link", Refused], None] = lambda link, refused: None,
    ) -> None:
        self.failure = ""  # why it ended; "" while it lives
        self._loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._timeout = timeout
        self._limit = limit
        self._on_lost = on_lost
        self._on_push = on_push
        self._on_refused = on_refused
        self._reader = hiredis.Reader(replyError=Refused, notEnoughData=_NOTHING)
        self._sent: deque[_Call] = deque()
        self._unsent: list[tuple[bytes, _Call | None]] = []
        self._told = False
        self._refusal: Refused | None = None  # of what was told: the next call raises it
        self._paused = False
        self._flushing = False
        self._watch: asyncio.TimerHandle | None = None
        self._doubted: _Call | None = None

    # -- the transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFERED)

    def connection_lost(self, exc: Exception | None) -> None:
        self.fail(f"connection lost: {exc}" if exc else "connection closed by the server")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not _NOTHING and not self.failure:
                if type(reply) is hiredis.PushNotification:
                    self._on_push(reply)
                else:
                    self._settle(reply)
        except (hiredis.ProtocolError, IndexError) as error:
            self.fail(f"a reply that cannot be: {error}")

    # -- the caller's side

    def call(self, command: Sequence[Argument] | Run) -> "asyncio.Future[Any]":
        """The reply, or Refused. Raises Unavailable at once when the connection is over or full."""
        self._admit(1)
        future = self._loop.create_future()
        packed, run = _pack(command)
        self._write_soon(packed, _Call(future, self._loop.time() + self._timeout, None, -1, run))
        return future

    def batch(self, commands: Sequence[Sequence[Argument] | Run]) -> "asyncio.Future[list[Any]]":
        """The replies of all, error replies among them."""
        self._admit(len(commands))
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        if not commands:
            future.set_result([])
            return future
        many = _Many(future, len(commands))
        deadline = self._loop.time() + self._timeout
        for index, command in enumerate(commands):
            packed, run = _pack(command)
            self._write_soon(packed, _Call(future, deadline, many, index, run))
        return future

    def tell(self, command: Sequence[Argument]) -> None:
        """Send what has no reply (SUBSCRIBE in RESP3). The call made right after it raises what it was refused with."""
        self._told = True
        self._write_soon(_pack(command)[0], None)

    def fail(self, reason: str) -> None:
        """End the connection now. What was sent and not answered may have run; what was not sent has not."""
        if self.failure:
            return
        self.failure = reason
        if self._transport is not None:
            self._transport.abort()
        if self._watch is not None:
            self._watch.cancel()
        sent, self._sent = self._sent, deque()
        unsent, self._unsent = self._unsent, []
        self._on_lost(self, reason)
        for call in sent:
            _reject(call.future, Unavailable(reason, uncertain=True))
        for _, waiting in unsent:
            if waiting is not None:
                _reject(waiting.future, Unavailable(reason))
        if not self.closed.done():
            self.closed.set_result(None)

    # -- inside

    def _admit(self, count: int) -> None:
        if self.failure:
            raise Unavailable(self.failure)
        if self._paused or len(self._sent) + len(self._unsent) + count > self._limit:
            raise Unavailable("too much waits for Redis")

    def _write_soon(self, packed: bytes, call: _Call | None) -> None:
        self._unsent.append((packed, call))
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        unsent, self._unsent = self._unsent, []
        if self.failure or self._transport is None:
            return
        out: list[bytes] = []
        for packed, call in unsent:
            if call is not None:
                if call.future.cancelled():
                    continue
                self._sent.append(call)
            out.append(packed)
        if out:
            self._transport.write(b"".join(out))
        if self._watch is None and self._sent:
            self._watch = self._loop.call_at(self._sent[0].deadline, self._look)

    def _look(self) -> None:
        """The one timer. Replies come in order, so the oldest call speaks for all.

        After a stall of our own a timer may run before the socket is read: the first look only doubts.
        """
        self._watch = None
        if not self._sent:
            return
        oldest, now = self._sent[0], self._loop.time()
        if oldest.deadline > now:
            self._watch = self._loop.call_at(oldest.deadline, self._look)
        elif oldest is self._doubted:
            self.fail(f"no answer within {self._timeout:g} s")
        else:
            self._doubted = oldest
            self._watch = self._loop.call_later(DOUBT, self._look)

    def _settle(self, reply: Any) -> None:
        refused = type(reply) is Refused
        if self._told:
            if refused:
                self._refusal = reply
                return
            if self._refusal is not None:
                reply, refused, self._refusal = self._refusal, True, None
        call = self._sent.popleft()
        if refused:
            if call.run is not None and reply.code == "NOSCRIPT":
                self._run_by_source(call)
                return
            self._on_refused(self, reply)
        if call.many is not None:
            call.many.settle(call.place, reply)
        elif call.future.done():
            return
        elif refused:
            call.future.set_exception(reply)
        else:
            call.future.set_result(reply)

    def _run_by_source(self, call: _Call) -> None:
        """The server had forgotten the script, so it did not run and may be sent again. EVAL loads it for the next."""
        if call.run is not None and not call.future.cancelled():
            script, keys, args = call.run
            self._write_soon(_evaluation(b"EVAL", script.source, keys, args), call._replace(run=None))


def _reject(future: "asyncio.Future[Any]", error: Unavailable) -> None:
    if not future.done():
        future.set_exception(error)


def _pack(command: Sequence[Argument] | Run) -> tuple[bytes, Run | None]:
    if isinstance(command, Run):
        return _evaluation(b"EVALSHA", command.script.digest, command.keys, command.args), command
    return _packed(tuple(command)), None


def _evaluation(verb: bytes, script: bytes, keys: Sequence[Argument], args: Sequence[Argument]) -> bytes:
    return _packed((verb, script, len(keys), *keys, *args))


_packed = cast(Callable[[tuple[Argument, ...]], bytes], hiredis.pack_command)


async def greet(link: Link, address: Address, name: str) -> Greeting:
    """Log in, choose RESP3 and the database, ask who is there. Raises Unavailable."""
    hello: list[Argument] = ["HELLO", 3]
    if address.password:
        hello += ["AUTH", address.username or "default", address.password]
    hello += ["SETNAME", name]
    waiting = [link.call(hello)]
    if address.db:
        waiting.append(link.call(["SELECT", address.db]))
    told = await asyncio.gather(*waiting)
    try:
        return read_info(await link.call(INFO))
    except Refused:
        return Greeting(told[0].get(b"role") in _PRIMARY, "")


INFO = ("INFO", "SERVER", "REPLICATION")
_PRIMARY = (b"master", b"primary")


def read_info(info: bytes) -> Greeting:
    """The identity is the server's process and the history that it writes: a promotion starts a new one."""
    lines = dict(line.partition(b":")[::2] for line in info.splitlines())
    identity = b"%.16s-%.16s" % (lines.get(b"run_id", b""), lines.get(b"master_replid", b""))
    return Greeting(lines.get(b"role") in _PRIMARY, identity.decode(errors="replace"))
