"""The sql target, on a SQLite file of the test's own.

There are no schemas: the suite's usual one is left out, and a flow to another one takes the one table that
tests have in each.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, ClassVar

import pytest

from consumers.apply.checkpoint import Place
from consumers.targets.base import Target
from streamer import config as settings
from tests.conformance.adapters.base import NAME, SCHEMA, Adapter, Row

PEOPLE = "people"


class SqlAdapter(Adapter):
    abilities: ClassVar[frozenset[str]] = frozenset({"keyless", "durable", "tables", "ddl"})
    killed_at: ClassVar[str | None] = "consumers.targets.sql_write:move_checkpoints"

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._sessions: list[Target] = []

    @classmethod
    @asynccontextmanager
    async def ready(cls, request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
        folder: Path = request.getfixturevalue("tmp_path")
        yield cls(str(folder / "copy.db"))

    def settings(self) -> dict[str, Any]:
        return {"kind": "sql", "url": f"sqlite:///{self.address}"}

    def target(self, config: settings.Config, group: str = f"{NAME}.copy") -> Target:
        session = super().target(config, group)
        self._sessions.append(session)
        return session

    def flow(self, keys: dict[str, Any]) -> dict[str, Any]:
        schema = keys["to"].split(".")[1]
        if schema == SCHEMA:
            return keys
        source = keys["from"].split(".")[0]
        return {**keys, "from": f"{source}.public.{PEOPLE}", "to": f"copy.main.{_name(PEOPLE, schema)}"}

    async def read_rows(self, table: str, schema: str = SCHEMA) -> list[Row]:
        name = _name(table, schema)
        with closing(self._connect()) as connection:
            there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (name,)).fetchone()
            if there is None:
                return []
            rows = [dict(row) for row in connection.execute(f"SELECT * FROM {name}")]
        return [{n: v for n, v in row.items() if not n.startswith("_tailrace")} for row in rows]

    async def cut(self) -> None:
        """There is no line to a file; the sessions end."""
        for session in self._sessions:
            await session.close()

    async def refuse(self, table: str, columns: Sequence[str], word: str) -> None:
        await self.make_table(table, columns)
        for event in ("INSERT", "UPDATE"):
            self._execute(
                f"CREATE TRIGGER rule_{event} BEFORE {event} ON {table} WHEN NEW.name = '{word}'"
                f" BEGIN SELECT RAISE(ABORT, 'the name may not be {word}'); END"
            )

    async def accept(self, table: str) -> None:
        for event in ("INSERT", "UPDATE"):
            self._execute(f"DROP TRIGGER rule_{event}")

    async def make_table(self, table: str, columns: Sequence[str]) -> None:
        texts = "".join(f", {name} text" for name in columns if name != "id")
        self._execute(f"CREATE TABLE {table} (id integer PRIMARY KEY{texts})")

    async def drop_table(self, table: str) -> None:
        self._execute(f"DROP TABLE {table}")

    async def rewind(self, places: Sequence[Place], offset: int = 0) -> None:
        for place in places:
            self._execute(
                "UPDATE _tailrace_checkpoints SET next_offset = ?"
                " WHERE flow = ? AND topic = ? AND partition = ?",
                (offset, *place),
            )

    async def tombstones(self) -> int:
        with closing(self._connect()) as connection:
            return int(connection.execute("SELECT count(*) FROM _tailrace_tombstones").fetchone()[0])

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.address, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection

    def _execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        with closing(self._connect()) as connection:
            connection.execute(statement, values)


def _name(table: str, schema: str) -> str:
    return table if schema == SCHEMA else f"{schema}_{table}"
