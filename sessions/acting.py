"""Who acts is live in the transaction in which it acts (7e).

`hold` locks the session's row, so that whatever ends it waits. A batch cannot: it ends what others act through, and two
that end each other would wait for each other. It reads first (`Actors.read`) and looks again under the head's lock,
which every end has to take: what ended an actor in between stands in the log before the batch's own rows.
"""

from collections.abc import Collection, Sequence
from typing import Any

from config.database import Connection
from sessions.errors import SessionEnded
from sessions.log import rows_after
from sessions.memory import kills
from sessions.model import DISABLED, EXPIRED, Ended, Row

_STANDS = """
SELECT s.sid, s.subject, s.born, s.ended_at IS NOT NULL AS ended, s.ended_code, s.ended_reason, s.ended_message,
    s.born < u.revoked_below AS revoked, u.revoked_code, u.revoked_reason, u.revoked_message,
    e.code, e.reason, e.message,
    u.state <> 'active' OR u.banned_until > to_timestamp($2) AS shut_out,
    s.expires_at <= to_timestamp($2) AS expired,
    s.last_seen_at + s.idle_seconds * interval '1 second' <= to_timestamp($2) AS idle,
    (SELECT seq FROM revocation_head) AS head
FROM sessions s JOIN subjects u ON u.id = s.subject
LEFT JOIN LATERAL revoked_with_everyone(s.born, s.sid) e ON true
WHERE s.sid = ANY($1::text[])
"""

_UNKNOWN = Ended(EXPIRED, "absolute")


async def hold(connection: Connection, sid: str, now: float) -> None:
    """Lock the session's row for the transaction; SessionEnded unless it is live, by its marks, by position and by the
    held clock (11)."""
    record = await connection.fetchrow(_STANDS + "FOR SHARE OF s", [sid], now)
    ended = _ended(record) if record is not None else _UNKNOWN
    if ended is not None:
        raise SessionEnded(ended)


class Actors:
    """The sessions through which a batch acts, as one statement of its transaction found them."""

    def __init__(self, found: Sequence[Any]) -> None:
        self._found = {record["sid"]: record for record in found}
        self._since: list[Row] = []

    @classmethod
    async def read(cls, connection: Connection, sids: Collection[str], now: float) -> "Actors":
        """`sids` without "", which is who needs no session: an API key, the command line."""
        return cls(await connection.fetch(_STANDS, list(sids), now) if sids else [])

    async def look_again(self, connection: Connection) -> None:
        """Read what the log says since. The transaction holds the head's lock."""
        if self._found:
            head = min(record["head"] for record in self._found.values())
            self._since = await rows_after(connection, head)

    def ended(self, sid: str, before: int | None = None) -> Ended | None:
        """Why `sid` may not act: it was over when it was read, or ended by a row of the log before the seq `before`
        (None: by any)."""
        if not sid:
            return None
        record = self._found.get(sid)
        if record is None:
            return _UNKNOWN
        for row in self._since:
            if (before is None or row.seq < before) and kills(row, sid, record["subject"], record["born"]):
                return row.ended
        return _ended(record)


def _ended(record: Any) -> Ended | None:
    if record["ended"]:
        return Ended(record["ended_code"], record["ended_reason"], record["ended_message"])
    if record["revoked"]:
        return Ended(record["revoked_code"], record["revoked_reason"] or "", record["revoked_message"] or "")
    if record["code"] is not None:
        return Ended(record["code"], record["reason"], record["message"])
    if record["shut_out"]:
        return Ended(DISABLED)
    if record["expired"] or record["idle"]:
        return Ended(EXPIRED, "absolute" if record["expired"] else "idle")
    return None
