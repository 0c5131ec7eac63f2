"""A function of the user's own, called in a thread of its own: a call that never ends holds up nobody else.

Owns how it is called and what a call may do: hang, exit, raise what the event loop takes for its own
(CancelledError, StopIteration, KeyboardInterrupt). All of that comes back as a value. What it means belongs
to the caller of the caller. The thread is a daemon: the process ends without waiting for it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

CANCELLED_S = 0.5  # what is awaited is cancelled at its time limit, and has so long to end

T = TypeVar("T")
_Outcome = tuple[Any, BaseException | None]
_Task = Callable[[asyncio.Runner], None]


class Raised(Exception):
    """What the function raised, which may be no Exception."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Running(Exception):
    """A call is past its time limit and still runs: no other is made meanwhile."""


class Caller:
    """One function, one call at a time. What it gives to be awaited is awaited in its thread, too."""

    def __init__(
        self, function: Callable[..., Any], name: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._function = function
        self._name = name
        self._clock = clock
        self._since_s: float | None = None  # when the call began that runs
        self._tasks: SimpleQueue[_Task | None] | None = None

    @property
    def running_s(self) -> float:
        """How long the call runs that runs; 0: none does."""
        since_s = self._since_s
        return 0.0 if since_s is None else self._clock() - since_s

    async def call(self, argument: Any, convert: Callable[[Any], T], *, timeout_s: float) -> T:
        """What `convert`, in the thread, makes of the answer. Raises Raised; Running, also when it is this
        call that does not end in time."""
        if self._since_s is not None:
            raise Running
        if self._tasks is None:
            self._tasks = SimpleQueue()
            Thread(target=_work, args=(self._tasks,), name=self._name, daemon=True).start()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[_Outcome] = loop.create_future()

        def task(runner: asyncio.Runner) -> None:
            outcome = self._outcome(runner, argument, convert, timeout_s)
            self._since_s = None
            if not loop.is_closed():
                loop.call_soon_threadsafe(_give, done, outcome)

        self._since_s = self._clock()
        self._tasks.put(task)
        try:
            async with asyncio.timeout(timeout_s + CANCELLED_S):
                value, error = await done
        except TimeoutError:
            raise Running from None
        if error is not None:
            raise Raised(error) from error
        converted: T = value
        return converted

    def _outcome(
        self, runner: asyncio.Runner, argument: Any, convert: Callable[[Any], Any], timeout_s: float
    ) -> _Outcome:
        try:
            answer = self._function(argument)
            if isawaitable(answer):
                answer = runner.run(_within(answer, timeout_s))
            return convert(answer), None
        except BaseException as error:  # noqa: BLE001 - an exit or an interrupt of the function's is its failure
            return None, error

    def close(self) -> None:
        """The thread ends after the call that it has."""
        tasks, self._tasks = self._tasks, None
        if tasks is not None:
            tasks.put(None)


async def _within(answer: Awaitable[Any], timeout_s: float) -> Any:
    async with asyncio.timeout(timeout_s):
        return await answer


def _give(done: asyncio.Future[_Outcome], outcome: _Outcome) -> None:
    if not done.done():
        done.set_result(outcome)


def _work(tasks: SimpleQueue[_Task | None]) -> None:
    with asyncio.Runner() as runner:
        while (task := tasks.get()) is not None:
            task(runner)
