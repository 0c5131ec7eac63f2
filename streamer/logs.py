"""The log: the standard library's logging on stderr, for people or as JSON lines, events with fields.

Secrets are taken out of every event. Results go to stdout and never through here.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import Any, Literal, TextIO

import orjson

LogFormat = Literal["human", "json"]
LEVELS = ("debug", "info", "warning", "error")
REDACTED = "***"

# Libraries that log each attempt of their own retries. What they give up on is raised, with a reason.
_NOISY = ("aiokafka", "asyncio", "faust", "httpx2", "httpcore2")  # and URLs, whose path may be a secret

_URL_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/]*@", re.IGNORECASE)
_NAMED_SECRET = re.compile(
    r"""((?:password|passwd|secret|token|api[_-]?key|sasl_plain_password)["']?\s*[=:]\s*)("[^"]*"|'[^']*'|(?!\.\.\.|[-}])[^\s,;&}]+)""",
    re.IGNORECASE,
)

# Words that stand as they are; other text of a field is quoted.
_NEEDS_QUOTES = re.compile(r"[\s=\"']|^$")
_COLOURS = {"debug": "\x1b[36m", "info": "\x1b[32m", "warning": "\x1b[33m", "error": "\x1b[31m"}
_PLAIN = "\x1b[0m"

_SECRET_KEY = re.compile(r"password|passwd|secret|token|api[_-]?key", re.IGNORECASE)


def redact(text: str) -> str:
    """Passwords in URLs and in `password=...` pairs become ***."""
    return _NAMED_SECRET.sub(rf"\g<1>{REDACTED}", _URL_PASSWORD.sub(rf"\g<1>:{REDACTED}@", text))


class Log:
    """A logger whose events carry fields: `log.warning("a line was cut", rows=3)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._write(logging.ERROR, event, fields, with_traceback=True)

    def _write(self, level: int, event: str, fields: dict[str, Any], *, with_traceback: bool = False) -> None:
        self._logger.log(level, "%s", event, exc_info=with_traceback, extra={"fields": fields})


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of an event, without secrets; a library's record has none."""
    return {name: _redact_field(name, value) for name, value in getattr(record, "fields", {}).items()}


def _redact_field(name: str, value: Any) -> Any:
    if _SECRET_KEY.search(name):
        return REDACTED
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, BaseException):
        return redact(f"{type(value).__name__}: {value}")
    return value


class HumanFormatter(logging.Formatter):
    """`12:00:00 [warning  ] a line was cut rows=3`, a traceback below it."""

    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = _COLOURS if colours else {}

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname.lower()
        colour = self._colours.get(level)
        shown = f"{colour}{level:<9}{_PLAIN}" if colour else f"{level:<9}"
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{at} [{shown}] {redact(record.getMessage())}"
        for name, value in fields_of(record).items():
            text = value if isinstance(value, str) and not _NEEDS_QUOTES.search(value) else repr(value)
            line += f" {name}={text}"
        if record.exc_info:
            line += f"\n{redact(self.formatException(record.exc_info))}"
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: timestamp (UTC), level, message, the event's fields, and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        second = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "timestamp": f"{second}.{int(record.created % 1 * 1e6):06}Z",
            "level": record.levelname.lower(),
            "message": redact(record.getMessage()),
            **fields_of(record),
        }
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return orjson.dumps(line, default=repr, option=orjson.OPT_NON_STR_KEYS).decode()


def setup(format: LogFormat = "human", *, level: str = "info", stream: TextIO | None = None) -> None:
    """Set up the log of the whole process, the libraries' too. Call at the start of a process."""
    out = stream or sys.stderr
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter() if format == "json" else HumanFormatter(colours=out.isatty()))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.getLevelNamesMapping()[level.upper()])
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


def stream() -> TextIO:
    """Where the log goes now."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, logging.StreamHandler):
            return handler.stream  # type: ignore[no-any-return]
    return sys.stderr
