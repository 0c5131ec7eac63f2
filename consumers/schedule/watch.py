"""The loop that watches: in each `tailrace serve`, and in `tailrace run`: each sees the other's silence.

Every watcher looks; the one that holds the lease writes what it sees into the feed of events. Whoever is
frozen loses it, and what it would write when it wakes is refused. Messages are sent by all of them, each
message by one. A look that fails as nobody foresaw is an event itself, and the dead man's ping stops; the
next look comes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from consumers import views
from consumers.alerts.sender import Sender
from consumers.control.database import Database, owner
from consumers.control.feed import Event, Feed, Wrong
from consumers.control.lease import Lease, LeaseLost
from consumers.heartbeats import Heartbeats
from consumers.schedule import alarms
from consumers.schedule.service import Schedule
from consumers.schedule.watchdog import KAFKA_S, START_S, Watchdog
from streamer.commands.brokers import brokers_of
from streamer.config import Config
from streamer.errors import RetryableError, TailraceError
from streamer.logs import Log
from streamer.status import now_us
from streamer.stopping import end_tasks, stopped_within

LOOK_S = 2.0
WATCH_LEASE = "watch"
WATCHER = "watcher"  # the subject of the alarm that looking fails
OPEN = 1_000  # events that are open: more are of one trouble
BLIND_S = 30.0  # without a look: the dead man's ping stops, and somebody outside makes a noise

log = Log("watch")


class Watch:
    """`heartbeats`: the process's, which somebody else keeps reading; else its own, by way of `brokers`."""

    def __init__(
        self,
        config: Config,
        database: Database | None = None,
        *,
        heartbeats: Heartbeats | None = None,
        holder: str = "",
        brokers: Callable[[Config], str] = brokers_of,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """`database`: the process's, if it has one; `holder`: this watcher's name, else that of the process.
        Raises ConfigError."""
        database = database or Database(config)
        self._config = config
        self._is_reader = heartbeats is None
        self._heartbeats = heartbeats or Heartbeats(
            config, database, brokers=brokers, poll_s=LOOK_S, clock_s=clock_s
        )
        self._clock_s = clock_s
        self._holder = holder or owner()
        self._lease = Lease(database, WATCH_LEASE, self._holder)
        self._schedule = Schedule(config, database)
        self._feed = Feed(database)
        self._dog = Watchdog(config)
        self._began_s = clock_s()
        self._scheduler: list[Wrong] = []  # of the last heartbeats that were read
        self._wrote_s: float | None = None  # when the feed was last right
        self._is_open = False
        self._held = False
        self._trouble = ""

    @property
    def is_watching(self) -> bool:
        """Whether this process is the one that tells, and does."""
        wrote_s = self._wrote_s
        return self._held and wrote_s is not None and self._clock_s() - wrote_s < BLIND_S

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. Raises FatalError, unless it was opened before."""
        sender = Sender(self._config, self._feed, is_watching=lambda: self.is_watching)
        while not self._is_open:
            try:
                await asyncio.to_thread(self.open)
            except RetryableError as error:
                self._complain(error)
                if await stopped_within(stop, LOOK_S):
                    return
        async with asyncio.TaskGroup() as tasks:
            reading = (
                tasks.create_task(self._heartbeats.run(), name="heartbeats") if self._is_reader else None
            )
            tasks.create_task(sender.run(stop), name="alerts")
            while not await stopped_within(stop, LOOK_S):
                await self._turn()
            if reading is not None:
                await end_tasks(reading)
        try:
            await asyncio.to_thread(self._lease.give_up)
        except RetryableError as error:
            self._complain(error)

    def open(self) -> None:
        """Makes what is not there in the control database. Raises FatalError, RetryableError."""
        self._lease.open()
        self._schedule.open()
        self._feed.open()
        self._is_open = True

    async def _turn(self) -> None:
        try:
            begun, over = await asyncio.to_thread(self._look, self._heartbeats.heard(KAFKA_S))
        except LeaseLost:
            self._held = False
            log.warning("another process watches now")
            return
        except TailraceError as error:
            self._complain(error)
            return
        except Exception as error:  # noqa: BLE001 - a supervisor: it is logged, and told
            begun, over = await self._failed(error)
        else:
            self._trouble = ""
        for event in begun:
            _say(log.warning, event.text, event)
        for event in over:
            _say(log.info, f"it is over: {event.text}", event)

    async def _failed(self, error: Exception) -> tuple[Sequence[Event], Sequence[Event]]:
        """The alarm that nobody looks; those that are open stay."""
        text = f"the watcher fails at what it sees: {error!r}: see its log, and report it"
        if text != self._trouble:
            log.exception("nothing is watched: please report it with these lines")
        self._trouble = text
        try:
            return await asyncio.to_thread(self._note_failure, Wrong("stalled", WATCHER, text))
        except (LeaseLost, TailraceError):
            return (), ()

    def _note_failure(self, failure: Wrong) -> tuple[Sequence[Event], Sequence[Event]]:
        if not self._held:
            return (), ()
        open_ = [Wrong(each.rule, each.subject, each.text) for each in self._feed.last(OPEN, open_only=True)]
        wrong = [each for each in open_ if each.subject != WATCHER]
        return self._feed.note([*wrong, failure], self._holder, now_us(), self._lease)

    def _look(self, status: views.Status | None) -> tuple[Sequence[Event], Sequence[Event]]:
        """Also by one without the lease: when it takes it, it knows since when things are wrong."""
        held = self._lease.beat()
        now_s = self._clock_s()
        if held and not self._held:
            events = self._feed.last(OPEN, open_only=True)
            self._dog.adopt([Wrong(each.rule, each.subject, each.text) for each in events], now_s)
        self._held = held
        if status is not None:
            self._scheduler = self._of_scheduler(status)
        kafka = self._why_blind(now_s) if status is None else ""
        schedule = [*self._of_jobs(), *self._scheduler]
        wrong = self._dog.look(status, schedule, now_s, kafka=kafka)
        if not held:
            return (), ()
        found = self._feed.note(wrong, self._holder, now_us(), self._lease)
        self._wrote_s = now_s
        return found

    def _why_blind(self, now_s: float) -> str:
        """Why no heartbeat comes; empty while one is waited for."""
        if self._heartbeats.news_s is not None:
            return self._heartbeats.why_quiet(KAFKA_S)
        is_late = now_s - self._began_s >= START_S + KAFKA_S
        return (self._heartbeats.trouble or "none has come yet") if is_late else ""

    def _of_jobs(self) -> list[Wrong]:
        if not alarms.runs_jobs(self._config):
            return []
        return alarms.of_jobs(self._schedule.plans(), self._schedule.jobs.states(), datetime.now(UTC))

    def _of_scheduler(self, status: views.Status) -> list[Wrong]:
        if not alarms.runs_jobs(self._config):
            return []
        return alarms.of_scheduler(self._heartbeats.records, self._config.name, status.at_us)

    def _complain(self, error: TailraceError) -> None:
        if str(error) != self._trouble:
            log.error("nothing is watched", reason=str(error))
        self._trouble = str(error)


def _say(tell: Callable[..., None], text: str, event: Event) -> None:
    tell(text.partition("\n")[0], number=event.event, rule=event.rule, subject=event.subject)
