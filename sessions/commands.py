"""The commands `sessions` (look at live sessions, and end them), `audit` (list and verify it) and `restore` (what
follows after a restore).

It works on the database directly. Ends go through the revocation log, which running gateways read at least once a
second; so nothing else has to be there for a session to end.
"""

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import uuid4

import msgspec
from cyclopts import App, Parameter

from config import paging
from config.commands import COMMON, DONE, Common, agree, database, need, page_of, say, show
from config.database import Connection
from config.errors import Failure, Usage
from config.http import rfc3339
from sessions import audit, chain, ids, log, restoring, store
from sessions.devices import device_name
from sessions.model import REVOKED, Kind, Session

app = App(name="sessions", help="List live sessions, look at one, and end them.")

_COLUMNS = ("sid", "user", "kind", "device", "address", "created_at", "last_seen_at", "expires_at")


@app.command(name="list")
async def list_sessions(
    *,
    user: Annotated[str, Parameter(help="Only this user's.")] = "",
    issuer: Annotated[str, Parameter(help="Only those of tokens of this external issuer.")] = "",
    limit: Annotated[int, Parameter(help="At most so many, newest first.")] = 50,
    after: Annotated[str, Parameter(help="The `next` of the page before.")] = "",
    common: Common = COMMON,
) -> None:
    """Live sessions, newest first."""
    place = page_of(limit, _plain(after))
    by = store.Filter(subject=_plain(user), issuer=_plain(issuer) or None)
    async with database(common) as (_, pool):
        now = await store.database_now(pool)
        items, cursor = await store.page(pool, by, now=now, limit=limit, after=place)
        if not items and "@" in user and await store.subject(pool, user) is None:
            raise _no_user(user)
    rows = [_shown(session, now) for session in items]
    if common.json:
        show({"items": rows, "next": paging.write(cursor)}, as_json=True)
    else:
        show(rows, as_json=False, columns=_COLUMNS)


@app.command(name="show")
async def show_session(sid: str, *, common: Common = COMMON) -> None:
    """One session, live or over."""
    async with database(common) as (_, pool):
        now = await store.database_now(pool)
        session = await _find(pool, sid)
    show(_shown(session, now), as_json=common.json)


@app.command(name="end")
async def end(
    sid: Annotated[str, Parameter(help="The session to end.")] = "",
    *,
    user: Annotated[str, Parameter(help="End all sessions of this user instead.")] = "",
    reason: Annotated[str, Parameter(help="1 to 64 characters; clients see it.")] = "ended_by_operator",
    message: Annotated[str, Parameter(help="A sentence for the person.")] = "",
    common: Common = COMMON,
) -> None:
    """End one session, or all of a user; their connections close with 4501."""
    if bool(sid) == bool(user):
        raise Usage("name a session, or --user, and not both")
    _check_said(reason, message)
    async with database(common) as (_, pool), pool.acquire() as connection, connection.transaction():
        if sid:
            session = await _find(connection, sid)
            over = session.over(await store.database_now(connection)) is not None
            entry = log.Entry(kind=Kind.SESSION, sid=session.sid, code=REVOKED, reason=reason, message=message)
        else:
            over = False
            if await store.subject(connection, _plain(user), lock=True) is None:
                raise _no_user(user)
            entry = log.Entry(kind=Kind.USER, subject=user, code=REVOKED, reason=reason, message=message)
        ended = 0 if over else await _write(connection, entry)
    show({"sid": sid, "user": user, "sessions": ended}, as_json=common.json)


async def restore(
    *,
    revoke_all: Annotated[
        bool,
        Parameter(negative=(), help="End every session: all connections close with 4501, everybody logs in again."),
    ] = False,
    nothing_lost: Annotated[
        bool,
        Parameter(negative=(), help="You know that no revocation is missing: a move, an upgrade, a planned switch."),
    ] = False,
    yes: Annotated[bool, Parameter(negative=(), help="Do not ask.")] = False,
    reason: Annotated[str, Parameter(help="1 to 64 characters; clients see it.")] = "restored",
    message: Annotated[str, Parameter(help="A sentence for the people.")] = "",
    common: Common = COMMON,
) -> int:
    """Decide what follows after PostgreSQL was restored from a backup or moved. `serve` refuses until then (exit 65).

    Without an option: say what is known, and change nothing. End all gateways before, and start them after.
    """
    if revoke_all and nothing_lost:
        raise Usage("--revoke-all or --nothing-lost, not both")
    _check_said(reason, message)
    async with database(common) as (_, pool), pool.acquire() as connection:
        found = await restoring.survey(connection)
        if not common.json:
            _tell(found)
        if not revoke_all and not nothing_lost:
            if common.json:
                show({**msgspec.to_builtins(found), "refused": found.doubtful}, as_json=True)
            return DONE
        if not yes:
            agree(f"End all {found.sessions} live sessions?" if revoke_all else "Go on as if nothing was lost?")
        receipt, ended = "", 0
        if revoke_all:
            committed = await restoring.revoke_all(connection, reason=reason, message=message)
            receipt, ended = committed.receipt, committed.sessions
        else:
            await restoring.nothing_lost(connection)
    show({"origin": found.origin, "sessions_ended": ended, "receipt": receipt}, as_json=common.json)
    return DONE


def _tell(found: restoring.Survey) -> None:
    shown = {
        "database": f"{found.origin} (system identifier/timeline/table)",
        "log kept in": found.vouched or "(no process has looked yet)",
        "last row of the log": rfc3339(found.last_row_at),
        "registered processes": found.processes,
        "live sessions": f"{found.sessions} of {found.users} users",
        "serve": "refuses" if found.doubtful else "starts",
    }
    show(shown, as_json=False)
    say(
        "API keys, passwords and disabled accounts are those of the backup, whatever is decided here: look at "
        "`keys api list` and `users list`."
    )


async def _write(connection: Connection, entry: log.Entry) -> int:
    """How many live sessions it ended."""
    receipt = uuid4().hex
    await audit.append(
        connection,
        "session.ended" if entry.sid else "session.all_ended",
        actor="cli",
        target=f"session:{entry.sid}" if entry.sid else f"user:{entry.subject}",
        personal={"reason": entry.reason, "message": entry.message},
    )
    written = await log.write(connection, [log.Group(receipt, [entry.draft(receipt)], actor="cli")])
    return sum(committed.sessions for committed in written.receipts)


async def _find(connection: store.Executor, sid: str) -> Session:
    found = (await store.by_sids(connection, [sid])).get(sid) if ids.is_sid(sid) else None
    if found is None:
        raise Failure(f"there is no session {sid!r}")
    return found.session


def _no_user(user: str) -> Failure:
    hint = ": --user takes a user id, like u_...; `users list --email` shows it" if "@" in user else ""
    return Failure(f"there is no user {user!r}{hint}")


def _shown(session: Session, now: float) -> Mapping[str, Any]:
    ended = session.over(now)
    return {
        "sid": session.sid,
        "user": session.subject.id,
        "kind": session.kind,
        "issuer": session.issuer,
        "device": device_name(session.device),
        "address": session.address,
        "created_at": rfc3339(session.created_at),
        "last_seen_at": rfc3339(session.last_seen_at),
        "expires_at": rfc3339(session.expires_at),
        "idle_expires_at": rfc3339(session.idle_expires_at),
        "ended": None if ended is None else {"code": ended.code, "reason": ended.reason, "at": rfc3339(ended.at)},
    }


def _check_said(reason: str, message: str) -> None:
    """What clients are to see of an end."""
    if not 1 <= len(_plain(reason)) <= 64 or len(_plain(message)) > 500:
        raise Usage("--reason has 1 to 64 characters, --message at most 500")


def _plain(text: str) -> str:
    """Text as PostgreSQL can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Usage("an option is no UTF-8") from None
    if "\x00" in text:
        raise Usage("an option has a NUL character")
    return text


# -- the audit

audits = App(name="audit", help="Who did what to whom: list it, and verify that nobody changed it.")

TAMPERED = 3
"""The exit code where the chain is broken."""

_AUDIT_COLUMNS = ("id", "at", "actor", "action", "target", "sid", "address", "detail")


@audits.command(name="list")
async def list_audit(
    *,
    actor: Annotated[str, Parameter(help='Only by "user:ID", "key:ID", "system" or "cli".')] = "",
    action: Annotated[str, Parameter(help='Only this ("session.ended"), or all of a kind ("session").')] = "",
    target: Annotated[str, Parameter(help='Only to this ("user:ID", "session:SID").')] = "",
    sid: Annotated[str, Parameter(help="Only by this session.")] = "",
    limit: Annotated[int, Parameter(help="At most so many, newest first.")] = 50,
    after: Annotated[str, Parameter(help="The `next` of the page before.")] = "",
    common: Common = COMMON,
) -> None:
    """Who did what to whom, newest first."""
    place = page_of(limit, after, paging.NUMBER)
    by = audit.Filter(*map(_plain, (actor, action, target, sid)))
    async with database(common) as (_, pool):
        entries = await audit.page(pool, by, limit=limit + 1, after=place)
    following = entries[limit - 1].place if len(entries) > limit else None
    rows = [{**entry._asdict(), "at": rfc3339(entry.at)} for entry in entries[:limit]]
    shown = [{name: row[name] for name in _AUDIT_COLUMNS} for row in rows]
    if common.json:
        show({"items": shown, "next": paging.write(following)}, as_json=True)
    else:
        show(shown, as_json=False, columns=_AUDIT_COLUMNS)


@audits.command
async def verify(
    *,
    head: Annotated[str, Parameter(help="A head that was seen before, which must be in the chain.")] = "",
    common: Common = COMMON,
) -> int:
    """Whether the audit is as it was written. Exits with 3 where a row was changed, added or taken away."""
    try:
        seen = chain.read_head(head) if head else None
    except ValueError:
        raise Usage("--head is a `head` as `audit verify` or the log tell it") from None
    async with database(common) as (settings, pool), pool.acquire() as connection:
        need(settings, "sessions.secret_key")
        verdict = await chain.verify(connection, chain.sealer(settings.sessions), seen)
    told = {"whole": not verdict.broken, **msgspec.to_builtins(verdict)}
    if not (verdict.broken or common.json):
        del told["broken"]
    show(told, as_json=common.json)
    return TAMPERED if verdict.broken else DONE
