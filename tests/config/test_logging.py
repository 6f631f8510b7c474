"""Logs: JSON on one line, and no secret in any of the ways one could get in."""

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from config import logging as ours
from config.settings import Log

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What a process would write on stderr, with the tests' own logging put back after."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    ours.configure(Log(), node="n1", stream=stream)
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_json_with_time_level_and_node(stream: io.StringIO) -> None:
    structlog.get_logger().info("connected", client="c1", count=3)
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "connected", "level": "info", "node": "n1", "client": "c1", "count": 3}


def test_levels_below_the_setting_are_left_out(stream: io.StringIO) -> None:
    structlog.get_logger().debug("noise")
    logging.getLogger("aiohttp").debug("noise")
    assert stream.getvalue() == ""


def test_a_process_that_is_to_log_nothing_starts_and_logs_nothing(stream: io.StringIO) -> None:
    ours.configure(Log(level="none"), stream=stream)
    structlog.get_logger().critical("on fire")
    logging.getLogger("library").critical("on fire")
    assert lines(stream) == []


def test_loggers_of_libraries_end_in_the_same_stream(stream: io.StringIO) -> None:
    logging.getLogger("aiohttp.access").warning("bad token %s", JWT)
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["level"]) == ("bad token [token]", "aiohttp.access", "warning")


def test_an_exception_is_text_without_secrets(stream: io.StringIO) -> None:
    try:
        raise ValueError("cannot reach postgresql://wardgate:hunter2@db/x")
    except ValueError:
        structlog.get_logger().exception("failed")
        logging.getLogger("asyncio").exception("failed too")
    text = stream.getvalue()
    assert "hunter2" not in text
    assert all("cannot reach postgresql://[credentials]@db/x" in line["exception"] for line in lines(stream))


@pytest.mark.parametrize(
    "key",
    ["password", "new_password", "Authorization", "cookie", "set-cookie", "access_token", "X-API-Key", "api_key"],
)
def test_what_stands_under_the_name_of_a_secret_is_gone(stream: io.StringIO, key: str) -> None:
    structlog.get_logger().info("x", **{key: "hunter2"}, headers={key: ["hunter2"]}, parts=[{key: b"hunter2"}])
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        (f"GET /x?cf_connect={JWT}", JWT),
        ("GET /x?token=abcdefgh&a=1", "abcdefgh"),
        ("redis://:hunter2@cache:6379/0", "hunter2"),
        ("Authorization: Bearer abcdefghijkl", "abcdefghijkl"),
        ("Authorization: apikey abcdefghijkl", "abcdefghijkl"),
        ("hash $2b$12$abcdefghijklmnopqrstuv is malformed", "abcdefghijkl"),
        ("mail to someone.else@mail.example.org bounced", "someone"),
    ],
)
def test_what_looks_like_a_secret_is_gone_wherever_it_stands(text: str, gone: str) -> None:
    assert gone not in str(ours.scrub({"a": [text.encode(), (text,)], "b": text}))


def test_ordinary_text_stays() -> None:
    value = {"path": "/auth/login", "sid": "0190-abc", "n": 1, "ok": True, "none": None, "at": 1.5, "tokens": 3}
    assert ours.scrub(value) == value


def test_depth_and_length_are_bounded() -> None:
    deep: Any = "x"
    for _ in range(50):
        deep = [deep]
    assert len(str(ours.scrub(deep))) < 50
    assert len(ours.scrub("x" * 100_000)) == 20_000


def test_the_console_form_is_for_people(capsys: pytest.CaptureFixture[str], stream: io.StringIO) -> None:
    ours.configure(Log(format="console"), stream=stream)
    structlog.get_logger().warning("slow", client="c1", password="hunter2")
    assert "slow" in stream.getvalue()
    assert "client=c1" in stream.getvalue()
    assert "hunter2" not in stream.getvalue()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\nCookie: wardgate=SECRET\x01\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX-API-Key: " + b"SECRET" * 2000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nSECRET\r\n",
    ],
    ids=["cookie", "long key", "chunk"],
)
async def test_a_secret_in_a_malformed_request_was_logged_with_a_trace(stream: io.StringIO, sent: bytes) -> None:
    async def nothing(_request: web.BaseRequest) -> web.Response:
        return web.Response()

    async with RawTestServer(nothing) as server:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(sent)
        assert (await reader.readline()).startswith(b"HTTP/1.0 400 ")
        writer.close()
    refused = [line for line in lines(stream) if line.get("logger") == "aiohttp.server"]
    assert [line["level"] for line in refused] == ["info"]
    assert "SECRET" not in stream.getvalue()
    assert "exception" not in refused[0]
