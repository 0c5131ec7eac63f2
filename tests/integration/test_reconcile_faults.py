"""Never a miss: faults put into copies by hand are all found and named, on every path."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from struct import unpack
from typing import Any

import psycopg
import pytest

from tests.harness import kinds
from tests.harness.pipeline import Pipeline, execute
from tests.harness.reconcile import proved, reconcile, sqlite_target

Faults = set[tuple[str, ...]]

ROWS = 4_000
STEP = 50  # two faults and more in one range, as a range is a thousand rows at least
ALL = ("--samples", "10000")


def named(table: dict[str, Any]) -> Faults:
    """(kind, key..., column...) of each fault."""
    found = {(s["kind"], *s["key"], *s["columns"]) for s in table["samples"]}
    assert sum(table[kind] for kind in ("missing", "extra", "different")) == len(found), table
    return found


def expected(faults: Sequence[tuple[str, str]], *more: tuple[str, ...]) -> Faults:
    return {("different", str(STEP * n), column) for n, (column, _) in enumerate(faults, 1)} | set(more)


def by_table(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {table["source"].removeprefix("public."): table for table in report["tables"]}


MORE = (  # beside the changed columns: statements of both dialects
    "DELETE FROM {} WHERE id IN (1, 2, 3999)",
    "INSERT INTO {} (id, n) VALUES (0, 1), (70000, 2)",
    "UPDATE {} SET id = -1 WHERE id = 3901",  # two rows swap their keys
    "UPDATE {} SET id = 3901 WHERE id = 3902",
    "UPDATE {} SET id = 3902 WHERE id = -1",
    "UPDATE {} SET n = 12 WHERE id = 3911",  # and two their values
    "UPDATE {} SET n = 11 WHERE id = 3912",
)
PAYLOAD = bytes.fromhex("7ff8000000000001")  # of a NaN, which only the binary protocol writes
MORE_FOUND = (
    *[("missing", key) for key in ("1", "2", "3999")],
    *[("extra", key) for key in ("0", "70000")],
    *[("different", key, "n") for key in ("3901", "3902", "3911", "3912")],
)


async def write_nan(url: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        assert (await connection.execute(statement.encode(), unpack(">d", PAYLOAD))).rowcount == 1


async def test_every_fault_in_postgres_is_found(pipeline: Pipeline) -> None:
    """`exact` is hashed by the servers; `loose` by canonical text, as the target lacks its enum; `byname` is
    cut by buckets, as an inet of the key is ordered by each server's own rules."""
    tables = [
        *kinds.ddl("exact", ROWS),
        "CREATE TYPE mood AS ENUM ('a')",
        *kinds.ddl("loose", ROWS, more="mood"),
    ]
    named_by = (
        "CREATE TABLE byname (name text, part inet, n numeric, PRIMARY KEY (name, part))",
        "INSERT INTO byname SELECT 'é \"x\" ' || i / 4, inet '::' + i % 4, i FROM generate_series(1, 3000) i",
    )
    await execute(pipeline.source_url, *tables, *named_by)
    pipeline.start("capture"), pipeline.start("apply")
    report = by_table(await proved(pipeline))
    assert {name: table["path"] for name, table in report.items()} == {
        "exact": "fast",
        "loose": "canonical",
        "byname": "fast",
    }
    assert (report["exact"]["cut_by"], report["byname"]["cut_by"]) == ("ranges", "buckets")
    for table in ("exact", "loose"):
        faults = kinds.updates(f"mirror.{table}", kinds.FAULTS, step=STEP)
        await execute(pipeline.target_url, *faults, *[text.format(f"mirror.{table}") for text in MORE])
        await write_nan(pipeline.target_url, f"UPDATE mirror.{table} SET nan = %b WHERE id = 3921")
    await execute(
        pipeline.target_url,
        "UPDATE mirror.byname SET n = 400.0 WHERE n = 400",
        "DELETE FROM mirror.byname WHERE n = 401",
        "UPDATE mirror.byname SET name = name || ' ' WHERE n = 802",
    )
    code, found = await reconcile(pipeline, *ALL)
    report = by_table(found)
    assert code == 1
    payload = ("different", "3921", "nan")
    assert named(report["exact"]) == expected(kinds.FAULTS, *MORE_FOUND, payload)
    assert named(report["loose"]) == expected(kinds.FAULTS, *MORE_FOUND, payload)
    assert named(report["byname"]) == {
        ("different", 'é "x" 100', "::", "n"),
        ("missing", 'é "x" 100', "::1"),
        ("missing", 'é "x" 200', "::2"),
        ("extra", 'é "x" 200 ', "::2"),
    }


def write(file: Path, statements: Iterable[str]) -> None:
    with closing(sqlite3.connect(file, isolation_level=None, timeout=20)) as connection:
        for statement in statements:
            connection.execute(statement)


@pytest.mark.thorough
async def test_every_fault_in_sqlite_is_found(
    tmp_path: Path, database: str, kafka: str, kafka_name: str, file: Path
) -> None:
    named_by = (
        "CREATE TABLE byname (name text, at timestamptz, n numeric, PRIMARY KEY (name, at))",
        "INSERT INTO byname SELECT 'é ' || i / 4, timestamptz '2026-01-01 00:00+00' + i * interval '1 s', i"
        " FROM generate_series(1, 3000) i",
    )
    async with Pipeline(
        tmp_path,
        source_url=database,
        target_url=database,
        brokers=kafka,
        name=kafka_name,
        target=sqlite_target(file),
    ) as pipeline:
        await execute(database, *kinds.ddl("exact", ROWS), *named_by)
        pipeline.start("capture"), pipeline.start("apply")
        report = by_table(await proved(pipeline))
        assert (report["exact"]["cut_by"], report["byname"]["cut_by"]) == ("ranges", "buckets")
        write(
            file, [*kinds.updates("exact", kinds.LITE_FAULTS, step=STEP), *(s.format("exact") for s in MORE)]
        )
        write(
            file,
            [
                "UPDATE byname SET n = '400.0' WHERE n = '400'",
                "DELETE FROM byname WHERE n = '401'",
                "UPDATE byname SET at = replace(at, 'Z', '.000001Z') WHERE n = '402'",
            ],
        )
        code, found = await reconcile(pipeline, *ALL)
        report = by_table(found)
        assert code == 1
        assert named(report["exact"]) == expected(kinds.LITE_FAULTS, *MORE_FOUND)
        assert named(report["byname"]) == {
            ("different", "é 100", "2026-01-01 00:06:40+00", "n"),
            ("missing", "é 100", "2026-01-01 00:06:41+00"),
            ("missing", "é 100", "2026-01-01 00:06:42+00"),
            ("extra", "é 100", "2026-01-01 00:06:42.000001+00"),
        }


@pytest.mark.slow
async def test_a_thousand_faults_are_found(pipeline: Pipeline) -> None:
    """At random places of 200,000 rows, of random kinds, several in one range."""
    random = Random(5)
    rows = 200_000
    await execute(pipeline.source_url, *kinds.ddl("exact", rows), "ANALYZE exact")
    pipeline.start("capture"), pipeline.start("apply")
    await proved(pipeline)
    keys = random.sample(range(1, rows + 1), 600)
    keys += [key for key in range(777, 777 + 500) if key not in keys][: 1000 - len(keys)]  # in one range
    statements, wanted = [], set[tuple[str, ...]]()
    for number, key in enumerate(keys):
        if number % 10 == 0:
            statements.append(f"DELETE FROM mirror.exact WHERE id = {key}")
            wanted.add(("missing", str(key)))
        elif number % 10 == 1:
            statements.append(f"UPDATE mirror.exact SET id = id + 1000000 WHERE id = {key}")
            wanted |= {("missing", str(key)), ("extra", str(key + 1_000_000))}
        else:
            column, value = random.choice(kinds.FAULTS)
            statements.append(f"UPDATE mirror.exact SET {column} = {value} WHERE id = {key}")
            wanted.add(("different", str(key), column))
    assert len(statements) == 1000
    await execute(pipeline.target_url, *statements)
    code, report = await reconcile(pipeline, *ALL)
    assert code == 1
    assert named(report["tables"][0]) == wanted
