"""The least that aiohttp does for a request: one handler that answers a JSON object of the size of `/auth/me`'s.

python -m bench.references.aiohttp_hello PORT
"""

import asyncio
import sys

import uvloop
from aiohttp import web

BODY = b'{"text":"' + b"x" * 390 + b'"}'


async def me(request: web.Request) -> web.Response:
    return web.Response(body=BODY, content_type="application/json")


async def main(port: int) -> None:
    app = web.Application()
    app.add_routes([web.get("/auth/me", me)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
