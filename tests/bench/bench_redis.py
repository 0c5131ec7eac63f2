"""Redis capture under load: lag of strings and of large sorted sets, and the pace of a full scan.

    python -m tests.bench.bench_redis

Lag is from a value's time of writing, which is in the value itself, to the moment when a reader of the
committed log has its event. Everything runs on this machine at once: the server, the load, Kafka,
capture and the reader.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
import redis.asyncio as aioredis
from aiokafka import TopicPartition

from streamer.changes.topics import entity_topic
from streamer.kafka import offset_ranges, reader
from streamer.sandbox import Sandbox
from tests.bench.figures import Figure, show
from tests.harness.pipeline import Pipeline

STRINGS = 100_000  # keys that the load writes to, again and again
SETS_A_SECOND = 20_000
VALUE_BYTES = 200
ZADDS_A_SECOND = 1_000
LARGE_MEMBERS = 1_000_000
SMALL_MEMBERS = 10_000
SCAN_KEYS = 1_000_000
SCAN_FLOOR = 50_000
LOAD_S = 15.0
POLL_MS = 10
LIMIT_S = 300.0
PARTITIONS = 4

ENTITIES = {
    "strings": {"pattern": "s:{id}", "type": "string"},
    "board": {"pattern": "board:{name}", "type": "zset", "rows": {"member": "user", "score": "points"}},
    "scanned": {"pattern": "k:{id}", "type": "string"},
}


class Lags:
    """Seconds between writing and reading, of events in the log from now on."""

    def __init__(self, brokers: str, topic: str, written_s: Callable[[dict[str, Any]], float]) -> None:
        self._brokers = brokers
        self._topic = topic
        self._written_s = written_s
        self.found: list[float] = []
        self.open = asyncio.Event()

    async def read(self, stop: asyncio.Event) -> None:
        places = [TopicPartition(self._topic, p) for p in range(PARTITIONS)]
        ranges = await offset_ranges(self._brokers, None, places)
        async with reader(self._brokers, None, committed=True) as consumer:
            consumer.assign(places)
            for place in places:
                consumer.seek(place, ranges[place][1])
            self.open.set()
            while not stop.is_set():
                for records in (await consumer.getmany(timeout_ms=POLL_MS)).values():
                    now_s = time.time()
                    for record in records[::10]:
                        if record.value is not None:
                            after = orjson.loads(record.value)["after"]
                            self.found.append(now_s - self._written_s(after))

    def percentile(self, share: float) -> float:
        ordered = sorted(self.found)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


async def paced(a_second: int, batch: int, seconds: float, send: Callable[[int], Awaitable[Any]]) -> float:
    """Call `send(count)` so often that so many a second are sent; how many a second it became."""
    began = time.monotonic()
    sent = 0
    while time.monotonic() - began < seconds:
        await send(batch)
        sent += batch
        ahead_s = sent / a_second - (time.monotonic() - began)
        if ahead_s > 0:
            await asyncio.sleep(ahead_s)
    return sent / (time.monotonic() - began)


class Bench:
    def __init__(self, folder: Path, url: str, brokers: str) -> None:
        self._url = url
        self._brokers = brokers
        self._pipeline = Pipeline(folder, source_url=url, target_url=url, brokers=brokers, name="bench")
        self._pipeline.source = "bench_game"
        self._pipeline.config["sources"] = {"bench_game": {"kind": "redis", "url": url, "entities": ENTITIES}}
        del self._pipeline.config["targets"], self._pipeline.config["flows"]
        self._pipeline.write_config()

    async def measure(self) -> list[Figure]:
        async with self._pipeline as pipeline, aioredis.from_url(self._url) as client:
            await self._fill_boards(client)
            capture = pipeline.start("capture")
            await pipeline.state("capture", "streaming", timeout_s=LIMIT_S)
            found = [await self._strings(client), await self._board(client, "small", SMALL_MEMBERS, 0.3)]
            found.append(await self._board(client, "large", LARGE_MEMBERS, 3.0))
            await client.flushdb()
            await capture.stop()
            found += await self._scan(client)
        return found

    async def _fill_boards(self, client: aioredis.Redis) -> None:
        for name, members in (("small", SMALL_MEMBERS), ("large", LARGE_MEMBERS)):
            for start in range(0, members, 10_000):
                await client.zadd(f"board:{name}", {f"u{n}": n for n in range(start, start + 10_000)})

    async def _strings(self, client: aioredis.Redis) -> Figure:
        filler = "x" * (VALUE_BYTES - 18)
        at = 0

        async def send(count: int) -> None:
            nonlocal at
            now = f"{time.time():017.6f} {filler}"
            async with client.pipeline(transaction=False) as pipe:
                pipe.mset({f"s:{(at + n) * 7919 % STRINGS}": now for n in range(count)})
                at += count
                await pipe.execute()

        lags = Lags(self._brokers, entity_topic("bench_game", "strings"), lambda a: float(a["value"][:17]))
        rate = await self._load(lags, SETS_A_SECOND, 200, send)
        p99 = lags.percentile(0.99)
        return Figure(
            f"Redis to Kafka, strings of {VALUE_BYTES} B at {rate:,.0f} SET/s",
            f"lag p50 {lags.percentile(0.5) * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms",
            "",
            "p99 <= 500 ms",
            p99 <= 0.5,
        )

    async def _board(self, client: aioredis.Redis, name: str, members: int, limit_s: float) -> Figure:
        at = 0

        async def send(count: int) -> None:
            nonlocal at
            await client.zadd(
                f"board:{name}", {f"u{(at + n) * 7919 % members}": time.time() for n in range(count)}
            )
            at += count

        lags = Lags(self._brokers, entity_topic("bench_game", "board"), lambda a: float(a["points"]))
        rate = await self._load(lags, ZADDS_A_SECOND, 10, send)
        p99 = lags.percentile(0.99)
        return Figure(
            f"Redis to Kafka, zset of {members:,} members at {rate:,.0f} ZADD/s",
            f"lag p50 {lags.percentile(0.5) * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms",
            "",
            f"p99 <= {limit_s * 1e3:.0f} ms",
            p99 <= limit_s,
        )

    async def _load(
        self, lags: Lags, a_second: int, batch: int, send: Callable[[int], Awaitable[None]]
    ) -> float:
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(lags.read(stop))
            await lags.open.wait()
            rate = await paced(a_second, batch, LOAD_S, send)
            before = -1
            while len(lags.found) != before:  # until nothing comes any more
                before = len(lags.found)
                await asyncio.sleep(2.0)
            stop.set()
        return rate

    async def _scan(self, client: aioredis.Redis) -> list[Figure]:
        pipeline = self._pipeline
        for start in range(0, SCAN_KEYS, 10_000):
            await client.mset({f"k:{n}": f"value {n}" for n in range(start, start + 10_000)})
        code, text = await pipeline.run("reset", pipeline.source, "--yes")
        assert code == 0, text
        first_s = await self._scanned("first copy")
        again_s = await self._scanned("full scan that heals a gap")
        return [
            Figure(f"Redis, first copy of {SCAN_KEYS:,} keys", f"{SCAN_KEYS / first_s:,.0f} keys/s"),
            Figure(
                f"Redis, full scan of {SCAN_KEYS:,} keys that heals a gap",
                f"{SCAN_KEYS / again_s:,.0f} keys/s",
                "",
                f">= {SCAN_FLOOR:,} keys/s",
                SCAN_KEYS / again_s >= SCAN_FLOOR,
            ),
        ]

    async def _scanned(self, what: str) -> float:
        """Seconds from the scan's begin until all that it found is in Kafka."""
        capture = self._pipeline.start("capture")
        ended: dict[str, Any] = {}

        async def done() -> bool:
            for record in await self._pipeline.status("capture"):
                if record.pid == capture.pid:
                    ended.update(record.detail.get("last_scan") or {})
            return bool(ended)

        await self._pipeline.until(f"the {what} has ended", done, LIMIT_S)
        await capture.stop()
        assert ended["keys"] == SCAN_KEYS
        seconds: float = ended["seconds"]
        return seconds


def figures() -> list[Figure]:
    with Sandbox(valkey=1, kafka=1, fast=True) as sandbox:
        bench = Bench(Path(sandbox.folder) / "pipeline", sandbox.valkey[0].url, sandbox.kafka.bootstrap)
        return asyncio.run(bench.measure())


if __name__ == "__main__":
    show(figures())
