"""A target without room, for real: it is waited for, no row is blamed, and it goes on by itself (H24)."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random

import pytest
from redis.asyncio import Redis

from streamer.config import parse
from streamer.sandbox import PostgresServer
from streamer.sandbox.postgres import unprivileged_user
from tests.harness.capture import run as execute
from tests.harness.capture import until
from tests.harness.feeder import Feeder, Running, applying, config_of
from tests.harness.parked import COLUMNS, QUEUES, letters, row
from tests.harness.redis_target import redis_config_of
from tests.harness.small_disk import SmallDisk, small_disk

ROWS = 300
NOTE_BYTES = 8_000  # of noise: nothing of it is compressed away
SMALL_MB, LARGE_MB = 1, 64


async def fill(feeder: Feeder) -> None:
    """More than the small disk holds, and one row first that it does."""
    table = await feeder.table("people", COLUMNS, partitions=1)
    random = Random(1)
    for n in range(ROWS):
        table.create(row(n, note=random.randbytes(NOTE_BYTES // 2).hex()), 100, n)
    await feeder.flush()


async def waits(run: Running, feeder: Feeder, words: str) -> None:
    """Said with the reason and since when, and tried again; no letter."""
    await run.until(lambda: run.status.record.state == "waiting", "waiting")
    first = run.status.record
    assert re.search(words, first.reason), first.reason
    assert "it goes on by itself" in first.reason
    assert first.since_us > first.started_us
    await run.until(lambda: run.status.record.detail is not first.detail, "another report")
    assert (run.status.record.state, run.status.record.since_us) == ("waiting", first.since_us)
    assert await letters(feeder) == []


async def goes_on(run: Running, feeder: Feeder) -> None:
    await run.until(lambda: run.status.record.state == "streaming", "going on")
    assert await letters(feeder) == []


@asynccontextmanager
async def tablespace(server: PostgresServer, name: str) -> AsyncIterator[SmallDisk]:
    """Of the server, on a disk of its own."""
    with small_disk(server.folder / name, SMALL_MB, unprivileged_user()) as disk:
        await execute(server.url, f"CREATE TABLESPACE {name} LOCATION '{disk.path}'")
        yield disk


@pytest.mark.thorough
async def test_h24_a_full_tablespace_is_waited_for(
    feeder: Feeder, postgres_target_server: PostgresServer, target_database: str
) -> None:
    name = f"small_{feeder.name}"
    count = "SELECT count(*) FROM mirror.people"
    async with tablespace(postgres_target_server, name) as disk:
        made = f"CREATE TABLE mirror.people (id int PRIMARY KEY, name text, note text) TABLESPACE {name}"
        await execute(target_database, "CREATE SCHEMA mirror", made)
        await fill(feeder)
        async with applying(config_of(feeder, target_database)) as run:
            await waits(run, feeder, r"could not extend file.*No space left on device \[53100\]")
            await run.rows(target_database, count, [(0,)])
            await run.rows(target_database, QUEUES, [])
            disk.grow(LARGE_MB)
            await run.rows(target_database, count, [(ROWS,)])
            await goes_on(run, feeder)
        await execute(target_database, "DROP TABLE mirror.people", f"DROP TABLESPACE {name}")


@pytest.mark.thorough
async def test_h24_a_file_on_a_full_disk_is_waited_for(feeder: Feeder, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", SMALL_MB) as disk:
        file = disk.path / "copy.db"
        text = f"""
name: {feeder.name}
kafka: {{brokers: "{feeder.brokers}"}}
sources:
  {feeder.source}: {{kind: postgres, url: "postgresql://u@localhost/none", tables: {{"public.*": {{}}}}}}
targets: {{copy: {{kind: sql, url: "sqlite:///{file}"}}}}
flows: {{mirror: {{from: "{feeder.source}.public.*", to: copy}}}}
"""

        async def count(table: str) -> int:
            with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
                return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

        async def all_there() -> bool:
            return await count("people") == ROWS

        await fill(feeder)
        async with applying(parse(text, Path("tailrace.yaml"), environ={})) as run:
            await waits(run, feeder, r"SQLITE_FULL|SQLITE_IOERR")
            assert await count("_tailrace_parked") == 0
            disk.grow(LARGE_MB)
            await until(all_there)
            await goes_on(run, feeder)


async def test_h24_a_full_memory_is_waited_for(feeder: Feeder, valkey: str) -> None:
    async with Redis.from_url(valkey, protocol=2) as client:
        await client.flushall()

        async def all_there() -> bool:
            return len([key async for key in client.scan_iter(match="mirror:people:*", count=1000)]) == ROWS

        try:
            async with applying(redis_config_of(feeder, valkey)) as run:
                await run.until(lambda: run.status.record.state == "streaming", "streaming")
                await client.config_set("maxmemory", "1mb")
                await fill(feeder)
                await waits(run, feeder, r"out of memory \(maxmemory\)")
                assert not await client.exists("_tailrace:parked")
                await client.config_set("maxmemory", "0")
                await until(all_there)
                await goes_on(run, feeder)
        finally:
            await client.config_set("maxmemory", "0")
            await client.flushall()
