"""`tailrace reconcile [JOB|FLOW...]`: the proof that targets equal their sources, and earlier ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import SystemRandom
from typing import Any

import typer
import uvloop
from rich.console import Console

from consumers.asker import operator
from consumers.reconcile.cells import KEPT
from consumers.reconcile.history import History
from consumers.reconcile.job import Job, check_alone, jobs_of
from consumers.reconcile.proof import Limits
from consumers.reconcile.proofs import Proofs, proofs_of
from consumers.reconcile.repair import wanted
from consumers.reconcile.report import SAMPLES, Report, log_lines
from consumers.reconcile.run import Options, failed, run_jobs
from consumers.reconcile.screen import show, show_history
from streamer.changes.backfill import manual_run
from streamer.cli import print_json
from streamer.config import Config, PostgresSource, load
from streamer.config.derived import processor_of
from streamer.config.operations import WINDOW_LIMIT_S, WINDOWS_LIMIT
from streamer.config.stores import store_of
from streamer.config.units import option_value, parse_duration, parse_rate, parse_share
from streamer.errors import EXIT_OK, ConfigError, TailraceError
from streamer.postgres.condition import check_condition
from streamer.postgres.connection import place

HISTORY = "history"
HISTORY_SHOWN = 20
HISTORY_JSON = 1_000


@dataclass(frozen=True, slots=True)
class Wish:
    """The command line, as typed."""

    names: Sequence[str]
    threshold: str = ""
    where: str = ""
    columns: str = ""
    rate: str = ""
    wait: str = ""
    log: str = ""
    values: bool = False
    samples: int = SAMPLES
    fresh: bool = False
    repair: bool = False
    dry_run: bool = False
    delete_extra: bool = False
    limit: int | None = None
    refuse_above: str = ""
    group: str = ""
    window: Sequence[str] = ()
    window_column: str = ""
    max_lag: str = ""


def reconcile(path: Path, wish: Wish, *, as_json: bool) -> int:
    """The exit code."""
    config = load(path)
    if list(wish.names) == [HISTORY]:
        return _history(config, as_json=as_json)
    jobs, options = jobs_of(config, wish.names), _options(wish)
    if wish.threshold:
        share = option_value(parse_share, wish.threshold, "--threshold", "tailrace reconcile")
        jobs = [replace(job, threshold=share) for job in jobs]
    if wish.max_lag:
        max_lag_s = option_value(parse_duration, wish.max_lag, "--max-lag", "tailrace reconcile")
        jobs = [replace(job, max_lag_s=max_lag_s) for job in jobs]
    jobs = _counting(_repairing(jobs, wish), wish)
    for option, given in (
        ("--where", wish.where),
        ("--columns", wish.columns),
        ("--group", wish.group),
        ("--window", wish.window or wish.window_column),
    ):
        if given:
            check_alone(jobs, option)
    report = uvloop.run(_reconcile(config, jobs, options, wish))
    _append(report, jobs, wish.log)
    if as_json:
        print_json(report.plain())
    else:
        show(report, Console())
    return report.exit_code


def _options(wish: Wish) -> Options:
    if wish.where:
        check_condition(wish.where, "--where")
    rate = option_value(parse_rate, wish.rate, "--limit-rate", "tailrace reconcile") if wish.rate else 0.0
    options = Options(wish.where, _names(wish.columns), Limits(rate, wish.values, wish.samples))
    if not wish.wait:
        return options
    stall_s = option_value(parse_duration, wish.wait, "--wait", "tailrace reconcile")
    return Options(options.where, options.columns, options.limits, stall_s)


def _repairing(jobs: list[Job], wish: Wish) -> list[Job]:
    """What is said of repairs here is before what the file says."""
    changes: dict[str, Any] = {}
    if wish.delete_extra:
        changes["delete_extra"] = True
    if wish.limit is not None:
        changes["limit"] = wish.limit
    if wish.refuse_above:
        changes["refuse_above"] = option_value(
            parse_share, wish.refuse_above, "--refuse-above", "tailrace reconcile"
        )
    if wish.repair or wish.dry_run:
        why = "tailrace reconcile --repair"
        return [
            wanted(job, repair=wish.repair and not wish.dry_run, why=why, changes=changes) for job in jobs
        ]
    if changes:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in changes)
        raise ConfigError(
            f"{given} is about a repair, and none is asked for",
            where="tailrace reconcile",
            fix="add --repair, or --dry-run to see what it would do",
        )
    return jobs


def _counting(jobs: list[Job], wish: Wish) -> list[Job]:
    """What is said of groups and windows here is before what the file says."""
    changes: dict[str, Any] = {}
    if wish.group:
        changes["by"] = _names(wish.group)
    if wish.window:
        sizes_s = tuple(
            option_value(parse_duration, size, "--window", "tailrace reconcile") for size in wish.window
        )
        if len(sizes_s) > WINDOWS_LIMIT or not all(1 <= size_s <= WINDOW_LIMIT_S for size_s in sizes_s):
            raise ConfigError(
                f"--window takes up to {WINDOWS_LIMIT} sizes of a second to a hundred years",
                where="tailrace reconcile",
                fix="write it as --window 7d --window 30d",
            )
        changes["sizes_s"] = sizes_s
    if wish.window_column:
        changes["column"] = wish.window_column
    jobs = [replace(job, counted=replace(job.counted, **changes)) for job in jobs]
    for counted in (job.counted for job in jobs if changes):
        if bool(counted.sizes_s) != bool(counted.column):
            what = "--window needs a column" if counted.sizes_s else "--window-column needs a window"
            raise ConfigError(
                f"{what}, and the file names none",
                where="tailrace reconcile",
                fix="write --window 7d --window-column COLUMN, or `windows` in the job",
            )
    return jobs


def _names(listed: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))


async def _reconcile(config: Config, jobs: list[Job], options: Options, wish: Wish) -> Report:
    history = History(config)
    asked = {
        "jobs": [_asked(config, job) for job in jobs],
        "options": {**asdict(options), "stall_s": 0},
    }
    run = manual_run(_now_us(), SystemRandom().getrandbits(16))
    try:
        await asyncio.to_thread(history.open)
        runs = await asyncio.to_thread(history.begin, run, asked, wish.names, _now_us(), fresh=wish.fresh)
        try:
            report = await run_jobs(config, jobs, options, runs, now_us=_now_us, by=operator())
        except TailraceError as error:  # it has ended, and the next one does not go on with it
            ended = Report(runs.run, runs.began_us, [failed(job, error) for job in jobs])
            await asyncio.to_thread(runs.end, ended.plain(cells=KEPT), _now_us())
            raise
        await asyncio.to_thread(runs.end, report.plain(cells=KEPT), _now_us())
    finally:
        history.close()
    if not options.where and not options.columns:
        await asyncio.to_thread(_note, config, report)
    return report


def _asked(config: Config, job: Job) -> dict[str, Any]:
    """All that decides what is compared and found, without passwords."""
    if job.refused:  # sources of other kinds may have secrets anywhere
        return {"job": job.name, "refused": job.refused}
    processor = processor_of(config, job.flow)
    source = config.sources[job.flow.source] if processor is None else config.processors[processor]
    target = config.targets[job.flow.target]
    models = {"flow": job.flow, "source": source, "target": target, "repair": job.repair}
    written = config.reconcile.get(job.name)
    return {
        "job": job.name,
        **{
            name: model.model_dump(mode="json", exclude={"url", "primary_url"})
            for name, model in models.items()
        },
        "sql": written.sql if written is not None else None,
        "from": place(source.url.get_secret_value()) if isinstance(source, PostgresSource) else None,
        "to": store_of(target),
        "counted": asdict(job.counted),
        **{"threshold": job.threshold, "rate": job.rate, "max_lag_s": job.max_lag_s},
    }


def _note(config: Config, report: Report) -> None:
    """For `status`: each flow that was compared whole."""
    proofs = Proofs(config)
    try:
        proofs.open()
        proofs.note(proofs_of(report.tables, report.run, report.began_us, _now_us()))
    finally:
        proofs.close()


def _append(report: Report, jobs: Sequence[Job], given: str) -> None:
    """A line a job to the file that it has, or to the one of the command line."""
    files = {job.name: Path(given) if given else job.log for job in jobs}
    names = list(dict.fromkeys(table.job for table in report.tables))
    for name, line in zip(names, log_lines(report, _now_us()), strict=True):
        path = files[name]
        if path is None:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise ConfigError(
                f"the line of {name} cannot be written: {error}", where=str(path), fix="name another file"
            ) from error


def _history(config: Config, *, as_json: bool) -> int:
    history = History(config)
    try:
        history.open()
        found = history.list(HISTORY_JSON if as_json else HISTORY_SHOWN)
    finally:
        history.close()
    if as_json:
        print_json(found)
    elif not found:
        typer.echo("nothing was reconciled yet: `tailrace reconcile`")
    else:
        show_history(found, Console())
    return EXIT_OK


def _now_us() -> int:
    return time.time_ns() // 1000
