"""How rows of one schema record are written to one table: the statements, and the arrays they take.

Every write of a table with a key is guarded by the version: see postgres_statements.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from typing import Any

from consumers.apply.fold import Write
from consumers.targets import postgres_statements as statements
from consumers.targets.postgres_arrays import encoder_for, plain
from consumers.targets.postgres_catalog import ForeignKey, TargetColumn, TargetTable, UniqueIndex, quote
from consumers.targets.postgres_statements import Sent, Shape
from consumers.targets.postgres_tables import OP_COLUMN, Fitted, constant_sql
from streamer.changes.envelope import Change
from streamer.changes.kinds import decoder_for
from streamer.config import Flow

_NUMBERS = ("bool", "int2", "int4", "int8", "oid", "float4", "float8", "numeric")
_TIMES = ("date", "time", "timetz", "timestamp", "timestamptz", "interval")
_NATIVE = frozenset((*_NUMBERS, *_TIMES, "text", "varchar", "bpchar", "uuid", "json", "jsonb", "bytea"))
# Equal bytes when equal, so that a twin may be looked for by the value itself.
_EXACT = frozenset((*_NUMBERS[:5], "uuid", "date", "timestamp", "timestamptz", "bytea"))
_TEXTS = frozenset(("text", "varchar", "citext"))
_LIMIT = re.compile(r"\((\d+)\)")
_FOLLOWED = "cndr"  # a delete reaches the rows that refer to it, or is refused at once

Literals = list[str]


def versions(writes: Sequence[Write]) -> list[str]:
    """Epochs, commit LSNs and ordinals."""
    numbers = zip(*[write.change[3:6] for write in writes], strict=True)
    return ["{" + ",".join(map(str, part)) + "}" for part in numbers]


class Plan:
    """A table in the target for rows of one schema record.

    `silent`: the session has triggers and foreign keys off. `row_statements` write whole rows, one after
    the other, each with `literals(plan.columns, writes)`; `delete_sql` takes `delete_literals(writes)`.
    """

    def __init__(self, fitted: Fitted, flow: Flow, *, silent: bool) -> None:
        table = fitted.table
        self.text = table.text
        self.relation = table.relation
        self.place = (table.schema, table.name)
        self.version = flow.version
        self.first_stays = flow.write == "insert_only"
        self.parents = frozenset(key.parent for key in table.parents) - {self.place}
        shape = self._shape = _shape(fitted, flow, silent=silent)
        self.columns = list(shape.columns)
        self.key = [column for column in self.columns if column.key]
        self.sources = frozenset(column.source for column in self.columns)
        self.sends_all = self.sources >= {column.name for column in fitted.mapping.record.columns}
        self.upsert_sql = shape.upsert()
        self.row_statements = shape.rows()
        self.insert_sql = shape.upsert() if flow.write == "append" else shape.insert()
        self.delete_sql = shape.delete() if self.key and flow.write != "append" else ""
        tells = self.key and flow.write != "append" and flow.version != "none"
        self.versions_sql = shape.versions() if tells else ""
        self.below_sql = shape.below() if flow.write != "append" else ()
        self.count_below_sql = shape.count_below()
        self.given_keys_sql = shape.given_keys(1)
        self.remove_sql = shape.remove()
        moves = shape.write == "upsert" and bool(shape.moving) and bool(self.key)
        self.vacate_sql = shape.vacate() if moves and shape.vacated else None
        self.leave_sql = shape.leave() if moves else None
        self.moving = shape.moving
        self.soft = shape.soft is not None and flow.write != "append"
        # A row that was there before stands in the way of no count of what newer versions refused.
        self.counts = flow.version != "none" and flow.write == "upsert"
        self.deferrable = any(index.deferrable for index in table.unique) or any(
            key.deferrable for key in (*table.parents, *table.children)
        )
        # A deferrable unique constraint is checked by a trigger, which must not be off (it would not hold).
        self.armed = silent and any(index.deferrable for index in table.unique)
        self.sequences = tuple(
            (target.name, target.sequence, _indexed_first(table, target.name))
            for target in table.columns.values()
            if target.sequence is not None and any(c.name == target.name for c in self.columns)
        )
        self.tells_kept = False  # whether the rows' statement gives (written, kept by a newer version)
        self._patches: dict[frozenset[str], str] = {}

    def patch_sql(self, present: frozenset[str]) -> str:
        if present not in self._patches:
            self._patches[present] = self._shape.patch(self.patched(present))
        return self._patches[present]

    def after_patch(self, writes: Sequence[Write]) -> list[tuple[str, Literals]]:
        """Statements that go behind a patch of these rows, for tables where a row is several."""
        return []

    # Parameters

    def row_literals(self, writes: Sequence[Write]) -> Literals:
        """For `row_statements`."""
        return self.literals(self.columns, writes)

    def literals(self, columns: Sequence[Sent], writes: Sequence[Write]) -> Literals:
        """The arrays of `columns` and of the version, of so many writes."""
        rows = [write.row for write in writes]
        return [*(_array(column, rows, writes) for column in columns), *versions(writes)]

    async def literals_in_turns(self, columns: Sequence[Sent], writes: Sequence[Write]) -> Literals:
        """The same, with a turn of the event loop after each column: thousands of values take a while."""
        rows = [write.row for write in writes]
        found = []
        for column in columns:
            found.append(_array(column, rows, writes))
            await asyncio.sleep(0)
        found += versions(writes)
        return found

    def delete_literals(self, writes: Sequence[Write]) -> Literals:
        found = self.literals(self.key, writes)
        if self.soft:
            found.append(plain([write.change.commit_us for write in writes]))
        return found

    def key_literals(self, rows: Sequence[dict[str, Any]]) -> Literals:
        """Arrays of the key's columns, of rows by the source's names. Raises BadRecordError."""
        return [column.encode([row.get(column.source) for row in rows]) for column in self.key]

    def patched(self, present: frozenset[str]) -> list[Sent]:
        """`present`: the source's columns that the event has."""
        return [column for column in self.columns if column.source in present]

    def whole_row(self, write: Write) -> list[str | None]:
        """One row's values as text, for `remove_sql`."""
        row = write.row
        values = [row.get(column.source) for column in self.columns]
        return [
            None if value is None else column.decode(value)
            for column, value in zip(self.columns, values, strict=True)
        ]


def _array(column: Sent, rows: Sequence[dict[str, Any]], writes: Sequence[Write]) -> str:
    if column.of_change is not None:
        return column.encode([column.of_change(write.change) for write in writes])
    name = column.source
    try:
        return column.encode([row[name] for row in rows])
    except KeyError:
        return column.encode([row.get(name) for row in rows])


def _shape(fitted: Fitted, flow: Flow, *, silent: bool) -> Shape:
    table, mapping = fitted.table, fitted.mapping
    columns: list[Sent] = []
    constants: dict[str, str] = {}
    for mapped in mapping.columns:
        target = table.columns[mapped.name]
        if target.generated:
            continue
        if mapped.column is None:
            constants[mapped.name] = constant_sql(target, mapped.value)
            continue
        native = target.builtin and target.internal in _NATIVE and mapped.cast is None
        cast = "" if native else f"{fitted.casts.get(mapped.name, '')}::{target.type}"
        columns.append(
            Sent(
                mapped.name,
                mapped.column.name,
                target.type if native else "text",
                cast,
                encoder_for(mapped.column.kind),
                decoder_for(mapped.column.kind),
                target.builtin and target.internal in _EXACT and mapped.cast is None,
                target.not_null,
                mapped.key,
                target.identity != "a",
                target.internal in _TEXTS and _holds(target, statements.STAND_IN_LENGTH),
            )
        )
    if flow.write == "append":
        columns += _of_event(mapping.soft_delete, flow)
    taken = {c.name for c in columns} | constants.keys() | set(statements.VERSION)
    taken |= {mapping.soft_delete} if mapping.soft_delete else set()
    moving, vacated = _moving(table, columns, fitted.conflict)
    return Shape(
        relation=table.relation,
        columns=tuple(columns),
        constants=constants,
        conflict=fitted.conflict,
        soft=mapping.soft_delete,
        write=flow.write,
        version=flow.version,
        number=fitted.side,
        partitioned=bool(table.partitioned_by),
        kept=tuple(n for n, target in table.columns.items() if n not in taken and not target.generated),
        moving=moving,
        vacated=vacated,
        refusals=() if silent else tuple(map(_refusal, _followed(table.children))),
    )


def _of_event(soft: str | None, flow: Flow) -> list[Sent]:
    """Columns of a history that say what the event was."""

    def op(change: Change) -> str:
        return change.op

    def gone_us(change: Change) -> int | None:
        return change.commit_us if change.op == "d" else None

    text, number = encoder_for("text"), encoder_for("number")
    found = []
    if flow.version == "columns":
        decode = decoder_for("text")
        found.append(
            Sent(OP_COLUMN, OP_COLUMN, "text", "", text, decode, False, True, False, True, False, op)
        )
    if soft is not None:
        cast = " * interval '1 microsecond' + 'epoch'::timestamptz"
        decode = decoder_for("number")
        found.append(
            Sent(soft, soft, "bigint", cast, number, decode, False, False, False, True, False, gone_us)
        )
    return found


def _moving(
    table: TargetTable, columns: Sequence[Sent], conflict: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """Sent columns outside the key that another unique index hangs on, and identities that no UPDATE
    changes; of the first, those whose stand-ins free every index, or None."""
    by_name = {c.name: c for c in columns if not c.key}
    moving = {c.name for c in by_name.values() if not c.settable}
    vacated: set[str] | None = set()
    for index in table.unique:
        if index.deferrable or index.columns == frozenset(conflict):
            continue
        computed = any(table.columns[name].generated for name in index.depends)
        depends = [by_name[n] for n in by_name if computed or n in index.depends]
        if not depends:
            continue
        moving |= {c.name for c in depends}
        if vacated is not None:
            stand_in = _stand_in(index, [c for c in depends if c.name in index.columns])
            vacated = None if stand_in is None else vacated | {stand_in}
    return tuple(c.name for c in columns if c.name in moving), tuple(sorted(vacated)) if vacated else None


def _stand_in(index: UniqueIndex, columns: Sequence[Sent]) -> str | None:
    """The column of the index that can give way: to null, or to a text that nobody has."""
    if not index.nulls_equal:
        for column in columns:
            if not column.not_null and column.settable:
                return column.name
    for column in columns:
        if column.text and column.not_null:
            return column.name
    return None


def _holds(target: TargetColumn, length: int) -> bool:
    limit = _LIMIT.search(target.full_type)
    return limit is None or int(limit[1]) >= length


def _followed(children: Iterable[ForeignKey]) -> Iterable[ForeignKey]:
    return (key for key in children if key.on_delete in _FOLLOWED)


def _refusal(key: ForeignKey) -> tuple[str, str]:
    child = f"{quote(key.child[0])}.{quote(key.child[1])}"
    same = " AND ".join(
        f"f.{quote(one)} = t.{quote(other)}"
        for one, other in zip(key.child_columns, key.parent_columns, strict=True)
    )
    words = f"rows of {'.'.join(key.child)} refer to it by {key.name}, and are waited for"
    return f"EXISTS (SELECT FROM {child} f WHERE {same})", words.replace("'", "''")


def _indexed_first(table: TargetTable, name: str) -> bool:
    """Whether the column's highest value is found without reading the table."""
    return any(index.columns == {name} and index.whole for index in table.unique)
