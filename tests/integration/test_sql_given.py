"""The sql target on SQLite files with tables of their own, fed by a log in memory, batch by batch."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine, event

from consumers.apply.checkpoint import Place
from consumers.targets.base import FlowError, Outcome, Parked, RowsRefused
from consumers.targets.sql import SqlTarget
from consumers.testing import Log, LogTable
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Flow, parse
from streamer.config import SqlTarget as Settings
from streamer.errors import ConfigError, FatalError, TargetUnavailable

SOURCE = "shop"
PEOPLE = {"id": "integer", "name": "text", "email": "text"}
TO_PEOPLE = {"from": f"{SOURCE}.public.people", "to": "lite.main.people"}


@dataclass(slots=True)
class Lite:
    """`apply()` writes what the log has and the target does not have yet, in one batch."""

    file: Path
    target: SqlTarget
    flows: list[Flow]
    log: Log

    async def apply(self) -> Outcome:
        return await self.log.apply(self.target, self.flows)

    async def refused(self) -> str:
        """The error that stops the flow."""
        with pytest.raises(FlowError) as caught:
            await self.apply()
        assert isinstance(caught.value.cause, ConfigError)
        return str(caught.value.cause)

    async def part(self, partition: int) -> Outcome:
        """One partition's rest alone."""
        places = [place for place in self.log.places(self.flows) if place.partition == partition]
        checkpoints = await self.target.checkpoints(places)
        starts: dict[Place, int] = {place: c.next_offset for place, c in checkpoints.items()}
        batch = await self.log.batch(self.flows, starts)
        return await self.target.apply(batch) if batch.moves else Outcome()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return run(self.file, query)

    def rewind(self) -> None:
        run(self.file, "UPDATE _tailrace_checkpoints SET next_offset = 0")


def run(file: Path, *statements: str) -> list[tuple[Any, ...]]:
    """What the last one gives."""
    rows: list[tuple[Any, ...]] = []
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


def target_of(file: Path, flows: dict[str, dict[str, Any]], group: str = "acme.lite") -> SqlTarget:
    text = yaml.safe_dump(
        {
            "name": "acme",
            "sources": {SOURCE: {"kind": "postgres", "url": "postgresql://u@h/d", "tables": {"*.*": {}}}},
            "targets": {"lite": {"kind": "sql", "url": f"sqlite:///{file}"}},
            "flows": {
                name: {"from": f"{SOURCE}.public.*", "to": "lite", **flow} for name, flow in flows.items()
            },
        }
    )
    config = parse(text, Path("tailrace.yaml"), environ={})
    settings = config.targets["lite"]
    assert isinstance(settings, Settings)
    return SqlTarget(settings, group, list(config.flows.values()))


@asynccontextmanager
async def lite(
    file: Path, *flows: dict[str, Any], partitions: int = 2, log: Log | None = None
) -> AsyncIterator[Lite]:
    """`flows`: their keys; one of every table of the schema `public` unless they say otherwise."""
    target = target_of(file, {f"flow{n}": flow for n, flow in enumerate(flows or ({},))})
    await target.open()
    try:
        yield Lite(file, target, list(target._flows), log or Log(SOURCE, partitions=partitions))
    finally:
        await target.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "copy.db"


def person(n: int, name: str = "a", email: str | None = None) -> dict[str, Any]:
    return {"id": n, "name": name, "email": email}


def people(at: Lite) -> LogTable:
    return at.log.table("people", PEOPLE)


# Values


KINDS: list[tuple[str, str, Any, Any, str]] = [
    ("bigint", "number", -(2**63), -(2**63), "integer"),
    ("double precision", "float", 1.5, 1.5, "real"),
    ("double precision", "float", 3, 3.0, "real"),
    ("double precision", "float", "Infinity", float("inf"), "real"),
    ("double precision", "float", "NaN", "NaN", "text"),
    ("boolean", "bool", True, 1, "integer"),
    ("boolean", "bool", False, 0, "integer"),
    ("bit(1)", "bit1", True, 1, "integer"),
    ("bit(4)", "bits", "0101", "0101", "text"),
    ("numeric", "numeric", "123.4500", "123.4500", "text"),
    ("numeric", "numeric", "1" * 40, "1" * 40, "text"),
    ("money", "money", "-1234.11", "-1234.11", "text"),
    ("text", "text", "007", "007", "text"),
    ("uuid", "text", "0d5d5e6e-0000-4000-8000-000000000000", "0d5d5e6e-0000-4000-8000-000000000000", "text"),
    ("bytea", "bytea", "AP8=", b"\x00\xff", "blob"),
    ("jsonb", "json", '{"a": 1.10}', '{"a": 1.10}', "text"),
    ("hstore", "hstore", '{"a":"1"}', '{"a":"1"}', "text"),
    ("date", "date", "infinity", "infinity", "text"),
    ("time without time zone", "time", "13:51:30.5", "13:51:30.5", "text"),
    ("timestamp without time zone", "timestamp", "2016-11-04T13:51:30.5Z", "2016-11-04T13:51:30.5Z", "text"),
    ("timestamp with time zone", "timestamptz", "0044-03-15T10:00:00Z BC", "0044-03-15T10:00:00Z BC", "text"),
    ("time with time zone", "timetz", "11:51:30+02", "11:51:30+02", "text"),
    ("interval", "interval", "P1Y2M3DT4H5M6.78S", "P1Y2M3DT4H5M6.78S", "text"),
    ("vector(2)", "vector", [1, 2.5], "[1,2.5]", "text"),
    ("integer[]", "array:number", [[1, None], [3, 4]], "[[1,null],[3,4]]", "text"),
    ("oid", "number", 4294967295, 4294967295, "integer"),
]


async def test_values_of_every_kind_are_kept(file: Path) -> None:
    columns: dict[str, Any] = {"id": "integer"}
    columns |= {f"c{n}": (type_, kind) for n, (type_, kind, *_) in enumerate(KINDS)}
    async with lite(file) as at:
        table = at.log.table("kinds", columns)
        table.create({"id": 1, **{f"c{n}": value for n, (_, _, value, _, _) in enumerate(KINDS)}})
        table.create({"id": 2, **dict.fromkeys(f"c{n}" for n in range(len(KINDS)))})
        await at.apply()
        one, two = at.rows(f"SELECT {', '.join(f'c{n}' for n in range(len(KINDS)))} FROM kinds ORDER BY id")
        types = at.rows(f"SELECT {', '.join(f'typeof(c{n})' for n in range(len(KINDS)))} FROM kinds")[0]
        assert list(one) == [stored for *_, stored, _ in KINDS]
        assert list(types) == [type_ for *_, type_ in KINDS]
        assert set(two) == {None}


@pytest.mark.parametrize(
    ("kind", "value", "word"),
    [
        ("text", "a\0b", "NUL"),
        ("number", "1", "an integer was expected"),
        ("bool", 1, "true or false was expected"),
        ("bytea", "not base64!", "base64 was expected"),
        ("float", "1.5", "a number was expected"),
        ("numeric", 1.5, "a string was expected"),
        ("array:text", "x", "an array was expected"),
        ("number", 2**63, "too large"),
    ],
)
async def test_a_value_that_does_not_fit_is_refused_alone(
    file: Path, kind: str, value: Any, word: str
) -> None:
    async with lite(file) as at:
        table = at.log.table("t", {"id": "integer", "v": ("x", kind)})
        for n in range(20):
            table.create({"id": n, "v": value if n == 13 else None})
        with pytest.raises(RowsRefused) as caught:
            await at.apply()
        (refused,) = caught.value.rows
        assert refused.key == b'{"id":13}'
        assert word in refused.message
        assert not refused.transient
        assert at.rows("SELECT count(*) FROM t") == [(0,)]


async def test_names_of_any_kind(file: Path) -> None:
    odd = 'wei"rd %s ?: näme'
    async with lite(file) as at:
        table = at.log.table(odd, {"select": "integer", odd: "text", "x": "text"}, ("select",))
        table.create({"select": 1, odd: "a", "x": "b"})
        table.create({"select": 2, odd: "a", "x": "b"})
        await at.apply()
        table.update({"select": 1, odd: "c", "x": UNAVAILABLE})
        table.delete({"select": 2})
        await at.apply()
        quoted = odd.replace('"', '""')
        assert at.rows(f'SELECT "select", "{quoted}", x FROM "{quoted}"') == [(1, "c", "b")]


# Names without schemas


async def test_a_schema_in_to_is_left_out_and_names_that_meet_are_refused(file: Path) -> None:
    async with lite(file, {"from": f"{SOURCE}.*.*", "to": "lite.mirror"}) as at:
        at.log.table("People", PEOPLE).create(person(1))
        await at.apply()
        assert at.rows("SELECT id FROM people") == [(1,)]
        at.log.table("people", PEOPLE, schema="crm").create(person(2))
        error = await at.refused()
        assert "it holds the rows of shop.public.People, and shop.crm.people would be written to it" in error
    async with lite(file, {"from": f"{SOURCE}.crm.*"}) as at:  # another process remembers it
        at.log.table("people", PEOPLE, schema="crm").create(person(2))
        assert "shop.public.People" in await at.refused()


async def test_several_flows_of_one_topic_have_their_own_tables_and_checkpoints(file: Path) -> None:
    other = {"from": f"{SOURCE}.public.people", "to": "lite.main.others", "columns": {"id": "nr"}}
    things = {"from": f"{SOURCE}.public.things"}
    async with lite(file, TO_PEOPLE, other, things) as at:
        people(at).create(person(1))
        at.log.table("things", {"id": "integer"}).create({"id": 7})
        outcome = await at.apply()
        assert outcome.applied == {"flow0": 1, "flow1": 1, "flow2": 1}
        assert at.rows("SELECT id, name FROM people") == [(1, "a")]
        assert at.rows("SELECT nr FROM others") == [(1,)]
        assert at.rows("SELECT flow, sum(next_offset) FROM _tailrace_checkpoints GROUP BY 1") == [
            ("flow0", 1),
            ("flow1", 1),
            ("flow2", 1),
        ]


async def test_columns_that_differ_in_case_only_are_refused(file: Path) -> None:
    async with lite(file) as at:
        at.log.table("t", {"id": "integer", "a": "text", "A": "text"}).create({"id": 1, "a": "x", "A": "y"})
        assert "'a' and 'A' are one to SQLite" in await at.refused()


async def test_names_of_ours_and_of_sqlite_are_refused(file: Path) -> None:
    async with lite(file) as at:
        at.log.table("sqlite_stat9", {"id": "integer"}).create({"id": 1})
        assert "the name is one of the target's own" in await at.refused()


# Tables that are there


async def test_a_table_that_is_there_is_found_in_any_case_and_keeps_what_is_its_own(file: Path) -> None:
    run(
        file,
        "CREATE TABLE People (ID integer PRIMARY KEY, Full_Name varchar(20) NOT NULL,"
        " own text DEFAULT 'kept', size int GENERATED ALWAYS AS (length(full_name)) VIRTUAL,"
        " tenant text, level int)",
    )
    columns = {"name": "full_name", "tenant": {"value": "acme"}, "level": {"value": 3}}
    async with lite(file, {**TO_PEOPLE, "columns": columns, "unmapped": "ignore", "version": "side"}) as at:
        table = people(at)
        table.create(person(1, "Ann", "not taken"))
        table.create(person(2, "Ben"))
        await at.apply()
        run(file, "UPDATE people SET own = 'mine'")
        table.update(person(1, "Anna", UNAVAILABLE))
        table.delete(person(2))
        await at.apply()
        assert at.rows("SELECT id, full_name, own, size, tenant, level FROM people") == [
            (1, "Anna", "mine", 4, "acme", 3)
        ]


@pytest.mark.parametrize(
    ("definition", "word", "fix"),
    [
        ("id integer, name text, email text", "no unique index on the key (id)", "CREATE UNIQUE INDEX"),
        ("id integer, name text, UNIQUE (id COLLATE NOCASE)", "no unique index on the key (id)", "CREATE"),
        ("id integer PRIMARY KEY, name numeric, email text", "'name' is NUMERIC", "cast: real"),
        ("id real PRIMARY KEY, name text, email text", "'id' is REAL", "INTEGER"),
        ("id integer PRIMARY KEY, email text, must text NOT NULL", "'must' must not be null", "value:"),
        (
            "id integer AS (1), name text, n integer PRIMARY KEY",
            "is computed by the target",
            "a column of its own",
        ),
    ],
)
async def test_a_table_that_does_not_fit(file: Path, definition: str, word: str, fix: str) -> None:
    run(file, f"CREATE TABLE people ({definition})")
    async with lite(file, TO_PEOPLE) as at:
        people(at).create(person(1))
        error = (await at.refused()).replace("numeric", "NUMERIC").replace("is real", "is REAL")
        assert word in error
        assert fix in error


async def test_a_view_is_refused(file: Path) -> None:
    run(file, "CREATE TABLE t (id integer)", "CREATE VIEW people AS SELECT id FROM t")
    async with lite(file) as at:
        people(at).create(person(1))
        assert "it is a view" in await at.refused()


async def test_casts_are_to_the_classes_that_sqlite_has(file: Path) -> None:
    columns = {
        "a": {"cast": "integer"},
        "b": {"cast": "real"},
        "c": {"cast": "text"},
        "d": {"cast": "boolean"},
        "e": {"to": "f", "cast": "blob"},
    }
    async with lite(file, {"columns": columns}) as at:
        table = at.log.table(
            "t", {"id": "integer", "a": "text", "b": "numeric", "c": "integer", "d": "text", "e": "text"}
        )
        table.create({"id": 1, "a": "42", "b": "1.50", "c": 7, "d": "yes", "e": "é"})
        await at.apply()
        assert at.rows("SELECT a, b, c, d, f FROM t") == [(42, 1.5, "7", 1, "é".encode())]
        table.create({"id": 2, "a": "x", "b": None, "c": None, "d": None, "e": None})
        with pytest.raises(RowsRefused, match="column 'a': a value cannot be cast to integer"):
            await at.apply()
    async with lite(file, {**TO_PEOPLE, "columns": {"name": {"cast": "timestamptz"}}}) as at:
        people(at).create(person(1))
        assert "SQLite has no type 'timestamptz' to cast to" in await at.refused()


async def test_a_column_comes_by_itself_and_a_table_that_is_dropped_is_made_again(file: Path) -> None:
    async with lite(file) as at:
        people(at).create(person(1))
        await at.apply()
        wider = at.log.table("people", {**PEOPLE, "more": "boolean"})
        wider.create({**person(2), "more": True})
        await at.apply()
        assert at.rows("SELECT id, more FROM people ORDER BY id") == [(1, None), (2, 1)]
        run(file, "DROP TABLE people")
        wider.create({**person(3), "more": False})
        await at.apply()
        assert at.rows("SELECT id, more FROM people") == [(3, 0)]


# Versions and modes


@pytest.mark.parametrize("version", ["columns", "side", "none"])
@pytest.mark.parametrize("delete", ["apply", "soft(gone)"])
async def test_a_truncate_spares_what_came_after_it(file: Path, version: str, delete: str) -> None:
    partitions = 1 if version == "none" else 2
    async with lite(file, {"version": version, "delete": delete}, partitions=partitions) as at:
        table = at.log.table("t", {"id": "integer", "kind": "text", "v": "bytea"}, ("kind", "v", "id"))
        for n in range(10):
            table.create({"id": n, "kind": "k", "v": "AP8="})
        await at.apply()
        floor = at.log.commit_lsn + 8
        if version != "none":
            table.update({"id": 3, "kind": "k", "v": "AP8="}, floor + 8)
            await at.apply()
        table.truncate(floor)
        table.create({"id": 11, "kind": "k", "v": "AP8="}, floor + 9)
        await at.apply()
        left = [(11,)] if version == "none" else [(3,), (11,)]
        where = "" if delete == "apply" else "WHERE gone IS NULL"
        assert at.rows(f"SELECT id FROM t {where} ORDER BY id") == left
        if delete != "apply":
            assert at.rows("SELECT count(*) FROM t") == [(11,)]


async def test_without_versions_a_truncate_of_several_partitions_stops_the_flow(file: Path) -> None:
    async with lite(file, {"version": "none"}) as at:
        table = people(at)
        for n in range(4):
            table.create(person(n))
        await at.apply()
        table.truncate()
        assert "version: none: its topic has 2 partitions" in await at.refused()
        assert at.rows("SELECT count(*) FROM people") == [(4,)]


@pytest.mark.parametrize("version", ["columns", "side"])
async def test_an_older_event_never_wins(file: Path, version: str) -> None:
    async with lite(file, {"version": version}) as at:
        table = people(at)
        table.update(person(1, "at 200"), 200)
        table.update(person(2, "at 200"), 200, 1)
        table.delete(person(3), 200, 2)
        await at.apply()
        table.update(person(1, "at 100"), 100)
        table.delete(person(2), 150)
        table.create(person(3, "at 100"), 100)
        outcome = await at.apply()
        assert outcome.guarded == {"flow0": 3}
        assert at.rows("SELECT id, name FROM people ORDER BY id") == [(1, "at 200"), (2, "at 200")]
        table.update(person(2, "b", UNAVAILABLE), 150)
        assert (await at.apply()).guarded == {"flow0": 1}
        table.update(person(2, "b", UNAVAILABLE), 300)
        await at.apply()
        assert at.rows("SELECT name FROM people WHERE id = 2") == [("b",)]


@pytest.mark.parametrize("version", ["columns", "none"])
@pytest.mark.parametrize("key", [("id",), ()])
async def test_a_history(file: Path, version: str, key: tuple[str, ...]) -> None:
    delete = "soft(gone)" if key else "apply"
    async with lite(file, {"write": "append", "version": version, "delete": delete}) as at:
        table = at.log.table("people", PEOPLE, key, identity="d" if key else "f")
        table.create(person(1, "a"))
        table.update(person(1, "b"), old=None if key else person(1, "a"))
        table.delete(person(1, "b"))
        await at.apply()
        names = [("a",), ("b",), ("b",)]
        assert at.rows("SELECT name FROM people ORDER BY name") == names
        at.rewind()
        await at.apply()
        twice = names if version == "columns" else sorted(names * 2)
        assert at.rows("SELECT name FROM people ORDER BY name") == twice
        if key:
            gone = at.rows("SELECT count(*), count(gone) FROM people WHERE name = 'b'")
            assert gone == [(2, 1) if version == "columns" else (4, 2)]
        if version == "columns":
            ops = at.rows("SELECT _tailrace_op FROM people ORDER BY _tailrace_lsn, _tailrace_ordinal")
            assert ops == [("c",), ("u",), ("d",)]


async def test_a_reset_keeps_rows_of_insert_only_that_are_there_still(file: Path) -> None:
    async with lite(file, {"write": "insert_only"}) as at:
        table = people(at)
        table.create(person(1, "first"), 900)
        table.create(person(2, "gone"), 900, 1)
        await at.apply()
        table.read(person(1, "later"), 100, epoch=2)
        await at.apply()
        table.floor(2)
        await at.apply()
        assert at.rows("SELECT id, name FROM people") == [(1, "first")]


# Constraints of the table's own


@pytest.mark.parametrize("unique", ["(email)", "(email) WHERE name <> 'z'", "(lower(name), email)"])
async def test_rows_swap_a_unique_value_in_one_batch_and_keep_what_is_not_sent(
    file: Path, unique: str
) -> None:
    run(
        file,
        "CREATE TABLE people (id integer PRIMARY KEY, name text, email text NOT NULL, own text)",
        f"CREATE UNIQUE INDEX one_each ON people {unique}",
    )
    async with lite(file, TO_PEOPLE) as at:
        table = people(at)
        for n, letter in enumerate("abc", 1):
            table.create(person(n, "x", letter))
        await at.apply()
        run(file, "UPDATE people SET own = 'own ' || id")
        for n, letter in enumerate("bca", 1):
            table.update(person(n, "x", letter))
        await at.apply()
        assert at.rows("SELECT id, name, email, own FROM people ORDER BY id") == [
            (1, "x", "b", "own 1"),
            (2, "x", "c", "own 2"),
            (3, "x", "a", "own 3"),
        ]


@pytest.mark.parametrize("not_null", ["", "NOT NULL"])
async def test_h23_a_swap_across_partitions_waits_and_then_goes_through(file: Path, not_null: str) -> None:
    run(file, f"CREATE TABLE people (id integer PRIMARY KEY, name text, email text {not_null} UNIQUE)")
    async with lite(file, TO_PEOPLE) as at:
        table = people(at)
        at_partition = {n: table.create(person(n, "x", f"{n}@")).partition for n in range(1, 9)}
        one = next(n for n in at_partition if at_partition[n] == 0)
        two = next(n for n in at_partition if at_partition[n] == 1)
        await at.apply()
        lsn = at.log.commit_lsn + 8
        table.update(person(one, "y", f"{two}@"), lsn, 0)
        table.update(person(two, "y", f"{one}@"), lsn, 1)
        places = [place for place in at.log.places(at.flows) if place.partition == 0]
        starts = {p: c.next_offset for p, c in (await at.target.checkpoints(places)).items()}
        batch = await at.log.batch(at.flows, starts)
        with pytest.raises(RowsRefused) as caught:
            await at.target.apply(batch)
        (refused,) = caught.value.rows
        assert refused.transient
        assert refused.code == "SQLITE_CONSTRAINT_UNIQUE"
        fold = batch.tables[0].folds[0]
        assert refused.key is not None
        write = fold.rows.pop(refused.key)
        records = at.log.records[places[0][1:]]  # type: ignore[index]
        batch.parks.append(
            Parked(
                refused.place, refused.key, 1, write.offset, write.change.version,
                bytes(records[write.offset].value or b""), True, "public", "people", True, refused.code,
                refused.message, 1, 0,
            )
        )  # fmt: skip
        await at.target.apply(batch)  # the row that waits gives up what it is to lose
        await at.part(1)
        assert at.rows(f"SELECT name, email FROM people WHERE id = {two}") == [("y", f"{one}@")]
        fold.rows = {refused.key: write}
        again = await at.log.batch(at.flows, {places[0]: starts[places[0]]})
        again.moves = [replace(move, expected=move.next_offset) for move in again.moves]
        again.unparks.append((refused.place, refused.key))
        assert (await at.target.apply(again)).lost == []
        assert at.rows(f"SELECT name, email FROM people WHERE id = {one}") == [("y", f"{two}@")]
        assert await at.target.parked() == []


async def test_what_a_constraint_refuses_is_found_all_at_once(file: Path) -> None:
    run(
        file,
        "CREATE TABLE people (id integer PRIMARY KEY, name text NOT NULL CHECK (name <> 'bad'), email text)",
    )
    async with lite(file, TO_PEOPLE) as at:
        table = people(at)
        for n in range(300):
            table.create(person(n, "bad" if n % 50 == 7 else "a"))
        table.create({"id": 1000, "name": None, "email": None})
        with pytest.raises(RowsRefused) as caught:
            await at.apply()
        found = {refused.key: (refused.code, refused.transient) for refused in caught.value.rows}
        check = ("SQLITE_CONSTRAINT_CHECK", False)
        assert found == {b'{"id":%d}' % n: check for n in range(7, 300, 50)} | {
            b'{"id":1000}': ("SQLITE_CONSTRAINT_NOTNULL", False)
        }
        assert at.rows("SELECT count(*) FROM people") == [(0,)]
        assert {c.next_offset for c in (await at.target.checkpoints(at.log.places(at.flows))).values()} == {0}


async def test_foreign_keys_are_off_for_what_is_applied(file: Path) -> None:
    """A child comes before its parent; a parent goes before its children."""
    run(
        file,
        "CREATE TABLE people (id integer PRIMARY KEY, name text, email text)",
        "CREATE TABLE orders (id integer PRIMARY KEY, person integer REFERENCES people ON DELETE CASCADE)",
    )
    async with lite(file) as at:
        orders = at.log.table("orders", {"id": "integer", "person": "integer"})
        orders.create({"id": 1, "person": 5})
        await at.apply()
        people(at).create(person(5))
        await at.apply()
        people(at).delete(person(5))
        await at.apply()
        assert at.rows("SELECT id, person FROM orders") == [(1, 5)]


# The file


async def test_faults_of_the_file_are_named_with_their_mends(tmp_path: Path) -> None:
    async def opened(file: Path) -> None:
        target = target_of(file, {"f": {}})
        try:
            await target.open()
        finally:
            await target.close()

    with pytest.raises(
        ConfigError, match=r"there is no folder .*/none for the database's file\n  -> mkdir -p"
    ):
        await opened(tmp_path / "none" / "copy.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"is a folder\n  -> name a file"):
        await opened(tmp_path / "folder")
    (tmp_path / "words").write_text("this is not a database, but it is long enough to look into " * 100)
    with pytest.raises(FatalError, match="is no SQLite database"):
        await opened(tmp_path / "words")


async def test_a_locked_file_is_an_outage(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.targets.sql_sqlite.BUSY_TIMEOUT_S", 0.05)
    async with lite(file) as at:
        table = people(at)
        table.create(person(1))
        await at.apply()
        table.create(person(2))
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(TargetUnavailable, match=r"locked.*\n  -> another program holds"):
                await at.apply()
            other.execute("ROLLBACK")
        await at.apply()
        assert at.rows("SELECT id FROM people ORDER BY id") == [(1,), (2,)]


@contextmanager
def pages_at_most(count: int) -> Iterator[None]:
    """Every session from now on finds its disk full above so many pages."""

    def limit(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {count}")

    event.listen(Engine, "connect", limit)
    try:
        yield
    finally:
        event.remove(Engine, "connect", limit)


async def test_a_full_disk_is_an_outage_and_no_row_is_blamed(file: Path) -> None:
    log = Log(SOURCE)
    with pages_at_most(80):
        async with lite(file, log=log) as at:
            table = people(at)
            for n in range(500):
                table.create(person(n, "x" * 2000))
            with pytest.raises(TargetUnavailable, match=r"full \(SQLITE_FULL\)\n  -> make room"):
                await at.apply()
            assert at.rows("SELECT count(*) FROM people") == [(0,)]
    async with lite(file, log=log) as at:
        await at.apply()
        assert at.rows("SELECT count(*) FROM people") == [(500,)]


async def test_two_processes_on_one_file_take_turns(file: Path) -> None:
    async with lite(file) as at, lite(file, log=at.log) as other:
        table = people(at)
        for round_ in range(10):
            for n in range(200):
                table.update(person(n, f"r{round_}"))
            await asyncio.gather(at.part(0), other.part(1))
        assert at.rows("SELECT name, count(*) FROM people GROUP BY 1") == [("r9", 200)]
        ends = {place: len(at.log.records[place[1:]]) for place in at.log.places(at.flows)}  # type: ignore[index]
        found = await at.target.checkpoints(ends)
        assert {place: c.next_offset for place, c in found.items()} == ends


async def test_h30_a_copy_of_the_file_is_refused_and_one_that_was_moved_is_not(file: Path) -> None:
    async with lite(file) as at:
        people(at).create(person(1))
        await at.apply()
        id_ = at.target.id
    copied, moved = file.with_name("copied.db"), file.with_name("moved.db")
    shutil.copy(file, copied)
    target = target_of(copied, {"flow0": {}})
    with pytest.raises(FatalError, match="this file is a copy of"):
        await target.open()
    await target.close()
    copied.unlink()
    shutil.move(file, moved)
    async with lite(moved) as at:
        assert at.target.id == id_
    async with lite(moved) as at:
        assert at.target.id == id_


async def test_a_session_that_was_given_up_ends_its_batch_first(file: Path) -> None:
    """A cancelled apply is as good as a process that died after its commit."""
    async with lite(file) as at:
        table = people(at)
        for n in range(3000):
            table.create(person(n))
        checkpoints = await at.target.checkpoints(at.log.places(at.flows))
        starts = {place: checkpoint.next_offset for place, checkpoint in checkpoints.items()}
        batch = await at.log.batch(at.flows, starts)
        task = asyncio.create_task(at.target.apply(batch))
        await asyncio.sleep(0)  # it is in the target's thread now
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await at.target.open()
        outcome = await at.apply()
        assert outcome.lost == []
        assert at.rows("SELECT count(*) FROM people") == [(3000,)]
