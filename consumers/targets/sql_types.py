"""Which column a sql target gives to each kind of value, and the form in which the value is kept.

Pure. One entry of KINDS is one line of the table in docs/targets.md. Values are converted a column at a
time, since a batch has thousands of rows. What does not fit is a BadRecordError, which parks its row.
SQLite has five storage classes and no numeric type that is exact, so that a numeric is kept as its text.
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from math import isinf
from typing import Any, Literal

from orjson import dumps

from streamer.changes.kinds import ARRAY
from streamer.errors import BadRecordError, ConfigError

Values = Sequence[Any]
Encode = Callable[[Values], list[Any]]  # a column of what orjson.loads gives -> a column of what is kept
ColumnType = Literal["INTEGER", "REAL", "TEXT", "BLOB"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NULL: type[Any] = type(None)
_NOT_FINITE = {"NaN": "NaN", "Infinity": float("inf"), "-Infinity": float("-inf")}
_BOOLEANS = {True: 1, False: 0, None: None}
_TRUE, _FALSE = ("true", "t", "yes", "y", "on", "1"), ("false", "f", "no", "n", "off", "0")


@dataclass(frozen=True, slots=True)
class Stored:
    """`type`: of the column that is made; `form`: the value in it, in words; `number_like`: whether a text
    may look like a number, which a column of another type would turn into one."""

    type: ColumnType
    form: str
    encode: Encode
    number_like: bool = False


def _check(values: Values, allowed: frozenset[type], expected: str) -> set[type]:
    found = set(map(type, values))
    if not found <= allowed:
        wrong = next(value for value in values if type(value) not in allowed)
        raise BadRecordError(f"{expected} was expected, not {type(wrong).__name__}")
    return found


def _of(expected: str, *types: type) -> Encode:
    allowed: frozenset[type] = frozenset((*types, _NULL))

    def encode(values: Values) -> list[Any]:
        _check(values, allowed, expected)
        return list(values)

    return encode


_TEXTS: frozenset[type] = frozenset((str, _NULL))


def _text(values: Values) -> list[Any]:
    _check(values, _TEXTS, "a string")
    if "\0" in "".join(filter(None, values)):
        raise BadRecordError(
            "the text holds a NUL character, where SQLite's own functions take it to end",
            fix="take the NUL out in the source, or send the column as bytea",
        )
    return list(values)


_NUMBERS: frozenset[type] = frozenset((float, int, str, _NULL))
_BOOLS: frozenset[type] = frozenset((bool, _NULL))


def _float(values: Values) -> list[Any]:
    if str not in _check(values, _NUMBERS, "a number"):
        return list(values)
    return [_finite(value) if type(value) is str else value for value in values]


def _finite(text: str) -> Any:
    if text not in _NOT_FINITE:
        raise BadRecordError("a number was expected, not other text")
    return _NOT_FINITE[text]


def _bool(values: Values) -> list[Any]:
    _check(values, _BOOLS, "true or false")
    return list(map(_BOOLEANS.get, values))


def _bytes(values: Values) -> list[Any]:
    _check(values, _TEXTS, "a string")
    try:
        return [None if value is None else a2b_base64(value, strict_mode=True) for value in values]
    except ValueError:
        raise BadRecordError("base64 was expected, not other text") from None


_LISTS: frozenset[type] = frozenset((list, _NULL))


def _list(values: Values) -> list[Any]:
    _check(values, _LISTS, "an array")
    return [None if value is None else dumps(value).decode() for value in values]


_PLAIN = _of("a string", str)
KINDS: dict[str, Stored] = {
    "number": Stored("INTEGER", "the number", _of("an integer", int)),
    "float": Stored("REAL", "the number; infinity as such, NaN as the text `NaN`, -0 as 0", _float),
    "bool": Stored("INTEGER", "1 or 0", _bool),
    "bit1": Stored("INTEGER", "1 or 0", _bool),
    "numeric": Stored("TEXT", "exact, as written: `123.4500`, `NaN`", _PLAIN, number_like=True),
    "money": Stored("TEXT", "exact: `-1234.11`", _PLAIN, number_like=True),
    "text": Stored("TEXT", "the text; one with a NUL character is refused", _text, number_like=True),
    "bytea": Stored("BLOB", "the bytes", _bytes),
    "json": Stored("TEXT", "the JSON text", _PLAIN, number_like=True),
    "hstore": Stored("TEXT", "a JSON object", _PLAIN),
    "date": Stored("TEXT", "`2016-11-04`, `infinity`", _PLAIN),
    "time": Stored("TEXT", "`13:51:30.5`", _PLAIN),
    "timestamp": Stored("TEXT", "`2016-11-04T13:51:30.5Z`, `infinity`", _PLAIN),
    "timestamptz": Stored("TEXT", "`2016-11-04T11:51:30.5Z` (UTC), `infinity`", _PLAIN),
    "timetz": Stored("TEXT", "`11:51:30Z`, `11:51:30+02`", _PLAIN),
    "interval": Stored("TEXT", "`P1Y2M3DT4H5M6.78S`", _PLAIN),
    "bits": Stored("TEXT", "`0101`", _PLAIN, number_like=True),
    "vector": Stored("TEXT", "a JSON array", _list),
}
_BOUNDED = "a row whose array has other lower bounds than 1 is parked"  # JSON has no place for them
ARRAYS = Stored("TEXT", f"a JSON array, nested as dimensioned; {_BOUNDED}", _list)
SOFT_DELETE: ColumnType = "TEXT"  # when: the form of a timestamptz


def time_text(at_us: int) -> str:
    """Microseconds since 1970 in the form of a timestamptz."""
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat().replace("+00:00", "Z")


def stored_as(kind: str) -> Stored:
    if kind.startswith(ARRAY):
        return ARRAYS
    if kind not in KINDS:
        raise BadRecordError(
            f"column kind {kind!r} is not known to this program",
            fix="run the version of Tailrace that wrote the schema record, or a newer one",
        )
    return KINDS[kind]


# Casts that a flow asks for: from the JSON form to one of SQLite's own classes

_BLANKS = " \t\n\v\f\r"  # around a number, as a Postgres takes them
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?").fullmatch
_INT64 = range(-(2**63), 2**63)
_INT64_DIGITS = 19
_WORDS = dict.fromkeys(("inf", "+inf", "infinity", "+infinity"), _NOT_FINITE["Infinity"])
_WORDS |= dict.fromkeys(("-inf", "-infinity"), _NOT_FINITE["-Infinity"])
_WORDS["nan"] = _NOT_FINITE["NaN"]


def _cast_integer(value: Any) -> int:
    """Of any whole number, however it is written."""
    number = Decimal(value if type(value) is int else _spelt(value))
    if number and number.adjusted() >= _INT64_DIGITS:  # before int() writes out what an exponent says
        raise ValueError
    whole = int(number)
    if whole != number or whole not in _INT64:
        raise ValueError
    return whole


def _cast_real(value: Any) -> Any:
    """As a float is kept: NaN as its text, which SQLite would make NULL of."""
    if type(value) is bool:
        return float(value)
    word = value.strip(_BLANKS).lower() if type(value) is str else ""
    if word in _WORDS:
        return _WORDS[word]
    number = float(_spelt(value))
    if isinf(number):
        raise ValueError
    return number


def _spelt(value: Any) -> str:
    """A number as JSON and SQL write one; Python's own functions take more, such as 1_000."""
    text = value.strip(_BLANKS) if type(value) is str else repr(value)
    if type(value) not in (str, int, float) or not _NUMBER(text):
        raise ValueError
    return text


def _cast_text(value: Any) -> str:
    if type(value) is bool:
        return "true" if value else "false"
    return value if type(value) is str else dumps(value).decode()


def _cast_bool(value: Any) -> int:
    word = str(value).strip().lower()
    if word not in _TRUE + _FALSE:
        raise ValueError
    return int(word in _TRUE)


def _cast_bytes(value: Any) -> bytes:
    return _cast_text(value).encode()


def _each(convert: Callable[[Any], Any], cast: str) -> Encode:
    def encode(values: Values) -> list[Any]:
        try:
            return [None if value is None else convert(value) for value in values]
        except (ValueError, TypeError, OverflowError):
            raise BadRecordError(f"a value cannot be cast to {cast}") from None

    return encode


_CASTS: dict[str, tuple[ColumnType, Callable[[Any], Any], tuple[str, ...]]] = {
    "integer": ("INTEGER", _cast_integer, ("int", "bigint", "smallint")),
    "real": ("REAL", _cast_real, ("double precision", "float")),
    "text": ("TEXT", _cast_text, ("varchar",)),
    "boolean": ("INTEGER", _cast_bool, ("bool",)),
    "blob": ("BLOB", _cast_bytes, ("bytea",)),
}


def cast_to(name: str, kind: str, *, where: str) -> Stored:
    """What a value of the kind becomes under `cast: name`. Raises ConfigError for a type SQLite lacks."""
    wanted = name.strip().lower()
    for cast, (column, convert, others) in _CASTS.items():
        if wanted == cast or wanted in others:
            given = stored_as(kind)
            if (cast, given.type) == ("blob", "BLOB"):
                return given
            if kind in ("bool", "bit1") and cast in ("integer", "boolean"):
                return given
            return Stored(column, f"cast to {cast}", _each(convert, cast), number_like=column == "TEXT")
    raise ConfigError(
        f"SQLite has no type {name!r} to cast to",
        where=where,
        fix=f"write one of {', '.join(_CASTS)}; times, uuids and numerics are kept as text without a cast",
    )


def constant(value: Any) -> tuple[ColumnType, Any]:
    """A constant of the config: the type of a column that is made for it, and what is kept."""
    if isinstance(value, bool):
        return "INTEGER", int(value)
    if isinstance(value, int):
        return "INTEGER", value
    if isinstance(value, float):
        return "REAL", value
    return "TEXT", dumps(value).decode() if isinstance(
        value, list | dict
    ) else None if value is None else str(value)


def why_unfit(stored: Stored, declared: str) -> str | None:
    """Why a column that was declared so does not keep such values as they are; None when it does.

    SQLite converts by a column's affinity, which it takes from words in the declared type
    (https://www.sqlite.org/datatype3.html, 3.1).
    """
    affinity = affinity_of(declared)
    if affinity == "BLOB" or stored.type in ("BLOB", affinity):
        return None
    if stored.type == "INTEGER":
        return "has no room for every 64-bit integer" if affinity == "REAL" else None
    if stored.type == "REAL":
        return "keeps 15 digits of a float" if affinity == "TEXT" else None
    if stored.number_like:
        return "turns what looks like a number into one, which loses digits and zeros"
    return None


def affinity_of(declared: str) -> str:
    text = declared.upper()
    if "INT" in text:
        return "INTEGER"
    if any(word in text for word in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if "BLOB" in text or not text or text == "ANY":
        return "BLOB"
    if any(word in text for word in ("REAL", "FLOA", "DOUB")):
        return "REAL"
    return "NUMERIC"
