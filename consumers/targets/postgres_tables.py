"""Target tables made fit for a flow: made or completed from the schema record, or refused with the cure.

Tables are made with the source's types where the target knows them and text where it does not; missing
columns are added. A table that was there already keeps its types and constraints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from orjson import dumps

from consumers.apply.mapping import MappedColumn, map_columns
from consumers.apply.mapping import Mapping as Columns
from consumers.targets import postgres_columns as had
from consumers.targets import postgres_versions as versions
from consumers.targets.base import ColumnLost, TableLost
from consumers.targets.marked import refusal
from consumers.targets.postgres_catalog import (
    TargetColumn,
    TargetTable,
    casts_directly,
    listed,
    quote,
    read_table,
)
from consumers.targets.postgres_state import ENSURE_FLOOR, LOCK, Connection, written_epoch
from streamer.changes.fitting import fits_type
from streamer.changes.marked import holds_marked
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.errors import ConfigError
from streamer.postgres.identity import checked_at_once
from streamer.postgres.live_rows import of_live_rows
from streamer.resetting import reset_steps

VERSION_COLUMNS = {"_tailrace_epoch": "int", "_tailrace_lsn": "bigint", "_tailrace_ordinal": "bigint"}
OP_COLUMN = "_tailrace_op"  # of a history: c, u, d or r
SOFT_TYPE = "timestamp with time zone"
LOCK_TIMEOUT = "5s"  # ALTER TABLE must not hold up the table's readers behind a long one

_CUT = ("character varying", "bit varying")
_LENGTH = re.compile(r"\([0-9]+\)")
# Names of the source's objects, which another database may not have: they are kept as their text.
_OF_OBJECTS = re.compile(
    r"reg(class|collation|config|dictionary|namespace|oper|operator|proc|procedure|role|type|database)(\[\])*"
)
_TYPES = """SELECT format_type(to_regtype(x), -1), t.typname FROM unnest($1::text[]) WITH ORDINALITY s (x, i)
LEFT JOIN pg_type t ON t.oid = to_regtype(x) ORDER BY i"""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A table that takes the rows of one schema record."""

    table: TargetTable
    mapping: Columns
    casts: Mapping[str, str]  # target column -> what makes a value of the cast's type of the source's text
    conflict: tuple[str, ...]  # columns of the unique index that finds a row, constants among them
    side: int | None  # number of the table in the side table of versions


async def ensure_table(
    connection: Connection,
    schema: str,
    name: str,
    record: SchemaRecord,
    flow: Flow,
    own: tuple[MappedColumn, ...] = (),
    *,
    topic: str,
    remake: bool,
) -> Fitted:
    """The table, fit for the record's rows: made, or its missing columns added. Raises ConfigError, and
    TableLost for one that was there, or a column of it, unless `remake`.

    `own`: columns of a kind of target that makes more of a row; key columns among them follow the key.
    """
    _check_flow(flow, schema, name, record)
    known = await _known_types(connection, record, flow, own)
    table = await read_table(connection, schema, name)
    mapping = _mapped(flow, record, table, own)
    made = False
    if table is None or _missing(table, mapping, flow) or _lacks_history_index(table, mapping, flow):
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", (LOCK,))
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            table = await read_table(connection, schema, name)
            mapping = _mapped(flow, record, table, own)
            made = table is None
            if table is None:
                if not remake and (epoch := await written_epoch(connection, flow.name, topic)):
                    where = f"flow {flow.name!r}, target {flow.target!r}"
                    raise TableLost(flow, topic, f"{schema}.{name}", epoch, where=where)
                await _create(connection, schema, name, mapping, flow, known)
            else:
                if not remake:
                    await _check_lost(connection, table, mapping, flow, known, own, topic=topic)
                await _complete(connection, table, mapping, flow, known)
        table = await read_table(connection, schema, name)
    assert table is not None
    conflict = check_table(table, mapping, flow, known)
    casts = {c.name: await _cast(connection, c, known) for c in mapping.columns if c.cast is not None}
    await _check_constants(connection, table, mapping)
    side = await versions.ensure(connection, schema, name, made=made) if flow.version == "side" else None
    await connection.execute(ENSURE_FLOOR, (schema, name))
    await had.note(connection, flow.name, (schema, name), _wanted(mapping, flow), table.columns)
    return Fitted(table, mapping, casts, conflict, side)


def _mapped(
    flow: Flow, record: SchemaRecord, table: TargetTable | None, own: tuple[MappedColumn, ...]
) -> Columns:
    mapping = map_columns(flow, record, table.columns if table else None)
    return replace(mapping, columns=(*mapping.columns, *own))


def _check_flow(flow: Flow, schema: str, name: str, record: SchemaRecord) -> None:
    where = f"flow {flow.name!r}, target table {schema}.{name}"
    if flow.write == "append" and flow.version == "side":
        raise ConfigError(
            "write: append keeps the version in each row, which version: side does not",
            where=where,
            fix="write version: columns, or version: none for a history that a replay may double",
        )
    if flow.version == "side" and not record.key_columns:
        raise ConfigError(
            "version: side finds versions by the key, and the source's table has none",
            where=where,
            fix="write version: columns, or give the table a key in the source",
        )
    if flow.delete.startswith("soft") and not record.key_columns:
        raise ConfigError(
            f"delete: {flow.delete} marks a row by its key, and the source's table has none",
            where=where,
            fix="write delete: apply or ignore, or give the table a key in the source",
        )


async def _known_types(
    connection: Connection, record: SchemaRecord, flow: Flow, own: tuple[MappedColumn, ...]
) -> dict[str, str]:
    """Type -> typname in the target, of those of the record and of casts that it knows."""
    columns = [*record.columns, *(mapped.column for mapped in own if mapped.column is not None)]
    types = [column.type for column in columns if not _OF_OBJECTS.fullmatch(column.type)]
    types += [rule.cast for rule in flow.columns.values() if not isinstance(rule, str) and rule.cast]
    rows = await (await connection.execute(_TYPES, (types,))).fetchall()
    return {source: str(name) for source, (_, name) in zip(types, rows, strict=True) if name is not None}


async def _check_lost(
    connection: Connection,
    table: TargetTable,
    mapping: Columns,
    flow: Flow,
    known: Mapping[str, str],
    own: tuple[MappedColumn, ...],
    *,
    topic: str,
) -> None:
    """Raises ColumnLost. Those of the version may come anew: a row without one is older than every event. A
    key's is refused elsewhere, as its index is gone with it."""
    made = {*_own_columns(flow), *(column.name for column in own if column.key)}
    missing = [name for name in _missing(table, mapping, flow) if name not in made]
    if not missing or not (epoch := await written_epoch(connection, flow.name, topic)):
        return
    lost = await had.lost(connection, flow.name, (table.schema, table.name), missing)
    if lost:
        adds = ", ".join(f"ADD COLUMN {_definition(name, mapping, flow, known)}" for name in lost)
        add = f"ALTER TABLE {table.relation} {adds};"
        where = f"flow {flow.name!r}, target {flow.target!r}"
        raise ColumnLost(flow, topic, table.text, lost, add, epoch, where=where)


# Making


def _own_columns(flow: Flow) -> dict[str, str]:
    """Those that are ours, by name: what stands in the DDL behind the name."""
    if flow.version != "columns":
        return {}
    own = {name: f"{kind} NOT NULL DEFAULT 0" for name, kind in VERSION_COLUMNS.items()}
    if flow.write == "append":
        own[OP_COLUMN] = "text NOT NULL DEFAULT ''"
    return own


def _wanted(mapping: Columns, flow: Flow) -> list[str]:
    soft = [mapping.soft_delete] if mapping.soft_delete else []
    return [*(column.name for column in mapping.columns), *soft, *_own_columns(flow)]


def _missing(table: TargetTable, mapping: Columns, flow: Flow) -> list[str]:
    return [name for name in _wanted(mapping, flow) if name not in table.columns]


def _definition(name: str, mapping: Columns, flow: Flow, known: Mapping[str, str]) -> str:
    own = _own_columns(flow)
    if name in own:
        return f"{name} {own[name]}"
    if name == mapping.soft_delete:
        return f"{quote(name)} {SOFT_TYPE}"
    mapped = next(column for column in mapping.columns if column.name == name)
    return f"{quote(name)} {_made_type(mapped, known)}"


def _made_type(mapped: MappedColumn, known: Mapping[str, str]) -> str:
    # A name that to_regtype understands is a type's name and nothing else.
    if mapped.column is None:
        return _type_of(mapped.value)
    wanted = mapped.cast or mapped.column.type
    return wanted if wanted in known else "text"


def _type_of(value: Any) -> str:
    """The type of a column that is made for a constant."""
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "bigint"
    if isinstance(value, float):
        return "double precision"
    return "jsonb" if isinstance(value, list | dict) else "text"


async def _create(
    connection: Connection, schema: str, name: str, mapping: Columns, flow: Flow, known: Mapping[str, str]
) -> None:
    _check_casts(mapping, flow, known, f"flow {flow.name!r}, target table {schema}.{name}")
    parts = [_definition(n, mapping, flow, known) for n in _wanted(mapping, flow)]
    key = [*mapping.key_columns]
    if key and flow.write == "append":
        key = [*key, *VERSION_COLUMNS] if flow.version == "columns" else []
    if key:
        parts.append(f"PRIMARY KEY ({listed(key)})")
    query = "SELECT 1 FROM pg_namespace WHERE nspname = $1"
    if await (await connection.execute(query, (schema,))).fetchone() is None:
        await connection.execute(f"CREATE SCHEMA {quote(schema)}", prepare=False)
    relation = f"{quote(schema)}.{quote(name)}"
    await connection.execute(f"CREATE TABLE {relation} ({', '.join(parts)})", prepare=False)
    if not mapping.key_columns and flow.write == "append" and flow.version == "columns":
        await connection.execute(_history_index(relation, mapping), prepare=False)


async def _complete(
    connection: Connection, table: TargetTable, mapping: Columns, flow: Flow, known: Mapping[str, str]
) -> None:
    _check_casts(mapping, flow, known, f"flow {flow.name!r}, target table {table.text}")
    if missing := _missing(table, mapping, flow):
        adds = ", ".join(f"ADD COLUMN {_definition(n, mapping, flow, known)}" for n in missing)
        await connection.execute(f"ALTER TABLE {table.relation} {adds}", prepare=False)
    if _lacks_history_index(table, mapping, flow):
        await connection.execute(_history_index(table.relation, mapping), prepare=False)


def _history_index(relation: str, mapping: Columns) -> str:
    """Each event once; rows that were there before have no version. Those of a first copy share one
    version, so that without a key they cannot be told apart."""
    where = "_tailrace_epoch > 0" if mapping.key_columns else f"_tailrace_epoch > 0 AND {OP_COLUMN} <> 'r'"
    return f"CREATE UNIQUE INDEX ON {relation} ({listed(history_key(mapping))}) WHERE {where}"


def history_key(mapping: Columns) -> tuple[str, ...]:
    return (*mapping.key_columns, *VERSION_COLUMNS)


def _lacks_history_index(table: TargetTable, mapping: Columns, flow: Flow) -> bool:
    if flow.write != "append" or flow.version != "columns":
        return False
    wanted = frozenset(history_key(mapping))
    whole = bool(mapping.key_columns)
    return not any(
        (index.columns if index.columns else frozenset()) == wanted
        and (index.versioned or (index.whole and whole))
        for index in table.unique
    )


# Checking


def check_table(
    table: TargetTable, mapping: Columns, flow: Flow, known: Mapping[str, str]
) -> tuple[str, ...]:
    """The columns that find a row. Raises ConfigError for what does not fit."""
    where = f"flow {flow.name!r}, target table {table.text}"
    _check_casts(mapping, flow, known, where)
    for mapped in mapping.columns:
        _check_column(table, mapped, known, where)
    if mapping.soft_delete:
        _check_soft(table, mapping.soft_delete, where)
    _check_same_key(table, mapping, flow, where)
    _check_required(table, mapping, flow, where)
    if flow.write == "append":
        return history_key(mapping) if flow.version == "columns" else ()
    found_by = _find_key(table, mapping, where)
    if mapping.soft_delete:
        _check_marked(table, mapping, found_by, mapping.soft_delete, where)
    return found_by


def _check_marked(
    table: TargetTable, mapping: Columns, found_by: tuple[str, ...], soft: str, where: str
) -> None:
    """Raises ConfigError for a unique index in which a row that is deleted stands in another one's way."""
    sent = [column.name for column in mapping.columns]
    for index in table.unique:
        if index.columns >= set(found_by):
            continue
        if holds_marked(index.depends, sent, found_by, index.predicate, soft):
            place, how = (table.schema, table.name), (index.definition, index.predicate, index.constraint)
            cure = " ".join(of_live_rows(place, index.name, *how, soft))
            raise refusal(index.name, index.columns or index.depends, soft, cure, where)


def _check_same_key(table: TargetTable, mapping: Columns, flow: Flow, where: str) -> None:
    """Raises ConfigError for a table of another key, which no further index would make fit."""
    key, sent = frozenset(mapping.key_columns), frozenset(_wanted(mapping, flow))
    if flow.write == "append" or not key or any(key <= index.columns <= sent for index in table.unique):
        return
    for index in table.unique:
        columns = [c for c in table.columns.values() if c.name in index.columns]
        if not columns or not index.whole:
            continue
        given = {c.name for c in columns if not c.not_null or c.default or c.generated or c.identity}
        lacking = [c.name for c in columns if c.name not in sent | given]
        if lacking or index.columns < key:
            other = f"`{lacking[0]}: {{value: ...}}` under flows.{flow.name}.columns, or " if lacking else ""
            raise ConfigError(
                f"its key is ({', '.join(c.name for c in columns)}), and the flow's is"
                f" ({', '.join(mapping.key_columns)})",
                where=where,
                fix=f"when the source's key has changed: DROP TABLE {table.relation}; and"
                f" {reset_steps(mapping.record.source)}; else {other}a table of another name for the flow",
            )


def _find_key(table: TargetTable, mapping: Columns, where: str) -> tuple[str, ...]:
    key = frozenset(mapping.key_columns)
    if not key:
        return ()
    computed = [name for name in mapping.key_columns if table.columns[name].generated]
    if computed:
        raise ConfigError(
            f"column {computed[0]!r} of the key is computed by the target",
            where=where,
            fix="send the flow to a table whose key is a column of its own",
        )
    constants = frozenset(column.name for column in mapping.columns if column.column is None)
    fitting = sorted(
        (index for index in table.unique if index.whole and key <= index.columns <= key | constants),
        key=lambda index: len(index.columns),
    )
    found_by = fitting[0].columns if fitting else key
    late = [index for index in table.unique if index.deferrable and index.columns == found_by]
    if late:  # even beside another: ON CONFLICT takes every index on these columns
        place, columns = (table.schema, table.name), sorted(late[0].columns)
        raise ConfigError(
            f"its key {late[0].name} ({', '.join(columns)}) is deferrable, which an upsert cannot use",
            where=where,
            fix=f"as its owner run {checked_at_once(place, late[0].name, columns, primary=late[0].primary)}",
        )
    if fitting:
        return (*mapping.key_columns, *sorted(fitting[0].columns - key))
    outside = [name for name in table.partitioned_by if name not in key | constants]
    if outside:
        names = ", ".join(name or "an expression" for name in table.partitioned_by)
        raise ConfigError(
            f"it is partitioned by {names}, which the key ({', '.join(mapping.key_columns)}) does not hold,"
            " so that no unique index can find a row by its key",
            where=where,
            fix="make the partition's column part of the key in the source (REPLICA IDENTITY USING INDEX),"
            " partition the target by the key, or write `write: append`",
        )
    others = [index.name for index in table.unique]
    hint = f" (it has {', '.join(others)})" if others else ""
    raise ConfigError(
        f"it has no unique index on the key ({', '.join(mapping.key_columns)}){hint}",
        where=where,
        fix=f"when the source's table has got a key, or another one: DROP TABLE {table.relation}; and"
        f" {reset_steps(mapping.record.source)}; else CREATE UNIQUE INDEX ON {table.relation}"
        f" ({listed(mapping.key_columns)});",
    )


def _check_casts(mapping: Columns, flow: Flow, known: Mapping[str, str], where: str) -> None:
    for column in mapping.columns:
        if column.cast is not None and column.cast not in known:
            assert column.column is not None
            raise ConfigError(
                f"the target has no type {column.cast!r}, which column {column.column.name!r} is cast to",
                where=where,
                fix=f"correct `cast` under flows.{flow.name}.columns, or make the type in the target",
            )


def _check_column(table: TargetTable, mapped: MappedColumn, known: Mapping[str, str], where: str) -> None:
    target = table.columns[mapped.name]
    if target.generated or mapped.column is None:
        return
    source = mapped.cast or mapped.column.type
    if fits_type(source, target.full_type) or (mapped.cast and known[mapped.cast] == target.internal):
        return
    if source not in known and not target.builtin:
        return  # a type of the user's own under another name: its input function decides
    name, wanted = quote(mapped.name), source if source in known else "text"
    alter = f"ALTER TABLE {table.relation} ALTER COLUMN {name} TYPE {wanted} USING {name}::{wanted};"
    what = f"the flow's cast to {mapped.cast}" if mapped.cast else f"the source's {source}"
    # A cast to a type with a length cuts what is longer, in silence; the column itself refuses it.
    cast = _LENGTH.sub("", target.full_type) if target.full_type.startswith(_CUT) else target.full_type
    raise ConfigError(
        f"column {mapped.name!r} is {target.full_type} in the target, which does not take {what}",
        where=where,
        fix=f"{alter} or, when each value is fit for it, `{mapped.column.name}:"
        f" {{to: {mapped.name}, cast: {cast}}}` under `columns`",
    )


def _check_soft(table: TargetTable, name: str, where: str) -> None:
    target = table.columns[name]
    if target.generated or target.not_null or not fits_type(SOFT_TYPE, target.full_type):
        kind = "computed" if target.generated else target.full_type + (" NOT NULL" if target.not_null else "")
        raise ConfigError(
            f"column {name!r}, where a delete writes its time, is {kind} in the target",
            where=where,
            fix=f"make it timestamptz, null while the row is there: ALTER TABLE {table.relation}"
            f" ALTER COLUMN {quote(name)} DROP NOT NULL,"
            f" ALTER COLUMN {quote(name)} TYPE timestamptz USING NULL;",
        )


def _check_required(table: TargetTable, mapping: Columns, flow: Flow, where: str) -> None:
    sent = set(_wanted(mapping, flow))
    for target in table.columns.values():
        given = target.default or target.generated or target.identity
        if target.not_null and not given and target.name not in sent:
            name = quote(target.name)
            raise ConfigError(
                f"column {target.name!r} must not be null and has no default, and the flow sends nothing for"
                " it",
                where=where,
                fix=f"ALTER TABLE {table.relation} ALTER COLUMN {name} DROP NOT NULL; or give it a default,"
                f" or a constant: `{target.name}: {{value: ...}}` under flows.{flow.name}.columns",
            )


def constant_sql(target: TargetColumn, value: Any) -> str:
    """A constant of the config as an expression."""
    if value is None:
        return f"NULL::{target.type}"
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, list | dict) or target.internal in ("json", "jsonb"):
        text = dumps(value).decode()
    else:
        text = str(value)
    quoted = text.replace("'", "''")
    return f"'{quoted}'::{target.type}"


async def _check_constants(connection: Connection, table: TargetTable, mapping: Columns) -> None:
    for column in mapping.columns:
        if column.column is not None or table.columns[column.name].generated:
            continue
        expression = constant_sql(table.columns[column.name], column.value)
        try:
            await connection.execute(f"SELECT {expression}", prepare=False)
        except psycopg.DataError as error:
            kind = table.columns[column.name].full_type
            raise ConfigError(
                f"the constant {column.value!r} is no {kind}: {error.diag.message_primary}",
                where=f"flow {mapping.flow!r}, target table {table.text}, column {column.name!r}",
                fix=f"correct `{column.name}: {{value: ...}}` under flows.{mapping.flow}.columns",
            ) from error


async def _cast(connection: Connection, column: MappedColumn, known: Mapping[str, str]) -> str:
    assert column.column is not None
    source = column.column.type
    if source not in known:
        return f"::{column.cast}"
    direct = await casts_directly(connection, source, column.column.kind, column.cast or "")
    return f"::{source}::{column.cast}" if direct else f"::{source}::text::{column.cast}"
