"""`tailrace apply TARGET`: one process of a target's consumer group.

The reader fetches and decodes the next batch while the writer has one in the target; the keeper
reports, commits offsets to Kafka for lag tools, and sweeps; beside them clocks are compared. A target
or a Kafka that is away is waited for, with the membership kept; what stops one flow leaves the others
running (H24, H30).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import time
from collections.abc import Awaitable, Callable

from aiokafka import TopicPartition

from consumers.apply.assemble import Assembler, Prepared
from consumers.apply.checkpoint import Checkpoint, Place
from consumers.apply.clocks import Clocks
from consumers.apply.feed import Feed, Fetched
from consumers.apply.report import Histogram, Report
from consumers.apply.schemas import Schemas
from consumers.targets.base import FlowError, Target
from consumers.targets.postgres import PostgresTarget
from streamer import config as settings
from streamer.errors import ConfigError, FatalError, KafkaUnavailable, RetryableError, TailraceError
from streamer.status import State, StatusWriter
from streamer.stopping import stopped_within

BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # each with jitter; the last one repeats
POLL_MS = 200  # of a fetch that finds nothing: stop and rebalances are noticed within it
KEEP_S = 1.0  # between two reports
PROBE_S = 3.0  # Kafka not answering for so long is said in `status`
BLOCKED_S = 1.0  # the reader polls, paused, as often while the writer has no room
SWEEP_S = 60.0
IDLE_MOVE_S = 1.0  # checkpoints follow the end of an idle log, past transaction markers (H18)
STOP_S = 6.0  # for the batch in hand; what is not done by then is rolled back
# Decoded rows are many and hold no cycles: looking for some in them costs a third of the work.
GC_THRESHOLDS = (200_000, 50, 100)
AHEAD_RECORDS = 500  # a smaller batch is faster without a second pass over it
TOMBSTONE_MARGIN = 1.5  # kept longer than the topics, whose segments outlive their retention

log = logging.getLogger(__name__)


async def run_apply(
    config: settings.Config,
    target_name: str,
    *,
    stop: asyncio.Event,
    status: StatusWriter,
    metrics: Histogram | None = None,
) -> None:
    """Apply until `stop` is set. Raises FatalError and ConfigError when no flow can go on."""
    target = config.targets.get(target_name)
    if target is None:
        raise ConfigError(f"there is no target {target_name!r}", fix=f"known: {', '.join(config.targets)}")
    if not isinstance(target, settings.PostgresTarget):
        raise settings.unbuilt_target(target)[0].error()
    flows, unbuilt = settings.built_flows(config, target_name)
    if not flows and unbuilt:
        raise next(iter(unbuilt.values()))[0].error()
    if not flows:
        raise ConfigError(f"no flow goes to target {target_name!r}", fix=f"add one with `to: {target_name}`")
    group = f"{config.name}.{target_name}"
    apply = Apply(config, flows, group, PostgresTarget(target, group), target.batch, stop, status, metrics)
    for name, reasons in unbuilt.items():
        apply.report_unbuilt(name, str(reasons[0]))
    thresholds = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        await apply.run()
    finally:
        gc.set_threshold(*thresholds)


class Apply:
    def __init__(
        self,
        config: settings.Config,
        flows: list[settings.Flow],
        group: str,
        target: Target,
        limits: settings.Batch,
        stop: asyncio.Event,
        status: StatusWriter,
        metrics: Histogram | None = None,
    ) -> None:
        kafka = config.kafka
        self._flows = flows
        self._target = target
        self._limits = limits
        self._stop = stop
        self._status = status
        self._keep_tombstones_s = kafka.topics.retention_s * TOMBSTONE_MARGIN
        self._feed = Feed(kafka.brokers, kafka.security, group, flows)
        self._schemas = Schemas(kafka.brokers, kafka.security, config.name)
        self._assembler = Assembler(self._schemas)
        sources = {flow.name: flow.source for flow in flows}
        self._clocks = Clocks(kafka.brokers, kafka.security, config.name, sources, status.record)
        self._report = Report(list(sources), metrics, self._clocks.of)
        self._queue: asyncio.Queue[Prepared] = asyncio.Queue(maxsize=1)
        self._idle = asyncio.Event()  # nothing is queued or in the target
        self._idle.set()
        self._in_target = asyncio.Lock()  # one user of the target's session at a time
        self._stopped: dict[str, TailraceError] = {}
        self._waiting: dict[str, str] = {}  # what is waited for -> why
        self._jitter = random.Random()
        self._row_bytes = 1024.0  # running mean of a record, for the batch's limit in bytes
        self._commits: dict[TopicPartition, int] = {}
        self._flows_by_topic: dict[str, list[settings.Flow]] = {}
        self._began_s = self._handed_s = 0.0
        self._unbuilt: list[str] = []
        self._findings: list[str] = []

    def report_unbuilt(self, flow: str, why: str) -> None:
        self._unbuilt.append(f"flow {flow} does not run: {why}")
        self._findings = list(self._unbuilt)

    async def run(self) -> None:
        """Raises what stops every flow."""
        self._status.update(state=State.STARTING)
        keeper = asyncio.create_task(self._keep(), name="apply: keeper")
        clocks = asyncio.create_task(self._clocks.watch(), name="apply: clocks")
        try:
            if await self._patiently("target", self._target.open):
                await self._work()
        finally:
            keeper.cancel()
            clocks.cancel()
            await asyncio.wait([keeper])
            await self._feed.close()
            await self._schemas.close()
            await self._target.close()
            await asyncio.wait([clocks])  # it has closed its own connection meanwhile

    async def _work(self) -> None:
        writer = asyncio.create_task(self._write(), name="apply: writer")
        reader = asyncio.create_task(self._read(), name="apply: reader")
        try:
            await asyncio.wait([writer, reader], return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and not writer.done() and reader.exception() is None:
                await self._drain(writer)
                await self._commit()
        finally:
            for task in (reader, writer):
                task.cancel()
            await asyncio.wait([reader, writer])
        for task in (writer, reader):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _drain(self, writer: asyncio.Task[None]) -> None:
        """The batch in hand; one that waits for the target is left, nothing of it is written."""
        idle = asyncio.create_task(self._idle.wait(), name="apply: drain")
        await asyncio.wait([idle, writer], timeout=STOP_S, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()

    # Waiting

    async def _patiently(self, what: str, act: Callable[[], Awaitable[object]]) -> bool:
        """`act` until it does not raise a RetryableError; False when stop came first."""
        failures = 0
        while not self._stop.is_set():
            try:
                await act()
            except RetryableError as error:
                self._wait_for(what, str(error))
                await self._pause(failures)
                failures += 1
            else:
                self._waiting.pop(what, None)
                self._say()
                return True
        return False

    def _wait_for(self, what: str, why: str) -> None:
        if what not in self._waiting:
            log.warning("waiting: %s", why)
        self._waiting[what] = why
        self._say()

    async def _pause(self, failures: int) -> None:
        seconds = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)] * self._jitter.uniform(0.5, 1.0)
        await stopped_within(self._stop, seconds)

    def _say(self) -> None:
        if self._stop.is_set():
            self._status.update(state=State.STOPPING)
        elif self._waiting:
            self._status.update(state=State.WAITING, reason="; ".join(self._waiting.values()))
        elif self._stopped:
            self._status.update(state=State.ERROR, reason="; ".join(map(str, self._stopped.values())))
        else:
            self._status.update(state=State.STREAMING)

    def _stop_flow(self, flow: str, error: Exception) -> None:
        """Raises the error when no flow is left."""
        cause = error if isinstance(error, TailraceError) else FatalError(str(error))
        if flow not in self._stopped:
            log.error("flow %s stops: %s", flow, cause)
            self._stopped[flow] = cause
            report = self._report.flows[flow]
            report.state, report.reason = State.ERROR, str(cause)
        for partition, standing in list(self._feed.standings.items()):
            standing.next_offsets.pop(flow, None)
            standing.unverified.pop(flow, None)
            if not standing.next_offsets:
                self._feed.park({partition})
        self._say()
        if len(self._stopped) == len(self._flows):
            raise cause

    # Reading

    async def _read(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                await self._schemas.open()
                await self._feed.open()
                await self._check_group()
                self._waiting.pop("kafka", None)
                self._say()
                while not self._stop.is_set():
                    await self._read_once()
                    failures = 0
            except KafkaUnavailable as error:
                self._wait_for("kafka", str(error))
                await self._feed.close()
                await self._pause(failures)
                failures += 1

    async def _check_group(self) -> None:
        bound = await self._feed.bound_to()
        if bound is not None and bound != self._target.id:
            raise FatalError(
                f"the consumer group {self._feed.group!r} belongs to another target (its id is {bound}, this"
                f" one's {self._target.id}); two targets in one group would get a part of the rows each",
                fix="give this target another name; or, when the other is no longer used, stop every process"
                f" of the group and run kafka-consumer-groups.sh --delete --group {self._feed.group}",
            )

    async def _read_once(self) -> None:
        feed = self._feed
        if feed.unplaced:
            await self._place()
            return
        rest = self._limits.wait_s - (time.monotonic() - self._began_s)
        if rest > 0:
            await asyncio.sleep(rest)
        self._began_s = time.monotonic()
        rows = max(1, min(self._limits.rows, int(self._limits.bytes / self._row_bytes)))
        fetched = await feed.poll(rows, POLL_MS)
        self._fail_unverified(fetched)
        if not fetched.records and self._began_s - self._handed_s < IDLE_MOVE_S:
            return  # transaction markers alone: with the next records, or soon
        prepared = await self._assemble(fetched)
        if prepared is None or not prepared.batch.moves:
            return
        self._handed_s = self._began_s
        if prepared.records:
            self._row_bytes += 0.2 * (prepared.bytes / prepared.records - self._row_bytes)
            if prepared.records >= AHEAD_RECORDS:
                await self._target.prepare(prepared.batch)
        await self._hand_over(prepared)

    def _fail_unverified(self, fetched: Fetched) -> None:
        for partition, records in fetched.records.items():
            standing = self._feed.standings[partition]
            if standing.unverified:
                for flow, error in self._feed.verify(standing, records).items():
                    self._stop_flow(flow, error)

    async def _assemble(self, fetched: Fetched) -> Prepared | None:
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
                self._stop_flow(error.flow, error.cause)
        for move in prepared.batch.moves:
            partition = TopicPartition(move.place.topic, move.place.partition)
            standings[partition].next_offsets[move.place.flow] = move.next_offset
        return prepared

    async def _hand_over(self, prepared: Prepared) -> None:
        """To the writer; while it has no room the membership is kept, paused."""
        put = asyncio.create_task(self._queue.put(prepared), name="apply: hand over")
        self._idle.clear()
        try:
            while not (await asyncio.wait([put], timeout=BLOCKED_S))[0]:
                await self._feed.idle()
                if self._stop.is_set() and self._waiting:
                    return
        finally:
            if not put.done():
                put.cancel()
                await asyncio.wait([put])

    async def _settled(self) -> bool:
        """Nothing of ours is on its way; False when stop came first."""
        wait = asyncio.create_task(self._idle.wait(), name="apply: settle")
        try:
            while not (await asyncio.wait([wait], timeout=BLOCKED_S))[0]:
                await self._feed.idle()
                if self._stop.is_set():
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
            if flow.name not in self._stopped
        ]
        if not places:
            feed.park(partitions)
            return
        rebalances = feed.rebalances

        checkpoints: dict[Place, Checkpoint] = {}

        async def read() -> None:
            async with self._in_target:
                checkpoints.update(await self._target.checkpoints(places))

        if not await self._with_target(read) or rebalances != feed.rebalances:
            return
        for flow, error in await feed.place(checkpoints, partitions):
            self._stop_flow(flow, error)
        self._report.placed(feed.standings, feed.placed_ends)

    async def _with_target(self, act: Callable[[], Awaitable[None]]) -> bool:
        """`act` with the target's session, opened again when it has ended; the group is kept."""

        async def again() -> None:
            try:
                await act()
            except RetryableError:
                async with self._in_target:
                    await self._target.open()
                await act()

        task = asyncio.create_task(self._patiently("target", again), name="apply: target")
        try:
            while not (await asyncio.wait([task], timeout=BLOCKED_S))[0]:
                await self._feed.idle()
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    # Writing

    async def _write(self) -> None:
        while True:
            prepared = await self._queue.get()
            try:
                await self._apply(prepared)
            finally:
                if self._queue.empty():
                    self._idle.set()

    async def _apply(self, prepared: Prepared) -> None:
        failures = 0
        while True:
            prepared = prepared.without(set(self._stopped)) if self._stopped else prepared
            if not prepared.batch.moves:
                return
            try:
                async with self._in_target:
                    if failures:
                        await self._target.open()
                    outcome = await self._target.apply(prepared.batch)
                break
            except FlowError as error:
                self._stop_flow(error.flow, error.cause)
            except RetryableError as error:
                self._wait_for("target", str(error))
                await self._pause(failures)
                failures += 1
                if self._stop.is_set():
                    return
        committed_us = time.time_ns() // 1000
        if failures:
            self._waiting.pop("target", None)
            self._say()
        self._report.applied(prepared, outcome, committed_us)
        lost = set(outcome.lost)
        for move in prepared.batch.moves:
            partition = TopicPartition(move.place.topic, move.place.partition)
            if move.place not in lost:
                self._commits[partition] = move.next_offset
            elif partition in self._feed.standings:
                self._feed.unplaced.add(partition)  # moved by another process, yet assigned to us
                del self._feed.standings[partition]

    # Keeping

    async def _keep(self) -> None:
        swept_s = probed_s = time.monotonic()
        rereads = 0
        while True:
            await asyncio.sleep(KEEP_S)
            now_s = time.monotonic()
            if not self._feed.is_open or await self._probe():
                probed_s = now_s
                if self._feed.is_open and "kafka" in self._waiting:
                    del self._waiting["kafka"]
                    self._say()
            elif now_s - probed_s > PROBE_S and "kafka" not in self._waiting:
                self._wait_for("kafka", "Kafka does not answer; it goes on by itself when it is back")
            await self._commit()
            if now_s - swept_s > SWEEP_S:
                swept_s = now_s
                await self._sweep()
            elif self._report.rereads != rereads:
                await self._find()
            rereads = self._report.rereads
            self._show()

    async def _probe(self) -> bool:
        try:
            self._report.ended(await self._feed.ends(PROBE_S))
        except KafkaUnavailable:
            return False
        return True

    async def _commit(self) -> None:
        commits, self._commits = self._commits, {}
        if not commits:
            return
        try:
            await self._feed.commit(commits, self._target.id)
        except TailraceError as error:
            log.debug("offsets for lag tools not committed: %s", error)

    async def _sweep(self) -> None:
        if self._in_target.locked():
            return
        async with self._in_target:
            try:
                await self._target.sweep(self._keep_tombstones_s)
            except RetryableError as error:
                log.debug("not swept: %s", error)
        await self._find()

    async def _find(self) -> None:
        async with self._in_target:
            try:
                self._findings = self._unbuilt + await self._target.findings()
            except RetryableError as error:
                log.debug("findings not read: %s", error)

    def _show(self) -> None:
        detail = self._report.detail()
        detail["findings"] = list(self._findings)
        detail.update(self._target.details())
        self._status.update(detail=detail)
        self._say()
