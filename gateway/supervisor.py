"""N worker processes on one machine: started, watched, given connections, restarted, drained.

The supervisor accepts on the port and passes each connection, as a descriptor, to the ready worker with the fewest; so
nothing reaches a worker that is not ready, frozen, stopped or dying while another is well. Where none is ready any that
lives takes it, and answers that it is frozen. It serves no client itself; what it answers on the internal port is
`gateway.inside`'s.

`choose` and `pause_before` are the decisions, pure; `Supervisor` is the one driver.
"""

import asyncio
import contextlib
import heapq
import math
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import structlog

from config.errors import Failure
from config.servers import Guardian
from config.settings import Settings, to_json

if TYPE_CHECKING:
    from gateway.inside import Inside

from gateway.handover import (
    INSIDE,
    MAX_CONNECTIONS,
    Drain,
    Passed,
    Receiver,
    Report,
    Setup,
    WorkerState,
    encode,
    pair,
    pass_connections,
)

ROOT = Path(__file__).resolve().parent.parent
TICK = 0.5
STALE = 2.0  # a worker that was silent for so long gets nothing while another is fresh
REAP = 0.02
START_LIMIT = 60.0
LEASE = 5.0
BACKLOG = 4096
STARTS_WITHOUT_SUCCESS = 3
LONG_LIFE = 30.0
FAREWELL = 2.0
_PEEK = 2048
_PEEK_LIMIT = 10.0

log = structlog.get_logger(__name__)


class Seen(NamedTuple):
    """What a choice is made from. `load`: connections reported, and those passed since."""

    ready: bool
    silent: float
    load: int


def choose(workers: Sequence[Seen | None], count: int = 1) -> list[int]:
    """Whom to pass so many connections to, one index each; none when nobody lives. None: one that does not serve.

    Ready before not ready, lately heard before silent, then the fewest connections.
    """
    ranks = [(*_rank(seen), index) for index, seen in enumerate(workers) if seen is not None]
    heapq.heapify(ranks)
    chosen = []
    for _ in range(count if ranks else 0):
        silent, unready, load, index = ranks[0]
        chosen.append(index)
        heapq.heapreplace(ranks, (silent, unready, load + 1, index))
    return chosen


def _rank(seen: Seen) -> tuple[bool, bool, float]:
    stale = seen.silent > STALE
    return stale, not seen.ready, seen.silent if stale else seen.load


def pause_before(deaths: int) -> float:
    """Seconds before the next start, after so many deaths in a row that came soon after the start."""
    return 0.0 if deaths <= 0 else min(10.0, 0.1 * 2.0 ** (deaths - 1))


@dataclass
class Child:
    """A worker process as the supervisor sees it. `silent` is counted in ticks, so that our own stall is not theirs."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    node: str
    started: float
    receiver: Receiver = field(init=False)
    report: Report | None = None
    silent: float = 0.0
    sent: int = 0
    lost: float | None = None  # since when the control socket is at its end

    def __post_init__(self) -> None:
        self.receiver = Receiver(self.control)

    @property
    def serves(self) -> bool:
        """Whether it can take connections."""
        return self.report is not None and not self.report.ended and self.lost is None

    @property
    def stopped(self) -> bool:
        """Whether the process is stopped (SIGSTOP): the kernel knows before we miss its reports."""
        if not hasattr(os, "waitid"):
            return False
        with contextlib.suppress(ChildProcessError):
            return os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
        return False

    @property
    def seen(self) -> Seen | None:
        """None: it does not serve."""
        report = self.report
        if report is None or not self.serves:
            return None
        silent = math.inf if self.stopped else self.silent
        return Seen(report.ready, silent, report.connections + self.sent - report.taken)


class Supervisor:
    """`launch`, `start`, `ready`; then `stop`.

    `sockets` listen for the public, `internal` for the internal port; both are closed by `stop`. `on_dead` gets the
    node id of a worker that ended without being asked to, so that its registration can be removed at once. `on_change`
    is called when a worker was started again.
    """

    def __init__(
        self,
        *,
        workers: int,
        sockets: Iterable[socket.socket],
        metrics: Path,
        internal: Iterable[socket.socket] = (),
        guardian: Guardian | None = None,
        on_dead: Callable[[str], Awaitable[None]] | None = None,
        on_change: Callable[[], None] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "gateway.worker"),
    ) -> None:
        self._slots: list[Child | None] = [None] * workers
        self._deaths = [0] * workers  # in a row, each soon after the start
        self._well = [False] * workers  # was ready once
        self._listeners, self._internal = list(sockets), list(internal)
        self._metrics = metrics
        self._guardian = guardian
        self._on_dead, self._on_change = on_dead, on_change
        self._command = tuple(command)
        self._setup: Callable[[str], Setup] | None = None
        self._open: set[socket.socket] = set()  # the listeners that we accept from at the moment
        self._stopping = False
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._farewells: set[asyncio.Task[None]] = set()
        self._inside: Inside | None = None
        self._silence_limit = 15.0 + LEASE
        self._drain_for = 5.0

    @property
    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [child.process.pid for child in self._slots if child is not None]

    @property
    def states(self) -> list[WorkerState]:
        """How every worker stands, those too that are being started."""
        return [_state(child) for child in self._slots]

    def launch(self) -> None:
        """Start the processes: they load their code while their caller prepares the rest."""
        for slot in range(len(self._slots)):
            self._spawn(slot)

    async def start(self, settings: Settings, *, dev: bool, roles: Sequence[str] = ()) -> None:
        """Hand the settings over and begin to accept; returns before the workers are ready."""
        tree = msgspec.json.decode(to_json(settings))
        self._setup = lambda node: Setup(tree, node, dev, tuple(roles))
        self._silence_limit = settings.sessions.hold + LEASE
        self._drain_for = settings.http_server.shutdown_timeout
        for child in self._slots:
            if child is not None:
                self._keep(partial(self._hand_over, child), "hand over")
        self._keep(self._tick, "ticks")
        if self._internal:
            from gateway.inside import open_inside  # an HTTP server takes long to load

            self._inside = await open_inside(lambda: self.states, self._metrics)
        self._accept(*self._listeners, *self._internal)

    async def ready(self) -> None:
        """Return when every worker is ready. Failure when one keeps ending before it ever was."""
        while not all(state.ready for state in self.states):
            if any(
                dead >= STARTS_WITHOUT_SUCCESS and not well for dead, well in zip(self._deaths, self._well, strict=True)
            ):
                raise Failure("a worker ends as soon as it is started: the log above says why")
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """Stop accepting, drain every worker at once, wait for them, kill those that are late."""
        self._stopping = True
        self._refuse(*self._listeners, *self._internal)
        for listener in (*self._listeners, *self._internal):
            listener.close()
        children = [child for child in self._slots if child is not None]
        for child in children:
            with contextlib.suppress(OSError):
                child.control.send(encode(Drain(self._drain_for * 0.6)))
        end = asyncio.get_running_loop().time() + self._drain_for + 1.0
        while any(child.process.poll() is None for child in children):
            if asyncio.get_running_loop().time() > end:
                log.warning("workers_killed", pids=[c.process.pid for c in children if c.process.poll() is None])
                for child in children:
                    child.process.kill()
            await asyncio.sleep(0.02)
        for child in children:
            self._forget(child)
            if child.process.returncode != 0:
                self._mourn(child.node)
        self._slots = [None] * len(self._slots)
        if self._farewells:
            await asyncio.wait(self._farewells, timeout=FAREWELL)
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._inside is not None:
            await self._inside.close()

    # Processes

    def _spawn(self, slot: int) -> None:
        ours, theirs = pair()
        with theirs:
            process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # stdout is for what the command prints
                cwd=ROOT,
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(self._metrics)},
                start_new_session=True,
            )
        child = Child(process, ours, secrets.token_hex(16), asyncio.get_running_loop().time())
        self._slots[slot] = child
        if self._guardian is not None:
            self._guardian.watch(process.pid, signal.SIGTERM)
        asyncio.get_running_loop().add_reader(ours.fileno(), self._heard, child)
        if self._setup is not None:
            self._keep(partial(self._hand_over, child), "hand over")

    async def _hand_over(self, child: Child) -> None:
        assert self._setup is not None  # noqa: S101 - called after `start`
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_sendall(child.control, encode(self._setup(child.node)))

    def _heard(self, child: Child) -> None:
        for message in child.receiver.read():
            if isinstance(message, Report):
                changed = child.report is None or child.report.ready != message.ready
                child.report, child.silent = message, 0.0
                if changed:
                    self._stands_differently(child, message)
        if child.receiver.ended and child.lost is None:
            child.lost = asyncio.get_running_loop().time()
            asyncio.get_running_loop().remove_reader(child.control.fileno())
            self._reap(child)

    def _reap(self, child: Child) -> None:
        """The end of its socket is most likely the end of the process: look often, until the tick takes over."""
        loop = asyncio.get_running_loop()
        if self._stopping or child not in self._slots or child.lost is None:
            return
        if child.process.poll() is not None:
            self._bury(self._slots.index(child), child)
        elif loop.time() - child.lost < TICK:
            loop.call_later(REAP, self._reap, child)

    def _stands_differently(self, child: Child, report: Report) -> None:
        log.info("worker_ready" if report.ready else "worker_not_ready", worker=child.node[:8], why=report.why)
        if report.ready and child in self._slots:
            self._well[self._slots.index(child)] = True
        self._changed.set()
        self._accept(*self._listeners)

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(TICK)
            now = loop.time()
            passed, before = min(now - before, 2 * TICK), now
            for slot, child in enumerate(self._slots):
                if child is not None and not self._stopping:
                    child.silent += passed
                    self._look_after(slot, child, now)

    def _look_after(self, slot: int, child: Child, now: float) -> None:
        if child.process.poll() is not None:
            self._bury(slot, child)
            return
        limit = START_LIMIT if child.report is None else self._silence_limit
        if child.silent > limit or (child.lost is not None and now - child.lost > self._drain_for + 1.0):
            log.error("worker_silent", worker=child.node[:8], pid=child.process.pid, seconds=round(child.silent, 1))
            child.process.kill()

    def _bury(self, slot: int, child: Child) -> None:
        loop = asyncio.get_running_loop()
        lived = loop.time() - child.started
        self._slots[slot] = None
        self._deaths[slot] = 1 if lived > LONG_LIFE else self._deaths[slot] + 1
        pause = pause_before(self._deaths[slot])
        log.error(
            "worker_died",
            worker=child.node[:8],
            pid=child.process.pid,
            status=child.process.returncode,
            lived=round(lived, 1),
            next_start_in=pause,
        )
        loop.call_later(pause, self._start_again, slot)
        self._forget(child)
        self._changed.set()
        self._mourn(child.node)

    def _start_again(self, slot: int) -> None:
        if not self._stopping:
            self._spawn(slot)
            if self._on_change is not None:
                self._on_change()

    def _forget(self, child: Child) -> None:
        if child.lost is None:
            asyncio.get_running_loop().remove_reader(child.control.fileno())
        child.control.close()
        if self._guardian is not None:
            self._guardian.forget(child.process.pid)
        for gauge in self._metrics.glob(f"gauge_live*_{child.process.pid}.db"):  # its counters stay
            gauge.unlink(missing_ok=True)

    def _keep(self, work: Callable[[], Awaitable[None]], name: str) -> asyncio.Task[None]:
        async def supervised() -> None:
            try:
                await work()
            except Exception:
                log.exception("background_failure", task=name)

        task = asyncio.get_running_loop().create_task(supervised(), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _mourn(self, node: str) -> None:
        on_dead = self._on_dead
        if on_dead is not None:
            task = self._keep(lambda: on_dead(node), "remove a dead worker's registration")
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    # Connections

    def _accept(self, *listeners: socket.socket) -> None:
        for listener in listeners:
            if listener not in self._open and not self._stopping and self._setup is not None:
                self._open.add(listener)
                asyncio.get_running_loop().add_reader(listener.fileno(), self._acceptable, listener)

    def _refuse(self, *listeners: socket.socket) -> None:
        """Leave connections in the kernel's queue."""
        for listener in listeners:
            if listener in self._open:
                self._open.discard(listener)
                asyncio.get_running_loop().remove_reader(listener.fileno())

    def _acceptable(self, listener: socket.socket) -> None:
        public = listener in self._listeners
        if public and not self._any_serves():
            self._refuse(listener)  # until a worker reports
            return
        # What we pass on is a number: the socket object that `accept` puts around it costs more than all else here.
        accept, family = listener._accept, listener.family  # type: ignore[attr-defined]
        accepted: list[Passed] = []
        try:
            while len(accepted) < MAX_CONNECTIONS:
                accepted.append(Passed(accept()[0], family))
        except (BlockingIOError, ConnectionAbortedError, InterruptedError):
            pass
        except OSError as error:  # out of descriptors or memory, most likely
            log.warning("accept_failed", error=os.strerror(error.errno or 0))
            self._refuse(listener)
            asyncio.get_running_loop().call_later(TICK, self._accept, listener)
        if public:
            self._pass_on(accepted)
        else:
            for descriptor, _ in accepted:
                self._sort(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, descriptor))

    def _any_serves(self) -> bool:
        return any(child is not None and child.serves for child in self._slots)

    def _pass_on(self, connections: list[Passed]) -> None:
        """Each to the best worker that takes it, those of one worker in one message; closed when none does."""
        workers = [child.seen if child is not None else None for child in self._slots]
        left = connections
        while left and (chosen := choose(workers, len(left))):
            shares: dict[int, list[Passed]] = {}
            for index, connection in zip(chosen, left, strict=True):
                shares.setdefault(index, []).append(connection)
            left = []
            for index, share in shares.items():
                if not self._pass_to(index, share):  # its queue is full, or it is gone
                    workers[index] = None
                    left += share
        if left:
            log.warning("connections_dropped", count=len(left), why="no worker takes them")
        for connection in connections:
            os.close(connection.descriptor)

    def _pass_to(self, index: int, share: list[Passed]) -> bool:
        child = self._slots[index]
        assert child is not None  # noqa: S101 - `choose` leaves those out
        try:
            pass_connections(child.control, share)
        except OSError:
            return False
        child.sent += len(share)
        return True

    # The internal port

    def _sort(self, connection: socket.socket) -> None:
        """Look at the request's path without reading it: ours, or a worker's."""
        connection.setblocking(False)
        end = asyncio.get_running_loop().time() + _PEEK_LIMIT
        self._keep(partial(self._sorted, connection, end), "internal connection")

    async def _sorted(self, connection: socket.socket, end: float) -> None:
        try:
            line = await self._first_line(connection, end)
        except BaseException:
            connection.close()
            raise
        if line:
            await self._route(connection, line)
        else:
            connection.close()

    async def _first_line(self, connection: socket.socket, end: float) -> bytes:
        """The request line, left where it is; nothing when none came."""
        loop = asyncio.get_running_loop()
        while loop.time() < end:
            try:
                head = connection.recv(_PEEK, socket.MSG_PEEK)
            except (BlockingIOError, InterruptedError):
                head = b" "
            except OSError:
                head = b""
            line, complete, _ = head.partition(b"\r\n")
            if complete or len(head) == _PEEK:
                return line
            if not head:
                break
            await asyncio.sleep(0.005)
        return b""

    async def _route(self, connection: socket.socket, line: bytes) -> None:
        path, family = [*line.split(b" "), b""][1], connection.family
        if path.startswith(tuple(prefix.encode() for prefix in INSIDE)) and self._any_serves():
            self._pass_on([Passed(connection.detach(), family)])
        elif self._inside is not None:
            await self._inside.take(connection)


def _state(child: Child | None) -> WorkerState:
    if child is None:
        return WorkerState("", False, "being started again")
    if child.report is None:
        return WorkerState(child.node, False, "starting")
    if child.stopped:
        return WorkerState(child.node, False, "stopped")
    if child.silent > STALE:
        return WorkerState(child.node, False, f"silent for {child.silent:.1f} s")
    return WorkerState(child.node, child.report.ready, child.report.why)


def listen(address: str, port: int) -> list[socket.socket]:
    """Listening sockets for an address ("" is every one) and a port. OSError when it is taken."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server(
        (address, port), family=family, backlog=BACKLOG, dualstack_ipv6=address == "::" and socket.has_dualstack_ipv6()
    )
    listener.setblocking(False)
    return [listener]
