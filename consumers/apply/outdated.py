"""Events of before a source's last copy of everything, in the way of that copy: they are passed over.

A table is made anew for the copy, and what was published before it may not fit that table: another key,
another type. Nothing of it is missed, for every row that the source still has comes again, and the copy ends
with a floor for those that it has not. Owns which flows pass over what; that a flow may do so is judged at
the error that stands in its way, never before. A history, and a copy that keeps what was deleted, do not.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator

from consumers.apply.assemble import Prepared
from consumers.apply.fold import BOTTOM
from consumers.apply.modes import takes_floors
from consumers.apply.resets import Copy
from consumers.targets.base import FlowError, TableChanges, TableLost
from streamer.changes.envelope import Change
from streamer.config import Flow
from streamer.errors import ConfigError, TailraceError

CopiedSince = Callable[[str, int], Awaitable[Copy | None]]

log = logging.getLogger(__name__)


class Outdated:
    """Of one apply process. `copied_since`: the last copy of a flow's source, if newer than an epoch."""

    def __init__(self, flows: Iterable[Flow], copied_since: CopiedSince) -> None:
        self._flows = {flow.name: flow for flow in flows}
        self._copied_since = copied_since
        self._begins: dict[str, int] = {}  # by flow, the epoch of the copy that it waits for, or has

    def take_out(self, prepared: Prepared) -> None:
        """What a flow is known to pass over. Its checkpoints move as if it had been written."""
        if not self._begins:
            return
        batch = prepared.batch
        batch.tables = [
            changes
            for changes in batch.tables
            if changes.flow not in self._begins or _cut(changes, self._begins[changes.flow])
        ]

    async def is_in_the_way(self, error: FlowError, prepared: Prepared) -> bool:
        """Whether the batch may go to the target again: without what is outdated, or with a table that is
        made again. A table that is gone is made again where the source was reset since: all of it comes."""
        flow, cause = self._flows[error.flow], error.cause
        if not isinstance(cause, TableLost | ConfigError):
            return False
        lost = cause if isinstance(cause, TableLost) else None
        oldest = _oldest(prepared, flow.name) if lost is None else lost.epoch
        if oldest is None or (lost is None and not takes_floors(flow)):
            return False
        try:
            copy = await self._copied_since(flow.name, oldest)
        except TailraceError as unknown:  # then it waits; the flow is tried again, and so is this
            log.debug("whether %s was reset is not known: %s", flow.name, unknown)
            return False
        if copy is None or (lost is None and not copy.floors):
            return False
        if lost is not None:
            log.warning("flow %s makes its table again, as a copy of epoch %d comes", flow.name, copy.epoch)
            prepared.batch.remakes.add((flow.name, lost.topic))
        if flow.write != "append" and flow.delete != "ignore":
            if self._begins.get(flow.name) != copy.epoch:
                log.warning(
                    "flow %s passes over what is older than the copy of epoch %d", flow.name, copy.epoch
                )
            self._begins[flow.name] = copy.epoch
            self.take_out(prepared)
        return True


def _oldest(prepared: Prepared, flow: str) -> int | None:
    """The lowest epoch that the batch has of a flow; 0 for what writes nothing, which tells none."""
    return min((_lowest(changes) for changes in prepared.batch.tables if changes.flow == flow), default=None)


def _lowest(changes: TableChanges) -> int:
    epochs = [change.epoch for change in _kept(changes)]
    if changes.floor > BOTTOM:
        epochs.append(changes.floor[0])
    return min(epochs, default=0)


def _kept(changes: TableChanges) -> Iterator[Change]:
    """What a target acts on, but for the floor."""
    for fold in changes.folds:
        yield from (write.change for write in fold.writes())
        yield from (reread.change for reread in fold.rereads.values())


def _cut(changes: TableChanges, epoch: int) -> bool:
    """Leaves what is of the epoch or a later one; whether there is any."""
    below = (epoch, -1, 0)  # no place in a source's log is negative
    if sum(fold.drop_to(below) for fold in changes.folds):
        changes.ready = None  # was made of more rows
    if changes.floor <= below:
        changes.floor = BOTTOM
    ids = {change.schema_id for change in _kept(changes)}
    is_left = bool(ids) or changes.floor > BOTTOM
    changes.schema_ids = ids | {changes.record.id}  # the record is of the last event: of the copy, if one is
    return is_left
