"""What breaks the world, by the names of the table in docs/revocation.md. A fault is written down once it is in force,
and its end before it is taken away, so that the checker never counts more than there was."""

import asyncio
import contextlib
import os
import random
import re
import resource
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg

from auth import keys as signing
from config import migrate
from config.database import connect
from config.servers import ServerError
from config.settings import Settings
from sessions import log, restoring
from sessions.model import Row
from tests.campaign.client import Client
from tests.campaign.crowd import BACK, GUESTS, WINDOW, Crowd
from tests.campaign.history import Failover, FaultBegan, FaultEnded, Finding
from tests.campaign.network import DELAYS
from tests.campaign.people import People
from tests.campaign.proxy import Proxy
from tests.campaign.schedule import CANCELLING, DATABASE, NEW_KIND
from tests.campaign.standby import Cache, Database
from tests.campaign.world import Unreachable, World

BUS = b"wardgate-bus"
STEPS = re.compile(r"^wardgate_clock_steps_total(?:\{[^}]*\})? (\S+)$", re.MULTILINE)
AGE = 8.0
"""Seconds after which every gateway knows the next signing key, if nothing was broken: they look once a second."""
SPARE = 2 << 20
"""Bytes of address space that are left to a gateway without memory."""
STARVED = 3.0
"""Seconds that half of the logins may take while a crowd comes back."""
PUT_BACK = 4.0
"""Seconds after a failover in which whoever remembers must have put back what was lost."""


class Faults:
    """`run(args)` of a schedule's step."""

    def __init__(self, world: World, people: People) -> None:
        self.world, self.people = world, people
        self.rng = random.Random(world.schedule.seed + 2)
        self.skipped = world.skipped
        self.notes: list[str] = []  # what was measured on the way
        self._locks = {"postgres": asyncio.Lock(), "valkey": asyncio.Lock(), "gateways": asyncio.Lock()}
        self._troubled: Counter[Proxy] = Counter()
        self._spans: list[list[Any]] = []  # of faults: name, began, ended

    async def run(self, args: dict[str, Any]) -> None:
        """One fault from its begin to its end, healed."""
        rest = {key: value for key, value in args.items() if key not in ("name", "for")}
        await getattr(self, f"_{args['name'].lower()}")(args["name"], args["for"], **rest)

    @contextlib.asynccontextmanager
    async def _in_force(
        self, name: str, *, blinds: Any = (), kills: Any = (), deafens: Any = (), halts: Any = (), note: str = ""
    ) -> AsyncIterator[None]:
        id = next(self.world.ids)
        began = time.monotonic()
        blind, killed, deaf, halted = (frozenset(nodes) for nodes in (blinds, kills, deafens, halts))
        self.world.log(FaultBegan(began, id, name, blind, killed, deaf, note, halted))
        span: list[Any] = [name, began, float("inf")]
        self._spans.append(span)
        try:
            yield
        finally:
            span[2] = time.monotonic()
            self.world.log(FaultEnded(span[2], id))

    def _alone(self, name: str, since: float) -> bool:
        """Whether nothing else was broken since then, so that what is missed is this fault's."""
        return not any(other != name and ended >= since for other, _, ended in self._spans)

    def _found(self, name: str, what: str, *, since: float) -> None:
        if self._alone(name, since):
            self.world.log(Finding(time.monotonic(), name, what))

    @property
    def _all(self) -> range:
        return range(len(self.world.nodes))

    # -- Redis

    async def _f1(self, name: str, seconds: float) -> None:
        async with self._locks["valkey"]:
            killed = self.world.valkey
            os.kill(killed.pid, signal.SIGKILL)
            try:
                async with self._in_force(name):
                    await asyncio.sleep(seconds)
            finally:
                await self.world.start_again(killed)
            await self.world.until(self.world.whole, 20)

    async def _f2(self, name: str, seconds: float) -> None:
        async with self._locks["valkey"]:
            pid = self.world.valkey.pid
            os.kill(pid, signal.SIGSTOP)
            try:
                async with self._in_force(name):
                    await asyncio.sleep(seconds)
            finally:
                os.kill(pid, signal.SIGCONT)
            await self.world.until(self.world.whole, 20)

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
            if world.sentinels:
                await self._elected(name, old, seconds)
                return
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
            if world.sentinels:
                await self._asleep_through_the_election(name, old, seconds)
                return
            await self._other_master()
            await asyncio.gather(*(self._left_behind(name, node, seconds) for node in self._all))
            await asyncio.to_thread(old.stop)
            await self._replica(old)

    async def _left_behind(self, name: str, node: int, seconds: float) -> None:
        proxy, began = self.world.nodes[node].valkey, time.monotonic()
        left = proxy.named(BUS)
        async with self._in_force(name, deafens={node}, note=f"node {node}"):
            proxy.cut(but=BUS)
            gone = await self.world.until(lambda: _true(not proxy.named(BUS) & left), seconds, every=0.02)
        if not gone:
            self._found(name, f"node {node}'s subscriber stayed on a demoted master for {seconds:g} s", since=began)

    async def _elected(self, name: str, old: Cache, seconds: float) -> None:
        """By the Sentinel: the replica hears nothing for a while, then the master is killed."""
        world = self.world
        other = next(cache for cache in world.caches if cache is not old)
        await other.deafen()
        await asyncio.sleep(seconds)
        async with self._one_asleep():
            os.kill(old.pid, signal.SIGKILL)
            async with self._in_force(name, note="by two of three sentinels"):
                await world.until(lambda: _true(world.valkey is other), 12)
        await other.hear()
        await asyncio.to_thread(old.stop)
        await world.start_again(old)
        await world.until(world.whole, 20)

    @contextlib.asynccontextmanager
    async def _one_asleep(self) -> AsyncIterator[None]:
        """One Sentinel of three says nothing, and after that names for a moment who was the master before."""
        pid = self.rng.choice(self.world.sentinels).pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    async def _asleep_through_the_election(self, name: str, old: Cache, seconds: float) -> None:
        """The master is stopped, another is elected, and it wakes up and takes itself for the master still."""
        os.kill(old.pid, signal.SIGSTOP)
        try:
            async with self._in_force(name, note="asleep through the election"):
                await self.world.until(lambda: _true(self.world.valkey is not old), seconds)
                os.kill(old.pid, signal.SIGCONT)
                await asyncio.sleep(1.5)
        finally:
            os.kill(old.pid, signal.SIGCONT)
        await self.world.until(self.world.whole, 20)

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
        here = self.world.nodes[node]
        here.garble(1.0 if garble == "all" else 0.5)
        forger = self.world.keep(self._forge())
        try:
            async with self._in_force(name, note=f"{garble} to node {node}"):
                await asyncio.sleep(seconds)
        finally:
            here.garble(0.0)
            forger.cancel()
            for proxy in here.caches:
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
            async with self._in_force(name, halts={node}, note=f"node {node} for {seconds:.2f} s"):
                await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def _f9(self, name: str, seconds: float, node: int) -> None:
        pid = self.world.nodes[node].pid
        if pid:
            async with self._in_force(name, halts={node}, note=f"node {node}"):
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
        here.garble(1.0 if deaf else 0.0)
        self._stall(node, deaf)
        try:
            async with self._in_force(name, kills={node}, note=f"node {node}"):
                await self.world.until(lambda: self._back(node, pid), 20, every=0.02)
                await self._revoke_into(node)
                for session in self._dead()[-6:]:
                    self.world.keep(self.people.ghost(session, node))
        finally:
            here.garble(0.0)
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
        """Nothing passes any more between a client and its gateway, and TCP lives on: pings find it, and the place that
        its address has in the cap is free again, on every gateway."""
        world, sessions = self.world, self.people.sessions()
        if not sessions:
            return
        session = self.rng.choice(sessions)
        client = Client(world.log, codec, session.sid, self.people.people[session.user].id, node)
        channel, began = f"game:half{client.number}", time.monotonic()
        proxy = Proxy(lambda: world.nodes[node].port, self.rng)
        await proxy.start()
        gone = freed = True
        try:
            with contextlib.suppress(ConnectionError, TimeoutError):
                if await client.dial(proxy.port, session.access, rude=True) and await client.subscribe(channel):
                    proxy.hold()
                    async with self._in_force(name):
                        gone = await world.until(lambda: self._absent(node, channel), seconds)
                        other = self.rng.choice(self._all)
                        freed = await world.until(lambda: self._let_in(session, other, client.address), 3.0)
        finally:
            client.hang_up()
            await proxy.close()
        if not gone:
            self._found(name, f"a half-open connection to node {node} was there after {seconds:g} s", since=began)
        elif not freed and not session.over:
            self._found(name, f"the place of a connection that went is not free on node {other}", since=began)

    async def _let_in(self, session: Any, node: int, address: str) -> bool:
        """Whether a connection from this address is let in, the only one that may be."""
        user = self.people.people[session.user].id
        client = Client(self.world.log, "json", session.sid, user, node, address=address)
        try:
            return await client.dial(self.world.nodes[node].port, session.access)
        finally:
            client.hang_up()

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
        which = resource.RLIMIT_AS if what == "memory" else resource.RLIMIT_NOFILE
        before = resource.prlimit(pid, which)
        resource.prlimit(pid, which, (await asyncio.to_thread(_used, pid, what), before[1]))
        try:
            dies = {node} if what == "memory" else set()  # C code ends a process that gets none
            async with self._in_force(name, kills=dies, note=f"{what} of node {node}"):
                if what == "memory":
                    self.world.keep(self._eat(node))
                await asyncio.sleep(seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, which, before)

    async def _eat(self, node: int) -> None:
        """Large requests, publications and logins, each of which wants memory that is not there."""
        for n in range(8):
            self.world.keep(self.people.do_login(self.rng.randrange(len(self.people.people)), node))
            for size in (100_000, 900_000):
                body = {"channel": f"big:{n}", "data": {"fill": "x" * size}}
                with contextlib.suppress(Unreachable):
                    await self.world.call(node, "POST", "/api/publish", body, timeout=2.0)

    # -- a crowd

    async def _f18(self, name: str, seconds: float, node: int, how: str) -> None:
        """Many sockets come back at once, after a gateway was killed or everyone's session was ended, while people log
        in. The gateways let in so many a second, and logins go on."""
        world, people = self.world, self.people
        crowd = Crowd(people, world.schedule.crowd, self.rng)
        async with self._locks["gateways"]:
            pid, began = world.nodes[node].pid, time.monotonic()
            try:
                if not pid:
                    return
                if not await crowd.gather(15.0 + world.schedule.crowd / world.schedule.rate):
                    self.notes.append(f"{name}: only {crowd.live} of {crowd.size} sockets came")
                    return
                others = [n for n in self._all if n != node] or [node]
                size, storm = await crowd.storm(node if how == "kill" else None), time.monotonic()
                logins = world.keep(self._log_in_all_the_time(others))
                if how == "kill":
                    os.kill(pid, signal.SIGKILL)
                killed = {node} if how == "kill" else ()
                async with self._in_force(name, kills=killed, note=f"{how}, {size} sockets"):
                    if how == "everyone":
                        await people.do_everyone(node, 0.0)
                    back = await crowd.returned(seconds)
                logins.cancel()
                self._judge(name, crowd, storm, began, size=size, back=back)
            finally:
                await crowd.go()

    def _judge(
        self, name: str, crowd: Crowd, storm: float, began: float, *, size: int, back: dict[float, float]
    ) -> None:
        took = sorted(took for at, took in self.people.logins if at >= storm) or [STARVED + 1]
        median, worst, now = took[len(took) // 2], took[-1], time.monotonic()
        returned = ", ".join(f"{share:.0%} in {seconds:.1f} s" for share, seconds in back.items())
        most = max(crowd.most().values(), default=0)
        self.notes.append(
            f"{name}: {size} of {crowd.size} sockets away, back {returned}; {len(took)} logins {median:.2f} s, at most "
            f"{worst:.2f} s; at most {most} let in by a gateway in {WINDOW} s"
        )
        if BACK not in back:
            self._found(name, f"{crowd.away} of {size} are not back after {now - storm:.0f} s", since=began)
        if median > STARVED:
            self._found(name, f"a login took {median:.1f} s while {crowd.size} sockets came back", since=began)
        for node, count in crowd.most().items():
            if count > (WINDOW + 2) * self.world.schedule.rate:  # seconds of ours touch one more of its own, and we lag
                self._found(name, f"node {node} let in {count} connections in {WINDOW} seconds", since=began)

    async def _log_in_all_the_time(self, nodes: list[int]) -> None:
        while True:
            await asyncio.sleep(0.1)
            self.world.keep(self.people.do_login(self.rng.randrange(GUESTS), self.rng.choice(nodes)))

    # -- versions

    async def _f21(self, name: str, seconds: float, first: int) -> None:
        """One gateway after another gets the next version; the first of them writes a row that the version before
        cannot read. Those freeze, say why, and are well again in the next version."""
        world = self.world
        async with self._locks["gateways"], self._locks["postgres"]:
            began = time.monotonic()
            version = 1 + max(int(node.version.read_text()) for node in world.nodes)
            order = [*range(first, len(world.nodes)), *range(first)]
            await self._roll(name, order[0], version)
            async with world.sql() as connection, connection.transaction():
                row = Row(0, uuid4().hex, "", NEW_KIND, 0, min_version=version)  # type: ignore[arg-type]
                await log.write(connection, [log.Group("", [row])])
            old = set(order[1:])
            async with self._in_force(name, blinds=old, note=f"a row for version {version}"):
                await asyncio.sleep(world.schedule.lease + 1.0)
                for node in old:
                    if not await world.until(lambda node=node: self._says(node, "cannot apply row"), 1.0):  # type: ignore[misc]
                        self._found(name, f"node {node} does not say that it cannot apply a row", since=began)
            for node in order[1:]:
                await self._roll(name, node, version)

    async def _says(self, node: int, words: str) -> bool:
        with contextlib.suppress(Unreachable):
            answer = await self.world.call(node, "GET", "/ready", timeout=2.0)
            return answer.status == 503 and words in str(answer.body)
        return False

    async def _roll(self, name: str, node: int, version: int) -> None:
        here = self.world.nodes[node]
        pid, began = here.pid, time.monotonic()
        here.version.write_text(str(version))
        if not pid:
            return
        os.kill(pid, signal.SIGTERM)
        async with self._in_force(name, kills={node}, note=f"node {node} becomes version {version}"):
            if not await self.world.until(lambda: self._back(node, pid), 20, every=0.02):
                self._found(name, f"node {node} is not back as version {version}", since=began)

    # -- what ends in the middle

    async def _f22(self, name: str, seconds: float, node: int) -> None:
        """Requests are cancelled wherever they wait. After that no transaction is open, and no connection is missed."""
        world = self.world
        pid, began = world.nodes[node].pid, time.monotonic()
        if not pid:
            return
        os.kill(pid, signal.SIGUSR2)
        async with self._in_force(name, note=f"node {node}"):
            end = time.monotonic() + max(seconds, CANCELLING + 0.2)
            while time.monotonic() < end:
                deed, more = self.rng.choice(DEEDS)
                user = self.rng.randrange(len(self.people.people))
                world.keep(getattr(self.people, f"do_{deed}")(user, node, **more))
                await asyncio.sleep(0.05)
        if world.nodes[node].pid != pid:
            return
        async with world.sql() as connection:
            if not await world.until(lambda: connection.fetchval(NOT_IDLE), 6.0):
                self._found(name, "a transaction is open that nobody works in", since=began)
        await world.until(lambda: world.look(node), 10.0)  # a frozen one refuses before it wants a connection
        asked = [world.call(node, "GET", "/admin/users?limit=1", timeout=5.0) for _ in range(12)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        if bad := [a for a in answers if isinstance(a, BaseException) or a.status != 200]:
            self._found(name, f"{len(bad)} of 12 requests did not get a connection: {bad[0]}", since=began)

    async def _f23(self, name: str, seconds: float, node: int, share: float) -> None:
        """Scripts run, and their replies are lost with the connection: whoever repeats one does it twice."""
        here = self.world.nodes[node]
        for proxy in here.caches:
            proxy.lose = share
        try:
            async with self._in_force(name, note=f"{share:g} of the replies to node {node}"):
                await asyncio.sleep(seconds)
        finally:
            for proxy in here.caches:
                proxy.lose = 0.0
                self.world.answers["replies lost", 0, ""] += proxy.lost_replies
                proxy.lost_replies = 0

    # -- operations in traffic

    async def _f25(self, name: str, seconds: float, what: str) -> None:
        """Another signing key, or another schema, while everybody goes on asking."""
        async with self._locks["postgres"]:
            probing = self.world.keep(self._ask_all_the_time())
            try:
                async with self._in_force(name, note=what):
                    if what == "rotate":
                        await self._rotate(name)
                    else:
                        await self._migrate()
                    await asyncio.sleep(seconds)
            finally:
                probing.cancel()

    async def _rotate(self, name: str) -> None:
        since = time.monotonic() - AGE
        if not self._alone(name, since):
            self.skipped[f"{name} rotate"] = "not every gateway may know the next key yet"
            return
        async with self.world.sql() as connection, connection.transaction():
            age = await connection.fetchval(NEXT_KEY)
            if age is not None and age >= AGE:
                settings: Settings = self.world.settings
                sealer, algorithm = signing.key_sealer(settings.sessions), settings.auth.access_token_algorithm
                await signing.rotate(connection, sealer, algorithm, now=True)

    async def _migrate(self) -> None:
        """Columns and an index more, as a next version would have them."""
        folder = self.world.folder / "migrations"
        if not folder.exists():
            await asyncio.to_thread(shutil.copytree, migrate.FOLDER, folder)
        number = 9001 + len(list(folder.glob("9*.sql")))
        (folder / f"{number}_more.sql").write_text(
            f"ALTER TABLE sessions ADD COLUMN more_{number} text NOT NULL DEFAULT '';\n"
            f"ALTER TABLE subjects ADD COLUMN more_{number} integer;\n"
            f"ALTER TABLE revocation_log ADD COLUMN more_{number} integer;\n"
            f"ALTER TABLE processes ADD COLUMN more_{number} integer;\n"
        )
        (folder / f"{number + 1}_index.sql").write_text(
            "-- not transactional\n"
            f"CREATE INDEX CONCURRENTLY IF NOT EXISTS more_{number} ON sessions (more_{number});\n"
        )
        await migrate.apply(self.world.postgres.url, folder=folder)

    async def _ask_all_the_time(self) -> None:
        while True:
            sessions = self.people.sessions()
            if sessions:
                await self.people.me(self.rng.choice(sessions), self.rng.choice(self._all))
            await asyncio.sleep(0.03)

    async def _f26(self, name: str, seconds: float, age: float, alive: bool, decide: float) -> None:
        """PostgreSQL is put back to a backup that is `age` seconds old. Who lives through it puts back what was lost;
        where nobody did, nobody serves until the operator has decided."""
        world = self.world
        async with self._locks["postgres"], self._locks["gateways"]:
            server, since = world.postgres, time.monotonic()
            try:
                await asyncio.to_thread(server.back_up)
            except ServerError as error:
                self.skipped[name] = str(error)
                if not server.running():
                    await world.start_again(server)
                return
            await asyncio.sleep(age)
            async with contextlib.AsyncExitStack() as stack:
                server.signal(signal.SIGKILL)
                pids = [] if alive else [node.pid for node in world.nodes]
                for pid in filter(None, pids):
                    os.kill(pid, signal.SIGKILL)
                kills = () if alive else self._all
                await stack.enter_async_context(
                    self._in_force(name, blinds=self._all, kills=kills, note="alive" if alive else "nobody lives")
                )
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(server.put_back)
                if not alive:
                    await world.until(self._nobody_serves, 15)
                    await asyncio.sleep(decide)
                    for session in self.people.sessions():
                        session.over = True
                    ended = self.people.operator_ends_all()
            at = time.monotonic()
            world.log(Failover(at, since, at + PUT_BACK))
            if not alive:
                connection = await connect(world.database)
                await restoring.revoke_all(connection, reason="restored")
                await connection.close()
                self.people.operator_ended(ended)
            world.keep(self.people.after_failover(since))
            await world.follow()

    async def _nobody_serves(self) -> bool:
        """Every gateway has begun again, and says that nobody remembers."""
        said = [await self._says(node, "lost:") for node in self._all]
        return all(said)

    # -- the network

    async def _f11(self, name: str, seconds: float, node: int, servers: str, how: str) -> None:
        here = self.world.nodes[node]
        both = {"postgres": here.postgres, "redis": here.caches, "both": [*here.postgres, *here.caches]}[servers]
        tunnel = here.tunnel if how != "cut" else None
        if tunnel is not None:
            tunnel.trouble({proxy.port for proxy in both}, how)
        for proxy in () if tunnel is not None else both:
            match how:
                case "cut":
                    proxy.refuse = True
                    proxy.cut()
                case "hold" | "up" | "down":
                    proxy.hold(up=how != "down", down=how != "up")
                case "loss":
                    proxy.loss = 0.5
                case _:
                    proxy.delay = DELAYS[how]
        halts = {node} if servers != "redis" else set()
        blinds = halts if how in ("cut", "hold", "up", "down") else set()
        try:
            with self._troubling(both):
                async with self._in_force(name, blinds=blinds, halts=halts, note=f"{servers} of node {node}: {how}"):
                    if how == "slow":
                        self.world.keep(self._race(node))
                    await asyncio.sleep(seconds)
        finally:
            if tunnel is not None:
                self.notes.append(f"{name}: {tunnel.lost} packets lost of node {node} ({how})")
                tunnel.lost = 0
                tunnel.heal()

    @contextlib.contextmanager
    def _troubling(self, proxies: Sequence[Proxy]) -> Iterator[None]:
        """Everything passes again after the last of the faults that are in these proxies at once."""
        self._troubled.update(proxies)
        try:
            yield
        finally:
            self._troubled.subtract(proxies)
            for proxy in proxies:
                if not self._troubled[proxy]:
                    proxy.heal()

    async def _race(self, node: int) -> None:
        """Sessions end while their connections are on the way to be live: the gateway waits for a server meanwhile."""
        others = [n for n in self._all if n != node] or [node]
        victims = self.people.sessions()
        self.rng.shuffle(victims)
        for session in victims[:4]:
            coming = [self.world.keep(self.people.connect(session, node, codec)) for codec in ("json", "protobuf")]
            await asyncio.sleep(self.rng.uniform(0.02, 0.4))
            await self.people.revoke(self.rng.choice(others), {"sid": session.sid}, [session])
            await asyncio.wait(coming, timeout=2.0)

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
                here.garble(1.0)
                async with contextlib.AsyncExitStack() as stack:
                    if newcomer:
                        stack.enter_context(self._troubling(here.postgres))
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
                here.garble(0.0)
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
        began, before = time.monotonic(), await self._steps()
        await asyncio.to_thread(clock.write_text, step)
        try:
            async with self._in_force(name, note=f"{'database' if node == DATABASE else f'node {node}'} {step} s"):
                await asyncio.sleep(seconds)
                after = await self._steps()
        finally:
            await asyncio.to_thread(clock.write_text, "+0")
        for n in self._all if node == DATABASE else ():
            if n in before and n in after and after[n] <= before[n]:
                self._found(name, f"node {n} does not report that the database's clock made a step", since=began)

    async def _steps(self) -> dict[int, float]:
        """Steps of the database's clock that each gateway has reported."""
        found = {}
        for node in self._all:
            with contextlib.suppress(Unreachable):
                text = await self.world.text(node, "/metrics")
                found[node] = sum(map(float, STEPS.findall(text)))
        return found


NEXT_KEY = """
SELECT extract(epoch FROM clock_timestamp() - created_at)::float8 FROM signing_keys WHERE state = 'next'
"""
DEEDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("login", {}),
    ("refresh", {"in_band": False}),
    ("password", {}),
    ("rights", {}),
    ("logout", {"scope": ""}),
)
NOT_IDLE = """
SELECT NOT EXISTS (
    SELECT FROM pg_stat_activity WHERE state LIKE 'idle in transaction%' AND pid <> pg_backend_pid()
    AND state_change < clock_timestamp() - interval '2 seconds'
)
"""


def _used(pid: int, what: str) -> int:
    """The limit under which a process has what it has, and hardly more: files, or bytes of address space."""
    if what == "memory":
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
        return pages * resource.getpagesize() + SPARE
    return 2 + max(int(fd) for fd in os.listdir(f"/proc/{pid}/fd"))


def _fill(file: Path) -> None:
    piece = bytes(1 << 20)
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as out:
        while out.write(piece):
            pass


async def _true(found: bool) -> bool:
    return found
