"""A processor in the test's own process, or killed ones beside it, between a Feeder and a reader of `out`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

from aiokafka import ConsumerRecord, TopicPartition

from consumers.processors import Definition
from consumers.processors.worker import run_processor
from streamer.changes.topics import status_topic
from streamer.config import Config, load, parse
from streamer.kafka import admin, offset_ranges, read_to_end
from streamer.publisher.topics import describe
from streamer.status import StatusReader, StatusWriter
from tests.harness.feeder import POLL_S, WAIT_S, Feeder, Inside
from tests.harness.pipeline import REPO, Child, die_with_parent

LOOK_S = 0.1  # a test waits for what `status` says
NAME = "made"

Record = ConsumerRecord[bytes, bytes]


def config_of(
    feeder: Feeder,
    inputs: list[str],
    folder: Path,
    *,
    agent: str = "tests.processors.agents:doubled",
    guarantee: str = "exactly_once",
    key: list[str] | None = None,
    partitions: int = 2,
) -> Config:
    """One processor `made`, from topics to `<name>_out`."""
    text = config_text(feeder, inputs, agent=agent, guarantee=guarantee, key=key, partitions=partitions)
    return parse(text, folder / "tailrace.yaml", environ={})


def config_text(
    feeder: Feeder,
    inputs: list[str],
    *,
    agent: str,
    guarantee: str = "exactly_once",
    key: list[str] | None = None,
    partitions: int = 2,
) -> str:
    more = f"guarantee: {guarantee}, key: {json.dumps(key or [])}"
    return f"""
name: {feeder.name}
kafka: {{brokers: "{feeder.brokers}", topics: {{partitions: {partitions}}}}}
sources:
  {feeder.source}: {{kind: postgres, url: "postgresql://nobody@localhost/none", tables: {{"public.*": {{}}}}}}
processors:
  {NAME}:
    {{agent: "{agent}", in: {json.dumps(inputs)}, out: "{feeder.name}_out", {more}}}
"""


class Processing(Inside):
    """A worker."""

    what = "the worker"

    @property
    def out(self) -> str:
        return self.config.processors[NAME].out

    @property
    def brokers(self) -> str:
        return self.config.kafka.brokers

    @property
    def detail(self) -> dict[str, Any]:
        return self.status.record.detail

    async def rows(self, expected: dict[str, Any], topic: str = "") -> list[Record]:
        """Wait until the fold of a derived topic is this: the key's JSON -> row."""
        found: dict[str, Any] = {}
        loop = asyncio.get_running_loop()
        until_s = loop.time() + WAIT_S
        while loop.time() < until_s:
            records = await records_of(self.brokers, topic or self.out)
            found = folded(records)
            if found == expected:
                return records
            if self.task.done():
                self.task.result()
                raise AssertionError("the worker has ended")
        raise AssertionError(f"{found} is not {expected}; {self.status.record}")


class Workers:
    """Processes of one processor, started again when they end, as a supervisor would."""

    def __init__(self, config_path: Path, folder: Path, *, stand_still_s: float = 15.0) -> None:
        self._config_path = config_path
        self._folder = folder
        self._stand_still_s = stand_still_s
        self._children: list[Child] = []
        self._number = 0
        self._task: asyncio.Task[None] | None = None
        self.ended: list[int] = []  # exit codes of those that were not killed

    def start(self) -> Child:
        self._number += 1
        log_path = self._folder / f"worker-{self._number}.log"
        command = [sys.executable, "-m", "tests.processors.victim", str(self._config_path)]
        with log_path.open("wb") as log:
            popen = subprocess.Popen(
                [*command, str(self._stand_still_s)],
                stdout=log,
                stderr=log,
                cwd=REPO,
                preexec_fn=die_with_parent,  # noqa: PLW1509  as in pipeline
            )
        child = Child("process", self._number, popen, log_path)
        self._children.append(child)
        return child

    async def until_working(self, *children: Child, timeout_s: float = 60.0) -> None:
        """Each has said in its heartbeats that it has tasks."""
        config = load(self._config_path)
        pids = {child.pid for child in children}
        async with asyncio.timeout(timeout_s):
            async with StatusReader(config.kafka.brokers, None, status_topic(config.name)) as reader:
                while True:
                    await reader.poll()
                    at_work = {r.pid for r in reader.records() if r.detail.get("tasks") and not r.ended}
                    if pids <= at_work:
                        return
                    assert all(child.running for child in children), self.logs()
                    await asyncio.sleep(POLL_S)

    def started(self) -> Child:
        """The newest; started now, where none runs."""
        for child in list(self._children):
            if not child.running:
                self._children.remove(child)
                self._note(child)
                self.start()
        return self._children[-1]

    def _note(self, child: Child) -> None:
        if not child.killed:
            self.ended.append(child.popen.returncode)

    @property
    def running(self) -> list[Child]:
        return [child for child in self._children if child.running]

    async def supervise(self) -> None:
        while True:
            if self._children:
                self.started()
            await asyncio.sleep(POLL_S)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self.supervise())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait([self._task])
        for child in self._children:
            child.kill()

    def logs(self) -> str:
        return "\n".join(path.read_text()[-2000:] for path in sorted(self._folder.glob("worker-*.log")))


async def records_of(brokers: str, topic: str, *, committed: bool = True) -> list[Record]:
    async with admin(brokers, None) as client:
        count = (await describe(client, [topic])).get(topic, 0)
    ranges = await offset_ranges(brokers, None, [TopicPartition(topic, p) for p in range(count)])
    return await read_to_end(brokers, None, ranges, committed=committed)


def folded(records: list[Record]) -> dict[str, Any]:
    """The last row of each key."""
    rows: dict[str, Any] = {}
    for record in records:
        if record.key is None:
            continue
        key = record.key.decode()
        after = None if record.value is None else json.loads(record.value)["after"]
        if after is None:
            rows.pop(key, None)
        else:
            rows[key] = after
    return rows


@asynccontextmanager
async def processing(
    config: Config, definition: Definition | None = None, **options: Any
) -> AsyncIterator[Processing]:
    status = StatusWriter(
        config.kafka.brokers, config.kafka.security, config.name, kind="process", part_name=NAME
    )
    stop = asyncio.Event()
    options = {"state": "memory", "look_s": LOOK_S, **options}
    task = asyncio.create_task(
        run_processor(config, NAME, stop=stop, status=status, definition=definition, **options),
        name="process",
    )
    running = Processing(config, status, task, stop)
    try:
        yield running
    finally:
        stop.set()
        await asyncio.wait([task], timeout=12)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
