"""A second server of each kind, from the binaries that `config.servers` uses: copied, following, promoted, left behind.

Blocking code but for `promote` and `streams`. Which server is the primary, and who is led where, is `world`'s.
"""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import asyncpg
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from config.servers import Guardian, Place, Postgres, Valkey

FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
SLOT = "standby"
PATIENT = "options='-c wal_sender_timeout=0'"
"""Else a step of the wall clock (F15) ends a copy that is under way."""
READ_ONLY = "default_transaction_read_only = on\n"


def faked(clock: Path) -> list[str]:
    """Words of the environment under which a process has the wall clock of the file, and the monotonic one of all."""
    return [
        f"LD_PRELOAD={FAKETIME}",
        f"FAKETIME_TIMESTAMP_FILE={clock}",
        "FAKETIME_CACHE_DURATION=1",
        "FAKETIME_DONT_FAKE_MONOTONIC=1",
        "DONT_FAKE_MONOTONIC=1",
    ]


class Database(Postgres):
    """A PostgreSQL in a folder of its own, for there are two; the second is made from the first."""

    def __init__(self, place: Place, name: str, *, port: int, guardian: Guardian) -> None:
        super().__init__(place, port=port, durable=False, guardian=guardian)
        self.folder = place.subfolder(name)
        self.primary_port = 0
        """Where its primary is to be found; 0 when it is the primary from the beginning."""
        self.clock: Path | None = None
        """A file that says how far its wall clock is off."""

    def _launch(self, arguments: Sequence[str | Path]) -> None:
        if self.clock is not None:
            arguments = ["/usr/bin/env", *faked(self.clock), *arguments]
        super()._launch(arguments)

    def follow(self, port: int) -> None:
        """Begin again as a copy of the primary behind this port, which may be a proxy's."""
        self.primary_port = port
        self._made.unlink(missing_ok=True)
        self.start()

    def _make(self) -> None:
        if not self.primary_port:
            super()._make()
            return
        shutil.rmtree(self._data, ignore_errors=True)
        self._run(
            *("pg_basebackup", "-D", self._data, "--checkpoint=fast", "--wal-method=stream", "--no-sync"),
            *("--write-recovery-conf", "--create-slot", "--slot", SLOT, "--no-password"),
            *("-d", f"host=127.0.0.1 port={self.primary_port} user=wardgate application_name={SLOT} {PATIENT}"),
        )
        self._configure(line for line in self._configured() if line.startswith("primary_"))
        self._made.touch()

    def back_up(self) -> None:
        """A copy of what is there now, while it runs."""
        shutil.rmtree(self._backup, ignore_errors=True)
        self._run(
            *("pg_basebackup", "-D", self._backup, "--checkpoint=fast", "--wal-method=stream", "--no-sync"),
            *("--no-password", "-d", f"host=127.0.0.1 port={self.port} user=wardgate {PATIENT}"),
        )

    def put_back(self) -> None:
        """Begin again with the copy, by archive recovery, as restores are done: with a timeline of its own."""
        shutil.rmtree(self._data, ignore_errors=True)
        self._backup.rename(self._data)
        (self._data / "recovery.signal").touch()
        self.place.own(self._data / "recovery.signal")
        self._configure(("restore_command = 'false'\n",))
        self.start()
        end = time.monotonic() + 20
        while (self._data / "recovery.signal").exists():
            if time.monotonic() > end:
                raise TimeoutError("the backup is not restored")
            time.sleep(0.02)

    @property
    def _backup(self) -> Path:
        return self.folder / "backup"

    def left_behind(self) -> None:
        """Start as a server that knows what it knew when it was killed, takes no writes, and follows nobody."""
        (self._data / "standby.signal").touch()
        self.place.own(self._data / "standby.signal")
        self._configure(())
        self.start()

    def wake_read_only(self) -> None:
        """Go on after SIGSTOP, but take no writes: fencing is the operator's, and here it is done."""
        self._configure((*self._configured(), READ_ONLY))
        self.signal(signal.SIGHUP)
        self.signal(signal.SIGCONT)

    def _configured(self) -> list[str]:
        return (self._data / "postgresql.auto.conf").read_text().splitlines(keepends=True)

    def _configure(self, lines: "tuple[str, ...] | Iterator[str]") -> None:
        (self._data / "postgresql.auto.conf").write_text("".join(lines))

    def signal(self, number: signal.Signals) -> None:
        """To the postmaster and all its children, twice: one may be forked in between."""
        for _ in range(2):
            for pid in self.pids():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue

    def pids(self) -> list[int]:
        """The postmaster and its children."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        except OSError:
            return []
        return [self.pid, *map(int, children)]


class Cache(Valkey):
    """A Valkey in a folder of its own, for there are two."""

    def __init__(self, place: Place, name: str, *, port: int, guardian: Guardian) -> None:
        super().__init__(place, port=port, guardian=guardian)
        self.folder = place.subfolder(name)

    async def follow(self, port: int) -> None:
        """Be a replica of the server behind this port, which may be a proxy's."""
        async with redis.from_url(self.url) as here:
            await here.config_set("masterauth", "wardgate")
            await here.replicaof("127.0.0.1", str(port))
            async with asyncio.timeout(20):
                while (await here.info("replication"))["master_link_status"] != "up":  # noqa: ASYNC110 - elsewhere
                    await asyncio.sleep(0.05)

    async def deafen(self) -> None:
        """Hear nothing of the master any more, as a replica."""
        async with redis.from_url(self.url) as here:
            await here.config_set("masterauth", "another")
            await here.execute_command("CLIENT", "KILL", "TYPE", "master")  # type: ignore[no-untyped-call]

    async def hear(self) -> None:
        """Hear masters again. A Sentinel ends everybody's connections when it promotes."""
        async with redis.from_url(self.url, retry=Retry(ConstantBackoff(0.2), 20)) as here:
            await here.config_set("masterauth", "wardgate")

    async def lead(self) -> None:
        """Be the master, with what is here."""
        async with redis.from_url(self.url) as here:
            await here.replicaof("NO", "ONE")


async def promote(standby: Database) -> None:
    """Let it take over; returns when it takes writes."""
    connection = await asyncpg.connect(standby.url, timeout=5)
    try:
        if not await connection.fetchval("SELECT pg_promote(true, 10)"):
            raise TimeoutError("the standby was not promoted")
    finally:
        await connection.close(timeout=1)


async def attach(primary: Database, *, synchronous: bool) -> None:
    """Wait until its standby streams and has caught up; from then on commits wait for it, or not."""
    connection = await asyncpg.connect(primary.url, timeout=5)
    try:
        async with asyncio.timeout(20):
            while not await connection.fetchval(  # noqa: ASYNC110 - in another process
                "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming' AND application_name = $1"
                " AND flush_lsn >= pg_current_wal_lsn())",
                SLOT,
            ):
                await asyncio.sleep(0.05)
        if synchronous:
            await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{SLOT}'")
            await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close(timeout=1)
