"""The sql target on SQLite files with tables of their own: names, columns, constraints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from consumers.targets.base import Parked, RowsRefused
from streamer.changes.kinds import UNAVAILABLE
from tests.harness.sql_file import PEOPLE, SOURCE, TO_PEOPLE, lite, people, person, run

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
        (
            "id integer, tenant text NOT NULL, name text, email text, PRIMARY KEY (id, tenant)",
            "its key is (id, tenant), and the flow's is (id)",
            """DROP TABLE "people"; and stop `tailrace run`""",
        ),
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


async def test_a_table_that_was_made_for_another_key_names_the_drop_and_the_reset(file: Path) -> None:
    async with lite(file) as at:
        people(at).create(person(1, "Ann"))
        await at.apply()
        wider = at.log.table("people", {**PEOPLE, "tenant": "text"}, key=("id", "tenant"))
        wider.create({**person(2), "tenant": "acme"})
        error = await at.refused()
        assert "its key is (id), and the flow's is (id, tenant)" in error
        run(file, error.partition("has changed: ")[2].partition(";")[0])
        assert "run `tailrace reset shop --yes`" in error
        assert at.rows("SELECT name FROM sqlite_master WHERE name = 'people'") == []


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


async def test_a_column_comes_by_itself(file: Path) -> None:
    async with lite(file) as at:
        people(at).create(person(1))
        await at.apply()
        wider = at.log.table("people", {**PEOPLE, "more": "boolean"})
        wider.create({**person(2), "more": True})
        await at.apply()
        assert at.rows("SELECT id, more FROM people ORDER BY id") == [(1, None), (2, 1)]


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


@pytest.mark.parametrize("own", [True, False])
async def test_a_unique_index_that_holds_deleted_rows_is_refused(file: Path, own: bool) -> None:
    columns = "id INTEGER PRIMARY KEY, name TEXT, note TEXT, gone_at TEXT"
    made = [f"CREATE TABLE people ({columns}{', UNIQUE (name)' if own else ''})"]
    made += [] if own else ["CREATE UNIQUE INDEX named ON people (name)"]
    run(file, *made)
    async with lite(file, {"delete": "soft(gone_at)"}) as at:
        table = people(at)
        table.create(person(1, "a"))
        said = await at.refused()
        assert "holds rows that are deleted, too: under delete: soft(gone_at)" in said
        cure = said.partition("-> ")[2].removesuffix(" or write delete: apply")
        if own:  # what is to be made again stands in words
            assert 'make "people" again without this UNIQUE' in cure
            run(file, "DROP TABLE people", f"CREATE TABLE people ({columns})")
            cure = cure[cure.index("CREATE UNIQUE INDEX") :]
        run(file, *filter(None, map(str.strip, cure.split(";"))))
        await at.apply()
        table.delete(person(1))
        table.create(person(2, "a"))
        await at.apply()
        assert at.rows("SELECT id, name, gone_at IS NULL FROM people ORDER BY id") == [
            (1, "a", 0),
            (2, "a", 1),
        ]
        assert await at.target.parked() == []
