"""Under `tailrace run` a flow's first proof comes by itself, and `status` shows it."""

from __future__ import annotations

import json

import pytest

from tests.harness.pipeline import Pipeline, execute

FIRST_S = 60.0  # start, copy, five steady seconds, and the comparison; the machine may have other work


@pytest.mark.thorough
async def test_a_flow_is_proved_once_its_first_copy_is_applied(pipeline: Pipeline) -> None:
    await execute(
        pipeline.source_url,
        "CREATE TABLE item (id bigint PRIMARY KEY, name text)",
        "INSERT INTO item SELECT n, 'item ' || n FROM generate_series(1, 3000) n",
    )
    code, out = await pipeline.run("status", "--json")
    assert json.loads(out)["flows"][0]["proof"] is None
    assert not (pipeline.folder / ".tailrace").exists(), "who only looks makes nothing"
    child = pipeline.start("run", "--json")

    def news() -> list[dict[str, object]]:
        lines = [json.loads(line) for line in child.log().splitlines() if line.startswith("{")]
        return [line for line in lines if "proof" in line]

    async def proved() -> bool:
        return len(news()) == 2

    await pipeline.until("the flow has its first proof", proved, FIRST_S)
    assert [(line["proof"], line["state"]) for line in news()] == [("mirror", "running"), ("mirror", "equal")]
    code, out = await pipeline.run("reconcile", "history", "--json")
    (run,) = json.loads(out)
    (table,) = run["report"]["tables"]
    assert (run["run"], table["source_rows"], table["verdict"]) == (news()[1]["run"], 3000, "equal")
    code, out = await pipeline.run("status", "--json")
    (flow,) = json.loads(out)["flows"]
    proof = flow["proof"]
    assert (code, proof["verdict"], proof["run"], proof["rows"]) == (0, "equal", run["run"], 3000)
    # Drift that a person finds is the last word, until it is proved again.
    await execute(pipeline.target_url, "DELETE FROM mirror.item WHERE id = 7")
    code, _ = await pipeline.run("reconcile", "mirror")
    assert code == 1
    code, out = await pipeline.run("status", "--json")
    assert (code, json.loads(out)["flows"][0]["proof"]["verdict"]) == (1, "drift")
    assert "flow mirror was not equal to its source" in json.loads(out)["verdict"]
    assert await child.stop() == 0
