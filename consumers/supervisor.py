"""`tailrace run`: one process a part, started, watched and started again.

Owns the children's lives and nothing of their work. A part that falls is started again with a growing
wait; one that ends with an error which only a person can mend (exit code 64, a fatal error) is tried
again slowly, so that it goes on by itself once that is mended, and never in a hot loop. The other
parts go on meanwhile. Children end with this process, however it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TextIO

import orjson

from consumers.children import is_error, read_lines, until_end
from streamer.errors import EXIT_USAGE, FatalError, TailraceError
from streamer.sandbox import KafkaServer, SandboxError
from streamer.status import now_us
from streamer.stopping import stopped_within

BACKOFF_FIRST_S = 0.2  # one fall is an accident: it is back before somebody looks
BACKOFF_LIMIT_S = 30.0  # many are a state: the log stays readable, and a mended server is soon noticed
HEALTHY_S = 60.0  # a process that ran so long begins with the first wait again
SLOW_RETRY_S = 30.0  # after an error that a person must mend
KAFKA_STOP_S = 8.0
KAFKA_POLL_S = 0.5
TAIL_LINES = 20  # kept of a child's log, for the reason of its end
FOR_A_PERSON = {"ConfigError", "FatalError", "BadRecordError"}  # trying again at once would give the same

Line = Callable[[str, str], None]  # (part, line of its log)


@dataclass(frozen=True, slots=True)
class PartState:
    """A part as seen from outside; `state`: starting | running | backoff | error | stopping | stopped."""

    part: str
    state: str = "starting"
    pid: int | None = None
    restarts: int = 0
    reason: str = ""
    started_us: int | None = None
    since_us: int = 0
    next_try_us: int | None = None

    def plain(self) -> dict[str, Any]:
        return {
            "part": self.part,
            "state": self.state,
            "pid": self.pid,
            "restarts": self.restarts,
            "reason": self.reason,
            "started_us": self.started_us,
            "since_us": self.since_us,
            "next_try_us": self.next_try_us,
        }


Changed = Callable[[PartState], None]


class Backoff:
    """How long to wait before the next start."""

    def __init__(self, first_s: float = BACKOFF_FIRST_S, limit_s: float = BACKOFF_LIMIT_S) -> None:
        self._first_s = first_s
        self._limit_s = limit_s
        self._next_s = first_s

    def after(self, lasted_s: float, *, for_a_person: bool) -> float:
        if for_a_person:
            return SLOW_RETRY_S
        if lasted_s >= HEALTHY_S:
            self._next_s = self._first_s
        wait_s = self._next_s
        self._next_s = min(self._next_s * 2, self._limit_s)
        return wait_s


class Part(Protocol):
    """Something that is kept running until `stop`."""

    @property
    def state(self) -> PartState: ...

    async def keep(self, stop: asyncio.Event) -> None: ...


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended."""

    reason: str
    for_a_person: bool = False


class Child:
    """A part that is a process of its own: `python -m consumers <arguments>`."""

    def __init__(self, part: str, arguments: list[str], *, changed: Changed, line: Line) -> None:
        self.state = PartState(part, since_us=now_us())
        self._arguments = arguments
        self._changed = changed
        self._line = line
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    async def keep(self, stop: asyncio.Event) -> None:
        """Until `stop` is set and the process has ended. Cancelled: the process is killed at once."""
        backoff = Backoff()
        while not stop.is_set():
            began = time.monotonic()
            ending = await self._run_once(stop)
            if ending is None:
                break
            wait_s = backoff.after(time.monotonic() - began, for_a_person=ending.for_a_person)
            self._set(
                state="error" if ending.for_a_person else "backoff",
                pid=None,
                reason=ending.reason,
                next_try_us=now_us() + int(wait_s * 1e6),
            )
            await stopped_within(stop, wait_s)
            if not stop.is_set():
                self.state = replace(self.state, restarts=self.state.restarts + 1, next_try_us=None)
        self._set(state="stopped", pid=None, next_try_us=None)

    async def _run_once(self, stop: asyncio.Event) -> Ending | None:
        """One process from start to end; None when it ended because it was asked to."""
        self._tail.clear()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "consumers",
                *self._arguments,
                f"--parent={os.getpid()}",
                f"--restarts={self.state.restarts}",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal is for the supervisor alone
            )
        except OSError as error:
            return Ending(f"the process cannot be started: {error.strerror}")
        reason = first_line(self.state.reason)  # what mends it is no advice any more: it runs
        self._set(state="running", pid=process.pid, started_us=now_us(), reason=reason)
        assert process.stderr is not None
        part = self.state.part
        reading = asyncio.create_task(read_lines(process.stderr, self._take), name=f"log of {part}")
        code = await until_end(process, stop, reading, part, stopping=lambda: self._set(state="stopping"))
        return None if stop.is_set() else self._ending(code)

    def _take(self, text: str) -> None:
        self._tail.append(text)
        if not is_error(text):  # the reason of its end: told with the end itself
            self._line(self.state.part, text)

    def _ending(self, code: int) -> Ending:
        if code == -signal.SIGALRM:
            return Ending("one call kept the whole process for too long: its stack is in the log")
        if code < 0:
            return Ending(f"killed by {signal.Signals(-code).name}")
        for text in reversed(self._tail):
            if is_error(text):
                with contextlib.suppress(orjson.JSONDecodeError, KeyError):
                    error = orjson.loads(text)["error"]
                    return Ending(error["message"], for_a_person=bool(FOR_A_PERSON & set(error["kinds"])))
        if code == 0:
            return Ending("it ended by itself without an error")
        last = next((text for text in reversed(self._tail) if text), "no word in its log")
        return Ending(f"ended with exit code {code}: {last}", code == EXIT_USAGE)

    def _set(self, **changes: Any) -> None:
        self.state = _changed(self.state, changes)
        self._changed(self.state)


def first_line(reason: str) -> str:
    """What happened, without what a person was to do about it."""
    return reason.split("\n", 1)[0]


def _changed(before: PartState, changes: dict[str, Any]) -> PartState:
    if changes.get("state", before.state) != before.state:
        changes["since_us"] = now_us()
    return replace(before, **changes)


class EmbeddedKafka:
    """The Kafka beside `tailrace run`: one node, its data below the config's folder."""

    def __init__(self, folder: Path, *, changed: Changed) -> None:
        self.state = PartState("kafka:embedded", since_us=now_us())
        self.ready = asyncio.Event()
        self._folder = folder
        self._changed = changed
        self._server = KafkaServer(folder, keep=True)

    async def keep(self, stop: asyncio.Event) -> None:
        """Until `stop`; then it is stopped in good order."""
        backoff = Backoff()
        try:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    await self._run_once(stop)
                    reason = "Kafka ended by itself"
                except TailraceError as error:
                    reason = str(error)
                    await asyncio.to_thread(self._server.close)
                    self._server = KafkaServer(self._folder, keep=True)
                if stop.is_set():
                    break
                wait_s = backoff.after(time.monotonic() - began, for_a_person=False)
                self._set(state="backoff", pid=None, reason=reason, next_try_us=now_us() + int(wait_s * 1e6))
                await stopped_within(stop, wait_s)
                self.state = replace(self.state, restarts=self.state.restarts + 1)
        finally:
            self._set(state="stopping")
            with contextlib.suppress(SandboxError):  # its guardian is gone, and Kafka with it
                await asyncio.to_thread(self._server.stop, KAFKA_STOP_S)
            await asyncio.to_thread(self._server.close)
            self._set(state="stopped", pid=None, next_try_us=None)

    async def _run_once(self, stop: asyncio.Event) -> None:
        await asyncio.to_thread(self._server.start)
        pid = await asyncio.to_thread(lambda: self._server.pid)
        reason = first_line(self.state.reason)
        self._set(state="running", pid=pid, started_us=now_us(), next_try_us=None, reason=reason)
        self.ready.set()
        while not await stopped_within(stop, KAFKA_POLL_S):
            if not await asyncio.to_thread(lambda: self._server.running):
                return

    def _set(self, **changes: Any) -> None:
        self.state = _changed(self.state, changes)
        self._changed(self.state)


class Supervisor:
    """All parts of one config. `run` returns when `stop` is set and every part has ended."""

    def __init__(self, parts: list[Child], kafka: EmbeddedKafka | None = None) -> None:
        self._parts = parts
        self._kafka = kafka

    def states(self) -> dict[str, PartState]:
        parts: list[Part] = [*([self._kafka] if self._kafka else []), *self._parts]
        return {part.state.part: part.state for part in parts}

    async def run(self, stop: asyncio.Event, *, farewell: Callable[[], Awaitable[None]]) -> None:
        """Kafka first, and last to go: `farewell` is awaited when the children have ended and it is there."""
        kafka_stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            if self._kafka is not None:
                tasks.create_task(self._kafka.keep(kafka_stop), name="keep kafka")
                await _either(self._kafka.ready, stop)
            children = [tasks.create_task(p.keep(stop), name=f"keep {p.state.part}") for p in self._parts]
            await stop.wait()
            if children:
                await asyncio.wait(children)
            await farewell()
            kafka_stop.set()


async def _either(first: asyncio.Event, second: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in (first, second)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


@contextmanager
def only_one(folder: Path, name: str) -> Iterator[None]:
    """A lock that two `tailrace run` of one config in one folder share. Raises FatalError for the second.

    The kernel drops it with the process, so nothing is left to be cleaned up after a crash.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"run-{name}.lock"
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FatalError(
                f"`tailrace run` of {name} is running here already, as process {_holder(file)}",
                where=str(path),
                fix="see it with `tailrace status`, or stop it and start again; "
                "for a second one on this machine, give the config another `name` and folder",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read(20).strip() or "unknown"
