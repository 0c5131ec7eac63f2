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

from ipaddress import ip_interface
from struct import pack, unpack
from typing import Any, Final

from consumers.processors.operators.ordering import NUMBERS, digits_of, microseconds_of
from streamer.changes.kinds import ARRAY
from streamer.errors import BadRecordError

REAL: Final = "real"  # stands for the kind of its columns: as double precision 0.1::real is not 0.1
NOT_FINITE: Final = ("NaN", "Infinity", "-Infinity")
_BIGINT = range(-(2**63), 2**63)
_SPELT: Final = {
    "interval": (
        "'24:00:00' and '1 day' are equal",
        "let `map_` give extract(epoch ..), or a text of one form",
    ),
    "citext": ("'a' and 'A' are equal", "let `map_` give the text in lower case"),
}


def canonical(value: Any, kind: str) -> Any:
    """Raises BadRecordError: of equal values none is the one to show."""
    if type(value) is list:
        return [canonical(item, kind.removeprefix(ARRAY)) for item in value]
    if kind in _SPELT and value is not None:
        raise _spelt("by", kind)
    if kind == "numeric" and isinstance(value, str) and "." in value:
        plain = value.rstrip("0").rstrip(".")
        return "0" if plain in ("-0", "") else plain
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


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
        raise _spelt("on", kind)
    return value


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


def _spelt(what: str, kind: str) -> BadRecordError:
    why, fix = _SPELT[kind]
    return BadRecordError(
        f"it is of {kind}, which `{what}` cannot have: {why}, and are no one text",
        fix=f"{fix}, in a processor before this one",
    )
