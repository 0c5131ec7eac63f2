"""The application: FastAPI's routes behind one guard. What they do is the routes' own."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from consumers.dashboard import pages, routes_act, routes_schedule, routes_see
from consumers.dashboard.actions import Commands
from consumers.dashboard.auth import Doors
from consumers.dashboard.errors import answer, handle_errors
from consumers.dashboard.guard import STREAM_PATH, Guard
from consumers.dashboard.stream import VIEWERS_LIMIT, EventStream
from consumers.dashboard.watch import Watch
from consumers.schedule.service import Schedule
from streamer import __version__
from streamer.config import Config


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes work with."""

    config: Config
    watch: Watch
    schedule: Schedule
    commands: Commands


def build(parts: Parts, host: str, clock_s: Callable[[], float] = time.monotonic) -> ASGIApp:
    """`host`: what it is bound to."""
    app = FastAPI(
        title="Tailrace",
        version=__version__,
        docs_url=None,  # FastAPI's own take their scripts from another host
        redoc_url=None,
        generate_unique_id_function=_operation_id,
    )
    config, watch, commands = parts.config, parts.watch, parts.commands
    handle_errors(app)
    app.include_router(routes_see.routes(config, watch, parts.schedule, commands))
    app.include_router(routes_act.routes(config, parts.schedule, commands))
    app.include_router(routes_schedule.routes(parts.schedule))
    app.include_router(pages.routes(app))
    app.router.routes.append(Route(STREAM_PATH, _Viewing(watch), methods=["GET"]))
    return Guard(app, Doors(config, host, clock_s))


def _operation_id(route: APIRoute) -> str:
    return route.name


class _Viewing:
    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stream = self._watch.stream
        if scope["method"] != "GET":
            await answer(405, "a stream is read with GET")(scope, receive, send)
            return
        if stream.viewers >= VIEWERS_LIMIT:
            refused: Response = answer(503, f"{VIEWERS_LIMIT} viewers look already", fix="close a page")
            await refused(scope, receive, send)
            return
        await EventStream(stream)(scope, receive, send)
