"""Compared keys as events have them. Pure: the way back from canonical text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from struct import error as StructError
from struct import unpack
from typing import Any

from orjson import loads

from consumers.reconcile.canonical import canonical
from consumers.reconcile.sides.base import Key
from streamer.changes.kinds import encoder_for
from streamer.changes.schema import SchemaRecord
from streamer.errors import BadRecordError


def event_key(key: Key, kinds: Mapping[str, str], record: SchemaRecord) -> tuple[Any, ...] | None:
    """A compared key as an event has it, in the order of the table's columns; None: it has no such form."""
    values = {}
    for (name, kind), text in zip(kinds.items(), key, strict=True):
        try:
            values[name] = event_value(kind, text)
            if canonical(kind, values[name]) != text:
                return None
        except (ValueError, StructError, BadRecordError):
            return None
        if _holds_nul(values[name]):
            return None
    return tuple(values[column.name] for column in record.columns if column.key)


def _holds_nul(value: Any) -> bool:
    """No text of a PostgreSQL has it, and no statement takes it; stores of other kinds do."""
    if isinstance(value, str):
        return "\0" in value
    return isinstance(value, list) and any(map(_holds_nul, value))


def event_value(kind: str, text: str) -> Any:
    if kind != "float":
        return loads(encoder_for(kind)(text.encode()))
    (number,) = unpack(">d", bytes.fromhex(text.removeprefix("\\x")))
    if math.isnan(number):
        return "NaN"
    return number if math.isfinite(number) else "Infinity" if number > 0 else "-Infinity"
