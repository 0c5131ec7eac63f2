"""Outages are waited out and said; a history that does not fit stops the capture with its reason and cure."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import psycopg
import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from streamer.changes.lsn import format_lsn
from streamer.changes.topics import positions_topic
from streamer.errors import EXIT_RUNTIME
from streamer.kafka import admin
from streamer.sandbox import KafkaServer, PostgresServer, Sandbox
from tests.acceptance.conftest import Shop
from tests.harness.pipeline import TARGET_SCHEMA, Child, Pipeline, execute

OUTAGE_S = 3.0
LONG_OUTAGE_S = 60.0
OUTAGES = [
    pytest.param(OUTAGE_S, marks=pytest.mark.thorough),
    pytest.param(LONG_OUTAGE_S, marks=pytest.mark.slow),
]
TOPIC_GONE_S = 10.0
DROP_TRIES = 100

FEW = (
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    "INSERT INTO t SELECT n, 'v' FROM generate_series(1, 50) n",
)
MORE = ("INSERT INTO t SELECT n, 'more' FROM generate_series(1001, 1050) n", "DELETE FROM t WHERE id <= 10")


# -- outages


@pytest.mark.parametrize("outage_s", OUTAGES)
async def test_source_restarted(
    pipeline: Pipeline, shop: Shop, postgres_server: PostgresServer, outage_s: float
) -> None:
    await shop.open()
    async with shop.at_work(survive=True):
        await pipeline.some_captured(50_000)
        await asyncio.to_thread(postgres_server.stop)
        waiting = await pipeline.state("capture", "waiting")
        await asyncio.sleep(outage_s)
        await asyncio.to_thread(postgres_server.start)
    assert waiting.reason
    await pipeline.state("capture", "streaming")
    await shop.judge()


@pytest.mark.parametrize("outage_s", OUTAGES)
async def test_target_down(
    pipeline: Pipeline, shop: Shop, postgres_target_server: PostgresServer, outage_s: float
) -> None:
    await shop.open()
    async with shop.at_work():
        await pipeline.some_captured(50_000)
        await asyncio.to_thread(postgres_target_server.stop)
        waiting = await pipeline.state("apply", "waiting")
        await asyncio.sleep(outage_s)
        await asyncio.to_thread(postgres_target_server.start)
    assert waiting.reason
    await shop.judge()


@pytest.mark.parametrize("outage_s", OUTAGES)
async def test_kafka_down(pipeline: Pipeline, shop: Shop, kafka_server: KafkaServer, outage_s: float) -> None:
    """Nobody can read the status topic meanwhile: `tailrace status` says so, and a long one is in the log."""
    await shop.open()
    async with shop.at_work():
        await pipeline.some_captured(50_000)
        await asyncio.to_thread(kafka_server.stop)
        await asyncio.sleep(outage_s)
        code, said = await pipeline.run("status")
        assert code != 0
        assert "Kafka" in said
        await asyncio.to_thread(kafka_server.start)
    await shop.judge()
    if outage_s > OUTAGE_S:
        assert "Kafka" in pipeline.children[0].log()
    assert not pipeline.dead(), pipeline.tails()


# -- a history that does not fit


async def few_rows(pipeline: Pipeline) -> tuple[Child, Child]:
    await execute(pipeline.source_url, *FEW)
    return await pipeline.start_both()


async def refused(pipeline: Pipeline, *words: str) -> Child:
    """Capture started again ends with an error that says all of `words`, also in `status`."""
    capture = pipeline.start("capture")
    code = await capture.wait()
    capture.killed = True  # its end was expected
    assert code == EXIT_RUNTIME, capture.log_tail()
    for word in (*words, f"tailrace reset {pipeline.source}"):
        assert word in capture.log(), f"{word!r} is not in its log\n{capture.log_tail()}"
    record = await pipeline.state("capture", "error", child=capture)
    assert words[0] in record.reason
    return capture


async def mended(pipeline: Pipeline) -> None:
    """`tailrace reset` mends it: a later epoch, and rows deleted meanwhile are gone from the target."""
    code, said = await pipeline.run("reset", pipeline.source, "--yes")
    assert code == 0, said
    capture = pipeline.start("capture")
    await pipeline.state("capture", "streaming", child=capture)
    await execute(pipeline.source_url, "INSERT INTO t VALUES (5000, 'after the reset')")
    await pipeline.equal()
    record = await pipeline.state("capture", "streaming", child=capture)
    assert f"epoch {record.detail['epoch']};" in said


@pytest.mark.thorough
async def test_h22_a_changed_key_and_the_two_steps_that_mend_it(pipeline: Pipeline) -> None:
    capture, _ = await few_rows(pipeline)
    await execute(
        pipeline.source_url,
        "ALTER TABLE t ADD COLUMN other int NOT NULL GENERATED ALWAYS AS IDENTITY",
        "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (other)",
        "INSERT INTO t VALUES (4000, 'under another key')",
    )
    assert await capture.wait() == EXIT_RUNTIME
    capture.killed = True
    said = " ".join(capture.log().split())
    assert "in each target that has it, DROP TABLE the copy of public.t" in said
    assert said.index("DROP TABLE the copy") < said.index(f"tailrace reset {pipeline.source}")
    await execute(pipeline.target_url, f"DROP TABLE {TARGET_SCHEMA}.t")
    await mended(pipeline)


@pytest.mark.slow  # tests/integration/test_capture_stops.py has it without the processes
async def test_h04_dropped_slot(pipeline: Pipeline) -> None:
    capture, _ = await few_rows(pipeline)
    assert await capture.stop() == 0
    await pipeline.source_value("SELECT pg_drop_replication_slot(%s)", pipeline.slot)
    await execute(pipeline.source_url, *MORE)
    await refused(pipeline, "slot", pipeline.slot)
    await mended(pipeline)


@pytest.mark.thorough
async def test_h04_recreated_slot(pipeline: Pipeline) -> None:
    capture, _ = await few_rows(pipeline)
    assert await capture.stop() == 0
    await pipeline.source_value("SELECT pg_drop_replication_slot(%s)", pipeline.slot)
    await execute(pipeline.source_url, *MORE)
    await pipeline.source_value("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", pipeline.slot)
    await refused(pipeline, "slot", pipeline.slot)
    await mended(pipeline)


@pytest.mark.slow  # tests/integration/test_capture_stops.py has it without the processes
async def test_h04_slot_moved_by_hand(pipeline: Pipeline) -> None:
    capture, _ = await few_rows(pipeline)
    assert await capture.stop() == 0
    await execute(pipeline.source_url, *MORE)
    end = await pipeline.wal_lsn()
    await pipeline.source_value("SELECT pg_replication_slot_advance(%s, %s)", pipeline.slot, format_lsn(end))
    await refused(pipeline, "slot", pipeline.slot)
    await mended(pipeline)


@pytest.mark.thorough
async def test_slot_dropped_while_capture_is_connected(pipeline: Pipeline) -> None:
    capture, _ = await few_rows(pipeline)
    await asyncio.to_thread(_drop_in_use, pipeline.source_url, pipeline.slot)
    assert await capture.wait() == EXIT_RUNTIME
    assert f"tailrace reset {pipeline.source}" in capture.log()
    capture.killed = True
    await mended(pipeline)


def _drop_in_use(url: str, slot: str) -> None:
    """Throw capture off its slot and drop it before it is back."""
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(DROP_TRIES):
            try:
                connection.execute(
                    "SELECT pg_terminate_backend(active_pid, 1000) FROM pg_replication_slots"
                    " WHERE slot_name = %s",
                    [slot],
                )
                connection.execute("SELECT pg_drop_replication_slot(%s)", [slot])
            except psycopg.errors.ObjectInUse:
                continue
            return
    raise AssertionError(f"capture was back on its slot {DROP_TRIES} times before it could be dropped")


@pytest.mark.slow  # tests/integration/test_capture_stops.py has it without the processes
async def test_h04_lost_positions(pipeline: Pipeline) -> None:
    capture, _ = await few_rows(pipeline)
    assert await capture.stop() == 0
    await delete_topic(pipeline.brokers, positions_topic(pipeline.name))
    await execute(pipeline.source_url, *MORE)
    await refused(pipeline, "position")
    await mended(pipeline)


@pytest.mark.slow  # tests/integration/test_capture_stops.py has it without the processes
async def test_h17_data_topic_made_again(pipeline: Pipeline) -> None:
    capture, apply = await few_rows(pipeline)
    assert await capture.stop() == 0
    assert await apply.stop() == 0
    topic = f"{pipeline.source}.public.t"
    await delete_topic(pipeline.brokers, topic)
    async with admin(pipeline.brokers, None) as client:
        await client.create_topics([NewTopic(topic, 4, 1)])
    await execute(pipeline.source_url, *MORE)
    await refused(pipeline, topic)
    again = pipeline.start("apply")
    record = await pipeline.state("apply", "error")
    assert topic in record.reason
    again.kill()


@pytest.mark.thorough
async def test_h04_cold_copy_restored(tmp_path: Path, servers: Sandbox) -> None:
    """The copy keeps the system id and the timeline; its WAL goes another way from there on."""
    source, target = servers.postgres
    async with Pipeline(
        tmp_path / "pipeline",
        source_url=source.url,
        target_url=target.url,
        brokers=servers.kafka.bootstrap,
        name="cold",
    ) as pipeline:
        capture, _ = await few_rows(pipeline)
        assert await capture.stop() == 0
        await asyncio.to_thread(source.stop)
        copy = tmp_path / "copy"
        await asyncio.to_thread(_copy_owned, source.data, copy)
        await asyncio.to_thread(source.start)
        capture = pipeline.start("capture")
        await pipeline.state("capture", "streaming", child=capture)
        await execute(pipeline.source_url, *MORE)
        await pipeline.equal()
        assert await capture.stop() == 0
        await asyncio.to_thread(source.stop)
        shutil.rmtree(source.data)
        await asyncio.to_thread(_copy_owned, copy, source.data)
        await asyncio.to_thread(source.start)
        await execute(
            pipeline.source_url,
            "INSERT INTO t SELECT n, 'another history' FROM generate_series(2000, 2500) n",
            "DELETE FROM t WHERE id BETWEEN 20 AND 30",
        )
        await refused(pipeline, "restored")
        await mended(pipeline)


def _copy_owned(source: Path, target: Path) -> None:
    """Copy a data folder with modes and owners."""
    shutil.copytree(source, target, symlinks=True)
    for path in (source, *source.rglob("*")):
        place = target / path.relative_to(source)
        info = path.lstat()
        shutil.chown(place, info.st_uid, info.st_gid)


async def delete_topic(brokers: str, topic: str) -> None:
    """Deleted, and gone from the metadata."""
    async with admin(brokers, None) as client, asyncio.timeout(TOPIC_GONE_S):
        await client.delete_topics([topic])
        while await _there(client, topic):  # noqa: ASYNC110 - Kafka tells nobody when it is gone
            await asyncio.sleep(0.05)


async def _there(client: AIOKafkaAdminClient, topic: str) -> bool:
    return topic in await client.list_topics()
