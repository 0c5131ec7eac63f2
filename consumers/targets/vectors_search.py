"""The rows whose text is nearest to some words, of the tables that a flow has filled. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import Any

import orjson
import psycopg
from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from consumers.apply.mapping import soft_column
from consumers.targets.postgres_catalog import TargetTable, quote, read_table
from consumers.targets.postgres_errors import not_let_in, unavailable
from consumers.targets.postgres_state import Connection
from consumers.targets.vectors_model import Model
from consumers.targets.vectors_statements import CHUNK, EMBEDDING, OWN, TEXT
from consumers.targets.vectors_tables import check_model
from consumers.targets.vectors_texts import Texts
from streamer.config import Flow, VectorTarget, describe_postgres
from streamer.config.patterns import fits
from streamer.errors import BadRecordError, ConfigError
from streamer.postgres.connection import session_statements

CONNECT_TIMEOUT_S = 10
CHUNKS_A_ROW = 4  # looked at for each row that is asked for: a row's chunks are often near each other
EF_SEARCH_LIMIT = 1000  # of hnsw; more rows than that are found by reading all
_SPARE = 40  # what hnsw looks at unless told
_OTHER_WORDS = "search for other words"

_TABLES = """SELECT f.schema_name, f.table_name FROM _tailrace.floors f
JOIN pg_namespace n ON n.nspname = f.schema_name
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = f.table_name
JOIN pg_attribute e ON e.attrelid = c.oid AND e.attname = $1 AND e.atttypmod = $3
JOIN pg_attribute k ON k.attrelid = c.oid AND k.attname = $2 ORDER BY 1, 2"""
_THERE = "SELECT to_regclass('_tailrace.floors') IS NOT NULL"
_PATH = """SELECT set_config('search_path', current_setting('search_path') || ', ' || quote_ident(nspname),
false) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'"""


@dataclass(frozen=True, slots=True)
class Hit:
    """`distance`: by cosine, 0 (the same direction) to 2. `row`: the metadata."""

    flow: str
    table: str
    distance: float
    key: dict[str, Any]
    chunk: int
    text: str
    row: dict[str, Any]


async def search(target: VectorTarget, flow: Flow, words: str, limit: int) -> list[Hit]:
    """The nearest rows, each by its nearest chunk. Raises TargetUnavailable, ConfigError."""
    model = Model(flow, target.embedding, target.modules, stays=False)
    try:
        vector = await vector_of(model, words)
    finally:
        model.close()
    place = f"target {target.name!r} ({describe_postgres(target.url)})"
    given = conninfo_to_dict(target.url.get_secret_value())
    session = f"tailrace search {target.name}"
    extra: dict[str, Any] = {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": session}
    try:
        connection: Connection = await AsyncConnection.connect(
            make_conninfo(**{**extra, **given}), autocommit=True, cursor_factory=AsyncRawCursor
        )
        async with connection:
            await connection.execute(session_statements(connection.info.server_version))
            await connection.execute(_PATH)
            tables = await _tables(connection, flow)
            for table in tables:
                where = f"flow {flow.name!r}, target table {table.text}"
                await check_model(connection, table, flow, Texts(flow), where)
            if not tables:
                raise ConfigError(
                    f"flow {flow.name!r} has filled no table yet",
                    where=place,
                    fix=f"start it: `tailrace apply {target.name}`, or `tailrace run`",
                )
            hits = [hit for table in tables for hit in await _nearest(connection, table, flow, vector, limit)]
    except (psycopg.Error, OSError) as error:
        refused = not_let_in(error, place) if isinstance(error, psycopg.Error) else None
        raise refused or unavailable(error, place) from error
    return sorted(hits, key=lambda hit: hit.distance)[:limit]


async def vector_of(model: Model, words: str) -> str:
    async for _, vector in model.embed([words]):
        if isinstance(vector, BadRecordError):
            raise ConfigError(vector.what, where=model.place, fix=_OTHER_WORDS)
        if not any(orjson.loads(vector)):
            raise ConfigError("the words have no direction", where=model.place, fix=_OTHER_WORDS)
        return vector
    raise AssertionError("one text, one vector")


async def _tables(connection: Connection, flow: Flow) -> list[TargetTable]:
    there = await (await connection.execute(_THERE)).fetchone()
    if not there or not there[0]:
        return []
    found = []
    parameters = (EMBEDDING, CHUNK, flow.dimensions)
    for schema, table in await (await connection.execute(_TABLES, parameters)).fetchall():
        named = flow.table in (None, table) and flow.table_schema in (None, schema)
        if named and (flow.table is not None or fits(flow.source_pattern.rpartition(".")[2], str(table))):
            read = await read_table(connection, str(schema), str(table))
            assert read is not None
            found.append(read)
    return found


async def _nearest(
    connection: Connection, table: TargetTable, flow: Flow, vector: str, limit: int
) -> list[Hit]:
    """Chunks in their order, until there are so many rows. A vector of zeros has no direction: an index
    leaves it out, and so does a search that reads all."""
    key = _key_of(table)
    soft = soft_column(flow)
    names = [name for name in table.columns if name not in OWN and not name.startswith("_tailrace")]
    shown = "".join(f", {quote(name)}" for name in names)
    gone = f" AND {quote(soft)} IS NULL" if soft is not None else ""
    query = (
        f"SELECT {EMBEDDING} <=> $1::vector, {CHUNK}, {TEXT}{shown} FROM {table.relation}"
        f" WHERE {EMBEDDING} IS NOT NULL{gone} ORDER BY {EMBEDDING} <=> $1::vector LIMIT $2"
    )
    wanted = limit * CHUNKS_A_ROW
    while True:
        async with connection.transaction():
            await connection.execute(_how(wanted), prepare=False)
            found = await (await connection.execute(query, (vector, wanted))).fetchall()
        hits: dict[tuple[Any, ...], Hit] = {}
        for distance, chunk, text, *values in found:
            if isnan(float(str(distance))):
                continue
            row = dict(zip(names, values, strict=True))
            at = {name: row.pop(name) for name in key}
            hit = Hit(flow.name, table.text, float(str(distance)), at, int(str(chunk)), str(text), row)
            hits.setdefault(tuple(at.values()), hit)
        by_index = wanted <= EF_SEARCH_LIMIT
        if len(hits) >= limit or (len(found) < wanted and not by_index):
            return list(hits.values())[:limit]
        # Rows that are deleted are taken out of what an index has looked at: fewer are not all there are.
        wanted = max(wanted, EF_SEARCH_LIMIT + 1) if len(found) < wanted else wanted * CHUNKS_A_ROW


def _how(wanted: int) -> str:
    """hnsw finds no more than it looks at."""
    if wanted > EF_SEARCH_LIMIT:
        return "SET LOCAL enable_indexscan = off"
    return f"SET LOCAL hnsw.ef_search = {max(_SPARE, wanted)}"


def _key_of(table: TargetTable) -> list[str]:
    """Of the unique index that has the chunk, the other columns."""
    for index in table.unique:
        if index.whole and CHUNK in index.columns:
            return [n for n in table.columns if n in index.columns and n != CHUNK and n[:9] != "_tailrace"]
    return []
