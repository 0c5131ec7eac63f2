"""How one version of a table's rows is written: values from events, and the statements for them.

Nothing is run here. Statements are Core's, but for rows, which the dialect puts by a Shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Boolean, bindparam, column, delete, func, literal_column, select, table, tuple_, update
from sqlalchemy.sql.expression import ColumnElement

from consumers.apply.fold import Write
from consumers.targets.sql_dialect import Dialect, Row, Shape
from consumers.targets.sql_tables import OP, VERSION, Fitted, history_where
from consumers.targets.sql_types import Encode, time_text
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Flow
from streamer.errors import BadRecordError


@dataclass(frozen=True, slots=True)
class Sent:
    """A column on its way. `source`: in the event's row; None: a constant."""

    name: str
    source: str | None
    key: bool
    not_null: bool
    encode: Encode


@dataclass(slots=True)
class Plan:
    """For one flow's table and one schema record. Made by `plan_for`."""

    dialect: Dialect
    flow: Flow
    fitted: Fitted
    columns: tuple[Sent, ...]
    shape: Shape
    texts: dict[Any, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.fitted.name

    @property
    def guards_in_row(self) -> bool:
        return self.flow.version == "columns"

    @property
    def key(self) -> tuple[Sent, ...]:
        """The columns that find a row, constants of the flow's own part of the table among them."""
        by_name = {sent.name: sent for sent in self.columns}
        return tuple(by_name[name] for name in self.fitted.conflict if name in by_name)

    # Values

    def rows(self, writes: Sequence[Write]) -> list[Row]:
        """In the order of the shape's columns. Raises BadRecordError."""
        values = self.values(self.columns, writes)
        if self.fitted.mapping.soft_delete:  # in a history a delete is a row, with its time
            times = (write.change for write in writes)
            values.append([time_text(c.commit_us) if c.op == "d" else None for c in times])
        if self.guards_in_row:
            values += versions_of(writes)
            if self.flow.write == "append":
                values.append([write.change.op for write in writes])
        return list(zip(*values, strict=True))

    def values(self, columns: Iterable[Sent], writes: Sequence[Write]) -> list[list[Any]]:
        """A list a column."""
        rows = [write.row for write in writes]
        found = []
        for sent in columns:
            name = sent.source
            given = rows if name is None else [row.get(name) for row in rows]
            try:
                values = sent.encode(given)
            except BadRecordError as error:
                raise BadRecordError(f"column {sent.name!r}: {error.what}", fix=error.fix) from None
            if sent.key and None in values:
                raise BadRecordError(f"column {sent.name!r} of the key is null")
            found.append(values)
        return found

    def keys(self, writes: Sequence[Write]) -> list[Row]:
        return list(zip(*self.values(self.key, writes), strict=True))

    # Statements; each has the values of the key last, then the version's where it is guarded

    def _text(self, key: Any, make: Callable[[], Any], names: Sequence[str]) -> str:
        known = self.texts.get(key)
        if known is None:
            compiled = make().compile(dialect=self.dialect.core)
            assert list(compiled.positiontup or ()) == list(names)
            known = self.texts[key] = str(compiled)
        return known

    def _at_key(self) -> tuple[list[ColumnElement[bool]], list[str]]:
        names = [f"k{n}" for n in range(len(self.key))]
        return [column(s.name) == bindparam(n) for s, n in zip(self.key, names, strict=True)], names

    def _not_newer(self) -> tuple[list[ColumnElement[bool]], list[str]]:
        if not self.guards_in_row:
            return [], []
        names = ["e", "l", "o"]
        sent = tuple_(*(bindparam(name) for name in names))
        return [tuple_(*(column(name) for name in VERSION)) <= sent], names

    def delete_sql(self) -> str:
        """A soft delete has its time, and the version to set, in front."""
        where, key = self._at_key()
        guard, version = self._not_newer()
        soft = self.fitted.mapping.soft_delete
        if soft is None:
            return self._text(
                "delete", lambda: delete(table(self.name)).where(*where, *guard), [*key, *version]
            )
        sets = [soft, *(VERSION if self.guards_in_row else ())]
        return self._set("soft", sets, where, key, guard, version)

    def patch_sql(self, columns: Sequence[str]) -> str:
        """Sets these columns, then the version."""
        where, key = self._at_key()
        guard, version = self._not_newer()
        sets = [*columns, *(VERSION if self.guards_in_row else ())]
        return self._set(("patch", *columns), sets, where, key, guard, version)

    def _set(
        self,
        name: Any,
        sets: Sequence[str],
        where: list[ColumnElement[bool]],
        key: list[str],
        guard: list[ColumnElement[bool]],
        version: list[str],
    ) -> str:
        into = table(self.name, *(column(each) for each in sets))
        names = [f"s{n}" for n in range(len(sets))]
        values: list[tuple[Any, Any]] = [
            (into.c[each], bindparam(n)) for each, n in zip(sets, names, strict=True)
        ]
        return self._text(
            name, lambda: update(into).ordered_values(*values).where(*where, *guard), [*names, *key, *version]
        )

    def find_sql(self, *columns: str) -> str:
        """These columns of the row of a key; none: whether it is there."""
        where, key = self._at_key()
        wanted: list[ColumnElement[Any]] = [column(name) for name in columns] or [literal_column("1")]
        query = select(*wanted).select_from(table(self.name)).where(*where)
        return self._text(("find", *columns), lambda: query, key)

    def remove_sql(self) -> str:
        """One of the rows that equal the values in every column (H27)."""
        names = [f"k{n}" for n in range(len(self.columns))]
        same = [column(s.name).is_(bindparam(n)) for s, n in zip(self.columns, names, strict=True)]
        rowid: ColumnElement[Any] = literal_column("_rowid_")
        one = (
            select(rowid)
            .select_from(table(self.name))
            .where(*same)
            .limit(literal_column("1"))
            .offset(literal_column("0"))
        )
        return self._text(
            "remove", lambda: delete(table(self.name)).where(rowid == one.scalar_subquery()), names
        )

    def below_sql(self, but: str = "") -> tuple[str, tuple[Any, ...]]:
        """What a floor takes: all rows of the flow's own part, those at or below it where they have
        versions. And the values of that part. A soft delete has its time in front; the floor comes last.
        `but`: a condition without values on rows that may go."""
        where, names, values = self._own_part()
        where += [literal_column(but, Boolean)] if but else []
        guard, version = self._not_newer()
        soft = self.fitted.mapping.soft_delete
        if soft is None:
            query = delete(table(self.name)).where(*where, *guard)
            return self._text(("below", but), lambda: query, [*names, *version]), values
        into = table(self.name, column(soft))
        marked = update(into).ordered_values((into.c[soft], bindparam("s0")))
        marks = marked.where(into.c[soft].is_(None), *where, *guard)
        return self._text(("below", but), lambda: marks, ["s0", *names, *version]), values

    def count_below_sql(self, but: str = "") -> tuple[str, tuple[Any, ...]]:
        """How many rows that is; the values of the flow's own part, the floor comes last."""
        where, names, values = self._own_part()
        where += [literal_column(but, Boolean)] if but else []
        guard, version = self._not_newer()
        soft = self.fitted.mapping.soft_delete
        live = [] if soft is None else [column(soft).is_(None)]
        query = select(func.count()).select_from(table(self.name)).where(*live, *where, *guard)
        return self._text(("count below", but), lambda: query, [*names, *version]), values

    def _own_part(self) -> tuple[list[ColumnElement[bool]], list[str], tuple[Any, ...]]:
        """Rows of the flow, where constants are part of the key: conditions, their names, their values."""
        fixed = [sent for sent in self.key if sent.source is None]
        names = [f"k{n}" for n in range(len(fixed))]
        where = [column(s.name) == bindparam(name) for s, name in zip(fixed, names, strict=True)]
        return where, names, tuple(sent.encode([None])[0] for sent in fixed)


def versions_of(writes: Sequence[Write]) -> list[list[Any]]:
    """Three columns."""
    return [list(part) for part in zip(*[write.change[3:6] for write in writes], strict=True)]


def plan_for(dialect: Dialect, flow: Flow, fitted: Fitted) -> Plan:
    mapping = fitted.mapping
    columns = tuple(
        Sent(
            mapped.name,
            mapped.column.name if mapped.column is not None else None,
            mapped.key and flow.write != "append",
            fitted.columns[mapped.name.lower()].not_null,
            fitted.stored[mapped.name].encode,
        )
        for mapped in mapping.columns
    )
    soft = [mapping.soft_delete] if mapping.soft_delete else []
    version = VERSION if flow.version == "columns" else ()
    history = flow.write == "append" and flow.version == "columns"
    names = [sent.name for sent in columns]
    replaces = [name for name in [*names, *soft] if name not in fitted.conflict]
    only_if_set = None
    if flow.write == "insert_only":
        only_if_set = mapping.soft_delete
        replaces = replaces if only_if_set else []
    shape = Shape(
        fitted.name,
        (*names, *soft, *version, *([OP] if history else [])),
        fitted.conflict,
        version,
        tuple(replaces),
        only_if_set,
        history_where(mapping) if history else None,
    )
    return Plan(dialect, flow, fitted, columns, shape)


def is_whole(write: Write) -> bool:
    return UNAVAILABLE not in write.row.values()
