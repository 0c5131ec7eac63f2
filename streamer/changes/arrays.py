"""Array literals of Postgres <-> JSON arrays. Pure and total; the element's form is the caller's.

Grammar of what array_out prints (PostgreSQL manual, "Array Input and Output Syntax"):

    literal  [ bounds '=' ] array
    bounds   { '[' lower ':' upper ']' }+             only where a lower bound is not 1
    array    '{' '}' | '{' item { ',' item }* '}'     item: element or array, all of one depth
    element  'NULL' | bare | '"' { char | '\\' char }* '"'
    bare     no braces, comma, quotes, backslash or white space, and not NULL in any case

A literal with bounds travels whole as a JSON string, so that it arrives with its bounds. Types
whose delimiter is not ',' (box) are not arrays here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from orjson import dumps

from streamer.errors import BadRecordError

DIMENSIONS_LIMIT = 6  # MAXDIM of PostgreSQL: what is deeper cannot come from it, nor go to it

_BARE = re.compile(rb'[^{},"\\]+')
_QUOTED = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_ESCAPED = re.compile(rb"\\(.)", re.DOTALL)
_NEEDS_NO_QUOTES = re.compile(r'(?!(?i:null)\Z)[^{},"\\\s]+').fullmatch


def array_encoder(element: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Encoder of array text to JSON bytes, each element through `element`; ValueError if malformed."""

    def encode(raw: bytes) -> bytes:
        if raw[:1] == b"[":
            return dumps(raw.decode())
        if raw == b"{}":
            return b"[]"
        if b'"' not in raw and raw.count(b"{") == 1 and raw[:1] == b"{" and raw.find(b"}") == len(raw) - 1:
            items = raw[1:-1].split(b",")
            return b"[%b]" % b",".join([b"null" if i == b"NULL" else element(_some(i)) for i in items])
        json, at = nested(raw, 0, 1)
        if at != len(raw):
            raise ValueError(f"array literal goes on behind its end at {at}")
        return json

    def nested(raw: bytes, at: int, depth: int) -> tuple[bytes, int]:
        if raw[at : at + 1] != b"{":
            raise ValueError(f"array literal has no '{{' at {at}")
        if depth > DIMENSIONS_LIMIT:
            raise ValueError(f"array literal has more than {DIMENSIONS_LIMIT} dimensions")
        items = []
        while True:
            at += 1
            if raw[at : at + 1] == b"{":
                json, at = nested(raw, at, depth + 1)
                items.append(json)
            elif quoted := _QUOTED.match(raw, at):
                items.append(element(_ESCAPED.sub(rb"\1", quoted[1])))
                at = quoted.end()
            elif bare := _BARE.match(raw, at):
                items.append(b"null" if bare[0] == b"NULL" else element(bare[0]))
                at = bare.end()
            else:
                raise ValueError(f"array literal has no element at {at}")
            end = raw[at : at + 1]
            if end == b"}":
                return b"[%b]" % b",".join(items), at + 1
            if end != b",":
                raise ValueError(f"array literal has no ',' or '}}' at {at}")

    return encode


def array_decoder(element: Callable[[Any], str]) -> Callable[[Any], str]:
    """Decoder of a JSON array (or a string: a whole literal) to array text; BadRecordError if neither."""

    def decode(value: Any) -> str:
        if type(value) is str:
            return value
        if type(value) is list:
            return nested(value, 1)
        raise BadRecordError(f"an array was expected, not {type(value).__name__}")

    def nested(items: list[Any], depth: int) -> str:
        if depth > DIMENSIONS_LIMIT:
            raise BadRecordError(f"an array has more than {DIMENSIONS_LIMIT} dimensions")
        texts = []
        for item in items:
            if item is None:
                texts.append("NULL")
            elif type(item) is list:
                texts.append(nested(item, depth + 1))
            else:
                text = element(item)
                texts.append(text if _NEEDS_NO_QUOTES(text) else quote(text))
        return "{" + ",".join(texts) + "}"

    return decode


def quote(text: str) -> str:
    """A string between double quotes, as array and hstore literals have it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _some(item: bytes) -> bytes:
    if not item or b"\\" in item:
        raise ValueError("array literal has an empty or escaped element without quotes")
    return item
