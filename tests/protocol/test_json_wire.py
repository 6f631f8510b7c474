"""The JSON form, against bytes that were seen on the wire."""

import json
from collections.abc import Callable

import pytest

from gateway.protocol.codec import JSON, MAX_COMMANDS, MAX_DEPTH, PONG, is_json
from gateway.protocol.codes import NotJson, ProtocolError
from gateway.protocol.commands import (
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
    Result,
    RpcRequest,
    RpcResult,
    SendRequest,
    StreamPosition,
    SubRefreshRequest,
    SubRefreshResult,
    SubscribePush,
    SubscribeRequest,
    SubscribeResult,
    UnsubscribeRequest,
    UnsubscribeResult,
)

# Commands


@pytest.mark.parametrize(
    ("line", "command"),
    [
        (b'{"id":1,"connect":{}}', Command(1, ConnectRequest())),
        (
            b'{"id":1,"connect":{"token":"t","data":{"a": 1},"name":"js","version":"1","headers":{"x":"y"},"flag":3}}',
            Command(1, ConnectRequest("t", b'{"a": 1}', {}, "js", "1", {"x": "y"}, 3)),
        ),
        (
            b'{"id":1,"connect":{"subs":{"ch":{"recover":true,"offset":1,"epoch":"e"}}}}',
            Command(1, ConnectRequest(subs={"ch": SubscribeRequest(recover=True, offset=1, epoch="e")})),
        ),
        (
            b'{"id":2,"subscribe":{"channel":"c","token":"t","recover":true,"epoch":"e","offset":7,"data":[1, 2],'
            b'"positioned":true,"recoverable":true,"join_leave":true,"delta":"fossil","flag":2}}',
            Command(2, SubscribeRequest("c", "t", True, "e", 7, b"[1, 2]", True, True, True, "fossil", None, 2)),
        ),
        (
            b'{"id":2,"subscribe":{"channel":"c","tf":{"op":"not","nodes":[{"key":"k","cmp":"in","vals":["a"]}]}}}',
            Command(2, SubscribeRequest("c", tf=FilterNode("not", nodes=[FilterNode("", "k", "in", "", ["a"])]))),
        ),
        (b'{"id":3,"unsubscribe":{"channel":"c"}}', Command(3, UnsubscribeRequest("c"))),
        (b'{"id":4,"publish":{"channel":"c","data":"x"}}', Command(4, PublishRequest("c", b'"x"'))),
        (b'{"id":4,"publish":{"channel":"c"}}', Command(4, PublishRequest("c", b""))),
        (b'{"id":4,"publish":{"channel":"c","data":null}}', Command(4, PublishRequest("c", b"null"))),
        (b'{"id":5,"presence":{"channel":"c"}}', Command(5, PresenceRequest("c"))),
        (b'{"id":6,"presence_stats":{"channel":"c"}}', Command(6, PresenceStatsRequest("c"))),
        (
            b'{"id":7,"history":{"channel":"c","limit":-1,"since":{"offset":2,"epoch":"e"},"reverse":true}}',
            Command(7, HistoryRequest("c", -1, StreamPosition(2, "e"), True)),
        ),
        (b'{"id":8,"rpc":{"method":"m","data":{}}}', Command(8, RpcRequest(b"{}", "m"))),
        (b'{"id":9,"refresh":{"token":"t"}}', Command(9, RefreshRequest("t"))),
        (b'{"id":9,"sub_refresh":{"channel":"c","token":"t"}}', Command(9, SubRefreshRequest("c", "t"))),
        (b'{"id":9,"sub_refresh":{"channel":"c"}}', Command(9, SubRefreshRequest("c", ""))),
        (b'{"send":{"data":1}}', Command(0, SendRequest(b"1"))),
        (b'{"id":3,"send":{"data":1}}', Command(3, SendRequest(b"1"))),
        (b"{}", PONG),
        (b"{ }", PONG),
        (b'{"id":0}', PONG),
    ],
)
def test_reads_every_command(line: bytes, command: Command) -> None:
    assert JSON.decode(line) == [command]


def test_data_is_plain_bytes_however_it_came() -> None:
    (command,) = JSON.decode(b'{"id":1,"connect":{"data":{},"subs":{"c":{"data":[]}}}}')
    assert isinstance(command.request, ConnectRequest)
    assert type(command.request.data) is bytes
    assert type(command.request.subs["c"].data) is bytes


def test_6_unknown_fields_and_flag_bits_are_ignored() -> None:
    assert JSON.decode(b'{"id":1,"connect":{"flag":4611686018427387904,"new":{"a":[1]}},"other":null}') == [
        Command(1, ConnectRequest(flag=1 << 62))
    ]


def test_1_commands_come_a_line_each_and_a_last_line_break_is_fine() -> None:
    frame = b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{"channel":"c"}}\n{}'
    commands = [Command(1, ConnectRequest()), Command(2, SubscribeRequest("c")), PONG]
    assert JSON.decode(frame) == commands
    assert JSON.decode(frame + b"\n") == commands
    assert JSON.decode(frame.replace(b"\n", b"\r\n")) == commands


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\n",
        b"\n\n",
        b"   ",
        b'\n{"id":1,"connect":{}}',
        b'{"id":1,"connect":{}}\n\n',
        b'{"id":1,"connect":{}}\n\n{"id":2,"rpc":{}}',
        b'{"id":1,\n"connect":{}}',
        b'{"id":1,"publish":{"channel":"c","data":{\n}}}',
        b'{"id":1,"connect":{}}{"id":2,"rpc":{}}',
        b'{"id":1,"connect":{}} x',
        b'{"id":1,"connect":{}',
        b"{'id':1}",
        b"[]",
        b"null",
        b'"x"',
        b'{"id":1}',
        b'{"id":1,"unknown":{}}',
        b'{"id":1,"ping":{}}',
        b'{"id":1,"connect":null}',
        b'{"connect":{}}',
        b'{"id":0,"rpc":{}}',
        b'{"id":"1","connect":{}}',
        b'{"id":1.5,"connect":{}}',
        b'{"id":-1,"connect":{}}',
        b'{"id":4294967296,"connect":{}}',
        b'{"id":1,"connect":[]}',
        b'{"id":1,"connect":{"token":1}}',
        b'{"id":1,"connect":{"subs":{"":{}}}}',
        b'{"id":1,"connect":{"subs":[]}}',
        b'{"id":1,"connect":{"subs":{"c":{"offset":9223372036854775808}}}}',
        b'{"id":1,"connect":{},"rpc":{}}',
        b'{"id":1,"subscribe":{}}',
        b'{"id":1,"subscribe":{"channel":""}}',
        b'{"id":1,"subscribe":{"channel":"c","delta":"other"}}',
        b'{"id":1,"subscribe":{"channel":"c","offset":-1}}',
        b'{"id":1,"subscribe":{"channel":"c","offset":9223372036854775808}}',
        b'{"id":1,"unsubscribe":{}}',
        b'{"id":1,"publish":{"data":1}}',
        b'{"id":1,"presence":{}}',
        b'{"id":1,"presence_stats":{}}',
        b'{"id":1,"history":{}}',
        b'{"id":1,"history":{"channel":"c","limit":2147483648}}',
        b'{"id":1,"history":{"channel":"c","since":{"offset":9223372036854775808}}}',
        b'{"id":1,"refresh":{}}',
        b'{"id":1,"sub_refresh":{"token":"t"}}',
        b'{"id":1,"publish":{"channel":"c","data":"\xff"}}',
        b'{"id":1,"publish":{"channel":"c","data":"\xed\xa0\x80"}}',
        b'{"id":1,"publish":{"channel":"\xc3","data":1}}',
        b'{"id":1,"publish":{"channel":"c","data":tru}}',
        b'{"id":1,"publish":{"channel":"c","data":"\x01"}}',
        b'\xef\xbb\xbf{"id":1,"connect":{}}',
        b"{}\n" * (MAX_COMMANDS + 1),
    ],
)
def test_7_closes_3501_on_what_is_not_the_protocol(frame: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        JSON.decode(frame)
    assert (caught.value.code, caught.value.reason) == (3501, "bad request")


def test_as_many_commands_as_allowed_fit_into_a_frame() -> None:
    assert len(JSON.decode(b"{}\n" * MAX_COMMANDS)) == MAX_COMMANDS
    subscribes = b"\n".join(b'{"id":%d,"subscribe":{"channel":"c%d"}}' % (n, n) for n in range(1, 129))
    assert len(JSON.decode(subscribes)) == 128


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_nesting_is_bounded(opening: bytes, closing: bytes) -> None:
    def frame(depth: int) -> bytes:
        data = opening * depth + b"1" + closing * depth
        return b'{"id":1,"publish":{"channel":"c","data":%b}}' % data

    assert JSON.decode(frame(MAX_DEPTH - 2))
    for depth in (MAX_DEPTH - 1, 900, 5_000, 30_000):
        with pytest.raises(ProtocolError):
            JSON.decode(frame(depth))


def test_many_brackets_are_not_deep_nesting() -> None:
    wide = b"[" + b",".join([b'{"a":[1,"[[{{\\"[["]}'] * 500) + b"]"
    assert JSON.decode(b'{"id":1,"publish":{"channel":"c","data":%b}}' % wide) == [
        Command(1, PublishRequest("c", wide))
    ]


def test_brackets_in_strings_do_not_hide_deep_nesting() -> None:
    deep = b'["]",' * 200 + b"1" + b"]" * 200
    with pytest.raises(ProtocolError):
        JSON.decode(b'{"id":1,"publish":{"channel":"c","data":%b}}' % deep)


def test_null_counts_as_absent_but_not_as_data() -> None:
    assert JSON.decode(b'{"id":1,"connect":{"token":null,"name":null,"data":null,"subs":null}}') == [
        Command(1, ConnectRequest(data=b"null"))
    ]


def test_half_an_emoji_does_not_end_the_connection() -> None:
    # '😀'.slice(0, 1) in a browser, written by JSON.stringify
    (command,) = JSON.decode(
        b'{"id":1,"publish":{"channel":"c","data":{"t":"a\\ud83d","u":"\\\\ud83d \\ud83d\\ude00"}}}'
    )
    assert command.request == PublishRequest("c", b'{"t":"a\\ufffd","u":"\\\\ud83d \\ud83d\\ude00"}')


def test_nothing_of_a_frame_is_done_when_a_part_of_it_is_broken() -> None:
    with pytest.raises(ProtocolError):
        JSON.decode(b'{"id":1,"publish":{"channel":"c","data":1}}\n{"id":2')


def test_the_detail_never_quotes_what_the_client_sent() -> None:
    with pytest.raises(ProtocolError) as caught:
        JSON.decode(b'{"id":1,"connect":{"token":"s3cret","token":7}}')
    assert "s3cret" not in str(caught.value)


# Replies


@pytest.mark.parametrize(
    ("id", "result", "line"),
    [
        (
            1,
            ConnectResult(client="u", version="0.0.0 OSS", ping=25, pong=True),
            b'{"id":1,"connect":{"client":"u","version":"0.0.0 OSS","ping":25,"pong":true}}',
        ),
        (
            1,
            ConnectResult(client="u", version="v", expires=True, ttl=3600, ping=25, pong=True),
            b'{"id":1,"connect":{"client":"u","version":"v","expires":true,"ttl":3600,"ping":25,"pong":true}}',
        ),
        (
            1,
            ConnectResult(client="u", subs={"#42": SubscribeResult()}, session="s", node="n"),
            b'{"id":1,"connect":{"client":"u","subs":{"#42":{}},"session":"s","node":"n"}}',
        ),
        (
            1,
            ConnectResult(subs={"open:s": SubscribeResult(recoverable=True, epoch="e", positioned=True, data=b"{}")}),
            b'{"id":1,"connect":{"subs":{"open:s":{"recoverable":true,"epoch":"e","positioned":true,"data":{}}}}}',
        ),
        (2, SubscribeResult(), b'{"id":2,"subscribe":{}}'),
        (
            2,
            SubscribeResult(recoverable=True, epoch="lUeFcnVC", offset=3, positioned=True),
            b'{"id":2,"subscribe":{"recoverable":true,"epoch":"lUeFcnVC","offset":3,"positioned":true}}',
        ),
        (2, SubscribeResult(expires=True, ttl=60), b'{"id":2,"subscribe":{"expires":true,"ttl":60}}'),
        (
            2,
            SubscribeResult(
                recoverable=True,
                epoch="e",
                publications=[Publication(b'{"n": 2}', 2, "e"), Publication(b'{"n": 3}', 3, "e")],
                recovered=True,
                offset=1,
                positioned=True,
                was_recovering=True,
            ),
            b'{"id":2,"subscribe":{"recoverable":true,"epoch":"e","publications":[{"data":{"n": 2},"offset":2},'
            b'{"data":{"n": 3},"offset":3}],"recovered":true,"offset":1,"positioned":true,"was_recovering":true}}',
        ),
        (2, UnsubscribeResult(), b'{"id":2,"unsubscribe":{}}'),
        (3, PublishResult(), b'{"id":3,"publish":{}}'),
        (4, PresenceResult(), b'{"id":4,"presence":{"presence":{}}}'),
        (
            4,
            PresenceResult({"c1": ClientInfo("42", "c1")}),
            b'{"id":4,"presence":{"presence":{"c1":{"user":"42","client":"c1"}}}}',
        ),
        (
            4,
            PresenceResult({"c1": ClientInfo("", "c1", b'{"n": 1}', b"[ ]")}),
            b'{"id":4,"presence":{"presence":{"c1":{"user":"","client":"c1","conn_info":{"n": 1},"chan_info":[ ]}}}}',
        ),
        (5, PresenceStatsResult(1, 1), b'{"id":5,"presence_stats":{"num_clients":1,"num_users":1}}'),
        (5, PresenceStatsResult(), b'{"id":5,"presence_stats":{"num_clients":0,"num_users":0}}'),
        (6, HistoryResult([], "e", 3), b'{"id":6,"history":{"publications":[],"epoch":"e","offset":3}}'),
        (6, HistoryResult(), b'{"id":6,"history":{"publications":[],"epoch":"","offset":0}}'),
        (
            6,
            HistoryResult([Publication(b"1", 1, "e", ClientInfo("u", "c"), {"t": "v"}, 17)], "e", 1),
            b'{"id":6,"history":{"publications":[{"data":1,"info":{"user":"u","client":"c"},"offset":1,"tags":{"t":"v"}}],'
            b'"epoch":"e","offset":1}}',
        ),
        (7, RpcResult(b'{"year": 2026}'), b'{"id":7,"rpc":{"data":{"year": 2026}}}'),
        (7, RpcResult(), b'{"id":7,"rpc":{}}'),
        (2, RefreshResult(expires=True, ttl=600), b'{"id":2,"refresh":{"expires":true,"ttl":600}}'),
        (3, SubRefreshResult(True, 599), b'{"id":3,"sub_refresh":{"expires":true,"ttl":599}}'),
    ],
)
def test_writes_every_reply(id: int, result: Result, line: bytes) -> None:
    assert JSON.reply(id, result) == line


def test_61_errors() -> None:
    assert JSON.error(1, 109, "token expired") == b'{"id":1,"error":{"code":109,"message":"token expired"}}'
    assert JSON.error(2, 100, "internal server error", True) == (
        b'{"id":2,"error":{"code":100,"message":"internal server error","temporary":true}}'
    )


# Pushes


@pytest.mark.parametrize(
    ("line", "push"),
    [
        (b'{"push":{"channel":"c","pub":{"data":{"n": 1},"offset":2}}}', JSON.pub("c", Publication(b'{"n": 1}', 2))),
        (b'{"push":{"channel":"c","pub":{"data":1}}}', JSON.pub("c", Publication(b"1"))),
        (
            b'{"push":{"channel":"c","pub":{"data":1,"offset":1,"epoch":"e"}}}',
            JSON.pub("c", Publication(b"1", 1, "e")),
        ),
        (b'{"push":{"channel":"c","pub":{"data":1,"offset":2}}}', JSON.pub("c", Publication(b"1", 2, "e", time=5))),
        (
            b'{"push":{"channel":"c","pub":{"data":1,"info":{"user":"u1","client":"x","conn_info":{"a": 1}},'
            b'"offset":4}}}',
            JSON.pub("c", Publication(b"1", 4, info=ClientInfo("u1", "x", b'{"a": 1}'))),
        ),
        (
            b'{"push":{"channel":"c","pub":{"data":1,"info":{"user":"","client":"x"}}}}',
            JSON.pub("c", Publication(b"1", info=ClientInfo("", "x"))),
        ),
        (
            b'{"push":{"channel":"c","pub":{"data":1,"tags":{"k":"v"}}}}',
            JSON.pub("c", Publication(b"1", tags={"k": "v"})),
        ),
        (
            b'{"push":{"channel":"c","pub":{"data":"1F","offset":2,"delta":true}}}',
            JSON.pub("c", Publication(b'"1F"', 2, delta=True)),
        ),
        (
            b'{"push":{"channel":"c","join":{"info":{"user":"","client":"x"}}}}',
            JSON.join("c", ClientInfo("", "x")),
        ),
        (
            b'{"push":{"channel":"c","leave":{"info":{"user":"u","client":"x"}}}}',
            JSON.leave("c", ClientInfo("u", "x")),
        ),
        (
            b'{"push":{"channel":"c","unsubscribe":{"code":2000,"reason":"server unsubscribe"}}}',
            JSON.unsubscribe("c", 2000, "server unsubscribe"),
        ),
        (
            b'{"push":{"channel":"c","subscribe":{"recoverable":true,"epoch":"e","positioned":true,"data":{}}}}',
            JSON.subscribe("c", SubscribePush(True, "e", 0, True, b"{}")),
        ),
        (b'{"push":{"channel":"c","subscribe":{}}}', JSON.subscribe("c", SubscribePush())),
        (b'{"push":{"message":{"data":{"a": 1}}}}', JSON.message(b'{"a": 1}')),
        (b'{"push":{"refresh":{"expires":true,"ttl":100}}}', JSON.refresh(RefreshResult(expires=True, ttl=100))),
        (
            b'{"push":{"disconnect":{"code":3500,"reason":"invalid token"}}}',
            JSON.disconnect(3500, "invalid token"),
        ),
        (
            b'{"push":{"connect":{"client":"u","version":"v","subs":{"c":{}},"ping":25}}}',
            JSON.connect(ConnectResult("u", "v", subs={"c": SubscribeResult()}, ping=25)),
        ),
    ],
)
def test_writes_every_push(line: bytes, push: bytes) -> None:
    assert push == line


def test_45_json_is_passed_on_byte_for_byte() -> None:
    data = '{"n": 1,  "t":"\\u00e9é\\/", "f": 1.10, "z":[ ]}'.encode()
    assert data in JSON.pub("c", Publication(data, 3))
    assert data in JSON.reply(1, HistoryResult([Publication(data, 3)]))
    assert data in JSON.message(data)


def test_line_breaks_between_tokens_are_taken_out_because_they_end_a_message() -> None:
    assert JSON.pub("c", Publication(b'{\n  "a": "x\\ny"\n}', 3)) == (
        b'{"push":{"channel":"c","pub":{"data":{  "a": "x\\ny"},"offset":3}}}'
    )


def test_names_are_escaped() -> None:
    push = json.loads(JSON.pub('a"\\\n\u2028é', Publication(b"1")))
    assert push["push"]["channel"] == 'a"\\\n\u2028é'
    assert b"\n" not in JSON.unsubscribe("a\nb", 2000, "a\nb")


@pytest.mark.parametrize("data", [b"\x00\x01", b"x", b'{"a":1', b'"\xff"', b"1 2", b"[" * 100_000, b"\n"])
def test_data_that_is_not_json_never_reaches_a_json_client(data: bytes) -> None:
    writes: list[Callable[[], bytes]] = [
        lambda: JSON.pub("c", Publication(data, 1)),
        lambda: JSON.reply(1, HistoryResult([Publication(data, 1)])),
        lambda: JSON.reply(1, RpcResult(data)),
        lambda: JSON.join("c", ClientInfo("u", "x", data)),
        lambda: JSON.message(data),
    ]
    for write in writes:
        with pytest.raises(NotJson) as caught:
            write()
        assert (caught.value.code, caught.value.reason) == (3506, "inappropriate protocol")


def test_half_an_emoji_from_a_protobuf_client_is_no_reason_to_close_its_listeners() -> None:
    assert (
        JSON.pub("c", Publication(b'"\\ud83d"', 2)) == b'{"push":{"channel":"c","pub":{"data":"\\ufffd","offset":2}}}'
    )


def test_20_a_ping_is_an_empty_object() -> None:
    assert JSON.PING == b"{}"
    assert JSON.batch([b"{}"]) == JSON.PING
    assert not JSON.binary


def test_2_messages_share_a_frame_without_a_last_line_break() -> None:
    assert JSON.batch([JSON.reply(1, ConnectResult()), JSON.reply(2, SubscribeResult())]) == (
        b'{"id":1,"connect":{}}\n{"id":2,"subscribe":{}}'
    )


@pytest.mark.parametrize(
    ("data", "good"),
    [
        (b"{}", True),
        (b' [1, "\xc3\xa9"]\n', True),
        (b"", False),
        (b"{} {}", False),
        (b'"\xff"', False),
        (b'"\\ud83d"', False),
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, True),
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), False),
        (b"[" * 100_000, False),
    ],
)
def test_the_check_at_the_door(data: bytes, good: bool) -> None:
    assert is_json(data) is good
