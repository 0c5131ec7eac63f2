"""The consumer group of a processor: partition p of everything it reads goes to one member.

aiokafka's own assignors deal out each topic by itself; ours deals out numbers. What is assigned is paused
until its task is open, and what is revoked is given up before the group goes on: the listener waits for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka import errors as kafka
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata
from aiokafka.structs import OffsetAndMetadata

from streamer.errors import FatalError
from streamer.kafka import Security, admin, client_options, connect, kafka_errors, shut
from streamer.members import client_id, remove_dead
from streamer.stopping import end_tasks

HEARTBEAT_MS = 1000  # a rebalance is noticed within it
SESSION_TIMEOUT_MS = 10_000  # a killed worker's tasks wait so long, unless it is seen to be dead
POLL_LIMIT_MS = 3_600_000  # reading a large state back takes minutes; standing still is the watch's to see
REVOKE_S = (
    12.0  # for the units in hand and their commits; then the group goes on, and a late commit is fenced
)
FETCH_WAIT_MS = 100  # while it waits for topics without news, aiokafka fetches none of those it has emptied
FETCH_BYTES = 8 * 2**20
PARTITION_FETCH_BYTES = 2 * 2**20
COMMIT_DEADLINE_S = 2.0
SETTLE_S = 0.2  # beyond the wait that was asked for; then the worker looks around and asks again
OFFSETS_DEADLINE_S = 5.0

Batches = dict[int, list[tuple[str, list[ConsumerRecord[bytes, bytes]], int]]]


class Numbers(AbstractPartitionAssignor):  # type: ignore[misc]
    """Partition number i of every topic to member i modulo their count, by id: the same for all topics."""

    name = "tailrace-numbers"
    version = 0

    @classmethod
    def assign(
        cls, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        order = sorted(members)
        assigned: dict[str, list[tuple[str, list[int]]]] = {member: [] for member in order}
        for index, member in enumerate(order):
            for topic in sorted(members[member].subscription):
                mine = [
                    p for p in sorted(cluster.partitions_for_topic(topic) or ()) if p % len(order) == index
                ]
                if mine:
                    assigned[member].append((topic, mine))
        return {
            member: ConsumerProtocolMemberAssignment(cls.version, topics, b"")
            for member, topics in assigned.items()
        }

    @classmethod
    def metadata(cls, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(cls.version, list(topics), b"")

    @classmethod
    def on_assignment(cls, assignment: ConsumerProtocolMemberAssignment) -> None:
        pass


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        await self._membership.revoked()

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        self._membership.assigned(assigned)


class Membership:
    """One worker's. `fresh`: numbers to open tasks for; None: nothing has changed."""

    def __init__(self, brokers: str, security: Security | None, group: str, topics: Collection[str]) -> None:
        self._brokers = brokers
        self._security = security
        self._group = group
        self._topics = tuple(topics)
        self._consumer: AIOKafkaConsumer | None = None
        self._released = asyncio.Event()
        self._served: set[TopicPartition] = set()  # since every place had its turn
        self._told: dict[TopicPartition, int] = {}  # the group's offsets, of what is ours or was
        self.turned = asyncio.Event()  # the group goes on, or a stop was asked for: no waiting for records
        self.fresh: frozenset[int] | None = None
        self.is_revoking = False
        self._revoked_s = 0.0
        self.holds = False  # tasks are open, and are to be given up before the group goes on
        self.rebalances = 0
        self.is_waiting = False  # the group has not said what is ours
        self.on_revoked: Any = lambda: None

    async def join(self) -> None:
        """Raises KafkaUnavailable, ConfigError."""
        async with admin(self._brokers, self._security) as client:
            with suppress(kafka.KafkaError):  # they time out by themselves, only later
                await remove_dead(client, self._group)
        consumer = AIOKafkaConsumer(
            **client_options(self._brokers, self._security),
            client_id=client_id("process"),
            group_id=self._group,
            partition_assignment_strategy=(Numbers,),
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            heartbeat_interval_ms=HEARTBEAT_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            max_poll_interval_ms=POLL_LIMIT_MS,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
        )
        self._consumer = consumer
        await connect(consumer, self._brokers, self._security)
        self.is_waiting = True
        # After the start, which would wait for the other members to give up what they have.
        consumer.subscribe(topics=list(self._topics), listener=_Listener(self))

    async def leave(self) -> None:
        self.released()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await shut(consumer.stop)

    @property
    def consumer(self) -> AIOKafkaConsumer:
        assert self._consumer is not None, "not joined"
        return self._consumer

    # Called by aiokafka

    async def revoked(self) -> None:
        """Until the worker has given its tasks up, or for REVOKE_S."""
        self.fresh = None
        self.is_waiting = True
        if not self.holds:
            return
        self._released.clear()
        self.is_revoking, self._revoked_s = True, time.monotonic()
        self.turned.set()
        self.on_revoked()
        with suppress(TimeoutError):
            async with asyncio.timeout(REVOKE_S):
                await self._released.wait()

    def assigned(self, partitions: Collection[TopicPartition]) -> None:
        self.consumer.pause(*partitions)
        self.fresh = frozenset(p.partition for p in partitions)
        self.rebalances += 1
        self.is_waiting = False
        self.turned.set()

    # Called by the worker

    def released(self) -> None:
        """The tasks are given up."""
        self.is_revoking = self.holds = False
        self._released.set()

    async def ranges(self, number: int) -> dict[str, tuple[int, int]]:
        """(log start, last stable offset) of what the task reads."""
        places = [TopicPartition(topic, number) for topic in self._topics]
        with kafka_errors("reading offsets", brokers=self._brokers):
            async with asyncio.timeout(OFFSETS_DEADLINE_S):
                starts = await self.consumer.beginning_offsets(places)
                ends = await self.consumer.end_offsets(places)
        return {p.topic: (starts[p], ends[p]) for p in places}

    async def ends(self, numbers: Collection[int]) -> dict[TopicPartition, int]:
        places = [TopicPartition(topic, number) for topic in self._topics for number in numbers]
        if not places:
            return {}
        with kafka_errors("reading offsets", brokers=self._brokers):
            async with asyncio.timeout(OFFSETS_DEADLINE_S):
                found: dict[TopicPartition, int] = await self.consumer.end_offsets(places)
        return found

    def stable_ends(self) -> dict[TopicPartition, tuple[int, int]]:
        """(last stable offset, end) of what is read, as the last fetch has found them."""
        consumer, found = self._consumer, {}
        if consumer is None:
            return {}  # it has left, or not joined yet
        for place in consumer.assignment():
            stable, end = consumer.last_stable_offset(place), consumer.highwater(place)
            if stable is not None and end is not None and stable >= 0:
                found[place] = stable, end
        return found

    def begin(self, number: int, offsets: Mapping[str, int]) -> None:
        """Let the task's records through, from its offsets on."""
        consumer = self.consumer
        places = [TopicPartition(topic, number) for topic in self._topics]
        if not set(places) <= consumer.assignment():
            missing = ", ".join(str(p.topic) for p in places if p not in consumer.assignment())
            raise FatalError(
                f"task {number} was assigned without {missing}",
                where=f"group {self._group}",
                fix="stop workers of other versions: all of a group must read the same topics",
            )
        for place in places:
            self._told[place] = offsets[place.topic]
            consumer.seek(place, offsets[place.topic])
        consumer.resume(*places)

    async def poll(self, numbers: Collection[int], records: int, timeout_ms: int) -> Batches:
        """What is there of these tasks. Raises KafkaUnavailable, FatalError."""
        consumer = self.consumer
        with kafka_errors("reading changes", brokers=self._brokers):
            try:
                found = await self._getmany(records, timeout_ms)
            except kafka.NoOffsetForPartitionError:
                return {}  # fetched before it was placed
            except kafka.OffsetOutOfRangeError as error:
                places = ", ".join(f"{p.topic}[{p.partition}]@{at}" for p, at in error.args[0].items())
                raise FatalError(
                    f"Kafka's retention has passed what is not processed yet: {places}",
                    where=f"group {self._group}",
                    fix="`tailrace reset` the processor, and `tailrace backfill` what its inputs have lost",
                ) from error
            batches: Batches = {}
            for topic in self._topics:
                for number in numbers:
                    place = TopicPartition(topic, number)
                    if self.is_revoking or place not in consumer.assignment() or place in consumer.paused():
                        continue
                    with suppress(kafka.IllegalStateError):
                        end = await consumer.position(place)
                        batches.setdefault(number, []).append((topic, found.get(place, []), end))
        return batches

    async def _getmany(self, records: int, timeout_ms: int) -> Mapping[TopicPartition, Any]:
        """aiokafka's waits, without a limit, while the group settles who has what."""
        self.turned.clear()
        if self.is_revoking or self.fresh is not None:
            return {}
        fetch = asyncio.ensure_future(self._in_turn(records, timeout_ms))
        turn = asyncio.ensure_future(self.turned.wait())
        try:
            limit_s = timeout_ms / 1000 + SETTLE_S
            await asyncio.wait({fetch, turn}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if fetch.done():
                found: Mapping[TopicPartition, Any] = fetch.result()
                return found
            return {}
        finally:
            await end_tasks(fetch, turn)

    async def _in_turn(self, records: int, timeout_ms: int) -> Mapping[TopicPartition, Any]:
        """aiokafka empties what it has of one place before it looks at another, and that may be a minute's
        work: who was not served yet comes first."""
        consumer, found = self.consumer, dict[TopicPartition, Any]()
        if self._served and (others := consumer.assignment() - self._served):
            found = await consumer.getmany(*others, timeout_ms=0, max_records=records)
        if not found:
            self._served.clear()
            found = await consumer.getmany(timeout_ms=timeout_ms, max_records=records)
        self._served.update(found)
        return found

    async def has(self, number: int) -> bool:
        """Whether the task is this worker's still, by the group's word. Raises KafkaUnavailable."""
        if self.is_revoking:
            return time.monotonic() - self._revoked_s < REVOKE_S
        place = TopicPartition(self._topics[0], number)
        if self.fresh is not None or place not in self.consumer.assignment():
            return False
        with kafka_errors("asking the group for the task", brokers=self._brokers):
            try:
                async with asyncio.timeout(COMMIT_DEADLINE_S):
                    await self.consumer.commit({place: OffsetAndMetadata(self._told[place], "")})
            except kafka.CommitFailedError:
                return False
        return True

    async def follow(self, offsets: Mapping[TopicPartition, int]) -> bool:
        """The group's offsets, for lag tools and for who waits until something is out. False: try again, and
        nothing else: the changelog has them."""
        assigned = self.consumer.assignment()
        wanted: dict[TopicPartition, Any] = {
            place: OffsetAndMetadata(offset, "") for place, offset in offsets.items() if place in assigned
        }
        if wanted:
            try:
                async with asyncio.timeout(COMMIT_DEADLINE_S):
                    await self.consumer.commit(wanted)
            except (kafka.KafkaError, OSError, TimeoutError):
                return False
            self._told.update({place: told.offset for place, told in wanted.items()})
        return len(wanted) == len(offsets)
