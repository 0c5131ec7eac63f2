"""A repair while gates hold changes: what waits is no drift and is not asked for, and the gates stay."""

from __future__ import annotations

import pytest

from consumers.commands.parked import opened
from streamer.config import load
from tests.harness.pipeline import Pipeline, execute
from tests.harness.reconcile import counts, proved, reconcile, samples


@pytest.mark.thorough
async def test_a_repair_leaves_what_a_gate_holds(pipeline: Pipeline) -> None:
    pipeline.config["flows"]["mirror"] |= {"truncate": "hold", "hold_deletes_above": "10%"}
    pipeline.write_config()
    for table in ("emptied", "thinned", "free"):
        await execute(
            pipeline.source_url,
            f"CREATE TABLE {table} (id int PRIMARY KEY, v text)",
            f"INSERT INTO {table} SELECT n, 'v' FROM generate_series(1, 200) n",
        )
    await pipeline.start_both()
    await proved(pipeline)
    await execute(pipeline.source_url, "TRUNCATE emptied", "DELETE FROM thinned WHERE id <= 100")

    async def held() -> bool:
        async with opened(load(pipeline.config_path), "copy") as target:
            return len(await target.gates()) == 2

    await pipeline.until("a truncate and deletes are held", held)
    await execute(
        pipeline.target_url,
        "UPDATE mirror.emptied SET v = 'x' WHERE id = 1",
        "UPDATE mirror.thinned SET v = 'x' WHERE id IN (1, 150)",
        "UPDATE mirror.free SET v = 'x' WHERE id = 1",
        "INSERT INTO mirror.free SELECT n, 'x' FROM generate_series(1001, 1030) n",
    )
    repair = ("--repair", "--delete-extra", "--refuse-above", "100%")
    code, report = await reconcile(pipeline, *repair, "--wait", "5s")
    tables = {table["source"].removeprefix("public."): table for table in report["tables"]}
    assert (code, report["verdict"]) == (3, "incomplete")
    for name, rows in (("emptied", 200), ("thinned", 101)):  # row 150 is told when the gate has ended
        assert (counts(tables[name]), tables[name]["repair"]) == ({"held": rows}, None)
        assert "`tailrace approve mirror`, or `refuse`" in tables[name]["reason"]
    own = tables["free"]["repair"]
    assert (own["planned"], own["applied"], own["state"]) == (31, 31, "done")
    assert (own["verified"], own["left"], own["unproved"]) == (0, 0, 31)
    assert own["reason"].startswith(
        "flow mirror holds a truncate or deletes, and what comes behind them waits"
    )
    held_rows = "SELECT count(*) FROM mirror.{}"
    assert [await pipeline.target_value(held_rows.format(name)) for name in tables] == [200, 230, 200]
    code, out = await pipeline.run("approve", "mirror")
    assert code == 0, out

    async def gone() -> bool:
        return [await pipeline.target_value(held_rows.format(name)) for name in tables] == [0, 200, 100]

    await pipeline.until("what was held is applied", gone)
    code, report = await reconcile(pipeline, *repair)
    assert (code, samples(report)) == (4, {("different", "150")})
    await proved(pipeline)
