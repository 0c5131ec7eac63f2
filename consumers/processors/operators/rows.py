"""An input's rows as operators take them: whole, with what was made of the row before. Pure.

An operator's note of a row is [what it made of it, the row's long texts]. The first is what it takes back
when the row changes: so a body that is edited takes back what its former self made. The second stands in
where an update leaves a value out (unchanged TOAST); Postgres leaves no shorter text out than LONG_CHARS.

    note  [own, {column: long text}]
"""

from __future__ import annotations

from typing import Any

from orjson import dumps, loads

from consumers.processors.context import Change, Context, Row
from streamer.changes.kinds import UNAVAILABLE
from streamer.errors import BadRecordError

LONG_CHARS = 24  # a TOAST pointer has 18 bytes: to move a shorter value out would gain nothing


class Turn:
    """One change of an input row. `own`: what was noted, or None; `now`: the whole row, or None: deleted."""

    __slots__ = ("_context", "_long", "now", "own")

    def __init__(self, change: Change, context: Context) -> None:
        """Raises BadRecordError: a value is not in the log, and the row was never seen whole."""
        self._context = context
        self.own, self._long = (None, {}) if context.note is None else loads(context.note)
        self.now: Row | None = change.after
        if self.now is not None and UNAVAILABLE in self.now.values():
            self.now = self._whole(self.now, change)

    def _whole(self, row: Row, change: Change) -> Row:
        whole = dict(row)
        for column, value in row.items():
            if value != UNAVAILABLE:
                continue
            if column not in self._long:
                raise BadRecordError(
                    f"the value of {column} is not in the log: an UPDATE left it as it was, and the row was"
                    " never seen whole",
                    where=change.topic,
                    fix="have the row read again with `tailrace backfill SOURCE TABLE --keys FILE`, then"
                    " `tailrace dead-letters retry`",
                )
            whole[column] = self._long[column]
        return whole

    def note(self, own: Any) -> None:
        """What was made of `now`. A deleted row's note goes by itself."""
        assert self.now is not None
        long = {
            column: value
            for column, value in self.now.items()
            if isinstance(value, str | list) and len(value) >= LONG_CHARS
        }
        self._context.note = dumps([own, long])


def bytes_of(key: Row) -> bytes:
    """A key as topics and tables have it."""
    return dumps(key)
