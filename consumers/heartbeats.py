"""What one process reads of all the others, for all in it who ask: their heartbeats, and a status of them.

Owns the one reader of the status topic and the one build of a status: who looks costs neither. It changes
nothing, and what goes wrong with reading is told, not raised: it is tried again until it goes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from consumers import views
from consumers.control.database import Database
from consumers.last_proofs import LastProofs
from streamer.changes.topics import status_topic
from streamer.commands.brokers import brokers_of
from streamer.config import Config
from streamer.errors import TailraceError
from streamer.logs import Log
from streamer.status import StatusReader, StatusRecord, now_us

POLL_S = 1.0  # as often as heartbeats come
FRESH_S = 1.5  # of a status while nothing is read: ages in it are shown
RETRY_S = 2.0

log = Log("heartbeats")


class Heartbeats:
    """`brokers`: asked for at each connection, as an embedded Kafka has an address only once it runs.
    `database`: the process's, if it has one."""

    def __init__(
        self,
        config: Config,
        database: Database | None = None,
        *,
        brokers: Callable[[Config], str] = brokers_of,
        poll_s: float = POLL_S,
        clock_s: Callable[[], float] = time.monotonic,
        clock_us: Callable[[], int] = now_us,
    ) -> None:
        self._config = config
        self._brokers = brokers
        self._poll_s = poll_s
        self._clock_s = clock_s
        self._clock_us = clock_us
        self._plan = views.Plan.of(config)
        self._last = LastProofs(config, database)
        self._proofs: dict[str, dict[str, Any]] = {}
        self._status: views.Status | None = None
        self._status_s = 0.0
        self._heard: views.Status | None = None
        self._heard_us = 0  # this machine's time of the last news
        self._beats: list[tuple[str, str, int]] = []
        self.records: list[StatusRecord] = []
        self.trouble = "nothing has been read yet"  # why Kafka is not heard; empty: it is
        self.read_s: float | None = None  # when the topic was read last, on this clock
        self.news_s: float | None = None  # when a heartbeat came last

    async def run(self) -> None:
        """Until cancelled."""
        topic, security = status_topic(self._config.name), self._config.kafka.security
        while True:
            try:
                async with StatusReader(self._brokers(self._config), security, topic) as reader:
                    await self._read(reader)
            except TailraceError as error:  # a topic of a newer version, too
                if str(error) != self.trouble:
                    log.warning("heartbeats cannot be read", reason=str(error))
                self.trouble = str(error)
                await asyncio.sleep(min(RETRY_S, self._poll_s * 2))

    async def _read(self, reader: StatusReader) -> None:
        await reader.poll()
        self.take(reader.records())
        await reader.prove_silence()  # once: what comes later is known to be of now
        while True:
            self.take(reader.records())
            self._proofs = await self._last.now()
            await asyncio.sleep(self._poll_s)
            await reader.poll()

    def take(self, records: list[StatusRecord]) -> None:
        self.records, self.trouble, self.read_s = records, "", self._clock_s()
        beats = [(record.part, record.instance, record.at_us) for record in records]
        if beats != self._beats:
            self._beats, self.news_s, self._heard_us = beats, self.read_s, self._clock_us()
        self._status = self._heard = None

    def status(self) -> views.Status:
        """As `tailrace status` would show it now; built once a reading."""
        now_s = self._clock_s()
        if self._status is None or now_s - self._status_s >= FRESH_S:
            self._status = views.build(self._config, self.records, self._clock_us(), self._proofs, self._plan)
            self._status_s = now_s
        return self._status

    def heard(self, limit_s: float) -> views.Status | None:
        """The same as of when a heartbeat came last, our own too; None: that was longer ago. Who is
        silent is so beside others that speak: while none gets through, it is Kafka that stands still."""
        if self.news_s is None or (for_s := self._clock_s() - self.news_s) >= limit_s:
            return None
        if for_s < FRESH_S:
            return self.status()
        if self._heard is None:
            self._heard = views.build(self._config, self.records, self._heard_us, self._proofs, self._plan)
        return self._heard

    def why_quiet(self, limit_s: float) -> str:
        """Why no heartbeat has come for so long; empty: one has, or none ever did."""
        if self.news_s is None or (for_s := self._clock_s() - self.news_s) < limit_s:
            return ""
        return self.trouble or (
            f"none has come for {for_s:.0f} s, not even this process's own: see whether Kafka's brokers run"
            " and take records"
        )
