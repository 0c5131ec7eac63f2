"""Opening a task: whoever had it is fenced, its state brought up, and its place in every topic judged.

In this order: the fence, what Kafka has left open in the changelog, the store, what it has left open in the
outputs, the offsets. Owns the state folders. What is opened is the caller's to close.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from aiokafka import TopicPartition

from consumers.processors import changelog, rocks
from consumers.processors.agents import AgentHop
from consumers.processors.ground import Ground, make_topics
from consumers.processors.memory import MemoryStore
from consumers.processors.outbox import Outbox
from consumers.processors.parked import Refusals
from consumers.processors.plan import Plan
from consumers.processors.schemas import InputSchemas
from consumers.processors.shapes import Shapes
from consumers.processors.state import Overlay, Store
from consumers.processors.task import Task
from consumers.processors.transaction import Guarantee, Transactions
from streamer.changes.topics import schemas_topic
from streamer.config import Config
from streamer.errors import FatalError, KafkaUnavailable
from streamer.kafka import read_batches
from streamer.publisher.topics import data_config

StateKind: TypeAlias = Literal["rocksdb", "memory"]
Ranges: TypeAlias = Mapping[str, tuple[int, int]]  # by topic: log start, last stable offset

LOCK_WAIT_S = 10.0  # a state folder whose last owner, on this machine, is about to close it
LOCK_POLL_S = 0.1
END_WAIT_S = 5.0  # after an election a log's end may lag for a moment
END_POLL_S = 0.2
OFFSETS_TRIES = 4  # each with its own deadline: Kafka is busy after an election, or where much begins at once
STATE_FOLDER = Path(".tailrace") / "processors"

log = logging.getLogger(__name__)


class Opening:
    """Of one worker's tasks. `config` names the brokers; `ranges`: of what a task reads; `has`: whether it is
    this worker's still."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        ground: Ground,
        shapes: Shapes,
        schemas: InputSchemas,
        *,
        state: StateKind,
        guarantee: Guarantee,
        refusals: Refusals,
        ranges: Callable[[int], Awaitable[Ranges]],
        has: Callable[[int], Awaitable[bool]],
        waits: Callable[[str], None],
    ) -> None:
        """`waits`: is told for what."""
        self._config = config
        self._brokers = config.kafka.brokers
        self._security = config.kafka.security
        self._plan = plan
        self._names = plan.names
        self._ground = ground
        self._shapes = shapes
        self._schemas = schemas
        self._state = state
        self._guarantee = guarantee
        self._refusals = refusals
        self._ranges_of = ranges
        self._has = has
        self._waits = waits
        self._app: Any = None

    async def open(self, number: int) -> Task:
        """The task, to be worked with and closed. Raises KafkaUnavailable, ConfigError, FatalError."""
        names, plan = self._names, self._plan
        transactions = Transactions(
            self._brokers, self._security, names.transactions(number), self._guarantee,
            TopicPartition(names.state, number), has=partial(self._has, number),
        )  # fmt: skip
        store: Store | None = None
        try:
            await transactions.start()
            await transactions.end_changelog()
            store = await self._store(number)
            count = await changelog.recover(self._brokers, self._security, names.state, number, store)
            log.debug("task %d of %s: %d records of state read", number, names.processor, count)
            wrote = changelog.wrote_of(store.scan(changelog.WROTE, reverse=False))
            await transactions.end_outputs({*self._outputs(), *wrote}, wrote)
            outbox = Outbox(
                names,
                self._shapes,
                self._config.kafka.topics,
                partitions=dict(self._ground.counts),
                known_schemas=frozenset(record.id for record in self._schemas.own),
                transactional=self._guarantee == "exactly_once",
            )
            task = Task(
                plan, number, Overlay(store), outbox, transactions, refusals=self._refusals,
                make_topics=self._make_topics, known=self._schemas.ids, learn=self._learn,
            )  # fmt: skip
            ranges = await self._settled(task)
            for topic in plan.inputs:
                task.forms.begin(topic, ranges[topic][1], fresh=topic not in task.offsets)
            self._place(task, ranges)
            await self._recognise(task, ranges)
            hop = plan.hops[0]
            if isinstance(hop, AgentHop):
                task.actor = self._actor(hop, task)
        except BaseException:
            await transactions.end(abort=False)
            if store is not None:
                store.close()
            raise
        return task

    def _outputs(self) -> list[TopicPartition]:
        """Every partition that a task may have written to, its changelog's apart."""
        own = self._plan.names.state
        topics = {**self._ground.counts, schemas_topic(self._names.config): 1}
        return [TopicPartition(topic, p) for topic, n in topics.items() if topic != own for p in range(n)]

    def _actor(self, hop: AgentHop, task: Task) -> Any:
        from consumers.processors.app import Actor, make_app  # noqa: PLC0415  Faust, where it is needed

        if self._app is None:
            self._app = make_app(self._names.group)
        return Actor(self._app, hop.agent, task.unit, name=f"{hop.agent.name}[{task.number}]")

    async def _store(self, number: int) -> Store:
        if self._state == "memory":
            return MemoryStore()
        folder = self._config.base / STATE_FOLDER / self._names.processor / str(number)
        spare = folder.with_name(f"{number}.spare")
        opened = partial(rocks.open_store, cluster_id=self._ground.cluster_id, topic=self._names.state)
        deadline_s = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                store = opened(folder)
            except rocks.Locked as error:
                if time.monotonic() > deadline_s:
                    log.warning(
                        "%s, and does nothing with it (it is fenced): another copy is made", error.what
                    )
                    return opened(spare)
                await asyncio.sleep(LOCK_POLL_S)
            else:
                rocks.remove_unused(spare)
                return store

    async def _learn(self, schema_id: str, where: str, columns: Collection[str]) -> None:
        """What an input's event, or a derived column, shows to be unknown."""
        await self._schemas.read(schema_id, where)
        self._shapes.asked(columns)

    async def _make_topics(self, topics: Mapping[str, int]) -> None:
        data = data_config(self._config.kafka.topics)
        wanted = {topic: (count, data) for topic, count in topics.items()}
        await make_topics(self._config.kafka, wanted, brokers=self._brokers)

    async def _settled(self, task: Task) -> Ranges:
        """Of its topics; an end that is below the task's offset gets a moment to rise."""
        deadline_s = time.monotonic() + END_WAIT_S
        while True:
            ranges = await self._answered(task.number)
            short = any(task.offsets.get(topic, 0) > end for topic, (_, end) in ranges.items())
            if not short or time.monotonic() > deadline_s:
                return ranges
            await asyncio.sleep(END_POLL_S)

    async def _answered(self, number: int) -> Ranges:
        """Kafka's word, though it is late. Raises KafkaUnavailable."""
        for _ in range(OFFSETS_TRIES - 1):
            try:
                return await self._ranges_of(number)
            except KafkaUnavailable as error:
                self._waits(str(error))
                await asyncio.sleep(END_POLL_S)
        return await self._ranges_of(number)

    async def _recognise(self, task: Task, ranges: Ranges) -> None:
        """Raises FatalError for an input that holds another record where the task has seen one (H14)."""
        wanted: dict[TopicPartition, tuple[int, int]] = {}
        for topic, (offset, _) in task.seen.items():
            start, end = ranges.get(topic, (0, 0))
            if start <= offset < end:
                wanted[TopicPartition(topic, task.number)] = offset, offset + 1
        async for records in read_batches(self._brokers, self._security, wanted, committed=False):
            for record in records:
                offset, timestamp = task.seen[record.topic]
                if record.offset == offset and record.timestamp != timestamp:
                    raise FatalError(
                        f"at offset {offset} stands another record than the one that was read: the topic was"
                        " made again",
                        where=f"{record.topic}[{task.number}]",
                        fix=f"`tailrace reset {self._names.processor}`, which derives everything again",
                    )

    def _place(self, task: Task, ranges: Ranges) -> None:
        """Every topic of the task gets an offset. Raises FatalError for one that Kafka has no more."""
        for topic, (start, end) in ranges.items():
            where = f"{topic}[{task.number}]"
            at = task.offsets.get(topic)
            if at is None:
                if start > 0 and topic in self._plan.inputs:
                    log.warning(
                        "%s begins at offset %d: rows that did not change since are not in %s; tailrace"
                        " backfill brings them",
                        where, start, self._names.out,
                    )  # fmt: skip
                task.offsets[topic] = start
                continue
            reset = f"`tailrace reset {self._names.processor}`, which derives everything again"
            if at < start:
                raise FatalError(
                    f"retention has passed offset {at}, where this goes on: the log begins at {start}",
                    where=where,
                    fix=f"{reset}; and `tailrace backfill` for rows that are no more in the topic",
                )
            if at > end:
                raise FatalError(
                    f"this goes on at offset {at}, and the log ends at {end}: the topic was made again",
                    where=where,
                    fix=reset,
                )
