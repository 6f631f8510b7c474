"""A PostgreSQL of a measure's own, in a temporary folder, with all migrations; gone when the block ends."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from config import migrate
from config.servers import Guardian, Place, Postgres


@contextlib.asynccontextmanager
async def postgres(name: str, *, durable: bool = True) -> AsyncIterator[str]:
    """Its URL. `name` is in the folder's."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as place:
        folder = Path(place)
        await asyncio.to_thread(folder.chmod, 0o711)  # a PostgreSQL that is started by root runs as another user
        guardian = Guardian()
        server = Postgres(Place.at(folder), durable=durable, guardian=guardian)
        await asyncio.to_thread(server.start)
        try:
            await migrate.apply(server.url)
            yield server.url
        finally:
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(guardian.close)
