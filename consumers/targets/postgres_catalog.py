"""A target table as the catalogue has it, and what a schema record asks of it.

Tables are made from the schema record, with the source's types where the target knows them and text
where it does not; missing columns are added. A table that was there already keeps its types and
constraints: what does not fit is refused, with the SQL that mends it.
"""

from __future__ import annotations

from dataclasses import dataclass

from consumers.targets.postgres_state import ENSURE_FLOOR, LOCK, Connection
from streamer.changes.fitting import fits_type
from streamer.changes.schema import Column, SchemaRecord
from streamer.errors import ConfigError

VERSION_COLUMNS = {"_tailrace_epoch": "int", "_tailrace_lsn": "bigint", "_tailrace_ordinal": "bigint"}
LOCK_TIMEOUT = "5s"  # ALTER TABLE must not hold up the table's readers behind a long one


@dataclass(frozen=True, slots=True)
class TargetColumn:
    name: str
    type: str  # without typmod, as it may stand in a cast
    full_type: str  # as format_type prints it
    internal: str  # pg_type.typname
    builtin: bool
    not_null: bool
    generated: bool


@dataclass(frozen=True, slots=True)
class TargetTable:
    schema: str
    name: str
    columns: dict[str, TargetColumn]
    unique_keys: tuple[tuple[str, frozenset[str]], ...]  # (index, its columns)
    other_unique: tuple[str, ...]  # partial indexes, those on expressions, exclusion constraints
    foreign_keys: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.schema}.{self.name}"


def quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


_RELATION = """SELECT c.oid::bigint, c.relkind::text FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2"""
_COLUMNS = """SELECT a.attname, format_type(a.atttypid, -1), format_type(a.atttypid, a.atttypmod), t.typname,
t.typnamespace = 'pg_catalog'::regnamespace, a.attnotnull, a.attgenerated <> ''
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
_UNIQUE = """SELECT c.relname, i.indpred IS NULL AND i.indexprs IS NULL AND i.indisvalid AND i.indimmediate,
(SELECT array_agg(a.attname::text) FROM unnest(i.indkey[0:i.indnkeyatts - 1]) k
JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k)
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = $1::oid AND (i.indisunique OR i.indisexclusion) ORDER BY c.relname"""
_FOREIGN = """SELECT conname, conrelid::regclass::text FROM pg_constraint
WHERE contype = 'f' AND (conrelid = $1::oid OR confrelid = $1::oid) AND conparentid = 0 ORDER BY conname"""
_TYPES = """SELECT format_type(to_regtype(x), -1), t.typname FROM unnest($1::text[]) WITH ORDINALITY s (x, i)
LEFT JOIN pg_type t ON t.oid = to_regtype(x) ORDER BY i"""


async def read_table(connection: Connection, schema: str, name: str) -> TargetTable | None:
    """None when there is no such table. Raises ConfigError for a view or another relation."""
    relation = await (await connection.execute(_RELATION, (schema, name))).fetchone()
    if relation is None:
        return None
    oid, kind = relation
    if kind not in ("r", "p"):
        raise ConfigError(
            f"{schema}.{name} in the target is not a table", fix="send the flow to another schema or table"
        )
    columns = [
        TargetColumn(*row)  # type: ignore[arg-type]
        for row in await (await connection.execute(_COLUMNS, (oid,))).fetchall()
    ]
    unique, other = [], []
    for index, whole, names in await (await connection.execute(_UNIQUE, (oid,))).fetchall():
        if whole and isinstance(names, list):
            unique.append((str(index), frozenset(names)))
        else:
            other.append(str(index))
    foreign = await (await connection.execute(_FOREIGN, (oid,))).fetchall()
    return TargetTable(
        schema,
        name,
        {column.name: column for column in columns},
        tuple(unique),
        tuple(other),
        tuple(f"{constraint} (of {table})" for constraint, table in foreign),
    )


async def ensure_table(
    connection: Connection, schema: str, name: str, record: SchemaRecord, flow: str
) -> TargetTable:
    """The table, fit for the record's rows: made, or its missing columns added. Raises ConfigError."""
    known = await _known_types(connection, record)
    table = await read_table(connection, schema, name)
    if table is None or _missing(table, record):
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", (LOCK,))
            await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
            table = await read_table(connection, schema, name)
            if table is None:
                await _create(connection, schema, name, record, known)
            elif missing := _missing(table, record):
                adds = ", ".join(f"ADD COLUMN {_definition(c, record, known)}" for c in missing)
                await connection.execute(f"ALTER TABLE {quote(schema)}.{quote(name)} {adds}", prepare=False)
        table = await read_table(connection, schema, name)
    assert table is not None
    check_table(table, record, known, flow)
    await connection.execute(ENSURE_FLOOR, (schema, name))
    return table


async def _known_types(connection: Connection, record: SchemaRecord) -> dict[str, str]:
    """Source's type -> typname in the target, of those that it knows."""
    types = [column.type for column in record.columns]
    rows = await (await connection.execute(_TYPES, (types,))).fetchall()
    return {source: str(name) for source, (_, name) in zip(types, rows, strict=True) if name is not None}


def _missing(table: TargetTable, record: SchemaRecord) -> list[str]:
    return [n for n in (*(c.name for c in record.columns), *VERSION_COLUMNS) if n not in table.columns]


def _definition(name: str, record: SchemaRecord, known: dict[str, str]) -> str:
    if name in VERSION_COLUMNS:
        return f"{name} {VERSION_COLUMNS[name]} NOT NULL DEFAULT 0"
    column = next(c for c in record.columns if c.name == name)
    # A name that to_regtype understands is a type's name and nothing else.
    return f"{quote(name)} {column.type if column.type in known else 'text'}"


async def _create(
    connection: Connection, schema: str, name: str, record: SchemaRecord, known: dict[str, str]
) -> None:
    names = [c.name for c in record.columns] + list(VERSION_COLUMNS)
    parts = [_definition(n, record, known) for n in names]
    if record.key_columns:
        parts.append(f"PRIMARY KEY ({', '.join(map(quote, record.key_columns))})")
    query = "SELECT 1 FROM pg_namespace WHERE nspname = $1"
    if await (await connection.execute(query, (schema,))).fetchone() is None:
        await connection.execute(f"CREATE SCHEMA {quote(schema)}", prepare=False)
    statement = f"CREATE TABLE {quote(schema)}.{quote(name)} ({', '.join(parts)})"
    await connection.execute(statement, prepare=False)


def check_table(table: TargetTable, record: SchemaRecord, known: dict[str, str], flow: str) -> None:
    where = f"flow {flow!r}, target table {table.text}"
    relation = f"{quote(table.schema)}.{quote(table.name)}"
    if table.foreign_keys:
        raise ConfigError(
            f"it has foreign keys, which changes that arrive out of order would break: "
            f"{', '.join(table.foreign_keys)}",
            where=where,
            fix="drop them, or send the flow to a table without them",
        )
    key = frozenset(record.key_columns)
    fitting = [index for index, columns in table.unique_keys if key and columns == key]
    others = [index for index, _ in table.unique_keys if index not in fitting] + list(table.other_unique)
    if key and not fitting:
        columns = ", ".join(map(quote, record.key_columns))
        hint = f" (it has {', '.join(others)})" if others else ""
        raise ConfigError(
            f"it has no unique index on the key ({', '.join(record.key_columns)}){hint}",
            where=where,
            fix=f"CREATE UNIQUE INDEX ON {relation} ({columns}); when the source's key has changed:"
            f" `tailrace reset {record.source}` and drop the table",
        )
    if others:
        raise ConfigError(
            f"it has other unique constraints, which changes that arrive out of order would break: "
            f"{', '.join(others)}",
            where=where,
            fix="drop them, or send the flow to a table without them",
        )
    for column in record.columns:
        _check_column(table, column, known.get(column.type), where, relation)


def _check_column(table: TargetTable, column: Column, known: str | None, where: str, relation: str) -> None:
    target = table.columns[column.name]
    if target.generated:
        return
    if fits_type(column.type, target.full_type):
        return
    if known is None and not target.builtin:
        return  # a type of the user's own under another name: its input function decides
    wanted = column.type if known is not None else "text"
    name = quote(column.name)
    raise ConfigError(
        f"column {column.name!r} is {target.full_type} in the target, which does not take the source's"
        f" {column.type}",
        where=where,
        fix=f"ALTER TABLE {relation} ALTER COLUMN {name} TYPE {wanted} USING {name}::{wanted};",
    )
