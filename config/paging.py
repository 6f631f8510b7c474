"""Keyset pages: a list goes on behind the last item that was shown, named by its moment and, among equals, by its id.

"1766577600000000.u_abc"    the `next` of a page and the `after` of the following one
"""

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from config.http import invalid

TEXT: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
NUMBER: Final = re.compile(r"[0-9]{1,17}")
UUID: Final = re.compile(r"[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}")
"""What an id in a cursor looks like, so that the database takes what a caller made up."""


class Cursor(NamedTuple):
    """Where a page ended: microseconds since 1970, and the id."""

    at_us: int
    id: str


def write(cursor: Cursor | None) -> str:
    """The `next` of a page, "" on the last."""
    return "" if cursor is None else f"{cursor.at_us}.{cursor.id}"


def read(text: str, id: re.Pattern[str] = TEXT) -> Cursor | None:
    """What `write` wrote; None for "". ValueError for anything else."""
    if not text:
        return None
    at, _, name = text.partition(".")
    if not NUMBER.fullmatch(at) or not id.fullmatch(name):
        raise ValueError("not a cursor")
    return Cursor(int(at), name)


def asked(after: str, id: re.Pattern[str] = TEXT) -> Cursor | None:
    """The same for a query's `after`. Problem invalid."""
    try:
        return read(after, id)
    except ValueError:
        raise invalid("after", "the `next` of the page before") from None


def cut(records: Sequence[Any], limit: int, *, id: str = "id") -> tuple[Sequence[Any], Cursor | None]:
    """Of records that were asked for with one more than `limit`: what is shown, and where the next page goes on.

    Each has `at_us`, and its id in the column `id`.
    """
    if len(records) <= limit:
        return records, None
    last = records[limit - 1]
    return records[:limit], Cursor(last["at_us"], str(last[id]))
