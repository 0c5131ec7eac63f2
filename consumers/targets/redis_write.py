"""A batch as the arguments of one script, and what the script says of it.

The other half of redis_scripts.APPLY. Owns the order of its arguments:

    moves    count, then (field, expected offset, next offset, last record or "", cluster) each
    groups   count, then one a table and partition: move, layout, rows, gone, rereads, name, ttl, write,
             soft or "", singly or "", the columns of redis_ops,
             notes: count, then (field, version, text) each
    state    un-parked, parked, counts of deletes: count, then what redis_parked makes of each

A group stands by itself: its keys follow one another in KEYS, and of the batch it names its move alone.
`singly`: a record may be there twice, or has been written by a group before, and so none is read ahead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orjson import dumps

from consumers.apply.checkpoint import Checkpoint, LastRecord, Place
from consumers.apply.fold import PartitionFold, Reread
from consumers.targets.base import AskedAnew, Batch, Outcome, Refused, RowsRefused, TableChanges
from consumers.targets.redis_layout import Arg, Names, Space, Unfit, packed
from consumers.targets.redis_ops import REFUSED_LIMIT, Ops, Plans, note_text, ops_of
from consumers.targets.redis_parked import state_args

WRONG_TYPE = "wrong_type"

Note = tuple[str, bytes, bytes]  # name of the record, version, text


@dataclass(slots=True)
class Request:
    """KEYS and ARGV of the script."""

    keys: list[str] = field(default_factory=list)
    args: list[Arg] = field(default_factory=list)
    groups: list[Ops] = field(default_factory=list)

    @property
    def unfit(self) -> list[Refused]:
        return [refused for ops in self.groups for refused in ops.unfit][:REFUSED_LIMIT]


async def request_of(batch: Batch, plans: Plans, space: Space) -> Request:
    request = Request()
    request.args += moves_args(batch)
    moves = {move.place: number for number, move in enumerate(batch.moves, 1)}
    for changes in batch.tables:
        request.groups += await _ready(changes, plans)
    request.args.append(len(request.groups))
    written: dict[str, set[str]] = {}
    for ops in request.groups:
        notes = [note for _, note in notes_of(ops.changes, ops.fold, plans)]
        add_group(request, ops, moves.get(ops.place, 0), ops.plan.names, notes, written)
    request.args += state_args(batch, moves, space)
    return request


async def _ready(changes: TableChanges, plans: Plans) -> list[Ops]:
    """What was made ahead, where no row was taken out since."""
    ahead = changes.ready if isinstance(changes.ready, list) else []
    made = {id(ops.fold): ops for ops in ahead if isinstance(ops, Ops)}
    found = []
    for fold in changes.folds:
        ops = made.get(id(fold))
        found.append(ops if ops is not None and ops.is_of(fold) else await ops_of(changes, fold, plans))
    return found


def add_group(
    request: Request, ops: Ops, move: int, names: Names, notes: Sequence[Note], written: dict[str, set[str]]
) -> None:
    """`written`: names of records by table, of the groups before."""
    plan, args = ops.plan, request.args
    flow = plan.flow
    before = written.get(names.rows)
    singly = len(ops.names) < len(ops.fields) or (before is not None and not before.isdisjoint(ops.names))
    written[names.rows] = ops.names if before is None else before | ops.names
    args += (move, plan.layout, names.rows, names.gone, names.rereads, names.name)
    args += (round(flow.ttl_s * 1000) if flow.ttl_s else 0, flow.write)
    args += ("soft" if plan.columns.soft_delete is not None else "", "singly" if singly else "")
    args += ops.args
    args.append(len(notes))
    for note in notes:
        args += note
    request.keys += ops.keys


def notes_of(changes: TableChanges, fold: PartitionFold, plans: Plans) -> list[tuple[str, Note]]:
    """(key in Redis, its note) of rows that are to be read again."""
    notes = []
    for key, reread in fold.rereads.items():
        plan = plans[changes.flow, changes.schema, changes.table, reread.change.schema_id]
        try:
            named = plan.named(_row_of(fold, key, reread), key)
        except Unfit:
            continue  # the row itself is refused
        note = named.field, packed(reread.change.version), note_text(key, reread.reason)
        notes.append((named.key, note))
    return notes


def moves_args(batch: Batch) -> list[Arg]:
    args: list[Arg] = [len(batch.moves)]
    for move in batch.moves:
        args += (place_field(move.place), move.expected, move.next_offset)
        args += (last_text(move.last), batch.cluster_id)
    return args


def place_field(place: Place) -> str:
    return dumps(list(place)).decode()


def last_text(last: LastRecord | None) -> str:
    if last is None:
        return ""
    return f"{last.offset},{last.checksum},{last.epoch},{last.commit_lsn},{last.ordinal}"


def checkpoint_of(place: Place, text: bytes, replay: bytes | None = None) -> Checkpoint:
    next_offset, last, cluster = text.decode().split(" ", 2)
    record = None if last == "-" else LastRecord(*map(int, last.split(",")))
    until = 0 if replay is None else int(replay.partition(b" ")[0])
    return Checkpoint(place, int(next_offset), None if cluster == "-" else cluster, record, until)


def _row_of(fold: PartitionFold, key: bytes, reread: Reread) -> Mapping[str, Any]:
    """The row that is to be read again: its key's columns at least."""
    for part in (fold.creates, fold.patches, fold.rows, fold.deletes):
        if key in part:
            return part[key].row
    return reread.change.after or reread.change.before or {}


# What the script says


def outcome_of(batch: Batch, request: Request, reply: list[Any], where: str) -> Outcome:
    """Raises RowsRefused, AskedAnew; nothing was written then."""
    lost_moves, counts, refused = reply[:3]
    raise_asked(batch, reply)
    outcome = Outcome(lost=[batch.moves[number].place for number in lost_moves])
    lost = set(outcome.lost)
    if rows := refused_of(request, refused):
        raise RowsRefused(rows, where=where)
    for group in request.groups:
        if group.place not in lost:
            count(outcome.applied, group.changes.flow, group.fold.events)
            count(outcome.guarded, group.changes.flow, group.fold.skipped)
    for group_number, guarded, missed in counts:
        flow = request.groups[group_number].changes.flow
        count(outcome.guarded, flow, guarded)
        count(outcome.rereads, flow, missed)
    return outcome


def raise_asked(batch: Batch, reply: Sequence[Any]) -> None:
    """Raises AskedAnew for keys whose wish has changed, which are numbered behind all else."""
    if len(reply) > 3:
        raise AskedAnew([batch.unparks[number] for number in reply[3]])


def refused_of(request: Request, refused: Sequence[Any]) -> list[Refused]:
    rows = []
    for group_number, op, found in refused:
        group = request.groups[group_number]
        key, write, name = group.writes[op]
        what = f"the key {name!r} is there with another type ({found.decode()}), which is not overwritten"
        rows.append(Refused(group.place, key, write, WRONG_TYPE, what, transient=False))
    return rows


def count(counts: dict[str, int], flow: str, more: int) -> None:
    if more:
        counts[flow] = counts.get(flow, 0) + more
