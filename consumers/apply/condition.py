"""What apply waits for, which flows have stopped, and what `status` says of both.

A server that is away is waited for with backoff and jitter, the reason in `status`; a flow that cannot
go on leaves the others running; a target that refuses too much pauses until a person has looked (H24).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable

from consumers.apply.feed import Feed
from consumers.apply.report import STALLED, Report
from consumers.targets.base import RefusedRow
from streamer.errors import ConfigError, FatalError, RetryableError, TailraceError
from streamer.status import State, StatusWriter
from streamer.stopping import stopped_within

BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # each with jitter; the last one repeats
RETRY_STOPPED_S = 15.0  # a flow that a person must mend: soon after that, and seldom enough to cost nothing
RETRY_STORE_S = (0.5, 1.0, 2.0, 5.0, RETRY_STOPPED_S)  # one whose table is gone: it may be back any moment
PROOF_S = 3.0  # a flow that is tried again, has written since, and did not stop for so long runs
MENDABLE = (ConfigError, RefusedRow, RetryableError)  # what a person may mend in the target while apply runs

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
        self._tried: dict[str, TailraceError] = {}  # run again, and have yet to prove it
        self._tried_s: dict[str, float] = {}
        self._due_s: dict[str, float] = {}  # when stopped ones are to be tried again
        self._failures: dict[str, int] = {}  # of flows that wait for the store, since they ran
        self._written: set[str] = set()
        self.waiting: dict[str, str] = {}  # what is waited for -> why
        self._paused = ""
        self._jitter = random.Random()

    def met(self, store: str) -> None:
        """The id of the target, which tells it from another one of the same name."""
        self._status.met(store)

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
        elif troubled := {**self._tried, **self.stopped}:
            reasons = (self._report.flows[flow].reason for flow in troubled)
            waits = all(isinstance(cause, RetryableError) for cause in troubled.values())
            state = State.WAITING if waits else State.ERROR
            self._status.update(state=state, reason="; ".join(reasons))
        else:
            self._status.update(state=State.STREAMING)

    def stop_flow(self, flow: str, error: Exception) -> None:
        """Raises the error when no flow is left. One that waits for the store (a RetryableError) is left."""
        cause = error if isinstance(error, TailraceError) else FatalError(str(error))
        if flow not in self.stopped:
            waits = isinstance(cause, RetryableError)
            if str(self._tried.pop(flow, "")) != str(cause):
                self._failures.pop(flow, None)
                log.log(logging.WARNING if waits else logging.ERROR, "flow %s stops: %s", flow, cause)
            self.stopped[flow] = cause
            self._due_s[flow] = time.monotonic() + self._rest_s(flow, cause)
            report = self._report.flows[flow]
            report.state, report.reason = STALLED if waits else State.ERROR, _reason(cause)
            # With what the process says goes whose trouble it is, or it would be every flow's.
            self._status.update(detail=self._report.detail())
        self._feed.release({flow})
        self.say()
        some_wait = any(isinstance(known, RetryableError) for known in self.stopped.values())
        if len(self.stopped) == len(self._flows) and not some_wait:
            raise cause

    def leave(self, flows: Iterable[str]) -> None:
        """Paused ones: what has stopped them is judged anew when they go on."""
        for flow in flows:
            self.stopped.pop(flow, None)
            self._tried.pop(flow, None)
            self._failures.pop(flow, None)

    def due(self) -> list[str]:
        """Stopped flows that a person may have mended meanwhile: they are to be tried again."""
        now_s = time.monotonic()
        return [
            f for f, cause in self.stopped.items() if isinstance(cause, MENDABLE) and self._due_s[f] <= now_s
        ]

    def _rest_s(self, flow: str, cause: TailraceError) -> float:
        """How long it is left alone."""
        if not isinstance(cause, RetryableError):
            return RETRY_STOPPED_S
        failures = self._failures.get(flow, 0)
        self._failures[flow] = failures + 1
        return RETRY_STORE_S[min(failures, len(RETRY_STORE_S) - 1)] * self._jitter.uniform(0.5, 1.0)

    def try_again(self, flow: str) -> None:
        """It runs; `status` shows its error until it has proved that."""
        self._tried[flow] = self.stopped.pop(flow)
        self._tried_s[flow] = time.monotonic()
        self._written.discard(flow)

    def has_written(self, flows: set[str]) -> None:
        self._written |= flows & self._tried.keys()

    def prove(self) -> None:
        """Now and then: flows that were tried again, and run, are well."""
        before_s = time.monotonic() - PROOF_S
        for flow in [f for f in self._tried if f in self._written and self._tried_s[f] <= before_s]:
            del self._tried[flow]
            self._failures.pop(flow, None)
            report = self._report.flows[flow]
            report.state, report.reason = State.STREAMING, ""
            log.warning("flow %s goes on", flow)


def _reason(cause: TailraceError) -> str:
    if isinstance(cause, RetryableError) or not isinstance(cause, MENDABLE):
        return str(cause)  # the first says by itself that it goes on
    again = f"tried again every {RETRY_STOPPED_S:.0f} s: mended in the target, it goes on by itself"
    return f"{cause}\n  {again}; a changed config needs a restart"
