"""What is made of a Relation message: schema record, encoder, envelope template, topic.

Owns the rule of keys (H22): the key of a table is frozen when the table is first captured in an
epoch; a Relation with another key stops the source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import streamer
from streamer.changes.envelope import SourceTemplate
from streamer.changes.names import spelt
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import data_topic, message_topic
from streamer.config import PostgresSource
from streamer.config.built import unbuilt_table
from streamer.errors import FatalError
from streamer.postgres import catalog
from streamer.postgres.connection import Connection
from streamer.postgres.ground import Drift
from streamer.postgres.pgoutput import Relation, RelationColumn
from streamer.postgres.rows import RowEncoder
from streamer.postgres.snapshot import SnapshotTable
from streamer.postgres.transactions import CapturedTable, Sink
from streamer.publisher import Publisher, Topic
from streamer.resetting import reset_fix

FrozenKeys = Mapping[tuple[str, str], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Described:
    """A table as its catalogue shows it, before anything of it is published. `columns`: the stream's."""

    table: catalog.Table
    columns: tuple[tuple[str, int, int], ...]  # name, type oid, typmod
    record: SchemaRecord
    encoder: RowEncoder
    source: SourceTemplate
    sink: Topic


class Relations:
    """The tables of one source in one epoch."""

    def __init__(
        self,
        source: PostgresSource,
        publisher: Publisher,
        drift: Drift,
        *,
        database: str,
        epoch: int,
        frozen: FrozenKeys,
    ) -> None:
        self._source = source
        self._publisher = publisher
        self._drift = drift
        self._database = database
        self._epoch = epoch
        self.frozen = dict(frozen)  # (schema, table) -> key columns
        self._owners = {data_topic(source.name, *table): table for table in frozen}

    async def captured(self, connection: Connection, relation: Relation) -> CapturedTable | None:
        """The table of a Relation message; None when the config leaves it out."""
        schema, name = relation.schema, relation.name
        self._drift.meet(relation.oid, spelt(schema, name))
        self._publisher.add_ground(self._drift.take_fresh())  # with the flush that passes its first change
        if self._source.rule_for(schema, name) is None or unbuilt_table(self._source, schema, name):
            return None
        topic = data_topic(self._source.name, schema, name)
        if self._owners.setdefault(topic, (schema, name)) != (schema, name):
            return None  # another table has this topic; the watch says so
        await self._publisher.ensure_topics([topic])
        frozen = self.frozen.get((schema, name))
        primary = await catalog.primary_key(connection, schema, name) if relation.identity == "f" else ()
        record = await catalog.describe(connection, self._source.name, relation, frozen, primary)
        self._check_key(record, frozen)
        self.adopt(record)
        encoder = RowEncoder(relation, [c.kind for c in record.columns], record.key_columns)
        template = self._template(schema, name, record.id)
        return CapturedTable(spelt(schema, name), encoder, template, self._publisher.topic(topic), record.id)

    def adopt(self, record: SchemaRecord) -> None:
        """With the next flush the table has this schema, and in this epoch the key of its first one (H22)."""
        self.frozen.setdefault((record.schema, record.table), record.key_columns)
        self._publisher.add_schema(record)

    def _check_key(self, record: SchemaRecord, frozen: tuple[str, ...] | None) -> None:
        schema, name, key = record.schema, record.table, record.key_columns
        if frozen is not None and frozen != key:
            raise FatalError(
                f"the key of {spelt(schema, name)} changed from ({', '.join(frozen) or 'none'}) to "
                f"({', '.join(key) or 'none'}): rows under the old key could not be followed",
                where=f"source {self._source.name}",
                fix=f"in each target that has it, DROP TABLE the copy of {spelt(schema, name)}, whose key is "
                f"the old one; then {reset_fix(self._source.name)}",
            )

    async def describe(self, connection: Connection, table: catalog.Table) -> Described:
        """A table that is to be read beside the stream; `adopt` its record with the first rows.

        Raises FatalError when its key is no longer that of its events.
        """
        columns = tuple(await catalog.published_columns(connection, table))
        relation = await self._relation(connection, table, columns)
        topic = data_topic(self._source.name, table.schema, table.name)
        owner = self._owners.setdefault(topic, (table.schema, table.name))
        if owner != (table.schema, table.name):
            raise FatalError(
                f"topic {topic} is that of {owner[0]}.{owner[1]}",
                where=table.qualified,
                fix="rename one of the two tables, or exclude one in `tables:`",
            )
        frozen = self.frozen.get(owner)
        primary = table.primary_key if table.identity == "f" else ()
        record = await catalog.describe(connection, self._source.name, relation, frozen, primary)
        self._check_key(record, frozen)
        await self._publisher.ensure_topics([topic])
        return Described(
            table,
            columns,
            record,
            RowEncoder(relation, [c.kind for c in record.columns], record.key_columns),
            self._template(table.schema, table.name, record.id),
            self._publisher.topic(topic),
        )

    async def _relation(
        self, connection: Connection, table: catalog.Table, columns: Iterable[tuple[str, int, int]]
    ) -> Relation:
        """As the stream's Relation message will be."""
        flagged = set(await catalog.identity_columns(connection, table))
        described = tuple(RelationColumn(name, oid, typmod, name in flagged) for name, oid, typmod in columns)
        return Relation(table.oid, table.schema, table.name, table.identity, described)

    async def from_catalog(self, reader: Connection, table: catalog.Table) -> SnapshotTable:
        """A table to be copied: described as the stream's Relation message will describe it."""
        columns = await catalog.published_columns(reader, table)
        captured = await self.captured(reader, await self._relation(reader, table, columns))
        assert captured is not None  # the caller lists only what the config wants
        names = tuple(name for name, _, _ in columns)
        return SnapshotTable(table, names, captured.encoder, captured.source, captured.sink)

    async def ensure_topics(self, tables: Iterable[catalog.Table]) -> None:
        await self._publisher.ensure_topics([data_topic(self._source.name, t.schema, t.name) for t in tables])

    # Logical messages of users have a topic of the source's own, made when the first one comes.

    def messages(self) -> SourceTemplate:
        return self._template("", "", "")

    async def message_sink(self) -> Sink:
        topic = message_topic(self._source.name)
        await self._publisher.ensure_topics([topic])
        return self._publisher.topic(topic)

    def _template(self, schema: str, table: str, schema_id: str) -> SourceTemplate:
        return SourceTemplate(
            version=streamer.__version__,
            name=self._source.name,
            db=self._database,
            schema=schema,
            table=table,
            schema_id=schema_id,
            epoch=self._epoch,
        )
