"""A reconcile as a process of its own: nice, slow, and behind every flow's own work.

Owns its command line, its life and what it says; which flow is compared, and when, is first_proofs'.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import orjson

from consumers.children import is_error, read_lines, until_end
from consumers.reconcile.job import Job
from streamer.config import Config

RATE = "50000/s"  # a side; a table of ten million rows takes three minutes, and a server hardly feels it
MAX_LAG = "30s"  # a flow that is behind has more urgent work
NICENESS = 10
REPORT_BYTES = 64 * 2**20  # of a report that is read; one of ten thousand tables has ten
TAIL_LINES = 5  # of its log, for the reason of its end

Line = Callable[[str, str], None]  # (who, line of its log)


@dataclass(frozen=True, slots=True)
class Outcome:
    """`verdict`: of the report, "" where there is none."""

    verdict: str
    reason: str = ""
    run: str = ""


class Comparisons:
    """Of one config. `line`: takes the process's log; `options`: of every command."""

    def __init__(self, config: Config, *, line: Line, options: Sequence[str] = ()) -> None:
        self._config = config
        self._line = line
        self._options = options

    async def run(self, job: Job, stop: asyncio.Event) -> Outcome:
        """To its end, or until `stop`."""
        words = ["reconcile", job.name, "-c", str(self._config.path.absolute()), "--json"]
        words += ["--limit-rate", RATE] if not job.rate else []
        words += ["--max-lag", MAX_LAG] if not job.max_lag_s else []
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "consumers", *words, *self._options, f"--parent={os.getpid()}"),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal is for the supervisor alone
            )
        except OSError as error:
            return Outcome("", f"the process cannot be started: {error.strerror}")
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        return await _Process(process, f"proof:{job.flow.name}", self._line).end(stop)


@dataclass(slots=True)
class _Process:
    """A comparison that runs."""

    process: asyncio.subprocess.Process
    name: str
    line: Line
    report: bytearray = field(default_factory=bytearray)
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))

    async def end(self, stop: asyncio.Event) -> Outcome:
        """When it has ended, by itself or as `stop` was set."""
        assert self.process.stderr is not None
        reading = asyncio.gather(self._read_report(), read_lines(self.process.stderr, self._take))
        code = await until_end(self.process, stop, reading, self.name)
        return outcome_of(code, bytes(self.report), self.tail)

    async def _read_report(self) -> None:
        stream = self.process.stdout
        assert stream is not None
        while chunk := await stream.read(2**16):
            if len(self.report) < REPORT_BYTES:
                self.report += chunk

    def _take(self, text: str) -> None:
        self.tail.append(text)
        if not is_error(text):  # told with the end itself
            self.line(self.name, text)


def outcome_of(code: int, report: bytes, tail: Sequence[str]) -> Outcome:
    """Of an exit code, what was printed, and the last lines of the log."""
    with contextlib.suppress(orjson.JSONDecodeError, KeyError):
        raw = orjson.loads(report)
        reasons = [f"{t['flow']} {t['source']}: {t['reason']}" for t in raw["tables"] if t["reason"]]
        return Outcome(raw["verdict"], reasons[0] if reasons else raw["verdict"], raw["run"])
    for text in reversed(tail):
        if is_error(text):
            with contextlib.suppress(orjson.JSONDecodeError, KeyError):
                return Outcome("", orjson.loads(text)["error"]["message"])
    last = next((text for text in reversed(tail) if text), "no word in its log")
    return Outcome("", f"the comparison ended with exit code {code}: {last}")
