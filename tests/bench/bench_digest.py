"""Throughput of the digests that reconcile compares, over the whole of a table of 8 columns.

    python -m tests.bench.bench_digest [--rows 1000000]

PostgreSQL: the fast path and the canonical text, beside a bare parallel sum of hash_record_extended, which
sees neither 1.0 against 1.00 nor two rows that have swapped a column. SQLite: rows read and hashed in this
process, beside the reading alone. The best of several turns, taken in turn, so that other load on the machine
counts little.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path

import psycopg

from consumers.reconcile import fast
from consumers.reconcile.dialects import postgres
from consumers.reconcile.dialects.sqlite import FETCH_ROWS, RowHasher
from consumers.reconcile.digest import RangeDigest, total
from consumers.reconcile.forms import Held, forms_without_types
from streamer.postgres.connection import SESSION_SETTINGS
from streamer.sandbox import Sandbox
from tests.bench.figures import DDL, Figure, insert, show

REPEATS = 3
FLOOR_OF_BARE = 0.60
FLOOR_MIXED_ROWS_S = 150_000
COLUMNS = {
    "id": Held("number", "bigint"),
    "first_name": Held("text", "text"),
    "last_name": Held("text", "text"),
    "amount": Held("numeric", "numeric(12,2)"),
    "made_at": Held("timestamptz", "timestamp with time zone"),
    "paid": Held("bool", "boolean"),
    "quantity": Held("number", "integer"),
    "note": Held("text", "text"),
}
FORMS = {name: forms_without_types(held, signed_zero=False) for name, held in COLUMNS.items()}
SQL = [postgres.SqlColumn(name, held, FORMS[name][0]) for name, held in COLUMNS.items()]
AS_KEPT = """SELECT id, first_name, last_name, amount::text,
replace(to_jsonb(made_at)#>>'{}', '+00:00', 'Z'), paid::int, quantity, note FROM bench"""


def queries(major: int) -> dict[str, str]:
    row = f"ROW({', '.join(COLUMNS)})"
    return {
        "bare hash_record_extended": f"SELECT sum(hash_record_extended({row}, 1)) FROM bench",
        "digest, fast path": fast.row_hash(SQL, SQL[:1]).digests("bench"),
        "digest, fast path, key not one integer": fast.row_hash(SQL, []).digests("bench"),
        "digest, canonical text": postgres.row_hash(SQL, major=major).digests("bench"),
    }


def rates(work: Mapping[str, Callable[[], object]], rows: int) -> dict[str, float]:
    """Rows/s of each."""
    best = dict.fromkeys(work, float("inf"))
    for _ in range(REPEATS):
        for name, call in work.items():
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: rows / spent_s for name, spent_s in best.items()}


def chunks(connection: sqlite3.Connection) -> Iterable[list[tuple[object, ...]]]:
    cursor = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM bench")
    while rows := cursor.fetchmany(FETCH_ROWS):
        yield rows


def figures(rows: int = 1_000_000) -> list[Figure]:
    options = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
    hasher = RowHasher([form for _, form in FORMS.values()])
    with (
        Sandbox(postgres=1, fast=True) as sandbox,
        tempfile.TemporaryDirectory() as folder,
        psycopg.connect(sandbox.postgres[0].url, autocommit=True, options=options) as server,
        closing(sqlite3.connect(Path(folder, "copy.db"))) as lite,
    ):
        server.execute(DDL)
        server.execute(insert(1, rows).encode())
        server.execute("VACUUM ANALYZE bench")
        kept = rows // 4
        types = "id INTEGER PRIMARY KEY, first_name TEXT, last_name TEXT, amount TEXT, made_at TEXT"
        lite.execute(f"CREATE TABLE bench ({types}, paid INTEGER, quantity INTEGER, note TEXT)")
        with server.transaction(), server.cursor("kept") as cursor:
            lite.executemany(
                "INSERT INTO bench VALUES (?, ?, ?, ?, ?, ?, ?, ?)", cursor.execute(f"{AS_KEPT} LIMIT {kept}")
            )
        lite.commit()
        found = queries(server.info.server_version // 10_000)
        served = rates(
            {
                name: lambda query=query: server.execute(query.encode()).fetchone()
                for name, query in found.items()
            },
            rows,
        )

        def digest() -> RangeDigest:
            return total(hasher.digest(chunk) for chunk in chunks(lite))

        local = rates({"reading": lambda: sum(map(len, chunks(lite))), "digest": digest}, kept)
        same = server.execute(
            postgres.row_hash(SQL, major=server.info.server_version // 10_000)
            .digests(f"bench WHERE id <= {kept}")
            .encode()
        ).fetchone()
        assert same is not None
        assert RangeDigest.of_sums(*same) == digest(), "the two stores do not agree"
    bare = served.pop("bare hash_record_extended")
    one, several, canonical = served.items()
    return [
        *(
            Figure(
                f"{name}, {rows:,} rows in Postgres",
                f"{rate:,.0f} rows/s",
                f"{rate / bare:.0%} of bare hash_record_extended, {bare:,.0f} rows/s",
                f">= {FLOOR_OF_BARE:.0%} of bare" if floor else "",
                rate / bare >= FLOOR_OF_BARE if floor else None,
            )
            for (name, rate), floor in ((one, True), (several, False), (canonical, False))
        ),
        Figure(
            f"digest, canonical text, {kept:,} rows in SQLite",
            f"{local['digest']:,.0f} rows/s",
            f"reading alone {local['reading']:,.0f} rows/s",
            f">= {FLOOR_MIXED_ROWS_S:,} rows/s",
            local["digest"] >= FLOOR_MIXED_ROWS_S,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    found = figures(parser.parse_args().rows)
    show(found)
    raise SystemExit(0 if all(figure.held is not False for figure in found) else 1)


if __name__ == "__main__":
    main()
