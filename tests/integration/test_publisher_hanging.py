"""Transactions that Kafka has ended and left open in some partitions: each ends as it had ended.

Kafka leaves them so while a partition has no leader. Here the client does not name a partition to the
coordinator, which then writes no marker to it, too: the same state, made at will. A Kafka that checks
what is named to it would refuse, so this one does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace

import pytest
from aiokafka import TopicPartition

from streamer.changes.topics import positions_topic, schemas_topic
from streamer.errors import KafkaUnavailable
from streamer.publisher import Publisher
from streamer.publisher.transactions import TransactionalProducer
from streamer.sandbox import KafkaServer
from tests.harness.publisher import ORDERS, Bench, Settings, at, key

ONE = Settings(partitions=1)
TWO = Settings(partitions=2)
UNUSED = 63


@pytest.fixture(scope="module")
def credulous_kafka(kafka_archive: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    settings = {"transaction.partition.verification.enable": "false"}
    with KafkaServer(tmp_path_factory.mktemp("kafka"), settings=settings) as server:
        yield server


@pytest.fixture
def kafka(credulous_kafka: KafkaServer) -> str:
    """Where `bench` works."""
    return credulous_kafka.bootstrap


def _positions(places: Iterable[TopicPartition]) -> str:
    return next(place.topic for place in places if place.topic.endswith("__positions"))


class Forgetful:
    """While it is entered, markers for `places` are left out of the transactions of a publisher."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, places: Collection[TopicPartition]) -> None:
        self._monkeypatch = monkeypatch
        self._places = frozenset(places)

    def __enter__(self) -> None:
        enlist = TransactionalProducer.enlist
        left_out = self._places

        def without(producer: TransactionalProducer, partitions: Iterable[TopicPartition]) -> None:
            named = set(partitions)
            # Kafka ends no transaction without a partition: one of the positions that nobody uses.
            enlist(producer, named - left_out or {TopicPartition(_positions(named), UNUSED)})
            producer._txn_manager._txn_partitions |= named & left_out

        self._monkeypatch.setattr(TransactionalProducer, "enlist", without)

    def __exit__(self, *_: object) -> None:
        self._monkeypatch.undo()


def rows(bench: Bench, partition: int = 0) -> TopicPartition:
    return TopicPartition(bench.topic, partition)


def positions(bench: Bench) -> TopicPartition:
    return TopicPartition(positions_topic(bench.name), 0)


def append(publisher: Publisher, bench: Bench, value: bytes) -> None:
    """The same row to both partitions."""
    topic = publisher.topic(bench.topic)
    for number in (0, 1):  # so they fall
        topic.append(key(number), value)


@pytest.mark.parametrize("places", ["positions", "rows", "a part of the rows", "all"])
async def test_h13_a_commit_without_its_markers_is_made_good(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, places: str
) -> None:
    left_out = {
        "positions": [positions(bench)],
        "rows": [rows(bench), rows(bench, 1)],
        "a part of the rows": [rows(bench, 1)],
        "all": [positions(bench), rows(bench), rows(bench, 1), TopicPartition(schemas_topic(bench.name), 0)],
    }[places]
    publisher = await bench.open(TWO)
    append(publisher, bench, b"a")
    await publisher.flush(at(200))
    with Forgetful(monkeypatch, left_out):
        append(publisher, bench, b"b")
        publisher.add_schema(ORDERS)
        await publisher.flush(at(300))
    await publisher.close()
    again = bench.publisher(TWO, read_deadline_s=5.0)
    await again.start()
    loaded = await again.load()
    assert loaded.position == replace(at(300), flush=2)
    assert list(loaded.schemas) == [ORDERS.id]
    assert sorted(await bench.values()) == [b"a", b"a", b"b", b"b"]
    await again.ensure_topics([bench.topic])
    append(again, bench, b"c")
    await again.flush(at(400))
    assert sorted(await bench.values()) == [b"a", b"a", b"b", b"b", b"c", b"c"]


@pytest.mark.parametrize("marked", ["nothing", "a part of the rows"])
async def test_h13_a_flush_that_was_not_written_to_its_end_is_void(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, marked: str
) -> None:
    """The rows are there and the position is not; then Kafka aborts with some of its markers left out."""
    publisher = await bench.open(TWO)
    append(publisher, bench, b"a")
    await publisher.flush(at(200))
    left_out = [rows(bench)] if marked == "a part of the rows" else [rows(bench), rows(bench, 1)]
    with Forgetful(monkeypatch, left_out), monkeypatch.context() as patch:
        patch.setattr(Publisher, "_position_batches", refused)
        append(publisher, bench, b"void")
        with pytest.raises(KafkaUnavailable, match="before the position"):
            await publisher.flush(at(300))
    again = await bench.open(TWO, read_deadline_s=5.0)
    assert again.position == replace(at(200), flush=1)
    append(again, bench, b"b")
    await again.flush(at(300))
    assert sorted(await bench.values()) == [b"a", b"a", b"b", b"b"]


def refused(*_: object) -> None:
    raise KafkaUnavailable("the test ends it before the position")


@pytest.mark.parametrize("left", ["rows", "positions"])
async def test_h13_an_aborted_flush_takes_nothing_of_an_acknowledged_one_along(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    """The next flush of the same id, which is the second after it."""
    publisher = await bench.open(TWO)
    append(publisher, bench, b"a")
    await publisher.flush(at(200))
    with Forgetful(monkeypatch, [rows(bench) if left == "rows" else positions(bench)]):
        append(publisher, bench, b"b")
        await publisher.flush(at(300))
    append(publisher, bench, b"c")
    await publisher.flush(at(400))
    with monkeypatch.context() as patch:
        patch.setattr(Publisher, "_position_batches", refused)
        append(publisher, bench, b"void")
        with pytest.raises(KafkaUnavailable, match="before the position"):
            await publisher.flush(at(500))
    again = await bench.open(TWO, read_deadline_s=5.0)
    assert again.position == replace(at(400), flush=3)
    assert sorted(await bench.values()) == [b"a", b"a", b"b", b"b", b"c", b"c"]


async def test_h13_a_whole_flush_that_was_aborted_in_part_is_aborted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written to its end, but nobody asked for its commit: the rows' markers say so."""
    publisher = await bench.open(TWO)
    append(publisher, bench, b"a")
    await publisher.flush(at(200))
    with Forgetful(monkeypatch, [positions(bench)]), monkeypatch.context() as patch:
        patch.setattr(TransactionalProducer, "commit_transaction", TransactionalProducer.abort_transaction)
        append(publisher, bench, b"void")
        await publisher.flush(at(300))
    await publisher.close()
    again = await bench.open(TWO, read_deadline_s=5.0)
    assert again.position == replace(at(200), flush=1)
    append(again, bench, b"b")
    await again.flush(at(300))
    assert sorted(await bench.values()) == [b"a", b"a", b"b", b"b"]


async def test_h13_two_flushes_without_markers_one_after_the_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher = await bench.open(ONE)
    with Forgetful(monkeypatch, [positions(bench), rows(bench)]):
        for number in (1, 2):
            publisher.topic(bench.topic).append(key(1), b"%d" % number)
            await publisher.flush(at(number))
    await publisher.close()
    again = await bench.open(ONE, read_deadline_s=5.0)
    assert again.position == replace(at(2), flush=2)
    assert await bench.values() == [b"1", b"2"]


@pytest.mark.thorough
async def test_h13_a_publisher_at_work_makes_good_what_a_restart_of_kafka_left(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, credulous_kafka: KafkaServer
) -> None:
    """Its next flushes write to another partition, so that no marker of their own would end it."""
    # One that is not answered gives up, and is opened anew; this one is to go on, on a slow machine, too.
    monkeypatch.setattr("streamer.publisher.transactions.CONNECT_DEADLINE_S", 60.0)
    publisher = await bench.open(TWO)
    topic = publisher.topic(bench.topic)
    topic.append(key(1), b"warm")
    await publisher.flush(at(100))
    with Forgetful(monkeypatch, [rows(bench, 1), positions(bench)]):
        topic.append(key(1), b"a")
        await publisher.flush(at(200))
    await asyncio.to_thread(credulous_kafka.restart)
    for lsn in (300, 400):  # one of each id
        topic.append(key(0), b"b")
        await publisher.flush(at(lsn))
    assert sorted(await bench.values()) == [b"a", b"b", b"b", b"warm"]
