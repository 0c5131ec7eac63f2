"""What a table's floor and the tombstones of its keys have outlived (H5). Inside the rows' transaction.

A truncate is one event in one partition. It raises the table's floor: rows at or below it go, and events
at or below it are dropped, now and later. Tombstones do the same for single keys.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, bindparam, delete, select, tuple_

from consumers.apply.checkpoint import Place
from consumers.apply.fold import BOTTOM, PartitionFold, Version
from consumers.targets import sql_parked as parked
from consumers.targets import sql_state as state
from consumers.targets import sql_versions as side
from consumers.targets.ahead import rows_ahead
from consumers.targets.base import Batch, FlowError, TableChanges
from consumers.targets.sql_dialect import Dialect
from consumers.targets.sql_plans import Plan
from consumers.targets.sql_types import time_text
from streamer.errors import ConfigError

_BURIED = select(state.tombstones.c.epoch, state.tombstones.c.lsn, state.tombstones.c.ordinal).where(
    *(state.tombstones.c[name] == bindparam(name) for name in (*Place._fields, "key_hash"))
)


def drop_gone(
    connection: Connection,
    changes: TableChanges,
    folds: list[PartitionFold],
    floor: Version,
    stands: Mapping[Place, state.Stand],
) -> int:
    """How many writes were dropped."""
    dropped = 0
    for fold in folds:
        if floor > BOTTOM:
            dropped += fold.drop_to(floor)
        place = Place(changes.flow, changes.topic, fold.partition)
        if place in stands and stands[place].buried > BOTTOM:
            dropped += _drop_buried(connection, place, fold, stands[place].buried)
    return dropped


def _drop_buried(connection: Connection, place: Place, fold: PartitionFold, highest: Version) -> int:
    dropped = 0
    for part in (fold.rows, fold.creates, fold.patches):
        for key in [key for key, write in part.items() if write.change[3:6] <= highest]:
            stored = buried(connection, place, key)
            if stored is not None and part[key].change[3:6] < stored:
                del part[key]
                fold.rereads.pop(key, None)
                dropped += 1
    return dropped


def buried(connection: Connection, place: Place, key: bytes) -> Version | None:
    """The version of the key's delete."""
    row = connection.execute(_BURIED, {**place._asdict(), "key_hash": state.key_hash(key)}).first()
    return None if row is None else (row[0], row[1], row[2])


def check(connection: Connection, changes: TableChanges, plan: Plan, floors: Mapping[str, Version]) -> None:
    """Without versions a truncate cannot tell older rows of other partitions from newer ones (H5)."""
    if changes.floor <= floors.get(plan.name.lower(), BOTTOM) or plan.flow.version != "none":
        return
    partitions = state.partitions(connection, changes.flow, changes.topic)
    if partitions > 1:
        error = ConfigError(
            "a truncate of the source's table cannot be applied under version: none: its topic has"
            f" {partitions} partitions, and rows that came after it look like those from before",
            where=f"flow {changes.flow!r}, target table {plan.name},"
            f" {changes.topic}[{changes.floor_partition}]",
            fix="write version: side or version: columns; or empty the table by hand and write"
            " truncate: ignore",
        )
        raise FlowError(changes.flow, error)


def count_below(connection: Connection, changes: TableChanges, plan: Plan) -> int:
    """Rows that the changes' floor would take."""
    kept = _kept(connection, changes, None, ())
    if plan.flow.version == "side":
        return side.count_below(connection, plan, changes.floor, kept)
    guard = changes.floor if plan.guards_in_row else ()
    statement, fixed = plan.count_below_sql(side.spare(connection, plan, kept) if kept else "")
    found = int(connection.exec_driver_sql(statement, (*fixed, *guard)).scalar_one())
    if kept:
        side.forget_spared(connection)
    return found


def _kept(
    connection: Connection, changes: TableChanges, batch: Batch | None, lost: Collection[Place]
) -> list[dict[str, Any]]:
    """Keys whose rows stay."""
    stored = parked.keys_above(connection, changes.flow, changes.topic, changes.floor)
    return rows_ahead(changes, stored, batch, lost)


def raise_floor(
    connection: Connection,
    dialect: Dialect,
    changes: TableChanges,
    plan: Plan,
    floors: Mapping[str, Version],
    batch: Batch,
    lost: Collection[Place],
) -> None:
    """`batch`: what it parks is passed over, too."""
    name = plan.name.lower()
    if changes.floor <= floors.get(name, BOTTOM):
        return
    dialect.put(connection, state.FLOOR, [(name, *changes.floor)])
    kept = _kept(connection, changes, batch, lost)
    if plan.flow.version == "side":
        side.drop_to(connection, plan, changes.floor, changes.floor_us, kept)
    else:
        statement, fixed = plan.below_sql(side.spare(connection, plan, kept) if kept else "")
        soft = plan.fitted.mapping.soft_delete
        at = () if soft is None else (time_text(changes.floor_us),)
        guard = changes.floor if plan.guards_in_row else ()
        connection.exec_driver_sql(statement, (*at, *fixed, *guard))
        if kept:
            side.forget_spared(connection)
    noted = state.needs_reread
    version = tuple_(noted.c.epoch, noted.c.lsn, noted.c.ordinal)
    connection.execute(
        delete(noted).where(noted.c.table_name == plan.name, version <= tuple_(*changes.floor))
    )
