"""Messages between nodes: tell all, or ask all and gather the answers.

For the server API (info, channels, disconnect, subscribe, unsubscribe, refresh). Nothing that ends a session goes this
way: a message may be lost, and anyone who can write to Redis can send one.

    u8 version | msgpack [what, id, node, kind, payload]        what: 0 tell, 1 ask, 2 answer, 3 failed
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import msgspec
import structlog

from config.redis import Bus, Pipe, Script, Unavailable
from gateway.broker import PUNCTUAL
from gateway.keys import Keys

log = structlog.get_logger(__name__)

VERSION = b"\x01"
TIMEOUT = 2.0
RUNNING = 1_000
"""Handlers that may run, and questions that may be open, at a time."""

TELL, ASK, ANSWER, FAILED = range(4)

# KEYS: pub/sub name. ARGV: deadline, message. Replies how many nodes hear it.
_SEND = Script(PUNCTUAL + "if late(ARGV[1]) then return LATE end return redis.call('PUBLISH', KEYS[1], ARGV[2])")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, int, str, str, bytes]).decode

Handler = Callable[[bytes], bytes | Awaitable[bytes]]
"""What a node does with a message, and answers. Synchronous where it can be; an awaitable becomes a task."""


class Answers(NamedTuple):
    """By node, this one's among them. `complete`: every node that heard the question has answered, and none failed."""

    answers: dict[str, bytes]
    complete: bool


class _Question:
    """Open until all that heard it are heard of."""

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.answers: dict[str, bytes] = {}
        self._heard: set[str] = set()
        self._failed = False
        self._expected: int | None = None

    @property
    def complete(self) -> bool:
        return not self._failed and self._expected is not None and len(self._heard) >= self._expected

    def expect(self, nodes: int) -> None:
        self._expected = nodes
        self._look()

    def hear(self, node: str, answer: bytes | None, failed: bool = False) -> None:
        self._heard.add(node)
        self._failed |= failed
        if answer is not None:
            self.answers[node] = answer
        self._look()

    def _look(self) -> None:
        if self._expected is not None and len(self._heard) >= self._expected and not self.done.done():
            self.done.set_result(None)


class Control:
    """One per process. `on` maps a kind of message to what this node does with it; set before others may ask."""

    def __init__(self, pipe: Pipe, bus: Bus, *, prefix: str, node: str) -> None:
        self.on: dict[str, Handler] = {}
        self.malformed = 0
        self._pipe = pipe
        self._bus = bus
        self._node = node
        self._all = Keys(prefix).control
        self._ids = itertools.count(1)
        self._questions: dict[int, _Question] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Hear the others. Raises Unavailable."""
        await self._bus.subscribe(self._all, self._receive)
        await self._bus.subscribe(self._name(self._node), self._receive)

    async def close(self) -> None:
        """Hear nobody, end what runs."""
        self._bus.unsubscribe(self._all)
        self._bus.unsubscribe(self._name(self._node))
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def tell(self, kind: str, payload: bytes) -> None:
        """Do it here, then let all others do it. Raises Unavailable when they could not be told."""
        answer = self._handle(kind, payload)
        if not isinstance(answer, bytes):
            await answer
        await self._send(self._all, TELL, 0, kind, payload)

    async def ask(self, kind: str, payload: bytes = b"", *, timeout: float = TIMEOUT) -> Answers:
        """Do it here, then everywhere, and gather the answers for at most `timeout` seconds.

        Raises what the handler here raises, and Unavailable when the others could not be asked. With the bus away
        they are asked all the same, but their answers are not heard.
        """
        if len(self._questions) >= RUNNING:
            raise Unavailable("too many questions are open")
        number = next(self._ids)
        question = self._questions[number] = _Question()
        try:
            async with asyncio.timeout(timeout):
                answer = self._handle(kind, payload)
                question.answers[self._node] = answer if isinstance(answer, bytes) else await answer
                heard = await self._send(self._all, ASK, number, kind, payload)
                if self._bus.hears(self._all):
                    question.expect(heard)
                    await question.done
        except TimeoutError:
            pass
        finally:
            del self._questions[number]
        return Answers(question.answers, question.complete)

    # -- in

    def _receive(self, message: bytes) -> None:
        try:
            if message[:1] != VERSION:
                raise ValueError("another version")
            what, number, node, kind, payload = _decode(message[1:])
        except (ValueError, msgspec.MsgspecError):
            self.malformed += 1
            return
        if what in (ANSWER, FAILED):
            if number in self._questions:
                self._questions[number].hear(node, payload if what == ANSWER else None, what == FAILED)
        elif node == self._node:  # our own comes back: it was handled before it was sent
            if number in self._questions:
                self._questions[number].hear(node, None)
        elif what in (TELL, ASK):
            self._obey(node, number, kind, payload)

    def _obey(self, node: str, number: int, kind: str, payload: bytes) -> None:
        try:
            answer = self._handle(kind, payload)
        except Exception as error:
            self._failed(node, number, kind, error)
            return
        if isinstance(answer, bytes):
            self._answer(node, ANSWER, number, kind, answer)
        elif len(self._tasks) >= RUNNING:
            self._answer(node, FAILED, number, kind, b"")
            if asyncio.iscoroutine(answer):
                answer.close()
        else:
            task = asyncio.create_task(self._await(node, number, kind, answer), name=f"control {kind}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _await(self, node: str, number: int, kind: str, answer: Awaitable[bytes]) -> None:
        try:
            self._answer(node, ANSWER, number, kind, await answer)
        except Exception as error:
            self._failed(node, number, kind, error)

    def _failed(self, node: str, number: int, kind: str, error: Exception) -> None:
        log.error("a control message failed", kind=kind, of=node, exc_info=error)
        self._answer(node, FAILED, number, kind, b"")

    def _handle(self, kind: str, payload: bytes) -> bytes | Awaitable[bytes]:
        handler = self.on.get(kind)
        if handler is None:
            raise LookupError(f"nothing here handles {kind!r}")
        return handler(payload)

    # -- out

    def _answer(self, node: str, what: int, number: int, kind: str, payload: bytes) -> None:
        """Without waiting: whoever asked waits no longer than its timeout."""
        if number:
            try:
                sent = self._publish(self._name(node), what, number, kind, payload)
            except Unavailable as error:
                log.info("an answer was not sent", kind=kind, to=node, why=str(error))
            else:
                sent.add_done_callback(partial(_sent, kind, node))

    async def _send(self, name: str, what: int, number: int, kind: str, payload: bytes) -> int:
        return int(await self._publish(name, what, number, kind, payload))

    def _publish(self, name: str, what: int, number: int, kind: str, payload: bytes) -> "asyncio.Future[Any]":
        message = VERSION + _encode((what, number, self._node, kind, payload))
        return self._pipe.run(_SEND, [name], [self._pipe.deadline(), message])

    def _name(self, node: str) -> str:
        return f"{self._all}:{node}"

    def figures(self) -> Mapping[str, float]:
        """For the metrics."""
        return {"bus_malformed": self.malformed}


def _sent(kind: str, node: str, sent: "asyncio.Future[Any]") -> None:
    if not sent.cancelled() and (error := sent.exception()) is not None:
        log.info("an answer was not sent", kind=kind, to=node, why=str(error))
