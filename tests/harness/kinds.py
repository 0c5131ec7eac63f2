"""A table of many types, and faults to put into copies of it: each changes one column of one row a little."""

from __future__ import annotations

from collections.abc import Sequence

# name -> (type, value of every row)
COLUMNS = {
    "small": ("smallint", "7"),
    "whole": ("integer", "-7"),
    "big": ("bigint", "4611686018427387904"),
    "flag": ("boolean", "false"),
    "single": ("real", "1.5"),
    "double": ("double precision", "1.5"),
    "zero": ("double precision", "0"),
    "nan": ("double precision", "'NaN'"),
    "exact": ("numeric", "1.0"),
    "price": ("numeric(12,2)", "12.50"),
    "cash": ("money", "5"),
    "fixed": ("character(5)", "'ab'"),
    "limited": ("character varying(20)", "'Ab c'"),
    "words": ("text", "'caf\u00e9'"),
    "empty": ("text", "''"),
    "absent": ("text", "NULL"),
    "no_number": ("integer", "NULL"),
    "no_flag": ("boolean", "NULL"),
    "raw": ("bytea", "'\\xdeadbeef'"),
    "ident": ("uuid", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"),
    "doc": ("json", "'{\"a\": 1}'"),
    "docb": ("jsonb", '\'{"a": 1.0, "b": [1, null]}\''),
    "day": ("date", "'2026-11-22'"),
    "clock": ("time", "'13:51:30.5'"),
    "clock_tz": ("timetz", "'11:00:00+00'"),
    "moment": ("timestamp", "'2026-11-22 13:51:30.123456'"),
    "moment_tz": ("timestamptz", "'2026-11-22 13:51:30.123456+00'"),
    "span": ("interval", "'30 days'"),
    "one": ("bit(1)", "B'0'"),
    "bits": ("bit varying(8)", "B'0101'"),
    "numbers": ("integer[]", "'{1,2,3}'"),
    "floats": ("double precision[]", "'{0,1}'"),
    "names": ("text[]", "'{a,NULL}'"),
    "amounts": ("numeric[]", "'{1.0}'"),
    "host": ("inet", "'10.0.0.1'"),
    "net": ("cidr", "'10.0.0.0/8'"),
    "mac": ("macaddr", "'08:00:2b:01:02:03'"),
    "place": ("point", "'(1,2)'"),
    "span_of": ("int4range", "'[1,5)'"),
}
# In Postgres: (column, another value). The values' own `=` holds many of them for equal.
FAULTS = [
    ("small", "small # 1"),
    ("whole", "whole # 1"),
    ("big", "big # 1"),
    ("big", "big # (1::bigint << 40)"),
    ("flag", "true"),
    ("flag", "NULL"),
    ("single", "1.5000001"),
    ("single", "'NaN'"),
    ("double", "1.5000000000000002"),
    ("double", "'infinity'"),
    ("zero", "'-0'"),
    ("nan", "-nan"),
    ("exact", "1.00"),
    ("exact", "1"),
    ("exact", "'NaN'"),
    ("price", "price + 0.01"),
    ("cash", "cash + '0.01'::money"),
    ("fixed", "'ac'"),
    ("limited", "'Ab c '"),
    ("limited", "'ab c'"),
    ("words", "'cafe\u0301'"),
    ("words", "words || ' '"),
    ("words", "'CAF\u00c9'"),
    ("words", "words || E'\\n'"),
    ("words", "'\"' || words || '\"'"),
    ("empty", "NULL"),
    ("absent", "''"),
    ("absent", "'NULL'"),
    ("no_number", "0"),
    ("no_flag", "false"),
    ("raw", "set_bit(raw, 31, 1 - get_bit(raw, 31))"),
    ("raw", "''"),
    ("ident", "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a10'"),
    ("doc", "'{\"a\":1}'"),
    ("doc", "'{\"a\": 1.0}'"),
    ("docb", '\'{"a": 1.00, "b": [1, null]}\''),
    ("docb", '\'{"a": 1.0, "b": [1]}\''),
    ("day", "day + 1"),
    ("day", "'infinity'"),
    ("clock", "'13:51:30.500001'"),
    ("clock_tz", "'12:00:00+01'"),
    ("moment", "moment + interval '1 microsecond'"),
    ("moment_tz", "moment_tz - interval '1 microsecond'"),
    ("moment_tz", "moment_tz + interval '1 hour'"),
    ("span", "'1 month'"),
    ("span", "'720 hours'"),
    ("one", "B'1'"),
    ("bits", "B'0111'"),
    ("bits", "B'01010'"),
    ("numbers", "'{1,2,4}'"),
    ("numbers", "'[0:2]={1,2,3}'"),
    ("numbers", "'{1,2,3,NULL}'"),
    ("floats", "'{-0,1}'"),
    ("names", "'{a,\"NULL\"}'"),
    ("names", "'{a}'"),
    ("amounts", "'{1.00}'"),
    ("host", "'10.0.0.1/8'"),
    ("net", "'10.0.0.0/9'"),
    ("mac", "'08:00:2b:01:02:04'"),
    ("place", "'(1,2.0000000000000004)'"),
    ("span_of", "'[1,6)'"),
]
# In SQLite, of the same table.
LITE_FAULTS = [
    ("small", "small + 1"),
    ("big", "big + 1"),
    ("flag", "1"),
    ("flag", "NULL"),
    ("double", "1.5000000000000002"),
    ("nan", "NULL"),
    ("exact", "'1.00'"),
    ("price", "12.5"),
    ("fixed", "'ab'"),
    ("limited", "limited || ' '"),
    ("words", "'cafe\u0301'"),
    ("empty", "NULL"),
    ("absent", "''"),
    ("no_number", "0"),
    ("raw", "x'deadbeee'"),
    ("raw", "CAST(x'ff' AS TEXT)"),
    ("ident", "upper(ident)"),
    ("docb", '\'{"a": 1.00, "b": [1, null]}\''),
    ("day", "'2026-11-23'"),
    ("moment", "'2026-11-22T13:51:30.123457Z'"),
    ("moment_tz", "'2026-11-22T13:51:30.123455Z'"),
    ("numbers", "'[1,2,4]'"),
    ("names", "'[\"a\"]'"),
    ("span", "'P1M'"),
]


def ddl(table: str, rows: int, *, more: str = "") -> Sequence[str]:
    """Rows 1 to `rows`, alike but for the key and `n`. `more`: a column of a type that a copy lacks."""
    types = ", ".join(f"{name} {type_}" for name, (type_, _) in COLUMNS.items())
    values = ", ".join(f"{value}::{type_}" for type_, value in COLUMNS.values())
    extra_type, extra_value = (f", more {more}", f", NULL::{more}") if more else ("", "")
    return (
        f"CREATE TABLE {table} (id bigint PRIMARY KEY, n integer, {types}{extra_type})",
        f"INSERT INTO {table} SELECT i, i % 100, {values}{extra_value} FROM generate_series(1, {rows}) i",
    )


def updates(table: str, faults: Sequence[tuple[str, str]], *, step: int = 1) -> list[str]:
    """One fault a row: row `step`, 2 * `step`, ..."""
    return [
        f"UPDATE {table} SET {column} = {value} WHERE id = {step * number}"
        for number, (column, value) in enumerate(faults, 1)
    ]
