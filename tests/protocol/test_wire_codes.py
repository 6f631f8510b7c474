"""The numbers of the wire are a promise to every client that is out there."""

import pytest

from gateway.protocol import codes
from gateway.protocol.codes import Close, Disconnect, ErrorCode, NotJson, ProtocolError, Refused
from sessions.model import DISABLED, EXPIRED, REPLACED, REVOKED, Ended

ERRORS = {
    100: "internal server error",
    101: "unauthorized",
    102: "unknown channel",
    103: "permission denied",
    104: "method not found",
    105: "already subscribed",
    106: "limit exceeded",
    107: "bad request",
    108: "not available",
    109: "token expired",
    110: "expired",
    111: "too many requests",
    112: "unrecoverable position",
    113: "concurrent pagination",
}
CLOSES = {
    3000: "connection closed",
    3001: "shutdown",
    3004: "internal server error",
    3005: "connection expired",
    3006: "subscription expired",
    3008: "slow",
    3009: "write error",
    3010: "insufficient state",
    3011: "force reconnect",
    3012: "no pong",
    3013: "too many requests",
    3014: "state invalidated",
    3500: "invalid token",
    3501: "bad request",
    3502: "stale",
    3503: "force disconnect",
    3504: "connection limit",
    3505: "channel limit",
    3506: "inappropriate protocol",
    3507: "permission denied",
    3508: "not available",
    3509: "too many errors",
    4001: "not current",
    4501: "session revoked",
    4502: "account disabled",
    4503: "session replaced",
    4504: "session expired",
}


def test_errors_have_their_numbers_and_texts() -> None:
    assert {int(code): code.message for code in ErrorCode} == ERRORS


def test_only_three_errors_are_temporary() -> None:
    assert {int(code) for code in ErrorCode if code.temporary} == {100, 111, 113}


def test_closes_have_their_numbers_and_reasons() -> None:
    assert {code: close.reason for code, close in codes.CLOSES.items()} == CLOSES


def test_no_close_is_below_3000_and_no_reason_is_too_long() -> None:
    for close in codes.CLOSES.values():
        assert close.code >= 3000
        assert len(close.reason.encode()) <= codes.MAX_REASON


@pytest.mark.parametrize("code", [REVOKED, DISABLED, REPLACED, EXPIRED])
def test_sessions_end_with_the_texts_of_the_wire(code: int) -> None:
    assert Ended(code).close_reason == codes.CLOSES[code].reason


@pytest.mark.parametrize(
    ("code", "again"),
    [
        (1006, True),
        (3001, True),
        (3014, True),
        (3499, True),
        (3500, False),
        (3999, False),
        (4001, True),
        (4499, True),
        (4500, False),
        (4504, False),
        (4999, False),
        (5000, True),
    ],
)
def test_the_range_of_a_close_says_whether_to_connect_again(code: int, again: bool) -> None:
    assert codes.reconnects(code) is again


def test_the_range_of_an_unsubscribe_says_whether_to_subscribe_again() -> None:
    assert not codes.resubscribes(codes.SERVER_UNSUBSCRIBE.code)
    assert codes.resubscribes(codes.INSUFFICIENT_STATE.code)
    assert codes.resubscribes(codes.SUBSCRIPTION_EXPIRED.code)
    assert codes.resubscribes(codes.SUBSCRIPTION_INVALIDATED.code)


def test_a_reason_is_cut_between_characters() -> None:
    assert codes.cut("a" * 200) == "a" * 123
    assert codes.cut("a" * 122 + "é") == "a" * 122
    assert codes.cut("short") == "short"


def test_exceptions_carry_what_is_sent_and_what_is_logged() -> None:
    with pytest.raises(Disconnect) as caught:
        raise ProtocolError("method without an id")
    assert (caught.value.code, caught.value.reason) == (3501, "bad request")
    assert str(caught.value) == "3501 bad request (method without an id)"
    assert NotJson().close == Close(3506, "inappropriate protocol")
    assert str(Disconnect(codes.STALE)) == "3502 stale"


def test_a_refusal_takes_a_known_code_or_ones_own() -> None:
    known = Refused(ErrorCode.TOO_MANY_REQUESTS)
    assert (known.code, known.message, known.temporary) == (111, "too many requests", True)
    own = Refused(1000, "out of stock")
    assert (own.code, own.message, own.temporary) == (1000, "out of stock", False)
