"""What a helper knows of its inputs' columns, as far as events have told it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from consumers.processors.context import Change, Given, Row
from streamer.changes.schema import SchemaRecord
from streamer.errors import BadRecordError

BIGINT = "bigint"  # stands for the kind of its columns: their sums are numeric, in Postgres as here
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Inputs:
    """`given.schemas` may grow while the processor runs: it is asked anew."""

    def __init__(self, given: Given) -> None:
        self._given = given
        self._kinds: dict[str, Mapping[str, str]] = {}

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
        """Column -> kind, or BIGINT; empty while its schema is not known."""
        found = self._kinds.get(change.schema_id)
        if found is None:
            record = self.record(change)
            if record is None:
                return _NOTHING
            found = self._kinds[change.schema_id] = {
                column.name: BIGINT if column.type == BIGINT else column.kind for column in record.columns
            }
        return found

    def no_column(self, column: str, row: Row) -> BadRecordError:
        return BadRecordError(
            f"the row has no column {column!r}; it has {', '.join(row)}",
            where=f"processor {self._given.processor}",
            fix="correct the column's name in the processor, then `tailrace dead-letters retry`",
        )


def canonical(value: object, kind: str) -> object:
    """A value as it stands in a group's key: equal values have one form, which is of the column's kind."""
    if kind == "numeric" and isinstance(value, str) and "." in value:
        plain = value.rstrip("0").rstrip(".")
        return "0" if plain in ("-0", "") else plain
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def comparable(value: object, kind: str) -> object:
    """A value as it stands in a join's key: equal numbers have one form, whatever their columns' types."""
    plain = canonical(value, kind)
    if kind == "numeric" and isinstance(plain, str) and "." not in plain and plain not in NOT_FINITE:
        return int(plain)
    return plain
