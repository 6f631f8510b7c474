"""What tests of accounts share."""

import pytest

from auth.keys import Keys, key_sealer
from config.clock import FakeClock
from config.database import Pool
from config.settings import Settings


@pytest.fixture
async def keys(pool: Pool, settings: Settings, clock: FakeClock) -> Keys:
    """Signing keys of a fresh database, not read again by themselves."""
    from auth import keys as signing

    sealer = key_sealer(settings.sessions)
    async with pool.acquire() as connection, connection.transaction():
        await signing.ensure(connection, sealer, "ES256")
    keys = Keys(pool, sealer, "ES256", clock=clock)
    await keys.load()
    return keys
