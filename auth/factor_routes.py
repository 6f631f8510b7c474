"""The routes of `auth.factors`: second factors turned on and off, step-up, and what is left when they are lost."""

from typing import Annotated, Any

import msgspec

from auth import totp
from auth.factors import Asker, Factors
from auth.mailbox_routes import Text, who_asks
from auth.passkeys import Passkey
from auth.tokens import AccessTokens
from auth.webauthn_json import Assertion, Attestation, CreationOptions, RequestOptions
from config.http import Call, Nothing, Route, invalid, moment, plain, rfc3339
from sessions import cookies
from sessions.revocations import Receipt
from sessions.routes import SessionView, view
from sessions.service import Opened

Code = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
MaybeCode = Annotated[str, msgspec.Meta(max_length=64)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class OneCode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`code` of the app; where a factor is turned off, a recovery code too."""

    code: Code


class StepUp(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the three: `code` of the app, or a recovery code, or a `passkey`'s answer to /auth/step-up/options, of
    whoever has a second factor; `password` of others."""

    password: Text = ""
    code: MaybeCode = ""
    passkey: Assertion | None = None


class NewPasskey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`credential`: the browser's answer to /auth/passkeys/options. `name`: what its owner calls it."""

    name: Name
    credential: Attestation


class PasskeyName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: Name


class Lost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`reason` is kept in the audit, and ends the user's connections."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class FactorsView(msgspec.Struct, frozen=True):
    """What I have; `aal` and `auth_time` are this session's: 2 with a second factor, and when one was shown last."""

    totp: bool
    passkeys: int
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
    """The recovery codes are shown this once; they come with the first factor, and with others there are none."""

    recovery_codes: list[str]


class PasskeyView(msgspec.Struct, frozen=True):
    id: str
    name: str
    created_at: str
    last_used_at: str | None


class PasskeyViews(msgspec.Struct, frozen=True):
    items: list[PasskeyView]
    next: str


class PasskeyAdded(Confirmed, frozen=True, kw_only=True):
    passkey: PasskeyView


class RecoveryCodes(msgspec.Struct, frozen=True):
    """They are shown this once."""

    recovery_codes: list[str]


class FactorsLost(msgspec.Struct, frozen=True):
    """What became of the user's sessions."""

    revocation: Receipt | None


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
                "The first code: the app is on, and these are the recovery codes",
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
                "The app is off",
                body=OneCode,
                access="session",
                errors=("invalid_credentials", "too_many_attempts", "busy", "outcome_unknown"),
                headers=("Accept-Language",),
                tag="accounts",
            ),
            Route(
                "GET",
                "/auth/passkeys",
                self.passkeys,
                "My passkeys, the oldest first",
                result=PasskeyViews,
                access="session",
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/passkeys/options",
                self.new_passkey,
                "Begin with a passkey: what navigator.credentials.create is asked for",
                body=Nothing,
                result=CreationOptions,
                access="session",
                errors=("step_up_required",),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/passkeys",
                self.add_passkey,
                "A passkey is kept, and is a second factor from then on; with the first one come recovery codes",
                body=NewPasskey,
                result=PasskeyAdded,
                status=201,
                access="session",
                errors=("invalid_credentials", "step_up_required", "too_many_attempts", "busy", "outcome_unknown"),
                headers=("Accept-Language",),
                tag="accounts",
            ),
            Route(
                "PATCH",
                "/auth/passkeys/{id}",
                self.rename_passkey,
                "Another name for a passkey",
                body=PasskeyName,
                result=PasskeyView,
                access="session",
                errors=("not_found", "outcome_unknown"),
                tag="accounts",
            ),
            Route(
                "DELETE",
                "/auth/passkeys/{id}",
                self.remove_passkey,
                "A passkey is not good any more",
                access="session",
                errors=("step_up_required", "not_found", "outcome_unknown"),
                headers=("Accept-Language",),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/recovery-codes",
                self.recovery_codes,
                "New recovery codes, in place of those before",
                body=Nothing,
                result=RecoveryCodes,
                access="session",
                errors=("step_up_required", "outcome_unknown"),
                headers=("Accept-Language",),
                tag="accounts",
            ),
            Route(
                "DELETE",
                "/admin/users/{id}/factors",
                self.lost,
                "Who has lost them: every second factor of a user goes, and their sessions end",
                body=Lost,
                result=FactorsLost,
                access="admin",
                scope="users:write",
                errors=("step_up_required", "not_found", "outcome_unknown"),
                tag="admin",
            ),
            Route(
                "POST",
                "/auth/step-up/options",
                self.step_up_options,
                "What navigator.credentials.get is asked for, to step up with a passkey",
                body=Nothing,
                result=RequestOptions,
                access="session",
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
        return FactorsView(state.totp, state.passkeys, state.recovery_codes, state.aal, rfc3339(state.auth_time))

    async def begin(self, call: Call[Nothing, Nothing]) -> BegunView:
        begun = await self._factors.begin(_asker(call))
        return BegunView(begun.secret, begun.uri, totp.qr(begun.uri))

    async def confirm(self, call: Call[OneCode, Nothing]) -> Confirmed:
        codes, opened = await self._factors.confirm(_asker(call), call.body.code)
        return Confirmed(*await self._stepped_up(call, opened), recovery_codes=codes)

    async def remove(self, call: Call[OneCode, Nothing]) -> None:
        await self._factors.remove(_asker(call), call.body.code)

    async def passkeys(self, call: Call[None, Nothing]) -> PasskeyViews:
        return PasskeyViews([_view(passkey) for passkey in await self._factors.passkeys(call.who.id)], "")

    async def new_passkey(self, call: Call[Nothing, Nothing]) -> CreationOptions:
        return await self._factors.new_passkey(_asker(call))

    async def add_passkey(self, call: Call[NewPasskey, Nothing]) -> PasskeyAdded:
        passkey, codes, opened = await self._factors.add_passkey(_asker(call), call.body.credential, call.body.name)
        return PasskeyAdded(*await self._stepped_up(call, opened), recovery_codes=codes, passkey=_view(passkey))

    async def rename_passkey(self, call: Call[PasskeyName, Nothing]) -> PasskeyView:
        return _view(await self._factors.rename_passkey(_asker(call), call.path("id"), call.body.name))

    async def remove_passkey(self, call: Call[None, Nothing]) -> None:
        await self._factors.remove_passkey(_asker(call), call.path("id"))

    async def recovery_codes(self, call: Call[Nothing, Nothing]) -> RecoveryCodes:
        return RecoveryCodes(await self._factors.recovery_codes(_asker(call)))

    async def lost(self, call: Call[Lost, Nothing]) -> FactorsLost:
        id = plain("id", call.path("id"))
        receipt = await self._factors.lost(id, call.body.reason, scopes=call.who.scopes, **call.by)
        return FactorsLost(receipt)

    async def step_up_options(self, call: Call[Nothing, Nothing]) -> RequestOptions:
        return await self._factors.passkey_to_step_up(_asker(call))

    async def step_up(self, call: Call[StepUp, Nothing]) -> SteppedUp:
        body = call.body
        if [bool(body.password), bool(body.code), body.passkey is not None].count(True) != 1:
            raise invalid("code", "one of a code, a passkey and a password")
        opened = await self._factors.step_up(_asker(call), body.password, body.code, body.passkey)
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


def _view(passkey: Passkey) -> PasskeyView:
    return PasskeyView(passkey.id, passkey.name, rfc3339(passkey.created_at), moment(passkey.last_used_at))
