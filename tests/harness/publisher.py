"""A publisher on a real Kafka, and what a reader of its topics sees."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition

from streamer.changes.position import Position, Stage
from streamer.changes.schema import Column, SchemaRecord
from streamer.kafka import admin, offset_ranges, read_to_end
from streamer.publisher import Publisher, ensure_topic
from streamer.publisher.topics import describe

TOPIC = "shop.public.orders"
CLOSE_LIMIT_S = 15.0  # what ends it are limits of 1 and 2 s, one after the other
ZERO = Position("shop", 0, 1, Stage.STREAMING, "7000", 1, 100)
ORDERS = SchemaRecord("shop", "public", "orders", "d", (Column("id", "bigint", -1, "number", True),))


@dataclass(frozen=True)
class Settings:
    partitions: int = 4
    replication_factor: int = 1
    retention_s: float = 86_400.0
    compression: str = "lz4"
    max_message_bytes: int = 2**20


class Bench:
    """One installation on the test's Kafka; closes the publishers it has made."""

    def __init__(self, brokers: str, name: str) -> None:
        self.brokers = brokers
        self.name = name
        self.topic = f"{name}.{TOPIC}"
        self.made: list[Publisher] = []

    def publisher(self, settings: Settings | None = None, **options: Any) -> Publisher:
        brokers = options.pop("brokers", self.brokers)
        source = options.pop("source", "shop")
        publisher = Publisher(
            brokers, None, name=self.name, source=source, topics=settings or Settings(), **options
        )
        self.made.append(publisher)
        return publisher

    async def open(self, settings: Settings | None = None, **options: Any) -> Publisher:
        publisher = self.publisher(settings, **options)
        await publisher.start()
        await publisher.load()
        await publisher.ensure_topics([self.topic])
        return publisher

    async def records(self, topic: str, *, committed: bool = True) -> list[ConsumerRecord[bytes, bytes]]:
        async with admin(self.brokers, None) as client:
            count = (await describe(client))[topic]
        ranges = await offset_ranges(self.brokers, None, [TopicPartition(topic, p) for p in range(count)])
        return await read_to_end(self.brokers, None, ranges, committed=committed)

    async def values(self) -> list[bytes]:
        return [r.value for r in await self.records(self.topic) if r.value is not None]

    async def remake(self, partitions: int = 4) -> None:
        """Delete the data topic and make it again, as a person might."""
        async with admin(self.brokers, None) as client:
            await client.delete_topics([self.topic])
            await until(lambda: self.missing(self.topic))
            await ensure_topic(client, self.topic, partitions, {})

    async def missing(self, topic: str) -> bool:
        async with admin(self.brokers, None) as client:
            return topic not in await describe(client)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await condition():
            pass


@pytest.fixture
async def bench(kafka: str, kafka_name: str) -> AsyncIterator[Bench]:
    bench = Bench(kafka, kafka_name)
    yield bench
    for publisher in bench.made:
        await publisher.close()


def at(lsn: int) -> Position:
    return replace(ZERO, lsn=lsn)


def key(number: int) -> bytes:
    return b'{"id":%d}' % number
