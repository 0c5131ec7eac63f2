"""The SQLite target's throughput: rows in Kafka to rows in a file, through apply.

    python -m tests.bench.bench_sql [--rows 300000]

The rows have 8 columns, in batches of the default size, into an empty table and over what is there. Compared
with the same rows by sqlite3's executemany alone, without versions and checkpoints, in transactions of the
same size and with the same settings of the file.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import sqlite3
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path

import uvloop

from streamer.config import Config, parse
from streamer.sandbox import Sandbox
from tests.bench.bench_apply import BATCH_ROWS, COLUMNS, NAMES, PARTITIONS, publish, row
from tests.bench.figures import Figure, show
from tests.harness.feeder import Feeder, applying

FLOOR_ROWS_S = 40_000
WORK = ("into an empty table", "upserts")


def bare(file: Path, rows: int) -> dict[str, float]:
    """Rows/s by the kind of work."""
    sets = ", ".join(f"{name} = excluded.{name}" for name in NAMES[1:])
    marks = ", ".join("?" * len(NAMES))
    upsert = f"INSERT INTO bare VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {sets}"
    rates = {}
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        columns = ", ".join(
            f"{name} {'INTEGER' if n in (0, 1, 3, 6) else 'TEXT'}" for n, name in enumerate(NAMES)
        )
        connection.execute(f"CREATE TABLE bare ({columns}, PRIMARY KEY (id))")
        for work in WORK:
            spent = 0.0
            for start in range(0, rows, BATCH_ROWS):
                batch = [tuple(row(n).values()) for n in range(start, min(start + BATCH_ROWS, rows))]
                began = time.perf_counter()
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(upsert, batch)
                connection.execute("COMMIT")
                spent += time.perf_counter() - began
            rates[work] = rows / spent
    return rates


def config_of(feeder: Feeder, file: Path) -> Config:
    text = f"""
name: {feeder.name}
kafka: {{brokers: "{feeder.brokers}"}}
sources:
  {feeder.source}: {{kind: postgres, url: "postgresql://nobody@localhost/none", tables: {{"public.*": {{}}}}}}
targets:
  lite: {{kind: sql, url: "sqlite:///{file}"}}
flows:
  mirror: {{from: "{feeder.source}.public.*", to: lite}}
"""
    return parse(text, file.with_name("tailrace.yaml"), environ={})


def applied(connection: sqlite3.Connection) -> int:
    try:
        return connection.execute("SELECT sum(next_offset) FROM _tailrace_checkpoints").fetchone()[0] or 0
    except sqlite3.OperationalError:
        return 0  # the tables are not there yet


async def run_once(config: Config, file: Path, already: int, rows: int) -> tuple[float, float]:
    """(rows/s, CPU us a row), from the first batch in the target on: joining the group is no part of it."""
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        async with applying(config, target="lite") as run:
            while (first := applied(connection)) <= already:
                if run.task.done():
                    run.task.result()
                await asyncio.sleep(0.01)
            began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            while applied(connection) < already + rows:
                if run.task.done():
                    run.task.result()
                await asyncio.sleep(0.02)
            spent, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
            await run.stop()
    counted = already + rows - first
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return counted / spent, cpu / counted * 1e6


async def measure(brokers: str, folder: Path, rows: int) -> list[Figure]:
    bases = bare(folder / "bare.db", rows)
    file = folder / "copy.db"
    figures = []
    async with Feeder(brokers, f"b{uuid.uuid4().hex[:8]}") as feeder:
        table = await feeder.table("orders", COLUMNS, partitions=PARTITIONS)
        for at, work in enumerate(WORK):
            await publish(feeder, table, rows, 100 * (at + 1))
            # Offsets of commit markers count too: what lies before is where it stands now.
            with closing(sqlite3.connect(file)) as connection:
                already = applied(connection)
            rate, cpu_us = await run_once(config_of(feeder, file), file, already, rows)
            figures.append(
                Figure(
                    f"SQLite {work}, {rows:,} rows in Kafka",
                    f"{rate:,.0f} rows/s, {cpu_us:.1f} us of CPU a row",
                    f"{rate / bases[work]:.0%} of bare executemany, {bases[work]:,.0f} rows/s",
                    f">= {FLOOR_ROWS_S:,} rows/s",
                    rate >= FLOOR_ROWS_S,
                )
            )
    return figures


def figures(rows: int = 300_000) -> list[Figure]:
    with Sandbox(postgres=0, kafka=1, fast=True) as sandbox, tempfile.TemporaryDirectory() as folder:
        return uvloop.run(measure(sandbox.urls()["kafka"], Path(folder), rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300_000)
    found = figures(parser.parse_args().rows)
    show(found)
    raise SystemExit(0 if all(figure.held is not False for figure in found) else 1)


if __name__ == "__main__":
    main()
