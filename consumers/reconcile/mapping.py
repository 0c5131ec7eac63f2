"""What of a target's table is compared with what of the source's, as the flow means it. Pure.

Each column that apply writes is brought to one form with the source's (forms). What cannot be equal, or
cannot be compared, is said by name; a mode that makes a whole table another thing than a copy is an
`Incomparable`. A column is compared as it is sent, see `sent`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from consumers.apply.mapping import MappedColumn, map_columns
from consumers.reconcile.dialects.postgres import SqlColumn
from consumers.reconcile.fast import Collation, Pair
from consumers.reconcile.forms import Form, Held, forms, forms_without_types
from consumers.reconcile.forms import by_equality as forms_by_equality
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import Flow
from streamer.config.base import nearest
from streamer.errors import ConfigError

VERSION = ("_tailrace_epoch", "_tailrace_lsn", "_tailrace_ordinal")
# Types that two servers order alike whatever their settings.
_ORDERED = frozenset(
    {"smallint", "integer", "bigint", "oid", "numeric", "uuid", "date", "boolean", "bytea"}
    | {"timestamp without time zone", "timestamp with time zone", "time without time zone"}
)
_TEXTS = frozenset({"text", "character varying"})
_BINARY = frozenset({"C", "POSIX", "C.UTF-8", "C.utf8", "ucs_basic", "pg_c_utf8"})


class Incomparable(Exception):
    """The flow makes of this table what is no copy, or what cannot be compared; says why.

    `meant`: the flow says so itself, and nothing is left undone.
    """

    def __init__(self, why: str, *, meant: bool = False) -> None:
        super().__init__(why)
        self.meant = meant


@dataclass(frozen=True, slots=True)
class Target:
    """A target's table as it is there.

    `columns`: what they hold, None in a store without types; `unique`: the columns of each unique index.
    `signed_zero` false: the store has one zero only. `lacks`: why a column that apply maps is not there;
    `left_out`: why one that is there is not compared, by name.
    `needs`: the target's column without which a row has no place. `typed`: the store gives a value its own
    form, as a jsonb has it. `nullable`: columns that may be null, so that no range of a key has all rows.
    """

    columns: Mapping[str, Held | None]
    unique: Sequence[frozenset[str]] = ()
    signed_zero: bool = True
    lacks: str = "is not in the target yet: it comes with the next change"
    left_out: Mapping[str, str] = field(default_factory=dict)
    needs: str = ""
    typed: bool = True
    nullable: Collection[str] = ()


class Extras(Protocol):
    """Which rows of the target alone the source never had, though others may stay there."""

    def add(self, keys: Collection[tuple[str, ...]]) -> None:
        """Some rows of the target alone."""

    async def strangers(self) -> Collection[tuple[str, ...]]:
        """Of those added since it was asked last, what is proved not to be of the source's past."""


class Made(Protocol):
    """Compared columns that apply makes of a source's row. The target's side has them by itself."""

    @property
    def names(self) -> Sequence[str]:
        """They are the last of the compared ones."""

    @property
    def columns(self) -> Sequence[str]:
        """Of the source: what they are made of."""

    def of(self, printed: Sequence[str | None]) -> tuple[str, ...]:
        """Of the columns' values as a Postgres prints them."""

    def of_values(self, values: Sequence[Any]) -> tuple[str, ...]:
        """Of the columns' values as an event has them."""


@dataclass(slots=True)
class Compared:
    """`key`: the source's names. `constants`: name -> text. `beside`: columns of both tables that are not
    compared, and constants, which a condition may name: name -> the target's. `own`: the target's columns
    that tell the flow's rows in a table that it shares. `notes`: what is not compared, or not as written.
    `needs`: the source's column without which a row has no place in the target. `extras`: with `keeps_extra`,
    tells which rows of the target alone are drift all the same. `lets_go`: rows leave the target by
    themselves. `typed`: as Target's.
    """

    pairs: list[Pair]
    key: tuple[str, ...]
    soft: str | None
    constants: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    keeps_extra: bool = False
    extras: Extras | None = None
    needs: str = ""
    lets_go: bool = False
    typed: bool = True
    made: Made | None = None

    @property
    def columns(self) -> list[Pair]:
        """Those that are columns of the source, or constants."""
        names = self.made.names if self.made is not None else ()
        return [pair for pair in self.pairs if pair.name not in names]

    @property
    def key_pairs(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.name in self.key]


def compared_columns(
    flow: Flow, record: SchemaRecord, target: Target, only: Collection[str] = ()
) -> Compared:
    """`only`: the source's columns that are asked for; empty: all. Raises ConfigError, Incomparable."""
    check_copy(flow, record)
    _check_names(only, record)
    mapping = map_columns(flow, record, target.columns)
    found = Compared(
        [], tuple(c.column.name for c in mapping.columns if c.key and c.column), mapping.soft_delete
    )
    for mapped in mapping.columns:
        _add(found, mapped, target, flow)
    missing = [name for name in found.key if name not in {pair.name for pair in found.pairs}]
    if missing:
        raise Incomparable(f"the target's table lacks the key's column {missing[0]!r}")
    keys = {pair.target_name for pair in found.key_pairs}
    constants = {c.name for c in mapping.columns if c.column is None}
    shared = {name for index in target.unique if keys <= index <= keys | constants for name in index - keys}
    found.own = {name: text for name, text in found.constants.items() if name in shared}
    if flow.write == "insert_only":
        found.notes.append(
            "write: insert_only keeps a row as it was first seen: only its presence is compared"
        )
        only = found.key
    if only:
        found.pairs = [pair for pair in found.pairs if pair.name in {*only, *found.key}]
    compared = {pair.name for pair in found.pairs}
    found.beside = {name: there for name, there in found.beside.items() if name not in compared}
    found.keeps_extra = flow.delete == "ignore" or flow.truncate == "ignore"
    if found.keeps_extra:
        mode = "delete: ignore" if flow.delete == "ignore" else "truncate: ignore"
        found.notes.append(f"{mode} keeps rows that the source has no more: they are no drift")
    found.typed = target.typed
    found.lets_go = flow.ttl_s is not None
    if found.lets_go:
        found.notes.append("ttl lets rows go that nobody has changed: a missing row is no drift")
    return found


def check_copy(flow: Flow, record: SchemaRecord) -> None:
    """Raises Incomparable: the table is no copy, or its rows cannot be told apart."""
    if flow.write == "append":
        raise Incomparable("write: append keeps every change, which is a history and no copy", meant=True)
    if not record.key_columns:
        raise Incomparable(
            "it has no key, so that its rows cannot be told apart: give it one, or REPLICA IDENTITY FULL"
            " with a primary key"
        )


def _check_names(only: Collection[str], record: SchemaRecord) -> None:
    known = [column.name for column in record.columns]
    for name in only:
        if name not in known:
            raise ConfigError(
                f"--columns names {name!r}, which {record.schema}.{record.table} does not have",
                fix=nearest(name, known),
            )


def _add(found: Compared, mapped: MappedColumn, target: Target, flow: Flow) -> None:
    if mapped.name not in target.columns:
        found.notes.append(f"column {mapped.name!r} {target.lacks}")
        return
    if mapped.name in target.left_out:
        found.notes.append(f"column {mapped.name!r} {target.left_out[mapped.name]}")
        return
    there = target.columns[mapped.name]
    if mapped.column is None:
        _add_constant(found, mapped, there)
        return
    found.beside[mapped.column.name] = mapped.name
    name, source = mapped.column.name, sent(mapped.column)
    if mapped.name == target.needs:
        found.needs = name
    if mapped.cast is not None:
        if there is None:
            found.notes.append(f"column {mapped.name!r} is cast to {mapped.cast}, and is not compared")
            return
        by_digits = source.kind == "float" and there.kind == "numeric"  # as apply's: the server's own rounds
        ours = Form(there.kind, cast=there.type, via=mapped.cast, direct=not by_digits, sent=True)
        theirs = Form(there.kind)
    elif there is None:
        ours, theirs = forms_without_types(source, signed_zero=target.signed_zero)
    else:
        ours, theirs = forms(source, there)
        if not target.signed_zero:
            ours, theirs = replace(ours, signed_zero=False), replace(theirs, signed_zero=False)
    sql = quoted(name)
    pair = Pair(name, SqlColumn(sql, source, ours), SqlColumn(sql, there or source, theirs), mapped.name)
    found.pairs.append(pair)


def sent(column: Column) -> Held:
    """What the log carries of a source's column, which is what is compared: this is where it is said.

    Once a column can be masked, here it is of the kind and type that its mask has, and
    expressions.of_source gives the SQL of the mask in place of its name. One that is left out never comes
    here: the origin describes a table as it is published.
    """
    return Held(column.kind, column.type)


def _add_constant(found: Compared, mapped: MappedColumn, there: Held | None) -> None:
    """A constant goes by the target's name, which no column of the source has that is sent."""
    text = constant_text(mapped.value)
    if there is None or text is None or mapped.name in {pair.name for pair in found.pairs}:
        found.notes.append(f"column {mapped.name!r} is a constant, and is not compared")
        if text is not None:
            found.constants[mapped.name] = text
            found.beside.setdefault(mapped.name, mapped.name)
        return
    given = Held("text", "text")
    ours, theirs = forms(given, there)
    sql = quoted(mapped.name)
    found.constants[mapped.name] = text
    found.beside[mapped.name] = mapped.name
    found.pairs.append(
        Pair(mapped.name, SqlColumn(sql, given, ours), SqlColumn(sql, there, theirs), mapped.name)
    )


def constant_text(value: object) -> str | None:
    """As apply writes it; None where that depends on the target's type."""
    if value is None or isinstance(value, list | dict):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def without(compared: Compared, pair: Pair, why: str) -> None:
    compared.pairs.remove(pair)
    compared.beside[pair.name] = pair.target_name
    compared.notes.append(f"column {pair.name!r} is not compared: {why}")


def settled(pair: Pair, *, via: str | None, direct: bool) -> Pair:
    form = replace(pair.source.form, via=via, direct=direct)
    return Pair(pair.name, replace(pair.source, form=form), pair.target, pair.target_name)


def by_equality(pair: Pair) -> Pair:
    """Of a key that a query gives: the server has told its rows apart by it, and not by its texts."""
    ours = replace(pair.source, form=forms_by_equality(pair.source.form))
    theirs = replace(pair.target, form=forms_by_equality(pair.target.form))
    return Pair(pair.name, ours, theirs, pair.target_name)


def ordered_alike(
    compared: Compared,
    source: Mapping[str, Collation],
    target: Mapping[str, Collation] | None,
) -> bool:
    """Whether both stores order these keys alike, and by an index. `target` None: by the bytes of texts."""
    return all(_ordered(pair, source, target) for pair in compared.key_pairs)


def _ordered(pair: Pair, source: Mapping[str, Collation], target: Mapping[str, Collation] | None) -> bool:
    if pair.source.form.cast or pair.target.form.cast:
        return False
    ours, theirs = pair.source.held, pair.target.held
    here = source.get(pair.name)
    if target is None:
        if ours.base in _TEXTS:
            return here is not None and here.name in _BINARY
        return ours.kind == "number" or ours.base == "uuid"
    if ours.base in _TEXTS and theirs.base in _TEXTS:
        there = target.get(pair.target_name)
        return here is not None and here.deterministic and here == there
    if ours.kind == theirs.kind == "number":
        return True
    return ours.base == theirs.base and ours.base in _ORDERED
