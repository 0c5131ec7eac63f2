"""Derived tables: their columns and types, and how a derived row becomes an event. Pure.

A type is what the definition says, or inferred from the first value that is not null (said once, in the log
and in `status`): integer -> bigint, fraction -> double precision, true and false -> boolean, list or object
-> jsonb, Decimal -> numeric, else text. The definition is asked when a column comes that the table does not
have; of a helper's, nothing is inferred before the inputs' schema records have been read on (UnknownType).
A column that has had nothing but nulls is left out until it has a type. A type that the definition, or an
input, changes later is the column's from then on, by another schema record. Rows are whole: a column not
named is null. Values are written as the kinds of their columns are (see fitting).
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from math import isfinite
from typing import Any, Final

import orjson

from consumers.processors.context import Row
from consumers.processors.fitting import NOT_FINITE, Exact, fitted, is_plain
from streamer import __version__
from streamer.changes.envelope import RowTemplate, SourceTemplate
from streamer.changes.fitting import ALIASES
from streamer.changes.schema import Column, SchemaRecord
from streamer.errors import BadRecordError, ConfigError

CONNECTOR = "tailrace"
COLUMNS_LIMIT = 1600  # Postgres's own; a row keyed by data would make a column of each value
FIRST_EPOCH = 1
NAME_BYTES = 63  # what Postgres keeps of a name
OWN_PREFIX = "_tailrace"

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_JSON: Final = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS
_KINDS: Final = {
    "smallint": "number",
    "integer": "number",
    "bigint": "number",
    "oid": "number",
    "real": "float",
    "double precision": "float",
    "boolean": "bool",
    "numeric": "numeric",
    "money": "money",
    "bytea": "bytea",
    "json": "json",
    "jsonb": "json",
    "date": "date",
    "time without time zone": "time",
    "time with time zone": "timetz",
    "timestamp without time zone": "timestamp",
    "timestamp with time zone": "timestamptz",
    "interval": "interval",
    "vector": "vector",
    "halfvec": "vector",
}


def declared(name: str, type_name: str, *, where: str = "") -> Column:
    """A column of a type as a user writes it: int, numeric(12,2), text[]. Raises ConfigError."""
    text = " ".join(type_name.lower().split())
    array = text.endswith("[]")
    bare = text.removesuffix("[]")
    base, parenthesis, limits = bare.partition("(")
    base = ALIASES.get(base.strip(), base.strip())
    if not base or (parenthesis and not limits.endswith(")")):
        raise ConfigError(
            f"{type_name!r} is no type", where=where or name, fix="write it as Postgres does: numeric(12,2)"
        )
    kind = _KINDS.get(base, "text")
    full = f"{base}({limits}" if parenthesis else base
    return Column(name, f"{full}[]" if array else full, -1, f"array:{kind}" if array else kind, key=False)


def inferred(name: str, value: Any) -> Column:
    """Of a value that is not None."""
    if isinstance(value, bool):
        type_name = "boolean"
    elif isinstance(value, int):
        type_name = "bigint"
    elif isinstance(value, float) or value in NOT_FINITE:
        type_name = "double precision"
    elif isinstance(value, Decimal | Exact):
        type_name = "numeric"
    elif isinstance(value, list | dict | tuple):
        type_name = "jsonb"
    elif isinstance(value, datetime.datetime):
        type_name = "timestamptz" if value.tzinfo is not None else "timestamp"
    elif isinstance(value, datetime.date):
        type_name = "date"
    elif isinstance(value, uuid.UUID):
        type_name = "uuid"
    else:
        type_name = "text"
    return declared(name, type_name)


def dumps(value: Any) -> bytes:
    """JSON as the envelope has it: exact numbers as text. Raises BadRecordError."""
    try:
        return orjson.dumps(value, _plain, _JSON)
    except TypeError as error:
        raise BadRecordError(
            f"a derived row cannot be written as JSON: {error.__cause__ or error}",
            fix="give numbers, texts, dates, lists or None",
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, bytes):
        raise TypeError("bytes: encode them as base64 text")
    raise TypeError(f"{type(value).__name__} has no JSON form")


@dataclass(slots=True)
class Shape:
    """A derived table as its events name it now."""

    record: SchemaRecord
    id: str
    names: frozenset[str]
    key: tuple[str, ...]
    kinds: Mapping[str, str]
    template: SourceTemplate


class UnknownType(Exception):
    """Columns have no type by what is known of the inputs: read their schema records on, and try again."""

    def __init__(self, columns: Collection[str]) -> None:
        super().__init__(", ".join(sorted(columns)))
        self.columns = columns


class Shapes:
    """All derived tables of one worker."""

    def __init__(
        self,
        processor: str,
        out: str,
        *,
        types: Callable[[], Mapping[str, str]],
        inputs: Mapping[str, Sequence[SchemaRecord]],
        known: Sequence[SchemaRecord],
        said: Callable[[str], None],
        asks: bool = False,
        taken: dict[str, str] | None = None,
    ) -> None:
        """`types`: what the definition says now. `inputs`, `taken`: as Given has them; `known`: of this
        processor, the newest of a table last. `said`: of types inferred. `asks`: raise UnknownType before."""
        self._processor = processor
        self._out = out
        self._types = types
        self._inputs = inputs
        self._asks = asks
        self._asked: set[str] = set()  # columns for which the inputs' records were read on
        self._untyped: set[str] = set()  # that had nothing but nulls so far
        self._known = {record.table: record for record in known}
        self._said = said
        self._shapes: dict[tuple[str | None, int], Shape] = {}
        self.inferred: dict[str, str] = {}  # column -> type, for `status`
        self._taken = {} if taken is None else taken
        self._taken.update({column.name: column.type for record in known for column in record.columns})
        self._type_again()

    @property
    def known(self) -> Collection[SchemaRecord]:
        """The newest of each table that ever was."""
        return self._known.values()

    def fit(self, table: str | None, epoch: int, key: Row, after: Row | None) -> Shape:
        """The table's shape, with room for this row. Raises BadRecordError."""
        shape = self._shapes.get((table, epoch))
        if shape is not None and (after is None or after.keys() <= shape.names) and shape.key == tuple(key):
            return shape
        if shape is not None and after is not None and shape.key == tuple(key):
            more = after.keys() - shape.names
            if more <= self._untyped and all(after[column] is None for column in more):
                return shape
        return self._wider(table, epoch, key, after)

    def _wider(self, table: str | None, epoch: int, key: Row, after: Row | None) -> Shape:
        name = self._out if table is None else table
        where = f"derived table {name}"
        if not key:
            raise BadRecordError(
                "a derived row has no key", where=where, fix="give `key=`, or name its columns in the config"
            )
        record = self._known.get(name)
        columns = {} if record is None else {column.name: column for column in record.columns}
        if record is not None and record.key_columns != tuple(key):
            if set(record.key_columns) != set(key):
                raise BadRecordError(
                    f"its key is {', '.join(key)}, and was {', '.join(record.key_columns)}",
                    where=where,
                    fix="give every row of a derived table the same key columns; to change them for all rows,"
                    f" give it another `out`, or `tailrace reset {self._processor}`",
                )
            raise BadRecordError(
                f"its key columns come as {', '.join(key)}, and came as {', '.join(record.key_columns)}",
                where=where,
                fix="name them in one order: the order decides the partition",
            )
        row = {**key, **(after or {})}
        if record is None and len(name.encode()) > NAME_BYTES:
            raise BadRecordError(
                f"its name has more than {NAME_BYTES} bytes, so that no target can have it",
                where=where,
                fix="route by shorter texts",
            )
        if fresh := [column for column in row if column not in columns]:
            for column in fresh:
                _check_name(column, where)
            types = self._types()
            unknown = {column for column in fresh if column not in types and row[column] is not None}
            if self._asks and not unknown <= self._asked:
                raise UnknownType(unknown)
            for column in fresh:
                found = self._column(column, row[column], types.get(column), of_key=column in key)
                if found is None:
                    self._untyped.add(column)
                else:
                    columns[column] = found
        if len(columns) > COLUMNS_LIMIT:
            raise BadRecordError(f"it has more than {COLUMNS_LIMIT} columns", where=where, fix="name fewer")
        wider = SchemaRecord(self._processor, "", name, "d", tuple(columns.values()))
        self._known[name] = wider
        shape = Shape(
            wider,
            wider.id,
            frozenset(columns),
            tuple(key),
            {column.name: column.kind for column in wider.columns},
            SourceTemplate(
                version=__version__,
                connector=CONNECTOR,
                name=self._processor,
                db="",
                schema="",
                table=name,
                schema_id=wider.id,
                epoch=epoch,
            ),
        )
        self._shapes[table, epoch] = shape
        return shape

    def asked(self, columns: Collection[str]) -> None:
        """The inputs' schema records were read on, for these: what is unknown now is inferred."""
        self._asked.update(columns)
        self._type_again()

    def _type_again(self) -> None:
        """Columns whose type is another one by what is known of the definition and the inputs now."""
        typed = {name: self._typed(name, type_name) for name, type_name in self._types().items()}
        for table, record in self._known.items():
            columns = tuple(
                replace(typed[c.name], name=c.name, key=c.key)
                if c.name in typed and typed[c.name].type != c.type
                else c
                for c in record.columns
            )
            if columns == record.columns:
                continue
            for was, now in zip(record.columns, columns, strict=True):
                if was.type != now.type:
                    self.inferred.pop(now.name, None)
                    self._said(
                        f"column {now.name} of {table} is {now.type} now, and was {was.type}: where values do"
                        " not fit a target's column any more, alter that, then `tailrace dead-letters retry`"
                    )
            self._known[table] = replace(record, columns=columns)
            self._shapes = {
                place: shape for place, shape in self._shapes.items() if shape.record.table != table
            }

    def _column(self, name: str, value: Any, type_name: str | None, *, of_key: bool) -> Column | None:
        if type_name is not None:
            known = self._typed(name, type_name)
        else:
            if value is None:
                return None
            known = inferred(name, value)
            self.inferred[name] = self._taken[name] = known.type
            self._said(f"column {name} of {self._out} is taken for {known.type}, by its first value")
        return Column(name, known.type, known.typmod, known.kind, of_key)

    def _typed(self, name: str, type_name: str) -> Column:
        """As a column of an input that has just this type, which knows more of it than its name says."""
        for records in self._inputs.values():
            for column in records[-1].columns if records else ():
                if column.type == type_name:
                    return column
        return declared(name, type_name, where=f"processor {self._processor}: column {name}")


def _check_name(name: object, where: str) -> None:
    """What no target's table can have would stop all of its flows. Raises BadRecordError."""
    if not isinstance(name, str) or not name:
        what = f"a column is named {name!r}" + ("" if isinstance(name, str) else ", which is no text")
    elif len(name.encode(errors="replace")) > NAME_BYTES:
        what = f"a column is named {name[:NAME_BYTES]!r}..., which is more than {NAME_BYTES} bytes"
    elif "\0" in name or _SURROGATE.search(name):
        what = f"a column is named {name!r}, with characters that no text in Postgres has"
    elif name.startswith(OWN_PREFIX):
        what = f"a column is named {name!r}, and {OWN_PREFIX}* is Tailrace's own"
    else:
        return
    raise BadRecordError(what, where=where, fix="give the row columns with names that a table can have")


def whole(shape: Shape, key: Row, after: Row) -> Row:
    """The row with every column, the key's included. Raises BadRecordError."""
    for name, value in key.items():
        if isinstance(value, float) and not isfinite(value):
            raise BadRecordError(
                f"its key has {name} = {value}",
                where=f"derived table {shape.record.table}",
                fix="give the row a key with values that are equal to themselves",
            )
        if after.get(name, value) != value:
            raise BadRecordError(
                f"its key says {name} = {value!r}, and the row {after[name]!r}",
                where=f"derived table {shape.record.table}",
                fix="give the row the values of its key, or leave them out",
            )
    if after.keys() != shape.names or not key.keys() <= after.keys():
        given = {**after, **key}
        after = {name: given.get(name) for name in (c.name for c in shape.record.columns)}
    return _fitted(shape, after)


def _fitted(shape: Shape, row: Row) -> Row:
    """Raises BadRecordError."""
    kinds, where = shape.kinds, shape.record.table
    changed: Row = {}
    for name, value in row.items():
        kind = kinds.get(name, "text")
        if not is_plain(kind, value):
            form = fitted(kind, value, f"{where}.{name}")
            is_json = kind == "json" and not isinstance(value, str)
            changed[name] = dumps(form).decode() if is_json else form
    return {**row, **changed} if changed else row


def event(
    shape: Shape,
    key: Row,
    after: Row | None,
    before: Row | None,
    op: str | None,
    template: RowTemplate,
) -> bytes:
    """The value of a derived event."""
    if after is None:
        return template.delete(dumps(_fitted(shape, key if before is None else before)), 0, 0)
    row = dumps(whole(shape, key, after))
    if op == "u" or (op is None and before is not None):
        return template.update(b"null" if before is None else dumps(_fitted(shape, before)), row, 0, 0)
    return template.create(row, 0, 0)
