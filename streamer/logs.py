"""The log: structlog on stderr, for people or as JSON lines. Secrets are taken out of every event.

Results go to stdout and never through here.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO

import structlog

LogFormat = Literal["human", "json"]
LEVELS = ("debug", "info", "warning", "error")
REDACTED = "***"

# Libraries that log each attempt of their own retries. What they give up on is raised, with a reason.
_NOISY = ("aiokafka", "asyncio", "faust")

_URL_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/]*@", re.IGNORECASE)
_NAMED_SECRET = re.compile(
    r"""((?:password|passwd|secret|token|api[_-]?key|sasl_plain_password)["']?\s*[=:]\s*)("[^"]*"|'[^']*'|(?!\.\.\.|[-}])[^\s,;&}]+)""",
    re.IGNORECASE,
)

_SECRET_KEY = re.compile(r"password|passwd|secret|token|api[_-]?key", re.IGNORECASE)


def redact(text: str) -> str:
    """Passwords in URLs and in `password=...` pairs become ***."""
    return _NAMED_SECRET.sub(rf"\g<1>{REDACTED}", _URL_PASSWORD.sub(rf"\g<1>:{REDACTED}@", text))


def _redact_event(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if _SECRET_KEY.search(key):
            event[key] = REDACTED
        elif isinstance(value, str):
            event[key] = redact(value)
        elif isinstance(value, BaseException):
            event[key] = redact(f"{type(value).__name__}: {value}")
    return event


def setup(format: LogFormat = "human", *, level: str = "info", stream: TextIO | None = None) -> None:
    """Set up structlog and the standard library's logging alike. Call once, at the start of a process."""
    out = stream or sys.stderr
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso" if format == "json" else "%H:%M:%S", utc=format == "json"),
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    final: list[structlog.typing.Processor]
    if format == "json":
        final = [structlog.processors.EventRenamer("message"), structlog.processors.JSONRenderer()]
    else:
        final = [structlog.dev.ConsoleRenderer(colors=out.isatty(), pad_event_to=0)]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def stream() -> TextIO:
    """Where the log goes now."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            return handler.stream  # type: ignore[no-any-return]
    return sys.stderr
