"""What one `serve` process sees, for all who look: the heartbeats and the events.

A viewer costs a copy of a frame. It changes nothing, and what goes wrong with it is shown: neither a Kafka
nor a control database that is away ends the process.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson

from consumers import views
from consumers.control.database import Database
from consumers.control.feed import Event, Feed
from consumers.control.samples import Samples
from consumers.dashboard import frames
from consumers.dashboard.stream import Stream
from consumers.heartbeats import Heartbeats
from streamer.config import Config
from streamer.errors import RetryableError
from streamer.logs import Log
from streamer.status import INTERVAL_S, SILENT_AFTER_S, State, StatusRecord, now_us

FRAME_S = 1.0  # as often as heartbeats come
EVENTS_S = 2.0
QUIET_S = 6.0  # our own heartbeat comes each second: without any for so long, nothing gets through
STILL_S = SILENT_AFTER_S - INTERVAL_S  # one interval before all others would be said to be silent
WAL_RATE_S = 60.0
EVENTS_LIMIT = 100

log = Log("dashboard")


class Watch:
    """`own`: this process's heartbeat; `admin`: whether there is an admin key."""

    def __init__(
        self,
        config: Config,
        database: Database,
        heartbeats: Heartbeats,
        own: Callable[[], StatusRecord],
        *,
        admin: bool,
    ) -> None:
        self._config = config
        self.heartbeats = heartbeats
        self._feed = Feed(database)
        self.samples = Samples(database)
        self.own = own
        self._admin = admin
        self._events: list[Event] | None = None
        self._wal: dict[str, deque[tuple[int, int]]] = {}
        self._events_s: float | None = None  # when the control database answered last
        self.events_trouble = "it has not been asked yet"  # why the control database is not
        self.stream = Stream()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._look(), name="dashboard: events")
            tasks.create_task(self._publish(), name="dashboard: frames")

    # What is known

    def status(self) -> views.Status:
        """As `tailrace status` would show it now; built once a second at most."""
        built = self.heartbeats.status()
        quiet = self.heartbeats.why_quiet(STILL_S)
        trouble = self.heartbeats.trouble or (quiet and f"no heartbeat can be read: {quiet}")
        if not trouble:
            return built
        # Before all that is silent by it.
        finding = views.Finding(views.Grade.ERROR, "kafka", trouble)
        return replace(built, findings=[finding, *built.findings])

    def jobs(self) -> list[dict[str, Any]] | None:
        """As the scheduler tells them, which knows what each waits for; else as this process does."""
        elected = self._elected()
        for record in ([elected] if elected is not None else []) + [self.own()]:
            if "jobs" in record.detail:
                return list(record.detail["jobs"])
        return None

    @property
    def scheduler(self) -> str | None:
        elected = self._elected()
        return None if elected is None else elected.instance

    @property
    def events(self) -> list[Event] | None:
        """Open ones first, then the newest; None: not known."""
        return self._events

    @property
    def records(self) -> list[StatusRecord]:
        return self.heartbeats.records

    @property
    def has_read(self) -> bool:
        """Whether a heartbeat has ever come."""
        return self.heartbeats.news_s is not None

    def not_ready(self) -> list[str]:
        """Why what is shown may be old; empty: heartbeats come and the control database answers."""
        now_s, found = time.monotonic(), []
        news_s, trouble = self.heartbeats.news_s, self.heartbeats.trouble
        if news_s is None or now_s - news_s > QUIET_S:
            ago = "yet" if news_s is None else f"for {now_s - news_s:.0f} s"
            found.append(f"no heartbeat has come {ago}{f': {trouble}' if trouble else ''}")
        if self._events_s is None or now_s - self._events_s > QUIET_S:
            found.append(f"the control database does not answer: {self.events_trouble}")
        own = self.own()
        if own.state == State.WAITING:
            found.append(f"no job begins: {own.reason}")
        return [line.split("\n", 1)[0] for line in found]

    def _elected(self) -> StatusRecord | None:
        at_us = now_us()
        for record in [self.own(), *self.records]:
            lives = record.kind == "serve" and not record.ended and not record.silent(at_us)
            if lives and record.detail.get("elected"):
                return record
        return None

    # Reading

    def _weigh(self) -> None:
        """How much WAL the slots keep, over the last minute."""
        for record in self.records:
            wal_bytes = (record.detail.get("slot") or {}).get("wal_bytes")
            if record.kind == "capture" and wal_bytes is not None:
                seen = self._wal.setdefault(record.name, deque())
                if not seen or seen[-1][0] < record.at_us:
                    seen.append((record.at_us, wal_bytes))
                while seen[-1][0] - seen[0][0] > WAL_RATE_S * 1e6:
                    seen.popleft()

    async def _look(self) -> None:
        opened = False
        while True:
            try:
                if not opened:
                    await asyncio.to_thread(self._feed.open)
                    await asyncio.to_thread(self.samples.open)
                    opened = True
                self._events = await asyncio.to_thread(self._last_events)
                self._events_s, self.events_trouble = time.monotonic(), ""
            except RetryableError as error:
                self._events, self.events_trouble = None, str(error)
            await asyncio.sleep(EVENTS_S)

    def _last_events(self) -> list[Event]:
        open_ = self._feed.last(EVENTS_LIMIT, open_only=True)
        over = [event for event in self._feed.last(EVENTS_LIMIT) if event.resolved_us is not None]
        return [*open_, *over]

    # Telling

    async def _publish(self) -> None:
        stream = self.stream
        while True:
            stream.wanted.clear()
            self._weigh()
            if stream.viewers:
                stream.publish(self.frame())
            try:
                async with asyncio.timeout(FRAME_S):
                    await stream.wanted.wait()
            except TimeoutError:
                continue

    def frame(self) -> bytes:
        snapshot = frames.snapshot(
            self.status(),
            jobs=self.jobs(),
            events=self._events,
            enabled=self._config.control.enabled,
            scheduler=self.scheduler,
            admin=self._admin,
            wal_rates={name: _rise_s(seen) for name, seen in self._wal.items()},
        )
        return orjson.dumps(snapshot, option=orjson.OPT_NON_STR_KEYS)


def _rise_s(seen: deque[tuple[int, int]]) -> float | None:
    """Bytes a second, over what has been seen; None: not long enough to tell."""
    if len(seen) < 5:
        return None
    (began_us, before), (ended_us, after) = seen[0], seen[-1]
    seconds = (ended_us - began_us) / 1e6
    return (after - before) / seconds if seconds > 0 else None
