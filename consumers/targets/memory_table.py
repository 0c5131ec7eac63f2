"""One table of a memory target: rows with their versions, and what each kind of write does to them.

The rules of every target in their plainest form (docs/targets.md): the version guard (H3), modes of
writing and deleting, patches (H7), multisets (H27). Checks nothing and knows no batch: see memory.py.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from orjson import OPT_SORT_KEYS, dumps

from consumers.apply.fold import Version, Write
from consumers.apply.mapping import Mapping
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Flow

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class StoredRow:
    values: dict[str, Any]
    version: Version


class MemoryTable:
    """`rows` by key; `twins` of a table without a key. Each write tells how many were guarded against."""

    def __init__(self, schema: str, name: str, columns: Iterable[str] = ()) -> None:
        self.schema = schema
        self.name = name
        self.columns = list(columns)
        self.rows: dict[bytes, StoredRow] = {}
        self.twins: list[StoredRow] = []

    def __len__(self) -> int:
        return len(self.rows) + len(self.twins)

    def plain(self) -> list[dict[str, Any]]:
        """Every row with every column of the table, in the order of their arrival."""
        stored = [*self.rows.values(), *self.twins]
        return [{name: row.values.get(name) for name in self.columns} for row in stored]

    def add_columns(self, mapping: Mapping) -> None:
        names = [column.name for column in mapping.columns]
        names += [mapping.soft_delete] if mapping.soft_delete else []
        self.columns += [name for name in names if name not in self.columns]

    # Writes

    def upsert(self, flow: Flow, mapping: Mapping, write: Write, event_key: bytes) -> int:
        """`event_key`: under `write: append` each event is a row of its own (consumers.apply.modes)."""
        key = event_key if flow.write == "append" else key_of(mapping, write)
        version = write.change.version
        there = self.rows.get(key)
        if there is not None and flow.write == "insert_only":
            return 0
        if there is not None and flow.version != "none" and there.version > version:
            return 1
        values = placed(mapping, write.row)
        if mapping.soft_delete is not None:
            values[mapping.soft_delete] = None
        self.rows[key] = StoredRow({**(there.values if there else {}), **values}, version)
        return 0

    def append(self, mapping: Mapping, write: Write) -> int:
        """A row of a table without a key."""
        self.twins.append(StoredRow(placed(mapping, write.row), write.change.version))
        return 0

    def patch(self, flow: Flow, mapping: Mapping, write: Write) -> int | None:
        """The columns that the event has; None: there is no such row."""
        there = self.rows.get(key_of(mapping, write))
        if there is None:
            return None
        if flow.write == "insert_only":
            return 0
        if flow.version != "none" and there.version > write.change.version:
            return 1
        row = write.row
        for column in mapping.columns:
            if column.column is None:
                there.values[column.name] = column.value
            elif (value := row.get(column.column.name, UNAVAILABLE)) != UNAVAILABLE:
                there.values[column.name] = value
        there.version = write.change.version
        return 0

    def delete(self, flow: Flow, mapping: Mapping, write: Write) -> int:
        key = key_of(mapping, write)
        there = self.rows.get(key)
        if there is None or flow.delete == "ignore":
            return 0
        if flow.version != "none" and there.version > write.change.version:
            return 1
        if mapping.soft_delete is None:
            del self.rows[key]
        else:
            there.values[mapping.soft_delete] = time_text(write.change.commit_us)
            there.version = write.change.version
        return 0

    def remove_twin(self, mapping: Mapping, write: Write) -> None:
        """One of the rows that equal it in every column."""
        wanted = _content(placed(mapping, write.row))
        for at, twin in enumerate(self.twins):
            if _content(twin.values) == wanted:
                del self.twins[at]
                return

    def count_below(self, floor: Version, soft: str | None, kept: Collection[bytes]) -> int:
        """How many rows `drop_to` would take."""
        stored = [*(row for key, row in self.rows.items() if key not in kept), *self.twins]
        return sum(row.version <= floor and (soft is None or row.values.get(soft) is None) for row in stored)

    def drop_to(self, floor: Version | None, soft: str | None, gone_us: int, kept: Collection[bytes]) -> None:
        """Rows at or below the floor go, None: all of them; under `soft` they are marked with the time.
        Those of `kept` keys stay."""

        def stays(row: StoredRow) -> bool:
            return floor is not None and row.version > floor

        if soft is None:
            self.rows = {key: row for key, row in self.rows.items() if key in kept or stays(row)}
            self.twins = [row for row in self.twins if stays(row)]
            return
        for row in [*(row for key, row in self.rows.items() if key not in kept), *self.twins]:
            if not stays(row) and row.values.get(soft) is None:
                row.values[soft] = time_text(gone_us)


def key_of(mapping: Mapping, write: Write) -> bytes:
    return key_of_row(mapping, write.row)


def key_of_row(mapping: Mapping, row: dict[str, Any]) -> bytes:
    """`row`: by the source's names."""
    columns = [column.column for column in mapping.columns if column.column is not None and column.key]
    return dumps([row.get(column.name) for column in columns])


def placed(mapping: Mapping, row: dict[str, Any]) -> dict[str, Any]:
    """A row's values under the target's names, constants included."""
    return {c.name: c.value if c.column is None else row.get(c.column.name) for c in mapping.columns}


def time_text(at_us: int) -> str:
    """Microseconds since 1970 as the JSON form of a timestamptz."""
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat().replace("+00:00", "Z")


def _content(values: dict[str, Any]) -> bytes:
    return dumps({name: value for name, value in values.items() if value is not None}, option=OPT_SORT_KEYS)
