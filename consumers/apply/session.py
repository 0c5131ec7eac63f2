"""The target's session: one user at a time, opened again when it has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from consumers.apply.condition import Condition
from consumers.targets.base import Target
from streamer.errors import ConfigError, FatalError, RetryableError, TailraceError, TargetUnavailable
from streamer.stopping import end_tasks

TARGET = "target"  # what is waited for
TURN_S = 2.0  # for the batch in the target; the keeper has other things to do than to wait for a slow one


class Session:
    def __init__(self, target: Target, condition: Condition) -> None:
        self.target = target
        self._condition = condition
        self._lock = asyncio.Lock()
        self.since_s: float | None = None  # when who uses it now began, by time.monotonic()

    @property
    def is_busy(self) -> bool:
        return self._lock.locked()

    async def open(self) -> bool:
        """At start; False when stop came first. Raises ConfigError, FatalError.

        The keeper runs already: it, too, would open what takes long to open, and close it for this one.
        """

        async def once() -> None:
            async with self.held() as target:
                await target.open()

        return await self._condition.patiently(TARGET, once)

    @asynccontextmanager
    async def held(self) -> AsyncIterator[Target]:
        async with self._lock, self._timed():
            yield self.target

    @asynccontextmanager
    async def _timed(self) -> AsyncIterator[None]:
        self.since_s = time.monotonic()
        try:
            yield
        finally:
            self.since_s = None

    async def patiently(
        self,
        act: Callable[[Target], Awaitable[None]],
        meanwhile: Callable[[], Awaitable[None]],
        every_s: float,
    ) -> bool:
        """`act` until it succeeds, with a session that has not ended; `meanwhile` every so often until then.
        False when stop came first."""

        async def once() -> None:
            async with self._lock:
                await self._act(act)

        task = asyncio.create_task(self._condition.patiently(TARGET, once), name="apply: target")
        try:
            while not (await asyncio.wait([task], timeout=every_s))[0]:
                await meanwhile()
            return task.result()
        finally:
            await end_tasks(task)

    async def shortly(self, act: Callable[[Target], Awaitable[None]]) -> TailraceError | None:
        """`act` once, and once more with a new session; the error when it has to wait for another time. A
        session that is in use for long is left alone: another time, too. A store that may not be opened (it
        is another's by now) is waited for here; with the next batch it ends the process."""
        try:
            async with asyncio.timeout(TURN_S):
                await self._lock.acquire()
        except TimeoutError:
            return None
        try:
            await self._act(act)
        except (RetryableError, ConfigError, FatalError) as error:
            return error
        finally:
            self._lock.release()
        return None

    async def _act(self, act: Callable[[Target], Awaitable[None]]) -> None:
        """Once more with a new session, when this one has ended."""
        async with self._timed():
            try:
                await act(self.target)
            except TargetUnavailable:
                await self.target.open()
                await act(self.target)
