"""A look into a topic: committed records from somewhere to somewhere, or the last few, of all keys or one.

Only reads, and keeps no more than a fetch and the records that are asked for. Records of a partition come in
their order; those of several are put in the order of their times as far as they are at hand together.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition

from consumers.bounds import Bound, Offsets, ends_of, offsets_of
from consumers.keys import WantedKey
from streamer.changes.topics import partition_for
from streamer.config.base import nearest
from streamer.errors import ConfigError, KafkaUnavailable
from streamer.kafka import READ_DEADLINE_S, Security, admin, kafka_errors, reader
from streamer.publisher.topics import describe

LAST = 10  # records shown without --from and --number
FETCH_RECORDS = 500
POLL_MS = 200  # of a fetch that finds nothing
FOLLOW_WAIT_MS = 500  # of a broker that has nothing: it answers at once when something comes
FIRST_STEP = 200  # offsets looked through for the last few; each further step is STEP_FACTOR as long
STEP_FACTOR = 8

Record: TypeAlias = "ConsumerRecord[bytes, bytes]"


@dataclass(frozen=True, slots=True)
class Wanted:
    """`number`: at most so many, 1 at least; without `from_` the last ones. `to`: what is left out first."""

    topic: str
    key: WantedKey | None = None
    from_: Bound | None = None
    to: Bound | None = None
    number: int | None = None
    partition: int | None = None
    follow: bool = False

    def fits(self, record: Record) -> bool:
        return self.key is None or self.key.fits(record.key)


async def tail(
    brokers: str, security: Security | None, name: str, wanted: Wanted
) -> AsyncGenerator[Record, None]:
    """Raises ConfigError for a topic or partition that is not there."""
    async with admin(brokers, security) as client:
        with kafka_errors("asking for topics", brokers=brokers):
            topics = await describe(client)
    topic = full_name(wanted.topic, name, topics)
    count = topics[topic]
    if wanted.partition is not None and wanted.partition >= count:
        raise ConfigError(
            f"{topic} has no partition {wanted.partition}", fix=f"it has {count}: 0 to {count - 1}"
        )
    chosen = range(count) if wanted.partition is None else [wanted.partition]
    partitions = [TopicPartition(topic, number) for number in chosen]
    async with reader(brokers, security, committed=True, wait_ms=FOLLOW_WAIT_MS) as consumer:
        if wanted.key is not None and len(partitions) > 1:
            partitions = await _of_key(consumer, brokers, partitions, wanted.key)
        async with aclosing(_read(consumer, brokers, partitions, wanted)) as records:
            async for record in records:
                yield record


def full_name(topic: str, name: str, topics: Iterable[str]) -> str:
    """`topic`: also one of ours without the config's name in front. Raises ConfigError."""
    known = sorted(topics)
    for spelling in (topic, f"{name}.{topic}"):
        if spelling in known:
            return spelling
    raise ConfigError(f"there is no topic {topic!r} in this Kafka", fix=nearest(topic, known))


async def _read(
    consumer: AIOKafkaConsumer, brokers: str, partitions: list[TopicPartition], wanted: Wanted
) -> AsyncGenerator[Record, None]:
    starts, ends = await ends_of(consumer, partitions, brokers)
    stop = ends if wanted.to is None else await offsets_of(wanted.to, consumer, starts, ends, brokers)
    left = wanted.number
    if wanted.from_ is None:
        last = LAST if left is None else left
        found = await _last(consumer, brokers, wanted, starts, stop, last)
        for record in found:
            yield record
        if not wanted.follow:
            return
        left, begin = None, dict(stop)
    else:
        begin = await offsets_of(wanted.from_, consumer, starts, ends, brokers)
    until = None if wanted.follow and wanted.to is None else stop
    async with aclosing(read(consumer, brokers, begin, until)) as batches:
        async for batch in batches:
            for record in batch:
                if not wanted.fits(record):
                    continue
                if left == 0:
                    return
                left = None if left is None else left - 1
                yield record
            if left == 0:
                return


async def read(
    consumer: AIOKafkaConsumer,
    brokers: str,
    begin: Offsets,
    until: Offsets | None,
    *,
    number: int = FETCH_RECORDS,
) -> AsyncGenerator[list[Record], None]:
    """Batches of at most `number` records of [begin, until); without an end it goes on for ever."""
    open_ = {p for p in begin if until is None or begin[p] < until[p]}
    if not open_:
        return
    consumer.assign(list(open_))
    for partition in open_:
        consumer.seek(partition, begin[partition])
    now_s = asyncio.get_running_loop().time
    moved_s = now_s()
    at = {p: begin[p] for p in open_}
    while open_:
        with kafka_errors(f"reading {next(iter(open_)).topic}", brokers=brokers):
            fetched = await consumer.getmany(*open_, timeout_ms=POLL_MS, max_records=number)
            found = [
                record
                for partition, records in fetched.items()
                for record in records
                if until is None or record.offset < until[partition]
            ]
            for partition in list(open_):
                position = await consumer.position(partition)
                if position != at[partition]:
                    at[partition], moved_s = position, now_s()
                if until is not None and position >= until[partition]:
                    open_.discard(partition)
        yield in_time(found)
        if until is not None and open_ and now_s() - moved_s > READ_DEADLINE_S:
            behind = ", ".join(f"{p.topic}[{p.partition}] from offset {at[p]} on" for p in sorted(open_))
            raise KafkaUnavailable(
                f"no answer within {READ_DEADLINE_S:.0f} s: {behind}",
                where=f"kafka {brokers}",
                fix="check that the brokers run and lead these partitions",
            )


def in_time(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record.timestamp, record.partition, record.offset))


async def _last(
    consumer: AIOKafkaConsumer,
    brokers: str,
    wanted: Wanted,
    starts: Offsets,
    stop: Offsets,
    number: int,
) -> list[Record]:
    """The last records that fit, of all partitions together: each is looked through from its end back."""
    kept: list[Record] = []
    for partition, end in stop.items():
        span = starts[partition], end
        kept += await last_of(consumer, brokers, partition, span, number, wanted.fits)
        kept = in_time(kept)[-number:]
    return kept


async def last_of(
    consumer: AIOKafkaConsumer,
    brokers: str,
    partition: TopicPartition,
    span: tuple[int, int],
    number: int,
    fits: Callable[[Record], bool],
) -> list[Record]:
    """The last records of the span [start, end) of one partition that fit, in their order."""
    start, high = span
    found: list[Record] = []
    step = max(FIRST_STEP, number)
    while high > start and len(found) < number:
        low = max(start, high - step)
        piece: deque[Record] = deque(maxlen=number - len(found))
        async with aclosing(read(consumer, brokers, {partition: low}, {partition: high})) as batches:
            async for batch in batches:
                piece += filter(fits, batch)
        found = [*piece, *found]
        high, step = low, step * STEP_FACTOR
    return found


async def _of_key(
    consumer: AIOKafkaConsumer, brokers: str, partitions: list[TopicPartition], key: WantedKey
) -> list[TopicPartition]:
    """The partition that the key has to be in; all of them where that is not sure."""
    if ".__" in partitions[0].topic:
        return partitions  # of ours: not every one is partitioned by the key
    starts, ends = await ends_of(consumer, partitions, brokers)
    for partition in partitions:
        span = starts[partition], ends[partition]
        sample = await last_of(consumer, brokers, partition, span, 1, lambda record: record.key is not None)
        if not sample:
            continue
        spelt = key.bytes_like(sample[0].key or b"")
        if spelt is None:
            return partitions
        number = partition_for(spelt, len(partitions))
        return [place for place in partitions if place.partition == number]
    return partitions
