"""Rows that a target refuses, on a real Kafka and a real Postgres: parked alone, everything else flows."""

from __future__ import annotations

import asyncio
import sys
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import psycopg
import pytest
from aiokafka import TopicPartition

from consumers.apply import keeping, parking, writing
from streamer.changes.kinds import UNAVAILABLE
from streamer.changes.topics import dead_letters_topic
from streamer.kafka import admin, offset_ranges, read_to_end
from streamer.publisher.topics import describe
from tests.harness.capture import run as execute
from tests.harness.capture import until
from tests.harness.feeder import Feeder, applying, config_of, config_text

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
QUEUES = "SELECT convert_from(key, 'UTF8'), sequence, lsn, code FROM _tailrace.parked ORDER BY key, sequence"


@pytest.fixture
async def feeder(kafka: str, kafka_name: str) -> AsyncIterator[Feeder]:
    async with Feeder(kafka, kafka_name) as feeder:
        yield feeder


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


async def test_h24_a_bad_row_is_parked_alone(feeder: Feeder, target_database: str) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS)
    for n in range(1, 100):
        table.create(row(n, "bad" if n == 37 else "good"), 100, n)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(98,)])
        await run.rows(target_database, QUEUES, [('{"id":37}', 1, 100, "23514")])
        table.create(row(100), 200)
        table.update(row(37, "later"), 210)
        await feeder.flush()
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(99,)])
        await run.rows(target_database, QUEUES, [('{"id":37}', 2, 210, "23514")])
        await run.until(lambda: run.flow().get("parked") == 1, "the count in the heartbeat")
        assert run.status.record.state == "streaming"
        assert any("dead-letters list copy" in finding for finding in run.status.record.detail["findings"])
        (letter,) = await letters(feeder)
        assert letter["payload"]["after"] == row(37, "bad")
        assert letter["key"] == '{"id":37}'
        assert letter["table"] == "public.people"
        assert letter["reason"]["code"] == "23514"
        assert "fits" in letter["reason"]["message"]
        assert letter["version"] == [1, 100, 37]
        assert letter["action"] == "parked"
        assert (letter["flow"], letter["topic"]) == ("mirror", table.topic)
        assert letter["partition"] == table.partition_of(row(37))
        await ask(target_database, "retry")
        await run.rows(target_database, "SELECT name FROM mirror.people WHERE id = 37", [("later",)])
        await run.rows(target_database, QUEUES, [])
        await run.until(lambda: run.flow().get("parked") == 0, "the count in the heartbeat")


async def test_h24_later_changes_wait_in_order_and_a_retry_applies_them_in_order(
    feeder: Feeder, target_database: str
) -> None:
    """A change that needs what went before (an unchanged TOAST value) joins; a whole row takes its place."""
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1, "bad", "big"), 100)
    table.create(row(2, "bad", "big"), 100, 1)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        first = [('{"id":1}', 1, 100, "23514"), ('{"id":2}', 1, 100, "23514")]
        await run.rows(target_database, QUEUES, first)
        table.update(row(1, "patched", UNAVAILABLE), 200)
        await feeder.flush()
        await run.rows(target_database, QUEUES, [first[0], ('{"id":1}', 2, 200, "23514"), first[1]])
        table.delete(row(2), 210)
        await feeder.flush()
        joined = [first[0], ('{"id":1}', 2, 200, "23514"), ('{"id":2}', 2, 210, "23514")]
        await run.rows(target_database, QUEUES, joined)
        table.create(row(2, "again", "other"), 220)
        await feeder.flush()
        joined[2] = ('{"id":2}', 3, 220, "23514")
        await run.rows(target_database, QUEUES, joined)
        await run.rows(target_database, NAMES, [])
        await execute(target_database, MEND)
        await ask(target_database, "retry")
        query = "SELECT id, name, note, _tailrace_lsn FROM mirror.people ORDER BY id"
        await run.rows(target_database, query, [(1, "patched", "big", 200), (2, "again", "other", 220)])
        await run.rows(target_database, QUEUES, [])
        table.update(row(1, "free", "x"), 300)
        await feeder.flush()
        await run.rows(target_database, query, [(1, "free", "x", 300), (2, "again", "other", 220)])
    assert len(await letters(feeder)) == 2


async def test_h24_a_retry_that_is_refused_again_stays_and_a_discard_keeps_a_record(
    feeder: Feeder, target_database: str
) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1, "bad"), 100)
    table.create(row(2), 110)
    await feeder.flush()
    state = "SELECT attempts, asked, message LIKE '%fits%' FROM _tailrace.parked"
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, state, [(1, "", True)])
        await ask(target_database, "retry")
        await run.rows(target_database, state, [(2, "", True)])
        assert len(await letters(feeder)) == 1
        await ask(target_database, "discard")
        await run.rows(target_database, state, [])
        table.update(row(1, "fresh"), 200)
        await feeder.flush()
        await run.rows(target_database, NAMES, [(1, "fresh"), (2, "good")])
    parked, discarded = await letters(feeder)
    assert (parked["action"], discarded["action"]) == ("parked", "discarded")
    assert discarded["payload"]["after"] == row(1, "bad")
    assert "ann@host" in discarded["reason"]["message"]


async def test_h24_a_truncate_ends_what_waits_below_it(feeder: Feeder, target_database: str) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1, "bad"), 100)
    table.create(row(2), 110)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, QUEUES, [('{"id":1}', 1, 100, "23514")])
        table.truncate(200)
        table.create(row(1), 210)
        await feeder.flush()
        await run.rows(target_database, QUEUES, [('{"id":1}', 2, 210, "23514")])
        table.truncate(300)
        await feeder.flush()
        await run.rows(target_database, QUEUES, [])
        table.create(row(1, "last"), 310)
        await feeder.flush()
        await run.rows(target_database, NAMES, [(1, "last")])


async def test_h24_a_record_that_does_not_decode_stops_nothing(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1, "one"), 100)
    table.create(row(2, "two"), 100, 1)
    table.raw(table.key_of(row(1)), b"\xff{")
    table.raw(None, b'{"op":"c"}')
    table.update(row(1, "behind"), 200)
    table.update(row(2, "deux"), 200, 1)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, NAMES, [(1, "one"), (2, "deux")])
        waiting = [("", 1, 0, "undecodable"), ('{"id":1}', 2, 200, "undecodable")]
        await run.rows(target_database, QUEUES, waiting)
        await ask(target_database, "retry")
        await run.rows(target_database, NAMES, [(1, "behind"), (2, "deux")])
        await run.rows(target_database, QUEUES, waiting[:1])
        await run.rows(target_database, "SELECT attempts, asked FROM _tailrace.parked", [(2, "")])
        await ask(target_database, "discard")
        await run.rows(target_database, QUEUES, [])
        assert run.status.record.state == "streaming"
    found = await letters(feeder)
    assert [letter["action"] for letter in found] == ["parked", "parked", "discarded"]
    raw = next(letter for letter in found if letter["key"] == '{"id":1}')
    assert (raw["payload"], raw["payload_encoding"]) == (b64encode(b"\xff{").decode(), "base64")
    assert raw["reason"]["code"] == "undecodable"
    assert raw["table"] == "public.people"


async def test_h24_above_the_limit_the_target_pauses_and_goes_on_by_itself(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "PARKED_KEYS_LIMIT", 5)
    monkeypatch.setattr(writing, "LIMIT_PROBE_S", 0.2)
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    for n in range(4):
        table.create(row(n, "bad"), 100, n)
    await feeder.flush()
    parked = "SELECT count(*) FROM _tailrace.parked"
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, parked, [(4,)])
        table.create(row(10, "bad"), 200)
        table.create(row(11, "bad"), 200, 1)
        table.create(row(12), 200, 2)
        await feeder.flush()
        await run.until(lambda: run.status.record.state == "error", "the pause")
        reason = run.status.record.reason
        assert "4 keys are parked and 2 more" in reason
        assert "limit is 5" in reason
        assert "tailrace dead-letters retry copy" in reason
        assert len(await letters(feeder)) == 4
        await run.rows(target_database, NAMES, [])
        await ask(target_database, "discard")  # carried out while it pauses
        await run.rows(target_database, NAMES, [(12, "good")])
        await run.rows(target_database, parked, [(2,)])
        await run.until(lambda: run.status.record.state == "streaming", "going on")
        for n in range(20, 24):
            table.create(row(n, "bad"), 300, n)
        await feeder.flush()
        await run.until(lambda: run.status.record.state == "error", "the pause")
        await execute(target_database, MEND)  # nobody asks for anything
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(5,)])
        await run.until(lambda: run.status.record.state == "streaming", "going on")
        await run.rows(target_database, parked, [(2,)])


async def test_h24_above_the_limit_of_records_that_do_not_decode(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parking, "PARKED_KEYS_LIMIT", 5)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1), 100)
    for n in range(2, 8):
        table.raw(table.key_of(row(n)), b"nothing")
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.until(lambda: run.status.record.state == "error", "the pause")
        assert "records of 6 more are no change events, the limit is 5" in run.status.record.reason
        assert table.topic in run.status.record.reason
    assert await letters(feeder) == []


async def test_h24_a_tenth_of_a_minutes_rows_is_no_rows_fault(feeder: Feeder, target_database: str) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    for n in range(400):
        table.create(row(n, "bad" if n % 3 == 0 else "good"), 100, n)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.until(lambda: run.status.record.state == "error", "the pause")
        assert "of the last minute's 400 rows are refused, the limit is 10%" in run.status.record.reason
        assert await letters(feeder) == []
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(0,)])


async def test_h24_every_refused_row_of_a_batch_is_found(feeder: Feeder, target_database: str) -> None:
    """Also of two tables and schemas, deletes and patches, and more of them than one search names."""
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=2)
    for n in range(3000):
        table.create(row(n, "bad" if n % 20 == 0 else "good", "n"), 100, n)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(2850,)])
        await run.rows(target_database, "SELECT count(*) FROM _tailrace.parked", [(150,)])
        await execute(
            target_database,
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF OLD.id = 7 THEN RAISE 'never 7'; END IF; RETURN OLD; END $$",
            "CREATE TRIGGER keep BEFORE DELETE ON mirror.people FOR EACH ROW EXECUTE FUNCTION keep()",
            "ALTER TABLE mirror.people ENABLE ALWAYS TRIGGER keep",
        )
        for n in (6, 7, 8):
            table.delete(row(n), 200, n)
        table.update(row(9, "bad", UNAVAILABLE), 200, 9)
        table.update(row(11, "fine", UNAVAILABLE), 200, 10)
        await feeder.flush()
        query = "SELECT id, name, note FROM mirror.people WHERE id BETWEEN 6 AND 11 ORDER BY id"
        left = [(7, "good", "n"), (9, "good", "n"), (10, "good", "n"), (11, "fine", "n")]
        await run.rows(target_database, query, left)
        late = "SELECT convert_from(key, 'UTF8'), code FROM _tailrace.parked WHERE lsn = 200 ORDER BY 1"
        await run.rows(target_database, late, [('{"id":7}', "P0001"), ('{"id":9}', "23514")])
    assert len(await letters(feeder)) == 152


FAULTS = {
    "disk full": "53100",
    "read-only": "25006",
    "statement timeout": "57014",
    "deadlock": "40P01",
    "serialization failure": "40001",
    "lock timeout": "55P03",
    "out of memory": "53200",
    "missing table": "42P01",
}


@pytest.mark.parametrize("code", FAULTS.values(), ids=FAULTS.keys())
async def test_h24_a_fault_of_the_store_is_never_a_dead_letter(
    feeder: Feeder, target_database: str, code: str
) -> None:
    await execute(
        target_database,
        *MADE,
        f"CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE 'as if' USING ERRCODE = '{code}'; END $$",
        "CREATE TRIGGER fail BEFORE INSERT ON mirror.people FOR EACH ROW EXECUTE FUNCTION fail()",
        "ALTER TABLE mirror.people ENABLE ALWAYS TRIGGER fail",
    )
    table = await feeder.table("people", COLUMNS)
    table.create(row(1), 100)
    table.create(row(2, "bad"), 100, 1)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.until(lambda: run.status.record.state == "waiting", "waiting")
        assert code in run.status.record.reason
        assert run.status.record.since_us > run.status.record.started_us
        assert await letters(feeder) == []
        await run.rows(target_database, QUEUES, [])
        await execute(target_database, "DROP TRIGGER fail ON mirror.people")
        await run.rows(target_database, NAMES, [(1, "good")])
        await run.rows(target_database, QUEUES, [('{"id":2}', 1, 100, "23514")])
        await run.until(lambda: run.status.record.state == "streaming", "going on")


async def test_h24_a_real_deadlock_is_tried_again(feeder: Feeder, target_database: str) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    for n in (1, 2):
        table.create(row(n), 100, n)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, NAMES, [(1, "good"), (2, "good")])
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("SET deadlock_timeout = '1h'")  # apply's session finds it
            await other.execute("UPDATE mirror.people SET note = 'mine' WHERE id = 2")
            for n in (1, 2):
                table.update(row(n, "later"), 200, n)
            await feeder.flush()
            await blocked(target_database, 1)
            await other.execute("UPDATE mirror.people SET note = 'mine' WHERE id = 1")
            await other.commit()
        await run.rows(target_database, NAMES, [(1, "later"), (2, "later")])
        await run.rows(target_database, QUEUES, [])
    assert await letters(feeder) == []


async def test_h24_a_session_that_ends_is_no_dead_letter(feeder: Feeder, target_database: str) -> None:
    """In the middle of a search for what is refused; nor does the next session forget a delete (H3)."""
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1), 100)
    table.delete(row(1), 300)
    table.create(row(2), 310)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, NAMES, [(2, "good")])
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("UPDATE mirror.people SET note = 'mine' WHERE id = 2")
            table.update(row(2, "later"), 400)
            table.create(row(3, "bad"), 400, 1)
            table.create(row(1, "old"), 200)
            await feeder.flush()
            await blocked(target_database, 1)
            await execute(target_database, END_APPLY)
            await other.commit()
        await run.rows(target_database, NAMES, [(2, "later")])
        await run.rows(target_database, QUEUES, [('{"id":3}', 1, 400, "23514")])
    assert len(await letters(feeder)) == 1


async def test_h24_parked_keys_follow_their_partition(feeder: Feeder, target_database: str) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=2)
    keys = [next(n for n in range(1, 50) if table.partition_of(row(n)) == p) for p in (0, 1)]
    config = config_of(feeder, target_database)
    for n in keys:
        table.create(row(n, "bad"), 100)
    await feeder.flush()
    count = "SELECT count(*), max(lsn) FROM _tailrace.parked"
    async with applying(config) as one:
        await one.rows(target_database, count, [(2, 100)])
        async with applying(config) as two:
            await two.until(lambda: len(two.flow().get("partitions", ())) == 1, "a partition each")
            await two.until(lambda: two.flow().get("parked") == 1, "a key each")
            await one.until(lambda: one.flow().get("parked") == 1, "a key each")
            for n in keys:
                table.update(row(n, "later"), 200)
            await feeder.flush()
            await one.rows(target_database, count, [(2, 200)])
            await one.rows(target_database, NAMES, [])
            await ask(target_database, "retry")
            await one.rows(target_database, NAMES, sorted((n, "later") for n in keys))
            for n in keys:
                table.update(row(n, "bad"), 300)
            await feeder.flush()
            await two.rows(target_database, count, [(2, 300)])
            await two.stop()
        await one.until(lambda: one.flow().get("parked") == 2, "both keys")
        for n in keys:
            table.update(row(n, "last"), 400)
        await feeder.flush()
        await one.rows(target_database, count, [(2, 400)])
        await ask(target_database, "retry")
        await one.rows(target_database, NAMES, sorted((n, "last") for n in keys))
    assert len(await letters(feeder)) == 4


async def test_h23_a_constraint_that_no_partition_satisfies_becomes_a_dead_letter(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that has the value is the user's own: nothing that is on its way frees it."""
    monkeypatch.setattr(keeping, "PASS_AFTER_S", 2.0)
    await execute(
        target_database,
        "CREATE SCHEMA mirror",
        "CREATE TABLE mirror.people (id int PRIMARY KEY, name text CONSTRAINT one_name UNIQUE, note text)",
        "INSERT INTO mirror.people VALUES (1000, 'taken')",
    )
    table = await feeder.table("people", COLUMNS, partitions=2)
    table.create(row(1, "taken"), 100)
    table.create(row(2), 100, 1)
    await feeder.flush()
    state = "SELECT waiting, code, attempts FROM _tailrace.parked"
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, state, [(True, "23505", 1)])
        await run.rows(target_database, "SELECT id FROM mirror.people ORDER BY id", [(2,), (1000,)])
        assert await letters(feeder) == []
        await run.rows(target_database, state, [(False, "23505", 2)])
        (letter,) = await letters(feeder)
        assert letter["reason"]["code"] == "23505"
        await execute(target_database, "DELETE FROM mirror.people WHERE id = 1000")
        await ask(target_database, "retry")
        await run.rows(target_database, NAMES, [(1, "taken"), (2, "good")])


async def test_h23_a_row_waits_for_another_partition(feeder: Feeder, target_database: str) -> None:
    """It is parked without a dead letter, and goes by itself when the value is free."""
    await execute(
        target_database,
        "CREATE SCHEMA mirror",
        "CREATE TABLE mirror.people (id int PRIMARY KEY, name text CONSTRAINT one_name UNIQUE, note text)",
    )
    table = await feeder.table("people", COLUMNS, partitions=2)
    one, two = (next(n for n in range(1, 50) if table.partition_of(row(n)) == p) for p in (0, 1))
    table.create(row(one, "name"), 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, NAMES, [(one, "name")])
        table.create(row(two, "name"), 300)
        await feeder.flush()
        await run.rows(target_database, "SELECT waiting FROM _tailrace.parked", [(True,)])
        await run.until(lambda: run.flow().get("waiting") == 1, "the count in the heartbeat")
        assert run.flow()["parked"] == 0
        table.update(row(one, "other"), 200)
        await feeder.flush()
        await run.rows(target_database, NAMES, sorted([(one, "other"), (two, "name")]))
        await run.rows(target_database, QUEUES, [])
    assert await letters(feeder) == []


async def test_h24_a_kill_between_the_letter_and_the_commit_loses_nothing(
    feeder: Feeder, target_database: str, tmp_path: Path
) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1), 100)
    await feeder.flush()
    file = tmp_path / "tailrace.yaml"
    file.write_text(config_text(feeder, target_database))
    process = await tailrace("apply", "copy", "-c", str(file))
    try:
        await present(target_database, NAMES, [(1, "good")])
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("LOCK TABLE _tailrace.parked IN SHARE MODE")
            table.create(row(2, "bad"), 200)
            table.create(row(3), 200, 1)
            await feeder.flush()
            await blocked(target_database, 1)
            assert len(await letters(feeder)) == 1
            process.kill()
            await process.communicate()
            await execute(target_database, END_APPLY)  # all up to the COMMIT had been sent
            await other.rollback()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, NAMES, [(1, "good"), (3, "good")])
        await run.rows(target_database, QUEUES, [('{"id":2}', 1, 200, "23514")])
        await execute(target_database, MEND)
        await ask(target_database, "retry")
        await run.rows(target_database, NAMES, [(1, "good"), (2, "bad"), (3, "good")])
    assert [letter["key"] for letter in await letters(feeder)] == ['{"id":2}'] * 2


async def test_commands_list_and_retry(feeder: Feeder, target_database: str, tmp_path: Path) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1, "bad"), 100)
    await feeder.flush()
    file = tmp_path / "tailrace.yaml"
    file.write_text(config_text(feeder, target_database))
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, QUEUES, [('{"id":1}', 1, 100, "23514")])
        (parked,) = await command(file, "list")
        assert (parked["table"], parked["key"]) == ("public.people", '{"id":1}')
        await execute(target_database, MEND)
        assert (await command(file, "retry"))["done"] == 1
        await run.rows(target_database, NAMES, [(1, "bad")])


async def command(file: Path, name: str, *arguments: str, code: int = 0) -> Any:
    """`tailrace dead-letters NAME copy --json`"""
    process = await tailrace("dead-letters", name, "copy", *arguments, "-c", str(file), "--json")
    out, err = await process.communicate()
    assert process.returncode == code, (out, err)
    return orjson.loads(out or err)


@pytest.mark.thorough
async def test_commands_list_show_retry_and_discard(
    feeder: Feeder, target_database: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    await execute(target_database, *MADE)
    people = await feeder.table("people", COLUMNS, partitions=1)
    dates = await feeder.table("dates", [("id", "integer", "number"), ("day", "date", "date")])
    for n in (1, 2, 3):
        people.create(row(n, "bad"), 100, n)
    dates.create({"id": 1, "day": "2026-02-30"}, 110)
    await feeder.flush()
    file = tmp_path / "tailrace.yaml"
    flows = {"people": "public.people", "dates": "public.dates"}
    file.write_text(config_text(feeder, target_database, flows=flows))

    async with applying(config_of(feeder, target_database, flows=flows)) as run:
        await run.rows(target_database, "SELECT count(*) FROM _tailrace.parked", [(4,)])
        assert {(e["table"], e["key"]) for e in await command(file, "list")} == {
            ("public.dates", '{"id":1}'),
            *(("public.people", f'{{"id":{n}}}') for n in (1, 2, 3)),
        }
        assert len(await command(file, "list", "--flow", "people")) == 3
        assert len(await command(file, "list", "--table", "public.da*")) == 1
        assert len(await command(file, "list", "--table", "people", "--key", "2")) == 1
        assert len(await command(file, "list", "--key", '{"id":1}')) == 2
        assert [e["reason"]["code"] for e in await command(file, "list", "--reason", "22008")] == ["22008"]
        assert len(await command(file, "list", "--reason", "constraint")) == 3
        assert await command(file, "list", "--reason", "no such words") == []
        (shown,) = await command(file, "show", "--table", "people", "--key", "3")
        assert shown["queue"][0]["payload"]["after"] == row(3, "bad")

        assert len((await command(file, "retry", "--flow", "people", "--dry-run"))["keys"]) == 3
        assert (await command(file, "retry", "--table", "people", code=1))["refused"][0]["attempts"] == 2
        await execute(target_database, MEND)
        done = await command(file, "retry", "--key", '{"id":2}')
        assert (done["done"], done["refused"], done["unanswered"]) == (1, [], 0)
        await run.rows(target_database, NAMES, [(2, "bad")])
        assert "--yes" in (await command(file, "discard", code=64))["error"]["fix"]
        assert (await command(file, "discard", "--table", "dates"))["done"] == 1
        assert (await command(file, "retry"))["done"] == 2
        await run.rows(target_database, NAMES, [(1, "bad"), (2, "bad"), (3, "bad")])
        assert await command(file, "list") == []
        dates.create({"id": 2, "day": "2026-02-30"}, 200)
        await feeder.flush()
        await run.rows(target_database, "SELECT count(*) FROM _tailrace.parked", [(1,)])
    assert (await command(file, "retry", "--wait", "1", code=3))["unanswered"] == 1
    (marked,) = await command(file, "list")
    assert marked["asked"] == "retry"
    assert "@" in marked["asked_by"]
    async with applying(config_of(feeder, target_database, flows=flows)) as run:
        await run.rows(target_database, "SELECT attempts, asked FROM _tailrace.parked", [(2, "")])
