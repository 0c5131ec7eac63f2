"""A batch as the arguments of one script, and what the script says of it.

The other half of redis_scripts.APPLY. Owns the order of its arguments:

    moves    count, then (field, expected offset, next offset, last record or "", cluster) each
    groups   count, then one a table and partition: move, layout, rows, gone, rereads, name, ttl, write,
             ops: count, then (kind, record's field, key's number, member, version, length, payload...) each,
             notes: count, then (field, version, text) each
    state    un-parked, parked, counts of deletes: count, then what redis_parked makes of each

Kinds of ops: `d` delete, `s` soft delete, `p` patch, `w` whole row, in this order in a group: a row that is
made again after its delete comes behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from orjson import dumps

from consumers.apply.checkpoint import Checkpoint, LastRecord, Place
from consumers.apply.fold import PartitionFold, Reread, Write
from consumers.targets.base import Batch, Outcome, Refused, RowsRefused, TableChanges
from consumers.targets.redis_layout import Arg, Plan, Unfit, packed
from consumers.targets.redis_parked import state_args
from streamer.changes.kinds import UNAVAILABLE

REFUSED_LIMIT = 100  # rows named at once, as every target does
SLICE = 500  # rows between two turns of the event loop: some 2 ms
WRONG_TYPE = "wrong_type"
MISSING_BASE = "an update whose row is not in the target"

Plans = Mapping[tuple[str, str, str, str], Plan]  # by flow, schema, table, schema id


@dataclass(slots=True)
class Group:
    """A table's part of one partition. `ops`, as the script numbers them: (Kafka key, write, key)."""

    changes: TableChanges
    fold: PartitionFold
    place: Place
    ops: list[tuple[bytes, Write, str]] = field(default_factory=list)


@dataclass(slots=True)
class Request:
    """KEYS and ARGV of the script."""

    keys: list[str] = field(default_factory=list)
    args: list[Arg] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    unfit: list[Refused] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)  # of keys that several rows share


async def request_of(batch: Batch, plans: Plans) -> Request:
    request = Request()
    request.args += _moves(batch)
    moves = {move.place: number for number, move in enumerate(batch.moves, 1)}
    groups = [
        Group(changes, fold, Place(changes.flow, changes.topic, fold.partition))
        for changes in batch.tables
        for fold in changes.folds
    ]
    request.args.append(len(groups))
    for group in groups:
        await _add_group(request, group, moves.get(group.place, 0), plans)
    request.args += state_args(batch, moves)
    return request


def _moves(batch: Batch) -> list[Arg]:
    args: list[Arg] = [len(batch.moves)]
    for move in batch.moves:
        args += (place_field(move.place), move.expected, move.next_offset, _last(move.last), batch.cluster_id)
    return args


def place_field(place: Place) -> str:
    return dumps(list(place)).decode()


def _last(last: LastRecord | None) -> str:
    if last is None:
        return ""
    return f"{last.offset},{last.checksum},{last.epoch},{last.commit_lsn},{last.ordinal}"


def checkpoint_of(place: Place, text: bytes) -> Checkpoint:
    next_offset, last, cluster = text.decode().split(" ", 2)
    record = None if last == "-" else LastRecord(*map(int, last.split(",")))
    return Checkpoint(place, int(next_offset), None if cluster == "-" else cluster, record)


async def _add_group(request: Request, group: Group, move: int, plans: Plans) -> None:
    changes, fold, args = group.changes, group.fold, request.args
    place = changes.flow, changes.schema, changes.table
    plan = plans[(*place, changes.record.id)]
    names, flow = plan.names, plan.flow
    ttl_ms = round(flow.ttl_s * 1000) if flow.ttl_s else 0
    args += (move, plan.layout, names.rows, names.gone, names.rereads, names.name, ttl_ms, flow.write)
    counted = len(args)
    args.append(0)
    for number, (kind, key, write) in enumerate(_writes(fold, soft=plan.columns.soft_delete is not None)):
        if number % SLICE == SLICE - 1:
            await asyncio.sleep(0)  # the next batch is decoded meanwhile
        try:
            _add_op(request, group, plans[(*place, write.change.schema_id)], kind, key, write)
        except Unfit as error:
            _unfit(request, group.place, key, write, error)
    args[counted] = len(group.ops)
    notes = []
    for key, reread in fold.rereads.items():
        row = _row_of(fold, key, reread)
        try:
            at = plans[(*place, reread.change.schema_id)].named(row, key).field
        except Unfit:
            continue  # the row itself is refused
        notes.append((at, packed(reread.change.version), _note(key, reread.reason)))
    args.append(len(notes))
    for note in notes:
        args += note
    request.groups.append(group)


def _writes(fold: PartitionFold, *, soft: bool) -> Iterator[tuple[str, bytes, Write]]:
    for key, write in fold.deletes.items():
        yield "s" if soft else "d", key, write
    for key, write in fold.patches.items():
        yield "p", key, write
    for key, write in fold.rows.items():
        yield "w", key, write
    for key, write in fold.creates.items():
        yield "w", key, _without_placeholders(write)


def _without_placeholders(write: Write) -> Write:
    """A create with placeholders gets null there (H6)."""
    return write._replace(row={n: None if v == UNAVAILABLE else v for n, v in write.row.items()})


def _add_op(request: Request, group: Group, plan: Plan, kind: str, key: bytes, write: Write) -> None:
    row = write.row
    name, member, record = plan.named(row, key)
    payload: list[Arg] = []
    if kind == "w":
        payload = plan.whole(row)
    elif kind == "p":
        payload = [*plan.part(row), _note(key, MISSING_BASE)]
    elif kind == "s":
        payload = plan.soft(write.change.commit_us)
    keys = request.keys
    if member:
        number = request.numbers.get(name)
        if number is None:
            keys.append(name)
            number = request.numbers[name] = len(keys)
    else:
        keys.append(name)
        number = len(keys)
    request.args += (kind, record, number, member, packed(write.change.version), len(payload), *payload)
    group.ops.append((key, write, name))


def _row_of(fold: PartitionFold, key: bytes, reread: Reread) -> Mapping[str, Any]:
    """The row that is to be read again: its key's columns at least."""
    for part in (fold.creates, fold.patches, fold.rows, fold.deletes):
        if key in part:
            return part[key].row
    return reread.change.after or reread.change.before or {}


def _note(key: bytes, reason: str) -> bytes:
    return key + b"\n" + reason.encode()


def _unfit(request: Request, place: Place, key: bytes, write: Write, error: Unfit) -> None:
    if len(request.unfit) < REFUSED_LIMIT:
        request.unfit.append(Refused(place, key, write, error.code, str(error), transient=False))


# What the script says


def outcome_of(batch: Batch, request: Request, reply: list[Any], where: str) -> Outcome:
    """Raises RowsRefused; nothing was written then."""
    lost_moves, counts, refused = reply
    outcome = Outcome(lost=[batch.moves[number].place for number in lost_moves])
    lost = set(outcome.lost)
    rows = []
    for group_number, op, found in refused:
        group = request.groups[group_number]
        key, write, name = group.ops[op]
        what = f"the key {name!r} is there with another type ({found.decode()}), which is not overwritten"
        rows.append(Refused(group.place, key, write, WRONG_TYPE, what, transient=False))
    if rows:
        raise RowsRefused(rows, where=where)
    for group in request.groups:
        if group.place not in lost:
            _count(outcome.applied, group.changes.flow, group.fold.events)
            _count(outcome.guarded, group.changes.flow, group.fold.skipped)
    for group_number, guarded, missed in counts:
        flow = request.groups[group_number].changes.flow
        _count(outcome.guarded, flow, guarded)
        _count(outcome.rereads, flow, missed)
    return outcome


def _count(counts: dict[str, int], flow: str, more: int) -> None:
    if more:
        counts[flow] = counts.get(flow, 0) + more
