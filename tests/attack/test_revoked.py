"""Someone who wants a socket to outlive its session."""

import asyncio
import contextlib
import json
import random
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import pytest

from tests.attack.conftest import token
from tests.world.conftest import PASSWORD, Socket, World


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


# -- interleavings


class Racer:
    """One person whose session is ended while sockets connect, subscribe, publish and refresh."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.random = world, random.Random(seed)
        self.channel = f"chat:{uuid.uuid4().hex}"
        self.sockets: list[Socket] = []

    async def run(self) -> None:
        self.person = await self.world.register()
        self.other = await self.world.login(self.person.email)
        how = self.random.choice(list(ENDINGS))
        deeds = self.random.choices([self._connect, self._burst, self._flow, self._refresh, self._order], k=4)
        ended, *_ = await asyncio.gather(self._later(lambda: ENDINGS[how][0](self)), *map(self._later, deeds))
        assert ended, how
        await self._nothing_lives(how)

    async def _later(self, deed: Callable[[], Awaitable[Any]]) -> Any:
        await asyncio.sleep(self.random.random() * 0.05)
        return await deed()

    async def _socket(self, token: str) -> Socket:
        socket = await self.world.socket(connect=False)
        self.sockets.append(socket)
        await self._say(socket, {"id": 1001, "connect": {"token": token}})
        return socket

    async def _say(self, socket: Socket, *commands: dict[str, Any]) -> None:
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            await socket.ws.send_str("\n".join(map(json.dumps, commands)))

    async def _connect(self) -> None:
        await self._socket(self.person.access)

    async def _burst(self) -> None:
        socket = await self._socket(self.person.access)
        publish = [{"id": n, "publish": {"channel": self.channel, "data": n}} for n in range(1003, 1008)]
        await self._say(socket, {"id": 1002, "subscribe": {"channel": self.channel}}, *publish)

    async def _flow(self) -> None:
        socket = await self._socket(self.person.access)
        await self._say(socket, {"id": 1002, "subscribe": {"channel": self.channel}})
        for n in range(1003, 1030):
            await self._say(socket, {"id": n, "publish": {"channel": self.channel, "data": n}})
            await asyncio.sleep(0.002)

    async def _refresh(self) -> None:
        socket = await self._socket(self.person.access)
        status, body = await self.world.call("POST", "/auth/refresh", {"refresh_token": self.person.refresh})
        if status == 200:
            await self._say(socket, {"id": 1002, "refresh": {"token": body["access_token"]}})
            await self._socket(body["access_token"])

    async def _order(self) -> None:
        """What a backend orders must not keep anyone alive."""
        await self._socket(self.person.access)
        await self.world.api("subscribe", {"user": self.person.id, "channel": self.channel})
        await self.world.api("refresh", {"user": self.person.id, "expire_at": int(time.time()) + 900})

    async def _nothing_lives(self, how: str) -> None:
        """The end was confirmed, or the sockets were given time to hear of it: from here on nothing gets through."""
        _, confirmed, close = ENDINGS[how]
        if not confirmed:
            await asyncio.gather(*(socket.closed() for socket in self.sockets))
        await self.world.api("publish", {"channel": self.channel, "data": "late"})
        for socket in self.sockets:
            await self._say(socket, {"id": 2000, "presence_stats": {"channel": self.channel}})
        for socket in (*self.sockets, *[await self._socket(self.person.access) for _ in range(3)]):
            assert (how, await socket.closed(), socket.reason) == (how, *close)
            heard = json.dumps(socket.events)
            assert '"late"' not in heard
            assert '"id": 2000' not in heard
        for socket in self.sockets[-3:]:
            assert '"connect"' not in json.dumps(socket.events), how
        assert (await self.world.call("GET", "/auth/me", token=self.person.access))[0] == 401
        refresh = {"refresh_token": self.person.refresh}
        assert (await self.world.call("POST", "/auth/refresh", refresh))[0] == 401
        for socket in self.sockets:
            await socket.ws.close()

    # -- the ends: whether each was done

    async def log_out(self) -> bool:
        return (await self.world.call("POST", "/auth/logout", {}, token=self.person.access))[0] == 204

    async def end_from_elsewhere(self) -> bool:
        path = f"/auth/sessions/{self.person.sid}"
        return (await self.world.call("DELETE", path, token=self.other.access))[0] == 204

    async def change_password(self) -> bool:
        body = {"current_password": PASSWORD, "new_password": PASSWORD + " and back"}
        return (await self.world.call("POST", "/auth/password", body, token=self.other.access))[0] == 204

    async def disable(self) -> bool:
        body = {"disabled": True, "reason": "abuse"}
        key = self.world.info["api_key"]
        return (await self.world.call("PATCH", f"/admin/users/{self.person.id}", body, X_API_Key=key))[0] == 200

    async def revoke_session(self) -> bool:
        return bool(await _revoke(self.world, {"sid": self.person.sid}))

    async def revoke_user(self) -> bool:
        return bool(await _revoke(self.world, {"user": self.person.id}))


ENDINGS: dict[str, tuple[Callable[[Racer], Awaitable[bool]], bool, tuple[int, str]]] = {
    "log out": (Racer.log_out, False, (4501, "session revoked: logout")),
    "end from elsewhere": (Racer.end_from_elsewhere, False, (4501, "session revoked: ended_by_user")),
    "change password": (Racer.change_password, False, (4501, "session revoked: password_changed")),
    "disable": (Racer.disable, False, (4502, "account disabled")),
    "revoke session": (Racer.revoke_session, True, (4501, "session revoked: stolen")),
    "revoke user": (Racer.revoke_user, True, (4501, "session revoked: stolen")),
}
"""By name: the deed, whether its end says `confirmed`, how sockets are closed."""


@pytest.mark.parametrize("seed", range(8))
async def test_f20_no_interleaving_lets_a_socket_outlive_its_session(world: World, seed: int) -> None:
    await asyncio.gather(*(Racer(world, 100 * seed + n).run() for n in range(8)))
