"""guarantee: at_least_once: what may come twice, and what never."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition

from consumers.processors import Changes, Derived, agent, changelog, membership
from consumers.processors.names import Names
from streamer.changes.topics import partition_for
from streamer.errors import FencedError, KafkaUnavailable
from streamer.kafka import reader
from streamer.publisher.transactions import Queue, Sent, TransactionalProducer
from tests.harness.feeder import Feeder
from tests.harness.processing import NAME, config_of, processing, records_of
from tests.processors.agents import doubled
from tests.processors.orders import COLUMNS, write


async def test_at_least_once_sends_without_transactions(feeder: Feeder, tmp_path: Path) -> None:
    orders = await feeder.table("orders", COLUMNS)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path, guarantee="at_least_once")
    expected = {f'{{"id":{n}}}': {"id": n, "n": 100, "twice": 200} for n in range(4)}
    async with processing(config, doubled) as made:
        records = await made.rows(expected)
        assert [json.loads(r.value)["source"]["connector"] for r in records if r.value] == ["tailrace"] * 4
        places = {TopicPartition(made.out, p) for p in range(2)}
        async with reader(feeder.brokers, None, committed=False) as client:
            ends = await client.end_offsets(places)
        assert sum(ends.values()) == 4  # no markers
    async with processing(config, doubled) as made:
        await write(feeder, orders, range(4, 6), 100)
        await made.rows(expected | {f'{{"id":{n}}}': {"id": n, "n": 100, "twice": 200} for n in (4, 5)})


async def test_at_least_once_a_worker_that_was_slow_to_give_a_task_up_sends_nothing_behind_its_successor(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka fences nobody there, and an older row that comes later would stay for good."""
    monkeypatch.setattr(membership, "REVOKE_S", 0.3)
    orders = await feeder.table("orders", COLUMNS)
    keys = [next(n for n in range(99) if partition_for(b'{"id":%d}' % n, 2) == p) for p in range(2)]
    config = config_of(feeder, [orders.topic], tmp_path, guarantee="at_least_once")
    in_hand, gate = set[int](), asyncio.Event()

    @agent
    async def slow(changes: Changes) -> AsyncIterator[Derived]:
        async for change in changes:
            in_hand.add(change.key["id"])
            await gate.wait()
            yield change.to(after=change.after)

    @agent
    async def swift(changes: Changes) -> AsyncIterator[Derived]:
        async for change in changes:
            yield change.to(after=change.after)

    def newest() -> dict[str, Any]:
        return {f'{{"id":{key}}}': {"id": key, "n": 200 + key} for key in keys}

    for key in keys:
        orders.create({"id": key, "n": 100}, lsn=100 + key)
    await feeder.flush()
    async with processing(config, slow) as frozen:
        await frozen.until(lambda: in_hand == set(keys), "its body")
        async with processing(config, swift) as next_:
            await next_.until(lambda: len(next_.detail.get("tasks", ())) == 1, "one of the tasks")
            for key in keys:
                orders.update({"id": key, "n": 200 + key}, lsn=200 + key)
            await feeder.flush()
            [number] = next_.detail["tasks"]
            await next_.until(lambda: next_.detail["done"] == 2, "its changes")
            gate.set()
            assert isinstance(await frozen.fails(), FencedError)
            await next_.rows(newest())
            late = [r for r in await records_of(next_.brokers, next_.out) if r.partition == number]
            assert [json.loads(r.value)["after"]["n"] for r in late if r.value] == [100, 200 + keys[number]]


async def test_at_least_once_keeps_nothing_of_what_did_not_come_out(
    feeder: Feeder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changelog that is ahead of the outputs would pass over rows."""
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    await write(feeder, orders, range(4), 100)
    config = config_of(feeder, [orders.topic], tmp_path, guarantee="at_least_once", partitions=1)
    out = config.processors[NAME].out
    send = TransactionalProducer.send_queues

    async def only_others(self: TransactionalProducer, queues: Iterable[Queue], brokers: str) -> list[Sent]:
        queues = list(queues)
        others = [queue for queue in queues if queue.topic != out]
        sent = await send(self, others, brokers)
        if len(others) < len(queues):
            raise KafkaUnavailable("it takes no rows")
        return sent

    with monkeypatch.context() as patched:
        patched.setattr(TransactionalProducer, "send_queues", only_others)
        async with processing(config, doubled) as made:
            assert "it takes no rows" in str(await made.fails())
    kept = await records_of(feeder.brokers, Names(config.name, NAME, out).state)
    assert changelog.COMMIT_KEY not in {record.key for record in kept}
    async with processing(config, doubled) as made:
        await made.rows({f'{{"id":{n}}}': {"id": n, "n": 100, "twice": 200} for n in range(4)})
