"""Everyone's accounts, for admins: who there is, who may come in and with which roles, and acting for a user.

What a deed does stands in `service` and `impersonation`; deleting people and giving them their data in `person_routes`.
"""

from datetime import datetime
from typing import Annotated

import msgspec

from auth import users
from auth.impersonation import SCOPE, Impersonation
from auth.mailbox_routes import who_asks
from auth.routes import LoggedInView, logged_in
from auth.service import NO_BAN, Users
from auth.tokens import AccessTokens
from auth.users import User
from config import paging
from config.http import (
    LAST_DAY,
    Call,
    Nothing,
    Paging,
    Problem,
    Route,
    invalid,
    moment,
    plain,
    rfc3339,
)
from sessions.revocations import Receipt
from sessions.service import Sessions


class ChangeUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays. `reason` is kept in the audit. `banned_until` is a time to come, or null: no ban."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    disabled: bool | None = None
    roles: Annotated[list[Annotated[str, msgspec.Meta(max_length=32)]], msgspec.Meta(max_length=16)] | None = None
    banned_until: Annotated[datetime, msgspec.Meta(tz=True)] | msgspec.UnsetType | None = msgspec.UNSET


class Impersonate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`reason` is kept in the audit."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class UserFilter(Paging, frozen=True, forbid_unknown_fields=True):
    """`email`: how the address begins."""

    email: str = ""
    role: str = ""
    disabled: bool | None = None


class AnyUser(msgspec.Struct, frozen=True):
    """A user as admins see them. `failures`: wrong passwords since the last right one. `banned_until` is null without a
    ban."""

    id: str
    email: str
    display_name: str
    roles: list[str]
    created_at: str
    disabled: bool
    failures: int
    last_login_at: str | None
    banned_until: str | None
    avatar_url: str


class AnyUsers(msgspec.Struct, frozen=True):
    items: list[AnyUser]
    next: str


class UserChanged(msgspec.Struct, frozen=True):
    """`revocation` is null when nothing changed that a session is held to."""

    user: AnyUser
    revocation: Receipt | None


class UserRoutes:
    """The handlers, over what they need."""

    def __init__(self, people: Users, impersonation: Impersonation, sessions: Sessions, tokens: AccessTokens) -> None:
        self._people, self._impersonation, self._sessions, self._tokens = people, impersonation, sessions, tokens

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/admin/users",
                self.everyone,
                "Accounts, oldest first",
                query=UserFilter,
                result=AnyUsers,
                export=AnyUser,
                access="admin",
                scope="users:read",
                tag="admin",
            ),
            Route(
                "PATCH",
                "/admin/users/{id}",
                self.change_user,
                "Disable, enable or ban a user, or give other roles",
                body=ChangeUser,
                result=UserChanged,
                access="admin",
                scope="users:write",
                errors=("not_found", "outcome_unknown"),
                tag="admin",
            ),
            Route(
                "POST",
                "/admin/users/{id}/impersonation",
                self.impersonate,
                "A session in which I act for a user for a while; it is marked, ends with mine, changes no account",
                body=Impersonate,
                result=LoggedInView,
                status=201,
                access="admin",
                scope=SCOPE,
                errors=("not_found", "step_up_required", "outcome_unknown"),
                tag="admin",
            ),
        ]

    async def everyone(self, call: Call[None, UserFilter]) -> AnyUsers:
        query = call.query
        active = None if query.disabled is None else not query.disabled
        by = users.Filter(
            users.email_key(plain("email", query.email)) or None, plain("role", query.role) or None, active
        )
        items, cursor = await self._people.page(by, limit=query.limit, after=paging.asked(query.after))
        return AnyUsers([any_user(user) for user in items], paging.write(cursor))

    async def change_user(self, call: Call[ChangeUser, Nothing]) -> UserChanged:
        body, who = call.body, call.who
        if call.path("id") == who.id and (body.disabled or isinstance(body.banned_until, datetime)):
            raise Problem("forbidden", "nobody disables or bans themselves: another admin does")
        user, receipt = await self._people.change(
            plain("id", call.path("id")),
            disabled=body.disabled,
            roles=body.roles,
            banned_until=self._until(body.banned_until),
            reason=body.reason,
            scopes=who.scopes,
            **call.by,
        )
        return UserChanged(any_user(user), receipt)

    async def impersonate(self, call: Call[Impersonate, Nothing]) -> LoggedInView:
        id = plain("id", call.path("id"))
        done = await self._impersonation.begin(id, call.body.reason, call.who, who_asks(call))
        return await logged_in(call, done, self._tokens)

    def _until(self, wanted: datetime | msgspec.UnsetType | None) -> float | None:
        if not isinstance(wanted, datetime):
            return NO_BAN if wanted is None else None
        until = wanted.timestamp()
        if not self._sessions.now() < until < LAST_DAY:
            raise invalid("banned_until", "a time to come; null lifts a ban")
        return until


def any_user(user: User) -> AnyUser:
    return AnyUser(
        user.id,
        user.email,
        user.display_name,
        list(user.roles),
        rfc3339(user.created_at),
        not user.active,
        user.failures,
        moment(user.last_login_at),
        moment(user.banned_until),
        user.avatar_url,
    )
