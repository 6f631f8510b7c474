"""The JSON form of the wire: one message a line, no line break inside a message. Implements `codec.Codec`.

Data is never parsed and built again: it is checked once and spliced. The order of an object's fields is the one of the
fields in commands.py; empty ones are left out, but for those that `_WRITE` names.
"""

import re
import typing
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

import msgspec
from msgspec import Raw, Struct

from gateway.protocol.codes import NotJson, ProtocolError
from gateway.protocol.commands import (
    MAX_COMMANDS,
    PONG,
    U32,
    ClientInfo,
    Command,
    ConnectRequest,
    ConnectResult,
    HistoryRequest,
    HistoryResult,
    PresenceRequest,
    PresenceResult,
    PresenceStatsRequest,
    PresenceStatsResult,
    Publication,
    PublishRequest,
    PublishResult,
    RefreshRequest,
    RefreshResult,
    Result,
    RpcRequest,
    RpcResult,
    SendRequest,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribePush,
    SubscribeRequest,
    SubscribeResult,
    UnsubscribeRequest,
    UnsubscribeResult,
    command,
)


class _Line(Struct, gc=False):
    """A command as it stands in JSON. Unknown fields are skipped."""

    id: U32 = 0
    connect: ConnectRequest | None = None
    subscribe: SubscribeRequest | None = None
    unsubscribe: UnsubscribeRequest | None = None
    publish: PublishRequest | None = None
    presence: PresenceRequest | None = None
    presence_stats: PresenceStatsRequest | None = None
    history: HistoryRequest | None = None
    rpc: RpcRequest | None = None
    send: SendRequest | None = None
    refresh: RefreshRequest | None = None
    sub_refresh: SubRefreshRequest | None = None


_line = msgspec.json.Decoder(_Line).decode
_fields = msgspec.json.Decoder(dict[str, Raw]).decode
_value = msgspec.json.Decoder(Raw).decode
_text = msgspec.json.Encoder().encode


class JsonCodec:
    """JSON: one message a line, no line break inside a message."""

    name = "json"
    binary = False
    PING = b"{}"

    def decode(self, payload: bytes) -> list[Command]:
        if payload == b"{}":
            return [PONG]
        if not payload.isascii():
            _check_utf8(payload)
        lines = payload.split(b"\n", MAX_COMMANDS + 1)
        if len(lines) > 1 and not lines[-1]:
            lines.pop()  # one line break may end the frame
        if len(lines) > MAX_COMMANDS:
            raise ProtocolError("too many commands in a frame")
        return [self._decode(line) for line in lines]

    def _decode(self, line: bytes) -> Command:
        try:
            found = _line(line)
        except (msgspec.DecodeError, RecursionError):
            found = _forgive(line)
        if not _shallow(line):
            raise ProtocolError("nested too deep")
        requests = (
            found.connect,
            found.subscribe,
            found.unsubscribe,
            found.publish,
            found.presence,
            found.presence_stats,
            found.history,
            found.rpc,
            found.send,
            found.refresh,
            found.sub_refresh,
        )
        return command(found.id, [request for request in requests if request is not None])

    def reply(self, id: int, result: Result) -> bytes:
        return b'{"id":%d,"%b":%b}' % (id, result.kind.encode(), _WRITE[type(result)](result))

    def error(self, id: int, code: int, message: str, temporary: bool = False) -> bytes:
        tail = b',"temporary":true' if temporary else b""
        return b'{"id":%d,"error":{"code":%d,"message":%b%b}}' % (id, code, _text(message), tail)

    def pub(self, channel: str, publication: Publication) -> bytes:
        body = _publication(publication)
        if publication.offset == 1 and publication.epoch:
            body = b'%b,"epoch":%b}' % (body[:-1], _text(publication.epoch))
        return b'{"push":{"channel":%b,"pub":%b}}' % (_text(channel), body)

    def join(self, channel: str, info: ClientInfo) -> bytes:
        return b'{"push":{"channel":%b,"join":{"info":%b}}}' % (_text(channel), _WRITE[ClientInfo](info))

    def leave(self, channel: str, info: ClientInfo) -> bytes:
        return b'{"push":{"channel":%b,"leave":{"info":%b}}}' % (_text(channel), _WRITE[ClientInfo](info))

    def subscribe(self, channel: str, push: SubscribePush) -> bytes:
        return b'{"push":{"channel":%b,"subscribe":%b}}' % (_text(channel), _WRITE[SubscribePush](push))

    def unsubscribe(self, channel: str, code: int, reason: str) -> bytes:
        return b'{"push":{"channel":%b,"unsubscribe":%b}}' % (_text(channel), _why(code, reason))

    def message(self, data: bytes) -> bytes:
        return b'{"push":{"message":{"data":%b}}}' % _splice(data)

    def connect(self, result: ConnectResult) -> bytes:
        return b'{"push":{"connect":%b}}' % _WRITE[ConnectResult](result)

    def disconnect(self, code: int, reason: str) -> bytes:
        return b'{"push":{"disconnect":%b}}' % _why(code, reason)

    def refresh(self, result: RefreshResult) -> bytes:
        return b'{"push":{"refresh":%b}}' % _WRITE[RefreshResult](result)

    def batch(self, messages: Sequence[bytes]) -> bytes:
        return b"\n".join(messages)


def _check_utf8(data: bytes) -> None:
    """The JSON decoder does not look inside strings that it skips."""
    try:
        data.decode()
    except UnicodeDecodeError:
        raise ProtocolError("not UTF-8") from None


def _forgive(line: bytes) -> _Line:
    """A line that did not decode, without what other readers of JSON let pass: `null` for an absent field, and half a
    surrogate pair, as JSON.stringify writes half an emoji. ProtocolError if that was not it."""
    try:
        fields = _fields(_whole_characters(line))
        return _line(_text({name: _without_nulls(value) for name, value in fields.items()}))
    except (msgspec.DecodeError, RecursionError):
        raise ProtocolError("malformed command") from None


def _without_nulls(value: Raw) -> Raw:
    if not bytes(value).startswith(b"{"):
        return value
    return Raw(_text({name: v for name, v in _fields(value).items() if name == "data" or bytes(v) != b"null"}))


_ESCAPES = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(\\u[dD][89a-fA-F][0-9a-fA-F]{2})|\\.", re.DOTALL
)


def _whole_characters(text: bytes) -> bytes:
    """JSON text with a replacement character for every half of a surrogate pair."""
    return _ESCAPES.sub(lambda found: b"\\ufffd" if found[1] else found[0], text)


_STRINGS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_STEPS = [1 if byte in b"{[" else -1 for byte in range(256)]


def _shallow(text: bytes) -> bool:
    """Whether valid JSON nests at most MAX_DEPTH deep. Most has no more opening brackets than that."""
    if text.count(b"{") + text.count(b"[") <= MAX_DEPTH:
        return True
    brackets = _STRINGS.sub(b"", text).translate(None, _NOT_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0) <= MAX_DEPTH


MAX_DEPTH = 128
"""How deep JSON may nest; in a command counted from the command's own brace."""


def is_json(data: bytes) -> bool:
    """Whether `data` is one JSON value in UTF-8, at most MAX_DEPTH deep: the check at every door but `decode`."""
    try:
        data.decode()
        _value(data)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return False
    return _shallow(data)


def _splice(data: bytes) -> bytes:
    """`data` as it goes into a message: untouched, less line breaks, which in JSON stand between tokens only."""
    try:
        if not data.isascii():
            data.decode()
        try:
            _value(data)
        except msgspec.DecodeError:
            data = _whole_characters(data)
            _value(data)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        raise NotJson from None
    return data.replace(b"\n", b"") if b"\n" in data else data


def _why(code: int, reason: str) -> bytes:
    return b'{"code":%d,"reason":%b}' % (code, _text(reason))


def _publication(publication: Publication) -> bytes:
    """As in a push and in a list, without the epoch."""
    data, info, offset = publication.data, publication.info, publication.offset
    if info is None and offset and not publication.tags and not publication.delta and data:
        return b'{"data":%b,"offset":%d}' % (_splice(data), offset)
    parts = [b'"data":%b' % _splice(data)] if data else []
    if info is not None:
        parts.append(b'"info":%b' % _WRITE[ClientInfo](info))
    if offset:
        parts.append(b'"offset":%d' % offset)
    if publication.tags:
        parts.append(b'"tags":%b' % _text(publication.tags))
    if publication.delta:
        parts.append(b'"delta":true')
    return b"{%b}" % b",".join(parts)


def _writer(shape: type[Struct], always: Iterable[str] = ()) -> Callable[[Any], bytes]:
    """A function that writes a `shape` as a JSON object: its fields in order, empty ones left out but for `always`."""
    hints = typing.get_type_hints(shape)
    fields = [(b'"%b":' % n.encode(), n, _converter(hints[n]), n in always) for n in shape.__struct_fields__]

    def write(value: Any) -> bytes:
        parts = []
        for name, attribute, convert, kept in fields:
            found = getattr(value, attribute)
            if found or kept:
                parts.append(name + convert(found))
        return b"{%b}" % b",".join(parts)

    return write


def _converter(hint: Any) -> Callable[[Any], bytes]:
    if hint is bytes:
        return _splice
    if hint in (bool, int, str):
        return _text
    if hint == list[Publication]:
        return lambda found: b"[%b]" % b",".join(map(_publication, found))
    shape = typing.get_args(hint)[1]  # dict[str, a shape]
    return lambda found: b"{%b}" % b",".join(b"%b:%b" % (_text(k), _WRITE[shape](v)) for k, v in found.items())


_WRITE: dict[type, Callable[[Any], bytes]] = {
    ClientInfo: _writer(ClientInfo, always=("user", "client")),
    ConnectResult: _writer(ConnectResult),
    SubscribeResult: _writer(SubscribeResult),
    UnsubscribeResult: _writer(UnsubscribeResult),
    PublishResult: _writer(PublishResult),
    PresenceResult: _writer(PresenceResult, always=("presence",)),
    PresenceStatsResult: _writer(PresenceStatsResult, always=("num_clients", "num_users")),
    HistoryResult: _writer(HistoryResult, always=("publications", "epoch", "offset")),
    RpcResult: _writer(RpcResult),
    RefreshResult: _writer(RefreshResult),
    SubRefreshResult: _writer(SubRefreshResult),
    SubscribePush: _writer(SubscribePush),
}
