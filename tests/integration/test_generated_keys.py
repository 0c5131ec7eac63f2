"""Replica identities with columns that do not travel: generated ones, and those of a Tailrace before."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from streamer.config import Config
from streamer.postgres.connection import connect
from streamer.postgres.identity import harmed_tables
from tests.harness.capture import capturing, events, run, values

REFUSED_SINCE = 180000  # the server fails UPDATEs whose identity is not published whole
GENERATED = "GENERATED ALWAYS AS (v * 2) STORED"
TABLES = {  # name -> its columns, what identifies it, what a capture advises
    "key": (f"id int, v int, g int {GENERATED} PRIMARY KEY", "", ("identity FULL)", "REPLICA IDENTITY FULL")),
    "ours": (
        "id int, v int, _tailrace_lsn bigint DEFAULT 7, PRIMARY KEY (id, _tailrace_lsn)",
        "",
        ("IDENTITY FULL;", "IDENTITY FULL;"),
    ),
    "part": (
        f"id int, v int, g int {GENERATED}, PRIMARY KEY (id, g)",
        "",
        ("identity FULL)", "IDENTITY FULL;"),
    ),
    "by_index": (
        f"id int NOT NULL CONSTRAINT plain UNIQUE, v int, g int {GENERATED} NOT NULL CONSTRAINT odd UNIQUE",
        "USING INDEX odd",
        ('USING INDEX "plain"', 'USING INDEX "plain"'),
    ),
    "whole": (f"id int PRIMARY KEY, v int, g int {GENERATED}", "FULL", ("IDENTITY DEFAULT;", "")),
}


async def test_h27_generated_columns_in_an_identity_leave_the_application_working(
    database: str, make_config: Callable[..., Config]
) -> None:
    for name, (columns, identity, _) in TABLES.items():
        await run(database, f"CREATE TABLE {name} ({columns})", f"INSERT INTO {name} VALUES (0, 10)")
        if identity:
            await run(database, f"ALTER TABLE {name} REPLICA IDENTITY {identity}")
    refused = await version(database) >= REFUSED_SINCE
    advised = {name: advice[not refused] for name, (*_, advice) in TABLES.items()}
    async with capturing(config := make_config(database)) as capture:
        for name in TABLES:
            await run(
                database,
                f"INSERT INTO {name} (id, v) VALUES (1, 21), (2, 22)",
                f"UPDATE {name} SET v = v + 5 WHERE id = 1",
                f"DELETE FROM {name} WHERE id = 2",
            )
        await capture.caught_up()
        await capture.until(lambda: len(capture.findings) == sum(1 for each in advised.values() if each))
        found = sorted(capture.findings)
    for finding, name in zip(found, sorted(name for name in advised if advised[name]), strict=True):
        assert finding.startswith(f"public.{name} had 2 UPDATEs or DELETEs that could not be captured: its")
        why = "column _tailrace_lsn, and what Tailrace adds to a target is never captured"
        assert (why if name == "ours" else "has the generated column g, which no publication") in finding
        assert advised[name] in finding
    for name in TABLES:
        records = await events(config, name)
        ops = [v["op"] for v in values(records)]
        assert {*values(records)[0]["after"]} == {"id", "v"}
        assert ops == (["r", "c", "c"] if advised[name] else ["r", "c", "c", "u", "d"])
        # A part of an identity would be the key of several rows.
        keys = {b'{"id":0}', b'{"id":1}', b'{"id":2}'} if name == "whole" else {None}
        assert {record.key for record in records if record.value and b'"op":"m"' not in record.value} == keys


@pytest.mark.parametrize("scope", ["TABLE key, whole", "ALL TABLES"])
async def test_h27_a_publication_that_harms_tables_is_named_with_what_mends_it(
    scope: str, database: str
) -> None:
    for name in ("key", "whole"):
        columns, identity, _ = TABLES[name]
        await run(database, f"CREATE TABLE {name} ({columns})", f"INSERT INTO {name} VALUES (0, 10)")
        if identity:
            await run(database, f"ALTER TABLE {name} REPLICA IDENTITY {identity}")
    await run(database, f"CREATE PUBLICATION p FOR {scope}")
    refused = await version(database) >= REFUSED_SINCE
    async with connect(database, application="test") as connection:
        harmed = await harmed_tables(connection, "p")
        assert [each.name for each in harmed] == (["key", "whole"] if refused else ["key"])
        if refused:
            with pytest.raises(psycopg.errors.InvalidColumnReference):
                await connection.execute("UPDATE key SET v = 11")
        for each in harmed:
            for statement in each.statements:
                await connection.execute(statement)
        assert await harmed_tables(connection, "p") == []
        await connection.execute("UPDATE key SET v = 11")
        await connection.execute("UPDATE whole SET v = 11")


async def version(url: str) -> int:
    async with connect(url, application="test") as connection:
        return connection.info.server_version
