"""When two values are one, as Postgres's `=` says. Pure.

    canonical     in a group's key, which is shown: equal values of a column have one form, that of its kind
    comparable    in a join's key, which is not: equal values of the two columns have one form, whatever their
                  types are, as far as Postgres compares these

    comparable    of                                              its form
    number        smallint .. bigint, numeric, real, double       its digits; an int of JSON where it is one
    text          text, varchar, char(n) (without its padding)    the text
    time          date, timestamp, timestamptz                    a date is its midnight
    interval      a month is 30 days, a day 24 hours              microseconds
    inet, cidr    10.0.0.1 is 10.0.0.1/32                         with its length

A float with a fraction is the number that it prints, so that numeric 0.1 joins with double precision 0.1; one
without is the integer that it is. A real is the double precision number that it is.
"""

from __future__ import annotations

import re
from ipaddress import ip_interface
from struct import pack, unpack
from typing import Any, Final

from orjson import dumps

from consumers.processors.operators.ordering import NUMBERS, digits_of, microseconds_of
from streamer.changes.kinds import ARRAY
from streamer.errors import BadRecordError

REAL: Final = "real"  # stands for the kind of its columns: as double precision 0.1::real is not 0.1
NOT_FINITE: Final = ("NaN", "Infinity", "-Infinity")
_BIGINT = range(-(2**63), 2**63)
_SPELT: Final = {
    "interval": (
        "'24:00:00' and '1 day' are equal, and are no one text",
        "let `map_` give extract(epoch ..), or a text of one form",
    ),
    "citext": (
        "'a' and 'A' are equal, and are no one text",
        "let `map_` give the text in lower case",
    ),
    "no equality": (
        "SQL has no `=` for it",
        "let the table have jsonb in the place of json; or let `map_` give a text of one form",
    ),
    "parts": (
        "its parts may be equal and have several texts, as the numerics 1.0 and 1.00 have",
        "let `map_` give its parts as columns, or a text of one form",
    ),
}
_WITHOUT_EQUALITY: Final = frozenset(
    ("json", "type xml", "type jsonpath", "type point", "type line", "type lseg", "type box", "type path",
     "type polygon", "type circle")
)  # fmt: skip
_NUMERIC_RANGES: Final = frozenset(("type numrange", "type nummultirange"))
_RANGES: Final = frozenset(
    f"type {of}{many}range" for of in ("int4", "int8", "date", "ts", "tstz") for many in ("", "multi")
)  # equal ones have one text
_WITH_PARTS: Final = re.compile(r"[(\[{].*[,0-9].*[)\]}]", re.DOTALL).fullmatch
_SEVERAL_TEXTS: Final = frozenset(("numeric", "float", REAL, "jsonb"))
_RANGE_NUMBER: Final = re.compile(r"-?[0-9]+\.[0-9]+")
_JSON_NUMBER: Final = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*')


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are sent alike: -0.0 and 0.0 are equal, and two values."""
    return bool(one == other) and (one is None or dumps(one) == dumps(other))


def canonical(value: Any, kind: str, what: str) -> Any:
    """`what` asks, for the message. Raises BadRecordError: of equal values none is the one to show."""
    if value is None:
        return None
    if kind == ARRAY + "jsonb":
        raise _spelt(what, "jsonb[]", "parts")
    if type(value) is list:
        return [canonical(item, kind.removeprefix(ARRAY), what) for item in value]
    if kind in ("interval", "citext"):
        raise _spelt(what, kind, kind)
    if isinstance(value, str):
        if kind == "numeric":
            return _trimmed(value)
        return _one_text(value, kind, what)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _trimmed(number: str) -> str:
    if "." not in number:
        return number
    plain = number.rstrip("0").rstrip(".")
    return "0" if plain in ("-0", "") else plain


def _one_text(text: str, kind: str, what: str) -> str:
    """Of equal values of a type that is not told by its texts. Raises BadRecordError: it has none."""
    if kind in _WITHOUT_EQUALITY:
        raise _spelt(what, kind.removeprefix("type "), "no equality")
    if kind == "jsonb":
        return _JSON_NUMBER.sub(lambda found: _trimmed(found[0]) if found[0][0] != '"' else found[0], text)
    if kind in _NUMERIC_RANGES:
        return _RANGE_NUMBER.sub(lambda found: _trimmed(found[0]), text)
    if kind.startswith(ARRAY):  # its indexes do not begin with 1, so that it comes as its literal
        if kind.removeprefix(ARRAY) in _SEVERAL_TEXTS:
            raise _spelt(what, "an array", "parts")
    elif kind.startswith("type ") and kind not in _RANGES and _WITH_PARTS(text):
        raise _spelt(what, kind.removeprefix("type "), "parts")
    return text


def comparable(value: Any, kind: str) -> Any:
    """Raises BadRecordError: of citext, which is equal to another citext than to a text."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int | float) or (kind in NUMBERS and isinstance(value, str)):
        return _number(value, kind)
    if type(value) is list:
        return [comparable(item, kind.removeprefix(ARRAY)) for item in value]
    if not isinstance(value, str):
        return value
    if kind == "bpchar":
        return value.rstrip(" ")
    if kind == "date" and "infinity" not in value:
        day, _, era = value.partition(" ")
        return f"{day}T00:00:00Z{era and ' ' + era}"
    if kind == "interval" and "infinity" not in value:
        return _number(microseconds_of(value), kind)
    if kind == "inet":
        return str(ip_interface(value))
    if kind == "citext":
        raise _spelt("on", kind, kind)
    return _one_text(value, kind, "on")


def _number(value: float | int | str, kind: str) -> int | str:
    if value in NOT_FINITE:
        return str(value)
    if kind == REAL and isinstance(value, float):
        value = unpack("f", pack("f", value))[0]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    digits = digits_of(str(value))
    if "." in digits or int(digits) not in _BIGINT:
        return digits
    return int(digits)


def _spelt(what: str, kind: str, reason: str) -> BadRecordError:
    why, fix = _SPELT[reason]
    return BadRecordError(
        f"it is of {kind}, which `{what}` cannot have: {why}",
        fix=f"{fix}, in a processor before this one",
    )
