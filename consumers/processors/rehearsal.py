"""A processor without its surroundings: records in, and what it would send out; nothing is sent or kept.

The tasks, hops, guards and dead letters are those of a worker; the state is in memory, and a hop's records go
straight to the next one. For `tailrace process --dry-run` and for users' own tests.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from aiokafka import ConsumerRecord

from consumers.processors.agents import AgentHop
from consumers.processors.context import Definition, Given, Row
from consumers.processors.hops import hops_of
from consumers.processors.key_forms import KeyForms
from consumers.processors.memory import MemoryStore
from consumers.processors.names import Names
from consumers.processors.outbox import Outbox
from consumers.processors.parked import Refusals
from consumers.processors.plan import Plan, allow_long_numbers
from consumers.processors.shapes import Shapes
from consumers.processors.state import Overlay
from consumers.processors.task import Task
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import partition_for
from streamer.config import DeadLetterLimits, Topics

REFUSALS = DeadLetterLimits(limit=100_000, share=1.0)  # every one is shown
_ALL = 2**63  # records of a log: what it holds is history, as for a worker that begins behind it


@dataclass(frozen=True, slots=True)
class Sent:
    """A derived row, or a dead letter. `value` None: a tombstone. `origin`: the record that it comes from.
    `is_plain`: without an envelope, of any bytes."""

    topic: str
    key: bytes | None
    value: bytes | None
    origin: ConsumerRecord[bytes, bytes]
    is_plain: bool = False

    @property
    def event(self) -> dict[str, Any] | None:
        """None of a tombstone, and of what is plain."""
        if self.value is None or self.is_plain:
            return None
        found: dict[str, Any] = orjson.loads(self.value)
        return found

    @property
    def row(self) -> Row | None:
        event = self.event
        return None if event is None else event.get("after")


class _Outbox(Outbox):
    """Gives what is kept, and keeps nothing."""

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.sent: list[tuple[str, int | None, bytes | None, bytes | None, list[tuple[str, bytes]]]] = []
        self.plain: set[str] = set()  # topics

    def publish(self, key: bytes | None, value: bytes | None, table: str | None) -> None:
        super().publish(key, value, table)
        self.plain.add(self._unit[-1][0].name)

    def keep(self) -> None:
        self.sent += [(topic.name, None, key, value, headers) for topic, key, value, headers in self._unit]
        self.sent += [
            (topic, partition, key, value, headers)
            for (topic, partition), (key, value, headers) in self._unit_placed
        ]
        self.drop()

    @property
    def schemas(self) -> list[SchemaRecord]:
        """Those that events name."""
        return list(self._unsent.values())


class _Nothing:
    """In the place of Kafka's transactions."""

    async def commit(self, outputs: object, changelog: object) -> int:
        return 0

    async def end(self, *, abort: bool) -> None:
        pass


class Rehearsal:
    """Of one processor; `given` says for what. All topics have `partitions`."""

    def __init__(
        self,
        definition: Definition,
        given: Given,
        *,
        partitions: int,
        config_name: str = "rehearsal",
        guarantee: str = "exactly_once",
        own: Sequence[SchemaRecord] = (),
        topics: Topics | None = None,
    ) -> None:
        """`own`: schema records of its `out`. Raises ConfigError."""
        allow_long_numbers()
        settings = topics or Topics()
        names = Names(config_name, given.processor, given.out)
        hops = hops_of(definition, given, guarantee)
        self._names = names
        self._partitions = partitions
        self._refusals = Refusals(REFUSALS)
        self.inferred: list[str] = []
        self._shapes = Shapes(
            names.processor,
            names.out,
            types=lambda: definition.columns(given) or {},
            inputs=given.schemas,
            known=own,
            said=self.inferred.append,
            taken=given.taken,
        )
        self._plan = Plan(
            names=names,
            inputs=given.inputs,
            key=given.key,
            hops=hops,
            key_forms=KeyForms(definition, given),
            partitions=partitions,
            message_bytes=settings.max_message_bytes,
            retention_s=settings.retention_s,
        )
        self._settings = settings
        self._tasks: dict[int, tuple[Task, _Outbox]] = {}
        self._next: dict[tuple[str, int], int] = {}
        self._app: Any = None

    async def handle(self, record: ConsumerRecord[bytes, bytes]) -> list[Sent]:
        """A record of an input, and all that follows from it."""
        found: list[Sent] = []
        waiting = deque([record])
        while waiting:
            one = waiting.popleft()
            task, outbox = self._task(one.partition)
            await task.work([(one.topic, [one], one.offset + 1)])
            sent, outbox.sent = outbox.sent, []
            for topic, partition, key, value, headers in sent:
                if topic in self._plan.topics:
                    waiting.append(self._inner(topic, partition, key, value, headers, record.timestamp))
                else:
                    found.append(Sent(topic, key, value, record, topic in outbox.plain))
        return found

    async def close(self) -> None:
        for task, _ in self._tasks.values():
            await task.close(abort=True)
        self._tasks.clear()

    @property
    def schemas(self) -> dict[str, SchemaRecord]:
        """By id, of the events so far."""
        return {record.id: record for _, outbox in self._tasks.values() for record in outbox.schemas}

    @property
    def dead_letters(self) -> str:
        return self._names.dead_letters

    def _inner(
        self,
        topic: str,
        partition: int | None,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes]],
        timestamp: int,
    ) -> ConsumerRecord[bytes, bytes]:
        number = partition_for(key, self._partitions) if partition is None else partition
        offset = self._next.get((topic, number), 0)
        self._next[topic, number] = offset + 1
        sizes = len(key or b""), len(value or b"")
        return ConsumerRecord(topic, number, offset, timestamp, 0, key, value, None, *sizes, tuple(headers))

    def _task(self, number: int) -> tuple[Task, _Outbox]:
        if number not in self._tasks:
            outbox = _Outbox(
                self._names, self._shapes, self._settings, partitions=_Any(self._partitions),
                known_schemas=frozenset(), transactional=False,
            )  # fmt: skip
            nothing: Any = _Nothing()
            task = Task(
                self._plan, number, Overlay(MemoryStore()), outbox, nothing, refusals=self._refusals,
                make_topics=_no_topics, known=_Every(), learn=_nothing_to_learn,
            )  # fmt: skip
            for topic in self._plan.inputs:
                task.forms.begin(topic, _ALL, fresh=True)
            hop = self._plan.hops[0]
            if isinstance(hop, AgentHop):
                task.actor = self._actor(hop, task)
            self._tasks[number] = task, outbox
        return self._tasks[number]

    def _actor(self, hop: AgentHop, task: Task) -> Any:
        from consumers.processors.app import Actor, make_app  # noqa: PLC0415  Faust, where it is needed

        if self._app is None:
            self._app = make_app(self._names.group)
        return Actor(self._app, hop.agent, task.unit, name=f"{hop.agent.name}[{task.number}]")


class _Any(dict[str, int]):
    """Every topic is there."""

    def __init__(self, partitions: int) -> None:
        super().__init__()
        self._partitions = partitions

    def get(self, name: str, default: Any = None) -> Any:
        return self._partitions


class _Every:
    """Every schema record is known, as well as it will be."""

    def __contains__(self, schema_id: object) -> bool:
        return True


async def _nothing_to_learn(schema_id: str, where: str, columns: Collection[str]) -> None:
    raise AssertionError("the records of the inputs are given")


async def _no_topics(_: Mapping[str, int]) -> None:
    pass
