"""Commit in the source to commit in the target, at 2,000 rows a second in small transactions.

    python -m tests.bench.bench_latency

Measured by the two servers, not by Tailrace: both keep commit timestamps, and a row's xmin names the
transaction that wrote it. Source and target run on one machine, so they share a clock.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psycopg

from streamer.sandbox import Sandbox
from tests.bench.figures import DDL, Figure, insert, show
from tests.harness.pipeline import TARGET_SCHEMA, Pipeline, execute

ROWS_PER_S = 2_000
ROWS_A_TRANSACTION = 5
CONNECTIONS = 2
SECONDS = 15.0
WARM_UP_S = 3.0  # first rows compile plans and fill caches
P50_FLOOR_MS = 15.0
P99_FLOOR_MS = 60.0

COMMITS = "SELECT id, extract(epoch FROM pg_xact_commit_timestamp(xmin)) FROM {} WHERE id > %s"


async def load(url: str, number: int) -> None:
    """Every CONNECTIONS-th transaction of the run, each at its own moment."""
    period_s = ROWS_A_TRANSACTION / ROWS_PER_S
    began = time.monotonic()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for turn in range(number, int(SECONDS / period_s), CONNECTIONS):
            await asyncio.sleep(max(0.0, began + turn * period_s - time.monotonic()))
            first = 1 + turn * ROWS_A_TRANSACTION
            await connection.execute(insert(first, first + ROWS_A_TRANSACTION - 1).encode())


def commit_times(url: str, table: str) -> dict[int, float]:
    """id -> commit time of the transaction that wrote the row, without the warm-up."""
    with psycopg.connect(url) as connection:
        rows = connection.execute(COMMITS.format(table).encode(), [int(WARM_UP_S * ROWS_PER_S)])
        return {key: float(at) for key, at in rows}


async def measure(folder: Path, source_url: str, target_url: str, brokers: str) -> list[Figure]:
    await execute(source_url, DDL, insert(0, 0))  # one row, so that the table is in the target beforehand
    async with Pipeline(
        folder, source_url=source_url, target_url=target_url, brokers=brokers, name="latency"
    ) as pipeline:
        await pipeline.start_both()
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(CONNECTIONS):
                group.create_task(load(source_url, number), name=f"load {number}")
        seconds = time.monotonic() - began
        await pipeline.equal()
        committed, arrived = (
            commit_times(source_url, "bench"),
            commit_times(target_url, f"{TARGET_SCHEMA}.bench"),
        )
    waits_ms = sorted((arrived[key] - at) * 1000 for key, at in committed.items())
    p50, p99 = (waits_ms[int(len(waits_ms) * share)] for share in (0.50, 0.99))
    rate = SECONDS * ROWS_PER_S / seconds
    work = f"commit to target row, {ROWS_PER_S:,} rows/s in transactions of {ROWS_A_TRANSACTION}"
    compared = f"{len(waits_ms):,} rows at {rate:,.0f} rows/s"
    return [
        Figure(f"{work}, p50", f"{p50:.1f} ms", compared, f"<= {P50_FLOOR_MS:.0f} ms", p50 <= P50_FLOOR_MS),
        Figure(f"{work}, p99", f"{p99:.1f} ms", compared, f"<= {P99_FLOOR_MS:.0f} ms", p99 <= P99_FLOOR_MS),
    ]


def figures() -> list[Figure]:
    with Sandbox(postgres=2, kafka=1, fast=True) as sandbox:
        source, target = sandbox.postgres
        folder = Path(sandbox.folder) / "pipeline"
        return asyncio.run(measure(folder, source.url, target.url, sandbox.kafka.bootstrap))


if __name__ == "__main__":
    show(figures())
