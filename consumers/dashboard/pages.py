"""The page's files, read once and sent from memory, and /docs, which is written from the OpenAPI description.

Nothing is fetched from another host: there is no CDN, no font, and no build. The first page has its style in
it: it is painted as soon as it is there.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import HTMLResponse, Response

from consumers.dashboard.guard import content_policy

TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
    "LICENSE": "text/plain; charset=utf-8",
}
_STYLE_LINK = b'<link rel="stylesheet" href="/page/app.css">'


@dataclass(frozen=True, slots=True)
class File:
    body: bytes
    media_type: str
    etag: str
    style_sha256: str = ""  # of the <style> in it, base64


def read_files() -> dict[str, File]:
    """By path below page/: index.html, app.js, vendor/..."""
    found: dict[str, File] = {}

    def take(folder: Any, prefix: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                take(entry, f"{prefix}{entry.name}/")
            elif (kind := TYPES.get(entry.name.rpartition(".")[2])) is not None:
                body = entry.read_bytes()
                found[prefix + entry.name] = File(body, kind, _etag(body))

    take(files("consumers.dashboard") / "page", "")
    found["index.html"] = _styled(found["index.html"], found["app.css"].body)
    return found


def _styled(page: File, style: bytes) -> File:
    before, link, after = page.body.partition(_STYLE_LINK)
    assert link, "the page names its style"
    body = b"%b<style>%b</style>%b" % (before, style, after)
    return File(body, page.media_type, _etag(body), b64encode(sha256(style).digest()).decode())


def _etag(body: bytes) -> str:
    return f'"{sha256(body).hexdigest()[:20]}"'


def routes(app: FastAPI) -> APIRouter:
    pages, known = APIRouter(include_in_schema=False), read_files()

    def send(path: str, request: Request) -> Response:
        file = known.get(path)
        if file is None:
            return Response("not found", 404, media_type="text/plain")
        headers = {"etag": file.etag, "cache-control": "no-cache"}
        if file.style_sha256:
            headers["content-security-policy"] = content_policy(file.style_sha256)
        if request.headers.get("if-none-match") == file.etag:
            return Response(None, 304, headers)
        return Response(file.body, 200, headers, media_type=file.media_type)

    @pages.get("/")
    async def index(request: Request) -> Response:
        return send("index.html", request)

    @pages.get("/page/{path:path}")
    async def file(path: str, request: Request) -> Response:
        return send(path, request)

    @pages.get("/docs")
    async def docs() -> HTMLResponse:
        return HTMLResponse(docs_page(app.openapi()))

    return pages


def docs_page(api: Mapping[str, Any]) -> str:
    """All operations of an OpenAPI description on one page, without a script."""
    operations = "".join(
        _operation(api, method, path, operation)
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Tailrace API</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="/page/icon.svg"><link rel="stylesheet" href="/page/app.css"></head>'
        '<body class="docs"><main><h1>Tailrace API</h1>'
        '<p>The same as <a href="/openapi.json">/openapi.json</a>, for people. A change needs the admin key:'
        " <code>Authorization: Bearer KEY</code>. Errors are"
        ' <code>{"error": {"what", "where", "fix", "problems"}}</code>.</p>'
        f"{operations}</main></body></html>"
    )


def _operation(api: Mapping[str, Any], method: str, path: str, operation: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th scope=row><code>{escape(name)}</code></th><td>{escape(where)}</td><td>{escape(kind)}</td>"
        f"<td>{escape(text)}</td></tr>"
        for name, where, kind, text in _inputs(api, operation)
    )
    table = f"<table><tbody>{rows}</tbody></table>" if rows else ""
    return (
        f"<section><h2><code>{method.upper()} {escape(path)}</code></h2>"
        f"<p>{escape(str(operation.get('summary', '')))}</p>{table}</section>"
    )


def _inputs(api: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(name, where, type, text)"""
    for each in operation.get("parameters", ()):
        yield each["name"], each["in"], _kind(each["schema"]), str(each.get("description", ""))
    content = operation.get("requestBody", {}).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    name = str(schema.get("$ref", "")).rpartition("/")[2]
    for key, value in (
        api.get("components", {}).get("schemas", {}).get(name, {}).get("properties", {}).items()
    ):
        yield key, "body", _kind(value), str(value.get("description", ""))


def _kind(schema: Mapping[str, Any]) -> str:
    kinds = [str(each.get("type", "any JSON")) for each in schema.get("anyOf", [schema])]
    default = schema.get("default")
    words = " or ".join(kind for kind in kinds if kind != "null")
    return words if default in (None, "") else f"{words}, {str(default).lower()} unless given"
