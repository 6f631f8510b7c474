"""Caps of connections over real worker processes: exact in a burst, and free again when a worker dies."""

import asyncio
import os
import signal

from tests.world.conftest import Socket, World, running

LIMIT = 20


async def burst(world: World, count: int) -> list[Socket]:
    return list(await asyncio.gather(*(world.socket(connect=False) for _ in range(count))))


def closed(sockets: list[Socket], code: int) -> int:
    return sum(each.code == code for each in sockets)


async def test_59_caps_hold_over_the_workers_of_a_machine() -> None:
    async with running(
        2,
        WARDGATE_CLIENT_CONNECTIONS_PER_ADDRESS=str(LIMIT),
        WARDGATE_CLIENT_ALLOW_ANONYMOUS_CONNECT_WITHOUT_TOKEN="true",
        WARDGATE_CLIENT_STALE_CLOSE_DELAY="300s",
    ) as world:
        sockets = await burst(world, 50)
        async with asyncio.timeout(15):
            while closed(sockets, 3504) < 50 - LIMIT:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        late = await world.socket(connect=False)  # and not one more, now or in a second try
        assert await late.closed() == 3504
        assert closed(sockets, 3504) == 50 - LIMIT

        for pid in world.info["pids"]["workers"]:
            os.kill(pid, signal.SIGKILL)
        async with asyncio.timeout(15):
            while closed(sockets, 1006) < LIMIT:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        async with asyncio.timeout(20):  # their places are free when their leases are over
            while not await lets_in(world):  # noqa: ASYNC110
                await asyncio.sleep(0.2)


async def lets_in(world: World) -> bool:
    late = await world.socket(connect=False)
    try:
        return "connect" in await late.command(connect={})
    except ConnectionError:
        assert late.code == 3504
        await late.ws.close()
        return False
