"""What apply must not believe: stale floors, buried keys, older patches, moved checkpoints, other places."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from aiokafka import TopicPartition

from consumers.apply import feed
from streamer.changes.kinds import UNAVAILABLE
from streamer.changes.topics import positions_topic, schemas_topic
from streamer.config import Config, load
from streamer.kafka import admin, offset_ranges
from streamer.runner import reset_source
from tests.harness.capture import PARTITIONS, capturing, until
from tests.harness.capture import run as execute
from tests.harness.feeder import Feeder, Table, applying, config_of

COLUMNS = [("id", "integer", "number"), ("name", "text", "text"), ("note", "text", "text")]
BLOCKED = """SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"""
FLOOR = "SELECT lsn FROM _tailrace.floors WHERE table_name = 'people'"
IDS = "SELECT id FROM mirror.people ORDER BY id"
TOPIC = "shop.public.people"
PEOPLE = "SELECT id, name FROM {}.people ORDER BY id"
NOTED = "SELECT key FROM _tailrace.needs_reread ORDER BY key"


@pytest.fixture
async def feeder(kafka: str, kafka_name: str) -> AsyncIterator[Feeder]:
    async with Feeder(kafka, kafka_name) as feeder:
        yield feeder


def make(table: Table, *ids: int, lsn: int, name: str = "a") -> None:
    for n in ids:
        table.create({"id": n, "name": name, "note": None}, lsn)


def drop(table: Table, n: int, lsn: int) -> None:
    table.delete({"id": n, "name": None, "note": None}, lsn)


async def blocked(url: str) -> None:
    """Wait until a session of the target waits for another one's lock."""

    async def waits() -> bool:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            row = await (await connection.execute(BLOCKED)).fetchone()
        return row is not None and row[0] > 0

    await until(waits)


async def test_h05_a_floor_that_is_being_raised_is_waited_for(feeder: Feeder, target_database: str) -> None:
    """Another process has raised the floor and has not committed: its truncate must hold for our rows."""
    table = await feeder.table("people", COLUMNS)
    make(table, 1, lsn=100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, IDS, [(1,)])
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("UPDATE _tailrace.floors SET epoch = 1, lsn = 500")
            make(table, 2, lsn=400)
            make(table, 3, lsn=600)
            await feeder.flush()
            await blocked(target_database)
            await other.commit()
        await run.settled(feeder)
        await run.rows(target_database, IDS, [(1,), (3,)])
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("UPDATE _tailrace.floors SET epoch = 1, lsn = 2000")
            table.truncate(1000)
            await feeder.flush()
            await blocked(target_database)
            await other.commit()
        await run.settled(feeder)
        await run.rows(target_database, FLOOR, [(2000,)])


async def test_h05_a_truncate_holds_for_the_other_partitions_of_its_batch(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("people", COLUMNS, partitions=4)
    make(table, *range(40), lsn=100)
    table.truncate(200)
    make(table, *range(5), lsn=300)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.settled(feeder)
        await run.rows(target_database, IDS, [(n,) for n in range(5)])


async def test_h05_a_truncate_forgets_the_keys_to_be_read_again(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS)
    table.update({"id": 7, "name": "seven", "note": UNAVAILABLE}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, NOTED, [('{"id":7}',)])
        table.truncate(200)
        table.update({"id": 8, "name": "eight", "note": UNAVAILABLE}, 300)
        await feeder.flush()
        await run.rows(target_database, NOTED, [('{"id":8}',)])


async def test_h05_the_floor_of_a_lost_partition_is_not_raised(feeder: Feeder, target_database: str) -> None:
    """Whoever has the truncate's partition now raises it, with the checkpoint."""
    table = await feeder.table("people", COLUMNS)
    one, two = (next(n for n in range(1, 50) if table.partition_of({"id": n}) == p) for p in (0, 1))
    make(table, one, two, lsn=100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(2,)])
        await run.settled(feeder)
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute(
                "UPDATE _tailrace.checkpoints SET next_offset = next_offset + 1 WHERE partition = 0"
            )
            table.truncate(200)
            make(table, two, lsn=300, name="b")
            await feeder.flush()
            await blocked(target_database)
            await other.commit()
        await run.rows(
            target_database,
            "SELECT id, name FROM mirror.people ORDER BY name",
            [(one, "a"), (two, "b")],
        )
        await run.rows(target_database, FLOOR, [(0,)])


async def test_h06_a_key_whose_not_null_value_is_elsewhere_has_no_row(
    feeder: Feeder, target_database: str
) -> None:
    """Rather none than that of the row that had the key before."""
    await execute(
        target_database,
        "CREATE SCHEMA mirror",
        "CREATE TABLE mirror.people (id int PRIMARY KEY, name text, note text NOT NULL)",
    )
    table = await feeder.table("people", COLUMNS)
    for n in (1, 2):
        table.create({"id": n, "name": "old", "note": f"big {n}"}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, IDS, [(1,), (2,)])
        table.create({"id": 2, "name": "moved", "note": UNAVAILABLE}, 200, 1)
        await feeder.flush()
        await run.rows(target_database, IDS, [(1,)])
        await run.rows(target_database, NOTED, [('{"id":2}',)])


async def test_h06_what_was_noted_is_mended_by_the_next_process_too(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("people", COLUMNS)
    table.create({"id": 2, "name": "two", "note": UNAVAILABLE}, 100)
    await feeder.flush()
    config = config_of(feeder, target_database)
    async with applying(config) as run:
        await run.rows(target_database, NOTED, [('{"id":2}',)])
        await run.stop()
    table.update({"id": 2, "name": "two", "note": "big"}, 200)
    await feeder.flush()
    async with applying(config) as run:
        await run.rows(target_database, "SELECT note FROM mirror.people", [("big",)])
        await run.rows(target_database, NOTED, [])


async def test_h07_an_older_patch_changes_nothing(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS)
    table.create({"id": 1, "name": "new", "note": "big"}, 200)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, IDS, [(1,)])
        table.update({"id": 1, "name": "old", "note": UNAVAILABLE}, 150)
        await feeder.flush()
        await run.settled(feeder)
        query = "SELECT name, note, _tailrace_lsn FROM mirror.people"
        await run.rows(target_database, query, [("new", "big", 200)])
        await run.until(lambda: run.flow().get("guarded") == 1, "the count of what was refused")
        await run.rows(target_database, NOTED, [])


async def test_h03_an_older_insert_never_brings_a_deleted_row_back(
    feeder: Feeder, target_database: str
) -> None:
    """In the session that deleted it, and in the next one; not even after an older delete."""
    table = await feeder.table("people", COLUMNS, partitions=1)
    make(table, 1, lsn=100)
    await feeder.flush()
    config = config_of(feeder, target_database)
    async with applying(config) as run:
        await run.rows(target_database, IDS, [(1,)])
        drop(table, 1, 300)
        await feeder.flush()
        await run.rows(target_database, IDS, [])
        make(table, 1, lsn=200)
        make(table, 10, lsn=1000)
        await feeder.flush()
        await run.rows(target_database, IDS, [(10,)])
        drop(table, 1, 150)
        await feeder.flush()
        await run.settled(feeder)
        await run.stop()
    async with applying(config) as run:
        make(table, 1, lsn=299)
        make(table, 11, lsn=1000)
        await feeder.flush()
        await run.rows(target_database, IDS, [(10,), (11,)])
        make(table, 1, lsn=301)
        await feeder.flush()
        await run.rows(target_database, IDS, [(1,), (10,), (11,)])


async def test_h03_an_older_delete_does_not_lower_what_is_remembered(
    feeder: Feeder, target_database: str
) -> None:
    """Of another key, too: the highest tombstone of a partition says whether the table of them is asked."""
    table = await feeder.table("people", COLUMNS, partitions=1)
    make(table, 1, lsn=100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, IDS, [(1,)])
        drop(table, 1, 300)
        await feeder.flush()
        await run.rows(target_database, IDS, [])
        drop(table, 2, 150)
        await feeder.flush()
        await run.settled(feeder)
        make(table, 1, lsn=250)
        make(table, 10, lsn=1000)
        await feeder.flush()
        await run.rows(target_database, IDS, [(10,)])


async def test_h14_a_topic_made_again_that_is_shorter_than_the_checkpoint(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing will ever be read at the checkpoint, so that no record could tell."""
    monkeypatch.setattr(feed, "END_WAIT_S", 0.0)
    table = await feeder.table("people", COLUMNS, partitions=1)
    make(table, 1, lsn=100)
    await feeder.flush()
    config = config_of(feeder, target_database)
    async with applying(config) as run:
        await run.rows(target_database, IDS, [(1,)])
        await run.settled(feeder)
        await run.stop()
    await feeder.delete_topic(table.topic)
    await feeder.make_topic_again(table.topic, 1)
    async with applying(config) as run:
        error = await run.fails()
    assert "its log ends at 0" in str(error)


async def test_h14_retention_that_passes_after_the_look_is_an_error(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """aiokafka would go on at the end of the log, and nobody would know."""
    table = await feeder.table("people", COLUMNS, partitions=1)
    make(table, 1, 2, 3, 4, 5, lsn=100)
    await feeder.flush()
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


async def test_h27_a_row_added_and_removed_in_one_batch_in_two_spellings(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("log", [("id", "integer", "number"), ("p", "point", "text")], key=())
    table.create({"id": 1, "p": "(1,2)"}, 100)
    table.create({"id": 2, "p": "(1,2)"}, 100, 1)
    table.delete({"id": 1, "p": "(1, 2)"}, 110)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT id FROM mirror.log", [(2,)])


async def test_h27_rows_without_a_key_below_the_floor_never_come_back(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("log", COLUMNS, key=())
    make(table, 1, lsn=100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        query = "SELECT id FROM mirror.log"
        await run.rows(target_database, query, [(1,)])
        table.truncate(200)
        await feeder.flush()
        await run.rows(target_database, query, [])
        make(table, 2, lsn=150)
        make(table, 3, lsn=300)
        await feeder.flush()
        await run.rows(target_database, query, [(3,)])


async def test_h30_a_checkpoint_that_is_being_moved_is_waited_for(
    feeder: Feeder, target_database: str
) -> None:
    """Read without its lock, it would still look like ours; a table without a key would double its rows."""
    table = await feeder.table("log", COLUMNS, key=(), partitions=1)
    table.create({"id": 1, "name": "a", "note": None}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT id FROM mirror.log", [(1,)])
        await run.settled(feeder)
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("UPDATE _tailrace.checkpoints SET next_offset = next_offset + 1")
            await other.execute("INSERT INTO mirror.log VALUES (2, 'by another process', NULL, 1, 200, 0)")
            table.create({"id": 2, "name": "b", "note": None}, 200)
            await feeder.flush()
            await blocked(target_database)
            await other.commit()
        table.create({"id": 3, "name": "c", "note": None}, 300)
        await feeder.flush()
        query = "SELECT id, name FROM mirror.log ORDER BY id"
        await run.rows(target_database, query, [(1, "a"), (2, "by another process"), (3, "c")])


async def test_h30_a_target_restored_on_another_server_is_refused(
    feeder: Feeder, target_database: str
) -> None:
    """The same database oid, as after a restore of the whole server's files or a promoted standby's."""
    table = await feeder.table("people", COLUMNS)
    make(table, 1, lsn=100)
    await feeder.flush()
    config = config_of(feeder, target_database)
    async with applying(config) as run:
        await run.rows(target_database, IDS, [(1,)])
        await run.stop()
    await execute(target_database, "UPDATE _tailrace.identity SET system_identifier = system_identifier + 1")
    async with applying(config) as run:
        error = await run.fails()
    assert "copy of another" in str(error)


async def test_h30_a_target_belongs_to_one_group(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS)
    make(table, 1, lsn=100)
    await feeder.flush()
    config = config_of(feeder, target_database)
    async with applying(config) as run:
        await run.rows(target_database, IDS, [(1,)])
        await run.stop()
    await execute(target_database, "UPDATE _tailrace.identity SET consumer_group = 'other'")
    async with applying(config) as run:
        error = await run.fails()
    assert "belongs to the consumer group 'other'" in str(error)


class Mirrored:
    """A real capture and apply; `harm` is done to Kafka while neither runs."""

    def __init__(self, config: Config, source_url: str, target_url: str, feeder: Feeder) -> None:
        self.config = config
        self.source_url = source_url
        self.target_url = target_url
        self.feeder = feeder

    async def equal(self, *, apply_first: bool = False) -> None:
        """Both run until the target has the source's rows."""
        async with await psycopg.AsyncConnection.connect(self.source_url) as connection:
            rows = await (await connection.execute(PEOPLE.format("public"))).fetchall()
        if apply_first:
            async with applying(self.config) as run, capturing(self.config):
                await run.rows(self.target_url, PEOPLE.format("mirror"), rows)
        else:
            async with capturing(self.config) as capture:
                await capture.caught_up()
            async with applying(self.config) as run:
                await run.rows(self.target_url, PEOPLE.format("mirror"), rows)
                await run.settled(self.feeder)

    async def captured(self, *statements: str) -> None:
        async with capturing(self.config) as capture:
            await execute(self.source_url, *statements)
            await capture.caught_up()

    async def refused(self) -> str:
        async with applying(self.config) as run:
            return str(await run.fails())

    async def reset(self) -> None:
        await reset_source(self.config, "shop", brokers=self.config.kafka.brokers)

    async def remove(self, *, keep: int) -> None:
        """As retention does it: all but the last offsets of each partition."""
        places = [TopicPartition(TOPIC, p) for p in range(PARTITIONS)]
        ranges = await offset_ranges(self.config.kafka.brokers, None, places)
        before = {place.partition: end - keep for place, (_, end) in ranges.items()}
        await self.feeder.delete_records(TOPIC, before)

    async def make_again(self, *topics: str) -> None:
        for topic in topics:
            await self.feeder.delete_topic(topic)

        async def gone() -> bool:
            async with admin(self.config.kafka.brokers, None) as client:
                return not set(topics) & set(await client.list_topics())

        await until(gone)
        largest = {"max.message.bytes": str(self.config.kafka.topics.max_message_bytes)}
        await self.feeder.make_topic_again(TOPIC, PARTITIONS, largest)


@pytest.fixture
async def mirrored(
    database: str,
    target_database: str,
    make_config: Callable[..., Config],
    tmp_path: Path,
    kafka: str,
    kafka_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Mirrored]:
    monkeypatch.setattr(feed, "END_WAIT_S", 0.0)
    await execute(
        database,
        "CREATE TABLE people (id int PRIMARY KEY, name text)",
        "INSERT INTO people SELECT n, 'a' FROM generate_series(1, 30) n",
    )
    make_config(database)
    path = tmp_path / "tailrace.yaml"
    document = orjson.loads(path.read_bytes())
    document["targets"] = {"copy": {"kind": "postgres", "url": target_database}}
    document["flows"] = {"mirror": {"from": "shop.public.*", "to": "copy.mirror"}}
    path.write_bytes(orjson.dumps(document))
    async with Feeder(kafka, f"{kafka_name}_admin") as feeder:
        found = Mirrored(load(path), database, target_database, feeder)
        await found.equal()
        yield found


@pytest.mark.parametrize("apply_first", [False, True])
@pytest.mark.parametrize(
    ("meanwhile", "found"),
    [
        ("DELETE FROM people WHERE id > 3", "its log ends at"),
        ("INSERT INTO people SELECT generate_series(100, 300)", "the record at offset"),
    ],
)
async def test_h14_a_topic_made_again_and_the_reset_that_mends_the_target(
    mirrored: Mirrored, meanwhile: str, found: str, apply_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The log ends below the checkpoint, or another record is there."""
    await mirrored.make_again(TOPIC)
    error = await mirrored.refused()
    assert "its log ends at 0" in error
    assert "`tailrace reset shop`, then start apply" in error
    await execute(mirrored.source_url, "DELETE FROM people WHERE id = 1", meanwhile)
    await mirrored.reset()
    await mirrored.equal(apply_first=apply_first)
    told = [r.getMessage() for r in caplog.records if "starts again from the start of the log" in r.message]
    assert told
    assert apply_first or any(found in message for message in told)
    caplog.clear()
    await mirrored.captured("DELETE FROM people WHERE id = 2")
    await mirrored.equal()
    assert "starts again" not in caplog.text


@pytest.mark.parametrize("apply_first", [False, True])
async def test_h14_kafka_replaced_and_the_reset_that_mends_the_target(
    mirrored: Mirrored, apply_first: bool
) -> None:
    """Nothing is left of what was there: the topics are gone, and the cluster has another id."""
    name = mirrored.config.name
    await mirrored.make_again(TOPIC, positions_topic(name), schemas_topic(name))
    await execute(mirrored.target_url, "UPDATE _tailrace.checkpoints SET cluster_id = 'another'")
    await execute(mirrored.source_url, "DELETE FROM people WHERE id = 1", "UPDATE people SET name = 'b'")
    error = await mirrored.refused()
    assert "another Kafka cluster" in error
    assert "on purpose: `tailrace reset shop`, then start apply" in error
    await mirrored.reset()
    await mirrored.equal(apply_first=apply_first)
    async with await psycopg.AsyncConnection.connect(mirrored.target_url) as connection:
        cursor = await connection.execute("SELECT DISTINCT cluster_id FROM _tailrace.checkpoints")
        assert await cursor.fetchall() != [("another",)]
    await mirrored.captured("DELETE FROM people WHERE id = 2")
    await mirrored.equal()


async def test_h14_retention_that_passed_and_the_reset_that_mends_the_target(mirrored: Mirrored) -> None:
    await mirrored.captured("DELETE FROM people WHERE id < 20", "UPDATE people SET name = 'b'")
    await mirrored.remove(keep=2)
    error = await mirrored.refused()
    assert "retention has removed" in error
    assert "`tailrace reset shop`, then start apply" in error
    await mirrored.reset()
    await mirrored.equal()


async def test_h14_a_copy_that_retention_may_have_cut_is_not_believed(mirrored: Mirrored) -> None:
    """Its first record is the first one there is: nobody knows what was before it."""
    await mirrored.captured("DELETE FROM people WHERE id < 20", "UPDATE people SET name = 'b'")
    await mirrored.remove(keep=0)
    await mirrored.reset()
    await mirrored.captured()
    error = await mirrored.refused()
    assert "`tailrace reset shop` once more" in error
    await mirrored.reset()
    await mirrored.equal()


async def test_h14_a_reset_before_the_checkpoint_mends_nothing(mirrored: Mirrored) -> None:
    """The target has that epoch's rows: of what the topic held since, nobody knows."""
    await mirrored.reset()
    await mirrored.equal()
    await mirrored.make_again(TOPIC)
    assert "its log ends at 0" in await mirrored.refused()
    await mirrored.reset()
    await mirrored.equal()


async def test_h14_an_epoch_below_the_targets_is_named(mirrored: Mirrored) -> None:
    """Its versions would all be refused: positions were lost, and the epochs counted from one again."""
    await execute(mirrored.target_url, "UPDATE _tailrace.checkpoints SET last_epoch = 3")
    await mirrored.make_again(TOPIC)
    await mirrored.reset()
    assert "`tailrace reset shop` until its epoch is above that" in await mirrored.refused()
    await mirrored.reset()
    assert "`tailrace reset shop`, then start apply" in await mirrored.refused()
    await mirrored.reset()
    await mirrored.equal()
