"""Who did what to whom: rows added in the transaction of the deed, read by admins.

Partitioned by month; `make_months` keeps the coming ones ahead. Rows are never changed.
"""

from collections.abc import Mapping
from typing import Any

from config.database import Connection


async def append(
    connection: Connection,
    action: str,
    *,
    actor: str,
    target: str = "",
    sid: str = "",
    address: str = "",
    detail: Mapping[str, Any] | None = None,
) -> None:
    """One row, in the caller's transaction. `actor` is Caller.name, "system" or "cli"; `detail` holds no secret."""
    raise NotImplementedError
