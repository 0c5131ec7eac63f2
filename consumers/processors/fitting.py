"""Python's values in the JSON form of the kinds of their columns (see streamer.changes.kinds). Pure.

    kind            taken, too                              written
    numeric, text   int, float, True                        the text of it: 5 is "5", True "true"
    number          "5"                                     5
    float           "1.5"; NaN, infinity                    1.5; "NaN", "Infinity", "-Infinity"
    numeric         NaN, infinity of float                  "NaN", "Infinity", "-Infinity"
    array:<kind>    a list of these                         a list of those

So a column whose type has changed takes the values of before. NaN and infinity elsewhere are refused: JSON
has none, and a null would be a lie. So is a text with a NUL, inside of a list or an object, too: no target
has one.
"""

from __future__ import annotations

import re
from decimal import Decimal
from math import isfinite, isnan
from types import NoneType
from typing import Any

from streamer.changes.kinds import ARRAY
from streamer.errors import BadRecordError

NOT_FINITE = ("NaN", "Infinity", "-Infinity")

NUL = "\0"

_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,18})").fullmatch
_REAL = re.compile(r"[-+]?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?").fullmatch
_AS_TEXT = ("numeric", "text")
_NUMBERS = ("number", "float")
_MAY_BE_NOT_FINITE = ("numeric", "float")


def is_plain(kind: str, value: Any) -> bool:
    """Whether the value surely is in its form; asked for each value of each row."""
    found = type(value)
    if value is None:
        return True
    if found is str:
        return kind not in _NUMBERS and NUL not in value
    if found is int:
        return kind in _NUMBERS
    if found is float:
        return kind == "float" and isfinite(value)
    return found is bool and kind == "bool"


def fitted(kind: str, value: Any, where: str) -> Any:
    """The form of a value, or the value itself where a target is to judge it. Raises BadRecordError."""
    if kind.startswith(ARRAY):
        if not isinstance(value, list | tuple):
            return value
        return [fitted(_inner(kind, one), one, where) for one in value]
    if isinstance(value, float) and not isfinite(value):
        return _not_finite(kind, value, where)
    if isinstance(value, dict | list | tuple):
        _check_finite(value, where)
        _check_texts(value, where)
        return value
    if isinstance(value, str) and NUL in value:
        raise _with_nul(where)
    if kind in _AS_TEXT:
        return _text(kind, value)
    if kind == "number" and isinstance(value, str) and _INTEGER(value):
        return int(value)
    if kind == "float" and isinstance(value, str) and _REAL(value):
        return float(value)
    return value


class Exact(str):
    """The text of an exact number: numeric, where a type is inferred."""

    __slots__ = ()


def kept(row: dict[str, Any], where: str) -> dict[str, Any]:
    """The row in JSON's values, where nothing is known of columns: NaN, infinity, decimals and wider integers
    than of 64 bits as their texts. Raises BadRecordError for NaN and infinity in an object or a list."""
    if all(found is str or found is NoneType or found is bool for found in map(type, row.values())):
        return row
    return {name: _kept(value, where) for name, value in row.items()}


def _kept(value: Any, where: str) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else _not_finite("float", value, where)
    if isinstance(value, Decimal):
        return Exact(format(value, "f"))
    if type(value) is int:
        return value if -(2**63) <= value < 2**63 else Exact(value)
    _check_finite(value, where)
    return value


def _check_finite(value: Any, where: str) -> None:
    """Of what is inside of an object or a list."""
    if isinstance(value, float) and not isfinite(value):
        _not_finite("json", value, where)
    elif isinstance(value, dict):
        for one in value.values():
            _check_finite(one, where)
    elif isinstance(value, list | tuple):
        for one in value:
            _check_finite(one, where)


def _check_texts(value: Any, where: str) -> None:
    """Of what is inside of an object or a list, names of members too."""
    if isinstance(value, str):
        if NUL in value:
            raise _with_nul(where)
    elif isinstance(value, dict):
        for name, one in value.items():
            _check_texts(name, where)
            _check_texts(one, where)
    elif isinstance(value, list | tuple):
        for one in value:
            _check_texts(one, where)


def _with_nul(where: str) -> BadRecordError:
    return BadRecordError(
        "a text has a NUL character in it, which no target's text can have",
        where=where,
        fix="leave it out: value.replace('\\0', '')",
    )


def _inner(kind: str, value: Any) -> str:
    """Arrays nest as they are dimensioned, without saying so."""
    return kind if isinstance(value, list | tuple) else kind.removeprefix(ARRAY)


def _not_finite(kind: str, value: float, where: str) -> str:
    if kind in _MAY_BE_NOT_FINITE:
        return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"
    raise BadRecordError(
        f"a value is {value}, which JSON does not have",
        where=where,
        fix="give None or a number; or declare the column as double precision or numeric",
    )


def _text(kind: str, value: Any) -> Any:
    if isinstance(value, bool):
        return value if kind == "numeric" else "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f") if kind == "numeric" else repr(value)
    return value
