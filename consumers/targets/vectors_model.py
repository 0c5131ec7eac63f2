"""A user's embedding function at work: batches, rate, retries, and whose fault a failure is.

Calls run in a thread of the model's own, one at a time, so that the function needs no locks. Whose fault
it is:

    OSError, TimeoutError, RetryableError    the model's: again with backoff, then TargetUnavailable
    a call that does not end                 the model's: TargetUnavailable and no other call while it runs;
                                             in the end FatalError, as only the process' end ends a thread
    an answer of another shape               the config's: ConfigError with both numbers
    any other exception, an exit             the model's when it fails for a plain word too; else the batch
                                             is halved until the text that it refuses is alone
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

from streamer.caller import Caller, Raised, Running
from streamer.config import Embedding, Flow
from streamer.embedding import PROBE, vectors_of
from streamer.errors import (
    BadRecordError,
    ConfigError,
    FatalError,
    RetryableError,
    TailraceError,
    TargetUnavailable,
)
from streamer.functions import load_function

ATTEMPTS = 4  # of one call, within 2 s: a hiccup; what lasts longer is shown as waiting
BACKOFF_S = 0.2
HUNG_TIMEOUTS = 10  # a call that runs so many times its time limit is not slow: it never ends
HUNG_S = 60.0  # ... and so long at least: an end of the process interrupts the other flows
TRANSIENT = (OSError, TimeoutError, RetryableError)

Vector = str | BadRecordError  # a literal, or why the model refuses the text


class Model:
    """One flow's function. `clock`: of the rate, and of how long a call runs. `stays`: the process goes on
    when the function fails, and tries again."""

    def __init__(
        self,
        flow: Flow,
        limits: Embedding,
        folder: Path,
        *,
        stays: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert flow.embed is not None
        assert flow.dimensions is not None
        self.name = flow.embed
        self.dimensions = flow.dimensions
        self.place = f"flow {flow.name!r}, embed: {flow.embed}"
        self._limits = limits
        self._stays = stays
        function = load_function(flow.embed, folder, where=self.place)
        self._caller = Caller(function, f"embed: {flow.embed}", clock=clock)
        self._clock = clock
        self._free_s = 0.0  # when the rate lets the next text through
        self._jitter = random.Random()
        self._turn = asyncio.Lock()

    async def embed(
        self, texts: Sequence[str], enough: Callable[[], bool] = lambda: False
    ) -> AsyncIterator[tuple[str, Vector]]:
        """Each text with its vector, as they come. Raises TargetUnavailable, ConfigError, FatalError.

        `enough`: asked between two calls whether to leave the rest; a call that is made is paid for.
        """
        size = self._limits.texts
        for start in range(0, len(texts), size):
            if start and enough():
                return
            part = texts[start : start + size]
            for text, vector in zip(part, await self._some(part), strict=True):
                yield text, vector

    async def _some(self, texts: Sequence[str]) -> list[Vector]:
        try:
            return await self._patiently(texts)
        except _Failed as error:
            if not await self._is_well():
                raise self._down(error.cause) from error
            return await self._searched(texts, error)

    async def _searched(self, texts: Sequence[str], error: _Failed) -> list[Vector]:
        """The texts again in halves, down to those that fail alone."""
        if len(texts) == 1:
            cause = error.cause
            return [BadRecordError(f"{self.name} refuses the text: {_words(cause)}")]
        middle = len(texts) // 2
        found: list[Vector] = []
        for half in (texts[:middle], texts[middle:]):
            try:
                found += await self._patiently(half)
            except _Failed as again:
                found += await self._searched(half, again)
        return found

    async def _is_well(self) -> bool:
        try:
            await self._patiently([PROBE])
        except _Failed:
            return False
        return True

    async def _patiently(self, texts: Sequence[str]) -> list[Vector]:
        """Raises _Failed for what is not known to pass."""
        for attempt in range(ATTEMPTS):
            try:
                async with self._turn:
                    await self._wait_for_rate(len(texts))
                    return await self._call(list(texts))
            except _Hangs:
                raise
            except TRANSIENT as error:
                if attempt == ATTEMPTS - 1:
                    raise self._down(error) from error
                await asyncio.sleep(BACKOFF_S * 2**attempt * self._jitter.uniform(0.5, 1))
        raise AssertionError("unreachable")

    async def _wait_for_rate(self, count: int) -> None:
        if not self._limits.rate:
            return
        now_s = self._clock()
        wait_s = self._free_s - now_s
        self._free_s = max(self._free_s, now_s) + count / self._limits.rate
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    async def _call(self, texts: list[str]) -> list[Vector]:
        def vectors(answer: object) -> list[Vector]:
            return vectors_of(answer, texts, self.dimensions, where=self.place)

        try:
            return await self._caller.call(texts, vectors, timeout_s=self._limits.timeout_s)
        except Running:
            raise self._hangs() from None
        except Raised as raised:
            if isinstance(raised.cause, (*TRANSIENT, ConfigError)):
                raise raised.cause from None
            raise _Failed(raised.cause) from raised.cause

    def close(self) -> None:
        self._caller.close()

    def _hangs(self) -> TailraceError:
        runs_s, timeout_s = self._caller.running_s, self._limits.timeout_s
        limit_s = max(HUNG_TIMEOUTS * timeout_s, HUNG_S)
        what = f"a call of the embedding function has been running for {runs_s:.0f} s"
        if not self._stays:
            return _Hangs(
                f"{what} (embedding.timeout is {timeout_s:g} s)",
                where=self.place,
                fix="see what it waits for (a slow one needs a longer embedding.timeout), then again",
            )
        if runs_s > limit_s:
            return FatalError(
                f"{what} and does not end, so that this process does",
                where=self.place,
                fix="give what the function waits for a time limit of its own. `tailrace run` starts the"
                " process again; what was not written is read again",
            )
        return _Hangs(
            f"{what} (embedding.timeout is {timeout_s:g} s); no other is made meanwhile",
            where=self.place,
            fix=f"it goes on by itself when the call ends; after {limit_s:g} s the process is started anew",
        )

    def _down(self, error: BaseException) -> TargetUnavailable:
        return TargetUnavailable(
            f"the embedding function does not answer: {_words(error)}",
            where=self.place,
            fix="it goes on by itself when the function does" if self._stays else "again when it does",
        )


class _Hangs(TargetUnavailable):
    """Another attempt would only say so again."""


class _Failed(Exception):
    """The function raised what nobody knows to pass."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
