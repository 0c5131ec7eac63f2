"""Steps before a job and after it: a request, or a function of the user's own. Their limits are here, too.

A URL may hold a secret: it is never part of what is said of a step.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx2
import orjson

from consumers.alerts import webhook
from consumers.schedule.commands import LAUNCH
from consumers.schedule.process import JobProcess
from streamer.config import Config
from streamer.config.operations import Action
from streamer.errors import EXIT_OK

EXEC_LIMIT_S = 60.0  # a step prepares or tells something; work that takes longer is a job


@dataclass(frozen=True, slots=True)
class Said:
    """What a step is told: a request's JSON body, a function's arguments. `outcome` None: before the job."""

    job: str
    run: int
    outcome: str | None


async def take(
    config: Config,
    action: Action,
    said: Said,
    place: str,
    tail: deque[str],
    began: Callable[[JobProcess], None],
) -> str:
    """Why it failed; empty when it did not. `place`: audit.before.0; `began` is given a function's process,
    whose last lines are put into `tail`."""
    if action.exec is not None:
        return await _call(config, action.exec, said, place, tail, began)
    if action.http is None:  # a variable that is empty here: there is nobody to tell
        return ""
    headers = {"Content-Type": "application/json", "User-Agent": "tailrace"}
    body, url = orjson.dumps(asdict(said)), action.http.get_secret_value()
    async with httpx2.AsyncClient() as client:
        return await webhook.request(client, "POST", url, content=body, headers=headers)


async def _call(
    config: Config,
    function: str,
    said: Said,
    place: str,
    tail: deque[str],
    began: Callable[[JobProcess], None],
) -> str:
    arguments = orjson.dumps(asdict(said)).decode()
    words = [*LAUNCH, str(os.getpid()), "function", function, str(Path(config.base)), place, arguments]
    process = JobProcess(words, tail)
    try:
        await process.start()
    except OSError as error:
        return f"its process cannot be started: {error}"
    began(process)
    try:
        async with asyncio.timeout(EXEC_LIMIT_S):
            code = await process.wait()
    except TimeoutError:
        process.end()
        await process.wait()
        return f"it ran longer than {EXEC_LIMIT_S:g} s"
    finally:
        process.kill()
    return "" if code == EXIT_OK else f"it ended with exit code {code}"
