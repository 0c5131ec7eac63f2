"""The reset of a source mends what apply has stopped at: a topic made again, a Kafka replaced, retention."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import orjson
import psycopg
import pytest
from aiokafka import TopicPartition

from consumers.apply import feed
from streamer.changes.backfill import State
from streamer.changes.topics import positions_topic, schemas_topic
from streamer.config import Config, load
from streamer.kafka import admin, offset_ranges
from streamer.resetting import reset_steps
from streamer.runner import reset_source
from tests.harness.backfill import over, request
from tests.harness.capture import PARTITIONS, capturing, until, until_another_epoch
from tests.harness.capture import run as execute
from tests.harness.feeder import Feeder, applying
from tests.harness.tiers import corners

TOPIC = "shop.public.people"
FAR = 2_000_000_000  # an epoch of the year 2083
PEOPLE = "SELECT id, name FROM {}.people ORDER BY id"


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

    async def reset(self, *, above: int = 0) -> None:
        await reset_source(self.config, "shop", brokers=self.config.kafka.brokers, above=above)

    async def lose_positions(self, *others: str) -> None:
        """With other topics, as when Kafka is lost."""
        await until_another_epoch(self.target_url)
        await self._delete(positions_topic(self.config.name), *others)

    async def drop_slot(self) -> None:
        await execute(self.source_url, f"SELECT pg_drop_replication_slot('{self.config.name}')")

    async def remove(self, *, keep: int) -> None:
        """As retention does it: all but the last offsets of each partition."""
        places = [TopicPartition(TOPIC, p) for p in range(PARTITIONS)]
        ranges = await offset_ranges(self.config.kafka.brokers, None, places)
        before = {place.partition: end - keep for place, (_, end) in ranges.items()}
        await self.feeder.delete_records(TOPIC, before)

    async def make_again(self) -> None:
        await self._delete(TOPIC)
        largest = {"max.message.bytes": str(self.config.kafka.topics.max_message_bytes)}
        await self.feeder.make_topic_again(TOPIC, PARTITIONS, largest)

    async def _delete(self, *topics: str) -> None:
        for topic in topics:
            await self.feeder.delete_topic(topic)

        async def gone() -> bool:
            async with admin(self.config.kafka.brokers, None) as client:
                return not set(topics) & set(await client.list_topics())

        await until(gone)


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
    await mirrored.make_again()
    error = await mirrored.refused()
    assert "its log ends at 0" in error
    assert "`tailrace reset shop --yes`, and start again what has stopped" in error
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
    await mirrored.lose_positions(schemas_topic(mirrored.config.name))
    await mirrored.make_again()
    await execute(mirrored.target_url, "UPDATE _tailrace.checkpoints SET cluster_id = 'another'")
    await execute(mirrored.source_url, "DELETE FROM people WHERE id = 1", "UPDATE people SET name = 'b'")
    error = await mirrored.refused()
    assert "another Kafka cluster" in error
    assert f"on purpose: {reset_steps('shop')}" in error
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
    assert "`tailrace reset shop --yes`, and start again what has stopped" in error
    await mirrored.reset()
    await mirrored.equal()


async def test_h14_a_copy_that_retention_may_have_cut_is_not_believed(mirrored: Mirrored) -> None:
    """Its first record is the first one there is: nobody knows what was before it."""
    await mirrored.captured("DELETE FROM people WHERE id < 20", "UPDATE people SET name = 'b'")
    await mirrored.remove(keep=0)
    await mirrored.reset()
    await mirrored.captured()
    error = await mirrored.refused()
    assert "too: once more stop `tailrace run`" in error
    await mirrored.reset()
    await mirrored.equal()


@pytest.mark.thorough
async def test_h14_a_reset_before_the_checkpoint_mends_nothing(mirrored: Mirrored) -> None:
    """The target has that epoch's rows: of what the topic held since, nobody knows."""
    await mirrored.reset()
    await mirrored.equal()
    await mirrored.make_again()
    assert "its log ends at 0" in await mirrored.refused()
    await mirrored.reset()
    await mirrored.equal()


async def test_h14_an_epoch_below_the_targets_is_named(mirrored: Mirrored) -> None:
    """Its versions would all be refused: positions were lost, and the clock that gives epochs went back."""
    await execute(
        mirrored.target_url,
        f"UPDATE _tailrace.checkpoints SET last_epoch = {FAR}",
        f"UPDATE mirror.people SET _tailrace_epoch = {FAR}",
    )
    await mirrored.make_again()
    await mirrored.reset()
    cure = f"`tailrace reset shop --above {FAR} --yes`, and start again what has stopped"
    assert cure in await mirrored.refused()
    await mirrored.reset(above=FAR)
    await execute(mirrored.source_url, "DELETE FROM people WHERE id = 1")
    await mirrored.equal()


async def test_h03_positions_and_slot_lost_are_begun_above_what_was(mirrored: Mirrored) -> None:
    """Kafka has schema records: it was there before, and rows that are gone go at the copy's end."""
    await mirrored.drop_slot()
    await mirrored.lose_positions()
    await execute(mirrored.source_url, "DELETE FROM people WHERE id = 1", "UPDATE people SET name = 'b'")
    await mirrored.equal()
    await mirrored.captured("DELETE FROM people WHERE id = 2")
    await mirrored.equal()


async def test_h03_kafka_and_the_slot_lost_and_the_one_reset_that_mends_it(mirrored: Mirrored) -> None:
    """As a first start it has no floor: apply does not take it for a copy that ends what is gone."""
    await mirrored.drop_slot()
    await mirrored.lose_positions(schemas_topic(mirrored.config.name))
    await mirrored.make_again()
    await execute(mirrored.target_url, "UPDATE _tailrace.checkpoints SET cluster_id = 'another'")
    await execute(mirrored.source_url, "DELETE FROM people WHERE id = 1", "UPDATE people SET name = 'b'")
    await mirrored.captured()
    error = await mirrored.refused()
    assert "another Kafka cluster" in error
    assert "`tailrace reset shop --yes`, and start again what has stopped" in error
    await mirrored.reset()
    await mirrored.equal()


@pytest.mark.parametrize("checkpoints", corners(["known", "gone"], "gone"))
async def test_h03_a_copy_that_is_all_refused_is_a_finding_that_names_the_cure(
    mirrored: Mirrored, checkpoints: str
) -> None:
    await execute(mirrored.target_url, f"UPDATE mirror.people SET _tailrace_epoch = {FAR}")
    known = f"UPDATE _tailrace.checkpoints SET last_epoch = {FAR}"
    gone = "DELETE FROM _tailrace.checkpoints"
    await execute(mirrored.target_url, known if checkpoints == "known" else gone)
    async with capturing(mirrored.config) as capture, applying(mirrored.config) as run, capture.status:
        words = (
            f"`tailrace reset shop --above {FAR} --yes`" if checkpoints == "known" else "refused all 30 rows"
        )

        def told() -> bool:
            return any(words in finding for finding in run.status.record.detail.get("findings", ()))

        await run.until(told, "a finding")
    if checkpoints == "known":  # an apply that is started again still says so, though no event comes
        async with capturing(mirrored.config) as capture, applying(mirrored.config) as run, capture.status:
            await run.until(told, "a finding")
    await mirrored.reset(above=FAR)
    await mirrored.equal()
    async with capturing(mirrored.config) as capture, applying(mirrored.config) as run, capture.status:
        await execute(mirrored.source_url, "DELETE FROM people WHERE id = 2")
        await run.rows(mirrored.target_url, "SELECT count(*) FROM mirror.people", [(29,)])
        assert not run.status.record.detail.get("findings")


@pytest.mark.thorough
async def test_h22_a_renamed_label_is_mended_by_a_backfill_and_in_a_key_by_a_reset(
    mirrored: Mirrored,
) -> None:
    m = mirrored
    await m.captured(
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE TABLE keyed (id mood PRIMARY KEY, v int)",
        "CREATE TABLE valued (id int PRIMARY KEY, m mood)",
    )
    await m.captured("INSERT INTO keyed VALUES ('sad', 1)", "INSERT INTO valued VALUES (1, 'sad')")
    keyed, valued = "SELECT id::text FROM mirror.keyed ORDER BY 1", "SELECT m::text FROM mirror.valued"
    async with applying(m.config) as run:
        await run.rows(m.target_url, keyed, [("sad",)])
        await run.rows(m.target_url, valued, [("sad",)])
        await m.captured("ALTER TYPE mood RENAME VALUE 'sad' TO 'low'", "UPDATE keyed SET v = 2")
        await run.rows(m.target_url, keyed, [("low",), ("sad",)])
        async with capturing(m.config) as capture:
            assert (await over(capture, await request(capture, "valued"))).state is State.DONE
        await run.rows(m.target_url, valued, [("low",)])
        await m.reset()
        async with capturing(m.config):
            await run.rows(m.target_url, keyed, [("low",)])
