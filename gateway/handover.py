"""The socket between the supervisor and one worker: what goes over it, and how bytes become messages again.

A Unix stream socket carries lines. Down go a `Setup`, connections (a line each, their descriptors beside them) and a
`Drain`; up go `Report`s. The end of the stream means that the other side is gone. No process and no loop lives here,
and nothing that takes long to load: the supervisor needs it before the first worker runs.
"""

import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

# What `serve --roles` chooses from, and the paths that belong to each role alone.
ROLES: dict[str, tuple[str, ...]] = {
    "auth": ("/auth", "/.well-known"),
    "api": ("/api", "/admin"),
    "gateway": ("/connection", "/emulation"),
}
# What moves to the internal port where there is one.
INSIDE = ("/api", "/admin")
# What the public port does not answer then; the metrics on the internal one are the supervisor's.
HIDDEN = (*INSIDE, "/metrics")

MAX_CONNECTIONS = 64  # in one message
_LINES = {socket.AF_INET: b"4\n", socket.AF_INET6: b"6\n"}
_FAMILIES = {line[:-1]: family for family, line in _LINES.items()}
_BUFFER = 1 << 20


class Setup(msgspec.Struct, frozen=True, tag="setup"):
    """Everything a worker is told before it starts. `node`: 32 hex digits, new for every process."""

    settings: dict[str, Any]
    node: str
    dev: bool
    roles: tuple[str, ...] = ()


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Send everyone elsewhere within so many seconds, and end."""

    seconds: float


class Report(msgspec.Struct, frozen=True, tag="report"):
    """How a worker stands. `taken`: connections that it was passed, of all time; `ended`: it will take no more."""

    ready: bool
    why: str
    connections: int
    taken: int
    ended: bool = False


class WorkerState(msgspec.Struct, frozen=True):
    """One line of `/ready` on the internal port."""

    node: str
    ready: bool
    why: str


class Passed(NamedTuple):
    """A connection that changes hands. `descriptor`: -1 when it was lost, the receiver having no more."""

    descriptor: int
    family: socket.AddressFamily


Message = Setup | Drain | Report
_decoder = msgspec.json.Decoder(Message)


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends, neither blocking."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
    return ends


def encode(message: Message) -> bytes:
    """One line."""
    return msgspec.json.encode(message) + b"\n"


def pass_connections(end: socket.socket, connections: Sequence[Passed]) -> None:
    """Send up to MAX_CONNECTIONS, all or none; the sender's descriptors stay open. OSError: the queue is full, or the
    other side is gone."""
    lines = b"".join([_LINES[connection.family] for connection in connections])
    socket.send_fds(end, [lines], [connection.descriptor for connection in connections])


class Receiver:
    """Reads one end."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._rest = b""
        self._descriptors: deque[int] = deque()
        self.ended = False

    def read(self) -> Iterator[Message | Passed]:
        """What has arrived. `ended` at the end."""
        try:
            data, descriptors, _flags, _address = socket.recv_fds(self._end, 65536, MAX_CONNECTIONS)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, descriptors = b"", []
        self._descriptors.extend(descriptors)
        if not data:
            self.ended = True
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            family = _FAMILIES.get(line)
            if family is None:
                yield _decoder.decode(line)
            else:
                yield Passed(self._descriptors.popleft() if self._descriptors else -1, family)
