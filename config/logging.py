"""Logs: one JSON object a line on stderr, with the node that wrote it, and nothing in it that would help a thief.

Everything goes through `scrub`: values under keys that name a secret are replaced, and inside every other text whatever
looks like a token, a password in a URL, a password hash or an e-mail address. The standard library's loggers (aiohttp,
asyncio, asyncpg) end in the same stream, through the same processors.
"""

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError

from config.settings import Log

_LEVELS = {"trace": 10, "debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "none": 100}

_SECRET_KEY = re.compile(
    r"password|passwd|secret|token|cookie|authorization|api[_-]?key|pepper|private[_-]?key|credential|challenge|recovery",
    re.IGNORECASE,
)
_SECRET_TEXT = (
    (re.compile(r"eyJ[\w-]{5,}\.[\w-]*\.[\w-]*"), "[token]"),
    (re.compile(r"\$(?:2[aby]|argon2\w+)\$[./$=,\w-]+"), "[hash]"),
    (re.compile(r"(\w://)[^\s/@'\"]*:[^\s/@'\"]*@"), r"\1[credentials]@"),
    (re.compile(r"(?i)\b(bearer|apikey|basic)\s+[\w.~+/=-]{8,}"), r"\1 [credentials]"),
    (re.compile(r"(?i)\b(token|password|secret|api_?key|cf_connect)=[^\s&'\"]+"), r"\1=[secret]"),
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w"), "[email]"),
)
_MAX_TEXT = 20_000
_MAX_DEPTH = 6


def scrub(value: Any, depth: int = 0) -> Any:
    """`value` without secrets; bytes and unknown objects become text first."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth > _MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(key): _scrub_under(str(key), item, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [scrub(item, depth + 1) for item in value]
    text = value if isinstance(value, str) else repr(value)
    text = text[:_MAX_TEXT]
    for pattern, instead in _SECRET_TEXT:
        text = pattern.sub(instead, text)
    return text


def _scrub_under(key: str, value: Any, depth: int) -> Any:
    if _SECRET_KEY.search(key) and not isinstance(value, bool | int | float | None):
        return "[secret]"
    return scrub(value, depth)


def _scrubbed(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: _scrub_under(key, value, 0) for key, value in event.items()}


class _PlainRefusals(logging.Filter):
    """What is no HTTP is its sender's fault: one line, no trace, and no piece of it, for that may hold a cookie."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError | RequestPayloadError):
            record.msg, record.args = "malformed_request %s", (type(error).__name__,)
            record.exc_info = None
            record.levelno, record.levelname = logging.INFO, "INFO"
        return logging.getLogger().isEnabledFor(record.levelno)


_PLAIN_REFUSALS = _PlainRefusals()


def configure(settings: Log, *, node: str = "", stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging for this process. May be called again."""
    level, stream = _LEVELS[settings.level], stream or sys.stderr
    console = settings.format == "console"

    def with_node(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        if node:
            event.setdefault("node", node)
        return event

    def silent(_logger: Any, _method: str, _event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        raise structlog.DropEvent

    shared: list[structlog.types.Processor] = [
        *([silent] if level > logging.CRITICAL else []),
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        with_node,
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _scrubbed,
    ]
    if console:
        colors = stream.isatty()
        last: structlog.types.Processor = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0)
    else:
        last = structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[*shared, last],
        wrapper_class=structlog.make_filtering_bound_logger(min(level, logging.CRITICAL)),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    logging.getLogger("aiohttp.server").addFilter(_PLAIN_REFUSALS)
    # Other people's debug output is no part of ours.
    root.setLevel(max(level, logging.INFO))
