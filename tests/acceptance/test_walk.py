"""The whole walk with real processes: Postgres, capture, Kafka, apply, Postgres."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psycopg
import pytest

from consumers.demo.verdict import TableName
from tests.acceptance.conftest import BIG_ROWS, Shop
from tests.acceptance.tables import ODD_CHANGES, ODD_ROWS, ODD_TABLES, TYPES
from tests.harness.log import LogChecker
from tests.harness.pipeline import STOP_S, TARGET_SCHEMA, Pipeline, execute

LATER_TABLE_S = 3.5  # a topic is noticed within 1 s, the group takes its partitions within another


async def test_a_shop_arrives(shop: Shop) -> None:
    await shop.open()
    async with shop.at_work(seconds=2):
        pass
    report = await shop.judge()
    assert report.records > BIG_ROWS


@pytest.mark.thorough
async def test_a_table_that_is_made_later_is_there_soon_after_its_first_row(pipeline: Pipeline) -> None:
    await execute(pipeline.source_url, "CREATE TABLE first (id int PRIMARY KEY)")
    await pipeline.start_both()
    await execute(pipeline.source_url, "CREATE TABLE later (id int PRIMARY KEY, v text)")

    async def published() -> bool:
        found = await pipeline.source_value(
            "SELECT count(*) FROM pg_publication_tables WHERE tablename = 'later'"
        )
        return bool(found)

    await pipeline.until("capture has taken the table in", published)
    began_s = time.monotonic()
    await execute(pipeline.source_url, "INSERT INTO later SELECT n, 'v' || n FROM generate_series(1, 100) n")

    async def arrived() -> bool:
        try:
            return bool(await pipeline.target_value(f"SELECT count(*) = 100 FROM {TARGET_SCHEMA}.later"))
        except psycopg.errors.UndefinedTable:
            return False

    await pipeline.until("its rows are in the target", arrived)
    assert time.monotonic() - began_s < LATER_TABLE_S


@pytest.mark.thorough
async def test_sigterm_finishes_confirms_and_exits_0(pipeline: Pipeline, shop: Shop) -> None:
    await shop.open()
    capture, apply = pipeline.children
    async with shop.at_work():
        await pipeline.some_captured(100_000)
        before = await pipeline.confirmed_lsn()
        codes = await asyncio.gather(capture.stop(STOP_S), apply.stop(STOP_S))
        assert list(codes) == [0, 0]
        assert await pipeline.confirmed_lsn() >= before
        pipeline.start("capture")
        pipeline.start("apply")
    await shop.judge()


@pytest.mark.thorough
async def test_standby_takes_over_when_the_first_dies(pipeline: Pipeline, shop: Shop) -> None:
    await shop.open()
    first = pipeline.children[0]
    second = pipeline.start("capture")
    await pipeline.state("capture", "standby", child=second)
    async with shop.at_work():
        await pipeline.some_captured(100_000)
        first.kill()
        await pipeline.state("capture", "streaming", child=second)
    await shop.judge()


@pytest.mark.thorough
async def test_h30_zombie_is_fenced(pipeline: Pipeline, shop: Shop) -> None:
    """The first stands still, loses its sessions, and wakes when the second has taken its place."""
    await shop.open()
    first = pipeline.children[0]
    second = pipeline.start("capture")
    await pipeline.state("capture", "standby", child=second)
    async with shop.at_work():
        await pipeline.some_captured(100_000)
        os.kill(first.pid, signal.SIGSTOP)
        try:
            await pipeline.source_value(
                "SELECT count(pg_terminate_backend(a.pid)) FROM pg_locks l"
                " JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted"
                " AND a.datname = current_database()"
            )
            await pipeline.source_value(
                "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots"
                " WHERE slot_name = %s",
                pipeline.slot,
            )
            await pipeline.state("capture", "streaming", child=second)
        finally:
            os.kill(first.pid, signal.SIGCONT)
        first.killed = True  # it may end with an error, or wait as the new standby
    await shop.judge()
    assert second.running
    states = {r.pid: r.state for r in await pipeline.status("capture")}
    assert states[second.pid] == "streaming"
    assert not first.running or states[first.pid] in ("standby", "waiting")


@pytest.mark.thorough
async def test_three_applies_share_and_rebalance_under_load(pipeline: Pipeline, shop: Shop) -> None:
    await shop.open()
    first = pipeline.children[1]
    async with shop.at_work(seconds=6):
        second = pipeline.start("apply")
        await pipeline.until("the second has partitions", lambda: _has_partitions(pipeline, second.pid))
        third = pipeline.start("apply")
        await pipeline.until("the third has partitions", lambda: _has_partitions(pipeline, third.pid))
        second.kill()
        assert await first.stop(STOP_S) == 0
    await shop.judge()


async def _has_partitions(pipeline: Pipeline, pid: int) -> bool:
    return any(
        flow.get("partitions")
        for record in await pipeline.status("apply")
        if record.pid == pid
        for flow in record.detail.get("flows", {}).values()
    )


@pytest.mark.thorough
async def test_odd_names_partitions_generated(pipeline: Pipeline, log_checker: LogChecker) -> None:
    await execute(pipeline.source_url, *ODD_TABLES, *(s.format(1) for s in ODD_ROWS))
    await pipeline.start_both()
    await execute(pipeline.source_url, *(s.format(1001) for s in ODD_ROWS), *ODD_CHANGES)
    verdict = await pipeline.equal()
    assert {t.source.table for t in verdict.tables} >= {"Order", "sp ace.and/dot", "ünï", "parts"}
    await log_checker.read()
    assert log_checker.report().ok, str(log_checker.report())
    assert await log_checker.fold_differences(pipeline.source_url) == []


async def test_every_type_by_snapshot_and_by_stream(pipeline: Pipeline, log_checker: LogChecker) -> None:
    columns = {f"c{i}": sql_type for i, sql_type in enumerate(TYPES)}
    inserts = [
        f"INSERT INTO types (id, {column}) VALUES (%d, {value}::{sql_type})"
        for column, sql_type in columns.items()
        for value in TYPES[sql_type]
    ]
    await execute(
        pipeline.source_url,
        "CREATE TYPE mood AS ENUM ('sad', 'so so')",
        "CREATE DOMAIN posint AS int CHECK (VALUE > 0)",
        "CREATE TYPE pair AS (a int, b text)",
        f"CREATE TABLE types (id int PRIMARY KEY, {', '.join(f'{c} {t}' for c, t in columns.items())})",
        *(insert % number for number, insert in enumerate(inserts)),
    )
    await pipeline.start_both()
    await execute(pipeline.source_url, *(insert % (number + 1000) for number, insert in enumerate(inserts)))
    verdict = await pipeline.equal()
    assert verdict.rows == 2 * len(inserts)
    await log_checker.read()
    assert await log_checker.fold_differences(pipeline.source_url) == []


@pytest.mark.thorough
async def test_an_empty_table_is_made_too(pipeline: Pipeline) -> None:
    await execute(pipeline.source_url, "CREATE TABLE empty (id int PRIMARY KEY)")
    await pipeline.start_both()


@pytest.mark.thorough
async def test_columns_added_and_dropped_while_streaming(pipeline: Pipeline) -> None:
    url = pipeline.source_url
    first = "INSERT INTO t VALUES (1, 'a', 1)"
    await execute(url, "CREATE TABLE t (id int PRIMARY KEY, a text, b int)", first)
    await pipeline.start_both()
    await execute(
        url,
        "ALTER TABLE t ADD COLUMN c timestamptz DEFAULT '2025-01-01 00:00+00'",
        "INSERT INTO t VALUES (2, 'b', 2, now())",
        "UPDATE t SET a = 'again'",
        "ALTER TABLE t DROP COLUMN b",
        "INSERT INTO t VALUES (3, 'c', now())",
        'ALTER TABLE t ADD COLUMN "d d" numeric[]',
        "INSERT INTO t VALUES (4, 'd', NULL, '{1.0,NULL}')",
    )
    await pipeline.equal()


@pytest.mark.thorough
async def test_truncate_of_several_tables_and_rows_after_it(pipeline: Pipeline) -> None:
    url = pipeline.source_url
    fill = "INSERT INTO {0} SELECT n, 'v' FROM generate_series(1, 500) n"
    for table in ("a", "b"):
        await execute(url, f"CREATE TABLE {table} (id int PRIMARY KEY, v text)", fill.format(table))
    await pipeline.start_both()
    await execute(url, "TRUNCATE a, b", "INSERT INTO a VALUES (1, 'after')", fill.format("b"), "TRUNCATE b")
    verdict = await pipeline.equal()
    assert verdict.rows == 1


@pytest.mark.thorough
async def test_a_flow_to_one_named_table(pipeline: Pipeline) -> None:
    pipeline.config["flows"] = {
        "one": {"from": f"{pipeline.source}.public.t", "to": "copy.elsewhere.renamed"},
    }
    pipeline.write_config()
    await execute(
        pipeline.source_url, "CREATE TABLE t (id int PRIMARY KEY, v text)", "INSERT INTO t VALUES (1, 'x')"
    )
    capture, _ = pipeline.start("capture"), pipeline.start("apply")
    await pipeline.state("capture", "streaming", child=capture)
    await execute(pipeline.source_url, "INSERT INTO t VALUES (2, 'y')", "DELETE FROM t WHERE id = 1")
    await pipeline.equal(pairs=[(TableName("public", "t"), TableName("elsewhere", "renamed"))])
    assert not await pipeline.target_value("SELECT to_regnamespace(%s) IS NOT NULL", TARGET_SCHEMA)


@pytest.mark.slow
async def test_five_million_rows_in_one_transaction_in_bounded_memory(pipeline: Pipeline) -> None:
    await execute(
        pipeline.source_url,
        "CREATE TABLE wide (id bigint PRIMARY KEY, a int, b text, c numeric, d timestamptz, e boolean,"
        " f text, g float8)",
    )
    capture, apply = await pipeline.start_both()
    await execute(
        pipeline.source_url,
        "INSERT INTO wide SELECT n, n % 97, 'row ' || n, n / 7.0, now(), n % 2 = 0, md5(n::text), n * 0.5"
        " FROM generate_series(1, 5000000) n",
    )
    verdict = await pipeline.equal(timeout_s=900)
    assert verdict.rows == 5_000_000
    assert capture.peak_rss_bytes() < 200 * 2**20
    assert apply.peak_rss_bytes() < 400 * 2**20
