"""`--max-lag` over the whole pipeline: a comparison waits while its flow is behind, and goes on by itself."""

from __future__ import annotations

import json

import psycopg
import pytest

from tests.harness.pipeline import Pipeline, execute


@pytest.mark.thorough
async def test_a_comparison_waits_while_the_flow_is_behind(pipeline: Pipeline) -> None:
    await execute(
        pipeline.source_url,
        "CREATE TABLE item (id bigint PRIMARY KEY, name text)",
        "INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 100) n",
    )
    await pipeline.start_both()

    async def behind() -> bool:
        _, out = await pipeline.run("status", "--json")
        return (json.loads(out)["flows"][0]["lag_s"] or 0) > 1

    async with await psycopg.AsyncConnection.connect(pipeline.target_url) as blocker:
        await blocker.execute("LOCK TABLE mirror.item IN EXCLUSIVE MODE")  # rows can be read, not written
        await execute(pipeline.source_url, "UPDATE item SET name = 'b' WHERE id = 1")
        await pipeline.until("the flow is behind", behind)
        child = pipeline.start("reconcile", "mirror", "--max-lag", "1s", "--json")

        async def waits() -> bool:
            return "the comparison waits: the flow mirror is" in child.log()

        await pipeline.until("it waits", waits)
        assert child.running
    assert await child.wait() == 0
    log = child.log()
    assert "the comparison goes on" in log
    report = json.loads(log[log.index("{\n") :])
    (table,) = report["tables"]
    assert (report["verdict"], table["settled"]) == ("equal", 0), "nothing was read before it had caught up"
    assert table["paused_s"] > 0
