"""Events of a replay read by the command itself: to foretell what it would do, or to write only some of them.

A checkpoint is one offset, so that it cannot mean some keys, or a range with an end. Those are written here,
beside the apply processes and as they write: decoded and folded by the same code, guarded by the versions in
the rows' transaction, with the partition's checkpoint locked and left where it is. Keys that are parked are
left out, as only the owner of their partition writes them, and so is what no key tells: truncates have been
applied, and their floors stand.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from aiokafka import AIOKafkaConsumer

from consumers.apply.assemble import Assembler
from consumers.apply.checkpoint import ANYWHERE, Move, Place
from consumers.apply.feed import Fetched, Standing
from consumers.apply.fold import BOTTOM
from consumers.apply.gates import Gates, rules_of
from consumers.apply.queues import NO_KEY, Key, take_out
from consumers.apply.schemas import Schemas
from consumers.keys import WantedKeys
from consumers.replay import Span
from consumers.tail import Record, read
from consumers.targets.base import Batch, FlowError, RowsRefused, Target
from streamer.config import Config, Flow
from streamer.errors import TargetUnavailable

BATCH_RECORDS = 5_000  # as apply's batches are, unless its limits say less
CHANGED_LIMIT = 1_000_000  # keys that are told apart when they are counted; above it, at least so many
SAMPLES = 5  # of what the target refuses
EVERYTHING = 2**62  # every offset: what is replayed has passed its gates


@dataclass(slots=True)
class Tally:
    """`writes`: last states of keys, a batch each. Of them `newer` than what the target has (of `rows`
    different keys), the `same` version, and `older`, which stay unwritten; None: the target cannot tell."""

    events: dict[Place, int] = field(default_factory=dict)
    writes: int = 0
    newer: int | None = 0
    same: int | None = 0
    older: int | None = 0
    truncates: int = 0
    parked: int = 0  # left out, as their keys wait in the target
    undecodable: int = 0
    refused: int = 0
    samples: list[str] = field(default_factory=list)
    changed: set[bytes] = field(default_factory=set)

    @property
    def rows(self) -> int:
        return len(self.changed)

    def plain(self) -> dict[str, Any]:
        return {
            "events": sum(self.events.values()),
            "writes": self.writes,
            "newer": self.newer,
            "rows_changed": None if self.newer is None else self.rows,
            "same": self.same,
            "older": self.older,
            "truncates": self.truncates,
            "parked": self.parked,
            "undecodable": self.undecodable,
            "refused": self.refused,
        }


class Pass:
    """One after the other of the spans. `keys` None: all."""

    def __init__(
        self,
        config: Config,
        flow: Flow,
        target: Target,
        consumer: AIOKafkaConsumer,
        schemas: Schemas,
        cluster_id: str,
        keys: WantedKeys | None,
    ) -> None:
        self._brokers = config.kafka.brokers
        self._flow = flow
        self._target = target
        self._consumer = consumer
        self._cluster_id = cluster_id
        self._keys = keys
        rules = rules_of(config, [flow])
        self._gates = None
        if rules:  # deletes that a person has refused are not let in by the back door
            self._gates = Gates(rules, target, reach, passed=lambda _: EVERYTHING, stays=lambda _: True)
        self._assembler = Assembler(schemas, self._gates)
        self._number = min(BATCH_RECORDS, config.targets[flow.target].batch.rows)

    async def foretell(self, spans: Sequence[Span], tell: Callable[[Tally], None]) -> Tally:
        """Read them, ask the target for what it has, and write nothing."""

        async def compare(batch: Batch, tally: Tally) -> None:
            found = await self._target.versions(batch)
            if found is None:
                tally.newer = tally.same = tally.older = None
                return
            for changes in batch.tables:
                for fold in changes.folds:
                    place = Place(changes.flow, changes.topic, fold.partition)
                    for part in (fold.rows, fold.creates, fold.patches, fold.deletes):
                        for key, write in part.items():
                            _compare(tally, place, key, write.change, found.get((place, key), BOTTOM))

        return await self._run(spans, compare, tell, truncates=True)

    async def write(self, spans: Sequence[Span], tell: Callable[[Tally], None]) -> Tally:
        """Raises TargetUnavailable; what was written until then stays, and it may all be done again."""
        return await self._run(spans, self._write, tell, truncates=False)

    async def _run(
        self,
        spans: Sequence[Span],
        act: Callable[[Batch, Tally], Awaitable[None]],
        tell: Callable[[Tally], None],
        *,
        truncates: bool,
    ) -> Tally:
        tally = Tally()
        if self._gates is not None:
            await self._gates.load()
        for span in spans:
            tally.events[span.place] = 0
            parked = {Key(entry.place, entry.key) for entry in await self._target.parked([span.place])}
            async with aclosing(self._batches(span, tally, truncates=truncates)) as batches:
                async for batch in batches:
                    for key in parked:
                        tally.parked += take_out(batch, key) is not None
                    tally.writes += sum(1 for c in batch.tables for fold in c.folds for _ in fold.writes())
                    try:
                        await act(batch, tally)
                    except FlowError as error:
                        raise error.cause from error
                    tell(tally)
        return tally

    async def _batches(self, span: Span, tally: Tally, *, truncates: bool) -> AsyncGenerator[Batch, None]:
        place, partition = span.place, span.partition
        begin, until = {partition: span.begin}, {partition: span.end}
        pieces = read(self._consumer, self._brokers, begin, until, number=self._number)
        async with aclosing(pieces):
            async for piece in pieces:
                records = [record for record in piece if self._is_wanted(record, truncates=truncates)]
                tally.events[place] += len(records)
                tally.truncates += sum(record.key is None for record in records)
                if not records:
                    continue
                fetched = Fetched({partition: records}, {}, 0)
                standings = {partition: Standing({self._flow.name: span.begin})}
                flows = {place.topic: [self._flow]}
                try:
                    prepared = await self._assembler.assemble(fetched, standings, flows, self._cluster_id)
                except FlowError as error:
                    raise error.cause from error
                tally.undecodable += len(prepared.aside.poisons)
                prepared.batch.moves.append(Move(place, ANYWHERE, ANYWHERE, None))
                yield prepared.batch

    def _is_wanted(self, record: Record, *, truncates: bool) -> bool:
        if record.value is None:
            return False
        if record.key is None:
            return truncates and self._keys is None
        return self._keys is None or self._keys.fits(record.topic, record.key)

    async def _write(self, batch: Batch, tally: Tally) -> None:
        while True:
            try:
                outcome = await self._target.apply(batch)
            except RowsRefused as error:
                for row in error.rows:
                    if take_out(batch, Key(row.place, row.key or NO_KEY)) is None:
                        raise
                    tally.refused += 1
                    if len(tally.samples) < SAMPLES:
                        tally.samples.append(f"{(row.key or b'').decode(errors='replace')}: {row.message}")
            else:
                break
        if outcome.lost:
            (place, *_) = outcome.lost
            raise TargetUnavailable(
                f"the checkpoint of {place.topic}[{place.partition}] is gone, or moves all the time",
                where=f"flow {self._flow.name!r}",
                fix="run it again: what was written stays",
            )
        older = outcome.guarded.get(self._flow.name, 0)
        tally.older = None if tally.older is None else tally.older + older


def _compare(tally: Tally, place: Place, key: bytes, change: Any, known: tuple[int, int, int]) -> None:
    assert tally.newer is not None
    assert tally.same is not None
    assert tally.older is not None
    if known > change.version:
        tally.older += 1
    elif known == change.version or (known == BOTTOM and change.op == "d"):
        tally.same += 1
    else:
        tally.newer += 1
        if len(tally.changed) < CHANGED_LIMIT:
            name = place.topic.encode() + b" " + key
            tally.changed.add(blake2b(name, digest_size=8).digest())


async def reach(act: Callable[[], Awaitable[None]]) -> bool:
    await act()
    return True
