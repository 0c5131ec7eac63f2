"""The demo from the first server to the verdict.

Owns the order of things: servers, config, `tailrace run` as a process, the shop's work, two kills, the
wait until all is in the target, the comparison. Every wait is bounded, and says what it waited for.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import yaml

import consumers
from consumers.demo import shop
from consumers.demo.outcome import Outcome
from consumers.demo.screen import Screen
from consumers.demo.tally import KINDS, Tally
from consumers.demo.verdict import TableName, Verdict, compare
from consumers.demo.workload import BIG_AT, Workload
from streamer.changes.lsn import parse_lsn
from streamer.changes.topics import status_topic
from streamer.errors import KafkaUnavailable, TailraceError
from streamer.sandbox import Sandbox
from streamer.sandbox.server import tail_of
from streamer.status import StatusReader

NAME = "demo"
SOURCE = "shop"
TARGET = "copy"
TARGET_SCHEMA = "mirror"

START_LIMIT_S = 60.0  # two imports of Python and the first rows; on a loaded machine ten times the usual
POLL_S = 0.25
KILL_AT = 0.42  # of the running time: shortly after the large transaction has begun its way
STEADY_UNTIL = BIG_AT - 0.03  # the latency of the quiet part is read just before the large transaction
LOG_LINES = 25


class DemoError(TailraceError):
    """The demo could not be carried through; the message ends with the log of `tailrace run`."""


@dataclass(frozen=True, slots=True)
class Running:
    """What --keep leaves running."""

    urls: dict[str, Any]
    folder: Path  # of the servers, which goes with them
    config: Path
    log: Path
    supervisor_pid: int
    guardian_pid: int


class Demo:
    """One run; `sandbox` is started and belongs to the caller."""

    def __init__(
        self,
        sandbox: Sandbox,
        screen: Screen,
        *,
        seconds: float,
        seed: int,
        began_s: float,
        catch_up_s: float,
        config: Path | None = None,
    ) -> None:
        """`began_s`: when the command was started, by time.monotonic(). `catch_up_s`: how long the last
        change may take to arrive."""
        self.outcome = Outcome(seed=seed, seconds=seconds)
        self._sandbox = sandbox
        self._config_path = config.absolute() if config else sandbox.folder / "tailrace.yaml"
        self._screen = screen
        self._seconds = seconds
        self._seed = seed
        self._began_s = began_s
        self._catch_up_s = catch_up_s
        self._tally = Tally({table: f"public.{table}" for table in shop.TABLES})
        self._killed: dict[str, int] = {}
        self._supervisor = 0
        self._what = ""

    @property
    def source_url(self) -> str:
        return self._sandbox.postgres[0].url

    @property
    def target_url(self) -> str:
        return self._sandbox.postgres[1].url

    @property
    def brokers(self) -> str:
        return self._sandbox.kafka.bootstrap

    @property
    def log_path(self) -> Path:
        return self._sandbox.folder / "tailrace.log"

    def running(self) -> Running:
        return Running(
            urls={"source": self.source_url, "target": self.target_url, "kafka": self.brokers},
            folder=self._sandbox.folder,
            config=self._config_path,
            log=self.log_path,
            supervisor_pid=self._supervisor,
            guardian_pid=self._sandbox.guardian.pid,
        )

    async def run(self) -> Outcome:
        outcome = self.outcome
        workload = Workload(self.source_url, seed=self._seed, seconds=self._seconds)
        await workload.prepare()
        self._start_supervisor()
        async with StatusReader(self.brokers, None, status_topic(NAME)) as reader:
            watching = asyncio.create_task(self._watch(reader), name="demo status")
            try:
                await self._until("the first rows are in the target", self._first_rows_there, START_LIMIT_S)
                self._screen.note("the first rows are in the target; the shop opens")
                outcome.startup_s = time.monotonic() - self._began_s
                await self._work(workload)
                self._screen.note("the shop has closed; waiting for the last change to arrive")
                await self._catch_up()
            finally:
                watching.cancel()
                await asyncio.wait([watching])
        outcome.overall = self._tally.latency()
        outcome.peak_rate = self._tally.peak_rate
        outcome.total_s = time.monotonic() - self._began_s
        return outcome

    # -- parts

    def _start_supervisor(self) -> None:
        flows = {
            t: {"from": f"{SOURCE}.public.{t}", "to": f"{TARGET}.{TARGET_SCHEMA}.{t}"} for t in shop.TABLES
        }
        config = {
            "name": NAME,
            "kafka": {"brokers": self.brokers},
            "sources": {
                SOURCE: {
                    "kind": "postgres",
                    "url": self.source_url,
                    "tables": {"public.*": {}},
                    "heartbeat": "1s",
                }
            },
            "targets": {TARGET: {"kind": "postgres", "url": self.target_url}},
            "flows": flows,
        }
        self._config_path.touch(mode=0o600)
        self._config_path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        package = str(Path(consumers.__file__).parents[1])
        path = os.pathsep.join(p for p in (package, os.environ.get("PYTHONPATH", "")) if p)
        answer = self._sandbox.guardian.ask(
            "spawn",
            argv=[sys.executable, "-m", "consumers", "run", "-c", str(self._config_path)],
            env={**os.environ, "PYTHONPATH": path},
            cwd=str(self._sandbox.folder),
            output=str(self.log_path),
            uid=None,
            gid=None,
            end_signal=int(signal.SIGTERM),
            end_wait_s=3.0,
            pid_file=None,
        )
        self._supervisor = int(answer["pid"])
        self._screen.note(f"`tailrace run` is process {self._supervisor}; its log: {self.log_path}")

    async def _watch(self, reader: StatusReader) -> None:
        """Keep the tally and the screen up to date. Kafka's own hiccups show as old numbers only."""
        while True:
            try:
                await reader.poll()
            except KafkaUnavailable as error:
                self._screen.note(f"no status: {error.what}")
            self._tally.take(reader.records())
            self._screen.show(self._tally, self._what)
            await asyncio.sleep(POLL_S)

    async def _until(self, what: str, check: Callable[[], Any], limit_s: float) -> None:
        """`check` may be a coroutine function; raises DemoError when the supervisor ends or time is up."""
        deadline = time.monotonic() + limit_s
        self._what = f"waiting until {what}"
        while True:
            found = check()
            if await found if asyncio.iscoroutine(found) else found:
                return
            code = self._sandbox.guardian.ask("poll", pid=self._supervisor)["code"]
            if code is not None:
                raise self._failed(f"`tailrace run` ended with exit code {code} while waiting until {what}")
            if time.monotonic() > deadline:
                raise self._failed(f"{limit_s:.0f} s are over while waiting until {what}")
            await asyncio.sleep(POLL_S)

    def _failed(self, what: str) -> DemoError:
        tail = "\n".join(f"  | {line}" for line in tail_of(self.log_path, LOG_LINES).splitlines())
        states = "; ".join(
            f"{kind} {record.state} {record.reason}".strip()
            for kind in KINDS
            if (record := self._tally.current(kind)) is not None
        )
        return DemoError(
            f"{what}\n  status: {states or 'none'}\n  the log of `tailrace run` ends with:\n{tail}",
            fix="run it again; if it happens twice, report it with the seed and this log",
        )

    async def _first_rows_there(self) -> bool:
        if any((r := self._tally.current(kind)) is None or r.state == "starting" for kind in KINDS):
            return False
        return (await asyncio.to_thread(self.compare)).equal

    async def _work(self, workload: Workload) -> None:
        """The shop's time, with the kills in it."""
        self._what = "the shop is at work"
        first: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(workload.run(), name="demo workload")
                group.create_task(self._disturb(), name="demo kills")
        except* TailraceError as failed:
            first = failed
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        if first is not None:  # raised here: Python before 3.11.4 wraps in a group what `except*` raises
            raise first
        done = workload.done
        self.outcome.transactions, self.outcome.changes = done.transactions, done.changes
        self.outcome.big_rows, self.outcome.truncates = done.big_rows, done.truncates

    async def _disturb(self) -> None:
        """Read the latency of the quiet part, then kill -9 capture and apply, and see them come back."""
        await asyncio.sleep(STEADY_UNTIL * self._seconds)
        self.outcome.steady = self._tally.latency()
        await asyncio.sleep((KILL_AT - STEADY_UNTIL) * self._seconds)
        for kind in KINDS:
            record = self._tally.current(kind)
            if record is not None and self._is_ours(record.pid):
                os.kill(record.pid, signal.SIGKILL)
                self._killed[kind] = record.pid
                self.outcome.kills += 1
                self._screen.note(f"kill -9 {record.pid} ({kind})")
        for kind, pid in self._killed.items():
            again = partial(self._tally.replaced, kind, pid)
            await self._until(f"{kind} works again", again, START_LIMIT_S)
            self.outcome.restarts += 1
            record = self._tally.current(kind)
            self._screen.note(f"{kind} works again as process {record.pid if record else '?'}")
        self._what = "the shop is at work"

    def _is_ours(self, pid: int) -> bool:
        """Only a process that was started with this demo's config file is killed."""
        try:
            return str(self._config_path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    async def _catch_up(self) -> None:
        """Until capture has passed the end of the source's WAL and the target is equal, or time is up."""
        began = time.monotonic()
        async with await psycopg.AsyncConnection.connect(self.source_url) as connection:
            row = await (await connection.execute("SELECT pg_current_wal_lsn()")).fetchone()
        end = parse_lsn(str(row[0] if row else ""))
        await self._until(
            "capture has passed the last change", lambda: self._tally.lsn() >= end, self._catch_up_s
        )
        deadline = began + self._catch_up_s
        self._what = "comparing source and target, row by row"
        while True:
            self.outcome.verdict = await asyncio.to_thread(self.compare)
            self.outcome.catch_up_s = time.monotonic() - began
            if self.outcome.verdict.equal or time.monotonic() > deadline:
                return
            await asyncio.sleep(POLL_S)

    def compare(self) -> Verdict:
        """Every table of the shop, row by row, as of now."""
        pairs = [(TableName("public", t), TableName(TARGET_SCHEMA, t)) for t in shop.TABLES]
        return compare(self.source_url, self.target_url, pairs)
