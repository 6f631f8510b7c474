"""Who a user is to themselves, as it was read lately: name, address, picture, roles.

What was read is kept with its position in the revocation log and judged by memory on every use (2c), as a session is:
whatever changes a row of `users` that is shown here says so in the log (`changed`), in the same transaction. Failures,
the last login and bans are not told there: they are not asked of this.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from auth import users
from auth.users import User
from config.clock import Clock
from config.database import Pool
from sessions.batches import Batch
from sessions.cache import Cache
from sessions.errors import translated
from sessions.log import Entry
from sessions.model import Kind, Position
from sessions.revocations import Revocations

KEPT = 10_000
KEPT_FOR = 60.0


class _Known(NamedTuple):
    user: User
    position: Position


class Profiles:
    """The profiles that this process knows."""

    def __init__(self, pool: Pool, revocations: Revocations, *, clock: Clock) -> None:
        self._pool, self._revocations, self._clock = pool, revocations, clock
        self._known: Cache[str, _Known] = Cache(size=KEPT, age=KEPT_FOR)
        self._reads: Batch[str, _Known] = Batch(self._load)

    async def close(self) -> None:
        await self._reads.close()

    async def find(self, id: str) -> User | None:
        """Anyone who has been here, accounts of other issuers too. Many who ask at once are one statement."""
        asked = self._clock.now()
        known = self._known.get(id, asked)
        if known is None or not self._current(id, known.position):
            known = await self._reads(id)
            if known is None:
                self._known.drop(id)
                return None
            self._known.put(id, known, asked)
        return known.user

    def _current(self, id: str, position: Position) -> bool:
        """Memory reaches back to what was read, and knows of no change since: neither of the profile, nor of rights,
        nor of whether the user may come in."""
        return self._revocations.judge(_name(id), id, position.seq, position) is None

    async def _load(self, ids: Sequence[str]) -> Mapping[str, _Known]:
        with translated():
            found = await users.find_all(self._pool, ids)
        return {id: _Known(*one) for id, one in found.items()}


def changed(id: str) -> Entry:
    """For the log, in the transaction in which what is shown of this user becomes another: no process believes what it
    read before. Their sockets stay."""
    return Entry(kind=Kind.RIGHTS, sid=_name(id), reason="profile_changed")


def _name(id: str) -> str:
    """What the log calls a profile: no sid has a colon."""
    return f"user:{id}"
