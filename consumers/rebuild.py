"""A flow's table rebuilt from the log beside the live one, proved against its source, and exchanged with it.

The table beside is filled by apply's own code, under a flow of its own that has checkpoints of its own, so
that a process that is killed goes on. It never goes further than the live table's checkpoints: what is there
has passed the gates, and at the exchange, which holds apply up at those checkpoints for a moment, both
tables are at the same place of the log. Rows that cannot come from the log alone (keys that are parked, or
refused by the table beside) are taken from the live table, as it has them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from consumers.apply.assemble import Assembler
from consumers.apply.checkpoint import ANYWHERE, Move, Place
from consumers.apply.feed import Fetched, Standing
from consumers.apply.fold import BOTTOM, Version
from consumers.apply.gates import Gates, rules_of
from consumers.apply.queues import NO_KEY, Key, take_out
from consumers.apply.schemas import Schemas
from consumers.replay_pass import EVERYTHING, reach
from consumers.tail import Record, read
from consumers.targets.base import Batch, FlowError, RowsRefused, TableChanges, Target
from consumers.targets.postgres_beside import Live
from consumers.targets.postgres_exchange import Names, TableBusy
from consumers.targets.postgres_rebuilds import KeyColumn, Rebuilds
from streamer.changes.kinds import decoder_for
from streamer.changes.schema import SchemaRecord
from streamer.config import Config, Flow
from streamer.errors import ConfigError, TargetUnavailable

FOLLOW_S = 0.2  # between two looks at where the live table is
NEAR_S = 1.0  # a round that takes no longer leaves little to do while apply is held up
ROUNDS = 100  # until a round is as short as that; apply is as fast as this, so that it must stand at times
HELD_S = 20.0  # of a catch-up while apply is held up
LEFT_OUT_LIMIT = 10_000  # keys whose row is taken from the live table
BUSY_TRIES = 3
BUSY_PAUSE_S = 5.0

Tell = Callable[[int], None]  # events so far


@dataclass(frozen=True, slots=True)
class Rebuilding:
    """What is rebuilt: the flow, its shadow that fills the table beside, and the table's last record."""

    flow: Flow
    shadow: Flow
    record: SchemaRecord
    names: Names
    key: Sequence[KeyColumn]


class Builder:
    """Fills the table beside. `target`: a session with the live flow; `other`: one with the shadow."""

    def __init__(
        self,
        config: Config,
        work: Rebuilding,
        target: Target,
        other: Target,
        store: Rebuilds,
        consumer: AIOKafkaConsumer,
        schemas: Schemas,
        cluster_id: str,
        tell: Tell,
    ) -> None:
        self._brokers = config.kafka.brokers
        self._work = work
        self._target = target
        self._other = other
        self._store = store
        self._consumer = consumer
        self._cluster_id = cluster_id
        self._tell = tell
        self._number = config.targets[work.flow.target].batch.rows
        rules = rules_of(config, [work.flow])
        self._gates = None
        if rules:  # deletes that a person has refused are not let in by the back door
            self._gates = Gates(rules, target, reach, passed=lambda _: EVERYTHING, stays=lambda _: True)
        self._assembler = Assembler(schemas, self._gates)
        self._at: dict[Place, int] = {}  # of the live flow's places: how far the table beside is
        self._floor: Version = BOTTOM
        self._left_out: set[bytes] = set()
        self.events = 0

    async def open(self, places: Iterable[Place]) -> None:
        """`places`: the live flow's."""
        if self._gates is not None:
            await self._gates.load()
        found = await self._other.checkpoints([self._beside(place) for place in places])
        self._at = {place: found[self._beside(place)].next_offset for place in places}
        self._floor = await self._store.floor(self._work.names.into)
        self._left_out = set(await self._store.left_out())

    @property
    def left_out(self) -> int:
        return len(self._left_out)

    def _beside(self, place: Place) -> Place:
        return place._replace(flow=self._work.shadow.name)

    # As far as the live table

    async def goals(self) -> dict[Place, int]:
        """Where the live table is; a replay that is under way has been further already."""
        return {place: at.replayed_to for place, at in (await self._store.stands(self._at)).items()}

    async def catch_up(self, goals: Mapping[Place, int]) -> None:
        """Raises ConfigError where the live table's places are no more those that this began with."""
        changed = goals.keys() != self._at.keys()
        if changed or any(goals[place] < at for place, at in self._at.items()):
            names = self._work.names
            raise ConfigError(
                "the live table's checkpoints were set back by hand, or its topic has other partitions now",
                where=f"flow {self._work.flow.name!r}",
                fix=f'DROP TABLE "{names.schema}"."{names.into}"; and run it again: it begins anew',
            )
        await self._follow_floor()
        behind = {place: goal for place, goal in goals.items() if self._at[place] < goal}
        if behind:
            await self._read(behind)
            # Behind the last records are markers of transactions.
            rest = {place: goal for place, goal in behind.items() if self._at[place] < goal}
            await self._put(Batch([], [], {}, self._cluster_id), rest)

    async def _follow_floor(self) -> None:
        """Truncates that the live table has applied: their rows go, and their events are none any more."""
        names, record = self._work.names, self._work.record
        floor = await self._store.floor(names.live)
        if floor <= self._floor:
            return
        place = self._beside(min(self._at))
        changes = TableChanges(
            place.flow, place.topic, record, names.schema, names.into, [], {record.id}, floor, place.partition
        )
        move = Move(place, ANYWHERE, ANYWHERE, None)
        await self._write(Batch([changes], [move], {record.id: record}, self._cluster_id))
        self._floor = floor

    async def _read(self, goals: Mapping[Place, int]) -> None:
        parked = {Key(entry.place, entry.key) for entry in await self._target.parked(goals)}
        partitions = {TopicPartition(place.topic, place.partition): place for place in goals}
        begin = {partition: self._at[place] for partition, place in partitions.items()}
        until = {partition: goals[place] for partition, place in partitions.items()}
        pieces = read(self._consumer, self._brokers, begin, until, number=self._number)
        async with aclosing(pieces):
            async for piece in pieces:
                found: dict[TopicPartition, list[Record]] = {}
                for record in sorted(piece, key=lambda record: record.offset):
                    partition = TopicPartition(record.topic, record.partition)
                    found.setdefault(partition, []).append(record)
                if found:
                    await self._apply({partitions[p]: records for p, records in found.items()}, parked)

    async def _apply(self, found: Mapping[Place, Sequence[Record]], parked: Iterable[Key]) -> None:
        fetched = Fetched({}, {}, 0)
        standings, flows = {}, {}
        for place, records in found.items():
            partition = TopicPartition(place.topic, place.partition)
            # Truncates and floors have no key: those that count are in the live table's floor.
            fetched.records[partition] = [r for r in records if r.value is not None and r.key is not None]
            standings[partition] = Standing({place.flow: self._at[place]})
            flows[place.topic] = [self._work.flow]
        try:
            prepared = await self._assembler.assemble(fetched, standings, flows, self._cluster_id)
        except FlowError as error:
            raise error.cause from error
        batch = prepared.batch
        out = {Key(poison.place, poison.key) for poison in prepared.aside.poisons}
        out |= {key for key in parked if take_out(batch, key) is not None}
        await self._leave_out(out)
        await self._put(batch, {place: records[-1].offset + 1 for place, records in found.items()})
        self.events += sum(map(len, fetched.records.values()))
        self._tell(self.events)

    async def _put(self, batch: Batch, next_offsets: Mapping[Place, int]) -> None:
        for changes in batch.tables:
            changes.flow, changes.table = self._work.shadow.name, self._work.names.into
        batch.moves = [
            Move(self._beside(place), self._at[place], next_offset, None)
            for place, next_offset in sorted(next_offsets.items())
        ]
        if batch.moves:
            await self._write(batch)
            self._at.update(next_offsets)

    async def _write(self, batch: Batch) -> None:
        while True:
            try:
                outcome = await self._other.apply(batch)
            except FlowError as error:
                raise error.cause from error
            except RowsRefused as error:
                for row in error.rows:
                    if take_out(batch, Key(row.place, row.key or NO_KEY)) is None:
                        raise
                    await self._leave_out({Key(row.place, row.key or NO_KEY)})
            else:
                break
        if outcome.lost:
            raise TargetUnavailable(
                "the checkpoints of the table beside are gone, or another process moves them",
                where=f"flow {self._work.flow.name!r}",
                fix="run it again",
            )

    async def _leave_out(self, keys: Iterable[Key]) -> None:
        for place, key in keys:
            if key != NO_KEY and key not in self._left_out:
                await self._store.leave_out(place, key)
                self._left_out.add(key)
        if len(self._left_out) > LEFT_OUT_LIMIT:
            raise ConfigError(
                f"the table beside refuses more than {LEFT_OUT_LIMIT:,} rows, or as many keys are parked",
                where=f"flow {self._work.flow.name!r}",
                fix=f"`tailrace dead-letters list {self._work.flow.target}` shows what is parked",
            )

    async def carry(self, live: Live) -> None:
        """Rows of the keys that were left out, as the live table has them now."""
        if self._left_out:
            keys = [found for key in sorted(self._left_out) if (found := self.texts_of(key)) is not None]
            await self._store.carry(live, self._work.key, keys)

    def texts_of(self, key: bytes) -> dict[str, str] | None:
        """A key's values as the target reads them; None: it is no key of this table."""
        kinds = {column.name: column.kind for column in self._work.record.columns}
        try:
            values = orjson.loads(key)
            return {c.source: str(decoder_for(kinds[c.source])(values[c.source])) for c in self._work.key}
        except (ValueError, KeyError, TypeError):
            return None

    # To the end

    async def follow(self, until: asyncio.Event) -> None:
        """No further behind than a moment. Ends between two batches, as a session is of no use after a
        cancelled one."""
        while not until.is_set():
            await self.catch_up(await self.goals())
            with suppress(TimeoutError):
                async with asyncio.timeout(FOLLOW_S):
                    await until.wait()

    async def near(self) -> None:
        """Until the live table is a moment away."""
        now_s = asyncio.get_running_loop().time
        for _ in range(ROUNDS):
            began_s = now_s()
            await self.catch_up(await self.goals())
            if now_s() - began_s <= NEAR_S:
                return
        raise TargetUnavailable(
            "the live table's apply is as fast as this, so that it cannot be caught up with",
            where=f"flow {self._work.flow.name!r}",
            fix="run it again when less is written: it goes on where it is",
        )

    async def exchange(
        self,
        live: Live,
        oid: int,
        *,
        drop_old: bool,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> list[str]:
        """What could not be carried over, as SQL. Raises ConfigError, TargetUnavailable; then nothing has
        changed."""
        for attempt in range(BUSY_TRIES):
            await self.near()
            try:
                async with self._store.holding() as goals:
                    await self._last_stretch(goals, live)
                    return await self._store.exchange(live, oid, drop_old=drop_old)
            except TableBusy:
                if attempt == BUSY_TRIES - 1:
                    raise
                await pause(BUSY_PAUSE_S)
        raise AssertionError("unreachable")

    async def _last_stretch(self, goals: Mapping[Place, int], live: Live) -> None:
        try:
            async with asyncio.timeout(HELD_S):
                await self.catch_up(goals)
                await self.carry(live)
        except TimeoutError as error:
            raise TargetUnavailable(
                f"the last events took more than {HELD_S:.0f} s, and apply is not held up for longer",
                where=f"flow {self._work.flow.name!r}",
                fix="run it again: it goes on where it is",
            ) from error
