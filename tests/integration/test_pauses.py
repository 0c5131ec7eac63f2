"""`tailrace pause` and `resume` on real servers: one flow waits, its neighbours go on, nothing is lost."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from consumers.commands.pauses import ask
from streamer.config import Config, parse
from streamer.errors import EXIT_FINDING, EXIT_INCOMPLETE, EXIT_OK, EXIT_USAGE
from tests.harness.feeder import Feeder, Running, applying, config_text
from tests.harness.given import execute
from tests.harness.pipeline import Pipeline
from tests.harness.pipeline import execute as execute_all

COLUMNS = [("id", "integer", "number"), ("name", "text", "text")]
PAUSE_S = 20.0  # of a flow whose processes are well: a second, and what the machine adds
SOON_S = 30.0  # of a comparison that does not wait for what is paused: its process, and two looks


def config_two(feeder: Feeder, url: str) -> Config:
    """Two flows of one topic."""
    text = config_text(feeder, url, flows={"mirror": "public.people", "second": "public.people"})
    head, _, tail = text.rpartition("copy.mirror")
    return parse(f"{head}copy.second{tail}", environ={})


def is_paused(run: Running) -> bool:
    return run.flow("mirror").get("state") == "paused"


async def test_one_flow_of_a_topic_waits_and_the_other_goes_on(feeder: Feeder, target_database: str) -> None:
    """Not even a parked key is written, whose retry somebody asks for meanwhile."""
    config = config_two(feeder, target_database)
    people = await feeder.table("people", COLUMNS, partitions=2)
    for number in range(6):
        people.create({"id": number, "name": "a"}, 100, number)
    await feeder.flush()
    url = target_database
    mirrored, seconded = [f"SELECT id, name FROM {at}.people ORDER BY id" for at in ("mirror", "second")]
    rows: list[tuple[Any, ...]] = [(number, "a") for number in range(6)]
    async with applying(config) as run:
        await run.rows(url, mirrored, rows)
        await execute(url, "ALTER TABLE mirror.people ADD CONSTRAINT few CHECK (name <> 'bad')")
        people.update({"id": 5, "name": "bad"}, 200)
        await feeder.flush()
        await run.rows(url, "SELECT count(*) FROM _tailrace.parked", [(1,)])
        began_s = time.monotonic()
        await ask(config, ["mirror"], paused=True, why="its table is mended", who="ann@host")
        await run.until(lambda: is_paused(run), "paused")
        assert time.monotonic() - began_s < PAUSE_S
        assert "by ann@host" in run.flow("mirror")["reason"]
        assert "(its table is mended)" in run.flow("mirror")["reason"]
        await execute(url, "ALTER TABLE mirror.people DROP CONSTRAINT few")
        await execute(url, "UPDATE _tailrace.parked SET asked = 'retry', asked_by = 'eve@host'")
        for number in range(4):
            people.update({"id": number, "name": "b"}, 300, number)
        await feeder.flush()
        changed: list[tuple[Any, ...]] = [(n, "b") for n in range(4)] + [(4, "a"), (5, "bad")]
        await run.rows(url, seconded, changed)
        await run.until(lambda: bool(run.flow("mirror")["lag_records"]), "its lag is told")
        assert run.flow("mirror")["lag_s"] is not None
        await run.rows(url, mirrored, rows)
        await run.rows(url, "SELECT count(*) FROM _tailrace.parked", [(1,)])
        done = await ask(config, ["mirror"], paused=True, why="again", who="eve@host")
        assert [(pause.who, is_new) for pause, is_new in done.values() if pause] == [("ann@host", False)]
        await ask(config, ["mirror"], paused=False)
        await run.rows(url, mirrored, changed)
        await run.until(lambda: run.flow("mirror")["state"] == "streaming", "streaming")


async def _flow(pipeline: Pipeline) -> dict[str, Any]:
    _, said = await pipeline.run("status", "--json")
    found: dict[str, Any] = json.loads(said)["flows"][0]
    return found


@pytest.mark.thorough
async def test_a_kill_9_of_apply_forgets_no_pause_and_every_command_says_it(pipeline: Pipeline) -> None:
    flow = next(iter(pipeline.config["flows"]))
    await execute_all(
        pipeline.source_url,
        "CREATE TABLE orders (id int PRIMARY KEY, total int)",
        "INSERT INTO orders SELECT n, n FROM generate_series(1, 100) n",
    )
    _, apply = await pipeline.start_both()
    code, said = await pipeline.run("pause", flow, "--why", "a test")
    assert code == EXIT_OK, said
    assert "nothing more is written" in said, said

    async def paused() -> bool:
        return bool((await _flow(pipeline))["state"] == "PAUSED")

    async def waits() -> bool:
        found = await _flow(pipeline)
        return bool(found["state"] == "PAUSED" and found["lag_records"])

    await pipeline.until("it is paused", paused)
    await execute_all(pipeline.source_url, "INSERT INTO orders VALUES (101, 1)")
    await pipeline.until("its lag is told", waits)
    apply.kill()
    await execute_all(
        pipeline.source_url, "UPDATE orders SET total = 0 WHERE id = 1", "DELETE FROM orders WHERE id = 2"
    )
    pipeline.start("apply")
    await pipeline.captured()
    await pipeline.until("the next process knows it", waits)
    assert await pipeline.target_value("SELECT count(*) FROM mirror.orders WHERE id = 2 OR total = 1") == 2
    assert await pipeline.target_value("SELECT max(id) FROM mirror.orders") == 100

    code, said = await pipeline.run("status")
    assert code == EXIT_OK, said
    assert "PAUSED" in said
    assert "(a test)" in said
    code, said = await pipeline.run("check")
    assert code == EXIT_OK, said
    assert f"paused: {flow}" in said, said
    code, said = await pipeline.run("check", "--max-lag", "10ms")
    assert code == EXIT_FINDING, said
    assert f"flow {flow} is PAUSED" in said, said
    code, said = await pipeline.run("why", "public.orders", "101")
    assert code == EXIT_FINDING, said
    assert "PAUSED" in said
    assert f"tailrace resume {flow}" in said
    began_s = time.monotonic()
    code, said = await pipeline.run("reconcile", flow)
    assert code == EXIT_INCOMPLETE, said
    assert "was paused by" in said, said
    assert time.monotonic() - began_s < SOON_S
    code, said = await pipeline.run("replay", flow, "--from-start", "-k", "7")
    assert code == EXIT_USAGE, said
    assert f"tailrace resume {flow}" in said, said
    code, said = await pipeline.run("replay", flow, "--from-start")
    assert code == EXIT_OK, said
    assert "waits there" in said, said
    await pipeline.until("it waits at the start", waits)
    assert await pipeline.target_value("SELECT max(id) FROM mirror.orders") == 100
    code, said = await pipeline.run("resume", flow, "--json")
    assert code == EXIT_OK, said
    assert json.loads(said)[0]["paused"] is False, said
    await pipeline.equal()
