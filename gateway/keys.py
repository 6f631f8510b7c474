"""Names in Redis: where a channel's, a node's and the cluster's things stand. Pure.

All of one channel stands in one partition, so that one script may touch it on a cluster too:
`<prefix>:{<p>}:<kind>:<channel>` with p = crc32(UTF-8 channel) mod 256. `{` and `}` in names are escaped.
"""

import hashlib
import zlib
from functools import lru_cache
from typing import NamedTuple

PARTITIONS = 256
_ESCAPES = str.maketrans({"{": "%7B", "}": "%7D", "%": "%25"})


class ChannelKeys(NamedTuple):
    """What stands in Redis for one channel. `bus` is the pub/sub name."""

    bus: str
    stream: str
    meta: str
    presence: str
    presence_expiry: str
    presence_users: str
    result: str  # the beginning of the names of remembered results


class Keys:
    """The names below one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes = f"{prefix}:nodes"
        self.control = f"{prefix}:control"
        self.caps = f"{prefix}:{{caps}}"
        self.channel = lru_cache(maxsize=10_000)(self._channel)

    def _channel(self, channel: str) -> ChannelKeys:
        head = f"{self.prefix}:{{{zlib.crc32(channel.encode()) % PARTITIONS}}}"
        name = escape(channel)
        return ChannelKeys(
            bus=f"{head}:bus:{name}",
            stream=f"{head}:stream:{name}",
            meta=f"{head}:meta:{name}",
            presence=f"{head}:presence:{name}",
            presence_expiry=f"{head}:presence-expiry:{name}",
            presence_users=f"{head}:presence-users:{name}",
            result=f"{head}:result:{name}:",
        )

    def result(self, channel: str, idempotency_key: str) -> str:
        """Where the result of a publication is remembered; keys of any length take the same room."""
        digest = hashlib.blake2b(idempotency_key.encode(), digest_size=16).hexdigest()
        return self.channel(channel).result + digest

    def node(self, node: str, kind: str) -> str:
        """All of one node stands together, too."""
        return f"{self.prefix}:{{n:{escape(node)}}}:{kind}"


def escape(name: str) -> str:
    """A name that holds no hash tag of its own. Two names never become one."""
    return name.translate(_ESCAPES)
