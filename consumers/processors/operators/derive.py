"""One input row to no, one or several derived rows: map, filter, rename, flatten, explode, route. Pure.

Where the derived key holds the key of the only input's row, nobody else can say that row, and it is emitted
at once. Else the row goes to the hop of its derived key, which settles who says it (see contributors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orjson import dumps, loads

from consumers.processors.context import Change, Context, Given, Hop, Input, Row
from consumers.processors.fitting import kept
from consumers.processors.names import routed_table
from consumers.processors.operators.contributors import Contributors, contribution, place_of, rank_of
from consumers.processors.operators.documents import elements, members, value_of
from consumers.processors.operators.equality import same
from consumers.processors.operators.inputs import Inputs
from consumers.processors.operators.keys import Keys
from consumers.processors.operators.rows import Turn, contributor_of
from streamer.errors import BadRecordError, ConfigError

Body = Callable[[Row], Row | Iterable[Row] | None]
Types = Callable[[Mapping[str, str]], Mapping[str, str]]  # of the input's columns -> of the derived ones

ROWS_LIMIT = 10_000  # of one input row: they are one unit, and one note


@dataclass(frozen=True, slots=True)
class Derive:
    """The definition that `map_`, `filter_` and the others give. It has to give the same for the same row."""

    body: Body
    types: Types | None = None
    declared: Mapping[str, str] = field(default_factory=dict)
    table: Callable[[Row], str] | None = None  # of a router: which table a derived row goes to
    reads: Sequence[str] = ()  # columns that it names: one that is not there is a slip

    def columns(self, given: Given) -> Mapping[str, str]:
        inherited = Inputs(given).types
        types = inherited if self.types is None else self.types(inherited)
        return {**types, **self.declared}

    def hops(self, given: Given) -> Sequence[Hop]:
        if self.table is not None and given.key:
            raise ConfigError(
                "a router keeps the key of its input",
                where=f"processors.{given.processor}.key",
                fix="leave `key` out, or give the rows their key in a processor before it",
            )
        own = _Derived(self, given)
        return (own, Contributors()) if given.key or given.several else (own,)


class _Derived:
    """Hop 0."""

    def __init__(self, derive: Derive, given: Given) -> None:
        self._body = derive.body
        self._table = derive.table
        self._reads = derive.reads
        self._inputs = Inputs(given)
        self._keys = Keys(given, derive.columns)
        self._key = given.key
        self._is_only = not given.several
        self._out = given.out
        self._where = f"processor {given.processor}"

    def handle(self, record: Input, context: Context) -> None:
        change = self._inputs.change(record)
        if change is None:
            return
        turn = Turn(change, context)
        before: dict[str, Row] = turn.own or {}
        after = {}
        if turn.now is not None:
            self._inputs.expect(self._reads, turn.now, change.topic)
            after = self._rows(turn.copy(), change)
        alone = self._is_only and (not self._key or set(change.key) <= set(self._key))
        for place in {**before, **after}:
            old, new = before.get(place), after.get(place)
            table, key = self._split(place)
            if alone:
                if not same(old, new):
                    context.emit(loads(key), new, before=old, table=table)
            else:
                rank, again = rank_of(change, self._inputs.topics), change.op == "r"
                said = contribution(contributor_of(change), rank, new, again=again)
                context.forward(place_of(key.encode(), table), said)  # also what is the same: it changed last
        if turn.now is not None:
            turn.note(after)

    def _split(self, place: str) -> tuple[str | None, str]:
        if self._table is None:
            return None, place
        table, _, key = place.rpartition("\x00")
        return table, key

    def _rows(self, row: Row, change: Change) -> dict[str, Row]:
        """(table and) derived key -> derived row."""
        made = self._body(row)
        if made is None:
            return {}
        rows = [dict(made)] if isinstance(made, Mapping) else [dict(row) for row in made]
        if len(rows) > ROWS_LIMIT:
            raise BadRecordError(
                f"the body made {len(rows):,} rows of one; the limit is {ROWS_LIMIT:,}",
                where=self._where,
                fix="make fewer rows of one input row",
            )
        found: dict[str, Row] = {}
        for derived in rows:
            key = self._key_of(derived, change)
            place = dumps(key).decode()
            if self._table is not None:
                value = self._table(derived)
                routed_table(value, self._out)  # said of the row before anything is made of it
                place = f"{value}\x00{place}"
            if place in found:
                raise BadRecordError(
                    f"the body made two rows with the key {place}",
                    where=self._where,
                    fix="name more columns in the processor's `key:`, or make one row of them",
                )
            found[place] = kept({**derived, **key} if self._key else derived, self._where)
        return found

    def _key_of(self, derived: Row, change: Change) -> Row:
        names: Iterable[str] = self._key or change.key
        missing = [name for name in names if derived.get(name) is None]
        if missing:
            raise BadRecordError(
                f"the derived row has no {missing[0]!r}, which is of its key",
                where=self._where,
                fix="let the body return it, or name the derived row's own key columns in `key:`",
            )
        if self._key:
            key = self._keys.formed({name: derived[name] for name in names}, change)
            self._keys.is_own(key, change)
            return key
        for name, value in change.key.items():
            if derived[name] != value:
                raise self._keys.changed(name)
        return change.key


def renamed(columns: Mapping[str, str], drop: Iterable[str]) -> tuple[Body, Types]:
    gone = frozenset(drop)

    def body(row: Row) -> Row:
        rest = {name: value for name, value in row.items() if name not in gone}
        found = {columns.get(name, name): value for name, value in rest.items()}
        if len(found) < len(rest):
            name = next(to for of, to in columns.items() if of in rest and to in rest and to not in columns)
            raise BadRecordError(
                f"{name} would be two columns: the row has one of that name",
                fix=f"rename that one, too, or leave it out, drop=[{name!r}]; then `tailrace dead-letters"
                " retry`",
            )
        return found

    def types(given: Mapping[str, str]) -> Mapping[str, str]:
        return {columns.get(name, name): type_ for name, type_ in given.items() if name not in gone}

    return body, types


def expanded(separator: str, only: Sequence[str] | None, kinds: Mapping[str, str]) -> Body:
    """Objects in JSON columns become columns of their own; an array stays JSON.

    `kinds`: of declared columns.
    """

    def spread(name: str, raw: bytes, found: Row) -> None:
        inner = members(raw) if raw[:1] == b"{" and name not in kinds else None
        if inner is not None:
            for member, value in inner.items():
                spread(f"{name}{separator}{member}", value, found)
            return
        if name in found:
            raise BadRecordError(
                f"{name} would be two columns: one is of the row, or of another object in it",
                fix="write expand(.., separator='__'), or name the columns to expand",
            )
        found[name] = (
            raw.decode() if raw[:1] == b"[" and name not in kinds else value_of(raw, name, kinds.get(name))
        )

    def body(row: Row) -> Row:
        objects: dict[str, Mapping[str, bytes]] = {}
        for name, value in row.items():
            if isinstance(value, str) and value.startswith("{") and (only is None or name in only):
                inner = members(value)  # json and jsonb come as texts that hold JSON
                if inner is not None:
                    objects[name] = inner
        found = {name: value for name, value in row.items() if name not in objects}
        for name, inner in objects.items():
            for member, raw in inner.items():
                spread(f"{name}{separator}{member}", raw, found)
        return found

    return body


def exploded(column: str, position: str, value: str, prefix: str, kinds: Mapping[str, str]) -> Body:
    """A row an element of the array in a JSON column (or of an array column), counted from 0.

    `kinds`: of declared columns.
    """

    def named(element: Any) -> Row:
        if not isinstance(element, bytes):
            return {value: element}  # of an array column
        inner = members(element) if element[:1] == b"{" else None
        if inner is None:
            return {value: value_of(element, value, kinds.get(value))}
        names = {member: prefix + member for member in inner}
        return {name: value_of(inner[member], name, kinds.get(name)) for member, name in names.items()}

    def body(row: Row) -> list[Row]:
        if column not in row:
            raise BadRecordError(
                f"the row has no column {column!r}; it has {', '.join(row)}", fix="correct the column's name"
            )
        held = row[column]
        try:
            found = elements(held) if isinstance(held, str) and held != "null" else held
        except BadRecordError as error:
            raise BadRecordError(f"column {column}: {error.what}", fix=error.fix) from None
        rest = {name: value for name, value in row.items() if name != column}
        if position in rest:
            raise _twice(position, "the row has a column of that name", 'position="number"')
        rows = []
        for number, element in enumerate(found if isinstance(found, list) else ()):
            made = named(element)
            for name in made:
                if name in rest or name == position:
                    raise _twice(name, f"the element {number} has it, and so has the row", 'prefix="line_"')
            rows.append({**rest, position: number, **made})
        return rows

    return body


def _twice(name: str, why: str, option: str) -> BadRecordError:
    return BadRecordError(
        f"{name} would be two columns: {why}",
        fix=f"write explode(.., {option}), then `tailrace dead-letters retry`",
    )
