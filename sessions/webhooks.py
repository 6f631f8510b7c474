"""Webhooks: addresses that hear what happens here, signed, and tried for a day.

An event is a row of the audit; the database's own trigger makes a job for each webhook that wants it, in the
transaction of the deed (migration 0014). So an event is there exactly when the deed is, and `replay` can make it again.
Only failed logins are no rows (whoever guesses would fill the audit) and no deeds: `tell_failures` tells their number.
This module keeps the webhooks and delivers; `webhook_routes` shows them to admins.

The form is Standard Webhooks 1.0: `webhook-id` (the job's id: the same each time), `webhook-timestamp`,
`webhook-signature: v1,<base64 of HMAC-SHA256 over "id.timestamp.body">`, secrets as `whsec_<base64>`.
"""

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import responses
from typing import Any, Final, get_args
from uuid import uuid4

import aiohttp
import msgspec
import structlog

from config import outside
from config.clock import Clock
from config.database import Connection, Pool
from config.http import rfc3339
from config.jobs import Failed, GiveUp, Job, Jobs, Kind, enqueue
from config.sealing import Sealer
from config.settings import Webhooks as Settings
from sessions import audit

JOB: Final = "webhook"
MOST: Final = 100
"""Webhooks that there may be."""

_TOLD_AS: Final[Mapping[str, tuple[str, ...]]] = {
    "session.opened": ("session.created",),
    **dict.fromkeys(("session.ended", "session.all_ended", "session.token_reuse"), ("session.revoked",)),
    **dict.fromkeys(("user.revoked", "role.revoked", "everyone.revoked"), ("session.revoked",)),
    "user.changed": ("user.disabled", "user.enabled", "user.roles_changed"),
}
"""What webhooks are told of an action where it is another name: as `webhook_event` has it (migration 0014)."""

EVENTS: Final = {"login.failed"}.union(*(_TOLD_AS.get(action, (action,)) for action in get_args(audit.Action)))
"""All that a webhook can hear of, but for its own test."""

EVENT = re.compile(r"\*|[a-z_]{1,32}\.(\*|[a-z_]{1,32})")
_PREFIX = "whsec_"
_ATTEMPTS, _LONGEST = 16, 4 * 3600.0  # a day, all in all

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address and what it wants. Times in seconds since 1970."""

    id: str
    url: str
    events: tuple[str, ...]
    created_at: float
    delivered_at: float | None
    disabled_at: float | None
    disabled_why: str


class _Event(msgspec.Struct, frozen=True):
    """What a job of the kind "webhook" holds."""

    webhook: str
    type: str
    at: float
    data: dict[str, Any]


class Webhooks:
    """What a process needs to deliver. Its job kind is added to `jobs`."""

    def __init__(self, pool: Pool, jobs: Jobs, sealer: Sealer, settings: Settings, *, clock: Clock) -> None:
        self._pool, self._sealer, self._clock = pool, sealer, clock
        self.inside = networks(settings)
        self._client: aiohttp.ClientSession | None = None
        jobs.add(JOB, Kind(self._deliver, attempts=_ATTEMPTS, longest=_LONGEST))

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def _deliver(self, job: Job) -> None:
        event = msgspec.convert(job.payload, _Event)
        record = await self._pool.fetchrow(_TARGET, event.webhook)
        if record is None:
            raise GiveUp("the webhook is gone, or disabled")
        secret = self._sealer.open(record["sealed_secret"], _about(event.webhook))
        body = msgspec.json.encode({"type": event.type, "timestamp": rfc3339(event.at), "data": event.data})
        headers = signed(job.id, int(self._clock.wall()), body, secret)
        if self._client is None:
            self._client = outside.open_client(self.inside)
        try:
            status = await outside.post(self._client, record["url"], body, headers, self.inside)
        except outside.Forbidden as error:
            raise GiveUp(str(error)) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            if isinstance(error.__cause__, outside.Forbidden):
                raise GiveUp(str(error.__cause__)) from None
            raise Failed(outside.why(error)) from None
        await self._answered(event.webhook, status)

    async def _answered(self, id: str, status: int) -> None:
        if status == 410:  # "stop sending", says the specification
            await self._pool.execute(_DISABLE, id, "answered 410")
            log.warning("webhook_disabled", webhook=id, status=status)
            raise GiveUp("answered 410: the webhook is disabled")
        if not 200 <= status < 300:
            raise Failed(_refusal(status))
        await self._pool.execute(_DELIVERED, id)


def _refusal(status: int) -> str:
    """What an answer that is no 2xx says."""
    told = f"answered {status} {responses.get(status, '')}".rstrip()
    return f"{told}: redirects are not followed" if 300 <= status < 400 else told


def unknown(wanted: Sequence[str]) -> str:
    """What to say of the first of these that would never be told; "" when there is none."""
    known = EVENTS | {"*"} | {event.partition(".")[0] + ".*" for event in EVENTS}
    for one in wanted:
        if one not in known:
            return f"{one!r} never happens; what does: {', '.join(sorted(EVENTS))}"
    return ""


def scopes_to_hear(wanted: Sequence[str]) -> set[str]:
    """The scopes by which the same can be read: of the audit, but for failed logins, whose number stands with users."""
    heard = {event for event in EVENTS for one in wanted if one in ("*", event, event.partition(".")[0] + ".*")}
    return {"users:read" if event == "login.failed" else "audit" for event in heard}


def networks(settings: Settings) -> Sequence[outside.Network]:
    """The networks inside which webhooks may lead."""
    return [ipaddress.ip_network(network, strict=False) for network in settings.allow_networks]


def signed(id: str, timestamp: int, body: bytes, secret: bytes) -> dict[str, str]:
    """The headers of a delivery."""
    mac = hmac.digest(secret, f"{id}.{timestamp}.".encode() + body, hashlib.sha256)
    return {
        "Content-Type": "application/json",
        "User-Agent": "Wardgate",
        "webhook-id": id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": "v1," + base64.b64encode(mac).decode(),
    }


def _about(id: str) -> str:
    return f"webhook {id.replace('-', '')}"


# -- keeping them


async def create(connection: Connection, sealer: Sealer, url: str, events: Sequence[str]) -> tuple[str, str]:
    """A new one: its id, and its secret, which nobody sees again. ValueError when there are too many."""
    if await connection.fetchval("SELECT count(*) FROM webhooks") >= MOST:
        raise ValueError(f"there are {MOST} webhooks already")
    id, secret = uuid4().hex, secrets.token_bytes(32)
    await connection.execute(_CREATE, id, url, list(events), sealer.seal(secret, _about(id)))
    return id, _PREFIX + base64.b64encode(secret).decode()


async def listed(pool: Pool) -> list[Webhook]:
    """All of them, oldest first."""
    return [_webhook(record) for record in await pool.fetch(_LIST)]


async def delete(connection: Connection, id: str) -> bool:
    """Whether it was there. Its deliveries go with it, those that were given up too: nobody can retry them."""
    if await connection.fetchval("DELETE FROM webhooks WHERE id = $1 RETURNING true", id) is None:
        return False
    await connection.execute(_DROP_DELIVERIES, id)
    return True


async def events_of(connection: Connection, id: str) -> list[str]:
    """What it wants; nothing where there is none such."""
    return await connection.fetchval("SELECT events FROM webhooks WHERE id = $1", id) or []


async def enable(connection: Connection, id: str) -> bool:
    """Deliver to it again; whether it is there."""
    return await connection.fetchval(_ENABLE, id) is not None


async def test(connection: Connection, id: str, at: float) -> bool:
    """Send it an event of the type "test"; whether it is there and enabled."""
    if not await connection.fetchval("SELECT true FROM webhooks WHERE id = $1 AND disabled_at IS NULL", id):
        return False
    await enqueue(connection, JOB, [{"webhook": id, "type": "test", "at": at, "data": {}}])
    return True


async def tell_failures(connection: Connection, counts: Mapping[str, int]) -> None:
    """An event `login.failed` for each of these users and each webhook that wants it, in the caller's transaction."""
    await connection.execute(_TELL_FAILURES, list(counts), list(counts.values()))


async def replay(connection: Connection, id: str, since: float, until: float, *, limit: int) -> int | None:
    """Send again what it wanted between two times, at most `limit`, oldest first; how many, None when there is no such
    webhook. Each has a new id: the receiver takes it as another event."""
    if not await connection.fetchval("SELECT true FROM webhooks WHERE id = $1", id):
        return None
    return len(await connection.fetch(_REPLAY, id, since, until, limit))


_COLUMNS = """
id, url, events, extract(epoch FROM created_at)::float8 AS created_at,
extract(epoch FROM delivered_at)::float8 AS delivered_at, extract(epoch FROM disabled_at)::float8 AS disabled_at,
disabled_why
"""
_LIST = f"SELECT {_COLUMNS} FROM webhooks w ORDER BY w.created_at, id"  # noqa: S608 - no value is put into the text
_TARGET = "SELECT url, sealed_secret FROM webhooks WHERE id = $1 AND disabled_at IS NULL"
_DELIVERED = """
UPDATE webhooks SET delivered_at = clock_timestamp()
WHERE id = $1 AND (delivered_at IS NULL OR delivered_at < clock_timestamp() - interval '10 seconds')
"""
_DISABLE = "UPDATE webhooks SET disabled_at = clock_timestamp(), disabled_why = $2 WHERE id = $1"
_ENABLE = "UPDATE webhooks SET disabled_at = NULL, disabled_why = '' WHERE id = $1 RETURNING true"
_DROP_DELIVERIES = "DELETE FROM jobs WHERE kind = 'webhook' AND (payload->>'webhook')::uuid = $1::uuid"
_CREATE = "INSERT INTO webhooks (id, url, events, sealed_secret) VALUES ($1, $2, $3, $4)"
_TELL_FAILURES = """
INSERT INTO jobs (kind, payload)
SELECT 'webhook', jsonb_build_object('webhook', w.id, 'type', 'login.failed',
    'at', extract(epoch FROM clock_timestamp()), 'data', jsonb_build_object('user', f.id, 'failures', f.count))
FROM webhooks w CROSS JOIN unnest($1::text[], $2::int[]) AS f (id, count)
WHERE w.disabled_at IS NULL AND webhook_wants(w.events, 'login.failed')
"""
_REPLAY = """
INSERT INTO jobs (kind, payload)
SELECT 'webhook', webhook_payload(w.id, webhook_event(a.action, a.detail), a)
FROM webhooks w JOIN audit a ON webhook_wants(w.events, webhook_event(a.action, a.detail))
WHERE w.id = $1 AND a.at >= to_timestamp($2) AND a.at < to_timestamp($3) ORDER BY a.at, a.id LIMIT $4
RETURNING id
"""


def _webhook(record: Any) -> Webhook:
    return Webhook(
        record["id"].hex,
        record["url"],
        tuple(record["events"]),
        record["created_at"],
        record["delivered_at"],
        record["disabled_at"],
        record["disabled_why"],
    )
