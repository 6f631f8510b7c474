"""One wire in two forms: what either form says, the other says too. And no bytes make a decoder do anything but
return commands or raise ProtocolError."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.protocol import wire_pb2
from gateway.protocol.codec import JSON, PROTOBUF, Codec
from gateway.protocol.codes import ProtocolError
from gateway.protocol.commands import (
    DELTAS,
    MAX_OFFSET,
    ClientInfo,
    Command,
    ConnectRequest,
    ConnectResult,
    FilterNode,
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
    Request,
    Result,
    RpcRequest,
    RpcResult,
    SendRequest,
    StreamPosition,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribeRequest,
    SubscribeResult,
    UnsubscribeRequest,
    UnsubscribeResult,
)

unhurried = settings(deadline=None)  # a busy machine is no failure

text = st.text(max_size=20)
name = st.text(min_size=1, max_size=20)
offset = st.integers(0, MAX_OFFSET)
ttl = st.integers(0, 2**32 - 1)
i32 = st.integers(-(2**31), 2**31 - 1)
i64 = st.integers(-(2**63), 2**63 - 1)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
some_json = values.map(lambda value: json.dumps(value).encode()) | values.map(
    lambda value: json.dumps(value, ensure_ascii=False, separators=(" , ", " : ")).encode()
)
data = st.just(b"") | some_json

nodes = st.recursive(
    st.builds(FilterNode, text, text, text, text, st.lists(text, max_size=2)),
    lambda inner: st.builds(FilterNode, text, text, text, text, st.just([]), st.lists(inner, max_size=2)),
    max_leaves=4,
)
subscribe = st.builds(
    SubscribeRequest,
    name,
    text,
    st.booleans(),
    text,
    offset,
    data,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", *DELTAS]),
    st.none() | nodes,
    i64,
    i32,
)
positions = st.builds(StreamPosition, offset, text)
requests: st.SearchStrategy[Request] = st.one_of(
    st.builds(
        ConnectRequest,
        text,
        data,
        st.dictionaries(name, subscribe, max_size=2),
        text,
        text,
        st.dictionaries(text, text, max_size=2),
        i64,
    ),
    subscribe,
    st.builds(UnsubscribeRequest, name),
    st.builds(PublishRequest, name, data, i32),
    st.builds(PresenceRequest, name),
    st.builds(PresenceStatsRequest, name),
    st.builds(HistoryRequest, name, i32, st.none() | positions, st.booleans()),
    st.builds(RpcRequest, data, text),
    st.builds(SendRequest, data),
    st.builds(RefreshRequest, name),
    st.builds(SubRefreshRequest, name, text),
)
commands = st.builds(Command, st.integers(1, 2**32 - 1), requests)

infos = st.builds(ClientInfo, text, text, data, data)
publications = st.builds(
    Publication,
    some_json,
    offset,
    text,
    st.none() | infos,
    st.dictionaries(text, text, max_size=2),
    st.just(0),
    st.booleans(),
)
subscribed = st.builds(
    SubscribeResult,
    st.booleans(),
    ttl,
    st.booleans(),
    text,
    st.lists(publications, max_size=3),
    st.booleans(),
    offset,
    st.booleans(),
    data,
    st.booleans(),
    st.booleans(),
)
results: st.SearchStrategy[Result] = st.one_of(
    st.builds(
        ConnectResult,
        text,
        text,
        st.booleans(),
        ttl,
        data,
        st.dictionaries(name, subscribed, max_size=2),
        ttl,
        st.booleans(),
        text,
        text,
    ),
    subscribed,
    st.just(UnsubscribeResult()),
    st.just(PublishResult()),
    st.builds(PresenceResult, st.dictionaries(text, infos, max_size=2)),
    st.builds(PresenceStatsResult, ttl, ttl),
    st.builds(HistoryResult, st.lists(publications, max_size=3), text, offset),
    st.builds(RpcResult, data),
    st.builds(RefreshResult, text, text, st.booleans(), ttl),
    st.builds(SubRefreshResult, st.booleans(), ttl),
)


def plain(value: Any) -> Any:
    """A struct as what a JSON reader makes of it; raw data parsed."""
    if isinstance(value, bytes):
        return json.loads(value)
    if isinstance(value, msgspec.Struct):
        return {f: plain(getattr(value, f)) for f in value.__struct_fields__ if getattr(value, f) not in (b"", None)}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list) else value


def as_json(command: Command) -> bytes:
    assert command.request is not None
    return json.dumps({"id": command.id, command.kind: plain(command.request)}).encode()


def as_protobuf(command: Command) -> bytes:
    def fill(message: Any, value: msgspec.Struct) -> None:
        message.SetInParent()
        for field in value.__struct_fields__:
            found = getattr(value, field)
            if isinstance(found, msgspec.Struct):
                fill(getattr(message, field), found)
            elif isinstance(found, dict) and found and isinstance(next(iter(found.values())), msgspec.Struct):
                for key, item in found.items():
                    fill(getattr(message, field)[key], item)
            elif isinstance(found, dict):
                getattr(message, field).update(found)
            elif isinstance(found, list) and found and isinstance(found[0], msgspec.Struct):
                for item in found:
                    fill(getattr(message, field).add(), item)
            elif isinstance(found, list):
                getattr(message, field).extend(found)
            elif found is not None:
                setattr(message, field, found)

    message = wire_pb2.Command(id=command.id)
    assert command.request is not None
    fill(getattr(message, command.kind), command.request)
    return message.SerializeToString()


def normal(command: Command) -> Any:
    return command.id, command.kind, plain(command.request)


@unhurried
@given(st.lists(commands, min_size=1, max_size=4))
def test_commands_mean_the_same_in_both_forms(sent: list[Command]) -> None:
    from_json = JSON.decode(b"\n".join(map(as_json, sent)))
    from_protobuf = PROTOBUF.decode(PROTOBUF.batch([as_protobuf(command) for command in sent]))
    assert from_protobuf == sent
    assert list(map(normal, from_json)) == list(map(normal, sent))


ALWAYS = {
    "presence": {"presence"},
    "presence_stats": {"num_clients", "num_users"},
    "history": {"publications", "epoch", "offset"},
}


def said(message: Any) -> Any:
    """A Protobuf message as the JSON form would have it: empty fields left out, but for ClientInfo's names."""
    out: dict[str, Any] = {}
    keep = {"user", "client"} if message.DESCRIPTOR.name == "ClientInfo" else set()
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = {k: said(v) if hasattr(v, "DESCRIPTOR") else v for k, v in value.items()}
        elif field.message_type is not None and field.is_repeated:
            value = [said(item) for item in value]
        elif field.message_type is not None:
            if message.HasField(field.name):
                out[field.name] = said(value)
            continue
        elif field.type == field.TYPE_BYTES and value:
            value = json.loads(value)
            out[field.name] = value
            continue
        if value or field.name in keep:
            out[field.name] = value
    return out


@unhurried
@given(st.integers(1, 2**32 - 1), results)
def test_replies_mean_the_same_in_both_forms(id: int, result: Result) -> None:
    from_json = json.loads(JSON.reply(id, result))
    from_protobuf = said(wire_pb2.Reply.FromString(PROTOBUF.reply(id, result)))
    body = from_json[result.kind]
    always = ALWAYS.get(result.kind, set())
    assert always <= body.keys()
    body = {key: value for key, value in body.items() if value or key not in always}
    assert {**from_json, result.kind: body} == from_protobuf


@unhurried
@given(text, publications)
def test_publications_mean_the_same_in_both_forms(channel: str, publication: Publication) -> None:
    from_json = json.loads(JSON.pub(channel, publication))
    from_protobuf = said(wire_pb2.Reply.FromString(PROTOBUF.pub(channel, publication)))
    from_protobuf["push"].setdefault("channel", "")
    assert from_json == from_protobuf
    assert b"\n" not in JSON.pub(channel, publication)


def decode(codec: Codec, payload: bytes) -> list[Command]:
    """What a transport does with a frame."""
    try:
        return codec.decode(payload)
    except ProtocolError:
        return []


@pytest.mark.parametrize("codec", [JSON, PROTOBUF])
@unhurried
@given(payload=st.binary(max_size=200))
@example(payload=b'{"id":1,"publish":{"channel":"\\ud800","data":1}}')
@example(payload=b'{"id":1,"publish":{"channel":"c","data":"' + b"\\" * 1001 + b'"}}')
@example(payload=b'{"id":1,"publish":{"channel":"c","data":"' + b'\\"' * 1001)
@example(payload=b'{"id":' + b"9" * 5000 + b',"rpc":{}}')
@example(payload=b'{"id":1,"history":{"channel":"c","since":{"offset":' + b"9" * 5000 + b"}}}")
@example(payload=b'{"id":1,"connect":{"subs":' + b"[" * 50_000)
@example(payload=b'{"id":1,"subscribe":{"channel":"c","tf":' + b'{"nodes":[' * 5000)
def test_any_bytes_make_commands_or_a_protocol_error(codec: Codec, payload: bytes) -> None:
    decode(codec, payload)


@pytest.mark.parametrize("codec", [JSON, PROTOBUF])
@unhurried
@given(payload=commands.flatmap(lambda c: st.tuples(st.just(c), st.integers(0, 10_000), st.integers(0, 255))))
def test_one_wrong_byte_makes_commands_or_a_protocol_error(codec: Codec, payload: tuple[Command, int, int]) -> None:
    command, place, value = payload
    frame = bytearray(as_json(command) if codec is JSON else PROTOBUF.batch([as_protobuf(command)]))
    frame[place % len(frame)] = value
    decode(codec, bytes(frame))


@pytest.mark.parametrize("codec", [JSON, PROTOBUF])
@unhurried
@given(sent=commands, at=st.integers(0, 10_000))
def test_a_frame_cut_short_is_refused(codec: Codec, sent: Command, at: int) -> None:
    frame = as_json(sent) if codec is JSON else PROTOBUF.batch([as_protobuf(sent)])
    with pytest.raises(ProtocolError):
        codec.decode(frame[: at % len(frame)])
