"""Values are ordered, and equal, as Postgres says: it is asked."""

from __future__ import annotations

from itertools import product
from typing import Any

import psycopg
import pytest
from orjson import loads

from consumers.processors.operators.equality import comparable
from consumers.processors.operators.inputs import kind_of
from consumers.processors.operators.ordering import sortable
from consumers.processors.operators.windows import windows_of
from streamer.changes.kinds import encoder_for
from streamer.changes.schema import Column

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
JOINED = (
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
    return f"unnest(ARRAY[{listed}]::text[]::{type_}[])"


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
            f"SELECT {shown}, dense_rank() OVER (ORDER BY {collated}) FROM {array(values, type_)} v",
        )
        order = [sortable(value(text, type_), kind(type_)) for text, _ in found]
        ranks = sorted(set(order))
        assert [ranks.index(one) + 1 for one in order] == [rank for _, rank in found], type_


async def test_values_join_where_postgres_says_that_they_are_equal(postgres: psycopg.AsyncConnection) -> None:
    for left, right, values in JOINED:
        found = await rows(
            postgres,
            f"SELECT l::text, r::text, l = r FROM {array(values, left)} l, {array(values, right)} r",
        )
        assert any(equal for _, _, equal in found), (left, right)
        for one, other, equal in found:
            ours = comparable(value(one, left), kind(left)) == comparable(value(other, right), kind(right))
            assert ours == equal, (left, one, right, other)


async def test_windows_begin_where_postgres_says(postgres: psycopg.AsyncConnection) -> None:
    for size_s in (1, 90, 3_600, 604_800):
        windows = windows_of("at", size_s, size_s, "start")
        moments = tuple(
            moment for moment in MOMENTS if "4713" not in moment
        )  # a week before there is no time
        query = (
            f"SELECT v::text, date_bin('{size_s} s', v, timestamptz 'epoch')::text"
            f" FROM {array(moments, 'timestamp with time zone')} v"
        )
        for moment, start in await rows(postgres, query):
            at, begins = (value(text, "timestamp with time zone") for text in (moment, start))
            assert [window["start"] for window in windows({"at": at})] == [begins], moment
