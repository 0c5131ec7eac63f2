"""Apply's throughput: rows in Kafka to rows in Postgres, against the same rows by bare COPY and merge.

    python -m tests.bench.bench_apply [--rows 500000]

Both write the same 8-column rows into the same server, in batches of the same size, over existing rows
(upserts) and into an empty table. Bare: COPY into a temporary table, INSERT ... ON CONFLICT from there.
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import time
import uuid
from typing import Any

import orjson
import psycopg
import uvloop

from streamer.sandbox import Sandbox
from tests.bench.figures import Figure, show
from tests.harness.feeder import Feeder, Row, Running, Table, applying, config_of

BATCH_ROWS = 10_000
FLUSH_ROWS = 20_000
PARTITIONS = 4
FLOOR = 0.5  # of the bare merge's rows/s

COLUMNS = [
    ("id", "bigint", "number"),
    ("customer", "integer", "number"),
    ("sku", "text", "text"),
    ("quantity", "integer", "number"),
    ("price", "numeric(12,2)", "numeric"),
    ("note", "text", "text"),
    ("paid", "boolean", "bool"),
    ("at", "timestamp with time zone", "timestamptz"),
]
NAMES = [name for name, _, _ in COLUMNS]


def row(n: int) -> Row:
    return {
        "id": n,
        "customer": n % 5000,
        "sku": f"SKU-{n % 777:05d}",
        "quantity": n % 9 + 1,
        "price": f"{n % 1000}.{n % 100:02d}",
        "note": f"the note of order number {n}, in some words",
        "paid": n % 2 == 0,
        "at": f"2026-11-22T05:{n % 60:02d}:20.{n % 1000000:06d}Z",
    }


def bare(url: str, rows: int) -> tuple[float, float]:
    """Rows/s of plain inserts and of upserts."""
    rates = []
    keys = ", ".join(f'"{name}" {kind}' for name, kind, _ in COLUMNS)
    names = ", ".join(f'"{name}"' for name in NAMES)
    sets = ", ".join(f'"{name}" = excluded."{name}"' for name in NAMES[1:])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE bare ({keys}, PRIMARY KEY (id))")
        connection.execute(f"CREATE TEMP TABLE stage ({keys}) ON COMMIT DELETE ROWS")
        for _ in range(2):
            spent = 0.0
            for start in range(0, rows, BATCH_ROWS):
                lines = [
                    "\t".join(map(str, row(n).values())) for n in range(start, min(start + BATCH_ROWS, rows))
                ]
                data = "\n".join(lines) + "\n"
                began = time.perf_counter()
                with connection.transaction(), connection.cursor() as cursor:
                    with cursor.copy(f"COPY stage ({names}) FROM STDIN") as copy:
                        copy.write(data)
                    cursor.execute(
                        f"INSERT INTO bare SELECT * FROM stage ON CONFLICT (id) DO UPDATE SET {sets}",
                        prepare=True,
                    )
                spent += time.perf_counter() - began
            rates.append(rows / spent)
    return rates[0], rates[1]


async def publish(feeder: Feeder, table: Table, rows: int, lsn: int) -> None:
    template = table._template(lsn)
    for start in range(0, rows, FLUSH_ROWS):
        for n in range(start, min(start + FLUSH_ROWS, rows)):
            after = row(n)
            table.raw(table.key_of(after), template.create(orjson.dumps(after), lsn, n))
        await feeder.flush()


async def rate(url: str, run: Running, already: int, rows: int) -> tuple[float, float, float]:
    """(rows/s, us of CPU a row, MB) of the next `rows` records, beyond those that the target has `already`.

    From the first batch in the target on: joining the group, or noticing a replay, is no part of it.
    """
    first, began, before = 0, 0.0, resource.getrusage(resource.RUSAGE_SELF)
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        while True:
            try:
                query = "SELECT sum(next_offset) FROM _tailrace.checkpoints"
                at = await (await connection.execute(query)).fetchone()
            except psycopg.errors.UndefinedTable:
                at = None
            done = int(at[0]) if at and at[0] else 0
            if not first and done > already:
                first, began = done, time.perf_counter()
                before = resource.getrusage(resource.RUSAGE_SELF)
            if done >= already + rows:
                break
            if run.task.done():
                run.task.result()
            await asyncio.sleep(0.02)
    spent = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    counted = already + rows - first
    return counted / spent, cpu / counted * 1e6, after.ru_maxrss / 1024


async def measure(brokers: str, url: str, rows: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with Feeder(brokers, f"b{uuid.uuid4().hex[:8]}") as feeder:
        table = await feeder.table("orders", COLUMNS, partitions=PARTITIONS)
        config = config_of(feeder, url)
        for name, lsn in (("into an empty table", 100), ("upserts", 200)):
            await publish(feeder, table, rows, lsn)
            already = rows * (lsn // 100 - 1)
            async with applying(config) as run:
                found[name] = await rate(url, run, already, rows)
                await run.stop()
    return found


def figures(rows: int = 500_000) -> list[Figure]:
    with Sandbox(postgres=1, kafka=1, fast=True) as sandbox:
        urls = sandbox.urls()
        url, brokers = urls["postgres"][0], urls["kafka"]
        bases = dict(zip(("into an empty table", "upserts"), bare(url, rows), strict=True))
        found = uvloop.run(measure(brokers, url, rows))
    shown = []
    for name, (rate, cpu_us, rss_mb) in found.items():
        base = bases[name]
        shown.append(
            Figure(
                f"apply {name}, {rows:,} rows in Kafka",
                f"{rate:,.0f} rows/s, {cpu_us:.1f} us of CPU a row, {rss_mb:.0f} MB",
                f"{rate / base:.0%} of bare COPY + INSERT ON CONFLICT, {base:,.0f} rows/s",
                f">= {FLOOR:.0%}" if name == "upserts" else "",
                rate >= FLOOR * base if name == "upserts" else None,
            )
        )
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    found = figures(parser.parse_args().rows)
    show(found)
    raise SystemExit(0 if all(figure.held is not False for figure in found) else 1)


if __name__ == "__main__":
    main()
