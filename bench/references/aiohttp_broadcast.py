"""The simplest gateway one would write on aiohttp: one `await ws.send_str` per connection. No Redis, no tokens.

python -m bench.references.aiohttp_broadcast PORT
"""

import asyncio
import json
import sys

import uvloop
from aiohttp import WSMsgType, web

REPLY = '{"id":1,"connect":{"client":"aiohttp"}}\n{"id":2,"subscribe":{}}'
CONNECTIONS: set[web.WebSocketResponse] = set()


async def connect(request: web.Request) -> web.WebSocketResponse:
    """Every message is taken for connect and subscribe."""
    ws = web.WebSocketResponse(compress=False)
    await ws.prepare(request)
    try:
        async for message in ws:
            if message.type is WSMsgType.TEXT:
                await ws.send_str(REPLY)
                CONNECTIONS.add(ws)
    finally:
        CONNECTIONS.discard(ws)
    return ws


async def publish(request: web.Request) -> web.Response:
    """`{channel, data}`, the channel being the only one there is."""
    body = await request.json()
    push = {"push": {"channel": body["channel"], "pub": {"data": body["data"]}}}
    text = json.dumps(push, separators=(",", ":"))
    for ws in list(CONNECTIONS):
        await ws.send_str(text)
    return web.json_response({"result": {}})


async def main(port: int) -> None:
    app = web.Application()
    app.add_routes([web.get("/connection/websocket", connect), web.post("/api/publish", publish)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=4096).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
