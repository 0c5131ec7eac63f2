"""JSON columns taken apart, their numbers with the digits that they are spelt with. Pure.

What a member becomes goes by the declared type of its column, as `(document->>'name')::type` does:

    numeric         every digit, as text               json            the member's JSON, as text
    text, others    a number's or object's JSON        float, integer  a number of JSON, where it is one
    none            as JSON shows it: an integer, a double precision number, an object
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from msgspec import DecodeError as MalformedJson
from msgspec import Raw, json
from orjson import JSONDecodeError, loads

from streamer.changes.kinds import ARRAY
from streamer.errors import BadRecordError
from streamer.redis.encode import encode_int, encode_numeric

NULL: Final = b"null"
_members: Final = json.Decoder(dict[str, Raw]).decode
_elements: Final = json.Decoder(list[Raw]).decode
_NUMBER: Final = frozenset(b"-0123456789")


def members(text: str | bytes) -> Mapping[str, bytes] | None:
    """An object's, by name; None: it is no object."""
    try:
        return {name: bytes(value).strip() for name, value in _members(text).items()}
    except MalformedJson:
        return None


def elements(text: str | bytes) -> list[bytes]:
    """An array's. Raises BadRecordError: it is none."""
    try:
        return [bytes(value).strip() for value in _elements(text)]
    except MalformedJson as error:
        raise BadRecordError(f"is no JSON array: {error}", fix="name a column of arrays") from None


def value_of(raw: bytes, name: str, kind: str | None) -> Any:
    """A member's, for the column `name`. `kind`: of its declared type; None: there is none.

    Raises BadRecordError: the type does not hold it.
    """
    if raw == NULL:
        return None
    if kind == "json":
        return raw.decode()
    if raw[0] in _NUMBER:
        return _number(raw, name, kind)
    if raw[:1] == b"[" and kind is not None and kind.startswith(ARRAY):
        return [value_of(item, name, kind.removeprefix(ARRAY)) for item in elements(raw)]
    if raw[:1] != b'"' and kind not in (None, "bool", "vector"):
        return raw.decode()
    try:
        return loads(raw)
    except JSONDecodeError as error:
        raise BadRecordError(f"{name}: {error}", fix=_declare(name, "jsonb")) from None


def _number(raw: bytes, name: str, kind: str | None) -> Any:
    try:
        if kind in ("numeric", "money"):
            return loads(encode_numeric(raw))
        if kind == "float" or (kind is None and not raw.lstrip(b"-").isdigit()):
            number = float(raw)
            if not isfinite(number):
                raise ValueError(f"{raw[:60].decode()} is more than a double precision holds")
            return number
        if kind in (None, "number"):
            return int(encode_int(raw))
    except ValueError as error:
        raise BadRecordError(f"{name}: {error}", fix=_declare(name, "numeric")) from None
    return raw.decode()


def _declare(name: str, type_: str) -> str:
    return f"declare it: types={{{name!r}: {type_!r}}}"
