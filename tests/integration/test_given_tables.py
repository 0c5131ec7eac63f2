"""Flows into tables that were there before: columns, ways to write and to delete, versions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from consumers.testing import LogTable
from streamer.changes.kinds import UNAVAILABLE
from tests.harness.given import Given, execute, given

PEOPLE = {"id": "integer", "full_name": "text", "seen": "text", "extra": "text"}
ONE = {"from": "shop.public.people", "to": "copy.own.customers"}


def person(
    n: int, name: str = "a", seen: str | None = "2026-01-02 03:04:05+02", extra: str = "x"
) -> dict[str, Any]:
    return {"id": n, "full_name": name, "seen": seen, "extra": extra}


def people(at: Given) -> LogTable:
    return at.log.table("people", PEOPLE)


# Columns


async def test_columns_are_renamed_cast_and_completed_by_constants(target_database: str) -> None:
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.customers (customer_id bigint PRIMARY KEY, name varchar, last_seen timestamptz,"
        " tenant text NOT NULL, level smallint, tags jsonb, active boolean, mine text DEFAULT 'kept')",
    )
    flow = ONE | {
        "columns": {
            "id": "customer_id",
            "full_name": {"to": "name"},
            "seen": {"to": "last_seen", "cast": "timestamptz"},
            "tenant": {"value": "o'acme"},
            "level": {"value": 3},
            "tags": {"value": ["a", {"b": None}]},
            "active": {"value": True},
        },
        "unmapped": "ignore",
    }
    query = (
        "SELECT customer_id, name, last_seen::text, tenant, level, tags::text, active, mine"
        " FROM own.customers ORDER BY 1"
    )
    same = ("o'acme", 3, '["a", {"b": null}]', True, "kept")
    async with given(target_database, flow) as at:
        table = people(at)
        table.create(person(1, "Ann"))
        table.create(person(2, "Ben", None))
        await at.apply()
        assert await at.rows(query) == [
            (1, "Ann", "2026-01-02 01:04:05+00", *same),
            (2, "Ben", None, *same),
        ]
        table.update(person(1, "Anna", UNAVAILABLE))  # a patch goes by the target's names too
        table.delete({"id": 2})
        await at.apply()
        assert await at.rows(query) == [(1, "Anna", "2026-01-02 01:04:05+00", *same)]


async def test_casts_go_by_the_source_type_and_by_text_where_there_is_no_cast(target_database: str) -> None:
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.n (id int PRIMARY KEY, whole integer, flag boolean, words text, j jsonb)",
    )
    columns = {"id": "integer", "price": "numeric(8,2)", "flag": "integer", "words": "numeric", "j": "text"}
    flow = {
        "to": "copy.own",
        "columns": {
            "price": {"to": "whole", "cast": "integer"},  # numeric to integer rounds
            "flag": {"cast": "boolean"},
            "j": {"cast": "jsonb"},
        },
    }
    async with given(target_database, flow) as at:
        at.log.table("n", columns).create(
            {"id": 1, "price": "12.60", "flag": 5, "words": "1.50", "j": '{"a":1}'}
        )
        await at.apply()
        assert await at.rows("SELECT id, whole, flag, words, j::text FROM own.n") == [
            (1, 13, True, "1.50", '{"a": 1}')
        ]


@pytest.mark.parametrize(
    ("unmapped", "columns", "found"),
    [
        ("add", ["id", "full_name", "seen", "extra"], None),
        ("ignore", ["id", "full_name"], None),
        ("fail", [], "seen, extra"),
    ],
)
async def test_unmapped_columns(
    target_database: str, unmapped: str, columns: list[str], found: str | None
) -> None:
    await execute(
        target_database, "CREATE SCHEMA own", "CREATE TABLE own.people (id int PRIMARY KEY, full_name text)"
    )
    async with given(target_database, {"unmapped": unmapped}) as at:
        people(at).create(person(1))
        if found is not None:
            error = await at.refused()
            assert f"the target's table has no column for: {found}" in error
            assert "unmapped: ignore" in error
            return
        await at.apply()
        query = (
            "SELECT attname::text FROM pg_attribute WHERE attrelid = 'own.people'::regclass AND attnum > 0"
            " AND attname NOT LIKE '\\_tailrace%' ORDER BY attnum"
        )
        assert [name for (name,) in await at.rows(query)] == columns


async def test_a_table_that_is_missing_is_made_as_the_flow_says(target_database: str) -> None:
    flow = ONE | {
        "columns": {"id": "customer_id", "seen": {"to": "at", "cast": "timestamptz"}, "n": {"value": 7}},
        "unmapped": "ignore",
        "delete": "soft(gone_at)",
        "version": "none",
    }
    async with given(target_database, flow) as at:
        people(at).create(person(1))
        await at.apply()
        query = (
            "SELECT attname::text, format_type(atttypid, -1) FROM pg_attribute"
            " WHERE attrelid = 'own.customers'::regclass AND attnum > 0 ORDER BY attnum"
        )
        at_type = "timestamp with time zone"
        assert await at.rows(query) == [
            ("customer_id", "integer"), ("at", at_type), ("n", "bigint"), ("gone_at", at_type),
        ]  # fmt: skip


MADE = "CREATE TABLE own.people (id int PRIMARY KEY, full_name text, seen text, extra text{})"


@pytest.mark.parametrize(
    ("flow", "made", "words"),
    [
        (
            {"columns": {"id": "customer_id"}, "unmapped": "ignore"},
            MADE.format(""),
            "has no column 'customer_id'",
        ),
        ({"columns": {"idd": "x"}}, MADE.format(""), "did you mean 'id'?"),
        ({"columns": {"seen": {"cast": "timestampz"}}}, MADE.format(""), "has no type 'timestampz'"),
        (
            {"columns": {"seen": {"cast": "date"}}},
            MADE.format(", own int").replace("seen text", "seen int"),
            "cast to date",
        ),
        ({"columns": {"n": {"value": "x"}}}, MADE.format(", n int"), "the constant 'x' is no integer"),
        ({}, MADE.format(", must int NOT NULL"), "column 'must' must not be null"),
        (
            {"delete": "soft(gone)"},
            MADE.format(", gone int"),
            "column 'gone', where a delete writes its time, is integer",
        ),
        ({"delete": "soft(seen)"}, MADE.format(""), "delete: soft(seen) keeps"),
        ({"columns": {"seen": "full_name"}}, MADE.format(""), "two columns go to"),
        (
            {"write": "append", "version": "side"},
            MADE.format(""),
            "write: append keeps the version in each row",
        ),
        ({}, "CREATE VIEW own.people AS SELECT 1 AS id", "is a view"),
        ({}, "CREATE MATERIALIZED VIEW own.people AS SELECT 1 AS id", "is a materialized view"),
        (
            {},
            "CREATE TABLE own.people (id int UNIQUE DEFERRABLE, full_name text, seen text, extra text)",
            "is deferrable, which an upsert cannot use",
        ),
        (
            {},
            "CREATE TABLE own.people (id int, full_name text, seen text, extra text, PRIMARY KEY (id, seen))"
            " PARTITION BY LIST (seen)",
            "it is partitioned by seen, which the key (id) does not hold",
        ),
    ],
)
async def test_what_does_not_fit_stops_the_flow_with_its_cure(
    target_database: str, flow: dict[str, Any], made: str, words: str
) -> None:
    await execute(target_database, "CREATE SCHEMA own", made)
    async with given(target_database, flow) as at:
        people(at).create(person(1))
        assert words in await at.refused()


async def test_a_foreign_table_is_refused(target_database: str) -> None:
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE FOREIGN DATA WRAPPER nothing",
        "CREATE SERVER far FOREIGN DATA WRAPPER nothing",
        "CREATE FOREIGN TABLE own.people (id int) SERVER far",
    )
    async with given(target_database) as at:
        people(at).create(person(1))
        assert "is a foreign table" in await at.refused()


async def test_h07_a_value_that_the_flow_does_not_send_may_be_missing(target_database: str) -> None:
    """A placeholder in a column that is ignored leaves the row whole."""
    made = "CREATE TABLE own.people (id int PRIMARY KEY, full_name text)"
    await execute(target_database, "CREATE SCHEMA own", made)
    async with given(target_database, {"unmapped": "ignore"}) as at:
        table = people(at)
        table.update(person(1, "by update", extra=UNAVAILABLE))
        table.create(person(2, "by key change", extra=UNAVAILABLE))
        table.update(person(3, UNAVAILABLE))
        await at.apply()
        assert await at.rows("SELECT id, full_name FROM own.people ORDER BY id") == [
            (1, "by update"), (2, "by key change"),
        ]  # fmt: skip
        assert await at.rows("SELECT key FROM _tailrace.needs_reread") == [('{"id":3}',)]


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


# Columns that the target fills


async def test_a_constant_in_the_key_keeps_to_its_part_of_the_table(target_database: str) -> None:
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.people (tenant text, id int, full_name text, PRIMARY KEY (tenant, id))",
        "INSERT INTO own.people VALUES ('other', 1, 'theirs')",
    )
    flow = {"columns": {"tenant": {"value": "acme"}}, "unmapped": "ignore"}
    query = "SELECT tenant, id, full_name FROM own.people ORDER BY 1, 2"
    async with given(target_database, flow) as at:
        table = people(at)
        table.create(person(1, "ours"))
        table.create(person(2, "ours"))
        await at.apply()
        table.update(person(1, "new"))
        table.delete({"id": 2})
        await at.apply()
        assert await at.rows(query) == [("acme", 1, "new"), ("other", 1, "theirs")]
        table.truncate()
        await at.apply()
        assert await at.rows(query) == [("other", 1, "theirs")]


@pytest.mark.parametrize(
    "kind", ["serial", "int GENERATED BY DEFAULT AS IDENTITY", "int GENERATED ALWAYS AS IDENTITY"]
)
async def test_sequences_follow_so_that_the_application_can_take_over(
    target_database: str, kind: str
) -> None:
    await execute(
        target_database,
        "CREATE SCHEMA own",
        f"CREATE TABLE own.people (id {kind} PRIMARY KEY, full_name text, seen text, extra text,"
        " twice text GENERATED ALWAYS AS (full_name || full_name) STORED)",
    )
    async with given(target_database) as at:
        table = people(at)
        for n in (3, 7, 5):
            table.create(person(n))
        await at.apply()
        insert = "INSERT INTO own.people (full_name) VALUES ('app') RETURNING id, twice"
        assert await at.rows(insert) == [(8, "appapp")]
        table.update(person(7, "b"))
        table.create(person(20))
        await at.apply()
        await at.target.sweep(60)  # rows came within the same seconds: then it is set in a pause
        assert await at.rows(insert) == [(21, "appapp")]
        table.create(person(2))
        await at.apply()
        await at.target.sweep(60)
        assert await at.rows(insert) == [(22, "appapp")]  # never back


async def test_a_sequence_that_the_role_may_not_set_is_a_finding(target_database: str) -> None:
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.people (id int GENERATED BY DEFAULT AS IDENTITY (MAXVALUE 10) PRIMARY KEY,"
        " full_name text, seen text, extra text)",
    )
    async with given(target_database) as at:
        people(at).create(person(11))
        await at.apply()
        (finding,) = await at.target.findings()
        assert "own.people_id_seq is behind" in finding


async def test_an_identity_outside_the_key_changes_with_its_row(target_database: str) -> None:
    """GENERATED ALWAYS takes no UPDATE: the row is made again, with the columns of its own."""
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.t (id int PRIMARY KEY, n int GENERATED ALWAYS AS IDENTITY, mine text DEFAULT 'm')",
    )
    async with given(target_database) as at:
        table = at.log.table("t", {"id": "integer", "n": "integer"})
        table.create({"id": 1, "n": 5})
        await at.apply()
        await execute(target_database, "UPDATE own.t SET mine = 'changed'")
        table.update({"id": 1, "n": 6})
        await at.apply()
        assert await at.rows("SELECT id, n, mine FROM own.t") == [(1, 6, "changed")]


@pytest.mark.parametrize("version", ["columns", "side"])
async def test_partitioned_tables_route_their_rows(target_database: str, version: str) -> None:
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.people (id int PRIMARY KEY, full_name text, seen text, extra text)"
        " PARTITION BY RANGE (id)",
        "CREATE TABLE own.low PARTITION OF own.people FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE own.high PARTITION OF own.people FOR VALUES FROM (10) TO (20)",
    )
    async with given(target_database, {"version": version}) as at:
        table = people(at)
        for n in (1, 2, 11, 12):
            table.create(person(n))
        await at.apply()
        table.update(person(11, "b"))
        table.delete({"id": 2})
        await at.apply()
        assert await at.rows("SELECT id, full_name FROM own.low") == [(1, "a")]
        assert await at.rows("SELECT id, full_name FROM own.high ORDER BY id") == [(11, "b"), (12, "a")]


async def test_h27_a_twin_in_one_partition_is_no_twin_of_the_others(target_database: str) -> None:
    """Rows of two partitions may share a ctid."""
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.lines (n int, line text) PARTITION BY LIST (n)",
        "CREATE TABLE own.one PARTITION OF own.lines FOR VALUES IN (1)",
        "CREATE TABLE own.two PARTITION OF own.lines FOR VALUES IN (2)",
    )
    async with given(target_database) as at:
        table = at.log.table("lines", {"n": "integer", "line": "text"}, (), identity="f")
        table.create({"n": 1, "line": "a"})
        table.create({"n": 2, "line": "a"})
        await at.apply()
        table.delete({"n": 1, "line": "a"})
        await at.apply()
        assert await at.rows("SELECT n FROM own.lines") == [(2,)]
