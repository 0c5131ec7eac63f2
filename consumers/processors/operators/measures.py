"""What is measured of a group: count, sum, average, minimum, maximum, top N. Pure.

A measure takes a value out of a row (hop 0), and adds it to or takes it out of a group's state (hop 1). Sums
are exact, so that what is taken back leaves nothing behind: whole numbers and numerics as integers with their
scales counted (the sum has the largest that is left, as Postgres prints it), floats as fractions, rounded
once when they are shown. Minimum, maximum and top N read an index of the group's values, in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from math import copysign
from typing import Any, Protocol

from orjson import dumps, loads

from consumers.processors.context import Row, Table
from consumers.processors.operators.equality import NOT_FINITE, REAL
from consumers.processors.operators.inputs import BIGINT
from consumers.processors.operators.ordering import descending, sortable
from streamer.errors import BadRecordError, ConfigError

_MINUS_ZERO = "-0"  # in a state: how many values are
TOP_LIMIT = 1000  # rows of one JSON value, made anew at each change of the group

State = dict[str, Any]  # JSON
Kinds = Mapping[str, str]  # column -> kind, as Inputs gives them


class Measure(Protocol):
    def columns(self) -> Sequence[str]:
        """What it reads of an input's row."""

    def type(self, types: Mapping[str, str]) -> str | None:
        """Of the derived column, None: not known yet; `types`: of the input's columns, as Postgres says."""

    def take(self, row: Row, kinds: Kinds) -> Any:
        """The row's contribution, as JSON; None: it counts for nothing."""

    def add(self, state: State, taken: Any, entry: Entry) -> None: ...

    def remove(self, state: State, taken: Any, entry: Entry) -> None: ...

    def result(self, state: State, entry: Entry) -> Any: ...


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a measure indexes a group's values: its table, the group's prefix, whose value it is."""

    table: Table
    group: bytes
    contributor: bytes = b""

    def key(self, order: bytes) -> bytes:
        return self.group + b"\x00" + order + b"\x00" + self.contributor


@dataclass(frozen=True, slots=True)
class Count:
    """count(*), or count(column): the rows in which it is not null."""

    column: str | None = None

    def columns(self) -> Sequence[str]:
        return () if self.column is None else (self.column,)

    def type(self, types: Mapping[str, str]) -> str:
        return "bigint"

    def take(self, row: Row, kinds: Kinds) -> Any:
        return None if self.column is not None and row[self.column] is None else 1

    def add(self, state: State, taken: Any, entry: Entry) -> None:
        state["n"] = state.get("n", 0) + 1

    def remove(self, state: State, taken: Any, entry: Entry) -> None:
        state["n"] -= 1

    def result(self, state: State, entry: Entry) -> Any:
        return state.get("n", 0)


@dataclass(frozen=True, slots=True)
class Sum:
    """sum(column); null when no row has a value. `declared`: the derived column's type."""

    column: str
    declared: str | None = None

    def columns(self) -> Sequence[str]:
        return (self.column,)

    def type(self, types: Mapping[str, str]) -> str | None:
        given = types.get(self.column)
        if self.declared is not None or given is None:
            return self.declared
        if given in ("smallint", "integer"):
            return "bigint"
        return given if given in ("real", "double precision", "money", "interval") else "numeric"

    def take(self, row: Row, kinds: Kinds) -> Any:
        value = row[self.column]
        if value is None:
            return None
        kind = kinds.get(self.column) or _kind_by_form(value)
        if kind not in ("number", BIGINT, "numeric", "float", REAL, "money"):
            raise BadRecordError(
                f"column {self.column} is no number: a value of {kind} cannot be summed",
                fix="sum a column of numbers",
            )
        return ["float" if kind == REAL else kind, value]

    def add(self, state: State, taken: Any, entry: Entry) -> None:
        self._count(state, taken, 1)

    def remove(self, state: State, taken: Any, entry: Entry) -> None:
        self._count(state, taken, -1)

    def _count(self, state: State, taken: Any, sign: int) -> None:
        kind, value = taken
        state["n"] = state.get("n", 0) + sign
        if sign > 0:
            state["kind"] = kind
        if value in NOT_FINITE:
            state[value] = state.get(value, 0) + sign
        elif kind == "float":
            total = Fraction(state.get("floats", "0")) + sign * Fraction(value)
            state["floats"] = str(total)
            if value == 0 and copysign(1, value) < 0:
                state[_MINUS_ZERO] = state.get(_MINUS_ZERO, 0) + sign
        else:
            _add_exact(state, value, sign)

    def result(self, state: State, entry: Entry) -> Any:
        if not state.get("n"):
            return None
        if (endless := _not_finite(state)) is not None:
            return endless
        if state["kind"] == "float" or state.get("floats", "0") != "0":
            # A sum is -0 where all of its values are.
            return -0.0 if state.get(_MINUS_ZERO) == state["n"] else _rounded(_total(state))
        text = _exact(state)
        return int(text) if state["kind"] == "number" else text


@dataclass(frozen=True, slots=True)
class Average(Sum):
    """avg(column) as a double precision number, rounded once from the exact quotient."""

    def type(self, types: Mapping[str, str]) -> str:
        return "double precision"

    def result(self, state: State, entry: Entry) -> Any:
        if not state.get("n"):
            return None
        if (endless := _not_finite(state)) is not None:
            return endless
        return _rounded(_total(state) / state["n"])


class Indexed:
    """What a group's values in order are needed for. Taken: [bytes that sort, as hex; what is read back]."""

    __slots__ = ()

    def add(self, state: State, taken: Any, entry: Entry) -> None:
        entry.table.put(entry.key(bytes.fromhex(taken[0])), dumps(taken[1]))

    def remove(self, state: State, taken: Any, entry: Entry) -> None:
        entry.table.delete(entry.key(bytes.fromhex(taken[0])))


@dataclass(frozen=True, slots=True)
class Extreme(Indexed):
    """min(column) or max(column), nulls left out; text by code point, as COLLATE "C" sorts."""

    column: str
    greatest: bool

    def columns(self) -> Sequence[str]:
        return (self.column,)

    def type(self, types: Mapping[str, str]) -> str | None:
        return types.get(self.column)

    def take(self, row: Row, kinds: Kinds) -> Any:
        order = _order(row, self.column, kinds)
        return None if order is None else [order.hex(), row[self.column]]

    def result(self, state: State, entry: Entry) -> Any:
        for _, value in entry.table.scan(entry.group + b"\x00", reverse=self.greatest):
            return loads(value)
        return None


@dataclass(frozen=True, slots=True)
class Top(Indexed):
    """The `n` rows with the greatest (or least) values of `column`, as a JSON array of their `take` columns.

    Rows of one value stand in the order of their keys (see `among_equals`).
    """

    n: int
    column: str
    taken: tuple[str, ...]
    least: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.n <= TOP_LIMIT:
            raise ConfigError(f"top({self.n}, ...): 1 to {TOP_LIMIT} rows", fix="ask for fewer rows")

    def columns(self) -> Sequence[str]:
        return (self.column, *self.taken)

    def type(self, types: Mapping[str, str]) -> str:
        return "jsonb"

    def take(self, row: Row, kinds: Kinds) -> Any:
        order = _order(row, self.column, kinds)
        if order is None:
            return None
        shown = {column: row[column] for column in self.taken or (self.column,)}
        return [(order if self.least else descending(order)).hex(), shown]

    @staticmethod
    def among_equals(taken: Any, key: Row, kinds: Kinds) -> Any:
        """What `take` gave, of the row with this key. A type without an order is ordered as its JSON is."""
        if taken is None:
            return None
        ranks = (_rank(value, kinds.get(name) or _kind_by_form(value)) for name, value in key.items())
        return [taken[0] + (b"\x00" + b"\x00".join(ranks)).hex(), taken[1]]

    def result(self, state: State, entry: Entry) -> Any:
        first = islice(entry.table.scan(entry.group + b"\x00"), self.n)
        return dumps([loads(value) for _, value in first]).decode()


def _order(row: Row, column: str, kinds: Kinds) -> bytes | None:
    """Where the column's value sorts; None: it is null."""
    value = row[column]
    if value is None:
        return None
    try:
        return sortable(value, kinds.get(column) or _kind_by_form(value))
    except BadRecordError as error:
        raise BadRecordError(f"column {column}: {error.what}", fix=error.fix) from None


def _rank(value: Any, kind: str) -> bytes:
    try:
        return sortable(value, kind)
    except BadRecordError:
        return b"\x60" + dumps(value)


def _kind_by_form(value: Any) -> str:
    """Of a column whose schema is not known: as JSON shows it."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "number"
    if isinstance(value, float):
        return "float"
    if isinstance(value, str):
        return "text"
    return "json"


def _not_finite(state: State) -> str | None:
    """What the sum is when not all of its values are numbers."""
    nan, above, below = (state.get(name, 0) for name in NOT_FINITE)
    if nan or (above and below):
        return "NaN"
    if above or below:
        return "Infinity" if above else "-Infinity"
    return None


def _rounded(total: Fraction) -> float | str:
    """Once, as IEEE 754 rounds: what is beyond the range is infinite until values that make it so are gone.

    Refused, it could never be mended: the group would pass through the same sum again at each retry.
    """
    try:
        return float(total)
    except OverflowError:
        return "Infinity" if total > 0 else "-Infinity"


def _total(state: State) -> Fraction:
    """Floats and exact numbers stand side by side after an ALTER of the column's type."""
    return Fraction(state.get("floats", "0")) + Fraction(_exact(state))


def _add_exact(state: State, value: int | str, sign: int) -> None:
    """`sum` counts units of the largest scale ever seen; `scales`: how many values there are of each."""
    whole, _, fraction = str(value).partition(".")
    scale, largest = len(fraction), state.get("scale", 0)
    units, total = int(whole + fraction), int(state.get("sum", "0"))
    if scale > largest:
        total *= 10 ** (scale - largest)
        largest = scale
    state["sum"] = str(total + sign * units * 10 ** (largest - scale))
    state["scale"] = largest
    scales = state.setdefault("scales", {})
    left = scales.get(str(scale), 0) + sign
    if left:
        scales[str(scale)] = left
    else:
        del scales[str(scale)]


def _exact(state: State) -> str:
    """With the largest scale of the values that are there; what is cut off is zeros."""
    units, scale = int(state.get("sum", "0")), state.get("scale", 0)
    shown = max(map(int, state.get("scales", {})), default=0)
    units //= 10 ** (scale - shown)
    if shown == 0:
        return str(units)
    digits = str(abs(units)).rjust(shown + 1, "0")
    return f"{'-' if units < 0 else ''}{digits[:-shown]}.{digits[-shown:]}"
