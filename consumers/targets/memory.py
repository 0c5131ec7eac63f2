"""A target inside the process that applies, for users' own tests (docs/targets.md): `kind: memory`.

The reference of what every target does: rows, checkpoints, parks and counts of a batch together or not
at all, stale moves refused, versions guarded. A batch is checked first and written without a turn of the
event loop, so that nothing can come between. Nothing outlives the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from consumers.apply.checkpoint import ANYWHERE, Checkpoint, Place, Rewind
from consumers.apply.fold import BOTTOM, PartitionFold, Reread, Version, Write
from consumers.apply.mapping import Mapping as Columns
from consumers.apply.mapping import map_columns, soft_column
from consumers.apply.queues import wish_of
from consumers.targets.ahead import rows_ahead
from consumers.targets.base import (
    Batch,
    FlowError,
    Gate,
    Look,
    Outcome,
    Parked,
    Refused,
    RowsRefused,
    TableChanges,
    Unwhole,
    Versions,
    check_wishes,
    reread_cure,
)
from consumers.targets.memory_table import MemoryTable, key_of, key_of_row, placed
from streamer.changes.kinds import UNAVAILABLE, decoder_for
from streamer.config import Flow
from streamer.config import MemoryTarget as Settings
from streamer.errors import BadRecordError, ConfigError, FatalError, TargetUnavailable

REFUSED_LIMIT = 100  # rows named at once, as every target does
PURGE_LIMIT = 20_000  # tombstones forgotten in one sweep

Row = dict[str, Any]
Rule = Callable[[Row], str | None]  # a row as the target would hold it -> why it is refused
Work = list[tuple[TableChanges, list[PartitionFold]]]


@dataclass(slots=True)
class MemoryStore:
    """What a memory target keeps. A test reads it with `rows`, and makes trouble with the other three."""

    group: str
    clock_us: Callable[[], int] = lambda: time.time_ns() // 1000
    unavailable: str = ""  # a reason: every call raises TargetUnavailable until it is empty again
    rules: dict[tuple[str, str], Rule] = field(default_factory=dict)  # by (schema, table): rows to refuse
    tables: dict[tuple[str, str], MemoryTable] = field(default_factory=dict)
    stands: dict[Place, Checkpoint] = field(default_factory=dict)
    floors: dict[tuple[str, str], Version] = field(default_factory=dict)
    tombstones: dict[tuple[Place, bytes], tuple[Version, int]] = field(default_factory=dict)
    rereads: dict[tuple[str, str, bytes], tuple[str, str, Reread]] = field(default_factory=dict)
    parked: dict[tuple[Place, bytes], list[Parked]] = field(default_factory=dict)
    gates: dict[tuple[str, str], Gate] = field(default_factory=dict)
    deletes: list[tuple[int, Place, int]] = field(default_factory=list)  # (at_us, place, rows)

    def rows(self, schema: str, table: str) -> list[Row]:
        """Rows with every column; values are in the form of the envelope. No such table: no rows."""
        found = self.tables.get((schema, table))
        return found.plain() if found is not None else []

    def make_table(self, schema: str, table: str, columns: Iterable[str]) -> None:
        """A table that is there before the first change."""
        self.tables[schema, table] = MemoryTable(schema, table, columns)


_stores: dict[str, MemoryStore] = {}


def memory_store(name: str, target: str) -> MemoryStore:
    """The store of a config's target in this process; the same one until `forget_memory`."""
    group = f"{name}.{target}"
    return _stores.setdefault(group, MemoryStore(group))


def forget_memory(name: str, target: str) -> None:
    """Begin with an empty store. Sessions that are open keep the old one."""
    _stores.pop(f"{name}.{target}", None)


class MemoryTarget:
    """One session. `group`: the consumer group bound to this target; `store` is its own unless given."""

    def __init__(
        self, settings: Settings, group: str, flows: Sequence[Flow], *, store: MemoryStore | None = None
    ) -> None:
        self.place = f"target {settings.name!r} (memory)"
        self._group = group
        self._flows = {flow.name: flow for flow in flows}
        self._store = store if store is not None else _stores.setdefault(group, MemoryStore(group))
        self._opened = False

    @property
    def id(self) -> str:
        """The same in every process: the next one begins at the start of the topics, in the same group."""
        return str(uuid5(NAMESPACE_URL, f"tailrace-memory:{self._group}"))

    @property
    def clock_offset_s(self) -> float:
        return 0.0

    def details(self) -> Mapping[str, Any]:
        return {}

    async def open(self) -> None:
        if self._store.group != self._group:
            raise FatalError(
                f"this target belongs to the consumer group {self._store.group!r}, not to {self._group!r}",
                where=self.place,
                fix="give each target a store of its own",
            )
        self._opened = True
        self._here()

    async def close(self) -> None:
        self._opened = False

    def _here(self) -> MemoryStore:
        if not self._opened:
            raise TargetUnavailable(
                "the session with the target has ended", where=self.place, fix="open() it again"
            )
        if self._store.unavailable:
            self._opened = False
            raise TargetUnavailable(
                self._store.unavailable, where=self.place, fix="it goes on by itself when that is over"
            )
        return self._store

    # State

    async def checkpoints(self, places: Iterable[Place]) -> dict[Place, Checkpoint]:
        stands = self._here().stands
        return {place: stands.setdefault(place, Checkpoint(place)) for place in places}

    async def rewind(self, rewinds: Iterable[Rewind], who: str) -> dict[Place, Checkpoint]:
        stands = self._here().stands
        moved = {}
        for place, next_offset, last in rewinds:
            was = stands.get(place)
            if was is not None and was.next_offset > next_offset:
                moved[place] = was
                stands[place] = Checkpoint(place, next_offset, was.cluster_id, last, was.replayed_to)
        return moved

    async def look(self, places: Iterable[Place]) -> Look:
        stands = self._here().stands
        return Look(self.id, {place: stands[place].next_offset for place in places if place in stands})

    async def versions(self, batch: Batch) -> Versions | None:
        store = self._here()
        mappings = self._map(store, batch)
        found: Versions = {}
        for changes in batch.tables:
            flow, name = self._flows[changes.flow], (changes.schema, changes.table)
            if flow.write == "append" or flow.version == "none":
                return None
            rows = store.tables[name].rows if name in store.tables else {}
            for fold in changes.folds:
                place = _place(changes, fold)
                for part in (fold.rows, fold.creates, fold.patches, fold.deletes):
                    for key, write in part.items():
                        there = rows.get(key_of(mappings[flow.name, write.change.schema_id], write))
                        row = BOTTOM if there is None else there.version
                        gone = store.tombstones.get((place, key), (BOTTOM, 0))[0]
                        highest = max(row, gone, store.floors.get(name, BOTTOM))
                        if highest > BOTTOM:
                            found[place, key] = highest
        return found

    async def parked(self, places: Iterable[Place] | None = None, *, asked: bool = False) -> list[Parked]:
        wanted = None if places is None else set(places)
        queues = sorted(self._here().parked.items())
        chosen = [queue for (place, _), queue in queues if wanted is None or place in wanted]
        return [entry for queue in chosen if not asked or any(e.asked for e in queue) for entry in queue]

    async def ask(self, keys: Iterable[tuple[Place, bytes]], action: str, who: str) -> int:
        parked = self._here().parked
        found = {key for key in keys if key in parked}
        for key in found:
            parked[key] = [replace(entry, asked=action, asked_by=who) for entry in parked[key]]
        return len(found)

    async def gates(self) -> list[Gate]:
        return [gate for _, gate in sorted(self._here().gates.items())]

    async def hold(self, gate: Gate) -> None:
        gates = self._here().gates
        known = gates.get((gate.flow, gate.topic))
        if known is not None and known.stays(gate):
            return
        again = known is not None and (known.state, gate.state) == ("held", "held")
        gates[gate.flow, gate.topic] = replace(gate, since_us=known.since_us) if known and again else gate

    async def decide(self, flow: str, state: str, who: str, up_to_us: int) -> list[Gate]:
        gates = self._here().gates
        held = [gate for gate in gates.values() if gate.flow == flow and gate.state == "held"]
        for gate in held:
            decided = replace(gate, state=state, up_to_us=up_to_us, decided_by=who)
            gates[gate.flow, gate.topic] = decided
        return [gates[gate.flow, gate.topic] for gate in held]

    async def recent_deletes(self, flow: str, topic: str, window_s: float) -> int:
        store = self._here()
        since_us = store.clock_us() - round(window_s * 1e6)
        return sum(
            rows for at_us, place, rows in store.deletes if at_us >= since_us and place[:2] == (flow, topic)
        )

    async def count_rows(self, flow: str, schema: str, table: str) -> int:
        found = self._here().tables.get((schema, table))
        return len(found) if found is not None else 0

    async def count_below(self, changes: TableChanges, limit: int) -> int:
        found = self._here().tables.get((changes.schema, changes.table))
        soft = soft_column(self._flows[changes.flow])
        if found is None:
            return 0
        kept = self._kept(self._here(), changes, found, None, ())
        return found.count_below(changes.floor, soft, kept)

    async def findings(self) -> list[str]:
        counted: dict[tuple[str, str, str], int] = {}
        for (flow, _, _), (schema, table, _) in self._here().rereads.items():
            counted[flow, schema, table] = counted.get((flow, schema, table), 0) + 1
        return [
            f"flow {flow}: {count} rows of {schema}.{table} are not whole until they are read again"
            f" from the source{reread_cure(self._flows.get(flow))}"
            for (flow, schema, table), count in sorted(counted.items())
        ]

    async def rereads(self, topics: Collection[str], limit: int) -> list[Unwhole]:
        found: dict[tuple[str, str], list[Unwhole]] = {}
        for (flow, topic, key), (schema, table, reread) in self._here().rereads.items():
            rows = found.setdefault((flow, topic), [])
            if topic in topics and len(rows) < limit:
                rows.append(Unwhole(flow, topic, schema, table, key, reread.change.version))
        return [row for rows in found.values() for row in rows]

    async def sweep(self, keep_s: float) -> None:
        store = self._here()
        before_us = store.clock_us() - round(keep_s * 1e6)
        old = [key for key, (_, at_us) in store.tombstones.items() if at_us < before_us]
        for key in old[:PURGE_LIMIT]:
            del store.tombstones[key]
        store.deletes = [entry for entry in store.deletes if entry[0] >= before_us]

    # Batches

    async def prepare(self, batch: Batch) -> None:
        return

    async def apply(self, batch: Batch) -> Outcome:
        store = self._here()
        outcome = Outcome()
        for move in batch.moves:
            at = store.stands.get(move.place)
            if at is None or move.expected not in (at.next_offset, ANYWHERE):
                outcome.lost.append(move.place)
        lost = set(outcome.lost)
        check_wishes(batch, lost, {key: wish_of(store.parked.get(key, ())) for key in batch.wishes})
        work = [
            (changes, [f for f in changes.folds if _place(changes, f) not in lost])
            for changes in batch.tables
        ]
        mappings = self._map(store, batch)
        for changes, folds in work:
            self._drop_gone(store, changes, folds, outcome)
        self._refuse(store, work, mappings)
        for changes, folds in work:
            self._write(store, batch, changes, folds, mappings, lost, outcome)
        _keep_state(store, batch, lost)
        return outcome

    def _map(self, store: MemoryStore, batch: Batch) -> dict[tuple[str, str], Columns]:
        """By (flow, schema id). Raises FlowError."""
        found = {}
        for changes in batch.tables:
            flow = self._flows[changes.flow]
            table = store.tables.get((changes.schema, changes.table))
            for schema_id in changes.schema_ids:
                try:
                    present = None if table is None else table.columns
                    mapping = map_columns(flow, batch.records[schema_id], present)
                except ConfigError as error:
                    raise FlowError(flow.name, error) from error
                found[flow.name, schema_id] = mapping
        return found

    def _drop_gone(
        self, store: MemoryStore, changes: TableChanges, folds: list[PartitionFold], outcome: Outcome
    ) -> None:
        """What a floor or a tombstone of a higher version has outlived (H5)."""
        if self._flows[changes.flow].version == "none":
            return
        floor = store.floors.get((changes.schema, changes.table), BOTTOM)
        dropped = 0
        for fold in folds:
            dropped += fold.drop_to(floor) if floor > BOTTOM else 0
            place = _place(changes, fold)
            for part in (fold.rows, fold.creates, fold.patches):
                for key, write in list(part.items()):
                    if store.tombstones.get((place, key), (BOTTOM, 0))[0] > write.change.version:
                        del part[key]
                        fold.rereads.pop(key, None)
                        dropped += 1
        _count(outcome.guarded, changes.flow, dropped)

    def _refuse(self, store: MemoryStore, work: Work, mappings: dict[tuple[str, str], Columns]) -> None:
        """Raises RowsRefused for what the target will not hold."""
        refused = []
        for changes, folds in work:
            rule = store.rules.get((changes.schema, changes.table))
            for fold in folds:
                keyed = [item for part in (fold.rows, fold.creates, fold.patches) for item in part.items()]
                for key, write in [*keyed, *((None, write) for write in fold.added)]:
                    why = _unfit(mappings[changes.flow, write.change.schema_id], write, rule)
                    if why is not None:
                        place = _place(changes, fold)
                        refused.append(Refused(place, key, write, why[0], why[1], transient=False))
                    if len(refused) == REFUSED_LIMIT:
                        raise RowsRefused(refused, where=self.place)
        if refused:
            raise RowsRefused(refused, where=self.place)

    def _kept(
        self,
        store: MemoryStore,
        changes: TableChanges,
        table: MemoryTable,
        batch: Batch | None,
        lost: Collection[Place],
    ) -> set[bytes]:
        """Keys of the table whose rows the floor of `changes` passes over."""
        subject = changes.flow, changes.topic
        stored = [
            (place, key)
            for (place, key), entries in store.parked.items()
            if place[:2] == subject and any(e.decodes and e.version > changes.floor for e in entries)
        ]
        mapping = map_columns(self._flows[changes.flow], changes.record, table.columns or None)
        return {key_of_row(mapping, row) for row in rows_ahead(changes, stored, batch, lost)}

    def _write(
        self,
        store: MemoryStore,
        batch: Batch,
        changes: TableChanges,
        folds: list[PartitionFold],
        mappings: dict[tuple[str, str], Columns],
        lost: set[Place],
        outcome: Outcome,
    ) -> None:
        flow, name = self._flows[changes.flow], (changes.schema, changes.table)
        table = store.tables.setdefault(name, MemoryTable(*name))
        for schema_id in sorted(changes.schema_ids, key=lambda known: known == changes.record.id):
            table.add_columns(mappings[flow.name, schema_id])
        if Place(flow.name, changes.topic, changes.floor_partition) not in lost:
            kept = self._kept(store, changes, table, batch, lost)
            _raise_floor(store, changes, table, flow, kept)
        guarded = 0
        for fold in folds:
            place = _place(changes, fold)

            def of(write: Write) -> Columns:
                return mappings[flow.name, write.change.schema_id]

            for key, write in fold.deletes.items():
                guarded += table.delete(flow, of(write), write)
                if flow.delete != "ignore":
                    _bury(store, place, key, write.change.version)
            for key, write in fold.patches.items():
                found = table.patch(flow, of(write), write)
                guarded += found or 0
                if found is None:
                    fold.rereads[key] = Reread(key, write.change, "an update whose row is not in the target")
            for part in (fold.rows, fold.creates):
                for key, write in part.items():
                    guarded += table.upsert(flow, of(write), whole(write), key)
            for write in fold.added:
                table.append(of(write), write)
            for write in fold.removed:
                if flow.delete == "apply":
                    table.remove_twin(of(write), write)
            _note_rereads(store, changes, fold)
            _count(outcome.applied, flow.name, fold.events)
            _count(outcome.rereads, flow.name, len(fold.rereads))
            guarded += fold.skipped
        _count(outcome.guarded, flow.name, guarded)


def whole(write: Write) -> Write:
    """A create with placeholders gets null there (H6)."""
    if UNAVAILABLE not in write.row.values():
        return write
    return write._replace(row={n: None if v == UNAVAILABLE else v for n, v in write.row.items()})


def _place(changes: TableChanges, fold: PartitionFold) -> Place:
    return Place(changes.flow, changes.topic, fold.partition)


def _count(counts: dict[str, int], flow: str, more: int) -> None:
    if more:
        counts[flow] = counts.get(flow, 0) + more


def _unfit(mapping: Columns, write: Write, rule: Rule | None) -> tuple[str, str] | None:
    """(code, message) of what is wrong with a row: a value that is not of its kind, a null in the key."""
    row = write.row
    for column in mapping.columns:
        if column.column is None:
            continue
        value = row.get(column.column.name)
        if value is None:
            if column.key:
                return "23502", f"null value in column {column.name!r} of the key"
        elif value != UNAVAILABLE:
            try:
                decoder_for(column.column.kind)(value)
            except BadRecordError as error:
                return "22000", f"column {column.name!r}: {error}"
    why = rule(placed(mapping, whole(write).row)) if rule is not None else None
    return None if why is None else ("23514", why)


def _raise_floor(
    store: MemoryStore, changes: TableChanges, table: MemoryTable, flow: Flow, kept: set[bytes]
) -> None:
    name = changes.schema, changes.table
    if changes.floor <= store.floors.get(name, BOTTOM):
        return
    store.floors[name] = changes.floor
    below = None if flow.version == "none" else changes.floor
    table.drop_to(below, soft_column(flow), changes.floor_us, kept)
    for key, (schema, table_name, reread) in list(store.rereads.items()):
        if (schema, table_name) == name and reread.change.version <= changes.floor:
            del store.rereads[key]


def _bury(store: MemoryStore, place: Place, key: bytes, version: Version) -> None:
    if store.tombstones.get((place, key), (BOTTOM, 0))[0] < version:
        store.tombstones[place, key] = version, store.clock_us()


def _note_rereads(store: MemoryStore, changes: TableChanges, fold: PartitionFold) -> None:
    """A whole row, or a delete, mends what was noted; then what is not whole is noted (H7)."""
    for part in (fold.rows, fold.deletes):
        for key, write in part.items():
            noted = store.rereads.get((changes.flow, changes.topic, key))
            if noted is not None and noted[2].change.version <= write.change.version:
                del store.rereads[changes.flow, changes.topic, key]
    for key, reread in fold.rereads.items():
        noted = store.rereads.get((changes.flow, changes.topic, key))
        if noted is None or noted[2].change.version <= reread.change.version:
            store.rereads[changes.flow, changes.topic, key] = changes.schema, changes.table, reread


def _keep_state(store: MemoryStore, batch: Batch, lost: set[Place]) -> None:
    for place, key in batch.unparks:
        if place not in lost:
            store.parked.pop((place, key), None)
    for entry in batch.parks:
        if entry.place not in lost:
            queue = store.parked.setdefault((entry.place, entry.key), [])
            queue.append(entry)
            queue.sort(key=lambda known: known.sequence)
    for place, rows in batch.deleted.items():
        if place not in lost and rows:
            store.deletes.append((store.clock_us(), place, rows))
    for move in batch.moves:
        if move.place not in lost and move.expected != ANYWHERE:
            was = store.stands[move.place]
            last = move.last or was.last
            store.stands[move.place] = Checkpoint(
                move.place, move.next_offset, batch.cluster_id, last, was.replay_until
            )
