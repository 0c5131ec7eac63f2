"""What canonical text is tested on: a PostgreSQL and a SQLite beside each other."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import orjson
import psycopg
import pytest

from consumers.reconcile.forms import Held
from streamer.changes.kinds import encoder_for
from streamer.postgres.connection import SESSION_SETTINGS
from streamer.sandbox import PostgresServer
from tests.integration.test_kinds_postgres import SETUP
from tests.servers import fresh_database


def envelope(kind: str, printed: bytes | None) -> Any:
    return None if printed is None else orjson.loads(encoder_for(kind)(printed))


@dataclass
class Stores:
    """A PostgreSQL with a table `t` of one column `v`, and a SQLite file in memory."""

    postgres: psycopg.Connection[Any]
    sqlite: sqlite3.Connection
    major: int
    filled: str = ""  # the type of the column that `fill` has made

    def fresh(self, columns: str) -> None:
        self.filled = ""
        self.postgres.execute("DROP TABLE IF EXISTS t")
        self.postgres.execute(f"CREATE TABLE t ({columns})")

    def fill(self, type_name: str, texts: Sequence[str | None]) -> Held:
        if self.filled == type_name:
            self.postgres.execute("DELETE FROM t")
        else:
            self.postgres.execute("DROP TABLE IF EXISTS t")
            self.postgres.execute(f"CREATE TABLE t (n int PRIMARY KEY, v {type_name})")
        self.filled = type_name
        self.postgres.execute(
            f"INSERT INTO t SELECT n, x::{type_name} FROM unnest(%s::text[]) WITH ORDINALITY u(x, n)",
            (list(texts),),
        )
        return self.held("t", "v")

    def held(self, table: str, column: str) -> Held:
        printed = self.postgres.execute(
            "SELECT format_type(CASE b.typtype WHEN 'd' THEN b.typbasetype ELSE b.oid END,"
            " CASE b.typtype WHEN 'd' THEN b.typtypmod ELSE a.atttypmod END)"
            " FROM pg_attribute a JOIN pg_type b ON b.oid = a.atttypid"
            " WHERE attrelid = %s::regclass AND attname = %s",
            (table, column),
        ).fetchone()
        assert printed is not None
        return Held("", printed[0])

    def column(self, expression: str) -> list[Any]:
        return [row[0] for row in self.postgres.execute(f"SELECT {expression} FROM t ORDER BY n")]

    def printed(self) -> list[bytes | None]:
        """As the stream has it: what the type's output function gives."""
        result = self.postgres.cursor().execute("SELECT v FROM t ORDER BY n").pgresult
        assert result is not None
        return [result.get_value(n, 0) for n in range(result.ntuples)]


@pytest.fixture(scope="module")
def stores(postgres_server: PostgresServer) -> Iterator[Stores]:
    options = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
    urls = fresh_database(postgres_server)
    with (
        psycopg.connect(next(urls), autocommit=True, options=options, prepare_threshold=None) as connection,
        closing(sqlite3.connect(":memory:")) as lite,
    ):
        for statement in SETUP.split(";\n"):
            if statement.strip():
                connection.execute(statement.encode())
        connection.execute("CREATE TABLE kept (n int, v text)")
        connection.execute("DROP PUBLICATION p")  # updates here are of tables without a key
        yield Stores(connection, lite, connection.info.server_version // 10000)
    next(urls, None)
