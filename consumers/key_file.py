"""Keys of rows as people write them, brought into the form that an event's key has in Kafka. Reads files.

    {"id": 7}             a JSON object: every key column by its name
    [7, "eu"]             a JSON array: the values in the order of the key's columns
    7                     plain text, of a key of one column; in quotes it is read as a JSON string
    # a comment           as empty lines, passed over in a file, which has one key a line

Numbers keep the digits that they are written with: a numeric key is a string in Kafka.
"""

from __future__ import annotations

import json
import re
import sys
from binascii import b2a_base64, unhexlify
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from streamer.changes.backfill import Key
from streamer.changes.kinds import decoder_for
from streamer.changes.schema import Column, SchemaRecord
from streamer.errors import BadRecordError, ConfigError

STDIN = "-"
KEYS_LIMIT = 1_000_000  # the capture holds them all; more are a condition, or the whole table
DIGITS_LIMIT = 20  # of the largest integer, and one more
LINE_LIMIT_BYTES = 64 * 1024  # an index holds no key of this size
TEXT_SHOWN = 100  # of a key that is none

_INTEGER_BITS = {"smallint": 16, "integer": 32, "bigint": 64, "oid": 32}
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?").fullmatch
_NOT_A_NUMBER = ("NaN", "Infinity", "-Infinity")
_TRUE, _FALSE = ("t", "true", "1"), ("f", "false", "0")


class _Literal(str):
    """A number as it is written."""


class Written(NamedTuple):
    """A key as it is given. `place`: file and line, or the option."""

    place: str
    text: str


def read_keys(path: str, record: SchemaRecord) -> list[Key]:
    """The keys of the file, each once, in its order. Raises ConfigError with the number of a bad line."""
    return list(_keys(written_in(path), _name(path), record))


def written_in(path: str) -> Iterator[Written]:
    """The keys of the file, comments passed over. Raises ConfigError."""
    name = _name(path)
    with ExitStack() as stack:
        try:
            file = sys.stdin.buffer if path == STDIN else stack.enter_context(Path(path).open("rb"))
            for number, line in enumerate(file, 1):
                text = _text_of(line, f"{name}:{number}")
                if text and not text.startswith("#"):
                    yield Written(f"{name}:{number}", text)
        except OSError as error:
            raise ConfigError(
                f"the file of keys cannot be read: {error.strerror}", where=path, fix="name one that is there"
            ) from error


def _name(path: str) -> str:
    return "stdin" if path == STDIN else path


def _text_of(line: bytes, place: str) -> str:
    what = "the line is not UTF-8"
    if len(line) > LINE_LIMIT_BYTES:
        what = f"a line of more than {LINE_LIMIT_BYTES:,} bytes is no key"
    else:
        with suppress(UnicodeDecodeError):
            return line.decode("utf-8-sig").strip()
    raise ConfigError(what, where=place, fix="write a key as JSON or as plain text, in UTF-8")


def _keys(lines: Iterable[Written], name: str, record: SchemaRecord) -> Iterator[Key]:
    columns = key_columns(record)
    known: set[bytes] = set()
    for line in lines:
        key = key_of(line, columns)
        text = json.dumps(key).encode()
        if text in known:
            continue
        if len(known) == KEYS_LIMIT:
            raise ConfigError(
                f"the file has more than {KEYS_LIMIT:,} keys",
                where=line.place,
                fix="split it; or name the rows by a condition (--where), or take the whole table",
            )
        known.add(text)
        yield key
    if not known:
        raise ConfigError("the file has no key", where=name, fix=_shape(columns))


def key_columns(record: SchemaRecord) -> list[Column]:
    """In the order of keys."""
    return [column for column in record.columns if column.key]


def key_of(written: Written, columns: Sequence[Column]) -> Key:
    """Raises ConfigError that says where it is written, and how a key is."""
    try:
        return parse_key(written.text, columns)
    except BadRecordError as error:
        raise ConfigError(error.what, where=written.place, fix=_shape(columns)) from error


def key_of_some(written: Written, tables: Mapping[str, Sequence[Column]]) -> dict[str, Key]:
    """The key in each of the tables that it is one of. Raises ConfigError where it is one of none."""
    found, wrong = {}, {}
    for name, columns in tables.items():
        try:
            found[name] = parse_key(written.text, columns)
        except BadRecordError as error:
            wrong[name] = error.what
    if found:
        return found
    if len(tables) == 1:
        return {name: key_of(written, columns) for name, columns in tables.items()}
    (name, what), *_ = wrong.items()
    raise ConfigError(
        f"{written.text[:TEXT_SHOWN]!r} is a key of none of {len(tables)} tables; of {name}: {what}",
        where=written.place,
        fix=f"{_shape(tables[name])}; --topic names one table",
    )


def parse_key(text: str, columns: Sequence[Column]) -> Key:
    """In the order of `columns`. Raises BadRecordError."""
    values = _values(text, columns)
    return tuple(key_value(column, value) for column, value in zip(columns, values, strict=True))


def _values(text: str, columns: Sequence[Column]) -> list[Any]:
    names = [column.name for column in columns]
    if text[:1] not in ("[", "{", '"'):
        if len(columns) != 1:
            raise BadRecordError(f"the key has {_named(names)}; this is one value")
        return [text]
    try:
        found = json.loads(text, parse_int=_Literal, parse_float=_Literal, parse_constant=_Literal)
    except (ValueError, RecursionError):
        raise BadRecordError("it begins as JSON and is none") from None
    if isinstance(found, dict):
        if found.keys() != set(names):
            raise BadRecordError(f"the key is {', '.join(names)}, not {', '.join(found) or 'empty'}")
        return [found[name] for name in names]
    values = found if isinstance(found, list) else [found]
    if len(values) != len(columns):
        raise BadRecordError(f"the key has {_named(names)}; these are {len(values)} values")
    return values


def _named(names: Sequence[str]) -> str:
    return f"{len(names)} column{'s' if len(names) > 1 else ''} ({', '.join(names)})"


def key_value(column: Column, value: Any) -> Any:
    """As an envelope holds it. Raises BadRecordError, with the column's name."""
    try:
        if value is None:
            raise BadRecordError("it is null, and a key never is")
        made = _FORMS.get(column.kind, _plain)(column, value)
        decoder_for(column.kind)(made)
    except BadRecordError as error:
        raise BadRecordError(f"column {column.name} ({column.type}): {error.what}") from None
    return made


def _plain(_: Column, value: Any) -> Any:
    return str(value) if type(value) is str else _numbers(value)


def _numbers(value: Any) -> Any:
    """Numbers inside of arrays, as JSON has them."""
    if isinstance(value, _Literal):
        return json.loads(value)
    if isinstance(value, dict):
        return {name: _numbers(each) for name, each in value.items()}
    return [_numbers(each) for each in value] if isinstance(value, list) else value


def _text(column: Column, value: Any) -> str:
    if not isinstance(value, str):
        raise BadRecordError(f"text was expected, not {_said(value)}")
    if column.type == "uuid":
        try:
            return str(UUID(value))
        except ValueError:
            raise BadRecordError(f"{_said(value)} is not a uuid") from None
    return str(value)


def _integer(column: Column, value: Any) -> int:
    digits = value.removeprefix("-") if isinstance(value, str) else ""
    if not (digits.isascii() and digits.isdigit()):
        raise BadRecordError(f"an integer was expected, not {_said(value)}")
    if len(digits) > DIGITS_LIMIT:
        raise BadRecordError(f"a number of {len(digits)} digits is beyond what the column holds")
    number, bits = int(value), _INTEGER_BITS.get(column.type, 64)
    if not -(2 ** (bits - 1)) <= number < 2 ** (bits if column.type == "oid" else bits - 1):
        raise BadRecordError(f"{number} is beyond what the column holds")
    return number


def _float(_: Column, value: Any) -> float | str:
    text = _numeric(_, value)
    if text in _NOT_A_NUMBER:
        return text
    if not isfinite(number := float(text)):
        raise BadRecordError(f"{text} is beyond what the column holds")
    return number


def _numeric(_: Column, value: Any) -> str:
    if isinstance(value, str) and (value in _NOT_A_NUMBER or _NUMBER(value)):
        return str(value)
    raise BadRecordError(f"a number was expected, not {_said(value)}")


def _bool(_: Column, value: Any) -> bool:
    text = str(value).lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise BadRecordError(f"true or false was expected, not {_said(value)}")


def _bytes(_: Column, value: Any) -> str:
    """Base64 as in an envelope; or \\x and hex digits, as the source prints it."""
    if isinstance(value, str) and value.startswith("\\x"):
        try:
            return b2a_base64(unhexlify(value[2:]), newline=False).decode()
        except ValueError:
            raise BadRecordError("hex digits were expected behind \\x") from None
    return _text(_ANY, value)


_ANY = Column("", "", -1, "text", True)
_FORMS: dict[str, Callable[[Column, Any], Any]] = {
    "number": _integer,
    "float": _float,
    "numeric": _numeric,
    "money": _numeric,
    "bool": _bool,
    "bit1": _bool,
    "bytea": _bytes,
    **dict.fromkeys(
        ("text", "date", "time", "timestamp", "timestamptz", "timetz", "interval", "bits", "json"), _text
    ),
}


def _said(value: Any) -> str:
    return repr(str(value)) if isinstance(value, str) else json.dumps(value)


def _shape(columns: Sequence[Column]) -> str:
    example = json.dumps([_example(column) for column in columns])
    by_name = json.dumps({column.name: _example(column) for column in columns})
    plain = f", or {_example(columns[0])}" if len(columns) == 1 else ""
    return f"write a key as {by_name} or {example}{plain}"


def _example(column: Column) -> Any:
    return 7 if column.kind == "number" else True if column.kind in ("bool", "bit1") else "..."
