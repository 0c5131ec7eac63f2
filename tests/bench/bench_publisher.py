"""What the publisher costs: CPU and time a record, and milliseconds a small flush.

python -m tests.bench.bench_publisher [BROKERS]     (without BROKERS: a sandbox Kafka of its own)
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time
import uuid
from dataclasses import dataclass, replace

from streamer.changes.position import Position, Stage
from streamer.publisher import Publisher
from streamer.sandbox import Sandbox

RECORDS = 100_000  # well above what one flush takes in life, to average out the start
ROUNDS = 3
SMALL_FLUSHES = 300
WARM_UP_FLUSHES = 50


@dataclass(frozen=True)
class Settings:
    partitions: int = 4
    replication_factor: int = 1
    retention_s: float = 3600.0
    compression: str = "lz4"
    max_message_bytes: int = 8 * 2**20


def rows(count: int) -> list[tuple[bytes, bytes]]:
    """Envelopes of about 500 bytes, alike but not equal, as a table's rows are."""
    pick = random.Random(7)
    made = []
    for n in range(count):
        text = b"%032x" % pick.getrandbits(128)
        made.append(
            (
                b'{"id":%d}' % n,
                b'{"before":null,"after":{"id":%d,"name":"customer %d","token":"%b",'
                b'"email":"%d@example.com"},"source":{"version":"0.1.0","connector":"postgresql","name":"shop","ts_ms":1795312202485,'
                b'"snapshot":"false","db":"shop","schema":"public","table":"customers","txId":%d,"lsn":%d,'
                b'"xmin":null,"origin":null,"origin_lsn":null,"epoch":1,"commit_lsn":%d,"ordinal":%d,'
                b'"schema_id":"0123456789abcdef"},"transaction":null,"op":"c","ts_ms":1795312202495,'
                b'"ts_us":1795312202495163,"ts_ns":1795312202495163149}'
                % (n, n, text, n, 700 + n, 25919648 + n, 25919700, n),
            )
        )
    return made


async def measure(brokers: str) -> None:
    name = f"bench{uuid.uuid4().hex[:8]}"
    topic = f"{name}.public.customers"
    publisher = Publisher(brokers, None, name=name, source="shop", topics=Settings())
    started = time.perf_counter()
    await publisher.start()
    await publisher.load()
    await publisher.ensure_topics([topic])
    print(f"start + load + topics     {time.perf_counter() - started:8.3f} s")
    position = Position("shop", 0, 1, Stage.STREAMING, "7000", 1, 100)
    handle = publisher.topic(topic)

    data = rows(RECORDS)
    size = sum(len(k) + len(v) for k, v in data) / RECORDS
    for _ in range(ROUNDS):
        append = handle.append
        started, cpu = time.perf_counter(), time.process_time()
        for key, value in data:
            append(key, value)
        appended_cpu = time.process_time() - cpu
        await publisher.flush(position)
        took, cpu = time.perf_counter() - started, time.process_time() - cpu
        print(
            f"{RECORDS:,} records of {size:.0f} B {RECORDS / took:10,.0f} records/s   "
            f"{cpu / RECORDS * 1e6:.2f} us CPU a record (append {appended_cpu / RECORDS * 1e6:.2f})"
        )

    for count in (0, 1, 20):
        times: list[float] = []
        cpu = 0.0
        for number in range(WARM_UP_FLUSHES + SMALL_FLUSHES):
            for key, value in data[:count]:
                handle.append(key, value)
            if number == WARM_UP_FLUSHES:
                cpu = time.process_time()
            started = time.perf_counter()
            await publisher.flush(replace(position, lsn=200 + number))
            times.append(time.perf_counter() - started)
        cpu = (time.process_time() - cpu) / SMALL_FLUSHES
        times = times[WARM_UP_FLUSHES:]
        print(
            f"flush of {count:2} records       p50 {statistics.median(times) * 1e3:6.2f} ms   "
            f"p99 {statistics.quantiles(times, n=100)[98] * 1e3:6.2f} ms   CPU {cpu * 1e3:.2f} ms"
        )
    await publisher.close()


def main() -> None:
    if len(sys.argv) > 1:
        asyncio.run(measure(sys.argv[1]))
        return
    with Sandbox(fast=True) as sandbox:
        asyncio.run(measure(sandbox.add_kafka().start().bootstrap))


if __name__ == "__main__":
    main()
