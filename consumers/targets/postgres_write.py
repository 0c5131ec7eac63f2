"""One batch in one transaction of a Postgres target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import AsyncCursor

from consumers.apply.checkpoint import ANYWHERE, Place
from consumers.apply.fold import BOTTOM, TOP, PartitionFold, Reread, Version, Write
from consumers.targets import postgres_constraints as constraints
from consumers.targets import postgres_floors as floor
from consumers.targets import postgres_parked as parked
from consumers.targets import postgres_state as state
from consumers.targets.base import Batch, Outcome, TableChanges
from consumers.targets.postgres_arrays import plain, quoted
from consumers.targets.postgres_memory import Memory
from consumers.targets.postgres_plans import Literals, Plan
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Flow
from streamer.errors import BadRecordError

Plans = Mapping[tuple[str, str, str], Plan]
Cursor = AsyncCursor[tuple[object, ...]]
Work = list[tuple[TableChanges, list[PartitionFold]]]


@dataclass(slots=True)
class _Counted:
    """A statement in the pipeline, and whose refused writes it counts."""

    cursor: Cursor
    flow: str
    sent: int


@dataclass(frozen=True, slots=True)
class Ready:
    """The arrays of a table's rows, made before the batch's turn. Folds only ever lose rows after that,
    so that an equal count means the same rows."""

    plan: Plan
    count: int
    literals: Literals


async def make_ready(changes: TableChanges, plan: Plan) -> None:
    """For the plain case: one schema version, whole rows. What cannot be sent is left for `apply` to name."""
    if not plan.key or len(changes.schema_ids) > 1 or any(fold.creates for fold in changes.folds):
        return
    rows = [write for fold in changes.folds for write in fold.rows.values()]
    try:
        literals = await plan.literals_in_turns(plan.columns, rows)
    except BadRecordError:
        return
    changes.ready = Ready(plan, len(rows), literals)


@dataclass(slots=True)
class Begun:
    """A transaction that has its locks: what may move, floors by table, lost places, the work in order.
    `kept`: what the floors that it raises pass over."""

    moves: list[Any]
    floors: dict[tuple[str, str], Version]
    lost: set[Place]
    work: Work
    kept: floor.Kept


async def begin(
    connection: state.Connection, batch: Batch, plans: Plans, flows: Mapping[str, Flow], outcome: Outcome
) -> Begun:
    """All that comes before the rows."""
    moves, floors = await _lock(connection, batch, outcome)
    lost = set(outcome.lost)
    placed = [
        (changes, [f for f in changes.folds if Place(changes.flow, changes.topic, f.partition) not in lost])
        for changes in batch.tables
    ]
    for changes, folds in placed:
        _complete(changes, folds, plans)
    work = constraints.parents_first(placed, plans)
    await constraints.check_at_once(connection, _plans_of(batch, plans))
    kept: dict[tuple[str, str], list[str]] = {}
    if any(changes.floor > BOTTOM for changes, _ in work):
        await floor.check_floors(connection, work, floors, plans)
        for changes, _ in work:
            if floor.is_raised(changes, floors, lost):
                plan = plans[changes.schema, changes.table, changes.record.id]
                keys = await floor.keys_kept(connection, changes, plan, batch, lost)
                kept[changes.flow, changes.topic] = keys
    if batch.parks:
        waiting = [entry for entry in batch.parks if entry.place not in lost]
        await constraints.give_way(connection, waiting, plans, flows)
    return Begun(moves, floors, lost, work, kept)


def _complete(changes: TableChanges, folds: list[PartitionFold], plans: Plans) -> None:
    """Rows whose placeholders stand in columns that the flow does not send are whole."""
    for fold in folds:
        for part in (fold.patches, fold.creates):
            for key, write in list(part.items()):
                plan = plans[changes.schema, changes.table, write.change.schema_id]
                if plan.sends_all or any(write.row.get(name) == UNAVAILABLE for name in plan.sources):
                    continue
                fold.rows[key] = part.pop(key)
                fold.rereads.pop(key, None)
                changes.ready = None  # was made of fewer rows


async def write_floors(connection: state.Connection, begun: Begun, plans: Plans) -> None:
    for changes, _ in reversed(begun.work):
        await floor.raise_floor(connection, changes, begun.floors, plans, begun.lost, begun.kept)


async def write_some(connection: state.Connection, work: Work, plans: Plans) -> None:
    """The rows of `work` alone, one statement after the other: for the search of what is refused."""
    for changes, folds in reversed(work):
        await _delete(connection, changes, folds, plans, [], {})
    for changes, folds in work:
        await _patch(connection, changes, folds, plans, Outcome())
    for changes, folds in work:
        await _rows(connection, changes, folds, plans, [], singly=False)
        await _keyless(connection, changes, folds, plans)


async def write_batch(
    connection: state.Connection,
    batch: Batch,
    plans: Plans,
    memory: Memory,
    flows: Mapping[str, Flow],
    *,
    singly: bool,
) -> Outcome:
    """`singly`: one statement a row, for rows that are one to the target though their keys differ."""
    outcome = Outcome()
    begun = await begin(connection, batch, plans, flows, outcome)
    moves, floors, lost, work = begun.moves, begun.floors, begun.lost, begun.work
    await parked.check(connection, batch, lost)
    for move in batch.moves:
        if move.expected == ANYWHERE:  # another process buries there, and this session does not know what
            memory.buried[move.place] = TOP
    rereads: list[tuple[TableChanges, Reread]] = []
    for changes, folds in work:
        await floor.drop_gone(connection, changes, folds, floors, memory, outcome)
        rereads += [(changes, reread) for fold in folds for reread in fold.rereads.values()]
    counted: list[_Counted] = []
    buried: dict[tuple[str, str, int], Version] = {}
    patched = any(fold.patches for _, folds in work for fold in folds)
    if patched:  # what they do not find is noted in the same transaction
        async with connection.pipeline():
            await _goes(connection, begun, plans, counted, buried)
        for changes, folds in work:
            rereads += await _patch(connection, changes, folds, plans, outcome)
    async with connection.pipeline():
        if not patched:
            await _goes(connection, begun, plans, counted, buried)
        for changes, folds in work:
            await _rows(connection, changes, folds, plans, counted, singly=singly)
            await _keyless(connection, changes, folds, plans)
            await _clear_rereads(connection, changes, folds, memory)
        await _note_rereads(connection, rereads)
        await _move(connection, batch, moves)
        await parked.write(connection, batch, lost)
        await connection.execute("COMMIT")
    await _count(counted, outcome)
    for place, version in buried.items():  # a replayed delete must not lower what is remembered
        memory.buried[place] = max(memory.buried.get(place, BOTTOM), version)
    for changes, _ in rereads:
        memory.flagged.add((changes.flow, changes.topic))
        outcome.rereads[changes.flow] = outcome.rereads.get(changes.flow, 0) + 1
    for changes, folds in work:
        events = sum(fold.events for fold in folds)
        outcome.applied[changes.flow] = outcome.applied.get(changes.flow, 0) + events
        skipped = sum(fold.skipped for fold in folds)
        outcome.guarded[changes.flow] = outcome.guarded.get(changes.flow, 0) + skipped
    return outcome


async def _lock(
    connection: state.Connection, batch: Batch, outcome: Outcome
) -> tuple[list[Any], dict[tuple[str, str], Version]]:
    """Begin; checkpoints in order, then floors. Moves that may be made, floors by table."""
    places = [move.place for move in batch.moves]
    tables = [(changes.schema, changes.table) for changes in batch.tables]
    floor_query = state.LOCK_FLOORS if any(c.floor > BOTTOM for c in batch.tables) else state.SHARE_FLOORS
    async with connection.pipeline():
        await connection.execute("BEGIN")
        held = await connection.execute(state.LOCK_CHECKPOINTS, state.columns_of(places), prepare=True)
        floor_rows = None
        if tables:
            columns = ([schema for schema, _ in tables], [table for _, table in tables])
            floor_rows = await connection.execute(floor_query, columns, prepare=True)
    stands = {(flow, topic, partition): at for flow, topic, partition, at in await held.fetchall()}
    moves = []
    for move in batch.moves:
        at = stands.get((*move.place,))
        if move.expected == ANYWHERE and at is not None:
            continue
        if at == move.expected:
            moves.append(move)
        else:
            outcome.lost.append(move.place)
    floors: dict[tuple[str, str], Version] = {}
    if floor_rows is not None:
        for schema, table, *version in await floor_rows.fetchall():
            epoch, lsn, ordinal = (int(str(part)) for part in version)
            floors[str(schema), str(table)] = (epoch, lsn, ordinal)
    return moves, floors


async def _goes(
    connection: state.Connection,
    begun: Begun,
    plans: Plans,
    counted: list[_Counted],
    buried: dict[tuple[str, str, int], Version],
) -> None:
    floors, lost = begun.floors, begun.lost
    for changes, folds in reversed(begun.work):  # rows that refer to others go before them
        plan = plans[changes.schema, changes.table, changes.record.id]
        if plan.first_stays and changes.floor[1:] == (0, 0) and floor.is_raised(changes, floors, lost):
            await _rows(connection, changes, folds, plans, [], singly=False)  # a reset's: they are there yet
        await floor.raise_floor(connection, changes, floors, plans, lost, begun.kept)
        await _delete(connection, changes, folds, plans, counted, buried)


def _plans_of(batch: Batch, plans: Plans) -> Iterable[Plan]:
    for changes in batch.tables:
        for schema_id in changes.schema_ids:
            yield plans[changes.schema, changes.table, schema_id]


def _by_schema(changes: TableChanges, writes: Iterable[Write]) -> Iterable[tuple[str, list[Write]]]:
    """Writes by schema id; nearly always there is one."""
    if len(changes.schema_ids) == 1:
        found = list(writes)
        return [(next(iter(changes.schema_ids)), found)] if found else []
    groups: dict[str, list[Write]] = {}
    for write in writes:
        groups.setdefault(write.change.schema_id, []).append(write)
    return groups.items()


async def _delete(
    connection: state.Connection,
    changes: TableChanges,
    folds: list[PartitionFold],
    plans: Plans,
    counted: list[_Counted],
    buried: dict[tuple[str, str, int], Version],
) -> None:
    deletes = [(fold.partition, key, write) for fold in folds for key, write in fold.deletes.items()]
    if not deletes:
        return
    guarded = False
    for schema_id, writes in _by_schema(changes, [write for _, _, write in deletes]):
        plan = plans[changes.schema, changes.table, schema_id]
        cursor = await connection.execute(plan.delete_sql, plan.delete_literals(writes), prepare=True)
        counted.append(_Counted(cursor, changes.flow, -1))
        guarded = guarded or plan.version != "none"
    if not guarded:
        return
    await connection.execute(
        state.BURY,
        (
            changes.flow,
            changes.topic,
            plain([partition for partition, _, _ in deletes]),
            plain([state.key_hash(key) for _, key, _ in deletes]),
            plain([write.change.epoch for _, _, write in deletes]),
            plain([write.change.commit_lsn for _, _, write in deletes]),
            plain([write.change.ordinal for _, _, write in deletes]),
        ),
        prepare=True,
    )
    for partition, _, write in deletes:
        place = (changes.flow, changes.topic, partition)
        buried[place] = max(buried.get(place, BOTTOM), write.change.version)


async def _patch(
    connection: state.Connection,
    changes: TableChanges,
    folds: list[PartitionFold],
    plans: Plans,
    outcome: Outcome,
) -> list[tuple[TableChanges, Reread]]:
    """Updates of the columns that are known; gives the keys whose base row is missing (H7)."""
    groups: dict[tuple[str, frozenset[str]], list[tuple[bytes, Write]]] = {}
    for fold in folds:
        for key, write in fold.patches.items():
            present = frozenset(name for name, value in write.row.items() if value != UNAVAILABLE)
            groups.setdefault((write.change.schema_id, present), []).append((key, write))
    missing = []
    for (schema_id, present), patches in groups.items():
        plan = plans[changes.schema, changes.table, schema_id]
        arrays = plan.literals(plan.patched(present), [write for _, write in patches])
        arrays.append(plain(range(len(patches))))
        cursor = await constraints.run(connection, plan, plan.patch_sql(present), arrays)
        for statement, more in plan.after_patch([write for _, write in patches]):
            await constraints.run(connection, plan, statement, more)
        for index, there in await cursor.fetchall():
            key, write = patches[int(str(index))]
            if there:
                outcome.guarded[changes.flow] = outcome.guarded.get(changes.flow, 0) + 1
            else:
                reread = Reread(key, write.change, "an update whose row is not in the target")
                missing.append((changes, reread))
    return missing


async def _rows(
    connection: state.Connection,
    changes: TableChanges,
    folds: list[PartitionFold],
    plans: Plans,
    counted: list[_Counted],
    *,
    singly: bool,
) -> None:
    rows = [write for fold in folds for write in fold.rows.values()]
    rows += [write for fold in folds for write in fold.creates.values()]
    ahead = changes.ready
    for schema_id, writes in _by_schema(changes, rows):
        plan = plans[changes.schema, changes.table, schema_id]
        if not singly and isinstance(ahead, Ready) and ahead.plan is plan and ahead.count == len(writes):
            await _put(connection, changes.flow, plan, ahead.literals, len(writes), counted)
            continue
        ready, unfit = _without_placeholders(plan, folds, writes)
        if singly:
            ready.sort(key=lambda write: write.change.version)
        for part in [[write] for write in ready] if singly else [ready]:
            if part:
                arrays = plan.row_literals(part)
                await _put(connection, changes.flow, plan, arrays, len(part), counted)
        if unfit:  # the row before it under this key is another one, and must not stay (H6)
            await connection.execute(plan.delete_sql, plan.delete_literals(unfit), prepare=True)


async def _put(
    connection: state.Connection,
    flow: str,
    plan: Plan,
    arrays: Literals,
    count: int,
    counted: list[_Counted],
) -> None:
    for statement in plan.row_statements:
        cursor = await constraints.run(connection, plan, statement, arrays)
    if plan.counts:
        counted.append(_Counted(cursor, flow, -1 if plan.tells_kept else count))


def _without_placeholders(
    plan: Plan, folds: list[PartitionFold], writes: list[Write]
) -> tuple[list[Write], list[Write]]:
    """Creates with placeholders get NULL there; those that the target's NOT NULL forbids stand apart."""
    if not any(fold.creates for fold in folds):
        return writes, []
    strict = {column.name for column in plan.columns if column.not_null}
    ready, unfit = [], []
    for write in writes:
        absent = [name for name, value in write.row.items() if value == UNAVAILABLE]
        if not absent:
            ready.append(write)
        elif strict.intersection(absent):
            unfit.append(write)
        else:
            ready.append(write._replace(row={**write.row, **dict.fromkeys(absent)}))
    return ready, unfit


async def _keyless(
    connection: state.Connection, changes: TableChanges, folds: list[PartitionFold], plans: Plans
) -> None:
    """Added rows first: a removal may be of one of them that looks different in JSON (H27)."""
    for schema_id, writes in _by_schema(changes, [write for fold in folds for write in fold.added]):
        plan = plans[changes.schema, changes.table, schema_id]
        arrays = plan.literals(plan.columns, writes)
        await constraints.run(connection, plan, plan.insert_sql, arrays)
    for fold in folds:
        for write in fold.removed:
            plan = plans[changes.schema, changes.table, write.change.schema_id]
            await connection.execute(plan.remove_sql, plan.whole_row(write), prepare=True)


async def _clear_rereads(
    connection: state.Connection, changes: TableChanges, folds: list[PartitionFold], memory: Memory
) -> None:
    """A whole row, or a delete, mends what was noted."""
    if (changes.flow, changes.topic) not in memory.flagged:
        return
    mended = [item for fold in folds for part in (fold.rows, fold.deletes) for item in part.items()]
    if not mended:
        return
    await connection.execute(
        state.CLEAR_REREADS,
        (
            changes.flow,
            changes.topic,
            plain([state.key_hash(key) for key, _ in mended]),
            plain([write.change.epoch for _, write in mended]),
            plain([write.change.commit_lsn for _, write in mended]),
            plain([write.change.ordinal for _, write in mended]),
        ),
        prepare=True,
    )


async def _note_rereads(connection: state.Connection, rereads: list[tuple[TableChanges, Reread]]) -> None:
    for changes, reread in rereads:
        await connection.execute(
            state.NOTE_REREADS,
            (
                changes.flow,
                changes.topic,
                changes.schema,
                changes.table,
                plain([state.key_hash(reread.key)]),
                quoted([reread.key.decode()]),
                plain([reread.change.epoch]),
                plain([reread.change.commit_lsn]),
                plain([reread.change.ordinal]),
                quoted([reread.reason]),
            ),
            prepare=True,
        )


async def _move(connection: state.Connection, batch: Batch, moves: list[Any]) -> None:
    if not moves:
        return
    lasts = [move.last for move in moves]
    await connection.execute(
        state.MOVE_CHECKPOINTS,
        (
            *state.columns_of([move.place for move in moves]),
            plain([move.next_offset for move in moves]),
            batch.cluster_id,
            plain([last and last.offset for last in lasts]),
            plain([last and last.checksum for last in lasts]),
            plain([last and last.epoch for last in lasts]),
            plain([last and last.commit_lsn for last in lasts]),
            plain([last and last.ordinal for last in lasts]),
        ),
        prepare=True,
    )


async def _count(counted: list[_Counted], outcome: Outcome) -> None:
    for item in counted:
        if item.sent < 0:
            row = await item.cursor.fetchone()
            refused = int(str(row[1])) if row else 0
        else:
            refused = item.sent - item.cursor.rowcount
        outcome.guarded[item.flow] = outcome.guarded.get(item.flow, 0) + refused
