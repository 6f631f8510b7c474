"""What operators look at: the settings in force, and letters that wait or were given up.

Nothing is changed here: letters are tried again and dropped as the jobs that they are (`sessions.jobs`).
"""

from typing import Any, Literal

import msgspec

from auth import letters
from config import jobs as queue
from config import paging
from config.database import Pool
from config.http import Call, Nothing, Paging, Route, rfc3339
from config.loading import seen
from config.settings import Settings
from sessions.errors import translated
from sessions.jobs import State


class SettingView(msgspec.Struct, frozen=True):
    """A setting as the node that answers has it: durations in seconds, "***" for a secret that is set. `origin` is the
    variable or the file that it is from, "run.py dev", or "default"."""

    setting: str
    value: Any
    origin: str


class SettingViews(msgspec.Struct, frozen=True):
    items: list[SettingView]
    next: str


class LetterFilter(Paging, frozen=True, forbid_unknown_fields=True):
    """`state`: "waiting" for letters that will be sent, "dead" for those that were given up."""

    state: Literal["", "waiting", "dead"] = ""


class LetterView(msgspec.Struct, frozen=True):
    """`id` is the job's. `due_at`: when it is tried next; null when it is dead. `error` is how the last attempt
    failed."""

    id: str
    letter: str
    to: str
    language: str
    state: State
    created_at: str
    due_at: str | None
    attempts: int
    error: str


class LetterViews(msgspec.Struct, frozen=True):
    items: list[LetterView]
    next: str


class OperatorRoutes:
    """The handlers."""

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self._pool = pool
        self._settings = [SettingView(*one) for one in seen(settings)]

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/admin/settings",
                self.settings,
                "The settings in force, and where each came from; secrets are masked",
                result=SettingViews,
                access="admin",
                scope="settings",
                tag="admin",
            ),
            Route(
                "GET",
                "/admin/mail",
                self.mail,
                "Letters that wait or were given up, newest first",
                query=LetterFilter,
                result=LetterViews,
                export=LetterView,
                access="admin",
                scope="mail",
                tag="admin",
            ),
        ]

    async def settings(self, _call: Call[None, Nothing]) -> SettingViews:
        return SettingViews(self._settings, "")

    async def mail(self, call: Call[None, LetterFilter]) -> LetterViews:
        query = call.query
        dead = None if not query.state else query.state == "dead"
        after = paging.asked(query.after, paging.UUID)
        with translated():
            items, cursor = await queue.page(self._pool, letters.JOB, dead, limit=query.limit, after=after)
        return LetterViews([_letter(job) for job in items], paging.write(cursor))


def _letter(job: queue.Found) -> LetterView:
    order = job.payload if isinstance(job.payload, dict) else {}
    return LetterView(
        job.id,
        str(order.get("letter", "")),
        str(order.get("to", "")),
        str(order.get("language", "")),
        "waiting" if job.dead_at is None else "dead",
        rfc3339(job.created_at),
        rfc3339(job.run_at) if job.dead_at is None else None,
        job.attempts,
        job.error,
    )
