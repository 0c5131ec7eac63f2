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
from consumers.schedule.runner import Runner
from consumers.schedule.service import Schedule
from consumers.schedule.watch import Watch
from streamer.commands.brokers import with_brokers
from streamer.commands.part import run_part
from streamer.config import Config, load
from streamer.errors import RetryableError
from streamer.status import State, StatusWriter

TELL_S = 1.0  # as often as heartbeats go out
JOBS_LEASE = "jobs"


def serve(path: Path, *, metrics_port: int, restarts: int) -> None:
    """Until stopped."""
    config = with_brokers(load(path))

    async def body(stop: asyncio.Event, status: StatusWriter) -> None:
        database = Database(config)
        lease, schedule = Lease(database, JOBS_LEASE, owner()), Schedule(config, database)
        await asyncio.to_thread(lease.open)
        await asyncio.to_thread(schedule.open)
        runner = Runner(config, schedule.plans, schedule.jobs, lease)
        page = Dashboard(
            config, database, schedule, lambda: status.record, lambda url: status.update(detail={"page": url})
        )
        page.open()
        watch = Watch(config, database)
        await asyncio.to_thread(watch.open)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch.run(stop), name="watch")
            tasks.create_task(page.run(stop), name="dashboard")
            sampler = Sampler(Samples(database), lease, page.status)
            until_stopped = [
                tasks.create_task(_tell(config, schedule, runner, status), name="heartbeat"),
                tasks.create_task(sampler.run(), name="samples"),
            ]
            await runner.run(stop)
            for task in until_stopped:
                task.cancel()

    run_part(config, "serve", config.name, body, metrics_port=metrics_port, restarts=restarts)


async def _tell(config: Config, schedule: Schedule, runner: Runner, status: StatusWriter) -> None:
    while True:
        detail: dict[str, Any] = {"elected": runner.elected, "enabled": config.control.enabled}
        with suppress(RetryableError):
            views = await asyncio.to_thread(schedule.view, (), runner.decision)
            detail["jobs"] = [_without_text(view) for view in views]
        state = State.WAITING if runner.problem else State.RUNNING if runner.elected else State.STANDBY
        status.update(state=state, reason=runner.problem, detail=detail)
        await asyncio.sleep(TELL_S)


def _without_text(view: dict[str, Any]) -> dict[str, Any]:
    """What a run has said is kilobytes, and in the control database."""
    last = view["last"]
    return view if last is None else {**view, "last": {k: v for k, v in last.items() if k != "text"}}
