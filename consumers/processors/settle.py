"""The rows of a row: what an agent's function gave for the row before, and gives no more, is deleted.

note   empty: one row, keyed as the input's; else [[key, table], ...]
"""

from __future__ import annotations

import orjson

from consumers.processors.context import Change, Forwarded, Row
from consumers.processors.operators.keys import Keys
from consumers.processors.shapes import dumps
from consumers.processors.unit import Unit

_SAME = b""


def settle(unit: Unit, record: Change | Forwarded, keys: Keys) -> None:
    """After the function: take back what it does not give any more, and note what it gives."""
    assert isinstance(record, Change), "a body is given changes"
    given = unit.rows
    is_same = len(given) == 1 and given[0][0] is record.key and given[0][1] is None
    if unit.note is not None and not (is_same and unit.note == _SAME):
        now = {_identity(key, table) for key, table in given}
        for key, table in _rows(unit.note, record):
            if _identity(key, table) not in now:
                unit.take_back(key, table, record, keys)
    unit.note = None if not given else _SAME if is_same else dumps(given)


def _rows(note: bytes, record: Change) -> list[tuple[Row, str | None]]:
    if note == _SAME:
        return [(record.key, None)]
    return [(key, table) for key, table in orjson.loads(note)]


def _identity(key: Row, table: str | None) -> tuple[bytes, str | None]:
    return dumps(key), table
