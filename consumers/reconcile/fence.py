"""The fence: what of the suspects is drift, and what was on its way (H18).

    1. the source's rows, each with its stamp (xmin)
    2. F = pg_current_wal_insert_lsn()
    3. until the capture's position, committed in Kafka, is at F or beyond
    (of a derived table its other sources and each processor on the way are passed here: see origins.derived)
    4. the topic's high watermarks of that moment, transaction markers and open transactions included
    5. until the target's checkpoint of every partition is there (apply moves them where nothing comes, too)
    6. the target's rows, then the source's once more: a row with another stamp has moved, and goes again

A difference counts when two rounds have shown the same one: of a row that the source lacks there is no
stamp, and it may have come and gone meanwhile. (Where no write has a stamp, more rounds are asked for, or the
source is asked what has moved.) What still moves after ROUNDS is in flight, and no drift.
Nothing is decided by time: what is not passed within the limits is incomplete.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient

from consumers.apply.checkpoint import Place
from consumers.apply.pauses import paused_in
from consumers.reconcile.sides.base import Key, Row
from consumers.targets.base import Gate, Look, Parked, Unwhole
from streamer.changes.lsn import format_lsn
from streamer.changes.position import Position, Stage, position_key
from streamer.changes.topics import positions_topic
from streamer.config import Config, RedisSource
from streamer.kafka import READ_DEADLINE_S, admin, kafka_errors, reader
from streamer.publisher.topics import describe

CERTAIN = 2  # rounds in a row that show one difference, where each write of a row has a stamp
ROUNDS = 8  # a key that has changed in each of so many, seconds apart, is changed all the time
STALL_S = 60.0  # nothing moves for so long: a process is down, or waits. A restart of Kafka takes 10 s
WAIT_LIMIT_S = 3600.0  # of one fence in all: a target that catches up moves, but an hour behind is no fence
POLL_S = 0.1  # between two looks at checkpoints, which move once a second where nothing comes
POSITION_POLL_MS = 200
POSITIONS_AT_ONCE = 5_000  # a megabyte
UNWHOLE_LIMIT = 100_000  # as many as there are suspects

MISSING, EXTRA, DIFFERENT = "missing", "extra", "different"
IN_FLIGHT, PARKED, HELD, UNUSABLE = "in_flight", "parked", "held", "unusable"


Moved = Callable[[Sequence[Key]], Awaitable[Collection[Key]]]


class NotPassed(Exception):
    """Capture or apply has not come as far as the fence within its limits; says which, and what to do."""


class Source(Protocol):
    async def insert_lsn(self) -> int: ...

    async def holds_commits(self) -> bool: ...


class Rows(Protocol):
    async def rows(self, keys: Sequence[Key]) -> Mapping[Key, Row]: ...


class Hops(Protocol):
    """What lies between a capture and the topic that is compared."""

    async def pass_(self, stall_s: float) -> None:
        """Until what is captured now has come out of all of it. Raises NotPassed, KafkaUnavailable."""

    async def parked(self) -> int:
        """Keys that wait in it, so that not every row can be whole."""


class Progress(Protocol):
    """What Kafka says: how far the capture is, and where a topic ends."""

    async def position(self) -> int: ...

    async def ends(self, topic: str) -> dict[int, int]: ...


class Standing(Protocol):
    """What a target's session says (consumers.targets.base.Target)."""

    async def look(self, places: Sequence[Place]) -> Look: ...

    async def parked(self, places: Sequence[Place]) -> list[Parked]: ...

    async def gates(self) -> list[Gate]: ...

    async def rereads(self, topics: Collection[str], limit: int) -> list[Unwhole]: ...


@dataclass(frozen=True, slots=True)
class Passed:
    """`offsets`: the high watermark of each partition, which the target's checkpoint has reached."""

    lsn: int
    position: int
    offsets: dict[int, int]
    waited_s: float


@dataclass(frozen=True, slots=True)
class Fault:
    """`kind`: missing, extra, different, parked, held or unusable. A row that is not there is None."""

    kind: str
    key: Key
    source: Row | None
    target: Row | None


@dataclass(slots=True)
class Judged:
    faults: list[Fault] = field(default_factory=list)
    in_flight: list[Key] = field(default_factory=list)  # changed in every round
    passed: list[Passed] = field(default_factory=list)
    settled: int = 0  # were equal when the fence had been passed


class Log:
    """Progress as Kafka has it, for one source. A Redis source's places are moments of its server's clock."""

    def __init__(self, config: Config, brokers: str, source: str) -> None:
        self._config = config
        self._brokers = brokers
        self._source = source
        self._of_moments = isinstance(config.sources[source], RedisSource)
        self._topic = positions_topic(config.name)
        self._stack = AsyncExitStack()
        self._committed: AIOKafkaConsumer | None = None
        self._all: AIOKafkaConsumer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._counts: dict[str, int] = {}
        self._position: Position | None = None
        self._unread: dict[TopicPartition, int] = {}  # the positions' ends when this began

    async def open(self) -> None:
        """Raises KafkaUnavailable, ConfigError; NotPassed where nothing was ever captured."""
        security = self._config.kafka.security
        enter = self._stack.enter_async_context
        self._admin = await enter(admin(self._brokers, security))
        everything = await enter(reader(self._brokers, security, committed=False))
        committed = await enter(reader(self._brokers, security, committed=True))
        self._all, self._committed = everything, committed
        partitions = await self._partitions(self._topic)
        if not partitions:
            raise self._never()
        with kafka_errors("reading positions", brokers=self._brokers):
            async with asyncio.timeout(READ_DEADLINE_S):
                starts = await everything.beginning_offsets(partitions)
                self._unread = await committed.end_offsets(partitions)
        committed.assign(partitions)
        for partition in partitions:
            committed.seek(partition, starts[partition])

    async def close(self) -> None:
        await self._stack.aclose()

    async def position(self) -> int:
        """The position as the log has it now, waited for a little where there is nothing to read."""
        assert self._committed is not None
        with kafka_errors("reading positions", brokers=self._brokers):
            async with asyncio.timeout(READ_DEADLINE_S):
                batches = await self._committed.getmany(
                    timeout_ms=POSITION_POLL_MS, max_records=POSITIONS_AT_ONCE
                )
        self._unread = {p: end for p, end in self._unread.items() if await self._committed.position(p) < end}
        key = position_key(self._source)
        for records in batches.values():
            for record in records:
                if record.key == key and record.value is not None:
                    self._position = Position.load(record.value)
        if self._unread:  # positions of an older epoch, of another server even, may be the higher ones
            return 0
        position = self._position
        # While a first copy is published, the position is already where its stream will begin.
        if position is None or position.stage is not Stage.STREAMING:
            return 0
        return position.through_us if self._of_moments else position.lsn

    async def ends(self, topic: str) -> dict[int, int]:
        """High watermarks. Raises NotPassed where the topic is not there."""
        assert self._all is not None
        partitions = await self._partitions(topic)
        if not partitions:
            raise NotPassed(
                f"the topic {topic} is not there: the capture has published nothing of the table yet"
                f"\n  -> `tailrace status` says whether it runs and captures the table (`tailrace capture"
                f" {self._source}` starts it); `tailrace backfill {self._source} TABLE` publishes rows again"
            )
        with kafka_errors("reading offsets", brokers=self._brokers):
            async with asyncio.timeout(READ_DEADLINE_S):
                ends = await self._all.end_offsets(partitions)
        return {partition.partition: end for partition, end in ends.items()}

    async def _partitions(self, topic: str) -> list[TopicPartition]:
        """A topic keeps its count (H26)."""
        if topic not in self._counts:
            assert self._admin is not None
            self._counts |= await describe(self._admin, [topic])
        return [TopicPartition(topic, p) for p in range(self._counts.get(topic, 0))]

    def _never(self) -> NotPassed:
        return NotPassed(
            f"source {self._source!r} was never captured: there is no topic {self._topic}"
            f"\n  -> start it: `tailrace capture {self._source}`"
        )


@asynccontextmanager
async def opened_log(config: Config, brokers: str, source: str) -> AsyncIterator[Log]:
    log = Log(config, brokers, source)
    try:
        await log.open()
        yield log
    finally:
        await log.close()


@dataclass(frozen=True, slots=True)
class Path:
    """The way of a table's changes: names of the config, and the topic."""

    source: str
    topic: str
    flow: str
    target: str


class Fence:
    """For one table. `key_of`: a key as Kafka has it -> the compared one; None where it is not read.

    `certain`, `moved`, `unusable`, `shown`: as origins.base has them.
    """

    def __init__(
        self,
        path: Path,
        log: Progress,
        source: Source,
        ours: Rows,
        theirs: Rows,
        standing: Standing,
        *,
        key_of: Callable[[bytes], Key | None],
        certain: int = CERTAIN,
        moved: Moved | None = None,
        unusable: Callable[[], Collection[Key]] | None = None,
        shown: Callable[[int], str] = format_lsn,
        hops: Hops | None = None,
        stall_s: float = STALL_S,
        clock_s: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._path = path
        self._log = log
        self._source = source
        self._ours = ours
        self._theirs = theirs
        self._standing = standing
        self._key_of = key_of
        self._certain = certain
        self._moved = moved
        self._unusable = unusable
        self._shown = shown
        self._hops = hops
        self._stall_s = stall_s
        self._clock_s = clock_s
        self._pause = pause

    async def judge(self, suspects: Sequence[Key]) -> Judged:
        """Raises NotPassed, and the errors of the stores."""
        judged = Judged()
        open_: dict[Key, _Seen | None] = dict.fromkeys(suspects)
        for _ in range(ROUNDS):
            if not open_:
                break
            await self._round(open_, judged)
        judged.in_flight += open_
        return judged

    async def _round(self, open_: dict[Key, _Seen | None], judged: Judged) -> None:
        keys = list(open_)
        before = await self._ours.rows(keys)
        passed = None if await self._holds() else await self.pass_()
        if passed is not None:
            judged.passed.append(passed)
        theirs = await self._theirs.rows(keys)
        after = await self._ours.rows(keys)
        moved = await self._moved(keys) if self._moved is not None else ()
        parked = await self._parked()
        unusable = set(self._unusable()) if self._unusable is not None else set()
        moved = {*moved, *await self._unwhole()}
        waits = await self._source.holds_commits()
        unsure = self._hops is not None and await self._hops.parked() > 0
        for key in keys:
            one, other, now = before.get(key), theirs.get(key), after.get(key)
            if _stamp(one) != _stamp(now) or waits or key in moved:
                open_[key] = None
                continue
            if _texts(now) == _texts(other):
                judged.settled += 1
                del open_[key]
                continue
            if passed is None or key in parked or key in unusable or unsure:
                kind = HELD if passed is None else PARKED
                kind = PARKED if key in parked else UNUSABLE if key in unusable else kind
                judged.faults.append(Fault(kind, key, now, other))
                del open_[key]
                continue
            seen = _Seen(_stamp(now), other).after(open_[key])
            if seen.times >= self._certain:
                judged.faults.append(Fault(_kind(now, other), key, now, other))
                del open_[key]
            else:
                open_[key] = seen

    async def _holds(self) -> bool:
        """A held truncate or held deletes: the topic stands still until a person decides."""
        flow, topic = self._path.flow, self._path.topic
        gates = await self._standing.gates()
        return any(g.flow == flow and g.topic == topic and g.state == "held" for g in gates)

    async def _parked(self) -> set[Key]:
        places = [self._place(p) for p in await self._log.ends(self._path.topic)]
        found = {self._key_of(entry.key) for entry in await self._standing.parked(places)}
        return {key for key in found if key is not None}

    async def _unwhole(self) -> set[Key]:
        """Rows that the target has asked for once more, as an event did not have all of them (H6, H7)."""
        flow, topic = self._path.flow, self._path.topic
        waiting = await self._standing.rereads([topic], UNWHOLE_LIMIT)
        found = {self._key_of(row.key) for row in waiting if row.flow == flow and row.topic in ("", topic)}
        return {key for key in found if key is not None}

    def _place(self, partition: int) -> Place:
        return Place(self._path.flow, self._path.topic, partition)

    async def pass_(self) -> Passed:
        """Until everything that was committed in the source when this was called is in the target."""
        began_s = self._clock_s()
        lsn = await self._source.insert_lsn()
        position = await self._captured(lsn)
        if self._hops is not None:
            await self._hops.pass_(self._stall_s)
        ends = await self._log.ends(self._path.topic)
        await self._applied(ends)
        return Passed(lsn, position, ends, self._clock_s() - began_s)

    async def _captured(self, lsn: int) -> int:
        patience = Patience(self._clock_s, self._stall_s)
        return await pass_captured(self._log, self._path.source, lsn, self._shown, patience)

    async def _refuse_paused(self) -> None:
        flow = self._path.flow
        if (pause := paused_in(await self._standing.gates(), flow)) is not None:
            raise NotPassed(
                f"flow {flow} was paused {pause.text}, and what has come since waits"
                f"\n  -> compare it when it has gone on: `tailrace resume {flow}`"
            )

    async def _applied(self, ends: Mapping[int, int]) -> None:
        patience = Patience(self._clock_s, self._stall_s)
        wanted = {self._place(p): end for p, end in ends.items()}
        looked = False
        while True:
            stands = (await self._standing.look(list(wanted))).stands
            behind = {place: end for place, end in wanted.items() if stands.get(place, 0) < end}
            if not behind:
                return
            has_left = patience.has_left(sum(stands.get(place, 0) for place in wanted))
            if not looked or not has_left:
                await self._refuse_paused()
                looked = True
            if not has_left:
                place, end = next(iter(behind.items()))
                if await self._holds():
                    raise NotPassed(
                        f"flow {place.flow} holds a truncate or deletes, and what comes behind them waits"
                        f"\n  -> `tailrace approve {place.flow}`, or `refuse`"
                    )
                raise NotPassed(
                    f"flow {place.flow!r} has not been applied up to offset {end} of {place.topic}"
                    f"[{place.partition}]: its checkpoint is {stands.get(place, 0)}, and did not move for"
                    f" {patience.still_s:.0f} s\n  -> start it: `tailrace apply {self._path.target}` (or"
                    " `tailrace run`); `tailrace status` says what it waits for"
                )
            await self._pause(POLL_S)


async def pass_captured(
    log: Progress, source: str, lsn: int, shown: Callable[[int], str], patience: Patience
) -> int:
    """The position of the source's capture, once it is there. Raises NotPassed."""
    while (position := await log.position()) < lsn:
        if not patience.has_left(position):
            raise NotPassed(
                f"the capture of {source} has not passed {shown(lsn)}: it is at {shown(position)},"
                f" and did not move for {patience.still_s:.0f} s"
                f"\n  -> start it: `tailrace capture {source}` (or `tailrace run`);"
                " `tailrace status` says what it waits for"
            )
    return position


class Patience:
    """For what moves; not for ever."""

    def __init__(self, clock_s: Callable[[], float], stall_s: float) -> None:
        self._clock_s = clock_s
        self._stall_s = stall_s
        self._began_s = self._moved_s = clock_s()
        self._at = -1

    @property
    def still_s(self) -> float:
        return self._clock_s() - self._moved_s

    def has_left(self, at: int) -> bool:
        if at != self._at:
            self._at, self._moved_s = at, self._clock_s()
        return self.still_s < self._stall_s and self._clock_s() - self._began_s < WAIT_LIMIT_S


@dataclass(frozen=True, slots=True)
class _Seen:
    """A difference as a round has shown it."""

    source_stamp: str | None
    target: Row | None
    times: int = 1

    def after(self, before: _Seen | None) -> _Seen:
        """The same once more, or for the first time."""
        if before is None or (before.source_stamp, before.target) != (self.source_stamp, self.target):
            return self
        return replace(self, times=before.times + 1)


def _stamp(row: Row | None) -> str | None:
    return None if row is None else row.stamp


def _texts(row: Row | None) -> tuple[str | None, ...] | None:
    return None if row is None else row.texts


def _kind(source: Row | None, target: Row | None) -> str:
    if target is None:
        return MISSING
    return EXTRA if source is None else DIFFERENT
