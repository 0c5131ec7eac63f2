"""Changed rows as events, and what the shadow's topic keeps of them: appended together, published together.

Owns the envelope's templates of a Redis source, one an entity and epoch, and the versions given out.
It must not decide what has changed, nor when to flush.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

import streamer
from streamer.changes.envelope import (
    GAP_PREFIX,
    NULL,
    REDIS,
    SNAPSHOT_NO,
    SNAPSHOT_ROW,
    SWEEP_HEADER,
    RowTemplate,
    SourceTemplate,
)
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import bad_topic, entity_topic, message_topic, shadow_topic
from streamer.publisher import OversizeError, Publisher, Topic
from streamer.publisher.batches import RAISE_LIMIT
from streamer.redis.encode import BadValue
from streamer.redis.shadow import Changed
from streamer.redis.shadow_records import dump_key, dump_value
from streamer.redis.versions import Versions

NO_SWEEP: Mapping[str, int] = {}
_NO_HEADERS: list[tuple[str, bytes]] = []


class _Entity(NamedTuple):
    topic: Topic
    record: SchemaRecord
    nulls: bytes  # what a delete's `before` has behind the key


class Events:
    """Appends for one source. `begin` opens an epoch; nothing is appended before."""

    def __init__(
        self,
        name: str,
        source: str,
        publisher: Publisher,
        records: Mapping[str, SchemaRecord],
        *,
        now_us: Callable[[], int],
    ) -> None:
        """`name`: the config's; `records`: by entity."""
        self._name = name
        self._source = source
        self._publisher = publisher
        self._records = dict(records)
        self._now_us = now_us
        self._entities: dict[str, _Entity] = {}
        self._templates: dict[tuple[str, int], SourceTemplate] = {}
        self._shadow: Topic
        self._bad: Topic
        self._messages: Topic
        self.epoch = 0
        self.versions = Versions(0)
        self.published: dict[str, int] = dict.fromkeys(records, 0)  # events appended, by entity
        self.rows_added = 0  # to the shadow, less those taken out
        self.bad: dict[str, int] = {}  # values that could not be used, by entity
        self.bad_last_us: int | None = None  # when the last of them was found

    async def ensure_topics(self) -> None:
        source = self._source
        names = {entity: entity_topic(source, entity) for entity in self._records}
        await self._publisher.ensure_topics([*names.values(), message_topic(source)])
        for entity, record in self._records.items():
            nulls = b"".join(b",%b:null" % orjson.dumps(c.name) for c in record.columns if not c.key)
            self._entities[entity] = _Entity(self._publisher.topic(names[entity]), record, nulls + b"}")
        self._shadow = self._publisher.topic(shadow_topic(self._name, source))
        self._bad = self._publisher.topic(bad_topic(self._name, source))
        self._messages = self._publisher.topic(message_topic(source))

    def begin(self, epoch: int, after_us: int) -> None:
        """From here on events are of this epoch, which is durable already, and later than `after_us`."""
        self.epoch = epoch
        self.versions = Versions(after_us)
        self._templates.clear()
        for record in self._records.values():
            self._publisher.add_schema(record)

    def rows(
        self,
        changes: Sequence[Changed],
        server_us: int,
        *,
        scan: bool,
        sweep: Mapping[str, int] = NO_SWEEP,
    ) -> None:
        """Append what differs, as it was read at `server_us`. Raises OversizeError.

        `scan`: found by a full scan, not by a notification. `sweep`: by entity, how many
        of its rows a reverse pass found gone, of the deletes that it leads to. Rows of an entity that
        is not the config's are remembered in the shadow only.
        """
        try:
            self._append(changes, server_us, scan, sweep)
        except OversizeError as error:
            source = self._source
            fix = (
                f"{RAISE_LIMIT}, or shorten or delete the key, or take its entity out of"
                f" sources.{source}.entities. Until then nothing of {source} is captured, of any entity"
            )
            raise OversizeError(error.topic, error.key, error.size, error.limit, fix=fix) from None

    def _append(
        self, changes: Sequence[Changed], server_us: int, scan: bool, sweep: Mapping[str, int]
    ) -> None:
        templates: dict[tuple[str, int], RowTemplate] = {}
        headers = {entity: [(SWEEP_HEADER, b"%d" % count)] for entity, count in sweep.items()}
        now_us, epoch, remember = self._now_us(), self.epoch, self._shadow.append
        entities, published = self._entities, self.published
        micros, ordinal = self.versions.take(server_us, len(changes))
        for place, row_key, row, digest, was_there in changes:
            value = None if row is None else dump_value(epoch, digest)
            entity = entities.get(place.entity)
            if entity is not None:
                topic, _, nulls = entity
                template = templates.get((place.entity, place.db))
                if template is None:
                    template = self._template(place.entity, place.db).transaction(
                        commit_us=server_us,
                        xid=None,
                        commit_lsn=micros,
                        previous_commit_lsn=None,
                        now_us=now_us,
                        snapshot=SNAPSHOT_ROW if scan else SNAPSHOT_NO,
                    )
                    templates[place.entity, place.db] = template
                if row is None:
                    topic.append(
                        row_key,
                        template.delete(row_key[:-1] + nulls, micros, ordinal),
                        headers.get(place.entity, _NO_HEADERS),
                    )
                    topic.append(row_key, None)
                elif scan:
                    topic.append(row_key, template.read(row, micros, ordinal))
                elif was_there:
                    topic.append(row_key, template.update(NULL, row, micros, ordinal))
                else:
                    topic.append(row_key, template.create(row, micros, ordinal))
                published[place.entity] += 1
                ordinal += 1
            if value is None:
                self.rows_added -= was_there
            elif not was_there:
                self.rows_added += 1
            remember(dump_key(place, row_key), value)

    def floors(self, epoch: int) -> None:
        """The end of a first scan: what only epochs before this one wrote is deleted.

        A target makes the table of an entity without rows by it.
        """
        now_us = self._now_us()
        for entity, (topic, _, _) in self._entities.items():
            template = self._make_template(entity, 0, epoch)
            topic.append(None, template.floor(lsn=self.versions.micros, commit_us=now_us, now_us=now_us))

    def gap(self, content: dict[str, Any]) -> None:
        """Tell the topics' readers that changes may have been missed, or that a scan has found them."""
        now_us = self._now_us()
        micros, ordinal = self.versions.take(self.versions.micros, 1)
        message = self._template("", 0).message(
            GAP_PREFIX,
            orjson.dumps(content),
            lsn=micros,
            ordinal=ordinal,
            commit_us=now_us,
            xid=None,
            commit_lsn=micros,
            previous_commit_lsn=None,
            now_us=now_us,
        )
        self._messages.append(None, message)

    def bad_value(self, bad: BadValue) -> None:
        """A value that its entity cannot use: kept for a person, counted, and passed over."""
        now_us = self.bad_last_us = self._now_us()
        self.bad[bad.entity] = self.bad.get(bad.entity, 0) + 1
        self._bad.append(None, bad.record(now_us))

    def _template(self, entity: str, db: int) -> SourceTemplate:
        template = self._templates.get((entity, db))
        if template is None:
            template = self._templates[entity, db] = self._make_template(entity, db, self.epoch)
        return template

    def _make_template(self, entity: str, db: int, epoch: int) -> SourceTemplate:
        record = self._records.get(entity)
        return SourceTemplate(
            version=streamer.__version__,
            connector=REDIS,
            name=self._source,
            db=str(db),
            schema=self._source if record is not None else "",
            table=entity,
            schema_id=record.id if record is not None else "",
            epoch=epoch,
        )
