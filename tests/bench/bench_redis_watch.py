"""What the Redis capture costs before anything is published: notifications, the full scan, a large zset.

    python -m tests.bench.bench_redis_watch [FILE of a redis-server]

Events per second of our own CPU are counted, since server, writer and reader share the cores. While the
large zset is read, another process asks PING all the time: its worst answers show how long a step blocks.
"""

from __future__ import annotations

import asyncio
import multiprocessing as mp
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop
from redis import Redis

from streamer.redis.connection import RedisConnection, connect
from streamer.redis.gaps import Gaps
from streamer.redis.notifications import KEYS_LIMIT, Watch, ensure_setting, needed_classes
from streamer.redis.reread import Reread
from streamer.redis.scan import full
from streamer.sandbox import ValkeyServer
from tests.bench.figures import Figure, show

KEYS = 200_000
VALUE = b"v" * 200
PIPELINE = 500
MEMBERS = 1_000_000
MEMBERS_A_COMMAND = 2_000
ALONE_S = 1.0  # PINGs before the zset is read: what the machine's other load does to them
EVENTS_FLOOR = 40_000  # a CPU second: 20,000 SET/s cost half a core
SCAN_FLOOR = 50_000  # keys a second
BLOCKED_FLOOR_MS = 5.0


def write_keys(url: str) -> None:
    """KEYS different keys."""
    with Redis.from_url(url) as client:
        for first in range(0, KEYS, PIPELINE):
            pipeline = client.pipeline(transaction=False)
            for n in range(first, first + PIPELINE):
                pipeline.set(f"player:{n:012d}", VALUE)
            pipeline.execute()


def write_zset(url: str) -> None:
    with Redis.from_url(url) as client:
        for first in range(0, MEMBERS, MEMBERS_A_COMMAND):
            numbers = range(first, first + MEMBERS_A_COMMAND)
            client.zadd("board", {f"member:{n:08d}": n * 1.37 for n in numbers})


def ping(url: str, end: Connection) -> None:
    """PING until told to stop; sends (when, round trip in milliseconds)."""
    with Redis.from_url(url) as client:
        client.ping()
        end.send(None)
        taken_ms = []
        while not end.poll():
            began = time.perf_counter()
            client.ping()
            taken_ms.append((began, (time.perf_counter() - began) * 1000))
        end.send(taken_ms)


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


async def notifications(url: str) -> Figure:
    gaps = Gaps()
    async with connect(url) as line, connect(url) as commands:
        await ensure_setting(commands, needed_classes(["string"]), manage=True)
        watch = Watch(line, {0: [b"player:*"]}, gaps, canary=b"bench", clock_s=time.monotonic)
        await watch.start()
        writer = mp.get_context("spawn").Process(target=write_keys, args=(url,))
        writer.start()
        await watch.wait()
        began, cpu_s = time.perf_counter(), time.process_time()
        taken = 0
        while taken < KEYS:
            await watch.wait()
            taken += len(watch.take(KEYS_LIMIT))
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        await asyncio.to_thread(writer.join)
    assert not gaps.pending
    return Figure(
        "Redis notifications: key events taken per second of our CPU",
        f"{KEYS / cpu_s:,.0f} ({KEYS / seconds:,.0f}/s in this run)",
        "one writer, pipelined SET",
        f">= {EVENTS_FLOOR:,}",
        KEYS / cpu_s >= EVENTS_FLOOR,
    )


async def server_cpu_s(line: RedisConnection) -> float:
    info = dict(text.partition(":")[::2] for text in (await line.command("INFO", "cpu")).decode().split())
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


async def scan(url: str) -> Figure:
    async with connect(url) as line:
        reread = Reread(line)
        server_s = await server_cpu_s(line)
        began, cpu_s = time.perf_counter(), time.process_time()
        count = 0
        async for db, keys in full(line, {0: [b"player:*", b"other:*"]}):
            for state in await reread.read([(db, key) for key in keys]):
                count += len(state.value or b"") == len(VALUE)
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        server_s = await server_cpu_s(line) - server_s
    assert count == KEYS
    return Figure(
        "Redis full scan: keys found and read again per second",
        f"{KEYS / seconds:,.0f} (per CPU second: ours {KEYS / cpu_s:,.0f}, server's {KEYS / server_s:,.0f})",
        "strings of 200 B, two globs",
        f">= {SCAN_FLOOR:,}",
        KEYS / seconds >= SCAN_FLOOR,
    )


async def large_zset(url: str) -> list[Figure]:
    ours, theirs = mp.Pipe()
    pinger = mp.get_context("spawn").Process(target=ping, args=(url, theirs))
    pinger.start()
    await asyncio.to_thread(ours.recv)
    await asyncio.sleep(ALONE_S)
    async with connect(url) as line:
        await line.command("CONFIG", "RESETSTAT")
        server_s = await server_cpu_s(line)
        began, cpu_s = time.perf_counter(), time.process_time()
        count = steps = 0
        async for step in Reread(line).scan_members(0, b"board", "zset"):
            count += len(step.members)
            steps += 1
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
        server_s = await server_cpu_s(line) - server_s
        ours.send(None)
        pings = await asyncio.to_thread(ours.recv)
        await asyncio.to_thread(pinger.join)
        stats = (await line.command("INFO", "latencystats")).decode()
        blocked = stats.partition("usec_zrange:")[2].split()[0]
    assert count >= MEMBERS
    alone_ms = p99([ms for at, ms in pings if at < began])
    beside_ms = p99([ms for at, ms in pings if at >= began])
    p99_ms = float(blocked.partition("p99=")[2].partition(",")[0]) / 1000
    return [
        Figure(
            "zset of 1M members read in steps: the server is blocked by a step, p99",
            f"{p99_ms:.1f} ms (all: {blocked} us)",
            f"PING p99: {beside_ms:.1f} ms beside it, {alone_ms:.1f} ms alone before",
            f"<= {BLOCKED_FLOOR_MS:.0f} ms",
            p99_ms <= BLOCKED_FLOOR_MS,
        ),
        Figure(
            "zset of 1M members read in steps: one pass",
            f"{seconds:.2f} s",
            f"CPU: ours {cpu_s:.2f} s, server's with PINGs {server_s:.2f} s, {steps} steps",
        ),
    ]


def figures(program: Path | None = None) -> list[Figure]:
    with (
        tempfile.TemporaryDirectory() as folder,
        ValkeyServer(Path(folder) / "valkey", settings={"appendonly": "no"}, program=program) as server,
    ):

        async def run() -> list[Figure]:
            found = [await notifications(server.url), await scan(server.url)]
            await asyncio.to_thread(write_zset, server.url)
            return found + await large_zset(server.url)

        return uvloop.run(run())


if __name__ == "__main__":
    show(figures(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
