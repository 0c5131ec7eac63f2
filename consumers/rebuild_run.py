"""A rebuild from its beginning, or from where an earlier process has left it, to the exchange.

Owns the order of things: what is checked before anything is touched, the table beside, the log, the proof,
the exchange. Each step is durable or may be done again, so that a process may be killed at any of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import SystemRandom

import orjson
from aiokafka import AIOKafkaConsumer

from consumers.apply.checkpoint import Place
from consumers.apply.schemas import Schemas
from consumers.rebuild import Builder, Rebuilding
from consumers.rebuild_plan import Subject, check_log, names_of, rebuilding_of
from consumers.reconcile.canonical import canonical
from consumers.reconcile.cells import KEPT
from consumers.reconcile.history import History
from consumers.reconcile.job import Job, jobs_of
from consumers.reconcile.proof import Limits
from consumers.reconcile.report import Report, TableReport
from consumers.reconcile.run import Options, run_jobs
from consumers.replay import Span
from consumers.targets.base import Target
from consumers.targets.postgres_beside import Live
from consumers.targets.postgres_exchange import Names
from consumers.targets.postgres_rebuilds import Rebuilds
from consumers.targets.registry import make_target
from streamer.backfills import read_runs
from streamer.changes.backfill import manual_run
from streamer.config import Config, Flow, PostgresTarget, describe_postgres
from streamer.errors import BadRecordError, ConfigError
from streamer.postgres.catalog import identifier
from streamer.stopping import end_tasks

FAULTS = 20_000  # that are told apart by their keys: those of parked keys are no reason against an exchange
SHOWN = 10

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Asked:
    into: str
    drop_old: bool
    dry_run: bool
    begin: str  # of the replay, as text: another one begins the table anew
    by: str
    stall_s: float


@dataclass(slots=True)
class Rebuilt:
    """`state`: planned, swapped, done_before, different or unproved."""

    names: Names
    spans: Sequence[Span]
    state: str = "planned"
    went_on: bool = False
    events: int = 0
    carried: int = 0  # rows that were taken from the live table
    proof: TableReport | None = None
    kept: str = ""  # the old table, where it is kept
    grants: list[str] = field(default_factory=list)  # that could not be carried over, as SQL
    since: str = ""  # of an earlier exchange, UTC

    @property
    def drop_sql(self) -> str:
        return f"DROP TABLE {identifier(self.names.schema, self.kept)};" if self.kept else ""


async def rebuild(
    config: Config,
    flow: Flow,
    subject: Subject,
    spans: Sequence[Span],
    target: Target,
    consumer: AIOKafkaConsumer,
    cluster_id: str,
    asked: Asked,
    tell: Tell,
) -> Rebuilt:
    """`spans`: of the table's topic, as a replay has planned them; `target`: a session with the flow."""
    names = names_of(config, flow, subject, asked.into)
    for job in jobs_of(config, ()):
        if job.flow is flow and job.refused:
            raise ConfigError(
                f"nothing could prove the rebuilt table: {job.refused}",
                where=f"flow {flow.name!r}",
                fix="replay without --into",
            )
    settings = config.targets[flow.target]
    assert isinstance(settings, PostgresTarget)
    place = f"target {flow.target!r} ({describe_postgres(settings.url)})"
    async with Rebuilds(settings, names, place).opened() as store:
        return await _Run(config, flow, subject, spans, target, consumer, cluster_id, asked, tell, store).run(
            names
        )


class _Run:
    def __init__(
        self,
        config: Config,
        flow: Flow,
        subject: Subject,
        spans: Sequence[Span],
        target: Target,
        consumer: AIOKafkaConsumer,
        cluster_id: str,
        asked: Asked,
        tell: Tell,
        store: Rebuilds,
    ) -> None:
        self._config = config
        self._flow = flow
        self._subject = subject
        self._spans = spans
        self._target = target
        self._consumer = consumer
        self._cluster_id = cluster_id
        self._asked = asked
        self._tell = tell
        self._store = store

    async def run(self, names: Names) -> Rebuilt:
        found = Rebuilt(names, self._spans)
        if await self._done_before(names, found):
            return found
        live = await self._store.find()
        types = {name: column.type for name, column in (await self._store.columns(live)).items()}
        work, sent = rebuilding_of(self._config, self._flow, self._subject, names, types)
        await self._store.check(live, sent)
        await self._check_log()
        oid = await self._left(names, work)
        found.went_on = oid is not None
        if self._asked.dry_run:
            return found
        if oid is None:
            oid = await self._begin(names, work, live)
        await self._build(work, live, oid, found)
        return found

    async def _done_before(self, names: Names, found: Rebuilt) -> bool:
        """The exchange was made, and its old table is there yet: as after an answer that was lost."""
        known = await self._store.known()
        old = await self._store.oid(names.old)
        if known is not None and known.swapped is not None and old is not None:
            found.state, found.kept, found.since = "done_before", names.old, known.swapped
            return True
        if old is not None:
            name = identifier(names.schema, names.old)
            raise ConfigError(
                f"{names.schema}.{names.old} is there already, which is the old table's name once it is"
                " exchanged",
                where=f"--into {self._asked.into!r}",
                fix=f"DROP TABLE {name}; or rename it",
            )
        return False

    async def _check_log(self) -> None:
        kafka = self._config.kafka
        runs = await read_runs(kafka.brokers, kafka.security, self._config.name, source=self._flow.source)
        await check_log(self._flow, self._subject, self._spans, runs.values(), self._consumer, kafka.brokers)

    def _settings(self, work: Rebuilding) -> str:
        """What the rows of the table beside hang on, but for the log: with another one it begins anew."""
        flow = work.shadow.model_dump(mode="json")
        return orjson.dumps({"flow": flow, "begin": self._asked.begin}, option=orjson.OPT_SORT_KEYS).decode()

    async def _left(self, names: Names, work: Rebuilding) -> int | None:
        """The table of an earlier process that is gone on with, if there is one. Raises ConfigError."""
        known, oid = await self._store.known(), await self._store.oid(names.into)
        if known is None or known.swapped is not None or (oid is not None and oid != known.oid):
            if oid is not None:
                raise ConfigError(
                    f"{names.schema}.{names.into} is there already, and is not of this command's making",
                    where=f"--into {self._asked.into!r}",
                    fix="write another name",
                )
            return None
        same = oid is not None and known.settings == self._settings(work) and known.live == names.live
        return oid if same else None

    async def _begin(self, names: Names, work: Rebuilding, live: Live) -> int:
        known = await self._store.known()
        if known is not None and known.swapped is None:
            await self._store.drop()  # begun with other settings
        begins = {Place(names.flow, s.place.topic, s.place.partition): s.begin for s in self._spans}
        key = [column.name for column in work.key]
        return await self._store.begin(live, key, begins, self._settings(work), self._asked.by)

    async def _build(self, work: Rebuilding, live: Live, oid: int, found: Rebuilt) -> None:
        config, names = self._config, work.names
        async with AsyncExitStack() as stack:
            schemas = Schemas(config.kafka.brokers, config.kafka.security, config.name)
            await schemas.open()
            stack.push_async_callback(schemas.close)
            group = f"{config.name}.{self._flow.target}"
            other = make_target(config.targets[self._flow.target], group, [work.shadow])
            stack.push_async_callback(other.close)
            await other.open()

            def events(number: int) -> None:
                self._tell(f"{number:,} events of the log are in {names.schema}.{names.into}")

            builder = Builder(
                config,
                work,
                self._target,
                other,
                self._store,
                self._consumer,
                schemas,
                self._cluster_id,
                events,
            )
            await builder.open([span.place for span in self._spans])
            await builder.near()
            self._tell(f"{names.schema}.{names.into} is as far as {names.live}; its indexes are made")
            await self._store.complete(live, oid)
            await builder.near()
            await builder.carry(live)
            self._tell("it is compared with the source")
            proof = await self._prove(work, builder)
            found.events, found.carried, found.proof = builder.events, builder.left_out, proof
            equal = await self._is_equal(proof, work)
            del proof.samples[SHOWN:]
            if not equal:
                found.state = "different" if proof.counts.drift else "unproved"
                return
            found.grants = await builder.exchange(live, oid, drop_old=self._asked.drop_old)
            found.state, found.kept = "swapped", "" if self._asked.drop_old else names.old
        await self._store.tidy()

    async def _prove(self, work: Rebuilding, builder: Builder) -> TableReport:
        """Compared with the source, as `tailrace reconcile` does, while it follows the log."""
        ended = asyncio.Event()
        following = asyncio.create_task(builder.follow(ended), name="follow")
        comparing = asyncio.create_task(self._compare(work), name="compare")
        try:
            await asyncio.wait([following, comparing], return_when=asyncio.FIRST_COMPLETED)
            ended.set()
            if following.done():
                await following  # it ends by itself with an error only
            report = await comparing
            await following
        finally:
            await end_tasks(comparing, following)
        return report.tables[0]

    async def _compare(self, work: Rebuilding) -> Report:
        shadow = work.shadow
        config = self._config.model_copy(update={"flows": {**self._config.flows, shadow.name: shadow}})
        job = Job(shadow.name, shadow, 0.0, None)
        options = Options(limits=Limits(samples=FAULTS), stall_s=self._asked.stall_s)
        history = History(config)
        run = manual_run(_now_us(), SystemRandom().getrandbits(16))
        try:
            await asyncio.to_thread(history.open)
            runs = await asyncio.to_thread(
                history.begin, run, {"rebuild": shadow.name}, [shadow.name], _now_us(), fresh=True
            )
            report = await run_jobs(config, [job], options, runs, now_us=_now_us, by=self._asked.by)
            await asyncio.to_thread(runs.end, report.plain(cells=KEPT), _now_us())
        finally:
            history.close()
        return report

    async def _is_equal(self, proof: TableReport, work: Rebuilding) -> bool:
        """But for keys that are parked: their rows wait in the live table, too."""
        if not proof.complete or proof.failed:
            return False
        if not proof.counts.drift:
            return True
        parked = await self._target.parked([span.place for span in self._spans])
        excused = {_canonical(key, work) for key in {entry.key for entry in parked}}
        faults = [s for s in proof.samples if s.kind in ("missing", "extra", "different")]
        return len(faults) == proof.counts.drift and all(tuple(s.key) in excused for s in faults)


def _canonical(key: bytes, work: Rebuilding) -> tuple[str, ...] | None:
    """A key as the comparison prints it; None: it is none of this table."""
    kinds = {column.name: column.kind for column in work.record.columns}
    try:
        values = orjson.loads(key)
        return tuple(str(canonical(kinds[c.source], values[c.source])) for c in work.key)
    except (ValueError, KeyError, TypeError, BadRecordError):
        return None


def lines_of(places: Iterable[Span]) -> list[str]:
    return [f"{s.place.topic}[{s.place.partition}]: offsets {s.begin} to {s.end - 1}" for s in places]


def _now_us() -> int:
    return time.time_ns() // 1000
