"""A table `people` in Kafka, and what a target has of it."""

from __future__ import annotations

from streamer.config import Config
from tests.harness.feeder import Feeder, Table, applying, config_of

COLUMNS = [("id", "integer", "number"), ("name", "text", "text"), ("note", "text", "text")]
IDS = "SELECT id FROM mirror.people ORDER BY id"


async def filled(feeder: Feeder, *ids: int, partitions: int = 2) -> Table:
    """The table with these rows, made at 100 and published."""
    table = await feeder.table("people", COLUMNS, partitions=partitions)
    make(table, *ids, lsn=100)
    await feeder.flush()
    return table


async def copied(feeder: Feeder, target_url: str, *ids: int) -> Config:
    """Apply has brought these rows, all there are, and has ended."""
    config = config_of(feeder, target_url)
    async with applying(config) as run:
        await run.rows(target_url, IDS, [(n,) for n in ids])
        await run.settled(feeder)
        await run.stop()
    return config


def make(table: Table, *ids: int, lsn: int, name: str = "a") -> None:
    for n in ids:
        table.create({"id": n, "name": name, "note": None}, lsn)


def drop(table: Table, n: int, lsn: int) -> None:
    table.delete({"id": n, "name": None, "note": None}, lsn)
