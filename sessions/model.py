"""What a session is, and why it may have ended. Pure: no I/O, no clock; time and position are arguments.

A *position* is a place in the revocation log: a seq together with the id of the era row that it stands under. Eras
begin at multiples of 2**32: a seq alone orders positions, and the era's id says whether two of them lie on one chain.
"""

import math
from enum import IntEnum
from typing import NamedTuple

import msgspec

ERA = 1 << 32


class Position(NamedTuple):
    """A place in the log. `era` is the id (32 hex digits) of the era row at `seq - seq % ERA`."""

    seq: int
    era: str

    def __str__(self) -> str:
        return f"{self.seq:x}-{self.era}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """ValueError for anything that `str` did not make."""
        seq, _, era = text.partition("-")
        if len(era) != 32 or len(seq) > 16:
            raise ValueError("not a position")
        return cls(int(seq, 16), f"{int(era, 16):032x}")


class Kind(IntEnum):
    """What a row of the log ends or changes."""

    SESSION = 1
    USER = 2
    EVERYONE = 3
    RIGHTS = 4
    API_KEY = 5
    ERA = 6


class Ended(msgspec.Struct, frozen=True):
    """Why a session is over: the close code, the text behind the colon of its reason, and a message for people."""

    code: int
    reason: str = ""
    message: str = ""
    at: float = 0.0

    @property
    def type(self) -> str:
        """The `type` of the message push."""
        return _TYPES[self.code]

    @property
    def close_reason(self) -> str:
        """At most 123 bytes of UTF-8, as a close frame allows."""
        text = _TEXTS[self.code] + (f": {self.reason}" if self.reason and self.code in (REVOKED, EXPIRED) else "")
        return text.encode()[:123].decode(errors="ignore")


REVOKED, DISABLED, REPLACED, EXPIRED = 4501, 4502, 4503, 4504
_TYPES = {
    REVOKED: "session.revoked",
    DISABLED: "account.disabled",
    REPLACED: "session.replaced",
    EXPIRED: "session.expired",
}
_TEXTS = {
    REVOKED: "session revoked",
    DISABLED: "account disabled",
    REPLACED: "session replaced",
    EXPIRED: "session expired",
}


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One row of the revocation log, as PostgreSQL, a hint and memory carry it.

    `bound` is the seq that sessions are compared with (`born < bound` dies): the row's first seq, kept when a failover
    makes it take a new one. Times are unix seconds by the database's clock. Ids are 32 hex digits.
    """

    seq: int
    id: str
    previous: str
    kind: Kind
    bound: int
    sid: str = ""
    subject: str = ""
    except_sid: str = ""
    api_key: str = ""
    code: int = REVOKED
    reason: str = ""
    message: str = ""
    min_version: int = 1
    receipt: str = ""
    spread_seconds: float = 0.0
    at: float = 0.0

    @property
    def ended(self) -> Ended:
        return Ended(self.code, self.reason, self.message, self.at)


class Subject(msgspec.Struct, frozen=True):
    """A user as sessions know it."""

    id: str
    active: bool
    credential_version: int
    roles: tuple[str, ...] = ()
    banned_until: float = -math.inf

    def admitted(self, now: float) -> bool:
        """Whether its sessions may live: it is neither disabled nor, at database time `now`, banned."""
        return self.active and now >= self.banned_until


class Session(msgspec.Struct, frozen=True):
    """A login session as PostgreSQL holds it. Times are unix seconds by the database's clock."""

    sid: str
    subject: Subject
    kind: str  # "cookie", "token", "external"
    issuer: str
    born: int
    created_at: float
    last_seen_at: float
    expires_at: float
    idle: float
    device: str = ""
    address: str = ""
    ended: Ended | None = None
    aal: int = 1  # 2: with a second factor (NIST SP 800-63B's levels)
    auth_time: float = 0.0  # when its holder last showed a factor
    remembered: bool = True  # False: its cookie goes when the browser ends
    act: str = ""  # the user who acts in it for its subject (RFC 8693), "" where that is the subject

    @property
    def idle_expires_at(self) -> float:
        return min(self.last_seen_at + self.idle, self.expires_at)

    def over(self, now: float) -> Ended | None:
        """Why it is over at database time `now`: what was recorded, else the account's state, else its natural end."""
        if self.ended is not None:
            return self.ended
        if not self.subject.admitted(now):
            return Ended(DISABLED)
        if now >= self.expires_at:
            return Ended(EXPIRED, "absolute", at=self.expires_at)
        if now >= self.last_seen_at + self.idle:
            return Ended(EXPIRED, "idle", at=self.last_seen_at + self.idle)
        return None


class Reading(NamedTuple):
    """A session together with the position of the one statement that read it and the head.

    `now` is the database's clock in that statement.
    """

    session: Session
    position: Position
    now: float


class Standing(msgspec.Struct, frozen=True):
    """What a live connection or request is held to: its session, and the position that speaks for it.

    `expires_at`: absolute end of the session (unix seconds, database clock; 0 = not known yet, an access token's).
    `token_expires_at`: end of the token, None for a cookie. `kind`: "cookie", "token", "external" or "anonymous".
    """

    sid: str
    user: str
    born: int
    position: Position
    kind: str
    roles: tuple[str, ...] = ()
    issuer: str = ""
    expires_at: float = 0.0
    idle: float = 0.0
    token_expires_at: float | None = None
    own_sid: bool = True  # an external token without a sid of its own may move to another session by refresh
    info: bytes = b""
    channels: tuple[str, ...] = ()
    meta: bytes = b""
    aal: int = 1
    act: str = ""  # as a session's
