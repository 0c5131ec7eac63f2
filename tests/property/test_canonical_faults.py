"""What must be seen as a difference, and what must not, between a source's column and a target's.

Of types that differ, of values that a server's own equality holds for equal, and of rows whose differences
a sum of linear hashes would take for none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from struct import unpack

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg.types.numeric import Float4

from consumers.reconcile import fast
from consumers.reconcile.dialects.postgres import VALIDITY_MAJOR, SqlColumn, row_hash
from consumers.reconcile.dialects.postgres import row_text as row_text_sql
from consumers.reconcile.digest import EMPTY, RangeDigest
from consumers.reconcile.forms import Form, Held, forms
from consumers.reconcile.mapping import Target, compared_columns
from streamer.changes.kinds import decoder_for
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import parse
from tests.property.conftest import Stores, envelope

CASTS = parse(
    """
name: acme
sources: {shop: {kind: postgres, url: "postgresql://u@h/d", tables: {"public.*": {}}}}
targets: {copy: {kind: postgres, url: "postgresql://u@h/e"}}
flows: {casts: {from: shop.public.t, to: copy.own, columns: {v: {cast: numeric}}}}
""",
    Path("tailrace.yaml"),
    environ={},
).flows["casts"]

# Types that differ


WIDER = [
    ("integer", "number", "bigint", "number", ["-5", "0"]),
    ("smallint", "number", "double precision", "float", ["-5", "0"]),
    ("integer", "number", "numeric(12,2)", "numeric", ["-5", "0"]),
    ("oid", "number", "numeric", "numeric", ["4294967295"]),
    ("real", "float", "double precision", "float", ["0.1", "-0", "1e-45", "16777217", "NaN", "Infinity"]),
    ("double precision", "float", "numeric", "numeric", ["1", "0.1", "1e22"]),
    ("numeric(10,2)", "numeric", "numeric(12,4)", "numeric", ["1.5", "NaN"]),
    ("numeric(10,2)", "numeric", "numeric", "numeric", ["1.5", "1.50"]),
    ("char(5)", "text", "char(8)", "text", ["ab", ""]),
    ("char(5)", "text", "varchar(9)", "text", ["ab", ""]),
    ("varchar(5)", "text", "varchar(9)", "text", ["ab "]),
    ("name", "text", "text", "text", ["ab "]),
    ("json", "json", "jsonb", "json", ['{"b":1,  "a":[1.50]}', "null"]),
    ("date", "date", "timestamp", "timestamp", ["2016-11-04", "infinity", "0044-03-15 BC"]),
    ("timestamp(3)", "timestamp", "timestamp", "timestamp", ["2016-11-04 13:51:30.5"]),
    ("interval(3)", "interval", "interval", "interval", ["1 day 0.5 s"]),
    ("cidr", "text", "inet", "text", ["10.0.0.1/32", "10.0.0.0/8"]),
    ("macaddr", "text", "macaddr8", "text", ["08:00:2b:01:02:03"]),
    ("bit(8)", "bits", "varbit", "bits", ["01010101"]),
    ("varchar(3)[]", "array:text", "text[]", "array:text", ["{abc,NULL}"]),
    ("real[]", "array:float", "double precision[]", "array:float", ["{0.1,-0,NaN,NULL}"]),
]


@pytest.mark.parametrize(("of_source", "kind", "of_target", "target_kind", "texts"), WIDER)
def test_a_wider_type_holds_the_same(
    stores: Stores, of_source: str, kind: str, of_target: str, target_kind: str, texts: list[str]
) -> None:
    source = Held(kind, stores.fill(of_source, [None, *texts]).type)
    write = decoder_for(kind)
    values = [envelope(kind, text) for text in stores.printed()]
    stores.postgres.execute("DROP TABLE IF EXISTS wider")
    stores.postgres.execute(f"CREATE TABLE wider (n serial, v {of_target})")
    stores.postgres.execute(
        f"INSERT INTO wider (v) SELECT x::{of_target} FROM unnest(%s::text[]) x",
        ([None if value is None else write(value) for value in values],),
    )
    target = Held(target_kind, stores.held("wider", "v").type)
    sent, kept = (
        row_text_sql([SqlColumn("v", held, form)], major=stores.major)
        for held, form in zip((source, target), forms(source, target), strict=True)
    )
    expected = [row[0] for row in stores.postgres.execute(f"SELECT {kept} FROM wider ORDER BY n")]
    assert stores.column(sent) == expected
    assert len(set(expected)) > 1
    assert not any("invalid" in text for text in expected)


@pytest.mark.parametrize("kind", ["float", "vector", "array:float", "array:money", "array:text"])
def test_a_text_that_is_no_value_is_a_difference(stores: Stores, kind: str) -> None:
    stores.fill("text", ["no value", "\\x3ff0000000000000", None])
    types = {"float": "double precision", "vector": "vector(1)"}
    of_source = Held(kind, types.get(kind, "money[]" if kind == "array:money" else "uuid[]"))
    held = Held("text", "text")
    column = SqlColumn("v", held, forms(of_source, held)[1])
    if stores.major < VALIDITY_MAJOR:
        with pytest.raises(psycopg.DataError):
            stores.column(row_text_sql([column], major=stores.major))
        return
    assert stores.column(row_text_sql([column], major=stores.major)) == [
        '("invalid: no value")',
        '("invalid: \\\\x3ff0000000000000")',
        "()",
    ]


def test_a_flows_cast_is_the_servers_own(stores: Stores) -> None:
    stores.fill("numeric", ["1.5", "2.4", None])
    form = Form("number", cast="integer", direct=True)
    column = SqlColumn("v", Held("numeric", "numeric"), form)
    assert stores.column(row_text_sql([column], major=stores.major)) == ["(2)", "(2)", "()"]


DOUBLES = st.floats() | st.builds(lambda n, of: n / of, st.integers(-(10**6), 10**6), st.integers(1, 999))


@pytest.mark.parametrize(("type_name", "width"), [("double precision", 64), ("real", 32)])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_float_that_a_flow_casts_to_a_numeric_is_what_apply_makes_of_it(
    stores: Stores, type_name: str, width: int, data: st.DataObject
) -> None:
    """Apply goes by way of text: each number is another numeric, as exact as it is printed."""
    numbers = st.floats(width=32) if width == 32 else DOUBLES
    texts = data.draw(st.lists(numbers.map(repr), min_size=1, max_size=40))
    stores.fill(type_name, texts)
    write = decoder_for("float")
    values = [write(envelope("float", text)) for text in stores.printed()]
    stores.postgres.execute("CREATE TEMP TABLE IF NOT EXISTS cast_to (n serial, v numeric)")
    stores.postgres.execute("TRUNCATE cast_to RESTART IDENTITY")
    made = f"INSERT INTO cast_to (v) SELECT x::{type_name}::text::numeric FROM unnest(%s::text[]) x"
    stores.postgres.execute(made.encode(), (values,))
    columns = (Column("n", "integer", -1, "number", True), Column("v", type_name, -1, "float", False))
    there = Target({"n": Held("number", "integer"), "v": Held("numeric", "numeric")})
    _, pair = compared_columns(CASTS, SchemaRecord("shop", "public", "t", "d", columns), there).pairs
    sent, kept = (row_text_sql([side], major=stores.major) for side in (pair.source, pair.target))
    found = [row[0] for row in stores.postgres.execute(f"SELECT {kept} FROM cast_to ORDER BY n")]
    assert stores.column(sent) == found
    assert len(set(found)) == len({float(value) for value in values if value != "NaN"}) + ("NaN" in values)


# What a server's own equality passes over


OWN_KINDS = {
    "numeric": "numeric",
    "double precision": "float",
    "real": "float",
    "jsonb": "json",
    "bigint": "number",
    "interval": "interval",
    "timestamptz": "timestamptz",
    "timetz": "timetz",
    "vector(2)": "vector",
    "numeric[]": "array:numeric",
    "double precision[]": "array:float",
    "boolean": "bool",
}


@pytest.mark.parametrize(
    ("type_name", "one", "other"),
    [
        ("numeric", "'1.0'", "'1.00'"),
        ("double precision", "'-0'", "'0'"),
        ("real", "'-0'", "'0'"),
        ("double precision", "'NaN'", "-('NaN'::float8)"),
        ("real", "'NaN'", "-('NaN'::real)"),
        ("text", "'a'", "'a '"),
        ("varchar(9)", "''", "' '"),
        ("text", "NULL", "''"),
        ("bpchar", "'a'", "'a '"),
        ("interval", "'1 mon'", "'30 days'"),
        ("interval", "'1 day'", "'24:00'"),
        ("jsonb", "'1.0'", "'1.00'"),
        ("bigint", "1", "4294967296"),
        ("bigint", "-1", "4294967295"),
        ("timestamptz", "'2016-11-04 13:51:30.000001+00'", "'2016-11-04 13:51:30+00'"),
        ("timetz", "'11:00+00'", "'12:00+01'"),
        ("citext", "'a'", "'A'"),
        ("blind", "'a'", "'A'"),
        ("numrange", "'[1.0,2)'", "'[1.00,2)'"),
        ("numeric[]", "'{1.0}'", "'{1.00}'"),
        ("double precision[]", "'{-0}'", "'{0}'"),
        ("vector(2)", "'[-0,1]'", "'[0,1]'"),
        ("cidr", "'10.0.0.0/8'", "'10.0.0.0/9'"),
        ("numeric", "NULL", "0"),
        ("boolean", "NULL", "false"),
    ],
)
def test_both_hashes_of_a_target_see(stores: Stores, type_name: str, one: str, other: str) -> None:
    kind = OWN_KINDS.get(type_name, "text")
    column = "text COLLATE blind" if type_name == "blind" else type_name
    if type_name == "blind" and not has_icu(stores):
        column = "citext"  # equal by the type in place of the collation
    stores.fresh(f"n int, v {column}")
    stores.postgres.execute(f"INSERT INTO t VALUES (1, ({one})::{column}), (2, ({other})::{column})")
    held = Held(kind, stores.held("t", "v").type)
    target = SqlColumn("v", held, forms(held, held)[1])
    for hashing in (row_hash([target], major=stores.major), fast.row_hash([target], [])):
        assert len(set(stores.postgres.execute(hashing.hashes([], "t")).fetchall())) == 2


@pytest.mark.parametrize(("type_name", "wrap"), [("double precision", float), ("real", Float4)])
def test_both_hashes_of_a_target_see_the_payload_of_a_nan(
    stores: Stores, type_name: str, wrap: Callable[[float], float]
) -> None:
    """Which only the binary protocol writes."""
    stores.fresh(f"n int, v {type_name}")
    for number, bits in enumerate(("7ff8000000000000", "7ff9000000000000", "7ffc000000000000")):
        (nan,) = unpack(">d", bytes.fromhex(bits))
        stores.postgres.execute("INSERT INTO t VALUES (%s, %b)", (number, wrap(nan)))
    held = Held("float", type_name)
    target = SqlColumn("v", held, forms(held, held)[1])
    for hashing in (row_hash([target], major=stores.major), fast.row_hash([target], [])):
        assert len(set(stores.postgres.execute(hashing.hashes([], "t")).fetchall())) == 3


def has_icu(stores: Stores) -> bool:
    if not stores.postgres.execute("SELECT FROM pg_collation WHERE collprovider = 'i'").fetchone():
        return False
    blind = "provider = icu, locale = 'und-u-ks-level2', deterministic = false"
    stores.postgres.execute(f"CREATE COLLATION IF NOT EXISTS blind ({blind})")
    return True


@pytest.mark.parametrize("type_name", ["real", "double precision"])
def test_a_nan_of_the_source_is_the_one_that_the_log_carries(stores: Stores, type_name: str) -> None:
    stores.fresh(f"n int, v {type_name}")
    stores.postgres.execute(f"INSERT INTO t VALUES (1, 'NaN'), (2, -('NaN'::{type_name}))")
    held = Held("float", type_name)
    source, target = (SqlColumn("v", held, form) for form in forms(held, held))
    for hashing, other in (
        (row_hash([source], major=stores.major), row_hash([target], major=stores.major)),
        (fast.row_hash([source], []), fast.row_hash([target], [])),
    ):
        sent = stores.postgres.execute(hashing.hashes([], "t")).fetchall()
        assert len(sent) == 2
        assert sent[0] == sent[1] == stores.postgres.execute(other.hashes([], "t WHERE n = 1")).fetchone()


# Faults that a sum of linear hashes does not see


SWAPS = {
    "keys": "UPDATE t SET n = CASE n WHEN 1 THEN 2 WHEN 2 THEN 1 ELSE n END",
    "one column": "UPDATE t SET v = CASE n WHEN 1 THEN 'two' WHEN 2 THEN 'one' ELSE v END",
    "a null for another": "UPDATE t SET w = CASE n WHEN 3 THEN 3 WHEN 4 THEN NULL ELSE w END",
    "the key of a row of nulls": "UPDATE t SET n = 6 WHERE n = 5",
    "columns of a row": "UPDATE t SET v = x, x = v WHERE n = 1",
}


@pytest.mark.parametrize("swap", SWAPS)
@pytest.mark.parametrize("key", [True, False])
def test_a_swap_changes_the_digest(stores: Stores, swap: str, key: bool) -> None:
    stores.fresh("n bigint, v text, w int, x text")
    stores.postgres.execute(
        "INSERT INTO t VALUES (1, 'one', 1, 'x'), (2, 'two', 2, 'y'), (3, 'c', NULL, 'z'), (4, 'd', 3, 'z'),"
        " (5, NULL, NULL, NULL)"
    )
    number, text = Held("number", "bigint"), Held("text", "text")
    columns = [SqlColumn("n", number, Form("number")), SqlColumn("v", text, Form("text"))]
    columns += [SqlColumn("w", Held("number", "integer"), Form("number")), SqlColumn("x", text, Form("text"))]
    hashings = [row_hash(columns, major=stores.major), fast.row_hash(columns, columns[:1] if key else [])]

    def digests() -> list[RangeDigest]:
        found = [stores.postgres.execute(hashing.digests("t")).fetchone() for hashing in hashings]
        return [RangeDigest.of_sums(*row) for row in found if row is not None]

    before = digests()
    stores.postgres.execute(SWAPS[swap])
    after = digests()
    assert [digest.count for digest in after] == [5, 5]
    assert before[0] != after[0]
    assert before[1] != after[1]


def test_a_range_without_rows_has_the_empty_digest(stores: Stores) -> None:
    stores.fill("text", [])
    column = SqlColumn("v", Held("text", "text"), Form("text"))
    for hashing in (row_hash([column], major=stores.major), fast.row_hash([column], [])):
        row = stores.postgres.execute(hashing.digests("t")).fetchone()
        assert row is not None
        assert RangeDigest.of_sums(*row) == EMPTY
