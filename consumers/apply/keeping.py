"""The keeper: once a second it reports, commits offsets for lag tools, and looks after what waits.

That is what operators ask for of parked keys, keys that wait for other partitions (H23), decisions on
gates, a target that has lost what was written to it, and now and then a sweep of the target.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from aiokafka import TopicPartition

from consumers.apply.backfilling import Backfilling
from consumers.apply.checkpoint import Checkpoint, Place
from consumers.apply.condition import Condition
from consumers.apply.feed import Feed
from consumers.apply.losses import Losses
from consumers.apply.parking import Parking
from consumers.apply.pauses import Pauses
from consumers.apply.reading import KAFKA
from consumers.apply.report import Report
from consumers.apply.rereads import REREAD_KEYS, REREAD_S
from consumers.apply.session import TARGET, Session
from consumers.apply.writing import Writer
from consumers.targets.base import Parked, Target, Unwhole
from streamer.binding import commit_of
from streamer.errors import KafkaUnavailable, TailraceError
from streamer.kafka import kafka_errors
from streamer.status import State, StatusWriter

KEEP_S = 1.0  # between two reports
REWOUND = "rewound"  # of a flow: it stands before a place that it had passed
PROBE_S = 3.0  # Kafka not answering for so long is said in `status`
SWEEP_S = 60.0
LOOK_S = 2.0  # a target that was emptied or replaced is noticed within it, also where no change comes
# A change's own transaction may still be on its way to Kafka, in several flushes, when the change is read.
PASS_AFTER_S = 5.0

log = logging.getLogger(__name__)


class Keeper:
    def __init__(
        self,
        feed: Feed,
        session: Session,
        condition: Condition,
        report: Report,
        parking: Parking,
        losses: Losses,
        pauses: Pauses,
        writer: Writer,
        status: StatusWriter,
        *,
        go_on: Callable[[str], None],
        retention_s: float,
        keep_tombstones_s: float,
        poll_gates: Callable[[Target], Awaitable[None]] | None = None,
        backfilling: Backfilling,
    ) -> None:
        """`poll_gates`: called once a second with the session held; it reads decisions, and calls
        `go_on` for what is held no more. `go_on`: as Reader has it, with a topic."""
        self._feed = feed
        self._session = session
        self._condition = condition
        self._report = report
        self._parking = parking
        self._losses = losses
        self._pauses = pauses
        self._writer = writer
        self._go_on = go_on
        self._status = status
        self._retention_s = retention_s
        self._keep_tombstones_s = keep_tombstones_s
        self._poll_gates = poll_gates
        self._backfilling = backfilling
        self.notes: list[str] = []  # findings that do not change while the process runs
        self._findings: list[str] = []
        self._blind = ""  # why gates are not looked at
        self._starts: dict[TopicPartition, int] = {}  # of the logs that paused flows read, now and then

    async def run(self) -> None:
        """Until cancelled."""
        condition = self._condition
        swept_s = probed_s = looked_s = reread_s = time.monotonic()
        rereads, has_looked = 0, False
        while True:
            await asyncio.sleep(KEEP_S)
            now_s = time.monotonic()
            if not self._feed.is_open or await self._probe():
                probed_s = now_s
                if self._feed.is_open and KAFKA in condition.waiting:
                    condition.have(KAFKA)
            elif now_s - probed_s > PROBE_S and KAFKA not in condition.waiting:
                condition.wait_for(KAFKA, "Kafka does not answer; it goes on by itself when it is back")
            await self.commit()
            await self._look_after_parked()
            await self._look_at_pauses()
            if self._poll_gates is not None:
                error = await self._session.shortly(self._poll_gates)
                self._blind = (
                    "" if error is None else f"gates are not looked at, and what waits there stays: {error}"
                )
            if now_s - looked_s > LOOK_S and not self._session.is_busy:
                looked_s = now_s
                await self._look()
            if now_s - swept_s > SWEEP_S:
                swept_s = now_s
                await self._sweep()
            elif self._feed.is_open and (self._report.rereads != rereads or not has_looked):
                await self._find()
                has_looked = True
            if now_s - reread_s > REREAD_S and not self._session.is_busy:
                reread_s = now_s
                await self._reread()
                await self._look_at_starts()
            rereads = self._report.rereads
            self._show()

    async def _probe(self) -> bool:
        try:
            self._report.ended(await self._feed.ends(PROBE_S))
        except KafkaUnavailable:
            return False
        return True

    async def commit(self) -> None:
        moved, self._writer.moved = self._writer.moved, set()
        if not moved:
            return
        store = self._session.target.id
        marks = self._losses.commits(moved, self._parking.lot.at)
        try:
            await self._feed.commit({p: commit_of(at, store, until) for p, (at, until) in marks.items()})
        except TailraceError as error:
            log.debug("offsets for lag tools not committed: %s", error)

    # What waits

    async def _look_after_parked(self) -> None:
        parking = self._parking
        if not parking.lot.has_any:
            return
        owned = self._feed.owned()

        async def act(target: Target) -> None:
            await parking.retrying.attend(owned)
            if parking.lot.has_waiting:
                await parking.retrying.try_waiting()

        error = await self._session.shortly(act)
        if error is None and parking.lot.has_waiting:
            error = await self._give_up_overdue()
        self._tell(error)

    def _tell(self, error: TailraceError | None) -> None:
        """How the target is, where the writer does not: it says what it waits for by itself."""
        if error is not None and self._writer.idle.is_set():
            self._condition.wait_for(TARGET, str(error))
        elif error is None and self._writer.idle.is_set() and TARGET in self._condition.waiting:
            self._condition.have(TARGET)

    async def _look_at_pauses(self) -> None:
        pauses = self._pauses

        async def act(_: Target) -> None:
            await pauses.poll()

        error = await self._session.shortly(act)
        if error is not None:
            log.debug("whether flows are paused is not known: %s", error)
        self._condition.leave(pauses.out)
        self._report.paused(pauses.paused())

    async def _look_at_starts(self) -> None:
        """How much of what paused flows have not applied is left in the log."""
        paused = self._pauses.paused()
        wanted = {partition for flow, partition in self._report.partitions if flow in paused}
        self._starts = {}
        if not wanted or not self._feed.is_open:
            return
        try:
            with kafka_errors("reading offsets", brokers=""):
                async with asyncio.timeout(PROBE_S):
                    self._starts = await self._feed.consumer.beginning_offsets(list(wanted))
        except KafkaUnavailable as error:
            log.debug("starts of logs not read: %s", error)

    async def _look(self) -> None:
        """Whether the target has what was written to it. A partition with a batch would notice; no other."""
        lot = self._parking.lot
        if not lot.at:
            return
        topics: set[str] = set()

        async def act(target: Target) -> None:
            topics.clear()
            topics.update(self._losses.look_for(await target.look(lot.at), lot.at))

        self._tell(await self._session.shortly(act))
        for topic in topics:
            self._go_on(topic)

    async def _give_up_overdue(self) -> TailraceError | None:
        """What every partition of its flow has passed, and is refused still, is a bad row (H23)."""
        overdue = self._parking.retrying.overdue(time.time_ns() // 1000 - int(PASS_AFTER_S * 1e6))
        if not overdue:
            return None
        try:
            ends = {
                flow: await self._feed.topic_ends(flow, PROBE_S) for flow in {k.place.flow for k in overdue}
            }
        except KafkaUnavailable as error:
            return error

        async def act(target: Target) -> None:
            for flow, partitions in ends.items():
                places = {Place(flow, p.topic, p.partition): end for p, end in partitions.items()}
                stands = await target.checkpoints(places)
                keys = [
                    key
                    for key, head in overdue.items()
                    if key.place.flow == flow
                    and all(
                        stand.next_offset >= places[place] or _has_passed(stand, head)
                        for place, stand in stands.items()
                    )
                ]
                await self._parking.retrying.give_up(keys)

        return await self._session.shortly(act)

    async def _sweep(self) -> None:
        if self._session.is_busy:
            return

        async def act(target: Target) -> None:
            await target.sweep(self._keep_tombstones_s)

        error = await self._session.shortly(act)
        if error is not None:
            log.debug("not swept: %s", error)
        await self._find()

    async def _find(self) -> None:
        async def act(target: Target) -> None:
            self._findings = await target.findings()

        error = await self._session.shortly(act)
        if error is not None:
            log.debug("findings not read: %s", error)

    async def _reread(self) -> None:
        """Have rows that are not whole read again from the source (H6, H7)."""
        owned = self._feed.owned()
        topics = [topic for topic, partition in owned if partition == 0]
        noted: list[Unwhole] = []

        async def act(target: Target) -> None:
            noted[:] = await target.rereads(topics, REREAD_KEYS) if topics else []

        if error := await self._session.shortly(act):
            log.debug("rows that are not whole not looked for: %s", error)
        self._backfilling.note(noted, owned)
        if noted or self._findings:
            await self._find()

    def _show(self) -> None:
        self._condition.prove()
        counts = self._parking.lot.counts()
        self._report.parked(counts)
        detail = self._report.detail()
        detail["findings"] = [*self.notes, *self._findings]
        detail["set_aside"] = self._parking.findings()
        detail["findings"] += self._losses.findings(self._parking.lot.at)
        for flow, reason in self._losses.rewound(self._parking.lot.at).items():
            if detail["flows"][flow]["state"] == State.STREAMING:
                detail["flows"][flow].update(state=REWOUND, reason=reason)
        detail["findings"] += self._pauses.findings(*self._report.unapplied(self._starts), self._retention_s)
        detail["findings"] += self._report.epochs.findings() + self._backfilling.findings()
        if self._blind and not self._condition.waiting:  # else that is what it waits for
            detail["findings"].append(self._blind)
        detail["notes"] = self._backfilling.notes()
        detail.update(self._session.target.details())
        self._status.update(detail=detail)
        self._condition.say()


def _has_passed(stand: Checkpoint, head: Parked) -> bool:
    last = stand.last
    return last is not None and (last.epoch, last.commit_lsn) > head.version[:2]
