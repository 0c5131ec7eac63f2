"""Keys that wait: what joins a key's queue, what replaces it, and what a batch loses to it (H24). Pure.

A key that was refused is parked with its change. Later changes of it join its queue in their order;
one that needs nothing of what went before (a whole row, a delete) and is newer takes the queue's place.
Of a batch only each key's last state is left, so that at most one change a key and batch joins.
"""

from __future__ import annotations

from binascii import b2a_base64
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from msgspec import json

from consumers.apply.checkpoint import Place
from consumers.apply.fold import BOTTOM, Event, PartitionFold, Version, Write
from consumers.apply.fold import fold as fold_events
from consumers.targets.base import Batch, Parked, Refused, TableChanges
from streamer.changes.envelope import decode_value
from streamer.changes.kinds import UNAVAILABLE
from streamer.changes.schema import SchemaRecord

NO_KEY = b""  # stands for the null key of a record that does not decode
QUEUE_POISONS_LIMIT = 100  # of a key that are kept in the target, too; the null key's is one queue for all
UNDECODABLE = "undecodable"  # the reason's code of a record that is not an event

_UNAVAILABLE = UNAVAILABLE.encode()


class Key(NamedTuple):
    place: Place
    key: bytes


@dataclass(slots=True)
class Queue:
    """One parked key, as the partition's owner knows it. `entries`: of one that waits for other partitions,
    and is tried again and again; else the target alone has them."""

    head: Parked  # the oldest: why, since when; its payload is kept in the target only
    sequence: int  # of the newest
    version: Version  # the highest
    length: int  # changes, without what does not decode
    poisons: int = 0  # records that do not decode
    entries: list[Parked] | None = None


@dataclass(frozen=True, slots=True)
class Count:
    """Keys of a flow that wait."""

    parked: int = 0
    waiting: int = 0
    oldest_us: int | None = None


class Poison(NamedTuple):
    """A record that does not decode."""

    place: Place
    key: bytes
    offset: int
    value: bytes
    reason: str


@dataclass(slots=True)
class Aside:
    """What of a batch goes to no row: parked now, or behind what is parked."""

    poisons: list[Poison] = field(default_factory=list)
    behind: dict[Place, PartitionFold] = field(default_factory=dict)  # of keys of `poisons`, and after them
    refused: dict[Key, tuple[Refused, bool]] = field(default_factory=dict)  # and whether it is a create
    published: set[tuple[Key, int]] = field(default_factory=set)  # dead letters that are out, by offset
    taken: list[tuple[dict[bytes, Write], bytes, Write]] = field(default_factory=list)
    after: dict[Key, Queue | None] = field(default_factory=dict)  # queues as the batch leaves them

    def without(self, flows: set[str]) -> Aside:
        """`stage` comes again after it."""
        self.restore()
        return Aside(
            [poison for poison in self.poisons if poison.place.flow not in flows],
            {place: fold for place, fold in self.behind.items() if place.flow not in flows},
            {key: row for key, row in self.refused.items() if key.place.flow not in flows},
            self.published,
        )

    def restore(self) -> None:
        for part, key, write in self.taken:
            part[key] = write
        self.taken.clear()
        self.after.clear()


class Item(NamedTuple):
    """A change on its way into a queue. `reason`: why it opens one, (code, message, waiting)."""

    offset: int
    version: Version
    payload: bytes
    whole: bool  # needs nothing of what went before
    names: tuple[str, str]
    reason: tuple[str, str, bool] | None
    decodes: bool = True


def payload_of(write: Write, record: SchemaRecord | None, *, created: bool) -> bytes:
    """An envelope of the write that decode_value reads. `created`: never a patch of what was there."""
    change = write.change
    deleted = change.op == "d"
    op = "c" if created and change.op == "u" else change.op
    message = change.message
    content = None if message is None else b2a_base64(message.content, newline=False).decode()
    return json.encode(
        {
            "before": write.row if deleted else None,
            "after": None if deleted or op in "tm" else write.row,
            "source": {
                "name": record.source if record else None,
                "schema": record.schema if record else None,
                "table": record.table if record else None,
                "ts_us": change.commit_us,
                "epoch": change.epoch,
                "commit_lsn": change.commit_lsn,
                "ordinal": change.ordinal,
                "schema_id": change.schema_id,
            },
            "op": op,
            "ts_ms": change.capture_us // 1000,
            "ts_us": change.capture_us,
            **({} if message is None else {"message": {"prefix": message.prefix, "content": content}}),
        }
    )


def event_of(parked: Parked) -> Event:
    """Raises DecodeError, as of a record."""
    place = parked.place
    where = f"{place.topic}[{place.partition}]@{parked.offset}"
    change = decode_value(parked.payload, where=where, offset=parked.offset)
    key = parked.key if parked.key != NO_KEY else None
    return Event(key, change, parked.offset, _UNAVAILABLE in parked.payload)


def names_of(topic: str, record: SchemaRecord | None) -> tuple[str, str]:
    """The source's schema and table, for people; of an undecodable record by its topic."""
    if record is not None:
        return record.schema, record.table
    parts = topic.split(".", 2)
    return (parts[0], parts[1]) if len(parts) == 2 else ("", "") if len(parts) < 2 else (parts[1], parts[2])


def table_name(schema: str, table: str) -> str:
    """For people. Derived tables and entities are of no schema."""
    return f"{schema}.{table}" if schema else table


def queues_of(parked: Iterable[Parked]) -> dict[Key, Queue]:
    """`parked`: by place, key and sequence."""
    grouped: dict[Key, list[Parked]] = {}
    for entry in parked:
        grouped.setdefault(Key(entry.place, entry.key), []).append(entry)
    return {key: queue_of(entries) for key, entries in grouped.items()}


def queue_of(entries: list[Parked]) -> Queue:
    head = entries[0]
    version = max(entry.version for entry in entries)
    kept = entries if head.waiting else None
    length = sum(entry.decodes for entry in entries)
    poisons = len(entries) - length
    return Queue(replace(head, payload=b""), entries[-1].sequence, version, length, poisons, kept)


def take_out(batch: Batch, key: Key) -> bool | None:
    """Remove the key's write for good. None: there is none; else whether it creates its row on no base."""
    for changes in batch.tables:
        for fold in changes.folds:
            if Place(changes.flow, changes.topic, fold.partition) == key.place:
                for part in _parts(fold):
                    if part.pop(key.key, None) is not None:
                        return part is fold.creates
    return None


def touched(batch: Batch, aside: Aside, queues: Mapping[Place, Mapping[bytes, Queue]]) -> set[Place]:
    """Places where the batch has something for a key that waits."""
    found = {poison.place for poison in aside.poisons if poison.key in queues.get(poison.place, ())}
    for changes in batch.tables:
        for fold in changes.folds:
            place = Place(changes.flow, changes.topic, fold.partition)
            known = queues.get(place)
            if known and any(part.keys() & known.keys() for part in _parts(fold)):
                found.add(place)
    return found


def stage(
    batch: Batch, aside: Aside, queues: Mapping[Place, Mapping[bytes, Queue]], whole: set[str], now_us: int
) -> None:
    """Take out of the folds what must wait, and fill `batch.parks` and `batch.unparks`. May be called again,
    with other queues. `whole`: flows whose queues stay whole: a row does not replace the one before."""
    aside.restore()
    batch.parks, batch.unparks, batch.wishes = [], [], {}
    if not (any(queues.values()) or aside.poisons or aside.refused or aside.behind):
        return
    queues = _unended(batch, aside, queues)
    items = defaultdict(list)
    for poison in aside.poisons:
        reason = UNDECODABLE, poison.reason, False
        names = names_of(poison.place.topic, None)
        item = Item(poison.offset, BOTTOM, poison.value, False, names, reason, decodes=False)
        items[Key(poison.place, poison.key)].append(item)
    for key, (row, created) in aside.refused.items():
        reason = row.code, row.message, row.transient
        items[key].append(_item(batch, key.place, row.write, reason, created=created))
    for place, fold in aside.behind.items():
        for part in _parts(fold):
            for name, write in part.items():
                items[Key(place, name)].append(_item(batch, place, write, None, created=part is fold.creates))
    for changes in batch.tables:
        _divert(changes, batch, aside, queues, items)
    for key, found in items.items():
        ordered = sorted(found, key=lambda item: item.offset)
        if key.place.flow in whole:
            ordered = [item._replace(whole=False) for item in ordered]
        _join(key, ordered, batch, aside, queues, now_us)


def _unended(
    batch: Batch, aside: Aside, queues: Mapping[Place, Mapping[bytes, Queue]]
) -> Mapping[Place, Mapping[bytes, Queue]]:
    """A floor ends what waits at or below it (H5); what comes after it of the key goes its own way."""
    floors = {(c.flow, c.topic): c.floor for c in batch.tables if c.floor > BOTTOM}
    if not floors:
        return queues
    left: dict[Place, Mapping[bytes, Queue]] = {}
    for place, known in queues.items():
        floor = floors.get(place[:2], BOTTOM)
        ended = [name for name, queue in known.items() if BOTTOM < queue.version <= floor]
        batch.unparks += [Key(place, name) for name in ended]
        aside.after.update((Key(place, name), None) for name in ended)
        left[place] = {name: queue for name, queue in known.items() if name not in ended} if ended else known
    return left


def _parts(fold: PartitionFold) -> tuple[dict[bytes, Write], ...]:
    return fold.rows, fold.creates, fold.patches, fold.deletes


def _item(
    batch: Batch, place: Place, write: Write, reason: tuple[str, str, bool] | None, *, created: bool = False
) -> Item:
    change = write.change
    record = batch.records.get(change.schema_id)
    created = created or change.op in "cr"
    whole = change.op == "d" or created or UNAVAILABLE not in write.row.values()
    payload = payload_of(write, record, created=created)
    return Item(write.offset, change.version, payload, whole, names_of(place.topic, record), reason)


def _divert(
    changes: TableChanges,
    batch: Batch,
    aside: Aside,
    queues: Mapping[Place, Mapping[bytes, Queue]],
    items: dict[Key, list[Item]],
) -> None:
    """Writes of keys that are parked already."""
    for fold in changes.folds:
        place = Place(changes.flow, changes.topic, fold.partition)
        known = queues.get(place)
        if not known:
            continue
        for part in _parts(fold):
            for key in part.keys() & known.keys():
                write = part.pop(key)
                aside.taken.append((part, key, write))
                items[Key(place, key)].append(_item(batch, place, write, None, created=part is fold.creates))


def _join(
    key: Key,
    items: list[Item],
    batch: Batch,
    aside: Aside,
    queues: Mapping[Place, Mapping[bytes, Queue]],
    now_us: int,
) -> None:
    known = queues.get(key.place, {}).get(key.key)
    entries: list[Parked] = []  # what this batch adds
    head = known.head if known else None
    sequence = known.sequence if known else 0
    version = known.version if known else BOTTOM
    poisons = known.poisons if known else 0
    replaced = False
    for item in items:
        if item.decodes and version > BOTTOM and item.version <= version:
            continue  # the queue has it, or something newer
        if not item.decodes and poisons >= QUEUE_POISONS_LIMIT:
            continue  # its dead letter has all of it
        if head is None:
            assert item.reason is not None, "only what is refused opens a queue"
            code, message, waiting = item.reason
            head = Parked(
                key.place, key.key, 1, item.offset, item.version, b"", item.decodes, *item.names,
                waiting, code, message, 1, now_us,
            )  # fmt: skip
        elif item.whole:
            replaced, entries, poisons = True, [], 0
            if head.asked == "discard":  # what was meant is gone; the key's next change is applied as usual
                head = replace(head, asked="retry")
        sequence += 1
        poisons += not item.decodes
        joins = known is not None and not replaced  # an operator's mark is on those before it
        entry = replace(
            head,
            asked="" if joins else head.asked,
            asked_by="" if joins else head.asked_by,
            sequence=sequence,
            offset=item.offset,
            version=item.version,
            payload=item.payload,
            decodes=item.decodes,
        )
        entries.append(entry)
        version = max(version, item.version)
    if head is None or not entries:
        return
    if replaced and known is not None:
        batch.unparks.append(key)
        batch.wishes[key] = known.head.asked
    batch.parks += entries
    kept = None
    if head.waiting:
        kept = entries if replaced or known is None else [*(known.entries or []), *entries]
    length = sum(entry.decodes for entry in entries) + (0 if replaced or known is None else known.length)
    first = entries[0] if replaced or known is None else head
    aside.after[key] = Queue(replace(first, payload=b""), sequence, version, length, poisons, kept)


def shortened(entries: list[Parked]) -> list[Parked]:
    """The same queue with its changes folded into one; what does not decode stays before it, as it is.

    All that is behind the first whole change is a patch: a queue that is not begins anew with it.
    """
    kept = [entry for entry in entries if not entry.decodes]
    changes = [entry for entry in entries if entry.decodes]
    if not changes:
        return entries
    folded = fold_events([event_of(entry) for entry in changes], changes[0].place.partition)
    if folded.deletes and folded.rereads:
        return entries  # the note of the re-read is made when they are applied
    last = changes[-1]
    for part in _parts(folded):
        for write in part.values():
            payload = payload_of(write, None, created=part is folded.creates)
            kept.append(replace(last, payload=payload, version=write.change.version, offset=write.offset))
    return kept


Reason = tuple[str, str]  # code, message


def wish_of(entries: Iterable[Parked]) -> str:
    """What operators ask for of a key; what has joined since has no mark."""
    return next((entry.asked for entry in entries if entry.asked), "")


def again(entries: list[Parked], reason: Reason, *, waiting: bool) -> list[Parked]:
    """The same queue after one more attempt that was refused."""
    code, message = reason
    attempts = entries[0].attempts + 1
    return [
        replace(e, code=code, message=message, attempts=attempts, waiting=waiting, asked="", asked_by="")
        for e in entries
    ]
