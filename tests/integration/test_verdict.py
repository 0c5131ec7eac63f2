"""The comparison behind the demo's verdict is a real one: it fails for every way of not being equal."""

from __future__ import annotations

import io
from collections.abc import Callable

import orjson
import psycopg
import pytest
from rich.console import Console

from consumers.demo.command import conclude
from consumers.demo.outcome import Outcome
from consumers.demo.screen import Screen
from consumers.demo.verdict import TableName, TableVerdict, compare, compare_schema
from tests.harness.tiers import corners

DDL = """
CREATE SCHEMA {0};
CREATE TABLE {0}.t (id int, part text, note text, amount numeric, at timestamptz, PRIMARY KEY (id, part));
INSERT INTO {0}.t SELECT n, chr(65 + n % 60), CASE WHEN n % 3 > 0 THEN repeat('é', n) END, n / 7.0,
    '2025-01-01 12:00+00'::timestamptz + n * interval '1 s' FROM generate_series(1, 200) n;
CREATE TABLE {0}.keyless (a int, b text);
INSERT INTO {0}.keyless SELECT n % 5, nullif('x' || n % 3, 'x0') FROM generate_series(1, 60) n;
"""
KEYED = (TableName("public", "t"), TableName("mirror", "t"))
KEYLESS = (TableName("public", "keyless"), TableName("mirror", "keyless"))

Spoil = Callable[..., TableVerdict]


@pytest.fixture
def urls(database: str, target_database: str) -> tuple[str, str]:
    for url, schema in ((database, "public"), (target_database, "mirror")):
        with psycopg.connect(url) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute(DDL.format(schema).encode())
    return database, target_database


@pytest.fixture
def spoil(urls: tuple[str, str]) -> Spoil:
    def spoil(statement: str, pair: tuple[TableName, TableName] = KEYED) -> TableVerdict:
        with psycopg.connect(urls[1]) as connection:
            assert connection.execute(statement.encode()).rowcount != 0
        verdict = compare(*urls, [pair])
        assert not verdict.equal
        return verdict.tables[0]

    return spoil


def test_equal(urls: tuple[str, str]) -> None:
    verdict = compare_schema(*urls, "mirror")
    assert verdict.equal, str(verdict)
    assert verdict.rows == 260


def test_nothing_to_compare_is_not_equal(urls: tuple[str, str]) -> None:
    assert not compare(*urls, []).equal


def test_one_value_differs(spoil: Spoil) -> None:
    found = spoil("UPDATE mirror.t SET note = note || ' ' WHERE id = 100")
    assert (found.missing, found.extra, found.different) == (0, 0, 1)
    assert "id='100'" in found.samples[0]
    assert "note" in found.samples[0]


def test_null_is_not_the_empty_text(spoil: Spoil) -> None:
    assert spoil("UPDATE mirror.t SET note = '' WHERE id = 3").different == 1


@pytest.mark.thorough
def test_numerics_of_equal_value_and_other_scale_differ(spoil: Spoil) -> None:
    assert spoil("UPDATE mirror.t SET amount = 1.0 WHERE id = 7").different == 1


def test_row_missing_at_each_place(spoil: Spoil) -> None:
    assert spoil("DELETE FROM mirror.t WHERE id IN (1, 77, 200)").missing == 3


def test_row_too_much(spoil: Spoil) -> None:
    found = spoil("INSERT INTO mirror.t SELECT id, part || 'x', note, amount, at FROM mirror.t WHERE id < 3")
    assert (found.missing, found.extra, found.different) == (0, 2, 0)


@pytest.mark.thorough
def test_the_same_key_twice_in_a_target_without_a_primary_key(spoil: Spoil) -> None:
    again = "INSERT INTO mirror.t SELECT * FROM mirror.t WHERE id = 5"
    assert spoil(f"ALTER TABLE mirror.t DROP CONSTRAINT t_pkey; {again}").extra == 1


@pytest.mark.thorough
def test_empty_target(spoil: Spoil) -> None:
    assert spoil("TRUNCATE mirror.t").missing == 200


def test_table_missing(spoil: Spoil) -> None:
    assert "no table" in spoil("DROP TABLE mirror.t").problem


@pytest.mark.thorough
def test_column_missing(spoil: Spoil) -> None:
    assert "note" in spoil("ALTER TABLE mirror.t DROP COLUMN note").problem


@pytest.mark.parametrize(
    ("statement", "missing", "extra"),
    corners(
        [
            ("DELETE FROM mirror.keyless WHERE ctid = (SELECT min(ctid) FROM mirror.keyless)", 1, 0),
            ("INSERT INTO mirror.keyless SELECT * FROM mirror.keyless LIMIT 1", 0, 1),
            ("UPDATE mirror.keyless SET b = 'z' WHERE ctid = (SELECT min(ctid) FROM mirror.keyless)", 1, 1),
            ("UPDATE mirror.keyless SET b = '' WHERE b IS NULL", 20, 20),
        ],
        "UPDATE mirror.keyless SET b = '' WHERE b IS NULL",
    ),
)
def test_keyless_rows_are_counted(spoil: Spoil, statement: str, missing: int, extra: int) -> None:
    found = spoil(statement, KEYLESS)
    assert (found.missing, found.extra) == (missing, extra)


def test_types_kept_as_text_and_columns_of_ours_are_no_difference(urls: tuple[str, str]) -> None:
    with psycopg.connect(urls[1]) as connection:
        connection.execute("SET TimeZone TO 'UTC'")
        connection.execute("ALTER TABLE mirror.t ALTER COLUMN at TYPE text, ADD COLUMN _tailrace_lsn bigint")
    assert compare_schema(*urls, "mirror").equal


@pytest.mark.parametrize(("spoilt", "code", "title"), [(False, 0, "─ equal ─"), (True, 1, "─ NOT EQUAL ─")])
def test_the_demo_exits_1_when_one_value_differs(
    spoilt: bool, code: int, title: str, urls: tuple[str, str]
) -> None:
    """All else went as it was to go; make passes the exit code on."""
    if spoilt:
        with psycopg.connect(urls[1]) as connection:
            connection.execute("UPDATE mirror.t SET note = 'another' WHERE id = 100")
    outcome = Outcome(seed=1, seconds=20.0, kills=2, restarts=2, big_rows=100_000, truncates=1)
    outcome.verdict = compare(*urls, [KEYED, KEYLESS])
    shown = io.StringIO()
    console = Console(file=shown, width=100)
    assert conclude(outcome, Screen(console), console) == code
    assert title in shown.getvalue()
    assert ("different at id='100'" in shown.getvalue()) is spoilt
    printed = io.StringIO()
    console = Console(file=printed)
    assert conclude(outcome, Screen(console, quiet=True), console, as_json=True) == code
    assert orjson.loads(printed.getvalue())["passed"] is not spoilt


@pytest.mark.parametrize(
    "shortfall", corners([{"kills": 1}, {"restarts": 1}, {"big_rows": 0}, {"truncates": 0}], {"big_rows": 0})
)
def test_the_demo_exits_1_when_it_has_not_been_through_it_all(
    shortfall: dict[str, int], urls: tuple[str, str]
) -> None:
    done = {"kills": 2, "restarts": 2, "big_rows": 100_000, "truncates": 1} | shortfall
    outcome = Outcome(seed=1, seconds=20.0, verdict=compare(*urls, [KEYED]), **done)
    console = Console(file=io.StringIO(), width=100)
    assert conclude(outcome, Screen(console), console) == 1


def test_the_time_in_all_holds_the_start() -> None:
    facts = Outcome(seed=7, seconds=20.0, startup_s=9.6, total_s=41.2).facts()
    assert "time         41 s in all, 10 s of them to start everything; seed 7" in facts
