"""Capture at work: touched keys are served, scans run beside, flushes take what is there; until a stop.

Owns the timing and the tasks of a session that stands, the position, and what a gap does to them: the
epoch is raised, durably, before anything is published of it, and everything is read again, while what is
notified goes on being served.
"""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from streamer.changes.position import Position, Stage
from streamer.config import RedisSource
from streamer.logs import Log
from streamer.publisher import Publisher
from streamer.redis.backfill import RedisBackfill
from streamer.redis.connection import RedisConnection
from streamer.redis.entities import Entities
from streamer.redis.gaps import Gaps, Reason
from streamer.redis.heal import Heal
from streamer.redis.journal import Journal
from streamer.redis.large import Large
from streamer.redis.notifications import Watch
from streamer.redis.publish import Events
from streamer.redis.reading import Reading
from streamer.redis.reread import BATCH_KEYS
from streamer.redis.shadow import Shadow
from streamer.redis.shadow_topic import ShadowTopic
from streamer.redis.signs import LOOK_EVERY_S, Signs
from streamer.stopping import end_tasks

log = Log(__name__)

FLUSH_BYTES = 512 * 1024  # under load: big enough that a Kafka transaction's cost does not count
FLUSH_AFTER_S = 0.05  # under load: no event waits longer for others
WAITING_LIMIT_BYTES = 16 * 2**20  # appended ahead of Kafka; bounds this process's memory
IDLE_FLUSH_S = 5.0  # how often an idle source's clock is recorded
SERVERS = 2  # one batch of notified keys is read while the one before it is worked on
GC_OBJECTS = 100_000  # a batch makes thousands of tuples, none of them in a cycle
CLOCK_LOOKS = 5
STOP_FLUSH_S = 6.0  # SIGTERM: the flush in hand; with the rest it stays under 10 s


class Capture:
    """The work of one session, from a durable epoch on."""

    def __init__(
        self,
        source: RedisSource,
        publisher: Publisher,
        entities: Entities,
        shadow: Shadow,
        events: Events,
        commands: RedisConnection,
        watch: Watch,
        signs: Signs,
        gaps: Gaps,
        journal: Journal,
        topic: ShadowTopic,
        position: Position,
        *,
        now_us: Callable[[], int],
        clock_s: Callable[[], float],
    ) -> None:
        self.watch = watch
        self.signs = signs
        self.events = events
        self.position = position
        self.flushes = 0
        self.last_scan: dict[str, Any] | None = None  # for `status`
        self._publisher = publisher
        self._entities = entities
        self._shadow = shadow
        self._gaps = gaps
        self._journal = journal
        self._topic = topic
        self._rescan_s = source.rescan_s
        self._now_us = now_us
        self._clock_s = clock_s
        self._clocks: deque[int] = deque(maxlen=CLOCK_LOOKS)
        self._rows = shadow.count()
        self._work = asyncio.Event()
        self._room = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._stopping = False
        self._flushed_s = clock_s()
        self._appended_s: float | None = None  # when the oldest thing that no flush has taken was appended
        self._seen_s: float | None = None  # ... and when the oldest of it had been noticed
        self._in_flight_s: float | None = None  # ... of the flush in flight
        self._serving_s: list[float | None] = [None] * SERVERS  # ... of the batches that are being read
        self.reading = Reading(
            commands,
            entities,
            shadow,
            events,
            room=self._wait_for_room,
            overflow=partial(gaps.report, Reason.OVERFLOW),
        )
        debounces = {name: entity.debounce_s for name, entity in source.entities.items()}
        self.large = Large(self.reading, debounce_s=debounces.get, clock_s=clock_s, worked=self._worked)
        watch.on_remade = self.large.streams.forget
        watch.on_mark = self._work.set
        self.backfill: RedisBackfill | None = None
        self.heal = Heal(commands, entities, shadow, self.reading, self.large, now_us=now_us)

    async def run(self, why: str, stop: asyncio.Event, streaming: Callable[[], None]) -> None:
        """Until `stop` (then what is in hand is flushed) or the first error. `streaming` is called when
        a first copy has ended."""
        thresholds = gc.get_threshold()
        gc.set_threshold(GC_OBJECTS, *thresholds[1:])
        try:
            await self._work_until(why, stop, streaming)
        finally:
            gc.set_threshold(*thresholds)
        if not self.reading.steady.torn:
            with suppress(TimeoutError):  # nothing is lost: it is read again
                async with asyncio.timeout(STOP_FLUSH_S):
                    await self._flush()

    async def _work_until(self, why: str, stop: asyncio.Event, streaming: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._flush_loop(), name="flush")
            others = [
                tasks.create_task(self._ended(), name="watch the subscription's line"),
                tasks.create_task(self._look_loop(), name="look for signs"),
                *(
                    tasks.create_task(self._serve(number), name=f"serve notifications {number}")
                    for number in range(SERVERS)
                ),
                tasks.create_task(self.large.run(), name="walk large keys"),
                tasks.create_task(self._scan_loop(why, streaming), name="scan"),
            ]
            if self.backfill is not None:
                others.append(tasks.create_task(self.backfill.run(), name="backfills"))
            await stop.wait()
            self._stopping = True
            self._work.set()
            await end_tasks(*others)

    def wake(self) -> None:
        """Something waits to be flushed."""
        self._work.set()

    @property
    def shadow_rows(self) -> int:
        return self._rows + self.events.rows_added

    @property
    def clock_us(self) -> int | None:
        """The server's clock less ours, the median of the last looks."""
        return sorted(self._clocks)[len(self._clocks) // 2] if self._clocks else None

    @property
    def behind_s(self) -> float:
        """Since when the oldest thing that is not in Kafka yet has been known; 0: there is none."""
        oldest_s = _oldest_s(self._unread_s, self._seen_s, self._in_flight_s)
        return 0.0 if oldest_s is None else max(0.0, self._clock_s() - oldest_s)

    @property
    def _unread_s(self) -> float | None:
        """Since when the oldest key has been known that waits or is being read: not appended yet."""
        return _oldest_s(self.watch.oldest_s, self.large.oldest_s, *self._serving_s)

    # ---- notifications -------------------------------------------------------------------------

    async def _ended(self) -> None:
        raise await self.watch.connection.ended()

    async def _look_loop(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            before_us = self._now_us()
            look = await self.signs.look()
            self._clocks.append(look.server_us - (before_us + self._now_us()) // 2)
            if not self._gaps.pending:
                self._journal.sound_us = self._now_us()

    async def _serve(self, number: int) -> None:
        watch, large, match = self.watch, self.large, self._entities.match
        while True:
            await watch.wait()
            batch = []
            taken = watch.take(BATCH_KEYS)
            if not taken:
                continue
            self._serving_s[number] = taken[0][2]
            for db, key, _ in taken:
                found = match(db, key)
                if found is None:
                    continue
                if (db, key) in large:
                    large.touch(found, scan=False, seen_s=taken[0][2])
                else:
                    batch.append(found)
            if batch:
                for found, _ in await self.reading.keys(batch, scan=False):
                    large.touch(found, scan=False, seen_s=taken[0][2])
                self._worked(taken[0][2])
            self._serving_s[number] = None
            if not watch.pending:
                self._work.set()

    def _worked(self, seen_s: float) -> None:
        """Something may have been appended, of what was noticed at `seen_s`; flush when it is time."""
        if not self._publisher.waiting_records:
            return
        now_s = self._clock_s()
        self._seen_s = seen_s if self._seen_s is None else min(self._seen_s, seen_s)
        if self._appended_s is None:
            self._appended_s = now_s
        due = now_s - self._appended_s >= FLUSH_AFTER_S or self._publisher.waiting_bytes >= FLUSH_BYTES
        if due or not self.watch.pending:
            self._work.set()

    # ---- scans and gaps ------------------------------------------------------------------------

    async def _scan_loop(self, why: str, streaming: Callable[[], None]) -> None:
        """One full scan after the other: at the start, after each gap, and as often as `rescan` says."""
        gaps = self._gaps
        await self._told(why)
        while True:
            async with asyncio.TaskGroup() as tasks:
                abandoning = tasks.create_task(self._abandon_at_gap(), name="abandon the scan at a gap")
                whole = await self.heal.run(why)
                await end_tasks(abandoning)
            if whole:
                await self._scanned(streaming)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._rescan_s):
                        await gaps.wait()
            why = await self._gap() if gaps.pending else "full scan"

    async def _abandon_at_gap(self) -> None:
        """What a scan has read before a gap proves nothing of what is behind it."""
        await self._gaps.wait()
        self.heal.abandon()

    async def _told(self, why: str) -> None:
        """The gaps that the session begins with; its epoch is raised already."""
        for gap in self._gaps.take():
            noted = self._journal.note(gap.reason, gap.detail, self._now_us())
            log.warning("changes may have been missed", reason=gap.reason, detail=gap.detail)
            self.events.gap({**noted.plain(), "state": "open", "epoch": self.position.epoch})

    async def _gap(self) -> str:
        """Note it, raise the epoch, and say it in the topics; gives why all is scanned."""
        found = self._gaps.take()
        await self._raise_epoch()
        for gap in found:
            noted = self._journal.note(gap.reason, gap.detail, self._now_us())
            log.warning("changes may have been missed", reason=gap.reason, detail=gap.detail)
            self.events.gap({**noted.plain(), "state": "open", "epoch": self.position.epoch})
        self._work.set()
        return "; ".join(gap.detail for gap in found)

    async def _raise_epoch(self) -> None:
        """Durable before the first event of it (H21)."""
        look = self.signs.last
        system_id = look.run_id if look is not None else self.position.system_id
        epoch = self.position.epoch + 1
        await self._flush(epoch=epoch, system_id=system_id)
        self.events.begin(epoch, self.position.lsn)

    async def _scanned(self, streaming: Callable[[], None]) -> None:
        """All that was there when the scan began is published, and what is gone is deleted."""
        first = self.position.stage is not Stage.STREAMING
        ended = self.heal.ended
        if first:
            self.events.floors(self.position.since_epoch)
        if self._journal.open:
            self.events.gap(
                {"state": "healed", "epoch": self.position.epoch, "gaps": len(self._journal.open)}
            )
        await self._flush(stage=Stage.STREAMING)
        if ended is not None:
            seconds = (self._now_us() - ended.since_us) / 1e6
            self.last_scan = {"why": ended.why, "keys": ended.keys, "seconds": round(seconds, 3)}
            self.last_scan["gone"] = sum(ended.gone.values())
            log.info("scan complete", **self.last_scan)
        if not self._gaps.pending:
            self._journal.healed(self._now_us())
        if first:
            log.info("first copy complete", source=self.position.source, epoch=self.position.epoch)
            streaming()

    # ---- flushing ------------------------------------------------------------------------------

    async def _wait_for_room(self) -> None:
        if self._publisher.waiting_bytes >= FLUSH_BYTES:
            self._work.set()
        while self._publisher.waiting_bytes >= WAITING_LIMIT_BYTES:
            self._room.clear()
            await self._room.wait()

    async def _flush_loop(self) -> None:
        publisher = self._publisher
        while not self._stopping:
            with suppress(TimeoutError):
                # Not wait_for: until Python 3.12 it loses a cancellation that meets the event's being set.
                soon = publisher.waiting_records or self.watch.first_mark_s is not None
                async with asyncio.timeout(FLUSH_AFTER_S if soon else IDLE_FLUSH_S):
                    await self._work.wait()
            self._work.clear()
            if publisher.waiting_records or self._idle_due() or self._mark_reached():
                await self._flush()

    def _mark_reached(self) -> bool:
        """Whether a fence waits for what a flush would say now."""
        first_s = self.watch.first_mark_s
        if first_s is None:
            return False
        unread_s = self._unread_s
        return unread_s is None or first_s < unread_s

    def _idle_due(self) -> bool:
        """An idle source's clock goes into the position now and then, so that it never goes back."""
        look = self.signs.last
        if look is None or self._clock_s() - self._flushed_s < IDLE_FLUSH_S:
            return False
        if self.behind_s == 0.0:
            self.events.versions.take(look.server_us, 0)
        return self.events.versions.micros > self.position.lsn

    async def _flush(
        self, *, epoch: int | None = None, stage: Stage | None = None, system_id: str | None = None
    ) -> None:
        """One Kafka transaction: what is appended, what the shadow staged of it, and the position."""
        async with self._flushing:
            async with self.reading.steady:
                through_us = self.watch.reached(self._unread_s)
                position = replace(
                    self.position,
                    lsn=self.events.versions.micros,
                    through_us=max(self.position.through_us, through_us),
                    epoch=self.position.epoch if epoch is None else epoch,
                    stage=self.position.stage if stage is None else stage,
                    system_id=self.position.system_id if system_id is None else system_id,
                )
                publishing = self._publisher.flush(position)  # takes the buffers now
                self._shadow.cut(self.position.flush + 1)
                self._in_flight_s, self._seen_s, self._appended_s = self._seen_s, None, None
            self.position = await publishing
            next_offset = max(self._topic.next_offset, self._publisher.next_offset(self._topic.name))
            self._shadow.committed(self.position.flush, next_offset)
            self._in_flight_s = None
            self._flushed_s = self._clock_s()
            self.flushes += 1
        self._room.set()


def _oldest_s(*times_s: float | None) -> float | None:
    return min((s for s in times_s if s is not None), default=None)
