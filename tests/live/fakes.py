"""A hub without sockets: peers that remember what was written, a lease and a clock that the test moves."""

import asyncio
from typing import Any

from config.clock import FakeClock
from gateway.client import Flag, Subscription
from gateway.hub import Hub
from gateway.peers import Peer
from gateway.transports.websocket import BINARY, TEXT
from sessions.model import Position, Standing
from tests.live.wire import messages

HERE = Position(5, "e" * 32)


class Lease:
    def __init__(self, fresh_until: float) -> None:
        self.fresh_until = fresh_until


class FakePeer(Peer):
    """`room`: how many writes its transport takes before it holds bytes."""

    __slots__ = ("ended", "last", "listened", "log", "room", "wrote")

    def __init__(self, hub: Hub, id: str, encoding: Any = TEXT, room: int = 1_000_000) -> None:
        super().__init__(id, address="10.0.0.1", handshake=None, stale_at=hub.clock() + 10, hub=hub, encoding=encoding)
        self.wrote: list[bytes] = []
        self.log: list[str] = []
        self.last = b""
        self.ended = ""
        self.listened = 0
        self.room = room
        self.wire = self.write = self._write

    def _write(self, data: bytes) -> None:
        self.wrote.append(data)
        self.room -= 1
        if self.room <= 0:
            self.pause()

    @property
    def deaf(self) -> bool:
        return False

    def listen(self) -> None:
        self.listened += 1

    def hush(self) -> None:
        pass

    def finish(self, last: bytes) -> None:
        if self.paused:
            self.ended = "aborted"
        else:
            self.last, self.ended = last, "closing"

    def abort(self) -> None:
        self.ended = "aborted"

    def unclog(self, room: int = 1_000_000) -> None:
        self.room = room
        self.unpause()

    @property
    def said(self) -> list[dict[str, Any]]:
        """All messages written, in order."""
        return [message for data in self.wrote for message in messages(data)]

    def pubs(self) -> list[Any]:
        return [m["push"]["pub"]["data"] for m in self.said if "pub" in m.get("push", {})]


class World:
    """A hub that has started."""

    def __init__(self, **options: Any) -> None:
        self.clock = FakeClock()
        self.lease = Lease(self.clock.now() + 1_000_000)
        self.hub = Hub(
            clock=self.clock.now,
            lease=self.lease,
            **{
                "queue_max_size": 1 << 20,
                "ping_interval": 25.0,
                "pong_timeout": 8.0,
                "hold": 15.0,
                "max_hold": 600.0,
                **options,
            },
        )
        self.gone: list[str] = []
        self.left: list[tuple[str, str]] = []
        self.empty: list[str] = []
        self.hub.on_gone = lambda peer, subs: self.gone.append(peer.id)
        self.hub.on_left = lambda peer, sub: self.left.append((peer.id, sub.channel))
        self.hub.on_empty = self.empty.append
        self.hub.start()
        self._n = 0

    def peer(self, user: str = "", sid: str = "", *, born: int = 3, binary: bool = False, **more: Any) -> FakePeer:
        """A live one."""
        self._n += 1
        peer = FakePeer(self.hub, f"c{self._n}", BINARY if binary else TEXT, **more)
        self.hub.enter(peer)
        standing = Standing(sid or f"s{self._n}", user or f"u{self._n}", born, HERE, "cookie")
        peer.user, peer.sid, peer.born, peer.position, peer.kind = standing.user, standing.sid, born, HERE, "cookie"
        self.hub.go_live(peer)
        return peer

    def subscribe(self, peer: FakePeer, name: str, *flags: int, start: int = 0) -> Subscription:
        place = self.hub.open(name)
        sub = Subscription(peer, name, sum(flags))
        sub.start = start
        self.hub.subscribe(place, sub, peer)
        self.hub.shut(place)
        return sub

    def member(self, name: str, *flags: int, **more: Any) -> FakePeer:
        peer = self.peer(**more)
        self.subscribe(peer, name, *(flags or (Flag.PUSH,)))
        return peer

    def freeze(self) -> None:
        self.lease.fresh_until = self.clock.now() - 1

    def renew(self, seconds: float = 1_000_000) -> None:
        self.lease.fresh_until = self.clock.now() + seconds

    def stop(self) -> None:
        self.hub.stop()


async def turns(count: int = 1) -> None:
    """Let the loop run."""
    for _ in range(count):
        await asyncio.sleep(0)
