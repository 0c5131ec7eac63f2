"""An input's rows as operators take them: whole, with what was made of the row before. Pure.

An operator's note of a row is [what it made of it, the row's long values]. The first is what it takes back
when the row changes: so a body that is edited takes back what its former self made. The second stands in
where an update leaves a value out (see longs).

    note  [own, {column: long value}]
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from orjson import dumps, loads

from consumers.processors.context import Change, Context, Row
from consumers.processors.longs import long_values, whole


class Turn:
    """One change of an input row. `own`: what was noted, or None; `now`: the whole row, or None: deleted.

    A user's function is given a `copy`: it may change its row in place, and what the next update leaves out
    is read from the note of this one.
    """

    __slots__ = ("_context", "now", "own")

    def __init__(self, change: Change, context: Context) -> None:
        """Raises BadRecordError: a value is not in the log, and the row was never seen whole."""
        self._context = context
        self.own, long = (None, {}) if context.note is None else loads(context.note)
        self.now = whole(change, long)

    def copy(self) -> Row:
        """Of `now`."""
        assert self.now is not None
        return deepcopy(self.now) if list in map(type, self.now.values()) else dict(self.now)

    def note(self, own: Any) -> None:
        """What was made of `now`. A deleted row's note goes by itself."""
        assert self.now is not None
        self._context.note = dumps([own, long_values(self.now)])


def key_of(change: Change) -> str:
    """The input row's key, as its topic has it."""
    return (change.raw_key or dumps(change.key)).decode()


def contributor_of(change: Change) -> str:
    """The input row among those of all inputs (see contributors)."""
    return f"{change.topic}/{key_of(change)}"
