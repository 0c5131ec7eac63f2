"""A worker: one process of a processor, a member of its group, with the tasks that it is given.

    assigned    fence (InitProducerId), recover the state, seek to its offsets, run
    round       fetch; each task works and commits at most 100 ms later; the group's offsets follow
    revoked     finish the unit in hand, commit, close; what does not commit is done again by the next
    SIGTERM     the same, and leave the group

Crash-only: an error ends the process, and whoever supervises it starts it again. Nothing is retried in place
but the start, while Kafka or an input is not there yet, and the look at offsets when Kafka answers late.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from aiokafka import TopicPartition

from consumers.processors import rocks
from consumers.processors.agents import AgentHop, definition_of
from consumers.processors.context import Definition, Given, Hop
from consumers.processors.ground import Ground, look, make
from consumers.processors.hops import hops_of
from consumers.processors.key_forms import KeyForms
from consumers.processors.membership import Membership
from consumers.processors.names import Names
from consumers.processors.opening import Opening, StateKind
from consumers.processors.parked import Lot, Refusals
from consumers.processors.plan import Plan, allow_long_numbers
from consumers.processors.rereading import Rereading
from consumers.processors.schemas import InputSchemas
from consumers.processors.shapes import Shapes
from consumers.processors.task import Task
from consumers.processors.watch import LOOK_S, STAND_STILL_S, Told, Watch
from streamer.config import Config, DeadLetterLimits
from streamer.errors import ConfigError, RetryableError, TailraceError
from streamer.status import State, StatusWriter
from streamer.stopping import end_tasks, stopped_within

ROUND_RECORDS = 2_000  # of all tasks: 100 ms of an ordinary body
POLL_MS = 50  # a stop or a rebalance is noticed within it
FOLLOW_S = 1.0
BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0)

log = logging.getLogger(__name__)


async def run_processor(
    config: Config,
    name: str,
    *,
    stop: asyncio.Event,
    status: StatusWriter | None = None,
    state: StateKind = "rocksdb",
    definition: Definition | None = None,
    limits: DeadLetterLimits | None = None,
    stand_still_s: float = STAND_STILL_S,
    look_s: float = LOOK_S,
    last_word: Told | None = None,
) -> None:
    """Until stopped. `config` names the brokers. `definition`: in place of the config's import path.
    `look_s`: between two looks at offsets, and reports to `status`.

    `last_word`: end the process when a body blocks the event loop for longer than `stand_still_s`, and call
    this, in a thread, right before.
    Raises ConfigError, FatalError (a person must look), RetryableError (start it again).
    """
    if name not in config.processors:
        raise ConfigError(f"there is no processor {name!r}", where=str(config.path), fix="see `processors:`")
    processor = config.processors[name]
    where = f"processors.{name}.agent"
    found = definition or definition_of(processor.agent, folder=config.base, where=where)
    if state == "rocksdb" and not rocks.available():
        raise rocks.not_installed(f"processor {name}")
    allow_long_numbers()
    worker = Worker(config, name, found, stop=stop, status=status, state=state, limits=limits)
    ground = await worker.patiently(lambda: look(config, name, brokers=config.kafka.brokers))
    if ground is None:
        return
    watch = Watch(worker, stand_still_s=stand_still_s, look_s=look_s, last_word=last_word)
    await worker.run(ground, watch)


class Worker:
    """See the module."""

    def __init__(
        self,
        config: Config,
        name: str,
        definition: Definition,
        *,
        stop: asyncio.Event,
        status: StatusWriter | None,
        state: StateKind,
        limits: DeadLetterLimits | None,
    ) -> None:
        processor = config.processors[name]
        self.config = config
        self.processor = processor
        self.names = Names(config.name, name, processor.out)
        self.status = status
        self.stop = stop
        self.state = state
        self.tasks: dict[int, Task] = {}
        self.refusals = Refusals(limits or DeadLetterLimits())
        self.rounds = 0
        self._waits_for = ""  # as the log has it
        self._definition = definition
        self._brokers = config.kafka.brokers
        self._security = config.kafka.security
        self._jitter = random.Random()
        self._followed: dict[TopicPartition, int] = {}
        self._followed_s = 0.0
        self.is_opening = False  # tasks; reading a large state back takes its time
        self.plan: Plan
        self.membership: Membership
        self.shapes: Shapes
        self._opening: Opening
        self._schemas: InputSchemas
        self._given: Given

    def say(self, state: str, reason: str = "") -> None:
        """To `status`; what it waits for to the log, too, once."""
        waits_for = reason if state == State.WAITING else ""
        if waits_for and waits_for != self._waits_for:
            log.warning("processor %s waits: %s", self.names.processor, waits_for)
        self._waits_for = waits_for
        if self.status is not None:
            self.status.update(state=state, reason=reason)

    async def patiently(self, act: Callable[[], Coroutine[Any, Any, Ground]]) -> Ground | None:
        """Until it does not raise a RetryableError; None when stop came first."""
        failures = 0
        while not self.stop.is_set():
            try:
                return await act()
            except RetryableError as error:
                self.say(State.WAITING, str(error))
                pause_s = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)]
                failures += 1
                await stopped_within(self.stop, pause_s * self._jitter.uniform(0.5, 1.5))
        return None

    async def run(self, ground: Ground, watch: Watch) -> None:
        """Until stopped, or an error."""
        names, processor = self.names, self.processor
        self._schemas = schemas = InputSchemas(self.config, names.processor, ground.inputs)
        await schemas.read()
        self._given = Given(
            names.processor,
            ground.inputs,
            processor.out,
            processor.key,
            schemas.inputs,
            grows=processor.grows,
        )
        hops = self._hops()
        made = await make(self.config.kafka, self.names, ground, len(hops), brokers=self._brokers)
        self.plan = Plan(
            names=self.names,
            inputs=ground.inputs,
            key=self.processor.key,
            hops=hops,
            key_forms=KeyForms(self._definition, self._given),
            partitions=ground.partitions,
            message_bytes=self.config.kafka.topics.max_message_bytes,
            retention_s=self.config.kafka.topics.retention_s,
        )
        self.shapes = Shapes(
            self.names.processor,
            self.names.out,
            types=lambda: self._definition.columns(self._given) or {},
            inputs=schemas.inputs,
            known=schemas.own,
            said=log.warning,
            asks=not isinstance(hops[0], AgentHop),
            taken=self._given.taken,
        )
        self.membership = Membership(self._brokers, self._security, self.names.group, self.plan.topics)
        self.membership.on_revoked = self.halt
        self._opening = Opening(
            self.config,
            self.plan,
            made,
            self.shapes,
            schemas,
            state=self.state,
            guarantee=processor.guarantee,
            refusals=self.refusals,
            ranges=self.membership.ranges,
            has=self.membership.has,
            waits=partial(self.say, State.WAITING),
        )
        rereading = Rereading(self.config, self.names.processor, schemas.inputs)
        parts = [
            asyncio.create_task(self._rounds(), name=f"rounds of {self.names.processor}"),
            asyncio.create_task(watch.run(), name=f"watch of {self.names.processor}"),
            asyncio.create_task(rereading.run(self._lots), name=f"rereading of {self.names.processor}"),
            asyncio.create_task(self._until_stopped(), name=f"stop of {self.names.processor}"),
        ]
        try:
            done, _ = await asyncio.wait(parts[:3], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(*parts)
            await self._abandon()
            watch.end()
        for part in parts[:3]:
            if not part.cancelled() and (error := part.exception()) is not None:
                raise error
        if any(part.cancelled() for part in done):
            raise RetryableError(
                "its work was cancelled, and nobody had asked for a stop",
                where=f"processor {self.names.processor}",
                fix="nothing: it starts again; if it comes again, report it with the log",
            )

    def _lots(self) -> list[Lot]:
        return [task.lot for task in self.tasks.values()]

    @property
    def doubts(self) -> list[str]:
        """Of the helper, about its inputs (see Given)."""
        return list(self._given.doubts.values())

    def _hops(self) -> Sequence[Hop]:
        processor = self.processor
        return hops_of(self._definition, self._given, processor.guarantee, code=processor.agent)

    async def _until_stopped(self) -> None:
        await self.stop.wait()
        self.halt()
        self.membership.turned.set()

    def halt(self) -> None:
        """Tasks stop after the unit in hand."""
        for task in self.tasks.values():
            task.stopping = True

    # Rounds

    async def _rounds(self) -> None:
        await self.membership.join()
        while not self.stop.is_set():
            await self._round()
        await self._give_up()
        await self.membership.leave()

    async def _round(self) -> None:
        membership = self.membership
        if membership.is_revoking:
            await self._give_up()
        if membership.fresh is not None and not self.stop.is_set():
            await self._take_up(membership.fresh)
        batches = await membership.poll(self.tasks.keys(), ROUND_RECORDS, POLL_MS)
        if not membership.is_revoking:
            await _together(self.tasks[number].work(batch) for number, batch in batches.items())
            await _together(task.commit() for task in self.tasks.values() if task.is_dirty)
            if time.monotonic() - self._followed_s > FOLLOW_S:
                await self._follow()
        self.rounds += 1

    async def _follow(self) -> None:
        """Tasks look after themselves, and the group's offsets say how far they are."""
        self._followed_s = time.monotonic()
        await _together(task.keep() for task in self.tasks.values())
        offsets = {
            TopicPartition(topic, number): offset
            for number, task in self.tasks.items()
            for topic, offset in task.committed.items()
            if topic in self.plan.topics
        }
        if offsets != self._followed and await self.membership.follow(offsets):
            self._followed = offsets

    async def _give_up(self) -> None:
        """Commit what is done, and close."""
        tasks = self.tasks
        self.halt()
        await _together(task.commit() for task in tasks.values() if task.is_dirty)
        if not self.membership.is_revoking:
            await self._follow()
        self.tasks = {}
        await _together(task.close(abort=True) for task in tasks.values())
        self.membership.released()

    async def _abandon(self) -> None:
        """After an error, or a stop that was not answered: what is open is aborted."""
        tasks, self.tasks = self.tasks, {}
        for task in tasks.values():
            await task.close(abort=True)
        await self.membership.leave()

    # Taking up

    async def _take_up(self, numbers: frozenset[int]) -> None:
        membership = self.membership
        membership.fresh = None
        membership.holds = True
        left, self.tasks = self.tasks, {}  # of an assignment that was not given up in time
        await _together(task.close(abort=True) for task in left.values())
        await self._schemas.read()  # state that others have written names columns that they knew

        async def open_one(number: int) -> None:
            self.tasks[number] = await self._opening.open(
                number
            )  # known at once, to be closed if another one fails

        self.is_opening = True
        await _together(open_one(number) for number in sorted(numbers))
        self.is_opening = False
        self.tasks = dict(sorted(self.tasks.items()))
        if membership.is_revoking or membership.fresh is not None:
            return  # the group has gone on meanwhile: given up, or taken up again, in the next round
        for number, task in self.tasks.items():
            membership.begin(number, task.offsets)
        self.say(State.STREAMING if numbers else State.STANDBY)


async def _together(calls: Any) -> list[Any]:
    """All of them, to their ends; then the first error, if any."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda e: isinstance(e, TailraceError)):
        raise error
    return list(results)
