"""This process in the cluster: hub, broker, presence, registry, control and revocations joined to one thing.

What the HTTP API asks for is here. How one connection talks is the driver's, who hears what is the hub's.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

from aiohttp import web

from config.clock import Clock, SystemClock
from config.settings import Settings
from gateway.broker import StreamPosition
from gateway.protocol.codes import ErrorCode
from gateway.protocol.commands import ClientInfo


class NodeError(Exception):
    """A refusal of a method of the server API."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code)
        self.code = code


class RpcCall(NamedTuple):
    """One call of a handler registered in code. `client`, `user` and `sid` are empty over the server API."""

    method: str
    data: bytes
    user: str = ""
    client: str = ""
    sid: str = ""


class Node:
    """One per process."""

    def __init__(
        self,
        settings: Settings,
        *,
        name: str,
        revocations: Any,
        sessions: Any,
        identity: Any,
        broker: Any,
        history: Any,
        presence: Any,
        registry: Any,
        control: Any,
        clock: Clock | None = None,
    ) -> None:
        self._clock = clock or SystemClock()
        self.on_rpc: dict[str, Callable[[RpcCall], Awaitable[bytes]]] = {}
        """Handlers by method; a handler may raise `gateway.protocol.codes.Refused`."""

    async def start(self) -> None:
        """Listen. Broker, registry, control and revocations were started before."""
        raise NotImplementedError

    async def drain(self, seconds: float = 5.0) -> None:
        """Close every connection with 3001 in slices spread over `seconds`; new ones are refused from now on."""
        raise NotImplementedError

    async def close(self) -> None:
        """What is left after `drain` ends at once."""
        raise NotImplementedError

    async def websocket(self, request: web.Request) -> web.StreamResponse:
        """The handler of /connection/websocket."""
        raise NotImplementedError

    def figures(self) -> Mapping[str, float]:
        raise NotImplementedError

    async def publish(
        self,
        channel: str,
        data: bytes,
        *,
        skip_history: bool = False,
        tags: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> StreamPosition | None:
        raise NotImplementedError

    async def broadcast(
        self,
        channels: Sequence[str],
        data: bytes,
        *,
        skip_history: bool = False,
        tags: Mapping[str, str] | None = None,
        idempotency_key: str = "",
    ) -> list[StreamPosition | ErrorCode | None]:
        raise NotImplementedError

    async def subscribe(
        self,
        user: str,
        channel: str,
        *,
        client: str = "",
        session: str = "",
        expire_at: int = 0,
        info: bytes = b"",
        data: bytes = b"",
        since: tuple[int, str] | None = None,
        override: Mapping[str, bool] | None = None,
    ) -> None:
        raise NotImplementedError

    async def unsubscribe(self, user: str, channel: str, *, client: str = "", session: str = "") -> None:
        raise NotImplementedError

    async def disconnect(
        self,
        user: str,
        *,
        code: int = 3503,
        reason: str = "force disconnect",
        client: str = "",
        session: str = "",
        whitelist: Sequence[str] = (),
    ) -> None:
        raise NotImplementedError

    async def refresh(
        self,
        user: str,
        *,
        client: str = "",
        session: str = "",
        expired: bool = False,
        expire_at: int = 0,
        info: bytes = b"",
    ) -> None:
        raise NotImplementedError

    async def presence(self, channel: str) -> dict[str, ClientInfo]:
        raise NotImplementedError

    async def presence_stats(self, channel: str) -> tuple[int, int]:
        """(clients, users)."""
        raise NotImplementedError

    async def history(
        self, channel: str, *, limit: int = 0, since: tuple[int, str] | None = None, reverse: bool = False
    ) -> Any:
        """A gateway.history.History (publications, offset, epoch)."""
        raise NotImplementedError

    async def history_remove(self, channel: str) -> None:
        raise NotImplementedError

    async def channels(self, pattern: str = "") -> dict[str, int]:
        """Subscriptions in the cluster by channel."""
        raise NotImplementedError

    async def info(self) -> list[dict[str, Any]]:
        """All nodes: uid, name, version, num_clients, num_users, num_channels, num_subs, uptime."""
        raise NotImplementedError

    async def rpc(self, method: str, data: bytes) -> bytes:
        raise NotImplementedError
