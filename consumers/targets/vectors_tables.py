"""Tables of chunks, made or completed: the metadata's columns as a Postgres target has them, and ours.

    key            the source's, under the flow's names
    _tailrace_chunk   0, 1, ..: the primary key is the key and this
    text           the chunk
    _tailrace_hash    what `embedding` was made of
    embedding      vector(dimensions); null where the text is empty
    _tailrace_source  of chunk 0: the values of the template's columns, for events that do not have them
    ...            metadata: the other columns, in each chunk

Columns of the template are metadata only where `columns` names them: they would be there twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from consumers.apply.mapping import MappedColumn
from consumers.apply.queues import names_of
from consumers.targets import vectors_statements as chunks
from consumers.targets.postgres_catalog import TargetTable, quote, read_table
from consumers.targets.postgres_state import LOCK, Connection
from consumers.targets.postgres_tables import LOCK_TIMEOUT, Fitted, ensure_table
from consumers.targets.vectors_plans import source_of
from consumers.targets.vectors_texts import Texts
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import ColumnRule, Flow
from streamer.errors import ConfigError
from streamer.resetting import reset_steps

_CHECKED = "SELECT FROM pg_constraint WHERE conrelid = to_regclass($1) AND conname = $2"

_WRITTEN = """SELECT DISTINCT flow, topic FROM _tailrace.checkpoints WHERE last_epoch IS NOT NULL
ORDER BY 1, 2"""
_ONE = (
    f"SELECT {quote(chunks.TEXT)}, {quote(chunks.HASH)}::text FROM {{}}"
    f" WHERE {quote(chunks.EMBEDDING)} IS NOT NULL LIMIT 1"
)


async def ensure_chunks(
    connection: Connection,
    schema: str,
    name: str,
    record: SchemaRecord,
    flow: Flow,
    texts: Texts,
    *,
    topic: str,
    remake: bool,
) -> Fitted:
    """Raises ConfigError, TableLost."""
    where = f"flow {flow.name!r}, target table {schema}.{name}"
    texts.check(flow, record)
    if not record.key_columns:
        raise ConfigError(
            "chunks are found by the row's key, and the source's table has none",
            where=where,
            fix="give the table a key in the source",
        )
    _check_names(flow, record, texts, where)
    table = await read_table(connection, schema, name)
    if table is not None:
        _check_vector(table, flow, where)
        await check_model(connection, table, flow, texts, where)
    metadata = replace(
        record, columns=tuple(c for c in record.columns if is_metadata(flow, c, texts.columns))
    )
    own = own_columns(flow)
    fitted = await ensure_table(connection, schema, name, metadata, flow, own, topic=topic, remake=remake)
    await _ensure_check(connection, fitted.table)
    return fitted


def is_metadata(flow: Flow, column: Column, of_text: list[str]) -> bool:
    return column.key or column.name not in of_text or column.name in flow.columns


def own_columns(flow: Flow) -> tuple[MappedColumn, ...]:
    kinds = {
        chunks.CHUNK: ("integer", "number"),
        chunks.TEXT: ("text", "text"),
        chunks.HASH: ("uuid", "text"),
        chunks.EMBEDDING: (f"vector({flow.dimensions})", "text"),
        chunks.SOURCE: ("json", "json"),
    }
    return tuple(
        MappedColumn(name, Column(source_of(name), type_, -1, kind, name == chunks.CHUNK))
        for name, (type_, kind) in kinds.items()
    )


def _check_names(flow: Flow, record: SchemaRecord, texts: Texts, where: str) -> None:
    for column in record.columns:
        if not is_metadata(flow, column, texts.columns):
            continue
        rule = flow.columns.get(column.name)
        name = column.name
        if rule is not None:
            name = rule if isinstance(rule, str) else rule.to or column.name
        if name in (chunks.TEXT, chunks.EMBEDDING) and not _is_constant(rule):
            raise ConfigError(
                f"the column {column.name!r} would go to {name!r}, where the chunks' own is kept",
                where=where,
                fix=f"give it another name: `columns: {{{column.name}: {column.name}_of_row}}`",
            )
    for name, rule in flow.columns.items():
        if name in (chunks.TEXT, chunks.EMBEDDING) and _is_constant(rule):
            what = f"a constant would go to {name!r}, where the chunks' own is kept"
            raise ConfigError(what, where=where, fix="give it another name under `columns`")


def _is_constant(rule: str | ColumnRule | None) -> bool:
    return isinstance(rule, ColumnRule) and "value" in rule.model_fields_set


def _check_vector(table: TargetTable, flow: Flow, where: str) -> None:
    found = table.columns.get(chunks.EMBEDDING)
    wanted = f"vector({flow.dimensions})"
    if found is None or found.full_type.rpartition(".")[2] == wanted:
        return
    raise ConfigError(
        f"its column {chunks.EMBEDDING!r} is {found.full_type}, and the flow makes {wanted}",
        where=where,
        fix=f"write `dimensions` as it has them; or, for another model, {_anew(table, flow)}",
    )


def _anew(table: TargetTable, flow: Flow) -> str:
    return f"have everything embedded again: DROP TABLE {table.relation}; then {reset_steps(flow.source)}"


async def check_model(
    connection: Connection, table: TargetTable, flow: Flow, texts: Texts, where: str
) -> None:
    """Raises ConfigError for vectors that another function made: they do not compare. A chunk's hash is of
    its function too, and all of a table's are of one, so that one chunk tells."""
    if not {chunks.TEXT, chunks.HASH, chunks.EMBEDDING} <= table.columns.keys():
        return
    found = await (await connection.execute(_ONE.format(table.relation), prepare=False)).fetchone()
    if found is None or texts.hash_of(str(found[0])) == str(found[1]).replace("-", ""):
        return
    raise ConfigError(
        f"its vectors were not made by {flow.embed}: those of two functions do not compare",
        where=where,
        fix=f"write `embed` as it was, where it is the same function; or {_anew(table, flow)}",
    )


async def other_models(
    connection: Connection, flows: Mapping[str, Flow], texts: Mapping[str, Texts]
) -> list[str]:
    """What stops a flow at its next change, told before one comes: vectors of another function, or with
    other dimensions, in the tables that it has written."""
    found = []
    for name, topic in await (await connection.execute(_WRITTEN)).fetchall():
        flow = flows.get(str(name))
        if flow is None:
            continue
        table = await read_table(connection, *flow.place(*names_of(str(topic), None)))
        if table is None:
            continue
        try:
            _check_vector(table, flow, f"flow {name}: {table.text}")
            await check_model(connection, table, flow, texts[flow.name], f"flow {name}: {table.text}")
        except ConfigError as error:
            found.append(str(error))
    return found


async def _ensure_check(connection: Connection, table: TargetTable) -> None:
    """Also in a table of somebody else's."""
    checked = await (await connection.execute(_CHECKED, (table.relation, chunks.CHECK))).fetchone()
    if checked is not None:
        return
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", (LOCK,))
        await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
        again = await (await connection.execute(_CHECKED, (table.relation, chunks.CHECK))).fetchone()
        if again is None:
            await connection.execute(chunks.check_sql(table.relation), prepare=False)
