"""What second factors a user has, and whether a session has shown its factors lately enough for what is sensitive."""

from collections.abc import Callable
from typing import Any, NamedTuple

from config.database import Connection, Pool
from config.http import Problem
from config.settings import Auth
from sessions.errors import translated

Executor = Connection | Pool


class State(NamedTuple):
    """What a user has, and what the asking session has seen of it. `auth_time` is unix seconds."""

    totp: bool
    passkeys: int
    recovery_codes: int
    aal: int
    auth_time: float

    @property
    def on(self) -> bool:
        """Whether there is a second factor. Recovery codes alone are none."""
        return self.totp or self.passkeys > 0


class Freshness:
    """Whether a session has shown its factors lately enough for what is sensitive."""

    def __init__(self, pool: Pool, settings: Auth, *, now: Callable[[], float]) -> None:
        self._pool, self._fresh_for, self._now = pool, settings.fresh_for, now

    async def require(self, id: str, sid: str, *, always: bool = False) -> State:
        """Problem `step_up_required` where the user has a second factor and the session has not seen it for a while;
        with `always` a user with a password alone must have shown that."""
        with translated():
            seen = await state(self._pool, id, sid)
        if seen is None:
            raise Problem("unauthenticated", "there is no such session")
        stale = self._now() - seen.auth_time > self._fresh_for or (seen.on and seen.aal < 2)
        if stale and (seen.on or always):
            raise Problem("step_up_required")
        return seen


async def state(connection: Executor, subject: str, sid: str) -> State | None:
    """Read now, past every cache. None where the session is not the user's."""
    record: Any = await connection.fetchrow(_STATE, subject, sid)
    return None if record is None else State(*record)


_STATE = """
SELECT t.confirmed_at IS NOT NULL, (SELECT count(*) FROM passkeys p WHERE p.subject = s.subject)::int,
    (SELECT count(*) FROM recovery_codes r WHERE r.subject = s.subject)::int,
    s.aal::int, coalesce(extract(epoch FROM s.auth_time)::float8, 0)
FROM sessions s LEFT JOIN totp t ON t.subject = s.subject WHERE s.subject = $1 AND s.sid = $2
"""
