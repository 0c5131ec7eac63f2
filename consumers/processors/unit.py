"""The unit in hand, as a body sees it: the Context of consumers.processors.context."""

from __future__ import annotations

from typing import Any

from consumers.processors.context import Change, Derived, Row, Table
from consumers.processors.fitting import kept
from consumers.processors.operators.contributors import contribution, place_of, rank_of
from consumers.processors.operators.keys import Keys
from consumers.processors.operators.rows import contributor_of
from consumers.processors.outbox import Outbox
from consumers.processors.shapes import dumps
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

    def derive(self, value: Any, change: Change, keys: Keys, *, in_order: bool) -> None:
        """What an agent's body gives: a row, a Derived, several, or nothing. `in_order`: all that says a
        derived row comes through this task. Raises BadRecordError."""
        if value is None:
            return
        if isinstance(value, list | tuple):
            for one in value:
                self.derive(one, change, keys, in_order=in_order)
            return
        if isinstance(value, dict):
            value = Derived(None, value)
        if not isinstance(value, Derived):
            raise BadRecordError(
                f"the agent gave {type(value).__name__}",
                fix="give change.to(after={...}), a dict of columns, a list of them, or None",
            )
        if value.key is None and not keys.columns and not keys.shared:
            key, after = change.key, value.after
            op = "u" if change.op == "u" and after is not None else None
            self._outbox.emit(key, after, value.before, op, value.table, self._commit_us, change.raw_key)
        else:
            given = value.key
            if given is None:
                given = _keyed(keys.columns, change, value.after) if keys.columns else change.key
            key, after = _in_one_form(given, value.after, change, keys)
            if in_order or keys.is_own(key, change):
                self._outbox.emit(key, after, value.before, None, value.table, self._commit_us)
            elif self._hops > 1:
                said = None if after is None else kept(after, keys.where)
                self._say(key, said, value.table, change, keys)
            else:
                raise _out_of_order(change)
        if after is not None:
            self.rows.append((key, value.table))

    def take_back(self, key: Row, table: str | None, change: Change, keys: Keys) -> None:
        """A row that the input row's function gave before, and gives no more."""
        if self._hops == 1 or keys.is_own(key, change):
            self.emit(key, None, table=table)
        else:
            self._say(key, None, table, change, keys)

    def _say(self, key: Row, row: Row | None, table: str | None, change: Change, keys: Keys) -> None:
        rank, again = rank_of(change, keys.inputs), change.op == "r"
        said = contribution(contributor_of(change), rank, row, again=again)
        self.forward(place_of(dumps(key), table), said)


def _in_one_form(key: Row, after: Row | None, change: Change, keys: Keys) -> tuple[Row, Row | None]:
    """The key, and the row with it. Raises BadRecordError."""
    formed = keys.formed(key, change)
    if after is None:
        return formed, None
    shown = keys.formed({name: after[name] for name in key if name in after}, change)
    for name, value in shown.items():
        if value != formed[name]:
            raise BadRecordError(
                f"its key says {name} = {formed[name]!r}, and the row {value!r}",
                where=keys.where,
                fix="give the row the values of its key, or leave them out",
            )
    return formed, {**after, **formed}


def _out_of_order(change: Change) -> BadRecordError:
    return BadRecordError(
        f"the row's key does not hold its input row's, {', '.join(change.key)}: rows of other partitions may"
        " say the same row, and nothing orders what a stream yields there",
        where=change.topic,
        fix="write `async def f(change): return row`, and name the columns in the processor's `key:`; or make"
        " the topics with one partition",
    )


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
