"""Backfills by Kafka: asking for one, saying what is wanted of it, reading how far it is.

Owns the IO of the topic `<name>.__backfills` for everybody but the publisher, which writes the progress
inside its own transactions. What the records mean is in streamer.changes.backfill. Any machine that
reaches Kafka may ask; the source's capture does the work.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from streamer.changes.backfill import Request, Run, Runs, Wanted, Wish, keys_key, split_parts
from streamer.changes.topics import backfills_topic
from streamer.kafka import (
    READ_DEADLINE_S,
    Security,
    admin,
    client_options,
    connect,
    kafka_errors,
    offset_ranges,
    read_to_end,
    reader,
    shut,
)
from streamer.publisher.topics import COMPACTED, describe, ensure_topic

TOPIC_CONFIG = COMPACTED
SEND_DEADLINE_S = 20.0  # a restart of Kafka takes 2 to 10 s
FOLLOW_POLL_MS = 100  # how long one look waits for records
FOLLOW_WAIT_MS = 500  # of a broker that has none: it answers at once when one comes


async def ask(
    brokers: str,
    security: Security | None,
    name: str,
    request: Request,
    keys: Iterable[Sequence[Any]] | None = None,
    *,
    replication_factor: int = 1,
) -> Run:
    """Ask for a run, or find that it has been asked for: the run as it is then.

    `keys`: of a keyed run, each a row's key as an envelope holds it, in the order of the key's columns;
    they are durable before the request is. Two who ask with one run id make one run. `request.key_parts`
    is set here.
    """
    parts: list[bytes] = []
    if keys is not None:
        request, parts = split_parts(request, keys)
    async with admin(brokers, security) as client:
        await _ensure(client, name, replication_factor)
    known = (await read_runs(brokers, security, name, source=request.source)).get(request.run)
    if known is not None and known.request is not None:
        return known
    topic = backfills_topic(name)
    async with _producer(brokers, security) as producer:
        with kafka_errors(f"asking for backfill {request.run}", brokers=brokers):
            async with asyncio.timeout(SEND_DEADLINE_S):
                for number, value in enumerate(parts):
                    key = keys_key(request.source, request.run, number)
                    await producer.send_and_wait(topic, value, key=key, partition=0)
                await producer.send_and_wait(topic, request.dump(), key=request.key(), partition=0)
    return Run(request.source, request.run, request)


async def wish(
    brokers: str,
    security: Security | None,
    name: str,
    *,
    source: str,
    run: str,
    wanted: Wanted,
    by: str,
    now_us: int,
) -> None:
    """Pause, cancel or resume (`Wanted.RUN`) a run that is there; its capture does so within a second."""
    word = Wish(wanted, by, now_us)
    async with _producer(brokers, security) as producer:
        with kafka_errors(f"telling backfill {run} to {wanted}", brokers=brokers):
            async with asyncio.timeout(SEND_DEADLINE_S):
                await producer.send_and_wait(
                    backfills_topic(name), word.dump(), key=word.key(source, run), partition=0
                )


async def read_runs(
    brokers: str, security: Security | None, name: str, *, source: str | None = None
) -> dict[str, Run]:
    """Run id -> run, the oldest request first; {} when nobody ever asked. `source`: only its runs."""
    topic = backfills_topic(name)
    async with admin(brokers, security) as client:
        if topic not in await describe(client, [topic]):
            return {}
    return {run.run: run for run in (await _read(brokers, security, topic, source))[0].asked()}


async def _read(brokers: str, security: Security | None, topic: str, source: str | None) -> tuple[Runs, int]:
    """The runs of this moment, a commit just done included (H12), and the offset behind them."""
    place = TopicPartition(topic, 0)
    ranges = await offset_ranges(brokers, security, [place])
    runs = Runs(source)
    records = await read_to_end(brokers, security, ranges, committed=True, deadline_s=READ_DEADLINE_S)
    for record in records:
        runs.take(record.key, record.value)
    return runs, ranges[place][1]


class Follower:
    """A reader that stays: the capture's view of its requests and wishes, or a screen's of a run.

    `runs` is what has been read so far. `next` waits for records and returns the runs that they changed.
    """

    def __init__(self, client: AIOKafkaConsumer, brokers: str, runs: Runs) -> None:
        self._client = client
        self._brokers = brokers
        self.runs = runs

    async def next(self, timeout_ms: int = FOLLOW_POLL_MS) -> list[Run]:
        """The runs that changed; [] when nothing came within the time."""
        changed: dict[tuple[str, str], Run] = {}
        with kafka_errors("following backfills", brokers=self._brokers):
            batches = await self._client.getmany(timeout_ms=timeout_ms)
        for records in batches.values():
            for record in records:
                run = self.runs.take(record.key, record.value)
                if run is not None:
                    changed[run.source, run.run] = run
        return list(changed.values())


@asynccontextmanager
async def follow(
    brokers: str, security: Security | None, name: str, *, source: str | None = None
) -> AsyncIterator[Follower]:
    """A Follower that has read everything up to this moment; the topic must be there."""
    topic = backfills_topic(name)
    runs, next_offset = await _read(brokers, security, topic, source)
    place = TopicPartition(topic, 0)
    async with reader(brokers, security, committed=True, wait_ms=FOLLOW_WAIT_MS) as client:
        client.assign([place])
        client.seek(place, next_offset)
        yield Follower(client, brokers, runs)


async def _ensure(client: AIOKafkaAdminClient, name: str, replication_factor: int) -> None:
    await ensure_topic(client, backfills_topic(name), 1, TOPIC_CONFIG, replication_factor=replication_factor)


@asynccontextmanager
async def _producer(brokers: str, security: Security | None) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        **client_options(brokers, security),
        acks="all",
        enable_idempotence=True,
        max_request_size=2**20,
    )
    try:
        await connect(producer, brokers, security)
        yield producer
    finally:
        await shut(producer.stop)
