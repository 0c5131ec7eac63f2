"""What a task is about to send: the unit's records until the unit is kept, and the transaction's batches.

Owns which topic and partition a record goes to: derived rows and hops by crc32 of their key, so that a
derived topic joins a captured one; the changelog, floors, schema records and dead letters where told.
Sizes are checked when a record is given, so that a unit that is kept always fits.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

from consumers.processors.context import Row
from consumers.processors.names import Names, routed_table
from consumers.processors.shapes import CONNECTOR, Shapes, dumps, event
from streamer.changes.envelope import RowTemplate, SourceTemplate
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import schemas_topic
from streamer.errors import BadRecordError
from streamer.publisher.batches import (
    BATCH_BYTES,
    BATCH_SHARE,
    RAISE_LIMIT,
    Batch,
    OversizeError,
    Topic,
    Waiting,
)
from streamer.publisher.state import EPOCH_HEADER
from streamer.publisher.topics import TopicSettings
from streamer.publisher.transactions import Queue

Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]
Place = tuple[str, int]

COMMIT_HEADER = "us"
ROUTES_LIMIT = 1000  # topics of a router: named by data, each with files of its own on the brokers
_NO_HEADERS: Final[list[tuple[str, bytes]]] = []  # a list: the record builder takes nothing else

_TOO_LARGE = f"{RAISE_LIMIT}, or let the row have less in it; then `tailrace dead-letters retry`"


class Outbox:
    """Of one task."""

    def __init__(
        self,
        names: Names,
        shapes: Shapes,
        settings: TopicSettings,
        *,
        partitions: dict[str, int],
        known_schemas: frozenset[str],
        transactional: bool,
        clock_s: Callable[[], float] = time.time,
    ) -> None:
        """`partitions`: of the topics that are there. `known_schemas`: ids in the schemas topic."""
        self._names = names
        self._shapes = shapes
        self._settings = settings
        self._partitions = partitions
        self._transactional = transactional
        self._clock_s = clock_s
        self._topics: dict[str, Topic] = {}
        self._tables: dict[str, str] = {}  # what a router said -> the table
        self._touched: set[Topic] = set()
        self._waiting = Waiting()
        self._unit: list[tuple[Topic, bytes | None, bytes | None, list[tuple[str, bytes]]]] = []
        self._unit_placed: list[tuple[Place, Record]] = []
        self._placed: dict[Place, list[Record]] = defaultdict(list)
        self._sent_schemas = set(known_schemas)
        self._unsent: dict[str, SchemaRecord] = {}
        self._templates: dict[str, tuple[int, RowTemplate]] = {}
        self._now_us = self._clock_us()
        self.epoch = 1
        self.unmade: dict[str, int] = {}  # routed topics that have yet to be made
        self.kept = 0  # derived events since the last `take`

    def _clock_us(self) -> int:
        return int(self._clock_s() * 1e6)

    # A unit

    def emit(
        self,
        key: Row,
        after: Row | None,
        before: Row | None,
        op: str | None,
        table: str | None,
        commit_us: int,
        raw_key: bytes | None = None,
    ) -> None:
        """`raw_key`: the key's JSON, where it is known. Raises BadRecordError, OversizeError."""
        table = self._table(table)
        shape = self._shapes.fit(table, self.epoch, key, after)
        schema_id = shape.id
        cached = self._templates.get(schema_id)
        if cached is None or cached[0] != commit_us:
            template = shape.template.transaction(
                commit_us=commit_us, xid=None, commit_lsn=None, previous_commit_lsn=None, now_us=self._now_us
            )
            self._templates[schema_id] = commit_us, template
        else:
            template = cached[1]
        if schema_id not in self._sent_schemas:
            self._unsent[schema_id] = shape.record
        topic = self._topic(self._names.routed(table))
        key_bytes = raw_key or dumps(key)
        value = event(shape, key, after, before, op, template)
        self._add(topic, key_bytes, value)
        if after is None:
            self._unit.append((topic, key_bytes, None, _NO_HEADERS))

    def publish(self, key: bytes | None, value: bytes | None, table: str | None) -> None:
        """Bytes as they are, for other readers than flows. Raises BadRecordError, OversizeError."""
        self._add(self._topic(self._names.routed(self._table(table))), key, value)

    def forward(self, hop: int, key: bytes, value: bytes, commit_us: int) -> None:
        """`commit_us` goes along: derived rows name the source's time, whatever the hops took."""
        self._add(self._topic(self._names.hop(hop)), key, value, [(COMMIT_HEADER, b"%d" % commit_us)])

    def place(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]] = _NO_HEADERS,
    ) -> None:
        """A record for a partition that is named."""
        self._unit_placed.append(((topic, partition), (key, value, headers)))

    def floor(self, epoch: int) -> None:
        """Rows of older epochs are gone, in every table that there is: the end of a reset."""
        names, now_us = self._names, self._clock_us()
        for record in self._shapes.known:
            template = SourceTemplate(
                version="", connector=CONNECTOR, name=names.processor, db="", schema="",
                table=record.table, schema_id=record.id, epoch=epoch,
            )  # fmt: skip
            value = template.floor(lsn=0, commit_us=now_us, now_us=now_us)
            own = [names.out] if record.table == names.out else []
            for topic in (*own, names.routed(record.table)):
                if topic in self._partitions or topic in self._topics:
                    self.place(topic, 0, None, value)
            if record.id not in self._sent_schemas:
                self._unsent[record.id] = record

    def keep(self) -> None:
        """The unit's records go with the transaction."""
        for topic, key, value, headers in self._unit:
            topic.append(key, value, headers)
        self.kept += len(self._unit)
        for place, record in self._unit_placed:
            self._placed[place].append(record)
        self.drop()

    def drop(self) -> None:
        self._unit.clear()
        self._unit_placed.clear()

    # The transaction

    @property
    def is_empty(self) -> bool:
        return not self._touched and not self._placed

    @property
    def waiting_bytes(self) -> int:
        return self._waiting.bytes

    def take(self) -> list[Queue]:
        """All batches since the last call."""
        source = (EPOCH_HEADER, str(self.epoch).encode())
        schemas = schemas_topic(self._names.config)
        for found in self._unsent.values():
            self._placed[schemas, 0].append((found.dump_key(), found.dump(), [source]))
        self._sent_schemas |= self._unsent.keys()
        self._unsent.clear()
        queues = [
            Queue(topic.name, partition, batches)
            for topic in self._touched
            for partition, batches in topic.take().items()
        ]
        self._touched.clear()
        queues += [self.queue(topic, p, records) for (topic, p), records in self._placed.items()]
        self._placed.clear()
        self._waiting.bytes = self._waiting.records = 0
        self._now_us = self._clock_us()
        self._templates.clear()
        self.kept = 0
        return queues

    def queue(self, topic: str, partition: int, records: Sequence[Record]) -> Queue:
        """Records of one partition, in order."""
        limit = min(BATCH_BYTES, self._settings.max_message_bytes // BATCH_SHARE)
        now_ms = int(self._clock_s() * 1000)

        def fresh() -> Batch:
            return Batch(limit, self._settings.compression, now_ms, transactional=self._transactional)

        batches = [fresh()]
        for key, value, headers in records:
            if batches[-1].add(key, value, headers) is None:
                batches[-1].seal()
                batches.append(fresh())
                batches[-1].add(key, value, headers)
        return Queue(topic, partition, batches)

    def _add(
        self,
        topic: Topic,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]] = _NO_HEADERS,
    ) -> None:
        size = len(key or b"") + len(value or b"")
        if size > topic.limit_bytes:
            raise OversizeError(topic.name, key, size, topic.limit_bytes, fix=_TOO_LARGE)
        self._unit.append((topic, key, value, headers))

    def _table(self, value: str | None) -> str | None:
        """Of a router, as it is named in Kafka. Raises BadRecordError."""
        if value is None:
            return None
        table = self._tables.get(value) if isinstance(value, str) else None
        if table is None:
            table = routed_table(value, self._names.out)
            if len(self._tables) < ROUTES_LIMIT:
                self._tables[value] = table
        return table

    def _topic(self, name: str) -> Topic:
        topic = self._topics.get(name)
        if topic is None:
            if len(self._topics) >= ROUTES_LIMIT:
                raise BadRecordError(
                    f"{ROUTES_LIMIT} topics are written to, and this row is for one more",
                    where=f"topic {name}",
                    fix="route by a column of few values",
                )
            partitions = self._partitions.get(name)
            if partitions is None:
                partitions = self.unmade[name] = self._settings.partitions
            topic = self._topics[name] = Topic(
                name,
                partitions=partitions,
                max_message_bytes=self._settings.max_message_bytes,
                compression=self._settings.compression,
                clock=self._clock_s,
                waiting=self._waiting,
                touched=self._touched,
                transactional=self._transactional,
            )
        return topic
