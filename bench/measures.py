"""The rows of the table: what is set up, what is done to it, what is counted.

A `Bed` is one server with a load client of its own. Where servers are compared, all beds stand at the same time and
take turns, round by round, so that what the machine does meanwhile meets each of them; the figure is the median of the
rounds. CPU is that of the server's processes and holds everything that they did meanwhile, divided by the units.
"""

import asyncio
import contextlib
import itertools
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.client import Closed, LoadClient, Opened, Peer
from bench.machine import resident_kb
from bench.servers import PUBLISHERS, Cores, Server, Usage, Wardgate
from bench.table import Figure, Row

DATA = b'"' + b"x" * 126 + b'"'  # 128 bytes of JSON
CHANNEL = "bench"
DRAIN_SECONDS = 15.0


@dataclass(frozen=True)
class Sizes:
    """How large, how long, how often."""

    subscribers: int = 2000
    rate: float = 20.0
    rounds: int = 3
    seconds: float = 5.0
    idle: int = 10_000
    settle: float = 27.0  # first pings come up to one interval after a connect
    idle_seconds: float = 25.0
    connects: int = 1000
    cookies: int = 200
    channels: int = 2000
    channel_rate: float = 2000.0
    revoked: int = 200
    everyone: int = 10_000
    few: int = 1000
    many: int = 19_000
    ping: int = 25


FULL = Sizes()
QUICK = Sizes(
    subscribers=300,
    rounds=1,
    seconds=2.0,
    idle=500,
    settle=5.5,
    idle_seconds=5.0,
    connects=200,
    cookies=20,
    channels=200,
    channel_rate=200.0,
    revoked=20,
    everyone=300,
    few=200,
    many=1000,
    ping=5,
)


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(text, file=sys.stderr, flush=True)


class Sample(NamedTuple):
    """What happened between two moments."""

    usage: Usage
    delivered: int
    frames: int
    seconds: float

    def micros(self, units: int | None = None) -> float:
        """Server CPU per delivery, or per one of `units`, in microseconds."""
        return self.usage.server * 1e6 / max(1, self.delivered if units is None else units)


class Bed:
    """A server and the client that loads it."""

    def __init__(self, server: Server, client: LoadClient) -> None:
        self.server = server
        self.client = client
        self.opened = 0
        self.note = ""

    async def open(self, peers: Sequence[Peer], window: int = 64) -> Opened:
        done = await self.client.open(self.server.door, peers, window=window)
        self.opened += done.opened
        if done.trouble:
            self.note = f"{done.opened:,} of {len(peers):,} connections ({done.trouble})"
            say(f"  {self.server.name}: {self.note}")
        if not done.opened:
            raise RuntimeError(f"{self.server.name}: no connection: {done.trouble}")
        return done

    async def shut(self) -> None:
        await self.client.shut()
        self.opened = 0
        await asyncio.sleep(1.0)

    async def sample(self, work: Callable[[], Awaitable[None]]) -> Sample:
        """CPU and deliveries while `work` runs."""
        usage, counts, began = self.server.usage(), self.client.counts(), time.monotonic()
        await work()
        used, after = self.server.usage() - usage, self.client.counts()
        if after.ended > counts.ended:
            reasons = sorted({f"{c.code} {c.reason}" for c in await self.client.closes()})
            self.note = f"{after.ended - counts.ended:,} connections lost: {'; '.join(reasons[:3])}"
            self.opened = after.ready
        return Sample(used, after.delivered - counts.delivered, after.frames - counts.frames, time.monotonic() - began)

    async def warm(self, connections: int) -> None:
        """What is loaded, compiled or cached by the first connections is not theirs."""
        await self.open(self.server.peers(connections, lambda n: CHANNEL))
        for _ in range(10):
            await self.server.publish(CHANNEL, DATA)
        await self.client.until(self.client.counts().delivered + 1, 1)
        await self.shut()


class Run:
    """One run: which servers, which sizes, which cores."""

    def __init__(self, makers: dict[str, Callable[[Cores], Server]], sizes: Sizes, cores: Cores) -> None:
        self.makers = makers
        self.sizes = sizes
        self.cores = cores

    @contextlib.asynccontextmanager
    async def bed(self, server: Server) -> AsyncIterator[Bed]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(server.stop)
            await server.start()
            client = await LoadClient.start(self.cores.rest)
            stack.push_async_callback(client.stop)
            yield Bed(server, client)

    @contextlib.asynccontextmanager
    async def beds(self, wanted: Callable[[type[Server]], bool] = lambda kind: True) -> AsyncIterator[list[Bed]]:
        """A bed for each server of this run that `wanted` takes."""
        async with contextlib.AsyncExitStack() as stack:
            made = []
            for maker in self.makers.values():
                server = maker(self.cores)
                if wanted(type(server)):
                    made.append(await stack.enter_async_context(self.bed(server)))
                else:
                    await server.stop()
            yield made


# Publishing


async def paced(bed: Bed, channels: Sequence[str], rate: float, seconds: float, fanout: int) -> Sample:
    """So many publications a second, to one channel after the other, until each has reached its subscribers."""
    expected = bed.client.counts().delivered + int(rate * seconds) * fanout

    async def work() -> None:
        began = time.monotonic()
        under_way: set[asyncio.Task[None]] = set()
        for number, channel in zip(range(int(rate * seconds)), itertools.cycle(channels), strict=False):
            await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
            task = asyncio.ensure_future(bed.server.publish(channel, DATA))
            under_way.add(task)
            if len(under_way) >= 4 * PUBLISHERS:
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        await asyncio.gather(*under_way)
        if not await bed.client.until(expected, DRAIN_SECONDS):
            missing = expected - bed.client.counts().delivered
            bed.note = f"{missing:,} deliveries missing"

    return await bed.sample(work)


async def as_fast_as_it_goes(bed: Bed, channel: str, seconds: float, fanout: int) -> Sample:
    """32 publishers, each with one request at a time; at most 32 publications that have not reached everybody."""
    published = 0
    before = bed.client.counts().delivered

    async def publisher(until: float) -> None:
        nonlocal published
        while time.monotonic() < until:
            if published - (bed.client.counts().delivered - before) / fanout >= PUBLISHERS:
                await asyncio.sleep(0.001)
                continue
            published += 1
            await bed.server.publish(channel, DATA)

    async def work() -> None:
        until = time.monotonic() + seconds
        await asyncio.gather(*(publisher(until) for _ in range(PUBLISHERS)))
        if not await bed.client.until(before + published * fanout, DRAIN_SECONDS):
            bed.note = f"{before + published * fanout - bed.client.counts().delivered:,} deliveries missing"

    return await bed.sample(work)


def stores(samples: Sequence[Sample], unit: str = "delivery") -> str:
    """What PostgreSQL and Valkey took beside it."""
    delivered = sum(s.delivered for s in samples) or 1
    valkey = sum(s.usage.valkey for s in samples) * 1e6 / delivered
    postgres = sum(s.usage.postgres for s in samples) * 1e6 / delivered
    return f"Valkey {valkey:.2f}, PostgreSQL {postgres:.2f} us per {unit}"


# The measures


async def fanout(run: Run) -> list[Row]:
    """Many subscribers of one channel: at a steady rate, and as fast as it goes."""
    sizes = run.sizes
    steady = Row(f"fan-out, {sizes.subscribers:,} subscribers, {sizes.rate:g}/s", "us/delivery", "<= 1.4 x floor")
    fast = Row(f"fan-out, {sizes.subscribers:,} subscribers, as fast as it goes", "us/delivery", "<= 0.5 x floor")
    async with run.beds() as beds:
        for bed in beds:
            await bed.open(bed.server.peers(sizes.subscribers, lambda n: CHANNEL))
            await paced(bed, [CHANNEL], sizes.rate * bed.server.share, 1.0, bed.opened)
        for row, what in ((steady, "paced"), (fast, "fast")):
            samples: dict[str, list[Sample]] = {bed.server.name: [] for bed in beds}
            for number, bed in itertools.product(range(sizes.rounds), beds):
                say(f"  {what} {number + 1}: {bed.server.name}")
                if row is steady:
                    rate = sizes.rate * bed.server.share
                    sample = await paced(bed, [CHANNEL], rate, sizes.seconds, bed.opened)
                else:
                    sample = await as_fast_as_it_goes(bed, CHANNEL, sizes.seconds, bed.opened)
                samples[bed.server.name].append(sample)
            record(row, beds, samples)
            for bed in beds:
                if row is fast:
                    rates = sorted(s.delivered / s.seconds for s in samples[bed.server.name])
                    row.extra[f"{bed.server.name} deliveries a second"] = f"{rates[len(rates) // 2]:,.0f}"
    return [steady, fast]


def record(row: Row, beds: Sequence[Bed], samples: dict[str, list[Sample]]) -> None:
    """Samples per delivery into a row."""
    for bed in beds:
        mine = samples[bed.server.name]
        row.figures[bed.server.name] = Figure([s.micros() for s in mine], bed.note)
        if any(s.usage.valkey for s in mine):
            row.extra[f"{bed.server.name} stores"] = stores(mine)
        joined = sum(s.delivered for s in mine) / max(1, sum(s.frames for s in mine))
        if joined > 1.005:
            row.extra[f"{bed.server.name} deliveries a frame"] = f"{joined:.2f}"


async def channels(run: Run) -> list[Row]:
    """Many channels with few subscribers: the cost of a publication, not of a delivery."""
    sizes = run.sizes
    rows = []
    for subscribers, reach in ((1, "<= 200"), (20, "<= 18")):
        count = max(1, sizes.channels // subscribers)
        crowd = f"{subscribers} subscriber{'s' * (subscribers > 1)} each"
        row = Row(f"{count:,} channels, {crowd}, {sizes.channel_rate:,.0f}/s", "us/delivery", reach)
        names = [f"{CHANNEL}{n}" for n in range(count)]
        async with run.beds(lambda kind: kind.tokens) as beds:
            for bed in beds:
                await bed.open(bed.server.peers(count * subscribers, lambda n, names=names: names[n % len(names)]))  # type: ignore[misc]
                await paced(bed, names, sizes.channel_rate, 1.0, subscribers)
            samples: dict[str, list[Sample]] = {bed.server.name: [] for bed in beds}
            for number, bed in itertools.product(range(sizes.rounds), beds):
                say(f"  {count} channels {number + 1}: {bed.server.name}")
                sample = await paced(bed, names, sizes.channel_rate, sizes.seconds, subscribers)
                samples[bed.server.name].append(sample)
            record(row, beds, samples)
        rows.append(row)
    return rows


async def idle(run: Run) -> list[Row]:
    """Connections that do nothing but answer pings: their memory, and their processor time."""
    sizes = run.sizes
    memory = Row(f"memory of an idle connection, {sizes.idle:,} of them", "KB RSS", "<= 12")
    work = Row(f"an idle connection, pings every {sizes.ping} s", "us/s", "<= 1.5")
    async with run.beds(lambda kind: kind.name != "floor") as beds:
        for bed in beds:
            await bed.warm(min(100, sizes.idle))
            before = resident_kb(bed.server.pids())
            count = min(sizes.idle, bed.server.most)
            say(f"  {count:,} connections: {bed.server.name}")
            await bed.open(bed.server.peers(count, lambda n: f"{CHANNEL}{n % 100}"))
            await asyncio.sleep(min(3.0, sizes.settle))
            grown = resident_kb(bed.server.pids()) - before
            memory.figures[bed.server.name] = Figure([grown / bed.opened], bed.note)
        say(f"  waiting {sizes.settle:g} s for the first pings, then {sizes.idle_seconds:g} s")
        await asyncio.sleep(sizes.settle)
        before_all = [bed.server.usage() for bed in beds]
        await asyncio.sleep(sizes.idle_seconds)
        for bed, before_one in zip(beds, before_all, strict=True):
            used = bed.server.usage() - before_one
            if bed.server.pings:
                per = used.server * 1e6 / sizes.idle_seconds / bed.client.counts().ready
                work.figures[bed.server.name] = Figure([per], bed.note)
            lost = bed.opened - bed.client.counts().ready
            if lost:
                reasons = {f"{c.code} {c.reason}" for c in await bed.client.closes()}
                memory.extra[bed.server.name] = f"{lost:,} connections were lost: {'; '.join(sorted(reasons)[:3])}"
    return [memory, work]


async def connect(run: Run) -> list[Row]:
    """Handshake, authentication and one subscribe; 64 at a time, with a token that the server has not seen."""
    sizes = run.sizes
    by_token = Row("connect by token: handshake, connect, subscribe", "us/connection", "<= 360")
    by_cookie = Row("connect by session cookie", "us/connection", "<= 360")
    async with run.beds() as beds:
        for bed in beds:
            await bed.warm(50)
        rounds: dict[str, list[float]] = {bed.server.name: [] for bed in beds}
        beside: dict[str, str] = {}
        for number, bed in itertools.product(range(sizes.rounds), beds):
            say(f"  connect {number + 1}: {bed.server.name}")
            sample = await connecting(bed, bed.server.peers(sizes.connects, lambda n: CHANNEL))
            rounds[bed.server.name].append(sample.micros(bed.opened))
            beside[bed.server.name] = stores([sample._replace(delivered=bed.opened)], "connection")
            await bed.shut()
        for bed in beds:
            by_token.figures[bed.server.name] = Figure(rounds[bed.server.name], bed.note)
            if bed.server.tokens:
                by_token.extra[f"{bed.server.name} stores"] = beside[bed.server.name]
            if isinstance(bed.server, Wardgate):
                by_cookie.figures[bed.server.name] = await connect_by_cookie(bed, bed.server, sizes)
    return [by_token, by_cookie]


async def connecting(bed: Bed, peers: Sequence[Peer]) -> Sample:
    async def work() -> None:
        await bed.open(peers)

    return await bed.sample(work)


async def connect_by_cookie(bed: Bed, server: Wardgate, sizes: Sizes) -> Figure:
    """A few hundred people, several connections each: every connection reads its session from the cookie."""
    people = await server.people(sizes.cookies, "cookie")
    turns = itertools.cycle(people)
    rounds = []
    for _ in range(sizes.rounds):
        peers = [Peer([CHANNEL], cookie=next(turns).cookie) for _ in range(sizes.connects)]
        sample = await connecting(bed, peers)
        rounds.append(sample.micros(bed.opened))
        await bed.shut()
    return Figure(rounds, bed.note)


async def revoke(run: Run) -> list[Row]:
    """From the request's first byte to the close frame in the client. Two workers, on any core."""
    if "wardgate" not in run.makers:
        return []
    sizes = run.sizes
    anywhere = Cores(run.cores.server | run.cores.rest, run.cores.server | run.cores.rest)
    server = Wardgate(anywhere, workers=2)
    names = ("p50", "p99", "max")
    one = [Row(f"revoke one session of {sizes.everyone:,}: {p}", "ms", "<= 20" * (p == "p99")) for p in names]
    all_ = [
        Row(f"revoke everyone, {sizes.everyone:,} sockets, 2 workers: {p}", "ms", "<= 150" * (p == "p99"))
        for p in names
    ]
    async with Run(run.makers, sizes, anywhere).bed(server) as bed:
        people = await server.people(sizes.revoked, "token")
        await bed.open([Peer([CHANNEL], token=person.token) for person in people])
        await bed.open(server.peers(sizes.everyone, lambda n: f"{CHANNEL}{n % 100}"))
        await bed.client.closes()
        say(f"  {len(people)} sessions, one by one")
        spread(one, await revoke_each(bed, server, [person.sid for person in people]))
        say("  everyone")
        spread(all_, await revoke_everyone(bed, server))
        for row in (one[0], all_[0]):
            if bed.note:
                row.extra["wardgate"] = bed.note
    return one + all_


async def revoke_each(bed: Bed, server: Wardgate, sids: Sequence[str]) -> list[float]:
    began = []
    for sid in sids:
        began.append(time.monotonic())
        await server.revoke({"sid": sid})
        await asyncio.sleep(0.02)
    closed = await closes(bed, len(sids), 10.0)
    return [(c.at - began[c.peer]) * 1e3 for c in closed if c.peer < len(began)]


async def revoke_everyone(bed: Bed, server: Wardgate) -> list[float]:
    count = bed.client.counts().ready
    confirm = (await server.revoke({"all": True}, dry_run=True))["confirm"]
    began = time.monotonic()
    await server.revoke({"all": True}, confirm=confirm)
    return [(c.at - began) * 1e3 for c in await closes(bed, count, 20.0)]


async def closes(bed: Bed, count: int, timeout: float) -> list[Closed]:
    """The next `count` closes; fewer, with a note, when they do not come in time."""
    found: list[Closed] = []
    end = time.monotonic() + timeout
    while len(found) < count and time.monotonic() < end:
        await asyncio.sleep(0.2)
        found += await bed.client.closes()
    if len(found) < count:
        bed.note = f"{count - len(found)} of {count} sockets were not closed in {timeout:g} s"
    odd = {f"{c.code} {c.reason}" for c in found if c.code != 4501}
    if odd:
        bed.note = f"closed otherwise: {'; '.join(sorted(odd)[:3])}"
    return found


def spread(rows: Sequence[Row], delays: Sequence[float]) -> None:
    """Median, 99th percentile and maximum into three rows."""
    if not delays:
        return
    ordered = sorted(delays)
    for row, part in zip(rows, (0.5, 0.99, 1.0), strict=True):
        row.figures["wardgate"] = Figure([ordered[min(len(ordered) - 1, int(part * len(ordered)))]])


async def scale(run: Run) -> list[Row]:
    """The same number of deliveries a second to few and to many connections, and what a connection weighs."""
    sizes = run.sizes
    budget = sizes.rate * sizes.subscribers
    rows = [Row(f"fan-out, {n:,} subscribers", "us/delivery") for n in (sizes.few, sizes.many)]
    growth = Row(f"growth, {sizes.few:,} -> {sizes.many:,} subscribers", "x", "<= floor")
    weight = [Row(f"memory of a connection, {n:,} of them", "KB RSS") for n in (sizes.few, sizes.many)]
    arrival = [Row(f"connect by token, up to {n:,}", "us/connection") for n in (sizes.few, sizes.many)]
    weight[1].reach = arrival[1].reach = "flat"
    async with run.beds(lambda kind: kind.tokens or kind.name == "floor") as beds:
        base: dict[str, int] = {}
        for bed in beds:
            await bed.warm(100)
            base[bed.server.name] = resident_kb(bed.server.pids())
        for count, row, heavy, come in zip((sizes.few, sizes.many), rows, weight, arrival, strict=True):
            for bed in beds:
                say(f"  {count:,} connections: {bed.server.name}")
                before = bed.opened
                sample = await connecting(bed, bed.server.peers(count - before, lambda n: CHANNEL))
                come.figures[bed.server.name] = Figure([sample.micros(bed.opened - before)], bed.note)
                await paced(bed, [CHANNEL], budget / count, 1.0, bed.opened)
                grown = resident_kb(bed.server.pids()) - base[bed.server.name]
                if bed.server.name != "floor":
                    heavy.figures[bed.server.name] = Figure([grown / bed.opened], bed.note)
            samples: dict[str, list[Sample]] = {bed.server.name: [] for bed in beds}
            for number, bed in itertools.product(range(sizes.rounds), beds):
                say(f"  {count:,} subscribers {number + 1}: {bed.server.name}")
                sample = await paced(bed, [CHANNEL], budget / count, sizes.seconds, bed.opened)
                samples[bed.server.name].append(sample)
            record(row, beds, samples)
        for bed in beds:
            name = bed.server.name
            growth.figures[name] = Figure([rows[1].figures[name].value / rows[0].figures[name].value])
    return [*rows, growth, *arrival, *weight]


MEASURES: dict[str, Callable[[Run], Awaitable[list[Row]]]] = {
    "fanout": fanout,
    "channels": channels,
    "connect": connect,
    "idle": idle,
    "revoke": revoke,
    "scale": scale,
}
