"""The group's membership while partitions come that nobody has a checkpoint of yet."""

from __future__ import annotations

import asyncio

from consumers.apply.feed import Feed
from consumers.apply.resets import Resets
from tests.harness.feeder import WAIT_S, Feeder, config_of

COLUMNS = [("id", "integer", "number")]


async def test_h30_a_busy_target_keeps_its_membership_when_a_table_comes(
    feeder: Feeder, target_database: str
) -> None:
    """Kafka has no offset of the partitions: no reason to leave the group, which costs seconds."""
    table = await feeder.table("later", COLUMNS)
    table.create({"id": 1}, 100)
    await feeder.flush()
    flows = list(config_of(feeder, target_database).flows.values())
    feed = Feed(feeder.brokers, None, f"{feeder.name}.copy", flows, Resets(feeder.brokers, None, feeder.name))
    await feed.open()
    try:
        fetched = feed.consumer._fetcher._records  # where aiokafka keeps the error for the next caller
        async with asyncio.timeout(WAIT_S):
            while not fetched:  # noqa: ASYNC110  aiokafka tells nobody
                await asyncio.sleep(0.02)
        for _ in range(2 * table.partitions):
            await feed.idle()
        assert feed.is_open
        assert {partition.topic for partition in feed.unplaced} == {table.topic}
    finally:
        await feed.close()
