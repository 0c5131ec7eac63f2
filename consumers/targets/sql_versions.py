"""Versions beside the rows (`version: side`): one row a key in `_tailrace_versions`.

Read and written in the rows' transaction, which has the write lock: what is not newer then is written.
The key stands there as in Kafka, so that a floor can tell which rows of the table it spares.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from orjson import loads
from sqlalchemy import Connection, bindparam, delete, select, tuple_

from consumers.apply.fold import Version, Write
from consumers.targets import sql_state as state
from consumers.targets.sql_plans import Plan, Sent
from consumers.targets.sql_types import time_text
from streamer.errors import BadRecordError

_TABLE = state.versions
_STORED = tuple_(_TABLE.c.epoch, _TABLE.c.lsn, _TABLE.c.ordinal)
_AT_KEY = (_TABLE.c.table_name == bindparam("b_table"), _TABLE.c.key_hash == bindparam("b_key"))
_READ = select(_TABLE.c.epoch, _TABLE.c.lsn, _TABLE.c.ordinal).where(*_AT_KEY)
_SPARED = "_tailrace_spared"

Keyed = list[tuple[bytes, Write]]
KeyRows = Sequence[dict[str, Any]]  # the key's columns, by the source's names


def not_newer(connection: Connection, plan: Plan, items: Keyed) -> tuple[Keyed, int]:
    """What may be written, and how many not."""
    cursor = connection.connection.cursor()
    compiled = _READ.compile(dialect=plan.dialect.core)
    assert compiled.positiontup == ["b_table", "b_key"]
    statement, name = str(compiled), plan.name.lower()
    free = []
    for key, write in items:
        stored = cursor.execute(statement, (name, state.key_hash(key))).fetchone()
        if stored is None or stored <= write.change[3:6]:
            free.append((key, write))
    cursor.close()
    return free, len(items) - len(free)


def stored(connection: Connection, plan: Plan, key: bytes) -> Version | None:
    """The version that is noted of a key."""
    at = {"b_table": plan.name.lower(), "b_key": state.key_hash(key)}
    row = connection.execute(_READ, at).first()
    return None if row is None else (row[0], row[1], row[2])


def written(connection: Connection, plan: Plan, items: Keyed) -> None:
    name = plan.name.lower()
    rows = [(name, state.key_hash(key), *write.change[3:6], key) for key, write in items]
    if rows:
        plan.dialect.put(connection, state.VERSION, rows)


def deleted(connection: Connection, plan: Plan, items: Keyed) -> None:
    """A row that is gone has its tombstone; one that stays, marked, keeps its version."""
    if plan.fitted.mapping.soft_delete is not None:
        written(connection, plan, items)
        return
    name = plan.name.lower()
    keys = [{"b_table": name, "b_key": state.key_hash(key)} for key, _ in items]
    if keys:
        connection.execute(delete(_TABLE).where(*_AT_KEY), keys)


def drop_to(connection: Connection, plan: Plan, floor: Version, at_us: int, kept: KeyRows) -> None:
    """Rows go that have no version above the floor, also those that were there before the flow, and those
    of `kept` keys stay."""
    mine = _TABLE.c.table_name == plan.name.lower()
    quote = plan.dialect.core.identifier_preparer.quote
    where, values = _not_spared(connection, plan, floor, kept)
    soft = plan.fitted.mapping.soft_delete
    if soft is None:
        connection.exec_driver_sql(f"DELETE FROM {quote(plan.name)} WHERE {where}", values)
    else:
        marks = f"UPDATE {quote(plan.name)} SET {quote(soft)} = ? WHERE {quote(soft)} IS NULL AND {where}"
        connection.exec_driver_sql(marks, (time_text(at_us), *values))
    forget_spared(connection)
    connection.execute(delete(_TABLE).where(mine, tuple_(*floor) >= _STORED))


def count_below(connection: Connection, plan: Plan, floor: Version, kept: KeyRows) -> int:
    """How many rows that is."""
    quote = plan.dialect.core.identifier_preparer.quote
    where, values = _not_spared(connection, plan, floor, kept)
    soft = plan.fitted.mapping.soft_delete
    live = "" if soft is None else f"{quote(soft)} IS NULL AND "
    count = f"SELECT count(*) FROM {quote(plan.name)} WHERE {live}{where}"
    found = connection.exec_driver_sql(count, values).scalar_one()
    forget_spared(connection)
    return int(found)


def _not_spared(
    connection: Connection, plan: Plan, floor: Version, kept: KeyRows
) -> tuple[str, tuple[Any, ...]]:
    """A condition on rows that have no version above the floor, and its values. It needs the temporary table
    of the others' keys, which this makes."""
    above = tuple_(*floor) < _STORED
    mine = _TABLE.c.table_name == plan.name.lower()
    versioned = connection.execute(select(_TABLE.c.key).where(mine, above)).scalars()
    where = spare(connection, plan, [*map(loads, versioned), *kept])
    quote = plan.dialect.core.identifier_preparer.quote
    fixed = [sent for sent in plan.key if sent.source is None]
    where += "".join(f" AND {quote(s.name)} = ?" for s in fixed)
    return where, tuple(s.encode([None])[0] for s in fixed)


def spare(connection: Connection, plan: Plan, rows: KeyRows) -> str:
    """A condition on rows of other keys than these. It needs a temporary table, until `forget_spared`."""
    quote = plan.dialect.core.identifier_preparer.quote
    columns = [sent for sent in plan.key if sent.source is not None]
    names = ", ".join(quote(sent.name) for sent in columns)
    connection.exec_driver_sql(f"CREATE TEMP TABLE {_SPARED} ({names}, PRIMARY KEY ({names}))")
    values = [found for row in rows if (found := _values(columns, row)) is not None]
    if values:
        marks = ", ".join("?" * len(columns))
        connection.exec_driver_sql(f"INSERT OR IGNORE INTO temp.{_SPARED} VALUES ({marks})", values)
    same = " AND ".join(f"{quote(plan.name)}.{quote(s.name)} = s.{quote(s.name)}" for s in columns)
    return f"NOT EXISTS (SELECT 1 FROM {_SPARED} AS s WHERE {same})"


def _values(columns: Iterable[Sent], row: dict[str, Any]) -> tuple[Any, ...] | None:
    """None: the target's types do not hold such a key, and so no row has it."""
    try:
        return tuple(sent.encode([row.get(sent.source or "")])[0] for sent in columns)
    except BadRecordError:
        return None


def forget_spared(connection: Connection) -> None:
    connection.exec_driver_sql(f"DROP TABLE temp.{_SPARED}")
