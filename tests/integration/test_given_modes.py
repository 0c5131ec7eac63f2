"""Flows into tables that were there before: ways to write and to delete, versions."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from consumers.apply.checkpoint import Move, Place
from consumers.targets.base import Batch, Parked
from streamer.changes.kinds import UNAVAILABLE
from tests.harness.given import execute, given, people, person

# Ways to write


async def test_insert_only_keeps_rows_as_they_were_first_seen(target_database: str) -> None:
    query = "SELECT id, full_name FROM own.people ORDER BY id"
    async with given(target_database, {"write": "insert_only"}) as at:
        table = people(at)
        table.create(person(1, "first"))
        table.create(person(2, "first"))
        table.update(person(2, "second"))  # in the batch of its create
        table.update(person(3, "never made"))
        await at.apply()
        table.update(person(1, "second"))
        await at.apply()
        assert await at.rows(query) == [(1, "first"), (2, "first")]
        table.delete({"id": 1})
        table.create(person(1, "again"))
        table.delete({"id": 2})
        await at.apply()
        assert await at.rows(query) == [(1, "again")]
        await at.rewind()
        await at.apply()
        assert await at.rows(query) == [(1, "again")]


async def test_insert_only_that_ignores_deletes_keeps_the_first_row_of_a_key(target_database: str) -> None:
    async with given(target_database, {"write": "insert_only", "delete": "ignore"}) as at:
        table = people(at)
        table.create(person(1, "first"))
        table.delete({"id": 1})
        table.create(person(1, "again"))
        await at.apply()
        assert await at.rows("SELECT id, full_name FROM own.people") == [(1, "first")]


async def test_insert_only_outlives_a_reset_of_the_source(target_database: str) -> None:
    """The floor at its end deletes what only older epochs wrote: not what the new copy has seen."""
    async with given(target_database, {"write": "insert_only"}) as at:
        table = people(at)
        table.create(person(1, "first"), 100)
        table.create(person(2, "first"), 100)
        await at.apply()
        table.read(person(1, "second"), 50, epoch=2)
        table.floor(2)
        await at.apply()
        assert await at.rows("SELECT id, full_name FROM own.people") == [(1, "first")]


async def test_append_keeps_every_event_once(target_database: str) -> None:
    query = (
        "SELECT id, full_name, _tailrace_op, gone_at IS NOT NULL FROM own.people"
        " ORDER BY _tailrace_lsn, _tailrace_ordinal, id"
    )
    async with given(target_database, {"write": "append", "delete": "soft(gone_at)"}) as at:
        table = people(at)
        table.read(person(1, "copied"), 50)
        table.read(person(2, "copied"), 50)  # a first copy has one version for all
        table.update(person(1, "one"), 100, 0)
        table.update(person(1, "two", UNAVAILABLE), 100, 1)
        table.delete(person(2), 110)
        table.truncate(120)
        table.create(person(2, "back"), 130)
        await at.apply()
        history = [
            (1, "copied", "r", False), (2, "copied", "r", False), (1, "one", "u", False),
            (1, "two", "u", False), (2, "a", "d", True), (2, "back", "c", False),
        ]  # fmt: skip
        assert await at.rows(query) == history
        for _ in range(2):
            await at.rewind()
            await at.apply()
            assert await at.rows(query) == history
        floor = "SELECT count(*) FROM _tailrace.floors WHERE lsn > 0"
        assert await at.rows(floor) == [(0,)]


async def test_append_to_a_table_with_rows_of_its_own(target_database: str) -> None:
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.people (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id int, full_name text)",
        "INSERT INTO own.people (id, full_name) VALUES (1, 'mine'), (1, 'mine')",
    )
    query = "SELECT id, full_name, _tailrace_op FROM own.people ORDER BY n"
    mine = [(1, "mine", ""), (1, "mine", "")]
    async with given(target_database, {"write": "append", "unmapped": "ignore", "delete": "ignore"}) as at:
        table = people(at)
        table.create(person(1, "one"))
        table.delete({"id": 1})
        await at.apply()
        await at.rewind()
        await at.apply()
        assert await at.rows(query) == [*mine, (1, "one", "c")]


async def test_append_of_a_table_without_a_key(target_database: str) -> None:
    async with given(target_database, {"write": "append"}) as at:
        table = at.log.table("lines", {"line": "text"}, (), identity="f")
        table.create({"line": "a"}, 100, 0)
        table.create({"line": "a"}, 100, 1)
        table.delete({"line": "a"}, 110)
        await at.apply()
        await at.rewind()
        await at.apply()
        query = "SELECT line, _tailrace_op FROM own.lines ORDER BY _tailrace_lsn, _tailrace_ordinal"
        assert await at.rows(query) == [("a", "c"), ("a", "c"), ("a", "d")]


async def test_append_without_versions_has_no_columns_of_ours(target_database: str) -> None:
    async with given(target_database, {"write": "append", "version": "none"}) as at:
        people(at).create(person(1))
        people(at).update(person(1, "b"))
        await at.apply()
        assert await at.rows("SELECT * FROM own.people ORDER BY 2") == [
            tuple(person(1).values()), tuple(person(1, "b").values()),
        ]  # fmt: skip


# Ways to delete and to truncate


@pytest.mark.parametrize("version", ["columns", "side", "none"])
async def test_a_soft_delete_marks_the_row_until_it_comes_back(target_database: str, version: str) -> None:
    query = "SELECT id, full_name, gone_at FROM own.people ORDER BY id"
    async with given(target_database, {"delete": "soft(gone_at)", "version": version}) as at:
        table = people(at)
        table.create(person(1))
        table.create(person(2))
        await at.apply()
        us = 1_700_000_000_123_457
        at.log.clock_us = lambda: us
        table.delete({"id": 1})
        table.delete({"id": 9})  # never there
        await at.apply()
        gone = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
        assert await at.rows(query) == [(1, "a", gone), (2, "a", None)]
        table.create(person(1, "back"))
        await at.apply()
        assert await at.rows(query) == [(1, "back", None), (2, "a", None)]


@pytest.mark.parametrize("version", ["columns", "side"])
async def test_a_truncate_under_soft_delete_marks_every_row(target_database: str, version: str) -> None:
    async with given(target_database, {"delete": "soft(gone_at)", "version": version}) as at:
        table = people(at)
        for n in range(8):
            table.create(person(n))
        await at.apply()
        table.truncate()
        table.create(person(3, "back"))
        await at.apply()
        query = "SELECT count(*), count(gone_at), min(id) FILTER (WHERE gone_at IS NULL) FROM own.people"
        assert await at.rows(query) == [(8, 7, 3)]


async def test_ignored_deletes_and_truncates_leave_the_rows(target_database: str) -> None:
    async with given(target_database, {"delete": "ignore", "truncate": "ignore"}) as at:
        table = people(at)
        table.create(person(1))
        table.create(person(2))
        table.delete({"id": 1})
        table.truncate()
        await at.apply()
        table.create(person(2, "again"))
        await at.apply()
        query = "SELECT id, full_name FROM own.people ORDER BY id"
        assert await at.rows(query) == [(1, "a"), (2, "again")]
        table.read(person(2, "anew"), 1, epoch=2)
        table.floor(2)  # a reset's floor is a delete of what is gone
        await at.apply()
        assert await at.rows(query) == [(1, "a"), (2, "anew")]


# Versions


@pytest.mark.parametrize("version", ["columns", "side"])
async def test_h03_an_older_event_never_overwrites(target_database: str, version: str) -> None:
    """Out of order, again from the start, and in parts: only the newest stays."""
    query = "SELECT id, full_name, seen FROM own.people ORDER BY id"
    async with given(target_database, {"version": version}) as at:
        table = people(at)
        table.create(person(1, "new", "s"), 200, 5)
        table.create(person(2, "new", "s"), 200, 6)
        table.create(person(3, "gone", "s"), 200, 7)
        table.delete({"id": 3}, 210)
        await at.apply()
        table.update(person(1, "old", "s"), 200, 4)
        table.delete({"id": 2}, 199)
        table.create(person(3, "old", "s"), 205)
        table.update(person(1, "old", UNAVAILABLE), 150)
        outcome = await at.apply()
        newest = [(1, "new", "s"), (2, "new", "s")]
        assert await at.rows(query) == newest
        assert outcome.guarded == {"mirror": 3}  # two updates of one key are one write
        for _ in range(2):
            await at.rewind()
            for partition in (1, 0):
                await at.part(partition)
            assert await at.rows(query) == newest
        columns = (
            "SELECT count(*) FROM pg_attribute WHERE attrelid = 'own.people'::regclass AND attname ~ '^_tail'"
        )
        assert await at.rows(columns) == [(3 if version == "columns" else 0,)]


async def test_side_versions_are_one_for_keys_that_are_equal(target_database: str) -> None:
    async with given(target_database, {"version": "side"}, partitions=1) as at:
        table = at.log.table("scales", {"id": "numeric", "name": "text"})
        table.create({"id": "1.00", "name": "new"}, 200)
        await at.apply()
        table.delete({"id": "1.0"}, 190)  # a key change, seen in the other order
        table.create({"id": "1.0", "name": "old"}, 150)
        await at.apply()
        assert await at.rows("SELECT name FROM own.scales") == [("new",)]


async def test_h05_side_versions_know_what_a_truncate_leaves(target_database: str) -> None:
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.people (id int PRIMARY KEY, full_name text, seen text, extra text)",
        "INSERT INTO own.people VALUES (77, 'before')",
    )
    async with given(target_database, {"version": "side"}, partitions=4) as at:
        table = people(at)
        for n in range(40):
            table.create(person(n, "before"), 100)
        table.create(person(50, "after"), 210)
        await at.apply()
        table.truncate(200)
        table.create(person(51, "after"), 220)
        await at.apply()
        table.create(person(1, "late"), 150)
        await at.apply()
        query = "SELECT id, full_name FROM own.people ORDER BY id"
        assert await at.rows(query) == [(50, "after"), (51, "after")]
        assert await at.rows("SELECT count(*) FROM _tailrace.versions") == [(2,)]


async def test_side_versions_of_a_dropped_table_are_forgotten(target_database: str) -> None:
    async with given(target_database, {"version": "side"}) as at:
        people(at).create(person(1), 100)
        await at.apply()
        people(at).update(person(1, "b"), 200)
        await at.apply()
    await execute(
        target_database, "DROP TABLE own.people", "UPDATE _tailrace.checkpoints SET next_offset = 0"
    )
    async with given(target_database, {"version": "side"}) as again:
        people(again).create(person(1), 100)
        await again.apply()
        assert await again.rows("SELECT id, full_name FROM own.people") == [(1, "a")]


async def test_without_versions_nothing_is_added_and_nothing_guarded(target_database: str) -> None:
    made = "CREATE TABLE own.people (id int PRIMARY KEY, full_name text, seen text, extra text)"
    await execute(target_database, "CREATE SCHEMA own", made)
    async with given(target_database, {"version": "none"}, partitions=1) as at:
        table = people(at)
        table.create(person(1, "new", "s"), 200)
        table.create(person(2), 200, 1)
        await at.apply()
        table.update(person(1, "older", UNAVAILABLE), 100)
        table.delete({"id": 2}, 101)
        await at.apply()
        assert await at.rows("SELECT id, full_name, seen FROM own.people") == [(1, "older", "s")]
        table.create(person(3), 300)
        table.truncate(310)
        table.create(person(4), 320)
        await at.apply()
        assert await at.rows("SELECT id FROM own.people") == [(4,)]
        assert await at.rows("SELECT count(*) FROM _tailrace.tombstones") == [(0,)]
        await at.rewind()
        await at.apply()
        assert await at.rows("SELECT id FROM own.people") == [(4,)]


async def test_h05_a_truncate_without_versions_needs_one_partition(target_database: str) -> None:
    async with given(target_database, {"version": "none"}, partitions=2) as at:
        table = people(at)
        for n in range(4):
            table.create(person(n))
        table.truncate()
        error = await at.refused()
        assert "its topic has 2 partitions" in error
        assert "truncate: ignore" in error
    async with given(target_database, {"version": "none", "truncate": "ignore"}, partitions=2) as at:
        for n in range(4):
            people(at).create(person(n))
        people(at).truncate()
        await at.apply()
        assert await at.rows("SELECT count(*) FROM own.people") == [(4,)]


# Marks of parked keys


_LOCKED = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = '_tailrace.parked'::regclass"


async def test_h24_a_mark_waits_for_the_batch_that_writes_its_key_anew(target_database: str) -> None:
    """An UPDATE that began before would find the old rows, which are gone, and not the new ones."""
    async with given(target_database, {}) as at:
        place, key = Place(at.flows[0].name, "shop.public.people", 0), b'{"id":1}'
        entry = Parked(
            place, key, 1, 0, (1, 8, 0), b"old", True, "public", "people", False, "23514", "m", 1, 1
        )
        await at.target.checkpoints([place])
        await at.target.apply(Batch([], [Move(place, 0, 1, None)], {}, "c", parks=[entry]))
        async with await psycopg.AsyncConnection.connect(target_database) as batch:
            await batch.execute("CREATE TEMP TABLE kept AS TABLE _tailrace.parked")
            await batch.execute("DELETE FROM _tailrace.parked")
            await batch.execute("UPDATE kept SET payload = 'new'")
            await batch.execute("INSERT INTO _tailrace.parked TABLE kept")
            asked = asyncio.create_task(at.target.ask([(place, key)], "retry", "ann@host"))
            async with asyncio.timeout(60):
                while await at.rows(_LOCKED) != [(1,)]:
                    assert not asked.done()
            await batch.commit()
        assert await asked == 1
        (found,) = await at.target.parked()
        assert (found.payload, found.asked) == (b"new", "retry")
