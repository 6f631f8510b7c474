"""A compact JWS has one spelling, or it is none."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.jws import MAX_LENGTH, Malformed, encode, read_object, split


def token(header: bytes, payload: bytes = b"{}", signature: bytes = b"s" * 64) -> str:
    return ".".join(encode(part) for part in (header, payload, signature))


def test_the_parts_come_back() -> None:
    made = token(b'{"alg":"ES256","kid":"k"}', b'{"sub":"x"}')
    parts = split(made)
    assert parts.header == {"alg": "ES256", "kid": "k"}
    assert parts.payload == b'{"sub":"x"}'
    assert parts.signed == made.rpartition(".")[0].encode()
    assert parts.signature == b"s" * 64


@pytest.mark.parametrize(
    "bad",
    [
        "",
        ".",
        "..",
        "a.b",
        "a.b.c.d",
        "e30.e30",
        "e30.e30.e30.",
        token(b"[]"),
        token(b"1"),
        token(b"null"),
        token(b"{"),
        token(b'{"alg":NaN}'),
        token(b'{"alg":"ES256","alg":"none"}'),
        token(b'{"a":{"b":1,"b":2}}'),
        token(b'\xff{"alg":"ES256"}'),
        token('{"alg":"ES256"}'.encode("utf-16")),
        token(b'\xef\xbb\xbf{"alg":"ES256"}'),
        token(b"[" * 3000),
        token(b'{"alg":"ES256","b64":false,"crit":["b64"]}'),
        token(b'{"alg":"ES256","crit":[]}'),
        token(b'{"alg":"ES256","jku":"https://evil.example/k"}'),
        token(b'{"alg":"ES256","jwk":{}}'),
        token(b'{"alg":"ES256","x5u":"https://evil.example/c"}'),
        token(b"{}") + "=",
        "e30=.e30.e30",
        "e3 0.e30.e30",
        "e30\n.e30.e30",
        "e31.e30.e30",  # the same bytes as e30, spelt otherwise
        "é30.e30.e30",
        "\ud800.e30.e30",
        token(b"{}", b'{"a":"' + b"x" * MAX_LENGTH + b'"}'),
    ],
)
def test_sec_30_33_35_what_is_no_token_of_anyones(bad: str) -> None:
    with pytest.raises(Malformed):
        split(bad)


@given(st.text() | st.text("eyJ0.-_=AQ", max_size=60))
def test_no_text_does_worse_than_malformed(text: str) -> None:
    try:
        parts = split(text)
    except Malformed:
        return
    assert ".".join((*parts.signed.decode().split("."), encode(parts.signature))) == text


@given(st.binary(max_size=80), st.integers(0, 5))
def test_every_other_spelling_of_a_signature_is_refused(signature: bytes, change: int) -> None:
    canonical = encode(signature)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for last in alphabet:
        other = canonical[:-1] + last
        raw = base64.urlsafe_b64decode(other + "=" * (-len(other) % 4)) if len(other) % 4 != 1 else b""
        if canonical and other != canonical and raw == signature:
            with pytest.raises(Malformed):
                split(f"e30.e30.{other}")


def test_deep_and_huge_json_is_malformed_and_nothing_worse() -> None:
    for raw in (b"[" * 100_000, b'{"a":' * 5000, b"9" * 10_000, json.dumps({"a": "\ud800"}).encode() * 2):
        with pytest.raises(Malformed):
            read_object(raw)
