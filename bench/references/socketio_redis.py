"""python-socketio on aiohttp with its Redis manager, as its documentation sets it up for several processes.

python -m bench.references.socketio_redis PORT REDIS_URL PING_SECONDS
"""

import asyncio
import sys
from typing import Any

import socketio  # type: ignore[import-untyped]
import uvloop
from aiohttp import web


async def main(port: int, redis_url: str, ping_seconds: int) -> None:
    server = socketio.AsyncServer(
        async_mode="aiohttp",
        client_manager=socketio.AsyncRedisManager(redis_url),
        cors_allowed_origins="*",
        ping_interval=ping_seconds,
    )

    async def join(sid: str, room: str) -> str:
        await server.enter_room(sid, room)
        return "ok"

    async def publish(request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        await server.emit("pub", body["data"], room=body["channel"])
        return web.json_response({"result": {}})

    server.on("join", join)
    app = web.Application()
    server.attach(app)
    app.add_routes([web.post("/api/publish", publish)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
