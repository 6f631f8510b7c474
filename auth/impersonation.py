"""An admin acts for a user, to see what they see: in a session of the user's, for a while, marked wherever it shows.

Its rows of the audit, its tokens (`act`, RFC 8693), lists and what others see of its connections say who acts. It
borrows no rights: nobody with a scope is acted for, and the session has none. What changes an account is refused
(`Route.in_person`). It ends by a logout, with the admin's own session (`sessions.log`), when the roles of either
change, and at its time.
"""

from auth.freshness import Freshness
from auth.service import Client, LoggedIn, hold
from auth.users import find
from config import scopes
from config.database import Pool
from config.http import Caller, Problem, rfc3339
from config.settings import Auth
from sessions import audit, store
from sessions.errors import translated
from sessions.revocations import Revocations
from sessions.service import Sessions

SCOPE = "users:impersonate"


class Impersonation:
    """One a process."""

    def __init__(
        self, pool: Pool, revocations: Revocations, sessions: Sessions, freshness: Freshness, settings: Auth
    ) -> None:
        self._pool, self._revocations, self._sessions = pool, revocations, sessions
        self._freshness, self._settings = freshness, settings

    async def begin(self, id: str, reason: str, who: Caller, client: Client) -> LoggedIn:
        """A session of the user `id` in which `who` acts. Problems: forbidden (an API key; a user with rights; one who
        is shut out), not_found, step_up_required, session_ended."""
        if who.sid is None:
            raise Problem("forbidden", "only an admin's session can act for a user")
        await self._freshness.require(who.id, who.sid)
        with translated():
            async with self._revocations.writing(actor=who.name) as writing:
                connection = writing.connection
                subject = await hold(writing, id, who.name, who.sid)
                admin = await store.subject(connection, who.id)
                if admin is None or not scopes.holds(scopes.of_roles(self._settings.roles, admin.roles), SCOPE):
                    raise Problem("forbidden", f"needs the scope {SCOPE}")
                if id == who.id or scopes.of_roles(self._settings.roles, subject.roles):
                    raise Problem("forbidden", "nobody acts for themselves, or for who has rights over others")
                if not subject.admitted(self._sessions.now()):
                    raise Problem("forbidden", "the user is disabled or banned")
                opened = await self._sessions.impersonate(
                    writing,
                    subject,
                    who.sid,
                    ttl=self._settings.impersonation_ttl,
                    device=client.device,
                    address=client.address,
                )
                session = opened.reading.session
                await audit.append(
                    connection,
                    "user.impersonated",
                    actor=who.name,
                    target=f"user:{id}",
                    sid=who.sid,
                    address=client.address,
                    detail={"session": session.sid, "expires_at": rfc3339(session.expires_at)},
                    personal={"reason": reason},
                )
                user = await find(connection, id)
        assert user is not None  # noqa: S101 - it is locked
        return LoggedIn(user, opened)
