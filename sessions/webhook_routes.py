"""Webhooks as admins see them: made, listed, tried, enabled, deleted, replayed; over HTTP and by `run.py webhooks`."""

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import msgspec
from cyclopts import App, Parameter

from config import outside, scopes
from config.commands import COMMON, Common, database, show
from config.database import Connection, Pool
from config.errors import Failure, Usage
from config.http import Call, Caller, Nothing, Problem, Route, invalid, moment, rfc3339
from config.jobs import Jobs
from config.sealing import Sealer
from config.settings import Sessions as SessionSettings
from config.settings import seconds
from sessions import audit, webhooks
from sessions.errors import translated
from sessions.revocations import Revocations
from sessions.webhooks import EVENT, Webhook, Webhooks

MAX_URL, MAX_EVENTS, MOST_REPLAYED = 2000, 32, 10_000

Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Event = Annotated[str, msgspec.Meta(pattern=f"^({EVENT.pattern})$")]


class NewWebhook(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`events`: "session.revoked", or all of a kind: "session.*", or "*"."""

    url: Annotated[str, msgspec.Meta(max_length=MAX_URL)]
    events: Annotated[list[Event], msgspec.Meta(min_length=1, max_length=MAX_EVENTS)] = msgspec.field(
        default_factory=lambda: ["*"]
    )


class Replay(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What it wanted `since` then, until `until` or now."""

    since: Moment
    until: Moment | None = None


class Replayed(msgspec.Struct, frozen=True):
    """How many `events` are sent again, oldest first: at most 10,000, the rest by another call."""

    events: int


class WebhookView(msgspec.Struct, frozen=True):
    """`delivered_at`: when it last took an event. `disabled_why` is "" while it is delivered to."""

    id: str
    url: str
    events: list[str]
    created_at: str
    delivered_at: str | None
    disabled_at: str | None
    disabled_why: str


class WebhookViews(msgspec.Struct, frozen=True):
    items: list[WebhookView]
    next: str


class MadeWebhook(msgspec.Struct, frozen=True):
    """The secret is shown this once."""

    id: str
    secret: str


def sealer(settings: SessionSettings) -> Sealer:
    """What webhooks' secrets are sealed with."""
    return Sealer.of(settings, "webhooks")


def view(webhook: Webhook) -> WebhookView:
    return WebhookView(
        webhook.id,
        webhook.url,
        list(webhook.events),
        rfc3339(webhook.created_at),
        moment(webhook.delivered_at),
        moment(webhook.disabled_at),
        webhook.disabled_why,
    )


async def _create(
    connection: Connection, sealed_by: Sealer, url: str, events: Sequence[str], by: Mapping[str, Any]
) -> tuple[str, str]:
    id, secret = await webhooks.create(connection, sealed_by, url, events)
    detail = {"events": list(events), "host": outside.host_of(url)}
    await audit.append(connection, "webhook.created", target=f"webhook:{id}", detail=detail, **by)
    return id, secret


Change = Callable[[Connection, str], Awaitable[bool]]


async def _change(connection: Connection, change: Change, action: audit.Action, id: str, by: Mapping[str, Any]) -> bool:
    if not await change(connection, id):
        return False
    await audit.append(connection, action, target=f"webhook:{id}", **by)
    return True


class WebhookRoutes:
    """The handlers."""

    def __init__(self, pool: Pool, jobs: Jobs, hooks: Webhooks, sealed_by: Sealer, revocations: Revocations) -> None:
        self._pool, self._jobs, self._hooks, self._sealer = pool, jobs, hooks, sealed_by
        self._revocations = revocations

    def routes(self) -> list[Route]:
        one = "/admin/webhooks/{id}"
        read: dict[str, Any] = {"access": "admin", "scope": "webhooks:read", "tag": "admin"}
        admin = read | {"scope": "webhooks:write"}
        return [
            Route("GET", "/admin/webhooks", self.all, "Addresses that hear what happens", result=WebhookViews, **read),
            Route(
                "POST",
                "/admin/webhooks",
                self.create,
                "An address that is to hear what happens",
                body=NewWebhook,
                result=MadeWebhook,
                status=201,
                errors=("outcome_unknown",),
                **admin,
            ),
            Route("DELETE", one, self.delete, "Tell it nothing more", errors=("not_found", "outcome_unknown"), **admin),
            Route(
                "POST",
                f"{one}/enable",
                self.enable,
                "Deliver to it again",
                body=Nothing,
                errors=("not_found", "outcome_unknown"),
                **admin,
            ),
            Route(
                "POST",
                f"{one}/test",
                self.test,
                'Send it an event of the type "test"',
                body=Nothing,
                errors=("not_found", "outcome_unknown"),
                **admin,
            ),
            Route(
                "POST",
                f"{one}/replay",
                self.replay,
                "Send it again what it wanted in a time, as new events",
                body=Replay,
                result=Replayed,
                errors=("not_found", "outcome_unknown"),
                **admin,
            ),
        ]

    async def all(self, _call: Call[None, Nothing]) -> WebhookViews:
        with translated():
            return WebhookViews([view(webhook) for webhook in await webhooks.listed(self._pool)], "")

    async def create(self, call: Call[NewWebhook, Nothing]) -> MadeWebhook:
        body = call.body
        try:
            outside.check(body.url, self._hooks.inside)
        except outside.Forbidden as error:
            raise invalid("url", str(error)) from None
        if unknown := webhooks.unknown(body.events):
            raise invalid("events", unknown)
        with translated():
            async with self._revocations.acting(call.who.name, call.who.sid) as writing:
                _require_hearing(call.who, body.events)
                try:
                    made = await _create(writing.connection, self._sealer, body.url, body.events, call.by)
                except ValueError as error:
                    raise invalid("url", str(error)) from None
        return MadeWebhook(*made)

    async def delete(self, call: Call[None, Nothing]) -> None:
        await self._changed(call, webhooks.delete, "webhook.deleted")

    async def enable(self, call: Call[Nothing, Nothing]) -> None:
        await self._changed(call, webhooks.enable, "webhook.enabled", hearing=True)

    async def test(self, call: Call[Nothing, Nothing]) -> None:
        await self._changed(call, _tested, "webhook.tested")

    async def replay(self, call: Call[Replay, Nothing]) -> Replayed:
        id, body, now = _of(call), call.body, time.time()
        since, until = body.since.timestamp(), now if body.until is None else body.until.timestamp()
        if since >= until:
            raise invalid("since", "a time before until, and before now")
        with translated():
            async with self._revocations.acting(call.who.name, call.who.sid) as writing:
                _require_hearing(call.who, await webhooks.events_of(writing.connection, id))
                count = await _replay(writing.connection, id, since, until, call.by)
        if count is None:
            raise Problem("not_found")
        self._jobs.wake()
        return Replayed(count)

    async def _changed(
        self, call: Call[Any, Nothing], change: Change, action: audit.Action, *, hearing: bool = False
    ) -> None:
        id = _of(call)
        with translated():
            async with self._revocations.acting(call.who.name, call.who.sid) as writing:
                if hearing:
                    _require_hearing(call.who, await webhooks.events_of(writing.connection, id))
                if not await _change(writing.connection, change, action, id, call.by):
                    raise Problem("not_found", _none(change))
        self._jobs.wake()


def _require_hearing(who: Caller, events: Sequence[str]) -> None:
    """Nobody has told elsewhere what they may not read here."""
    if lacking := scopes.lacking(who.scopes, sorted(webhooks.scopes_to_hear(events))):
        raise Problem("forbidden", f"who has this told needs the scope {lacking[0]}")


def _of(call: Call[Any, Any]) -> str:
    try:
        return UUID(call.path("id")).hex
    except ValueError:
        raise Problem("not_found") from None


async def _replay(connection: Connection, id: str, since: float, until: float, by: Mapping[str, Any]) -> int | None:
    """How many events were sent again; None when there is no such webhook."""
    count = await webhooks.replay(connection, id, since, until, limit=MOST_REPLAYED)
    if count is not None:
        await audit.append(connection, "webhook.replayed", target=f"webhook:{id}", detail={"events": count}, **by)
    return count


async def _tested(connection: Connection, id: str) -> bool:
    return await webhooks.test(connection, id, time.time())


def _none(change: Change) -> str:
    """What to say where there is none to change."""
    return "there is no such webhook" + (", or it is disabled: enable it first" if change is _tested else "")


# -- the command

app = App(name="webhooks", help="Addresses that hear what happens here.")
_CLI: Mapping[str, Any] = {"actor": "cli"}
_WANTS = 'What it wants: "session.revoked", "session.*", "*".'
_COLUMNS = ("id", "url", "events", "created_at", "delivered_at", "disabled_why")


@app.command(name="create")
async def create_webhook(
    url: str,
    *,
    event: Annotated[list[str], Parameter(help=_WANTS, negative=())] = ["*"],  # noqa: B006
    common: Common = COMMON,
) -> None:
    """Tell an address what happens. Its secret is shown this once."""
    if wrong := [one for one in event if not EVENT.fullmatch(one)]:
        raise Usage(f'--event {wrong[0]!r}: like "session.revoked", "session.*" or "*"')
    if unknown := webhooks.unknown(event):
        raise Usage(f"--event {unknown}")
    async with database(common) as (settings, pool), pool.acquire() as connection, connection.transaction():
        try:
            outside.check(url, webhooks.networks(settings.webhooks))
            id, secret = await _create(connection, sealer(settings.sessions), url, event, _CLI)
        except outside.Forbidden as error:
            raise Usage(f"{url!r}: {error}") from None
        except ValueError as error:
            raise Failure(str(error)) from None
    show({"id": id, "secret": secret}, as_json=common.json)


@app.command(name="list")
async def list_webhooks(*, common: Common = COMMON) -> None:
    """All of them, oldest first."""
    async with database(common) as (_, pool):
        rows = [msgspec.structs.asdict(view(webhook)) for webhook in await webhooks.listed(pool)]
    if common.json:
        show({"items": rows, "next": ""}, as_json=True)
    else:
        show([row | {"events": " ".join(row["events"])} for row in rows], as_json=False, columns=_COLUMNS)


@app.command(name="delete")
async def delete_webhook(id: str, *, common: Common = COMMON) -> None:
    """Tell it nothing more."""
    await _from_the_command(id, webhooks.delete, "webhook.deleted", common)


@app.command(name="enable")
async def enable_webhook(id: str, *, common: Common = COMMON) -> None:
    """Deliver again to one that had answered 410."""
    await _from_the_command(id, webhooks.enable, "webhook.enabled", common)


@app.command(name="test")
async def try_webhook(id: str, *, common: Common = COMMON) -> None:
    """Send it an event of the type "test"; a running gateway delivers it within seconds."""
    await _from_the_command(id, _tested, "webhook.tested", common)


@app.command(name="replay")
async def replay_webhook(
    id: str,
    *,
    since: Annotated[str, Parameter(help='How far back, like "2h".')],
    common: Common = COMMON,
) -> None:
    """Send again what it wanted since then, as new events; at most 10,000."""
    try:
        span = float(seconds(since))
    except ValueError as error:
        raise Usage(f"--since: {error}") from None
    wanted, now = _id(id), time.time()
    async with database(common) as (_, pool), pool.acquire() as connection, connection.transaction():
        count = await _replay(connection, wanted, now - span, now, _CLI)
        if count is None:
            raise Failure(f"there is no webhook {id!r}")
    show({"id": wanted, "events": count}, as_json=common.json)


def _id(text: str) -> str:
    try:
        return UUID(text).hex
    except ValueError:
        raise Usage(f"{text!r} is no webhook's id") from None


async def _from_the_command(id: str, change: Change, action: audit.Action, common: Common) -> None:
    wanted = _id(id)
    async with database(common) as (_, pool), pool.acquire() as connection, connection.transaction():
        if not await _change(connection, change, action, wanted, _CLI):
            raise Failure(_none(change))
    show({"id": wanted, "done": action.partition(".")[2]}, as_json=common.json)
