"""Flows into tables that were there before: columns, what does not fit, and what the target fills itself."""

from __future__ import annotations

from typing import Any

import pytest

from streamer.changes.kinds import UNAVAILABLE
from tests.harness.given import execute, given, people, person

ONE = {"from": "shop.public.people", "to": "copy.own.customers"}


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


async def test_a_cast_of_a_float_to_a_numeric_keeps_every_digit(target_database: str) -> None:
    """The server's own cast rounds a double to 15 digits, and a real to 6."""
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE DOMAIN own.amount AS numeric CHECK (value < 1000)",
        "CREATE TABLE own.n (id int PRIMARY KEY, f numeric, r numeric, d own.amount, p numeric(8,2))",
    )
    columns = {"id": "integer", "f": "double precision", "r": "real", "d": "double precision"}
    casts = {"f": "numeric", "r": "numeric", "d": "own.amount", "p": "numeric(8,2)"}
    flow = {"columns": {name: {"cast": cast} for name, cast in casts.items()}}
    async with given(target_database, flow) as at:
        table = at.log.table("n", {**columns, "p": "double precision"})
        table.create({"id": 1, "f": 1 / 3, "r": 1234567.9, "d": 2 / 3, "p": 2.674999999999999})
        table.create({"id": 2, "f": -0.0, "r": "NaN", "d": 1e-20, "p": 1e5})
        await at.apply()
        assert await at.rows("SELECT f::text, r::text, d::text, p::text FROM own.n ORDER BY id") == [
            ("0.3333333333333333", "1234567.9", "0.6666666666666666", "2.67"),
            ("0", "NaN", "0.00000000000000000001", "100000.00"),
        ]


async def test_a_name_of_an_object_goes_to_its_column_as_a_text(target_database: str) -> None:
    """Never by way of a regclass, which this database would look up."""
    async with given(target_database, {"columns": {"place": {"to": "was_at", "cast": "text"}}}) as at:
        at.log.table("objects", {"id": "integer", "place": "regclass"}).create({"id": 1, "place": "missing"})
        await at.apply()
        assert await at.rows("SELECT was_at FROM own.objects") == [("missing",)]


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
            {},
            MADE.format("").replace("PRIMARY KEY", "").replace("extra text", "n int, PRIMARY KEY (id, n)"),
            "its key is (id, n), and the flow's is (id)",
        ),
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


async def test_a_deferrable_key_is_made_one_that_an_upsert_can_use(target_database: str) -> None:
    """A unique index beside it is none: ON CONFLICT takes both, and fails."""
    await execute(
        target_database,
        "CREATE SCHEMA own",
        "CREATE TABLE own.people (id int PRIMARY KEY DEFERRABLE, full_name text, seen text, extra text)",
        "CREATE UNIQUE INDEX ON own.people (id)",
    )
    async with given(target_database, {}) as at:
        people(at).create(person(1))
        said = await at.refused()
        await execute(target_database, said[said.index("ALTER TABLE") : said.index(";")])
        await at.apply()
        assert await at.rows("SELECT id FROM own.people") == [(1,)]


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
