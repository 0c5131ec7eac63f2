"""Transactions of a task that Kafka has ended and left open in some partitions: each ends as it had ended.

The state is made at will, as in tests/integration/test_publisher_hanging.py: the client does not name a
partition to the coordinator, which then writes no marker to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pytest
from aiokafka import TopicPartition

from consumers.processors.rocks import RocksStore
from consumers.processors.state import Mark
from streamer.publisher.transactions import TransactionalProducer, Turns
from streamer.sandbox import KafkaServer
from tests.harness.feeder import Feeder
from tests.harness.processing import config_of, processing
from tests.processors.orders import COLUMNS, Killed, counted, counts, write

pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def credulous_kafka(kafka_archive: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    settings = {"transaction.partition.verification.enable": "false"}
    with KafkaServer(tmp_path_factory.mktemp("kafka"), settings=settings) as server:
        yield server


@pytest.fixture
def kafka(credulous_kafka: KafkaServer) -> str:
    """Where `feeder` works."""
    return credulous_kafka.bootstrap


def forget(monkeypatch: pytest.MonkeyPatch, places: frozenset[TopicPartition], used: TopicPartition) -> None:
    """Leave `places` out; Kafka ends no transaction without a partition, so `used` stands in."""
    enlist = TransactionalProducer.enlist

    def without(producer: TransactionalProducer, partitions: Iterable[TopicPartition]) -> None:
        named = set(partitions)
        enlist(producer, named - places or {used})
        producer._txn_manager._txn_partitions |= named & places

    monkeypatch.setattr(TransactionalProducer, "enlist", without)


def forget_once(
    monkeypatch: pytest.MonkeyPatch, places: frozenset[TopicPartition], used: TopicPartition
) -> None:
    """Of the next transaction that has one of them."""
    enlist = TransactionalProducer.enlist
    forget(monkeypatch, places, used)
    forgetful = TransactionalProducer.enlist

    def once(producer: TransactionalProducer, partitions: Iterable[TopicPartition]) -> None:
        named = frozenset(partitions)
        if named & places:
            monkeypatch.setattr(TransactionalProducer, "enlist", enlist)
            forgetful(producer, named)
        else:
            enlist(producer, named)

    monkeypatch.setattr(TransactionalProducer, "enlist", once)


def dies(self: RocksStore, changes: Mapping[bytes, bytes | None], mark: Mark | None) -> None:
    raise Killed


async def dies_before_the_commit(self: Turns) -> None:
    raise Killed


@pytest.mark.parametrize("ended", [True, False], ids=["committed", "not-ended"])
@pytest.mark.parametrize("left", [("out",), ("out", "out.__state"), ("out.__state",)], ids="+".join)
async def test_h13_what_kafka_left_open_counts_once(
    ended: bool, left: tuple[str, ...], feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    async with processing(config, counted, state="rocksdb") as made:
        await made.rows(counts(dict.fromkeys(range(4), 1)))
    places = frozenset(TopicPartition(f"{feeder.name}_{topic}", 0) for topic in left)
    async with processing(config, counted, state="rocksdb") as made:
        await made.until(lambda: made.detail.get("tasks") == [0], "its task")
        forget(monkeypatch, places, TopicPartition(f"{made.out}.__floors", 0))
        if ended:
            monkeypatch.setattr(RocksStore, "write", dies)
        else:
            monkeypatch.setattr(Turns, "commit", dies_before_the_commit)
        await write(feeder, orders, range(4), 200)
        assert isinstance(await made.fails(), Killed)
    monkeypatch.undo()
    async with processing(config, counted, state="rocksdb") as made:
        await write(feeder, orders, range(4), 300)
        records = await made.rows(counts(dict.fromkeys(range(4), 3)))
        assert len(records) == 12


async def test_h13_what_is_committed_can_be_read_though_nothing_follows(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    async with processing(config, counted) as made:
        await made.rows(counts(dict.fromkeys(range(4), 1)))
        places = frozenset((TopicPartition(made.out, 0), TopicPartition(f"{made.out}.__state", 0)))
        forget_once(monkeypatch, places, TopicPartition(f"{made.out}.__floors", 0))
        await write(feeder, orders, range(4), 200)
        await made.rows(counts(dict.fromkeys(range(4), 2)))


@pytest.mark.parametrize("left", ["out", "out.__state"])
async def test_h13_an_aborted_transaction_takes_nothing_of_the_one_before_along(
    left: str, feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent would be missing, or what was noted, and the rows be sent again."""
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    commit, commits = Turns.commit, 0

    async def dies_the_second_time(self: Turns) -> None:
        nonlocal commits
        commits += 1
        if commits > 1:
            raise Killed
        await commit(self)
        await write(feeder, orders, range(4), 300)  # so that the next one begins at once

    async with processing(config, counted, state="rocksdb") as made:
        await made.rows(counts(dict.fromkeys(range(4), 1)))
        await made.until(lambda: made.detail.get("lag_records") == 0, "the end of its input")
        places = frozenset((TopicPartition(f"{feeder.name}_{left}", 0),))
        forget_once(monkeypatch, places, TopicPartition(f"{made.out}.__floors", 0))
        monkeypatch.setattr(Turns, "commit", dies_the_second_time)
        await write(feeder, orders, range(4), 200)
        assert isinstance(await made.fails(), Killed)
    monkeypatch.undo()
    async with processing(config, counted, state="rocksdb") as made:
        records = await made.rows(counts(dict.fromkeys(range(4), 3)))
        assert len(records) == 12
