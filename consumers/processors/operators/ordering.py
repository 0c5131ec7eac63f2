"""JSON values as bytes that sort as Postgres sorts the values. Pure.

    class          bytes                                        order
    bool           10 | 00 or 01                                false, true
    number         20 | sign | exponent | digits                NaN above Infinity
    date, time     30 | year | the rest of the text             -infinity first, BC before AD
    interval       as a number of microseconds                  a month is 30 days, a day 24 hours
    timetz         its time in UTC, its zone, as numbers        of two at one time the one east of the other
    text           40 | UTF-8                                   by code point, as COLLATE "C"
    inet           50 | family | a byte a bit, 00 | address     4 before 6, a net before what is in it

A number's sign is 0 -Infinity, 1 negative, 2 zero, 3 positive, 4 Infinity, 5 NaN. Its exponent is that of the
first digit plus 2**31, its digits end with a NUL and have no zeros at the end, so that 1.0 and 1.00 are one
value. A negative number has every byte of both complemented.
"""

from __future__ import annotations

import re
from ipaddress import ip_interface
from typing import Any, Final

from streamer.errors import BadRecordError

_NUMBER: Final = re.compile(r"(-?)(\d+)(?:\.(\d*))?(?:[eE]([-+]?\d+))?").fullmatch
_DATE: Final = re.compile(r"(\d{4,})(-\d\d-\d\d(?:T[0-9:.]+)?)Z?( BC)?").fullmatch
_INTERVAL: Final = re.compile(
    r"P(?:(-?\d+)Y)?(?:(-?\d+)M)?(?:(-?\d+)D)?(?:T(?:(-?\d+)H)?(?:(-?\d+)M)?(?:(-?)(\d+)(?:\.(\d{1,6}))?S)?)?"
).fullmatch
_TIMETZ: Final = re.compile(
    r"(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?:Z|([-+])(\d\d)(?::(\d\d))?(?::(\d\d))?)"
).fullmatch
_NOT_FINITE: Final = {"-Infinity": b"\x20\x00", "Infinity": b"\x20\x04", "NaN": b"\x20\x05"}
_NO_DATE: Final = {"-infinity": b"\x30\x00", "infinity": b"\x30\x02"}
_NO_INTERVAL: Final = {"-infinity": b"\x20\x00", "infinity": b"\x20\x04"}
NUMBERS: Final = frozenset(("number", "bigint", "float", "real", "numeric", "money"))
DATES: Final = frozenset(("date", "timestamp", "timestamptz"))
_TEXTS: Final = frozenset(("text", "time", "bits", "bpchar"))
_ZERO: Final = b"\x20\x02"
_EXPONENT_BYTES = 4
_MIDDLE = 2**31  # numeric goes from 10**-16383 to 10**131071
_COMPLEMENT: Final = bytes(255 - byte for byte in range(256))
_YEAR_BYTES = 4
_HOUR_US = 3_600_000_000
_DAYS_A_MONTH = 30  # as Postgres compares intervals


def sortable(value: Any, kind: str) -> bytes:
    """Of a value that is not None. `kind`: of its column (see inputs).

    Raises BadRecordError: its type has no order, or one that its text does not tell, as an enum's.
    """
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int | float):
        return _number(str(value))
    if isinstance(value, str):
        if kind in NUMBERS:
            return _NOT_FINITE.get(value) or _number(value)
        if kind in DATES:
            return _NO_DATE.get(value) or _date(value)
        if kind in _TEXTS:
            text = value.rstrip(" ") if kind == "bpchar" else value
            return b"\x40" + text.encode("utf-8", "surrogatepass")
        if kind == "interval":
            return _NO_INTERVAL.get(value) or _number(str(microseconds_of(value)))
        if kind == "timetz":
            return _timetz(value)
        if kind == "inet":
            return _inet(value)
    raise BadRecordError(
        f"a value of {kind} has no order here",
        fix="take the minimum, maximum or top of numbers, texts, times, intervals, addresses or booleans; or"
        " let `map_` make one of it, in a processor before this one",
    )


def descending(order: bytes) -> bytes:
    """Bytes that sort the other way round: of two texts of which one begins the other, the longer first."""
    return order.translate(_COMPLEMENT) + b"\xff"


def digits_of(text: str) -> str:
    """A number without exponent, leading zeros and zeros behind the point: equal numbers are one text."""
    sign, digits, exponent = _parts(text)
    if not digits:
        return "0"
    whole, fraction = digits[: max(exponent, 0)], digits[max(exponent, 0) :]
    whole = whole.ljust(exponent, "0") or "0"
    fraction = "0" * -exponent + fraction if fraction else ""
    return f"{sign}{whole}.{fraction}" if fraction else f"{sign}{whole}"


def microseconds_of(interval: str) -> int:
    """As Postgres compares intervals. Raises BadRecordError."""
    parts = _INTERVAL(interval)
    if parts is None:
        raise BadRecordError(f"{interval!r} is no interval", fix="look at what wrote it")
    years, months, days, hours, minutes = (int(parts[i] or 0) for i in range(1, 6))
    us = int(parts[7] or 0) * 1_000_000 + int((parts[8] or "").ljust(6, "0"))
    hours += ((years * 12 + months) * _DAYS_A_MONTH + days) * 24
    return hours * _HOUR_US + minutes * 60_000_000 + (-us if parts[6] else us)


def _date(value: str) -> bytes:
    parts = _DATE(value)
    if parts is None:
        raise BadRecordError(f"{value!r} is no date", fix="look at what wrote it")
    year = -int(parts[1]) if parts[3] else int(parts[1])
    return b"\x30\x01" + (year + _MIDDLE).to_bytes(_YEAR_BYTES) + parts[2].encode()


def _timetz(value: str) -> bytes:
    parts = _TIMETZ(value)
    if parts is None:
        raise BadRecordError(f"{value!r} is no time with a time zone", fix="look at what wrote it")
    hours, minutes, seconds, zone_h, zone_m, zone_s = (int(parts[i] or 0) for i in (1, 2, 3, 6, 7, 8))
    west_s = (zone_h * 60 + zone_m) * 60 + zone_s
    if parts[5] == "+":
        west_s = -west_s
    utc_s = (hours * 60 + minutes) * 60 + seconds + west_s
    return _number(f"{utc_s * 1_000_000 + int((parts[4] or '').ljust(6, '0'))}") + _number(str(west_s))


def _inet(value: str) -> bytes:
    """Of two of which one net holds the other's, the net first; then the address behind it."""
    try:
        found = ip_interface(value)
    except ValueError:
        raise BadRecordError(f"{value!r} is no address", fix="look at what wrote it") from None
    bits = f"{int(found.ip):0{found.max_prefixlen}b}"[: found.network.prefixlen]
    return bytes([0x50, found.version]) + bits.translate({48: 1, 49: 2}).encode() + b"\x00" + found.ip.packed


def _parts(text: str) -> tuple[str, str, int]:
    """(sign, digits without zeros around them, how many of them stand before the point)"""
    parts = _NUMBER(text)
    if parts is None:
        raise BadRecordError(f"{text!r} is no number", fix="look at what wrote it")
    fraction = parts[3] or ""
    kept = (parts[2] + fraction).lstrip("0")
    return parts[1], kept.rstrip("0"), len(kept) - len(fraction) + int(parts[4] or 0)


def _number(text: str) -> bytes:
    sign, digits, exponent = _parts(text)
    if not digits:
        return _ZERO
    bits = (exponent + _MIDDLE).to_bytes(_EXPONENT_BYTES) + digits.encode() + b"\x00"
    return b"\x20\x01" + bits.translate(_COMPLEMENT) if sign else b"\x20\x03" + bits
