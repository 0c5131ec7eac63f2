"""How a row becomes a key's value: hash, JSON text, or a member of a zset or set. Pure.

Owns names of keys and the text forms of values (docs/targets.md). A plan is made once for a flow, a table and
a schema record; what it says of a row is what the scripts write. Knows nothing of versions but their bytes.

    hash   a field a column; null is no field. Text as it is, numbers in digits, true and false, JSON else
    json   one JSON object, every column in it
    zset   the member and its score; a row whose score is null is not in the set
    set    the member
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isnan
from struct import Struct
from typing import Any, NamedTuple

from orjson import dumps

from consumers.apply.fold import Version
from consumers.apply.mapping import MappedColumn, soft_column
from consumers.apply.mapping import Mapping as Columns
from consumers.targets.memory_table import time_text
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Flow
from streamer.config.key_template import KeyTemplate, joined, parse_template
from streamer.errors import ConfigError

SCORE_KINDS = ("number", "float", "numeric", "money")
NULL_KEY, BAD_SCORE = "null_key", "bad_score"
# An event without a place in the row's key has one of its own under `write: append`: key@epoch.lsn.ordinal.
EVENT_MARK = b"@"

Arg = str | bytes | int
_VERSION = Struct(">IQQ")
VERSION_BYTES = _VERSION.size
pack_version = _VERSION.pack

_tuple = tuple.__new__  # of a NamedTuple: half the price of its constructor, and this is a hot path


class Unfit(Exception):
    """A row that has no place in Redis; `code` is the reason's name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Named(NamedTuple):
    """A row's key in Redis, its member, and the name of its version's record."""

    key: str
    member: str
    field: str


def packed(version: Version) -> bytes:
    return pack_version(*version)


def unpacked(text: bytes) -> Version:
    """`text`: VERSION_BYTES of it."""
    epoch, lsn, ordinal = _VERSION.unpack(text)
    return epoch, lsn, ordinal


def text_of(value: Any) -> str:
    """A value that is not null, as a hash's field or a part of a key has it."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    if kind is int:
        return str(value)
    if kind is bool:
        return "true" if value else "false"
    return dumps(value).decode()


@dataclass(frozen=True, slots=True)
class Space:
    """What the names of the target's own state begin with."""

    own: str = "_tailrace:"

    def key(self, name: str) -> str:
        return self.own + name


ONE_SERVER, CLUSTER = Space(), Space("_tailrace:{state}:")  # all of it in one slot


@dataclass(frozen=True, slots=True)
class Names:
    """Where Redis keeps what of one table of one flow; on a cluster, of its rows in the slot of `tag`."""

    flow: str
    schema: str
    table: str
    tag: str = ""

    @property
    def name(self) -> str:
        return _table_name(self.flow, self.schema, self.table)

    def _key(self, kind: str) -> str:
        return f"_tailrace:{kind}:{{{self.tag}}}:{self.name}" if self.tag else f"_tailrace:{kind}:{self.name}"

    @property
    def rows(self) -> str:
        return self._key("rows")

    @property
    def gone(self) -> str:
        return self._key("gone")

    @property
    def rereads(self) -> str:
        return self._key("rereads")


@lru_cache(maxsize=10_000)  # a cluster asks for one some 16,384 times in turn
def _table_name(flow: str, schema: str, table: str) -> str:
    return dumps([flow, schema, table]).decode()


def layout_of(flow: Flow) -> str:
    return flow.as_ or "hash"


def key_template(flow: Flow, schema: str, table: str, key: Sequence[str]) -> KeyTemplate:
    """`key`: the target's names of the key's columns. Raises ConfigError."""
    if flow.key is not None:
        return parse_template(flow.key)
    if layout_of(flow) in ("zset", "set"):
        return joined(f"{schema}:{table}", ())
    return joined(f"{schema}:{table}:", key)


def key_prefix(flow: Flow, schema: str, table: str) -> str:
    """What every key of the table begins with, without a look at its columns."""
    return key_template(flow, schema, table, ()).prefix


def soft_mark(flow: Flow, at_us: int) -> list[str]:
    """The column of `delete: soft(column)` and a time, as a row has them; empty without one."""
    column = soft_column(flow)
    if column is None:
        return []
    pair = column, time_text(at_us)
    return [dumps(part).decode() for part in pair] if layout_of(flow) == "json" else list(pair)


class Plan:
    """For one flow, table and schema record. `named`, `whole`, `part` raise Unfit and add nothing then."""

    def __init__(self, flow: Flow, schema: str, table: str, columns: Columns) -> None:
        self.flow = flow
        self.layout = layout_of(flow)
        self.names = Names(flow.name, schema, table)
        self.columns = columns
        where = f"flow {flow.name!r}, table {columns.record.schema}.{columns.record.table}"
        known = {column.name: column for column in columns.columns}
        self._template = key_template(flow, schema, table, columns.key_columns)
        self._member = _member_template(flow)
        self.has_members = self._member is not None
        self._check(known, where)
        self._prefix = self._template.prefix
        self._key_parts = [_part(known[name]) for name in self._template.names]
        self._member_parts = [_part(known[name]) for name in self._member.names] if self._member else []
        self._sourced = [(c.column.name, c.name) for c in columns.columns if c.column is not None]
        self._constants = {c.name: c.value for c in columns.columns if c.column is None}
        self._fields = [
            part
            for name, value in self._constants.items()
            if value is not None
            for part in (name, text_of(value))
        ]
        self._only = self._only_part()
        self._score: tuple[str | None, Any] = (
            _part(known[flow.score]) if flow.score is not None else (None, None)
        )

    def _check(self, known: Mapping[str, MappedColumn], where: str) -> None:
        flow, key = self.flow, self.columns.key_columns
        if not key and flow.write != "append":
            raise ConfigError(
                "the table has no key, and a row of Redis is found by its key",
                where=where,
                fix="give the source's table a primary key, or write: append for a key of each event's own",
            )
        cast = next((column.name for column in self.columns.columns if column.cast), None)
        if cast is not None:
            raise ConfigError(
                f"`columns` casts {cast!r}, and Redis keeps text",
                where=where,
                fix="remove `cast`: docs/targets.md has the text of each type",
            )
        used = [*self._template.names, *(self._member.names if self._member else ())]
        for name in [*used, *([flow.score] if flow.score is not None else [])]:
            if name not in known:
                what = f"`key`, `member` or `score` names {name!r}, which is no column of the target's"
                raise ConfigError(what, where=where, fix=f"it has: {', '.join(sorted(known))}")
        loose = next((n for n in used if known[n].column is not None and not known[n].key), None)
        if loose is not None:
            raise ConfigError(
                f"{loose!r} is not of the row's key ({', '.join(key) or 'it has none'}): when it changes, the"
                " row would have two keys in Redis",
                where=where,
                fix="name columns of the key, or constants",
            )
        missing = [name for name in key if name not in used]
        if missing:
            raise ConfigError(
                f"two rows could have one place in Redis: {missing[0]!r} of the row's key is not in it",
                where=where,
                fix=f"add {{{missing[0]}}} to `{'member' if self._member else 'key'}`",
            )
        if flow.score is not None:
            column = known[flow.score].column
            if column is not None and column.kind not in SCORE_KINDS:
                what = f"the score's column {flow.score!r} is {column.type}, which is no number"
                raise ConfigError(what, where=where, fix="name a column of numbers as `score`")

    def _only_part(self) -> str | None:
        """The source's column that is the record's name by itself, as of most tables."""
        if self._member is not None or self.flow.write == "append" or len(self._key_parts) != 1:
            return None
        return self._key_parts[0][0] if self._template.literals[1] == "" else None

    @property
    def templates(self) -> tuple[KeyTemplate, KeyTemplate | None]:
        """Of the row's key, and of its member."""
        return self._template, self._member

    # Of a row

    def named(self, row: Mapping[str, Any], event_key: bytes) -> Named:
        """`event_key`: the Kafka key; under `write: append` its mark is the event's own."""
        if self._only is not None and (value := row.get(self._only)) is not None:
            tail = value if type(value) is str else text_of(value)
            return _tuple(Named, (self._prefix + tail, "", tail))
        tail = self._template.tail(_values(self._key_parts, row)) if self._key_parts else "".join(
            self._template.literals[1:]
        )  # fmt: skip
        if self.flow.write == "append":
            tail += event_key[event_key.rindex(EVENT_MARK) :].decode()
        if self._member is None:
            return Named(self._prefix + tail, "", tail)
        member = self._member.prefix + self._member.tail(_values(self._member_parts, row))
        return Named(self._prefix + tail, member, f"{len(tail.encode())}:{tail}{member}")

    def whole(self, row: Mapping[str, Any], values: list[str]) -> list[str]:
        """Adds what a row with all its values is; gives the names of fields that it does not have."""
        if self.layout == "hash":
            return self._hash(row, values)
        if self.layout == "json":
            found = {to: row.get(name) for name, to in self._sourced}
            found |= self._constants
            if self.columns.soft_delete is not None:
                found[self.columns.soft_delete] = None
            values.append(dumps(found).decode())
        elif self.layout == "zset" and (score := self._score_of(row)) is not None:
            values.append(score)
        return []

    def _hash(self, row: Mapping[str, Any], values: list[str]) -> list[str]:
        nulls = []
        values += self._fields
        get, append = row.get, values.append
        for name, to in self._sourced:
            value = get(name)
            kind = type(value)
            if kind is str:
                append(to)
                append(value)  # type: ignore[arg-type]
            elif value is None:
                nulls.append(to)
            else:
                append(to)
                append(str(value) if kind is int else text_of(value))
        if self.columns.soft_delete is not None:
            nulls.append(self.columns.soft_delete)
        return nulls

    def part(self, row: Mapping[str, Any], values: list[str]) -> list[str]:
        """The same of the values that an event has, to be written over the row that is there."""
        if self.layout == "set":
            return []
        if self.layout == "zset":
            source = self._score[0]
            if source is not None and row.get(source, UNAVAILABLE) == UNAVAILABLE:
                return []
            score = self._score_of(row)
            if score is None:
                return [""]
            values.append(score)
            return []
        given = {to: row[n] for n, to in self._sourced if row.get(n, UNAVAILABLE) != UNAVAILABLE}
        given |= self._constants
        if self.layout == "json":
            values += [dumps(part).decode() for item in given.items() for part in item]
            return []
        values += [part for n, v in given.items() if v is not None for part in (n, text_of(v))]
        return [name for name, value in given.items() if value is None]

    def soft(self, at_us: int) -> list[str]:
        """What a delete that keeps the row writes."""
        return soft_mark(self.flow, at_us)

    def _score_of(self, row: Mapping[str, Any]) -> str | None:
        source, constant = self._score
        value = constant if source is None else row.get(source)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if isnan(number):
            raise Unfit(BAD_SCORE, f"the score {str(value)[:40]!r} is no number that a zset can hold")
        return str(value if type(value) is int else number)


def _member_template(flow: Flow) -> KeyTemplate | None:
    if flow.member is None:
        return None
    template = parse_template(flow.member)
    return template if template.names else joined("", (flow.member,))


def _part(column: MappedColumn) -> tuple[str | None, Any]:
    """(the source's column, None), or (None, a constant)."""
    return (None, column.value) if column.column is None else (column.column.name, None)


def _values(parts: Sequence[tuple[str | None, Any]], row: Mapping[str, Any]) -> list[str]:
    found = []
    for source, constant in parts:
        value = constant if source is None else row.get(source)
        if value is None:
            raise Unfit(NULL_KEY, f"the key's column {source!r} is null")
        found.append(value if type(value) is str else text_of(value))
    return found
