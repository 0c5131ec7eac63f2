"""Kinds and their forms in a sql target: the page says what the code does, and what SQLite keeps."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.targets.sql_types import ARRAYS, KINDS, affinity_of, cast_to, constant, stored_as, why_unfit
from streamer.changes.kinds import DECODERS
from streamer.errors import BadRecordError

INF = float("inf")
PAGE = (Path(__file__).parents[2] / "docs" / "targets.md").read_text(encoding="utf-8")


def test_every_kind_has_a_form_and_a_line_on_the_page() -> None:
    assert KINDS.keys() == DECODERS.keys()
    for kind, stored in [*KINDS.items(), ("array:...", ARRAYS)]:
        assert f"| `{kind}` | `{stored.type}` | {stored.form} |" in PAGE
    assert stored_as("array:numeric") is ARRAYS
    with pytest.raises(BadRecordError, match="not known to this program"):
        stored_as("hologram")


DECLARED = [
    "INTEGER", "BIGINT", "TEXT", "VARCHAR(20)", "CLOB", "BLOB", "", "ANY", "REAL",
    "DOUBLE PRECISION", "FLOAT", "NUMERIC", "DECIMAL(10,2)", "BOOLEAN", "DATE", "DATETIME", "UUID", "POINT",
]  # fmt: skip


@pytest.mark.parametrize("declared", DECLARED)
def test_affinity_is_what_sqlite_makes_of_a_declared_type(declared: str) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE t (v {declared.replace('ANY', '')})")
        connection.executemany("INSERT INTO t VALUES (?)", [("1.5",), (7,), (2.0,)])
        kinds = tuple(row[0] for row in connection.execute("SELECT typeof(v) FROM t"))
    found = {
        ("real", "integer", "integer"): {"INTEGER", "NUMERIC"},
        ("text", "text", "text"): {"TEXT"},
        ("text", "integer", "real"): {"BLOB"},
        ("real", "real", "real"): {"REAL"},
    }[kinds]
    assert affinity_of(declared) in found


SAMPLES: dict[str, list[Any]] = {
    "number": [0, -(2**63), 2**63 - 1, 2**53 + 1],
    "float": [0.1, 1e300, 3.0, 1.1e-5, 0.30000000000000004],
    "bool": [True, False],
    "bit1": [True],
    "numeric": ["1.50", "1e5", "0001", "9" * 30],
    "money": ["-1234.10"],
    "text": ["007", "1.0", "x", ""],
    "bytea": ["AP8="],
    "json": ["1.0", '{"a": 1}'],
    "hstore": ['{"a":"1"}'],
    "date": ["2016-11-04", "infinity"],
    "time": ["13:51:30.5"],
    "timestamp": ["2016-11-04T13:51:30.5Z"],
    "timestamptz": ["2016-11-04T13:51:30.5Z", "-infinity"],
    "timetz": ["11:51:30+02"],
    "interval": ["P1Y"],
    "bits": ["0101"],
    "vector": [[1, 2.5]],
}


@pytest.mark.parametrize("declared", DECLARED)
@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_said_to_fit_keeps_values_as_they_are(kind: str, declared: str) -> None:
    """And one that is said not to fit changes at least one of them, or might."""
    stored = KINDS[kind]
    values = stored.encode(SAMPLES[kind])
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute(f"CREATE TABLE t (v {declared.replace('ANY', '')})")
        connection.executemany("INSERT INTO t VALUES (?)", [(value,) for value in values])
        found = [row[0] for row in connection.execute("SELECT v FROM t ORDER BY rowid")]
    same = [str(a) == str(b) or a == b for a, b in zip(found, values, strict=True)]
    if why_unfit(stored, declared) is None:
        assert all(same)
    elif kind not in ("money", "bits"):
        assert not all(type(a) is type(b) and ok for a, b, ok in zip(found, values, same, strict=True))


@given(st.lists(st.none() | st.text()))
def test_texts_are_kept_unless_they_hold_a_nul(values: list[str | None]) -> None:
    encode = KINDS["text"].encode
    if any("\0" in (value or "") for value in values):
        with pytest.raises(BadRecordError, match="NUL"):
            encode(values)
    else:
        assert encode(values) == values


@pytest.mark.parametrize(
    ("cast", "given", "kept"),
    [
        ("integer", ["7.00", 7.0, " 7 ", "70e-1", "0e999999999", None], [7, 7, 7, 7, 0, None]),
        ("integer", [2**63 - 1, str(-(2**63)), "+5"], [2**63 - 1, -(2**63), 5]),
        (
            "real",
            ["NaN", "nan", "-Infinity", "inf", "1.5", 2, "1e5"],
            ["NaN", "NaN", -INF, INF, 1.5, 2.0, 1e5],
        ),
    ],
)
def test_a_cast_takes_what_is_a_number(cast: str, given: list[Any], kept: list[Any]) -> None:
    found = cast_to(cast, "numeric", where="").encode(given)
    assert [(type(value), value) for value in found] == [(type(value), value) for value in kept]


@pytest.mark.parametrize(
    ("cast", "value"),
    [
        *[
            ("integer", value)
            for value in ("1_000", "\u0663", "7.5", 7.5, 2**63, "1e999999999", "NaN", "", [1])
        ],
        *[("real", value) for value in ("1e400", "-1e400", "1_0", "\u0663", "0x1p3", "", {})],
    ],
)
def test_a_cast_refuses_what_is_none_or_does_not_fit(cast: str, value: Any) -> None:
    with pytest.raises(BadRecordError, match=f"cannot be cast to {cast}"):
        cast_to(cast, "text", where="").encode([value])


def test_constants() -> None:
    assert constant(True) == ("INTEGER", 1)
    assert constant(3) == ("INTEGER", 3)
    assert constant(1.5) == ("REAL", 1.5)
    assert constant(None) == ("TEXT", None)
    assert constant(["a", {"b": 1}]) == ("TEXT", '["a",{"b":1}]')
