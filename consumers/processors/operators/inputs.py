"""What a helper knows of its inputs' columns and keys, as far as events have told it. Pure.

The kind of a column is that of streamer.changes.kinds, but where its type says more than its form does:

    bigint, real    in the place of number, float
    json            jsonb is jsonb, which has an equality
    text            char(n) is bpchar, citext is citext, inet and cidr are inet, an enum "type mood": only
                    of text, varchar, name, uuid and macaddr is the text all that there is to say
    array:<kind>    as its elements
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from consumers.processors.context import Change, Given, Input, Row
from consumers.processors.operators.equality import REAL
from streamer.changes.kinds import ARRAY
from streamer.changes.schema import Column, SchemaRecord
from streamer.errors import BadRecordError

log = logging.getLogger(__name__)

BIGINT = "bigint"  # stands for the kind of its columns: their sums are numeric, in Postgres as here
JSONB = "jsonb"
_NOTHING: Mapping[str, str] = MappingProxyType({})
_TEXTS: Final = frozenset(
    ("text", "character varying", "name", '"char"', "uuid", "macaddr", "macaddr8", "varchar", "")
)
_SPECIAL: Final = {"inet": "inet", "cidr": "inet", "character": "bpchar", "bpchar": "bpchar"}


class Inputs:
    """`given.schemas` may grow while the processor runs: it is asked anew."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._kinds: dict[str, Mapping[str, str]] = {}

    @property
    def topics(self) -> tuple[str, ...]:
        return self._given.inputs

    @property
    def types(self) -> Mapping[str, str]:
        """Column -> type, of the inputs' newest records; the first input's where two have a column."""
        found: dict[str, str] = {}
        for topic in self._given.inputs:
            for name, type_ in self.types_of(topic).items():
                found.setdefault(name, type_)
        return found

    def types_of(self, topic: str) -> Mapping[str, str]:
        records = self._given.schemas.get(topic)
        return {column.name: column.type for column in records[-1].columns} if records else _NOTHING

    def record(self, change: Change) -> SchemaRecord | None:
        for record in self._given.schemas.get(change.topic, ()):
            if record.id == change.schema_id:
                return record
        return None

    def kinds(self, change: Change) -> Mapping[str, str]:
        """Column -> kind, as above; empty while its schema is not known."""
        found = self._kinds.get(change.schema_id)
        if found is None:
            record = self.record(change)
            if record is None:
                return _NOTHING
            found = self._kinds[change.schema_id] = {
                column.name: kind_of(column) for column in record.columns
            }
        return found

    def change(self, record: Input) -> Change | None:
        """What hop 0 is given; None: it came before its table had a key.

        Raises BadRecordError: no key tells the row from its twins, so that an update, a truncate, or the
        row's coming again would count it once more.
        """
        assert isinstance(record, Change)
        if record.key:
            return record
        topic = record.topic
        schemas = self._given.schemas.get(topic)
        if schemas and schemas[-1].key_columns:
            self.doubt(
                f"{topic}: key",
                f"rows of {topic} that came before the table had its key are left out: have it read again"
                " with `tailrace backfill`",
            )
            return None
        raise BadRecordError(
            "the table has no key: an update, a truncate or a second copy of the row would be counted twice",
            where=topic,
            fix="give the table a primary key, or a unique index as its REPLICA IDENTITY, and have it read"
            " again with `tailrace backfill`; or take the topic out of the processor's `in`",
        )

    def expect(self, columns: Sequence[str], row: Row, topic: str) -> None:
        """A column that no row has yet may come; that a helper names one that never does is a doubt."""
        for column in columns:
            subject = f"{topic}: {column}"
            if column in row:
                if self._given.doubts:
                    self._given.doubts.pop(subject, None)
            elif column not in self.types_of(topic):
                has = ", ".join(row)
                self.doubt(subject, f"it names the column {column!r}, and rows of {topic} have {has}")

    def doubt(self, subject: str, what: str) -> None:
        """What no change is at fault for, once in the log, and in `status`."""
        if subject not in self._given.doubts:
            self._given.doubts[subject] = what
            log.warning("processor %s: %s", self._given.processor, what)

    def no_column(self, column: str, row: Row) -> BadRecordError:
        return BadRecordError(
            f"the row has no column {column!r}; it has {', '.join(row)}",
            where=f"processor {self._given.processor}",
            fix="correct the column's name in the processor, then `tailrace dead-letters retry`",
        )


def kind_of(column: Column) -> str:
    if column.kind.startswith(ARRAY):
        element = replace(column, type=column.type.removesuffix("[]"), kind=column.kind.removeprefix(ARRAY))
        return ARRAY + kind_of(element)
    base = column.type.partition("(")[0].strip()
    if base in (BIGINT, JSONB):
        return base
    if column.kind == "float":
        return REAL if base == REAL else "float"
    if column.kind != "text" or base in _TEXTS:
        return column.kind
    if base.rpartition(".")[2] == "citext":
        return "citext"
    return _SPECIAL.get(base) or f"type {base}"
