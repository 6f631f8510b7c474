"""The cookie of a session: aiohttp-session's shell over our own store.

The cookie's value is a secret of 256 bits and nothing else; a login makes a new one, and the one before is dead with
its session. It goes with the browser's end where the login was not to be remembered. Outside dev its name begins with
`__Host-`, which browsers accept only from this host, over TLS and for the whole site. Beside it stands, for longer and
after a logout too, the one by which `auth.devices` knows a device again, and for minutes the one that a login with a
passkey is bound to.
"""

from typing import Any

import aiohttp_session
from aiohttp import web
from aiohttp_session import AbstractStorage, Session, SessionData

from config.http import cookie
from sessions.model import Reading
from sessions.service import Opened, Sessions

READING: web.RequestKey[Reading] = web.RequestKey("session_reading", Reading)
_SID = "sid"
_DEVICE: web.RequestKey[tuple[str, int]] = web.RequestKey("device_cookie", tuple)


class CookieStorage(AbstractStorage):
    """`secure`: the site is served over TLS. Without it (dev, plain http) the cookie is called `wardgate`."""

    def __init__(self, sessions: Sessions, *, secure: bool) -> None:
        name = "__Host-wardgate" if secure else "wardgate"
        super().__init__(cookie_name=name, path="/", secure=secure, httponly=True, samesite="Lax")
        self.device_cookie = f"{name}-device"
        self.ceremony_cookie = f"{name}-ceremony"
        self._sessions = sessions

    async def load_session(self, request: web.Request) -> Session:
        """The request's session; an empty new one when it brings no cookie that is somebody's.

        A session that is over is found too: the caller says why (`reading`).
        """
        secret = self.load_cookie(request)
        reading = await self._sessions.by_secret(secret) if secret else None
        if secret is None or reading is None:
            return await self.new_session()
        request[READING] = reading
        kept = SessionData(created=int(reading.session.created_at), session={_SID: reading.session.sid})
        return Session(secret, data=kept, new=False)

    def load_cookie(self, request: web.Request) -> str | None:
        """The secret; None where there is no cookie, or two."""
        return cookie(request, self.cookie_name)

    async def save_session(self, request: web.Request, response: web.StreamResponse, session: Session) -> None:
        """Set the cookie of a login, or take it away."""
        if session.empty or not isinstance(session.identity, str):
            self._set(response, self.cookie_name, "", 0)
            return
        reading = request[READING]
        left = int(reading.session.expires_at - reading.now) if reading.session.remembered else None
        self._set(response, self.cookie_name, session.identity, left)
        if _DEVICE in request:
            self._set(response, self.device_cookie, *request[_DEVICE])

    def begin_ceremony(self, response: web.StreamResponse, value: str, max_age: int) -> None:
        """The answer names the browser, so that what it is asked for now is answered by it and no other."""
        self._set(response, self.ceremony_cookie, value, max_age)

    def _set(self, response: web.StreamResponse, name: str, value: str, max_age: int | None) -> None:
        # A deletion has the same attributes: a browser ignores a `__Host-` cookie without them, even to remove it.
        params: dict[str, Any] = dict(self._cookie_params)
        params["max_age"] = max_age
        response.set_cookie(name, value, **params)


def setup(app: web.Application, storage: CookieStorage) -> None:
    """Serve `app` with these cookies. Add it after the middleware that makes problems of exceptions."""
    aiohttp_session.setup(app, storage)


async def reading(request: web.Request) -> Reading | None:
    """The session of the request's cookie, live or over; None without a cookie that is somebody's."""
    await aiohttp_session.get_session(request)
    return request.get(READING)


async def start(request: web.Request, opened: Opened, device: tuple[str, int] | None = None) -> None:
    """A login: its answer sets the cookie. The secret is a new one, whatever cookie the request came with.

    `device`: value and seconds of the device's cookie, where it is to be known from now on.
    """
    session = await aiohttp_session.new_session(request)
    session.set_new_identity(opened.secret)
    session[_SID] = opened.reading.session.sid
    request[READING] = opened.reading
    if device is not None:
        request[_DEVICE] = device


def device(request: web.Request) -> str:
    """The value of the device's cookie, "" without one."""
    storage = request[aiohttp_session.STORAGE_KEY]
    return request.cookies.get(storage.device_cookie, "")


def ceremony(request: web.Request) -> str:
    """What names the browser of a login with a passkey, "" for one that was asked for none."""
    return request.cookies.get(request[aiohttp_session.STORAGE_KEY].ceremony_cookie, "")


def begin_ceremony(request: web.Request, response: web.StreamResponse, value: str, max_age: int) -> None:
    request[aiohttp_session.STORAGE_KEY].begin_ceremony(response, value, max_age)


async def forget(request: web.Request) -> None:
    """The answer takes the cookie away."""
    (await aiohttp_session.get_session(request)).invalidate()
