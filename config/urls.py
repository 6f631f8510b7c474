"""URLs that name several hosts, `scheme://user:password@one:1,[::1]:2/rest`, as PostgreSQL and Sentinel have them.

`urllib` knows one host: since it looks at brackets, it refuses an IPv6 address behind another. Not here: what a host or
the rest means.
"""

import re
from typing import NamedTuple

_SEVERAL = re.compile(r"(?P<before>[^:/?#]+://(?:[^/?#]*@)?)(?P<hosts>[^/?#]*)(?P<after>.*)", re.DOTALL)


class Several(NamedTuple):
    """`before + host + after` is a URL of one host, for each of `hosts`; there is at least one, perhaps empty."""

    before: str
    hosts: list[str]
    after: str

    @property
    def first(self) -> str:
        return self.before + self.hosts[0] + self.after


def several(url: str) -> Several:
    """The parts of a URL. What has no authority has one empty host, and is all `after` it."""
    found = _SEVERAL.fullmatch(url)
    return Several(found["before"], found["hosts"].split(","), found["after"]) if found else Several("", [""], url)
