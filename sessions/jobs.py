"""Jobs as admins see them: listed, tried again, dropped. Each of these deeds is a row of the audit.

The queue itself is `config.jobs`. Here are the route handlers and the command `jobs`.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

import msgspec
from cyclopts import App, Parameter

from config import jobs as queue
from config import paging, scopes
from config.commands import COMMON, Common, database, page_of, show
from config.database import Connection, Pool
from config.errors import Failure, Usage
from config.http import Call, Nothing, Paging, Problem, Route, plain, rfc3339
from config.logging import scrub
from sessions import audit, webhooks
from sessions.errors import translated
from sessions.revocations import Revocations

State = Literal["waiting", "dead"]


class JobFilter(Paging, frozen=True, forbid_unknown_fields=True):
    """`state`: "waiting" for those that will be done, "dead" for those that were given up."""

    kind: str = ""
    state: Literal["", "waiting", "dead"] = ""


class JobView(msgspec.Struct, frozen=True):
    """`due_at`: when it is tried next; null when it is dead. `error` is how the last attempt failed. `payload` is null
    where another scope reads such things: `mail` letters, `audit` what webhooks are told. One that is `periodic` comes
    again by itself, and is not dropped."""

    id: str
    kind: str
    state: State
    created_at: str
    due_at: str | None
    attempts: int
    error: str
    payload: Any
    periodic: bool


class JobViews(msgspec.Struct, frozen=True):
    items: list[JobView]
    next: str


_READ_BY: Mapping[str, str] = {"mail": "mail", "mailbox": "mail", webhooks.JOB: "audit"}


def view(job: queue.Found, granted: Collection[str] = (scopes.ALL,)) -> JobView:
    """As somebody sees it to whom this was granted."""
    told = scopes.holds(granted, _READ_BY.get(job.kind, "jobs:read"))
    return JobView(
        job.id,
        job.kind,
        "waiting" if job.dead_at is None else "dead",
        rfc3339(job.created_at),
        rfc3339(job.run_at) if job.dead_at is None else None,
        job.attempts,
        job.error,
        job.payload if told else None,
        job.periodic,
    )


async def again(connection: Connection, id: str, by: Mapping[str, Any]) -> bool:
    """Try a dead one again at once, or a waiting one now; whether it is there."""
    return await _changed(connection, "job.retried", await queue.again(connection, id), by)


async def drop(connection: Connection, id: str, by: Mapping[str, Any]) -> bool:
    """Delete it; whether it was there. One that is being done now may still have its effect."""
    return await _changed(connection, "job.dropped", await queue.drop(connection, id), by)


async def _changed(
    connection: Connection, action: audit.Action, job: queue.Found | None, by: Mapping[str, Any]
) -> bool:
    if job is None:
        return False
    detail = {"kind": job.kind, "attempts": job.attempts, "error": scrub(job.error)}
    await audit.append(connection, action, target=f"job:{job.id}", detail=detail, **by)
    return True


Change = Callable[[Connection, str, Mapping[str, Any]], Awaitable[bool]]


def _absent(change: Change) -> str:
    stays = ", or it is one that comes again by itself: those stay" if change is drop else ""
    return f"there is no such job{stays}"


class JobRoutes:
    """The handlers. `jobs` is woken when there is something to do again."""

    def __init__(self, pool: Pool, jobs: queue.Jobs, revocations: Revocations) -> None:
        self._pool, self._jobs, self._revocations = pool, jobs, revocations

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/admin/jobs",
                self.page,
                "Work that waits or was given up, newest first",
                query=JobFilter,
                result=JobViews,
                access="admin",
                scope="jobs:read",
                tag="admin",
            ),
            Route(
                "POST",
                "/admin/jobs/{id}/retry",
                self.retry,
                "Try a job again now",
                body=Nothing,
                access="admin",
                scope="jobs:write",
                errors=("not_found", "outcome_unknown"),
                tag="admin",
            ),
            Route(
                "DELETE",
                "/admin/jobs/{id}",
                self.drop,
                "Drop a job",
                access="admin",
                scope="jobs:write",
                errors=("not_found", "outcome_unknown"),
                tag="admin",
            ),
        ]

    async def page(self, call: Call[None, JobFilter]) -> JobViews:
        query = call.query
        dead = None if not query.state else query.state == "dead"
        with translated():
            items, cursor = await queue.page(
                self._pool,
                plain("kind", query.kind),
                dead,
                limit=query.limit,
                after=paging.asked(query.after, paging.UUID),
            )
        return JobViews([view(job, call.who.scopes) for job in items], paging.write(cursor))

    async def retry(self, call: Call[Nothing, Nothing]) -> None:
        await self._change(call, again)
        self._jobs.wake()

    async def drop(self, call: Call[None, Nothing]) -> None:
        await self._change(call, drop)

    async def _change(self, call: Call[Any, Nothing], change: Change) -> None:
        """In a transaction that holds the session which asks (7e)."""
        id = _id(call)
        with translated():
            async with self._revocations.acting(call.who.name, call.who.sid) as writing:
                if not await change(writing.connection, id, call.by):
                    raise Problem("not_found", _absent(change))


def _id(call: Call[Any, Any]) -> str:
    try:
        return str(UUID(call.path("id")))
    except ValueError:
        raise Problem("not_found") from None


# -- the command

app = App(name="jobs", help="Work that is done later: list it, try it again, drop it.")
_COLUMNS = ("id", "kind", "state", "created_at", "due_at", "attempts", "error")


@app.command(name="list")
async def list_jobs(
    *,
    kind: Annotated[str, Parameter(help="Only of this kind.")] = "",
    dead: Annotated[bool, Parameter(help="Only those that were given up.", negative=())] = False,
    limit: Annotated[int, Parameter(help="At most so many, newest first.")] = 50,
    after: Annotated[str, Parameter(help="The `next` of the page before.")] = "",
    common: Common = COMMON,
) -> None:
    """Jobs that wait or were given up, newest first."""
    cursor = page_of(limit, after, paging.UUID)
    async with database(common) as (_, pool):
        items, following = await queue.page(pool, kind, True if dead else None, limit=limit, after=cursor)
    rows: Sequence[Mapping[str, Any]] = [msgspec.structs.asdict(view(job)) for job in items]
    if common.json:
        show({"items": rows, "next": paging.write(following)}, as_json=True)
    else:
        show(rows, as_json=False, columns=_COLUMNS)


@app.command(name="retry")
async def retry_job(id: str, *, common: Common = COMMON) -> None:
    """Try a job again now."""
    await _from_the_command(id, again, "retried", common)


@app.command(name="drop")
async def drop_job(id: str, *, common: Common = COMMON) -> None:
    """Delete a job."""
    await _from_the_command(id, drop, "dropped", common)


async def _from_the_command(id: str, change: Any, done: str, common: Common) -> None:
    try:
        wanted = str(UUID(id))
    except ValueError:
        raise Usage(f"{id!r} is no job's id") from None
    async with database(common) as (_, pool), pool.acquire() as connection, connection.transaction():
        if not await change(connection, wanted, {"actor": "cli"}):
            raise Failure(f"{id!r}: {_absent(change)}")
    show({"id": wanted, "state": done}, as_json=common.json)
