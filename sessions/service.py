"""The sessions of this process: opened, read (in batches, through a judged cache), renewed, seen, ended.

What a session *is* stands in `model`, the SQL in `store`, refresh tokens in `refresh`; the log and its memory belong to
`revocations`, through which every end goes. Every moment here is the process's held database clock
(`Revocations.database_now`), which a step of a clock does not move.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from config.clock import Clock
from config.database import Connection, Pool
from config.settings import Sessions as Policy
from sessions.model import Ended, Reading, Session, Standing

if TYPE_CHECKING:
    from sessions.revocations import Revocations, Writing


class Opened(msgspec.Struct, frozen=True):
    """A login: its session with the position it was born at, and the one secret that its client gets.

    `secret`: the cookie's value ("cookie"); `refresh_token` ("token"). The other is "".
    """

    reading: Reading
    secret: str = ""
    refresh_token: str = ""
    replaced: tuple[str, ...] = ()


class Refreshed(msgspec.Struct, frozen=True):
    """A renewed session and its refresh token: the next generation, or the same successor again inside the window."""

    reading: Reading
    refresh_token: str


class External(msgspec.Struct, frozen=True):
    """What an external issuer's verified token says of its session.

    `issuer` is "" for `client.token`, else the issuer's name; `subject` is the user id as it will be known
    (`<name>:<sub>` for a named issuer). `sid`, `jti`, `iat` as the token has them; `token_hash` is SHA-256 of all of it.
    """

    issuer: str
    subject: str
    token_hash: bytes
    sid: str = ""
    jti: str = ""
    iat: float | None = None
    device: str = ""
    address: str = ""


class Sessions:
    """One a process. `start` before use, `close` at the end (writes what is still pending of `seen`)."""

    def __init__(self, pool: Pool, revocations: "Revocations", policy: Policy, *, clock: Clock) -> None: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def open(
        self,
        writing: "Writing",
        subject: str,
        *,
        credential_version: int,
        kind: str,
        device: str = "",
        address: str = "",
        aal: int = 1,
        replaces: str = "",
    ) -> Opened:
        """A login, in the caller's transaction (2a): subject locked, version and state demanded, then the head read.

        The cap is exact: what goes beyond `max_per_user` of the user's own logins ends with 4503, oldest first, and so
        does `replaces`, the session of the cookie that came with the login. Raises `Stale` when the subject is gone or
        its version is another by now, SessionEnded (4502) when it is disabled.
        """
        raise NotImplementedError

    async def by_secret(self, secret: str) -> Reading | None:
        """The session of a cookie, live or over; None for a secret that is nobody's. Cached, judged on every hit."""
        raise NotImplementedError

    async def by_sid(self, sid: str, *, connection: Connection | None = None) -> Reading | None:
        """The session as PostgreSQL has it now, live or over. With `connection` (the lease's, 9b) on that one, alone."""
        raise NotImplementedError

    async def external(self, token: External, *, connection: Connection | None = None) -> Reading:
        """The session of an external token, made on first sight."""
        raise NotImplementedError

    def ended(self, reading: Reading) -> Ended | None:
        """Why this session is over now, by what was read and by memory since; raises BelowFloor (read again)."""
        raise NotImplementedError

    async def admit(self, reading: Reading) -> Reading:
        """The reading, or a newer one, as live *now*; SessionEnded otherwise. For HTTP; a connect has its own block."""
        raise NotImplementedError

    def standing(self, reading: Reading, **more: Any) -> Standing:
        """What a connection of this session is held to; `more` are Standing's own fields."""
        raise NotImplementedError

    async def refresh(self, token: str, client: bytes) -> Refreshed:
        """Renew by a refresh token (security.md). RefreshRefused for what is none of ours, SessionEnded for theft."""
        raise NotImplementedError

    def seen(self, sid: str, idle: float) -> None:
        """Activity of a session; cheap, written at most once a tenth of `idle`, many in one statement."""
        raise NotImplementedError

    async def of_subject(self, subject: str) -> Sequence[Session]:
        """The user's live sessions, newest first."""
        raise NotImplementedError


Connections = Callable[[Sequence[str]], Any]
"""Live connections by sid (at most 1 s old): `await connections(sids) -> Mapping[str, int]`."""
