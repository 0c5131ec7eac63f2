"""A backfill beside a stream: its rows a second, and what it does to the stream's latency.

    python -m tests.bench.bench_backfill [ROWS]

Latency is from a row's own time in the source to the moment when a read_committed consumer has its event;
source, Kafka, capture, load and consumer share the machine and its clock. The load writes to a table of its
own, before the backfill and during it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import orjson
import psycopg
from aiokafka import TopicPartition

from streamer.backfills import ask, follow
from streamer.changes.backfill import Request, State
from streamer.changes.topics import data_topic
from streamer.kafka import admin, offset_ranges, reader
from streamer.publisher.topics import describe
from streamer.sandbox import Sandbox
from tests.bench.figures import DDL, Figure, insert, show
from tests.harness.pipeline import Pipeline, execute

ROWS = 2_000_000
ROWS_PER_S = 2_000
ROWS_A_TRANSACTION = 5
CONNECTIONS = 2
ALONE_S = 15.0
WARM_UP_S = 3.0
LIMIT_S = 600.0
POLL_MS = 20
RATE_FLOOR = 40_000
LATENCY_FLOOR = 3.0  # times the p99 without a backfill

LOADED = "CREATE TABLE loaded (id bigint PRIMARY KEY, at_us bigint)"
LOAD = (
    "INSERT INTO loaded SELECT n, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    " FROM generate_series({}, {}) n"
)


class Stream:
    """The load, and when each of its rows was read."""

    def __init__(self, url: str, brokers: str, topic: str) -> None:
        self._url = url
        self._brokers = brokers
        self._topic = topic
        self._stop = asyncio.Event()
        self.written = 0
        self.waits: list[tuple[float, float]] = []  # (when it was read, ms)

    async def load(self, number: int) -> None:
        period_s = ROWS_A_TRANSACTION / ROWS_PER_S * CONNECTIONS
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            next_s = time.monotonic()
            while not self._stop.is_set():
                next_s += period_s
                await asyncio.sleep(max(0.0, next_s - time.monotonic()))
                first = self.written + 1
                self.written += ROWS_A_TRANSACTION
                await connection.execute(LOAD.format(first, self.written).encode())

    async def read(self) -> None:
        async with admin(self._brokers, None) as client:
            count = (await describe(client))[self._topic]
        places = [TopicPartition(self._topic, n) for n in range(count)]
        ranges = await offset_ranges(self._brokers, None, places)
        async with reader(self._brokers, None, committed=True) as consumer:
            consumer.assign(places)
            for place in places:
                consumer.seek(place, ranges[place][1])
            while not self._stop.is_set():
                batches = await consumer.getmany(timeout_ms=POLL_MS)
                now_s = time.time()
                for records in batches.values():
                    for record in records:
                        at_us = orjson.loads(record.value)["after"]["at_us"]
                        self.waits.append((now_s, now_s * 1e3 - at_us / 1e3))

    def stop(self) -> None:
        self._stop.set()

    def p99_ms(self, from_s: float, to_s: float) -> float:
        waits = sorted(wait for at, wait in self.waits if from_s <= at <= to_s)
        return waits[int(len(waits) * 0.99)]


async def measure(folder: Path, url: str, brokers: str, rows: int) -> list[Figure]:
    await execute(url, DDL, LOADED, LOAD.format(0, 0), insert(1, rows), "ANALYZE bench")
    async with Pipeline(
        folder,
        source_url=url,
        target_url=url,
        brokers=brokers,
        name="backfill",
        source={"snapshot": {"mode": "never"}},
    ) as pipeline:
        pipeline.start("capture")
        await pipeline.state("capture", "streaming")
        stream = Stream(url, brokers, data_topic(pipeline.source, "public", "loaded"))
        async with asyncio.TaskGroup() as tasks:
            for number in range(CONNECTIONS):
                tasks.create_task(stream.load(number))
            tasks.create_task(stream.read())
            await asyncio.sleep(WARM_UP_S)
            alone_s = time.time()
            await asyncio.sleep(ALONE_S)
            began_s = time.time()
            seconds = await _backfill(pipeline, brokers, rows)
            ended_s = time.time()
            stream.stop()
    alone_ms, beside_ms = stream.p99_ms(alone_s, began_s), stream.p99_ms(began_s, ended_s)
    rate, times = rows / seconds, beside_ms / alone_ms
    load = f"while {ROWS_PER_S:,} rows/s stream"
    return [
        Figure(
            f"backfill of {rows:,} rows {load}",
            f"{rate:,.0f} rows/s",
            "",
            f">= {RATE_FLOOR:,} rows/s",
            rate >= RATE_FLOOR,
        ),
        Figure(
            "streaming latency to Kafka meanwhile, p99",
            f"{beside_ms:.1f} ms",
            f"{times:.1f} times {alone_ms:.1f} ms without it",
            f"<= {LATENCY_FLOOR:.0f} times",
            times <= LATENCY_FLOOR,
        ),
    ]


async def _backfill(pipeline: Pipeline, brokers: str, rows: int) -> float:
    """Seconds from the request to the run's last record."""
    name, source = pipeline.name, pipeline.source
    async with follow(brokers, None, name, source=source) as follower:
        request = Request("bench", source, schema="public", table="bench", asked_us=time.time_ns() // 1000)
        began = time.monotonic()
        await ask(brokers, None, name, request)
        async with asyncio.timeout(LIMIT_S):
            while True:
                for run in await follower.next():
                    if run.state.over and run.progress is not None:
                        assert (run.state, run.progress.rows) == (State.DONE, rows), run.progress
                        return time.monotonic() - began


def figures(rows: int = ROWS) -> list[Figure]:
    with Sandbox(postgres=1, kafka=1, fast=True) as sandbox:
        folder = Path(sandbox.folder) / "pipeline"
        return asyncio.run(measure(folder, sandbox.postgres[0].url, sandbox.kafka.bootstrap, rows))


if __name__ == "__main__":
    show(figures(int(sys.argv[1]) if len(sys.argv) > 1 else ROWS))
