"""The commands `users`, `keys` and `token`, and the admin that `run.py dev` begins with.

They work on the database directly; running gateways learn of what they change through the revocation log.
"""

from cyclopts import App

from config.database import Pool
from config.settings import Settings

users = App(name="users", help="Create, list, disable and enable accounts; set roles and passwords.")
keys = App(name="keys", help="List, rotate and retire signing keys; create, list and revoke API keys.")
token = App(name="token", help="Make an access token or a connection token, to try things out.")


async def ensure_admin(pool: Pool, settings: Settings, email: str, password: str) -> str:
    """An active account with the role `admin` and this password exists afterwards; its user id.

    An account that is there keeps its password if it is this one already. Idempotent; safe beside running gateways.
    """
    raise NotImplementedError
