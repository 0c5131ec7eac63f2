"""What apply asks of captures by itself: rows that its log no longer has, and rows that are not whole.

Two cases. A flow was added (or its target lost everything) when Kafka had already removed the beginning of a
topic: the flow goes on from the start of the log, and what was before it comes by a backfill. And rows
whose large value the log does not have are read again by their keys (H6, H7). Asks are in Kafka before
anything relies on them; the run's id says what it is for, so that several processes make one run of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from shlex import quote

from aiokafka import TopicPartition

from consumers.apply.checkpoint import Checkpoint, Place
from consumers.apply.rereads import REREAD_KEYS, ask_for_rows, values_of
from consumers.apply.schemas import Schemas
from consumers.targets.base import Unwhole
from streamer.backfills import ask, read_runs
from streamer.changes.backfill import (
    LATE_FLOW,
    Key,
    Progress,
    Request,
    Run,
    State,
    flow_run,
)
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import data_topic, entity_topic
from streamer.config import Config, Flow, PostgresSource, RedisSource
from streamer.errors import TailraceError
from streamer.kafka import read_batches

WATCH_S = 2.0  # between two looks at runs that are not over
IDLE_S = 30.0  # ... when none is
TOGETHER_S = 60.0  # partitions that are placed together, by one process or several, need one run
ASKED_LIMIT = 100_000  # keys remembered as asked for, about 20 MB; beyond it some are asked for twice

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Late:
    """A run that brings what a flow's topic no longer has."""

    flow: str
    run: Run


class Backfilling:
    """`watch` in a task of its own; the others at any time."""

    def __init__(
        self,
        config: Config,
        target: str,
        flows: Sequence[Flow],
        schemas: Schemas,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._config = config
        self._kafka = config.kafka
        self._target = target
        self._by = f"apply {target}"
        self._flows = {flow.name: flow for flow in flows}
        self._schemas = schemas
        self._now_us = now_us
        self._late: dict[str, Late] = {}
        self._begun_us: dict[str, int] = {}  # when this process asked for it, or found it asked for
        self._asked: dict[tuple[str, str, bytes], tuple[int, int, int]] = {}  # key -> version that was noted
        self._noted: tuple[list[Unwhole], frozenset[tuple[str, int]]] | None = None
        self._wake = asyncio.Event()

    # A flow whose topic has lost its beginning

    async def begin(self, checkpoint: Checkpoint, epoch: int, log_start: int, log_end: int) -> bool:
        """Ask for what the log no longer has; False: nothing can. `epoch`: of the source's last copy.

        Durable when this returns. Raises KafkaUnavailable.
        """
        place = checkpoint.place
        flow = self._flows[place.flow]
        source = self._config.sources.get(flow.source)
        if not isinstance(source, PostgresSource | RedisSource):
            return False
        records = await self._schemas.of_source(source.name)
        record = next((r for r in reversed(records) if _topic_of(source, r) == place.topic), None)
        if record is None or not record.key_columns:
            return False
        request = self._request(source, record)
        base = flow_run(self._target, flow.name, request.place, epoch)
        runs = await self._read()
        number = 1
        while True:
            name = base if number == 1 else f"{base}.{number}"
            known = runs.get(name)
            if known is None or await self._covers(known, place, log_start, log_end):
                break
            number += 1  # that one is over, and what it has published may be gone from the log, too
        run = await self._ask(request, name)
        self._late[name] = Late(flow.name, run)
        self._begun_us.setdefault(name, self._now_us())
        self._wake.set()
        if known is None:
            log.warning(
                "flow %s: Kafka has removed the beginning of %s; what it held is asked for: backfill %s",
                flow.name,
                place.topic,
                name,
            )
        return True

    async def _covers(self, run: Run, place: Place, log_start: int, log_end: int) -> bool:
        """Whether all that the run publishes is, or will be, in what is left of the log."""
        progress = run.progress
        if progress is None or not progress.began_us:
            return True
        if progress.state in (State.FAILED, State.CANCELLED):
            return False
        partition = TopicPartition(place.topic, place.partition)
        first_us = await self._first_us(partition, log_start, log_end)
        if first_us is not None:
            return first_us <= progress.began_us
        # Nothing is there: what the run has brought may be gone, unless it is a matter of moments.
        since_us = self._now_us() - round(TOGETHER_S * 1e6)
        is_ours = self._begun_us.get(run.run, 0) > since_us
        return is_ours or (not progress.state.over and progress.began_us > since_us)

    async def _first_us(self, place: TopicPartition, start: int, end: int) -> int | None:
        """When the log's first record was published."""
        ranges = {place: (start, end)}
        batches = read_batches(self._kafka.brokers, self._kafka.security, ranges, committed=True)
        async with aclosing(batches):
            async for records in batches:
                for record in records:
                    return int(record.timestamp) * 1000
        return None

    # Rows that are not whole

    def note(self, noted: Sequence[Unwhole], owned: Collection[tuple[str, int]]) -> None:
        """Have `watch` ask for them; what it has not got to yet is replaced."""
        if noted:
            self._noted = list(noted), frozenset(owned)
            self._wake.set()

    async def reread(self, noted: Iterable[Unwhole], owned: Collection[tuple[str, int]]) -> int:
        """Ask for rows that were noted, of topics whose first partition is this process's; how many.

        A key is asked for once for each event that left it so.
        """
        found: dict[str, list[tuple[Key, Unwhole]]] = defaultdict(list)
        records: dict[str, SchemaRecord] = {}
        known: dict[str, list[SchemaRecord]] = {}
        for row in noted:
            flow = self._flows.get(row.flow)
            source = self._config.sources.get(flow.source) if flow is not None else None
            if flow is None or not isinstance(source, PostgresSource):
                continue
            if source.name not in known:
                known[source.name] = await self._schemas.of_source(source.name)
            record = _record_of(source, known[source.name], flow, row)
            if record is None:
                continue
            topic = _topic_of(source, record)
            mark = row.flow, topic, row.key
            if (topic, 0) not in owned or self._asked.get(mark) == row.version:
                continue
            key = values_of(record, row.key)
            if key is not None and len(found[topic]) < REREAD_KEYS:
                records[topic] = record
                found[topic].append((key, row))
        for topic, rows in found.items():
            marks = [(key, row.version) for key, row in rows]
            await ask_for_rows(
                self._config, records[topic], marks, asker=self._target, by=self._by, now_us=self._now_us()
            )
            if len(self._asked) > ASKED_LIMIT:
                self._asked.clear()
            self._asked.update({(row.flow, topic, row.key): row.version for _, row in rows})
        return sum(map(len, found.values()))

    # Asking, and what has become of it

    def _request(self, source: PostgresSource | RedisSource, record: SchemaRecord) -> Request:
        by, why = self._by, LATE_FLOW
        if isinstance(source, RedisSource):
            return Request("", source.name, entity=record.table, by=by, why=why)
        return Request("", source.name, schema=record.schema, table=record.table, by=by, why=why)

    async def _ask(self, request: Request, run: str) -> Run:
        kafka = self._kafka
        return await ask(
            kafka.brokers,
            kafka.security,
            self._config.name,
            replace(request, run=run, asked_us=self._now_us()),
            replication_factor=kafka.topics.replication_factor,
        )

    async def _read(self) -> Mapping[str, Run]:
        return await read_runs(self._kafka.brokers, self._kafka.security, self._config.name)

    async def watch(self) -> None:
        """Until cancelled: asks for what was noted, and looks how far the runs are that flows here need."""
        prefix = f"flow:{self._target}."
        while True:
            self._wake.clear()
            try:
                noted, self._noted = self._noted, None
                if noted is not None and (asked := await self.reread(*noted)):
                    log.info("%d rows are not whole: they are asked for again from the source", asked)
                runs = await self._read()
            except TailraceError as error:
                log.debug("backfills not asked for, or not read: %s", error)
            else:
                self._late = {
                    name: Late(flow, run)
                    for name, run in runs.items()
                    if name.startswith(prefix)
                    and (flow := name.removeprefix(prefix).split(":", 1)[0]) in self._flows
                    and run.state is not State.DONE
                }
            waits = any(not late.run.state.over for late in self._late.values())
            try:
                async with asyncio.timeout(WATCH_S if waits else IDLE_S):
                    await self._wake.wait()
            except TimeoutError:
                continue

    def notes(self) -> list[str]:
        """What comes by itself."""
        return [_text(late) for late in self._of(over=False)]

    def findings(self) -> list[str]:
        """What does not."""
        return [
            f"{_text(late)}\n  -> `tailrace backfills resume {quote(late.run.run)}`, or ask for all of the"
            f" table: `tailrace backfill {late.run.source} {quote(_place(late.run))}`"
            for late in self._of(over=True)
        ]

    def _of(self, *, over: bool) -> list[Late]:
        return [late for _, late in sorted(self._late.items()) if late.run.state.over == over]


def _topic_of(source: PostgresSource | RedisSource, record: SchemaRecord) -> str:
    if isinstance(source, RedisSource):
        return entity_topic(source.name, record.table)
    return data_topic(source.name, record.schema, record.table)


def _record_of(
    source: PostgresSource, records: Sequence[SchemaRecord], flow: Flow, row: Unwhole
) -> SchemaRecord | None:
    """The latest of the row's table: by its topic; or by its place in the target, where no topic was kept."""
    for record in reversed(records):
        topic = _topic_of(source, record)
        at = flow.place(record.schema, record.table) == (row.schema, row.table)
        if flow.matches(topic) and (topic == row.topic or (not row.topic and at)):
            return record
    return None


def _place(run: Run) -> str:
    return run.request.place if run.request is not None else ""


def _text(late: Late) -> str:
    progress = late.run.progress or Progress(State.WAITING)
    of = f" of about {progress.estimated_rows:,}" if progress.estimated_rows else ""
    how = {
        State.CANCELLED: "was cancelled",
        State.FAILED: f"failed: {progress.reason}",
        State.PAUSED: "is paused",
        State.WAITING: "waits for the source's capture",
    }.get(progress.state, f"has read {progress.rows:,}{of} rows")
    return (
        f"flow {late.flow}: rows of {_place(late.run)} that Kafka's log no longer has are not all there yet:"
        f" backfill {late.run.run} {how}"
    )
