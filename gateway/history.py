"""Streams of publications in Redis: reading, recovering, forgetting.

Appending is the broker's. Whether a client has recovered is decided elsewhere, from what is read here in one step.

    WrongEpoch      `since` names an epoch that the stream no longer has: offsets of it mean nothing (protocol: 112)
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from config.redis import Argument, Pipe, Run, Script, Unavailable
from gateway import busframe
from gateway.broker import POSITION, Epochs, meta_milliseconds
from gateway.keys import Keys
from gateway.protocol.commands import Publication, StreamPosition

CHUNK = 500
"""Channels that are asked for in one batch."""

# KEYS: stream, meta. ARGV: server, new epoch, meta's ms, limit, since's offset or '', since's epoch, reverse, whole.
# Replies offset, epoch, entries. Nothing is read where `since` is of another epoch, or (whole) where more than `limit`
# publications stand behind it.
_READ = Script(
    POSITION
    + """
local offset, epoch = position(KEYS[1], KEYS[2], ARGV[1], ARGV[2], ARGV[3])
local limit, since = tonumber(ARGV[4]), tonumber(ARGV[5])
if limit == 0 or (since and ARGV[6] ~= '' and ARGV[6] ~= epoch) then return {offset, epoch, {}} end
if ARGV[8] == '1' and offset - (since or 0) > limit then return {offset, epoch, {}} end
if ARGV[7] == '1' then
  local from = since and since - 1 or offset
  if from < 1 then return {offset, epoch, {}} end
  return {offset, epoch, redis.call('XREVRANGE', KEYS[1], from, '-', 'COUNT', limit)}
end
return {offset, epoch, redis.call('XRANGE', KEYS[1], (since or 0) + 1, '+', 'COUNT', limit)}
"""
)


class WrongEpoch(Exception):
    """`position` is where the stream is now."""

    def __init__(self, position: StreamPosition) -> None:
        super().__init__(position)
        self.position = position


class Stream(NamedTuple):
    """What was read of a stream in one step, with its top."""

    publications: list[Publication]
    offset: int
    epoch: str


class History:
    """The streams below one prefix. Everything raises Unavailable when Redis is away."""

    def __init__(self, pipe: Pipe, *, prefix: str, maximum: int = 300) -> None:
        """`maximum`: publications that one read returns at most."""
        self.malformed = 0
        self._pipe = pipe
        self._keys = Keys(prefix)
        self._maximum = maximum
        self._epochs = Epochs()

    async def read(
        self,
        channel: str,
        *,
        since: StreamPosition | None = None,
        limit: int = 0,
        reverse: bool = False,
        meta_ttl: float = 0.0,
    ) -> Stream:
        """Publications after `since` (`reverse`: before it, newest first), or from the oldest (newest) on.

        `limit` 0 reads the position alone, -1 as much as there may be. An empty epoch in `since` fits any stream;
        another one than the stream's raises WrongEpoch. A stream that is not there begins here, at offset 0.
        """
        limit = self._maximum if limit < 0 else min(limit, self._maximum)
        found = await self._read(self._run(channel, since, limit, reverse, False, meta_ttl))
        if since is not None and since.epoch and since.epoch != found.epoch:
            raise WrongEpoch(StreamPosition(found.offset, found.epoch))
        return found

    async def missed(self, channel: str, since: StreamPosition, *, limit: int, meta_ttl: float = 0.0) -> Stream:
        """For recovery: all that came after `since`, in the same step as the position, or nothing.

        Nothing where the epoch is another, or where more than `limit` came. What the caller must still see: that the
        offsets begin right behind `since` and go without a gap up to the top (some may have been evicted).
        """
        return await self._read(self._run(channel, since, limit, False, True, meta_ttl))

    async def tops(self, channels: Mapping[str, float]) -> dict[str, StreamPosition]:
        """Where streams are now, of channels with their meta's ttl. One that could not be told is left out."""
        names = list(channels)
        tops: dict[str, StreamPosition] = {}
        for start in range(0, len(names), CHUNK):
            chunk = names[start : start + CHUNK]
            runs = [self._run(name, None, 0, False, False, channels[name]) for name in chunk]
            for name, reply in zip(chunk, await self._pipe.batch(runs), strict=True):
                if not isinstance(reply, Unavailable):
                    tops[name] = StreamPosition(reply[0], reply[1].decode())
        return tops

    async def remove(self, channel: str) -> None:
        """Forget the publications; offset and epoch stay."""
        await self._pipe.call("DEL", self._keys.channel(channel).stream)

    def _run(
        self, channel: str, since: StreamPosition | None, limit: int, reverse: bool, whole: bool, meta_ttl: float
    ) -> Run:
        names = self._keys.channel(channel)
        args: list[Argument] = [
            self._pipe.server,
            self._epochs.next(),
            meta_milliseconds(meta_ttl),
            limit,
            "" if since is None else since.offset,
            "" if since is None else since.epoch,
            int(reverse),
            int(whole),
        ]
        return Run(_READ, [names.stream, names.meta], args)

    async def _read(self, run: Run) -> Stream:
        offset, epoch, entries = await self._pipe.run(*run)
        position = epoch.decode()
        return Stream([p for entry in entries if (p := self._publication(entry, position))], offset, position)

    def _publication(self, entry: Any, epoch: str) -> Publication | None:
        """None for one that cannot be read (a newer version's): it is then missing, which a client must learn of."""
        name, (version, content) = entry
        try:
            return busframe.read_body(version, content, 0, int(name.partition(b"-")[0]), epoch).publication
        except busframe.Malformed:
            self.malformed += 1
            return None
