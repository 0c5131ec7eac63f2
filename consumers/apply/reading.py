"""The reader: fetches, decodes and folds the next batch while the writer has one in the target.

A target or a Kafka that is away is waited for, with the membership kept. The gates' place is here: the
assembler asks them of each flow and topic (assemble.Judge), and what they hold is read no further.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from aiokafka import TopicPartition

from consumers.apply.assemble import Assembler, Judge, Prepared
from consumers.apply.checkpoint import Checkpoint, Place
from consumers.apply.condition import Condition
from consumers.apply.feed import Feed, Fetched
from consumers.apply.losses import Losses
from consumers.apply.parking import Parking
from consumers.apply.pauses import Pauses
from consumers.apply.report import Report
from consumers.apply.schemas import Schemas
from consumers.apply.session import Session
from consumers.apply.writing import Writer
from consumers.targets.base import FlowError, Parked, Target
from streamer import config as settings
from streamer.binding import belongs_elsewhere
from streamer.errors import KafkaUnavailable

KAFKA = "kafka"  # what is waited for
POLL_MS = 200  # of a fetch that finds nothing: stop and rebalances are noticed within it
BLOCKED_S = 1.0  # the reader polls, paused, as often while the writer has no room
IDLE_MOVE_S = 1.0  # checkpoints follow the end of an idle log, past transaction markers (H18)
AHEAD_RECORDS = 500  # a smaller batch is faster without a second pass over it
FIRST_ROW_BYTES = 1024.0  # taken for a record's size until some have been seen


class Reader:
    def __init__(
        self,
        feed: Feed,
        session: Session,
        condition: Condition,
        report: Report,
        parking: Parking,
        losses: Losses,
        pauses: Pauses,
        schemas: Schemas,
        writer: Writer,
        limits: settings.Batch,
        judge: Judge | None = None,
    ) -> None:
        self._feed = feed
        self._schemas = schemas
        self._assembler = Assembler(schemas, judge, passed=losses.passed)
        self._judge = judge
        self._session = session
        self._condition = condition
        self._report = report
        self._parking = parking
        self._losses = losses
        self._pauses = pauses
        self._writer = writer
        self._limits = limits
        self._row_bytes = FIRST_ROW_BYTES  # running mean of a record, for the batch's limit in bytes
        self._flows_by_topic: dict[str, list[settings.Flow]] = {}
        self._to_hold: set[tuple[str, str]] = set()  # flow and topic
        self._began_s = self._handed_s = 0.0

    async def run(self) -> None:
        """Until stop is set. Raises what stops every flow."""
        condition = self._condition
        failures = 0
        while not condition.stop.is_set():
            try:
                await self._schemas.open()
                await self._feed.open()
                await self._check_group()
                condition.have(KAFKA)
                while not condition.stop.is_set():
                    await self._once()
                    failures = 0
            except KafkaUnavailable as error:
                condition.wait_for(KAFKA, str(error))
                await self._feed.close()
                await condition.back_off(failures)
                failures += 1

    def hold(self, flow: str, topic: str) -> None:
        """A gate holds the topic: the flow reads no further from the next batch on. The batch in hand is made
        whole: what came before the held change is in it."""
        self._to_hold.add((flow, topic))

    def go_on(self, topic: str) -> None:
        """Every flow of the topic reads on from its checkpoint: a gate opened, or the target lost rows."""
        if self._feed.is_open:
            self._feed.place_again(topic)

    async def _check_group(self) -> None:
        (bound, again), own = await self._feed.binding(), self._session.target.id
        self._condition.met(own)
        if bound is not None and bound != own:
            raise belongs_elsewhere(self._feed.group, bound, own)
        self._losses.come_again(again)

    async def _once(self) -> None:
        feed = self._feed
        if flows := self._condition.due():
            await self._try_again(flows)
        if resumed := self._pauses.resumed():
            await self._resume(resumed)
        feed.release(self._pauses.out)
        while self._to_hold:
            flow, topic = self._to_hold.pop()
            if self._judge is not None and self._judge.holds(flow, topic):
                feed.release({flow}, topic)
        if feed.unplaced:
            await self._place()
            return
        rest = self._limits.wait_s - (time.monotonic() - self._began_s)
        if rest > 0:
            await asyncio.sleep(rest)
        self._began_s = time.monotonic()
        rows = max(1, min(self._limits.rows, int(self._limits.bytes / self._row_bytes)))
        fetched = await feed.poll(rows, POLL_MS)
        self._verify(fetched)
        if not fetched.records and self._began_s - self._handed_s < IDLE_MOVE_S:
            return  # transaction markers alone: with the next records, or soon
        prepared = await self._assemble(fetched)
        for place in prepared.held:
            all_of_it = self._judge is None or self._judge.holds(place.flow, place.topic)
            feed.release({place.flow}, place.topic, None if all_of_it else place.partition)
        if self._judge is not None:
            self._judge.count(prepared)
        if not prepared.batch.moves:
            return
        self._handed_s = self._began_s
        if prepared.records:
            self._row_bytes += 0.2 * (prepared.bytes / prepared.records - self._row_bytes)
            if prepared.records >= AHEAD_RECORDS:
                await self._session.target.prepare(prepared.batch)
        await self._hand_over(prepared)

    async def _try_again(self, flows: list[str]) -> None:
        """Stopped flows read on from their checkpoints, once nothing is on its way that leaves them out."""
        if not await self._settled():
            return
        for flow in flows:
            self._condition.try_again(flow)
        self._place_again(flows)

    async def _resume(self, flows: Collection[str]) -> None:
        """As `_try_again`: flows that were paused."""
        if not await self._settled():
            return
        for flow in flows:
            self._pauses.go_on(flow)
        self._place_again(flows)

    def _place_again(self, flows: Collection[str]) -> None:
        for topic in {partition.topic for partition in self._feed.consumer.assignment()}:
            if any(flow.name in flows for flow in self._feed.flows_of(topic)):
                self._feed.place_again(topic)

    def _verify(self, fetched: Fetched) -> None:
        """What does not follow on its checkpoint is taken out."""
        for partition, records in list(fetched.records.items()):
            if self._feed.standings[partition].unverified and not self._feed.verify(partition, records):
                del fetched.records[partition], fetched.ends[partition]

    async def _assemble(self, fetched: Fetched) -> Prepared:
        feed = self._feed
        for topic in {partition.topic for partition in fetched.ends}:
            if topic not in self._flows_by_topic:
                self._flows_by_topic[topic] = feed.flows_of(topic)
        standings = dict(feed.standings)
        while True:
            try:
                prepared = await self._assembler.assemble(
                    fetched, standings, self._flows_by_topic, feed.cluster_id
                )
                break
            except FlowError as error:
                self._condition.stop_flow(error.flow, error.cause)
        for move in prepared.batch.moves:
            partition = TopicPartition(move.place.topic, move.place.partition)
            standings[partition].move(move)
        self._report.read(prepared)
        return prepared

    async def _hand_over(self, prepared: Prepared) -> None:
        """To the writer; while it has no room the membership is kept, paused."""
        put = asyncio.create_task(self._writer.put(prepared), name="apply: hand over")
        try:
            while not (await asyncio.wait([put], timeout=BLOCKED_S))[0]:
                await self._feed.idle()
                if self._condition.stop.is_set() and self._condition.is_stuck:
                    return
        finally:
            if not put.done():
                put.cancel()
                await asyncio.wait([put])
                if put.cancelled() and self._judge is not None:
                    self._judge.written()  # it never will be

    async def _settled(self) -> bool:
        """Nothing of ours is on its way; False when stop came first."""
        wait = asyncio.create_task(self._writer.idle.wait(), name="apply: settle")
        try:
            while not (await asyncio.wait([wait], timeout=BLOCKED_S))[0]:
                await self._feed.idle()
                if self._condition.stop.is_set():
                    return False
        finally:
            wait.cancel()
        return True

    async def _place(self) -> None:
        """Start what is newly ours at the target's checkpoints."""
        if not await self._settled():
            return
        feed = self._feed
        partitions = set(feed.unplaced)
        places = [
            Place(flow.name, partition.topic, partition.partition)
            for partition in partitions
            for flow in feed.flows_of(partition.topic)
            if flow.name not in self._condition.stopped
        ]
        if not places:
            feed.park(partitions)
            return
        rebalances = feed.rebalances

        checkpoints: dict[Place, Checkpoint] = {}
        parked: list[Parked] = []

        async def read(target: Target) -> None:
            checkpoints.update(await target.checkpoints(places))
            parked[:] = await target.parked(places)
            await self._pauses.load()
            if self._judge is not None:
                await self._judge.load()

        read_all = await self._session.patiently(read, feed.idle, BLOCKED_S)
        if not read_all or rebalances != feed.rebalances:
            return
        async with self._session.held():
            self._parking.lot.keep_only({(p.topic, p.partition) for p in feed.consumer.assignment()})
            self._losses.placed(checkpoints, self._parking.lot.at)
            self._parking.lot.load(checkpoints, parked, feed.cluster_id)
        held = {place: c.next_offset for place, c in checkpoints.items() if self._holds(place)}
        free = {place: c for place, c in checkpoints.items() if place not in held}
        for flow, error in await feed.place(free, partitions):
            self._condition.stop_flow(flow, error)
        for (flow_name, partition), report in self._report.partitions.items():  # placed before, and waits
            place = Place(flow_name, *partition)
            waits = flow_name in self._condition.stopped
            waits = waits or flow_name in self._pauses.out
            waits = waits or (self._judge is not None and self._judge.waits(place))
            if partition in feed.consumer.assignment() and waits:
                held.setdefault(place, report.applied_offset)
        self._report.placed(feed.standings, feed.placed_ends, held)

    def _holds(self, place: Place) -> bool:
        if place.flow in self._pauses.out:
            return True
        return self._judge is not None and self._judge.holds(place.flow, place.topic)
