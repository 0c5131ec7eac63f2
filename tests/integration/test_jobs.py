"""`tailrace serve`, `jobs` and `run-job` over a real pipeline."""

from __future__ import annotations

import json
import time
from itertools import pairwise

import pytest

from consumers.control.database import Database
from consumers.control.jobs import Jobs
from consumers.schedule.plan import Outcome
from consumers.schedule.view import Past
from streamer.config import load
from tests.harness.pipeline import Pipeline, execute

ASKED = {"cron": "0 0 29 2 *"}  # of jobs that run when they are asked
ITEM = ("CREATE TABLE item (id int PRIMARY KEY)", "INSERT INTO item SELECT generate_series(1, 100)")


@pytest.mark.thorough
async def test_a_reconcile_runs_as_a_job_and_its_finding_is_told(pipeline: Pipeline) -> None:
    pipeline.config["reconcile"] = {"audit": {"flow": "mirror"}}
    pipeline.config["schedules"] = {
        "jobs": {
            "audit": {"reconcile": "audit", **ASKED, "stale_after": "1d", "args": {"samples": 3}},
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


CHORES = """
import time
from pathlib import Path

def note(word):
    with Path(__file__).with_name("notes").open("a") as notes:
        notes.write(word + "\\n")

def tick():
    note("tick")

def long():
    note("long")
    time.sleep(600)
"""
TAKEOVER_S = 15.0


@pytest.mark.thorough
async def test_the_serve_that_runs_the_jobs_is_killed_and_the_other_runs_them(pipeline: Pipeline) -> None:
    """Two real commands: within 15 s, and nothing twice; what was in hand is noted as cut off."""
    (pipeline.config_path.parent / "chores.py").write_text(CHORES)
    noted = pipeline.config_path.parent / "notes"
    pipeline.config |= {
        "control": {"http": "127.0.0.1:0"},
        "schedules": {
            "jobs": {
                "tick": {"exec": "chores:tick", "every": "1s"},
                "long": {"exec": "chores:long", **ASKED},
            }
        },
    }
    pipeline.write_config()
    one = pipeline.start("serve")
    await pipeline.state("serve", "running", child=one)
    other = pipeline.start("serve")
    await pipeline.state("serve", "standby", child=other)
    jobs = Jobs(Database(load(pipeline.config_path)))

    def ticks() -> list[Past]:
        """Those that were begun, the newest first."""
        return [run for run in jobs.history("tick", 1000) if run.outcome is not Outcome.SKIPPED]

    async def begun() -> bool:
        return len(ticks()) > 2 and "long" in noted.read_text()

    code, out = await pipeline.run("run-job", "long")
    assert code == 0, out
    await pipeline.until("both jobs run", begun)
    before = len(ticks())
    one.kill()
    killed_s = time.monotonic()

    async def goes_on() -> bool:
        return len(ticks()) > before + 1

    await pipeline.until("the other runs them", goes_on, may_die=True)
    assert time.monotonic() - killed_s < TAKEOVER_S
    await pipeline.state("serve", "running", child=other)

    async def cut_off() -> bool:
        return [run.outcome for run in jobs.history("long")] == [Outcome.CUT_OFF]

    await pipeline.until("what was in hand is noted", cut_off, may_die=True)
    assert await other.stop() == 0
    notes = noted.read_text().split()
    assert notes.count("long") == 1
    runs = ticks()[::-1]
    assert notes.count("tick") <= len(runs), "more than were begun"
    for earlier, later in pairwise(runs):
        assert earlier.ended_us is not None
        assert earlier.ended_us <= later.began_us, "two runs at once"
