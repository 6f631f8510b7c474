"""Someone who wants a socket to outlive its session."""

import time
import uuid
from datetime import UTC, datetime
from typing import Any

from tests.attack.conftest import token
from tests.world.conftest import World


def _at(seconds: float) -> str:
    """A moment so many seconds from now."""
    return datetime.fromtimestamp(time.time() + seconds, UTC).isoformat()


async def _revoke(world: World, target: dict[str, Any]) -> dict[str, Any]:
    body = {"target": target, "reason": "stolen", "wait": True, "timeout": 20}
    status, receipt = await world.call("POST", "/admin/revocations", body, X_API_Key=world.info["api_key"])
    assert (status, receipt["state"]) == (201, "confirmed")
    return dict(receipt)


async def test_a_token_that_was_first_used_after_issued_before_escaped_it(world: World) -> None:
    user, now = uuid.uuid4().hex, int(time.time())
    old, young = (token(sub=user, iat=now - age, exp=now + 600) for age in (60, 0))
    stolen, own = await world.socket(old), await world.socket(young)
    dry = {"target": {"user": user, "issued_before": _at(-30)}, "reason": "stolen", "dry_run": True}
    _, counted = await world.call("POST", "/admin/revocations", dry, X_API_Key=world.info["api_key"])
    assert counted["sessions"] == 1
    receipt = await _revoke(world, {"user": user, "issued_before": _at(-30)})
    assert receipt["connections_closed"] == 1
    assert (await stolen.closed(), stolen.reason) == (4501, "session revoked: stolen")
    assert own.code is None
