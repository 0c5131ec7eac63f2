"""Floors of resets at a gate: what the source's new copy lacks is counted before it is taken away.

A reset's copy ends with a floor in one partition: all rows go that only older epochs wrote. How many these
are is known when all of the copy is in the target. Until then the floor's partition waits, and the others go
on; then it passes, or is held as a gate. What stops and starts partitions is the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from consumers.apply.checkpoint import Checkpoint, Place
from consumers.apply.fold import Event
from consumers.apply.gate_texts import FLOOR, FLOOR_ROWS_LIMIT
from consumers.targets.base import FlowError, Gate, TableChanges, Target
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow

FEWEST_ROWS = 10  # that are never held: a share of a small table is a row or two
PASS_S = 10.0  # a count is worth so much: a floor that is read again later is counted again

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Extent:
    """Of a topic. `ranges`: by partition, the log's start and its end, open transactions included: what was
    published until now is below it."""

    cluster_id: str
    ranges: Mapping[int, tuple[int, int]]

    def stands(self, checkpoint: Checkpoint) -> int | None:
        """Where a checkpoint is; None: it is of another log, and moves with the first record of this one."""
        _, end = self.ranges[checkpoint.place.partition]
        of_this = checkpoint.next_offset <= end and checkpoint.cluster_id in (None, self.cluster_id)
        return checkpoint.next_offset if of_this else None


Ask = Callable[[str], Awaitable[Extent]]  # for a topic


async def nothing(_: str) -> Extent:
    """Of a reader that meets no floor which nobody has decided of."""
    return Extent("", {})


@dataclass(slots=True)
class Waiting:
    """A floor that was met. `ends`: of all partitions, by then; the copy is below them."""

    offset: int
    captured_us: int
    changes: TableChanges
    ends: dict[int, int] | None = None
    free_until_us: int = 0  # above 0: it was counted, and passes


class Floors:
    def __init__(
        self, shares: Mapping[str, float], target: Target, ask: Ask, clock_us: Callable[[], int]
    ) -> None:
        """`shares`: by flow, of a table's rows that a floor may take."""
        self._shares = shares
        self._target = target
        self._ask = ask
        self._clock_us = clock_us
        self._waiting: dict[Place, Waiting] = {}

    def free(self, place: Place) -> int | None:
        """The offset of a floor that was counted a moment ago, and may pass."""
        waiting = self._waiting.get(place)
        return waiting.offset if waiting is not None and waiting.free_until_us > self._clock_us() else None

    def wait(self, place: Place) -> bool:
        """Whether the partition ends at a floor for now."""
        waiting = self._waiting.get(place)
        return waiting is not None and waiting.free_until_us == 0

    def meet(self, place: Place, event: Event, record: SchemaRecord, flow: Flow) -> None:
        """A floor that nobody has decided of; its partition is read no further."""
        change, offset = event.change, event.offset
        known = self._waiting.get(place)
        if known is not None and known.offset == offset and known.free_until_us == 0:
            return
        names = flow.place(record.schema, record.table)
        changes = TableChanges(flow.name, place.topic, record, *names, [], {record.id}, change.version)
        changes.floor_partition, changes.floor_us = place.partition, change.commit_us
        self._waiting[place] = Waiting(offset, change.capture_us, changes)

    async def look(self, gates: Mapping[tuple[str, str], Gate]) -> tuple[list[Gate], set[tuple[str, str]]]:
        """Count what may be counted by now: floors to be held, and (flow, topic) that may go on.

        `gates`: as the target has them; a topic that another one holds waits. Raises TargetUnavailable,
        KafkaUnavailable.
        """
        held: list[Gate] = []
        go_on: set[tuple[str, str]] = set()
        for place, waiting in list(self._waiting.items()):
            gate = gates.get(place[:2])
            if gate is not None and gate.state == "held":
                continue
            if gate is not None and gate.kind == FLOOR and waiting.captured_us <= gate.up_to_us:
                del self._waiting[place]  # decided: it is read again, and goes by that
                continue
            extent = await self._ask(place.topic)
            places = [Place(*place[:2], partition) for partition in extent.ranges]
            stands = {
                known.partition: extent.stands(checkpoint)
                for known, checkpoint in (await self._target.checkpoints(places)).items()
            }
            if place.partition not in stands or (stands[place.partition] or 0) > waiting.offset:
                del self._waiting[place]  # it was applied, or the topic is gone
            elif waiting.free_until_us == 0 and self._is_copied(place, waiting, extent, stands):
                found = await self._too_many(waiting)
                if found is not None:
                    held.append(found)
                    continue
                waiting.free_until_us = self._clock_us() + round(PASS_S * 1e6)
                go_on.add(place[:2])
        return held, go_on

    @staticmethod
    def _is_copied(place: Place, waiting: Waiting, extent: Extent, stands: Mapping[int, int | None]) -> bool:
        """Whether all that was published before the floor is in the target."""
        if waiting.ends is None:
            waiting.ends = {partition: end for partition, (_, end) in extent.ranges.items()}
            waiting.ends[place.partition] = waiting.offset
        for partition, end in waiting.ends.items():
            start, _ = extent.ranges.get(partition, (end, end))
            at = stands.get(partition)
            if start < end and (at is None or at < end):
                return False
        return True

    async def _too_many(self, waiting: Waiting) -> Gate | None:
        """The gate, when the floor would take more than may pass."""
        changes = waiting.changes
        names = changes.flow, changes.schema, changes.table
        try:
            rows = await self._target.count_rows(*names)
            may_go = max(FEWEST_ROWS - 1, int(self._shares[changes.flow] * rows))
            gone = await self._target.count_below(changes, max(FLOOR_ROWS_LIMIT, may_go + 1))
        except FlowError as error:  # the floor's batch stops the flow, and says the same
            log.debug("what a floor of flow %s takes is not known: %s", changes.flow, error)
            return None
        if gone <= may_go:
            return None
        since_us = min(self._clock_us(), waiting.captured_us)
        subject = changes.flow, changes.topic
        return Gate(*subject, FLOOR, "held", gone, max(rows, gone), since_us, waiting.captured_us)
