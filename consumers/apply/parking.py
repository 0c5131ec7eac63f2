"""Parked keys of the partitions that are ours: what the loop asks before, during and after a batch (H24).

A row that the target refuses: its dead letter is acknowledged, then the key is parked in the transaction
of the batch's rows. A refusal by a unique or foreign key of the target's own may pass when other
partitions are as far (H23): such a key waits without a dead letter and is tried again and again.
Operators mark keys in the target; the owner of the partition carries it out, between two batches. All
calls come with the target's session held: what is known here must not change under a batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping

from consumers.apply.assemble import Prepared
from consumers.apply.dead_letters import PARKED, DeadLetter, Letters, publish
from consumers.apply.fold import BOTTOM
from consumers.apply.lot import Lot
from consumers.apply.queues import (
    NO_KEY,
    UNDECODABLE,
    Key,
    names_of,
    payload_of,
    stage,
    table_name,
    take_out,
    touched,
)
from consumers.apply.retrying import QUEUE_CHANGES_LIMIT, Retrying
from consumers.apply.schemas import SchemaLookup
from consumers.targets.base import FlowError, Outcome, Refused, RefusedRow, Target
from streamer.changes.schema import SchemaRecord
from streamer.config import DeadLetterLimits, Flow
from streamer.errors import FatalError

REFUSED_ROWS_MIN = 100  # fewer in a minute are never too many
SHARE_WINDOW_S = 60.0
WAITING_KEYS_LIMIT = 10_000  # kept in memory and tried again; their partitions' batches wait above it


class Parking:
    """Of one apply process. `lot`: what is known of its keys; `retrying`: what is done between batches."""

    def __init__(
        self,
        target: Target,
        letters: Letters,
        flows: Iterable[Flow],
        schemas: SchemaLookup,
        limits: DeadLetterLimits,
        *,
        queue_changes: int = QUEUE_CHANGES_LIMIT,
    ) -> None:
        by_name = {flow.name: flow for flow in flows}
        self.lot = Lot()
        self.retrying = Retrying(self.lot, target, letters, by_name, schemas, queue_changes=queue_changes)
        self._target = target
        self._letters = letters
        self._limits = limits
        self._kept_whole = {flow.name for flow in by_name.values() if flow.write != "upsert"}
        self._recent: deque[tuple[float, int, int]] = deque()  # monotonic s, rows applied, rows refused

    def findings(self) -> dict[str, str]:
        """One sentence a flow that has parked keys."""
        see = f"tailrace dead-letters list {self._letters.target}"
        return {
            flow: f"flow {flow}: {count.parked} {'key is' if count.parked == 1 else 'keys are'} parked,"
            f" refused by the target: {see}"
            for flow, count in sorted(self.lot.counts().items())
            if count.parked
        }

    # A batch

    async def stage(self, prepared: Prepared) -> None:
        """Before the target gets the batch: what must wait is taken out of it, and is to be parked."""
        aside = prepared.aside
        letters, out = [], set()
        for poison in aside.poisons:
            mark = Key(poison.place, poison.key), poison.offset
            if mark not in aside.published:
                out.add(mark)
                table = table_name(*names_of(poison.place.topic, None))
                what = UNDECODABLE, poison.reason, BOTTOM, poison.value, PARKED
                letters.append(
                    DeadLetter(poison.place, poison.offset, poison.key, table, *what, decodes=False)
                )
        await self._letters.publish(prepared.letters)
        prepared.letters.clear()
        await publish(self._letters, letters)
        if out:
            aside.published |= out
            self._recent.append((time.monotonic(), 0, len(out)))
        # A change that takes a queue's place keeps what an operator asks for of the key.
        aside.restore()
        if places := touched(prepared.batch, aside, self.lot.queues):
            self.lot.mark(places, await self._target.parked(places, asked=True))
        stage(prepared.batch, aside, self.lot.queues, self._kept_whole, _now_us())

    async def refuse(self, prepared: Prepared, rows: list[Refused]) -> None:
        """After the target refused them: dead letters, and out of the batch. Raises FlowError for a row that
        cannot be parked, having no key."""
        for row in rows:
            if row.key is None:
                raise FlowError(row.place.flow, self._keyless(row))
        letters = []
        for row in rows:
            key = Key(row.place, row.key or NO_KEY)
            mark = key, row.write.offset
            if not row.transient and mark not in prepared.aside.published:
                letters.append(self._letter(row, prepared.batch.records))
        await publish(self._letters, letters)
        for row in rows:
            key = Key(row.place, row.key or NO_KEY)
            prepared.aside.published.add((key, row.write.offset))
            created = take_out(prepared.batch, key)
            if created is None:
                what = f"the target refuses a row that the batch does not have: {row.message}"
                raise FatalError(what, where=_where(row), fix="report this with the log")
            prepared.aside.refused[key] = row, created
        self._recent.append((time.monotonic(), 0, sum(not row.transient for row in rows)))

    def _keyless(self, row: Refused) -> RefusedRow:
        return RefusedRow(
            f"the target refuses a row of a table without a key, which cannot be parked: {row.message}",
            flow=row.place.flow,
            where=_where(row),
            fix="make the target's table take it (type, constraint); the other flows go on",
        )

    def _letter(self, row: Refused, records: Mapping[str, SchemaRecord]) -> DeadLetter:
        record = records.get(row.write.change.schema_id)
        table = table_name(*names_of(row.place.topic, record))
        payload = payload_of(row.write, record, created=False)
        version = row.write.change.version
        place = row.place, row.write.offset, row.key
        return DeadLetter(*place, table, row.code, row.message, version, payload, PARKED)

    def committed(self, prepared: Prepared, outcome: Outcome) -> None:
        """The target has the batch."""
        lost = set(outcome.lost)
        for key, queue in prepared.aside.after.items():
            if key.place in lost or key.place not in self.lot.queues:
                continue
            if queue is None:
                self.lot.queues[key.place].pop(key.key, None)
            else:
                self.lot.queues[key.place][key.key] = queue
        for move in prepared.batch.moves:
            if move.place in lost:
                self.lot.forget(move.place)
            elif move.place in self.lot.at:
                self.lot.at[move.place] = move.next_offset
        self._recent.append((time.monotonic(), sum(outcome.applied.values()), 0))

    # The limit

    def too_many_poisons(self, prepared: Prepared) -> str:
        """The same for records that do not decode: whoever writes them goes on doing it."""
        aside = prepared.aside
        keys = {Key(poison.place, poison.key) for poison in aside.poisons}
        added = [key for key in keys if key.key not in self.lot.queues.get(key.place, {})]
        parked = sum(count.parked for count in self.lot.counts().values())
        if not added or parked + len(added) <= self._limits.limit:
            return ""
        first = aside.poisons[0]
        place = first.place
        return (
            f"{parked} keys are parked, and records of {len(added)} more are no change events, the limit is"
            f" {self._limits.limit}: find out what writes to {place.topic}; only Tailrace may. First:"
            f" [{place.partition}]@{first.offset}: {first.reason}"
        )

    def _share(self, prepared: Prepared, added: int) -> str:
        """The numbers, when with these the share of a minute's rows is too large."""
        now_s = time.monotonic()
        while self._recent and now_s - self._recent[0][0] > SHARE_WINDOW_S:
            self._recent.popleft()
        refused = sum(entry[2] for entry in self._recent) + added
        events = sum(fold.events for changes in prepared.batch.tables for fold in changes.folds)
        rows = sum(entry[1] for entry in self._recent) + events + len(prepared.aside.poisons)
        if refused >= REFUSED_ROWS_MIN and refused > self._limits.share * rows:
            return f"{refused} of the last minute's {rows} rows"
        return ""

    def too_many(self, prepared: Prepared, rows: list[Refused]) -> str:
        """Why these rows are not parked, too: it is not a row's fault any more. Empty: they may be."""
        counts = self.lot.counts().values()
        held = prepared.aside.refused.values()
        first = f"First: {rows[0].message} [{rows[0].code}]"
        bad = [row for row in rows if not row.transient]
        parked = sum(count.parked for count in counts) + sum(not row.transient for row, _ in held)
        if bad and parked + len(bad) > self._limits.limit:
            return (
                f"{parked} keys are parked and {len(bad)} more rows are refused, the limit is"
                f" {self._limits.limit}: mend the table or the flow, then `{self._command('retry')}`, or"
                f" `{self._command('discard')}`. It goes on by itself when fewer are parked."
                f" {self._raise('limit: N')}. {first}"
            )
        waiting = sum(count.waiting for count in counts) + sum(row.transient for row, _ in held)
        if waiting + len(rows) - len(bad) > WAITING_KEYS_LIMIT:
            return (
                f"{waiting} keys wait for other partitions, the limit is {WAITING_KEYS_LIMIT}: a constraint"
                f" of the target's holds them up; mend the table or the flow, then"
                f" `{self._command('retry')}`. It goes on by itself when fewer wait. {first}"
            )
        if bad and (share := self._share(prepared, len(bad))):
            return (
                f"{share} are refused, the limit is {self._limits.share:.0%}: mend the table or the flow, and"
                f" it goes on by itself. {self._raise('share: N%')} (100%: no such limit). {first}"
            )
        return ""

    def _command(self, action: str) -> str:
        return f"tailrace dead-letters {action} {self._letters.target}"

    def _raise(self, key: str) -> str:
        return (
            f"To park them where the rows themselves are bad: `dead_letters: {{{key}}}` below"
            f" targets.{self._letters.target}, and start it again"
        )


def _now_us() -> int:
    return time.time_ns() // 1000


def _where(row: Refused) -> str:
    place = row.place
    return f"flow {place.flow!r}, {place.topic}[{place.partition}]@{row.write.offset}"
