"""The data folder of `run.py dev`: whose it is, what was made up once and kept, what is filled into the settings.

    DIR/lock           held (flock) by the `run.py dev` that uses the folder
    DIR/secrets.json   0600: keys and passwords, made on first start, so that a second start has the same
    DIR/dev.json       0600: where the running gateway is; there while it is ready
    DIR/metrics        what the workers of this run count
    DIR/mail           letters that elsewhere would be sent; with their links anybody's password can be set
    DIR/postgres, DIR/valkey   the servers' (or below /var/tmp, see config.servers)

Starting servers and workers is put together in `gateway.commands`.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from config.errors import Failure, InUse
from config.settings import Namespace, Settings, is_set, with_values

FOLDER = Path(".wardgate")
PORT = 8000
ADMIN = "admin@example.org"
LEAVING_LIMIT = 15.0
_LEAVING = b"leaving"

CHAT: dict[str, Any] = {
    "name": "chat",
    "allow_subscribe_for_client": True,
    "allow_publish_for_subscriber": True,
    "allow_presence_for_subscriber": True,
    "allow_history_for_subscriber": True,
    "presence": True,
    "join_leave": True,
    "force_push_join_leave": True,
    "force_positioning": True,
    "force_recovery": True,
    "history_size": 100,
    "history_ttl": 300.0,
}
GAME: dict[str, Any] = {
    "name": "game",
    "allow_subscribe_for_client": True,
    "allow_publish_for_subscriber": True,
    "allow_presence_for_subscriber": True,
    "presence": True,
    "join_leave": True,
}
NEWS: dict[str, Any] = {
    "name": "news",
    "allow_subscribe_for_client": True,
    "allow_history_for_client": True,
    "history_size": 100,
    "history_ttl": 300.0,
}
NAMESPACES = (CHAT, GAME, NEWS)


class Secrets(msgspec.Struct, frozen=True):
    """What is made up once for a folder."""

    secret_key: str
    pepper: str
    api_key: str
    admin_email: str
    admin_password: str
    postgres_password: str
    valkey_password: str

    @classmethod
    def make(cls) -> "Secrets":
        """New ones."""
        key = secrets.token_urlsafe
        return cls(key(48), key(48), key(32), ADMIN, key(15), key(24), key(24))


class Admin(msgspec.Struct, frozen=True):
    """The administrator that dev begins with."""

    email: str
    password: str


class Pids(msgspec.Struct, frozen=True):
    """The processes below `run.py dev`. 0: not ours (`--external`)."""

    postgres: int
    valkey: int
    workers: list[int]


class Info(msgspec.Struct, frozen=True):
    """dev.json: everything that is needed to use the gateway that runs."""

    url: str
    websocket: str
    admin: Admin
    api_key: str
    database_url: str
    redis_url: str
    pids: Pids


class Running(msgspec.Struct, frozen=True):
    """A folder's gateway as a command finds it."""

    info: Info
    secrets: Secrets


@dataclass
class Folder:
    """A data folder that is ours alone for as long as `held` lasts."""

    path: Path
    ephemeral: bool = False
    secrets: Secrets = field(init=False)
    _lock: int = field(init=False, default=-1)

    @contextlib.contextmanager
    def held(self) -> Iterator["Folder"]:
        """Make the folder where needed, lock it, know its secrets; InUse when another process has it.

        One that is `leaving` is waited for: after Ctrl-C a shell is back before the servers have stopped.
        """
        made = self._make()
        self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._take()
            self._info.unlink(missing_ok=True)  # of a process that was killed
            self.secrets = self._known_or_new_secrets()
            yield self
        finally:
            os.close(self._lock)
            if made and self.ephemeral:
                shutil.rmtree(self.path, ignore_errors=True)

    def _take(self) -> None:
        end = time.monotonic() + LEAVING_LIMIT
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if os.pread(self._lock, len(_LEAVING), 0) == _LEAVING and time.monotonic() < end:
                    time.sleep(0.05)
                    continue
                raise InUse(f"{self.path} is in use by another `run.py dev`: stop it, or give --data another") from None
            os.ftruncate(self._lock, 0)
            return

    def leaving(self) -> None:
        """It is not ready any more, and its servers are about to stop."""
        self._info.unlink(missing_ok=True)
        os.pwrite(self._lock, _LEAVING, 0)

    def announce(self, info: Info) -> None:
        """Write dev.json; whoever reads it never sees half of it."""
        _write(self._info, info)

    @property
    def _info(self) -> Path:
        return self.path / "dev.json"

    def _make(self) -> bool:
        """As root the servers run as another user, who must be able to pass through."""
        mode = 0o711 if os.geteuid() == 0 else 0o700
        if self.ephemeral:
            self.path = Path(tempfile.mkdtemp(prefix="wardgate-dev-"))
            self.path.chmod(mode)
            return True
        self.path = self.path.resolve()
        if self.path.exists() and not self.path.is_dir():
            raise Failure(f"{self.path} is not a folder")
        try:
            if not self.path.exists():
                self.path.mkdir(parents=True)
                self.path.chmod(mode)
        except OSError as error:
            raise Failure(f"{self.path} cannot be made: {error.strerror}") from error
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise Failure(f"{self.path} cannot be written to: give --data another folder")
        return False

    def _known_or_new_secrets(self) -> Secrets:
        file = self.path / "secrets.json"
        if file.exists():
            return _read(file, Secrets)
        made = Secrets.make()
        _write(file, made)
        return made


def running(folder: Path) -> Running | None:
    """The gateway that runs in `folder`; None when none does, also where one was killed and its dev.json stands."""
    info, kept = folder / "dev.json", folder / "secrets.json"
    if not info.exists() or not kept.exists() or not _locked(folder / "lock"):
        return None
    return Running(_read(info, Info), _read(kept, Secrets))


def _locked(lock: Path) -> bool:
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def filled(settings: Settings, found: Running) -> Settings:
    """The settings of a running gateway, for a command beside it."""
    values = {"database.url": found.info.database_url, "redis.url": found.info.redis_url}
    return with_values(fill(settings, found.secrets, port=settings.http_server.port), values)


def fill(settings: Settings, kept: Secrets, *, port: int, mail: Path | None = None) -> Settings:
    """The settings with what dev fills in where it is unset. The demo namespaces and the local origins are added to
    those that are set, as the demo page needs them; a namespace of the same name wins over the demo's. Letters are
    written into the folder `mail` unless there is a mail server."""
    page = f"http://127.0.0.1:{port}/"
    made: dict[str, Any] = {
        "sessions.secret_key": kept.secret_key,
        "auth.pepper": kept.pepper,
        "http_api.key": kept.api_key,
        "auth.register_per_address_per_hour": 0,
        "auth.guests": True,
        "auth.guests_per_address_per_hour": 0,
        "auth.hash_queue": 64,
        "auth.verify_email": False,
        "auth.passkey_rp_id": "localhost",
        "auth.trust_device_for": 30 * 86400.0,
        "http_server.shutdown_timeout": 5.0,
        "webhooks.allow_networks": ["127.0.0.0/8"],
        "mail.sender": "Wardgate <no-reply@wardgate.invalid>",
        "mail.verify_email_link": f"{page}#verify={{token}}",
        "mail.reset_password_link": f"{page}#reset={{token}}",
        "mail.change_email_link": f"{page}#email={{token}}",
    }
    if mail is not None and not settings.mail.smtp_host:
        made["mail.folder"] = str(mail)
    values = {path: value for path, value in made.items() if not is_set(settings, path)}
    if not settings.sessions.secret_key.get_secret_value():  # set, to nothing: nothing could be sealed with that
        values["sessions.secret_key"] = kept.secret_key
    own = [f"http://127.0.0.1:{port}", f"http://localhost:{port}"]
    values["client.allowed_origins"] = [*dict.fromkeys([*own, *settings.client.allowed_origins])]
    values["http_server.port"] = port
    taken = {namespace.name for namespace in settings.channel.namespaces}
    demo = [Namespace.model_validate(options) for options in NAMESPACES if options["name"] not in taken]
    values["channel.namespaces"] = [*(n.model_dump() for n in [*settings.channel.namespaces, *demo])]
    return with_values(settings, values)


def banner(info: Info, *, folder: Path, moved: Path | None, colors: bool) -> str:
    """What a person reads when everything is up."""
    bold, dim, end = ("\033[1m", "\033[2m", "\033[0m") if colors else ("", "", "")
    rows = [
        ("Demo page", info.url + "/"),
        ("API description", f"{info.url}/docs   {info.url}/openapi.json"),
        ("Realtime", info.websocket),
        ("Server API", f"{info.url}/api/<method>   X-API-Key: {info.api_key}"),
        ("Health", f"{info.url}/health   {info.url}/ready   {info.url}/metrics"),
        ("Admin", f"{info.admin.email}   {info.admin.password}"),
        ("PostgreSQL", info.database_url),
        ("Valkey", info.redis_url),
        ("Data", str(folder) + (f"   (servers in {moved}: uid 65534 cannot reach the folder)" if moved else "")),
    ]
    lines = [f"  {dim}{name:<16}{end}{value}" for name, value in rows]
    return "\n".join(["", f"{bold}Wardgate is ready{end} (development; Ctrl-C stops it)", "", *lines, ""])


T = TypeVar("T")


def _read(file: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise Failure(f"{file} cannot be read: {error}") from error


def _write(file: Path, value: msgspec.Struct) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        json.dump(msgspec.to_builtins(value), stream)
        stream.write("\n")
    partial.replace(file)
