"""A run: the tables of its jobs' flows, one after the other, each with its proof, and what was found of all.

Owns the order of things and what is open when: one connection to the source and one to the target for a
flow; Kafka and the target's session only from the first suspect on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from orjson import loads

from consumers.reconcile.canonical import canonical
from consumers.reconcile.compare import SUSPECTS_LIMIT
from consumers.reconcile.fence import STALL_S, Fence, Log, NotPassed, Path, opened_log
from consumers.reconcile.history import Runs, Saved
from consumers.reconcile.job import Job
from consumers.reconcile.mapping import Incomparable
from consumers.reconcile.proof import (
    Judge,
    Limits,
    Progress,
    Proof,
    fill,
    make_plan,
    plan_dump,
    plan_load,
)
from consumers.reconcile.repair import Faulty, Repairs
from consumers.reconcile.report import Report, Sample, TableReport
from consumers.reconcile.sides import postgres, sqlite
from consumers.reconcile.sides.base import Key
from consumers.reconcile.tables import PostgresStore, Sides, Source, SqliteStore, Store, describe_source
from consumers.targets.base import Target
from consumers.targets.registry import make_target
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import data_topic
from streamer.commands.brokers import brokers_of
from streamer.config import (
    Config,
    Flow,
    PostgresSource,
    PostgresTarget,
    SqlTarget,
    sqlite_path,
    unbuilt_table,
)
from streamer.errors import BadRecordError, ConfigError, TailraceError
from streamer.postgres.catalog import Table, list_tables


@dataclass(frozen=True, slots=True)
class Options:
    """`columns`: of the source, empty for all; `where`: a condition in the source's names."""

    where: str = ""
    columns: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    stall_s: float = STALL_S


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
    report = Report(runs.run, now_us())
    began_s = time.monotonic()
    for job in jobs:
        try:
            report.tables += await _Flow(config, job, options, runs, now_us, by).run()
        except ConfigError as error:
            if len(jobs) == 1:
                raise
            failed = TableReport(job.name, job.flow.name, job.flow.source_pattern, job.flow.to, job.threshold)
            failed.reason, failed.failed = str(error), True
            report.tables.append(failed)
    report.seconds = time.monotonic() - began_s
    return report


class _Flow:
    """One job's flow."""

    def __init__(
        self, config: Config, job: Job, options: Options, runs: Runs, now_us: Callable[[], int], by: str
    ) -> None:
        self._config = config
        self._job = job
        self._flow: Flow = job.flow
        self._options = options
        self._runs = runs
        self._now_us = now_us
        self._by = by
        self._faulty: list[Faulty] = []
        self._log: Log | None = None
        self._standing: Target | None = None

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
            except ConfigError:
                raise
            except TailraceError as error:
                whole.reason, whole.failed = str(error), True
                found.append(whole)
        if not found:
            whole.reason = f"the source has no table that fits {self._flow.source_pattern!r}"
            found.append(whole)
        return found

    async def _tables(self, found: list[TableReport]) -> None:
        settings = self._config.sources[self._flow.source]
        assert isinstance(settings, PostgresSource)
        session = postgres.Session(settings.url.get_secret_value(), "source")
        self._stack.push_async_callback(session.close)
        await session.open()
        store = self._store()
        self._stack.push_async_callback(store.close)
        await store.open()
        for table in await list_tables(session.connection, settings):
            if self._flow.takes(table.schema, table.name):
                found.append(await self._table(settings, session, store, table))

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

    def _store(self) -> Store:
        target = self._config.targets[self._flow.target]
        if isinstance(target, PostgresTarget):
            return PostgresStore(target.url.get_secret_value())
        assert isinstance(target, SqlTarget)
        path = sqlite_path(target.url)
        return SqliteStore(sqlite.Session(path, f"target sqlite {path}"))

    def _report(self, source: str, target: str) -> TableReport:
        return TableReport(self._job.name, self._flow.name, source, target, self._job.threshold)

    async def _table(
        self, settings: PostgresSource, session: postgres.Session, store: Store, table: Table
    ) -> TableReport:
        schema, name = self._flow.place(table.schema, table.name)
        report = self._report(table.qualified, f"{self._flow.target}.{schema}.{name}")
        unbuilt = unbuilt_table(settings, table.schema, table.name)
        if unbuilt:
            report.reason = f"it is not captured: {unbuilt[0]}"
            return report
        source = await describe_source(session, self._flow.source, table)
        try:
            if not await self._is_there(store, source, report):
                return report
            options = self._options
            sides = await store.sides(source, self._flow, where=options.where, only=options.columns)
            await self._prove(report, source, sides)
        except Incomparable as why:
            report.reason, report.meant = str(why), why.meant
        except NotPassed as why:
            report.reason = str(why)
        return report

    async def _is_there(self, store: Store, source: Source, report: TableReport) -> bool:
        """False: the target has no such table, which is drift where the source has rows that were applied."""
        schema, name = self._flow.place(source.table.schema, source.table.name)
        if await store.has(schema, name):
            return True
        if self._flow.write == "append":
            raise Incomparable("write: append keeps every change, which is a history and no copy", meant=True)
        relation = f"{postgres.quote(source.table.schema)}.{postgres.quote(source.table.name)}"
        count = f"SELECT count(*) FROM {'' if source.table.partitioned else 'ONLY '}{relation}"
        ((rows,),) = await source.session.rows(count)
        if rows:
            fence = await self._fence(source, {}, None)
            await fence.pass_()
            if await store.has(schema, name):
                return True
            ((rows,),) = await source.session.rows(count)
            report.reason = "the target has no such table"
            report.samples.append(Sample("missing", ["every row"]))
        report.source_rows = report.counts.missing = rows
        report.complete = True
        if rows:
            self._faulty.append(Faulty(report, source.record, {}, [], lambda: self._fence(source, {}, None)))
        return False

    async def _prove(self, report: TableReport, source: Source, sides: Sides) -> None:
        limits, runs = self._options.limits, self._runs
        form = repr([sides.path, sides.ordered, [pair.name for pair in sides.compared.pairs], limits.rate])
        at = (self._flow.name, source.table.qualified)
        saved = await asyncio.to_thread(runs.saved, *at)
        progress = Progress()
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
            return await self._fence(source, _kinds(sides), sides)

        proof = Proof(sides, plan, progress, limits, open_judge, save)
        try:
            await proof.run()
        except NotPassed as why:
            raise NotPassed(f"rows not judged: {len(progress.suspects)}; {why}") from why
        finally:
            fill(report, sides, progress)
            if report.counts.drift:
                kinds = _kinds(sides)
                self._faulty.append(Faulty(report, source.record, kinds, progress.faults, open_judge))
        report.complete = not progress.cut and not progress.counts.held
        if progress.cut:
            report.reason = (
                f"more than {SUSPECTS_LIMIT:,} rows differ, and the rest was not looked at\n  -> publish the"
                f" table again: `tailrace backfill {self._flow.source} {source.table.qualified}`"
            )
        elif progress.counts.held:
            flow = self._flow.name
            report.reason = (
                f"flow {flow} holds a truncate or deletes\n  -> `tailrace approve {flow}`, or `refuse`"
            )

    async def _fence(self, source: Source, kinds: dict[str, str], sides: Sides | None) -> Fence:
        """Opens what it takes, once a flow."""
        if self._log is None:
            entered = opened_log(self._config, brokers_of(self._config), self._flow.source)
            self._log = await self._stack.enter_async_context(entered)
        if self._standing is None:
            self._standing = await self._open_standing()
        record = source.record
        path = Path(
            self._flow.source,
            data_topic(self._flow.source, record.schema, record.table),
            self._flow.name,
            self._flow.target,
        )
        return Fence(
            path,
            self._log,
            source.session,
            sides.source if sides else _NoRows(),
            sides.target if sides else _NoRows(),
            self._standing,
            key_of=lambda raw: _key_of(raw, kinds),
            stall_s=self._options.stall_s,
        )

    async def _open_standing(self) -> Target:
        name = self._flow.target
        flows = [flow for flow in self._config.flows.values() if flow.target == name]
        target = make_target(self._config.targets[name], f"{self._config.name}.{name}", flows)
        self._stack.push_async_callback(target.close)
        await target.open()
        return target


class _NoRows:
    """Of a table that is not there."""

    async def rows(self, keys: Sequence[Key]) -> dict[Key, Any]:
        return {}


def _kinds(sides: Sides) -> dict[str, str]:
    record: SchemaRecord = sides.record
    kinds = {column.name: column.kind for column in record.columns}
    return {pair.name: kinds[pair.name] for pair in sides.compared.key_pairs}


def _key_of(raw: bytes, kinds: dict[str, str]) -> Key | None:
    """A key as Kafka has it, as the source's side prints it."""
    try:
        values = loads(raw)
        texts = [canonical(kind, values[name]) for name, kind in kinds.items()]
    except (ValueError, KeyError, TypeError, BadRecordError):
        return None
    return None if None in texts else tuple(text for text in texts if text is not None)
