"""What is compared of a source without SQL: the texts that a Postgres would print of the same values."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.reconcile.dialects.postgres import SqlColumn
from consumers.reconcile.event_texts import text_of
from consumers.reconcile.fast import Pair
from consumers.reconcile.forms import Form, Held
from consumers.reconcile.jsonb import jsonb_text
from streamer.config.key_template import KeyTemplate, parse_template
from streamer.redis.encode import encode_float, encode_int, encode_numeric
from tests.property.conftest import Stores

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
NUMBERS = st.from_regex(r"-?(0|[1-9][0-9]{0,20})(\.[0-9]{1,12})?([eE][+-]?[0-9]{1,2})?", fullmatch=True)


class Number(str):
    __slots__ = ()


def spelt(value: Any) -> str:
    """JSON, its numbers as they were drawn."""
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(name)}:{spelt(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + " , ".join(map(spelt, value)) + "]"
    return json.dumps(value)


DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), TEXTS, NUMBERS.map(Number)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=12,
).map(spelt)


@given(st.lists(DOCUMENTS, min_size=1, max_size=50))
def test_jsonb_as_postgres_prints_it(stores: Stores, documents: list[str]) -> None:
    query = "SELECT x::jsonb::text FROM unnest(%s::text[]) WITH ORDINALITY u(x, n) ORDER BY n"
    printed = [text for (text,) in stores.postgres.execute(query, (documents,)).fetchall()]
    assert [jsonb_text(document) for document in documents] == printed


@pytest.mark.parametrize("depth", [600, 1020, 20_000])
def test_a_document_may_be_nested_deeper_than_pythons_stack(depth: int) -> None:
    assert jsonb_text("[" * depth + "1e1" + "]" * depth) == "[" * depth + "10" + "]" * depth
    assert jsonb_text('{"a":' * depth + "[ ]" + "}" * depth) == '{"a": ' * depth + "[]" + "}" * depth


BROKEN = [
    "",
    " ",
    "[",
    "[1",
    "[1,]",
    "[1 2]",
    "{",
    '{"a"}',
    '{"a":1,}',
    "{1:2}",
    "1 2",
    "[]]",
    "NaN",
    "]",
    ",",
]


@pytest.mark.parametrize("text", BROKEN)
def test_what_is_no_json_is_told(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its own words, or the library's
        jsonb_text(text)


CASTS = [
    ("bigint", "number", encode_int, "numeric(24,2)", None, "numeric"),
    ("bigint", "number", encode_int, "double precision", None, "float"),
    ("numeric", "numeric", encode_numeric, "numeric(250,3)", None, "numeric"),
    ("numeric", "numeric", encode_numeric, "double precision", None, "float"),
    ("double precision", "float", encode_float, "double precision", None, "float"),
    ("double precision", "float", encode_float, "numeric", None, "numeric"),
    ("numeric", "numeric", encode_numeric, "numeric(250,2)", "decimal(250, 3)", "numeric"),
    ("double precision", "float", encode_float, "numeric(250,1)", "numeric(250,2)", "numeric"),
]


@pytest.mark.parametrize(("type_", "kind", "encode", "cast", "via", "to"), CASTS)
@given(data=st.data())
def test_casts_as_postgres_makes_them(
    stores: Stores,
    type_: str,
    kind: str,
    encode: Any,
    cast: str,
    via: str | None,
    to: str,
    data: st.DataObject,
) -> None:
    numbers = st.integers(-(2**63), 2**63 - 1).map(str) if kind == "number" else NUMBERS
    drawn = data.draw(st.lists(numbers, min_size=1, max_size=50))
    column = SqlColumn('"v"', Held(kind, type_), Form(to, cast=cast, via=via))
    text = text_of(Pair("v", column, SqlColumn('"v"', Held(to, cast), Form(to)), "v"), typed=True)
    assert text is not None
    made = f"(x::{type_})::text::{via or cast}::{cast}"
    shown = f"float8send({made})::text" if to == "float" else f"{made}::text"
    query = f"SELECT {shown} FROM unnest(%s::text[]) WITH ORDINALITY u(x, n) ORDER BY n"
    printed = [found for (found,) in stores.postgres.execute(query.encode(), (drawn,)).fetchall()]
    assert [text(orjson.loads(encode(each.encode()))) for each in drawn] == printed


@pytest.mark.parametrize("template", ["{a}", "x:{a}", "{a}:{b}", "u:{a}-{b}/{c}:end", "{a}é{b}"])
@given(values=st.lists(st.text("ab:-/%é\n{}", max_size=6), min_size=3, max_size=3))
def test_the_values_of_a_key_are_read_back(template: str, values: list[str]) -> None:
    found = parse_template(template)
    assert isinstance(found, KeyTemplate)
    given_ = values[: len(found.names)]
    text = found.prefix + found.tail(given_)
    assert found.values(text) == given_
