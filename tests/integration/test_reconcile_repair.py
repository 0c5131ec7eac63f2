"""`tailrace reconcile --repair`: what differs is published again, compared once more, and noted."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

from consumers.asker import operator
from tests.harness.pipeline import Pipeline, execute
from tests.harness.reconcile import proved, reconcile, samples, sqlite_target

ITEMS = (
    "CREATE TABLE item (id bigint PRIMARY KEY, name text, price numeric)",
    "INSERT INTO item SELECT n, 'item ' || n, n * 0.5 FROM generate_series(1, 200) n",
)
FAULTS = (
    "DELETE FROM mirror.item WHERE id = 7",
    "UPDATE mirror.item SET price = price + 1 WHERE id IN (8, 9)",
    "INSERT INTO mirror.item (id, name) VALUES (9999, 'x')",
)


async def asked(pipeline: Pipeline) -> list[dict[str, Any]]:
    code, out = await pipeline.run("backfills", "--json")
    assert code == 0, out
    return [run for run in json.loads(out) if run["why"].startswith("repair:")]


async def in_target(pipeline: Pipeline) -> set[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(pipeline.target_url) as connection:
        query = "SELECT id, price::text FROM mirror.item WHERE id IN (7, 8, 9, 9999)"
        return set(await (await connection.execute(query)).fetchall())


async def target_ids(pipeline: Pipeline) -> list[int]:
    async with await psycopg.AsyncConnection.connect(pipeline.target_url) as connection:
        return [n for (n,) in await (await connection.execute("SELECT id FROM mirror.part")).fetchall()]


async def noted(pipeline: Pipeline, count: int) -> bool:
    with closing(sqlite3.connect(pipeline.folder / ".tailrace" / "control.db")) as connection:
        return connection.execute("SELECT count(*) FROM reconcile_repairs").fetchone() == (count,)


async def test_faults_are_repaired_and_verified(pipeline: Pipeline) -> None:
    await execute(pipeline.source_url, *ITEMS)
    await pipeline.start_both()
    await proved(pipeline)
    await execute(pipeline.target_url, *FAULTS)

    code, report = await reconcile(pipeline, "mirror", "--dry-run")
    repair = report["tables"][0]["repair"]
    assert (code, repair["mode"], repair["planned"], repair["left"]) == (1, "plan", 3, 4)
    assert (repair["missing"], repair["different"], repair["extra"]) == (1, 2, 0)
    assert samples(report) == {("missing", "7"), ("different", "8"), ("different", "9"), ("extra", "9999")}

    code, report = await reconcile(pipeline, "mirror", "--repair", "--delete-extra", "--limit", "3")
    refused = report["tables"][0]["repair"]["refused"]
    assert code == 1
    assert "4 rows of mirror would be repaired, and the limit is 3: nothing was asked" in refused
    assert f"`tailrace backfill {pipeline.source} public.item`" in refused
    code, report = await reconcile(pipeline, "mirror", "--repair", "--refuse-above", "1%")
    refused = report["tables"][0]["repair"]["refused"]
    assert code == 1
    assert "the drift of 2.00% is above 1.00%: nothing was asked" in refused
    assert f"`tailrace backfill {pipeline.source} public.item`" in refused
    assert await asked(pipeline) == []

    code, out = await pipeline.run("reconcile", "mirror", "--repair")
    assert code == 1, out
    assert "only in the target: 1; --delete-extra deletes such rows" in out
    assert await in_target(pipeline) == {(7, "3.5"), (8, "4.0"), (9, "4.5"), (9999, None)}

    async with await psycopg.AsyncConnection.connect(pipeline.target_url) as connection:
        await connection.execute("LOCK TABLE mirror.item IN EXCLUSIVE MODE")  # nothing is repaired meanwhile
        child = pipeline.start("reconcile", "mirror", "--repair", "--delete-extra", "--json")
        await pipeline.until("the second repair is noted", lambda: noted(pipeline, 2))
        child.kill()
    code, report = await reconcile(pipeline, "mirror", "--repair", "--delete-extra")
    assert report["tables"][0]["resumed"]
    repair = report["tables"][0]["repair"]
    assert (code, report["verdict"]) == (4, "repaired")
    assert (repair["planned"], repair["applied"], repair["verified"], repair["left"]) == (1, 1, 1, 0)
    code, again = await reconcile(pipeline, "mirror", "--repair")
    assert (code, again["tables"][0]["repair"]) == (0, None)

    runs = {run["run"]: run for run in await asked(pipeline)}
    assert runs[repair["backfill"]]["why"] == f"repair:{report['run']}"
    assert runs[repair["backfill"]]["by"] == operator()
    code, out = await pipeline.run("reconcile", "history", "--json")
    assert code == 0, out
    trail = [each for run in json.loads(out) for each in run["repairs"]]
    assert [each["backfill"] for each in trail] == list(reversed(list(runs)))
    last = trail[0]
    assert (last["run"], last["flow"], last["source_table"]) == (report["run"], "mirror", "public.item")
    assert (last["asked_by"], last["why"]) == (operator(), "tailrace reconcile --repair")
    assert last["report"] == repair
    assert last["asked"] <= last["ended"]
    assert (trail[1]["report"]["verified"], trail[1]["report"]["left"]) == (3, 1)
    code, out = await pipeline.run("reconcile", "history")
    assert code == 0
    figures = "planned 1, published 1, verified 1, left 0"
    assert f"{operator()} (tailrace reconcile --repair) repaired mirror public.item: {figures}" in out


@pytest.mark.thorough
async def test_h05_a_repair_ends_the_finding_of_partitions_that_are_gone(pipeline: Pipeline) -> None:
    """Of one with rows by what it takes out, of one without by finding nothing to take out."""
    await execute(
        pipeline.source_url,
        "CREATE TABLE part (id int PRIMARY KEY) PARTITION BY LIST (id)",
        *(f"CREATE TABLE part{n} PARTITION OF part FOR VALUES IN ({n})" for n in (1, 2, 3)),
        "INSERT INTO part VALUES (1), (2)",
    )
    await pipeline.start_both()
    await proved(pipeline)

    async def findings(count: int) -> bool:
        record = (await pipeline.status("capture"))[-1]
        return [f.split(" ")[0] for f in record.detail["findings"]] == ["partition"] * count

    for gone, verdict in (
        ("DROP TABLE part2", "repaired"),
        ("ALTER TABLE part DETACH PARTITION part3", "equal"),
    ):
        await execute(pipeline.source_url, gone)
        await pipeline.until("it is a finding", lambda: findings(1))
        words = ("mirror", "--repair", "--refuse-above", "100%")
        if verdict == "repaired":
            code, report = await reconcile(pipeline, *words)
            assert (code, report["verdict"]) == (1, "drift")
            assert await findings(1)
        code, report = await reconcile(pipeline, *words, "--delete-extra")
        assert report["verdict"] == verdict
        await pipeline.until("it is none any more", lambda: findings(0))
    assert await target_ids(pipeline) == [1]


@pytest.mark.thorough
async def test_the_file_says_what_is_repaired_and_keys_of_any_kind_are(pipeline: Pipeline) -> None:
    """A row that apply will not take back, as its version is newer than every event, is left and named."""
    pipeline.config["flows"]["mirror"]["delete"] = "soft(gone_at)"
    pipeline.config["reconcile"] = {
        "all": {"flow": "mirror", "repair": {"mode": "auto", "delete_extra": True, "refuse_above": "100%"}}
    }
    pipeline.write_config()
    keys = "n numeric, r real, d double precision, b bytea, t timestamptz, x text, u uuid"
    await execute(
        pipeline.source_url,
        f"CREATE TABLE odd (v int, {keys}, PRIMARY KEY (x, n, r, d, b, t, u))",
        "INSERT INTO odd SELECT n, n + 0.50, 0.1 + n, 'NaN', '\\x00ff', now(), E'a\"\\n\\\\,' || n,"
        " gen_random_uuid() FROM generate_series(1, 6) n",
        *ITEMS,
    )
    capture, _ = await pipeline.start_both()
    await proved(pipeline)
    await execute(
        pipeline.target_url,
        "DELETE FROM mirror.odd WHERE v = 1",
        "UPDATE mirror.odd SET v = 20 WHERE v = 2",
        "UPDATE mirror.odd SET gone_at = now() WHERE v = 3",
        "UPDATE mirror.odd SET x = 'other' WHERE v = 5",
    )
    code, report = await reconcile(pipeline)
    by_source = {table["source"]: table for table in report["tables"]}
    odd = by_source["public.odd"]
    assert (odd["missing"], odd["different"], odd["extra"]) == (3, 1, 1)
    assert (code, odd["verdict"], odd["repair"]["verified"]) == (4, "repaired", 5), odd
    assert by_source["public.item"]["repair"] is None
    await proved(pipeline)
    await execute(
        pipeline.target_url,
        "UPDATE mirror.item SET price = 0, _tailrace_epoch = _tailrace_epoch + 1 WHERE id = 8",
        "UPDATE mirror.item SET price = 0 WHERE id = 9",
    )
    code, report = await reconcile(pipeline, "all")
    (repair,) = [table["repair"] for table in report["tables"] if table["source"] == "public.item"]
    assert (code, repair["planned"], repair["verified"], repair["left"]) == (1, 2, 1, 1)
    assert repair["still"] == [["8"]]
    await execute(pipeline.target_url, "UPDATE mirror.item SET price = 0 WHERE id = 9")
    child = pipeline.start("reconcile", "all", "--wait", "2s")
    await pipeline.until("the third repair is noted", lambda: noted(pipeline, 3))
    capture.kill()
    assert await child.wait() == 3
    assert "the repair is not proved" in child.log()
    assert "`tailrace capture" in child.log().replace("\n", " ")


@pytest.mark.thorough
async def test_a_key_that_the_source_spells_otherwise_is_repaired(pipeline: Pipeline) -> None:
    """Where the target takes both spellings for one key (citext, numeric), and where it has two rows."""
    citext = "CREATE EXTENSION IF NOT EXISTS citext SCHEMA public"
    tables = {"name": "citext", "price": "numeric", "code": "char(4)"}
    await execute(
        pipeline.source_url,
        citext,
        *(f"CREATE TABLE {table} (k {type_} PRIMARY KEY, v int)" for table, type_ in tables.items()),
        "INSERT INTO name VALUES ('Ann', 1), ('Bob', 2)",
        "INSERT INTO price VALUES (1.00, 1), (2.50, 2)",
        "INSERT INTO code VALUES ('a', 1), ('b', 2)",
    )
    await execute(
        pipeline.target_url,
        citext,
        "CREATE SCHEMA mirror",
        "CREATE TABLE mirror.name (k citext PRIMARY KEY, v int)",
        "CREATE TABLE mirror.price (k numeric PRIMARY KEY, v int)",
        "CREATE TABLE mirror.code (k text PRIMARY KEY, v int)",
    )
    pipeline.start("capture")
    pipeline.start("apply")
    await proved(pipeline)
    await execute(
        pipeline.target_url,
        "UPDATE mirror.name SET k = 'ANN' WHERE k = 'ann'",
        "UPDATE mirror.price SET k = 1.0 WHERE k = 1",
        "INSERT INTO mirror.code VALUES ('a', 1), ('c', 3)",
    )
    code, report = await reconcile(pipeline, "--repair", "--delete-extra", "--refuse-above", "100%")
    assert samples(report) == {
        *[("extra", key) for key in ("ANN", "1.0", "a", "c")],
        *[("missing", key) for key in ("Ann", "1.00")],
    }
    assert (code, report["verdict"]) == (4, "repaired"), report
    assert {t["source"]: (t["repair"]["verified"], t["repair"]["left"]) for t in report["tables"]} == {
        f"public.{table}": (2, 0) for table in tables
    }
    await proved(pipeline)


@pytest.mark.thorough
async def test_keys_that_the_source_refuses_do_not_stop_the_repair_of_the_others(pipeline: Pipeline) -> None:
    """A label that was renamed in the source, and what its domain forbids: rows of such keys go. Where a
    backfill fails all the same, the report has the server's words."""
    await execute(
        pipeline.source_url,
        "CREATE TYPE st AS ENUM ('open', 'done')",
        "CREATE DOMAIN even AS int CHECK (VALUE % 2 = 0)",
        "CREATE TABLE job (st st PRIMARY KEY, v int)",
        "CREATE TABLE pair (n even PRIMARY KEY, v int)",
        "CREATE TYPE holder AS (n even)",
        "CREATE TABLE box (h holder PRIMARY KEY)",
        "CREATE FUNCTION picky(n int) RETURNS bool LANGUAGE plpgsql AS"
        " $$ BEGIN IF n = 13 THEN RAISE 'not that one'; END IF; RETURN true; END $$",
        "CREATE DOMAIN fine AS int CHECK (picky(VALUE))",
        "CREATE TABLE tray (n fine PRIMARY KEY)",
        "INSERT INTO job VALUES ('open', 1), ('done', 2)",
        "INSERT INTO pair VALUES (2, 1), (4, 2)",
        "INSERT INTO box VALUES (ROW(2)), (ROW(4))",
        "INSERT INTO tray VALUES (12)",
    )
    await execute(
        pipeline.target_url,
        "CREATE SCHEMA mirror",
        "CREATE TABLE mirror.job (st text PRIMARY KEY, v int)",
        "CREATE TABLE mirror.box (h text PRIMARY KEY)",
    )
    await pipeline.start_both()
    await proved(pipeline)
    await execute(pipeline.source_url, "ALTER TYPE st RENAME VALUE 'done' TO 'closed'")
    await execute(
        pipeline.target_url,
        "UPDATE mirror.job SET v = 9 WHERE st = 'open'",
        "UPDATE mirror.pair SET n = 3 WHERE n = 2",
        "UPDATE mirror.box SET h = '(3)' WHERE h = '(2)'",
    )
    code, report = await reconcile(pipeline, "--repair", "--delete-extra", "--refuse-above", "100%")
    assert samples(report) == {
        *[("extra", key) for key in ("done", "3", "(3)")],
        *[("missing", key) for key in ("closed", "2", "(2)")],
        ("different", "open"),
    }
    assert (code, report["verdict"]) == (4, "repaired"), report
    await proved(pipeline)
    await execute(pipeline.target_url, "INSERT INTO mirror.tray VALUES (13)")
    code, report = await reconcile(pipeline, "--repair", "--delete-extra", "--refuse-above", "100%")
    (repair,) = [table["repair"] for table in report["tables"] if table["repair"]]
    assert (code, repair["state"], repair["left"]) == (1, "failed", 1)
    assert repair["reason"] == f"backfill {repair['backfill']} has failed: not that one"


@pytest.mark.thorough
async def test_a_copy_in_sqlite_is_repaired(
    tmp_path: Path, database: str, kafka: str, kafka_name: str
) -> None:
    file = tmp_path / "copy.db"
    target = sqlite_target(file)
    async with Pipeline(
        tmp_path, source_url=database, target_url=database, brokers=kafka, name=kafka_name, target=target
    ) as pipeline:
        prices = "CREATE TABLE price (k numeric PRIMARY KEY, v int)"
        words = "CREATE TABLE word (w text PRIMARY KEY)", "INSERT INTO word VALUES ('a'), ('b')"
        marks = "CREATE TABLE mark (id uuid PRIMARY KEY)", "INSERT INTO mark SELECT gen_random_uuid()"
        prices_there = "INSERT INTO price VALUES (1.00, 1), (2.50, 2)"
        await execute(database, *ITEMS, *words, *marks, prices, prices_there)
        pipeline.start("capture")
        pipeline.start("apply")
        await proved(pipeline)
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("DELETE FROM item WHERE id = 7")
            connection.execute("UPDATE item SET price = '1' WHERE id = 8")
            connection.execute("INSERT INTO item (id, name) VALUES (9999, 'x')")
            connection.execute("INSERT INTO price (k, v) VALUES ('1.0', 1)")  # as text another key than 1.00
            connection.execute("UPDATE mark SET id = 'none'")  # which is no uuid
        code, report = await reconcile(pipeline, "--repair", "--delete-extra", "--refuse-above", "100%")
        repaired = {table["source"]: table["repair"] for table in report["tables"]}
        assert code == 4, report
        assert {
            table: (repair["verified"], repair["left"]) for table, repair in repaired.items() if repair
        } == {
            "public.item": (3, 0),
            "public.mark": (2, 0),
            "public.price": (1, 0),
        }
        await proved(pipeline)
        with closing(sqlite3.connect(file)) as connection, connection:
            connection.execute("INSERT INTO word (w) VALUES ('a' || char(0))")  # no text of a PostgreSQL
            connection.execute("DELETE FROM item WHERE id = 9")
        code, report = await reconcile(pipeline, "--repair", "--delete-extra", "--refuse-above", "100%")
        repaired = {table["source"]: table["repair"] for table in report["tables"] if table["repair"]}
        assert code == 1, report
        assert (repaired["public.item"]["verified"], repaired["public.item"]["left"]) == (1, 0)
        assert (repaired["public.word"]["planned"], repaired["public.word"]["left"]) == (0, 1)
        assert repaired["public.word"]["still"] == [["a\0"]]
