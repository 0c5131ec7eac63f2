"""What doctor says of tables that are in a SQLite target's file already."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from streamer.config import SqlTarget, parse
from streamer.doctor import Level
from streamer.doctor.check import Check, Findings
from streamer.doctor.postgres import Server
from streamer.doctor.source import SourceFacts
from streamer.doctor.sql import check_sql
from streamer.postgres.catalog import Table

COLUMNS = [("id", "bigint", True), ("Name", "text", False), ("mail", "text", False)]
FACTS = SourceFacts(
    Server("app", "shop", 180000, False, ("shop",)),
    (Table("public", "users", 1, "d", ("id",), True),),
    {("public", "users"): COLUMNS},
)


def run(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


async def constraints(file: Path, delete: str = "apply", more: str = "", to: str = "lite") -> list[Check]:
    config = parse(
        f"""\
name: acme
sources: {{shop: {{kind: postgres, url: "postgresql://u@h/d", tables: {{"public.*": {{}}}}}}}}
targets: {{lite: {{kind: sql, url: "sqlite:///{file}"}}}}
flows: {{mirror: {{from: shop.public.users, to: {to}, delete: {delete}{more}}}}}
""",
        environ={},
    )
    target, findings = config.targets["lite"], Findings("target lite")
    assert isinstance(target, SqlTarget)
    await check_sql(findings, config, target, {"shop": FACTS})
    return [check for check in findings.checks if check.level is Level.FAIL]


async def test_unique_indexes_that_hold_deleted_rows(tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    run(
        file,
        "CREATE TABLE users"
        " (id INTEGER PRIMARY KEY, name TEXT, mail TEXT UNIQUE, gone_at TEXT, mine TEXT UNIQUE)",
        "CREATE UNIQUE INDEX named ON users (name)",
        "CREATE UNIQUE INDEX some ON users (name) WHERE name > 'a'",
        "CREATE UNIQUE INDEX live ON users (name) WHERE gone_at IS NULL",
        "CREATE UNIQUE INDEX more ON users (id, name)",
    )
    assert await constraints(file, "apply") == []
    found = await constraints(file, "soft(gone_at)")
    assert sorted(check.what.partition(" holds")[0] for check in found) == [
        "users: its unique index named",
        "users: its unique index some",
        "users: its unique index sqlite_autoindex_users_1",
    ]
    run(file, *(statement for check in found for statement in check.sql))
    (left,) = await constraints(file, "soft(gone_at)")
    assert "make the table without this UNIQUE" in left.fix


async def test_the_key_that_a_table_has(tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    run(file, 'CREATE TABLE users (id INTEGER, name TEXT, mail TEXT, "te""nant" TEXT)')
    (found,) = await constraints(file)
    assert "users has no unique key on id" in found.what
    run(file, *found.sql)
    assert await constraints(file) == []
    (found,) = await constraints(file, more=", write: append")
    assert "the flow mirror keeps every change as a row" in found.what
    run(file, 'DROP INDEX "users_key"')
    assert await constraints(file, more=", write: append") == []
    run(file, 'CREATE UNIQUE INDEX "one" ON users ("te""nant", id)')
    (found,) = await constraints(file)
    assert "no unique key" in found.what
    assert await constraints(file, more=""", columns: {'te"nant': {value: acme}}""") == []


async def test_the_index_of_an_oddly_named_table(tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    run(file, 'CREATE TABLE "sel""ect %s" (id INTEGER, name TEXT, mail TEXT)')
    (found,) = await constraints(file, to="""'lite.main.sel"ect %s'""")
    run(file, *found.sql)
    assert await constraints(file, to="""'lite.main.sel"ect %s'""") == []
