"""The routes of `auth.mailbox`: what may be asked, and what links bring back. Each answers the same for everybody."""

from typing import Annotated, Any

import msgspec
from aiohttp import web

from auth.mailbox import Mailboxes
from auth.service import Client, Held
from config.http import IDENTIFY, Call, Nothing, Problem, Route, require_same_origin

Text = Annotated[str, msgspec.Meta(max_length=8192)]


class Address(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    email: Text


class Link(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the link in a letter carries."""

    token: Text


class Registered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The link of a registration's letter, and the password that was registered with. `proof` as in a login."""

    token: Text
    password: Text
    proof: Text = ""


class NewPassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: Text
    new_password: Text


class NewAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    new_email: Text
    current_password: Text


class Moved(msgspec.Struct, frozen=True):
    """`changed` is false while the other mailbox has yet to confirm."""

    changed: bool


class MailboxRoutes:
    """The handlers."""

    def __init__(self, mailboxes: Mailboxes) -> None:
        self._mailboxes = mailboxes

    def routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/auth/verify-email",
                self.verify,
                "A registration becomes an account: with the token of the link in the letter, and its password",
                body=Registered,
                errors=(
                    *("email_taken", "invalid_credentials", "challenge_required", "too_many_attempts", "busy"),
                    "session_ended",
                ),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/verify-email/resend",
                self.resend,
                "The letter of a registration again",
                body=Address,
                result=Nothing,
                status=202,
                errors=("forbidden", "too_many_attempts"),
                headers=("Accept-Language",),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/password/forgot",
                self.forgot,
                "A letter with a link that sets a new password",
                body=Address,
                result=Nothing,
                status=202,
                errors=("forbidden", "too_many_attempts"),
                headers=("Accept-Language",),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/password/reset",
                self.reset,
                "A new password, with the token of the link; every session ends",
                body=NewPassword,
                errors=("busy", "outcome_unknown"),
                headers=("Accept-Language",),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/email",
                self.change,
                "Letters to my old and my new address, which changes when both are answered",
                body=NewAddress,
                result=Nothing,
                status=202,
                access="session",
                errors=("invalid_credentials", "step_up_required", "too_many_attempts", "busy"),
                headers=("Accept-Language",),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/email/confirm",
                self.confirm,
                "One of the two letters is answered, with the token of its link",
                body=Link,
                result=Moved,
                errors=("email_taken", "outcome_unknown"),
                headers=("Accept-Language",),
                tag="accounts",
            ),
        ]

    async def verify(self, call: Call[Registered, Nothing]) -> None:
        client = who_asks(call)._replace(held=await _held(call.request), proof=call.body.proof)
        await self._mailboxes.verify(call.body.token, call.body.password, client)

    async def resend(self, call: Call[Address, Nothing]) -> Nothing:
        await self._mailboxes.ask("resend", call.body.email, who_asks(call))
        return Nothing()

    async def forgot(self, call: Call[Address, Nothing]) -> Nothing:
        await self._mailboxes.ask("reset", call.body.email, who_asks(call))
        return Nothing()

    async def reset(self, call: Call[NewPassword, Nothing]) -> None:
        body = call.body
        await self._mailboxes.reset(body.token, body.new_password, who_asks(call))

    async def change(self, call: Call[NewAddress, Nothing]) -> Nothing:
        body, who = call.body, call.who
        await self._mailboxes.change(who.id, who.sid or "", body.new_email, body.current_password, who_asks(call))
        return Nothing()

    async def confirm(self, call: Call[Link, Nothing]) -> Moved:
        changed = await self._mailboxes.confirm_change(call.body.token, who_asks(call))
        return Moved(changed)


def who_asks(call: Call[Any, Any]) -> Client:
    """The other side of a request that no cookie comes with."""
    headers = call.request.headers
    return Client(call.address, headers.get("User-Agent", ""), language=headers.get("Accept-Language", ""))


async def _held(request: web.Request) -> Held | None:
    """Whose session came along, if it is good and, as a cookie, comes from our pages; no other answers to a link."""
    try:
        caller = await request.app[IDENTIFY](request)
        if caller is not None and caller.via == "cookie":
            require_same_origin(request)
    except Problem:
        return None
    return None if caller is None or caller.sid is None or caller.act else Held(caller.id, caller.sid)
