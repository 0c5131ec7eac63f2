"""The indexes of nearest rows: made when a table's first copy is through, beside the work, in a session of
their own.

An hnsw index that is there from the start makes every insert ten times slower, so that a first copy goes
without one, and searches read all rows until it is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import psycopg

from consumers.targets.postgres_catalog import quote
from consumers.targets.postgres_state import LOCK, Connection
from consumers.targets.vectors_statements import CHUNK, EMBEDDING
from streamer.errors import TailraceError
from streamer.stopping import end_tasks

DIMENSIONS_LIMIT = 2000  # that hnsw takes of a `vector`

# Tables that apply has made or completed are in `floors`.
_LACKING = """SELECT f.schema_name, f.table_name, c.oid::bigint, e.atttypmod FROM _tailrace.floors f
JOIN pg_namespace n ON n.nspname = f.schema_name
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = f.table_name
JOIN pg_attribute e ON e.attrelid = c.oid AND e.attname = $1
JOIN pg_attribute k ON k.attrelid = c.oid AND k.attname = $2
WHERE NOT EXISTS (SELECT FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid
JOIN pg_am m ON m.oid = x.relam WHERE i.indrelid = c.oid AND i.indisvalid AND m.amname IN ('hnsw', 'ivfflat')
AND e.attnum = ANY (i.indkey)) ORDER BY 1, 2"""
_LOCK = "SELECT pg_try_advisory_lock($1)"


class Indexes:
    """`connect` opens a session. One build at a time, and one process at a time."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]]) -> None:
        self._connect = connect
        self._loading: set[tuple[str, str]] = set()  # with rows of a first copy since the last look
        self._task: asyncio.Task[None] | None = None
        self.findings: list[str] = []

    def loads(self, schema: str, table: str) -> None:
        self._loading.add((schema, table))

    async def look(self, connection: Connection) -> None:
        """Begin to build what is lacking, of tables whose first copy has paused for as long as between two
        looks. Raises psycopg.Error."""
        loading, self._loading = self._loading, set()
        if self._task is not None and not self._task.done():
            return
        lacking: list[tuple[str, str, int]] = []
        self.findings = []
        for schema, table, oid, dimensions in await (
            await connection.execute(_LACKING, (EMBEDDING, CHUNK))
        ).fetchall():
            if int(str(dimensions)) > DIMENSIONS_LIMIT:
                self.findings.append(
                    f"{schema}.{table} has no index of nearest rows: hnsw takes {DIMENSIONS_LIMIT}"
                    f" dimensions, and it has {dimensions}; a search reads every row"
                )
            elif (str(schema), str(table)) not in loading:
                lacking.append((str(schema), str(table), int(str(oid))))
        if lacking:
            self._task = asyncio.create_task(self._build(lacking), name="apply: index")

    async def built(self) -> None:
        """Wait until what has begun is done."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            await end_tasks(task)

    async def _build(self, lacking: list[tuple[str, str, int]]) -> None:
        connection: Connection | None = None
        try:
            connection = await self._connect()
            locked = await (await connection.execute(_LOCK, (LOCK + 1,))).fetchone()
            if not locked or not locked[0]:
                return  # another process is at it
            for schema, table, oid in lacking:
                await self._build_one(connection, schema, table, oid)
        except (psycopg.Error, OSError, TailraceError) as error:
            self.findings.append(f"no session to make an index in: {_line(error)}; it is tried again")
        finally:
            if connection is not None:
                with suppress(psycopg.Error, OSError):
                    await connection.close()

    async def _build_one(self, connection: Connection, schema: str, table: str, oid: int) -> None:
        name = f"_tailrace_hnsw_{oid}"
        relation = f"{quote(schema)}.{quote(table)}"
        create = f"CREATE INDEX CONCURRENTLY {name} ON {relation} USING hnsw ({EMBEDDING} vector_cosine_ops)"
        try:  # one that was broken off is there, and not valid
            await connection.execute(
                f"DROP INDEX CONCURRENTLY IF EXISTS {quote(schema)}.{name}", prepare=False
            )
            await connection.execute(create, prepare=False)
        except psycopg.Error as error:
            self.findings.append(
                f"{schema}.{table} has no index of nearest rows: {_line(error)}; it is tried again within a"
                f" minute, or by hand: {create};"
            )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
