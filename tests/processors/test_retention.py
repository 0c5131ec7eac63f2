"""Retention of `out` that has passed what a target has not applied: what is said, and the cure."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition

from consumers.processors.operations import reset_processor
from streamer.config import parse
from streamer.errors import FatalError
from streamer.kafka import offset_ranges
from tests.harness.capture import until
from tests.harness.feeder import Feeder, Table, applying
from tests.harness.processing import NAME, Processing, config_text, processing
from tests.processors.agents import doubled

COLUMNS = [("id", "integer", "number"), ("n", "integer", "number")]


@dataclass
class Rows:
    """What the source has, and what of it is in the target."""

    table: Table
    file: Path
    out: str
    n: int = 0

    def write(self, *ids: int) -> None:
        self.n += 1
        for number in ids:
            self.table.update({"id": number, "n": self.n}, lsn=100 * self.n + number)

    async def done(self, made: Processing, count: int) -> None:
        await made.until(lambda: made.detail.get("done") == count, f"{count} rows")

    def copied(self) -> list[Any]:
        with closing(sqlite3.connect(self.file)) as connection:
            return connection.execute(f"SELECT id, n, twice FROM {self.out} ORDER BY id").fetchall()

    async def equal(self, expected: list[tuple[int, int, int]]) -> None:
        async def are() -> bool:
            try:
                return self.copied() == expected
            except sqlite3.OperationalError:
                return False  # not made yet

        await until(are)


@pytest.mark.thorough
async def test_h14_retention_of_derived_rows_is_the_targets_and_a_reset_mends_it(
    feeder: Feeder, tmp_path: Path
) -> None:
    orders = await feeder.table("orders", COLUMNS, partitions=1)
    out = f"{feeder.name}_out"
    rows = Rows(orders, tmp_path / "copy.db", out)
    text = config_text(feeder, [orders.topic], agent="tests.processors.agents:doubled", partitions=1)
    text += f"targets: {{copy: {{kind: sql, url: 'sqlite:///{rows.file}'}}}}\n"
    text += f"flows: {{copied: {{from: {out}, to: copy}}}}\n"
    config = parse(text, tmp_path / "tailrace.yaml", environ={})
    rows.write(1, 2, 3)
    await feeder.flush()
    async with processing(config, doubled) as made, applying(config):
        await rows.equal([(1, 1, 2), (2, 1, 2), (3, 1, 2)])
        await made.stop()
    rows.table.delete({"id": 3, "n": 1}, lsn=150)
    rows.write(1, 2)
    await feeder.flush()
    async with processing(config, doubled) as made:
        await rows.done(made, 3)
    (_, end) = (await offset_ranges(feeder.brokers, None, [TopicPartition(out, 0)]))[TopicPartition(out, 0)]
    await feeder.delete_records(out, {0: end - 1})

    async with applying(config) as apply:
        error = await apply.fails()
    assert isinstance(error, FatalError)
    assert "retention has removed" in str(error)
    assert "flow 'copied' has not applied" in str(error)
    assert f"run `tailrace reset {NAME} --yes`" in error.fix

    rows.write(2)
    await feeder.flush()
    async with processing(config, doubled) as made:  # the worker needs nothing of what it has written
        await rows.done(made, 1)
    await reset_processor(config, NAME)
    async with processing(config, doubled), applying(config):
        await rows.equal([(1, 2, 4), (2, 3, 6)])
