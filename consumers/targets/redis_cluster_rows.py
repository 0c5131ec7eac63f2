"""Rows of a Redis target that is a Redis Cluster: a script a slot, then the marks, then the checkpoints.

The order is the promise. A batch whose checkpoints have moved writes nothing; rows are written, each slot's
whole or not at all; every master is marked; only then do the checkpoints move, with what is parked, in one
script. Whoever dies in between leaves rows that are ahead of their checkpoint: they are written again, and
the version beside each row keeps what is newer, as it does when a process that has lost its partition writes
late. A row at a version is what all events up to it make, whichever batches they came in: a second time is
the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

from orjson import dumps, loads

from consumers.apply.checkpoint import Place
from consumers.targets import redis_batch_script as batch_script
from consumers.targets.base import Batch, Outcome, Refused, RowsRefused, TableChanges
from consumers.targets.redis_cluster import Call, ClusterSession
from consumers.targets.redis_layout import CLUSTER, Arg, Names
from consumers.targets.redis_marks import STATE_KEYS, Marks
from consumers.targets.redis_one import BELOW, COUNT, FORGET, PURGE, STEP_ROWS, TRUNCATE
from consumers.targets.redis_ops import REFUSED_LIMIT, Plans
from consumers.targets.redis_parked import state_args
from consumers.targets.redis_scripts import Script
from consumers.targets.redis_slots import SLOTS, SlotBatch, names_in, slot_batch_of, slot_ops_of, table_keys
from consumers.targets.redis_state_scripts import SLOT_FLOOR
from consumers.targets.redis_write import Request, count, moves_args, raise_asked, refused_of

SWEEP_SLOTS = 2048  # of a table that a sweep looks at: some 0.1 s; all of them in eight sweeps
TABLES_AT_ONCE = 64  # slots whose rows a truncate takes away at the same time
STAYS = -2  # as `expected`: where no checkpoint is
NOTED = CLUSTER.key("noted")  # set of [flow, schema, table, tag]: slots that have had rows to be read again

_ROWS, _STATE = Script(batch_script.ROWS), Script(batch_script.STATE, CLUSTER)
_FLOOR = Script(SLOT_FLOOR)


class ClusterRows:
    def __init__(self, session: ClusterSession) -> None:
        self._session = session
        self.marks = Marks(session)
        self._swept: dict[Names, int] = {}  # the slot that is next

    async def make_ready(self, changes: TableChanges, plans: Plans) -> None:
        """Before the batch's turn."""
        changes.ready = [await slot_ops_of(changes, fold, plans) for fold in changes.folds]

    async def request(self, batch: Batch, plans: Plans) -> SlotBatch:
        return await slot_batch_of(batch, plans)

    async def write(self, batch: Batch, request: SlotBatch, plans: Plans, lost: Collection[Place]) -> Outcome:
        """Raises RowsRefused: of the slots without a refused row the rows are written, and come again; and
        AskedAnew, behind the rows."""
        slots = request.requests(plans, lost)
        replies = await self._write_rows(list(slots.values()))
        where = self.marks.now()
        behind = await self.marks.put([move for move in batch.moves if move.place not in lost], where)
        # Of a node that has lost rows: these checkpoints are to be read anew, and go back then.
        moves = [replace(move, expected=STAYS) if move.place in behind else move for move in batch.moves]
        held = replace(batch, moves=moves)
        reply = await send_state(
            self._session, _state_args(held, request, lost, _noted(slots, replies), where)
        )
        raise_asked(batch, reply)
        outcome = Outcome(lost=[batch.moves[number].place for number in reply[0]])
        gone = set(outcome.lost)
        self.marks.moved([move for move in batch.moves if move.place not in gone], where)
        _count(outcome, request, list(slots.values()), replies)
        return outcome

    async def _write_rows(self, requests: Sequence[Request]) -> list[Any]:
        calls = [Call(_ROWS, some.keys, some.args) for some in requests]
        replies = await self._session.scripts(calls)
        rows: list[Refused] = []
        for some, (_, _, refused) in zip(requests, replies, strict=True):
            rows += refused_of(some, refused)
        if rows:
            raise RowsRefused(rows[:REFUSED_LIMIT], where=self._session.place)
        return replies

    async def clear(self, names: Names, layout: tuple[str, str], floor: bytes, behind: Sequence[Arg]) -> None:
        """The floor goes to every slot, and what is at or below it goes from there. A process that does not
        know of it yet finds it where it writes: it has written before, and that is taken away, or is late."""
        tables = [names_in(names, slot) for slot in range(SLOTS)]
        raised = [Call(_FLOOR, table_keys(table), (names.name, floor)) for table in tables]
        found = await self._session.scripts(raised)
        full = [table for table, records in zip(tables, found, strict=True) if records]
        for start in range(0, len(full), TABLES_AT_ONCE):
            some = full[start : start + TABLES_AT_ONCE]
            await self._steps(
                {t: (TRUNCATE, (*layout, t.rows, t.gone, t.rereads, floor), behind) for t in some},
            )
            await self._steps({t: (FORGET, (t.rereads, floor), ()) for t in some})

    async def count_below(
        self, names: Names, layout: tuple[str, str], floor: bytes, behind: Sequence[Arg], limit: int
    ) -> int:
        """Rows that `clear` would take; slots that have none are passed over by their counts."""
        tables = [names_in(names, slot) for slot in range(SLOTS)]
        calls = [Call(COUNT, (t.rows, t.gone), (t.rows, t.gone)) for t in tables]
        counts = await self._session.scripts(calls)
        full = [table for table, rows in zip(tables, counts, strict=True) if int(rows)]
        found = 0
        for start in range(0, len(full), TABLES_AT_ONCE):
            cursors: dict[Names, Arg] = dict.fromkeys(full[start : start + TABLES_AT_ONCE], 0)
            while cursors and found < limit:
                steps = await self._session.scripts(
                    [
                        Call(BELOW, table_keys(t), (*layout, t.rows, t.gone, floor, at, STEP_ROWS, *behind))
                        for t, at in cursors.items()
                    ]
                )
                found += sum(int(count) for _, count in steps)
                cursors = {t: at for t, (at, _) in zip(cursors, steps, strict=True) if int(at) != 0}
        return found

    async def _steps(self, walks: dict[Names, tuple[Script, tuple[Arg, ...], Sequence[Arg]]]) -> None:
        """Each in as many steps as its cursor takes."""
        cursors: dict[Names, Arg] = dict.fromkeys(walks, 0)
        while cursors:
            calls = []
            for table, cursor in cursors.items():
                script, before, behind = walks[table]
                calls.append(Call(script, table_keys(table), (*before, cursor, STEP_ROWS, *behind)))
            replies = await self._session.scripts(calls)
            cursors = {table: reply for table, reply in zip(cursors, replies, strict=True) if int(reply) != 0}

    async def count(self, names: Names) -> int:
        tables = [(table.rows, table.gone) for table in (names_in(names, slot) for slot in range(SLOTS))]
        calls = [Call(COUNT, (rows, gone), (rows, gone)) for rows, gone in tables]
        return sum(map(int, await self._session.scripts(calls)))

    async def purge(self, names: Names, layout: tuple[str, str], keep_us: int, limit: int) -> int:
        """Of the slots that are next. Forgets up to some `limit` records; how many it was."""
        first = self._swept.get(names, 0)
        left = {names_in(names, slot) for slot in range(first, first + SWEEP_SLOTS)}
        self._swept[names] = (first + SWEEP_SLOTS) % SLOTS
        done = 0
        while left and done < limit:
            tables = list(left)
            calls = [
                Call(PURGE, table_keys(t), (*layout, t.rows, t.gone, keep_us, STEP_ROWS)) for t in tables
            ]
            steps = list(map(int, await self._session.scripts(calls)))
            done += sum(steps)
            left = {table for table, step in zip(tables, steps, strict=True) if step == STEP_ROWS}
        return done

    async def noted(self, tables: Sequence[Names]) -> Sequence[Names]:
        """Where rows of these tables are noted, if any are."""
        found = [Names(*loads(text)) for text in await self._session.command("SMEMBERS", NOTED)]
        return [table for table in found if replace(table, tag="") in tables]

    async def waiting(self, tables: Sequence[Names]) -> list[tuple[Names, int, str]]:
        """(table, rows that wait for a re-read, where they are noted), without those that have none."""
        noted = await self.noted(tables)
        found = []
        for names in tables:
            here = [table for table in noted if replace(table, tag="") == names]
            counts = {table: int(await self._session.command("HLEN", table.rereads)) for table in here}
            if total := sum(counts.values()):
                found.append((names, total, next(t.rereads for t, waiting in counts.items() if waiting)))
        return found


async def send_state(session: ClusterSession, args: Sequence[Arg]) -> list[Any]:
    """Checkpoints, and what goes with them, behind the rows."""
    return list(await session.script(_STATE, args, STATE_KEYS))


def _state_args(
    batch: Batch, request: SlotBatch, lost: Collection[Place], noted: Sequence[bytes], where: Sequence[str]
) -> list[Arg]:
    known = dict.fromkeys(
        Names(made.changes.flow, made.changes.schema, made.changes.table).name
        for made in request.ready
        if made.place not in lost
    )
    moves = {move.place: number for number, move in enumerate(batch.moves, 1)}
    args = [*moves_args(batch), ",".join(where), len(known), *known, len(noted), *noted]
    return args + state_args(batch, moves, CLUSTER)


def _noted(slots: dict[int, Request], replies: Sequence[Any]) -> list[bytes]:
    """Tables of slots that have rows to be read again: nothing else would find them."""
    found: dict[bytes, None] = {}
    for (slot, request), (_, counts, _) in zip(slots.items(), replies, strict=True):
        for group, _, missed in counts:
            if missed:
                names = names_in(request.groups[group].plan.names, slot)
                found[dumps([names.flow, names.schema, names.table, names.tag])] = None
    return list(found)


def _count(outcome: Outcome, request: SlotBatch, requests: Sequence[Request], replies: Sequence[Any]) -> None:
    lost = set(outcome.lost)
    for made in request.ready:
        if made.place not in lost:
            count(outcome.applied, made.changes.flow, made.fold.events)
            count(outcome.guarded, made.changes.flow, made.fold.skipped)
    for some, (_, counts, _) in zip(requests, replies, strict=True):
        for number, guarded, missed in counts:
            group = some.groups[number]
            if group.place not in lost:
                count(outcome.guarded, group.changes.flow, guarded)
                count(outcome.rereads, group.changes.flow, missed)
