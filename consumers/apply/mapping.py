"""How rows of one schema record become rows of a flow's table: names, constants, casts, key.

Pure. `columns:` of a flow renames (`id: customer_id`), casts (`{to, cast}`) or adds constants
(`tenant: {value: acme}`, the key is the target's column). A source column that `columns:` does not
name keeps its name; when the target's table has no such column, `unmapped:` decides: `add` it, `ignore`
the value, or `fail`. A table that is made by us and has `columns:` gets only those under `ignore`.
What the config names itself must have its column in a table that is there, unless `unmapped: add` makes it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from streamer.changes.schema import Column, SchemaRecord
from streamer.config import ColumnRule, Flow
from streamer.errors import ConfigError

SOFT = "soft("
OWN_PREFIX = "_tailrace"


@dataclass(frozen=True, slots=True)
class MappedColumn:
    """A column of the target's table. `column` None: the constant `value`, as the config has it."""

    name: str
    column: Column | None
    cast: str | None = None  # the target's type, where the config names one
    value: Any = None

    @property
    def key(self) -> bool:
        return self.column is not None and self.column.key


@dataclass(frozen=True, slots=True)
class Mapping:
    """For one flow and one schema record. `columns` are in the record's order, constants last."""

    flow: str
    record: SchemaRecord
    columns: tuple[MappedColumn, ...]
    soft_delete: str | None = None  # the target's column that a delete sets to its time

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The target's names of the key's columns; empty: a table without a key."""
        return tuple(column.name for column in self.columns if column.key)


def soft_column(flow: Flow) -> str | None:
    """The column of `delete: soft(column)`."""
    return flow.delete[len(SOFT) : -1].strip() if flow.delete.startswith(SOFT) else None


def map_columns(flow: Flow, record: SchemaRecord, present: Collection[str] | None) -> Mapping:
    """`present`: the columns that the target's table has; None: there is no such table yet.

    Raises ConfigError: a name that the source does not have, two columns to one, a key column without a
    place, an unmapped column under `unmapped: fail`, a name in `columns` that the target does not have.
    """
    where = f"flow {flow.name!r}, table {record.schema}.{record.table}"
    known = {column.name for column in record.columns}
    columns: list[MappedColumn] = []
    unplaced: list[str] = []
    for column in record.columns:
        rule = flow.columns.get(column.name)
        if isinstance(rule, ColumnRule) and "value" in rule.model_fields_set:
            continue  # the target's column of that name is the constant's
        if rule is not None:
            name, cast = (rule, None) if isinstance(rule, str) else (rule.to or column.name, rule.cast)
            columns.append(MappedColumn(name, column, cast))
        elif _has_place(flow, column, present):
            columns.append(MappedColumn(column.name, column))
        else:
            unplaced.append(column.name)
    constants = [
        MappedColumn(name, None, rule.cast, rule.value)
        for name, rule in flow.columns.items()
        if isinstance(rule, ColumnRule) and "value" in rule.model_fields_set
    ]
    constant_names = {column.name for column in constants}
    for name in flow.columns:
        if name not in known and name not in constant_names:
            near = get_close_matches(name, sorted(known), n=1)
            raise ConfigError(
                f"`columns` names {name!r}, which the source's table does not have",
                where=where,
                fix=f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted(known))}",
            )
    _check(flow, columns + constants, unplaced, record, where)
    if present is not None and flow.unmapped != "add":
        _check_present(flow, columns + constants, present, where)
    return Mapping(flow.name, record, tuple(columns + constants), soft_column(flow))


def _has_place(flow: Flow, column: Column, present: Collection[str] | None) -> bool:
    if flow.unmapped == "add" or column.key:
        return True
    if present is None:
        return not flow.columns
    return column.name in present


def _check(
    flow: Flow, columns: list[MappedColumn], unplaced: list[str], record: SchemaRecord, where: str
) -> None:
    seen: set[str] = set()
    soft = soft_column(flow)
    for column in columns:
        if not isinstance(column.name, str) or not column.name or "\0" in column.name:
            raise ConfigError(
                f"the rows have a column named {column.name!r}, which no table can have",
                where=where,
                fix="mend what writes the rows, and give the column a name there",
            )
        if column.name.startswith(OWN_PREFIX):
            raise ConfigError(
                f"a column goes to the target's {column.name!r}, and {OWN_PREFIX}* is Tailrace's own",
                where=where,
                fix="give it another name under `columns`",
            )
        if column.name == soft:
            raise ConfigError(
                f"the source's rows have a column that goes to {soft!r}, where delete: soft({soft}) keeps"
                " the time of a delete",
                where=where,
                fix="name another column in soft(), or give that one another name under `columns`",
            )
        if column.name in seen:
            raise ConfigError(
                f"two columns go to the target's {column.name!r}",
                where=where,
                fix="give one of them another name under `columns`",
            )
        seen.add(column.name)
    lost = [c.name for c in record.columns if c.key and not any(m.column is c for m in columns)]
    if lost:
        raise ConfigError(
            f"the key's column {lost[0]!r} is replaced by a constant",
            where=where,
            fix="give the constant another column's name: a row is found by its key",
        )
    if unplaced and flow.unmapped == "fail":
        raise ConfigError(
            f"the target's table has no column for: {', '.join(unplaced)}",
            where=where,
            fix="add the columns to the target's table, name them under `columns`, or write unmapped: ignore",
        )


def _check_present(flow: Flow, columns: list[MappedColumn], present: Collection[str], where: str) -> None:
    wanted = [
        column.name for column in columns if column.column is None or column.column.name in flow.columns
    ]
    wanted += [column.name for column in columns if column.key]
    wanted += [soft for soft in [soft_column(flow)] if soft is not None]
    missing = [name for name in dict.fromkeys(wanted) if name not in present]
    if missing:
        near = get_close_matches(missing[0], sorted(present), n=1)
        raise ConfigError(
            f"the target's table has no column {missing[0]!r}",
            where=where,
            fix=(f"did you mean {near[0]!r}? " if near else "")
            + "Add it to the target's table, correct the flow, or write unmapped: add",
        )
