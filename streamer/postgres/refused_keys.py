"""Given keys that are no values of their columns' types: an enum's label that was renamed, a domain's check.

Owns which of some keys a server refuses, within a chunk's transaction: each statement is between a savepoint
and its end, so that the snapshot and the lock stay. No row has such a key, now or at the chunk's marks; what
is published of that is decided in backfill_run.

Halves are tried, from the first key on, and no more often than TRIES: the lock of a table is held meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from streamer.postgres.connection import Connection

TRIES = 200  # three messages each; one key among 500 takes 18, fifty of them a few hundred, by several chunks


@dataclass(frozen=True, slots=True)
class Sorted:
    """`refused`: place -> the server's words; those before `settled` that are not in it are values."""

    refused: dict[int, str]
    settled: int


def is_of_a_value(error: psycopg.Error) -> bool:
    """Whether the server refuses a value. What has no SQLSTATE never came to it."""
    return error.sqlstate is not None and isinstance(error, psycopg.DataError | psycopg.IntegrityError)


def typed(key: Sequence[str], types: Sequence[str]) -> sql.Composable:
    """A key's values, each cast to its type."""
    return sql.SQL(", ").join(
        sql.SQL("CAST({} AS {})").format(sql.Literal(text), sql.SQL(type_))
        for text, type_ in zip(key, types, strict=True)
    )


async def sort_out(connection: Connection, keys: Sequence[tuple[str, ...]], types: Sequence[str]) -> Sorted:
    """At least the first key is settled. Raises psycopg.Error of any other kind."""
    refused: dict[int, str] = {}
    settled, waiting = 0, [(0, len(keys))]
    for _ in range(TRIES):
        if not waiting:
            break
        low, high = waiting.pop()
        why = await _refusal(connection, keys[low:high], types)
        if why and high - low > 1:
            middle = (low + high) // 2
            waiting += [(middle, high), (low, middle)]
            continue
        if why:
            refused[low] = why
        settled = high
    return Sorted(refused, settled)


async def _refusal(connection: Connection, keys: Sequence[tuple[str, ...]], types: Sequence[str]) -> str:
    """The server's words, or nothing."""
    names = sql.SQL(", ").join(sql.Identifier(f"k{place}") for place in range(len(types)))
    rows = sql.SQL(", ").join(sql.SQL("({})").format(typed(key, types)) for key in keys)
    # concat() makes the server look at each value; a column that nobody reads may be left out of the plan.
    query = sql.SQL("SELECT concat({names}) FROM (VALUES {rows}) v ({names})").format(names=names, rows=rows)
    try:
        async with connection.transaction():
            await connection.execute(query)
    except psycopg.Error as error:
        if not is_of_a_value(error):
            raise
        return error.diag.message_primary or str(error)
    return ""
