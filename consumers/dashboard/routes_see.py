"""What the API shows: nothing here changes anything but the reader's knowledge."""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Query
from starlette.responses import Response

from consumers import views
from consumers.control.samples import POINTS_LIMIT
from consumers.dashboard import figures
from consumers.dashboard.actions import Commands
from consumers.dashboard.commands import PRINTED, Number, letters
from consumers.dashboard.errors import NotFound, answer
from consumers.dashboard.watch import Watch
from consumers.reconcile.history import History
from consumers.schedule.service import Schedule
from streamer.config import Config, Flow
from streamer.config.base import nearest
from streamer.status import now_us

LETTERS_SHOWN = 500
RECONCILES_LIMIT = 200

HOURS_LIMIT = 168  # for so long samples are kept
SECONDS_LIMIT = 600  # of all flows at once: more is a flow's own

Limit = Annotated[int, Query(ge=1, le=RECONCILES_LIMIT)]
Hours = Annotated[float, Query(gt=0, le=HOURS_LIMIT)]
Seconds = Annotated[int, Query(ge=1, le=SECONDS_LIMIT)]
FlowName = Annotated[str, Query(max_length=200, pattern=PRINTED)]
Points = Annotated[int, Query(ge=1, le=POINTS_LIMIT)]


def flow_of(config: Config, name: str) -> Flow:
    """Raises NotFound."""
    flow = config.flows.get(name)
    if flow is None:
        raise NotFound(f"there is no flow {name!r}", fix=nearest(name, list(config.flows)))
    return flow


def as_json(value: Any) -> Response:
    return Response(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS), media_type="application/json")


def routes(config: Config, watch: Watch, schedule: Schedule, commands: Commands) -> APIRouter:
    api = APIRouter()

    @api.get("/healthz", tags=["health"], summary="This process is alive")
    async def healthz() -> dict[str, bool]:
        return {"alive": True}

    @api.get("/readyz", tags=["health"], summary="Heartbeats come and the control database answers; else 503")
    async def readyz() -> Response:
        problems = watch.not_ready()
        raw = orjson.dumps({"ready": not problems, "problems": [p.split(":", 1)[0] for p in problems]})
        return Response(raw, 503 if problems else 200, media_type="application/json")

    @api.get("/metrics", tags=["health"], summary="For Prometheus: flows, jobs, open events, this process")
    async def metrics() -> Response:
        text = figures.exposition(watch.own(), watch.status(), watch.events)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @api.get("/api/status", tags=["see"], summary="As `tailrace status --json`")
    async def status() -> Response:
        return as_json(watch.status().plain())

    @api.get("/api/lag", tags=["see"], summary="As `tailrace lag --json`")
    async def lag() -> Response:
        return as_json(views.lag(watch.status()))

    @api.get("/api/lag/history", tags=["see"], summary="The worst lag of each flow, by ten seconds")
    async def lag_history(seconds: Seconds = 120) -> Response:
        at_us = now_us()
        found = await asyncio.to_thread(watch.samples.worst_lags, at_us - seconds * 1_000_000, at_us)
        found["flows"] = {name: lags for name, lags in found["flows"].items() if name in config.flows}
        return as_json(found)

    @api.get("/api/flows/{name}", tags=["see"], summary="A flow: partitions, latencies, its last proof")
    async def flow(name: str) -> Response:
        flow_of(config, name)
        found = next((each for each in watch.status().flows if each["name"] == name), None)
        if found is None:
            return answer(404, f"flow {name} is of a kind that is not built yet")
        return as_json({**found, "at_us": watch.status().at_us})

    @api.get("/api/flows/{name}/history", tags=["see"], summary="Lag, latency and rate, of up to seven days")
    async def history(name: str, hours: Hours = 24, points: Points = 300) -> Response:
        flow_of(config, name)
        at_us = now_us()
        since_us = at_us - round(hours * 3_600_000_000)
        return as_json(await asyncio.to_thread(watch.samples.history, name, since_us, points, at_us))

    @api.get(
        "/api/flows/{name}/dead-letters",
        tags=["see"],
        summary="Keys of a flow that the target has refused, as `tailrace dead-letters list --json`",
    )
    async def dead_letters(name: str) -> Response:
        found = await commands.look(letters(flow_of(config, name)))
        return as_json({"flow": name, "count": len(found), "keys": found[:LETTERS_SHOWN]})

    @api.get(
        "/api/jobs", tags=["see"], summary="All jobs: state, last and next run, as `tailrace jobs --json`"
    )
    async def jobs() -> Response:
        known = watch.jobs()
        found = known if known is not None else await asyncio.to_thread(schedule.view)
        zone = config.schedules.timezone
        scheduler = {"enabled": config.control.enabled, "timezone": zone, "scheduler": watch.scheduler}
        return as_json({**scheduler, "jobs": found})

    @api.get("/api/jobs/{name}", tags=["see"], summary="A job, with its last 30 runs and what they said")
    async def job(name: str) -> Response:
        plans = await asyncio.to_thread(schedule.plans)
        if name not in plans:
            raise NotFound(f"there is no job {name!r}", fix=nearest(name, list(plans)))
        (view,) = await asyncio.to_thread(schedule.view, [name])
        history = await asyncio.to_thread(schedule.jobs.history, name)
        return as_json({**view, "history": [past.plain() for past in history]})

    @api.get("/api/events", tags=["see"], summary="What is wrong now, and what was")
    async def events(open_only: bool = False) -> Response:
        known = watch.events
        if known is None:
            return answer(503, "the control database does not answer", fix=watch.events_trouble)
        shown = [event for event in known if event.resolved_us is None or not open_only]
        return as_json([event.plain() for event in shown])

    @api.get(
        "/api/reconciles",
        tags=["see"],
        summary="Earlier comparisons, the newest first: drift by table, group and window",
    )
    async def reconciles(flow: str = "", limit: Limit = 20) -> Response:
        if flow:
            flow_of(config, flow)
        return as_json(await asyncio.to_thread(_history, config, flow, limit))

    @api.get(
        "/api/actions", tags=["see"], summary="What was asked for over HTTP, by whom, and what came of it"
    )
    async def actions(flow: FlowName = "", limit: Limit = 50) -> Response:
        return as_json([action.plain() for action in await commands.last(limit, flow)])

    @api.get("/api/actions/{number}", tags=["see"], summary="One of them, with what it says so far")
    async def action(number: Number) -> Response:
        return as_json((await commands.one(number)).plain())

    return api


def _history(config: Config, flow: str, limit: int) -> list[dict[str, Any]]:
    """Those in which the flow was compared; of each only its tables."""
    with closing(History(config)) as history:
        history.open()
        runs = history.list(RECONCILES_LIMIT if flow else limit)
    found = []
    for run in runs:
        report = run["report"]
        if flow and report is not None:
            tables = [table for table in report["tables"] if table["flow"] == flow]
            if not tables:
                continue
            found.append({**run, "report": {**report, "tables": tables}})
        elif not flow or flow in run["names"]:
            found.append(run)
    return found[:limit]
