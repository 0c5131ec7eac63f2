"""Slots of a Redis Cluster: which one a key is in, and a batch taken apart by them.

Owns the tags that put a table's records beside its rows: the tag of a slot is the first decimal number whose
slot it is, in braces in the name of a key. These names are in the store: they must not drift.

    _tailrace:rows:{<tag>}:<table>, :gone:..., :rereads:...   as on one server, of the rows in the tag's slot
    _tailrace:floors:{<tag>}      hash: [flow, schema, table] -> version that a truncate has raised (H5)
    _tailrace:never:{<tag>}       never there: see `never_key`

Pure, but for turns of the event loop.
"""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache

from consumers.apply.checkpoint import Place
from consumers.apply.fold import PartitionFold
from consumers.targets.base import Batch, Refused, TableChanges
from consumers.targets.redis_layout import Names
from consumers.targets.redis_ops import REFUSED_LIMIT, Ops, Plans, empty_ops, fill, size_of
from consumers.targets.redis_write import Note, Request, add_group, notes_of

SLOTS = 16384  # of every cluster


def slot_of(key: str) -> int:
    """The cluster specification's HASH_SLOT: CRC16 (XMODEM) of the key, or of what its first braces hold."""
    data = key.encode()
    start = data.find(b"{") + 1
    if start and (end := data.find(b"}", start)) > start:
        data = data[start:end]
    return crc_hqx(data, 0) % SLOTS


@cache
def tags() -> tuple[str, ...]:
    """By slot."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < SLOTS:
        text = str(number)
        found.setdefault(crc_hqx(text.encode(), 0) % SLOTS, text)
        number += 1
    return tuple(found[slot] for slot in range(SLOTS))


def floors_key(tag: str) -> str:
    return f"_tailrace:floors:{{{tag}}}"


def never_key(tag: str) -> str:
    """Among the keys of every script of ours, and never there. While a slot is moved key by key, a server
    refuses what names a key that it lacks beside one that it has (TRYAGAIN): no script is begun that would
    fail in its middle, at a key that has moved."""
    return f"_tailrace:never:{{{tag}}}"


def names_in(names: Names, slot: int) -> Names:
    return Names(names.flow, names.schema, names.table, tags()[slot])


def table_keys(names: Names) -> list[str]:
    """What a script needs of the table beside its rows: its KEYS end with these."""
    return [names.rows, names.gone, names.rereads, floors_key(names.tag), never_key(names.tag)]


@dataclass(slots=True)
class SlotOps:
    """One fold of one table, by slot. `size`: as in Ops."""

    changes: TableChanges
    fold: PartitionFold
    place: Place
    size: int
    by_slot: dict[int, Ops] = field(default_factory=dict)
    unfit: list[Refused] = field(default_factory=list)

    def is_of(self, fold: PartitionFold) -> bool:
        return self.fold is fold and self.size == size_of(fold)


async def slot_ops_of(changes: TableChanges, fold: PartitionFold, plans: Plans) -> SlotOps:
    place = Place(changes.flow, changes.topic, fold.partition)
    made = SlotOps(changes, fold, place, size_of(fold))
    by_slot = made.by_slot

    def ops_at(key: str) -> Ops:
        slot = slot_of(key)
        ops = by_slot.get(slot)
        if ops is None:
            ops = by_slot[slot] = empty_ops(changes, fold, plans)
        return ops

    made.unfit = await fill(changes, fold, plans, ops_at)
    for ops in by_slot.values():
        ops.pack()
    return made


@dataclass(slots=True)
class SlotBatch:
    """What a batch does: a request a slot, made when it is known which places are lost."""

    ready: list[SlotOps] = field(default_factory=list)
    notes: list[list[tuple[str, Note]]] = field(default_factory=list)  # of each

    @property
    def unfit(self) -> list[Refused]:
        return [refused for made in self.ready for refused in made.unfit][:REFUSED_LIMIT]

    def requests(self, plans: Plans, lost: Collection[Place]) -> dict[int, Request]:
        """By slot; a request's arguments are those of redis_write, without moves and state."""
        found: dict[int, Request] = {}
        written: dict[int, dict[str, set[str]]] = {}
        tables: dict[int, dict[str, Names]] = {}
        grouped: dict[int, list[tuple[Ops, list[Note]]]] = {}
        for made, notes in zip(self.ready, self.notes, strict=True):
            if made.place in lost:
                continue
            noted: dict[int, list[Note]] = {}
            for key, note in notes:
                noted.setdefault(slot_of(key), []).append(note)
            for slot, ops in made.by_slot.items():
                if ops.writes:
                    grouped.setdefault(slot, []).append((ops, noted.pop(slot, [])))
            for slot, left in noted.items():
                ops = empty_ops(made.changes, made.fold, plans)
                ops.pack()
                grouped.setdefault(slot, []).append((ops, left))
        for slot, groups in grouped.items():
            request = found[slot] = Request(args=[0, len(groups)], groups=[ops for ops, _ in groups])
            before, used = written.setdefault(slot, {}), tables.setdefault(slot, {})
            for ops, some in groups:
                names = names_in(ops.plan.names, slot)
                used[names.rows] = names
                add_group(request, ops, 0, names, some, before)
            request.keys += dict.fromkeys(key for names in used.values() for key in table_keys(names))
            request.args.append(floors_key(tags()[slot]))
        return found


async def slot_batch_of(batch: Batch, plans: Plans) -> SlotBatch:
    found = SlotBatch()
    for changes in batch.tables:
        ahead = changes.ready if isinstance(changes.ready, list) else []
        made = {id(ops.fold): ops for ops in ahead if isinstance(ops, SlotOps)}
        for fold in changes.folds:
            ops = made.get(id(fold))
            if ops is None or not ops.is_of(fold):
                ops = await slot_ops_of(changes, fold, plans)
            found.ready.append(ops)
            found.notes.append(notes_of(changes, fold, plans))
    return found
