"""Every type of the format's table through a real Postgres: nothing changes on the way.

Each value goes from a table by COPY and by pgoutput (the bytes must be the same), to JSON, to text,
and into a second table; there it must be the same value and print the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import psycopg
import pytest
from psycopg import sql

from streamer.changes.kinds import TypeFacts, decoder_for, kind_of
from streamer.postgres.connection import SESSION_SETTINGS
from streamer.postgres.pgoutput import Insert, Relation, decode
from streamer.postgres.rows import RowEncoder
from streamer.sandbox import PostgresServer
from tests.servers import fresh_database

SETUP = """
CREATE EXTENSION hstore;
CREATE EXTENSION citext;
CREATE EXTENSION vector;
CREATE TYPE mood AS ENUM ('sad', 'a "so" so', 'comma, {brace}');
CREATE TYPE pair AS (a int, b text);
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE DOMAIN flag AS bit(1);
CREATE DOMAIN ints AS int[];
CREATE DOMAIN money_back AS numeric(12, 2);
CREATE PUBLICATION p FOR ALL TABLES;
"""
TEXTS = [
    "",
    " ",
    "NULL",
    "null",
    "\\N",
    "\\.",
    'a"b\\c',
    "tab\there",
    "line\nbreak\r\n",
    "größe 東京 🜁",
    "\x01\x7f",
]

# type -> (kind, values as SQL)
CASES: dict[str, tuple[str, list[str]]] = {
    "smallint": ("number", ["-32768", "0", "32767"]),
    "integer": ("number", ["-2147483648", "2147483647"]),
    "bigint": ("number", ["-9223372036854775808", "9223372036854775807"]),
    "oid": ("number", ["0", "4294967295"]),
    "boolean": ("bool", ["true", "false"]),
    "real": (
        "float",
        ["0.1", "'-0'", "3.4028235e38", "1e-45", "16777217", "'NaN'", "'Infinity'", "'-Infinity'"],
    ),
    "double precision": (
        "float",
        [
            "0.1",
            "'-0'",
            "1.7976931348623157e308",
            "5e-324",
            "123456789012345678",
            "1e22",
            "'NaN'",
            "'-Infinity'",
        ],
    ),
    "numeric(12,4)": ("numeric", ["123.45", "-0.0001", "'NaN'"]),
    "numeric": (
        "numeric",
        ["1e100", "0.000000000000000000001", "123.4500", "'NaN'", "'Infinity'", "'-Infinity'"],
    ),
    "numeric(5,-2)": ("numeric", ["123456"]),
    "money": ("money", ["1234.11", "-5", "'92233720368547758.07'", "'-92233720368547758.08'", "0.05"]),
    "char(5)": ("text", ["'ab'", "''", "'ab   '"]),
    '"char"': ("text", ["'a'", "'\\377'", "''"]),
    "varchar(80)": ("text", []),
    "text": ("text", []),
    "name": ("text", ["'a name'"]),
    "citext": ("text", ["'MiXeD'"]),
    "uuid": ("text", ["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"]),
    "inet": ("text", ["'192.168.0.1/24'", "'::1'"]),
    "cidr": ("text", ["'10.0.0.0/8'"]),
    "macaddr": ("text", ["'08:00:2b:01:02:03'"]),
    "mood": ("text", ["'sad'", "'comma, {brace}'"]),
    "int4range": ("text", ["'[1,5)'", "'empty'", "'(,)'"]),
    "tstzrange": ("text", ["'[2016-11-04 13:00+02,infinity)'"]),
    "int4multirange": ("text", ["'{[1,5),[7,9)}'", "'{}'"]),
    "tsvector": ("text", ["'a fat cat'", "$$'it''s' 'a\\\\b':1A$$"]),
    "tsquery": ("text", ["'fat & !rat'"]),
    "bytea": ("bytea", ["'\\x'", "'\\x00ff0a5c'"]),
    "json": ("json", ["""'{"a":  1, "a": "\\u0000"}'""", "'null'", "'[1,\n2]'", "'1e400'"]),
    "jsonb": ("json", ["""'{"b": [1.50, null], "a": "\\n"}'""", "'null'", "'1e400'"]),
    "hstore": ("hstore", ["''", """'"a\\"b"=>"c\\\\d", n=>NULL, ""=>"=>, NULL", "ü"=>"\n"'"""]),
    "date": ("date", ["'2016-11-04'", "'infinity'", "'-infinity'", "'0044-03-15 BC'", "'5874897-12-31'"]),
    "time": ("time", ["'13:51:30.123456'", "'24:00:00'", "'00:00:00.000001'"]),
    "timestamp": (
        "timestamp",
        [
            "'2016-11-04 13:51:30.123456'",
            "'2016-11-04'",
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 12:00:00.5 BC'",
            "'4713-01-01 00:00:00 BC'",
            "'294276-12-31 23:59:59.999999'",
        ],
    ),
    "timestamp(0)": ("timestamp", ["'2016-11-04 13:51:30.6'"]),
    "timestamptz": (
        "timestamptz",
        [
            "'2016-11-04 13:51:30.123456+02'",
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 12:00:00.5+00 BC'",
            "'4713-01-01 00:00:00+00 BC'",
            "'294276-12-31 23:59:59.999999+00'",
        ],
    ),
    "timetz": ("timetz", ["'11:51:30.123789+00'", "'11:51+02'", "'11:51-02:30'", "'24:00:00+15:59:59'"]),
    "interval": (
        "interval",
        [
            "'1 year 2 months 3 days 4:05:06.78'",
            "'-1 year -2 months +3 days -4:05:06.78'",
            "'0'",
            "'178000000 years'",
            "'-0.000001 s'",
            "'infinity'",
            "'-infinity'",
        ],
    ),
    "bit(1)": ("bit1", ["B'0'", "B'1'"]),
    "bit(8)": ("bits", ["B'01010101'"]),
    "varbit": ("bits", ["B''", "B'00'", "B'101'"]),
    "vector(3)": ("vector", ["'[1,2.5,-1e-05]'", "'[0.1,-0,3.4e38]'"]),
    "halfvec(2)": ("vector", ["'[0.1,65504]'"]),
    "sparsevec(5)": ("text", ["'{1:1.5,3:2}/5'"]),
    "vector(2)[]": ("text", ["ARRAY['[1,2]'::vector, NULL]"]),
    "point": ("text", ["'(1.5,-0)'"]),
    "line": ("text", ["'{1,2,3}'"]),
    "box": ("text", ["'(1,2),(3,4)'"]),
    "path": ("text", ["'[(1,2),(3,4)]'", "'((1,2),(3,4))'"]),
    "polygon": ("text", ["'((1,2),(3,4))'"]),
    "circle": ("text", ["'<(1,2),3>'"]),
    "pg_lsn": ("text", ["'16/B374D848'"]),
    "xid": ("text", ["'4294967295'"]),
    "pair": ("text", ["ROW(1, 'a,\"b')", "ROW(NULL, '')"]),
    "int2vector": ("text", ["'1 2 3'"]),
    "positive": ("number", ["7"]),
    "flag": ("bit1", ["B'1'"]),
    "money_back": ("numeric", ["7.5"]),
    "ints": ("array:number", ["'{1,2}'", "'[0:1]={1,2}'"]),
    "integer[]": (
        "array:number",
        [
            "'{}'",
            "'{1,NULL,-3}'",
            "'{{1,2},{3,NULL}}'",
            "'[2:4]={1,2,3}'",
            "'[0:0][-1:0]={{1,2}}'",
            "'{{{{{{1}}}}}}'",
        ],
    ),
    "text[]": (
        "array:text",
        ["ARRAY[['a','b'],['c,d',NULL]]", "'[5:5]={\"a b\"}'", "ARRAY['{}','[1:1]={x}']"],
    ),
    "varchar(3)[]": ("array:text", ["'{abc,NULL}'"]),
    "boolean[]": ("array:bool", ["'{t,f,NULL}'"]),
    "double precision[]": ("array:float", ["'{NaN,1.5,-0,Infinity,1e-300}'"]),
    "numeric[]": ("array:numeric", ["'{NaN,1.50,-Infinity}'"]),
    "money[]": ("array:money", ["'{1234.11,-5}'"]),
    "bytea[]": ("array:bytea", ["ARRAY['\\x00ff'::bytea, '\\x', NULL]"]),
    "jsonb[]": ("array:json", ["""ARRAY['{"a": "\\""}'::jsonb, 'null', NULL]"""]),
    "hstore[]": ("array:hstore", ["ARRAY['a=>1'::hstore, '', NULL]"]),
    "date[]": ("array:date", ["'{2016-11-04,infinity,0044-03-15 BC}'"]),
    "timestamp[]": ("array:timestamp", ["'{2016-11-04 13:51:30.5,infinity}'"]),
    "timestamptz[]": ("array:timestamptz", ["'{2016-11-04 13:51:30.5+02,-infinity,0044-03-15 12:00+00 BC}'"]),
    "timetz[]": ("array:timetz", ["'{11:51+02:30,11:51+00}'"]),
    "interval[]": ("text", ["'{1 day,NULL,-2 mons}'"]),
    "bit(1)[]": ("array:bit1", ["'{0,1,NULL}'"]),
    "varbit[]": ("array:bits", ["ARRAY[B'01', B'', NULL]::varbit[]"]),
    "mood[]": ("array:text", ["ARRAY['comma, {brace}', 'a \"so\" so', NULL]::mood[]"]),
    "uuid[]": ("array:text", ["'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'"]),
    "box[]": ("text", ["'{(1,2),(3,4);(5,6),(7,8)}'"]),
    "point[]": ("array:text", ["ARRAY['(1,2)'::point, NULL]"]),
    "pair[]": ("array:text", ["ARRAY[ROW(1, 'a,\"b')::pair, NULL]"]),
    "int4range[]": ("array:text", ["ARRAY['[1,5)'::int4range, 'empty']"]),
    "positive[]": ("array:number", ["'{1,2}'"]),
    "ints[]": ("array:text", ["ARRAY['{1,2}'::ints, '[0:0]={7}', NULL]::ints[]"]),
}


@pytest.fixture(scope="module")
def typed_database(postgres_server: PostgresServer) -> Iterator[str]:
    yield from fresh_database(postgres_server)


@pytest.fixture(scope="module")
def connection(typed_database: str) -> Iterator[psycopg.Connection[Any]]:
    options = " ".join(f"-c {name}={value}" for name, value in SESSION_SETTINGS.items())
    with psycopg.connect(
        typed_database, autocommit=True, options=options, prepare_threshold=None
    ) as connection:
        connection.execute(SETUP)
        connection.execute("SELECT pg_create_logical_replication_slot('kinds', 'pgoutput')")
        yield connection


@pytest.fixture(scope="module")
def types(connection: psycopg.Connection[Any]) -> dict[int, TypeFacts]:
    cursor = connection.execute(
        """
        SELECT oid::bigint, typname::text, typtype::text, typbasetype::bigint, typtypmod,
               CASE WHEN typinput = 'array_in'::regproc THEN typelem ELSE 0 END::bigint, typdelim::text
        FROM pg_type
        """
    )
    return {row[0]: TypeFacts(*row) for row in cursor}


@pytest.mark.parametrize("type_name", CASES)
def test_every_value_arrives_as_it_was(
    connection: psycopg.Connection[Any], types: dict[int, TypeFacts], type_name: str
) -> None:
    kind, expressions = CASES[type_name]
    connection.execute("DROP TABLE IF EXISTS source, target")
    connection.execute(f"CREATE TABLE source (id int PRIMARY KEY, v {type_name})")
    connection.execute("CREATE TABLE target (LIKE source INCLUDING ALL)")
    for number, expression in enumerate(["NULL", *expressions]):
        connection.execute(f"INSERT INTO source SELECT {number}, ({expression})::{type_name}")
    if not expressions:
        rows = list(enumerate(TEXTS, 1))
        connection.cursor().executemany("INSERT INTO source VALUES (%s, %s)", rows)

    streamed = stream(connection, types, kind)
    with connection.cursor().copy("COPY (SELECT * FROM source ORDER BY id) TO STDOUT") as copy:
        copied = [streamed.rows.copy_row(bytes(line)) for line in copy]
    assert streamed.encoded == copied

    to_text = decoder_for(kind)
    for _, after in copied:
        row = orjson.loads(after)
        text = None if row["v"] is None else to_text(row["v"])
        connection.execute(
            sql.SQL("INSERT INTO target VALUES (%s, %s::text::{})").format(sql.SQL(type_name)),
            (row["id"], text),
        )
    wrong = connection.execute(
        """
        SELECT id, source.v::text, target.v::text FROM source FULL JOIN target USING (id)
        WHERE source.v::text IS DISTINCT FROM target.v::text
        """
    ).fetchall()
    assert wrong == []
    if type_name not in ("json", "point", "polygon", "point[]", "box[]"):  # these have no equality by value
        assert connection.execute(
            "SELECT count(*) FROM source JOIN target USING (id) WHERE source.v IS DISTINCT FROM target.v"
        ).fetchone() == (0,)


class Streamed:
    """The inserts since the last call, as the replication slot sends them."""

    def __init__(self, rows: RowEncoder, encoded: list[tuple[bytes | None, bytes]]) -> None:
        self.rows = rows
        self.encoded = encoded


def stream(connection: psycopg.Connection[Any], types: dict[int, TypeFacts], kind: str) -> Streamed:
    cursor = connection.execute(
        "SELECT data FROM pg_logical_slot_get_binary_changes"
        "('kinds', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')"
    )
    rows, encoded = None, []
    for (payload,) in cursor:
        message = decode(payload)
        if isinstance(message, Relation) and message.name == "source":
            kinds = [kind_of(column.type_oid, column.typmod, types) for column in message.columns]
            assert kinds == ["number", kind]
            rows = RowEncoder(message, kinds, ["id"])
        elif isinstance(message, Insert) and rows is not None:
            encoded.append(rows.insert(payload))
    assert rows is not None
    return Streamed(rows, encoded)
