"""`tailrace apply TARGET`: one process of a target's consumer group.

The reader fetches and decodes the next batch while the writer has one in the target; the keeper reports
and looks after what waits; beside them clocks are compared. They meet in the condition (what is waited
for, which flows have stopped), the session (one user at a time) and the parking (H24). What stops one
flow leaves the others running (H30).
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable

from aiokafka import TopicPartition

from consumers.apply.backfilling import Backfilling
from consumers.apply.clocks import Clocks
from consumers.apply.condition import Condition
from consumers.apply.dead_letters import DeadLetters
from consumers.apply.epochs import Epochs
from consumers.apply.feed import Feed
from consumers.apply.floors import Extent
from consumers.apply.gates import Gates, rules_of
from consumers.apply.holdups import Holdups
from consumers.apply.keeping import Keeper
from consumers.apply.losses import Losses
from consumers.apply.outdated import Outdated
from consumers.apply.parking import Parking
from consumers.apply.pauses import Pauses
from consumers.apply.reading import BLOCKED_S, Reader
from consumers.apply.report import Histogram, Report
from consumers.apply.resets import Resets
from consumers.apply.schemas import Schemas
from consumers.apply.session import Session
from consumers.apply.writing import Writer
from consumers.targets.base import Target
from consumers.targets.registry import make_target
from streamer import config as settings
from streamer.config.derived import processor_of, sources_of
from streamer.errors import ConfigError
from streamer.kafka import offset_ranges
from streamer.status import State, StatusWriter
from streamer.stopping import end_tasks

STOP_S = 6.0  # for the batch in hand; what is not done by then is rolled back
# Decoded rows are many and hold no cycles: looking for some in them costs a third of the work.
GC_THRESHOLDS = (200_000, 50, 100)
TOMBSTONE_MARGIN = 1.5  # kept longer than the topics, whose segments outlive their retention


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
    for unbuilt_kind in settings.unbuilt_target(target):
        raise unbuilt_kind.error()
    flows, unbuilt = settings.built_flows(config, target_name)
    if not flows and unbuilt:
        raise next(iter(unbuilt.values()))[0].error()
    if not flows:
        raise ConfigError(f"no flow goes to target {target_name!r}", fix=f"add one with `to: {target_name}`")
    group = f"{config.name}.{target_name}"
    made = make_target(target, group, flows)
    apply = Apply(config, flows, group, made, target, stop, status, metrics)
    for name, reasons in unbuilt.items():
        apply.report_unbuilt(name, str(reasons[0]))
    thresholds = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        await apply.run()
    finally:
        gc.set_threshold(*thresholds)


def capture_of(config: settings.Config, flow: settings.Flow) -> str:
    """The source whose commit times its events carry; of a derived flow one of those that it comes from."""
    processor = processor_of(config, flow)
    found = sources_of(config.processors, processor) if processor is not None else []
    return found[0] if found else flow.source


class Apply:
    def __init__(
        self,
        config: settings.Config,
        flows: list[settings.Flow],
        group: str,
        target: Target,
        target_settings: settings.Target,
        stop: asyncio.Event,
        status: StatusWriter,
        metrics: Histogram | None = None,
    ) -> None:
        self._kafka = kafka = config.kafka
        names = [flow.name for flow in flows]
        sources = {flow.name: flow.source for flow in flows}
        self._status = status
        self._target = target
        self._stop = stop
        outs = {processor.out: name for name, processor in config.processors.items()}
        resets = Resets(kafka.brokers, kafka.security, config.name, outs)
        self._schemas = Schemas(kafka.brokers, kafka.security, config.name)
        self._backfilling = Backfilling(config, target_settings.name, flows, self._schemas)
        self._feed = Feed(kafka.brokers, kafka.security, group, flows, resets, self._backfilling.begin)
        captures = {flow.name: capture_of(config, flow) for flow in flows}
        self._clocks = Clocks(kafka.brokers, kafka.security, config.name, captures, status.record)
        self._letters = DeadLetters(kafka, target_settings.name)
        own = {name: source for name, source in sources.items() if source not in outs}  # a capture's epochs
        epochs = Epochs(own, self._clocks.epoch_of)
        self._report = report = Report(names, metrics, self._clocks.of, epochs)
        condition = Condition(names, stop, status, self._feed, report)
        self._session = Session(target, condition)
        self._holdups = Holdups(self._session, condition)
        parking = Parking(target, self._letters, flows, self._schemas, target_settings.dead_letters)
        losses = Losses()
        pauses = Pauses(names, target)
        parking.lot.still = pauses.out
        common = self._feed, self._session, condition, report, parking, losses, pauses
        rules = rules_of(config, flows)
        self._gates = None
        if rules:
            self._gates = Gates(
                rules,
                target,
                self._reach,
                passed=losses.passed,
                stays=losses.stays,
                extent_of=self._extent_of,
            )
        outdated = Outdated(flows, self._feed.copied_since)
        self._writer = Writer(*common, outdated, self._gates)
        self._reader = Reader(*common, self._schemas, self._writer, target_settings.batch, self._gates)
        keep_tombstones_s = kafka.topics.retention_s * TOMBSTONE_MARGIN
        poll_gates = None if self._gates is None else self._poll_gates
        self._keeper = Keeper(
            *common,
            self._writer,
            status,
            go_on=self._reader.go_on,
            retention_s=kafka.topics.retention_s,
            keep_tombstones_s=keep_tombstones_s,
            poll_gates=poll_gates,
            backfilling=self._backfilling,
        )

    def report_unbuilt(self, flow: str, why: str) -> None:
        self._keeper.notes.append(f"flow {flow} does not run: {why}")

    async def _reach(self, act: Callable[[], Awaitable[None]]) -> bool:
        """For the reader: with the target's session, the membership kept; False when stop came first."""
        return await self._session.patiently(lambda _: act(), self._feed.idle, BLOCKED_S)

    async def _extent_of(self, topic: str) -> Extent:
        """By high watermarks, which do not hide a commit that has not been marked yet."""
        numbers = self._feed.consumer.partitions_for_topic(topic) or ()
        places = [TopicPartition(topic, number) for number in numbers]
        kafka = self._kafka
        found = await offset_ranges(kafka.brokers, kafka.security, places)
        return Extent(self._feed.cluster_id, {place.partition: known for place, known in found.items()})

    async def _poll_gates(self, _: Target) -> None:
        gates = self._gates
        assert gates is not None
        for flow, topic in await gates.poll():
            if gates.holds(flow, topic):
                self._reader.hold(flow, topic)
            else:
                self._reader.go_on(topic)
        self._report.gates(gates.noted())

    async def run(self) -> None:
        """Raises what stops every flow."""
        self._status.update(state=State.STARTING)
        keeper = asyncio.create_task(self._keeper.run(), name="apply: keeper")
        beside = [
            asyncio.create_task(self._clocks.watch(), name="apply: clocks"),
            asyncio.create_task(self._backfilling.watch(), name="apply: backfills"),
            asyncio.create_task(self._holdups.watch(), name="apply: holdups"),
        ]
        try:
            if await self._session.open():
                await self._work()
        finally:
            for task in beside:
                task.cancel()
            await end_tasks(keeper)
            await self._feed.close()
            await self._schemas.close()
            await self._letters.close()
            await self._target.close()
            await end_tasks(*beside)  # they have closed their own connections meanwhile

    async def _work(self) -> None:
        writer = asyncio.create_task(self._writer.run(), name="apply: writer")
        reader = asyncio.create_task(self._reader.run(), name="apply: reader")
        try:
            await asyncio.wait([writer, reader], return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and not writer.done() and reader.exception() is None:
                await self._drain(writer)
                await self._keeper.commit()
        finally:
            await end_tasks(reader, writer)
        for task in (writer, reader):
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _drain(self, writer: asyncio.Task[None]) -> None:
        """The batch in hand; one that waits for the target is left, nothing of it is written."""
        idle = asyncio.create_task(self._writer.idle.wait(), name="apply: drain")
        await asyncio.wait([idle, writer], timeout=STOP_S, return_when=asyncio.FIRST_COMPLETED)
        idle.cancel()
