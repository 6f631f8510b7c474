"""The lines of the wire as clients see them, over real sockets, in both forms and on both event loops.

Numbers in names are the lines of the protocol's description that a test is about.
"""

import asyncio
import base64
import json
import secrets
import time
from typing import Any

import pytest

from tests.live.conftest import Raw, Start, Worker, eventually, token

FORMS = pytest.mark.parametrize("protobuf", [False, True], ids=["json", "protobuf"])


def channel(namespace: str = "chat") -> str:
    """A name that no other test uses."""
    return f"{namespace}:{secrets.token_hex(6)}" if namespace else secrets.token_hex(6)


def name_of(error: dict[str, Any]) -> tuple[int, str]:
    return error["error"]["code"], error["error"]["message"]


async def hear(raw: Raw, on: str, count: int) -> list[Any]:
    await raw.until(lambda: len(raw.pubs(on)) >= count)
    return raw.pubs(on)


# -- framing


async def test_1_2_commands_and_replies_keep_their_order_in_one_frame_or_many(shared: Worker) -> None:
    a = await shared.connect()
    names = [channel() for _ in range(5)]
    commands = [a.command(subscribe={"channel": name}) for name in names]
    await a.ws.send_str("\n".join(map(json.dumps, commands)) + "\n")
    await a.reply(commands[-1]["id"])
    replies = [message["id"] for message in a.heard if message.get("id")]
    assert replies == [1, *(command["id"] for command in commands)]
    assert all(not frame.endswith("\n") for frame in a.frames if isinstance(frame, str))
    await a.close()


async def test_3_a_protobuf_frame_holds_messages_by_their_length(shared: Worker) -> None:
    a = await shared.ws(protobuf=True)
    await a.ws.send_bytes(b"\x04\x08\x01\x22\x00\x04\x08\x02\x22")
    assert await a.closed() == 3501


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "{",
        "[]",
        "nonsense",
        '{"id":1}',
        '{"id":1,"unheard_of":{}}',
        '{"presence":{"channel":"a"}}',
        '{"id":"1","connect":{}}',
        '{"id":1,"ping":{}}',
        '{"id":1,"connect":{"token":1}}',
        '{"id":1,\n"connect":{}}',
        '{"id":-1,"connect":{}}',
    ],
)
async def test_1_6_7_what_breaks_the_protocol_is_closed_with_3501(shared: Worker, text: str) -> None:
    for raw in (await shared.ws(), await shared.connect()):
        await raw.ws.send_str(text)
        assert (await raw.closed(), raw.reason) == (3501, "bad request")


async def test_6_json_in_a_binary_frame_is_answered_in_text_and_unknown_fields_pass(shared: Worker) -> None:
    a = await shared.ws()
    connect = {"id": 1, "connect": {"token": token(), "flag": 3, "future": {"x": 1}}}
    await a.ws.send_bytes(json.dumps(connect).encode())
    assert "connect" in await a.reply(1)
    assert isinstance(a.frames[0], str)
    await a.close()


@FORMS
async def test_8_nothing_goes_before_connect_and_connect_goes_once(shared: Worker, protobuf: bool) -> None:
    a = await shared.ws(protobuf=protobuf)
    await a.send(a.command(subscribe={"channel": "x"}))
    assert await a.closed() == 3501
    b = await shared.connect(protobuf=protobuf)
    await b.send(b.command(connect={}))
    assert await b.closed() == 3501


async def test_9_a_frame_over_the_limit_is_closed_with_1009_and_one_at_it_is_not(shared: Worker) -> None:
    a = await shared.connect()
    head = '{"id":2,"rpc":{"method":"x","data":"'
    await a.ws.send_str(head + "x" * (65536 - len(head) - 3) + '"}}')
    assert name_of(await a.reply(2))[0] == 108
    await a.ws.send_str(head + "x" * (65537 - len(head) - 3) + '"}}')
    assert await a.closed() == 1009


async def test_53_fragments_and_websockets_own_pings_are_understood(shared: Worker) -> None:
    a = await shared.ws()
    await a.ws.ping(b"there?")
    await a.ws.pong(b"unasked")
    await a.send(a.command(connect={"token": token()}))
    assert "connect" in await a.reply(1)
    await a.close()


async def test_the_client_may_say_goodbye(shared: Worker) -> None:
    before = shared.hub.connections
    a = await shared.connect()
    assert shared.hub.connections == before + 1
    await a.close()
    await eventually(lambda: shared.hub.connections == before)


# -- connect


@FORMS
async def test_12_13_the_connect_reply(shared: Worker, protobuf: bool) -> None:
    a = await shared.connect(protobuf=protobuf)
    assert len(a.connected.pop("client")) == 36
    assert a.connected.pop("ttl") in (3599, 3600, 3601)
    assert a.connected == {"version": "0.1.0", "expires": True, "ping": 25, "pong": True}
    await a.close()


async def test_13_a_life_without_an_end_and_one_cut_at_a_year(shared: Worker) -> None:
    a = await shared.ws()
    assert "expires" not in (await a.ask(connect={"token": token(ttl=None)}))["connect"]
    b = await shared.ws()
    assert (await b.ask(connect={"token": token(ttl=500 * 86400)}))["connect"]["ttl"] == 365 * 86400
    await a.close()
    await b.close()


@FORMS
async def test_16_an_expired_token_is_an_error_and_nothing_more_is_answered(shared: Worker, protobuf: bool) -> None:
    a = await shared.ws(protobuf=protobuf)
    await a.send({"id": 1, "connect": {"token": token(ttl=-10)}}, {"id": 2, "subscribe": {"channel": "x"}})
    assert name_of(await a.reply(1)) == (109, "token expired")
    await a.send({"id": 3, "subscribe": {"channel": "x"}}, {"id": 4, "connect": {"token": token()}})
    await asyncio.sleep(0.05)
    assert list(a.replies) == [1]
    assert a.code is None
    await a.close()


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        "a.b.c",
        token(key="another secret of thirty-two bytes!!"),
        token(channel="chat:x"),
        token("u_abcdefghijklmnopqrstuvwxyz"),
    ],
)
async def test_17_a_token_that_is_none_closes_with_3500(shared: Worker, bad: str) -> None:
    a = await shared.ws()
    await a.send({"id": 1, "connect": {"token": bad}})
    assert (await a.closed(), a.reason) == (3500, "invalid token")
    assert a.replies == {}


async def test_17_no_token_and_no_anonymous_is_3501_and_one_not_yet_good_is_109(shared: Worker) -> None:
    a = await shared.ws()
    await a.send({"id": 1, "connect": {}})
    assert await a.closed() == 3501
    b = await shared.ws()
    assert name_of(await b.ask(connect={"token": token(nbf=int(time.time()) + 3600)}))[0] == 109
    await b.close()


async def test_anonymous_connections_are_a_setting_and_have_a_session_that_can_be_revoked(start: Start) -> None:
    worker = await start(client={"allow_anonymous_connect_without_token": True})
    a = await worker.ws()
    assert "expires" not in (await a.ask(connect={}))["connect"]
    (peer,) = worker.hub.members()
    assert (peer.kind, peer.user) == ("anonymous", "")
    await worker.revoke(sid=peer.sid, reason="spam")
    assert (await a.closed(), a.reason) == (4501, "session revoked: spam")


@FORMS
async def test_14_15_server_side_subscriptions_come_with_the_connect_reply(shared: Worker, protobuf: bool) -> None:
    own, asked, denied = channel("stream"), channel("stream"), channel("closed")
    claims = {"subs": {own: {"data": {"hello": 1}}}}
    a = await shared.connect(protobuf=protobuf, claims=claims, subs={asked: {}, denied: {}})
    subs = a.connected["subs"]
    assert set(subs) == {own, asked}
    assert subs[own]["recoverable"] is subs[own]["positioned"] is True
    assert "offset" not in subs[own]
    assert subs[own]["epoch"]
    assert name_of(await a.ask(subscribe={"channel": own})) == (105, "already subscribed")
    await shared.api("publish", {"channel": own, "data": {"n": 1}})
    assert await hear(a, own, 1) == [{"n": 1}]
    b = await shared.connect(
        protobuf=protobuf,
        claims=claims,
        subs={own: {"recover": True, "offset": 0, "epoch": subs[own]["epoch"]}},
    )
    got = b.connected["subs"][own]
    assert got["recovered"] is True
    assert int(got["publications"][0]["offset"]) == 1
    await a.close()
    await b.close()


async def test_15_an_unknown_namespace_in_subs_closes_with_3501(shared: Worker) -> None:
    a = await shared.ws()
    await a.send({"id": 1, "connect": {"token": token(), "subs": {"nowhere:x": {}}}})
    assert await a.closed() == 3501


async def test_19_limits_of_channels_and_of_a_users_connections(start: Start) -> None:
    worker = await start(client={"channel_limit": 2, "user_connection_limit": 2})
    a = await worker.connect("1")
    for _ in range(2):
        assert "subscribe" in await a.ask(subscribe={"channel": channel("")})
    assert name_of(await a.ask(subscribe={"channel": channel("")})) == (106, "limit exceeded")
    assert name_of(await a.ask(subscribe={"channel": "x" * 256}))[0] == 107
    assert name_of(await a.ask(subscribe={"channel": "ж"}))[0] == 107
    b = await worker.ws()
    await b.send({"id": 1, "connect": {"token": token("1"), "subs": {channel(""): {} for _ in range(3)}}})
    assert await b.closed() == 3505
    c = await worker.connect("1")
    d = await worker.ws()
    await d.send({"id": 1, "connect": {"token": token("1")}})
    assert (await d.closed(), d.reason) == (3504, "connection limit")
    other = await worker.connect("2")
    for raw in (a, c, other):
        await raw.close()


# -- pings


@FORMS
async def test_20_21_22_pings_are_asked_and_answered(start: Start, protobuf: bool) -> None:
    worker = await start(client={"ping_interval": "1s", "pong_timeout": "400ms"})
    good = await worker.connect("1", protobuf=protobuf)
    mute = await worker.connect("2", protobuf=protobuf, pong=False)
    await mute.until(lambda: {} in mute.events)
    assert mute.frames[-1] == (b"\x00" if protobuf else "{}")
    assert (await mute.closed(3), mute.reason) == (3012, "no pong")
    await good.until(lambda: good.events.count({}) >= 2)
    assert good.code is None
    await good.pong()
    assert await good.closed() == 3501


async def test_22_a_pong_before_the_first_ping_closes(shared: Worker) -> None:
    a = await shared.connect()
    await a.pong()
    assert await a.closed() == 3501


# -- subscribe


@FORMS
async def test_24_25_27_subscribing(shared: Worker, protobuf: bool) -> None:
    a = await shared.connect(protobuf=protobuf)
    plain = channel("")
    asked = {"channel": plain, "recoverable": True, "positioned": True, "join_leave": True}
    assert await a.ask(subscribe=asked) == {"subscribe": {}}
    assert name_of(await a.ask(subscribe={"channel": plain})) == (105, "already subscribed")
    assert name_of(await a.ask(subscribe={"channel": "nowhere:x"})) == (102, "unknown channel")
    assert name_of(await a.ask(subscribe={"channel": channel("closed")})) == (103, "permission denied")
    assert name_of(await a.ask(subscribe={"channel": "$secret"})) == (103, "permission denied")
    assert "subscribe" in await a.ask(subscribe={"channel": "mine:x#42,45"})
    assert name_of(await a.ask(subscribe={"channel": "mine:x#45"}))[0] == 103
    assert await a.ask(unsubscribe={"channel": "never"}) == {"unsubscribe": {}}
    three = [
        a.command(unsubscribe={"channel": plain}),
        a.command(subscribe={"channel": plain}),
        a.command(unsubscribe={"channel": plain}),
    ]
    await a.send(*three)
    assert [list(await a.reply(command["id"])) for command in three] == [
        ["unsubscribe"],
        ["subscribe"],
        ["unsubscribe"],
    ]
    await a.close()


@pytest.mark.parametrize("request_", [{"channel": ""}, {"channel": "x", "delta": "other"}])
async def test_25_an_empty_channel_or_an_unknown_delta_closes(shared: Worker, request_: dict[str, str]) -> None:
    a = await shared.connect()
    await a.send(a.command(subscribe=request_))
    assert await a.closed() == 3501


@FORMS
async def test_24_what_was_asked_for_and_may_be_had(shared: Worker, protobuf: bool) -> None:
    a = await shared.connect(protobuf=protobuf)
    name = channel("asked")
    got = (await a.ask(subscribe={"channel": name, "recoverable": True, "join_leave": True}))["subscribe"]
    assert got.pop("epoch")
    assert got == {"recoverable": True, "positioned": True}
    b = await shared.connect("43", protobuf=protobuf)
    await b.ask(subscribe={"channel": name})
    join = await a.push(lambda p: p.get("join", {}).get("info", {}).get("user") == "43")
    assert join["channel"] == name
    await b.close()
    await a.push(lambda p: p.get("leave", {}).get("info", {}).get("user") == "43")
    await a.close()


@FORMS
async def test_26_subscription_tokens(shared: Worker, protobuf: bool) -> None:
    a = await shared.connect(protobuf=protobuf)
    private = "$" + channel("")
    got = await a.ask(subscribe={"channel": private, "token": token(channel=private, ttl=60)})
    assert got["subscribe"]["expires"] is True
    assert got["subscribe"]["ttl"] in (59, 60, 61)
    assert name_of(await a.ask(subscribe={"channel": "$x", "token": "garbage"}))[0] == 103
    assert name_of(await a.ask(subscribe={"channel": "$x", "token": token(channel="$x", ttl=-9)}))[0] == 109
    for wrong in (
        token(channel="$other"),
        token("43", channel="$x"),
        token(channel="$x", client="another"),
    ):
        b = await shared.connect(protobuf=protobuf)
        await b.send(b.command(subscribe={"channel": "$x", "token": wrong}))
        assert await b.closed() == 3500
    await a.close()


async def test_29_an_expired_subscription_ends_alone(start: Start) -> None:
    worker = await start(client={"expired_sub_close_delay": "100ms"})
    a = await worker.connect()
    name = "$" + channel("")
    await a.ask(subscribe={"channel": name, "token": token(channel=name, ttl=1)})
    push = await a.push(lambda p: "unsubscribe" in p)
    assert push == {"channel": name, "unsubscribe": {"code": 2501, "reason": "subscription expired"}}
    assert a.code is None
    await a.close()


@FORMS
async def test_32_42_43_the_reply_comes_before_the_own_join_and_presence_follows(
    shared: Worker, protobuf: bool
) -> None:
    a = await shared.connect(protobuf=protobuf)
    name, me = channel(), a.connected["client"]
    await a.ask(subscribe={"channel": name})
    await a.push(lambda p: "join" in p)
    kinds = [message.get("id") or list(message["push"])[1] for message in a.heard[1:]]
    assert kinds == [2, "join"]
    presence = await a.ask(presence={"channel": name})
    assert presence == {"presence": {"presence": {me: {"user": "42", "client": me}}}}
    assert await a.ask(presence_stats={"channel": name}) == {"presence_stats": {"num_clients": 1, "num_users": 1}}
    b = await shared.connect("43", protobuf=protobuf)
    await b.ask(subscribe={"channel": name})
    assert (await a.ask(presence_stats={"channel": name}))["presence_stats"]["num_clients"] == 2
    await b.ask(unsubscribe={"channel": name})
    assert (await a.ask(presence_stats={"channel": name}))["presence_stats"]["num_clients"] == 1
    await a.push(lambda p: p.get("leave", {}).get("info", {}).get("user") == "43")
    assert name_of(await a.ask(presence={"channel": channel("")})) == (108, "not available")
    assert name_of(await a.ask(presence={"channel": channel("chat")})) == (103, "permission denied")
    await a.close()
    await b.close()


# -- publications


@FORMS
async def test_40_41_a_publication_is_heard_before_its_own_reply(shared: Worker, protobuf: bool) -> None:
    a = await shared.connect(protobuf=protobuf, claims={"info": {"name": "Ada"}})
    b = await shared.connect("43", protobuf=protobuf)
    name, me = channel(), a.connected["client"]
    await a.ask(subscribe={"channel": name})
    await b.ask(subscribe={"channel": name})
    for n in range(5):
        command = a.command(publish={"channel": name, "data": {"n": n} if not protobuf else _b64({"n": n})})
        await a.send(command)
        await a.reply(command["id"])
        kinds = [m.get("id") or m["push"]["pub"]["data"]["n"] for m in a.heard if m.get("id") or "pub" in m["push"]]
        assert kinds[-2:] == [n, command["id"]]
    pushes = [e["push"]["pub"] for e in b.events if "pub" in e.get("push", {})]
    await hear(b, name, 5)
    pushes = [e["push"]["pub"] for e in b.events if "pub" in e.get("push", {})]
    assert [int(push["offset"]) for push in pushes] == [1, 2, 3, 4, 5]
    assert ["epoch" in push for push in pushes] == [True, False, False, False, False]
    info = pushes[0]["info"]
    assert (info["user"], info["client"]) == ("42", me)
    assert "conn_info" in info
    await a.close()
    await b.close()


def _b64(data: Any) -> str:
    """`bytes` as protobuf's JSON mapping wants it."""
    return base64.b64encode(json.dumps(data).encode()).decode()


async def test_41_publishing_without_data_or_right(shared: Worker) -> None:
    a = await shared.connect()
    name = channel()
    assert name_of(await a.ask(publish={"channel": name, "data": {}}))[0] == 103
    await a.ask(subscribe={"channel": name})
    assert name_of(await a.ask(publish={"channel": name}))[0] == 107
    assert name_of(await a.ask(publish={"channel": "nowhere:x", "data": {}}))[0] == 102
    await a.close()


async def test_45_json_data_is_passed_on_byte_for_byte(shared: Worker) -> None:
    a = await shared.connect()
    name = channel()
    await a.ask(subscribe={"channel": name})
    data = '{"n":  1, "x" : "\\u00e9é"}'
    await a.ws.send_str('{"id":9,"publish":{"channel":"' + name + '","data":' + data + "}}")
    await a.reply(9)
    assert any('"data":' + data in frame for frame in a.frames if isinstance(frame, str))
    await a.close()


async def test_3506_data_that_is_no_json_never_reaches_a_json_client(shared: Worker) -> None:
    a, b = await shared.connect(), await shared.connect("43", protobuf=True)
    name = channel("stream")
    await a.ask(subscribe={"channel": name})
    await b.ask(publish={"channel": name, "data": base64.b64encode(b"\xff\x00").decode()})
    assert await a.closed() == 3506
    await b.close()


# -- history and recovery


@FORMS
async def test_33_to_36_recovery_is_whole_or_not_at_all(shared: Worker, protobuf: bool) -> None:
    name = channel("stream")
    a = await shared.connect(protobuf=protobuf)
    first = (await a.ask(subscribe={"channel": name}))["subscribe"]
    await a.ask(unsubscribe={"channel": name})
    for n in range(1, 4):
        await shared.api("publish", {"channel": name, "data": {"n": n}})

    async def recover(offset: int, epoch: str, **more: Any) -> dict[str, Any]:
        got = await a.ask(subscribe={"channel": name, "recover": True, "offset": offset, "epoch": epoch, **more})
        if "subscribe" in got:
            await a.ask(unsubscribe={"channel": name})
        return got

    got = (await recover(1, first["epoch"]))["subscribe"]
    assert [int(p["offset"]) for p in got["publications"]] == [2, 3]
    assert (got["recovered"], int(got["offset"]), got["was_recovering"]) == (True, 1, True)
    got = (await recover(3, first["epoch"]))["subscribe"]
    assert got["recovered"] is True
    assert "publications" not in got
    got = (await recover(0, ""))["subscribe"]
    assert len(got["publications"]) == 3
    for bad in ((1, "wrong"), (7, first["epoch"])):
        got = (await recover(*bad))["subscribe"]
        assert "recovered" not in got
        assert "publications" not in got
        assert (int(got["offset"]), got["was_recovering"]) == (3, True)
    assert name_of(await recover(1, "wrong", flag=2)) == (112, "unrecoverable position")
    for n in range(12):
        await shared.api("publish", {"channel": name, "data": {"n": n}})
    assert "recovered" not in (await recover(1, first["epoch"]))["subscribe"]
    await a.close()


async def test_36_more_than_the_limit_is_not_recovered(start: Start) -> None:
    worker = await start(client={"recovery_max_publication_limit": 3})
    name = channel("stream")
    a = await worker.connect()
    epoch = (await a.ask(subscribe={"channel": name}))["subscribe"]["epoch"]
    await a.ask(unsubscribe={"channel": name})
    for n in range(5):
        await worker.api("publish", {"channel": name, "data": n})
    for offset, recovered in ((1, False), (2, True)):
        got = (await a.ask(subscribe={"channel": name, "recover": True, "offset": offset, "epoch": epoch}))["subscribe"]
        assert got.get("recovered", False) is recovered
        await a.ask(unsubscribe={"channel": name})
    await a.close()


@FORMS
async def test_38_39_history(shared: Worker, protobuf: bool) -> None:
    name = channel("stream")
    a = await shared.connect(protobuf=protobuf)
    empty = (await a.ask(history={"channel": name}))["history"]
    epoch = empty["epoch"]
    if not protobuf:
        assert empty == {"publications": [], "epoch": epoch, "offset": 0}
    for n in range(1, 4):
        await shared.api("publish", {"channel": name, "data": n})

    async def offsets(**more: Any) -> list[int]:
        got = (await a.ask(history={"channel": name, **more}))["history"]
        return [int(p["offset"]) for p in got.get("publications", [])]

    assert await offsets() == []
    assert await offsets(limit=-1) == [1, 2, 3]
    assert await offsets(limit=2) == [1, 2]
    assert await offsets(limit=-1, reverse=True) == [3, 2, 1]
    assert await offsets(limit=-1, since={"offset": 1, "epoch": epoch}) == [2, 3]
    assert name_of(await a.ask(history={"channel": name, "since": {"offset": 1, "epoch": "x"}}))[0] == 112
    assert name_of(await a.ask(history={"channel": channel("")})) == (108, "not available")
    await shared.api("history_remove", {"channel": name})
    got = (await a.ask(history={"channel": name, "limit": -1}))["history"]
    assert (got.get("publications", []), int(got["offset"]), got["epoch"]) == ([], 3, epoch)
    await a.close()


# -- rpc, send, refresh


@FORMS
async def test_47_rpc_and_send(start: Start, protobuf: bool) -> None:
    worker = await start()
    a = await worker.connect(protobuf=protobuf)
    assert name_of(await a.ask(rpc={"method": "echo"})) == (108, "not available")

    async def echo(call: Any) -> bytes:
        return b'{"user":"%s","got":%s}' % (call.user.encode(), call.data)

    worker.node.on_rpc["echo"] = echo
    data = _b64({"n": 1}) if protobuf else {"n": 1}
    got = (await a.ask(rpc={"method": "echo", "data": data}))["rpc"]["data"]
    if protobuf:
        got = json.loads(base64.b64decode(got))
    assert got == {"user": "42", "got": {"n": 1}}
    assert name_of(await a.ask(rpc={"method": "other"}))[0] == 104
    await a.send({"send": {"data": data}})
    assert (await a.closed(), a.reason) == (3508, "not available")
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def listen(call: Any) -> None:
        heard.set_result(call.data)

    worker.node.driver.on_message = listen
    b = await worker.connect(protobuf=protobuf)
    await b.send({"send": {"data": data}})
    async with asyncio.timeout(5):
        assert json.loads(await heard) == {"n": 1}
    await b.close()


@FORMS
async def test_48_49_refreshes(shared: Worker, protobuf: bool) -> None:
    a = await shared.connect(protobuf=protobuf)
    got = (await a.ask(refresh={"token": token(ttl=600)}))["refresh"]
    assert (got["expires"], got["ttl"] in (599, 600, 601)) == (True, True)
    name = "$" + channel("")
    assert name_of(await a.ask(sub_refresh={"channel": name, "token": "x"}))[0] == 103
    await a.ask(subscribe={"channel": name, "token": token(channel=name, ttl=60)})
    got = (await a.ask(sub_refresh={"channel": name, "token": token(channel=name, ttl=600)}))["sub_refresh"]
    assert (got["expires"], got["ttl"] in (599, 600, 601)) == (True, True)
    assert name_of(await a.ask(sub_refresh={"channel": name}))[0] == 107
    await a.close()
    for bad, code in ((token("43"), 3500), (token(ttl=-9), 3005), ("", 3501)):
        b = await shared.connect(protobuf=protobuf)
        await b.send(b.command(refresh={"token": bad}))
        assert await b.closed() == code


async def test_50_an_expired_connection_is_closed_after_the_delay_unless_refreshed(start: Start) -> None:
    worker = await start(client={"expired_close_delay": "500ms"})
    a, b = await worker.ws(), await worker.ws()
    for raw in (a, b):
        await raw.ask(connect={"token": token(ttl=1)})
    await b.ask(refresh={"token": token(ttl=60)})
    assert (await a.closed(), a.reason) == (3005, "connection expired")
    assert b.code is None
    await b.close()


# -- limits


async def test_3013_a_flood_is_refused_and_then_closed(start: Start) -> None:
    worker = await start(client={"command_rate_limit": 20})
    a = await worker.connect()
    commands = [a.command(unsubscribe={"channel": "x"}) for _ in range(30)]
    await a.send(*commands)
    refused = await a.reply(commands[-1]["id"])
    assert refused == {"error": {"code": 111, "message": "too many requests", "temporary": True}}
    await a.send(*[a.command(unsubscribe={"channel": "x"}) for _ in range(30)])
    assert await a.closed() == 3013


async def test_reading_pauses_while_many_commands_wait_and_all_are_answered(start: Start) -> None:
    worker = await start(client={"command_rate_limit": 100_000})
    go = asyncio.Event()

    async def slow(_call: Any) -> bytes:
        await go.wait()
        return b"1"

    worker.node.on_rpc["slow"] = slow
    a = await worker.connect()
    commands = [a.command(rpc={"method": "slow"}) for _ in range(500)]
    for start_ in range(0, 500, 50):
        await a.send(*commands[start_ : start_ + 50])
    (peer,) = worker.hub.members()
    await eventually(lambda: peer.deaf)
    assert peer.queue is not None
    go.set()
    await a.reply(commands[-1]["id"], 20)
    assert [m["id"] for m in a.heard if m.get("id")] == [1, *(command["id"] for command in commands)]
    assert not peer.deaf
    await eventually(lambda: peer.task is None)
    await a.close()
