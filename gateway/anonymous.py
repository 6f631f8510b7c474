"""Sessions of anonymous connections: they stand in no table, so each node is asked for those that it has.

Here: this node's, out of its connections, and everybody's. How they are shown beside the others is `sessions.routes`'.
"""

from collections.abc import Iterable

import msgspec
import structlog

from config.redis import Unavailable
from gateway.control import Control
from gateway.hub import Hub
from gateway.peers import Peer
from sessions.routes import Anonymous, AnonymousQuery, place_of

log = structlog.get_logger(__name__)

KIND = "anonymous"
TIMEOUT = 1.0
"""Seconds that other nodes have for their answer; without it their sessions are not in the list."""

_encode = msgspec.msgpack.Encoder().encode
_query = msgspec.msgpack.Decoder(AnonymousQuery).decode
_found = msgspec.msgpack.Decoder(list[Anonymous]).decode


class AnonymousSessions:
    """This node's part, and the door to the others'."""

    def __init__(self, hub: Hub, control: Control) -> None:
        self._hub = hub
        self._control = control

    def listen(self) -> None:
        """Answer the others from now on."""
        self._control.on[KIND] = lambda payload: _encode(self._here(_query(payload)))

    async def page(self, query: AnonymousQuery) -> list[Anonymous]:
        """Newest first, on all nodes that answer; at most `query.limit`."""
        try:
            answers = (await self._control.ask(KIND, _encode(query), timeout=TIMEOUT)).answers
        except Unavailable as error:
            log.info("anonymous_of_this_node_only", why=str(error))
            return self._here(query)
        return _newest((found for answer in answers.values() for found in _found(answer)), query)

    def _here(self, query: AnonymousQuery) -> list[Anonymous]:
        anonymous = (peer for peer in self._hub.members() if peer.kind == "anonymous")
        now = self._hub.clock()
        return _newest((_shown(peer, now) for peer in anonymous), query)


def _shown(peer: Peer, now: float) -> Anonymous:
    about = peer.handshake
    return Anonymous(
        peer.sid,
        peer.issuer,
        device=about.device if about is not None else "",
        address=about.address if about is not None else "",
        created_at=about.at if about is not None else 0.0,
        idle_for=max(0.0, now - peer.seen_at),
        connections=1,
    )


def _newest(found: Iterable[Anonymous], query: AnonymousQuery) -> list[Anonymous]:
    """Connections of one session as one, cut to the page that is asked for."""
    by_sid: dict[str, Anonymous] = {}
    for session in found:
        if (query.sid and session.sid != query.sid) or (query.issuer and session.issuer != query.issuer):
            continue
        known = by_sid.get(session.sid)
        by_sid[session.sid] = session if known is None else known.with_(session)
    listed = [session for session in by_sid.values() if query.after is None or place_of(session) < query.after]
    return sorted(listed, key=place_of, reverse=True)[: query.limit]
