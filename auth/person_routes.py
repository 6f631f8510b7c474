"""The routes by which a person leaves with what is theirs: export and deletion, asked by themselves or by an admin."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from aiohttp import web

from auth import personal_data
from auth.erasure import Erasure
from auth.freshness import Freshness
from auth.mailbox_routes import Text, who_asks
from auth.personal_data import PersonalData
from auth.service import hold
from auth.throttle import Throttle
from config import scopes
from config.database import Pool
from config.http import Call, Nothing, Route, plain, streamed
from config.settings import Auth
from sessions import audit, cookies
from sessions.errors import translated
from sessions.revocations import Receipt, Revocations

EXPORTS_PER_HOUR = 10
"""Of one person, by whomever they are asked."""


class DeleteMe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A guest has no password."""

    password: Text = ""


class Why(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`reason` is kept in the audit."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class Deleted(msgspec.Struct, frozen=True):
    """What the deletion ended."""

    revocation: Receipt


class PersonRoutes:
    """The handlers."""

    def __init__(
        self,
        pool: Pool,
        revocations: Revocations,
        erasure: Erasure,
        throttle: Throttle,
        freshness: Freshness,
        settings: Auth,
    ) -> None:
        self._pool, self._revocations, self._erasure = pool, revocations, erasure
        self._throttle, self._freshness, self._settings = throttle, freshness, settings

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/auth/me/export",
                self.export_me,
                "All that is kept of me, as a file",
                result=PersonalData,
                access="session",
                impersonable=False,
                errors=("step_up_required", "too_many_attempts", "outcome_unknown"),
                tag="accounts",
            ),
            Route(
                "DELETE",
                "/auth/me",
                self.delete_me,
                "Delete my account: my sessions end, and what is known of me goes",
                body=DeleteMe,
                result=Deleted,
                access="session",
                errors=("invalid_credentials", "step_up_required", "too_many_attempts", "busy", "outcome_unknown"),
                tag="accounts",
            ),
            Route(
                "POST",
                "/admin/users/{id}/export",
                self.export,
                "All that is kept of a user, as a file",
                body=Why,
                result=PersonalData,
                access="admin",
                scope="users:export",
                errors=("not_found", "too_many_attempts", "outcome_unknown"),
                tag="admin",
            ),
            Route(
                "DELETE",
                "/admin/users/{id}",
                self.delete,
                "Delete a user: their sessions end, and what is known of them goes",
                body=Why,
                result=Deleted,
                access="admin",
                scope="users:write",
                errors=("not_found", "step_up_required", "outcome_unknown"),
                tag="admin",
            ),
        ]

    async def export_me(self, call: Call[None, Nothing]) -> web.StreamResponse:
        id, sid = call.who.id, call.who.sid or ""
        with translated():
            local = await self._pool.fetchval("SELECT true FROM users WHERE id = $1", id) is not None
        await self._freshness.require(id, sid, always=local)  # others have no factor that they could show
        return await self._exported(call, id, "")

    async def export(self, call: Call[Why, Nothing]) -> web.StreamResponse:
        return await self._exported(call, plain("id", call.path("id")), call.body.reason)

    async def _exported(self, call: Call[Any, Any], id: str, reason: str) -> web.StreamResponse:
        if call.request.method == "HEAD":
            return web.Response(content_type="application/json")
        await self._throttle.some("exports of", id, EXPORTS_PER_HOUR)
        parts = self._parts(call, id, reason)
        return await streamed(call, "application/json", f"{id.partition(':')[2] or id}.json", parts)

    async def _parts(self, call: Call[Any, Any], id: str, reason: str) -> AsyncIterator[bytes]:
        who = call.who
        with translated():
            async with self._revocations.writing(actor=who.name) as writing:
                await hold(writing, id, who.name, who.sid or "", scopes.beyond(self._settings.roles, who.scopes))
                await audit.append(
                    writing.connection,
                    "user.exported",
                    target=f"user:{id}",
                    personal={"reason": reason} if reason else {},
                    **call.by,
                )
        async for part in personal_data.parts(self._pool, id):
            yield part

    async def delete_me(self, call: Call[DeleteMe, Nothing]) -> Deleted:
        who = call.who
        receipt = await self._erasure.delete_own(who.id, who.sid or "", call.body.password, who_asks(call))
        if who.via == "cookie":
            await cookies.forget(call.request)
        return Deleted(receipt)

    async def delete(self, call: Call[Why, Nothing]) -> Deleted:
        receipt = await self._erasure.delete(
            plain("id", call.path("id")),
            reason=call.body.reason,
            beyond=scopes.beyond(self._settings.roles, call.who.scopes),
            **call.by,
        )
        return Deleted(receipt)
