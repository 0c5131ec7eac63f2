"""A derived table that somebody else keeps, beside the query that it is of."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import jsonschema
import orjson
import psycopg
import pytest

from consumers.reconcile.history import History
from consumers.reconcile.job import jobs_of
from consumers.reconcile.report import TableReport
from consumers.reconcile.run import Options, run_jobs
from consumers.reconcile.sides.postgres import Session
from streamer.config import Config, parse
from streamer.errors import ConfigError, SourceUnavailable, TargetUnavailable
from tests.harness.given import execute, rows
from tests.harness.reconcile import SCHEMA, sqlite_target

SETTLE_S = 0.01
NOW_US = 1_795_370_400_000_000  # six hours after the first entry
QUERY = """SELECT t.topic, e.entry, count(*) AS tags, e.published
FROM topic_tags t JOIN entry_tags e USING (tag) GROUP BY 1, 2, 4 -- each once"""
TABLES = (
    "CREATE TABLE topic_tags (topic int, tag text)",
    "CREATE TABLE entry_tags (entry text, tag text, published timestamptz)",
    "INSERT INTO topic_tags SELECT n, 'tag ' || n % 7 FROM generate_series(1, 20) n",
    "INSERT INTO entry_tags SELECT 'e' || n % 30, 'tag ' || n % 11, '2026-11-22 12:00Z'::timestamptz"
    " + n % 30 * interval '1 h' FROM generate_series(1, 330) n",
)


def config_of(
    folder: Path, source: str, target: dict[str, Any], sql: str = QUERY, key: str = "topic, entry", **job: Any
) -> Config:
    document = {
        "name": "acme",
        "sources": {
            "shop": {"kind": "postgres", "url": source, "tables": {"public.*": {}}},
            "links": {
                "kind": "query",
                "on": "shop",
                "key": key.split(", "),
                "sql": sql,
                "dirty": {"public.topic_tags": "topic"},
            },
        },
        "targets": {"copy": target},
        "reconcile": {"links": {"flow": {"from": "links", "to": "copy.public.entry_topics"}, **job}},
    }
    return parse(orjson.dumps(document).decode(), folder / "tailrace.yaml", environ={})


async def prove(config: Config, *, where: str = "") -> TableReport:
    history = History(config)
    history.open()
    try:
        runs = history.begin(uuid4().hex, {}, [], NOW_US, fresh=True)
        options = Options(where, settle_s=SETTLE_S)
        report = await run_jobs(
            config, jobs_of(config, []), options, runs, now_us=lambda: NOW_US, by="ann@host"
        )
    finally:
        history.close()
    jsonschema.validate(report.plain(), orjson.loads(SCHEMA.read_bytes()))
    (table,) = report.tables
    return table


def found(table: TableReport) -> set[tuple[str, ...]]:
    return {(sample.kind, *sample.key, *sample.columns) for sample in table.samples}


async def query_rows(url: str) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute("SET TimeZone = 'UTC'")
        return await (await connection.execute(QUERY.encode())).fetchall()


async def test_what_stays_different_is_drift_and_is_not_repaired(
    database: str, target_database: str, tmp_path: Path
) -> None:
    await execute(database, *TABLES)
    await execute(
        target_database,
        "CREATE TABLE entry_topics (entry text, note text, topic bigint, tags int, published timestamptz)",
    )
    wanted = await query_rows(database)
    async with await psycopg.AsyncConnection.connect(target_database) as connection:
        await connection.cursor().executemany(
            "INSERT INTO entry_topics (topic, entry, tags, published) VALUES (%s, %s, %s, %s)", wanted
        )
    config = config_of(
        tmp_path,
        database,
        {"kind": "postgres", "url": target_database},
        repair={"mode": "auto"},
        group_by="topic",
        windows={"column": "published", "sizes": ["7d"]},
    )
    table = await prove(config)
    assert (table.verdict, table.source_rows, table.target_rows) == ("equal", len(wanted), len(wanted))
    assert (table.source, table.target) == ("links", "copy.public.entry_topics")
    assert (table.fence, table.fences, table.repair) == (None, [], None)
    assert table.columns == ["topic", "entry", "tags", "published"]
    assert any("no stream is between" in note for note in table.notes)
    await execute(
        target_database,
        "DELETE FROM entry_topics WHERE topic = 1 AND entry = 'e2'",
        "UPDATE entry_topics SET published = published + interval '1 us' WHERE topic = 2 AND entry = 'e1'",
        "UPDATE entry_topics SET tags = NULL WHERE topic = 7 AND entry = 'e1'",
        "INSERT INTO entry_topics (topic, entry) VALUES (99, '')",
    )
    table = await prove(config)
    assert table.verdict == "drift"
    assert found(table) == {
        ("missing", "1", "e2"),
        ("different", "2", "e1", "published"),
        ("different", "7", "e1", "tags"),
        ("extra", "99", ""),
    }
    assert table.groups is not None
    drifted = {
        (*cell.group, cell.window, cell.source_rows, cell.target_rows)
        for cell in table.groups.listed
        if cell.drift
    }
    assert drifted == {
        ("1", None, 30, 29),
        ("1", "7d", 7, 6),
        ("2", None, 30, 30),
        ("2", "7d", 7, 7),
        ("7", None, 30, 30),
        ("7", "7d", 7, 7),
        ("99", None, 0, 1),
    }
    assert table.repair is not None
    assert (table.repair.planned, table.repair.left) == (0, 4)
    assert "links is a query, and nothing publishes its rows: nothing was asked" in table.repair.refused
    assert "run what keeps copy.public.entry_topics once more" in table.repair.refused
    table = await prove(config, where="topic BETWEEN 3 AND 6")
    assert (table.verdict, table.source_rows < len(wanted)) == ("equal", True)
    assert table.why_not_fast == "the source's rows are those of a query"
    await execute(target_database, "DROP TABLE entry_topics")
    table = await prove(config)
    assert (table.verdict, table.reason) == ("drift", "the target has no such table")


async def test_a_table_in_sqlite(database: str, tmp_path: Path) -> None:
    await execute(database, *TABLES)
    file = tmp_path / "copy.db"
    wanted = await query_rows(database)
    with closing(sqlite3.connect(file)) as line, line:
        line.execute("CREATE TABLE entry_topics (topic INTEGER, entry TEXT, published TEXT)")
        line.executemany(
            "INSERT INTO entry_topics VALUES (?, ?, ?)",
            [(topic, entry, f"{published:%Y-%m-%dT%H:%M:%SZ}") for topic, entry, _, published in wanted],
        )
    config = config_of(tmp_path, database, sqlite_target(file))
    table = await prove(config)
    assert (table.verdict, table.source_rows) == ("equal", len(wanted))
    assert "column 'tags' of the query is not in the target's table, and is not compared" in table.notes
    with closing(sqlite3.connect(file)) as line, line:
        line.execute("UPDATE entry_topics SET published = NULL WHERE topic = 4 AND entry = 'e4'")
    assert found(await prove(config)) == {("different", "4", "e4", "published")}


@pytest.mark.parametrize("store", ["postgres", "sqlite"])
async def test_doubled_rows_and_nulls_in_the_key_of_the_table_are_no_proof(
    store: str, database: str, target_database: str, tmp_path: Path
) -> None:
    """The table is somebody else's, and need not have a unique index."""
    await execute(database, "CREATE TABLE topic_tags (topic int)", "INSERT INTO topic_tags VALUES (1), (2)")
    file = tmp_path / "copy.db"
    target = sqlite_target(file) if store == "sqlite" else {"kind": "postgres", "url": target_database}
    config = config_of(tmp_path, database, target, "SELECT topic FROM topic_tags", "topic")

    async def written(statement: str) -> TableReport:
        if store == "postgres":
            await execute(target_database, statement)
        else:
            with closing(sqlite3.connect(file)) as line, line:
                line.execute(statement)
        return await prove(config)

    await written("CREATE TABLE entry_topics (topic int)")
    assert (await written("INSERT INTO entry_topics VALUES (1), (2)")).verdict == "equal"
    doubled = await written("INSERT INTO entry_topics VALUES (2)")
    assert doubled.verdict == "incomplete"
    assert "its key does not tell the rows of" in doubled.reason
    assert "(2) 2 times" in doubled.reason
    null = await written("UPDATE entry_topics SET topic = NULL WHERE topic = 2")
    assert null.verdict == "incomplete", null.reason
    assert "(NULL) 2 times" in null.reason


async def test_a_statement_that_takes_too_long_is_given_up(database: str) -> None:
    for role, kind in (("source", SourceUnavailable), ("target", TargetUnavailable)):
        session = Session(database, role)
        await session.open()
        try:
            assert await session.rows("SHOW statement_timeout") == [("5min",)]
            await session.connection.execute("SET statement_timeout = '10ms'")
            with pytest.raises(kind, match="has not read a part of the table within 300 s"):
                await session.rows("SELECT pg_sleep(5)")
        finally:
            await session.close()


async def test_a_key_that_does_not_tell_rows_apart_is_said_with_its_rows(
    database: str, target_database: str, tmp_path: Path
) -> None:
    await execute(database, *TABLES, "INSERT INTO entry_tags VALUES (NULL, 'tag 1', now())")
    target = {"kind": "postgres", "url": target_database}
    await execute(target_database, "CREATE TABLE entry_topics (topic int, entry text)")
    table = await prove(config_of(tmp_path, database, target))
    assert (table.verdict, table.complete) == ("incomplete", False)
    assert "(1, NULL) 1 times" in table.reason
    sql = "SELECT topic, 'e' AS entry FROM topic_tags, generate_series(1, topic) WHERE topic < 3"
    table = await prove(config_of(tmp_path, database, target, sql))
    assert "its key (topic, entry) does not tell the query's rows apart: (2, e) 2 times" in table.reason


REFUSED = (
    ("SELECT 1 AS topic, 'e' AS entry;", "a `;`, or more than one statement"),
    ("SELECT 1 AS topic, 'e' AS entry; DROP TABLE topic_tags", "a `;`, or more than one statement"),
    ("SELECT 1 AS topic) q; DELETE FROM topic_tags; SELECT * FROM (SELECT 1", "the server refuses"),
    ("DELETE FROM topic_tags RETURNING topic, '' AS entry", "the server refuses the query: syntax error"),
    ("WITH d AS (DELETE FROM topic_tags RETURNING 1) SELECT 1 AS topic", "data-modifying"),
    ("SELECT topic FROM topic_tag", 'relation "topic_tag" does not exist'),
    ("SELECT topic, tag FROM topic_tags WHERE topic = $1", "parameters"),
    ("SELECT 1 AS topic, 2 AS topic, 3 AS entry", "two columns 'topic'"),
    ("SELECT topic, tag AS entri FROM topic_tags", "'entry', which the query does not have"),
    ("SELECT nextval('numbers') AS topic, 'e' AS entry", "would write: cannot execute nextval"),
)


async def test_what_is_no_query_or_lacks_its_key_is_named(
    database: str, target_database: str, tmp_path: Path
) -> None:
    await execute(database, *TABLES, "CREATE SEQUENCE numbers")
    for sql, message in REFUSED:
        config = config_of(tmp_path, database, {"kind": "postgres", "url": target_database}, sql)
        with pytest.raises(ConfigError) as caught:
            await prove(config)
        assert message in str(caught.value), sql
        if "entri" in sql:
            assert "sources.links.key" in str(caught.value)
            assert "did you mean 'entri'?; the query has: topic, entri" in str(caught.value)
    assert await rows(database, "SELECT count(*) FROM topic_tags") == [(20,)]


EQUAL_KEYS = """SELECT n, j, x, r, a, count(*) AS rows FROM (VALUES
    (2.500, '{"a": [1.0, "1.0", "\\"1.0"], "b": null}'::jsonb, 0::float8, '[1.0,2.50)'::numrange,
     '{1.0,NULL}'::numeric[]),
    (2.500, '{"a": [10, "1.0"]}', '-0', '(,-1.0]', '{}'), (10, '-0.50', 1, 'empty', '{{1.00},{2}}'),
    ('NaN', '[]', 'NaN', '[1.0,infinity]', '{NaN,-10.0}'), (0.10, '"2.0"', 100, '[-infinity,1.0]', '{1e3}')
  ) v (n, j, x, r, a) GROUP BY 1, 2, 3, 4, 5"""
KEPT = """INSERT INTO entry_topics VALUES
    (2.5, '{"a": [1, "1.0", "\\"1.0"], "b": null}', '-0', '[1,2.5)', '{1,NULL}', 1),
    (2.5, '{"a": [10.0, "1.0"]}', 0, '(,-1]', '{}', 1), (10.0, '-0.5', 1, 'empty', '{{1},{2.0}}', 1),
    ('NaN', '[]', 'NaN', '[1,infinity]', '{NaN,-10}', 1),
    (0.1, '"2.0"', 100, '[-infinity,1]', '{1000.0}', 1)"""


async def test_keys_are_compared_by_what_is_equal_and_not_by_their_texts(
    database: str, target_database: str, tmp_path: Path
) -> None:
    """GROUP BY gives any of a group's equal values: a derived row shows another one, and is the same row."""
    await execute(
        target_database,
        "CREATE TABLE entry_topics (n numeric, j jsonb, x float8, r numrange, a numeric[], rows bigint)",
        KEPT,
    )
    config = config_of(
        tmp_path,
        database,
        {"kind": "postgres", "url": target_database},
        sql=EQUAL_KEYS,
        key="n, j, x, r, a",
    )
    table = await prove(config)
    assert (table.verdict, table.source_rows, found(table)) == ("equal", 5, set())
    await execute(
        target_database,
        "UPDATE entry_topics SET r = '[1,infinity)' WHERE n = 'NaN'",
        "UPDATE entry_topics SET j = '\"2\"' WHERE n = 0.1",
        "UPDATE entry_topics SET rows = 2 WHERE n = 10",
    )
    table = await prove(config)
    assert {(sample.kind, sample.key[0]) for sample in table.samples} == {
        ("missing", "NaN"),
        ("extra", "NaN"),
        ("missing", "0.1"),
        ("extra", "0.1"),
        ("different", "10"),
    }
