"""Hints over Redis: rows to all, acknowledgements back to who committed them, and a probe to oneself (3, 6a).

They are speed and nothing else: at most once, in no order, and whoever can write to Redis can repeat or drop them. What
he cannot do is make one: every message carries an HMAC under a key that derives from `sessions.secret_key`, the key
prefix and the log's own first row, so that neither another deployment nor another database speaks here. `Envelope` is
pure; `Hints` puts messages on the wire and takes them off. What a row or an acknowledgement does is the caller's.

    message = version (1) | HMAC-SHA256, first 16 bytes | msgpack of one of Hint, Acks, Probe
"""

import asyncio
import hashlib
import hmac
import secrets as random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from config.redis import Bus, Unavailable
from config.sealing import derive
from sessions.lease import READER_VERSION
from sessions.memory import Place
from sessions.model import Row

log = structlog.get_logger(__name__)

VERSION = 1
_MAC = 16
CHUNK = 200
"""Rows in one message."""

PACE, ANSWER = 1.0, 0.9
"""Seconds between two probes, and until one counts as not heard. Two that were not heard: deaf (in less than 3 s)."""


class Count(msgspec.Struct, frozen=True, array_like=True):
    """What the sender has closed for one receipt so far, and when it last did (database's clock)."""

    receipt: str
    closed: int
    applied_at: float


class Hint(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Rows that were committed. Each is decoded by itself: an unknown kind must not hide the others."""

    node: str
    rows: tuple[msgspec.Raw, ...]

    def readable(self) -> list[Row]:
        """The rows that this reader can apply (1d)."""
        rows = []
        for raw in self.rows:
            try:
                row = msgspec.msgpack.decode(raw, type=Row)
            except msgspec.DecodeError:
                continue
            if row.min_version <= READER_VERSION:
                rows.append(row)
        return rows


class Acks(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """`node` has applied these rows (seq and id), and has closed so much for their receipts."""

    node: str
    places: tuple[tuple[int, str], ...]
    counts: tuple[Count, ...]


class Probe(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """To oneself."""

    nonce: str


Message = Hint | Acks | Probe
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Envelope:
    """Seals with the first secret, opens with any (they rotate)."""

    def __init__(self, secrets: Sequence[str], *, prefix: str, chain: str) -> None:
        purpose = f"revocation hints of {prefix} {chain}"
        self._keys = [derive(secret.encode(), purpose) for secret in secrets]

    def seal(self, message: Message) -> bytes:
        body = msgspec.msgpack.encode(message)
        return bytes([VERSION]) + self._mac(self._keys[0], body) + body

    def open(self, payload: bytes) -> Message | None:
        """None for whatever we did not make: cut, forged, or of another version."""
        mac, body = payload[1 : 1 + _MAC], payload[1 + _MAC :]
        if payload[:1] != bytes([VERSION]):
            return None
        if not any(hmac.compare_digest(mac, self._mac(key, body)) for key in self._keys):
            return None
        try:
            return _decoder.decode(body)
        except (msgspec.DecodeError, RecursionError):
            return None

    def _mac(self, key: bytes, body: bytes) -> bytes:
        return hmac.digest(key, bytes([VERSION]) + body, hashlib.sha256)[:_MAC]


class Caller(Protocol):
    """The command connection (config.redis.Pipe)."""

    def call(self, *args: bytes | str | int | float) -> Awaitable[Any]: ...


class Hints:
    """This process's ear and mouth. `on_rows(node, rows)`, `on_acks(acks)`: synchronous.

    `heard` is false until a message of one's own came back through the real path: publish, server, subscription.
    """

    def __init__(
        self,
        bus: Bus,
        pipe: Caller,
        *,
        node: str,
        prefix: str,
        on_rows: Callable[[str, list[Row]], None],
        on_acks: Callable[[Acks], None],
        on_change: Callable[[], None],
    ) -> None:
        self.heard = False
        self.received = 0
        self.rejected = 0
        self.envelope: Envelope | None = None
        self._bus = bus
        self._pipe = pipe
        self._node = node
        self._prefix = prefix
        self._on_rows = on_rows
        self._on_acks = on_acks
        self._on_change = on_change
        self._missed = 0
        self._subscribed = False
        self._nonce = ""
        self._answer = asyncio.Event()
        self._wake = asyncio.Event()
        self._acks: dict[str, tuple[dict[Place, None], dict[str, Count]]] = {}
        bus.on_lost.append(self._lost)
        bus.on_restored.append(self._wake.set)

    @property
    def _everyone(self) -> str:
        return f"{self._prefix}:revocations"

    def _own(self, node: str) -> str:
        return f"{self._prefix}:revocations:{node}"

    # -- sending: never waits, never raises, never repeats

    def send_rows(self, rows: Sequence[Row]) -> None:
        """To all processes."""
        for n in range(0, len(rows), CHUNK):
            raw = tuple(msgspec.Raw(msgspec.msgpack.encode(row)) for row in rows[n : n + CHUNK])
            self._publish(self._everyone, Hint(self._node, raw))

    def acknowledge(self, node: str, places: Sequence[Place], counts: Sequence[Count]) -> None:
        """To the process that committed them; what falls into one loop turn goes in one message."""
        if not self._acks:
            asyncio.get_running_loop().call_soon(self._flush)
        there, counted = self._acks.setdefault(node, ({}, {}))
        there.update(dict.fromkeys(places))
        counted.update({count.receipt: count for count in counts})

    def _flush(self) -> None:
        waiting, self._acks = self._acks, {}
        for node, (places, counts) in waiting.items():
            self._publish(self._own(node), Acks(self._node, tuple(places), tuple(counts.values())))

    def _publish(self, channel: str, message: Message) -> asyncio.Future[Any] | None:
        if self.envelope is None:
            return None
        try:
            future = asyncio.ensure_future(self._pipe.call("PUBLISH", channel, self.envelope.seal(message)))
        except Unavailable:
            return None
        future.add_done_callback(_forget)
        return future

    # -- hearing

    def _hear(self, payload: bytes) -> None:
        message = self.envelope.open(payload) if self.envelope is not None else None
        match message:
            case Hint():
                self.received += 1
                if message.node != self._node:
                    self._on_rows(message.node, message.readable())
            case Acks():
                self._on_acks(message)
            case Probe():
                if message.nonce == self._nonce:
                    self._answer.set()
            case None:
                self.rejected += 1
                if self.rejected in (1, 10, 100) or self.rejected % 1000 == 0:
                    log.warning("hint_rejected", count=self.rejected, size=len(payload))

    def _lost(self) -> None:
        self._set_heard(False)
        self._wake.set()

    # -- probing

    async def run(self) -> None:
        """Subscribe, and probe for ever."""
        while True:
            if not await self._subscribe():
                await asyncio.sleep(PACE / 2)
                continue
            await self._probe()
            pause = PACE if self._missed == 0 else PACE - ANSWER
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()

    async def _subscribe(self) -> bool:
        """Once; from then on the bus keeps the names over every loss."""
        if not self._subscribed:
            try:
                await self._bus.subscribe(self._own(self._node), self._hear)
                await self._bus.subscribe(self._everyone, self._hear)
                self._subscribed = True
            except Unavailable:
                return False
        return True

    async def _probe(self) -> None:
        """5 in the table of faults: publish to oneself on the path that hints take, and listen."""
        self._answer.clear()
        self._nonce = random.token_hex(8)
        sent = self._publish(self._own(self._node), Probe(self._nonce))
        if sent is not None and await self._answered():
            self._missed = 0
            self._set_heard(True)
            return
        self._missed += 1
        if sent is None or self._missed >= 2:
            self._set_heard(False)
        if self._missed % 5 == 3:
            self._bus.reset("deaf: own hints do not come back")
        if sent is None:
            await asyncio.sleep(PACE / 2)

    async def _answered(self) -> bool:
        try:
            async with asyncio.timeout(ANSWER):
                await self._answer.wait()
                return True
        except TimeoutError:
            return False

    def _set_heard(self, heard: bool) -> None:
        if heard == self.heard:
            return
        self.heard = heard
        (log.info if heard else log.warning)("hints_heard" if heard else "hints_deaf")
        self._on_change()

    def close(self) -> None:
        """Hear nothing more."""
        if self._subscribed:
            self._bus.unsubscribe(self._everyone)
            self._bus.unsubscribe(self._own(self._node))
        self._bus.on_lost.remove(self._lost)
        self._bus.on_restored.remove(self._wake.set)


def _forget(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()
