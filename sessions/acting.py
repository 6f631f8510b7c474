"""Who acts may still, in the transaction in which it acts, until it commits (7e).

`hold` locks the session's row, so that an end of it waits. A batch cannot: it ends what others act through, and two
that end each other would wait for each other. So it reads first (`read`). Either looks again under the head's lock
(`look_again`), which every end and every change of rights has to take: what an actor lost in between stands in the log
before the transaction's own rows. That alone sees an end of everyone, which marks no session; and it holds an admin to
the roles, and a backend to the API key, by which the request was let in (`config.http.RIGHTS`).
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from config.database import Connection
from config.http import Caller, Problem
from sessions.errors import SessionEnded
from sessions.log import present, rows_naming
from sessions.memory import kills
from sessions.model import DISABLED, ERA, EXPIRED, Ended, Kind, Row

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


class Actors:
    """The sessions through which a transaction acts, as its own statements found them, and by whose rights."""

    def __init__(self, callers: Iterable[Caller | None] = ()) -> None:
        self._found: dict[str, Any] = {}
        self._callers = {caller for caller in callers if caller is not None and caller.seen is not None}
        self._since: Sequence[Row] = ()
        self._counted: dict[Caller, int] = {}  # up to which seq the log was counted in, when they were judged

    def __bool__(self) -> bool:
        return bool(self._found or self._callers)

    @classmethod
    async def read(
        cls, connection: Connection, sids: Collection[str], now: float, callers: Iterable[Caller | None]
    ) -> "Actors":
        """`sids` without "", which is who needs no session: an API key, the command line."""
        actors = cls(callers)
        if sids:
            actors._found = {r["sid"]: r for r in await connection.fetch(_STANDS, list(sids), now)}
        return actors

    async def hold(self, connection: Connection, sid: str, now: float) -> None:
        """Lock the session's row for the transaction; SessionEnded unless it is live, by its marks, by position and by
        the held clock (11)."""
        record = await connection.fetchrow(_STANDS + "FOR SHARE OF s", [sid], now)
        ended = _ended(record) if record is not None else _UNKNOWN
        if ended is not None:
            raise SessionEnded(ended)
        self._found[sid] = record

    async def look_again(self, connection: Connection) -> None:
        """Read what the log says since. The transaction holds the head's lock."""
        if not self:
            return
        seen = {caller: caller.seen for caller in self._callers if caller.seen is not None}
        there = await present(connection, {era for _, era in seen.values()})
        # Of an era that a failover lost as a whole the numbers were used again.
        self._counted = {who: seq if era in there else seq - seq % ERA - 1 for who, (seq, era) in seen.items()}
        since = min([*self._counted.values(), *(record["head"] for record in self._found.values())])
        keys = {caller.id for caller in self._callers if caller.via == "api_key"}
        users = {*(record["subject"] for record in self._found.values()), *map(_user, self._callers)} - {""}
        self._since = await rows_naming(connection, since, {*self._found, *(f"key:{id}" for id in keys)}, users, keys)

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

    def refusal(self, sid: str, caller: Caller | None, before: int | None) -> Problem | None:
        """The same of a session and a caller, as a problem."""
        if (ended := self.ended(sid, before)) is not None:
            return SessionEnded(ended)
        if caller is None or caller not in self._counted:
            return None
        for row in self._since:
            if self._counted[caller] < row.seq and (before is None or row.seq < before) and _takes(row, caller):
                return Problem("forbidden", "what you may changed while this was under way: ask again")
        return None

    def require(self, before: int | None) -> None:
        """Raise what speaks against any of them."""
        refusals = [self.refusal(sid, None, before) for sid in self._found]
        refusals += [self.refusal("", caller, before) for caller in self._callers]
        for refusal in refusals:
            if refusal is not None:
                raise refusal


def _user(caller: Caller) -> str:
    """Whose rights they are, "" for a key that is no user's."""
    return caller.owner if caller.via == "api_key" else caller.id


def _takes(row: Row, caller: Caller) -> bool:
    """Whether the row ends or changes what the caller may. That a session ended is asked of the session."""
    if caller.via != "api_key":
        return row.kind is Kind.RIGHTS and row.subject == caller.id
    if row.kind is Kind.API_KEY:
        return row.api_key == caller.id
    if row.kind is Kind.RIGHTS and row.sid:
        return row.sid == f"key:{caller.id}"
    return row.kind in (Kind.USER, Kind.RIGHTS) and caller.owner != "" and row.subject == caller.owner


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
