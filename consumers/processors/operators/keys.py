"""The key of a derived row: its values in the one form that equal values have, and who can say the row. Pure.

A derived row is found by the bytes of its key: the numeric keys 1.0 and 1.00 are one row of a target, and so
they are one key. The row shows the same form. A row that holds the key of the only input's row is said by
nobody else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from consumers.processors.context import Change, Given, Row
from consumers.processors.fitting import Exact, fitted, kept
from consumers.processors.operators.equality import canonical
from consumers.processors.operators.inputs import kind_of
from consumers.processors.shapes import declared
from streamer.changes.schema import Column
from streamer.errors import BadRecordError

_BY_FIRST_VALUE: Final = ("number", "float", "numeric", "text")

Types = Callable[[Given], Mapping[str, str] | None]  # of derived columns, as a Definition says them


class Keys:
    """Of one processor. `columns`: what its config names, () for the input's."""

    def __init__(self, given: Given, types: Types, *, shared: bool = False) -> None:
        """`shared`: rows of several inputs are settled, whatever their keys hold."""
        self.columns = given.key
        self.shared = shared
        self.inputs = given.inputs
        self._given = given
        self._types = types
        self.where = f"processor {given.processor}"
        self._known: dict[str, Mapping[str, tuple[str, str]]] = {}

    def formed(self, key: Row, change: Change) -> Row:
        """The key in its one form. Raises BadRecordError: a value is of a type that has none."""
        kinds = self._kinds(change)
        found = {}
        for name, value in kept(key, self.where).items():
            if not self.columns and name in change.key:
                found[name] = value  # the input's key as it is
                continue
            kind, finer = kinds.get(name) or self._taken(name)
            try:
                found[name] = _formed(value, kind, finer, f"{self.where}: column {name}")
            except BadRecordError as error:
                if name not in change.key:
                    raise BadRecordError(
                        f"column {name}: {error.what}", where=self.where, fix=error.fix
                    ) from None
                found[name] = value  # a row has one text for it, its input's
        return found

    def is_own(self, key: Row, change: Change) -> bool:
        """Whether nobody else can say the row. Raises BadRecordError: the key has the input's columns, with
        other values."""
        if not change.key.keys() <= key.keys():
            return False
        own = self.formed(change.key, change)
        for name, value in own.items():
            if key[name] != value:
                raise self.changed(name)
        return not self.shared

    def changed(self, name: str) -> BadRecordError:
        return BadRecordError(
            f"the body changed {name!r}, which is of the key",
            where=self.where,
            fix="put what it makes into another column, and name that in `key:`",
        )

    def _taken(self, name: str) -> tuple[str, str]:
        """Of a column that nobody types: that of its first value, so that 5 and "5" are one key."""
        type_name = self._given.taken.get(name)
        kind = "" if type_name is None else declared(name, type_name).kind
        return (kind, kind) if kind in _BY_FIRST_VALUE else ("", "")

    def _kinds(self, change: Change) -> Mapping[str, tuple[str, str]]:
        """Derived column -> its kind, and as Inputs tells it; as far as is known."""
        known = self._known.get(change.schema_id)
        if known is None:
            columns = [column for records in self._given.schemas.values() for column in records[-1].columns]
            by_type = {column.type: column for column in columns}
            known = {}
            for name, type_name in (self._types(self._given) or {}).items():
                column: Column = by_type.get(type_name) or declared(name, type_name)
                known[name] = column.kind, kind_of(column)
            if change.schema_id:
                self._known[change.schema_id] = known
        return known


def _formed(value: Any, kind: str, finer: str, where: str) -> Any:
    if isinstance(value, Exact) and kind in ("", "numeric"):
        return Exact(canonical(str(value), "numeric", "key"))
    return canonical(fitted(kind, value, where) if kind else value, finer, "key")
