"""Passwords: which are acceptable, how they are hashed, and where the work is done.

    stored = "<pepper id>" + bcrypt(base64(HMAC-SHA384(pepper, NFC(password))))

bcrypt takes at most 72 bytes and ends at a NUL; the HMAC makes every password 64 printable bytes, whatever its length.
The pepper's id (8 hex digits) tells which pepper to use, so that one check is one hash, always.

`Hasher` is pure and slow; `Passwords` runs it in a bounded pool of threads that cannot starve the loop. No table is
read here.
"""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import bcrypt
import structlog

from auth.breached import Breached
from auth.breached_range import BreachedRange
from auth.common_passwords import too_common
from config.http import Problem, invalid
from config.settings import Auth

MAX_BYTES = 1024
STOLEN = "not one that was stolen somewhere: it stands on a list"
_ALPHABET = "./ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
# The cost is bounded here too: a damaged row must not occupy a thread for days.
_FORM = re.compile(r"[0-9a-f]{8}\$2b\$(?:0[4-9]|1[0-6])\$[./A-Za-z0-9]{53}")
_NICENESS = 10

T = TypeVar("T")
log = structlog.get_logger(__name__)


def bounded(field: str, password: str) -> str:
    """The password in NFC, if it is text that can be hashed at all; else 422 for `field`. Costs no hash."""
    normal = unicodedata.normalize("NFC", password)
    if len(password) > MAX_BYTES or len(normal.encode()) > MAX_BYTES:
        raise invalid(field, f"at most {MAX_BYTES} bytes")
    if "\x00" in normal:
        raise invalid(field, "no NUL characters")
    return normal


def acceptable(field: str, password: str, min_length: int, context: Iterable[str] = ()) -> str:
    """A *new* password in NFC, else 422. Length counts code points, and nothing about composition is asked; but it may
    be none of those that everybody tries. `context`: what is known of its owner (address, name)."""
    normal = bounded(field, password)
    if len(normal) < min_length:
        raise invalid(field, f"at least {min_length} characters")
    if why := too_common(normal, context):
        raise invalid(field, why)
    return normal


class Stored(NamedTuple):
    """A password as it is kept. `at_least`: so many characters long, as far as is kept (`at_least`)."""

    form: str
    at_least: int = 0


def at_least(settings: Auth, password: str) -> int:
    """What is kept of the length of a password in NFC: whether it is as long as it would have to be for an admin."""
    return settings.admin_password_min_length if len(password) >= settings.admin_password_min_length else 0


class Verdict(NamedTuple):
    """What a check found. `old`: right, but in a form that is not today's (cost or pepper): hash it again."""

    right: bool
    old: bool = False


class Hasher:
    """Today's cost and pepper, and yesterday's peppers. `hash` and `check` cost one bcrypt each."""

    def __init__(self, cost: int, pepper: bytes, previous: Iterable[bytes] = ()) -> None:
        self._cost = cost
        self._peppers: Mapping[str, bytes] = {_id(p): p for p in (*previous, pepper)}
        self._today = _id(pepper)
        # A form that no password has, made without hashing: what is checked where there is no account.
        tail = "".join(secrets.choice(_ALPHABET) for _ in range(31))
        self._decoy = self._today + bcrypt.gensalt(cost).decode() + tail

    def hash(self, password: str) -> str:
        """The stored form of a password in NFC."""
        return self._today + bcrypt.hashpw(_squeeze(self._peppers[self._today], password), self._salt()).decode()

    def check(self, stored: str | None, password: str) -> Verdict:
        """Whether `password` made `stored`. None (nobody), a damaged form and one of a pepper that is not in the
        settings cost a hash as well, and are wrong."""
        form = self._decoy if stored is None else stored
        if self._readable(form):
            try:
                right = self._matches(form, password) and stored is not None
            except ValueError:
                log.error("password_hash_damaged", stored_length=len(form))
            else:
                return Verdict(right, right and self._old(form))
        self._matches(self._decoy, password)
        return Verdict(False)

    def _readable(self, stored: str) -> bool:
        if not _FORM.fullmatch(stored):
            log.error("password_hash_damaged", stored_length=len(stored))
        elif stored[:8] not in self._peppers:
            log.error("password_pepper_unknown", id=stored[:8], known_ids=sorted(self._peppers))
        else:
            return True
        return False

    def _matches(self, stored: str, password: str) -> bool:
        return bcrypt.checkpw(_squeeze(self._peppers[stored[:8]], password), stored[8:].encode())

    def _old(self, stored: str) -> bool:
        return not stored.startswith(f"{self._today}$2b${self._cost:02d}$")

    def _salt(self) -> bytes:
        return bcrypt.gensalt(self._cost)


def _id(pepper: bytes) -> str:
    return hmac.digest(pepper, b"wardgate pepper id", "sha256")[:4].hex()


def _squeeze(pepper: bytes, password: str) -> bytes:
    return base64.b64encode(hmac.digest(pepper, password.encode(), hashlib.sha384))


class HashPool:
    """A few threads for slow pure functions. What neither runs nor fits the queue is refused at once.

    A slot belongs to the *work*, not to who waits for it: a cancelled waiter's job is dropped if it has not begun, else
    it keeps its slot until its thread is free again.
    """

    def __init__(self, threads: int, queue: int) -> None:
        self._limit = threads + queue
        self._taken = 0
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="hash", initializer=_step_back)
        self.refused = 0

    @property
    def taken(self) -> int:
        """Jobs that wait or run."""
        return self._taken

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """`work(*arguments)` in a thread. Problem `busy` when the pool is full."""
        with self._lock:
            if self._taken >= self._limit:
                self.refused += 1
                raise Problem("busy", "too many people log in at once", retry_after=2)
            self._taken += 1
        try:
            future = self._executor.submit(work, *arguments)
        except RuntimeError:  # shut down
            self._give_back()
            raise Problem("busy", "shutting down", retry_after=2) from None
        future.add_done_callback(self._give_back)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Drop what has not begun. A running hash ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _give_back(self, _: "Future[Any] | None" = None) -> None:
        with self._lock:
            self._taken -= 1


def _step_back() -> None:
    """A hash takes what the event loop leaves. Only on Linux has a thread a niceness of its own."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


class Passwords:
    """Hashing for the process: `hasher`'s work in `pool`."""

    def __init__(self, settings: Auth) -> None:
        self.min_length = settings.password_min_length
        self.pool = HashPool(settings.hash_threads, settings.hash_queue)
        self._settings, self._hasher, self._breached = settings, hasher(settings), Breached(settings.breached_passwords)
        self._range = BreachedRange(settings.breached_range)

    async def hash(self, password: str) -> str:
        """The stored form of a password that is somebody's already."""
        return await self.pool.run(self._hasher.hash, password)

    async def make(self, field: str, password: str) -> Stored:
        """A *new* password that `acceptable` gave back; 422 for `field` where it is known to have been stolen. Problem
        unavailable where that has to be asked for and cannot be."""
        if await self._range.has(password):
            raise invalid(field, STOLEN)
        return Stored(await self.pool.run(self._make, field, password), at_least(self._settings, password))

    def _make(self, field: str, password: str) -> str:
        if password in self._breached:
            raise invalid(field, STOLEN)
        return self._hasher.hash(password)

    async def stolen(self, password: str) -> bool:
        """Whether it stands on the list of stolen ones. No hash is spent, and nobody outside is asked: who saw the
        beginnings of one hash after the other, as somebody types, would know more than of one password."""
        return await asyncio.to_thread(self._breached.__contains__, password)

    def at_least(self, password: str) -> int:
        """What a login tells of the length of a password that was right."""
        return at_least(self._settings, password)

    async def check(self, stored: str | None, password: str) -> Verdict:
        """One job, whoever it is: the caller asks for nobody (None) just the same."""
        return await self.pool.run(self._hasher.check, stored, password)

    def figures(self) -> dict[str, float]:
        """For the metrics."""
        return {"hash_queue": float(self.pool.taken)}

    def close(self) -> None:
        self.pool.close()
        self._breached.close()


def hasher(settings: Auth) -> Hasher:
    """What the settings say; commands use it without a pool."""
    return Hasher(
        settings.bcrypt_cost,
        settings.pepper.get_secret_value().encode(),
        [p.get_secret_value().encode() for p in settings.previous_peppers],
    )
