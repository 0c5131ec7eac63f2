"""Repair by the log: a table's faults asked for as a backfill of their keys, then compared once more.

Owns which faults are repaired, what refuses that, and how it is seen to have come out. Nothing is written
into a target here: rows go the way of every change, so that a newer one wins, and each flow of the table
gets them. Whoever asks is in the control database before the log is asked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil
from shlex import quote
from typing import Any

from consumers.reconcile import history
from consumers.reconcile.cells import share
from consumers.reconcile.fence import DIFFERENT, EXTRA, HELD, MISSING, PARKED, UNUSABLE, NotPassed, Patience
from consumers.reconcile.history import Runs
from consumers.reconcile.job import Job
from consumers.reconcile.keys import event_key
from consumers.reconcile.proof import JUDGE_AT, Judge
from consumers.reconcile.report import RepairReport, TableReport
from consumers.reconcile.sides.base import Key
from streamer.backfills import ask, follow
from streamer.changes.backfill import REPAIR, Request, Run, State, Wanted
from streamer.changes.schema import SchemaRecord
from streamer.config import Config
from streamer.errors import TailraceError
from streamer.resetting import processor_reset_steps

FOLLOW_MS = 500  # of one look at the backfill; a record that comes ends it

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Faulty:
    """A table with drift. `kinds`: of the compared key's columns, in their order. `faults`: each row, where
    they are known one by one. `open_judge`: the fence that compares them again. `request`: a backfill of the
    table, under a run's name; None: nothing publishes its rows."""

    report: TableReport
    record: SchemaRecord
    kinds: Mapping[str, str]
    faults: Sequence[tuple[str, Key]]
    open_judge: Callable[[], Awaitable[Judge]]
    request: Callable[[str], Request] | None


@dataclass(frozen=True, slots=True)
class _Planned:
    faulty: Faulty
    report: RepairReport
    keys: dict[Key, tuple[Any, ...]]  # compared -> as an event has it


class Repairs:
    """Of one job. `by`: user@host; `stall_s`: how long the backfill may stand still."""

    def __init__(
        self,
        config: Config,
        brokers: str,
        job: Job,
        runs: Runs,
        *,
        by: str,
        now_us: Callable[[], int],
        clock_s: Clock,
        stall_s: float,
        samples: int,
    ) -> None:
        self._config = config
        self._brokers = brokers
        self._job = job
        self._runs = runs
        self._by = by
        self._now_us = now_us
        self._clock_s = clock_s
        self._stall_s = stall_s
        self._samples = samples

    async def run(self, tables: Sequence[Faulty]) -> None:
        """Into the tables' reports. All is planned, and refused, before the first row is asked for."""
        planned = plan(self._job, tables, samples=self._samples)
        if self._job.repair.mode != "auto":
            return
        for each in planned:
            try:
                await self._repair(each)
            except NotPassed as why:
                each.report.reason = str(why)
                await self._end(each)
            except TailraceError as error:
                each.report.reason, each.faulty.report.failed = str(error), True
                await self._end(each)

    async def _end(self, each: _Planned) -> None:
        plain = each.report.plain()
        await asyncio.to_thread(self._runs.repair_ended, each.report.backfill, plain, self._now_us())

    async def _repair(self, each: _Planned) -> None:
        report, run = each.report, self._runs.run
        flow, table = self._job.flow.name, each.faulty.report.source
        # One name for one table of one run: who goes on with a run that was killed finds its backfill.
        assert each.faulty.request is not None  # else it was refused
        request = replace(
            each.faulty.request(f"{REPAIR}{run}:{flow}:{table}"),
            keyed=True,
            deletes=self._job.repair.delete_extra,
            by=self._by,
            why=f"{REPAIR}{run}",
            asked_us=self._now_us(),
        )
        report.backfill = request.run
        report.left = unplanned = each.faulty.report.counts.drift - report.planned
        report.unproved = report.planned
        audited = history.Repair(
            request.run, flow, table, request.asked_us, self._by, self._job.why, report.plain()
        )
        await asyncio.to_thread(self._runs.repair_asked, audited)
        kafka = self._config.kafka
        await ask(
            self._brokers,
            kafka.security,
            self._config.name,
            request,
            list(each.keys.values()),
            replication_factor=kafka.topics.replication_factor,
        )
        why = await self._wait(request, report)
        report.left = unplanned + await self._verify(each, why)
        await self._end(each)

    async def _wait(self, request: Request, report: RepairReport) -> str:
        """Until the backfill is over; why it has failed. Raises NotPassed when it stands still,
        KafkaUnavailable."""
        config = self._config
        patience = Patience(self._clock_s, self._stall_s)
        async with follow(
            self._brokers, config.kafka.security, config.name, source=request.source
        ) as follower:
            while True:
                run = follower.runs.by_run.get((request.source, request.run))
                progress = run.progress if run is not None else None
                if run is not None and progress is not None:
                    report.applied, report.state = progress.rows + progress.deletes, progress.state.value
                    if progress.state.over:
                        return progress.reason
                if not patience.has_left(progress.updated_us if progress is not None else 0):
                    raise NotPassed(_still(request, run, patience.still_s))
                await follower.next(FOLLOW_MS)

    async def _verify(self, each: _Planned, why: str) -> int:
        """The second comparison, of the planned keys: how many are drift. `why`: of a backfill that has
        failed. Raises NotPassed, and the errors of the stores."""
        report, keys = each.report, list(each.keys)
        judge = await each.faulty.open_judge()
        drift, waits, unusable = 0, 0, 0
        for at in range(0, len(keys), JUDGE_AT):
            judged = await judge.judge(keys[at : at + JUDGE_AT])
            waits += len(judged.in_flight)
            report.verified += judged.settled
            for fault in judged.faults:
                if fault.kind in (PARKED, HELD):
                    waits += 1
                    continue
                if fault.kind == UNUSABLE:
                    unusable += 1
                    continue
                drift += 1
                if len(report.still) < self._samples:
                    report.still.append(list(fault.key))
        report.unproved = waits + unusable
        if waits:
            report.reason = (
                f"rows that still change, or wait behind a refused or held change: {waits}"
                f"\n  -> `tailrace dead-letters list {self._job.flow.target}`, `tailrace status`"
            )
        elif drift and report.state != State.DONE:
            report.reason = (
                f"backfill {report.backfill} has {report.state}: {why}"
                if report.state == State.FAILED
                else f"backfill {report.backfill} was {report.state}"
            )
        return drift


def plan(job: Job, tables: Sequence[Faulty], *, samples: int) -> list[_Planned]:
    """What is to be repaired; each table's report says so, or why not. `samples`: so many keys of a table
    that cannot be are named."""
    mode = "repair" if job.repair.mode == "auto" else "plan"
    planned = []
    for faulty in tables:
        repair = faulty.report.repair = RepairReport(mode, left=faulty.report.counts.drift)
        repair.refused = _refused(job, faulty)
        if repair.refused:
            continue
        keys: dict[Key, tuple[Any, ...]] = {}
        for kind, key in faulty.faults:
            if kind not in (MISSING, DIFFERENT, EXTRA) or (kind == EXTRA and not job.repair.delete_extra):
                continue
            made = event_key(key, faulty.kinds, faulty.record)
            if made is None:
                if len(repair.still) < samples:
                    repair.still.append(list(key))
                continue
            keys[key] = made
            setattr(repair, kind, getattr(repair, kind) + 1)
        if keys:
            planned.append(_Planned(faulty, repair, keys))
    rows = sum(len(each.keys) for each in planned)
    if rows <= job.repair.limit:
        return planned
    for each in planned:
        again = f"publish all rows again: {_backfill(job, each.faulty)}; or "
        again = "" if _only_extra(each.faulty) else again
        each.report.refused = (
            f"{rows:,} rows of {job.name} would be repaired, and the limit is {job.repair.limit:,}:"
            f" nothing was asked\n  -> {again}raise --limit, `reconcile.{job.name}.repair.limit`"
        )
    return []


def _refused(job: Job, faulty: Faulty) -> str:
    report, above = faulty.report, job.repair.refuse_above
    if faulty.request is None and job.processor:
        return (
            f"the rows of {report.source} are derived, and nothing publishes one of them: nothing was asked"
            f"\n  -> see whether changes are parked: `tailrace dead-letters list {job.processor}`; to have"
            f" all of them derived again {processor_reset_steps(job.processor)}"
        )
    if faulty.request is None:
        return (
            f"{report.source} is a query, and nothing publishes its rows: nothing was asked\n  -> run what"
            f" keeps {report.target} once more, or correct its rows there; --samples N names more of them"
        )
    if report.drift > above:
        raised = f"tailrace reconcile {quote(job.name)} --repair --delete-extra"
        then = (
            f"`{raised} --refuse-above {ceil(report.drift * 100)}%` deletes what only the target has"
            if _only_extra(faulty)
            else f"publish all rows again: {_backfill(job, faulty)}; or raise --refuse-above,"
            f" `reconcile.{job.name}.repair.refuse_above`"
        )
        return (
            f"the drift of {share(report.drift)} is above {share(above)}: nothing was asked"
            f"\n  -> look for the cause; then {then}"
        )
    if not report.complete:
        return "it was not compared to its end: nothing was asked"
    if not faulty.faults:
        return f"{report.reason}: nothing was asked\n  -> publish all rows: {_backfill(job, faulty)}"
    return ""


def _only_extra(faulty: Faulty) -> bool:
    """No backfill takes out what only the target has."""
    return faulty.report.counts.extra == faulty.report.counts.drift


def _backfill(job: Job, faulty: Faulty) -> str:
    return f"`tailrace backfill {job.flow.source} {quote(faulty.report.source)}`"


def _still(request: Request, run: Run | None, still_s: float) -> str:
    paused = run is not None and run.wanted is Wanted.PAUSE
    what = "is paused" if paused else f"did not move for {still_s:.0f} s"
    capture = f"start the capture: `tailrace capture {request.source}`; see `tailrace backfills`"
    fix = f"`tailrace backfills resume {quote(request.run)}`" if paused else capture
    return f"backfill {request.run} {what}\n  -> {fix}; what it publishes is proved by the next reconcile"


def wanted(job: Job, *, repair: bool, why: str, changes: Mapping[str, Any]) -> Job:
    """The job as the command line has it: `repair` or a plan only, with other limits."""
    mode = "auto" if repair else "plan"
    return replace(job, repair=job.repair.model_copy(update={**changes, "mode": mode}), why=why)
