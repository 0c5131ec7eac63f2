"""For tests: topics of a source without a source or Kafka, applied to any target as apply does it.

    log = Log("shop")
    people = log.table("people", {"id": "integer", "name": "text"})
    people.create({"id": 1, "name": "Ann"})
    await log.apply(target, flows)

The events are real envelopes, decoded, folded and checkpointed by the code that `tailrace apply` runs.
What Kafka does (membership, transactions, retention) is not here, nor what stops or parks a flow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
from aiokafka import ConsumerRecord, TopicPartition

from consumers.apply.assemble import Assembler
from consumers.apply.checkpoint import Place
from consumers.apply.feed import Fetched, Record, Standing
from consumers.targets.base import Batch, Outcome, Target
from streamer.changes.envelope import SNAPSHOT_NO, SWEEP_HEADER, RowTemplate, SourceTemplate
from streamer.changes.schema import Column, SchemaRecord
from streamer.changes.topics import data_topic, partition_for
from streamer.config import Flow
from streamer.errors import FatalError

CLUSTER_ID = "in-memory"
COMMIT_STEP = 8  # between two commit LSNs that the log gives by itself

Row = Mapping[str, Any]
ColumnType = str | tuple[str, str]  # a type of Postgres; or (type, kind), see streamer.changes.kinds

_KINDS = {
    "smallint": "number",
    "integer": "number",
    "bigint": "number",
    "real": "float",
    "double precision": "float",
    "boolean": "bool",
    "numeric": "numeric",
    "bytea": "bytea",
    "json": "json",
    "jsonb": "json",
    "date": "date",
    "time without time zone": "time",
    "timestamp without time zone": "timestamp",
    "timestamp with time zone": "timestamptz",
    "interval": "interval",
}


class Log:
    """Topics of one source. Offsets begin at 0; commit LSNs rise by themselves unless given."""

    def __init__(
        self,
        source: str,
        *,
        partitions: int = 2,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self.source = source
        self.partitions = partitions
        self.clock_us = clock_us
        self.records: dict[TopicPartition, list[Record]] = {}
        self.schemas: dict[str, SchemaRecord] = {}
        self.commit_lsn = 0
        self._assembler = Assembler(self)

    def table(
        self,
        name: str,
        columns: Mapping[str, ColumnType],
        key: Sequence[str] = ("id",),
        *,
        schema: str = "public",
        identity: str = "d",
    ) -> LogTable:
        """One version of a table; called again with other columns it is the next one."""
        made = []
        for column, given in columns.items():
            type_, kind = (
                (given, _KINDS.get(given.partition("(")[0], "text")) if isinstance(given, str) else given
            )
            made.append(Column(column, type_, -1, kind, column in key))
        record = SchemaRecord(self.source, schema, name, identity, tuple(made))
        self.schemas[record.id] = record
        return LogTable(self, record)

    async def get(self, schema_id: str, where: str) -> SchemaRecord:
        """As the registry of schema records."""
        if schema_id not in self.schemas:
            raise FatalError(f"schema record {schema_id} is not in this log", where=where)
        return self.schemas[schema_id]

    def append(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        *,
        partition: int | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> TopicPartition:
        at = TopicPartition(topic, partition_for(key, self.partitions) if partition is None else partition)
        records = self.records.setdefault(at, [])
        sizes = len(key or b""), len(value or b"")
        now_ms = self.clock_us() // 1000
        records.append(ConsumerRecord(*at, len(records), now_ms, 0, key, value, None, *sizes, tuple(headers)))
        return at

    def places(self, flows: Iterable[Flow]) -> list[Place]:
        return [
            Place(flow.name, *at) for at in sorted(self.records) for flow in flows if flow.matches(at.topic)
        ]

    async def batch(
        self,
        flows: Sequence[Flow],
        starts: Mapping[Place, int],
        ends: Mapping[TopicPartition, int] | None = None,
    ) -> Batch:
        """What lies between: offsets by place, and by partition (its end unless given)."""
        found: dict[TopicPartition, list[Record]] = {}
        standings: dict[TopicPartition, Standing] = {}
        until: dict[TopicPartition, int] = {}
        for place, start in starts.items():
            at = TopicPartition(place.topic, place.partition)
            until[at] = len(self.records[at]) if ends is None else ends.get(at, len(self.records[at]))
            standings.setdefault(at, Standing({})).next_offsets[place.flow] = start
        for at, standing in standings.items():
            first = min(standing.next_offsets.values())
            if records := self.records[at][first : until[at]]:
                found[at] = records
        by_topic = {at.topic: [flow for flow in flows if flow.matches(at.topic)] for at in standings}
        fetched = Fetched(found, until, self.clock_us())
        return (await self._assembler.assemble(fetched, standings, by_topic, CLUSTER_ID)).batch

    async def apply(self, target: Target, flows: Sequence[Flow]) -> Outcome:
        """Everything from the target's checkpoints on, in one batch."""
        checkpoints = await target.checkpoints(self.places(flows))
        starts = {place: checkpoint.next_offset for place, checkpoint in checkpoints.items()}
        batch = await self.batch(flows, starts)
        return await target.apply(batch) if batch.moves else Outcome()


class LogTable:
    """Each method appends one event. `lsn` stands for its transaction's commit: the next one unless given."""

    def __init__(self, log: Log, record: SchemaRecord) -> None:
        self.record = record
        self.topic = data_topic(record.source, record.schema, record.table)
        self._log = log

    def key_of(self, row: Row) -> bytes | None:
        key = self.record.key_columns
        return orjson.dumps({name: row[name] for name in key}) if key else None

    def create(self, row: Row, lsn: int | None = None, ordinal: int = 0, **at: Any) -> TopicPartition:
        lsn = self._lsn(lsn)
        return self._send(row, self._template(lsn, **at).create(orjson.dumps(row), lsn, ordinal))

    def read(self, row: Row, lsn: int | None = None, **at: Any) -> TopicPartition:
        """A row of a first copy."""
        lsn = self._lsn(lsn)
        return self._send(row, self._template(lsn, snapshot="true", **at).read(orjson.dumps(row), lsn))

    def update(
        self, row: Row, lsn: int | None = None, ordinal: int = 0, *, old: Row | None = None, **at: Any
    ) -> TopicPartition:
        lsn = self._lsn(lsn)
        value = self._template(lsn, **at).update(orjson.dumps(old), orjson.dumps(row), lsn, ordinal)
        return self._send(row, value)

    def delete(
        self, row: Row, lsn: int | None = None, ordinal: int = 0, *, sweep: int | None = None, **at: Any
    ) -> TopicPartition:
        """`row`: at least the key; of a table without one, all of it. A tombstone follows a key."""
        lsn = self._lsn(lsn)
        headers = [] if sweep is None else [(SWEEP_HEADER, b"%d" % sweep)]
        before = {column.name: row.get(column.name) for column in self.record.columns}
        value = self._template(lsn, **at).delete(orjson.dumps(before), lsn, ordinal)
        place = self._send(row, value, headers)
        if self.record.key_columns:
            self._log.append(self.topic, self.key_of(row), None)
        return place

    def truncate(self, lsn: int | None = None, ordinal: int = 0, **at: Any) -> TopicPartition:
        lsn = self._lsn(lsn)
        return self._log.append(self.topic, None, self._template(lsn, **at).truncate(lsn, ordinal))

    def floor(self, epoch: int) -> TopicPartition:
        """The end of a reset: what only older epochs wrote goes."""
        now_us = self._log.clock_us()
        value = self._source(epoch).floor(lsn=0, commit_us=now_us, now_us=now_us)
        return self._log.append(self.topic, None, value)

    def _lsn(self, given: int | None) -> int:
        log = self._log
        lsn = log.commit_lsn + COMMIT_STEP if given is None else given
        log.commit_lsn = max(log.commit_lsn, lsn)
        return lsn

    def _send(self, row: Row, value: bytes, headers: Sequence[tuple[str, bytes]] = ()) -> TopicPartition:
        return self._log.append(self.topic, self.key_of(row), value, headers=headers)

    def _source(self, epoch: int) -> SourceTemplate:
        record = self.record
        return SourceTemplate(
            version="0.1.0",
            name=record.source,
            db="db",
            schema=record.schema,
            table=record.table,
            schema_id=record.id,
            epoch=epoch,
        )

    def _template(self, lsn: int, *, epoch: int = 1, snapshot: str = SNAPSHOT_NO) -> RowTemplate:
        now_us = self._log.clock_us()
        return self._source(epoch).transaction(
            commit_us=now_us,
            xid=None,
            commit_lsn=lsn,
            previous_commit_lsn=None,
            now_us=now_us,
            snapshot=snapshot,
        )
