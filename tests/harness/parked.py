"""Rows that a Postgres target refuses: a table with a constraint, and what is kept of what it refused."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import orjson
import psycopg
from aiokafka import TopicPartition

from streamer.changes.topics import dead_letters_topic
from streamer.kafka import admin, offset_ranges, read_to_end
from streamer.publisher.topics import describe
from tests.harness.capture import run as execute
from tests.harness.capture import until
from tests.harness.feeder import Feeder

COLUMNS = [("id", "integer", "number"), ("name", "text", "text"), ("note", "text", "text")]
MADE = (
    "CREATE SCHEMA mirror",
    "CREATE TABLE mirror.people (id int PRIMARY KEY,"
    " name text CONSTRAINT fits CHECK (name <> 'bad'), note text)",
)
MEND = "ALTER TABLE mirror.people DROP CONSTRAINT fits"
NAMES = "SELECT id, name FROM mirror.people ORDER BY id"
END_APPLY = """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'tailrace apply%'"""
CUT_OFF = """SELECT pg_cancel_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'tailrace apply%'"""
QUEUES = "SELECT convert_from(key, 'UTF8'), sequence, lsn, code FROM _tailrace.parked ORDER BY key, sequence"


def row(n: int, name: str = "good", note: str | None = None) -> dict[str, Any]:
    return {"id": n, "name": name, "note": note}


async def letters(feeder: Feeder) -> list[dict[str, Any]]:
    """What is in the dead-letter topic of the target `copy`, of this feeder's topics."""
    partition = TopicPartition(dead_letters_topic("copy"), 0)
    async with admin(feeder.brokers, None) as client:
        if partition.topic not in await describe(client):
            return []
    ranges = await offset_ranges(feeder.brokers, None, [partition])
    records = await read_to_end(feeder.brokers, None, ranges, committed=True)
    found = [orjson.loads(record.value) for record in records if record.value is not None]
    return [letter for letter in found if letter["topic"].startswith(feeder.source)]


async def ask(url: str, action: str) -> None:
    await execute(url, f"UPDATE _tailrace.parked SET asked = '{action}', asked_by = 'ann@host'")


async def present(url: str, query: str, expected: list[tuple[Any, ...]]) -> None:
    """Wait until the target has these rows, whoever applies them."""

    async def there() -> bool:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            return await (await connection.execute(query)).fetchall() == expected

    await until(there)


async def blocked(url: str, sessions: int) -> None:
    """Wait until so many sessions of the target wait for another one's lock."""
    query = """SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"""
    await present(url, query, [(sessions,)])


async def tailrace(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "consumers", *arguments, stdout=pipe, stderr=pipe
    )


async def command(file: Path, name: str, *arguments: str, code: int = 0) -> Any:
    """`tailrace dead-letters NAME copy --json`"""
    process = await tailrace("dead-letters", name, "copy", *arguments, "-c", str(file), "--json")
    out, err = await process.communicate()
    assert process.returncode == code, (out, err)
    return orjson.loads(out or err)
