"""Makes a flow's table fit one version of its rows: made, completed by columns, or checked.

There are no schemas: a table has the name that the flow gives it or that it has in the source, and two
topics that would meet under one name are refused, also when their names differ in case only. Made columns
are nullable except the key. Constraints of a table that is there are never dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BLOB,
    INTEGER,
    REAL,
    TEXT,
    Column,
    Connection,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from consumers.apply.mapping import OWN_PREFIX, MappedColumn, map_columns
from consumers.apply.mapping import Mapping as Columns
from consumers.targets import sql_columns as had
from consumers.targets import sql_state as state
from consumers.targets.base import ColumnLost, TableLost
from consumers.targets.marked import refusal
from consumers.targets.sql_dialect import Dialect, TableColumn, UniqueIndex
from consumers.targets.sql_types import SOFT_DELETE, ColumnType, Stored, cast_to, constant, stored_as
from streamer.changes.marked import holds_marked
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.errors import ConfigError
from streamer.resetting import reset_steps

VERSION = ("_tailrace_epoch", "_tailrace_lsn", "_tailrace_ordinal")
OP = "_tailrace_op"
_TYPES: dict[ColumnType, Any] = {"INTEGER": INTEGER, "REAL": REAL, "TEXT": TEXT, "BLOB": BLOB}


@dataclass(frozen=True, slots=True)
class Fitted:
    """`stored`: by the target's column; `conflict`: columns of the index that finds a row; `kept`: columns
    that the flow does not send; `unique`: sent columns that other unique indexes hang on."""

    name: str
    mapping: Columns
    columns: dict[str, TableColumn]
    stored: dict[str, Stored]
    conflict: tuple[str, ...]
    kept: tuple[str, ...]
    unique: tuple[str, ...]


def fit_table(
    connection: Connection,
    dialect: Dialect,
    flow: Flow,
    record: SchemaRecord,
    topic: str,
    name: str,
    *,
    remake: bool,
) -> Fitted:
    """In a transaction, as SQLite's DDL may be. Raises ConfigError for what does not fit, and TableLost for
    a table that was there, or a column of it, unless `remake`."""
    where = f"flow {flow.name!r}, target table {name}"
    _check_flow(flow, record, where)
    if name.lower().startswith((OWN_PREFIX, "sqlite_")):
        raise ConfigError(
            "the name is one of the target's own", where=where, fix=f"write `to: {flow.target}.main.NAME`"
        )
    _take_name(connection, flow, topic, name, where)
    name = _spelt(connection, name, where)
    columns = dialect.columns(connection, name)
    mapping = map_columns(flow, record, _known_as(flow, record, columns) if columns else None)
    _check_case(mapping, where)
    stored = {c.name: _stored(c, where) for c in mapping.columns}
    wanted = _wanted(flow, mapping, stored)
    if not columns:
        if not remake and (epoch := state.written_epoch(connection, flow.name, topic)):
            raise TableLost(flow, topic, name, epoch, where=f"flow {flow.name!r}, target {flow.target!r}")
        _create(connection, dialect, flow, mapping, name, wanted)
    else:
        adds = _adds(dialect, columns, name, wanted)
        if not remake:
            _check_lost(connection, flow, topic, name, adds)
        for statement in adds.values():
            connection.exec_driver_sql(statement)
    if flow.write == "append" and flow.version == "columns":
        _ensure_history(connection, dialect, mapping, name)
    columns = dialect.columns(connection, name)
    by_lower = {known.lower(): column for known, column in columns.items()}
    for mapped in mapping.columns:
        column = by_lower[mapped.name.lower()]
        _check_column(dialect, flow, mapping, name, column, mapped, stored[mapped.name], where)
    indexes = [i for i in dialect.unique_indexes(connection, name) if not i.name.startswith(OWN_PREFIX)]
    _check_same_key(flow, mapping, name, by_lower, [index.columns for index in indexes if index.whole], where)
    _check_required(flow, by_lower, wanted, where)
    mapping = _without_generated(mapping, by_lower, where)
    conflict = _find_key(flow, mapping, name, [index.columns for index in indexes if index.whole], where)
    sent = {c.lower() for c in wanted}
    kept = tuple(c for lower, c in ((k, v.name) for k, v in by_lower.items()) if lower not in sent)
    kept = tuple(c for c in kept if not by_lower[c.lower()].generated)
    if mapping.soft_delete:
        _check_marked(mapping, name, indexes, conflict, mapping.soft_delete, where)
    had.note(connection, flow.name, name, wanted, by_lower)
    inside = {c.lower() for c in conflict}
    others = {c for index in indexes if not index.whole or index.columns != inside for c in index.columns}
    unique = tuple(c.name for c in mapping.columns if c.name.lower() in others - inside)
    return Fitted(name, mapping, by_lower, stored, conflict, kept, unique)


def _take_name(connection: Connection, flow: Flow, topic: str, name: str, where: str) -> None:
    row = connection.execute(
        select(state.tables.c.topic).where(state.tables.c.table_name == name.lower())
    ).scalar()
    if row is None:
        connection.execute(insert(state.tables), {"table_name": name.lower(), "topic": topic})
    elif row != topic:
        raise ConfigError(
            f"it holds the rows of {row}, and {topic} would be written to it too: there are no schemas here",
            where=where,
            fix=f"give one of them a flow and a name of its own: `to: {flow.target}.main.NAME`; when the"
            f" other one is given up: DELETE FROM _tailrace_tables WHERE table_name = '{name.lower()}';",
        )


def _spelt(connection: Connection, name: str, where: str) -> str:
    """The name of a table that is there, which may differ in case."""
    inspector = inspect(connection)
    if name.lower() in (view.lower() for view in inspector.get_view_names()):
        raise ConfigError("it is a view", where=where, fix="send the flow to a table of another name")
    there = {table.lower(): table for table in inspector.get_table_names()}
    return there.get(name.lower(), name)


def _known_as(flow: Flow, record: SchemaRecord, columns: Mapping[str, TableColumn]) -> Collection[str]:
    """The table's columns, in the spelling of the flow where only the case differs."""
    lower = {name.lower() for name in columns}
    spelt = {column.name for column in record.columns} | set(flow.columns)
    spelt |= {rule if isinstance(rule, str) else rule.to or "" for rule in flow.columns.values()}
    if flow.delete.startswith("soft("):
        spelt.add(flow.delete[len("soft(") : -1].strip())
    return {name for name in spelt if name.lower() in lower} | set(columns)


def _check_flow(flow: Flow, record: SchemaRecord, where: str) -> None:
    keyless = not record.key_columns
    if flow.version == "side" and (flow.write == "append" or keyless):
        why = "write: append keeps the version in each row" if flow.write == "append" else "there is no key"
        fix = "write version: columns"
        raise ConfigError(f"version: side finds versions by the key, and {why}", where=where, fix=fix)
    if flow.delete.startswith("soft") and keyless:
        what = f"delete: {flow.delete} marks a row by its key, and the source's table has none"
        raise ConfigError(
            what, where=where, fix="write delete: apply or ignore, or give the source's table a key"
        )


def _check_case(mapping: Columns, where: str) -> None:
    seen: dict[str, str] = {}
    for column in mapping.columns:
        other = seen.setdefault(column.name.lower(), column.name)
        if other != column.name:
            raise ConfigError(
                f"the columns {other!r} and {column.name!r} are one to SQLite, which ignores case",
                where=where,
                fix="give one of them another name under `columns`",
            )


def _stored(mapped: MappedColumn, where: str) -> Stored:
    if mapped.column is None:
        kind, value = constant(mapped.value)
        return Stored(kind, "a constant", lambda values: [value] * len(values))
    if mapped.cast is not None:
        return cast_to(mapped.cast, mapped.column.kind, where=f"{where}, column {mapped.name!r}")
    return stored_as(mapped.column.kind)


# Making


def _wanted(flow: Flow, mapping: Columns, stored: Mapping[str, Stored]) -> dict[str, Column[Any]]:
    """Every column that the flow writes, as it would be made."""
    found: dict[str, Column[Any]] = {
        c.name: Column(c.name, _TYPES[stored[c.name].type], nullable=not c.key) for c in mapping.columns
    }
    if mapping.soft_delete:
        found[mapping.soft_delete] = Column(mapping.soft_delete, _TYPES[SOFT_DELETE])
    if flow.version == "columns":
        for name in VERSION:
            found[name] = Column(name, INTEGER, nullable=False, server_default=text("0"))
        if flow.write == "append":
            found[OP] = Column(OP, TEXT, nullable=False, server_default=text("''"))
    return found


def _create(
    connection: Connection,
    dialect: Dialect,
    flow: Flow,
    mapping: Columns,
    name: str,
    wanted: dict[str, Column[Any]],
) -> None:
    key = mapping.key_columns if flow.write != "append" else ()
    table = Table(name, MetaData(), *wanted.values())
    if key:
        table.append_constraint(PrimaryKeyConstraint(*(table.c[column] for column in key)))
    connection.exec_driver_sql(str(CreateTable(table).compile(dialect=dialect.core)))


def _adds(
    dialect: Dialect, columns: Mapping[str, TableColumn], name: str, wanted: Mapping[str, Column[Any]]
) -> dict[str, str]:
    """What the table does not have -> the statement that adds it."""
    there = {known.lower() for known in columns}
    quoted = dialect.core.identifier_preparer.quote(name)
    found = {}
    for column in wanted.values():
        if column.name.lower() not in there:
            column.nullable = column.nullable or column.server_default is None
            Table(name, MetaData(), column)
            ddl = str(CreateColumn(column).compile(dialect=dialect.core))
            found[column.name] = f"ALTER TABLE {quoted} ADD COLUMN {ddl}"
    return found


def _check_lost(connection: Connection, flow: Flow, topic: str, name: str, adds: Mapping[str, str]) -> None:
    """Raises ColumnLost. Those of the version may come anew: a row without one is older than every event."""
    missing = [column for column in adds if column not in (*VERSION, OP)]
    if not missing or not (epoch := state.written_epoch(connection, flow.name, topic)):
        return
    if lost := had.lost(connection, flow.name, name, missing):
        add = " ".join(f"{adds[column]};" for column in lost)
        where = f"flow {flow.name!r}, target {flow.target!r}"
        raise ColumnLost(flow, topic, name, lost, add, epoch, where=where)


def history_key(mapping: Columns) -> tuple[str, ...]:
    return (*mapping.key_columns, *VERSION)


def history_where(mapping: Columns) -> str:
    """Rows of a first copy share one version, so that without a key they cannot be told apart."""
    return f"{VERSION[0]} > 0" if mapping.key_columns else f"{VERSION[0]} > 0 AND {OP} <> 'r'"


def _ensure_history(connection: Connection, dialect: Dialect, mapping: Columns, name: str) -> None:
    """Each event once; rows that were there before have no version."""
    index_name = f"_tailrace_history_{name}"
    if any(index.name == index_name for index in dialect.unique_indexes(connection, name)):
        return
    table = Table(name, MetaData(), *(Column(column) for column in history_key(mapping)))
    index = Index(index_name, *table.columns, unique=True, sqlite_where=text(history_where(mapping)))
    connection.exec_driver_sql(str(CreateIndex(index).compile(dialect=dialect.core)))


# Checking


def _check_column(
    dialect: Dialect,
    flow: Flow,
    mapping: Columns,
    table: str,
    column: TableColumn,
    mapped: MappedColumn,
    stored: Stored,
    where: str,
) -> None:
    if column.generated or mapped.column is None:
        return
    why = dialect.why_unfit(stored, column)
    if why is not None:
        source = mapped.column
        raise ConfigError(
            f"column {column.name!r} is {column.declared}, which {why}: the source's {source.type} is kept"
            f" as {stored.type}",
            where=where,
            fix=f"`{source.name}: {{to: {mapped.name}, cast: real}}` under flows.{flow.name}.columns, when"
            f" that loss is meant; or make the column {stored.type}: of a table that Tailrace made,"
            f" DROP TABLE {_quoted(table)}; and {reset_steps(mapping.record.source)}",
        )


def _check_same_key(
    flow: Flow,
    mapping: Columns,
    name: str,
    columns: Mapping[str, TableColumn],
    indexes: Sequence[frozenset[str]],
    where: str,
) -> None:
    """Raises ConfigError for a table of another key, which no further index would make fit."""
    key = frozenset(column.lower() for column in mapping.key_columns)
    sent = {column.name.lower() for column in mapping.columns}
    if flow.write == "append" or not key or any(key <= index <= sent for index in indexes):
        return
    for index in indexes:
        lacking = [c.name for lower, c in columns.items() if lower in index - sent and _must_be_sent(c)]
        if lacking or index < key:
            theirs = ", ".join(column.name for lower, column in columns.items() if lower in index)
            other = f"`{lacking[0]}: {{value: ...}}` under flows.{flow.name}.columns, or " if lacking else ""
            raise ConfigError(
                f"its key is ({theirs}), and the flow's is ({', '.join(mapping.key_columns)})",
                where=where,
                fix=f"when the source's key has changed: DROP TABLE {_quoted(name)}; and"
                f" {reset_steps(mapping.record.source)}; else {other}a table of another name for the flow",
            )


def _check_marked(
    mapping: Columns,
    name: str,
    indexes: Sequence[UniqueIndex],
    conflict: Sequence[str],
    soft: str,
    where: str,
) -> None:
    """Raises ConfigError for a unique index in which a row that is deleted stands in another one's way."""
    sent, key = {column.name.lower() for column in mapping.columns}, {column.lower() for column in conflict}
    for index in indexes:
        if not holds_marked(index.columns, sent, key, index.predicate, soft):
            continue
        live = f"{_quoted(soft)} IS NULL"
        if index.definition:
            more = "AND" if index.predicate else "WHERE"
            cure = f"DROP INDEX {_quoted(index.name)}; {index.definition} {more} {live};"
        else:
            columns = ", ".join(map(_quoted, sorted(index.columns)))
            cure = (
                f"make {_quoted(name)} again without this UNIQUE, which SQLite cannot drop from a table, and"
                f" CREATE UNIQUE INDEX {_quoted(f'{name}_live')} ON {_quoted(name)} ({columns}) WHERE {live};"
            )
        raise refusal(index.name, index.columns, soft, cure, where)


def _must_be_sent(column: TableColumn) -> bool:
    return column.not_null and not column.has_default and not column.generated


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _check_required(
    flow: Flow, columns: Mapping[str, TableColumn], wanted: Collection[str], where: str
) -> None:
    sent = {name.lower() for name in wanted}
    for lower, column in columns.items():
        if _must_be_sent(column) and lower not in sent:
            raise ConfigError(
                f"column {column.name!r} must not be null and has no default, and the flow sends nothing for"
                " it",
                where=where,
                fix=f"give it a default, or a constant: `{column.name}: {{value: ...}}` under"
                f" flows.{flow.name}.columns",
            )


def _without_generated(mapping: Columns, columns: Mapping[str, TableColumn], where: str) -> Columns:
    left = []
    for mapped in mapping.columns:
        if not columns[mapped.name.lower()].generated:
            left.append(mapped)
        elif mapped.key:
            raise ConfigError(
                f"column {mapped.name!r} of the key is computed by the target",
                where=where,
                fix="send the flow to a table whose key is a column of its own",
            )
    return Columns(mapping.flow, mapping.record, tuple(left), mapping.soft_delete)


def _find_key(
    flow: Flow, mapping: Columns, name: str, indexes: list[frozenset[str]], where: str
) -> tuple[str, ...]:
    """The columns that find a row. Raises ConfigError."""
    key = frozenset(column.lower() for column in mapping.key_columns)
    constants = {column.name.lower(): column.name for column in mapping.columns if column.column is None}
    if flow.write == "append":
        one_a_key = [index for index in indexes if index <= key | constants.keys()]
        if one_a_key and key:
            raise ConfigError(
                "write: append keeps every change as a row, and a unique index allows one row a key",
                where=where,
                fix="send the history to a table of its own",
            )
        return history_key(mapping) if flow.version == "columns" else ()
    if not key:
        return ()
    fitting = [index for index in indexes if key <= index <= key | constants.keys()]
    if not fitting:
        columns = ", ".join(map(_quoted, mapping.key_columns))
        made = f"CREATE UNIQUE INDEX {_quoted(f'{name}_key')} ON {_quoted(name)} ({columns});"
        raise ConfigError(
            f"it has no unique index on the key ({', '.join(mapping.key_columns)})",
            where=where,
            fix=f"{made} when the source's key has changed: DROP TABLE {_quoted(name)}; and"
            f" {reset_steps(mapping.record.source)}",
        )
    shortest = min(fitting, key=len)
    return (*mapping.key_columns, *(constants[name] for name in sorted(shortest - key)))
