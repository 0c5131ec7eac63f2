"""What a worker knows of schema records: those of its inputs, by topic, and those of its own derived tables.

A record is in the topic before the first event that names it (H29), so reading to the end when an event comes
with an unknown id, or a column without a type, is enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from consumers.apply.schemas import Schemas
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import data_topic, entity_topic
from streamer.config import Config


class InputSchemas:
    """`inputs` is what Given.schemas holds, `ids` all that were read, `own` of this processor: each grows."""

    def __init__(self, config: Config, name: str, topics: Sequence[str]) -> None:
        self._config = config
        self._name = name
        self._lock = asyncio.Lock()  # tasks work side by side
        self.inputs: dict[str, Sequence[SchemaRecord]] = dict.fromkeys(topics, ())
        self.own: Sequence[SchemaRecord] = ()
        self.ids: set[str] = set()

    async def read(self, wanted: str = "", where: str = "") -> None:
        """All there is now. Raises KafkaUnavailable; FatalError when the `wanted` id is not among them."""
        async with self._lock:
            kafka = self._config.kafka
            schemas = Schemas(kafka.brokers, kafka.security, self._config.name)
            try:
                await schemas.open()
                if wanted:
                    await schemas.get(wanted, where)
                self._take(schemas.records())
            finally:
                await schemas.close()

    def _take(self, records: Sequence[SchemaRecord]) -> None:
        """A table's newest comes last."""
        by_topic: dict[str, list[SchemaRecord]] = {topic: [] for topic in self.inputs}
        for record in records:
            for topic in self._topics_of(record):
                if topic in by_topic:
                    by_topic[topic].append(record)
        self.inputs.update(by_topic)
        self.own = [record for record in records if record.source == self._name]
        self.ids.update(record.id for record in records)

    def _topics_of(self, record: SchemaRecord) -> set[str]:
        processor = self._config.processors.get(record.source)
        if processor is not None:
            return {record.table, f"{processor.out}.{record.table}"}
        return {
            data_topic(record.source, record.schema, record.table),
            entity_topic(record.source, record.table),
            record.source,
        }
