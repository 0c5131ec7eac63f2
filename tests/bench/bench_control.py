"""What looking costs with 200 flows: a status, the page's frame, a sample of all, and the whole command.

    python -m tests.bench.bench_control

Two processes' heartbeats with 200 flows of four partitions each, in a real Kafka; the control database is a
SQLite file, filled with seven days of samples before its size is taken.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import yaml
from sqlalchemy import insert

from consumers import views
from consumers.control.database import Database
from consumers.control.downsample import TIERS, Sample
from consumers.control.lease import Lease
from consumers.control.samples import FINEST, Samples, flows, samples
from consumers.dashboard import frames
from streamer.config import Config, load
from streamer.sandbox import Sandbox
from streamer.status import State, StatusRecord, StatusWriter, now_us, read_status
from tests.bench.figures import Figure, show

FLOWS = 200
PARTITIONS = 4
BUILDS = 30
STEPS = 180  # half an hour: three of the coarsest steps are made
COMMANDS = 7
LIMIT_COMMAND_MS = 500
LIMIT_FRAME_BYTES = 50_000
LIMIT_WRITE_MS = 20
NOW_S = 1_800_000_000


def config_of(folder: Path, brokers: str) -> Config:
    names = [f"orders_{number:03}" for number in range(FLOWS)]
    text = {
        "name": f"bench{random.SystemRandom().randrange(10**9)}",
        "kafka": {"brokers": brokers},
        "sources": {
            "shop": {"kind": "postgres", "url": "postgresql://u@h/shop", "tables": {"public.*": {}}},
        },
        "targets": {"warehouse": {"kind": "postgres", "url": "postgresql://u@h/warehouse"}},
        "flows": {n: {"from": f"shop.public.{n}", "to": f"warehouse.mirror.{n}"} for n in names},
    }
    path = folder / "tailrace.yaml"
    path.write_text(yaml.safe_dump(text), encoding="utf-8")
    return load(path, environ={})


def capture_detail(config: Config) -> dict[str, Any]:
    tables = {flow.source_pattern.partition(".")[2]: {"captured": 1000} for flow in config.flows.values()}
    return {
        "epoch": 1,
        "lsn": 0x1_00000010,
        "lag_bytes": 0,
        "lag_s": 0.0,
        "published": 200_000,
        "rate": 300.0,
        "tables": tables,
        "slot": {"wal_bytes": 100, "active": True},
        "findings": [],
        "snapshot": None,
    }


def apply_detail(config: Config) -> dict[str, Any]:
    latency = {
        f"{stage}p{share}": 5.25 for stage in ("", "capture_", "kafka_", "apply_") for share in (50, 99)
    }
    found: dict[str, Any] = {}
    for name, flow in config.flows.items():
        places = [
            {
                "topic": flow.source_pattern,
                "partition": partition,
                "offset": 100_000,
                "end": 100_010,
                "lag_records": 10,
                "lag_s": 0.51,
            }
            for partition in range(PARTITIONS)
        ]
        found[name] = {
            "state": "OK",
            "reason": "",
            "applied": 1000,
            "guarded": 0,
            "parked": 0,
            "waiting": 0,
            "rate": 12.3,
            "lag_records": 40,
            "lag_s": 0.51,
            "latency_ms": latency,
            "partitions": places,
        }
    return {"flows": found}


async def beaten(config: Config, work: Callable[[], None]) -> list[StatusRecord]:
    """The heartbeats of a capture and an apply, while `work` is done beside them."""
    details = {"capture": ("shop", capture_detail(config)), "apply": ("warehouse", apply_detail(config))}
    writers = []
    for kind, (name, detail) in details.items():
        writer = StatusWriter(
            config.kafka.brokers, None, config.name, kind=kind, part_name=name, replication_factor=1
        )
        writer.update(state=State.STREAMING, detail=detail)
        writers.append(writer)
    async with writers[0], writers[1]:
        records: list[StatusRecord] = []
        while len(records) < len(writers):
            records = await read_status(config.kafka.brokers, None, config.name)
        await asyncio.to_thread(work)
        return await read_status(config.kafka.brokers, None, config.name)


def commands(config: Config) -> list[float]:
    """Milliseconds of `tailrace status --json`, from the start of its process to its end."""
    words = [sys.executable, "-m", "consumers", "status", "--json", "-c", str(config.path)]
    found = []
    for _ in range(COMMANDS):
        began = time.perf_counter()
        done = subprocess.run(words, capture_output=True, timeout=60, check=False)
        found.append((time.perf_counter() - began) * 1e3)
        assert len(orjson.loads(done.stdout)["flows"]) == FLOWS
    return found


def built(config: Config, records: list[StatusRecord]) -> tuple[list[float], int]:
    """Milliseconds of a status, and the bytes of its frame."""
    found = []
    for _ in range(BUILDS):
        began = time.perf_counter()
        status = views.build(config, records, now_us(), {})
        found.append((time.perf_counter() - began) * 1e3)
    frame = frames.snapshot(
        status, jobs=[], events=[], enabled=True, scheduler="host-1", admin=True, wal_rates={"shop": 1.0}
    )
    return found, len(orjson.dumps(frame, option=orjson.OPT_NON_STR_KEYS))


def sampled(config: Config) -> tuple[list[float], float, list[float]]:
    """(ms of a write, MB of seven days, ms of reading a flow's week)."""
    database = Database(config)
    with closing(database):
        lease = Lease(database, "jobs", "bench")
        lease.open()
        assert lease.beat()
        past = Samples(database)
        past.open()
        fill(database, list(config.flows))
        writes = []
        for step in range(STEPS):
            at_s = NOW_S + step * FINEST.step_s
            made = {flow: sample(at_s) for flow in config.flows}
            began = time.perf_counter()
            past.write(lease, made, at_s)
            writes.append((time.perf_counter() - began) * 1e3)
        size = sum(file.stat().st_size for file in (config.base / ".tailrace").iterdir())
        reads = []
        for flow in list(config.flows)[:BUILDS]:
            began = time.perf_counter()
            past.history(flow, (NOW_S - TIERS[-1].kept_s) * 10**6, 500, NOW_S * 10**6)
            reads.append((time.perf_counter() - began) * 1e3)
    return writes, size / 1e6, reads


def sample(at_s: int) -> Sample:
    pick = random.randrange
    return Sample(
        at_s, pick(3000), pick(9000), pick(90_000), pick(900_000), pick(50_000) / 10, pick(9999), "OK"
    )


def fill(database: Database, names: list[str]) -> None:
    with database.begin() as connection:
        rows = [{"number": at + 1, "flow": name, "seen_s": NOW_S} for at, name in enumerate(names)]
        connection.execute(insert(flows), rows)
        for tier in TIERS:
            for at_s in range(NOW_S - tier.kept_s, NOW_S, tier.step_s):
                figures = sample(at_s)
                row = {name: getattr(figures, name) for name in Sample.__slots__} | {"step_s": tier.step_s}
                connection.execute(insert(samples), [row | {"flow": at + 1} for at in range(len(names))])


def figures() -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder, Sandbox(kafka=1, fast=True) as sandbox:
        config = config_of(Path(folder), sandbox.kafka.bootstrap)
        took: list[float] = []
        records = asyncio.run(beaten(config, lambda: took.extend(commands(config))))
        builds, frame_bytes = built(config, records)
        writes, size_mb, reads = sampled(config)
    command_ms, write_ms = statistics.median(took), statistics.median(writes)
    return [
        Figure(
            f"`status --json`, {FLOWS} flows, whole command",
            f"{command_ms:.0f} ms",
            floor=f"< {LIMIT_COMMAND_MS} ms",
            held=command_ms < LIMIT_COMMAND_MS,
        ),
        Figure(f"status of {FLOWS} flows, without Kafka", f"{statistics.median(builds):.1f} ms"),
        Figure(
            f"frame of the page, {FLOWS} flows",
            f"{frame_bytes / 1000:.1f} kB",
            floor=f"< {LIMIT_FRAME_BYTES // 1000} kB",
            held=frame_bytes < LIMIT_FRAME_BYTES,
        ),
        Figure(
            f"samples of {FLOWS} flows, a step each {FINEST.step_s} s",
            f"p50 {write_ms:.1f} ms, p99 {statistics.quantiles(writes, n=100)[98]:.1f} ms",
            f"{size_mb:.0f} MB for seven days",
            f"< {LIMIT_WRITE_MS} ms",
            write_ms < LIMIT_WRITE_MS,
        ),
        Figure("seven days of one flow, read", f"{statistics.median(reads):.1f} ms"),
    ]


if __name__ == "__main__":
    show(figures())
