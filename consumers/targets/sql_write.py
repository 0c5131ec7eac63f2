"""One batch in one transaction of a sql target. Everything here runs in the session's thread.

The order inside: floors, deletes with their tombstones, patches, rows, checkpoints. A row of one partition
is written only when that partition's checkpoint is where the batch was read. The transaction has the
database's write lock from its start, so that what was read in it stays true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, tuple_

from consumers.apply.checkpoint import ANYWHERE, Move, Place
from consumers.apply.fold import BOTTOM, PartitionFold, Reread, Version, Write
from consumers.targets import sql_floors as floor
from consumers.targets import sql_parked as parked
from consumers.targets import sql_state as state
from consumers.targets import sql_unique as unique
from consumers.targets import sql_versions as side
from consumers.targets.base import Batch, Outcome, TableChanges
from consumers.targets.sql_dialect import Dialect
from consumers.targets.sql_plans import Plan, is_whole, versions_of
from consumers.targets.sql_types import time_text
from streamer.changes.kinds import UNAVAILABLE

Plans = Mapping[tuple[str, str, str], Plan]  # by flow, topic, schema id
Keyed = list[tuple[bytes, Write]]
Work = list[tuple[TableChanges, list[PartitionFold]]]

_CLEAR = delete(state.needs_reread).where(
    state.needs_reread.c.flow == bindparam("b_flow"),
    state.needs_reread.c.topic == bindparam("b_topic"),
    state.needs_reread.c.key_hash == bindparam("b_key"),
    tuple_(*(state.needs_reread.c[name] for name in ("epoch", "lsn", "ordinal")))
    <= tuple_(bindparam("b_epoch"), bindparam("b_lsn"), bindparam("b_ordinal")),
)


@dataclass(slots=True)
class Begun:
    """A transaction that has begun: what may move, lost places, the work, floors by table."""

    stands: dict[Place, state.Stand]
    moves: list[Move]
    lost: set[Place]
    work: Work
    floors: dict[str, Version]


def begin(connection: Connection, dialect: Dialect, batch: Batch, plans: Plans, outcome: Outcome) -> Begun:
    """All that comes before the rows."""
    dialect.begin(connection)
    stands = state.read_stands(connection, [move.place for move in batch.moves])
    moves = []
    for move in batch.moves:
        stand = stands.get(move.place)
        if stand is not None and move.expected in (stand.checkpoint.next_offset, ANYWHERE):
            moves.append(move)
        else:
            outcome.lost.append(move.place)
    lost = set(outcome.lost)
    work = [
        (changes, [f for f in changes.folds if Place(changes.flow, changes.topic, f.partition) not in lost])
        for changes in batch.tables
    ]
    names = {plan_of(plans, changes).name.lower() for changes in batch.tables}
    floors = state.read_floors(connection, names) if names else {}
    for changes, _ in work:
        floor.check(connection, changes, plan_of(plans, changes), floors)
    unique.give_way(connection, [entry for entry in batch.parks if entry.place not in lost], plans)
    return Begun(stands, moves, lost, work, floors)


def plan_of(plans: Plans, changes: TableChanges, schema_id: str | None = None) -> Plan:
    return plans[changes.flow, changes.topic, schema_id or changes.record.id]


def write_batch(
    connection: Connection,
    dialect: Dialect,
    batch: Batch,
    plans: Plans,
    now_us: Callable[[], int],
) -> Outcome:
    outcome = Outcome()
    begun = begin(connection, dialect, batch, plans, outcome)
    parked.check(connection, batch, begun.lost)
    rereads: list[tuple[TableChanges, Reread]] = []
    for changes, folds in begun.work:
        plan = plan_of(plans, changes)
        if plan.flow.version != "none":
            at = begun.floors.get(plan.name.lower(), BOTTOM)
            dropped = floor.drop_gone(connection, changes, folds, at, begun.stands)
            count(outcome.guarded, changes.flow, dropped)
        rereads += [(changes, reread) for fold in folds for reread in fold.rereads.values()]
    write_floors(connection, dialect, begun, plans, batch)
    for changes, folds in begun.work:
        rereads += write_rows(connection, changes, folds, plans, outcome)
        _bury(connection, dialect, changes, folds, plans, now_us())
        _clear_rereads(connection, changes, folds)
        count(outcome.applied, changes.flow, sum(fold.events for fold in folds))
        count(outcome.guarded, changes.flow, sum(fold.skipped for fold in folds))
    _note_rereads(connection, dialect, rereads, plans, now_us())
    move_checkpoints(connection, dialect, begun, batch, now_us())
    parked.write(connection, batch, begun.lost, now_us())
    dialect.end(connection, commit=True)
    for changes, _ in rereads:
        count(outcome.rereads, changes.flow, 1)
    return outcome


def write_floors(connection: Connection, dialect: Dialect, begun: Begun, plans: Plans, batch: Batch) -> None:
    for changes, _ in begun.work:
        if Place(changes.flow, changes.topic, changes.floor_partition) not in begun.lost:
            plan = plan_of(plans, changes)
            floor.raise_floor(connection, dialect, changes, plan, begun.floors, batch, begun.lost)


def write_rows(
    connection: Connection, changes: TableChanges, folds: list[PartitionFold], plans: Plans, outcome: Outcome
) -> list[tuple[TableChanges, Reread]]:
    """Everything of one table; gives the keys whose base row is missing."""
    deletes = [item for fold in folds for item in fold.deletes.items()]
    for plan, items in _by_plan(changes, deletes, plans):
        count(outcome.guarded, changes.flow, _delete(connection, plan, items))
    missing = []
    patches = [item for fold in folds for item in fold.patches.items()]
    for plan, items in _by_plan(changes, patches, plans):
        guarded, absent = _patch(connection, plan, items)
        count(outcome.guarded, changes.flow, guarded)
        missing += [(changes, reread) for reread in absent]
    rows = [item for fold in folds for item in fold.rows.items()]
    creates = [item for fold in folds for item in fold.creates.items()]
    for plan, items in _by_plan(changes, rows + creates, plans):
        ready = _without_placeholders(connection, plan, items) if creates else items
        count(outcome.guarded, changes.flow, _put(connection, plan, ready))
    _keyless(connection, changes, folds, plans)
    return missing


def count(counts: dict[str, int], flow: str, more: int) -> None:
    if more:
        counts[flow] = counts.get(flow, 0) + more


def _by_plan(changes: TableChanges, items: Keyed, plans: Plans) -> Iterable[tuple[Plan, Keyed]]:
    """By schema id; nearly always there is one."""
    if len(changes.schema_ids) == 1:
        return [(plan_of(plans, changes, next(iter(changes.schema_ids))), items)] if items else []
    groups: dict[str, Keyed] = {}
    for item in items:
        groups.setdefault(item[1].change.schema_id, []).append(item)
    return [(plan_of(plans, changes, schema_id), found) for schema_id, found in groups.items()]


def _delete(connection: Connection, plan: Plan, items: Keyed) -> int:
    """How many a newer version has kept."""
    guarded = 0
    if plan.flow.version == "side":
        items, guarded = side.not_newer(connection, plan, items)
    writes = [write for _, write in items]
    if not writes:
        return guarded
    keys = plan.keys(writes)
    rows: Sequence[tuple[Any, ...]] = keys
    versions = list(zip(*versions_of(writes), strict=True)) if plan.guards_in_row else [()] * len(keys)
    if plan.fitted.mapping.soft_delete is not None:
        times = [time_text(write.change.commit_us) for write in writes]
        rows = [(at, *v, *key, *v) for at, key, v in zip(times, keys, versions, strict=True)]
    elif plan.guards_in_row:
        rows = [key + v for key, v in zip(keys, versions, strict=True)]
    cursor = connection.connection.cursor()
    cursor.executemany(plan.delete_sql(), rows)
    if plan.guards_in_row and cursor.rowcount < len(rows):
        guarded += _still_newer(cursor, plan, keys, versions)
    cursor.close()
    if plan.flow.version == "side":
        side.deleted(connection, plan, items)
    return guarded


def _still_newer(cursor: Any, plan: Plan, keys: Sequence[Any], versions: Sequence[Any]) -> int:
    find = plan.find_sql("_tailrace_epoch", "_tailrace_lsn", "_tailrace_ordinal")
    newer = 0
    for key, version in zip(keys, versions, strict=True):
        stored = cursor.execute(find, key).fetchone()
        newer += stored is not None and stored > version
    return newer


def _patch(connection: Connection, plan: Plan, items: Keyed) -> tuple[int, list[Reread]]:
    """Updates of the columns that are known; gives the keys whose base row is missing (H7)."""
    guarded, missing = 0, []
    if plan.flow.version == "side":
        items, guarded = side.not_newer(connection, plan, items)
    cursor = connection.connection.cursor()
    done = []
    for key, write in items:
        row = write.row
        # A constant is written too: it may be another one since the row was.
        sets = [
            s
            for s in plan.columns
            if s.name not in plan.fitted.conflict
            and (s.source is None or row.get(s.source, UNAVAILABLE) != UNAVAILABLE)
        ]
        at_key = plan.keys([write])[0]
        version = tuple(write.change[3:6]) if plan.guards_in_row else ()
        values = [value for (value,) in plan.values(sets, [write])]
        if sets or version:
            cursor.execute(plan.patch_sql([s.name for s in sets]), (*values, *version, *at_key, *version))
            if cursor.rowcount:
                done.append((key, write))
                continue
        if cursor.execute(plan.find_sql(), at_key).fetchone() is None:
            missing.append(Reread(key, write.change, "an update whose row is not in the target"))
        elif version:
            guarded += 1
    cursor.close()
    if plan.flow.version == "side":
        side.written(connection, plan, done)
    return guarded, missing


def _put(connection: Connection, plan: Plan, items: Keyed) -> int:
    guarded = 0
    if plan.flow.version == "side":
        items, guarded = side.not_newer(connection, plan, items)
    if not items:
        return guarded
    writes = [write for _, write in items]
    rows = plan.rows(writes)
    written = unique.put(connection, plan, rows)
    if plan.guards_in_row and plan.flow.write != "append":
        guarded += len(rows) - written
    if plan.flow.version == "side":
        side.written(connection, plan, items)
    return guarded


def _without_placeholders(connection: Connection, plan: Plan, items: Keyed) -> Keyed:
    """Creates with placeholders get null there (H6). Where a column may not be null the row is not written,
    and the one before it under this key, which is another one, does not stay."""
    strict = {sent.source for sent in plan.columns if sent.not_null}
    ready, unfit = [], []
    for key, write in items:
        if is_whole(write):
            ready.append((key, write))
            continue
        absent = {name for name, value in write.row.items() if value == UNAVAILABLE}
        if absent & strict:
            unfit.append((key, write))
        else:
            ready.append((key, write._replace(row={**write.row, **dict.fromkeys(absent)})))
    if unfit:
        _delete(connection, plan, unfit)
    return ready


def _keyless(connection: Connection, changes: TableChanges, folds: list[PartitionFold], plans: Plans) -> None:
    """Added rows first: a removal may be of one of them that looks different in JSON (H27)."""
    added = [(b"", write) for fold in folds for write in fold.added]
    for plan, items in _by_plan(changes, added, plans):
        plan.dialect.put(connection, plan.shape, plan.rows([write for _, write in items]))
    removed = [(b"", write) for fold in folds for write in fold.removed]
    for plan, items in _by_plan(changes, removed, plans):
        rows = list(zip(*plan.values(plan.columns, [write for _, write in items]), strict=True))
        cursor = connection.connection.cursor()
        cursor.executemany(plan.remove_sql(), rows)
        cursor.close()


# State


def _bury(
    connection: Connection,
    dialect: Dialect,
    changes: TableChanges,
    folds: list[PartitionFold],
    plans: Plans,
    now_us: int,
) -> None:
    if plan_of(plans, changes).flow.version == "none":
        return
    rows = [
        (changes.flow, changes.topic, fold.partition, state.key_hash(key), *write.change[3:6], now_us)
        for fold in folds
        for key, write in fold.deletes.items()
    ]
    if rows:
        dialect.put(connection, state.BURY, rows)


def _clear_rereads(connection: Connection, changes: TableChanges, folds: list[PartitionFold]) -> None:
    """A whole row, or a delete, mends what was noted."""
    if not state.has_flagged(connection, changes.flow, changes.topic):
        return
    names = "b_flow", "b_topic", "b_key", "b_epoch", "b_lsn", "b_ordinal"
    mended = [
        dict(zip(names, (changes.flow, changes.topic, state.key_hash(key), *write.change[3:6]), strict=True))
        for fold in folds
        for part in (fold.rows, fold.deletes)
        for key, write in part.items()
    ]
    if mended:
        connection.execute(_CLEAR, mended)


def _note_rereads(
    connection: Connection,
    dialect: Dialect,
    rereads: Sequence[tuple[TableChanges, Reread]],
    plans: Plans,
    now_us: int,
) -> None:
    rows = [
        (
            changes.flow, changes.topic, state.key_hash(reread.key), *reread.change[3:6],
            plan_of(plans, changes).name, reread.key.decode(), reread.reason, now_us,
        )
        for changes, reread in rereads
    ]  # fmt: skip
    if rows:
        dialect.put(connection, state.NOTE, rows)


def move_checkpoints(
    connection: Connection, dialect: Dialect, begun: Begun, batch: Batch, now_us: int
) -> None:
    if begun.moves:
        buried: dict[Place, Version] = {}
        for changes, folds in begun.work:
            for fold in folds:
                place = Place(changes.flow, changes.topic, fold.partition)
                found = [write.change.version for write in fold.deletes.values()]
                buried[place] = max([buried.get(place, BOTTOM), *found])
        state.move(connection, dialect, begun.moves, begun.stands, buried, batch.cluster_id, now_us)
