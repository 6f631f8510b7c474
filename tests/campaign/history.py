"""What an outsider saw of one run: the words of the log that the checker reads. Data, no I/O.

Every time is a reading of CLOCK_MONOTONIC of this machine by the process of the clients; nothing in here was told by a
gateway about itself, except what its API answered.

What an outsider may conclude of a frame that he *received*: it may have been written long before. Two things bound the
moment of the write from below.

- `cause`: when that was sent without which the frame could not exist (the command that it answers, the call that made
  the publication; the sender's stamp is in the publication). It was written after that, with no slack at all.
- `Mark`: at that moment the kernels held at most the stream up to `upto` (received, unread in the client's socket,
  unacknowledged in the server's). What begins beyond was written after the mark. Loopback hands a segment over in the
  sender's own system call, or, when the machine is busy, a little later by a kernel thread: see `checker.SLACK`.

The API's answers bound commits from above: what it answered had happened before the answer came.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was seen at `at`."""

    at: float


@dataclass(frozen=True, slots=True)
class LoggedIn(Event):
    """A login was answered with a session; it had been asked for at `sent`."""

    sid: str
    user: str
    sent: float


@dataclass(frozen=True, slots=True)
class Dialled(Event):
    """A connection to `node` whose connect command names the session `sid`. `rude`: it does not read, or not answer
    pings, so it may be closed for that."""

    conn: int
    sid: str
    user: str
    node: int
    rude: bool = False


@dataclass(frozen=True, slots=True)
class Frame(Event):
    """An application frame arrived. `begin`: its place in the connection's stream of bytes. `live`: the reply that
    makes the connection one."""

    conn: int
    kind: str
    cause: float
    begin: int = 0
    live: bool = False


@dataclass(frozen=True, slots=True)
class Mark(Event):
    """All that begins at or beyond `upto` in this connection's stream was written after `at`."""

    conn: int
    upto: int


@dataclass(frozen=True, slots=True)
class Closed(Event):
    """The server's end: a close frame's code and reason, or code 1006 for an end without one."""

    conn: int
    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HungUp(Event):
    """The client ended it itself."""

    conn: int


@dataclass(frozen=True, slots=True)
class Revoking(Event):
    """Something that ends sessions is being asked for. `sids`: sessions that it is sure to end (logged in before, and
    matched). `users`, `everyone`: whose other sessions, logged in while it ran, it may end. `counted`: its receipt
    counts connections."""

    id: int
    what: str
    sids: frozenset[str]
    users: frozenset[str] = frozenset()
    everyone: bool = False
    spared: str = ""
    reason: str = ""
    rights: bool = False  # ends no session: connections are sent away with 3014
    cap: bool = False  # a login that may push out the user's oldest sessions


@dataclass(frozen=True, slots=True)
class Revoked(Event):
    """Its answer. `state`: "confirmed", "committed" (it happened), "refused" (it did not), "unknown"."""

    id: int
    state: str
    by: str = ""
    receipt: str = ""
    elapsed: float = 0.0


@dataclass(frozen=True, slots=True)
class Receipt(Event):
    """The receipt at the end of the run. `state` "" when there is none."""

    id: int
    state: str
    closed: int


@dataclass(frozen=True, slots=True)
class Answered(Event):
    """An HTTP request with a session's credential, asked at `sent`."""

    sid: str
    node: int
    status: int
    sent: float


@dataclass(frozen=True, slots=True)
class Readiness(Event):
    """`/ready` of a node, asked at `sent`."""

    node: int
    ready: bool
    sent: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class FaultBegan(Event):
    """Logged once it is in force. `blinds`: nodes that cannot hear from the database. `kills`: nodes whose process was
    killed: the kernel ends its sockets. `deafens`: nodes that do not hear what they publish. `halts`: nodes that cannot
    run, or hear from the database too late or not at all."""

    id: int
    name: str
    blinds: frozenset[int] = frozenset()
    kills: frozenset[int] = frozenset()
    deafens: frozenset[int] = frozenset()
    note: str = ""
    halts: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class FaultEnded(Event):
    """Logged before it is taken away."""

    id: int


@dataclass(frozen=True, slots=True)
class Failover(Event):
    """Another database has taken over, and the gateways can reach it. What was committed from `since` on may be lost,
    if `since` is before `at`. From `settled` on everything that a gateway remembers is there again."""

    since: float
    settled: float


@dataclass(frozen=True, slots=True)
class Finding(Event):
    """What a fault's own look found that must not be: `rule` is the fault's name. Nothing else was wrong meanwhile."""

    rule: str
    what: str


@dataclass(frozen=True, slots=True)
class Starved(Event):
    """The campaign, at the gateways' priority, had work and did not come to run for so many seconds up to `at`: time
    that it spent itself is not counted. A machine without time for it has none for the gateways either."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Published(Event):
    """The API accepted a publication of a positioned channel at this place of its stream."""

    id: str
    channel: str
    offset: int
    epoch: str


@dataclass(frozen=True, slots=True)
class Subscribed(Event):
    """A positioned subscription begins: what comes is above `offset`."""

    conn: int
    channel: str
    offset: int
    epoch: str


@dataclass(frozen=True, slots=True)
class Delivered(Event):
    """A publication arrived."""

    conn: int
    channel: str
    offset: int
    id: str


@dataclass(frozen=True, slots=True)
class Unsubscribed(Event):
    """The server said that the subscription is over: what was missed is reported so."""

    conn: int
    channel: str
    code: int


@dataclass(frozen=True, slots=True)
class Quiet(Event):
    """The end: every fault was over for long enough; what is open now is meant to be."""


@dataclass(frozen=True)
class History:
    """One run. `lease`, `drift`, `hold`: L, d, F. `cap`: sessions a user may have."""

    lease: float
    drift: float
    hold: float = 15.0
    cap: int = 20
    events: list[Event] = field(default_factory=list)
