"""The Protobuf form of the wire: each message after its length as a varint. Implements `codec.Codec`.

Messages are those of wire.proto, whose generated module must have been made. Data is any bytes.
"""

from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import DecodeError, Message
from msgspec import Struct

from gateway.protocol.codes import ProtocolError
from gateway.protocol.commands import (
    MAX_COMMANDS,
    PONG,
    ClientInfo,
    Command,
    ConnectRequest,
    ConnectResult,
    FilterNode,
    HistoryRequest,
    PresenceRequest,
    PresenceStatsRequest,
    Publication,
    PublishRequest,
    RefreshRequest,
    RefreshResult,
    Request,
    Result,
    RpcRequest,
    SendRequest,
    StreamPosition,
    SubRefreshRequest,
    SubscribePush,
    SubscribeRequest,
    UnsubscribeRequest,
    command,
)

try:
    from gateway.protocol import wire_pb2 as wire
except Exception as error:  # not there, or made for another version of the runtime
    raise ImportError(f"make the Protobuf form first: python -m gateway.protocol.build ({error})") from error


class ProtobufCodec:
    """Protobuf: each message after its length as a varint; a length of 0 is a ping or a pong."""

    name = "protobuf"
    binary = True
    PING = b"\x00"

    def decode(self, payload: bytes) -> list[Command]:
        if not payload:
            raise ProtocolError("empty frame")
        commands: list[Command] = []
        at, size = 0, len(payload)
        while at < size:
            length, at = _length(payload, at)
            if length > size - at:
                raise ProtocolError("truncated command")
            if len(commands) == MAX_COMMANDS:
                raise ProtocolError("too many commands in a frame")
            commands.append(self._decode(payload[at : at + length]) if length else PONG)
            at += length
        return commands

    def _decode(self, message: bytes) -> Command:
        try:
            found = wire.Command.FromString(message)
        except DecodeError:
            raise ProtocolError("malformed command") from None
        requests = [_READ[field.name](value) for field, value in found.ListFields() if field.name != "id"]
        return command(found.id, requests)

    def reply(self, id: int, result: Result) -> bytes:
        reply = wire.Reply(id=id)
        _fill(getattr(reply, result.kind), result)
        return reply.SerializeToString()

    def error(self, id: int, code: int, message: str, temporary: bool = False) -> bytes:
        return wire.Reply(id=id, error=wire.Error(code=code, message=message, temporary=temporary)).SerializeToString()

    def pub(self, channel: str, publication: Publication) -> bytes:
        reply = wire.Reply()
        push = reply.push
        push.channel = channel
        _fill_publication(push.pub, publication)
        if publication.offset == 1 and publication.epoch:
            push.pub.epoch = publication.epoch
        return reply.SerializeToString()

    def join(self, channel: str, info: ClientInfo) -> bytes:
        reply = wire.Reply(push=wire.Push(channel=channel))
        _fill(reply.push.join.info, info)
        return reply.SerializeToString()

    def leave(self, channel: str, info: ClientInfo) -> bytes:
        reply = wire.Reply(push=wire.Push(channel=channel))
        _fill(reply.push.leave.info, info)
        return reply.SerializeToString()

    def subscribe(self, channel: str, push: SubscribePush) -> bytes:
        reply = wire.Reply(push=wire.Push(channel=channel))
        _fill(reply.push.subscribe, push)
        return reply.SerializeToString()

    def unsubscribe(self, channel: str, code: int, reason: str) -> bytes:
        push = wire.Push(channel=channel, unsubscribe=wire.Unsubscribe(code=code, reason=reason))
        return wire.Reply(push=push).SerializeToString()

    def message(self, data: bytes) -> bytes:
        return wire.Reply(push=wire.Push(message=wire.Message(data=data))).SerializeToString()

    def connect(self, result: ConnectResult) -> bytes:
        reply = wire.Reply()
        _fill(reply.push.connect, result)
        return reply.SerializeToString()

    def disconnect(self, code: int, reason: str) -> bytes:
        push = wire.Push(disconnect=wire.Disconnect(code=code, reason=reason))
        return wire.Reply(push=push).SerializeToString()

    def refresh(self, result: RefreshResult) -> bytes:
        push = wire.Push(refresh=wire.Refresh(expires=result.expires, ttl=result.ttl))
        return wire.Reply(push=push).SerializeToString()

    def batch(self, messages: Sequence[bytes]) -> bytes:
        parts: list[bytes] = []
        for message in messages:
            parts += (_varint(len(message)), message)
        return b"".join(parts)


def _length(payload: bytes, at: int) -> tuple[int, int]:
    """The varint at `at`, and where it ends. At most five bytes: more could not be the length of anything here."""
    length = shift = 0
    for byte in payload[at : at + 5]:
        at += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return length, at
        shift += 7
    raise ProtocolError("malformed length")


def _varint(number: int) -> bytes:
    if number < 0x80:
        return _SHORT[number]
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_SHORT = [bytes((number,)) for number in range(0x80)]


def _filter(node: "wire.FilterNode") -> FilterNode:
    return FilterNode(node.op, node.key, node.cmp, node.val, list(node.vals), [_filter(n) for n in node.nodes])


def _subscribe(found: "wire.SubscribeRequest") -> SubscribeRequest:
    return SubscribeRequest(
        channel=found.channel,
        token=found.token,
        recover=found.recover,
        epoch=found.epoch,
        offset=found.offset,
        data=found.data,
        positioned=found.positioned,
        recoverable=found.recoverable,
        join_leave=found.join_leave,
        delta=found.delta,
        tf=_filter(found.tf) if found.HasField("tf") else None,
        flag=found.flag,
        type=found.type,
    )


def _connect(found: "wire.ConnectRequest") -> ConnectRequest:
    return ConnectRequest(
        token=found.token,
        data=found.data,
        subs={channel: _subscribe(sub) for channel, sub in found.subs.items()},
        name=found.name,
        version=found.version,
        headers=dict(found.headers),
        flag=found.flag,
    )


def _history(found: "wire.HistoryRequest") -> HistoryRequest:
    since = StreamPosition(found.since.offset, found.since.epoch) if found.HasField("since") else None
    return HistoryRequest(channel=found.channel, limit=found.limit, since=since, reverse=found.reverse)


_READ: dict[str, Callable[[Any], Request]] = {
    "connect": _connect,
    "subscribe": _subscribe,
    "unsubscribe": lambda found: UnsubscribeRequest(found.channel),
    "publish": lambda found: PublishRequest(found.channel, found.data, found.type),
    "presence": lambda found: PresenceRequest(found.channel),
    "presence_stats": lambda found: PresenceStatsRequest(found.channel),
    "history": _history,
    "rpc": lambda found: RpcRequest(found.data, found.method),
    "send": lambda found: SendRequest(found.data),
    "refresh": lambda found: RefreshRequest(found.token),
    "sub_refresh": lambda found: SubRefreshRequest(found.channel, found.token),
}


def _fill(message: Message, value: Struct) -> None:
    """Copy what is not empty into the fields of the same names; the message counts as set even when nothing is."""
    message.SetInParent()
    for name in value.__struct_fields__:
        found = getattr(value, name)
        if not found:
            continue
        if isinstance(found, list):
            for publication in found:
                _fill_publication(getattr(message, name).add(), publication)
        elif isinstance(found, dict):
            entries = getattr(message, name)
            for key, entry in found.items():
                _fill(entries[key], entry)
        else:
            setattr(message, name, found)


def _fill_publication(message: "wire.Publication", publication: Publication) -> None:
    """As in a push and in a list, without the epoch."""
    message.data = publication.data
    message.offset = publication.offset
    if publication.info is not None:
        _fill(message.info, publication.info)
    if publication.tags:
        message.tags.update(publication.tags)
    if publication.delta:
        message.delta = True
