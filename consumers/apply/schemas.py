"""Schema records by id, read from `<name>.__schemas` and kept (H29).

A record is written before, and in the Kafka transaction of, the first event that names its id, so
that it is below the topic's high watermark when the event is seen. Records are keyed by the hash of
their content: one of an aborted transaction does no harm, and reading need not wait for markers.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition

from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import schemas_topic
from streamer.errors import FatalError, KafkaUnavailable
from streamer.kafka import READ_DEADLINE_S, Security, kafka_errors, reader
from streamer.resetting import reset_steps

POLL_MS = 50


class SchemaLookup(Protocol):
    async def get(self, schema_id: str, where: str) -> SchemaRecord:
        """Raises FatalError when there is no such record."""


class Schemas:
    """`await get(id)`; the topic is read to its end at open, and on whenever an id is unknown."""

    def __init__(self, brokers: str, security: Security | None, name: str) -> None:
        self._brokers = brokers
        self._security = security
        self._partition = TopicPartition(schemas_topic(name), 0)
        self._known: dict[str, SchemaRecord] = {}
        self._stack = AsyncExitStack()
        self._client: AIOKafkaConsumer | None = None
        self._assigned = False
        self._lock = asyncio.Lock()  # the reader asks for its batch, the keeper for what is parked

    async def open(self) -> None:
        """Raises KafkaUnavailable, ConfigError."""
        await self.close()
        self._client = await self._stack.enter_async_context(
            reader(self._brokers, self._security, committed=False)
        )
        await self._read_on()

    async def close(self) -> None:
        self._client = None
        self._assigned = False
        await self._stack.aclose()

    def known(self, schema_id: str) -> SchemaRecord | None:
        return self._known.get(schema_id)

    def records(self) -> list[SchemaRecord]:
        """All that were read, a table's latest last."""
        return list(self._known.values())

    async def of_source(self, source: str) -> list[SchemaRecord]:
        """Every record of the source, a table's latest last. Raises KafkaUnavailable."""
        async with self._lock:
            await self._read_on()
        return [record for record in self._known.values() if record.source == source]

    async def get(self, schema_id: str, where: str) -> SchemaRecord:
        """Raises FatalError when the id is not there up to the high watermark."""
        if schema_id not in self._known:
            async with self._lock:
                await self._read_on()
        if schema_id not in self._known:
            raise FatalError(
                f"schema record {schema_id} is not in {self._partition.topic}, which is read to its end",
                where=where,
                fix=f"the topic was made again or cleaned: to have the source published again"
                f" {reset_steps('SOURCE')}; the topic must keep cleanup.policy=compact",
            )
        return self._known[schema_id]

    async def _read_on(self) -> None:
        client, partition = self._client, self._partition
        if client is None:
            raise KafkaUnavailable("not connected to Kafka", where=f"kafka {self._brokers}")
        with kafka_errors(f"reading {partition.topic}", brokers=self._brokers):
            async with asyncio.timeout(READ_DEADLINE_S):
                if not self._assigned:
                    if partition.topic not in await client.topics():
                        return
                    client.assign([partition])
                    await client.seek_to_beginning(partition)
                    self._assigned = True
                end = (await client.end_offsets([partition]))[partition]
                while await client.position(partition) < end:
                    for records in (await client.getmany(timeout_ms=POLL_MS)).values():
                        for record in records:
                            if record.value is not None:
                                schema = SchemaRecord.load(record.value)
                                self._known.pop(schema.id, None)  # the one that was written last is last
                                self._known[schema.id] = schema
