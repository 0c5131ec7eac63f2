"""What apply waits for, which flows have stopped, and what `status` says of both.

A server that is away is waited for with backoff and jitter, the reason in `status`; a flow that cannot
go on leaves the others running; a target that refuses too much pauses until a person has looked (H24).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from consumers.apply.feed import Feed
from consumers.apply.report import Report
from streamer.errors import FatalError, RetryableError, TailraceError
from streamer.status import State, StatusWriter
from streamer.stopping import stopped_within

BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # each with jitter; the last one repeats

log = logging.getLogger(__name__)


class Condition:
    """Of one apply process. Its parts tell it; it tells `status`."""

    def __init__(
        self, flows: list[str], stop: asyncio.Event, status: StatusWriter, feed: Feed, report: Report
    ) -> None:
        self._flows = flows
        self.stop = stop
        self._status = status
        self._feed = feed
        self._report = report
        self.stopped: dict[str, TailraceError] = {}
        self.waiting: dict[str, str] = {}  # what is waited for -> why
        self._paused = ""
        self._jitter = random.Random()

    async def patiently(self, what: str, act: Callable[[], Awaitable[object]]) -> bool:
        """`act` until it does not raise a RetryableError; False when stop came first."""
        failures = 0
        while not self.stop.is_set():
            try:
                await act()
            except RetryableError as error:
                self.wait_for(what, str(error))
                await self.back_off(failures)
                failures += 1
            else:
                self.have(what)
                return True
        return False

    def wait_for(self, what: str, why: str) -> None:
        if what not in self.waiting:
            log.warning("waiting: %s", why)
        self.waiting[what] = why
        self.say()

    def have(self, what: str) -> None:
        """It is there (again)."""
        self.waiting.pop(what, None)
        self.say()

    @property
    def is_stuck(self) -> bool:
        """What is in hand cannot be finished now."""
        return bool(self.waiting or self._paused)

    async def back_off(self, failures: int) -> None:
        seconds = BACKOFF_S[min(failures, len(BACKOFF_S) - 1)] * self._jitter.uniform(0.5, 1.0)
        await stopped_within(self.stop, seconds)

    def pause(self, why: str) -> None:
        """The target takes nothing until a person has looked; empty: it goes on."""
        if why and not self._paused:
            log.error("paused: %s", why)
        if why != self._paused:
            self._paused = why
            self.say()
            if not why:
                log.warning("it goes on: what is refused is below the limit")

    def say(self) -> None:
        if self.stop.is_set():
            self._status.update(state=State.STOPPING)
        elif self.waiting:
            self._status.update(state=State.WAITING, reason="; ".join(self.waiting.values()))
        elif self._paused:
            self._status.update(state=State.ERROR, reason=self._paused)
        elif self.stopped:
            self._status.update(state=State.ERROR, reason="; ".join(map(str, self.stopped.values())))
        else:
            self._status.update(state=State.STREAMING)

    def stop_flow(self, flow: str, error: Exception) -> None:
        """Raises the error when no flow is left."""
        cause = error if isinstance(error, TailraceError) else FatalError(str(error))
        if flow not in self.stopped:
            log.error("flow %s stops: %s", flow, cause)
            self.stopped[flow] = cause
            report = self._report.flows[flow]
            report.state, report.reason = State.ERROR, str(cause)
        self._feed.release({flow})
        self.say()
        if len(self.stopped) == len(self._flows):
            raise cause
