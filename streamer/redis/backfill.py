"""Backfills of a Redis source: rows of an entity, or of given keys, published again though nothing differs.

Owns the runs in the capture process; what is known of each is in backfill_ledger. The rows come by the
re-read that serves notifications, so each is as new as its version says, and nothing has to be compared
(H9 and H10 are of snapshots). A SCAN's cursor does not survive a capture: then the run begins again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import orjson

from streamer.backfill_ledger import POLL_S, Follow, Ledger
from streamer.changes.backfill import Key, Request, Run, State, Wanted
from streamer.config import RedisSource
from streamer.redis.connection import RedisConnection
from streamer.redis.encode import BadValue, key_bytes
from streamer.redis.entities import Entities, Match
from streamer.redis.large import Large
from streamer.redis.pivot import PivotEntity
from streamer.redis.reading import Reading
from streamer.redis.reread import BATCH_KEYS
from streamer.redis.scan import full
from streamer.redis.shadow import Changed
from streamer.redis.shadow_records import Place

RUNS_LIMIT = 2  # at once: each batch takes its turn with those of notifications
RATE_KEYS = 50  # a batch of a run with a limit, so that it is kept within a second
_AGAIN = "begins again: a SCAN does not outlive its capture"


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A row that was asked for by its key. `match` None: of a pivot."""

    place: Place
    row_key: bytes
    match: Match | None


class RedisBackfill:
    """`run` in a task of the capture; `detail` at any time."""

    def __init__(
        self,
        source: RedisSource,
        entities: Entities,
        reading: Reading,
        large: Large,
        connection: RedisConnection,
        ledger: Ledger,
        follow: Follow,
        *,
        now_us: Callable[[], int],
        is_ready: Callable[[], bool],
    ) -> None:
        """`is_ready`: no first copy runs."""
        self._source = source
        self._entities = entities
        self._reading = reading
        self._large = large
        self._connection = connection
        self._ledger = ledger
        self._follow = follow
        self._now_us = now_us
        self._is_ready = is_ready
        self._active: set[str] = set()
        self._turn = asyncio.Lock()
        self._began: dict[str, tuple[float, int]] = {}  # of active runs: loop's time, rows then

    async def run(self) -> None:
        """Until it is cancelled, or the first error of the session."""
        async with self._follow() as follower, asyncio.TaskGroup() as tasks:
            self._ledger.open(follower.runs)
            while True:
                if self._is_ready():
                    for run in follower.runs.asked():
                        if self._is_next(run):
                            self._active.add(run.run)
                            tasks.create_task(self._work(run), name=f"backfill {run.run}")
                await follower.next()
                await asyncio.sleep(POLL_S)

    def detail(self) -> list[dict[str, Any]]:
        """For `status`, as a Postgres source has it."""
        return self._ledger.detail(self._rows_per_s)

    def _rows_per_s(self, run: str) -> float:
        if run not in self._began:
            return 0.0
        began_s, rows_then = self._began[run]
        rows = self._ledger.of(self._ledger.runs.by_run[self._source.name, run]).rows
        return (rows - rows_then) / max(1.0, asyncio.get_running_loop().time() - began_s)

    def _is_next(self, run: Run) -> bool:
        return run.run not in self._active and self._ledger.is_due(run) and len(self._active) < RUNS_LIMIT

    async def _work(self, run: Run) -> None:
        request = run.request
        assert request is not None
        try:
            problem = self._problem(request)
            if problem:
                self._ledger.end(run, State.FAILED, problem)
                return
            progress = self._ledger.of(run)
            again = not request.keyed and progress.chunks > 0
            if again:
                progress = replace(progress, rows=0, chunks=0, reread=progress.reread + 1)
            began_us = progress.began_us or self._now_us()
            reason = _AGAIN if again else ""
            progress = replace(progress, state=State.RUNNING, reason=reason, began_us=began_us)
            self._began[run.run] = asyncio.get_running_loop().time(), progress.rows
            self._ledger.write(run, progress)
            await (self._given(run, request) if request.keyed else self._all(run, request))
        finally:
            self._active.discard(run.run)
            self._began.pop(run.run, None)

    def _problem(self, request: Request) -> str:
        if request.entity not in self._entities.by_name:
            return f"{self._source.name} has no entity {request.entity!r}; name it in `entities:` of the file"
        if request.where is not None:
            return "a Redis source has no SQL for a condition; name the keys"
        return ""

    async def _goes_on(self, run: Run) -> bool:
        """Waits while a person has it paused; False: it was cancelled."""
        while run.wanted is Wanted.PAUSE:
            self._ledger.pause(run)
            await asyncio.sleep(POLL_S)
        if run.wanted is Wanted.CANCEL:
            self._ledger.end(run, State.CANCELLED, run.by)
            return False
        if self._ledger.of(run).state is State.PAUSED:
            self._ledger.write(run, replace(self._ledger.of(run), state=State.RUNNING, reason=""))
        return True

    # All rows of an entity

    async def _all(self, run: Run, request: Request) -> None:
        async with aclosing(self._batches(request)) as batches:
            async for keys, places in batches:
                size = RATE_KEYS if request.rate else BATCH_KEYS
                for at in range(0, max(len(keys), len(places)), size):
                    if not await self._goes_on(run):
                        return
                    await self._read(run, request, keys[at : at + size], places[at : at + size])
        self._ledger.end(run, State.DONE, "")

    async def _batches(self, request: Request) -> AsyncGenerator[tuple[list[Match], list[Place]], None]:
        """Keys of the entity as they are now; or rows of a pivot, which are known by what was published."""
        entity = self._entities.by_name[request.entity]
        if isinstance(entity, PivotEntity):
            for places in self._reading.shadow.places_of(request.entity):
                yield [], places
            return
        databases = self._source.databases_of(self._source.entities[request.entity])
        globs = {db: [entity.pattern.glob] for db in databases}
        async with aclosing(full(self._connection, globs)) as found:
            async for db, keys in found:
                matches = [match for key in keys if (match := self._entities.match(db, key)) is not None]
                yield [match for match in matches if match.entity is entity], []

    async def _read(
        self, run: Run, request: Request, keys: Sequence[Match], places: Sequence[Place], offset: int = 0
    ) -> None:
        large, shadow = self._large, self._reading.shadow
        began_s = asyncio.get_running_loop().time()
        async with self._turn:  # so that the rows that are counted are this run's
            before = shadow.forced_rows
            singly = [match for match in keys if (match.db, match.key) not in large]
            found = await self._reading.keys(singly, scan=True, force=True) if singly else []
            steps = [match for match in keys if (match.db, match.key) in large]
            for match in (*steps, *(match for match, _ in found)):
                large.touch(match, scan=True, force=True)
            if places:
                await self._reading.pivot_rows(places, force=True)
            if steps or found:
                await large.drained(lambda: run.wanted is Wanted.CANCEL)
            rows = shadow.forced_rows - before
        progress = self._ledger.of(run)
        cursor = (str(offset),) if request.keyed else None
        self._ledger.write(
            run, replace(progress, rows=progress.rows + rows, chunks=progress.chunks + 1, cursor=cursor)
        )
        if request.rate:
            spent_s = asyncio.get_running_loop().time() - began_s
            await asyncio.sleep(max(0.0, rows / request.rate - spent_s))

    # Given keys

    async def _given(self, run: Run, request: Request) -> None:
        keys = run.keys()
        done = int(progress.cursor[0]) if (progress := self._ledger.of(run)).cursor is not None else 0
        self._ledger.write(run, replace(progress, estimated_rows=len(keys)))
        size = RATE_KEYS if request.rate else BATCH_KEYS
        while done < len(keys):
            if not await self._goes_on(run):
                return
            wanted = [found for key in keys[done : done + size] if (found := self._wanted(request, key))]
            done = min(len(keys), done + size)
            matches = {(w.match.db, w.match.key): w.match for w in wanted if w.match is not None}
            places = [w.place for w in wanted if w.match is None]
            await self._read(run, request, list(matches.values()), places, done)
            if request.deletes:
                await self._delete(run, wanted)
        self._ledger.end(run, State.DONE, "")

    def _wanted(self, request: Request, values: Key) -> _Wanted | None:
        """None: no key of Redis can be this row's."""
        entity = self._entities.by_name[request.entity]
        config = self._source.entities[request.entity]
        names = entity.record.key_columns
        row_key = orjson.dumps(dict(zip(names, values, strict=True)))
        rest = list(values)
        db = rest.pop(0) if entity.several else next(iter(self._source.databases_of(config)))
        try:
            if isinstance(entity, PivotEntity):
                cast = config.key.get(config.pivot or "", "text")
                return _Wanted(entity.place(db, key_bytes(cast, rest[0])), row_key, None)
            parts = [
                key_bytes(config.key.get(name, "text"), value)
                for name, value in zip(entity.pattern.names, rest, strict=False)
            ]
            key = entity.pattern.key_of(parts)
            match = self._entities.match(db, key) if key is not None else None
            if match is None or match.entity is not entity:
                return None
            return _Wanted(match.place(), row_key, match)
        except (ValueError, TypeError, BadValue):
            return None

    async def _delete(self, run: Run, wanted: Sequence[_Wanted]) -> None:
        """What was asked for and is not there becomes a delete, also where none was published before.

        What has just been read is in the shadow; a key that comes at this moment is read with a higher
        version.
        """
        reading = self._reading
        async with reading.steady:
            gone = [w for w in wanted if not reading.shadow.has(w.place, w.row_key)]
            changes = [Changed(w.place, w.row_key, None, 0, False) for w in gone]
            if changes:
                reading.events.rows(changes, reading.events.versions.micros, scan=False)
        if gone:
            progress = self._ledger.of(run)
            self._ledger.write(run, replace(progress, deletes=progress.deletes + len(gone)))
