"""Schedules as they are in force, and changes of them beside the file: each with who and when."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from consumers.dashboard import commands as wishes
from consumers.dashboard.errors import NotFound, answer
from consumers.dashboard.routes_act import by
from consumers.dashboard.routes_see import as_json
from consumers.schedule.service import Schedule
from streamer.config.base import nearest
from streamer.config.changed import CHANGEABLE, PREFIX
from streamer.errors import ConfigError
from streamer.status import now_us

OVERRIDES_SHOWN = 200


class Change(wishes.Body):
    """Of one key of a job."""

    key: Annotated[str, Field(max_length=100, description=f"one of {', '.join(CHANGEABLE)}")]
    value: Any = Field(None, description="as in the file; null: as if the file did not have the key")


def routes(schedule: Schedule) -> APIRouter:
    api = APIRouter(prefix="/api")

    @api.get(
        "/overrides", tags=["see"], summary="What of the file's schedules was changed beside it, by whom"
    )
    async def overrides() -> Response:
        known = await asyncio.to_thread(schedule.in_force)
        past = await asyncio.to_thread(schedule.overrides.last, OVERRIDES_SHOWN)
        undone = [each.plain() for each in past if each.undone_us is not None]
        return as_json({"overrides": [each.plain() for each in known.standings], "undone": undone})

    @api.post(
        "/jobs/{name}/change", tags=["change"], summary="Change when or how a job runs, beside the file"
    )
    async def change(name: str, wish: Change, request: Request) -> Response:
        plans = await asyncio.to_thread(schedule.plans)
        if name not in plans:
            raise NotFound(f"there is no job {name!r}", fix=nearest(name, list(plans)))
        asked = f"{PREFIX}{name}.{wish.key}", wish.value, by(request), now_us()
        try:
            number = await asyncio.to_thread(schedule.change, *asked)
        except ConfigError as error:
            return answer(422, error.what, where="body", fix=error.fix)
        (view,) = await asyncio.to_thread(schedule.view, [name])
        return as_json({"override": number, "job": view})

    @api.post("/overrides/{number}/rollback", tags=["change"], summary="Let the file count again")
    async def rollback(number: wishes.Number, request: Request) -> Response:
        gone = await asyncio.to_thread(schedule.take_back, [number], by(request), now_us())
        return as_json({"undone": [each.plain() for each in gone]})

    return api
