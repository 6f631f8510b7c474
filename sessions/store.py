"""The SQL of sessions and subjects: every statement has a name and says what it reads and what it locks.

Nothing here decides. One lock order everywhere: subjects, then sessions (each in the order of their ids), then the head.
"""

from config.database import Connection
from sessions.model import Subject


async def subject(connection: Connection, id: str, *, lock: bool = False) -> Subject | None:
    """The subject; with `lock` its row is held until the transaction's end."""
    raise NotImplementedError


async def create_subject(connection: Connection, id: str, roles: tuple[str, ...] = ()) -> None:
    """A new active subject with credential version 1."""
    raise NotImplementedError


async def change_subject(
    connection: Connection, id: str, *, active: bool | None = None, roles: tuple[str, ...] | None = None
) -> Subject | None:
    """Set what is given; the row is locked from then on. Ending sessions and telling others is the caller's (log)."""
    raise NotImplementedError


async def bump_credential_version(connection: Connection, id: str) -> int:
    """A password changed: logins that verified the old one will not open a session. Returns the new version."""
    raise NotImplementedError
