"""What operators do to a processor from outside: look at what is parked, ask for it again, reset.

Works from any machine: parked keys are read in the changelog, and requests go through the control topic to
whichever worker has the task. A reset is done while no worker runs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Literal

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from consumers.processors import changelog, control
from consumers.processors.context import HOPS_LIMIT
from consumers.processors.ground import Ground, look, make
from consumers.processors.names import Names
from consumers.processors.outbox import Record
from consumers.processors.parked import PREFIX, Item
from consumers.processors.transaction import Transactions
from streamer.config import Config
from streamer.errors import ConfigError
from streamer.kafka import (
    READ_DEADLINE_S,
    admin,
    client_options,
    connect,
    kafka_errors,
    offset_ranges,
    read_batches,
    shut,
)
from streamer.publisher.batches import BATCH_BYTES, Batch
from streamer.publisher.topics import describe
from streamer.publisher.transactions import Queue
from streamer.status import now_us

POLL_S = 0.2  # the group's offsets follow once a second


@dataclass(frozen=True, slots=True)
class ParkedKey:
    """`items`: its changes in order; the first says why. `partition`: of its task."""

    partition: int
    topic: str
    key: bytes
    items: tuple[Item, ...]


def names_of(config: Config, name: str) -> Names:
    """Raises ConfigError when there is no such processor."""
    if name not in config.processors:
        raise ConfigError(f"there is no processor {name!r}", where=str(config.path), fix="see `processors:`")
    return Names(config.name, name, config.processors[name].out)


async def parked_keys(config: Config, name: str) -> list[ParkedKey]:
    """In the order in which they were parked. Raises KafkaUnavailable, ConfigError."""
    names, kafka = names_of(config, name), config.kafka
    async with admin(kafka.brokers, kafka.security) as client:
        count = (await describe(client, [names.state])).get(names.state, 0)
    ranges = await offset_ranges(
        kafka.brokers, kafka.security, [TopicPartition(names.state, p) for p in range(count)]
    )
    found: dict[tuple[int, bytes], bytes] = {}
    async for batch in read_batches(kafka.brokers, kafka.security, ranges, committed=True):
        for record in batch:
            key = record.key or b""
            if key == changelog.EPOCH_KEY:
                for known in [known for known in found if known[0] == record.partition]:
                    del found[known]
            elif key.startswith(PREFIX):
                found.pop((record.partition, key), None)
                if record.value is not None:
                    found[record.partition, key] = record.value
    keys: dict[tuple[int, str, bytes], list[Item]] = {}
    for (partition, full_key), value in found.items():
        item = Item.load(full_key, value)
        keys.setdefault((partition, item.topic, item.key), []).append(item)
    ordered = [
        ParkedKey(partition, topic, key, tuple(sorted(items, key=lambda item: item.number)))
        for (partition, topic, key), items in keys.items()
    ]
    return sorted(ordered, key=lambda parked: parked.items[0].at_us)


async def ask(
    config: Config, name: str, action: Literal["retry", "discard"], keys: Iterable[ParkedKey]
) -> int:
    """How many were asked for; a running worker does it within a second. Raises KafkaUnavailable."""
    names = names_of(config, name)
    placed: dict[tuple[str, int], list[Record]] = {}
    count = 0
    for parked in keys:
        request = control.Request(action, parked.topic, parked.key, now_us())
        placed.setdefault((names.control, parked.partition), []).append((None, control.dump(request), []))
        count += 1
    if placed:
        await _send(config, f"{names.group}.ask", placed)
    return count


async def reset_processor(config: Config, name: str, *, above: int = 0) -> int:
    """Throw the state away and derive everything again, in the epoch that is given: above all before it.

    Rows that are not derived again are given up when all inputs were read up to where they end now. No worker
    may run. `above`: an epoch that targets have already. Raises ConfigError while workers run.
    """
    names, kafka = names_of(config, name), config.kafka
    ground = await look(config, name, brokers=kafka.brokers)
    async with admin(kafka.brokers, kafka.security) as client:
        await _check_stopped(client, names, kafka.brokers)
        topics = await describe(client)
    hops = _hops(names, topics)
    await make(kafka, names, ground, hops, brokers=kafka.brokers)
    await _fence(config, names, ground)
    epochs = await _epochs(config, names, ground)
    epoch = max(*epochs, above) + 1
    own = (names.control, *(names.hop(number) for number in range(1, hops)))
    places = [TopicPartition(t, p) for t in (*ground.inputs, *own) for p in range(ground.partitions)]
    ends = {p: end for p, (_, end) in (await offset_ranges(kafka.brokers, kafka.security, places)).items()}
    placed: dict[tuple[str, int], list[Record]] = {}
    for number in range(ground.partitions):
        record = changelog.Epoch(
            epoch,
            offsets={topic: ends[TopicPartition(topic, number)] for topic in own},
            goals={topic: ends[TopicPartition(topic, number)] for topic in ground.inputs},
        )
        placed[names.state, number] = [(changelog.EPOCH_KEY, record.dump(), [])]
    await _send(config, f"{names.group}.reset", placed)
    starts = await offset_ranges(
        kafka.brokers, kafka.security, [place for place in places if place.topic in ground.inputs]
    )
    await _rewind(config, names, {**ends, **{place: start for place, (start, _) in starts.items()}})
    await _fence(config, names, ground)  # a worker that was started meanwhile ends, and begins anew
    return epoch


async def wait_through(
    config: Config, name: str, *, stopped: Callable[[int], bool] = lambda _: False, poll_s: float = POLL_S
) -> bool:
    """Until what its inputs hold now has come out, hop by hop (H19); False when `stopped`, which is given the
    sum of the group's offsets, said so first.

    What is parked does not come out. The caller sets the deadline. Raises KafkaUnavailable, ConfigError.
    """
    names, kafka = names_of(config, name), config.kafka
    ground = await look(config, name, brokers=kafka.brokers)
    async with admin(kafka.brokers, kafka.security) as client:
        hops = _hops(names, await describe(client))
        own = [(names.control,), *((names.hop(number),) for number in range(1, hops))]
        for topics in (ground.inputs, *own):
            places = [TopicPartition(topic, p) for topic in topics for p in range(ground.partitions)]
            ranges = await offset_ranges(kafka.brokers, kafka.security, places)
            while True:
                passed, at = await _passed(client, names, ranges, kafka.brokers)
                if passed:
                    break
                if stopped(at):
                    return False
                await asyncio.sleep(poll_s)
    return True


async def _passed(
    client: AIOKafkaAdminClient,
    names: Names,
    ranges: Mapping[TopicPartition, tuple[int, int]],
    brokers: str,
) -> tuple[bool, int]:
    """Whether all of it is done, and the sum of the group's offsets."""
    with kafka_errors("reading the group's offsets", brokers=brokers):
        offsets = await client.list_consumer_group_offsets(names.group)
    passed = all(
        end == 0 or (place in offsets and offsets[place].offset >= end) for place, (_, end) in ranges.items()
    )
    return passed, sum(found.offset for found in offsets.values())


def _hops(names: Names, topics: Container[str]) -> int:
    return next(number for number in range(1, HOPS_LIMIT + 1) if names.hop(number) not in topics)


async def _rewind(config: Config, names: Names, offsets: Mapping[TopicPartition, int]) -> None:
    """The group's offsets: who waits for them must not see those of before."""
    kafka = config.kafka
    client = AIOKafkaConsumer(
        **client_options(kafka.brokers, kafka.security), group_id=names.group, enable_auto_commit=False
    )
    client.assign(list(offsets))
    try:
        await connect(client, kafka.brokers, kafka.security)
        with kafka_errors("setting the group's offsets", brokers=kafka.brokers):
            async with asyncio.timeout(READ_DEADLINE_S):
                await client.commit(dict(offsets))
    finally:
        await shut(client.stop)


async def _check_stopped(client: AIOKafkaAdminClient, names: Names, brokers: str) -> None:
    with kafka_errors("describing the group", brokers=brokers):
        node = await client.find_coordinator(names.group)
        for response in await client.describe_consumer_groups([names.group], node):
            for _, _, state, _, _, members, *_ in response.groups:
                if members:
                    raise ConfigError(
                        f"{len(members)} worker(s) of it run (its group is {state})",
                        where=f"processor {names.processor}",
                        fix="stop `tailrace run`, or every `tailrace process` of it, and try again",
                    )


async def _fence(config: Config, names: Names, ground: Ground) -> None:
    for number in range(ground.partitions):
        fence = Transactions(
            config.kafka.brokers, config.kafka.security, names.transactions(number), "exactly_once",
            TopicPartition(names.state, number),
        )  # fmt: skip
        try:
            await fence.start()
            await fence.end_changelog()
        finally:
            await fence.end(abort=False)


async def _epochs(config: Config, names: Names, ground: Ground) -> list[int]:
    kafka = config.kafka
    places = [TopicPartition(names.state, p) for p in range(ground.partitions)]
    ranges = await offset_ranges(kafka.brokers, kafka.security, places)
    epochs = dict.fromkeys(range(ground.partitions), changelog.Epoch().epoch)
    async for batch in read_batches(kafka.brokers, kafka.security, ranges, committed=True):
        for record in batch:
            if record.key == changelog.EPOCH_KEY and record.value is not None:
                where = f"{names.state}[{record.partition}]@{record.offset}"
                epochs[record.partition] = changelog.Epoch.load(record.value, where).epoch
    return list(epochs.values())


async def _send(config: Config, transactional_id: str, placed: dict[tuple[str, int], list[Record]]) -> None:
    """All of it in one transaction."""
    kafka = config.kafka
    queues = []
    for (topic, partition), records in placed.items():
        batch = Batch(BATCH_BYTES, kafka.topics.compression, now_us() // 1000)
        batches = [batch]
        for key, value, headers in records:
            if batch.add(key, value, headers) is None:
                batch = Batch(BATCH_BYTES, kafka.topics.compression, now_us() // 1000)
                batch.add(key, value, headers)
                batches.append(batch)
        queues.append(Queue(topic, partition, batches))
    async with AsyncExitStack() as stack:
        last = queues[-1]
        place = TopicPartition(last.topic, last.partition)
        sender = Transactions(kafka.brokers, kafka.security, transactional_id, "exactly_once", place)
        stack.push_async_callback(sender.end, abort=True)
        await sender.start()
        await sender.commit(queues[:-1], lambda _: last)
        await sender.finish()
