"""Passwords that were stolen somewhere, asked for at a service by the first five digits of their SHA-1 (k-anonymity).

The form is that of Have I Been Pwned's range API: `GET <url>/ABCDE` answers lines of the other 35 digits and a count,
for all hashes that begin so. The service learns five of forty digits, and not which of hundreds of lines was looked
for; with `Add-Padding` who watches the wire does not learn it from the length either: lines with the count 0 are made
up.

Off unless `auth.breached_range.url` is set. A list in a file is `breached`.
"""

import asyncio
import hashlib
import ipaddress
import re
from typing import Final

import aiohttp
import structlog

from config import outside
from config.http import Problem
from config.settings import BreachedRange as Settings

TIMEOUT: Final = 3.0
AT_ONCE: Final = 16
"""Questions under way, a process; above it the service counts as away."""
MAX_ANSWER: Final = 512 * 1024
"""Bytes of an answer. A range has about a thousand lines, and as many again that are made up."""

_ANSWER: Final = re.compile(rb"(?:[0-9A-Fa-f]{35}:[0-9]{1,12}\r?(?:\n|$))+")
_HEADERS: Final = {"Add-Padding": "true", "User-Agent": "Wardgate", "Accept": "text/plain"}

log = structlog.get_logger(__name__)


class BreachedRange:
    """One a process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._inside = [ipaddress.ip_network(network, strict=False) for network in settings.allow_networks]
        self._asking = 0

    async def has(self, password: str) -> bool:
        """Whether the service knows it. Where nobody can say, `when_away` decides: no, or Problem unavailable."""
        if not self._settings.url:
            return False
        digest = hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper().encode()
        try:
            answer = await self._ask(digest[:5].decode())
        except (aiohttp.ClientError, OSError, TimeoutError, outside.Forbidden, _NoAnswer) as error:
            log.warning("breached_range_away", error=f"{type(error).__name__}: {error}"[:200])
            if self._settings.when_away == "accept":
                return False
            raise Problem("unavailable", "new passwords cannot be compared with stolen ones", retry_after=5) from None
        found = re.search(rb"^%b:0*([1-9][0-9]*)\r?$" % digest[5:], answer.upper(), re.MULTILINE)
        return found is not None

    async def _ask(self, prefix: str) -> bytes:
        """The lines of a range."""
        if self._asking >= AT_ONCE:
            raise _NoAnswer("too many questions at once")
        self._asking += 1
        try:
            # Few people set a password at a time: a connection that is kept would hardly ever be used again.
            async with asyncio.timeout(TIMEOUT), outside.open_client(self._inside) as client:
                status, body = await outside.get(
                    client, f"{self._settings.url.rstrip('/')}/{prefix}", _HEADERS, self._inside, most=MAX_ANSWER
                )
        finally:
            self._asking -= 1
        if status != 200:
            raise _NoAnswer(f"answered {status}")
        if not _ANSWER.fullmatch(body):
            raise _NoAnswer("the answer is no range of hashes")
        return body


class _NoAnswer(Exception):
    """Nobody can say."""
