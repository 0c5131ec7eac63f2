"""Rounds of a writer at work while things go wrong, and after each the judge's word.

Owns the processes, the plan and the score. Every random choice comes from the seed; what the machine does in
between does not, so a seed names the plan of a run, not its every interleaving.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from asyncio.subprocess import PIPE
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import orjson
import redis.asyncio as aioredis

from streamer.errors import TailraceError
from streamer.sandbox import KafkaServer, ValkeyServer
from tests.crash.redis import asking, expected
from tests.crash.redis.expected import Expected
from tests.crash.redis.faults import FAULTS, Scene
from tests.crash.redis.game import DATABASES, ENTITIES
from tests.crash.redis.topics import Topics
from tests.crash.redis.writer import READY, SHORT_MS
from tests.harness.pipeline import REPO, Pipeline
from tests.harness.proxy import Proxy

LOAD_S = 6.0
OPS_PER_S = 20_000
BIG_MEMBERS = 30_000
FAULTS_A_ROUND = 3  # at most
CALAMITIES_SHARE = 0.4  # of rounds; in the others nothing is read anew behind the last fault's scan
EQUAL_S = 30.0  # the promise
GIVEN_UP_S = 90.0  # late is not lost: so long the judge waits to tell them apart
LOOK_S = 0.3
QUIET_S = 0.5  # no key expires for so long: none is about to
WRITER_START_S = WRITER_STOP_S = 20.0
PARTITIONS = 4
SAMPLES = 12


@dataclass(slots=True)
class Score:
    """Over all rounds. `lost`, `stale`: rows; `regressed`, `doubled`, `repeated`: events."""

    rounds: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    ops: int = 0
    writing_s: float = 0.0
    events: int = 0
    rows: int = 0  # compared after the last round
    gaps: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    stale: int = 0
    regressed: int = 0
    doubled: int = 0
    repeated: int = 0
    exits: int = 0
    late: int = 0  # rounds in which both were equal only past the limit
    equal_s: float = 0.0  # the longest
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.rounds > 0 and self.sound and not self.late

    @property
    def sound(self) -> bool:
        """Nothing is wrong but the time that it took."""
        wrong = self.lost or self.stale or self.regressed or self.doubled or self.exits or self.notes
        return not wrong


class RedisCrashRun:
    """`await run(rounds)`; the servers run and are the caller's. Without `kafka_server` it is not killed."""

    def __init__(
        self,
        folder: Path,
        server: ValkeyServer,
        brokers: str,
        *,
        seed: int,
        name: str = "crash",
        kafka_server: KafkaServer | None = None,
        faults: Sequence[str] | None = None,
        load_s: float = LOAD_S,
        ops_per_s: int = OPS_PER_S,
        big_members: int = BIG_MEMBERS,
        within_s: float = EQUAL_S,
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        known = [kind for kind in FAULTS if kind != "kafka" or kafka_server is not None]
        self._kinds = list(known if faults is None else faults)
        if unknown := set(self._kinds) - set(known):
            raise ValueError(f"unknown faults {sorted(unknown)}: choose from {', '.join(known)}")
        self.score = Score()
        self._seed = seed
        self._random = Random(seed)
        self._server = server
        self._kafka_server = kafka_server
        self._load_s = load_s
        self._ops_per_s = ops_per_s
        self._big_members = big_members
        self._within_s = within_s
        self._say = say
        self._pipeline = Pipeline(
            folder, source_url=server.url, target_url=server.url, brokers=brokers, name=name
        )
        self._pipeline.source = f"{name}_game"
        self._topics = Topics(brokers, self._pipeline.source, PARTITIONS)

    async def run(self, rounds: int) -> Score:
        async with Proxy(self._server.host, self._server.port) as proxy, self._pipeline as pipeline:
            self._configure(proxy)
            scene = Scene(pipeline, self._server, proxy, self._kafka_server, self._random)
            async with self._writing(0):
                await asyncio.sleep(self._load_s / 4)
            child = pipeline.start("capture")
            await pipeline.state("capture", "streaming", child=child)
            for number in range(1, rounds + 1):
                began_s = time.monotonic()
                plan, since_s = await self._round(scene, number)
                equal_s = await self._judge(since_s)
                self.score.rounds = number
                took_s = time.monotonic() - began_s
                self._say(f"round {number}: {', '.join(plan)}; equal after {equal_s:.1f} s; {took_s:.1f} s")
                if not self.score.sound:
                    break
        return self.score

    def _configure(self, proxy: Proxy) -> None:
        config = self._pipeline.config
        config["kafka"]["topics"]["partitions"] = PARTITIONS
        config["sources"] = {
            self._pipeline.source: {
                "kind": "redis",
                "url": proxy.url(self._server.url),
                "databases": list(DATABASES),
                "entities": ENTITIES,
            }
        }
        del config["targets"], config["flows"]
        self._pipeline.write_config()

    async def _round(self, scene: Scene, number: int) -> tuple[list[str], float]:
        """Load, and faults one after the other at moments of their own; (which, when the last one ended)."""
        random = self._random
        kinds = [random.choice(self._kinds) for _ in range(random.randint(1, FAULTS_A_ROUND))]
        moments = sorted(random.uniform(0.1, 0.8) * self._load_s for _ in kinds)
        async with self._writing(number, calamities=random.random() < CALAMITIES_SHARE):
            began_s = time.monotonic()
            for kind, at_s in zip(kinds, moments, strict=True):
                await asyncio.sleep(began_s + at_s - time.monotonic())
                await FAULTS[kind](scene)
                self.score.faults[kind] += 1
                self._replace_the_dead()
            await asyncio.sleep(
                max(began_s + self._load_s, time.monotonic() + self._load_s / 6) - time.monotonic()
            )
        return kinds, time.monotonic()

    @contextlib.asynccontextmanager
    async def _writing(self, number: int, *, calamities: bool = False) -> AsyncIterator[None]:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.crash.redis.writer", self._server.url),
            *(str(self._seed * 1_000_003 + number), str(self._ops_per_s), str(self._big_members)),
            "yes" if calamities else "no",
            cwd=REPO,
            stdout=PIPE,
        )
        try:
            assert process.stdout is not None
            async with asyncio.timeout(WRITER_START_S):
                assert await process.stdout.readline() == READY
            yield
            process.terminate()
            async with asyncio.timeout(WRITER_STOP_S):
                out, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        done = orjson.loads(out)
        self.score.ops += done["ops"]
        self.score.writing_s += done["seconds"]

    def _replace_the_dead(self) -> None:
        """A capture that gave up by itself is a finding; the run goes on with another in its place."""
        for child in self._pipeline.dead():
            child.killed = True
            self.score.exits += 1
            self.score.notes.append(
                f"{child.label} ended by itself with {child.popen.returncode}\n{child.log_tail()}"
            )
            self._pipeline.start(child.role)

    # -- the judge

    async def _judge(self, since_s: float) -> float:
        """Until the fold equals Redis and no gap is open; the seconds that it took."""
        topics, score = self._topics, self.score
        wanted = await settled(self._server.url)
        lost, stale = ["nothing was read"], [""]
        while True:
            self._replace_the_dead()
            reached_s = time.monotonic()
            with contextlib.suppress(TailraceError):
                await topics.read()
                if not topics.all_committed:
                    reached_s = time.monotonic()
                lost, stale = topics.differences(wanted)
            took_s = reached_s - since_s  # without the judge's own reading of what was there by then
            if not (lost or stale or topics.open) or took_s > GIVEN_UP_S:
                break
            await asyncio.sleep(LOOK_S)
        score.equal_s = max(score.equal_s, took_s)
        score.rows = sum(len(rows) for rows in wanted.rows.values())
        score.lost += len(lost)
        score.stale += len(stale)
        score.events, score.gaps = topics.events, topics.gaps
        score.doubled, score.regressed, score.repeated = topics.doubled, topics.regressed, topics.repeated
        if lost or stale or topics.open:
            score.notes += [f"lost {len(lost)}, stale {len(stale)}, a gap is open: {topics.open}"]
            score.notes += [*lost[:SAMPLES], *stale[:SAMPLES], self._pipeline.tails()]
        score.late += took_s > self._within_s
        if topics.doubled or topics.regressed:
            score.notes += topics.samples
        return took_s


async def settled(url: str) -> Expected:
    """What Redis holds when nothing expires any more."""
    await asyncio.sleep(SHORT_MS / 1000)
    async with asking.client(url) as client:
        while True:
            before = await _expired(client)
            await asyncio.sleep(QUIET_S)
            if await _expired(client) != before:
                continue
            wanted = await expected.read(url)
            if await _expired(client) == before:
                return wanted


async def _expired(client: aioredis.Redis) -> int:
    stats = await client.info("stats")
    return int(stats["expired_keys"]) + int(stats.get("expired_fields", 0))
