"""The sql target: values and names of every kind in SQLite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consumers.targets.base import RowsRefused
from streamer.changes.kinds import UNAVAILABLE
from tests.harness.sql_file import lite

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


# https://sqlite.org/lang_keywords.html
KEYWORDS = """
abort action add after all alter always analyze and as asc attach autoincrement before begin between by
cascade case cast check collate column commit conflict constraint create cross current current_date
current_time current_timestamp database default deferrable deferred delete desc detach distinct do drop
each else end escape except exclude exclusive exists explain fail filter first following for foreign from
full generated glob group groups having if ignore immediate in index indexed initially inner insert
instead intersect into is isnull join key last left like limit match materialized natural no not nothing
notnull null nulls of offset on or order others outer over partition plan pragma preceding primary query
raise range recursive references regexp reindex release rename replace restrict returning right rollback
row rows savepoint select set table temp temporary then ties to transaction trigger unbounded union
unique update using vacuum values view virtual when where window with without
"""


async def test_every_keyword_may_be_a_column_and_a_table(file: Path) -> None:
    others = dict.fromkeys(set(KEYWORDS.split()) - {"no"}, "text")
    async with lite(file) as at:
        table = at.log.table("nothing", {"no": "integer", **others}, key=("no",))
        row = {"no": 1, **dict.fromkeys(others, "a")}
        table.create(row)
        await at.apply()
        table.update({**row, "nothing": "b"})
        await at.apply()
        assert at.rows('SELECT "nothing", "window" FROM "nothing"') == [("b", "a")]
        table.delete({"no": 1})
        await at.apply()
        assert at.rows('SELECT * FROM "nothing"') == []


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
