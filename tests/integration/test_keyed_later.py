"""A table that gets a key after it was copied without one: what is told to be done mends it."""

from __future__ import annotations

import re

import pytest

from tests.harness.pipeline import Pipeline, execute
from tests.harness.reconcile import reconcile


@pytest.mark.thorough
async def test_what_a_finding_says_of_a_table_without_identity_mends_it(pipeline: Pipeline) -> None:
    """And a table that is not published yet is not compared: nothing was promised of it."""
    await execute(
        pipeline.source_url,
        "CREATE TABLE rn (id int PRIMARY KEY, v text)",
        "ALTER TABLE rn REPLICA IDENTITY NOTHING",
        "INSERT INTO rn VALUES (1, 'a'), (2, 'b')",
        "CREATE TABLE item (id int PRIMARY KEY)",
    )
    capture, _ = await pipeline.start_both()
    await execute(pipeline.source_url, "UPDATE rn SET v = 'c' WHERE id = 1")
    findings: list[str] = []

    async def told() -> bool:
        nonlocal findings
        (record,) = await pipeline.status("capture")
        findings = record.detail["findings"]
        return bool(findings)

    await pipeline.until("the update that was not captured is told", told)
    (finding,) = findings
    (statement,) = re.findall(r"ALTER TABLE .*? REPLICA IDENTITY DEFAULT;", finding)
    assert "in each target drop the table's copy, which was made without this key (DROP TABLE" in finding
    assert finding.index("DROP TABLE") < finding.index("tailrace reset")
    await execute(pipeline.source_url, statement)
    await execute(pipeline.target_url, "DROP TABLE mirror.rn")
    assert await capture.stop() == 0
    code, out = await pipeline.run("reset", pipeline.source, "--yes")
    assert code == 0, out
    source = pipeline.config["sources"][pipeline.source]
    source["publication"]["manage"] = False
    pipeline.write_config()
    await execute(pipeline.source_url, f"ALTER PUBLICATION {pipeline.slot}_inserts DROP TABLE ONLY rn")
    await execute(pipeline.source_url, f"ALTER PUBLICATION {pipeline.slot} ADD TABLE ONLY rn")
    again = pipeline.start("capture")
    await pipeline.state("capture", "streaming", child=again)
    await execute(pipeline.source_url, "UPDATE rn SET v = 'd'", "DELETE FROM rn WHERE id = 2")
    await pipeline.equal()
    await execute(
        pipeline.source_url, "CREATE TABLE later (id int PRIMARY KEY)", "INSERT INTO later VALUES (1)"
    )
    code, report = await reconcile(pipeline)
    assert (code, report["verdict"]) == (0, "equal"), report
    (later,) = [table for table in report["tables"] if table["source"] == "public.later"]
    assert (later["complete"], later["meant"]) == (False, True)
    assert "it is in no publication of the capture" in later["reason"]
