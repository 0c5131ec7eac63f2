"""Which rows the target refuses: the batch again in parts, halved until each of them is alone (H24).

One transaction with a savepoint for each part: what goes through stays for the parts after it, so that
rows meet as in the batch; what is refused is undone and halved. Nothing of it is left in the end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, LiteralString

import psycopg

from consumers.apply.checkpoint import Place
from consumers.apply.fold import BOTTOM, PartitionFold, Write
from consumers.targets import postgres_state as state
from consumers.targets.base import Batch, Outcome, Refused, TableChanges, deletes_of_no_row
from consumers.targets.postgres_constraints import TRANSIENT
from consumers.targets.postgres_errors import Reaction, function_of, reaction_to
from consumers.targets.postgres_floors import fitting
from consumers.targets.postgres_plans import Plan
from consumers.targets.postgres_write import Plans, Work, begin, write_floors, write_some
from streamer.config import Flow
from streamer.errors import BadRecordError

REFUSED_LIMIT = 100  # found in one search; the batch without them shows the next ones
UNFIT = "unfit"  # the code of a value that cannot be sent at all

Row = dict[str, Any]

log = logging.getLogger(__name__)

_FIRST: LiteralString = "SAVEPOINT suspect"
_ON: LiteralString = "RELEASE SAVEPOINT suspect; SAVEPOINT suspect"
_BACK: LiteralString = "ROLLBACK TO SAVEPOINT suspect"


class _Part:
    """Writes of one kind of one table; each with its fold's attribute, partition and key."""

    __slots__ = ("changes", "writes")

    def __init__(self, changes: TableChanges, writes: list[tuple[str, int, bytes | None, Write]]) -> None:
        self.changes = changes
        self.writes = writes

    def work(self) -> Work:
        folds: dict[int, PartitionFold] = {}
        for attribute, partition, key, write in self.writes:
            fold = folds.setdefault(partition, PartitionFold(partition))
            if key is None:
                getattr(fold, attribute).append(write)
            else:
                getattr(fold, attribute)[key] = write
        changes = replace(self.changes, folds=list(folds.values()), floor=BOTTOM, ready=None)
        return [(changes, changes.folds)]

    def halves(self) -> tuple[_Part, _Part]:
        middle = len(self.writes) // 2
        return _Part(self.changes, self.writes[:middle]), _Part(self.changes, self.writes[middle:])


async def find_refused(
    connection: state.Connection, batch: Batch, plans: Plans, flows: Mapping[str, Flow]
) -> list[Refused]:
    """Empty when every row goes through now. Raises psycopg.Error for what is no row's fault."""
    found: list[Refused] = []
    try:
        begun = await begin(connection, batch, plans, flows, Outcome())
        await write_floors(connection, begun, plans)
        await connection.execute(_FIRST, prepare=False)
        for part in _parts(begun.work):
            await _search(connection, part, plans, found)
    finally:
        if not connection.closed:
            await connection.execute("ROLLBACK", prepare=False)
    return found


async def pass_over(connection: state.Connection, batch: Batch, plans: Plans) -> None:
    """Take the deletes out of the batch whose keys the target's types do not hold: no row has them, and so
    nothing is refused. Another flow's target may hold such a key, and be rid of it by way of the log."""
    for changes in batch.tables:
        for fold in changes.folds:
            of_plan: dict[str, list[tuple[bytes, Row]]] = {}
            for key, write in fold.deletes.items():
                of_plan.setdefault(write.change.schema_id, []).append((key, write.row))
            gone: list[bytes] = []
            for schema_id, deletes in of_plan.items():
                plan = plans[changes.schema, changes.table, schema_id]
                whole = [d for d in deletes if all(d[1].get(c.source) is not None for c in plan.key)]
                gone += await _of_no_row(connection, plan, whole)
            for key in gone:
                del fold.deletes[key]
            if gone:
                table = f"{changes.schema}.{changes.table}"
                log.warning("flow %s: %s", changes.flow, deletes_of_no_row(len(gone), table))


async def _of_no_row(
    connection: state.Connection, plan: Plan, deletes: list[tuple[bytes, Row]]
) -> list[bytes]:
    """Keys that do not fit."""
    if not deletes or await fitting(connection, plan, [row for _, row in deletes]) is not None:
        return []
    if len(deletes) == 1:
        return [deletes[0][0]]
    middle = len(deletes) // 2
    found = await _of_no_row(connection, plan, deletes[:middle])
    return found + await _of_no_row(connection, plan, deletes[middle:])


def _parts(work: Work) -> list[_Part]:
    parts = [_part(changes, folds, ("deletes",)) for changes, folds in reversed(work)]
    parts += [_part(changes, folds, ("patches",)) for changes, folds in work]
    for changes, folds in work:
        parts.append(_part(changes, folds, ("rows", "creates")))
        parts.append(_part(changes, folds, ("added", "removed")))
    return [part for part in parts if part.writes]


def _part(changes: TableChanges, folds: list[PartitionFold], attributes: tuple[str, ...]) -> _Part:
    writes: list[tuple[str, int, bytes | None, Write]] = []
    for fold in folds:
        for attribute in attributes:
            held = getattr(fold, attribute)
            if isinstance(held, dict):
                writes += [(attribute, fold.partition, key, write) for key, write in held.items()]
            else:
                writes += [(attribute, fold.partition, None, write) for write in held]
    return _Part(changes, writes)


async def _search(
    connection: state.Connection,
    part: _Part,
    plans: Plans,
    found: list[Refused],
    error: psycopg.Error | BadRecordError | None = None,
) -> bool:
    """What is refused of the part is noted, the rest is written. `error`: it is known to be refused."""
    if len(found) >= REFUSED_LIMIT:
        return True
    error = error or await _try(connection, part, plans)
    if error is None:
        return False
    if len(part.writes) == 1:
        found.append(_refused(part, error))
        return True
    first, second = part.halves()
    if not await _search(connection, first, plans, found):
        await _search(connection, second, plans, found, error)
    else:
        await _search(connection, second, plans, found)
    return True


async def _try(
    connection: state.Connection, part: _Part, plans: Plans
) -> psycopg.Error | BadRecordError | None:
    """Why the part is refused; None: it is written. The savepoint stands right behind what is written."""
    try:
        await write_some(connection, part.work(), plans)
    except BadRecordError as error:
        await connection.execute(_BACK, prepare=False)
        return error
    except psycopg.Error as error:
        reaction = reaction_to(error)
        splits = reaction is Reaction.SINGLY and len(part.writes) > 1
        if reaction is not Reaction.REFUSED and not splits:
            raise
        await connection.execute(_BACK, prepare=False)
        return error
    await connection.execute(_ON, prepare=False)
    return None


def _refused(part: _Part, error: psycopg.Error | BadRecordError) -> Refused:
    _, partition, key, write = part.writes[0]
    place = Place(part.changes.flow, part.changes.topic, partition)
    if isinstance(error, psycopg.Error):
        code = error.sqlstate or UNFIT
        message = " ".join((error.diag.message_primary or str(error)).split())
        if function := function_of(error):
            message += f" ({function}; flow {part.changes.flow!r})"
    else:
        code, message = UNFIT, error.what
    table = f"{part.changes.schema}.{part.changes.table}"
    return Refused(place, key, write, code, f"{table}: {message}", code in TRANSIENT)
