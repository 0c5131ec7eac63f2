"""The canonical text of a value and of a row, and the row's hash: the reference encoder of docs/digest.md.

Pure. `canonical` takes what an envelope holds (`orjson.loads` of it), so it says what a target ought to
hold; the dialects say the same of what a store does hold, and are tested against this module.

    row    '(' field { ',' field } ')'
    field  ''                                 NULL
           '"' { char | '""' | '\\\\' } '"'     a text that is empty or has white space , ( ) " or \\ in it
           text                               any other
    hash   md5 of the row's text in UTF-8; lane a is its first 8 bytes, lane b the other 8, big-endian

This is what PostgreSQL prints for a composite value (manual, "Composite Type Input and Output Syntax").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache
from hashlib import md5
from struct import pack, unpack
from typing import Any

from orjson import loads

from consumers.reconcile.digest import RowHash
from streamer.changes.arrays import array_encoder, quote
from streamer.changes.kinds import ARRAY, decode_float, decoder_for, encoder_for
from streamer.errors import BadRecordError

Texts = Iterable[str | None]
Canonical = Callable[[Any], str]  # a value that is not null -> its text; BadRecordError on another shape

NAN = float("nan")  # the one that a Postgres makes of the text NaN: positive, quiet, no payload
_DOUBLE_OID, _REAL_OID = 701, 700
_NEEDS_QUOTES = re.compile(r'[\s(),"\\]', re.ASCII).search
_ARRAY_NEEDS_QUOTES = re.compile(r'(?i:null)\Z|\Z|[^{},"\\\s]*[{},"\\\s]', re.ASCII).match
_BOUNDS = re.compile(r"\[(-?[0-9]+):-?[0-9]+\]")


def canonical(kind: str, value: Any) -> str | None:
    """The text of an envelope's value. Raises BadRecordError where it is no value of the kind."""
    return None if value is None else canonical_of(kind)(value)


@cache
def canonical_of(kind: str) -> Canonical:
    if kind == "float":
        return float_text
    if kind == "vector":
        return vector_text
    if kind == ARRAY + "float":
        return _double_array
    if kind.startswith(ARRAY):
        return _array_of(kind.removeprefix(ARRAY))
    return decoder_for(kind)


# Rows


def field(text: str | None) -> str:
    """A column's text in the text of its row."""
    if text is None:
        return ""
    if not text or _NEEDS_QUOTES(text):
        return '"' + text.replace("\\", "\\\\").replace('"', '""') + '"'
    return text


def row_text(texts: Texts) -> str:
    return "(" + ",".join([field(text) for text in texts]) + ")"


def row_digest(texts: Texts) -> RowHash:
    """The two lanes of a row, of the canonical texts of its columns."""
    content = row_text(texts).encode()
    return RowHash._make(unpack(">QQ", md5(content, usedforsecurity=False).digest()))


# Numbers that are compared by their bits


def number(value: Any) -> float:
    """Of what an envelope holds for a real or a double precision."""
    if type(value) is str:
        if value in ("NaN", "Infinity", "-Infinity"):
            return NAN if value == "NaN" else float(value)
        raise BadRecordError("a number was expected, not other text")
    decode_float(value)
    return float(value)


def float_text(value: Any) -> str:
    return "\\x" + pack(">d", number(value)).hex()


def vector_text(value: Any) -> str:
    if type(value) is not list:
        raise BadRecordError(f"an array of numbers was expected, not {type(value).__name__}")
    return _packed(value, (1,), _REAL_OID, _real)


def _double_array(value: Any) -> str:
    items, lower = _items(value, "float")
    return _packed(items, lower, _DOUBLE_OID, lambda item: pack(">id", 8, number(item)))


def _real(value: Any) -> bytes:
    try:
        return pack(">if", 4, number(value))
    except OverflowError:
        raise BadRecordError("a number has no place in a real") from None


def _packed(items: list[Any], lower: tuple[int, ...], oid: int, element: Callable[[Any], bytes]) -> str:
    """As array_send has it (dimensions, flags, type, size and lower bound each, elements), flags 0."""
    lengths = _lengths(items)
    level = items
    for length in lengths[1:]:
        if not all(type(inner) is list and len(inner) == length for inner in level):
            raise BadRecordError("an array was expected whose parts are of one length")
        level = [item for inner in level for item in inner]
    head = pack(">iii", len(lengths), 0, oid)
    bounds = lower or (1,) * len(lengths)
    if len(bounds) != len(lengths):
        raise BadRecordError("an array was expected of as many dimensions as it has bounds")
    head += b"".join([pack(">ii", *dimension) for dimension in zip(lengths, bounds, strict=True)])
    body = b"".join([pack(">i", -1) if item is None else element(item) for item in level])
    return "\\x" + (head + body).hex()


def _lengths(items: list[Any]) -> list[int]:
    """Of each dimension, the outermost first; none for an empty array."""
    lengths = []
    level: Any = items
    while type(level) is list and level:
        lengths.append(len(level))
        level = level[0]
    return lengths


# Arrays


def _array_of(kind: str) -> Canonical:
    element = canonical_of(kind)

    def nested(items: list[Any]) -> str:
        texts = []
        for item in items:
            if item is None:
                texts.append("NULL")
            elif type(item) is list:
                texts.append(nested(item))
            else:
                text = element(item)
                texts.append(quote(text) if _ARRAY_NEEDS_QUOTES(text) else text)
        return "{" + ",".join(texts) + "}"

    def text(value: Any) -> str:
        items, _ = _items(value, kind)
        return (value[: value.index("=") + 1] if type(value) is str else "") + nested(items)

    return text


def _items(value: Any, kind: str) -> tuple[list[Any], tuple[int, ...]]:
    """The items, and the lower bounds where they are not all 1: such an array travels as its literal."""
    if type(value) is list:
        return value, ()
    if type(value) is str:
        bounds, equals, literal = value.partition("=")
        try:
            items = loads(array_encoder(encoder_for(kind))(literal.encode()))
        except ValueError:
            items = None
        if type(items) is list and equals:
            return items, tuple(int(bound) for bound in _BOUNDS.findall(bounds))
    raise BadRecordError("an array was expected, not another value")
