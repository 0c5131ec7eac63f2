"""GROUP BY, kept live: aggregate(by=["customer_id"], revenue=sum_("total"), orders=count()). Pure.

Hop 0 turns a change of an input row into what its old group loses and its new one gains; hop 1 keeps the
groups. A group without rows is deleted. Rows whose group has a null in it are left out: a derived row is
found by its key, and no key has nulls.

    forwarded   key: the group; value: [contributor, lost | null, gained | null]
    table "group"     group -> {"n": rows, "m": [state of each measure], "row": as emitted last}
    table "index<i>"  of the i-th measure, where it needs its values in order
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orjson import dumps, loads

from consumers.processors.context import Change, Context, Forwarded, Given, Hop, Input, Row
from consumers.processors.operators.equality import canonical, same
from consumers.processors.operators.inputs import Inputs
from consumers.processors.operators.measures import Entry, Measure, Top
from consumers.processors.operators.rows import Turn, contributor_of
from streamer.errors import BadRecordError, ConfigError

GROUP = "group"
INDEX = "index"

Groups = Callable[[Row], Sequence[Row]]  # the groups that a row belongs to


@dataclass(frozen=True, slots=True)
class Aggregate:
    """The definition that `aggregate` and `window` give."""

    by: Mapping[str, str]  # derived column -> input column
    measures: Mapping[str, Measure]
    where: Callable[[Row], bool] | None = None
    spread: Groups | None = None  # further columns of the group, none or several a row
    spread_columns: Mapping[str, str] = field(default_factory=dict)  # derived column -> input column
    spread_type: Callable[[str], str] = str  # of such a column, by that of the input's

    def __post_init__(self) -> None:
        """Raises ConfigError: its groups have no key, or a column has two meanings."""
        if not self.key():
            raise ConfigError(
                "`by` names no column: the derived row would have no key",
                where="aggregate(by=[], ..)",
                fix="group by a column; for one row of all, by one that `map_` gives the same in each row, in"
                " a processor before this one",
            )
        twice = [name for name in self.measures if name in self.key()]
        twice += [name for name in self.by if name in self.spread_columns]
        if twice:
            raise ConfigError(
                f"{twice[0]} would be two columns of the derived table: of its key, and another one",
                where=f"{twice[0]}=..",
                fix="give one of them another name: by={'name': 'column'}, start='name', or the measure's",
            )

    def columns(self, given: Given) -> Mapping[str, str]:
        known = Inputs(given).types
        types: dict[str, str] = {}
        for name, column in self.by.items():
            if (type_ := known.get(column)) is not None:
                types[name] = type_
        for name, column in self.spread_columns.items():
            if (type_ := known.get(column)) is not None:
                types[name] = self.spread_type(type_)
        for name, measure in self.measures.items():
            if (type_ := measure.type(known)) is not None:
                types[name] = type_
        return types

    def key(self) -> tuple[str, ...]:
        return (*self.by, *self.spread_columns)

    def hops(self, given: Given) -> Sequence[Hop]:
        if given.key and set(given.key) != set(self.key()):
            raise ConfigError(
                f"`key` is {', '.join(given.key)}, and the rows are one a group of {', '.join(self.key())}",
                where=f"processors.{given.processor}.key",
                fix=f"write key: [{', '.join(self.key())}], or leave `key` out",
            )
        return (_Contributions(self, Inputs(given)), _Groups(self))


class _Contributions:
    """Hop 0."""

    def __init__(self, aggregate: Aggregate, inputs: Inputs) -> None:
        self._of = aggregate
        self._inputs = inputs
        self._tops = [number for number, of in enumerate(aggregate.measures.values()) if isinstance(of, Top)]

    def handle(self, record: Input, context: Context) -> None:
        change = self._inputs.change(record)
        if change is None:
            return
        turn = Turn(change, context)
        lost: dict[str, list[Any]] = turn.own or {}
        gained = {} if turn.now is None else self._of_row(turn, turn.now, change)
        contributor = contributor_of(change)
        for group in {**lost, **gained}:
            before, after = lost.get(group), gained.get(group)
            if not same(before, after):
                context.forward(group.encode(), dumps([contributor, before, after]))
        if turn.now is not None:
            turn.note(gained)

    def _of_row(self, turn: Turn, row: Row, change: Change) -> dict[str, list[Any]]:
        """Group -> the contribution of each measure."""
        of = self._of
        if of.where is not None and not of.where(turn.copy()):
            return {}
        kinds = self._inputs.kinds(change)
        try:
            named = {name: _shown(row, column, kinds) for name, column in of.by.items()}
            taken = [measure.take(row, kinds) for measure in of.measures.values()]
            for number in self._tops:
                taken[number] = Top.among_equals(taken[number], change.key, kinds)
            further = ({},) if of.spread is None else of.spread(row)
        except KeyError as error:
            raise self._inputs.no_column(str(error.args[0]), row) from None
        if None in named.values():
            return {}
        return {dumps({**named, **group}).decode(): taken for group in further}


def _shown(row: Row, column: str, kinds: Mapping[str, str]) -> Any:
    """The column's value in the group's key."""
    value = row[column]
    try:
        return canonical(value, kinds.get(column, ""), "by")
    except BadRecordError as error:
        raise BadRecordError(f"column {column}: {error.what}", fix=error.fix) from None


class _Groups:
    """Hop 1."""

    def __init__(self, aggregate: Aggregate) -> None:
        self._names = tuple(aggregate.measures)
        self._measures = tuple(aggregate.measures.values())

    def handle(self, record: Input, context: Context) -> None:
        assert isinstance(record, Forwarded)
        contributor, lost, gained = loads(record.value)
        groups = context.table(GROUP)
        noted = groups.get(record.key)
        group: dict[str, Any] = {"n": 0, "m": [{} for _ in self._measures], "row": None}
        if noted is not None:
            group = loads(noted)
        entries = [
            Entry(context.table(f"{INDEX}{number}"), record.key, contributor.encode())
            for number in range(len(self._measures))
        ]
        for taken, sign in ((lost, -1), (gained, 1)):
            if taken is None:
                continue
            group["n"] += sign
            for measure, state, value, entry in zip(self._measures, group["m"], taken, entries, strict=True):
                if value is not None:
                    (measure.add if sign > 0 else measure.remove)(state, value, entry)
        before = group["row"]
        if group["n"] <= 0:
            groups.delete(record.key)
            if before is not None:
                context.emit(loads(record.key), None, before=before)
            return
        row = loads(record.key)
        for name, measure, state, entry in zip(self._names, self._measures, group["m"], entries, strict=True):
            row[name] = measure.result(state, entry)
        group["row"] = row
        groups.put(record.key, dumps(group))
        if not same(row, before):
            context.emit(loads(record.key), row, before=before)
