"""What a table's floor and the tombstones of its keys have outlived (H5). Inside the rows' transaction.

A truncate is one event in one partition. It raises the table's floor: rows at or below it go, and events
at or below it are dropped, now and later. Tombstones do the same for single keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from psycopg import errors

from consumers.apply.checkpoint import Place
from consumers.apply.fold import BOTTOM, PartitionFold, Version
from consumers.targets import postgres_parked as parked
from consumers.targets import postgres_state as state
from consumers.targets.ahead import rows_ahead
from consumers.targets.base import Batch, FlowError, Outcome, TableChanges
from consumers.targets.postgres_memory import Memory
from consumers.targets.postgres_plans import Plan
from streamer.errors import BadRecordError, ConfigError

Plans = Mapping[tuple[str, str, str], Plan]
Work = list[tuple[TableChanges, list[PartitionFold]]]
Floors = Mapping[tuple[str, str], Version]
Kept = Mapping[tuple[str, str], list[str]]  # by flow and topic: the keys that a floor passes over, as arrays


async def drop_gone(
    connection: state.Connection,
    changes: TableChanges,
    folds: list[PartitionFold],
    floors: Floors,
    memory: Memory,
    outcome: Outcome,
) -> None:
    """Drop what a floor or a tombstone of a higher version has outlived (H5)."""
    floor = floors.get((changes.schema, changes.table), BOTTOM)
    dropped = 0
    for fold in folds:
        if floor > BOTTOM:
            dropped += fold.drop_to(floor)
        highest = memory.buried.get((changes.flow, changes.topic, fold.partition))
        if highest is not None:
            dropped += await _drop_buried(connection, changes, fold, highest)
    if dropped:
        outcome.guarded[changes.flow] = outcome.guarded.get(changes.flow, 0) + dropped


async def _drop_buried(
    connection: state.Connection, changes: TableChanges, fold: PartitionFold, highest: Version
) -> int:
    dropped = 0
    for part in (fold.rows, fold.creates, fold.patches):
        suspects = {state.key_hash(k): k for k, write in part.items() if write.change[3:6] <= highest}
        if not suspects:
            continue
        found = await connection.execute(
            state.BURIED, (changes.flow, changes.topic, fold.partition, list(suspects)), prepare=True
        )
        for uuid, *version in await found.fetchall():
            key = suspects[str(uuid).replace("-", "")]
            if part[key].change[3:6] < tuple(int(str(v)) for v in version):
                del part[key]
                fold.rereads.pop(key, None)
                dropped += 1
    return dropped


def is_raised(changes: TableChanges, floors: Floors, lost: set[Place]) -> bool:
    place = Place(changes.flow, changes.topic, changes.floor_partition)
    return changes.floor > floors.get((changes.schema, changes.table), BOTTOM) and place not in lost


async def raise_floor(
    connection: state.Connection,
    changes: TableChanges,
    floors: Floors,
    plans: Plans,
    lost: set[Place],
    kept: Kept,
) -> None:
    if not is_raised(changes, floors, lost):
        return
    plan = plans[changes.schema, changes.table, changes.record.id]
    await connection.execute(state.RAISE_FLOOR, (changes.schema, changes.table, *changes.floor), prepare=True)
    parameters = *changes.floor, changes.floor_us, *kept[changes.flow, changes.topic]
    for statement in plan.below_sql:
        await connection.execute(statement, parameters, prepare=True)
    place = changes.schema, changes.table, *changes.floor
    await connection.execute(state.FORGET_REREADS, place, prepare=True)


async def keys_kept(
    connection: state.Connection, changes: TableChanges, plan: Plan, batch: Batch | None, lost: set[Place]
) -> list[str]:
    """Arrays of the keys that the floor of `changes` passes over. `batch`: what it parks counts, too."""
    stored = await parked.keys_above(connection, changes.flow, changes.topic, changes.floor)
    rows = rows_ahead(changes, stored, batch, lost)
    rows = [row for row in rows if all(row.get(column.source) is not None for column in plan.key)]
    found = await fitting(connection, plan, rows)
    if found is None:  # a key that the target's types do not hold is that of no row
        rows = [row for row in rows if await fitting(connection, plan, [row]) is not None]
        found = plan.key_literals(rows)
    return found


async def fitting(connection: state.Connection, plan: Plan, rows: list[dict[str, Any]]) -> list[str] | None:
    """The arrays, when all these keys are of the target's types."""
    try:
        literals = plan.key_literals(rows)
        if rows and plan.key:
            async with connection.transaction():  # inside another one it is a savepoint
                await connection.execute(plan.given_keys_sql, literals)
    except (BadRecordError, errors.DataError):
        return None
    return literals


async def count_below(connection: state.Connection, changes: TableChanges, plan: Plan, limit: int) -> int:
    """Rows that the changes' floor would take. Reads the table, as the floor itself does."""
    kept = await keys_kept(connection, changes, plan, None, set())
    found = await connection.execute(plan.count_below_sql, (*changes.floor, limit, *kept))
    row = await found.fetchone()
    return int(str(row[0])) if row else 0


async def check_floors(
    connection: state.Connection,
    work: Work,
    floors: Floors,
    plans: Plans,
) -> None:
    """Without versions a truncate cannot tell older rows of other partitions from newer ones (H5)."""
    for changes, _ in work:
        known = floors.get((changes.schema, changes.table), BOTTOM)
        if (
            changes.floor <= known
            or plans[changes.schema, changes.table, changes.record.id].version != "none"
        ):
            continue
        cursor = await connection.execute(state.COUNT_PARTITIONS, (changes.flow, changes.topic))
        row = await cursor.fetchone()
        if row and int(str(row[0])) > 1:
            error = ConfigError(
                "a truncate of the source's table cannot be applied under version: none: its topic has"
                f" {row[0]} partitions, and rows that came after it look like those from before",
                where=f"flow {changes.flow!r}, target table {changes.schema}.{changes.table},"
                f" {changes.topic}[{changes.floor_partition}]",
                fix="write version: side or version: columns; or empty the table by hand and write"
                " truncate: ignore",
            )
            raise FlowError(changes.flow, error)
