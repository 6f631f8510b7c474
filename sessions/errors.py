"""What the session room refuses, and how it is told.

Problem                     (config.http: becomes problem details)
├── SessionEnded            401 session_ended: the session is over; `.ended` has code, reason and message
├── RefreshRefused          401 unauthenticated: no refresh token of ours
├── Stale                   401 invalid_credentials: what a login verified is no longer so
└── Unavailable             503 unavailable: PostgreSQL is away, or too slow
"""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from config.http import Problem
from sessions.model import DISABLED, REPLACED, Ended

_REASONS = {DISABLED: "account_disabled", REPLACED: "session_replaced"}


class SessionEnded(Problem):
    """The session is over. Over HTTP a 401; on a socket the code of `ended`."""

    def __init__(self, ended: Ended) -> None:
        super().__init__("session_ended", ended.close_reason, reason=ended.reason or _REASONS.get(ended.code, ""))
        self.ended = ended


class RefreshRefused(Problem):
    """Nothing that we made. It says no more, and ends nothing: a sid is public and proves nothing."""

    def __init__(self) -> None:
        super().__init__("unauthenticated", "this refresh token is not valid")


class ExternalRefused(Problem):
    """An external token whose user id or session is not its issuer's to name. On a socket: invalid token (3500)."""

    def __init__(self, detail: str) -> None:
        super().__init__("unauthenticated", detail)


class Stale(Problem):
    """The subject is gone, or its credential version moved on while the password was checked."""

    def __init__(self) -> None:
        super().__init__("invalid_credentials")


class Unavailable(Problem):
    """PostgreSQL did not answer, or refused for want of something. Nothing is known to have happened."""

    def __init__(self, detail: str = "the database is away") -> None:
        super().__init__("unavailable", detail, retry_after=1)


_AWAY = (
    OSError,  # ConnectionError and TimeoutError are OSErrors
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the driver's state after a server that was killed
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutdown, cancelled by statement_timeout, cannot connect now
    asyncpg.InsufficientResourcesError,  # disk full, too many connections
    asyncpg.LockNotAvailableError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,  # deadlock, serialization
)


@contextmanager
def translated() -> Iterator[None]:
    """The driver's errors of a database that is away as `Unavailable`; everything else as it is."""
    try:
        yield
    except _AWAY as error:
        raise Unavailable from error
