"""Columns that flows have had in the tables of a sql target: which of the missing ones are lost.

    _tailrace_columns   (flow, table, column): what the flow writes, as it last found the table

The rule is that of postgres_columns: one that the source has got meanwhile is added to the table, one that
was there before is not. Names are kept in lower case, as SQLite ignores case. Owns what is noted of that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import Column, ColumnElement, Connection, Table, Text, delete, insert, select

from consumers.targets.sql_state import meta

columns = Table(
    "_tailrace_columns",
    meta,
    *(Column(name, Text, primary_key=True) for name in ("flow", "table_name", "column_name")),
)


def lost(connection: Connection, flow: str, table: str, missing: Sequence[str]) -> list[str]:
    """Of columns that the table does not have, those that it had."""
    had = _had(connection, flow, table)
    return [name for name in missing if name.lower() in had]


def note(
    connection: Connection, flow: str, table: str, written: Collection[str], has: Collection[str]
) -> None:
    """`written`: by the flow. `has`: all that the table has."""
    had, there = _had(connection, flow, table), {name.lower() for name in has}
    # What neither the flow writes nor the table has may come back as the source's, and is then another one.
    if gone := had - there:
        named = columns.c.column_name.in_(sorted(gone))
        connection.execute(delete(columns).where(*_of(flow, table), named))
    names = {"flow": flow, "table_name": table.lower()}
    rows = [names | {"column_name": name} for name in sorted({name.lower() for name in written} - had)]
    if rows:
        connection.execute(insert(columns), rows)


def _had(connection: Connection, flow: str, table: str) -> set[str]:
    rows = connection.execute(select(columns.c.column_name).where(*_of(flow, table)))
    return {row.column_name for row in rows}


def _of(flow: str, table: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return columns.c.flow == flow, columns.c.table_name == table.lower()
