"""The unit in hand, as a body sees it: the Context of consumers.processors.context."""

from __future__ import annotations

from typing import Any

from consumers.processors.context import Change, Derived, Row, Table
from consumers.processors.outbox import Outbox
from consumers.processors.state import Overlay, StateTable
from streamer.errors import BadRecordError


class Unit:
    """Of one task; begun anew for each record."""

    __slots__ = ("_commit_us", "_hop", "_hops", "_outbox", "_overlay", "_raw_key", "_tables", "_value_bytes",
                 "note", "rows")  # fmt: skip

    def __init__(self, overlay: Overlay, outbox: Outbox, value_bytes: int) -> None:
        """`value_bytes`: the largest value of a table, as it goes through Kafka."""
        self._overlay = overlay
        self._outbox = outbox
        self._value_bytes = value_bytes
        self._tables: dict[str, StateTable] = {}
        self._commit_us = 0
        self._hop = 0
        self._hops = 1
        self.note: bytes | None = None
        self.rows: list[tuple[Row, str | None]] = []  # derived rows that are there, of an agent's function

    def begin(self, commit_us: int, hop: int, hops: int, note: bytes | None) -> None:
        self._commit_us = commit_us
        self._hop = hop
        self._hops = hops
        self.note = note
        if self.rows:
            self.rows = []

    def table(self, name: str) -> Table:
        found = self._tables.get(name)
        if found is None:
            if not name or "\0" in name or name.startswith("_"):
                raise BadRecordError(
                    f"a table cannot be named {name!r}", fix="begin with a letter, and leave NUL out"
                )
            found = self._tables[name] = StateTable(self._overlay, name, self._value_bytes)
        return found

    def forward(self, key: bytes, value: bytes) -> None:
        if self._hop + 1 >= self._hops:
            raise BadRecordError("the last hop forwards to nobody", fix="emit the row, or add a hop")
        self._outbox.forward(self._hop + 1, key, value, self._commit_us)

    def emit(
        self,
        key: Row,
        after: Row | None,
        *,
        before: Row | None = None,
        op: str | None = None,
        table: str | None = None,
    ) -> None:
        self._outbox.emit(key, after, before, op, table, self._commit_us)

    def publish(self, key: bytes | None, value: bytes | None, *, table: str | None = None) -> None:
        self._outbox.publish(key, value, table)

    def derive(self, value: Any, change: Change, key_columns: tuple[str, ...]) -> None:
        """What an agent's body gives: a row, a Derived, several, or nothing. Raises BadRecordError."""
        if value is None:
            return
        if isinstance(value, list | tuple):
            for one in value:
                self.derive(one, change, key_columns)
            return
        if isinstance(value, dict):
            value = Derived(None, value)
        if not isinstance(value, Derived):
            raise BadRecordError(
                f"the agent gave {type(value).__name__}",
                fix="give change.to(after={...}), a dict of columns, a list of them, or None",
            )
        after, key, raw_key = value.after, value.key, None
        if key is None:
            if key_columns:
                key = _keyed(key_columns, change, after)
            else:
                key, raw_key = change.key, change.raw_key
        op = "u" if change.op == "u" and after is not None and raw_key is not None else None
        self._outbox.emit(key, after, value.before, op, value.table, self._commit_us, raw_key)
        if after is not None:
            self.rows.append((key, value.table))


def _keyed(columns: tuple[str, ...], change: Change, after: Row | None) -> Row:
    key: Row = {}
    for name in columns:
        for row in (after, change.key, change.before):
            if row is not None and name in row:
                key[name] = row[name]
                break
        else:
            raise BadRecordError(
                f"no column {name!r} for the derived row's key",
                fix="give it in the row, or say `key=`; of deletes only tables with REPLICA IDENTITY FULL"
                " have the columns beside the key",
            )
    return key
