"""One text for one value, whatever makes it: the reference encoder, PostgreSQL's expression, SQLite's rows.

Values go into a real PostgreSQL as text. What it prints, taken through capture's encoder, is the envelope's
value; of that canonical.py says the text, which must be what the SQL of the same column makes, and what is
made of the row that apply keeps in SQLite and in Redis. Values that print differently have different texts
and hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from consumers.reconcile import fast
from consumers.reconcile.canonical import canonical, row_digest, row_text
from consumers.reconcile.dialects.postgres import PLAIN, SqlColumn, row_hash
from consumers.reconcile.dialects.postgres import row_text as row_text_sql
from consumers.reconcile.dialects.sqlite import RowHasher, row_texts, stored_text
from consumers.reconcile.digest import RangeDigest, RowHash
from consumers.reconcile.forms import Form, Held, forms, forms_without_types
from consumers.reconcile.sides.redis_target import stored_text as kept_in_redis
from consumers.targets.redis_layout import text_of
from consumers.targets.sql_types import stored_as
from streamer.changes.arrays import quote
from streamer.changes.kinds import ARRAY, decoder_for
from streamer.errors import BadRecordError
from tests.integration.test_kinds_postgres import CASES, TEXTS
from tests.property.conftest import Stores, envelope

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
MORE_TEXTS = [
    *TEXTS,
    "a",
    "A",
    "a ",
    "é",
    "e\u0301",
    "(",
    ")",
    ",",
    '""',
    "\\\\",
    "\u00a0",
    "v",
    "\x0b",
    "\x0c",
    "\x1f",
    "\x85",
    "1.0",
    "1.00",
]


def array_of(element: st.SearchStrategy[str | None]) -> st.SearchStrategy[str]:
    items = st.lists(st.none() | element, max_size=4)

    def literal(values: Sequence[str | None]) -> str:
        return "{" + ",".join("NULL" if v is None else quote(v) for v in values) + "}"

    def shifted(values: Sequence[str | None], low: int) -> str:
        return f"[{low}:{low + len(values) - 1}]={literal(values)}" if values else "{}"

    nested = st.integers(1, 3).flatmap(
        lambda n: st.lists(st.lists(st.none() | element, min_size=n, max_size=n), min_size=1, max_size=3)
    )
    return (
        items.map(literal)
        | st.builds(shifted, items, st.integers(-3, 3))
        | nested.map(lambda rows: "{" + ",".join(map(literal, rows)) + "}")
    )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.sampled_from([1.0, 1.5, 1e300]) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
).map(lambda value: orjson.dumps(value).decode())
NUMERIC = (
    st.decimals(allow_nan=False, allow_infinity=False, places=None).map(lambda d: format(d, "f")[:900])
    | st.builds(lambda d, zeros: f"{d}.{'0' * zeros}", st.integers(-99, 99), st.integers(1, 9))
    | st.sampled_from(["NaN", "Infinity", "-Infinity", "1.0", "1.00", "1", "0", "0.000"])
)
REAL = st.floats(width=32).map(repr) | st.sampled_from(["-0", "0", "NaN"])
DOUBLE = st.floats().map(repr) | st.sampled_from(["-0", "0", "5e-324", "5.684341886080802e-14", "NaN"])
FINITE_REAL = st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr)
HALF = st.floats(width=16, allow_nan=False, allow_infinity=False).map(repr)
DATE = st.dates().map(str) | st.sampled_from(["infinity", "-infinity", "0044-03-15 BC", "12000-01-01"])
TIME = st.times().map(str) | st.just("24:00:00")
STAMP = st.datetimes().map(str) | st.sampled_from(
    ["infinity", "-infinity", "0044-03-15 12:00:00.5 BC", "12000-01-01 00:00:00.000001"]
)
ZONED = STAMP.map(
    lambda text: text.replace(" BC", "+00 BC") if "BC" in text else text if "inf" in text else text + "+00"
)
TIMETZ = st.builds(lambda time, hours: f"{time}{hours:+03d}", st.times(), st.integers(-15, 15))
INTERVAL = st.builds(
    lambda months, days, us: f"{months} mons {days} days {us} microseconds",
    st.integers(-999, 999),
    st.integers(-999, 999),
    st.integers(-(10**13), 10**13),
)
HSTORE = st.dictionaries(TEXT, st.none() | TEXT, max_size=3).map(
    lambda pairs: ", ".join(f"{quote(k)}=>{'NULL' if v is None else quote(v)}" for k, v in pairs.items())
)
BITS = st.text("01", max_size=20)
UUID = st.uuids().map(str)
BYTES = st.binary(max_size=20).map(lambda content: "\\x" + content.hex())
INTEGER = st.integers(-(2**31), 2**31 - 1).map(str)
MONEY = st.decimals(-(10**12), 10**12, places=2).map(str)

GENERATED: dict[str, st.SearchStrategy[str]] = {
    "smallint": st.integers(-(2**15), 2**15 - 1).map(str),
    "integer": INTEGER,
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str) | st.sampled_from(["1", "4294967296"]),
    "oid": st.integers(0, 2**32 - 1).map(str),
    "boolean": st.sampled_from(["t", "f"]),
    "real": REAL,
    "double precision": DOUBLE,
    "numeric": NUMERIC,
    "numeric(12,4)": st.decimals(-(10**7), 10**7, places=4).map(str),
    "money": MONEY,
    "char(5)": TEXT.map(lambda text: text[:5]),
    "text": TEXT,
    "varchar(80)": TEXT,
    "citext": TEXT,
    "uuid": UUID,
    "inet": st.ip_addresses().map(str),
    "bytea": BYTES,
    "json": JSON,
    "jsonb": JSON.filter(lambda text: "\\u0000" not in text),
    "hstore": HSTORE,
    "date": DATE,
    "time": TIME,
    "timestamp": STAMP,
    "timestamptz": ZONED,
    "timetz": TIMETZ,
    "interval": INTERVAL,
    "varbit": BITS,
    "vector(3)": st.lists(FINITE_REAL, min_size=3, max_size=3).map(lambda items: f"[{','.join(items)}]"),
    "halfvec(2)": st.lists(HALF, min_size=2, max_size=2).map(lambda items: f"[{','.join(items)}]"),
    "integer[]": array_of(INTEGER),
    "text[]": array_of(TEXT),
    "boolean[]": array_of(st.sampled_from(["t", "f"])),
    "real[]": array_of(REAL),
    "double precision[]": array_of(DOUBLE),
    "numeric[]": array_of(NUMERIC),
    "money[]": array_of(MONEY),
    "bytea[]": array_of(BYTES),
    "jsonb[]": array_of(JSON.filter(lambda text: "\\u0000" not in text)),
    "hstore[]": array_of(HSTORE),
    "date[]": array_of(DATE),
    "timestamp[]": array_of(STAMP),
    "timestamptz[]": array_of(ZONED),
    "uuid[]": array_of(UUID),
}
KINDS = {"real[]": "array:float"}
FEW = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def check(stores: Stores, type_name: str, kind: str, texts: Sequence[str | None]) -> None:
    held = Held(kind, stores.fill(type_name, texts).type)
    printed = stores.printed()
    values = [envelope(kind, text) for text in printed]
    expected = [canonical(kind, value) for value in values]
    check_postgres(stores, held, printed, expected)
    check_sqlite(stores, held, values)
    check_redis(kind, values, expected)
    check_text_target(stores, held, values)


def check_postgres(
    stores: Stores, held: Held, printed: list[bytes | None], expected: list[str | None]
) -> None:
    for form in forms(held, held):
        column = SqlColumn("v", held, form)
        rows = [row_text([text]) for text in expected]
        assert stores.column(row_text_sql([column], major=stores.major)) == rows
        slow = row_text_sql([column], major=stores.major, plain=False)
        assert [bytes(row).decode() for row in stores.column(slow)] == rows
        for hashing in (row_hash([column], major=stores.major), fast.row_hash([column], [])):
            rows_of = sorted(stores.postgres.execute(hashing.hashes(["n"], "t")).fetchall())
            found = [RowHash.of(a, b) for _, a, b in rows_of]
            by_print = dict(zip(printed, found, strict=True))
            assert len(set(found)) == len(by_print), "two values that print differently have one hash"
            assert [by_print[text] for text in printed] == found, "one value has two hashes"
            if hashing.lanes:
                assert found == [row_digest([text]) for text in expected]
            sums = stores.postgres.execute(hashing.digests("t")).fetchone()
            assert sums is not None
            assert RangeDigest.of_sums(*sums) == RangeDigest.of_hashes(found)
    assert len(set(expected)) == len(set(printed))


def check_sqlite(stores: Stores, held: Held, values: list[Any]) -> None:
    """What apply keeps of the envelopes' values has the text that the source's own expression gives."""
    stored = stored_as(held.kind)
    if held.kind.startswith(ARRAY) and any(type(value) is str for value in values):
        with pytest.raises(BadRecordError):  # of other bounds than 1: apply parks the row
            stored.encode(values)
        return
    stores.sqlite.execute("DROP TABLE IF EXISTS t")
    stores.sqlite.execute(f"CREATE TABLE t (n INTEGER PRIMARY KEY, v {stored.type})")
    stores.sqlite.executemany("INSERT INTO t (v) VALUES (?)", [(v,) for v in stored.encode(values)])
    rows = stores.sqlite.execute("SELECT v FROM t ORDER BY n").fetchall()
    of_source, of_target = forms_without_types(held, signed_zero=False)
    expected = stores.column(row_text_sql([SqlColumn("v", held, of_source)], major=stores.major))
    hasher = RowHasher([of_target])
    assert hasher.texts(rows) == expected
    assert [row_text(texts) for texts in row_texts(rows, [of_target])] == expected
    hashes = hasher.hashes(rows)
    assert hashes == [row_digest(texts) for texts in row_texts(rows, [of_target])]
    assert hasher.digest(rows) == RangeDigest.of_hashes(hashes)
    assert [hasher.texts([row])[0] for row in rows] == expected, "alone a row has another text"


def check_redis(kind: str, values: list[Any], expected: list[str | None]) -> None:
    """So has what apply writes into a field of a hash, and into a document."""
    document = orjson.loads(orjson.dumps(values))
    for layout, kept in (("hash", [v if v is None else text_of(v) for v in values]), ("json", document)):
        text = kept_in_redis(layout, kind)
        assert [None if value is None else text(value) for value in kept] == expected


def check_text_target(stores: Stores, held: Held, values: list[Any]) -> None:
    """What apply writes into a text column, where the target does not know the type."""
    write = decoder_for(held.kind)
    texts = [None if value is None else write(value) for value in values]
    stores.postgres.execute("DELETE FROM kept")
    stores.postgres.execute(
        "INSERT INTO kept SELECT n, x FROM unnest(%s::text[]) WITH ORDINALITY u(x, n)", (texts,)
    )
    target = Held("text", "text")
    of_source, of_target = forms(held, target)
    one = row_text_sql([SqlColumn("v", held, of_source)], major=stores.major)
    other = row_text_sql([SqlColumn("v", target, of_target)], major=stores.major)
    kept = [row[0] for row in stores.postgres.execute(f"SELECT {other} FROM kept ORDER BY n")]
    assert kept == stores.column(one)


def test_the_server_quotes_ascii_white_space_only(stores: Stores) -> None:
    assert stores.postgres.execute(PLAIN).fetchone() == (True,)


@pytest.mark.parametrize("type_name", CASES)
def test_edges_of_every_type(stores: Stores, type_name: str) -> None:
    kind, expressions = CASES[type_name]
    texts: list[str | None] = [None, None]
    for expression in expressions:
        query = sql.SQL("SELECT ({})::{}").format(sql.SQL(expression), sql.SQL(type_name))
        cursor = stores.postgres.cursor().execute(query)
        assert cursor.pgresult is not None
        raw = cursor.pgresult.get_value(0, 0)
        texts.append(None if raw is None else raw.decode())
    check(stores, type_name, kind, texts if expressions else [*texts, *MORE_TEXTS, *MORE_TEXTS[:3]])


BOUNDED = {
    "int[]": ("array:number", "[0:0][-1:0]={{1,2}}"),
    "double precision[]": ("array:float", "[0:0][-1:0]={{NaN,-0}}"),
    "real[]": ("array:float", "[0:1]={0.1,NULL}"),
    "numeric[]": ("array:numeric", "[2:3]={1.50,NULL}"),
    "money[]": ("array:money", "[0:1]={1234.11,-5}"),
    "text[]": ("array:text", '[-1:0]={a,"b c"}'),
    "boolean[]": ("array:bool", "[0:1]={t,f}"),
    "bit(1)[]": ("array:bit1", "[0:1]={0,1}"),
    "date[]": ("array:date", "[0:0]={2016-11-04}"),
    "timestamptz[]": ("array:timestamptz", "[0:0]={2016-11-04 13:51:30.5+02}"),
    "timetz[]": ("array:timetz", "[0:0]={11:51+02:30}"),
    "jsonb[]": ("array:json", '[0:0]={"{\\"a\\":1}"}'),
    "hstore[]": ("array:hstore", '[0:0]={"a=>1"}'),
}


@pytest.mark.parametrize("type_name", BOUNDED)
def test_an_array_with_other_lower_bounds_is_another_value(stores: Stores, type_name: str) -> None:
    """`check` finds as many texts and hashes as there are ways to print a value."""
    kind, bounded = BOUNDED[type_name]
    texts: list[str | None] = []
    for text in (bounded, bounded.partition("=")[2]):
        query = sql.SQL("SELECT {}::{}").format(sql.Literal(text), sql.SQL(type_name))
        cursor = stores.postgres.cursor().execute(query)
        assert cursor.pgresult is not None
        raw = cursor.pgresult.get_value(0, 0)
        assert raw is not None
        texts.append(raw.decode())
    assert len(set(texts)) == 2
    check(stores, type_name, kind, texts)


@pytest.mark.parametrize("type_name", GENERATED)
def test_any_value_of(stores: Stores, type_name: str) -> None:
    kind = KINDS.get(type_name) or CASES[type_name][0]

    @FEW
    @given(st.lists(st.none() | GENERATED[type_name], min_size=1, max_size=40))
    def run(texts: list[str | None]) -> None:
        check(stores, type_name, kind, texts)

    run()


def test_rows_are_told_apart_whatever_stands_in_which_column(stores: Stores) -> None:
    """All rows of two columns over texts that could run into each other, against each other."""
    texts = [None, "", ",", '"', "\\", "(", "a", "a,", ",a", '","', "\\,", "NULL", "()", " "]
    stores.fresh("n serial, v text, w text")
    rows = [(v, w) for v in texts for w in texts]
    stores.postgres.cursor().executemany("INSERT INTO t (v, w) VALUES (%s, %s)", rows)
    held = Held("text", "text")
    columns = [SqlColumn(name, held, Form("text")) for name in ("v", "w")]
    expected = [row_text(row) for row in rows]
    assert stores.column(row_text_sql(columns, major=stores.major)) == expected
    assert len(set(expected)) == len(rows)
    for hashing in (row_hash(columns, major=stores.major), fast.row_hash(columns, [])):
        assert len(set(stores.postgres.execute(hashing.hashes([], "t")).fetchall())) == len(rows)


# SQLite: what apply does not write


ODD: dict[str, list[Any]] = {
    "number": [1, "01", "1 ", 1.5, b"1"],
    "bool": [1, 0, 2, "true", "t", b"1"],
    "float": [1.5, "1.5", 0.1, 0.1 + 2**-56, "NaN", "nan", float("inf"), b"\0"],
    "bytea": [b"", b"\0", "", "\\x00"],
    "timestamp": ["2016-11-04T13:51:30Z", "2016-11-04 13:51:30", "2016-11-04T13:51:30", "2016-11-04", 5],
    "timestamptz": ["2016-11-04T13:51:30Z", "2016-11-04 13:51:30+00", "2016-11-04T13:51:30+00Z", b"2"],
    "timetz": ["11:51:30Z", "11:51:30+00", "11:51:30", 5],
    "hstore": ["{}", "{", "[]", '{"a":1}', 5],
    "array:number": ["[]", "[1]", "[[1]]", "{1}", '["1"]', 5],
    "array:float": ["[]", "[1]", "[[1],[1,2]]", "[[1,2],[1]]", "[null]", "x", 5],
    "vector": ["[1]", "[1,1]", "[null]", "[[1]]", "1", 5],
    "text": ["", "1", 1, 1.0, b"1"],
}


@pytest.mark.parametrize("kind", ODD)
def test_any_storage_has_a_text_of_its_own(kind: str) -> None:
    form = Form(kind)
    texts = [stored_text(form)(value) for value in ODD[kind]]
    assert len(set(texts)) == len(texts)
    rows = [(value,) for value in ODD[kind]]
    assert RowHasher([form]).texts(rows) == [row_text([text]) for text in texts]
