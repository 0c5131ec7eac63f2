"""Whether a source was published anew since a checkpoint was written, and where that begins (H14).

A checkpoint that fits the log no more is worth nothing once the source was reset: the log's start then
leads to a whole copy of it, whose versions are above everything that the target has, and whose floors end
what is gone. This only reads: the source's position, and the first event of a partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass

from aiokafka import TopicPartition

from consumers.apply.checkpoint import Checkpoint
from consumers.processors import changelog
from streamer.changes.envelope import decode_value
from streamer.changes.position import Stage, TopicState
from streamer.changes.topics import positions_topic
from streamer.errors import DecodeError
from streamer.kafka import Security, admin, offset_ranges, read_batches
from streamer.publisher.state import find_number, read_positions
from streamer.publisher.topics import describe
from streamer.resetting import processor_reset_steps, reset_steps


@dataclass(frozen=True, slots=True)
class Copy:
    """The source's last copy of everything. `begun`: events of it may be in Kafka. `floors`: it ends with
    floors, so rows that are gone from the source go with it."""

    epoch: int
    begun: bool
    floors: bool
    topics: dict[str, TopicState]


@dataclass(frozen=True, slots=True)
class Start:
    """`offset` None: there is none, and `fix` says what makes one; empty when the source was not reset."""

    offset: int | None = None
    fix: str = ""


class Resets:
    def __init__(
        self,
        brokers: str,
        security: Security | None,
        name: str,
        processors: Mapping[str, str] | None = None,
    ) -> None:
        """`processors`: by their `out`, which stands for a source."""
        self._processors = dict(processors or {})
        self._brokers = brokers
        self._security = security
        self._topic = positions_topic(name)

    async def last_copy(self, source: str) -> Copy | None:
        """None: nothing is known of the source. Raises KafkaUnavailable, ConfigError, FatalError."""
        if source in self._processors:
            return await self._last_derivation(source)
        async with admin(self._brokers, self._security) as client:
            if self._topic not in await describe(client, [self._topic]):
                return None
        number = await find_number(self._brokers, self._security, source, self._topic)
        place = TopicPartition(self._topic, number)
        found = await read_positions(self._brokers, self._security, source, place)
        position = found.position
        if position is None:
            return None
        # Gaps in what is known of a source without a log raise the epoch, too, and copy nothing.
        epoch = position.since_epoch or position.epoch
        return Copy(epoch, position.stage is not Stage.INTENT, position.since_epoch > 0, found.topics)

    async def _last_derivation(self, out: str) -> Copy | None:
        """Of a processor: after a reset everything is derived again, and ends with a floor."""
        state = f"{out}.__state"
        async with admin(self._brokers, self._security) as client:
            count = (await describe(client, [state])).get(state, 0)
        if not count:
            return None
        places = [TopicPartition(state, number) for number in range(count)]
        ranges = await offset_ranges(self._brokers, self._security, places)
        epoch = changelog.Epoch().epoch
        batches = read_batches(self._brokers, self._security, ranges, committed=True)
        async with aclosing(batches):
            async for records in batches:
                for record in records:
                    if record.key == changelog.EPOCH_KEY and record.value is not None:
                        where = f"{state}[{record.partition}]@{record.offset}"
                        epoch = max(epoch, changelog.Epoch.load(record.value, where).epoch)
        return Copy(epoch, True, epoch > changelog.Epoch().epoch, {})

    def steps(self, source: str, *, above: int | str = "") -> str:
        """Of the reset that publishes everything again."""
        processor = self._processors.get(source)
        if processor is not None:
            return processor_reset_steps(processor, above=above)
        return reset_steps(source, above=above)

    async def start(self, checkpoint: Checkpoint, source: str, copy: Copy) -> Start:
        """Where a partition leads to all of the copy, when the checkpoint is older than it."""
        last = checkpoint.last
        applied = last.epoch if last is not None else 0  # 0: no event was applied yet
        if copy.epoch < applied:
            return Start(
                fix=f"the epoch of {source} is {copy.epoch}, the target has rows of epoch {applied}:"
                f" {self.steps(source, above=applied)}"
            )
        if copy.epoch == applied or not (applied or copy.floors):
            return Start()
        if not copy.floors:
            return Start(
                fix=f"{source} has begun as if for the first time, so rows that were deleted in it meanwhile"
                f" would stay: {self.steps(source)}"
            )
        place = TopicPartition(checkpoint.place.topic, checkpoint.place.partition)
        log_start, end = (await offset_ranges(self._brokers, self._security, [place]))[place]
        if not copy.begun:
            return Start(log_start)
        state = copy.topics.get(place.topic)
        written = -1 if state is None else state.last_offsets.get(place.partition, -1)
        if written < end and (log_start == 0 or await self._is_older(place, log_start, end, copy.epoch)):
            return Start(log_start)
        return Start(
            fix=f"the last copy of {source} is epoch {copy.epoch}, and Kafka may have removed a part of it,"
            f" too: once more {self.steps(source)}"
        )

    async def _is_older(self, place: TopicPartition, start: int, end: int, epoch: int) -> bool:
        """An event of before the copy is still there: then retention has taken nothing of the copy."""
        ranges = {place: (start, end)}
        batches = read_batches(self._brokers, self._security, ranges, committed=True)
        async with aclosing(batches):
            async for records in batches:
                for record in records:
                    if record.value is None:
                        continue
                    try:
                        change = decode_value(record.value, where="", offset=record.offset)
                    except DecodeError:
                        continue
                    return change.epoch < epoch
        return False
