"""JSON values as bytes that sort as Postgres sorts the values. Pure.

    class          bytes                                        order
    bool           10 | 00 or 01                                false, true
    number         20 | sign | exponent | digits                NaN above Infinity
    date, time     30 | year | the rest of the text             -infinity first, BC before AD
    text           40 | UTF-8                                   by code point, as COLLATE "C"

A number's sign is 0 -Infinity, 1 negative, 2 zero, 3 positive, 4 Infinity, 5 NaN. Its exponent is that of the
first digit plus 2**31, its digits end with a NUL and have no zeros at the end, so that 1.0 and 1.00 are one
value. A negative number has every byte of both complemented.
"""

from __future__ import annotations

import re
from typing import Any, Final

from streamer.errors import BadRecordError

_NUMBER: Final = re.compile(r"(-?)(\d+)(?:\.(\d*))?(?:[eE]([-+]?\d+))?").fullmatch
_DATE: Final = re.compile(r"(\d{4,})(-\d\d-\d\d(?:T[0-9:.]+)?)Z?( BC)?").fullmatch
_NOT_FINITE: Final = {"-Infinity": b"\x20\x00", "Infinity": b"\x20\x04", "NaN": b"\x20\x05"}
_NO_DATE: Final = {"-infinity": b"\x30\x00", "infinity": b"\x30\x02"}
NUMBERS: Final = frozenset(("number", "float", "numeric", "money"))
DATES: Final = frozenset(("date", "timestamp", "timestamptz"))
UNORDERED: Final = frozenset(("json", "hstore", "vector", "bytea"))
_ZERO: Final = b"\x20\x02"
_EXPONENT_BYTES = 4
_MIDDLE = 2**31  # numeric goes from 10**-16383 to 10**131071
_COMPLEMENT: Final = bytes(255 - byte for byte in range(256))
_YEAR_BYTES = 4


def sortable(value: Any, kind: str) -> bytes:
    """Of a value that is not None. `kind`: of its column (streamer.changes.kinds).

    Raises BadRecordError: arrays, objects and bytes have no order here.
    """
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int | float):
        return _number(str(value))
    if not isinstance(value, str) or kind in UNORDERED:
        raise BadRecordError(
            f"a value of {kind} has no order",
            fix="take the minimum, maximum or top of a number, text, date or boolean",
        )
    if kind in NUMBERS:
        return _NOT_FINITE.get(value) or _number(value)
    if kind in DATES:
        return _NO_DATE.get(value) or _date(value)
    return b"\x40" + value.encode("utf-8", "surrogatepass")


def descending(order: bytes) -> bytes:
    """Bytes that sort the other way round: of two texts of which one begins the other, the longer first."""
    return order.translate(_COMPLEMENT) + b"\xff"


def _date(value: str) -> bytes:
    parts = _DATE(value)
    if parts is None:
        raise BadRecordError(f"{value!r} is no date", fix="look at what wrote it")
    year = -int(parts[1]) if parts[3] else int(parts[1])
    return b"\x30\x01" + (year + _MIDDLE).to_bytes(_YEAR_BYTES) + parts[2].encode()


def _number(text: str) -> bytes:
    parts = _NUMBER(text)
    if parts is None:
        raise BadRecordError(f"{text!r} is no number", fix="look at what wrote it")
    fraction = parts[3] or ""
    digits = parts[2] + fraction
    exponent = int(parts[4] or 0) - len(fraction)
    kept = digits.lstrip("0")
    if not kept:
        return _ZERO
    exponent += len(kept)
    bits = (exponent + _MIDDLE).to_bytes(_EXPONENT_BYTES) + kept.rstrip("0").encode() + b"\x00"
    return b"\x20\x01" + bits.translate(_COMPLEMENT) if parts[1] else b"\x20\x03" + bits
