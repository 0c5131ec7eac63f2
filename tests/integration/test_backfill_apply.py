"""What apply asks of captures by itself: a topic's lost beginning for a new flow, rows that are not whole."""

from __future__ import annotations

import pytest
from aiokafka import TopicPartition

from streamer.backfills import read_runs
from streamer.changes.backfill import LATE_FLOW, NEEDS_REREAD, Run, State, Wanted
from streamer.kafka import offset_ranges
from tests.harness.feeder import Feeder
from tests.harness.pipeline import TARGET_SCHEMA, Pipeline, execute

PARTITIONS = 4  # of the pipeline's topics
ROWS = 400
BIG = "(SELECT string_agg(md5((g * 7919 + k)::text), '') FROM generate_series(1, 400) k)"  # 12 KB, TOASTed
TABLE = (
    "CREATE TABLE orders (id int PRIMARY KEY, v text, big text)",
    f"INSERT INTO orders SELECT g, 'v' || g FROM generate_series(1, {ROWS}) g",
)


async def runs(pipeline: Pipeline) -> list[Run]:
    return list((await read_runs(pipeline.brokers, None, pipeline.name)).values())


async def captured(pipeline: Pipeline, *statements: str) -> None:
    await execute(pipeline.source_url, *statements)
    capture = pipeline.start("capture")
    await pipeline.state("capture", "streaming", child=capture)
    await pipeline.captured()


async def forget(pipeline: Pipeline, feeder: Feeder, table: str) -> None:
    """All of the topic's records, as retention does it in time."""
    topic = f"{pipeline.source}.public.{table}"
    places = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
    ranges = await offset_ranges(pipeline.brokers, None, places)
    ends = {place.partition: end for place, (_, end) in ranges.items() if end}
    assert ends
    await feeder.delete_records(topic, ends)


@pytest.mark.thorough
async def test_a_flow_added_late_gets_what_its_log_has_lost(pipeline: Pipeline, feeder: Feeder) -> None:
    """Also what is changed meanwhile; two processes that begin together make one run."""
    await captured(pipeline, *TABLE)
    await forget(pipeline, feeder, "orders")
    await execute(
        pipeline.source_url,
        "UPDATE orders SET v = 'later' WHERE id <= 10",
        "DELETE FROM orders WHERE id = 20",
    )
    pipeline.start("apply")
    pipeline.start("apply")
    await execute(pipeline.source_url, "UPDATE orders SET v = 'last' WHERE id % 50 = 0")
    verdict = await pipeline.equal()
    assert verdict.rows == ROWS - 1
    (run,) = await runs(pipeline)
    assert run.request is not None
    assert (run.request.why, run.request.by) == (LATE_FLOW, "apply copy")
    assert run.run.startswith("flow:copy.mirror:public.orders:")
    assert run.state is State.DONE

    for child in pipeline.running("apply"):
        await child.stop()
    pipeline.start("apply")  # its checkpoints are behind the log's start: it asks for nothing again
    await execute(pipeline.source_url, "UPDATE orders SET v = 'end' WHERE id = 1")
    await pipeline.equal()
    assert len(await runs(pipeline)) == 1


@pytest.mark.thorough
async def test_status_says_what_is_not_there_yet(pipeline: Pipeline, feeder: Feeder) -> None:
    await captured(pipeline, *TABLE)
    await forget(pipeline, feeder, "orders")
    await pipeline.running("capture")[0].stop()
    pipeline.start("apply")

    async def told(key: str, words: str) -> bool:
        return any(words in note for r in await pipeline.status("apply") for note in r.detail.get(key) or ())

    await pipeline.until("it is told", lambda: told("notes", "waits for the source's capture"))
    _, out = await pipeline.run("status", "--json")
    assert "rows of public.orders that Kafka's log no longer has are not all there yet" in out
    (run,) = await runs(pipeline)
    assert (await pipeline.run("backfills", "cancel", run.run))[0] == 3  # noted
    capture = pipeline.start("capture")
    await pipeline.state("capture", "streaming", child=capture)
    await pipeline.until("the cancelled run is a finding", lambda: told("findings", "was cancelled"))
    assert run.wanted is Wanted.RUN
    assert (await pipeline.run("backfill", pipeline.source, "orders"))[0] == 0
    await pipeline.equal()


@pytest.mark.thorough
async def test_a_target_that_lost_its_checkpoints_late_gets_another_run(
    pipeline: Pipeline, feeder: Feeder
) -> None:
    """The first run's rows are gone from the log, too: what it was for does not make it enough."""
    await captured(pipeline, *TABLE)
    await forget(pipeline, feeder, "orders")
    apply = pipeline.start("apply")
    await pipeline.equal()
    await apply.stop()
    await forget(pipeline, feeder, "orders")
    await execute(pipeline.target_url, "TRUNCATE _tailrace.checkpoints", f"DROP TABLE {TARGET_SCHEMA}.orders")
    pipeline.start("apply")
    await pipeline.equal()
    first, second = await runs(pipeline)
    assert second.run == f"{first.run}.2"


@pytest.mark.thorough
async def test_a_table_without_a_key_cannot_be_asked_for(pipeline: Pipeline, feeder: Feeder) -> None:
    await captured(pipeline, "CREATE TABLE notes (v text)", "INSERT INTO notes VALUES ('a'), ('b')")
    await forget(pipeline, feeder, "notes")
    pipeline.start("apply")
    record = await pipeline.state("apply", "error", reason="Kafka's retention has removed")
    assert "tailrace reset" in record.reason
    assert await runs(pipeline) == []


@pytest.mark.thorough
async def test_h07_rows_that_are_not_whole_are_read_again_by_themselves(pipeline: Pipeline) -> None:
    """Each change leaves the large value out of the log, and the target has no row to keep it from."""
    await execute(pipeline.source_url, *TABLE, f"UPDATE orders g SET big = {BIG.replace('g *', 'g.id *')}")
    await pipeline.start_both()
    await execute(pipeline.target_url, f"DELETE FROM {TARGET_SCHEMA}.orders WHERE id IN (3, 5, 7)")
    await execute(
        pipeline.source_url,
        "UPDATE orders SET v = 'x' WHERE id IN (3, 5)",
        "UPDATE orders SET v = 'y' WHERE id = 7",
        "UPDATE orders SET v = 'z' WHERE id = 3",
    )
    verdict = await pipeline.equal()
    assert verdict.rows == ROWS
    found = await runs(pipeline)
    assert {run.request.why for run in found if run.request} == {NEEDS_REREAD}
    assert {key for run in found for key in list(run.keys())} == {(3,), (5,), (7,)}

    async def nothing_waits() -> bool:
        return await pipeline.target_value("SELECT count(*) FROM _tailrace.needs_reread") == 0

    await pipeline.until("no row waits for a re-read", nothing_waits)
