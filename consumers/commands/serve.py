"""`tailrace serve`: the scheduler, the watcher and the page, with their heartbeat."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from consumers.control.database import Database, owner
from consumers.control.lease import Lease
from consumers.control.sampler import Sampler
from consumers.control.samples import Samples
from consumers.dashboard.server import Dashboard
from consumers.heartbeats import Heartbeats
from consumers.schedule.runner import Runner
from consumers.schedule.service import Schedule
from consumers.schedule.watch import Watch
from streamer.commands.brokers import with_brokers
from streamer.commands.part import run_part
from streamer.config import Config, load
from streamer.errors import RetryableError, TailraceError
from streamer.logs import Log
from streamer.runner import gravest
from streamer.status import State, StatusWriter
from streamer.stopping import end_tasks

TELL_S = 1.0  # as often as heartbeats go out
JOBS_LEASE = "jobs"

log = Log("serve")


def serve(path: Path, *, metrics_port: int, restarts: int) -> None:
    """Until stopped."""
    config = with_brokers(load(path))

    async def body(stop: asyncio.Event, status: StatusWriter) -> None:
        # Started again by a supervisor, nobody has decided to begin with an empty one.
        database = Database(config, makes_anew=restarts == 0)
        lease, schedule = Lease(database, JOBS_LEASE, owner()), Schedule(config, database)
        heartbeats = Heartbeats(config, database)
        watch = Watch(config, database, heartbeats=heartbeats)

        def opening() -> None:
            for part in (lease, schedule, watch):
                part.open()

        with suppress(RetryableError):  # else it is waited for, with the page open
            await asyncio.to_thread(opening)
        runner = Runner(config, schedule.plans, schedule.jobs, lease, opening=opening)
        page = Dashboard(
            config,
            database,
            heartbeats,
            schedule,
            lambda: status.record,
            lambda url: status.update(detail={"page": url}),
        )
        page.open()
        sampler = Sampler(Samples(database), lease, page.status)
        error: TailraceError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(watch.run(stop), name="watch")
                tasks.create_task(page.run(stop), name="dashboard")
                until_stopped = [
                    tasks.create_task(_tell(config, schedule, runner, status), name="heartbeat"),
                    tasks.create_task(sampler.run(), name="samples"),
                    tasks.create_task(heartbeats.run(), name="heartbeats"),
                ]
                await runner.run(stop)
                await end_tasks(*until_stopped)
        except* TailraceError as group:
            error = gravest(group)  # raised below: Python before 3.11.4 wraps in a group what is raised here
        if error is not None:
            raise error

    run_part(config, "serve", config.name, body, metrics_port=metrics_port, restarts=restarts)


async def _tell(config: Config, schedule: Schedule, runner: Runner, status: StatusWriter) -> None:
    asking: asyncio.Task[list[dict[str, Any]]] | None = None
    while True:
        detail: dict[str, Any] = {"elected": runner.elected, "enabled": config.control.enabled}
        if asking is None and runner.plans is not None and not runner.problem:
            asked = asyncio.to_thread(schedule.told, runner.plans, runner.states, runner.decision)
            asking = asyncio.create_task(asked, name="what is known of the jobs")
            await asyncio.wait({asking}, timeout=TELL_S)  # a database that hangs stops no heartbeat
        if asking is not None and asking.done():
            try:
                detail["jobs"] = [_without_text(view) for view in asking.result()]
            except RetryableError:
                pass  # told by the runner
            except Exception:
                log.exception("jobs cannot be shown: please report it with these lines")
            asking = None
        problem = runner.problem
        state = State.WAITING if problem else State.RUNNING if runner.elected else State.STANDBY
        status.update(state=state, reason=problem, detail=detail)
        await asyncio.sleep(TELL_S)


def _without_text(view: dict[str, Any]) -> dict[str, Any]:
    """What a run has said is kilobytes, and in the control database."""
    last = view["last"]
    return view if last is None else {**view, "last": {k: v for k, v in last.items() if k != "text"}}
