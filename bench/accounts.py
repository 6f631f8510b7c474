"""The rows of the accounts: logins beside bcrypt alone, `/auth/me` beside a bare handler, tokens from the cache,
whether the time that a login takes tells who has an account, jobs, and queries of a large database."""

import asyncio
import contextlib
import itertools
import json
import math
import random
import re
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from bench.http import Http
from bench.machine import born_on
from bench.measures import Run, say
from bench.servers import ROOT, HttpServer, Wardgate
from bench.table import Figure, Row

PASSWORD = "correct horse battery 7"


class Costly(Wardgate):
    """Passwords as they are hashed in production."""

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "WARDGATE_AUTH_BCRYPT_COST": "12"}


class Hello(HttpServer):
    name = "bare handler"
    about = "bench/references/aiohttp_hello.py: one handler on aiohttp and uvloop that looks at nothing"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "bench.references.aiohttp_hello", str(self.port)]


@contextlib.asynccontextmanager
async def running(*servers: HttpServer) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            stack.push_async_callback(server.stop)
            await server.start()
        yield


async def module(cores: set[int], *arguments: str) -> Any:
    """What a module of the bench prints as JSON, run on `cores`."""
    with born_on(cores):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
        )
    out, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"{arguments[0]} ended with {process.returncode}")
    return json.loads(out)


async def gate(run: Run) -> list[Row]:
    """What the gate costs a delivery: on and off by turns, in one process."""
    rounds = max(3, 5 * run.sizes.rounds)
    members = str(run.sizes.subscribers)
    everything = run.cores.server | run.cores.rest  # its readers are a process on the other core
    found = await module(everything, "bench.gate", "--members", members, "--rounds", str(rounds), "--json")
    rows = []
    for name, figures in found.items():
        row = Row(f"the gate, {name}", "% of the CPU", "<= 2", {"wardgate": Figure([figures["cost"]])})
        row.extra["wardgate"] = f"{figures['on']:.3f} us a delivery with it, {figures['off']:.3f} without"
        rows.append(row)
    return rows


async def tokens(run: Run) -> list[Row]:
    """Access tokens that were verified before: from the cache, and with the judgement of their session."""
    found = await module(run.cores.server, "bench.tokens")
    return [
        Row(f"access token, {name}", "us", reach, {"wardgate": Figure(found[name])})
        for name, reach in (("from the cache", "<= 3"), ("from the cache, its session judged", ""), ("at first", ""))
    ]


async def me(run: Run) -> list[Row]:
    """`GET /auth/me` with a cookie, beside a handler that does nothing, by turns."""
    cpu = Row("GET /auth/me with a cookie", "us of CPU", "<= 2.5 x bare")
    delays = {p: Row(f"GET /auth/me with a cookie, {p}", "ms", "<= 2.5 x bare") for p in ("p50", "p99")}
    ours, bare = Wardgate(run.cores), Hello(run.cores)
    count = 3000 if run.sizes.rounds > 1 else 300
    async with running(ours, bare):
        people = await ours.people(20, "cookie")
        used: dict[str, list[float]] = {}
        waits: dict[str, list[float]] = {}
        for number, server in itertools.product(range(run.sizes.rounds + 1), (ours, bare)):
            say(f"  /auth/me {number}: {server.name}")
            http = Http("127.0.0.1", server.port, {})  # without the key that `server.http` has
            requests = [http.request("GET", "/auth/me", b"", {"Cookie": one.cookie}) for one in people]
            before = server.usage().server
            await hammer(http, requests, count, at_once=8)
            spent = (server.usage().server - before) * 1e6 / count
            one_by_one = await hammer(http, requests, count // 4, at_once=1)
            http.close()
            if number:  # the first is for what is made once
                used.setdefault(server.name, []).append(spent)
                waits.setdefault(server.name, []).extend(one_by_one)
    cpu.figures = {"wardgate": Figure(used[ours.name])}
    cpu.extra["wardgate"] = beside(used[ours.name], used[bare.name], "us")
    for part, row in delays.items():
        values = {name: [quantile(found, part) * 1e3] for name, found in waits.items()}
        row.figures = {"wardgate": Figure(values[ours.name])}
        row.extra["wardgate"] = beside(values[ours.name], values[bare.name], "ms")
    return [cpu, *delays.values()]


def beside(ours: Sequence[float], bare: Sequence[float], unit: str) -> str:
    one, other = statistics.median(ours), statistics.median(bare)
    return f"bare handler {other:.3g} {unit}: {one / other:.2f} x"


async def hammer(http: Http, requests: Sequence[bytes], count: int, *, at_once: int) -> list[float]:
    """So many requests, some at once; how long each waited, in seconds."""
    left = iter(range(count))
    waits: list[float] = []

    async def one() -> None:
        for number in left:
            began = time.perf_counter()
            answer = await http.exchange(requests[number % len(requests)])
            waits.append(time.perf_counter() - began)
            if answer.status != 200:
                raise RuntimeError(f"{answer.status} {answer.body[:200].decode(errors='replace')}")

    await asyncio.gather(*(one() for _ in range(at_once)))
    return waits


def quantile(values: Sequence[float], part: str) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(int(part[1:]) / 100 * len(ordered)))]


async def logins(run: Run) -> list[Row]:
    """Logins a second of CPU at bcrypt cost 12, beside bcrypt alone on the same core, by turns."""
    row = Row("logins at bcrypt cost 12", "per second of CPU", ">= 0.9 x bcrypt alone")
    seconds = max(4.0, 2 * run.sizes.seconds)
    server = Costly(run.cores)
    ours, alone = [], []
    async with running(server):
        await server.people(4, "token")
        for number in range(run.sizes.rounds):
            say(f"  bcrypt, then logins {number + 1}")
            alone.append(await module(run.cores.server, "bench.hashes", str(seconds)))
            ours.append(await log_in_for(server, seconds))
    row.figures["wardgate"] = Figure(ours)
    one, other = statistics.median(ours), statistics.median(alone)
    row.extra["wardgate"] = f"bcrypt alone {other:.2f} a second: {one / other:.2f} x"
    return [row]


async def log_in_for(server: Wardgate, seconds: float) -> float:
    """Logins for each second of CPU of the server, four at once: the hash pool never waits for a request."""
    end, done, before = time.perf_counter() + seconds, 0, server.usage().server

    async def person(number: int) -> None:
        nonlocal done
        body = {"email": f"bench{number}@example.org", "password": PASSWORD, "mode": "token"}
        while time.perf_counter() < end:
            await server.http.call("POST", "/auth/login", body)
            done += 1

    await asyncio.gather(*(person(number) for number in range(4)))
    return done / (server.usage().server - before)


async def timing(run: Run) -> list[Row]:
    """Does the time of a refused login tell who has an account? 500 wrong passwords of each kind, in a random order."""
    count = 500 if run.sizes.rounds > 1 else 60
    server = Proxied(run.cores)
    async with running(server):
        say(f"  {2 * count} people register")
        await server.people(2 * count, "token")
        found = (await server.http.call("GET", "/admin/users?limit=200")).json()
        disabled = 0
        while True:
            for user in found["items"]:
                name = re.fullmatch(r"bench(\d+)@example.org", user["email"])
                if name and int(name[1]) >= count:
                    change = {"disabled": True, "reason": "bench"}
                    await server.http.call("PATCH", f"/admin/users/{user['id']}", change)
                    disabled += 1
            if not found["next"]:
                break
            found = (await server.http.call("GET", f"/admin/users?limit=200&after={found['next']}")).json()
        assert disabled == count
        kinds = {"known": 0, "disabled": count, "unknown": 2 * count}
        order = [(kind, first + n) for kind, first in kinds.items() for n in range(count)]
        random.shuffle(order)
        waits: dict[str, list[float]] = {kind: [] for kind in kinds}
        say(f"  {len(order)} logins, one by one")
        for kind, number in order:
            waits[kind].append(await server.refused(number))
    rows = []
    for one, other in itertools.combinations(kinds, 2):
        p = mann_whitney(waits[one], waits[other])
        row = Row(f"refused logins, {one} and {other}: Mann-Whitney", "p", "> 0.01", {"wardgate": Figure([p])})
        medians = (statistics.median(waits[kind]) * 1e3 for kind in (one, other))
        row.extra["wardgate"] = "medians {:.3f} and {:.3f} ms".format(*medians)
        rows.append(row)
    return rows


class Proxied(Wardgate):
    """Every request comes from another address, as a proxy that is trusted says."""

    def environment(self) -> Mapping[str, str]:
        return {**super().environment(), "WARDGATE_HTTP_SERVER_TRUSTED_PROXIES": '["127.0.0.0/8"]'}

    async def refused(self, number: int) -> float:
        """How long a login with a wrong password takes, in seconds."""
        address = f"2001:db8:{random.getrandbits(16):x}:{random.getrandbits(16):x}::1"
        body = {"email": f"bench{number}@example.org", "password": "not the right one 7", "mode": "token"}
        request = self.http.request("POST", "/auth/login", json.dumps(body).encode(), {"X-Forwarded-For": address})
        began = time.perf_counter()
        answer = await self.http.exchange(request)
        took = time.perf_counter() - began
        if answer.status != 401:
            raise RuntimeError(f"{answer.status} {answer.body[:200].decode(errors='replace')}")
        return took


def mann_whitney(one: Sequence[float], other: Sequence[float]) -> float:
    """The two-sided p of the rank sum test, by the normal approximation: for samples of dozens and more, without ties
    that matter (times are nanoseconds)."""
    ranked = sorted([(value, 0) for value in one] + [(value, 1) for value in other])
    rank_sum = sum(rank for rank, (_, which) in enumerate(ranked, 1) if which == 0)
    n, m = len(one), len(other)
    u = rank_sum - n * (n + 1) / 2
    z = (u - n * m / 2) / math.sqrt(n * m * (n + m + 1) / 12)
    return math.erfc(abs(z) / math.sqrt(2))


async def database(run: Run) -> list[Row]:
    """Queries of accounts, sessions and lists among 1,000,000 users and 5,000,000 sessions; some minutes, 5 GB."""
    users = 1_000_000 if run.sizes.rounds > 1 else 20_000
    everything = run.cores.server | run.cores.rest
    found = await module(everything, "bench.database", "--users", str(users), "--json")
    row = Row(f"{users:,} users, {5 * users:,} sessions: the slowest query's p99", "ms", "<= 10")
    prune = Row("logins while old sessions are deleted, p99", "ms")
    if "skipped" in found:
        row.extra["wardgate"] = f"skipped: {found['skipped']}"
        return [row]
    slow = sorted(found["queries"].items(), key=lambda item: -item[1]["p99"])
    row.figures["wardgate"] = Figure([slow[0][1]["p99"]])
    for name, figures in slow:
        walks = f"; walks {', '.join(figures['walks'])}" if figures["walks"] else ""
        row.extra[name] = f"p50 {figures['p50']:.2f}, p99 {figures['p99']:.2f} ms{walks}"
    pruned = found["pruning"]
    prune.figures["wardgate"] = Figure([pruned["p99"]])
    prune.extra["wardgate"] = f"{pruned['gone']:,} deleted by 1,000, a batch within {pruned['batch p99']:.1f} ms (p99)"
    return [row, prune]


async def jobs(run: Run) -> list[Row]:
    """A queue of 100,000 jobs, drained by one process."""
    count = 100_000 if run.sizes.rounds > 1 else 5_000
    found = await module(run.cores.server | run.cores.rest, "bench.jobs", "--jobs", str(count))
    row = Row(
        f"{count:,} jobs, drained by one process", "per second", ">= 2,000", {"wardgate": Figure([found["rate"]])}
    )
    row.extra["wardgate"] = f"{found['cpu']:.1f} us of CPU a job beside PostgreSQL's"
    return [row]


ACCOUNTS = {
    "gate": gate,
    "tokens": tokens,
    "me": me,
    "logins": logins,
    "timing": timing,
    "jobs": jobs,
    "database": database,
}
