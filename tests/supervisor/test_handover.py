"""The socket between supervisor and worker: messages and connections arrive whole, in order, whatever the pieces."""

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from gateway.handover import (
    MAX_CONNECTIONS,
    Drain,
    Passed,
    Receiver,
    Report,
    Setup,
    encode,
    pair,
    pass_connections,
)

MESSAGES = (Setup({"a": {"b": [1]}}, "n" * 32, True, ("api",)), Drain(1.5), Report(True, "", 3, 4))


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = pair()
    yield ours, theirs
    ours.close()
    theirs.close()


def tcp() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as door:
        client = socket.create_connection(door.getsockname())
        return client, door.accept()[0]


def given(connection: socket.socket) -> Passed:
    return Passed(connection.fileno(), connection.family)


def test_messages_arrive_whole_in_pieces_of_every_size(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    receiver = Receiver(theirs)
    data = b"".join(encode(message) for message in MESSAGES)
    for size in range(1, len(data) + 1):
        got: list[object] = []
        for start in range(0, len(data), size):
            ours.send(data[start : start + size])
            got += receiver.read()
        assert tuple(got) == MESSAGES


def test_connections_arrive_in_their_order_between_messages(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    receiver = Receiver(theirs)
    pairs = [tcp() for _ in range(5)]
    ours.send(encode(MESSAGES[0]))
    pass_connections(ours, [given(server) for _, server in pairs[:2]])
    ours.send(encode(MESSAGES[1]))
    pass_connections(ours, [given(server) for _, server in pairs[2:]])
    got = [message for _ in range(4) for message in receiver.read()]
    assert [type(message) for message in got] == [Setup, Passed, Passed, Drain, Passed, Passed, Passed]
    for (client, server), message in zip(pairs, [m for m in got if isinstance(m, Passed)], strict=True):
        server.close()
        with socket.socket(message.family, socket.SOCK_STREAM, fileno=message.descriptor) as received:
            assert received.getpeername() == client.getsockname()
        client.close()


def test_as_many_go_in_one_message_as_are_promised(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    client, server = tcp()
    pass_connections(ours, [given(server)] * MAX_CONNECTIONS)
    got = list(Receiver(theirs).read())
    assert len(got) == MAX_CONNECTIONS
    for message in got:
        assert isinstance(message, Passed)
        os.close(message.descriptor)
    client.close()
    server.close()


def test_a_connection_that_the_kernel_could_not_hand_over_is_named_lost(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, theirs = ends
    monkeypatch.setattr(socket, "recv_fds", lambda *_: (b"4\n6\n", [], socket.MSG_CTRUNC, None))
    got = list(Receiver(theirs).read())
    assert got == [Passed(-1, socket.AF_INET), Passed(-1, socket.AF_INET6)]


def test_a_full_queue_refuses_and_the_end_is_seen(ends: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = ends
    client, server = tcp()
    passed = 0
    with contextlib.suppress(OSError):
        while True:
            pass_connections(ours, [given(server)])
            passed += 1
    receiver = Receiver(theirs)
    ours.close()
    while not receiver.ended:
        for message in receiver.read():
            assert isinstance(message, Passed)
            os.close(message.descriptor)
            passed -= 1
    assert passed == 0
    assert list(receiver.read()) == []
    client.close()
    server.close()
    with pytest.raises(OSError, match="descriptor"):
        pass_connections(ours, [])
