"""`python tests/protocol/autobahn.py [--all]`: Autobahn's cases against an echo peer over our frame reader.

The peer is as small as it can be, a protocol over `gateway.transports.frames` with the message limit raised, because
some cases send 16 MiB. What is proved is the reader and the builders, not the product's transport. Left out unless
`--all` are 9.* (large and many messages), 12.* and 13.* (compression, which we never agree to).
"""

import argparse
import asyncio
import base64
import hashlib
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from kosoku import FailureError, run_fuzzingclient
from kosoku._kosoku import CaseResult

from gateway.transports import frames
from gateway.transports.frames import FrameError, FrameReader, Opcode

SLOW = ["9.*", "12.*", "13.*"]
COMPRESSION = ("12.", "13.")
LIMIT = 17 * 1024 * 1024
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Echo(asyncio.Protocol):
    """Says back what it hears, and closes as it is closed."""

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.head = b""
        self.reader = FrameReader(LIMIT, max_fragments=1_000_000)
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if not self.open:
            self.head += data
            if b"\r\n\r\n" not in self.head:
                return
            head, _, data = self.head.partition(b"\r\n\r\n")
            self.upgrade(head)
        try:
            for frame in self.reader.feed(data):
                self.answer(frame)
        except FrameError as error:
            for frame in error.frames:
                self.answer(frame)
            self.end(error.code)

    def upgrade(self, head: bytes) -> None:
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        key = next(line[19:] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: "))
        assert headers[b"upgrade"] == b"websocket"
        accept = base64.b64encode(hashlib.sha1(key.strip() + GUID, usedforsecurity=False).digest())
        self.transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nServer: wardgate\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )
        self.open = True

    def answer(self, frame: frames.Frame) -> None:
        match frame.opcode:
            case Opcode.TEXT:
                self.transport.write(frames.text(frame.payload))
            case Opcode.BINARY:
                self.transport.write(frames.binary(frame.payload))
            case Opcode.PING:
                self.transport.write(frames.pong(frame.payload))
            case Opcode.CLOSE:
                self.end(frame.code)

    def end(self, code: int) -> None:
        self.transport.write(frames.close(code))
        self.transport.close()


@asynccontextmanager
async def peer() -> AsyncIterator[str]:
    """The URL of an echo peer, for as long as the block lasts."""
    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0)
    try:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


def fault(case: CaseResult) -> str:
    """Why a case counts as failed, "" if it does not. Cases of compression say UNIMPLEMENTED: we do not agree to it."""
    good = {"OK", "NON-STRICT", "INFORMATIONAL"}
    if case.case_id.startswith(COMPRESSION):
        good.add("UNIMPLEMENTED")
    if case.behavior.value in good and case.behavior_close.value in good:
        return ""
    return f"{case.case_id}: {case.behavior.value} / {case.behavior_close.value}: {case.result} {case.result_close}"


async def run(exclude: list[str], concurrency: int = 4) -> tuple[Counter[str], list[str]]:
    """How many cases ended in which way, and a line for each that failed."""
    async with peer() as url:
        try:
            results = await run_fuzzingclient(url, exclude_cases=exclude, concurrency=concurrency)
        except FailureError as error:  # it has all results, and what is not implemented counts as a failure there
            results = error.results
    return Counter(case.behavior.value for case in results), [line for case in results if (line := fault(case))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="all 517 cases")
    ended, failed = asyncio.run(run([] if parser.parse_args().all else SLOW))
    print(*failed, sep="\n", end="")
    print(f"{ended.total()} cases, {len(failed)} failed ({', '.join(f'{n} {how}' for how, n in ended.items())})")
    return 1 if failed else 0


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    os._exit(status)  # threads of the suite's native part may still call into an interpreter that ends, which aborts it
