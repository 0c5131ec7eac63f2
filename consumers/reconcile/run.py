"""A run: the tables of its jobs' flows, one after the other, each with its proof, and what was found of all.

Owns the order of things and what is open when: one connection to the source and one to the target for a
flow; Kafka and the target's session only from the first suspect on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from shlex import quote
from typing import Any

from orjson import loads

from consumers.reconcile import emptied
from consumers.reconcile.canonical import canonical
from consumers.reconcile.compare import SUSPECTS_LIMIT
from consumers.reconcile.fence import STALL_S, Fence, Log, NotPassed, Path, opened_log
from consumers.reconcile.groups import GROUPS_LIMIT, Grouping, Places, grouping_of
from consumers.reconcile.history import Runs, Saved
from consumers.reconcile.job import Job, query_of
from consumers.reconcile.lag import LagLimit, opened_lag_limit
from consumers.reconcile.mapping import Incomparable
from consumers.reconcile.origins.base import Captured, Logged, Moves, Refused
from consumers.reconcile.origins.registry import make_origin
from consumers.reconcile.proof import (
    Judge,
    Limits,
    Progress,
    Proof,
    Wait,
    count_cells,
    fill,
    make_plan,
    plan_dump,
    plan_load,
)
from consumers.reconcile.repair import Faulty, Repairs
from consumers.reconcile.report import STREAM, Report, Sample, TableReport
from consumers.reconcile.settle import PAUSE_S, Settling
from consumers.reconcile.sides.base import Key
from consumers.reconcile.sides.postgres import QueryRefused
from consumers.reconcile.stores.base import Store
from consumers.reconcile.stores.registry import make_store
from consumers.reconcile.tables import Sides, make_sides
from consumers.targets.base import Target
from consumers.targets.registry import target_of
from streamer.changes.backfill import REPAIR, Request
from streamer.commands.brokers import brokers_of
from streamer.config import Config, Flow
from streamer.errors import BadRecordError, ConfigError, TailraceError
from streamer.resetting import processor_reset_steps

_CONDITION = "a condition takes the source's names and both servers' SQL"


@dataclass(frozen=True, slots=True)
class Options:
    """`columns`: of the source, empty for all; `where`: a condition in the source's names."""

    where: str = ""
    columns: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    stall_s: float = STALL_S
    settle_s: float = PAUSE_S


async def run_jobs(
    config: Config,
    jobs: Sequence[Job],
    options: Options,
    runs: Runs,
    *,
    now_us: Callable[[], int],
    by: str,
) -> Report:
    """What fails of a flow is said in its report. Raises ConfigError where there is one job only. `by`: who
    asks, for the audit trail of repairs."""
    report = Report(runs.run, runs.began_us, resumed=runs.resumed)
    began_s = time.monotonic()
    for job in jobs:
        try:
            report.tables += await _Flow(config, job, options, runs, now_us, report.began_us, by).run()
        except ConfigError as error:
            if len(jobs) == 1:
                raise
            report.tables.append(failed(job, error))
    report.seconds = time.monotonic() - began_s
    return report


def failed(job: Job, error: TailraceError) -> TableReport:
    """A flow that was not compared at all."""
    report = TableReport(job.name, job.flow.name, job.flow.source_pattern, job.flow.to, job.threshold)
    report.reason, report.failed = str(error), True
    return report


class _Flow:
    """One job's flow."""

    def __init__(
        self,
        config: Config,
        job: Job,
        options: Options,
        runs: Runs,
        now_us: Callable[[], int],
        began_us: int,
        by: str,
    ) -> None:
        self._config = config
        self._job = job
        self._flow: Flow = job.flow
        self._options = options
        self._runs = runs
        self._now_us = now_us
        self._began_us = began_us
        self._by = by
        self._faulty: list[Faulty] = []
        self._equal: list[Callable[[str], Request]] = []
        self._limits = replace(options.limits, rate=options.limits.rate or job.rate)
        self._lag: LagLimit | None = None
        self._log: Log | None = None
        self._standing: Target | None = None
        self._at = ""  # the table that is being compared

    async def run(self) -> list[TableReport]:
        whole = self._report(self._flow.source_pattern, self._flow.to)
        if self._job.refused:
            whole.reason = self._job.refused
            return [whole]
        found: list[TableReport] = []
        async with AsyncExitStack() as stack:
            self._stack = stack
            try:
                await self._tables(found)
                if self._faulty and self._job.repair.mode != "never":
                    await self._repairs().run(self._faulty)
                await self._tell_equal()
            except ConfigError:
                raise
            except TailraceError as error:
                whole.source, whole.failed = self._at or whole.source, True
                whole.reason = (
                    f"{error}\n  nothing of the flow behind it was compared" if self._at else str(error)
                )
                found.append(whole)
        if not found:
            whole.reason = f"the source has no table that fits {self._flow.source_pattern!r}"
            found.append(whole)
        return found

    async def _tables(self, found: list[TableReport]) -> None:
        origin = make_origin(self._config, self._flow, self._job.name)
        store = make_store(self._config, self._flow)
        for each in (origin, store):
            self._stack.push_async_callback(each.close)
            await each.open()
        async with aclosing(origin.tables(self._flow)) as tables:
            async for table in tables:
                self._at = table.qualified
                found.append(await self._table(store, table))
                self._at = ""

    def _repairs(self) -> Repairs:
        options = self._options
        return Repairs(
            self._config,
            brokers_of(self._config),
            self._job,
            self._runs,
            by=self._by,
            now_us=self._now_us,
            clock_s=time.monotonic,
            stall_s=options.stall_s,
            samples=options.limits.samples,
        )

    def _is_only(self, table: Captured) -> bool:
        """Whether no other flow has a copy of the table."""
        source = self._flow.source
        flows = [flow for flow in self._config.flows.values() if flow.source == source]
        return sum(flow.takes(table.schema, table.name) for flow in flows) == 1

    async def _tell_equal(self) -> None:
        """A repair that had nothing to do has proved as much as one that had."""
        repair, run = self._job.repair, self._runs.run
        if repair.mode != "auto" or not repair.delete_extra:
            return
        brokers = brokers_of(self._config)
        for request in self._equal:
            asked = request(REPAIR + run)
            asked = replace(asked, run=f"{asked.run}:{self._flow.name}:{asked.place}")
            await emptied.tell(self._config, brokers, asked, run=run, by=self._by, now_us=self._now_us())

    def _report(self, source: str, target: str) -> TableReport:
        return TableReport(self._job.name, self._flow.name, source, target, self._job.threshold)

    async def _table(self, store: Store, table: Captured | Refused) -> TableReport:
        schema, name = self._flow.place(table.schema, table.name)
        report = self._report(table.qualified, f"{self._flow.target}.{schema}.{name}")
        if isinstance(table, Refused):
            report.reason = table.why
            return report
        report.fence = STREAM if table.log is not None else None
        try:
            if not await self._is_there(store, table, report):
                return report
            options = self._options
            known = {column.name for column in table.record.columns}
            counted = [name for name in self._job.counted.columns if name in known]
            only = (*options.columns, *counted) if options.columns else ()
            sides = await make_sides(table, store, self._flow, where=options.where, only=only)
            await self._prove(report, sides)
        except Incomparable as why:
            report.reason, report.meant = str(why), why.meant
        except NotPassed as why:
            report.reason = str(why)
        except QueryRefused as error:  # of this table: the others are compared
            if self._options.where:
                what = f"the condition, for {table.qualified}: {error.what}"
                raise ConfigError(what, where=error.where, fix=f"{_CONDITION}; {error.fix}") from error
            report.reason, report.failed = str(error), True
        return report

    async def _is_there(self, store: Store, table: Captured, report: TableReport) -> bool:
        """False: the target has no such table, which is drift where the source has rows that were applied."""
        schema, name = self._flow.place(table.schema, table.name)
        if await store.has(schema, name):
            return True
        if self._flow.write == "append":
            raise Incomparable("write: append keeps every change, which is a history and no copy", meant=True)
        rows = await table.count()
        if rows:
            if table.log is not None:
                fence = await self._fence(table.log, {}, None)
                await fence.pass_()
                if await store.has(schema, name):
                    return True
                rows = await table.count()
            report.reason = "the target has no such table"
            report.samples.append(Sample("missing", ["every row"]))
        report.source_rows = report.counts.missing = rows
        report.complete = True
        if rows:
            judge = partial(self._judge, table, {}, None)
            self._faulty.append(Faulty(report, table.record, {}, [], judge, _request(table)))
        return False

    async def _prove(self, report: TableReport, sides: Sides) -> None:
        limits, runs, table = self._limits, self._runs, sides.captured
        types = [(column.name, column.type, column.key) for column in table.record.columns]
        compared = [(pair.name, pair.target_name, pair.target.held.type) for pair in sides.compared.pairs]
        query = query_of(self._config, self._flow, self._job.name)
        form = repr([sides.path, sides.ordered, compared, types, limits.rate, query])
        flow, job = self._flow.name, self._job.name
        # Each of several jobs of a flow is compared for itself.
        at = (flow if job == flow else f"{flow} ({job})", table.qualified)
        saved = await asyncio.to_thread(runs.saved, *at)
        progress = Progress(moment_us=self._began_us)
        if saved is not None and saved.form == form:
            plan, progress = plan_load(saved.plan), Progress.load(saved.progress)
            report.resumed = runs.resumed
        else:
            plan = await make_plan(sides, limits)
            first = Saved(form, plan_dump(plan), progress.dump())
            await asyncio.to_thread(runs.start, *at, first, self._now_us())

        async def save(progress: Progress) -> None:
            await asyncio.to_thread(runs.save, *at, progress.dump(), self._now_us())

        async def open_judge() -> Judge:
            return await self._judge(table, _kinds(sides), sides)

        partly = report.resumed or self._options.where or sides.compared.keeps_extra
        request = _request(table, whole=not partly)
        grouping = self._grouping(sides, progress)
        places = Places(grouping, [pair.name for pair in sides.compared.pairs]) if grouping else None
        wait = await self._lag_wait() if table.log is not None else None
        proof = Proof(sides, plan, progress, limits, open_judge, save, places=places, wait=wait)
        try:
            await proof.run()
            if grouping is not None:
                report.groups = await count_cells(sides, grouping, progress, self._job.threshold, wait)
        except NotPassed as why:
            raise NotPassed(f"rows not judged: {len(progress.suspects)}; {why}") from why
        finally:
            fill(report, sides, progress)
            if report.counts.drift:
                kinds = _kinds(sides)
                self._faulty.append(Faulty(report, table.record, kinds, progress.faults, open_judge, request))
        report.complete = not progress.cut and not progress.counts.held
        if report.complete and not report.counts.drift and request is not None and self._is_only(table):
            self._equal.append(request)
        if progress.cut:
            what = f"more than {SUSPECTS_LIMIT:,} rows differ, and the rest was not looked at"
            report.reason = f"{what}\n  -> {_anew(table)}"
        elif progress.counts.held:
            flow = self._flow.name
            report.reason = (
                f"flow {flow} holds a truncate or deletes\n  -> `tailrace approve {flow}`, or `refuse`"
            )
        elif grouping is not None and report.groups is None:
            report.complete = False
            report.reason = (
                f"more than {GROUPS_LIMIT:,} groups by {', '.join(grouping.by)}: they are not counted"
                "\n  -> group by a column with fewer values, or add --where"
            )

    def _grouping(self, sides: Sides, progress: Progress) -> Grouping | None:
        asked, compared = self._job.counted, sides.compared
        if not asked:
            return None
        return grouping_of(asked, compared.columns, compared.notes, sides.captured.record, progress.moment_us)

    async def _lag_wait(self) -> Wait | None:
        limit_s = self._job.max_lag_s
        if limit_s is None:
            return None
        if self._lag is None:
            entered = opened_lag_limit(self._config, brokers_of(self._config), self._flow, limit_s)
            self._lag = await self._stack.enter_async_context(entered)
        return self._lag.wait

    async def _judge(self, table: Captured, kinds: dict[str, str], sides: Sides | None) -> Judge:
        """`sides`: None for a target's table that is not there."""
        if table.log is not None:
            return await self._fence(table.log, kinds, sides)
        ours, theirs = (sides.source, sides.target) if sides else (_NoRows(), _NoRows())
        return Settling(ours, theirs, pause_s=self._options.settle_s)

    async def _fence(self, log: Logged, kinds: dict[str, str], sides: Sides | None) -> Fence:
        """Opens what it takes, once a flow."""
        if self._log is None:
            entered = opened_log(self._config, brokers_of(self._config), log.source)
            self._log = await self._stack.enter_async_context(entered)
        if self._standing is None:
            self._standing = await self._open_standing()
        moves = log.moves(sides.source) if sides else Moves()
        return Fence(
            Path(log.source, log.topic, self._flow.name, self._flow.target),
            self._log,
            log,
            sides.source if sides else _NoRows(),
            sides.target if sides else _NoRows(),
            self._standing,
            key_of=lambda raw: _key_of(raw, kinds),
            certain=moves.rounds,
            moved=moves.moved,
            unusable=moves.unusable,
            shown=log.shown,
            hops=log.hops,
            stall_s=self._options.stall_s,
        )

    async def _open_standing(self) -> Target:
        target = target_of(self._config, self._flow.target)
        self._stack.push_async_callback(target.close)
        await target.open()
        return target


class _NoRows:
    """Of a table that is not there."""

    async def rows(self, keys: Sequence[Key]) -> dict[Key, Any]:
        return {}


def _request(table: Captured, *, whole: bool = True) -> Callable[[str], Request] | None:
    """`whole`: all of the table was compared since it was described."""
    if table.log is None:
        return None
    made = table.log.request
    if whole or made is None:
        return made
    return lambda run: replace(made(run), compared_lsn=0)


def _anew(table: Captured) -> str:
    """What to do where so much differs that it is not named row by row."""
    if table.log is None:
        return "build the target's table anew, or compare a part of it (--where)"
    if table.log.request is None:
        return f"have all of it derived again: {processor_reset_steps(table.record.source)}"
    return f"publish the table again: `tailrace backfill {table.record.source} {quote(table.qualified)}`"


def _kinds(sides: Sides) -> dict[str, str]:
    kinds = {column.name: column.kind for column in sides.captured.record.columns}
    return {pair.name: kinds[pair.name] for pair in sides.compared.key_pairs}


def _key_of(raw: bytes, kinds: dict[str, str]) -> Key | None:
    """A key as Kafka has it, as the source's side prints it."""
    try:
        values = loads(raw)
        texts = [canonical(kind, values[name]) for name, kind in kinds.items()]
    except (ValueError, KeyError, TypeError, BadRecordError):
        return None
    return None if None in texts else tuple(text for text in texts if text is not None)
