"""What apply must not believe: a topic, a Kafka or a target that is not the one it was."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from consumers.apply import feed
from streamer.sandbox import PostgresServer
from tests.harness.capture import run as execute
from tests.harness.feeder import Feeder, applying, config_of
from tests.harness.people import copied, filled
from tests.servers import fresh_database


async def test_h14_a_topic_made_again_is_found_out(feeder: Feeder, target_database: str) -> None:
    table = await filled(feeder, 1, partitions=1)
    config = await copied(feeder, target_database, 1)
    await feeder.delete_topic(table.topic)
    await feeder.make_topic_again(table.topic, 1)
    for n in range(10):
        table.create({"id": n, "name": "b", "note": None}, 100)
    await feeder.flush()
    async with applying(config) as run:
        error = await run.fails()
    assert "made again" in str(error)
    assert table.topic in str(error)
    assert f"tailrace reset {feeder.source}" in str(error)


async def test_h14_retention_that_has_passed_is_an_error(feeder: Feeder, target_database: str) -> None:
    table = await filled(feeder, *range(5), partitions=1)
    await feeder.delete_records(table.topic, {0: 3})
    async with applying(config_of(feeder, target_database)) as run:
        error = await run.fails()
    assert "removed 3 offsets" in str(error)
    assert table.topic in str(error)
    assert f"tailrace reset {feeder.source}" in str(error)


async def test_h14_another_cluster_is_an_error(feeder: Feeder, target_database: str) -> None:
    await filled(feeder, 1)
    config = await copied(feeder, target_database, 1)
    async with await psycopg.AsyncConnection.connect(target_database) as connection:
        await connection.execute("UPDATE _tailrace.checkpoints SET cluster_id = 'another'")
    async with applying(config) as run:
        error = await run.fails()
    assert "another Kafka cluster" in str(error)


async def test_h30_a_cloned_target_is_refused(
    feeder: Feeder, target_database: str, postgres_target_server: PostgresServer
) -> None:
    await filled(feeder, 1)
    await copied(feeder, target_database, 1)
    original = target_database.rsplit("/", 1)[1]
    clone = f"{original}_clone"
    with psycopg.connect(postgres_target_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {clone} TEMPLATE {original}")
    try:
        async with applying(config_of(feeder, postgres_target_server.url_of(clone))) as run:
            error = await run.fails()
    finally:
        with psycopg.connect(postgres_target_server.url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {clone} WITH (FORCE)")
    assert "copy of another" in str(error)
    assert "UPDATE _tailrace.identity" in str(error)


async def test_h30_a_group_is_bound_to_one_target(
    feeder: Feeder, target_database: str, postgres_target_server: PostgresServer
) -> None:
    await filled(feeder, 1)
    await copied(feeder, target_database, 1)
    for other in fresh_database(postgres_target_server):
        async with applying(config_of(feeder, other)) as run:
            error = await run.fails()
        assert "belongs to another target" in str(error)
        assert run.status.record.store, "by which `status` tells it from the one at work"


async def test_h14_a_topic_made_again_that_is_shorter_than_the_checkpoint(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing will ever be read at the checkpoint, so that no record could tell."""
    monkeypatch.setattr(feed, "END_WAIT_S", 0.0)
    table = await filled(feeder, 1, partitions=1)
    config = await copied(feeder, target_database, 1)
    await feeder.delete_topic(table.topic)
    await feeder.make_topic_again(table.topic, 1)
    async with applying(config) as run:
        error = await run.fails()
    assert "its log ends at 0" in str(error)


async def test_h14_retention_that_passes_after_the_look_is_an_error(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka would go on at the end of the log, and nobody would know."""
    table = await filled(feeder, 1, 2, 3, 4, 5, partitions=1)
    await feeder.delete_records(table.topic, {0: 3})
    starts, looks = feed.AIOKafkaConsumer.beginning_offsets, []

    async def look(consumer: Any, partitions: list[Any]) -> dict[Any, int]:
        found: dict[Any, int] = await starts(consumer, partitions)
        looks.append(found)
        return dict.fromkeys(found, 0) if len(looks) == 1 else found

    monkeypatch.setattr(feed.AIOKafkaConsumer, "beginning_offsets", look)
    async with applying(config_of(feeder, target_database)) as run:
        error = await run.fails()
    assert "removed 3 offsets" in str(error)


async def test_h30_a_target_restored_on_another_server_is_refused(
    feeder: Feeder, target_database: str
) -> None:
    """The same database oid, as after a restore of the whole server's files or a promoted standby's."""
    await filled(feeder, 1)
    config = await copied(feeder, target_database, 1)
    await execute(target_database, "UPDATE _tailrace.identity SET system_identifier = system_identifier + 1")
    async with applying(config) as run:
        error = await run.fails()
    assert "copy of another" in str(error)


async def test_h30_a_target_belongs_to_one_group(feeder: Feeder, target_database: str) -> None:
    await filled(feeder, 1)
    config = await copied(feeder, target_database, 1)
    await execute(target_database, "UPDATE _tailrace.identity SET consumer_group = 'other'")
    async with applying(config) as run:
        error = await run.fails()
    assert "belongs to the consumer group 'other'" in str(error)
