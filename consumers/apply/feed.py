"""The consumer group's side: which partitions are ours, where each starts, and what Kafka gives.

The start is the target's checkpoint, never Kafka's (H14). A partition is placed before anything of it
is let through: aiokafka begins to fetch an assigned partition by itself, from Kafka's commit, and
that is dropped here. The record that the checkpoint names is read again and compared. A checkpoint that
does not fit is an error, unless the source was reset since: then the log's start is where it goes on.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka import errors as kafka
from aiokafka.structs import OffsetAndMetadata

from consumers.apply.checkpoint import (
    Checkpoint,
    Move,
    Place,
    checksum_of,
    cluster_replaced,
    retention_passed,
    topic_replaced,
)
from consumers.apply.resets import Copy, Resets
from streamer.binding import Binding, binding_of
from streamer.changes.topics import clean, message_topic
from streamer.config import Flow
from streamer.config.patterns import clean_pattern
from streamer.errors import FatalError, KafkaUnavailable
from streamer.kafka import Security, admin, client_options, connect, describe_cluster, kafka_errors, shut
from streamer.members import client_id, remove_dead

METADATA_AGE_MS = 1000  # a table's first event waits this long for its topic to be noticed
HEARTBEAT_MS = 1000  # a rebalance is noticed within it
SESSION_TIMEOUT_MS = 10_000  # a killed process's partitions wait so long, unless it is seen to be dead
POLL_LIMIT_MS = 600_000  # a stuck event loop loses its partitions; a long wait polls, paused (H30)
FETCH_WAIT_MS = 500
FETCH_BYTES = 8 * 2**20  # compressed, so that a fetch and two batches stay well below 200 MB
PARTITION_FETCH_BYTES = 2 * 2**20
COMMIT_DEADLINE_S = 2.0
END_WAIT_S = 5.0  # after an election the log's end may lag for a moment before it is below a checkpoint
END_POLL_S = 0.2

log = logging.getLogger(__name__)

BeginLate = Callable[[Checkpoint, int, int, int], Awaitable[bool]]
Record: TypeAlias = "ConsumerRecord[bytes, bytes]"


def topic_pattern(flows: Iterable[Flow]) -> str:
    """A regular expression for what `Flow.matches` matches."""
    found = []
    for flow in flows:
        *heads, last = clean_pattern(flow.source_pattern).split(".", 2)
        parts = [_expression(head, "[^.]") for head in heads] + [_expression(last, ".")]
        messages = re.escape(message_topic(flow.source))  # events about a source are no table's
        inner = rf"(?!{re.escape(clean(flow.source))}\.__(?:state|floors|hop[0-9]+)\Z)"  # as topics.is_inner
        found.append(rf"(?!{messages}\Z){inner}" + r"\.".join(parts))
    return f"(?:{'|'.join(found)})\\Z"


def _expression(pattern: str, one: str) -> str:
    return "".join(one + "*" if c == "*" else one if c == "?" else re.escape(c) for c in pattern)


@dataclass(slots=True)
class Standing:
    """A placed partition: per flow the offset up to which records are let through.

    `unmoved`: where the checkpoint is in the target, of a flow that starts elsewhere. `epochs`: of the last
    event that was let through, for a batch that has none.
    """

    next_offsets: dict[str, int]
    unverified: dict[str, Checkpoint] = field(default_factory=dict)
    unmoved: dict[str, int] = field(default_factory=dict)
    epochs: dict[str, int] = field(default_factory=dict)

    def move(self, move: Move) -> None:
        """The batch that moves the flow's checkpoint is on its way."""
        flow = move.place.flow
        self.next_offsets[flow] = move.next_offset
        self.unmoved.pop(flow, None)
        if move.last is not None:
            self.epochs[flow] = move.last.epoch


@dataclass(frozen=True, slots=True)
class Fetched:
    """`ends`: the position after the records, transaction markers included."""

    records: dict[TopicPartition, list[Record]]
    ends: dict[TopicPartition, int]
    received_us: int


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Called by aiokafka between two turns of the loop; it must only note."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._feed.reassigned(set())

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._feed.reassigned(set(assigned))
        self._feed.rebalances += 1


class Feed:
    """One membership of the group. Errors of Kafka are translated; then it is opened again."""

    def __init__(
        self,
        brokers: str,
        security: Security | None,
        group: str,
        flows: list[Flow],
        resets: Resets,
        late: BeginLate | None = None,
    ) -> None:
        """`late`: has a backfill bring what a log has lost, with an epoch, and its start and end; False: it
        cannot."""
        self._brokers = brokers
        self._security = security
        self.group = group
        self._flows = flows
        self._resets = resets
        self._late = late
        self._replaced: dict[Checkpoint, str] = {}  # found by `verify`, until they are placed again
        self._sources = {flow.name: flow.source for flow in flows}
        self._consumer: AIOKafkaConsumer | None = None
        self.cluster_id = ""
        self.standings: dict[TopicPartition, Standing] = {}
        self.unplaced: set[TopicPartition] = set()
        self.rebalances = 0
        self.placed_ends: dict[TopicPartition, int] = {}
        self._parked: set[TopicPartition] = set()

    @property
    def is_open(self) -> bool:
        return self._consumer is not None

    def reassigned(self, partitions: set[TopicPartition]) -> None:
        """Nothing is placed any more; `partitions` are to be."""
        self.standings.clear()
        self._parked.clear()
        self._replaced.clear()
        self.unplaced = partitions

    @property
    def consumer(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise KafkaUnavailable("not connected to Kafka", where=f"kafka {self._brokers}")
        return self._consumer

    def flows_of(self, topic: str) -> list[Flow]:
        return [flow for flow in self._flows if flow.matches(topic)]

    async def open(self) -> None:
        """Join the group. Raises KafkaUnavailable, ConfigError."""
        await self.close()
        async with admin(self._brokers, self._security) as client:
            with kafka_errors("asking for the cluster's id", brokers=self._brokers):
                self.cluster_id = str((await describe_cluster(client))["cluster_id"])
            with suppress(kafka.KafkaError):  # they time out by themselves, only later
                await remove_dead(client, self.group)
        consumer = AIOKafkaConsumer(
            **client_options(self._brokers, self._security),
            client_id=client_id("apply"),
            group_id=self.group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            metadata_max_age_ms=METADATA_AGE_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            max_poll_interval_ms=POLL_LIMIT_MS,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
        )
        consumer.subscribe(pattern=topic_pattern(self._flows), listener=_Listener(self))
        self._consumer = consumer
        await connect(consumer, self._brokers, self._security)

    async def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        self.reassigned(set())
        if consumer is not None:
            await shut(consumer.stop)

    async def binding(self) -> Binding:
        """Which target the group belongs to (H30)."""
        return await binding_of(self._brokers, self._security, self.group)

    # Placing

    async def place(
        self, checkpoints: dict[Place, Checkpoint], partitions: set[TopicPartition]
    ) -> list[tuple[str, FatalError]]:
        """Start the partitions at the checkpoints. Gives the flows that cannot, and why."""
        consumer, rebalances = self.consumer, self.rebalances
        with kafka_errors("reading offsets", brokers=self._brokers):
            starts = await consumer.beginning_offsets(list(partitions))
            ends = await self._ends(checkpoints, partitions)
        unfit = {
            checkpoint: error
            for place, checkpoint in checkpoints.items()
            if (error := self._unfit(checkpoint, starts[_partition(place)], ends[_partition(place)]))
            is not None
        }
        again = await self._starts_again(unfit)
        late = await self._begins_late([c for c in unfit if c not in again], starts, ends)
        self.placed_ends = ends
        refused: list[tuple[str, FatalError]] = []
        if rebalances != self.rebalances:
            return []  # placed again, with what is assigned now
        by_partition: dict[TopicPartition, list[Checkpoint]] = {partition: [] for partition in partitions}
        for checkpoint in checkpoints.values():
            place = checkpoint.place
            by_partition[TopicPartition(place.topic, place.partition)].append(checkpoint)
        for partition, stands in by_partition.items():
            standing = Standing({})
            first: list[int] = []
            for checkpoint in stands:
                flow, last = checkpoint.place.flow, checkpoint.last
                if checkpoint in unfit and checkpoint not in again and checkpoint not in late:
                    refused.append((flow, unfit[checkpoint]))
                    continue
                if last is not None:
                    standing.epochs[flow] = last.epoch
                if checkpoint in again:
                    standing.next_offsets[flow] = again[checkpoint]
                    standing.unmoved[flow] = checkpoint.next_offset
                    first.append(again[checkpoint])
                    continue
                standing.next_offsets[flow] = checkpoint.next_offset
                first.append(max(checkpoint.next_offset, starts[partition]))
                if last is not None and last.offset >= starts[partition]:
                    standing.unverified[flow] = checkpoint
                    first.append(last.offset)
            if partition not in consumer.assignment():
                continue
            if not first:
                self.park({partition})
                continue
            consumer.seek(partition, min(first))
            self.standings[partition] = standing
            self.unplaced.discard(partition)
        return refused

    async def _ends(
        self, checkpoints: dict[Place, Checkpoint], partitions: set[TopicPartition]
    ) -> dict[TopicPartition, int]:
        """Ends of the logs; one that is below a checkpoint gets a moment to rise."""
        deadline = time.monotonic() + END_WAIT_S
        while True:
            ends: dict[TopicPartition, int] = await self.consumer.end_offsets(list(partitions))
            short = any(
                ends[TopicPartition(c.place.topic, c.place.partition)] < c.next_offset
                for c in checkpoints.values()
            )
            if not short or time.monotonic() > deadline:
                return ends
            await asyncio.sleep(END_POLL_S)

    def _unfit(self, checkpoint: Checkpoint, start: int, end: int) -> FatalError | None:
        steps = self._resets.steps(self._sources[checkpoint.place.flow])
        cluster = checkpoint.cluster_id
        if cluster is not None and checkpoint.last is not None and cluster != self.cluster_id:
            return cluster_replaced(checkpoint, self.cluster_id, steps)
        if start > checkpoint.next_offset:
            return retention_passed(checkpoint, start, steps)
        if end < checkpoint.next_offset:
            return topic_replaced(checkpoint, steps, f"its log ends at {end}")
        if checkpoint in self._replaced:
            return topic_replaced(checkpoint, steps, self._replaced[checkpoint])
        return None

    async def _starts_again(self, unfit: dict[Checkpoint, FatalError]) -> dict[Checkpoint, int]:
        """Offsets of those whose source was reset since; of the others the error says what to do."""
        found: dict[Checkpoint, int] = {}
        copies: dict[str, Copy | None] = {}
        for checkpoint, error in unfit.items():
            source = self._sources[checkpoint.place.flow]
            if source not in copies:
                copies[source] = await self._resets.last_copy(source)
            copy = copies[source]
            if copy is None:
                continue
            start = await self._resets.start(checkpoint, source, copy)
            if start.offset is None:
                error.fix = start.fix or error.fix
                continue
            found[checkpoint] = start.offset
            log.warning(
                "flow %s starts again from the start of the log, offset %d, since source %s was reset"
                " (epoch %d): %s, %s",
                checkpoint.place.flow,
                start.offset,
                source,
                copy.epoch,
                error.where,
                error.what,
            )
        return found

    async def _begins_late(
        self,
        unfit: list[Checkpoint],
        starts: dict[TopicPartition, int],
        ends: dict[TopicPartition, int],
    ) -> set[Checkpoint]:
        """Those that have applied nothing yet, and whose log has lost its beginning: a backfill brings it."""
        found: set[Checkpoint] = set()
        for checkpoint in unfit:
            partition = _partition(checkpoint.place)
            start = starts[partition]
            if self._late is None or checkpoint.last is not None or start <= checkpoint.next_offset:
                continue
            copy = await self._resets.last_copy(self._sources[checkpoint.place.flow])
            if copy is not None and await self._late(checkpoint, copy.epoch, start, ends[partition]):
                found.add(checkpoint)
        return found

    async def copied_since(self, flow: str, epoch: int) -> Copy | None:
        """The last copy of everything of the flow's source, when it is newer than the epoch."""
        copy = await self._resets.last_copy(self._sources[flow])
        return copy if copy is not None and copy.epoch > epoch else None

    # Reading

    async def poll(self, rows: int, timeout_ms: int) -> Fetched:
        """What is there, of placed partitions only. Raises KafkaUnavailable, FatalError."""
        consumer = self.consumer
        with kafka_errors("reading changes", brokers=self._brokers):
            try:
                found = await consumer.getmany(timeout_ms=timeout_ms, max_records=rows)
            except kafka.NoOffsetForPartitionError:
                return Fetched({}, {}, _now_us())  # fetched before it was placed
            except kafka.OffsetOutOfRangeError as error:
                self.reassigned(set(consumer.assignment()))  # the placing says what has happened
                if not self.unplaced:
                    raise KafkaUnavailable(str(error)) from error
                return Fetched({}, {}, _now_us())
            received_us = _now_us()
            records = {p: batch for p, batch in found.items() if p in self.standings}
            ends = {}
            for partition in list(self.standings):
                try:
                    ends[partition] = await consumer.position(partition)
                except kafka.IllegalStateError:  # revoked meanwhile: the target would refuse it anyway
                    records.pop(partition, None)
                    self.standings.pop(partition, None)
        kept = {p: batch for p, batch in records.items() if p in self.standings}
        return Fetched(kept, {p: end for p, end in ends.items() if p in self.standings}, received_us)

    def verify(self, partition: TopicPartition, records: list[Record]) -> bool:
        """Compare the records that checkpoints name. False: one is another, and nothing of the partition may
        be let through: it is placed again, and that is judged there."""
        standing = self.standings[partition]
        replaced: dict[Checkpoint, str] = {}
        for flow, checkpoint in list(standing.unverified.items()):
            last = checkpoint.last
            assert last is not None
            reached = next((record for record in records if record.offset >= last.offset), None)
            if reached is None:
                continue
            del standing.unverified[flow]
            if reached.offset != last.offset:
                why = f"the record at offset {last.offset}, which was applied, is gone"
            elif checksum_of(reached.key, reached.value) != last.checksum:
                why = f"the record at offset {last.offset} is another one than was applied"
            else:
                continue
            replaced[checkpoint] = why
        if replaced:
            self._replaced |= replaced
            del self.standings[partition]
            self.unplaced.add(partition)
        return not replaced

    async def idle(self) -> None:
        """Keep the membership while nothing is wanted: poll, paused."""
        consumer = self.consumer
        assigned = consumer.assignment()
        consumer.pause(*assigned)
        try:
            # An offset that is not there or has passed is the placing's and poll's to judge.
            with (
                kafka_errors("keeping the membership", brokers=self._brokers),
                suppress(kafka.NoOffsetForPartitionError, kafka.OffsetOutOfRangeError),
            ):
                await consumer.getmany(timeout_ms=0)
        finally:
            consumer.resume(*((assigned & consumer.assignment()) - self._parked))

    def release(self, flows: set[str], topic: str = "", number: int | None = None) -> None:
        """These flows read no further, of `topic` (one partition, or all) or of any; a partition that no flow
        wants is paused."""
        for partition, standing in list(self.standings.items()):
            if topic in ("", partition.topic) and number in (None, partition.partition):
                for flow in flows:
                    standing.next_offsets.pop(flow, None)
                    standing.unverified.pop(flow, None)
                if not standing.next_offsets:
                    self.park({partition})

    def place_again(self, topic: str) -> None:
        """Every flow of the topic goes on from its checkpoint, in the partitions that are ours."""
        again = {p for p in self.consumer.assignment() if p.topic == topic}
        for partition in again:
            self.standings.pop(partition, None)
        self._parked -= again
        self.unplaced |= again
        self.consumer.resume(*again)

    def owned(self) -> set[tuple[str, int]]:
        """(topic, partition) of what is assigned to this process, and placed."""
        if self._consumer is None:
            return set()
        return {(p.topic, p.partition) for p in self._consumer.assignment() - self.unplaced}

    def park(self, partitions: set[TopicPartition]) -> None:
        """Ours, but wanted by no flow that still runs."""
        self.unplaced -= partitions
        self._parked |= partitions
        for partition in partitions & self.consumer.assignment():
            self.standings.pop(partition, None)
            self.consumer.pause(partition)

    async def ends(self, timeout_s: float) -> dict[TopicPartition, int]:
        """Last stable offset of every partition that is ours, held ones included."""
        partitions = [*self.standings, *(self._parked & self.consumer.assignment())]
        if not partitions:
            await self._alive(timeout_s)
            return {}
        with kafka_errors("reading offsets", brokers=self._brokers):
            async with asyncio.timeout(timeout_s):
                found: dict[TopicPartition, int] = await self.consumer.end_offsets(partitions)
                return found

    async def topic_ends(self, flow: str, timeout_s: float) -> dict[TopicPartition, int]:
        """Last stable offset of every partition of the flow's topics, also of those that are another's."""
        with kafka_errors("reading offsets", brokers=self._brokers):
            async with asyncio.timeout(timeout_s):
                of_flow = [known for known in self._flows if known.name == flow]
                topics = [t for t in await self.consumer.topics() if any(f.matches(t) for f in of_flow)]
                partitions = [
                    TopicPartition(topic, p)
                    for topic in topics
                    for p in self.consumer.partitions_for_topic(topic) or ()
                ]
                found: dict[TopicPartition, int] = await self.consumer.end_offsets(partitions)
                return found

    async def _alive(self, timeout_s: float) -> None:
        with kafka_errors("asking for topics", brokers=self._brokers):
            async with asyncio.timeout(timeout_s):
                await self.consumer.topics()

    async def commit(self, commits: dict[TopicPartition, OffsetAndMetadata]) -> None:
        """For lag tools, and to bind the group to its target. A failure is of no consequence."""
        assigned = self.consumer.assignment()
        wanted = {partition: at for partition, at in commits.items() if partition in assigned}
        if not wanted:
            return
        with kafka_errors("committing offsets", brokers=self._brokers):
            async with asyncio.timeout(COMMIT_DEADLINE_S):  # aiokafka's own retries have no end
                await self.consumer.commit(wanted)


def _partition(place: Place) -> TopicPartition:
    return TopicPartition(place.topic, place.partition)


def _now_us() -> int:
    return time.time_ns() // 1000
