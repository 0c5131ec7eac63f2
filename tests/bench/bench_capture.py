"""Capture to Kafka against pg_recvlogical on the same WAL, in one run.

    python -m tests.bench.bench_capture

Both are timed from the moment their slot is active to the last row: pg_recvlogical until it has
written it to /dev/null, capture until the position behind it is committed in Kafka. The rows are in
the WAL before either starts.
"""

from __future__ import annotations

import asyncio
import subprocess
import time
from pathlib import Path

import psycopg
from aiokafka import TopicPartition

from streamer.changes.lsn import format_lsn
from streamer.changes.position import Position, Stage, position_key
from streamer.changes.topics import positions_topic
from streamer.kafka import offset_ranges, reader
from streamer.sandbox import PostgresServer, Sandbox
from tests.bench.figures import DDL, ROW, Figure, insert, show
from tests.harness.log import LogChecker
from tests.harness.pipeline import Pipeline, execute

BIG_ROWS = 500_000
SINGLE_ROWS = 200_000
LIMIT_S = 300.0
POLL_S = 0.005
POLL_MS = 20
SHARE_FLOOR = 0.30  # of pg_recvlogical's rows a second
CPU_FLOOR_US = 12.0
SINGLE_FLOOR = 50_000

SINGLES = (
    "DO $$ BEGIN SET synchronous_commit = off; FOR n IN {0}..{1} LOOP"
    f" INSERT INTO bench SELECT {ROW}; COMMIT; END LOOP; END $$"
)


class Bench:
    """A source with two slots on the same WAL, `baseline` and capture's."""

    def __init__(self, folder: Path, postgres: PostgresServer, brokers: str) -> None:
        self._postgres = postgres
        self._pipeline = Pipeline(
            folder, source_url=postgres.url, target_url=postgres.url, brokers=brokers, name="bench"
        )

    async def measure(self) -> list[Figure]:
        async with self._pipeline as pipeline:
            await execute(pipeline.source_url, DDL)
            await self._to_the_end(await pipeline.wal_lsn())
            await pipeline.source_value("SELECT pg_create_logical_replication_slot('baseline', 'pgoutput')")
            await execute(pipeline.source_url, insert(1, BIG_ROWS))
            base_s = await asyncio.to_thread(self._recvlogical, await pipeline.wal_lsn())
            ours_s, cpu_s = await self._to_the_end(await pipeline.wal_lsn())
            await self._check_rows(BIG_ROWS)
            await execute(pipeline.source_url, SINGLES.format(BIG_ROWS + 1, BIG_ROWS + SINGLE_ROWS))
            single_base_s = await asyncio.to_thread(self._recvlogical, await pipeline.wal_lsn())
            single_s, single_cpu_s = await self._to_the_end(await pipeline.wal_lsn())
            await self._check_rows(BIG_ROWS + SINGLE_ROWS)
        share = base_s / ours_s
        cpu_us = cpu_s / BIG_ROWS * 1e6
        single_rate = SINGLE_ROWS / single_s
        return [
            Figure(
                f"capture to Kafka, one transaction of {BIG_ROWS:,} rows",
                f"{BIG_ROWS / ours_s:,.0f} rows/s",
                f"{share:.0%} of pg_recvlogical's {BIG_ROWS / base_s:,.0f} rows/s",
                f">= {SHARE_FLOOR:.0%}",
                share >= SHARE_FLOOR,
            ),
            Figure(
                "the same, CPU",
                f"{cpu_us:.1f} us a row",
                "",
                f"<= {CPU_FLOOR_US:.0f} us",
                cpu_us <= CPU_FLOOR_US,
            ),
            Figure(
                f"capture, {SINGLE_ROWS:,} single-row transactions in the WAL",
                f"{single_rate:,.0f} rows/s, {single_cpu_s / SINGLE_ROWS * 1e6:.1f} us of CPU a row",
                f"{single_base_s / single_s:.0%} of pg_recvlogical's"
                f" {SINGLE_ROWS / single_base_s:,.0f} rows/s",
                f">= {SINGLE_FLOOR:,} rows/s",
                single_rate >= SINGLE_FLOOR,
            ),
        ]

    def _recvlogical(self, end: int) -> float:
        """Seconds of pg_recvlogical from its slot being active to its end at `end`."""
        command = [
            *(str(self._postgres.program("pg_recvlogical")), "-d", self._postgres.url, "--slot", "baseline"),
            *("--start", "-f", "/dev/null", "-o", "proto_version=1"),
            *("-o", f"publication_names={self._pipeline.slot}", "--endpos", format_lsn(end)),
        ]
        with psycopg.connect(self._postgres.url, autocommit=True) as connection:
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while not _active(connection, "baseline") and process.poll() is None:
                time.sleep(POLL_S)
            began = time.monotonic()
            if process.wait(LIMIT_S) != 0:
                raise RuntimeError(f"pg_recvlogical ended with {process.returncode}")
            return time.monotonic() - began

    async def _to_the_end(self, end: int) -> tuple[float, float]:
        """Run capture until its position has passed `end`: (seconds, CPU seconds) with its slot active."""
        pipeline = self._pipeline
        capture = pipeline.start("capture")
        async with await psycopg.AsyncConnection.connect(pipeline.source_url, autocommit=True) as connection:
            while not await _active_async(connection, pipeline.slot):
                if not capture.running:
                    raise RuntimeError(capture.log_tail())
                await asyncio.sleep(POLL_S)
        began, cpu_before = time.monotonic(), capture.cpu_s()
        await self._position(end)
        seconds, cpu_s = time.monotonic() - began, capture.cpu_s() - cpu_before
        await capture.stop()
        return seconds, cpu_s

    async def _position(self, end: int) -> None:
        """Until a committed position record is at or after `end`."""
        partition = TopicPartition(positions_topic(self._pipeline.name), 0)
        key = position_key(self._pipeline.source)
        start = (await offset_ranges(self._pipeline.brokers, None, [partition]))[partition][0]
        async with reader(self._pipeline.brokers, None, committed=True) as consumer:
            consumer.assign([partition])
            consumer.seek(partition, start)
            async with asyncio.timeout(LIMIT_S):
                while True:
                    for record in (await consumer.getmany(partition, timeout_ms=POLL_MS)).get(partition, []):
                        if record.key != key:
                            continue
                        position = Position.load(record.value)
                        # A first copy's position jumps to the end of the WAL without one streamed row.
                        if position.stage is Stage.STREAMING and position.lsn >= end:
                            return

    async def _check_rows(self, rows: int) -> None:
        """A rate of rows that are not in the log would be no rate: each is there, once."""
        checker = LogChecker(
            self._pipeline.brokers, name=self._pipeline.name, source=self._pipeline.source, fold=False
        )
        await checker.read(LIMIT_S)
        report = checker.report()
        if sum(checker.counts.values()) != rows or not report.ok:
            raise RuntimeError(f"{rows:,} rows were to be in the log once: {report}")


def _active(connection: psycopg.Connection[tuple[bool]], slot: str) -> bool:
    row = connection.execute(
        "SELECT active FROM pg_replication_slots WHERE slot_name = %s", [slot]
    ).fetchone()
    return bool(row and row[0])


async def _active_async(connection: psycopg.AsyncConnection[tuple[bool]], slot: str) -> bool:
    query = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"
    row = await (await connection.execute(query, [slot])).fetchone()
    return bool(row and row[0])


def figures() -> list[Figure]:
    with Sandbox(postgres=1, kafka=1, fast=True) as sandbox:
        bench = Bench(Path(sandbox.folder) / "pipeline", sandbox.postgres[0], sandbox.kafka.bootstrap)
        return asyncio.run(bench.measure())


if __name__ == "__main__":
    show(figures())
