"""In which form two columns are compared, when their types or stores differ. Pure.

What is equal is said by docs/digest.md: a target's column holds what apply makes there of what the log
carries. So both sides are brought to one kind: that of the source where the target's store has no types of
its own, and that of the target where a Postgres has given a value its own type.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from streamer.changes.kinds import ARRAY

_TYPMOD = re.compile(r"\([0-9, -]+\)")
_TEXTS = frozenset({"text", "citext", "character varying"})
# A typmod of theirs that holds every value leaves it as it is; those of numeric and char(n) pad.
_ANY_TYPMOD = frozenset({"text", "bits", "time", "timetz", "timestamp", "timestamptz", "interval", "vector"})
_ONE_SPELLING = frozenset({"number", "bits"})  # whatever the type
# Types that spell a text anew; what a type of the user's own makes of one is not known here.
_RESPELLING = frozenset({"character", "cidr", "inet", "macaddr", "macaddr8", "uuid"})


@dataclass(frozen=True, slots=True)
class Form:
    """How one side's column is brought to canonical text.

    `kind`: of streamer.changes.kinds, the same on both sides but for texts. `cast`: the Postgres type that
    the value is brought to before, by way of `via`, a flow's `cast:`, which may hold less than the column.
    `direct`: by the server's own cast, as a flow's `cast:` is; else by way of text, and a text that is no
    value of the type stays visible as one. `sent`: the value is the source's:
    what the log does not carry of it (a NaN's payload) is not compared. `signed_zero` false: the other
    side's store has one zero only. `is_equal`: values that are equal have one text, so that a numeric 2.50
    is 2.5: a key of a query, which gives any of a group's.
    """

    kind: str
    cast: str | None = None
    via: str | None = None
    direct: bool = False
    sent: bool = False
    signed_zero: bool = True
    is_equal: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A column as its side holds it: kind and type as schema records have them (domains as their base)."""

    kind: str
    type: str

    @property
    def base(self) -> str:
        return _TYPMOD.sub("", self.type)


def forms_without_types(source: Held, *, signed_zero: bool = True) -> tuple[Form, Form]:
    """For a target that keeps the envelope's values: SQLite (one zero in a REAL), Redis, a log."""
    one = signed_zero or source.kind != "float"
    return Form(source.kind, sent=True, signed_zero=one), Form(source.kind, signed_zero=one)


def forms(source: Held, target: Held) -> tuple[Form, Form]:
    """For two Postgres, of the source's column and of the target's."""
    of_source, of_target = _forms(source, target)
    return replace(of_source, sent=True), of_target


def by_equality(form: Form) -> Form:
    return replace(form, signed_zero=False, is_equal=True)


def _forms(source: Held, target: Held) -> tuple[Form, Form]:
    kind = source.kind
    if source.type == target.type:
        return Form(kind), Form(kind)
    if target.base in _TEXTS:
        return _in_text(source)
    if kind == target.kind == "numeric" and target.type == "numeric":
        return Form(kind), Form(kind)
    if kind == target.kind and (
        kind in _ONE_SPELLING
        or (kind in _ANY_TYPMOD and source.base == target.base and source.base != "character")
    ):
        return Form(kind), Form(kind)
    if kind == target.kind == "text" and target.base not in _RESPELLING:
        return Form(kind), Form(kind)
    if kind == "float" and target.kind in ("float", "numeric"):
        return Form(kind), Form(kind, cast=None if target.kind == kind else "double precision")
    return Form(target.kind, cast=target.type), Form(target.kind)


def _in_text(source: Held) -> tuple[Form, Form]:
    """A text column holds the envelope's value as text; what has several spellings is read as a value."""
    kind = source.kind
    if kind == "float":
        return Form(kind), Form(kind, cast="double precision")
    if kind == "vector":
        return Form(kind), Form(kind, cast="real[]")
    if not kind.startswith(ARRAY):
        return Form(kind), Form("text")
    if kind == ARRAY + "float":
        return Form(kind), Form(kind, cast="double precision[]")
    if kind == ARRAY + "money":
        return Form(kind), Form(kind, cast="money[]")
    return Form(ARRAY + "text", cast="text[]"), Form(ARRAY + "text", cast="text[]")
