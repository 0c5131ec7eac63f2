"""The Redis target's throughput: rows in Kafka to keys in Valkey, through apply.

    python -m tests.bench.bench_redis_target [--rows 300000]

The rows have 8 columns and are written as hashes, by batches of the default size, into an empty database and
over what is there. Compared with the same HSETs in pipelines of the redis package, without versions. How long
the server was blocked by a batch is what it says itself (INFO commandstats).
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
import uuid
from typing import Any

import uvloop
from redis.asyncio import Redis

from streamer.config import Config
from streamer.sandbox import Sandbox
from tests.bench.bench_apply import COLUMNS, PARTITIONS, publish, row
from tests.bench.figures import Figure, show
from tests.harness.feeder import Feeder, applying
from tests.harness.redis_target import redis_config_of

FLOOR_KEYS_S = 40_000
BARE_KEYS = 1000  # a pipeline


async def bare(client: Redis, rows: int) -> float:
    """Keys/s of HSETs alone."""
    spent = 0.0
    for start in range(0, rows, BARE_KEYS):
        pipeline = client.pipeline(transaction=True)
        for n in range(start, min(start + BARE_KEYS, rows)):
            values = {name: str(value) for name, value in row(n).items()}
            pipeline.hset(f"bare:{n}", mapping=values)
        began = time.perf_counter()
        await pipeline.execute()
        spent += time.perf_counter() - began
    await client.flushdb()
    return rows / spent


async def script_ms(client: Redis) -> tuple[float, int]:
    """(milliseconds of EVALSHA in all, calls)."""
    found: Any = (await client.info("commandstats")).get("cmdstat_evalsha", {"usec": 0, "calls": 0})
    return found["usec"] / 1000, found["calls"]


async def applied(client: Redis) -> int:
    stands = await client.hvals("_tailrace:checkpoints")
    return sum(int(stand.split(b" ", 1)[0]) for stand in stands)


async def run_once(config: Config, client: Redis, already: int, rows: int) -> tuple[float, float, float]:
    """(keys/s, CPU us a key, milliseconds of a batch in the server); from the first batch on."""
    async with applying(config) as run:
        while (first := await applied(client)) <= already:
            if run.task.done():
                run.task.result()
            await asyncio.sleep(0.01)
        began, before, blocked = (
            time.perf_counter(),
            resource.getrusage(resource.RUSAGE_SELF),
            await script_ms(client),
        )
        while await applied(client) < already + rows:
            if run.task.done():
                run.task.result()
            await asyncio.sleep(0.02)
        spent, after, ended = (
            time.perf_counter() - began,
            resource.getrusage(resource.RUSAGE_SELF),
            await script_ms(client),
        )
        await run.stop()
    counted = already + rows - first
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    calls = max(1, ended[1] - blocked[1])
    return counted / spent, cpu / counted * 1e6, (ended[0] - blocked[0]) / calls


async def measure(brokers: str, url: str, rows: int) -> list[Figure]:
    client = Redis.from_url(url, protocol=2)
    figures = []
    async with Feeder(brokers, f"b{uuid.uuid4().hex[:8]}") as feeder:
        base = await bare(client, min(rows, 100_000))
        table = await feeder.table("orders", COLUMNS, partitions=PARTITIONS)
        config = redis_config_of(feeder, url)
        for name, lsn in (("into an empty database", 100), ("over what is there", 200)):
            await publish(feeder, table, rows, lsn)
            rate, cpu_us, ms = await run_once(config, client, rows * (lsn // 100 - 1), rows)
            figures.append(
                Figure(
                    f"Redis target {name}, {rows:,} rows as hashes",
                    f"{rate:,.0f} keys/s, {cpu_us:.1f} us of CPU a key, {ms:.1f} ms of the server a batch",
                    f"{rate / base:.0%} of bare HSET in pipelines, {base:,.0f} keys/s",
                    f">= {FLOOR_KEYS_S:,} keys/s",
                    rate >= FLOOR_KEYS_S,
                )
            )
        names = [key async for key in client.scan_iter(match="_tailrace:rows:*")]
        records = await client.memory_usage(names[0], samples=0)
        hashed = await client.memory_usage("mirror:orders:1", samples=0)
        figures.append(
            Figure(
                "what a version costs in Redis",
                f"{records / rows:.0f} bytes a row",
                f"{hashed} bytes of a row's hash",
            )
        )
    await client.aclose()
    return figures


def figures(rows: int = 300_000) -> list[Figure]:
    with Sandbox(valkey=1, kafka=1, fast=True) as sandbox:
        urls = sandbox.urls()
        return uvloop.run(measure(urls["kafka"], urls["valkey"][0], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    found = figures(parser.parse_args().rows)
    show(found)
    raise SystemExit(0 if all(figure.held is not False for figure in found) else 1)


if __name__ == "__main__":
    main()
