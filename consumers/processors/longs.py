"""Long values of an input's rows, for updates that leave them out (unchanged TOAST). Pure.

Postgres moves values out of a row that is wider than 2 kB, and an UPDATE that does not touch one has a
placeholder for it in the log. So the long values of a row that may be so wide are kept with its note, and
stand in for the placeholders of the next event.

    an agent's note   0x01, {column: value} as JSON, NUL, "-" or "+" and what it noted itself
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orjson import dumps, loads

from consumers.processors.context import Change, Row
from streamer.changes.kinds import UNAVAILABLE
from streamer.errors import BadRecordError


class NotInLog(BadRecordError):
    """A value that an UPDATE left out of the log, of a row that was never seen whole: of a key's new row."""


NOT_IN_LOG = NotInLog.__name__  # the code that its key is parked with

LONG_CHARS = 24  # a TOAST pointer has 18 bytes: to move a shorter value out would gain nothing
ROW_CHARS = 250  # in all; as JSON a row of 2 kB has never fewer (a jsonb of one-digit numbers has an eighth)
_MARK = b"\x01"


def long_values(row: Row) -> dict[str, Any]:
    """What may be left out of the row's next event."""
    long = {
        column: value
        for column, value in row.items()
        if isinstance(value, str | list) and len(value) >= LONG_CHARS
    }
    chars = sum(len(value) for value in long.values())
    return long if chars >= ROW_CHARS or any(isinstance(value, list) for value in long.values()) else {}


def is_whole(row: Row | None) -> bool:
    """Whether its event left nothing out. None: a deleted row."""
    return row is None or UNAVAILABLE not in row.values()


def whole(change: Change, long: Mapping[str, Any]) -> Row | None:
    """The change's row with what its event left out; `long`: of the row before it under its key. Of a create
    that is another row (H6), which a truncate may have taken that has not been read yet. Raises NotInLog."""
    row = change.after
    if row is None or is_whole(row):
        return row
    found = dict(row)
    for column, value in row.items():
        if value != UNAVAILABLE:
            continue
        if column not in long or change.op == "c":
            raise NotInLog(
                f"the value of {column} is not in the log: an UPDATE left it as it was, and the row was"
                " never seen whole",
                where=change.topic,
                fix="nothing while its capture runs: the row is asked for from its source, and frees its key"
                " when it comes (see `tailrace backfills`)",
            )
        found[column] = long[column]
    return found


def with_long(own: bytes | None, long: dict[str, Any]) -> bytes:
    """An agent's note, with the row's long values in front."""
    return _MARK + dumps(long) + b"\x00" + (b"-" if own is None else b"+" + own)


def without_long(note: bytes | None) -> tuple[bytes | None, dict[str, Any]]:
    """(the agent's own note, the long values)"""
    if note is None or note[:1] != _MARK:
        return note, {}
    text, _, own = note[1:].partition(b"\x00")
    return (own[1:] if own[:1] == b"+" else None), loads(text)
