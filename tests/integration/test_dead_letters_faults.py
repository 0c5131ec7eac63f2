"""What is no dead letter: a fault of the store, and a constraint that another partition satisfies."""

from __future__ import annotations

import psycopg
import pytest

from consumers.apply import keeping
from tests.harness.capture import run as execute
from tests.harness.feeder import Feeder, applying, config_of
from tests.harness.parked import COLUMNS, CUT_OFF, END_APPLY, MADE, NAMES, QUEUES, ask, blocked, letters, row

FAULTS = {
    "disk full": "53100",
    "read-only": "25006",
    "statement timeout": "57014",
    "deadlock": "40P01",
    "serialization failure": "40001",
    "lock timeout": "55P03",
    "out of memory": "53200",
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


async def test_h24_a_statement_that_is_cut_off_is_tried_again(feeder: Feeder, target_database: str) -> None:
    """By whoever watches for long ones: the session of apply has no statement_timeout of its own."""
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1), 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, NAMES, [(1, "good")])
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("UPDATE mirror.people SET note = 'mine' WHERE id = 1")
            table.update(row(1, "later"), 200)
            table.create(row(2, "bad"), 210)
            await feeder.flush()
            since_us = 0
            for _ in range(3):
                await blocked(target_database, 1)
                await execute(target_database, CUT_OFF)
                await run.until(lambda: run.status.record.state == "waiting", "waiting")
                assert "[57014]" in run.status.record.reason
                since_us = since_us or run.status.record.since_us
                assert run.status.record.since_us == since_us
            assert await letters(feeder) == []
            await other.commit()
        await run.rows(target_database, NAMES, [(1, "later")])
        await run.rows(target_database, QUEUES, [('{"id":2}', 1, 210, "23514")])
        await run.until(lambda: run.status.record.state == "streaming", "going on")


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


async def test_h23_a_constraint_that_no_partition_satisfies_becomes_a_dead_letter(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that has the value is the user's own: nothing that is on its way frees it."""
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
        monkeypatch.setattr(keeping, "PASS_AFTER_S", 0.0)
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
