"""What a batch does to one table through one partition, as columns that redis_scripts.APPLY unpacks.

Arguments are dear to the server: each is an object of its own, and each of a row's values was one. So that
values go as MessagePack, which a script unpacks straight into the arguments of a command:

    ops       deletes, patches, all of them: an op is a delete, then a patch, then a whole row, in this order,
              so that a row that is made again after its delete comes behind it
    keys      how many of KEYS are theirs
    fields    array of the names of the records
    versions  20 bytes each
    numbers   array: which of their KEYS an op has; empty: the first has the first
    members   array, in a layout of members
    counts    array: how many strings of `values` an op has
    values    strings, one after the other: names and values of fields, a JSON text, a score
    nulls     map: op -> names of fields without a value
    texts     a patch's note, as an argument each: Kafka keys are any bytes

Pure, but for turns of the event loop. Knows neither checkpoints nor which other groups a request has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from msgspec.msgpack import encode

from consumers.apply.checkpoint import Place
from consumers.apply.fold import PartitionFold, Write
from consumers.targets.base import Refused, TableChanges
from consumers.targets.redis_layout import Arg, Named, Plan, Unfit, pack_version
from streamer.changes.kinds import UNAVAILABLE

REFUSED_LIMIT = 100  # rows named at once, as every target does
SLICE = 250  # rows between two turns of the event loop: less than 1 ms
MISSING_BASE = "an update whose row is not in the target"

Plans = Mapping[tuple[str, str, str, str], Plan]  # by flow, schema, table, schema id

DELETE, PATCH, ROW, CREATE = range(4)

# MessagePack's arrays: their heads are 1, 3 or 5 bytes.
_SHORT, _MIDDLE = 16, 2**16


@dataclass(slots=True)
class Ops:
    """`writes`, as the script numbers them: (Kafka key, write, key). `size`: of the fold when they were made;
    until its turn a batch only ever loses rows, so that an equal count means the same rows."""

    changes: TableChanges
    fold: PartitionFold
    place: Place
    plan: Plan
    size: int
    writes: list[tuple[bytes, Write, str]] = field(default_factory=list)
    unfit: list[Refused] = field(default_factory=list)
    deletes: int = 0
    patches: int = 0
    keys: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=list)
    versions: list[bytes] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    members: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    values: list[str] = field(default_factory=list)
    nulls: dict[int, list[str]] = field(default_factory=dict)
    texts: list[bytes] = field(default_factory=list)
    shared: dict[str, int] = field(default_factory=dict)  # numbers of keys that several rows have
    names: set[str] = field(default_factory=set)
    args: list[Arg] = field(default_factory=list)

    def is_of(self, fold: PartitionFold) -> bool:
        return self.fold is fold and self.size == size_of(fold)

    def pack(self) -> None:
        """`args` from all the others, which are not needed any more but for `names` and `keys`."""
        self.names = set(self.fields)
        self.args = [
            self.deletes,
            self.patches,
            len(self.writes),
            len(self.keys),
            encode(self.fields),
            b"".join(self.versions),
            encode(self.numbers) if self.numbers else b"",
            encode(self.members) if self.members else b"",
            encode(self.counts),
            _stream(self.values),
            encode(self.nulls) if self.nulls else b"",
            *self.texts,
        ]
        for column in (self.versions, self.numbers, self.members, self.counts, self.values, self.texts):
            column.clear()
        self.nulls.clear()


def size_of(fold: PartitionFold) -> int:
    return len(fold.deletes) + len(fold.patches) + len(fold.rows) + len(fold.creates)


def _stream(values: list[str]) -> bytes:
    """The strings without their array."""
    count = len(values)
    return encode(values)[1 if count < _SHORT else 3 if count < _MIDDLE else 5 :]


async def ops_of(changes: TableChanges, fold: PartitionFold, plans: Plans) -> Ops:
    ops = empty_ops(changes, fold, plans)
    ops.unfit = await fill(changes, fold, plans, lambda _: ops)
    ops.pack()
    return ops


def empty_ops(changes: TableChanges, fold: PartitionFold, plans: Plans) -> Ops:
    plan = plans[changes.flow, changes.schema, changes.table, changes.record.id]
    return Ops(changes, fold, Place(changes.flow, changes.topic, fold.partition), plan, size_of(fold))


async def fill(
    changes: TableChanges, fold: PartitionFold, plans: Plans, ops_at: Callable[[str], Ops]
) -> list[Refused]:
    """`ops_at`: where the row of a key of Redis goes. Gives the rows that have no place."""
    table = changes.flow, changes.schema, changes.table
    known = {id_: plans[(*table, id_)] for id_ in changes.schema_ids | {changes.record.id}}
    unfit: list[Refused] = []
    turn = 0
    for kind, part in (
        (DELETE, fold.deletes),
        (PATCH, fold.patches),
        (ROW, fold.rows),
        (CREATE, fold.creates),
    ):
        for key, write in part.items():
            turn += 1
            if not turn % SLICE:
                await asyncio.sleep(0)  # another batch's answer may be there, and the next one is decoded
            try:
                plan = known[write.change.schema_id]
                named = plan.named(write.row, key)
                _add(ops_at(named[0]), kind, plan, key, write, named)
            except Unfit as error:
                if len(unfit) < REFUSED_LIMIT:
                    place = Place(changes.flow, changes.topic, fold.partition)
                    unfit.append(Refused(place, key, write, error.code, str(error), transient=False))
    return unfit


def _add(ops: Ops, kind: int, plan: Plan, key: bytes, write: Write, named: Named) -> None:
    """Raises Unfit, and has added nothing."""
    row, change, _ = write
    name, member, record = named
    values = ops.values
    before = len(values)
    nulls: list[str] = []
    if kind == ROW:
        nulls = plan.whole(row, values)
    elif kind == CREATE:
        nulls = plan.whole(_without_placeholders(row), values)
    elif kind == PATCH:
        nulls = plan.part(row, values)
        ops.patches += 1
        ops.texts.append(note_text(key, MISSING_BASE))
    else:
        ops.deletes += 1
        if ops.plan.columns.soft_delete is not None:
            values += plan.soft(change.commit_us)
    ops.counts.append(len(values) - before)
    ops.fields.append(record)
    ops.versions.append(pack_version(*change[3:6]))
    ops.writes.append((key, write, name))
    if nulls:
        ops.nulls[len(ops.writes)] = nulls
    if not plan.has_members:
        ops.keys.append(name)
        return
    number = ops.shared.get(name)
    if number is None:
        ops.keys.append(name)
        number = ops.shared[name] = len(ops.keys)
    ops.numbers.append(number)
    ops.members.append(member)


def _without_placeholders(row: Mapping[str, Any]) -> dict[str, Any]:
    """A create with placeholders gets null there (H6)."""
    return {name: None if value == UNAVAILABLE else value for name, value in row.items()}


def note_text(key: bytes, reason: str) -> bytes:
    return key + b"\n" + reason.encode()
