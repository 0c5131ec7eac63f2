"""H18: never a false alarm, whatever is on its way between source and target while both are compared."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import psycopg
import pytest
from aiokafka import AIOKafkaProducer

from streamer.changes.topics import data_topic
from tests.harness.pipeline import Pipeline, execute
from tests.harness.reconcile import counts, proved, reconcile, sqlite_target

ROWS = 20_000
DDL = (
    "CREATE TABLE item (id bigint PRIMARY KEY, n bigint, name text, kind text DEFAULT 'made')",
    f"INSERT INTO item SELECT i, i, 'item ' || i, 'kind ' || i % 5 FROM generate_series(1, {ROWS}) i",
    "ANALYZE item",
)
STALL_S = 2.5  # a command has read the stalled target by then, or another one will
STALLS = 5
COUNTED = ("mirror", "--group", "kind")  # a group's counts of two moments differ, and are no drift
HOT = 20  # rows that nearly every transaction changes


class Writer:
    """Transactions of inserts, updates, deletes and changes of keys, at about `rows_per_s`."""

    def __init__(self, url: str, rows_per_s: int) -> None:
        self._url = url
        self._rows_per_s = rows_per_s
        self._random = Random(7)
        self.rows = 0

    async def run(self) -> None:
        """Until cancelled."""
        began_s = time.monotonic()
        async with await psycopg.AsyncConnection.connect(self._url, autocommit=True) as connection:
            while True:
                async with connection.transaction():
                    for statement in self._transaction():
                        self.rows += (await connection.execute(statement.encode())).rowcount
                due_s = began_s + self.rows / self._rows_per_s
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))  # the rate is what is asked for

    def _transaction(self) -> list[str]:
        at = self._random.randint(HOT + 1, ROWS)
        hot = self._random.randint(1, HOT)
        upsert = "ON CONFLICT (id) DO UPDATE SET n = excluded.n, name = excluded.name"
        kinds = (
            f"UPDATE item SET n = n + 1 WHERE id BETWEEN {at} AND {at + 20}",
            f"DELETE FROM item WHERE id BETWEEN {at} AND {at + 4}",
            f"INSERT INTO item SELECT i, 1, 'again' FROM generate_series({at}, {at + 9}) i {upsert}",
            f"UPDATE item SET id = -id WHERE id = {at} AND NOT EXISTS (SELECT FROM item WHERE id = -{at})",
            f"UPDATE item SET id = {at} WHERE id = -{at} AND NOT EXISTS (SELECT FROM item WHERE id = {at})",
        )
        back = f"INSERT INTO item VALUES ({hot}, 1, 'back') {upsert}"
        return [f"DELETE FROM item WHERE id = {hot}", *self._random.sample(kinds, 3), back]


@asynccontextmanager
async def writing(url: str, rows_per_s: int) -> AsyncIterator[Writer]:
    writer = Writer(url, rows_per_s)
    task = asyncio.create_task(writer.run(), name="writer")
    try:
        yield writer
        assert not task.done(), task.result()
    finally:
        task.cancel()
        await asyncio.wait([task])


@asynccontextmanager
async def long_transaction(url: str, key: int) -> AsyncIterator[None]:
    """Changes that are made before, and committed after, what is done inside."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(b"UPDATE item SET name = name || '!' WHERE id = %s", (ROWS + key,))
        await connection.execute(b"INSERT INTO item VALUES (%s, 1, 'late')", (ROWS + 1000 + key,))
        yield


@asynccontextmanager
async def stalled(url: str, table: str) -> AsyncIterator[None]:
    """Nobody writes to the table meanwhile; it may be read."""
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(f"LOCK TABLE {table} IN EXCLUSIVE MODE".encode())
        yield


async def abort_in(pipeline: Pipeline) -> None:
    """A transaction in the topic that is aborted: records that nobody reads, and markers at its end."""
    topic = data_topic(pipeline.source, "public", "item")
    name = f"{pipeline.name}-stranger"
    async with AIOKafkaProducer(bootstrap_servers=pipeline.brokers, transactional_id=name) as producer:
        await producer.begin_transaction()
        for partition in range(4):
            await producer.send_and_wait(topic, b"never", key=b"never", partition=partition)
        await producer.abort_transaction()


async def no_false_alarm(pipeline: Pipeline, rows_per_s: int, seconds: float, *, stall: bool) -> None:
    """Comparisons one after the other, two at least. `stall`: at every second one, the first among them, the
    target is seconds behind."""
    runs = settled = 0
    async with writing(pipeline.source_url, rows_per_s) as writer:
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s or runs < 2 or (stall and not settled and runs < 2 * STALLS):
            async with long_transaction(pipeline.source_url, runs):
                await abort_in(pipeline)
                if stall and not runs % 2:
                    async with stalled(pipeline.target_url, "mirror.item"):
                        found = asyncio.create_task(reconcile(pipeline, *COUNTED))
                        await asyncio.wait([found], timeout=STALL_S)
                    code, report = await found
                else:
                    code, report = await reconcile(pipeline, *COUNTED)
            (table,) = report["tables"]
            counts_ = {name: n for name, n in counts(table).items() if name != "in_flight"}
            assert (code, counts_, table["complete"]) == (0, {}, True), report
            assert table["in_flight"] <= 2 * HOT
            cells = table["groups"]["cells"]
            assert {cell["drift"] for cell in cells} == {0}, cells
            assert {cell["group"][0] for cell in cells} >= {f"kind {n}" for n in range(5)}
            settled += table["settled"]
            runs += 1
        written = writer.rows
    assert written > rows_per_s  # the writer was at work
    assert settled > 0 or not stall  # and the fence too


@pytest.mark.thorough
async def test_h18_no_false_alarm_while_rows_change(pipeline: Pipeline) -> None:
    await execute(pipeline.source_url, *DDL)
    await pipeline.start_both()
    await no_false_alarm(pipeline, 500, 0, stall=True)
    await pipeline.equal()
    await execute(pipeline.target_url, "UPDATE mirror.item SET n = n # 1 WHERE id = 5")
    code, report = await reconcile(pipeline)
    assert (code, counts(report["tables"][0])) == (1, {"different": 1})


@pytest.mark.slow
async def test_h18_no_false_alarm_for_a_minute_with_a_stalled_target(pipeline: Pipeline) -> None:
    await execute(pipeline.source_url, *DDL)
    await pipeline.start_both()
    await no_false_alarm(pipeline, 2_000, 60, stall=True)


@pytest.mark.slow
async def test_h18_no_false_alarm_in_sqlite(
    tmp_path: Path, database: str, kafka: str, kafka_name: str, file: Path
) -> None:
    target = sqlite_target(file)
    async with Pipeline(
        tmp_path, source_url=database, target_url=database, brokers=kafka, name=kafka_name, target=target
    ) as pipeline:
        await execute(database, *DDL)
        pipeline.start("capture")
        pipeline.start("apply")
        await proved(pipeline)
        await no_false_alarm(pipeline, 500, 20, stall=False)
