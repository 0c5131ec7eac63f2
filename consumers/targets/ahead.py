"""Keys that a floor passes over: their parked changes are newer than it (H5, H24). Pure.

What is in the target of such a key is older than the floor, and still not what the floor is to take: the
source has the row, in a form that the target refused. It stays until the parked changes are retried or
discarded. A key whose parked changes are all at or below the floor is gone from the source with them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from orjson import JSONDecodeError, loads

from consumers.apply.checkpoint import Place
from consumers.targets.base import Batch, TableChanges

Stored = Iterable[tuple[Place, bytes]]


def rows_ahead(
    changes: TableChanges, stored: Stored, batch: Batch | None = None, lost: Collection[Place] = ()
) -> list[dict[str, Any]]:
    """The key's columns, by the source's names, of each key that the floor of `changes` passes over.

    `stored`: keys of the flow and topic with a parked change above the floor, as the target has them before
    `batch`, of whose parks and un-parks those of `lost` places are not written.
    """
    keys = dict.fromkeys(stored)
    if batch is not None:
        for place, key in batch.unparks:
            if place not in lost:
                keys.pop((place, key), None)
        subject = changes.flow, changes.topic
        for entry in batch.parks:
            ahead = entry.decodes and entry.version > changes.floor
            if ahead and entry.place[:2] == subject and entry.place not in lost:
                keys[entry.place, entry.key] = None
    rows = []
    for _, key in keys:
        try:
            row = loads(key)
        except JSONDecodeError:
            continue  # no row was ever written under it
        if isinstance(row, dict):
            rows.append(row)
    return rows
