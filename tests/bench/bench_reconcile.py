"""Throughput of a comparison, from the plan to the last digest, without the fence's waits.

    python -m tests.bench.bench_reconcile [--rows 2000000]
    python -m tests.bench --full reconcile      ten million rows

Two PostgreSQL servers with the same table of 8 columns: an equal run beside a bare parallel sum of
hash_record_extended over both tables at once, and a run with scattered faults, one in 100,000 rows. Then
PostgreSQL and a SQLite file. Control database, Kafka and the fence are left out: they cost the same whatever
the rows.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path

import psycopg

from consumers.reconcile.fence import Judged
from consumers.reconcile.origins.postgres import describe_table
from consumers.reconcile.proof import Limits, Progress, Proof, make_plan
from consumers.reconcile.sides import postgres, sqlite
from consumers.reconcile.sides.base import Key
from consumers.reconcile.stores.base import Store
from consumers.reconcile.stores.postgres import PostgresStore
from consumers.reconcile.stores.sqlite import SqliteStore
from consumers.reconcile.tables import Sides, make_sides
from streamer.config import Flow, parse
from streamer.postgres.catalog import find_table
from streamer.sandbox import Sandbox
from tests.bench.bench_digest import AS_KEPT
from tests.bench.figures import DDL, Figure, insert, show

ROWS = 2_000_000  # a minute, most of it to fill both servers
FULL_ROWS = 10_000_000
REPEATS = 2
LITE_ROWS = 300_000
ROWS_A_FAULT = 100_000  # scattered: a hundred in ten million rows
FLOOR_OF_BARE = 0.60
FLOOR_MIXED_ROWS_S = 150_000
LIMIT_OF_FAULTS = 1.5
LIMIT_BYTES_A_ROW = 1.0
MOMENT = "timestamptz '2026-11-22 13:51:30.123456+00'"
BARE = "SELECT sum(hash_record_extended(t, 1)) FROM bench t"
CONFIG = """
name: bench
sources: {shop: {kind: postgres, url: "postgresql://u@h/d", tables: {"public.*": {}}}}
targets: {copy: {kind: postgres, url: "postgresql://u@h/d"}}
flows: {mirror: {from: shop.public.*, to: copy.public}}
"""


class NoFence:
    """Takes every suspect for a fault."""

    def __init__(self) -> None:
        self.suspects = 0

    async def judge(self, suspects: Sequence[Key]) -> Judged:
        self.suspects += len(suspects)
        return Judged()


def flow() -> Flow:
    return parse(CONFIG, Path("tailrace.yaml"), environ={}).flows["mirror"]


def fill(url: str, rows: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(DDL)
        for first in range(1, rows + 1, 1_000_000):
            last = min(rows, first + 999_999)
            connection.execute(insert(first, last).replace("now()", MOMENT).encode())
        connection.execute("VACUUM ANALYZE bench")


def fill_lite(url: str, file: Path, rows: int) -> None:
    with psycopg.connect(url, options="-c TimeZone=UTC") as source, closing(sqlite3.connect(file)) as target:
        target.execute(
            "CREATE TABLE bench (id INTEGER PRIMARY KEY, first_name TEXT, last_name TEXT, amount TEXT,"
            " made_at TEXT, paid INTEGER, quantity INTEGER, note TEXT)"
        )
        found = source.execute(f"{AS_KEPT} WHERE id <= {rows}".encode())
        target.executemany("INSERT INTO bench VALUES (?, ?, ?, ?, ?, ?, ?, ?)", found)
        target.commit()


async def bare_s(urls: Sequence[str]) -> float:
    async def scan(url: str) -> None:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            await connection.execute(b"SET jit = off")
            await connection.execute(BARE.encode())

    began_s = time.perf_counter()
    await asyncio.gather(*map(scan, urls))
    return time.perf_counter() - began_s


@asynccontextmanager
async def sides_of(url: str, store: Store, where: str = "") -> AsyncIterator[Sides]:
    session = postgres.Session(url, "source")
    await session.open()
    await store.open()
    try:
        table = await find_table(session.connection, "public", "bench")
        assert table is not None
        captured = await describe_table(session, "shop", table)
        yield await make_sides(captured, store, flow(), where=where, only=())
    finally:
        await session.close()
        await store.close()


async def compare_s(sides: Sides) -> tuple[float, Progress, int]:
    """(seconds, what was found, suspects)."""
    began_s = time.perf_counter()
    progress, fence = Progress(), NoFence()

    async def open_fence() -> NoFence:
        return fence

    async def save(progress: Progress) -> None:
        return

    plan = await make_plan(sides, Limits())
    await Proof(sides, plan, progress, Limits(), open_fence, save).run()
    return time.perf_counter() - began_s, progress, fence.suspects


async def measure(source: str, target: str, file: Path, rows: int) -> list[Figure]:
    best = dict.fromkeys(("bare", "equal", "faults", "mixed"), float("inf"))
    lite_rows = min(rows, LITE_ROWS)
    read_bytes = 0
    for _ in range(REPEATS):
        best["bare"] = min(best["bare"], await bare_s([source, target]))
        async with sides_of(source, PostgresStore(target)) as sides:
            assert sides.why_not_fast is None
            spent_s, progress, suspects = await compare_s(sides)
            assert (progress.source_rows, progress.target_rows, suspects) == (rows, rows, 0)
            best["equal"] = min(best["equal"], spent_s)
            read_bytes = sides.source.read_bytes + sides.target.read_bytes
        async with sides_of(source, SqliteStore(sqlite.Session(file, "lite")), f"id <= {lite_rows}") as sides:
            spent_s, progress, suspects = await compare_s(sides)
            assert (progress.source_rows, suspects) == (lite_rows, 0)
            best["mixed"] = min(best["mixed"], spent_s)
    faults = max(1, rows // ROWS_A_FAULT)
    step = rows // faults
    with psycopg.connect(target, autocommit=True) as connection:
        connection.execute(f"UPDATE bench SET quantity = quantity + 1 WHERE id % {step} = 7".encode())
        connection.execute("VACUUM bench")
    for _ in range(REPEATS):
        async with sides_of(source, PostgresStore(target)) as sides:
            spent_s, progress, suspects = await compare_s(sides)
            assert suspects == faults
            best["faults"] = min(best["faults"], spent_s)
    return _figures(rows, lite_rows, faults, best, read_bytes / rows)


def _figures(
    rows: int, lite_rows: int, faults: int, best: dict[str, float], bytes_a_row: float
) -> list[Figure]:
    of_bare, of_equal = best["bare"] / best["equal"], best["faults"] / best["equal"]
    mixed = lite_rows / best["mixed"]
    work = f"reconcile {rows:,} rows"
    return [
        Figure(
            f"{work}, equal",
            f"{rows / best['equal']:,.0f} rows/s",
            f"{of_bare:.0%} of a bare hash of both tables",
            f">= {FLOOR_OF_BARE:.0%}",
            of_bare >= FLOOR_OF_BARE,
        ),
        Figure(
            f"{work}, bytes moved",
            f"{bytes_a_row:.3f} a row",
            "",
            f"< {LIMIT_BYTES_A_ROW:.0f}",
            bytes_a_row < LIMIT_BYTES_A_ROW,
        ),
        Figure(
            f"{work}, {faults} scattered faults",
            f"{rows / best['faults']:,.0f} rows/s",
            f"{of_equal:.2f} of the equal run's time",
            f"<= {LIMIT_OF_FAULTS}",
            of_equal <= LIMIT_OF_FAULTS,
        ),
        Figure(
            f"reconcile {lite_rows:,} rows, PostgreSQL to SQLite",
            f"{mixed:,.0f} rows/s",
            "",
            f">= {FLOOR_MIXED_ROWS_S:,}",
            mixed >= FLOOR_MIXED_ROWS_S,
        ),
    ]


def figures(rows: int = ROWS) -> list[Figure]:
    with tempfile.TemporaryDirectory() as folder, Sandbox(fast=True) as sandbox:
        source, target = sandbox.add_postgres().start().url, sandbox.add_postgres().start().url
        for url in (source, target):
            fill(url, rows)
        file = Path(folder) / "copy.db"
        fill_lite(source, file, min(rows, LITE_ROWS))
        return asyncio.run(measure(source, target, file, rows))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    show(figures(parser.parse_args().rows))
