"""What breaks the world, by the names of the table in docs/revocation.md. A fault is written down once it is in force,
and its end before it is taken away, so that the checker never counts more than there was."""

import asyncio
import contextlib
import os
import random
import resource
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg

from tests.campaign.client import Client
from tests.campaign.history import Failover, FaultBegan, FaultEnded
from tests.campaign.people import People
from tests.campaign.proxy import Proxy
from tests.campaign.schedule import DATABASE
from tests.campaign.standby import Cache, Database
from tests.campaign.world import Unreachable, World

BUS = b"wardgate-bus"
PUT_BACK = 4.0
"""Seconds after a failover in which whoever remembers must have put back what was lost."""


class Faults:
    """`run(args)` of a schedule's step."""

    def __init__(self, world: World, people: People) -> None:
        self.world, self.people = world, people
        self.rng = random.Random(world.schedule.seed + 2)
        self.skipped: dict[str, str] = {}
        self._locks = {"postgres": asyncio.Lock(), "valkey": asyncio.Lock()}

    async def run(self, args: dict[str, Any]) -> None:
        """One fault from its begin to its end, healed."""
        rest = {key: value for key, value in args.items() if key not in ("name", "for")}
        await getattr(self, f"_{args['name'].lower()}")(args["name"], args["for"], **rest)

    @contextlib.asynccontextmanager
    async def _in_force(
        self, name: str, *, blinds: Any = (), kills: Any = (), deafens: Any = (), note: str = ""
    ) -> AsyncIterator[None]:
        id = next(self.world.ids)
        began = time.monotonic()
        self.world.log(FaultBegan(began, id, name, frozenset(blinds), frozenset(kills), frozenset(deafens), note))
        try:
            yield
        finally:
            self.world.log(FaultEnded(time.monotonic(), id))

    @property
    def _all(self) -> range:
        return range(len(self.world.nodes))

    # -- Redis

    async def _f1(self, name: str, seconds: float) -> None:
        async with self._locks["valkey"]:
            os.kill(self.world.valkey.pid, signal.SIGKILL)
            try:
                async with self._in_force(name):
                    await asyncio.sleep(seconds)
            finally:
                await self.world.start_again(self.world.valkey)

    async def _f2(self, name: str, seconds: float) -> None:
        async with self._locks["valkey"]:
            pid = self.world.valkey.pid
            os.kill(pid, signal.SIGSTOP)
            try:
                async with self._in_force(name):
                    await asyncio.sleep(seconds)
            finally:
                os.kill(pid, signal.SIGCONT)

    async def _f3(self, name: str, seconds: float, what: str) -> None:
        async with self._locks["valkey"], self.world.redis() as redis, self._in_force(name, note=what):
            if what != "SCRIPT FLUSH":
                await redis.flushall()
            if what != "FLUSHALL":
                await redis.script_flush()
            await asyncio.sleep(seconds)

    async def _f4(self, name: str, seconds: float) -> None:
        """The replica takes over without the last writes; the master is killed, and comes back as the replica."""
        async with self._locks["valkey"]:
            world, old = self.world, self.world.valkey
            world.stream.hold()
            try:
                await asyncio.sleep(seconds)
                os.kill(old.pid, signal.SIGKILL)
                async with self._in_force(name):
                    await self._other_master()
                    for node in world.nodes:
                        node.valkey.cut()
            finally:
                world.stream.cut()
                world.stream.heal()
            await asyncio.to_thread(old.stop)
            await self._replica(old)

    async def _f5(self, name: str, seconds: float) -> None:
        """The master is demoted, does not know it, and subscribers are left there; what is published is elsewhere."""
        async with self._locks["valkey"]:
            world, old = self.world, self.world.valkey
            await self._other_master()
            left = [(node.valkey, node.valkey.named(BUS)) for node in world.nodes]
            async with self._in_force(name, deafens=self._all):
                for proxy, _ in left:
                    proxy.cut(but=BUS)
                gone = await world.until(lambda: _true(not any(p.named(BUS) & there for p, there in left)), seconds)
            if not gone:
                raise AssertionError(f"a subscriber stayed on a demoted master for {seconds:g} s")
            await asyncio.to_thread(old.stop)
            await self._replica(old)

    async def _other_master(self) -> None:
        """Who is led is led to the other one."""
        await self.world.caches[1 - self.world.master].lead()
        self.world.master = 1 - self.world.master

    async def _replica(self, old: Cache) -> None:
        await self.world.start_again(old)
        await self.world.replicate()

    async def _f6(self, name: str, seconds: float, again: int) -> None:
        async with self._locks["valkey"], self.world.redis() as redis, self._in_force(name):
            for _ in range(again):
                await redis.execute_command("CLIENT", "KILL", "TYPE", "pubsub")  # type: ignore[no-untyped-call]
                await asyncio.sleep(seconds / again)

    async def _f7(self, name: str, seconds: float) -> None:
        """So small a buffer that whatever a subscriber has not read yet costs it its connection."""
        async with self._locks["valkey"], self.world.redis() as redis:
            await redis.config_set("client-output-buffer-limit", "pubsub 1 0 0")
            async with self._in_force(name):
                await asyncio.sleep(seconds)
            await redis.config_set("client-output-buffer-limit", "pubsub 33554432 8388608 60")

    async def _f19(self, name: str, seconds: float, garble: str, node: int) -> None:
        """Hints that are garbled on their way to one node; and forged, repeated, late, cut ones to all."""
        proxy = self.world.nodes[node].valkey
        proxy.garble = 1.0 if garble == "all" else 0.5
        forger = self.world.keep(self._forge())
        try:
            async with self._in_force(name, note=f"{garble} to node {node}"):
                await asyncio.sleep(seconds)
        finally:
            proxy.garble = 0.0
            forger.cancel()
            self.world.answers["hints garbled", 0, ""] += proxy.garbled
            proxy.garbled = 0

    async def _forge(self) -> None:
        heard: list[tuple[bytes, bytes]] = []
        with contextlib.suppress(Exception):
            async with self.world.redis() as redis, redis.pubsub() as ear:
                await ear.psubscribe("*:revocations*")
                while True:
                    message = await ear.get_message(ignore_subscribe_messages=True, timeout=0.05)
                    if message is None:
                        continue
                    channel, data = message["channel"], message["data"]
                    if len(heard) < 200:
                        heard.append((channel, data))
                    for where, what in self._forgeries(channel, data, heard):
                        heard_again = await redis.publish(where, what)
                        del heard_again
                    await asyncio.sleep(0.03)

    def _forgeries(self, channel: bytes, data: bytes, heard: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        rng = self.rng
        if rng.random() < 0.5:  # what we publish comes back to us: let it die out
            return []
        old = rng.choice(heard)
        at = rng.randrange(len(data))
        flipped = data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
        return [(channel, flipped), (channel, data[:at]), (channel, rng.randbytes(40)), old][: rng.randint(1, 4)]

    # -- gateways

    async def _f8(self, name: str, seconds: float, node: int) -> None:
        pid = self.world.nodes[node].pid
        if not pid:
            return
        os.kill(pid, signal.SIGSTOP)
        try:
            async with self._in_force(name, note=f"node {node} for {seconds:.2f} s"):
                await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _f9(self, name: str, seconds: float, node: int) -> None:
        pid = self.world.nodes[node].pid
        if pid:
            async with self._in_force(name, note=f"node {node}"):
                os.kill(pid, signal.SIGUSR1)
                await asyncio.sleep(seconds)

    async def _f10(self, name: str, seconds: float, node: int, deaf: bool) -> None:
        """A worker is killed; `deaf`: when it is started again, hints do not reach it at first, and its lease's
        connection stands still for a while after the first renewal."""
        here = self.world.nodes[node]
        pid = here.pid
        if not pid:
            return
        os.kill(pid, signal.SIGKILL)
        here.valkey.garble = 1.0 if deaf else 0.0
        self._stall(node, deaf)
        try:
            async with self._in_force(name, kills={node}, note=f"node {node}"):
                await self.world.until(lambda: self._back(node, pid), 20, every=0.02)
                await self._revoke_into(node)
                for session in self._dead()[-6:]:
                    self.world.keep(self.people.ghost(session, node))
        finally:
            here.valkey.garble = 0.0
            self._stall(node, False)

    def _stall(self, node: int, stalled: bool) -> None:
        for proxy in self.world.nodes[node].postgres:
            proxy.stall = stalled

    async def _back(self, node: int, before: int) -> bool:
        pid = self.world.nodes[node].pid
        return pid not in (0, before) and any(state.ready for state in self.world.nodes[node].supervisor.states)

    async def _revoke_into(self, node: int) -> None:
        """Sessions end just as the node begins, and try to come back through it with tokens that are as young as it
        is: older ones stand below its floor, so that it would ask the database."""
        others = [n for n in self._all if n != node] or [node]
        victims = self.people.sessions()
        self.rng.shuffle(victims)

        async def one(session: Any) -> None:
            await self.people.renew(session, self.rng.choice(others))
            await self.people.revoke(self.rng.choice(others), {"sid": session.sid}, [session])
            await self.people.ghost(session, node)

        await asyncio.gather(*(one(session) for session in victims[:3]))

    def _dead(self) -> list[Any]:
        return [session for person in self.people.people for session in person.sessions if session.dead]

    async def _f16(self, name: str, seconds: float, node: int, codec: str) -> None:
        live = [person.number for person in self.people.people if person.live]
        if live:
            async with self._in_force(name):
                await self.people.do_slow(self.rng.choice(live), node, codec)

    async def _f17(self, name: str, seconds: float, node: int, codec: str) -> None:
        """Nothing passes any more between a client and its gateway, and TCP lives on: pings find it."""
        world, sessions = self.world, self.people.sessions()
        if not sessions:
            return
        session = self.rng.choice(sessions)
        client = Client(world.log, codec, session.sid, self.people.people[session.user].id, node)
        channel, before = f"game:half{client.number}", len(world.history.events)
        proxy = Proxy(lambda: world.nodes[node].port, self.rng)
        await proxy.start()
        gone = True
        try:
            with contextlib.suppress(ConnectionError, TimeoutError):
                if await client.dial(proxy.port, session.access, rude=True) and await client.subscribe(channel):
                    proxy.hold()
                    async with self._in_force(name):
                        gone = await world.until(lambda: self._absent(node, channel), seconds)
        finally:
            client.hang_up()
            await proxy.close()
        alone = all(e.name == name for e in world.history.events[before:] if isinstance(e, FaultBegan))
        if not gone and alone:
            raise AssertionError(f"a half-open connection to node {node} was there after {seconds:g} s")

    async def _absent(self, node: int, channel: str) -> bool:
        with contextlib.suppress(Unreachable):
            answer = await self.world.call(node, "POST", "/api/presence", {"channel": channel})
            return answer.status == 200 and answer.body.get("result", {}).get("presence") == {}
        return False

    async def _f20(self, name: str, seconds: float, user: int) -> None:
        names = ("login", "refresh", "connect", "password", "revoke", "cap")
        async with self._in_force(name):
            for _ in range(3):
                await self.people.do_storm(user, self.rng.choices(names, k=8), self.rng.randrange(1 << 30))

    async def _f24(self, name: str, seconds: float, node: int, what: str) -> None:
        if what == "hashes":
            async with self._in_force(name, note=what):
                logins = (self.people.do_login(self.rng.randrange(len(self.people.people)), node) for _ in range(20))
                await asyncio.gather(*logins)
            return
        pid = self.world.nodes[node].pid
        if not pid:
            return
        used = max(int(fd) for fd in await asyncio.to_thread(os.listdir, f"/proc/{pid}/fd"))
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 2, before[1]))
        try:
            async with self._in_force(name, note=f"{what} of node {node}"):
                await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_NOFILE, before)

    # -- the network

    async def _f11(self, name: str, seconds: float, node: int, servers: str, how: str) -> None:
        here = self.world.nodes[node]
        both = {"postgres": here.postgres, "redis": [here.valkey], "both": [*here.postgres, here.valkey]}[servers]
        for proxy in both:
            match how:
                case "cut":
                    proxy.refuse = True
                    proxy.cut()
                case "hold" | "up" | "down":
                    proxy.hold(up=how != "down", down=how != "up")
                case "loss":
                    proxy.loss = 0.5
                case _:
                    proxy.delay = 2.0
        blinds = {node} if servers != "redis" and how in ("cut", "hold", "up", "down") else set()
        try:
            async with self._in_force(name, blinds=blinds, note=f"{servers} of node {node}: {how}"):
                await asyncio.sleep(seconds)
        finally:
            for proxy in both:
                proxy.heal()

    # -- PostgreSQL

    async def _f12(self, name: str, seconds: float, how: str) -> None:
        async with self._locks["postgres"]:
            match how:
                case "kill":
                    await self._killed(name, seconds)
                case "stop":
                    await self._stopped(name, seconds)
                case "disk":
                    await self._disk_full(name, seconds)
                case "read-only":
                    await self._read_only(name, seconds)
                case _:
                    await self._full(name, seconds)

    async def _killed(self, name: str, seconds: float) -> None:
        self.world.postgres.signal(signal.SIGKILL)
        try:
            async with self._in_force(name, blinds=self._all, note="kill"):
                await asyncio.sleep(seconds)
        finally:
            await self.world.start_again(self.world.postgres)

    async def _stopped(self, name: str, seconds: float) -> None:
        self.world.postgres.signal(signal.SIGSTOP)
        try:
            async with self._in_force(name, blinds=self._all, note="stop"):
                await asyncio.sleep(seconds)
        finally:
            self.world.postgres.signal(signal.SIGCONT)

    async def _read_only(self, name: str, seconds: float) -> None:
        async with self.world.sql() as connection:
            await connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            await connection.execute("SELECT pg_reload_conf()")
            try:
                async with self._in_force(name, note="read-only"):
                    await asyncio.sleep(seconds)
            finally:
                await connection.execute("SET default_transaction_read_only = off")
                await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
                await connection.execute("SELECT pg_reload_conf()")

    async def _disk_full(self, name: str, seconds: float) -> None:
        """No byte is left for PostgreSQL, which may go down over it."""
        if not self.world.small_disk:
            self.skipped[f"{name} disk"] = "no disk of its own could be mounted"
            return
        database = self.world.postgres
        ballast = database.folder / "ballast"
        await asyncio.to_thread(_fill, ballast)
        try:
            async with self._in_force(name, note="disk full"):
                await asyncio.sleep(seconds)
        finally:
            await asyncio.to_thread(ballast.unlink)
            if not database.running():
                await self.world.start_again(database)

    async def _full(self, name: str, seconds: float) -> None:
        """Out of connections: whoever has one goes on."""
        taken: list[asyncpg.Connection] = []
        with contextlib.suppress(Exception):
            while len(taken) < 220:
                taken.append(await asyncpg.connect(self.world.postgres.url, timeout=2))
        try:
            async with self._in_force(name, note=f"{len(taken)} connections taken"):
                await asyncio.sleep(seconds)
        finally:
            for connection in taken:
                connection.terminate()

    async def _f13(self, name: str, seconds: float, lag: float, how: str, node: int, cut: bool, newcomer: bool) -> None:
        """The primary goes, its standby takes over; the old one comes back, takes no writes and answers reads; then it
        is made the standby. Asynchronous: what was committed in the last while is lost. `node` hears no hints while the
        servers change. `newcomer`: it has just begun, so that its registration may be lost too, and does not reach
        the new primary at first."""
        async with self._locks["postgres"]:
            world = self.world
            here, old = world.nodes[node], world.postgres
            if newcomer:
                newcomer = await self._end(name, node)
            witnesses = self.people.sessions()[:4]
            for session in witnesses:
                session.over = True  # nobody else ends them
            since = time.monotonic()
            if world.schedule.standby == "async":
                world.link.hold()
            try:
                if newcomer:
                    await self._begin(node)
                for session in witnesses:
                    world.keep(self.people.connect(session, node, self.rng.choice(("json", "protobuf"))))
                await self._may_be_lost(lag, set(range(len(self.people.people))) - {s.user for s in witnesses})
                here.valkey.garble = 1.0
                async with contextlib.AsyncExitStack() as stack:
                    if newcomer:
                        for proxy in here.postgres:
                            proxy.hold()
                        await stack.enter_async_context(self._in_force(name, blinds={node}, note=f"node {node}"))
                    await self._fail_over(name, how, cut=cut)
                    at = time.monotonic()
                    world.log(Failover(at, since if world.schedule.standby == "async" else at, at + PUT_BACK))
                    world.keep(self.people.after_failover(since))
                    await self._revoke_by_others(node, witnesses)
                    if newcomer:
                        await asyncio.sleep(world.schedule.lease)
                    await self._revoke_into(node)
            finally:
                here.valkey.garble = 0.0
                for proxy in here.postgres:
                    proxy.heal()
            await self._wake(name, old, how, node)
            await asyncio.to_thread(old.stop)
            await world.follow()

    async def _fail_over(self, name: str, how: str, *, cut: bool) -> None:
        world = self.world
        world.postgres.signal(signal.SIGKILL if how == "kill" else signal.SIGSTOP)
        async with self._in_force(name, blinds=self._all, note=f"{how} {world.schedule.standby}"):
            await asyncio.sleep(0.02)
        await world.promote()
        world.link.cut()
        world.link.heal()
        for node in world.nodes if cut else ():
            for proxy in node.postgres:
                proxy.cut()

    async def _end(self, name: str, node: int) -> bool:
        """A worker is killed; when this returns its registration is gone, and the next one has not begun."""
        here = self.world.nodes[node]
        pid = here.pid
        if not pid:
            return False
        os.kill(pid, signal.SIGKILL)
        async with self._in_force(name, kills={node}, note=f"node {node} ends"), self.world.sql() as connection:
            await self.world.until(lambda: _true(here.pid not in (0, pid)), 20, every=0.005)
            if here.pid in (0, pid):
                return False
            os.kill(here.pid, signal.SIGSTOP)
            return await self.world.until(
                lambda: connection.fetchval("SELECT NOT EXISTS (SELECT FROM processes WHERE pid = $1)", pid), 15
            )

    async def _begin(self, node: int) -> None:
        """The next one registers."""
        pid = self.world.nodes[node].pid
        if pid:
            os.kill(pid, signal.SIGCONT)
        await self.world.until(lambda: self._back(node, 0), 20, every=0.02)

    async def _may_be_lost(self, lag: float, users: set[int]) -> None:
        """Deeds of the last moments, of users of whom nobody is a witness; the schedule has more."""
        await asyncio.sleep(max(0.0, lag - 0.5))
        people = self.people
        deed = self.rng.choice([people.do_password, people.do_disable, people.do_login])
        some = self.rng.sample(sorted(users), 4)
        self.world.keep(deed(some[0], 0))
        await asyncio.gather(*(people.do_rights(user, self.rng.choice(self._all)) for user in some))
        await people.do_burst(2, 0.05, 0)

    async def _revoke_by_others(self, node: int, victims: list[Any]) -> None:
        """At once, until one of the others can."""
        others = [n for n in self._all if n != node] or [node]

        async def one(session: Any) -> None:
            for _ in range(8):
                if await self.people.revoke(self.rng.choice(others), {"sid": session.sid}, [session]) != "refused":
                    return
                await asyncio.sleep(0.1)

        await asyncio.gather(*map(one, victims))

    async def _wake(self, name: str, old: Database, how: str, node: int) -> None:
        """The old primary answers: who has a connection to it still, or one node that is led there."""
        if how == "stop":
            old.wake_read_only()
            async with self._in_force(name, note="the old primary wakes up"):
                await asyncio.sleep(1.0)
            return
        await asyncio.to_thread(old.stop)
        await asyncio.to_thread(old.left_behind)
        here = self.world.nodes[node]
        here.led = self.world.databases.index(old)
        try:
            for proxy in here.postgres:
                proxy.cut()
            blinds = {node} if len(here.postgres) == 1 else set()
            async with self._in_force(name, blinds=blinds, note=f"the old primary answers node {node}"):
                await asyncio.sleep(1.5 * self.world.schedule.lease)
        finally:
            here.led = -1
            for proxy in here.postgres:
                proxy.cut()

    async def _f14(self, name: str, seconds: float, what: str) -> None:
        statement = {
            "head": "SELECT * FROM revocation_head FOR UPDATE",
            "pool": "LOCK TABLE sessions IN ACCESS EXCLUSIVE MODE",
        }[what]
        async with self._locks["postgres"], self.world.sql() as connection:
            with contextlib.suppress(asyncpg.PostgresError, OSError):
                async with connection.transaction():
                    await connection.execute("SET LOCAL lock_timeout = '2s'")
                    await connection.execute(statement)
                    async with self._in_force(name, note=what):
                        await asyncio.sleep(seconds)

    # -- clocks

    async def _f15(self, name: str, seconds: float, node: int, step: str) -> None:
        clock = self.world.postgres.clock if node == DATABASE else self.world.nodes[node].faketime
        if clock is None:
            self.skipped[name] = "libfaketime is not installed"
            return
        await asyncio.to_thread(clock.write_text, step)
        try:
            async with self._in_force(name, note=f"{'database' if node == DATABASE else f'node {node}'} {step} s"):
                await asyncio.sleep(seconds)
        finally:
            await asyncio.to_thread(clock.write_text, "+0")


def _fill(file: Path) -> None:
    piece = bytes(1 << 20)
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as out:
        while out.write(piece):
            pass


async def _true(found: bool) -> bool:
    return found
