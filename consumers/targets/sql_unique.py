"""Rows that give unique values to each other in tables that were there already (H23).

Two rows swap an e-mail: whichever is written first meets the other's. Within a batch all rows whose
stored form is older leave their place before any takes another's. Across partitions one of them waits
(see consumers.apply.parking), and gives up the unique values that it is to lose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection

from consumers.apply.fold import Write
from consumers.targets.base import Parked
from consumers.targets.sql_dialect import Row
from consumers.targets.sql_plans import Plan, is_whole
from consumers.targets.sql_tables import VERSION
from streamer.changes.envelope import decode_value
from streamer.errors import BadRecordError

_MARK = "tailrace_unique"


def put(connection: Connection, plan: Plan, rows: list[Row]) -> int:
    """How many were written; the guard has kept the others out."""
    if not plan.fitted.unique or plan.flow.write != "upsert":
        return plan.dialect.put(connection, plan.shape, rows)
    connection.exec_driver_sql(f"SAVEPOINT {_MARK}")
    try:
        written = plan.dialect.put(connection, plan.shape, rows)
    except plan.dialect.errors as error:
        refusal = plan.dialect.refusal(error)
        if refusal is None or not refusal.unique:
            raise
        connection.exec_driver_sql(f"ROLLBACK TO {_MARK}")
        written = _put_apart(connection, plan, rows)
    connection.exec_driver_sql(f"RELEASE {_MARK}")
    return written


def _put_apart(connection: Connection, plan: Plan, rows: list[Row]) -> int:
    """All that are there are taken out, with what the flow does not send, and then all are put in."""
    at = {name: n for n, name in enumerate(plan.shape.columns)}
    key = [at[name] for name in plan.fitted.conflict]
    version = [at[name] for name in plan.shape.version]
    kept, stamps = plan.fitted.kept, plan.shape.version
    find = plan.find_sql(*stamps, *kept)
    cursor = connection.connection.cursor()
    quote = plan.dialect.core.identifier_preparer.quote
    same = " AND ".join(f"{quote(name)} = ?" for name in plan.fitted.conflict)
    going: list[Row] = []
    for row in rows:
        found = cursor.execute(find, tuple(row[n] for n in key)).fetchone()
        there = found is not None and len(kept) + len(stamps) > 0
        if there and found[: len(stamps)] > tuple(row[n] for n in version):
            continue
        if found is not None:
            cursor.execute(f"DELETE FROM {quote(plan.name)} WHERE {same}", tuple(row[n] for n in key))
        # What the target itself gives a column of a row that is made stays out of the statement.
        going.append(
            (found is not None, *row, *(found[len(stamps) :] if found is not None and there else ()))
        )
    names = plan.shape.columns
    for columns, wanted in ((names, False), ((*names, *kept), True)):
        listed = ", ".join(map(quote, columns))
        insert = f"INSERT INTO {quote(plan.name)} ({listed}) VALUES ({', '.join('?' * len(columns))})"
        cursor.executemany(insert, [row[1:] for row in going if row[0] is wanted])
    cursor.close()
    return len(going)


def give_way(
    connection: Connection, parks: Iterable[Parked], plans: Mapping[tuple[str, str, str], Plan]
) -> None:
    """Free the unique values of stored rows whose next change waits. Inside the rows' transaction."""
    for entry in parks:
        if not (entry.waiting and entry.decodes and "UNIQUE" in entry.code):
            continue
        change = decode_value(entry.payload, where="", offset=entry.offset)
        plan = plans.get((entry.place.flow, entry.place.topic, change.schema_id))
        if plan is None or change.after is None or not plan.fitted.unique:
            continue
        write = Write(change.after, change, entry.offset)
        try:
            at_key = plan.keys([write])[0]
        except BadRecordError:
            continue
        _leave(connection, plan, write, at_key)


def _leave(connection: Connection, plan: Plan, write: Write, at_key: Row) -> None:
    """Null in place of the values, or no row at all where nothing is lost by it: a whole one is to come."""
    version: tuple[Any, ...] = tuple(write.change[3:6]) if plan.guards_in_row else ()
    nulls: tuple[Any, ...] = (None,) * len(plan.fitted.unique)
    stamps: tuple[Any, ...] = ()
    if plan.guards_in_row:
        stored = connection.exec_driver_sql(plan.find_sql(*VERSION), at_key).first()
        if stored is None or tuple(stored) > version:
            return
        stamps = tuple(stored)  # stays as it is: the change has not been written
    connection.exec_driver_sql(f"SAVEPOINT {_MARK}")
    try:
        connection.exec_driver_sql(plan.patch_sql(plan.fitted.unique), (*nulls, *stamps, *at_key, *version))
    except plan.dialect.errors as error:
        if plan.dialect.refusal(error) is None:
            raise
        connection.exec_driver_sql(f"ROLLBACK TO {_MARK}")
        if not plan.fitted.kept and is_whole(write) and plan.fitted.mapping.soft_delete is None:
            connection.exec_driver_sql(plan.delete_sql(), (*at_key, *version))
    connection.exec_driver_sql(f"RELEASE {_MARK}")
