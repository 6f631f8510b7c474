"""A Sentinel of one's own, from the same binary as Valkey, and the replica that it may promote."""

from collections.abc import Sequence
from pathlib import Path

import redis.asyncio as redis

from config.servers import Guardian, Place, Valkey

MASTER = "wardgate"


class Sentinel(Valkey):
    """Watches the server at `watched`. Takes a server for dead after a second; so many (`quorum`) have to agree."""

    name = "sentinel"

    def __init__(
        self,
        place: Place,
        watched: int,
        *,
        port: int | None = None,
        guardian: Guardian | None = None,
        folder: str = "sentinel",
        quorum: int = 1,
    ) -> None:
        super().__init__(place, port=port, guardian=guardian)
        self.folder = place.subfolder(folder)
        self._watched, self._quorum = watched, quorum

    def _launch(self, arguments: Sequence[str | Path]) -> None:
        configuration = self.folder / "valkey.conf"
        configuration.write_text(
            f"bind 127.0.0.1\nport {self.port}\nrequirepass wardgate\ndaemonize no\ndir {self.folder}\n"
            f"sentinel monitor {MASTER} 127.0.0.1 {self._watched} {self._quorum}\n"
            f"sentinel auth-pass {MASTER} wardgate\n"
            f"sentinel down-after-milliseconds {MASTER} 1000\nsentinel failover-timeout {MASTER} 3000\n"
        )
        super()._launch([*arguments, "--sentinel"])

    async def fail_over(self) -> None:
        """Promote the replica now, whatever the master does."""
        async with redis.from_url(self.url) as commands:
            await commands.execute_command("SENTINEL", "FAILOVER", MASTER)  # type: ignore[no-untyped-call]

    async def others(self) -> int:
        """How many other Sentinels it knows."""
        async with redis.from_url(self.url, protocol=3) as commands:
            return len(await commands.execute_command("SENTINEL", "SENTINELS", MASTER))  # type: ignore[no-untyped-call]

    async def replicas(self) -> int:
        """How many replicas it knows, that are well."""
        async with redis.from_url(self.url, protocol=3) as commands:
            found = await commands.execute_command("SENTINEL", "REPLICAS", MASTER)  # type: ignore[no-untyped-call]
        return sum(replica[b"flags"] == b"slave" for replica in found)


def url_by(*ports: int) -> str:
    """The setting."""
    places = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"redis+sentinel://:wardgate@{places}/0?sentinel_master_name={MASTER}&sentinel_password=wardgate"
