"""This process's part in the protocol of `docs/revocation.md`, and the only door to it for the rest of the house.

It joins the rooms beside it: `log` (SQL of the log), `memory` (who is over since a position, pure), `lease` (may this
process go on, pure), `renewal` (the lease's connection), `hints` (Redis), `registration`, `committer`, `receipts`.
Nothing is decided here; what is decided there is done here, in the order of the protocol.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from typing import Literal, Protocol, TypeVar

import asyncpg
import msgspec

from config.clock import Clock
from config.database import Connection, Pool
from config.redis import Bus, Pipe
from sessions.model import REVOKED, Ended, Kind, Position, Row, Standing

T = TypeVar("T")


class Again(Enum):
    """Memory cannot judge: read the session again (with `read_current`), then judge what was read."""

    BELOW_FLOOR = "below floor"  # memory does not reach back to the position, or the position is on another chain
    RIGHTS = "rights"  # the user's roles changed since the position: not over, but what was read of them is old


Verdict = Ended | Again | None
"""None: live."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a transaction wants the log to say; its place (seq, id, previous, bound) is given at commit.

    SESSION takes `sid`; USER and RIGHTS take `subject`; EVERYONE may take `except_sid`; API_KEY takes `api_key`.
    """

    kind: Kind
    sid: str = ""
    subject: str = ""
    except_sid: str = ""
    api_key: str = ""
    code: int = REVOKED
    reason: str = ""
    message: str = ""
    spread_seconds: float = 0.0


class NodeReceipt(msgspec.Struct, frozen=True):
    """One node's part: when it had applied all rows, and how many connections it closed for them."""

    node: str
    applied_at: str
    connections_closed: int


class Receipt(msgspec.Struct, frozen=True):
    """What a revocation did, as interface.md shows it. `by` is "" until it is confirmed."""

    id: str
    position: str
    state: Literal["committed", "confirmed"]
    by: Literal["", "acks", "lease"]
    sessions: int
    connections_closed: int
    nodes: tuple[NodeReceipt, ...]
    committed_at: str
    elapsed_ms: float


class Closer(Protocol):
    """Whoever holds live connections (the hub)."""

    def apply(self, row: Row) -> int:
        """Close what `row` ends, now and synchronously, and say how many connections that were.

        Called once a row, before this process acknowledges it. RIGHTS: the user's connections go with 3014. SESSION,
        USER, EVERYONE: compare `born < row.bound` of each connection's session (EVERYONE spares `except_sid`). ERA and
        API_KEY mean nothing to connections. `row.spread_seconds`: out of every list now, close frames spread.
        Must not raise: a row whose closer raised is not acknowledged and is tried again.
        """
        ...


class Writing:
    """One transaction of PostgreSQL that may write to the log. Lock order: subjects, sessions (by id), then the head."""

    connection: Connection
    receipt: Receipt | None  # after the block: of what was appended, None when nothing was

    async def head(self) -> Position:
        """The head as a write must know it (1c, 2a): lock the subject first. Under another server start than the last
        writer's an era row is appended first, and the head row stays locked until the end."""
        raise NotImplementedError

    def append(self, entry: Entry) -> None:
        """Collect an entry. At the end of the block, before COMMIT: the marks on sessions and subjects are set, the
        rows are written, the head row last (1a). A USER entry for an unknown subject inserts the subject."""
        raise NotImplementedError

    async def require_live(self, sid: str) -> None:
        """7e: lock the session's row and raise `sessions.errors.SessionEnded` unless it is live by position."""
        raise NotImplementedError


class Revocations:
    """One a process.

    `connect` opens a connection of its own to the primary for the lease. `policy` "serve" never freezes (10e).
    `secrets`: the master secret, then previous ones, from which the key of hints is derived.
    """

    def __init__(
        self,
        pool: Pool,
        connect: Callable[[], Awaitable[asyncpg.Connection]],
        bus: Bus,
        pipe: Pipe,
        *,
        clock: Clock,
        node: str,
        policy: Literal["freeze", "serve"] = "freeze",
        prefix: str = "wardgate",
        secrets: Sequence[str],
    ) -> None:
        self.node = node
        self.policy = policy
        self.fresh_until = 0.0  # boottime; the gate compares its one clock read a flush with this; inf under "serve"
        self.why = "starting"  # why this process is not fresh, "" when it is
        self.probe_ok = False  # own hints are heard through the real publish path
        self.on_freeze: list[Callable[[], None]] = []
        self.on_thaw: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Register (5a), read the first head, and renew from now on. Raises sessions.errors.Unavailable when
        PostgreSQL is not there; Redis may be away."""
        raise NotImplementedError

    async def close(self) -> None:
        """Stop, freeze, and remove the registration."""
        raise NotImplementedError

    # -- judging: pure reads of memory, safe in a synchronous block

    def fresh(self, now: float | None = None) -> bool:
        """Whether this process can prove that it is current (I3)."""
        raise NotImplementedError

    def database_now(self) -> float:
        """The database's clock (unix seconds) as local clock + held offset (11)."""
        raise NotImplementedError

    @property
    def position(self) -> Position:
        """Up to where this process has applied the log."""
        raise NotImplementedError

    def judge(self, sid: str, user: str, born: int, position: Position) -> Verdict:
        """9b: what memory says *now* of a session that was read at `position`. No I/O."""
        raise NotImplementedError

    def judge_standing(self, standing: Standing) -> Verdict:
        """`judge` for what a connection or token carries."""
        raise NotImplementedError

    def judge_key(self, api_key: str, position: Position) -> Verdict:
        """The same for an API key that was read at `position`."""
        raise NotImplementedError

    async def read_current(self, query: Callable[[Connection], Awaitable[T]]) -> T:
        """9b: run a short read on the lease's connection, right after a renewal that was granted; so what it returns is
        at or above the floor. Problem `frozen` when the lease cannot be renewed now. `query` must not keep it."""
        raise NotImplementedError

    # -- writing

    @asynccontextmanager
    async def writing(self, *, actor: str = "") -> AsyncIterator[Writing]:
        """One transaction. After COMMIT the rows are applied here, then hinted to the others (8b).

        Raises Unavailable (nothing was done), Problem `outcome_unknown` (6d), and whatever the block raises (rolled
        back). Cancelling the caller while COMMIT is out does not lose the rows: they are applied all the same.
        """
        raise NotImplementedError
        yield

    async def revoke(
        self, entry: Entry, *, actor: str = "", action: str = "", wait: bool = False, timeout: float = 10.0
    ) -> Receipt:
        """One entry through the committer (1e): up to 500 callers share a transaction. With `wait` until it is
        confirmed or `timeout` (s) is over."""
        raise NotImplementedError

    async def confirmed(self, receipt_id: str, timeout: float) -> Receipt:
        """The receipt once it is confirmed, or as it is after `timeout` seconds."""
        raise NotImplementedError

    async def receipt(self, receipt_id: str) -> Receipt | None:
        """A receipt of any process, by id."""
        raise NotImplementedError

    # -- joining

    def add_listener(self, closer: Closer) -> None:
        """Rows are given to `closer` from now on."""
        raise NotImplementedError

    def figures(self) -> Mapping[str, float]:
        """For the metrics: names of gateway/metrics.py."""
        raise NotImplementedError
