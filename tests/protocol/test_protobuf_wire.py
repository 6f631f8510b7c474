"""The Protobuf form, against bytes seen on the wire and against an SDK's own schema."""

import subprocess
import sys
from typing import Any

import centrifuge.protocol.client_pb2 as sdk  # type: ignore[import-untyped]
import pytest

from gateway.protocol import wire_pb2
from gateway.protocol.codec import MAX_COMMANDS, PONG, PROTOBUF
from gateway.protocol.codes import ProtocolError
from gateway.protocol.commands import (
    ClientInfo,
    Command,
    ConnectRequest,
    ConnectResult,
    HistoryRequest,
    HistoryResult,
    PresenceResult,
    PresenceStatsResult,
    Publication,
    PublishRequest,
    RefreshResult,
    RpcResult,
    SendRequest,
    StreamPosition,
    SubscribePush,
    SubscribeRequest,
    SubscribeResult,
    UnsubscribeResult,
)


def framed(*messages: bytes) -> bytes:
    return PROTOBUF.batch(messages)


def reply(message: bytes) -> Any:
    return sdk.Reply.FromString(message)


def test_3_frames_as_seen() -> None:
    assert PROTOBUF.decode(bytes.fromhex("0408012200")) == [Command(1, ConnectRequest())]
    assert PROTOBUF.decode(bytes.fromhex("0408012200" + "0708022a030a0163")) == [
        Command(1, ConnectRequest()),
        Command(2, SubscribeRequest("c")),
    ]
    client = "0f5a3c6e-1b2d-4c3e-8f90-a1b2c3d4e5f6"
    message = PROTOBUF.reply(1, ConnectResult(client, "0.0.0 OSS", ping=25, pong=True))
    assert PROTOBUF.batch([message]).startswith(bytes.fromhex("3908012a350a24") + client.encode())


def test_20_a_ping_is_a_message_of_no_length() -> None:
    assert PROTOBUF.PING == b"\x00"
    assert PROTOBUF.batch([b""]) == PROTOBUF.PING
    assert PROTOBUF.decode(b"\x00") == [PONG]
    assert PROTOBUF.binary


def test_long_messages_have_long_lengths() -> None:
    for size in (1, 127, 128, 16_383, 16_384, 60_000):
        command = sdk.Command(id=1, rpc=sdk.RPCRequest(data=b"x" * size)).SerializeToString()
        assert len(framed(command)) - len(command) == len(PROTOBUF.batch([b"y" * len(command)])) - len(command)
        (decoded,) = PROTOBUF.decode(framed(command))
        assert len(decoded.request.data) == size  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        bytes.fromhex("04080122"),
        bytes.fromhex("04"),
        bytes.fromhex("80"),
        bytes.fromhex("8080808080"),
        bytes.fromhex("ffffffffffffffffff01"),
        bytes.fromhex("ffffffff0f0801"),
        bytes.fromhex("020801"),  # an id without a method
        bytes.fromhex("022200"),  # a method without an id
        bytes.fromhex("0408015a00"),  # ping
        bytes.fromhex("06080122006a00"),  # two methods
        bytes.fromhex("0408012a00"),  # subscribe without a channel
        bytes.fromhex("03080122"),  # half a field
        bytes.fromhex("07080122030a01ff"),  # a token that is not UTF-8
        framed(sdk.Command(id=1, refresh=sdk.RefreshRequest()).SerializeToString()),
        framed(sdk.Command(id=1, subscribe=sdk.SubscribeRequest(channel="c", delta="x")).SerializeToString()),
        framed(sdk.Command(id=1, subscribe=sdk.SubscribeRequest(channel="c", offset=1 << 63)).SerializeToString()),
        framed(*[sdk.Command(id=1, rpc=sdk.RPCRequest()).SerializeToString()] * (MAX_COMMANDS + 1)),
    ],
)
def test_closes_3501_on_what_is_not_the_protocol(frame: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        PROTOBUF.decode(frame)
    assert caught.value.code == 3501


def test_filters_nested_beyond_the_parser_are_refused() -> None:
    def frame(depth: int) -> bytes:
        node = b""
        for _ in range(depth):
            node = b"\x32" + framed(node)  # FilterNode.nodes
        request = b"\x0a\x01c\x6a" + framed(node)  # SubscribeRequest.channel and .tf
        return framed(b"\x08\x01\x2a" + framed(request))

    (command,) = PROTOBUF.decode(frame(10))
    assert isinstance(command.request, SubscribeRequest)
    assert command.request.tf is not None
    with pytest.raises(ProtocolError):
        PROTOBUF.decode(frame(200))


def test_as_many_commands_as_allowed_fit_into_a_frame() -> None:
    assert PROTOBUF.decode(b"\x00" * MAX_COMMANDS) == [PONG] * MAX_COMMANDS


def test_unknown_fields_are_skipped() -> None:
    assert PROTOBUF.decode(bytes.fromhex("0b08012200" + "a2060478787878")) == [Command(1, ConnectRequest())]


def test_reads_what_an_sdk_writes() -> None:
    commands = [
        sdk.Command(id=1, connect=sdk.ConnectRequest(token="t", data=b"\x00\xff", name="py", headers={"a": "b"})),
        sdk.Command(
            id=2,
            subscribe=sdk.SubscribeRequest(
                channel="c", recover=True, epoch="e", offset=5, positioned=True, recoverable=True, join_leave=True
            ),
        ),
        sdk.Command(id=3, publish=sdk.PublishRequest(channel="c", data=b"\x00")),
        sdk.Command(
            id=4,
            history=sdk.HistoryRequest(
                channel="c", limit=-1, since=sdk.StreamPosition(offset=1, epoch="e"), reverse=True
            ),
        ),
        sdk.Command(send=sdk.SendRequest(data=b"x")),
    ]
    assert PROTOBUF.decode(framed(*[c.SerializeToString() for c in commands])) == [
        Command(1, ConnectRequest("t", b"\x00\xff", {}, "py", headers={"a": "b"})),
        Command(2, SubscribeRequest("c", "", True, "e", 5, b"", True, True, True)),
        Command(3, PublishRequest("c", b"\x00")),
        Command(4, HistoryRequest("c", -1, StreamPosition(1, "e"), True)),
        Command(0, SendRequest(b"x")),
    ]


def test_an_sdk_reads_what_we_write() -> None:
    info = ClientInfo("u", "x", b"\x01", b"\x02")
    sdk_info = sdk.ClientInfo(user="u", client="x", conn_info=b"\x01", chan_info=b"\x02")
    pub = Publication(b"\x00\xff", 7, "e", info, {"k": "v"}, 99)
    sdk_pub = sdk.Publication(data=b"\x00\xff", offset=7, info=sdk_info, tags={"k": "v"})
    push = sdk.Push
    pairs = [
        (PROTOBUF.error(1, 100, "m", True), sdk.Reply(id=1, error=sdk.Error(code=100, message="m", temporary=True))),
        (PROTOBUF.reply(2, UnsubscribeResult()), sdk.Reply(id=2, unsubscribe=sdk.UnsubscribeResult())),
        (
            PROTOBUF.reply(3, SubscribeResult(True, 9, True, "e", [pub], True, 1, True, b"d", True)),
            sdk.Reply(
                id=3,
                subscribe=sdk.SubscribeResult(
                    expires=True,
                    ttl=9,
                    recoverable=True,
                    epoch="e",
                    publications=[sdk_pub],
                    recovered=True,
                    offset=1,
                    positioned=True,
                    data=b"d",
                    was_recovering=True,
                ),
            ),
        ),
        (
            PROTOBUF.reply(4, ConnectResult("c", "v", True, 9, b"d", {"s": SubscribeResult()}, 25, True, "se", "no")),
            sdk.Reply(
                id=4,
                connect=sdk.ConnectResult(
                    client="c",
                    version="v",
                    expires=True,
                    ttl=9,
                    data=b"d",
                    subs={"s": sdk.SubscribeResult()},
                    ping=25,
                    pong=True,
                    session="se",
                    node="no",
                ),
            ),
        ),
        (PROTOBUF.reply(5, PresenceResult({"x": info})), sdk.Reply(id=5, presence={"presence": {"x": sdk_info}})),
        (PROTOBUF.reply(5, PresenceResult()), sdk.Reply(id=5, presence=sdk.PresenceResult())),
        (
            PROTOBUF.reply(6, PresenceStatsResult(2, 1)),
            sdk.Reply(id=6, presence_stats=sdk.PresenceStatsResult(num_clients=2, num_users=1)),
        ),
        (
            PROTOBUF.reply(7, HistoryResult([pub], "e", 7)),
            sdk.Reply(id=7, history=sdk.HistoryResult(publications=[sdk_pub], epoch="e", offset=7)),
        ),
        (PROTOBUF.reply(8, RpcResult(b"d")), sdk.Reply(id=8, rpc=sdk.RPCResult(data=b"d"))),
        (
            PROTOBUF.reply(9, RefreshResult(expires=True, ttl=1)),
            sdk.Reply(id=9, refresh=sdk.RefreshResult(expires=True, ttl=1)),
        ),
        (PROTOBUF.pub("c", pub), sdk.Reply(push=push(channel="c", pub=sdk_pub))),
        (
            PROTOBUF.pub("c", Publication(b"d", 2, "e", delta=True)),
            sdk.Reply(push=push(channel="c", pub={"data": b"d", "offset": 2, "delta": True})),
        ),
        (PROTOBUF.join("c", info), sdk.Reply(push=push(channel="c", join=sdk.Join(info=sdk_info)))),
        (PROTOBUF.leave("c", ClientInfo()), sdk.Reply(push=push(channel="c", leave={"info": {}}))),
        (
            PROTOBUF.unsubscribe("c", 2500, "r"),
            sdk.Reply(push=push(channel="c", unsubscribe=sdk.Unsubscribe(code=2500, reason="r"))),
        ),
        (
            PROTOBUF.subscribe("c", SubscribePush(True, "e", 3, True, b"d")),
            sdk.Reply(
                push=push(
                    channel="c",
                    subscribe=sdk.Subscribe(recoverable=True, epoch="e", offset=3, positioned=True, data=b"d"),
                )
            ),
        ),
        (PROTOBUF.message(b"d"), sdk.Reply(push=push(message=sdk.Message(data=b"d")))),
        (
            PROTOBUF.refresh(RefreshResult(expires=True, ttl=4)),
            sdk.Reply(push=push(refresh={"expires": True, "ttl": 4})),
        ),
        (PROTOBUF.disconnect(3001, "r"), sdk.Reply(push=push(disconnect={"code": 3001, "reason": "r"}))),
        (
            PROTOBUF.connect(ConnectResult("c", "v", True, 9, b"d", {"s": SubscribeResult()}, 25, True, "se", "no")),
            sdk.Reply(
                push=push(
                    connect=sdk.Connect(
                        client="c",
                        version="v",
                        expires=True,
                        ttl=9,
                        data=b"d",
                        subs={"s": sdk.SubscribeResult()},
                        ping=25,
                        pong=True,
                        session="se",
                        node="no",
                    )
                )
            ),
        ),
    ]
    for ours, theirs in pairs:
        assert reply(ours) == theirs


def test_40_the_first_publication_carries_the_epoch() -> None:
    pushed = wire_pb2.Reply.FromString(PROTOBUF.pub("c", Publication(b"d", 1, "e")))
    assert pushed.push.pub == wire_pb2.Publication(data=b"d", offset=1, epoch="e")


def test_every_field_has_the_number_and_type_that_an_sdk_knows() -> None:
    renamed = {"RpcRequest": "RPCRequest", "RpcResult": "RPCResult"}
    newer = {("SubscribeRequest", "type"), ("PublishRequest", "type"), ("Publication", "epoch")}
    for name, ours in wire_pb2.DESCRIPTOR.message_types_by_name.items():
        theirs = sdk.DESCRIPTOR.message_types_by_name[renamed.get(name, name)].fields_by_name
        for field in ours.fields:
            if (name, field.name) in newer and field.name not in theirs:
                continue
            other = theirs[field.name]
            assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)


def test_a_missing_schema_says_how_to_make_it() -> None:
    hide = "import sys; sys.modules['gateway.protocol.wire_pb2'] = None; import gateway.protocol.codec"
    done = subprocess.run([sys.executable, "-c", hide], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "python -m gateway.protocol.build" in done.stderr
