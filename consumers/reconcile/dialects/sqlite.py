"""SQLite's side of docs/digest.md: the canonical text of what a row holds, and the hashes of many rows.

SQLite has no md5 and runs in this process, so rows are read out and hashed here, a column at a time: a
function registered with the connection would be called for each value instead. Pure: rows come as
`cursor.fetchmany` gives them.

Every value has a text. One that apply does not write for the kind (another storage class, another
spelling) gets one that no store has, so that it is seen as a difference and stops nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from hashlib import md5
from struct import iter_unpack, pack
from typing import Any

from orjson import JSONDecodeError, loads

from consumers.reconcile.canonical import NAN, canonical_of, field
from consumers.reconcile.digest import RangeDigest, RowHash
from consumers.reconcile.forms import Form
from streamer.changes.kinds import ARRAY
from streamer.errors import BadRecordError

FETCH_ROWS = 2_000  # a call: enough that a column's work outweighs its start, little enough for the cache
STRANGE = "\0"  # before what is no value of the kind: no Postgres holds a text with it

Values = Sequence[Any]
Rows = Sequence[Sequence[Any]]
Stored = Callable[[Any], str]  # what SQLite holds, not null -> canonical text
Fields = Callable[[Values], list[str]]  # a column of what SQLite holds -> a column of row_text's fields

_DAY, _CLOCK = r"[0-9]{4,7}-[0-9]{2}-[0-9]{2}", r"[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
_TIMESTAMP = re.compile(f"({_DAY})T({_CLOCK})Z( BC)?", re.ASCII).fullmatch
_INFINITE = ("infinity", "-infinity")
_SPECIAL = re.compile(r'[\s(),"\\]', re.ASCII).search
_JSON_KINDS = ("vector", "hstore")


class RowHasher:
    """Hashes of rows whose columns are in the order of `forms`."""

    def __init__(self, forms: Sequence[Form]) -> None:
        self._fields = [_fields_of(form) for form in forms]

    def texts(self, rows: Rows) -> list[str]:
        """The text of each row."""
        if not rows:
            return []
        columns = [
            fields(column) for fields, column in zip(self._fields, zip(*rows, strict=True), strict=True)
        ]
        return [f"({','.join(row)})" for row in zip(*columns, strict=True)]

    def hashes(self, rows: Rows) -> list[RowHash]:
        return [RowHash._make(lanes) for lanes in iter_unpack(">QQ", self._digests(rows))]

    def digest(self, rows: Rows) -> RangeDigest:
        lanes = list(iter_unpack(">QQ", self._digests(rows)))
        return RangeDigest.of_sums(len(rows), sum([a for a, _ in lanes]), sum([b for _, b in lanes]))

    def _digests(self, rows: Rows) -> bytes:
        return b"".join([md5(text.encode(), usedforsecurity=False).digest() for text in self.texts(rows)])


def row_texts(rows: Iterable[Sequence[Any]], forms: Sequence[Form]) -> list[list[str | None]]:
    """The canonical text of each column of each row, to say which of them differ."""
    columns = [stored_text(form) for form in forms]
    return [
        [None if value is None else text(value) for text, value in zip(columns, row, strict=True)]
        for row in rows
    ]


# A value


@cache
def stored_text(form: Form) -> Stored:
    kind = form.kind
    if kind == "float":
        return _float if form.signed_zero else _float_of_one_zero
    if kind.startswith(ARRAY) or kind == "vector":
        return _of_json(kind)
    if kind == "hstore":
        return _hstore
    return _STORED.get(kind, _text)


def strange(value: Any) -> str:
    return f"{STRANGE}{type(value).__name__}:{value!r}"


def _text(value: Any) -> str:
    return value if type(value) is str else strange(value)


def _number(value: Any) -> str:
    return str(value) if type(value) is int else _text(value)


def _bool(value: Any) -> str:
    return {1: "t", "1": "t", 0: "f", "0": "f"}.get(value) or strange(value)


def _bit1(value: Any) -> str:
    return {1: "1", "1": "1", 0: "0", "0": "0"}.get(value) or strange(value)


def _bytes(value: Any) -> str:
    return "\\x" + value.hex() if type(value) is bytes else strange(value)


def _float(value: Any) -> str:
    if value == "NaN":
        return "\\x" + pack(">d", NAN).hex()
    if type(value) is float or (type(value) is int and float(value) == value):
        return "\\x" + pack(">d", value).hex()
    return strange(value)


def _float_of_one_zero(value: Any) -> str:
    return _float(value + 0.0 if type(value) is float else value)


def _timestamp(value: Any) -> str:
    return _instant(value, "")


def _timestamptz(value: Any) -> str:
    return _instant(value, "+00")


def _instant(value: Any, zone: str) -> str:
    if type(value) is not str:
        return strange(value)
    if value in _INFINITE:
        return value
    match = _TIMESTAMP(value)
    return f"{match[1]} {match[2]}{zone}{match[3] or ''}" if match else strange(value)


def _timetz(value: Any) -> str:
    if type(value) is not str or value.endswith("+00"):
        return strange(value)
    return value[:-1] + "+00" if value.endswith("Z") else value


def _hstore(value: Any) -> str:
    try:
        return canonical_of("hstore")(value)
    except BadRecordError:
        return strange(value)


def _of_json(kind: str) -> Stored:
    text = canonical_of(kind)

    def of_json(value: Any) -> str:
        try:
            return text(loads(value)) if type(value) is str else strange(value)
        except (JSONDecodeError, BadRecordError):
            return strange(value)

    return of_json


_STORED: dict[str, Stored] = {
    "number": _number,
    "bool": _bool,
    "bit1": _bit1,
    "bytea": _bytes,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "timetz": _timetz,
}


# A column, as fields of the rows' texts


def _fields_of(form: Form) -> Fields:
    text = stored_text(form)

    def any_values(values: Values) -> list[str]:
        return [field(None if value is None else text(value)) for value in values]

    if form.kind == "number":
        return lambda values: (
            list(map(str, values)) if set(map(type, values)) == {int} else any_values(values)
        )
    if form.kind in ("timestamp", "timestamptz"):
        zone = "+00" if form.kind == "timestamptz" else ""
        return _instants(zone, any_values)
    if text is _text:
        return _texts(any_values)
    if form.kind in ("bool", "bit1"):
        words = {value: text(value) for value in (0, 1)} | {None: ""}
        return lambda values: [words[v] if v in words else field(text(v)) for v in values]
    return any_values


def _instants(zone: str, any_values: Fields) -> Fields:
    end = zone + '"'

    def fields(values: Values) -> list[str]:
        return [
            f'"{match[1]} {match[2]}{end}' if match and not match[3] else any_values([value])[0]
            for value in values
            for match in [_TIMESTAMP(value) if type(value) is str else None]
        ]

    return fields


def _texts(any_values: Fields) -> Fields:
    def fields(values: Values) -> list[str]:
        found = set(map(type, values))
        if not found <= {str, type(None)}:
            return any_values(values)
        if found == {str} and all(values) and not _SPECIAL("".join(values)):
            return list(values)
        special = _SPECIAL
        return [
            ""
            if value is None
            else value
            if value and not special(value)
            else '"' + value.replace("\\", "\\\\").replace('"', '""') + '"'
            for value in values
        ]

    return fields
