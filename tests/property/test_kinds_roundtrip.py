"""Text to JSON and back for generated values: nothing is lost, and totality of both directions."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.changes.arrays import quote
from streamer.changes.kinds import DECODERS, ENCODERS, decoder_for, encoder_for
from streamer.errors import BadRecordError

KINDS = [*ENCODERS, "array:number", "array:text", "array:bytea", "array:hstore", "array:float"]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))


def there_and_back(kind: str, text: str) -> str:
    return decoder_for(kind)(orjson.loads(encoder_for(kind)(text.encode())))


def test_both_directions_know_the_same_kinds() -> None:
    assert set(ENCODERS) == set(DECODERS)


@given(TEXT)
def test_text_is_exact_and_escaped_as_orjson_does(text: str) -> None:
    assert encoder_for("text")(text.encode()) == orjson.dumps(text)
    assert there_and_back("text", text) == text


@given(st.integers(-(2**63), 2**63 - 1))
def test_numbers_are_exact(number: int) -> None:
    assert there_and_back("number", str(number)) == str(number)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_doubles_are_exact(number: float) -> None:
    text = repr(number).removesuffix(".0")
    assert float(there_and_back("float", text)).hex() == number.hex()


@given(st.binary())
def test_bytea_is_exact(content: bytes) -> None:
    assert there_and_back("bytea", f"\\x{content.hex()}") == f"\\x{content.hex()}"


@given(st.dictionaries(TEXT, st.none() | TEXT, max_size=4))
def test_hstore_is_exact(pairs: dict[str, str | None]) -> None:
    literal = ", ".join(f"{quote(k)}=>{'NULL' if v is None else quote(v)}" for k, v in pairs.items())
    assert there_and_back("hstore", literal) == literal
    assert orjson.loads(orjson.loads(encoder_for("hstore")(literal.encode()))) == pairs


def literal(items: Any) -> str:
    """As array_out would print it, every element in quotes."""
    if items is None:
        return "NULL"
    if isinstance(items, str):
        return quote(items)
    return "{" + ",".join(literal(item) for item in items) + "}"


ELEMENTS = st.lists(
    st.none() | TEXT | st.sampled_from(["NULL", "null", "", "{", "a,b", '"', "\\", " "]), max_size=4
)


@given(ELEMENTS | st.lists(ELEMENTS.filter(bool), min_size=1, max_size=3))
def test_arrays_of_text_are_exact(items: list[Any]) -> None:
    encoded = encoder_for("array:text")(literal(items).encode())
    assert orjson.loads(encoded) == items
    assert encoder_for("array:text")(decoder_for("array:text")(items).encode()) == encoded


@pytest.mark.parametrize("kind", KINDS)
@given(
    raw=st.binary(max_size=24)
    | st.text(st.sampled_from('{}[]=:,"\\ NUL1.-+TZe>x0'), max_size=24).map(str.encode)
)
def test_any_bytes_give_valid_json_or_a_value_error(kind: str, raw: bytes) -> None:
    try:
        json = encoder_for(kind)(raw)
    except ValueError:
        return
    orjson.loads(json)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", KINDS)
@given(value=JSON)
def test_any_value_gives_text_or_a_bad_record(kind: str, value: Any) -> None:
    try:
        text = decoder_for(kind)(value)
    except BadRecordError:
        return
    assert type(text) is str
