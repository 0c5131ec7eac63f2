"""The last write per key of one partition's run of events. Pure, no I/O.

Events of a partition come in order, and a key has one partition, so that only the last state of
each key has to reach the target:

* a row without placeholders replaces what went before; so does a delete, which also clears the base.
* an update with TOAST placeholders takes their values from the row before it in the batch; without
  one it stays a patch: an UPDATE of the other columns (H7).
* a create never merges: the row before it under that key is another row (H6). One with placeholders
  is written without their values and recorded for a re-read.
* an update with placeholders right after a delete has lost its base: only recorded.
* what is at or below the table's floor is dropped before all that (H5).

A table without a key is a multiset: rows are added and removed, and a removal takes back an addition
of the same batch (H27). One transaction writes the whole batch, so that the order inside is not seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from orjson import OPT_SORT_KEYS, dumps

from streamer.changes.envelope import Change
from streamer.changes.kinds import UNAVAILABLE
from streamer.errors import BadRecordError
from streamer.resetting import reset_steps

Version = tuple[int, int, int]  # epoch, commit LSN, ordinal
BOTTOM: Version = (0, 0, 0)  # below every event: no floor
TOP: Version = (2**31, 0, 0)  # above every event


class Event(NamedTuple):
    """A decoded record. `placeholders`: the value's bytes hold UNAVAILABLE somewhere."""

    key: bytes | None
    change: Change
    offset: int
    placeholders: bool


_tuple = tuple.__new__  # of a NamedTuple: half the price of its constructor, and this is a hot path


class Write(NamedTuple):
    """One row's last state: `row` is the JSON of its columns (of a delete: the key columns)."""

    row: dict[str, Any]
    change: Change  # the event that wrote last: version, schema id
    offset: int


class Reread(NamedTuple):
    """A key whose row is not whole in the target until it is read again from the source (H7)."""

    key: bytes
    change: Change
    reason: str


class PartitionFold:
    """What a batch does to one table through one partition. Rows, patches and deletes share no key."""

    __slots__ = (
        "added",
        "creates",
        "deletes",
        "events",
        "partition",
        "patches",
        "removed",
        "rereads",
        "rows",
        "skipped",
    )

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.rows: dict[bytes, Write] = {}
        self.creates: dict[bytes, Write] = {}  # whole rows with placeholders: no base to take them from
        self.patches: dict[bytes, Write] = {}  # updates with placeholders
        self.deletes: dict[bytes, Write] = {}
        self.added: list[Write] = []  # rows of a table without a key
        self.removed: list[Write] = []
        self.rereads: dict[bytes, Reread] = {}
        self.events = 0  # row events folded
        self.skipped = 0  # row events at or below the floor

    def writes(self) -> Iterable[Write]:
        """Every write, in no order that matters."""
        for part in (self.rows, self.creates, self.patches, self.deletes):
            yield from part.values()
        yield from self.added
        yield from self.removed

    def drop_to(self, floor: Version) -> int:
        """Drop what is at or below `floor`; how many writes that were."""
        dropped = 0
        for part in (self.rows, self.creates, self.patches, self.deletes):
            below = [key for key, write in part.items() if write.change[3:6] <= floor]
            for key in below:
                del part[key]
            dropped += len(below)
        before = len(self.added) + len(self.removed)
        self.added = [write for write in self.added if write.change[3:6] > floor]
        self.removed = [write for write in self.removed if write.change[3:6] > floor]
        self.rereads = {k: reread for k, reread in self.rereads.items() if reread.change[3:6] > floor}
        dropped += before - len(self.added) - len(self.removed)
        return dropped


def floor_of(changes: Iterable[Change]) -> Version:
    """The highest floor that truncates and resets raise in these events."""
    floors = [c.version for c in changes if c.op == "t" or (c.op == "m" and c.is_floor)]
    return max(floors, default=BOTTOM)


def fold(events: Iterable[Event], partition: int, floor: Version = BOTTOM) -> PartitionFold:
    """Events of one table in one partition, in their order. `floor`: of the whole batch, all partitions."""
    result = PartitionFold(partition)
    rows, creates, patches, deletes = result.rows, result.creates, result.patches, result.deletes
    rereads = result.rereads
    keyless: list[tuple[bool, Write]] = []
    guarded = floor > BOTTOM
    count = 0
    for key, change, offset, placeholders in events:
        op = change.op
        if op in ("t", "m"):
            continue
        if guarded and change[3:6] <= floor:
            result.skipped += 1
            continue
        count += 1
        if key is None:
            _keyless(keyless, change, offset)
            continue
        if op == "d":
            deletes[key] = _tuple(Write, (change.before or {}, change, offset))
            rows.pop(key, None)
            creates.pop(key, None)
            patches.pop(key, None)
            rereads.pop(key, None)
            continue
        row = change.after or {}
        if placeholders and UNAVAILABLE in row.values():
            _partial(result, key, Write(row, change, offset))
            continue
        rows[key] = _tuple(Write, (row, change, offset))
        if deletes:
            deletes.pop(key, None)
        if creates:
            creates.pop(key, None)
        if patches:
            patches.pop(key, None)
        if rereads:
            rereads.pop(key, None)
    result.events = count
    if keyless:
        _settle(result, keyless)
    for key, write in creates.items():
        rereads[key] = Reread(key, write.change, "a create whose unchanged value was in the old row")
    return result


def _partial(result: PartitionFold, key: bytes, write: Write) -> None:
    """A row with placeholders joins what the batch has of its key."""
    rows, creates, patches, deletes = result.rows, result.creates, result.patches, result.deletes
    if write.change.op != "u":
        rows.pop(key, None)
        patches.pop(key, None)
        deletes.pop(key, None)
        result.rereads.pop(key, None)
        creates[key] = write
        return
    if key in deletes:
        result.rereads[key] = Reread(key, write.change, "an update whose row had been deleted")
        return
    base = rows.pop(key, None) or creates.pop(key, None)
    part = creates
    if base is None:
        base = patches.pop(key, None)
        part = patches
    if base is not None:
        known = base.row
        merged = {
            name: known.get(name, UNAVAILABLE) if value == UNAVAILABLE else value
            for name, value in write.row.items()
        }
        write = Write(merged, write.change, write.offset)
        if UNAVAILABLE not in merged.values():
            part = rows if part is creates else patches
    part[key] = write


def _keyless(log: list[tuple[bool, Write]], change: Change, offset: int) -> None:
    if change.op in ("u", "d"):
        if change.before is None:
            raise BadRecordError(
                "an update or delete of a table without a key does not hold the old row",
                fix=f"ALTER TABLE ... REPLICA IDENTITY FULL in the source, then {reset_steps('SOURCE')}",
            )
        log.append((False, Write(change.before, change, offset)))
    if change.after is not None:
        log.append((True, Write(change.after, change, offset)))


def _settle(result: PartitionFold, log: list[tuple[bool, Write]]) -> None:
    """A removal takes back the last equal addition before it; what is left goes to the target."""
    if all(adds for adds, _ in log):
        result.added = [write for _, write in log]
        return
    open_additions: dict[bytes, list[int]] = {}
    kept: dict[int, Write] = {}
    for index, (adds, write) in enumerate(log):
        content = dumps(write.row, option=OPT_SORT_KEYS)
        if adds:
            open_additions.setdefault(content, []).append(index)
            kept[index] = write
        elif open_additions.get(content):
            del kept[open_additions[content].pop()]
        else:
            result.removed.append(write)
    result.added = list(kept.values())
