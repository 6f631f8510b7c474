"""Redis: how it is reached, and what its being away looks like.

Three ways in. `open_commands` is redis-py, for what is rare. `Pipe` is one pipelined connection for the hot path: one
write a loop turn, replies in order. `Bus` is the process's pub/sub connection. Keys, scripts' sources and the meaning
of messages do not live here.

    Unavailable             Redis was not there, not in time, or gone while it worked (`uncertain`: it may have run)
    └── Refused             Redis answered with an error
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import redis.asyncio


class Unavailable(Exception):
    """The one error of Redis being away. `uncertain`: the command may have run all the same, so never send it again."""

    def __init__(self, text: str, *, uncertain: bool = False) -> None:
        super().__init__(text)
        self.uncertain = uncertain


class Refused(Unavailable):
    """Redis answered with an error; the command did not run. `code` is its first word (`NOSCRIPT`, `READONLY`, ...)."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.code = text.split(" ", 1)[0]


class Script:
    """A Lua script, by its digest; every Pipe loads the ones that were made before it connects, and falls back to EVAL."""

    def __init__(self, source: str) -> None:
        self.source = source


def open_commands(url: str) -> "redis.asyncio.Redis":
    """A redis-py client: RESP3, bytes, never a retry (a script must not run twice), 2 s for anything."""
    raise NotImplementedError


class Pipe:
    """One pipelined connection, made again for ever. Cancel-safe: a reply never reaches another caller."""

    connected: bool = False
    server: str = ""  # identity of the server behind this connection: changes with a restart and with a promotion

    def __init__(self, url: str, *, name: str = "wardgate", timeout: float = 2.0, limit: int = 16_384) -> None:
        self.on_lost: list[Callable[[], None]] = []
        self.on_restored: list[Callable[[], None]] = []

    async def start(self, timeout: float = 30.0) -> None:
        """Connect; Unavailable when that did not work within `timeout` (it is then closed)."""
        raise NotImplementedError

    async def close(self) -> None:
        """Calls in flight raise Unavailable."""
        raise NotImplementedError

    def call(self, *args: bytes | str | int | float) -> asyncio.Future[Any]:
        """The reply, bytes and never text. Raises Unavailable at once when not connected or too much is pending."""
        raise NotImplementedError

    def batch(self, commands: Sequence[Sequence[bytes | str | int | float]]) -> asyncio.Future[list[Any]]:
        """The replies of many commands behind one future; an error reply stands in the list as a `Refused`."""
        raise NotImplementedError

    def run(
        self, script: Script, keys: Sequence[bytes | str], args: Sequence[bytes | str | int | float]
    ) -> asyncio.Future[Any]:
        """EVALSHA, and EVAL where the server has forgotten the script."""
        raise NotImplementedError


class Bus:
    """The process's pub/sub connection. One handler a name; a handler's exception is logged and counted."""

    connected: bool = False

    def __init__(self, url: str, *, name: str = "wardgate-bus", timeout: float = 2.0) -> None:
        self.on_lost: list[Callable[[], None]] = []  # at once
        self.on_restored: list[Callable[[], None]] = []  # after all names were subscribed again

    async def start(self, timeout: float = 30.0) -> None:
        """Connect; Unavailable when that did not work within `timeout` (it is then closed)."""
        raise NotImplementedError

    async def close(self) -> None:
        """Forget every name and end the connection."""
        raise NotImplementedError

    async def subscribe(self, name: str, handler: Callable[[bytes], None]) -> None:
        """Return when the server has confirmed. Raises Unavailable (or is cancelled): then the name is not subscribed."""
        raise NotImplementedError

    def unsubscribe(self, name: str) -> None:
        """From now on the handler is not called. Sent with the next flush; works while the connection is away."""
        raise NotImplementedError
