"""One's own account over HTTP: becoming someone, by every way in, and what they may know and change of themselves.

What a deed does stands in `service`, who may ask in `identity`. Factors, letters, data and deletion have routes of
their own beside this, and so has what admins do (`user_routes`).
"""

import contextlib
import secrets
from typing import Any, Literal

import msgspec
from aiohttp import web

from auth import passkeys
from auth import passwords as policy
from auth.challenges import GOOD_FOR
from auth.devices import KNOWN_FOR
from auth.factor_routes import MaybeCode
from auth.identity import READING
from auth.keys import Keys
from auth.mailbox import Mailboxes
from auth.mailbox_routes import Text, who_asks
from auth.profiles import Profiles
from auth.service import Client, Held, LoggedIn, Users, registrable
from auth.strength import Strength, strength
from auth.throttle import Throttle
from auth.tokens import AccessTokens, Remembered
from auth.users import MAX_EMAIL, MAX_NAME, User
from auth.webauthn_json import Assertion, RequestOptions
from config.http import (
    IDENTIFY,
    Call,
    Nothing,
    Problem,
    Route,
    address_prefix,
    invalid,
    reply,
    require_same_origin,
    rfc3339,
)
from config.settings import Settings
from sessions import cookies
from sessions.errors import SessionEnded
from sessions.model import Reading, Session
from sessions.refresh import client_binding
from sessions.routes import SessionView, view
from sessions.service import Sessions

Mode = Literal["cookie", "token"]

STRENGTH_PER_HOUR = 600
"""Passwords that an address may ask about: a page asks after each pause in typing."""

JWKS_FOR = 60  # s that a reader of the key set may keep it; a new key is published for longer before it signs


class Guest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mode` as in a login."""

    mode: Mode = "cookie"


class Register(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new account. `mode`, `proof` as in a login."""

    email: Text
    password: Text
    display_name: Text = ""
    mode: Mode = "cookie"
    proof: Text = ""


class LogIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mode` "cookie" sets the session cookie; "token", for native and game clients, gives tokens instead. Without
    `remember` the cookie goes with the browser's end, and the session's life is sessions.absolute_unremembered.
    `proof`: the answer to the challenge that `challenge_required` asked for."""

    email: Text
    password: Text
    mode: Mode = "cookie"
    remember: bool = True
    proof: Text = ""


class FinishLogIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`challenge` of `second_factor_required`; `code` of the app, or a recovery code, or a `passkey`'s answer to
    /auth/login/factor/options. `mode`, `remember`, `proof` as in a login: what counts is what is said here. With
    `trust_device` the cookie login from this browser is asked for no second factor for auth.trust_device_for."""

    challenge: Text
    code: MaybeCode = ""
    passkey: Assertion | None = None
    mode: Mode = "cookie"
    remember: bool = True
    trust_device: bool = False
    proof: Text = ""


class FactorOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`challenge` of `second_factor_required`."""

    challenge: Text


class PasskeyOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`mode` as in the login that follows; "cookie" sets one that names the browser."""

    mode: Mode = "cookie"


class PasskeyLogIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`credential`: the browser's answer to /auth/passkeys/login/options. `mode` as there, `remember`, `proof` as in a
    login."""

    credential: Assertion
    mode: Mode = "cookie"
    remember: bool = True
    proof: Text = ""


class Refresh(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    refresh_token: Text


class ChangePassword(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    current_password: Text
    new_password: Text


class ChangeMe(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is left out stays. `avatar_url` begins with https://, or is empty: none."""

    display_name: Text | None = None
    avatar_url: Text | None = None


class NewPasswordIdea(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`email` and `display_name`: of whose password it would be."""

    password: Text
    email: Text = ""
    display_name: Text = ""


class StrengthView(msgspec.Struct, frozen=True):
    """`why` a weak one would be refused; "" for others."""

    strength: Strength
    why: str


class UserView(msgspec.Struct, frozen=True):
    """A user as they see themselves. A guest's `email` and `display_name` are empty; `avatar_url` is there where there
    is one."""

    id: str
    email: str
    display_name: str
    roles: list[str]
    created_at: str
    avatar_url: str | msgspec.UnsetType = msgspec.UNSET


class LoggedInView(msgspec.Struct, frozen=True):
    """A session that was just opened. The tokens are there in token mode only."""

    user: UserView
    session: SessionView
    access_token: str | msgspec.UnsetType = msgspec.UNSET
    token_type: str | msgspec.UnsetType = msgspec.UNSET
    expires_in: int | msgspec.UnsetType = msgspec.UNSET
    refresh_token: str | msgspec.UnsetType = msgspec.UNSET


class AccessToken(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: int


class Refreshed(msgspec.Struct, frozen=True):
    access_token: str
    token_type: str
    expires_in: int
    refresh_token: str


class Me(msgspec.Struct, frozen=True):
    """`scopes`: what the user's roles may, as `auth.roles` has it; "*" is everything. `aal`: what the session has
    shown, 1 for one factor, 2 for two or a passkey. `impersonated_by` is there where somebody acts for the user in this
    session: who."""

    user: UserView
    session: SessionView
    scopes: list[str]
    aal: int
    impersonated_by: str | msgspec.UnsetType = msgspec.UNSET


class AccountRoutes:
    """The handlers, over what they need."""

    def __init__(
        self,
        people: Users,
        profiles: Profiles,
        mailboxes: Mailboxes,
        sessions: Sessions,
        tokens: AccessTokens,
        keys: Keys,
        throttle: Throttle,
        settings: Settings,
    ) -> None:
        self._people, self._mailboxes, self._settings, self._throttle = people, mailboxes, settings, throttle
        self._sessions, self._tokens, self._keys, self._profiles = sessions, tokens, keys, profiles
        # What follows from a session and a user as they were read, for as long as the same readings are used again.
        self._mine: Remembered[str, tuple[Session, User, Me]] = Remembered()

    def routes(self) -> list[Route]:
        return [
            Route(
                "POST",
                "/auth/register",
                self.register,
                "A new account and its first session; with auth.verify_email always 202, and the rest by mail",
                body=Register,
                result=LoggedInView | Nothing,
                status=201,
                also=(202,),
                errors=(
                    "challenge_required",
                    "cross_site",
                    "forbidden",
                    "unauthenticated",
                    "token_expired",
                    "session_ended",
                    "email_taken",
                    "too_many_attempts",
                    "busy",
                ),
                headers=("Authorization", "Accept-Language"),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/guest",
                self.let_in,
                "A session without an account, until its holder registers or logs in",
                body=Guest,
                result=LoggedInView,
                status=201,
                errors=("cross_site", "forbidden", "too_many_attempts"),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/login",
                self.log_in,
                "A new session",
                body=LogIn,
                result=LoggedInView,
                errors=(
                    "challenge_required",
                    "cross_site",
                    "forbidden",
                    "invalid_credentials",
                    "second_factor_required",
                    "too_many_attempts",
                    "busy",
                ),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/login/factor",
                self.finish_login,
                "A new session: the code that second_factor_required asked for",
                body=FinishLogIn,
                result=LoggedInView,
                errors=(
                    "challenge_required",
                    "cross_site",
                    "forbidden",
                    "unauthenticated",
                    "invalid_credentials",
                    "too_many_attempts",
                    "busy",
                ),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/login/factor/options",
                self.factor_options,
                "What navigator.credentials.get is asked for, to finish a login with a passkey",
                body=FactorOptions,
                result=RequestOptions,
                errors=("forbidden", "unauthenticated"),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/passkeys/login/options",
                self.passkey_options,
                "What navigator.credentials.get is asked for, to log in with a passkey alone",
                body=PasskeyOptions,
                result=RequestOptions,
                errors=("cross_site", "forbidden"),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/passkeys/login",
                self.passkey_login,
                "A new session, by a passkey alone: it has seen two factors",
                body=PasskeyLogIn,
                result=LoggedInView,
                errors=(
                    "challenge_required",
                    "cross_site",
                    "forbidden",
                    "unauthenticated",
                    "invalid_credentials",
                    "too_many_attempts",
                    "busy",
                ),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/token",
                self.token,
                "An access token for a page with a session cookie",
                body=Nothing,
                result=AccessToken,
                access="session",
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/refresh",
                self.refresh,
                "A new access and refresh token",
                body=Refresh,
                result=Refreshed,
                errors=("unauthenticated", "session_ended"),
                tag="accounts",
            ),
            Route("GET", "/auth/me", self.me, "Who I am, and my session", result=Me, access="session", tag="accounts"),
            Route(
                "PATCH",
                "/auth/me",
                self.change_me,
                "Another name or picture that others see of me",
                body=ChangeMe,
                result=UserView,
                access="session",
                impersonable=True,
                errors=("outcome_unknown",),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/password",
                self.change_password,
                "A new password; my other sessions end",
                body=ChangePassword,
                access="session",
                errors=("invalid_credentials", "step_up_required", "too_many_attempts", "busy"),
                tag="accounts",
            ),
            Route(
                "POST",
                "/auth/password/strength",
                self.password_strength,
                "How strong a new password would be, in a word",
                body=NewPasswordIdea,
                result=StrengthView,
                errors=("too_many_attempts",),
                tag="accounts",
            ),
            Route(
                "GET",
                "/.well-known/jwks.json",
                self.jwks,
                "The public keys of the access tokens",
                result=dict[str, list[dict[str, str]]],
                tag="accounts",
            ),
        ]

    # -- becoming someone

    async def register(self, call: Call[Register, Nothing]) -> LoggedInView | web.StreamResponse:
        body = call.body
        client = await self._client(call, body.mode)
        if body.mode == "token":
            client = client._replace(held=await _bearer(call.request))
        if self._settings.auth.challenge.on_register:
            registrable(self._settings.auth, body.email, body.password, body.display_name)  # a proof is good once
            await self._throttle.prove(body.proof, call.address)
        if self._settings.auth.verify_email:
            await self._mailboxes.register(body.email, body.password, body.display_name, client)
            return reply(Nothing(), status=202)
        done = await self._people.register(body.email, body.password, body.display_name, body.mode, client)
        return await logged_in(call, done, self._tokens)

    async def log_in(self, call: Call[LogIn, Nothing]) -> LoggedInView:
        body = call.body
        client = (await self._who_logs_in(call, body.mode, body.remember))._replace(proof=body.proof)
        done = await self._people.log_in(body.email, body.password, body.mode, client)
        return await logged_in(call, done, self._tokens)

    async def finish_login(self, call: Call[FinishLogIn, Nothing]) -> LoggedInView:
        body = call.body
        if bool(body.code) == (body.passkey is not None):
            raise invalid("code", "either a code or a passkey")
        client = await self._who_logs_in(call, body.mode, body.remember)
        client = client._replace(proof=body.proof, trust=body.trust_device)
        done = await self._people.finish_login(body.challenge, body.code, body.passkey, body.mode, client)
        return await logged_in(call, done, self._tokens)

    async def factor_options(self, call: Call[FactorOptions, Nothing]) -> RequestOptions:
        return await self._people.passkey_to_finish(call.body.challenge, who_asks(call))

    async def passkey_options(self, call: Call[PasskeyOptions, Nothing]) -> RequestOptions | web.StreamResponse:
        request = call.request
        if call.body.mode == "token":
            return await self._people.passkey_to_log_in(passkeys.login_from(call.address))
        require_same_origin(request)
        browser = cookies.ceremony(request)
        if not 16 <= len(browser) <= 64:  # one that is named already may have asked in another tab
            browser = secrets.token_urlsafe(16)
        answer = reply(await self._people.passkey_to_log_in(passkeys.login_of(browser)))
        cookies.begin_ceremony(request, answer, browser, int(GOOD_FOR))
        return answer

    async def passkey_login(self, call: Call[PasskeyLogIn, Nothing]) -> LoggedInView:
        body = call.body
        client = (await self._who_logs_in(call, body.mode, body.remember))._replace(proof=body.proof)
        cookie = body.mode == "cookie"
        about = passkeys.login_of(cookies.ceremony(call.request)) if cookie else passkeys.login_from(call.address)
        done = await self._people.log_in_by_passkey(body.credential, about, body.mode, client)
        return await logged_in(call, done, self._tokens)

    async def _who_logs_in(self, call: Call[Any, Any], mode: Mode, remember: bool) -> Client:
        client = (await self._client(call, mode))._replace(remember=remember)
        if mode == "token":
            with contextlib.suppress(Problem):  # whoever logs in needs no other credential, good or bad
                client = client._replace(held=await _bearer(call.request))
        return client

    async def let_in(self, call: Call[Guest, Nothing]) -> LoggedInView:
        client = await self._client(call, call.body.mode)
        return await logged_in(call, await self._people.let_in(call.body.mode, client), self._tokens)

    async def _client(self, call: Call[Any, Any], mode: Mode) -> Client:
        """A login that sets a cookie must come from our pages, and replaces the session of the cookie before."""
        request, agent = call.request, call.request.headers.get("User-Agent", "")
        language = call.request.headers.get("Accept-Language", "")
        if mode == "token":
            return Client(call.address, agent, language=language)
        require_same_origin(request)
        before, known_by = await cookies.reading(request), cookies.device(request)
        if before is None:
            return Client(call.address, agent, known_by=known_by, language=language)
        held: Held | None = Held(before.session.subject.id, before.session.sid)
        try:
            await self._sessions.admit(before)
        except SessionEnded:
            held = None
        return Client(call.address, agent, before.session.sid, known_by, held, language)

    async def token(self, call: Call[Nothing, Nothing]) -> AccessToken:
        if call.who.via != "cookie":
            raise Problem("forbidden", "this takes the session cookie; with tokens use /auth/refresh")
        return AccessToken(*self._tokens.make(call.request[READING]))

    async def refresh(self, call: Call[Refresh, Nothing]) -> Refreshed:
        binding = client_binding(call.request.headers.get("User-Agent", ""), call.address)
        renewed = await self._sessions.refresh(call.body.refresh_token, binding)
        token, expires_in = self._tokens.make(renewed.reading)
        return Refreshed(token, "Bearer", expires_in, renewed.refresh_token)

    # -- being someone

    async def me(self, call: Call[None, Nothing]) -> Me:
        reading = call.request.get(READING) or await self._reading(call)
        user = await self._profiles.find(call.who.id)
        if user is None:
            raise Problem("not_found")
        session = reading.session
        kept = self._mine.get(session.sid)
        if kept is not None and kept[0] is session and kept[1] is user:
            return kept[2]
        act = session.act or msgspec.UNSET
        me = Me(user_view(user), view(session), sorted(call.who.scopes), session.aal, act)
        self._mine.keep(session.sid, (session, user, me))
        return me

    async def change_me(self, call: Call[ChangeMe, Nothing]) -> UserView:
        body, who = call.body, call.who
        user = await self._people.change_profile(
            who.id, who.sid or "", body.display_name, body.avatar_url, who_asks(call)
        )
        return user_view(user)

    async def _reading(self, call: Call[Any, Any]) -> Reading:
        found = await self._sessions.by_sid(call.who.sid or "")
        if found is None:
            raise Problem("unauthenticated", "there is no such session")
        return await self._sessions.admit(found)

    async def change_password(self, call: Call[ChangePassword, Nothing]) -> None:
        client, body, who = who_asks(call), call.body, call.who
        await self._people.change_password(who.id, who.sid or "", body.current_password, body.new_password, client)

    async def password_strength(self, call: Call[NewPasswordIdea, Nothing]) -> StrengthView:
        body = call.body
        await self._throttle.some("strength asked by", address_prefix(call.address), STRENGTH_PER_HOUR)
        if len(body.email) > MAX_EMAIL or len(body.display_name) > MAX_NAME:
            raise invalid("email", "as a registration takes it")
        try:
            context, shortest = (body.email, body.display_name), self._settings.auth.password_min_length
            normal = policy.acceptable("password", body.password, shortest, context)
        except Problem as problem:
            return StrengthView("weak", problem.details.errors[0].message)
        if await self._people.stolen(normal):
            return StrengthView("weak", policy.STOLEN)
        return StrengthView(strength(normal), "")

    # -- for everyone

    async def jwks(self, _call: Call[None, Nothing]) -> web.StreamResponse:
        return reply(self._keys.jwks(), headers={"Cache-Control": f"public, max-age={JWKS_FOR}"})


async def logged_in(call: Call[Any, Any], done: LoggedIn, tokens: AccessTokens) -> LoggedInView:
    """The answer to who just got a session, and its cookie where that is how it is kept."""
    reading = done.opened.reading
    user, session = user_view(done.user), view(reading.session)
    if reading.session.kind == "cookie":
        known_by = done.known_by if reading.session.remembered else ""
        await cookies.start(call.request, done.opened, (known_by, KNOWN_FOR) if known_by else None)
        return LoggedInView(user, session)
    token, expires_in = tokens.make(reading)
    return LoggedInView(user, session, token, "Bearer", expires_in, done.opened.refresh_token)


async def _bearer(request: web.Request) -> Held | None:
    """Whose access token came along; None without one. Problem for a bad one."""
    if not request.headers.get("Authorization", "").lower().startswith("bearer "):
        return None
    caller = await request.app[IDENTIFY](request)
    if caller is not None and caller.act:
        raise Problem("impersonated")
    return None if caller is None or caller.sid is None else Held(caller.id, caller.sid)


def user_view(user: User) -> UserView:
    return UserView(
        user.id,
        user.email,
        user.display_name,
        list(user.roles),
        rfc3339(user.created_at),
        user.avatar_url or msgspec.UNSET,
    )
