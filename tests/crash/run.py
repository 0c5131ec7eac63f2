"""kill -9 at random moments under load, round after round, and a judge after each.

Owns: servers, load, victims and the count of what went wrong. Every random choice comes from the seed;
what the machine does in between does not, so a seed names the plan of a run, not its every interleaving.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psycopg

from consumers.demo.verdict import Verdict
from consumers.demo.workload import Workload
from streamer.sandbox import KafkaServer, PostgresServer, Sandbox
from streamer.sandbox.server import Server
from tests.harness.log import LogChecker
from tests.harness.pipeline import Child, Pipeline
from tests.harness.referee import Referee

VICTIMS = ("capture", "apply", "source", "target", "kafka")
PROCESSES = ("capture", "apply")
LOAD_S = 3.0
CHANGES_PER_S = 800
BIG_ROWS = 5_000  # several flushes, so that a kill can fall inside a transaction
KILLS_A_ROUND = 3  # at most
DOWN_S = 1.0  # at most; how long a victim stays away
CATCH_UP_S = 90.0
FOLD_EVERY = 5  # rounds; the fold of the whole log is compared then, and at the end


@dataclass(frozen=True, slots=True)
class Place:
    """A database of a server that others use, too."""

    server: PostgresServer
    url: str

    def kill(self) -> None:
        self.server.kill()

    def start(self) -> None:
        self.server.start()


@dataclass(frozen=True, slots=True)
class Shared:
    """In place of a sandbox: source and target, and a Kafka."""

    postgres: Sequence[Place]
    kafka: KafkaServer


@dataclass(slots=True)
class Score:
    """Over all rounds. `exits` are processes that ended by themselves: an outage must be waited out."""

    rounds: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    changes: int = 0
    judged: int = 0  # transactions of the WAL whose row changes were counted in the log
    lost: int = 0
    doubled: int = 0
    regressed: int = 0
    exits: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.rounds > 0 and not (
            self.lost or self.doubled or self.regressed or self.exits or self.notes
        )


def victims_of_round(
    random: Random, victims: Sequence[str], killed: Collection[str], rounds_left: int
) -> list[str]:
    """Whom a round kills, in this order; `rounds_left` with this one. Whoever was spared so far gets his turn
    while the rounds allow it."""
    spared = [victim for victim in victims if victim not in killed]
    due = min(KILLS_A_ROUND, max(0, len(spared) - (rounds_left - 1) * KILLS_A_ROUND))
    kills = max(due, random.randint(1, KILLS_A_ROUND))
    chosen = random.sample(spared, due) + [random.choice(victims) for _ in range(kills - due)]
    random.shuffle(chosen)
    return chosen


class CrashRun:
    """`await run(rounds)`; the sandbox has two Postgres (source, target) and a Kafka, and is the caller's."""

    def __init__(
        self,
        folder: Path,
        sandbox: Sandbox | Shared,
        *,
        seed: int,
        name: str = "crash",
        victims: Sequence[str] = VICTIMS,
        load_s: float = LOAD_S,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        if unknown := set(victims) - set(VICTIMS):
            raise ValueError(f"unknown victims {sorted(unknown)}: choose from {', '.join(VICTIMS)}")
        self.score = Score()
        self._random = Random(seed)
        self._seed = seed
        self._victims = sorted(victims)
        self._load_s = load_s
        self._say = say
        self._servers: dict[str, Server | Place] = {
            "source": sandbox.postgres[0],
            "target": sandbox.postgres[1],
            "kafka": sandbox.kafka,
        }
        self._pipeline = Pipeline(
            folder,
            source_url=sandbox.postgres[0].url,
            target_url=sandbox.postgres[1].url,
            brokers=sandbox.kafka.bootstrap,
            name=name,
        )
        self._log = LogChecker(sandbox.kafka.bootstrap, name=name, source=self._pipeline.source)
        self._referee = Referee(sandbox.postgres[0].url, slot="referee", publication=self._pipeline.slot)

    async def run(self, rounds: int) -> Score:
        async with self._pipeline as pipeline:
            await Workload(pipeline.source_url, seed=self._seed, seconds=0).prepare()
            await pipeline.start_both()
            self._referee.open()
            for number in range(1, rounds + 1):
                began = time.monotonic()
                killed = await self._round(number, rounds - number + 1)
                await self._judge(fold=number % FOLD_EVERY == 0 or number == rounds)
                self.score.rounds = number
                self._say(f"round {number}: killed {', '.join(killed)}; {time.monotonic() - began:.1f} s")
                if not self.score.ok:
                    break
            await asyncio.to_thread(self._referee.close)
        return self.score

    async def _round(self, number: int, rounds_left: int) -> list[str]:
        """Load, and kills at moments of their own; everybody is back at the end."""
        random = self._random
        killed = [victim for victim, count in self.score.kills.items() if count]
        chosen = victims_of_round(random, self._victims, killed, rounds_left)
        plan = sorted(
            (random.uniform(0.1, 0.95) * self._load_s, victim, random.uniform(0, DOWN_S)) for victim in chosen
        )
        workload = Workload(
            self._pipeline.source_url,
            seed=self._seed * 1_000_003 + number,
            seconds=self._load_s,
            changes_per_s=CHANGES_PER_S,
            big_rows=BIG_ROWS,
            truncate=random.random() < 0.3,
            survive=True,
        )
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            group.create_task(workload.run(), name="crash load")
            busy: dict[str, asyncio.Task[None]] = {}
            for at_s, victim, down_s in plan:
                await asyncio.sleep(began + at_s - time.monotonic())
                if victim in busy:
                    await busy[victim]
                busy[victim] = group.create_task(self._kill(victim, down_s), name=f"kill {victim}")
        self.score.changes += workload.done.changes
        return [victim for _, victim, _ in plan]

    async def _kill(self, victim: str, down_s: float) -> None:
        """SIGKILL, a while of absence, and a fresh start."""
        self._replace_the_dead()
        self.score.kills[victim] += 1
        if victim in PROCESSES:
            for child in self._pipeline.running(victim):
                child.kill()
            await asyncio.sleep(down_s)
            self._pipeline.start(victim)
            return
        server = self._servers[victim]
        await asyncio.to_thread(server.kill)
        await asyncio.sleep(down_s)
        await asyncio.to_thread(server.start)

    def _replace_the_dead(self) -> None:
        """A process that gave up by itself is a finding; the run goes on with another in its place."""
        for child in self._pipeline.dead():
            child.killed = True
            self._note_exit(child)
            self._pipeline.start(child.role)

    def _note_exit(self, child: Child) -> None:
        self.score.exits += 1
        self.score.notes.append(
            f"{child.label} ended by itself with {child.popen.returncode}\n{child.log_tail()}"
        )

    async def _judge(self, *, fold: bool) -> None:
        """Target equal to source, and the log holds what the WAL holds, once, in order."""
        self._replace_the_dead()
        verdict: Verdict | None = None
        try:
            verdict = await self._pipeline.equal(CATCH_UP_S)
        except AssertionError as never:
            self.score.notes.append(str(never))
            with contextlib.suppress(psycopg.Error):
                verdict = await asyncio.to_thread(self._pipeline.compare)
        if verdict is not None:
            for table in verdict.tables:
                self.score.lost += table.missing
                self.score.doubled += table.extra
                self.score.regressed += table.different
        await asyncio.to_thread(self._referee.read)
        await self._log.read()
        report = self._log.report(self._referee.expected)
        if len(self._referee.expected) <= self.score.judged:
            self.score.notes.append("the referee has seen no transaction of this round: nothing was judged")
        self.score.judged = len(self._referee.expected)
        self.score.lost += report.lost
        self.score.doubled += report.doubled
        self.score.regressed += report.regressed + report.misplaced
        if not report.ok:
            self.score.notes.append(str(report))
        if fold:
            differences = await self._log.fold_differences(self._pipeline.source_url)
            self.score.lost += len(differences)
            self.score.notes += differences
