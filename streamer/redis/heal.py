"""A full scan and its reverse pass: what is there is read again, then what is in the shadow only.

The reverse pass publishes nothing by itself: it names candidates, and the re-read script decides (H20).
Those that are gone are counted first, by entity, and kept on disk; then each is read once more and its
deletes are published with the count, so that a gate can judge the first of them by the number of all.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, field

from streamer.redis.connection import RedisConnection
from streamer.redis.entities import Entities, Match
from streamer.redis.large import Large
from streamer.redis.pivot import PivotEntity
from streamer.redis.reading import Reading
from streamer.redis.reread import BATCH_KEYS
from streamer.redis.scan import full
from streamer.redis.shadow import Pass, Shadow
from streamer.redis.shadow_records import Place

LARGE_WAITING = 64  # large keys found by the scan and not walked yet; the scan waits at more


@dataclass(slots=True)
class ScanProgress:
    """What `status` shows; `keys`: read so far, `gone`: rows that the reverse pass found gone."""

    why: str
    since_us: int
    keys: int = 0
    suspects: int = 0
    gone: dict[str, int] = field(default_factory=dict)
    reverse: bool = False


class Gone:
    """Places whose rows are gone, in a file without a name that SQLite removes by itself."""

    def __init__(self) -> None:
        self._file = sqlite3.connect("", isolation_level=None)
        self._file.execute("CREATE TABLE gone (entity TEXT, db INTEGER, key BLOB)")
        self.counts: dict[str, int] = {}

    def close(self) -> None:
        self._file.close()

    def add(self, places: Sequence[tuple[Place, int]]) -> None:
        """(place, how many rows it has)."""
        self._file.execute("BEGIN")
        self._file.executemany(
            "INSERT INTO gone VALUES (?, ?, ?)", [(p.entity, p.db, p.key) for p, _ in places]
        )
        self._file.execute("COMMIT")
        for place, rows in places:
            self.counts[place.entity] = self.counts.get(place.entity, 0) + rows

    def chunks(self) -> Iterator[list[tuple[str, int, bytes]]]:
        last = 0
        while chunk := self._file.execute(
            "SELECT rowid, entity, db, key FROM gone WHERE rowid > ? ORDER BY rowid LIMIT ?",
            (last, BATCH_KEYS),
        ).fetchall():
            last = chunk[-1][0]
            yield [(entity, db, key) for _, entity, db, key in chunk]


class Heal:
    """One full scan at a time. It is not to be cancelled but abandoned: then it ends between two batches."""

    def __init__(
        self,
        connection: RedisConnection,
        entities: Entities,
        shadow: Shadow,
        reading: Reading,
        large: Large,
        *,
        now_us: Callable[[], int],
    ) -> None:
        self._connection = connection
        self._entities = entities
        self._shadow = shadow
        self._reading = reading
        self._large = large
        self._now_us = now_us
        self._abandoned = False
        self.progress: ScanProgress | None = None  # while one runs
        self.ended: ScanProgress | None = None  # the last one that came to its end

    def abandon(self) -> None:
        self._abandoned = True
        self._large.nudge()

    async def run(self, why: str) -> bool:
        """Whether it came to its end; False: it was abandoned. `why`: for `status`."""
        self._abandoned = False
        self.progress = ScanProgress(why, self._now_us())
        walk = self._shadow.begin_pass()
        self._large.streams.doubt()
        try:
            whole = await self._scan(self.progress) and await self._reverse(self.progress, walk)
            self.ended = self.progress if whole else self.ended
            return whole
        finally:
            self._shadow.end_pass(walk)
            self.progress = None

    async def _scan(self, progress: ScanProgress) -> bool:
        match = self._entities.match
        # First those that all rows of a pivot share: rows that are read ahead of them have to wait for them.
        await self._read(self._entities.shared(), scan=True)
        await self._large.drained(lambda: self._abandoned)
        async with aclosing(full(self._connection, self._entities.globs())) as batches:
            async for db, keys in batches:
                progress.keys += len(keys)
                matches = [found for key in keys if (found := match(db, key)) is not None]
                async with asyncio.TaskGroup() as tasks:  # one is read while the one before is worked on
                    for at in range(0, len(matches), BATCH_KEYS):
                        tasks.create_task(self._read(matches[at : at + BATCH_KEYS], scan=True))
                while self._large.waiting > LARGE_WAITING and not self._abandoned:
                    await self._large.moved()
                if self._abandoned:
                    return False
        await self._large.drained(lambda: self._abandoned)
        return not self._abandoned

    async def _reverse(self, progress: ScanProgress, walk: Pass) -> bool:
        progress.reverse = True
        with closing(Gone()) as gone:
            for places in self._shadow.keys_not_seen(walk):
                progress.suspects += len(places)
                await self._suspected(places, gone)
                if self._abandoned:
                    return False
            progress.gone = gone.counts
            for chunk in gone.chunks():
                await self._delete(chunk, gone.counts)
                if self._abandoned:
                    return False
        return True

    async def _read(self, matches: Sequence[Match], *, scan: bool) -> None:
        batch = []
        for match in matches:
            if (match.db, match.key) in self._large:
                self._large.touch(match, scan=scan)
            else:
                batch.append(match)
        if batch:
            for match, _ in await self._reading.keys(batch, scan=scan):
                self._large.touch(match, scan=scan)

    async def _suspected(self, places: Sequence[Place], gone: Gone) -> None:
        """The script decides; what is there after all is read as if it had been notified."""
        keys, pivots = self._split(places)
        for at in range(0, len(keys), BATCH_KEYS):
            chunk = keys[at : at + BATCH_KEYS]
            verdicts = await self._reading.gone([match for _, match in chunk])
            found = zip(chunk, verdicts, strict=True)
            lost = [(place, self._shadow.count_of(place)) for (place, _), is_gone in found if is_gone]
            gone.add(lost)
            there = [m for (_, m), is_gone in zip(chunk, verdicts, strict=True) if not is_gone]
            await self._read(there, scan=False)
        verdicts = await self._reading.gone_rows(pivots)
        gone.add([(place, 1) for place, is_gone in zip(pivots, verdicts, strict=True) if is_gone])
        await self._reading.pivot_rows(p for p, is_gone in zip(pivots, verdicts, strict=True) if not is_gone)

    async def _delete(self, chunk: Sequence[tuple[str, int, bytes]], counts: Mapping[str, int]) -> None:
        """Read once more: one that has come back meanwhile is no delete."""
        found = [self._entities.place(entity, db, key) for entity, db, key in chunk]
        keys, pivots = self._split([place for place in found if place is not None])
        batch = [match for _, match in keys if (match.db, match.key) not in self._large]
        if batch:
            for match, _ in await self._reading.keys(batch, scan=False, sweep=counts):
                self._large.touch(match, scan=False)
        await self._reading.pivot_rows(pivots, sweep=counts)

    def _split(self, places: Sequence[Place]) -> tuple[list[tuple[Place, Match]], list[Place]]:
        """Keys and rows of pivots; what no entity of the config has any more is left as it is."""
        keys, pivots = [], []
        for place in places:
            entity = self._entities.entity(place.entity)
            if isinstance(entity, PivotEntity):
                pivots.append(place)
            elif entity is not None and place.head:
                match = self._entities.match(place.db, place.key)
                if match is not None:
                    keys.append((place, match))
        return keys, pivots
