"""The routes of `auth.factors`: a second factor turned on and off, and step-up."""

from typing import Annotated, Any

import msgspec

from auth import totp
from auth.factors import Asker, Factors
from auth.mailbox_routes import Text, who_asks
from auth.tokens import AccessTokens
from config.http import Call, Nothing, Route, invalid, rfc3339
from sessions import cookies
from sessions.routes import SessionView, view
from sessions.service import Opened

Code = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class OneCode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`code` of the app; where a factor is turned off, a recovery code too."""

    code: Code


class StepUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the two: `code` of the app, or a recovery code, of whoever has a second factor; `password` of others."""

    password: Text = ""
    code: Annotated[str, msgspec.Meta(max_length=64)] = ""


class FactorsView(msgspec.Struct, frozen=True):
    """What I have; `aal` and `auth_time` are this session's: 2 with a second factor, and when one was shown last."""

    totp: bool
    recovery_codes: int
    aal: int
    auth_time: str


class BegunView(msgspec.Struct, frozen=True):
    """`secret` to type in, `uri` for the app, `qr` the same as an SVG. It is on once its first code has come back."""

    secret: str
    uri: str
    qr: str


class SteppedUp(msgspec.Struct, frozen=True):
    """A session with a cookie has got another one; others get an access token that says what was shown."""

    session: SessionView
    access_token: str | msgspec.UnsetType = msgspec.UNSET
    token_type: str | msgspec.UnsetType = msgspec.UNSET
    expires_in: int | msgspec.UnsetType = msgspec.UNSET


class Confirmed(SteppedUp, frozen=True, kw_only=True):
    """The recovery codes are shown this once."""

    recovery_codes: list[str]


class FactorRoutes:
    """The handlers."""

    def __init__(self, factors: Factors, tokens: AccessTokens) -> None:
        self._factors, self._tokens = factors, tokens

    def routes(self) -> list[Route]:
        return [
            Route(
                "GET",
                "/auth/factors",
                self.state,
                "What second factors I have, and what this session has seen of them",
                result=FactorsView,
                access="session",
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/totp",
                self.begin,
                "Begin with an authenticator app: a secret, which its first code turns on",
                body=Nothing,
                result=BegunView,
                access="session",
                errors=("step_up_required", "outcome_unknown"),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/totp/confirm",
                self.confirm,
                "The first code: the second factor is on, and these are the recovery codes",
                body=OneCode,
                result=Confirmed,
                access="session",
                errors=("invalid_credentials", "step_up_required", "too_many_attempts", "busy", "outcome_unknown"),
                headers=("Accept-Language",),
                tag="accounts",
            ),
            Route(
                "DELETE",
                "/auth/totp",
                self.remove,
                "The second factor is off",
                body=OneCode,
                access="session",
                errors=("invalid_credentials", "too_many_attempts", "busy", "outcome_unknown"),
                headers=("Accept-Language",),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/step-up",
                self.step_up,
                "Show a factor again, for what is sensitive; the cookie's secret changes, the session stays",
                body=StepUp,
                result=SteppedUp,
                access="session",
                errors=(
                    "invalid_credentials",
                    "second_factor_required",
                    "too_many_attempts",
                    "busy",
                    "outcome_unknown",
                ),
                tag="accounts",
            ),
        ]

    async def state(self, call: Call[None, Nothing]) -> FactorsView:
        state = await self._factors.state(_asker(call))
        return FactorsView(state.on, state.recovery_codes, state.aal, rfc3339(state.auth_time))

    async def begin(self, call: Call[Nothing, Nothing]) -> BegunView:
        begun = await self._factors.begin(_asker(call))
        return BegunView(begun.secret, begun.uri, totp.qr(begun.uri))

    async def confirm(self, call: Call[OneCode, Nothing]) -> Confirmed:
        codes, opened = await self._factors.confirm(_asker(call), call.body.code)
        return Confirmed(*await self._stepped_up(call, opened), recovery_codes=codes)

    async def remove(self, call: Call[OneCode, Nothing]) -> None:
        await self._factors.remove(_asker(call), call.body.code)

    async def step_up(self, call: Call[StepUp, Nothing]) -> SteppedUp:
        body = call.body
        if bool(body.password) == bool(body.code):
            raise invalid("code", "either a code or a password")
        opened = await self._factors.step_up(_asker(call), body.password, body.code)
        return SteppedUp(*await self._stepped_up(call, opened))

    async def _stepped_up(self, call: Call[Any, Any], opened: Opened) -> tuple[Any, ...]:
        """The fields of SteppedUp."""
        session = view(opened.reading.session)
        if opened.secret:
            await cookies.start(call.request, opened)
            return (session,)
        token, expires_in = self._tokens.make(opened.reading)
        return session, token, "Bearer", expires_in


def _asker(call: Call[Any, Any]) -> Asker:
    who = call.who
    return Asker(who.id, who.sid or "", who.via == "cookie", who_asks(call))
