"""Channels that demand a second factor (`min_aal`), as sessions with one and with two meet them on the wire."""

from typing import Any

import pyotp
import pytest

from gateway.protocol.codes import ErrorCode
from tests.live.conftest import NAMESPACES, ORIGIN, Raw, Start, Worker, token

DENIED = int(ErrorCode.PERMISSION_DENIED)
VAULT = {
    "name": "vault",
    "min_aal": 2,
    "allow_subscribe_for_client": True,
    "allow_publish_for_client": True,
    "allow_presence_for_client": True,
    "allow_history_for_client": True,
    "presence": True,
    "history_size": 10,
    "history_ttl": "60s",
}
CHANNEL = "vault:gold"
ASKED: list[dict[str, Any]] = [
    {"subscribe": {"channel": CHANNEL}},
    {"publish": {"channel": CHANNEL, "data": "e30="}},
    {"presence": {"channel": CHANNEL}},
    {"presence_stats": {"channel": CHANNEL}},
    {"history": {"channel": CHANNEL}},
]


@pytest.fixture
async def worker(start: Start) -> Worker:
    return await start(channel={"namespaces": [*NAMESPACES, VAULT]})


async def refusals(raw: Raw) -> list[Any]:
    return [(await raw.ask(**command)).get("error", {}).get("code") for command in ASKED]


async def second_factor(worker: Worker, **by: Any) -> Any:
    """Turn one on: a step-up of the session that does so."""
    status, begun = await worker.call("POST", "/auth/totp", {}, **by)
    assert status == 200, begun
    status, on = await worker.call("POST", "/auth/totp/confirm", {"code": pyotp.TOTP(begun["secret"]).now()}, **by)
    assert status == 200, on
    return on


@pytest.mark.parametrize("protobuf", [False, True])
async def test_a_channel_that_demands_a_second_factor_opens_by_step_up_on_the_same_connection(
    worker: Worker, protobuf: bool
) -> None:
    person = await worker.person()
    raw = await worker.ws(protobuf=protobuf)
    connect = {"token": person["access_token"], "subs": {CHANNEL: {}, "chat:x": {}}}
    connected = (await raw.ask(connect=connect))["connect"]
    assert list(connected["subs"]) == ["chat:x"]
    assert await refusals(raw) == [DENIED] * 5
    await worker.api("subscribe", {"user": person["user"]["id"], "channel": CHANNEL})
    assert CHANNEL not in worker.hub.current.channels
    on = await second_factor(worker, bearer=person["access_token"])
    assert await refusals(raw) == [None] * 5
    again = await worker.ws(protobuf=protobuf)  # the token from before, and the one from after
    for access_token in (person["access_token"], on["access_token"]):
        connect = {"token": access_token, "subs": {CHANNEL: {}}}
        assert list((await again.ask(connect=connect))["connect"]["subs"]) == [CHANNEL]
        await again.close()
        again = await worker.ws(protobuf=protobuf)
    await again.close()
    await raw.close()


async def test_a_cookies_connection_is_subscribed_by_a_backend_once_its_session_has_shown_the_factor(
    worker: Worker,
) -> None:
    person = await worker.person("cookie")
    raw = await worker.ws(headers={"Origin": ORIGIN})
    await raw.ask(connect={})
    order = {"user": person["user"]["id"], "channel": CHANNEL}
    await worker.api("subscribe", order)
    assert CHANNEL not in worker.hub.current.channels
    await second_factor(worker, headers={"Origin": ORIGIN})
    await worker.api("subscribe", order)
    assert (await raw.push(lambda push: "subscribe" in push))["channel"] == CHANNEL
    await raw.close()


async def test_a_token_of_others_does_not_subscribe_past_the_demand(worker: Worker) -> None:
    claims: dict[str, Any] = {"channels": [CHANNEL, "chat:x"], "jti": "j"}
    raw = await worker.ws()
    connected = (await raw.ask(connect={"token": token("42", **claims)}))["connect"]
    assert list(connected["subs"]) == ["chat:x"]
    granted = token("42", channel=CHANNEL)
    assert (await raw.ask(subscribe={"channel": CHANNEL, "token": granted}))["error"]["code"] == DENIED
    assert "refresh" in await raw.ask(refresh={"token": token("42", **claims, iat=1)})  # the same without it
    await raw.close()
