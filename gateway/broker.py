"""Publications, joins and leaves between nodes: one script appends and publishes, the bus brings them back.

Lives here: the keys of a channel, the bus frame, the publish script. Not here: reading history, presence, who listens.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from config.redis import Bus, Pipe
from gateway.protocol.commands import ClientInfo, Publication


class StreamPosition(NamedTuple):
    """A place in a channel's stream."""

    offset: int
    epoch: str


class Broker:
    """One per process. Callbacks are synchronous and set by the node before `start`."""

    def __init__(self, pipe: Pipe, bus: Bus, *, prefix: str, node: str) -> None:
        self.on_publication: Callable[[str, Publication, str], None] = lambda channel, publication, epoch: None
        self.on_join: Callable[[str, ClientInfo], None] = lambda channel, info: None
        self.on_leave: Callable[[str, ClientInfo], None] = lambda channel, info: None
        self.on_lost: Callable[[], None] = lambda: None
        self.on_restored: Callable[[], None] = lambda: None

    async def publish(
        self,
        channel: str,
        data: bytes,
        *,
        history_size: int = 0,
        history_ttl: float = 0.0,
        meta_ttl: float = 0.0,
        info: ClientInfo | None = None,
        tags: Mapping[str, str] | None = None,
        idempotency_key: str = "",
        skip_history: bool = False,
        echo: bool = False,
    ) -> StreamPosition | None:
        """Append and publish in one atomic step; the position, or None without history.

        `echo`: return only after this node's own bus has delivered it (at most 1 s, and not where the bus is away or
        the channel has no subscriber here). Raises Unavailable; with `.uncertain` it may have been published.
        """
        raise NotImplementedError

    async def join(self, channel: str, info: ClientInfo) -> None:
        """Tell all nodes that a client has come. Raises Unavailable."""
        raise NotImplementedError

    async def leave(self, channel: str, info: ClientInfo) -> None:
        """Tell all nodes that a client has gone. Raises Unavailable."""
        raise NotImplementedError

    async def subscribe(self, channel: str) -> None:
        """The node's first local subscriber: returns when publications of `channel` come in. Raises Unavailable."""
        raise NotImplementedError

    def unsubscribe(self, channel: str) -> None:
        """The node's last local subscriber has gone."""
        raise NotImplementedError
