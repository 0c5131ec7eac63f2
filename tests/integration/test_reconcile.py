"""`tailrace reconcile` over the whole pipeline: equal, drift by name, and what only waits apart from it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from consumers.commands.parked import opened
from streamer.config import load
from tests.harness.pipeline import Pipeline, execute
from tests.harness.reconcile import counts, proved, reconcile, samples

ITEMS = (
    "CREATE TABLE item (id bigint PRIMARY KEY, name text, price numeric, seen timestamptz)",
    "INSERT INTO item SELECT n, 'item ' || n, n * 0.5, now() FROM generate_series(1, 2000) n",
)


# True of every row while reconcile has one session on the server, whose statements have a limit.
CAREFUL = """current_setting('statement_timeout') = '5min' AND 1 = (SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'tailrace reconcile')"""


async def test_equal_is_proved_and_faults_are_named(pipeline: Pipeline, tmp_path: Path) -> None:
    await execute(pipeline.source_url, *ITEMS, "CREATE TABLE nothing (id int PRIMARY KEY)")
    await pipeline.start_both()
    code, report = await reconcile(pipeline)
    assert (code, report["verdict"], report["complete"]) == (0, "equal", True), report
    table, nothing = sorted(report["tables"], key=lambda each: str(each["source"]))
    assert (table["path"], table["source_rows"], table["target_rows"]) == ("fast", 2000, 2000)
    assert (nothing["source_rows"], nothing["complete"]) == (0, True)
    await execute(
        pipeline.target_url,
        "DELETE FROM mirror.item WHERE id = 7",
        "UPDATE mirror.item SET price = price + 0.00 WHERE id = 8",
        "INSERT INTO mirror.item (id, name) VALUES (9999, 'x')",
    )
    log = tmp_path / "health.log"
    code, report = await reconcile(pipeline, "mirror", "--values", "--log", str(log))
    assert (code, report["verdict"]) == (1, "drift")
    assert samples(report) == {("missing", "7"), ("different", "8"), ("extra", "9999")}
    (table,) = [each for each in report["tables"] if each["source"] == "public.item"]
    different = next(sample for sample in table["samples"] if sample["kind"] == "different")
    assert (different["source"], different["target"]) == ({"price": "4.0"}, {"price": "4.00"})
    assert table["fences"]
    assert "reconcile mirror drift" in log.read_text()
    code, report = await reconcile(pipeline, "mirror", "--threshold", "1%")
    assert (code, report["verdict"]) == (0, "equal")
    assert all(s["source"] is None and s["target"] is None for t in report["tables"] for s in t["samples"])
    code, report = await reconcile(pipeline, "mirror", "--where", f"id > 8 AND id < 9999 AND {CAREFUL}")
    assert (code, [table["source_rows"] for table in report["tables"]]) == (0, [1992, 0])
    code, out = await pipeline.run("reconcile", "mirror", "--where", "price > 8")
    assert code == 64  # the other table has no such column
    assert 'column "price" does not exist' in out
    code, out = await pipeline.run("reconcile", "history", "--json")
    assert code == 0
    runs = json.loads(out)
    verdicts = [run["report"]["verdict"] if run["ended"] else "" for run in runs]
    assert verdicts == ["error", "equal", "equal", "drift", "equal"]
    assert 'column "price" does not exist' in runs[0]["report"]["tables"][0]["reason"]
    assert not report["resumed"]
    assert (pipeline.folder / ".tailrace" / "control.db").exists()


@pytest.mark.thorough
async def test_without_apply_it_is_incomplete_and_says_what_to_start(pipeline: Pipeline) -> None:
    await execute(pipeline.source_url, *ITEMS)
    capture, apply = await pipeline.start_both()
    assert await apply.stop() == 0
    await execute(pipeline.source_url, "UPDATE item SET name = 'b' WHERE id = 1")
    code, report = await reconcile(pipeline, "--wait", "2s")
    (table,) = report["tables"]
    assert (code, counts(table), report["complete"]) == (3, {}, False)
    assert "-> start it: `tailrace apply copy`" in table["reason"]
    assert await capture.stop() == 0
    await execute(pipeline.source_url, "UPDATE item SET name = 'b' WHERE id = 2")
    code, report = await reconcile(pipeline, "--wait", "2s")
    (table,) = report["tables"]
    assert (code, counts(table)) == (3, {})
    assert f"-> start it: `tailrace capture {pipeline.source}`" in table["reason"]


@pytest.mark.thorough
async def test_parked_and_held_rows_are_no_drift(pipeline: Pipeline) -> None:
    pipeline.config["flows"]["mirror"]["truncate"] = "hold"
    pipeline.write_config()
    await execute(pipeline.source_url, *ITEMS, "CREATE TABLE other AS TABLE item")
    await execute(pipeline.source_url, "ALTER TABLE other ADD PRIMARY KEY (id)")
    await pipeline.start_both()
    await execute(pipeline.target_url, "ALTER TABLE mirror.item ADD CHECK (name <> 'bad')")
    await execute(
        pipeline.source_url,
        "UPDATE item SET name = 'bad' WHERE id = 5",
        "UPDATE item SET price = 1 WHERE id = 5",
        "TRUNCATE other",
    )

    async def wait() -> bool:
        async with opened(load(pipeline.config_path), "copy") as target:
            return bool(await target.parked() and await target.gates())

    await pipeline.until("a row is parked and a truncate held", wait)
    await execute(pipeline.target_url, "UPDATE mirror.item SET name = 'c' WHERE id = 6")
    code, report = await reconcile(pipeline)
    item, other = sorted(report["tables"], key=lambda each: str(each["source"]))
    assert counts(item) == {"parked": 1, "different": 1}
    assert counts(other) == {"held": 2000}
    assert (code, item["complete"], other["complete"]) == (1, True, False)
    assert "tailrace approve mirror" in other["reason"]


@pytest.mark.thorough
async def test_a_killed_run_goes_on(pipeline: Pipeline) -> None:
    await execute(pipeline.source_url, *ITEMS)
    await pipeline.start_both()
    await execute(pipeline.target_url, "DELETE FROM mirror.item WHERE id = 7")
    control = pipeline.folder / ".tailrace" / "control.db"
    child = pipeline.start("reconcile", "mirror", "--limit-rate", "500", "--json")

    def done() -> int:
        with closing(sqlite3.connect(control)) as connection:
            try:
                rows = connection.execute("SELECT progress FROM reconcile_tables").fetchall()
            except sqlite3.OperationalError:  # it is just being made
                return 0
        return sum(json.loads(progress)["parts"] for (progress,) in rows)

    async def begun() -> bool:
        return control.exists() and done() > 1

    await pipeline.until("pieces are done", begun)
    child.kill()
    pieces = done()
    assert pieces < 4
    # One where it has been already, for the next run; one where it has not.
    await execute(pipeline.target_url, "UPDATE mirror.item SET name = 'x' WHERE id IN (8, 2000)")
    code, report = await reconcile(pipeline, "mirror", "--limit-rate", "500")
    (table,) = report["tables"]
    found = {("missing", "7"), ("different", "2000")}
    assert (code, counts(table), samples(report)) == (1, {"missing": 1, "different": 1}, found)
    assert table["resumed"]
    assert report["resumed"]
    assert (table["source_rows"], table["target_rows"]) == (2000, 1999)
    code, again = await reconcile(pipeline, "mirror", "--limit-rate", "10000")
    assert (code, samples(again)) == (1, {*found, ("different", "8")})
    code, out = await pipeline.run("reconcile", "history", "--json")
    assert [(run["ended"], run["run"]) for run in json.loads(out)] == [
        (True, r["run"]) for r in (again, report)
    ]


async def test_a_source_that_is_a_target_keeps_its_versions_to_itself(pipeline: Pipeline) -> None:
    """From database to database to database; and names of objects are texts, which the second has not."""
    await execute(
        pipeline.source_url,
        "CREATE TABLE item (id int PRIMARY KEY, _tailrace_epoch int NOT NULL DEFAULT 99, name text,"
        " _tailrace_lsn bigint NOT NULL DEFAULT 1, place regclass)",
        "INSERT INTO item SELECT n, 99, 'n', 5, 'item' FROM generate_series(1, 20) n",
    )
    pipeline.start("capture")
    await pipeline.captured()
    pipeline.start("apply")
    await execute(pipeline.source_url, "UPDATE item SET name = 'm', _tailrace_lsn = 6 WHERE id < 5")
    code, out = await pipeline.run("backfill", pipeline.source, "item")
    assert code == 0, out
    (table,) = (await proved(pipeline))["tables"]
    assert (table["path"], table["columns"], table["target_rows"]) == (
        "canonical",
        ["id", "name", "place"],
        20,
    )
    query = "SELECT count(*) FROM mirror.item WHERE _tailrace_epoch <> 99 AND place = 'item'::text"
    assert await pipeline.target_value(query) == 20


@pytest.mark.thorough
async def test_a_flow_is_compared_as_it_means_it(pipeline: Pipeline) -> None:
    source = f"{pipeline.source}.public.item"
    flows = {
        "renamed": {"columns": {"name": "title", "tenant": {"value": "acme"}, "price": {"cast": "real"}}},
        "soft": {"delete": "soft(gone_at)"},
        "first": {"write": "insert_only"},
        "keeps": {"delete": "ignore"},
        "history": {"write": "append"},
        "few": {"columns": {"id": "id", "name": "name"}, "unmapped": "ignore"},
    }
    pipeline.config["flows"] = {
        name: {"from": source, "to": f"copy.{name}.item", **flow} for name, flow in flows.items()
    }
    pipeline.write_config()
    await execute(pipeline.source_url, *ITEMS)
    pipeline.start("capture"), pipeline.start("apply")
    await proved(pipeline)
    await execute(
        pipeline.source_url,
        "DELETE FROM item WHERE id < 4",
        "UPDATE item SET name = 'z', price = 1e-7 WHERE id BETWEEN 10 AND 12",
    )
    report = await proved(pipeline)
    by_flow = {table["flow"]: table for table in report["tables"]}
    assert by_flow["history"]["meant"]
    assert by_flow["first"]["columns"] == ["id"]
    assert by_flow["few"]["columns"] == ["id", "name"]
    assert set(by_flow["renamed"]["columns"]) == {"id", "name", "price", "seen", "tenant"}
    assert (by_flow["keeps"]["source_rows"], by_flow["keeps"]["target_rows"]) == (1997, 2000)
    assert by_flow["soft"]["target_rows"] == 1997
    await execute(
        pipeline.target_url,
        "UPDATE renamed.item SET tenant = 'other' WHERE id = 20",
        "UPDATE renamed.item SET title = 'other' WHERE id = 21",
        "UPDATE soft.item SET gone_at = now() WHERE id = 22",
        "UPDATE soft.item SET gone_at = NULL WHERE id = 1",
        "DELETE FROM keeps.item WHERE id IN (1, 23)",
        "DELETE FROM first.item WHERE id = 24",
        "UPDATE few.item SET name = NULL WHERE id = 25",
    )
    code, report = await reconcile(pipeline)
    found = {(t["flow"], *fault) for t in report["tables"] for fault in samples({"tables": [t]})}
    assert code == 1
    assert found == {
        ("renamed", "different", "20"),
        ("renamed", "different", "21"),
        ("soft", "missing", "22"),
        ("soft", "extra", "1"),
        ("keeps", "missing", "23"),
        ("first", "missing", "24"),
        ("few", "different", "25"),
    }
    code, report = await reconcile(pipeline, "renamed", "--columns", "price,seen", "--where", "id > 20")
    assert (code, report["tables"][0]["source_rows"]) == (0, 1980)
