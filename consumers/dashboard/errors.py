"""Errors as answers: the shape of the command line's, with the HTTP status that fits."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from consumers.dashboard.actions import Busy
from streamer.errors import ConfigError, RetryableError, TailraceError
from streamer.logs import redact


class NotFound(ConfigError):
    """No such flow, job or action."""


class Conflict(ConfigError):
    """Not as things are now; the fix says what first."""


def handle_errors(app: FastAPI) -> None:
    app.add_exception_handler(TailraceError, _ours)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(Exception, _bug)


def _status(error: Exception) -> int:
    for kind, status in (
        (Busy, 429),
        (NotFound, 404),
        (Conflict, 409),
        (ConfigError, 409),
        (RetryableError, 503),
    ):
        if isinstance(error, kind):
            return status
    return 500


def _ours(_request: Request, error: Exception) -> Response:
    assert isinstance(error, TailraceError)
    return answer(_status(error), error.what, where=error.where, fix=error.fix)


def _invalid(_request: Request, error: Exception) -> Response:
    """Each fault with its place: body.from_offset, query.limit."""
    assert isinstance(error, RequestValidationError)
    problems = [
        {"where": ".".join(str(part) for part in fault["loc"]), "what": str(fault["msg"]), "fix": ""}
        for fault in error.errors()
    ]
    first = problems[0]
    return answer(422, first["what"], where=first["where"], fix="see /docs", problems=problems)


def _plain(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return answer(error.status_code, str(error.detail), fix="see /docs" if error.status_code == 404 else "")


def _bug(_request: Request, _error: Exception) -> Response:
    """Who asks is told no more: it is in the log."""
    return answer(500, "a bug of Tailrace", fix="see the log of `tailrace serve`, and report it")


def answer(
    status: int, what: str, *, where: str = "", fix: str = "", problems: list[dict[str, str]] | None = None
) -> Response:
    said: dict[str, Any] = {
        "what": redact(what),
        "where": redact(where),
        "fix": redact(fix),
        "problems": problems or [],
    }
    return Response(orjson.dumps({"error": said}), status, media_type="application/json")
