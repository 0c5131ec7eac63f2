"""`tailrace serve`, `jobs` and `run-job` over a real pipeline."""

from __future__ import annotations

import json

from tests.harness.pipeline import Pipeline, execute

ITEM = ("CREATE TABLE item (id int PRIMARY KEY)", "INSERT INTO item SELECT generate_series(1, 100)")


async def test_a_reconcile_runs_as_a_job_and_its_finding_is_told(pipeline: Pipeline) -> None:
    pipeline.config["reconcile"] = {"audit": {"flow": "mirror"}}
    pipeline.config["schedules"] = {
        "jobs": {
            "audit": {"reconcile": "audit", "at": ["00:00"], "stale_after": "1d", "args": {"samples": 3}},
            "again": {"backfill": f"{pipeline.source}.public.item", "after": ["audit"]},
        }
    }
    pipeline.write_config()
    await execute(pipeline.source_url, *ITEM)
    await pipeline.start_both()
    code, out = await pipeline.run("run-job", "audti")
    assert (code, "did you mean 'audit'" in out) == (64, True)
    code, out = await pipeline.run("jobs", "--json")
    assert code == 0
    assert {job["name"]: job["state"] for job in json.loads(out)["jobs"]} == {
        "audit": "WAITING",
        "again": "WAITING",
    }
    serve = pipeline.start("serve")
    code, out = await pipeline.run("run-job", "audit", "--wait", "--json")
    assert code == 0, out
    run = json.loads(out)
    assert (run["outcome"], run["exit_code"], run["joined"]) == ("ok", 0, False)
    await pipeline.until("what comes after it has run", lambda: _outcome(pipeline, "again", "ok"))

    await execute(pipeline.target_url, "DELETE FROM mirror.item WHERE id = 7")
    code, out = await pipeline.run("run-job", "audit", "--wait")
    assert code == 1
    assert "finding" in out
    assert "7" in out
    code, out = await pipeline.run("jobs", "show", "audit", "--json")
    assert [run["outcome"] for run in json.loads(out)["history"]] == ["finding", "ok"]
    assert await serve.stop() == 0


async def _outcome(pipeline: Pipeline, job: str, wanted: str) -> bool:
    _, out = await pipeline.run("jobs", "show", job, "--json")
    last = json.loads(out)["last"]
    return last is not None and last["outcome"] == wanted
