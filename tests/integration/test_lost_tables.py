"""A target's table that is gone: waited for and named, and never made again for the later rows only."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest

from consumers.commands.gates import decide_held
from streamer.config import Config, load, parse
from streamer.resetting import reset_steps
from streamer.runner import reset_source
from tests.harness.capture import capturing, until
from tests.harness.feeder import Feeder, Table, applying, config_of, config_text
from tests.harness.people import COLUMNS, IDS, copied, filled, make

NAMES = "SELECT id, name FROM {}.people ORDER BY id"


@pytest.fixture
async def feeder(kafka: str, kafka_name: str) -> AsyncIterator[Feeder]:
    async with Feeder(kafka, kafka_name) as feeder:
        yield feeder


async def execute(url: str, *statements: str) -> list[Any]:
    """What the last one gives."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in statements:
            cursor = await connection.execute(statement)
        return await cursor.fetchall() if cursor.description else []


async def there(url: str, schema: str = "mirror") -> list[str]:
    names = "SELECT tablename::text FROM pg_tables WHERE schemaname = '{}' ORDER BY 1"
    return [name for (name,) in await execute(url, names.format(schema))]


@pytest.mark.thorough
async def test_a_table_that_is_gone_stalls_its_flow_until_it_is_back(
    feeder: Feeder, target_database: str
) -> None:
    """The other flow goes on; nothing is made, parked or passed over; and it needs no restart."""
    flows = {"people": "public.people", "things": "public.things"}
    config = config_of(feeder, target_database, flows=flows)
    table = await filled(feeder, 1, 2)
    things = await feeder.table("things", COLUMNS)
    things.create({"id": 1, "name": "a", "note": None}, 100)
    await feeder.flush()
    async with applying(config) as run:
        await run.settled(feeder)
        await execute(target_database, "ALTER TABLE mirror.people RENAME TO away")
        make(table, 3, lsn=200)
        things.update({"id": 1, "name": "b", "note": None}, 210)
        await feeder.flush()
        await run.until(lambda: run.flow("people").get("state") == "stalled", "stalled")
        await run.rows(target_database, "SELECT name FROM mirror.things", [("b",)])
        await run.until(lambda: run.status.record.state == "waiting", "waiting")
        record = run.status.record
        assert (record.state, record.reason) == ("waiting", run.flow("people")["reason"])
        for words in (
            "the table mirror.people is missing",
            f"flow 'people' has written rows of {table.topic} to it",
            "restore it",
            "goes on by itself",
            f"{reset_steps(feeder.source)}, which makes it again and copies",
        ):
            assert words in record.reason
        await execute(target_database, "ALTER TABLE mirror.away RENAME TO people")
        await run.rows(target_database, IDS, [(1,), (2,), (3,)])
        assert run.status.record.since_us == record.since_us or run.status.record.state == "streaming"
        await run.until(lambda: run.status.record.state == "streaming", "streaming")
        assert run.flow("people")["reason"] == ""
        assert run.flow("people")["parked"] == 0
    assert await there(target_database) == ["people", "things"]


@pytest.mark.thorough
async def test_the_only_flow_waits_in_every_process_and_after_a_restart(
    feeder: Feeder, target_database: str
) -> None:
    table = await filled(feeder, *range(8))
    config = await copied(feeder, target_database, *range(8))
    await execute(target_database, "ALTER TABLE mirror.people SET SCHEMA public")
    make(table, *range(8, 16), lsn=200)
    await feeder.flush()
    async with applying(config) as one, applying(config) as two:
        for run in (one, two):
            await run.until(lambda run=run: run.status.record.state == "waiting", "waiting")
            assert "mirror.people is missing" in run.status.record.reason
        assert await there(target_database) == []
        await execute(target_database, "ALTER TABLE public.people SET SCHEMA mirror")
        await one.rows(target_database, IDS, [(n,) for n in range(16)])
        for run in (one, two):
            await run.until(lambda run=run: run.status.record.state == "streaming", "streaming")


@pytest.mark.thorough
async def test_a_copy_makes_the_table_again(
    database: str,
    target_database: str,
    make_config: Callable[..., Config],
    tmp_path: Path,
) -> None:
    """With another key, and changes of the older epoch on their way, which the flow waited with and which do
    not fit it; then it is as before: a table that is gone is waited for."""
    await execute(
        database,
        "CREATE TABLE people (id int PRIMARY KEY, name text)",
        "INSERT INTO people SELECT n, 'a' FROM generate_series(1, 20) n",
    )
    make_config(database)
    path = tmp_path / "tailrace.yaml"
    document = orjson.loads(path.read_bytes())
    document["targets"] = {"copy": {"kind": "postgres", "url": target_database}}
    document["flows"] = {"mirror": {"from": "shop.public.*", "to": "copy.mirror"}}
    path.write_bytes(orjson.dumps(document))
    config = load(path)

    async with applying(config) as run:
        async with capturing(config) as capture:
            rows = await execute(database, NAMES.format("public"))
            await run.rows(target_database, NAMES.format("mirror"), rows)
            await execute(target_database, "DROP TABLE mirror.people")
            await execute(database, "DELETE FROM people WHERE id > 15", "UPDATE people SET name = 'b'")
            await capture.caught_up()
            await run.until(lambda: run.status.record.state == "waiting", "waiting")
            assert "`tailrace reset shop --yes`" in run.status.record.reason
        await execute(database, "ALTER TABLE people RENAME id TO number")
        await reset_source(config, "shop", brokers=config.kafka.brokers)
        async with capturing(config) as capture:
            rows = await execute(database, "SELECT number, name FROM people ORDER BY 1")
            assert len(rows) == 15
            await run.rows(target_database, "SELECT number, name FROM mirror.people ORDER BY 1", rows)
            await run.until(lambda: run.status.record.state == "streaming", "streaming")
            await execute(target_database, "DROP TABLE mirror.people")
            await execute(database, "UPDATE people SET name = 'c' WHERE number = 1")
            await capture.caught_up()
            await run.until(lambda: run.status.record.state == "waiting", "waiting")
    assert await there(target_database) == []


@pytest.mark.thorough
async def test_a_sqlite_table_that_is_gone_is_waited_for(feeder: Feeder, tmp_path: Path) -> None:
    file = tmp_path / "copy.db"
    text = f"""
name: {feeder.name}
kafka: {{brokers: "{feeder.brokers}"}}
sources:
  {feeder.source}: {{kind: postgres, url: "postgresql://nobody@localhost/none", tables: {{"public.*": {{}}}}}}
targets: {{copy: {{kind: sql, url: "sqlite:///{file}"}}}}
flows: {{mirror: {{from: "{feeder.source}.public.*", to: copy}}}}
"""
    table = await filled(feeder, 1, 2)

    def ids(statement: str = "SELECT id FROM people ORDER BY id") -> list[int]:
        with closing(sqlite3.connect(file, isolation_level=None)) as connection:
            return [n for (n,) in connection.execute(statement)]

    async with applying(parse(text, tmp_path / "tailrace.yaml", environ={})) as run:
        await run.settled(feeder)
        assert ids() == [1, 2]
        ids("ALTER TABLE people RENAME TO away")
        make(table, 3, lsn=200)
        await feeder.flush()
        await run.until(lambda: run.status.record.state == "waiting", "waiting")
        assert "the table people is missing" in run.status.record.reason
        ids("ALTER TABLE away RENAME TO people")

        async def back() -> bool:
            return ids() == [1, 2, 3]

        await until(back)
        await run.until(lambda: run.status.record.state == "streaming", "streaming")


async def test_a_table_is_made_by_what_a_gate_refused(
    feeder: Feeder, target_database: str, tmp_path: Path
) -> None:
    """The checkpoint passes it; what comes after finds a table, and is not taken for the rest of one."""
    text = config_text(feeder, target_database).replace(
        "to: copy.mirror}", "to: copy.mirror, truncate: hold}"
    )
    config = parse(text, tmp_path / "tailrace.yaml", environ={})
    table = await feeder.table("people", COLUMNS)
    table.truncate(50)
    await feeder.flush()
    async with applying(config) as run:
        await run.until(lambda: run.flow().get("state") == "held", "held")
        await until(lambda: _is_noted(target_database))
        await decide_held(config, "mirror", "refused")
        await run.settled(feeder)
        make(table, 1, lsn=100)
        await feeder.flush()
        await run.rows(target_database, IDS, [(1,)])


async def _is_noted(url: str) -> bool:
    return bool(await execute(url, "SELECT 1 FROM _tailrace.gates WHERE state = 'held'"))


@pytest.mark.thorough
async def test_a_key_that_waits_for_another_is_no_dead_letter_while_the_table_is_gone(
    feeder: Feeder, target_database: str
) -> None:
    """H23: it is tried again all the time, and that the table is gone is no reason of its own."""
    await execute(
        target_database,
        "CREATE SCHEMA mirror",
        "CREATE TABLE mirror.people (id int PRIMARY KEY, name text UNIQUE, note text)",
    )
    table = await feeder.table("people", COLUMNS)
    (first, second), (third, *_) = (_of_partition(table, p) for p in (0, 1))
    make(table, first, lsn=100, name="x")
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.settled(feeder)
        make(table, third, lsn=200, name="x")
        await feeder.flush()
        await run.until(lambda: run.flow().get("waiting") == 1, "waiting")
        await execute(target_database, "ALTER TABLE mirror.people RENAME TO away")
        make(table, second, lsn=210, name="y")
        table.update({"id": first, "name": "z", "note": None}, 220)
        await feeder.flush()
        await run.until(lambda: run.flow().get("state") == "stalled", "stalled")
        await _reports(run, 3)
        assert (run.flow()["waiting"], run.flow()["parked"]) == (1, 0)
        await execute(target_database, "ALTER TABLE mirror.away RENAME TO people")
        rows = [(first, "z"), (second, "y"), (third, "x")]
        await run.rows(target_database, "SELECT id, name FROM mirror.people ORDER BY id", sorted(rows))


def _of_partition(table: Table, partition: int) -> list[int]:
    return [n for n in range(100) if table.partition_of({"id": n}) == partition][:2]


async def _reports(run: Any, count: int) -> None:
    for _ in range(count):
        seen = run.status.record.detail
        await run.until(lambda seen=seen: run.status.record.detail is not seen, "a report")
