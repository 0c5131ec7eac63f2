"""Workers: who has which task, what is read back after a kill, and what stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from logging import WARNING
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError

from consumers.processors import held_up, opening, worker
from consumers.processors.folder_lock import FolderLock
from consumers.processors.ground import Ground, look
from consumers.processors.membership import Membership, Numbers
from consumers.processors.names import Names
from consumers.processors.operations import wait_through
from consumers.processors.rocks import RocksStore
from consumers.processors.state import Mark
from consumers.processors.transaction import Transactions
from streamer.errors import ConfigError, FatalError, FencedError, KafkaUnavailable
from streamer.status import State
from tests.harness.feeder import WAIT_S, Feeder
from tests.harness.processing import NAME, config_of, processing
from tests.processors.agents import doubled
from tests.processors.orders import COLUMNS, Killed, counted, counts, write


async def test_a_kill_after_kafkas_commit_loses_nothing_of_the_state(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = await feeder.table("orders", COLUMNS)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path)
    async with processing(config, counted, state="rocksdb") as made:
        await made.rows(counts(dict.fromkeys(range(4), 1)))

    def dies(self: RocksStore, changes: Mapping[bytes, bytes | None], mark: Mark | None) -> None:
        raise Killed

    async with processing(config, counted, state="rocksdb") as made:
        await made.until(lambda: made.detail.get("tasks") == [0, 1], "its tasks")
        monkeypatch.setattr(RocksStore, "write", dies)
        await write(feeder, orders, range(4), 200)
        assert isinstance(await made.fails(), Killed)  # Kafka has the transaction, the store has not
    monkeypatch.undo()
    async with processing(config, counted, state="rocksdb") as made:
        await write(feeder, orders, range(4), 300)
        records = await made.rows(counts(dict.fromkeys(range(4), 3)))
        assert len(records) == 12


async def test_h30_a_worker_whose_task_was_taken_over_cannot_commit(feeder: Feeder, tmp_path: Path) -> None:
    orders = await feeder.table("orders", COLUMNS)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path)
    async with processing(config, doubled) as made:
        await made.until(lambda: made.detail.get("done") == 4, "the rows")
        before = len(await made.rows({f'{{"id":{n}}}': {"id": n, "n": 100, "twice": 200} for n in range(4)}))
        names = Names(config.name, NAME, made.out)
        place = TopicPartition(names.state, 0)
        successor = Transactions(feeder.brokers, None, names.transactions(0), "exactly_once", place)
        await successor.start()
        try:
            await write(feeder, orders, range(20), 200)
            error = await made.fails()
        finally:
            await successor.end(abort=False)
    assert isinstance(error, FencedError)
    assert "another worker has taken over" in str(error)
    async with processing(config, doubled) as made:
        records = await made.rows({f'{{"id":{n}}}': {"id": n, "n": 200, "twice": 400} for n in range(20)})
        assert len(records) == before + 20  # of the zombie's transaction nothing is read


@pytest.mark.thorough
async def test_two_workers_share_the_tasks_and_one_takes_over(feeder: Feeder, tmp_path: Path) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=4)
    await write(feeder, orders, range(20), 100)
    config = config_of(feeder, [orders.topic], tmp_path)
    async with processing(config, counted) as first:
        await first.until(lambda: first.detail.get("tasks") == [0, 1, 2, 3], "all tasks")
        async with processing(config, counted) as second:
            await second.until(lambda: len(second.detail.get("tasks") or []) == 2, "half of them")
            await first.until(lambda: len(first.detail["tasks"]) == 2, "the other half")
            assert not {*first.detail["tasks"]} & {*second.detail["tasks"]}
            await write(feeder, orders, range(20), 200)
            await first.rows(counts(dict.fromkeys(range(20), 2)))
            await second.stop()
        await write(feeder, orders, range(20), 300)
        await first.until(lambda: first.detail.get("tasks") == [0, 1, 2, 3], "all tasks again")
        records = await first.rows(counts(dict.fromkeys(range(20), 3)))
        assert len(records) == 60


async def test_a_folder_that_a_frozen_worker_has_is_not_waited_for(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is fenced; its state is read once more, beside it, until the folder is free again."""
    monkeypatch.setattr(opening, "LOCK_WAIT_S", 0.3)
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    folder = tmp_path / opening.STATE_FOLDER / NAME
    await write(feeder, orders, range(4), 100)
    async with processing(config, counted, state="rocksdb") as made:
        await made.rows(counts(dict.fromkeys(range(4), 1)))
    frozen = FolderLock(folder / "0")
    await write(feeder, orders, range(4), 200)
    async with processing(config, counted, state="rocksdb") as made:
        await made.rows(counts(dict.fromkeys(range(4), 2)))
        assert (folder / "0.spare" / "db").is_dir()
    frozen.close()
    await write(feeder, orders, range(4), 300)
    async with processing(config, counted, state="rocksdb") as made:
        await made.rows(counts(dict.fromkeys(range(4), 3)))
        assert sorted(path.name for path in folder.iterdir()) == ["0"]


async def test_tasks_that_were_not_given_up_in_time_are_closed_before_others_are_opened(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group has gone on without them; their state is in the way of who has the tasks next."""
    monkeypatch.setattr(opening, "LOCK_WAIT_S", 0.3)
    assigned, given = Membership.assigned, list[tuple[Membership, Collection[TopicPartition]]]()

    def noted(self: Membership, partitions: Collection[TopicPartition]) -> None:
        given.append((self, partitions))
        assigned(self, partitions)

    monkeypatch.setattr(Membership, "assigned", noted)
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    async with processing(config, counted, state="rocksdb") as made:
        await made.rows(counts(dict.fromkeys(range(4), 1)))
        membership, partitions = given[-1]
        membership.assigned(partitions)
        await made.until(lambda: made.detail.get("rebalances") == len(given), "to take them up")
        await write(feeder, orders, range(4), 200)
        await made.rows(counts(dict.fromkeys(range(4), 2)))
        folder = tmp_path / opening.STATE_FOLDER / NAME
        assert [path.name for path in folder.iterdir()] == ["0"]  # and no spare one


def test_numbers_go_together() -> None:
    class Cluster:
        def partitions_for_topic(self, topic: str) -> set[int]:
            return set(range(5))

    members = {name: Numbers.metadata(["a", "b.__hop1"]) for name in ("y", "x")}
    assigned = Numbers.assign(Cluster(), members)  # type: ignore[arg-type]
    assert {name: list(found.assignment) for name, found in assigned.items()} == {
        "x": [("a", [0, 2, 4]), ("b.__hop1", [0, 2, 4])],
        "y": [("a", [1, 3]), ("b.__hop1", [1, 3])],
    }


async def test_the_groups_offsets_follow_though_a_commit_of_them_fails(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing comes after: who waits for what has come out would wait for ever."""
    monkeypatch.setattr(worker, "FOLLOW_S", 0.1)
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    commit, refused = AIOKafkaConsumer.commit, 3

    async def refuses(self: AIOKafkaConsumer, offsets: Any) -> None:
        nonlocal refused
        if refused:
            refused -= 1
            raise CommitFailedError
        await commit(self, offsets)

    monkeypatch.setattr(AIOKafkaConsumer, "commit", refuses)
    async with processing(config, doubled):
        async with asyncio.timeout(WAIT_S):
            assert await wait_through(config, NAME)
    assert not refused


async def test_a_kafka_that_answers_late_is_waited_for_and_not_for_ever(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "END_POLL_S", 0.01)
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    ranges, said, late = Membership.ranges, list[str](), opening.OFFSETS_TRIES - 1

    async def answers_late(self: Membership, number: int) -> dict[str, tuple[int, int]]:
        said.append(f"{made.status.record.state} {made.status.record.reason}")
        if len(said) <= late:
            raise KafkaUnavailable("no answer within the time allowed")
        return await ranges(self, number)

    monkeypatch.setattr(Membership, "ranges", answers_late)
    async with processing(config, doubled) as made:
        await made.until(lambda: made.detail.get("done") == 4, "the rows")
        assert (made.status.record.state, made.status.record.reason) == (State.STREAMING, "")
    assert said[1:] == [f"{State.WAITING} no answer within the time allowed"] * late
    said, late = [], 1000
    async with processing(config, doubled) as made:
        assert isinstance(await made.fails(), KafkaUnavailable)
    assert len(said) == opening.OFFSETS_TRIES


async def test_h13_a_transaction_that_nobody_ends_is_said(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be read behind it, and nothing is behind: without a word all would look well."""
    monkeypatch.setattr(held_up, "HELD_UP_S", 0.3)
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    producer = AIOKafkaProducer(bootstrap_servers=feeder.brokers, transactional_id=f"{feeder.name}.open")
    await producer.start()
    async with processing(config, doubled) as made:
        await made.until(lambda: made.detail.get("done") == 4, "the rows")
        await producer.begin_transaction()
        await producer.send_and_wait(orders.topic, b"{}", b'{"id":9}', partition=0)
        await made.until(lambda: made.status.record.state == State.WAITING, "that it waits")
        assert f"a transaction is open in {orders.topic}[0] from offset 5 on" in made.status.record.reason
        await producer.abort_transaction()
        await made.until(lambda: made.status.record.state == State.STREAMING, "that it goes on")
    await producer.stop()


async def test_inputs_of_different_partition_counts_are_refused(feeder: Feeder, tmp_path: Path) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=2)
    items = await feeder.table("items", COLUMNS, partitions=4)
    config = config_of(feeder, [orders.topic, items.topic], tmp_path)
    async with processing(config, doubled) as made:
        error = await made.fails()
    assert isinstance(error, ConfigError)
    assert f"{orders.topic} has 2, {items.topic} has 4" in str(error)


async def test_h26_an_input_made_again_with_more_partitions_is_refused(
    feeder: Feeder, tmp_path: Path
) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=2)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path)
    async with processing(config, doubled) as made:
        await made.until(lambda: made.detail.get("done") == 4, "the rows")
    await feeder.delete_topic(orders.topic)
    await feeder.make_topic_again(orders.topic, 4)
    async with processing(config, doubled) as made:
        error = await made.fails()
    assert isinstance(error, ConfigError)
    assert "has 2 partitions, the inputs have 4" in str(error)


async def test_h14_what_retention_has_taken_is_an_error(feeder: Feeder, tmp_path: Path) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path)
    async with processing(config, doubled) as made:
        await made.until(lambda: made.detail.get("done") == 4, "the rows")
    await write(feeder, orders, range(4), 200)
    await feeder.delete_records(orders.topic, {0: 8})
    async with processing(config, doubled) as made:
        error = await made.fails()
    assert isinstance(error, FatalError)
    assert "retention has passed offset" in str(error)
    assert f"tailrace reset {NAME}" in str(error)


async def test_h14_an_input_made_again_is_told_by_its_records(feeder: Feeder, tmp_path: Path) -> None:
    """It has grown past where the worker was: by offsets alone its first records would be passed over."""
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path, partitions=1)
    for lsn in (200, 300):  # it goes on where it was, as long as the topic is the same
        async with processing(config, doubled, state="rocksdb") as made:
            await write(feeder, orders, range(4), lsn)
            rows = {f'{{"id":{n}}}': {"id": n, "n": lsn, "twice": 2 * lsn} for n in range(4)}
            await made.rows(rows)
    await feeder.delete_topic(orders.topic)
    await feeder.make_topic_again(orders.topic, 1)
    await write(feeder, orders, range(30), 400)
    async with processing(config, doubled, state="rocksdb") as made:
        error = await made.fails()
    assert isinstance(error, FatalError)
    assert "the topic was made again" in str(error)
    assert f"{orders.topic}[0]" in str(error)
    assert f"tailrace reset {NAME}" in str(error)


async def test_a_missing_input_is_waited_for_and_told_once(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    looks = []

    async def looked(*args: Any, **options: Any) -> Ground:
        looks.append(args)
        return await look(*args, **options)

    def told() -> list[str]:
        return [text for _, level, text in caplog.record_tuples if level == WARNING and " waits: " in text]

    monkeypatch.setattr(worker, "look", looked)
    topic = f"{feeder.source}.public.orders"
    await feeder.make_topic(f"{feeder.source}2.public.orders", 1)  # of another pipeline
    async with processing(config_of(feeder, [topic], tmp_path), doubled) as made:
        await made.until(lambda: made.status.record.state == "waiting", "to wait")
        assert f"there is no topic {topic} yet\n" in made.status.record.reason
        await made.until(lambda: len(looks) > 3, "to look again")
        assert told() == [f"processor {NAME} waits: {made.status.record.reason}"]
        await feeder.make_topic(f"{topic}s", 1)
        await made.until(lambda: len(told()) > 1, "another reason to be told")
        assert f"there is {topic}s" in told()[1]
        orders = await feeder.table("orders", COLUMNS)
        await write(feeder, orders, range(2), 100)
        await made.rows({f'{{"id":{n}}}': {"id": n, "n": 100, "twice": 200} for n in range(2)})
