"""What a task reads, as units in order: changes, what the hop before has sent, floors, operators' requests.

What needs no body is done between units: events that are not newer are dropped, those of a parked key wait
behind it, what does not decode is a dead letter, floors are handed on to every task. An offset moves when its
unit is done, and not before. A key that is parked as a value is not in the log is free with the next event
that has the whole row, or deletes it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from aiokafka import ConsumerRecord

from consumers.apply.dead_letters import DISCARDED, REFUSED
from consumers.processors import control
from consumers.processors.change import Floor, decode, deleted_row
from consumers.processors.context import Change, Forwarded, Version
from consumers.processors.key_forms import NotedForms
from consumers.processors.letters import Letters
from consumers.processors.longs import is_whole
from consumers.processors.outbox import Outbox
from consumers.processors.parked import Item, Lot, Refusals
from consumers.processors.plan import Counts, Plan, Progress, Work
from consumers.processors.rows import BOTTOM, Rows
from consumers.processors.state import Overlay
from consumers.processors.through import ResetEnd
from streamer.errors import DecodeError

log = logging.getLogger(__name__)

Record: TypeAlias = "ConsumerRecord[bytes, bytes]"

UNDECODABLE = "undecodable"


class Incoming:
    """Of one task."""

    def __init__(
        self,
        plan: Plan,
        number: int,
        overlay: Overlay,
        outbox: Outbox,
        *,
        forms: NotedForms,
        lot: Lot,
        letters: Letters,
        refusals: Refusals,
        reset_end: ResetEnd,
        progress: Progress,
        counts: Counts,
        clock_us: Callable[[], int],
    ) -> None:
        self._plan = plan
        self._number = number
        self._overlay = overlay
        self._outbox = outbox
        self._forms = forms
        self.lot = lot
        self._letters = letters
        self._refusals = refusals
        self._reset_end = reset_end
        self._progress = progress
        self._counts = counts
        self._clock_us = clock_us
        self.rows = {topic: Rows(overlay, topic) for topic in plan.inputs}
        self.retry_refused = False  # the body has raised on a change that was asked for again

    def works(self, batches: Sequence[tuple[str, Sequence[Record], int]]) -> Iterator[Work]:
        """Units in order; what is between them (floors, what is dropped or waits) is done on the way, when no
        unit is in hand."""
        hop_topics = self._plan.hop_topics
        for topic, records, end in batches:
            if topic in hop_topics:
                yield from self._forwarded(topic, hop_topics[topic], records)
            elif topic == self._plan.names.control:
                yield from self._controlled(topic, records)
            else:
                yield from self._changes(topic, records)
                if records:
                    self._progress.seen[topic] = records[-1].offset, records[-1].timestamp
            self._progress.offsets[topic] = max(end, self._progress.offsets.get(topic, 0))

    def _changes(self, topic: str, records: Sequence[Record]) -> Iterator[Work]:
        offsets, rows, lot = self._progress.offsets, self.rows[topic], self.lot
        for record in records:
            offset, value = record.offset, record.value
            try:
                change = decode(topic, record.partition, offset, record.key, value)
            except DecodeError as error:
                self._undecodable(topic, record, error)
                continue
            if type(change) is Change:
                key = change.raw_key
                newer, note = rows.is_newer(key, change.version) if key else (True, None)
                parked = lot.keys > 0 and (topic, key) in lot
                if not newer:
                    self._counts.dropped += 1
                elif parked and not self._supersedes(topic, change):
                    self._wait(topic, key, offset, value, change.version, change.commit_us)
                else:
                    yield Work(0, change, topic, key, value, offset, offset + 1, note, supersedes=parked)
                    continue
            elif type(change) is Floor:
                self._spread(change)
            self._progress.handled += 1
            offsets[topic] = offset + 1

    def _forwarded(self, topic: str, hop: int, records: Sequence[Record]) -> Iterator[Work]:
        lot = self.lot
        for record in records:
            key, value, offset = record.key or b"", record.value or b"", record.offset
            if record.key is None:
                self._reset_end.heard(control.load(value, f"{topic}[{self._number}]@{offset}"))
                self._progress.offsets[topic] = offset + 1
                continue
            commit_us = int(record.headers[0][1])  # of a forwarded record: its only one
            if lot.keys and (topic, key) in lot:
                self._wait(topic, key, offset, value, BOTTOM, commit_us)
                self._progress.offsets[topic] = offset + 1
            else:
                forwarded = Forwarded(key, value, offset, commit_us)
                yield Work(hop, forwarded, topic, key, value, offset, offset + 1)

    def _supersedes(self, topic: str, change: Change) -> bool:
        """Whether it has all that its parked key waits for: the row as it is now, or that it is gone."""
        newest = self.lot.lacking.get((topic, change.raw_key))
        return newest is not None and change.version > newest and is_whole(change.after)

    def _wait(
        self, topic: str, key: bytes, offset: int, value: bytes | None, version: Version, commit_us: int
    ) -> None:
        """Behind what is parked of its key."""
        self._overlay.begin()
        self.lot.add(
            topic, key, offset=offset, value=value, version=version, commit_us=commit_us,
            at_us=self._clock_us(),
        )  # fmt: skip
        self._progress.handled += 1

    def _undecodable(self, topic: str, record: Record, error: DecodeError) -> None:
        self._overlay.begin()
        key, value = record.key or b"", record.value or b""
        work = Work(0, Forwarded(key, value), topic, key, value, record.offset)
        self._letters.write(work, UNDECODABLE, error.what, BOTTOM, value, REFUSED, False)
        self._outbox.keep()
        self._counts.refused += 1
        self._progress.handled += 1
        self._progress.offsets[topic] = record.offset + 1
        self._refusals.note(0, 1)
        self._refusals.check(self._plan.names.processor, str(error))

    def _spread(self, floor: Floor) -> None:
        """A floor stands in one partition and concerns all (H5): each task learns of it here."""
        value = control.dump(floor)
        for partition in range(self._plan.partitions):
            self._outbox.place(self._plan.names.control, partition, None, value)
        self._outbox.keep()

    def _controlled(self, topic: str, records: Sequence[Record]) -> Iterator[Work]:
        for record in records:
            where = f"{topic}[{self._number}]@{record.offset}"
            try:
                message = control.load(record.value or b"", where)
            except DecodeError as error:  # somebody else's: it concerns nothing here
                log.error("%s", error)
                continue
            if isinstance(message, Floor):
                yield from self._lowered(message)
            elif isinstance(message, control.Request):
                yield from self._asked(message)
            else:
                self._reset_end.heard(message)
            self._progress.handled += 1
            self._progress.offsets[topic] = record.offset + 1

    def _lowered(self, floor: Floor) -> Iterator[Work]:
        """A delete of each row that the floor covers; after a kill, of the rest."""
        rows = self.rows.get(floor.topic)
        if rows is None:
            return  # of an input that the processor has no more
        self._overlay.begin()
        rows.raise_floor(floor.version)
        self._forms.covered(floor.topic, floor.version)
        for key, note in rows.covered():
            change = deleted_row(floor.topic, self._number, key, rows.floor, floor.commit_us)
            yield Work(0, change, floor.topic, key, None, -1, None, note)

    def _asked(self, request: control.Request) -> Iterator[Work]:
        items = list(self.lot.items(request.topic, request.key))
        if request.action == control.DISCARD:
            self._overlay.begin()
            for item in items:
                self.lot.remove(item)
                decodes = item.topic in self.rows and item.value is not None
                self._letters.write(
                    item, item.code, item.message, item.version, item.value or b"", DISCARDED, decodes
                )
            self._outbox.keep()
            return
        self.retry_refused = False
        for item in items:
            work = self._again(item)
            if work is None:
                self._overlay.begin()
                self.lot.remove(item)
                continue
            yield work
            if self.retry_refused:
                return

    def _again(self, item: Item) -> Work | None:
        """None: a floor or a newer event has passed it."""
        hop = self._plan.hop_topics.get(item.topic)
        topic, key, value, offset = item.topic, item.key, item.value, item.offset
        if hop is not None:
            forwarded = Forwarded(key, value or b"", offset, item.commit_us)
            return Work(hop, forwarded, topic, key, value, offset, parked=item)
        rows = self.rows.get(topic)
        if rows is None:
            return None
        if value is None:
            change: Any = deleted_row(topic, self._number, key, item.version, item.commit_us)
            note = rows.note(key)
        else:
            change = decode(topic, self._number, offset, key, value)
            newer, note = rows.is_newer(key, item.version)
            if not newer:
                return None
        return Work(0, change, topic, key, value, offset, note=note, parked=item)
