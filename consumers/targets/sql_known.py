"""What a sql target has of the keys of a batch: versions of rows, of deletes, of truncates. Only reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from consumers.apply.checkpoint import Place
from consumers.apply.fold import BOTTOM, Version
from consumers.targets import sql_floors as floors
from consumers.targets import sql_state as state
from consumers.targets import sql_versions as side
from consumers.targets.base import Batch, Versions
from consumers.targets.sql_plans import Plan
from consumers.targets.sql_tables import VERSION


def versions(
    connection: Connection, batch: Batch, plans: Mapping[tuple[str, str, str], Plan]
) -> Versions | None:
    """As Target.versions has it. `plans`: by flow, topic, schema id."""
    found: Versions = {}
    for changes in batch.tables:
        for fold in changes.folds:
            place = Place(changes.flow, changes.topic, fold.partition)
            for part in (fold.rows, fold.creates, fold.patches, fold.deletes):
                for key, write in part.items():
                    plan = plans[changes.flow, changes.topic, write.change.schema_id]
                    if plan.flow.write == "append" or plan.flow.version == "none":
                        return None
                    name = plan.name.lower()
                    if plan.flow.version == "side":
                        row = side.stored(connection, plan, key)
                    else:
                        at_key = plan.keys([write])[0]
                        row = _of_row(connection, plan.find_sql(*VERSION), at_key)
                    gone = floors.buried(connection, place, key)
                    floor = state.read_floors(connection, [name]).get(name, BOTTOM)
                    highest = max(row or BOTTOM, gone or BOTTOM, floor)
                    if highest > BOTTOM:
                        found[place, key] = highest
    return found


def _of_row(connection: Connection, statement: str, key: tuple[Any, ...]) -> Version | None:
    """None also of a row that was there before the flow: it has no version."""
    for epoch, lsn, ordinal in connection.exec_driver_sql(statement, key):
        return None if epoch is None else (epoch, lsn, ordinal)
    return None
