"""After a restore: may the gateway be started on this database, and what an operator can decide (4d).

The head row names the database (`origin`) that somebody vouched for. In another one the log may end earlier than it
did; a process that lived through the change puts back what was lost and vouches (`renewal`). Where none did, nothing
serves until an operator has decided. Not here: how a running process finds its way back.
"""

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import msgspec

from config.clock import boottime
from config.database import Connection, connect
from config.errors import Restored
from config.settings import Database
from sessions import audit, log
from sessions.lease import DOUBTED
from sessions.model import REVOKED, Kind
from sessions.registration import MARGIN

PATIENCE = 30.0
"""Seconds that processes which live have to vouch for the database."""
_PAUSE = 0.25

_LOOK = """
SELECT h.seq, h.lease_seconds, h.drift_seconds, coalesce(h.origin, '') AS vouched, database_origin() AS origin,
    (SELECT committed_at FROM revocation_log l WHERE l.seq = h.seq) AS at,
    ARRAY(SELECT node || ' ' || beat FROM processes ORDER BY node) AS beats
FROM revocation_head h
"""
_COUNT = f"SELECT count(*) AS sessions, count(DISTINCT s.subject) AS users FROM sessions s WHERE {log.LIVE}"  # noqa: S608
# The numbers after the head may have been used before: what follows stands in an era of its own.
_BEGIN_ERA = "UPDATE revocation_head SET server_start = '-infinity'"
_VOUCH = "UPDATE revocation_head SET origin = database_origin(), decided = $1::uuid"


class Survey(msgspec.Struct, frozen=True):
    """What an operator decides about. `vouched` is "" before any process has looked, and DOUBTED when one remembers
    what the database does not have."""

    origin: str
    vouched: str
    last_row_at: float
    processes: int
    sessions: int
    users: int

    @property
    def doubtful(self) -> bool:
        """Whether the gateway refuses to serve from this database."""
        return self.vouched not in ("", self.origin)


async def check(settings: Database, *, patience: float = PATIENCE, clock: Callable[[], float] = boottime) -> None:
    """Return when somebody vouches for this database; Restored when nobody does who lives.

    Who is dead is seen by a beat that stands still for L + d + 1 s on our own clock (5c), never by a row of a backup.
    """
    connection = await connect(settings)
    try:
        began = moved = clock()
        beats: list[str] | None = None
        while True:
            found = await _look(connection)
            if found["vouched"] in ("", found["origin"]):
                return
            now = clock()
            if beats is not None and set(found["beats"]) - set(beats):
                moved = now
            beats = found["beats"]
            if now - moved >= found["lease_seconds"] + found["drift_seconds"] + MARGIN or now - began >= patience:
                raise Restored(_refusal(found))
            await asyncio.sleep(_PAUSE)
    finally:
        await connection.close(timeout=2)


async def _look(connection: Connection, lock: str = "") -> Any:
    return await connection.fetchrow(_LOOK + lock)


def _refusal(found: Any) -> str:
    changed = (
        "a process remembers revocations that are not in it"
        if found["vouched"] == DOUBTED
        else f"it is {found['origin']} (system identifier/timeline/table), and the log was kept in {found['vouched']}"
    )
    return (
        f"this database may have been put back to an older state: {changed}. Sessions that were revoked since may "
        "be live again in it, and no running process can put the revocations back. Decide with "
        "`run.py restore --revoke-all` (ends every session), or `run.py restore --nothing-lost` if you know that "
        "nothing was (a move, an upgrade, a switch with no gateway running)"
    )


async def survey(connection: Connection) -> Survey:
    """What stands there now."""
    found = await _look(connection)
    live: Any = await connection.fetchrow(_COUNT)
    at = found["at"].timestamp() if found["at"] is not None else 0.0
    return Survey(found["origin"], found["vouched"], at, len(found["beats"]), live["sessions"], live["users"])


async def revoke_all(connection: Connection, *, reason: str, message: str = "") -> log.Committed:
    """End every session through the log, in an era of its own, and vouch for the database. One transaction."""
    receipt = uuid4().hex
    entry = log.Entry(kind=Kind.EVERYONE, code=REVOKED, reason=reason, message=message)
    async with connection.transaction():
        before = await _look(connection, "FOR UPDATE")
        await connection.execute(_BEGIN_ERA)
        await _record(connection, "database.restored", before, {"revoked": "all", "reason": reason, "receipt": receipt})
        written = await log.write(connection, [log.Group(receipt, [entry.draft(receipt)], actor="cli")])
        [committed] = written.receipts
        await connection.execute(_VOUCH, committed.position.era)
    return committed


async def nothing_lost(connection: Connection) -> None:
    """Vouch for the database on the operator's word. The numbers after the head may still have been used."""
    async with connection.transaction():
        before = await _look(connection, "FOR UPDATE")
        await connection.execute(_BEGIN_ERA)
        await _record(connection, "database.vouched", before, {})
        position, _ = await log.head(connection)
        await connection.execute(_VOUCH, position.era)


async def _record(connection: Connection, action: audit.Action, before: Any, detail: dict[str, str]) -> None:
    origin = {"origin": before["origin"], "vouched": before["vouched"]}
    await audit.append(connection, action, actor="cli", target="database", detail={**origin, **detail})
