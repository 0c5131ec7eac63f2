"""Constraints of tables that were there already, and how valid changes come by them (H23).

Changes arrive by partition, not by transaction, so that valid data may break a unique or a foreign key on
the way. Where the role may set session_replication_role, foreign keys and triggers are off. What is left
is refused for the time being and comes again when other partitions have gone on. A row that waits like
that gives up the unique values which it is to lose, so that no two rows wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString, TypeVar

import psycopg
from psycopg import AsyncCursor

from consumers.apply.fold import Write
from consumers.targets import postgres_state as state
from consumers.targets.base import Parked, TableChanges
from consumers.targets.postgres_catalog import TargetTable
from consumers.targets.postgres_plans import Plan
from consumers.targets.postgres_statements import REFUSE
from streamer.changes.envelope import decode_value
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import Flow
from streamer.errors import BadRecordError

UNIQUE = frozenset(("23505", "23P01"))
TRANSIENT = UNIQUE | {"23503"}  # other partitions may satisfy them yet

Plans = Mapping[tuple[str, str, str], Plan]
_Work = TypeVar("_Work")

_REFUSE = f"""CREATE OR REPLACE FUNCTION {REFUSE}(words text) RETURNS boolean LANGUAGE plpgsql
SET search_path = pg_catalog AS $$ BEGIN RAISE foreign_key_violation USING MESSAGE = words; END $$"""
_THERE = f"SELECT to_regprocedure('{REFUSE}(text)') IS NOT NULL"

_CHECK_NOW: LiteralString = "SET CONSTRAINTS ALL IMMEDIATE"
_ARM: LiteralString = "SET LOCAL session_replication_role = origin"
_DISARM: LiteralString = "SET LOCAL session_replication_role = replica"


async def ensure(connection: state.Connection, table: TargetTable) -> None:
    """The function that refuses a delete which another table's rows would follow, where one is needed."""
    if not table.children:
        return
    there = await (await connection.execute(_THERE, prepare=False)).fetchone()
    if there and not there[0]:
        async with state.making(connection):
            await state.create(connection, [_REFUSE])


async def check_at_once(connection: state.Connection, plans: Iterable[Plan]) -> None:
    """Deferred constraints are checked after each statement of the transaction, so that an error tells whose
    it is. A statement writes all rows of a table: inside of it, deferrable ones may be broken on the way."""
    if any(plan.deferrable for plan in plans):
        await connection.execute(_CHECK_NOW, prepare=False)


async def run(
    connection: state.Connection, plan: Plan, statement: str, parameters: Sequence[Any]
) -> AsyncCursor[tuple[object, ...]]:
    """A statement that writes rows, with the table's deferrable unique constraints in force."""
    if plan.armed:
        await connection.execute(_ARM, prepare=False)
    cursor = await connection.execute(statement, parameters, prepare=True)
    if plan.armed:
        await connection.execute(_DISARM, prepare=False)
    return cursor


def parents_first(
    work: Sequence[tuple[TableChanges, _Work]], plans: Plans
) -> list[tuple[TableChanges, _Work]]:
    """Tables in the order that their foreign keys ask of rows; of deletes it is the other way round."""
    if not any(plan.parents for plan in plans.values()):
        return list(work)
    parents: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for changes, _ in work:
        place = changes.schema, changes.table
        known = parents.setdefault(place, set())
        for schema_id in changes.schema_ids:
            known |= plans[*place, schema_id].parents
    order: dict[tuple[str, str], int] = {}

    def visit(place: tuple[str, str], above: frozenset[tuple[str, str]]) -> None:
        if place in order or place in above or place not in parents:
            return
        for parent in sorted(parents[place]):
            visit(parent, above | {place})
        order[place] = len(order)

    for changes, _ in work:
        visit((changes.schema, changes.table), frozenset())
    return sorted(work, key=lambda item: order[item[0].schema, item[0].table])


async def give_way(
    connection: state.Connection, parks: Iterable[Parked], plans: Plans, flows: Mapping[str, Flow]
) -> None:
    """Free the unique values of stored rows whose next change waits. Inside the rows' transaction."""
    for parked in parks:
        if not parked.waiting or parked.code not in UNIQUE or not parked.decodes:
            continue
        change = decode_value(parked.payload, where="", offset=parked.offset)
        flow = flows[parked.place.flow]
        plan = plans.get((*flow.place(parked.schema, parked.table), change.schema_id))
        if plan is None or change.after is None:
            continue
        write = Write(change.after, change, parked.offset)
        for statement, parameters in _ways(plan, write):
            try:
                async with connection.transaction():
                    await run(connection, plan, statement, parameters)
                break
            except psycopg.IntegrityError:
                continue  # a check that the stand-in breaks, rows that refer to it: the next way, or none


def _ways(plan: Plan, write: Write) -> list[tuple[str, list[str]]]:
    missing = {name for name, value in write.row.items() if value == UNAVAILABLE}
    if any(column.source in missing for column in plan.columns if column.name in plan.moving):
        return []
    whole = write._replace(row={**write.row, **dict.fromkeys(missing)})
    statements = [plan.vacate_sql, None if missing else plan.leave_sql]
    try:
        parameters = plan.literals(plan.columns, [whole])
    except BadRecordError:
        return []
    return [(statement, parameters) for statement in statements if statement is not None]
