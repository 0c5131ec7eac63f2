"""The canonical texts of a row as an event has it, in the form that it is compared in. Pure.

For sources that have no SQL: what a Postgres would cast is cast here, as far as it has one spelling; what is
not is taken out of the comparison by name (`uncast`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation
from math import isfinite, isnan
from typing import Any

from consumers.reconcile.canonical import canonical_of, float_text
from consumers.reconcile.dialects.postgres import INVALID, SqlColumn
from consumers.reconcile.fast import Pair
from consumers.reconcile.forms import Held
from consumers.reconcile.jsonb import jsonb_text
from consumers.reconcile.mapping import Compared
from consumers.reconcile.sides.base import Key
from streamer.changes.fitting import ALIASES

Text = Callable[[Any], str | None]  # a value as an event has it -> its text in the compared form
Texts = tuple[str | None, ...]

_NUMERIC = re.compile(r"numeric(?:\((\d+)(?:,\s*(-?\d+))?\))?").fullmatch
_NUMBERS = ("number", "numeric")
_INFINITE = ("-Infinity", "Infinity")
_EXACT = Context(prec=150_000, rounding=ROUND_HALF_UP)  # a numeric has 147,455 digits
_SHORT = {**ALIASES, "dec": "numeric"}
_RANGES = {"smallint": 2**15, "integer": 2**31, "bigint": 2**63}


class EventTexts:
    """Of one table's rows. `pairs` without a constant are columns of the source."""

    def __init__(self, compared: Compared) -> None:
        self.names = [pair.name for pair in compared.pairs]
        self._needs = compared.needs
        self._made = compared.made
        self._columns: list[tuple[str, Text]] = []
        for pair in compared.columns:
            if pair.name in compared.constants:
                self._columns.append((pair.name, _constant(compared.constants[pair.name])))
            else:
                text = text_of(pair, typed=compared.typed)
                assert text is not None, pair.name  # else it was taken out
                self._columns.append((pair.name, text))
        self._key = [self.names.index(pair.name) for pair in compared.key_pairs]

    def of(self, row: Mapping[str, Any]) -> tuple[Key, Texts] | None:
        """None: the target has no place for such a row."""
        if self._needs and row.get(self._needs) is None:
            return None
        texts = [text(row.get(name)) for name, text in self._columns]
        if self._made is not None:
            texts += self._made.of_values([row.get(name) for name in self._made.columns])
        key = tuple([texts[at] or "" for at in self._key])
        return key, tuple(texts)


def uncast(pairs: Sequence[Pair], *, typed: bool) -> list[Pair]:
    """Those that would need a Postgres."""
    return [pair for pair in pairs if text_of(pair, typed=typed) is None]


def text_of(pair: Pair, *, typed: bool) -> Text | None:
    """None: it would need a Postgres. `typed`: as mapping.Target has it."""
    source, target = pair.source, pair.target
    if source.form.cast is not None:
        return _cast(source.held, source.form.via, source.form.cast)
    kind = source.form.kind
    if kind == "json" and typed and target.held.base == "jsonb":
        return _or_invalid(jsonb_text)
    if kind == "float" and not _signed_zero(source, target):
        return lambda value: None if value is None else _bits(float(value) + 0.0)
    if kind != source.held.kind:
        return None
    return _canonical(kind)


def _canonical(kind: str) -> Text:
    text = canonical_of(kind)
    return lambda value: None if value is None else text(value)


def _constant(text: str) -> Text:
    return lambda _: text


def _signed_zero(source: SqlColumn, target: SqlColumn) -> bool:
    return source.form.signed_zero and target.form.signed_zero


def _cast(held: Held, via: str | None, cast: str) -> Text | None:
    if via is not None and _plain(via) != cast:
        return _twice(held, _plain(via), cast)
    if cast == "double precision" and held.kind in (*_NUMBERS, "float"):
        return lambda value: None if value is None else _bits(float(value))
    if cast == "json" and held.kind == "json":
        return _canonical("json")
    if cast in _RANGES and held.kind == "number":
        return _canonical("number")
    if held.kind in (*_NUMBERS, "float") and (found := _NUMERIC(cast)):
        scale = _scale(found)
        digits = _digits if held.kind == "float" else str
        return lambda value: None if value is None else _scaled(digits(value), scale)
    if cast in ("text", "character varying"):
        return _canonical(held.kind)
    return None


def _plain(name: str) -> str:
    """A type's name as catalogues have it, of those that are cast here."""
    base, bracket, typmod = " ".join(name.lower().split()).partition("(")
    return f"{_SHORT.get(base.strip(), base.strip())}{bracket}{typmod.replace(' ', '')}"


def _twice(held: Held, via: str, cast: str) -> Text | None:
    """By way of a flow's cast that holds less than the column, or more."""
    first, then = _cast(held, None, via), _NUMERIC(cast)
    if first is None or not _NUMERIC(via) or then is None:
        return None
    scale = _scale(then)

    def text(value: Any) -> str | None:
        made = first(value)
        return None if made is None else _scaled(made, scale)

    return text


def _scale(numeric: re.Match[str]) -> int | None:
    return None if numeric[1] is None else int(numeric[2] or 0)


def _digits(value: Any) -> str:
    """Of a double: the shortest that are read as it, as a numeric prints them."""
    if type(value) is str:  # no number, or an infinity
        return value
    number = Decimal(repr(float(value))).normalize()
    return format(number, "f") if number else "0"


def _scaled(text: str, scale: int | None) -> str:
    """As a numeric of this scale prints it: half is rounded away from zero."""
    if scale is None or text in ("NaN", "Infinity", "-Infinity"):
        return text
    try:
        number = _EXACT.quantize(Decimal(text), Decimal(1).scaleb(-scale))
    except InvalidOperation:  # more digits than a numeric has
        return text
    return format(number if number else abs(number), "f")


def _bits(number: float) -> str:
    return float_text("NaN" if isnan(number) else number if isfinite(number) else _INFINITE[number > 0])


def _or_invalid(text: Callable[[str], str]) -> Text:
    """What the target's server refuses stays visible, as there."""

    def made(value: Any) -> str | None:
        if value is None:
            return None
        try:
            return text(value)
        except ValueError:
            return f"{INVALID}{value}"

    return made
