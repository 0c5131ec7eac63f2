"""Which row it is that the target refuses: statements again one by one, halved until it is alone."""

from __future__ import annotations

import psycopg

from consumers.apply.fold import PartitionFold, Write
from consumers.targets import postgres_state as state
from consumers.targets.base import Batch, RefusedRow, TableChanges
from consumers.targets.postgres_errors import Reaction, reaction_to
from consumers.targets.postgres_plans import Plan
from consumers.targets.postgres_write import Plans
from streamer.changes.kinds import UNAVAILABLE
from streamer.errors import BadRecordError

Suspect = tuple[int, bytes | None, Write]  # partition, key


async def find_refused(
    connection: state.Connection, batch: Batch, plans: Plans, target: str
) -> RefusedRow | None:
    """None when every row goes through now. Nothing is left written."""
    await connection.execute("BEGIN", prepare=False)
    try:
        for changes in batch.tables:
            for fold in changes.folds:
                refused = await _in_fold(connection, changes, fold, plans, target)
                if refused is not None:
                    return refused
    finally:
        await connection.execute("ROLLBACK", prepare=False)
    return None


async def _in_fold(
    connection: state.Connection, changes: TableChanges, fold: PartitionFold, plans: Plans, target: str
) -> RefusedRow | None:
    partition = fold.partition
    keyed: list[Suspect] = [
        (partition, key, write)
        for part in (fold.rows, fold.creates, fold.patches)
        for key, write in part.items()
    ]
    for suspects, deleting in (
        ([(partition, key, write) for key, write in fold.deletes.items()], True),
        (keyed + [(partition, None, write) for write in fold.added], False),
    ):
        groups: dict[str, list[Suspect]] = {}
        for suspect in suspects:
            groups.setdefault(suspect[2].change.schema_id, []).append(suspect)
        for schema_id, group in groups.items():
            plan = plans[changes.schema, changes.table, schema_id]
            error = await _try(connection, plan, group, deleting=deleting)
            if error is not None:
                suspect, error = await _halve(connection, plan, group, error, deleting=deleting)
                return _refused(changes, plan, suspect, error, target)
    return None


async def _halve(
    connection: state.Connection, plan: Plan, group: list[Suspect], error: Exception, *, deleting: bool
) -> tuple[Suspect, Exception]:
    while len(group) > 1:
        first, second = group[: len(group) // 2], group[len(group) // 2 :]
        found = await _try(connection, plan, first, deleting=deleting)
        group = first if found is not None else second
        error = found or error
    return group[0], error


async def _try(
    connection: state.Connection, plan: Plan, group: list[Suspect], *, deleting: bool
) -> Exception | None:
    writes = [
        w._replace(row={n: None if v == UNAVAILABLE else v for n, v in w.row.items()}) for _, _, w in group
    ]
    columns = plan.key if deleting else plan.columns
    statement = plan.delete_sql if deleting else plan.upsert_sql
    try:
        arrays = plan.literals(columns, writes)
    except BadRecordError as error:
        return error
    await connection.execute("SAVEPOINT suspect", prepare=False)
    try:
        await connection.execute(statement, arrays)
    except psycopg.Error as error:
        if reaction_to(error) is not Reaction.REFUSED:
            if reaction_to(error) is Reaction.SINGLY and len(group) > 1:
                return None
            raise
        return error
    finally:
        if not connection.closed:
            await connection.execute("ROLLBACK TO SAVEPOINT suspect", prepare=False)
    return None


def _refused(
    changes: TableChanges, plan: Plan, suspect: Suspect, error: Exception, target: str
) -> RefusedRow:
    partition, key, write = suspect
    name = key.decode(errors="replace") if key is not None else "(a table without a key)"
    if isinstance(error, psycopg.Error):
        words = f"{error.diag.message_primary or error} [{error.sqlstate}]"
    else:
        words = str(error)
    return RefusedRow(
        f"the target {target!r} refuses the row {name} of {plan.text}: {words}",
        flow=changes.flow,
        where=f"flow {changes.flow!r}, {changes.topic}[{partition}]@{write.offset}",
        fix="make the target's table take it (type, constraint), or correct the row in the source and"
        f" `tailrace reset {changes.record.source}`; then start apply again. The other flows go on",
    )
