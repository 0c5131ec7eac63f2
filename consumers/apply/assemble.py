"""What was fetched -> a batch for the target: decoded, judged by gates, grouped by table, folded.

A record that does not decode stops nothing: it is set aside with what comes after it of its key (H24).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from aiokafka import TopicPartition

from consumers.apply.ages import Mark
from consumers.apply.checkpoint import LastRecord, Move, Place, checksum_of
from consumers.apply.dead_letters import DeadLetter
from consumers.apply.feed import Fetched, Record, Standing
from consumers.apply.fold import BOTTOM, Event
from consumers.apply.modes import floor_for, fold_for
from consumers.apply.queues import NO_KEY, Aside, Poison
from consumers.apply.schemas import SchemaLookup
from consumers.targets.base import Batch, FlowError, TableChanges
from streamer.changes.envelope import SWEEP_HEADER, Change, decode_value
from streamer.changes.kinds import UNAVAILABLE
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.errors import BadRecordError, DecodeError, FatalError

SLICE = 250  # records between two turns of the event loop: less than 1 ms
SWEEP_DIGITS_LIMIT = 18
SAMPLES = 64  # a partition and batch, of which latency is measured

Sample = tuple[int, int, int]

_UNAVAILABLE = UNAVAILABLE.encode()
_tuple = tuple.__new__  # as in fold


@dataclass(slots=True)
class Prepared:
    """A batch on its way. `times`: by flow, (commit_us, capture_us, events that it stands for).

    `held`: places where this batch ends right before an event that waits at a gate.
    """

    batch: Batch
    received_us: int
    bytes: int = 0
    records: int = 0
    times: dict[str, list[Sample]] = field(default_factory=dict)
    aside: Aside = field(default_factory=Aside)
    letters: list[DeadLetter] = field(default_factory=list)  # of what was refused at a gate, not sent yet
    held: set[Place] = field(default_factory=set)
    marks: dict[Place, list[Mark]] = field(default_factory=dict)  # of the first change, and of what is held

    def without(self, flows: set[str]) -> Prepared:
        batch = self.batch
        kept = Batch(
            [changes for changes in batch.tables if changes.flow not in flows],
            [move for move in batch.moves if move.place.flow not in flows],
            batch.records,
            batch.cluster_id,
            deleted={place: rows for place, rows in batch.deleted.items() if place.flow not in flows},
            remakes=batch.remakes,
        )
        times = {flow: times for flow, times in self.times.items() if flow not in flows}
        aside = self.aside.without(flows)
        letters = [letter for letter in self.letters if letter.place.flow not in flows]
        counts = self.received_us, self.bytes, self.records
        return Prepared(kept, *counts, times, aside, letters, self.held, self.marks)


class Judge(Protocol):
    """The gates' place in the reader: asked for each flow and topic of a batch, before it is folded."""

    async def judge(
        self, flow: Flow, topic: str, record: SchemaRecord, parts: dict[int, Decoded]
    ) -> Mapping[int, int]:
        """`parts`: by partition, events in their order; the judge puts others in the place of those that it
        takes a refused change out of.

        Gives, by partition, the offset from which on nothing goes: that of the held event there, and where
        the others stay. Empty: all of it passes. Events before those offsets are applied, the checkpoints
        move up to them, and the flow reads no more of the topic, or where it is not held as a whole of these
        partitions, until Reader.go_on(topic).
        """

    async def load(self) -> None:
        """Before anything is placed, with the target's session held. Raises TargetUnavailable."""

    def holds(self, flow: str, topic: str) -> bool:
        """The flow reads nothing of the topic now."""

    def waits(self, place: Place) -> bool:
        """The flow reads nothing of the partition now; it may be of the topic's others."""

    def count(self, prepared: Prepared) -> None:
        """Right before the batch goes to the writer: fill `batch.deleted` and `letters`."""

    def written(self) -> None:
        """The writer is done with the oldest batch that was counted, written or not."""


class Assembler:
    """Keeps no state of the stream: standings are the feed's, schema records the registry's."""

    def __init__(
        self,
        schemas: SchemaLookup,
        judge: Judge | None = None,
        *,
        passed: Callable[[Place], int] = lambda _: 0,
    ) -> None:
        """`passed`: up to which offset a place was applied before."""
        self._schemas = schemas
        self._judge = judge
        self._passed = passed

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
        decoded: dict[str, dict[int, Decoded]] = {}
        for partition, fetched_records in fetched.records.items():
            placed = standings[partition].next_offsets
            flows = [flow for flow in flows_by_topic[partition.topic] if flow.name in placed]
            if not flows:
                continue
            first = min(placed[flow.name] for flow in flows)
            part = decoded.setdefault(partition.topic, {})[partition.partition] = Decoded()
            for start in range(0, len(fetched_records), SLICE):
                part.add(fetched_records[start : start + SLICE], first)
                await asyncio.sleep(0)  # the writer's next statement must not wait for the whole batch
            prepared.bytes += sum([record.serialized_value_size for record in fetched_records])
            prepared.records += len(fetched_records)
        cuts: dict[Place, int] = {}
        for topic, by_partition in decoded.items():
            for flow in flows_by_topic[topic]:
                parts = {}
                for p, found in by_partition.items():
                    next_offset = standings[TopicPartition(topic, p)].next_offsets.get(flow.name)
                    if next_offset is not None and (found.events or found.poisons):
                        parts[p] = since = found.since(next_offset)
                        if since.events:
                            mark = Mark(next_offset, since.events[0].change.commit_us)
                            prepared.marks[Place(flow.name, topic, p)] = [mark]
                if parts:
                    await self._table(flow, topic, parts, records, prepared, cuts)
        batch.moves += [
            move
            for partition, end in fetched.ends.items()
            if partition in standings
            for move in _moves(
                partition,
                end,
                fetched.records.get(partition),
                standings[partition],
                decoded.get(partition.topic, {}).get(partition.partition),
                cuts,
            )
        ]
        return prepared

    async def _table(
        self,
        flow: Flow,
        topic: str,
        parts: dict[int, Decoded],
        records: dict[str, SchemaRecord],
        prepared: Prepared,
        cuts: dict[Place, int],
    ) -> None:
        for schema_id in {schema_id for part in parts.values() for schema_id in part.ids}:
            try:
                records[schema_id] = await self._schemas.get(schema_id, f"flow {flow.name!r}, topic {topic}")
            except FatalError as error:
                raise FlowError(flow.name, error) from error
        before = dict(parts)
        parts = await self._judged(flow, topic, parts, records, prepared, cuts)
        for p, part in parts.items():
            place = Place(flow.name, topic, p)
            prepared.aside.poisons += [Poison(place, *poison) for poison in part.poisons]
        ids = {schema_id for part in parts.values() for schema_id in part.ids}
        if not ids:
            if any(part.events and Place(flow.name, topic, p) not in cuts for p, part in before.items()):
                # All of it was refused at a gate. The checkpoint passes it, and tells from then on that the
                # table was made.
                record = records[_latest(before).schema_id]
                place_of = flow.place(record.schema, record.table)
                alone = TableChanges(flow.name, topic, record, *place_of, [], {record.id})
                prepared.batch.tables.append(alone)
            return
        floor, floor_partition = max((floor_for(flow, part.others), p) for p, part in parts.items())
        latest = _latest(parts)
        record = records[latest.schema_id]
        folds = []
        for p, part in parts.items():
            try:
                folds.append(fold_for(flow, part.events, p, floor))
                if part.behind:
                    behind = fold_for(flow, part.behind, p, floor)
                    prepared.aside.behind[Place(flow.name, topic, p)] = behind
            except BadRecordError as error:
                error.where = error.where or f"{topic}[{p}]"
                raise FlowError(flow.name, error) from error
            await asyncio.sleep(0)
        times = prepared.times.setdefault(flow.name, [])
        for p, part in parts.items():
            if not part.events:
                continue
            passed = self._passed(Place(flow.name, topic, p))
            step = -(-len(part.events) // SAMPLES) or 1
            # A row of a first copy, or of a replay, was committed long before: its age is no latency.
            some = part.events[::step]
            sampled = [event.change for event in some if event.change.op != "r" and event.offset >= passed]
            times += [(change.commit_us, change.capture_us, step) for change in sampled]
        schema, table = flow.place(record.schema, record.table)
        changes = TableChanges(flow.name, topic, record, schema, table, folds, ids, floor, floor_partition)
        if floor > BOTTOM:
            others = parts[floor_partition].others
            changes.floor_us = next(change.commit_us for change in others if change.version == floor)
        prepared.batch.tables.append(changes)

    async def _judged(
        self,
        flow: Flow,
        topic: str,
        parts: dict[int, Decoded],
        records: dict[str, SchemaRecord],
        prepared: Prepared,
        cuts: dict[Place, int],
    ) -> dict[int, Decoded]:
        """What goes on of the parts. Notes where the others end."""
        if self._judge is None or not any(part.events for part in parts.values()):
            return parts
        record = records[_latest(parts).schema_id]
        held = await self._judge.judge(flow, topic, record, parts)
        if not held:
            return parts
        ends = {Place(flow.name, topic, p): offset for p, offset in held.items()}
        prepared.held |= ends.keys()
        cuts.update(ends)
        for place, end in ends.items():
            waits = next((e for e in parts[place.partition].events if e.offset >= end), None)
            if waits is not None:
                prepared.marks.setdefault(place, []).append(Mark(end, waits.change.commit_us))
        return {p: part.until(held[p]) if p in held else part for p, part in parts.items()}


def _latest(parts: Mapping[int, Decoded]) -> Change:
    """The event of the highest version."""
    last = [part.events[-1].change for part in parts.values() if part.events]
    last += [part.behind[-1].change for part in parts.values() if part.behind]
    return max(last, key=lambda change: change.version)


class Decoded:
    """One partition's events of the batch. `others`: those that are not of a row.

    `poisons`: (key, offset, value, reason) of records that do not decode; `behind`: what comes after one
    of them of its key, in order, and so is in no other list. `sweeps`: what the header SWEEP of deletes says.
    """

    __slots__ = ("behind", "events", "ids", "others", "poisons", "sweeps")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ids: set[str] = set()
        self.others: list[Change] = []
        self.poisons: list[tuple[bytes, int, bytes, str]] = []
        self.behind: list[Event] = []
        self.sweeps: dict[int, int] = {}  # by offset

    def add(self, records: list[Record], first: int) -> None:
        append, note = self.events.append, self.ids.add
        for record in records:
            value = record.value
            offset = record.offset
            if value is None or offset < first:  # the tombstone after a delete; a record that is known
                continue
            try:
                change = decode_value(value, where="", offset=offset)
            except DecodeError as error:
                self.poisons.append((NO_KEY if record.key is None else record.key, offset, value, error.what))
                continue
            note(change[6])
            if change[0] in "tm":
                self.others.append(change)
            if record.headers and change[0] == "d":
                self.sweeps[offset] = _sweep_of(record.headers)
            event = _tuple(Event, (record.key, change, offset, _UNAVAILABLE in value))
            if self.poisons and any(record.key == poison[0] for poison in self.poisons):
                self.behind.append(event)
            else:
                append(event)

    def since(self, offset: int) -> Decoded:
        """What is not known to a flow yet; another flow of the topic may be behind it."""
        first = min([event.offset for event in self.events[:1]] + [poison[1] for poison in self.poisons[:1]])
        return self if first >= offset else self._between(offset, None)

    def until(self, offset: int) -> Decoded:
        """What is before the offset."""
        return self._between(0, offset)

    def without(self, offsets: Collection[int]) -> Decoded:
        """Without these events."""
        part = self._between(0, None)
        part.events = [event for event in part.events if event.offset not in offsets]
        part._index()
        return part

    def _between(self, start: int, end: int | None) -> Decoded:
        part = Decoded()
        part.events = [e for e in self.events if e.offset >= start and (end is None or e.offset < end)]
        part.behind = [e for e in self.behind if e.offset >= start and (end is None or e.offset < end)]
        part.poisons = [p for p in self.poisons if p[1] >= start and (end is None or p[1] < end)]
        poisoned = {poison[0] for poison in part.poisons}
        if any(event.key not in poisoned for event in part.behind):  # what they are behind is known already
            free = [event for event in part.behind if event.key not in poisoned]
            part.events = sorted([*part.events, *free], key=lambda event: event.offset)
            part.behind = [event for event in part.behind if event.key in poisoned]
        part.sweeps = self.sweeps
        part._index()
        return part

    def _index(self) -> None:
        self.ids = {event.change.schema_id for event in (*self.events, *self.behind)}
        self.others = [event.change for event in self.events if event.change.op in "tm"]


def _sweep_of(headers: Iterable[tuple[str, bytes]]) -> int:
    """Rows that the pass of a Redis source found gone, whose delete this is; 0: it is not of one."""
    for name, value in headers:
        if name == SWEEP_HEADER and value.isdigit() and len(value) <= SWEEP_DIGITS_LIMIT:
            return int(value)
    return 0


def _moves(
    partition: TopicPartition,
    end: int,
    records: list[Record] | None,
    standing: Standing,
    decoded: Decoded | None,
    cuts: Mapping[Place, int],
) -> list[Move]:
    moves = []
    for flow, next_offset in standing.next_offsets.items():
        place = Place(flow, *partition)
        cut = cuts.get(place)
        until = end if cut is None else min(cut, end)
        if until <= next_offset:
            continue
        passed = records or []
        events = decoded.events if decoded else []
        if cut is not None:
            passed = [record for record in passed if record.offset < cut]
            events = [event for event in events if event.offset < cut]
        last = None
        if passed and passed[-1].offset >= next_offset:
            # The highest epoch stays known, should the source ever begin with a lower one.
            version = max(
                events[-1].change.version if events else BOTTOM, (standing.epochs.get(flow, 0), 0, 0)
            )
            last = LastRecord(passed[-1].offset, checksum_of(passed[-1].key, passed[-1].value), *version)
        moves.append(Move(place, standing.unmoved.get(flow, next_offset), until, last))
    return moves
