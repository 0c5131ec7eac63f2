"""What was fetched -> a batch for the target: decoded, grouped by table, folded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiokafka import TopicPartition

from consumers.apply.checkpoint import LastRecord, Move, Place, checksum_of
from consumers.apply.feed import Fetched, Record, Standing
from consumers.apply.fold import BOTTOM, Event, floor_of, fold
from consumers.apply.schemas import Schemas
from consumers.targets.base import Batch, FlowError, TableChanges
from streamer.changes.envelope import Change, decode_value
from streamer.changes.kinds import UNAVAILABLE
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.errors import BadRecordError, DecodeError, FatalError

SLICE = 250  # records between two turns of the event loop: less than 1 ms
SAMPLES = 64  # a partition and batch, of which latency is measured

Sample = tuple[int, int, int]

_UNAVAILABLE = UNAVAILABLE.encode()
_tuple = tuple.__new__  # as in fold


@dataclass(slots=True)
class Prepared:
    """A batch on its way. `times`: by flow, (commit_us, capture_us, events that it stands for)."""

    batch: Batch
    received_us: int
    bytes: int = 0
    records: int = 0
    times: dict[str, list[Sample]] = field(default_factory=dict)

    def without(self, flows: set[str]) -> Prepared:
        batch = self.batch
        kept = Batch(
            [changes for changes in batch.tables if changes.flow not in flows],
            [move for move in batch.moves if move.place.flow not in flows],
            batch.records,
            batch.cluster_id,
        )
        times = {flow: times for flow, times in self.times.items() if flow not in flows}
        return Prepared(kept, self.received_us, self.bytes, self.records, times)


class Assembler:
    """Keeps no state of the stream: standings are the feed's, schema records the registry's."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas

    async def assemble(
        self,
        fetched: Fetched,
        standings: dict[TopicPartition, Standing],
        flows_by_topic: dict[str, list[Flow]],
        cluster_id: str,
    ) -> Prepared:
        """Moves the standings on to where the batch ends. Raises FlowError; then nothing has moved."""
        records: dict[str, SchemaRecord] = {}
        batch = Batch([], [], records, cluster_id)
        prepared = Prepared(batch, fetched.received_us)
        decoded: dict[str, dict[int, _Decoded]] = {}
        for partition, fetched_records in fetched.records.items():
            placed = standings[partition].next_offsets
            flows = [flow for flow in flows_by_topic[partition.topic] if flow.name in placed]
            if not flows:
                continue
            first = min(placed[flow.name] for flow in flows)
            part = decoded.setdefault(partition.topic, {})[partition.partition] = _Decoded()
            for start in range(0, len(fetched_records), SLICE):
                try:
                    part.add(fetched_records[start : start + SLICE], first)
                except DecodeError as error:
                    error.where = f"{partition.topic}[{partition.partition}]@{error.where}"
                    raise FlowError(flows[0].name, error) from error
                await asyncio.sleep(0)  # the writer's next statement must not wait for the whole batch
            prepared.bytes += sum([record.serialized_value_size for record in fetched_records])
            prepared.records += len(fetched_records)
        for topic, by_partition in decoded.items():
            for flow in flows_by_topic[topic]:
                parts = {}
                for p, found in by_partition.items():
                    next_offset = standings[TopicPartition(topic, p)].next_offsets.get(flow.name)
                    if next_offset is not None and found.events:
                        parts[p] = found.since(next_offset)
                if parts:
                    await self._table(flow, topic, parts, records, batch, prepared)
        moves = [
            move
            for partition, end in fetched.ends.items()
            if partition in standings
            for move in _moves(
                partition,
                end,
                fetched.records.get(partition),
                standings[partition],
                decoded.get(partition.topic, {}).get(partition.partition),
            )
        ]
        batch.moves += moves
        return prepared

    async def _table(
        self,
        flow: Flow,
        topic: str,
        parts: dict[int, _Decoded],
        records: dict[str, SchemaRecord],
        batch: Batch,
        prepared: Prepared,
    ) -> None:
        ids = {schema_id for part in parts.values() for schema_id in part.ids}
        if not ids:
            return
        for schema_id in ids:
            try:
                records[schema_id] = await self._schemas.get(schema_id, f"flow {flow.name!r}, topic {topic}")
            except FatalError as error:
                raise FlowError(flow.name, error) from error
        floor, floor_partition = max((floor_of(part.others), p) for p, part in parts.items())
        latest = max((part.events[-1].change for part in parts.values()), key=lambda c: c.version)
        record = records[latest.schema_id]
        folds = []
        for p, part in parts.items():
            try:
                folds.append(fold(part.events, p, floor))
            except BadRecordError as error:
                error.where = error.where or f"{topic}[{p}]"
                raise FlowError(flow.name, error) from error
            await asyncio.sleep(0)
        times = prepared.times.setdefault(flow.name, [])
        for part in parts.values():
            step = -(-len(part.events) // SAMPLES) or 1
            # A row of a first copy was committed long before: its age is no latency.
            sampled = [event.change for event in part.events[::step] if event.change.op != "r"]
            times += [(change.commit_us, change.capture_us, step) for change in sampled]
        schema, table = flow.place(record.schema, record.table)
        batch.tables.append(
            TableChanges(flow.name, topic, record, schema, table, folds, ids, floor, floor_partition)
        )


class _Decoded:
    """One partition's events of the batch. `others`: those that are not of a row."""

    __slots__ = ("events", "ids", "others")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ids: set[str] = set()
        self.others: list[Change] = []

    def add(self, records: list[Record], first: int) -> None:
        """Raises DecodeError, its place the offset."""
        append, note = self.events.append, self.ids.add
        for record in records:
            value = record.value
            offset = record.offset
            if value is None or offset < first:  # the tombstone after a delete; a record that is known
                continue
            try:
                change = decode_value(value, where="")
            except DecodeError as error:
                error.where = str(offset)
                raise
            note(change[6])
            if change[0] in "tm":
                self.others.append(change)
            append(_tuple(Event, (record.key, change, offset, _UNAVAILABLE in value)))

    def since(self, offset: int) -> _Decoded:
        """What is not known to a flow yet; another flow of the topic may be behind it."""
        if self.events[0].offset >= offset:
            return self
        later = _Decoded()
        later.events = [event for event in self.events if event.offset >= offset]
        later.ids = {event.change.schema_id for event in later.events}
        later.others = [event.change for event in later.events if event.change.op in "tm"]
        return later


def _moves(
    partition: TopicPartition,
    end: int,
    records: list[Record] | None,
    standing: Standing,
    decoded: _Decoded | None,
) -> list[Move]:
    version = decoded.events[-1].change.version if decoded and decoded.events else BOTTOM
    moves = []
    for flow, next_offset in standing.next_offsets.items():
        if end <= next_offset:
            continue
        last = None
        if records and records[-1].offset >= next_offset:
            record = records[-1]
            last = LastRecord(record.offset, checksum_of(record.key, record.value), *version)
        moves.append(Move(Place(flow, *partition), next_offset, end, last))
    return moves
