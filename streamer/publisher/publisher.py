"""The publisher: rows in, Kafka transactions out, each with the position that it reaches.

A flush is one transaction: schema records, then the rows, then the topic states and, last, the
position; each step waits until the one before is acknowledged (H1). What it knows of Kafka changes
only when the commit has succeeded (H13). It must not decide what to publish, nor retry a failed
flush: after any exception it is finished, and the caller makes another and loads again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from aiokafka import TopicPartition
from aiokafka import errors as kafka

from streamer.changes import ground
from streamer.changes.position import Position, Stage, TopicState
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import clean, positions_topic, schemas_topic
from streamer.errors import KafkaUnavailable, PositionError, TailraceError
from streamer.kafka import READ_DEADLINE_S, Security, admin, kafka_errors, offset_ranges, translate
from streamer.publisher.batches import BATCH_BYTES, Batch, Topic, Waiting
from streamer.publisher.hanging import Hanging, Positions, offsets_of
from streamer.publisher.state import (
    COMMIT_MARKER_OFFSETS,
    EPOCH_HEADER,
    Loaded,
    check_beyond,
    check_chain,
    find_number,
    join,
    read_positions,
    read_schemas,
)
from streamer.publisher.topics import (
    COMPACTED,
    POSITION_PARTITIONS,
    TopicSettings,
    check_message_bytes,
    check_partitions,
    data_config,
    describe,
    durability_findings,
    ensure_topics,
    topic_configs,
)
from streamer.publisher.transactions import FLUSH_DEADLINE_S, Queue, Sent, Turns
from streamer.resetting import reset_fix

_Record = tuple[bytes, bytes | None, list[tuple[str, bytes]]]  # key, value, headers


@dataclass(frozen=True, slots=True)
class _Taken:
    """What one flush publishes, taken from the open buffers at once."""

    position: Position
    rows: list[Queue]
    schemas: list[SchemaRecord]
    ground: list[ground.Facts]
    forget: frozenset[bytes]  # keys of records that belong to an epoch that a reset has ended
    bytes: int


class Publisher:
    """Publishes one source. Life: `start`, `load`, `ensure_topics`, then append and `flush`; `close`.

    `beside`: topics of the source's own, by name with their settings: one partition each, made by
    `start`, written like the data topics. `shared`: the same for topics that other programs write to, too,
    so that nothing follows from where they end. `seat`: which place among the positions a source without one
    tries first. `flush_deadline_s` bounds one flush from its first
    request to its commit. `clock`: seconds since 1970, for record timestamps (publish times).
    """

    def __init__(
        self,
        brokers: str,
        security: Security | None,
        *,
        name: str,
        source: str,
        topics: TopicSettings,
        beside: Mapping[str, Mapping[str, str]] | None = None,
        shared: Mapping[str, Mapping[str, str]] | None = None,
        seat: int = 0,
        clock: Callable[[], float] = time.time,
        flush_deadline_s: float = FLUSH_DEADLINE_S,
        read_deadline_s: float = READ_DEADLINE_S,
    ) -> None:
        self._brokers = brokers
        self._security = security
        self._source = source
        self._seat = seat
        self._settings = topics
        self._shared = dict(shared or {})
        self._beside = {**(beside or {}), **self._shared}
        self._clock = clock
        self._flush_deadline_s = flush_deadline_s
        self._read_deadline_s = read_deadline_s
        self._positions = positions_topic(name)
        self._schemas = schemas_topic(name)
        self._turns = Turns(brokers, security, prefix=f"{clean(name)}.{clean(source)}")
        self._hanging = Hanging(brokers, security, self._turns, Positions(source), deadline_s=read_deadline_s)
        self._waiting = Waiting()
        self._touched: set[Topic] = set()
        self._topics: dict[str, Topic] = {}
        self._states: dict[str, TopicState] = {}
        self._added: dict[str, SchemaRecord] = {}
        self._sent: set[tuple[int, str]] = set()
        self._ground: list[ground.Facts] = []
        self._forget: frozenset[bytes] = frozenset()
        self._position: Position | None = None
        self._flushing = False
        self._over: BaseException | None = None
        self.number = -1
        self.in_flight_bytes = 0
        self.published_bytes = 0  # committed by this publisher, compressed batches as they waited

    @property
    def waiting_bytes(self) -> int:
        """Memory of the rows that no flush has taken yet; `in_flight_bytes` has those of the flush."""
        return self._waiting.bytes

    @property
    def waiting_records(self) -> int:
        return self._waiting.records

    @property
    def position(self) -> Position | None:
        """The last position whose commit has succeeded, or was loaded."""
        return self._position

    async def start(self) -> None:
        """Make our own topics, and initialise both transactional ids, which fences every other process (H30).

        Raises KafkaUnavailable or ConfigError; the publisher is finished then.
        """
        async with self._or_end("starting"):
            own = {
                self._positions: (POSITION_PARTITIONS, COMPACTED),
                self._schemas: (1, COMPACTED),
                **{topic: (1, config) for topic, config in self._beside.items()},
            }
            async with admin(self._brokers, self._security) as client:
                await ensure_topics(client, own, replication_factor=self._settings.replication_factor)
            await self._turns.start()
            await self._turns.know(own)
        for name in self._beside:
            self._open(name)

    async def load(self, *, reset: bool = False) -> Loaded:
        """Read what Kafka holds of the source, and check it against the topics (H12, H17, H26).

        After `start`. `reset`: the caller begins a new epoch, as it also does after a first copy that
        was not finished; nothing is checked, and the next flush forgets the topic states. Raises
        PositionError, ConfigError, KafkaUnavailable.
        """
        async with self._or_end("reading the position"):
            self.number = await find_number(
                self._brokers, self._security, self._source, self._positions, seat=self._seat
            )
            place = TopicPartition(self._positions, self.number)
            await self._hanging.end_journal(place)
            found = await read_positions(
                self._brokers, self._security, self._source, place, deadline_s=self._read_deadline_s
            )
            async with admin(self._brokers, self._security) as client:
                present = await describe(client)
            await self._hanging.end_written(
                self._places(found.topics, present), offsets_of(found.topics.values())
            )
            written = await read_schemas(
                self._brokers, self._security, self._schemas, deadline_s=self._read_deadline_s
            )
            position = found.position
            if reset or (position is not None and position.stage is not Stage.STREAMING):
                self._forget = frozenset(found.beside)
                found.topics = {}
            else:
                await self._check(position, found.topics, present)
        loaded = join(self._source, found, written)
        self._position = position
        self._states = dict(found.topics)
        epoch = position.epoch if position is not None else 0
        self._sent = {(epoch, schema_id) for schema_id in loaded.schemas_sent}
        return loaded

    def _places(self, states: Mapping[str, TopicState], present: Mapping[str, int]) -> list[TopicPartition]:
        """Where rows of this source may be: what its first flush to a topic left is in no state yet."""
        own = {self._schemas, *self._beside, *states}
        prefix = clean(self._source)
        topics = [t for t in present if t in own or t == prefix or t.startswith(f"{prefix}.")]
        return [TopicPartition(topic, p) for topic in topics for p in range(present[topic])]

    async def _check(
        self, position: Position | None, states: dict[str, TopicState], present: Mapping[str, int]
    ) -> None:
        if not states:
            return
        places = [TopicPartition(t, p) for t in states if t in present for p in range(present[t])]
        ranges = await offset_ranges(self._brokers, self._security, places)
        ends: dict[str, dict[int, int]] = {t: {} for t in states if t in present}
        for place, (_, end) in ranges.items():
            ends[place.topic][place.partition] = end
        check_chain(position, states, ends)
        for name, state in states.items():
            wanted = self._partitions(name)
            check_partitions(name, actual=present[name], wanted=wanted, recorded=state.partitions)
        others = {name: state for name, state in states.items() if name != self._schemas}
        await check_beyond(self._brokers, self._security, others, ranges)

    async def ensure_topics(self, names: Iterable[str]) -> None:
        """Make the data topics that are missing, check the others, and open handles for all of them.

        Touches no transaction: a flush may be in flight, and goes on whatever becomes of this. Raises
        KafkaUnavailable, ConfigError.
        """
        fresh = [name for name in dict.fromkeys(names) if name not in self._topics]
        if not fresh:
            return
        config = data_config(self._settings)
        with kafka_errors("making topics", brokers=self._brokers):
            async with admin(self._brokers, self._security) as client:
                await ensure_topics(
                    client,
                    dict.fromkeys(fresh, (self._settings.partitions, config)),
                    replication_factor=self._settings.replication_factor,
                )
                for name, actual in (await topic_configs(client, fresh)).items():
                    check_message_bytes(name, actual, self._settings.max_message_bytes)
        if self._over is not None:
            raise self._finished()
        await self._turns.know(fresh)
        for name in fresh:
            if name not in self._topics:  # another task may have asked for it meanwhile
                self._open(name)

    def _open(self, name: str) -> None:
        self._topics[name] = Topic(
            name,
            partitions=self._partitions(name),
            max_message_bytes=self._settings.max_message_bytes,
            compression=self._settings.compression,
            clock=self._clock,
            waiting=self._waiting,
            touched=self._touched,
        )

    def _partitions(self, topic: str) -> int:
        return 1 if topic == self._schemas or topic in self._beside else self._settings.partitions

    async def findings(self) -> list[str]:
        """H17: what in the topics' settings would lose acknowledged events; see `durability_findings`."""
        async with admin(self._brokers, self._security) as client:
            return await durability_findings(client, [self._positions, self._schemas, *self._topics])

    def next_offset(self, topic: str) -> int:
        """Where a topic of `beside` goes on behind the last commit that wrote to it; 0: none is known."""
        state = self._states.get(topic)
        return state.last_offsets[0] + 1 + COMMIT_MARKER_OFFSETS if state is not None else 0

    def topic(self, name: str) -> Topic:
        """The handle for appending rows; `ensure_topics` has had the name."""
        return self._topics[name]

    def add_schema(self, record: SchemaRecord) -> None:
        """Publish the record before the next flush's rows, unless this epoch has it already."""
        self._added[record.id] = record

    def add_ground(self, facts: Iterable[ground.Facts]) -> None:
        """Publish with the next flush what is now known of tables and publications."""
        self._ground += facts

    def flush(self, position: Position) -> Coroutine[Any, Any, Position]:
        """Publish all that is appended, and that it reaches `position`, in one Kafka transaction.

        Takes the buffers when it is called, not when it is awaited: what is appended afterwards
        belongs to the next flush. One flush at a time. Returns the position as written (with its
        flush number). Raises KafkaUnavailable (the outcome may be unknown), FencedError, ConfigError,
        PositionError; in every case the publisher is finished (H13).
        """
        if self._over is not None:
            raise self._finished()
        if self._flushing:
            raise RuntimeError("flush() while another flush is in flight: await it first")
        if self.number < 0:
            raise RuntimeError("flush() before load()")
        self._flushing = True
        number = self._position.flush + 1 if self._position is not None else 1
        taken = _Taken(
            position=replace(position, source=self._source, number=self.number, flush=number),
            rows=[Queue(t.name, p, batches) for t in self._touched for p, batches in t.take().items()],
            schemas=[r for i, r in self._added.items() if (position.epoch, i) not in self._sent],
            ground=self._ground,
            forget=self._forget,
            bytes=self._waiting.bytes,
        )
        self._touched.clear()
        self._added.clear()
        self._ground = []
        self._waiting.bytes = self._waiting.records = 0
        self.in_flight_bytes = taken.bytes
        return self._flush(taken)

    async def _flush(self, taken: _Taken) -> Position:
        async with self._or_end(f"publishing flush {taken.position.flush}"):
            async with asyncio.timeout(self._flush_deadline_s):
                states = await self._transaction(taken)
        position = taken.position
        self._position = position
        self._states.update(states)
        self._sent.update((position.epoch, record.id) for record in taken.schemas)
        self._forget -= taken.forget
        self._flushing = False
        self.in_flight_bytes = 0
        self.published_bytes += taken.bytes
        return position

    async def _transaction(self, taken: _Taken) -> dict[str, TopicState]:
        turns = self._turns
        place = TopicPartition(self._positions, self.number)
        await self._hanging.finish()
        schemas = self._schema_queues(taken)
        await turns.begin([TopicPartition(q.topic, q.partition) for q in (*schemas, *taken.rows)] + [place])
        sent = await turns.send(schemas)
        sent += await turns.send(taken.rows)
        states = self._states_after(sent, taken.position.flush)
        await turns.send([Queue(place.topic, place.partition, self._position_batches(taken, states))])
        await turns.commit()
        return states

    def _schema_queues(self, taken: _Taken) -> list[Queue]:
        if not taken.schemas:
            return []
        header = [(EPOCH_HEADER, str(taken.position.epoch).encode())]
        batches = self._batches((r.dump_key(), r.dump(), header) for r in taken.schemas)
        return [Queue(self._schemas, 0, batches)]

    def _position_batches(self, taken: _Taken, states: dict[str, TopicState]) -> list[Batch]:
        records: list[_Record] = [(key, None, []) for key in sorted(taken.forget)]
        records += [(state.key(), state.dump(), []) for state in states.values()]
        epoch = taken.position.epoch
        records += [(f.key_of(self._source), ground.dump(f, epoch), []) for f in taken.ground]
        records.append((taken.position.key(), taken.position.dump(), []))
        return self._batches(records)

    def _batches(self, records: Iterable[_Record]) -> list[Batch]:
        timestamp_ms = int(self._clock() * 1000)
        batches = [Batch(BATCH_BYTES, self._settings.compression, timestamp_ms)]
        for key, value, headers in records:
            if batches[-1].add(key, value, headers) is None:
                batches.append(Batch(BATCH_BYTES, self._settings.compression, timestamp_ms))
                batches[-1].add(key, value, headers)
        return batches

    def _states_after(self, sent: Iterable[Sent], flush: int) -> dict[str, TopicState]:
        offsets: dict[str, dict[int, int]] = {}
        for landed in sent:
            if landed.topic in self._shared:
                continue
            known = self._states.get(landed.topic)
            before = known.last_offsets.get(landed.partition, -1) if known is not None else -1
            if landed.first_offset <= before:
                raise PositionError(
                    f"{landed.topic}[{landed.partition}] was written up to offset {before} and took the "
                    f"next event at {landed.first_offset}: it was made again, or lost its end",
                    where=f"source {self._source}",
                    fix=reset_fix(self._source),
                )
            last = offsets.setdefault(landed.topic, dict(known.last_offsets) if known is not None else {})
            last[landed.partition] = landed.last_offset
        return {
            topic: TopicState(
                source=self._source,
                topic=topic,
                partitions=self._partitions(topic),
                last_offsets=last,
                flush=flush,
            )
            for topic, last in offsets.items()
        }

    async def close(self) -> None:
        """End the producers within 5 s; what is not committed is not published."""
        if self._over is None:
            self._over = KafkaUnavailable("the publisher was closed")
        await self._turns.end(abort=True)

    @asynccontextmanager
    async def _or_end(self, doing: str) -> AsyncIterator[None]:
        """Any exception in the body ends the publisher (H13) and leaves translated."""
        if self._over is not None:
            raise self._finished()
        try:
            yield
        except BaseException as error:
            if self._over is not None and not isinstance(error, (TailraceError, asyncio.CancelledError)):
                raise self._finished() from error  # closed under it, by another task
            await self._end(error)
            if isinstance(error, (kafka.KafkaError, OSError, TimeoutError)):
                raise translate(error, doing, brokers=self._brokers) from error
            raise

    def _finished(self) -> KafkaUnavailable:
        return KafkaUnavailable(
            f"this publisher is finished: {self._over}", fix="make another one, start and load it"
        )

    async def _end(self, reason: BaseException) -> None:
        self._over = reason
        self.in_flight_bytes = 0
        await self._turns.end(abort=not isinstance(reason, TimeoutError))
