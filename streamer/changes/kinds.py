"""The JSON form of each Postgres type in the `plain` encoding, in both directions. Pure, no I/O.

A kind names a form, and a column's kind (schema.Column.kind) is all that either side needs:

    kind          Postgres's text           JSON
    number        42                        42                          smallint integer bigint oid
    float         1.5  NaN  -0              1.5  "NaN"  -0.0            real, double precision
    bool          t                         true
    numeric       123.4500  NaN             "123.4500"  "NaN"
    money         -$1,234.11                "-1234.11"                  lc_monetary C
    bytea         \\x0102                    "AQI="                      base64; bytea_output hex
    json          {"a": 1}                  "{\\"a\\": 1}"                json, jsonb: the text itself
    hstore        "a"=>"1"                  "{\\"a\\":\\"1\\"}"            a string holding a JSON object
    date, time    2016-11-04                "2016-11-04"
    timestamp     2016-11-04 13:51:30.5     "2016-11-04T13:51:30.5Z"    infinity as it is; BC behind the Z
    timestamptz   2016-11-04 11:51:30.5+00  "2016-11-04T11:51:30.5Z"    TimeZone UTC
    timetz        11:51:30+00  11:51:30+02  "11:51:30Z"  "11:51:30+02"
    interval      P1Y2M3DT4H5M6.78S         the same                    IntervalStyle iso_8601
    bit1          1                         true                        bit(1)
    bits          0101                      "0101"                      bit(n), varbit
    vector        [1,2.5]                   [1,2.5]                     vector, halfvec of pgvector
    array:<kind>  {1,NULL}                  [1,null]                    nested as dimensioned
    text          any                       a string                    every other type

The text forms are those of a session with DateStyle ISO, IntervalStyle iso_8601, TimeZone UTC,
bytea_output hex, extra_float_digits 1, lc_monetary C and client_encoding UTF8. NULL never comes
here. Escapes of COPY are the caller's.
"""

from __future__ import annotations

import re
from binascii import a2b_base64, b2a_base64, unhexlify
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

from orjson import JSONDecodeError, dumps, loads

from streamer.changes.arrays import array_decoder, array_encoder, quote
from streamer.errors import BadRecordError

Encoder = Callable[[bytes], bytes]  # Postgres's text -> JSON; ValueError on malformed text
Decoder = Callable[[Any], str]  # what orjson.loads gives -> Postgres's text; BadRecordError

UNAVAILABLE = "__debezium_unavailable_value"  # stands for a TOAST value that is not in the WAL
UNAVAILABLE_JSON = dumps(UNAVAILABLE)
UNAVAILABLE_SPELT_OUT = UNAVAILABLE_JSON.replace(b'"_', b'"\\u005f', 1)

ARRAY = "array:"

_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*)").fullmatch
_REAL = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_VECTOR = re.compile(rb"\[(?:%b(?:,%b)*)?\]" % (_REAL.pattern, _REAL.pattern)).fullmatch
_FLOAT = _REAL.fullmatch
_MINUS_ZERO = re.compile(rb"-0(?=[,\]])")
_NOT_A_NUMBER = (b"NaN", b"Infinity", b"-Infinity")
_INFINITE = ("infinity", "-infinity")
_HSTORE_PAIR = re.compile(
    r'"([^"\\]*(?:\\.[^"\\]*)*)"=>(?:NULL|"([^"\\]*(?:\\.[^"\\]*)*)")(?:, |\Z)', re.DOTALL
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)


# Which kind: from the catalogue's facts


class TypeFacts(NamedTuple):
    """One row of pg_type. `element` is typelem where typinput is array_in, else 0."""

    oid: int
    name: str  # typname
    typtype: str
    base: int  # typbasetype: of a domain, else 0
    base_typmod: int  # typtypmod: of a domain, else -1
    element: int
    delimiter: str  # typdelim of the type itself; an array's elements are split by the element's


_KIND_BY_OID = {
    16: "bool",
    17: "bytea",
    20: "number",
    21: "number",
    23: "number",
    26: "number",
    114: "json",
    700: "float",
    701: "float",
    790: "money",
    1082: "date",
    1083: "time",
    1114: "timestamp",
    1184: "timestamptz",
    1186: "interval",
    1266: "timetz",
    1562: "bits",
    1700: "numeric",
    3802: "json",
}
_BIT_OID = 1560
_KIND_BY_NAME = {"hstore": "hstore", "vector": "vector", "halfvec": "vector"}  # extensions have no fixed oid
_NO_ARRAY_OF = (
    "interval",
    "vector",
)  # interval[]: text, as the format says; vector[]: nested lists are dimensions


def kind_of(type_oid: int, typmod: int, types: Mapping[int, TypeFacts]) -> str:
    """The kind of a column. `types` holds what is known of the types; what is unknown is text.

    A domain is its base type. It takes the facts of a domain's base and of an array's element
    from `types` too.
    """
    facts = types.get(type_oid)
    for _ in range(len(types)):
        if facts is None or facts.typtype != "d":
            break
        typmod = facts.base_typmod if typmod < 0 else typmod
        type_oid = facts.base
        facts = types.get(type_oid)
    if type_oid in _KIND_BY_OID:
        return _KIND_BY_OID[type_oid]
    if type_oid == _BIT_OID:
        return "bit1" if typmod == 1 else "bits"
    if facts is None or facts.typtype != "b":
        return "text"
    if not facts.element:
        return _KIND_BY_NAME.get(facts.name, "text")
    element = types.get(facts.element)
    if element is not None and element.delimiter != ",":
        return "text"
    if element is None and facts.element not in _KIND_BY_OID:
        return "text"
    kind = kind_of(facts.element, typmod, types)
    if kind in _NO_ARRAY_OF:
        return "text"
    return ARRAY + ("text" if kind.startswith(ARRAY) else kind)


def encoder_for(kind: str) -> Encoder:
    """Postgres's text -> JSON bytes for a kind. The function raises ValueError on malformed text."""
    if kind.startswith(ARRAY):
        return array_encoder(encoder_for(kind.removeprefix(ARRAY)))
    if kind not in ENCODERS:
        raise _unknown(kind)
    return ENCODERS[kind]


@cache
def decoder_for(kind: str) -> Decoder:
    """JSON value -> Postgres's text for a kind. The function raises BadRecordError on another shape."""
    if kind.startswith(ARRAY):
        return array_decoder(decoder_for(kind.removeprefix(ARRAY)))
    if kind not in DECODERS:
        raise _unknown(kind)
    return DECODERS[kind]


def _unknown(kind: str) -> BadRecordError:
    return BadRecordError(
        f"column kind {kind!r} is not known to this program",
        fix="run the version of Tailrace that wrote the schema record, or a newer one",
    )


# Postgres's text -> JSON bytes


def encode_text(raw: bytes) -> bytes:
    """Text that happens to be the placeholder is spelt with an escape: the same JSON string, other bytes."""
    text = dumps(raw.decode())
    return text if text != UNAVAILABLE_JSON else UNAVAILABLE_SPELT_OUT


def encode_number(raw: bytes) -> bytes:
    if (raw.isdigit() and raw[0] != 0x30) or _INTEGER(raw):
        return raw
    raise ValueError("not an integer")


def encode_float(raw: bytes) -> bytes:
    if _FLOAT(raw):
        return b"-0.0" if raw == b"-0" else raw
    if raw in _NOT_A_NUMBER:
        return b'"%b"' % raw
    raise ValueError("not a floating point number")


def encode_bool(raw: bytes) -> bytes:
    if raw == b"t":
        return b"true"
    if raw == b"f":
        return b"false"
    raise ValueError("neither t nor f")


def encode_bit1(raw: bytes) -> bytes:
    if raw == b"1":
        return b"true"
    if raw == b"0":
        return b"false"
    raise ValueError("neither 0 nor 1")


def encode_money(raw: bytes) -> bytes:
    return dumps(raw.translate(None, b"$,").decode())


def encode_bytea(raw: bytes) -> bytes:
    if raw[:2] != b"\\x":
        raise ValueError("bytea does not begin with \\x (bytea_output must be hex)")
    return b'"%b"' % b2a_base64(unhexlify(raw[2:]), newline=False)


def encode_timestamp(raw: bytes) -> bytes:
    text = raw.decode()
    if text[-3:] == " BC":
        return dumps(text[:-3].replace(" ", "T", 1) + "Z BC")
    if text in _INFINITE:
        return dumps(text)
    return dumps(text.replace(" ", "T", 1) + "Z")


def encode_timestamptz(raw: bytes) -> bytes:
    text = raw.decode()
    if text[-3:] == "+00":  # a slice: endswith costs a third of this function
        return dumps(text[:-3].replace(" ", "T", 1) + "Z")
    if text.endswith("+00 BC"):
        return dumps(text[:-6].replace(" ", "T", 1) + "Z BC")
    if text in _INFINITE:
        return dumps(text)
    raise ValueError("timestamptz is not in UTC (TimeZone must be UTC)")


def encode_timetz(raw: bytes) -> bytes:
    text = raw.decode()
    return dumps(text[:-3] + "Z" if text.endswith("+00") else text)


def encode_hstore(raw: bytes) -> bytes:
    text = raw.decode()
    pairs: dict[str, str | None] = {}
    at = 0
    while at < len(text):
        pair = _HSTORE_PAIR.match(text, at)
        if pair is None:
            raise ValueError(f"hstore literal has no pair at {at}")
        value = pair[2]
        pairs[_ESCAPED.sub(r"\1", pair[1])] = None if value is None else _ESCAPED.sub(r"\1", value)
        at = pair.end()
    return dumps(dumps(pairs).decode())


def encode_vector(raw: bytes) -> bytes:
    if _VECTOR(raw):
        return _MINUS_ZERO.sub(b"-0.0", raw) if b"-0" in raw else raw
    raise ValueError("not a vector")


ENCODERS: dict[str, Encoder] = {
    "number": encode_number,
    "float": encode_float,
    "bool": encode_bool,
    "numeric": encode_text,
    "money": encode_money,
    "text": encode_text,
    "bytea": encode_bytea,
    "json": encode_text,
    "hstore": encode_hstore,
    "date": encode_text,
    "time": encode_text,
    "timestamp": encode_timestamp,
    "timestamptz": encode_timestamptz,
    "timetz": encode_timetz,
    "interval": encode_text,
    "bit1": encode_bit1,
    "bits": encode_text,
    "vector": encode_vector,
}


# JSON value -> Postgres's text


def decode_text(value: Any) -> str:
    if type(value) is str:
        return value
    raise _expected("a string", value)


def decode_number(value: Any) -> str:
    if type(value) is int:
        return str(value)
    raise _expected("an integer", value)


def decode_float(value: Any) -> str:
    if type(value) is float or type(value) is int:
        return repr(value)
    if type(value) is str:
        return value
    raise _expected("a number", value)


def decode_bool(value: Any) -> str:
    if value is True:
        return "t"
    if value is False:
        return "f"
    raise _expected("true or false", value)


def decode_bit1(value: Any) -> str:
    if value is True:
        return "1"
    if value is False:
        return "0"
    raise _expected("true or false", value)


def decode_bytea(value: Any) -> str:
    if type(value) is str:
        try:
            return "\\x" + a2b_base64(value, strict_mode=True).hex()
        except ValueError:
            raise BadRecordError("base64 was expected, not other text") from None
    raise _expected("a string", value)


def decode_timestamp(value: Any) -> str:
    if type(value) is str:
        return value.replace("T", " ", 1).replace("Z", "", 1)
    raise _expected("a string", value)


def decode_timestamptz(value: Any) -> str:
    if type(value) is str:
        return value.replace("T", " ", 1).replace("Z", "+00", 1)
    raise _expected("a string", value)


def decode_timetz(value: Any) -> str:
    if type(value) is str:
        return value.replace("Z", "+00", 1)
    raise _expected("a string", value)


def decode_hstore(value: Any) -> str:
    if type(value) is str:
        try:
            pairs = loads(value)
        except JSONDecodeError:
            raise BadRecordError("a JSON object in a string was expected, not other text") from None
        if type(pairs) is dict:
            return ", ".join(
                f"{quote(key)}=>{'NULL' if item is None else quote(decode_text(item))}"
                for key, item in pairs.items()
            )
    raise _expected("a JSON object in a string", value)


def decode_vector(value: Any) -> str:
    if type(value) is list:
        return "[" + ",".join([decode_float(item) for item in value]) + "]"
    raise _expected("an array of numbers", value)


DECODERS: dict[str, Decoder] = {
    "number": decode_number,
    "float": decode_float,
    "bool": decode_bool,
    "numeric": decode_text,
    "money": decode_text,
    "text": decode_text,
    "bytea": decode_bytea,
    "json": decode_text,
    "hstore": decode_hstore,
    "date": decode_text,
    "time": decode_text,
    "timestamp": decode_timestamp,
    "timestamptz": decode_timestamptz,
    "timetz": decode_timetz,
    "interval": decode_text,
    "bit1": decode_bit1,
    "bits": decode_text,
    "vector": decode_vector,
}


def _expected(what: str, value: Any) -> BadRecordError:
    return BadRecordError(f"{what} was expected, not {type(value).__name__}")
