"""What a batch's texts need before its rows are written: which of them go to the model, and which are stored.

Nothing of it is inside the rows' transaction. It may be done ahead, while another batch is in the target, and
is looked at again right before: the owner of a key is its only writer, so that what is stored then stays,
but for a truncate by another process, which the table's check finds (vectors_statements).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from consumers.apply.checkpoint import Place
from consumers.apply.fold import BOTTOM, Version, Write
from consumers.targets.base import FlowError, Refused, TableChanges
from consumers.targets.postgres_state import Connection
from consumers.targets.vectors_model import Model
from consumers.targets.vectors_plans import VectorPlan
from consumers.targets.vectors_texts import Cut
from streamer.config import Flow
from streamer.errors import BadRecordError, ConfigError

REFUSED_LIMIT = 100  # rows named at once, as every target does
REFUSED = "embedding"  # the reason's code


@dataclass(slots=True)
class Known:
    """Of one table's changes, kept with them while they are tried: see TableChanges.ready."""

    cuts: dict[int, Cut] = field(default_factory=dict)  # by the identity of the event
    vectors: dict[str, str] = field(default_factory=dict)  # by hash
    refused: dict[str, BadRecordError] = field(default_factory=dict)
    same: set[int] = field(default_factory=set)  # patches that leave the text and its values as they are


class Item(NamedTuple):
    """A row on its way. `fresh`: what is stored of its key goes in the same batch."""

    key: bytes
    partition: int
    write: Write
    plan: VectorPlan
    patch: bool
    fresh: bool


@dataclass(slots=True)
class Stored:
    hashes: list[str | None] = field(default_factory=list)  # of its chunks; None: has no vector
    source: dict[str, Any] = field(default_factory=dict)
    version: Version = BOTTOM


@dataclass(slots=True)
class Counts:
    """Texts since the session began."""

    embedded: int = 0
    reused: int = 0


async def embed(
    changes: TableChanges,
    plans: Mapping[str, VectorPlan],
    connection: Connection,
    flow: Flow,
    model: Model,
    counts: Counts,
    enough: Callable[[], bool] = lambda: False,
) -> Known:
    """`plans`: by schema id; `enough`: of the model's calls. Raises TargetUnavailable, FlowError,
    psycopg.Error."""
    known = changes.ready if isinstance(changes.ready, Known) else Known()
    changes.ready = known
    items = list(_items(changes, plans))
    await asyncio.to_thread(
        _cut, known, [i for i in items if not i.patch and id(i.write.change) not in known.cuts]
    )
    asked = [item for item in items if item.patch or (not item.fresh and _lacks(known, item))]
    stored = await _read(connection, asked)
    known.same.clear()
    for item in items:
        if item.patch:
            _cut_patch(known, item, stored.get((item.partition, item.key)))
    wanted: dict[str, str] = {}
    reused = 0
    for item in items:
        there = stored.get((item.partition, item.key))
        if there is not None and _stays(flow, item, there):
            continue
        hashes = set(there.hashes) if there is not None else set()
        for piece in known.cuts[id(item.write.change)].pieces:
            if piece.text and piece.hash in hashes:
                reused += piece.hash not in known.vectors
            elif piece.text and piece.hash not in known.vectors and piece.hash not in known.refused:
                wanted[piece.text] = piece.hash
    try:
        async for text, vector in model.embed(list(wanted), enough):
            if isinstance(vector, BadRecordError):
                known.refused[wanted[text]] = vector
            else:
                known.vectors[wanted[text]] = vector
                counts.embedded += 1
    except ConfigError as error:
        raise FlowError(changes.flow, error) from error
    counts.reused += reused
    return known


def refused_of(changes: TableChanges, plans: Mapping[str, VectorPlan], known: Known) -> Iterable[Refused]:
    """Rows that have a text which the model refuses."""
    if not known.refused:
        return
    for item in _items(changes, plans):
        for piece in known.cuts[id(item.write.change)].pieces:
            if (error := known.refused.get(piece.hash)) is not None:
                place = Place(changes.flow, changes.topic, item.partition)
                message = f"{changes.schema}.{changes.table}: {error.what}"
                yield Refused(place, item.key, item.write, REFUSED, message, transient=False)
                break


def _items(changes: TableChanges, plans: Mapping[str, VectorPlan]) -> Iterable[Item]:
    for fold in changes.folds:
        gone = fold.deletes if changes.floor <= BOTTOM else None
        for part in (fold.rows, fold.creates, fold.patches):
            patch = part is fold.patches
            for key, write in part.items():
                plan = plans[write.change.schema_id]
                fresh = not patch and (gone is None or key in gone)
                yield Item(key, fold.partition, write, plan, patch, fresh)


def _lacks(known: Known, item: Item) -> bool:
    pieces = known.cuts[id(item.write.change)].pieces
    return any(p.text and p.hash not in known.vectors and p.hash not in known.refused for p in pieces)


def _stays(flow: Flow, item: Item, stored: Stored) -> bool:
    """Whether what is stored is not written over, whatever the row's text is."""
    if flow.write == "append":
        return False
    if stored.version > item.write.change.version:
        return True
    return flow.write == "insert_only" and not flow.delete.startswith("soft")


def _cut(known: Known, items: Sequence[Item]) -> None:
    for item in items:
        known.cuts[id(item.write.change)] = item.plan.texts.cut(item.write.row, {})


def _cut_patch(known: Known, item: Item, stored: Stored | None) -> None:
    """What the event does not have of the text is as it is stored (H7)."""
    cut = item.plan.texts.cut(item.write.row, stored.source if stored else {})
    known.cuts[id(item.write.change)] = cut
    if stored is None or [piece.hash for piece in cut.pieces] != stored.hashes:
        return
    if orjson.dumps(stored.source).decode() == cut.source:
        known.same.add(id(item.write.change))


async def _read(connection: Connection, items: Sequence[Item]) -> dict[tuple[int, bytes], Stored]:
    found: dict[tuple[int, bytes], Stored] = {}
    by_plan: dict[int, list[Item]] = {}
    for item in items:
        by_plan.setdefault(id(item.plan), []).append(item)
    for part in by_plan.values():
        plan = part[0].plan
        try:
            literals = plan.stored_literals([item.write for item in part])
        except BadRecordError:
            continue  # the search for what is refused names it
        cursor = await connection.execute(plan.stored_sql, literals, prepare=True)
        for index, _, mark, source, *version in await cursor.fetchall():
            item = part[int(str(index))]
            known = found.setdefault((item.partition, item.key), Stored())
            known.hashes.append(None if mark is None else str(mark).replace("-", ""))
            if source is not None:
                known.source = orjson.loads(str(source))
            epoch, lsn, ordinal = (int(str(part)) for part in version)
            known.version = max(known.version, (epoch, lsn, ordinal))
    return found
