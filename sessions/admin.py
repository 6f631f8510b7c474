"""`/admin/revocations`: an admin, or a backend with the scope `revocations`, ends sessions and gets a receipt.

What a target becomes in the log: a session, a user and everyone are one row each; a role and `issued_before` are many
under one receipt. Nothing is carried out here.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Protocol

import msgspec
from aiohttp import web

from config import paging
from config.database import Connection, Pool
from config.http import Call, Caller, FieldError, Paging, Problem, Route, invalid, reply
from config.redis import Unavailable as RedisAway
from config.sealing import derive
from sessions import audit, receipt_list
from sessions.committer import Deed
from sessions.errors import translated
from sessions.idempotency import Key, key_of
from sessions.log import LIVE, Entry
from sessions.model import Kind
from sessions.ranges import Range
from sessions.receipt_list import ListedReceipt
from sessions.receipts import Receipt
from sessions.revocations import Revocations

SCOPE = "revocations"
CONFIRM_LIFE = 300.0
LONGEST_WAIT = 60.0
LONGEST_SPREAD = 600.0

_SID = r"^[A-Za-z0-9_-]{1,64}$"


class Target(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Exactly one of: `sid`; `user`, with or without `issued_before`; `role`; `all: true`."""

    sid: Annotated[str, msgspec.Meta(pattern=_SID)] | None = None
    user: Annotated[str, msgspec.Meta(min_length=1, max_length=512)] | None = None
    issued_before: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    role: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] | None = None
    all: bool = False

    @property
    def name(self) -> str:
        """For the audit."""
        if self.sid is not None:
            return f"session:{self.sid}"
        if self.user is not None:
            return f"user:{self.user}"
        return f"role:{self.role}" if self.role is not None else "all"

    @property
    def many(self) -> bool:
        """Whether it needs a dry run's `confirm`, and spares the caller."""
        return self.all or self.role is not None


class RevocationRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`wait`: answer when it is confirmed, or after `timeout` seconds. `spread_seconds` spreads the close frames."""

    target: Target
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    message: Annotated[str, msgspec.Meta(max_length=500)] = ""
    wait: bool = False
    timeout: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_WAIT)] = 10.0
    dry_run: bool = False
    confirm: Annotated[str, msgspec.Meta(max_length=200)] = ""
    include_self: bool = False
    spread_seconds: Annotated[float, msgspec.Meta(ge=0, le=LONGEST_SPREAD)] = 0.0


class DryRun(msgspec.Struct, frozen=True):
    """What would end. `connections` may be a second old, and is null while Redis is away."""

    sessions: int
    connections: int | None
    users: int
    confirm: str


class ListedReceipts(msgspec.Struct, frozen=True):
    items: list[ListedReceipt]
    next: str


class Registry(Protocol):
    """The gateway's count of live connections on all nodes; raises config.redis.Unavailable."""

    async def connections(self, sids: Iterable[str]) -> Mapping[str, int]: ...

    async def user_connections(self, users: Iterable[str]) -> Mapping[str, int]: ...

    async def totals(self) -> Any:
        """An object with `connections`, and the number of `anonymous` sessions, which stand in no table."""


class Confirms:
    """Proof that a caller saw what a target means: bound to both, good for five minutes."""

    def __init__(self, secret: str, now: Callable[[], float]) -> None:
        self._key = derive(secret.encode(), "confirm of a revocation")
        self._now = now

    def make(self, caller: Caller, target: Target) -> str:
        return self._sign(caller, target, int(self._now() + CONFIRM_LIFE))

    def check(self, confirm: str, caller: Caller, target: Target) -> bool:
        until, _, _ = confirm.partition(".")
        if not re.fullmatch(r"[0-9]{1,12}", until) or int(until) < self._now():
            return False
        return hmac.compare_digest(confirm.encode(), self._sign(caller, target, int(until)).encode())

    def _sign(self, caller: Caller, target: Target, until: int) -> str:
        text = msgspec.json.encode([caller.name, target, until])
        mac = hmac.digest(self._key, text, hashlib.sha256)
        return f"{until}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


_COUNT = "SELECT count(*) AS sessions, count(DISTINCT s.subject) AS users FROM sessions s WHERE "
_WHICH: Mapping[str, str] = {
    "sid": f"{_COUNT} {LIVE} AND s.sid = $1",
    "user": f"{_COUNT} {LIVE} AND s.subject = $1",
    "before": f"{_COUNT} {LIVE} AND s.subject = $1 AND least(s.created_at, s.auth_time) < $2",
    "role": f"{_COUNT} {LIVE} AND s.sid <> $2 AND s.subject IN (SELECT id FROM subjects WHERE $1 = ANY(roles))",  # noqa: S608
    "all": f"{_COUNT} {LIVE} AND s.sid <> $1",
}  # no value is put into the text
_IDS_BEFORE = (
    f"SELECT s.sid AS id FROM sessions s WHERE {LIVE} AND s.subject = $1 AND least(s.created_at, s.auth_time) < $2"  # noqa: S608
)
_IDS_OF_ROLE = "SELECT id FROM subjects WHERE $1 = ANY(roles)"
_KNOWN = "SELECT EXISTS (SELECT FROM sessions WHERE sid = $1) OR EXISTS (SELECT FROM subjects WHERE id = $2)"


@dataclass(frozen=True, slots=True)
class Counter:
    """What a target would end. `foreign`: whether an external issuer could name this user."""

    pool: Pool
    registry: Registry
    foreign: Callable[[str], bool]

    async def count(self, target: Target, spared: str) -> tuple[int, int | None, int]:
        """(sessions, connections, users). Raises Problem `not_found`."""
        with translated():
            async with self.pool.acquire(timeout=2.0) as connection:
                sessions, users, ids = await self._read(connection, target, spared)
        connections, anonymous = await self._connections(target, ids, spared)
        if not sessions and not await self.known(target):
            if not connections:
                raise Problem("not_found")
            anonymous = int(target.sid is not None)
        return sessions + anonymous, connections, users

    async def known(self, target: Target) -> bool:
        """Whether the database has heard of the session or user, or need not have."""
        if (target.sid is None and target.user is None) or self.may_come(target):
            return True
        with translated():
            async with self.pool.acquire(timeout=2.0) as connection:
                return bool(await connection.fetchval(_KNOWN, target.sid, target.user))

    def may_come(self, target: Target) -> bool:
        """A user whom we first hear of by a token: his backend may end what it issued before anybody came with it."""
        return target.user is not None and target.issued_before is None and self.foreign(target.user)

    async def connected(self, sid: str) -> bool:
        """Whether some node has a connection of this session (an anonymous one stands in no table)."""
        try:
            return bool((await self.registry.connections([sid])).get(sid))
        except RedisAway:
            return False

    async def _read(self, connection: Connection, target: Target, spared: str) -> tuple[int, int, list[str]]:
        ids: list[str] = []
        if target.sid is not None:
            record = await connection.fetchrow(_WHICH["sid"], target.sid)
        elif target.issued_before is not None:
            record = await connection.fetchrow(_WHICH["before"], target.user, target.issued_before)
            ids = [r["id"] for r in await connection.fetch(_IDS_BEFORE, target.user, target.issued_before)]
        elif target.user is not None:
            record = await connection.fetchrow(_WHICH["user"], target.user)
        elif target.role is not None:
            record = await connection.fetchrow(_WHICH["role"], target.role, spared)
            ids = [r["id"] for r in await connection.fetch(_IDS_OF_ROLE, target.role)]
        else:
            record = await connection.fetchrow(_WHICH["all"], spared)
        assert record is not None  # noqa: S101 - an aggregate has one row
        return record["sessions"], record["users"], ids

    async def _connections(self, target: Target, ids: list[str], spared: str) -> tuple[int | None, int]:
        """Connections, None while Redis is away; and how many sessions of `all` only the nodes know."""
        anonymous = 0
        try:
            if target.all:
                totals = await self.registry.totals()
                total, anonymous = totals.connections, totals.anonymous
            else:
                total = await self._total(target, ids)
            if spared and target.many:
                total -= (await self.registry.connections([spared])).get(spared, 0)
            return max(0, total), anonymous
        except RedisAway:
            return None, anonymous

    async def _total(self, target: Target, ids: list[str]) -> int:
        if target.sid is not None:
            return sum((await self.registry.connections([target.sid])).values())
        if target.issued_before is not None:
            return sum((await self.registry.connections(ids)).values())
        return sum((await self.registry.user_connections([target.user] if target.user else ids)).values())


class RevocationRoutes:
    """`registry` is the gateway's; `secret` is sessions.secret_key; `foreign` says whether an external issuer could
    name a user."""

    def __init__(
        self,
        revocations: Revocations,
        pool: Pool,
        registry: Registry,
        *,
        secret: str,
        foreign: Callable[[str], bool] = lambda user: False,
    ) -> None:
        self._revocations, self._pool = revocations, pool
        self._counter = Counter(pool, registry, foreign)
        self._confirms = Confirms(secret, revocations.database_now)

    def routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/admin/revocations",
                self.revoke,
                "End sessions, on every node, and get a receipt",
                body=RevocationRequest,
                result=Receipt | DryRun,
                status=201,
                also=(200,),
                access="admin",
                scope=SCOPE,
                headers=("Idempotency-Key",),
                errors=(
                    "not_found",
                    "confirm_required",
                    "idempotency_conflict",
                    "busy",
                    "unavailable",
                    "outcome_unknown",
                ),
                tag="admin",
            ),
            Route(
                "GET",
                "/admin/revocations",
                self.page,
                "Receipts of all that was ended, newest first",
                query=Paging,
                result=ListedReceipts,
                export=ListedReceipt,
                access="admin",
                scope=SCOPE,
                tag="admin",
            ),
            Route(
                "GET",
                "/admin/revocations/{id}",
                self.read,
                "A receipt, as it stands now",
                result=Receipt,
                access="admin",
                scope=SCOPE,
                errors=("not_found", "unavailable"),
                tag="admin",
            ),
        ]

    async def revoke(self, call: Call[RevocationRequest, Any]) -> web.Response:
        body, caller = call.body, call.who
        _check(body)
        spared = "" if body.include_self or caller.sid is None else caller.sid
        if body.dry_run:
            return reply(await self._dry_run(body.target, caller, spared))
        key = _key(call)
        if body.target.many and not self._confirms.check(body.confirm, caller, body.target):
            id, earlier = await self._asked_before(key), True  # a confirm may run out before its call is repeated
        else:
            id, earlier = await self._order(body, caller, spared, _deed(call), key)
        receipt = await self._revocations.confirmed(id, body.timeout if body.wait else 0.0)
        return reply(receipt, 200 if earlier else 201)

    async def page(self, call: Call[None, Paging]) -> ListedReceipts:
        after = paging.asked(call.query.after, paging.UUID)
        with translated():
            items, more = await receipt_list.page(self._pool, limit=call.query.limit, after=after)
        return ListedReceipts(items, paging.write(more))

    async def read(self, call: Call[Any, Any]) -> Receipt:
        receipt = await self._revocations.receipt(call.path("id"))
        if receipt is None:
            raise Problem("not_found")
        return receipt

    async def _asked_before(self, key: Key | None) -> str:
        id = await self._revocations.earlier(key) if key is not None else None
        if id is None:
            raise Problem("confirm_required")
        return id

    async def _dry_run(self, target: Target, caller: Caller, spared: str) -> DryRun:
        if target.issued_before is not None and target.issued_before.timestamp() > self._revocations.database_now():
            raise invalid("target.issued_before", "a time that has passed")
        sessions, connections, users = await self._counter.count(target, spared)
        return DryRun(sessions, connections, users, self._confirms.make(caller, target))

    async def _order(
        self, body: RevocationRequest, caller: Caller, spared: str, deed: Deed, key: Key | None
    ) -> tuple[str, bool]:
        target = body.target
        entry = Entry(kind=Kind.SESSION, reason=body.reason, message=body.message, spread_seconds=body.spread_seconds)
        if target.role is not None or target.issued_before is not None:
            wanted = Range(
                entry=entry,
                role=target.role or "",
                user=target.user or "",
                issued_before=target.issued_before,
                spared=spared if target.many else "",
                spared_user=caller.id if target.many and caller.sid is not None else "",
            )
            return await self._revocations.order_range(wanted, deed, key)
        if target.sid is not None:
            return await self._order_session(msgspec.structs.replace(entry, sid=target.sid), deed, key)
        if target.user is not None:
            entry = msgspec.structs.replace(entry, kind=Kind.USER, subject=target.user)
        else:
            entry = msgspec.structs.replace(entry, kind=Kind.EVERYONE, except_sid=spared)
        return await self._revocations.order(entry, deed, key, known=not self._counter.may_come(target))

    async def _order_session(self, entry: Entry, deed: Deed, key: Key | None) -> tuple[str, bool]:
        """A session that no table knows may be an anonymous connection's, which lives only in its node."""
        try:
            return await self._revocations.order(entry, deed, key)
        except Problem as problem:
            if problem.code != "not_found" or not await self._counter.connected(entry.sid):
                raise
            return await self._revocations.order(entry, deed, key, known=False)


def _check(body: RevocationRequest) -> None:
    """What the types do not say."""
    target = body.target
    named = sum(value is not None for value in (target.sid, target.user, target.role)) + target.all
    errors = []
    if named != 1:
        errors.append(FieldError("target", "one of sid, user, user with issued_before, role, all: true"))
    elif target.issued_before is not None and target.user is None:
        errors.append(FieldError("target.issued_before", "goes with user"))
    elif target.issued_before is not None and not _in_range(target.issued_before):
        errors.append(FieldError("target.issued_before", "a time that PostgreSQL can hold"))
    for name, text in (("reason", body.reason), ("message", body.message)):
        if any(ord(c) < 32 and c != "\n" for c in text) or (not text.strip() and text):
            errors.append(FieldError(name, "text without control characters"))
    if errors:
        raise Problem("invalid", errors=errors)


def _in_range(moment: datetime) -> bool:
    """Not so near the calendar's first or last day that it lies beyond it in UTC."""
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return False
    return True


def _key(call: Call[RevocationRequest, Any]) -> Key | None:
    text = call.request.headers.get("Idempotency-Key")
    if text is None:
        return None
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", text):
        raise invalid("Idempotency-Key", "1 to 255 visible ASCII characters")
    return key_of(call.who.name, text, msgspec.structs.replace(call.body, confirm=""))


def _deed(call: Call[RevocationRequest, Any]) -> Deed:
    body, caller = call.body, call.who
    detail: dict[str, Any] = {}
    if body.target.issued_before is not None:
        detail["issued_before"] = body.target.issued_before.isoformat()
    if body.spread_seconds:
        detail["spread_seconds"] = body.spread_seconds
    if body.include_self:
        detail["include_self"] = True
    actions: Mapping[str, audit.Action] = {"session": "session.revoked", "user": "user.revoked", "role": "role.revoked"}
    kind, _, _ = body.target.name.partition(":")
    action = actions.get(kind, "everyone.revoked")
    personal = {"reason": body.reason}
    return Deed(caller.name, action, body.target.name, caller.sid or "", call.address, detail, personal)
