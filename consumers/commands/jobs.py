"""`tailrace jobs` and `tailrace run-job`: what is known of the jobs of the file, and having one run now."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import typer
from rich.console import Console
from rich.markup import escape

from consumers import screens
from consumers.asker import operator
from consumers.control.database import Database
from consumers.control.jobs import Jobs
from consumers.schedule.plan import Outcome
from consumers.schedule.service import Schedule
from consumers.schedule.view import DISABLED, Past
from consumers.views import UNKNOWN, duration
from consumers.views.amounts import moment
from streamer.cli import print_json
from streamer.config import Config, load
from streamer.config.base import nearest, no_such
from streamer.errors import EXIT_FINDING, EXIT_INCOMPLETE, EXIT_OK, ConfigError
from streamer.status import now_us

POLL_S = 0.2
START_S = 20.0  # a scheduler that lives begins an asked job within a second; one that is to be, in 10
RUN_TEXT_LINES = 8

_LIST, _SHOW = "list", "show"
_ACTIONS = (_LIST, _SHOW, "pause", "resume")
_BAD = {"FAILED", "MISSED"}


def act(path: Path, action: str, job: str, *, as_json: bool) -> int:
    """The exit code: 1 when a job has failed, was missed, or is stale."""
    if action not in _ACTIONS:
        raise ConfigError(f"jobs can not {action!r}", fix=nearest(action, list(_ACTIONS)))
    if (action == _LIST) == bool(job):
        what = f"`list` takes no job ({job!r})" if job else f"which job is to {action}?"
        raise ConfigError(what, fix="`tailrace jobs` lists them")
    config = load(path)
    schedule = _open(config)
    if action == _LIST:
        return _list(config, schedule, as_json=as_json)
    (view,) = schedule.view([job])
    if action == _SHOW:
        return _show(schedule, view, ZoneInfo(config.schedules.timezone), as_json=as_json)
    schedule.jobs.know([job], now_us())
    schedule.jobs.pause(job, operator(), paused=action == "pause")
    (view,) = schedule.view([job])
    if as_json:
        print_json(view)
    else:
        typer.echo(
            f"{job} is paused: it runs when it is asked for alone" if action == "pause" else f"{job} goes on"
        )
    return EXIT_OK


def run_job(path: Path, job: str, *, wait: bool, as_json: bool) -> int:
    """The exit code: with `wait` 1 when the job has failed, 3 when no scheduler begins it."""
    config = load(path)
    schedule = _open(config)
    plans = schedule.plans()
    if job not in plans:
        raise no_such("job", job, plans, config.path)
    if not config.control.enabled:
        raise ConfigError("no job runs", where=f"{config.path}: control.enabled", fix="set it to true")
    jobs = schedule.jobs
    jobs.know([job], now_us())
    before = max((past.run for past in jobs.history(job, 1)), default=0)
    joined = jobs.ask(job, operator(), now_us())
    if not wait:
        if as_json:
            print_json({"job": job, "run": joined, "joined": joined is not None})
        else:
            typer.echo(f"{job} runs already: joined run {joined}" if joined else f"{job} is asked for")
        return EXIT_OK
    past = _wait(jobs, job, joined, before)
    if past is None:
        what = f"{job} has not begun within {START_S:.0f} s: it stays asked for"
        if as_json:
            print_json({"job": job, "run": None, "joined": False})
        else:
            fix = f"start a scheduler: `tailrace serve`; `tailrace jobs show {job}` says what it waits for"
            typer.echo(f"{what}\n  -> {fix}")
        return EXIT_INCOMPLETE
    if as_json:
        print_json({"job": job, "joined": joined is not None, **past.plain()})
    else:
        typer.echo(_line(job, past, ZoneInfo(config.schedules.timezone)))
    return EXIT_OK if past.outcome in (Outcome.OK, None) else EXIT_FINDING


def _open(config: Config) -> Schedule:
    schedule = Schedule(config, Database(config))
    schedule.open()
    return schedule


def _wait(jobs: Jobs, job: str, joined: int | None, before: int) -> Past | None:
    """Its end, however long that takes; None: it has not begun in time."""
    limit_s = time.monotonic() + START_S
    run = joined
    while True:
        if run is None:
            run = next((past.run for past in jobs.history(job, 1) if past.run > before), None)
        if run is not None:
            past = jobs.run(run)
            if past is not None and past.outcome is not None:
                return past
        elif time.monotonic() > limit_s:
            return None
        time.sleep(POLL_S)


def _list(config: Config, schedule: Schedule, *, as_json: bool) -> int:
    views = schedule.view()
    code = EXIT_FINDING if any(v["state"] in _BAD or v["stale"] for v in views) else EXIT_OK
    if as_json:
        print_json({"enabled": config.control.enabled, "timezone": config.schedules.timezone, "jobs": views})
        return code
    if not views:
        typer.echo("the file has no jobs: docs/schedules.md says how to write them")
        return EXIT_OK
    if not config.control.enabled:
        typer.echo(f"{DISABLED}: control.enabled is false, and no job runs")
    zone = ZoneInfo(config.schedules.timezone)
    titles = ("JOB", "DOES", "STATE", "NEXT", "LAST", "TOOK", "OUTCOME", "AGE", "STALE AFTER", "30 RUNS")
    table = screens.headed(*titles, right=("TOOK", "AGE", "30 RUNS"))
    table.caption = f"times are of {config.schedules.timezone}"
    table.caption_justify = "left"
    for view in views:
        table.add_row(*_cells(view, zone))
    narrow = screens.without(table, "TOOK", "STALE AFTER")
    screens.show(Console(), screens.Fitting(table, narrow, screens.without(narrow, "DOES", "30 RUNS")))
    return code


def _cells(view: dict[str, Any], zone: ZoneInfo) -> list[str]:
    last = view["last"] or {}
    rate = view["success_rate"]
    return [
        escape(view["name"]),
        escape(f"{view['kind']} {view['what']}"),
        view["state"] + (" STALE" if view["stale"] else "") + (f": {view['waits']}" if view["waits"] else ""),
        moment(view["next_us"], zone),
        moment(last.get("began_us"), zone),
        UNKNOWN if last.get("seconds") is None else f"{last['seconds']:.1f} s",
        last.get("outcome") or UNKNOWN,
        duration(view["age_s"]),
        duration(view["stale_after_s"]),
        UNKNOWN if rate is None else f"{rate:.0%}",
    ]


def _show(schedule: Schedule, view: dict[str, Any], zone: ZoneInfo, *, as_json: bool) -> int:
    pasts = schedule.jobs.history(view["name"])
    if as_json:
        print_json({**view, "history": [past.plain() for past in pasts]})
        return EXIT_OK
    next_ = moment(view["next_us"], zone)
    typer.echo(f"{view['name']}: {view['kind']} {view['what']}, {view['state']}, next {next_}")
    for past in pasts:
        typer.echo(_line(view["name"], past, zone))
    return EXIT_OK


def _line(job: str, past: Past, zone: ZoneInfo) -> str:
    took = UNKNOWN if past.ended_us is None else f"{(past.ended_us - past.began_us) / 1e6:.1f} s"
    outcome = past.outcome.value if past.outcome is not None else "runs"
    head = f"{moment(past.began_us, zone)}  {job} run {past.run}  {outcome}  {took}  by {past.by}"
    lines = past.text.splitlines()[-RUN_TEXT_LINES:] if past.outcome is not Outcome.OK else []
    return "\n".join([head, *(f"    {line}" for line in lines)])
