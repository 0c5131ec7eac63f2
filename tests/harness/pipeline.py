"""Tailrace as real processes: capture and apply, started, stopped and killed by a test.

Owns: the config file, the processes and their logs, and the waits. Nothing here reaches into a process:
what it knows comes from the servers, the status topic and exit codes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import psycopg
import yaml

from consumers.demo.verdict import TableName, Verdict, compare, compare_schema
from streamer.changes.lsn import format_lsn, parse_lsn
from streamer.changes.topics import status_topic
from streamer.errors import TailraceError
from streamer.status import StatusReader, StatusRecord, read_status
from tests.harness.starter import Started, Starter

REPO = Path(__file__).parents[2]
CATCH_UP_S = 90.0
STATE_S = 90.0
STOP_S = 10.0  # what SIGTERM is allowed to take
STOP_LIMIT_S = 60.0  # ... on a machine that has other work
POLL_S = 0.1  # the processes that are waited for need the cores
COMPARE_POLL_S = 0.2  # at least; a comparison that takes longer is repeated as seldom
LOG_TAIL_LINES = 25
TARGET_SCHEMA = "mirror"
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


@dataclass(eq=False)
class Child:
    """One process of Tailrace with its log file."""

    role: str  # capture | apply | run | ...
    number: int
    popen: subprocess.Popen[bytes] | Started
    log_path: Path
    killed: bool = False

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def running(self) -> bool:
        return self.popen.poll() is None

    @property
    def label(self) -> str:
        return f"{self.role} {self.number} (pid {self.pid})"

    def kill(self) -> None:
        """SIGKILL, and gone when this returns."""
        self.killed = True
        self.popen.kill()
        self.popen.wait()

    async def stop(self, timeout_s: float = STOP_LIMIT_S) -> int:
        """SIGTERM; the exit code. Longer than `timeout_s` is a failure."""
        self.popen.terminate()
        return await self.wait(timeout_s)

    async def wait(self, timeout_s: float = STATE_S) -> int:
        """The exit code, when it ends by itself."""
        deadline = time.monotonic() + timeout_s
        while self.running:
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"{self.label} has not ended within {timeout_s:.0f} s\n{self.log_tail()}"
                )
            await asyncio.sleep(POLL_S)
        return self.popen.wait()

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def log_tail(self) -> str:
        lines = self.log().splitlines()[-LOG_TAIL_LINES:]
        state = "runs" if self.running else f"ended with {self.popen.returncode}"
        return "\n".join([f"-- {self.label} {state}, its log ends:", *(f"   {line}" for line in lines)])

    def peak_rss_bytes(self) -> int:
        """The largest resident size so far (VmHWM)."""
        for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        raise AssertionError(f"{self.label} has no VmHWM: it has ended")

    def cpu_s(self) -> float:
        """User and system time used so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Line:
    """A connection that is kept: a login costs more than what a wait asks, ten times a second."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._lock = asyncio.Lock()
        self._connection: psycopg.AsyncConnection | None = None

    async def value(self, query: str, values: tuple[Any, ...]) -> Any:
        """Raises OperationalError when the server is away now; one that was meanwhile is asked again."""
        async with self._lock:
            if self._connection is not None:
                try:
                    return await self._ask(self._connection, query, values)
                except psycopg.OperationalError:
                    await self.close()
            self._connection = await psycopg.AsyncConnection.connect(
                self._url, autocommit=True, connect_timeout=30, prepare_threshold=None
            )
            return await self._ask(self._connection, query, values)

    async def _ask(self, connection: psycopg.AsyncConnection, query: str, values: tuple[Any, ...]) -> Any:
        row = await (await connection.execute(query.encode(), values or None)).fetchone()
        return row[0] if row else None

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()
            self._connection = None


class Pipeline:
    """One source, one target, one flow for every table of schema public, and their processes.

    `async with Pipeline(...) as pipeline: pipeline.start("capture"); pipeline.start("apply")`.
    Leaving the block kills what still runs.
    """

    def __init__(
        self,
        folder: Path,
        *,
        source_url: str,
        target_url: str,
        brokers: str,
        name: str,
        capture_url: str | None = None,
        apply_url: str | None = None,
        process_brokers: str | None = None,
        source: dict[str, Any] | None = None,
        topics: dict[str, Any] | None = None,
        target: dict[str, Any] | None = None,
        flows: dict[str, Any] | None = None,
    ) -> None:
        """`source_url`, `target_url` and `brokers` are the servers as the test sees them; `capture_url`,
        `apply_url` and `process_brokers` as the processes do (a proxy between). `source`, `topics`,
        `target`: more keys of those parts of the config; `flows` replaces the one flow.
        """
        self.name = name
        self.source = f"{name}_shop"  # topics begin with the source's name, so it is unique too
        self.slot = f"tailrace_{name}"
        self.source_url = source_url
        self.target_url = target_url
        self.brokers = brokers
        self.folder = folder
        self._source_line = Line(source_url)
        self._target_line = Line(target_url)
        self.children: list[Child] = []
        self.starter: Starter | None = None  # what starts its processes; None: the interpreter itself
        self.config: dict[str, Any] = {
            "name": name,
            "kafka": {"brokers": process_brokers or brokers, "topics": {"partitions": 4, **(topics or {})}},
            "sources": {
                self.source: {
                    "kind": "postgres",
                    "url": capture_url or source_url,
                    "tables": {"public.*": {}},
                    "slot": {"name": self.slot},
                    "publication": {"name": self.slot},
                    "heartbeat": "500ms",
                    **(source or {}),
                }
            },
            "targets": {"copy": {"kind": "postgres", "url": apply_url or target_url, **(target or {})}},
            "flows": flows or {"mirror": {"from": f"{self.source}.public.*", "to": f"copy.{TARGET_SCHEMA}"}},
        }
        self.write_config()

    @property
    def config_path(self) -> Path:
        return self.folder / "tailrace.yaml"

    def write_config(self) -> None:
        """After a change of `config`; processes read it when they start."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config_path.touch(mode=0o600)
        self.config_path.write_text(yaml.safe_dump(self.config, sort_keys=False), encoding="utf-8")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for child in self.children:
            if child.running:
                child.kill()
        await self._source_line.close()
        await self._target_line.close()

    # -- processes

    def start(self, role: str, *options: str) -> Child:
        """`capture` and `apply` get their source's or target's name, unless one is given."""
        named = bool(options) and not options[0].startswith("-")
        part = [] if named else {"capture": [self.source], "apply": ["copy"]}.get(role, [])
        number = 1 + sum(c.role == role for c in self.children)
        log_path = self.folder / f"{role}-{number}.log"
        with log_path.open("wb") as log:
            child = Child(role, number, self._start(log, role, *part, *options), log_path)
        self.children.append(child)
        return child

    def _start(self, log: IO[bytes], *words: str) -> subprocess.Popen[bytes] | Started:
        if self.starter is not None:
            return self.starter.start([*words, "-c", str(self.config_path)], log)
        return subprocess.Popen(
            self.command(*words),
            cwd=REPO,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - one prctl call, nothing that could lock
        )

    def command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "consumers", *words, "-c", str(self.config_path)]

    async def run(self, *words: str, timeout_s: float = STATE_S) -> tuple[int, str]:
        """One command to its end: (exit code, stdout and stderr together)."""
        with tempfile.TemporaryFile() as output:
            process = self._start(output, *words)
            try:
                async with asyncio.timeout(timeout_s):
                    code = await asyncio.to_thread(process.wait)
            except TimeoutError:
                raise AssertionError(f"{words} has not ended within {timeout_s:.0f} s") from None
            finally:
                process.kill()
            output.seek(0)
            return code, output.read().decode(errors="replace")

    async def start_both(self) -> tuple[Child, Child]:
        """Capture and apply, the first rows in the target and the stream running."""
        capture, apply = self.start("capture"), self.start("apply")
        await self.state("capture", "streaming", child=capture)
        await self.equal()
        return capture, apply

    def running(self, role: str) -> list[Child]:
        return [c for c in self.children if c.role == role and c.running]

    def dead(self) -> list[Child]:
        """Those that have ended by themselves with an error."""
        return [c for c in self.children if not c.running and not c.killed and c.popen.returncode != 0]

    # -- waits

    async def until(
        self,
        what: str,
        check: Callable[[], Awaitable[bool]],
        timeout_s: float = CATCH_UP_S,
        *,
        may_die: bool = False,
    ) -> None:
        """Poll `check`. A server that is away for the moment counts as not yet; a process that ends
        with an error ends the wait, unless `may_die`."""
        deadline = time.monotonic() + timeout_s
        trouble = ""
        while True:
            try:
                if await check():
                    return
                trouble = ""
            except (psycopg.OperationalError, TailraceError, OSError) as error:
                trouble = f" ({error})"
            ended = [] if may_die else self.dead()
            if ended or time.monotonic() > deadline:
                why = "a process ended" if ended else f"{timeout_s:.0f} s are over"
                raise AssertionError(f"waiting until {what}: {why}{trouble}\n{self.tails()}")
            await asyncio.sleep(POLL_S)

    def tails(self) -> str:
        return "\n".join(child.log_tail() for child in self.children[-4:])

    async def status(self, role: str | None = None) -> list[StatusRecord]:
        records = await read_status(self.brokers, None, self.name)
        return [r for r in records if role in (None, r.kind)]

    async def state(
        self,
        role: str,
        state: str,
        *,
        child: Child | None = None,
        reason: str = "",
        timeout_s: float = STATE_S,
    ) -> StatusRecord:
        """Until a process says that it is in `state` (for a `reason` that holds these words)."""
        found: list[StatusRecord] = []
        topic: StatusReader | None = None

        async with contextlib.AsyncExitStack() as stack:

            async def check() -> bool:
                nonlocal topic
                try:
                    if topic is None:
                        reader = StatusReader(self.brokers, None, status_topic(self.name))
                        topic = await stack.enter_async_context(reader)
                    await topic.poll()
                except TailraceError:
                    topic = None  # a fresh one finds a Kafka that has been started again
                    await stack.aclose()
                    raise
                found[:] = [
                    r
                    for r in topic.records()
                    if role == r.kind
                    and r.state == state
                    and reason in r.reason
                    and (child is None or r.pid == child.pid)
                ]
                return bool(found)

            await self.until(f"{role} is {state} {reason!r}", check, timeout_s, may_die=state == "error")
        return found[-1]

    async def wal_lsn(self) -> int:
        return parse_lsn(str(await self.source_value("SELECT pg_current_wal_lsn()")))

    async def source_value(self, query: str, *values: Any) -> Any:
        return await self._source_line.value(query, values)

    async def target_value(self, query: str, *values: Any) -> Any:
        return await self._target_line.value(query, values)

    async def confirmed_lsn(self) -> int:
        """What capture has confirmed to the source; 0 when it has no slot yet."""
        lsn = await self.source_value(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = %s", self.slot
        )
        return parse_lsn(str(lsn)) if lsn is not None else 0

    async def captured(self, lsn: int | None = None, timeout_s: float = CATCH_UP_S) -> None:
        """Until capture has confirmed `lsn` (or all that is in the WAL now): it is durable in Kafka then."""
        if lsn is None:
            await self.until("the source answers", self._source_answers, timeout_s)
            lsn = await self.wal_lsn()
        wanted = lsn

        async def check() -> bool:
            return await self.confirmed_lsn() >= wanted

        await self.until(f"capture has confirmed {format_lsn(wanted)}", check, timeout_s)

    async def some_captured(self, wal_bytes: int, timeout_s: float = CATCH_UP_S) -> None:
        """Until capture has confirmed that much more of the WAL than it has now."""
        await self.captured(await self.confirmed_lsn() + wal_bytes, timeout_s)

    async def _source_answers(self) -> bool:
        return bool(await self.source_value("SELECT true"))

    async def equal(
        self, timeout_s: float = CATCH_UP_S, pairs: list[tuple[TableName, TableName]] | None = None
    ) -> Verdict:
        """Caught up: all of the WAL is in Kafka, then the target is equal to the source, row by row.

        The source must be quiet. The wait for the target is bounded; its failure shows the differences.
        """
        await self.captured(timeout_s=timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            began = time.monotonic()
            verdict: Verdict | None = None
            with contextlib.suppress(psycopg.OperationalError):
                verdict = await asyncio.to_thread(self.compare, pairs)
            if verdict is not None and verdict.equal:
                return verdict
            if self.dead() or time.monotonic() > deadline:
                raise AssertionError(
                    f"the target does not become equal to the source:\n{verdict}\n{self.tails()}"
                )
            await asyncio.sleep(max(COMPARE_POLL_S, time.monotonic() - began))

    def compare(self, pairs: list[tuple[TableName, TableName]] | None = None) -> Verdict:
        """The comparison as of now, without any wait."""
        if pairs is not None:
            return compare(self.source_url, self.target_url, pairs)
        return compare_schema(self.source_url, self.target_url, TARGET_SCHEMA)


async def execute(url: str, *statements: str) -> None:
    """Each statement in a transaction of its own."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())
