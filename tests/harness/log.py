"""A reader of the topics that checks what the promise says of them.

Owns: the check that every (epoch, commit_lsn, ordinal) is in the log exactly once (snapshot rows: every
(epoch, key)), that a key has one partition, and that versions rise per key; and the fold of the log into
tables, compared with the source inside the source. It reads read_committed, as every consumer does.

What makes "exactly once" cheap to check: capture appends in the order of commits, so within a partition
the versions rise strictly. A version seen again is then one that does not rise, and needs no memory.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import orjson
import psycopg
from aiokafka import TopicPartition
from psycopg import sql

from streamer.changes.envelope import SNAPSHOT_INCREMENTAL
from streamer.changes.kinds import UNAVAILABLE, decoder_for
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import clean, schemas_topic
from streamer.kafka import admin, offset_ranges, reader
from streamer.publisher.topics import describe

READ_TIMEOUT_S = 120.0
POLL_MS = 100
POLL_RECORDS = 20_000
SAMPLES = 10
FLOOR_PREFIX = "tailrace.floor"

Version = tuple[int, int, int]
TableKey = tuple[str, str]


@dataclass(slots=True)
class LogReport:
    """Counts are events. `samples` are lines to print."""

    records: int = 0
    transactions: int = 0
    lost: int = 0
    doubled: int = 0
    regressed: int = 0
    misplaced: int = 0
    samples: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.regressed or self.misplaced)

    def note(self, text: str) -> None:
        if len(self.samples) < SAMPLES:
            self.samples.append(text)

    def __str__(self) -> str:
        counts = (
            f"{self.records} records of {self.transactions} transactions: lost {self.lost}, doubled"
            f" {self.doubled}, regressed {self.regressed}, misplaced {self.misplaced}"
        )
        return "\n  ".join([counts, *self.samples])


@dataclass(slots=True)
class _Place:
    """One partition as far as it has been read."""

    next_offset: int = 0
    version: Version = (0, 0, -1)
    chunk: Version = (0, 0, -1)  # the version of the last chunk of a backfill, and the keys that it had
    chunk_keys: set[bytes] = field(default_factory=set)


@dataclass(slots=True)
class _Table:
    """The fold of one table. Keyless rows are kept as a multiset, under their version."""

    schema_id: str = ""
    rows: dict[bytes, tuple[Version, str, dict[str, Any]]] = field(default_factory=dict)
    keyless: list[tuple[Version, str, dict[str, Any]]] = field(default_factory=list)
    floor: Version = (0, 0, -1)
    snapshot_keys: set[tuple[int, bytes]] = field(default_factory=set)


class LogChecker:
    """Reads on from where it stopped at each `read`, so it can accompany a long run.

    `fold`: keep the last row of every key; without it memory stays flat.
    """

    def __init__(self, brokers: str, *, name: str, source: str, fold: bool = True) -> None:
        self.found = LogReport()
        self.counts: dict[int, int] = {}  # commit LSN -> row changes seen; of the last epoch
        self.epoch = 0
        self._brokers = brokers
        self._prefix = f"{clean(source)}."
        self._schemas_topic = schemas_topic(name)
        self._fold = fold
        self._places: dict[TopicPartition, _Place] = {}
        self._partitions: dict[str, int] = {}
        self._tables: defaultdict[TableKey, _Table] = defaultdict(_Table)
        self._table_of_topic: dict[str, TableKey] = {}

    async def read(self, timeout_s: float = READ_TIMEOUT_S) -> None:
        """Read on to the high watermarks of this moment; TimeoutError names where it stands."""
        partitions = await self._find()
        if not partitions:
            return
        async with reader(self._brokers, None, committed=True) as consumer:
            ranges = await offset_ranges(self._brokers, None, partitions)
            consumer.assign(partitions)
            for partition in partitions:
                place = self._places.setdefault(partition, _Place(ranges[partition][0]))
                consumer.seek(partition, place.next_offset)
            waiting = {p for p in partitions if self._places[p].next_offset < ranges[p][1]}
            try:
                async with asyncio.timeout(timeout_s):
                    while waiting:
                        batches = await consumer.getmany(timeout_ms=POLL_MS, max_records=POLL_RECORDS)
                        for records in batches.values():
                            for record in records:
                                self._record(record)
                        for partition in partitions:
                            position = await consumer.position(partition)
                            self._places[partition].next_offset = position
                            if position >= ranges[partition][1]:
                                waiting.discard(partition)
            except TimeoutError:
                places = [
                    f"{p.topic}[{p.partition}] at {self._places[p].next_offset} of {ranges[p][1]}"
                    for p in waiting
                ]
                raise TimeoutError(
                    f"the log does not come to its end in {timeout_s:.0f} s: {', '.join(places)}"
                ) from None

    async def _find(self) -> list[TopicPartition]:
        async with admin(self._brokers, None) as client:
            topics = await describe(client)
        for topic, count in topics.items():
            rest = topic.removeprefix(self._prefix)
            if rest not in (topic, "message") and not rest.startswith("__"):
                self._partitions[topic] = count
        return [TopicPartition(t, n) for t, count in sorted(self._partitions.items()) for n in range(count)]

    # -- one record

    def _record(self, record: Any) -> None:
        if record.value is None:
            return  # the tombstone of a delete
        event = orjson.loads(record.value)
        source, op = event["source"], event["op"]
        epoch, commit_lsn, ordinal = source["epoch"], source["commit_lsn"], source["ordinal"]
        version = (epoch, commit_lsn, ordinal)
        where = f"{record.topic}[{record.partition}]@{record.offset}"
        table_key = (source["schema"], source["table"])
        table = self._tables[table_key]
        self.found.records += 1
        if self._table_of_topic.setdefault(record.topic, table_key) != table_key:
            self.found.misplaced += 1
            self.found.note(f"{where}: {table_key} in the topic of {self._table_of_topic[record.topic]}")
        partition = crc32(record.key) % self._partitions[record.topic] if record.key is not None else 0
        if partition != record.partition:
            self.found.misplaced += 1
            self.found.note(f"{where}: key {record.key!r} belongs to partition {partition}")
        if op == "m":
            if event["message"]["prefix"] == FLOOR_PREFIX:
                self._raise_floor(table, version)
            return
        incremental = source.get("snapshot") == SNAPSHOT_INCREMENTAL
        if incremental:
            self._backfilled(record, version, where)
        elif op == "r":
            self._snapshot_row(table, record, epoch, where)
        else:
            self._streamed(record, version, where)
        place = self._places[TopicPartition(record.topic, record.partition)]
        # A transaction may commit at the very consistent point: its ordinal 0 comes after the snapshot.
        copied = op == "r" and not incremental
        place.version = max(place.version, (epoch, commit_lsn, -1) if copied else version)
        if self._fold:
            self._apply(table, op, record.key, event, version)

    def _snapshot_row(self, table: _Table, record: Any, epoch: int, where: str) -> None:
        place = self._places[TopicPartition(record.topic, record.partition)]
        if epoch < place.version[0] or (epoch == place.version[0] and place.version[2] >= 0):
            self.found.regressed += 1
            self.found.note(f"{where}: a snapshot row of epoch {epoch} after {place.version}")
        if record.key is None or not self._fold:
            return
        if (epoch, record.key) in table.snapshot_keys:
            self.found.doubled += 1
            self.found.note(f"{where}: snapshot row {record.key!r} twice in epoch {epoch}")
        table.snapshot_keys.add((epoch, record.key))

    def _backfilled(self, record: Any, version: Version, where: str) -> None:
        """Rows of a chunk have the version of its close mark, which no other event has; each key once."""
        place = self._places[TopicPartition(record.topic, record.partition)]
        if version < place.version or (version == place.version and version != place.chunk):
            self.found.regressed += 1
            self.found.note(f"{where}: a chunk's row at {version} after {place.version}")
        if version > place.chunk:
            place.chunk = version
            place.chunk_keys.clear()
        if record.key in place.chunk_keys:
            self.found.doubled += 1
            self.found.note(f"{where}: {record.key!r} twice in a chunk at {version}")
        place.chunk_keys.add(record.key)

    def _streamed(self, record: Any, version: Version, where: str) -> None:
        place = self._places[TopicPartition(record.topic, record.partition)]
        if version == place.version:
            self.found.doubled += 1
            self.found.note(f"{where}: {version} twice")
        elif version < place.version:
            self.found.regressed += 1
            self.found.note(f"{where}: {version} after {place.version}")
        epoch, commit_lsn, _ = version
        if epoch > self.epoch:
            self.epoch = epoch
            self.counts.clear()
        if epoch == self.epoch:
            if commit_lsn not in self.counts:
                self.found.transactions += 1
            self.counts[commit_lsn] = self.counts.get(commit_lsn, 0) + 1

    # -- the verdict

    def report(self, expected: Mapping[int, int] | None = None) -> LogReport:
        """What was found so far, with the events that `expected` (the referee's) misses or has not."""
        report = LogReport(
            **{
                name: getattr(self.found, name)
                for name in LogReport.__dataclass_fields__
                if name != "samples"
            },
            samples=list(self.found.samples),
        )
        for commit_lsn, changes in (expected or {}).items():
            seen = self.counts.get(commit_lsn, 0)
            if seen < changes:
                report.lost += changes - seen
                report.note(f"transaction {commit_lsn:X}: {seen} of {changes} row changes in the log")
            elif seen > changes:
                report.doubled += seen - changes
                report.note(
                    f"transaction {commit_lsn:X}: {seen} row changes in the log, {changes} in the WAL"
                )
        return report

    # -- the fold

    def _apply(
        self, table: _Table, op: str, key: bytes | None, event: dict[str, Any], version: Version
    ) -> None:
        schema_id = event["source"]["schema_id"]
        table.schema_id = schema_id
        if op == "t":
            self._raise_floor(table, version)
        elif version <= table.floor:
            return
        elif key is None:
            if op in ("d", "u"):
                _remove_one(table.keyless, event["before"])
            if op != "d":
                table.keyless.append((version, schema_id, event["after"]))
        elif op == "d":
            table.rows.pop(key, None)
        else:
            row = event["after"]
            if UNAVAILABLE in row.values() and op == "u" and key in table.rows:
                old = table.rows[key][2]
                row = {c: old.get(c) if v == UNAVAILABLE else v for c, v in row.items()}
            table.rows[key] = (version, schema_id, row)

    def _raise_floor(self, table: _Table, floor: Version) -> None:
        """Rows of other partitions may still come below it: they are dropped when they do."""
        table.floor = max(table.floor, floor)
        table.rows = {k: row for k, row in table.rows.items() if row[0] > table.floor}
        table.keyless = [row for row in table.keyless if row[0] > table.floor]

    async def fold_differences(self, source_url: str) -> list[str]:
        """Compare inside the source, the fold in temporary tables; a line for each table that differs."""
        schemas = await self._schemas()
        return await asyncio.to_thread(self._compare, source_url, schemas)

    async def _schemas(self) -> dict[str, SchemaRecord]:
        found: dict[str, SchemaRecord] = {}
        async with admin(self._brokers, None) as client:
            count = (await describe(client)).get(self._schemas_topic, 0)
        partitions = [TopicPartition(self._schemas_topic, number) for number in range(count)]
        ranges = await offset_ranges(self._brokers, None, partitions)
        async with reader(self._brokers, None, committed=True) as consumer:
            consumer.assign(partitions)
            for partition in partitions:
                consumer.seek(partition, ranges[partition][0])
            async with asyncio.timeout(READ_TIMEOUT_S):
                while any([await consumer.position(p) < ranges[p][1] for p in partitions]):
                    for records in (await consumer.getmany(timeout_ms=POLL_MS)).values():
                        for record in records:
                            schema = SchemaRecord.load(record.value)
                            found[schema.id] = schema
        return found

    def _compare(self, source_url: str, schemas: Mapping[str, SchemaRecord]) -> list[str]:
        lines: list[str] = []
        with psycopg.connect(source_url, autocommit=True) as connection:
            connection.execute("SET TimeZone TO 'UTC'")
            for number, ((schema, name), table) in enumerate(sorted(self._tables.items())):
                if not table.schema_id:
                    continue
                columns = [c.name for c in schemas[table.schema_id].columns]
                temporary = sql.Identifier(f"fold_{number}")
                original = sql.Identifier(schema, name)
                connection.execute(
                    sql.SQL("CREATE TEMP TABLE {} AS SELECT {} FROM {} WITH NO DATA").format(
                        temporary, sql.SQL(", ").join(map(sql.Identifier, columns)), original
                    )
                )
                _load(connection, temporary, columns, [*table.rows.values(), *table.keyless], schemas)
                lines += _except(connection, original, temporary, columns)
                connection.execute(sql.SQL("DROP TABLE {}").format(temporary))
        return lines


def _remove_one(rows: list[tuple[Version, str, dict[str, Any]]], before: dict[str, Any]) -> None:
    """A delete or update without a key takes away one of the rows that are equal to `before`."""
    for index, (_, _, row) in enumerate(rows):
        if row == before:
            del rows[index]
            return


def _load(
    connection: psycopg.Connection[Any],
    table: sql.Identifier,
    columns: list[str],
    rows: list[tuple[Version, str, dict[str, Any]]],
    schemas: Mapping[str, SchemaRecord],
) -> None:
    decoders = {
        schema_id: {c.name: decoder_for(c.kind) for c in schemas[schema_id].columns}
        for schema_id in {row[1] for row in rows}
    }
    into = sql.SQL("COPY {} FROM STDIN").format(table)
    with connection.cursor() as cursor, cursor.copy(into) as copy:
        for _, schema_id, row in rows:
            decode = decoders[schema_id]
            copy.write_row(
                [None if row.get(c) is None or c not in decode else decode[c](row[c]) for c in columns]
            )


def _except(
    connection: psycopg.Connection[Any], original: sql.Identifier, fold: sql.Identifier, columns: list[str]
) -> list[str]:
    """As text, because json and others have no equality."""
    texts = sql.SQL(", ").join(sql.SQL("{}::text").format(sql.Identifier(c)) for c in columns)
    lines = []
    for what, one, other in (("lacks", original, fold), ("has too much", fold, original)):
        rows = connection.execute(
            sql.SQL("SELECT {0} FROM {1} EXCEPT ALL SELECT {0} FROM {2}").format(texts, one, other)
        ).fetchall()
        if rows:
            sample = dict(zip(columns, (str(v)[:60] for v in rows[0]), strict=True))
            lines.append(f"the fold of {original.as_string(connection)} {what} {len(rows)} rows: {sample}")
    return lines
