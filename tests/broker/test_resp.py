"""One connection, over a transport that the test holds: which reply reaches whom, and what ends it."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.resp import Address, Link, Refused, Run, Script, Unavailable, read_info


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


def connect(**options: Any) -> tuple[Link, Transport]:
    link, transport = Link(**{"timeout": 5.0, "limit": 100, **options}), Transport()
    link.connection_made(transport)
    return link, transport


async def turn() -> None:
    """Let what was put off to the end of the loop turn run."""
    await asyncio.sleep(0)


async def test_calls_of_one_turn_leave_in_one_write() -> None:
    link, transport = connect()
    first, second = link.call(("GET", "a")), link.call((b"SET", "b", 1))
    await turn()
    assert transport.writes == [b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*3\r\n$3\r\nSET\r\n$1\r\nb\r\n$1\r\n1\r\n"]
    link.data_received(b"$1\r\nx\r\n+OK\r\n")
    assert await first == b"x"
    assert await second == b"OK"


async def test_a_cancelled_caller_does_not_shift_the_replies_of_others() -> None:
    link, _ = connect()
    first, second, third = link.call(("A",)), link.call(("B",)), link.call(("C",))
    await turn()
    second.cancel()
    link.data_received(b"+a\r\n+b\r\n+c\r\n")
    assert (await first, await third) == (b"a", b"c")


async def test_what_was_cancelled_before_the_write_is_never_sent() -> None:
    link, transport = connect()
    first, second = link.call(("A",)), link.call(("B",))
    first.cancel()
    await turn()
    assert transport.writes == [b"*1\r\n$1\r\nB\r\n"]
    link.data_received(b"+b\r\n")
    assert await second == b"b"


async def test_replies_cut_anywhere_are_the_same() -> None:
    whole = b"$3\r\nabc\r\n-ERR no\r\n*2\r\n:1\r\n$-1\r\n%1\r\n+k\r\n#f\r\n_\r\n"
    for step in range(1, len(whole)):
        link, _ = connect()
        calls = [link.call(("X",)) for _ in range(5)]
        await turn()
        for start in range(0, len(whole), step):
            link.data_received(whole[start : start + step])
        replies = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(replies[1], Refused)
        assert str(replies.pop(1)) == "ERR no"
        assert replies == [b"abc", [1, None], {b"k": False}, None]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=20), st.integers(1, 7))
async def test_every_caller_gets_its_own_reply_or_none(plan: list[tuple[bool, bool]], step: int) -> None:
    link, transport = connect()
    calls = []
    for number, (early, _) in enumerate(plan):
        calls.append(link.call((f"{number}",)))
        if early:
            calls[-1].cancel()
    await turn()
    for call, (_, late) in zip(calls, plan, strict=True):
        if late:
            call.cancel()
    sent = [part for part in b"".join(transport.writes).split(b"\r\n") if part.isdigit()]
    answer = b"".join(b":%s\r\n" % number for number in sent)
    for start in range(0, len(answer), step):
        link.data_received(answer[start : start + step])
    for number, call in enumerate(calls):
        assert call.cancelled() if any(plan[number]) else call.result() == number


async def test_a_batch_has_one_future_and_errors_stand_in_it() -> None:
    link, _ = connect()
    batch = link.batch([("A",), ("B",), ("C",)])
    await turn()
    link.data_received(b"+a\r\n-WRONGTYPE b\r\n")
    assert not batch.done()
    link.data_received(b"+c\r\n")
    a, b, c = await batch
    assert (a, b.code, c) == (b"a", "WRONGTYPE", b"c")
    assert await link.batch([]) == []


SCRIPT = Script("return 1")


async def test_a_forgotten_script_is_sent_with_its_source_once() -> None:
    link, transport = connect()
    alone = link.call(Run(SCRIPT, ["k"], ["v"]))
    batch = link.batch([Run(SCRIPT, ["k"], []), ("PING",)])
    await turn()
    assert b"EVALSHA" in transport.writes[0]
    assert SCRIPT.digest in transport.writes[0]
    link.data_received(b"-NOSCRIPT no\r\n-NOSCRIPT no\r\n+PONG\r\n")
    await turn()
    assert transport.writes[1].count(b"return 1") == 2
    link.data_received(b":1\r\n-NOSCRIPT again\r\n")
    assert await alone == 1
    refused, pong = await batch
    assert (refused.code, pong) == ("NOSCRIPT", b"PONG")


async def test_a_forgotten_script_of_a_cancelled_caller_is_not_sent_again() -> None:
    link, transport = connect()
    call = link.call(Run(SCRIPT, [], []))
    await turn()
    call.cancel()
    link.data_received(b"-NOSCRIPT no\r\n")
    await turn()
    assert len(transport.writes) == 1


async def test_only_what_was_sent_may_have_run() -> None:
    lost: list[str] = []
    link, transport = connect(on_lost=lambda link, reason: lost.append(reason))
    sent = link.call(("A",))
    await turn()
    unsent = link.call(("B",))
    link.connection_lost(None)
    with pytest.raises(Unavailable) as first:
        await sent
    with pytest.raises(Unavailable) as second:
        await unsent
    assert (first.value.uncertain, second.value.uncertain) == (True, False)
    link.fail("again")
    link.connection_lost(OSError("again"))
    assert lost == ["connection closed by the server"]
    assert len(transport.writes) == 1
    with pytest.raises(Unavailable):
        link.call(("C",))
    assert link.closed.done()


async def test_the_oldest_call_unanswered_ends_the_connection() -> None:
    link, transport = connect(timeout=0.05)
    call = link.call(("A",))
    with pytest.raises(Unavailable, match=r"no answer within 0\.05 s") as caught:
        await asyncio.wait_for(call, 5)
    assert caught.value.uncertain
    assert transport.aborted


async def test_calls_that_are_answered_in_time_end_nothing() -> None:
    link, transport = connect(timeout=0.05)
    for _ in range(3):
        call = link.call(("A",))
        await turn()
        link.data_received(b"+a\r\n")
        await call
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(link.closed), 0.2)
    assert not transport.aborted


async def test_what_waits_is_bounded() -> None:
    link, _ = connect(limit=2)
    link.call(("A",))
    link.call(("B",))
    with pytest.raises(Unavailable, match="too much"):
        link.call(("C",))
    await turn()
    link.data_received(b"+a\r\n")
    link.pause_writing()
    with pytest.raises(Unavailable, match="too much"):
        link.batch([("C",)])
    link.resume_writing()
    link.call(("C",))


async def test_pushes_stand_aside() -> None:
    pushes: list[Any] = []
    link, _ = connect(on_push=pushes.append)
    call = link.call(("PING",))
    await turn()
    link.data_received(b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n+PONG\r\n")
    assert await call == b"PONG"
    assert pushes == [[b"message", b"a", b"b"]]


async def test_what_was_told_in_vain_is_raised_by_the_next_call_alone() -> None:
    link, _ = connect()
    link.tell(("SUBSCRIBE", "a"))
    first = link.call(("PING",))
    link.tell(("SUBSCRIBE", "b"))
    second = link.call(("PING",))
    await turn()
    link.data_received(b"-NOPERM no\r\n+PONG\r\n>3\r\n+subscribe\r\n+b\r\n:1\r\n+PONG\r\n")
    with pytest.raises(Refused, match="NOPERM"):
        await first
    assert await second == b"PONG"


@pytest.mark.parametrize("nonsense", [b"+nobody asked\r\n", b"\x00\x01\x02", b"*-7\r\n", b":12x\r\n"])
async def test_nonsense_from_the_server_ends_the_connection(nonsense: bytes) -> None:
    link, transport = connect()
    link.data_received(nonsense)
    assert link.failure
    assert transport.aborted


@pytest.mark.parametrize(
    ("url", "text", "fields"),
    [
        ("redis://h", "h:6379", ("h", 6379, 0, "", "")),
        ("redis://h:7000/3", "h:7000", ("h", 7000, 3, "", "")),
        ("redis://u:p%40w@h?db=2", "h:6379", ("h", 6379, 2, "u", "p@w")),
        ("redis://:secret@[::1]:1", "::1:1", ("::1", 1, 0, "", "secret")),
        ("unix://:secret@/run/redis.sock?db=1", "/run/redis.sock", ("", 0, 1, "", "secret")),
    ],
)
def test_addresses(url: str, text: str, fields: tuple[Any, ...]) -> None:
    address = Address.parse(url)
    assert str(address) == text
    assert (address.host, address.port, address.db, address.username, address.password) == fields
    assert "secret" not in repr(address)
    assert address.tls is None


@pytest.mark.parametrize(
    "url",
    [
        "http://:secret@h",
        "redis://:secret@",
        "redis://:secret@h/x",
        "redis://:secret@h?retry=1",
        "unix://:secret@",
        "unix://:secret@/a?x=1",
        "redis://:secret@h/99999",
        "redis://:secret@h:port",
        "",
    ],
)
def test_a_wrong_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Address.parse(url)
    assert "secret" not in str(caught.value)


def test_tls_is_on_for_rediss() -> None:
    address = Address.parse("rediss://h")
    assert address.tls is not None
    assert address.tls.check_hostname


def test_a_server_tells_its_process_and_its_history() -> None:
    info = b"# Server\r\nrun_id:%s\r\n# Replication\r\nrole:master\r\nmaster_replid:%s\r\n" % (b"a" * 40, b"b" * 40)
    assert read_info(info) == (True, "a" * 16 + "-" + "b" * 16)
    assert not read_info(info.replace(b"master\r", b"slave\r")).primary
