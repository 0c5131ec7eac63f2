"""The table of a backfill as it is now: whether it may be read, by which key, and how many rows that may be.

Owns what refuses a run by name; must not decide when a run is tried again.
"""

from __future__ import annotations

from contextlib import suppress

from psycopg import sql

from streamer.changes.backfill import NEW_TABLE, Request
from streamer.config import PostgresSource
from streamer.config.built import unbuilt_table
from streamer.errors import TailraceError
from streamer.postgres import catalog
from streamer.postgres.catalog import Publications, Table
from streamer.postgres.chunks import TableChanged, Walk, describe_walk
from streamer.postgres.connection import Connection
from streamer.postgres.publishing import adding
from streamer.postgres.relations import Relations
from streamer.resetting import reset_fix

DESCRIBE_TRIES = 5  # in a row; a table that is altered more often than it is read is not to be read


class Refused(TailraceError):
    """The run cannot go on, however often it is tried."""


class TableGone(Refused):
    """Nor is there anything left that it could read."""

    def __init__(self, place: str) -> None:
        super().__init__(
            f"{place} is not there (it was dropped or renamed, or is a partition)",
            fix="name a table that is there; of a partitioned table its root",
        )


async def find(connection: Connection, source: PostgresSource, request: Request) -> Table | None:
    """The published table; None while one that was made later is not published yet. Raises Refused."""
    place = request.place
    if source.rule_for(request.schema, request.table) is None:
        raise Refused(f"{place} is not captured", fix="name it in `tables:` of its source")
    for unbuilt in unbuilt_table(source, request.schema, request.table):
        raise Refused(f"{place} is not captured, because {unbuilt.what}", fix=unbuilt.fix)
    table = await catalog.find_table(connection, request.schema, request.table)
    if table is None:
        raise TableGone(place)
    names = Publications(source.publication.name, ())
    present = await catalog.publication_tables(connection, names.name, names.inserts_name)
    if table.qualified in present.get(names.name, ()):
        return table
    if table.qualified in present.get(names.inserts_name, ()):
        raise keyless(table, source.name)
    if request.why == NEW_TABLE:
        return None
    raise Refused(
        f"{place} is not in publication {names.name}: its changes would be missing",
        fix=await adding(connection, names.name, table),
    )


async def describe(connection: Connection, relations: Relations, table: Table) -> Walk:
    """Its columns and the index of its key. Raises Refused; FatalError when its key is another one."""
    for _ in range(DESCRIBE_TRIES):
        described = await relations.describe(connection, table)
        if not described.record.key_columns:
            raise keyless(table, described.record.source)
        with suppress(TableChanged):
            return await describe_walk(connection, described)
        table = await catalog.find_table(connection, table.schema, table.name) or table
    raise Refused(
        f"no index of {table.qualified} has the key of its events "
        f"({', '.join(described.record.key_columns)})",
        fix=f"give it a primary key of these columns; or {reset_fix(described.record.source)}",
    )


async def estimate(connection: Connection, walk: Walk, where: str | None) -> int:
    """The planner's, which refuses a condition that is not one; prepared, so that it is one statement."""
    query = sql.SQL("EXPLAIN (FORMAT JSON) SELECT FROM {} WHERE (\n{}\n)").format(
        walk.table.alone, sql.SQL(where or "true")
    )
    row = await (await connection.execute(query, prepare=True)).fetchone()
    assert row is not None
    return int(row[0][0]["Plan"]["Plan Rows"])


def keyless(table: Table, source: str) -> Refused:
    return Refused(
        f"{table.qualified} has no key by which its events are told apart: "
        "its rows cannot be published again",
        fix=f"truncate it and fill it again; or give it a primary key, and {reset_fix(source)}",
    )
