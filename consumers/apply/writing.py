"""The writer: one batch after the other into the target, with what is parked on the way (H24)."""

from __future__ import annotations

import asyncio
import time

from aiokafka import TopicPartition

from consumers.apply.assemble import Judge, Prepared
from consumers.apply.condition import Condition
from consumers.apply.feed import Feed
from consumers.apply.losses import Losses
from consumers.apply.outdated import Outdated
from consumers.apply.parking import Parking
from consumers.apply.pauses import Pauses
from consumers.apply.report import Report
from consumers.apply.session import TARGET, Session
from consumers.targets.base import AskedAnew, FlowError, Outcome, RowsRefused
from streamer.errors import RetryableError, TargetUnavailable
from streamer.stopping import stopped_within

LIMIT_PROBE_S = 5.0  # a target that refuses too much is tried again as often: it may have been mended


class Writer:
    def __init__(
        self,
        feed: Feed,
        session: Session,
        condition: Condition,
        report: Report,
        parking: Parking,
        losses: Losses,
        pauses: Pauses,
        outdated: Outdated,
        judge: Judge | None = None,
    ) -> None:
        self._feed = feed
        self._session = session
        self._condition = condition
        self._report = report
        self._parking = parking
        self._losses = losses
        self._pauses = pauses
        self._outdated = outdated
        self._judge = judge
        self._told = False
        self._queue: asyncio.Queue[Prepared] = asyncio.Queue(maxsize=1)
        self.idle = asyncio.Event()  # nothing is queued or in the target
        self.idle.set()
        self.moved: set[TopicPartition] = set()  # to be committed in Kafka, taken by the keeper

    async def put(self, prepared: Prepared) -> None:
        self.idle.clear()
        await self._queue.put(prepared)

    async def run(self) -> None:
        """Until cancelled. Raises what stops every flow."""
        while True:
            prepared = await self._queue.get()
            self._told = False
            try:
                await self._write(prepared)
            finally:
                self._tell_judge()
                if self._queue.empty():
                    self.idle.set()

    async def _write(self, prepared: Prepared) -> None:
        condition = self._condition
        failures = 0
        reopen = False
        while True:
            if condition.stopped or self._pauses.out:
                prepared = prepared.without(condition.stopped.keys() | self._pauses.out)
            self._outdated.take_out(prepared)
            if not prepared.batch.moves:
                return
            try:
                outcome = await self._attempt(prepared, reopen=reopen)
                if outcome is not None:
                    break
                reopen = False
            except FlowError as error:
                if not await self._outdated.is_in_the_way(error, prepared):
                    condition.stop_flow(error.flow, error.cause)
            except RetryableError as error:
                condition.wait_for(TARGET, str(error))
                await condition.back_off(failures)
                failures += 1
                reopen = isinstance(error, TargetUnavailable)
            if condition.stop.is_set() and condition.is_stuck:
                return
        committed_us = time.time_ns() // 1000
        if failures:
            condition.have(TARGET)
        condition.pause("")
        self._note(prepared, outcome, committed_us)
        await self._try_waiting()

    async def _attempt(self, prepared: Prepared, *, reopen: bool) -> Outcome | None:
        """None: again, without the rows that were refused, which are to be parked by it, or with what
        operators ask for by now."""
        async with self._session.held() as target:
            if reopen:
                await target.open()
            too_many = self._parking.too_many_poisons(prepared)
            if not too_many:
                await self._parking.stage(prepared)
                try:
                    outcome = await target.apply(prepared.batch)
                except AskedAnew:
                    return None
                except RowsRefused as error:
                    too_many = self._parking.too_many(prepared, error.rows)
                    if not too_many:
                        await self._parking.refuse(prepared, error.rows)
                        return None
                else:
                    self._tell_judge()  # with the session held: nobody has asked for the counts since
                    for place in outcome.lost:
                        if place in self._parking.lot.at:
                            self._losses.refused(place, self._parking.lot.at[place])
                    self._parking.committed(prepared, outcome)
                    return outcome
        self._condition.pause(too_many)
        await stopped_within(self._condition.stop, LIMIT_PROBE_S)
        return None

    def _tell_judge(self) -> None:
        """Once a batch."""
        if self._judge is not None and not self._told:
            self._judge.written()
        self._told = True

    async def _try_waiting(self) -> None:
        """This batch may have brought what a row was waiting for (H23)."""
        if not self._parking.lot.has_waiting:
            return
        try:
            async with self._session.held():
                await self._parking.retrying.try_waiting()
        except RetryableError:
            return  # the keeper tries again, and says so

    def _note(self, prepared: Prepared, outcome: Outcome, committed_us: int) -> None:
        self._report.applied(prepared, outcome, committed_us)
        lost = set(outcome.lost)
        written = {move.place.flow for move in prepared.batch.moves if move.place not in lost}
        self._condition.has_written(written)
        for move in prepared.batch.moves:
            partition = TopicPartition(move.place.topic, move.place.partition)
            if move.place not in lost:
                self.moved.add(partition)
                continue
            if partition in self._feed.standings:
                self._feed.unplaced.add(partition)  # moved by another process, yet assigned to us
                del self._feed.standings[partition]
