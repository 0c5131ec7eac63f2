"""Which of several captures of a source captures: the holder of its shadow topic's one partition.

Owns the membership of the consumer group `<name>.capture.<source>`, and nothing else: what keeps two
from publishing at once are the transactional ids (H30), which the next holder initialises before it reads
the position. The group only says whose turn it is, so that a standby fences nobody who is well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka import errors as kafka
from aiokafka.cluster import ClusterMetadata
from aiokafka.coordinator.assignors.abstract import AbstractPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment, ConsumerProtocolMemberMetadata

from streamer.errors import FencedError
from streamer.kafka import Security, admin, client_options, connect, kafka_errors, shut
from streamer.members import client_id, remove_dead
from streamer.publisher import SHADOW, ensure_topics
from streamer.stopping import stopped_within

HEARTBEAT_MS = 1000  # a rebalance is noticed within it
SESSION_TIMEOUT_MS = 10_000  # a killed holder's turn ends so late, unless it is seen to be dead
POLL_LIMIT_MS = 600_000  # the event loop stood still for so long: somebody else may go on
POLL_S = 0.25
LOOK_FOR_DEAD_S = 2.0  # how soon a standby takes over from a killed process of its own host


class _Holder(AbstractPartitionAssignor):  # type: ignore[misc]
    """Leaves the partition with its holder: of several that say so, the one that took it last."""

    name = "tailrace-holder"
    version = 0

    def __init__(self) -> None:
        self.since_us = 0  # when this member got the partition; 0: it has not

    def assign(
        self, cluster: ClusterMetadata, members: Mapping[str, ConsumerProtocolMemberMetadata]
    ) -> dict[str, ConsumerProtocolMemberAssignment]:
        holder = max(members, key=lambda member: (int(members[member].user_data or b"0"), member))
        topics = [(topic, [0]) for topic in members[holder].subscription]
        return {
            member: ConsumerProtocolMemberAssignment(self.version, topics if member == holder else [], b"")
            for member in members
        }

    def metadata(self, topics: Iterable[str]) -> ConsumerProtocolMemberMetadata:
        return ConsumerProtocolMemberMetadata(self.version, list(topics), b"%d" % self.since_us)

    def on_assignment(self, assignment: ConsumerProtocolMemberAssignment) -> None:
        return


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Called by aiokafka between two turns of the loop; it must only note."""

    def __init__(self, election: Election) -> None:
        self._election = election

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Every rebalance begins so; the assignment says how it ended."""

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._election.assigned(set(assigned))


class Election:
    """One membership: `async with`, `wait` for the turn, then `watch` beside the work."""

    def __init__(
        self,
        brokers: str,
        security: Security | None,
        *,
        group: str,
        topic: str,
        replication_factor: int,
        now_us: Callable[[], int],
    ) -> None:
        self._brokers = brokers
        self._security = security
        self._group = group
        self._topic = topic
        self._replication_factor = replication_factor
        self._now_us = now_us
        self._assignor = _Holder()
        self._consumer: AIOKafkaConsumer | None = None
        self._holds = False
        self._decided = False  # the group has said whose turn it is

    async def __aenter__(self) -> Self:
        async with admin(self._brokers, self._security) as client:
            await ensure_topics(
                client, {self._topic: (1, SHADOW)}, replication_factor=self._replication_factor
            )
            with suppress(kafka.KafkaError):  # they time out by themselves, only later
                await remove_dead(client, self._group)
        self._consumer = AIOKafkaConsumer(
            **client_options(self._brokers, self._security),
            client_id=client_id("capture"),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="latest",
            heartbeat_interval_ms=HEARTBEAT_MS,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            max_poll_interval_ms=POLL_LIMIT_MS,
            partition_assignment_strategy=(self._assignor,),
        )
        self._consumer.subscribe([self._topic], listener=_Listener(self))
        try:
            await connect(self._consumer, self._brokers, self._security)
        except BaseException:
            await shut(self._consumer.stop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._consumer is not None:
            await shut(self._consumer.stop)

    def assigned(self, partitions: set[TopicPartition]) -> None:
        if self._consumer is not None:
            self._consumer.pause(*partitions)  # its records are read elsewhere
        self._holds = bool(partitions)
        self._decided = True
        if self._holds and not self._assignor.since_us:
            self._assignor.since_us = self._now_us()

    async def wait(self, stop: asyncio.Event, standing_by: Callable[[], None]) -> bool:
        """Until it is our turn; False when stopped meanwhile. Raises KafkaUnavailable."""
        looked_s = waited_s = 0.0
        while not self._holds:
            await self._poll()
            if self._holds:
                break
            if self._decided:
                standing_by()
                if waited_s - looked_s >= LOOK_FOR_DEAD_S:
                    looked_s = waited_s
                    await self._remove_dead()
            if await stopped_within(stop, POLL_S):
                return False
            waited_s += POLL_S
        return True

    async def watch(self) -> None:
        """Keep the membership. Raises FencedError when another has got the turn."""
        while self._holds:
            await self._poll()
            await asyncio.sleep(POLL_S)
        raise FencedError(
            "another capture of the source has taken over, because this one stood still for too long",
            where=f"group {self._group}",
            fix="nothing, if that one is meant to run; started again, this one stands by",
        )

    async def _remove_dead(self) -> None:
        async with admin(self._brokers, self._security) as client:
            with suppress(kafka.KafkaError):
                await remove_dead(client, self._group)

    async def _poll(self) -> None:
        consumer: Any = self._consumer
        with kafka_errors("keeping the membership", brokers=self._brokers):
            await consumer.getmany(timeout_ms=0)
