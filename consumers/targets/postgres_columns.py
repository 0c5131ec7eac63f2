"""Columns that flows have had in the tables of a Postgres target: which of the missing ones are lost.

    columns   (flow, table, column): what the flow writes, as it last found the table

One that the source has got meanwhile is added to the table. One that was there before is not: it would hold
what later rows have only. Owns what is noted of that; that nothing was written so far is judged elsewhere.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from consumers.targets import postgres_state as state
from consumers.targets.postgres_arrays import quoted

_DDL = (
    """CREATE TABLE IF NOT EXISTS _tailrace.columns (
        flow text, schema_name text, table_name text, column_name text,
        PRIMARY KEY (flow, schema_name, table_name, column_name))""",
)
_OF_TABLE = "(flow, schema_name, table_name) = ($1, $2, $3)"
_HAD = f"SELECT column_name FROM _tailrace.columns WHERE {_OF_TABLE} AND column_name = ANY ($4::text[])"
# What neither the flow writes nor the table has may come back as the source's, and is then another one.
_NOTE = f"""WITH gone AS (DELETE FROM _tailrace.columns WHERE {_OF_TABLE}
AND column_name <> ALL ($5::text[]))
INSERT INTO _tailrace.columns SELECT $1, $2, $3, unnest($4::text[]) ON CONFLICT DO NOTHING"""
_FORGET = f"DELETE FROM _tailrace.columns WHERE {_OF_TABLE}"


async def ensure(connection: state.Connection) -> None:
    """Make the table, also in a target that an earlier program has made."""
    await state.add(connection, "columns", _DDL)


async def lost(
    connection: state.Connection, flow: str, place: tuple[str, str], missing: Sequence[str]
) -> list[str]:
    """Of columns that the table does not have, those that it had. `place`: schema and table."""
    rows = await (await connection.execute(_HAD, (flow, *place, quoted(list(missing))))).fetchall()
    had = {str(name) for (name,) in rows}
    return [name for name in missing if name in had]


async def note(
    connection: state.Connection,
    flow: str,
    place: tuple[str, str],
    written: Sequence[str],
    has: Collection[str],
) -> None:
    """`written`: by the flow. `has`: all that the table has."""
    await connection.execute(_NOTE, (flow, *place, quoted(list(written)), quoted(list(has))))


async def forget(connection: state.Connection, flow: str, place: tuple[str, str]) -> None:
    """All of a table."""
    await connection.execute(_FORGET, (flow, *place))
