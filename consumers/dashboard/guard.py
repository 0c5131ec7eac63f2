"""What stands before every route: host, key, origin, size and JSON of a request, and headers of an answer.

An answer to a refused request is JSON in the shape of the command line's errors: {"error": {"what", "fix"}}.
"""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consumers.dashboard.auth import Doors, Refusal
from streamer.logs import Log

BODY_BYTES = 2**20
DRAIN_BYTES = 16 * 2**20  # of a body that is too large: read and dropped, so that its sender reads the answer
BODY_S = 10.0  # a body that comes more slowly is given up
DEPTH_LIMIT = 32  # of lists and objects in each other: a wish has two

log = Log("dashboard")

OPEN_PATHS = ("/healthz", "/readyz", "/docs", "/openapi.json")  # they say nothing about the data
OPEN_PREFIX = "/page/"
STREAM_PATH = "/api/stream"
WRITES = {"POST", "PUT", "PATCH", "DELETE"}


def content_policy(style_sha256: str = "") -> str:
    """`style_sha256`: base64, of a page's own <style>."""
    style = f"'self' 'sha256-{style_sha256}'" if style_sha256 else "'self'"
    return (
        f"default-src 'none'; script-src 'self'; style-src {style}; img-src 'self' data:; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


HEADERS = [
    (b"content-security-policy", content_policy().encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

TOO_LARGE = Refusal(413, f"the body is larger than {BODY_BYTES:,} bytes", "send less")
TOO_DEEP = Refusal(
    422,
    f"the body holds more than {DEPTH_LIMIT} lists and objects in each other",
    "see /docs for what it may hold",
)
TOO_SLOW = Refusal(408, f"the body did not arrive within {BODY_S:g} s", "send it at once")


class Guard:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, doors: Doors) -> None:
        self._app = app
        self._doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                have = {name for name, _ in message["headers"]}
                extra = [(name, value) for name, value in HEADERS if name not in have]
                if b"cache-control" not in have:
                    extra.append((b"cache-control", b"no-store"))
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        refusal = self._refused(scope, headers)
        if refusal is not None:
            await _drain(receive, headers)
            await refuse(answer, refusal)
            return
        if scope["method"] not in WRITES:
            await self._ask(_read_as(scope), receive, answer)
            return
        body = await _body(receive)
        if isinstance(body, Refusal):
            await refuse(answer, body)
            return
        bad = _not_json(body, headers)
        if bad is not None:
            await refuse(answer, bad[0], bad[1])
            return
        await self._ask(scope, _given(body, receive), answer)

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What a route fails at is answered by errors, and raised once more: logged here, and no further."""
        is_whole = False

        async def answer(message: Message) -> None:
            nonlocal is_whole
            is_whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except Exception:
            log.exception("a bug of Tailrace: please report it with these lines", path=scope["path"])
            if not is_whole:
                raise

    def _refused(self, scope: Scope, headers: MutableMapping[str, str]) -> Refusal | None:
        host = self._doors.host(headers)
        if host is not None:
            return host
        if scope["method"] in WRITES:
            length = headers.get("content-length", "0")
            if length.isdecimal() and int(length) > BODY_BYTES:
                return TOO_LARGE
            return self._doors.write(headers)
        path = scope["path"]
        if path == "/" or path in OPEN_PATHS or path.startswith(OPEN_PREFIX):
            return None
        return self._doors.read(headers)


def _read_as(scope: Scope) -> Scope:
    """HEAD is answered as GET is; the server leaves the body out. A stream is all body."""
    is_head = scope["method"] == "HEAD" and scope["path"] != STREAM_PATH
    return {**scope, "method": "GET"} if is_head else scope


async def refuse(send: Send, refusal: Refusal, where: str = "") -> None:
    """The answer; the connection ends with it, as a body may be left unread."""
    said = {"what": refusal.what, "where": where, "fix": refusal.fix, "problems": []}
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if refusal.retry_after_s is not None:
        headers.append((b"retry-after", str(refusal.retry_after_s).encode()))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": orjson.dumps({"error": said})})


async def _body(receive: Receive) -> bytes | Refusal:
    found = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return TOO_SLOW
                found += message.get("body", b"")
                if len(found) > BODY_BYTES:
                    await _drain(receive, {"transfer-encoding": "chunked"})
                    return TOO_LARGE
                if not message.get("more_body", False):
                    return bytes(found)
    except TimeoutError:
        return TOO_SLOW


async def _drain(receive: Receive, headers: MutableMapping[str, str]) -> None:
    """An answer before the body has been read is lost with the connection at many clients."""
    length = headers.get("content-length", "0")
    if "transfer-encoding" not in headers and (not length.isdecimal() or int(length) == 0):
        return
    if headers.get("expect", "").lower() == "100-continue":  # it waits for a word before it sends
        return
    read = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(BODY_S):
            while read < DRAIN_BYTES:
                message = await receive()
                read += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def _not_json(body: bytes, headers: MutableMapping[str, str]) -> tuple[Refusal, str] | None:
    """With the place in the body, where there is one."""
    if not body:
        return None
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return Refusal(415, "the body is no JSON", "send it with `Content-Type: application/json`"), ""
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        where = f"body, line {error.lineno}, column {error.colno}"
        return Refusal(422, f"the body is malformed JSON: {error.msg}", "mend it at that place"), where
    return (TOO_DEEP, "body") if _is_deep(found) else None


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEPTH_LIMIT):
        inside = [
            each.values() if isinstance(each, dict) else each
            for each in level
            if isinstance(each, dict | list)
        ]
        level = [each for its in inside for each in its]
        if not level:
            return False
    return any(isinstance(each, dict | list) for each in level)


def _given(body: bytes, receive: Receive) -> Receive:
    first: Any = {"type": "http.request", "body": body, "more_body": False}

    async def give() -> Message:
        nonlocal first
        if first is not None:
            message, first = first, None
            return dict(message)
        return await receive()

    return give
