"""Values are ordered, and equal, as Postgres says: it is asked."""

from __future__ import annotations

from itertools import product
from typing import Any

import psycopg
import pytest
from orjson import dumps, loads

from consumers.processors import Given, count, window
from consumers.processors.operators.equality import canonical, comparable
from consumers.processors.operators.inputs import kind_of
from consumers.processors.operators.ordering import sortable
from consumers.processors.operators.windows import binned, windows_of
from consumers.testing import Log
from streamer.changes.kinds import encoder_for
from streamer.changes.schema import Column
from streamer.errors import BadRecordError

SETTINGS = "-c IntervalStyle=iso_8601 -c TimeZone=UTC -c extra_float_digits=1 -c lc_monetary=C"
MOMENTS = (
    "2026-11-04 13:51:30.5", "2026-11-04", "0044-03-15 BC", "0001-01-01", "12026-01-01 23:59:59.999999",
    "infinity", "-infinity", "1969-12-31 23:59:59", "2024-02-29", "4713-01-01 BC",
)  # fmt: skip
INTERVALS = (
    "0", "1 day", "24:00:00", "-1 day", "1 month", "30 days", "29 days 24:00:00", "1 year -1 day",
    "-00:00:00.5", "00:00:01.000001", "1 year 2 months 3 days 04:05:06.78", "-178000000 years",
)  # fmt: skip
ADDRESSES = (
    "10.0.0.1", "10.0.0.1/8", "10.0.0.0/8", "10.0.0.0/16", "9.255.255.255", "0.0.0.0/0", "255.255.255.255",
    "::1", "::/0", "2001:db8::/32", "2001:db8::1", "::ffff:10.0.0.1", "10.0.0.2/8", "10.0.0.1/16",
)  # fmt: skip
NETS = ("10.0.0.1/32", "10.0.0.0/8", "10.0.0.0/16", "::/0", "0.0.0.0/0")
TEXTS = ("", "a", "ab", "ab ", "b", "A", "ä", "10", "9", "a\x01")
NUMERICS = ("0", "-0.5", "1.5", "1.50", "100", "0.1", "18446744073709551616", "-1e30", "1e-20", "NaN")
FLOATS = ("0", "-0", "1.5", "0.1", "100", "18446744073709551616", "-0.5", "NaN", "Infinity", "1e-20", "1e300")

KIND = {
    "interval": "interval",
    "time with time zone": "timetz",
    "time without time zone": "time",
    "date": "date",
    "timestamp without time zone": "timestamp",
    "timestamp with time zone": "timestamptz",
    "numeric": "numeric",
    "real": "float",
    "double precision": "float",
    "smallint": "number",
    "integer": "number",
    "bigint": "number",
    "boolean": "bool",
    "money": "money",
    "json": "json",
    "jsonb": "json",
    "numeric[]": "array:numeric",
    "jsonb[]": "array:json",
    "interval[]": "text",
}  # else text
ORDERED = {
    "interval": INTERVALS,
    "inet": ADDRESSES,
    "cidr": NETS,
    "time with time zone": (
        "00:00Z", "11:51:30+02", "09:51:30Z", "09:51:30.5-01:30", "24:00:00Z", "00:30+14", "23:30-12",
        "12:00+05:30:15",
    ),
    "time without time zone": ("00:00", "24:00", "13:51:30", "13:51:30.5"),
    "character(5)": TEXTS,
    "text": TEXTS,
    "uuid": ("00000000-0000-0000-0000-00000000000a", "0A000000-0000-0000-0000-000000000000"),
    "macaddr": ("08:00:2b:01:02:03", "08:00:2B:01:02:0a", "ff:00:2b:01:02:03"),
    "numeric": (*NUMERICS, "Infinity"),
    "real": FLOATS[:-1],
    "money": ("-1", "0", "1234.5", "99"),
    "date": tuple(moment.replace(" 13:51:30.5", "") for moment in MOMENTS),
    "timestamp with time zone": MOMENTS,
    "boolean": ("t", "f"),
}  # fmt: skip
DOCUMENTS = (
    '{"a": 1}', '{"a": 1.0}', '{"a": "1.0"}', '{"a": 10}', '[1, 2]', '[1.0, 2.00]', '1', '1.000', '"1.0"',
    '{"1.0": 1}', '{"1": 1}', '-0.0', '0', '{"b": [{"c": -1.50}], "a": null}',
    '{"a": null, "b": [{"c": -1.5}]}',
    '"\\"1.0\\\\"', '"\\"1\\\\"', 'true', '1e2', '100.0',
)  # fmt: skip
RANGES = (
    "[1,2]",
    "[1.0,2.00]",
    "(1,2)",
    "(1.0,2)",
    "[1.0,)",
    "[1,)",
    "empty",
    "(1,1)",
    "(,)",
    "[-0.0,1]",
    "[0,1]",
)
JOINED = (
    ("jsonb", "jsonb", DOCUMENTS),
    ("jsonb[]", "jsonb[]", ('{"1","[1.0]"}', '{"1.0","[1]"}', '{"1","2"}', "{}")),
    (
        "numeric[]",
        "numeric[]",
        ("{1,2.50}", "{1.0,2.5}", "{1,NULL}", "{1.00,NULL}", "{{1.0},{2}}", "{{1},{2}}"),
    ),
    ("numrange", "numrange", RANGES),
    ("nummultirange", "nummultirange", ("{[1,2],(3.0,4]}", "{[1.0,2.00],(3,4]}", "{}", "{[1,2]}")),
    ("int4range", "int4range", ("[1,2]", "[1,3)", "(0,2]", "(1,1)", "empty")),
    ("daterange", "daterange", ("[2026-01-01,2026-01-02]", "[2026-01-01,2026-01-03)", "(,2026-01-03)")),
    *product(("smallint", "integer"), ("bigint", "numeric", "real", "double precision"), [("0", "1", "100")]),
    *product(("bigint",), ("numeric", "double precision"), [("0", "100", "4611686018427387904")]),
    *product(("numeric", "double precision"), ("real", "double precision"), [NUMERICS[:-3]]),
    ("numeric", "numeric", NUMERICS),
    ("double precision", "double precision", FLOATS),
    *product(("character(5)",), ("character(3)", "text"), [("", "a", "ab", "ab ")]),
    ("character(5)", "character varying(4)", ("", "a", "ab")),
    ("text", "name", TEXTS),
    *product(("date", "timestamp without time zone"), ("timestamp with time zone", "date"), [MOMENTS]),
    ("interval", "interval", INTERVALS),
    ("inet", "cidr", ("10.0.0.1", "10.0.0.0/8", "::1", "10.0.0.0/16")),
    ("time with time zone", "time with time zone", ORDERED["time with time zone"]),
)


@pytest.fixture
async def postgres(database: str) -> Any:
    options = psycopg.conninfo.conninfo_to_dict(database).get("options", "")
    connection = await psycopg.AsyncConnection.connect(database, options=f"{options} {SETTINGS}")
    async with connection:
        yield connection


async def rows(postgres: psycopg.AsyncConnection, query: str) -> list[tuple[Any, ...]]:
    return await (await postgres.execute(query.encode())).fetchall()


def array(values: tuple[str, ...], type_: str) -> str:
    listed = ", ".join(f"'{value}'" for value in values)
    return f"(SELECT t::{type_} FROM unnest(ARRAY[{listed}]::text[]) t)"


def value(text: str, type_: str) -> Any:
    """As an event has it."""
    raw = ("t" if text == "true" else "f") if type_ == "boolean" else text
    return loads(encoder_for(KIND.get(type_, "text"))(raw.encode()))


def kind(type_: str) -> str:
    return kind_of(Column("c", type_, -1, KIND.get(type_, "text"), False))


async def test_values_sort_as_postgres_sorts_them(postgres: psycopg.AsyncConnection) -> None:
    for type_, values in ORDERED.items():
        collated = 'v COLLATE "C"' if type_ in ("text", "character(5)") else "v"
        # A cast of char(n) to text takes its padding away, which events have.
        shown = "format('%s', v)" if type_ == "character(5)" else "v::text"
        found = await rows(
            postgres,
            f"SELECT {shown}, dense_rank() OVER (ORDER BY {collated}) FROM {array(values, type_)} v(v)",
        )
        order = [sortable(value(text, type_), kind(type_)) for text, _ in found]
        ranks = sorted(set(order))
        assert [ranks.index(one) + 1 for one in order] == [rank for _, rank in found], type_


async def test_values_join_where_postgres_says_that_they_are_equal(postgres: psycopg.AsyncConnection) -> None:
    for left, right, values in JOINED:
        found = await rows(
            postgres,
            f"SELECT l::text, r::text, l = r FROM {array(values, left)} l(l), {array(values, right)} r(r)",
        )
        assert any(equal for _, _, equal in found), (left, right)
        for one, other, equal in found:
            ours = comparable(value(one, left), kind(left)) == comparable(value(other, right), kind(right))
            assert ours == equal, (left, one, right, other)


GROUPED = {
    "jsonb": DOCUMENTS, "numrange": RANGES, "numeric": NUMERICS, "double precision": FLOATS,
    "real": FLOATS[:-1], "numeric[]": ("{1,2.50}", "{1.0,2.5}", "{1,NULL}", "{1.00,NULL}"),
    "inet": ADDRESSES, "cidr": NETS,
    "timestamp with time zone": MOMENTS, "character(5)": TEXTS, "boolean": ("t", "f"),
}  # fmt: skip


async def test_values_are_one_group_where_postgres_says_that_they_are(
    postgres: psycopg.AsyncConnection,
) -> None:
    for type_, values in GROUPED.items():
        shown = "format('%s', v)" if type_ == "character(5)" else "v::text"
        found = await rows(
            postgres, f"SELECT {shown}, dense_rank() OVER (ORDER BY v) FROM {array(values, type_)} v(v)"
        )
        groups = {(dumps(canonical(value(text, type_), kind(type_), "by")), rank) for text, rank in found}
        assert len(groups) == len({form for form, _ in groups}) == len({rank for _, rank in groups}), type_


REFUSED = {
    "json": "1", "xml": "<a/>", "point": "(1,2)", "place": "(1.0,a)", "interval": "1 day", "citext": "A",
    "interval[]": "{P1D}", "jsonb[]": ["1"], "floatrange": "[1,2)", "numeric[]": "[0:1]={1.0,2}",
}  # fmt: skip


@pytest.mark.parametrize("type_", REFUSED)
def test_what_has_several_texts_or_no_equality_is_refused_by_name(type_: str) -> None:
    held: Any = REFUSED[type_]
    with pytest.raises(BadRecordError, match=r"`by` cannot have") as raised:
        canonical(held, kind(type_), "by")
    assert "in a processor before this one" in raised.value.fix
    if type_ not in ("interval", "jsonb[]"):
        with pytest.raises(BadRecordError, match=r"`on` cannot have"):
            comparable(held, kind(type_))
    assert canonical("(none)", kind("mood"), "by") == "(none)"  # a label of an enum


async def test_windows_begin_where_postgres_says(postgres: psycopg.AsyncConnection) -> None:
    for size_s in (1, 90, 3_600, 604_800):
        windows = windows_of("at", size_s, size_s, "start")
        moments = tuple(
            moment for moment in MOMENTS if "4713" not in moment
        )  # a week before there is no time
        query = (
            f"SELECT v::text, date_bin('{size_s} s', v, timestamptz 'epoch')::text"
            f" FROM {array(moments, 'timestamp with time zone')} v(v)"
        )
        for moment, start in await rows(postgres, query):
            at, begins = (value(text, "timestamp with time zone") for text in (moment, start))
            assert [window["start"] for window in windows({"at": at})] == [begins], moment


@pytest.mark.parametrize("at", ["5874897-12-31", "294277-01-01", "4715-01-01 BC"])
async def test_a_year_that_date_bin_refuses_is_said(postgres: psycopg.AsyncConnection, at: str) -> None:
    with pytest.raises(psycopg.errors.DatetimeFieldOverflow):
        await rows(postgres, f"SELECT date_bin('1 hour', '{at}'::date::timestamptz, timestamptz 'epoch')")
    await postgres.rollback()
    with pytest.raises(BadRecordError, match=f"'{at}' is in a year that no timestamp holds") as raised:
        windows_of("at", 3_600, 3_600, "start")({"at": at})
    assert "columns" not in raised.value.fix  # it is one of dates


async def test_windows_have_the_type_that_postgres_gives(postgres: psycopg.AsyncConnection) -> None:
    local, zoned = "timestamp(3) without time zone", "timestamp(3) with time zone"
    for type_ in (local, zoned, "date"):
        query = f"SELECT pg_typeof(date_bin('1 hour', now()::{type_}, 'epoch'))::text"
        assert await rows(postgres, query) == [(binned(type_),)], type_
    log = Log("shop")
    log.table("t", {"id": "int", "at": "timestamp"}).create({"id": 1, "at": "2026-01-01T10:30:00Z"})
    schemas = {"shop.public.t": list(log.schemas.values())}
    given = Given("made", tuple(schemas), "out", (), schemas)
    hours = window("at", "1h", n=count())
    assert hours.columns(given) == {"window_start": "timestamp without time zone", "n": "bigint"}
