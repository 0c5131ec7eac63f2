"""Processors with everything around them killed, joined and stopped under load, and a judge after each round.

The judge is the source: each derived table in the target is the query that its helper stands for, once all
that was captured has come out of the processors. What was counted twice, or lost, would stay.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from streamer.sandbox import Sandbox
from tests.crash.run import CATCH_UP_S, DOWN_S, victims_of_round
from tests.harness.deriving import Deriving
from tests.harness.pipeline import STOP_S
from tests.harness.shop import Shop
from tests.harness.starter import Starter

VICTIMS = ("worker", "second", "capture", "apply", "kafka")
"""`second`: another worker joins, or one of two is told to stop: a rebalance."""
HELPERS = ("by_customer", "named", "codes")  # one hop to three, and all that keeps state
LOAD_S = 4.0
PAUSE_S = 0.01  # between two transactions


@dataclass(slots=True)
class Score:
    """Over all rounds. `gave_up`: workers that ended by themselves, as they do when Kafka is lost."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    gave_up: int = 0
    lost: int = 0
    doubled: int = 0
    exits: int = 0  # of captures and applies, which wait an outage out
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.rounds > 0 and not (self.lost or self.doubled or self.exits or self.notes)


class ProcessRun:
    """`await run(rounds)`; the sandbox has two Postgres (source, target) and a Kafka, and is the caller's."""

    def __init__(
        self,
        folder: Path,
        sandbox: Sandbox,
        *,
        seed: int,
        victims: Sequence[str] = VICTIMS,
        helpers: Sequence[str] = HELPERS,
        load_s: float = LOAD_S,
        starter: Starter | None = None,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        if unknown := set(victims) - set(VICTIMS):
            raise ValueError(f"unknown victims {sorted(unknown)}: choose from {', '.join(VICTIMS)}")
        self.score = Score()
        self._random = Random(seed)
        self._victims = sorted(victims)
        self._load_s = load_s
        self._say = say
        self._kafka = sandbox.kafka
        self._pipeline = Deriving(
            folder,
            helpers=helpers,
            source_url=sandbox.postgres[0].url,
            target_url=sandbox.postgres[1].url,
            brokers=sandbox.kafka.bootstrap,
            name="crash",
        )
        self._pipeline.starter = starter
        self._shop = Shop(sandbox.postgres[0].url, seed)

    async def run(self, rounds: int) -> Score:
        async with self._pipeline as pipeline:
            await self._shop.open()
            pipeline.start_all()
            await pipeline.state("capture", "streaming")
            await pipeline.derived()  # labels among it, which rows that come from here on find
            await self._shop.touch()
            await pipeline.equal_to_queries()
            pipeline.supervise()
            for number in range(1, rounds + 1):
                began_s = time.monotonic()
                killed = await self._round(rounds - number + 1)
                await self._judge()
                self.score.rounds = number
                self._say(f"round {number}: {', '.join(killed)}; {time.monotonic() - began_s:.1f} s")
                if not self.score.ok:
                    break
            self.score.gave_up = len(pipeline.gave_up)
            self.score.changes = self._shop.changes
        return self.score

    async def _round(self, rounds_left: int) -> list[str]:
        random, score = self._random, self.score
        met = [victim for victim, count in score.kills.items() if count]
        chosen = victims_of_round(random, self._victims, met, rounds_left)
        moments = sorted(random.uniform(0.05, 0.9) * self._load_s for _ in chosen)
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._shop.work_for(self._load_s, PAUSE_S), name="crash load")
            for at_s, victim in zip(moments, chosen, strict=True):
                await asyncio.sleep(max(0.0, began_s + at_s - time.monotonic()))
                score.kills[victim] += 1
                await self._hurt(victim, random.uniform(0, DOWN_S))
        return chosen

    async def _hurt(self, victim: str, down_s: float) -> None:
        pipeline, random = self._pipeline, self._random
        if victim == "worker":
            if workers := pipeline.workers:
                random.choice(workers).kill()
        elif victim == "second":
            if spare := pipeline.spare_workers():
                await random.choice(spare).stop(2 * STOP_S)  # while its group is not there, too
            else:
                pipeline.start_worker(random.choice(pipeline.helpers))
        elif victim == "kafka":
            await asyncio.to_thread(random.choice((self._kafka.kill, self._kafka.stop)))
            await asyncio.sleep(down_s)
            await asyncio.to_thread(self._kafka.start)
        else:
            for child in pipeline.running(victim):
                child.kill()
            await asyncio.sleep(down_s)
            pipeline.start(victim)

    async def _judge(self) -> None:
        pipeline, score = self._pipeline, self.score
        try:
            await pipeline.equal_to_queries(CATCH_UP_S, fenced=True)
        except AssertionError as never:
            score.notes.append(str(never))
            for difference in await pipeline.differences():
                score.lost += len(difference.missing)
                score.doubled += len(difference.extra)
        for child in pipeline.dead():
            child.killed = True
            score.exits += 1
            score.notes.append(child.log_tail())
