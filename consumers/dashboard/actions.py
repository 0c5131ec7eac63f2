"""The commands that people ask for over HTTP, as processes of their own, and their output.

Owns the processes and their ends; the trail of them is the control database's, what may be asked commands'.
They end with this process. Output is bounded, and passwords are taken out of it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from consumers.asker import ASKED_BY
from consumers.control.actions import Action, Actions, Asked
from consumers.control.database import Database
from consumers.dashboard.commands import DRY_RUN_US
from consumers.schedule.commands import LAUNCH, TAILRACE
from streamer.config import Config
from streamer.errors import EXIT_FINDING, EXIT_OK, ConfigError, RetryableError
from streamer.logs import Log, redact
from streamer.status import now_us

AT_ONCE = 4  # each takes some hundred megabytes and a connection to the servers
OUTPUT_BYTES = 32 * 1024  # kept while it runs: its last words
LOOKS_AT_ONCE = 2  # commands that only read, for an answer that waits for them
LOOK_S = 30.0
LOOK_AGAIN_S = 5.0  # a process takes a second of a core, however many look
LOOK_BYTES = 16 * 2**20
COLUMNS = "120"  # of the tables in its output
NOTE_AGAIN_S = 2.0
END_S = 3.0  # from SIGTERM to SIGKILL when this process ends, which has 7 s for it

log = Log("dashboard")


class Busy(RetryableError):
    """So many run already."""


@dataclass(slots=True)
class _Running:
    asked: Asked
    process: asyncio.subprocess.Process
    output: bytearray = field(default_factory=bytearray)

    @property
    def text(self) -> str:
        return redact(self.output.decode(errors="replace")).rstrip()


class Commands:
    """`run` owns the processes: it ends after they have."""

    def __init__(self, config: Config, database: Database) -> None:
        self._config = config
        self._trail = Actions(database)
        self._opened = False
        self._running: dict[int, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()  # so that of two equal wishes the second joins the first
        self._looks = asyncio.Semaphore(LOOKS_AT_ONCE)
        self._looked: dict[tuple[str, ...], tuple[asyncio.Task[Any], float]] = {}  # and since when

    async def ask(self, asked: Asked, *, after: int | None, needs_dry_run: bool) -> tuple[Action, bool]:
        """The action, and whether it was running already. Raises Busy, ConfigError, RetryableError."""
        trail = await self._ready()
        async with self._starting:
            for number, running in self._running.items():
                if running.asked.words == asked.words:
                    return await self.one(number), True
            if len(self._running) >= AT_ONCE:
                raise Busy(f"{AT_ONCE} commands run already", fix="wait until one has ended, or cancel one")
            if needs_dry_run:
                _check_foretold(asked, await asyncio.to_thread(trail.one, after) if after else None)
            number = await asyncio.to_thread(trail.begin, asked, now_us())
            await self._start(number, asked)
        return await self.one(number), False

    async def one(self, number: int) -> Action:
        """As it is now. Raises ConfigError for a number that is none."""
        trail = await self._ready()
        found = await asyncio.to_thread(trail.one, number)
        if found is None:
            raise ConfigError(f"there is no action {number}", fix="GET /api/actions lists them")
        return self._live(found)

    async def last(self, limit: int, flow: str) -> list[Action]:
        trail = await self._ready()
        return [self._live(each) for each in await asyncio.to_thread(trail.last, limit, flow)]

    async def cancel(self, number: int) -> Action:
        """SIGTERM to the command and what it has started. Of one that has ended, nothing."""
        running = self._running.get(number)
        _signal([running] if running is not None else [], signal.SIGTERM)
        return await self.one(number)

    async def look(self, words: tuple[str, ...]) -> Any:
        """What a command that only reads prints as JSON, one process for all who ask within LOOK_AGAIN_S.
        Raises RetryableError with what it said instead."""
        now_s = time.monotonic()
        for known, (_, at_s) in list(self._looked.items()):
            if now_s - at_s > LOOK_AGAIN_S:
                del self._looked[known]
        if words not in self._looked:
            self._looked[words] = asyncio.create_task(self._look(words), name="look"), now_s
        return await asyncio.shield(self._looked[words][0])

    async def _look(self, words: tuple[str, ...]) -> Any:
        async with self._looks:
            process = await self._process(words, stderr=asyncio.subprocess.PIPE)
            try:
                async with asyncio.timeout(LOOK_S):
                    out, err = await process.communicate()
            except TimeoutError:
                raise RetryableError(
                    f"`tailrace {' '.join(words)}` has not answered within {LOOK_S:g} s",
                    fix="ask again later",
                ) from None
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        if process.returncode in (EXIT_OK, EXIT_FINDING) and len(out) <= LOOK_BYTES:
            with suppress(orjson.JSONDecodeError):
                return orjson.loads(out)
        raise RetryableError(*_said(err))

    async def close(self) -> None:
        """What runs is ended and noted."""
        for look, _ in self._looked.values():
            look.cancel()
        _signal(self._running.values(), signal.SIGTERM)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=END_S)
            _signal(self._running.values(), signal.SIGKILL)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=END_S)

    async def _ready(self) -> Actions:
        if not self._opened:
            await asyncio.to_thread(self._trail.open, now_us())
            self._opened = True
        return self._trail

    def _live(self, action: Action) -> Action:
        running = self._running.get(action.action)
        return action if running is None else replace(action, text=running.text)

    async def _start(self, number: int, asked: Asked) -> None:
        try:
            process = await self._process(asked.words, stderr=asyncio.subprocess.STDOUT, by=asked.by)
        except OSError as error:
            await self._note(number, 127, f"its process cannot be started: {error}")
            return
        running = self._running[number] = _Running(asked, process)
        log.info("command begins", command=" ".join(asked.words), by=asked.by, action=number)
        task = asyncio.create_task(self._end(number, running), name=f"action {number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _process(
        self, words: tuple[str, ...], *, stderr: int, by: str = ""
    ) -> asyncio.subprocess.Process:
        launch = [*LAUNCH, str(os.getpid()), "command", *TAILRACE]
        return await asyncio.create_subprocess_exec(
            *launch,
            *words,
            f"--config={self._config.path.absolute()}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, "COLUMNS": COLUMNS, ASKED_BY: by},
            start_new_session=True,
        )

    async def _end(self, number: int, running: _Running) -> None:
        process = running.process
        assert process.stdout is not None
        while chunk := await process.stdout.read(2**14):
            running.output += chunk
            del running.output[:-OUTPUT_BYTES]
        code = await process.wait()
        log.info("command ended", action=number, exit_code=code)
        await self._note(number, code, running.text)
        del self._running[number]
        self._looked.clear()  # what it has changed is looked at anew

    async def _note(self, number: int, code: int, text: str) -> None:
        """Tried until it is in the database: an open action looks as if it ran."""
        while True:
            try:
                await asyncio.to_thread(self._trail.end, number, code, text, now_us())
                return
            except RetryableError as error:
                log.error("the end of a command waits", action=number, reason=str(error))
                await asyncio.sleep(NOTE_AGAIN_S)


def _signal(running: Iterable[_Running], number: signal.Signals) -> None:
    """To each command and what it has started."""
    for each in list(running):
        if each.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(each.process.pid, number)


def _check_foretold(asked: Asked, dry: Action | None) -> None:
    """Raises ConfigError unless `dry` has just foretold this."""
    fix = "ask for it with `dry_run: true`, read what it says, and give its number in `after`"
    if dry is None:
        raise ConfigError(f"a {asked.kind} is foretold first", fix=fix)
    if not dry.dry_run or dry.form != asked.form:
        raise ConfigError(f"action {dry.action} has not foretold this {asked.kind}", fix=fix)
    if dry.ended_us is None:
        raise ConfigError(f"action {dry.action} has not ended yet", fix="wait for it, and read what it says")
    fine = (EXIT_OK, EXIT_FINDING) if asked.kind == "reconcile" else (EXIT_OK,)  # 1: there is drift to repair
    if dry.exit_code not in fine:
        raise ConfigError(
            f"action {dry.action} has foretold that there is nothing to do, or has failed", fix=fix
        )
    if now_us() - dry.ended_us > DRY_RUN_US:
        raise ConfigError(
            f"action {dry.action} ended more than {DRY_RUN_US // 60_000_000} minutes ago", fix=fix
        )


def _said(err: bytes) -> tuple[str]:
    lines = redact(err.decode(errors="replace")).strip().splitlines()
    with suppress(orjson.JSONDecodeError, KeyError, IndexError):
        return (str(orjson.loads(lines[-1])["error"]["message"]),)
    return (lines[-1] if lines else "the command said nothing",)
