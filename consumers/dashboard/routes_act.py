"""What the API changes: jobs, and flows by way of the commands that do it. Whether one may is guard's."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Body, Request
from starlette.responses import Response

from consumers.dashboard import commands as wishes
from consumers.dashboard.actions import Commands
from consumers.dashboard.errors import Conflict, NotFound
from consumers.dashboard.routes_see import as_json, flow_of
from consumers.schedule.service import Schedule
from streamer.config import Config
from streamer.config.base import nearest
from streamer.status import now_us

_NOTHING: Any = Body(default_factory=wishes.Decision)
_NO_REASON: Any = Body(default_factory=wishes.Pause)


def by(request: Request) -> str:
    """For the audit trail."""
    return f"http from {request.client.host}" if request.client is not None else "http"


def routes(config: Config, schedule: Schedule, commands: Commands) -> APIRouter:
    api = APIRouter(prefix="/api", tags=["change"])

    async def run(kind: str, name: str, wish: wishes.Wish, request: Request) -> Response:
        asked = wishes.asked(kind, flow_of(config, name), wish, by(request))
        action, joined = await commands.ask(
            asked, after=getattr(wish, "after", None), needs_dry_run=wishes.needs_dry_run(wish)
        )
        answer = as_json({**action.plain(), "joined": joined})
        answer.status_code = 202
        return answer

    @api.post("/flows/{name}/reconcile", summary="Compare a flow; with `repair`, publish again what differs")
    async def reconcile(name: str, wish: wishes.Reconcile, request: Request) -> Response:
        return await run("reconcile", name, wish, request)

    @api.post("/flows/{name}/replay", summary="Go back in the log")
    async def replay(name: str, wish: wishes.Replay, request: Request) -> Response:
        return await run("replay", name, wish, request)

    @api.post("/flows/{name}/dead-letters/retry", summary="Apply parked changes again")
    async def retry(name: str, wish: wishes.Retry, request: Request) -> Response:
        return await run("retry", name, wish, request)

    @api.post("/flows/{name}/dead-letters/discard", summary="Drop parked changes for good")
    async def discard(name: str, wish: wishes.Discard, request: Request) -> Response:
        return await run("discard", name, wish, request)

    @api.post("/flows/{name}/approve", summary="Let pass what a flow holds")
    async def approve(name: str, request: Request, wish: wishes.Decision = _NOTHING) -> Response:
        return await run("approve", name, wish, request)

    @api.post("/flows/{name}/refuse", summary="Drop what a flow holds, with a record")
    async def refuse(name: str, request: Request, wish: wishes.Decision = _NOTHING) -> Response:
        return await run("refuse", name, wish, request)

    @api.post("/flows/{name}/pause", summary="Have a flow wait: nothing more of it is written")
    async def pause_flow(name: str, request: Request, wish: wishes.Pause = _NO_REASON) -> Response:
        return await run("pause", name, wish, request)

    @api.post("/flows/{name}/resume", summary="Have a paused flow go on from where it is")
    async def resume_flow(name: str, request: Request, wish: wishes.Decision = _NOTHING) -> Response:
        return await run("resume", name, wish, request)

    @api.post("/actions/{number}/cancel", summary="End a command that runs")
    async def cancel(number: wishes.Number, wish: wishes.Decision = _NOTHING) -> Response:
        return as_json((await commands.cancel(number)).plain())

    def known(name: str) -> None:
        plans = schedule.plans()
        if name not in plans:
            raise NotFound(f"there is no job {name!r}", fix=nearest(name, list(plans)))
        schedule.jobs.know([name], now_us())

    @api.post("/jobs/{name}/run", summary="Have a job run now; one that runs already is joined")
    async def run_job(name: str, request: Request, wish: wishes.Decision = _NOTHING) -> Response:
        if not config.control.enabled:
            raise Conflict("no job runs: control.enabled is false", fix="set it to true in the config file")
        await asyncio.to_thread(known, name)
        joined = await asyncio.to_thread(schedule.jobs.ask, name, by(request), now_us())
        answer = as_json({"job": name, "run": joined, "joined": joined is not None})
        answer.status_code = 202
        return answer

    async def pause(name: str, request: Request, *, paused: bool) -> Response:
        await asyncio.to_thread(known, name)
        await asyncio.to_thread(lambda: schedule.jobs.pause(name, by(request), paused=paused))
        (view,) = await asyncio.to_thread(schedule.view, [name])
        return as_json(view)

    @api.post("/jobs/{name}/pause", summary="It runs when it is asked for alone")
    async def pause_job(name: str, request: Request, wish: wishes.Decision = _NOTHING) -> Response:
        return await pause(name, request, paused=True)

    @api.post("/jobs/{name}/resume", summary="It runs at its times again")
    async def resume_job(name: str, request: Request, wish: wishes.Decision = _NOTHING) -> Response:
        return await pause(name, request, paused=False)

    return api
