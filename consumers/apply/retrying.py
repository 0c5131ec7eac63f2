"""Parked keys that are tried again: what operators ask for, and what waits for other partitions (H23, H24).

A key's changes are folded as those of a batch are, written and un-parked in one transaction, which moves no
checkpoint and is refused all the same where the partition is another process's by now. All calls come with
the target's session held, between two batches.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from consumers.apply.checkpoint import Move, Place
from consumers.apply.dead_letters import DISCARDED, PARKED, DeadLetter, Letters, publish
from consumers.apply.fold import Event
from consumers.apply.lot import Lot
from consumers.apply.modes import fold_for
from consumers.apply.queues import (
    NO_KEY,
    UNDECODABLE,
    Key,
    Reason,
    again,
    event_of,
    queue_of,
    shortened,
    table_name,
    take_out,
    wish_of,
)
from consumers.apply.schemas import SchemaLookup
from consumers.targets.base import (
    AskedAnew,
    Batch,
    FlowError,
    Outcome,
    Parked,
    RowsRefused,
    TableChanges,
    Target,
)
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.errors import BadRecordError, FatalError, RetryableError

QUEUE_CHANGES_LIMIT = 100  # of a key; above it they are folded into one, as those of a batch are
WAITING_TRIED = 500  # keys a round: what is refused costs a search among them
FLOW_REFUSED = "flow"  # the reason's code when a retry stops at more than the row


class Retrying:
    def __init__(
        self,
        lot: Lot,
        target: Target,
        letters: Letters,
        flows: Mapping[str, Flow],
        schemas: SchemaLookup,
        *,
        queue_changes: int,
    ) -> None:
        self._lot = lot
        self._target = target
        self._letters = letters
        self._flows = flows
        self._schemas = schemas
        self._queue_changes = queue_changes
        self._turn = 0  # where the next round of waiting keys begins

    async def attend(self, owned: Collection[tuple[str, int]]) -> None:
        """Carry out what operators ask for, of partitions that are ours. Raises RetryableError."""
        places = [
            place
            for place, queues in self._lot.queues.items()
            if queues and place[1:] in owned and place.flow not in self._lot.still
        ]
        if not places:
            return
        await self._shorten(places)
        wishes: dict[Key, list[Parked]] = {}
        for entry in await self._target.parked(places, asked=True):
            wishes.setdefault(Key(entry.place, entry.key), []).append(entry)
        await self._discard({k: entries for k, entries in wishes.items() if wish_of(entries) == "discard"})
        retries = {key: entries for key, entries in wishes.items() if wish_of(entries) == "retry"}
        if retries:
            refused = await self._write(retries, "retry")
            tried = {key: again(retries[key], why, waiting=waits) for key, (why, waits) in refused.items()}
            await self._rewrite(tried, dict.fromkeys(tried, "retry"))

    async def _shorten(self, places: Iterable[Place]) -> None:
        """Queues that have grown too long."""
        for place in places:
            long = {
                key for key, queue in self._lot.queues[place].items() if queue.length > self._queue_changes
            }
            if not long or self._flows[place.flow].write != "upsert":
                continue
            queues: dict[Key, list[Parked]] = {}
            for entry in await self._target.parked([place]):
                if entry.key in long:
                    queues.setdefault(Key(place, entry.key), []).append(entry)
            shorter = {key: shortened(entries) for key, entries in queues.items()}
            shorter = {k: entries for k, entries in shorter.items() if len(entries) < len(queues[k])}
            await self._rewrite(shorter, {key: wish_of(queues[key]) for key in shorter})

    async def _discard(self, queues: Mapping[Key, list[Parked]]) -> None:
        letters = [
            DeadLetter(
                e.place, e.offset, e.key, table_name(e.schema, e.table), e.code,
                f"discarded by {e.asked_by or 'an operator'}: {e.message}", e.version, e.payload, DISCARDED,
                decodes=e.decodes,
            )
            for entries in queues.values()
            for e in entries
        ]  # fmt: skip
        await publish(self._letters, letters)
        if queues:
            batch = self._empty({key.place for key in queues})
            batch.unparks = list(queues)
            batch.wishes = dict.fromkeys(queues, "discard")
            await self._apply(batch, {})

    async def try_waiting(self) -> None:
        """Some of the keys that wait for other partitions again. Raises RetryableError."""
        waiting = self._lot.waiting()
        if not waiting:
            return
        first = self._turn % len(waiting)
        chosen = (waiting[first:] + waiting[:first])[:WAITING_TRIED]
        self._turn = first + len(chosen)
        queues = self._entries(chosen)
        refused = await self._write(queues, "")  # what is asked for is `attend`'s
        await self._give_up({key: why for key, (why, waits) in refused.items() if not waits})

    def overdue(self, before_us: int) -> dict[Key, Parked]:
        """Waiting keys whose change was parked before then, and their first entry."""
        found = {key: self._lot.queues[key.place][key.key].head for key in self._lot.waiting()}
        return {key: head for key, head in found.items() if head.parked_us < before_us}

    async def give_up(self, keys: Iterable[Key]) -> None:
        """Every partition has passed their changes, and they are refused still: these are bad rows."""
        reasons = {}
        for key in keys:
            queue = self._lot.queues.get(key.place, {}).get(key.key)
            if queue is not None and queue.head.waiting:
                reasons[key] = queue.head.code, queue.head.message
        await self._give_up(reasons)

    async def _give_up(self, reasons: Mapping[Key, Reason]) -> None:
        queues = self._entries(reasons)
        parked = {key: again(entries, reasons[key], waiting=False) for key, entries in queues.items()}
        letters = [
            DeadLetter(
                e.place, e.offset, e.key, table_name(e.schema, e.table), e.code, e.message, e.version,
                e.payload, PARKED, decodes=e.decodes,
            )
            for entries in parked.values()
            for e in entries
        ]  # fmt: skip
        await publish(self._letters, letters)
        await self._rewrite(parked, dict.fromkeys(parked, ""))

    def _entries(self, keys: Iterable[Key]) -> dict[Key, list[Parked]]:
        """What waits of these keys, where they are ours still."""
        found = {}
        for key in keys:
            queue = self._lot.queues.get(key.place, {}).get(key.key)
            if queue is not None and queue.entries:
                found[key] = queue.entries
        return found

    # Queues into the target

    async def _write(self, queues: Mapping[Key, list[Parked]], wish: str) -> dict[Key, tuple[Reason, bool]]:
        """Apply the changes of these keys, in order, and un-park them. Gives what is refused, and why; those
        are as they were. The flag: whether it still waits for other partitions. A key of which something
        else than `wish` is asked for by now stays as it is."""
        refused: dict[Key, tuple[Reason, bool]] = {}
        events: dict[Key, list[Event]] = {}
        records: dict[str, SchemaRecord] = {}
        for key, entries in queues.items():
            try:
                events[key] = [event_of(entry) for entry in entries]
                for event in events[key]:
                    schema_id = event.change.schema_id
                    records[schema_id] = await self._schemas.get(schema_id, f"flow {key.place.flow!r}")
            except (BadRecordError, FatalError) as error:
                events.pop(key, None)
                code = UNDECODABLE if isinstance(error, BadRecordError) else FLOW_REFUSED
                refused[key] = (code, error.what), False
        batch = self._empty({key.place for key in events})
        batch.records = records
        batch.tables = self._tables(events, records)
        batch.unparks = list(events)
        batch.wishes = dict.fromkeys(events, wish)
        await self._apply(batch, refused, {key: queues[key][0].waiting for key in events})
        return refused

    def _tables(
        self, events: Mapping[Key, list[Event]], records: Mapping[str, SchemaRecord]
    ) -> list[TableChanges]:
        by_topic: dict[tuple[str, str], dict[int, list[Event]]] = {}
        for key, found in events.items():
            parts = by_topic.setdefault((key.place.flow, key.place.topic), {})
            parts.setdefault(key.place.partition, []).extend(found)
        tables = []
        for (flow, topic), parts in by_topic.items():
            every = [event.change for part in parts.values() for event in part]
            record = records[max(every, key=lambda change: change.version).schema_id]
            place = self._flows[flow].place(record.schema, record.table)
            folds = [fold_for(self._flows[flow], part, p) for p, part in parts.items()]
            ids = {change.schema_id for change in every}
            tables.append(TableChanges(flow, topic, record, *place, folds, ids))
        return tables

    async def _apply(
        self,
        batch: Batch,
        refused: dict[Key, tuple[Reason, bool]],
        waiting: Mapping[Key, bool] | None = None,
    ) -> None:
        """The batch without what is refused, which is noted."""
        while batch.unparks or batch.parks:
            try:
                outcome = await self._target.apply(batch)
            except RowsRefused as error:
                for row in error.rows:
                    key = Key(row.place, row.key or NO_KEY)
                    if take_out(batch, key) is None:
                        self._without(row.place.flow, row.message, batch, refused)
                        continue
                    refused[key] = (row.code, row.message), row.transient and bool((waiting or {}).get(key))
            except AskedAnew as error:
                self._drop(batch, {Key(*key) for key in error.keys})
            except FlowError as error:
                if isinstance(error.cause, RetryableError):
                    self._leave(error.flow, batch)
                else:
                    self._without(error.flow, str(error.cause), batch, refused)
            else:
                self._unparked(batch, outcome)
                return
            batch.unparks = [key for key in batch.unparks if key not in refused]

    def _drop(self, batch: Batch, keys: set[Key]) -> None:
        """They stay as they are, and are looked at anew."""
        for key in keys:
            take_out(batch, key)
            del batch.wishes[key]
        batch.unparks = [key for key in batch.unparks if key not in keys]
        batch.parks = [entry for entry in batch.parks if Key(entry.place, entry.key) not in keys]

    def _leave(self, flow: str, batch: Batch) -> None:
        """The store's fault and no key's: the flow's keys stay as they are, for another time."""
        batch.unparks = [key for key in batch.unparks if key[0].flow != flow]
        batch.parks = [entry for entry in batch.parks if entry.place.flow != flow]
        batch.tables = [changes for changes in batch.tables if changes.flow != flow]
        batch.moves = [move for move in batch.moves if move.place.flow != flow]

    def _without(self, flow: str, why: str, batch: Batch, refused: dict[Key, tuple[Reason, bool]]) -> None:
        """More than a row of the flow is refused: none of its keys goes."""
        refused.update(
            {Key(*key): ((FLOW_REFUSED, why), False) for key in batch.unparks if key[0].flow == flow}
        )
        batch.tables = [changes for changes in batch.tables if changes.flow != flow]
        batch.moves = [move for move in batch.moves if move.place.flow != flow]

    def _unparked(self, batch: Batch, outcome: Outcome) -> None:
        for place in outcome.lost:
            self._lot.forget(place)
        for place, key in batch.unparks:
            self._lot.queues.get(place, {}).pop(key, None)

    async def _rewrite(self, queues: Mapping[Key, list[Parked]], wishes: Mapping[Key, str]) -> None:
        """Park them as they are here, in place of what is in the target. `wishes`: what was asked for of
        them; a key of which it is something else by now stays as it is."""
        queues = {key: entries for key, entries in queues.items() if key.place in self._lot.at}
        if not queues:
            return
        batch = self._empty({key.place for key in queues})
        batch.unparks = list(queues)
        batch.parks = [entry for entries in queues.values() for entry in entries]
        batch.wishes = {key: wishes[key] for key in queues}
        await self._apply(batch, {})
        for key, entries in queues.items():
            if key.place in self._lot.queues and key in batch.wishes:
                self._lot.queues[key.place][key.key] = queue_of(entries)

    def _empty(self, places: Collection[Place]) -> Batch:
        """Moves nothing; refused all the same where the partition is another process's by now."""
        moves = [Move(place, self._lot.at[place], self._lot.at[place], None) for place in places]
        return Batch([], moves, {}, self._lot.cluster_id)
