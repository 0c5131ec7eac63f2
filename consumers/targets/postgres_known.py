"""What a Postgres target has of the keys of a batch: versions of rows, deletes and truncates. Only reads."""

from __future__ import annotations

from collections.abc import Mapping

from consumers.apply.checkpoint import Place
from consumers.apply.fold import BOTTOM, Version, Write
from consumers.targets import postgres_state as state
from consumers.targets.base import Batch, Versions
from consumers.targets.postgres_arrays import plain
from consumers.targets.postgres_plans import Plan

_FLOOR = "SELECT epoch, lsn, ordinal FROM _tailrace.floors WHERE schema_name = $1 AND table_name = $2"


async def versions(
    connection: state.Connection, batch: Batch, plans: Mapping[tuple[str, str, str], Plan]
) -> Versions | None:
    """As Target.versions has it."""
    found: Versions = {}
    for changes in batch.tables:
        floor = BOTTOM
        rows = await connection.execute(_FLOOR, (changes.schema, changes.table))
        for row in await rows.fetchall():
            floor = _version(row)
        for fold in changes.folds:
            place = Place(changes.flow, changes.topic, fold.partition)
            by_plan: dict[str, list[tuple[bytes, Write]]] = {}
            for part in (fold.rows, fold.creates, fold.patches, fold.deletes):
                for key, write in part.items():
                    by_plan.setdefault(write.change.schema_id, []).append((key, write))
                    if floor > BOTTOM:
                        found[place, key] = floor
            for schema_id, items in by_plan.items():
                plan = plans[changes.schema, changes.table, schema_id]
                if not plan.versions_sql:
                    return None
                for key, version in await _of_rows(connection, plan, items):
                    found[place, key] = max(version, found.get((place, key), BOTTOM))
                for key, version in await _of_deletes(connection, place, [key for key, _ in items]):
                    found[place, key] = max(version, found.get((place, key), BOTTOM))
    return found


async def _of_rows(
    connection: state.Connection, plan: Plan, items: list[tuple[bytes, Write]]
) -> list[tuple[bytes, Version]]:
    literals = plan.literals(plan.key, [write for _, write in items])
    rows = await connection.execute(plan.versions_sql, (*literals, plain(range(len(items)))))
    return [(items[int(str(number))][0], _version(version)) for number, *version in await rows.fetchall()]


async def _of_deletes(
    connection: state.Connection, place: Place, keys: list[bytes]
) -> list[tuple[bytes, Version]]:
    hashes = {state.key_hash(key): key for key in keys}
    rows = await connection.execute(state.BURIED, (*place, list(hashes)))
    return [
        (hashes[str(uuid).replace("-", "")], _version(version)) for uuid, *version in await rows.fetchall()
    ]


def _version(parts: tuple[object, ...] | list[object]) -> Version:
    epoch, lsn, ordinal = (int(str(part)) for part in parts)
    return epoch, lsn, ordinal
