"""What a flow's `write`, `delete` and `truncate` make of its events, before and in the fold. Pure.

* `delete: ignore` passes over deletes, `truncate: ignore` over truncates.
* `write: insert_only` takes rows as they were first seen: updates are passed over. A row that is made
  again after its delete replaces the old one, so both reach the target, the delete first.
* `write: append` keeps every event: each is a row of its own, under a key that no other event has, so
  that nothing folds it away. Truncates and floors leave a history alone.

What is done with the rows that come out is the target's.
"""

from __future__ import annotations

from collections.abc import Iterable

from consumers.apply.fold import BOTTOM, Event, PartitionFold, Version, Write, floor_of, fold
from streamer.changes.envelope import Change
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Flow

_MARK = b"@"


def takes_floors(flow: Flow) -> bool:
    """Whether a reset's floor takes anything away: it goes with `delete`, and needs versions."""
    return flow.write != "append" and flow.delete != "ignore" and flow.version != "none"


def floor_for(flow: Flow, changes: Iterable[Change]) -> Version:
    """The highest floor that these events raise for the flow."""
    if flow.write == "append":
        return BOTTOM
    ops = {"t"} if flow.truncate != "ignore" else set()
    if takes_floors(flow):
        ops.add("m")
    return floor_of(change for change in changes if change.op in ops)


def fold_for(flow: Flow, events: Iterable[Event], partition: int, floor: Version = BOTTOM) -> PartitionFold:
    """As `fold`, of one table's events in one partition."""
    if flow.write == "append":
        return _history(flow, events, partition)
    if flow.delete == "ignore":
        events = [event for event in events if event.change.op != "d"]
    if flow.write == "insert_only":
        return _inserts(flow, events, partition, floor)
    return fold(events, partition, floor)


def event_key(key: bytes | None, change: Change, offset: int) -> bytes:
    """A key of the event alone. Rows of a first copy share one version, and without a key only the
    offset tells them apart."""
    mark = b"%b%d.%d.%d" % (_MARK, *change.version)
    if key is None:
        return b"%b.%d" % (mark, offset)
    return key if key.endswith(mark) else key + mark


def _history(flow: Flow, events: Iterable[Event], partition: int) -> PartitionFold:
    result = PartitionFold(partition)
    for key, change, offset, placeholders in events:
        if change.op in ("t", "m") or (change.op == "d" and flow.delete == "ignore"):
            continue
        row = (change.before if change.op == "d" else change.after) or {}
        if placeholders:  # the row before it is another one
            row = {name: None if value == UNAVAILABLE else value for name, value in row.items()}
        result.rows[event_key(key, change, offset)] = Write(row, change, offset)
        result.events += 1
    return result


def _inserts(flow: Flow, events: Iterable[Event], partition: int, floor: Version) -> PartitionFold:
    kept: list[Event] = []
    gone: dict[bytes, Write] = {}  # the last delete of a key
    seen: set[bytes] = set()
    for event in events:
        key, change, offset, _ = event
        if change.op == "u":
            continue
        if key is not None and change.op == "d" and change.version > floor:
            gone[key] = Write(change.before or {}, change, offset)
        makes = key is not None and change.op in ("c", "r") and change.version > floor
        if key is not None and makes and flow.delete == "ignore":
            if key in seen:
                continue
            seen.add(key)
        kept.append(event)
    result = fold(kept, partition, floor)
    for key, write in gone.items():
        if key in result.rows or key in result.creates:
            result.deletes[key] = write
    return result
