"""Passwords that were stolen somewhere: a file of their SHA-1s, looked up without reading it.

The file is in the form of Have I Been Pwned's list, `SHA1:count`, a line each, sorted by the hash. A lookup is a binary
search of some thirty small reads; it may wait for a disk, so it is made where hashes are. Nobody is asked.
"""

import hashlib
import os
import re
from typing import Final

import structlog

from config.errors import Failure

log = structlog.get_logger(__name__)

_LINE: Final = re.compile(rb"([0-9A-Fa-f]{40}):\d{1,12}\r?(?:\n|$)")
_LONGEST: Final = 64
"""Bytes of a line at most, with its end."""


class Breached:
    """The list at `path`; "" is an empty one. Failure where it is none, as far as its first and last line tell."""

    def __init__(self, path: str) -> None:
        self._path, self._file, self._size = path, -1, 0
        if path:
            try:
                self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._size = os.fstat(self._file).st_size
            except OSError as error:
                raise Failure(f"{error.strerror}: {path}") from None
            first, last = self._line(0), self._line(max(0, self._size - _LONGEST))
            if first is None or last is None or first[1] > last[1]:
                self.close()
                raise Failure(f"no sorted lines of SHA1:count in {path}")

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __contains__(self, password: str) -> bool:
        """Whether it is on the list. A line that cannot be read ends the search: it is not, then."""
        wanted = hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper().encode()
        low, high = 0, self._size
        while low < high:
            middle = (low + high) // 2
            found = self._line(middle)
            if found is None or found[0] >= high:  # no line begins in the second half
                high = middle
                continue
            _, digest, end = found
            if digest == wanted:
                return True
            low, high = (end, high) if digest < wanted else (low, middle)
        return False

    def _line(self, at: int) -> tuple[int, bytes, int] | None:
        """The first line that begins at or after `at`: where, its hash, and where the next one begins."""
        read = os.pread(self._file, 2 * _LONGEST, max(0, at - 1))
        skip = 0 if at == 0 else read.find(b"\n") + 1
        if at and not skip:
            return None
        found = _LINE.match(read, skip)
        if found is None:
            if read[skip:]:
                log.error("breached_passwords_unreadable", at=at)
            return None
        begin = max(0, at - 1) + skip
        return begin, found[1].upper(), begin + found.end() - found.start()
