"""The command `doctor`: is the promise kept on this system? Measured on it, from outside, with a session of its own.

A user and an API key are made for the occasion and taken away again; nobody else's sessions are touched. What is
measured is what an operator can do something about: the time from a revocation to the last close, how much of the lease
is left between renewals, the two ways over Redis, what PostgreSQL promises of a commit, the clocks, and who is ready.
Nothing here is part of a running gateway.
"""

import asyncio
import contextlib
import json
import secrets
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import msgspec
from cyclopts import Parameter

from auth import key_keeping
from auth import keys as signing
from auth.commands import open_session
from auth.tokens import AccessTokens
from config import dev, scopes
from config.clock import SystemClock
from config.commands import COMMON, DONE, FAILED, Common, database, show
from config.database import Pool
from config.errors import Away, Failure, Usage
from config.redis import Bus, Pipe, Unavailable
from config.settings import Settings
from sessions import log, restoring, store
from sessions.model import Kind

PATIENCE = 5.0
"""Seconds that one answer may take."""
LONGEST = 300.0
"""Seconds that all of it may take."""
LOOK_EVERY = 0.1
LOOK_FOR = 3.0
"""Seconds that the lease is looked at, every 0.1 s, at least."""
MOST_TRIALS, MOST_SOCKETS = 1000, 64
ROUND_TRIPS = 20
READY_LOOKS = 8
STEP = 2.0  # a clock that is off by so much is said

State = Literal["ok", "warn", "fail"]


class Check(msgspec.Struct, frozen=True):
    """One line of the table."""

    check: str
    state: State
    found: str
    advice: str = ""


class Trial(NamedTuple):
    """One revocation. Seconds since it was asked for: until the last socket was closed, and until it was confirmed."""

    closed: float
    confirmed: float
    by: str
    opened: float  # what the commit of a new session took


class Promise(NamedTuple):
    """L and d of the cluster."""

    lease: float
    drift: float

    @property
    def bound(self) -> float:
        return self.lease + self.drift


async def doctor(
    *,
    url: Annotated[str, Parameter(help="Where clients come in, like https://chat.example.org.")] = "",
    admin_url: Annotated[str, Parameter(help="Where /admin is. Default: the internal port where one is set.")] = "",
    trials: Annotated[int, Parameter(help="How many sessions are opened and revoked.")] = 20,
    sockets: Annotated[int, Parameter(help="Connections of each of them.")] = 4,
    common: Common = COMMON,
) -> int:
    """Measure on this system whether revocations hold, and what the worst case is.

    Exit code 0: it holds; 1: something is wrong; 69: the database or the gateway is not there.
    """
    if not 1 <= trials <= MOST_TRIALS:
        raise Usage(f"--trials is a number from 1 to {MOST_TRIALS}")
    if not 1 <= sockets <= MOST_SOCKETS:
        raise Usage(f"--sockets is a number from 1 to {MOST_SOCKETS}")
    for option, given in (("--url", url), ("--admin-url", admin_url)):
        if given and urlsplit(given).scheme not in ("http", "https"):
            raise Usage(f"{option} begins with http:// or https://")
    async with database(common) as (settings, pool):
        public = (url or _public(settings, common)).rstrip("/")
        examination = Examination(settings, pool, public, (admin_url or _inside(settings, public)).rstrip("/"))
        try:
            async with asyncio.timeout(LONGEST):
                checks, runs = await examination.run(trials, sockets)
        except TimeoutError:
            raise Failure(f"it took more than {LONGEST:.0f} s: try fewer --trials") from None
    worst = max((trial.closed for trial in runs), default=0.0)
    verdict = _verdict(checks, runs, examination.promise)
    if common.json:
        body = {
            "url": public,
            "verdict": verdict,
            "ok": _holds(checks),
            "worst_close_seconds": round(worst, 4),
            "bound_seconds": examination.promise.bound,
            "trials": [trial._asdict() for trial in runs],
            "checks": checks,
        }
        show(body, as_json=True)
    else:
        show(checks, as_json=False, columns=("check", "state", "found", "advice"))
        print(f"\n{verdict}", flush=True)
    return DONE if _holds(checks) else FAILED


def _public(settings: Settings, common: Common) -> str:
    running = dev.running(common.data)
    if running is not None and running.info.database_url == settings.database.url.get_secret_value():
        return running.info.url
    return f"http://{_host(settings.http_server.address)}:{settings.http_server.port}"


def _inside(settings: Settings, public: str) -> str:
    http = settings.http_server
    return f"http://{_host(http.internal_address)}:{http.internal_port}" if http.internal_port else public


def _host(address: str) -> str:
    """Where a listener on this address can be reached from here."""
    if address in ("", "0.0.0.0", "::"):  # noqa: S104 - it is only compared with
        return "127.0.0.1"
    return f"[{address}]" if ":" in address else address


def _holds(checks: Sequence[Check]) -> bool:
    return all(check.state != "fail" for check in checks)


def _verdict(checks: Sequence[Check], runs: Sequence[Trial], promise: Promise) -> str:
    wrong = [check.check for check in checks if check.state == "fail"]
    doubts = [check.check for check in checks if check.state == "warn"]
    worst = max((trial.closed for trial in runs), default=0.0)
    measured = f"worst time to close {worst * 1000:.0f} ms in {len(runs)} trials"
    bound = f"with any one fault nothing passes after {promise.bound:g} s"
    if wrong:
        return f"It does NOT hold here: {', '.join(wrong)} ({measured})."
    if doubts:
        return f"It holds, but look at: {', '.join(doubts)}. Now: {measured}; {bound}."
    return f"It holds. Now: {measured}; {bound}."


class Examination:
    """One run. `promise` is known once it has begun."""

    def __init__(self, settings: Settings, pool: Pool, public: str, admin: str) -> None:
        self.promise = Promise(5.0, 0.25)
        self._settings, self._pool = settings, pool
        self._public, self._admin = public, admin
        self._ages: dict[str, float] = {}  # the longest time between a renewal and a look, by node

    async def run(self, trials: int, sockets: int) -> tuple[list[Check], list[Trial]]:
        """All checks, the measured ones first."""
        timeout = aiohttp.ClientTimeout(total=PATIENCE)
        connector = aiohttp.TCPConnector(force_close=True)  # each connection may come to another worker
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as http:
            await self._reachable(http)
            row = await self._row("SELECT lease_seconds, drift_seconds FROM revocation_head")
            self.promise = Promise(row["lease_seconds"], row["drift_seconds"])
            watching, began = asyncio.create_task(self._watch()), time.perf_counter()
            try:
                runs, error = await self._trials(http, trials, sockets)
                await asyncio.wait([watching], timeout=max(0.0, LOOK_FOR - (time.perf_counter() - began)))
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
            checks = [
                *_of_trials(runs, error, self.promise),
                await self._lease(),
                await self._redis(),
                *await self._postgres(),
                await self._clock(),
                await self._ready(http),
            ]
        return checks, runs

    async def _row(self, query: str, *args: Any) -> Any:
        return await self._pool.fetchrow(query, *args)

    async def _reachable(self, http: aiohttp.ClientSession) -> None:
        try:
            async with http.get(f"{self._public}/health") as response:
                if response.status != 200:
                    raise Away(f"{self._public}/health answers {response.status}: give --url")
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Away(f"no gateway at {self._public} ({type(error).__name__}): give --url") from None

    # -- trials

    async def _trials(self, http: aiohttp.ClientSession, trials: int, sockets: int) -> tuple[list[Trial], str]:
        """As many as went well, and what went wrong with the next."""
        runs: list[Trial] = []
        async with self._guest() as guest:
            for _ in range(trials):
                try:
                    runs.append(await guest.trial(http, sockets, self.promise.bound + PATIENCE))
                except (aiohttp.ClientError, TimeoutError, OSError, Failure) as error:
                    return runs, f"{type(error).__name__}: {error}".rstrip(": ")
        return runs, ""

    @contextlib.asynccontextmanager
    async def _guest(self) -> AsyncIterator["_Guest"]:
        """A user and a key that are there for as long as this lasts."""
        user = f"u_doctor_{secrets.token_hex(8)}"
        key_id = ""
        try:
            async with self._pool.acquire() as connection, connection.transaction():
                await store.create_subject(connection, user)
                until = await store.database_now(connection) + LONGEST
                new = key_keeping.NewKey("doctor", ["revocations"], until)
                key, info = await key_keeping.create(connection, new, within={scopes.ALL}, by={"actor": "cli"})
                key_id = info.id
            yield _Guest(self._settings, self._pool, self._public, self._admin, user, key)
        finally:
            await asyncio.shield(self._clean_up(user, key_id))

    async def _clean_up(self, user: str, key_id: str) -> None:
        """The key ends through the log, as any key; then nothing of all this is left but what the log and the audit
        tell."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute("DELETE FROM sessions WHERE subject = $1", user)
            await connection.execute("DELETE FROM subjects WHERE id = $1", user)
            if await connection.fetchval("DELETE FROM api_keys WHERE id = $1 RETURNING id", key_id):
                entry = log.Entry(kind=Kind.API_KEY, api_key=key_id)
                await log.write(connection, [log.Group("", [entry.draft("")])])

    # -- the lease

    async def _watch(self) -> None:
        """How old each process's last renewal gets, by the database's clock alone."""
        while True:
            async with self._pool.acquire(timeout=PATIENCE) as connection:
                records = await connection.fetch(_RENEWED)
            for record in records:
                self._ages[record["node"]] = max(record["age"], self._ages.get(record["node"], 0.0))
            await asyncio.sleep(LOOK_EVERY)

    async def _lease(self) -> Check:
        alive = {node: age for node, age in self._ages.items() if age < self.promise.bound + 1.0}
        dead = len(self._ages) - len(alive)
        if not alive:
            return Check("lease", "fail", "no process renews it", "Is this the gateway's database?")
        worst = max(alive.values())
        margin = self.promise.lease - worst
        processes = "1 process" if len(alive) == 1 else f"{len(alive)} processes"
        found = f"{margin:.2f} s of {self.promise.lease:g} s left at worst, {processes}"
        if margin <= 0:
            return Check("lease", "fail", found, "A process was frozen: runbook `frozen`.")
        if margin < self.promise.lease * 0.4:
            return Check("lease", "warn", found, "PostgreSQL or a node is slow: look at commit times and CPU.")
        if dead:
            return Check("lease", "warn", f"{found}; {dead} do not renew", "Runbook `dead process`.")
        return Check("lease", "ok", found)

    # -- Redis

    async def _redis(self) -> Check:
        url = self._settings.redis.url.get_secret_value()
        pipe, bus = Pipe(url), Bus(url)
        try:
            await pipe.start(PATIENCE)
            await bus.start(PATIENCE)
            times = await self._round_trips(pipe, bus)
        except (Unavailable, TimeoutError) as error:
            return Check(
                "redis probe",
                "fail",
                f"{type(error).__name__}: {error}".rstrip(": "),
                "Slower, never wrong: runbook `deaf`.",
            )
        finally:
            await bus.close()
            await pipe.close()
        found = f"median {_ms(statistics.median(times))}, worst {_ms(max(times))} of {len(times)}"
        if max(times) > 0.5:
            return Check("redis probe", "warn", found, "Hints come late; the lease carries them within 1.5 s.")
        return Check("redis probe", "ok", found)

    async def _round_trips(self, pipe: Pipe, bus: Bus) -> list[float]:
        name, heard = f"{self._settings.redis.prefix}:doctor:{secrets.token_hex(8)}", asyncio.Event()
        await bus.subscribe(name, lambda _payload: heard.set())
        times = []
        for _ in range(ROUND_TRIPS):
            heard.clear()
            began = time.perf_counter()
            async with asyncio.timeout(PATIENCE):
                await pipe.call("PUBLISH", name, b"?")
                await heard.wait()
            times.append(time.perf_counter() - began)
        bus.unsubscribe(name)
        return times

    # -- PostgreSQL

    async def _postgres(self) -> list[Check]:
        row = await self._row(_POSTGRES)
        found = f"{row['version']}, synchronous_commit {row['commit']}, {_standbys(row)}"
        checks = [Check("postgresql", "ok", found)]
        if row["recovery"]:
            checks = [Check("postgresql", "fail", found, "This is a standby: the URL must lead to the primary.")]
        elif row["commit"] in ("off", "local") or row["fsync"] == "off":
            advice = "A crash loses revocations that were answered: synchronous_commit = on, fsync = on."
            checks = [Check("postgresql", "warn", f"{found}, fsync {row['fsync']}", advice)]
        elif row["standbys"] and not row["names"]:
            advice = "A failover may lose the last revocations: set synchronous_standby_names."
            checks = [Check("postgresql", "warn", found, advice)]
        async with self._pool.acquire() as connection:
            survey = await restoring.survey(connection)
        if survey.doubtful:
            checks.append(Check("origin", "fail", f"nobody vouches for {survey.origin}", "`run.py restore`."))
        return checks

    async def _clock(self) -> Check:
        offsets = []
        for _ in range(5):
            before = time.time()
            row = await self._row("SELECT extract(epoch FROM clock_timestamp())::float8 AS now")
            after = time.time()
            offsets.append((after - before, row["now"] - (before + after) / 2))
        width, offset = min(offsets)
        found = f"{offset * 1000:+.1f} ms against the database (within {width * 500:.1f} ms)"
        if abs(offset) > STEP:
            return Check("clock", "warn", found, "Nothing is decided by it, but logs and `iat` of tokens are: run NTP.")
        return Check("clock", "ok", found)

    # -- nodes

    async def _ready(self, http: aiohttp.ClientSession) -> Check:
        seen: dict[str, dict[str, Any]] = {}
        for _ in range(READY_LOOKS):
            try:
                async with http.get(f"{self._public}/ready") as response:
                    body = json.loads(await response.text())
                seen[str(body.get("node", ""))] = body
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                return Check(
                    "ready", "fail", f"/ready: {type(error).__name__}", "Is it the gateway that answers there?"
                )
        why = sorted({str(body.get("why", "?")) for body in seen.values() if not body.get("ready")})
        serving = any(body.get("policy") == "serve" for body in seen.values())
        found = f"{sum(bool(b.get('ready')) for b in seen.values())} of {len(seen)} nodes that answered"
        if why:
            return Check("ready", "fail", f"{found}: {'; '.join(why)}", "Runbook by that name.")
        if serving:
            return Check("ready", "warn", found, 'policy "serve": a node without its lease goes on serving.')
        return Check("ready", "ok", found)


class _Guest:
    """The user whose sessions are opened and revoked."""

    def __init__(self, settings: Settings, pool: Pool, public: str, admin: str, user: str, key: str) -> None:
        self._settings, self._pool = settings, pool
        self._socket = f"ws{public.removeprefix('http')}/connection/websocket"
        self._revoke = f"{admin}/admin/revocations"
        self._user, self._key = user, key

    async def trial(self, http: aiohttp.ClientSession, sockets: int, patience: float) -> Trial:
        """Open a session with sockets, revoke it, and see them close and the token refused."""
        began = time.perf_counter()
        sid, token = await self._login()
        opened = time.perf_counter() - began
        async with contextlib.AsyncExitStack() as stack:
            live = [await stack.enter_async_context(self._connect(http, token)) for _ in range(sockets)]
            async with asyncio.timeout(patience + PATIENCE):
                asked = time.perf_counter()
                closing = [asyncio.create_task(_closed(socket)) for socket in live]
                try:
                    receipt = await self._end(http, sid, patience)
                    confirmed = time.perf_counter() - asked
                    ended = [await task for task in closing]
                finally:
                    for task in closing:
                        task.cancel()
        if wrong := {code for code, _ in ended} - {4501}:
            raise Failure(f"a socket of the revoked session closed with {wrong.pop()}")
        if receipt["state"] != "confirmed":
            raise Failure(f"the revocation was not confirmed within {patience:.0f} s")
        await self._refused(http, token)
        return Trial(max(at for _, at in ended) - asked, confirmed, receipt["by"], opened)

    async def _login(self) -> tuple[str, str]:
        settings = self._settings
        sealer, algorithm = signing.key_sealer(settings.sessions), settings.auth.access_token_algorithm
        ring = signing.Keys(self._pool, sealer, algorithm, clock=SystemClock())
        async with self._pool.acquire() as connection, connection.transaction():
            await signing.ensure(connection, sealer, algorithm)
            reading = await open_session(connection, settings, self._user)
        await ring.load()
        token, _ = AccessTokens(ring, settings.auth, now=lambda: reading.now).make(reading)
        return reading.session.sid, token

    @contextlib.asynccontextmanager
    async def _connect(self, http: aiohttp.ClientSession, token: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        async with asyncio.timeout(PATIENCE):
            socket = await http.ws_connect(self._socket, autoclose=False)
            reply = await _said(socket, {"id": 1, "connect": {"token": token}})
        try:
            if "connect" not in reply:
                raise Failure(f"a connection was refused: {reply.get('error', reply)}")
            yield socket
        finally:
            await socket.close()

    async def _end(self, http: aiohttp.ClientSession, sid: str, patience: float) -> dict[str, Any]:
        body = {"target": {"sid": sid}, "reason": "doctor", "wait": True, "timeout": patience}
        timeout = aiohttp.ClientTimeout(total=patience + PATIENCE)
        async with http.post(self._revoke, json=body, headers={"X-API-Key": self._key}, timeout=timeout) as response:
            text = await response.text()
            if response.status != 201:
                raise Failure(f"{self._revoke} answers {response.status}: {text[:200]} (--admin-url?)")
            receipt: dict[str, Any] = json.loads(text)
            return receipt

    async def _refused(self, http: aiohttp.ClientSession, token: str) -> None:
        """The same token once more."""
        try:
            async with self._connect(http, token):
                pass
        except (Failure, aiohttp.ClientError, ConnectionError):
            return
        raise Failure("the token of a revoked session was let in again")


async def _said(socket: aiohttp.ClientWebSocketResponse, command: dict[str, Any]) -> dict[str, Any]:
    """Send a command; the reply. ConnectionError when it is closed instead."""
    await socket.send_str(json.dumps(command))
    while True:
        message = await socket.receive()
        if message.type is not aiohttp.WSMsgType.TEXT:
            raise ConnectionError(f"closed with {message.data}")
        for line in message.data.split("\n"):
            said: dict[str, Any] = json.loads(line)
            if said.get("id") == command["id"]:
                return said


async def _closed(socket: aiohttp.ClientWebSocketResponse) -> tuple[int, float]:
    """The code of the close frame, and when it came."""
    while True:
        message = await socket.receive()
        if message.type is aiohttp.WSMsgType.TEXT and message.data == "{}":
            await socket.send_str("{}")
        elif message.type not in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            at = time.perf_counter()
            return (message.data if message.type is aiohttp.WSMsgType.CLOSE else socket.close_code or 1006), at


def _of_trials(runs: Sequence[Trial], error: str, promise: Promise) -> list[Check]:
    checks = []
    if error:
        checks.append(Check("trials", "fail", error, "A trial that cannot be carried out proves nothing."))
    if not runs:
        return checks
    closed = [trial.closed for trial in runs]
    found = f"median {_ms(statistics.median(closed))}, worst {_ms(max(closed))} of {len(runs)}"
    state: State = "fail" if max(closed) > promise.bound else "warn" if max(closed) > 1.5 else "ok"
    advice = "" if state == "ok" else "Hints are not heard in time: look at the Redis probe and at /ready."
    checks.append(Check("time to close", state, found, advice))
    confirmed = [trial.confirmed for trial in runs]
    by_lease = sum(trial.by == "lease" for trial in runs)
    found = f"median {_ms(statistics.median(confirmed))}, worst {_ms(max(confirmed))}, {by_lease} by time"
    advice = "Some process does not acknowledge: a dead one, a slow one, or a cluster younger than the lease."
    checks.append(Check("time to confirm", "warn" if by_lease else "ok", found, advice if by_lease else ""))
    checks.append(Check("login commit", "ok", f"median {_ms(statistics.median(trial.opened for trial in runs))}"))
    return checks


def _standbys(row: Any) -> str:
    if not row["standbys"]:
        return "no standby connected"
    kind = "unknown kind" if row["synchronous"] is None else f"{row['synchronous']} of them synchronous"
    return f"{row['standbys']} standbys, {kind}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


_RENEWED = """
SELECT node, extract(epoch FROM clock_timestamp() - renewed_at)::float8 AS age FROM processes
"""
_POSTGRES = """
SELECT current_setting('server_version') AS version, current_setting('synchronous_commit') AS commit,
    current_setting('synchronous_standby_names') AS names, current_setting('fsync') AS fsync,
    pg_is_in_recovery() AS recovery, (SELECT count(*) FROM pg_stat_replication) AS standbys,
    (SELECT count(*) FILTER (WHERE sync_state IN ('sync', 'quorum'))
     FROM pg_stat_replication HAVING bool_and(sync_state IS NOT NULL)) AS synchronous
"""
