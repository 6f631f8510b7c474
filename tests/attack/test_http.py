"""What bad input gets over HTTP: a refusal with a code, never a 500, and nothing of it in the logs."""

import pytest

from tests.attack.conftest import handshake, raw_http, send_request, unsigned
from tests.world.conftest import World

NESTED = b"[" * 1200 + b"]" * 1200


@pytest.mark.parametrize("body", [rb'{"\ud800":1}', rb'{"\udfff`\udfff":1}', rb'{"email":{"\ud800":1}}'])
async def test_a_name_of_half_a_character_got_a_500(world: World, body: bytes) -> None:
    answer = await send_request(world, "POST", "/auth/login", body)
    assert (answer.status, answer.code) == (400, "malformed")


@pytest.mark.parametrize(
    ("header", "payload"),
    [
        (b'{"alg":"HS256","typ":"JWT"}', b'{"a":' + NESTED + b"}"),
        (b'{"alg":"ES256","typ":"at+jwt","kid":"x"}', b'{"iss":"wardgate","a":' + NESTED + b"}"),
    ],
)
async def test_a_deeply_nested_token_that_nobody_signed_got_a_500(world: World, header: bytes, payload: bytes) -> None:
    bearer = f"Authorization: Bearer {unsigned(header, payload)}"
    answer = await send_request(world, "GET", "/auth/me", headers=[bearer])
    assert (answer.status, answer.code) == (401, "unauthenticated")


@pytest.mark.parametrize("key", ["é" * 12, "\udce9" * 24])
async def test_a_handshake_key_that_is_not_ascii_got_a_500(world: World, key: str) -> None:
    answer = await raw_http(world, handshake(key=key))
    assert (answer.status, answer.code) == (400, "malformed")


@pytest.mark.parametrize(
    "upgrade",
    [
        handshake(method="HEAD"),
        handshake(version="HTTP/1.0"),
        handshake(more=["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="]),
    ],
    ids=["HEAD", "HTTP/1.0", "two keys"],
)
async def test_what_is_no_handshake_was_upgraded(world: World, upgrade: bytes) -> None:
    assert (await raw_http(world, upgrade, to_the_end=True)).status == 400


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_revocation_before_the_calendar_begins_got_a_500(world: World, moment: str, dry_run: bool) -> None:
    body = {"target": {"user": "42", "issued_before": moment}, "reason": "x", "dry_run": dry_run}
    status, problem = await world.call("POST", "/admin/revocations", body, X_API_Key=world.info["api_key"])
    assert (status, problem["errors"][0]["field"]) == (422, "target.issued_before")
