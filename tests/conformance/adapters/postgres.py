"""The Postgres target, on a database of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from consumers.apply.checkpoint import Place
from tests.conformance.adapters.base import SCHEMA, Adapter, Row


class PostgresAdapter(Adapter):
    killed_at: ClassVar[str | None] = "consumers.targets.postgres_write:_move"

    @classmethod
    @asynccontextmanager
    async def ready(cls, request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
        yield cls(request.getfixturevalue("target_database"))

    def settings(self) -> dict[str, Any]:
        return {"kind": "postgres", "url": self.address}

    async def read_rows(self, table: str, schema: str = SCHEMA) -> list[Row]:
        async with await self._connect() as connection:
            there = await connection.execute("SELECT to_regclass(%s) AS r", (f'"{schema}"."{table}"',))
            if (await there.fetchall())[0]["r"] is None:
                return []
            rows = await connection.execute(sql.SQL("SELECT * FROM {}").format(_name(table, schema)))
            return [
                {name: value for name, value in row.items() if not name.startswith("_tailrace")}
                for row in await rows.fetchall()
            ]

    async def cut(self) -> None:
        await self._execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )

    async def refuse(self, table: str, columns: Sequence[str], word: str) -> None:
        await self.make_table(table, columns)
        rule = sql.SQL("ALTER TABLE {} ADD CONSTRAINT rule CHECK (name <> {})")
        await self._execute(rule.format(_name(table), sql.Literal(word)))

    async def accept(self, table: str) -> None:
        await self._execute(sql.SQL("ALTER TABLE {} DROP CONSTRAINT rule").format(_name(table)))

    async def make_table(self, table: str, columns: Sequence[str]) -> None:
        texts = sql.SQL("").join(
            sql.SQL(", {} text").format(sql.Identifier(name)) for name in columns if name != "id"
        )
        made = sql.SQL("CREATE TABLE {} (id integer PRIMARY KEY{})").format(_name(table), texts)
        await self._execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(SCHEMA)))
        await self._execute(made)

    async def drop_table(self, table: str) -> None:
        await self._execute(sql.SQL("DROP TABLE {}").format(_name(table)))

    async def rewind(self, places: Sequence[Place], offset: int = 0) -> None:
        for place in places:
            await self._execute(
                "UPDATE _tailrace.checkpoints SET next_offset = %s"
                " WHERE (flow, topic, partition) = (%s, %s, %s)",
                (offset, *place),
            )

    async def tombstones(self) -> int:
        async with await self._connect() as connection:
            found = await connection.execute("SELECT count(*) AS n FROM _tailrace.tombstones")
            return int((await found.fetchall())[0]["n"])

    async def before_the_kill(self, *args: Any) -> None:
        async with args[0].pipeline() as pipeline:
            await pipeline.sync()

    async def _connect(self) -> psycopg.AsyncConnection[dict[str, Any]]:
        return await psycopg.AsyncConnection.connect(self.address, autocommit=True, row_factory=dict_row)

    async def _execute(self, statement: Any, values: Sequence[Any] = ()) -> None:
        async with await self._connect() as connection:
            await connection.execute(statement, values or None)


def _name(table: str, schema: str = SCHEMA) -> sql.Identifier:
    return sql.Identifier(schema, table)
