"""Workers that are killed, stopped and joined by others under load: nothing lost, nothing twice."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consumers.processors import changelog
from consumers.processors.memory import MemoryStore
from consumers.processors.names import Names
from consumers.processors.rocks import open_store
from streamer.kafka import admin, describe_cluster
from streamer.sandbox import KafkaServer, Sandbox
from tests.harness.feeder import Feeder, Table
from tests.harness.pipeline import STOP_S
from tests.harness.processing import NAME, Workers, config_text, records_of

COLUMNS = [("id", "integer", "number"), ("n", "integer", "number")]
DONE_S = 90.0


class Writer:
    """Creates, updates and deletes; knows what must come out, each once."""

    def __init__(self, feeder: Feeder, table: Table, seed: int) -> None:
        self._feeder = feeder
        self._table = table
        self._random = random.Random(seed)
        self._lsn = 100
        self._rows: dict[int, int] = {}
        self.expected: Counter[str] = Counter()

    async def write(self, flushes: int, rows: int = 50, pause_s: float = 0.05) -> None:
        for _ in range(flushes):
            for _ in range(rows):
                self._one()
            await self._feeder.flush()
            await asyncio.sleep(pause_s)

    def _one(self) -> None:
        self._lsn += 1
        number = self._random.randrange(500)
        row = {"id": number, "n": self._lsn}
        derived = json.dumps({**row, "twice": 2 * self._lsn})
        if number not in self._rows:
            self._table.create(row, lsn=self._lsn)
        elif self._random.random() < 0.2:
            self._table.delete({"id": number, "n": self._rows.pop(number)}, lsn=self._lsn)
            self.expected[f"{number} gone"] += 1
            return
        else:
            self._table.update(row, lsn=self._lsn)
        self._rows[number] = self._lsn
        self.expected[derived] += 1


async def derived(brokers: str, out: str) -> Counter[str]:
    found: Counter[str] = Counter()
    for record in await records_of(brokers, out):
        if record.value is not None:
            event = json.loads(record.value)
            number = json.loads(record.key)["id"]
            found[f"{number} gone" if event["after"] is None else json.dumps(event["after"])] += 1
    return found


async def settled(feeder: Feeder, out: str, writer: Writer, workers: Workers) -> None:
    """Every derived event is there, and none twice, also a while later."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + DONE_S
    while (found := await derived(feeder.brokers, out)) != writer.expected:
        extra = found - writer.expected
        assert not extra, f"derived twice, or never written: {list(extra.items())[:5]}"
        missing = writer.expected - found
        assert loop.time() < until_s, f"{len(missing)} are missing\n{workers.logs()}"
        await asyncio.sleep(0.2)


async def prepared(feeder: Feeder, folder: Path, agent: str = "doubled") -> tuple[Table, Path, str]:
    table = await feeder.table("orders", COLUMNS, partitions=4)
    path = folder / "tailrace.yaml"
    path.write_text(
        config_text(feeder, [table.topic], agent=f"tests.processors.agents:{agent}", partitions=4)
    )
    return table, path, f"{feeder.name}_out"


async def killing(workers: Workers, seed: int, *, until: asyncio.Task[None]) -> int:
    chance, kills = random.Random(seed), 0
    while not until.done():
        await asyncio.sleep(chance.uniform(0.3, 3.0))
        if running := workers.running:
            chance.choice(running).kill()
            kills += 1
    return kills


@pytest.mark.thorough
async def test_exactly_once_with_workers_killed_at_random(feeder: Feeder, tmp_path: Path) -> None:
    table, path, out = await prepared(feeder, tmp_path)
    writer = Writer(feeder, table, 1)
    async with Workers(path, tmp_path) as workers:
        workers.start()
        writing = asyncio.create_task(writer.write(150, pause_s=0.1))
        assert await killing(workers, 7, until=writing) >= 4
        await writing
        await settled(feeder, out, writer, workers)
        [worker] = workers.running
        worker.kill()
    await state_is_the_changelogs(feeder, out, tmp_path)


async def state_is_the_changelogs(feeder: Feeder, out: str, folder: Path) -> None:
    """What RocksDB holds after a kill is never ahead of the changelog, and is its fold once brought up."""
    names = Names(feeder.name, NAME, out)
    async with admin(feeder.brokers, None) as client:
        cluster_id = (await describe_cluster(client))["cluster_id"]
    for number in range(4):
        place = folder / ".tailrace" / "processors" / NAME / str(number)
        store = open_store(place, cluster_id=cluster_id, topic=names.state)
        try:
            fold = MemoryStore()
            whole = await changelog.recover(feeder.brokers, None, names.state, number, fold)
            assert store.mark is not None
            assert fold.mark is not None
            assert store.mark.next_offset <= fold.mark.next_offset
            read = await changelog.recover(feeder.brokers, None, names.state, number, store)
            assert read < whole  # what it had was not read again
            assert dict(store.scan(b"", reverse=False)).items() >= dict(fold.scan(b"", reverse=False)).items()
            assert store.mark == fold.mark
        finally:
            store.close()


@pytest.mark.thorough
async def test_a_second_worker_joins_under_load_and_leaves(feeder: Feeder, tmp_path: Path) -> None:
    table, path, out = await prepared(feeder, tmp_path)
    writer = Writer(feeder, table, 2)
    async with Workers(path, tmp_path) as workers:
        first = workers.start()
        writing = asyncio.create_task(writer.write(150, pause_s=0.1))
        await workers.until_working(first)
        second = workers.start()
        await workers.until_working(first, second)
        assert await second.stop() == 0  # SIGTERM; the supervisor starts another one
        third = workers.started()
        await workers.until_working(first, third)
        first.kill()
        await writing
        await settled(feeder, out, writer, workers)
        assert not any(workers.ended), workers.logs()


@pytest.mark.thorough
async def test_sigterm_ends_within_ten_seconds_and_commits(feeder: Feeder, tmp_path: Path) -> None:
    table, path, out = await prepared(feeder, tmp_path)
    writer = Writer(feeder, table, 3)
    async with Workers(path, tmp_path) as workers:
        workers.start()
        writing = asyncio.create_task(writer.write(100, pause_s=0.05))
        for _ in range(3):
            worker = workers.started()
            await workers.until_working(worker)
            assert await worker.stop(STOP_S) == 0
        await writing
        await settled(feeder, out, writer, workers)


@pytest.fixture
async def own_feeder(
    kafka_archive: None, sandbox_folder: Path | None
) -> AsyncIterator[tuple[Feeder, KafkaServer]]:
    """With a Kafka of the test's own, to kill."""
    with Sandbox(kafka=1, fast=True, dir=sandbox_folder) as sandbox:
        server = sandbox.kafka
        async with Feeder(server.bootstrap, "bounced") as feeder:
            yield feeder, server


@pytest.mark.slow
async def test_the_broker_bounced_ten_times_under_load(
    own_feeder: tuple[Feeder, KafkaServer], tmp_path: Path
) -> None:
    feeder, server = own_feeder
    table, path, out = await prepared(feeder, tmp_path)
    writer = Writer(feeder, table, 4)
    async with Workers(path, tmp_path) as workers:
        await workers.until_working(workers.start(), workers.start())
        for number in range(10):
            await writer.write(2, rows=2000, pause_s=0)
            if number % 2:
                server.kill()
            else:
                server.stop()
            server.start()
            await settled(feeder, out, writer, workers)
        assert len(workers.ended) <= 20  # each at most once a bounce


@pytest.mark.thorough
async def test_a_body_that_keeps_pythons_lock_is_ended_by_the_kernel(feeder: Feeder, tmp_path: Path) -> None:
    """No thread of the process gets to run; the stacks are in the log all the same."""
    table, path, out = await prepared(feeder, tmp_path, "matching")
    writer = Writer(feeder, table, 5)
    async with Workers(path, tmp_path, stand_still_s=6.0) as workers:
        (tmp_path / "block").touch()
        await writer.write(2)
        blocked = workers.start()
        assert await blocked.wait(60) == -signal.SIGALRM
        assert " in matching" in blocked.log_path.read_text()
        (tmp_path / "block").unlink()
        await settled(feeder, out, writer, workers)


@pytest.mark.thorough
async def test_a_body_that_blocks_the_loop_ends_the_process(feeder: Feeder, tmp_path: Path) -> None:
    table, path, out = await prepared(feeder, tmp_path, "blocking")
    writer = Writer(feeder, table, 5)
    async with Workers(path, tmp_path, stand_still_s=2.0) as workers:
        (tmp_path / "block").touch()
        await writer.write(2)
        blocked = workers.start()
        assert await blocked.wait(60) == 2
        log = blocked.log_path.read_text()
        assert log.rindex("the event loop stood still for 2 s") > log.rindex("  File ")  # behind the stacks
        (tmp_path / "block").unlink()
        await settled(feeder, out, writer, workers)
